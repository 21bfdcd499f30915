package oauth

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"estover.dev"
	"estover.dev/internal/agent"
	"estover.dev/internal/edge"
	"estover.dev/internal/jose"
	"estover.dev/internal/token"
)

// errDocument is about what a client says of itself where its client_id leads.
var errDocument = &estover.Error{Kind: estover.Unknown, Code: "client_document_invalid", Detail: "The document of the client is not in order."}

// errFetches is told while the document of a client cannot be had.
var errFetches = &estover.Error{Kind: estover.Unavailable, Code: "temporarily_unavailable", Detail: "The document of the client cannot be fetched at the moment."}

// How long a document serves. What it says of its own life counts in between.
const (
	documentLeast = 5 * time.Minute
	documentMost  = 24 * time.Hour
)

// How often a document is fetched that is not kept, because it is not in order
// or not there.
const (
	fetchesPerSecond, fetchesAtOnce = 0.2, 10 // a URL
)

// maxDocuments bounds the documents that are remembered; beyond it, all are
// fetched anew.
const maxDocuments = 1000

// Documents are what clients say of themselves, where their client_id leads
// (draft-ietf-oauth-client-id-metadata-document-01). They are fetched for agents
// that an administrator has made the registrations of these URLs, and for nobody
// else, so a stranger cannot choose where this server goes.
//
// A document serves for as long as it says, between five minutes and a day. What
// is not in order is never kept, and what was in order no longer than that: while
// a document cannot be had, its client is not known.
type Documents struct {
	fetch func(ctx context.Context, url string) (edge.Document, error)
	now   func() time.Time
	pace  *edge.Limiter

	mu    sync.Mutex
	byURL map[string]*kept
}

// A kept is a document and what is under way to get it.
type kept struct {
	doc   *document
	until time.Time
	under *fetching // nil without one
}

// A fetching is one attempt. Whoever asks in the meantime shares its outcome.
type fetching struct {
	done chan struct{} // closed when it has ended
	doc  *document
	err  error
}

// NewDocuments are the documents that fetch gets, of at most
// [edge.MaxDocument] bytes.
func NewDocuments(fetch func(ctx context.Context, url string) (edge.Document, error), now func() time.Time) *Documents {
	return &Documents{fetch: fetch, now: now, pace: edge.NewLimiter(fetchesPerSecond, fetchesAtOnce, now), byURL: map[string]*kept{}}
}

// Client is the client as its document says, within what its agent may do. base
// is the agent, as [ClientOf] has it.
func (d *Documents) Client(ctx context.Context, base *token.Client) (*token.Client, error) {
	doc, err := d.of(ctx, base.URL)
	if err != nil {
		return nil, err
	}
	c, err := doc.within(base)
	if err != nil {
		d.drop(base.URL, doc)
	}
	return c, err
}

// drop forgets a document that its agent makes nothing of, as one that is not in
// order.
func (d *Documents) drop(at string, doc *document) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if one := d.byURL[at]; one != nil && one.doc == doc {
		one.doc = nil
	}
}

