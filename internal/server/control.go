package server

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/edge"
	"estover.dev/internal/hold"
	"estover.dev/internal/incident"
)

// The kill switch has ways in of its own, which share nothing with the doors that
// may be overloaded: a listener with a server and limits of its own, a file that
// appears in the data directory, and a signal. What comes by them has a reserved
// connection to the database, and is done as system:control in the default
// tenant, or in the one that is named. They contain and say how things stand, and
// nothing else; whoever can open the socket or write to the data directory is
// whoever runs the server.

// The bounds of the control listener.
const (
	controlBody  = 4 << 10
	controlCalls = 16 // at once; more is answered with 503
)

// The files of the kill switch in the data directory.
const (
	controlSocket    = "control.sock"
	controlTokenFile = "control-token"
	containFile      = "contain"
)

// noControl turns the listener off.
const noControl = "none"

// listenControl takes the control address: a socket that only we can open, or a
// loopback address where a token is asked for.
func (s *Server) listenControl() (err error) {
	at := s.config.Control
	path, isSocket := strings.CutPrefix(at, "unix:")
	switch {
	case at == noControl:
		return nil
	case at == "":
		isSocket, path = true, filepath.Join(s.config.Data, controlSocket)
	}
	if !isSocket {
		if s.controlToken, err = controlToken(filepath.Join(s.config.Data, controlTokenFile)); err != nil {
			return fmt.Errorf("--control: %w", err)
		}
		if s.controlListener, err = net.Listen("tcp", at); err != nil {
			return fmt.Errorf("--control: %w", err)
		}
		s.own.Add(s.controlListener.Addr())
		return nil
	}
	// One server has the data directory, so what lies there is of one that died.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("--control: %w", err)
	}
	s.controlListener, err = net.Listen("unix", path)
	if err == nil {
		err = os.Chmod(path, 0o600)
	}
	if err != nil && at == "" { // such a path may be too long for a socket
		s.logger.Warn("the kill switch has no socket; name one with --control", "error", err)
		if s.controlListener != nil {
			_ = s.controlListener.Close()
		}
		s.controlListener, err = nil, nil
	}
	if err != nil {
		return fmt.Errorf("--control: %w", err)
	}
	return nil
}

// controlToken reads the token of the control address, and makes it if there is
// none yet.
func controlToken(file string) (string, error) {
	b, err := os.ReadFile(file)
	if err == nil && len(bytes.TrimSpace(b)) >= 20 {
		return string(bytes.TrimSpace(b)), nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	value := rand.Text()
	return value, writePrivate(file, []byte(value+"\n"))
}

// control is the server of the kill switch.
func (s *Server) control() *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /contain", s.controlContain)
	mux.HandleFunc("GET /status", s.controlStatus)
	slots := make(chan struct{}, controlCalls)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.controlToken != "" {
			given, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
			if subtle.ConstantTimeCompare([]byte(given), []byte(s.controlToken)) != 1 {
				edge.WriteProblem(w, edge.ProblemOf(errControlToken, ""))
				return
			}
		}
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		default:
			edge.WriteProblem(w, edge.ProblemOf(errControlBusy, ""))
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, controlBody)
		mux.ServeHTTP(w, r)
	})
	return &http.Server{
		Handler: handler, ReadHeaderTimeout: 2 * time.Second, ReadTimeout: 5 * time.Second, WriteTimeout: 2 * time.Minute, IdleTimeout: 10 * time.Second,
		MaxHeaderBytes: 8 << 10, ErrorLog: slog.NewLogLogger(s.logger.Handler(), slog.LevelDebug),
	}
}

var (
	errControlToken = &estover.Error{Kind: estover.Unknown, Code: "control_token", Detail: "This address wants the token of the file control-token in the data directory, as Bearer."}
	errControlBusy  = &estover.Error{Kind: estover.Unavailable, Code: "control_busy", Detail: "Too many requests at once at the kill switch. Try again."}
	errControlBody  = &estover.Error{Kind: estover.Invalid, Code: "control_invalid", Detail: "Send a JSON object with scope, target and reason; for another organisation than the default one, its name as tenant."}
)

func (s *Server) controlContain(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Tenant estover.TenantID `json:"tenant"`
		Scope  hold.Scope       `json:"scope"`
		Target string           `json:"target"`
		Reason string           `json:"reason"`
	}
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	if dec.Decode(&in) != nil || dec.Decode(&struct{}{}) != io.EOF {
		edge.WriteProblem(w, edge.ProblemOf(errControlBody, ""))
		return
	}
	if in.Tenant == "" {
		in.Tenant = estover.DefaultTenant
	}
	c, err := s.cutOff(r.Context(), in.Tenant, incident.Target{Scope: in.Scope, ID: in.Target}, in.Reason)
	if err != nil {
		edge.WriteProblem(w, edge.ProblemOf(err, ""))
		return
	}
	answer(w, c)
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(v) // whoever asked has gone
}

// A controlled is how things stand at the kill switch.
type controlled struct {
	Version      string                 `json:"version"`
	Holds        []incident.Standing    `json:"holds"`
	Containments []incident.Containment `json:"containments"` // the newest first
}

func (s *Server) controlStatus(w http.ResponseWriter, r *http.Request) {
	ctx := db.Reserved(r.Context())
	tenant := estover.TenantID(r.URL.Query().Get("tenant"))
	if tenant == "" {
		tenant = estover.DefaultTenant
	}
	caller := estover.Caller{Tenant: tenant, Subject: estover.System("control")}
	status := controlled{Version: s.version}
	err := s.known(ctx, tenant)
	if err == nil {
		status.Holds, err = s.incidents.Standing(ctx, caller)
	}
	if err == nil {
		status.Containments, err = s.incidents.List(ctx, caller, incident.Target{}, 20)
	}
	if err != nil {
		edge.WriteProblem(w, edge.ProblemOf(err, ""))
		return
	}
	answer(w, status)
}

