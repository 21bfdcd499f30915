package oauth

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"estover.dev"
	"estover.dev/internal/token"
)

const backchannelPath = "/oauth/ciba"

// The errors of a request for a person's word (OpenID Connect CIBA, section 13).
var (
	errPerson  = &estover.Error{Kind: estover.Invalid, Code: "unknown_user_id", Detail: "The login_hint is neither the name nor the id of a person here."}
	errMessage = &estover.Error{Kind: estover.Invalid, Code: "invalid_binding_message", Detail: "The binding_message is longer than a person compares, or has characters that cannot be seen."}
)

// maxMessage bounds what a person compares, in characters.
const maxMessage = 100

// maxHint bounds the name of a person, in bytes.
const maxHint = 200

// backchannel has a request wait for a person whom the client names (OpenID
// Connect CIBA, section 7).
func (d *Door) backchannel(w http.ResponseWriter, r *http.Request, tenant estover.TenantID) {
	body, err := d.name(w, r, tenant)
	if err != nil {
		d.fail(w, r, err)
		return
	}
	answer(w, http.StatusOK, jsonType, body)
}

func (d *Door) name(w http.ResponseWriter, r *http.Request, tenant estover.TenantID) ([]byte, error) {
	a, f, err := d.apart(w, r, tenant)
	if err != nil {
		return nil, err
	}
	life, err := lifeOf(f)
	switch {
	case err != nil:
		return nil, err
	case f.get("request") != "":
		return nil, errRequest.With("Requests are not taken as a JWT.")
	case f.get("login_hint_token") != "" || f.get("id_token_hint") != "" || f.get("login_hint") == "":
		return nil, errRequest.With("The person is named by login_hint, and by nothing beside.")
	case !readable(f.get("binding_message")):
		return nil, errMessage
	}
	waiting, err := d.wanted(r.Context(), a, token.Backchannel, f.only(append([]string{"binding_message"}, waitingFields...)...))
	if err != nil {
		return nil, err
	}
	if asked, _ := f.scopes(); !identifying(asked) { // section 7.1
		return nil, errScopes.With("The scope openid is missing: whoever names a person learns whether it was that person who said yes.")
	}
	if len(f.get("login_hint")) > maxHint {
		return nil, errPerson
	}
	person, err := d.Named(r.Context(), tenant, f.get("login_hint"))
	switch kind := estover.KindOf(err); {
	case err != nil && (kind == estover.Fault || kind == estover.Unavailable):
		return nil, err
	case err != nil:
		return nil, errPerson.Because(err)
	}
	waiting.Person = person.ID
	value, err := d.Tokens.Wait(r.Context(), tenant, waiting, a.caller.Address, nil, life)
	if err != nil {
		return nil, err
	}
	return json.Marshal(struct {
		Request  string `json:"auth_req_id"`
		Expires  int    `json:"expires_in"`
		Interval int    `json:"interval"`
	}{value, int(life.Seconds()), int(token.PollInterval.Seconds())})
}

// identifying reports whether the scopes tell a client who a person is.
func identifying(scopes []string) bool {
	identity, _ := token.SplitScopes(scopes)
	return identity != nil
}

// lifeOf is how long a request is to wait: as long as it says, and never longer
// than it may.
func lifeOf(f form) (time.Duration, error) {
	text := f.get("requested_expiry")
	if text == "" {
		return token.BackchannelLife, nil
	}
	seconds, err := strconv.Atoi(text)
	if err != nil || seconds < 1 || strings.HasPrefix(text, "+") {
		return 0, errRequest.With("The requested_expiry is not a number of seconds above zero.")
	}
	return time.Duration(min(seconds, int(token.BackchannelLife/time.Second))) * time.Second, nil
}

// readable reports whether a person can read all of a message, and nothing in it
// changes how the rest is shown.
func readable(message string) bool {
	if utf8.RuneCountInString(message) > maxMessage {
		return false
	}
	for _, c := range message {
		if !unicode.IsPrint(c) {
			return false
		}
	}
	return true
}

// message is what the client shows along with a request that waits.
func message(w *token.Waiting) string {
	f, err := parseForm(w.Request)
	if err != nil {
		return ""
	}
	return f.get("binding_message")
}
