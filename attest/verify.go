package attest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	logformat "github.com/transparency-dev/formats/log"
	"github.com/transparency-dev/formats/proof"
	"golang.org/x/mod/sumdb/tlog"
)

// Verify checks a receipt, a session's export or a certificate of containment
// against a trust policy. With a nil trust, an export is checked against the
// policy inside it, and the report says what that is worth.
//
// Verify reads nothing but its arguments. Whatever is wrong is a step that
// failed; after a damaged file nothing else is looked at.
func Verify(file []byte, trust *Trust) *Report {
	r := &Report{}
	x, err := read(file)
	if err != nil {
		r.add(FileStep, Fail, "The file is damaged or was changed: "+err.Error()+". Nothing else in it was checked.")
		return r
	}
	r.add(FileStep, Pass, "Every byte is covered by the file's digests.")
	if trust != nil {
		r.add(TrustStep, Pass, "Checked against the keys that the verifier brought.")
	} else if len(x.Trust) == 0 {
		r.add(TrustStep, Fail, "No trust policy was given, and this file brings none along.")
		return r
	} else {
		if trust, err = ParseTrust(x.Trust); err != nil {
			r.add(TrustStep, Fail, "No trust policy was given, and the file's own is of no use: "+err.Error()+".")
			return r
		}
		r.add(TrustStep, NotDisclosed, "Checked against the keys in the file itself: whoever made the file chose them. Bring a trust policy of your own.")
	}
	v := &verifier{trust: trust, checkpoints: map[string]seen{}, roots: map[string]logformat.Checkpoint{}, bundles: map[Digest]bool{}}
	for _, b := range x.Bundles {
		v.bundles[Sum(b)] = true
	}
	v.enrol(x.Enrolments)
	if len(x.Receipts) == 1 && x.only {
		switch predicateType(x.Receipts[0].Entry) {
		case ContainmentType:
			v.containment(r, "containment", x.Receipts[0])
			return r
		case EmergencyType:
			v.containment(r, "emergency rotation", x.Receipts[0])
			return r
		}
	}
	v.session(r, x)
	return r
}

func (r *Report) add(name string, result Result, detail string) {
	r.Steps = append(r.Steps, Step{name, result, detail})
}

// What was read of a file. A receipt alone is the export of one call.
type evidence struct {
	Export
	only bool // a receipt, not a session
}

func read(file []byte) (evidence, error) {
	if bytes.HasPrefix(file, []byte("PK")) {
		x, err := ParseExport(file)
		return evidence{x, false}, err
	}
	r, err := ParseReceipt(file)
	x := Export{Enrolments: r.Enrolments}
	r.Enrolments = nil
	x.Receipts = []Receipt{r}
	return evidence{x, true}, err
}

// A verifier holds what has been verified so far.
type verifier struct {
	trust       *Trust
	gateways    []gateway
	refused     error // why an enrolment did not count
	checkpoints map[string]seen
	roots       map[string]logformat.Checkpoint // by origin and size
	bundles     map[Digest]bool
}

// A seen is a checkpoint that has been checked.
type seen struct {
	cp  logformat.Checkpoint
	err error
}

// A gateway is an enrolled key.
type gateway struct {
	key
	origin              string // of the log that the enrolment stands in
	index               int64  // the enrolment's place there
	notBefore, notAfter time.Time
}

// A place is where a statement stands in a log.
type place struct {
	origin string
	index  int64
}

// claims are the sentences of steps that hold for many calls.
var claims = []Step{
	{SignatureStep, Pass, "the statement is signed by a gateway that may sign."},
	{LogStep, Pass, "the statement is a leaf of the log's tree."},
	{CheckpointStep, Pass, "the checkpoint is signed by the log, and witnessed as the trust policy asks."},
	{AgentStep, Pass, "as attested by the gateway, the agent showed its key."},
	{GrantStep, Pass, "the grant covers the action, or the call was refused."},
	{ApprovalStep, Pass, "what had to be approved was, by others than who asked for it."},
	{DecisionStep, Pass, "decided under the policy bundle that is disclosed."},
	{BodiesStep, Pass, "request and response are disclosed and have the signed hashes."},
}

