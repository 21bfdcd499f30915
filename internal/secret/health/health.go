// Package health looks at targets as a physician does: it asks each what an operator
// would want to know before anything is issued there, above all after a restore, and
// says what is wrong and what to do about it. It changes nothing.
//
// Looked at are: whether the target answers; whether each version of its admin's
// secret logs in, the newest first, and so both users of a pair (R12, R13); its clock;
// the rights of the admin; credentials that should be gone; users that bear our mark
// and of whom no lease knows; and when the admin's secret is rotated next.
package health

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/job"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/lease"
	"estover.dev/internal/secret/rotation"
	"estover.dev/internal/secret/target"
)

// A Report is what was found at one target.
type Report struct {
	Target    string         `json:"target"`
	Kind      string         `json:"kind"`
	OK        bool           `json:"ok"`
	Reachable bool           `json:"reachable"`
	Admin     string         `json:"admin,omitempty"`                 // the path of its secret
	Logins    []target.Login `json:"admin_logins" nullable:"false"`   // by its versions, the newest first
	Untried   int            `json:"admin_logins_untried,omitempty"`  // older versions that were not come to
	Slots     []string       `json:"admin_users" nullable:"false"`    // that take turns; none where one is not rotated
	Skew      int64          `json:"clock_ahead_micros"`              // how far the target's clock is ahead of ours
	Missing   []lease.Right  `json:"rights_missing" nullable:"false"` // those without which something is lost are no finding
	Open      int64          `json:"open"`                            // leases there that have not ended
	Overdue   int64          `json:"overdue"`
	Users     int            `json:"users"` // that bear our mark
	Strangers []string       `json:"users_without_lease" nullable:"false"`
	Next      time.Time      `json:"next_rotation,omitzero"` // of the admin's secret
	Findings  []Finding      `json:"findings" nullable:"false"`

	unlisted bool // its users cannot be listed
}

// A Finding is something that is wrong, and what to do about it.
type Finding struct {
	What   string `json:"what"`
	Remedy string `json:"remedy"`
}

// Doctor looks at targets. It is safe for use by many at once.
type Doctor struct {
	Guard     *guard.Guard
	Targets   *target.Targets
	Leases    *lease.Leases
	Rotations *rotation.Rotations
}

const (
	atOnce  = 4                // targets that are looked at side by side
	lookIn  = 30 * time.Second // how long one may take
	saveIn  = 10 * time.Second
	maxSkew = 5 * time.Second // by which a target's own expiry is later than ours
	mostBad = 50              // users without a lease that are named
)

// Examine looks at a target, or at all of them if name is empty.
func (d *Doctor) Examine(ctx context.Context, c estover.Caller, name string) ([]Report, error) {
	on := "target:*"
	if name != "" {
		on = "target:" + name
	}
	op := guard.Op{Action: "target.check", Target: on, Effect: guard.Manages}
	decision, err := d.Guard.Admit(ctx, c, op)
	if err != nil { // before anything is done at a target
		return nil, err
	}
	var ids []string
	err = d.Guard.DB().View(ctx, c.Tenant, func(tx *db.Tx) (err error) {
		if name != "" {
			x, err := target.FindNamed(ctx, tx, name)
			if err == nil {
				ids = []string{x.ID}
			}
			return err
		}
		ids, err = target.All(ctx, tx)
		return err
	})
	if err != nil {
		return nil, err
	}
	all := make([]Report, len(ids))
	failed := make([]error, len(ids))
	var busy sync.WaitGroup
	turn := make(chan struct{}, atOnce)
	for n, id := range ids {
		busy.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			limited, cancel := context.WithTimeout(ctx, lookIn)
			defer cancel()
			failed[n] = job.Guarded(func() (err error) { all[n], err = d.look(limited, c.Tenant, id); return err })
		})
	}
	busy.Wait()
	list, ill, unseen := make([]Report, 0, len(all)), []string{}, []string{}
	for n, r := range all {
		switch err := failed[n]; {
		case errors.Is(err, target.ErrNotFound): // removed a moment ago
			continue
		case err != nil:
			unseen = append(unseen, ids[n])
			r.find("Look at the server's log and at `estover doctor`, and try again: the fault is here, not there.", "It could not be looked at to the end: %s", told(err))
		}
		if list = append(list, r); !r.OK {
			ill = append(ill, r.Target)
		}
	}
	slices.SortFunc(list, func(a, b Report) int { return strings.Compare(a.Target, b.Target) })
	slices.Sort(ill)
	op.Detail = map[string]any{"targets": len(list), "ill": ill[:min(len(ill), mostBad)]}
	if len(unseen) > 0 {
		op.Detail["not_seen"] = unseen[:min(len(unseen), mostBad)]
	}
	// What was asked there is on record, also if nobody waits for the answer any more.
	saving, cancel := context.WithTimeout(context.WithoutCancel(ctx), saveIn)
	defer cancel()
	return list, d.Guard.Act(saving, c, op, decision, func(*guard.Tx) error { return nil })
}

