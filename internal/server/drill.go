package server

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/access"
	"estover.dev/internal/agent"
	"estover.dev/internal/db"
	"estover.dev/internal/directory"
	"estover.dev/internal/incident"
	"estover.dev/internal/resource"
)

// What is made for a drill says that it is a decoy, by its blueprint and by who
// keeps it.
const (
	decoyBlueprint = "drill-decoy"
	decoyKeeper    = "drill"
	decoyPurpose   = "drill"
	decoyStream    = "stream.read"
	decoyCall      = "ping.read"
	decoyLife      = 10 * time.Minute // after which it is nobody, whatever becomes of the drill
)

// decoy makes an agent with an upstream of our own on the loopback address, and
// opens a stream to it through the reverse route of this server, as any agent
// would. What the tenant's policy does not permit to a granted agent, reading
// something internal, is not permitted to the decoy either.
func (s *Server) decoy(ctx context.Context, caller estover.Caller) (_ *incident.Decoy, err error) {
	f := &s.facts
	system := estover.Caller{Tenant: caller.Tenant, Subject: estover.System("drill"), Strength: estover.ByBound, Request: caller.Request}
	sponsor := caller.Subject.ID()
	if caller.Subject.Kind() != estover.UserKind {
		if sponsor, err = s.anAdministrator(ctx, caller.Tenant); err != nil {
			return nil, err
		}
	}
	name := "drill-" + strings.ToLower(rand.Text()[:16])
	upstream, err := decoyUpstream()
	if err != nil {
		return nil, err
	}
	var undo []func(context.Context) error
	end := func(ctx context.Context) error {
		var failed error
		for i := len(undo) - 1; i >= 0; i-- {
			failed = errors.Join(failed, undo[i](ctx))
		}
		return failed
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, end(context.WithoutCancel(ctx)))
		}
	}()
	undo = append(undo, func(context.Context) error { return upstream.Close() })
	r, err := f.resources.Put(ctx, system, resource.Spec{
		Name: name, BaseURL: upstream.url, AllowPrivate: []string{"127.0.0.0/8", "::1/128"}, Class: estover.Internal, Record: "none",
		Actions: []resource.Action{{Name: decoyStream, Method: http.MethodGet, Path: "/stream"}, {Name: decoyCall, Method: http.MethodGet, Path: "/ping"}},
	}, decoyKeeper)
	if err != nil {
		return nil, err
	}
	undo = append(undo, func(ctx context.Context) error { return f.resources.Retire(ctx, system, r.ID) })
	a, err := f.registry.Create(ctx, system, agent.Spec{
		Name: name, Blueprint: decoyBlueprint, Sponsor: sponsor, Purposes: []string{decoyPurpose}, Clearance: estover.Internal,
		ExpiresAt: s.db.Now().Add(decoyLife),
	}, agent.Origin{ManagedBy: decoyKeeper})
	if err != nil {
		return nil, err
	}
	undo = append(undo, func(ctx context.Context) error { return f.registry.Retire(ctx, system, a.ID, "The drill is over.") })
	if _, err = f.access.Put(ctx, system, access.Spec{
		Agent: a.ID, Resource: r.ID, Actions: []string{decoyStream, decoyCall}, Purposes: []string{decoyPurpose}, Class: estover.Internal, ExpiresAt: a.ExpiresAt,
	}, decoyKeeper); err != nil {
		return nil, err
	}
	secret, _, err := f.registry.CreateSecret(ctx, system, a.ID, "a drill", decoyLife)
	if err != nil {
		return nil, err
	}
	client, at := s.ourselves()
	undo = append(undo, func(context.Context) error { client.CloseIdleConnections(); return nil })
	token, err := decoyToken(ctx, client, at, a.ID, secret, upstream.url)
	if err != nil {
		return nil, err
	}
	get := func(ctx context.Context, path string) (*http.Response, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, at+"/u/"+name+path, nil)
		if err != nil {
			return nil, err
		}
		req.Header.Set("Authorization", "Bearer "+token)
		res, err := client.Do(req)
		if err == nil && res.StatusCode != http.StatusOK {
			b, _ := io.ReadAll(io.LimitReader(res.Body, 1<<10))
			_ = res.Body.Close()
			err = fmt.Errorf("the decoy's call of %s was answered with %s: %s", path, res.Status, b)
		}
		return res, err
	}
	streaming, hangUp := context.WithCancel(context.WithoutCancel(ctx))
	undo = append(undo, func(context.Context) error { hangUp(); return nil })
	res, err := get(streaming, "/stream")
	if err != nil {
		return nil, err
	}
	if _, err = io.ReadFull(res.Body, make([]byte, 1)); err != nil {
		_ = res.Body.Close()
		return nil, fmt.Errorf("opening the decoy's stream: %w", err)
	}
	dead := make(chan time.Time, 1)
	go func() {
		_, _ = io.Copy(io.Discard, res.Body) // until it is cut
		_ = res.Body.Close()
		dead <- time.Now()
	}()
	return &incident.Decoy{Agent: a.ID, Dead: dead, End: end, Call: func(ctx context.Context) error {
		res, err := get(ctx, "/ping")
		if err != nil {
			return err
		}
		_, _ = io.Copy(io.Discard, res.Body)
		return res.Body.Close()
	}}, nil
}