// session verifies the receipts of a session, or one of them alone.
func (v *verifier) session(r *Report, x evidence) {
	r.Kind = "receipt"
	if !x.only {
		r.Kind = "session"
	}
	var actions []*Action
	for _, receipt := range x.Receipts {
		call, a := v.call(receipt)
		r.Calls = append(r.Calls, call)
		if a != nil {
			r.Session = a.Recording.Session
			actions = append(actions, a)
		}
	}
	if len(x.Receipts) > 0 {
		for _, c := range claims {
			r.Steps = append(r.Steps, together(c.Name, c.Detail, r.Calls))
		}
	}
	if !x.only {
		r.Steps = append(r.Steps, v.complete(x, actions))
	}
}

// call verifies one receipt. The action is nil if it could not be read.
func (v *verifier) call(r Receipt) (Verdict, *Action) {
	var c Verdict
	cp, at, notLogged := v.logged(r.Entry)
	by, notSigned := v.signed(r.Entry, at)
	s, a, err := action(r.Entry)
	if err == nil {
		c.ID, c.Seq, c.Agent, c.Action = a.ID, a.Seq, a.Agent.ID, strings.TrimSpace(a.Call.Method+" "+a.Call.Tool)
		notSigned = first(notSigned, by.during(a.Time))
	}
	c.Steps = append(c.Steps,
		failed(first(notSigned, err), SignatureStep, "Signed by the gateway %s.", by.name),
		failed(notLogged, LogStep, "The statement is leaf %d of %s.", at.index, at.origin),
		v.checkpointStep(cp))
	if err == nil {
		c.Steps = append(c.Steps, agentStep(a), v.grantStep(a, r.Disclosures), approvalStep(a, r.Disclosures), v.decisionStep(s, a, r.Disclosures), bodiesStep(s, r.Disclosures))
	}
	return c, a
}

// action reads the entry's statement, unverified.
func action(e Entry) (*Statement, *Action, error) {
	b, err := e.Envelope.DecodeB64Payload()
	if err != nil {
		return nil, nil, err
	}
	s, err := ParseStatement(b)
	if err != nil {
		return nil, nil, err
	}
	a, ok := s.Predicate.(*Action)
	if !ok {
		return nil, nil, fmt.Errorf("the statement is a %s, not an action", s.Predicate.Type())
	}
	return s, a, nil
}

// say is a step with its sentence.
func say(name string, result Result, format string, args ...any) Step {
	return Step{name, result, fmt.Sprintf(format, args...)}
}

// failed is the step that failed with err, or that passed if that is nil.
func failed(err error, name, format string, args ...any) Step {
	if err == nil {
		return say(name, Pass, format, args...)
	}
	text := err.Error()
	return Step{name, Fail, strings.ToUpper(text[:1]) + text[1:] + "."}
}

// first is the first of the errors that is one.
func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (v *verifier) checkpointStep(cp seen) Step {
	if v.trust.quorum == nil {
		return failed(cp.err, CheckpointStep, "The log signed its tree of %d leaves; the trust policy asks for no witness.", cp.cp.Size)
	}
	return failed(cp.err, CheckpointStep, "The log signed its tree of %d leaves, and the quorum of witnesses cosigned it.", cp.cp.Size)
}

// logged checks that the entry's statement is a leaf of the tree that the
// proof's checkpoint is about, and, apart from that, the checkpoint.
func (v *verifier) logged(e Entry) (cp seen, at place, err error) {
	var p proof.TLogProof
	if err := p.Unmarshal([]byte(e.Proof)); err != nil {
		err = fmt.Errorf("the proof cannot be read: %w", err)
		return seen{err: err}, place{}, err
	}
	cp = v.checkpoint(p.Checkpoint)
	b, err := e.Envelope.DecodeB64Payload()
	if err != nil {
		return cp, place{}, err
	}
	// The root is taken even if nobody trusted signed it, so that the two
	// steps fail each for its own reason.
	var root logformat.Checkpoint
	text, _, _ := bytes.Cut(p.Checkpoint, []byte("\n\n"))
	if _, err := root.Unmarshal(append(text, '\n')); err != nil {
		return cp, place{}, fmt.Errorf("the checkpoint cannot be read: %w", err)
	}
	if len(root.Hash) != tlog.HashSize || p.Index >= root.Size || root.Size > 1<<62 {
		return cp, place{}, errors.New("the proof is for a leaf outside of the tree")
	}
	hashes := make(tlog.RecordProof, len(p.Hashes))
	for i, h := range p.Hashes {
		hashes[i] = h
	}
	err = tlog.CheckRecord(hashes, int64(root.Size), tlog.Hash(root.Hash), int64(p.Index), tlog.RecordHash(b))
	if err != nil {
		return cp, place{}, errors.New("the statement is not the leaf that the proof is for")
	}
	return cp, place{root.Origin, int64(p.Index)}, nil
}

