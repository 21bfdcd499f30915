package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"estover.dev/e2e/e2etest"
	"estover.dev/internal/db/dbtest"
)

// A gatewayProblem is an answer of the gateway itself.
type gatewayProblem struct {
	Status   int    `json:"status"`
	Code     string `json:"code"`
	Detail   string `json:"detail"`
	Decision string `json:"decision"`
}

// ask makes a call in a session, and reads the gateway's own answer if it is
// one.
func ask(t *testing.T, s *e2etest.Session, method, url string) (int, gatewayProblem, string) {
	t.Helper()
	status, p, body, err := tryToAsk(t, s, method, url)
	must(t, err)
	return status, p, body
}

// tryToAsk is ask where the connection may be cut.
func tryToAsk(t *testing.T, s *e2etest.Session, method, url string) (status int, p gatewayProblem, text string, err error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(`{"text": "a note"}`))
	must(t, err)
	req.Header.Set("Content-Type", "application/json")
	res, err := s.HTTP.Do(req)
	if err != nil {
		return 0, p, "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, p, "", err
	}
	if res.Header.Get("Content-Type") == "application/problem+json" {
		must(t, json.Unmarshal(body, &p))
	}
	return res.StatusCode, p, string(body), nil
}

// An upstream that is not there is told as that, with its reason, and what
// became of the call is on record.
func TestUpstreamDown(t *testing.T) {
	t.Parallel()
	d := newDesk(t, e2etest.Start(t))
	s, err := d.Open(t, d.admin.Token(t), "bot", "support")
	must(t, err)
	if status, _, body := ask(t, s, http.MethodGet, d.site.URL+"/v1/customers"); status != http.StatusOK {
		t.Fatalf("while the upstream is there: %d %s", status, body)
	}
	must(t, d.site.Close())
	for _, method := range []string{http.MethodGet, http.MethodPost} { // batched and strict
		path := map[string]string{http.MethodGet: "/v1/customers", http.MethodPost: "/v1/customers/cus_1001/notes"}[method]
		status, p, body := ask(t, s, method, d.site.URL+path)
		if status != http.StatusBadGateway || p.Code != "upstream_failed" || p.Decision == "" {
			t.Fatalf("%s of an upstream that is not there: %d %s", method, status, body)
		}
		var outcome map[string]any
		e2etest.Eventually(t, "the outcome is on record", func() bool {
			var events []loggedEvent
			d.admin.JSON(t, &events, "event", "list", "--session", s.ID, "--action", "gateway.call")
			for _, e := range events {
				if e.Detail["call"] == p.Decision {
					outcome = e.Detail
				}
			}
			return outcome != nil
		})
		if outcome["end"] != "failed" || outcome["error"] == nil {
			t.Errorf("the outcome of %s is %v", method, outcome)
		}
	}
}

// A switch is a socket that leads to a database as long as it is on.
type dbSwitch struct {
	from, to string

	mu       sync.Mutex
	listener net.Listener
	conns    []net.Conn
}

func (s *dbSwitch) on(t *testing.T) {
	t.Helper()
	l, err := net.Listen("unix", s.from)
	must(t, err)
	s.mu.Lock()
	s.listener = l
	s.mu.Unlock()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("unix", s.to)
			if err != nil {
				_ = c.Close()
				continue
			}
			s.mu.Lock()
			s.conns = append(s.conns, c, up)
			s.mu.Unlock()
			go func() { _, _ = io.Copy(up, c); _ = up.Close() }()
			go func() { _, _ = io.Copy(c, up); _ = c.Close() }()
		}
	}()
}

func (s *dbSwitch) off() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listener != nil {
		_ = s.listener.Close()
	}
	for _, c := range s.conns {
		_ = c.Close()
	}
	s.conns = nil
}

