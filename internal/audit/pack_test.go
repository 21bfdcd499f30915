package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
)

// mixed is an event that may be packed, unless its number says otherwise.
func mixed(n int) Event {
	e := event(n)
	e.ID, e.Touches = fmt.Sprintf("evt_%032d", (n*37)%1000), nil
	switch {
	case n%41 == 0:
		e.ID = fmt.Sprintf("foreign_%d", n)
	case n%13 == 0:
		e.Touches = []string{"agent:agt_1"}
	}
	e.Session, e.Actor = fmt.Sprintf("ses_%d", n%3), estover.Agent(fmt.Sprintf("agt_%d", n%2))
	if n%5 == 0 {
		e.Action, e.Outcome = "agent.hold", Refused
	}
	return e
}

// appendMixed commits the events first to last together.
func appendMixed(t testing.TB, l *Log, first, last int) (all []Prepared) {
	t.Helper()
	var rows []db.Row
	for n := first; n <= last; n++ {
		p, err := l.Prepare(acme, mixed(n))
		fatal(t, err)
		all, rows = append(all, p), append(rows, p.Row())
	}
	fatal(t, l.db.Append(t.Context(), db.Append{Tenant: acme, Rows: rows}))
	return all
}

// Events that one commit writes share rows, and nobody who reads the log can
// tell.
func TestPack(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		l := newKeys(t).open(d)
		rows := func() (n int) {
			fatal(t, d.View(t.Context(), acme, func(tx *db.Tx) error {
				return tx.QueryRow(t.Context(), "select count(*) from audit where tenant_id = $1", acme).Scan(&n)
			}))
			return n
		}
		find := func(n, place int) {
			t.Helper()
			want := mixed(n)
			fatal(t, d.View(t.Context(), acme, func(tx *db.Tx) error {
				e, err := l.Find(t.Context(), tx, want.ID)
				fatal(t, err)
				if e.Index != int64(place) {
					t.Errorf("event %d has the place %d, want %d", n, e.Index, place)
				}
				e.Leaf = nil
				if diff := cmp.Diff(want, e.Event); diff != "" {
					t.Errorf("event %d read back:\n%s", n, diff)
				}
				return nil
			}))
		}
		const half, all = 150, 300
		appendMixed(t, l, 1, half)
		if n := rows(); n > half/3 {
			t.Fatalf("%d events are in %d rows", half, n)
		}
		for n := 1; n <= half; n++ {
			find(n, -1)
		}
		fatal(t, l.Sequence(t.Context(), acme))
		appendMixed(t, l, half+1, all)
		fatal(t, l.Sequence(t.Context(), acme))
		if v := verified(t, l, acme); v.Size != all || v.Published != all || v.Waiting != 0 {
			t.Errorf("verified %+v", v)
		}
		fatal(t, d.View(t.Context(), acme, func(tx *db.Tx) error {
			for _, r := range [][2]int{{0, all}, {3, 5}, {1, 2}, {149, 151}, {299, 300}, {64, 200}} {
				leaves, err := readLeaves(t.Context(), tx, int64(r[0]), int64(r[1]))
				fatal(t, err)
				if len(leaves) != r[1]-r[0] {
					t.Fatalf("%d leaves from %d to %d", len(leaves), r[0], r[1])
				}
				hashes, err := readTile(t.Context(), tx, 0, 0, 256)
				fatal(t, err)
				for i, leaf := range leaves {
					if at := r[0] + i; at < 256 && tlog.RecordHash(leaf) != tlog.Hash(hashes[at*32:][:32]) {
						t.Errorf("the leaf %d is not the one in the tree", at)
					}
				}
			}
			return nil
		}))
		// Places are given in the order of the rows, so ask where each is.
		seen := map[string]int64{}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		fatal(t, l.Follow(ctx, "pack", nil, func(_ context.Context, _ estover.TenantID, events []Entry) error {
			for _, e := range events {
				if int64(len(seen)) == e.Index {
					seen[e.ID] = e.Index
				}
			}
			if len(seen) == all {
				cancel()
			}
			return nil
		}))
		for n := 1; n <= all; n++ {
			find(n, int(seen[mixed(n).ID]))
		}
		erased := mixed(75)
		fatal(t, d.Do(t.Context(), acme, func(tx *db.Tx) error { return l.Erase(t.Context(), tx, erased.ID) }))
		if v := verified(t, l, acme); v.Erased != 1 {
			t.Errorf("%d events are erased, want one", v.Erased)
		}
		fatal(t, d.View(t.Context(), acme, func(tx *db.Tx) error {
			if e, err := l.Find(t.Context(), tx, erased.ID); err != nil || !e.Erased || e.Payload != nil || e.Action != erased.Action {
				t.Errorf("an erased event reads %+v: %v", e, err)
			}
			return nil
		}))
		find(74, int(seen[mixed(74).ID]))
		find(76, int(seen[mixed(76).ID]))
	})
}

