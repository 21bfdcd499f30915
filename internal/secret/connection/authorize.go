package connection

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/url"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// visitLife is how long an authorization may take in the browser.
const visitLife = 10 * time.Minute

// A visit is an authorization that is under way.
type visit struct {
	connection string
	epoch      int64
	subject    estover.Subject
}

func (x *Connections) visitDigest(tenant estover.TenantID, state string) []byte {
	return x.sealer.MAC(tenant, "connection.visit", []byte(state))
}

// verifier is that of PKCE (RFC 7636) for a state: nobody else can work it out, and
// nothing need be kept.
func (x *Connections) verifier(tenant estover.TenantID, state string) string {
	return base64.RawURLEncoding.EncodeToString(x.sealer.MAC(tenant, "connection.pkce", []byte(state)))
}

// Begin begins the authorization of a connection by a person, and gives where their
// browser has to go. It is good for one return, by the same person, within ten
// minutes.
func (x *Connections) Begin(ctx context.Context, caller estover.Caller, name string) (to string, err error) {
	if err := x.sealer.Prepare(ctx, caller.Tenant); err != nil {
		return "", err
	}
	op := guard.Op{Action: "connection.authorize", Target: target(name)}
	decision, err := x.guard.Admit(ctx, caller, op)
	if err != nil {
		return "", err
	}
	c, err := x.snapshot(ctx, caller.Tenant, name)
	if err != nil {
		return "", err
	}
	if c.Grant != AuthorizationCode {
		return "", ErrInvalid.With("The connection %s needs nobody's authorization: its client acts for itself. `estover connection renew %s` tries it.", name, name)
	}
	e, err := x.find(ctx, caller.Tenant, c.Spec)
	if err == nil && e.authorize == "" {
		err = &refusal{what: "it names no authorization endpoint"}
	}
	if err != nil {
		return "", unready(c, err)
	}
	u, err := url.Parse(e.authorize)
	if err != nil {
		return "", ErrMisconfigured.Because(err)
	}
	state := estover.NewID("cst")
	challenge := sha256.Sum256([]byte(x.verifier(caller.Tenant, state)))
	q := u.Query()
	for k, v := range c.Parameters {
		q.Set(k, v)
	}
	q.Set("response_type", "code")
	q.Set("client_id", c.ClientID)
	q.Set("redirect_uri", x.Back(caller.Tenant, name))
	q.Set("state", state)
	q.Set("code_challenge", base64.RawURLEncoding.EncodeToString(challenge[:]))
	q.Set("code_challenge_method", "S256")
	if len(c.Scopes) > 0 {
		q.Set("scope", join(c.Scopes))
	}
	if c.Resource != "" {
		q.Set("resource", c.Resource)
	}
	u.RawQuery = q.Encode()
	err = x.guard.Act(ctx, caller, op, decision, func(tx *guard.Tx) error {
		tx.Note("connection", c.ID)
		return insertVisit(ctx, tx.Tx, x.visitDigest(caller.Tenant, state), visit{c.ID, c.epoch, caller.Subject}, tx.Now().Add(visitLife))
	})
	return u.String(), err
}

// unready says what is wrong with a provider that was to be asked.
func unready(c Connection, err error) error {
	var no *refusal
	var gone *away
	switch {
	case errors.As(err, &no):
		if _, final := no.final(c.Grant); !final {
			return ErrProvider.With("The provider of the connection %s cannot be asked at this moment: %s. Try again.", c.Name, no.what).Because(err)
		}
		return ErrMisconfigured.With("The provider of the connection %s cannot be used: %s.", c.Name, no.what).Because(err)
	case errors.As(err, &gone):
		return ErrProvider.With("The provider of the connection %s cannot be reached at this moment. Try again.", c.Name).Because(err)
	}
	return err
}

// Complete takes what the provider sent a person back with. The caller is whoever
// began.
func (x *Connections) Complete(ctx context.Context, caller estover.Caller, name string, q url.Values) (Connection, error) {
	if err := x.sealer.Prepare(ctx, caller.Tenant); err != nil {
		return Connection{}, err
	}
	state := q.Get("state")
	var c Connection
	op := guard.Op{Action: "connection.complete", Target: target(name)}
	err := x.guard.Do(ctx, caller, op, func(tx *guard.Tx) error {
		v, err := takeVisit(ctx, tx.Tx, x.visitDigest(caller.Tenant, state))
		if err != nil {
			return err
		}
		if c, err = findName(ctx, tx.Tx, name, ""); err != nil {
			return err
		}
		if v.connection != c.ID || v.subject != caller.Subject || v.epoch != c.epoch {
			tx.Fail(ErrVisit) // it is used up all the same
		}
		tx.Note("connection", c.ID)
		return nil
	})
	if err != nil {
		return c, err
	}
	if code := q.Get("error"); code != "" {
		return c, unready(c, refused(400, code))
	}
	e, err := x.find(ctx, caller.Tenant, c.Spec)
	if err != nil {
		return c, unready(c, err)
	}
	// RFC 9207, section 2.4: a code of another provider is not sent to this one.
	if iss := q.Get("iss"); e.issuer != "" && (iss != "" || e.names) && iss != e.issuer {
		return c, ErrMisconfigured.With("What came back is not of the provider of the connection %s.", name)
	}
	if q.Get("code") == "" {
		return c, ErrVisit
	}
	t, err := x.ask(ctx, caller.Tenant, c.Spec, url.Values{
		"grant_type": {"authorization_code"}, "code": {q.Get("code")}, "redirect_uri": {x.Back(caller.Tenant, name)},
		"code_verifier": {x.verifier(caller.Tenant, state)},
	})
	if err != nil {
		return c, unready(c, err)
	}
	c.Account = caller.Subject
	return x.store(ctx, caller.Tenant, caller, "connection.complete", c, t)
}

// Sweep takes away what was begun and not completed.
func (x *Connections) Sweep(ctx context.Context) error {
	return x.guard.DB().Do(ctx, "", func(tx *db.Tx) error { return sweepVisits(ctx, tx) })
}
