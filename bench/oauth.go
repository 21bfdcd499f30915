package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/directory"
)

// exchanges compares the exchange of a token with one signature and one row. A
// token goes through the hands of three agents along edges, and the last of them
// takes it up again and again: the signature of what it presents is known, and
// need not be checked by anybody, and the grant is there that the first time made.
func exchanges(ctx context.Context, b *Bench) ([]Row, error) {
	const kind = "urn:ietf:params:oauth:grant-type:token-exchange"
	in, secret, err := b.first(ctx, company(4, `grant_types: ["`+kind+`"]`))
	if err != nil {
		return nil, err
	}
	defer in.stop()
	if err := in.edges(ctx, `["support", "support"]`); err != nil {
		return nil, err
	}
	wish := forOwn
	for i := range 3 {
		token, err := in.ask(ctx, secret, wish...)
		if err != nil {
			return nil, err
		}
		if secret, err = in.secret(ctx, fmt.Sprintf("bot-%d", i+1)); err != nil {
			return nil, err
		}
		wish = []string{
			"grant_type", kind, "resource", crm,
			"subject_token", token.Access, "subject_token_type", "urn:ietf:params:oauth:token-type:access_token",
		}
	}
	next := always(bySecret(tokenPath, in.addr, secret, wish...))
	row, err := b.againstSigner(ctx, Row{Name: "exchange", Target: 1.5, Unit: "µs of CPU an exchange"}, 0, in.process, next)
	return []Row{row}, err
}

// edges lets agents of one blueprint hand their tokens to those of another, by
// the policy that comes with Estover.
func (in *installation) edges(ctx context.Context, pairs string) error {
	dir := filepath.Join(filepath.Dir(in.dir), "policies")
	if _, err := in.estover(ctx, "", "policy", "init", dir); err != nil {
		return err
	}
	file := filepath.Join(dir, "delegation.rego")
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	edited := strings.Replace(string(text), "edges := set()", "edges := {"+pairs+"}", 1)
	if err := os.WriteFile(file, []byte(edited), 0o600); err != nil {
		return err
	}
	_, err = in.estover(ctx, "", "policy", "push", dir, "--note", "who hands work to whom", "--activate")
	return err
}

// introspections compares the question what a token stands for, by a client that
// serves its resource, with one ES256 signature, which is what most other
// operations cannot do without. There is no peer: a process that answers what it
// holds in memory says more about net/http.
func introspections(ctx context.Context, b *Bench) ([]Row, error) {
	in, secret, err := b.first(ctx, company(2, "introspect: ["+crm+"]"))
	if err != nil {
		return nil, err
	}
	defer in.stop()
	token, err := in.ask(ctx, secret, forOwn...)
	if err != nil {
		return nil, err
	}
	serving, err := in.secret(ctx, "bot-1")
	if err != nil {
		return nil, err
	}
	next := bySecret("/oauth/introspect", in.addr, serving, "token", token.Access)
	asked := *in.process
	asked.heard = func(answer []byte) error {
		if !bytes.HasPrefix(answer, []byte(`{"active":true,`)) {
			return fmt.Errorf("the token is not alive: %s", answer)
		}
		return nil
	}
	var ratios, own []float64
	for round := range b.Rounds + 1 { // the first one warms up
		l, err := drive(ctx, &asked, callers, b.For, always(next))
		if err != nil {
			return nil, err
		}
		if l.failed > 0 {
			return nil, fmt.Errorf("%d answers were errors of the server: %s", l.failed, l.failure)
		}
		signature, err := oneSignature(b.For / 4)
		if err != nil {
			return nil, err
		}
		if round > 0 {
			ratios, own = append(ratios, l.perRequest()/signature), append(own, l.perRequest())
		}
	}
	return []Row{{
		Name: "introspection", Ratio: median(ratios), Target: 1.8, Better: "lower",
		Against: "one ES256 signature", Value: median(own), Unit: "µs of CPU a question",
	}}, nil
}

// oneSignature is the CPU time of an ES256 signature in this process, in
// microseconds.
func oneSignature(lasting time.Duration) (float64, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return 0, err
	}
	return each(lasting, func() error {
		sum := sha256.Sum256([]byte("what is signed"))
		_, _, err := ecdsa.Sign(rand.Reader, key, sum[:])
		return err
	})
}

