package server_test

import (
	"net/http"
	"testing"

	"estover.dev/client"
)

// An agent that usually asks for a resource opens and ends its sessions like any
// other: it names the server itself, and gets there what every agent has.
func TestSessionsOfAgentWithUsualResource(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		v := h.visitor() // whose agent has one
		c, err := client.New(h.issuer(), client.Options{ID: v.client, Credential: client.Secret(v.secret)})
		if err != nil {
			t.Fatal(err)
		}
		s, err := c.OpenSession(t.Context(), client.Task{About: "a test"})
		if err != nil {
			t.Fatal(err)
		}
		tok, err := c.Token(t.Context(), client.Want{Session: s.ID})
		if err != nil || tok.Session != s.ID {
			t.Fatalf("the token of the session: %v (%v)", tok, err)
		}
		if res, body := h.get(http.MethodGet, h.issuer()+"/u/crm/v1/items/7", "Authorization", "Bearer "+tok.Reveal()); res.StatusCode != http.StatusOK {
			t.Errorf("a call with what it usually asks for: %d %s", res.StatusCode, body)
		}
		if err := c.EndSession(t.Context(), s, "done"); err != nil {
			t.Fatal(err)
		}
		itself, err := c.Token(t.Context(), client.Want{Resources: []string{h.issuer()}})
		if err != nil {
			t.Fatal(err)
		}
		if res, _ := h.get(http.MethodGet, h.issuer()+"/u/crm/v1/items/7", "Authorization", "Bearer "+itself.Reveal()); res.StatusCode != http.StatusUnauthorized {
			t.Errorf("a call with a token for the server itself: %d, want 401", res.StatusCode)
		}
	})
}
