package directory

import (
	"bytes"
	"context"
	"crypto/hmac"
	"encoding/binary"
	"errors"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"estover.dev"
	"estover.dev/attest"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// An ApproverKey is a key by which a person signs what they approve: one of
// their passkeys, or an ssh key that they have registered for it. What is stored
// of it is public.
type ApproverKey struct {
	ID          string    `json:"id"` // psk_… or ssk_…
	Person      string    `json:"person"`
	Method      string    `json:"method"` // passkey or ssh
	Label       string    `json:"label"`
	Type        string    `json:"type,omitempty"`        // of an ssh key: ssh-ed25519, …
	Fingerprint string    `json:"fingerprint,omitempty"` // of an ssh key, as ssh-keygen -l prints it
	Verifies    bool      `json:"verifies,omitempty"`    // whether it must look who uses it, each time
	CreatedAt   time.Time `json:"created_at"`
	EndedAt     time.Time `json:"ended_at,omitzero"`

	Public []byte `json:"-"` // of a passkey its SubjectPublicKeyInfo, of an ssh key its wire form
	bound  []byte // what else the MAC covers: of a passkey the name that its authenticator has for it
	mac    []byte
}

// maxApproverKeys bounds the ssh keys of one person.
const maxApproverKeys = 10

// KeyFresh is how long ago somebody must have logged in, at most, to register a
// key: what they sign with it counts as their own hand.
const KeyFresh = 15 * time.Minute

// Errors about keys for approving.
var (
	// ErrKeyNotFound is returned when a person has no such key.
	ErrKeyNotFound = &estover.Error{Kind: estover.NotFound, Code: "approver_key_not_found", Detail: "There is no such key. `estover person key list` shows yours."}
	// ErrKeyTaken is returned when a key is, or was, registered by somebody.
	ErrKeyTaken = &estover.Error{Kind: estover.Conflict, Code: "approver_key_taken", Detail: "This key is registered already, or was. A key is one person's, once: make another."}
	// ErrKeyInvalid is returned for what cannot be a key for approving.
	ErrKeyInvalid = &estover.Error{Kind: estover.Invalid, Code: "approver_key_invalid", Detail: "This is no key by which approvals can be signed. Hand over the .pub file of an Ed25519 or ECDSA key.", Field: "public_key"}
	// ErrTooManyKeys is returned when a person has as many keys as one may.
	ErrTooManyKeys = &estover.Error{Kind: estover.TooMuch, Code: "approver_keys_too_many", Detail: "A person may have 10 ssh keys for approving. Retire one first."}
	// ErrKeyStale is returned when somebody who wants to register a key has logged
	// in too long ago.
	ErrKeyStale = &estover.Error{Kind: estover.Denied, Code: "approver_key_needs_login", Detail: "To register a key you must have logged in within the last 15 minutes. Log in again, by an invitation or with a passkey."}
	// ErrKeyAltered is returned for a key whose row was not written by Estover.
	ErrKeyAltered = &estover.Error{Kind: estover.Denied, Code: "approver_key_altered", Detail: "This key was not registered here as it is stored, so nothing that it signed counts. Tell your administrator: somebody may have written to the database."}
	// ErrKeyEnded is returned for a signature by a key after it was retired.
	ErrKeyEnded = &estover.Error{Kind: estover.Denied, Code: "approver_key_ended", Detail: "This key is retired. Sign with another one."}
)

// ParseSSHKey reads the line of a .pub file.
func ParseSSHKey(line string) (k ApproverKey, err error) {
	if len(line) > 4096 {
		return k, ErrKeyInvalid
	}
	pub, comment, options, rest, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil || len(options) > 0 || len(bytes.TrimSpace(rest)) > 0 {
		return k, ErrKeyInvalid.Because(err)
	}
	k = ApproverKey{Method: attest.BySSH, Label: label(comment), Public: pub.Marshal()}
	if comment == "" {
		k.Label = "ssh key"
	}
	if _, _, err := attest.ParseSSHKey(k.Public); err != nil {
		return k, ErrKeyInvalid.With("This key cannot sign approvals: %s.", err.Error())
	}
	k.describe()
	return k, nil
}

// describe works out what people tell an ssh key by.
func (k *ApproverKey) describe() {
	if k.Method != attest.BySSH {
		return
	}
	if pub, err := ssh.ParsePublicKey(k.Public); err == nil {
		k.Type, k.Fingerprint = pub.Type(), ssh.FingerprintSHA256(pub)
	}
}

// AddApproverKey registers an ssh key of the caller, who is a person and has
// logged in a short while ago.
func (d *Directory) AddApproverKey(ctx context.Context, caller estover.Caller, k ApproverKey) (ApproverKey, error) {
	if caller.Subject.Kind() != estover.UserKind || len(caller.Actors) > 0 {
		return k, ErrNotAPerson
	}
	_, hardware, err := attest.ParseSSHKey(k.Public)
	if err != nil {
		return k, ErrKeyInvalid.Because(err)
	}
	if k.Verifies && !hardware {
		return k, ErrKeyInvalid.With("Only a key in a security key can be made to look who uses it. Make one with `ssh-keygen -t ed25519-sk -O verify-required`.")
	}
	if d.mac == nil {
		return k, ErrKeyInvalid.With("Keys cannot be registered here.")
	}
	k.ID, k.Person, k.Method, k.Label, k.EndedAt = estover.NewID("ssk"), caller.Subject.ID(), attest.BySSH, label(k.Label), time.Time{}
	k.describe()
	op := guard.Op{Action: "approver_key.create", Target: string(caller.Subject), Detail: map[string]any{"key": k.ID, "fingerprint": k.Fingerprint}}
	err = d.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		if _, err := lock(ctx, tx.Tx, k.Person); err != nil {
			return err
		}
		since, err := proved(ctx, tx.Tx, k.Person, caller.Grant)
		if err != nil {
			return err
		}
		if tx.Now().Sub(since) > KeyFresh {
			return ErrKeyStale
		}
		held, err := approverKeysOf(ctx, tx.Tx, k.Person)
		if err != nil {
			return err
		}
		if len(held) >= maxApproverKeys {
			return ErrTooManyKeys
		}
		k.CreatedAt = tx.Now()
		k.mac = d.keyMAC(tx.Tenant(), k)
		return insertApproverKey(ctx, tx.Tx, k)
	})
	return k, err
}

