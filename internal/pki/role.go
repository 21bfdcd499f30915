package pki

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"net"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// A Role says what may be in a certificate, and who gets one. People get one if
// policy lets them, and an agent if a grant of its own covers the role's action on
// the role's resource: a grant with parameters binds what a certificate may say by
// the names common_name and principal.
type Role struct {
	ID    string `json:"id"` // cro_…
	Mount string `json:"mount,omitempty"`
	Kind  Kind   `json:"kind"`
	Name  string `json:"name"`
	Spec
	CreatedAt time.Time `json:"created_at"`
	ChangedAt time.Time `json:"changed_at"`
	EndedAt   time.Time `json:"ended_at,omitzero"`

	epoch int64
}

// A Spec is what one says of a role. Of X.509 and SSH, each has its own part.
type Spec struct {
	// Authority is the one that signs, by name; that of the mount if empty.
	Authority string `json:"authority,omitempty"`
	// Resource and Action are what an agent's grant has to cover; without them no
	// agent gets a certificate by this role.
	Resource string `json:"resource,omitempty"`
	Action   string `json:"action,omitempty"`
	// TTL is how long a certificate lives if nobody says, MaxTTL how long at most,
	// in seconds.
	TTL    int64 `json:"ttl,omitempty"`
	MaxTTL int64 `json:"max_ttl,omitempty"`

	X509 *X509Spec `json:"x509,omitempty"`
	SSH  *SSHSpec  `json:"ssh,omitempty"`

	// Beside is what a door keeps of the role as it was written there, an object.
	Beside json.RawMessage `json:"beside,omitempty"`
}

// An X509Spec is what may be in an X.509 certificate. Names may hold {{agent}} and
// {{session}}, for which an agent's own are put, and which fit nobody else.
type X509Spec struct {
	Domains          []string `json:"domains,omitempty"`
	Bare             bool     `json:"bare,omitempty"`        // the domains themselves
	Subdomains       bool     `json:"subdomains,omitempty"`  // names below them
	Globs            bool     `json:"globs,omitempty"`       // domains may hold *
	Wildcards        bool     `json:"wildcards,omitempty"`   // certificates for *.name
	AnyName          bool     `json:"any_name,omitempty"`    // whatever is asked for
	Localhost        bool     `json:"localhost,omitempty"`   // localhost too
	AnyHostname      bool     `json:"no_hostname,omitempty"` // names need not be those of hosts
	IPs              bool     `json:"ips,omitempty"`
	URIs             []string `json:"uris,omitempty"`               // globs
	SubjectSerials   []string `json:"subject_serials,omitempty"`    // globs of the subject's serialNumber
	UserIDs          []string `json:"user_ids,omitempty"`           // globs of the subject's user ids (UID, RFC 4519)
	Server           bool     `json:"server,omitempty"`             // for TLS servers
	Client           bool     `json:"client,omitempty"`             // for TLS clients
	CodeSigning      bool     `json:"code_signing,omitempty"`       //
	Email            bool     `json:"email,omitempty"`              // for e-mail
	KeyType          string   `json:"key_type,omitempty"`           // ec, rsa, ed25519 or any; ec if empty
	KeyBits          int      `json:"key_bits,omitempty"`           // 256 of ec and 2048 of rsa if zero
	KeyUsage         []string `json:"key_usage,omitempty"`          //
	ExtKeyUsage      []string `json:"ext_key_usage,omitempty"`      //
	ExtKeyUsageOIDs  []string `json:"ext_key_usage_oids,omitempty"` //
	Policies         []string `json:"policies,omitempty"`           // OIDs of policies
	NoCommonName     bool     `json:"no_common_name,omitempty"`     // a common name is not demanded
	IgnoreCommonName bool     `json:"ignore_csr_common_name,omitempty"`
	IgnoreNames      bool     `json:"ignore_csr_names,omitempty"`
	UncheckedName    bool     `json:"unchecked_common_name,omitempty"` // the common name is not held against the domains

	Organization       []string `json:"organization,omitempty"`
	OrganizationalUnit []string `json:"organizational_unit,omitempty"`
	Country            []string `json:"country,omitempty"`
	Locality           []string `json:"locality,omitempty"`
	Province           []string `json:"province,omitempty"`
	StreetAddress      []string `json:"street_address,omitempty"`
	PostalCode         []string `json:"postal_code,omitempty"`

	NotBefore int64  `json:"not_before,omitempty"` // seconds before now; 30 if zero
	NotAfter  string `json:"not_after,omitempty"`  // an instant instead of a life
	NotCA     bool   `json:"basic_constraints,omitempty"`

	// PSS has authorities with RSA keys sign by RSASSA-PSS, and SignatureBits says with
	// which SHA-2: 256, 384 or 512 bits; 256 if zero. Other keys have one of their own.
	PSS           bool `json:"pss,omitempty"`
	SignatureBits int  `json:"signature_bits,omitempty"`
}

