package pki

import (
	"container/list"
	"context"
	"crypto"
	"crypto/fips140"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"math/big"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ocsp"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// A Reason is why a certificate was revoked (RFC 5280, section 5.3.1).
type Reason int64

// The reasons that are used.
const (
	Unspecified    Reason = 0
	KeyCompromise  Reason = 1
	CACompromise   Reason = 2
	Superseded     Reason = 4
	EndOfOperation Reason = 5
)

// Reasons are those that one may name.
var Reasons = map[string]Reason{
	"unspecified": Unspecified, "key_compromise": KeyCompromise, "ca_compromise": CACompromise, "superseded": Superseded, "cessation_of_operation": EndOfOperation,
}

// A filter says which certificates are meant. What is empty is no condition.
type filter struct {
	authority string
	serial    string
	sessions  []string
	mount     string
	crowd     *Crowd
}

// A Crowd says whose certificates are meant: those of agents, or of every agent if
// All is set, in sessions and outside of them.
type Crowd struct {
	Agents []string
	All    bool
}

// A Toll is how many certificates of a crowd there are from one authority.
type Toll struct {
	Authority    string // its id
	Kind         Kind
	Certificates int64 // that counted at the instant that was asked about, or came later
	Good         int64 // of them, those that still do
}

// RevokeCrowd takes back what an authority has certified for a crowd, and has its
// list tell of it. The answer is how many of them still count, which are none
// unless one came meanwhile.
func (p *PKI) RevokeCrowd(ctx context.Context, c estover.Caller, crowd Crowd, authority, cause string) (left int64, err error) {
	op := guard.Op{Action: "pki.revoke", Target: "authority:" + authority, Effect: guard.Deletes, Detail: map[string]any{"cause": cause}}
	var kind Kind
	err = p.guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		a, err := findAuthority(ctx, tx.Tx, authority)
		if err != nil {
			return err
		}
		kind = a.Kind
		n, err := p.revokeWhere(ctx, tx, filter{authority: authority, crowd: &crowd}, EndOfOperation, cause)
		tx.Note("certificates", n)
		return err
	})
	if err != nil {
		return 0, err
	}
	if kind == X509 { // that of SSH is made when it is asked for
		if _, err := p.CRL(ctx, c.Tenant, authority); err != nil && !errors.Is(err, ErrNoList) {
			return 0, err
		}
	}
	err = p.guard.DB().View(ctx, c.Tenant, func(tx *db.Tx) error {
		tolls, err := Tolls(ctx, tx, crowd, time.Time{})
		for _, t := range tolls {
			if t.Authority == authority {
				left = t.Good
			}
		}
		return err
	})
	return left, err
}

// ParseSerial reads a serial number as people and other programs write it: hex
// with or without colons or dashes.
func ParseSerial(text string) string {
	s := strings.ToLower(strings.NewReplacer(":", "", "-", "", " ", "").Replace(text))
	if b, err := hex.DecodeString(s); err == nil {
		return Serial(new(big.Int).SetBytes(b))
	}
	return s
}

// Revoke takes a certificate of a mount back. One that is revoked already stays as
// it is. The answer says when it was revoked, and what goes on.
func (p *PKI) Revoke(ctx context.Context, c estover.Caller, mount string, kind Kind, number string, reason Reason, cause string) (r Record, err error) {
	op := guard.Op{Action: actionOf(kind, "revoke"), Target: target(kind, "certificate", named(mount, number)), Effect: guard.Deletes, Detail: map[string]any{"mount": mount, "serial": number, "reason": reason, "cause": cause}}
	err = p.guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		one, err := findCertificate(ctx, tx.Tx, mount, kind, number)
		if err != nil {
			return err
		}
		r = *one
		if !r.RevokedAt.IsZero() {
			tx.Note("already", r.RevokedAt)
			return nil
		}
		if !r.NotAfter.After(tx.Now()) {
			return ErrInvalid.With("The certificate ended by itself %s.", r.NotAfter.Format(time.RFC3339))
		}
		r.RevokedAt, r.Reason, r.Cause = tx.Now(), reason, cause
		tx.Note("authority", r.Authority)
		_, err = p.revokeWhere(ctx, tx, filter{authority: r.Authority, serial: number}, reason, cause)
		return err
	})
	return r, err
}

