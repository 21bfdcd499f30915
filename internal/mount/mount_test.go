package mount_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/mount"
)

var (
	ann = estover.Caller{Tenant: "acme", Subject: estover.User("usr_ann"), Roles: []estover.Role{estover.Admin}}
	eve = estover.Caller{Tenant: "evil", Subject: estover.User("usr_eve"), Roles: []estover.Role{estover.Admin}}
)

func kinds() mount.Options {
	return mount.Options{Kinds: []mount.Kind{{Name: mount.KV, Section: mount.Secrets}, {Name: "approle", Section: mount.Auth}}}
}

// No mount lies within another, however many are enabled and moved at once.
func TestMountsRace(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		m := mount.New(guardtest.New(t, d, guardtest.AllowAll), kinds())
		var wg sync.WaitGroup
		for i := range 64 {
			wg.Go(func() {
				path := []string{"a", "a/b", "a/b/c", "a/x"}[i%4]
				_, err := m.Enable(t.Context(), ann, mount.Secrets, path, mount.KV, mount.Spec{})
				if err != nil && !errors.Is(err, mount.ErrTaken) {
					t.Errorf("enabling %s: %v", path, err)
				}
				if i%8 != 0 {
					return
				}
				if _, err := m.Move(t.Context(), ann, path, "a/b"); err != nil && estover.KindOf(err) != estover.Invalid && estover.KindOf(err) != estover.Conflict {
					t.Errorf("moving %s: %v", path, err)
				}
			})
		}
		wg.Wait()
		list, err := m.List(t.Context(), ann, mount.Secrets)
		if err != nil {
			t.Fatal(err)
		}
		bases := map[string]bool{}
		for i, one := range list {
			for j, other := range list {
				if i != j && strings.HasPrefix(one.Path, other.Path) {
					t.Errorf("%s lies within %s", one.Path, other.Path)
				}
			}
			if one.Base != "" && bases[one.Base] {
				t.Errorf("two mounts show the secrets below %s", one.Base)
			}
			bases[one.Base] = true
		}
		if len(list) < 3 {
			t.Errorf("nothing was enabled: %v", list)
		}
		if list, err = m.List(t.Context(), eve, mount.Secrets); err != nil || len(list) != 2 {
			t.Errorf("another tenant has %v, %v; want cubbyhole/ and sys/", list, err)
		}
	})
}

// A mount that takes the path of one that was moved away, or one below it, has
// secrets of its own.
func TestWhatWasMovedKeepsItsSecrets(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		m := mount.New(guardtest.New(t, d, guardtest.AllowAll), kinds())
		enable := func(path string) mount.Mount {
			t.Helper()
			one, err := m.Enable(t.Context(), ann, mount.Secrets, path, mount.KV, mount.Spec{})
			if err != nil {
				t.Fatal(err)
			}
			return one
		}
		first := enable("team")
		if _, err := m.Move(t.Context(), ann, "team", "old"); err != nil {
			t.Fatal(err)
		}
		bases := []string{first.Base}
		for _, path := range []string{"team/a", "team/b", "team-2"} {
			bases = append(bases, enable(path).Base)
		}
		for i, one := range bases {
			for j, other := range bases {
				if i != j && strings.HasPrefix(one+"/", other+"/") {
					t.Errorf("the secrets below %s are those of another mount too: %v", one, bases)
				}
			}
		}
	})
}

