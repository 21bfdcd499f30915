package aws_test

import (
	"context"
	"crypto/rand"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"

	"estover.dev"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/seal"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/upstream"
	"estover.dev/internal/secret/upstream/aws"
	"estover.dev/internal/secret/upstream/upstreamtest"
)

const (
	asserted = "eyJ.an-assertion.of-ours"
	role     = "arn:aws:iam::123456789012:role/teams/estover"
)

// An exchange is AWS STS: whoever has the assertion gets a key to a manager.
type exchange struct {
	m *manager

	mu    sync.Mutex
	asked []url.Values
	lives time.Duration // of a key
	code  string        // of an error
	empty bool          // no key is in the answer
}

func (x *exchange) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x.mu.Lock()
	defer x.mu.Unlock()
	_ = r.ParseForm()
	x.asked = append(x.asked, r.PostForm)
	w.Header().Set("Content-Type", "text/xml")
	code := x.code
	if r.PostForm.Get("WebIdentityToken") != asserted && code == "" {
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
	x.m.mu.Lock()
	x.m.keys[k.AccessKeyID] = k
	x.m.mu.Unlock()
	if x.empty {
		k.SessionToken = ""
	}
	fmt.Fprintf(w, `<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleWithWebIdentityResult><Credentials>
<AccessKeyId>%s</AccessKeyId><SecretAccessKey>%s</SecretAccessKey><SessionToken>%s</SessionToken><Expiration>%s</Expiration>
</Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`, k.AccessKeyID, k.SecretAccessKey, k.SessionToken, time.Now().Add(x.lives).UTC().Format(time.RFC3339))
}

func (x *exchange) set(lives time.Duration, code string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.lives, x.code = lives, code
}

func (x *exchange) times() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.asked)
}

// exchanging is a manager that takes no key but those of an exchange.
func exchanging(t *testing.T) (*exchange, *manager, engine.Config) {
	m, c := start(t)
	clear(m.keys)
	x := &exchange{m: m, lives: time.Hour}
	s := httptest.NewServer(x)
	t.Cleanup(s.Close)
	c.Options["audience"], c.Options["role"], c.Options["sts"], c.Admin = "sts.amazonaws.com", role, s.URL, engine.Credential{}
	return x, m, c
}

// TestFederation: the role is taken with the assertion for an hour, and what comes of it
// does all that a store does. What is refused is told in words, without the assertion.
func TestFederation(t *testing.T) {
	x, _, c := exchanging(t)
	got, until, err := aws.Kind.Federation.Login(t.Context(), c, asserted)
	if err != nil || time.Until(until) < 59*time.Minute || time.Until(until) > time.Hour {
		t.Fatalf("taking the role: until %s, %v, want an hour", until, err)
	}
	if in := x.asked[0]; in.Get("Action") != "AssumeRoleWithWebIdentity" || in.Get("RoleArn") != role || in.Get("DurationSeconds") != "3600" || in.Get("RoleSessionName") != "estover" {
		t.Errorf("what was asked for: %v", in)
	}
	if hosts, err := aws.Kind.Federation.Beside(c.Options); err != nil || len(hosts) != 1 || "http://"+hosts[0] != c.Options["sts"] {
		t.Errorf("the hosts beside: %v, %v", hosts, err)
	}
	if hosts, err := aws.Kind.Federation.Beside(map[string]string{"region": "eu-central-1", "role": role}); err != nil || len(hosts) != 1 || hosts[0] != "sts.eu-central-1.amazonaws.com:443" {
		t.Errorf("the hosts beside by themselves: %v, %v", hosts, err)
	}
	in := c
	in.Admin = got
	upstreamtest.Run(t, aws.Kind, in)

	x.set(10*time.Minute, "")
	if _, until, err := aws.Kind.Federation.Login(t.Context(), c, asserted); err != nil || time.Until(until) > 10*time.Minute {
		t.Errorf("a key for ten minutes: until %s, %v", until, err)
	}
	for code, says := range map[string]string{
		"InvalidIdentityToken": "no OpenID Connect provider", "AccessDenied": "trust policy", "IDPCommunicationError": "cannot read", "IDPRejectedClaim": "does not take",
		"ExpiredTokenException": "our clock", "SomethingElse": "SomethingElse", "a\n" + asserted: "an error without a name",
	} {
		x.set(time.Hour, code)
		_, _, err := aws.Kind.Federation.Login(t.Context(), c, asserted)
		if !errors.Is(err, engine.ErrUnreachable) || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), asserted) {
			t.Errorf("refused with %q: %v, want %q without the assertion", code, err, says)
		}
	}
	x.set(time.Hour, "")
	x.empty = true
	if _, _, err := aws.Kind.Federation.Login(t.Context(), c, asserted); !errors.Is(err, engine.ErrUnreachable) {
		t.Errorf("an answer without a whole key: %v, want ErrUnreachable", err)
	}
	before := x.times()
	for field, bad := range map[string]map[string]string{
		"options.role": {"role": "estover"}, "options.region": {"region": "a/b", "sts": c.Options["sts"]},
	} {
		in := c
		in.Options = maps.Clone(c.Options)
		maps.Copy(in.Options, bad)
		var invalid *estover.Error
		if _, _, err := aws.Kind.Federation.Login(t.Context(), in, asserted); !errors.As(err, &invalid) || invalid.Field != field {
			t.Errorf("the options %v: %v, want an error about %s", bad, err, field)
		}
	}
	if x.times() != before {
		t.Error("an assertion was sent although the options cannot be")
	}
	c.Options["sts"] = "https://u:p@sts.example"
	if _, err := aws.Kind.Federation.Beside(c.Options); err == nil {
		t.Error("an address with a password was taken")
	}
}

