package oauth

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"

	"estover.dev"
	"estover.dev/internal/edge"
	"estover.dev/internal/token"
)

const userinfoPath = "/oauth/userinfo"

// An Identity is what is known of a person, to tell a client that they let know
// who they are.
type Identity struct {
	Name  string
	Email string // "" if none is known
}

// A userinfo is an answer (OpenID Connect Core, section 5.3.2). The claims are
// those that were agreed to by name of a scope (section 5.4).
type userinfo struct {
	Subject  estover.Subject `json:"sub"`
	Name     string          `json:"name,omitempty"`
	Username string          `json:"preferred_username,omitempty"` // the same: nobody else has the name, and nobody will
	Email    string          `json:"email,omitempty"`
}

// claims are the claims that there are, at this endpoint and in ID tokens.
var claims = []string{
	"iss", "sub", "aud", "exp", "iat", "auth_time", "nonce", "acr", "amr", "at_hash", "grant_id", "name", "preferred_username", "email",
}

// errToken is what is said of whoever comes without an access token that counts.
var errToken = &estover.Error{Kind: estover.Unknown, Code: "invalid_token", Detail: "The access token is not valid."}

// errOpenID refuses an access token that is not for this.
var errOpenID = &estover.Error{Kind: estover.Denied, Code: "insufficient_scope", Detail: "The access token does not tell who somebody is. Ask for one with the scope openid."}

// userinfo tells a client who the person is that it acts for (OpenID Connect
// Core, section 5.3), as far as that person agreed to it.
func (d *Door) userinfo(w http.ResponseWriter, r *http.Request, tenant estover.TenantID) {
	caller, err := d.Callers.Authenticate(r, tenant)
	if err != nil {
		var e *estover.Error
		if errors.As(err, &e) && e.Kind == estover.Unknown && !protocol[e.Code] {
			err = errToken.With("%s", e.Detail).Because(err)
		}
		d.fail(w, r, notRecognised{err})
		return
	}
	if !slices.Contains(caller.Scopes, token.OpenID) || caller.Subject.Kind() != estover.UserKind {
		w.Header().Set("WWW-Authenticate", edge.Need{Scopes: []string{token.OpenID}}.Challenge(r, errOpenID.Code))
		d.fail(w, r, errOpenID)
		return
	}
	known, err := d.Identity(r.Context(), caller)
	if estover.KindOf(err) == estover.Denied {
		err = refusedHere{err}
	}
	if err != nil {
		d.fail(w, r, err)
		return
	}
	u := userinfo{Subject: caller.Subject}
	if slices.Contains(caller.Scopes, token.Profile) {
		u.Name, u.Username = known.Name, known.Name
	}
	if slices.Contains(caller.Scopes, token.Email) {
		u.Email = known.Email
	}
	body, err := json.Marshal(u)
	if err != nil {
		d.fail(w, r, err)
		return
	}
	answer(w, http.StatusOK, jsonType, body)
}