// While the database is gone, what must be on record before it happens does
// not happen, and nobody gets a token; when it is back, all goes on.
func TestDatabaseGone(t *testing.T) {
	t.Parallel()
	database, err := url.Parse(dbtest.Postgres(t))
	must(t, err)
	const socket = ".s.PGSQL.5432"
	q := database.Query()
	way := &dbSwitch{to: filepath.Join(q.Get("host"), socket)}
	dir := t.TempDir()
	way.from = filepath.Join(dir, socket)
	q.Set("host", dir)
	database.RawQuery = q.Encode()
	way.on(t)
	t.Cleanup(way.off)

	d := newOAuthDesk(t, e2etest.StartOn(t, database.String()))
	s, err := d.Open(t, d.admin.Token(t), "bot", "support")
	must(t, err)
	note := d.site.URL + "/v1/customers/cus_1001/notes"
	if status, _, body := ask(t, s, http.MethodPost, note); status != http.StatusCreated {
		t.Fatalf("while the database is there: %d %s", status, body)
	}
	form := url.Values{"grant_type": {"client_credentials"}, "purpose": {"support"}, "resource": {d.site.URL}}
	_, good := d.post(t, d.Token, form)
	about := url.Values{"token": {fmt.Sprint(good["access_token"])}}
	if status, answer := d.post(t, d.URL+"/oauth/introspect", about); status != http.StatusOK || answer["active"] != true {
		t.Fatalf("introspection while the database is there: %d %v", status, answer)
	}
	before := len(d.crm.Calls())
	way.off()
	gone := time.Now()
	for range 3 {
		// What was set up a moment ago is still being followed. A connection about
		// which a change is heard that cannot be looked up is cut, which is not what
		// this test is about: whoever is cut asks again.
		e2etest.Eventually(t, "a strict call without a database has an answer", func() bool {
			status, p, body, err := tryToAsk(t, s, http.MethodPost, note)
			if err == nil && (status != http.StatusServiceUnavailable || p.Code == "") {
				t.Errorf("a strict call without a database: %d %s", status, body)
			}
			return err == nil
		})
	}
	if n := len(d.crm.Calls()) - before; n != 0 {
		t.Errorf("%d strict calls were forwarded that nobody could record", n)
	}
	if status, answer := d.post(t, d.Token, form); status != http.StatusServiceUnavailable || answer["access_token"] != nil {
		t.Errorf("a token without a database: %d %v", status, answer)
	}
	res, err := d.HTTP(t).Get(d.URL + "/readyz")
	must(t, err)
	if _ = res.Body.Close(); res.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("the server says that it is ready: %s", res.Status)
	}
	for query, want := range map[string]int{"": http.StatusServiceUnavailable, "?sealedcode=299&activecode=200": 299} { // V14
		res, err := d.HTTP(t).Get(d.URL + "/vault/v1/sys/health" + query)
		must(t, err)
		body, err := io.ReadAll(res.Body)
		must(t, err)
		if _ = res.Body.Close(); res.StatusCode != want || !strings.Contains(string(body), `"sealed":true`) {
			t.Errorf("the health at the Vault-compatible door%s: %s %s, want %d", query, res.Status, body, want)
		}
	}
	r := d.admin.Run(t, "agent", "list")
	if r.Code != 5 || strings.Contains(r.Stderr, "panic") {
		t.Errorf("estover agent list: exit code %d, want 5\n%s", r.Code, r.Stderr)
	}
	if r := d.admin.Run(t, "doctor"); r.Code == 0 || !strings.Contains(r.Stdout, "database") {
		t.Errorf("estover doctor: exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	// What others may have ended cannot be known, so no token is said to be active.
	e2etest.Eventually(t, "introspection says that it cannot know", func() bool {
		asked := time.Now()
		status, answer := d.post(t, d.URL+"/oauth/introspect", about)
		if status == http.StatusOK && asked.Sub(gone) > 3*time.Second {
			t.Fatalf("introspection %v after the database went: %v", asked.Sub(gone), answer)
		}
		return status == http.StatusServiceUnavailable
	})
	way.on(t)
	e2etest.Eventually(t, "calls go through again", func() bool {
		status, _, _, err := tryToAsk(t, s, http.MethodPost, note) // or are cut, as above
		return err == nil && status == http.StatusCreated
	})
	if status, answer := d.post(t, d.Token, form); status != http.StatusOK {
		t.Errorf("a token when the database is back: %d %v", status, answer)
	}
	d.checkClosed(t, s.ID)
}

// A disk that takes nothing more stops what must be on record, and nothing is
// lost of what was taken before.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	d := newDesk(t, e2etest.Start(t))
	s, err := d.Open(t, d.admin.Token(t), "bot", "support")
	must(t, err)
	note := d.site.URL + "/v1/customers/cus_1001/notes"
	if status, _, body := ask(t, s, http.MethodPost, note); status != http.StatusCreated {
		t.Fatalf("while the disk takes something: %d %s", status, body)
	}
	// No file may grow, which is what a full disk does, for this process alone.
	var usual unix.Rlimit
	must(t, unix.Prlimit(d.Pid(), unix.RLIMIT_FSIZE, nil, &usual))
	must(t, unix.Prlimit(d.Pid(), unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 1, Max: usual.Max}, nil))
	before := len(d.crm.Calls())
	for range 3 {
		if status, p, body := ask(t, s, http.MethodPost, note); status != http.StatusServiceUnavailable || p.Code == "" {
			t.Errorf("a strict call on a full disk: %d %s", status, body)
		}
		if status, p, body := ask(t, s, http.MethodGet, d.site.URL+"/v1/customers"); status != http.StatusServiceUnavailable || p.Code == "" {
			t.Errorf("a batched call on a full disk: %d %s", status, body)
		}
	}
	if n := len(d.crm.Calls()) - before; n != 0 {
		t.Errorf("%d calls were forwarded that nobody could record", n)
	}
	must(t, unix.Prlimit(d.Pid(), unix.RLIMIT_FSIZE, &usual, nil))
	e2etest.Eventually(t, "calls go through again", func() bool {
		status, _, _ := ask(t, s, http.MethodPost, note)
		return status == http.StatusCreated
	})
	d.checkClosed(t, s.ID)
}

// checkClosed ends a session and looks whether its evidence is whole.
func (d *desk) checkClosed(t *testing.T, session string) {
	t.Helper()
	d.admin.Must(t, "session", "end", session)
	e2etest.Eventually(t, "the session is closed", func() bool {
		var events []loggedEvent
		d.admin.JSON(t, &events, "event", "list", "--session", session, "--action", "session.close")
		return len(events) == 1
	})
	if r := d.admin.Run(t, "audit", "verify"); r.Code != 0 {
		t.Errorf("estover audit verify: exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	file := filepath.Join(t.TempDir(), "session.zip")
	d.admin.Must(t, "evidence", "export", session, "--disclose", "--file", file)
	if r := d.admin.Run(t, "verify", file); r.Code != 0 {
		t.Errorf("estover verify: exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
}
