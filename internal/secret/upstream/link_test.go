package upstream_test

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/upstream"
)

func (h *house) link(path string) {
	h.t.Helper()
	if _, err := h.x.Link(h.t.Context(), h.ann, upstream.LinkSpec{Path: path, Store: "old", Destinations: []string{crmHost}}); err != nil {
		h.t.Fatal(err)
	}
}

func (h *house) uses(want string) {
	h.t.Helper()
	got, err := h.use(h.secrets, "crm/key")
	if err != nil || got != want {
		h.t.Fatalf("the gateway injects %q, %v, want %q", got, err, want)
	}
}

// TestReadThrough is S1, in one life: a version is asked for once, what is changed
// there is seen when the time is over, and what is not known is given to nobody.
func TestReadThrough(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, guardtest.AllowAll)
		h.there.write("crm/key", `{"password":"first","port":5432}`)
		h.link("crm/key")
		asked := func(gets, versions int, when string) {
			t.Helper()
			if g, v := h.there.asked(); g != gets || v != versions {
				t.Fatalf("%s: the store was asked for %d values and %d lists, want %d and %d", when, g, v, gets, versions)
			}
		}
		asked(0, 0, "before anybody needs it")
		h.uses("first")
		h.uses("first")
		asked(1, 0, "after two uses")

		// It is a version like any other: policy, purpose, counts, recognition.
		if _, err := h.secrets.Read(t.Context(), ann, "crm/key", 0, ""); !errors.Is(err, secret.ErrPurpose) {
			t.Errorf("reading without a purpose: %v, want ErrPurpose", err)
		}
		p, err := h.secrets.Read(t.Context(), ann, "crm/key", 0, "to see it")
		if err != nil || string(p.Values["password"].Reveal()) != "first" || p.Origin != "1" || string(p.Values["port"].Reveal()) != "5432" {
			t.Fatalf("reading it: %+v, %v", p.Version, err)
		}
		uses, err := h.secrets.Uses(t.Context(), ann, secret.UseFilter{}, 20)
		if err != nil || !slices.ContainsFunc(uses, func(u secret.Use) bool {
			return u.Path == "crm/key" && u.Version == 1 && u.Subject == bot.Subject && u.Count == 2
		}) {
			t.Errorf("uses: %+v, %v, want two of version 1 by the agent", uses, err)
		}
		if seen, err := h.secrets.Identify(t.Context(), ann, estover.NewSecret([]byte("first"))); err != nil || len(seen) != 1 || seen[0].Path != "crm/key" {
			t.Errorf("its value elsewhere: %+v, %v, want it recognised", seen, err)
		}
		if _, err := h.secrets.Use(t.Context(), bot, "crm/key", "password", "evil.example:443"); !errors.Is(err, secret.ErrDestination) {
			t.Errorf("at another host: %v, want ErrDestination", err)
		}
		if _, _, err := h.secrets.Put(t.Context(), ann, "crm/key", estover.NewSecret([]byte(`{"password":"ours"}`)), secret.Put{Expect: secret.Any}); !errors.Is(err, secret.ErrLinked) {
			t.Errorf("writing it here: %v, want ErrLinked", err)
		}
		asked(1, 0, "after all that")

		// It changes there.
		h.there.write("crm/key", `{"password":"second"}`)
		h.uses("first")
		h.clock.Advance(6 * time.Minute)
		h.uses("second")
		asked(2, 1, "after the time was over")
		h.clock.Advance(6 * time.Minute)
		h.uses("second")
		asked(2, 2, "when nothing has changed")
		versions, err := h.secrets.Versions(t.Context(), ann, "crm/key")
		if err != nil || len(versions) != 2 || versions[1].State != secret.Destroyed {
			t.Errorf("versions: %+v, %v, want the copy before destroyed", versions, err)
		}

		// The store is down: what is believed is used, and then nothing.
		h.there.set(true)
		h.uses("second")
		h.clock.Advance(6 * time.Minute)
		for range 2 {
			if got, err := h.use(h.secrets, "crm/key"); !errors.Is(err, upstream.ErrStore) || got != "" || !strings.Contains(err.(*estover.Error).Detail, "The store old does not answer") {
				t.Fatalf("with the store down: %q, %v, want an error that names the store", got, err)
			}
			if _, err := h.secrets.Read(t.Context(), ann, "crm/key", 0, "to see it"); !errors.Is(err, upstream.ErrStore) || estover.KindOf(err) != estover.Unavailable {
				t.Fatalf("reading with the store down: %v, want ErrStore", err)
			}
		}
		s, err := h.x.Get(t.Context(), ann, "old")
		if err != nil || len(s.Links) != 1 || !strings.Contains(s.Links[0].LastError, "nobody is there") || !s.Links[0].FreshUntil.IsZero() {
			t.Errorf("the store shows %+v, %v, want why it is not known", s.Links, err)
		}
		h.there.set(false)
		h.clock.Advance(3 * time.Second)
		h.uses("second")
		asked(2, 3, "when it is back")

		// A copy that was destroyed here is made again, of the same version there.
		if err := h.secrets.Destroy(t.Context(), ann, "crm/key", secret.Newest); err != nil {
			t.Fatal(err)
		}
		if got, err := h.use(h.secrets, "crm/key"); err == nil {
			t.Errorf("a destroyed copy gives %q", got)
		}
		h.clock.Advance(6 * time.Minute)
		h.uses("second")

		// It is deleted there.
		if err := h.there.Delete(t.Context(), "crm/key"); err != nil {
			t.Fatal(err)
		}
		h.clock.Advance(6 * time.Minute)
		if got, err := h.use(h.secrets, "crm/key"); !errors.Is(err, upstream.ErrGone) {
			t.Errorf("deleted there: %q, %v, want ErrGone", got, err)
		}
		if _, v, err := h.secrets.Copied(t.Context(), "acme", "crm/key"); err != nil || v.N != 0 {
			t.Errorf("there is still a copy, version %d, %v", v.N, err)
		}
		h.there.write("crm/key", `{"password":"fourth"}`)
		h.clock.Advance(3 * time.Second)
		h.uses("fourth")

		// Its value lives here again.
		if err := h.x.Unlink(t.Context(), ann, "crm/key"); err != nil {
			t.Fatal(err)
		}
		if got, err := h.use(h.secrets, "crm/key"); !errors.Is(err, secret.ErrNoVersion) {
			t.Errorf("unlinked: %q, %v, want no version", got, err)
		}
		h.make("crm/key", `{"password":"ours"}`)
		h.uses("ours")
	})
}

