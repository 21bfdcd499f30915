package server_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"testing"

	"estover.dev/internal/db/dbtest"
)

// mint asks the token service as the agent.
func (h *house) mint(form url.Values) (token string) {
	h.t.Helper()
	form.Set("grant_type", "client_credentials")
	form.Set("client_id", h.agent)
	form.Set("client_secret", h.secret)
	res, err := http.PostForm("http://"+h.addr+"/oauth/token", form)
	if err != nil {
		h.t.Fatal(err)
	}
	defer res.Body.Close()
	var answer struct {
		Token string `json:"access_token"`
		Error string `json:"error_description"`
	}
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil || answer.Token == "" {
		h.t.Fatalf("no token: %d %v %s", res.StatusCode, err, answer.Error)
	}
	return answer.Token
}

// An agent that asked for less gets no more: a token of one action is good for
// that action alone (M4).
func TestATokenIsGoodForItsScopes(t *testing.T) {
	h := build(t, dbtest.SQLite(t))
	token := h.mint(url.Values{"resource": {h.upstream.URL}, "scope": {"item.read"}})
	if status, body := h.do(http.MethodGet, "/u/crm/v1/items/7", token, nil); status != http.StatusOK {
		t.Errorf("the action of the token: %d %s, want 200", status, body)
	}
	for path, method := range map[string]string{"/u/crm/v1/echo": http.MethodGet, "/u/crm/v1/items/7": http.MethodPut} {
		if status, body := h.do(method, path, token, nil); status != http.StatusForbidden || h.code(body) != "kernel_scope" {
			t.Errorf("%s %s, which the agent is granted and the token is not for: %d %s, want 403 kernel_scope", method, path, status, body)
		}
	}
}
