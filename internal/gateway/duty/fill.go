package duty

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"estover.dev"
	"estover.dev/internal/gateway"
	"estover.dev/internal/gateway/sign"
	"estover.dev/internal/guard"
	"estover.dev/internal/policy"
	"estover.dev/internal/redact"
	"estover.dev/internal/resource"
	"estover.dev/internal/secret"
)

// The fields by which slots find what they need in a secret.
const (
	userField        = "username" // of HTTP Basic
	passwordField    = "password" // of a leased credential, if the slot names no other
	certificateField = "certificate"
	keyField         = "key"
	awsIDField       = "access_key_id"
	awsKeyField      = "secret_access_key"
	awsTokenField    = "session_token"
	keyIDField       = "key_id"
)

// Fill puts the secrets of the resource into their slots. They must be meant
// for the host that the request goes to; one that cannot be had is the end of
// the call.
func (d *Duties) Fill(ctx context.Context, ex *gateway.Exchange, p *gateway.Plan) error {
	c := p.State.(*call)
	marked := d.marked.Load()
	values := c.room.values[:0]
	for i := range c.resource.Slots {
		slot := &c.resource.Slots[i]
		if !slot.Fills(c.action.Name) {
			continue
		}
		op := guard.Op{Action: "secret.use", Target: target(slot), Effect: guard.Reads, Resource: c.resource.ID, Input: policy.Call{}}
		if _, err := d.admit(ctx, ex, op); err != nil {
			return err
		}
		var err error
		if values, err = d.fill(ctx, ex, p, c, slot, values); err != nil {
			return unfilled(err)
		}
	}
	more, err := d.fillTokens(ctx, ex, p, c)
	if err != nil {
		return err
	}
	values = append(values, more...)
	more, state := d.fillCookies(ex, p, c)
	values = append(values, more...)
	d.keepsTokens(ex, p, c)
	if err := d.carry(ctx, ex.Caller.Tenant, c, marked); err != nil {
		return err
	}
	if len(p.Slots) == 0 {
		return nil
	}
	// Another part of the same version, or the same part elsewhere, is another
	// credential: something else must not come back.
	p.Credential = strings.Join(c.places, "\n")
	if len(values) > 0 {
		var short []string
		key := taskKey{ex.Caller.Tenant, p.Credential}
		if state > 0 { // a jar is one session's, and changes
			key.session += " " + ex.Caller.Session + " " + c.resource.ID + " " + strconv.FormatInt(state, 10)
		}
		p.Needles, short = d.needles.of(key, values)
		for _, label := range short {
			if label != cookieLabel {
				d.warn(ex, c, label)
			}
		}
	}
	p.Echoed = func(name string) { d.echoed(ex, c, name) }
	return nil
}

// warn records that a value is too short to be found when it comes back: whoever
// chose it should know.
func (d *Duties) warn(ex *gateway.Exchange, c *call, label string) {
	system := estover.Caller{Tenant: ex.Caller.Tenant, Subject: estover.System("gateway"), Request: ex.Caller.Request}
	d.note(system, guard.Op{
		Action: "secret.short", Target: sighted(label), Resource: c.resource.ID, Session: ex.Caller.Session,
		Detail: map[string]any{"version": label, "why": fmt.Sprintf("A value of less than %d bytes is not looked for in answers. Use a longer one.", redact.Shortest)},
	})
	d.Logger.Warn("a secret is too short to be found when a resource sends it back", "version", label, "resource", c.resource.Name)
}

// target is what fills a slot, as events and policies name it.
func target(s *resource.Slot) string {
	switch {
	case s.Static():
		return "secret:" + s.Secret
	case strings.HasPrefix(s.Secret, resource.LeasePrefix):
		return "lease_role:" + strings.TrimPrefix(s.Secret, resource.LeasePrefix)
	}
	return s.Secret // connection:NAME
}

