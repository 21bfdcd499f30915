package incident

import (
	"context"
	"errors"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// A drill contains a decoy: an agent that was made for it, in a session, with a
// stream that is open through the gateway and calls that go on. What is measured
// is what a real containment would have taken here and now.
//
//	decoy made ─▶ stream open, calling ─▶ contained ─▶ refused, stream dead ─▶ on record, decoy retired

// The errors of drills.
var (
	ErrDrill      = &estover.Error{Kind: estover.Unavailable, Code: "drill_failed", Detail: "The drill could not be carried out. `estover drill list` says why."}
	ErrDrillBound = &estover.Error{Kind: estover.Invalid, Code: "drill_bound_invalid", Detail: "What a drill may take is between a millisecond and a minute.", Field: "bound_millis"}
	ErrDrillOnly  = &estover.Error{Kind: estover.Denied, Code: "drill_not_here", Detail: "Drills are held in the default tenant, for the whole server."}
)

// DrillBound is what a drill may take, unless it is said otherwise.
const DrillBound = time.Second

// A Drill is one that was held.
type Drill struct {
	ID            string          `json:"id"` // drl_…
	By            estover.Subject `json:"by"`
	At            time.Time       `json:"at"`
	Containment   string          `json:"containment,omitempty"`
	RefusedMicros int64           `json:"refused_micros"` // until a new call was refused
	StreamMicros  int64           `json:"stream_micros"`  // until the open stream was dead
	ZeroMicros    int64           `json:"zero_micros"`    // until nothing could act, as the certificate says
	BoundMicros   int64           `json:"bound_micros"`   // what all of it may take
	Slow          bool            `json:"slow"`           // it took longer, or failed
	Error         string          `json:"error,omitempty"`
}

// slow reports whether a drill is a reason for alarm.
func (d *Drill) slow() bool {
	return d.Error != "" || max(d.RefusedMicros, d.StreamMicros, d.ZeroMicros) > d.BoundMicros
}

// A Decoy is an agent that a drill contains.
type Decoy struct {
	Agent string
	Dead  <-chan time.Time                // hears when its stream has died
	Call  func(ctx context.Context) error // makes a call; an error if it was not allowed
	End   func(ctx context.Context) error // takes away what was made for it
}

// The action of the event that tells that a drill was too slow or failed.
const alarmAction = "drill.alarm"

// drillPatience bounds how long a drill waits for what should take moments.
const drillPatience = 20 * time.Second

// Drill contains a decoy and measures it. The result is kept whatever it is; one
// beyond the bound is an event of its own.
func (i *Incidents) Drill(ctx context.Context, caller estover.Caller, bound time.Duration) (Drill, error) {
	switch {
	case bound == 0:
		bound = DrillBound
	case bound < time.Millisecond || bound > time.Minute:
		return Drill{}, ErrDrillBound
	}
	if caller.Tenant != estover.DefaultTenant {
		return Drill{}, ErrDrillOnly
	}
	d := Drill{ID: estover.NewID("drl"), By: caller.Subject, BoundMicros: bound.Microseconds()}
	op := guard.Op{Action: "drill.run", Target: "drill:" + d.ID}
	decision, err := i.Guard.Admit(ctx, caller, op)
	if err != nil {
		return d, err
	}
	failed := i.measure(ctx, caller, &d)
	if failed != nil {
		d.Error = db.Short(failed.Error())
	}
	ctx = context.WithoutCancel(ctx) // it has happened, so it is kept
	err = i.Guard.Act(ctx, caller, op, decision, func(tx *guard.Tx) error {
		d.At, d.Slow = tx.Now(), d.slow()
		tx.Note("drill", d)
		return insertDrill(ctx, tx.Tx, d)
	})
	if err == nil && d.Slow {
		err = i.alarm(ctx, caller, d)
	}
	if err == nil && failed != nil {
		err = ErrDrill.Because(failed)
	}
	return d, err
}

// alarm puts on record, for those who are told of such things, that a drill was
// too slow or failed.
func (i *Incidents) alarm(ctx context.Context, caller estover.Caller, d Drill) error {
	system := estover.Caller{Tenant: caller.Tenant, Subject: estover.System("incident"), Request: caller.Request}
	op := guard.Op{Action: alarmAction, Target: "drill:" + d.ID, Detail: map[string]any{
		"zero_micros": d.ZeroMicros, "stream_micros": d.StreamMicros, "refused_micros": d.RefusedMicros, "bound_micros": d.BoundMicros, "error": d.Error,
	}}
	return i.Guard.Do(ctx, system, op, func(*guard.Tx) error { return nil })
}

// measure makes the decoy, contains it, and says how long everything took.
func (i *Incidents) measure(ctx context.Context, caller estover.Caller, d *Drill) (err error) {
	decoy, err := i.Decoy(ctx, caller)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, decoy.End(context.WithoutCancel(ctx)))
	}()
	if err := decoy.Call(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, drillPatience)
	defer cancel()
	begun := time.Now()
	refused := make(chan time.Time, 1)
	go func() {
		for decoy.Call(ctx) == nil && ctx.Err() == nil {
		}
		refused <- time.Now()
	}()
	system := estover.Caller{Tenant: caller.Tenant, Subject: estover.System("incident"), Request: caller.Request}
	c, err := i.Contain(ctx, system, Target{Agent, decoy.Agent}, "A drill.")
	d.Containment, d.ZeroMicros = c.ID, c.ZeroMicros
	if err != nil {
		return err
	}
	for range 2 {
		select {
		case at := <-decoy.Dead:
			d.StreamMicros = max(at.Sub(begun).Microseconds(), 1)
			decoy.Dead = nil
		case at := <-refused:
			d.RefusedMicros = max(at.Sub(begun).Microseconds(), 1)
		case <-ctx.Done():
			return errDrillLate
		}
	}
	return ctx.Err()
}

var errDrillLate = errors.New("the decoy was contained, but its stream or its calls went on for too long")

// Drills lists drills, the newest first.
func (i *Incidents) Drills(ctx context.Context, caller estover.Caller, limit int) (all []Drill, err error) {
	err = i.Guard.Read(ctx, caller, guard.Op{Action: "drill.list"}, func(tx *db.Tx) error {
		all, err = listDrills(ctx, tx, limit)
		return err
	})
	return all, err
}
