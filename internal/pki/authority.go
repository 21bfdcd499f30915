package pki

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// DefaultAuthority refers to the one that issues where none is named: the first of
// a mount, or the one that was chosen.
const DefaultAuthority = "default"

// An Authority signs certificates. Those of one name are generations: the newest
// whose time to issue has come is the one that issues, and the others still vouch
// for what they have signed.
type Authority struct {
	ID         string    `json:"id"` // ca_…
	Mount      string    `json:"mount,omitempty"`
	Kind       Kind      `json:"kind"`
	Name       string    `json:"name"`
	Generation int64     `json:"generation"`
	KeyID      string    `json:"key_id,omitempty"` // "" if its key is not here
	Subject    string    `json:"subject"`
	Options    Profile   `json:"options"`
	IssuesFrom time.Time `json:"issues_from"`
	NotAfter   time.Time `json:"not_after,omitzero"`
	CreatedAt  time.Time `json:"created_at"`
	EndedAt    time.Time `json:"ended_at,omitzero"`
	PEM        string    `json:"certificate,omitempty"`
	PublicKey  string    `json:"public_key,omitempty"` // of SSH, as one line

	revocations int64
	epoch       int64
	certificate *x509.Certificate // nil of SSH
	key         *Key              // nil if it is not here
}

// Certificate is the authority's own, nil of SSH.
func (a *Authority) Certificate() *x509.Certificate { return a.certificate }

// A Profile is what can be set on an authority after it was made.
type Profile struct {
	Parent    string   `json:"parent,omitempty"`     // the authority here that signed it
	Lifetime  int64    `json:"lifetime,omitempty"`   // seconds; what a successor gets
	Chain     []string `json:"chain,omitempty"`      // ids of those to show above it; none for those whose names and keys fit
	NotAfter  string   `json:"not_after,omitempty"`  // what becomes of a leaf that would outlive it: err, truncate or permit
	Usage     []string `json:"usage,omitempty"`      // read-only, issuing-certificates, crl-signing, ocsp-signing; none for all
	Issuing   []string `json:"issuing,omitempty"`    // URLs of its certificate, instead of ours
	CRLs      []string `json:"crls,omitempty"`       // URLs of its list, instead of ours
	OCSPs     []string `json:"ocsps,omitempty"`      // URLs of its responder, instead of ours
	Revoked   int64    `json:"revoked,omitempty"`    // when it was itself revoked, in seconds since 1970
	Constrain *Names   `json:"constraints,omitzero"` // what it may name
}

// Names are the name constraints of an authority (RFC 5280, section 4.2.1.10).
type Names struct {
	PermittedDNS   []string `json:"permitted_dns,omitempty"`
	ExcludedDNS    []string `json:"excluded_dns,omitempty"`
	PermittedIP    []string `json:"permitted_ip,omitempty"` // as 10.0.0.0/8
	ExcludedIP     []string `json:"excluded_ip,omitempty"`
	PermittedEmail []string `json:"permitted_email,omitempty"`
	ExcludedEmail  []string `json:"excluded_email,omitempty"`
	PermittedURI   []string `json:"permitted_uri,omitempty"`
	ExcludedURI    []string `json:"excluded_uri,omitempty"`
}

func (n *Names) into(c *x509.Certificate) error {
	if n == nil {
		return nil
	}
	c.PermittedDNSDomainsCritical = true
	c.PermittedDNSDomains, c.ExcludedDNSDomains = n.PermittedDNS, n.ExcludedDNS
	c.PermittedEmailAddresses, c.ExcludedEmailAddresses = n.PermittedEmail, n.ExcludedEmail
	c.PermittedURIDomains, c.ExcludedURIDomains = n.PermittedURI, n.ExcludedURI
	for _, list := range []struct {
		from []string
		to   *[]*net.IPNet
	}{{n.PermittedIP, &c.PermittedIPRanges}, {n.ExcludedIP, &c.ExcludedIPRanges}} {
		for _, text := range list.from {
			_, network, err := net.ParseCIDR(text)
			if err != nil {
				return ErrInvalid.With("A constraint on addresses is a network such as 10.0.0.0/8, not %q.", text).At("constraints")
			}
			*list.to = append(*list.to, network)
		}
	}
	return nil
}

