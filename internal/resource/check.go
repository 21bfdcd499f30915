package resource

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/idna"

	"estover.dev"
	"estover.dev/internal/guard"
)

// Bounds of a specification.
const (
	maxActions = 1000
	maxHosts   = 100
	maxSlots   = 20
	maxCA      = 256 << 10
)

// Check gives the spec in the one form in which it is kept, or everything that
// is wrong with it.
func Check(s Spec) (Spec, error) {
	c := &checker{}
	if s.Type == "" {
		s.Type = HTTP
	}
	c.oneOf("type", s.Type, HTTP, Service)
	c.name("name", "The name of a resource", s.Name)
	if s.Class.Rank() < 0 {
		c.wrong("class", "The class is public, internal, confidential or restricted, not %q.", s.Class)
	}
	if s.Destination == "" {
		s.Destination = "internal"
	}
	c.oneOf("destination", s.Destination, "internal", "partner", "public")
	if s.Cookies != "" {
		c.oneOf("cookies", s.Cookies, CookiesDrop, CookiesJar)
	}
	if s.OnMisuse != "" {
		c.oneOf("on_misuse", s.OnMisuse, OnMisuseRecord, OnMisuseQuarantine)
	}
	if s.Evidence != "" {
		c.oneOf("evidence", s.Evidence, "strict", "batched")
	}
	if s.Record != "" {
		c.oneOf("record", s.Record, "none", "meta", "full")
	}
	if s.Segment != "" {
		c.name("segment", "The name of a segment", s.Segment)
	}
	s.Tags = c.names("tags", "A tag", s.Tags)
	s.Purposes = c.names("purposes", "A purpose", s.Purposes)
	if s.Limits.BodyBytes < 0 {
		c.wrong("limits.body_bytes", "A body has at least no bytes.")
	}
	if s.Limits.TimeoutSeconds < 0 || s.Limits.TimeoutSeconds > 3600 {
		c.wrong("limits.timeout_seconds", "The time is between 0 and 3600 seconds.")
	}
	s.AllowPrivate = c.networks(s.AllowPrivate)
	if s.Type == Service {
		c.service(&s)
	} else {
		s.BaseURL, s.Hosts = c.places(s.BaseURL, s.Hosts, len(s.AllowPrivate) > 0)
	}
	if s.Address != "" {
		at, err := HostPort(s.Address, "")
		if err != nil || strings.HasSuffix(at, ":") {
			c.wrong("address", "The address to connect to is HOST:PORT, not %q.", s.Address)
		}
		s.Address = at
	}
	s.CA = c.roots(s.CA)
	s.Actions = c.actions(s.Actions, s.Class)
	s.Slots = c.slots(s.Slots, s.Actions)
	if strings.HasPrefix(s.BaseURL, "http:") && slices.ContainsFunc(s.Slots, func(slot Slot) bool { return slot.Slot == MTLS }) {
		c.wrong("slots", "A client certificate is shown over TLS: the URL begins with https://.")
	}
	return s, errors.Join(c.bad...)
}

// equal reports whether two specifications in their kept form say the same.
func equal(a, b Spec) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && string(x) == string(y)
}

// A checker gathers what is wrong.
type checker struct{ bad []error }

func (c *checker) wrong(field, format string, args ...any) {
	c.bad = append(c.bad, ErrInvalid.With(format, args...).At(field))
}

func (c *checker) name(field, what, value string) {
	if !estover.ValidName(value) {
		c.wrong(field, "%s has up to 63 small letters, digits, dots, dashes and underscores, not %q.", what, value)
	}
}

func (c *checker) oneOf(field, value string, list ...string) {
	if !slices.Contains(list, value) {
		c.wrong(field, "The %s is one of %s, not %q.", field, strings.Join(list, ", "), value)
	}
}

func (c *checker) names(field, what string, list []string) []string {
	for i, v := range list {
		c.name(fmt.Sprintf("%s[%d]", field, i), what, v)
	}
	list = slices.Clone(list)
	slices.Sort(list)
	return slices.Compact(list)
}

// private are the networks that a resource may be allowed to be in. The
// link-local ones, where clouds keep their metadata, are not among them.
var private = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("fc00::/7"),
}