// unfilled says in the gateway's way why a slot cannot be filled: nothing was
// forwarded, and it is not the agent's mistake.
func unfilled(err error) error {
	var known *estover.Error
	var refused *gateway.Refusal
	if !errors.As(err, &known) || errors.As(err, &refused) {
		return err
	}
	leased := strings.HasPrefix(known.Code, "lease_") || strings.HasPrefix(known.Code, "target_")
	if gateway.StatusOf(known) >= 500 && !leased {
		return err
	}
	return gateway.ErrSlot.With("%s", known.Detail).Because(err)
}

// mostFields is how many fields a slot takes at most.
const mostFields = 3

// A filling is the fields that fill one slot, all of one version.
type filling struct {
	names  [mostFields]string
	values [mostFields]estover.Secret
	count  int
	label  string
	one    secret.Injection // that of one of the fields
}

// value is that of a field; an empty one if there is none.
func (f *filling) value(field string) (v estover.Secret) {
	if i := slices.Index(f.names[:f.count], field); i >= 0 {
		v = f.values[i]
	}
	return v
}

func (f *filling) text(field string) string { return string(f.value(field).Reveal()) }

// get reads fields of what fills a slot of a call's resource. Those whose names end
// with a question mark need not be there.
func (d *Duties) get(ctx context.Context, ex *gateway.Exchange, c *call, slot *resource.Slot, fields ...string) (f filling, err error) {
	for range 3 { // a version may be written in between
		f = filling{}
		again := false
		for _, field := range fields {
			name, optional := strings.CutSuffix(field, "?")
			in, err := d.inject(ctx, ex, c, slot, name)
			if optional && errors.Is(err, secret.ErrNoField) {
				continue
			}
			if err != nil {
				return filling{}, err
			}
			again = again || f.label != "" && f.label != in.Version
			f.names[f.count], f.values[f.count], f.label, f.one = name, in.Value, in.Version, in
			f.count++
		}
		if !again {
			return f, nil
		}
	}
	return filling{}, gateway.ErrSlot.With("What fills the slot changes too often at this moment. Try again.")
}

// inject reads one field of what fills a slot.
func (d *Duties) inject(ctx context.Context, ex *gateway.Exchange, c *call, slot *resource.Slot, field string) (secret.Injection, error) {
	if slot.Static() {
		return d.Secrets.Use(ctx, ex.Caller, slot.Secret, field, c.host)
	}
	if name, ok := strings.CutPrefix(slot.Secret, resource.LeasePrefix); ok && d.Lease != nil {
		return d.Lease(ctx, ex.Caller, c.resource.ID, name, field)
	}
	if name, ok := strings.CutPrefix(slot.Secret, resource.ConnectionPrefix); ok && d.Connection != nil {
		return d.Connection(ctx, ex.Caller, name, c.host)
	}
	return secret.Injection{}, gateway.ErrSlot.With("There is nothing here that could fill the slot with %s.", slot.Secret)
}

