package gateway_test

import (
	"bufio"
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"estover.dev/internal/gateway"
	"estover.dev/internal/gateway/gatewaytest"
	"estover.dev/internal/redact"
)

// overBoth runs a test with an upstream that does with each connection what serve
// does, without TLS and with it.
func overBoth(t *testing.T, serve func(c net.Conn, n int), test func(t *testing.T, g *gatewaytest.Gateway)) {
	t.Run("plain", func(t *testing.T) { test(t, gatewaytest.Reverse(t, gatewaytest.Raw(t, serve))) })
	t.Run("TLS", func(t *testing.T) {
		s := httptest.NewTLSServer(nil)
		t.Cleanup(s.Close)
		to := gatewaytest.Raw(t, func(c net.Conn, n int) {
			serve(tls.Server(c, &tls.Config{Certificates: s.TLS.Certificates}), n)
		})
		g := gatewaytest.Reverse(t, strings.Replace(to, "http:", "https:", 1))
		g.Upstream.Roots = x509.NewCertPool()
		g.Upstream.Roots.AddCert(s.Certificate())
		get(t, g.URL+"/first") // by net/http's transport, which hears that it speaks HTTP/1.1
		if out := g.Outcome(t); out.End != gateway.Complete {
			t.Fatalf("the first outcome is %+v", out)
		}
		test(t, g)
	})
}

// answering serves requests on a connection: each is answered with its path, and
// then a path of one word is done on top.
func answering(more func(c net.Conn, word string) (goOn bool)) func(net.Conn, int) {
	return func(c net.Conn, _ int) {
		in := bufio.NewReader(c)
		for {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return
			}
			word := strings.Trim(r.URL.Path, "/")
			text := word + string(body)
			answer := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
			switch word {
			case "closing":
				answer = strings.Replace(answer, "\r\n", "\r\nConnection: close\r\n", 1)
			case "twice": // in one piece, so that both have come before the next request
				answer += strings.ReplaceAll(answer, "twice", "WRONG")
			case "nothing":
				answer = "HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nWRONG"
			case "chunked":
				answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: A\r\n\r\n3\r\nchu\r\n4\r\nnked\r\n0\r\nA: b\r\n\r\n"
			}
			if _, err := io.WriteString(c, answer); err != nil || more != nil && !more(c, word) {
				return
			}
		}
	}
}

// C4: a line is used again after an answer that was read to its end, and after no
// other: nobody gets what came after the answer to another request.
func TestC4ALineCarriesNothingOver(t *testing.T) {
	var conns atomic.Int32
	count := answering(func(_ net.Conn, word string) bool { return word != "hangup" })
	overBoth(t, func(c net.Conn, n int) { conns.Add(1); count(c, n) }, func(t *testing.T, g *gatewaytest.Gateway) {
		ask := func(word, body string) {
			t.Helper()
			method := http.MethodGet
			if body != "" {
				method = http.MethodPost
			}
			want := word + body
			if word == "nothing" {
				want = ""
			}
			resp, got := do(t, method, g.URL+"/"+word, strings.NewReader(body))
			if got != want {
				t.Errorf("%s %s: %d %q", method, word, resp.StatusCode, got)
			}
			if out := g.Outcome(t); out.End != gateway.Complete {
				t.Errorf("%s %s: the outcome is %+v", method, word, out)
			}
		}
		ask("warm", "")
		for _, c := range []struct {
			word string
			kept bool
		}{{"plain", true}, {"chunked", true}, {"closing", false}, {"twice", false}, {"nothing", false}, {"hangup", false}} {
			ask("warm", "")
			before := conns.Load()
			ask(c.word, "")
			if c.word == "hangup" { // its end is on its way
				await(t, "the end of the connection", func() bool { return gateway.QuietLines(g.Forwarder) == 0 })
			}
			ask("next", "")
			ask("posted", " with a body")
			if kept := conns.Load() == before; kept != c.kept {
				t.Errorf("after %s the connection was used again: %v, want %v", c.word, kept, c.kept)
			}
		}
	})
}