// Of two who disable a mount at once, one who could not opens it for both: what is made
// there then is not left behind by the other. One who has taken it over is not undone.
func TestDisabledByTwo(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		g := guard.New(d, guardtest.Log(t, d), guardtest.AllowAll, guard.Options{Alive: mount.Alive})
		emptying, go1, go2 := make(chan string), make(chan error), make(chan error)
		m := mount.New(g, mount.Options{Kinds: []mount.Kind{{
			Name: "box", Section: mount.Secrets, Empty: func(_ context.Context, c estover.Caller, _ mount.Mount) error {
				emptying <- c.Request
				if c.Request == "one" {
					return <-go1
				}
				return <-go2
			},
		}}})
		fill := func(id string) error {
			in := ann
			in.Mount = id
			return g.Do(t.Context(), in, guard.Op{Action: "box.fill"}, func(*guard.Tx) error { return nil })
		}
		disable := func(request string) chan error {
			done := make(chan error, 1)
			c := ann
			c.Request = request
			go func() { done <- m.Disable(t.Context(), c, mount.Secrets, "box") }()
			if got := <-emptying; got != request {
				t.Fatalf("%q empties the mount, want %q", got, request)
			}
			return done
		}
		box, err := m.Enable(t.Context(), ann, mount.Secrets, "box", "box", mount.Spec{})
		if err != nil {
			t.Fatal(err)
		}
		// The first one cannot: the second has taken it over, so it stays closed.
		one, two := disable("one"), disable("two")
		go1 <- mount.ErrInUse
		if err := <-one; !errors.Is(err, mount.ErrInUse) {
			t.Errorf("the first: %v, want ErrInUse", err)
		}
		if err := fill(box.ID); !errors.Is(err, mount.ErrClosing) {
			t.Errorf("making something while the second is at it: %v, want ErrClosing", err)
		}
		// Nor can the second: it is open again.
		go2 <- mount.ErrInUse
		if err := <-two; !errors.Is(err, mount.ErrInUse) {
			t.Errorf("the second: %v, want ErrInUse", err)
		}
		if err := fill(box.ID); err != nil {
			t.Errorf("when both have given up: %v", err)
		}
		// The second cannot, and the first does not leave behind what was made then.
		one, two = disable("one"), disable("two")
		go2 <- mount.ErrInUse
		if err := <-two; !errors.Is(err, mount.ErrInUse) {
			t.Errorf("the second: %v, want ErrInUse", err)
		}
		if err := fill(box.ID); err != nil {
			t.Errorf("when the last has given up: %v", err)
		}
		go1 <- nil
		if err := <-one; !errors.Is(err, mount.ErrClosing) {
			t.Errorf("the first, after something was made: %v, want ErrClosing", err)
		}
		if _, err := m.Get(t.Context(), ann, mount.Secrets, "box"); err != nil {
			t.Errorf("the mount: %v", err)
		}
		// Both can: the first ends it, and the second finds nothing to do.
		one, two = disable("one"), disable("two")
		go1 <- nil
		go2 <- nil
		if err := errors.Join(<-one, <-two); err != nil {
			t.Errorf("both: %v", err)
		}
		if _, err := m.Get(t.Context(), ann, mount.Secrets, "box"); !errors.Is(err, mount.ErrNotFound) {
			t.Errorf("the mount: %v, want ErrNotFound", err)
		}
	})
}

