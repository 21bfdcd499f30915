package edge_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"estover.dev/internal/edge"
)

// quiet is a logger for servers whose clients misbehave.
var quiet = slog.New(slog.DiscardHandler)

// serve runs a server with the bounds of all of ours on a loopback listener
// and gives its address.
func serve(t *testing.T, h http.HandlerFunc, config *tls.Config, change func(*http.Server)) string {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := edge.NewServer(h, quiet)
	if change != nil {
		change(s)
	}
	go s.Serve(edge.Listen(ln, config))
	t.Cleanup(func() { s.Close() })
	return ln.Addr().String()
}

// exchange writes the text to the address in one piece and reads until the
// server closes or d is over.
func exchange(t *testing.T, addr, text string, d time.Duration) string {
	t.Helper()
	c, err := net.Dial("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(d))
	io.WriteString(c, text)
	all, _ := io.ReadAll(c)
	return string(all)
}

// malformed are requests that some server reads in another way than some
// other. After each stands a request that must not be reached.
var malformed = map[string]string{
	"CL and TE":               "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"TE and CL":               "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
	"two CL":                  "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
	"list of CL":              "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\nx",
	"signed CL":               "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx",
	"negative CL":             "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\nx",
	"hex CL":                  "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1\r\n\r\nx",
	"empty CL":                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n\r\n",
	"huge CL":                 "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\nx",
	"CL with underscore":      "POST / HTTP/1.1\r\nHost: a\r\nContent_Length: 1\r\n\r\nx",
	"TE with underscore":      "POST / HTTP/1.1\r\nHost: a\r\nTransfer_Encoding: chunked\r\n\r\n0\r\n\r\n",
	"two TE":                  "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"TE twice in one":         "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
	"TE of two codings":       "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
	"TE identity":             "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n",
	"TE misspelt":             "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
	"TE with vertical tab":    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
	"TE in quotes":            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n",
	"TE in HTTP/1.0":          "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"space before the colon":  "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
	"tab before the colon":    "GET / HTTP/1.1\r\nHost: a\r\nX\t: 1\r\n\r\n",
	"continued line":          "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n",
	"continued first line":    "GET / HTTP/1.1\r\n Host: a\r\n\r\n",
	"LF alone in the head":    "GET / HTTP/1.1\r\nHost: a\nX: 1\r\n\r\n",
	"LF alone after the line": "GET / HTTP/1.1\nHost: a\r\n\r\n",
	"LF alone at the end":     "GET / HTTP/1.1\r\nHost: a\r\n\n",
	"CR alone":                "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r2\r\n\r\n",
	"NUL in a value":          "GET / HTTP/1.1\r\nHost: a\r\nX: 1\x002\r\n\r\n",
	"NUL in a name":           "GET / HTTP/1.1\r\nHost: a\r\nX\x00: 1\r\n\r\n",
	"no name":                 "GET / HTTP/1.1\r\nHost: a\r\n: 1\r\n\r\n",
	"no colon":                "GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",
	"two spaces":              "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
	"tab in the line":         "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
	"space in the target":     "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
	"raw bytes in the target": "GET /\xc0\xaf HTTP/1.1\r\nHost: a\r\n\r\n",
	"NUL in the target":       "GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
	"empty line first":        "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
	"HTTP/0.9":                "GET /\r\n\r\n",
	"HTTP/1.2":                "GET / HTTP/1.2\r\nHost: a\r\n\r\n",
	"HTTP/2 preface":          "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
	"LF alone after a chunk":  "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\nx\r\n0\r\n\r\n",
	"LF alone in a chunk end": "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\n0\r\n\r\n",
	"extension of a chunk":    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;a=\"\r\n\"\r\nx\r\n0\r\n\r\n",
	"LF in an extension":      "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;\n\r\nx\r\n0\r\n\r\n",
	"0x in a chunk's size":    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\nx\r\n0\r\n\r\n",
	"sign in a chunk's size":  "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n+1\r\nx\r\n0\r\n\r\n",
	"space in a chunk's size": "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1 \r\nx\r\n0\r\n\r\n",
	"chunk without a size":    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\r\nx\r\n0\r\n\r\n",
	"chunk too long":          "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxyz\r\n0\r\n\r\n",
	"overflowing chunk":       "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000001\r\nx\r\n0\r\n\r\n",
	"CL in a trailer":         "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 5\r\n\r\n",
	"TE in a trailer":         "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
	"LF in a trailer":         "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: 1\n\r\n",
}

const follower = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"

func TestP5MalformedRequestsAreRefused(t *testing.T) {
	var reached atomic.Int32
	addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/smuggled" {
			reached.Add(1)
			return
		}
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			panic(http.ErrAbortHandler)
		}
		reached.Add(1)
	}, nil, nil)
	for name, text := range malformed {
		for _, size := range []int{1, 3, 1 << 20} {
			if good, err := edge.ScanWhole([]byte(text), size); err == nil || !errors.Is(err, edge.ErrMalformed) {
				t.Errorf("%s, in pieces of %d: %d of %d bytes are good, %v", name, size, good, len(text), err)
			}
		}
		answer := exchange(t, addr, text+follower, 5*time.Second)
		if strings.Contains(answer, " 200 ") {
			t.Errorf("%s is answered with\n%s", name, answer)
		}
		if strings.HasPrefix(name, "two") && !strings.HasPrefix(answer, "HTTP/1.1 400 ") {
			t.Errorf("%s is answered with\n%s\nwant 400", name, answer)
		}
	}
	if n := reached.Load(); n != 0 {
		t.Errorf("%d malformed or smuggled requests reached the handler", n)
	}
}