// A row that has several events already, or is like none of ours, is left alone, and so
// is the order.
func TestPackLeavesOthers(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		l := newKeys(t).open(d)
		all := calls(t, l, 16)
		var rows []db.Row
		for _, p := range all {
			rows = append(rows, p.Row())
		}
		several, next := packed(rows[3:8]), packed(rows[8:10])
		foreign := db.Row{Into: Table, Values: all[12].Values()}
		in := slices.Concat(rows[:3], []db.Row{several, next}, rows[10:12], []db.Row{foreign}, rows[13:15], []db.Row{several}, rows[15:])
		var got []string
		for _, r := range pack(in) {
			v := r.All()
			got = append(got, fmt.Sprint(v[colN], " from ", slices.IndexFunc(all, func(p Prepared) bool { return bytes.HasPrefix(v[colPayload].([]byte), p.payload) })))
		}
		want := []string{"3 from 0", "5 from 3", "2 from 8", "2 from 10", "1 from 12", "2 from 13", "5 from 3", "1 from 15"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("the packs are\n%s", diff)
		}
		// Handed to a commit together with single ones, all events are there, each in its place.
		in = slices.Concat(rows[:3], []db.Row{several, next}, rows[10:])
		fatal(t, d.Append(t.Context(), db.Append{Tenant: acme, Rows: in}))
		fatal(t, l.Sequence(t.Context(), acme))
		if v := verified(t, l, acme); v.Size != 16 {
			t.Errorf("the log has %d events, want 16", v.Size)
		}
		fatal(t, d.View(t.Context(), acme, func(tx *db.Tx) error {
			events, err := readPlaced(t.Context(), tx, 0, 16)
			for i, e := range events {
				if e.event.ID != all[i].head.ID {
					t.Errorf("place %d has %s, want %s", i, e.event.ID, all[i].head.ID)
				}
			}
			return err
		}))
	})
}

// Whatever is asked for, in pages of whatever size, is what a look at every
// event by itself finds, whether it is in the tree or waits.
func TestPackedList(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		l := newKeys(t).open(d)
		for n := 1; n <= 200; n += 50 {
			appendMixed(t, l, n, n+49)
			if n < 150 {
				fatal(t, l.Sequence(t.Context(), acme))
			}
		}
		rapid.Check(t, func(t *rapid.T) {
			f := Filter{
				Session: rapid.SampledFrom([]string{"", "", "ses_0", "ses_2", "ses_9"}).Draw(t, "session"),
				Actor:   rapid.SampledFrom([]estover.Subject{"", "agent:agt_0", "agent:agt_1"}).Draw(t, "actor"),
				Target:  rapid.SampledFrom([]string{"", "", "agent:agt_3"}).Draw(t, "target"),
				Action:  rapid.SampledFrom([]string{"", "agent.hold", "agent.create"}).Draw(t, "action"),
				Outcome: rapid.SampledFrom([]Outcome{"", Refused}).Draw(t, "outcome"),
			}
			if rapid.Bool().Draw(t, "since") {
				f.Since = event(rapid.IntRange(0, 201).Draw(t, "from")).At
			}
			if rapid.Bool().Draw(t, "until") {
				f.Until = event(rapid.IntRange(0, 201).Draw(t, "to")).At
			}
			want := map[string]bool{}
			for n := 1; n <= 200; n++ {
				if e := mixed(n); f.lets(&e) {
					want[e.ID] = true
				}
			}
			limit := rapid.IntRange(1, 70).Draw(t, "limit")
			got := map[string]bool{}
			last := int64(1 << 40)
			err := d.View(context.Background(), acme, func(tx *db.Tx) error {
				for before := int64(0); ; {
					events, next, err := l.List(context.Background(), tx, f, before, limit)
					if err != nil {
						return err
					}
					for _, e := range events {
						if got[e.ID] {
							t.Errorf("%s comes twice", e.ID)
						}
						if got[e.ID] = true; e.Index >= 0 {
							if e.Index >= last {
								t.Errorf("the place %d comes after %d", e.Index, last)
							}
							last = e.Index
						}
					}
					if before = next; next == 0 {
						return nil
					}
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%+v in pages of %d:\n%s", f, limit, diff)
			}
		})
	})
}