// What is made below a mount while it is being disabled is ended with it, or is not
// made; and a mount whose things cannot be ended stays, and more can be made there.
func TestDisableRace(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		g := guard.New(d, guardtest.Log(t, d), guardtest.AllowAll, guard.Options{Alive: mount.Alive})
		var stuck atomic.Bool
		var m *mount.Mounts
		m = mount.New(g, mount.Options{Kinds: []mount.Kind{{
			Name: "box", Section: mount.Secrets, Empty: func(ctx context.Context, c estover.Caller, one mount.Mount) error {
				if stuck.Load() {
					if _, err := m.Move(ctx, c, "box", "crate"); !errors.Is(err, mount.ErrClosing) {
						t.Errorf("moving it meanwhile: %v, want ErrClosing", err)
					}
					return mount.ErrInUse
				}
				return g.Do(ctx, c, guard.Op{Action: "box.empty"}, func(tx *guard.Tx) error {
					_, err := tx.Exec(ctx, "delete from vault_policy where tenant_id = $1 and kind = 'acl' and body = $2", tx.Tenant(), one.ID)
					return err
				})
			},
		}}})
		thing := func(mnt, name string) error {
			in := ann
			in.Mount = mnt
			return g.Do(t.Context(), in, guard.Op{Action: "box.fill"}, func(tx *guard.Tx) error {
				_, err := tx.Exec(t.Context(), "insert into vault_policy (tenant_id, kind, name, body, created_at, changed_at) values ($1, 'acl', $2, $3, 1, 1)", tx.Tenant(), name, mnt)
				return err
			})
		}
		one, err := m.Enable(t.Context(), ann, mount.Secrets, "box", "box", mount.Spec{})
		if err != nil {
			t.Fatal(err)
		}
		stuck.Store(true)
		if err := m.Disable(t.Context(), ann, mount.Secrets, "box"); !errors.Is(err, mount.ErrInUse) {
			t.Fatalf("disabling what cannot be ended: %v, want ErrInUse", err)
		}
		if err := thing(one.ID, "before"); err != nil {
			t.Fatalf("after that: %v", err)
		}
		stuck.Store(false)
		var made atomic.Int64
		begun, start := make(chan struct{}, 64), make(chan struct{})
		var wg sync.WaitGroup
		for i := range 64 {
			wg.Go(func() {
				for n := 0; ; n++ {
					err := thing(one.ID, fmt.Sprintf("%d-%d", i, n))
					switch {
					case errors.Is(err, mount.ErrClosing), errors.Is(err, mount.ErrNotFound):
						return
					case err != nil:
						t.Errorf("making something: %v", err)
						return
					}
					made.Add(1)
					if n == 0 {
						begun <- struct{}{}
					}
				}
			})
		}
		wg.Go(func() {
			<-start
			if err := m.Disable(t.Context(), ann, mount.Secrets, "box"); err != nil {
				t.Errorf("disabling: %v", err)
			}
		})
		<-begun
		close(start)
		wg.Wait()
		var left int
		if err := d.View(t.Context(), "acme", func(tx *db.Tx) error {
			return tx.QueryRow(t.Context(), "select count(*) from vault_policy where tenant_id = $1 and kind = 'acl'", tx.Tenant()).Scan(&left)
		}); err != nil || left != 0 {
			t.Errorf("of %d things %d are left without a mount, %v", made.Load(), left, err)
		}
		if _, err := m.Get(t.Context(), ann, mount.Secrets, "box"); !errors.Is(err, mount.ErrNotFound) {
			t.Errorf("the mount: %v, want ErrNotFound", err)
		}
	})
}

