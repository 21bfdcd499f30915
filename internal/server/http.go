package server

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"estover.dev"
	"estover.dev/internal/api"
	"estover.dev/internal/connect"
	"estover.dev/internal/db"
	"estover.dev/internal/edge"
	"estover.dev/internal/gateway"
	"estover.dev/internal/gateway/forward"
	"estover.dev/internal/gateway/rest"
	"estover.dev/internal/guard"
	"estover.dev/internal/resource"
	"estover.dev/internal/reveal"
	"estover.dev/internal/seal/source"
	"estover.dev/internal/token"
	"estover.dev/internal/vault"
)

// logPath is where the public log is served.
const logPath = "/log"

// listen takes the addresses, so that whoever finds them taken learns of it at
// once.
func (s *Server) listen() (err error) {
	if s.listener, err = net.Listen("tcp", s.config.Listen); err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	if s.gatewayListener, err = net.Listen("tcp", s.config.Gateway); err != nil {
		return fmt.Errorf("--gateway: %w", err)
	}
	if s.config.MTLS != "" {
		if s.mutualListener, err = net.Listen("tcp", s.config.MTLS); err != nil {
			return fmt.Errorf("--mtls-listen: %w", err)
		}
		s.own.Add(s.mutualListener.Addr())
	}
	if s.config.Vault != "" {
		if s.vaultListener, err = net.Listen("tcp", s.config.Vault); err != nil {
			return fmt.Errorf("--vault-listen: %w", err)
		}
		s.own.Add(s.vaultListener.Addr())
	}
	s.own.Add(s.listener.Addr())
	s.own.Add(s.gatewayListener.Addr())
	return s.listenControl()
}

// Run serves until ctx is done, and then stops: what is under way ends, what
// is in memory becomes durable.
func (s *Server) Run(ctx context.Context) error {
	defer s.close()
	config, ca, err := serverTLS(s.config)
	if err != nil {
		return err
	}
	s.ca, s.certificate = ca, config.GetCertificate
	stopTracing, err := s.startTracing(ctx)
	if err != nil {
		return err
	}
	handler, err := s.handler()
	if err != nil {
		return err
	}
	if s.config.Pprof != "" {
		profiles, l, err := profiler(s.config.Pprof)
		if err != nil {
			return err
		}
		go func() { _ = profiles.Serve(l) }()
		defer profiles.Close()
	}
	// net/http writes some of what strangers send to the standard log alone.
	log.SetOutput(edge.StandardLog(s.logger))
	main := edge.NewServer(handler, s.logger)
	proxy := &forward.Door{
		Pipeline: s.pipeline,
		Session: func(ctx context.Context, thumbprint [32]byte) (*gateway.Conn, error) {
			return s.duties.ByCertificate(ctx, base64.RawURLEncoding.EncodeToString(thumbprint[:]))
		},
		Own:          s.api.Within,
		Certificates: func() (*tls.Certificate, error) { return config.GetCertificate(nil) },
		Logger:       s.logger,
	}
	mainTLS := edge.AskCertificate(config)
	switch {
	case s.config.Plain:
		mainTLS = nil
	case s.mutualListener != nil:
		mainTLS = config
	}
	// The jobs outlive the doors: what the doors hand over while they close
	// has still to be written.
	background, stopJobs := context.WithCancel(context.WithoutCancel(ctx))
	var jobs sync.WaitGroup
	s.startJobs(background, &jobs)

	if s.controlListener != nil {
		control := s.control()
		go func() { _ = control.Serve(s.controlListener) }()
		defer control.Close()
	}
	failed := make(chan error, 4)
	go func() { failed <- closed(main.Serve(edge.Listen(s.listener, mainTLS))) }()
	if s.mutualListener != nil {
		go func() { failed <- closed(main.Serve(edge.Listen(s.mutualListener, edge.AskCertificate(config)))) }()
	}
	doors := []*http.Server{main}
	if s.vaultListener != nil {
		door := edge.NewServer(s.vaultHandler(), s.logger)
		doors = append(doors, door)
		doorTLS := edge.AskCertificate(config)
		if s.config.Plain {
			doorTLS = nil
		}
		go func() { failed <- closed(door.Serve(edge.Listen(s.vaultListener, doorTLS))) }()
	}
	go func() { failed <- closed(proxy.Serve(s.gatewayListener)) }()
	s.logger.Info("serving", "issuer", s.config.Issuer, "listen", s.listener.Addr().String(), "gateway", s.gatewayListener.Addr().String(), "vault", s.vaultAddress(), "authority", ca, "version", s.version)

	select {
	case <-ctx.Done():
	case err = <-failed:
	case err = <-s.broken:
	}
	s.logger.Info("stopping")
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	s.shutDown(stopping, doors, proxy)
	stopJobs()
	jobs.Wait()
	err = errors.Join(err, s.flush(stopping), stopTracing(stopping))
	s.logger.Info("stopped")
	return err
}

