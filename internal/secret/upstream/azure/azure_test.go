package azure_test

import (
	"encoding/pem"
	"errors"
	"net/http/httptest"
	"strings"
	"testing"

	"estover.dev"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/upstream"
	"estover.dev/internal/secret/upstream/azure"
	"estover.dev/internal/secret/upstream/azure/azuretest"
	"estover.dev/internal/secret/upstream/upstreamtest"
)

func start(t *testing.T) (*azuretest.Vault, engine.Config) {
	v, admin := azuretest.New()
	s := httptest.NewTLSServer(v)
	t.Cleanup(s.Close)
	return v, engine.Config{
		Address: s.URL, Authorities: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}),
		Admin: admin,
	}
}

func TestKind(t *testing.T) {
	_, c := start(t)
	upstreamtest.Run(t, azure.Kind, c)
}

// TestStates: a disabled version is not live, and the name of a deleted secret
// is taken.
func TestStates(t *testing.T) {
	v, c := start(t)
	s, err := azure.Kind.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	text := estover.NewSecret([]byte(`{"value": "x"}`))
	if _, err := s.Put(t.Context(), "a", text, upstream.None); err != nil {
		t.Fatal(err)
	}
	v.Disable("a")
	if got, err := s.Versions(t.Context(), "a"); err != nil || len(got) != 1 || got[0].Live {
		t.Errorf("versions: %v, %v, want one that is not live", got, err)
	}
	if err := s.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	var refused *engine.Refused
	if _, err := s.Put(t.Context(), "a", text, upstream.None); !errors.As(err, &refused) || !strings.Contains(err.Error(), "purged") {
		t.Errorf("the name of a deleted secret: %v, want a refusal that says why", err)
	}
	if _, err := azure.Kind.Open(engine.Config{Address: "http://127.0.0.1:1"}); err == nil {
		t.Error("an address without TLS was taken")
	}
}

// TestSameSecond: of versions that were made in one second the current one is first, so that
// what somebody else has written just after us is seen (M16).
func TestSameSecond(t *testing.T) {
	v, c := start(t)
	s, err := azure.Kind.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	v.Still()
	for n := range 4 {
		v.Write("a", strings.Repeat("x", n+1))
		got, err := s.Versions(t.Context(), "a")
		if err != nil || len(got) != n+1 {
			t.Fatalf("versions: %v, %v, want %d", got, err, n+1)
		}
		if now, err := s.Get(t.Context(), "a", ""); err != nil || got[0].ID != now.Version {
			t.Errorf("of %d versions %s is first, and current is %s, %v", n+1, got[0].ID, now.Version, err)
		}
	}
	current, err := s.Get(t.Context(), "a", "")
	if err != nil {
		t.Fatal(err)
	}
	v.Disable("a")
	if got, err := s.Versions(t.Context(), "a"); err != nil || len(got) != 4 || got[0].ID != current.Version || got[0].Live || !got[1].Live {
		t.Errorf("when the current one is disabled: %+v, %v, want it first", got, err)
	}
	text := estover.NewSecret([]byte(`{"value": "y"}`))
	if _, err := s.Put(t.Context(), "a", text, "0"); !errors.Is(err, upstream.ErrVersion) {
		t.Errorf("writing after another one: %v, want ErrVersion", err)
	}
	if _, err := s.Put(t.Context(), "a", text, current.Version); err != nil {
		t.Errorf("writing after the disabled one: %v", err)
	}
	v.Blind()
	if got, err := s.Versions(t.Context(), "a"); !errors.Is(err, engine.ErrUnreachable) {
		t.Errorf("without the right to read values: %+v, %v, want ErrUnreachable", got, err)
	}
}