// TestReadThroughElsewhere: a version that has the same name is not taken for the one
// that was copied, where the store has been changed since, which may be somewhere else
// then, and where the secret was made again there.
func TestReadThroughElsewhere(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, guardtest.AllowAll)
		change := func(mount string) {
			t.Helper()
			s := upstream.StoreSpec{Name: "old", Kind: "memory", Address: "https://vault.example", Login: "vault/token", Options: map[string]string{"mount": mount}}
			if _, err := h.x.Put(t.Context(), ann, s); err != nil {
				t.Fatal(err)
			}
		}
		h.there.anew("crm/key", `{"password":"of the first"}`, time.Time{})
		h.link("crm/key")
		h.uses("of the first")
		change("second")
		h.there.anew("crm/key", `{"password":"of the second"}`, time.Time{})
		h.uses("of the second")
		for range 3 {
			h.clock.Advance(6 * time.Minute)
			h.uses("of the second")
		}
		if gets, _ := h.there.asked(); gets > 3 {
			t.Errorf("one version was asked for %d times, want it believed again", gets)
		}

		h.there.anew("crm/key", `{"password":"made again"}`, h.clock.Now())
		h.clock.Advance(6 * time.Minute)
		h.uses("made again")

		// While it is asked, the store is changed: what it said is copied by nobody.
		h.there.anew("crm/key", `{"password":"too late"}`, h.clock.Now())
		h.clock.Advance(6 * time.Minute)
		_, before, err := h.secrets.Copied(t.Context(), "acme", "crm/key")
		if err != nil {
			t.Fatal(err)
		}
		h.x.Reach(func(point string) error {
			if point == "before get" {
				change("third")
			}
			return nil
		})
		if got, err := h.use(h.secrets, "crm/key"); err == nil {
			t.Errorf("from a store that was changed meanwhile: %q", got)
		}
		h.x.Reach(nil)
		if _, now, err := h.secrets.Copied(t.Context(), "acme", "crm/key"); err != nil || now.N != before.N {
			t.Errorf("what a store said that was changed meanwhile is version %d, %v; want it to stay %d", now.N, err, before.N)
		}
		h.there.anew("crm/key", `{"password":"of the third"}`, time.Time{})
		h.clock.Advance(3 * time.Second)
		h.uses("of the third")
	})
}

