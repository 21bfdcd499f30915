package resource

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net/netip"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/idna"
	"pgregory.net/rapid"

	"estover.dev"
	"estover.dev/internal/guard"
)

// root is a certificate in PEM, and the key that belongs to it.
func root(t *testing.T) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))
}

func valid(t *testing.T) Spec {
	cert, _ := root(t)
	return Spec{
		Name: "crm", BaseURL: "https://CRM.example.com:443/api/", Hosts: []string{"crm.example.com:8443", "CRM.example.com"},
		Class: estover.Confidential, Tags: []string{"sales", "eu", "sales"}, Purposes: []string{"support"},
		CA: "a comment\n" + cert, AllowPrivate: []string{"10.1.2.3/16", "127.0.0.0/8"},
		Actions: []Action{
			{Name: "customer.read", Method: "get", Path: "/api/customers/{id}"},
			{Name: "customer.change", Method: "PATCH", Path: "/api/customers/{id}", Class: estover.Restricted},
			{Name: "customer.delete", Method: "DELETE", Path: "/api/customers/{id}"},
			{Name: "mail.send", Method: "POST", Path: "/api/mail", Effect: guard.Sends},
		},
		Slots: []Slot{{Slot: Header, Name: "Authorization", Prefix: "Bearer ", Secret: "crm/api-key"}, {Slot: Query, Name: "key", Secret: "crm/other", Field: "key"}},
	}
}

func TestCheck(t *testing.T) {
	s, err := Check(valid(t))
	if err != nil {
		t.Fatal(err)
	}
	if s.BaseURL != "https://crm.example.com/api" || !slices.Equal(s.Hosts, []string{"crm.example.com:443", "crm.example.com:8443"}) {
		t.Errorf("the places are %s and %v", s.BaseURL, s.Hosts)
	}
	if s.Type != HTTP || s.Destination != "internal" || !slices.Equal(s.Tags, []string{"eu", "sales"}) || !slices.Equal(s.AllowPrivate, []string{"10.1.0.0/16", "127.0.0.0/8"}) {
		t.Errorf("the spec is %+v", s)
	}
	for i, want := range []Action{
		{"customer.read", "GET", "/api/customers/{id}", guard.Reads, estover.Confidential, 0, nil},
		{"customer.change", "PATCH", "/api/customers/{id}", guard.Writes, estover.Restricted, 0, nil},
		{"customer.delete", "DELETE", "/api/customers/{id}", guard.Deletes, estover.Confidential, 0, nil},
		{"mail.send", "POST", "/api/mail", guard.Sends, estover.Confidential, 0, nil},
	} {
		if !reflect.DeepEqual(s.Actions[i], want) {
			t.Errorf("action %d is %+v, want %+v", i, s.Actions[i], want)
		}
	}
	again, err := Check(s)
	if err != nil || !equal(s, again) {
		t.Errorf("checked again the spec is %+v, %v", again, err)
	}
	u, err := ready(Resource{Spec: s})
	if err != nil || u.Roots == nil || len(u.Private) != 2 || u.URL.Path != "/api" {
		t.Errorf("made ready it is %+v, %v", u, err)
	}
}

