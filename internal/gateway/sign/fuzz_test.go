package sign_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"estover.dev/internal/gateway/sign"
	"estover.dev/internal/resource"
)

// Path, query and headers of what is signed are an agent's. Whatever they are, the
// signature of AWS is there, is the same a second time, depends on each of them,
// and neither the key nor a line break gets into a header.
func FuzzAWS(f *testing.F) {
	f.Add("GET", "/a/../b//c", "b=2&a=1&a=%2f&c", "x", "s3")
	f.Add("POST", "/%zz/\x00", "&&=&%", "a\tb", "execute-api")
	f.Fuzz(func(t *testing.T, method, path, query, value, service string) {
		a := &sign.AWS{Region: "eu-west-1", Service: service, KeyID: "AKIA", Key: key("wJalrXUtnFEMI/K7MDENG"), Token: key("session")}
		at := time.Unix(1440938160, 0)
		signed := func(path, query string) string {
			r := &sign.Request{Method: method, Host: "x.example.com", Path: path, Query: query, Header: http.Header{"X-Value": {value}}, Extra: []string{"x-value"}}
			a.Sign(r, sign.Payload(nil, ""), at)
			for name, values := range r.Header {
				for _, v := range values {
					if strings.Contains(v, "wJalrXUtnFEMI") || name != "X-Value" && strings.ContainsAny(v, "\r\n") && !strings.ContainsAny(service, "\r\n") {
						t.Fatalf("%s is %q", name, v)
					}
				}
			}
			return r.Header.Get("Authorization")
		}
		first := signed(path, query)
		if !strings.HasPrefix(first, "AWS4-HMAC-SHA256 Credential=AKIA/20150830/eu-west-1/") {
			t.Fatalf("%q %q is signed by %q", path, query, first)
		}
		if again := signed(path, query); again != first {
			t.Errorf("%q %q is signed by %q and by %q", path, query, first, again)
		}
		if signed(path+"x", query) == first || signed(path, query+"&x=y") == first {
			t.Errorf("%q %q has the signature of another", path, query)
		}
		a.Presign(&sign.Request{Method: method, Host: "x.example.com", Path: path, Query: query, Header: http.Header{}}, sign.Payload(nil, ""), at, time.Minute)
	})
}

// A template of a signature is what an operator writes. One that is taken can be
// filled, and its own text stands in what is made of it.
func FuzzTemplate(f *testing.F) {
	f.Add("v0:{timestamp}:{body}", "a")
	f.Add("{header:x-id}.{target}\n{nonce}", "{body}")
	f.Add("}{", "{")
	f.Fuzz(func(t *testing.T, text, body string) {
		template, err := resource.ParseTemplate(text)
		if err != nil {
			return
		}
		// What an agent sends is filled in and is never a template itself.
		filled, err := template.Fill(func(string, string) (string, error) { return body, nil })
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		want := ""
		for _, p := range template {
			want += p.Text
			if p.Name != "" {
				want += body
			}
		}
		if filled != want {
			t.Errorf("%q filled with %q is %q, want %q", text, body, filled, want)
		}
		s := &sign.HMAC{Spec: &resource.HMAC{Algorithm: "sha256", Sign: text, Value: "{signature}"}, Name: "X-Signature", Key: key("k")}
		r := &sign.Request{Method: "GET", Host: "a", Path: "/", Header: http.Header{}, Body: []byte(body)}
		if err := s.Sign(r, time.Unix(1, 0)); err != nil || len(r.Header.Get("X-Signature")) != 64 {
			t.Errorf("%q signs as %q, %v", text, r.Header.Get("X-Signature"), err)
		}
	})
}
