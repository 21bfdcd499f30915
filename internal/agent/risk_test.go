package agent_test

import (
	"errors"
	"strings"
	"testing"

	"estover.dev/internal/agent"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
)

// The risk of an agent is what was said last, with a reason, and outlives what
// else is said of the agent.
func TestRisk(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := open(t, d)
		a := create(t, r, spec("bot"))
		if a.Risk != (agent.Risk{Band: agent.LowRisk}) || get(t, r, a.ID).Risk != a.Risk {
			t.Errorf("of an agent that nobody has spoken of, the risk is %+v and then %+v", a.Risk, get(t, r, a.ID).Risk)
		}
		epoch := a.Epoch
		for _, band := range []agent.Band{agent.RaisedRisk, agent.HighRisk, agent.CriticalRisk, agent.LowRisk} {
			want := agent.Risk{Band: band, Reason: "as it looks", By: ada.Subject}
			set, err := r.SetRisk(t.Context(), ada, a.ID, band, want.Reason)
			if set.Risk.At.Before(a.CreatedAt) {
				t.Errorf("setting %s: it was at %s, before the agent was there", band, set.Risk.At)
			}
			want.At = set.Risk.At
			if err != nil || set.Risk != want || set.Epoch != epoch+1 {
				t.Errorf("setting %s: %+v in epoch %d, %v, want %+v in epoch %d", band, set.Risk, set.Epoch, err, want, epoch+1)
			}
			epoch = set.Epoch
			if got := get(t, r, a.ID); got.Risk != want || got.Epoch != epoch {
				t.Errorf("after setting %s the registry has %+v in epoch %d", band, got.Risk, got.Epoch)
			}
			snapshot, err := r.Snapshot(t.Context(), ada.Tenant, a.ID)
			if err != nil || snapshot.Risk != want {
				t.Errorf("after setting %s memory has %+v, %v", band, snapshot.Risk, err)
			}
		}
		if again, err := r.SetRisk(t.Context(), ada, a.ID, agent.LowRisk, "looked at again"); err != nil || again.Epoch != epoch || again.Risk.Reason != "looked at again" {
			t.Errorf("setting the band that it has: %+v in epoch %d, %v, want the reason and no new epoch", again.Risk, again.Epoch, err)
		}

		high, err := r.SetRisk(t.Context(), ada, a.ID, agent.HighRisk, "too much")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Update(t.Context(), ada, a.ID, spec("bot")); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Hold(t.Context(), ada, a.ID, agent.Suspension, "a look"); err != nil {
			t.Fatal(err)
		}
		if got := get(t, r, a.ID); got.Risk != high.Risk {
			t.Errorf("after an update and a hold the risk is %+v, want %+v", got.Risk, high.Risk)
		}

		for _, c := range []struct {
			name         string
			band, reason string
			want         error
		}{
			{"a band that does not exist", "medium", "x", agent.ErrRiskBand},
			{"no band", "", "x", agent.ErrRiskBand},
			{"no reason", "high", "", agent.ErrRiskReason},
			{"a novel", "high", strings.Repeat("x", 501), agent.ErrRiskReason},
		} {
			if _, err := r.SetRisk(t.Context(), ada, a.ID, agent.Band(c.band), c.reason); !errors.Is(err, c.want) {
				t.Errorf("%s: %v, want %v", c.name, err, c.want)
			}
		}
		if _, err := r.SetRisk(t.Context(), eve, a.ID, agent.LowRisk, "x"); !errors.Is(err, agent.ErrNotFound) {
			t.Errorf("of another tenant's agent: %v, want ErrNotFound", err)
		}
		if err := r.Retire(t.Context(), ada, a.ID, "over"); err != nil {
			t.Fatal(err)
		}
		if _, err := r.SetRisk(t.Context(), ada, a.ID, agent.LowRisk, "x"); !errors.Is(err, agent.ErrRetired) {
			t.Errorf("of a retired agent: %v, want ErrRetired", err)
		}
		if got := get(t, r, a.ID); got.Risk != high.Risk {
			t.Errorf("after what was refused the risk is %+v, want %+v", got.Risk, high.Risk)
		}
	})
}
