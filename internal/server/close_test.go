package server

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/agent"
	"estover.dev/internal/directory"
	"estover.dev/internal/gateway"
	"estover.dev/internal/session"
)

// opened is a server that serves nobody, with an open session of an agent.
func opened(t *testing.T) (*Server, estover.Caller, session.Session) {
	t.Helper()
	ctx := context.Background()
	s, err := Open(ctx, Config{Data: filepath.Join(t.TempDir(), "data"), Listen: "127.0.0.1:0", Gateway: "127.0.0.1:0", Plain: true}, slog.New(slog.DiscardHandler), "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	by := estover.Caller{Tenant: estover.DefaultTenant, Subject: estover.System("test")}
	p, err := s.facts.people.Create(ctx, by, directory.Spec{Name: "ada"}, "")
	if err != nil {
		t.Fatal(err)
	}
	a, err := s.facts.registry.Create(ctx, by, agent.Spec{Name: "bot", Blueprint: "bot", Sponsor: p.ID, Purposes: []string{"support"}, Clearance: estover.Internal}, agent.Origin{})
	if err != nil {
		t.Fatal(err)
	}
	one, err := s.facts.sessions.Open(ctx, by, session.Wish{Agent: a.ID})
	if err != nil {
		t.Fatal(err)
	}
	return s, by, one
}

// heldOpen has something under way in a session, and gives what it is cut with.
func heldOpen(t *testing.T, s *Server, id string) <-chan error {
	t.Helper()
	causes := make(chan error, 1)
	leave, err := s.live.Hold(&gateway.Exchange{Conn: gateway.Conn{Caller: estover.Caller{Tenant: estover.DefaultTenant, Session: id}}}, func(cause error) { causes <- cause })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(leave)
	return causes
}

// The end of a session reaches its very first call, which has left no trace by
// then: it was decided on before the end, and would be made after it.
func TestTheEndReachesTheFirstCall(t *testing.T) {
	s, by, one := opened(t)
	causes := heldOpen(t, s, one.ID)
	if err := s.facts.sessions.End(t.Context(), by, one.ID, "done"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-causes:
	case <-time.After(time.Minute):
		t.Error("the first call of a session that has ended goes on")
	}
}

// A session that goes on is not closed, whoever says so: its closing statement
// would say that there are no further calls.
func TestOnlyWhatHasEndedIsClosed(t *testing.T) {
	s, by, one := opened(t)
	if _, err := s.duties.Authority(t.Context(), estover.DefaultTenant, one.ID); err != nil { // the gateway knows of it
		t.Fatal(err)
	}
	causes := heldOpen(t, s, one.ID)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := s.duties.Close(ctx, estover.DefaultTenant, one.ID); err != nil {
		t.Errorf("closing a session that goes on: %v, want nothing to happen", err)
	}
	select {
	case cause := <-causes:
		t.Errorf("what is under way in a session that goes on was cut: %v", cause)
	default:
	}
	if _, err := s.duties.Authority(t.Context(), by.Tenant, one.ID); err != nil {
		t.Errorf("the authority of a session that goes on: %v", err)
	}
}
