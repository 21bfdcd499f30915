// Package device writes what the log of an organisation says to where operators of
// Vault look for it: files, syslog and sockets, which they call audit devices.
//
//	enabled ──Disable──▶ gone
//	   └─ works ⇄ fails (computed at each batch; its place in the log stays)
//
// A device stands behind the log and decides nothing: one that is full, slow or dead
// stops nobody, is shown as failing, and has what it missed when it works again. What
// cannot be written to the log itself does not happen, whatever devices there are.
//
// A line has the shape that Vault's have, as far as the log knows what stands there.
// Every text of a request's data is hashed under a key of the device, so that one can
// look for a value ([Devices.Hash]) and cannot read one.
//
// Each event comes at least once, in the order of the log. It comes again, with the
// same id, if the server ends before the batch is done.
package device

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"estover.dev"
	"estover.dev/internal/audit"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/job"
	"estover.dev/internal/seal"
)

// The errors of devices. Clients of Vault know the words of [ErrTaken].
var (
	ErrNotFound = &estover.Error{Kind: estover.NotFound, Code: "audit_device_not_found", Detail: "There is no such audit device."}
	ErrTaken    = &estover.Error{Kind: estover.Invalid, Code: "audit_device_path_taken", Detail: "path already in use"}
	ErrInvalid  = &estover.Error{Kind: estover.Invalid, Code: "audit_device_invalid", Detail: "The audit device is not valid."}
	ErrTooMany  = &estover.Error{Kind: estover.Conflict, Code: "audit_devices_too_many", Detail: "There are as many audit devices as there may be. Disable one first."}
	ErrNoHeader = &estover.Error{Kind: estover.Invalid, Code: "audit_header_not_found", Detail: "Could not find header in config"}
)

// The kinds of devices.
const (
	File   = "file"
	Syslog = "syslog"
	Socket = "socket"
)

// Bounds, each of an organisation.
const (
	maxDevices = 20
	maxHeaders = 100
	maxText    = 1000 // bytes of a description, of an option
)

// A Device is where the log is written to beside.
type Device struct {
	ID          string
	Path        string // with a slash at the end
	Kind        string
	Description string
	Options     map[string]string // as they were written
	Local       bool
	CreatedAt   time.Time
	Failure     string // why nothing can be written there; "" if it can
	FailedAt    time.Time

	tenant estover.TenantID
}

// A Header is a header of requests that somebody wants to see in the lines.
type Header struct {
	Name   string // in small letters
	Hashed bool
}

// Options are what an operator and the server hand in.
type Options struct {
	Sealer *seal.Sealer
	// Folder is where files may be, and sockets of this machine; those of other
	// organisations than the default one in a folder of it that has their name. ""
	// allows neither.
	Folder string
	// Syslogs are the sockets at which this machine's syslog may be, the likeliest
	// first; nil for the usual ones. The default organisation alone writes there.
	Syslogs []string
	// Dial connects to where an organisation has a socket, if it may.
	Dial func(ctx context.Context, tenant estover.TenantID, network, address string) (net.Conn, error)
	// Tenants are the organisations that have not been erased; nil for everybody. What
	// was of one that has been can be written no more, since its keys are gone.
	Tenants func(ctx context.Context) ([]estover.TenantID, error)
	// Mount describes a mount of the door; false if there is none of this id any more.
	// Nil knows none.
	Mount  func(ctx context.Context, tenant estover.TenantID, id string) (Mount, bool)
	Logger *slog.Logger
}

// Devices are those of all organisations. It is safe for use by many at once.
type Devices struct {
	o     Options
	guard *guard.Guard
	wake  chan struct{}
	looks *guard.Cache[look]
}

// The kinds of copies that are stale when a device, or what lines show, has changed.
const (
	touched  = "audit_device"
	lookKind = "audit_line"
	lookID   = "all"
)

// New keeps devices behind the door g.
func New(g *guard.Guard, o Options) *Devices {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Syslogs == nil {
		o.Syslogs = []string{"/dev/log", "/var/run/syslog", "/var/run/log"}
	}
	d := &Devices{o: o, guard: g, wake: make(chan struct{}, 1)}
	d.looks = guard.NewCache(g, lookKind, func(ctx context.Context, tx *db.Tx, _ string) (look, error) { return findLook(ctx, tx) })
	g.OnTouch(func(_ estover.TenantID, kind, _ string) {
		if kind != touched {
			return
		}
		select {
		case d.wake <- struct{}{}:
		default:
		}
	})
	return d
}