// T1: another tenant's mounts, moves and policies are not there.
func TestMountsOfOthers(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		g := guardtest.New(t, d, guardtest.AllowAll)
		m, p := mount.New(g, kinds()), mount.NewPolicies(g)
		if _, err := m.Enable(t.Context(), ann, mount.Secrets, "/team/", "kv-v2", mount.Spec{}); err != nil {
			t.Fatal(err)
		}
		move, err := m.Move(t.Context(), ann, "team", "blue")
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Put(t.Context(), ann, "mine", `path "x" { capabilities = ["read"] }`); err != nil {
			t.Fatal(err)
		}
		_, moved := m.Moved(t.Context(), eve, move.ID)
		_, got := m.Get(t.Context(), eve, mount.Secrets, "blue")
		_, tuned := m.Tune(t.Context(), eve, mount.Secrets, "blue", mount.Change{})
		_, again := m.Move(t.Context(), eve, "blue", "red")
		_, read := p.Get(t.Context(), eve, "mine")
		if !errors.Is(moved, mount.ErrNotFound) || !errors.Is(got, mount.ErrNotFound) || !errors.Is(tuned, mount.ErrNotFound) || estover.KindOf(again) != estover.Invalid || !errors.Is(read, mount.ErrNoPolicy) {
			t.Errorf("another tenant's: %v, %v, %v, %v, %v", moved, got, tuned, again, read)
		}
		if err := errors.Join(m.Disable(t.Context(), eve, mount.Secrets, "blue"), p.Remove(t.Context(), eve, "mine")); err != nil {
			t.Errorf("disabling what is not there: %v", err)
		}
		if one, err := m.Get(t.Context(), ann, mount.Secrets, "blue"); err != nil || one.Version() != "2" || one.Base != "team" {
			t.Errorf("afterwards it is %+v, %v", one, err)
		}
		acl, err := p.ACL(t.Context(), "evil", []string{"mine"})
		if err != nil || fmt.Sprint(acl.Capabilities("x")) != "[deny]" {
			t.Errorf("a policy of another tenant's allows %v, %v", acl.Capabilities("x"), err)
		}
		// A policy that is changed binds at once.
		for _, c := range []struct{ text, want string }{{`path "x" { capabilities = ["update"] }`, "[update]"}, {"", "[deny]"}} {
			if c.text == "" {
				err = p.Remove(t.Context(), ann, "mine")
			} else {
				err = p.Put(t.Context(), ann, "mine", c.text)
			}
			if err != nil {
				t.Fatal(err)
			}
			if acl, err = p.ACL(t.Context(), "acme", []string{"mine"}); err != nil || fmt.Sprint(acl.Capabilities("x")) != c.want {
				t.Errorf("changed it allows %v, %v, want %s", acl.Capabilities("x"), err, c.want)
			}
		}
		if err := p.Refuse(t.Context(), ann, "x", "read"); !errors.Is(err, mount.ErrRefused) {
			t.Errorf("a refusal is %v", err)
		}
	})
}

// Whoever may not learns nothing, not even what is wrong.
func TestMountsRefused(t *testing.T) {
	d := dbtest.Open(t)
	g := guardtest.New(t, d, guardtest.DenyAll)
	m, p := mount.New(g, kinds()), mount.NewPolicies(g)
	_, enabled := m.Enable(t.Context(), ann, mount.Secrets, "sys", "nonsense", mount.Spec{})
	_, tuned := m.Tune(t.Context(), ann, mount.Secrets, "nothing", mount.Change{})
	_, moved := m.Move(t.Context(), ann, "nothing", "sys")
	_, listed := m.List(t.Context(), ann, mount.Auth)
	_, found := m.Holding(t.Context(), ann, "x")
	for name, err := range map[string]error{
		"enable": enabled, "tune": tuned, "move": moved, "list": listed, "find": found, "disable": m.Disable(t.Context(), ann, mount.Secrets, "sys"),
		"put": p.Put(t.Context(), ann, "root", "{"), "remove": p.Remove(t.Context(), ann, "root"),
	} {
		if estover.KindOf(err) != estover.Denied {
			t.Errorf("%s: %v, want a refusal", name, err)
		}
	}
}

// Nothing is tried for whoever may not write policies.
func TestPasswordPolicyIsDecidedOnFirst(t *testing.T) {
	p := mount.NewPolicies(guardtest.New(t, dbtest.Open(t), guardtest.DenyAll))
	var set strings.Builder
	for c := rune(0x4e00); c < 0x4e00+4000; c++ {
		set.WriteRune(c)
	}
	took := time.Hour
	for range 5 { // at one time of them the machine is not busy with something else
		begun := time.Now()
		err := p.PutPassword(t.Context(), ann, "never", "length = 100\nrule \"charset\" { charset = \""+set.String()+"\" }\nrule \"charset\" { charset = \"x\" min-chars = 100 }")
		if took = min(took, time.Since(begun)); estover.KindOf(err) != estover.Denied {
			t.Fatalf("a policy that no password fits: %v, want a refusal", err)
		}
		if took < time.Second {
			return
		}
	}
	t.Errorf("a policy that no password fits was refused after %s", took)
}
