package resource

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// A Slot is the one place of a request where a secret may be put, or the one way
// in which a request proves that somebody has it.
type Slot struct {
	Slot   string `json:"slot" enum:"header,query,basic,body,mtls,sigv4,hmac" doc:"The kind of place. With mtls, sigv4 and hmac the secret itself is not sent: it proves the connection or signs the request."`
	Name   string `json:"name,omitempty" doc:"The name of the header or of the query parameter; for body the JSON Pointer of the member, as /auth/token; for hmac the header with the signature; for basic the user name, if it is not in the secret's field username."`
	Prefix string `json:"prefix,omitempty" doc:"What stands before the secret in a header: \"Bearer \"."`
	Secret string `json:"secret" minLength:"1" doc:"The path of the secret; or lease:ROLE for a credential that is made for the session, or connection:NAME for the access token of an OAuth connection. A field may stand behind it: crm/api-key#value."`
	Field  string `json:"field,omitempty" doc:"The field of the secret, if it has several."`

	Actions []string `json:"actions,omitempty" doc:"The actions, by name, in whose requests alone it is filled; in all by itself."`
	AWS     *AWS     `json:"aws,omitempty" doc:"For sigv4: what is signed for."`
	HMAC    *HMAC    `json:"hmac,omitempty" doc:"For hmac: what is signed, and how."`
	OnEcho  string   `json:"on_echo,omitempty" enum:"record,revoke,rotate" doc:"What becomes of the secret when the resource sends it back: that is recorded by itself; it may also be taken out of use, or rotated."`

	Placeholder string `json:"placeholder,omitempty" pattern:"^([A-Z][A-Z0-9_]*)?$" doc:"A variable of the environment, as CRM_API_KEY, in which programs get a value that opens nothing, if they do not start without one. For sigv4 that of the key's id, as AWS_ACCESS_KEY_ID; the variable of the key itself is set along with it."`
}

// AWS is what a signature of AWS (Signature Version 4) is for. The secret has the
// fields access_key_id and secret_access_key, and session_token for a temporary key.
type AWS struct {
	Region          string   `json:"region" minLength:"1" doc:"As eu-central-1."`
	Service         string   `json:"service" minLength:"1" doc:"As the service is called in signatures: s3, dynamodb, execute-api."`
	Subresources    []string `json:"subresources,omitempty" doc:"For S3: what may be done beside reading, writing, listing and uploading in parts, by the parameters that say so (acl, policy, tagging, …), and copy."`
	UnsignedPayload bool     `json:"unsigned_payload,omitempty" doc:"Whether a body that is too long to be read before it is sent, or that the client sends unsigned, goes out without being signed. S3 takes that over TLS."`
}

// HMAC is a template of a signature.
type HMAC struct {
	Algorithm string            `json:"algorithm,omitempty" enum:"sha256,sha384,sha512" default:"sha256" doc:"The hash."`
	Sign      string            `json:"sign" minLength:"1" doc:"What is signed: text with {method}, {host}, {path}, {query}, {target}, {timestamp}, {timestamp_ms}, {time}, {date}, {nonce}, {key_id}, {body}, {body_sha256}, {body_sha256_base64} and {header:NAME} in it."`
	Encoding  string            `json:"encoding,omitempty" enum:"hex,base64,base64url" default:"hex" doc:"How the signature is written."`
	Value     string            `json:"value,omitempty" default:"{signature}" doc:"What the header says, with {signature} in it: sha256={signature}."`
	Headers   map[string]string `json:"headers,omitempty" doc:"Headers that go along, as the time that was signed, by their names: X-Timestamp: \"{timestamp}\"."`
	Key       string            `json:"key,omitempty" enum:"text,base64,hex" default:"text" doc:"How the secret writes the key."`
	KeyPrefix string            `json:"key_prefix,omitempty" doc:"What stands before the key in the secret and is no part of it: whsec_."`
}

// The kinds of slot.
const (
	Header = "header"
	Query  = "query"
	Basic  = "basic"
	Body   = "body"
	MTLS   = "mtls"
	SigV4  = "sigv4"
	Signed = "hmac"
)

// What becomes of a secret that comes back.
const (
	OnEchoRecord = "record"
	OnEchoRevoke = "revoke"
	OnEchoRotate = "rotate"
)

// What becomes of the cookies of a resource.
const (
	CookiesDrop = "drop"
	CookiesJar  = "jar"
)