// shutDown closes the doors. Streams would keep them open for ever, so those
// that have not ended after half of the time are cut.
func (s *Server) shutDown(ctx context.Context, doors []*http.Server, proxy *forward.Door) {
	var closing sync.WaitGroup
	half, cancel := context.WithTimeout(ctx, stopTime/2)
	defer cancel()
	for _, door := range doors {
		closing.Go(func() {
			if door.Shutdown(half) != nil {
				_ = door.Close()
			}
		})
	}
	closing.Go(func() { _ = proxy.Shutdown(half) })
	closing.Wait()
	// WebSockets and tunnels are connections that the servers know nothing of.
	s.live.CutAll(errStopping)
}

// errStopping is the cause with which a stopping server cuts what goes on.
var errStopping = &estover.Error{Kind: estover.Unavailable, Code: "gateway_stopping", Detail: "The gateway is being stopped. Connect again in a moment."}

// flush makes durable what is still in memory.
func (s *Server) flush(ctx context.Context) error {
	return errors.Join(
		wrap("recordings", s.recordings.Close(ctx)),
		wrap("the spool of evidence", s.spool.Flush(ctx)),
		wrap("the uses of secrets", s.facts.secrets.Flush(ctx)),
		wrap("the uses of credentials", s.facts.registry.SaveUses(ctx)),
		wrap("the uses of grants", s.facts.access.SaveUses(ctx)),
		wrap("the log", s.eachTenant(ctx, s.log.Sequence)),
		wrap("the newest checkpoints", s.remember(ctx)),
	)
}

func wrap(what string, err error) error {
	if err != nil {
		return fmt.Errorf("writing out %s: %w", what, err)
	}
	return nil
}

func closed(err error) error {
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// handler is what answers on the main address.
func (s *Server) handler() (http.Handler, error) {
	mux := http.NewServeMux()
	if err := s.oauth.Mount(mux); err != nil {
		return nil, err
	}
	s.pages.Mount(mux)
	s.login.Mount(mux)
	s.approvePages().Mount(mux)
	s.containPages().Mount(mux)
	(&connect.Door{Connections: s.connected, Pages: s.pages}).Mount(mux)
	(&reveal.Door{Secrets: s.facts.secrets, Pages: s.pages}).Mount(mux)
	if err := s.decisionPoint().Mount(mux); err != nil {
		return nil, err
	}
	if err := s.api.Mount(mux); err != nil {
		return nil, err
	}
	mux.Handle("GET "+logPath+"/", http.StripPrefix(logPath, s.log.Handler(s.mayReadLog)))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	mux.HandleFunc("GET /readyz", s.ready)
	mux.HandleFunc("GET "+sealPath, func(w http.ResponseWriter, _ *http.Request) { writeSeal(w, source.Progress{}) })
	mux.HandleFunc("POST "+sealPath+"/shares", func(w http.ResponseWriter, _ *http.Request) { writeSeal(w, source.Progress{}) })
	if s.facts.base != "" {
		mux.HandleFunc("GET "+s.facts.base+"/readyz", s.ready)
	}
	mux.HandleFunc("GET "+s.facts.base+token.TenantPath+"{tenant}/readyz", s.ready)
	mux.Handle("GET /metrics", s.metrics())
	routes := &rest.Door{Pipeline: s.pipeline, Base: s.facts.base, Caller: s.routeCaller, Route: s.route, Described: s.described}
	front := edge.Front{Trusted: s.trusted(), Certificates: s.config.ProxyCerts}
	paced, described, pacedVault := edge.Pace{}.Handler(mux), edge.Pace{}.Handler(s.described), edge.Pace{}.Handler(s.vault)
	authorities := s.authorities()
	published := edge.Pace{}.Handler(authorities)
	return front.Handler(s.traced(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// The door of reverse routes, and what they say of themselves, come
		// before the mux, which would redirect what is refused there.
		if s.described.Matches(r) {
			described.ServeHTTP(w, r)
			return
		}
		if authorities.Matches(r) {
			published.ServeHTTP(w, r)
			return
		}
		if routes.Matches(r) {
			edge.Unpaced(w) // it has limits of its own, for streams in both directions
			routes.ServeHTTP(w, r)
			return
		}
		if base, tenant, ok := vault.Matches(r.URL.Path, s.facts.base); ok {
			pacedVault.ServeHTTP(w, r.WithContext(vault.Below(r.Context(), base, tenant)))
			return
		}
		if r.URL.Path != "/" && strings.HasSuffix(r.URL.Path, "/") || strings.Contains(r.URL.Path, "//") {
			edge.WriteProblem(w, edge.ProblemOf(errNoSuchPage, ""))
			return
		}
		paced.ServeHTTP(w, r)
	}))), nil
}