func (c *checker) networks(list []string) []string {
	out := make([]string, 0, len(list))
	for i, text := range list {
		p, err := netip.ParsePrefix(text)
		inside := slices.ContainsFunc(private, func(q netip.Prefix) bool { return err == nil && q.Contains(p.Addr()) && q.Bits() <= p.Bits() })
		if !inside {
			c.wrong(fmt.Sprintf("allow_private[%d]", i), "%q is not a private or loopback network, as 10.1.0.0/16, 127.0.0.0/8 or fd00::/8.", text)
			continue
		}
		out = append(out, p.Masked().String())
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// places checks where a resource is and by which hosts it is addressed.
func (c *checker) places(base string, hosts []string, privateAllowed bool) (string, []string) {
	port := "443"
	out := make([]string, 0, len(hosts)+1)
	u, err := url.Parse(base)
	switch {
	case err != nil || u.Opaque != "" || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		c.wrong("base_url", "The URL is https://HOST[:PORT][/PATH], not %q.", base)
	case u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.Contains(base, "#"):
		c.wrong("base_url", "The URL has a host and a path, and neither user, query nor fragment. A secret goes into a slot.")
	case u.Scheme == "http" && !privateAllowed:
		c.wrong("base_url", "http:// sends secrets where everybody on the way can read them. Use https://, or name the private network of the resource in allow_private.")
	case u.RawPath != "" || u.Path != "" && path.Clean(u.Path) != strings.TrimSuffix(u.Path, "/") && u.Path != "/" || strings.ContainsAny(u.Path, "\\;%"):
		c.wrong("base_url", "The path of the URL is written plainly: no dots, doubled slashes or escapes.")
	default:
		if u.Scheme == "http" {
			port = "80"
		}
		host, err := HostPort(u.Host, port)
		if err != nil {
			c.wrong("base_url", "%s", err)
			break
		}
		out = append(out, host)
		base = u.Scheme + "://" + strings.TrimSuffix(host, ":"+port) + strings.TrimSuffix(u.EscapedPath(), "/")
	}
	if len(hosts) > maxHosts {
		c.wrong("hosts", "A resource has at most %d hosts.", maxHosts)
	}
	for i, text := range hosts {
		host, err := HostPort(text, port)
		if err != nil {
			c.wrong(fmt.Sprintf("hosts[%d]", i), "%s", err)
			continue
		}
		out = append(out, host)
	}
	slices.Sort(out)
	return base, slices.Compact(out)
}

// service checks a resource that the gateway does not forward to.
func (c *checker) service(s *Spec) {
	u, err := url.Parse(s.BaseURL)
	if err != nil || u.Opaque != "" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Scheme == "" || u.Scheme == "http" || u.Scheme == "https" {
		c.wrong("base_url", "The URL of a service is SCHEME://HOST[:PORT][/PATH], as postgres://db.example.com/crm, not %q. What speaks HTTP has the type http.", s.BaseURL)
	}
	for field, is := range map[string]bool{
		"hosts": len(s.Hosts) > 0, "ca": s.CA != "", "address": s.Address != "", "allow_private": len(s.AllowPrivate) > 0, "slots": len(s.Slots) > 0,
		"evidence": s.Evidence != "", "record": s.Record != "", "limits": s.Limits != Limits{},
	} {
		if is {
			c.wrong(field, "The gateway forwards nothing to a service, so there is nothing to say of that.")
		}
	}
	s.Actions = slices.Clone(s.Actions)
	for i := range s.Actions {
		a := &s.Actions[i]
		if a.Method != "" && a.Method != "*" || a.Path != "" && a.Path != "/"+a.Name || len(a.Tokens) > 0 {
			c.wrong(fmt.Sprintf("actions[%d]", i), "An action of a service has a name, an effect and a class, and neither method nor path.")
		}
		if a.Effect == "" {
			c.wrong(fmt.Sprintf("actions[%d].effect", i), "Say what the action does: read, search, write, delete, send, execute, admin or pay.")
		}
		a.Method, a.Path = "*", "/"+a.Name // it stands where that of an HTTP resource does, and nothing is forwarded by it
	}
}

// HostPort gives a host and its port in the one spelling by which resources
// are found. Whatever could be another spelling of the same host (a trailing
// dot, a zone, an address that is not in four decimals, a name that is not in
// ASCII) is an error.
func HostPort(text, defaultPort string) (string, error) {
	host, port := text, defaultPort
	if at := strings.LastIndexByte(text, ':'); at >= 0 && !strings.HasSuffix(text, "]") {
		host, port = text[:at], text[at+1:]
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 || strconv.FormatUint(n, 10) != port {
			return "", ErrHost.With("The port of %q is a number between 1 and 65535.", text)
		}
	}
	if strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]") {
		a, err := netip.ParseAddr(host[1 : len(host)-1])
		if err != nil || !a.Is6() || a.Zone() != "" || a.Is4In6() {
			return "", ErrHost.With("%q is not an IPv6 address in brackets, without a zone.", host)
		}
		return "[" + a.String() + "]:" + port, nil
	}
	host = strings.ToLower(host)
	if isHostName(host) && !strings.Contains(host, "--") { // what IDNA says of such a name is known
		return host + ":" + port, nil
	}
	for i := range len(host) {
		if host[i] >= 0x80 {
			if ascii, err := idna.Lookup.ToASCII(host); err == nil {
				return "", ErrHost.With("The host %q is written in ASCII: %s.", text, ascii)
			}
			break
		}
	}
	if a, err := netip.ParseAddr(host); err == nil && a.Is4() {
		return a.String() + ":" + port, nil
	}
	ascii, err := idna.Lookup.ToASCII(host)
	if err != nil || ascii != host || !isHostName(host) {
		return "", ErrHost.With("%q is not a host: a name in ASCII without a dot at the end, or an address, with a port if it is not the usual one.", text)
	}
	return host + ":" + port, nil
}

