package client

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"
)

// An Access is actions of one resource.
type Access struct {
	Resource   string              `json:"resource"` // its name
	Actions    []string            `json:"actions"`
	Parameters map[string][]string `json:"parameters,omitempty"` // what those of the actions' paths may be
}

// A Wish is what the agent asks for beside what it has.
type Wish struct {
	// Access is what is asked for, up to ten resources.
	Access []Access

	// Purpose is one that the agent has declared, and Session the session that it
	// is for and ends with. Both may be left out: then it is for the session of the
	// token, if there is one.
	Purpose, Session string

	// For is how long it is wanted, between a minute and a day, in whole seconds;
	// 0 is an hour, or until the session ends.
	For time.Duration

	// Reason says in a sentence what for. Context has what else people should know
	// who decide: a ticket, a customer.
	Reason  string
	Context map[string]string
}

// The states of requests.
const (
	Pending   = "pending"
	Approved  = "approved"
	Denied    = "denied"
	Expired   = "expired"
	Cancelled = "cancelled"
)

// A Request is what the agent has asked for, and what became of it.
type Request struct {
	ID      string    `json:"id"`
	State   string    `json:"state"`
	Session string    `json:"session,omitempty"`
	Purpose string    `json:"purpose,omitempty"`
	Expires time.Time `json:"expires_at"`     // if nobody decides before
	Note    string    `json:"note,omitempty"` // of whoever decided

	// Offer is what was granted, which may be less than what was asked for.
	Offer struct {
		Access []Access  `json:"items"`
		Until  time.Time `json:"until,omitzero"`
	} `json:"offer"`
}

// Ask asks for access. What policy permits is approved in the answer; the rest
// waits for people ([Client.Await]). Asked again while it waits, it is the same
// request. After an approval a token is got anew that names what was granted.
func (c *Client) Ask(ctx context.Context, w Wish) (r Request, err error) {
	in := map[string]any{"items": w.Access, "reason": w.Reason}
	if w.Purpose != "" {
		in["purpose"] = w.Purpose
	}
	if w.Session != "" {
		in["session"] = w.Session
	}
	if w.For != 0 {
		in["for_seconds"] = int64(w.For / time.Second)
	}
	if len(w.Context) > 0 {
		in["context"] = w.Context
	}
	if err := c.manage(ctx, w.Purpose, "/v1/access/requests", in, &r); err != nil {
		return r, fmt.Errorf("asking for access: %w", err)
	}
	c.granted(r)
	return r, nil
}

// Await waits until a request is decided, or ctx is done.
func (c *Client) Await(ctx context.Context, r Request) (Request, error) {
	pause := 500 * time.Millisecond
	for r.State == Pending {
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return r, ctx.Err()
		}
		pause = min(pause*3/2, 10*time.Second)
		if err := c.send(ctx, http.MethodGet, r.Purpose, "/v1/access/requests/"+url.PathEscape(r.ID), nil, &r); err != nil {
			return r, fmt.Errorf("asking what became of a request: %w", err)
		}
	}
	c.granted(r)
	return r, nil
}

// granted drops the tokens that were got before a request was approved: they do
// not name what was granted.
func (c *Client) granted(r Request) {
	if r.State != Approved {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, e := range c.tokens {
		if r.Session == "" || e.token.Session == r.Session {
			delete(c.tokens, key)
		}
	}
}
