package agent

import (
	"context"
	"crypto/hmac"
	"encoding/json"
	"fmt"
	"maps"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/opaque"
)

// A CredentialKind says how an agent proves who it is.
type CredentialKind string

// The kinds of credential.
const (
	ClientSecret CredentialKind = "secret"      // client_secret_basic, client_secret_post
	KeySet       CredentialKind = "jwks"        // private_key_jwt, self_signed_tls_client_auth
	Certified    CredentialKind = "certificate" // tls_client_auth
)

// A Credential is something that an agent proves itself with.
type Credential struct {
	ID          string          `json:"id"` // crd_…
	Agent       string          `json:"agent"`
	Kind        CredentialKind  `json:"kind"`
	Label       string          `json:"label,omitempty"`
	Backup      bool            `json:"backup,omitempty"`      // see [Wanted]
	JWKS        json.RawMessage `json:"jwks,omitempty"`        // public keys (RFC 7517), of the kind KeySet
	Certificate *Certificate    `json:"certificate,omitempty"` // of the kind Certified
	CreatedAt   time.Time       `json:"created_at"`
	CreatedBy   estover.Subject `json:"created_by"`
	ExpiresAt   time.Time       `json:"expires_at,omitzero"`
	LastUsedAt  time.Time       `json:"last_used_at,omitzero"` // to the minute
	Epoch       int64           `json:"-"`                     // for [db.Epoch], with the table [CredentialTable]

	hash []byte
}

// Wanted is a credential that is to be made. Which of the fields stand there
// depends on its kind.
type Wanted struct {
	Kind        CredentialKind
	Label       string        // where it is used, for those who retire it
	Life        time.Duration // zero is without an end
	JWKS        []byte        // of a KeySet
	Certificate *Certificate  // of one that is Certified

	// Backup credentials lie in a safe until what the agent usually has is lost.
	// Each use of one is an event of its own, at which somebody should look.
	Backup bool
}

// CredentialTable is the table to name in a [db.Epoch], by which a write is
// refused that rests on a credential that was retired in the meantime.
const CredentialTable = "agent_credential"

// Live reports whether the credential proves anything at this time.
func (c *Credential) Live(now time.Time) bool {
	return c.ExpiresAt.IsZero() || now.Before(c.ExpiresAt)
}

// Errors about credentials.
var (
	// ErrCredential is returned for an id and a secret that do not belong together.
	ErrCredential = &estover.Error{Kind: estover.Unknown, Code: "credential_invalid", Detail: "The agent's id or its secret is wrong, or the secret was retired. `estover agent credential list` shows those that are live."}
	// ErrCredentialNotFound is returned when the agent has no such credential.
	ErrCredentialNotFound = &estover.Error{Kind: estover.NotFound, Code: "credential_not_found", Detail: "The agent has no such credential, or it was retired already. `estover agent credential list` shows those that are live."}
	// ErrTooManyCredentials is returned when an agent has as many credentials as one may.
	ErrTooManyCredentials = &estover.Error{Kind: estover.TooMuch, Code: "too_many_credentials", Detail: "An agent may have 20 live credentials. Retire some first."}
	// ErrKeySet is returned for a document that is not a set of public keys.
	ErrKeySet = &estover.Error{Kind: estover.Invalid, Code: "jwks_invalid", Detail: "This is not a JSON Web Key Set of public keys.", Field: "jwks"}
)

// Bounds of credentials.
const (
	maxCredentials = 20
	maxKeySet      = 64 << 10
	maxKeys        = 20
)

// CreateSecret makes a secret for an agent ([Registry.AddCredential]). A life of
// zero is without an end.
func (r *Registry) CreateSecret(ctx context.Context, caller estover.Caller, id, label string, life time.Duration) (estover.Secret, Credential, error) {
	return r.AddCredential(ctx, caller, id, Wanted{Kind: ClientSecret, Label: label, Life: life})
}

// CreateKeySet registers public keys of an agent ([Registry.AddCredential]).
func (r *Registry) CreateKeySet(ctx context.Context, caller estover.Caller, id, label string, jwks []byte, life time.Duration) (Credential, error) {
	_, c, err := r.AddCredential(ctx, caller, id, Wanted{Kind: KeySet, Label: label, Life: life, JWKS: jwks})
	return c, err
}

// AddCredential gives an agent something to prove itself with. A secret is made
// here; it is shown now and never again. A key set lets the agent prove itself by
// signatures, or by connections with a certificate of one of the keys; it holds
// public keys alone: one with a private or a symmetric key is refused, and that
// key should not be used any more. A certificate is known by its name and by who
// vouches for it.
func (r *Registry) AddCredential(ctx context.Context, caller estover.Caller, id string, w Wanted) (secret estover.Secret, c Credential, err error) {
	c = Credential{
		ID: estover.NewID("crd"), Agent: id, Kind: w.Kind, Label: w.Label[:min(len(w.Label), 100)], Backup: w.Backup,
		CreatedBy: caller.Subject, Epoch: 1,
	}
	switch w.Kind {
	case ClientSecret:
		value := opaque.New(opaque.ClientSecret)
		secret, c.hash = estover.NewSecret([]byte(value)), r.pepper(caller.Tenant, []byte(value))
	case KeySet:
		c.JWKS, err = publicKeys(w.JWKS)
	case Certified:
		if w.Certificate == nil {
			w.Certificate = &Certificate{}
		}
		var known Certificate
		known, err = w.Certificate.check()
		c.Certificate = &known
	default:
		err = ErrInvalid.With("There is no credential of the kind %q.", w.Kind).At("kind")
	}
	if err == nil {
		err = r.insertCredential(ctx, caller, id, w.Life, &c)
	}
	if err != nil {
		return estover.Secret{}, Credential{}, err
	}
	return secret, c, nil
}

