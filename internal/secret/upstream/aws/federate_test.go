package aws_test

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/seal"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/upstream"
	"estover.dev/internal/secret/upstream/aws"
	"estover.dev/internal/secret/upstream/aws/awstest"
	"estover.dev/internal/secret/upstream/upstreamtest"
)

const (
	asserted = "eyJ.an-assertion.of-ours"
	role     = "arn:aws:iam::123456789012:role/teams/estover"
)

// exchanging is a manager that takes no key but those of an exchange.
func exchanging(t *testing.T) (*awstest.Exchange, *awstest.Manager, engine.Config) {
	m, c := start(t)
	m.Forget()
	x := &awstest.Exchange{Manager: m, Trusts: func(assertion string) bool { return assertion == asserted }}
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
	if in := x.Asked()[0]; in.Get("Action") != "AssumeRoleWithWebIdentity" || in.Get("RoleArn") != role || in.Get("DurationSeconds") != "3600" || in.Get("RoleSessionName") != "estover" {
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

	x.Set(10*time.Minute, "")
	if _, until, err := aws.Kind.Federation.Login(t.Context(), c, asserted); err != nil || time.Until(until) > 10*time.Minute {
		t.Errorf("a key for ten minutes: until %s, %v", until, err)
	}
	for code, says := range map[string]string{
		"InvalidIdentityToken": "no OpenID Connect provider", "AccessDenied": "trust policy", "IDPCommunicationError": "cannot read", "IDPRejectedClaim": "does not take",
		"ExpiredTokenException": "our clock", "SomethingElse": "SomethingElse", "a\n" + asserted: "an error without a name",
	} {
		x.Set(time.Hour, code)
		_, _, err := aws.Kind.Federation.Login(t.Context(), c, asserted)
		if !errors.Is(err, engine.ErrUnreachable) || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), asserted) {
			t.Errorf("refused with %q: %v, want %q without the assertion", code, err, says)
		}
	}
	x.Set(time.Hour, "")
	x.Empty()
	if _, _, err := aws.Kind.Federation.Login(t.Context(), c, asserted); !errors.Is(err, engine.ErrUnreachable) {
		t.Errorf("an answer without a whole key: %v, want ErrUnreachable", err)
	}
	before := len(x.Asked())
	for _, bad := range []map[string]string{{"role": "estover"}, {"role": role + strings.Repeat("x", 600)}, {"region": "a/b", "sts": c.Options["sts"]}} {
		field := "options.role"
		if bad["role"] == "" {
			field = "options.region"
		}
		in := c
		in.Options = maps.Clone(c.Options)
		maps.Copy(in.Options, bad)
		var invalid *estover.Error
		if _, _, err := aws.Kind.Federation.Login(t.Context(), in, asserted); !errors.As(err, &invalid) || invalid.Field != field {
			t.Errorf("the options %v: %v, want an error about %s", bad, err, field)
		}
	}
	if len(x.Asked()) != before {
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
		if err := stores.Check(t.Context(), ann, "cloud", "app/key"); err != nil || len(x.Asked()) != want {
			t.Errorf("%s: %v, after %d exchanges, want %d", what, err, len(x.Asked()), want)
		}
	}
	x.Set(90*time.Second, "")
	check("at first", 1)
	check("with a key that is good for longer than a minute", 1)
	x.Set(50*time.Second, "")
	m.Forget()
	if err := stores.Check(t.Context(), ann, "cloud", ""); !errors.As(err, &told) || !errors.Is(err, upstream.ErrStore) || !strings.Contains(told.Detail, "InvalidSignatureException") {
		t.Errorf("a key that was taken away: %v, want ErrStore with what AWS says", err)
	}
	check("after that", 2)
	check("with less than a minute left", 3)
	x.Set(time.Hour, "AccessDenied")
	if err := stores.Check(t.Context(), ann, "cloud", ""); !errors.As(err, &told) || !strings.Contains(told.Detail, "the role does not trust this issuer") || strings.Contains(err.Error(), asserted) {
		t.Errorf("a role that is not given: %v, want the reason", err)
	}
	x.Set(time.Hour, "")
	check("once it is given", 5)
	check("and for an hour", 5)
}
