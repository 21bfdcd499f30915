package notify_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
)

// A toldEvent is what the model knows of an event.
type toldEvent struct {
	id, request string
	decided     bool // before it was told
	dropped     bool // with its channel
}

// TestModel does at random what can happen to a channel, and looks after each step
// whether the other side has heard each event once, in the order of the log, and
// nothing that had been decided; in the end nothing is missing.
func TestModel(t *testing.T) {
	checks := flag.Lookup("rapid.checks")
	if old := checks.Value.String(); old == checks.DefValue { // nobody asked for more
		_ = checks.Value.Set("12")
		defer func() { _ = checks.Value.Set(old) }()
	}
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		b := newBench(t, d)
		runs := 0
		rapid.Check(t, func(rt *rapid.T) {
			runs++
			h := newHook(t)
			name := fmt.Sprintf("bus%d", runs)
			spec := standard(h)
			spec.Name = name
			b.put(spec)
			b.clock.Advance(time.Second)
			live, failing := true, false
			var events []*toldEvent
			heard := func() (ids []string) {
				for _, p := range h.posts() {
					var m struct{ Data struct{ Event string } }
					if err := json.Unmarshal(p.body, &m); err != nil {
						rt.Fatal(err)
					}
					ids = append(ids, m.Data.Event)
				}
				return ids
			}
			taken := map[string]bool{} // answered with a good status
			send := func() {
				before := len(h.posts())
				if _, err := b.SendDue(t.Context()); err != nil {
					rt.Fatal(err)
				}
				if !failing {
					for _, id := range heard()[before:] {
						if taken[id] {
							rt.Fatalf("the event %s was told twice, though it had got through", id)
						}
						taken[id] = true
					}
				}
			}
			rt.Repeat(map[string]func(*rapid.T){
				"happen": func(rt *rapid.T) {
					id := fmt.Sprintf("apr_%d_%d", runs, len(events))
					e := &toldEvent{request: id, dropped: !live}
					e.id = b.asks(id, "a reason").ID
					events = append(events, e)
				},
				"decide": func(rt *rapid.T) {
					if len(events) == 0 {
						return
					}
					e := rapid.SampledFrom(events).Draw(rt, "event")
					b.decided(e.request)
					e.decided = e.decided || !taken[e.id]
				},
				"trouble": func(*rapid.T) { h.answer(http.StatusBadGateway); failing = true },
				"health":  func(*rapid.T) { h.answer(http.StatusOK); failing = false },
				"wait": func(rt *rapid.T) {
					b.clock.Advance(time.Duration(rapid.IntRange(1, 300).Draw(rt, "seconds")) * time.Second)
				},
				"send": func(*rapid.T) { send() },
				"retire": func(rt *rapid.T) {
					if !live || rapid.IntRange(0, 3).Draw(rt, "rarely") > 0 {
						return
					}
					if err := b.Retire(t.Context(), admin, name); err != nil {
						rt.Fatal(err)
					}
					live = false
					for _, e := range events {
						e.dropped = e.dropped || !taken[e.id]
					}
				},
				"begin again": func(*rapid.T) {
					if !live {
						b.put(spec)
						b.clock.Advance(time.Second)
						live = true
					}
				},
				"": func(rt *rapid.T) {
					// What is heard is in the order of the log, but for what is sent again.
					at := -1
					for _, id := range heard() {
						i := slices.IndexFunc(events, func(e *toldEvent) bool { return e.id == id })
						if i < at {
							rt.Fatalf("the event %d came after the event %d", i, at)
						}
						at = i
					}
				},
			})
			h.answer(http.StatusOK)
			failing = false
			for range len(events) + 10 {
				b.clock.Advance(2 * time.Hour / time.Duration(len(events)+10))
				send()
			}
			for i, e := range events {
				if want := !e.decided && !e.dropped; taken[e.id] != want {
					rt.Fatalf("the event %d was told: %v, want %v (%+v)", i, taken[e.id], want, e)
				}
			}
			if live {
				if err := b.Retire(t.Context(), admin, name); err != nil {
					rt.Fatal(err)
				}
			}
			h.Close()
		})
	})
}