// EndOfSessions takes back what was certified in sessions, in the transaction that
// ends them.
func (p *PKI) EndOfSessions(ctx context.Context, tx *guard.Tx, sessions []string) (int, error) {
	return p.revokeWhere(ctx, tx, filter{sessions: sessions}, EndOfOperation, "the session has ended")
}

// EndOfAgents takes back what was certified for agents, in whoever's session, in the
// transaction that holds those.
func (p *PKI) EndOfAgents(ctx context.Context, tx *guard.Tx, agents []string, cause string) (int, error) {
	return p.revokeWhere(ctx, tx, filter{crowd: &Crowd{Agents: agents}}, EndOfOperation, cause)
}

// AgentHas reports whether anything that was certified for an agent holds.
func AgentHas(ctx context.Context, tx *db.Tx, agent string) (bool, error) {
	ids, err := authoritiesOf(ctx, tx, filter{crowd: &Crowd{Agents: []string{agent}}})
	return len(ids) > 0, err
}

// revokeWhere marks certificates, and has the lists of their authorities made anew.
func (p *PKI) revokeWhere(ctx context.Context, tx *guard.Tx, f filter, reason Reason, cause string) (int, error) {
	ids, err := authoritiesOf(ctx, tx.Tx, f)
	if err != nil || len(ids) == 0 {
		return 0, err
	}
	n, err := mark(ctx, tx.Tx, f, reason, cause)
	if err != nil || n == 0 {
		return 0, err
	}
	for _, id := range ids {
		if err := raise(ctx, tx.Tx, id); err != nil {
			return 0, err
		}
		tx.Touch(revokedKind, id)
	}
	return n, nil
}

// Certificates are those of a mount, the latest first. They are told of to whoever
// may list them.
func (p *PKI) Certificates(ctx context.Context, c estover.Caller, f CertificateFilter) (list []Record, err error) {
	err = p.guard.Read(ctx, c, guard.Op{Action: actionOf(f.Kind, "list"), Target: target(f.Kind, "certificate", "")}, func(tx *db.Tx) error {
		list, err = listCertificates(ctx, tx, f)
		return err
	})
	return list, err
}

// A CertificateFilter says which certificates to list.
type CertificateFilter struct {
	Mount   string
	Kind    Kind
	Agent   string
	Session string
	Revoked bool
	Live    bool
	After   string // the serial that the page before ended with
	Limit   int
}

// Certificate is one of a mount by its serial number. A certificate is public, but
// to whom it was given is not.
func (p *PKI) Certificate(ctx context.Context, c estover.Caller, mount string, kind Kind, number string) (r Record, err error) {
	err = p.guard.Read(ctx, c, guard.Op{Action: actionOf(kind, "read"), Target: target(kind, "certificate", named(mount, number))}, func(tx *db.Tx) error {
		one, err := findCertificate(ctx, tx, mount, kind, number)
		if err == nil {
			r = *one
		}
		return err
	})
	return r, err
}

// PublicCertificate is a certificate of a mount by its serial number, as everybody
// may know it: without to whom it was given.
func (p *PKI) PublicCertificate(ctx context.Context, tenant estover.TenantID, mount, number string) (r Record, err error) {
	err = p.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		one, err := findCertificate(ctx, tx, mount, X509, number)
		if err == nil {
			r = *one
			r.Subject, r.Agent, r.Session, r.Cause = "", "", "", ""
		}
		return err
	})
	return r, err
}

// How long a list is good for, and when the next one is made. Whoever has one that
// is older than its next update must not rely on it.
const (
	listLife  = 24 * time.Hour
	listFresh = 12 * time.Hour
)

// A List is what an authority has revoked, as it publishes it.
type List struct {
	DER        []byte
	Number     int64
	NextUpdate time.Time

	covers int64
}

// ErrNoList is returned for an authority that publishes no list.
var ErrNoList = &estover.Error{Kind: estover.NotFound, Code: "revocation_list_not_found", Detail: "The authority publishes no list: its key is not here."}