// signature is how an authority signs by the role; zero for the usual way of its key.
func (s *X509Spec) signature(authority *x509.Certificate) x509.SignatureAlgorithm {
	if authority.PublicKeyAlgorithm != x509.RSA {
		return x509.UnknownSignatureAlgorithm
	}
	plain := map[int]x509.SignatureAlgorithm{256: x509.SHA256WithRSA, 384: x509.SHA384WithRSA, 512: x509.SHA512WithRSA}
	pss := map[int]x509.SignatureAlgorithm{256: x509.SHA256WithRSAPSS, 384: x509.SHA384WithRSAPSS, 512: x509.SHA512WithRSAPSS}
	if s.PSS {
		plain = pss
	}
	return plain[cmp.Or(s.SignatureBits, 256)]
}

// The lives of certificates where a role says nothing.
const (
	usualTTL   = time.Hour
	longestTTL = 24 * time.Hour
)

// longest is how long a certificate of a role may live.
func (r *Role) longest() time.Duration {
	if r.MaxTTL > 0 {
		return time.Duration(r.MaxTTL) * time.Second
	}
	return max(longestTTL, time.Duration(r.TTL)*time.Second)
}

// PutRole makes a role, or changes the one of this name.
func (p *PKI) PutRole(ctx context.Context, c estover.Caller, mount string, kind Kind, name string, spec Spec) (out Role, err error) {
	op := guard.Op{Action: actionOf(kind, "role"), Target: target(kind, "role", name), Detail: map[string]any{"mount": mount, "name": name, "spec": spec}}
	if err := spec.check(kind, name); err != nil {
		return out, p.told(ctx, c, op, err)
	}
	id := estover.NewID("cro")
	err = p.guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		spec := spec
		if spec.Resource != "" && p.Resource != nil {
			if spec.Resource, err = p.Resource(ctx, tx.Tx, spec.Resource, spec.Action); err != nil {
				return err
			}
		}
		old, err := findRole(ctx, tx.Tx, mount, kind, name)
		switch {
		case err == nil:
			tx.Note("before", old.Spec)
			out = *old
			out.Spec, out.ChangedAt = spec, tx.Now()
			err = replaceRole(ctx, tx.Tx, old, &out)
		case estover.KindOf(err) == estover.NotFound:
			var n int
			if n, err = countRoles(ctx, tx.Tx, mount); err == nil && n >= maxRoles {
				err = ErrTooMany.With("There are %d roles, which is as many as there may be.", n)
			}
			if err == nil {
				out = Role{ID: id, Mount: mount, Kind: kind, Name: name, Spec: spec, CreatedAt: tx.Now(), ChangedAt: tx.Now(), epoch: 1}
				err = insertRole(ctx, tx.Tx, &out)
			}
		}
		if err != nil {
			return err
		}
		tx.SetTarget(target(kind, "role", out.ID))
		tx.Touch(roleKind, at(mount, kind, name))
		return nil
	})
	return out, err
}

