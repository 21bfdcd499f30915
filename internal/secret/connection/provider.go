package connection

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"estover.dev"
)

// maxAnswer bounds what a provider answers.
const maxAnswer = 64 << 10

// endpoints are a provider's.
type endpoints struct {
	issuer           string
	authorize, token string
	revoke           string
	names            bool // it says who it is when it sends people back (RFC 9207)
}

// A refusal is a provider's answer that it will not.
type refusal struct {
	code   string // as it stands in the answer, if it is one of those that there are; "" otherwise
	status int
	what   string // in a sentence
}

func (r *refusal) Error() string { return r.what }

// final reports whether asking again would be of no use, and what the connection is
// then.
func (r *refusal) final(grant string) (State, bool) {
	switch {
	case r.code == "invalid_grant" && grant == AuthorizationCode:
		return Reauthorize, true
	case r.status == http.StatusTooManyRequests, r.status >= 500, r.code == "temporarily_unavailable", r.code == "server_error":
		return "", false
	}
	return Misconfigured, true
}

// away says that a provider could not be asked.
type away struct{ err error }

func (a *away) Error() string { return "the provider cannot be reached" }
func (a *away) Unwrap() error { return a.err }

// send asks the provider.
func (x *Connections) send(ctx context.Context, tenant estover.TenantID, s Spec, r *http.Request) (Answer, error) {
	r.Header.Set("Accept", "application/json")
	a, err := x.Send(ctx, tenant, s, r, maxAnswer)
	if err == nil {
		return a, nil
	}
	var ours *estover.Error
	if errors.As(err, &ours) && ours.Kind == estover.Denied {
		// An address that may not be reached from here does not become one.
		return a, &refusal{what: "it may not be reached from here: " + ours.Detail}
	}
	return a, &away{err}
}

// find gives the endpoints of a provider: what was said, and beside that what the
// provider says of itself (RFC 8414, OpenID Connect Discovery).
func (x *Connections) find(ctx context.Context, tenant estover.TenantID, s Spec) (endpoints, error) {
	e := endpoints{s.Issuer, s.Authorize, s.Token, s.Revoke, false}
	if s.Issuer == "" {
		return e, nil
	}
	u, err := url.Parse(s.Issuer)
	if err != nil {
		return e, &refusal{what: "its issuer is no URL"}
	}
	path := strings.TrimSuffix(u.EscapedPath(), "/")
	base := u.Scheme + "://" + u.Host
	var a Answer
	for _, at := range []string{base + path + "/.well-known/openid-configuration", base + "/.well-known/oauth-authorization-server" + path} {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
		if err != nil {
			return e, &refusal{what: "its issuer is no URL"}
		}
		if a, err = x.send(ctx, tenant, s, r); err != nil {
			return e, err
		}
		if a.Status == http.StatusOK {
			break
		}
	}
	if a.Status != http.StatusOK {
		return e, &refusal{status: a.Status, what: fmt.Sprintf("it does not describe itself: it answers %d", a.Status)}
	}
	var m struct {
		Issuer    string `json:"issuer"`
		Authorize string `json:"authorization_endpoint"`
		Token     string `json:"token_endpoint"`
		Revoke    string `json:"revocation_endpoint"`
		Names     bool   `json:"authorization_response_iss_parameter_supported"`
	}
	if err := json.Unmarshal(a.Body, &m); err != nil {
		return e, &refusal{what: "what it says of itself is not JSON of the right form"}
	}
	if m.Issuer != s.Issuer {
		return e, &refusal{what: "it says that it is another issuer than was named"}
	}
	e.names = m.Names
	for _, one := range []struct {
		to   *string
		said string
	}{{&e.authorize, m.Authorize}, {&e.token, m.Token}, {&e.revoke, m.Revoke}} {
		if *one.to != "" || one.said == "" {
			continue
		}
		if checkURL(one.said, s.private(one.said)) != nil {
			return e, &refusal{what: "one of the endpoints that it names is not to be used: it is not https"}
		}
		*one.to = one.said
	}
	if e.token == "" {
		return e, &refusal{what: "it names no token endpoint"}
	}
	return e, nil
}

