package pki

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// An SSHSpec is what may be in an SSH certificate.
type SSHSpec struct {
	User bool `json:"user,omitempty"` // certificates of users
	Host bool `json:"host,omitempty"` // certificates of hosts

	// Principals are the names that may be asked for: of users, or of hosts. *
	// alone is every name. A name may be a template, {{agent}} or {{session}}.
	Principals []string `json:"principals,omitempty"`
	// Default is what is certified if nobody asks for a name.
	Default []string `json:"default,omitempty"`
	// Domains are those in which hosts are named.
	Domains    []string `json:"domains,omitempty"`
	Subdomains bool     `json:"subdomains,omitempty"`
	Bare       bool     `json:"bare,omitempty"`

	Options         []string          `json:"options,omitempty"`         // critical options that may be asked for; * is all
	DefaultOptions  map[string]string `json:"default_options,omitempty"` // those of who asks for none
	Extensions      []string          `json:"extensions,omitempty"`      // extensions that may be asked for; * is all
	DefaultExtended map[string]string `json:"default_extensions,omitempty"`
	KeyID           string            `json:"key_id,omitempty"` // a template of what servers write into their logs; ours if empty
	AskKeyID        bool              `json:"ask_key_id,omitempty"`
	Keys            map[string][]int  `json:"keys,omitempty"` // the keys that are certified, by type, with their bits; none for all that are strong
	NotBefore       int64             `json:"not_before,omitempty"`
}

func (s *SSHSpec) check() error {
	switch {
	case !s.User && !s.Host:
		return ErrInvalid.With("A role for SSH is for users or for hosts, or for both.").At("user")
	case len(s.Principals)+len(s.Default)+len(s.Domains) > 1000:
		return ErrInvalid.With("A role has at most 1000 principals and domains.").At("principals")
	case len(s.DefaultOptions)+len(s.DefaultExtended)+len(s.Options)+len(s.Extensions) > 100:
		return ErrInvalid.With("A role has at most 100 options and extensions.").At("extensions")
	}
	return nil
}

// An SSHWish is the SSH certificate that somebody asks for.
type SSHWish struct {
	Mount      string
	Role       string
	PublicKey  string // a line of a .pub file
	Host       bool
	Principals []string
	TTL        time.Duration
	Options    map[string]string // critical; the role's if nil
	Extensions map[string]string // the role's if nil
	KeyID      string

	Usual, Longest time.Duration
}

// sshPublic is the public key of an authority for SSH.
func (a *Authority) sshPublic() (ssh.PublicKey, error) {
	public, err := a.key.Public()
	if err != nil {
		return nil, err
	}
	return ssh.NewPublicKey(public)
}

func authorizedKey(wire []byte) string {
	public, err := ssh.ParsePublicKey(wire)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(public)))
}

// SignSSH certifies a public key by a role.
func (p *PKI) SignSSH(ctx context.Context, c estover.Caller, w SSHWish) (*Certificate, error) {
	return p.bySSH(ctx, c, "ssh.sign", w, "")
}

// IssueSSH makes a key and certifies it. The key is answered this once.
func (p *PKI) IssueSSH(ctx context.Context, c estover.Caller, w SSHWish, algorithm Algorithm) (*Certificate, error) {
	return p.bySSH(ctx, c, "ssh.issue", w, cmp.Or(algorithm, Ed25519))
}

