package google_test

import (
	"errors"
	"net/http/httptest"
	"testing"

	"estover.dev"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/upstream"
	"estover.dev/internal/secret/upstream/google"
	"estover.dev/internal/secret/upstream/google/googletest"
	"estover.dev/internal/secret/upstream/upstreamtest"
)

func start(t *testing.T) (*googletest.Manager, engine.Config) {
	m, admin := googletest.New()
	s := httptest.NewServer(m)
	t.Cleanup(s.Close)
	return m, engine.Config{Address: s.URL, Options: map[string]string{"project": "acme"}, Admin: admin}
}

func TestKind(t *testing.T) {
	_, c := start(t)
	upstreamtest.Run(t, google.Kind, c)
}

// TestStates: a version that was disabled is not found, nor is a secret without
// one; and what comes in damaged is not taken.
func TestStates(t *testing.T) {
	m, c := start(t)
	s, err := google.Kind.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Put(t.Context(), "a", estover.NewSecret([]byte(`{"value": "x"}`)), upstream.None); err != nil {
		t.Fatal(err)
	}
	if got := m.All("a")[0]; got != "x" {
		t.Errorf("a text by itself is kept as %q", got)
	}
	m.Damage(true)
	if _, err := s.Get(t.Context(), "a", ""); !errors.Is(err, engine.ErrUnreachable) {
		t.Errorf("a damaged answer: %v, want ErrUnreachable", err)
	}
	m.Damage(false)
	m.Disable("a")
	m.Make("empty")
	for _, name := range []string{"a", "empty"} {
		if _, err := s.Get(t.Context(), name, ""); !errors.Is(err, upstream.ErrNotFound) {
			t.Errorf("reading %s: %v, want ErrNotFound", name, err)
		}
	}
	if v, err := s.Versions(t.Context(), "a"); err != nil || len(v) != 1 || v[0].Live {
		t.Errorf("versions: %v, %v, want one that is not live", v, err)
	}
	if v, err := s.Put(t.Context(), "empty", estover.NewSecret([]byte(`{"value": "x"}`)), upstream.None); err != nil || v != "1" {
		t.Errorf("the first version of a secret without one: %q, %v", v, err)
	}
	c.Options = map[string]string{"project": "a/b"}
	if _, err := google.Kind.Open(c); err == nil {
		t.Error("a project that cannot be was taken")
	}
}