// A body that was read for a decision goes out by a line with its head, up to 64 KiB of
// it, whether or not its upstream listens before it answers.
func TestLongBodiesGoByALine(t *testing.T) {
	answer := strings.Repeat("an answer. ", 400_000)
	var conns atomic.Int32
	overBoth(t, func(c net.Conn, _ int) {
		conns.Add(1)
		in := bufio.NewReader(c)
		for {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			if r.URL.Path == "/deaf" {
				if _, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(answer), answer); err != nil {
					return
				}
			}
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return
			}
			if r.URL.Path != "/deaf" {
				fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
			}
		}
	}, func(t *testing.T, g *gatewaytest.Gateway) {
		conns.Store(0)
		g.Change = func(r *http.Request, _ *gateway.Exchange, _ *gateway.Plan) error {
			_, err := gateway.Peek(r, 64<<10)
			return err
		}
		body := strings.Repeat("0123456789abcdef", 4<<10)
		for _, path := range []string{"/echo", "/deaf", "/echo"} {
			want := body
			if path == "/deaf" {
				want = answer
			}
			resp, got := do(t, http.MethodPost, g.URL+path, strings.NewReader(body))
			if resp.StatusCode != http.StatusOK || got != want {
				t.Errorf("%s: %d and %d bytes, want %d", path, resp.StatusCode, len(got), len(want))
			}
			if out := g.Outcome(t); out.End != gateway.Complete || out.Sent != int64(len(body)) {
				t.Errorf("%s: the outcome is %+v", path, out)
			}
		}
		if g.Upstream.Roots == nil && (conns.Load() != 1 || gateway.FreeLines(g.Forwarder) != 1) {
			t.Errorf("%d connections were opened and %d lines are free, want one", conns.Load(), gateway.FreeLines(g.Forwarder))
		}
	})
}

// What an upstream does not take at once goes on beside its answer, and until it has
// all been taken the line is nobody else's.
func TestARequestThatIsTakenLate(t *testing.T) {
	text := []byte(strings.Repeat("0123456789abcdef", 4<<10))
	ours, theirs := net.Pipe()
	t.Cleanup(func() { ours.Close() })
	sent, err := gateway.Send(ours, text)
	if err != nil || sent() {
		t.Fatalf("nothing was read, and it is said to be sent: %v, %v", sent(), err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(theirs, got); err != nil || string(got) != string(text) {
		t.Errorf("%v, or not what was sent", err)
	}
	await(t, "the end of the request", sent)

	if sent, err = gateway.Send(ours, text); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	if _, err := ours.Read(got); err != io.EOF { // as who reads the answer hears
		t.Errorf("reading from an upstream that hung up: %v", err)
	}
	if sent() {
		t.Error("what nobody has taken is said to be sent")
	}
}

// An upstream that refuses a body by its head, and hangs up before it has taken the body,
// has answered: its answer is not lost.
func TestAnAnswerBeforeTheBodyIsTaken(t *testing.T) {
	little := func(option int) func(_, _ string, c syscall.RawConn) error { // of what nobody reads is kept
		return func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, option, 4<<10) })
		}
	}
	listen := net.ListenConfig{Control: little(syscall.SO_RCVBUF)}
	ln, err := listen.Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			if _, err = http.ReadRequest(bufio.NewReader(c)); err == nil {
				_, _ = io.WriteString(c, "HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nno!")
			}
			c.Close()
		}
	}()
	dialer := net.Dialer{Control: little(syscall.SO_SNDBUF)}
	for range 20 {
		c, err := dialer.DialContext(t.Context(), "tcp4", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		res, err := gateway.Ask(c, long(t), gatewaytest.Wait)
		if err != nil {
			t.Fatalf("the answer is lost: %v", err)
		}
		if text, err := io.ReadAll(res.Body); res.StatusCode != http.StatusRequestEntityTooLarge || string(text) != "no!" {
			t.Fatalf("%d %q, %v", res.StatusCode, text, err)
		}
		c.Close()
	}
}

