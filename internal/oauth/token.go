package oauth

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"estover.dev"
	"estover.dev/internal/edge"
	"estover.dev/internal/session"
	"estover.dev/internal/token"
)

// token is the token endpoint: the pipeline of the package comment.
func (d *Door) token(w http.ResponseWriter, r *http.Request, tenant estover.TenantID) {
	issued, err := d.issue(r, tenant)
	if edge.HasProof(r) || errors.Is(err, edge.ErrProof) {
		w.Header().Set(edge.NonceHeader, d.Callers.Proofs.Nonce(tenant))
	}
	if err != nil {
		d.fail(w, r, err)
		return
	}
	room := rooms.Get().(*[roomSize]byte)
	defer leave(room)
	b := append(room[:0], `{"access_token":"`...)
	b = append(b, issued.Token...)
	kind := "Bearer"
	if issued.Confirm.Key != "" {
		kind = "DPoP" // RFC 9449, section 5
	}
	if issued.Type == token.IDJAGType {
		kind = "N_A" // RFC 8693, section 2.2.1: it is no access token
	}
	b = append(b, `","token_type":"`...)
	b = append(b, kind...)
	b = append(b, `","expires_in":`...)
	b = strconv.AppendInt(b, int64(issued.Life.Seconds()), 10)
	if issued.Type != "" { // RFC 8693, section 2.2.1
		b = append(b, `,"issued_token_type":"`...)
		b = append(b, issued.Type...)
		b = append(b, '"')
	}
	if len(issued.Scopes) > 0 { // always told: it may be less than was asked for
		b = append(b, `,"scope":"`...)
		b = append(b, strings.Join(issued.Scopes, " ")...)
		b = append(b, '"')
	}
	if len(issued.Details) > 0 { // RFC 9396, section 7: likewise
		b = issued.Details.AppendJSON(append(b, `,"authorization_details":`...))
	}
	if issued.Refresh != "" {
		b = append(b, `,"refresh_token":"`...)
		b = append(b, issued.Refresh...)
		b = append(b, '"')
	}
	if issued.IDToken != "" { // OpenID Connect Core, section 3.1.3.3
		b = append(b, `,"id_token":"`...)
		b = append(b, issued.IDToken...)
		b = append(b, '"')
	}
	b = append(b, `,"session":"`...)
	b = append(b, issued.Session...)
	b = append(b, `"}`...)
	answer(w, http.StatusOK, jsonType, b)
}

// issue takes the steps.
func (d *Door) issue(r *http.Request, tenant estover.TenantID) (issued token.Issued, err error) {
	ctx := r.Context()
	f, err := readForm(r)
	if err != nil {
		return token.Issued{}, err
	}
	asked, err := parse(f)
	if err != nil {
		return token.Issued{}, err
	}
	var a authenticated
	if grantTypes[asked.grantType].identifies && anonymous(r, f) {
		a, err = d.identify(r, tenant, f, asked.own.(*assertion))
	} else {
		a, err = d.authenticate(r, tenant, f)
	}
	if err != nil {
		return token.Issued{}, err
	}
	if a.method == token.Public {
		defer func() { d.strange(a, err) }()
	}
	confirm, err := d.sender(r, &a)
	if errors.Is(err, edge.ErrNonce) {
		return token.Issued{}, err // nothing is decided or used up: the client asks again
	}
	want := token.Request{
		Caller: a.caller, Client: a.client, Method: a.method, Credential: a.credential, Use: a.use, Confirm: confirm,
		Scopes: asked.scopes, Resources: asked.resources, Details: asked.details,
	}
	if err != nil {
		return token.Issued{}, d.Tokens.Refuse(ctx, want, err)
	}
	if !a.client.May(asked.grantType) || a.method == token.Public && !grantTypes[asked.grantType].public {
		return token.Issued{}, d.Tokens.Refuse(ctx, want, errMayNot)
	}
	a.confirm, a.shown = confirm, edge.OriginOf(r).Thumbprint()
	want.Proof, err = grantTypes[asked.grantType].prove(ctx, d, a, asked.own)
	if err != nil {
		return token.Issued{}, d.Tokens.Refuse(ctx, want, err)
	}
	if c := want.Proof.Confirm.Certificate; c != "" { // what was bound stays bound
		want.Confirm.Certificate = c
	}
	if want.Session, err = d.session(ctx, a, asked, want.Proof); err != nil {
		return token.Issued{}, d.Tokens.Refuse(ctx, want, err)
	}
	return d.Tokens.Issue(ctx, want)
}

// strange counts what fails in the name of a client that did not authenticate,
// as if that had failed: it may be anybody who asks.
func (d *Door) strange(a authenticated, err error) {
	switch kind := estover.KindOf(err); {
	case err == nil, errors.Is(err, edge.ErrNonce), errors.Is(err, token.ErrPending), kind == estover.Fault, kind == estover.Unavailable:
	default:
		d.failures.Allow(edge.AddressKey(a.caller.Address) + "/" + a.client.ID)
	}
}

// sender is the key that the request shows, to which the token will be bound: a
// DPoP proof, which is good once, or the certificate of the connection
// (RFC 9449, section 5; RFC 8705, section 3).
func (d *Door) sender(r *http.Request, a *authenticated) (c token.Confirm, err error) {
	if edge.HasProof(r) {
		proof, err := d.Callers.Proofs.Check(r, a.caller.Tenant, "")
		if err != nil {
			return c, err
		}
		c.Key = proof.Key
		a.use = append(a.use, proof.Use)
	}
	mutual := a.method == token.TLSClientAuth || a.method == token.SelfSignedTLS
	if a.client.CertificateBound || mutual && c.Key == "" {
		c.Certificate = edge.OriginOf(r).Thumbprint()
	}
	return c, nil
}

// session is the task that the token will belong to: that of what was proven, or
// the named one, or the one that the agent has for requests that name none.
func (d *Door) session(ctx context.Context, a authenticated, asked request, proof token.Proof) (token.Session, error) {
	if proof.Session != "" {
		s, err := d.Sessions.Live(ctx, a.caller.Tenant, proof.Session)
		if err == nil && (asked.session != "" && asked.session != s.ID || asked.purpose != "" && asked.purpose != s.Purpose) {
			err = errRequest.With("The token belongs to the session of the one that it comes from, and has its purpose.")
		}
		return s, err
	}
	if proof.Begins {
		if asked.session != "" {
			return token.Session{}, errRequest.With("A session of its own begins with the token.")
		}
		return d.Sessions.Fresh(a.client, asked.purpose)
	}
	if asked.session == "" {
		// Opening a session is an effect, and an assertion that was presented
		// before has none.
		return d.Sessions.Ambient(ctx, a.caller, a.client, asked.purpose, func() error {
			return d.Tokens.IsUsed(ctx, a.caller.Tenant, slices.Concat(proof.Use, a.use))
		})
	}
	s, err := d.Sessions.Live(ctx, a.caller.Tenant, asked.session)
	switch {
	case err != nil:
		return s, err
	case s.Agent != a.client.ID:
		return s, session.ErrNotFound // another agent's is as good as none
	case asked.purpose != "" && asked.purpose != s.Purpose:
		return s, errRequest.With("The session is for another purpose.")
	}
	return s, nil
}
