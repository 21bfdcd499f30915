// Package pki keeps certificate authorities, and certifies what agents and
// machines show to others: X.509 certificates and SSH certificates, each for
// minutes, each with a row, and each gone with the session that it was made in.
//
//	authority   pending ──(issues_from)──▶ issuing ──retire──▶ ended     its certificate stays known
//	                                         ▲   │
//	                               rotate ───┘   └─▶ one of the same name takes over; this one still vouches
//	role        what may be in a certificate, for how long, and by which grant an agent gets one
//	certificate held ──revoke, session end──▶ revoked ──(not_after)──▶ swept
//
// # No certificate without a row
//
// A certificate is signed first and then written, in the commit of its event,
// while its session, role and authority are held; it is answered after that. If
// the commit fails, because the session has ended, the role was taken
// away or the event cannot be written, what was signed is dropped and nobody has
// it. So everything that anybody holds can be revoked, and a certificate costs one
// narrow row, no timer and no work when it ends by itself.
//
// The private key of a certificate is the caller's. Where a caller has none
// ([PKI.Issue]) it is made here, answered once and not kept.
//
// # Revocation
//
// A certificate that was made in a session is revoked in the transaction that
// ends the session ([PKI.EndOfSessions]). Every revocation raises a counter of the
// authority, and a list that covers fewer than there are is signed anew when it is
// next asked for ([PKI.CRL]); lists have a number that only rises. [PKI.OCSP] and
// [PKI.KRL] answer from the rows. Who checks none of these learns of a revocation
// when the certificate ends, which is why it is short: see [Lingers].
//
// # Two kinds
//
// An authority of the kind [X509] has a certificate and a key, or the certificate
// alone; one of the kind [SSH] has a key. Keys are sealed under the class pki, and
// unsealed for one signature at a time.
package pki

import (
	"context"
	"encoding/json"
	"log/slog"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/seal"
)

// Errors.
var (
	// ErrNoAuthority is returned when there is no such authority.
	ErrNoAuthority = &estover.Error{Kind: estover.NotFound, Code: "authority_not_found", Detail: "There is no such certificate authority."}
	// ErrNoKey is returned when there is no such key.
	ErrNoKey = &estover.Error{Kind: estover.NotFound, Code: "authority_key_not_found", Detail: "There is no such key of a certificate authority."}
	// ErrNoRole is returned when there is no such role.
	ErrNoRole = &estover.Error{Kind: estover.NotFound, Code: "certificate_role_not_found", Detail: "There is no such role for certificates."}
	// ErrNoCertificate is returned when there is no such certificate.
	ErrNoCertificate = &estover.Error{Kind: estover.NotFound, Code: "certificate_not_found", Detail: "There is no such certificate."}
	// ErrExists is returned when a name is taken.
	ErrExists = &estover.Error{Kind: estover.Conflict, Code: "authority_exists", Detail: "There is something of this name already."}
	// ErrInvalid is returned for what cannot be.
	ErrInvalid = &estover.Error{Kind: estover.Invalid, Code: "certificate_invalid", Detail: "The request for a certificate is not valid."}
	// ErrNotAllowed is returned for a certificate that the role does not allow.
	ErrNotAllowed = &estover.Error{Kind: estover.Invalid, Code: "certificate_not_allowed", Detail: "The role does not allow this certificate."}
	// ErrCannotIssue is returned for an authority that signs nothing.
	ErrCannotIssue = &estover.Error{Kind: estover.Conflict, Code: "authority_cannot_issue", Detail: "The authority cannot issue: its key is not here, or its time is over."}
	// ErrTooMany is returned when an agent has as many certificates as it may have.
	ErrTooMany = &estover.Error{Kind: estover.TooMuch, Code: "certificates_too_many", Detail: "There are too many certificates."}
	// ErrInUse is returned when something cannot go because of what rests on it.
	ErrInUse = &estover.Error{Kind: estover.Conflict, Code: "authority_in_use", Detail: "An authority still uses this key. Retire the authority first."}
	// ErrEnded is returned when the session in which a certificate was asked for ends.
	ErrEnded = &estover.Error{Kind: estover.Conflict, Code: "session_ended", Detail: "The session has ended, or something that the certificate rests on has. Open another session if the task goes on."}
)

// A Kind is what sort of certificates an authority signs.
type Kind string

// The kinds.
const (
	X509 Kind = "x509"
	SSH  Kind = "ssh"
)

