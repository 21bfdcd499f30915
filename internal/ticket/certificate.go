package ticket

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"slices"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// ErrCertificate is returned when a connection's certificate lets nobody in.
var ErrCertificate = &estover.Error{Kind: estover.Invalid, Code: "cert_login", Detail: "invalid certificate or no client certificate supplied"}

// A CertRole says which certificates let one in: those that chain to its
// certificate, or are it.
type CertRole struct {
	Certificate   string   `json:"certificate"`
	DisplayName   string   `json:"display_name"`
	CommonNames   []string `json:"allowed_common_names"`
	DNS           []string `json:"allowed_dns_sans"`
	Emails        []string `json:"allowed_email_sans"`
	URIs          []string `json:"allowed_uri_sans"`
	Names         []string `json:"allowed_names"`
	Units         []string `json:"allowed_organizational_units"`
	Extensions    []string `json:"required_extensions"`
	MetaExtension []string `json:"allowed_metadata_extensions"`
}

func (k *CertRole) check() error {
	list, err := certificates(k.Certificate)
	if err != nil || len(list) == 0 {
		return ErrRole.With("failed to parse certificate")
	}
	for _, c := range list {
		if c.IsCA {
			continue
		}
		// A leaf of its own must be one that a client may show.
		if !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth) && !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny) {
			return ErrRole.With("non-CA certificates should have TLS client authentication set as an extended key usage")
		}
	}
	if len(k.Extensions) > maxList || len(k.MetaExtension) > 0 {
		return ErrRole.With("certificate extensions cannot be put into the metadata of tokens here")
	}
	for _, e := range k.Extensions {
		if _, _, ok := strings.Cut(e, ":"); !ok {
			return ErrRole.With("an extension is written as OID:pattern, not %q", e)
		}
	}
	return nil
}

// maxCertificates bounds those of one role.
const maxCertificates = 64

func certificates(text string) (list []*x509.Certificate, err error) {
	if len(text) > 256<<10 {
		return nil, errors.New("too long")
	}
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return list, nil
		}
		if block.Type != "CERTIFICATE" {
			return nil, errors.New("not a certificate")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		if list = append(list, c); len(list) > maxCertificates {
			return nil, errors.New("too many")
		}
	}
}

// A CertConfig says how a way looks at certificates. What Vault has beside is
// about its own tokens.
type CertConfig struct {
	DisableBinding bool  `json:"disable_binding"` // tickets are good without the certificate
	EnableIdentity bool  `json:"enable_identity_alias_metadata"`
	CacheSize      int64 `json:"ocsp_cache_size"`
}

// SetCert sets how a way looks at certificates.
func (t *Tickets) SetCert(ctx context.Context, caller estover.Caller, at Way, c CertConfig) error {
	op := guard.Op{Action: "ticket_mount.set", Target: settingTarget(at, "config"), Detail: map[string]any{"disable_binding": c.DisableBinding}}
	return t.guard.Do(ctx, caller, op, func(tx *guard.Tx) error { return putSetting(ctx, tx.Tx, at.ID, "config", c) })
}

// Cert is how a way looks at certificates.
func (t *Tickets) Cert(ctx context.Context, caller estover.Caller, at Way) (c CertConfig, err error) {
	err = t.guard.Read(ctx, caller, guard.Op{Action: "ticket_mount.read", Target: settingTarget(at, "config")}, func(tx *db.Tx) error {
		_, err := findSetting(ctx, tx, at.ID, "config", &c)
		return err
	})
	return c, err
}

// A RevocationList is a list of certificates that count no more.
type RevocationList struct {
	PEM     string            `json:"crl"`
	Issuer  string            `json:"issuer"` // as it is in the certificates, in hex
	Serials map[string]string `json:"serials"`
}

// maxRevoked bounds the certificates of a list.
const maxRevoked = 10_000

// PutList stores a list of certificates that count no more, as PEM or DER.
func (t *Tickets) PutList(ctx context.Context, caller estover.Caller, at Way, name, text string) error {
	der := []byte(text)
	if block, _ := pem.Decode(der); block != nil {
		der = block.Bytes
	}
	crl, err := x509.ParseRevocationList(der)
	if err != nil || len(text) > maxSetting {
		return ErrSetting.With("parsed CRL is empty or cannot be read")
	}
	if len(crl.RevokedCertificateEntries) > maxRevoked {
		return ErrSetting.With("a CRL has at most %d certificates", maxRevoked)
	}
	l := RevocationList{PEM: text, Issuer: hex.EncodeToString(crl.RawIssuer), Serials: map[string]string{}}
	for _, e := range crl.RevokedCertificateEntries {
		l.Serials[e.SerialNumber.String()] = e.RevocationTime.UTC().Format(time.RFC3339)
	}
	op := guard.Op{Action: "ticket_mount.set", Target: settingTarget(at, "crls/"+name)}
	return t.guard.Do(ctx, caller, op, func(tx *guard.Tx) error { return putSetting(ctx, tx.Tx, at.ID, "crl/"+name, l) })
}

// List is a list of certificates that count no more.
func (t *Tickets) RevocationList(ctx context.Context, caller estover.Caller, at Way, name string) (l RevocationList, err error) {
	err = t.guard.Read(ctx, caller, guard.Op{Action: "ticket_mount.read", Target: settingTarget(at, "crls/"+name)}, func(tx *db.Tx) error {
		there, err := findSetting(ctx, tx, at.ID, "crl/"+name, &l)
		if err == nil && !there {
			err = ErrNoRole
		}
		return err
	})
	return l, err
}