// TestNamesOfVersions: what a store calls a version is kept, so that it is neither
// endless nor something that is taken for something else.
func TestNamesOfVersions(t *testing.T) {
	d := dbtest.Open(t)
	h := build(t, d, guardtest.AllowAll)
	h.there.write("crm/key", `{"password":"x"}`)
	h.link("crm/key")
	for _, prefix := range []string{strings.Repeat("x", 4000), "a version (deleted) ", "\x1b[2J"} {
		h.there.prefix = prefix
		if got, err := h.use(h.secrets, "crm/key"); !errors.Is(err, upstream.ErrStore) {
			t.Errorf("a version called %.20q: %q, %v, want ErrStore", prefix, got, err)
		}
		h.clock.Advance(3 * time.Second)
	}
	h.there.prefix = ""
	h.uses("x")
}

// TestDestinationTakenAway: a destination that is taken away while the store is asked
// gets nothing.
func TestDestinationTakenAway(t *testing.T) {
	d := dbtest.Open(t)
	h := build(t, d, guardtest.AllowAll)
	h.there.write("crm/key", `{"password":"x"}`)
	h.link("crm/key")
	h.x.Reach(func(string) error {
		_, err := h.secrets.Update(t.Context(), ann, "crm/key", secret.Change{Destinations: &[]string{}})
		return err
	})
	if got, err := h.use(h.secrets, "crm/key"); !errors.Is(err, secret.ErrDestination) {
		t.Errorf("a destination that was taken away meanwhile gets %q, %v", got, err)
	}
}

// TestCopiesKeepOurs: however many versions are copied, what was written here before
// stays.
func TestCopiesKeepOurs(t *testing.T) {
	d := dbtest.Open(t)
	h := build(t, d, guardtest.AllowAll)
	h.make("crm/key", `{"password":"ours"}`, crmHost)
	h.link("crm/key")
	s, err := h.secrets.Describe(t.Context(), "acme", "crm/key")
	if err != nil {
		t.Fatal(err)
	}
	const copies = 120
	for n := range copies {
		if _, err := h.secrets.Copy(t.Context(), ann, "crm/key", *s.Link, strconv.Itoa(n+1), estover.NewSecret([]byte(`{"password":"theirs"}`)), nil); err != nil {
			t.Fatal(err)
		}
	}
	versions, err := h.secrets.Versions(t.Context(), ann, "crm/key")
	if err != nil || len(versions) != 101 {
		t.Fatalf("%d versions, %v, want ours and the hundred newest copies", len(versions), err)
	}
	if ours, oldest := versions[100], versions[99]; ours.N != 1 || ours.State != secret.Live || oldest.N != copies+2-100 || versions[0].N != copies+1 {
		t.Errorf("versions %d to %d and %+v, want ours kept", versions[0].N, oldest.N, ours)
	}
}

