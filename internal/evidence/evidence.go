// Package evidence puts together what strangers check: the receipts of an
// agent's calls, the export of a whole session, and the policy by which they
// are verified.
//
// Nothing is signed while an agent waits. The statement of a call is written
// as the leaf of its event when the call ends; its envelope and its proof are
// made here, when somebody asks for them:
//
//	event with a statement as its leaf ─▶ DSSE envelope by the gateway's key
//	                                  └─▶ inclusion in the tree of a signed checkpoint
//
// A statement holds commitments alone. What they commit to, and the salt, is in
// the event's sealed payload and in the recording, and is disclosed as the
// exporter chooses. Package attest has the formats and the verification.
package evidence

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/attest"
	"estover.dev/internal/audit"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/jose"
	"estover.dev/internal/recording"
	"estover.dev/internal/seal"
)

// The actions of the events whose leaves are statements.
const (
	CallAction    = "gateway.call"        // an [attest.Action], when a call has ended
	ClosingAction = "session.close"       // an [attest.Session], when nothing of a session can call any more
	CertifyAction = "containment.certify" // an [attest.Containment]
)

// The errors of an export.
var (
	ErrNotSequenced = &estover.Error{Kind: estover.Unavailable, Code: "not_sequenced", Detail: "The log has no signed checkpoint yet that covers this. Try again in a moment."}
	ErrTooManyCalls = &estover.Error{Kind: estover.TooMuch, Code: "too_many_calls", Detail: "The session has more than 20,000 calls, which is more than one export holds."}
	ErrNoStatement  = &estover.Error{Kind: estover.NotFound, Code: "no_statement", Detail: "This event has no receipt: it is neither a call through the gateway nor a certificate."}
)

// maxCalls bounds an export: a call is at least one file in it.
const maxCalls = 20_000

// maxDisclosed bounds the bodies that an export discloses, in bytes. Beyond
// it, bodies stay commitments.
const maxDisclosed = 256 << 20

// DetailKey is where an event's detail has what its statement commits to.
const DetailKey = "committed"

// Committed is what the statement of a call commits to, beside the bodies, as
// it is kept in the event's sealed payload.
type Committed struct {
	Seed      []byte          `json:"seed"`                // what the salts are derived from; see [Committed.Salt]
	Principal estover.Subject `json:"principal,omitempty"` // on whose authority the agent acted
	Grant     string          `json:"grant,omitempty"`     // the grant document, as it was hashed
	Approval  string          `json:"approval,omitempty"`  // the request that the grant came of
	Recording string          `json:"recording,omitempty"` // which recording has the bodies
	Stream    uint64          `json:"stream,omitempty"`    // and which exchange in it
	Cut       bool            `json:"cut,omitempty"`       // not all of the bodies was recorded
}

// NewSeed is what the salts of one statement are derived from.
func NewSeed() []byte {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails
	return b
}

// AppendJSON writes it as encoding/json does ([audit.Appender]).
func (c Committed) AppendJSON(b []byte) []byte {
	b = append(base64.StdEncoding.AppendEncode(append(b, `{"seed":"`...), c.Seed), '"')
	for _, m := range [...]struct{ name, value string }{
		{"principal", string(c.Principal)}, {"grant", c.Grant}, {"approval", c.Approval}, {"recording", c.Recording},
	} {
		if m.value != "" {
			b = audit.AppendMember(b, ',', m.name, m.value)
		}
	}
	if c.Stream != 0 {
		b = strconv.AppendUint(append(b, `,"stream":`...), c.Stream, 10)
	}
	if c.Cut {
		b = append(b, `,"cut":true`...)
	}
	return append(b, '}')
}

// Salt is the salt of the commitment of this name. One random seed gives all
// of them, and none tells another.
func (c Committed) Salt(name string) attest.Salt { return c.Salts()(name) }

// Salts gives one salt after the other ([Committed.Salt]). It is not safe for
// use by many at once.
func (c Committed) Salts() func(name string) attest.Salt {
	m, room := hmac.New(sha256.New, c.Seed), make([]byte, 0, 64)
	return func(name string) attest.Salt {
		m.Reset()
		room = append(room[:0], name...)
		m.Write(room)
		room = m.Sum(room[:0])
		return attest.Salt(room)
	}
}

// Evidence makes receipts and exports. It is safe for use by many at once.
type Evidence struct {
	guard      *guard.Guard
	keys       *seal.Keyring
	recordings *recording.Recordings
	bundle     func(ctx context.Context, tenant estover.TenantID, digest string) ([]byte, error)

	// Approval is what was approved by a request, and by whom: an
	// [attest.Approval] as JSON. Nil if there are no requests.
	Approval func(ctx context.Context, tenant estover.TenantID, request string) (mode string, record []byte, err error)
}

