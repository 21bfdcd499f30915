package rotation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/engine"
)

// A Way is how somebody holds a version.
type Way string

// The ways.
const (
	ByGateway   Way = "gateway"   // the gateway injects it
	ByPlaintext Way = "plaintext" // it has read the value
	BySync      Way = "sync"      // a store to which the secret is pushed has not got the current one yet
	AtTarget    Way = "target"    // it is logged in at the target, whoever it is
)

// A Laggard is who holds up the retirement of a version (R8).
type Laggard struct {
	Way         Way             `json:"way"`
	Subject     estover.Subject `json:"subject,omitempty"` // an agent or a person; nobody of ours at the target
	Session     string          `json:"session,omitempty"`
	Sponsor     string          `json:"sponsor,omitempty"` // who answers for the agent
	LastUse     time.Time       `json:"last_use,omitzero"`
	Uses        int64           `json:"uses,omitempty"`
	Connections int64           `json:"connections,omitempty"` // that are open
	From        string          `json:"from,omitempty"`        // at the target: where it is logged in from
	Store       string          `json:"store,omitempty"`       // by sync: which, and where in it
	Drift       bool            `json:"drift,omitempty"`       // by sync: somebody else has changed what stands there
}

// ask begins R5: unless it is known already that somebody uses the previous
// version, every node is asked.
func (w *work) ask(ctx context.Context) (bool, error) {
	now := w.x.Guard.DB().Now()
	free := w.r.ForcedBy != "" || w.r.lapsed(now)
	if !free && now.Before(w.r.GraceUntil) {
		return false, w.later(ctx, func(time.Time) time.Time { return w.r.GraceUntil })
	}
	if !free {
		found, err := w.x.holders(ctx, w.tenant, w.r)
		if err != nil {
			return false, err
		}
		if len(found) > 0 {
			return false, w.refuse(ctx, found)
		}
	}
	if err := w.x.at("before ask"); err != nil {
		return false, err
	}
	err := w.move(ctx, "rotation.ask", map[string]any{"version": secret.VersionID(w.r.Secret, w.r.Previous)}, func(t *secret.Turn, n *Rotation) error {
		return t.Retire(n.Previous)
	}, func(_ *guard.Tx, n *Rotation) error {
		n.Step, n.epoch = Retiring, n.epoch+1
		return nil
	})
	if err != nil {
		return false, err
	}
	// This node answers at once; others hear of it within their second. What it cannot
	// answer is waited for, and told by who ticks.
	_ = w.x.Tick(ctx)
	return true, w.x.at("after ask")
}

// settle goes on with R5 when every node has answered: the version dies, or who
// holds it up is named.
func (w *work) settle(ctx context.Context) (bool, error) {
	var waits []string
	err := w.x.Guard.DB().View(ctx, w.tenant, func(tx *db.Tx) (err error) {
		waits, err = unanswered(ctx, tx, w.r)
		return err
	})
	if err != nil {
		return false, err
	}
	if len(waits) > 0 {
		return false, w.later(ctx, func(now time.Time) time.Time { return now.Add(time.Second) })
	}
	var found []Laggard
	if w.r.ForcedBy == "" && !w.r.lapsed(w.x.Guard.DB().Now()) {
		if found, err = w.x.holders(ctx, w.tenant, w.r); err != nil {
			return false, err
		}
		at, err := w.atTarget(ctx)
		if err != nil {
			return false, err
		}
		found = append(found, at...)
	}
	if len(found) > 0 {
		err := w.move(ctx, "rotation.refuse", refusal(w.r, found), func(t *secret.Turn, n *Rotation) error {
			return t.Keep(n.Previous)
		}, func(tx *guard.Tx, n *Rotation) error {
			n.Step, n.Laggards, n.Next = Grace, found, tx.Now().Add(n.again())
			return nil
		})
		if err != nil {
			return false, err
		}
		return false, nil
	}
	return true, w.move(ctx, "rotation.settle", map[string]any{"version": secret.VersionID(w.r.Secret, w.r.Previous)}, nil, func(_ *guard.Tx, n *Rotation) error {
		n.Step, n.Laggards = Scrambling, []Laggard{}
		return nil
	})
}