// What becomes of an agent that misuses a placeholder.
const (
	OnMisuseRecord     = "record"
	OnMisuseQuarantine = "quarantine"
)

// What a slot names in the place of a secret's path.
const (
	LeasePrefix      = "lease:"
	ConnectionPrefix = "connection:"
	HandlePrefix     = "estover:secret/" // before a path, where a handle is written out
)

// Static reports whether a slot is filled from a secret at a path.
func (s *Slot) Static() bool {
	return !strings.HasPrefix(s.Secret, LeasePrefix) && !strings.HasPrefix(s.Secret, ConnectionPrefix)
}

// Fills reports whether the slot is filled in requests of an action.
func (s *Slot) Fills(action string) bool {
	return len(s.Actions) == 0 || slices.Contains(s.Actions, action)
}

// SecretVariable is the variable of a key of AWS, beside that of its id.
func (s *Slot) SecretVariable() string {
	if s.Slot != SigV4 || s.Placeholder == "" {
		return ""
	}
	if name := strings.Replace(s.Placeholder, "ACCESS_KEY_ID", "SECRET_ACCESS_KEY", 1); name != s.Placeholder {
		return name
	}
	return s.Placeholder + "_SECRET"
}

// A Template is text with parts that are filled in for each request.
type Template []Part

// A Part is text, or the name of what stands in its place.
type Part struct {
	Text     string
	Name     string // "timestamp"; "" for text
	Argument string // of a header: its name
}

// partNames are the names of parts.
var partNames = []string{
	"method", "host", "path", "query", "target", "timestamp", "timestamp_ms", "time", "date", "nonce", "key_id",
	"body", "body_sha256", "body_sha256_base64", "header", "signature",
}

// ParseTemplate reads a template.
func ParseTemplate(text string) (t Template, err error) {
	for text != "" {
		plain, rest, found := strings.Cut(text, "{")
		if strings.Contains(plain, "}") {
			return nil, ErrInvalid.With("There is a } without a { in %q.", text)
		}
		if plain != "" {
			t = append(t, Part{Text: plain})
		}
		if !found {
			return t, nil
		}
		name, after, closed := strings.Cut(rest, "}")
		if !closed {
			return nil, ErrInvalid.With("The { in %q is not closed.", text)
		}
		name, argument, with := strings.Cut(name, ":")
		if !slices.Contains(partNames, name) || with != (name == "header") || with && !httpguts.ValidHeaderFieldName(argument) {
			return nil, ErrInvalid.With("There is no part {%s}. There are %s and header:NAME.", strings.TrimSuffix(name+":"+argument, ":"), strings.Join(partNames[:len(partNames)-2], ", "))
		}
		t, text = append(t, Part{Name: name, Argument: argument}), after
	}
	return t, nil
}

// Has reports whether the template has one of these parts.
func (t Template) Has(names ...string) bool {
	return slices.ContainsFunc(t, func(p Part) bool { return p.Name != "" && slices.Contains(names, p.Name) })
}

// Fill puts the text together.
func (t Template) Fill(part func(name, argument string) (string, error)) (string, error) {
	var b strings.Builder
	for _, p := range t {
		text := p.Text
		if p.Name != "" {
			var err error
			if text, err = part(p.Name, p.Argument); err != nil {
				return "", err
			}
		}
		b.WriteString(text)
	}
	return b.String(), nil
}

// Uses reports whether a template of the slot has one of these parts.
func (h *HMAC) Uses(names ...string) bool {
	texts := []string{h.Sign, h.Value}
	for _, v := range h.Headers {
		texts = append(texts, v)
	}
	return slices.ContainsFunc(texts, func(text string) bool {
		t, err := ParseTemplate(text)
		return err == nil && t.Has(names...)
	})
}

// ours are the headers that a slot may not fill: they frame the request, or
// the gateway sets them.
var ours = []string{
	"connection", "content-length", "expect", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade",
	"forwarded", "via", "content-type", "content-encoding", "accept-encoding", "range",
}

// canFill reports whether a slot may fill a header.
func canFill(name string) bool {
	lower := strings.ToLower(name)
	return httpguts.ValidHeaderFieldName(name) && !slices.Contains(ours, lower) && !strings.HasPrefix(lower, "proxy-") &&
		!strings.HasPrefix(lower, "x-forwarded-") && !strings.HasPrefix(lower, "estover-")
}

// variable is the name of a variable of the environment.
var variable = regexp.MustCompile(`^[A-Z][A-Z0-9_]*$`)