// C4 is the same rule seen as a promise to the upstream: what the handler gets
// is one request after the other, each with its own body.
func TestC4RequestsAreToldApart(t *testing.T) {
	var seen strings.Builder
	addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		fmt.Fprintf(&seen, "%s %s %q %v\n", r.Method, r.URL, b, err)
	}, nil, nil)
	answer := exchange(t, addr, "GET /1 HTTP/1.1\r\nHost: a\r\n\r\n"+
		"POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 13\r\n\r\nGET / HTTP/1."+
		"POST /3 HTTP/1.1\r\nHost: a\r\ntransfer-encoding: Chunked\r\n\r\nA\r\nGET /x HTT\r\n00003\r\nabc\r\n0\r\nX-T: 1\r\n\r\n"+
		"GET /4 HTTP/1.1\r\nHost: a\r\nX: \t a \t\r\nConnection: close\r\n\r\n", 5*time.Second)
	want := "GET /1 \"\" <nil>\nPOST /2 \"GET / HTTP/1.\" <nil>\nPOST /3 \"GET /x HTTabc\" <nil>\nGET /4 \"\" <nil>\n"
	if seen.String() != want || strings.Count(answer, " 200 OK") != 4 {
		t.Errorf("the handler saw\n%swant\n%sthe answers are\n%s", seen.String(), want, answer)
	}
}

// Whatever the strict reading accepts, net/http reads as the same number of
// requests.
func FuzzStrict(f *testing.F) {
	for _, text := range malformed {
		f.Add([]byte(text))
		f.Add([]byte(text + follower))
	}
	f.Add([]byte(follower + "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX: y\r\n\r\n" + follower))
	f.Fuzz(func(t *testing.T, text []byte) {
		requests, whole := edge.Scan(text, 1)
		if !whole {
			return
		}
		if good, err := edge.ScanWhole(text, 7); good != len(text) || err != nil {
			t.Fatalf("in pieces of 7 bytes %d of %d are good, %v", good, len(text), err)
		}
		in := bufio.NewReader(bytes.NewReader(text))
		for i := range requests {
			r, err := http.ReadRequest(in)
			if err != nil {
				return // net/http is stricter here: it refuses and closes.
			}
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				t.Fatalf("the body of request %d: %v", i, err)
			}
		}
		if in.Buffered() > 0 {
			rest, _ := in.Peek(in.Buffered())
			t.Fatalf("net/http leaves %q of %q after %d requests", rest, text, requests)
		}
	})
}

func TestP7SlowHeadsEnd(t *testing.T) {
	cert := httptest.NewUnstartedServer(nil)
	cert.StartTLS()
	defer cert.Close()
	config := &tls.Config{Certificates: cert.TLS.Certificates, NextProtos: []string{"h2", "http/1.1"}}
	short := func(s *http.Server) {
		if s.ReadHeaderTimeout == 0 || s.ReadHeaderTimeout > time.Minute || s.IdleTimeout == 0 || s.HTTP2.SendPingTimeout == 0 {
			t.Fatalf("a head may take %v, a connection may idle for %v, or %v unanswered", s.ReadHeaderTimeout, s.IdleTimeout, s.HTTP2.SendPingTimeout)
		}
		s.ReadHeaderTimeout = 50 * time.Millisecond
		// In HTTP/2 nothing may come between the parts of a head, so that a client
		// which stops there cannot answer a ping either.
		s.HTTP2.SendPingTimeout, s.HTTP2.PingTimeout = 50*time.Millisecond, 50*time.Millisecond
	}
	reached := func(w http.ResponseWriter, r *http.Request) { t.Errorf("%s %s reached the handler", r.Proto, r.URL) }
	clear := serve(t, reached, nil, short)
	if got := exchange(t, clear, "GET / HTTP/1.1\r\nHost: a\r\nX: ", 5*time.Second); got != "" {
		t.Errorf("a head that stops is answered with %q", got)
	}
	// HTTP/2 is not spoken in clear, neither at once nor after an upgrade.
	if got := exchange(t, clear, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", 5*time.Second); !strings.HasPrefix(got, "HTTP/1.1 400 ") {
		t.Errorf("HTTP/2 in clear is answered with %q", got)
	}
	over := serve(t, reached, config, short)
	for _, alpn := range []string{"http/1.1", "h2"} {
		c, err := tls.Dial("tcp4", over, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{alpn}})
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(5 * time.Second))
		if alpn == "h2" {
			// The preface and settings, then a head that is never complete.
			io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x01\x01\x00\x00\x00\x00\x01\x82")
		} else {
			io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\nX: ")
		}
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("over %s a head that stops keeps the connection", alpn)
		}
		c.Close()
	}
}