// DropList takes a list away.
func (t *Tickets) DropList(ctx context.Context, caller estover.Caller, at Way, name string) error {
	op := guard.Op{Action: "ticket_mount.set", Target: settingTarget(at, "crls/"+name), Effect: guard.Deletes}
	return t.guard.Do(ctx, caller, op, func(tx *guard.Tx) error { return dropSetting(ctx, tx.Tx, at.ID, "crl/"+name) })
}

// Shown is the certificate of a connection, whose key its client has shown.
type Shown struct {
	Leaf       *x509.Certificate
	Chain      []*x509.Certificate
	Thumbprint string
}

// LoginCert gets a ticket for the agent that a certificate role leads to. Without
// a name the first role that fits is taken. The ticket is good along with the
// certificate, unless the way says otherwise.
func (t *Tickets) LoginCert(ctx context.Context, tenant estover.TenantID, at Way, from From, name string, shown Shown) (Made, error) {
	if shown.Leaf == nil {
		return Made{}, ErrCertificate.With("client certificate must be supplied")
	}
	var c CertConfig
	var roles []*Role
	var lists map[string]string
	err := t.guard.DB().View(ctx, tenant, func(tx *db.Tx) (err error) {
		if _, err = findSetting(ctx, tx, at.ID, "config", &c); err != nil {
			return err
		}
		if roles, err = rolesOf(ctx, tx, at.ID, CertRoles); err != nil {
			return err
		}
		lists, err = settings(ctx, tx, at.ID, "crl/")
		return err
	})
	if err != nil {
		return Made{}, err
	}
	now := t.guard.DB().Now()
	var r *Role
	for _, one := range roles {
		if (name == "" || one.Name == name) && one.Cert.fits(shown, lists, now) {
			r = one
			break
		}
	}
	if r == nil {
		return Made{}, ErrCertificate
	}
	w := r.wish(at, from)
	w.DisplayName = r.Cert.DisplayName
	if w.DisplayName == "" {
		w.DisplayName = r.Name
	}
	w.DisplayName = at.name() + "-" + w.DisplayName
	w.Meta = map[string]string{
		"cert_name": r.Name, "common_name": clip(shown.Leaf.Subject.CommonName), "serial_number": shown.Leaf.SerialNumber.String(),
		"subject_key_id": colons(shown.Leaf.SubjectKeyId), "authority_key_id": colons(shown.Leaf.AuthorityKeyId),
	}
	if !c.DisableBinding {
		w.Certificate = shown.Thumbprint
	}
	return t.login(ctx, tenant, r, from, w, func(tx *guard.Tx) error {
		ok, err := holdRole(ctx, tx.Tx, r)
		if err == nil && !ok {
			return ErrCertificate
		}
		tx.Note("certificate", shown.Thumbprint)
		return err
	})
}

func clip(text string) string {
	if len(text) > maxValue {
		return text[:maxValue]
	}
	return text
}

// colons is bytes in hex, with colons between.
func colons(b []byte) string {
	parts := make([]string, len(b))
	for i, c := range b {
		parts[i] = hex.EncodeToString([]byte{c})
	}
	return strings.Join(parts, ":")
}

// fits reports whether a certificate is one of the role's.
func (k *CertRole) fits(shown Shown, lists map[string]string, now time.Time) bool {
	leaf := shown.Leaf
	list, err := certificates(k.Certificate)
	if err != nil {
		return false
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	same := false
	for _, c := range list {
		if c.IsCA {
			roots.AddCert(c)
		}
		same = same || c.Equal(leaf) && !c.IsCA
	}
	for _, c := range shown.Chain {
		between.AddCert(c)
	}
	path := []*x509.Certificate{leaf}
	if !same {
		chains, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		if err != nil {
			return false
		}
		path = chains[0]
	} else if now.Before(leaf.NotBefore) || now.After(leaf.NotAfter) {
		return false
	}
	for _, text := range lists {
		var l RevocationList
		decode(text, &l)
		for _, c := range path {
			if _, revoked := l.Serials[c.SerialNumber.String()]; revoked && hex.EncodeToString(c.RawIssuer) == l.Issuer {
				return false
			}
		}
	}
	return k.named(leaf)
}

// named reports whether a certificate has the names that the role asks for.
func (k *CertRole) named(leaf *x509.Certificate) bool {
	one := func(patterns, have []string) bool {
		return len(patterns) == 0 || slices.ContainsFunc(have, func(h string) bool { return globs(patterns, h) })
	}
	var uris []string
	for _, u := range leaf.URIs {
		uris = append(uris, u.String())
	}
	all := append(append([]string{leaf.Subject.CommonName}, leaf.DNSNames...), leaf.EmailAddresses...)
	if !one(k.Names, all) || !one(k.CommonNames, []string{leaf.Subject.CommonName}) || !one(k.DNS, leaf.DNSNames) ||
		!one(k.Emails, leaf.EmailAddresses) || !one(k.URIs, uris) || !one(k.Units, leaf.Subject.OrganizationalUnit) {
		return false
	}
	for _, want := range k.Extensions {
		oid, pattern, _ := strings.Cut(want, ":")
		asHex := false
		if rest, ok := strings.CutPrefix(want, "hex:"); ok {
			oid, pattern, _ = strings.Cut(rest, ":")
			asHex = true
		}
		if !slices.ContainsFunc(leaf.Extensions, func(e pkix.Extension) bool {
			return e.Id.String() == oid && glob(pattern, extensionText(e.Value, asHex))
		}) {
			return false
		}
	}
	return true
}

// extensionText is the value of an extension as a role writes it: as a string,
// or in hex.
func extensionText(der []byte, asHex bool) string {
	if asHex {
		return hex.EncodeToString(der)
	}
	var text string
	if rest, err := asn1.Unmarshal(der, &text); err != nil || len(rest) > 0 {
		return ""
	}
	return text
}