// CRL is the complete list of what an authority has revoked, signed anew if more
// has been since the last one, or if that is old. It is for everybody.
func (p *PKI) CRL(ctx context.Context, tenant estover.TenantID, id string) (*List, error) {
	return p.crl(ctx, tenant, id, false)
}

// RotateCRL signs a list anew whatever there is.
func (p *PKI) RotateCRL(ctx context.Context, c estover.Caller, mount, ref string) (*List, error) {
	op := guard.Op{Action: "pki.configure", Target: target(X509, "authority", ref), Detail: map[string]any{"mount": mount, "rotates": "crl"}}
	a, err := p.authority(ctx, c.Tenant, mount, X509, ref)
	if err != nil {
		return nil, p.told(ctx, c, op, err)
	}
	op.Target = target(X509, "authority", a.ID)
	if err := p.guard.Do(ctx, c, op, func(*guard.Tx) error { return nil }); err != nil {
		return nil, err
	}
	return p.crl(ctx, c.Tenant, a.ID, true)
}

func (p *PKI) crl(ctx context.Context, tenant estover.TenantID, id string, always bool) (*List, error) {
	if err := p.sealer.Prepare(ctx, tenant); err != nil {
		return nil, err
	}
	for range maxTries {
		var a *Authority
		var have *List
		var revoked []Record
		now := p.guard.DB().Now()
		err := p.guard.DB().View(ctx, tenant, func(tx *db.Tx) (err error) {
			if a, err = findAuthority(ctx, tx, id); err != nil {
				return err
			}
			if have, err = findList(ctx, tx, id); err != nil {
				return err
			}
			if !always && have != nil && have.covers == a.revocations && now.Before(have.NextUpdate.Add(-listFresh)) {
				return nil
			}
			// What has ended stays on the list for a while, so that every such
			// certificate was on one (RFC 5280, section 3.3).
			revoked, err = revokedOf(ctx, tx, id, now.Add(-2*listLife))
			return err
		})
		if err != nil {
			return nil, err
		}
		if a.Kind != X509 || a.key == nil || !a.uses("crl-signing") {
			if have != nil {
				return have, nil
			}
			return nil, ErrNoList
		}
		if !always && have != nil && have.covers == a.revocations && now.Before(have.NextUpdate.Add(-listFresh)) {
			return have, nil
		}
		next := &List{Number: 1, NextUpdate: now.Add(listLife).Truncate(time.Second), covers: a.revocations}
		if have != nil {
			next.Number = have.Number + 1
		}
		if next.DER, err = p.signList(tenant, a, next, revoked, now); err != nil {
			return nil, err
		}
		system := estover.Caller{Tenant: tenant, Subject: estover.System("pki")}
		op := guard.Op{Action: "pki.crl", Target: target(X509, "authority", id), Detail: map[string]any{"number": next.Number, "certificates": len(revoked), "next_update": next.NextUpdate}}
		err = p.guard.Do(ctx, system, op, func(tx *guard.Tx) error { return putList(ctx, tx.Tx, id, have, next) })
		if errors.Is(err, errStale) {
			continue // another node has made one
		}
		return next, err
	}
	return nil, db.ErrUnavailable
}

// errStale says that a row was not as it was read.
var errStale = errors.New("the row has changed in the meantime")

func (p *PKI) signList(tenant estover.TenantID, a *Authority, l *List, revoked []Record, now time.Time) ([]byte, error) {
	t := &x509.RevocationList{Number: big.NewInt(l.Number), ThisUpdate: now.Truncate(time.Second), NextUpdate: l.NextUpdate}
	for i := range revoked {
		n, ok := new(big.Int).SetString(revoked[i].Serial, 16)
		if !ok {
			continue // of SSH, which has lists of its own
		}
		t.RevokedCertificateEntries = append(t.RevokedCertificateEntries, x509.RevocationListEntry{
			SerialNumber: n, RevocationTime: revoked[i].RevokedAt.Truncate(time.Second), ReasonCode: int(revoked[i].Reason),
		})
	}
	signer, err := p.signer(tenant, a.key)
	if err != nil {
		return nil, err
	}
	return x509.CreateRevocationList(rand.Reader, t, a.certificate, signer)
}