// TestReadThroughOnce is S1: of 64 who want a secret at once, on two nodes, one asks;
// and whoever was not the one has what that one got.
func TestReadThroughOnce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, guardtest.AllowAll)
		h.there.write("crm/key", `{"password":"v1"}`)
		h.link("crm/key")
		_, other := h.node("node_2")
		for round, want := range []string{"v1", "v2", "v3"} {
			if round > 0 {
				h.there.write("crm/key", `{"password":"`+want+`"}`)
				h.clock.Advance(6 * time.Minute)
			}
			var wg sync.WaitGroup
			for i := range 64 {
				wg.Go(func() {
					s := h.secrets
					if i%2 == 1 {
						s = other
					}
					if got, err := h.use(s, "crm/key"); err != nil || got != want {
						t.Errorf("reader %d of round %d got %q, %v, want %q", i, round, got, err, want)
					}
				})
			}
			wg.Wait()
			if gets, versions := h.there.asked(); gets != round+1 || versions != round {
				t.Fatalf("round %d: %d values and %d lists were asked for, want %d and %d", round, gets, versions, round+1, round)
			}
		}
	})
}

// TestReadThroughDecision: nobody has another vault asked who may not read what it
// says, and what policy does not allow is refused although the store is down.
func TestReadThroughDecision(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, guardtest.Decider(func(_ estover.Caller, op guard.Op) guard.Decision {
			return guard.Decision{Allow: op.Action != "secret.read", Reasons: []string{"no"}, Engine: "policy"}
		}))
		h.there.write("crm/key", `{"password":"first"}`)
		h.link("crm/key")
		var refusal *guard.Refusal
		if _, err := h.secrets.Read(t.Context(), ann, "crm/key", 0, "curiosity"); !errors.As(err, &refusal) {
			t.Errorf("reading what one may not: %v, want a refusal", err)
		}
		if gets, versions := h.there.asked(); gets+versions != 0 {
			t.Errorf("the store was asked %d times for somebody who may not read it", gets+versions)
		}
	})
}

// TestLink: who may link what. A secret that somebody else owns, one that logs in at
// a store, and what cannot be a path are refused.
func TestLink(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, guardtest.AllowAll)
		h.there.write("a", `{"value":"of a"}`)
		tom := bea
		tom.Subject = estover.User("usr_tom")
		if _, err := h.x.Link(t.Context(), tom, upstream.LinkSpec{Path: "a", Store: "old"}); !errors.Is(err, upstream.ErrNotOwner) {
			t.Errorf("through somebody else's store: %v, want ErrNotOwner", err)
		}
		if _, err := h.x.Put(t.Context(), bea, upstream.StoreSpec{Name: "of-bea", Kind: "memory", Address: "https://vault.example", Login: "vault/token"}); err != nil {
			t.Fatal(err)
		}
		h.make("ann/key", `{"password":"hers"}`)
		if _, err := h.x.Link(t.Context(), bea, upstream.LinkSpec{Path: "ann/key", Store: "of-bea", From: "a"}); !errors.Is(err, secret.ErrNotOwner) {
			t.Errorf("somebody else's secret: %v, want ErrNotOwner", err)
		}
		if err := h.x.Unlink(t.Context(), tom, "ann/key"); !errors.Is(err, secret.ErrNotOwner) {
			t.Errorf("unlinking somebody else's secret: %v, want ErrNotOwner", err)
		}
		for field, l := range map[string]upstream.LinkSpec{"from": {Path: "b", Store: "old", From: "../b"}, "ttl": {Path: "b", Store: "old", TTL: secret.Duration(25 * time.Hour)}} {
			var invalid *estover.Error
			if _, err := h.x.Link(t.Context(), ann, l); !errors.As(err, &invalid) || invalid.Field != field {
				t.Errorf("a wrong %s: %v", field, err)
			}
		}
		// What logs in there is not read there.
		if _, err := h.x.Link(t.Context(), ann, upstream.LinkSpec{Path: "vault/token", Store: "old", From: "a"}); err != nil {
			t.Fatal(err)
		}
		h.link("a")
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if _, err := h.secrets.Use(ctx, bot, "a", "", crmHost); !errors.Is(err, upstream.ErrStore) || !strings.Contains(err.Error(), "lives in another vault itself") {
			t.Errorf("a log-in that goes round in circles: %v, want it named", err)
		}
	})
}

