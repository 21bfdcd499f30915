package client_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"estover.dev/client"
	"estover.dev/internal/oauth/oauthtest"
)

// through is an HTTP client whose requests to the route carry tokens.
func through(c *client.Client) *http.Client {
	return &http.Client{Transport: &client.Transport{Client: c, Want: support, To: route}}
}

// A request to the resource carries the token; with a DPoP key, a proof of it,
// and what the server wants of the proof is found out by the way.
func TestTransport(t *testing.T) {
	w := newWorld(t)
	bot := w.Agent("bot")
	plain := through(w.client(t, bot.ID, client.PrivateKey(bot.Key, "key-1"), nil))
	if got, want := read(t, plain, route+"/v1/customers?limit=3"), "agent:"+bot.ID+" key"; got != want {
		t.Errorf("the customer system hears %q, want %q", got, want)
	}
	bound := through(w.client(t, bot.ID, client.PrivateKey(bot.Key, "key-1"), newKey(t)))
	before := w.requests(tokenRequest)
	if got, want := read(t, bound, route+"/v1/customers/%C3%A4?limit=3"), "agent:"+bot.ID+" bound"; got != want {
		t.Errorf("the customer system hears %q, want %q", got, want)
	}
	if n := w.requests(tokenRequest) - before; n != 2 {
		t.Errorf("%d requests for a bound token, want 2: without a nonce and with it", n)
	}
	read(t, bound, route+"/v1/one")
	if n := w.requests("GET /u/crm/v1/one"); n != 1 {
		t.Errorf("%d requests with a nonce that is known, want 1", n)
	}
	w.clock.Advance(11 * time.Minute) // the nonce is too old, the token is not
	read(t, bound, route+"/v1/two")
	if n := w.requests("GET /u/crm/v1/two"); n != 2 {
		t.Errorf("%d requests with a nonce that is too old, want 2", n)
	}
}

// Many that come at once without the nonce are all sent again with it.
func TestTransportAtOnce(t *testing.T) {
	w := newWorld(t)
	bot := w.Agent("bot")
	c := w.client(t, bot.ID, client.Secret(bot.Secret), newKey(t))
	tok, err := c.Token(t.Context(), support)
	must(t, err)
	// At a host of its own, which has told of no nonce yet.
	var start sync.WaitGroup
	start.Add(16)
	rec := roundTrip(func(r *http.Request) (*http.Response, error) {
		res := &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Dpop-Nonce": {"n1"}}, Body: http.NoBody, Request: r}
		proof := strings.Split(r.Header.Get("DPoP"), ".")
		claims, err := base64.RawURLEncoding.DecodeString(proof[1])
		if err != nil || !bytes.Contains(claims, []byte(`"nonce":"n1"`)) {
			start.Done()
			start.Wait()
			res.StatusCode = http.StatusUnauthorized
			res.Header.Set("WWW-Authenticate", `DPoP error="use_dpop_nonce"`)
		}
		return res, nil
	})
	hc := http.Client{Transport: &client.Transport{Client: c, Source: func(context.Context) (client.Token, error) { return tok, nil }, To: oauthtest.CRM, Base: rec}}
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			res, err := hc.Get(oauthtest.CRM + "/v1")
			if err != nil || res.StatusCode != http.StatusOK {
				t.Errorf("%v %v", res, err)
			}
		})
	}
	all.Wait()
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// A body is sent again where it can be had again, whole, and never otherwise.
func TestTransportBody(t *testing.T) {
	w := newWorld(t)
	bot := w.Agent("bot")
	// A client whose nonce is too old, and whose token is not.
	old := func() *http.Client {
		hc := through(w.client(t, bot.ID, client.Secret(bot.Secret), newKey(t)))
		read(t, hc, route+"/v1")
		w.clock.Advance(11 * time.Minute)
		return hc
	}
	hc := old()
	const note = "Ada called."
	res, err := hc.Post(route+"/v1/notes", "text/plain", strings.NewReader(note))
	must(t, err)
	_ = res.Body.Close()
	if res.StatusCode != http.StatusOK || w.requests("POST /u/crm/v1/notes") != 2 || w.heard[len(w.heard)-1] != note {
		t.Errorf("%s after %d requests; the customer system has %q", res.Status, w.requests("POST /u/crm/v1/notes"), w.heard)
	}
	hc = old()
	before := len(w.heard)
	res, err = hc.Post(route+"/v1/stream", "text/plain", io.MultiReader(strings.NewReader(note)))
	must(t, err)
	_ = res.Body.Close()
	if res.StatusCode != http.StatusUnauthorized || w.requests("POST /u/crm/v1/stream") != 1 || len(w.heard) != before {
		t.Errorf("a body that cannot be had again: %s after %d requests", res.Status, w.requests("POST /u/crm/v1/stream"))
	}
	res, err = hc.Post(route+"/v1/stream", "text/plain", io.MultiReader(strings.NewReader(note))) // the nonce is known by then
	must(t, err)
	_ = res.Body.Close()
	if res.StatusCode != http.StatusOK || w.heard[len(w.heard)-1] != note {
		t.Errorf("the same once more: %s", res.Status)
	}
}

