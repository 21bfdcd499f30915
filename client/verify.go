package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// A Verifier checks access tokens at a resource that agents call by themselves:
// JWTs of RFC 9068, by the public keys of the issuer, which are fetched when they
// are needed and kept.
//
// It asks nobody about the token. One whose session, grant or agent was ended
// looks good to it until it expires, which is a quarter of an hour at most. Where
// that is too long, ask the introspection endpoint (RFC 7662), or let agents
// come by way of the gateway, which looks at each call.
//
// Its fields are not changed once it is used. It may be used by many goroutines
// at once.
type Verifier struct {
	// Issuer is whose tokens are accepted, as it is given to [New].
	Issuer string

	// Audience is the resource's own identifier, for which tokens must be.
	Audience string

	// URL is the address under which agents call the resource, as
	// "https://crm.example.com": a DPoP proof is for this scheme and host, since
	// those of a request are its own claim. "" accepts no token that is bound to
	// a key by DPoP.
	URL string

	// Transport is how keys are fetched; nil is http.DefaultTransport.
	Transport http.RoundTripper

	once  sync.Once
	now   func() time.Time
	http  *http.Client
	found shared[metadata]
	keys  keySet
	seen  seen
}

// Claims are what a token says, once it is known who said it.
type Claims struct {
	Subject  string    // whose authority it is: "agent:agt_…" or "user:usr_…"
	Actors   []string  // who acts for the subject, the nearest first (RFC 8693, section 4.1)
	Client   string    // the id of the agent that the token was issued to
	Audience []string  // what it is for
	Scopes   []string  // the actions that it is good for
	Session  string    // the session that it belongs to
	Purpose  string    // what the session is for
	ID       string    // of the token
	Issued   time.Time // when it was issued
	Expires  time.Time // when it ends by itself
	Bound    Bound     // the key that it counts with

	raw []byte
}

// Bound is the key to which a token is bound; the zero Bound for none.
type Bound struct {
	Key         string // the thumbprint of a DPoP key (RFC 9449, section 6.1)
	Certificate string // the SHA-256 of a certificate (RFC 8705, section 3.1)
}

// May reports whether the token is good for an action.
func (c Claims) May(scope string) bool { return slices.Contains(c.Scopes, scope) }

// Into reads the claims into a struct with json tags, for those that are not
// fields of Claims.
func (c Claims) Into(v any) error { return json.Unmarshal(c.raw, v) }

// skew is how far the issuer's clock may run ahead of this one.
const skew = 10 * time.Second

func (v *Verifier) start() {
	v.once.Do(func() {
		if v.now == nil {
			v.now = time.Now
		}
		t := v.Transport
		if t == nil {
			t = http.DefaultTransport
		}
		v.http = plain(t)
	})
}

// Verify checks a token that came by itself: its type, its algorithm (ES256 or
// EdDSA), its signature, its issuer, its audience and its times (RFC 9068,
// section 4). A token that is bound to a key is refused, since nothing shows the
// key; [Verifier.Request] looks for it. A refusal is an [*Error] with the code
// invalid_token; any other error means that the keys could not be fetched.
func (v *Verifier) Verify(ctx context.Context, raw string) (Claims, error) {
	c, err := v.verify(ctx, raw)
	if err == nil && c.Bound != (Bound{}) {
		return Claims{}, refused("The token is bound to a key, which is not shown.")
	}
	return c, err
}

