package gateway_test

import (
	"bufio"
	"bytes"
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
	limits              gateway.Limits
	answer              []string
}

// A stage plays scenes: a gateway before an upstream that answers as it is told.
type stage struct {
	*gatewaytest.Gateway
	upstream string // where it is
	proxied  bool   // nothing goes without the proxy

	mu    sync.Mutex
	scene scene
	asked string
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
			for i, piece := range answer {
				if i > 0 {
					time.Sleep(2 * time.Millisecond)
				}
				if _, err := io.WriteString(c, piece); err != nil {
					return
				}
			}
			if strings.Contains(answer[0], "Connection: close") {
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

// play plays a scene, and reports whether it was the proxy that carried the request.
func (s *stage) play(t *testing.T, sc scene) (saw seen, byProxy bool) {
	s.mu.Lock()
	s.scene, s.asked = sc, ""
	s.mu.Unlock()
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
	s.Change = func(_ *http.Request, ex *gateway.Exchange, p *gateway.Plan) error {
		ex.Caller.Request = "req_1" // which our own answers name
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
	saw.End, saw.Err, saw.Answered, saw.Echoed = out.End, fmt.Sprint(out.Err), out.Answered, out.Echoed
	saw.Counted = [3]int64{out.Sent, out.Received, out.Delivered}
	return saw, sent.byProxy
}

// scenes draws what may happen.
func scenes(t *rapid.T) scene {
	pick := func(what string, of ...string) string { return rapid.SampledFrom(of).Draw(t, what) }
	some := func(what string) bool { return rapid.IntRange(0, 3).Draw(t, what) == 0 }
	sc := scene{trips: some("trips"), finds: !some("finds nothing"), keeps: some("keeps cookies")}
	method := pick("method", "GET", "GET", "POST", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "PURGE")
	head := method + " /u/up" + pick("path", "/", "/a/b", "/a%20b/%C3%A4", "/(a)'!$&*+,=:@", "/estover-placeholder-1") +
		pick("query", "", "", "?", "?a=1&b=%20", "?Access_Token=mine&x[]=2", "?q=estover-placeholder-1") + " HTTP/1.1\r\nHost: gateway\r\n"
	for _, line := range []string{
		"Accept: */*", "Accept-Encoding: gzip, br", "Connection: keep-alive", "Connection: X-Hop, keep-alive", "Cookie: a=b; c=d", "Cookie: e=f",
		"Dpop: proof", "Forwarded: for=me", "Keep-Alive: timeout=5", "Proxy-Foo: bar", "Te: trailers", "Te: deflate", "User-Agent: one/1.0", "User-Agent: two",
		"X-Api-Key: mine", "X_Api_Key: mine", "X-Empty:", "X-Forwarded-For: 10.0.0.1", "X-Hop: here", "X-Many: 1", "X-Many: 2", "x-lower:\tspaced \t ", "X-Text: a\tb  c",
		"Sec-Websocket-Extensions: permessage-deflate", "X-Trip: estover-placeholder-1", "Authorization: Bearer mine", "Estover-Purpose: support",
	} {
		rare := strings.HasPrefix(line, "Te: ") || strings.HasSuffix(line, ": two") || strings.Contains(line, "X-Hop, ")
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
	case some("chunked"):
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
	} {
		if some("slot") {
			sc.slots = append(sc.slots, slot)
		}
	}
	if some("limits") {
		sc.limits = gateway.Limits{Request: 4096, Answer: 2048}
	}

	answer := "HTTP/1.1 " + pick("status", "200 OK", "200 OK", "201 Made", "204 No Content", "304 Not Modified", "404 Not Found", "500 Fault") + "\r\n" + dated
	if some("hints") {
		answer = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nX-Hint: " + key + "\r\nConnection: X-Gone\r\nX-Gone: 1\r\n\r\n" + answer
	}
	for _, line := range []string{
		"Alt-Svc: h3", "Connection: X-Hop", "Connection: close", "Content-Type: text/plain", "Content-Type: text/event-stream", "Dpop-Nonce: n", "Keep-Alive: timeout=5",
		"Location: /a/b", "Proxy-Authenticate: Basic", "Set-Cookie: s=1", "Strict-Transport-Security: max-age=1", "Upgrade: h2c", "X-Echo: " + key, "X-Hop: there",
		"X-Many: 1", "X-Many: 2", "x-lower: \t a", "Trailer: X-End", "Content-Encoding: identity",
	} {
		if some(line) {
			answer += line + "\r\n"
		}
	}
	text := strings.Repeat("an answer of some words ", rapid.SampledFrom([]int{0, 1, 40, 90, 300}).Draw(t, "answer"))
	if some("echo") {
		text += key + " and on"
	}
	how := pick("framing", "sized", "sized", "sized", "chunked", "until the end")
	if text == "" && how != "sized" {
		text = "." // of an answer without end the proxy tells the length 0 if it is quick
	}
	switch {
	case strings.Contains(answer, " 204 ") || strings.Contains(answer, " 304 ") || method == "HEAD":
		sc.answer = []string{answer + "\r\n"}
		return sc
	case how == "sized":
		answer += fmt.Sprintf("Content-Length: %d\r\n\r\n", len(text))
	case how == "chunked":
		answer += "Transfer-Encoding: chunked\r\n\r\n"
		text = fmt.Sprintf("%x\r\n%s\r\n0\r\n", len(text), text)
		if strings.Contains(answer, "Trailer: ") {
			text += "X-End: " + key + "\r\n"
		}
		text += "\r\n"
	default:
		answer = strings.Replace(answer, "\r\n"+dated, "\r\nConnection: close\r\n"+dated, 1) + "\r\n"
	}
	if sc.answer = []string{answer + text}; some("late") && text != "" {
		at := rapid.IntRange(0, len(text)-1).Draw(t, "at")
		sc.answer = []string{answer + text[:at], text[at:]}
	}
	return sc
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