// A closing body tells whether it was closed.
type closing struct {
	io.Reader
	closed bool
}

func (c *closing) Close() error {
	c.closed = true
	return nil
}

// A request that gets no token is not sent, and its body is closed.
func TestTransportWithoutToken(t *testing.T) {
	w := newWorld(t)
	bot := w.Agent("bot")
	c := w.client(t, bot.ID, client.Secret("wrong"), nil)
	body := &closing{Reader: strings.NewReader("x")}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, route+"/v1", body)
	must(t, err)
	_, err = (&client.Transport{Client: c, Want: support, To: route}).RoundTrip(req)
	if code(err) != "invalid_client" || !body.closed || w.requests("POST /u/crm/v1") != 0 {
		t.Errorf("%v; the body is closed: %v", err, body.closed)
	}
	if req.Header.Get("Authorization") != "" {
		t.Error("the caller's own request is changed")
	}
}

// A recorder keeps the requests that it is sent.
type recorder struct {
	requests []*http.Request
	answer   func(*http.Request) *http.Response
}

func (r *recorder) RoundTrip(req *http.Request) (*http.Response, error) {
	r.requests = append(r.requests, req)
	res := &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(nil)), Request: req}
	if r.answer != nil {
		if its := r.answer(req); its != nil {
			res.StatusCode, res.Header = its.StatusCode, its.Header
		}
	}
	return res, nil
}

// The token goes to the resource and to nobody else, also when an answer sends
// the program elsewhere.
func TestTransportElsewhere(t *testing.T) {
	w := newWorld(t)
	bot := w.Agent("bot")
	c := w.client(t, bot.ID, client.Secret(bot.Secret), newKey(t))
	for _, s := range []struct {
		resource, to string
		covered      bool
	}{
		{"https://crm.example", "https://crm.example/v1", true},
		{"https://crm.example", "https://CRM.example:443", true},
		{"https://crm.example", "https://crm.example:8443/v1", false},
		{"https://crm.example", "http://crm.example/v1", false},
		{"https://crm.example", "https://crm.example.evil.example/v1", false},
		{"https://crm.example", "https://evil.example/?https://crm.example/", false},
		{"https://crm.example", "https://crm.example@evil.example/", false},
		{"http://crm.example", "http://crm.example/v1", false},
		{"http://127.0.0.1:8080", "http://127.0.0.1:8080/v1", true},
		{route, route, true},
		{route, route + "/v1", true},
		{route, issuer + "/u/crm2/v1", false},
		{route, issuer + "/u/billing/v1", false},
		{route + "/", route + "/v1", true},
		{route, route + "/../billing/v1", false},
		{route, route + "/%2e%2e/billing/v1", false},
		{route, route + "/v1/..%2f..%2fbilling", false},
		{route, route + "/v1/..%5c..%5cbilling", false},
		{route, route + "/%252e%252e/billing", false},
		{route, route + "/v1..2/a%2fb/...", true},
		{"not a URL", "https://crm.example/v1", false},
	} {
		rec := &recorder{}
		tr := &client.Transport{Client: c, Want: support, To: s.resource, Base: rec}
		u, err := url.Parse(s.to)
		must(t, err)
		_, err = tr.RoundTrip(&http.Request{Method: http.MethodGet, URL: u, Header: http.Header{}})
		must(t, err)
		sent := rec.requests[0].Header
		if got := sent.Get("Authorization") != ""; got != s.covered || got != (sent.Get("DPoP") != "") {
			t.Errorf("for %s, a request to %s carries a token: %v, want %v", s.resource, s.to, got, s.covered)
		}
	}
	rec := &recorder{answer: func(r *http.Request) *http.Response {
		if r.URL.Host == "evil.example" {
			return nil
		}
		return &http.Response{StatusCode: http.StatusFound, Header: http.Header{"Location": {"https://evil.example/"}}}
	}}
	hc := http.Client{Transport: &client.Transport{Client: c, Want: support, To: route, Base: rec}}
	read(t, &hc, route+"/v1")
	if len(rec.requests) != 2 || rec.requests[0].Header.Get("Authorization") == "" || rec.requests[1].Header.Get("Authorization") != "" || rec.requests[1].Header.Get("DPoP") != "" {
		t.Errorf("%d requests, the second with %v", len(rec.requests), rec.requests[len(rec.requests)-1].Header)
	}
}