// cutOff contains a target that is named by whoever runs the server, by name or
// id.
func (s *Server) cutOff(ctx context.Context, tenant estover.TenantID, t incident.Target, reason string) (incident.Containment, error) {
	ctx, cancel := context.WithTimeout(db.Reserved(ctx), time.Minute)
	defer cancel()
	caller := estover.Caller{Tenant: tenant, Subject: estover.System("control"), Strength: estover.ByBound}
	err := s.known(ctx, tenant)
	if err != nil && estover.KindOf(err) != estover.Denied { // a disabled one may be contained too
		return incident.Containment{}, err
	}
	if t, err = s.containable(ctx, caller, t); err != nil {
		return incident.Containment{}, err
	}
	c, err := s.incidents.Contain(ctx, caller, t, reason)
	if err == nil {
		s.logger.Warn("contained", "target", t.String(), "containment", c.ID, "zero", time.Duration(c.ZeroMicros)*time.Microsecond)
	}
	return c, err
}

// containable is a target that is named by name or id, by its id.
func (s *Server) containable(ctx context.Context, caller estover.Caller, t incident.Target) (_ incident.Target, err error) {
	byName := !strings.HasPrefix(t.ID, map[hold.Scope]string{incident.Agent: "agt_", hold.Person: "usr_", hold.Resource: "res_"}[t.Scope])
	switch f := &s.facts; {
	case t.Scope == incident.Agent && byName:
		a, found := f.registry.ByName(ctx, caller, t.ID)
		t.ID, err = a.ID, found
	case t.Scope == hold.Person && byName:
		p, found := f.people.ByName(ctx, caller, t.ID)
		t.ID, err = p.ID, found
	case t.Scope == hold.Resource && byName:
		r, found := f.resources.ByName(ctx, caller, t.ID)
		t.ID, err = r.ID, found
	case t.Scope == hold.Tenant && t.ID == "":
		t.ID = string(caller.Tenant)
	}
	return t, err
}

// Everything contains everything: what a signal means.
func (s *Server) Everything(ctx context.Context, reason string) {
	if _, err := s.cutOff(ctx, estover.DefaultTenant, incident.Target{Scope: hold.Everything}, reason); err != nil {
		s.logger.Error("not everything is contained", "error", err)
	}
}

// written reads what a file says is to be contained: on the first line a scope
// and a name, or an agent's name alone; on those after it, why. A file that says
// nothing means everything.
func written(text string) (t incident.Target, reason string) {
	first, rest, _ := strings.Cut(strings.TrimSpace(text), "\n")
	if reason = strings.Join(strings.Fields(rest), " "); reason == "" {
		reason = "A file in the server's data directory says so."
	}
	if len(reason) > 500 {
		reason = strings.ToValidUTF8(reason[:500], "")
	}
	words := strings.Fields(first)
	scopes := []hold.Scope{incident.Agent, hold.Blueprint, hold.Resource, hold.Person, hold.Tenant}
	switch {
	case len(words) == 2 && slices.Contains(scopes, hold.Scope(words[0])):
		return incident.Target{Scope: hold.Scope(words[0]), ID: words[1]}, reason
	case len(words) == 1 && words[0] == string(hold.Tenant):
		return incident.Target{Scope: hold.Tenant}, reason
	case len(words) == 1 && words[0] != string(hold.Everything):
		return incident.Target{Scope: incident.Agent, ID: words[0]}, reason
	}
	return incident.Target{Scope: hold.Everything}, reason
}

// How often it is looked for the file, and how long it must have stayed as it is:
// a shell makes it first and then writes it.
const (
	containPoll = 200 * time.Millisecond
	containLook = 2 * containPoll
)

// watchFile contains what the file says that appears in the data directory. What
// is done with it is renamed to contained-ID, and what cannot be done, for there
// is no such thing, to contain.failed.
func (s *Server) watchFile(ctx context.Context) error {
	file := filepath.Join(s.config.Data, containFile)
	tick := time.NewTicker(containPoll)
	defer tick.Stop()
	var seen os.FileInfo
	var since, told time.Time
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		info, err := os.Stat(file)
		if err != nil || info.IsDir() {
			seen = nil
			continue
		}
		if seen == nil || seen.Size() != info.Size() || !seen.ModTime().Equal(info.ModTime()) {
			seen, since = info, time.Now()
			continue
		}
		if time.Since(since) < containLook {
			continue
		}
		name, err := s.containWritten(ctx, file)
		if err == nil {
			err = os.Rename(file, filepath.Join(s.config.Data, name))
		}
		if err != nil && time.Since(told) > 5*time.Second {
			told = time.Now()
			s.logger.Error("what the file says could not be contained yet", "file", file, "error", err)
		}
	}
}

// containWritten contains what the file says, and gives the name that the file
// has afterwards. An error is one that may pass.
func (s *Server) containWritten(ctx context.Context, file string) (name string, err error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, controlBody))
	if err != nil {
		return "", err
	}
	target, reason := written(string(b))
	c, err := s.cutOff(ctx, estover.DefaultTenant, target, reason)
	switch k := estover.KindOf(err); {
	case err == nil:
		return "contained-" + c.ID, nil
	case k == estover.NotFound || k == estover.Invalid || k == estover.Denied || k == estover.Conflict:
		s.logger.Error("what the file says cannot be contained", "file", file, "target", target.String(), "error", err)
		return containFile + ".failed", nil
	case c.ID != "": // held, and its end is looked for again by itself
		s.logger.Error("contained, but not yet certified", "containment", c.ID, "error", err)
		return "contained-" + c.ID, nil
	}
	return "", err
}