// checkpoint checks a checkpoint once.
func (v *verifier) checkpoint(signed []byte) seen {
	if s, ok := v.checkpoints[string(signed)]; ok {
		return s
	}
	var s seen
	s.cp, s.err = v.trust.checkpoint(signed)
	if s.err == nil {
		at := fmt.Sprintf("%s\n%d", s.cp.Origin, s.cp.Size)
		if other, ok := v.roots[at]; ok && !bytes.Equal(other.Hash, s.cp.Hash) {
			s.err = fmt.Errorf("the log %s signed two trees of %d leaves: it is forked", s.cp.Origin, s.cp.Size)
		}
		v.roots[at] = s.cp
	}
	v.checkpoints[string(signed)] = s
	return s
}

// enrol takes the keys that the trust policy and the enrolments admit. An
// enrolment that is wrong admits nobody, and is told to those who need it.
func (v *verifier) enrol(entries []Entry) {
	for _, k := range v.trust.gateways {
		v.gateways = append(v.gateways, gateway{key: k, index: -1})
	}
	for _, e := range entries {
		g, err := v.enrolment(e)
		if err != nil {
			v.refused = fmt.Errorf("an enrolment does not count: %w", err)
			continue
		}
		v.gateways = append(v.gateways, g)
	}
}

func (v *verifier) enrolment(e Entry) (gateway, error) {
	b, _, err := open(e.Envelope, v.trust.roots)
	if err != nil {
		return gateway{}, err
	}
	s, err := ParseStatement(b)
	if err != nil {
		return gateway{}, err
	}
	n, ok := s.Predicate.(*Enrolment)
	if !ok || len(n.Key) != 32 {
		return gateway{}, errors.New("the root of enrolment signed something else")
	}
	cp, at, err := v.logged(e)
	if err := first(err, cp.err); err != nil {
		return gateway{}, err
	}
	return gateway{key{n.Gateway, n.Key, KeyID(n.Key)}, at.origin, at.index, n.NotBefore, n.NotAfter}, nil
}

// signed checks the envelope against the gateways whose enrolment stands
// before the statement.
func (v *verifier) signed(e Entry, at place) (gateway, error) {
	var may []key
	var of []gateway
	late := false
	for _, g := range v.gateways {
		if g.index < 0 || at.origin == "" || g.origin == at.origin && g.index < at.index {
			may, of = append(may, g.key), append(of, g)
		} else {
			late = true
		}
	}
	_, k, err := open(e.Envelope, may)
	var unknown unknownKey
	if errors.As(err, &unknown) {
		switch {
		case v.refused != nil:
			err = fmt.Errorf("%w; %w", err, v.refused)
		case late:
			err = fmt.Errorf("%w before the statement", err)
		}
	}
	if err != nil {
		return gateway{}, err
	}
	return of[slices.IndexFunc(of, func(g gateway) bool { return g.id == k.id })], nil
}

// during checks that the gateway was enrolled at that time.
func (g gateway) during(t time.Time) error {
	if t.Before(g.notBefore) || !g.notAfter.IsZero() && t.After(g.notAfter) {
		return fmt.Errorf("the gateway %s was not enrolled on %s", g.name, t.Format(time.RFC3339))
	}
	return nil
}

// agentStep says what the agent showed. Without a signature of the agent's
// own over the request, the gateway's word is all there is.
func agentStep(a *Action) Step {
	p := a.Agent.Proof
	switch {
	case a.Agent.ID == "" || p.Digest.IsZero():
		return say(AgentStep, Fail, "The statement does not say which agent called, or what it showed.")
	case p.Kind == ByMTLS:
		return say(AgentStep, Pass, "As attested by the gateway: %s called over a connection opened with its client certificate (SHA-256 %.16s…).", a.Agent.ID, p.Digest)
	case p.Kind == ByToken:
		return say(AgentStep, NotDisclosed, "As attested by the gateway: %s showed a token, which no key of its own backs.", a.Agent.ID)
	}
	return say(AgentStep, Fail, "The proof %q is of no known kind.", p.Kind)
}

