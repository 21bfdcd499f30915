package resource

import (
	"errors"
	"strings"
	"testing"

	"estover.dev"
)

// TestCheckSlots: slots that prove a secret without sending it, and those that are
// filled in some requests alone.
func TestCheckSlots(t *testing.T) {
	aws := func() *AWS { return &AWS{Region: "eu-central-1", Service: "s3"} }
	hook := func(edit func(*HMAC)) Slot {
		h := &HMAC{Sign: "{timestamp}.{body}", Headers: map[string]string{"X-Time": "{timestamp}"}}
		edit(h)
		return Slot{Slot: Signed, Name: "X-Signature", Secret: "x", HMAC: h}
	}
	for _, c := range []struct {
		what  string
		slots []Slot
		field string // that is wrong; "" for none
	}{
		{"a signature of AWS", []Slot{{Slot: SigV4, Secret: "aws/key", AWS: aws(), Placeholder: "AWS_ACCESS_KEY_ID"}}, ""},
		{"a long variable", []Slot{{Slot: Header, Name: "A", Secret: "x", Placeholder: strings.Repeat("A", 100)}}, ""},
		{"one that is too long", []Slot{{Slot: Header, Name: "A", Secret: "x", Placeholder: strings.Repeat("A", 101)}}, "slots[0].placeholder"},
		{"a variable in small letters", []Slot{{Slot: Header, Name: "A", Secret: "x", Placeholder: "key"}}, "slots[0].placeholder"},
		{"one without a region", []Slot{{Slot: SigV4, Secret: "aws/key", AWS: &AWS{Service: "s3"}}}, "slots[0].aws"},
		{"one without either", []Slot{{Slot: SigV4, Secret: "aws/key"}}, "slots[0].aws"},
		{"a region for a header", []Slot{{Slot: Header, Name: "X-Key", Secret: "x", AWS: aws()}}, "slots[0].aws"},
		{"a signature of AWS beside its header", []Slot{{Slot: SigV4, Secret: "aws/key", AWS: aws()}, {Slot: Header, Name: "Authorization", Secret: "x"}}, "slots[1].name"},
		{"a client certificate", []Slot{{Slot: MTLS, Secret: "crm/client"}}, ""},
		{"a client certificate with a name", []Slot{{Slot: MTLS, Name: "x", Secret: "crm/client"}}, "slots[0].name"},
		{"two client certificates", []Slot{{Slot: MTLS, Secret: "a"}, {Slot: MTLS, Secret: "b"}}, "slots[1].name"},
		{"a template", []Slot{hook(func(*HMAC) {})}, ""},
		{"a template that signs its signature", []Slot{hook(func(h *HMAC) { h.Sign = "{signature}" })}, "slots[0].hmac.sign"},
		{"a template with a part that there is not", []Slot{hook(func(h *HMAC) { h.Sign = "{cookie}" })}, "slots[0].hmac.sign"},
		{"a template with a brace too many", []Slot{hook(func(h *HMAC) { h.Sign = "{body}}" })}, "slots[0].hmac.sign"},
		{"a template that is not closed", []Slot{hook(func(h *HMAC) { h.Sign = "{body" })}, "slots[0].hmac.sign"},
		{"a header without the signature", []Slot{hook(func(h *HMAC) { h.Value = "{timestamp}" })}, "slots[0].hmac.value"},
		{"a body in a header", []Slot{hook(func(h *HMAC) { h.Headers["X-Body"] = "{body}" })}, "slots[0].hmac.headers"},
		{"a header that frames the request", []Slot{hook(func(h *HMAC) { h.Headers["Content-Length"] = "{timestamp}" })}, "slots[0].hmac.headers"},
		{"an old hash", []Slot{hook(func(h *HMAC) { h.Algorithm = "md5" })}, "slots[0].hmac.algorithm"},
		{"a template beside one of its headers", []Slot{hook(func(*HMAC) {}), {Slot: Header, Name: "x_time", Secret: "x"}}, "slots[1].name"},
		{"a member of a body", []Slot{{Slot: Body, Name: "/auth/key", Secret: "x"}}, ""},
		{"a member of a body by its bare name", []Slot{{Slot: Body, Name: "key", Secret: "x"}}, "slots[0].name"},
		{"the same place in other actions", []Slot{
			{Slot: Basic, Name: "me", Secret: "x", Actions: []string{"mail.send"}}, {Slot: Header, Name: "Authorization", Secret: "y", Actions: []string{"customer.read"}},
		}, ""},
		{"the same place in an action of both", []Slot{
			{Slot: Basic, Name: "me", Secret: "x", Actions: []string{"mail.send"}}, {Slot: Header, Name: "Authorization", Secret: "y", Actions: []string{"customer.read", "mail.send"}},
		}, "slots[1].name"},
		{"an action that there is not", []Slot{{Slot: Header, Name: "X-Key", Secret: "x", Actions: []string{"mail.burn"}}}, "slots[0].actions"},
		{"a lease", []Slot{{Slot: Basic, Secret: "lease:reader"}}, ""},
		{"a lease without a role", []Slot{{Slot: Basic, Secret: "lease:"}}, "slots[0].secret"},
		{"a connection", []Slot{{Slot: Header, Name: "Authorization", Prefix: "Bearer ", Secret: "connection:mail"}}, ""},
		{"a connection for a signature", []Slot{{Slot: SigV4, Secret: "connection:mail", AWS: aws()}}, "slots[0].slot"},
		{"what becomes of an echo", []Slot{{Slot: Header, Name: "X-Key", Secret: "x", OnEcho: OnEchoRevoke}}, ""},
		{"something else", []Slot{{Slot: Header, Name: "X-Key", Secret: "x", OnEcho: "shout"}}, "slots[0].on_echo"},
	} {
		s := valid(t)
		s.Slots = c.slots
		got, err := Check(s)
		var e *estover.Error
		switch {
		case c.field == "" && err != nil:
			t.Errorf("%s: %v", c.what, err)
		case c.field == "":
			if again, err := Check(got); err != nil || !equal(got, again) {
				t.Errorf("%s is kept as %+v, which is read as %+v (%v)", c.what, got.Slots, again.Slots, err)
			}
		case !errors.Is(err, ErrInvalid) || !errors.As(err, &e) || e.Field != c.field:
			t.Errorf("%s: %v (%+v), want ErrInvalid at %s", c.what, err, e, c.field)
		}
	}
	s := valid(t)
	s.Slots = []Slot{{Slot: Header, Name: "A", Secret: "lease:reader#password"}, {Slot: Header, Name: "B", Secret: "estover:secret/crm/key#user"}, {Slot: Header, Name: "C", Secret: "estover:secret/crm/key"}}
	if got, err := Check(s); err != nil || got.Slots[0].Secret != "lease:reader" || got.Slots[0].Field != "password" || got.Slots[1].Secret != "crm/key" || got.Slots[1].Field != "user" || got.Slots[2].Secret != "crm/key" {
		t.Errorf("handles in one piece are kept as %+v (%v)", got.Slots, err)
	}
	s.Slots = []Slot{{Slot: Header, Name: "A", Secret: "crm/key#user", Field: "other"}}
	if _, err := Check(s); !errors.Is(err, ErrInvalid) {
		t.Errorf("two fields: %v, want ErrInvalid", err)
	}
	s = valid(t)
	s.BaseURL, s.Hosts, s.Slots = "http://crm.example.com", nil, []Slot{{Slot: MTLS, Secret: "x"}}
	if _, err := Check(s); !errors.Is(err, ErrInvalid) {
		t.Errorf("a client certificate without TLS: %v, want ErrInvalid", err)
	}
	s = valid(t)
	s.Actions[0].Tokens = []string{""}
	if _, err := Check(s); !errors.Is(err, ErrInvalid) {
		t.Errorf("a token without a name: %v, want ErrInvalid", err)
	}
	for placeholder, want := range map[string]string{"AWS_ACCESS_KEY_ID": "AWS_SECRET_ACCESS_KEY", "S3_KEY": "S3_KEY_SECRET", "": ""} {
		if got := (&Slot{Slot: SigV4, Placeholder: placeholder}).SecretVariable(); got != want {
			t.Errorf("beside %q the variable of the key is %q, want %q", placeholder, got, want)
		}
	}
}
