package server_test

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/edge"
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

// A token that is confined to tasks is good for them alone: for the actions and what
// they are done on, in one of them together, and whatever the agent is granted
// besides (RFC 9396).
func TestATokenIsConfinedToItsTasks(t *testing.T) {
	dbtest.EachURL(t, func(t *testing.T, database string) {
		h := build(t, database)
		h.must(http.MethodPost, "/v1/apply", map[string]any{"files": []map[string]string{{"path": "bot.yaml", "text": `
apiVersion: estover.dev/v1
kind: Agent
metadata: {name: bot}
spec: {blueprint: support, sponsor: alice, purposes: [support], clearance: confidential, client: {authorization_details_types: [estover_task]}}
`}}}, nil)
		task := func(actions, ids string) string {
			return fmt.Sprintf(`{"type":"estover_task","locations":[%q],"actions":[%s],"parameters":{"id":[%s]},"purpose":"support"}`, h.upstream.URL, actions, ids)
		}
		token := h.mint(url.Values{"authorization_details": {"[" + task(`"item.read"`, `"7","8"`) + "," + task(`"item.change"`, `"9"`) + "]"}})
		for _, c := range []struct{ method, path, code string }{
			{http.MethodGet, "/u/crm/v1/items/7", ""},
			{http.MethodGet, "/u/crm/v1/items/8", ""},
			{http.MethodPut, "/u/crm/v1/items/9", ""},
			{http.MethodGet, "/u/crm/v1/items/9", "kernel_task"},
			{http.MethodPut, "/u/crm/v1/items/7", "kernel_task"},
			{http.MethodGet, "/u/crm/v1/items/77", "kernel_task"},
			{http.MethodGet, "/u/crm/v1/items/7.json", "kernel_task"},
			{http.MethodGet, "/u/crm/v1/items/%37", ""}, // the same, written otherwise
			{http.MethodGet, "/u/crm/v1/echo", "kernel_scope"},
		} {
			status, body := h.do(c.method, c.path, token, nil)
			if c.code == "" && status != http.StatusOK || c.code != "" && (status != http.StatusForbidden || h.code(body) != c.code) {
				t.Errorf("%s %s: %d %s, want %q", c.method, c.path, status, body, c.code)
			}
		}
		if status, _ := h.do(http.MethodGet, "/v1/agents", token, nil); status != http.StatusUnauthorized {
			t.Errorf("the management API takes the token: %d", status)
		}
		if status, body := h.do(http.MethodGet, "/u/crm/v1/items/9", h.mint(url.Values{"resource": {h.upstream.URL}}), nil); status != http.StatusOK {
			t.Errorf("a token that is not confined: %d %s", status, body)
		}
	})
}

// certificate is one that an agent can make, and its thumbprint.
func certificate(t *testing.T) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, edge.Thumbprint(der)
}

// proxied sends a request to the upstream through the forward proxy.
func (h *house) proxied(c tls.Certificate, method, path string) (int, []byte) {
	h.t.Helper()
	conn, err := tls.Dial("tcp", h.config.Gateway, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{c}, NextProtos: []string{"http/1.1"}})
	if err != nil {
		h.t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprintf(conn, "%s %s%s HTTP/1.1\r\nHost: %s\r\n\r\n", method, h.upstream.URL, path, strings.TrimPrefix(h.upstream.URL, "http://"))
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		h.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		h.t.Fatal(err)
	}
	return res.StatusCode, b
}

