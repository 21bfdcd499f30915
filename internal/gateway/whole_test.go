package gateway_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"reflect"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"estover.dev"
	"estover.dev/internal/gateway"
	"estover.dev/internal/gateway/gatewaytest"
	"estover.dev/internal/redact"
)

// A seen is what a call looked like from all sides.
type seen struct {
	Upstream                  string // what it was sent, to the byte
	Sent, Received, Delivered []string
	Status                    int
	Header                    http.Header
	Body                      string
	Trailer                   http.Header
	End                       gateway.End
	Err                       string
	Counted                   [3]int64
	Answered                  int
	Echoed                    []string
	Kept                      []string // cookies and tokens
}

// A witness is a tap that notes what it sees, and whether it is asked by the proxy.
type witness struct {
	pieces  []string
	byProxy bool
}

func (w *witness) Head(b []byte) error {
	w.pieces = append(w.pieces, "head "+string(b))
	w.byProxy = bytes.Contains(debug.Stack(), []byte("httputil.(*ReverseProxy)"))
	return nil
}

func (w *witness) Body(b []byte) error {
	if n := len(w.pieces); n > 0 && strings.HasPrefix(w.pieces[n-1], "body ") {
		w.pieces[n-1] += string(b) // how it is cut is nobody's affair
	} else {
		w.pieces = append(w.pieces, "body "+string(b))
	}
	return nil
}

func (w *witness) Tail(b []byte) error {
	w.pieces = append(w.pieces, "tail "+string(b))
	return nil
}

// A scene is a request, what is done with it, and the answer of the upstream in its
// pieces, between which it waits.
type scene struct {
	request             string
	slots               []gateway.Slot
	trips, finds, keeps bool // placeholders, what was injected, cookies
	buffers, identity   bool // the body is read for a decision, no answer is to be compressed
	jar                 bool
	tokens              string // "", "known" or "guessed"
	limits              gateway.Limits
	answer              []string
	more                bool // and something behind it, for which nobody asked: to a line alone, since the transport may not have seen it when it is used again
}

// A stage plays scenes: a gateway before an upstream that answers as it is told.
type stage struct {
	*gatewaytest.Gateway
	upstream string // where it is
	proxied  bool   // nothing goes without the proxy

	mu    sync.Mutex
	scene scene
	asked string
	eras  int // an upstream that has answered in HTTP/1.0 is another
}

const (
	dated  = "Date: Thu, 26 Nov 2026 00:00:00 GMT\r\n"
	warmUp = "HTTP/1.1 200 OK\r\n" + dated + "Content-Length: 4\r\n\r\nwarm"
)

func newStage(t *testing.T, proxied bool) *stage {
	s := &stage{proxied: proxied}
	up := gatewaytest.Raw(t, func(c net.Conn, _ int) {
		var text bytes.Buffer
		in := bufio.NewReader(io.TeeReader(c, &text))
		for {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				return // it was broken off
			}
			answer := []string{warmUp}
			if r.URL.Path != "/warm" {
				s.mu.Lock()
				s.asked, answer = text.String(), s.scene.answer
				s.mu.Unlock()
			}
			text.Reset()
			if s.more(r) {
				answer = append(answer[:len(answer)-1:len(answer)-1], answer[len(answer)-1]+warmUp)
			}
			for i, piece := range answer {
				if i > 0 {
					time.Sleep(2 * time.Millisecond)
				}
				if _, err := io.WriteString(c, piece); err != nil {
					return
				}
			}
			if strings.Contains(strings.Join(answer, ""), "Connection: close") {
				return
			}
		}
	})
	s.Gateway, s.upstream = gatewaytest.Reverse(t, up), strings.TrimPrefix(up, "http://")
	s.Late = func(_ *gateway.Exchange, p *gateway.Plan) error {
		p.Slots, p.Credential = s.scene.slots, "sec_1@1"
		if s.scene.finds {
			p.Needles, _ = redact.NewMatcher(redact.Value{Name: "sec_1@1", Text: []byte(key)})
		}
		return nil
	}
	return s
}

