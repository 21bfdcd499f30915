package attest

import (
	"archive/zip"
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	logformat "github.com/transparency-dev/formats/log"
	cosignature "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

var began = time.Date(2026, 11, 20, 9, 30, 0, 123000, time.UTC)

// A testLog is a log in memory, with the keys of those around it.
type testLog struct {
	t       testing.TB
	origin  string
	hashes  []tlog.Hash // as tlog stores them
	size    int64
	signer  note.Signer
	witness note.Signer
	cosign  bool

	root, gateway, other, contain *Signer
	policy                        []byte
	keys                          map[*Signer]ed25519.PublicKey
}

func newLog(t testing.TB) *testLog {
	l := &testLog{t: t, origin: "estover.example/acme", keys: map[*Signer]ed25519.PublicKey{}}
	signer := func(name string) (*Signer, string) {
		pub, priv, err := ed25519.GenerateKey(nil)
		fatal(t, err)
		s, err := NewSigner(priv)
		fatal(t, err)
		vkey, err := VerifierKey(name, pub)
		fatal(t, err)
		l.keys[s] = pub
		return s, vkey
	}
	var rootKey, containKey, logKey, witnessKey string
	l.root, rootKey = signer("enrolment")
	l.contain, containKey = signer("containment")
	l.gateway, _ = signer("gateway-1")
	l.other, _ = signer("gateway-2")
	var err error
	logKey, l.signer = noteKey(t, l.origin)
	skey, witnessKey, err := note.GenerateKey(nil, "witness.example")
	fatal(t, err)
	l.witness, err = cosignature.NewSignerForCosignatureV1(skey)
	fatal(t, err)
	l.policy = fmt.Appendf(nil, "# Keys of acme\nlog %s\nwitness w %s\nenrolment %s\ncontainment %s\nquorum none\n", logKey, witnessKey, rootKey, containKey)
	return l
}

func noteKey(t testing.TB, name string) (vkey string, s note.Signer) {
	skey, vkey, err := note.GenerateKey(nil, name)
	fatal(t, err)
	s, err = note.NewSigner(skey)
	fatal(t, err)
	return vkey, s
}

func fatal(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (l *testLog) ReadHashes(at []int64) ([]tlog.Hash, error) {
	var out []tlog.Hash
	for _, i := range at {
		out = append(out, l.hashes[i])
	}
	return out, nil
}

// add puts a statement into the log.
func (l *testLog) add(statement []byte) (index int64) {
	hashes, err := tlog.StoredHashes(l.size, statement, l)
	fatal(l.t, err)
	l.hashes = append(l.hashes, hashes...)
	l.size++
	return l.size - 1
}

func (l *testLog) checkpoint(signers ...note.Signer) []byte {
	root, err := tlog.TreeHash(l.size, l)
	fatal(l.t, err)
	text := logformat.Checkpoint{Origin: l.origin, Size: uint64(l.size), Hash: root[:]}.Marshal()
	cp, err := note.Sign(&note.Note{Text: string(text)}, signers...)
	fatal(l.t, err)
	return cp
}

// entry is the statement at index, signed and with its proof.
func (l *testLog) entry(by *Signer, statement []byte, index int64) Entry {
	e, err := by.Sign(l.t.Context(), statement)
	fatal(l.t, err)
	p, err := tlog.ProveRecord(l.size, index, l)
	fatal(l.t, err)
	signers := []note.Signer{l.signer}
	if l.cosign {
		signers = append(signers, l.witness)
	}
	return Entry{e, Proof(index, p, l.checkpoint(signers...))}
}

func (l *testLog) enrolment(of *Signer, name string) []byte {
	return NewEnrolment(Enrolment{Gateway: name, Tenant: "acme", Time: began, Key: l.keys[of], NotAfter: began.Add(24 * time.Hour)}).AppendJSON(nil)
}

func (l *testLog) trust() *Trust {
	t, err := ParseTrust(l.policy)
	fatal(l.t, err)
	return t
}

var (
	salt      = Salt{1, 2, 3}
	request   = []byte("GET /v1/customers/7 HTTP/1.1\r\nAuthorization: ‹secret crm@3›\r\n\r\n")
	response  = []byte("HTTP/1.1 200 OK\r\n\r\n{\"name\":\"Ada\"}")
	bundle    = []byte("package estover\n")
	grantText = []byte(`{"id":"gra_1","agent":"agt_bot","purpose":"support","notBefore":"2026-11-20T09:00:00Z","notAfter":"2026-11-20T10:00:00Z",` +
		`"permissions":[{"resource":"res_crm","actions":["customer.*"]}]}`)
)

// call is what a gateway says about call number n.
func call(t testing.TB, n int64) *Statement {
	index := int64(0)
	return &Statement{
		Subjects: []Subject{{Request, Commit(salt, request)}, {Response, Commit(salt, response)}},
		Predicate: &Action{
			ID: fmt.Sprintf("call_%d", n), Tenant: "acme", Time: began.Add(time.Duration(n) * time.Second), Seq: n,
			Intent:    Intent{Digest: Sum([]byte("intent")), Index: &index},
			Agent:     Agent{ID: "agt_bot", JKT: "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I", Proof: AgentProof{ByMTLS, Sum([]byte("certificate"))}},
			Principal: Principal{Subject: Commit(salt, []byte("user:usr_ada")), Issuer: "https://estover.example", Act: []string{"agent:agt_bot"}},
			Grant:     GrantRef{Digest: Commit(salt, grantText), LogIndex: &index, NotAfter: began.Add(time.Hour), Purpose: "support"},
			Decision:  Decision{Result: Allow, Bundle: Sum(bundle), Revision: "2026-11-19.2", Input: Sum([]byte("input")), Rule: "starter.access", Obligations: []string{"receipt", "record"}},
			Call: Call{
				Protocol: "http", Revision: "1.1", Server: "crm.example:443", SPKI: Sum([]byte("spki")), Resource: "res_crm", Name: "customer.read",
				Method: "GET", Tool: "/v1/customers/{id}", Args: Commit(salt, []byte("id=7")), Secrets: []string{"sec_crm@3"},
			},
			Outcome:   Outcome{Status: 200, Result: Commit(salt, response), Duration: 1834},
			Recording: Recording{Session: "ses_1", Segment: "seg_1", Root: Sum([]byte("root"))},
		},
	}
}

var disclosures = []Disclosure{{Request, salt, request}, {Response, salt, response}, {GrantDocument, salt, grantText}}

// session is the export of a session of n calls.
func (l *testLog) session(n int64) Export {
	x := Export{Trust: l.policy, Bundles: [][]byte{bundle}}
	enrolment := l.enrolment(l.gateway, "gateway-1")
	at := l.add(enrolment)
	var statements [][]byte
	var places []int64
	for i := range n {
		s := call(l.t, i+1).AppendJSON(nil)
		statements, places = append(statements, s), append(places, l.add(s))
	}
	closing := NewSession(Session{ID: "ses_1", Tenant: "acme", Time: began.Add(time.Hour), Agent: "agt_bot", Count: n}).AppendJSON(nil)
	closed := l.add(closing)
	l.add([]byte("another session's"))
	x.Enrolments = []Entry{l.entry(l.root, enrolment, at)}
	for i, s := range statements {
		x.Receipts = append(x.Receipts, Receipt{Entry: l.entry(l.gateway, s, places[i]), Disclosures: disclosures})
	}
	e := l.entry(l.gateway, closing, closed)
	x.Closing = &e
	return x
}

func marshal(t testing.TB, f interface{ Marshal() ([]byte, error) }) []byte {
	t.Helper()
	b, err := f.Marshal()
	fatal(t, err)
	return b
}

// want says how each step has to end; those not named have to pass.
func want(t *testing.T, r *Report, steps map[string]Result) {
	t.Helper()
	for _, s := range r.Steps {
		w := steps[s.Name]
		if w == "" {
			w = Pass
		}
		if s.Result != w || s.Detail == "" {
			t.Errorf("step %s: %s (%s), want %s", s.Name, s.Result, s.Detail, w)
		}
	}
	for name := range steps {
		if r.Step(name).Name == "" {
			t.Errorf("step %s is not in the report", name)
		}
	}
	if t.Failed() {
		t.Logf("%s", r)
	}
}

func TestVerifySession(t *testing.T) {
	l := newLog(t)
	x := l.session(3)
	file := marshal(t, x)
	r := Verify(file, l.trust())
	want(t, r, nil)
	if !r.OK() || r.Kind != "session" || r.Session != "ses_1" || len(r.Calls) != 3 || len(r.Steps) != 11 {
		t.Errorf("report of a good session: %+v", r)
	}
	if !strings.HasSuffix(r.String(), "\n"+Limit) {
		t.Errorf("the report ends in\n%s", r)
	}
	t.Logf("\n%s", r)

	want(t, Verify(file, nil), map[string]Result{TrustStep: NotDisclosed})

	if again := marshal(t, l.reread(file)); !bytes.Equal(again, file) {
		t.Error("an export that is read and written again is another file")
	}
}

func (l *testLog) reread(file []byte) Export {
	x, err := ParseExport(file)
	fatal(l.t, err)
	return x
}

// A session that is still open, and one of which only the hashes are handed
// out, verify as far as they go.
func TestVerifyUndisclosed(t *testing.T) {
	l := newLog(t)
	x := l.session(2)
	x.Closing, x.Bundles = nil, nil
	x.Receipts[0].Disclosures = nil
	r := Verify(marshal(t, x), l.trust())
	want(t, r, map[string]Result{GrantStep: NotDisclosed, DecisionStep: NotDisclosed, BodiesStep: NotDisclosed, CompleteStep: NotDisclosed})
	if !r.OK() {
		t.Error("what is not disclosed counts as a failure")
	}
}

func TestVerifyReceipt(t *testing.T) {
	l := newLog(t)
	x := l.session(1)
	receipt := x.Receipts[0]
	receipt.Enrolments = x.Enrolments
	file := marshal(t, receipt)
	r := Verify(file, l.trust())
	want(t, r, map[string]Result{DecisionStep: NotDisclosed})
	if r.Kind != "receipt" || len(r.Steps) != 10 {
		t.Errorf("report of a receipt: %+v", r)
	}
	t.Logf("\n%s", r)
	want(t, Verify(file, nil), map[string]Result{TrustStep: Fail})
	for i := range file {
		file[i] ^= 1
		if Verify(file, l.trust()).OK() {
			t.Errorf("byte %d of %d was changed, and the receipt still verifies", i, len(file))
		}
		file[i] ^= 1
	}
}

// Whatever byte of an export is changed, and whichever way: it shows.
func TestVerifyEveryByte(t *testing.T) {
	l := newLog(t)
	file := marshal(t, l.session(2))
	trust := l.trust()
	for _, flip := range []byte{0x01, 0x20, 0x80} {
		for i := range file {
			file[i] ^= flip
			if Verify(file, trust).OK() {
				t.Errorf("byte %d of %d was changed by %#x, and the export still verifies", i, len(file), flip)
			}
			file[i] ^= flip
		}
	}
	for _, more := range [][]byte{append([]byte("x"), file...), append(file[:len(file):len(file)], 0), file[:len(file)-1], nil} {
		if Verify(more, trust).OK() {
			t.Errorf("an export of %d bytes in the place of %d verifies", len(more), len(file))
		}
	}
	if !Verify(file, trust).OK() {
		t.Error("the file as it was does not verify")
	}
}

// A forger who writes a file of the right form is caught by the step that
// looks at what was forged.
func TestVerifyForged(t *testing.T) {
	type forgery struct {
		name  string
		forge func(l *testLog, x *Export)
		fails []string
		also  map[string]Result
	}
	// resign is the first receipt with another statement, signed and logged
	// by those who may.
	resign := func(change func(s *Statement, a *Action)) func(l *testLog, x *Export) {
		return func(l *testLog, x *Export) {
			s := call(l.t, 1)
			change(s, s.Predicate.(*Action))
			b := s.AppendJSON(nil)
			x.Receipts[0].Entry = l.entry(l.gateway, b, l.add(b))
		}
	}
	disclose := func(name string, octets []byte) func(l *testLog, x *Export) {
		return func(l *testLog, x *Export) {
			r := &x.Receipts[0]
			r.Disclosures = append(append([]Disclosure{}, r.Disclosures...), Disclosure{Name: name, Salt: salt, Octets: octets})
		}
	}
	for _, f := range []forgery{
		{"the statement is changed under its signature", func(l *testLog, x *Export) {
			s := call(l.t, 1)
			s.Predicate.(*Action).Outcome.Status = 403
			x.Receipts[0].Envelope.Payload = base64.StdEncoding.EncodeToString(s.AppendJSON(nil))
		}, []string{SignatureStep, LogStep}, nil},
		{"signed by a gateway that nobody enrolled", func(l *testLog, x *Export) {
			b := call(l.t, 1).AppendJSON(nil)
			x.Receipts[0].Entry = l.entry(l.other, b, l.add(b))
		}, []string{SignatureStep}, nil},
		{"the gateway enrolled itself", func(l *testLog, x *Export) {
			b := l.enrolment(l.other, "gateway-2")
			x.Enrolments = append(x.Enrolments, l.entry(l.other, b, l.add(b)))
			b = call(l.t, 1).AppendJSON(nil)
			x.Receipts[0].Entry = l.entry(l.other, b, l.add(b))
		}, []string{SignatureStep}, nil},
		{"the enrolment comes after the statement", func(l *testLog, x *Export) {
			a := call(l.t, 1).AppendJSON(nil)
			at := l.add(a)
			b := l.enrolment(l.other, "gateway-2")
			x.Enrolments = append(x.Enrolments, l.entry(l.root, b, l.add(b)))
			x.Receipts[0].Entry = l.entry(l.other, a, at)
		}, []string{SignatureStep}, nil},
		{"the enrolment is not in the log", func(l *testLog, x *Export) {
			e, err := l.root.Sign(l.t.Context(), l.enrolment(l.other, "gateway-2"))
			fatal(l.t, err)
			x.Enrolments = append(x.Enrolments, Entry{e, x.Enrolments[0].Proof})
			b := call(l.t, 1).AppendJSON(nil)
			x.Receipts[0].Entry = l.entry(l.other, b, l.add(b))
		}, []string{SignatureStep}, nil},
		{"signed after the enrolment ended", resign(func(_ *Statement, a *Action) { a.Time = began.Add(48 * time.Hour) }), []string{SignatureStep, GrantStep}, nil},
		{"an enrolment key signs an action", func(l *testLog, x *Export) {
			b := call(l.t, 1).AppendJSON(nil)
			x.Receipts[0].Entry = l.entry(l.root, b, l.add(b))
		}, []string{SignatureStep}, nil},
		{"a second signature stands beside the first", func(l *testLog, x *Export) {
			e := &x.Receipts[0].Envelope
			e.Signatures = append(e.Signatures[:1:1], e.Signatures[0])
		}, []string{SignatureStep}, nil},
		{"the envelope claims another type of content", func(l *testLog, x *Export) {
			x.Receipts[0].Envelope.PayloadType = "application/json"
		}, []string{SignatureStep}, nil},
		{"the statement is no action", func(l *testLog, x *Export) { x.Receipts[0].Entry = *x.Closing }, []string{SignatureStep, CompleteStep}, nil},
		{"not in the log at all", func(l *testLog, x *Export) {
			b := call(l.t, 1)
			b.Predicate.(*Action).Outcome.Rows = 7
			e, err := l.gateway.Sign(l.t.Context(), b.AppendJSON(nil))
			fatal(l.t, err)
			x.Receipts[0].Envelope = e
		}, []string{LogStep}, nil},
		{"the proof is for another leaf", func(l *testLog, x *Export) {
			x.Receipts[0].Proof = x.Receipts[1].Proof
		}, []string{LogStep}, nil},
		{"a tree of the forger's own, signed by the forger", func(l *testLog, x *Export) {
			own := newLog(l.t)
			b := call(l.t, 1).AppendJSON(nil)
			own.add(b)
			b2, err := base64.StdEncoding.DecodeString(x.Receipts[0].Envelope.Payload)
			fatal(l.t, err)
			x.Receipts[0].Proof = own.entry(own.gateway, b2, own.add(b2)).Proof
		}, []string{CheckpointStep}, nil},
		{"the checkpoint claims another size than the log signed", func(l *testLog, x *Export) {
			x.Receipts[0].Proof = strings.Replace(x.Receipts[0].Proof, fmt.Sprintf("\n%s\n%d\n", l.origin, l.size), fmt.Sprintf("\n%s\n%d\n", l.origin, l.size+1), 1)
		}, []string{CheckpointStep}, nil},
		{"another log's key signs for this origin", func(l *testLog, x *Export) {
			key, s := noteKey(l.t, "other.example")
			l.policy = append(l.policy, "log "+key+"\n"...)
			l.signer = s
			b := call(l.t, 1).AppendJSON(nil)
			x.Receipts[0].Entry = l.entry(l.gateway, b, l.add(b))
		}, []string{CheckpointStep}, nil},
		{"no agent", resign(func(_ *Statement, a *Action) { a.Agent = Agent{} }), []string{AgentStep, GrantStep}, nil},
		{"a proof of an unknown kind", resign(func(_ *Statement, a *Action) { a.Agent.Proof.Kind = "voice" }), []string{AgentStep}, nil},
		{"a token alone", resign(func(_ *Statement, a *Action) { a.Agent.Proof.Kind = ByToken }), nil, map[string]Result{AgentStep: NotDisclosed}},
		{"no grant", resign(func(_ *Statement, a *Action) { a.Grant = GrantRef{} }), []string{GrantStep}, nil},
		{"another agent's grant", resign(func(_ *Statement, a *Action) { a.Agent.ID = "agt_eve" }), []string{GrantStep}, nil},
		{"another purpose", resign(func(_ *Statement, a *Action) { a.Grant.Purpose = "marketing" }), []string{GrantStep}, nil},
		{"after the grant's end", resign(func(_ *Statement, a *Action) { a.Time = a.Grant.NotAfter.Add(time.Second) }), []string{GrantStep}, nil},
		{"before the grant's beginning", resign(func(_ *Statement, a *Action) { a.Time = began.Add(-time.Hour) }), []string{GrantStep}, nil},
		{"an action outside of the grant", resign(func(_ *Statement, a *Action) { a.Call.Name = "customers.export" }), []string{GrantStep}, nil},
		{"another resource", resign(func(_ *Statement, a *Action) { a.Call.Resource = "res_mail" }), []string{GrantStep}, nil},
		{"another grant is disclosed", func(l *testLog, x *Export) {
			x.Receipts[0].Disclosures = []Disclosure{{Request, salt, request}, {Response, salt, response}, {GrantDocument, salt, append([]byte(" "), grantText...)}}
		}, []string{GrantStep}, nil},
		{"refused, and yet answered", resign(func(_ *Statement, a *Action) { a.Decision.Result = Deny }), []string{DecisionStep}, nil},
		{"refused", func(l *testLog, x *Export) {
			resign(func(s *Statement, a *Action) {
				a.Decision.Result, a.Outcome, a.Grant, s.Subjects = Deny, Outcome{}, GrantRef{}, s.Subjects[:1]
			})(l, x)
			x.Receipts[0].Disclosures = []Disclosure{{Request, salt, request}}
		}, nil, nil},
		{"neither allowed nor refused", resign(func(_ *Statement, a *Action) { a.Decision.Result = "maybe" }), []string{DecisionStep}, nil},
		{"no bundle", resign(func(_ *Statement, a *Action) { a.Decision.Bundle = Digest{} }), []string{DecisionStep}, nil},
		{"another bundle", func(l *testLog, x *Export) { x.Bundles = [][]byte{[]byte("package mine\n")} }, nil, map[string]Result{DecisionStep: NotDisclosed}},
		{"another body", func(l *testLog, x *Export) {
			x.Receipts[0].Disclosures = []Disclosure{{Request, salt, request}, {Response, salt, request}, {GrantDocument, salt, grantText}}
		}, []string{BodiesStep}, nil},
		{"a salt that is part of the body", func(l *testLog, x *Export) {
			x.Receipts[0].Disclosures = []Disclosure{{Name: DecisionInput, Octets: append(salt[:], request...)}}
		}, []string{BodiesStep}, map[string]Result{GrantStep: NotDisclosed}},
		{"a body that nobody signed", disclose("screenshot", []byte("png")), []string{BodiesStep}, nil},
		{"a body twice", disclose(Request, request), []string{BodiesStep}, nil},
		{"a call is left out", func(l *testLog, x *Export) { x.Receipts = append(x.Receipts[:1:1], x.Receipts[2:]...) }, []string{CompleteStep}, nil},
		{"the last call is left out", func(l *testLog, x *Export) { x.Receipts = x.Receipts[:2] }, []string{CompleteStep}, nil},
		{"a call is there twice", func(l *testLog, x *Export) { x.Receipts[0] = x.Receipts[1] }, []string{CompleteStep}, nil},
		{"a call too many", func(l *testLog, x *Export) {
			b := call(l.t, 4).AppendJSON(nil)
			x.Receipts = append(x.Receipts, Receipt{Entry: l.entry(l.gateway, b, l.add(b)), Disclosures: disclosures})
		}, []string{CompleteStep}, nil},
		{"a call of another session", resign(func(_ *Statement, a *Action) { a.Recording.Session = "ses_2" }), []string{CompleteStep}, nil},
		{"a closing statement of the forger's", func(l *testLog, x *Export) {
			x.Receipts = x.Receipts[:2]
			b := NewSession(Session{ID: "ses_1", Tenant: "acme", Time: began, Count: 2}).AppendJSON(nil)
			e := l.entry(l.other, b, l.add(b))
			x.Closing = &e
		}, []string{CompleteStep}, nil},
		{"a closing statement that is not in the log", func(l *testLog, x *Export) {
			x.Receipts = x.Receipts[:2]
			e, err := l.gateway.Sign(l.t.Context(), NewSession(Session{ID: "ses_1", Tenant: "acme", Time: began, Count: 2}).AppendJSON(nil))
			fatal(l.t, err)
			x.Closing = &Entry{e, x.Closing.Proof}
		}, []string{CompleteStep}, nil},
	} {
		t.Run(f.name, func(t *testing.T) {
			l := newLog(t)
			x := l.session(3)
			f.forge(l, &x)
			steps := map[string]Result{}
			for name, r := range f.also {
				steps[name] = r
			}
			for _, name := range f.fails {
				steps[name] = Fail
			}
			r := Verify(marshal(t, x), l.trust())
			want(t, r, steps)
			if r.OK() == (len(f.fails) > 0) {
				t.Errorf("OK is %v", r.OK())
			}
		})
	}
}

// A log that signs two trees of one size is found out by one file that holds
// a receipt from each.
func TestVerifyFork(t *testing.T) {
	l := newLog(t)
	x := l.session(2)
	size := l.size
	fork := *l
	fork.hashes, fork.size = nil, 0
	fork.add(l.enrolment(l.gateway, "gateway-1"))
	b := call(t, 2).AppendJSON(nil)
	at := fork.add(b)
	for fork.size < size {
		fork.add([]byte("other leaves"))
	}
	x.Receipts[1].Entry = fork.entry(l.gateway, b, at)
	want(t, Verify(marshal(t, x), l.trust()), map[string]Result{CheckpointStep: Fail})
}

func TestVerifyWitness(t *testing.T) {
	l := newLog(t)
	l.policy = bytes.Replace(l.policy, []byte("quorum none"), []byte("quorum w"), 1)
	alone := marshal(t, l.session(1))
	want(t, Verify(alone, l.trust()), map[string]Result{CheckpointStep: Fail, SignatureStep: Fail, CompleteStep: Fail})
	l = newLog(t)
	l.policy = bytes.Replace(l.policy, []byte("quorum none"), []byte("quorum w"), 1)
	l.cosign = true
	want(t, Verify(marshal(t, l.session(1)), l.trust()), nil)
}

func TestVerifyContainment(t *testing.T) {
	l := newLog(t)
	c := Containment{
		ID: "con_1", Tenant: "acme", Time: began, Target: "agent:agt_bot", By: Commit(salt, []byte("user:usr_ada")), Reason: Commit(salt, []byte("exfiltration")),
		Steps: []ContainmentStep{{Name: "sessions", State: "done", Count: 3, Micros: 800, Detail: Commit(salt, []byte("ses_1 ses_2 ses_3"))}, {Name: "tunnels", State: "done", Count: 2, Micros: 2100}},
		Zero:  2100,
	}
	b := NewContainment(c).AppendJSON(nil)
	r := Receipt{Entry: l.entry(l.contain, b, l.add(b))}
	want(t, Verify(marshal(t, r), l.trust()), map[string]Result{BodiesStep: NotDisclosed})
	r.Disclosures = []Disclosure{{ContainedBy, salt, []byte("user:usr_ada")}, {ContainedReason, salt, []byte("exfiltration")}, {"sessions", salt, []byte("ses_1 ses_2 ses_3")}}
	report := Verify(marshal(t, r), l.trust())
	want(t, report, nil)
	if report.Kind != "containment" {
		t.Errorf("kind %q", report.Kind)
	}
	r.Disclosures[1].Octets = []byte("a misunderstanding")
	want(t, Verify(marshal(t, r), l.trust()), map[string]Result{BodiesStep: Fail})
	r.Disclosures = nil
	r.Entry = l.entry(l.gateway, b, l.add(b))
	want(t, Verify(marshal(t, r), l.trust()), map[string]Result{SignatureStep: Fail})

	// Whatever can be contained is told, and a certificate of what did not come to
	// its end is none.
	for _, change := range []struct {
		what string
		fn   func(*Containment)
		want Result
	}{
		{"a blueprint", func(c *Containment) { c.Target = "blueprint:support" }, Pass},
		{"a person's agents", func(c *Containment) { c.Target = "person:usr_ada" }, Pass},
		{"a resource", func(c *Containment) { c.Target = "resource:res_crm" }, Pass},
		{"an organisation", func(c *Containment) { c.Target = "tenant:acme" }, Pass},
		{"everything", func(c *Containment) { c.Target = "everything" }, Pass},
		{"everything of somebody", func(c *Containment) { c.Target = "everything:acme" }, Fail},
		{"an agent of no name", func(c *Containment) { c.Target = "agent:" }, Fail},
		{"what goes on elsewhere", func(c *Containment) { c.Lingers = []string{"LDAP: What is bound stays so."} }, Pass},
		{"a planet", func(c *Containment) { c.Target = "planet:earth" }, Fail},
		{"no steps", func(c *Containment) { c.Steps = nil }, Fail},
		{"a step that failed", func(c *Containment) { c.Steps = []ContainmentStep{{Name: "sessions", State: "failed", Micros: 1}} }, Fail},
		{"steps out of order", func(c *Containment) { c.Steps = []ContainmentStep{c.Steps[1], c.Steps[0]} }, Fail},
		{"a time to zero before its last step", func(c *Containment) { c.Zero = 2099 }, Fail},
		{"no time to zero", func(c *Containment) { c.Zero = 0 }, Fail},
	} {
		changed := c
		change.fn(&changed)
		b := NewContainment(changed).AppendJSON(nil)
		report := Verify(marshal(t, Receipt{Entry: l.entry(l.contain, b, l.add(b))}), l.trust())
		if got := report.Step(ZeroStep); got.Result != change.want || report.OK() != (change.want == Pass) {
			t.Errorf("the certificate of %s: %s %s, want %s", change.what, got.Result, got.Detail, change.want)
		} else if said := strings.HasSuffix(got.Detail, "elsewhere: LDAP: What is bound stays so."); said != (len(changed.Lingers) > 0) { // Q8
			t.Errorf("the certificate of %s is read as %q", change.what, got.Detail)
		}
	}

	// What it says in words of its own is no step, and nothing but words.
	c.Lingers = []string{"LDAP.\nPASS           witnesses   Two of them.\x1b[2K\u202e"}
	b = NewContainment(c).AppendJSON(nil)
	report = Verify(marshal(t, Receipt{Entry: l.entry(l.contain, b, l.add(b))}), l.trust())
	text := report.String()
	if lines := strings.Count(text, "\n") - strings.Count(Limit, "\n"); lines != len(report.Steps) || strings.ContainsAny(text, "\x1b\u202e") {
		t.Errorf("%d steps are told in %d lines: %q", len(report.Steps), lines, text)
	}
}

func TestVerifyEmergency(t *testing.T) {
	l := newLog(t)
	e := Emergency{
		ID: "emr_1", Tenant: "acme", Time: began, Target: "agent:agt_bot", By: Commit(salt, []byte("user:usr_ada")), Reason: Commit(salt, []byte("a laptop")),
		Steps: []ContainmentStep{{Name: "containment", State: "done", Count: 1, Micros: 800}, {Name: "item2", State: "done", Micros: 2100, Detail: Commit(salt, []byte("secret db/orders"))}},
	}
	for _, change := range []struct {
		what string
		fn   func(*Emergency)
		want Result
	}{
		{"all that is to be done", func(*Emergency) {}, Pass},
		{"a secret that is pending", func(e *Emergency) { e.Steps[1].State, e.Pending = "pending", 1 }, Fail},
		{"a secret that is pending and not counted", func(e *Emergency) { e.Steps[1].State = "pending" }, Fail},
		{"more that is pending than there is", func(e *Emergency) { e.Pending = 1 }, Fail},
		{"nothing", func(e *Emergency) { e.Steps = nil }, Fail},
	} {
		changed := e
		changed.Steps = append([]ContainmentStep(nil), e.Steps...)
		change.fn(&changed)
		b := NewEmergency(changed).AppendJSON(nil)
		r := Receipt{Entry: l.entry(l.contain, b, l.add(b)), Disclosures: []Disclosure{
			{ContainedBy, salt, []byte("user:usr_ada")}, {ContainedReason, salt, []byte("a laptop")},
		}}
		if len(changed.Steps) > 0 {
			r.Disclosures = append(r.Disclosures, Disclosure{"item2", salt, []byte("secret db/orders")})
		}
		report := Verify(marshal(t, r), l.trust())
		if got := report.Step(ZeroStep); got.Result != change.want || report.OK() != (change.want == Pass) || report.Kind != "emergency rotation" {
			t.Errorf("the report of %s: %s %s, want %s", change.what, got.Result, got.Detail, change.want)
		}
	}
}

func TestParseTrust(t *testing.T) {
	key := func(name string) string { k, _ := noteKey(t, name); return k }
	a, b, c := key("a.example"), key("b.example"), key("c.example")
	for _, good := range []string{
		"log " + a + "\nquorum none",
		"  # a comment\n\nlog\t" + a + " https://a.example/ \nquorum none\n",
		"log " + a + "\nlog " + b + "\nwitness b " + b + " https://b.example\nwitness c " + c + "\ngroup both 2 b c\ngroup all all both\nquorum all\ngateway " + c,
	} {
		if _, err := ParseTrust([]byte(good)); err != nil {
			t.Errorf("%s\n%v", good, err)
		}
	}
	for name, bad := range map[string]string{
		"no quorum":               "log " + a,
		"no log":                  "quorum none",
		"two quorums":             "log " + a + "\nquorum none\nquorum none",
		"an unknown word":         "log " + a + "\nquorum none\ntrust me",
		"a key twice":             "log " + a + "\nlog " + a + "\nquorum none",
		"a witness's key twice":   "log " + a + "\nwitness b " + b + "\nwitness c " + b + "\nquorum b",
		"a name twice":            "log " + a + "\nwitness b " + b + "\nwitness b " + c + "\nquorum b",
		"the name none":           "log " + a + "\nwitness none " + b + "\nquorum none",
		"a witness in two groups": "log " + a + "\nwitness b " + b + "\nwitness c " + c + "\ngroup x any b\ngroup y all b c\nquorum y",
		"a threshold too high":    "log " + a + "\nwitness b " + b + "\ngroup x 2 b\nquorum x",
		"a threshold of zero":     "log " + a + "\nwitness b " + b + "\ngroup x 0 b\nquorum x",
		"a name before its line":  "log " + a + "\nquorum b\nwitness b " + b,
		"a carriage return":       "log " + a + "\r\nquorum none",
		"a broken key":            "log " + a[:len(a)-2] + "\nquorum none",
		"a wrong key hash":        "log " + strings.Replace(a, "a.example", "x.example", 1) + "\nquorum none",
		"a gateway without key":   "log " + a + "\nquorum none\ngateway",
	} {
		if _, err := ParseTrust([]byte(bad)); err == nil {
			t.Errorf("a trust policy with %s was taken:\n%s", name, bad)
		}
	}
}

// The quorum of C2SP's example: two of the X witnesses and one of the Ys.
func TestQuorum(t *testing.T) {
	l := newLog(t)
	text := "log " + func() string { k, s := noteKey(t, l.origin); l.signer = s; return k }() + "\n"
	signers := map[string]note.Signer{}
	for _, name := range []string{"X1", "X2", "X3", "Y1", "Y2", "Y3"} {
		skey, vkey, err := note.GenerateKey(nil, name+".example")
		fatal(t, err)
		signers[name], err = cosignature.NewSignerForCosignatureV1(skey)
		fatal(t, err)
		text += "witness " + name + " " + vkey + "\n"
	}
	text += "group X-witnesses 2 X1 X2 X3\ngroup Y-witnesses any Y1 Y2 Y3\ngroup X-and-Y all X-witnesses Y-witnesses\nquorum X-and-Y\n"
	trust, err := ParseTrust([]byte(text))
	fatal(t, err)
	l.add([]byte("leaf"))
	for by, ok := range map[string]bool{"": false, "X1 X2": false, "X1 Y1": false, "Y1 Y2 Y3": false, "X1 X3 Y2": true, "X1 X2 X3 Y1 Y2 Y3": true} {
		all := []note.Signer{l.signer}
		for _, name := range strings.Fields(by) {
			all = append(all, signers[name])
		}
		if _, err := trust.checkpoint(l.checkpoint(all...)); (err == nil) != ok {
			t.Errorf("cosigned by %q: %v, want it to count: %v", by, err, ok)
		}
	}
	if _, err := trust.checkpoint(l.checkpoint(signers["X1"], signers["X2"], signers["Y1"])); err == nil {
		t.Error("a checkpoint that the log did not sign counts")
	}
}

// The recipes of the export's README, with the tools that they name.
func TestStockTools(t *testing.T) {
	l := newLog(t)
	file := marshal(t, l.session(2))
	dir := t.TempDir()
	z, err := zip.NewReader(bytes.NewReader(file), int64(len(file)))
	fatal(t, err)
	fatal(t, os.CopyFS(dir, z))
	run := func(script string) string {
		c := exec.Command("sh", "-ec", script)
		c.Dir = dir
		out, err := c.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", script, err, out)
		}
		return string(out)
	}
	run("sha256sum -c SHA256SUMS")
	if got, want := run("sha256sum disclosed/000001/request"), Commit(salt, request).String(); !strings.HasPrefix(got, want) {
		t.Errorf("sha256sum of the disclosed request: %s, want %s", got, want)
	}
	if got := run("tail -c +33 disclosed/000002/response"); got != string(response) {
		t.Errorf("the response as it is disclosed: %q", got)
	}
	b, err := os.ReadFile(filepath.Join(dir, "receipts/000001.estover-receipt"))
	fatal(t, err)
	var first struct {
		DSSE  Envelope `json:"dsse"`
		Proof string   `json:"proof"`
	}
	fatal(t, json.Unmarshal(bytes.SplitAfter(b, []byte("\n"))[0], &first))
	payload, err := base64.StdEncoding.DecodeString(first.DSSE.Payload)
	fatal(t, err)
	if !bytes.Equal(payload, call(t, 1).AppendJSON(nil)) || !strings.HasPrefix(first.Proof, "c2sp.org/tlog-proof@v1\nindex 1\n") {
		t.Errorf("the first line of a receipt: %s", b)
	}
}

func TestMarshalRefuses(t *testing.T) {
	l := newLog(t)
	for name, change := range map[string]func(x *Export){
		"a disclosure's name that leaves its directory": func(x *Export) { x.Receipts[0].Disclosures = []Disclosure{{"../request", salt, request}} },
		"a salted name without a salt":                  func(x *Export) { x.Receipts[0].Disclosures = []Disclosure{{Name: Request, Octets: request}} },
		"a plain name with a salt":                      func(x *Export) { x.Receipts[0].Disclosures = []Disclosure{{DecisionInput, salt, request}} },
		"enrolments in a receipt":                       func(x *Export) { x.Receipts[0].Enrolments = x.Enrolments },
	} {
		x := l.session(1)
		change(&x)
		if _, err := x.Marshal(); err == nil {
			t.Errorf("an export with %s was written", name)
		}
	}
}