// canonical is a path as it is stored: with a slash behind, and none before it.
func canonical(path string) string { return strings.Trim(path, "/") + "/" }

func named(path string) string { return "audit_device:" + strings.TrimSuffix(path, "/") }

// Enable has the log written to a device from here on.
func (d *Devices) Enable(ctx context.Context, c estover.Caller, x Device) (Device, error) {
	x.ID, x.Path, x.tenant = estover.NewID("aud"), canonical(cmp.Or(x.Path, x.Kind)), c.Tenant
	op := guard.Op{Action: "audit_device.enable", Target: named(x.Path), Effect: guard.Manages, Detail: map[string]any{"device": x.ID, "kind": x.Kind, "options": x.Options}}
	decision, err := d.guard.Admit(ctx, c, op) // before anything is opened for the caller
	if err != nil {
		return x, err
	}
	if err := x.check(); err != nil {
		return x, err
	}
	if err := d.write(ctx, &x, nil); err != nil { // it is said now if it cannot be written to
		return x, ErrInvalid.With("the audit device cannot be written to: %s", reason(err)).Because(err)
	}
	err = d.guard.Act(ctx, c, op, decision, func(tx *guard.Tx) error {
		have, err := all(ctx, tx.Tx)
		switch {
		case err != nil:
			return err
		case len(have) >= maxDevices:
			return ErrTooMany
		case slices.ContainsFunc(have, func(o Device) bool { return o.Path == x.Path }):
			return ErrTaken
		}
		x.CreatedAt = tx.Now()
		tx.Touch(touched, x.ID)
		tx.Touch(lookKind, lookID)
		if err := insert(ctx, tx.Tx, &x); err != nil {
			return err
		}
		return d.guard.Log().Begin(ctx, tx.Tx, x.follower())
	})
	if db.Taken(err) {
		err = ErrTaken
	}
	return x, err
}

// follower names the device's place in the log.
func (x *Device) follower() string { return "audit device " + x.ID }

// Disable ends a device. There is nothing to do where there is none.
func (d *Devices) Disable(ctx context.Context, c estover.Caller, path string) error {
	path = canonical(path)
	op := guard.Op{Action: "audit_device.disable", Target: named(path), Effect: guard.Deletes}
	return d.guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		have, err := all(ctx, tx.Tx)
		if err != nil {
			return err
		}
		for _, x := range have {
			if x.Path != path {
				continue
			}
			tx.Note("device", x.ID)
			tx.Touch(touched, x.ID)
			tx.Touch(lookKind, lookID)
			if err := remove(ctx, tx.Tx, x.ID); err != nil {
				return err
			}
			return d.guard.Log().Forget(ctx, tx.Tx, x.follower())
		}
		return nil
	})
}

// List gives the devices of an organisation in the order of their paths.
func (d *Devices) List(ctx context.Context, c estover.Caller) (list []Device, err error) {
	err = d.guard.Read(ctx, c, guard.Op{Action: "audit_device.list"}, func(tx *db.Tx) error {
		list, err = all(ctx, tx)
		return err
	})
	return list, err
}

// Hash is a text as it stands in the lines of a device.
func (d *Devices) Hash(ctx context.Context, c estover.Caller, path string, input estover.Secret) (string, error) {
	path = canonical(path)
	var found *Device
	err := d.guard.Read(ctx, c, guard.Op{Action: "audit_device.hash", Target: named(path)}, func(tx *db.Tx) error {
		list, err := all(ctx, tx)
		for i := range list {
			if list[i].Path == path {
				found = &list[i]
			}
		}
		if err == nil && found == nil {
			err = ErrNotFound.With("unknown audit backend %q", path)
		}
		return err
	})
	if err == nil {
		err = d.o.Sealer.Prepare(ctx, c.Tenant)
	}
	if err != nil {
		return "", err
	}
	return d.hash(found, string(input.Reveal())), nil
}

func (d *Devices) hash(x *Device, text string) string {
	return "hmac-sha256:" + hex.EncodeToString(d.o.Sealer.MAC(x.tenant, "audit device "+x.ID, []byte(text)))
}