// New makes evidence of what is in the log of g. bundle gives the bytes of a
// policy bundle by its digest.
func New(g *guard.Guard, keys *seal.Keyring, r *recording.Recordings, bundle func(ctx context.Context, tenant estover.TenantID, digest string) ([]byte, error)) *Evidence {
	return &Evidence{guard: g, keys: keys, recordings: r, bundle: bundle}
}

// Trust is the trust policy of a tenant: the keys of its log, of its gateways
// and of certificates of containment. A verifier should get it from somewhere
// else than the evidence itself.
func (e *Evidence) Trust(ctx context.Context, tenant estover.TenantID) (string, error) {
	var b strings.Builder
	log, err := e.guard.Log().VerifierKey(ctx, tenant)
	if err != nil {
		return "", err
	}
	fmt.Fprintf(&b, "# Whose keys count for %s. Keep this apart from what it verifies.\nlog %s\n", tenant, log)
	keys, err := e.keys.Public(ctx, tenant)
	if err != nil {
		return "", err
	}
	for _, k := range keys {
		kind := map[jose.Purpose]string{seal.GatewayKey: "gateway", seal.ContainmentKey: "containment"}[k.Purpose]
		pub, ok := k.Public.(ed25519.PublicKey)
		if kind == "" || !ok || k.State == seal.KeyRevoked {
			continue
		}
		vkey, err := attest.VerifierKey(fmt.Sprintf("%s-%d", kind, k.Generation), pub)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "%s %s\n", kind, vkey)
	}
	b.WriteString("quorum none\n")
	return b.String(), nil
}

// Receipt is the receipt of one call or certificate, by the id of its event.
func (e *Evidence) Receipt(ctx context.Context, caller estover.Caller, id string) (attest.Receipt, error) {
	var event audit.Entry
	op := guard.Op{Action: "evidence.export", Target: "event:" + id, Effect: guard.Reads}
	decision, err := e.guard.Admit(ctx, caller, op)
	if err != nil {
		return attest.Receipt{}, err
	}
	if err := e.view(ctx, caller.Tenant, func(tx *db.Tx) (err error) {
		event, err = e.guard.Log().Find(ctx, tx, id)
		return err
	}); err != nil {
		return attest.Receipt{}, err
	}
	r, err := e.Certificate(ctx, caller.Tenant, event)
	if err != nil {
		return attest.Receipt{}, err
	}
	return r, e.guard.Record(ctx, caller, op, decision, guard.Hot{})
}

// Certificate is the receipt of an event that has just been written, by the
// one who wrote it: it waits until the log covers it, and asks nobody.
func (e *Evidence) Certificate(ctx context.Context, tenant estover.TenantID, event audit.Entry) (attest.Receipt, error) {
	entries, err := e.entries(ctx, tenant, []audit.Entry{event})
	if err != nil {
		return attest.Receipt{}, err
	}
	return attest.Receipt{Entry: entries[0]}, nil
}

// CommittedIn is what the statement of an event commits to.
func CommittedIn(event audit.Entry) (c Committed, err error) {
	b, err := json.Marshal(event.Detail[DetailKey])
	if err == nil {
		err = json.Unmarshal(b, &c)
	}
	if err != nil {
		return c, fmt.Errorf("reading what a statement commits to: %w", err)
	}
	return c, nil
}

// Session is the evidence of a session as a file: a receipt for every call,
// the closing statement if it has ended, the trust policy, the policy bundles
// that decided and, with disclose, what the statements commit to. That it was
// exported is an event.
func (e *Evidence) Session(ctx context.Context, caller estover.Caller, session string, disclose bool) ([]byte, error) {
	op := guard.Op{
		Action: "evidence.export", Target: "session:" + session, Effect: guard.Reads, Session: session,
		Detail: map[string]any{"disclosed": disclose},
	}
	decision, err := e.guard.Admit(ctx, caller, op)
	if err != nil {
		return nil, err
	}
	// The closing statement follows the calls that it counts, so it is read first:
	// a session that is just being closed has then either all of them or no end.
	closing, err := e.list(ctx, caller.Tenant, session, ClosingAction)
	if err != nil {
		return nil, err
	}
	calls, err := e.list(ctx, caller.Tenant, session, CallAction)
	if err != nil {
		return nil, err
	}
	entries, err := e.entries(ctx, caller.Tenant, append(slices.Clone(calls), closing...))
	if err != nil {
		return nil, err
	}
	trust, err := e.Trust(ctx, caller.Tenant)
	if err != nil {
		return nil, err
	}
	x := attest.Export{Trust: []byte(trust)}
	if len(closing) > 0 {
		x.Closing = &entries[len(calls)]
	}
	actions := make([]*attest.Action, len(calls))
	subjects := make([][]attest.Subject, len(calls))
	for i, c := range calls {
		s, err := attest.ParseStatement(c.Leaf)
		if err != nil {
			return nil, fmt.Errorf("reading the statement of %s: %w", c.ID, err)
		}
		var ok bool
		if actions[i], ok = s.Predicate.(*attest.Action); !ok {
			return nil, fmt.Errorf("the statement of %s is none of a call", c.ID)
		}
		subjects[i] = s.Subjects
		x.Receipts = append(x.Receipts, attest.Receipt{Entry: entries[i]})
	}
	order := make([]int, len(calls))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(actions[a].Seq, actions[b].Seq) })
	if disclose {
		if err := e.disclose(ctx, caller, session, calls, subjects, x.Receipts); err != nil {
			return nil, err
		}
	}
	if x.Bundles, err = e.bundles(ctx, caller.Tenant, actions); err != nil {
		return nil, err
	}
	sorted := make([]attest.Receipt, len(order))
	for to, from := range order {
		sorted[to] = x.Receipts[from]
	}
	x.Receipts = sorted
	file, err := x.Marshal()
	if err != nil {
		return nil, err
	}
	return file, e.guard.Record(ctx, caller, op, decision, guard.Hot{})
}