// The time within which an answer begins is counted from the end of the request, however
// late its upstream listens.
func TestTheAnswerToWhatIsTakenLate(t *testing.T) {
	ours, theirs := net.Pipe()
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	time.AfterFunc(1500*time.Millisecond, func() {
		r, err := http.ReadRequest(bufio.NewReader(theirs))
		if err == nil {
			_, err = io.Copy(io.Discard, r.Body)
		}
		if err == nil {
			_, _ = io.WriteString(theirs, "HTTP/1.1 204 No Content\r\n\r\n")
		}
	})
	if _, err := gateway.Ask(ours, long(t), time.Second); err != nil {
		t.Errorf("an upstream that answers as soon as it has heard all: %v", err)
	}
}

// An upstream that answers before it listens gets what it is sent all the same, and then
// the line is free; where it does not listen at all, the line ends.
func TestAnAnswerBeforeTheRest(t *testing.T) {
	text := []byte(strings.Repeat("0123456789abcdef", 4<<10))
	ours, theirs := net.Pipe()
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	kept, err := gateway.Answered(ours, text)
	if err != nil || kept() != 0 {
		t.Fatalf("a line with the rest of a request is kept: %v", err)
	}
	got := make([]byte, len(text))
	if n, err := io.ReadFull(theirs, got); err != nil || string(got) != string(text) {
		t.Errorf("%d bytes of %d came: %v", n, len(text), err)
	}
	await(t, "the line that is free again", func() bool { return kept() == 1 })

	ours, theirs = net.Pipe()
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	if kept, err = gateway.Answered(ours, text); err != nil {
		t.Fatal(err)
	}
	await(t, "the end of the line", func() bool {
		_, err := ours.Write(nil)
		return errors.Is(err, io.ErrClosedPipe)
	})
	if kept() != 0 {
		t.Error("a line is kept whose request nobody has taken")
	}
}

// long is a request with 64 KiB.
func long(t *testing.T) *http.Request {
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://upstream.example/", strings.NewReader(strings.Repeat("0123456789abcdef", 4<<10)))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// C4: whatever an upstream answers, in whatever order, an agent gets the answer to its
// own request or learns that there is none; and a connection is used again after what
// leaves it clean, and only then.
func TestC4AModelOfLines(t *testing.T) {
	// What becomes of a connection after each answer, and of the answer.
	type kind struct{ clean, whole bool }
	kinds := map[string]kind{
		"plain": {true, true}, "chunked": {true, true}, "empty": {true, true}, "hinted": {true, true},
		"closing": {false, true}, "twice": {false, true}, "nothing": {false, true}, "old": {false, true}, "tail": {false, true},
		"half": {false, false}, "broken": {false, false}, "silent": {false, false}, "miscounted": {false, false},
	}
	answers := map[string]string{
		"plain":   "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n@@",
		"chunked": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n@\r\n1\r\n@\r\n0\r\n\r\n",
		"empty":   "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
		"hinted":  "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n@@",
		"closing": "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n@@",
		"twice":   "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n@@HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n!!",
		"nothing": "HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n!!",
		"old":     "HTTP/1.1 200 OK\r\n\r\n@@", // which ends with its connection
		"tail":    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n@@\r\n0\r\n\r\n!",
		"half":    "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n@@",
		"broken":  "HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\n@@",
		"silent":  "",
		// After this both are at the end of what has come, and neither knows of which answer.
		"miscounted": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n@@\r\nzz\r\n",
	}
	var conns atomic.Int32
	overBoth(t, func(c net.Conn, _ int) {
		conns.Add(1)
		in := bufio.NewReader(c)
		for {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			word, mark := cmp.Or(r.URL.Query().Get("answer"), "empty"), r.URL.Query().Get("mark")
			if _, err := io.WriteString(c, strings.ReplaceAll(answers[word], "@", mark)); err != nil || word == "old" || word == "half" || word == "silent" {
				return
			}
		}
	}, func(t *testing.T, g *gatewaytest.Gateway) {
		session := 0
		rapid.Check(t, func(rt *rapid.T) {
			session++
			free := false // a connection of this session waits
			for i := range rapid.IntRange(1, 8).Draw(rt, "requests") {
				word := rapid.SampledFrom(slices.Sorted(maps.Keys(kinds))).Draw(rt, "answer")
				mark := string(rune('a' + i))
				before := conns.Load()
				// A new pool behind TLS has to hear first that its upstream speaks HTTP/1.1.
				resp, got := get(t, g.URL+"/?answer="+word+"&mark="+mark, func(r *http.Request) { r.Header.Set(gatewaytest.SessionHeader, fmt.Sprint("ses_m", session)) })
				g.Outcome(t)
				if want := marked(answers[word], mark); kinds[word].whole && (resp.StatusCode >= 300 || got != want) {
					rt.Errorf("request %d, %s: %d %q, want %q", i, word, resp.StatusCode, got, want)
				}
				if !kinds[word].whole && resp.StatusCode < 300 && !strings.Contains(got, "[") {
					rt.Errorf("request %d, %s: %d %q, which is not the whole", i, word, resp.StatusCode, got)
				}
				if strings.Contains(got, "!") {
					rt.Errorf("request %d, %s: %q has what nobody asked for", i, word, got)
				}
				if opened := conns.Load() - before; free && opened != 0 && g.Upstream.Roots == nil {
					rt.Errorf("request %d, %s: %d connections were opened where one was free", i, word, opened)
				} else if !free && opened == 0 {
					rt.Errorf("request %d, %s: a connection was used that was not clean", i, word)
				}
				free = kinds[word].clean
			}
		})
	})
}

// marked is the body that an answer of the model has.
func marked(answer, mark string) string {
	return strings.Repeat(mark, strings.Count(answer, "@"))
}

// await waits until something is so.
func await(t *testing.T, what string, so func() bool) {
	t.Helper()
	for end := time.Now().Add(gatewaytest.Wait); !so(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s did not come", what)
		}
	}
}