// A Plan is an authority to be made.
type Plan struct {
	Mount     string        `json:"-"`
	Kind      Kind          `json:"kind,omitempty"` // x509 if empty
	Name      string        `json:"name"`
	Algorithm Algorithm     `json:"algorithm,omitempty"` // ec-p256 if empty
	Lifetime  time.Duration `json:"-"`                   // ten years of a root and one of an intermediate if zero
	Parent    string        `json:"parent,omitempty"`    // the authority that signs it; "" for a root
	Key       string        `json:"key,omitempty"`       // a key that is here, instead of another
	KeyName   string        `json:"key_name,omitempty"`

	Subject    pkix.Name `json:"-"`
	CommonName string    `json:"common_name,omitempty"` // the name if empty
	Alternative
	MaxPath   *int      `json:"max_path,omitempty"` // how many authorities may stand below it
	Constrain *Names    `json:"constraints,omitempty"`
	NotAfter  time.Time `json:"not_after,omitzero"` // instead of a life
	Profile   Profile   `json:"-"`
}

// Alternative are the names of a certificate beside its common name.
type Alternative struct {
	DNS    []string `json:"dns,omitempty"`
	Emails []string `json:"emails,omitempty"`
	IPs    []string `json:"ips,omitempty"`
	URIs   []string `json:"uris,omitempty"`
}

func (n *Alternative) into(c *x509.Certificate) error {
	if len(n.DNS)+len(n.Emails)+len(n.IPs)+len(n.URIs) > maxNames {
		return ErrInvalid.With("A certificate has at most %d names.", maxNames)
	}
	c.DNSNames, c.EmailAddresses = n.DNS, n.Emails
	for _, text := range n.IPs {
		ip := net.ParseIP(text)
		if ip == nil {
			return ErrInvalid.With("%q is no address.", printable(text)).At("ips")
		}
		c.IPAddresses = append(c.IPAddresses, ip)
	}
	for _, text := range n.URIs {
		u, err := url.Parse(text)
		if err != nil || u.Scheme == "" {
			return ErrInvalid.With("%q is no URI.", printable(text)).At("uris")
		}
		c.URIs = append(c.URIs, u)
	}
	return nil
}

// all are the names as one list.
func (n *Alternative) all() []string {
	list := append(append([]string{}, n.DNS...), n.Emails...)
	return append(append(list, n.IPs...), n.URIs...)
}

// serial is a random number of 159 bits (RFC 5280, section 4.1.2.2).
func serial() *big.Int {
	b := make([]byte, 20)
	for b[0] == 0 { // its length says nothing of it
		_, _ = rand.Read(b) // never fails
		b[0] &= 0x7f
	}
	return new(big.Int).SetBytes(b)
}

// Serial is a serial number as it is kept: hex digits.
func Serial(n *big.Int) string { return hex.EncodeToString(n.Bytes()) }

// keyIdentifier is of a public key (RFC 7093, section 2, method 1).
func keyIdentifier(spki []byte) ([]byte, error) {
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(spki, &info); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(info.Key.Bytes)
	return sum[:20], nil
}

