package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Want is what a token is to be good for. The server gives what the agent is
// granted of it, or refuses; what is left out is the agent's usual.
type Want struct {
	// Resources are the identifiers of what is to be reached, or URLs at the
	// server below which it is reached (RFC 8707, section 2).
	Resources []string

	// Scopes are the actions (RFC 6749, section 3.3).
	Scopes []string

	// Purpose is what for. An agent with one purpose need not say it.
	Purpose string

	// Session is the open session that the token belongs to; "" is the one that
	// the server has for the agent and the purpose.
	Session string
}

// key is one spelling of what is wanted.
func (w Want) key() string { return w.form().Encode() }

func (w Want) form() url.Values {
	f := url.Values{}
	if len(w.Resources) > 0 {
		f["resource"] = slices.Compact(slices.Sorted(slices.Values(w.Resources)))
	}
	if len(w.Scopes) > 0 {
		f.Set("scope", strings.Join(slices.Compact(slices.Sorted(slices.Values(w.Scopes))), " "))
	}
	if w.Purpose != "" {
		f.Set("purpose", w.Purpose)
	}
	if w.Session != "" {
		f.Set("session", w.Session)
	}
	return f
}

// A Token is an access token. Its value is shown by [Token.Reveal] alone.
type Token struct {
	// Type is the scheme by which it is sent: "Bearer" or "DPoP".
	Type string

	// Scopes are what it is good for, which may be less than was asked for.
	Scopes []string

	// Session is the session that it belongs to, and ends with.
	Session string

	// Expires is when it ends by itself, by this machine's clock.
	Expires time.Time

	received time.Time
	value    func() string
}

// Reveal gives the token itself, which is a secret. One whose type is DPoP is of
// no use without the key; [Transport] shows it.
func (t Token) Reveal() string {
	if t.value == nil {
		return ""
	}
	return t.value()
}

// String says what the token is, without the token.
func (t Token) String() string {
	return fmt.Sprintf("%s token of session %s until %s", t.Type, t.Session, t.Expires.Format(time.RFC3339))
}

// life is what the server gave it.
func (t Token) life() time.Duration { return t.Expires.Sub(t.received) }

// usable reports whether a request that is sent now still arrives with it.
func (t Token) usable(now time.Time) bool {
	return t.value != nil && now.Before(t.Expires.Add(-min(5*time.Second, t.life()/10)))
}

// young reports whether it need not be replaced yet.
func (t Token) young(now time.Time) bool {
	return t.value != nil && now.Before(t.Expires.Add(-t.life()/5))
}

// ownGrant is the grant type by which an agent acts for itself (RFC 6749,
// section 4.4).
const ownGrant = "client_credentials"

// An entry is the token for one want, and the next one on its way.
type entry struct {
	token  Token
	flight *flight[Token]
	pause  time.Time // until when a token that is still usable is not asked for again
}

// pause is for how long the next token is not asked for after that has failed.
const pause = 5 * time.Second

// Token is a token for what is wanted: the one that is kept, or a fresh one. What
// was kept is given until it ends, also while the server refuses the next one: a
// token that shall not count any more is ended by the server. An error of the
// server is an [*Error].
func (c *Client) Token(ctx context.Context, w Want) (Token, error) {
	key := w.key()
	c.mu.Lock()
	e := c.tokens[key]
	if e == nil {
		c.sweep()
		e = &entry{}
		c.tokens[key] = e
	}
	now, kept := c.now(), e.token
	usable := kept.usable(now)
	if kept.young(now) || usable && now.Before(e.pause) {
		c.mu.Unlock()
		return kept, nil
	}
	if e.flight == nil {
		e.flight = fly(ctx, func(ctx context.Context) (Token, error) { return c.request(ctx, ownGrant, w.form()) }, func(f *flight[Token]) {
			c.mu.Lock()
			defer c.mu.Unlock()
			if e.flight = nil; f.err == nil {
				e.token = f.value
			} else {
				e.pause = c.now().Add(pause)
			}
		})
	}
	f := e.flight
	c.mu.Unlock()
	if usable {
		return kept, nil
	}
	return f.wait(ctx)
}

// sweep drops what is over. The lock is held.
func (c *Client) sweep() {
	now := c.now()
	for key, e := range c.tokens {
		if e.flight == nil && !e.token.usable(now) {
			delete(c.tokens, key)
		}
	}
}

