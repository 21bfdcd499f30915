// Package enginetest holds an engine to what package engine promises, at a
// target that runs ([Run]), and starts servers to be targets of tests ([Start],
// [Postgres]).
package enginetest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/secret/engine"
)

// A Suite is a kind of engine and a target to hold it to its promises at.
type Suite struct {
	Kind     engine.Kind
	Config   engine.Config // of a target that runs
	Template engine.Template

	// Bad are templates that the kind must refuse before it asks the target.
	Bad []engine.Template

	// Login opens a connection as a client of the target does, and keeps it.
	// Where no connection outlives a request, it makes a request.
	Login func(ctx context.Context, m engine.Material) (Client, error)

	// Remove takes a user away, or whatever stands for it, without the engine.
	Remove func(ctx context.Context, name string) error

	// Spoil makes a user one that the target does not let go, and gives what
	// undoes that. It is nil where a target knows no such user.
	Spoil func(ctx context.Context, name string) (mend func(context.Context) error, err error)

	// Log gives what the target has written down so far, in which no secret may
	// be found. It is nil for a target that writes nothing down.
	Log func() ([]byte, error)

	// Expires is set where the target itself refuses a user past its time.
	Expires bool

	// Without names the methods that have no meaning for this kind and answer
	// engine.ErrUnsupported: Extend, List, SetSecret, Verify, Sessions,
	// EndSessions, Now.
	Without []string
}

// A Client is a connection that is open at the target.
type Client interface {
	// Ping uses the connection. An error says that it is not open any more.
	Ping(ctx context.Context) error
	Close() error
}

// A bench is the suite with its engine opened, for one test.
type bench struct {
	Suite
	t *testing.T
	e engine.Engine
}

// Run holds the kind to every promise that it makes.
func Run(t *testing.T, s Suite) {
	e, err := s.Kind.Open(s.Config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Errorf("closing the engine: %v", err)
		}
	})
	for _, part := range []struct {
		name string
		test func(b *bench)
	}{
		{"life", (*bench).life},
		{"twice", (*bench).twice},
		{"removed by hand", (*bench).removed},
		{"one bad name among fifty", (*bench).fifty},
		{"sessions end", (*bench).sessions},
		{"sessions end but access goes on", (*bench).endSessions},
		{"names at their limit", (*bench).limit},
		{"hostile names", (*bench).hostile},
		{"list by prefix", (*bench).list},
		{"secrets", (*bench).secrets},
		{"expiry", (*bench).expiry},
		{"deadline", (*bench).deadline},
		{"out of reach", (*bench).unreachable},
		{"many at once", (*bench).race},
		{"without", (*bench).without},
		{"templates", (*bench).templates},
	} {
		t.Run(part.name, func(t *testing.T) { part.test(&bench{s, t, e}) })
	}
	if s.Log != nil {
		t.Run("nothing in the log", func(t *testing.T) {
			written, err := s.Log()
			if err != nil {
				t.Fatal(err)
			}
			if len(written) == 0 {
				t.Error("the target has logged nothing, so that this proves nothing")
			}
			handed.Lock()
			defer handed.Unlock()
			for _, v := range handed.values[s.Kind.Name] {
				if bytes.Contains(written, v) {
					t.Fatal("the target's log holds a secret")
				}
			}
		})
	}
}

// handed are the secrets that were used at targets of a kind.
var handed struct {
	sync.Mutex
	values map[string][][]byte
}

// secret makes one.
func (b *bench) secret() estover.Secret {
	v := make([]byte, 24)
	_, _ = rand.Read(v)
	v = []byte(base64.RawURLEncoding.EncodeToString(v))
	handed.Lock()
	defer handed.Unlock()
	if handed.values == nil {
		handed.values = map[string][][]byte{}
	}
	handed.values[b.Kind.Name] = append(handed.values[b.Kind.Name], slices.Clone(v))
	return estover.NewSecret(v)
}