// Roles are those of a mount by name.
func (p *PKI) Roles(ctx context.Context, c estover.Caller, mount string, kind Kind) (list []*Role, err error) {
	err = p.guard.Read(ctx, c, guard.Op{Action: actionOf(kind, "list"), Target: target(kind, "role", "")}, func(tx *db.Tx) error {
		list, err = listRoles(ctx, tx, mount, kind)
		return err
	})
	return list, err
}

// Role is one by its name.
func (p *PKI) Role(ctx context.Context, c estover.Caller, mount string, kind Kind, name string) (r *Role, err error) {
	err = p.guard.Read(ctx, c, guard.Op{Action: actionOf(kind, "read"), Target: target(kind, "role", name)}, func(tx *db.Tx) error {
		r, err = findRole(ctx, tx, mount, kind, name)
		return err
	})
	return r, err
}

// RemoveRole takes a role away. What it has certified stays as it is.
func (p *PKI) RemoveRole(ctx context.Context, c estover.Caller, mount string, kind Kind, name string) error {
	op := guard.Op{Action: actionOf(kind, "role"), Target: target(kind, "role", name), Effect: guard.Deletes, Detail: map[string]any{"mount": mount, "removes": name}}
	return p.guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		old, err := findRole(ctx, tx.Tx, mount, kind, name)
		if err != nil {
			return err
		}
		after := *old
		after.EndedAt = tx.Now()
		tx.SetTarget(target(kind, "role", old.ID))
		tx.Touch(roleKind, at(mount, kind, name))
		return replaceRole(ctx, tx.Tx, old, &after)
	})
}

// actionOf is what policy calls something that is done with one kind.
func actionOf(kind Kind, verb string) string {
	if kind == SSH {
		return "ssh." + verb
	}
	return "pki." + verb
}

// check says what is wrong with a role.
func (s *Spec) check(kind Kind, name string) error {
	switch {
	case !ValidName(name):
		return ErrInvalid.With("%q cannot name a role.", printable(name)).At("name")
	case kind != X509 && kind != SSH:
		return ErrInvalid.With("A role is for x509 or for ssh, not for %q.", kind).At("kind")
	case (s.Resource == "") != (s.Action == ""):
		return ErrInvalid.With("A role names both a resource and an action of it, or neither.").At("action")
	case s.TTL < 0 || s.MaxTTL < 0 || s.TTL > maxSeconds || s.MaxTTL > maxSeconds:
		return ErrInvalid.With("A life is between no second and ten years.").At("ttl")
	case s.MaxTTL > 0 && s.TTL > s.MaxTTL:
		return ErrInvalid.With("The usual life of a certificate is longer than the longest that the role allows.").At("ttl")
	case len(s.Beside) > 64<<10:
		return ErrInvalid.With("A role is too large.")
	case kind == X509 && (s.X509 == nil || s.SSH != nil), kind == SSH && (s.SSH == nil || s.X509 != nil):
		return ErrInvalid.With("A role for %s says what may be in such a certificate, and nothing of another kind.", kind)
	}
	if kind == SSH {
		return s.SSH.check()
	}
	return s.X509.check()
}

const maxSeconds = 10 * 365 * 24 * 3600

