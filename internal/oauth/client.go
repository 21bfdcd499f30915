package oauth

import (
	"encoding/base64"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/edge"
	"estover.dev/internal/jose"
	"estover.dev/internal/token"
)

// An authenticated is a client that has proved who it is.
type authenticated struct {
	caller     estover.Caller
	client     *token.Client
	method     string
	credential string
	confirm    token.Confirm // the key that the request shows, to which the token will be bound
	shown      string        // x5t#S256 of the certificate of the connection, bound or not; "" for none
	use        []token.Used  // what it presented once: consumed along with what it asked for
}

// presented is what a request says about who sends it.
type presented struct {
	method    string // "" for a client that only says its name
	id        string
	secret    string
	assertion string

	unverified jose.Unverified // the assertion, as it was read
}

// assertionType is the one type of client assertion (RFC 7523, section 2.2).
const assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

// read finds the one method that a request uses. Two of them are a request
// that is not in order, not a choice (RFC 6749, section 2.3).
func readClient(r *http.Request, f form) (presented, error) {
	named, secret := f.get("client_id"), f.get("client_secret")
	assertion, assertionOf := f.get("client_assertion"), f.get("client_assertion_type")
	p := presented{id: named}
	methods := 0
	switch headers := r.Header["Authorization"]; {
	case len(headers) > 1:
		return p, errRequest.With("There is more than one header Authorization.")
	case len(headers) == 1:
		methods++
		scheme, rest, _ := strings.Cut(headers[0], " ")
		if !strings.EqualFold(scheme, "Basic") {
			return p, errClient.With("Clients do not authenticate by this scheme here.")
		}
		id, password, err := basic(strings.TrimLeft(rest, " "))
		if err != nil {
			return p, err
		}
		p = presented{method: token.SecretBasic, id: id, secret: password}
	}
	if secret != "" {
		methods++
		p = presented{method: token.SecretPost, id: named, secret: secret}
	}
	if assertion != "" || assertionOf != "" {
		methods++
		p = presented{method: token.PrivateKeyJWT, id: named, assertion: assertion}
	}
	switch {
	case methods > 1:
		return p, errRequest.With("The request authenticates the client in more than one way.")
	case p.method == token.SecretBasic && named != "" && named != p.id:
		return p, errRequest.With("The parameter client_id is not the client that authenticates.")
	case p.method == token.PrivateKeyJWT && (assertion == "" || assertionOf != assertionType):
		return p, errRequest.With("A client assertion comes with client_assertion and client_assertion_type, which is %s.", assertionType)
	}
	return p, nil
}

// basic reads the credentials of RFC 7617 in the form of RFC 6749, section
// 2.3.1: each half is encoded as in a form.
func basic(s string) (id, secret string, err error) {
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil {
		return "", "", errClient.With("The header Authorization is not Basic credentials.")
	}
	left, right, ok := strings.Cut(string(b), ":")
	if id, err = url.QueryUnescape(left); err == nil {
		secret, err = url.QueryUnescape(right)
	}
	if !ok || err != nil {
		return "", "", errClient.With("The header Authorization is not Basic credentials, each half encoded as in a form.")
	}
	return id, secret, nil
}

// authenticate finds out which client sends a request. Whether the client may
// act is asked later: it has said who it is either way.
func (d *Door) authenticate(r *http.Request, tenant estover.TenantID, f form) (a authenticated, err error) {
	p, err := readClient(r, f)
	if err != nil {
		return a, err
	}
	o := edge.OriginOf(r)
	a.caller = estover.Caller{Tenant: tenant, Address: o.Address, Request: o.Request}
	if p.method == token.PrivateKeyJWT {
		if err := p.peek(); err != nil {
			return a, err
		}
	}
	if !token.ClientID(p.id) {
		return a, errClient
	}
	// The client is a part of the key, so that one that is set up wrongly keeps
	// nobody else out who comes from the same address.
	from := edge.AddressKey(o.Address) + "/" + p.id
	if d.failures.Exhausted(from) {
		return a, errTooOften
	}
	if err = d.prove(r, &a, p); estover.KindOf(err) == estover.Unknown {
		d.failures.Allow(from)
		d.suspect(r, a, err)
	}
	return a, err
}

// peek finds the client that an assertion is about, which it has yet to prove.
func (p *presented) peek() error {
	unverified, err := jose.Peek(p.assertion)
	if err != nil {
		return errClient.With("The client assertion cannot be read: %s", sentence(err)).Because(err)
	}
	if p.id != "" && p.id != unverified.Subject {
		return errClient.With("The parameter client_id is not the subject of the assertion.")
	}
	p.id, p.unverified = unverified.Subject, unverified
	return nil
}

