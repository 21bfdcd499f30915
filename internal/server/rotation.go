package server

import (
	"context"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/agent"
	"estover.dev/internal/db"
	"estover.dev/internal/directory"
	"estover.dev/internal/evidence"
	"estover.dev/internal/incident/emergency"
	"estover.dev/internal/pki"
	"estover.dev/internal/resource"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/rotation"
	"estover.dev/internal/secret/target"
	"estover.dev/internal/secret/upstream"
	"estover.dev/internal/session"
)

// rotating puts together what rotates secrets at targets.
func (s *Server) rotating() *rotation.Rotations {
	return rotation.New(rotation.Config{
		Copy:  s.glassCopy,
		Guard: s.guard, Secrets: s.facts.secrets, Target: s.rotationTarget, Engine: s.targets.Engine, As: s.targets.As, Risk: s.secretRisk,
		Certifier: s.certifier(), Node: s.claims(), Logger: s.logger,
		Keep: func(ctx context.Context, tx *db.Tx, id string) error {
			_, err := target.Lock(ctx, tx, id)
			return err
		},
		Sponsor: func(ctx context.Context, tx *db.Tx, id string) (string, error) {
			a, err := agent.Load(ctx, tx, id)
			if estover.KindOf(err) == estover.NotFound {
				return "", nil
			}
			if err != nil {
				return "", err
			}
			return a.Sponsor, nil
		},
		Over: func(ctx context.Context, tx *db.Tx, subject estover.Subject, id string, at time.Time) (bool, error) {
			switch {
			case id != "":
				return session.Over(ctx, tx, id)
			case subject.Kind() == estover.UserKind:
				stays, err := directory.Stays(ctx, tx, subject.ID(), at)
				return !stays, err
			}
			return subject.Kind() == estover.SystemKind, nil // a part of ours, which keeps nothing
		},
		Behind: func(ctx context.Context, tx *db.Tx, id string, version int64) (found []rotation.Laggard, err error) {
			places, err := upstream.Lagging(ctx, tx, id, version)
			for _, at := range places {
				found = append(found, rotation.Laggard{Way: rotation.BySync, Store: at.Store + " at " + at.Path, LastUse: at.Since, Drift: at.Drift})
			}
			return found, err
		},
	})
}

// glassCopy keeps a copy of what the next admin of a target logs in with, if
// somebody is to open those.
func (s *Server) glassCopy(ctx context.Context, t estover.TenantID, target, path string, version int64, values map[string]estover.Secret) error {
	if s.copies == nil {
		return nil
	}
	in, err := s.facts.secrets.Describe(ctx, t, path)
	if err != nil {
		return err
	}
	return s.copies.Write(t, target, path, version, in.CurrentVersion, s.db.Now(), values)
}

// rotationTarget is a target by its name or its id.
func (s *Server) rotationTarget(ctx context.Context, t estover.TenantID, name string) (rotation.Target, error) {
	id := name
	if !strings.HasPrefix(name, "tgt_") {
		var err error
		if id, err = s.targets.Named(ctx, t, name); err != nil {
			return rotation.Target{}, err
		}
	}
	x, err := s.targets.Snapshot(ctx, t, id)
	if err != nil {
		return rotation.Target{}, err
	}
	k, err := s.targets.Kind(x.Kind)
	if err != nil {
		return rotation.Target{}, err
	}
	host, err := k.Host(x.Address)
	at := rotation.Target{ID: x.ID, Name: x.Name, Admin: x.Admin, Host: host, Overlap: k.Overlap, Plain: k.Plain, Pair: k.Pair, Kind: k.Title, CheckedAt: x.CheckedAt}
	if k.Account != nil {
		at.Account = func(user string) string { return k.Account(x.Options, user) }
	}
	return at, err
}

