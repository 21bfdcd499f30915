package audit

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
)

// killSeed makes the keys that a killed process shares with the test.
var killSeed = []byte("0123456789abcdef0123456789abcdef")

// untilKilled is the process that TestKill kills. It writes and sequences, half
// of it by way of the spool, and prints what was acknowledged.
func untilKilled(t *testing.T, url, spool string) {
	first, err := strconv.Atoi(os.Getenv("AUDIT_TEST_FIRST"))
	fatal(t, err)
	d, err := db.Open(t.Context(), url, db.Options{})
	fatal(t, err)
	l := keysFrom(t, killSeed).open(d)
	s, err := OpenSpool(l, spool, SpoolOptions{Every: time.Millisecond})
	fatal(t, err)
	go func() { _ = l.Run(t.Context()) }()
	go func() { _ = s.Run(t.Context()) }()
	var mu sync.Mutex
	for w := range 8 {
		go func() {
			for n := first + w; ; n += 8 {
				p, err := l.Prepare(acme, event(n))
				if err == nil && w%2 == 0 {
					err = s.Append(p)
				} else if err == nil {
					err = d.Append(context.Background(), db.Append{Tenant: acme, Rows: []db.Row{p.Row()}})
				}
				if err != nil {
					panic(err)
				}
				l.Wake()
				mu.Lock()
				fmt.Printf("acknowledged %s\n", p.head.ID)
				mu.Unlock()
			}
		}()
	}
	select {}
}

// A process that is killed at any moment loses nothing that it acknowledged,
// and leaves a log that verifies.
func TestKill(t *testing.T) {
	if url := os.Getenv("AUDIT_TEST_DB"); url != "" { // started by the test below
		untilKilled(t, url, os.Getenv("AUDIT_TEST_SPOOL"))
	}
	dbtest.EachURL(t, func(t *testing.T, url string) {
		spool := t.TempDir()
		d, err := db.Open(t.Context(), url, db.Options{})
		fatal(t, err)
		defer d.Close()
		l := keysFrom(t, killSeed).open(d)
		acknowledged := map[string]bool{}
		for life := range 4 {
			c := exec.Command(os.Args[0], "-test.run=^TestKill$")
			c.Env = append(os.Environ(), "AUDIT_TEST_DB="+url, "AUDIT_TEST_SPOOL="+spool, fmt.Sprint("AUDIT_TEST_FIRST=", 1_000_000*(life+1)))
			c.Stderr = os.Stderr
			out, err := c.StdoutPipe()
			fatal(t, err)
			fatal(t, c.Start())
			lines, limit := bufio.NewScanner(out), 100+rand.IntN(400)
			for n := 0; lines.Scan(); n++ {
				if id, ok := strings.CutPrefix(lines.Text(), "acknowledged "); ok {
					acknowledged[id] = true
				}
				if n == limit {
					fatal(t, c.Process.Kill())
				}
			}
			_ = c.Wait()
			v, err := l.Verify(t.Context(), acme)
			fatal(t, err)
			if !v.OK() {
				t.Fatalf("after the kill: %+v", v.Findings)
			}
		}
		s := openSpool(t, l, spool, SpoolOptions{})
		fatal(t, s.Flush(t.Context()))
		fatal(t, l.Sequence(t.Context(), acme))
		v := verified(t, l, acme)
		all := leaves(t, l, acme)
		if v.Waiting != 0 || int64(len(all)) != v.Size || v.Root != rootOf(t, all) {
			t.Errorf("in the end: %+v with %d leaves", v, len(all))
		}
		there := map[string]bool{}
		fatal(t, d.View(t.Context(), acme, func(tx *db.Tx) error {
			rows, err := readPlaced(t.Context(), tx, 0, v.Size)
			for _, r := range rows {
				there[r.event.ID] = true
			}
			return err
		}))
		for id := range acknowledged {
			if !there[id] {
				t.Errorf("%s was acknowledged and is lost", id)
			}
		}
		if len(acknowledged) < 400 {
			t.Errorf("only %d events were acknowledged", len(acknowledged))
		}
	})
}