func (s *X509Spec) check() error {
	s.KeyType = cmp.Or(s.KeyType, "ec")
	bits := map[string][]int{"ec": {0, 256, 384, 521}, "rsa": {0, 2048, 3072, 4096, 8192}, "ed25519": {0, 256}, "any": {0, 256, 384, 521, 2048, 3072, 4096, 8192}}
	allowed, ok := bits[s.KeyType]
	switch {
	case !ok:
		return ErrInvalid.With("The type of a key is ec, rsa, ed25519 or any, not %q.", printable(s.KeyType)).At("key_type")
	case !slices.Contains(allowed, s.KeyBits):
		return ErrInvalid.With("A key of the type %s has no %d bits.", s.KeyType, s.KeyBits).At("key_bits")
	case len(s.Domains) > 1000 || len(s.URIs) > 1000 || len(s.UserIDs) > 1000 || len(s.SubjectSerials) > 1000:
		return ErrInvalid.With("A role has at most 1000 domains, URIs, user ids and serial numbers of subjects.").At("domains")
	case !slices.Contains([]int{0, 256, 384, 512}, s.SignatureBits):
		return ErrInvalid.With("A signature is over 256, 384 or 512 bits, not %d.", s.SignatureBits).At("signature_bits")
	}
	if _, err := keyUsages(s.KeyUsage); err != nil {
		return err
	}
	if _, err := extKeyUsages(s.ExtKeyUsage); err != nil {
		return err
	}
	if _, err := oids(s.ExtKeyUsageOIDs); err != nil {
		return err
	}
	if s.NotAfter != "" {
		if _, err := time.Parse(time.RFC3339, s.NotAfter); err != nil {
			return ErrInvalid.With("An instant is written as 2026-12-31T23:59:59Z.").At("not_after")
		}
	}
	_, err := oids(s.Policies)
	return err
}

var usages = map[string]x509.KeyUsage{
	"digitalsignature": x509.KeyUsageDigitalSignature, "contentcommitment": x509.KeyUsageContentCommitment, "nonrepudiation": x509.KeyUsageContentCommitment,
	"keyencipherment": x509.KeyUsageKeyEncipherment, "dataencipherment": x509.KeyUsageDataEncipherment, "keyagreement": x509.KeyUsageKeyAgreement,
	"encipheronly": x509.KeyUsageEncipherOnly, "decipheronly": x509.KeyUsageDecipherOnly,
}

func keyUsages(names []string) (all x509.KeyUsage, err error) {
	for _, n := range names {
		n = strings.TrimPrefix(strings.ToLower(strings.TrimSpace(n)), "keyusage")
		one, ok := usages[n]
		switch {
		case ok:
			all |= one
		case n == "certsign", n == "crlsign", n == "":
			// What an authority does, no leaf does.
		default:
			return 0, ErrInvalid.With("There is no use of a key that is called %q.", printable(n)).At("key_usage")
		}
	}
	return all, nil
}

var extUsages = map[string]x509.ExtKeyUsage{
	"any": x509.ExtKeyUsageAny, "serverauth": x509.ExtKeyUsageServerAuth, "clientauth": x509.ExtKeyUsageClientAuth, "codesigning": x509.ExtKeyUsageCodeSigning,
	"emailprotection": x509.ExtKeyUsageEmailProtection, "ipsecendsystem": x509.ExtKeyUsageIPSECEndSystem, "ipsectunnel": x509.ExtKeyUsageIPSECTunnel,
	"ipsecuser": x509.ExtKeyUsageIPSECUser, "timestamping": x509.ExtKeyUsageTimeStamping,
	"microsoftservergatedcrypto": x509.ExtKeyUsageMicrosoftServerGatedCrypto, "netscapeservergatedcrypto": x509.ExtKeyUsageNetscapeServerGatedCrypto,
	"microsoftcommercialcodesigning": x509.ExtKeyUsageMicrosoftCommercialCodeSigning, "microsoftkernelcodesigning": x509.ExtKeyUsageMicrosoftKernelCodeSigning,
}

func extKeyUsages(names []string) (all []x509.ExtKeyUsage, err error) {
	for _, n := range names {
		n = strings.TrimPrefix(strings.ToLower(strings.TrimSpace(n)), "extkeyusage")
		if n == "" {
			continue
		}
		// An answer of a responder is no use of a certificate that a role gives.
		one, ok := extUsages[n]
		if !ok {
			return nil, ErrInvalid.With("There is no use of a certificate that is called %q.", printable(n)).At("ext_key_usage")
		}
		all = append(all, one)
	}
	return all, nil
}

