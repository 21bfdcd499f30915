package gateway_test

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"syscall"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/gateway"
	"estover.dev/internal/gateway/gatewaytest"
	"estover.dev/internal/redact"
)

// cpu is the time that the process has used.
func cpu() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkForwarder measures the processor time of a request: without a proxy,
// through a bare ReverseProxy, and through the forwarder with both bodies
// hashed, and with an injected secret. What a proxy costs is the difference to
// "direct"; the forwarder's is to be at most 1.5 times the bare one's.
func BenchmarkForwarder(b *testing.B) {
	for name, size := range map[string]int{"1KiB": 1 << 10, "64KiB": 64 << 10} {
		text := bytes.Repeat([]byte(`{"id":12345,"name":"Customer"},`), size/31+1)[:size]
		up := upstream(b, func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Type", "application/json")
			w.Write(text)
		})
		to, _ := url.Parse(up)
		bare := &httputil.ReverseProxy{
			Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(to) },
			Transport: &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true},
		}
		ln, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		server := &http.Server{Handler: bare}
		go server.Serve(ln)
		b.Cleanup(func() { server.Close() })

		hashed := gatewaytest.Reverse(b, up)
		hashed.Change = hashes(false)
		injected := gatewaytest.Reverse(b, up)
		injected.Change = hashes(true)
		needles, _ := redact.NewMatcher(redact.Value{Name: "sec_crm@1", Text: []byte(key)})
		injected.Late = func(_ *gateway.Exchange, p *gateway.Plan) error {
			p.Slots = []gateway.Slot{{Kind: gateway.HeaderSlot, Name: "Authorization", Prefix: "Bearer ", Secret: estover.NewSecret([]byte(key)), Label: "sec_crm@1"}}
			p.Needles, p.Credential = needles, "sec_crm@1"
			return nil
		}
		for _, way := range []struct{ name, url string }{
			{"direct", up + "/v1/customers"},
			{"bare", "http://" + ln.Addr().String() + "/v1/customers"},
			{"hashed", hashed.URL + "/v1/customers"},
			{"injected", injected.URL + "/v1/customers"},
		} {
			b.Run(name+"/"+way.name, func(b *testing.B) {
				client := &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}
				defer client.CloseIdleConnections()
				b.ReportAllocs()
				before := cpu()
				b.RunParallel(func(pb *testing.PB) {
					buf := make([]byte, 32<<10)
					for pb.Next() {
						r, _ := http.NewRequest("POST", way.url, bytes.NewReader(text))
						resp, err := client.RoundTrip(r)
						if err != nil {
							b.Error(err)
							return
						}
						n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{resp.Body}, buf)
						resp.Body.Close()
						// The bare proxy breaks some answers off when the machine is busy,
						// see [gateway]'s own way with bodies.
						if (n != int64(size) || err != nil) && way.name != "bare" {
							b.Errorf("%d bytes came, %v", n, err)
						}
					}
				})
				b.ReportMetric(float64(cpu()-before)/float64(b.N), "cpu-ns/op")
				hashed.Drain()
				injected.Drain()
			})
		}
	}
}

// hashes makes the plan of a call whose request and answer are hashed; where
// something is injected, the answer twice.
func hashes(both bool) func(*http.Request, *gateway.Exchange, *gateway.Plan) error {
	salt := make([]byte, 32)
	return func(_ *http.Request, _ *gateway.Exchange, p *gateway.Plan) error {
		p.Sent, p.Delivered = gateway.NewHash(salt), gateway.NewHash(salt)
		if both {
			p.Received = gateway.NewHash(salt)
		}
		return nil
	}
}
