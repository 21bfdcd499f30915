package rest_test

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"estover.dev"
	"estover.dev/internal/edge"
	"estover.dev/internal/gateway"
	"estover.dev/internal/gateway/gatewaytest"
	"estover.dev/internal/gateway/rest"
)

// door starts a door with a route "crm" to the URL, which also has the host name
// crm.gateway.example.
func door(t *testing.T, to string, rules edge.TargetRules) (steps *gatewaytest.Steps, d *rest.Door, addr string) {
	t.Helper()
	base, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	host, err := edge.ParseHost(base.Host, 80)
	if err != nil {
		t.Fatal(err)
	}
	steps = gatewaytest.New()
	logger := slog.New(slog.DiscardHandler)
	d = &rest.Door{
		Pipeline: &gateway.Pipeline{Steps: steps, Forwarder: gateway.NewForwarder(&edge.Dialer{}, logger), Live: &gateway.Live{}},
		Caller: func(w http.ResponseWriter, r *http.Request) (*gateway.Conn, bool, error) {
			switch r.Header.Get("Authorization") {
			case "Bearer ours":
				return &gateway.Conn{Caller: estover.Caller{Tenant: "default", Session: "ses_1"}}, false, nil
			case "":
				w.Header().Set("WWW-Authenticate", "Bearer")
				w.WriteHeader(http.StatusUnauthorized)
				return nil, true, nil
			}
			w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
			return nil, false, &estover.Error{Kind: estover.Unknown, Code: "invalid_token", Detail: "The token is not valid."}
		},
		Route: func(_ *gateway.Conn, name string) (rest.Route, error) {
			if name != "crm" {
				return rest.Route{}, &estover.Error{Kind: estover.NotFound, Code: "route_unknown", Detail: "There is no such route."}
			}
			return rest.Route{Name: name, Scheme: base.Scheme, Host: host, Base: base.Path, Rules: rules}, nil
		},
		Named: func(host string) (string, bool) { return "crm", host == "crm.gateway.example" },
	}
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "another handler") })
	s := edge.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if d.Matches(r) {
			d.ServeHTTP(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	}), logger)
	go s.Serve(edge.Listen(ln, nil))
	t.Cleanup(func() { s.Close() })
	return steps, d, ln.Addr().String()
}

func ask(t *testing.T, addr, target, host, token string) (status, location, body string) {
	t.Helper()
	answer := gatewaytest.Talk(t, addr, "GET "+target+" HTTP/1.1\r\nHost: "+host+"\r\n"+token+"Connection: close\r\n\r\n")
	head, body, _ := strings.Cut(answer, "\r\n\r\n")
	for line := range strings.SplitSeq(head, "\r\n") {
		if value, ok := strings.CutPrefix(line, "Location: "); ok {
			location = value
		}
	}
	return strings.TrimPrefix(head, "HTTP/1.1 ")[:3], location, body
}

const ours = "Authorization: Bearer ours\r\n"