func TestCheckRefuses(t *testing.T) {
	cert, key := root(t)
	for _, c := range []struct {
		what  string
		edit  func(*Spec)
		field string
	}{
		{"an unknown type", func(s *Spec) { s.Type = "gopher" }, "type"},
		{"no name", func(s *Spec) { s.Name = "" }, "name"},
		{"no class", func(s *Spec) { s.Class = "" }, "class"},
		{"an unknown destination", func(s *Spec) { s.Destination = "mars" }, "destination"},
		{"an unknown evidence", func(s *Spec) { s.Evidence = "lax" }, "evidence"},
		{"an unknown record", func(s *Spec) { s.Record = "some" }, "record"},
		{"a tag with a space", func(s *Spec) { s.Tags = []string{"a", "b c"} }, "tags[1]"},
		{"no URL", func(s *Spec) { s.BaseURL = "" }, "base_url"},
		{"a URL without a host", func(s *Spec) { s.BaseURL = "https:///x" }, "base_url"},
		{"another scheme", func(s *Spec) { s.BaseURL = "ftp://crm.example.com" }, "base_url"},
		{"a user in the URL", func(s *Spec) { s.BaseURL = "https://me:pass@crm.example.com" }, "base_url"},
		{"a query in the URL", func(s *Spec) { s.BaseURL = "https://crm.example.com/?a=b" }, "base_url"},
		{"an empty query in the URL", func(s *Spec) { s.BaseURL = "https://crm.example.com/?" }, "base_url"},
		{"a fragment in the URL", func(s *Spec) { s.BaseURL = "https://crm.example.com/#x" }, "base_url"},
		{"dots in the URL", func(s *Spec) { s.BaseURL = "https://crm.example.com/a/../b" }, "base_url"},
		{"escapes in the URL", func(s *Spec) { s.BaseURL = "https://crm.example.com/a%2fb" }, "base_url"},
		{"plain HTTP to anywhere", func(s *Spec) { s.BaseURL, s.AllowPrivate = "http://crm.example.com", nil }, "base_url"},
		{"a host with a dot at the end", func(s *Spec) { s.BaseURL = "https://crm.example.com." }, "base_url"},
		{"a wildcard", func(s *Spec) { s.Hosts = []string{"*.example.com"} }, "hosts[0]"},
		{"a host not in ASCII", func(s *Spec) { s.Hosts = []string{"ok.example.com", "bücher.example.com"} }, "hosts[1]"},
		{"the whole internet", func(s *Spec) { s.AllowPrivate = []string{"0.0.0.0/0"} }, "allow_private[0]"},
		{"the metadata network", func(s *Spec) { s.AllowPrivate = []string{"10.0.0.0/8", "169.254.169.254/32"} }, "allow_private[1]"},
		{"a public network", func(s *Spec) { s.AllowPrivate = []string{"8.8.8.0/24"} }, "allow_private[0]"},
		{"an address instead of a network", func(s *Spec) { s.AllowPrivate = []string{"10.0.0.1"} }, "allow_private[0]"},
		{"a private key among the roots", func(s *Spec) { s.CA = cert + key }, "ca"},
		{"no certificate among the roots", func(s *Spec) { s.CA = "trust me" }, "ca"},
		{"a broken certificate", func(s *Spec) { s.CA = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n" }, "ca"},
		{"text after the roots", func(s *Spec) { s.CA = cert + "and more" }, "ca"},
		{"an unknown slot", func(s *Spec) { s.Slots[0] = Slot{Slot: "cookie", Secret: "x"} }, "slots[0].slot"},
		{"a secret in the Host header", func(s *Spec) { s.Slots[0].Name = "Host" }, "slots[0].name"},
		{"a secret in our header", func(s *Spec) { s.Slots[0].Name = "Estover-Purpose" }, "slots[0].name"},
		{"a header with a space", func(s *Spec) { s.Slots[0].Name = "X Key" }, "slots[0].name"},
		{"a prefix with a line break", func(s *Spec) { s.Slots[0].Prefix = "Bearer\r\n" }, "slots[0].prefix"},
		{"a prefix in a query", func(s *Spec) { s.Slots[1].Prefix = "x" }, "slots[1].prefix"},
		{"a query parameter with an equals sign", func(s *Spec) { s.Slots[1].Name = "a=b" }, "slots[1].name"},
		{"a slot without a secret", func(s *Spec) { s.Slots[0].Secret = "" }, "slots[0].secret"},
		{"a header twice, in other letters", func(s *Spec) {
			s.Slots = append(s.Slots, Slot{Slot: Header, Name: "AUTHORIZATION", Secret: "x"})
		}, "slots[2].name"},
		{"basic beside the same header", func(s *Spec) { s.Slots = append(s.Slots, Slot{Slot: Basic, Name: "me", Secret: "x"}) }, "slots[2].name"},
		{"a user name with a colon", func(s *Spec) { s.Slots = []Slot{{Slot: Basic, Name: "a:b", Secret: "x"}} }, "slots[0].name"},
		{"no actions", func(s *Spec) { s.Actions = nil }, "actions"},
		{"an unknown effect", func(s *Spec) { s.Actions[1].Effect = "smile" }, "actions[1].effect"},
		{"an unknown class of an action", func(s *Spec) { s.Actions[1].Class = "secret" }, "actions[1].class"},
		{"a negative body", func(s *Spec) { s.Limits.BodyBytes = -1 }, "limits.body_bytes"},
		{"a day's time", func(s *Spec) { s.Limits.TimeoutSeconds = 86400 }, "limits.timeout_seconds"},
	} {
		s := valid(t)
		c.edit(&s)
		_, err := Check(s)
		var e *estover.Error
		if !errors.Is(err, ErrInvalid) || !errors.As(err, &e) || e.Field != c.field {
			t.Errorf("a resource with %s: %v (%+v), want ErrInvalid at %s", c.what, err, e, c.field)
		}
	}
	s := valid(t)
	s.Name, s.Class, s.Actions[0].Path = "", "", "x"
	if _, err := Check(s); err == nil || strings.Count(err.Error(), "\n") != 2 {
		t.Errorf("three faults at once are told as %v, want three lines", err)
	}
	s = valid(t)
	s.BaseURL = "http://crm.internal:80"
	if s, err := Check(s); err != nil || s.BaseURL != "http://crm.internal" || !slices.Contains(s.Hosts, "crm.internal:80") {
		t.Errorf("plain HTTP in a private network: %+v, %v", s, err)
	}
}

func TestHostPort(t *testing.T) {
	for text, want := range map[string]string{
		"crm.example.com":                    "crm.example.com:443",
		"CRM.Example.COM:8443":               "crm.example.com:8443",
		"xn--bcher-kva.example":              "xn--bcher-kva.example:443",
		"localhost:80":                       "localhost:80",
		"127.0.0.1:9000":                     "127.0.0.1:9000",
		"[::1]":                              "[::1]:443",
		"[2001:DB8:0::1]:8443":               "[2001:db8::1]:8443",
		"3com.com":                           "3com.com:443",
		"":                                   "",
		":443":                               "",
		".":                                  "",
		"crm.example.com.":                   "",
		"crm..example.com":                   "",
		"-crm.example.com":                   "",
		"crm_1.example.com":                  "",
		"*.example.com":                      "",
		"me@crm.example.com":                 "",
		"crm.example.com/":                   "",
		"crm%2eexample.com":                  "",
		"crm example.com":                    "",
		"bücher.example":                     "",
		"xn--a":                              "",
		"ＣＲＭ.example.com":                    "",
		"crm。example.com":                    "",
		"127.1":                              "",
		"127.0.0.01":                         "",
		"0x7f.0.0.1":                         "",
		"2130706433":                         "",
		"1.2.3.4.5":                          "",
		"[::1%25eth0]":                       "",
		"[::ffff:127.0.0.1]":                 "",
		"[127.0.0.1]":                        "",
		"::1":                                "",
		"crm.example.com:0":                  "",
		"crm.example.com:":                   "",
		"crm.example.com:080":                "",
		"crm.example.com:+80":                "",
		"crm.example.com:65536":              "",
		"crm.example.com:https":              "",
		strings.Repeat("a", 64) + ".example": "",
	} {
		got, err := HostPort(text, "443")
		if got != want || (err != nil) != (want == "") {
			t.Errorf("HostPort(%q) = %q, %v, want %q", text, got, err, want)
		}
	}
}

// Most names are taken without IDNA being asked, which would say nothing else of them.
func TestHostNames(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		label := rapid.OneOf(rapid.StringMatching(`[a-z0-9-]{0,6}`), rapid.StringMatching(`xn--[a-z0-9-]{0,6}`))
		name := strings.Join(rapid.SliceOfN(label, 1, 4).Draw(t, "labels"), ".")
		ascii, err := idna.Lookup.ToASCII(name)
		a, notAddress := netip.ParseAddr(name)
		want := isHostName(name) && err == nil && ascii == name || notAddress == nil && a.Is4()
		if got, err := HostPort(name, "443"); (err == nil) != want || want && got != name+":443" {
			t.Fatalf("HostPort(%q) = %q, %v; IDNA says %q, %v", name, got, err, ascii, err)
		}
	})
}

// FuzzHostPort: what comes out is one spelling, which URLs and addresses
// understand in the same way.
func FuzzHostPort(f *testing.F) {
	for _, s := range []string{"a.example:1", "[::1]", "1.2.3.4", "xn--bcher-kva.example", "ａ.example", "a.example.", "1.1", "[fe80::1%eth0]:2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		out, err := HostPort(text, "443")
		if err != nil {
			return
		}
		if again, err := HostPort(out, "1"); err != nil || again != out {
			t.Fatalf("%q gives %q, which gives %q, %v", text, out, again, err)
		}
		u, err := url.Parse("https://" + out + "/")
		if err != nil || u.Host != out || u.Port() == "" {
			t.Fatalf("%q gives %q, which is no host of a URL: %+v, %v", text, out, u, err)
		}
		if a, err := netip.ParseAddr(u.Hostname()); err == nil && a.String() != u.Hostname() {
			t.Fatalf("%q gives the address %q, whose spelling is %q", text, u.Hostname(), a)
		}
	})
}
