package approval_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"estover.dev"
	"estover.dev/internal/approval"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
)

// A modelled is what a request should be, as plain as it can be said.
type modelled struct {
	id        string
	requester estover.Subject
	asked     time.Duration // on the model's clock
	quorum    int
	wished    []string // actions, as asked for
	actions   []string // on the table
	round     int
	votes     map[estover.Subject]bool // in this round
	state     approval.State
}

func (m *modelled) at(now time.Duration) approval.State {
	if m.state == approval.Pending && now-m.asked >= 24*time.Hour {
		return approval.Expired
	}
	return m.state
}

// Whatever people do in whatever order, requests are what a simple map says, and
// there are as many grants as requests that were approved.
func TestModel(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := open(t, d)
		h.change(func() { s := h.sessions["ses_1"]; s.Expires = d.Now().AddDate(10, 0, 0); h.sessions["ses_1"] = s })
		everybody := []estover.Caller{ann, bob, cy, sue}
		may := map[estover.Subject]bool{ann.Subject: true, bob.Subject: true, cy.Subject: true}
		grants := func(t *rapid.T) (n int) {
			if err := d.View(t.Context(), tenant, func(tx *db.Tx) error {
				return tx.QueryRow(t.Context(), "select count(*) from access_grant where tenant_id = $1", tx.Tenant()).Scan(&n)
			}); err != nil {
				t.Fatal(err)
			}
			return n
		}
		run, clock := 0, time.Duration(0)
		rapid.Check(t, func(t *rapid.T) {
			run++
			ctx := t.Context()
			disabled := map[estover.Subject]bool{}
			set := func(who estover.Caller, active bool) {
				disabled[who.Subject] = !active
				h.change(func() { p := h.people[who.Subject.ID()]; p.Active = active; h.people[who.Subject.ID()] = p })
			}
			for _, p := range everybody {
				set(p, true)
			}
			var all []*modelled
			before, approved := grants(t), 0
			pick := func() *modelled { return all[rapid.IntRange(0, len(all)-1).Draw(t, "request")] }
			agree := func(what string, got, want error) {
				t.Helper()
				if !errors.Is(got, want) || want == nil && got != nil {
					t.Fatalf("%s: %v, want %v", what, got, want)
				}
			}
			// deciding is why somebody may not decide.
			deciding := func(m *modelled, who estover.Caller) error {
				switch {
				case who.Subject == m.requester:
					return approval.ErrOwn
				case !may[who.Subject] || disabled[who.Subject]:
					return approval.ErrNotApprover
				case m.at(clock) != approval.Pending:
					return approval.ErrNotPending
				}
				return nil
			}
			wanted := 0 // by policy, as it was changed last
			for range rapid.IntRange(1, 14).Draw(t, "steps") {
				what := rapid.SampledFrom([]string{"ask", "ask", "approve", "approve", "approve", "deny", "cancel", "wait", "expire", "disable", "enable"}).Draw(t, "what")
				if len(all) == 0 {
					what = "ask"
				}
				who := rapid.SampledFrom(everybody).Draw(t, "who")
				switch what {
				case "ask":
					quorum := rapid.IntRange(1, 2).Draw(t, "quorum")
					wanted = quorum
					h.change(func() { h.demands = demand(map[string]any{"quorum": int64(quorum), "expires_seconds": int64(86400)}) })
					wish := reading([][]string{{"customer.read"}, {"customer.read", "customer.delete"}}[rapid.IntRange(0, 1).Draw(t, "actions")]...)
					wish.Items[0].Parameters = map[string][]string{"id": {fmt.Sprint(run)}}
					by := rapid.SampledFrom([]estover.Caller{bot, ann, sue}).Draw(t, "by")
					wish.Agent, wish.Session, wish.Purpose = "agt_bot", "ses_1", "support"
					r, err := h.Ask(ctx, by, wish)
					agree("asking", err, nil)
					actions := slices.Sorted(slices.Values(wish.Items[0].Actions))
					same := slices.IndexFunc(all, func(m *modelled) bool { return r.ID == m.id })
					waits := slices.IndexFunc(all, func(m *modelled) bool {
						return m.at(clock) == approval.Pending && slices.Equal(m.wished, actions)
					})
					if same != waits {
						t.Fatalf("asked for %v it is request %d, want %d", actions, same, waits)
					}
					if same < 0 {
						all = append(all, &modelled{
							id: r.ID, requester: by.Subject, asked: clock, quorum: quorum, wished: actions, actions: actions, round: 1, votes: map[estover.Subject]bool{}, state: approval.Pending,
						})
					}
				case "approve":
					m := pick()
					c := approval.Choice{}
					only := rapid.SampledFrom([][]string{nil, nil, {"customer.read"}, {"customer.delete"}}).Draw(t, "only")
					if only != nil {
						c.Narrow = []approval.Item{{Resource: "res_crm", Actions: only}}
					}
					want := deciding(m, who)
					round, actions, votes := m.round, m.actions, m.votes
					if want == nil && only != nil {
						if !slices.Contains(m.actions, only[0]) {
							want = approval.ErrWider
						} else if !slices.Equal(m.actions, only) {
							round, actions, votes = round+1, only, map[estover.Subject]bool{}
						}
					}
					if want == nil && wanted > m.quorum {
						want = approval.ErrStricter
					}
					if want == nil && votes[who.Subject] {
						want = approval.ErrVoted
					}
					_, err := h.Approve(ctx, who, m.id, c)
					agree(fmt.Sprintf("%s approves %v of %+v", who.Subject, only, m), err, want)
					if err == nil {
						m.round, m.actions, m.votes = round, actions, votes
						m.votes[who.Subject] = true
						count := 0
						for v := range m.votes {
							if !disabled[v] {
								count++
							}
						}
						if count >= m.quorum {
							m.state = approval.Approved
							approved++
						}
					}
				case "deny":
					m := pick()
					want := deciding(m, who)
					_, err := h.Deny(ctx, who, m.id, "No")
					agree(fmt.Sprintf("%s denies %+v", who.Subject, m), err, want)
					if err == nil {
						m.state = approval.Denied
					}
				case "cancel":
					m := pick()
					var want error
					switch {
					case who.Subject != m.requester && who.Subject != sue.Subject && who.Subject != ann.Subject:
						want = approval.ErrNotYours
					case m.at(clock) != approval.Pending:
						want = approval.ErrNotPending
					}
					_, err := h.Cancel(ctx, who, m.id, "")
					agree(fmt.Sprintf("%s takes back %+v", who.Subject, m), err, want)
					if err == nil {
						m.state = approval.Cancelled
					}
				case "wait":
					h.clock.Advance(7 * time.Hour)
					clock += 7 * time.Hour
				case "expire":
					_, err := h.ExpireDue(ctx)
					agree("expiring", err, nil)
				case "disable", "enable":
					set(who, what == "enable")
				}
				for _, m := range all {
					r, err := h.Get(ctx, ann, m.id)
					if err != nil || r.State != m.at(clock) || int(r.Round) != m.round || (r.Result != "") != (m.state == approval.Approved) ||
						!slices.Equal(r.Offer.Items[0].Actions, m.actions) {
						t.Fatalf("after %s: %+v, %v, want %+v", what, r, err, m)
					}
				}
			}
			if got := grants(t) - before; got != approved {
				t.Fatalf("there are %d grants of %d approved requests", got, approved)
			}
			for _, m := range all {
				if m.at(clock) == approval.Pending {
					if _, err := h.Cancel(ctx, ann, m.id, ""); err != nil {
						t.Fatal(err)
					}
				}
			}
		})
	})
}