func (p *PKI) bySSH(ctx context.Context, c estover.Caller, action string, w SSHWish, algorithm Algorithm) (*Certificate, error) {
	role, err := p.roles.Get(ctx, c.Tenant, at(w.Mount, SSH, w.Role))
	if err != nil {
		return nil, p.told(ctx, c, guard.Op{Action: action, Target: target(SSH, "role", w.Role)}, err)
	}
	if len(w.Principals) == 0 && !w.Host {
		w.Principals = role.SSH.Default
	}
	op := guard.Op{
		Action: action, Target: target(SSH, "role", role.ID), Effect: guard.Writes, Resource: role.Resource,
		Detail: map[string]any{"role": role.Name, "principals": w.Principals, "host": w.Host},
	}
	if role.Mount != "" {
		op.Detail["mount"] = role.Mount
	}
	// A grant that is bound to principals covers one of them at a time.
	parameters := map[string]string{"principal": strings.Join(w.Principals, ",")}
	if err := p.reaching(ctx, c, &op, role, parameters); err != nil {
		return nil, p.told(ctx, c, op, err)
	}
	return p.handOut(ctx, c, op, func() (*Certificate, *certified, error) {
		role, err := p.roles.Get(ctx, c.Tenant, at(w.Mount, SSH, w.Role))
		if err != nil {
			return nil, nil, err
		}
		issuer, err := p.issuing(ctx, c.Tenant, w.Mount, SSH, role.Authority)
		if err != nil {
			return nil, nil, err
		}
		session, err := p.session(ctx, c)
		if err != nil {
			return nil, nil, err
		}
		out := &Certificate{}
		public, err := p.sshKey(role, w, algorithm, out)
		if err != nil {
			return nil, nil, err
		}
		cert, err := p.sshCertificate(c, role, &w, public, session)
		if err != nil {
			return nil, nil, err
		}
		end, by, err := p.until(ctx, c, role, &Wish{TTL: w.TTL, Usual: w.Usual, Longest: w.Longest, parameters: parameters}, session)
		if err != nil {
			return nil, nil, err
		}
		if !issuer.NotAfter.IsZero() && end.After(issuer.NotAfter) {
			end, by = issuer.NotAfter, "authority"
		}
		out.LimitedBy = by
		end = end.Truncate(time.Second)
		now := p.guard.DB().Now()
		cert.ValidAfter = uint64(now.Add(-time.Duration(cmp.Or(role.SSH.NotBefore, 30)) * time.Second).Unix())
		cert.ValidBefore = uint64(end.Unix())
		signer, err := p.signer(c.Tenant, issuer.key)
		if err != nil {
			return nil, nil, err
		}
		authority, err := ssh.NewSignerFromSigner(signer)
		if err != nil {
			return nil, nil, err
		}
		if rsa, ok := authority.(ssh.AlgorithmSigner); ok && authority.PublicKey().Type() == ssh.KeyAlgoRSA {
			// SHA-1, the default, is refused everywhere.
			if authority, err = ssh.NewSignerWithAlgorithms(rsa, []string{ssh.KeyAlgoRSASHA256}); err != nil {
				return nil, nil, err
			}
		}
		if err := cert.SignCert(rand.Reader, authority); err != nil {
			return nil, nil, ErrInvalid.With("The certificate cannot be made: %v.", err)
		}
		return out, &certified{
			authority: issuer, role: role, serial: strconv.FormatUint(cert.Serial, 10), name: cert.KeyId, names: cert.ValidPrincipals, body: cert.Marshal(), notAfter: end, caller: c, session: session,
		}, nil
	})
}

// sshKey is the key that is certified.
func (p *PKI) sshKey(role *Role, w SSHWish, algorithm Algorithm, out *Certificate) (ssh.PublicKey, error) {
	if algorithm != "" {
		private, err := algorithm.generate()
		if err != nil {
			return nil, err
		}
		block, err := ssh.MarshalPrivateKey(private, "")
		if err != nil {
			return nil, err
		}
		out.PrivateKey, out.PrivateType = string(pem.EncodeToMemory(block)), strings.SplitN(string(algorithm), "-", 2)[0]
		return ssh.NewPublicKey(private.Public())
	}
	if len(w.PublicKey) > 16<<10 {
		return nil, ErrInvalid.With("The public key is too long.").At("public_key")
	}
	public, _, _, _, err := ssh.ParseAuthorizedKey([]byte(w.PublicKey))
	if err != nil {
		return nil, ErrInvalid.With("The public key is not a line of a .pub file.").At("public_key")
	}
	if _, already := public.(*ssh.Certificate); already {
		return nil, ErrInvalid.With("This is a certificate. Send the public key by itself.").At("public_key")
	}
	return public, role.SSH.fits(public)
}

