package gateway_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"estover.dev"
	"estover.dev/internal/edge"
	"estover.dev/internal/gateway"
	"estover.dev/internal/gateway/gatewaytest"
	"estover.dev/internal/redact"
)

func TestMain(m *testing.M) {
	stdlog.SetOutput(edge.StandardLog(slog.New(slog.DiscardHandler)))
	os.Exit(m.Run())
}

// key is the secret that tests inject.
const key = "sk_live_51H8aZ-QpR7v+/=W"

// inject makes every request carry the key as a bearer token, and look out for
// it on the way back.
func inject(g *gatewaytest.Gateway) { injectValue(g, key) }

func injectValue(g *gatewaytest.Gateway, key string) {
	needles, _ := redact.NewMatcher(redact.Value{Name: "sec_crm@1", Text: []byte(key)})
	g.Late = func(_ *gateway.Exchange, p *gateway.Plan) error {
		p.Slots = append(p.Slots, gateway.Slot{Kind: gateway.HeaderSlot, Name: "Authorization", Prefix: "Bearer ", Secret: estover.NewSecret([]byte(key)), Label: "sec_crm@1"})
		p.Needles, p.Credential = needles, "sec_crm@1"
		return nil
	}
}

// get fetches a URL and gives the answer with its body.
func get(t *testing.T, url string, change ...func(*http.Request)) (*http.Response, string) {
	t.Helper()
	return do(t, http.MethodGet, url, nil, change...)
}

func do(t *testing.T, method, url string, body io.Reader, change ...func(*http.Request)) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range change {
		c(r)
	}
	resp, err := plain.RoundTrip(r)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return resp, string(b) + " [" + err.Error() + "]"
	}
	return resp, string(b)
}

// plain is a client that adds nothing and follows nothing.
var plain = &http.Transport{DisableCompression: true}

// upstream starts an ordinary server.
func upstream(t testing.TB, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

// code reads the code of a problem.
func code(body string) string {
	var p struct{ Code string }
	json.Unmarshal([]byte(body), &p)
	return p.Code
}

func TestTheStepsComeInTheirOrder(t *testing.T) {
	reached := false
	g := gatewaytest.Reverse(t, upstream(t, func(w http.ResponseWriter, r *http.Request) { reached = true }))
	get(t, g.URL+"/")
	if out := g.Outcome(t); out.End != gateway.Complete || out.Status != 200 || out.Answered != 200 || out.Proto != "HTTP/1.1" || out.Address == "" {
		t.Errorf("the outcome is %+v", out)
	}
	g.Late = func(*gateway.Exchange, *gateway.Plan) error { return gateway.ErrSlot }
	reached = false
	resp, body := get(t, g.URL+"/")
	if resp.StatusCode != http.StatusBadGateway || code(body) != "secret_unavailable" || resp.Header.Get(gateway.DecisionHeader) != "dec_test" || reached {
		t.Errorf("without a secret: %d %s, upstream reached: %v", resp.StatusCode, body, reached)
	}
	if out := g.Outcome(t); out.End != gateway.Refused || !errors.Is(out.Err, gateway.ErrSlot) || out.Answered != 502 {
		t.Errorf("the outcome is %+v", out)
	}
	g.Change = func(*http.Request, *gateway.Exchange, *gateway.Plan) error {
		return &gateway.Refusal{Err: &estover.Error{Kind: estover.Denied, Code: "not_permitted", Detail: "No."}, Decision: "dec_7", Rule: "rule", Help: "Ask.", Link: "https://x/"}
	}
	resp, body = get(t, g.URL+"/")
	want := `{"type":"about:blank","title":"Forbidden","status":403,"detail":"No.","instance":"req_`
	if resp.StatusCode != 403 || resp.Header.Get("Content-Type") != "application/problem+json" || resp.Header.Get(gateway.DecisionHeader) != "dec_7" ||
		resp.Header.Get("Retry-After") != "" || !strings.HasPrefix(body, want) || !strings.Contains(body, `"code":"not_permitted","decision":"dec_7","rule":"rule","help":"Ask.","request_access":"https://x/"}`) {
		t.Errorf("the refusal is %v %s", resp.Header, body)
	}
	g.Change = func(*http.Request, *gateway.Exchange, *gateway.Plan) error {
		return &gateway.Refusal{Err: gateway.ErrBusy.In(1500 * time.Millisecond)}
	}
	if resp, body = get(t, g.URL+"/"); resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") != "2" {
		t.Errorf("what may be asked again: %v %s", resp.Header, body)
	}
	if got := strings.Join(g.Order(), " "); got != "decide intend fill settle decide intend fill settle decide decide" {
		t.Errorf("the steps were %s", got)
	}
	g.Quiet(t)
}

func TestC1TheUpstreamsAddressIsChecked(t *testing.T) {
	g := gatewaytest.Reverse(t, upstream(t, func(http.ResponseWriter, *http.Request) { t.Error("reached") }))
	g.Upstream.Opening = edge.Opening{}
	resp, body := get(t, g.URL+"/")
	if resp.StatusCode != 403 || code(body) != "address_refused" {
		t.Errorf("loopback was dialled: %d %s", resp.StatusCode, body)
	}
	if out := g.Outcome(t); out.End != gateway.Failed || !errors.Is(out.Err, edge.ErrAddress) || out.Status != 0 {
		t.Errorf("the outcome is %+v", out)
	}
}

func TestC2RedirectsAreNotFollowed(t *testing.T) {
	elsewhere := upstream(t, func(_ http.ResponseWriter, r *http.Request) { t.Errorf("%v was carried to another host", r.Header) })
	var g *gatewaytest.Gateway
	to := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+key {
			t.Errorf("the key was not injected: %v", r.Header)
		}
		switch r.URL.Path {
		case "/away":
			http.Redirect(w, r, elsewhere+"/x?a=b", http.StatusTemporaryRedirect)
		case "/near":
			http.Redirect(w, r, "/v2/near?a=%20b#c", http.StatusFound)
		case "/whole":
			http.Redirect(w, r, "http://"+r.Host+"/v2/whole", http.StatusSeeOther)
		}
	})
	g = gatewaytest.Reverse(t, to)
	inject(g)
	for path, want := range map[string]string{"/away": elsewhere + "/x?a=b", "/near": "/u/up/v2/near?a=%20b#c", "/whole": "/u/up/v2/whole"} {
		resp, _ := get(t, g.URL+path)
		if got := resp.Header.Get("Location"); resp.StatusCode/100 != 3 || got != want {
			t.Errorf("%s leads to %d %q, want %q", path, resp.StatusCode, got, want)
		}
	}
}

// Connections to an upstream are shared by one session, host and credential.
func TestC4ConnectionsAreNotShared(t *testing.T) {
	var conns atomic.Int32
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			conns.Add(1)
		}
	}
	s.Start()
	t.Cleanup(s.Close)
	g := gatewaytest.Reverse(t, s.URL)
	credential := ""
	g.Change = func(_ *http.Request, _ *gateway.Exchange, p *gateway.Plan) error {
		p.Credential = credential
		return nil
	}
	as := func(session string) {
		for range 3 {
			get(t, g.URL+"/", func(r *http.Request) { r.Header.Set(gatewaytest.SessionHeader, session) })
			g.Outcome(t)
		}
	}
	for i, step := range []func(){
		func() { as("ses_1") },
		func() { as("ses_2") },
		func() { credential = "sec@1"; as("ses_1") },
		func() { credential = "sec@2"; as("ses_1") },
		func() { g.Upstream.Revision = "2"; as("ses_1") },
	} {
		step()
		if n := int(conns.Load()); n != i+1 {
			t.Errorf("after step %d there were %d connections, want %d", i, n, i+1)
		}
	}
}

