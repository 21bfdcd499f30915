package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// A Task is what a session is opened for.
type Task struct {
	// Purpose is one that the agent has declared. An agent with one purpose need
	// not say it.
	Purpose string

	// About is the task in a sentence, for the record.
	About string

	// Life is the longest that the session may live, in whole seconds, up to a
	// day; 0 is the server's 8 hours.
	Life time.Duration

	// Idle has the session end when nobody has used it for so long, in whole
	// seconds: no call through a gateway and no [Client.Heartbeat]. 0 is never.
	Idle time.Duration

	// Parent is the session that the task is a part of, by its id, and with which
	// it ends; "" for none. An agent that does what another has handed on opens its
	// sessions within the one that this began in.
	Parent string
}

// A Session is one task of the agent. What belongs to it, tokens foremost, ends
// with it.
type Session struct {
	ID      string    `json:"id"`
	Agent   string    `json:"agent"`
	Purpose string    `json:"purpose"`
	About   string    `json:"task,omitempty"`
	Parent  string    `json:"parent,omitempty"`
	State   string    `json:"state"` // open or ended, when it was asked for
	Opened  time.Time `json:"opened_at"`
	Expires time.Time `json:"expires_at"`
	Cause   string    `json:"end_cause,omitempty"` // of its end
}

// OpenSession opens a session of the agent. Name the session's id in
// [Want.Session] to get tokens that belong to it, and end it when the task is
// done.
func (c *Client) OpenSession(ctx context.Context, t Task) (Session, error) {
	in := map[string]any{
		"purpose": t.Purpose, "task": t.About, "ttl_seconds": int64(t.Life / time.Second),
		"idle_seconds": int64(t.Idle / time.Second), "parent": t.Parent,
	}
	var out struct{ Session Session }
	if err := c.manage(ctx, t.Purpose, "/v1/sessions", in, &out); err != nil {
		return Session{}, fmt.Errorf("opening a session: %w", err)
	}
	return out.Session, nil
}

// RenewSession has a session live for so long from now, in whole seconds; 0 is
// the server's 8 hours. It lives a day from its opening at the most.
func (c *Client) RenewSession(ctx context.Context, s Session, life time.Duration) (renewed Session, err error) {
	in := map[string]any{"ttl_seconds": int64(life / time.Second)}
	if err := c.manage(ctx, s.Purpose, "/v1/sessions/"+url.PathEscape(s.ID)+"/renew", in, &renewed); err != nil {
		return s, fmt.Errorf("renewing the session: %w", err)
	}
	return renewed, nil
}

// Heartbeat says that a session is in use, so that it does not end for want of
// it, and tells how it stands: also of one that has ended, and why.
func (c *Client) Heartbeat(ctx context.Context, s Session) (now Session, err error) {
	if err := c.send(ctx, http.MethodPut, s.Purpose, "/v1/sessions/"+url.PathEscape(s.ID)+"/heartbeat", struct{}{}, &now); err != nil {
		return s, fmt.Errorf("saying that the session is in use: %w", err)
	}
	return now, nil
}

// EndSession ends a session of the agent, and with it everything that belongs to
// it, everywhere. The cause is for the record.
func (c *Client) EndSession(ctx context.Context, s Session, cause string) error {
	if err := c.manage(ctx, s.Purpose, "/v1/sessions/"+url.PathEscape(s.ID)+"/end", map[string]any{"cause": cause}, nil); err != nil {
		return fmt.Errorf("ending the session: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, e := range c.tokens {
		if e.token.Session == s.ID {
			delete(c.tokens, key)
		}
	}
	return nil
}

// manage does something by the management API, as the agent. The API is at the
// issuer's host, and at that for clients with a certificate. A token for it is
// one whose resource is the issuer.
func (c *Client) manage(ctx context.Context, purpose, path string, in, out any) error {
	return c.send(ctx, http.MethodPost, purpose, path, in, out)
}

func (c *Client) send(ctx context.Context, method, purpose, path string, in, out any) error {
	_, host, err := c.tokenEndpoint(ctx)
	if err != nil {
		return err
	}
	at := host + path
	var body io.Reader
	if in != nil {
		body = bytes.NewReader(asJSON(in))
	}
	req, err := http.NewRequestWithContext(ctx, method, at, body)
	if err != nil {
		return err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if method == http.MethodPost {
		// Sent again, because the answer was lost, it is done once.
		req.Header.Set("Idempotency-Key", rand.Text())
	}
	res, err := plain(&Transport{Client: c, Want: Want{Purpose: purpose, Resources: []string{c.issuer}}, To: at}).Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if err := ErrorOf(res); err != nil || out == nil {
		return err
	}
	b, err := readAll(res)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, out)
}
