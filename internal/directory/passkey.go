package directory

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// A Passkey is a key of a person that an authenticator keeps: a phone, a
// laptop, a security key. What is stored of it is public.
type Passkey struct {
	ID        string    `json:"id"` // psk_…
	Person    string    `json:"person"`
	Label     string    `json:"label"`
	CreatedAt time.Time `json:"created_at"`
	UsedAt    time.Time `json:"used_at,omitzero"`

	// Credential is how the authenticator names it, and Record all that is
	// needed to check its signatures, in the form of the WebAuthn library. The
	// record changes with each use.
	Credential []byte          `json:"-"`
	Record     json.RawMessage `json:"-"`

	// Public is the key by which it signs (SubjectPublicKeyInfo, RFC 5280), which
	// never changes and is the one in the record; nil of a passkey of before.
	Public  []byte `json:"-"`
	endedAt time.Time
	mac     []byte // see [Directory.genuine]
}

// maxPasskeys bounds the passkeys of one person.
const maxPasskeys = 20

// maxLabel is the longest label of a passkey, in bytes.
const maxLabel = 60

// Errors about passkeys.
var (
	// ErrPasskeyNotFound is returned when a person has no such passkey.
	ErrPasskeyNotFound = &estover.Error{Kind: estover.NotFound, Code: "passkey_not_found", Detail: "You have no such passkey."}
	// ErrPasskeyTaken is returned when the authenticator's key is registered already.
	ErrPasskeyTaken = &estover.Error{Kind: estover.Conflict, Code: "passkey_taken", Detail: "This passkey is registered already."}
	// ErrTooManyPasskeys is returned when a person has as many passkeys as one may.
	ErrTooManyPasskeys = &estover.Error{Kind: estover.TooMuch, Code: "too_many_passkeys", Detail: "A person may have 20 passkeys. Remove one first."}
	// ErrLastPasskey is returned when a person would be left without a passkey.
	ErrLastPasskey = &estover.Error{Kind: estover.Conflict, Code: "last_passkey", Detail: "This is your only passkey. Add another one first."}
	// ErrChallenge is returned for an answer to a challenge that was answered before.
	ErrChallenge = &estover.Error{Kind: estover.Unknown, Code: "challenge_answered", Detail: "This sign-in was completed before. Start again."}
	// ErrSignIn is returned when what was presented lets nobody in.
	ErrSignIn = &estover.Error{Kind: estover.Unknown, Code: "sign_in_failed", Detail: "This lets nobody in. If you lost your passkeys, use a recovery code, or ask an administrator for an invitation."}
)

// An Answer is the challenge that a passkey has signed. It is good once.
type Answer struct {
	Challenge string
	Expires   time.Time
}

// Passkeys shows the passkeys of a person, the oldest first.
func (d *Directory) Passkeys(ctx context.Context, caller estover.Caller, person string) (keys []Passkey, err error) {
	op := guard.Op{Action: "passkey.list", Target: string(estover.User(person))}
	err = d.guard.Read(ctx, caller, op, func(tx *db.Tx) error {
		keys, err = passkeysOf(ctx, tx, person)
		return err
	})
	return keys, err
}

// Holder is an active person with their passkeys, by the id that is the
// passkeys' user handle, for the check of a signature. It tells nothing to
// anybody; [ErrSignIn] if there is no such person.
func (d *Directory) Holder(ctx context.Context, tenant estover.TenantID, id string) (p Person, keys []Passkey, err error) {
	err = d.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		p, err = find(ctx, tx, id)
		if errors.Is(err, ErrNotFound) || err == nil && p.Status == Disabled {
			return ErrSignIn
		}
		if err != nil {
			return err
		}
		keys, err = passkeysOf(ctx, tx, id)
		// A row that was written by somebody else lets nobody in.
		keys = slices.DeleteFunc(keys, func(k Passkey) bool { return d.mac != nil && len(k.Public) > 0 && !d.genuine(tenant, k.approver()) })
		return err
	})
	return p, keys, err
}