// mark begins the names of one test's users, and of no other's.
func mark() string { return "e_" + strings.ToLower(rand.Text()[:6]) + "_" }

// has reports whether a method means something for the kind.
func (b *bench) has(method string) bool { return !slices.Contains(b.Without, method) }

func (b *bench) order(name string) engine.Order {
	o := engine.Order{Name: name, Template: b.Template, Until: b.now().Add(time.Hour)}
	if !b.Kind.Plain {
		o.Secret = b.secret()
	}
	return o
}

func (b *bench) now() time.Time {
	b.t.Helper()
	if !b.has("Now") {
		return time.Now()
	}
	now, err := b.e.Now(b.t.Context())
	if err != nil {
		b.t.Fatalf("the target's clock: %v", err)
	}
	return now
}

// create makes a user, who is revoked after the test.
func (b *bench) create(name string) engine.Material { return b.make(b.order(name)) }

func (b *bench) make(o engine.Order) engine.Material {
	b.t.Helper()
	b.t.Cleanup(func() {
		if err := b.e.Revoke(context.Background(), []engine.Doomed{{Name: o.Name, Template: b.Template}})[0]; err != nil {
			b.t.Errorf("revoking %q after the test: %v", o.Name, err)
		}
	})
	m, err := b.e.Create(b.t.Context(), o)
	b.clean(err, o.Secret)
	if err != nil {
		b.t.Fatalf("making %q: %v", o.Name, err)
	}
	if m["username"].Empty() {
		b.t.Fatalf("making %q gave no username", o.Name)
	}
	return m
}

// clean fails the test if an error shows a secret.
func (b *bench) clean(err error, s estover.Secret) {
	b.t.Helper()
	if err != nil && !s.Empty() && strings.Contains(err.Error(), string(s.Reveal())) {
		b.t.Fatal("an error shows the secret")
	}
}

// revoke ends users, every one of whom must go.
func (b *bench) revoke(names ...string) {
	b.t.Helper()
	var doomed []engine.Doomed
	for _, n := range names {
		doomed = append(doomed, engine.Doomed{Name: n, Template: b.Template})
	}
	errs := b.e.Revoke(b.t.Context(), doomed)
	if len(errs) != len(names) {
		b.t.Fatalf("revoking %d users gave %d answers", len(names), len(errs))
	}
	for i, err := range errs {
		if err != nil {
			b.t.Fatalf("revoking %q: %v", names[i], err)
		}
	}
}

// enters fails the test if the user cannot log in.
func (b *bench) enters(m engine.Material) {
	b.t.Helper()
	c, err := b.Login(b.t.Context(), m)
	if err != nil {
		b.t.Fatalf("logging in: %v", err)
	}
	if err := c.Ping(b.t.Context()); err != nil {
		b.t.Errorf("a connection that was just opened: %v", err)
	}
	_ = c.Close()
}

// refused fails the test if the user can log in.
func (b *bench) refused(m engine.Material, why string) {
	b.t.Helper()
	c, err := b.Login(b.t.Context(), m)
	if err != nil {
		return
	}
	if err := c.Ping(b.t.Context()); err == nil {
		b.t.Errorf("somebody logged in who %s", why)
	}
	_ = c.Close()
}

// listed gives the users that begin with prefix, sorted.
func (b *bench) listed(prefix string) []string {
	b.t.Helper()
	names, err := b.e.List(b.t.Context(), prefix)
	if err != nil {
		b.t.Fatalf("listing %q: %v", prefix, err)
	}
	slices.Sort(names)
	return names
}

func (b *bench) expect(prefix string, want ...string) {
	b.t.Helper()
	if !b.has("List") {
		return
	}
	slices.Sort(want)
	if got := b.listed(prefix); !slices.Equal(got, want) {
		b.t.Errorf("users that begin with %q: %q, want %q", prefix, got, want)
	}
}

