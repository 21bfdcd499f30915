package vault

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/mount"
)

// V5: scalars may be strings, durations are written in several ways, lists and
// maps in two.
func TestWeakInput(t *testing.T) {
	type in struct {
		S string            `json:"s"`
		B bool              `json:"b"`
		N int64             `json:"n"`
		F float64           `json:"f"`
		D time.Duration     `json:"d"`
		L []string          `json:"l"`
		I []int64           `json:"i"`
		M map[string]string `json:"m"`
		R json.RawMessage   `json:"r"`
		X estover.Secret    `json:"x"`
		P *string           `json:"p"`
		Q *int64            `json:"q"`
	}
	for _, c := range []struct{ body, want string }{
		{`{"s":"a","b":true,"n":5,"f":1.5,"d":90,"l":["a","b"],"i":[1,2],"m":{"a":"b"}}`, "a true 5 1.5 1m30s [a b] [1 2] map[a:b]"},
		{`{"s":5,"b":"true","n":"5","f":"1.5","d":"90","l":"a, b","i":"1,2","m":["a=b","c=d=e"]}`, "5 true 5 1.5 1m30s [a b] [1 2] map[a:b c:d=e]"},
		{`{"s":true,"b":"1","n":5.0,"d":"1h30m","l":"","i":["3"],"m":"a=b"}`, "true true 5 0 1h30m0s [] [3] map[a:b]"},
		{`{"s":null,"b":"f","n":"","d":"7d","l":null,"m":{"a":1,"b":true}}`, " false 0 0 168h0m0s [] [] map[a:1 b:true]"},
		{`{"d":"90s"}`, " false 0 0 1m30s [] [] map[]"},
	} {
		q := &Request{}
		if err := q.parse([]byte(c.body), false); err != nil {
			t.Fatal(err)
		}
		var v in
		if err := q.Read(&v); err != nil {
			t.Errorf("%s: %v", c.body, err)
		}
		if got := fmt.Sprint(v.S, " ", v.B, v.N, v.F, v.D, v.L, v.I, v.M); strings.ReplaceAll(got, "  ", " ") != strings.ReplaceAll(c.want, "  ", " ") {
			t.Errorf("%s is read as %q, want %q", c.body, got, c.want)
		}
	}
	const canary = "a-value-that-nobody-quotes"
	for name, value := range map[string]string{
		"b": `"` + canary + `"`, "n": `"` + canary + `"`, "f": `"` + canary + `"`, "d": `"` + canary + `"`, "l": `{"` + canary + `":1}`, "i": `["` + canary + `"]`, "m": `["` + canary + `"]`, "s": `["` + canary + `"]`, "q": `[1]`,
	} {
		q := &Request{}
		if err := q.parse([]byte(`{"`+name+`":`+value+`}`), false); err != nil {
			t.Fatal(err)
		}
		err := q.Read(&in{})
		if f, ok := err.(*Failure); !ok || f.Status != http.StatusBadRequest || strings.Contains(f.Error(), canary) {
			t.Errorf("%s of %s: %v", name, value, err)
		}
	}
	q := &Request{}
	if err := q.parse([]byte(`{"p":"","x":"hush","r":{"k":[1.0]},"stray":1,"other":2}`), false); err != nil {
		t.Fatal(err)
	}
	var v in
	if err := q.Read(&v); err != nil || v.P == nil || *v.P != "" || v.Q != nil || string(v.X.Reveal()) != "hush" || string(v.R) != `{"k":[1.0]}` {
		t.Errorf("read %+v, %v", v, err)
	}
	if got, want := q.unknown(), "Endpoint ignored these unrecognized parameters: [other stray]"; got != want { // V6
		t.Errorf("the unknown fields: %q, want %q", got, want)
	}
}

// V4: what counts as nothing, and what is no object.
func TestBodies(t *testing.T) {
	for body, want := range map[string]string{"": "", " \n": "", "null": "", "{}": "", `{"a":1}`: "", "[]": "not an object", `"x"`: "not an object", `{"a":1,"a":2}`: "each name stands once", `{"a":1}x`: "each name stands once", "{": "each name stands once", "{\"a\":\"\xff\"}": "UTF-8"} {
		err := (&Request{}).parse([]byte(body), false)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", body, err, want)
		}
	}
}

