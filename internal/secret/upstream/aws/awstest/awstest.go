// Package awstest answers as AWS Secrets Manager and its Security Token Service do, made
// after their references.
package awstest

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"estover.dev"
	"estover.dev/internal/secret/engine"
)

// A Manager is a Secrets Manager of the region eu-central-1. It lets in who signs with a
// key that it knows, and lists in pages of two.
type Manager struct {
	mu      sync.Mutex
	secrets map[string]*kept
	keys    map[string]sdk.Credentials // by id
}

// New makes one without secrets that knows one key.
func New() (*Manager, engine.Credential) {
	const id, key = "AKIAEXAMPLE", "made/for+tests"
	m := &Manager{secrets: map[string]*kept{}, keys: map[string]sdk.Credentials{}}
	m.Let(sdk.Credentials{AccessKeyID: id, SecretAccessKey: key})
	return m, engine.Credential{User: id, Secret: estover.NewSecret([]byte(key))}
}

// Let has it know a key.
func (m *Manager) Let(k sdk.Credentials) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.keys[k.AccessKeyID] = k
}

// Forget has it know no key.
func (m *Manager) Forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.keys)
}

// Write is somebody else's write of a version.
func (m *Manager) Write(name, text string) {
	m.add(name, version{id: rand.Text(), text: text, created: time.Now()})
}

// WriteBinary is one of a version that is no text.
func (m *Manager) WriteBinary(name string, value []byte) {
	m.add(name, version{id: rand.Text(), binary: value, created: time.Now()})
}

func (m *Manager) add(name string, v version) {
	m.mu.Lock()
	defer m.mu.Unlock()
	x := m.secrets[name]
	if x == nil {
		x = &kept{}
		m.secrets[name] = x
	}
	x.versions = append(x.versions, v)
}

// Remove is somebody else's deletion, which takes effect for good in a month.
func (m *Manager) Remove(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.secrets[name].deleted = true
}

// Restore takes a deletion back.
func (m *Manager) Restore(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.secrets[name].deleted = false
}

// All are the texts of the versions of a secret, the current one last.
func (m *Manager) All(name string) (texts []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if x := m.secrets[name]; x != nil {
		for _, v := range x.versions {
			texts = append(texts, v.text)
		}
	}
	return texts
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
func (m *Manager) signed(r *http.Request, body []byte) bool {
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

func (m *Manager) ServeHTTP(w http.ResponseWriter, r *http.Request) {
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
	case len(in.SecretString) > 64<<10:
		fail("InvalidParameterException", "The secret value is too long.")
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
	case action == "PutSecretValue" && slices.ContainsFunc(x.versions, func(v version) bool { return v.id == in.ClientRequestToken }):
		if !slices.ContainsFunc(x.versions, func(v version) bool { return v.id == in.ClientRequestToken && v.text == in.SecretString }) {
			fail("ResourceExistsException", "You can't use ClientRequestToken, because that token was already used.")
			return
		}
		answer(map[string]any{"Name": in.SecretId, "VersionId": in.ClientRequestToken})
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

// An Exchange is the Security Token Service: whoever has an assertion that it trusts gets
// a key to a manager.
type Exchange struct {
	Manager *Manager
	Trusts  func(assertion string) bool

	mu    sync.Mutex
	asked []url.Values
	lives time.Duration // of a key; an hour if zero
	code  string        // of an error
	empty bool          // no key is in the answer
}

func (x *Exchange) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x.mu.Lock()
	defer x.mu.Unlock()
	_ = r.ParseForm()
	x.asked = append(x.asked, r.PostForm)
	w.Header().Set("Content-Type", "text/xml")
	code := x.code
	if code == "" && !x.Trusts(r.PostForm.Get("WebIdentityToken")) {
		code = "InvalidIdentityToken"
	}
	if code != "" {
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprint(w, `<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type><Code>`)
		_ = xml.EscapeText(w, []byte(code))
		fmt.Fprintf(w, `</Code><Message>this is not good: %s</Message></Error><RequestId>1</RequestId></ErrorResponse>`, r.PostForm.Get("WebIdentityToken"))
		return
	}
	k := sdk.Credentials{AccessKeyID: "ASIA" + rand.Text(), SecretAccessKey: rand.Text(), SessionToken: rand.Text() + "/+="}
	x.Manager.Let(k)
	if x.empty {
		k.SessionToken = ""
	}
	lives := x.lives
	if lives == 0 {
		lives = time.Hour
	}
	fmt.Fprintf(w, `<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleWithWebIdentityResult><Credentials>
<AccessKeyId>%s</AccessKeyId><SecretAccessKey>%s</SecretAccessKey><SessionToken>%s</SessionToken><Expiration>%s</Expiration>
</Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`, k.AccessKeyID, k.SecretAccessKey, k.SessionToken, time.Now().Add(lives).UTC().Format(time.RFC3339))
}

// Set says for how long a key is good, and with which error it answers if with one.
func (x *Exchange) Set(lives time.Duration, code string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.lives, x.code = lives, code
}

// Empty has it leave a part of the key out.
func (x *Exchange) Empty() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.empty = true
}

// Asked is what it was asked so far.
func (x *Exchange) Asked() []url.Values {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Clone(x.asked)
}