func TestP9HeadsOfManyBytesAreRefused(t *testing.T) {
	addr := serve(t, func(w http.ResponseWriter, r *http.Request) { t.Error("reached") }, nil, nil)
	got := exchange(t, addr, "GET / HTTP/1.1\r\nHost: a\r\nX: "+strings.Repeat("x", 80<<10)+"\r\n\r\n", 5*time.Second)
	if !strings.HasPrefix(got, "HTTP/1.1 431 ") {
		t.Errorf("a head of 80 KiB is answered with %.60q, want 431", got)
	}
}

func TestListenerSpeaksBothVersionsOverTLS(t *testing.T) {
	cert := httptest.NewUnstartedServer(nil)
	cert.StartTLS()
	defer cert.Close()
	addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s over %v", r.Proto, r.TLS != nil)
	}, &tls.Config{Certificates: cert.TLS.Certificates, NextProtos: []string{"h2", "http/1.1"}}, nil)
	// A connection that never shakes hands keeps nobody waiting.
	idle, err := net.Dial("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	for h2, want := range map[bool]string{false: "HTTP/1.1 over true", true: "HTTP/2.0 over true"} {
		tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: h2}
		resp, err := (&http.Client{Transport: tr}).Get("https://" + addr)
		if err != nil {
			t.Fatal(err)
		}
		got, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		tr.CloseIdleConnections()
		if string(got) != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// The strict reading against the reading of net/http that follows it.
func BenchmarkStrict(b *testing.B) {
	text := []byte("POST /v1/customers/42?expand=orders HTTP/1.1\r\nHost: crm.example.com\r\nUser-Agent: python-requests/2.32\r\nAccept-Encoding: gzip, deflate\r\n" +
		"Accept: */*\r\nConnection: keep-alive\r\nContent-Type: application/json\r\nContent-Length: 1024\r\nAuthorization: Bearer " + strings.Repeat("t", 700) + "\r\n\r\n" + strings.Repeat("x", 1024))
	b.Run("strict", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if n, err := edge.ScanWhole(text, 4096); n != len(text) || err != nil {
				b.Fatal(n, err)
			}
		}
	})
	b.Run("net/http", func(b *testing.B) {
		in := bytes.NewReader(text)
		buf := bufio.NewReader(in)
		for b.Loop() {
			in.Reset(text)
			buf.Reset(in)
			r, err := http.ReadRequest(buf)
			if err != nil {
				b.Fatal(err)
			}
			io.Copy(io.Discard, r.Body)
		}
	})
}

// A request whose body came along with its head is told from one whose body is
// still under way, or that was not alone.
func TestArrived(t *testing.T) {
	t.Run("plain", func(t *testing.T) { testArrived(t, nil) })
	t.Run("TLS", func(t *testing.T) {
		s := httptest.NewTLSServer(nil)
		t.Cleanup(s.Close)
		testArrived(t, &tls.Config{Certificates: s.TLS.Certificates})
	})
}

func testArrived(t *testing.T, secured *tls.Config) {
	asked := make(chan bool)
	s := edge.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- edge.Arrived(r)
		io.Copy(io.Discard, r.Body)
	}), slog.New(slog.DiscardHandler))
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(edge.Listen(ln, secured))
	t.Cleanup(func() { s.Close() })
	const head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n"
	for _, c := range []struct {
		first, then string
		want        []bool
	}{
		{head + "body", "", []bool{true}},
		{head + "bo", "dy", []bool{false}},
		{head, "body", []bool{false}},
		{head + "body" + head, "body", []bool{false, false}},
		{head + "body" + head + "bo", "dy", []bool{false, false}},
		{"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n", "", []bool{true}},
	} {
		conn, err := net.Dial("tcp4", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if secured != nil {
			conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
		}
		io.WriteString(conn, c.first)
		for i, want := range c.want {
			if got := <-asked; got != want {
				t.Errorf("request %d of %q: %v, want %v", i, c.first, got, want)
			}
			if i == 0 && c.then != "" {
				io.WriteString(conn, c.then)
			}
		}
		conn.Close()
	}
}