// C4: many at once, of which each gets the answer to its own request, whatever
// becomes of the connections. An answer that comes too late is nobody's.
func TestC4EachGetsItsOwnAnswer(t *testing.T) {
	var n atomic.Int64
	overBoth(t, answering(func(net.Conn, string) bool { return n.Add(1)%7 != 0 }), func(t *testing.T, g *gatewaytest.Gateway) {
		words := []string{"plain", "chunked", "closing", "twice"}
		var all sync.WaitGroup
		var served atomic.Int64
		for i := range 64 {
			all.Go(func() {
				for j := range 10 {
					word := words[(i+j)%len(words)]
					body := fmt.Sprintf(" %d.%d", i, j)
					if word == "chunked" {
						body = ""
					}
					resp, got := do(t, http.MethodPost, g.URL+"/"+word, strings.NewReader(body))
					// Whose connection ended under it is told so, and nothing else.
					if resp.StatusCode == http.StatusOK && got == word+body {
						served.Add(1)
					} else if resp.StatusCode != http.StatusBadGateway {
						t.Errorf("%s%s: %d %q", word, body, resp.StatusCode, got)
					}
				}
			})
		}
		all.Wait()
		if served.Load() < 320 {
			t.Errorf("%d of 640 were served", served.Load())
		}
	})
}

// P17: lines are closed when they were not used for a minute, and when their
// session ends; what is under way then goes on.
func TestP17LinesEnd(t *testing.T) {
	held, hold := make(chan struct{}), make(chan struct{})
	g := gatewaytest.Reverse(t, gatewaytest.Raw(t, answering(nil)))
	slow := gatewaytest.Reverse(t, upstream(t, func(_ http.ResponseWriter, _ *http.Request) { close(held); <-hold }))
	get(t, g.URL+"/a")
	g.Outcome(t)
	gateway.AgeLines(g.Forwarder, 59*time.Second)
	if n := gateway.FreeLines(g.Forwarder); n != 1 {
		t.Errorf("after 59 seconds there are %d lines, want 1", n)
	}
	gateway.AgeLines(g.Forwarder, time.Second)
	if n := gateway.FreeLines(g.Forwarder); n != 0 {
		t.Errorf("after a minute there are %d lines, want none", n)
	}
	get(t, g.URL+"/a")
	g.Outcome(t)
	g.Forwarder.Drop("default", "ses_1")
	if n := gateway.FreeLines(g.Forwarder); n != 0 {
		t.Errorf("after its session there are %d lines, want none", n)
	}
	var done sync.WaitGroup
	done.Go(func() {
		if resp, body := get(t, slow.URL+"/"); resp.StatusCode != http.StatusOK {
			t.Errorf("what was under way when its session's lines were closed: %d %s", resp.StatusCode, body)
		}
	})
	<-held
	slow.Forwarder.Drop("default", "ses_1")
	close(hold)
	done.Wait()
	if out := slow.Outcome(t); out.End != gateway.Complete {
		t.Errorf("its outcome is %+v", out)
	}
}