// template is the certificate of an authority, unsigned.
func (p *PKI) template(plan *Plan, key *Key, now time.Time) (*x509.Certificate, error) {
	c := &x509.Certificate{
		SerialNumber: serial(), Subject: plan.Subject, NotBefore: now.Add(-30 * time.Second).Truncate(time.Second), NotAfter: now.Add(plan.Lifetime).Truncate(time.Second),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	if !plan.NotAfter.IsZero() {
		c.NotAfter = plan.NotAfter
	}
	if c.Subject.CommonName == "" {
		c.Subject.CommonName = cmp.Or(plan.CommonName, plan.Name)
	}
	if plan.MaxPath != nil && *plan.MaxPath >= 0 {
		c.MaxPathLen, c.MaxPathLenZero = *plan.MaxPath, *plan.MaxPath == 0
	} else {
		c.MaxPathLen = -1
	}
	if err := plan.Alternative.into(c); err != nil {
		return nil, err
	}
	if err := plan.Constrain.into(c); err != nil {
		return nil, err
	}
	var err error
	c.SubjectKeyId, err = keyIdentifier(key.public)
	return c, err
}

// check fills in what a plan leaves open.
func (plan *Plan) check() error {
	plan.Kind = cmp.Or(plan.Kind, X509)
	plan.Algorithm = cmp.Or(plan.Algorithm, P256)
	if plan.Lifetime == 0 {
		plan.Lifetime = 10 * 365 * 24 * time.Hour
		if plan.Parent != "" {
			plan.Lifetime = 365 * 24 * time.Hour
		}
	}
	switch {
	case plan.Kind != X509 && plan.Kind != SSH:
		return ErrInvalid.With("An authority is for x509 or for ssh, not for %q.", plan.Kind).At("kind")
	case plan.Name != "" && (!ValidName(plan.Name) || plan.Name == DefaultAuthority):
		return ErrInvalid.With("%q cannot name an authority.", plan.Name).At("name")
	case plan.Kind == SSH && plan.Parent != "":
		return ErrInvalid.With("An authority for SSH has none above it.").At("parent")
	case plan.Lifetime < time.Minute || plan.Lifetime > 50*365*24*time.Hour:
		return ErrInvalid.With("An authority lives for a minute at least and 50 years at most.").At("lifetime")
	}
	return nil
}

// Generate makes an authority with a key of its own: a root, or one below another
// authority that is here. The private key is answered only if it is exported.
func (p *PKI) Generate(ctx context.Context, c estover.Caller, plan Plan, export bool) (*Authority, estover.Secret, error) {
	var none estover.Secret
	op := guard.Op{Action: "pki.authority", Target: target(plan.Kind, "authority", plan.Name), Detail: map[string]any{"mount": plan.Mount, "plan": plan, "exported": export}}
	if err := plan.check(); err != nil {
		return nil, none, p.told(ctx, c, op, err)
	}
	if err := p.sealer.Prepare(ctx, c.Tenant); err != nil {
		return nil, none, err
	}
	if err := p.permitted(ctx, c, op); err != nil {
		return nil, none, err
	}
	now := p.guard.DB().Now()
	key, private, made, err := p.keyFor(ctx, c.Tenant, &plan)
	if err != nil {
		return nil, none, p.told(ctx, c, op, err)
	}
	a := &Authority{
		ID: estover.NewID("ca"), Mount: plan.Mount, Kind: plan.Kind, Name: plan.Name, KeyID: key.ID, IssuesFrom: now, CreatedAt: now,
		Options: plan.Profile, epoch: 1, key: key, Subject: cmp.Or(plan.CommonName, plan.Name),
	}
	a.Options.Lifetime, a.Options.Constrain = int64(plan.Lifetime/time.Second), plan.Constrain
	var below *certified
	if plan.Kind == X509 {
		if below, err = p.certifyAuthority(ctx, c, a, &plan, private); err != nil {
			return nil, none, p.told(ctx, c, op, err)
		}
	}
	err = p.guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		tx.SetTarget(target(a.Kind, "authority", a.ID))
		if made {
			if err := insertKey(ctx, tx.Tx, key); err != nil {
				return err
			}
		}
		if below != nil {
			if err := below.insert(ctx, tx); err != nil {
				return err
			}
		}
		return p.add(ctx, tx, a)
	})
	if err != nil {
		return nil, none, err
	}
	if err := a.show(); err != nil {
		return nil, none, err
	}
	if !export {
		return a, none, nil
	}
	shown, err := PrivatePEM(private)
	return a, shown, err
}

// told reports a mistake of the caller's only to who may do the operation. That they
// named something by the id of another tenant's is on record.
func (p *PKI) told(ctx context.Context, c estover.Caller, op guard.Op, mistake error) error {
	if err := p.permitted(ctx, c, op); err != nil {
		return err
	}
	return p.guard.Missed(ctx, c, op, mistake)
}

// permitted asks for an operation before a key is made for it, which may take a
// second: who may not do it does not have it made.
func (p *PKI) permitted(ctx context.Context, c estover.Caller, op guard.Op) error {
	if op.Effect == "" {
		op.Effect = guard.Manages
	}
	_, err := p.guard.Admit(ctx, c, op)
	return err
}

// keyFor finds the key that a plan names, or makes one.
func (p *PKI) keyFor(ctx context.Context, tenant estover.TenantID, plan *Plan) (key *Key, private crypto.Signer, made bool, err error) {
	if plan.Key == "" {
		if private, err = plan.Algorithm.generate(); err != nil {
			return nil, nil, false, err
		}
		key, err = p.newKey(tenant, plan.Mount, plan.KeyName, private)
		return key, private, true, err
	}
	err = p.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		key, err = findKey(ctx, tx, plan.Mount, plan.Key)
		return err
	})
	if err != nil {
		return nil, nil, false, err
	}
	private, err = p.signer(tenant, key)
	return key, private, false, err
}