// A connection of an upstream that speaks HTTP/1.0 is used once.
func TestC4NoKeepAliveWithHTTP10(t *testing.T) {
	var conns atomic.Int32
	to := gatewaytest.Raw(t, func(c net.Conn, n int) {
		conns.Add(1)
		in := bufio.NewReader(c)
		for {
			if _, err := http.ReadRequest(in); err != nil {
				return
			}
			io.WriteString(c, "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	g := gatewaytest.Reverse(t, to)
	for i := range 3 {
		if _, body := get(t, g.URL+"/"); body != "ok" {
			t.Fatalf("got %q", body)
		}
		g.Outcome(t)
		if n := int(conns.Load()); n != i+1 {
			t.Errorf("after %d requests there were %d connections", i+1, n)
		}
	}
}

// What is injected cannot be shadowed, neither by spelling nor by Connection.
func TestC5InjectedHeadersAreAlone(t *testing.T) {
	var seen http.Header
	var query string
	to := upstream(t, func(_ http.ResponseWriter, r *http.Request) { seen, query = r.Header, r.URL.RawQuery })
	g := gatewaytest.Reverse(t, to)
	inject(g)
	late := g.Late
	g.Late = func(ex *gateway.Exchange, p *gateway.Plan) error {
		p.Slots = append(p.Slots,
			gateway.Slot{Kind: gateway.HeaderSlot, Name: "X-Api-Key", Secret: estover.NewSecret([]byte("header secret"))},
			gateway.Slot{Kind: gateway.QuerySlot, Name: "api_key", Secret: estover.NewSecret([]byte("query&secret"))})
		return late(ex, p)
	}
	gatewaytest.Talk(t, g.Addr, "GET /u/up/x?a=1&api_key=forged&API-KEY=f&%61pi_key=f&api_key[]=f&api%5Fkey&b=%20c HTTP/1.1\r\nHost: a\r\n"+
		"Authorization: Bearer forged\r\nauthorization_: kept\r\nX_Api_Key: forged\r\nx-api_key: forged\r\nX-API-KEY: forged\r\nX-Forwarded-For: 10.0.0.1\r\nX_Forwarded_Host: evil\r\nEstover-Purpose: x\r\n"+
		"X-HTTP-Method-Override: DELETE\r\nConnection: close\r\n\r\n")
	if out := g.Outcome(t); out.End != gateway.Complete {
		t.Fatalf("the outcome is %+v", out)
	}
	want := http.Header{"Authorization": {"Bearer " + key}, "X-Api-Key": {"header secret"}, "Authorization_": {"kept"}, "Accept-Encoding": {"identity"}, "User-Agent": {""}}
	delete(want, "User-Agent")
	for name := range seen {
		if !slices.Equal(seen[name], want[name]) {
			t.Errorf("the upstream got %s: %q, want %q", name, seen[name], want[name])
		}
		delete(want, name)
	}
	if len(want) > 0 {
		t.Errorf("the upstream did not get %v", want)
	}
	if query != "a=1&b=%20c&api_key=query%26secret" {
		t.Errorf("the upstream got the query %q", query)
	}
}

func TestBasicSlot(t *testing.T) {
	to := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		fmt.Fprintf(w, "%s and a secret of %d bytes", user, len(password))
	})
	g := gatewaytest.Reverse(t, to)
	slot := gateway.Slot{Kind: gateway.BasicSlot, User: "robot", Secret: estover.NewSecret([]byte("correct horse"))}
	g.Late = func(_ *gateway.Exchange, p *gateway.Plan) error { p.Slots = []gateway.Slot{slot}; return nil }
	if _, body := get(t, g.URL+"/"); body != "robot and a secret of 13 bytes" {
		t.Errorf("the upstream saw %s", body)
	}
	for name, bad := range map[string]gateway.Slot{
		"no secret":        {Kind: gateway.HeaderSlot, Name: "X-Key"},
		"a line end":       {Kind: gateway.HeaderSlot, Name: "X-Key", Secret: estover.NewSecret([]byte("a\r\nb"))},
		"a bad name":       {Kind: gateway.HeaderSlot, Name: "X Key", Secret: estover.NewSecret([]byte("secret"))},
		"a colon":          {Kind: gateway.BasicSlot, User: "a:b", Secret: estover.NewSecret([]byte("secret"))},
		"no name":          {Kind: gateway.QuerySlot, Secret: estover.NewSecret([]byte("secret"))},
		"an unknown place": {Kind: "body", Name: "x", Secret: estover.NewSecret([]byte("secret"))},
	} {
		slot = bad
		resp, body := get(t, g.URL+"/")
		if resp.StatusCode != 502 || code(body) != "secret_unavailable" || strings.Contains(body, "secret\"") {
			t.Errorf("a slot with %s: %d %s", name, resp.StatusCode, body)
		}
	}
}

// An injected secret that the upstream sends back reaches the agent nowhere.
func TestC6EchoesAreMasked(t *testing.T) {
	b64 := base64.StdEncoding.EncodeToString([]byte("x " + key))
	to := gatewaytest.Raw(t, func(c net.Conn, _ int) {
		in := bufio.NewReader(c)
		r, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		io.Copy(io.Discard, r.Body)
		io.WriteString(c, "HTTP/1.1 103 "+key+"\r\nLink: <"+key+">\r\nX-"+hex.EncodeToString([]byte(key))+": 1\r\n\r\n")
		io.WriteString(c, "HTTP/1.1 200 "+key+"\r\nX-Echo: a "+key+" b\r\nX-B64: "+b64+"\r\nX-"+hex.EncodeToString([]byte(key))+": 1\r\nLocation: /x?k="+url.QueryEscape(key)+"\r\n"+
			"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\nTrailer: X-Trail\r\nConnection: close\r\n\r\n")
		quoted, _ := json.Marshal(key)
		text := "data: " + key + "\n\ndata: " + string(quoted) + "\n\ndata: " + b64 + "\n\ndata: " + hex.EncodeToString([]byte(key)) + "\n\ndata: done\n\n"
		for i := 0; i < len(text); i += 7 {
			piece := text[i:min(i+7, len(text))]
			fmt.Fprintf(c, "%x\r\n%s\r\n", len(piece), piece)
		}
		io.WriteString(c, "0\r\nX-Trail: "+key+"\r\nX-Late: "+key+"\r\n\r\n")
	})
	g := gatewaytest.Reverse(t, to)
	inject(g)
	late := g.Late
	var echoed atomic.Int32
	g.Late = func(ex *gateway.Exchange, p *gateway.Plan) error {
		p.Echoed = func(name string) {
			if name != "sec_crm@1" {
				t.Errorf("%q came back", name)
			}
			echoed.Add(1)
		}
		return late(ex, p)
	}
	answer := gatewaytest.Talk(t, g.Addr, "GET /u/up/ HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: TE, close\r\n\r\n")
	for name, form := range map[string]string{"raw": key, "base64": b64[4:], "hex": hex.EncodeToString([]byte(key)), "query": url.QueryEscape(key), "start": key[:12], "end": key[8:]} {
		if strings.Contains(answer, form) {
			t.Errorf("the secret came back %s:\n%s", name, answer)
		}
	}
	_, final, _ := strings.Cut(answer, "\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(strings.NewReader(final)), nil)
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	stars := strings.Repeat("*", len(key))
	if want := "data: " + stars + "\n\ndata: \"" + stars + "\"\n\ndata: eCB" + strings.Repeat("*", 33) + "\n\ndata: " + stars + stars + "\n\ndata: done\n\n"; string(body) != want {
		t.Errorf("the body is\n%s\nwant\n%s", body, want)
	}
	for _, want := range []string{"HTTP/1.1 103 Early Hints\r\n", "HTTP/1.1 200 OK\r\n", "X-Echo: a ************************ b\r\n", "X-Trail: ****"} {
		if !strings.Contains(answer, want) {
			t.Errorf("%q is missing in\n%s", want, answer)
		}
	}
	if out := g.Outcome(t); out.End != gateway.Complete || !slices.Equal(out.Echoed, []string{"sec_crm@1"}) || echoed.Load() != 1 {
		t.Errorf("the outcome is %+v, reported %d times", out, echoed.Load())
	}
}

// A placeholder is let through in the slot that it stands for, where it is
// replaced, and nowhere else.
func TestC7PlaceholdersAreTripwires(t *testing.T) {
	placeholder := "estover-placeholder-7f3a9c"
	var mu sync.Mutex
	var seen strings.Builder
	to := gatewaytest.Raw(t, func(c net.Conn, _ int) {
		var b bytes.Buffer
		r, err := http.ReadRequest(bufio.NewReader(io.TeeReader(c, &b)))
		if err == nil {
			_, err = io.Copy(io.Discard, r.Body)
		}
		mu.Lock()
		seen.Write(b.Bytes())
		mu.Unlock()
		if err == nil {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		}
	})
	g := gatewaytest.Reverse(t, to)
	inject(g)
	trip, _ := redact.NewMatcher(redact.Value{Name: "placeholder", Text: []byte("estover-placeholder-")})
	g.Change = func(_ *http.Request, ex *gateway.Exchange, p *gateway.Plan) error {
		p.Tripwire = trip
		ex.Own = nil
		return nil
	}

	resp, _ := get(t, g.URL+"/", func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+placeholder) })
	if resp.StatusCode != 200 || g.Outcome(t).End != gateway.Complete {
		t.Errorf("a placeholder in its slot: %d", resp.StatusCode)
	}
	long := strings.Repeat("x", 100<<10)
	for name, send := range map[string]func() *http.Response{
		"header": func() *http.Response {
			r, _ := get(t, g.URL+"/", func(r *http.Request) { r.Header.Set("X-Note", placeholder) })
			return r
		},
		"base64 in a header": func() *http.Response {
			r, _ := get(t, g.URL+"/", func(r *http.Request) {
				r.SetBasicAuth("x", "y")
				r.Header.Set("X-Auth", base64.StdEncoding.EncodeToString([]byte("user:"+placeholder)))
			})
			return r
		},
		"path":  func() *http.Response { r, _ := get(t, g.URL+"/a/"+placeholder); return r },
		"query": func() *http.Response { r, _ := get(t, g.URL+"/a?x="+placeholder); return r },
		"body": func() *http.Response {
			r, _ := do(t, "POST", g.URL+"/", strings.NewReader(`{"note":"`+placeholder+`"}`))
			return r
		},
		"end of a long stream": func() *http.Response {
			r, _ := do(t, "POST", g.URL+"/", io.MultiReader(strings.NewReader(long), strings.NewReader("estover-place"), strings.NewReader("holder-1")))
			return r
		},
	} {
		resp := send()
		if resp.StatusCode != 403 {
			t.Errorf("a placeholder in the %s: %d", name, resp.StatusCode)
		}
		if err := g.Violation(t); !errors.Is(err, gateway.ErrTripwire) {
			t.Errorf("a placeholder in the %s is the violation %v", name, err)
		}
		if out := g.Outcome(t); out.End != gateway.Refused || !errors.Is(out.Err, gateway.ErrTripwire) {
			t.Errorf("a placeholder in the %s has the outcome %+v", name, out)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if strings.Contains(seen.String(), "estover-placeholder") {
		t.Error("a placeholder was forwarded")
	}
}

func TestC8TokensStayHere(t *testing.T) {
	kinds := map[string][2]string{
		"/json":   {"application/json; charset=utf-8", `{"access_token":"real-access-token","token_type":"Bearer","expires_in":3600,"refresh_token":"real-refresh","id_token":"real-id","nested":{"access_token":"real-nested"},"list":["access_token","x"]}`},
		"/escape": {"application/json", `{"access\u005ftoken":"real-\u0061ccess"}`},
		"/form":   {"application/x-www-form-urlencoded", "access_token=real-access-token&scope=repo"},
		"/twice":  {"application/json", `{"access_token":"real-1","access_token":"real-2"}`},
		"/number": {"application/json", `{"access_token":7}`},
		"/null":   {"application/json", `{"access_token":null}`},
		"/text":   {"text/plain", "access_token=real-access-token"},
		"/broken": {"application/json", `{"access_token":"real`},
		"/after":  {"application/json", `{"a":1}{"access_token":"real-second"}`},
	}
	to := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/error" {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(400)
			fmt.Fprint(w, `{"error":"invalid_grant"}`)
			return
		}
		k := kinds[r.URL.Path]
		w.Header().Set("Content-Type", k[0])
		fmt.Fprint(w, k[1])
	})
	g := gatewaytest.Reverse(t, to)
	var kept sync.Map
	g.Change = func(_ *http.Request, _ *gateway.Exchange, p *gateway.Plan) error {
		p.Tokens = func(member string, value estover.Secret) (string, error) {
			kept.Store(string(value.Reveal()), member)
			return "handle-for-" + member, nil
		}
		return nil
	}
	for path, want := range map[string]string{
		"/json":   `{"access_token":"handle-for-access_token","token_type":"Bearer","expires_in":3600,"refresh_token":"handle-for-refresh_token","id_token":"handle-for-id_token","nested":{"access_token":"handle-for-access_token"},"list":["access_token","x"]}`,
		"/escape": `{"access_token":"handle-for-access_token"}`,
		"/form":   "access_token=handle-for-access_token&scope=repo",
		"/null":   `{"access_token":null}`,
		"/error":  `{"error":"invalid_grant"}`,
	} {
		resp, body := do(t, "POST", g.URL+path, strings.NewReader("grant_type=client_credentials"))
		if strings.TrimSpace(body) != want {
			t.Errorf("%s gives %d %s, want %s", path, resp.StatusCode, body, want)
		}
	}
	for _, path := range []string{"/twice", "/number", "/text", "/broken"} {
		resp, body := do(t, "POST", g.URL+path, strings.NewReader("grant_type=client_credentials"))
		if resp.StatusCode != 502 || strings.Contains(body, "real") {
			t.Errorf("%s gives %d %s, want it refused", path, resp.StatusCode, body)
		}
	}
	if _, body := do(t, "POST", g.URL+"/after", nil); strings.Contains(body, "real") {
		t.Errorf("a second value gives %s", body)
	}
	for _, token := range []string{"real-access-token", "real-refresh", "real-id", "real-nested", "real-access"} {
		if _, ok := kept.Load(token); !ok {
			t.Errorf("%s was not kept", token)
		}
	}
}