// mayReadLog lets those read the entries of the log who may list events. The
// log's checkpoint and hashes are for everybody.
func (s *Server) mayReadLog(w http.ResponseWriter, r *http.Request, t estover.TenantID) bool {
	err := s.known(r.Context(), t)
	var c estover.Caller
	if err == nil {
		c, err = s.callers.Authenticate(r, t)
	}
	if err == nil {
		op := guard.Op{Action: "event.list", Target: "log:entries", Effect: guard.Searches}
		err = s.guard.Read(r.Context(), c, op, func(*db.Tx) error { return nil })
	}
	if err != nil {
		edge.WriteProblem(w, edge.ProblemOf(err, c.Request))
	}
	return err == nil
}

var errNoSuchPage = &estover.Error{Kind: estover.NotFound, Code: "no_such_path", Detail: "There is nothing here. The API is below /v1/, the token service below /oauth/."}

// ready says whether requests can be answered: the database answers and takes
// evidence. Below the issuer of a tenant it says so of that.
func (s *Server) ready(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
	defer cancel()
	err := s.db.Ping(ctx)
	if name := estover.TenantID(r.PathValue("tenant")); err == nil && name != "" {
		if err = s.known(ctx, name); name == estover.DefaultTenant { // which has one name, and that is none
			err = errNoSuchPage
		}
	}
	if err != nil {
		edge.WriteProblem(w, edge.ProblemOf(err, ""))
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// routeCaller recognises who calls a reverse route: an access token for the
// resource that the route leads to. Whoever is refused learns where to get one,
// and with which scope.
func (s *Server) routeCaller(_ http.ResponseWriter, r *http.Request) (*gateway.Conn, bool, error) {
	route, _ := rest.Find(s.facts.base, r.URL.EscapedPath())
	audience := "urn:estover:no-such-route"
	var need func() edge.Need
	u, err := s.routed(r.Context(), route.Tenant, route.Name)
	switch {
	case err == nil:
		audience = u.BaseURL
		need = func() edge.Need {
			at := strings.TrimSuffix(u.URL.EscapedPath(), "/") + route.Rest
			if action, _, ok := u.Match(r.Method, at); ok {
				return s.described.Need(r, action.Name)
			}
			return s.described.Need(r)
		}
	case estover.KindOf(err) != estover.NotFound:
		return nil, false, err
	}
	c, err := s.callers.At(r, route.Tenant, audience, need)
	if err != nil {
		return nil, false, err
	}
	return &gateway.Conn{Caller: c}, false, nil
}

// routeScopes are the actions of the resource that a route leads to.
func (s *Server) routeScopes(ctx context.Context, t estover.TenantID, name string) (names []string, err error) {
	u, err := s.routed(ctx, t, name)
	if err != nil {
		return nil, err
	}
	for _, a := range u.Actions {
		names = append(names, a.Name)
	}
	return names, nil
}

// routed is the resource that a reverse route of a tenant leads to. A tenant that
// may do nothing has none.
func (s *Server) routed(ctx context.Context, t estover.TenantID, name string) (*resource.Upstream, error) {
	if err := s.known(ctx, t); err != nil {
		if estover.KindOf(err) == estover.Denied {
			err = errNoSuchPage
		}
		return nil, err
	}
	return s.facts.resources.RouteByName(ctx, t, name)
}

// route finds a reverse route by the name of its resource.
func (s *Server) route(c *gateway.Conn, name string) (rest.Route, error) {
	u, err := s.facts.resources.RouteByName(context.Background(), c.Caller.Tenant, name)
	if err != nil {
		return rest.Route{}, err
	}
	host, err := edge.ParseHost(u.URL.Host, edge.DefaultPort(u.URL.Scheme))
	if err != nil {
		return rest.Route{}, err
	}
	return rest.Route{Name: name, Scheme: u.URL.Scheme, Host: host, Base: strings.TrimSuffix(u.URL.EscapedPath(), "/")}, nil
}

func fine(name, detail string) api.Check { return api.Check{Name: name, OK: true, Detail: detail} }

func wrong(name, detail, remedy string) api.Check {
	return api.Check{Name: name, Detail: detail, Remedy: remedy}
}

// bootstrapPath is where the first administrator's token lies while nobody has
// used it.
func (s *Server) bootstrapPath() string { return filepath.Join(s.config.Data, bootstrapFile) }