// certifyAuthority signs the certificate of an authority, by itself or by the one
// above it, whose certificate it then is.
func (p *PKI) certifyAuthority(ctx context.Context, c estover.Caller, a *Authority, plan *Plan, private crypto.Signer) (*certified, error) {
	t, err := p.template(plan, a.key, a.CreatedAt)
	if err != nil {
		return nil, err
	}
	if plan.Parent == "" {
		der, err := x509.CreateCertificate(rand.Reader, t, t, private.Public(), private)
		if err != nil {
			return nil, ErrInvalid.With("The certificate cannot be made: %v.", err)
		}
		return nil, a.take(der)
	}
	parent, err := p.issuing(ctx, c.Tenant, plan.Mount, X509, plan.Parent)
	if err != nil {
		return nil, err
	}
	a.Options.Parent = parent.ID
	below, err := p.signAuthority(ctx, c, parent, t, private.Public())
	if err != nil {
		return nil, err
	}
	return below, a.take(below.body)
}

// signAuthority signs the certificate of an authority below another.
func (p *PKI) signAuthority(ctx context.Context, c estover.Caller, parent *Authority, t *x509.Certificate, public crypto.PublicKey) (*certified, error) {
	if parent.certificate.MaxPathLen == 0 && parent.certificate.MaxPathLenZero {
		return nil, ErrInvalid.With("No authority may stand below %s.", cmp.Or(parent.Name, parent.ID)).At("parent")
	}
	if t.NotAfter.After(parent.NotAfter) {
		t.NotAfter = parent.NotAfter
	}
	urls, err := p.urls.Get(ctx, c.Tenant, parent.Mount)
	if err != nil {
		return nil, err
	}
	p.published(c.Tenant, parent, urls, t)
	signer, err := p.signer(c.Tenant, parent.key)
	if err != nil {
		return nil, err
	}
	t.AuthorityKeyId = parent.certificate.SubjectKeyId
	der, err := x509.CreateCertificate(rand.Reader, t, parent.certificate, public, signer)
	if err != nil {
		return nil, ErrInvalid.With("The certificate cannot be made: %v.", err)
	}
	return &certified{authority: parent, serial: Serial(t.SerialNumber), name: t.Subject.CommonName, names: t.DNSNames, body: der, notAfter: t.NotAfter, caller: c}, nil
}

// URLs is the setting of a mount that says where its authorities publish, instead of
// here.
type URLs struct {
	Issuing []string `json:"issuing_certificates"`
	CRLs    []string `json:"crl_distribution_points"`
	OCSPs   []string `json:"ocsp_servers"`
}

// published writes into a certificate where its issuer publishes: as the issuer
// says, or the mount, or we.
func (p *PKI) published(tenant estover.TenantID, issuer *Authority, urls *URLs, t *x509.Certificate) {
	o := &issuer.Options
	t.IssuingCertificateURL, t.CRLDistributionPoints, t.OCSPServer = o.Issuing, o.CRLs, o.OCSPs
	for _, one := range []struct {
		to   *[]string
		from []string
	}{{&t.IssuingCertificateURL, urls.Issuing}, {&t.CRLDistributionPoints, urls.CRLs}, {&t.OCSPServer, urls.OCSPs}} {
		if len(*one.to) == 0 {
			*one.to = one.from
		}
	}
	if p.URL == nil {
		return
	}
	base := p.URL(tenant, issuer.ID)
	if base == "" {
		return
	}
	if len(t.IssuingCertificateURL) == 0 {
		t.IssuingCertificateURL = []string{base + "/ca"}
	}
	if len(t.CRLDistributionPoints) == 0 {
		t.CRLDistributionPoints = []string{base + "/crl"}
	}
	if len(t.OCSPServer) == 0 {
		t.OCSPServer = []string{base + "/ocsp"}
	}
}

// take makes a certificate the authority's own.
func (a *Authority) take(der []byte) error {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("reading the certificate of an authority: %w", err)
	}
	a.certificate, a.Subject, a.NotAfter = c, c.Subject.String(), c.NotAfter.UTC()
	a.PEM = certificatePEM(der)
	return nil
}