// Whatever goes wrong, the secret is in no log and no error.
func TestC12TheSecretIsInNoLog(t *testing.T) {
	var log bytes.Buffer
	var mu sync.Mutex
	logger := slog.New(slog.NewTextHandler(&locked{mu: &mu, w: &log}, &slog.HandlerOptions{Level: slog.LevelDebug, AddSource: true}))
	stdlog.SetOutput(edge.StandardLog(logger))
	t.Cleanup(func() { stdlog.SetOutput(edge.StandardLog(slog.New(slog.DiscardHandler))) })
	modes := []string{"close", "garbage", "echo in a broken head", "half", "101", "more than an answer", "fine"}
	to := gatewaytest.Raw(t, func(c net.Conn, n int) {
		r, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		got := r.Header.Get("Authorization") + r.URL.RawQuery
		if !strings.Contains(got, key) {
			t.Errorf("nothing was injected: %q", got)
		}
		switch modes[(n-1)%len(modes)] {
		case "garbage":
			io.WriteString(c, got+"\r\n\r\n")
		case "echo in a broken head":
			io.WriteString(c, "HTTP/1.1 200 OK\r\n"+got+"\r\n\r\n")
		case "half":
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"+got)
		case "101":
			io.WriteString(c, "HTTP/1.1 101 "+got+"\r\nUpgrade: "+got+"\r\nConnection: Upgrade\r\n\r\n")
		case "more than an answer":
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"+got)
			c.Read(make([]byte, 1))
		case "fine":
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		}
	})
	g := gatewaytest.ReverseLog(t, to, logger)
	inject(g)
	late := g.Late
	g.Late = func(ex *gateway.Exchange, p *gateway.Plan) error {
		p.Slots = append(p.Slots, gateway.Slot{Kind: gateway.QuerySlot, Name: "key", Secret: estover.NewSecret([]byte(key))})
		p.Echoed = func(name string) { logger.Info("echoed", "name", name) }
		return late(ex, p)
	}
	check := func(what, text string) {
		for _, form := range []string{key, url.QueryEscape(key), key[:14], key[6:]} {
			if strings.Contains(text, form) {
				t.Errorf("the secret is in %s:\n%s", what, text)
			}
		}
	}
	for i, mode := range slices.Concat(modes, modes) {
		ask := "GET /u/up/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" // by a line, and then by net/http's transport
		if i >= len(modes) {
			ask = "POST /u/up/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
		}
		answer := gatewaytest.Talk(t, g.Addr, ask)
		check("the answer after "+mode, answer)
		out := g.Outcome(t)
		check("the outcome after "+mode, fmt.Sprintf("%+v %v", *out, out.Err))
		if (out.End == gateway.Complete) != (mode == "fine" || mode == "more than an answer") {
			t.Errorf("after %s the outcome is %+v", mode, out)
		}
		logger.Info("outcome", "outcome", *out)
	}
	mu.Lock()
	defer mu.Unlock()
	check("the log", log.String())
	for _, want := range []string{"msg=outcome", "Unsolicited response received", "ReverseProxy read error"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("%q was not logged, so that it was not tested", want)
		}
	}
}

type locked struct {
	mu *sync.Mutex
	w  io.Writer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// The decision is made on the head: a client that waits for 100 Continue gets
// it only if it may go on, and what it sends is not read before.
func TestC15TheHeadIsDecidedBeforeContinue(t *testing.T) {
	to := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "got %s", b)
	})
	g := gatewaytest.Reverse(t, to)
	deny := true
	g.Change = func(*http.Request, *gateway.Exchange, *gateway.Plan) error {
		if deny {
			return &estover.Error{Kind: estover.Denied, Code: "not_permitted", Detail: "No."}
		}
		return nil
	}
	head := "POST /u/up/ HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\nConnection: close\r\n\r\n"
	if answer := gatewaytest.Talk(t, g.Addr, head); !strings.HasPrefix(answer, "HTTP/1.1 403 ") {
		t.Errorf("a refused head is answered with\n%s", answer)
	}
	deny = false
	c := gatewaytest.Dial(t, g.Addr)
	io.WriteString(c, head)
	in := bufio.NewReader(c)
	if line, _ := in.ReadString('\n'); line != "HTTP/1.1 100 Continue\r\n" {
		t.Fatalf("an allowed head is answered with %q", line)
	}
	in.ReadString('\n')
	io.WriteString(c, "body")
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(resp.Body); string(b) != "got body" {
		t.Errorf("the answer is %q", b)
	}
}

