package guard_test

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"estover.dev"
	"estover.dev/internal/audit"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
)

// What a door has encoded already is followed by what the guard adds, whether there is
// room behind it or not; and beside the event that it is for, nothing in that room
// belongs to anybody.
func TestEventsAreWrittenIntoTheirRoom(t *testing.T) {
	g := guardtest.New(t, dbtest.Open(t), guardtest.AllowAll)
	caller := estover.Caller{Tenant: alice.Tenant, Subject: "agent:agt_bot", Actors: []estover.Subject{"agent:agt_<other>"}, Purpose: "support", Noted: `"more":1`}
	decision := guard.Decision{ID: "evt_1", Allow: true, Rule: "tenant.access", Engine: "cache", Facts: map[string]any{"input": json.RawMessage(`{"op":"gateway.call"}`)}}
	for _, at := range []struct{ address, want string }{
		{"192.0.2.7", `,"address":"192.0.2.7"`},
		{"2001:db8::7", `,"address":"2001:db8::7"`},
		{"::ffff:192.0.2.7", `,"address":"::ffff:192.0.2.7"`},
		{`fe80::7%"<a>"`, `,"address":"fe80::7%\"\u003ca\u003e\""`},
		{"", ""},
	} {
		caller.Address, _ = netip.ParseAddr(at.address)
		want := `,"n":1,"decision":{"allow":true,"rule":"tenant.access","engine":"cache","facts":{"input":{"op":"gateway.call"}}},"resource":"res_1","purpose":"support"` +
			`,"actors":["agent:agt_\u003cother\u003e"]` + at.want + `,"noted":{"more":1}`
		for _, room := range []int{0, 1, 100, 4096} {
			members := append(make([]byte, 0, 6+room), `,"n":1`...)
			e := g.Event(caller, guard.Op{Action: "gateway.call", Resource: "res_1", Members: members}, decision, audit.Done)
			if got := string(e.Members); got != want {
				t.Errorf("with room for %d bytes the event tells %s, want %s", room, got, want)
			}
			if string(members) != `,"n":1` {
				t.Errorf("with room for %d bytes the op's own members are now %s", room, members)
			}
			if inPlace := cap(members) > len(want) && &e.Members[0] == &members[0]; inPlace != (room == 4096) {
				t.Errorf("with room for %d bytes the event is written in place: %v", room, inPlace)
			}
		}
	}
}

// A refusal is on record in memory of its own: what is behind the op's members may be
// written to by somebody else.
func TestARefusalLeavesTheRoomAlone(t *testing.T) {
	g := guardtest.New(t, dbtest.Open(t), guardtest.DenyAll)
	room := []byte(`,"n":1` + strings.Repeat("x", 4096))
	if _, err := g.Admit(t.Context(), alice, guard.Op{Action: "thing.raise", Members: room[:6]}); err == nil {
		t.Fatal("the operation is admitted")
	}
	if strings.Trim(string(room[6:]), "x") != "" {
		t.Error("a refusal was written behind the members of its operation")
	}
}
