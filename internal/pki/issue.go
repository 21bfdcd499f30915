package pki

import (
	"cmp"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// A Wish is the certificate that somebody asks for.
type Wish struct {
	Mount     string
	Role      string
	Authority string // instead of the role's

	CommonName string
	Alternative
	SubjectSerial   string
	UserIDs         []string      // of the subject
	TTL             time.Duration // the role's if zero
	NotAfter        time.Time     // instead of a life
	NoCommonNameSAN bool          // the common name is not put among the alternative names

	// Usual and Longest are the lives where neither the role nor the wish says
	// anything; ours if zero.
	Usual, Longest time.Duration

	parameters map[string]string // to which a grant may be bound
}

// A Certificate is what was certified, with all that one needs to show it.
type Certificate struct {
	Record
	PEM         string   `json:"certificate"` // X.509 in PEM; of SSH the line for a file
	IssuingCA   string   `json:"issuing_ca,omitempty"`
	Chain       []string `json:"chain,omitempty"`        // above it, the nearest first
	LimitedBy   string   `json:"limited_by"`             // ttl, max_ttl, session, grant or authority: what its end is the end of
	Revocation  string   `json:"revocation"`             // what goes on after one
	PrivateKey  string   `json:"private_key,omitempty"`  // of [PKI.Issue] alone, this once
	PrivateType string   `json:"private_type,omitempty"` // rsa, ec or ed25519
}

// A Record is what is kept of a certificate.
type Record struct {
	Serial    string          `json:"serial"`
	Authority string          `json:"authority"` // its id
	Mount     string          `json:"mount,omitempty"`
	Kind      Kind            `json:"kind"`
	Role      string          `json:"role,omitempty"` // its id
	Name      string          `json:"name"`           // the common name, or the key id
	Names     []string        `json:"names"`          // alternative names, or principals
	Subject   estover.Subject `json:"subject"`        // to whom
	Agent     string          `json:"agent,omitempty"`
	Session   string          `json:"session,omitempty"`
	IssuedAt  time.Time       `json:"issued_at"`
	NotAfter  time.Time       `json:"not_after"`
	RevokedAt time.Time       `json:"revoked_at,omitzero"`
	Reason    Reason          `json:"reason,omitempty"`
	Cause     string          `json:"cause,omitempty"`

	body []byte
}

// Body is the certificate as it was handed out: DER, or SSH's own form.
func (r *Record) Body() []byte { return r.body }

// PEM is the certificate as it stands in a file.
func (r *Record) PEM() string {
	if r.Kind == SSH {
		return authorizedKey(r.body)
	}
	return certificatePEM(r.body)
}

// A certified is a certificate that is signed and not yet anybody's.
type certified struct {
	authority *Authority
	role      *Role // nil of authorities
	serial    string
	name      string
	names     []string
	body      []byte
	notAfter  time.Time
	caller    estover.Caller
	session   Session
}

func (d *certified) record(now time.Time) *Record {
	r := &Record{
		Serial: d.serial, Authority: d.authority.ID, Mount: d.authority.Mount, Kind: d.authority.Kind, Name: d.name, Names: d.names,
		Subject: d.caller.Acting(), IssuedAt: now, NotAfter: d.notAfter.UTC(), body: d.body,
	}
	if d.role != nil {
		r.Role = d.role.ID
		r.Session = d.session.Epoch.ID
	}
	if r.Subject.Kind() == estover.AgentKind {
		r.Agent = r.Subject.ID()
	}
	return r
}

// insert writes the row in a transaction.
func (d *certified) insert(ctx context.Context, tx *guard.Tx) error {
	if err := holdAuthority(ctx, tx.Tx, d.authority); err != nil {
		return err
	}
	return tx.Insert(ctx, certificateRow(tx.Tenant(), d.record(tx.Now())))
}

// Sign certifies the key of a request, by a role.
func (p *PKI) Sign(ctx context.Context, c estover.Caller, w Wish, csr *x509.CertificateRequest) (*Certificate, error) {
	return p.certify(ctx, c, "pki.sign", w, csr, false)
}

// SignAsIs certifies what a request says, whatever it is, within the role's life
// if there is one: for people, and not for agents.
func (p *PKI) SignAsIs(ctx context.Context, c estover.Caller, w Wish, csr *x509.CertificateRequest, spec X509Spec) (*Certificate, error) {
	role := &Role{Kind: X509, Mount: w.Mount, Name: w.Role, Spec: Spec{X509: &spec}}
	if w.Role != "" {
		r, err := p.roles.Get(ctx, c.Tenant, at(w.Mount, X509, w.Role))
		if err != nil {
			return nil, p.told(ctx, c, guard.Op{Action: "pki.sign_as_is", Target: target(X509, "role", w.Role)}, err)
		}
		copied := *r.X509
		role = &Role{ID: r.ID, Kind: X509, Mount: w.Mount, Name: w.Role, epoch: r.epoch, Spec: Spec{Authority: r.Authority, TTL: r.TTL, MaxTTL: r.MaxTTL, X509: &copied}}
	}
	s := role.X509
	s.AnyName, s.AnyHostname, s.IPs, s.Wildcards, s.URIs, s.KeyType, s.KeyBits, s.NoCommonName, s.SubjectSerials, s.UserIDs = true, true, true, true, []string{"*"}, "any", 0, true, []string{"*"}, []string{"*"}
	return p.by(ctx, c, "pki.sign_as_is", w, role, csr, true)
}

// Issue makes a key and certifies it, by a role. The key is answered this once.
func (p *PKI) Issue(ctx context.Context, c estover.Caller, w Wish) (*Certificate, error) {
	return p.certify(ctx, c, "pki.issue", w, nil, false)
}

func (p *PKI) certify(ctx context.Context, c estover.Caller, action string, w Wish, csr *x509.CertificateRequest, asIs bool) (*Certificate, error) {
	role, err := p.roles.Get(ctx, c.Tenant, at(w.Mount, X509, w.Role))
	if err != nil {
		return nil, p.told(ctx, c, guard.Op{Action: action, Target: target(X509, "role", w.Role)}, err)
	}
	return p.by(ctx, c, action, w, role, csr, asIs)
}

// maxTries is how often a certificate is signed again when something that it rests
// on has changed in the meantime.
const maxTries = 8

// by certifies under a role.
func (p *PKI) by(ctx context.Context, c estover.Caller, action string, w Wish, role *Role, csr *x509.CertificateRequest, asIs bool) (*Certificate, error) {
	if csr != nil && !role.X509.IgnoreCommonName && w.CommonName == "" {
		w.CommonName = csr.Subject.CommonName
	}
	op := guard.Op{
		Action: action, Target: target(X509, "role", role.ID), Effect: guard.Writes, Resource: role.Resource,
		Detail: map[string]any{"role": role.Name},
	}
	if err := w.many(role.X509, csr); err != nil { // before they are compared, and put on record
		return nil, p.told(ctx, c, op, err)
	}
	op.Detail["common_name"], op.Detail["names"] = w.CommonName, w.all()
	if role.Mount != "" {
		op.Detail["mount"] = role.Mount
	}
	if len(w.UserIDs) > 0 {
		op.Detail["user_ids"] = w.UserIDs
	}
	// A grant that is bound to a name covers that name and no other beside it.
	w.parameters = map[string]string{"common_name": strings.Join(w.names(role.X509, csr), ",")}
	if err := p.reaching(ctx, c, &op, role, w.parameters); err != nil {
		return nil, p.told(ctx, c, op, err)
	}
	return p.handOut(ctx, c, op, func() (*Certificate, *certified, error) {
		if role.ID != "" {
			fresh, err := p.roles.Get(ctx, c.Tenant, at(role.Mount, X509, role.Name))
			if err != nil {
				return nil, nil, err
			}
			if !asIs {
				role = fresh
			} else {
				role.epoch = fresh.epoch
			}
		}
		// An agent does not get around what the role's authority may name.
		if w.Authority != "" && w.Authority != role.Authority && c.Acting().Kind() == estover.AgentKind {
			return nil, nil, ErrNotAllowed.With("The role %s says which authority signs.", role.Name).At("authority")
		}
		issuer, err := p.issuing(ctx, c.Tenant, role.Mount, X509, cmp.Or(w.Authority, role.Authority))
		if err != nil {
			return nil, nil, err
		}
		session, err := p.session(ctx, c)
		if err != nil {
			return nil, nil, err
		}
		t, err := p.leaf(c, role, &w, csr, session)
		if err != nil {
			return nil, nil, err
		}
		t.SignatureAlgorithm = role.X509.signature(issuer.certificate)
		limited, err := p.end(ctx, c, role, &w, issuer, session, t)
		if err != nil {
			return nil, nil, err
		}
		out := &Certificate{LimitedBy: limited}
		var public crypto.PublicKey
		if csr != nil {
			public = csr.PublicKey
		} else {
			algorithm, err := role.X509.algorithm()
			if err != nil {
				return nil, nil, err
			}
			private, err := algorithm.generate()
			if err != nil {
				return nil, nil, err
			}
			public = private.Public()
			shown, err := PrivatePEM(private)
			if err != nil {
				return nil, nil, err
			}
			out.PrivateKey, out.PrivateType = string(shown.Reveal()), strings.SplitN(string(algorithm), "-", 2)[0]
		}
		if err := role.X509.fits(public); err != nil {
			return nil, nil, err
		}
		der, err := p.signLeaf(ctx, c.Tenant, issuer, t, public)
		if err != nil {
			return nil, nil, err
		}
		names := Alternative{DNS: t.DNSNames, Emails: t.EmailAddresses, IPs: addresses(t.IPAddresses), URIs: texts(t.URIs)}
		return out, &certified{
			authority: issuer, role: role, serial: Serial(t.SerialNumber), name: t.Subject.CommonName, names: names.all(), body: der, notAfter: t.NotAfter, caller: c, session: session,
		}, nil
	})
}

// others are the names that are wished for beside the common name, or those of the request
// if there are none.
func (w *Wish) others(s *X509Spec, csr *x509.CertificateRequest) []string {
	all := w.Alternative
	if csr != nil && !s.IgnoreNames && len(all.all()) == 0 {
		all = Alternative{DNS: csr.DNSNames, Emails: csr.EmailAddresses, IPs: addresses(csr.IPAddresses), URIs: texts(csr.URIs)}
	}
	return all.all()
}

// many refuses more names than a certificate has.
func (w *Wish) many(s *X509Spec, csr *x509.CertificateRequest) error {
	switch {
	case len(w.others(s, csr)) > maxNames:
		return ErrInvalid.With("A certificate has at most %d names.", maxNames)
	case len(w.UserIDs) > maxUserIDs:
		return ErrInvalid.With("A subject has at most %d user ids.", maxUserIDs).At("user_ids")
	}
	return nil
}

// names are all that a certificate is to say of whom it is, the common name first.
func (w *Wish) names(s *X509Spec, csr *x509.CertificateRequest) []string {
	list := []string{w.CommonName}
	for _, name := range slices.Concat(w.others(s, csr), w.UserIDs) {
		if !slices.Contains(list, name) {
			list = append(list, name)
		}
	}
	return list
}

// reaching has policy look at the action that a role is for.
func (p *PKI) reaching(ctx context.Context, c estover.Caller, op *guard.Op, role *Role, parameters map[string]string) error {
	if role.Resource == "" || p.Action == nil {
		return nil
	}
	input, effect, err := p.Action(ctx, c.Tenant, role.Resource, role.Action, parameters)
	if err != nil {
		return err
	}
	op.Input = input
	if effect != "" {
		op.Effect = effect
	}
	return nil
}

// handOut is how every certificate leaves: policy, then the signature, then the row
// and the event in one commit, and the answer after that.
func (p *PKI) handOut(ctx context.Context, c estover.Caller, op guard.Op, sign func() (*Certificate, *certified, error)) (*Certificate, error) {
	if err := p.sealer.Prepare(ctx, c.Tenant); err != nil {
		return nil, err
	}
	decision, err := p.guard.Admit(ctx, c, op)
	if err != nil {
		return nil, err
	}
	if err := p.limits(ctx, c); err != nil {
		return nil, err
	}
	for range maxTries {
		out, done, err := sign()
		if err != nil {
			return nil, err
		}
		r := done.record(p.guard.DB().Now())
		rec := op
		rec.Detail = map[string]any{"serial": r.Serial, "authority": r.Authority, "not_after": r.NotAfter, "limited_by": out.LimitedBy}
		for k, v := range op.Detail {
			rec.Detail[k] = v
		}
		// What it rests on is held until the row is there: its end either finds the
		// row, or comes first.
		err = p.guard.Act(ctx, c, rec, decision, func(tx *guard.Tx) error {
			for _, e := range done.live() {
				if err := tx.Alive(ctx, e); err != nil {
					return err
				}
			}
			return tx.Insert(ctx, certificateRow(c.Tenant, r))
		})
		if errors.Is(err, db.ErrStale) {
			p.forget(c.Tenant, done)
			continue
		}
		if err != nil {
			return nil, err
		}
		return p.fill(ctx, c.Tenant, out, done, r)
	}
	return nil, ErrEnded
}

// live is what must not have ended since it was looked at.
func (d *certified) live() []db.Epoch {
	live := []db.Epoch{{Table: "pki_authority", ID: d.authority.ID, Epoch: d.authority.epoch}}
	if d.role != nil && d.role.ID != "" {
		live = append(live, db.Epoch{Table: "pki_role", ID: d.role.ID, Epoch: d.role.epoch})
	}
	if d.session.Epoch.ID != "" {
		live = append(live, d.session.Epoch)
	}
	return live
}

// forget drops the copies that a certificate rested on.
func (p *PKI) forget(tenant estover.TenantID, d *certified) {
	p.authorities.Drop(tenant, d.authority.ID)
	for _, name := range []string{d.authority.Name, DefaultAuthority} {
		p.names.Drop(tenant, at(d.authority.Mount, d.authority.Kind, name))
	}
	if d.role != nil {
		p.roles.Drop(tenant, at(d.role.Mount, d.role.Kind, d.role.Name))
	}
}

// session is the one in which an agent asks. Nobody else is bound to one.
func (p *PKI) session(ctx context.Context, c estover.Caller) (Session, error) {
	if c.Acting().Kind() != estover.AgentKind || c.Session == "" {
		return Session{}, nil
	}
	return p.Session(ctx, c.Tenant, c.Session)
}

// limits bound what one agent has.
func (p *PKI) limits(ctx context.Context, c estover.Caller) error {
	agent := c.Acting()
	if agent.Kind() != estover.AgentKind {
		return nil
	}
	return p.guard.DB().View(ctx, c.Tenant, func(tx *db.Tx) error {
		live, lately, err := countOfAgent(ctx, tx, agent.ID(), maxLive+1)
		switch {
		case err != nil:
			return err
		case live >= maxLive:
			return ErrTooMany.With("The agent holds %d certificates that have not ended, which is as many as one may. Use one that there is, or end a session.", maxLive)
		case lately >= maxMinute:
			return ErrTooMany.With("The agent was given %d certificates within a minute, which is as many as one may be. Use one that there is.", maxMinute)
		}
		return nil
	})
}

// leaf is the certificate that is asked for, unsigned, if the role allows it.
func (p *PKI) leaf(c estover.Caller, role *Role, w *Wish, csr *x509.CertificateRequest, session Session) (*x509.Certificate, error) {
	s := role.X509
	if csr != nil {
		if err := csr.CheckSignature(); err != nil {
			return nil, ErrInvalid.With("The request is not signed by its own key.").At("csr")
		}
	}
	t := &x509.Certificate{
		SerialNumber: serial(), BasicConstraintsValid: s.NotCA, ExtKeyUsage: s.extended(),
		Subject: pkix.Name{
			CommonName: w.CommonName, SerialNumber: w.SubjectSerial, Organization: s.Organization, OrganizationalUnit: s.OrganizationalUnit, Country: s.Country, Locality: s.Locality,
			Province: s.Province, StreetAddress: s.StreetAddress, PostalCode: s.PostalCode,
		},
	}
	var err error
	t.KeyUsage, _ = keyUsages(s.KeyUsage) // checked when the role was put
	if s.KeyUsage == nil {
		t.KeyUsage = x509.KeyUsageDigitalSignature
	}
	t.UnknownExtKeyUsage, _ = oids(s.ExtKeyUsageOIDs)
	if t.PolicyIdentifiers, err = oids(s.Policies); err != nil {
		return nil, err
	}
	if err := w.Alternative.into(t); err != nil {
		return nil, err
	}
	if csr != nil && !s.IgnoreNames && len(w.all()) == 0 {
		t.DNSNames, t.EmailAddresses, t.IPAddresses, t.URIs = csr.DNSNames, csr.EmailAddresses, csr.IPAddresses, csr.URIs
		if len(t.DNSNames)+len(t.EmailAddresses)+len(t.IPAddresses)+len(t.URIs) > maxNames { // the role may have changed
			return nil, ErrInvalid.With("A certificate has at most %d names.", maxNames)
		}
	}
	cn := w.CommonName
	if cn == "" && !s.NoCommonName {
		return nil, ErrInvalid.With("The role wants a common name.").At("common_name")
	}
	f := filling{session: session.Epoch.ID}
	if agent := c.Acting(); agent.Kind() == estover.AgentKind {
		f.agent = agent.ID()
	}
	if cn != "" && !s.UncheckedName && !s.allows(cn, f) && !(net.ParseIP(cn) != nil && s.IPs) && !s.allowsURI(cn, f) {
		return nil, ErrNotAllowed.With("The role %s does not allow the common name %s.", role.Name, printable(cn)).At("common_name")
	}
	if cn != "" && !w.NoCommonNameSAN && !s.UncheckedName {
		switch {
		case net.ParseIP(cn) != nil:
			ip := net.ParseIP(cn)
			if !slices.ContainsFunc(t.IPAddresses, ip.Equal) {
				t.IPAddresses = append(t.IPAddresses, ip)
			}
		case strings.Contains(cn, "@"):
			if !slices.Contains(t.EmailAddresses, cn) {
				t.EmailAddresses = append(t.EmailAddresses, cn)
			}
		case hostPattern.MatchString(cn):
			if !slices.Contains(t.DNSNames, cn) {
				t.DNSNames = append([]string{cn}, t.DNSNames...)
			}
		}
	}
	for _, name := range append(append([]string{}, t.DNSNames...), t.EmailAddresses...) {
		if !s.allows(name, f) {
			return nil, ErrNotAllowed.With("The role %s does not allow the name %s.", role.Name, printable(name)).At("dns")
		}
	}
	for _, ip := range t.IPAddresses {
		if !s.allowsIP(ip) {
			return nil, ErrNotAllowed.With("The role %s does not allow addresses.", role.Name).At("ips")
		}
	}
	for _, u := range t.URIs {
		if !s.allowsURI(u.String(), f) {
			return nil, ErrNotAllowed.With("The role %s does not allow the URI %s.", role.Name, printable(u.String())).At("uris")
		}
	}
	if w.SubjectSerial != "" && !s.allowsSubject(w.SubjectSerial) {
		return nil, ErrNotAllowed.With("The role %s does not allow the serial number %s in a subject.", role.Name, printable(w.SubjectSerial)).At("serial_number")
	}
	for _, id := range w.UserIDs {
		switch {
		case id == "" || len(id) > 256 || !utf8.ValidString(id) || strings.ContainsFunc(id, unicode.IsControl):
			return nil, ErrInvalid.With("A user id is text of at most 256 bytes.").At("user_ids")
		case !matchesOne(s.UserIDs, id):
			return nil, ErrNotAllowed.With("The role %s does not allow the user id %s.", role.Name, printable(id)).At("user_ids")
		}
		t.Subject.ExtraNames = append(t.Subject.ExtraNames, pkix.AttributeTypeAndValue{Type: userID, Value: id})
	}
	return t, nil
}

// userID is the attribute UID of a name (RFC 4519, section 2.39), of which a subject has
// so many at most.
var userID = asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 1}

