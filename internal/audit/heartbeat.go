package audit

import (
	"encoding/json"
	"fmt"
	"time"

	"estover.dev"
)

// A Heartbeat is what a gateway counted since it started. With one a minute in
// the log, a verifier sees from when to when a gateway ran, and whether what it
// had on its own disk was lost with it.
type Heartbeat struct {
	At       time.Time `json:"at"`
	Gateway  string    `json:"gateway"`
	Boot     string    `json:"boot"` // a random id for each start
	Intents  int64     `json:"intents"`
	Outcomes int64     `json:"outcomes"`
	Refusals int64     `json:"refusals"`
	Spooled  int64     `json:"spooled"` // events on the node's own disk
}

// Event is the heartbeat as an event. Its leaf shows the counts as they are,
// since there is nobody in them.
func (h Heartbeat) Event() (Event, error) {
	e := Event{
		ID: NewID(), At: h.At, Action: "gateway.beat", Outcome: Done,
		Actor: estover.System("gateway"), Target: "gateway:" + h.Gateway,
	}
	leaf, err := json.Marshal(struct {
		Version int    `json:"v"`
		ID      string `json:"id"`
		Action  string `json:"action"`
		Heartbeat
	}{1, e.ID, e.Action, h})
	if err != nil {
		return Event{}, fmt.Errorf("encoding a heartbeat: %w", err)
	}
	e.Leaf = leaf
	return e, nil
}