// more reports whether there is something behind the answer to a request.
func (s *stage) more(r *http.Request) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.scene.more && !s.proxied && r.URL.Path != "/warm"
}

// play plays a scene, and reports whether it was the proxy that carried the request.
func (s *stage) play(t *testing.T, sc scene) (saw seen, byProxy bool) {
	s.mu.Lock()
	s.scene, s.asked = sc, ""
	s.mu.Unlock()
	s.Upstream.Revision = fmt.Sprint(s.eras)
	if strings.Contains(strings.Join(sc.answer, ""), "HTTP/1.0") {
		s.eras++
	}
	if s.proxied {
		s.Change = nil
		answer := gatewaytest.Talk(t, s.Addr, "GET /u/up/warm HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n")
		if !strings.HasSuffix(answer, "warm") {
			t.Fatalf("the upstream cannot be reached: %q", answer)
		}
		s.Outcome(t)
		gateway.ByProxy(s.Forwarder) // now that there is a pool
	}
	var sent, received, delivered witness
	tripwire, _ := redact.NewMatcher(redact.Value{Name: "placeholder", Text: []byte("estover-placeholder-1")})
	s.Change = func(r *http.Request, ex *gateway.Exchange, p *gateway.Plan) error {
		ex.Caller.Request = "req_1" // which our own answers name
		if sc.buffers {
			if _, err := gateway.Buffer(r, 1<<20); err != nil {
				return err
			}
		}
		p.Identity = sc.identity
		if sc.jar {
			p.Jar = func(set []*http.Cookie) { saw.Kept = append(saw.Kept, fmt.Sprint(set)) }
		}
		if sc.tokens != "" {
			p.TokenGuess = sc.tokens == "guessed"
			p.Tokens = func(member string, value estover.Secret) (string, error) {
				saw.Kept = append(saw.Kept, member+" "+string(value.Reveal()))
				return "a-handle-of-" + member, nil
			}
		}
		p.Sent, p.Received, p.Delivered, p.Cookies, p.Limits = &sent, &received, &delivered, sc.keeps, sc.limits
		if sc.trips {
			p.Tripwire = tripwire
		}
		return nil
	}
	c := gatewaytest.Dial(t, s.Addr)
	defer c.Close()
	if _, err := io.WriteString(c, sc.request); err != nil {
		t.Fatal(err)
	}
	method, _, _ := strings.Cut(sc.request, " ")
	in := bufio.NewReader(c)
	res, err := http.ReadResponse(in, &http.Request{Method: method})
	for err == nil && res.StatusCode < 200 {
		saw.Body += fmt.Sprintln(res.StatusCode, res.Header)
		res, err = http.ReadResponse(in, &http.Request{Method: method})
	}
	if err != nil {
		t.Fatalf("reading the answer to %q: %v", sc.request, err)
	}
	body, err := io.ReadAll(res.Body)
	out := s.Outcome(t)
	s.mu.Lock()
	saw.Upstream = s.asked
	s.mu.Unlock()
	saw.Sent, saw.Received, saw.Delivered = sent.pieces, received.pieces, delivered.pieces
	saw.Status, saw.Header, saw.Trailer = res.StatusCode, res.Header, res.Trailer
	saw.Body += string(body) + fmt.Sprint(err)
	if saw.Header.Get("Content-Type") == "application/problem+json" { // of ours
		delete(saw.Header, "Date")
	}
	if all := strings.Join(sc.answer, ""); strings.Contains(all, "Content-Encoding: gzip") || !strings.Contains(all, "Content-Length: ") {
		delete(saw.Header, "Content-Length") // of what it is not told the server may find out the length, or not,
		delete(saw.Header, "Connection")     // and in HTTP/1.0 it keeps the connection if it has
	}
	saw.End, saw.Err, saw.Answered, saw.Echoed = out.End, fmt.Sprint(out.Err), out.Answered, out.Echoed
	saw.Counted = [3]int64{out.Sent, out.Received, out.Delivered}
	return saw, sent.byProxy
}

