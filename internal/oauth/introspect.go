package oauth

import (
	"net/http"
	"slices"
	"strconv"
	"strings"

	"estover.dev"
	"estover.dev/internal/edge"
	"estover.dev/internal/jose"
	"estover.dev/internal/token"
)

// inactive is the answer about every token that the asker may not know, or
// that is none.
const inactive = `{"active":false}`

// introspect answers whether a token is good (RFC 7662), on request as a
// signed token itself (RFC 9701).
func (d *Door) introspect(w http.ResponseWriter, r *http.Request, tenant estover.TenantID) {
	f, err := readForm(r)
	if err != nil {
		d.fail(w, r, err)
		return
	}
	raw := f.get("token")
	if raw == "" {
		d.fail(w, r, errRequest.With("The parameter token is missing."))
		return
	}
	caller, client, err := d.asker(r, tenant, f)
	if err != nil {
		d.fail(w, r, err)
		return
	}
	if client != nil && caller.Grant == "" && slices.Contains(client.Methods, token.Public) {
		d.fail(w, r, errClient.With("A client that does not authenticate asks about no tokens."))
		return
	}
	tok, err := d.Tokens.Introspect(r.Context(), caller, client, raw)
	if err != nil {
		d.fail(w, r, err)
		return
	}
	issuer := d.Tokens.Issuer.Of(tenant)
	body := []byte(inactive)
	if tok != nil {
		body = tok.AppendJSON(make([]byte, 0, 768), issuer)
	}
	if client == nil || !accepts(r.Header["Accept"], introspectionType) {
		answer(w, http.StatusOK, jsonType, body)
		return
	}
	signed, err := d.signed(r, tenant, client.Name(), body)
	if err != nil {
		d.fail(w, r, err)
		return
	}
	answer(w, http.StatusOK, introspectionType, []byte(signed))
}

// signed is an introspection answer for one client (RFC 9701, section 5).
func (d *Door) signed(r *http.Request, tenant estover.TenantID, audience string, body []byte) (string, error) {
	key, err := d.Tokens.Keys.Active(r.Context(), tenant, jose.Introspection)
	if err != nil {
		return "", err
	}
	// Neither the issuer nor a client_id has a character to be escaped.
	b := append(make([]byte, 0, len(body)+128), `{"iss":"`...)
	b = append(b, d.Tokens.Issuer.Of(tenant)...)
	b = append(b, `","aud":"`...)
	b = append(b, audience...)
	b = append(b, `","iat":`...)
	b = strconv.AppendInt(b, d.now().Unix(), 10)
	b = append(b, `,"token_introspection":`...)
	b = append(b, body...)
	return jose.Sign(jose.Introspection, key.Token, append(b, '}'))
}

// accepts reports whether a media type is among those that are accepted by its
// name.
func accepts(headers []string, want string) bool {
	for _, h := range headers {
		for part := range strings.SplitSeq(h, ",") {
			name, _, _ := strings.Cut(part, ";")
			if strings.EqualFold(strings.TrimSpace(name), want) {
				return true
			}
		}
	}
	return false
}

// asker is who asks about a token: a client that authenticates, or a person
// (or a client) with an access token for us. For a person there is no client.
func (d *Door) asker(r *http.Request, tenant estover.TenantID, f form) (estover.Caller, *token.Client, error) {
	if edge.Presents(r) {
		if f.get("client_secret") != "" || f.get("client_assertion") != "" {
			return estover.Caller{}, nil, errRequest.With("The request authenticates in more than one way.")
		}
		caller, err := d.Callers.Authenticate(r, tenant)
		if estover.KindOf(err) == estover.Unknown {
			err = notRecognised{err}
		}
		if err != nil {
			return caller, nil, err
		}
		if caller.Client == "" { // a person by themselves, and not an agent that acts for one
			return caller, nil, nil
		}
		client, err := d.Tokens.Clients.Client(r.Context(), tenant, caller.Client)
		return caller, client, err
	}
	a, err := d.alive(r, tenant, f)
	return a.caller, a.client, err
}

// alive authenticates a client that wants no token: what it presented once is
// consumed here, and it must be allowed to act.
func (d *Door) alive(r *http.Request, tenant estover.TenantID, f form) (authenticated, error) {
	a, err := d.authenticate(r, tenant, f)
	if err != nil {
		return a, err
	}
	if err := d.Tokens.Consume(r.Context(), tenant, a.use); err != nil {
		return a, err
	}
	return a, a.client.Alive(r.Context(), d.now())
}

// revoke ends a token of the client (RFC 7009), or any token for a person who
// may do that. What is not a token of the client's is none: the answer is the
// same. A client proves itself by its credentials: whoever has found one of its
// tokens should not be able to end all of them.
func (d *Door) revoke(w http.ResponseWriter, r *http.Request, tenant estover.TenantID) {
	f, err := readForm(r)
	if err != nil {
		d.fail(w, r, err)
		return
	}
	raw := f.get("token")
	if raw == "" {
		d.fail(w, r, errRequest.With("The parameter token is missing."))
		return
	}
	caller, client, err := d.asker(r, tenant, f)
	if err == nil && client != nil && caller.Grant != "" {
		err = errClient.With("A token does not authenticate a client that ends tokens.")
	}
	if err != nil {
		d.fail(w, r, err)
		return
	}
	if _, err := d.Tokens.Revoke(r.Context(), caller, client, raw); err != nil {
		d.fail(w, r, err)
		return
	}
	answer(w, http.StatusOK, jsonType, []byte("{}"))
}