// Lingers says what goes on after a revocation, for every answer that speaks of
// one (Q8).
const (
	Lingers    = "Those that check neither the revocation list nor OCSP accept the certificate until it ends, and connections that are open stay open."
	LingersSSH = "Servers that have not fetched the revocation list accept the certificate until it ends, and sessions that are open stay open."
)

// Path is where authorities publish below an issuer.
const Path = "/pki/"

// The bounds of what is kept, and of what an agent gets.
const (
	maxLive      = 100 // certificates of one agent that have not ended
	maxMinute    = 60  // certificates of one agent in a minute
	maxNames     = 100 // in one certificate
	maxRoles     = 1000
	maxAuthority = 200 // of a mount, with those that have ended
	maxPEM       = 1 << 20
)

// A Session is what a certificate that is made in one rests on.
type Session struct {
	Epoch     db.Epoch
	Agent     string
	ExpiresAt time.Time // zero for never
}

// Options are what the server hands in.
type Options struct {
	// Session finds an open session.
	Session func(ctx context.Context, tenant estover.TenantID, id string) (Session, error)

	// Action is what policy is told of an action of a resource, with the parameters
	// that a grant may be bound to. Nil tells it nothing.
	Action func(ctx context.Context, tenant estover.TenantID, resource, action string, parameters map[string]string) (input any, effect guard.Effect, err error)

	// Resource is the id of a resource that a role names by its id or its name, and
	// says why there is no such action there. Nil takes what it is given.
	Resource func(ctx context.Context, tx *db.Tx, ref, action string) (string, error)

	// Until is when the grant ends by which an agent does an action of a resource,
	// with these parameters, in its session; zero for never.
	Until func(ctx context.Context, c estover.Caller, resource, action string, parameters map[string]string) (time.Time, error)

	// URL is where everybody finds what an authority publishes, without a slash at
	// the end: the CRL at URL/crl, OCSP at URL/ocsp, the certificate at URL/ca. "" is
	// nowhere.
	URL func(tenant estover.TenantID, authority string) string

	// Keep is how long the row of a certificate stays after its end. 72 h if zero.
	Keep   time.Duration
	Logger *slog.Logger
}

// PKI is the authorities of all tenants. It is safe for use by many at once.
type PKI struct {
	Options
	guard  *guard.Guard
	sealer *seal.Sealer

	authorities *guard.Cache[*Authority]   // by id
	names       *guard.Cache[[]string]     // by mount, kind and name: the ids, the newest generation first
	roles       *guard.Cache[*Role]        // by mount, kind and name
	krls        *guard.Cache[[]byte]       // by id
	urls        *guard.Cache[*URLs]        // by mount
	mounts      *guard.Cache[[]*Authority] // by mount: those for X.509 that go on
	responder   responder
}

// Holdings are where private keys lie, for [seal.Sealer.Hold].
var Holdings = []seal.Holding{{Class: seal.PKI, Table: "pki_key", Sealed: "sealed", ID: "id", Created: "created_at"}}

// The kinds of rows whose copies go stale.
const (
	authorityKind = "pki_authority"
	nameKind      = "pki_name"
	roleKind      = "pki_role"
	settingKind   = "pki_setting" // by mount
	mountKind     = "pki_mount"   // by mount
	revokedKind   = "pki_revoked" // by authority
)

// New keeps authorities behind the door g.
func New(g *guard.Guard, s *seal.Sealer, o Options) *PKI {
	if o.Keep == 0 {
		o.Keep = 72 * time.Hour
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	p := &PKI{Options: o, guard: g, sealer: s}
	p.authorities = guard.NewCache(g, authorityKind, findAuthority)
	p.names = guard.NewCache(g, nameKind, func(ctx context.Context, tx *db.Tx, at string) ([]string, error) {
		mount, kind, name := parseAt(at)
		return findNamed(ctx, tx, mount, kind, name)
	})
	p.roles = guard.NewCache(g, roleKind, func(ctx context.Context, tx *db.Tx, at string) (*Role, error) {
		mount, kind, name := parseAt(at)
		return findRole(ctx, tx, mount, kind, name)
	})
	p.urls = guard.NewCache(g, settingKind, func(ctx context.Context, tx *db.Tx, mount string) (*URLs, error) {
		u := &URLs{}
		_, err := setting(ctx, tx, mount, "urls", u)
		return u, err
	})
	p.mounts = guard.NewCache(g, mountKind, func(ctx context.Context, tx *db.Tx, mount string) ([]*Authority, error) {
		return listAuthorities(ctx, tx, mount, X509)
	})
	p.krls = guard.NewCache(g, revokedKind, p.loadKRL)
	return p
}

// at names something of a mount among the copies. A touch is a word, and neither
// mounts nor names have slashes.
func at(mount string, kind Kind, name string) string {
	return mount + "/" + string(kind) + "/" + name
}

func parseAt(at string) (mount string, kind Kind, name string) {
	parts := strings.SplitN(at, "/", 3)
	return parts[0], Kind(parts[1]), parts[2]
}

// ValidName reports whether s can name an authority, a key or a role.
func ValidName(s string) bool {
	if s == "" || len(s) > 128 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' {
			continue
		}
		if i == 0 || c != '-' && c != '.' && c != '@' || i == len(s)-1 {
			return false
		}
	}
	return true
}