// TestFolder: each secret below a prefix there is linked, also those that come later;
// what is here already is left alone.
func TestFolder(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, guardtest.AllowAll)
		for _, p := range []string{"team/crm/a", "team/crm/sub/b", "team/crm/mine", "team/hr/x"} {
			h.there.write(p, `{"password":"of `+p+`"}`)
		}
		h.make("crm/mine", `{"password":"mine"}`, crmHost)
		got, err := h.x.Link(t.Context(), ann, upstream.LinkSpec{Path: "crm/", Store: "old", From: "team/crm/", Destinations: []string{crmHost}})
		if err != nil || !slices.Equal(got.Linked, []string{"crm/a", "crm/sub/b"}) || !slices.Equal(got.Taken, []string{"crm/mine"}) {
			t.Fatalf("linking a folder: %+v, %v", got, err)
		}
		for path, want := range map[string]string{"crm/a": "of team/crm/a", "crm/sub/b": "of team/crm/sub/b", "crm/mine": "mine"} {
			if got, err := h.use(h.secrets, path); err != nil || got != want {
				t.Errorf("%s: %q, %v, want %q", path, got, err, want)
			}
		}
		h.there.write("team/crm/late", `{"password":"late"}`)
		fill := func() {
			t.Helper()
			if err := h.x.FillDue(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		fill()
		if _, err := h.use(h.secrets, "crm/late"); !errors.Is(err, secret.ErrNotFound) {
			t.Errorf("before its time: %v, want ErrNotFound", err)
		}
		h.clock.Advance(6 * time.Minute)
		h.there.set(true)
		fill()
		s, err := h.x.Get(t.Context(), ann, "old")
		if err != nil || len(s.Folders) != 1 || !strings.Contains(s.Folders[0].LastError, "nobody is there") {
			t.Errorf("the folder shows %+v, %v, want why it could not be looked at", s.Folders, err)
		}
		h.there.set(false)
		h.clock.Advance(6 * time.Minute)
		fill()
		if got, err := h.use(h.secrets, "crm/late"); err != nil || got != "late" {
			t.Errorf("what came later: %q, %v", got, err)
		}
		if err := h.x.Unlink(t.Context(), ann, "crm/"); err != nil {
			t.Fatal(err)
		}
		h.there.write("team/crm/later", `{"password":"later"}`)
		h.clock.Advance(6 * time.Minute)
		fill()
		if _, err := h.use(h.secrets, "crm/later"); !errors.Is(err, secret.ErrNotFound) {
			t.Errorf("after the folder was unlinked: %v, want ErrNotFound", err)
		}
	})
}

// TestFolderOfAnother: nobody gets hold of what a folder links by having made a
// secret there before, or by having the folder read through a store of theirs.
func TestFolderOfAnother(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, guardtest.AllowAll)
		h.there.write("team/crm/a", `{"password":"of a"}`)
		trap := secret.Spec{Path: "crm/a", Description: "read through the store old", Destinations: []string{"evil.example:443"}}
		if _, err := h.secrets.Create(t.Context(), bea, trap); err != nil {
			t.Fatal(err)
		}
		folder := upstream.LinkSpec{Path: "crm/", Store: "old", From: "team/crm/"}
		got, err := h.x.Link(t.Context(), ann, folder)
		if err != nil || len(got.Linked) != 0 || !slices.Equal(got.Taken, []string{"crm/a"}) {
			t.Errorf("over somebody else's secret: %+v, %v, want it taken", got, err)
		}
		if s, err := h.secrets.Describe(t.Context(), "acme", "crm/a"); err != nil || s.Link != nil {
			t.Errorf("somebody else's secret: %+v, %v, want it not linked", s, err)
		}
		if _, err := h.x.Put(t.Context(), bea, upstream.StoreSpec{Name: "of-bea", Kind: "memory", Address: "https://vault.example", Login: "vault/token"}); err != nil {
			t.Fatal(err)
		}
		folder.Store = "of-bea"
		if _, err := h.x.Link(t.Context(), bea, folder); !errors.Is(err, upstream.ErrNotOwner) {
			t.Errorf("a folder of somebody else's store: %v, want ErrNotOwner", err)
		}
		if s, err := h.x.Get(t.Context(), ann, "old"); err != nil || len(s.Folders) != 1 {
			t.Errorf("the folder of the store: %+v, %v", s.Folders, err)
		}
	})
}