// of is the document at a URL.
func (d *Documents) of(ctx context.Context, at string) (*document, error) {
	d.mu.Lock()
	one := d.byURL[at]
	if one == nil {
		if len(d.byURL) >= maxDocuments {
			clear(d.byURL)
		}
		one = &kept{}
		d.byURL[at] = one
	}
	if one.doc != nil && d.now().Before(one.until) {
		defer d.mu.Unlock()
		return one.doc, nil
	}
	under := one.under
	if under == nil {
		if !d.pace.Allow(at) {
			d.mu.Unlock()
			return nil, errFetches
		}
		under = &fetching{done: make(chan struct{})}
		one.under = under
		go d.get(context.WithoutCancel(ctx), at, one, under)
	}
	d.mu.Unlock()
	select {
	case <-under.done:
		return under.doc, under.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// get fetches a document. What has come to its end does not serve any longer
// because the next one is not there.
func (d *Documents) get(ctx context.Context, at string, one *kept, under *fetching) {
	var life time.Duration
	answer, err := d.fetch(ctx, at)
	switch {
	case err != nil:
		under.err = errFetches.With("The document of the client cannot be fetched: %s", sentence(err)).Because(err)
	case answer.Status != http.StatusOK: // also a redirect, which leads to what somebody else says
		under.err = errDocument.With("The document of the client is not there: the answer has the status %d.", answer.Status)
	case !isJSON(answer.Header.Get("Content-Type")):
		under.err = errDocument.With("The document of the client is not served as application/json.")
	default:
		under.doc, under.err = parseDocument(at, answer.Body)
		life = min(max(documentLife(answer.Header), documentLeast), documentMost)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	one.doc, one.under = under.doc, nil
	one.until = d.now().Add(life)
	close(under.done)
}

// isJSON reports whether a media type is JSON, or a kind of it.
func isJSON(contentType string) bool {
	t, _, err := mime.ParseMediaType(contentType)
	return err == nil && (t == "application/json" || strings.HasPrefix(t, "application/") && strings.HasSuffix(t, "+json"))
}

// documentLife is for how long an answer may be kept, as it says itself
// (RFC 9111, section 5.2.2); 0 if it says nothing.
func documentLife(h http.Header) time.Duration {
	life := time.Duration(-1)
	for _, line := range h.Values("Cache-Control") {
		for directive := range strings.SplitSeq(line, ",") {
			name, value, _ := strings.Cut(strings.TrimSpace(directive), "=")
			switch strings.ToLower(name) {
			case "no-store", "no-cache":
				return 0
			case "max-age", "s-maxage":
				seconds, err := strconv.ParseUint(strings.Trim(value, `"`), 10, 31)
				if err != nil {
					return 0
				}
				if one := time.Duration(seconds) * time.Second; life < 0 || one < life {
					life = one
				}
			}
		}
	}
	if age, err := strconv.ParseUint(h.Get("Age"), 10, 31); err == nil {
		life -= time.Duration(age) * time.Second
	}
	return max(life, 0)
}

// A document is what a client says of itself, as far as it counts here.
type document struct {
	name      string
	redirects []string
	grants    []string
	method    string
	keys      *jose.Keys // nil for none

	dpop, certificate, par bool
	idToken                string
	details                []string // types of authorization details; nil for those that it may use

	digest string
}

// maxClientName bounds a client_name, in characters.
const maxClientName = 100

// parseDocument reads the document that was found at a URL. It is read strictly:
// a name that comes twice is an error. What is not known is not looked at.
func parseDocument(at string, body []byte) (*document, error) {
	var w struct {
		ID          string         `json:"client_id"`
		Name        string         `json:"client_name"`
		Redirects   []string       `json:"redirect_uris"`
		Grants      []string       `json:"grant_types"`
		Method      string         `json:"token_endpoint_auth_method"`
		JWKS        jsontext.Value `json:"jwks"`
		Secret      jsontext.Value `json:"client_secret"`
		Expires     jsontext.Value `json:"client_secret_expires_at"`
		DPoP        bool           `json:"dpop_bound_access_tokens"`
		Certificate bool           `json:"tls_client_certificate_bound_access_tokens"`
		PAR         bool           `json:"require_pushed_authorization_requests"`
		IDToken     string         `json:"id_token_signed_response_alg"`
		Details     []string       `json:"authorization_details_types"` // RFC 9396, section 10
	}
	if len(body) > edge.MaxDocument {
		return nil, errDocument.With("The document of the client has more than %d bytes.", edge.MaxDocument)
	}
	if err := json.Unmarshal(body, &w); err != nil {
		return nil, errDocument.With("The document of the client is not JSON that can be read in one way alone.").Because(err)
	}
	switch {
	case w.ID != at:
		return nil, errDocument.With("The client_id in the document of the client is not the URL of the document.")
	case w.Secret != nil || w.Expires != nil:
		return nil, errDocument.With("The document of the client has a secret in it. What is there is public.")
	}
	d := &document{method: w.Method, dpop: w.DPoP, certificate: w.Certificate, par: w.PAR, idToken: w.IDToken, details: w.Details}
	d.name = clientName(w.Name)
	if w.JWKS != nil {
		keys, err := jose.ParseKeys(w.JWKS)
		if err != nil {
			return nil, errDocument.With("The keys in the document of the client cannot be used: %s", sentence(err)).Because(err)
		}
		d.keys = keys
	}
	switch {
	case d.method == "" && d.keys != nil: // the usual one of RFC 7591 is a secret, which cannot be
		d.method = token.PrivateKeyJWT
	case d.method == "":
		d.method = token.Public
	}
	switch {
	case !slices.Contains(agent.MetadataMethods, d.method):
		return nil, errDocument.With("A client that is known by a URL authenticates by %s.", strings.Join(agent.MetadataMethods, " or "))
	case d.method == token.PrivateKeyJWT && d.keys == nil:
		return nil, errDocument.With("The document of the client has no keys. They stand in the document itself, as jwks.")
	case d.idToken != "" && d.idToken != "RS256" && d.idToken != "ES256":
		return nil, errDocument.With("ID tokens are signed with RS256 or ES256.")
	}
	// Redirect URIs and grant types that nobody could use here are those that the
	// client has for others.
	for _, uri := range w.Redirects {
		if agent.RedirectURI(uri) == "" && !slices.Contains(d.redirects, uri) {
			d.redirects = append(d.redirects, uri)
		}
	}
	d.grants = w.Grants
	if w.Grants == nil {
		d.grants = []string{token.Consented} // RFC 7591, section 2
	}
	d.sum()
	return d, nil
}

// clientName is the name of a client in one line.
func clientName(s string) string {
	s = strings.Join(strings.Fields(strings.Map(func(r rune) rune {
		if !strconv.IsPrint(r) {
			return ' ' // also what turns the direction of writing
		}
		return r
	}, s)), " ")
	if r := []rune(s); len(r) > maxClientName {
		s = string(r[:maxClientName]) + "…"
	}
	return s
}

// sum makes the digest: of everything that counts, in an order of its own.
func (d *document) sum() {
	var keys []string
	if d.keys != nil {
		for _, k := range d.keys.All() {
			keys = append(keys, k.Thumbprint)
		}
	}
	slices.Sort(keys)
	redirects, grants := slices.Sorted(slices.Values(d.redirects)), slices.Sorted(slices.Values(d.grants))
	all := []any{d.name, redirects, grants, d.method, keys, d.dpop, d.certificate, d.par, d.idToken}
	if d.details != nil {
		all = append(all, slices.Sorted(slices.Values(d.details)))
	}
	b, err := json.Marshal(all)
	if err != nil {
		panic("oauth: a document that cannot be JSON: " + err.Error())
	}
	sum := sha256.Sum256(b)
	d.digest = hex.EncodeToString(sum[:])
}

// within is the client that says this of itself, as far as its agent may go: the
// document can name less than the agent's settings, and never more.
func (d *document) within(base *token.Client) (*token.Client, error) {
	c := *base
	c.Said = &token.Said{Name: d.name, Digest: d.digest}
	if !slices.Contains(base.Methods, d.method) {
		return nil, errDocument.With("The agent of this client does not authenticate by %s.", d.method)
	}
	c.Methods, c.KeySets = []string{d.method}, nil
	if d.method == token.PrivateKeyJWT {
		c.KeySets = []token.KeySet{{Keys: d.keys}}
	}
	c.GrantTypes = both(base.GrantTypes, d.grants)
	c.Redirects = d.redirects
	if base.Redirects != nil {
		c.Redirects = both(base.Redirects, d.redirects)
	}
	if c.May(token.Consented) && len(c.Redirects) == 0 {
		return nil, errDocument.With("The document of the client names no redirect URI that may be used here.")
	}
	if d.details != nil {
		c.Details = both(base.Details, d.details)
	}
	c.DPoPBound, c.CertificateBound = c.DPoPBound || d.dpop, c.CertificateBound || d.certificate
	c.RequirePAR = c.RequirePAR || d.par
	if c.IDTokenAlgorithm == "" {
		c.IDTokenAlgorithm = d.idToken
	}
	return &c, nil
}

// both is what is in both lists.
func both(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(s string) bool { return !slices.Contains(b, s) })
}

// client is the client with a client_id, as it says itself where that is a URL.
// One that is known by a URL is known by nothing else.
func (d *Door) client(ctx context.Context, tenant estover.TenantID, id string) (*token.Client, error) {
	c, err := d.Tokens.Clients.Client(ctx, tenant, id)
	switch {
	case err != nil:
		return nil, err
	case c.Name() != id, c.URL != "" && d.Documents == nil:
		return nil, token.ErrNoClient
	case c.URL == "":
		return c, nil
	}
	return d.Documents.Client(ctx, c)
}

// who is what a person is told of a client that asks them: of its agent, and
// where it is known by a URL or registered itself, what it says of itself.
func (d *Door) who(ctx context.Context, tenant estover.TenantID, c *token.Client) (Requester, error) {
	who, err := d.Requester(ctx, tenant, c.ID)
	if err != nil || c.URL == "" && !c.Itself {
		return who, err
	}
	u, err := url.Parse(c.URL)
	if err != nil {
		return who, err
	}
	who.Host, who.Itself = u.Host, c.Itself
	if c.Said == nil {
		return who, nil
	}
	who.Calls = c.Said.Name
	who.OnlyLocal = len(c.Redirects) > 0 && !slices.ContainsFunc(c.Redirects, func(uri string) bool { return strings.HasPrefix(uri, "https://") })
	sum := sha256.Sum256([]byte(who.Digest + "\x00" + c.URL + "\x00" + c.Said.Digest))
	who.Digest = hex.EncodeToString(sum[:])
	return who, nil
}

// unknown puts into words, for a person, why a client is none. What it says of
// itself is no secret, and whoever wrote it wants to know what is wrong.
func unknown(err error) error {
	if errors.Is(err, errDocument) {
		return errAsking.With("The application that sent you here says of itself what cannot be. %s", sentence(err)).Because(err)
	}
	return errAsking.Because(err)
}