// A client secret can be copied, and stays that: a session that it opens, with
// a certificate of the thief's, does not pass for one that is bound to a key.
func TestASecretDoesNotBecomeAKey(t *testing.T) {
	h := build(t, dbtest.SQLite(t))
	const restricted = `
apiVersion: estover.dev/v1
kind: Agent
metadata: {name: bot}
spec: {blueprint: support, sponsor: alice, purposes: [support], clearance: restricted}
---
apiVersion: estover.dev/v1
kind: Grant
metadata: {name: bot-reads}
spec: {agent: bot, resource: crm, actions: [item.read, item.change, slow.read, echo.read], purposes: [support], class: restricted}
`
	h.must(http.MethodPost, "/v1/apply", map[string]any{"files": []map[string]string{{"path": "a.yaml", "text": restricted}}}, nil)
	var crm map[string]any
	h.must(http.MethodGet, "/v1/resources/crm", nil, &crm)
	for _, k := range []string{"id", "managed_by", "created_at", "changed_at", "epoch"} {
		delete(crm, k)
	}
	crm["class"] = "restricted"
	for _, a := range crm["actions"].([]any) {
		a.(map[string]any)["class"] = "restricted"
	}
	h.must(http.MethodPut, "/v1/resources/crm", crm, nil)
	if status, body := h.do(http.MethodGet, "/u/crm/v1/items/7", h.mint(url.Values{"resource": {h.upstream.URL}}), nil); h.code(body) != "restricted_needs_key" {
		t.Fatalf("restricted data by a token of a secret: %d %s, want restricted_needs_key", status, body)
	}
	for _, by := range []struct {
		who, token, want string
	}{{"the agent, by its secret", h.apiToken(), "restricted_needs_key"}, {"a person", h.token, ""}} {
		cert, thumbprint := certificate(t)
		wish := map[string]string{"agent": h.agent, "purpose": "support", "certificate_thumbprint": thumbprint}
		if status, body := h.do(http.MethodPost, "/v1/sessions", by.token, wish); status >= 300 {
			t.Fatalf("a session opened by %s: %d %s", by.who, status, body)
		}
		if status, body := h.proxied(cert, http.MethodGet, "/v1/items/7"); h.code(body) != by.want {
			t.Errorf("restricted data in a session that was opened by %s: %d %s, want %q", by.who, status, body, by.want)
		}
	}
}

// A key makes a change happen once. It makes no secret readable again: each
// reading is decided on and leaves a trace, and what is kept of a request gives
// nobody a way to try values.
func TestAKeyOpensNothingTwice(t *testing.T) {
	h := build(t, dbtest.SQLite(t))
	h.must(http.MethodPost, "/v1/people", map[string]any{"name": "bea", "roles": []string{"admin"}}, nil)
	bea := h.invite("bea")
	read := func() int {
		status, _ := h.do(http.MethodPost, "/v1/secret/read?path=crm/key", bea, map[string]string{"purpose": "a drill"}, "Idempotency-Key", "k")
		return status
	}
	if first, again := read(), read(); first != http.StatusOK || again != http.StatusOK {
		t.Errorf("reading twice: %d and %d, want 200", first, again)
	}
	var events struct{ Items []any }
	h.must(http.MethodGet, "/v1/events?action=secret.read", nil, &events)
	if len(events.Items) != 2 {
		t.Errorf("two readings left %d events", len(events.Items))
	}
	h.must(http.MethodPut, "/v1/people/bea", map[string]any{"name": "bea"}, nil)
	if status := read(); status != http.StatusForbidden {
		t.Errorf("reading once more, after the role was taken away: %d, want 403", status)
	}

	const path = "/v1/secret/versions?path=crm/key"
	in := map[string]any{"fields": map[string]string{"value": "0000"}}
	if status, body := h.do(http.MethodPost, path, h.token, in, "Idempotency-Key", "k2"); status >= 300 {
		t.Fatalf("writing a secret: %d %s", status, body)
	}
	body, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	guess := sha256.New()
	for _, part := range []string{http.MethodPost, path, string(body)} {
		sum := sha256.Sum256([]byte(part))
		guess.Write(sum[:])
	}
	h.leaksNothing(hex.EncodeToString(guess.Sum(nil)))
}