// certifier has certificates made for secrets. Whoever may write a role may have
// everything certified that it allows, so it is for administrators to say which
// secrets are.
func (s *Server) certifier() rotation.Certifier {
	system := func(t estover.TenantID) estover.Caller {
		return estover.Caller{Tenant: t, Subject: estover.System("rotation")}
	}
	return rotation.Certifier{
		Check: func(ctx context.Context, c estover.Caller, u rotation.Subject) error {
			if !c.Has(estover.Admin) {
				return rotation.ErrNotOwner.With("Only an administrator has certificates made for a secret.")
			}
			_, err := s.pki.Role(ctx, c, u.Mount, pki.X509, u.Role)
			return err
		},
		Issue: func(ctx context.Context, t estover.TenantID, u rotation.Subject) (rotation.Issued, error) {
			c, err := s.pki.Issue(ctx, system(t), pki.Wish{
				Mount: u.Mount, Role: u.Role, CommonName: u.CommonName, Alternative: pki.Alternative{DNS: u.DNS, IPs: u.IPs, URIs: u.URIs},
				TTL: time.Duration(u.TTL) * time.Second,
			})
			if err != nil {
				return rotation.Issued{}, err
			}
			return rotation.Issued{
				Chain: strings.Join(append([]string{c.PEM}, c.Chain...), ""), Issuer: c.IssuingCA,
				Serial: c.Serial, Key: estover.NewSecret([]byte(c.PrivateKey)),
			}, nil
		},
		Revoke: func(ctx context.Context, t estover.TenantID, u rotation.Subject, serial string) error {
			_, err := s.pki.Revoke(ctx, system(t), u.Mount, pki.X509, serial, pki.Superseded, "a later certificate has taken its place")
			if k := estover.KindOf(err); k == estover.NotFound || k == estover.Invalid { // it has ended by itself
				return nil
			}
			return err
		},
	}
}

// secretRisk is how much harm a secret would do: as it is said of it, or by the
// class of the data that it opens, or by how risky those are held to be who use its
// current version, whichever is the most.
func (s *Server) secretRisk(ctx context.Context, t estover.TenantID, x secret.Secret) (secret.Risk, error) {
	risk := riskOf(x)
	if risk == secret.High {
		return risk, nil
	}
	err := s.guard.DB().View(ctx, t, func(tx *db.Tx) error {
		ids, err := secret.Agents(ctx, tx, x.ID, x.CurrentVersion)
		for _, id := range ids {
			a, failed := agent.Load(ctx, tx, id)
			if estover.KindOf(failed) == estover.NotFound {
				continue
			}
			if failed != nil {
				return failed
			}
			risk = withUser(risk, a.Risk.Band)
		}
		return err
	})
	return risk, err
}

func riskOf(x secret.Secret) secret.Risk {
	switch {
	case x.Class == estover.Restricted:
		return secret.High
	case x.Class == estover.Confidential && x.Spec.Risk == secret.Low:
		return secret.Standard
	}
	return x.Spec.Risk
}

// withUser is the risk of a secret that somebody of a band uses.
func withUser(risk secret.Risk, band agent.Band) secret.Risk {
	switch {
	case band == agent.HighRisk || band == agent.CriticalRisk:
		return secret.High
	case band == agent.RaisedRisk && risk == secret.Low:
		return secret.Standard
	}
	return risk
}

// undoing puts together what rotates in an emergency.
func (s *Server) undoing(ev *evidence.Evidence) *emergency.Emergencies {
	return emergency.New(emergency.Config{
		Guard: s.guard, Incidents: s.incidents, Evidence: ev, Secrets: s.facts.secrets, Rotations: s.rotations, Of: s.incidents.Covers,
		Slots: func(ctx context.Context, tx *db.Tx, id string) (paths []string, err error) {
			u, err := resource.Load(ctx, tx, id)
			if err != nil {
				return nil, err
			}
			for i := range u.Slots {
				if slot := &u.Slots[i]; slot.Static() {
					paths = append(paths, slot.Secret)
				}
			}
			return paths, nil
		},
		Known: func(ctx context.Context, tx *db.Tx, id string) error {
			_, err := agent.Load(ctx, tx, id)
			return err
		},
		Leases: s.leases, PKI: s.pki, Tickets: s.tickets, Logger: s.logger,
	})
}
