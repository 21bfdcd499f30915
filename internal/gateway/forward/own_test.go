package forward_test

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"testing"
)

// A program in a session speaks to us at a name of our own, by the proxy and as the
// session; that name leads nowhere else.
func TestOwnHost(t *testing.T) {
	p := start(t)
	a := p.session(t, "ses_1")
	ask := func(line, host string) (int, string) {
		t.Helper()
		c := a.dial(t)
		fmt.Fprintf(c, "%s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", line, host)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	// The target counts, whatever the Host header says.
	for _, host := range []string{"estover.internal", "crm.example"} {
		if status, body := ask("GET http://estover.internal/v1/access/requests", host); status != 200 || body != "GET /v1/access/requests asked by ses_1" {
			t.Errorf("with the Host %s: %d %s", host, status, body)
		}
	}
	for _, target := range []string{"http://estover.internal:8080/", "http://x@estover.internal/", "http://estover.internal.example/", "https://estover.internal/"} {
		if status, body := ask("GET "+target, "estover.internal"); status == 200 {
			t.Errorf("%s is answered with %s", target, body)
		}
	}
	a.end("ses_1")
	if status, body := ask("GET http://estover.internal/v1/access/requests", "estover.internal"); status != http.StatusForbidden {
		t.Errorf("after the session: %d %s, want 403", status, body)
	}
}