func certificatePEM(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// show fills in what an authority shows of itself.
func (a *Authority) show() error {
	if a.Kind != SSH || a.key == nil {
		return nil
	}
	public, err := a.sshPublic()
	if err != nil {
		return err
	}
	a.PublicKey = strings.TrimSpace(string(ssh.MarshalAuthorizedKey(public)))
	return nil
}

// add stores an authority as the newest of its name. The first of a mount is its
// default.
func (p *PKI) add(ctx context.Context, tx *guard.Tx, a *Authority) error {
	n, newest, err := countAuthorities(ctx, tx.Tx, a.Mount, a.Kind, a.Name)
	if err != nil {
		return err
	}
	if n >= maxAuthority {
		return ErrTooMany.With("There are %d authorities, which is as many as there may be.", n)
	}
	if a.Generation == 0 {
		a.Generation = newest + 1
		if a.Name != "" && newest > 0 {
			ids, err := findNamed(ctx, tx.Tx, a.Mount, a.Kind, a.Name)
			if err != nil {
				return err
			}
			if len(ids) > 0 {
				return ErrExists.With("There is an authority %s already. Rotate it, or choose another name.", a.Name)
			}
		}
	}
	if err := insertAuthority(ctx, tx.Tx, a); err != nil {
		return err
	}
	tx.Touch(nameKind, at(a.Mount, a.Kind, a.Name))
	tx.Touch(mountKind, a.Mount)
	tx.Note("authority", a.ID)
	if a.KeyID == "" {
		return nil
	}
	var chosen defaults
	if _, err := setting(ctx, tx.Tx, a.Mount, defaultsOf(a.Kind), &chosen); err != nil || chosen.Default != "" {
		return err
	}
	tx.Touch(nameKind, at(a.Mount, a.Kind, DefaultAuthority))
	return putSetting(ctx, tx.Tx, a.Mount, defaultsOf(a.Kind), `{"default":"`+a.ID+`"}`)
}

// defaults is the setting that says which authority is the default one.
type defaults struct {
	Default string `json:"default"`
	Follow  bool   `json:"default_follows_latest_issuer,omitempty"`
}

func defaultsOf(k Kind) string { return "issuers." + string(k) }

// Default is the id of the authority that issues where none is named, "" for none.
func (p *PKI) Default(ctx context.Context, c estover.Caller, mount string, kind Kind) (id string, err error) {
	var chosen defaults
	_, err = p.Setting(ctx, c, mount, defaultsOf(kind), &chosen)
	return chosen.Default, err
}

// SetDefault chooses the authority that issues where none is named.
func (p *PKI) SetDefault(ctx context.Context, c estover.Caller, mount string, kind Kind, ref string) (*Authority, error) {
	a, err := p.authority(ctx, c.Tenant, mount, kind, ref)
	if err != nil {
		return nil, p.told(ctx, c, guard.Op{Action: "pki.configure", Target: target(kind, "authority", ref)}, err)
	}
	return a, p.Set(ctx, c, mount, defaultsOf(kind), defaults{Default: a.ID})
}

// authority is the newest of a name, also one that does not issue yet, or the one
// with this id.
func (p *PKI) authority(ctx context.Context, tenant estover.TenantID, mount string, kind Kind, ref string) (*Authority, error) {
	if strings.HasPrefix(ref, "ca_") {
		a, err := p.authorities.Get(ctx, tenant, ref)
		if err == nil && (a.Mount != mount || a.Kind != kind || !a.EndedAt.IsZero()) {
			err = ErrNoAuthority
		}
		return a, err
	}
	ids, err := p.names.Get(ctx, tenant, at(mount, kind, cmp.Or(ref, DefaultAuthority)))
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		a, err := p.authorities.Get(ctx, tenant, id)
		if err != nil {
			return nil, err
		}
		if a.EndedAt.IsZero() {
			return a, nil
		}
	}
	return nil, ErrNoAuthority.With("There is no authority %s. `estover pki authority list` shows which there are.", printable(cmp.Or(ref, DefaultAuthority)))
}

// issuing is the authority that signs under a name at this moment.
func (p *PKI) issuing(ctx context.Context, tenant estover.TenantID, mount string, kind Kind, ref string) (*Authority, error) {
	one, err := p.authority(ctx, tenant, mount, kind, ref)
	if err != nil {
		return nil, err
	}
	now := p.guard.DB().Now()
	ids := []string{one.ID}
	if !strings.HasPrefix(ref, "ca_") {
		if ids, err = p.names.Get(ctx, tenant, at(mount, kind, cmp.Or(ref, DefaultAuthority))); err != nil {
			return nil, err
		}
	}
	for _, id := range ids {
		a, err := p.authorities.Get(ctx, tenant, id)
		if err != nil {
			return nil, err
		}
		if a.key != nil && a.EndedAt.IsZero() && !now.Before(a.IssuesFrom) && (a.NotAfter.IsZero() || now.Before(a.NotAfter)) && a.uses("issuing-certificates") {
			return a, nil
		}
	}
	return nil, ErrCannotIssue.With("The authority %s cannot issue: its key is not here, its time is over or has not come, or it may not.", cmp.Or(one.Name, one.ID))
}