// scenes draws what may happen.
func scenes(t *rapid.T) scene {
	pick := func(what string, of ...string) string { return rapid.SampledFrom(of).Draw(t, what) }
	some := func(what string) bool { return rapid.IntRange(0, 3).Draw(t, what) == 0 }
	sc := scene{
		trips: some("trips"), finds: !some("finds nothing"), keeps: some("keeps cookies"), buffers: some("buffers"), identity: some("identity"),
		jar: some("jar"), tokens: pick("tokens", "", "", "", "known", "guessed"),
	}
	version := pick("version", "HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0")
	method := pick("method", "GET", "GET", "POST", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "PURGE")
	head := method + " /u/up" + pick("path", "/", "/a/b", "/a%20b/%C3%A4", "/(a)'!$&*+,=:@", "/estover-placeholder-1") +
		pick("query", "", "", "?", "?a=1&b=%20", "?Access_Token=mine&x[]=2", "?access-token=mine&a", "?access_token=estover-placeholder-1", "?q=estover-placeholder-1") + " " + version + "\r\nHost: gateway\r\n"
	for _, line := range []string{
		"Accept: */*", "Accept-Encoding: gzip, br", "Connection: keep-alive", "Connection: X-Hop, keep-alive", "Cookie: a=b; c=d", "Cookie: e=f",
		"Dpop: proof", "Forwarded: for=me", "Keep-Alive: timeout=5", "Proxy-Foo: bar", "Te: trailers", "Te: deflate", "User-Agent: one/1.0", "User-Agent: two",
		"X-Api-Key: mine", "X_Api_Key: mine", "X-Empty:", "X-Forwarded-For: 10.0.0.1", "X-Hop: here", "X-Many: 1", "X-Many: 2", "x-lower:\tspaced \t ", "X-Text: a\tb  c",
		"Sec-Websocket-Extensions: permessage-deflate", "X-Trip: estover-placeholder-1", "Authorization: Bearer mine", "Estover-Purpose: support",
		"Connection: close", "Connection: authorization, x-api-key", "Connection:", "Trailer: X-End", "Signature: sig", "Signature-Input: sig", "Proxy-Authorization: Basic mine",
		"X_Forwarded_For: 10.0.0.1", "X.Access.Token: mine", "Remote_User: root", "User_Agent: three", "User-Agent:", "Content-Type: application/x-www-form-urlencoded",
		"Estover-Placeholder-1: a", "X-Long: " + strings.Repeat("long ", 60), "!#$%&'*+-.^_`|~: odd", "Range: bytes=0-", "Upgrade-Insecure-Requests: 1", "X-Text: \x80\xff",
	} {
		rare := strings.HasPrefix(line, "Te: ") || strings.HasPrefix(line, "User-Agent") || strings.HasPrefix(line, "Connection: a") || strings.HasPrefix(line, "Connection:") && len(line) < 12 ||
			strings.Contains(line, "X-Hop, ") || strings.HasSuffix(strings.ToLower(line), "placeholder-1") || strings.HasPrefix(line, "Estover-Pl")
		if some(line) && (!rare || some("rare")) {
			head += line + "\r\n"
		}
	}
	if some("expects") && some("really") && some("to wait for a second") {
		head += "Expect: 100-continue\r\n"
	}
	body := strings.Repeat("0123456789abcdef", rapid.SampledFrom([]int{0, 0, 1, 64, 1024, 2048}).Draw(t, "body"))
	if some("odd") {
		body += "estover-placeholder-1"
	}
	switch {
	case body == "" && method != "POST":
	case version == "HTTP/1.1" && some("chunked"):
		head += "Transfer-Encoding: chunked\r\n"
		if body != "" {
			body = fmt.Sprintf("%x\r\n%s\r\n", len(body), body)
		}
		body += "0\r\n\r\n"
	default:
		head += fmt.Sprintf("Content-Length: %d\r\n", len(body))
	}
	sc.request = head + "\r\n" + body
	secret := estover.NewSecret([]byte(key))
	for _, slot := range []gateway.Slot{
		{Kind: gateway.HeaderSlot, Name: "authorization", Prefix: "Bearer ", Secret: secret, Label: "sec_1@1"},
		{Kind: gateway.HeaderSlot, Name: "X-Api-Key", Secret: secret, Label: "sec_1@1"},
		{Kind: gateway.HeaderSlot, Name: "User-Agent", Prefix: "agent ", Secret: secret, Label: "sec_1@1"},
		{Kind: gateway.BasicSlot, User: "user", Secret: secret, Label: "sec_1@1"},
		{Kind: gateway.QuerySlot, Name: "access_token", Secret: secret, Label: "sec_1@1"},
		{Kind: gateway.QuerySlot, Name: "a b&c", Secret: estover.NewSecret([]byte(key + "&=%#\r\n \xff")), Label: "sec_2@1"},
		{Kind: gateway.HeaderSlot, Name: "X_Api_Key", Prefix: " \t spaces ", Secret: estover.NewSecret([]byte(key + " \t ")), Label: "sec_2@1"},
		{Kind: gateway.HeaderSlot, Name: "AUTHORIZATION", Prefix: "            ", Secret: secret, Label: "sec_2@1"},
		{Kind: gateway.BasicSlot, User: " a user\r\nX-Line \xff", Secret: secret, Label: "sec_2@1"},
		{Kind: gateway.HeaderSlot, Name: "cookie", Prefix: "s=", Secret: secret, Label: "sec_1@1"},
		{Kind: gateway.HeaderSlot, Name: pick("an odd slot", "Content-Length", "te", "connection", "host", "TRANSFER-ENCODING", "Proxy-Authorization", "x-forwarded-for", "Accept-Encoding"), Secret: secret, Label: "sec_1@1"},
	} {
		if some("slot") && (len(sc.slots) == 0 || some("more slots")) {
			sc.slots = append(sc.slots, slot)
		}
	}
	if some("limits") {
		sc.limits = gateway.Limits{Request: 4096, Answer: 2048}
	}

	answer := pick("answered in", "HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0") + " " +
		pick("status", "200 OK", "200 OK", "200 OK", "201 Made", "204 No Content", "205 Reset", "206 Part", "301 Moved", "304 Not Modified", "401 Who", "404 Not Found", "500 Fault", "799 Odd", "042 Odd") +
		"\r\n" + dated
	if some("hints") {
		answer = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nX-Hint: " + key + "\r\nConnection: X-Gone\r\nX-Gone: 1\r\n\r\n" + answer
	}
	for _, line := range []string{
		"Alt-Svc: h3", "Connection: X-Hop", "Connection: close", "Content-Type: text/plain", "Content-Type: text/event-stream", "Dpop-Nonce: n", "Keep-Alive: timeout=5",
		"Location: /a/b", "Proxy-Authenticate: Basic", "Set-Cookie: s=1", "Strict-Transport-Security: max-age=1", "Upgrade: h2c", "X-Echo: " + key, "X-Hop: there",
		"X-Many: 1", "X-Many: 2", "x-lower: \t a", "Trailer: X-End", "Content-Encoding: identity", "Content-Type: application/json", "Content-Type: application/x-www-form-urlencoded",
		fmt.Sprintf("%x: 1", key), "X-Spaced : 1", "Set_Cookie: s=2", "Content-Location: " + key, "X-Accel-Buffering: yes", "Estover-Decision: forged", "Proxy-Connection: keep-alive", "Content-Range: bytes 0-1/2",
		"Cache-Control: no-store",
	} {
		if some(line) && (!strings.HasPrefix(line, "Content-Type") || !strings.Contains(answer, "Content-Type")) {
			answer += line + "\r\n"
		}
	}
	text := strings.Repeat("an answer of some words ", rapid.SampledFrom([]int{0, 1, 40, 90, 300}).Draw(t, "answer"))
	if some("echo") {
		text += key + " and on"
	}
	switch {
	case !some("tokens"):
	case strings.Contains(answer, "application/json"):
		text = `{"access_token": "` + key + `", "more": [{"id_token": "b"}, "` + text + `"]}`
	case strings.Contains(answer, "x-www-form-urlencoded"):
		text = "access_token=a&refresh_token=b&text=" + strings.ReplaceAll(text, " ", "+")
	}
	if some("gzip") && !strings.Contains(answer, "Content-Encoding") {
		answer += "Content-Encoding: gzip\r\n"
		text = zipped(text)
	}
	how := pick("framing", "sized", "sized", "sized", "chunked", "until the end")
	switch {
	case strings.Contains(answer, " 204 ") || strings.Contains(answer, " 304 ") || method == "HEAD":
		if some("length of nothing") {
			answer += "Content-Length: 5\r\n"
		}
		sc.answer = []string{answer + "\r\n"}
		return sc
	case how == "sized":
		answer += fmt.Sprintf("Content-Length: %d\r\n\r\n", len(text))
	case how == "chunked" && !strings.Contains(answer, "HTTP/1.0"):
		answer += "Transfer-Encoding: chunked\r\n\r\n"
		text = fmt.Sprintf("%x\r\n%s\r\n0\r\n", len(text), text)
		if strings.Contains(answer, "Trailer: ") {
			text += "X-End: " + key + "\r\n"
		}
		text += "\r\n"
	default:
		answer = strings.Replace(answer, "\r\n"+dated, "\r\nConnection: close\r\n"+dated, 1) + "\r\n"
	}
	sc.answer = []string{answer + text}
	if some("late") && text != "" {
		at := rapid.IntRange(0, len(text)-1).Draw(t, "at")
		sc.answer = []string{answer + text[:at], text[at:]}
	}
	if some("slow") {
		at := rapid.IntRange(1, len(answer)-1).Draw(t, "of the head")
		sc.answer = append([]string{sc.answer[0][:at], sc.answer[0][at:]}, sc.answer[1:]...)
	}
	sc.more = how == "sized" && some("more")
	return sc
}