// word is the name of a region or of a service.
var word = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

// subresource is the name of a parameter of S3.
var subresource = regexp.MustCompile(`^[A-Za-z][A-Za-z-]{1,40}$`)

// headerPlace is the place of a header, whatever its spelling.
func headerPlace(name string) string {
	return "header " + strings.ToLower(strings.ReplaceAll(name, "_", "-"))
}

// slots checks the slots of a resource with these actions.
func (c *checker) slots(list []Slot, actions []Action) []Slot {
	if len(list) > maxSlots {
		c.wrong("slots", "A resource has at most %d slots.", maxSlots)
	}
	list = slices.Clone(list)
	taken := map[string][]*Slot{}
	for i := range list {
		s := &list[i]
		at := func(field string) string { return fmt.Sprintf("slots[%d].%s", i, field) }
		// A handle may be written in one piece: lease:reader#password.
		if source, field, ok := strings.Cut(strings.TrimPrefix(s.Secret, HandlePrefix), "#"); ok && s.Field == "" {
			s.Secret, s.Field = source, field
		}
		s.Secret = strings.TrimPrefix(s.Secret, HandlePrefix)
		if s.Placeholder != "" && (len(s.Placeholder) > 100 || !variable.MatchString(s.Placeholder)) {
			c.wrong(at("placeholder"), "The name of a variable has capitals, digits and underscores, as CRM_API_KEY, not %q.", s.Placeholder)
		}
		for _, place := range c.slot(s, at) {
			if slices.ContainsFunc(taken[place], func(other *Slot) bool { return overlap(s.Actions, other.Actions) }) {
				c.wrong(at("name"), "Two slots fill the same place.")
			}
			taken[place] = append(taken[place], s)
		}
		s.Actions = slices.Clone(s.Actions)
		slices.Sort(s.Actions)
		s.Actions = slices.Compact(s.Actions)
		for _, name := range s.Actions {
			if !slices.ContainsFunc(actions, func(a Action) bool { return a.Name == name }) {
				c.wrong(at("actions"), "The resource has no action %q.", name)
			}
		}
		if s.OnEcho != "" {
			c.oneOf(at("on_echo"), s.OnEcho, OnEchoRecord, OnEchoRevoke, OnEchoRotate)
		}
		c.source(s, at)
	}
	return list
}

// overlap reports whether there is a request in which both are filled.
func overlap(a, b []string) bool {
	return len(a) == 0 || len(b) == 0 || slices.ContainsFunc(a, func(name string) bool { return slices.Contains(b, name) })
}

// slot checks one slot, and gives the places that it fills.
func (c *checker) slot(s *Slot, at func(string) string) (places []string) {
	if s.Slot != Header && s.Prefix != "" {
		c.wrong(at("prefix"), "Only a header has a prefix.")
	}
	if (s.AWS != nil) != (s.Slot == SigV4) {
		c.wrong(at("aws"), "Region and service belong to a slot sigv4, which needs them.")
	}
	if (s.HMAC != nil) != (s.Slot == Signed) {
		c.wrong(at("hmac"), "A template belongs to a slot hmac, which needs one.")
	}
	switch s.Slot {
	case Header:
		if !canFill(s.Name) || strings.EqualFold(s.Name, "date") {
			c.wrong(at("name"), "A secret cannot go into the header %q.", s.Name)
		}
		if !httpguts.ValidHeaderFieldValue(s.Prefix) {
			c.wrong(at("prefix"), "The prefix %q cannot stand in a header.", s.Prefix)
		}
		return []string{headerPlace(s.Name)}
	case Query:
		if s.Name == "" || strings.ContainsFunc(s.Name, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("&=#+%;", r) }) {
			c.wrong(at("name"), "The name of the query parameter is a plain word, not %q.", s.Name)
		}
		return []string{"query " + s.Name}
	case Basic:
		if strings.ContainsFunc(s.Name, func(r rune) bool { return r < ' ' || r == 0x7f || r == ':' }) {
			c.wrong(at("name"), "A user name has neither a colon nor control characters.")
		}
		return []string{"header authorization"}
	case Body:
		if !pointer.MatchString(s.Name) || len(s.Name) > 500 {
			c.wrong(at("name"), "The place in a body is the JSON Pointer of a member, as /auth/token, not %q.", s.Name)
		}
		return []string{"body"} // two would have to be put in together
	case MTLS:
		if s.Name != "" || s.Field != "" {
			c.wrong(at("name"), "A client certificate has no name: it is in the secret's fields certificate and key.")
		}
		return []string{"certificate"}
	case SigV4:
		if s.Name != "" || s.Field != "" {
			c.wrong(at("name"), "A signature of AWS has no name: its key is in the secret's fields access_key_id and secret_access_key.")
		}
		if s.AWS != nil && (!word.MatchString(s.AWS.Region) || !word.MatchString(s.AWS.Service)) {
			c.wrong(at("aws"), "Region and service are words as eu-central-1 and s3, not %q and %q.", s.AWS.Region, s.AWS.Service)
		}
		if s.AWS != nil && slices.ContainsFunc(s.AWS.Subresources, func(v string) bool { return !subresource.MatchString(v) }) {
			c.wrong(at("aws"), "A subresource of S3 is the name of a parameter, as acl, tagging or policy.")
		}
		return []string{"header authorization", "header x-amz-date", "header x-amz-security-token", "header x-amz-content-sha256"}
	case Signed:
		return c.hmac(s, at)
	}
	c.wrong(at("slot"), "A slot is header, query, basic, body, mtls, sigv4 or hmac, not %q.", s.Slot)
	return nil
}