func oids(texts []string) (all []asn1.ObjectIdentifier, err error) {
	for _, t := range texts {
		var id asn1.ObjectIdentifier
		for part := range strings.SplitSeq(t, ".") {
			n, err := strconv.Atoi(part)
			if err != nil || n < 0 {
				return nil, ErrInvalid.With("%q is no object identifier.", printable(t))
			}
			id = append(id, n)
		}
		if len(id) < 2 {
			return nil, ErrInvalid.With("%q is no object identifier.", printable(t))
		}
		all = append(all, id)
	}
	return all, nil
}

// extended are all the uses that a role gives a certificate.
func (s *X509Spec) extended() []x509.ExtKeyUsage {
	all, _ := extKeyUsages(s.ExtKeyUsage) // checked when the role was put
	for _, one := range []struct {
		on bool
		of x509.ExtKeyUsage
	}{{s.Server, x509.ExtKeyUsageServerAuth}, {s.Client, x509.ExtKeyUsageClientAuth}, {s.CodeSigning, x509.ExtKeyUsageCodeSigning}, {s.Email, x509.ExtKeyUsageEmailProtection}} {
		if one.on && !slices.Contains(all, one.of) {
			all = append(all, one.of)
		}
	}
	return all
}

// algorithm is the key that a role makes where the caller brings none.
func (s *X509Spec) algorithm() (Algorithm, error) {
	switch s.KeyType {
	case "ec", "any":
		switch s.KeyBits {
		case 0, 256:
			return P256, nil
		case 384:
			return P384, nil
		}
	case "ed25519":
		return Ed25519, nil
	case "rsa":
		switch cmp.Or(s.KeyBits, 2048) {
		case 2048:
			return RSA2048, nil
		case 3072:
			return RSA3072, nil
		case 4096:
			return RSA4096, nil
		}
	}
	return "", ErrNotAllowed.With("A key of the type %s with %d bits is not made here. Make it yourself, and have it signed.", s.KeyType, s.KeyBits)
}

// fits says why a key is not what the role allows.
func (s *X509Spec) fits(public crypto.PublicKey) error {
	kind, bits := "", 0
	switch k := public.(type) {
	case *rsa.PublicKey:
		kind, bits = "rsa", k.N.BitLen()
		if bits < 2048 || bits > 8192 {
			return ErrNotAllowed.With("An RSA key has 2048 bits at least and 8192 at most.")
		}
	case *ecdsa.PublicKey:
		kind, bits = "ec", k.Params().BitSize
		if k.Curve == elliptic.P224() {
			return ErrNotAllowed.With("A key on P-224 is not certified.")
		}
	case ed25519.PublicKey:
		kind, bits = "ed25519", 256
	default:
		return ErrNotAllowed.With("The key is neither RSA, nor on a curve that is known here.")
	}
	if err := sound(public); err != nil || s.KeyType == "any" {
		return err
	}
	want := s.KeyBits
	if want == 0 {
		want = map[string]int{"rsa": 2048, "ec": 256, "ed25519": 256}[kind]
	}
	if kind != s.KeyType || bits < want {
		return ErrNotAllowed.With("The role wants a key of the type %s with at least %d bits, and this is %s with %d.", s.KeyType, cmp.Or(s.KeyBits, want), kind, bits)
	}
	return nil
}

// A filling is what is put for the placeholders in names.
type filling struct{ agent, session string }

// fill puts it. A name with a placeholder for which there is nothing fits nothing.
func (f filling) fill(name string) (string, bool) {
	for placeholder, value := range map[string]string{"{{agent}}": f.agent, "{{session}}": f.session} {
		if strings.Contains(name, placeholder) {
			if value == "" {
				return "", false
			}
			name = strings.ReplaceAll(name, placeholder, strings.ReplaceAll(value, "_", "-"))
		}
	}
	return name, true
}

// fillURI is fill for what is no host name, and keeps ids as they are.
func (f filling) fillURI(name string) (string, bool) {
	if strings.Contains(name, "{{agent}}") && f.agent == "" || strings.Contains(name, "{{session}}") && f.session == "" {
		return "", false
	}
	return strings.NewReplacer("{{agent}}", f.agent, "{{session}}", f.session).Replace(name), true
}