// uses reports whether an authority may be used for something.
func (a *Authority) uses(what string) bool {
	if len(a.Options.Usage) == 0 {
		return true
	}
	for _, u := range a.Options.Usage {
		if u == what {
			return true
		}
	}
	return false
}

// Authorities are those of a mount and a kind, the newest generation of each name
// first.
func (p *PKI) Authorities(ctx context.Context, c estover.Caller, mount string, kind Kind) (list []*Authority, err error) {
	err = p.guard.Read(ctx, c, guard.Op{Action: "pki.list", Target: target(kind, "authority", "")}, func(tx *db.Tx) error {
		list, err = listAuthorities(ctx, tx, mount, kind)
		return err
	})
	return list, err
}

// Public are the authorities of a mount, as everybody may know them.
func (p *PKI) Public(ctx context.Context, tenant estover.TenantID, mount string, kind Kind) (list []*Authority, err error) {
	err = p.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		list, err = listAuthorities(ctx, tx, mount, kind)
		return err
	})
	return list, err
}

// Authority is one by its id or its name.
func (p *PKI) Authority(ctx context.Context, c estover.Caller, mount string, kind Kind, ref string) (*Authority, error) {
	op := guard.Op{Action: "pki.read", Target: target(kind, "authority", ref)}
	if err := p.guard.Read(ctx, c, op, func(*db.Tx) error { return nil }); err != nil {
		return nil, err
	}
	a, err := p.authority(ctx, c.Tenant, mount, kind, ref)
	return a, p.guard.Missed(ctx, c, op, err)
}

// Issuer is the authority that issues by a name at this moment, as everybody may
// know it: a certificate is public.
func (p *PKI) Issuer(ctx context.Context, tenant estover.TenantID, mount string, kind Kind, ref string) (*Authority, error) {
	a, err := p.issuing(ctx, tenant, mount, kind, ref)
	if estover.KindOf(err) == estover.Conflict {
		a, err = p.authority(ctx, tenant, mount, kind, ref)
	}
	return a, err
}

// Published is an authority of any mount by its id, as everybody may know it, also
// one that has ended.
func (p *PKI) Published(ctx context.Context, tenant estover.TenantID, id string) (*Authority, error) {
	return p.authorities.Get(ctx, tenant, id)
}

// Chain is the certificate of an authority and those above it that are known in its
// mount, the nearest first.
func (p *PKI) Chain(ctx context.Context, tenant estover.TenantID, a *Authority) (chain []*x509.Certificate, err error) {
	all, err := p.mounts.Get(ctx, tenant, a.Mount)
	if err != nil {
		return nil, err
	}
	chain = []*x509.Certificate{a.certificate}
	if len(a.Options.Chain) > 0 {
		for _, id := range a.Options.Chain {
			for _, one := range all {
				if one.ID == id && one.ID != a.ID {
					chain = append(chain, one.certificate)
				}
			}
		}
		return chain, nil
	}
	for at := a.certificate; len(chain) < 10; {
		if bytes.Equal(at.RawIssuer, at.RawSubject) {
			break
		}
		var next *x509.Certificate
		for _, one := range all {
			if bytes.Equal(one.certificate.RawSubject, at.RawIssuer) && at.CheckSignatureFrom(one.certificate) == nil {
				next = one.certificate
				break
			}
		}
		if next == nil {
			break
		}
		chain, at = append(chain, next), next
	}
	return chain, nil
}