const maxUserIDs = 20

// end decides when a certificate ends: at the earliest of what it rests on. It
// says which of them that is.
func (p *PKI) end(ctx context.Context, c estover.Caller, role *Role, w *Wish, issuer *Authority, session Session, t *x509.Certificate) (string, error) {
	now := p.guard.DB().Now()
	before := 30 * time.Second
	if role.X509.NotBefore > 0 {
		before = time.Duration(role.X509.NotBefore) * time.Second
	}
	t.NotBefore = now.Add(-before).Truncate(time.Second)
	if t.NotBefore.Before(issuer.certificate.NotBefore) {
		t.NotBefore = issuer.certificate.NotBefore
	}
	at, by, err := p.until(ctx, c, role, w, session)
	if err != nil {
		return "", err
	}
	if at.After(issuer.NotAfter) {
		switch issuer.Options.NotAfter {
		case "permit":
		case "err":
			return "", ErrNotAllowed.With("The certificate would outlive its authority, which ends %s.", issuer.NotAfter.Format(time.RFC3339)).At("ttl")
		default:
			at, by = issuer.NotAfter, "authority"
		}
	}
	t.NotAfter = at.Truncate(time.Second)
	return by, nil
}

// until is the end of what is certified by a role, and what that is the end of.
func (p *PKI) until(ctx context.Context, c estover.Caller, role *Role, w *Wish, session Session) (at time.Time, by string, err error) {
	now := p.guard.DB().Now()
	longest := time.Duration(role.MaxTTL) * time.Second
	if longest == 0 {
		longest = cmp.Or(w.Longest, longestTTL)
		longest = max(longest, time.Duration(role.TTL)*time.Second)
	}
	ttl := cmp.Or(w.TTL, time.Duration(role.TTL)*time.Second, min(cmp.Or(w.Usual, usualTTL), longest))
	by = "ttl"
	at = now.Add(ttl)
	if ttl <= 0 {
		return at, "", ErrInvalid.With("A certificate lives for a second at least.").At("ttl")
	}
	if !w.NotAfter.IsZero() {
		at = w.NotAfter
	} else if role.X509 != nil && role.X509.NotAfter != "" {
		if at, err = time.Parse(time.RFC3339, role.X509.NotAfter); err != nil {
			return at, "", err
		}
		longest = max(longest, at.Sub(now))
	}
	if limit := now.Add(longest); at.After(limit) {
		at, by = limit, "max_ttl"
	}
	if !session.ExpiresAt.IsZero() && at.After(session.ExpiresAt) {
		at, by = session.ExpiresAt, "session"
	}
	if c.Acting().Kind() == estover.AgentKind && role.Resource != "" && p.Until != nil {
		end, err := p.Until(ctx, c, role.Resource, role.Action, w.parameters)
		if err != nil {
			return at, "", err
		}
		if !end.IsZero() && at.After(end) {
			at, by = end, "grant"
		}
	}
	if !at.After(now) {
		return at, "", ErrInvalid.With("The certificate would have ended before it began.").At("not_after")
	}
	return at, by, nil
}