func TestC16CookiesAreDropped(t *testing.T) {
	to := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		http.SetCookie(w, &http.Cookie{Name: "s", Value: "1"})
		w.Header().Set("Strict-Transport-Security", "max-age=1")
		w.Header().Set(gateway.DecisionHeader, "forged")
	})
	g := gatewaytest.Reverse(t, to)
	for _, keep := range []bool{false, true} {
		g.Change = func(_ *http.Request, _ *gateway.Exchange, p *gateway.Plan) error { p.Cookies = keep; return nil }
		resp, _ := get(t, g.URL+"/")
		if got := len(resp.Cookies()) > 0; got != keep {
			t.Errorf("cookies pass: %v, want %v", got, keep)
		}
		if resp.Header.Get(gateway.DecisionHeader) != "" || resp.Header.Get("Strict-Transport-Security") != "" {
			t.Errorf("the head is %v", resp.Header)
		}
	}
}

func TestP1AnEmptyConnectionHeaderHidesNothing(t *testing.T) {
	var seen http.Header
	g := gatewaytest.Reverse(t, upstream(t, func(_ http.ResponseWriter, r *http.Request) { seen = r.Header }))
	gatewaytest.Talk(t, g.Addr, "GET /u/up/ HTTP/1.1\r\nHost: a\r\nConnection: \r\nConnection: X-Hop, close\r\nX-Hop: 1\r\nKeep-Alive: 1\r\nTE: gzip\r\nX-End: 1\r\n\r\n")
	g.Outcome(t)
	for _, name := range []string{"X-Hop", "Keep-Alive", "Te", "Connection"} {
		if _, ok := seen[name]; ok {
			t.Errorf("the upstream got %s: %q", name, seen[name])
		}
	}
	if seen.Get("X-End") != "1" {
		t.Errorf("the upstream got %v", seen)
	}
}

func TestP2ConnectionCannotTakeOutWhatIsInjected(t *testing.T) {
	var seen http.Header
	g := gatewaytest.Reverse(t, upstream(t, func(_ http.ResponseWriter, r *http.Request) { seen = r.Header }))
	inject(g)
	gatewaytest.Talk(t, g.Addr, "GET /u/up/ HTTP/1.1\r\nHost: a\r\nConnection: close, Authorization, Accept-Encoding\r\nAuthorization: Bearer forged\r\nAccept-Encoding: br\r\n\r\n")
	g.Outcome(t)
	if seen.Get("Authorization") != "Bearer "+key || seen.Get("Accept-Encoding") != "identity" {
		t.Errorf("the upstream got %v", seen)
	}
}

// The query that policy saw is forwarded, byte by byte, or not at all.
func TestP3TheQueryIsForwardedAsItWasSeen(t *testing.T) {
	var seen, decided string
	to := gatewaytest.Raw(t, func(c net.Conn, _ int) {
		line, _ := bufio.NewReader(c).ReadString('\n')
		seen = line
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
	})
	g := gatewaytest.Reverse(t, to)
	g.Change = func(_ *http.Request, ex *gateway.Exchange, _ *gateway.Plan) error {
		decided = string(ex.Path) + "?" + ex.Query
		return nil
	}
	for _, q := range []string{"a=b", "b=2&a=1&a=2", "a", "&&a=%2f+%20", "x=" + strings.Repeat("y", 5000), "q={\"a\":[1]}|^"} {
		gatewaytest.Talk(t, g.Addr, "GET /u/up/p?"+q+" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
		g.Outcome(t)
		if seen != "GET /p?"+q+" HTTP/1.1\r\n" || decided != "/p?"+q {
			t.Errorf("of %.40q policy saw %.40q and the upstream %.40q", q, decided, seen)
		}
	}
	for _, q := range []string{"a;b", "a=%zz", "a=%2", strings.Repeat("a&", 1001)} {
		seen, decided = "", ""
		answer := gatewaytest.Talk(t, g.Addr, "GET /u/up/p?"+q+" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
		if !strings.HasPrefix(answer, "HTTP/1.1 400 ") || seen != "" || decided != "" || !errors.Is(g.Violation(t), edge.ErrQuery) {
			t.Errorf("%.40q is answered with %.60q", q, answer)
		}
	}
}

// An upstream that breaks off takes the client's connection with it, and the
// outcome is recorded all the same.
func TestP4ABrokenAnswerIsCutAndRecorded(t *testing.T) {
	for name, head := range map[string]string{
		"with a length": "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
		"in chunks":     "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
	} {
		to := gatewaytest.Raw(t, func(c net.Conn, _ int) {
			http.ReadRequest(bufio.NewReader(c))
			io.WriteString(c, head)
		})
		g := gatewaytest.Reverse(t, to)
		resp, body := get(t, g.URL+"/")
		if !strings.HasPrefix(body, "half [") || resp.StatusCode != 200 {
			t.Errorf("%s: the client got %d %q, want a broken body", name, resp.StatusCode, body)
		}
		if out := g.Outcome(t); out.End != gateway.Failed || !errors.Is(out.Err, gateway.ErrUpstream) || out.Delivered != 4 || out.Status != 200 {
			t.Errorf("%s: the outcome is %+v", name, out)
		}
	}
	// Nothing at all is a 502.
	g := gatewaytest.Reverse(t, gatewaytest.Raw(t, func(c net.Conn, _ int) { http.ReadRequest(bufio.NewReader(c)) }))
	resp, body := get(t, g.URL+"/")
	if resp.StatusCode != 502 || code(body) != "upstream_failed" || g.Outcome(t).End != gateway.Failed {
		t.Errorf("an upstream that closes gives %d %s", resp.StatusCode, body)
	}
}

// A step that panics leaves an outcome too.
func TestP4APanicIsRecorded(t *testing.T) {
	g := gatewaytest.Reverse(t, "http://127.0.0.1:1")
	g.Late = func(*gateway.Exchange, *gateway.Plan) error { panic("a fault") }
	if answer := gatewaytest.Talk(t, g.Addr, "GET /u/up/ HTTP/1.1\r\nHost: a\r\n\r\n"); answer != "" {
		t.Errorf("the client got %q", answer)
	}
	if out := g.Outcome(t); out.End != gateway.Failed || out.Err == nil {
		t.Errorf("the outcome is %+v", out)
	}
}

// An upstream that answers an expectation with something final does not leave
// a body on a connection that is used again.
func TestP6AFinalAnswerToExpectPoisonsNothing(t *testing.T) {
	var mu sync.Mutex
	var lines []string
	to := gatewaytest.Raw(t, func(c net.Conn, _ int) {
		in := bufio.NewReader(c)
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			mu.Lock()
			lines = append(lines, line)
			mu.Unlock()
			for {
				if h, err := in.ReadString('\n'); err != nil || h == "\r\n" {
					break
				}
			}
			if strings.HasPrefix(line, "POST") {
				io.WriteString(c, "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
			} else {
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			}
		}
	})
	g := gatewaytest.Reverse(t, to)
	for range 3 {
		c := gatewaytest.Dial(t, g.Addr)
		io.WriteString(c, "POST /u/up/a HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 30\r\nConnection: close\r\n\r\n")
		in := bufio.NewReader(c)
		resp, err := http.ReadResponse(in, nil)
		if err != nil || resp.StatusCode != 403 {
			t.Fatalf("the answer is %v, %v", resp, err)
		}
		io.WriteString(c, "GET /smuggled HTTP/1.1\r\n\r\n....")
		c.Close()
		if _, body := get(t, g.URL+"/b"); body != "ok" {
			t.Fatalf("the next answer is %q", body)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	for _, line := range lines {
		if line != "POST /a HTTP/1.1\r\n" && line != "GET /b HTTP/1.1\r\n" {
			t.Errorf("the upstream read %q as a request", line)
		}
	}
}

// A client that does not read is given up; one that reads slowly is not, nor is
// a stream in which nothing happens.
func TestP8ClientsThatStandStillAreGivenUp(t *testing.T) {
	more := make(chan struct{})
	to := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		switch r.URL.Path {
		case "/flood":
			piece := make([]byte, 64<<10)
			for {
				if _, err := w.Write(piece); err != nil {
					return
				}
			}
		case "/idle":
			io.WriteString(w, "one ")
			rc.Flush()
			<-more
			io.WriteString(w, "two")
		case "/upload":
			io.Copy(io.Discard, r.Body)
		}
	})
	g := gatewaytest.Reverse(t, to)
	stall := 300 * time.Millisecond
	g.Change = func(_ *http.Request, _ *gateway.Exchange, p *gateway.Plan) error { p.Limits.Stall = stall; return nil }

	c := gatewaytest.Dial(t, g.Addr)
	io.WriteString(c, "GET /u/up/flood HTTP/1.1\r\nHost: a\r\n\r\n")
	if out := g.Outcome(t); out.End != gateway.Cut || !errors.Is(out.Err, gateway.ErrStalled) {
		t.Errorf("a client that does not read has the outcome %+v", out)
	}
	c = gatewaytest.Dial(t, g.Addr)
	io.WriteString(c, "POST /u/up/upload HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf")
	if out := g.Outcome(t); out.End != gateway.Cut || !errors.Is(out.Err, gateway.ErrStalled) {
		t.Errorf("a client that does not write has the outcome %+v", out)
	}
	if all, _ := io.ReadAll(c); !strings.HasPrefix(string(all), "HTTP/1.1 408 ") {
		t.Errorf("a client that does not write is told %.80q", all)
	}

	c = gatewaytest.Dial(t, g.Addr)
	io.WriteString(c, "GET /u/up/idle HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
	time.AfterFunc(3*stall, func() { close(more) })
	all, _ := io.ReadAll(c)
	if !strings.Contains(string(all), "two") {
		t.Errorf("an idle stream is cut: %q", all)
	}
	if out := g.Outcome(t); out.End != gateway.Complete {
		t.Errorf("an idle stream has the outcome %+v", out)
	}
}

func TestExchangesHaveAMaximumAge(t *testing.T) {
	to := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "one ")
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	g := gatewaytest.Reverse(t, to)
	g.Change = func(_ *http.Request, _ *gateway.Exchange, p *gateway.Plan) error {
		p.Limits.Age = 100 * time.Millisecond
		return nil
	}
	if _, body := get(t, g.URL+"/"); !strings.HasPrefix(body, "one  [") {
		t.Errorf("the client got %q", body)
	}
	if out := g.Outcome(t); out.End != gateway.Cut || !errors.Is(out.Err, gateway.ErrTooLong) {
		t.Errorf("the outcome is %+v", out)
	}
}

func TestP10TrailersGoBothWays(t *testing.T) {
	to := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Announced, Set-Cookie")
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %v %s", b, r.Trailer, r.Header.Get("Te"))
		http.NewResponseController(w).Flush()
		w.Header().Set("X-Announced", "1")
		w.Header().Set("Set-Cookie", "a=b")
		w.Header().Set(http.TrailerPrefix+"X-Late", "2")
		w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
	})
	g := gatewaytest.Reverse(t, to)
	inject(g)
	c := gatewaytest.Dial(t, g.Addr)
	io.WriteString(c, "POST /u/up/ HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: TE, close\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum, Authorization, X-Forwarded-For\r\n\r\n"+
		"4\r\nbody\r\n0\r\nX-Sum: abc\r\nAuthorization: Bearer forged\r\nX-Forwarded-For: 1\r\nX-Unannounced: 1\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if body, _ := io.ReadAll(resp.Body); string(body) != "body map[X-Sum:[abc]] trailers" {
		t.Errorf("the upstream got %s", body)
	}
	want := http.Header{"X-Announced": {"1"}, "X-Late": {"2"}, "Grpc-Status": {"0"}}
	if !maps.EqualFunc(resp.Trailer, want, slices.Equal) {
		t.Errorf("the client got the trailers %v, want %v", resp.Trailer, want)
	}
	if out := g.Outcome(t); out.End != gateway.Complete {
		t.Errorf("the outcome is %+v", out)
	}
}