func (e *Evidence) view(ctx context.Context, tenant estover.TenantID, fn func(*db.Tx) error) error {
	return e.guard.DB().View(ctx, tenant, fn)
}

// list gives the events of a session whose leaves are statements, in the order
// of the log.
func (e *Evidence) list(ctx context.Context, tenant estover.TenantID, session, action string) (all []audit.Entry, err error) {
	f := audit.Filter{Session: session, Action: action, Outcome: audit.Done}
	err = e.view(ctx, tenant, func(tx *db.Tx) error {
		all = nil
		for before := int64(0); ; {
			page, next, err := e.guard.Log().List(ctx, tx, f, before, 500)
			if err != nil {
				return err
			}
			all = append(all, page...)
			if len(all) > maxCalls {
				return ErrTooManyCalls
			}
			if next == 0 {
				return nil
			}
			before = next
		}
	})
	slices.Reverse(all)
	return all, err
}

// sequencingWait is how long an export waits for its newest events to get
// their places. The log does that several times a second.
const sequencingWait = 5 * time.Second

// entries signs the statements of events and proves their places, all in one
// tree.
func (e *Evidence) entries(ctx context.Context, tenant estover.TenantID, events []audit.Entry) ([]attest.Entry, error) {
	if len(events) == 0 {
		return nil, nil
	}
	proofs, err := e.proofs(ctx, tenant, events)
	if err != nil {
		return nil, err
	}
	signers := map[jose.Purpose]*attest.Signer{}
	out := make([]attest.Entry, len(events))
	for i, event := range events {
		s, err := attest.ParseStatement(event.Leaf)
		if err != nil {
			return nil, ErrNoStatement
		}
		purpose := seal.GatewayKey
		if t := s.Predicate.Type(); t == attest.ContainmentType || t == attest.EmergencyType {
			purpose = seal.ContainmentKey
		}
		if signers[purpose] == nil {
			key, err := e.keys.Active(ctx, tenant, purpose)
			if err != nil {
				return nil, err
			}
			if signers[purpose], err = attest.NewSigner(key.Signer); err != nil {
				return nil, err
			}
		}
		envelope, err := signers[purpose].Sign(ctx, event.Leaf)
		if err != nil {
			return nil, err
		}
		p := proofs[i]
		out[i] = attest.Entry{Envelope: envelope, Proof: attest.Proof(p.Index, p.Hashes, p.Checkpoint)}
	}
	return out, nil
}

// proofs waits until the published tree covers the events, and proves their
// places in it.
func (e *Evidence) proofs(ctx context.Context, tenant estover.TenantID, events []audit.Entry) ([]audit.Inclusion, error) {
	ctx, cancel := context.WithTimeout(ctx, sequencingWait)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	indexes := make([]int64, len(events))
	for i := range events {
		indexes[i] = events[i].Index
	}
	for {
		err := e.places(ctx, tenant, events, indexes)
		if err == nil {
			var proofs []audit.Inclusion
			if proofs, err = e.guard.Log().Prove(ctx, tenant, indexes...); err == nil {
				return proofs, nil
			}
		}
		if k := estover.KindOf(err); ctx.Err() == nil && k != estover.Unavailable && k != estover.NotFound {
			return nil, err
		}
		e.guard.Log().Wake()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, ErrNotSequenced.Because(errors.Join(ctx.Err(), err))
		}
	}
}

// places looks for the places of events that had none when they were read.
func (e *Evidence) places(ctx context.Context, tenant estover.TenantID, events []audit.Entry, indexes []int64) error {
	return e.view(ctx, tenant, func(tx *db.Tx) error {
		for i := range events {
			if indexes[i] >= 0 {
				continue
			}
			found, err := e.guard.Log().Find(ctx, tx, events[i].ID)
			if err != nil {
				return err
			}
			if indexes[i] = found.Index; indexes[i] < 0 {
				return ErrNotSequenced
			}
		}
		return nil
	})
}

