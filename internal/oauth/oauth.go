// Package oauth is the door of the token service: OAuth 2.1 for machines, as
// far as docs/reference says, on net/http.
//
//	POST {issuer}/oauth/token        RFC 6749, 7523, 8705, 8707, 9068, 9396, 9449
//	GET  {issuer}/oauth/authorize    RFC 6749, 7636, 8707, 9207, 9396, 9449; also POST
//	POST {issuer}/oauth/par          RFC 9126
//	GET  {issuer}/oauth/userinfo     OpenID Connect Core, section 5.3; also POST
//	POST {issuer}/oauth/introspect   RFC 7662, 9701
//	POST {issuer}/oauth/revoke       RFC 7009
//	POST {issuer}/oauth/register     RFC 7591; also GET, PUT, DELETE below it: RFC 7592
//	GET  {issuer}/oauth/jwks         RFC 7517
//	GET  the three places where clients look for metadata: RFC 8414, OpenID
//	     Connect Discovery
//
// The issuer is configured, one for each tenant, and never taken from a
// request. An agent is a client: its client_id is the agent's id. Its scopes
// are the actions that it is granted on a resource, and a resource is named by
// its identifier.
//
// An agent may be the registration of a client that says itself what it is
// ([Documents]). Then the URL of the document is the client_id, and the agent's id
// is none: the client has one identifier, as RFC 6749, section 2.2, has it, and it
// is what assertions, ID tokens (aud), access tokens and introspection (client_id;
// RFC 9068, section 2.2, RFC 7662, section 2.2) say, since a client compares it
// with the one that it knows. But a URL can be given to another agent, and an id
// never is. So whatever is kept (grants, codes, consents, the record) names the
// agent, sub and act do too, and an access token says in client_agent whose it is.
//
// # The pipeline
//
// A token request takes these steps, in this order, whatever its grant type:
//
//  1. edge: address, certificate, request id
//  2. the form, read once into a [request]
//  3. the client: one method, one live credential
//  4. the sender's key, if the token is to be bound to it
//  5. prove: on whose authority the client asks
//  6. the session that the token belongs to
//  7. [token.Tokens.Issue]: everybody alive, narrow, policy, sign, commit
//  8. the answer
//
// A grant type is a row of the table grantTypes with two functions: one reads
// the parameters that only it has, one says what they prove. Neither writes nor
// decides, so no grant type can forget what the others check; what sets one
// apart further is data in its row.
//
// # People
//
// A person lets an agent act for them at the authorization endpoint, on pages
// ([page.Pages]): who asks, for whom, what for, how long. What they agree to is
// kept and asked again when anything is wider. The request is checked in the
// same way wherever it comes from, and anew when the answer comes:
//
//	authorize ─▶ sign in ─▶ agreed before? ─no─▶ page ─▶ consent ─▶ code
//	    ▲                        └────yes────────────────────────────▲
//	   par
//
// Session, grant and code are made in the transaction that records the answer
// ([token.Tokens.Authorize]). The browser is sent nowhere but to a redirect URI
// that is registered, compared as a string.
//
// A client that has no browser to send shows the person a code, which they type
// on a page of ours (RFC 8628). There they are asked the same, and the client
// asks meanwhile whether they have decided:
//
//	device ─▶ code ─▶ person types it ─▶ page ─▶ decision
//	   └─ token endpoint: pending … pending ────────▶ token
//
// Or it names the person, who finds on the same page what waits for them (OpenID
// Connect CIBA).
//
// With the scope openid the client learns who the person is, as far as they
// agreed: an ID token comes with the code, and the rest is told at userinfo, to
// access tokens whose audience is the issuer.
//
// Whatever was presented once (the jti of an assertion) is consumed by the
// transaction that issues the token, or by the event of the refusal.
package oauth

import (
	"context"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"

	"estover.dev"
	"estover.dev/internal/directory"
	"estover.dev/internal/edge"
	"estover.dev/internal/federation"
	"estover.dev/internal/page"
	"estover.dev/internal/session"
	"estover.dev/internal/token"
)

// Config is what the door needs of others.
type Config struct {
	Tokens   *token.Tokens
	Sessions *session.Sessions
	Callers  *edge.Callers      // who asks about tokens with a bearer token
	Trusts   *federation.Trusts // the issuers of others; nil for none
	Mutual   token.Issuer       // the issuer as clients with certificates reach it; "" if that is where all do
	Logger   *slog.Logger       // slog.Default if nil

	// NoCertificates says that no client can show one: there is no TLS here, and
	// nobody in front who tells of it. What needs one is not in the metadata then.
	NoCertificates bool

	// Pages are where people are asked. Nil asks nobody, and there is no
	// authorization endpoint.
	Pages *page.Pages

	// Documents are what clients say of themselves that are known by a URL. Nil
	// knows no such client.
	Documents *Documents

	// Registrations are the clients that register themselves. Nil lets none.
	Registrations Registrations

	// Requester is what people are told of an agent that asks them.
	Requester func(ctx context.Context, tenant estover.TenantID, client string) (Requester, error)

	// Named is the active person whom a client means, by name or id.
	Named func(ctx context.Context, tenant estover.TenantID, hint string) (directory.Person, error)

	// Identity is what is known of the person that the caller acts for.
	Identity func(ctx context.Context, caller estover.Caller) (Identity, error)
}