// How long the answer of the responder is good for.
const answerLife = 10 * time.Minute

// OCSP answers a question of RFC 6960 about a certificate of an authority. The
// answer is signed by the authority itself, which needs no responder's certificate
// that somebody would have to trust. It is for everybody.
func (p *PKI) OCSP(ctx context.Context, tenant estover.TenantID, question []byte, ids ...string) ([]byte, error) {
	if len(question) > 16<<10 {
		return ocsp.MalformedRequestErrorResponse, nil
	}
	q, err := ocsp.ParseRequest(question)
	if err != nil {
		return ocsp.MalformedRequestErrorResponse, nil
	}
	if err := p.sealer.Prepare(ctx, tenant); err != nil {
		return nil, err
	}
	for _, id := range ids {
		a, err := p.authorities.Get(ctx, tenant, id)
		if estover.KindOf(err) == estover.NotFound {
			continue
		}
		if err != nil {
			return nil, err
		}
		if a.Kind != X509 || a.key == nil || !a.uses("ocsp-signing") || !about(q, a) {
			continue
		}
		return p.answerOCSP(ctx, tenant, a, q)
	}
	return ocsp.UnauthorizedErrorResponse, nil
}

// about reports whether a question is about a certificate of this authority.
func about(q *ocsp.Request, a *Authority) bool {
	if !q.HashAlgorithm.Available() || q.HashAlgorithm == crypto.SHA1 && fips140.Enforced() {
		return false
	}
	name, key := q.HashAlgorithm.New(), q.HashAlgorithm.New()
	name.Write(a.certificate.RawSubject)
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(a.certificate.RawSubjectPublicKeyInfo, &info); err != nil {
		return false
	}
	key.Write(info.Key.RightAlign())
	return slices.Equal(name.Sum(nil), q.IssuerNameHash) && slices.Equal(key.Sum(nil), q.IssuerKeyHash)
}

// answerOCSP looks up how a certificate stands each time. The signature alone is
// kept, while nothing else is to be said: for half of the time that the answer is good
// for, and until its end where there is no turn to sign another one.
func (p *PKI) answerOCSP(ctx context.Context, tenant estover.TenantID, a *Authority, q *ocsp.Request) ([]byte, error) {
	now := p.guard.DB().Now()
	said := told{Status: ocsp.Unknown}
	if q.SerialNumber.Sign() > 0 && len(q.SerialNumber.Bytes()) <= 20 {
		var r *Record
		err := p.guard.DB().View(ctx, tenant, func(tx *db.Tx) (err error) {
			r, err = findSerial(ctx, tx, a.ID, Serial(q.SerialNumber))
			return err
		})
		switch {
		case estover.KindOf(err) == estover.NotFound:
		case err != nil:
			return nil, err
		case !r.RevokedAt.IsZero():
			said = told{ocsp.Revoked, r.RevokedAt.Truncate(time.Second), int(r.Reason)}
		default:
			said.Status = ocsp.Good
		}
	}
	about := question{tenant, a.ID, q.HashAlgorithm, q.SerialNumber.String()}
	kept, fresh := p.responder.answer(about, said, now)
	switch {
	case fresh:
		return kept, nil
	case p.responder.may(said.Status, now):
	case kept != nil:
		return kept, nil
	default:
		return ocsp.TryLaterErrorResponse, nil
	}
	signer, err := p.signer(tenant, a.key)
	if err != nil {
		return nil, err
	}
	if _, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok {
		return nil, ErrCannotIssue
	}
	b, err := ocsp.CreateResponse(a.certificate, a.certificate, ocsp.Response{
		Status: said.Status, SerialNumber: q.SerialNumber, IssuerHash: q.HashAlgorithm, RevokedAt: said.RevokedAt, RevocationReason: said.Reason,
		ThisUpdate: now.Truncate(time.Second), NextUpdate: now.Add(answerLife).Truncate(time.Second),
	}, signer)
	if err == nil && said.Status != ocsp.Unknown {
		p.responder.keep(about, said, now, b)
	}
	return b, err
}

