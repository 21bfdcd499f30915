package server_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"estover.dev/attest"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/db/scratch"
	"estover.dev/internal/server"
)

// A house is a server in this process, with somebody who manages it, an
// upstream, and an agent that may use a part of it.
type house struct {
	t      testing.TB
	config server.Config
	addr   string
	token  string // the administrator's
	logs   *syncBuffer
	inside *server.Server
	clock  *dbtest.Clock // that the server goes by
	stop   func()

	upstream *httptest.Server
	key      string // what the upstream wants
	agent    string
	secret   string // the agent's
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func freeAddr(t testing.TB) string {
	t.Helper()
	port, err := scratch.Port()
	if err != nil {
		t.Fatal(err)
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
}

// build starts a server on a database and fills it.
func build(t testing.TB, database string) *house {
	t.Helper()
	h := &house{t: t, key: "crm_live_0123456789abcdef", logs: &syncBuffer{}, addr: freeAddr(t)}
	h.config = server.Config{
		Data: filepath.Join(t.TempDir(), "data"), Database: database, Listen: h.addr, Gateway: freeAddr(t), Plain: true,
	}
	h.start()
	h.enter()
	h.upstream = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPut {
			w.Header().Set("DPoP-Nonce", "the upstream's") // which the agent does not get
		}
		if r.Header.Get("DPoP") != "" {
			http.Error(w, "a proof for somebody else", http.StatusTeapot)
			return
		}
		switch {
		case r.Header.Get("Authorization") != "Bearer "+h.key:
			http.Error(w, "who are you?", http.StatusUnauthorized)
		case r.URL.Path == "/v1/slow":
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		case r.URL.Path == "/v1/echo":
			fmt.Fprint(w, r.Header.Get("Authorization"))
		case strings.HasPrefix(r.URL.Path, "/v1/items/rows-"):
			n, _ := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/v1/items/rows-"))
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"items":[%s]}`, strings.TrimSuffix(strings.Repeat(`{"id":1,"tags":["a","b"]},`, n), ","))
		default:
			fmt.Fprintf(w, `{"path":%q}`, r.URL.Path)
		}
	}))
	t.Cleanup(h.upstream.Close)
	h.apply()
	return h
}

// start runs the server until stop is called or the test ends.
func (h *house) start() {
	h.t.Helper()
	h.run(func() bool {
		res, err := http.Get("http://" + h.addr + "/readyz")
		if err != nil {
			return false
		}
		_ = res.Body.Close()
		return res.StatusCode == http.StatusNoContent
	})
}

// run is start with another way of finding out that the server is ready.
func (h *house) run(ready func() bool) {
	h.t.Helper()
	if h.clock == nil {
		h.clock = &dbtest.Clock{}
	}
	ctx, cancel := context.WithCancel(context.Background())
	s, err := server.OpenAt(ctx, h.config, slog.New(slog.NewTextHandler(h.logs, &slog.HandlerOptions{Level: slog.LevelDebug})), h.clock.Now)
	if err != nil {
		cancel()
		h.t.Fatal(err)
	}
	h.inside = s
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	var once sync.Once
	h.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				h.t.Errorf("the server stopped with %v", err)
			}
		})
	}
	h.t.Cleanup(func() { h.stop() })
	h.until("the server is ready", ready)
}

// soon is how long what is promised within a second may take on a machine that is
// busy with other tests. What is left to a sweep or a time-out takes longer.
const soon = 4 * time.Second

func (h *house) until(what string, ok func() bool) {
	h.t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			h.t.Fatalf("waited for nothing: %s\n%s", what, h.logs)
		}
	}
}

// writeCertificate writes a certificate and its key as an operator would bring
// them.
func writeCertificate(t *testing.T, c tls.Certificate, dir string, certFile, keyFile *string) {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	*certFile, *keyFile = filepath.Join(dir, "given.crt"), filepath.Join(dir, "given.key")
	for file, block := range map[string]*pem.Block{
		*certFile: {Type: "CERTIFICATE", Bytes: c.Certificate[0]}, *keyFile: {Type: "PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func (h *house) enter() {
	h.t.Helper()
	b, err := os.ReadFile(filepath.Join(h.config.Data, "bootstrap-token"))
	if err != nil {
		h.t.Fatal(err)
	}
	var in struct{ Token string }
	h.must(http.MethodPost, "/v1/login", map[string]string{"token": strings.TrimSpace(string(b))}, &in)
	h.token = in.Token
}

// do sends a request with a token and gives status and body.
func (h *house) do(method, path, token string, body any, header ...string) (int, []byte) {
	h.t.Helper()
	var b []byte
	if body != nil {
		var err error
		if b, err = json.Marshal(body); err != nil {
			h.t.Fatal(err)
		}
	}
	req, err := http.NewRequest(method, "http://"+h.addr+path, bytes.NewReader(b))
	if err != nil {
		h.t.Fatal(err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		h.t.Fatal(err)
	}
	defer res.Body.Close()
	out, err := io.ReadAll(res.Body)
	if err != nil {
		h.t.Fatal(err)
	}
	return res.StatusCode, out
}

// must is do as the administrator, and the answer has to be good.
func (h *house) must(method, path string, body, out any) {
	h.t.Helper()
	status, b := h.do(method, path, h.token, body)
	if status >= 300 {
		h.t.Fatalf("%s %s: %d %s", method, path, status, b)
	}
	if out != nil {
		if err := json.Unmarshal(b, out); err != nil {
			h.t.Fatalf("%s %s: %v in %s", method, path, err, b)
		}
	}
}

func (h *house) apply() {
	h.t.Helper()
	host := strings.TrimPrefix(h.upstream.URL, "http://")
	text := fmt.Sprintf(`
apiVersion: estover.dev/v1
kind: Person
metadata: {name: alice}
spec: {roles: [operator]}
---
apiVersion: estover.dev/v1
kind: Person
metadata: {name: ann}
spec: {roles: [auditor]}
---
apiVersion: estover.dev/v1
kind: Secret
metadata: {name: crm/key}
spec: {class: confidential, destinations: ["%s"]}
---
apiVersion: estover.dev/v1
kind: Resource
metadata: {name: crm}
spec:
  base_url: http://%s
  allow_private: [127.0.0.0/8]
  class: confidential
  slots: [{slot: header, name: Authorization, prefix: "Bearer ", secret: crm/key, placeholder: CRM_KEY}]
  actions:
    - {name: item.read, method: GET, path: "/v1/items/{id}"}
    - {name: item.change, method: PUT, path: "/v1/items/{id}"}
    - {name: item.delete, method: DELETE, path: "/v1/items/{id}"}
    - {name: slow.read, method: GET, path: /v1/slow}
    - {name: echo.read, method: GET, path: /v1/echo}
---
apiVersion: estover.dev/v1
kind: Agent
metadata: {name: bot}
spec: {blueprint: support, sponsor: alice, purposes: [support], clearance: confidential}
---
apiVersion: estover.dev/v1
kind: Grant
metadata: {name: bot-reads}
spec: {agent: bot, resource: crm, actions: [item.read, item.change, slow.read, echo.read], purposes: [support], class: confidential}
`, host, host)
	h.must(http.MethodPost, "/v1/apply", map[string]any{"files": []map[string]string{{"path": "company.yaml", "text": text}}}, nil)
	h.must(http.MethodPost, "/v1/secret/versions?path=crm/key", map[string]any{"fields": map[string]string{"value": h.key}}, nil)
	var c struct {
		ID string `json:"client_id"`
		S  string `json:"client_secret"`
	}
	h.must(http.MethodPost, "/v1/agents/bot/credentials", map[string]string{"kind": "secret"}, &c)
	h.agent, h.secret = c.ID, c.S
}

// accessToken gets a token for the upstream, in a session or the ambient one.
func (h *house) accessToken(session string) string {
	h.t.Helper()
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {h.agent}, "client_secret": {h.secret}, "resource": {h.upstream.URL}}
	if session != "" {
		form.Set("session", session)
	}
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

// openSession opens a session of the agent.
func (h *house) openSession() string {
	h.t.Helper()
	var opened struct{ Session struct{ ID string } }
	h.must(http.MethodPost, "/v1/sessions", map[string]string{"agent": "bot", "purpose": "support"}, &opened)
	return opened.Session.ID
}

// invite makes a person log in and gives their token.
func (h *house) invite(name string) string {
	h.t.Helper()
	var invitation, in struct{ Token string }
	h.must(http.MethodPost, "/v1/people/"+name+"/invitations", map[string]int{}, &invitation)
	h.must(http.MethodPost, "/v1/login", map[string]string{"token": invitation.Token}, &in)
	return in.Token
}

// trust is the policy by which evidence is verified, as the server gives it.
func (h *house) trust() *attest.Trust {
	h.t.Helper()
	status, text := h.do(http.MethodGet, "/v1/trust", h.token, nil)
	trust, err := attest.ParseTrust(text)
	if status != http.StatusOK || err != nil {
		h.t.Fatalf("no trust policy: %d %v\n%s", status, err, text)
	}
	return trust
}

func (h *house) code(body []byte) string {
	var p struct{ Code string }
	_ = json.Unmarshal(body, &p)
	return p.Code
}

func each(t *testing.T, test func(t *testing.T, h *house)) {
	dbtest.EachURL(t, func(t *testing.T, url string) { test(t, build(t, url)) })
}

// One task of one agent through the whole of the house: token, decision,
// injected secret, recording, evidence (M28, M29, M40).
func TestTask(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		session := h.openSession()
		token := h.accessToken(session)
		for _, c := range []struct {
			method, path string
			status       int
			body         string
		}{
			{http.MethodGet, "/u/crm/v1/items/7", http.StatusOK, `{"path":"/v1/items/7"}`},
			{http.MethodPut, "/u/crm/v1/items/7", http.StatusOK, `{"path":"/v1/items/7"}`},
			{http.MethodGet, "/u/crm/v1/echo", http.StatusOK, "Bearer " + strings.Repeat("*", len(h.key))},
			{http.MethodDelete, "/u/crm/v1/items/7", http.StatusForbidden, "not_granted"},
			{http.MethodGet, "/u/crm/v1/other", http.StatusForbidden, "unknown_action"},
			{http.MethodGet, "/u/crm/v1/items/est_ph_abcdefgh", http.StatusForbidden, "placeholder_misused"},
			{http.MethodGet, "/u/nothing/v1/items/7", http.StatusUnauthorized, ""},
		} {
			status, body := h.do(c.method, c.path, token, nil)
			if status != c.status || !strings.Contains(string(body), c.body) {
				t.Errorf("%s %s: %d %s, want %d with %s", c.method, c.path, status, body, c.status, c.body)
			}
		}
		if status, body := h.do(http.MethodGet, "/u/crm/v1/items/7", h.token, nil); status != http.StatusUnauthorized {
			t.Errorf("a person's token at a route: %d %s, want 401", status, body)
		}
		h.must(http.MethodPost, "/v1/sessions/"+session+"/end", map[string]string{"cause": "done"}, nil)
		if status, _ := h.do(http.MethodGet, "/u/crm/v1/items/7", token, nil); status != http.StatusUnauthorized {
			t.Errorf("a token of a session that has ended: %d, want 401", status)
		}
		trust := h.trust()
		var report *attest.Report
		h.until("the evidence of the session is complete", func() bool {
			status, file := h.do(http.MethodGet, "/v1/sessions/"+session+"/evidence?disclose=true", h.token, nil)
			if status != http.StatusOK {
				t.Fatalf("no evidence: %d %s", status, file)
			}
			report = attest.Verify(file, trust)
			return report.Step(attest.CompleteStep).Result == attest.Pass
		})
		if !report.OK() || len(report.Calls) != 4 {
			t.Errorf("the evidence of three calls and one that was stopped:\n%s", report)
		}
		if bodies := report.Step(attest.BodiesStep); bodies.Result == attest.Fail {
			t.Errorf("the disclosed bodies: %s", bodies.Detail)
		}
		// An answer that was delivered as it came is disclosed as that. Of one from which a
		// header was taken, or in which the key was masked, what was delivered is, and what
		// came stays a hash.
		apart := "request, delivered. Not in the file: response."
		for i, want := range []string{apart, "request, response.", apart} {
			for _, s := range report.Calls[min(i, len(report.Calls)-1)].Steps {
				if s.Name == attest.BodiesStep && !strings.HasSuffix(s.Detail, want) {
					t.Errorf("the bodies of call %d: %s; want %q at the end", i+1, s.Detail, want)
				}
			}
		}
		h.leaksNothing(h.key, token, h.secret)
	})
}

// leaksNothing looks for values in what the server logged and in its files.
func (h *house) leaksNothing(values ...string) {
	h.t.Helper()
	for _, v := range values {
		if strings.Contains(h.logs.String(), v) {
			h.t.Errorf("the log of the server has %q", v)
		}
		err := filepath.WalkDir(filepath.Dir(h.config.Data), func(p string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return nil // files come and go while the server runs
			}
			if b, err := os.ReadFile(p); err == nil && bytes.Contains(b, []byte(v)) {
				h.t.Errorf("the file %s has %q", filepath.Base(p), v)
			}
			return nil
		})
		if err != nil {
			h.t.Error(err)
		}
	}
}

// Containment: the open stream ends, the next call and the next token fail,
// and the certificate is verified offline (M33).
func TestContain(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		token := h.accessToken(h.openSession())
		req, err := http.NewRequest(http.MethodGet, "http://"+h.addr+"/u/crm/v1/slow", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		stream, err := http.DefaultClient.Do(req)
		if err != nil || stream.StatusCode != http.StatusOK {
			t.Fatalf("opening a stream: %v %v", stream, err)
		}
		defer stream.Body.Close()
		var c struct {
			ID    string
			Zero  int64 `json:"zero_micros"`
			Steps []struct {
				Name  string
				Count int
			}
		}
		h.must(http.MethodPost, "/v1/containments", map[string]string{"agent": "bot", "reason": "a drill"}, &c)
		cut := time.Now()
		if _, err := io.ReadAll(stream.Body); err == nil {
			t.Error("the stream of a contained agent ended as if it were whole")
		}
		if took := time.Since(cut); took > soon {
			t.Errorf("the stream was cut %s after the answer", took)
		}
		if c.Zero <= 0 || len(c.Steps) != 4 || c.Steps[2].Count != 1 {
			t.Errorf("the containment %+v, want four steps, one connection and a time to zero", c)
		}
		if status, body := h.do(http.MethodGet, "/u/crm/v1/items/7", token, nil); status != http.StatusUnauthorized {
			t.Errorf("the next call: %d %s, want 401", status, body)
		}
		res, err := http.PostForm("http://"+h.addr+"/oauth/token", url.Values{"grant_type": {"client_credentials"}, "client_id": {h.agent}, "client_secret": {h.secret}})
		if err != nil || res.StatusCode == http.StatusOK {
			t.Errorf("a token for a contained agent: %v %v", res, err)
		}
		status, certificate := h.do(http.MethodGet, "/v1/containments/"+c.ID+"/certificate", h.token, nil)
		if report := attest.Verify(certificate, h.trust()); status != http.StatusOK || !report.OK() {
			t.Errorf("the certificate: %d\n%s", status, report)
		}
		// The hold is lifted like any other, and nothing else comes back.
		var a struct {
			Holds []struct{ ID, Kind string }
		}
		h.must(http.MethodGet, "/v1/agents/bot", nil, &a)
		if len(a.Holds) != 1 || a.Holds[0].Kind != "quarantined" {
			t.Fatalf("the agent's holds: %+v", a.Holds)
		}
		h.must(http.MethodPost, "/v1/agents/bot/holds/"+a.Holds[0].ID+"/lift", map[string]string{"reason": "the drill is over"}, nil)
		if status, _ := h.do(http.MethodGet, "/u/crm/v1/items/7", token, nil); status != http.StatusUnauthorized {
			t.Errorf("a token of before the containment, after the hold was lifted: %d, want 401", status)
		}
		if status, body := h.do(http.MethodGet, "/u/crm/v1/items/7", h.accessToken(""), nil); status != http.StatusOK {
			t.Errorf("a fresh token after the hold was lifted: %d %s, want 200", status, body)
		}
	})
}

// A hold ends what the agent has under way, and lifting it brings nothing back.
func TestHold(t *testing.T) {
	h := build(t, dbtest.SQLite(t))
	token := h.accessToken(h.openSession())
	var hold struct{ ID string }
	h.must(http.MethodPost, "/v1/agents/bot/holds", map[string]string{"kind": "suspended", "reason": "away"}, &hold)
	h.must(http.MethodPost, "/v1/agents/bot/holds/"+hold.ID+"/lift", map[string]string{"reason": "back"}, nil)
	if status, body := h.do(http.MethodGet, "/u/crm/v1/items/7", token, nil); status != http.StatusUnauthorized {
		t.Errorf("a token of before a hold that was lifted: %d %s, want 401", status, body)
	}
	h.must(http.MethodPost, "/v1/agents/bot/holds", map[string]string{"kind": "retired", "reason": "for good"}, nil)
	var grants struct{ Items []any }
	h.must(http.MethodGet, "/v1/grants?live=true", nil, &grants)
	if len(grants.Items) != 0 {
		t.Errorf("a retired agent has %d live grants, want none", len(grants.Items))
	}
}

// A stopping server loses nothing, and the next one goes on where it was: the
// calls of a session keep their numbers.
func TestRestart(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		session := h.openSession()
		for range 2 {
			token := h.accessToken(session)
			for i := range 5 {
				if status, body := h.do(http.MethodGet, fmt.Sprintf("/u/crm/v1/items/%d", i), token, nil); status != http.StatusOK {
					t.Fatalf("a call: %d %s", status, body)
				}
			}
			h.stop()
			h.start()
		}
		h.must(http.MethodPost, "/v1/sessions/"+session+"/end", map[string]string{}, nil)
		trust := h.trust()
		var report *attest.Report
		h.until("the evidence is complete", func() bool {
			_, file := h.do(http.MethodGet, "/v1/sessions/"+session+"/evidence?disclose=true", h.token, nil)
			report = attest.Verify(file, trust)
			return report.Step(attest.CompleteStep).Result == attest.Pass
		})
		if !report.OK() || len(report.Calls) != 10 {
			t.Errorf("the evidence of ten calls with two restarts between them:\n%s", report)
		}
		var v struct {
			Size, Waiting int64
			Findings      []any
		}
		h.must(http.MethodPost, "/v1/log/verify", map[string]any{}, &v)
		if len(v.Findings) != 0 {
			t.Errorf("the log after two restarts: %+v", v)
		}
	})
}

// Who may do what in the management, door by door.
func TestRoles(t *testing.T) {
	h := build(t, dbtest.SQLite(t))
	operator, auditor, agent := h.invite("alice"), h.invite("ann"), h.apiToken()
	// Nobody's token: its signature is of no matter to who may hear of it.
	foreign := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"ES256"}`)) + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"iss":"https://ci.example"}`)) + ".AAAA"
	for _, c := range []struct {
		method, path               string
		body                       any
		operator, auditor, anAgent int
	}{
		{http.MethodGet, "/v1/agents", nil, 200, 200, 403},
		{http.MethodPost, "/v1/agents", map[string]any{"name": "x", "blueprint": "x", "sponsor": "usr_x", "purposes": []string{"x"}, "clearance": "public"}, 422, 403, 403},
		{http.MethodPost, "/v1/people", map[string]any{"name": "mallory", "roles": []string{"admin"}}, 403, 403, 403},
		{http.MethodPost, "/v1/people/admin/invitations", map[string]any{}, 403, 403, 403},
		{http.MethodGet, "/v1/events", nil, 200, 200, 403},
		{http.MethodGet, "/v1/secrets", nil, 200, 200, 403},
		{http.MethodPost, "/v1/secret/read?path=crm/key", map[string]string{"purpose": "curiosity"}, 403, 403, 403},
		{http.MethodPost, "/v1/policies", map[string]any{"files": []map[string]string{{"path": "a.rego", "text": "package tenant.a\n"}}}, 403, 403, 403},
		{http.MethodGet, "/v1/doctor", nil, 200, 200, 403},
		{http.MethodPost, "/v1/doctor/targets", map[string]string{}, 200, 403, 403},
		{http.MethodGet, "/v1/trusts", nil, 200, 200, 403},
		{http.MethodPut, "/v1/trusts/github", trustIn("bot"), 403, 403, 403},
		{http.MethodDelete, "/v1/trusts/tru_none", nil, 403, 403, 403},
		{http.MethodPost, "/v1/tokens/explain", map[string]string{"token": agent}, 200, 200, 200},
		{http.MethodPost, "/v1/tokens/explain", map[string]string{"token": foreign}, 200, 200, 403},
		{http.MethodPost, "/v1/tokens/explain", map[string]string{"token": "junk"}, 404, 404, 404},
		// The last one: the agent that asks has been cut off by then.
		{http.MethodPost, "/v1/containments", map[string]string{"agent": "bot", "reason": "x"}, 200, 403, 401},
	} {
		for _, who := range []struct {
			name, token string
			want        int
		}{{"operator", operator, c.operator}, {"auditor", auditor, c.auditor}, {"agent", agent, c.anAgent}, {"nobody", "", 401}} {
			if status, body := h.do(c.method, c.path, who.token, c.body); status != who.want {
				t.Errorf("%s %s by the %s: %d %s, want %d", c.method, c.path, who.name, status, body, who.want)
			}
		}
	}
}

// apiToken is a token of the agent for our own API.
func (h *house) apiToken() string {
	h.t.Helper()
	res, err := http.PostForm("http://"+h.addr+"/oauth/token", url.Values{"grant_type": {"client_credentials"}, "client_id": {h.agent}, "client_secret": {h.secret}})
	if err != nil {
		h.t.Fatal(err)
	}
	defer res.Body.Close()
	var answer struct {
		Token string `json:"access_token"`
	}
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil || answer.Token == "" {
		h.t.Fatalf("no token: %d %v", res.StatusCode, err)
	}
	return answer.Token
}

// A request that is sent again with its key is done once, and answered as the
// first time, secret and all; the answer is nobody else's.
func TestIdempotency(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		const path = "/v1/agents/bot/credentials"
		in := map[string]string{"kind": "secret", "label": "retried"}
		var wg sync.WaitGroup
		answers := make(chan string, 16)
		for range 16 {
			wg.Go(func() {
				status, body := h.do(http.MethodPost, path, h.token, in, "Idempotency-Key", "k1")
				switch {
				case status < 300:
					answers <- string(body)
				case h.code(body) != "idempotency_in_progress":
					t.Errorf("the same request again: %d %s", status, body)
				}
			})
		}
		wg.Wait()
		close(answers)
		first := <-answers
		for other := range answers {
			if other != first {
				t.Errorf("the same request was answered %s and %s", first, other)
			}
		}
		if _, again := h.do(http.MethodPost, path, h.token, in, "Idempotency-Key", "k1"); string(again) != first || !strings.Contains(first, "est_cs_") {
			t.Errorf("once more: %s, want %s", again, first)
		}
		var list struct{ Items []any }
		h.must(http.MethodGet, path, nil, &list)
		if len(list.Items) != 2 {
			t.Errorf("the agent has %d credentials, want the first and one more", len(list.Items))
		}
		in["label"] = "another"
		if status, body := h.do(http.MethodPost, path, h.token, in, "Idempotency-Key", "k1"); status != http.StatusConflict || h.code(body) != "idempotency_key_reused" {
			t.Errorf("another request under the same key: %d %s", status, body)
		}
		if status, body := h.do(http.MethodPost, path, h.invite("alice"), map[string]string{"kind": "secret", "label": "retried"}, "Idempotency-Key", "k1"); status >= 300 || string(body) == first {
			t.Errorf("somebody else with the same key: %d, and the answer is the first one's: %v", status, string(body) == first)
		}
		var made struct {
			Secret string `json:"client_secret"`
		}
		if err := json.Unmarshal([]byte(first), &made); err != nil {
			t.Fatal(err)
		}
		h.leaksNothing(made.Secret)
	})
}

// What is wrong is said as a problem, with what to do.
func TestProblems(t *testing.T) {
	h := build(t, dbtest.SQLite(t))
	for _, c := range []struct {
		method, path string
		body         any
		status       int
		says         string
	}{
		{http.MethodGet, "/v1/nothing", nil, 404, "openapi.json"},
		{http.MethodGet, "/v1/agents/nobody", nil, 404, "estover agent list"},
		{http.MethodGet, "/v1/agents?limit=1000", nil, 422, "limit"},
		{http.MethodGet, "/v1/agents?bogus=1", nil, 422, "bogus"},
		{http.MethodGet, "/v1/sessions?cursor=x", nil, 422, "cursor"},
		{http.MethodGet, "/v1/events?cursor=-1", nil, 422, "cursor"},
		{http.MethodPost, "/v1/agents", map[string]string{"nam": "x"}, 422, "nam"},
		{http.MethodPost, "/v1/apply", map[string]any{"files": []map[string]string{{"path": "a.yaml", "text": "apiVersion: estover.dev/v1\nkind: Agnet\n"}}}, 422, "a.yaml:2"},
		{http.MethodPost, "/v1/login", map[string]string{"token": "est_en_wrong"}, 401, ""},
		{http.MethodGet, "/v1//agents", nil, 404, ""},
		{http.MethodGet, "/nothing", nil, 404, ""},
	} {
		status, body := h.do(c.method, c.path, h.token, c.body)
		var p struct {
			Status              int
			Title, Detail, Code string
		}
		if err := json.Unmarshal(body, &p); status != c.status || !strings.Contains(string(body), c.says) || c.status != 404 && (err != nil || p.Detail == "" || p.Code == "") {
			t.Errorf("%s %s: %d %s, want %d with %q", c.method, c.path, status, body, c.status, c.says)
		}
	}
	status, body := h.do(http.MethodGet, "/v1/openapi.json", "", nil)
	var doc struct {
		OpenAPI string
		Paths   map[string]any
	}
	if err := json.Unmarshal(body, &doc); status != 200 || err != nil || doc.OpenAPI != "3.1.0" || len(doc.Paths) < 30 {
		t.Errorf("the API's description: %d %v, OpenAPI %s, %d paths", status, err, doc.OpenAPI, len(doc.Paths))
	}
}

// What cannot be is said before the server starts.
func TestConfig(t *testing.T) {
	for _, c := range []struct {
		change func(*server.Config)
		says   string
	}{
		{func(c *server.Config) { c.Listen = "8443" }, "HOST:PORT"},
		{func(c *server.Config) { c.Listen = "0.0.0.0:8443" }, "--issuer"},
		{func(c *server.Config) { c.Listen, c.Plain = "0.0.0.0:8443", true }, "--plain-http"},
		{func(c *server.Config) { c.Issuer = "http://estover.example.com" }, "https"},
		{func(c *server.Config) { c.MTLS = "8445" }, "--mtls-listen"},
		{func(c *server.Config) { c.Issuer = "https://estover.example.com/" }, "without a slash"},
		{func(c *server.Config) { c.TLSCert = "a.pem" }, "--tls-key"},
		{func(c *server.Config) { c.Proxies = []string{"10.0.0.1"} }, "--trusted-proxy"},
		{func(c *server.Config) { c.ProxyCerts = true }, "--proxy-certificates"},
		{func(c *server.Config) { c.Control = "0.0.0.0:8445" }, "--control"},
		{func(c *server.Config) { c.Control = "here" }, "--control"},
		{func(c *server.Config) { c.DrillEvery = "1s" }, "--drill-every"},
		{func(c *server.Config) { c.DrillBound = "1h" }, "--drill-bound"},
		{func(c *server.Config) { c.Database = "mysql://" }, "sqlite:FILE or postgres"},
		{func(c *server.Config) { c.RootKey = "file:" + filepath.Join(c.Data, "root.key") }, "root key"},
	} {
		config := server.Config{Data: filepath.Join(t.TempDir(), "data"), Listen: freeAddr(t), Gateway: freeAddr(t)}
		c.change(&config)
		s, err := server.Open(t.Context(), config, slog.New(slog.DiscardHandler), "test")
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("a server with %+v: %v, want an error that says %q", config, err, c.says)
		}
		_ = s
	}
}

// Two servers on one data directory would be two writers of one spool.
func TestOneServerADirectory(t *testing.T) {
	h := build(t, dbtest.SQLite(t))
	config := h.config
	config.Listen, config.Gateway = freeAddr(t), freeAddr(t)
	if _, err := server.Open(t.Context(), config, slog.New(slog.DiscardHandler), "test"); err == nil || !strings.Contains(err.Error(), "another server") {
		t.Errorf("a second server on the same directory: %v", err)
	}
}

// Of decisions that are the same, one event has the facts; the others are
// explained from there.
func TestWhyOfWhatWasDecidedBefore(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		for range 3 {
			h.accessToken("")
		}
		var list struct {
			Items []struct {
				ID     string
				Detail struct {
					Decision struct {
						In string `json:"facts_in"`
					}
				}
			}
		}
		h.until("the events of the tokens", func() bool {
			h.must(http.MethodGet, "/v1/events?action=token.issue&outcome=done", nil, &list)
			return len(list.Items) == 3
		})
		shared := 0
		for _, e := range list.Items {
			if e.Detail.Decision.In != "" {
				shared++
			}
			var why struct {
				Explanation struct {
					Allow bool
					Input map[string]any
				}
			}
			h.must(http.MethodGet, "/v1/events/"+e.ID+"/why", nil, &why)
			if x := why.Explanation; !x.Allow || x.Input["op"] != "token.issue" {
				t.Errorf("%s, whose facts are in %q, is explained by %v", e.ID, e.Detail.Decision.In, x)
			}
		}
		if shared == 0 {
			t.Error("none of three equal decisions names the event that has the facts")
		}
	})
}