// newReport is one in which nothing is said yet.
func newReport(name string) Report {
	return Report{Target: name, Logins: []target.Login{}, Slots: []string{}, Missing: []lease.Right{}, Strangers: []string{}, Findings: []Finding{}}
}

// find puts down something that is wrong, after what is to be done about it.
func (r *Report) find(remedy, what string, args ...any) {
	r.OK = false
	r.Findings = append(r.Findings, Finding{db.Short(fmt.Sprintf(what, args...)), remedy})
}

// look is one target. An error is our own: what the target does is a finding.
func (d *Doctor) look(ctx context.Context, tenant estover.TenantID, id string) (r Report, err error) {
	r = newReport(id)
	x, err := d.Targets.Snapshot(ctx, tenant, id)
	if err != nil {
		return r, err
	}
	r.Target, r.Kind, r.Admin, r.OK = x.Name, x.Kind, x.Admin, true
	var templates []engine.Template
	err = d.Guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		s, err := lease.StandingIn(ctx, tx, lease.Filter{Target: id})
		if err != nil {
			return err
		}
		r.Open, r.Overdue = s.Open, s.Overdue
		templates, err = lease.TemplatesAt(ctx, tx, id)
		return err
	})
	if err != nil {
		return r, err
	}
	if r.Overdue > 0 {
		r.find("estover secret lease list --overdue", "%d credentials should be gone there and are not.", r.Overdue)
	}
	if !x.DisabledAt.IsZero() {
		r.find("estover secret engine resume "+x.Name, "Nothing is issued there: %s", x.DisabledFor)
	}
	turn, err := d.turns(ctx, tenant, &r)
	if err != nil {
		return r, err
	}
	d.logIn(ctx, tenant, id, &r, turn)
	if slices.ContainsFunc(r.Logins, func(l target.Login) bool { return l.Current && l.OK }) {
		d.ask(ctx, tenant, id, templates, &r)
	}
	if !x.SuspectAt.IsZero() {
		remedy := "estover secret engine reconcile " + x.Name
		if r.unlisted {
			remedy += " --unlisted --reason …, which says first what nobody can see"
		}
		r.find(remedy, "The server was restored, and the target has not been compared with what is here since. Nothing is issued there, and no rotation does anything.")
	}
	return r, nil
}

