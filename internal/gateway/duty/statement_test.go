package duty

import (
	"errors"
	"strings"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/attest"
	"estover.dev/internal/edge"
	"estover.dev/internal/evidence"
	"estover.dev/internal/gateway"
	"estover.dev/internal/guard"
	"estover.dev/internal/resource"
)

// What the statement of a call and the event of its outcome say, to the byte: a list of
// nothing is left out, as anything is that was not so.
func TestStatementsOfCalls(t *testing.T) {
	ex := &gateway.Exchange{
		Conn: gateway.Conn{Caller: estover.Caller{
			Tenant: "acme", Subject: "user:usr_alice", Actors: []estover.Subject{"agent:agt_bot"}, Session: "ses_1", Purpose: "support", Grant: "gnt_1",
		}},
		Method: "GET", Host: edge.Host{Name: "crm.example", Port: 443},
	}
	d := &Duties{}
	for name, one := range map[string]struct {
		secrets     []string
		obligations []guard.Obligation
		out         gateway.Outcome
		action      string // what the statement says of the action beside what it says of each
		decision    string
		outcome     string
		told        string // what the event says beside
	}{
		"nothing was put in": {
			out:    gateway.Outcome{End: gateway.Complete, Status: 200, Proto: "HTTP/1.1", Sent: 1, Received: 20, Delivered: 20, Took: 1500 * time.Nanosecond, Address: "192.0.2.7:443"},
			action: `"tool":"/v1/{id}"`, outcome: `"status":200,"durationMicros":1`,
			told: `"complete","seq":7,"status":200,"sent":1,"received":20,"delivered":20,"took_us":1,COMMITTED,"upstream":"192.0.2.7:443"`,
		},
		"a slot could not be filled": {
			out:    gateway.Outcome{End: gateway.Refused, Err: gateway.ErrSlot.With("No <field>.")},
			action: `"tool":"/v1/{id}"`, outcome: `"isError":true,"error":"secret_unavailable"`,
			told: `"refused","seq":7,"status":0,"sent":0,"received":0,"delivered":0,"took_us":0,COMMITTED,"error":"No \u003cfield\u003e."`,
		},
		"the upstream failed": {
			out:    gateway.Outcome{End: gateway.Failed, Err: errors.New("no route")},
			action: `"tool":"/v1/{id}"`, outcome: `"isError":true,"error":"failed"`,
			told: `"failed","seq":7,"status":0,"sent":0,"received":0,"delivered":0,"took_us":0,COMMITTED,"error":"no route"`,
		},
		"the client went away, with a secret and obligations": {
			secrets: []string{"sec_1@2"}, obligations: []guard.Obligation{{Type: "evidence"}, {Type: "record"}, {Type: "receipt"}},
			out:    gateway.Outcome{End: gateway.Cancelled, Status: 200},
			action: `"tool":"/v1/{id}","secrets":["sec_1@2"]`, decision: `,"obligations":["evidence","record","receipt"]`, outcome: `"status":200,"isError":true,"error":"cancelled"`,
			told: `"cancelled","seq":7,"status":200,"sent":0,"received":0,"delivered":0,"took_us":0,COMMITTED,"secrets":["sec_1@2"]`,
		},
	} {
		c := &call{
			task: &task{key: taskKey{"acme", "ses_1"}}, resource: &resource.Upstream{}, action: resource.Action{Name: "customer.read", Path: "/v1/{id}"},
			decision: guard.Decision{ID: "evt_1", Rule: "tenant.access", Revision: attest.Sum("bundle").String(), Obligations: one.obligations},
			host:     ex.Host.String(), seq: 7, at: time.Date(2026, 11, 28, 20, 0, 0, 123_000, time.UTC),
			commits: evidence.Committed{Seed: make([]byte, 32), Principal: ex.Caller.Subject, Grant: `{"id":"grt_1"}`},
		}
		c.resource.Name = "crm"
		p := &gateway.Plan{State: c}
		if err := d.Fill(t.Context(), ex, p); err != nil {
			t.Fatal(err)
		}
		c.secrets = append(c.secrets, one.secrets...)
		d.taps(ex, c, p, recordNone)
		_, _, _ = p.Sent.Head([]byte("GET /v1/7 HTTP/1.1\r\n\r\n")), p.Received.Head([]byte("HTTP/1.1 200 OK\r\n\r\n")), p.Delivered.Head([]byte("HTTP/1.1 200 OK\r\n\r\n"))
		want := `{"_type":"https://in-toto.io/Statement/v1","subject":[` +
			`{"name":"request","digest":{"sha256":"12a90cf8ddd616d3fc971b4f620d7983ce37c7fe9aede4618ae437adf20494f9"}},` +
			`{"name":"response","digest":{"sha256":"9d22f53304ec9454bc3c4cfe3803b9df7bffcafc194e94da7517e5b04804f6ee"}}],` +
			`"predicateType":"https://estover.dev/attestation/action/v1","predicate":{"id":"evt_1","tenant":"acme","time":"2026-11-28T20:00:00.000123Z","seq":7,"intent":{},` +
			`"agent":{"id":"agt_bot","proof":{"kind":"token","digest":"72dfb67d27e0e2e6c993c2d61c5b3243f1ae289fedcd5ea46e4442ed3784b1a7"}},` +
			`"principal":{"subject":"06f654126aaa22d864b401de29d9d711e4bc1411ff6c2b26164f79b2c6be2032","act":["agent:agt_bot"]},` +
			`"grant":{"digest":"c198d94f41549d5944e1b6f68d913785f65df01246c251a07316cd738f3e3585","purpose":"support"},` +
			`"decision":{"result":"allow","bundle":"1e6ed65d77d6364eeaed5a745ba5c4985ae2b700dd85d7cf7f027bdf294a33fc","rule":"tenant.access"` + one.decision + `},` +
			`"action":{"protocol":"http",`
		if one.out.Proto != "" {
			want += `"revision":"` + one.out.Proto + `",`
		}
		want += `"server":"crm.example:443","resource":"crm","name":"customer.read","method":"GET",` + one.action + `},` +
			`"outcome":{` + one.outcome + `},"recording":{"session":"ses_1"}}}`
		if got := string(d.statement(ex, c, &one.out).AppendJSON(nil)); got != want {
			t.Errorf("%s: the statement is\n%s\nwant\n%s", name, got, want)
		}
		want = `,"call":"evt_1","end":` + strings.Replace(one.told, "COMMITTED",
			`"committed":{"seed":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","principal":"user:usr_alice","grant":"{\"id\":\"grt_1\"}"}`, 1)
		if got := string(c.told(&one.out)); got != want {
			t.Errorf("%s: the event tells\n%s\nwant\n%s", name, got, want)
		}
	}
}