// Bundle is what those need who check certificates of an authority, in PEM: the
// certificates of all its generations and of those above them.
func (p *PKI) Bundle(ctx context.Context, tenant estover.TenantID, a *Authority) (string, error) {
	ids := []string{a.ID}
	if a.Name != "" {
		var err error
		if ids, err = p.names.Get(ctx, tenant, at(a.Mount, a.Kind, a.Name)); err != nil {
			return "", err
		}
	}
	var b strings.Builder
	seen := map[string]bool{}
	now := p.guard.DB().Now()
	for _, id := range ids {
		one, err := p.authorities.Get(ctx, tenant, id)
		if err != nil {
			return "", err
		}
		if one.Kind == SSH {
			if one.PublicKey != "" {
				fmt.Fprintln(&b, one.PublicKey)
			}
			continue
		}
		chain, err := p.Chain(ctx, tenant, one)
		if err != nil {
			return "", err
		}
		for _, c := range chain {
			if !seen[string(c.Raw)] && now.Before(c.NotAfter) {
				seen[string(c.Raw)] = true
				b.WriteString(certificatePEM(c.Raw))
			}
		}
	}
	return b.String(), nil
}

// Rotate makes the next generation of an authority: the same name, another key.
// It is published at once and issues after the overlap, by when everybody has had
// the time to learn of it; the one before goes on vouching for what it has signed.
// An overlap below zero is twice the longest life that a role of the mount allows.
func (p *PKI) Rotate(ctx context.Context, c estover.Caller, mount string, kind Kind, ref string, overlap time.Duration) (*Authority, error) {
	op := guard.Op{Action: "pki.authority", Target: target(kind, "authority", ref), Detail: map[string]any{"mount": mount, "rotates": ref}}
	old, err := p.authority(ctx, c.Tenant, mount, kind, ref)
	switch {
	case err != nil:
	case old.Name == "":
		err = ErrInvalid.With("An authority without a name is not rotated. Give it one.")
	case old.key == nil:
		err = ErrCannotIssue
	}
	if err == nil && overlap < 0 {
		overlap, err = p.overlap(ctx, c.Tenant, mount, kind)
	}
	if err != nil {
		return nil, p.told(ctx, c, op, err)
	}
	plan := Plan{Mount: mount, Kind: kind, Name: old.Name, Algorithm: old.key.Algorithm, Parent: old.Options.Parent, Constrain: old.Options.Constrain, Lifetime: time.Duration(old.Options.Lifetime) * time.Second, Profile: old.Options}
	if old.certificate != nil {
		plan.Subject = old.certificate.Subject
		plan.Subject.ExtraNames = nil
		if old.certificate.MaxPathLen > 0 || old.certificate.MaxPathLenZero {
			plan.MaxPath = &old.certificate.MaxPathLen
		}
	} else {
		plan.CommonName = old.Subject
	}
	if parent := old.Options.Parent; parent != "" { // whichever generation of it issues
		if above, err := p.authorities.Get(ctx, c.Tenant, parent); err == nil && above.Name != "" {
			plan.Parent = above.Name
		}
	}
	if err := plan.check(); err != nil {
		return nil, p.told(ctx, c, op, err)
	}
	if err := p.sealer.Prepare(ctx, c.Tenant); err != nil {
		return nil, err
	}
	if err := p.permitted(ctx, c, op); err != nil {
		return nil, err
	}
	key, private, _, err := p.keyFor(ctx, c.Tenant, &plan)
	if err != nil {
		return nil, err
	}
	now := p.guard.DB().Now()
	a := &Authority{
		ID: estover.NewID("ca"), Mount: mount, Kind: kind, Name: old.Name, Generation: old.Generation + 1, KeyID: key.ID,
		IssuesFrom: now.Add(overlap), CreatedAt: now, Options: old.Options, epoch: 1, key: key, Subject: old.Subject,
	}
	var below *certified
	if kind == X509 {
		if below, err = p.certifyAuthority(ctx, c, a, &plan, private); err != nil {
			return nil, p.told(ctx, c, op, err)
		}
	}
	err = p.guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		tx.SetTarget(target(kind, "authority", a.ID))
		tx.Note("before", old.ID)
		tx.Note("issues_from", a.IssuesFrom)
		// Of two that rotate at once one is first, and the other hears of it.
		if _, newest, err := countAuthorities(ctx, tx.Tx, mount, kind, old.Name); err != nil {
			return err
		} else if newest != old.Generation {
			return ErrExists.With("The authority %s was rotated by somebody else in the meantime.", old.Name)
		}
		if err := replaceAuthority(ctx, tx.Tx, old, old); err != nil {
			return err
		}
		if err := insertKey(ctx, tx.Tx, key); err != nil {
			return err
		}
		if below != nil {
			if err := below.insert(ctx, tx); err != nil {
				return err
			}
		}
		tx.Touch(authorityKind, old.ID)
		tx.Touch(nameKind, at(mount, kind, DefaultAuthority))
		return p.add(ctx, tx, a)
	})
	if err != nil {
		return nil, err
	}
	return a, a.show()
}