// Request checks the token of a request, and that the request shows the key that
// it is bound to, if it is bound to one: on a connection with the certificate
// (RFC 8705, section 3), or by a DPoP proof (RFC 9449, section 4.3), which this
// verifier accepts once. It asks for no nonce, so that a proof is good for a
// minute around the time at which it says that it was made.
func (v *Verifier) Request(r *http.Request) (Claims, error) {
	values := r.Header["Authorization"]
	if len(values) != 1 {
		return Claims{}, &Error{Status: http.StatusUnauthorized, Description: "There is not exactly one header Authorization."}
	}
	scheme, raw, _ := strings.Cut(values[0], " ")
	dpop := strings.EqualFold(scheme, "DPoP")
	if !dpop && !strings.EqualFold(scheme, "Bearer") {
		return Claims{}, &Error{Status: http.StatusUnauthorized, Description: "The header Authorization is not an access token, as Bearer or as DPoP."}
	}
	c, err := v.verify(r.Context(), raw)
	if err != nil {
		return Claims{}, err
	}
	if its := c.Bound.Certificate; its != "" {
		if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 || hash(r.TLS.PeerCertificates[0].Raw) != its {
			return Claims{}, refused("The token is bound to a certificate, and the request does not come with it.")
		}
	}
	switch {
	case dpop && c.Bound.Key == "":
		return Claims{}, refused("The token is bound to no key. Send it as Bearer.")
	case dpop:
		if err := v.proved(r, raw, c.Bound.Key); err != nil {
			return Claims{}, err
		}
	case c.Bound.Key != "":
		return Claims{}, refused("The token is bound to a key. Send it as DPoP, with a proof.")
	}
	return c, nil
}

func (v *Verifier) verify(ctx context.Context, raw string) (Claims, error) {
	v.start()
	if v.Issuer == "" || v.Audience == "" {
		return Claims{}, errors.New("client: a verifier needs an issuer and an audience")
	}
	t, err := parseJWS(raw, false)
	if err != nil {
		return Claims{}, err
	}
	// RFC 9068, section 4: an ID token is no access token.
	if typ := strings.ToLower(t.head.text("typ")); typ != "at+jwt" && typ != "application/at+jwt" {
		return Claims{}, refused("The token is not an access token.")
	}
	alg := t.head.text("alg")
	if !slices.Contains(algorithms, alg) {
		return Claims{}, refused("The token is signed with an algorithm that is not accepted.")
	}
	key, err := v.key(ctx, t.head.text("kid"))
	if err != nil {
		return Claims{}, err
	}
	if !key.verifies(alg, t.message, t.signature) {
		return Claims{}, refused("The signature of the token is wrong.")
	}
	return v.read(t)
}

// algorithms are those that access tokens and proofs are signed with.
var algorithms = []string{"ES256", "EdDSA", "Ed25519"}

// read holds the claims against what is expected.
func (v *Verifier) read(t *jws) (c Claims, err error) {
	o, now := t.claims, v.now()
	c = Claims{
		Subject: o.text("sub"), Client: o.text("client_id"), Audience: o.texts("aud"), Scopes: strings.Fields(o.text("scope")),
		Session: o.text("sid"), Purpose: o.text("purpose"), ID: o.text("jti"), raw: asJSON(o),
	}
	var expires, issued, from bool
	var notBefore time.Time
	c.Expires, expires = o.instant("exp")
	c.Issued, issued = o.instant("iat")
	notBefore, from = o.instant("nbf")
	switch {
	case o.text("iss") != v.Issuer:
		return Claims{}, refused("The token is from another issuer.")
	case !slices.Contains(c.Audience, v.Audience):
		return Claims{}, refused("The token is for another audience.")
	case !expires || !issued || !from || c.Expires.IsZero() || c.Issued.IsZero() || c.Subject == "" || c.Client == "" || c.ID == "":
		return Claims{}, refused("A claim that an access token has is missing, or not of the kind that it should be.")
	case !now.Before(c.Expires):
		return Claims{}, refused("The token has expired.")
	case c.Issued.After(now.Add(skew)) || notBefore.After(now.Add(skew)):
		return Claims{}, refused("The token is not valid yet.")
	}
	if c.Actors, err = actors(o); err != nil {
		return Claims{}, err
	}
	if raw, ok := o["cnf"]; ok {
		cnf, err := parseObject(raw)
		if err != nil {
			return Claims{}, refused("The claim cnf is not of the kind that it should be.")
		}
		c.Bound = Bound{Key: cnf.text("jkt"), Certificate: cnf.text("x5t#S256")}
		if c.Bound == (Bound{}) { // RFC 7800, section 3.1: not to be read as no key
			return Claims{}, refused("The token is bound in a way that is not known here.")
		}
	}
	return c, nil
}

