package agent

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"estover.dev"
)

// A Certificate is what the certificate of an agent's connections must say, and
// which authorities must vouch for it (RFC 8705, section 2.1). Exactly one name
// is set. A workload of SPIFFE is known by its URI. Its authorities are the bundle
// of its trust domain: that of the trust which is about the domain, unless there
// are some here.
type Certificate struct {
	SubjectDN string `json:"tls_client_auth_subject_dn,omitempty" maxLength:"1024" doc:"The subject as RFC 4514 writes it, as 'CN=bot,O=Example'."`
	DNS       string `json:"tls_client_auth_san_dns,omitempty" maxLength:"253" doc:"A name among the subject's alternative names."`
	URI       string `json:"tls_client_auth_san_uri,omitempty" maxLength:"2048" doc:"A URI among them, as spiffe://example.com/bot."`
	IP        string `json:"tls_client_auth_san_ip,omitempty" maxLength:"45" doc:"An address among them."`
	Email     string `json:"tls_client_auth_san_email,omitempty" maxLength:"254" doc:"An address of mail among them."`

	Authorities string `json:"authorities,omitempty" maxLength:"65536" doc:"The certificates of the authorities that vouch for it, as PEM. None for a URI of SPIFFE: then the trust of its trust domain says who they are."`
}

// ErrCertificate is returned for a certificate credential that could let in
// nobody, or whom nobody meant.
var ErrCertificate = &estover.Error{Kind: estover.Invalid, Code: "certificate_invalid", Detail: "This does not say which certificate is the agent's."}

// maxAuthorities bounds the authorities of one credential.
const maxAuthorities = 32

// check gives the certificate in the one form in which it is kept.
func (c Certificate) check() (Certificate, error) {
	wrong := func(field, format string, args ...any) error {
		return ErrCertificate.With(format, args...).At(strings.TrimSuffix("certificate."+field, "."))
	}
	names := 0
	for _, n := range []string{c.SubjectDN, c.DNS, c.URI, c.IP, c.Email} {
		if n != "" {
			names++
		}
	}
	if names != 1 {
		return c, wrong("", "A certificate is known by exactly one of the subject, a DNS name, a URI, an IP address and an address of mail; %d are given.", names)
	}
	switch {
	case c.DNS != "":
		if c.DNS = strings.ToLower(c.DNS); strings.Trim(c.DNS, "abcdefghijklmnopqrstuvwxyz0123456789-.") != "" || strings.Trim(c.DNS, ".") != c.DNS {
			return c, wrong("tls_client_auth_san_dns", "%q is not a DNS name. Names with a star stand for nobody.", c.DNS)
		}
	case c.URI != "":
		if u, err := url.Parse(c.URI); err != nil || u.Scheme == "" || u.Host == "" {
			return c, wrong("tls_client_auth_san_uri", "%q is not an absolute URI.", c.URI)
		}
	case c.IP != "":
		a, err := netip.ParseAddr(c.IP)
		if err != nil || a.Zone() != "" {
			return c, wrong("tls_client_auth_san_ip", "%q is not an IP address.", c.IP)
		}
		c.IP = a.Unmap().String()
	case c.Email != "":
		local, domain, ok := strings.Cut(c.Email, "@")
		if !ok || local == "" || domain == "" || strings.Contains(domain, "@") {
			return c, wrong("tls_client_auth_san_email", "%q is not an address of mail.", c.Email)
		}
		c.Email = local + "@" + strings.ToLower(domain)
	default:
		c.SubjectDN = plainDN(c.SubjectDN)
		if !strings.Contains(c.SubjectDN, "=") {
			return c, wrong("tls_client_auth_subject_dn", "%q is not a subject as RFC 4514 writes it.", c.SubjectDN)
		}
	}
	if c.Authorities == "" && c.Domain() != "" {
		return c, nil
	}
	roots, err := authorities(c.Authorities)
	if err != nil {
		return c, err
	}
	var text strings.Builder
	for _, r := range roots {
		_ = pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: r.Raw}) // a Builder takes everything
	}
	c.Authorities = text.String()
	return c, nil
}