// SetHeader notes a header that somebody wants to see in the lines, and RemoveHeader
// that nobody does.
func (d *Devices) SetHeader(ctx context.Context, c estover.Caller, h Header) error {
	h.Name = strings.ToLower(h.Name)
	op := guard.Op{Action: "audit_header.set", Target: "audit_header:" + h.Name, Effect: guard.Manages, Detail: map[string]any{"hashed": h.Hashed}}
	return d.guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		if h.Name == "" || len(h.Name) > 100 {
			return ErrInvalid.With("the name of a header has between 1 and 100 bytes")
		}
		if !h.Hashed && opens(h.Name) {
			return ErrInvalid.With("%s may hold what opens doors, and is noted with hmac=true alone", h.Name)
		}
		have, err := headers(ctx, tx.Tx)
		if err != nil {
			return err
		}
		if _, there := have[h.Name]; !there && len(have) >= maxHeaders {
			return ErrInvalid.With("there are at most %d headers", maxHeaders)
		}
		tx.Touch(lookKind, lookID)
		return putHeader(ctx, tx.Tx, h)
	})
}

// RemoveHeader forgets a header.
func (d *Devices) RemoveHeader(ctx context.Context, c estover.Caller, name string) error {
	name = strings.ToLower(name)
	op := guard.Op{Action: "audit_header.remove", Target: "audit_header:" + name, Effect: guard.Deletes}
	return d.guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		tx.Touch(lookKind, lookID)
		return dropHeader(ctx, tx.Tx, name)
	})
}

// Headers are those that were noted, by their names; true for one that is hashed.
func (d *Devices) Headers(ctx context.Context, c estover.Caller) (have map[string]bool, err error) {
	err = d.guard.Read(ctx, c, guard.Op{Action: "audit_header.list"}, func(tx *db.Tx) error {
		have, err = headers(ctx, tx)
		return err
	})
	return have, err
}

// lookEvery is how often Run looks for devices that other nodes have enabled.
const lookEvery = 5 * time.Second

// Run writes to all devices until ctx is done. One node does it.
func (d *Devices) Run(ctx context.Context) error {
	running := map[string]context.CancelFunc{}
	var all sync.WaitGroup
	defer all.Wait()
	defer func() {
		for _, stop := range running {
			stop()
		}
	}()
	for {
		var list []Device
		err := d.guard.DB().View(ctx, "", func(tx *db.Tx) (err error) {
			list, err = everybodys(ctx, tx)
			return err
		})
		if err == nil && d.o.Tenants != nil {
			var names []estover.TenantID
			names, err = d.o.Tenants(ctx)
			list = slices.DeleteFunc(list, func(x Device) bool { return !slices.Contains(names, x.tenant) })
		}
		if err != nil && ctx.Err() == nil {
			d.o.Logger.Error("the audit devices could not be looked up", "error", err)
		}
		if err == nil {
			there := map[string]bool{}
			for _, x := range list {
				if there[x.ID] = true; running[x.ID] != nil {
					continue
				}
				within, stop := context.WithCancel(ctx)
				running[x.ID] = stop
				all.Go(func() { d.follow(within, x) })
			}
			for id, stop := range maps.Clone(running) {
				if !there[id] {
					stop()
					delete(running, id)
				}
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-d.wake:
		case <-time.After(lookEvery):
		}
	}
}

// follow writes to one device.
func (d *Devices) follow(ctx context.Context, x Device) {
	err := d.guard.Log().FollowTenant(ctx, x.tenant, x.follower(), func(ctx context.Context, events []audit.Entry) error {
		return job.Guarded(func() error { return d.deliver(ctx, &x, events) })
	})
	if err != nil && ctx.Err() == nil {
		d.o.Logger.Error("an audit device is not written to any more", "tenant", x.tenant, "path", x.Path, "error", err)
	}
}

// deliver writes events to a device.
func (d *Devices) deliver(ctx context.Context, x *Device, events []audit.Entry) error {
	if err := d.o.Sealer.Prepare(ctx, x.tenant); err != nil {
		return err
	}
	var lines [][]byte
	for i := range events {
		b, err := d.line(ctx, x, &events[i])
		if err != nil {
			return err
		}
		lines = append(lines, b)
	}
	err := d.write(ctx, x, lines)
	if ctx.Err() != nil {
		return err
	}
	failure := ""
	if err != nil {
		failure = reason(err)
	}
	if failure != x.Failure { // it shows itself, and that it has recovered
		x.Failure = failure
		if noted := d.guard.DB().Do(ctx, x.tenant, func(tx *db.Tx) error { return setFailure(ctx, tx, x.ID, failure) }); noted != nil {
			return errors.Join(err, noted)
		}
	}
	return err
}

// reason is an error in words that whoever set up a device may read.
func reason(err error) string {
	var known *estover.Error
	if errors.As(err, &known) {
		return known.Detail
	}
	text := err.Error()
	return text[:min(len(text), maxText)]
}
