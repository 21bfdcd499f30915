// Package directory knows the people: those who manage Estover, and those who
// answer for agents as their sponsors. A person has roles for the first and
// needs none for the second.
//
//	active ⇄ disabled        disabling ends the person's tokens, for good
//
// A person comes in by an enrolment, a value that is handed over once and
// exchanged once for a token of some hours:
//
//	enrolment:  open ──redeem──▶ consumed        a second redeem fails, and is on record
//	token:      live ──retire, expires_at, disable──▶ ended
//
// The same enrolment is exchanged in a browser for a first passkey and ten
// recovery codes ([Directory.Enrol]). By either a person signs in there, and
// the browser holds a token of a kind of its own, the visit:
//
//	passkey:        live ──end, disable, another enrolment──▶ ended
//	ssh key:        live ──end, disable, another enrolment──▶ ended
//	recovery code:  open ──recover, new codes, disable──▶ used
//	visit:          live ──sign out, another sign-in, idle, expires_at, disable──▶ ended
//
// People may also sign in at an OpenID provider that an administrator has set up
// ([Provider]). Who somebody is there is linked to a person once, by the subject
// that the provider has for them, and their roles may follow its claims. Whether
// what it says is true is checked by whoever calls [Directory.Federated].
//
// The first enrolment is made by [Directory.Bootstrap] for the person "admin",
// when nobody can come in yet. The last administrator can be neither disabled
// nor stripped of the role, so that there is always somebody.
//
// The operations on what people come in by have words of their own
// (person.invite, login.create, login.list, login.end): whoever may give
// credentials to agents may not thereby let somebody in as an administrator.
// What people do with their own passkeys and codes is passkey.create,
// passkey.list, passkey.end and recovery.create; with the ssh keys that they sign
// approvals with approver_key.create, approver_key.list and approver_key.end; providers are provider.put,
// provider.list, provider.read and provider.retire.
//
// Of enrolments and tokens only hashes are stored. Who a token belongs to is
// answered from memory ([Directory.Authenticate]); what is in memory is dropped
// when an event touches the person, under the kind "user".
package directory

import (
	"context"
	"encoding/hex"
	"errors"
	"strings"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// Options are what the directory needs of others.
type Options struct {
	// Left is called in the transaction that disables a person: what rests on
	// the person ends there. Nil does nothing.
	Left func(ctx context.Context, tx *guard.Tx, person string) error

	// MAC is a keyed digest of a tenant, by which the row of a key that people
	// approve with is known to have been written here. Nil: nobody signs anything.
	MAC func(tenant estover.TenantID, value []byte) []byte
}

// A Directory is the people of all tenants. It is safe for use by many at
// once.
type Directory struct {
	guard  *guard.Guard
	left   func(ctx context.Context, tx *guard.Tx, person string) error
	mac    func(tenant estover.TenantID, value []byte) []byte
	owners *guard.Cache[string]  // by the hash of a token: whose it is, which never changes
	people *guard.Cache[*holder] // by the person's id
}

// A holder is a person with the tokens that were live when it was loaded.
type holder struct {
	Person
	tokens []Token
}

// New is the directory behind the door g.
func New(g *guard.Guard, o Options) *Directory {
	d := &Directory{guard: g, left: o.Left, mac: o.MAC}
	if d.left == nil {
		d.left = func(context.Context, *guard.Tx, string) error { return nil }
	}
	d.owners = guard.NewCache(g, "person_token", func(ctx context.Context, tx *db.Tx, id string) (string, error) {
		hash, err := hex.DecodeString(id)
		if err != nil {
			return "", err
		}
		return tokenOwner(ctx, tx, hash)
	})
	d.people = guard.NewCache(g, "user", func(ctx context.Context, tx *db.Tx, id string) (*holder, error) {
		p, err := find(ctx, tx, id)
		if err != nil {
			return nil, err
		}
		tokens, err := tokensOf(ctx, tx, id)
		return &holder{p, tokens}, err
	})
	return d
}

// Bootstrap makes sure that an administrator can come in. As long as no
// administrator has ever had a token it returns an enrolment for one, and
// makes the person "admin" if there is none; afterwards it returns an empty
// secret. It is called at each start: an enrolment that was lost with its file
// is simply followed by another.
func (d *Directory) Bootstrap(ctx context.Context, tenant estover.TenantID) (estover.Secret, error) {
	var needed bool
	err := d.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		entered, err := administratorEntered(ctx, tx)
		needed = !entered
		return err
	})
	if err != nil || !needed {
		return estover.Secret{}, err
	}
	value, e := newEnrolment("", 0)
	id, system := estover.NewID("usr"), estover.System("bootstrap")
	caller := estover.Caller{Tenant: tenant, Subject: system, Strength: estover.ByBound}
	begin := func(tx *guard.Tx) error {
		admins, err := lockAdministrators(ctx, tx.Tx)
		if err != nil {
			return err
		}
		e := e
		e.Person = id
		if len(admins) > 0 {
			e.Person = admins[0]
		} else {
			p := Person{ID: id, Spec: Spec{Name: "admin", Roles: []estover.Role{estover.Admin}}, Epoch: 1}
			if err := insert(ctx, tx.Tx, p); err != nil {
				return err
			}
		}
		tx.SetTarget(string(estover.User(e.Person)))
		tx.Note("enrolment", e.ID)
		return insertEnrolment(ctx, tx.Tx, e, system)
	}
	err = d.guard.Do(ctx, caller, guard.Op{Action: "person.create"}, begin)
	if errors.Is(err, ErrNameTaken) { // another node was first, and its person is found now
		err = d.guard.Do(ctx, caller, guard.Op{Action: "person.create"}, begin)
	}
	if err != nil {
		return estover.Secret{}, err
	}
	return value, nil
}

// Alive checks inside a transaction that a caller of the kind user is what it
// was when it was recognised: not disabled, with the same roles, its token not
// ended. It is a part of the guard's Alive.
func (d *Directory) Alive(ctx context.Context, tx *db.Tx, caller estover.Caller) error {
	p, err := standingOf(ctx, tx, caller.Subject.ID(), caller.Grant)
	switch {
	case err != nil:
		return err
	case p.disabled:
		return ErrToken.With("The person %s is disabled. An administrator can enable them again.", p.name)
	case !strings.HasPrefix(caller.Grant, tokenPrefix+"_"):
		return nil
	case !p.live:
		return ErrToken
	case p.epoch != caller.Epoch:
		return db.ErrStale
	}
	return nil
}

// Sponsor checks inside a transaction that a person may answer for an agent:
// exists, and is active.
func (d *Directory) Sponsor(ctx context.Context, tx *db.Tx, id string) error {
	p, err := find(ctx, tx, id)
	if err == nil && p.Status == Disabled {
		return ErrDisabled
	}
	return err
}

// Active reports, from memory, whether there is such a person and is active.
func (d *Directory) Active(ctx context.Context, tenant estover.TenantID, id string) (bool, error) {
	h, err := d.people.Get(ctx, tenant, id)
	if estover.KindOf(err) == estover.NotFound {
		return false, nil
	}
	return err == nil && h.Status == Active && !h.over(d.guard.DB().Now()), err
}

// Name is, from memory, what a person is called; "" if there is no such person.
func (d *Directory) Name(ctx context.Context, tenant estover.TenantID, id string) (string, error) {
	h, err := d.people.Get(ctx, tenant, id)
	if estover.KindOf(err) == estover.NotFound {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return h.Name, nil
}
