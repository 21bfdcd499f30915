package server_test

import (
	"maps"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"

	"estover.dev/internal/page/pagetest"
)

// shown are the fields of a value as a browser has them when it has read the page.
func shown(t *testing.T, body string) map[string]string {
	t.Helper()
	doc, err := html.Parse(strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	fields, name := map[string]string{}, ""
	for n := range doc.Descendants() {
		switch {
		case n.Type != html.TextNode:
		case n.Parent.Data == "dt":
			name = n.Data
		case n.Parent.Data == "code" && n.Parent.Parent.Data == "pre":
			fields[name] += n.Data
		}
	}
	return fields
}

// H3: people see a value in a browser after a fresh log-in, for a purpose and if policy
// lets them read it; each time is on record, and nothing else shows it.
func TestRevealAValue(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		const value, lines = "a-value-to-be-<seen>", "one\r\ntwo\r\rthree\n\tfour"
		type object = map[string]any
		h.must(http.MethodPost, "/v1/secrets", object{"path": "kept/key", "class": "restricted", "risk": "low", "description": "of the shop", "owner": "", "destinations": []string{"shop.example"}}, nil)
		h.must(http.MethodPost, "/v1/secret/versions?path=kept/key", object{"fields": object{"value": value, "user": "kept", "lines": lines, "blank": "kept\n"}}, nil)
		enter := func(name string, roles ...string) *visitor {
			t.Helper()
			h.must(http.MethodPost, "/v1/people", object{"name": name, "roles": roles}, nil)
			var invitation struct{ Token string }
			h.must(http.MethodPost, "/v1/people/"+name+"/invitations", map[string]int{}, &invitation)
			at, err := url.Parse("http://" + h.addr)
			if err != nil {
				t.Fatal(err)
			}
			b := pagetest.New(t, httputil.NewSingleHostReverseProxy(at), h.issuer())
			start := b.Send(b.Load("/login/invitation"), "/login/invitation", "invitation", invitation.Token)
			if end := b.Send(start, "/login/enrol", "label", "phone"); end.Status != http.StatusOK {
				t.Fatalf("%s could not enrol: %d %s", name, end.Status, end.Body)
			}
			return &visitor{Browser: b, h: h}
		}
		olga, ada := enter("olga", "operator"), enter("ada", "admin")
		const at = "/secrets?path=kept%2Fkey"
		action := "/secrets/value?path=kept%2Fkey"
		read := func() (purposes []string) {
			t.Helper()
			var list struct {
				Items []struct {
					Outcome string
					Actor   string
					Detail  map[string]any
				}
			}
			h.must(http.MethodGet, "/v1/events?action=secret.read&limit=100", nil, &list)
			for _, e := range list.Items {
				if e.Outcome == "done" {
					purpose, _ := e.Detail["purpose"].(string)
					purposes = append(purposes, purpose)
				}
			}
			return purposes
		}

		// Who may not read it does not, also with a form that they were shown.
		if p := olga.Send(olga.Go(at), action, "purpose", "curiosity"); p.Status != http.StatusForbidden || strings.Contains(p.Body, "a-value-to-be") {
			t.Errorf("an operator sees the value: %d\n%s", p.Status, p.Body)
		}

		page := ada.Go(at)
		if page.Status != http.StatusOK || !strings.Contains(page.Body, "of the shop") || strings.Contains(page.Body, "a-value-to-be") {
			t.Fatalf("the page of a secret: %d\n%s", page.Status, page.Body)
		}
		if p := ada.Load(action); p.Status == http.StatusOK {
			t.Errorf("a link shows the value: %d", p.Status)
		}
		if p := ada.Post(action, url.Values{"purpose": {"a look"}}); p.Status == http.StatusOK || strings.Contains(p.Body, "a-value-to-be") {
			t.Errorf("without the form of the page: %d", p.Status)
		}
		for _, purpose := range []string{"", " ", "\t \u00a0"} {
			if p := ada.Send(page, action, "purpose", purpose); p.Status == http.StatusOK || strings.Contains(p.Body, "a-value-to-be") {
				t.Errorf("for the purpose %q: %d", purpose, p.Status)
			}
			if status, b := h.do(http.MethodPost, "/v1/secret/read?path=kept/key", h.token, object{"purpose": purpose}); status != http.StatusUnprocessableEntity {
				t.Errorf("by the API for the purpose %q: %d %s", purpose, status, b)
			}
		}
		if n := read(); len(n) != 0 {
			t.Fatalf("the value was read for %q", n)
		}
		p := ada.Send(page, action, "purpose", " the shop is locked out ")
		if p.Status != http.StatusOK || !strings.Contains(p.Body, "a-value-to-be-&lt;seen&gt;") || p.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("the value: %d %v\n%s", p.Status, p.Header, p.Body)
		}
		// A browser has the value as it is, and the page says where a copy may not be.
		if got, want := shown(t, p.Body), map[string]string{"value": value, "user": "kept", "lines": lines, "blank": "kept\n"}; !maps.Equal(got, want) {
			t.Errorf("a browser has %q, want %q", got, want)
		}
		for field, warned := range map[string]bool{"value": false, "user": false, "lines": true, "blank": true} {
			if strings.Contains(p.Body, "estover secret get --field "+field+"<") != warned {
				t.Errorf("of %s it is said that a copy may differ: %v, want %v\n%s", field, !warned, warned, p.Body)
			}
		}
		if n := read(); len(n) != 1 || n[0] != "the shop is locked out" {
			t.Errorf("on record the value was read for %q", n)
		}

		// Whoever signed in a while ago does so again first.
		h.clock.Advance(11 * time.Minute)
		page = ada.Go(at)
		p = ada.Post(action, ada.Fill(page, action, "purpose", "once more"))
		if to := p.Header.Get("Location"); p.Status != http.StatusSeeOther || !strings.HasPrefix(to, "/login?again=1") {
			t.Fatalf("eleven minutes after the log-in: %d to %q\n%s", p.Status, to, p.Body)
		}
		if back := ada.byPasskey(p.Header.Get("Location")); back != at {
			t.Errorf("after signing in again one comes back to %q, want %q", back, at)
		}
		if p = ada.Send(ada.Go(at), action, "purpose", "once more"); !strings.Contains(p.Body, "a-value-to-be-&lt;seen&gt;") {
			t.Errorf("after another log-in: %d\n%s", p.Status, p.Body)
		}
		if n := read(); len(n) != 2 {
			t.Errorf("on record the value was read for %q, want twice", n)
		}
		if p := ada.Go("/secrets?path=kept%2Fnothing"); p.Status != http.StatusNotFound {
			t.Errorf("a secret that there is not: %d", p.Status)
		}
		if p := ada.Go("/secrets"); p.Status != http.StatusOK || !strings.Contains(p.Body, `name="path"`) {
			t.Errorf("without a path: %d\n%s", p.Status, p.Body)
		}
		if strings.Contains(h.logs.String(), "a-value-to-be") {
			t.Error("the value is in the log")
		}
	})
}
