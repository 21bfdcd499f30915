package edge_test

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"estover.dev/internal/edge"
)

// served starts a server of ours over TLS, for HTTP/1.1 and HTTP/2.
func served(t *testing.T, h http.Handler) (addr string, config *tls.Config) {
	t.Helper()
	borrowed := httptest.NewTLSServer(nil)
	borrowed.Close()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := edge.NewServer(h, slog.New(slog.DiscardHandler))
	go s.Serve(edge.Listen(ln, &tls.Config{Certificates: borrowed.TLS.Certificates, NextProtos: []string{"h2", "http/1.1"}}))
	t.Cleanup(func() { s.Close() })
	return ln.Addr().String(), borrowed.Client().Transport.(*http.Transport).TLSClientConfig
}

// clients are one for each version of HTTP.
func clients(config *tls.Config) map[string]*http.Client {
	all := map[string]*http.Client{}
	for name, two := range map[string]bool{"HTTP/1.1": false, "HTTP/2.0": true} {
		protocols := new(http.Protocols)
		protocols.SetHTTP1(!two)
		protocols.SetHTTP2(two)
		all[name] = &http.Client{Transport: &http.Transport{TLSClientConfig: config.Clone(), Protocols: protocols}}
	}
	return all
}

const short = 50 * time.Millisecond

// Whoever sends the body of a request byte by byte is cut, and so is whoever
// does not take the answer.
func TestSlowClientsAreGivenUp(t *testing.T) {
	failed := make(chan error, 1)
	mux := http.NewServeMux()
	mux.HandleFunc("POST /in", func(_ http.ResponseWriter, r *http.Request) {
		_, err := io.ReadAll(r.Body)
		failed <- err
	})
	mux.HandleFunc("GET /out", func(w http.ResponseWriter, _ *http.Request) {
		_, err := w.Write(make([]byte, 64<<20))
		failed <- err
	})
	addr, config := served(t, edge.Pace{Body: short, Piece: short}.Handler(mux))
	for name, c := range clients(config) {
		body, more := io.Pipe()
		go func() { _, _ = more.Write([]byte("half of it")) }()
		go func() {
			if resp, err := c.Post("https://"+addr+"/in", "text/plain", body); err == nil {
				_ = resp.Body.Close()
			}
		}()
		select {
		case err := <-failed:
			if err == nil {
				t.Errorf("%s: a body that does not come was read", name)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%s: a body that does not come is waited for", name)
		}
		_ = more.Close()

		resp, err := c.Get("https://" + addr + "/out")
		if err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-failed:
			if err == nil {
				t.Errorf("%s: an answer that nobody takes was written", name)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%s: an answer that nobody takes is held", name)
		}
		_ = resp.Body.Close()
	}
}

// The pace is the client's. A handler takes as long as it needs, and the next
// request on the connection begins afresh, whoever answers it. Where the machine is
// so busy that even a client which does not dawdle is too slow, it has more time.
func TestSlowHandlersAreNot(t *testing.T) {
	var said []string
	for _, pace := range []time.Duration{short, 10 * short, 60 * short} {
		if said = slowly(t, pace); len(said) == 0 {
			return
		}
		t.Logf("with a pace of %s: %q", pace, said)
	}
	t.Errorf("at any pace: %q", said)
}

// slowly has handlers take four times as long as a client may, and tells what went
// wrong.
func slowly(t *testing.T, pace time.Duration) (wrong []string) {
	t.Helper()
	var mu sync.Mutex
	tell := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		wrong = append(wrong, fmt.Sprintf(format, args...))
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /work", func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			tell("reading the body: %v", err)
		}
		select {
		case <-time.After(4 * pace):
		case <-r.Context().Done():
			tell("the request was given up: %v", r.Context().Err())
		}
		_, _ = w.Write(b)
	})
	mux.HandleFunc("POST /quiet", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-time.After(4 * pace)
		w.WriteHeader(http.StatusNoContent)
	})
	slow := edge.Pace{Body: pace, Piece: pace}.Handler(mux)
	addr, config := served(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/stream" {
			slow.ServeHTTP(w, r)
			return
		}
		edge.Unpaced(w)
		for range 4 {
			_, _ = w.Write([]byte("on and "))
			_ = http.NewResponseController(w).Flush()
			<-time.After(pace)
		}
	}))
	for name, c := range clients(config) {
		for _, step := range []struct{ path, want string }{{"/work", "a body"}, {"/quiet", ""}, {"/stream", "on and on and on and on and "}, {"/work", "a body"}} {
			resp, err := c.Post("https://"+addr+step.path, "text/plain", strings.NewReader("a body"))
			if err != nil {
				tell("%s %s: %v", name, step.path, err)
				continue
			}
			var b bytes.Buffer
			if _, err := b.ReadFrom(resp.Body); err != nil || b.String() != step.want || resp.StatusCode >= 300 {
				tell("%s %s: %d %q, %v; want %q", name, step.path, resp.StatusCode, b.String(), err, step.want)
			}
			_ = resp.Body.Close()
		}
	}
	mu.Lock()
	defer mu.Unlock()
	return wrong
}

// Connections that never shake hands do not keep others out.
func TestIdleHandshakesMakeRoom(t *testing.T) {
	addr, config := served(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	for range 300 {
		c, err := net.Dial("tcp4", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	begun := time.Now()
	resp, err := clients(config)["HTTP/1.1"].Get("https://" + addr)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if took := time.Since(begun); took > 9*time.Second {
		t.Errorf("behind 300 connections that do not shake hands it took %s", took)
	}
}
