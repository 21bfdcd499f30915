package oauth

import (
	"context"
	"errors"
	"slices"

	"estover.dev"
	"estover.dev/internal/detail"
	"estover.dev/internal/token"
)

// accessTokenType is the type of our access tokens (RFC 8693, section 3).
const accessTokenType = "urn:ietf:params:oauth:token-type:access_token"

// errGrant is the error for what buys nothing.
var errGrant = &estover.Error{Kind: estover.Conflict, Code: "invalid_grant", Detail: "What the request rests on is not valid, has expired or was revoked."}

// An exchange is the parameters of a token exchange that are its own (RFC 8693,
// section 2.1).
type exchange struct {
	subject, subjectType string
	actor, actorType     string // "" for the client itself
	server               string // the issuer that an assertion is asked for; "" for an access token
}

// parseExchange reads them. There is always exactly one subject token: without
// one there is nothing to exchange, and never the client's own authority in its
// place.
func parseExchange(f form) (any, error) {
	x := exchange{
		subject: f.get("subject_token"), subjectType: f.get("subject_token_type"),
		actor: f.get("actor_token"), actorType: f.get("actor_token_type"),
	}
	switch requested := f.get("requested_token_type"); {
	case x.subject == "":
		return x, errRequest.With("The parameter subject_token is missing.")
	case x.subjectType == "":
		return x, errRequest.With("The parameter subject_token_type is missing.")
	case (x.actor == "") != (x.actorType == ""):
		return x, errRequest.With("An actor token comes with actor_token and actor_token_type.")
	case requested == token.IDJAGType && x.actor != "":
		return x, errRequest.With("Whoever acts at another server is its client: there is no actor token.")
	case requested == token.IDJAGType:
		servers := f.all("audience")
		if len(servers) != 1 {
			return x, errRequest.With("The parameter audience names the one server that the assertion is for.")
		}
		x.server = servers[0]
	case requested != "" && requested != accessTokenType:
		return x, errRequest.With("Tokens are exchanged for access tokens (%s) and assertions (%s) alone.", accessTokenType, token.IDJAGType)
	}
	return x, nil
}

// A party is a token that was presented in an exchange, whoever made it.
type party struct {
	subject  estover.Subject
	chain    []estover.Subject // who acts for the subject, the nearest first
	client   string            // whom it was issued to
	audience []string
	session  string // "" for a token of somebody else
	confirm  token.Confirm
	mayAct   *token.Party
	proof    token.Proof // what it is good for at most
}

// acting is who acts when the token is used.
func (p *party) acting() estover.Subject {
	if len(p.chain) > 0 {
		return p.chain[0]
	}
	return p.subject
}

// exchanged says what a token that is handed on is good for in the hands of the
// client (tokens.md, section 3.2).
func exchanged(ctx context.Context, d *Door, a authenticated, parsed any) (token.Proof, error) {
	x := parsed.(exchange)
	if x.server != "" {
		return d.chained(ctx, a, x)
	}
	if a.method == token.Public && a.confirm.Key == "" {
		return token.Proof{}, errMayNot.With("A client that does not authenticate exchanges tokens with a DPoP proof alone.")
	}
	s, err := d.party(ctx, a, x.subject, x.subjectType, "subject_token")
	if err != nil {
		return token.Proof{}, err
	}
	proof := s.proof
	proof.GrantType, proof.Type = token.Exchange, accessTokenType
	if proof.Handover.How, err = s.presented(a); err != nil {
		return token.Proof{}, err
	}
	if a.shows(s.confirm) { // else it came along an edge, to another key
		proof.Confirm = s.confirm
	}
	actor := a.client.Subject
	if x.actor != "" {
		by, err := d.party(ctx, a, x.actor, x.actorType, "actor_token")
		if err != nil {
			return token.Proof{}, err
		}
		if actor, err = by.actor(a); err != nil {
			return token.Proof{}, err
		}
		proof.Handover.Presenter = proof.Handover.How == token.ByEdge && actor != a.client.Subject
		if by.session != s.session {
			proof.Handover.How = token.ByEdge
		}
		proof.Use = append(proof.Use, by.proof.Use...)
		proof.Strength = token.Weakest(proof.Strength, by.proof.Strength)
	}
	if m := s.mayAct; m != nil && (m.Issuer != d.Tokens.Issuer.Of(a.caller.Tenant) || m.Subject != actor) {
		return token.Proof{}, errGrant.With("The subject token lets somebody else act (may_act).")
	}
	proof.Actors, err = s.with(actor, a.client)
	return proof, err
}