// authorities reads certificates that may vouch for others.
func authorities(text string) (list []*x509.Certificate, err error) {
	wrong := func(format string, args ...any) error {
		return ErrCertificate.With(format, args...).At("certificate.authorities")
	}
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, wrong("The authorities are certificates, and this is a %s. If it is a private key, replace it: it has been shown.", block.Type)
		}
		one, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, wrong("A certificate of the authorities cannot be read.")
		}
		if !one.IsCA {
			return nil, wrong("%s is not an authority. For a certificate that vouches for itself register its key set instead.", one.Subject)
		}
		if list = append(list, one); len(list) > maxAuthorities {
			return nil, wrong("There are more than %d authorities.", maxAuthorities)
		}
	}
	if len(list) == 0 {
		return nil, wrong("The authorities are certificates as PEM, and there is none.")
	}
	return list, nil
}

// Domain is the trust domain of SPIFFE whose trust says who the authorities are;
// "" if they are here.
func (c *Certificate) Domain() string {
	rest, ok := strings.CutPrefix(c.URI, "spiffe://")
	domain, _, workload := strings.Cut(rest, "/")
	if !ok || !workload || c.Authorities != "" {
		return ""
	}
	return domain
}

// Roots are the authorities, for a chain to end in.
func (c *Certificate) Roots() (*x509.CertPool, error) {
	list, err := authorities(c.Authorities)
	pool := x509.NewCertPool()
	for _, one := range list {
		pool.AddCert(one)
	}
	return pool, err
}

// Names reports whether a certificate has the name. Whether an authority vouches
// for it is another question. Nothing is compared by a pattern: a certificate
// for *.example.com is not one for a.example.com here.
func (c *Certificate) Names(of *x509.Certificate) bool {
	switch {
	case c.DNS != "":
		return slices.ContainsFunc(of.DNSNames, func(n string) bool { return strings.EqualFold(n, c.DNS) })
	case c.URI != "":
		// An X.509-SVID has exactly one URI; another beside it is none.
		if strings.HasPrefix(c.URI, "spiffe://") && len(of.URIs) != 1 {
			return false
		}
		return slices.ContainsFunc(of.URIs, func(u *url.URL) bool { return u.String() == c.URI })
	case c.IP != "":
		return slices.ContainsFunc(of.IPAddresses, func(ip net.IP) bool {
			a, ok := netip.AddrFromSlice(ip)
			return ok && a.Unmap().String() == c.IP
		})
	case c.Email != "":
		return slices.ContainsFunc(of.EmailAddresses, func(e string) bool {
			local, domain, _ := strings.Cut(e, "@")
			return local+"@"+strings.ToLower(domain) == c.Email
		})
	}
	var dn pkix.RDNSequence
	rest, err := asn1.Unmarshal(of.RawSubject, &dn)
	return err == nil && len(rest) == 0 && len(dn) > 0 && c.SubjectDN != "" && plainDN(dn.String()) == c.SubjectDN
}

// plainDN writes a subject without spaces around its commas, with its types in
// capitals, and with characters in the place of their codes. The values are
// otherwise left as they are, and so is the order.
func plainDN(s string) string {
	s = unhexed(s)
	var parts []string
	start, escaped := 0, false
	add := func(end int) {
		// Spaces alone: those of a value itself are escaped at its ends.
		part := strings.Trim(s[start:end], " ")
		if at := strings.IndexByte(part, '='); at > 0 {
			part = strings.ToUpper(strings.Trim(part[:at], " ")) + "=" + strings.Trim(part[at+1:], " ")
		}
		parts = append(parts, part)
	}
	for i := range len(s) {
		switch {
		case escaped:
			escaped = false
		case s[i] == '\\':
			escaped = true
		case s[i] == ',':
			add(i)
			start = i + 1
		}
	}
	add(len(s))
	return strings.Join(parts, ",")
}

// unhexed writes the characters that a subject has as codes, as "\C3\BC"
// (RFC 4514, section 2.4), and keeps those apart that mean something there.
func unhexed(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		if code, err := hex.DecodeString(s[i+1 : min(i+3, len(s))]); err == nil {
			if strings.IndexByte(`,+"\<>;`, code[0]) >= 0 {
				b.WriteByte('\\')
			}
			b.WriteByte(code[0])
			i += 2
			continue
		}
		b.WriteString(s[i : i+2])
		i++
	}
	return b.String()
}
