package token_test

import (
	"net/url"
	"strings"
	"testing"

	"estover.dev/internal/token"
)

// FuzzRedirect: what counts as a registered redirect URI leads to where the
// registered one leads, but for the port of a loopback address.
func FuzzRedirect(f *testing.F) {
	c := &token.Client{Redirects: []string{"https://good.example/cb", "http://127.0.0.1/cb", "http://[::1]:80/cb?a=b", "http://localhost:9/cb"}}
	for _, s := range []string{"https://good.example/cb", "http://127.0.0.1:8080/cb", "http://127.0.0.1:@evil.example/cb", "http://[::1]/cb?a=b", "http://127.0.0.1/cb/../x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, uri string) {
		redirect, registered, ok := c.Redirect(uri)
		if !ok {
			return
		}
		got, err := url.Parse(redirect)
		want, _ := url.Parse(registered)
		if err != nil || redirect != uri || got.Scheme != want.Scheme || got.Hostname() != want.Hostname() || got.EscapedPath() != want.EscapedPath() ||
			got.RawQuery != want.RawQuery || got.User != nil || got.Fragment != "" || strings.Contains(uri, "#") {
			t.Errorf("%q counts as %q", uri, registered)
		}
		if host := got.Hostname(); got.Port() != want.Port() && host != "127.0.0.1" && host != "::1" {
			t.Errorf("%q counts as %q with another port", uri, registered)
		}
	})
}