// grantStep checks that the grant covers the action.
func (v *verifier) grantStep(a *Action, disclosed []Disclosure) Step {
	if a.Decision.Result == Deny {
		return say(GrantStep, Pass, "The call was refused, so that no grant had to cover it.")
	}
	if a.Grant.Digest.IsZero() {
		return say(GrantStep, Fail, "The call was allowed, and the statement names no grant.")
	}
	if !a.Grant.NotAfter.IsZero() && a.Time.After(a.Grant.NotAfter) {
		return say(GrantStep, Fail, "The grant ended on %s, before the call.", a.Grant.NotAfter.Format(time.RFC3339))
	}
	d, ok := find(disclosed, GrantDocument)
	if !ok {
		return say(GrantStep, NotDisclosed, "The grant's document is not in the file; its end and purpose are as signed.")
	}
	if Sum(d.hashed()) != a.Grant.Digest {
		return say(GrantStep, Fail, "The grant that is disclosed is not the one that was signed.")
	}
	var g Grant
	if err := json.Unmarshal(d.Octets, &g); err != nil {
		return say(GrantStep, Fail, "The grant cannot be read: %v.", err)
	}
	return failed(g.covers(a), GrantStep, "The grant %s covers agent, purpose, time, resource and action.", g.ID)
}

// covers says why the grant does not cover the action.
func (g Grant) covers(a *Action) error {
	switch {
	case g.Agent != a.Agent.ID:
		return fmt.Errorf("the grant is for %s, not for %s", g.Agent, a.Agent.ID)
	case g.Purpose != a.Grant.Purpose:
		return fmt.Errorf("the grant is for the purpose %q, not for %q", g.Purpose, a.Grant.Purpose)
	case a.Time.Before(g.NotBefore) || !g.NotAfter.IsZero() && a.Time.After(g.NotAfter):
		return fmt.Errorf("the grant was not in force on %s", a.Time.Format(time.RFC3339))
	}
	for _, p := range g.Permissions {
		if p.Resource == a.Call.Resource && slices.ContainsFunc(p.Actions, func(pattern string) bool { return matches(pattern, a.Call.Name) }) {
			return nil
		}
	}
	return fmt.Errorf("no permission of the grant covers %q on %s", a.Call.Name, a.Call.Resource)
}

// matches reports whether a permission's action covers this one.
func matches(pattern, action string) bool {
	if pattern == "*" || pattern == action {
		return true
	}
	prefix, ok := strings.CutSuffix(pattern, "*")
	return ok && strings.HasSuffix(prefix, ".") && strings.HasPrefix(action, prefix)
}

// decisionStep checks the policy bundle that decided, and that the rest of
// the statement is what such a decision leads to.
func (v *verifier) decisionStep(s *Statement, a *Action, disclosed []Disclosure) Step {
	answered := a.Outcome.Status != 0 || slices.ContainsFunc(s.Subjects, func(s Subject) bool { return s.Name == Response })
	d, ok := find(disclosed, PolicyBundle)
	switch {
	case a.Decision.Result != Allow && a.Decision.Result != Deny:
		return say(DecisionStep, Fail, "The decision %q is neither allow nor deny.", a.Decision.Result)
	case a.Decision.Result == Deny && answered:
		return say(DecisionStep, Fail, "The call was refused, and yet has an answer.")
	case a.Decision.Bundle.IsZero():
		return say(DecisionStep, Fail, "The statement does not name the policy bundle that decided.")
	case ok && Sum(d.hashed()) != a.Decision.Bundle:
		return say(DecisionStep, Fail, "The policy bundle that is disclosed is not the one that decided.")
	case !ok && !v.bundles[a.Decision.Bundle]:
		return say(DecisionStep, NotDisclosed, "Decided %q under the policy bundle %.16s…, which is not in the file.", a.Decision.Result, a.Decision.Bundle)
	}
	return say(DecisionStep, Pass, "Decided %q under the policy bundle %.16s…, which is in the file.", a.Decision.Result, a.Decision.Bundle)
}