// again is how soon it is looked whether those who hold a version up are settled.
func (r *Rotation) again() time.Duration { return max(time.Second, min(askAgain, r.Grace()/4)) }

func refusal(r Rotation, found []Laggard) map[string]any {
	return map[string]any{"version": secret.VersionID(r.Secret, r.Previous), "laggards": found}
}

// refuse stores who holds the version up, and tells it when those are others than
// before.
func (w *work) refuse(ctx context.Context, found []Laggard) error {
	who := func(list []Laggard) (names []string) {
		for _, l := range list {
			names = append(names, string(l.Way)+" "+string(l.Subject)+" "+l.Session+" "+l.Store)
		}
		slices.Sort(names)
		return names
	}
	change := func(now time.Time, n *Rotation) { n.Laggards, n.Next = found, now.Add(n.again()) }
	if slices.Equal(who(found), who(w.r.Laggards)) {
		return w.store(ctx, change)
	}
	return w.move(ctx, "rotation.refuse", refusal(w.r, found), nil, func(tx *guard.Tx, n *Rotation) error {
		change(tx.Now(), n)
		return nil
	})
}

// late raises the alarm when a version is not retired after a second grace (R8), or
// when one that ends by itself has not been replaced.
func (w *work) late(ctx context.Context) error {
	waits := w.r.Step == Grace || w.r.Step == Retiring || w.r.Step == Scrambling
	now := w.x.Guard.DB().Now()
	if !w.r.LateAt.IsZero() {
		return nil
	}
	if w.r.ending(now) {
		detail := map[string]any{"version": secret.VersionID(w.r.Secret, w.r.Current), "expires_at": w.r.ExpiresAt, "why": w.r.LastError}
		return w.move(ctx, "rotation.late", detail, nil, func(tx *guard.Tx, n *Rotation) error {
			n.LateAt, n.LastError = tx.Now(), w.r.LastError
			return nil
		})
	}
	if !waits || now.Before(w.r.GraceUntil.Add(w.r.alarm())) {
		return nil
	}
	return w.move(ctx, "rotation.late", refusal(w.r, w.r.Laggards), nil, func(tx *guard.Tx, n *Rotation) error {
		n.LateAt = tx.Now()
		return nil
	})
}

// escalate has a version die although it is used, where its rotation says so and
// it has waited for long enough.
func (w *work) escalate(ctx context.Context) error {
	after := time.Duration(w.r.Escalate) * time.Second
	waits := w.r.Step == Grace || w.r.Step == Retiring
	if after == 0 || !waits || w.r.ForcedBy != "" || w.x.Guard.DB().Now().Before(w.r.GraceUntil.Add(after)) {
		return nil
	}
	return w.move(ctx, "rotation.escalate", refusal(w.r, w.r.Laggards), nil, func(tx *guard.Tx, n *Rotation) error {
		n.ForcedBy, n.Next = system(w.tenant).Subject, tx.Now()
		n.Reason = fmt.Sprintf("It was in use %s after its grace, for as long as its rotation lets it be.", after)
		return nil
	})
}

// holders are those who hold the previous version, by what is known here.
func (x *Rotations) holders(ctx context.Context, tenant estover.TenantID, r Rotation) (found []Laggard, err error) {
	if err := x.Secrets.Flush(ctx); err != nil {
		return nil, err
	}
	err = x.Guard.DB().View(ctx, tenant, func(tx *db.Tx) (err error) {
		found, err = x.held(ctx, tx, r)
		return err
	})
	return found, err
}

