package e2e

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"estover.dev/e2e/e2etest"
	"estover.dev/internal/incident"
	"estover.dev/internal/incident/emergency"
)

// A server that is killed in the middle of an emergency rotation goes on with it
// when it is back: the second run of the same command finishes what the first one
// began, no user is left at the database, no lease is lost, and the report is
// verified offline (E5; with a thousand leases and fifty secrets in package
// emergency).
func TestKillInAnEmergency(t *testing.T) {
	t.Parallel()
	v := newVault(t, e2etest.Start(t))
	token, _ := v.asBot(t)
	const leases, secrets = 60, 10
	var work sync.WaitGroup
	turn := make(chan struct{}, 8)
	for range leases {
		work.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			if _, err := v.lease(t.Context(), t, token, "bot-postgres"); err != nil {
				t.Errorf("a lease: %v", err)
			}
		})
	}
	work.Wait()
	// Somebody has seen values that are not made here: another version is written by
	// hand. Those that are made here wait, after a kill, until the node that died can
	// be using none any more; package emergency has them.
	for n := range secrets {
		path := fmt.Sprintf("hand/key%d", n)
		v.admin.Must(t, "secret", "create", path, "--destination", "api.example.com")
		v.write(t, path)
		v.admin.Must(t, "secret", "get", path, "--purpose", "a look")
	}
	mark := v.leases(t, "role=bot-postgres")[0].User[:len("e_12345678_")]
	if n := len(v.pg.Users(t, mark)); n < leases {
		t.Fatalf("there are %d users, want %d", n, leases)
	}

	// It is killed while it cuts everybody off, and some users are gone.
	killed := make(chan struct{})
	go func() {
		defer close(killed)
		_ = v.Post(t, v.token, "/v1/containments", map[string]any{"scope": "everything", "reason": "nobody knows who it was"}, nil)
	}()
	e2etest.Eventually(t, "some users are gone", func() bool { return len(v.pg.Users(t, mark)) < leases })
	v.Kill()
	<-killed
	v.Restart(t)
	var contained struct{ Items []incident.Containment }
	must(t, v.Get(t, v.token, "/v1/containments", &contained))
	if len(contained.Items) != 1 {
		t.Fatalf("there are %d containments, want the one that was begun", len(contained.Items))
	}

	// And again while it goes through what was read.
	wish := map[string]any{"scope": "incident", "target": contained.Items[0].ID, "reason": "what it had"}
	killed = make(chan struct{})
	go func() {
		defer close(killed)
		_ = v.Post(t, v.token, "/v1/emergency-rotations", wish, nil)
	}()
	var begun emergency.Emergency
	e2etest.Eventually(t, "the emergency rotation has begun", func() bool {
		var all struct{ Items []emergency.Emergency }
		must(t, v.Get(t, v.token, "/v1/emergency-rotations", &all))
		if len(all.Items) > 0 {
			begun = all.Items[0]
		}
		return begun.ID != ""
	})
	v.Kill()
	<-killed
	v.Restart(t)
	for n := range secrets {
		v.write(t, fmt.Sprintf("hand/key%d", n))
	}

	// What a worker was taking away when it was killed waits until its claim is over.
	var done emergency.Emergency
	for deadline := time.Now().Add(4 * time.Minute); ; time.Sleep(time.Second) {
		must(t, v.Post(t, v.token, "/v1/emergency-rotations", wish, &done))
		if !done.DoneAt.IsZero() {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the second run has not finished what the first one began: %+v", done.Items)
		}
	}
	rotated := 0
	for _, i := range done.Items {
		if i.Kind == emergency.Rotate {
			rotated++
		}
	}
	if done.ID != begun.ID || rotated != secrets {
		t.Errorf("the second run is %s with %d secrets, want %s with %d", done.ID, rotated, begun.ID, secrets)
	}
	if left := v.pg.Users(t, mark); len(left) != 0 {
		t.Errorf("%d users are still at the database", len(left))
	}
	if left := v.leases(t, "open=true"); len(left) != 0 {
		t.Errorf("%d leases have not ended", len(left))
	}
	report, trust := filepath.Join(v.admin.Dir, "report"), filepath.Join(v.admin.Dir, "trust")
	must(t, os.WriteFile(report, []byte(v.admin.Must(t, "rotate", "report", done.ID)), 0o600))
	must(t, os.WriteFile(trust, []byte(v.admin.Must(t, "audit", "trust")), 0o600))
	if out := v.admin.Must(t, "verify", report, "--trust", trust); !strings.Contains(out, "PASS") {
		t.Errorf("the report: %s", out)
	}
}

// write gives a secret another version.
func (v *vault) write(t *testing.T, path string) {
	t.Helper()
	if r := v.admin.Input(t, rand.Text(), "secret", "put", path); r.Code != 0 {
		t.Fatalf("writing %s: %s%s", path, r.Stdout, r.Stderr)
	}
}