// An upstream behind TLS that goes over to HTTP/2 is asked in HTTP/2.
func TestAnUpstreamGoesOverToHTTP2(t *testing.T) {
	var two atomic.Bool
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		io.WriteString(w, r.Proto+" "+string(text))
	}))
	s.EnableHTTP2 = true
	s.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		c := s.TLS.Clone()
		if !two.Load() {
			c.NextProtos = []string{"http/1.1"}
		}
		return c, nil
	}}
	s.StartTLS()
	t.Cleanup(s.Close)
	g := gatewaytest.Reverse(t, s.URL)
	g.Upstream.Roots = x509.NewCertPool()
	g.Upstream.Roots.AddCert(s.Certificate())
	var saw witness
	g.Change = func(_ *http.Request, _ *gateway.Exchange, p *gateway.Plan) error {
		p.Sent = &saw
		return nil
	}
	for i, want := range []string{"HTTP/1.1", "HTTP/1.1", "HTTP/2.0", "HTTP/2.0"} { // the second and the third begin with a line
		saw = witness{}
		if i == 2 {
			two.Store(true)
			gateway.AgeLines(g.Forwarder, time.Minute) // so that the next one is opened
		}
		res, err := http.Post(g.URL+"/", "text/plain", strings.NewReader("a body"))
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if string(body) != want+" a body" {
			t.Errorf("request %d was made as %s, want %s", i, body, want)
		}
		if out := g.Outcome(t); out.End != gateway.Complete || out.Proto != want || out.Sent != 6 {
			t.Errorf("the outcome of request %d is %+v", i, out)
		}
		if len(saw.pieces) != 2 || saw.pieces[1] != "body a body" || saw.byProxy != (i == 0 || i == 3) {
			t.Errorf("of request %d the tap saw %q, of the proxy: %v", i, saw.pieces, saw.byProxy)
		}
	}
}

// The head of an answer has a bound, informational ones included, and a protocol
// for which nobody asked is none.
func TestALineRefusesWhatNobodyAskedFor(t *testing.T) {
	long := strings.Repeat("a", 1<<10)
	overBoth(t, func(c net.Conn, _ int) {
		in := bufio.NewReader(c)
		for {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			answer := "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
			switch r.URL.Path {
			case "/head":
				answer = "HTTP/1.1 200 OK\r\n" + strings.Repeat("A: "+long+"\r\n", 300) + "\r\n"
			case "/hints":
				answer = strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: "+long+"\r\n\r\n", 300)
			case "/switch":
				answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
			}
			if _, err := io.WriteString(c, answer); err != nil {
				return
			}
		}
	}, func(t *testing.T, g *gatewaytest.Gateway) {
		for _, path := range []string{"/fine", "/head", "/fine", "/hints", "/fine", "/switch", "/fine"} {
			resp, body := get(t, g.URL+path)
			out := g.Outcome(t)
			if fine := path == "/fine"; fine != (body == "ok" && out.End == gateway.Complete) || !fine && (resp.StatusCode != 502 || code(body) != "upstream_failed" || out.End != gateway.Failed) {
				t.Errorf("%s: %d %s; %+v", path, resp.StatusCode, body, out)
			}
		}
	})
}