// Each piece of a stream is passed on at once, whatever it is cut like.
func TestP11StreamsAreFlushedAtOnce(t *testing.T) {
	next := make(chan string)
	to := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", r.URL.Query().Get("type"))
		if n := r.URL.Query().Get("length"); n != "" {
			w.Header().Set("Content-Length", n)
		}
		rc := http.NewResponseController(w)
		rc.Flush()
		for piece := range next {
			if piece == "" {
				return
			}
			io.WriteString(w, piece)
			rc.Flush()
		}
	})
	g := gatewaytest.Reverse(t, to)
	// Where something is injected a piece is held back if its end may be the
	// beginning of that, which the end of an event never is.
	events := []string{"\ufeffdata: one\n\n", ": comment\n", "id: 7\r\nevent: x\r\ndata: {}\r\n\r\n", "data: a\rdata: b\r\r"}
	anywhere := append([]string{"data: tw", "o\r\n\r", "\n", "x"}, events...)
	for kind, pieces := range map[string][]string{
		"type=text/event-stream": anywhere, "type=application/json": anywhere, fmt.Sprint("type=application/json&length=", len(strings.Join(anywhere, ""))): anywhere,
		"type=text/event-stream&x": events,
	} {
		if g.Late = nil; len(pieces) == len(events) {
			inject(g)
		}
		resp, err := plain.RoundTrip(httptest.NewRequestWithContext(t.Context(), "GET", g.URL+"/?"+kind, nil))
		if err != nil {
			t.Fatal(err)
		}
		if sse := strings.Contains(kind, "event"); sse != (resp.Header.Get("X-Accel-Buffering") == "no") {
			t.Errorf("%s: the head is %v", kind, resp.Header)
		}
		for _, piece := range pieces {
			next <- piece
			got := make([]byte, len(piece))
			if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != piece {
				t.Fatalf("%s: after %q came %q, %v", kind, piece, got, err)
			}
		}
		next <- ""
		if rest, err := io.ReadAll(resp.Body); len(rest) > 0 || err != nil {
			t.Errorf("%s: at the end came %q, %v", kind, rest, err)
		}
		resp.Body.Close()
		g.Outcome(t)
	}
	// One event of 8 MiB.
	go func() {
		next <- "data: " + strings.Repeat("x", 8<<20) + "\n\n"
		next <- ""
	}()
	if _, body := get(t, g.URL+"/?type=text/event-stream"); len(body) != 8<<20+8 {
		t.Errorf("of a large event came %d bytes", len(body))
	}
}

// An upstream may answer while the body is still coming, and both go on.
func TestP11BothDirectionsStreamAtOnce(t *testing.T) {
	to := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		rc.EnableFullDuplex()
		in := bufio.NewReader(r.Body)
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			io.WriteString(w, "got "+line)
			rc.Flush()
		}
	})
	g := gatewaytest.Reverse(t, to)
	out, in := io.Pipe()
	defer in.Close()
	go io.WriteString(in, "one\n")
	resp, err := plain.RoundTrip(httptest.NewRequestWithContext(t.Context(), "POST", g.URL+"/", out))
	if err != nil {
		t.Fatal(err)
	}
	answers := bufio.NewReader(resp.Body)
	for _, line := range []string{"one\n", "two\n", "three\n"} {
		if line != "one\n" {
			go io.WriteString(in, line)
		}
		if got, err := answers.ReadString('\n'); got != "got "+line || err != nil {
			t.Fatalf("after %q came %q, %v", line, got, err)
		}
	}
	in.Close()
	if rest, err := io.ReadAll(answers); len(rest) > 0 || err != nil {
		t.Errorf("at the end came %q, %v", rest, err)
	}
	if out := g.Outcome(t); out.End != gateway.Complete || out.Sent != 14 {
		t.Errorf("the outcome is %+v", out)
	}
	// One that answers at once and does not read is heard.
	g = gatewaytest.Reverse(t, gatewaytest.Raw(t, func(c net.Conn, _ int) {
		http.ReadRequest(bufio.NewReader(c))
		io.WriteString(c, "HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
		io.Copy(io.Discard, c)
	}))
	for i := range 100 {
		size := []int{1, 10 << 10, 200 << 10, 1 << 20}[i%4]
		resp, body := do(t, "POST", g.URL+"/", bytes.NewReader(make([]byte, size)))
		if resp.StatusCode != 401 || body != "no" {
			t.Fatalf("an early answer to %d bytes arrives as %d %q", size, resp.StatusCode, body)
		}
		if out := g.Outcome(t); out.End != gateway.Complete {
			t.Fatalf("the outcome is %+v", out)
		}
	}
	// A client that never sends the rest does not keep the answer from coming, and
	// what it sends later is not a request.
	c := gatewaytest.Dial(t, g.Addr)
	io.WriteString(c, "POST /u/up/ HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf")
	in2 := bufio.NewReader(c)
	resp, err = http.ReadResponse(in2, nil)
	if err != nil || resp.StatusCode != 401 {
		t.Fatalf("the answer is %v, %v", resp, err)
	}
	io.Copy(io.Discard, resp.Body)
	g.Outcome(t)
	io.WriteString(c, "GET /u/up/smuggled HTTP/1.1\r\nHost: a\r\n\r\n"+strings.Repeat("x", 60))
	if rest, _ := io.ReadAll(in2); len(rest) > 0 {
		t.Errorf("the rest of a body is answered with %q", rest)
	}
	g.Quiet(t)
}