func (x *Rotations) held(ctx context.Context, tx *db.Tx, r Rotation) (found []Laggard, err error) {
	uses, err := secret.Holders(ctx, tx, r.Secret, r.Previous)
	if err != nil {
		return nil, err
	}
	type who struct {
		subject estover.Subject
		session string
	}
	gateway := map[who]int{}
	for _, u := range uses {
		l := Laggard{Way: Way(u.Via), Subject: u.Subject, Session: u.Session, LastUse: u.LastAt, Uses: u.Count}
		if u.Via == secret.Gateway {
			if u.LastAt.Add(r.quiet()).After(tx.Now()) {
				gateway[who{u.Subject, u.Session}] = len(found)
				found = append(found, l)
			}
			continue
		}
		if u.Newer || u.Via == secret.Synced { // stores are asked after by what they have
			continue
		}
		over := false
		if x.Over != nil {
			if over, err = x.Over(ctx, tx, u.Subject, u.Session, u.LastAt); err != nil {
				return nil, err
			}
		}
		if !over {
			found = append(found, l)
		}
	}
	open, err := stillOpen(ctx, tx, r)
	if err != nil {
		return nil, err
	}
	for _, c := range open {
		if i, ok := gateway[who{c.Subject, c.Session}]; ok {
			found[i].Connections += c.Count
			continue
		}
		gateway[who{c.Subject, c.Session}] = len(found)
		l := Laggard{Way: ByGateway, Subject: c.Subject, Session: c.Session, Connections: c.Count}
		for _, u := range uses {
			if u.Via == secret.Gateway && u.Subject == c.Subject && u.Session == c.Session {
				l.LastUse, l.Uses = u.LastAt, u.Count
			}
		}
		found = append(found, l)
	}
	if x.Behind != nil {
		stores, err := x.Behind(ctx, tx, r.Secret, r.Current)
		if err != nil {
			return nil, err
		}
		found = append(found, stores...)
	}
	for i, l := range found {
		if l.Subject.Kind() == estover.AgentKind && x.Sponsor != nil {
			if found[i].Sponsor, err = x.Sponsor(ctx, tx, l.Subject.ID()); err != nil {
				return nil, err
			}
		}
	}
	return found, nil
}

// atTarget are those who are logged in as the user of the version. A target that
// cannot say so has no say.
func (w *work) atTarget(ctx context.Context) (found []Laggard, err error) {
	if w.r.kind == SingleSlot || w.r.kind == Certificate { // the user is the same as that of the current version
		return nil, nil
	}
	err = w.effect(ctx, "look", func(ctx context.Context, e engine.Engine) error {
		sessions, err := e.Sessions(ctx, w.r.user(w.r.idle()))
		if errors.Is(err, engine.ErrUnsupported) || errors.Is(err, engine.ErrNoUser) {
			return nil
		}
		for _, s := range sessions {
			found = append(found, Laggard{Way: AtTarget, From: s.From, LastUse: s.Since, Connections: 1})
		}
		return err
	})
	return found, err
}

