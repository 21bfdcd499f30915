package jose

import (
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// skew is how far the clock of somebody else may run ahead of ours.
const skew = 10 * time.Second

// An Expected is what the caller knows about the token that it verifies. What
// is left out is refused, not waved through, unless the field says otherwise.
type Expected struct {
	// Now is the instant at which the token must be valid.
	Now time.Time

	// Issuer is who must have made the token. It is not looked at for a DPoP
	// proof, which has none.
	Issuer string

	// Subject is whom the token must be about; "" for anybody.
	Subject string

	// Audiences are our names, one of which the token must be for. It is not
	// looked at for a DPoP proof.
	Audiences []string

	// AnyAudience leaves the audience to the caller, who has a better way to
	// look at it, as introspection does.
	AnyAudience bool

	// Algorithms are those that were arranged with the other side: the
	// registered one of a client, the list of a trust. Without any the
	// purpose's own hold, and a purpose that has none refuses everything.
	Algorithms []string

	// Types are the types in the header that a trust lets a [JWTBearer] token
	// have, "" among them for none. Without any, it is "JWT" or none.
	Types []string
}

// A Header is what the protected header of a token says about it.
type Header struct {
	Algorithm string
	Type      string // as it was written
	KeyID     string
}

// Claims are what a token says, once it is known who said it.
type Claims struct {
	Issuer    string
	Subject   string
	Audience  []string
	Expires   time.Time // zero if it does not say
	NotBefore time.Time // zero if it does not say
	IssuedAt  time.Time // zero if it does not say
	ID        string

	Header Header
	Key    *Key   // the key that the signature was checked with
	Raw    []byte // the claims as they were written, a strict JSON object

	members object
}

// Claim gives one claim as it was written.
func (c *Claims) Claim(name string) (jsontext.Value, bool) { return c.members.get(name) }

// Text gives one claim that is a string, or "".
func (c *Claims) Text(name string) string {
	v, _ := c.members.get(name)
	s, _ := text(v)
	return s
}

// Into reads the claims into a struct with json tags. Names are compared with
// their case.
func (c *Claims) Into(v any) error {
	if err := json.Unmarshal(c.Raw, v); err != nil {
		return ErrInvalid.With("A claim of the token is not of the kind that it should be.").Because(err)
	}
	return nil
}

// A parsed is a token whose form is in order. Nothing that it says is known to
// be true.
type parsed struct {
	signed    string // what the signature is over: the first two parts, as they were written
	signature []byte
	header    Header
	named     bool // the header has a kid
	key       jsontext.Value
	claims    []byte
}

// headerMembers are the members of a header that mean something to somebody.
var headerMembers = []string{
	"alg", "typ", "kid", "jwk", "jku", "x5u", "x5c", "x5t", "x5t#S256", "crit", "b64", "cty", "enc", "zip", "nonce",
}

// refusedMembers are those of them that no token may have here: extensions
// that must be understood and are not, keys from elsewhere, other encodings,
// encryption. The last is refused by its name and by the number of its parts.
var refusedMembers = []string{"crit", "b64", "jku", "x5u", "enc", "zip"}

// parse looks at the form of a token: all that can be said without a key.
func parse(token string) (*parsed, error) {
	if len(token) > maxToken {
		return nil, ErrInvalid.With("The token is longer than %d bytes.", maxToken)
	}
	if strings.Count(token, ".") != 2 {
		return nil, ErrInvalid.With("The token does not have three parts.")
	}
	parts := strings.SplitN(token, ".", 3)
	head, err := decodePart(parts[0])
	if err != nil {
		return nil, err
	}
	p := &parsed{signed: token[:len(parts[0])+1+len(parts[1])]}
	if p.claims, err = decodePart(parts[1]); err != nil {
		return nil, err
	}
	if p.signature, err = decodePart(parts[2]); err != nil {
		return nil, err
	}
	members, err := parseObject(head, headerMembers)
	if err != nil {
		return nil, err
	}
	for _, m := range members {
		ok := true
		switch m.name {
		case "alg":
			p.header.Algorithm, ok = text(m.value)
		case "typ":
			p.header.Type, ok = text(m.value)
		case "kid":
			p.header.KeyID, ok = text(m.value)
			p.named = true
		case "jwk":
			p.key = m.value
		default:
			if slices.Contains(refusedMembers, m.name) {
				return nil, ErrInvalid.With("The header of the token has a member %q.", m.name)
			}
		}
		if !ok {
			return nil, ErrInvalid.With("The member %q of the header is not a string.", m.name)
		}
	}
	return p, nil
}

// An Unverified is what a token claims before anybody has looked at its
// signature: enough to find out whose keys to look with, and never to be
// believed.
type Unverified struct {
	Header   Header
	Issuer   string
	Subject  string
	Audience []string

	parsed *parsed
	claims *Claims
}

// Peek reads a token without verifying it.
func Peek(token string) (Unverified, error) {
	p, err := parse(token)
	if err != nil {
		return Unverified{}, err
	}
	c, err := p.read()
	if err != nil {
		return Unverified{}, err
	}
	return Unverified{p.header, c.Issuer, c.Subject, c.Audience, p, c}, nil
}

// Verify checks the token that was read, without reading it again ([Verify]).
func (u Unverified) Verify(purpose Purpose, keys *Keys, want Expected) (*Claims, error) {
	return u.parsed.verify(purpose, u.claims, keys, want)
}

// Verify checks a token and returns what it says. The keys are those of
// whoever must have signed it; a DPoP proof brings its own, and they are nil.
//
// Whether a token was presented before, and whether what it stands for is
// still alive, is for the caller to ask.
func Verify(purpose Purpose, keys *Keys, token string, want Expected) (*Claims, error) {
	p, err := parse(token)
	if err != nil {
		return nil, err
	}
	return p.verify(purpose, nil, keys, want)
}

// verify checks the token. Its claims are nil if they were not read yet.
func (p *parsed) verify(purpose Purpose, claims *Claims, keys *Keys, want Expected) (*Claims, error) {
	k := kinds[purpose]
	if k == nil {
		return nil, ErrInvalid.With("There are no tokens for %q.", purpose)
	}
	if !k.typed(p.header.Type, want.Types) {
		return nil, ErrInvalid.With("The token is of another type.")
	}
	if !k.accepted(p.header.Algorithm, want.Algorithms) {
		return nil, ErrInvalid.With("The token is signed with an algorithm that is not accepted.")
	}
	key, err := p.signer(purpose, k, keys)
	if err != nil {
		return nil, err
	}
	if claims == nil {
		if claims, err = p.read(); err != nil {
			return nil, err
		}
	}
	c := *claims
	c.Key = key
	return &c, k.check(&c, want)
}

// signer finds the key that signed the token.
func (p *parsed) signer(purpose Purpose, k *kind, keys *Keys) (*Key, error) {
	if k.embedded {
		if p.key == nil {
			return nil, ErrInvalid.With("The proof has no key in its header.")
		}
		key, err := ParseKey(p.key)
		if err != nil {
			return nil, ErrInvalid.With("The key in the header of the proof cannot be used.").Because(err)
		}
		keys = NewKeys(key)
		if !key.fits(p.header.Algorithm) {
			return nil, ErrInvalid.With("The key in the header of the proof does not fit its algorithm.")
		}
		return p.verified(keys.list)
	}
	if p.key != nil {
		return nil, ErrInvalid.With("The token brings a key of its own.")
	}
	candidates := keys.candidates(purpose, k, p.header.KeyID, p.named, p.header.Algorithm)
	if len(candidates) == 0 {
		return nil, ErrUnknownKey
	}
	return p.verified(candidates)
}

// verified is the first of the keys that the signature is from.
func (p *parsed) verified(keys []*Key) (*Key, error) {
	for _, key := range keys {
		if key.verifies(p.header.Algorithm, p.signed, p.signature) {
			return key, nil
		}
	}
	return nil, ErrInvalid.With("The signature of the token is wrong.")
}

// claimMembers are the claims whose names nobody may write in another case.
var claimMembers = []string{
	"iss", "sub", "aud", "exp", "nbf", "iat", "jti", "client_id", "azp", "scope", "resource", "cnf", "act", "may_act",
	"htm", "htu", "ath", "nonce", "events", "sid", "txn", "authorization_details", "grant_id", "grant_epoch", "token_introspection",
}

// read reads the claims, believed or not.
func (p *parsed) read() (*Claims, error) {
	members, err := parseObject(p.claims, claimMembers)
	if err != nil {
		return nil, err
	}
	c := &Claims{Header: p.header, Raw: p.claims, members: members}
	for _, m := range members {
		ok := true
		switch m.name {
		case "iss":
			c.Issuer, ok = text(m.value)
		case "sub":
			c.Subject, ok = text(m.value)
		case "jti":
			c.ID, ok = text(m.value)
		case "aud":
			c.Audience, _, ok = texts(m.value)
		case "exp":
			c.Expires, ok = instant(m.value)
		case "nbf":
			c.NotBefore, ok = instant(m.value)
		case "iat":
			c.IssuedAt, ok = instant(m.value)
		}
		if !ok {
			return nil, ErrInvalid.With("The claim %q is not of the kind that it should be.", m.name)
		}
	}
	return c, nil
}

// check holds the claims against what the purpose demands and the caller
// expects.
func (k *kind) check(c *Claims, want Expected) error {
	for _, name := range k.needs {
		v, ok := c.members.get(name)
		switch {
		case !ok:
			return ErrInvalid.With("The token has no claim %q.", name)
		case name == "exp" || name == "iat": // read already, and a time
		case name == "aud":
			if len(c.Audience) == 0 {
				return ErrInvalid.With("The token is for nobody.")
			}
		default:
			if s, ok := text(v); !ok || s == "" {
				return ErrInvalid.With("The claim %q is not of the kind that it should be.", name)
			}
		}
	}
	for _, name := range k.objects {
		if v, ok := c.members.get(name); !ok || v.Kind() != '{' {
			return ErrInvalid.With("The token has no claim %q.", name)
		}
	}
	for _, name := range k.refuses {
		if _, ok := c.members.get(name); ok {
			return ErrInvalid.With("The token must not have a claim %q.", name)
		}
	}
	if err := k.checkParties(c, want); err != nil {
		return err
	}
	return k.checkTimes(c, want.Now)
}

// checkParties looks at who made the token, whom it is about and whom it is
// for. Names are compared as strings, byte for byte.
func (k *kind) checkParties(c *Claims, want Expected) error {
	if slices.Contains(k.needs, "iss") && (want.Issuer == "" || c.Issuer != want.Issuer) {
		return ErrInvalid.With("The token is from another issuer.")
	}
	if want.Subject != "" && c.Subject != want.Subject {
		return ErrInvalid.With("The token is about another subject.")
	}
	if k.audience == noAudience {
		return nil
	}
	v, _ := c.members.get("aud")
	switch {
	case k.audience == oneAsString && v.Kind() != '"':
		return ErrInvalid.With("The audience of the token is not one string.")
	case k.audience == exactlyOne && len(c.Audience) != 1:
		return ErrInvalid.With("The token has more than one audience.")
	case want.AnyAudience:
		return nil
	case !slices.ContainsFunc(c.Audience, func(a string) bool { return a != "" && slices.Contains(want.Audiences, a) }):
		return ErrInvalid.With("The token is for another audience.")
	}
	return nil
}

// checkTimes looks at the times. A clock that runs ahead of ours is forgiven
// up to the skew; one that runs behind is not, because the sender of a token
// chooses how long it lives.
func (k *kind) checkTimes(c *Claims, now time.Time) error {
	switch soon := now.Add(skew); {
	case now.IsZero():
		return ErrInvalid.With("Nobody said what time it is.")
	case c.NotBefore.After(soon):
		return ErrInvalid.With("The token is not valid yet.")
	case k.window == 0 && c.IssuedAt.After(soon):
		return ErrInvalid.With("The token was issued in the future.")
	case k.window != 0 && c.IssuedAt.Sub(now).Abs() > k.window:
		return ErrInvalid.With("The token was issued more than %s from now.", k.window)
	case k.ahead != 0 && c.Expires.After(soon.Add(k.ahead)):
		return ErrInvalid.With("The token lives longer than %s.", k.ahead)
	}
	if _, ok := c.members.get("exp"); ok && !now.Before(c.Expires) {
		return ErrExpired
	}
	return nil
}
