package server

import (
	"context"
	"sync"
	"time"

	"estover.dev"
	"estover.dev/internal/audit"
	"estover.dev/internal/authzen"
	"estover.dev/internal/guard"
	"estover.dev/internal/job"
)

// startJobs starts what goes on beside the doors. The first list is of every
// node; the second is done by one node at a time.
func (s *Server) startJobs(ctx context.Context, wg *sync.WaitGroup) {
	each := func(name string, fn func(context.Context) error) {
		wg.Go(func() {
			if err := fn(ctx); err != nil && ctx.Err() == nil {
				s.logger.Error("a background task ended", "task", name, "error", err)
			}
		})
	}
	each("the log", s.log.Run)
	each("the log's followers", s.guard.Run)
	each("the spool", s.spool.Run)
	each("secrets", s.facts.secrets.Run)
	each("keys", s.every(10*time.Second, "the keys", func(ctx context.Context) error {
		if err := s.prepareTenants(ctx); err != nil { // that another node has added
			return err
		}
		if err := s.sealer.Sweep(ctx); err != nil {
			return err
		}
		return s.keys.Sweep(ctx)
	}))
	each("credentials", s.every(time.Minute, "the uses of credentials", s.facts.registry.SaveUses))
	each("uses of grants", s.every(time.Minute, "the uses of grants", s.facts.access.SaveUses))
	each("the file of the kill switch", s.watchFile)
	each("the newest checkpoints", s.remembering)
	each("heartbeat", s.every(time.Minute, "the heartbeat", s.heartbeat))
	each("what is under way", s.every(5*time.Second, "asking again about what is under way", s.duties.Recheck))
	each("sessions", s.facts.sessions.Run)
	each("leases", s.leases.Run)
	each("what this node has of versions that retire", s.rotations.Attend)

	jobs := job.New(s.db, job.Options{Node: s.claims(), Logger: s.logger})
	jobs.Every("session.expire", 5*time.Second, func(ctx context.Context) error {
		_, err := s.facts.sessions.ExpireDue(ctx)
		return err
	})
	jobs.While("channel.follow", func(ctx context.Context) error { return s.log.Follow(ctx, "notify", s.notify.Wants, s.notify.Take) })
	jobs.While("channel.send", s.notify.Run)
	jobs.Every("channel.sweep", time.Hour, s.notify.Sweep)
	jobs.Every("authzen.sweep", time.Hour, func(ctx context.Context) error { return authzen.Sweep(ctx, s.db) })
	jobs.Every("request.expire", 5*time.Second, func(ctx context.Context) error {
		_, err := s.requests.ExpireDue(ctx)
		return err
	})
	jobs.Every("request.escalate", 5*time.Second, func(ctx context.Context) error {
		_, err := s.requests.EscalateDue(ctx)
		return err
	})
	if every, err := s.config.drillEvery(); err == nil && every > 0 {
		jobs.Every("drill", every, s.drill)
	}
	jobs.Every("break_glass.expire", 30*time.Second, s.facts.people.EndEmergencies)
	jobs.Every("containment.resume", 10*time.Second, s.incidents.Resume)
	jobs.Every("emergency_rotation.resume", 15*time.Second, s.emergencies.Resume)
	jobs.Every("grant.decay", time.Hour, s.facts.access.Decay)
	jobs.Every("budget.sweep", 10*time.Minute, s.facts.access.Sweep)
	jobs.Every("certificate.sweep", certificateSweep, s.sweepCertificates)
	jobs.Every("authority.succeed", certificateSweep, s.succeedAuthorities)
	jobs.Every("transit.rotate", transitSweep, func(ctx context.Context) error {
		_, err := s.transit.RotateDue(ctx)
		return err
	})
	jobs.Every("store.push", time.Second, s.stores.PushDue)
	jobs.Every("store.fill", 5*time.Second, s.stores.FillDue)
	jobs.Every("store.sweep", 10*time.Minute, s.stores.Sweep)
	jobs.While("rotation.run", s.rotations.Work)
	jobs.Every("rotation.plan", time.Minute, s.rotations.Plan)
	jobs.Every("lease.alarm", 5*time.Second, s.leases.Alarm)
	jobs.Every("lease.stray", time.Minute, s.leases.DropStrays)
	jobs.Every("token.sweep", 10*time.Minute, func(ctx context.Context) error {
		_, err := s.tokens.Sweep(ctx)
		return err
	})
	jobs.Every("ticket.expire", 5*time.Second, s.tickets.ExpireDue)
	jobs.Every("ticket.sweep", 10*time.Minute, s.tickets.Sweep)
	jobs.Every("refresh.sweep", 10*time.Second, s.tokens.EraseSuccessors)
	jobs.Every("code.sweep", 30*time.Second, s.tokens.SweepCodes)
	jobs.Every("login.sweep", 10*time.Minute, s.facts.people.Sweep)
	jobs.While("sighting.follow", func(ctx context.Context) error { return s.log.Follow(ctx, "sightings", wantsSightings, s.sightings) })
	jobs.While("audit_device.write", s.devices.Run)
	jobs.Every("connection.renew", 5*time.Second, s.connected.RenewDue)
	jobs.Every("connection.revoke", 5*time.Second, s.connected.RevokeDue)
	jobs.Every("connection.sweep", 10*time.Minute, s.connected.Sweep)
	jobs.Every("api.sweep", time.Hour, s.api.Sweep)
	jobs.Every("recording.sweep", 6*time.Hour, func(ctx context.Context) error {
		_, err := s.recordings.Sweep(ctx, time.Hour)
		return err
	})
	jobs.Every("seal.rewrap", time.Hour, func(ctx context.Context) error {
		return s.eachTenant(ctx, func(ctx context.Context, t estover.TenantID) error {
			_, err := s.sealer.Rewrap(ctx, t)
			return err
		})
	})
	each("jobs", jobs.Run)
}

// every does something at once, and again each time that so much has passed.
// A failure is logged, and tried again the next time.
func (s *Server) every(d time.Duration, what string, fn func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		t := time.NewTicker(d)
		defer t.Stop()
		for {
			if err := job.Guarded(func() error { return fn(ctx) }); err != nil && ctx.Err() == nil {
				s.logger.Error("something that is done again and again failed", "task", what, "error", err)
			}
			select {
			case <-t.C:
			case <-ctx.Done():
				return nil
			}
		}
	}
}

// heartbeat writes what this gateway has counted since it started.
func (s *Server) heartbeat(ctx context.Context) error {
	e, err := s.duties.Heartbeat(s.db.Now(), s.boot).Event()
	if err != nil {
		return err
	}
	system := estover.Caller{Tenant: estover.DefaultTenant, Subject: estover.System("gateway")}
	op := guard.Op{Action: e.Action, Target: e.Target, Detail: e.Detail}
	decision, err := s.guard.Admit(ctx, system, op)
	if err != nil {
		return err
	}
	return s.guard.Record(ctx, system, op, decision, guard.Hot{Leaf: e.Leaf, Outcome: audit.Done})
}
