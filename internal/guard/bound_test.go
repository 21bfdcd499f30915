package guard_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"estover.dev"
	"estover.dev/internal/audit"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
)

// A stranger does not fill the log: what is refused is on record within bounds, and
// what is cut is recognised by its hash. Nothing is lost, however long it is.
func TestRefusalsAreBounded(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		long := strings.Repeat("a/long/path/", 1<<16)
		input, err := json.Marshal(map[string]string{"path": long})
		if err != nil {
			t.Fatal(err)
		}
		refuse := guardtest.Decider(func(estover.Caller, guard.Op) guard.Decision {
			return guard.Decision{Reasons: []string{"no"}, Message: long, Facts: map[string]any{"input": json.RawMessage(input)}}
		})
		detail := map[string]any{"path": long, "list": []string{long, long}, "short": "kept"}
		op := guard.Op{Action: "thing.raise", Target: "thing:" + long, Session: long, Resource: long, Purpose: long, Detail: detail, Members: []byte(`,"more":` + string(input))}
		var list []audit.Entry
		for _, decider := range []guardtest.Decider{refuse, guardtest.DenyAll} {
			g := guardtest.New(t, d, decider)
			err := g.Do(t.Context(), alice, op, nil)
			var refusal *guard.Refusal
			if !errors.As(err, &refusal) {
				t.Fatalf("a refusal: %v", err)
			}
			if err := d.View(t.Context(), alice.Tenant, func(tx *db.Tx) error {
				e, err := g.Log().Find(t.Context(), tx, refusal.Decision.ID)
				list = append(list, e)
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
		if detail["path"] != long {
			t.Error("the op's own detail was changed")
		}
		sum := func(s string) string { b := sha256.Sum256([]byte(s)); return hex.EncodeToString(b[:]) }
		for _, e := range list {
			b, err := json.Marshal(e)
			if err != nil || len(b) > 24<<10 {
				t.Errorf("an event of %d bytes, %v", len(b), err)
			}
			if !strings.HasPrefix(e.Target, "thing:a/long/") || !strings.Contains(e.Target, sum("thing:"+long)) || len(e.Target) > 1<<10 {
				t.Errorf("the target is %q, want its beginning and its hash", e.Target)
			}
			if path, _ := e.Detail["path"].(string); !strings.Contains(path, sum(long)) || e.Detail["short"] != "kept" {
				t.Errorf("the detail tells %.200v", e.Detail)
			}
		}
	})
}

// T3: that somebody named another organisation's thing, by its id, is on record as
// refused, whether it was to be read or changed. A name that nobody has is not.
func TestIDsOfOthersAreOnRecord(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		g := guardtest.New(t, d, guardtest.AllowAll)
		none := &estover.Error{Kind: estover.NotFound, Code: "thing_not_found", Detail: "There is none."}
		theirs := estover.NewID("thg")
		missing := func(caller estover.Caller, target string) {
			t.Helper()
			if err := g.Do(t.Context(), caller, guard.Op{Action: "thing.raise", Target: target}, func(*guard.Tx) error { return none }); !errors.Is(err, none) {
				t.Errorf("changing %s: %v", target, err)
			}
			if err := g.Read(t.Context(), caller, guard.Op{Action: "thing.read", Target: target}, func(*db.Tx) error { return none }); !errors.Is(err, none) {
				t.Errorf("reading %s: %v", target, err)
			}
		}
		missing(alice, "thing:"+theirs)
		serial := "x509_certificate:mnt/" + strings.Repeat("0a", 20)
		missing(alice, serial)
		missing(alice, "thing:a-name")
		missing(alice, "ssh_certificate:17")
		missing(estover.Caller{Tenant: "acme", Subject: estover.System("sweep")}, "thing:"+theirs)
		got := fmt.Sprint(events(t, d, "acme"))
		if want := "[thing.raise refused user:usr_alice thing:" + theirs + " thing.read refused user:usr_alice thing:" + theirs +
			" thing.raise refused user:usr_alice " + serial + " thing.read refused user:usr_alice " + serial + "]"; got != want {
			t.Errorf("the log has %s, want %s", got, want)
		}
	})
}