// drop forgets a token that a resource does not accept.
func (c *Client) drop(w Want, t Token) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.tokens[w.key()]; e != nil && e.token.Reveal() == t.Reveal() {
		e.token = Token{}
	}
}

// Exchange takes up the token of another agent, or a person's, that was handed to
// this one, and gives a token for what is wanted of it: on the authority of its
// subject, with this agent as the actor (RFC 8693, section 2). It belongs to the
// session of the other and ends no later. Nothing is kept: a program that calls
// more than once keeps the token itself.
func (c *Client) Exchange(ctx context.Context, subjectToken string, w Want) (Token, error) {
	return c.ExchangeAs(ctx, subjectToken, "", w)
}

// ExchangeAs is [Client.Exchange] with another agent as the actor, whose own
// token is given and which this client is registered to run.
func (c *Client) ExchangeAs(ctx context.Context, subjectToken, actorToken string, w Want) (Token, error) {
	if subjectToken == "" {
		return Token{}, errors.New("client: there is no token to exchange")
	}
	const accessToken = "urn:ietf:params:oauth:token-type:access_token" // RFC 8693, section 3
	f := w.form()
	f.Set("subject_token", subjectToken)
	f.Set("subject_token_type", accessToken)
	if actorToken != "" {
		f.Set("actor_token", actorToken)
		f.Set("actor_token_type", accessToken)
	}
	return c.request(ctx, "urn:ietf:params:oauth:grant-type:token-exchange", f)
}

// request asks the token endpoint (RFC 6749, section 3.2), and once more if the
// proof needs another nonce (RFC 9449, section 8).
func (c *Client) request(ctx context.Context, grantType string, form url.Values) (Token, error) {
	at, _, err := c.tokenEndpoint(ctx)
	if err != nil {
		return Token{}, err
	}
	for again := false; ; again = true {
		t, told, err := c.ask(ctx, at, grantType, form)
		var e *Error
		if !again && told && errors.As(err, &e) && e.Code == "use_dpop_nonce" {
			continue
		}
		if err != nil {
			err = fmt.Errorf("asking for a token: %w", err)
		}
		return t, err
	}
}

// ask sends one request for a token, and reports whether the answer has a nonce
// other than the one it was sent with.
func (c *Client) ask(ctx context.Context, at *url.URL, grantType string, form url.Values) (t Token, told bool, err error) {
	f := url.Values{}
	for k, v := range form {
		f[k] = v
	}
	f.Set("grant_type", grantType)
	head := http.Header{"Content-Type": {"application/x-www-form-urlencoded"}, "Accept": {"application/json"}}
	if err := c.credential.prove(ctx, c, f, head); err != nil {
		return t, false, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, at.String(), strings.NewReader(f.Encode()))
	if err != nil {
		return t, false, err
	}
	req.Header = head
	nonce := ""
	if c.bound != nil {
		var proof string
		if proof, nonce, err = c.bound.proof(req.Method, at, "", c.now()); err != nil {
			return t, false, err
		}
		head.Set("DPoP", proof)
	}
	sent := c.now()
	res, err := c.http.Do(req)
	if err != nil {
		return t, false, err
	}
	defer res.Body.Close()
	told = c.bound.told(at, res, nonce)
	if res.StatusCode != http.StatusOK {
		return t, told, ErrorOf(res)
	}
	b, err := readAll(res)
	if err != nil {
		return t, told, err
	}
	t, err = c.read(b, sent)
	return t, told, err
}

// read reads a good answer of the token endpoint (RFC 6749, section 5.1).
func (c *Client) read(b []byte, sent time.Time) (Token, error) {
	o, err := parseObject(b)
	if err != nil {
		return Token{}, err
	}
	value, life := o.text("access_token"), 0
	if life, err = strconv.Atoi(string(o["expires_in"])); err != nil || life <= 0 || life > 24*60*60 || value == "" {
		return Token{}, errors.New("the answer has no access_token, or no expires_in of at most a day")
	}
	want := "Bearer"
	if c.bound != nil { // RFC 9449, section 5: one that is not bound is not what was asked for
		want = "DPoP"
	}
	if kind := o.text("token_type"); !strings.EqualFold(kind, want) {
		return Token{}, fmt.Errorf("the answer has a token of the type %q, not %s", kind, want)
	}
	return Token{
		Type: want, Scopes: strings.Fields(o.text("scope")), Session: o.text("session"),
		Expires: sent.Add(time.Duration(life) * time.Second), received: sent, value: func() string { return value },
	}, nil
}