// Whoever reaches the server sees that the log grows, and not what is in it.
func TestTheLogsEntriesAreNotForStrangers(t *testing.T) {
	h := build(t, dbtest.SQLite(t))
	var size int
	h.until("a checkpoint is out", func() bool {
		status, body := h.do(http.MethodGet, "/log/default/checkpoint", "", nil)
		if lines := strings.Split(string(body), "\n"); status == http.StatusOK && len(lines) > 1 {
			size, _ = strconv.Atoi(lines[1])
		}
		return size > 0
	})
	part := fmt.Sprintf("000.p/%d", size%256)
	for who, c := range map[string]struct {
		token           string
		hashes, entries int
	}{
		"nobody": {"", 200, 401}, "an agent": {h.apiToken(), 200, 403}, "an auditor": {h.invite("ann"), 200, 200},
	} {
		if status, _ := h.do(http.MethodGet, "/log/default/tile/0/"+part, c.token, nil); status != c.hashes {
			t.Errorf("hashes for %s: %d, want %d", who, status, c.hashes)
		}
		if status, body := h.do(http.MethodGet, "/log/default/tile/entries/"+part, c.token, nil); status != c.entries {
			t.Errorf("entries for %s: %d %.100s, want %d", who, status, body, c.entries)
		}
	}
}

// A login tells where it came from, so that one which its person did not make
// is found.
func TestALoginTellsWhereItCameFrom(t *testing.T) {
	h := build(t, dbtest.SQLite(t))
	var events struct {
		Items []struct {
			Request string
			Detail  struct{ Address string }
		}
	}
	h.must(http.MethodGet, "/v1/events?action=login.create", nil, &events)
	if len(events.Items) != 1 || events.Items[0].Detail.Address != "127.0.0.1" || !strings.HasPrefix(events.Items[0].Request, "req_") {
		t.Errorf("the event of a login: %+v", events.Items)
	}
}

// A stream ends with the grant that it rests on, also where that only runs out.
func TestAStreamEndsWithItsGrant(t *testing.T) {
	h := build(t, dbtest.SQLite(t))
	token := h.accessToken(h.openSession())
	var stream *http.Response
	for _, life := range []time.Duration{1500 * time.Millisecond, 20 * time.Second} { // within which it is given and the stream opened
		status, body := h.do(http.MethodPost, "/v1/grants", h.token, map[string]any{
			"name": "bot-reads", "agent": "bot", "resource": "crm", "actions": []string{"slow.read"}, "purposes": []string{"support"},
			"class": "confidential", "expires_at": time.Now().Add(life),
		})
		if status >= 300 {
			t.Logf("a grant for %s: %d %s", life, status, body)
			continue
		}
		req, err := http.NewRequest(http.MethodGet, "http://"+h.addr+"/u/crm/v1/slow", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		if stream, err = http.DefaultClient.Do(req); err != nil {
			t.Fatal(err)
		}
		defer stream.Body.Close()
		if stream.StatusCode == http.StatusOK {
			break
		}
		t.Logf("a stream with a grant for %s: %s", life, stream.Status)
	}
	if stream == nil || stream.StatusCode != http.StatusOK {
		t.Fatal("no stream could be opened")
	}
	ended := make(chan error, 1)
	go func() {
		_, err := io.ReadAll(stream.Body)
		ended <- err
	}()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("the stream ended as if it were whole")
		}
	case <-time.After(time.Minute):
		t.Error("the stream goes on without its grant")
	}
}

// What a database does not take as text is refused as that, on each of them
// alike, and what is refused for another reason is on record all the same.
func TestTextThatIsNone(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		for _, path := range []string{"/v1/agents/%00", "/v1/events?session=%ff", "/v1/secret?path=a%00b"} {
			if status, body := h.do(http.MethodGet, path, h.token, nil); status != http.StatusUnprocessableEntity || h.code(body) != "not_text" {
				t.Errorf("GET %s: %d %s", path, status, body)
			}
		}
		body := map[string]any{"agent": "a\x00b", "reason": "to see"}
		if status, answer := h.do(http.MethodPost, "/v1/containments", h.token, body); status >= http.StatusInternalServerError {
			t.Errorf("a containment of an agent with a NUL in its name: %d %s", status, answer)
		}
	})
}