// ApproverKeys shows the keys by which a person signs approvals, passkeys first.
// A passkey that was made before keys were sealed is not among them.
func (d *Directory) ApproverKeys(ctx context.Context, caller estover.Caller, person string) (keys []ApproverKey, err error) {
	op := guard.Op{Action: "approver_key.list", Target: string(estover.User(person))}
	err = d.guard.Read(ctx, caller, op, func(tx *db.Tx) error {
		keys = nil
		passkeys, err := passkeysOf(ctx, tx, person)
		if err != nil {
			return err
		}
		for _, k := range passkeys {
			if a := k.approver(); d.genuine(tx.Tenant(), a) {
				keys = append(keys, a)
			}
		}
		more, err := approverKeysOf(ctx, tx, person)
		keys = append(keys, more...)
		return err
	})
	return keys, err
}

// EndApproverKey retires an ssh key of the caller, or of somebody else if policy
// lets them. What it signed before still counts.
func (d *Directory) EndApproverKey(ctx context.Context, caller estover.Caller, person, id string) error {
	if len(caller.Actors) > 0 {
		return ErrNotAPerson
	}
	op := guard.Op{Action: "approver_key.end", Target: string(estover.User(person)), Detail: map[string]any{"key": id}}
	return d.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		k, err := findApproverKey(ctx, tx.Tx, person, id)
		if err != nil {
			return err
		}
		if !k.EndedAt.IsZero() {
			return ErrKeyNotFound
		}
		k.EndedAt = tx.Now()
		k.mac = d.keyMAC(tx.Tenant(), k)
		return endApproverKey(ctx, tx.Tx, k)
	})
}

// Approves is the key by which a person has signed something at a time, for the
// check of the signature: a passkey or an ssh key, as it was registered here.
func (d *Directory) Approves(ctx context.Context, tx *db.Tx, person, id string, at time.Time) (k ApproverKey, err error) {
	if strings.HasPrefix(id, "psk_") {
		var p Passkey
		p, err = findPasskey(ctx, tx, person, id)
		k = p.approver()
		if errors.Is(err, ErrPasskeyNotFound) {
			err = ErrKeyNotFound
		}
	} else {
		k, err = findApproverKey(ctx, tx, person, id)
	}
	switch {
	case err != nil:
		return k, err
	case !d.genuine(tx.Tenant(), k):
		return k, ErrKeyAltered
	case at.Before(k.CreatedAt) || !k.EndedAt.IsZero() && !at.Before(k.EndedAt):
		return k, ErrKeyEnded
	}
	return k, nil
}

// approver is a passkey as a key for approving. One without a public key of its
// own signs nothing.
func (k *Passkey) approver() ApproverKey {
	return ApproverKey{
		ID: k.ID, Person: k.Person, Method: attest.ByPasskey, Label: k.Label, Verifies: true, CreatedAt: k.CreatedAt, EndedAt: k.endedAt,
		Public: k.Public, bound: k.Credential, mac: k.mac,
	}
}

// genuine reports whether a key's row is as it was written here.
func (d *Directory) genuine(tenant estover.TenantID, k ApproverKey) bool {
	return d.mac != nil && len(k.Public) > 0 && hmac.Equal(k.mac, d.keyMAC(tenant, k))
}

// keyMAC is over everything that decides whose a key is and what it is good for.
func (d *Directory) keyMAC(tenant estover.TenantID, k ApproverKey) []byte {
	if d.mac == nil {
		return nil
	}
	var b []byte
	part := func(s []byte) { b = append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...) }
	at := func(t time.Time) {
		if t.IsZero() {
			part(nil)
			return
		}
		part(binary.BigEndian.AppendUint64(nil, uint64(t.UnixMicro())))
	}
	for _, s := range []string{k.Method, k.Person, k.ID} {
		part([]byte(s))
	}
	part(k.bound)
	part(k.Public)
	verifies := byte(0)
	if k.Verifies {
		verifies = 1
	}
	part([]byte{verifies})
	at(k.CreatedAt)
	at(k.EndedAt)
	return d.mac(tenant, b)
}