// isHostName reports whether s is a name of letters, digits and dashes whose
// last label cannot be taken for a part of an address.
func isHostName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	last := ""
	for l := range strings.SplitSeq(s, ".") {
		if l == "" || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' {
			return false
		}
		for i := range len(l) {
			if c := l[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
				return false
			}
		}
		last = l
	}
	return last[0] < '0' || last[0] > '9'
}

// roots checks that a text holds certificates and nothing else.
func (c *checker) roots(text string) string {
	if text == "" {
		return ""
	}
	if len(text) > maxCA {
		c.wrong("ca", "The roots have at most %d bytes.", maxCA)
		return text
	}
	var out strings.Builder
	rest := []byte(text)
	for n := 0; ; n++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			if n == 0 || strings.TrimSpace(string(rest)) != "" {
				c.wrong("ca", "The roots are certificates in PEM, and nothing else.")
			}
			return out.String()
		}
		if block.Type != "CERTIFICATE" {
			c.wrong("ca", "The roots are certificates in PEM; here is a %s.", strings.ToLower(block.Type))
			return text
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			c.wrong("ca", "Certificate %d of the roots cannot be read.", n+1)
			return text
		}
		_ = pem.Encode(&out, &pem.Block{Type: block.Type, Bytes: block.Bytes}) // cannot fail
	}
}

var effects = []guard.Effect{
	guard.Reads, guard.Searches, guard.Writes, guard.Deletes, guard.Sends, guard.Executes, guard.Manages, guard.Pays,
}

func (c *checker) actions(list []Action, class estover.Class) []Action {
	if len(list) == 0 || len(list) > maxActions {
		c.wrong("actions", "A resource has between one and %d actions: nothing but them is forwarded.", maxActions)
	}
	list = slices.Clone(list)
	byName := map[string]Action{}
	var routes node
	for i := range list {
		a := &list[i]
		at := func(field string) string { return fmt.Sprintf("actions[%d].%s", i, field) }
		c.name(at("name"), "The name of an action", a.Name)
		a.Method = strings.ToUpper(a.Method)
		if !validMethod(a.Method) {
			c.wrong(at("method"), "The method is GET, POST, … or * for every one, not %q.", a.Method)
		}
		if a.Effect == "" {
			a.Effect = usualEffect(a.Method)
		}
		if !slices.Contains(effects, a.Effect) {
			c.wrong(at("effect"), "The effect is read, search, write, delete, send, execute, admin or pay, not %q.", a.Effect)
		}
		if a.Class == "" {
			a.Class = class
		}
		if a.Class.Rank() < 0 && a.Class != class {
			c.wrong(at("class"), "The class is public, internal, confidential or restricted, not %q.", a.Class)
		}
		if same, ok := byName[a.Name]; ok && (same.Effect != a.Effect || same.Class != a.Class) {
			c.wrong(at("name"), "Two actions are called %s and differ in effect or class. A grant could not tell them apart: give one another name.", a.Name)
		}
		byName[a.Name] = *a
		for _, member := range a.Tokens {
			if member == "" || len(member) > 100 {
				c.wrong(at("tokens"), "A member of the answer has a name of up to 100 characters, as access_token, not %q.", member)
			}
		}
		if len(a.Tokens) > 10 {
			c.wrong(at("tokens"), "An answer has at most 10 kinds of tokens.")
		}
		if other, err := routes.add(*a); err != nil {
			c.wrong(at("path"), "%s", err)
		} else if other != nil {
			c.wrong(at("path"), "%s %s is the same as %s of %s.", a.Method, a.Path, other.Path, other.Name)
		}
	}
	return list
}

func validMethod(m string) bool {
	if m == "*" {
		return true
	}
	for i := range len(m) {
		if (m[i] < 'A' || m[i] > 'Z') && m[i] != '-' {
			return false
		}
	}
	return m != "" && len(m) <= 32 && m != "CONNECT" && m != "TRACE"
}

func usualEffect(method string) guard.Effect {
	switch method {
	case "GET", "HEAD", "OPTIONS":
		return guard.Reads
	case "DELETE":
		return guard.Deletes
	}
	return guard.Writes
}
