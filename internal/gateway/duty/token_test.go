package duty

import (
	"net/http/httptest"
	"strings"
	"testing"

	"estover.dev/internal/gateway"
)

// TestHandlesInAnyLetters: a media type is the same in capital letters and with
// parameters (RFC 9110, section 8.3.1), so a handle in such a body is one.
func TestHandlesInAnyLetters(t *testing.T) {
	const handle = TokenPrefix + "a"
	for _, kind := range []string{
		"application/json", "Application/JSON", "application/json; charset=utf-8", "application/json ;charset=utf-8",
		"application/x-www-form-urlencoded", "Application/X-WWW-Form-Urlencoded", "application/x-www-form-urlencoded;charset=UTF-8",
	} {
		form := strings.Contains(strings.ToLower(kind), "form")
		body := `{"token": "` + handle + `"}`
		if form {
			body = "token=" + handle
		}
		r := httptest.NewRequest("POST", "/revoke", strings.NewReader(body))
		r.Header.Set("Content-Type", kind)
		found, err := handles(r, &gateway.Exchange{})
		if err != nil || len(found) != 1 || found[0] != (handed{"token", handle, !form}) {
			t.Errorf("%s: found %+v, %v", kind, found, err)
		}
	}
}