// bodiesStep checks the hashes of what was disclosed beside grant and bundle.
func bodiesStep(s *Statement, disclosed []Disclosure) Step {
	var match, missing []string
	want := commitments(s)
	have := map[string]bool{}
	for _, d := range disclosed {
		if d.Name == GrantDocument || d.Name == ApprovalRecord || d.Name == PolicyBundle {
			continue
		}
		digest, ok := want[d.Name]
		switch {
		case !ok || digest.IsZero():
			return say(BodiesStep, Fail, "The statement has no hash of %q.", d.Name)
		case have[d.Name]:
			return say(BodiesStep, Fail, "%q is disclosed twice.", d.Name)
		case Sum(d.hashed()) != digest:
			return say(BodiesStep, Fail, "What is disclosed as %q is not what was signed.", d.Name)
		}
		have[d.Name] = true
		match = append(match, d.Name)
	}
	for _, sub := range s.Subjects {
		if !have[sub.Name] {
			missing = append(missing, sub.Name)
		}
	}
	switch {
	case len(missing) == 0:
		return say(BodiesStep, Pass, "Disclosed, and as signed: %s.", strings.Join(match, ", "))
	case len(match) == 0:
		return say(BodiesStep, NotDisclosed, "The file has no bodies, only their hashes.")
	}
	return say(BodiesStep, NotDisclosed, "As signed: %s. Not in the file: %s.", strings.Join(match, ", "), strings.Join(missing, ", "))
}

// commitments are the hashes in a statement by what can be disclosed of it.
func commitments(s *Statement) map[string]Digest {
	m := map[string]Digest{}
	switch p := s.Predicate.(type) {
	case *Action:
		m[PrincipalName], m[DecisionInput] = p.Principal.Subject, p.Decision.Input
		m[ToolDefinition], m[CallArguments] = p.Call.Definition, p.Call.Args
		m[CallEffect], m[CallResult] = p.Call.Effect, p.Outcome.Result
		for _, sub := range s.Subjects {
			m[sub.Name] = sub.Digest
		}
	case *Containment:
		m[ContainedBy], m[ContainedReason] = p.By, p.Reason
		for _, step := range p.Steps {
			m[step.Name] = step.Detail
		}
	case *Emergency:
		m[ContainedBy], m[ContainedReason] = p.By, p.Reason
		for _, step := range p.Steps {
			m[step.Name] = step.Detail
		}
	}
	return m
}

func find(disclosed []Disclosure, name string) (Disclosure, bool) {
	i := slices.IndexFunc(disclosed, func(d Disclosure) bool { return d.Name == name })
	if i < 0 {
		return Disclosure{}, false
	}
	return disclosed[i], true
}

// complete checks the numbers of the calls against the closing statement.
func (v *verifier) complete(x evidence, actions []*Action) Step {
	if x.Closing == nil {
		return say(CompleteStep, NotDisclosed, "The session has no closing statement yet, so that its number of calls is not known.")
	}
	cp, at, notLogged := v.logged(*x.Closing)
	by, notSigned := v.signed(*x.Closing, at)
	if err := first(notSigned, notLogged, cp.err); err != nil {
		return failed(fmt.Errorf("the closing statement does not count: %w", err), CompleteStep, "")
	}
	b, err := x.Closing.Envelope.DecodeB64Payload()
	if err != nil {
		return failed(err, CompleteStep, "")
	}
	s, err := ParseStatement(b)
	if err != nil {
		return failed(err, CompleteStep, "")
	}
	closing, ok := s.Predicate.(*Session)
	if !ok {
		return say(CompleteStep, Fail, "The closing statement is a %s.", s.Predicate.Type())
	}
	if err := by.during(closing.Time); err != nil {
		return failed(err, CompleteStep, "")
	}
	if len(actions) < len(x.Receipts) {
		return say(CompleteStep, Fail, "%d of the receipts hold no action.", len(x.Receipts)-len(actions))
	}
	seen := map[int64]bool{}
	for _, a := range actions {
		switch {
		case a.Recording.Session != closing.ID || a.Tenant != closing.Tenant:
			return say(CompleteStep, Fail, "Call %d belongs to the session %s, not to %s.", a.Seq, a.Recording.Session, closing.ID)
		case a.Seq < 1 || a.Seq > closing.Count:
			return say(CompleteStep, Fail, "Call %d is not one of the session's %d.", a.Seq, closing.Count)
		case seen[a.Seq]:
			return say(CompleteStep, Fail, "There are two calls with the number %d.", a.Seq)
		}
		seen[a.Seq] = true
	}
	for n := int64(1); n <= closing.Count; n++ {
		if !seen[n] {
			return say(CompleteStep, Fail, "Call %d of the session's %d is missing (%d are there).", n, closing.Count, len(seen))
		}
	}
	return say(CompleteStep, Pass, "All %d calls of the session %s are there.", closing.Count, closing.ID)
}