// fits says why a public key is not certified.
func (s *SSHSpec) fits(public ssh.PublicKey) error {
	kind, bits := "", 0
	switch public.Type() {
	case ssh.KeyAlgoED25519, ssh.KeyAlgoSKED25519:
		kind = "ed25519"
	case ssh.KeyAlgoECDSA256, ssh.KeyAlgoSKECDSA256:
		kind, bits = "ec", 256
	case ssh.KeyAlgoECDSA384:
		kind, bits = "ec", 384
	case ssh.KeyAlgoECDSA521:
		kind, bits = "ec", 521
	case ssh.KeyAlgoRSA:
		kind = "rsa"
		if c, ok := public.(ssh.CryptoPublicKey); ok {
			if a, err := algorithmOf(c.CryptoPublicKey()); err == nil {
				bits, _ = strconv.Atoi(strings.TrimPrefix(string(a), "rsa-"))
			}
			if err := sound(c.CryptoPublicKey()); err != nil {
				return err
			}
		}
		if bits < 2048 {
			return ErrNotAllowed.With("An RSA key has 2048, 3072 or 4096 bits.").At("public_key")
		}
	default:
		return ErrNotAllowed.With("A key of the type %s is not certified. Use ed25519, ecdsa or rsa.", printable(public.Type())).At("public_key")
	}
	if len(s.Keys) == 0 {
		return nil
	}
	names := map[string][]string{"ed25519": {"ed25519", "ssh-ed25519"}, "ec": {"ec", "ecdsa", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"}, "rsa": {"rsa", "ssh-rsa"}}
	for _, n := range names[kind] {
		lengths, ok := s.Keys[n]
		if ok && (len(lengths) == 0 || slices.Contains(lengths, bits) || slices.Contains(lengths, 0)) {
			return nil
		}
	}
	return ErrNotAllowed.With("The role does not certify such a key.").At("public_key")
}

// sshCertificate is the certificate that is asked for, unsigned, if the role allows
// it.
func (p *PKI) sshCertificate(c estover.Caller, role *Role, w *SSHWish, public ssh.PublicKey, session Session) (*ssh.Certificate, error) {
	s := role.SSH
	f := filling{session: session.Epoch.ID}
	if agent := c.Acting(); agent.Kind() == estover.AgentKind {
		f.agent = agent.ID()
	}
	switch {
	case w.Host && !s.Host, !w.Host && !s.User:
		return nil, ErrNotAllowed.With("The role %s is not for certificates of %s.", role.Name, map[bool]string{true: "hosts", false: "users"}[w.Host]).At("host")
	case len(w.Principals) > maxNames:
		return nil, ErrInvalid.With("A certificate has at most %d principals.", maxNames).At("principals")
	case len(w.Principals) == 0:
		// To a server a certificate without principals is good for every user.
		return nil, ErrNotAllowed.With("The certificate needs a principal, and the role has none that it takes for itself.").At("principals")
	}
	names := make([]string, 0, len(w.Principals))
	for _, name := range w.Principals {
		filled, ok := f.fillURI(name)
		if !ok || !s.allows(name, filled, w.Host, f) {
			return nil, ErrNotAllowed.With("The role %s does not allow the principal %s.", role.Name, printable(name)).At("principals")
		}
		names = append(names, filled)
	}
	number := make([]byte, 8)
	_, _ = rand.Read(number) // never fails
	cert := &ssh.Certificate{
		Key: public, Serial: max(1, binary.BigEndian.Uint64(number)>>1), CertType: ssh.UserCert, ValidPrincipals: names,
		KeyId: keyID(c, role, session),
	}
	if s.KeyID != "" {
		cert.KeyId = strings.NewReplacer("{{role_name}}", role.Name, "{{token_display_name}}", string(c.Acting()), "{{agent}}", f.agent, "{{session}}", f.session,
			"{{public_key_hash}}", fingerprint(public)).Replace(s.KeyID)
	}
	if w.KeyID != "" {
		if !s.AskKeyID {
			return nil, ErrNotAllowed.With("The role %s chooses the key id itself.", role.Name).At("key_id")
		}
		cert.KeyId = w.KeyID
	}
	if len(cert.KeyId) > 512 {
		return nil, ErrInvalid.With("A key id has at most 512 bytes.").At("key_id")
	}
	if w.Host {
		cert.CertType = ssh.HostCert
		return cert, nil
	}
	var err error
	if cert.CriticalOptions, err = chosen("critical option", w.Options, s.DefaultOptions, s.Options); err != nil {
		return nil, err
	}
	if cert.Extensions, err = chosen("extension", w.Extensions, s.DefaultExtended, s.Extensions); err != nil {
		return nil, err
	}
	if from, ok := cert.CriticalOptions["source-address"]; ok {
		for one := range strings.SplitSeq(from, ",") {
			if _, err := netip.ParsePrefix(one); err != nil {
				if _, err := netip.ParseAddr(one); err != nil {
					return nil, ErrInvalid.With("A source address is an address or a network such as 10.0.0.0/8.").At("options")
				}
			}
		}
	}
	return cert, nil
}

// keyID is what servers write into their logs: enough to find who it was here.
func keyID(c estover.Caller, role *Role, session Session) string {
	id := string(c.Acting()) + " role:" + role.Name
	if session.Epoch.ID != "" {
		id += " session:" + session.Epoch.ID
	}
	return id
}

// fingerprint is the SHA-256 of a key in hex, as templates have it.
func fingerprint(public ssh.PublicKey) string {
	sum := sha256.Sum256(public.Marshal())
	return hex.EncodeToString(sum[:])
}

// chosen are options or extensions: those that are asked for if the role lets one
// ask, and otherwise the role's.
func chosen(what string, asked, usual map[string]string, allowed []string) (map[string]string, error) {
	if len(asked) == 0 {
		return maps.Clone(usual), nil
	}
	if len(asked) > 50 {
		return nil, ErrInvalid.With("There are too many of the kind: %s.", what)
	}
	for name, value := range asked {
		if len(name)+len(value) > 4096 {
			return nil, ErrInvalid.With("A value of the kind is too long: %s.", what)
		}
		if !slices.Contains(allowed, name) && !slices.Contains(allowed, "*") {
			return nil, ErrNotAllowed.With("The role does not allow the %s %s.", what, printable(name))
		}
	}
	return asked, nil
}

// allows reports whether a principal may be certified. A name that is a template in
// the role fits what is put for it.
func (s *SSHSpec) allows(asked, filled string, host bool, f filling) bool {
	if filled == "" || len(filled) > 255 || strings.ContainsAny(filled, ",\x00\n\r ") {
		return false
	}
	for _, p := range append(append([]string{}, s.Principals...), s.Default...) {
		if p == "*" || p == asked && asked == filled {
			return true
		}
		if one, ok := f.fillURI(p); ok && one == filled {
			return true
		}
	}
	if !host {
		return false
	}
	name := strings.ToLower(filled)
	for _, d := range s.Domains {
		d = strings.ToLower(d)
		if d == "*" || s.Bare && name == d || s.Subdomains && strings.HasSuffix(name, "."+d) {
			return true
		}
	}
	return false
}

// ImportSSH makes an authority for SSH of a private key that there is, in PEM or in
// OpenSSH's own form.
func (p *PKI) ImportSSH(ctx context.Context, c estover.Caller, mount, name string, text estover.Secret) (*Authority, error) {
	op := guard.Op{Action: "pki.authority", Target: target(SSH, "authority", name), Detail: map[string]any{"mount": mount, "imported": true}}
	raw, err := ssh.ParseRawPrivateKey(text.Reveal())
	if err != nil {
		return nil, p.told(ctx, c, op, ErrInvalid.With("The private key cannot be read. Encrypted keys are not taken.").At("private_key"))
	}
	signer, err := signerOf(raw)
	if err == nil {
		err = p.sealer.Prepare(ctx, c.Tenant)
	}
	var key *Key
	if err == nil {
		key, err = p.newKey(c.Tenant, mount, "", signer)
	}
	if err == nil && name != "" && !ValidName(name) {
		err = ErrInvalid.With("%q cannot name an authority.", name).At("name")
	}
	if err != nil {
		return nil, p.told(ctx, c, op, err)
	}
	now := p.guard.DB().Now()
	a := &Authority{ID: estover.NewID("ca"), Mount: mount, Kind: SSH, Name: name, KeyID: key.ID, IssuesFrom: now, CreatedAt: now, epoch: 1, key: key, Subject: name, Options: Profile{Lifetime: maxSeconds}}
	err = p.guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		tx.SetTarget(target(SSH, "authority", a.ID))
		if err := insertKey(ctx, tx.Tx, key); err != nil {
			return err
		}
		return p.add(ctx, tx, a)
	})
	if err != nil {
		return nil, err
	}
	return a, a.show()
}

