package directory

import (
	"context"
	"crypto/sha256"
	"errors"
	"slices"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// Behind glass lies the way in when no administrator can come in any more: a set
// of codes, printed once, sealed, and held by different people. As many of them as
// the quorum wants, brought together, make an emergency administrator:
//
//	standing ──open, with a quorum of its codes──▶ opened      used up: make another set
//	    ├──another set──▶ ended
//	    └──(expires_at)──▶ ended
//
// The emergency administrator is a person of their own, for an hour: nothing that
// they make for themselves to come in with lasts longer, and the sweep disables
// them. That the glass was broken is an event that names the set, and an error in
// the log.

// The bounds of a set of codes.
const (
	MaxShares     = 20
	GlassLife     = 365 * 24 * time.Hour // unless something else is asked for
	MaxGlassLife  = 3 * 365 * 24 * time.Hour
	EmergencyLife = time.Hour
)

// The errors of breaking the glass.
var (
	// ErrGlassShape is returned for a set that cannot be.
	ErrGlassShape = &estover.Error{Kind: estover.Invalid, Code: "break_glass_invalid", Detail: "A set has between 2 and 20 codes, of which at least 2 are needed, and lasts three years at most."}
	// ErrGlass is returned when the glass stays whole. It does not say what was wrong.
	ErrGlass = &estover.Error{Kind: estover.Denied, Code: "break_glass_refused", Detail: "These are not enough good codes of the set that stands. Each is used once, and a later set ends those before."}
	// ErrGlassReason is returned when the glass is to be broken without a reason.
	ErrGlassReason = &estover.Error{Kind: estover.Invalid, Code: "break_glass_reason_missing", Detail: "Say why, in up to 500 characters: everybody will ask.", Field: "reason"}
	// ErrNoGlass is returned when there is no set of codes.
	ErrNoGlass = &estover.Error{Kind: estover.NotFound, Code: "break_glass_none", Detail: "There are no emergency codes. Make some with `estover break-glass codes create`, and keep them apart."}
)

// A Glass is a set of emergency codes.
type Glass struct {
	ID        string          `json:"id"` // gls_…
	Shares    int64           `json:"shares"`
	Quorum    int64           `json:"quorum"` // how many of them it takes
	CreatedAt time.Time       `json:"created_at"`
	CreatedBy estover.Subject `json:"created_by"`
	ExpiresAt time.Time       `json:"expires_at"`
	OpenedAt  time.Time       `json:"opened_at,omitzero"`
	Person    string          `json:"person,omitempty"` // who came in
}

// glassHash is what is stored of a code in its plain form.
func glassHash(plain string) [32]byte {
	return sha256.Sum256([]byte("emergency code " + plain))
}

// NewGlass makes a set of emergency codes in the place of the one that stands.
// They are shown once.
func (d *Directory) NewGlass(ctx context.Context, caller estover.Caller, shares, quorum int64, life time.Duration) ([]string, Glass, error) {
	if life == 0 {
		life = GlassLife
	}
	if shares < 2 || shares > MaxShares || quorum < 2 || quorum > shares || life < time.Hour || life > MaxGlassLife {
		return nil, Glass{}, ErrGlassShape
	}
	if caller.Subject.Kind() != estover.UserKind || len(caller.Actors) > 0 {
		return nil, Glass{}, ErrNotAPerson
	}
	var codes []string
	for int64(len(codes)) < shares {
		some, _ := newCodes()
		codes = append(codes, some...)
	}
	codes = codes[:shares]
	g := Glass{ID: estover.NewID("gls"), Shares: shares, Quorum: quorum, CreatedBy: caller.Subject}
	op := guard.Op{Action: "break_glass.create", Target: "break_glass:" + g.ID, Detail: map[string]any{"shares": shares, "quorum": quorum}}
	err := d.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		g.CreatedAt, g.ExpiresAt = tx.Now(), tx.Now().Add(life)
		if err := endGlass(ctx, tx.Tx); err != nil {
			return err
		}
		if err := insertGlass(ctx, tx.Tx, g); err != nil {
			return err
		}
		for _, c := range codes {
			plain, _ := plainCode(c)
			hash := glassHash(plain)
			if err := insertGlassCode(ctx, tx.Tx, g.ID, hash[:]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, Glass{}, err
	}
	return codes, g, nil
}

// Glass is the set of emergency codes that stands.
func (d *Directory) Glass(ctx context.Context, caller estover.Caller) (g Glass, err error) {
	err = d.guard.Read(ctx, caller, guard.Op{Action: "break_glass.read"}, func(tx *db.Tx) error {
		g, err = standingGlass(ctx, tx)
		return err
	})
	return g, err
}

// BreakGlass lets an emergency administrator in, for a quorum of the codes of the
// set that stands, and uses the set up. from says where the request comes from.
// Codes of which none is good leave no trace; others that are too few are on
// record.
func (d *Directory) BreakGlass(ctx context.Context, from estover.Caller, typed []string, reason string) (value estover.Secret, t Token, p Person, err error) {
	if reason == "" || len(reason) > 500 {
		return value, t, p, ErrGlassReason
	}
	if len(typed) > MaxShares {
		return value, t, p, ErrGlass
	}
	var hashes [][]byte
	for _, c := range typed {
		plain, ok := plainCode(c)
		if !ok {
			return value, t, p, ErrGlass
		}
		hash := glassHash(plain)
		if !slices.ContainsFunc(hashes, func(h []byte) bool { return string(h) == string(hash[:]) }) {
			hashes = append(hashes, hash[:])
		}
	}
	var g Glass
	good := int64(0)
	err = d.guard.DB().View(ctx, from.Tenant, func(tx *db.Tx) (err error) {
		if g, err = standingGlass(ctx, tx); err == nil {
			good, err = goodCodes(ctx, tx, g.ID, hashes)
		}
		return err
	})
	switch {
	case errors.Is(err, ErrNoGlass), err == nil && good == 0:
		return value, t, p, ErrGlass
	case err != nil:
		return value, t, p, err
	}
	p = Person{ID: estover.NewID("usr"), Spec: Spec{Name: "emergency-" + g.ID[4:12], Roles: []estover.Role{estover.Admin}}, Status: Active, ManagedBy: "break-glass", Epoch: 1}
	value, t = newToken(p.ID, "emergency")
	caller := from
	caller.Subject, caller.Roles, caller.Strength = estover.System("break-glass"), nil, estover.BySecret
	op := guard.Op{Action: "break_glass.open", Target: "break_glass:" + g.ID, Detail: map[string]any{"reason": reason, "codes": good, "quorum": g.Quorum}}
	err = d.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		if good < g.Quorum {
			tx.Fail(ErrGlass)
			return nil
		}
		opened, err := openGlass(ctx, tx.Tx, g.ID, p.ID)
		if err != nil {
			return err
		}
		if !opened { // somebody else was first
			tx.Fail(ErrGlass)
			return nil
		}
		p.CreatedAt, p.ExpiresAt = tx.Now(), tx.Now().Add(EmergencyLife)
		if err := insert(ctx, tx.Tx, p); err != nil {
			return err
		}
		if err := expirePerson(ctx, tx.Tx, p.ID, p.ExpiresAt); err != nil {
			return err
		}
		tx.Note("person", p.ID)
		return d.issue(ctx, tx, &t, EmergencyLife)
	})
	if err != nil {
		return estover.Secret{}, Token{}, Person{}, err
	}
	return value, t, p, nil
}

// EndEmergencies disables the people whose time is over, of all tenants. They
// cannot come in since that moment.
func (d *Directory) EndEmergencies(ctx context.Context) error {
	var due []db.Place
	err := d.guard.DB().View(ctx, "", func(tx *db.Tx) (err error) {
		due, err = expiredPeople(ctx, tx)
		return err
	})
	for _, at := range due {
		system := estover.Caller{Tenant: at.Tenant, Subject: estover.System("directory")}
		_, failed := d.Disable(ctx, system, at.ID, "The emergency is over.")
		if errors.Is(failed, ErrLastAdmin) { // nobody else is one yet; these are none any more either
			continue
		}
		err = errors.Join(err, failed)
	}
	return err
}

// over reports whether a person's own time is over.
func (p *Person) over(now time.Time) bool { return !p.ExpiresAt.IsZero() && !now.Before(p.ExpiresAt) }
