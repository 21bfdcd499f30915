package server_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"estover.dev/internal/db/dbtest"
)

// cpu is the time that the process has used.
func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkCall is a call through the gateway from its door to its outcome: by a
// reverse route, with a key injected, both bodies hashed, the heads recorded and the
// evidence batched. The client and the upstream make nothing for a request, so what is
// counted is the server's.
func BenchmarkCall(b *testing.B) {
	h := build(b, dbtest.SQLite(b))
	text := bytes.Repeat([]byte(`{"id":12345,"name":"Customer"}, `), 1<<10/32)
	up, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { up.Close() })
	answer := fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: Tue, 02 Jan 2024 15:04:05 GMT\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
	go func() {
		for {
			c, err := up.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for buf := make([]byte, 8<<10); readMessage(c, buf) > 0; {
					if _, err := c.Write(answer); err != nil {
						return
					}
				}
			}()
		}
	}()
	h.add(fmt.Sprintf(`
apiVersion: estover.dev/v1
kind: Secret
metadata: {name: shop/key}
spec: {class: confidential, destinations: ["shop.example.com:80"]}
---
apiVersion: estover.dev/v1
kind: Resource
metadata: {name: shop}
spec:
  base_url: http://shop.example.com
  address: %s
  allow_private: [127.0.0.0/8]
  class: internal
  evidence: batched
  slots: [{slot: header, name: Authorization, prefix: "Bearer ", secret: shop/key}]
  actions: [{name: answer.read, method: POST, path: "/{size}", effect: read}]
`, up.Addr()), "shop")
	h.must(http.MethodPost, "/v1/secret/versions?path=shop/key", map[string]any{"fields": map[string]string{"value": "a key that no answer of the upstream holds"}}, nil)
	token := h.tokenFor(h.openSession(), "http://shop.example.com")
	request := fmt.Appendf(nil, "POST /u/shop/1024 HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", h.addr, token, len(text), text)
	b.SetParallelism(4)
	b.ReportAllocs()
	var failed atomic.Int64
	before := cpu()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		c, err := net.Dial("tcp4", h.addr)
		if err != nil {
			b.Error(err)
			return
		}
		defer c.Close()
		buf := make([]byte, 8<<10)
		for pb.Next() {
			if _, err := c.Write(request); err != nil {
				b.Error(err)
				return
			}
			n := readMessage(c, buf)
			if !bytes.HasPrefix(buf[:n], []byte("HTTP/1.1 200 ")) || !bytes.HasSuffix(buf[:n], text) {
				if failed.Add(1) == 1 {
					b.Errorf("a call was answered with %q", buf[:n])
				}
				return
			}
		}
	})
	b.StopTimer()
	b.ReportMetric(float64(cpu()-before)/float64(b.N)/1000, "cpu-µs/op")
}

// readMessage reads a request or an answer that says how long it is, and gives its
// length with its head; 0 if none comes that fits.
func readMessage(r io.Reader, buf []byte) int {
	n, want, length := 0, 0, 0
	for want == 0 || n < want {
		more, err := r.Read(buf[n:])
		if err != nil {
			return 0
		}
		n += more
		if end := bytes.Index(buf[:n], []byte("\r\n\r\n")); want == 0 && end >= 0 {
			want = end + 4
			if at := bytes.Index(buf[:end], []byte("Content-Length: ")); at >= 0 {
				for _, c := range buf[at+len("Content-Length: ") : end] {
					if c < '0' || c > '9' {
						break
					}
					length = length*10 + int(c-'0')
				}
				want += length
			}
		}
	}
	return n
}