func (r *Registry) insertCredential(ctx context.Context, caller estover.Caller, id string, life time.Duration, c *Credential) error {
	detail := map[string]any{"credential": c.ID, "kind": c.Kind}
	if c.Backup {
		detail["backup"] = true
	}
	op := guard.Op{Action: "credential.create", Target: target(id), Detail: detail}
	return r.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		a, err := lock(ctx, tx.Tx, id)
		if err != nil {
			return err
		}
		if !a.EndedAt.IsZero() {
			return ErrRetired
		}
		held, err := credentialsOf(ctx, tx.Tx, id)
		if err != nil {
			return err
		}
		if len(held) >= maxCredentials {
			return ErrTooManyCredentials
		}
		c.CreatedAt = tx.Now()
		if life > 0 {
			c.ExpiresAt = tx.Now().Add(life)
		}
		tx.Touch(estover.AgentKind, id)
		return insertCredential(ctx, tx.Tx, *c)
	})
}

// publicKeys checks a JWK Set as far as to be sure that it holds public keys
// alone, and gives it in a form in which no member stands twice.
func publicKeys(text []byte) (json.RawMessage, error) {
	if len(text) > maxKeySet {
		return nil, ErrKeySet.With("A key set has at most %d bytes.", maxKeySet)
	}
	var set struct {
		Keys []map[string]json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(text, &set); err != nil {
		return nil, ErrKeySet.With(`A key set is a JSON object with the member "keys", a list of keys.`).Because(err)
	}
	if len(set.Keys) == 0 || len(set.Keys) > maxKeys {
		return nil, ErrKeySet.With("A key set has between one and %d keys, not %d.", maxKeys, len(set.Keys))
	}
	for i, k := range set.Keys {
		var kty string
		if err := json.Unmarshal(k["kty"], &kty); err != nil || kty == "" {
			return nil, ErrKeySet.With(`Key %d of the set has no type ("kty").`, i).At(fmt.Sprintf("jwks.keys[%d].kty", i))
		}
		for _, private := range []string{"d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"} {
			if _, ok := k[private]; ok {
				return nil, ErrKeySet.With("Key %d of the set is private or symmetric (it has the member %q). Register its public half, of a new pair: this one has been shown.", i, private).At(fmt.Sprintf("jwks.keys[%d]", i))
			}
		}
	}
	return json.Marshal(set)
}

// RetireCredential ends a credential: at once, or after an overlap in which
// its successor is put in place.
func (r *Registry) RetireCredential(ctx context.Context, caller estover.Caller, id, credential string, after time.Duration) error {
	op := guard.Op{Action: "credential.retire", Target: target(id), Detail: map[string]any{"credential": credential}}
	return r.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		tx.Touch(estover.AgentKind, id)
		if after > 0 {
			at := tx.Now().Add(after)
			tx.Note("expires_at", at)
			return expireCredential(ctx, tx.Tx, id, credential, at)
		}
		return endCredential(ctx, tx.Tx, id, credential)
	})
}

// Credentials shows the credentials of an agent that are live, the newest first.
func (r *Registry) Credentials(ctx context.Context, caller estover.Caller, id string) (list []Credential, err error) {
	err = r.guard.Read(ctx, caller, guard.Op{Action: "credential.list", Target: target(id)}, func(tx *db.Tx) error {
		if _, err := find(ctx, tx, id); err != nil {
			return err
		}
		list, err = credentialsOf(ctx, tx, id)
		return err
	})
	return list, err
}

// BySecret finds the agent that this id and secret belong to, from memory, or
// returns [ErrCredential]. Whether the agent may act is not asked here.
func (r *Registry) BySecret(ctx context.Context, tenant estover.TenantID, id, secret string) (*Snapshot, *Credential, error) {
	if !opaque.Check(secret, opaque.ClientSecret) {
		return nil, nil, ErrCredential
	}
	s, err := r.Snapshot(ctx, tenant, id)
	if estover.KindOf(err) == estover.NotFound {
		return nil, nil, ErrCredential
	}
	if err != nil {
		return nil, nil, err
	}
	hash, now := r.pepper(tenant, []byte(secret)), r.guard.DB().Now()
	var found *Credential
	for i := range s.Credentials {
		c := &s.Credentials[i]
		if hmac.Equal(c.hash, hash) && c.Live(now) {
			found = c
		}
	}
	if found == nil {
		return nil, nil, ErrCredential
	}
	return s, found, nil
}

// A use is of one credential.
type use struct {
	tenant     estover.TenantID
	credential string
}

// Used notes, in memory, that a credential has just proved something.
func (r *Registry) Used(tenant estover.TenantID, credential string) {
	now := r.guard.DB().Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.used[use{tenant, credential}] = now
}

// SaveUses stores when credentials were last used. It is called once a minute
// and when the server stops, so that no use costs a write.
func (r *Registry) SaveUses(ctx context.Context) error {
	r.mu.Lock()
	taken := r.used
	r.used = map[use]time.Time{}
	r.mu.Unlock()
	byTenant := map[estover.TenantID]map[string]time.Time{}
	for u, at := range taken {
		if byTenant[u.tenant] == nil {
			byTenant[u.tenant] = map[string]time.Time{}
		}
		byTenant[u.tenant][u.credential] = at
	}
	for tenant, uses := range byTenant {
		err := r.guard.DB().Do(ctx, tenant, func(tx *db.Tx) error { return saveUses(ctx, tx, uses) })
		if err != nil {
			r.mu.Lock()
			maps.Copy(taken, r.used) // the later of both
			r.used = taken
			r.mu.Unlock()
			return fmt.Errorf("storing when credentials were used: %w", err)
		}
	}
	return nil
}
