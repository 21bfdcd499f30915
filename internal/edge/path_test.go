package edge_test

import (
	"bufio"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"estover.dev/internal/edge"
)

func TestP18AmbiguousPathsAreRefused(t *testing.T) {
	for _, in := range []string{
		"", "v1", "//", "/v1//x", "//v1", "/v1/./x", "/v1/../x", "/..", "/.", "/v1/..", "/v1/%2e/x", "/v1/%2E%2e/x", "/v1/.%2e/x", "/v1/%2e",
		"/v1/..;/x", "/v1/..;a=b/x", "/v1/.;/x", "/v1/x;a=b", "/v1/x%3ba=b", "/v1%2fx", "/v1%2Fx", "/v1/%2f", "/v1\\x", "/v1%5cx", "/v1/..%5cx", "/v1/..%2fx",
		"/v1/%00", "/v1/x%00.json", "/v1/%0d%0aX:%20y", "/v1/%7f", "/v1/x\x00", "/v1/x y", "/v1/%c0%af", "/v1/%c0%ae%c0%ae/x", "/v1/%e0%80%af", "/v1/%ff",
		"/v1/%", "/v1/%2", "/v1/%zz", "/v1/%252e%252e/x", "/v1/%252fx", "/v1/%25252f", "/v1/%255cx", "/v1/%2500", "/v1/é", "/v1/a?b", "/v1/a#b", "/v1/a|b",
	} {
		if p, err := edge.ParsePath(in, edge.TargetRules{}); !errors.Is(err, edge.ErrPath) {
			t.Errorf("%q is taken as %q, %v, want it refused", in, p, err)
		}
	}
	for in, want := range map[string][]string{
		"/":                          {""},
		"/v1/customers/42":           {"v1", "customers", "42"},
		"/v1/customers/":             {"v1", "customers", ""},
		"/v1/caf%C3%A9/100%25/a%20b": {"v1", "café", "100%", "a b"},
		"/v1/(a)!*'$&+,=:@~_-.x":     {"v1", "(a)!*'$&+,=:@~_-.x"},
		"/v1/...":                    {"v1", "..."},
		"/v1/.well-known":            {"v1", ".well-known"},
	} {
		p, err := edge.ParsePath(in, edge.TargetRules{})
		if err != nil || !slices.Equal(p.Segments(), want) {
			t.Errorf("%q has the segments %q, %v, want %q", in, p, err, want)
		}
	}
	loose := edge.TargetRules{EncodedSlash: true, DoubleSlash: true, Semicolon: true}
	if p, err := edge.ParsePath("/projects/group%2Fname//a;b", loose); err != nil || !slices.Equal(p.Segments(), []string{"projects", "group/name", "", "a;b"}) {
		t.Errorf("the loosened path is %q, %v", p, err)
	}
	for _, in := range []string{"/a/..%2fb", "/a/b%2f..%2fc", "/..;/b", "/a/..%3b%2fb", "/a%2f%2e%2e", "/a%5cb", "/a/%252e"} {
		if p, err := edge.ParsePath(in, loose); !errors.Is(err, edge.ErrPath) {
			t.Errorf("%q is taken as %q, %v although it leads elsewhere", in, p, err)
		}
	}
}

// What is written to the upstream is the path that was read, byte by byte.
func TestP18ThePathThatWasReadIsWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := "/" + rapid.StringMatching(`([a-z0-9.;:@!$&'()*+,=~_-]|%[0-9a-fA-F]{2}|/|\[|\]){0,24}`).Draw(t, "path")
		p, err := edge.ParsePath(in, edge.TargetRules{EncodedSlash: true, DoubleSlash: true, Semicolon: true})
		if err != nil {
			return
		}
		u := &url.URL{Scheme: "https", Host: "api.example.com", RawQuery: "a=b;c&%zz"}
		p.Set(u)
		var b strings.Builder
		r := &http.Request{Method: "GET", URL: u, Header: http.Header{}}
		if err := r.Write(&b); err != nil {
			t.Fatal(err)
		}
		line, _ := bufio.NewReader(strings.NewReader(b.String())).ReadString('\n')
		if want := "GET " + in + "?a=b;c&%zz HTTP/1.1\r\n"; line != want {
			t.Fatalf("%q is written as %q", in, line)
		}
	})
}

func TestP3QueriesThatDoNotParseAreRefused(t *testing.T) {
	for _, q := range []string{"a;b", "a=1;b=2", "%", "a=%2", "a=%zz", "a=b c", "a=\x01", "a=é", "a#b", strings.Repeat("a&", 1000)} {
		if err := edge.CheckQuery(q, edge.TargetRules{}); !errors.Is(err, edge.ErrQuery) {
			t.Errorf("%.20q is accepted: %v", q, err)
		}
		_, err := url.ParseQuery(q)
		if strings.Count(q, "&") < 100 && !strings.ContainsAny(q, " \x01é#") && err == nil {
			t.Errorf("%.20q parses, so that it should be accepted", q)
		}
	}
	for _, q := range []string{"", "a", "a=b&c=d", "a=%20+b", "q={\"x\":[1]}", "&&=", strings.Repeat("a&", 999)} {
		if err := edge.CheckQuery(q, edge.TargetRules{}); err != nil {
			t.Errorf("%.20q is refused: %v", q, err)
		}
		if _, err := url.ParseQuery(q); err != nil {
			t.Errorf("%.20q does not parse: %v", q, err)
		}
	}
	if err := edge.CheckQuery("a;b=%zz", edge.TargetRules{LooseQuery: true}); err != nil {
		t.Errorf("a loosened query is refused: %v", err)
	}
}