// Whatever is changed of a pack behind the log's back is found.
func TestPackTampering(t *testing.T) {
	d := dbtest.Open(t)
	k := newKeys(t)
	for name, change := range map[string]func(r *row, forged, other row){
		"the heads":         func(r *row, f, _ row) { r.heads = f.heads },
		"the leaves":        func(r *row, f, _ row) { r.leaf = f.leaf },
		"the hashes":        func(r *row, f, _ row) { r.leafHash = f.leafHash },
		"the payloads":      func(r *row, f, _ row) { r.payload = f.payload },
		"all but the heads": func(r *row, f, _ row) { r.leaf, r.leafHash, r.payload = f.leaf, f.leafHash, f.payload },
		"all of it": func(r *row, f, _ row) {
			r.heads, r.leaf, r.leafHash, r.payload = f.heads, f.leaf, f.leafHash, f.payload
		},
		"a byte of heads":   func(r *row, _, _ row) { r.heads[len(r.heads)/2] ^= 1 },
		"a byte of a leaf":  func(r *row, _, _ row) { r.leaf[len(r.leaf)/2] ^= 1 },
		"a byte of content": func(r *row, _, _ row) { r.payload[len(r.payload)/2] ^= 1 },
		"a byte at the end": func(r *row, _, _ row) { r.payload = r.payload[:len(r.payload)-1] },
		"a leaf's length":   func(r *row, _, _ row) { r.leaf[1]++ },
		"another's content": func(r *row, _, o row) { r.payload = o.payload },
		"the first id":      func(r *row, _, _ row) { r.event.ID = "evt_" + r.event.ID[5:] + "0" },
		"the last id":       func(r *row, _, _ row) { r.lastID += "0" },
		"the time":          func(r *row, _, _ row) { r.event.At = r.event.At.Add(time.Microsecond) },
		"the heads' end":    func(r *row, _, _ row) { r.heads = r.heads[:len(r.heads)-1] },
		"all of another pack": func(r *row, _, o row) {
			r.heads, r.leaf, r.leafHash, r.payload, r.event.At = o.heads, o.leaf, o.leafHash, o.payload, o.event.At
		},
	} {
		tenant := estover.TenantID(fmt.Sprintf("t%x", sha256.Sum256([]byte(name)))[:20])
		l := k.open(d)
		both := func(actor estover.Subject) (out []db.Row) {
			for _, from := range []int{1, 21} {
				var rows []db.Row
				for n := from; n < from+20; n++ {
					e := mixed(n)
					e.ID, e.Touches, e.Actor = fmt.Sprintf("evt_%032d", n), nil, actor
					p, err := l.Prepare(tenant, e)
					fatal(t, err)
					rows = append(rows, p.Row())
				}
				out = append(out, packed(rows))
			}
			return out
		}
		rows := both("user:usr_ada")
		fatal(t, d.Do(t.Context(), tenant, func(tx *db.Tx) error {
			for _, r := range rows {
				if err := tx.Insert(t.Context(), r); err != nil {
					return err
				}
			}
			return nil
		}))
		fatal(t, l.Sequence(t.Context(), tenant))
		verified(t, l, tenant)
		stored := func(r db.Row) row {
			v := r.Values
			return row{
				event: Event{ID: v[colID].(string), At: time.UnixMicro(v[colAt].(int64))}, lastID: v[colLastID].(string),
				heads: slices.Clone(v[colHeads].([]byte)), leaf: slices.Clone(v[colLeaf].([]byte)), leafHash: v[colLeafHash].([]byte), payload: slices.Clone(v[colPayload].([]byte)),
			}
		}
		r := stored(rows[0])
		change(&r, stored(both("user:usr_eve")[0]), stored(rows[1]))
		n := int64(0)
		fatal(t, d.Do(t.Context(), tenant, func(tx *db.Tx) (err error) {
			n, err = tx.Exec(t.Context(), `update audit set id = $2, last_id = $3, at = $4, heads = $5, leaf = $6, leaf_hash = $7, payload = $8
				where tenant_id = $1 and idx = 0`, tenant, r.event.ID, r.lastID, r.event.At, r.heads, r.leaf, r.leafHash, r.payload)
			return err
		}))
		if n != 1 {
			t.Fatalf("%s: %d rows were changed", name, n)
		}
		if v, err := l.Verify(t.Context(), tenant); err != nil || v.OK() {
			t.Errorf("%s was changed, and Verify found nothing: %v", name, err)
		}
	}
}

// A pack that somebody has written is told apart or refused.
func FuzzPack(f *testing.F) {
	l := Log{o: Options{Seal: func(_ estover.TenantID, _ string, plain []byte) ([]byte, error) { return plain, nil }}}
	var rows []db.Row
	for n := 1; n <= 3; n++ {
		p, err := l.Prepare(acme, mixed(n))
		fatal(f, err)
		rows = append(rows, p.Row())
	}
	v := packed(rows).Values
	f.Add(v[colHeads].([]byte), v[colLeaf].([]byte), v[colPayload].([]byte), int64(3))
	f.Fuzz(func(t *testing.T, heads, leaf, payload []byte, n int64) {
		r := row{n: n, heads: heads, leaf: leaf, payload: payload, leafHash: make([]byte, max(0, min(n, 300))*tlog.HashSize)}
		list, err := readHeads(heads, n)
		if err == nil && len(list) > 0 {
			var same []head
			if err := cbor.Unmarshal(heads, &same); err == nil && !slices.Equal(list, same) {
				t.Errorf("the heads %x are read as %+v, and are %+v", heads, list, same)
			}
			r.event.ID, r.lastID, r.event.At = list[0].ID, list[0].ID, time.UnixMicro(list[0].At)
		}
		events, err := r.events()
		if err == nil && int64(len(events)) != n {
			t.Errorf("%d events of %d", len(events), n)
		}
		_, _, _ = r.erased("evt_x")
	})
}