// bundles are the policy bundles that decided the calls.
func (e *Evidence) bundles(ctx context.Context, tenant estover.TenantID, actions []*attest.Action) (out [][]byte, err error) {
	seen := map[attest.Digest]bool{}
	for _, a := range actions {
		d := a.Decision.Bundle
		if d.IsZero() || seen[d] {
			continue
		}
		seen[d] = true
		b, err := e.bundle(ctx, tenant, d.String())
		if err != nil {
			return nil, fmt.Errorf("reading the policy bundle %s: %w", d, err)
		}
		out = append(out, b)
	}
	return out, nil
}

// disclose adds to the receipts what their statements commit to: the
// principal, the grant, its approval, and the bodies as far as they were recorded whole. The
// end of a recording is missing if its node died.
func (e *Evidence) disclose(ctx context.Context, caller estover.Caller, session string, calls []audit.Entry, subjects [][]attest.Subject, receipts []attest.Receipt) error {
	byStream := map[string]int{}
	committed := make([]Committed, len(calls))
	for i, call := range calls {
		b, err := json.Marshal(call.Detail[DetailKey])
		if err != nil {
			return err
		}
		if err := json.Unmarshal(b, &committed[i]); err != nil {
			return fmt.Errorf("reading what %s commits to: %w", call.ID, err)
		}
		c := committed[i]
		add := func(name string, octets []byte) {
			receipts[i].Disclosures = append(receipts[i].Disclosures, attest.Disclosure{Name: name, Salt: c.Salt(name), Octets: octets})
		}
		if c.Grant != "" {
			add(attest.GrantDocument, []byte(c.Grant))
		}
		if c.Approval != "" && e.Approval != nil {
			// One whose rows were edited since is not disclosed: its hash stays.
			_, record, err := e.Approval(ctx, caller.Tenant, c.Approval)
			if err != nil && estover.KindOf(err) != estover.Denied {
				return fmt.Errorf("reading the approval %s: %w", c.Approval, err)
			}
			if err == nil && record != nil {
				add(attest.ApprovalRecord, record)
			}
		}
		if c.Principal != "" {
			add(attest.PrincipalName, []byte(c.Principal))
		}
		if c.Stream != 0 && !c.Cut {
			byStream[fmt.Sprint(c.Recording, "/", c.Stream)] = i
		}
	}
	bodies, err := e.bodies(ctx, caller, session, byStream)
	if err != nil {
		return err
	}
	for i, b := range bodies {
		if !slices.ContainsFunc(subjects[i], func(s attest.Subject) bool { return s.Name == attest.Delivered }) {
			b[attest.Response] = b[attest.Delivered] // it was delivered as it came
		}
		for _, sub := range subjects[i] {
			salt := committed[i].Salt(sub.Name)
			if octets, ok := b[sub.Name]; ok && attest.Commit(salt, octets) == sub.Digest {
				receipts[i].Disclosures = append(receipts[i].Disclosures, attest.Disclosure{Name: sub.Name, Salt: salt, Octets: octets})
			}
		}
	}
	return nil
}

// bodies reads request and answer of each exchange from the recording: the
// head, the body and the trailers, as they were hashed.
func (e *Evidence) bodies(ctx context.Context, caller estover.Caller, session string, byStream map[string]int) (map[int]map[string][]byte, error) {
	if len(byStream) == 0 {
		return nil, nil
	}
	replay, err := e.recordings.Open(ctx, caller, session)
	if errors.Is(err, recording.ErrNotFound) || errors.Is(err, recording.ErrErased) {
		return nil, nil // lost with its node, or made unreadable
	}
	if err != nil {
		return nil, err
	}
	out := map[int]map[string][]byte{}
	total := 0
	for f, err := range replay.Frames(ctx, recording.Range{}) {
		if err != nil {
			return nil, err
		}
		i, ok := byStream[fmt.Sprint(f.Recording, "/", f.Stream)]
		if !ok || total > maxDisclosed {
			continue
		}
		name := attest.Request
		if f.Dir == recording.Down {
			name = attest.Delivered
		}
		switch f.Kind {
		case recording.RequestHead, recording.ResponseHead, recording.HTTPBody, recording.SSE:
		default:
			continue
		}
		if out[i] == nil {
			out[i] = map[string][]byte{}
		}
		if f.Ref != nil {
			delete(out[i], name) // too long to disclose; it stays a commitment
			delete(byStream, fmt.Sprint(f.Recording, "/", f.Stream))
			continue
		}
		total += len(f.Data)
		out[i][name] = append(out[i][name], f.Data...)
	}
	return out, nil
}