// loadKRL makes the list of what an authority for SSH has revoked.
func (p *PKI) loadKRL(ctx context.Context, tx *db.Tx, id string) ([]byte, error) {
	a, err := findAuthority(ctx, tx, id)
	if err != nil {
		return nil, err
	}
	if a.Kind != SSH || a.key == nil {
		return nil, ErrNoList
	}
	records, err := revokedOf(ctx, tx, id, p.guard.DB().Now())
	if err != nil {
		return nil, err
	}
	public, err := a.sshPublic()
	if err != nil {
		return nil, err
	}
	var serials []uint64
	latest := a.CreatedAt
	for i := range records {
		n, err := strconv.ParseUint(records[i].Serial, 10, 64)
		if err != nil {
			return nil, err
		}
		serials = append(serials, n)
		if records[i].RevokedAt.After(latest) {
			latest = records[i].RevokedAt
		}
	}
	return krl(uint64(a.revocations), latest, "certificates of "+cmp.Or(a.Name, a.ID)+" that were revoked", public.Marshal(), serials), nil
}

// KRL is the list of what an authority for SSH has revoked, for sshd's
// RevokedKeys. It is for everybody.
func (p *PKI) KRL(ctx context.Context, tenant estover.TenantID, id string) ([]byte, error) {
	return p.krls.Get(ctx, tenant, id)
}

// signerOf is a private key as the standard library has it.
func signerOf(raw any) (crypto.Signer, error) {
	switch k := raw.(type) {
	case *ed25519.PrivateKey:
		return *k, nil
	case crypto.Signer:
		return k, nil
	}
	return nil, ErrInvalid.With("The private key is none of %v.", Algorithms).At("private_key")
}