// overlap is twice the longest life of what a mount's roles certify.
func (p *PKI) overlap(ctx context.Context, tenant estover.TenantID, mount string, kind Kind) (longest time.Duration, err error) {
	err = p.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		roles, err := listRoles(ctx, tx, mount, kind)
		for _, r := range roles {
			longest = max(longest, r.longest())
		}
		return err
	})
	return 2 * max(longest, time.Hour), err
}

// An Edit says what to change of an authority; nil leaves things as they are.
type Edit struct {
	Name    *string  `json:"name,omitempty"`
	Profile *Profile `json:"options,omitempty"`
}

// Edit changes what can be changed of an authority.
func (p *PKI) Edit(ctx context.Context, c estover.Caller, mount string, kind Kind, ref string, e Edit) (*Authority, error) {
	op := guard.Op{Action: "pki.authority", Target: target(kind, "authority", ref), Detail: map[string]any{"mount": mount, "change": e}}
	old, err := p.authority(ctx, c.Tenant, mount, kind, ref)
	if err == nil && e.Name != nil && *e.Name != "" && (!ValidName(*e.Name) || *e.Name == DefaultAuthority) {
		err = ErrInvalid.With("%q cannot name an authority.", *e.Name).At("name")
	}
	if err != nil {
		return nil, p.told(ctx, c, op, err)
	}
	after := *old
	if e.Name != nil {
		after.Name = *e.Name
	}
	if e.Profile != nil {
		after.Options = *e.Profile
	}
	err = p.guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		if after.Name != old.Name && after.Name != "" {
			ids, err := findNamed(ctx, tx.Tx, mount, kind, after.Name)
			if err != nil {
				return err
			}
			if len(ids) > 0 {
				return ErrExists.With("There is an authority %s already.", after.Name)
			}
			_, newest, err := countAuthorities(ctx, tx.Tx, mount, kind, after.Name)
			if err != nil {
				return err
			}
			after.Generation = newest + 1
		}
		tx.SetTarget(target(kind, "authority", old.ID))
		p.touch(tx, old)
		tx.Touch(nameKind, at(mount, kind, after.Name))
		return replaceAuthority(ctx, tx.Tx, old, &after)
	})
	if err != nil {
		return nil, err
	}
	return p.authorities.Get(ctx, c.Tenant, old.ID)
}

func (p *PKI) touch(tx *guard.Tx, a *Authority) {
	tx.Touch(authorityKind, a.ID)
	tx.Touch(mountKind, a.Mount)
	tx.Touch(nameKind, at(a.Mount, a.Kind, a.Name))
	tx.Touch(nameKind, at(a.Mount, a.Kind, DefaultAuthority))
}

// Retire ends an authority. It signs no certificate any more, and goes on saying
// which of its certificates are revoked. With revoke, all of them are, and so is
// its own if the authority above it is here.
func (p *PKI) Retire(ctx context.Context, c estover.Caller, mount string, kind Kind, ref string, revoke bool) error {
	op := guard.Op{Action: "pki.authority", Target: target(kind, "authority", ref), Effect: guard.Deletes, Detail: map[string]any{"mount": mount, "retires": ref, "revoke": revoke}}
	a, err := p.authority(ctx, c.Tenant, mount, kind, ref)
	if err != nil {
		return p.told(ctx, c, op, err)
	}
	return p.guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		tx.SetTarget(target(kind, "authority", a.ID))
		after := *a
		after.EndedAt = tx.Now()
		if revoke {
			n, err := p.revokeWhere(ctx, tx, filter{authority: a.ID}, CACompromise, "the authority was retired")
			if err != nil {
				return err
			}
			tx.Note("certificates", n)
			if above := a.Options.Parent; above != "" && a.certificate != nil {
				if _, err := p.revokeWhere(ctx, tx, filter{authority: above, serial: Serial(a.certificate.SerialNumber)}, CACompromise, "the authority was retired"); err != nil {
					return err
				}
			}
			// The counter was raised, and the row has to say so.
			if err := tx.QueryRow(ctx, `select revocations from pki_authority where tenant_id = $1 and id = $2`, tx.Tenant(), a.ID).Scan(&after.revocations); err != nil {
				return err
			}
		}
		p.touch(tx, a)
		return replaceAuthority(ctx, tx.Tx, a, &after)
	})
}