func TestRoutes(t *testing.T) {
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", r.Header.Get("X-Lead"))
		fmt.Fprintf(w, "%s %s %s", r.Host, r.RequestURI, r.Header.Get("Authorization")+r.Header.Get("Dpop"))
	}))
	t.Cleanup(up.Close)
	host := strings.TrimPrefix(up.URL, "http://")
	steps, _, addr := door(t, up.URL+"/api", edge.TargetRules{})

	for target, want := range map[string]string{
		"/u/crm/v1/customers/4%202?a=b": "/api/v1/customers/4%202?a=b",
		"/u/crm/":                       "/api/",
		"/u/crm":                        "/api/",
	} {
		status, _, body := ask(t, addr, target, "gateway.example", ours+"DPoP: proof\r\n")
		if status != "200" || body != host+" "+want+" " {
			t.Errorf("%s gives %s %q, want the path %s and no token", target, status, body, want)
		}
		if out := steps.Outcome(t); out.End != gateway.Complete {
			t.Errorf("the outcome is %+v", out)
		}
	}
	if status, _, body := ask(t, addr, "/v1/x?y", "CRM.gateway.example:8443", ours); status != "200" || body != host+" /api/v1/x?y " {
		t.Errorf("the route's own host gives %s %q", status, body)
	}
	steps.Outcome(t)
	if _, _, body := ask(t, addr, "/v1/x?y", "gateway.example", ours); body != "another handler" {
		t.Errorf("another path gives %q", body)
	}
	for _, c := range []struct{ target, token, want string }{
		{"/u/crm/", "", "401"},
		{"/u/crm/", "Authorization: Bearer other\r\n", "401"},
		{"/u/erp/", ours, "404"},
		{"/u//v1", ours, "404"},
		{"/u/crm/../erp/", ours, "400"},
		{"/u/crm//v1", ours, "400"},
		{"/u/crm/..%2f..%2fadmin", ours, "400"},
		{"/u/crm/%2e%2e/admin", ours, "400"},
		{"/u/crm/a;b", ours, "400"},
		{"/u/crm/?a;b", ours, "400"},
		{"http://" + addr + "/u/crm/", ours, "400"},
	} {
		if status, _, body := ask(t, addr, c.target, "gateway.example", c.token); status != c.want {
			t.Errorf("%s with %q gives %s %s, want %s", c.target, c.token, status, body, c.want)
		}
	}
	if v := steps.Violation(t); !errors.Is(v, edge.ErrPath) {
		t.Errorf("the first violation is %v", v)
	}

	_, _, addr = door(t, up.URL, edge.TargetRules{EncodedSlash: true})
	if status, _, body := ask(t, addr, "/u/crm/projects/group%2Fname", "gateway.example", ours); status != "200" || body != host+" /projects/group%2Fname " {
		t.Errorf("a loosened route gives %s %q", status, body)
	}
}

// A stranger is told how to authenticate, and cannot keep the connection by a
// body that does not come.
func TestStrangers(t *testing.T) {
	_, _, addr := door(t, "http://127.0.0.1:1", edge.TargetRules{})
	c := gatewaytest.Dial(t, addr)
	io.WriteString(c, "POST /u/crm/ HTTP/1.1\r\nHost: gateway.example\r\nAuthorization: Bearer other\r\nContent-Length: 100\r\n\r\nhalf")
	all, err := io.ReadAll(c)
	if err != nil {
		t.Errorf("the connection of a stranger whose body does not come: %v, want it closed", err)
	}
	if answer := string(all); !strings.HasPrefix(answer, "HTTP/1.1 401") || !strings.Contains(answer, "Www-Authenticate: Bearer error") {
		t.Errorf("the answer to a stranger is %s", answer)
	}
}

func TestC2LocationsLeadBackHere(t *testing.T) {
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Location", r.Header.Get("X-Lead")) }))
	t.Cleanup(up.Close)
	host := strings.TrimPrefix(up.URL, "http://")
	_, _, addr := door(t, up.URL+"/api", edge.TargetRules{})
	for lead, want := range map[string]string{
		"/api/v2/x?a=%20b#c":              "/u/crm/v2/x?a=%20b#c",
		"/api":                            "/u/crm",
		"y":                               "/u/crm/v1/y",
		"../y?":                           "/u/crm/y?",
		"?q":                              "/u/crm/v1/x?q",
		"http://" + host + "/api/v2":      "/u/crm/v2",
		"//" + host + "/api/v2":           "/u/crm/v2",
		"/login":                          "http://" + host + "/login",
		"/apix":                           "http://" + host + "/apix",
		"../../login":                     "http://" + host + "/login",
		"https://" + host + "/api/v2":     "https://" + host + "/api/v2",
		"http://user@" + host + "/api/v2": "http://user@" + host + "/api/v2",
		"https://evil.example/api/v2?a=b": "https://evil.example/api/v2?a=b",
		"//evil.example/api":              "//evil.example/api",
		"http://" + host + ".evil/api":    "http://" + host + ".evil/api",
		"mailto:somebody@example.com":     "mailto:somebody@example.com",
	} {
		if _, got, _ := ask(t, addr, "/u/crm/v1/x", "gateway.example", ours+"X-Lead: "+lead+"\r\n"); got != want {
			t.Errorf("%s becomes %s, want %s", lead, got, want)
		}
	}
	if _, got, _ := ask(t, addr, "/v1/x", "crm.gateway.example", ours+"X-Lead: /api/v2\r\n"); got != "/v2" {
		t.Errorf("on the route's own host it becomes %s", got)
	}
}