func zipped(text string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	io.WriteString(w, text)
	w.Close()
	return b.String()
}

// What goes without the proxy is what it would have been by the proxy, from all sides.
func TestWholeIsAsByTheProxy(t *testing.T) {
	lined, proxied := newStage(t, false), newStage(t, true)
	without, all := 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		sc := scenes(rt)
		got, by := lined.play(t, sc)
		want, always := proxied.play(t, sc)
		all++
		if !by && got.Upstream != "" {
			without++
		}
		if !always && len(want.Sent) > 0 {
			rt.Fatalf("the proxy was not asked")
		}
		port := func(s seen, stage *stage) seen { // each has an upstream of its own
			s.Upstream = strings.ReplaceAll(s.Upstream, stage.upstream, "upstream")
			s.Sent = slices.Clone(s.Sent)
			for i := range s.Sent {
				s.Sent[i] = strings.ReplaceAll(s.Sent[i], stage.upstream, "upstream")
			}
			return s
		}
		got, want = port(got, lined), port(want, proxied)
		g, w := reflect.ValueOf(got), reflect.ValueOf(want)
		for i := range g.NumField() {
			if !reflect.DeepEqual(g.Field(i).Interface(), w.Field(i).Interface()) {
				rt.Fatalf("%s by a line: %q\nby the proxy: %q\nof %+v", g.Type().Field(i).Name, g.Field(i), w.Field(i), sc)
			}
		}
	})
	t.Logf("%d of %d went without the proxy", without, all)
	if without < all/8 {
		t.Errorf("only %d of %d went without the proxy", without, all)
	}
}

