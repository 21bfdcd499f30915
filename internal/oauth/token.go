package oauth

import (
	"context"
	"net/http"
	"strconv"
	"strings"

	"estover.dev"
	"estover.dev/internal/session"
	"estover.dev/internal/token"
)

// token is the token endpoint: the pipeline of the package comment.
func (d *Door) token(w http.ResponseWriter, r *http.Request, tenant estover.TenantID) {
	issued, err := d.issue(r, tenant)
	if err != nil {
		d.fail(w, r, err)
		return
	}
	b := make([]byte, 0, len(issued.Token)+256)
	b = append(b, `{"access_token":"`...)
	b = append(b, issued.Token...)
	b = append(b, `","token_type":"Bearer","expires_in":`...)
	b = strconv.AppendInt(b, int64(issued.Life.Seconds()), 10)
	if len(issued.Scopes) > 0 { // always told: it may be less than was asked for
		b = append(b, `,"scope":"`...)
		b = append(b, strings.Join(issued.Scopes, " ")...)
		b = append(b, '"')
	}
	b = append(b, `,"session":"`...)
	b = append(b, issued.Session...)
	b = append(b, `"}`...)
	answer(w, http.StatusOK, jsonType, b)
}

// issue takes the steps.
func (d *Door) issue(r *http.Request, tenant estover.TenantID) (token.Issued, error) {
	ctx := r.Context()
	f, err := readForm(r)
	if err != nil {
		return token.Issued{}, err
	}
	asked, err := parse(f)
	if err != nil {
		return token.Issued{}, err
	}
	a, err := d.authenticate(r, tenant, f)
	if err != nil {
		return token.Issued{}, err
	}
	want := token.Request{
		Caller: a.caller, Client: a.client, Method: a.method, Credential: a.credential, Use: a.use,
		Scopes: asked.scopes, Resources: asked.resources,
	}
	want.Proof, err = grantTypes[asked.grantType].prove(ctx, d, a, asked.own)
	if err != nil {
		return token.Issued{}, d.Tokens.Refuse(ctx, want, err)
	}
	if !a.client.May(asked.grantType) {
		return token.Issued{}, d.Tokens.Refuse(ctx, want, errMayNot)
	}
	if want.Session, err = d.session(ctx, a, asked); err != nil {
		return token.Issued{}, d.Tokens.Refuse(ctx, want, err)
	}
	return d.Tokens.Issue(ctx, want)
}

// session is the task that the token will belong to: the named one, or the one
// that the agent has for requests that name none.
func (d *Door) session(ctx context.Context, a authenticated, asked request) (token.Session, error) {
	if asked.session == "" {
		// Opening a session is an effect, and an assertion that was presented
		// before has none.
		return d.Sessions.Ambient(ctx, a.caller, a.client, asked.purpose, func() error {
			return d.Tokens.IsUsed(ctx, a.caller.Tenant, a.use)
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
