package duty

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/edge"
	"estover.dev/internal/gateway"
	"estover.dev/internal/guard"
	"estover.dev/internal/redact"
	"estover.dev/internal/resource"
	"estover.dev/internal/seal"
	"estover.dev/internal/secret"
	"estover.dev/internal/session"
)

// What an upstream's token endpoint hands out stays here (gateway.md, C8). In the
// place of each token the agent gets a handle. It is good in the session in which
// it came, for the resource that it came from, and in two places of a request: as
// the bearer token (where Authorization is taken, in a header of its own), and as
// the whole value of a parameter that speaks of tokens, in a form or at the top of
// a JSON object. Anywhere else it is a tripwire, as a placeholder is.

// TokenPrefix begins every handle.
const TokenPrefix = "est_tk_"

// KeptTokens is where they lie, for [seal.Sealer.Hold].
var KeptTokens = seal.Holding{Class: seal.Lease, Table: "gateway_token", Sealed: "sealed", ID: "id"}

// keptKind is the kind of the copies of kept tokens, by the digests of their
// handles. A token never changes.
const keptKind = "gateway_token"

// A kept token is one of an upstream.
type kept struct {
	id, session string
	resource    string // with its epoch: another specification may lead elsewhere
	sealed      []byte
}

// origin is a resource as a kept token belongs to it.
func origin(u *resource.Upstream) string { return fmt.Sprintf("%s@%d", u.ID, u.Epoch) }

// errForeign is the answer to a handle that is not this session's, or is for another
// resource.
var errForeign = gateway.ErrTripwire.With("The request carries a token that was kept back in another session or for another resource, or that is not known.")

// tokenParameters are the parameters of forms that may be handles: RFC 6749, 7009,
// 7521, 7662, 8693 and OpenID Connect.
var tokenParameters = []string{"refresh_token", "token", "subject_token", "actor_token", "assertion", "access_token", "id_token_hint"}

// maxTokenForm is how long a form may be that is looked through for handles.
const maxTokenForm = 64 << 10

// tokenHeader is where a handle goes at a door at which Authorization has the token
// for this server.
const tokenHeader = "Estover-Upstream-Token"

// A handed handle is one that came with a request.
type handed struct {
	parameter, handle string // "" for the bearer token
	json              bool   // a member, and not a parameter of a form
}

// handles finds the handles of a request where they may be.
func handles(r *http.Request, ex *gateway.Exchange) (found []handed, err error) {
	if value := r.Header.Get(tokenHeader); strings.HasPrefix(value, TokenPrefix) {
		found = append(found, handed{handle: value})
		ex.Own = append(ex.Own[:len(ex.Own):len(ex.Own)], edge.Fold(tokenHeader))
	} else if scheme, value, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "bearer") && strings.HasPrefix(value, TokenPrefix) {
		found = append(found, handed{handle: value})
	}
	kind := r.Header.Get("Content-Type")
	if kind != "application/json" { // as most write it, and in no other letters
		kind, _, _ = mime.ParseMediaType(kind)
	}
	if r.Method != http.MethodPost || kind != "application/x-www-form-urlencoded" && kind != "application/json" {
		return found, nil
	}
	text, err := gateway.Peek(r, maxTokenForm)
	// Most have nothing of ours in them, and the tripwire need not look again.
	if err != nil || !gateway.Finds(r, tripwire()) || !bytes.Contains(text, []byte(TokenPrefix)) {
		return found, err
	}
	// What cannot be read, or stands anywhere else, is for the tripwire to find.
	var members map[string][]string
	if kind == "application/json" {
		members = topMembers(text)
	} else if members, err = url.ParseQuery(string(text)); err != nil {
		return found, nil
	}
	for _, name := range tokenParameters {
		if values := members[name]; len(values) == 1 && strings.HasPrefix(values[0], TokenPrefix) {
			found = append(found, handed{name, values[0], kind == "application/json"})
		}
	}
	return found, nil
}

// topMembers are the texts among the members of a JSON object; none if it is not one
// that can be read in one way only.
func topMembers(text []byte) map[string][]string {
	var all map[string]jsontext.Value
	if json.Unmarshal(text, &all) != nil {
		return nil
	}
	out := map[string][]string{}
	for name, v := range all {
		var s string
		if v.Kind() == '"' && json.Unmarshal(v, &s) == nil {
			out[name] = []string{s}
		}
	}
	return out
}

func keptAAD(id string) seal.AAD { return seal.AAD{Class: seal.Lease, ID: id} }

func (d *Duties) digest(tenant estover.TenantID, handle string) []byte {
	return d.Sealer.MAC(tenant, "gateway.token", []byte(handle))
}

// keepTime bounds how long an answer with tokens waits for the database.
const keepTime = 5 * time.Second