// A responder remembers signed answers: anybody may ask as often as they like, and
// a signature costs more than the question. Of serial numbers that nobody has there
// are too many to remember. So much is signed in a second and no more, about what is
// revoked, what is good and what nobody has each by itself: whoever asks about many
// holds up nobody who asks about another kind, above all not the news that something
// is revoked. Its zero value remembers none yet.
type responder struct {
	mu      sync.Mutex
	answers map[question]*list.Element // of *answered
	order   list.List                  // who was asked about last comes first
	second  int64                      // of the signatures that are counted
	signed  map[int]int                // by what was said
}

// maxAnswers is how many are remembered, those that were asked for last. One has a
// few hundred bytes.
const maxAnswers = 10_000

// maxSigned are the signatures of a second, by what is said.
var maxSigned = map[int]int{ocsp.Good: 100, ocsp.Revoked: 100, ocsp.Unknown: 50}

type question struct {
	tenant    estover.TenantID
	authority string
	hash      crypto.Hash
	serial    string
}

// told is what is said of a certificate.
type told struct {
	Status    int
	RevokedAt time.Time
	Reason    int
}

type answered struct {
	about question
	said  told
	at    time.Time
	bytes []byte
}

// answer is a signed answer that says this, or nil, and whether it is good for a while
// yet.
func (r *responder) answer(q question, said told, now time.Time) (b []byte, fresh bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := r.answers[q]
	if at == nil {
		return nil, false
	}
	r.order.MoveToFront(at)
	have := at.Value.(*answered)
	age := now.Sub(have.at)
	if have.said != said || age < 0 || age >= answerLife-time.Second { // its end is cut to the second
		return nil, false
	}
	return have.bytes, age < answerLife/2
}

func (r *responder) keep(q question, said told, now time.Time, b []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if at := r.answers[q]; at != nil {
		*at.Value.(*answered) = answered{q, said, now, b}
		return
	}
	if r.answers == nil {
		r.answers = map[question]*list.Element{}
	}
	if len(r.answers) >= maxAnswers {
		delete(r.answers, r.order.Remove(r.order.Back()).(*answered).about)
	}
	r.answers[q] = r.order.PushFront(&answered{q, said, now, b})
}

// may reports whether another answer that says this may be signed at this time.
func (r *responder) may(status int, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.Unix() != r.second || r.signed == nil {
		r.second, r.signed = now.Unix(), map[int]int{}
	}
	r.signed[status]++
	return r.signed[status] <= maxSigned[status]
}

// Responders are the ids of the authorities of a mount, for [PKI.OCSP] of all of
// them.
func (p *PKI) Responders(ctx context.Context, tenant estover.TenantID, mount string) (ids []string, err error) {
	err = p.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		ids, err = listIDs(ctx, tx, mount, X509)
		return err
	})
	return ids, err
}

// A Swept is what a sweep has done.
type Swept struct {
	Certificates int64 `json:"certificates"`
	Lists        int   `json:"lists"`
}

// Sweep forgets certificates whose end is long past, of one tenant, and signs the
// lists that would soon be old. The log still tells of each.
func (p *PKI) Sweep(ctx context.Context, tenant estover.TenantID) (done Swept, err error) {
	err = p.guard.DB().Do(ctx, tenant, func(tx *db.Tx) error {
		done.Certificates, err = sweep(ctx, tx, tx.Now().Add(-p.Keep))
		return err
	})
	if err != nil {
		return done, err
	}
	var due []string
	err = p.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		due, err = dueLists(ctx, tx, p.guard.DB().Now().Add(listFresh))
		return err
	})
	if err != nil {
		return done, err
	}
	var failed []error
	for _, id := range due {
		_, err := p.CRL(ctx, tenant, id)
		failed = append(failed, err)
		done.Lists++
	}
	return done, errors.Join(failed...)
}

// Tidy is Sweep when somebody asks for it.
func (p *PKI) Tidy(ctx context.Context, c estover.Caller, mount string) (Swept, error) {
	op := guard.Op{Action: "pki.tidy", Target: "pki_mount:" + mount}
	if err := p.guard.Do(ctx, c, op, func(*guard.Tx) error { return nil }); err != nil {
		return Swept{}, err
	}
	return p.Sweep(ctx, c.Tenant)
}