func TestP12AClientThatLeavesCancelsTheUpstream(t *testing.T) {
	begun, gone := make(chan struct{}), make(chan struct{})
	to := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/stream" {
			io.WriteString(w, "x")
			http.NewResponseController(w).Flush()
		}
		begun <- struct{}{}
		<-r.Context().Done()
		gone <- struct{}{}
	})
	g := gatewaytest.Reverse(t, to)
	for _, path := range []string{"/wait", "/stream"} {
		c := gatewaytest.Dial(t, g.Addr)
		io.WriteString(c, "GET /u/up"+path+" HTTP/1.1\r\nHost: a\r\n\r\n")
		<-begun
		left := time.Now()
		c.Close()
		<-gone
		if took := time.Since(left); took > gatewaytest.Soon {
			t.Errorf("%s: the upstream was cancelled after %v", path, took)
		}
		if out := g.Outcome(t); out.End != gateway.Cancelled {
			t.Errorf("%s: the outcome is %+v", path, out)
		}
	}
	// An upload that stops.
	arrived := make(chan error, 1)
	to = upstream(t, func(w http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		arrived <- err
	})
	g = gatewaytest.Reverse(t, to)
	c := gatewaytest.Dial(t, g.Addr)
	io.WriteString(c, "POST /u/up/ HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf")
	c.Close()
	if err := <-arrived; err == nil {
		t.Error("the upstream took half of a body for the whole")
	}
	if out := g.Outcome(t); out.End != gateway.Cancelled {
		t.Errorf("half of a body has the outcome %+v", out)
	}
}

// compressed bodies, as upstreams send them although they were asked not to.
func compress(t *testing.T, encoding, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser
	switch encoding {
	case "gzip":
		w = gzip.NewWriter(&b)
	case "deflate":
		w = zlib.NewWriter(&b)
	case "zstd":
		z, err := zstd.NewWriter(&b)
		if err != nil {
			t.Fatal(err)
		}
		w = z
	default:
		return []byte(text)
	}
	io.WriteString(w, text)
	w.Close()
	return b.Bytes()
}

func TestP16CompressedAnswersAreReadOrRefused(t *testing.T) {
	text := "begin " + strings.Repeat("some text ", 1000) + key + " end"
	var asked string
	to := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		asked = r.Header.Get("Accept-Encoding")
		encoding := strings.TrimPrefix(r.URL.Path, "/")
		body := text
		if strings.HasPrefix(encoding, "bomb-") {
			encoding = strings.TrimPrefix(encoding, "bomb-")
			body = strings.Repeat("\x00", 64<<20)
		}
		w.Header().Set("Content-Encoding", encoding)
		if encoding == "corrupt" {
			w.Header().Set("Content-Encoding", "gzip")
		}
		w.Write(compress(t, encoding, body))
	})
	g := gatewaytest.Reverse(t, to)
	accept := func(r *http.Request) { r.Header.Set("Accept-Encoding", "gzip, br, zstd") }

	// Without an injected secret nothing is touched.
	resp, body := get(t, g.URL+"/gzip", accept)
	if asked != "gzip, br, zstd" || resp.Header.Get("Content-Encoding") != "gzip" || body != string(compress(t, "gzip", text)) {
		t.Errorf("the upstream was asked for %q, and the body changed", asked)
	}
	g.Outcome(t)
	inject(g)
	masked := strings.Replace(text, key, strings.Repeat("*", len(key)), 1)
	for _, encoding := range []string{"gzip", "deflate", "zstd", "identity"} {
		resp, body := get(t, g.URL+"/"+encoding, accept)
		if asked != "identity" || body != masked || encoding != "identity" && resp.Header.Get("Content-Encoding") != "" {
			t.Errorf("%s: asked for %q, got %v %.60q", encoding, asked, resp.Header, body)
		}
		if out := g.Outcome(t); out.End != gateway.Complete || len(out.Echoed) != 1 || out.Delivered != int64(len(masked)) || out.Received != int64(len(compress(t, encoding, text))) {
			t.Errorf("%s: the outcome is %+v", encoding, out)
		}
	}
	for _, encoding := range []string{"br", "compress", "gzip, gzip", "x-unknown"} {
		resp, body := get(t, g.URL+"/"+url.PathEscape(encoding), accept)
		if resp.StatusCode != 502 || code(body) != "upstream_answer" {
			t.Errorf("%s gives %d %.60q, want it refused", encoding, resp.StatusCode, body)
		}
		g.Outcome(t)
	}
	if answer := gatewaytest.Talk(t, g.Addr, "GET /u/up/corrupt HTTP/1.1\r\nHost: a\r\n\r\n"); strings.Contains(answer, "begin") {
		t.Errorf("what is not gzip is passed on as %.60q", answer)
	}
	if out := g.Outcome(t); out.End != gateway.Failed {
		t.Errorf("the outcome is %+v", out)
	}
	for _, encoding := range []string{"gzip", "zstd"} {
		_, body := get(t, g.URL+"/bomb-"+encoding, accept)
		if len(body) > 8<<20 {
			t.Errorf("a bomb of %s gives %d bytes", encoding, len(body))
		}
		if out := g.Outcome(t); out.End != gateway.Truncated || !errors.Is(out.Err, gateway.ErrAnswerLarge) {
			t.Errorf("a bomb of %s has the outcome %+v", encoding, out)
		}
	}
}

func TestP17TheTransportIsOurs(t *testing.T) {
	// A proxy of the environment is not used, nothing is asked for or
	// decompressed by itself, and one session has many connections at once.
	t.Setenv("HTTP_PROXY", "http://192.0.2.1:9")
	t.Setenv("http_proxy", "http://192.0.2.1:9")
	os.Unsetenv("NO_PROXY")
	var conns atomic.Int32
	var together sync.WaitGroup
	const many = 16
	together.Add(many)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, ok := r.Header["Accept-Encoding"]; ok {
			t.Errorf("the upstream was asked for %q", r.Header["Accept-Encoding"])
		}
		if r.URL.Path == "/many" {
			together.Done()
			together.Wait()
		}
	}))
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			conns.Add(1)
		}
	}
	s.Start()
	t.Cleanup(s.Close)
	g := gatewaytest.Reverse(t, s.URL)
	burst := func() {
		var done sync.WaitGroup
		for range many {
			done.Go(func() { get(t, g.URL+"/many") })
		}
		done.Wait()
	}
	burst()
	together.Add(many)
	burst()
	if n := conns.Load(); n != many {
		t.Errorf("two bursts of %d requests took %d connections", many, n)
	}
	// An upstream that does not answer is not waited for for ever.
	silent := gatewaytest.Reverse(t, gatewaytest.Raw(t, func(c net.Conn, _ int) { io.Copy(io.Discard, c) }))
	silent.Upstream.FirstByte = 50 * time.Millisecond
	resp, body := get(t, silent.URL+"/")
	if resp.StatusCode != 504 || code(body) != "upstream_slow" {
		t.Errorf("a silent upstream gives %d %s", resp.StatusCode, body)
	}
}

func TestP19SpellingsOfHeadersReachNobody(t *testing.T) {
	var seen http.Header
	g := gatewaytest.Reverse(t, upstream(t, func(_ http.ResponseWriter, r *http.Request) { seen = r.Header }))
	gatewaytest.Talk(t, g.Addr, "GET /u/up/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX_Forwarded_For: 1\r\nx-FORWARDED-proto: 1\r\nX.Real.IP: 1\r\nProxy_Authorization: 1\r\nAuthorization: ours\r\nDPoP: ours\r\nauthorization_x: 1\r\n\r\n")
	g.Outcome(t)
	for name := range seen {
		if name != "Authorization_x" {
			t.Errorf("the upstream got %s", name)
		}
	}
}

