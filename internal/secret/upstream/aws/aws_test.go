package aws_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"estover.dev"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/upstream"
	"estover.dev/internal/secret/upstream/aws"
	"estover.dev/internal/secret/upstream/upstreamtest"
)

const id, key = "AKIAEXAMPLE", "made/for+tests"

// A manager answers as Secrets Manager does, to who signs with a key that is good, and
// in pages of two.
type manager struct {
	mu      sync.Mutex
	secrets map[string]*kept
	keys    map[string]sdk.Credentials // by id
}

type kept struct {
	versions []version // the last is current
	deleted  bool
}

type version struct {
	id, text string
	binary   []byte
	created  time.Time
}

// signed reports whether a request was signed with one of the keys.
func (m *manager) signed(r *http.Request, body []byte) bool {
	_, id, _ := strings.Cut(r.Header.Get("Authorization"), "Credential=")
	id, _, _ = strings.Cut(id, "/")
	good, known := m.keys[id]
	if !known || r.Header.Get("X-Amz-Security-Token") != good.SessionToken {
		return false
	}
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if err != nil {
		return false
	}
	sum := sha256.Sum256(body)
	again := r.Clone(context.Background())
	_, names, _ := strings.Cut(r.Header.Get("Authorization"), "SignedHeaders=")
	names, _, _ = strings.Cut(names, ",")
	for name := range again.Header {
		if !slices.Contains(strings.Split(names, ";"), strings.ToLower(name)) {
			again.Header.Del(name)
		}
	}
	again.URL.Host, again.Host = r.Host, r.Host
	err = v4.NewSigner().SignHTTP(context.Background(), good, again, hex.EncodeToString(sum[:]), "secretsmanager", "eu-central-1", at)
	return err == nil && again.Header.Get("Authorization") == r.Header.Get("Authorization")
}

func (m *manager) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	fail := func(kind, words string) {
		w.WriteHeader(http.StatusBadRequest)
		_ = json.NewEncoder(w).Encode(map[string]string{"__type": kind, "Message": words})
	}
	answer := func(v any) { _ = json.NewEncoder(w).Encode(v) }
	body, err := io.ReadAll(r.Body)
	if err != nil || !m.signed(r, body) {
		fail("InvalidSignatureException", "The request signature we calculated does not match the signature you provided.")
		return
	}
	var in struct {
		Name, SecretId, SecretString, VersionId, ClientRequestToken, NextToken string
		Filters                                                                []struct {
			Key    string
			Values []string
		}
	}
	if err := json.Unmarshal(body, &in); err != nil {
		fail("InvalidParameterException", err.Error())
		return
	}
	_, action, _ := strings.Cut(r.Header.Get("X-Amz-Target"), "secretsmanager.")
	x := m.secrets[in.SecretId]
	page := func(all []any, field string) {
		from := 0
		for i := range in.NextToken {
			from = i + 1
		}
		to := min(from+2, len(all))
		out := map[string]any{field: all[from:to]}
		if to < len(all) {
			out["NextToken"] = strings.Repeat("x", to)
		}
		answer(out)
	}
	switch {
	case action == "CreateSecret":
		if old := m.secrets[in.Name]; old != nil {
			if old.deleted {
				fail("InvalidRequestException", "You can't create this secret because a secret with this name is already scheduled for deletion.")
			} else {
				fail("ResourceExistsException", "The operation failed because the secret already exists.")
			}
			return
		}
		m.secrets[in.Name] = &kept{versions: []version{{in.ClientRequestToken, in.SecretString, nil, time.Now()}}}
		answer(map[string]any{"Name": in.Name, "VersionId": in.ClientRequestToken})
	case action == "ListSecrets":
		var all []any
		var names []string
		for name := range m.secrets {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			if len(in.Filters) == 0 || strings.HasPrefix(strings.ToLower(name), strings.ToLower(in.Filters[0].Values[0])) {
				if !m.secrets[name].deleted {
					all = append(all, map[string]any{"Name": name})
				}
			}
		}
		page(all, "SecretList")
	case x == nil:
		fail("ResourceNotFoundException", "Secrets Manager can't find the specified secret.")
	case x.deleted && action != "DeleteSecret":
		fail("InvalidRequestException", "You can't perform this operation on the secret because it was marked for deletion.")
	case action == "PutSecretValue":
		x.versions = append(x.versions, version{in.ClientRequestToken, in.SecretString, nil, time.Now()})
		answer(map[string]any{"Name": in.SecretId, "VersionId": in.ClientRequestToken, "VersionStages": []string{"AWSCURRENT"}})
	case action == "GetSecretValue":
		for i, v := range x.versions {
			if v.id == in.VersionId || in.VersionId == "" && i == len(x.versions)-1 {
				out := map[string]any{"Name": in.SecretId, "VersionId": v.id, "CreatedDate": float64(v.created.UnixNano()) / 1e9}
				if v.binary != nil {
					out["SecretBinary"] = v.binary
				} else {
					out["SecretString"] = v.text
				}
				answer(out)
				return
			}
		}
		fail("ResourceNotFoundException", "Secrets Manager can't find the specified secret value for VersionId.")
	case action == "ListSecretVersionIds":
		var all []any
		for i, v := range x.versions {
			stages := []string{}
			switch i {
			case len(x.versions) - 1:
				stages = []string{"AWSCURRENT"}
			case len(x.versions) - 2:
				stages = []string{"AWSPREVIOUS"}
			}
			all = append(all, map[string]any{"VersionId": v.id, "VersionStages": stages, "CreatedDate": float64(v.created.UnixNano()) / 1e9})
		}
		page(all, "Versions")
	case action == "DeleteSecret":
		x.deleted = true
		answer(map[string]any{"Name": in.SecretId, "DeletionDate": float64(time.Now().Unix())})
	default:
		fail("UnknownOperationException", action)
	}
}

func start(t *testing.T) (*manager, engine.Config) {
	m := &manager{secrets: map[string]*kept{}, keys: map[string]sdk.Credentials{id: {AccessKeyID: id, SecretAccessKey: key}}}
	s := httptest.NewServer(m)
	t.Cleanup(s.Close)
	return m, engine.Config{
		Address: s.URL, Options: map[string]string{"region": "eu-central-1"}, Admin: engine.Credential{User: id, Secret: estover.NewSecret([]byte(key))},
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
	m.secrets["binary"] = &kept{versions: []version{{"v", "", raw, time.Now()}}}
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