// Force ends the previous version although it is in use, or before its grace is
// over. It says who loses access, and why is on record.
func (x *Rotations) Force(ctx context.Context, c estover.Caller, path, why string) (Rotation, error) {
	op := guard.Op{Action: "rotation.force", Target: target(path), Effect: guard.Deletes, Detail: map[string]any{"reason": why}}
	if why == "" || len(why) > 500 {
		return Rotation{}, x.refused(ctx, c, op, ErrReason)
	}
	if err := x.Secrets.Flush(ctx); err != nil {
		return Rotation{}, err
	}
	var r Rotation
	err := x.Guard.Do(ctx, c, op, func(tx *guard.Tx) (err error) {
		if r, err = findPath(ctx, tx.Tx, path); err != nil {
			return err
		}
		if r.Step != Grace && r.Step != Retiring {
			return ErrNothing
		}
		if r.kind != Certificate && r.waits(tx.Now()) {
			return ErrWaits.With("%s", r.Waits)
		}
		found, err := x.held(ctx, tx.Tx, r)
		if err != nil {
			return err
		}
		for _, l := range r.Laggards {
			if l.Way == AtTarget {
				found = append(found, l)
			}
		}
		tx.Note("version", secret.VersionID(r.Secret, r.Previous))
		tx.Note("cut_off", found)
		r.ForcedBy, r.Reason, r.Laggards, r.Next = c.Subject, why, found, tx.Now()
		r.heldBy, r.heldUntil = "", time.Time{} // who has it only looks
		return save(ctx, tx.Tx, &r)
	})
	if err != nil {
		return Rotation{}, err
	}
	broken := r.Laggards
	ctx, late := context.WithoutCancel(ctx), time.After(x.patience)
	for over := false; ; {
		if err := x.advance(ctx, c.Tenant, r.Secret); err != nil && !errors.Is(err, errLost) {
			return r, err
		}
		if r, err = x.load(ctx, c.Tenant, path); err != nil || r.Step == Idle || over {
			r.Laggards = broken // who has lost access by this
			return r, err
		}
		if r.LastError != "" {
			return r, ErrFailed.With("Version %d of %s is not retired yet: %s. It is tried again.", r.Previous, path, r.LastError)
		}
		select {
		case <-late:
			over = true
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// An Explanation says how a rotation stands, and what it waits for.
type Explanation struct {
	Rotation
	Why   string   `json:"why"`                    // in sentences
	Nodes []string `json:"nodes" nullable:"false"` // that have not answered yet
}

// Explain says what a rotation waits for: who uses the version that is to retire,
// by which way, since when, and who answers for it.
func (x *Rotations) Explain(ctx context.Context, c estover.Caller, path string) (e Explanation, err error) {
	if err := x.Secrets.Flush(ctx); err != nil {
		return e, err
	}
	err = x.Guard.Read(ctx, c, guard.Op{Action: "rotation.read", Target: target(path)}, func(tx *db.Tx) error {
		e = Explanation{Nodes: []string{}}
		if e.Rotation, err = findPath(ctx, tx, path); err != nil {
			return err
		}
		if e.Previous > 0 {
			target := slices.DeleteFunc(slices.Clone(e.Laggards), func(l Laggard) bool { return l.Way != AtTarget })
			if e.Laggards, err = x.held(ctx, tx, e.Rotation); err != nil {
				return err
			}
			e.Laggards = append(e.Laggards, target...)
		}
		if e.Step == Retiring {
			if e.Nodes, err = unanswered(ctx, tx, e.Rotation); err != nil {
				return err
			}
		}
		if e.Laggards == nil {
			e.Laggards = []Laggard{}
		}
		e.Why = e.why(tx.Now())
		return nil
	})
	return e, err
}

// of names the user of a slot, or the key, after what leads to it; of certificates
// nothing.
func (r *Rotation) of(before, slot string) string {
	switch r.kind {
	case Certificate:
		return ""
	case Keys:
		before = strings.ReplaceAll(before, "user", "key")
	}
	return before + r.user(slot)
}

// why says it in sentences.
func (e Explanation) why(now time.Time) string {
	at := func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }
	var said []string
	say := func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) }
	switch e.Step {
	case Idle:
		if e.Current == 0 {
			say("There is no version yet.")
		} else {
			say("Version %d is the current one%s, and no other is good.", e.Current, e.of(", of the user ", e.Slot))
		}
		if e.Refused > 0 {
			say("The last time log-ins were refused for %s, as measured by logging in: there is one user, who has one password.", time.Duration(e.Refused)*time.Microsecond)
		}
		switch {
		case e.Stopped != "":
			say("No rotation begins at the target: %s.", strings.TrimSuffix(e.Stopped, "."))
		case e.DueAt.IsZero():
			say("The next is made when somebody says so.")
		default:
			say("The next is due at %s.", at(e.DueAt))
		}
	case Staged, Applied, Verified:
		if e.Pending == 0 {
			say("The next version is being asked for (%s).", e.Step)
		} else {
			say("Version %d is on its way%s (%s).", e.Pending, e.of(" to the user ", e.idle()), e.Step)
		}
		if e.Current > 0 {
			say("Version %d is used until then.", e.Current)
		}
	case Aborting:
		say("The next version has failed and is being taken back. Version %d is used as before.", e.Current)
	case Scrambling:
		switch e.kind {
		case Keys:
			say("Nobody uses version %d; its key %s is being deleted.", e.Previous, e.user(e.idle()))
		case Certificate:
			say("Nobody uses version %d; its certificate is being revoked.", e.Previous)
		default:
			say("Nobody uses version %d; the password of its user %s is being changed to one that nobody has.", e.Previous, e.user(e.idle()))
		}
	default:
		say("Version %d is the current one. Version %d is still good%s.", e.Current, e.Previous, e.of(", for the user ", e.idle()))
		switch {
		case e.ForcedBy != "":
			say("%s has it retired all the same: %s", e.ForcedBy, e.Reason)
		case len(e.Nodes) > 0:
			say("It waits for %d of the nodes to say that they use it no more.", len(e.Nodes))
		case now.Before(e.GraceUntil) && len(e.Laggards) == 0:
			say("Nobody uses it; it is kept until %s.", at(e.GraceUntil))
		case now.Before(e.GraceUntil):
			say("It is kept until %s, and longer while it is used.", at(e.GraceUntil))
		case len(e.Laggards) > 0:
			say("It should have retired at %s, and is in use.", at(e.GraceUntil))
		default:
			say("Nobody uses it, and it retires in a moment.")
		}
		for _, l := range e.Laggards {
			said = append(said, l.sentence(at, e.quiet()))
		}
	}
	if e.waits(now) {
		said = append(said, e.Waits)
	}
	if !e.ExpiresAt.IsZero() {
		say("Version %d ends by itself at %s.", e.Current, at(e.ExpiresAt))
	}
	if e.LastError != "" {
		say("The last time it failed: %s", e.LastError)
	}
	return strings.Join(said, " ")
}