// 1xx, answers without a body and HEAD pass as they are.
func TestP25AnswersWithoutABody(t *testing.T) {
	answers := map[string]string{
		"/103":  "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\nContent-Length: 5\r\nConnection: X-Hop\r\nX-Hop: 1\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </b.css>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
		"/102":  "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
		"/204":  "HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\nbody",
		"/304":  "HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\nEtag: x\r\n\r\nbody",
		"/head": "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n",
		"/gzip": "HTTP/1.1 200 OK\r\nContent-Length: 99\r\nContent-Encoding: gzip\r\n\r\n",
	}
	to := gatewaytest.Raw(t, func(c net.Conn, _ int) {
		in := bufio.NewReader(c)
		for {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			io.WriteString(c, answers[r.URL.Path])
		}
	})
	g := gatewaytest.Reverse(t, to)
	inject(g)
	ask := func(method, path string) string {
		answer := gatewaytest.Talk(t, g.Addr, method+" /u/up"+path+" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
		if out := g.Outcome(t); out.End != gateway.Complete {
			t.Errorf("%s %s has the outcome %+v", method, path, out)
		}
		return answer
	}
	if got := ask("GET", "/103"); !strings.HasPrefix(got, "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </b.css>\r\n\r\nHTTP/1.1 200 OK\r\n") ||
		strings.Contains(got, "X-Hop") || !strings.HasSuffix(got, "\r\n\r\nok") || strings.Count(got, "Link") != 2 {
		t.Errorf("early hints pass as\n%s", got)
	}
	if got := ask("GET", "/102"); !strings.HasPrefix(got, "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\n") {
		t.Errorf("102 passes as\n%s", got)
	}
	for _, path := range []string{"/204", "/304"} {
		got := ask("GET", path)
		if !strings.HasPrefix(got, "HTTP/1.1 "+path[1:]) || strings.Contains(got, "body") || !strings.HasSuffix(got, "\r\n\r\n") {
			t.Errorf("%s passes as\n%s", path, got)
		}
		// The body that does not belong there is not read as the next answer: the
		// connection is given up, which the next request may see.
		got = gatewaytest.Talk(t, g.Addr, "HEAD /u/up/head HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
		if out := g.Outcome(t); out.End != gateway.Failed && (!strings.Contains(got, "Content-Length: 1234\r\n") || !strings.HasSuffix(got, "\r\n\r\n")) {
			t.Errorf("HEAD passes as\n%s", got)
		}
	}
	if got := ask("HEAD", "/gzip"); strings.Contains(got, "gzip") || strings.Contains(got, "99") {
		t.Errorf("HEAD of what would be decoded passes as\n%s", got)
	}
}

// A body above its limit is broken off, so that nobody takes a part for the
// whole.
func TestP26BodiesAboveTheLimitAreBrokenOff(t *testing.T) {
	arrived := make(chan error, 10)
	to := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "POST" {
			_, err := io.Copy(io.Discard, r.Body)
			arrived <- err
			return
		}
		if n := r.URL.Query().Get("length"); n != "" {
			w.Header().Set("Content-Length", n)
		}
		for range 64 {
			if _, err := w.Write(make([]byte, 1024)); err != nil {
				return
			}
			http.NewResponseController(w).Flush()
		}
	})
	g := gatewaytest.Reverse(t, to)
	g.Change = func(_ *http.Request, _ *gateway.Exchange, p *gateway.Plan) error {
		p.Limits.Request, p.Limits.Answer = 10_000, 10_000
		return nil
	}
	// The length is known: nothing is sent.
	resp, body := do(t, "POST", g.URL+"/", bytes.NewReader(make([]byte, 10_001)))
	if resp.StatusCode != 413 || code(body) != "body_too_large" || g.Outcome(t).End != gateway.Refused {
		t.Errorf("a body that is too large is answered with %d %s", resp.StatusCode, body)
	}
	// It is not known: the upstream sees that the body breaks off.
	resp, _ = do(t, "POST", g.URL+"/", io.MultiReader(bytes.NewReader(make([]byte, 9_000)), bytes.NewReader(make([]byte, 9_000))))
	if out := g.Outcome(t); out.End != gateway.Truncated || resp.StatusCode != 413 {
		t.Errorf("a stream that is too large is answered with %d, the outcome is %+v", resp.StatusCode, out)
	}
	if err := <-arrived; err == nil {
		t.Error("the upstream took a part for the whole")
	}
	resp, _ = do(t, "POST", g.URL+"/", io.MultiReader(bytes.NewReader(make([]byte, 5_000)), bytes.NewReader(make([]byte, 5_000))))
	if out := g.Outcome(t); out.End != gateway.Complete || resp.StatusCode != 200 || out.Sent != 10_000 || <-arrived != nil {
		t.Errorf("a stream of just the limit is answered with %d, the outcome is %+v", resp.StatusCode, out)
	}
	// The same for answers.
	resp, body = get(t, g.URL+"/?length=65536")
	if resp.StatusCode != 502 || code(body) != "answer_too_large" {
		t.Errorf("an answer that is too large gives %d %s", resp.StatusCode, body)
	}
	g.Outcome(t)
	if answer := gatewaytest.Talk(t, g.Addr, "GET /u/up/ HTTP/1.1\r\nHost: a\r\n\r\n"); strings.HasSuffix(answer, "0\r\n\r\n") || len(answer) > 11_000 {
		t.Errorf("of a stream that is too large came %d bytes, whole", len(answer))
	}
	if out := g.Outcome(t); out.End != gateway.Truncated || out.Delivered > 10_000 {
		t.Errorf("the outcome is %+v", out)
	}
}

// A request that may have arrived is not sent again.
func TestP27NothingIsRepeated(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	to := gatewaytest.Raw(t, func(c net.Conn, _ int) {
		in := bufio.NewReader(c)
		for i := 0; ; i++ {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			io.Copy(io.Discard, r.Body)
			mu.Lock()
			seen = append(seen, r.Method+" "+r.URL.Path+" "+r.Header.Get("Idempotency-Key"))
			mu.Unlock()
			if r.URL.Path == "/drop" {
				return
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	})
	g := gatewaytest.Reverse(t, to)
	for _, ask := range []struct{ method, key string }{{"GET", ""}, {"HEAD", ""}, {"OPTIONS", ""}, {"PUT", "k1"}, {"POST", "k2"}, {"DELETE", ""}} {
		mu.Lock()
		seen = nil
		mu.Unlock()
		// The first fills the pool, so that the second is on a used connection,
		// which is where net/http would try again.
		get(t, g.URL+"/warm")
		g.Outcome(t)
		resp, _ := do(t, ask.method, g.URL+"/drop", nil, func(r *http.Request) {
			if ask.key != "" {
				r.Header.Set("Idempotency-Key", ask.key)
			}
		})
		out := g.Outcome(t)
		mu.Lock()
		if want := []string{"GET /warm ", ask.method + " /drop " + ask.key}; !slices.Equal(seen, want) || resp.StatusCode != 502 || out.End != gateway.Failed {
			t.Errorf("the upstream saw %q, want %q; the answer was %d, the outcome %+v", seen, want, resp.StatusCode, out)
		}
		mu.Unlock()
	}
}

// What the taps hash is what was forwarded and delivered, whatever its path.
func TestTapsSeeWhatGoesBy(t *testing.T) {
	to := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("Date", "x")
		w.Header().Set("Content-Type", "text/plain")
		fmt.Fprintf(w, "%s %s", b, r.Header.Get("Authorization"))
	})
	g := gatewaytest.Reverse(t, to)
	inject(g)
	sent, received, delivered := &log{}, &log{}, &log{}
	hash := gateway.NewHash([]byte("salt"))
	g.Change = func(_ *http.Request, _ *gateway.Exchange, p *gateway.Plan) error {
		p.Sent, p.Received, p.Delivered = sent, received, gateway.Tee(delivered, nil, hash)
		return nil
	}
	do(t, "POST", g.URL+"/a%20b?c=d", strings.NewReader("hello"), func(r *http.Request) { r.Header.Set("X-A", "1") })
	g.Outcome(t)
	host := strings.TrimPrefix(to, "http://")
	if want := "POST /a%20b?c=d HTTP/1.1\r\nHost: " + host + "\r\nAccept-Encoding: identity\r\nAuthorization: Bearer ‹secret sec_crm@1›\r\nContent-Length: 5\r\nUser-Agent: Go-http-client/1.1\r\nX-A: 1\r\n\r\n|hello"; sent.String() != want {
		t.Errorf("sent is\n%s\nwant\n%s", sent, want)
	}
	head := "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nContent-Type: text/plain\r\nDate: x\r\n\r\n|hello Bearer "
	if want := fmt.Sprintf(head, 13+len(key)) + key; received.String() != want {
		t.Errorf("received is\n%s\nwant\n%s", received, want)
	}
	want := fmt.Sprintf(head, 13+len(key)) + strings.Repeat("*", len(key))
	if delivered.String() != want {
		t.Errorf("delivered is\n%s\nwant\n%s", delivered, want)
	}
	if got := hash.Sum(); got != sha256.Sum256([]byte("salt"+strings.Replace(want, "|", "", 1))) {
		t.Errorf("the hash is %x", got)
	}
	// A tap that fails ends the exchange before it has an effect.
	reached := false
	g = gatewaytest.Reverse(t, upstream(t, func(http.ResponseWriter, *http.Request) { reached = true }))
	g.Change = func(_ *http.Request, _ *gateway.Exchange, p *gateway.Plan) error {
		p.Sent = &log{err: errors.New("the disk is full")}
		return nil
	}
	resp, _ := get(t, g.URL+"/")
	if out := g.Outcome(t); resp.StatusCode != 500 || out.End != gateway.Failed || reached {
		t.Errorf("an exchange that cannot be recorded: %d, %+v, reached: %v", resp.StatusCode, out, reached)
	}
}

// A log is a tap that keeps everything.
type log struct {
	mu  sync.Mutex
	b   strings.Builder
	err error
}