// prove holds what was presented against what is registered.
func (d *Door) prove(r *http.Request, a *authenticated, p presented) error {
	ctx := r.Context()
	client, err := d.client(ctx, a.caller.Tenant, p.id)
	if err != nil {
		if kind := estover.KindOf(err); kind == estover.NotFound || kind == estover.Unknown {
			if errors.Is(err, errDocument) {
				return err
			}
			return errClient.Because(err)
		}
		return err
	}
	a.client, a.method = client, p.method
	a.caller.Subject, a.caller.Client = client.Subject, client.ID
	if p.method == "" {
		p.method = byCertificate(r, client)
		a.method = p.method
	}
	if p.method == "" && slices.Contains(client.Methods, token.Public) {
		a.method, a.caller.Strength = token.Public, estover.BySecret
		return nil
	}
	if p.method == "" {
		return errClient.With("The client did not authenticate.")
	}
	if !slices.Contains(client.Methods, p.method) {
		return errClient.With("The client is not registered for %s.", p.method)
	}
	switch p.method {
	case token.PrivateKeyJWT:
		err = d.proveByKey(a, p.unverified)
	case token.TLSClientAuth, token.SelfSignedTLS:
		err = d.proveByCertificate(r, a)
	default:
		a.caller.Strength = estover.BySecret
		if a.credential, err = d.Tokens.Clients.Secret(ctx, a.caller.Tenant, client.ID, p.secret); estover.KindOf(err) == estover.Unknown {
			err = errClient.Because(err)
		}
	}
	if err == nil {
		d.Tokens.Clients.Used(a.caller.Tenant, a.credential)
		if slices.Contains(client.Backup, a.credential) {
			d.Logger.Warn("a backup credential was used", "tenant", a.caller.Tenant, "client", client.ID, "credential", a.credential, "address", a.caller.Address)
			d.backups.Add(1)
			err = d.Tokens.BackupUsed(ctx, a.caller, client, a.method, a.credential)
		}
	}
	return err
}

// proveByKey checks an assertion (RFC 7523, section 3, as tightened by
// draft-ietf-oauth-rfc7523bis-10: the audience is the issuer as one string).
// That it was not presented before is made sure of by the transaction that it
// buys something in.
func (d *Door) proveByKey(a *authenticated, assertion jose.Unverified) error {
	issuer := d.Tokens.Issuer.Of(a.caller.Tenant)
	want := jose.Expected{
		Now: d.now(), Issuer: a.client.Name(), Subject: a.client.Name(), Audiences: []string{issuer}, Algorithms: a.client.Algorithms,
	}
	if a.client.LegacyAudience {
		want.Audiences = append(want.Audiences, issuer+tokenPath)
	}
	why := error(jose.ErrUnknownKey)
	for _, set := range a.client.KeySets {
		if !set.Expires.IsZero() && !want.Now.Before(set.Expires) {
			continue
		}
		claims, err := assertion.Verify(jose.ClientAssertion, set.Keys, want)
		if err != nil {
			if errors.Is(why, jose.ErrUnknownKey) {
				why = err
			}
			continue
		}
		if claims.Audience[0] != issuer {
			d.Logger.Warn("a client assertion has the token endpoint as its audience", "tenant", a.caller.Tenant, "client", a.client.ID)
		}
		a.credential, a.caller.Strength = set.Credential, estover.ByKey
		a.use = []token.Used{{By: a.client.ID, Name: claims.ID, Expires: claims.Expires}}
		return nil
	}
	return errClient.With("The client assertion is not accepted: %s", sentence(why)).Because(why)
}

// sentence is what an error says to people.
func sentence(err error) string {
	var e *estover.Error
	if errors.As(err, &e) {
		return e.Detail
	}
	return "it is not valid."
}

// suspect records that somebody failed to be a client that exists, now and
// then: often enough to be noticed, too rarely to fill the log.
func (d *Door) suspect(r *http.Request, a authenticated, why error) {
	if a.client == nil {
		d.Logger.Info("an unknown client failed to authenticate", "tenant", a.caller.Tenant, "address", a.caller.Address, "request", a.caller.Request, "error", why)
		return
	}
	if !d.suspects.Allow(string(a.caller.Tenant) + "/" + a.client.ID) {
		return
	}
	if err := d.Tokens.Unproven(r.Context(), a.caller, a.client, a.method, why); err != nil {
		d.Logger.Error("a failed authentication could not be recorded", "client", a.client.ID, "error", err)
	}
}

// How often failed attempts are let through and recorded.
const (
	failuresPerSecond, failuresAtOnce = 5, 100 // a client at an address
	suspectsPerSecond, suspectsAtOnce = 0.1, 5 // a client
)

func (d *Door) now() time.Time { return d.Tokens.Now() }