// A token that the server has ended is replaced once it is refused, and asking
// goes not on and on where the next is refused too.
func TestTransportReplaces(t *testing.T) {
	w := newWorld(t)
	bot := w.Agent("bot")
	c := w.client(t, bot.ID, client.Secret(bot.Secret), newKey(t))
	hc := through(c)
	read(t, hc, route+"/v1")
	tok, err := c.Token(t.Context(), support)
	must(t, err)
	w.clock.Advance(time.Minute)
	if a := w.Do(oauthtest.Request("/oauth/revoke", oauthtest.Form("token", tok.Reveal()), oauthtest.Basic(bot.ID, bot.Secret))); a.Status != http.StatusOK {
		t.Fatalf("revocation: %d %s", a.Status, a.Body)
	}
	read(t, hc, route+"/v1/again")
	if n := w.requests("GET /u/crm/v1/again"); n != 2 {
		t.Errorf("%d requests, want 2: with the token that was ended and with the next", n)
	}
	rec := &recorder{answer: func(*http.Request) *http.Response {
		return &http.Response{StatusCode: http.StatusUnauthorized, Header: http.Header{"Www-Authenticate": {`DPoP realm="x", error="invalid_token"`}}}
	}}
	never := http.Client{Transport: &client.Transport{Client: c, Want: support, To: route, Base: rec}}
	w.clock.Advance(time.Minute)
	for range 5 {
		res, err := never.Get(route + "/v1")
		must(t, err)
		if code(client.ErrorOf(res)) != "invalid_token" {
			t.Errorf("the answer is %v, want invalid_token", client.ErrorOf(res))
		}
	}
	if n := len(rec.requests); n != 6 {
		t.Errorf("a resource that refuses every token is sent %d requests for 5, want 6", n)
	}
}

// A server that always wants another nonce is asked twice and not for ever.
func TestTransportNonceOnce(t *testing.T) {
	w := newWorld(t)
	bot := w.Agent("bot")
	n := 0
	rec := &recorder{answer: func(*http.Request) *http.Response {
		n++
		return &http.Response{StatusCode: http.StatusUnauthorized, Header: http.Header{
			"Www-Authenticate": {`Bearer realm="x"`, `DPoP realm="x", error="use_dpop_nonce", algs="ES256"`}, "Dpop-Nonce": {strings.Repeat("n", min(n, 2))},
		}}
	}}
	hc := http.Client{Transport: &client.Transport{Client: w.client(t, bot.ID, client.Secret(bot.Secret), newKey(t)), Want: support, To: route, Base: rec}}
	res, err := hc.Get(route + "/v1")
	must(t, err)
	_ = res.Body.Close()
	if len(rec.requests) != 2 || res.StatusCode != http.StatusUnauthorized {
		t.Errorf("%d requests and %s", len(rec.requests), res.Status)
	}
	proofs := []string{rec.requests[0].Header.Get("DPoP"), rec.requests[1].Header.Get("DPoP")}
	if slices.Contains(proofs, "") || proofs[0] == proofs[1] {
		t.Errorf("the proofs are %q", proofs)
	}
	res, err = hc.Get(route + "/v1") // with the nonce that the server wants, which is refused all the same
	must(t, err)
	_ = res.Body.Close()
	if len(rec.requests) != 3 {
		t.Errorf("the same is sent again: %d requests", len(rec.requests)-2)
	}
}

// A bound token is of no use to a client without the key.
func TestTransportForeignToken(t *testing.T) {
	w := newWorld(t)
	bot := w.Agent("bot")
	tok, err := w.client(t, bot.ID, client.Secret(bot.Secret), newKey(t)).Token(t.Context(), support)
	must(t, err)
	other := w.client(t, bot.ID, client.Secret(bot.Secret), nil)
	hc := http.Client{Transport: &client.Transport{Client: other, To: route, Source: func(context.Context) (client.Token, error) { return tok, nil }}}
	if _, err := hc.Get(route + "/v1"); err == nil || w.requests("GET /u/crm/v1") != 0 {
		t.Errorf("the request is sent: %v", err)
	}
}