func (l Laggard) sentence(at func(time.Time) string, quiet time.Duration) string {
	who := string(l.Subject)
	if l.Session != "" {
		who += " in session " + l.Session
	}
	if l.Sponsor != "" {
		who += ", for whom user:" + l.Sponsor + " answers,"
	}
	open := ""
	if l.Connections > 0 {
		open = fmt.Sprintf(" and has %d connections open", l.Connections)
	}
	switch l.Way {
	case ByGateway:
		return fmt.Sprintf("%s used it through the gateway, last at %s%s; it is settled after %s without use.", who, at(l.LastUse), open, quiet)
	case ByPlaintext:
		return fmt.Sprintf("%s has read its value, last at %s; it is settled when the current one is read, or the session or log-in ends.", who, at(l.LastUse))
	}
	if l.Way == BySync && l.Drift {
		return fmt.Sprintf("The store %s has not got the current version: somebody else has changed what stands there. `estover secret sync list` shows it.", l.Store)
	}
	if l.Way == BySync {
		return fmt.Sprintf("The store %s has not got the current version yet; it is tried again. `estover secret sync list` says why.", l.Store)
	}
	from := l.From
	if from == "" {
		from = "somewhere"
	}
	return fmt.Sprintf("Somebody is logged in at the target with it, from %s.", from)
}

// How long a node uses rotated secrets without saying again that it is there, and
// how often it says so. Each goes by its own clock, which may differ from another's
// by skew: for so much longer others wait for its answer.
const (
	nodeTime  = 15 * time.Second
	tickEvery = time.Second
	skew      = time.Minute
)

// Attend says on this node that it is there, and answers when versions are to
// retire, until ctx is done.
func (x *Rotations) Attend(ctx context.Context) error {
	t := time.NewTicker(tickEvery)
	defer t.Stop()
	failing := false
	for {
		err := x.Tick(ctx)
		if err != nil && !failing && ctx.Err() == nil {
			x.Logger.Error("this node could not say that it is there", "error", err)
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			return x.leave(last)
		case <-t.C:
		}
	}
}

// Standing says why this node may not use rotated secrets, if so: it has not been
// able to say that it is there, and others do not wait for its answers.
func (x *Rotations) Standing() error {
	if x.Guard.DB().Now().UnixMicro() >= x.until.Load() {
		return ErrNode
	}
	return nil
}