// turns is how the admin's secret is rotated; nil if it is not.
func (d *Doctor) turns(ctx context.Context, tenant estover.TenantID, r *Report) (*rotation.Rotation, error) {
	if r.Admin == "" {
		return nil, nil
	}
	turn, err := d.Rotations.Get(ctx, estover.Caller{Tenant: tenant, Subject: estover.System("target")}, r.Admin)
	if errors.Is(err, rotation.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r.Slots, r.Next = append(r.Slots, turn.Users...), turn.DueAt
	switch {
	case turn.Stopped != "":
		r.find("estover rotation clear "+r.Target, "No rotation begins there: %s", turn.Stopped)
	case turn.LastError != "":
		r.find("estover rotation explain "+r.Admin, "The last rotation of %s did not go well: %s", r.Admin, turn.LastError)
	}
	return &turn, nil
}

// mend says how the admin gets back in whose current version does not log in. Good is
// a version that does; 0 if none. Nobody else writes versions of a secret that is
// rotated, so its rotation ends first; while one is under way it cannot end, and what
// can be changed is the password at the target.
func (r *Report) mend(turn *rotation.Rotation, current target.Login, good int64) string {
	write := "estover secret put " + r.Admin
	if good > 0 {
		write = fmt.Sprintf("estover secret rollback %s %d", r.Admin, good)
	}
	switch {
	case turn == nil:
		return write
	case turn.Step == rotation.Idle || current.Version == 0:
		return fmt.Sprintf("estover rotation remove %s, then %s, then have it rotated again with estover rotation put %s", r.Admin, write, r.Admin)
	}
	return fmt.Sprintf("A rotation is under way and goes on with what it has: give %s at the target the password that estover secret get %s --version %d --purpose … tells you.",
		current.User, r.Admin, current.Version)
}

// logIn tries the admin's versions.
func (d *Doctor) logIn(ctx context.Context, tenant estover.TenantID, id string, r *Report, turn *rotation.Rotation) {
	logins, left, err := d.Targets.Logins(ctx, tenant, id)
	if err != nil {
		r.find("estover secret engine check "+r.Target, "The admin cannot log in: %s", told(err))
		return
	}
	r.Logins, r.Untried = append(r.Logins, logins...), left
	r.Reachable = slices.ContainsFunc(logins, target.Login.Reached)
	if len(logins) == 0 {
		r.find(r.mend(turn, target.Login{}, 0), "The secret %s has no version that could log in.", r.Admin)
		return
	}
	good := int64(0)
	for _, l := range logins {
		if l.OK {
			good = max(good, l.Version)
		}
	}
	for _, l := range logins {
		switch {
		case l.OK || !l.Current:
		case good > 0 && l.Version > 0:
			r.find(r.mend(turn, l, good), "Version %d of %s does not log in, and version %d does: %s", l.Version, r.Admin, good, l.Error)
		default:
			r.find("Look whether it is there. If the password was changed elsewhere: "+r.mend(turn, l, 0), "The admin cannot log in: %s", l.Error)
		}
	}
	// The version before is good until it retires; those before it are so no more.
	if good > 0 && turn != nil && (turn.Step == rotation.Grace || turn.Step == rotation.Retiring) {
		for _, l := range logins {
			if !l.OK && l.Version == turn.Previous {
				r.find("estover rotation force "+r.Admin+" --reason …, which gives it another password", "%s, which took turns as the admin and is still in use, does not log in: %s", l.User, l.Error)
			}
		}
	}
	if left > 0 && r.Reachable {
		r.find("estover doctor targets "+r.Target, "%d older versions were not tried, since the target takes its time.", left)
	}
}

// ask is what only the admin can find out.
func (d *Doctor) ask(ctx context.Context, tenant estover.TenantID, id string, templates []engine.Template, r *Report) {
	err := d.Targets.Work(ctx, tenant, id, target.Making, true, func(ctx context.Context, e engine.Engine) error {
		skew, err := d.Targets.Clock(ctx, tenant, id, e)
		if err != nil {
			return err
		}
		r.Skew = skew.Microseconds()
		users, strangers, err := d.Leases.Strangers(ctx, tenant, e)
		switch {
		case errors.Is(err, engine.ErrUnsupported):
			r.unlisted = true
		case err != nil:
			return err
		default:
			r.Users = users
			r.Strangers = append(r.Strangers, strangers[:min(len(strangers), mostBad)]...)
			if len(strangers) > 0 {
				r.find("estover secret engine reconcile "+r.Target, "%d users there bear our mark, and no lease knows them.", len(strangers))
			}
		}
		in, can := e.(engine.Inspector)
		if !can {
			return nil
		}
		if len(templates) == 0 {
			templates = []engine.Template{nil}
		}
		for _, t := range templates {
			rights, err := in.Rights(ctx, t)
			if errors.Is(err, engine.ErrUnsupported) {
				return nil
			}
			if err != nil {
				return err
			}
			for _, one := range rights {
				if !one.Has && !slices.ContainsFunc(r.Missing, func(m lease.Right) bool { return m.Name == one.Name }) {
					r.Missing = append(r.Missing, lease.Right{Name: one.Name, Has: one.Has, Needed: one.Needed, Help: one.Help})
				}
			}
		}
		return nil
	})
	if err != nil {
		r.find("estover secret engine check "+r.Target, "It cannot be asked: %s", told(err))
	}
	for _, m := range r.Missing {
		if m.Needed {
			r.find(m.Help, "The admin may not %s.", m.Name)
		}
	}
	if skew := time.Duration(r.Skew) * time.Microsecond; skew.Abs() > maxSkew {
		r.find("Set both clocks by NTP: what ends at the target by itself ends by its clock.", "Its clock is %s from ours.", skew.Round(time.Millisecond))
	}
}

// told is an error for operators, in which there is no secret.
func told(err error) string {
	var no *engine.Refused
	if errors.As(err, &no) {
		return db.Short("the target refuses: " + no.Reason)
	}
	text := err.Error()
	var known *estover.Error
	if errors.As(err, &known) {
		text = known.Detail
	}
	return db.Short(text)
}
