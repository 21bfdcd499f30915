package target

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/engine"
)

// A Login is how it went to log in at a target with one version of its admin's
// secret.
type Login struct {
	Version int64  `json:"version"`
	Current bool   `json:"current"` // it is the one that is worked with
	User    string `json:"user,omitempty"`
	OK      bool   `json:"ok"`
	Error   string `json:"error,omitempty"`

	unreachable bool
	silent      bool // nothing came in time
}

// Reached reports whether the target has answered, if only to refuse.
func (l Login) Reached() bool { return !l.unreachable }

// How long one log-in may take, and all of them at a target.
const (
	loginIn  = 10 * time.Second
	loginsIn = 20 * time.Second
)

// Logins logs in at a target with each version of its admin's secret that is here,
// the newest first (R13): a password that only a newer storage knew is how one locks
// oneself out after a restore. An older password of a user who has been let in is not
// tried, since many a target locks a user out who comes with wrong ones. Left is how
// many versions were not come to, since the target does not answer or takes too long.
// A target that does without an admin is worked at as nobody.
func (t *Targets) Logins(ctx context.Context, tenant estover.TenantID, id string) (all []Login, left int, err error) {
	x, err := t.copies.Get(ctx, tenant, id)
	if err != nil {
		return nil, 0, err
	}
	if x.Admin == "" {
		l := Login{Current: true}
		l.try(ctx, t, tenant, x, engine.Credential{})
		return []Login{l}, 0, nil
	}
	k, err := t.Kind(x.Kind)
	if err != nil {
		return nil, 0, err
	}
	host, err := k.Host(x.Address)
	if err != nil {
		return nil, 0, ErrInvalid.With("The address cannot be: %s.", err)
	}
	// That the secret is for this target at all is seen to as ever.
	if _, _, err := t.admin(ctx, tenant, x, host); err != nil {
		return nil, 0, err
	}
	caller := estover.Caller{Tenant: tenant, Subject: estover.System("target")}
	s, versions, err := t.secrets.Show(ctx, caller, x.Admin)
	if err != nil {
		return nil, 0, err
	}
	slices.SortFunc(versions, func(a, b secret.Version) int { return cmp.Compare(b.N, a.N) })
	over := time.Now().Add(loginsIn)
	in, silent := map[string]bool{}, false
	for _, v := range versions {
		if v.State != secret.Live {
			continue
		}
		if silent || time.Now().After(over) {
			left++
			continue
		}
		fields, err := t.secrets.Values(ctx, tenant, x.Admin, v.N)
		if errors.Is(err, secret.ErrNoVersion) {
			continue
		}
		if err != nil {
			return nil, 0, err
		}
		c := engine.Credential{User: string(fields[userField].Reveal()), Secret: fields[passwordField]}
		if c.Secret.Empty() {
			c.Secret = fields[secret.DefaultField]
		}
		if in[c.User] {
			continue
		}
		l := Login{Version: v.N, Current: v.N == s.CurrentVersion, User: c.User}
		l.try(ctx, t, tenant, x, c)
		in[c.User], silent = l.OK, l.silent
		all = append(all, l)
	}
	return all, left, nil
}

// try logs in.
func (l *Login) try(ctx context.Context, t *Targets, tenant estover.TenantID, x *Target, c engine.Credential) {
	limited, cancel := context.WithTimeout(ctx, loginIn)
	defer cancel()
	e, err := t.As(limited, tenant, x.ID, c)
	if err == nil {
		defer func() { _ = e.Close() }()
		if _, err = e.Now(limited); errors.Is(err, engine.ErrUnsupported) {
			_, err = e.List(limited, "e_none_")
		}
		if errors.Is(err, engine.ErrUnsupported) {
			err = e.Verify(limited, c)
		}
	}
	if l.OK = err == nil || errors.Is(err, engine.ErrUnsupported); l.OK {
		return
	}
	l.Error = err.Error()
	var known *estover.Error
	if errors.As(err, &known) {
		l.Error = known.Detail
	}
	l.Error = db.Short(l.Error)
	l.silent = errors.Is(err, context.DeadlineExceeded)
	l.unreachable = l.silent || errors.Is(err, engine.ErrUnreachable)
}
