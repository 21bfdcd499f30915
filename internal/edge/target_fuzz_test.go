package edge_test

import (
	"net/url"
	"strconv"
	"strings"
	"testing"

	"estover.dev/internal/edge"
)

// FuzzHost: a host that is accepted is one place, and everybody else who reads it
// goes there (C3, P22).
func FuzzHost(f *testing.F) {
	for _, s := range []string{
		"example.com", "EXAMPLE.com:8443", "127.0.0.1", "[::1]:1", "[::ffff:127.0.0.1]", "[fe80::1%25eth0]", "0x7f.1", "2130706433", "a@b", "example.com.", "bücher.example",
		"xn--bcher-kva.example", "a..b", "1.2.3.04", "example.com:0", "example.com:080", "example.com:65536", "%65xample.com", "a\\b", "a/b", "", "\xb8", "\xff.example",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		h, err := edge.ParseHost(s, 443)
		if err != nil {
			return
		}
		if again, err := edge.ParseHost(h.String(), 0); err != nil || again != h {
			t.Errorf("%q is %+v, which is written %q and is %+v (%v)", s, h, h.String(), again, err)
		}
		u, err := url.Parse("https://" + s + "/x")
		if err != nil || u.User != nil || u.Path != "/x" || u.RawQuery != "" || u.Fragment != "" {
			t.Fatalf("%q is accepted, and as a URL it is %+v (%v)", s, u, err)
		}
		if p := u.Port(); p != "" && p != strconv.Itoa(int(h.Port)) {
			t.Errorf("%q has the port %d here and %s elsewhere", s, h.Port, p)
		}
		if h.IP.IsValid() && u.Hostname() != h.IP.String() {
			if other, err := edge.ParseHost(u.Host, 443); err != nil || other != h {
				t.Errorf("%q is the address %s here and %s elsewhere", s, h.IP, u.Hostname())
			}
		}
	})
}

// FuzzPath: a path that is accepted has no dot segments, however often somebody
// decodes it, and is the same path to the client that forwards it (P18).
func FuzzPath(f *testing.F) {
	for _, s := range []string{
		"/", "/a/b", "/a%20b", "/a/../b", "/a/%2e%2e/b", "/a%2fb", "/a%252fb", "/%252e%252e/", "/a//b", "/a;b=c/d", "/..;/a", "/a%5cb", "/a%00", "/ü", "/%c3%bc", "/%ff", "/a?b", "/a#b", "a", "",
		"/a%2f%2e%2e%2fb", "/%2E", "/.%2e/",
	} {
		f.Add(s, byte(0))
		f.Add(s, byte(7))
	}
	f.Fuzz(func(t *testing.T, s string, loose byte) {
		p, err := edge.ParsePath(s, edge.TargetRules{EncodedSlash: loose&1 != 0, DoubleSlash: loose&2 != 0, Semicolon: loose&4 != 0})
		if err != nil {
			return
		}
		u, err := url.Parse("https://host.example" + string(p))
		if err != nil || u.Host != "host.example" || u.EscapedPath() != string(p) || u.RawQuery != "" || u.Fragment != "" {
			t.Fatalf("%q is accepted, and as a URL it is %+v (%v)", s, u, err)
		}
		text := string(p)
		for range 3 {
			for segment := range strings.SplitSeq(strings.ReplaceAll(text, "\\", "/"), "/") {
				if name, _, _ := strings.Cut(segment, ";"); name == "." || name == ".." {
					t.Fatalf("%q is accepted, and decoded it is %q", s, text)
				}
			}
			if text, err = url.PathUnescape(text); err != nil {
				return // nobody reads it further
			}
		}
	})
}