// A Door answers the requests of OAuth clients.
type Door struct {
	Config
	failures      *edge.Limiter // failed attempts to authenticate, by address and client
	suspects      *edge.Limiter // events about them, by client
	outages       *edge.Limiter // lines in the log about issuers whose keys cannot be had, by trust
	guesses       *edge.Limiter // codes that are typed, by person
	guessed       *edge.Limiter // codes that are typed, by address
	strangers     *edge.Limiter // requests for a code by clients that do not authenticate, by address
	registrations *edge.Limiter // failed attempts to register, by address
	backups       atomic.Int64  // uses of backup credentials
}

// BackupUses is how often clients have authenticated by a credential that is
// kept for an emergency, since the door was made.
func (d *Door) BackupUses() int64 { return d.backups.Load() }

// New is the door.
func New(c Config) *Door {
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	d := &Door{Config: c}
	d.failures = edge.NewLimiter(failuresPerSecond, failuresAtOnce, d.now)
	d.suspects = edge.NewLimiter(suspectsPerSecond, suspectsAtOnce, d.now)
	d.outages = edge.NewLimiter(1.0/60, 1, d.now)
	d.guesses = edge.NewLimiter(guessesPerSecond, guessesAtOnce, d.now)
	d.guessed = edge.NewLimiter(guessedPerSecond, guessedAtOnce, d.now)
	d.registrations = edge.NewLimiter(registrationsPerSecond, registrationsAtOnce, d.now)
	d.strangers = edge.NewLimiter(strangersPerSecond, strangersAtOnce, d.now)
	return d
}

// Mount adds the paths of all tenants to mux.
func (d *Door) Mount(mux *http.ServeMux) error {
	u, err := url.Parse(string(d.Tokens.Issuer))
	if err != nil {
		return err
	}
	for _, path := range []string{u.Path, u.Path + "/t/{tenant}"} {
		mux.Handle(path+tokenPath, d.at(post, anywhere, d.token))
		mux.Handle(path+introspectPath, d.at(post, "", d.introspect))
		mux.Handle(path+revokePath, d.at(post, "", d.revoke))
		if d.Pages != nil {
			mux.Handle(path+parPath, d.at(post, "", d.par))
			mux.Handle(path+devicePath, d.at(post, "", d.device))
			mux.Handle(path+backchannelPath, d.at(post, "", d.backchannel))
			mux.Handle(path+userinfoPath, d.at(get+", "+post, anywhere, d.userinfo))
		}
		if d.Registrations != nil {
			mux.Handle(path+registerPath, d.at(post, "", d.registration))
			mux.Handle(path+registerPath+"/{id}", d.at(get+", "+http.MethodPut+", "+http.MethodDelete, "", d.registration))
		}
		mux.Handle(path+jwksPath, d.at(get, anywhere, d.jwks))
		mux.Handle("/.well-known/oauth-authorization-server"+path, d.at(get, anywhere, d.metadata))
		mux.Handle("/.well-known/openid-configuration"+path, d.at(get, anywhere, d.metadata))
		if path != "" {
			mux.Handle(path+"/.well-known/openid-configuration", d.at(get, anywhere, d.metadata))
		}
	}
	if d.Pages != nil {
		d.Pages.Handle(mux, authorizePath, d.authorize, get, post)
		d.Pages.Handle(mux, consentPath, d.consented, post)
		d.Pages.Handle(mux, ConsentsPath, d.consents, get, post)
		d.Pages.Handle(mux, DevicePage, d.typing, get, post)
		d.Pages.Handle(mux, decisionPath, d.decided, post)
	}
	return nil
}

// The methods of endpoints, and from which pages scripts may use them.
const (
	get, post = http.MethodGet, http.MethodPost
	anywhere  = "*"
)

// known says why a tenant that a path names is none. The default one has one
// name, which is none.
func (d *Door) known(ctx context.Context, tenant estover.TenantID) error {
	if tenant == estover.DefaultTenant {
		return token.ErrNoTenant
	}
	return d.Tokens.Known(ctx, tenant)
}

// at is an endpoint: of its methods, of a tenant that exists, open to scripts of
// other origins or not.
func (d *Door) at(methods, origins string, serve func(http.ResponseWriter, *http.Request, estover.TenantID)) http.Handler {
	each := strings.Split(methods, ", ")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		if origins != "" {
			h.Set("Access-Control-Allow-Origin", origins)
			h.Set("Access-Control-Expose-Headers", "WWW-Authenticate, DPoP-Nonce")
		}
		tenant := estover.TenantID(r.PathValue("tenant"))
		if tenant == "" {
			tenant = estover.DefaultTenant
		} else if err := d.known(r.Context(), tenant); err != nil {
			if _, status := failureOf(err); status >= http.StatusInternalServerError {
				d.fail(w, r, err)
				return
			}
			answer(w, http.StatusNotFound, jsonType, []byte(`{"error":"not_found"}`))
			return
		}
		method := r.Method
		if method == http.MethodHead {
			method = get
		}
		switch {
		case slices.Contains(each, method):
			serve(w, r, tenant)
		case r.Method == http.MethodOptions && origins != "":
			h.Set("Access-Control-Allow-Methods", methods)
			h.Set("Access-Control-Allow-Headers", "Authorization, Content-Type, DPoP")
			h.Set("Access-Control-Max-Age", "3600")
			w.WriteHeader(http.StatusNoContent)
		default:
			h.Set("Allow", methods)
			f, _ := failureOf(errMethod.With("This is done with %s.", methods))
			answer(w, http.StatusMethodNotAllowed, jsonType, []byte(`{"error":"`+f.Error+`","error_description":"`+f.Description+`"}`))
		}
	})
}