// TestFolderWithoutEnd: a store that names other secrets each time does not fill the
// database.
func TestFolderWithoutEnd(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, guardtest.AllowAll)
		h.there.write("a/first", `{"password":"x"}`)
		if got, err := h.x.Link(t.Context(), ann, upstream.LinkSpec{Path: "a/", Store: "old"}); err != nil || len(got.Linked) != 1 {
			t.Fatalf("linking a folder: %+v, %v", got, err)
		}
		err := d.Do(t.Context(), "acme", func(tx *db.Tx) error {
			_, err := tx.Exec(t.Context(), `insert into secret_link (tenant_id, secret_id, store_id, path)
				with recursive n(i) as (select 2 union all select i + 1 from n where i < $1)
				select tenant_id, 'sec_' || i, store_id, path from n, secret_link where tenant_id = 'acme'`, upstream.Most)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		h.there.write("a/other", `{"password":"x"}`)
		h.clock.Advance(6 * time.Minute)
		if err := h.x.FillDue(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := h.secrets.Describe(t.Context(), "acme", "a/other"); !errors.Is(err, secret.ErrNotFound) {
			t.Errorf("one more than there may be: %v, want ErrNotFound", err)
		}
		if s, err := h.x.Get(t.Context(), ann, "old"); err != nil || len(s.Folders) != 1 || !strings.Contains(s.Folders[0].LastError, "10000 secrets are read through the store old") {
			t.Errorf("the folder shows %+v, %v, want why", s.Folders, err)
		}
	})
}

// TestFoldersSideBySide: a store that takes its time does not hold up the folders of
// others.
func TestFoldersSideBySide(t *testing.T) {
	d := dbtest.Open(t)
	h := build(t, d, guardtest.AllowAll)
	for _, path := range []string{"a/", "b/"} {
		h.there.write(path+"key", `{"password":"x"}`)
		if _, err := h.x.Link(t.Context(), ann, upstream.LinkSpec{Path: path, Store: "old"}); err != nil {
			t.Fatal(err)
		}
	}
	var once sync.Once
	other := make(chan struct{})
	h.there.listing = func() {
		first := false
		once.Do(func() { first = true })
		if !first {
			close(other)
			return
		}
		select {
		case <-other:
		case <-time.After(time.Minute):
			t.Error("the second folder waits for the first one's store")
		}
	}
	h.clock.Advance(6 * time.Minute)
	if err := h.x.FillDue(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestSweepCopies: a copy that has not been believed for an hour is destroyed, and
// read again by who needs it.
func TestSweepCopies(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, guardtest.AllowAll)
		h.there.write("crm/key", `{"password":"first"}`)
		h.link("crm/key")
		h.uses("first")
		copied := func(want int64, when string) {
			t.Helper()
			if err := h.x.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, v, err := h.secrets.Copied(t.Context(), "acme", "crm/key"); err != nil || v.N != want {
				t.Fatalf("%s: the copy is version %d, %v, want %d", when, v.N, err, want)
			}
		}
		h.clock.Advance(30 * time.Minute)
		copied(1, "half an hour later")
		h.clock.Advance(40 * time.Minute)
		copied(0, "an hour later")
		h.uses("first")
		copied(2, "when it was needed again")
		h.clock.Advance(6 * time.Minute)
		h.there.set(true)
		if got, err := h.use(h.secrets, "crm/key"); err == nil {
			t.Errorf("with the store down: %q", got)
		}
		h.clock.Advance(70 * time.Minute)
		copied(0, "an hour after the store went down")
		h.there.set(false)
		h.uses("first")
		if err := h.secrets.Remove(t.Context(), ann, "crm/key"); err != nil {
			t.Fatal(err)
		}
		if err := h.x.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := h.x.Remove(t.Context(), ann, "old"); err != nil {
			t.Errorf("a store whose secrets are no more: %v", err)
		}
	})
}