// named is a certificate among those of all mounts.
func named(mount, serial string) string {
	if mount == "" {
		return serial
	}
	return mount + "/" + serial
}

// Owner is the agent to whom something was given, by the name that events and
// policies have for it; "" for nobody.
func (p *PKI) Owner(ctx context.Context, tenant estover.TenantID, name string) (agent string, err error) {
	what, id, _ := strings.Cut(name, ":")
	kind, ok := strings.CutSuffix(what, "_certificate")
	if !ok {
		return "", nil
	}
	mount, serial, found := strings.Cut(id, "/")
	if !found {
		mount, serial = "", id
	}
	err = p.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		r, err := findCertificate(ctx, tx, mount, Kind(kind), serial)
		if err == nil {
			agent = r.Agent
		}
		return err
	})
	return agent, err
}

// target is a thing of this package as events and policies name it.
func target(kind Kind, what, id string) string { return string(kind) + "_" + what + ":" + id }

// Setting reads what is set on a mount into v. It reports false if nothing is.
func (p *PKI) Setting(ctx context.Context, c estover.Caller, mount, name string, v any) (found bool, err error) {
	err = p.guard.Read(ctx, c, guard.Op{Action: "pki.read", Target: "pki_setting:" + name}, func(tx *db.Tx) error {
		found, err = setting(ctx, tx, mount, name, v)
		return err
	})
	return found, err
}

func setting(ctx context.Context, tx *db.Tx, mount, name string, v any) (bool, error) {
	text, err := findSetting(ctx, tx, mount, name)
	if err != nil || text == "" {
		return false, err
	}
	return true, json.Unmarshal([]byte(text), v)
}

// Set sets something on a mount.
func (p *PKI) Set(ctx context.Context, c estover.Caller, mount, name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(b) > 64<<10 {
		return ErrInvalid.With("A setting has at most 64 KiB.")
	}
	op := guard.Op{Action: "pki.configure", Target: "pki_setting:" + name, Detail: map[string]any{"mount": mount, "setting": json.RawMessage(b)}}
	return p.guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		tx.Touch(nameKind, at(mount, X509, DefaultAuthority))
		tx.Touch(nameKind, at(mount, SSH, DefaultAuthority))
		tx.Touch(settingKind, mount)
		return putSetting(ctx, tx.Tx, mount, name, string(b))
	})
}

// EndMount ends everything of a mount, in the transaction that disables it: what it
// has certified is revoked, its roles and authorities end, and the last lists are
// those that were made before. Its keys are gone.
func (p *PKI) EndMount(ctx context.Context, tx *guard.Tx, mount string) error {
	n, err := p.revokeWhere(ctx, tx, filter{mount: mount}, EndOfOperation, "the mount was disabled")
	if err != nil {
		return err
	}
	tx.Note("certificates", n)
	for _, kind := range []Kind{X509, SSH} {
		list, err := listAuthorities(ctx, tx.Tx, mount, kind)
		if err != nil {
			return err
		}
		for _, a := range list {
			p.touch(tx, a)
		}
		roles, err := listRoles(ctx, tx.Tx, mount, kind)
		if err != nil {
			return err
		}
		for _, r := range roles {
			tx.Touch(roleKind, at(mount, kind, r.Name))
		}
	}
	tx.Touch(settingKind, mount)
	tx.Touch(mountKind, mount)
	return endMount(ctx, tx.Tx, mount)
}
