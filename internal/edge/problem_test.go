package edge_test

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/edge"
)

// A client is told when to ask again after 429 and 503, of whichever error it is known,
// and after nothing else.
func TestAgain(t *testing.T) {
	busy := &estover.Error{Kind: estover.TooMuch, Code: "busy", Detail: "Wait."}
	away := &estover.Error{Kind: estover.Unavailable, Code: "away", Detail: "Wait."}
	never := &estover.Error{Kind: estover.Denied, Code: "never", Detail: "No."}
	for _, c := range []struct {
		err  *estover.Error
		want string
	}{{busy, "1"}, {busy.In(89*time.Second + 1), "90"}, {away.In(2 * time.Second), "2"}, {never.In(time.Minute), ""}} {
		w := httptest.NewRecorder()
		edge.WriteProblem(w, edge.ProblemOf(c.err, ""))
		h := http.Header{}
		if edge.Again(h, w.Code, c.err); h.Get("Retry-After") != c.want || w.Header().Get("Retry-After") != c.want {
			t.Errorf("%d after %s: %q, as a problem %q; want %q", w.Code, c.err.After, h.Get("Retry-After"), w.Header().Get("Retry-After"), c.want)
		}
	}
}
