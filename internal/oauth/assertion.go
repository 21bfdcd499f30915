package oauth

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"estover.dev"
	"estover.dev/internal/edge"
	"estover.dev/internal/federation"
	"estover.dev/internal/token"
)

// jwtType is the type of tokens of trusted issuers in an exchange (RFC 8693,
// section 3).
const jwtType = "urn:ietf:params:oauth:token-type:jwt"

// An assertion is the word of a trusted issuer about who a workload is
// (RFC 7523, section 2.1).
type assertion struct {
	raw      string
	workload *federation.Workload // once it is known
	used     bool                 // whether it is among what the request uses up already
}

func parseAssertion(f form) (any, error) {
	x := &assertion{raw: f.get("assertion")}
	if x.raw == "" {
		return x, errRequest.With("The parameter assertion is missing.")
	}
	return x, nil
}

// asserted says what an assertion is good for: the authority of the agent that
// it is about, in the hands of that agent alone, or what a person lets it do.
func asserted(ctx context.Context, d *Door, a authenticated, parsed any) (token.Proof, error) {
	x := parsed.(*assertion)
	if x.workload == nil && federation.IsGrant(x.raw) {
		return d.granted(ctx, a, x.raw)
	}
	if x.workload == nil {
		var err error
		if x.workload, err = d.workload(ctx, a.caller.Tenant, x.raw); err != nil {
			return token.Proof{}, err
		}
	}
	w := x.workload
	if w.Agent != a.client.ID {
		return token.Proof{}, errGrant.With("The assertion is about another agent than the client that presents it.")
	}
	if !a.shows(confirmOf(w)) {
		return token.Proof{}, errGrant.With("The assertion is bound to a key that the request does not show.")
	}
	proof := token.Proof{GrantType: token.Assertion, Subject: a.client.Subject, Foreign: foreign(w), Confirm: confirmOf(w)}
	if !x.used {
		proof.Use = uses(w)
	}
	return proof, nil
}

// workload finds out who an assertion is about.
func (d *Door) workload(ctx context.Context, tenant estover.TenantID, raw string) (*federation.Workload, error) {
	if d.Trusts == nil {
		return &federation.Workload{}, federation.ErrUntrusted
	}
	w, err := d.Trusts.Recognise(ctx, tenant, raw)
	if errors.Is(err, federation.ErrKeys) {
		err = outage{err, string(tenant) + "/" + w.Trust.Name}
	}
	return w, err
}

// foreign is what is recorded of an assertion.
func foreign(w *federation.Workload) token.Foreign {
	return token.Foreign{Trust: w.Trust.Name, Issuer: w.Trust.Issuer, Subject: w.Subject, ID: w.ID}
}

// uses are what an assertion is known by, if it is good once.
func uses(w *federation.Workload) []token.Used {
	if !w.Trust.SingleUse {
		return nil
	}
	return []token.Used{{By: w.Trust.Issuer, Name: w.ID, Expires: w.Expires, Again: token.ErrSpent}}
}

// confirmOf is the key that an assertion is bound to.
func confirmOf(w *federation.Workload) token.Confirm {
	return token.Confirm{Key: w.Key, Certificate: w.Certificate}
}

// anonymous reports whether a request says nothing of its client but perhaps
// the name.
func anonymous(r *http.Request, f form) bool {
	p, err := readClient(r, f)
	return err == nil && p.method == ""
}

// identify takes the assertion's word for who the client is, when the client
// does not authenticate by itself (RFC 7521, section 4.1).
func (d *Door) identify(r *http.Request, tenant estover.TenantID, f form, x *assertion) (a authenticated, err error) {
	ctx, o := r.Context(), edge.OriginOf(r)
	a.caller = estover.Caller{Tenant: tenant, Address: o.Address, Request: o.Request, Strength: estover.BySecret}
	w, err := d.workload(ctx, tenant, x.raw)
	if err == nil {
		a.client, err = d.Tokens.Clients.Client(ctx, tenant, w.Agent)
	}
	switch kind := estover.KindOf(err); {
	case err == nil:
	case kind == estover.Unknown || kind == estover.NotFound: // the agent is there no more
		err = errGrant.Because(err)
		fallthrough
	case kind == estover.Conflict:
		// Failures alone are limited: all workloads of a platform may come from one
		// address, and one that is set up wrongly keeps none of the others out.
		if !d.failures.Allow(edge.AddressKey(o.Address) + "/assertion") {
			return a, errTooOften
		}
		d.mistrust(r, a, w, err)
		return a, err
	default:
		return a, err
	}
	if id := f.get("client_id"); id != "" && id != a.client.Name() {
		err = errGrant.With("The parameter client_id is not the agent that the assertion is about.")
		d.mistrust(r, a, w, err)
		return a, err
	}
	if a.client.Named { // RFC 7591, section 2: the method used is a registered one, and this is none
		err = errClient.With("The client is registered for %s, and an assertion as the grant does not authenticate it.", registered(a.client))
		d.mistrust(r, a, w, err)
		return a, err
	}
	if w.Trust.SingleUse {
		a.caller.Strength = estover.ByKey // whoever copies it comes too late
	}
	x.workload = w
	if confirmOf(w) == (token.Confirm{}) { // else it is used up by whoever shows the key
		x.used, a.use = true, uses(w)
	}
	a.method, a.caller.Subject, a.caller.Client = token.ByAssertion, a.client.Subject, a.client.ID
	return a, nil
}

// registered lists the methods of a client for which they were named.
func registered(c *token.Client) string {
	if len(c.Methods) == 0 {
		return "methods that none of its credentials allows"
	}
	return strings.Join(c.Methods, " and ")
}

// mistrust records that somebody presented an assertion which says nothing here,
// as often as [Door.suspect] does.
func (d *Door) mistrust(r *http.Request, a authenticated, w *federation.Workload, why error) {
	if w.Trust.Name == "" {
		d.Logger.Info("an assertion is of no trusted issuer", "tenant", a.caller.Tenant, "address", a.caller.Address, "request", a.caller.Request, "error", why)
		return
	}
	if !d.suspects.Allow(string(a.caller.Tenant) + "/trust/" + w.Trust.Name) {
		return
	}
	if err := d.Tokens.Mistrusted(r.Context(), a.caller, "trust:"+w.Trust.ID, token.Foreign{Trust: w.Trust.Name, Issuer: w.Trust.Issuer}, why); err != nil {
		d.Logger.Error("a refused assertion could not be recorded", "trust", w.Trust.Name, "error", err)
	}
}