// counted is an upstream that gives the answer to each request, and what it was sent.
func counted(t *testing.T, answer string) (url string, sent func() string) {
	var mu sync.Mutex
	var all strings.Builder
	url = gatewaytest.Raw(t, func(c net.Conn, _ int) {
		in := bufio.NewReader(io.TeeReader(c, writing(func(b []byte) {
			mu.Lock()
			defer mu.Unlock()
			all.Write(b)
		})))
		for {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			io.Copy(io.Discard, r.Body)
			io.WriteString(c, answer)
		}
	})
	return url, func() string {
		mu.Lock()
		defer mu.Unlock()
		return all.String()
	}
}

type writing func(b []byte)

func (w writing) Write(b []byte) (int, error) { w(b); return len(b), nil }

// C4: what net/http would not send is not sent, and nothing of it.
func TestC4ARequestIsOneRequest(t *testing.T) {
	up, sent := counted(t, warmUp)
	g := gatewaytest.Reverse(t, up)
	for i, spoil := range []func(*http.Request){
		func(r *http.Request) { r.Method = "GET /other?" },
		func(r *http.Request) { r.Header["User-Agent"] = []string{"a\r\nX-More: b"} },
		func(r *http.Request) { r.Header["X-Text"] = []string{"a\r\nX-More: b"} },
		func(r *http.Request) { r.Header["X-Text: a\r\nX-More"] = []string{"b"} },
	} {
		for _, proxied := range []bool{false, true} {
			g.Change = func(r *http.Request, _ *gateway.Exchange, _ *gateway.Plan) error {
				spoil(r)
				if proxied {
					r.Header["Te"] = []string{"trailers"}
				}
				return nil
			}
			resp, _ := get(t, g.URL+"/")
			if out := g.Outcome(t); resp.StatusCode != http.StatusBadGateway || out.End != gateway.Failed || sent() != "" {
				t.Errorf("%d, by the proxy: %v: it is answered with %d, the outcome is %+v, the upstream got %q", i, proxied, resp.StatusCode, out, sent())
			}
		}
	}
}