// signLeaf signs a certificate, and makes sure that the authority may name what is
// in it.
func (p *PKI) signLeaf(ctx context.Context, tenant estover.TenantID, issuer *Authority, t *x509.Certificate, public crypto.PublicKey) ([]byte, error) {
	urls, err := p.urls.Get(ctx, tenant, issuer.Mount)
	if err != nil {
		return nil, err
	}
	p.published(tenant, issuer, urls, t)
	spki, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, ErrInvalid.With("The key cannot be certified.")
	}
	if t.SubjectKeyId, err = keyIdentifier(spki); err != nil {
		return nil, err
	}
	t.AuthorityKeyId = issuer.certificate.SubjectKeyId
	signer, err := p.signer(tenant, issuer.key)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, t, issuer.certificate, public, signer)
	if err != nil {
		return nil, ErrInvalid.With("The certificate cannot be made: %v.", err)
	}
	if !constrained(issuer.certificate) {
		return der, nil
	}
	made, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(issuer.certificate)
	if _, err := made.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: t.NotBefore.Add(time.Second), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return nil, ErrNotAllowed.With("The authority may not name what is in the certificate.").Because(err)
	}
	return der, nil
}

// constrained reports whether an authority may not name everything.
func constrained(c *x509.Certificate) bool {
	return len(c.PermittedDNSDomains)+len(c.ExcludedDNSDomains)+len(c.PermittedIPRanges)+len(c.ExcludedIPRanges)+len(c.PermittedEmailAddresses)+len(c.ExcludedEmailAddresses)+len(c.PermittedURIDomains)+len(c.ExcludedURIDomains) > 0
}