// party finds out what a presented token stands for. It is one of ours, alive
// with all that it rests on, or one of an issuer that a trust names, each under
// its own type alone.
func (d *Door) party(ctx context.Context, a authenticated, raw, kind, parameter string) (party, error) {
	switch {
	case kind == jwtType && slices.Contains(a.client.Exchanges, kind):
		return d.foreigner(ctx, a, raw)
	case kind == token.IDTokenType && parameter == "subject_token" && slices.Contains(a.client.Exchanges, kind):
		return d.identified(ctx, a, raw)
	case kind != accessTokenType:
		return party{}, errRequest.With("The client does not exchange tokens of the type of %s.", parameter)
	}
	t, err := d.Tokens.Verify(ctx, raw)
	if err == nil && t.Tenant != a.caller.Tenant {
		err = token.ErrInvalid
	}
	if estover.KindOf(err) == estover.Unknown {
		err = errGrant.With("The %s is not valid, has expired or was revoked.", parameter).Because(err)
	}
	if err != nil {
		return party{}, err
	}
	grant, err := d.Tokens.Grant(ctx, t.Tenant, t.Grant)
	if err != nil {
		return party{}, err
	}
	from, err := d.Tokens.Clients.Client(ctx, t.Tenant, t.Client)
	if err != nil {
		return party{}, err
	}
	p := party{
		subject: t.Subject, chain: t.Actors, client: t.Client, audience: t.Audience, session: t.Session, confirm: t.Confirm, mayAct: t.MayAct,
	}
	if len(p.chain) == 0 && from.Subject != t.Subject {
		p.chain = []estover.Subject{from.Subject} // it acts for the subject, whether or not the token says so
	}
	p.proof = token.Proof{
		Subject: t.Subject, Parent: grant, Session: t.Session, Expires: t.Expires, Scopes: t.Scopes, Details: t.Details.Limit(), Strength: t.Strength,
		Handover: token.Handover{Token: t.ID, From: from.Subject},
		// A token that is for us alone is for no resource.
		Resources: slices.DeleteFunc(slices.Clone(t.Audience), func(s string) bool { return s == d.Tokens.Issuer.Of(t.Tenant) }),
	}
	if p.proof.Scopes == nil {
		p.proof.Scopes = []string{}
	}
	return p, nil
}

// foreigner finds out what a token of a trusted issuer stands for: all that the
// agent may have whom it is about, in a session of the client's own.
func (d *Door) foreigner(ctx context.Context, a authenticated, raw string) (party, error) {
	w, err := d.workload(ctx, a.caller.Tenant, raw)
	if err != nil {
		return party{}, err
	}
	about, err := d.Tokens.Clients.Client(ctx, a.caller.Tenant, w.Agent)
	if err == nil {
		err = about.Alive(ctx, d.now())
	}
	switch estover.KindOf(err) {
	case estover.Unknown, estover.NotFound, estover.Denied:
		return party{}, errGrant.With("The agent that the token is about may not act.").Because(err)
	}
	if err != nil {
		return party{}, err
	}
	p := party{subject: about.Subject, client: about.ID, confirm: confirmOf(w)}
	if w.MayActSubject != "" {
		p.mayAct = &token.Party{Issuer: w.MayActIssuer, Subject: estover.Subject(w.MayActSubject)}
	}
	p.proof = token.Proof{
		Subject: about.Subject, Expires: w.Expires, Handover: token.Handover{From: about.Subject}, Foreign: foreign(w), Use: uses(w),
		Strength: estover.BySecret, Details: detail.List{},
	}
	if w.Trust.SingleUse {
		p.proof.Strength = estover.ByKey
	}
	return p, nil
}