// A client that closes its connection to us says nothing about ours to the upstream.
func TestALineOutlivesItsClient(t *testing.T) {
	up, _ := counted(t, warmUp)
	g := gatewaytest.Reverse(t, up)
	for _, how := range []string{"HTTP/1.1\r\nConnection: close", "HTTP/1.0", "HTTP/1.0\r\nConnection: close"} {
		gateway.AgeLines(g.Forwarder, time.Hour)
		gatewaytest.Talk(t, g.Addr, "GET /u/up/ "+how+"\r\nHost: gateway\r\n\r\n")
		if out := g.Outcome(t); out.End != gateway.Complete || gateway.FreeLines(g.Forwarder) != 1 {
			t.Errorf("%q: %d lines are kept, the outcome is %+v", how, gateway.FreeLines(g.Forwarder), out)
		}
	}
}

// A status that there is not is no answer, and ours is not the fault.
func TestAStatusThatThereIsNot(t *testing.T) {
	for _, status := range []string{"000", "042", "099"} {
		up, _ := counted(t, "HTTP/1.1 "+status+" Odd\r\nContent-Length: 4\r\n\r\nbody")
		for _, proxied := range []bool{false, true} {
			g := gatewaytest.Reverse(t, up)
			g.Change = func(r *http.Request, _ *gateway.Exchange, _ *gateway.Plan) error {
				if proxied {
					r.Header["Expect"] = []string{"100-continue"} // by the transport
				}
				return nil
			}
			resp, body := get(t, g.URL+"/")
			if out := g.Outcome(t); resp.StatusCode != http.StatusBadGateway || code(body) != "upstream_answer" || !errors.Is(out.Err, gateway.ErrAnswer) {
				t.Errorf("%s, by the transport: %v: it is answered with %d %s, the outcome is %+v", status, proxied, resp.StatusCode, body, out)
			}
			if n := gateway.FreeLines(g.Forwarder); n != 0 {
				t.Errorf("%s: %d lines are kept", status, n)
			}
		}
	}
}

