package client

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// A Transport puts a token on requests (RFC 6750, section 2.1), with a proof of
// the key if the token is bound to one (RFC 9449, section 7.1):
//
//	http.Client{Transport: &client.Transport{Client: c, Want: client.Want{Resources: []string{"https://estover.example.com/u/crm"}}}}
//
// A request to anywhere else passes as it is, so that no redirect and no link in
// an answer takes the token to somebody else.
//
// A request is sent again, once, when the server wants another nonce, and once
// when it does not accept a token that was kept for a while, with a fresh one. A
// request with a body is sent again only if it has a GetBody, as those of
// http.NewRequest from memory have; others are better sent after one without a
// body, whose answer brings the nonce.
type Transport struct {
	// Client gets the tokens and has the key.
	Client *Client

	// Want is what the tokens are to be good for.
	Want Want

	// To is the URL below which requests get the token. "" is each of
	// Want.Resources.
	To string

	// Source gives the tokens in the place of Client.Token, as one that came by
	// [Client.Exchange].
	Source func(context.Context) (Token, error)

	// Base sends the requests; nil is how the client itself sends. Its certificate,
	// if it has one, is not shown elsewhere.
	Base http.RoundTripper
}

// settled is the age below which a token that is refused is not replaced: asking
// for another would bring the same.
const settled = 10 * time.Second

// RoundTrip sends a request, as http.RoundTripper says.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	send := t.Base
	if send == nil {
		send = t.Client.transport
	}
	if !t.covers(r.URL) {
		if t.Base == nil {
			send = t.Client.outside
		}
		return send.RoundTrip(r)
	}
	replayable := r.Body == nil || r.Body == http.NoBody || r.GetBody != nil
	var proved, renewed bool
	for again := false; ; again = true {
		token, err := t.token(r.Context())
		var req *http.Request
		nonce := ""
		if err == nil {
			req, nonce, err = t.prepare(r, token, again)
		}
		if err != nil {
			if r.Body != nil && !again {
				_ = r.Body.Close()
			}
			return nil, err
		}
		res, err := send.RoundTrip(req)
		if err != nil {
			return nil, err
		}
		told := t.Client.bound.told(r.URL, res, nonce)
		if res.StatusCode != http.StatusUnauthorized || !replayable {
			return res, nil
		}
		switch code := challenged(res); {
		case code == "use_dpop_nonce" && told && !proved:
			proved = true
		case code == "invalid_token" && t.Source == nil && !renewed && t.Client.now().Sub(token.received) > settled:
			renewed = true
			t.Client.drop(t.Want, token)
		default:
			return res, nil
		}
		_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10)) // so that the connection is used again
		_ = res.Body.Close()
	}
}

func (t *Transport) token(ctx context.Context) (Token, error) {
	if t.Source != nil {
		return t.Source(ctx)
	}
	return t.Client.Token(ctx, t.Want)
}

// prepare is the request with a token, and the nonce of its proof. The caller's
// own request is left as it is.
func (t *Transport) prepare(r *http.Request, token Token, again bool) (req *http.Request, nonce string, err error) {
	req = r.Clone(r.Context())
	req.Header.Set("Authorization", token.Type+" "+token.Reveal())
	if token.Type == "DPoP" {
		if t.Client.bound == nil {
			return nil, "", errors.New("client: the token is bound to a key, and this client has none")
		}
		var proof string
		if proof, nonce, err = t.Client.bound.proof(method(r), r.URL, token.Reveal(), t.Client.now()); err != nil {
			return nil, "", err
		}
		req.Header.Set("DPoP", proof)
	}
	if again && r.GetBody != nil {
		if req.Body, err = r.GetBody(); err != nil {
			return nil, "", err
		}
	}
	return req, nonce, nil
}

// method is that of a request, for which "" is GET.
func method(r *http.Request) string {
	if r.Method == "" {
		return http.MethodGet
	}
	return r.Method
}

// covers reports whether a request to a URL is one to the resource: to its
// scheme, host and port, and below its path.
func (t *Transport) covers(to *url.URL) bool {
	all := t.Want.Resources
	if t.To != "" {
		all = []string{t.To}
	}
	for _, s := range all {
		u, err := url.Parse(s)
		if err != nil || u.Host == "" || !protected(u) || origin(u) != origin(to) {
			continue
		}
		rest, ok := strings.CutPrefix(to.EscapedPath(), strings.TrimSuffix(u.EscapedPath(), "/"))
		if ok && (rest == "" || rest[0] == '/') && !leaves(rest) {
			return true
		}
	}
	return false
}

// leaves reports whether a path, for a server that resolves dots or takes a
// backslash for a slash, may be one above where it begins.
func leaves(path string) bool {
	for {
		plain, err := url.PathUnescape(path)
		if err != nil || slices.Contains(strings.FieldsFunc(plain, func(r rune) bool { return r == '/' || r == '\\' }), "..") {
			return true
		}
		if plain == path {
			return false
		}
		path = plain
	}
}