func addresses(ips []net.IP) (all []string) {
	for _, ip := range ips {
		all = append(all, ip.String())
	}
	return all
}

func texts(uris []*url.URL) (all []string) {
	for _, u := range uris {
		all = append(all, u.String())
	}
	return all
}

// answer is what is told of an authority's certificate that was signed here.
func (p *PKI) answer(ctx context.Context, d *certified, by string) (*Certificate, error) {
	return p.fill(ctx, d.caller.Tenant, &Certificate{LimitedBy: by}, d, d.record(p.guard.DB().Now()))
}

func (p *PKI) fill(ctx context.Context, tenant estover.TenantID, out *Certificate, d *certified, r *Record) (*Certificate, error) {
	out.Record, out.PEM = *r, r.PEM()
	if r.Names == nil {
		out.Names = []string{}
	}
	if r.Kind == SSH {
		out.Revocation = LingersSSH
		return out, nil
	}
	out.Revocation = Lingers
	out.IssuingCA = d.authority.PEM
	chain, err := p.Chain(ctx, tenant, d.authority)
	if err != nil {
		return nil, err
	}
	for _, one := range chain {
		out.Chain = append(out.Chain, certificatePEM(one.Raw))
	}
	return out, nil
}

// ParseRequest reads a request for a certificate, in PEM.
func ParseRequest(text string) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode([]byte(text))
	if len(text) > maxPEM || block == nil || !strings.Contains(block.Type, "CERTIFICATE REQUEST") {
		return nil, ErrInvalid.With("There is no request for a certificate in PEM.").At("csr")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, ErrInvalid.With("The request for a certificate cannot be read: %v.", err).At("csr")
	}
	return csr, nil
}
