package server

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"estover.dev/internal/audit"
)

// TestPutBackUnderIt: a database that is put back under a running server ends it, and
// what the node has seen of it before is not forgotten over that (K5).
func TestPutBackUnderIt(t *testing.T) {
	s, by, one := opened(t)
	older, _, _ := opened(t)
	ctx := t.Context()
	sign := func(s *Server) {
		t.Helper()
		if err := s.eachTenant(ctx, s.log.Sequence); err != nil {
			t.Fatal(err)
		}
	}
	sign(older)
	sign(s)
	if err := s.remember(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.facts.sessions.End(ctx, by, one.ID, "done"); err != nil {
		t.Fatal(err)
	}
	sign(s)
	if err := s.remember(ctx); err != nil {
		t.Fatalf("a log that has grown: %v", err)
	}
	kept, err := os.ReadFile(s.headPath())
	if err != nil {
		t.Fatal(err)
	}
	s.log = older.log
	if err := s.remember(ctx); !errors.Is(err, audit.ErrBehind) {
		t.Errorf("another database in its place: %v, want ErrBehind", err)
	}
	if now, err := os.ReadFile(s.headPath()); err != nil || string(now) != string(kept) {
		t.Errorf("the node remembers %s, %v; want %s", now, err, kept)
	}
	ended, end := context.WithCancel(ctx)
	defer end()
	go func() { _ = s.remembering(ended) }()
	select {
	case err := <-s.broken:
		if !strings.Contains(err.Error(), "put back while the server ran") {
			t.Errorf("it stops: %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("the server goes on")
	}
}

// TestSetBack shows what ends a server whose clock is set back under it (F6), and that
// one which is set ahead, or corrected by a little, does not.
func TestSetBack(t *testing.T) {
	began := time.Now()
	for _, c := range []struct {
		passed, set time.Duration
		ends        bool
	}{
		{0, 0, false},
		{48 * time.Hour, 0, false},
		{time.Hour, time.Hour, false},
		{time.Hour, -30 * time.Second, false},
		{time.Hour, -61 * time.Second, true},
		{10 * time.Second, -24 * time.Hour, true},
	} {
		behind := setBack(began, began.Add(c.passed+c.set), c.passed)
		if behind != -c.set || (behind > maxSetBack) != c.ends {
			t.Errorf("a clock set by %s in %s is %s behind, and ends the server: %v; want %s and %v", c.set, c.passed, behind, behind > maxSetBack, -c.set, c.ends)
		}
	}
}
