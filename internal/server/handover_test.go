package server_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"testing"
	"time"
)

// helper is another agent, which may take up tokens that are for the upstream,
// and a token of its own made of the bot's.
type helper struct {
	h          *house
	id, secret string
}

func (h *house) helper() *helper { return h.helperNamed("helper") }

func (h *house) helperNamed(name string) *helper {
	h.t.Helper()
	text := fmt.Sprintf(`
apiVersion: estover.dev/v1
kind: Agent
metadata: {name: %[1]s}
spec:
  blueprint: support
  sponsor: alice
  purposes: [support]
  clearance: confidential
  client: {grant_types: ["urn:ietf:params:oauth:grant-type:token-exchange"], introspect: [%[2]q]}
---
apiVersion: estover.dev/v1
kind: Grant
metadata: {name: %[1]s-reads}
spec: {agent: %[1]s, resource: crm, actions: [item.read, slow.read], purposes: [support], class: confidential}
`, name, h.upstream.URL)
	h.must(http.MethodPost, "/v1/apply", map[string]any{"files": []map[string]string{{"path": "helper.yaml", "text": text}}, "set": name}, nil)
	var c struct {
		ID string `json:"client_id"`
		S  string `json:"client_secret"`
	}
	h.must(http.MethodPost, "/v1/agents/"+name+"/credentials", map[string]string{"kind": "secret"}, &c)
	return &helper{h, c.ID, c.S}
}

func (p *helper) exchange(subject string) string {
	p.h.t.Helper()
	res, err := http.PostForm("http://"+p.h.addr+"/oauth/token", url.Values{
		"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "client_id": {p.id}, "client_secret": {p.secret},
		"subject_token": {subject}, "subject_token_type": {"urn:ietf:params:oauth:token-type:access_token"},
	})
	if err != nil {
		p.h.t.Fatal(err)
	}
	defer res.Body.Close()
	var answer struct {
		Token string `json:"access_token"`
		Error string `json:"error_description"`
	}
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil || answer.Token == "" {
		p.h.t.Fatalf("no token: %d %v %s", res.StatusCode, err, answer.Error)
	}
	return answer.Token
}

// stream opens one that goes on until it is cut.
func (h *house) stream(token string) io.ReadCloser {
	h.t.Helper()
	req, err := http.NewRequest(http.MethodGet, "http://"+h.addr+"/u/crm/v1/slow", nil)
	if err != nil {
		h.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := http.DefaultClient.Do(req)
	if err != nil || res.StatusCode != http.StatusOK {
		h.t.Fatalf("opening a stream: %v %v", res, err)
	}
	return res.Body
}

// What an agent does with a token that was handed to it ends with the agent, and
// with what the token came from, although the session in which it does it goes
// on (M10, M41).
func TestWhatWasHandedOnIsCut(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		p := h.helper()
		ends := func(what string, stream io.ReadCloser, end func()) {
			t.Helper()
			defer stream.Close()
			end()
			at := time.Now()
			ended := make(chan error, 1)
			go func() {
				_, err := io.ReadAll(stream)
				ended <- err
			}()
			select {
			case err := <-ended:
				if err == nil {
					t.Errorf("%s: the stream ended as if it were whole", what)
				}
			case <-time.After(30 * time.Second):
				t.Errorf("%s: the stream goes on", what)
			}
			if took := time.Since(at); took > soon {
				t.Errorf("%s: the stream was cut after %s", what, took)
			}
		}
		token := h.accessToken(h.openSession())
		ends("the token that it came from is revoked", h.stream(p.exchange(token)), func() {
			res, err := http.PostForm("http://"+h.addr+"/oauth/revoke", url.Values{"token": {token}, "client_id": {h.agent}, "client_secret": {h.secret}})
			if err != nil || res.StatusCode != http.StatusOK {
				t.Fatalf("revoking: %v %v", res, err)
			}
		})
		token = h.accessToken(h.openSession())
		stream, other := h.stream(p.exchange(token)), h.stream(token)
		defer other.Close()
		var c struct {
			Zero  int64 `json:"zero_micros"`
			Steps []struct {
				Name  string
				Count int
			}
		}
		ends("the agent is contained", stream, func() {
			h.must(http.MethodPost, "/v1/containments", map[string]string{"agent": "helper", "reason": "a drill"}, &c)
		})
		if len(c.Steps) != 4 || c.Steps[2].Name != "connections" || c.Steps[2].Count != 1 {
			t.Errorf("the containment says %+v, want one connection cut", c)
		}
		if status, body := h.do(http.MethodGet, "/u/crm/v1/items/7", token, nil); status != http.StatusOK {
			t.Errorf("the agent whose session it was: %d %s", status, body)
		}
	})
}