// containment verifies a certificate of containment, or the report of an emergency
// rotation.
func (v *verifier) containment(r *Report, kind string, receipt Receipt) {
	r.Kind = kind
	b, k, notSigned := open(receipt.Envelope, v.trust.containment)
	cp, at, notLogged := v.logged(receipt.Entry)
	r.Steps = append(r.Steps,
		failed(notSigned, SignatureStep, "Signed by %s.", k.name),
		failed(notLogged, LogStep, "The statement is leaf %d of %s.", at.index, at.origin),
		v.checkpointStep(cp))
	if notSigned != nil {
		return
	}
	s, err := ParseStatement(b)
	if err != nil {
		r.Steps = append(r.Steps, failed(err, BodiesStep, ""))
		return
	}
	// The subject is the target's name, which the statement itself discloses.
	s.Subjects = nil
	step := bodiesStep(s, receipt.Disclosures)
	if len(receipt.Disclosures) == 0 {
		step = say(BodiesStep, NotDisclosed, "Who asked for it and why is not in the file, only the hashes.")
	}
	r.Steps = append(r.Steps, step, zeroStep(s.Predicate))
}

// zeroStep reads what was contained, and whether all that was done for it came to
// its end.
func zeroStep(p Predicate) Step {
	if e, ok := p.(*Emergency); ok {
		return rotatedStep(e)
	}
	c, ok := p.(*Containment)
	if !ok {
		return say(ZeroStep, Fail, "The statement is no certificate of a containment.")
	}
	kind, name, _ := strings.Cut(c.Target, ":")
	if known := kind == "everything" && name == "" || name != "" && slices.Contains([]string{"agent", "blueprint", "person", "resource", "tenant"}, kind); !known {
		return say(ZeroStep, Fail, "%q is nothing that can be contained.", c.Target)
	}
	last := int64(0)
	for _, step := range c.Steps {
		if step.State != "done" {
			return say(ZeroStep, Fail, "The step %q of the containment of %s is %s.", step.Name, c.Target, step.State)
		}
		if step.Micros < last || step.Count < 0 {
			return say(ZeroStep, Fail, "The step %q does not follow the one before.", step.Name)
		}
		last = step.Micros
	}
	if len(c.Steps) == 0 || c.Zero < last || c.Zero <= 0 {
		return say(ZeroStep, Fail, "It does not say when nothing of %s could act any more.", c.Target)
	}
	return say(ZeroStep, Pass, "Nothing of %s could act %s after it was asked for, at %s, by what the server saw that did it.%s", c.Target, time.Duration(c.Zero)*time.Microsecond, c.Time.Format(time.RFC3339), lingering(c.Lingers))
}

// lingering is what a statement says may go on elsewhere.
func lingering(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return " It says what may go on elsewhere: " + strings.Join(list, " ")
}

// rotatedStep reads whether all that somebody may have had is of no use any more.
func rotatedStep(e *Emergency) Step {
	open := int64(0)
	for _, step := range e.Steps {
		if step.State != "done" {
			open++
		}
	}
	switch {
	case len(e.Steps) == 0 || open != e.Pending:
		return say(ZeroStep, Fail, "It does not say what was done about %s.", e.Target)
	case open > 0:
		return say(ZeroStep, Fail, "%d of the %d things to be done about %s are not done.", open, len(e.Steps), e.Target)
	}
	return say(ZeroStep, Pass, "All %d things to be done about %s are done; it was asked for at %s.%s", len(e.Steps), e.Target, e.Time.Format(time.RFC3339), lingering(e.Lingers))
}
