package e2e

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"estover.dev/client"
	"estover.dev/e2e/e2etest"
)

// An agent is refused, reads in the answer how to ask, asks, waits, is let, and has
// nothing left of it when its session ends.
func TestAccessForATask(t *testing.T) {
	t.Parallel()
	d := newDesk(t, e2etest.Start(t))
	clerk := newOAuthClient(t, d, "clerk", e2etest.Agent("clerk", "support"), e2etest.Grant("clerk-lists", "clerk", "crm", "customer.list", "support"))
	ctx := t.Context()
	agent, err := client.New(d.URL, client.Options{ID: clerk.id, Credential: client.Secret(clerk.secret), Transport: d.HTTP(t).Transport})
	must(t, err)
	session, err := agent.OpenSession(ctx, client.Task{Purpose: "support", About: "note what a customer said"})
	must(t, err)
	want := client.Want{Resources: []string{d.URL + "/u/crm"}, Session: session.ID}
	crm := http.Client{Transport: &client.Transport{Client: agent, Want: want}}
	write := func() (status int, body []byte) {
		t.Helper()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, d.URL+"/u/crm/v1/customers/cus_1002/notes", strings.NewReader(`{"text": "Called about the invoice."}`))
		must(t, err)
		req.Header.Set("Content-Type", "application/json")
		res, err := crm.Do(req)
		must(t, err)
		defer res.Body.Close()
		body, err = io.ReadAll(res.Body)
		must(t, err)
		return res.StatusCode, body
	}
	var refused struct {
		Code   string
		Access struct {
			Endpoint, Pending string
			Form              string `json:"form_url"`
			Body              struct {
				Session, Reason string
				Items           []client.Access
			}
		} `json:"access_request"`
	}
	status, body := write()
	must(t, json.Unmarshal(body, &refused))
	if a := refused.Access; status != http.StatusForbidden || refused.Code != "not_granted" || a.Endpoint != d.URL+"/v1/access/requests" || a.Pending != "" ||
		len(a.Body.Items) != 1 || a.Body.Session != session.ID || a.Body.Items[0].Parameters["id"][0] != "cus_1002" {
		t.Fatalf("the refusal is %d %s", status, body)
	}
	r, err := agent.Ask(ctx, client.Wish{Access: refused.Access.Body.Items, Session: session.ID, Purpose: "support", For: 10 * time.Minute, Reason: refused.Access.Body.Reason})
	must(t, err)
	if r.State != client.Pending || r.Session != session.ID {
		t.Fatalf("asked for it is %+v", r)
	}
	if _, body = write(); !strings.Contains(string(body), r.ID) || !strings.Contains(string(body), "/approve/"+r.ID) {
		t.Errorf("while it waits the refusal is %s; want it to say which request waits", body)
	}
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	if got, err := agent.Await(short, r); err == nil {
		t.Errorf("nobody has decided, and it is %s", got.State)
	}
	d.admin.Must(t, "access", "approve", r.ID, "--for", "5m", "--note", "One note")
	got, err := agent.Await(ctx, r)
	must(t, err)
	if got.State != client.Approved || got.Note != "One note" || time.Until(got.Offer.Until) > 5*time.Minute {
		t.Fatalf("decided it is %+v", got)
	}
	if status, body = write(); status >= 300 {
		t.Fatalf("once approved: %d %s", status, body)
	}
	must(t, agent.EndSession(ctx, session, "done"))
	if state := d.admin.Must(t, "grant", "list", "--agent", clerk.id, "--all"); !strings.Contains(state, "ended") {
		t.Errorf("after the session the grants are\n%s", state)
	}
	// A program that `estover run` has started asks by the same command, and has
	// nothing to show but that it is run by it.
	said := d.admin.Must(t, "run", "-q", "--agent", "clerk", "--", e2etest.Binary(t), "access", "request", "--resource", "crm", "--action", "note.add", "--reason", "Once more")
	if !strings.Contains(said, "agent:"+clerk.id) || !strings.Contains(said, "pending") {
		t.Errorf("asked for by a program under run it is\n%s", said)
	}
	if state := d.admin.Must(t, "grant", "list", "--agent", clerk.id); strings.Contains(state, "note.add") {
		t.Errorf("after the session something is left:\n%s", state)
	}
}