// C10: what is cut before it is sent is not sent.
func TestC10NothingIsSentAfterTheCut(t *testing.T) {
	for _, method := range []string{"GET", "POST"} {
		up, sent := counted(t, warmUp)
		g := gatewaytest.Reverse(t, up)
		get(t, g.URL+"/")
		g.Outcome(t)
		if n := gateway.FreeLines(g.Forwarder); n != 1 {
			t.Fatalf("there are %d lines", n)
		}
		before := sent()
		g.Change = func(_ *http.Request, _ *gateway.Exchange, p *gateway.Plan) error {
			p.Sent = cutting(func() { g.Live.Cut("default", "ses_1", gateway.ErrEnded) })
			return nil
		}
		resp, body := do(t, method, g.URL+"/", nil)
		if out := g.Outcome(t); resp.StatusCode != http.StatusForbidden || code(body) != "session_ended" || out.End != gateway.Cut {
			t.Errorf("%s: it is answered with %d %s, the outcome is %+v", method, resp.StatusCode, body, out)
		}
		time.Sleep(20 * time.Millisecond) // in which it would be read
		if after := sent(); after != before {
			t.Errorf("%s: after the cut the upstream got %q", method, after[len(before):])
		}
		g.Quiet(t)
	}
}

// cutting is a tap that does something when the head comes.
type cutting func()

func (c cutting) Head([]byte) error { c(); return nil }
func (c cutting) Body([]byte) error { return nil }
func (c cutting) Tail([]byte) error { return nil }

// Nothing of a request, and nothing of an answer that is not masked, stays in memory that
// is used again.
func TestNothingStaysInMemoryThatIsUsedAgain(t *testing.T) {
	slot := gateway.Slot{Kind: gateway.HeaderSlot, Name: "X-Key", Prefix: strings.Repeat(" ", 20), Secret: estover.NewSecret([]byte(key)), Label: "sec_1@1"}
	if left := bytes.Trim(gateway.Left(slot), "\x00"); len(left) > 0 {
		t.Errorf("of the request there is left %q", left)
	}

	up, _ := counted(t, "HTTP/1.1 200 OK\r\nX-Echo: "+key+"\r\nContent-Length: 24\r\n\r\n"+key)
	g := gatewaytest.Reverse(t, up)
	inject(g)
	for _, panics := range []bool{false, true} {
		keeps := &keeping{panics: panics}
		g.Change = func(_ *http.Request, _ *gateway.Exchange, p *gateway.Plan) error {
			p.Received = keeps
			return nil
		}
		gatewaytest.Talk(t, g.Addr, "GET /u/up/ HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n")
		if out := g.Outcome(t); out.End != gateway.Failed || len(keeps.seen) != 2 {
			t.Fatalf("the outcome is %+v, the tap saw %q", out, keeps.seen)
		}
		for _, b := range keeps.seen {
			if bytes.Contains(b, []byte(key)) {
				t.Errorf("panics: %v: of the answer there is left %q", panics, b)
			}
		}
	}
}

// A keeping tap keeps what is only good during the call, and fails at the body.
type keeping struct {
	panics bool
	seen   [][]byte
}

func (k *keeping) Head(b []byte) error { k.seen = append(k.seen, b); return nil }
func (k *keeping) Tail([]byte) error   { return nil }

func (k *keeping) Body(b []byte) error {
	k.seen = append(k.seen, b)
	if k.panics {
		panic(http.ErrAbortHandler)
	}
	return io.ErrShortWrite
}

// C8: handles may be much longer than the tokens for which they stand.
func TestC8HandlesMayBeLongerThanTheAnswer(t *testing.T) {
	form := strings.TrimSuffix(strings.Repeat("t=&", 1300), "&")
	up, _ := counted(t, fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n%s", len(form), form))
	g := gatewaytest.Reverse(t, up)
	inject(g)
	g.Change = func(_ *http.Request, _ *gateway.Exchange, p *gateway.Plan) error {
		p.TokenMembers = []string{"t"}
		p.Tokens = func(string, estover.Secret) (string, error) { return strings.Repeat("h", 40), nil }
		return nil
	}
	resp, body := get(t, g.URL+"/")
	if out := g.Outcome(t); resp.StatusCode != http.StatusOK || strings.Count(body, "hhhh&t=hhhh") != 1299 || out.End != gateway.Complete {
		t.Errorf("%d with %d bytes, the outcome is %+v", resp.StatusCode, len(body), out)
	}
}