// TestRenewal: a key is used for as long as it is good, another is got a minute before
// its end, and at once if it was taken away.
func TestRenewal(t *testing.T) {
	x, m, c := exchanging(t)
	d := dbtest.Open(t)
	sealer, err := seal.Open(t.Context(), d, seal.File{Path: filepath.Join(t.TempDir(), "root.key")})
	if err != nil {
		t.Fatal(err)
	}
	sealer.Hold(secret.Holding)
	g := guardtest.New(t, d, guardtest.AllowAll)
	secrets := secret.New(g, sealer, secret.Options{Logger: slog.New(slog.DiscardHandler)})
	stores := upstream.NewStores(upstream.Config{
		Guard: g, Secrets: secrets, Sealer: sealer, Kinds: []upstream.Kind{aws.Kind}, Logger: slog.New(slog.DiscardHandler),
		Assert: func(context.Context, estover.TenantID, string, string) (string, error) { return asserted, nil },
	})
	ann := estover.Caller{Tenant: "acme", Subject: estover.User("usr_ann"), Roles: []estover.Role{estover.Admin}}
	without := maps.Clone(c.Options)
	delete(without, "role")
	var told *estover.Error
	if _, err := stores.Put(t.Context(), ann, upstream.StoreSpec{Name: "cloud", Kind: "aws", Address: c.Address, Options: without}); !errors.As(err, &told) || told.Field != "options.role" {
		t.Errorf("without a role: %v, want an error about it", err)
	}
	if _, err := stores.Put(t.Context(), ann, upstream.StoreSpec{Name: "cloud", Kind: "aws", Address: c.Address, Options: c.Options}); err != nil {
		t.Fatal(err)
	}
	check := func(what string, want int) {
		t.Helper()
		if err := stores.Check(t.Context(), ann, "cloud", "app/key"); err != nil || x.times() != want {
			t.Errorf("%s: %v, after %d exchanges, want %d", what, err, x.times(), want)
		}
	}
	x.set(90*time.Second, "")
	check("at first", 1)
	check("with a key that is good for longer than a minute", 1)
	x.set(50*time.Second, "")
	m.mu.Lock()
	clear(m.keys)
	m.mu.Unlock()
	if err := stores.Check(t.Context(), ann, "cloud", ""); !errors.As(err, &told) || !errors.Is(err, upstream.ErrStore) || !strings.Contains(told.Detail, "InvalidSignatureException") {
		t.Errorf("a key that was taken away: %v, want ErrStore with what AWS says", err)
	}
	check("after that", 2)
	check("with less than a minute left", 3)
	x.set(time.Hour, "AccessDenied")
	if err := stores.Check(t.Context(), ann, "cloud", ""); !errors.As(err, &told) || !strings.Contains(told.Detail, "the role does not trust this issuer") || strings.Contains(err.Error(), asserted) {
		t.Errorf("a role that is not given: %v, want the reason", err)
	}
	x.set(time.Hour, "")
	check("once it is given", 5)
	check("and for an hour", 5)
}