// post sends a form to an endpoint, as the client.
func (x *Connections) post(ctx context.Context, tenant estover.TenantID, s Spec, to string, form url.Values) (Answer, error) {
	u, err := url.Parse(to)
	if err != nil {
		return Answer{}, &refusal{what: "its endpoint is no URL"}
	}
	basic := ""
	if s.ClientAuth != ByBasic {
		form.Set("client_id", s.ClientID)
	}
	if s.Secret != "" {
		secret, err := x.Secret(ctx, tenant, s.Secret, hostPort(u))
		if err != nil {
			var ours *estover.Error
			if errors.As(err, &ours) && ours.Kind != estover.Unavailable && ours.Kind != estover.Fault { // which say nothing of the connection
				return Answer{}, &refusal{what: "its client secret cannot be used: " + ours.Detail}
			}
			return Answer{}, err
		}
		if s.ClientAuth == ByBasic { // RFC 6749, section 2.3.1
			basic = "Basic " + base64.StdEncoding.EncodeToString([]byte(url.QueryEscape(s.ClientID)+":"+url.QueryEscape(string(secret.Reveal()))))
		} else {
			form.Set("client_secret", string(secret.Reveal()))
		}
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, to, strings.NewReader(form.Encode()))
	if err != nil {
		return Answer{}, &refusal{what: "its endpoint is no URL"}
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if basic != "" {
		r.Header.Set("Authorization", basic)
	}
	return x.send(ctx, tenant, s, r)
}

func hostPort(u *url.URL) string {
	if u.Port() != "" {
		return u.Host
	}
	if u.Scheme == "http" {
		return net.JoinHostPort(u.Hostname(), "80")
	}
	return net.JoinHostPort(u.Hostname(), "443")
}

// tokens are what a token endpoint gives out.
type tokens struct {
	Access  string `json:"access"`
	Refresh string `json:"refresh,omitempty"`
	Mark    []byte `json:"mark"` // of the spec that they belong to

	scopes []string
	life   time.Duration // 0 if it was not said
}

// The forms of what a token endpoint may answer.
var (
	errorCode = regexp.MustCompile(`^[a-z_]{1,60}$`)
	bearer    = regexp.MustCompile(`^[A-Za-z0-9._~+/-]+=*$`) // RFC 6750, section 2.1
	anyToken  = regexp.MustCompile(`^[ -~]+$`)               // RFC 6749, appendix A.17
)

// known are the codes of errors that are told: RFC 6749, section 5.2, RFC 8707 and
// what providers use beside.
var known = []string{
	"invalid_request", "invalid_client", "invalid_grant", "unauthorized_client", "unsupported_grant_type", "invalid_scope", "invalid_target",
	"access_denied", "interaction_required", "consent_required", "login_required", "temporarily_unavailable", "server_error", "unsupported_response_type",
}

// maxToken is the length of the longest token that is taken.
const maxToken = 16 << 10

// longest is the longest life of an access token that is believed.
const longest = 365 * 24 * time.Hour

// ask asks the token endpoint for tokens.
func (x *Connections) ask(ctx context.Context, tenant estover.TenantID, s Spec, form url.Values) (t tokens, err error) {
	e, err := x.find(ctx, tenant, s)
	if err != nil {
		return t, err
	}
	if s.Resource != "" {
		form.Set("resource", s.Resource)
	}
	a, err := x.post(ctx, tenant, s, e.token, form)
	if err != nil {
		return t, err
	}
	var m struct {
		Access  string         `json:"access_token"`
		Type    string         `json:"token_type"`
		Expires jsontext.Value `json:"expires_in"`
		Refresh string         `json:"refresh_token"`
		Scope   string         `json:"scope"`
		Error   string         `json:"error"`
	}
	bad := json.Unmarshal(a.Body, &m)
	if a.Status != http.StatusOK || m.Error != "" {
		return t, refused(a.Status, m.Error)
	}
	switch {
	case bad != nil: // something stands between us and it
		return t, &refusal{status: http.StatusBadGateway, what: "its token endpoint does not answer in JSON of the right form"}
	case !strings.EqualFold(m.Type, "bearer"):
		return t, &refusal{what: "its token is not a bearer token"}
	case len(m.Access) > maxToken || !bearer.MatchString(m.Access):
		return t, &refusal{what: "its token has characters that no token has, or is none"}
	case len(m.Refresh) > maxToken || m.Refresh != "" && !anyToken.MatchString(m.Refresh):
		return t, &refusal{what: "its refresh token has characters that no token has"}
	}
	t = tokens{Access: m.Access, Refresh: m.Refresh, scopes: s.Scopes, life: seconds(m.Expires)}
	if m.Scope != "" {
		t.scopes = nil
		for _, one := range strings.Fields(m.Scope) {
			if isScope(one) && len(t.scopes) < maxScopes {
				t.scopes = append(t.scopes, one)
			}
		}
	}
	return t, nil
}

// refused is the refusal in an answer. What it says beside its code may quote what
// was sent, so that nobody gets to see it.
func refused(status int, code string) *refusal {
	if !errorCode.MatchString(code) || !slices.Contains(known, code) {
		code = ""
	}
	r := &refusal{code: code, status: status}
	switch {
	case code != "":
		r.what = fmt.Sprintf("it answers %s", code)
	case status >= 300 && status < 400:
		r.what = "its token endpoint sends elsewhere, which is not followed"
	default:
		r.what = fmt.Sprintf("it answers %d", status)
	}
	return r
}

// seconds reads expires_in, which some providers write as a text.
func seconds(v jsontext.Value) time.Duration {
	n, err := strconv.ParseInt(strings.Trim(string(v), `"`), 10, 64)
	if err != nil || n <= 0 {
		return 0
	}
	return time.Duration(min(n, int64(longest/time.Second))) * time.Second
}