// V2: one spelling for every path.
func TestPaths(t *testing.T) {
	for path, want := range map[string]string{
		"/v1/a/b": "a/b", "/v1/a//b/": "a/b", "/v1//a": "a", "/v1/": "", "/v1/a b/ü": "a b/ü", "/v1/a/../b": "!", "/v1/./a": "!", "/v1/a/..": "!", "/v1/a\x00": "!", "/v1/\xff": "!", "/v2/a": "!", "/v1/...": "...", "/v1/a/..b": "a/..b",
	} {
		got, err := canonical(path)
		if err != nil {
			got = "!"
		}
		if got != want {
			t.Errorf("%q: %q, %v, want %q", path, got, err, want)
		}
	}
	for path, want := range map[string]string{
		"/vault/v1/a": "/vault ", "/t/acme/vault/v1/a": "/t/acme/vault acme", "/t/acme/v1/a": "no", "/t/default/vault/v1/a": "no", "/t//vault/v1": "no", "/v1/a": "no", "/vault": "no", "/vaulted/x": "no",
	} {
		got := "no"
		if below, tenant, ok := Matches(path, ""); ok {
			got = below + " " + string(tenant)
		}
		if got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	if below, tenant, ok := Matches("/base/t/acme/vault/v1/x", "/base"); !ok || below != "/base/t/acme/vault" || tenant != "acme" {
		t.Errorf("below a path of the issuer: %q %q %v", below, tenant, ok)
	}
}

// Words go before names and names before stars, in whichever order the routes
// are listed.
func TestRoutes(t *testing.T) {
	d := &Door{routes: map[string][]*Route{}}
	for _, path := range []string{"*rest", "mounts/*path", "mounts/*path/tune", "mounts/auth/*path", "mounts/auth/*path/tune", "mounts", "role/:name", "role/:name/role-id", "role/self", "data/*path"} {
		r := &Route{Mount: "system", Path: path}
		r.parse()
		d.routes["system"] = append(d.routes["system"], r)
	}
	order(d.routes["system"])
	for rest, want := range map[string]string{
		"mounts": "mounts map[]", "mounts/a/b": "mounts/*path map[path:a/b]", "mounts/a/b/tune": "mounts/*path/tune map[path:a/b]", "mounts/auth/a": "mounts/auth/*path map[path:a]",
		"mounts/auth/a/tune": "mounts/auth/*path/tune map[path:a]", "mounts/tune": "mounts/*path map[path:tune]", "role/a": "role/:name map[name:a]", "role/self": "role/self map[]",
		"role/a/role-id": "role/:name/role-id map[name:a]", "role/a/b": "*rest map[rest:role/a/b]", "data": "data/*path map[path:]", "x": "*rest map[rest:x]",
	} {
		r, params := d.match(&mount.Mount{Kind: "system"}, rest)
		if got := r.Path + " " + fmt.Sprint(params); got != want {
			t.Errorf("%s: %s, want %s", rest, got, want)
		}
	}
}

func FuzzCanonical(f *testing.F) {
	f.Add("/v1/a/../b")
	f.Add("/v1//a/%2e%2e/b")
	f.Fuzz(func(t *testing.T, path string) {
		got, err := canonical(path)
		if err != nil {
			return
		}
		again, err := canonical("/v1/" + got)
		if err != nil || again != got || strings.Contains("/"+got+"/", "/../") || strings.Contains(got, "//") {
			t.Errorf("%q is %q, and that is %q, %v", path, got, again, err)
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"a":[1,{"b":null}]}`), true)
	f.Add([]byte("a=1&b=2"), true)
	f.Fuzz(func(t *testing.T, body []byte, form bool) {
		q := &Request{HTTP: &http.Request{URL: &url.URL{}}}
		if q.parse(body, form) != nil {
			return
		}
		if !json.Valid(q.Data()) {
			t.Errorf("%q has data that is no JSON: %q", body, q.Data())
		}
	})
}

// What a body says is read into fields of every kind (V5), as weakly as clients
// write it. It is read or refused, and a refusal does not quote what stood there.
func FuzzRead(f *testing.F) {
	f.Add([]byte(`{"s":1,"n":"7","b":"true","d":"1h30m","l":"a, b","i":[1,"2"],"m":["k=v"],"x":{"y":1},"secret":"abcdefgh"}`))
	f.Add([]byte(`{"s":{},"n":[],"d":"7d","m":{"a":{}},"l":[[]],"t":-1,"secret":["abcdefgh"]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		q := &Request{HTTP: &http.Request{URL: &url.URL{}}}
		if q.parse(body, false) != nil {
			return
		}
		var in struct {
			S      string            `json:"s"`
			N      int               `json:"n"`
			B      *bool             `json:"b"`
			D      time.Duration     `json:"d"`
			L      []string          `json:"l"`
			I      []int64           `json:"i"`
			F      float64           `json:"f"`
			M      map[string]string `json:"m"`
			X      json.RawMessage   `json:"x"`
			T      ttlSeconds        `json:"t"`
			Secret estover.Secret    `json:"secret"`
		}
		if err := q.Read(&in); err != nil && strings.Contains(err.Error(), "abcdefgh") {
			t.Errorf("%q is refused as %v", body, err)
		}
	})
}

// A list of principals that nobody would have costs no more than its length.
func TestPrincipals(t *testing.T) {
	if got := principals(" ubuntu,root ,, ubuntu"); len(got) != 2 || got[0] != "ubuntu" || got[1] != "root" {
		t.Errorf("the principals are %q, want ubuntu and root", got)
	}
	var many strings.Builder
	for i := range 100_000 {
		fmt.Fprintf(&many, "user%06d,", i)
	}
	begun := time.Now()
	if got := principals(many.String()); len(got) != 100_000 {
		t.Errorf("there are %d principals", len(got))
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
}
