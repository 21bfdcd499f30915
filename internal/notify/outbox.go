package notify

import (
	"context"
	"slices"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/audit"
	"estover.dev/internal/db"
)

// An event is what a message keeps of an event of the log: names alone, and no
// words of anybody's.
type event struct {
	ID      string          `json:"id"`
	At      time.Time       `json:"at"`
	Action  string          `json:"action"`
	Actor   estover.Subject `json:"actor"`
	Target  string          `json:"target,omitempty"`
	Request string          `json:"request,omitempty"` // of an event about a request
	Kind    string          `json:"kind,omitempty"`
	Agent   string          `json:"agent,omitempty"`
	State   string          `json:"state,omitempty"`
}

// A message is an event for a recipient.
type message struct {
	id        string
	channel   string
	recipient string // "" for the channel itself, a person's subject, or mailto:ADDRESS
	event     event
	n         int64         // the event's place in the log
	wait      time.Duration // for others, to be one message with them
	bundle    string
	attempts  int64
	created   time.Time
	due       time.Time
}

// Wants is of which actions the channels of a tenant tell, for [audit.Log.Follow].
func (n *Notify) Wants(ctx context.Context, tenant estover.TenantID) (func(action string) bool, error) {
	channels, err := n.copies.Get(ctx, tenant, all)
	if err != nil || len(channels) == 0 {
		return nil, err
	}
	return func(action string) bool {
		return slices.ContainsFunc(channels, func(c Channel) bool { return c.tells(action) })
	}, nil
}

// Take puts what a tenant's channels tell of events into the outbox. It is what
// follows the log ([audit.Log.Follow]), and does nothing about an event that it
// has seen.
func (n *Notify) Take(ctx context.Context, tenant estover.TenantID, events []audit.Entry) error {
	channels, err := n.copies.Get(ctx, tenant, all)
	if err != nil || len(channels) == 0 {
		return err
	}
	var list []message
	for i := range events {
		more, err := n.messages(ctx, tenant, channels, &events[i])
		if err != nil {
			return err
		}
		list = append(list, more...)
	}
	if len(list) == 0 {
		return nil
	}
	return n.guard.DB().Do(ctx, tenant, func(tx *db.Tx) error {
		for _, m := range list {
			m.due = tx.Now().Add(m.wait)
			if err := enqueue(ctx, tx, m); err != nil {
				return err
			}
		}
		return nil
	})
}

// messages are what the channels of a tenant tell of one event: what has been
// done, since they are there.
func (n *Notify) messages(ctx context.Context, tenant estover.TenantID, channels []Channel, e *audit.Entry) (list []message, err error) {
	if e.Outcome != audit.Done || e.Erased || slices.ContainsFunc(never, func(p string) bool { return strings.HasPrefix(e.Action, p) }) {
		return nil, nil
	}
	if again, _ := e.Detail["again"].(bool); again { // it waits already, and those who decide know
		return nil, nil
	}
	word := func(name string) string { s, _ := e.Detail[name].(string); return s }
	about := event{
		ID: e.ID, At: e.At, Action: e.Action, Actor: e.Actor, Target: e.Target,
		Request: word("request"), Kind: word("kind"), Agent: word("agent"), State: word("state"),
	}
	var told []Person
	asked := false
	for i := range channels {
		c := &channels[i]
		if !c.tells(e.Action) || e.At.Before(c.CreatedAt) {
			continue
		}
		to := []string{""}
		if c.Kind == Email {
			if !asked {
				if told, err = n.People(ctx, tenant, words(e.Detail["approvers"]), about.Agent); err != nil {
					return nil, err
				}
				asked = true
			}
			to = nil
			for _, p := range told {
				if p.Email != "" {
					to = append(to, string(p.Subject))
				}
			}
			for _, a := range c.To {
				to = append(to, mailto+a)
			}
		}
		for _, r := range to {
			list = append(list, message{
				id: estover.NewID("msg"), channel: c.ID, recipient: r, event: about, n: e.Index, wait: c.batch(),
			})
		}
	}
	return list, nil
}

// mailto begins a recipient that is an address and nobody in the directory.
const mailto = "mailto:"

// words is a list of strings as an event has it that was read.
func words(v any) (list []string) {
	switch v := v.(type) {
	case []string:
		return v
	case []any:
		for _, one := range v {
			if s, ok := one.(string); ok {
				list = append(list, s)
			}
		}
	}
	return list
}
