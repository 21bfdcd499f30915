package gateway_test

import (
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"estover.dev"
	"estover.dev/internal/edge"
	"estover.dev/internal/gateway"
	"estover.dev/internal/gateway/gatewaytest"
	"estover.dev/internal/gateway/rest"
	"estover.dev/internal/redact"
)

// In HTTP/2 an answer without a body may have trailers all the same, and they
// must not bring back what was injected.
func TestC6TrailersOfAnswersWithoutABodyAreMasked(t *testing.T) {
	upstream := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/empty":
			w.Header().Set("Content-Length", "0")
		case "/none":
			w.WriteHeader(http.StatusNoContent)
		case "/same":
			w.WriteHeader(http.StatusNotModified)
		}
		w.Header().Set(http.TrailerPrefix+"X-Late", r.Header.Get("Authorization"))
	}))
	upstream.EnableHTTP2 = true
	upstream.StartTLS()
	t.Cleanup(upstream.Close)
	at, err := edge.ParseHost(upstream.Listener.Addr().String(), 0)
	if err != nil {
		t.Fatal(err)
	}

	steps := gatewaytest.New()
	needles, _ := redact.NewMatcher(redact.Value{Name: "sec_crm@1", Text: []byte(key)})
	steps.Late = func(_ *gateway.Exchange, p *gateway.Plan) error {
		p.Slots = []gateway.Slot{{Kind: gateway.HeaderSlot, Name: "Authorization", Prefix: "Bearer ", Secret: estover.NewSecret([]byte(key)), Label: "sec_crm@1"}}
		p.Needles, p.Credential = needles, "sec_crm@1"
		return nil
	}
	steps.Upstream.Roots = upstream.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	discard := slog.New(slog.DiscardHandler)
	door := &rest.Door{
		Pipeline: &gateway.Pipeline{Steps: steps, Forwarder: gateway.NewForwarder(&edge.Dialer{}, discard), Live: &gateway.Live{}},
		Caller: func(http.ResponseWriter, *http.Request) (*gateway.Conn, bool, error) {
			return &gateway.Conn{Caller: estover.Caller{Tenant: "default", Session: "ses_1"}}, false, nil
		},
		Route: func(*gateway.Conn, string) (rest.Route, error) {
			return rest.Route{Name: "up", Scheme: "https", Host: at}, nil
		},
	}
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := edge.NewServer(door, discard)
	go s.Serve(edge.Listen(ln, &tls.Config{Certificates: upstream.TLS.Certificates, NextProtos: []string{"h2"}}))
	t.Cleanup(func() { s.Close() })

	client := upstream.Client()
	for _, path := range []string{"/empty", "/none", "/same", "/plain"} {
		resp, err := client.Get("https://" + ln.Addr().String() + "/u/up" + path)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.ProtoMajor != 2 {
			t.Fatalf("%s: %v over %s", path, err, resp.Proto)
		}
		late := resp.Trailer.Get("X-Late")
		if late == "" {
			t.Errorf("%s: the trailer did not come: %d %q %v", path, resp.StatusCode, body, resp.Trailer)
		}
		if strings.Contains(late, key) {
			t.Errorf("%s: the trailer brings back what was injected: %q", path, late)
		}
	}
}
