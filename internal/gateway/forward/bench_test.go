package forward_test

import (
	"bytes"
	"crypto/tls"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"syscall"
	"testing"
	"time"

	"estover.dev/internal/gateway"
)

// BenchmarkInterception measures the processor time of a request through a warm
// tunnel, over TLS on both sides, against a bare ReverseProxy between the same.
// What a proxy costs is the difference to "direct" (gateway.md, section 19: at
// most 1.5 times).
func BenchmarkInterception(b *testing.B) {
	p := start(b)
	host, s := crm(b, p)
	text := bytes.Repeat([]byte("x"), 1024)
	s.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Write(text)
	})
	p.Late = nil
	p.Change = func(_ *http.Request, _ *gateway.Exchange, plan *gateway.Plan) error {
		plan.Sent, plan.Delivered = gateway.NewHash(nil), gateway.NewHash(nil)
		return nil
	}
	to, _ := url.Parse(s.URL)
	trust := &tls.Config{InsecureSkipVerify: true}
	bare := httptest.NewTLSServer(&httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(to) },
		Transport: &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true, TLSClientConfig: trust},
	})
	b.Cleanup(bare.Close)
	for name, way := range map[string]struct {
		client *http.Client
		url    string
	}{
		"direct":      {&http.Client{Transport: &http.Transport{TLSClientConfig: trust, MaxIdleConnsPerHost: 64}}, s.URL},
		"bare":        {&http.Client{Transport: &http.Transport{TLSClientConfig: trust, MaxIdleConnsPerHost: 64}}, bare.URL},
		"intercepted": {p.session(b, "ses_1", "localhost").client(false), "https://" + host},
	} {
		b.Run(name, func(b *testing.B) {
			way.client.Transport.(*http.Transport).MaxIdleConnsPerHost = 64
			defer way.client.CloseIdleConnections()
			var u syscall.Rusage
			syscall.Getrusage(syscall.RUSAGE_SELF, &u)
			before := u.Utime.Nano() + u.Stime.Nano()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					resp, err := way.client.Post(way.url+"/v1/customers", "application/json", bytes.NewReader(text))
					if err != nil {
						b.Error(err)
						return
					}
					io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
			})
			syscall.Getrusage(syscall.RUSAGE_SELF, &u)
			b.ReportMetric(float64(time.Duration(u.Utime.Nano()+u.Stime.Nano()-before))/float64(b.N), "cpu-ns/op")
			p.Drain()
		})
	}
}