// keepToken keeps a token of the call's resource, and gives the handle.
func (d *Duties) keepToken(ex *gateway.Exchange, c *call, member string, value estover.Secret) (string, error) {
	tenant := ex.Caller.Tenant
	ctx, cancel := context.WithTimeout(context.Background(), keepTime)
	defer cancel()
	if err := d.Sealer.Prepare(ctx, tenant); err != nil {
		return "", err
	}
	handle, id := estover.NewID(strings.TrimSuffix(TokenPrefix, "_")), estover.NewID("utk")
	sealed, err := d.Sealer.Seal(tenant, keptAAD(id), value.Reveal())
	if err != nil {
		return "", err
	}
	digest := d.digest(tenant, handle)
	system := estover.Caller{Tenant: tenant, Subject: estover.System("gateway"), Request: ex.Caller.Request}
	op := guard.Op{
		Action: "gateway.keep", Target: "resource:" + c.resource.ID, Resource: c.resource.ID, Session: ex.Caller.Session,
		Detail: map[string]any{"token": id, "member": member, "call": c.decision.ID},
	}
	err = d.Guard.Do(ctx, system, op, func(tx *guard.Tx) error {
		// What ends with the session has been ended, if it has.
		if err := tx.Alive(ctx, db.Epoch{Table: session.Table, ID: c.task.key.session, Epoch: c.task.epoch}); err != nil {
			return err
		}
		return insertKept(ctx, tx.Tx, digest, member, kept{id, ex.Caller.Session, origin(c.resource), sealed})
	})
	if errors.Is(err, db.ErrStale) {
		err = gateway.ErrEnded
	}
	return handle, err
}

// loadKept reads a kept token by the digest of its handle.
func loadKept(ctx context.Context, tx *db.Tx, digest string) (*kept, error) {
	b, err := hex.DecodeString(digest)
	if err != nil {
		return nil, err
	}
	return findKept(ctx, tx, b)
}

// token opens the token for which a handle stands.
func (d *Duties) token(ctx context.Context, ex *gateway.Exchange, c *call, handle string) (value estover.Secret, id string, err error) {
	if err := d.Sealer.Prepare(ctx, ex.Caller.Tenant); err != nil {
		return value, "", err
	}
	k, err := d.kept.Get(ctx, ex.Caller.Tenant, hex.EncodeToString(d.digest(ex.Caller.Tenant, handle)))
	if err == nil && (k.session != ex.Caller.Session || k.resource != origin(c.resource)) {
		err = errForeign
	}
	if err != nil {
		return value, "", err
	}
	plain, err := d.Sealer.Open(ex.Caller.Tenant, keptAAD(k.id), k.sealed)
	return estover.NewSecret(plain), k.id, err
}

// fillTokens puts the tokens into their places for which a request has handles.
func (d *Duties) fillTokens(ctx context.Context, ex *gateway.Exchange, p *gateway.Plan, c *call) (values []redact.Value, err error) {
	for _, h := range c.handed {
		if h.parameter == "" && slices.ContainsFunc(p.Slots, func(s gateway.Slot) bool {
			return s.Kind == gateway.BasicSlot || strings.EqualFold(s.Name, "Authorization")
		}) {
			continue // the slot is emptied, whatever stands in it
		}
		value, id, err := d.token(ctx, ex, c, h.handle)
		if errors.Is(err, errForeign) {
			d.Violate(ex, err)
		}
		if err != nil {
			return nil, err
		}
		s := gateway.Slot{Kind: gateway.HeaderSlot, Name: "Authorization", Prefix: "Bearer ", Secret: value, Label: id}
		switch {
		case h.json:
			s = gateway.Slot{Kind: gateway.BodySlot, Name: "/" + h.parameter, Secret: value, Label: id}
		case h.parameter != "":
			s = gateway.Slot{Kind: gateway.FormSlot, Name: h.parameter, Handle: h.handle, Secret: value, Label: id}
		}
		p.Slots = append(p.Slots, s)
		c.secrets, c.places = append(c.secrets, id), append(c.places, id)
		values = append(values, redact.Value{Name: id, Text: value.Reveal()})
	}
	return values, nil
}

// keepsTokens prepares that the tokens in the answer stay here.
func (d *Duties) keepsTokens(ex *gateway.Exchange, p *gateway.Plan, c *call) {
	p.TokenMembers, p.TokenGuess = c.action.Tokens, len(c.action.Tokens) == 0
	p.Tokens = func(member string, value estover.Secret) (string, error) { return d.keepToken(ex, c, member, value) }
}

// EndTokens ends the tokens that were kept in sessions: the gateway's other part of
// them.
func EndTokens(ctx context.Context, tx *guard.Tx, sessions []string) (int, error) {
	return deleteKept(ctx, tx.Tx, sessions)
}

// tripwire finds placeholders and handles, anybody's, in requests: the prefixes
// and each of the characters that can follow them.
var tripwire = sync.OnceValue(func() *redact.Matcher {
	var values []redact.Value
	for _, prefix := range []string{secret.PlaceholderPrefix, TokenPrefix} {
		for _, c := range "abcdefghijklmnopqrstuvwxyz234567" {
			values = append(values, redact.Value{Name: "placeholder", Text: []byte(prefix + string(c))})
		}
	}
	m, _ := redact.NewMatcher(values...)
	return m
})
