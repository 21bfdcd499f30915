package edge_test

import (
	"errors"
	"testing"

	"pgregory.net/rapid"

	"estover.dev/internal/edge"
)

func TestC3OneSpellingOfAHost(t *testing.T) {
	for in, want := range map[string]string{
		"api.example.com":       "api.example.com:443",
		"API.Example.COM":       "api.example.com:443",
		"api.example.com:8443":  "api.example.com:8443",
		"bücher.example":        "xn--bcher-kva.example:443",
		"xn--bcher-kva.example": "xn--bcher-kva.example:443",
		"localhost":             "localhost:443",
		"1password.com":         "1password.com:443",
		"3com":                  "3com:443",
		"192.0.2.7":             "192.0.2.7:443",
		"ｅｘａｍｐｌｅ.com":           "example.com:443",
		"１２７.0.0.1":             "127.0.0.1:443",
		"api。example。com":       "api.example.com:443",
	} {
		h, err := edge.ParseHost(in, 443)
		if err != nil || h.String() != want {
			t.Errorf("%q is read as %q, %v, want %q", in, h, err, want)
		}
	}
	for _, in := range []string{
		"", ".", "api.example.com.", "api.example.com.:443", ".example.com", "api..example.com", "user@api.example.com",
		"api.example.com@evil.example", "api%2eexample.com", "api.example.com%00", "api example.com", "api_example.com", "-api.example.com",
		"api-.example.com", "api.example.com:", "api.example.com:0", "api.example.com:0443", "api.example.com:+443", "api.example.com:65536",
		"api.example.com:443:443", "api.example.com:https", "api.example.com/x", "api.example.com#x", "api.example.com\\x",
		"127.1", "2130706433", "0x7f.0.0.1", "0177.0.0.1", "127.0.0.01", "127.0.0.0x1", "127.0.0.1.", "1.2.3", "1.2.3.4.5", "256.1.1.1", "foo.1", "foo.0x1",
		"127。1", "xn--a", "xn--example-.com", "a.xn--.com",
	} {
		if h, err := edge.ParseHost(in, 443); !errors.Is(err, edge.ErrHost) {
			t.Errorf("%q is read as %v, %v, want it refused", in, h, err)
		}
	}
	if h, err := edge.ParseHost("api.example.com", 0); !errors.Is(err, edge.ErrHost) {
		t.Errorf("a host without its port is read as %v, %v", h, err)
	}
}

func TestP22IPv6(t *testing.T) {
	for in, want := range map[string]string{
		"[2001:DB8::1]":        "[2001:db8::1]:443",
		"[2001:db8:0:0::1]:80": "[2001:db8::1]:80",
		"[::1]":                "[::1]:443",
	} {
		h, err := edge.ParseHost(in, 443)
		if err != nil || h.String() != want {
			t.Errorf("%q is read as %q, %v, want %q", in, h, err, want)
		}
	}
	for _, in := range []string{
		"::1", "2001:db8::1", "[::1", "::1]", "[::1]x", "[::1]:", "[::1]x:80", "[[::1]]", "[]", "[]:443", "[127.0.0.1]", "[example.com]",
		"[fe80::1%eth0]", "[fe80::1%25eth0]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "x[::1]", "[::1].example.com", "[::1]:80:80",
	} {
		if h, err := edge.ParseHost(in, 443); !errors.Is(err, edge.ErrHost) {
			t.Errorf("%q is read as %v, %v, want it refused", in, h, err)
		}
	}
}

// What a host is written as is read as the same host.
func TestHostsSurviveWriting(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := rapid.OneOf(
			rapid.StringMatching(`[a-zA-Z0-9.%:\[\]@-]{0,20}`),
			rapid.StringMatching(`([a-zA-Z0-9-]{1,8}\.){0,3}[a-z]{1,5}(:[0-9]{1,5})?`),
			rapid.StringMatching(`\[[0-9a-f:]{2,12}\](:[0-9]{1,5})?`)).Draw(t, "host")
		h, err := edge.ParseHost(in, 443)
		if err != nil {
			return
		}
		for scheme, port := range map[string]uint16{"https": 443, "http": 80} {
			again, err := edge.ParseHost(h.Authority(scheme), port)
			if err != nil || again != h {
				t.Fatalf("%q is %v, whose authority %q is %v, %v", in, h, h.Authority(scheme), again, err)
			}
		}
	})
}