// fill fills one slot, and adds to the values what must not come back.
func (d *Duties) fill(ctx context.Context, ex *gateway.Exchange, p *gateway.Plan, c *call, slot *resource.Slot, values []redact.Value) (_ []redact.Value, err error) {
	s := gateway.Slot{Kind: gateway.SlotKind(slot.Slot), Name: slot.Name, Prefix: slot.Prefix}
	field := slot.Field
	if field == "" && strings.HasPrefix(slot.Secret, resource.LeasePrefix) {
		field = passwordField
	}
	var f filling
	switch slot.Slot {
	case resource.MTLS:
		if f, err = d.get(ctx, ex, c, slot, certificateField, keyField); err != nil {
			return nil, err
		}
		// Neither is sent: the upstream sees the certificate, and a proof of the key.
		if p.Upstream.Certificate, err = d.certificates.of(taskKey{ex.Caller.Tenant, f.label}, slot.Secret, &f, d.Guard.DB().Now()); err != nil {
			return nil, err
		}
	case resource.SigV4:
		if f, err = d.get(ctx, ex, c, slot, awsIDField, awsKeyField, awsTokenField+"?"); err != nil {
			return nil, err
		}
		s.Unsigned, s.Allowed = slot.AWS.UnsignedPayload, slot.AWS.Subresources
		s.AWS = &sign.AWS{Region: slot.AWS.Region, Service: slot.AWS.Service, KeyID: f.text(awsIDField), Key: f.value(awsKeyField), Token: f.value(awsTokenField)}
		values = f.kept(values, awsKeyField, awsTokenField)
	case resource.Signed:
		fields := []string{field}
		if slot.HMAC.Uses("key_id") {
			fields = append(fields, keyIDField)
		}
		if f, err = d.get(ctx, ex, c, slot, fields...); err != nil {
			return nil, err
		}
		s.Secret = f.value(field)
		s.HMAC = &sign.HMAC{Spec: slot.HMAC, Name: slot.Name, KeyID: f.text(keyIDField), Key: s.Secret}
		values = f.kept(values, field)
	case resource.Basic:
		fields := []string{field}
		if slot.Name == "" {
			fields = append(fields, userField)
		}
		if f, err = d.get(ctx, ex, c, slot, fields...); err != nil {
			return nil, err
		}
		if s.User, s.Name = slot.Name, ""; s.User == "" {
			s.User = f.text(userField)
		}
		s.Secret = f.value(field)
		values = append(values, redact.Basic(f.label, s.User, string(s.Secret.Reveal()))...)
	default:
		if f, err = d.get(ctx, ex, c, slot, field); err != nil {
			return nil, err
		}
		s.Secret = f.value(field)
		values = f.kept(values, field)
	}
	if len(p.Slots) == 0 { // a list without anything is nil: a statement tells one from the other
		c.secrets, c.places, c.carries, p.Slots = c.room.secrets[:0], c.room.places[:0], c.room.carries[:0], c.room.slots[:0]
	}
	if slot.Static() {
		c.carries = append(c.carries, d.Secrets.Carry(f.one))
	}
	s.Label = f.label
	c.places = append(c.places, strings.Join([]string{f.label, slot.Slot, field, s.User}, " "))
	if !slices.Contains(c.secrets, f.label) {
		c.secrets = append(c.secrets, f.label)
	}
	if slot.OnEcho != "" {
		if c.onEcho == nil {
			c.onEcho = map[string]string{}
		}
		c.onEcho[f.label] = slot.OnEcho
	}
	p.Slots = append(p.Slots, s)
	return values, nil
}

// kept adds to the values what must not come back of some fields.
func (f *filling) kept(values []redact.Value, fields ...string) []redact.Value {
	for _, field := range fields {
		if v := f.value(field); !v.Empty() {
			values = append(values, redact.Value{Name: f.label, Text: v.Reveal()})
		}
	}
	return values
}

// certificates keeps the client certificates that are in use, parsed.
type certificates struct {
	mu    sync.Mutex
	known map[taskKey]*tls.Certificate
}

// maxCertificates bounds them; beyond it, all are parsed anew.
const maxCertificates = 1024

// of is the certificate in a version of a secret.
func (x *certificates) of(key taskKey, path string, f *filling, now time.Time) (*tls.Certificate, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	cert := x.known[key]
	if cert == nil {
		pair, err := tls.X509KeyPair(f.value(certificateField).Reveal(), f.value(keyField).Reveal())
		if err != nil { // which may quote them
			return nil, gateway.ErrSlot.With("The fields certificate and key of %s are not a certificate in PEM and the key that belongs to it.", path)
		}
		cert = &pair
		if x.known == nil || len(x.known) >= maxCertificates {
			x.known = map[taskKey]*tls.Certificate{}
		}
		x.known[key] = cert
	}
	if !now.Before(cert.Leaf.NotAfter) {
		return nil, gateway.ErrSlot.With("The client certificate of %s has expired at %s. Write another version of it.", path, cert.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	return cert, nil
}
