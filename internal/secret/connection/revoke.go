package connection

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/seal"
)

// A revocation is a token that is to be ended at its provider (RFC 7009). It stands
// alone, since the connection may be gone.
type revocation struct {
	id, connection string
	sealed         []byte
	tries          int64
	tenant         estover.TenantID
	next           time.Time
}

// An ended token is what is sealed in a revocation.
type ended struct {
	Spec  Spec   `json:"spec"`
	Token string `json:"token"`
	Hint  string `json:"hint"`
}

func revocationAAD(id string) seal.AAD { return seal.AAD{Class: seal.KV, ID: id} }

// ends is what there is to be ended of a connection's tokens.
func (x *Connections) ends(tenant estover.TenantID, c Connection) ([]revocation, error) {
	if c.sealed == nil {
		return nil, nil
	}
	t, err := x.open(tenant, c)
	if err != nil {
		return nil, err
	}
	return x.endsOf(tenant, c.ID, c.Spec, t)
}

// endsOf is that of tokens. With the refresh token the provider ends the access tokens
// too where it can (RFC 7009, section 2.1); where it cannot, they are ended for
// themselves.
func (x *Connections) endsOf(tenant estover.TenantID, connection string, s Spec, t tokens) (all []revocation, err error) {
	for _, one := range []ended{{s, t.Refresh, "refresh_token"}, {s, t.Access, "access_token"}} {
		if one.Token == "" {
			continue
		}
		r := revocation{id: estover.NewID("crv"), connection: connection}
		b, err := json.Marshal(one)
		if err != nil {
			return nil, err
		}
		r.sealed, err = x.sealer.Seal(tenant, revocationAAD(r.id), b)
		clear(b)
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, nil
}

// The outcomes of a revocation.
const (
	revoked     = "revoked"
	unsupported = "the provider has no revocation endpoint"
)

// RevokeDue ends tokens of all tenants at their providers. What fails is tried again,
// until the provider has answered.
func (x *Connections) RevokeDue(ctx context.Context) error {
	var all []revocation
	err := x.guard.DB().View(ctx, "", func(tx *db.Tx) (err error) {
		all, err = dueRevocations(ctx, tx)
		return err
	})
	for _, r := range all {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if failed := x.revoke(ctx, r); failed != nil && ctx.Err() == nil {
			x.Logger.Error("a token of a connection could not be ended at its provider yet", "connection", r.connection, "error", failed)
		}
	}
	return err
}

// revoke ends one token, unless another node does.
func (x *Connections) revoke(ctx context.Context, r revocation) error {
	if err := x.sealer.Prepare(ctx, r.tenant); err != nil {
		return err
	}
	mine := false
	err := x.guard.DB().Do(ctx, r.tenant, func(tx *db.Tx) (err error) {
		mine, err = takeRevocation(ctx, tx, r, tx.Now().Add(wait(r.tries+1)+renewTime))
		return err
	})
	if err != nil || !mine {
		return err
	}
	outcome, err := x.revokeAt(ctx, r)
	if err != nil {
		return errors.Join(err, x.guard.DB().Do(ctx, r.tenant, func(tx *db.Tx) error { return noteRevocation(ctx, tx, r, db.Short(err.Error())) }))
	}
	op := guard.Op{Action: "connection.revoke", Target: "connection:" + r.connection, Effect: guard.Deletes, Detail: map[string]any{
		"connection": r.connection, "outcome": outcome,
	}}
	return x.guard.Do(ctx, x.system(r.tenant), op, func(tx *guard.Tx) error { return deleteRevocation(ctx, tx.Tx, r.id) })
}

// revokeAt asks the provider, and says what it has answered for good.
func (x *Connections) revokeAt(ctx context.Context, r revocation) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, renewTime)
	defer cancel()
	plain, err := x.sealer.Open(r.tenant, revocationAAD(r.id), r.sealed)
	if err != nil {
		return "", err
	}
	defer clear(plain)
	var e ended
	if err := json.Unmarshal(plain, &e); err != nil {
		return "", ErrTampered
	}
	at, err := x.find(ctx, r.tenant, e.Spec)
	var no *refusal
	if errors.As(err, &no) {
		if _, final := no.final(e.Spec.Grant); final {
			return no.what, nil
		}
	}
	if err != nil {
		return "", err
	}
	if at.revoke == "" {
		return unsupported, nil
	}
	a, err := x.post(ctx, r.tenant, e.Spec, at.revoke, url.Values{"token": {e.Token}, "token_type_hint": {e.Hint}})
	switch {
	case errors.As(err, &no):
		return no.what, nil
	case err != nil:
		return "", err
	case a.Status == http.StatusOK || a.Status == http.StatusNoContent:
		return revoked, nil
	}
	var m struct {
		Error string `json:"error"`
	}
	_ = json.Unmarshal(a.Body, &m)
	no = refused(a.Status, m.Error)
	if _, final := no.final(e.Spec.Grant); final {
		return no.what, nil
	}
	return "", no
}

// NameOf is the name of a connection by its id, for who has seen the id of one in the
// log.
func (x *Connections) NameOf(ctx context.Context, tenant estover.TenantID, id string) (name string, err error) {
	err = x.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		name, err = findID(ctx, tx, id)
		return err
	})
	return name, err
}