// refreshes compares the renewal of a grant that a person gave with one
// signature and one row. Each connection goes on with a grant of its own.
func refreshes(ctx context.Context, b *Bench) ([]Row, error) {
	in, secret, err := b.first(ctx, company(1, "grant_types: [authorization_code, refresh_token], redirect_uris: ['"+callback+"']"))
	if err != nil {
		return nil, err
	}
	in.stop()
	cookies, err := in.visit(ctx)
	if err != nil {
		return nil, err
	}
	if err := in.start(ctx); err != nil {
		return nil, err
	}
	defer in.stop()
	values := make(chan string, callers)
	for range callers {
		value, err := in.consented(ctx, secret, cookies)
		if err != nil {
			return nil, fmt.Errorf("letting an agent act for alice: %w", err)
		}
		values <- value
	}
	renewing := *in.process
	renewing.heard = func(answer []byte) error {
		var g granted
		if err := json.Unmarshal(answer, &g); err != nil || g.Refresh == "" {
			return fmt.Errorf("there is no refresh token in %s", answer)
		}
		values <- g.Refresh
		return nil
	}
	next := func() []byte {
		return bySecret(tokenPath, in.addr, secret, "grant_type", "refresh_token", "refresh_token", <-values)
	}
	row, err := b.againstSigner(ctx, Row{Name: "refresh", Target: 1.5, Unit: "µs of CPU a refresh"}, 0, &renewing, next)
	return []Row{row}, err
}

// visit signs alice in by a passkey that nobody has, while the server does not
// run, and gives the cookies that her browser would hold.
func (in *installation) visit(ctx context.Context) (string, error) {
	h, err := openHouse(ctx, filepath.Join(in.dir, "estover.db"), filepath.Join(in.dir+"-keys", "root.key"), nil)
	if err != nil {
		return "", err
	}
	defer h.db.Close()
	people := directory.New(h.guard, directory.Options{})
	alice, err := people.ByName(ctx, us, "alice")
	if err != nil {
		return "", err
	}
	invitation, _, err := people.Invite(ctx, us, alice.ID, 0)
	if err != nil {
		return "", err
	}
	from := directory.Browser{From: estover.Caller{Tenant: us.Tenant}}
	key := directory.Passkey{Credential: []byte(rand.Text()), Record: []byte("{}"), Label: "bench"}
	answer := directory.Answer{Challenge: rand.Text(), Expires: time.Now().Add(time.Minute)}
	value, _, err := people.Enrol(ctx, from, string(invitation.Reveal()), key, answer, []string{directory.ByHardwareKey, directory.Verified})
	return "__Host-estover=" + string(value.Reveal()) + "; __Host-estover-browser=bench", err
}

const callback = "https://app.example.com/back"

var consentForm = regexp.MustCompile(`name="form" value="([^"]*)"><input type="hidden" name="request" value="([^"]*)"`)

// consented lets the agent act for whoever holds the cookies, who is asked the
// first time, and gives the refresh token of a grant.
func (in *installation) consented(ctx context.Context, c credential, cookies string) (string, error) {
	verifier := rand.Text() + rand.Text()
	sum := sha256.Sum256([]byte(verifier))
	query := form("client_id", c.ID, "response_type", "code", "redirect_uri", callback, "resource", crm,
		"code_challenge", encoded(string(sum[:])), "code_challenge_method", "S256")
	back, shown, err := in.browse(ctx, http.MethodGet, "/oauth/authorize?"+query.Encode(), cookies, nil)
	if m := consentForm.FindStringSubmatch(shown); err == nil && m != nil {
		back, _, err = in.browse(ctx, http.MethodPost, "/oauth/consent", cookies,
			form("form", m[1], "request", html.UnescapeString(m[2]), "decision", "allow"))
	}
	if err != nil {
		return "", err
	}
	if back == nil {
		return "", fmt.Errorf("the page asks nothing: %s", shown)
	}
	g, err := in.ask(ctx, c, "grant_type", "authorization_code", "code", back.Query().Get("code"), "code_verifier", verifier)
	return g.Refresh, err
}

// browse asks for a page as a browser does. It gives the page, or where the
// browser is sent on to.
func (in *installation) browse(ctx context.Context, method, path, cookies string, sent url.Values) (*url.URL, string, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+in.addr+path, strings.NewReader(sent.Encode()))
	if err != nil {
		return nil, "", err
	}
	req.Header.Set("Content-Type", formType["Content-Type"])
	req.Header.Set("Cookie", cookies)
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return nil, "", err
	}
	defer res.Body.Close()
	shown, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode == http.StatusOK {
		return nil, string(shown), err
	}
	to, err := res.Location()
	if err != nil {
		err = fmt.Errorf("%s %s: %s: %s", method, path, res.Status, shown)
	}
	return to, string(shown), err
}