// AddPasskey gives the caller, who is a person, another passkey.
func (d *Directory) AddPasskey(ctx context.Context, caller estover.Caller, k Passkey, a Answer) (Passkey, error) {
	if caller.Subject.Kind() != estover.UserKind || len(caller.Actors) > 0 {
		return k, ErrNotAPerson
	}
	k.ID, k.Person, k.Label = estover.NewID("psk"), caller.Subject.ID(), label(k.Label)
	op := guard.Op{Action: "passkey.create", Target: string(caller.Subject)}
	err := d.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		if err := answered(ctx, tx.Tx, a); err != nil {
			return err
		}
		if _, err := lock(ctx, tx.Tx, k.Person); err != nil {
			return err
		}
		return d.add(ctx, tx, &k)
	})
	return k, err
}

// add stores a passkey of a person whose row is locked.
func (d *Directory) add(ctx context.Context, tx *guard.Tx, k *Passkey) error {
	held, err := passkeysOf(ctx, tx.Tx, k.Person)
	if err != nil {
		return err
	}
	if len(held) >= maxPasskeys {
		return ErrTooManyPasskeys
	}
	k.CreatedAt = tx.Now()
	if len(k.Public) > 0 {
		k.mac = d.keyMAC(tx.Tenant(), k.approver())
	}
	tx.Note("passkey", k.ID)
	return insertPasskey(ctx, tx.Tx, *k)
}

// EndPasskey takes a passkey away from the caller, who is a person and keeps at
// least one.
func (d *Directory) EndPasskey(ctx context.Context, caller estover.Caller, id string) error {
	person := caller.Subject.ID()
	op := guard.Op{Action: "passkey.end", Target: string(caller.Subject), Detail: map[string]any{"passkey": id}}
	return d.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		if _, err := lock(ctx, tx.Tx, person); err != nil { // two may not take away the last two
			return err
		}
		held, err := passkeysOf(ctx, tx.Tx, person)
		if err != nil {
			return err
		}
		if len(held) == 1 && held[0].ID == id {
			return ErrLastPasskey
		}
		for _, k := range held {
			if k.ID == id {
				return d.endPasskey(ctx, tx.Tx, k)
			}
		}
		return ErrPasskeyNotFound
	})
}

// Signed stores the record of a passkey after it has signed an approval. Who
// approves by that is asked, and on record, where they do.
func (d *Directory) Signed(ctx context.Context, tenant estover.TenantID, k Passkey) error {
	return d.guard.DB().Do(ctx, tenant, func(tx *db.Tx) error { return usePasskey(ctx, tx, k) })
}

// endPasskey ends a passkey, whose row says so in its MAC from then on.
func (d *Directory) endPasskey(ctx context.Context, tx *db.Tx, k Passkey) error {
	k.endedAt = tx.Now()
	if len(k.mac) > 0 {
		k.mac = d.keyMAC(tx.Tenant(), k.approver())
	}
	return endPasskey(ctx, tx, k)
}

// endKeys ends the passkeys and the recovery codes of a person, and the ssh keys
// that they approve with.
func (d *Directory) endKeys(ctx context.Context, tx *db.Tx, person string) error {
	passkeys, err := passkeysOf(ctx, tx, person)
	if err != nil {
		return err
	}
	for _, k := range passkeys {
		if err := d.endPasskey(ctx, tx, k); err != nil {
			return err
		}
	}
	keys, err := approverKeysOf(ctx, tx, person)
	if err != nil {
		return err
	}
	for _, k := range keys {
		k.EndedAt = tx.Now()
		k.mac = d.keyMAC(tx.Tenant(), k)
		if err := endApproverKey(ctx, tx, k); err != nil {
			return err
		}
	}
	return replaceCodes(ctx, tx, person, nil)
}

// label is what a passkey is called, cut to its bound.
func label(s string) string {
	s = strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r == utf8.RuneError {
			return -1
		}
		return r
	}, s))
	for len(s) > maxLabel {
		_, size := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-size]
	}
	if s == "" {
		return "Passkey"
	}
	return s
}