// identified finds out what an ID token of ours stands for: what the person who
// signed in agreed to beside that, in the hands of the client that it was made
// for. It is bound to no key, so that the client has to authenticate.
func (d *Door) identified(ctx context.Context, a authenticated, raw string) (party, error) {
	if a.method == token.Public {
		return party{}, errMayNot.With("A client that does not authenticate exchanges no ID tokens.")
	}
	g, expires, err := d.Tokens.IDToken(ctx, a.caller.Tenant, a.client, raw)
	if errors.Is(err, token.ErrInvalid) {
		err = errIDToken.Because(err)
	}
	if err != nil {
		return party{}, err
	}
	if len(g.Resources) == 0 {
		return party{}, errGrant.With("The person has agreed to nothing but to say who they are.")
	}
	p := party{subject: g.Subject, chain: g.Actors, client: g.Client, session: g.Session, confirm: g.Confirm}
	p.proof = token.Proof{
		Subject: g.Subject, Parent: g, Session: g.Session, Expires: expires, Scopes: g.Scopes, Resources: g.Resources, Details: g.Details.Limit(),
		Handover: token.Handover{From: a.client.Subject, IDToken: true},
	}
	if p.proof.Scopes == nil {
		p.proof.Scopes = []string{}
	}
	return p, nil
}

// presented says how the token came to the client that presents it. A token
// that is bound to a key stays bound: to the same one, or along an edge to the
// client's own.
func (p *party) presented(a authenticated) (how string, err error) {
	switch {
	case p.client == a.client.ID:
		how = token.ByOwner
	case slices.ContainsFunc(p.audience, func(s string) bool { return slices.Contains(a.client.Introspect, s) }):
		how = token.ByAudience
	default:
		how = token.ByEdge
	}
	switch {
	case a.shows(p.confirm):
	case a.confirm == token.Confirm{}:
		return how, errGrant.With("The subject token is bound to a key. Show it, or a key of the client's own, to which the new token is bound.")
	case a.method == token.Public: // whoever knows its name has a key for it
		return how, errGrant.With("The subject token is bound to a key. A client that does not authenticate has to show that one.")
	default:
		how = token.ByEdge
	}
	return how, nil
}

// shows reports whether the request shows the key that a token is bound to, if it
// is bound.
func (a *authenticated) shows(bound token.Confirm) bool {
	return (bound.Key == "" || bound.Key == a.confirm.Key) && (bound.Certificate == "" || bound.Certificate == a.shown)
}

// actor is who presents the token as their own: the client, or an agent that it
// runs.
func (p *party) actor(a authenticated) (estover.Subject, error) {
	is := p.acting()
	switch {
	case len(p.chain) > 0:
		return "", errGrant.With("The actor token is one of somebody who acts for another.")
	case is.Kind() != estover.AgentKind || is != a.client.Subject && !slices.Contains(a.client.Runs, is.ID()):
		return "", errGrant.With("The actor token is neither the client's nor that of an agent that it runs.")
	case !a.shows(p.confirm):
		return "", errGrant.With("The actor token is bound to a key that the request does not show.")
	}
	return is, nil
}

// with is the chain when the actor takes the token up: one longer, or the same
// if it is who acts already, and the token is the client's own or the actor the
// client itself. A client that runs an agent does not get a token of that agent
// with nobody beside it in the chain. The request adds nothing to it but its own
// actor (RFC 8693, section 4.1).
func (p *party) with(actor estover.Subject, client *token.Client) ([]estover.Subject, error) {
	switch {
	case actor == p.acting() && (p.client == client.ID || actor == client.Subject):
		return p.chain, nil
	case actor == p.subject || slices.Contains(p.chain, actor):
		return nil, errGrant.With("%s stands in the chain of delegation already.", actor)
	case len(p.chain) == token.MaxActors:
		return nil, errGrant.With("The chain of delegation has at most %d actors.", token.MaxActors)
	}
	return append([]estover.Subject{actor}, p.chain...), nil
}