func (l *log) write(prefix string, b []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b.WriteString(prefix)
	l.b.Write(b)
	return l.err
}
func (l *log) Head(b []byte) error { return l.write("", append(b[:len(b):len(b)], '|')) }
func (l *log) Body(b []byte) error { return l.write("", b) }
func (l *log) Tail(b []byte) error { return l.write("|", b) }
func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestBuffer(t *testing.T) {
	to := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %d %v", b, r.ContentLength, r.Trailer)
	})
	g := gatewaytest.Reverse(t, to)
	var seen []byte
	g.Change = func(r *http.Request, _ *gateway.Exchange, _ *gateway.Plan) (err error) {
		seen, err = gateway.Buffer(r, 10)
		return err
	}
	if _, body := do(t, "POST", g.URL+"/", strings.NewReader("hello")); body != "hello 5 map[]" || string(seen) != "hello" {
		t.Errorf("a step saw %q, the upstream %q", seen, body)
	}
	if _, body := do(t, "POST", g.URL+"/", io.MultiReader(strings.NewReader("hello")), func(r *http.Request) { r.Trailer = http.Header{"X-T": {"1"}} }); body != "hello -1 map[X-T:[1]]" {
		t.Errorf("of a stream the upstream saw %q", body)
	}
	for _, b := range []io.Reader{strings.NewReader("hello world"), io.MultiReader(strings.NewReader("hello world"))} {
		if resp, body := do(t, "POST", g.URL+"/", b); resp.StatusCode != 413 {
			t.Errorf("a body that is too large to decide on: %d %s", resp.StatusCode, body)
		}
	}
}

// A cut that comes while the steps wait, for a person perhaps, is answered.
func TestC10ACutReachesWhoWaits(t *testing.T) {
	g := gatewaytest.Reverse(t, "http://127.0.0.1:1")
	waiting := make(chan struct{})
	g.Change = func(r *http.Request, _ *gateway.Exchange, _ *gateway.Plan) error {
		close(waiting)
		<-r.Context().Done()
		return context.Cause(r.Context())
	}
	go func() {
		<-waiting
		g.Live.Cut("default", "ses_1", gateway.ErrEnded)
	}()
	resp, body := get(t, g.URL+"/")
	if resp.StatusCode != 403 || code(body) != "session_ended" {
		t.Errorf("the answer is %d %s", resp.StatusCode, body)
	}
	if resp, body := get(t, g.URL+"/"); resp.StatusCode != 403 || code(body) != "session_ended" {
		t.Errorf("after the cut the answer is %d %s", resp.StatusCode, body)
	}
	g.Live.Forget("default", "ses_1")
	g.Change = nil
	if resp, _ := get(t, g.URL+"/"); resp.StatusCode != 502 {
		t.Errorf("after it was forgotten the answer is %d", resp.StatusCode)
	}
}

// Everything of a session ends within a second: streams in which nothing
// happens, clients that do not read, uploads that hang, upstreams that are
// silent.
func TestC10ACutEndsStreams(t *testing.T) {
	var begun sync.WaitGroup
	ended := make(chan string, 10)
	to := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		defer func() { ended <- r.URL.Path }()
		rc := http.NewResponseController(w)
		switch r.URL.Path {
		case "/sse", "/other":
			w.Header().Set("Content-Type", "text/event-stream")
			io.WriteString(w, "data: one\n\n")
			rc.Flush()
		case "/flood":
			begun.Done()
			for {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		case "/upload":
			go io.Copy(io.Discard, r.Body)
		}
		begun.Done()
		<-r.Context().Done()
	})
	g := gatewaytest.Reverse(t, to)
	inject(g)
	begun.Add(5)
	conns := map[string]net.Conn{}
	for path, text := range map[string]string{
		"/sse": "GET %s", "/flood": "GET %s", "/silent": "GET %s", "/upload": "POST %s", "/other": "GET %s",
	} {
		c := gatewaytest.Dial(t, g.Addr)
		session := "ses_1"
		if path == "/other" {
			session = "ses_2"
		}
		fmt.Fprintf(c, text+" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n%s: %s\r\n", "/u/up"+path, gatewaytest.SessionHeader, session)
		if path == "/upload" {
			io.WriteString(c, "Content-Length: 100\r\n\r\nhalf")
		} else {
			io.WriteString(c, "\r\n")
		}
		conns[path] = c
	}
	begun.Wait()
	bufio.NewReaderSize(conns["/flood"], 16).ReadByte()
	for _, path := range []string{"/sse", "/other"} {
		in := bufio.NewReader(conns[path])
		for line := ""; line != "data: one\n"; {
			line, _ = in.ReadString('\n')
			if line == "" {
				t.Fatalf("%s did not begin", path)
			}
		}
	}
	if n := g.Live.Count("default", "ses_1"); n != 4 {
		t.Errorf("%d exchanges are under way, want 4", n)
	}
	at := time.Now()
	if n := g.Live.Cut("default", "ses_1", gateway.ErrEnded); n != 4 {
		t.Errorf("%d exchanges were cut, want 4", n)
	}
	for range 4 {
		if out := g.Outcome(t); out.End != gateway.Cut || !errors.Is(out.Err, gateway.ErrEnded) {
			t.Errorf("an outcome is %+v", out)
		}
		if path := <-ended; path == "/other" {
			t.Error("another session was cut")
		}
	}
	for path, c := range conns {
		if path == "/other" {
			continue
		}
		rest, _ := io.ReadAll(c)
		if told := strings.Contains(string(rest), "session_ended"); told != (path == "/silent" || path == "/upload") {
			t.Errorf("%s: the agent was told: %v", path, told)
		}
	}
	if took := time.Since(at); took > gatewaytest.Soon {
		t.Errorf("it took %v", took)
	}
	for deadline := time.Now().Add(gatewaytest.Wait); g.Live.Count("default", "ses_1") > 0; {
		if runtime.Gosched(); time.Now().After(deadline) {
			t.Fatal("exchanges are still under way")
		}
	}
	// One that may go on is asked about, and goes on.
	if n := g.Live.Recheck("default", "ses_2", func(ex *gateway.Exchange) error { return nil }); n != 0 || g.Live.Count("default", "ses_2") != 1 {
		t.Errorf("an exchange that may go on was ended")
	}
	if n := g.Live.Recheck("default", "ses_2", func(ex *gateway.Exchange) error { return errors.New("its grant has ended") }); n != 1 || g.Outcome(t).End != gateway.Cut {
		t.Errorf("an exchange that may not go on was not ended")
	}
	for deadline := time.Now().Add(gatewaytest.Wait); g.Live.Count("default", "ses_2") > 0 && time.Now().Before(deadline); {
		runtime.Gosched()
	}
	// A program that stops ends everything.
	for _, session := range []string{"ses_3", "ses_4"} {
		begun.Add(1)
		c := gatewaytest.Dial(t, g.Addr)
		fmt.Fprintf(c, "GET /u/up/silent HTTP/1.1\r\nHost: a\r\n%s: %s\r\n\r\n", gatewaytest.SessionHeader, session)
	}
	begun.Wait()
	if n := g.Live.CutAll(errors.New("the gateway stops")); n != 2 || g.Outcome(t).End != gateway.Cut || g.Outcome(t).End != gateway.Cut {
		t.Errorf("of two exchanges %d were cut", n)
	}
}

// A bad certificate is a 502 with its reason, and a pin replaces or narrows the
// roots.
func TestTheUpstreamsCertificateIsChecked(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Proto) }))
	s.Config.ErrorLog = stdlog.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	s2 := httptest.NewUnstartedServer(s.Config.Handler)
	s2.EnableHTTP2 = true
	s2.StartTLS()
	t.Cleanup(s2.Close)
	pin := sha256.Sum256(s.Certificate().RawSubjectPublicKeyInfo)
	roots := s.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	for name, c := range map[string]struct {
		change func(*gateway.Upstream)
		want   string
	}{
		"nobody":                {func(*gateway.Upstream) {}, "upstream_certificate"},
		"its root":              {func(u *gateway.Upstream) { u.Roots = roots }, "HTTP/1.1"},
		"its pin":               {func(u *gateway.Upstream) { u.Pins = [][32]byte{{}, pin} }, "HTTP/1.1"},
		"another pin":           {func(u *gateway.Upstream) { u.Pins = [][32]byte{{}} }, "upstream_certificate"},
		"its root, another pin": {func(u *gateway.Upstream) { u.Roots, u.Pins = roots, [][32]byte{{}} }, "upstream_certificate"},
		"its root, and its pin": {func(u *gateway.Upstream) { u.Roots, u.Pins = roots, [][32]byte{pin} }, "HTTP/1.1"},
	} {
		g := gatewaytest.Reverse(t, s.URL)
		c.change(&g.Upstream)
		resp, body := get(t, g.URL+"/")
		if got := body; got != c.want && code(got) != c.want {
			t.Errorf("trusting %s: %d %s, want %s", name, resp.StatusCode, body, c.want)
		}
		out := g.Outcome(t)
		if trusted := c.want == "HTTP/1.1"; trusted != (out.SPKI == pin) || trusted != (out.End == gateway.Complete) {
			t.Errorf("trusting %s: the outcome is %+v", name, out)
		}
	}
	g := gatewaytest.Reverse(t, s2.URL)
	g.Upstream.Roots = roots
	for range 3 {
		if _, body := get(t, g.URL+"/"); body != "HTTP/2.0" {
			t.Errorf("an upstream with HTTP/2 is asked in %s", body)
		}
		if out := g.Outcome(t); out.Proto != "HTTP/2.0" || out.End != gateway.Complete {
			t.Errorf("the outcome is %+v", out)
		}
	}
}