var hostPattern = regexp.MustCompile(`^(\*\.)?(([a-zA-Z0-9_]|[a-zA-Z0-9_][a-zA-Z0-9_-]*[a-zA-Z0-9_])\.)*([A-Za-z0-9_]|[A-Za-z0-9_][A-Za-z0-9_-]*[A-Za-z0-9_])\.?$`)

// allows reports whether a name, of a host or an e-mail address, may be in a
// certificate.
func (s *X509Spec) allows(name string, f filling) bool {
	host, isEmail := name, false
	if local, domain, ok := strings.Cut(name, "@"); ok {
		if local == "" || strings.Contains(domain, "@") {
			return false
		}
		host, isEmail = domain, true
	}
	wildcard := strings.Contains(host, "*")
	switch {
	case wildcard && (!s.Wildcards || isEmail || !strings.HasPrefix(host, "*.") || strings.Contains(host[2:], "*") || !strings.Contains(host[2:], ".")):
		if !s.AnyName || !s.AnyHostname {
			return false
		}
	case !s.AnyHostname && !hostPattern.MatchString(host):
		return false
	}
	if s.AnyName {
		return true
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if s.Localhost && (host == "localhost" || host == "localdomain") {
		return true
	}
	for _, d := range s.Domains {
		d, ok := f.fill(d)
		if !ok || d == "" {
			continue
		}
		d = strings.ToLower(strings.TrimSuffix(d, "."))
		switch {
		case s.Bare && (host == d || strings.EqualFold(name, d)),
			s.Subdomains && strings.HasSuffix(host, "."+d),
			s.Globs && strings.Contains(d, "*") && glob(d, strings.ToLower(name)):
			return true
		}
	}
	return false
}

// allowsURI reports whether a URI may be in a certificate.
func (s *X509Spec) allowsURI(uri string, f filling) bool {
	for _, pattern := range s.URIs {
		if pattern, ok := f.fillURI(pattern); ok && glob(pattern, uri) {
			return true
		}
	}
	return false
}

// glob compares a text with a pattern in which * is anything.
func glob(pattern, text string) bool {
	if !strings.Contains(pattern, "*") {
		return pattern == text
	}
	parts := strings.Split(pattern, "*")
	if !strings.HasPrefix(text, parts[0]) {
		return false
	}
	text = text[len(parts[0]):]
	last := parts[len(parts)-1]
	for _, part := range parts[1 : len(parts)-1] {
		i := strings.Index(text, part)
		if i < 0 {
			return false
		}
		text = text[i+len(part):]
	}
	return len(text) >= len(last) && strings.HasSuffix(text, last)
}

// allowsSubject reports whether a subject's serialNumber is one that the role names.
func (s *X509Spec) allowsSubject(number string) bool { return matchesOne(s.SubjectSerials, number) }

func matchesOne(patterns []string, text string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		ok, err := path.Match(pattern, text)
		return err == nil && ok
	})
}

// allowsIP reports whether addresses may be in a certificate.
func (s *X509Spec) allowsIP(ip net.IP) bool { return s.IPs && ip != nil }

// RoleBeside is what a door keeps of a role, for an answer that the role shapes.
func (p *PKI) RoleBeside(ctx context.Context, tenant estover.TenantID, mount string, kind Kind, name string) (json.RawMessage, error) {
	r, err := p.roles.Get(ctx, tenant, at(mount, kind, name))
	if err != nil {
		return nil, err
	}
	return r.Beside, nil
}

// RoleExists reports whether there is a role, for a door that tells create from
// update.
func (p *PKI) RoleExists(ctx context.Context, tenant estover.TenantID, mount string, kind Kind, name string) (bool, error) {
	_, err := p.roles.Get(ctx, tenant, at(mount, kind, name))
	if estover.KindOf(err) == estover.NotFound {
		return false, nil
	}
	return err == nil, err
}