// A body that a step has read goes out as it came, past limit, tripwire and tap; what
// is refused there reaches nobody.
func TestABodyThatWasReadBefore(t *testing.T) {
	var reached atomic.Int32
	g := gatewaytest.Reverse(t, upstream(t, func(w http.ResponseWriter, r *http.Request) {
		reached.Add(1)
		b, _ := io.ReadAll(r.Body)
		w.Write(b)
	}))
	trip, _ := redact.NewMatcher(redact.Value{Name: "placeholder", Text: []byte("estover-placeholder-")})
	var seen *log
	g.Change = func(r *http.Request, _ *gateway.Exchange, p *gateway.Plan) error {
		seen = &log{}
		p.Tripwire, p.Limits.Request, p.Sent = trip, 40<<10, seen
		_, err := gateway.Peek(r, 64<<10)
		return err
	}
	long := strings.Repeat("0123456789", 3<<10)
	for _, c := range []struct {
		name, text string
		status     int
		end        gateway.End
	}{
		{"short", "hello", 200, gateway.Complete},
		{"long", long, 200, gateway.Complete},
		{"too long", long + long, 413, gateway.Truncated},
		{"with a placeholder", `{"note":"estover-placeholder-1"}`, 403, gateway.Refused},
		{"long, with a placeholder", long + "estover-placeholder-1", 403, gateway.Refused},
	} {
		for _, streamed := range []bool{false, true} {
			reached.Store(0)
			var body io.Reader = strings.NewReader(c.text)
			if streamed {
				body = io.MultiReader(body)
			}
			resp, answer := do(t, http.MethodPost, g.URL+"/", body)
			out := g.Outcome(t)
			if fine := c.status == 200; resp.StatusCode != c.status || fine != (answer == c.text) || fine != strings.HasSuffix(seen.String(), "|"+c.text) || fine != (reached.Load() == 1) {
				t.Errorf("%s, streamed %v: %d, %d bytes came back, the tap saw %.80q, the upstream was reached %d times", c.name, streamed, resp.StatusCode, len(answer), seen.String(), reached.Load())
			}
			// What is too long by its own word is refused before it is read.
			if end := c.end; out.End != end && (streamed || out.End != gateway.Refused) {
				t.Errorf("%s, streamed %v: the outcome is %+v, want %s", c.name, streamed, out, end)
			}
			if fine := c.status == 200; fine && out.Sent != int64(len(c.text)) {
				t.Errorf("%s, streamed %v: %d bytes were sent, want %d", c.name, streamed, out.Sent, len(c.text))
			}
		}
	}
}

// C4: what came along with an answer inside TLS, in a record of its own, is found too.
func TestC4ARecordBehindTheAnswer(t *testing.T) {
	s := httptest.NewTLSServer(nil)
	t.Cleanup(s.Close)
	var conns atomic.Int32
	to := gatewaytest.Raw(t, func(c net.Conn, _ int) {
		conns.Add(1)
		held := &holding{Conn: c}
		secured := tls.Server(held, &tls.Config{Certificates: s.TLS.Certificates})
		in := bufio.NewReader(secured)
		for {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			held.hold = true
			io.WriteString(secured, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			if r.URL.Path == "/twice" {
				io.WriteString(secured, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nWRONG")
			}
			held.release()
		}
	})
	g := gatewaytest.Reverse(t, strings.Replace(to, "http:", "https:", 1))
	g.Upstream.Roots = x509.NewCertPool()
	g.Upstream.Roots.AddCert(s.Certificate())
	for i, path := range []string{"/first", "/fine", "/fine", "/twice", "/fine", "/fine"} {
		if resp, body := get(t, g.URL+path); body != "ok" {
			t.Errorf("request %d, %s: %d %q", i, path, resp.StatusCode, body)
		}
		g.Outcome(t)
	}
	if n := conns.Load(); n != 3 { // of net/http's transport, and two lines
		t.Errorf("there were %d connections, want 3", n)
	}
}

// A holding connection sends what was written while it was held at once.
type holding struct {
	net.Conn
	hold bool
	held []byte
}

func (h *holding) Write(p []byte) (int, error) {
	if h.hold {
		h.held = append(h.held, p...)
		return len(p), nil
	}
	return h.Conn.Write(p)
}

func (h *holding) release() {
	h.hold = false
	h.Conn.Write(h.held)
	h.held = nil
}