// life is made, used, and gone.
func (b *bench) life() {
	name := mark() + "a"
	m := b.create(name)
	b.enters(m)
	b.expect(name, name)
	b.revoke(name)
	b.refused(m, "was revoked")
	b.expect(name)
}

// twice does everything again (F12).
func (b *bench) twice() {
	name := mark() + "a"
	o := b.order(name)
	first := b.make(o)
	if _, err := b.e.Create(b.t.Context(), o); err != nil {
		b.t.Fatalf("the same order again: %v", err)
	}
	b.expect(name, name)
	if !b.Kind.Plain {
		b.enters(first)
		o.Secret = b.secret()
		second, err := b.e.Create(b.t.Context(), o)
		if err != nil {
			b.t.Fatalf("the same user with another secret: %v", err)
		}
		b.enters(second)
		b.refused(first, "has a secret that was replaced")
	}
	b.revoke(name)
	b.revoke(name)
	b.revoke(mark()+"never", name)
	b.expect(name)
	m, err := b.e.Create(b.t.Context(), o)
	if err != nil {
		b.t.Fatalf("making a user who was revoked: %v", err)
	}
	b.enters(m)
}

// removed is a user that somebody else has taken away (F12).
func (b *bench) removed() {
	name := mark() + "a"
	o := b.order(name)
	b.make(o)
	if err := b.Remove(b.t.Context(), name); err != nil {
		b.t.Fatal(err)
	}
	b.revoke(name)
	b.expect(name)
	m, err := b.e.Create(b.t.Context(), o)
	if err != nil {
		b.t.Fatalf("making a user who was removed by hand: %v", err)
	}
	b.enters(m)
	if err := b.Remove(b.t.Context(), name); err != nil {
		b.t.Fatal(err)
	}
	if b.has("SetSecret") {
		if err := b.e.SetSecret(b.t.Context(), name, b.secret(), estover.Secret{}); !errors.Is(err, engine.ErrNoUser) {
			b.t.Errorf("a secret for a user who was removed: %v, want ErrNoUser", err)
		}
		b.expect(name)
	}
}