// Tick says once that this node is there, and answers what it is asked.
func (x *Rotations) Tick(ctx context.Context) error {
	var until time.Time
	var asked []question
	err := x.Guard.DB().Do(ctx, "", func(tx *db.Tx) error {
		until = tx.Now().Add(nodeTime)
		return present(ctx, tx, x.Node, until)
	})
	if err != nil {
		return err
	}
	x.until.Store(until.UnixMicro())
	err = x.Guard.DB().View(ctx, "", func(tx *db.Tx) (err error) {
		asked, err = questions(ctx, tx, x.Node)
		return err
	})
	if err != nil {
		return err
	}
	for _, q := range asked { // one that cannot be answered holds up no other
		if failed := x.answer(ctx, q); failed != nil {
			err = errors.Join(err, fmt.Errorf("about %s: %w", q.path, failed))
		}
	}
	return err
}

// answer says what this node has open with a version that is on its way out and,
// if it is asked that, that it uses it no more.
func (x *Rotations) answer(ctx context.Context, q question) error {
	var open []secret.Connection
	if q.asked {
		var err error
		if open, err = x.Secrets.Ended(ctx, q.tenant, q.path, q.secret, q.version); err != nil {
			return err
		}
	} else if open = x.Secrets.Carried(q.tenant, q.secret, q.version); slices.Equal(open, q.said) {
		return nil
	}
	return x.Guard.DB().Do(ctx, q.tenant, func(tx *db.Tx) error { return answer(ctx, tx, x.Node, q, open) })
}

// leave says that this node is going: nothing is open any more.
func (x *Rotations) leave(ctx context.Context) error {
	x.until.Store(0)
	return x.Guard.DB().Do(ctx, "", func(tx *db.Tx) error { return absent(ctx, tx, x.Node) })
}

// Plan brings forward what is due earlier than it was, since the risk of a secret
// has risen (R10), and lets rotations begin again at targets whose check has gone
// well since they were stopped (R11). It is called every minute.
func (x *Rotations) Plan(ctx context.Context) error {
	var all, stopped []db.Place
	err := x.Guard.DB().View(ctx, "", func(tx *db.Tx) (err error) {
		if stopped, err = findStopped(ctx, tx); err == nil {
			all, err = byRisk(ctx, tx)
		}
		return err
	})
	for _, at := range stopped {
		err = errors.Join(err, x.checked(ctx, at.Tenant, at.ID))
	}
	for _, at := range all {
		err = errors.Join(err, x.bringForward(ctx, at))
	}
	return err
}

func (x *Rotations) bringForward(ctx context.Context, at db.Place) error {
	var r Rotation
	err := x.Guard.DB().View(ctx, at.Tenant, func(tx *db.Tx) (err error) {
		r, err = find(ctx, tx, at.ID)
		return err
	})
	if err != nil {
		return err
	}
	risk, err := x.risk(ctx, at.Tenant, r.Path)
	if err != nil {
		return err
	}
	due := r.next(risk)
	if later := r.missed(due, x.Guard.DB().Now()); !later.IsZero() {
		due = later
	}
	if r.Step != Idle || r.Current == 0 || r.LastError != "" || !due.Before(r.DueAt) {
		return nil
	}
	op := guard.Op{Action: "rotation.bring_forward", Target: target(r.Path), Detail: map[string]any{"risk": risk, "due_at": due, "was": r.DueAt}}
	err = x.Guard.Do(ctx, system(at.Tenant), op, func(tx *guard.Tx) error {
		n := r
		n.DueAt = due
		n.wait()
		return save(ctx, tx.Tx, &n)
	})
	if errors.Is(err, errLost) {
		return nil
	}
	return err
}

// Late is how many versions of all tenants are in use after a second grace, for
// whoever measures.
func (x *Rotations) Late(ctx context.Context) (n int64, err error) {
	err = x.Guard.DB().View(ctx, "", func(tx *db.Tx) (err error) {
		n, err = countLate(ctx, tx)
		return err
	})
	return n, err
}