// anAdministrator is somebody who answers for a decoy that nobody asked for.
func (s *Server) anAdministrator(ctx context.Context, tenant estover.TenantID) (id string, err error) {
	err = s.db.View(ctx, tenant, func(tx *db.Tx) error {
		people, err := directory.Holding(ctx, tx, []estover.Role{estover.Admin})
		if err == nil && len(people) == 0 {
			err = agent.ErrSponsor
		}
		if err == nil {
			id = people[0].ID
		}
		return err
	})
	return id, err
}

// An upstreamOfOurs answers the calls of a decoy.
type upstreamOfOurs struct {
	*http.Server
	url string
}

func decoyUpstream() (*upstreamOfOurs, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ping", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "pong") })
	mux.HandleFunc("GET /stream", func(w http.ResponseWriter, r *http.Request) {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			if _, err := io.WriteString(w, "."); err != nil || http.NewResponseController(w).Flush() != nil {
				return
			}
			select {
			case <-tick.C:
			case <-r.Context().Done():
				return
			}
		}
	})
	u := &upstreamOfOurs{&http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, MaxHeaderBytes: 16 << 10}, "http://" + l.Addr().String()}
	go func() { _ = u.Serve(l) }()
	return u, nil
}

// ourselves is a client to this server's own address, which believes its own
// certificate and no other.
func (s *Server) ourselves() (*http.Client, string) {
	addr := s.listener.Addr().String()
	if at, err := netip.ParseAddrPort(addr); err == nil && at.Addr().IsUnspecified() {
		addr = net.JoinHostPort("localhost", fmt.Sprint(at.Port()))
	}
	t := &http.Transport{Proxy: nil, TLSHandshakeTimeout: 5 * time.Second, MaxIdleConnsPerHost: 4}
	if s.config.Plain {
		return &http.Client{Transport: t}, "http://" + addr + s.facts.base
	}
	t.TLSClientConfig = &tls.Config{
		MinVersion: tls.VersionTLS12, InsecureSkipVerify: true, // it is compared with our own below
		VerifyConnection: func(c tls.ConnectionState) error {
			own, err := s.certificate(nil)
			if err == nil && (len(c.PeerCertificates) == 0 || !bytes.Equal(c.PeerCertificates[0].Raw, own.Certificate[0])) {
				err = errors.New("another server answers on our address")
			}
			return err
		},
	}
	return &http.Client{Transport: t}, "https://" + addr + s.facts.base
}

func decoyToken(ctx context.Context, client *http.Client, at, id string, secret estover.Secret, audience string) (string, error) {
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {id}, "client_secret": {string(secret.Reveal())}, "resource": {audience}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, at+"/oauth/token", strings.NewReader(form.Encode()))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	res, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	var answer struct {
		Token string `json:"access_token"`
		Error string `json:"error_description"`
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, 64<<10)).Decode(&answer); err != nil || answer.Token == "" {
		return "", fmt.Errorf("the decoy gets no token: %s: %s", res.Status, answer.Error)
	}
	return answer.Token, nil
}

// drill holds a drill that nobody asked for, by the schedule. One that is slow is
// told in the log, and whoever follows alarms hears of it.
func (s *Server) drill(ctx context.Context) error {
	bound, err := s.config.drillBound()
	if err != nil {
		return err
	}
	d, err := s.incidents.Drill(ctx, estover.Caller{Tenant: estover.DefaultTenant, Subject: estover.System("drill"), Strength: estover.ByBound}, bound)
	if d.Slow {
		s.logger.Error("a drill of the kill switch was too slow or failed", "drill", d.ID, "zero", time.Duration(d.ZeroMicros)*time.Microsecond,
			"stream", time.Duration(d.StreamMicros)*time.Microsecond, "refused", time.Duration(d.RefusedMicros)*time.Microsecond, "bound", bound, "error", d.Error)
	}
	return err
}