// pointer is a JSON Pointer that leads to a member or an element.
var pointer = regexp.MustCompile(`^(/([^~/]|~0|~1)+)+$`)

// hmac checks a template of a signature.
func (c *checker) hmac(s *Slot, at func(string) string) []string {
	places := []string{headerPlace(s.Name)}
	if !canFill(s.Name) {
		c.wrong(at("name"), "A signature cannot go into the header %q.", s.Name)
	}
	if s.HMAC == nil {
		return places
	}
	h := *s.HMAC
	s.HMAC = &h
	for field, usual := range map[*string]string{&h.Algorithm: "sha256", &h.Encoding: "hex", &h.Value: "{signature}", &h.Key: "text"} {
		if *field == "" {
			*field = usual
		}
	}
	c.oneOf(at("hmac.algorithm"), h.Algorithm, "sha256", "sha384", "sha512")
	c.oneOf(at("hmac.encoding"), h.Encoding, "hex", "base64", "base64url")
	c.oneOf(at("hmac.key"), h.Key, "text", "base64", "hex")
	template := func(field, text string, without ...string) Template {
		t, err := ParseTemplate(text)
		switch {
		case err != nil:
			c.wrong(at(field), "%s", err)
		case len(text) > 2000 || strings.ContainsFunc(text, func(r rune) bool { return r > '~' || r < ' ' && (field != "hmac.sign" || r != '\n') }):
			c.wrong(at(field), "A template has up to 2000 characters of ASCII.")
		case t.Has(without...):
			c.wrong(at(field), "%s cannot stand in %q.", strings.Join(without, " and "), text)
		}
		return t
	}
	if t := template("hmac.sign", h.Sign, "signature"); len(t) == 0 {
		c.wrong(at("hmac.sign"), "Say what is signed, as {timestamp}.{body}.")
	}
	if t := template("hmac.value", h.Value, "body", "header"); !t.Has("signature") {
		c.wrong(at("hmac.value"), "The header has the signature in it: {signature}.")
	}
	for name, text := range h.Headers {
		if !canFill(name) {
			c.wrong(at("hmac.headers"), "The header %q cannot be set.", name)
		}
		template("hmac.headers", text, "body", "header", "signature")
		places = append(places, headerPlace(name))
	}
	return places
}

// source checks where what fills a slot comes from.
func (c *checker) source(s *Slot, at func(string) string) {
	name, special := strings.CutPrefix(s.Secret, LeasePrefix)
	if !special {
		name, special = strings.CutPrefix(s.Secret, ConnectionPrefix)
	}
	switch {
	case special:
		c.name(at("secret"), "The name of a role or a connection", name)
		if strings.HasPrefix(s.Secret, ConnectionPrefix) && s.Slot != Header && s.Slot != Query && s.Slot != Body {
			c.wrong(at("slot"), "The token of a connection goes into a header, a query parameter or a body.")
		}
	case s.Secret == "" || len(s.Secret) > 256 || strings.HasPrefix(s.Secret, "/") || strings.ContainsFunc(s.Secret, func(r rune) bool { return r <= ' ' || r > '~' || r == '#' }):
		c.wrong(at("secret"), "The secret is named by its path, as crm/api-key, not %q.", s.Secret)
	}
}