// maxActors bounds a chain of actors. The server's own is shorter.
const maxActors = 16

// actors reads the chain of actors (RFC 8693, section 4.1).
func actors(o object) (all []string, err error) {
	for {
		raw, ok := o["act"]
		if !ok {
			return all, nil
		}
		if o, err = parseObject(raw); err != nil || o.text("sub") == "" || len(all) == maxActors {
			return nil, refused("The claim act is not of the kind that it should be.")
		}
		all = append(all, o.text("sub"))
	}
}

// The times of keys.
const (
	keysFresh = 10 * time.Minute // how long keys are used without asking again
	keysStale = time.Hour        // how long they are used when asking fails
	keysPause = 30 * time.Second // the least between two times of asking
	keysFirst = time.Second      // the same while there are none at all
)

// A keySet is the keys of the issuer, as they were last fetched.
type keySet struct {
	mu     sync.Mutex
	keys   map[string]*publicKey
	when   time.Time // when they were fetched; zero for never
	asked  time.Time // when they were last asked for
	failed error     // of the last time, if it failed
	flight *flight[map[string]*publicKey]
}

// key is the issuer's key of this id. An id is asked for that is not known, as
// after the issuer has changed its keys, though not often: whoever sends
// nonsense makes nobody ask for it.
func (v *Verifier) key(ctx context.Context, id string) (*publicKey, error) {
	s := &v.keys
	s.mu.Lock()
	now := v.now()
	known, age := s.keys[id], now.Sub(s.when)
	if known != nil && age < keysFresh {
		s.mu.Unlock()
		return known, nil
	}
	wait := keysPause
	if s.when.IsZero() {
		wait = keysFirst
	}
	if s.flight == nil && now.Sub(s.asked) >= wait {
		s.asked = now
		s.flight = fly(ctx, v.fetch, func(f *flight[map[string]*publicKey]) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.flight, s.failed = nil, f.err
			if f.err == nil {
				s.keys, s.when = f.value, now
			}
		})
	}
	f, failed := s.flight, s.failed
	s.mu.Unlock()
	var answer *Error
	var keys map[string]*publicKey
	if f != nil {
		if keys, failed = f.wait(ctx); failed == nil {
			known = keys[id]
		}
	}
	switch {
	case failed != nil && known != nil && age < keysStale:
		return known, nil
	case errors.As(failed, &answer): // about the issuer, and not about the token
		return nil, fmt.Errorf("fetching the keys of %s: %s", v.Issuer, answer)
	case failed != nil:
		return nil, fmt.Errorf("fetching the keys of %s: %w", v.Issuer, failed)
	case known == nil:
		return nil, refused("The token is signed with a key that is not known.")
	}
	return known, nil
}

// fetch reads the key set of the issuer (RFC 7517, section 5). Keys of other
// kinds are passed over; they are not for access tokens.
func (v *Verifier) fetch(ctx context.Context) (map[string]*publicKey, error) {
	m, err := v.found.get(ctx, func(ctx context.Context) (metadata, error) { return discover(ctx, v.http, v.Issuer) })
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.jwks, nil)
	if err != nil {
		return nil, err
	}
	b, err := receive(v.http, req)
	if err != nil {
		return nil, err
	}
	o, err := parseObject(b)
	if err != nil {
		return nil, err
	}
	var list []json.RawMessage
	if err := json.Unmarshal(o["keys"], &list); err != nil || len(list) > 100 {
		return nil, errors.New("the key set has no keys, or too many")
	}
	keys := map[string]*publicKey{}
	for _, raw := range list {
		if k, err := parseKey(raw); err == nil && k.id != "" {
			keys[k.id] = k
		}
	}
	return keys, nil
}
