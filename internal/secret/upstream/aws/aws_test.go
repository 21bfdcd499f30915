package aws_test

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"net/http/httptest"
	"strings"
	"testing"

	"estover.dev"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/upstream"
	"estover.dev/internal/secret/upstream/aws"
	"estover.dev/internal/secret/upstream/aws/awstest"
	"estover.dev/internal/secret/upstream/upstreamtest"
)

func start(t *testing.T) (*awstest.Manager, engine.Config) {
	m, admin := awstest.New()
	s := httptest.NewServer(m)
	t.Cleanup(s.Close)
	return m, engine.Config{
		Address: s.URL, Options: map[string]string{"region": "eu-central-1"}, Admin: admin,
	}
}

func TestKind(t *testing.T) {
	_, c := start(t)
	upstreamtest.Run(t, aws.Kind, c)
}

// TestBinary: what is no text comes in base64, and a name that waits for its
// deletion is not there.
func TestBinary(t *testing.T) {
	m, c := start(t)
	s, err := aws.Kind.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	raw := make([]byte, 20)
	_, _ = rand.Read(raw)
	m.WriteBinary("binary", raw)
	v, err := s.Get(t.Context(), "binary", "")
	var got struct{ Value []byte }
	if err == nil {
		err = json.Unmarshal(v.Object.Reveal(), &got)
	}
	if err != nil || !bytes.Equal(got.Value, raw) {
		t.Errorf("a binary value: %x, %v, want %x", got.Value, err, raw)
	}
	if err := s.Delete(t.Context(), "binary"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Versions(t.Context(), "binary"); !errors.Is(err, upstream.ErrNotFound) {
		t.Errorf("versions of what waits for its deletion: %v, want ErrNotFound", err)
	}
	for _, expect := range []string{upstream.None, upstream.Any} {
		var refused *engine.Refused
		if _, err := s.Put(t.Context(), "binary", estover.NewSecret([]byte(`{"value": "x"}`)), expect); !errors.As(err, &refused) || !strings.Contains(err.Error(), "restore it there") {
			t.Errorf("the name of what waits for its deletion: %v, want a refusal that says what to do", err)
		}
	}
	if _, err := s.Put(t.Context(), "large", estover.NewSecret([]byte(`{"a": "`+strings.Repeat("x", 70<<10)+`"}`)), upstream.None); err == nil {
		t.Error("more than 64 KiB were taken")
	}
	for _, bad := range []map[string]string{nil, {"region": "a/b"}} {
		c.Options = bad
		if _, err := aws.Kind.Open(c); err == nil {
			t.Errorf("the options %v were taken", bad)
		}
	}
}