// fifty has one user in the batch that the target does not let go (Q4).
func (b *bench) fifty() {
	prefix := mark()
	var names []string
	var doomed []engine.Doomed
	for i := range 50 {
		name := fmt.Sprintf("%s%02d", prefix, i)
		names = append(names, name)
		doomed = append(doomed, engine.Doomed{Name: name, Template: b.Template})
	}
	var wait sync.WaitGroup
	for i, name := range names {
		if i == 7 { // removed by hand, so to say
			continue
		}
		wait.Go(func() {
			if _, err := b.e.Create(b.t.Context(), b.order(name)); err != nil {
				b.t.Errorf("making %q: %v", name, err)
			}
		})
		if i%8 == 0 {
			wait.Wait()
		}
	}
	wait.Wait()
	if b.Spoil == nil {
		b.revoke(names...)
		b.expect(prefix)
		return
	}
	const bad = 23
	mend, err := b.Spoil(b.t.Context(), names[bad])
	if err != nil {
		b.t.Fatal(err)
	}
	errs := b.e.Revoke(b.t.Context(), doomed)
	if len(errs) != len(doomed) {
		b.t.Fatalf("revoking %d users gave %d answers", len(doomed), len(errs))
	}
	for i, err := range errs {
		if (err != nil) != (i == bad) {
			b.t.Errorf("revoking %q, where %q cannot go: %v", names[i], names[bad], err)
		}
	}
	if err := errs[bad]; errors.Is(err, engine.ErrUnreachable) {
		b.t.Errorf("a user who cannot go is blamed on the target: %v", err)
	}
	b.expect(prefix, names[bad])
	if err := mend(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	b.revoke(names[bad])
	b.expect(prefix)
}

// ended waits until a connection is gone, and fails the test if that is not soon
// after its end was asked for (F10, Q3).
func (b *bench) ended(c Client, asked time.Time) {
	b.t.Helper()
	for c.Ping(b.t.Context()) == nil {
		if took := time.Since(asked); took > Soon {
			b.t.Errorf("a connection goes on %v after its end was asked for", took)
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// sessions that are open end with their user (Q3).
func (b *bench) sessions() {
	name := mark() + "a"
	m := b.create(name)
	c, err := b.Login(b.t.Context(), m)
	if err != nil {
		b.t.Fatal(err)
	}
	defer c.Close()
	other := b.create(mark() + "b")
	its, err := b.Login(b.t.Context(), other)
	if err != nil {
		b.t.Fatal(err)
	}
	defer its.Close()
	if err := c.Ping(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	if b.has("Sessions") {
		open, err := b.e.Sessions(b.t.Context(), name)
		if err != nil || len(open) != 1 || open[0].ID == "" {
			b.t.Errorf("sessions of somebody who is logged in once: %v, %v", open, err)
		}
		open, err = b.e.Sessions(b.t.Context(), mark()+"nobody")
		if err != nil || len(open) != 0 {
			b.t.Errorf("sessions of nobody: %v, %v", open, err)
		}
	}
	asked := time.Now()
	b.revoke(name)
	if b.Kind.Lingers == "" {
		b.ended(c, asked)
		if b.has("Sessions") {
			// The connection is gone; what a target says of it may come a moment later.
			for start := time.Now(); ; time.Sleep(5 * time.Millisecond) {
				open, err := b.e.Sessions(b.t.Context(), name)
				if err == nil && len(open) == 0 {
					break
				}
				if err != nil || time.Since(start) > 2*Soon {
					b.t.Errorf("sessions of somebody who was revoked: %v, %v", open, err)
					break
				}
			}
		}
	}
	if err := its.Ping(b.t.Context()); err != nil {
		b.t.Errorf("somebody else's connection after the revocation: %v", err)
	}
}

func (b *bench) endSessions() {
	if !b.has("EndSessions") {
		return
	}
	name := mark() + "a"
	m := b.create(name)
	if err := b.e.EndSessions(b.t.Context(), name); err != nil {
		b.t.Errorf("ending the sessions of somebody who has none: %v", err)
	}
	c, err := b.Login(b.t.Context(), m)
	if err != nil {
		b.t.Fatal(err)
	}
	defer c.Close()
	if err := c.Ping(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	asked := time.Now()
	if err := b.e.EndSessions(b.t.Context(), name); err != nil {
		b.t.Fatal(err)
	}
	b.ended(c, asked)
	b.enters(m)
}

// limit is the longest name, and one that is longer, which must not be cut: it
// would be somebody else's.
func (b *bench) limit() {
	longest := mark()
	longest += strings.Repeat("x", b.Kind.MaxName-len(longest))
	m := b.create(longest)
	b.enters(m)
	b.expect(longest, longest)
	if _, err := b.e.Create(b.t.Context(), b.order(longest+"y")); !refusal(err) {
		b.t.Errorf("a name of %d bytes: %v, want a refusal", len(longest)+1, err)
	}
	if errs := b.e.Revoke(b.t.Context(), []engine.Doomed{{Name: longest + "y", Template: b.Template}}); errs[0] != nil {
		b.t.Errorf("revoking a name that no user can have: %v", errs[0])
	}
	b.expect(longest, longest)
	b.enters(m)
	b.revoke(longest)
	b.expect(longest)
}

// refusal reports whether a target or an engine has said no.
func refusal(err error) bool {
	var r *engine.Refused
	return errors.As(err, &r)
}

// odd is what quoting goes wrong with.
var odd = []string{
	`"`, `'`, "`", `\`, `\'`, `%`, `_`, `*`, `?`, ` `, `;`, `--`, `/*`, `$1`, `$$`, `{{name}}`, `{{password}}`, `@`, `:`, `/`, `../`, `,`, `=`, `+`, `#`, `(`, `)`,
	`<`, `>`, `&`, `|`, `~`, "\n", "\r\n", "\x00", "ä", "\u202e", "\xff", `'; drop role readers; --`, `" superuser; --`,
}

// hostile names are refused, or are names like any other.
func (b *bench) hostile() {
	bystander := mark() + "by"
	safe := b.create(bystander)
	for _, part := range odd {
		prefix := mark()
		name := prefix + part + "z"
		o := b.order(name)
		m, err := b.e.Create(b.t.Context(), o)
		b.clean(err, o.Secret)
		switch {
		case refusal(err):
			b.expect(prefix)
			if errs := b.e.Revoke(b.t.Context(), []engine.Doomed{{Name: name, Template: b.Template}}); errs[0] != nil {
				b.t.Errorf("revoking %q, whom no user can be: %v", name, errs[0])
			}
		case err != nil:
			b.t.Errorf("making %q: %v, want a user or a refusal", name, err)
		default:
			b.enters(m)
			b.expect(prefix, name)
			b.revoke(name)
			b.refused(m, "was revoked")
			b.expect(prefix)
		}
	}
	b.enters(safe)
	if _, err := b.e.Create(b.t.Context(), b.order("")); !refusal(err) {
		b.t.Errorf("a user without a name: %v, want a refusal", err)
	}
}

// list finds by the prefix alone: no pattern, no other case.
func (b *bench) list() {
	if !b.has("List") {
		return
	}
	prefix := mark()
	var want []string
	for _, end := range []string{"a", "b", "b_c"} {
		b.create(prefix + end)
		want = append(want, prefix+end)
	}
	other := "e" + "x" + prefix[2:] + "a" // as the prefix, were _ a pattern
	b.create(other)
	b.expect(prefix, want...)
	b.expect(prefix+"b", want[1:]...)
	b.expect(prefix + "%")
	b.expect(prefix + "*")
	b.expect(other, other)
	b.expect(mark())
}

// secrets change, and the one before works no more, or for as long as it is
// kept.
func (b *bench) secrets() {
	if !b.has("SetSecret") {
		return
	}
	name := mark() + "a"
	o := b.order(name)
	m := b.make(o)
	login := func(s estover.Secret) engine.Material {
		changed := engine.Material{}
		for k, v := range m {
			changed[k] = v
		}
		changed["password"] = s
		return changed
	}
	verify := func(s estover.Secret, want error, what string) {
		b.t.Helper()
		if !b.has("Verify") {
			return
		}
		err := b.e.Verify(b.t.Context(), engine.Credential{User: name, Secret: s})
		b.clean(err, s)
		if !errors.Is(err, want) {
			b.t.Errorf("verifying %s: %v, want %v", what, err, want)
		}
	}
	verify(o.Secret, nil, "the first secret")
	verify(b.secret(), engine.ErrWrongSecret, "a secret that nobody has")
	next := b.secret()
	for range 2 {
		if err := b.e.SetSecret(b.t.Context(), name, next, estover.Secret{}); err != nil {
			b.t.Fatalf("a new secret: %v", err)
		}
		verify(next, nil, "the new secret")
		verify(o.Secret, engine.ErrWrongSecret, "the old secret")
	}
	b.enters(login(next))
	b.refused(login(o.Secret), "has a secret that was replaced")
	if b.Kind.Overlap {
		third := b.secret()
		for range 2 {
			if err := b.e.SetSecret(b.t.Context(), name, third, next); err != nil {
				b.t.Fatalf("a new secret beside the old one: %v", err)
			}
			b.enters(login(third))
			b.enters(login(next))
			verify(o.Secret, engine.ErrWrongSecret, "the secret before the one that is kept")
		}
		next = third
		if err := b.e.SetSecret(b.t.Context(), name, next, estover.Secret{}); err != nil {
			b.t.Fatal(err)
		}
	}
	for _, part := range odd {
		s := estover.NewSecret([]byte(string(b.secret().Reveal()) + part + "z"))
		err := b.e.SetSecret(b.t.Context(), name, s, estover.Secret{})
		b.clean(err, s)
		switch {
		case refusal(err): // and the one before goes on working
		case err != nil:
			b.t.Errorf("a secret with %q: %v, want it taken or refused", part, err)
		default:
			next = s
		}
		b.enters(login(next))
	}
	if err := b.e.SetSecret(b.t.Context(), mark()+"nobody", b.secret(), estover.Secret{}); !errors.Is(err, engine.ErrNoUser) {
		b.t.Errorf("a secret for nobody: %v, want ErrNoUser", err)
	}
	if b.has("Verify") {
		if err := b.e.Verify(b.t.Context(), engine.Credential{User: mark() + "nobody", Secret: b.secret()}); !errors.Is(err, engine.ErrWrongSecret) {
			b.t.Errorf("verifying nobody: %v, want ErrWrongSecret", err)
		}
	}
}

// expiry is by the target itself, where it can do that.
func (b *bench) expiry() {
	if skew := time.Until(b.now()); b.has("Now") && (skew > 10*time.Second || skew < -10*time.Second) {
		b.t.Errorf("the target's clock on this machine is %v ahead", skew)
	}
	if !b.Expires {
		return
	}
	o := b.order(mark() + "a")
	o.Until = b.now().Add(-time.Second)
	m := b.make(o)
	b.refused(m, "is past the target's own time")
	for range 2 {
		if err := b.e.Extend(b.t.Context(), o.Name, b.Template, b.now().Add(time.Minute)); err != nil {
			b.t.Fatalf("extending: %v", err)
		}
	}
	b.enters(m)
	forever := b.order(mark() + "b")
	forever.Until = time.Time{}
	b.enters(b.make(forever))
	if err := b.e.Extend(b.t.Context(), mark()+"nobody", b.Template, b.now().Add(time.Minute)); !errors.Is(err, engine.ErrNoUser) {
		b.t.Errorf("extending nobody: %v, want ErrNoUser", err)
	}
}

// deadline: nothing is made past it, and nobody waits for longer.
func (b *bench) deadline() {
	ctx, cancel := context.WithDeadline(b.t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	name := mark() + "a"
	if _, err := b.e.Create(ctx, b.order(name)); err == nil {
		b.t.Error("a user was made past the deadline")
	}
	b.expect(name)

	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.t.Fatal(err)
	}
	defer silent.Close() // takes connections and never says a word
	c := b.Config
	c.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, silent.Addr().String())
	}
	b.within(c, 300*time.Millisecond)
}

// unreachable is a target that is not there, or that does not let the admin in.
func (b *bench) unreachable() {
	c := b.Config
	c.Dial = func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("nobody is there") }
	b.within(c, 5*time.Second)
	if !b.Config.Admin.Secret.Empty() {
		c = b.Config
		c.Admin.Secret = b.secret()
		b.within(c, 5*time.Second)
	}
}

// within asks an engine, whose target cannot be worked at, for everything, and
// wants each answer soon after the time that it gives, and to be ErrUnreachable.
func (b *bench) within(c engine.Config, limit time.Duration) {
	b.t.Helper()
	e, err := b.Kind.Open(c)
	if err != nil {
		b.t.Fatal(err)
	}
	defer e.Close()
	name := mark() + "a"
	for _, call := range []struct {
		method string
		do     func(ctx context.Context) error
	}{
		{"Create", func(ctx context.Context) error { _, err := e.Create(ctx, b.order(name)); return err }},
		{"Extend", func(ctx context.Context) error { return e.Extend(ctx, name, b.Template, time.Now()) }},
		{"Revoke", func(ctx context.Context) error {
			return e.Revoke(ctx, []engine.Doomed{{Name: name, Template: b.Template}})[0]
		}},
		{"List", func(ctx context.Context) error { _, err := e.List(ctx, name); return err }},
		{"SetSecret", func(ctx context.Context) error { return e.SetSecret(ctx, name, b.secret(), estover.Secret{}) }},
		{"Sessions", func(ctx context.Context) error { _, err := e.Sessions(ctx, name); return err }},
		{"EndSessions", func(ctx context.Context) error { return e.EndSessions(ctx, name) }},
		{"Now", func(ctx context.Context) error { _, err := e.Now(ctx); return err }},
	} {
		if !b.has(call.method) {
			continue
		}
		ctx, cancel := context.WithTimeout(b.t.Context(), limit)
		start := time.Now()
		err := call.do(ctx)
		took := time.Since(start)
		cancel()
		b.clean(err, c.Admin.Secret)
		if !errors.Is(err, engine.ErrUnreachable) {
			b.t.Errorf("%s at a target that cannot be worked at: %v, want ErrUnreachable", call.method, err)
		}
		if took > limit+Soon {
			b.t.Errorf("%s with %v left took %v", call.method, limit, took)
		}
	}
}

// race has many make and revoke one user at once.
func (b *bench) race() {
	name := mark() + "a"
	o := b.order(name)
	b.make(o)
	var wait sync.WaitGroup
	for i := range 16 {
		wait.Go(func() {
			if i%2 == 0 {
				if _, err := b.e.Create(b.t.Context(), o); err != nil {
					b.t.Errorf("making a user whom others make: %v", err)
				}
			} else if err := b.e.Revoke(b.t.Context(), []engine.Doomed{{Name: name, Template: b.Template}})[0]; err != nil {
				b.t.Errorf("revoking a user whom others revoke: %v", err)
			}
		})
	}
	wait.Wait()
	m, err := b.e.Create(b.t.Context(), o)
	if err != nil {
		b.t.Fatal(err)
	}
	b.enters(m)
	for range 16 {
		wait.Go(func() {
			if err := b.e.Revoke(b.t.Context(), []engine.Doomed{{Name: name, Template: b.Template}})[0]; err != nil {
				b.t.Errorf("revoking a user whom others revoke: %v", err)
			}
		})
	}
	wait.Wait()
	b.refused(m, "was revoked")
	b.expect(name)
}

// without are methods that say that there is no such thing.
func (b *bench) without() {
	ctx, name := b.t.Context(), mark()+"a"
	b.create(name)
	calls := map[string]func() error{
		"Extend":      func() error { return b.e.Extend(ctx, name, b.Template, time.Now().Add(time.Hour)) },
		"List":        func() error { _, err := b.e.List(ctx, name); return err },
		"SetSecret":   func() error { return b.e.SetSecret(ctx, name, b.secret(), estover.Secret{}) },
		"Verify":      func() error { return b.e.Verify(ctx, engine.Credential{User: name, Secret: b.secret()}) },
		"Sessions":    func() error { _, err := b.e.Sessions(ctx, name); return err },
		"EndSessions": func() error { return b.e.EndSessions(ctx, name) },
		"Now":         func() error { _, err := b.e.Now(ctx); return err },
	}
	for method, call := range calls {
		if err := call(); errors.Is(err, engine.ErrUnsupported) == b.has(method) {
			b.t.Errorf("%s: %v, want ErrUnsupported if and only if the kind is without it", method, err)
		}
	}
}

// templates that cannot work are refused before anything happens.
func (b *bench) templates() {
	if err := b.Kind.CheckTemplate(b.Template); err != nil {
		b.t.Errorf("the template of the suite: %v", err)
	}
	for _, bad := range b.Bad {
		var invalid *estover.Error
		if err := b.Kind.CheckTemplate(bad); !errors.As(err, &invalid) {
			b.t.Errorf("the template %v: %v, want an error for who wrote it", bad, err)
		}
	}
	if err := b.Kind.CheckTemplate(engine.Template{"no such key": {"x"}}); err == nil {
		b.t.Error("a template with a key that the kind does not have was taken")
	}
}
