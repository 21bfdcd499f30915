package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/websocket"

	"estover.dev/demo/company"
	"estover.dev/demo/inspect"
	"estover.dev/demo/web"
	"estover.dev/e2e/e2etest"
	"estover.dev/internal/db/dbtest"
)

// crmKey is what the customer system wants, and nobody but the gateway has.
const crmKey = "crm_live_t3st0nly7k2f9q4z8x1c5v0b"

// crmSpec is the customer system as a resource.
const crmSpec = `class: confidential
slots: [{slot: header, name: Authorization, prefix: "Bearer ", secret: crm/api-key}]
actions:
  - {name: customer.list, method: GET, path: /v1/customers, effect: search}
  - {name: customer.read, method: GET, path: "/v1/customers/{id}"}
  - {name: note.add, method: POST, path: "/v1/customers/{id}/notes"}
  - {name: customer.delete, method: DELETE, path: "/v1/customers/{id}"}
  - {name: events.watch, method: GET, path: /v1/events}
  - {name: echo.read, method: GET, path: /v1/echo}`

// crmGrant lets the agent bot do everything for the purpose support, except to
// delete.
var crmGrant = e2etest.Grant("bot-support", "bot", "crm", "customer.list, customer.read, note.add, events.watch, echo.read", "support")

// A desk is a server with the customer system behind it.
type desk struct {
	*e2etest.Server
	world *e2etest.World
	crm   *company.Company
	site  *web.Site
	admin *e2etest.CLI
}

func newDesk(t *testing.T, srv *e2etest.Server) *desk {
	t.Helper()
	d := &desk{Server: srv, world: e2etest.NewWorld(t), crm: company.New(crmKey, "https://collector.example.test/")}
	d.site = d.world.Site(t, "crm", d.crm)
	d.admin = srv.Admin(t)
	d.admin.Apply(t, e2etest.Secret("crm/api-key", d.site), d.world.Resource(d.site, crmSpec), e2etest.Agent("bot", "support", "marketing"), crmGrant)
	d.admin.Put(t, "crm/api-key", crmKey)
	return d
}

// run is `estover run` of the agent bot for the purpose support.
func (d *desk) run(command ...string) []string {
	return append([]string{"run", "--agent", "bot", "--purpose", "support", "--"}, command...)
}

// node is the Node that follows the proxy variables in fetch.
func node(t *testing.T) string {
	t.Helper()
	own, err := filepath.Abs("../.tools/bin/node")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(own); err == nil {
		return own
	}
	found, err := exec.LookPath("node")
	if err != nil {
		t.Fatal("there is no Node; scripts/install brings one")
	}
	return found
}

// Ordinary programs, which know nothing of Estover, reach the customer system
// without its key.
func TestRunClients(t *testing.T) {
	t.Parallel()
	dbtest.EachURL(t, func(t *testing.T, database string) {
		d := newDesk(t, e2etest.StartOn(t, database))
		list := d.site.URL + "/v1/customers?limit=3"
		for name, command := range map[string][]string{
			"curl":       {"curl", "-sS", "--http1.1", list},
			"curl HTTP2": {"curl", "-sS", "--http2", list},
			"curl POST":  {"curl", "-sS", "-d", `{"text": "Ada Lindqvist"}`, d.site.URL + "/v1/customers/cus_1001/notes"},
			"node fetch": {node(t), "-e", `fetch(process.argv[1]).then(r => r.text()).then(console.log)`, list},
			"python urllib": {"/usr/bin/python3", "-c", `import sys, urllib.request
print(urllib.request.urlopen(sys.argv[1]).read().decode())`, list},
			"python requests": {"/usr/bin/python3", "-c", `import sys, requests
s = requests.Session()
for i in range(3): r = s.get(sys.argv[1]); r.raise_for_status()
print(r.text)`, list},
		} {
			t.Run(name, func(t *testing.T) {
				r := d.admin.Run(t, d.run(command...)...)
				if r.Code != 0 || !strings.Contains(r.Stdout, "Ada Lindqvist") {
					t.Fatalf("exit code %d, and no customer came:\n%s%s", r.Code, r.Stdout, r.Stderr)
				}
			})
		}
		for _, c := range d.crm.Calls() {
			if !c.Authorised {
				t.Errorf("%s %s came without the key", c.Method, c.Path)
			}
		}
	})
}

// What the program gets has no secret in it, and what comes back neither.
func TestRunShowsNoSecret(t *testing.T) {
	t.Parallel()
	d := newDesk(t, e2etest.Start(t))
	r := d.admin.Run(t, d.run("sh", "-c", "env; cat /proc/self/environ; curl -sS -i "+d.site.URL+"/v1/echo; cat $SSL_CERT_FILE")...)
	if r.Code != 0 || !strings.Contains(r.Stdout, "authorization_base64") {
		t.Fatalf("exit code %d:\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	for _, form := range inspect.Forms([]byte(crmKey)) {
		if strings.Contains(r.Stdout+r.Stderr, string(form)) {
			t.Errorf("the program has seen the key, as %q", form)
		}
	}
	if token := d.admin.Token(t); strings.Contains(r.Stdout+r.Stderr, token) {
		t.Error("the program has seen the token of whoever started it")
	}
}

// The variables of the launcher are those that programs understand, and what
// looks like a credential stays with the caller.
func TestRunEnvironment(t *testing.T) {
	t.Parallel()
	d := newDesk(t, e2etest.Start(t))
	caller := d.admin.With(
		"GITHUB_TOKEN=ghp_1", "AWS_SECRET_ACCESS_KEY=aws_1", "DB_PASSWORD=pw_1", "DATABASE_URL=postgres://u:p@h/d", "MY_API_KEY=key_1",
		"ALL_PROXY=socks5://127.0.0.1:1", "https_proxy=http://127.0.0.1:2", "ESTOVER_TOKEN="+d.admin.Token(t), "SSL_CERT_FILE=/nowhere.pem",
		"GIT_CONFIG_COUNT=2", "GIT_CONFIG_KEY_0=http.extraHeader", "GIT_CONFIG_VALUE_0=Authorization: Basic eDp5",
		"PLAIN=kept", "WANTED_TOKEN=wanted_1", "JAVA_TOOL_OPTIONS=-Xmx1g",
	)
	r := caller.Run(t, "run", "--agent", "bot", "--purpose", "support", "--keep-env", "WANTED_TOKEN", "--", "env")
	if r.Code != 0 {
		t.Fatalf("exit code %d: %s", r.Code, r.Stderr)
	}
	got := map[string]string{}
	for line := range strings.Lines(r.Stdout) {
		k, v, _ := strings.Cut(strings.TrimRight(line, "\n"), "=")
		if _, twice := got[k]; twice {
			t.Errorf("%s is there twice", k)
		}
		got[k] = v
	}
	proxy := got["ESTOVER_PROXY"]
	if !regexp.MustCompile(`^http://127\.0\.0\.1:\d+$`).MatchString(proxy) {
		t.Errorf("ESTOVER_PROXY is %q", proxy)
	}
	for _, k := range []string{"HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy", "OPENCLAW_PROXY_URL"} {
		if got[k] != proxy {
			t.Errorf("%s is %q, want %q", k, got[k], proxy)
		}
	}
	bundle := got["SSL_CERT_FILE"]
	for _, k := range []string{
		"NODE_EXTRA_CA_CERTS", "DENO_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT", "AWS_CA_BUNDLE", "GIT_SSL_CAINFO", "CARGO_HTTP_CAINFO",
	} {
		if got[k] != bundle || bundle == "" || bundle == "/nowhere.pem" {
			t.Errorf("%s is %q and SSL_CERT_FILE %q", k, got[k], bundle)
		}
	}
	for k, want := range map[string]string{
		"NO_PROXY": "127.0.0.1,localhost,::1", "no_proxy": "127.0.0.1,localhost,::1", "NODE_USE_ENV_PROXY": "1", "PLAIN": "kept", "WANTED_TOKEN": "wanted_1",
	} {
		if got[k] != want {
			t.Errorf("%s is %q, want %q", k, got[k], want)
		}
	}
	if got["GIT_CONFIG_COUNT"] != "1" || got["GIT_CONFIG_KEY_0"] != "http.version" || got["GIT_CONFIG_VALUE_0"] != "HTTP/1.1" {
		t.Errorf("git is told %s settings, the first of which is %s=%s", got["GIT_CONFIG_COUNT"], got["GIT_CONFIG_KEY_0"], got["GIT_CONFIG_VALUE_0"])
	}
	java := got["JAVA_TOOL_OPTIONS"]
	for _, want := range []string{"-Xmx1g ", "-Djavax.net.ssl.trustStore=", "-Dhttps.proxyHost=127.0.0.1", "-Dhttp.nonProxyHosts="} {
		if !strings.Contains(java, want) {
			t.Errorf("JAVA_TOOL_OPTIONS is %q, without %q", java, want)
		}
	}
	if !strings.HasPrefix(got["ESTOVER_SESSION"], "ses_") {
		t.Errorf("ESTOVER_SESSION is %q", got["ESTOVER_SESSION"])
	}
	for _, k := range []string{"GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "DATABASE_URL", "MY_API_KEY"} {
		if v, ok := got[k]; ok {
			t.Errorf("%s was handed down as %q", k, v)
		}
		if !strings.Contains(r.Stderr, k) {
			t.Errorf("it is not said that %s was not handed down:\n%s", k, r.Stderr)
		}
	}
	for _, k := range []string{"ALL_PROXY", "ESTOVER_TOKEN", "ESTOVER_ADDR"} {
		if v, ok := got[k]; ok {
			t.Errorf("%s was handed down as %q", k, v)
		}
	}
	if _, err := os.Stat(bundle); !os.IsNotExist(err) {
		t.Errorf("the bundle of the session is still there after its end: %v", err)
	}
}

// The exit code of `estover run` is that of the command, and the session ends
// with the command.
func TestRunEnds(t *testing.T) {
	t.Parallel()
	d := newDesk(t, e2etest.Start(t))
	for _, c := range []struct {
		name   string
		script string
		code   int
	}{
		{"success", "exit 0", 0},
		{"failure", "exit 7", 7},
		{"signal", "kill -9 $$", 128 + 9},
		{"not found by the shell", "no-such-program-here", 127},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := d.admin.Run(t, d.run("sh", "-c", c.script)...)
			if r.Code != c.code {
				t.Errorf("exit code %d, want %d\n%s", r.Code, c.code, r.Stderr)
			}
			if s := d.last(t); s.State != "ended" || s.EndCause != "the command ended" {
				t.Errorf("the session is %s (%s)", s.State, s.EndCause)
			}
		})
	}
	t.Run("not found", func(t *testing.T) {
		before := d.last(t).ID
		r := d.admin.Run(t, d.run("no-such-program-here")...)
		if r.Code != 1 || !strings.Contains(r.Stderr, "no-such-program-here cannot be run") {
			t.Errorf("exit code %d: %s", r.Code, r.Stderr)
		}
		if s := d.last(t); s.ID != before {
			t.Errorf("a session was opened for nothing: %+v", s)
		}
	})
	t.Run("children that stay", func(t *testing.T) {
		pid := filepath.Join(t.TempDir(), "pid")
		if r := d.admin.Run(t, d.run("sh", "-c", "setsid sleep 600 >/dev/null 2>&1 & echo $! > "+pid)...); r.Code != 0 {
			t.Fatalf("exit code %d: %s", r.Code, r.Stderr)
		}
		gone(t, readPid(t, pid))
	})
}

// A shownSession is a session as the command line shows it.
type shownSession struct {
	ID       string `json:"id"`
	State    string `json:"state"`
	EndCause string `json:"end_cause"`
}

// last is the session that was opened last.
func (d *desk) last(t *testing.T) shownSession {
	t.Helper()
	var all []shownSession
	d.admin.JSON(t, &all, "session", "list", "--agent", "bot", "--limit", "1")
	if len(all) == 0 {
		return shownSession{}
	}
	return all[0]
}

func readPid(t *testing.T, file string) int {
	t.Helper()
	var pid int
	e2etest.Eventually(t, "a pid is written", func() bool {
		b, _ := os.ReadFile(file)
		n, _ := fmt.Sscan(string(b), &pid)
		return n == 1
	})
	return pid
}

// gone waits until a process has ended.
func gone(t *testing.T, pid int) {
	t.Helper()
	e2etest.Eventually(t, fmt.Sprintf("process %d is gone", pid), func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
}

// A started is a launcher that is running.
type started struct {
	cmd    *exec.Cmd
	out    *bufio.Scanner // of the program
	stderr *strings.Builder
	wait   func() error
}

// start starts `estover run` and leaves it running.
func (d *desk) start(t *testing.T, command ...string) *started {
	t.Helper()
	return launched(t, d.admin.Command(d.run(command...)...))
}

// launched starts a launcher and leaves it running.
func launched(t *testing.T, cmd *exec.Cmd) *started {
	t.Helper()
	s := &started{cmd: cmd, stderr: &strings.Builder{}}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.cmd.Stderr, s.out = s.stderr, bufio.NewScanner(out)
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.wait = sync.OnceValue(s.cmd.Wait)
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		_ = s.wait()
	})
	return s
}

// line is the next line that the program writes.
func (s *started) line(t *testing.T) string {
	t.Helper()
	if !s.out.Scan() {
		err := s.wait()
		t.Fatalf("the program ended (%v): %s", err, s.stderr)
	}
	return s.out.Text()
}

// end waits for the launcher to end, and gives its exit code.
func (s *started) end(t *testing.T) int {
	t.Helper()
	for s.out.Scan() { // a pipe that nobody reads would keep the program
	}
	err := s.wait()
	if s.cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return s.cmd.ProcessState.ExitCode()
}

// A launcher that is told to stop passes that on, and ends the session.
func TestRunStopped(t *testing.T) {
	t.Parallel()
	d := newDesk(t, e2etest.Start(t))
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
		t.Run(sig.String(), func(t *testing.T) {
			r := d.start(t, "sh", "-c", `trap 'echo stopping; exit 5' TERM INT HUP; echo ready; while :; do sleep 0.1; done`)
			if got := r.line(t); got != "ready" {
				t.Fatalf("the program says %q", got)
			}
			if err := r.cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			if got := r.line(t); got != "stopping" {
				t.Errorf("the program says %q", got)
			}
			if code := r.end(t); code != 5 {
				t.Errorf("exit code %d, want the program's own, 5\n%s", code, r.stderr)
			}
			if s := d.last(t); s.State != "ended" || s.EndCause != "stopped by "+sig.String() {
				t.Errorf("the session is %s (%s)", s.State, s.EndCause)
			}
		})
	}
}

// A launcher that is killed takes the program along, and the session ends.
func TestRunKilled(t *testing.T) {
	t.Parallel()
	d := newDesk(t, e2etest.Start(t))
	r := d.start(t, "sh", "-c", `echo $$; curl -sSN `+d.site.URL+`/v1/events`)
	pid := 0
	if _, err := fmt.Sscan(r.line(t), &pid); err != nil {
		t.Fatal(err)
	}
	e2etest.Eventually(t, "the stream is open", func() bool { return d.crm.Streams() == 1 })
	if err := r.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	gone(t, pid)
	e2etest.Eventually(t, "the stream is closed", func() bool { return d.crm.Streams() == 0 })
	e2etest.Eventually(t, "the session has ended", func() bool { return d.last(t).State == "ended" })
	if s := d.last(t); s.EndCause != "the launcher was killed" {
		t.Errorf("the session ended because %s", s.EndCause)
	}
}

// A program that does not stop when its time is up, or when it is told to, is
// killed.
func TestRunStubborn(t *testing.T) {
	t.Parallel()
	d := newDesk(t, e2etest.Start(t))
	var r e2etest.Result
	for _, ttl := range []string{"1s", "10s"} { // within which the program has to get as far as its trap
		r = d.admin.Run(t, "run", "--agent", "bot", "--purpose", "support", "--ttl", ttl, "--", "sh", "-c", `trap 'echo no' TERM; echo ready; while :; do sleep 0.1; done`)
		if s := d.last(t); s.State != "ended" {
			t.Errorf("the session is %+v", s)
		}
		if strings.Contains(r.Stdout, "ready") {
			break
		}
	}
	if r.Code != 128+9 || !strings.Contains(r.Stdout, "no") {
		t.Errorf("exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
}

// A session that somebody else ends takes the program along, after a moment
// for its last words.
func TestRunEndedElsewhere(t *testing.T) {
	t.Parallel()
	d := newDesk(t, e2etest.Start(t))
	r := d.start(t, "sh", "-c", `trap 'echo last words; exit 9' TERM; echo ready; while :; do sleep 0.1; done`)
	r.line(t)
	d.admin.Must(t, "session", "end", d.last(t).ID, "--cause", "enough")
	if got := r.line(t); got != "last words" {
		t.Errorf("the program says %q", got)
	}
	if code := r.end(t); code != 9 || !strings.Contains(r.stderr.String(), "was ended (enough)") {
		t.Errorf("exit code %d: %s", code, r.stderr)
	}
}

// The loopback port is for the program's own tree.
func TestRunRefusesStrangers(t *testing.T) {
	t.Parallel()
	d := newDesk(t, e2etest.Start(t))
	r := d.start(t, "sh", "-c", `echo $ESTOVER_PROXY; echo $SSL_CERT_FILE; exec sleep 600`)
	proxy, bundle := r.line(t), r.line(t)
	// With all that the program has, from outside of its tree.
	stranger := exec.Command("curl", "-sS", "--max-time", "20", "-x", proxy, "--cacert", bundle, d.site.URL+"/v1/customers")
	stranger.Env = []string{"PATH=" + os.Getenv("PATH")}
	if r := e2etest.Run(t, stranger); r.Code == 0 {
		t.Errorf("a stranger got an answer: %s", r.Stdout)
	}
	if n := len(d.crm.Calls()); n != 0 {
		t.Errorf("%d calls of a stranger reached the customer system", n)
	}
	_ = r.cmd.Process.Signal(syscall.SIGTERM)
	r.end(t)
	if !strings.Contains(r.stderr.String(), "outside of this session") {
		t.Errorf("the launcher did not say that it refused somebody:\n%s", r.stderr)
	}
}

// A broadcast is an upstream that streams what a test says.
type broadcast struct {
	site *web.Site
	next chan string
	gone chan struct{} // closed when the first listener has gone
}

// broadcast starts one and makes a resource of it, with the action watch.
func (d *desk) broadcast(t *testing.T, name string) *broadcast {
	t.Helper()
	b := &broadcast{next: make(chan string), gone: make(chan struct{})}
	gone := sync.OnceFunc(func() { close(b.gone) })
	b.site = d.world.Site(t, name, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		defer gone()
		for {
			_ = http.NewResponseController(w).Flush()
			select {
			case text := <-b.next:
				_, _ = fmt.Fprintf(w, "data: %s\n\n", text)
			case <-r.Context().Done():
				return
			}
		}
	}))
	d.admin.Apply(t, d.world.Resource(b.site, "class: internal\nactions: [{name: watch, method: GET, path: /events}]"))
	return b
}

// passes sends an event, and waits until the program has it. If anything on
// the way waited for more to come, this would not return.
func (b *broadcast) passes(t *testing.T, r *started, text string) {
	t.Helper()
	select {
	case b.next <- text:
	case <-b.gone:
		t.Fatalf("the stream was cut %s", text)
	}
	for got := r.line(t); got != "data: "+text; got = r.line(t) {
		if got != "" {
			t.Fatalf("the program got %q, want %q", got, text)
		}
	}
}

// What an upstream flushes arrives at once, and the end of the session cuts
// the stream within a second.
func TestRunStreams(t *testing.T) {
	t.Parallel()
	d := newDesk(t, e2etest.Start(t))
	b := d.broadcast(t, "stream")
	d.admin.Apply(t, e2etest.Grant("bot-stream", "bot", "stream", "watch", "support"))
	r := d.start(t, "curl", "-sSN", b.site.URL+"/events")
	for i := range 20 {
		b.passes(t, r, fmt.Sprintf("event %d", i))
	}
	session := d.last(t).ID
	d.admin.Must(t, "session", "end", session, "--cause", "enough")
	ended := time.Now()
	if code := r.end(t); code == 0 {
		t.Error("curl takes a stream that was cut for a whole one")
	}
	if took := time.Since(ended); took > e2etest.Soon {
		t.Errorf("the stream ended %s after the session", took)
	}
	<-b.gone // the upstream has seen the end too
	if s := d.last(t); s.ID != session || s.State != "ended" || s.EndCause != "enough" {
		t.Errorf("the session is %+v", s)
	}
	if strings.Contains(r.stderr.String(), "could not be ended") || !strings.Contains(r.stderr.String(), "enough") {
		t.Errorf("the launcher says of a session that somebody else has ended:\n%s", r.stderr)
	}
}

// What changes about others disturbs no stream, and what changes about its own
// grant cuts it.
func TestRunChanges(t *testing.T) {
	t.Parallel()
	d := newDesk(t, e2etest.Start(t))
	b := d.broadcast(t, "stream")
	d.admin.Apply(t, e2etest.Grant("bot-stream", "bot", "stream", "watch", "support"))
	r := d.start(t, "curl", "-sSN", b.site.URL+"/events")
	b.passes(t, r, "before")
	other := d.world.Site(t, "other", http.NotFoundHandler())
	for _, change := range []struct{ of, document string }{
		{"another resource", d.world.Resource(other, "class: internal\nactions: [{name: watch, method: GET, path: /}]")},
		{"another grant of the agent", e2etest.Grant("bot-other", "bot", "other", "watch", "support")},
		{"its resource", d.world.Resource(b.site, "class: internal\ntags: [seen]\nactions: [{name: watch, method: GET, path: /events}]")},
		{"the agent", e2etest.Agent("bot", "support", "marketing", "research")},
	} {
		d.admin.Apply(t, change.document)
		// Whoever follows the log hears of it a quarter of a second later.
		for changed := time.Now(); time.Since(changed) < 500*time.Millisecond; {
			b.passes(t, r, "after a change of "+change.of)
		}
	}
	d.admin.Must(t, "grant", "end", "bot-stream", "--reason", "not needed any more")
	ended := time.Now()
	if r.end(t); time.Since(ended) > e2etest.Soon {
		t.Errorf("the stream ended %s after its grant", time.Since(ended))
	}
}

// A containment ends what runs under the launcher, and the launcher says so.
func TestRunContained(t *testing.T) {
	t.Parallel()
	d := newDesk(t, e2etest.Start(t))
	var credential struct {
		ClientID     string `json:"client_id"`
		ClientSecret string `json:"client_secret"`
	}
	d.admin.JSON(t, &credential, "agent", "credential", "add", "bot")
	for name, who := range map[string]*e2etest.CLI{
		"by a person":  d.admin,
		"by the agent": d.CLI(t).With("ESTOVER_CLIENT_ID="+credential.ClientID, "ESTOVER_CLIENT_SECRET="+credential.ClientSecret),
	} {
		t.Run(name, func(t *testing.T) {
			other := *d
			other.admin = who
			r := other.start(t, "curl", "-sSN", d.site.URL+"/v1/events")
			r.line(t)
			out := d.admin.Must(t, "contain", "bot", "--reason", "a drill")
			if !strings.Contains(out, "Time to zero") {
				t.Errorf("contain says %s", out)
			}
			contained := time.Now()
			if r.end(t); time.Since(contained) > e2etest.Soon {
				t.Errorf("the stream ended %s after the containment", time.Since(contained))
			}
			if said := r.stderr.String(); strings.Contains(said, "could not") || !strings.Contains(said, "ended (contain") && !strings.Contains(said, "ended (The agent is quarantined.") {
				t.Errorf("the launcher says:\n%s", said)
			}
			if again := who.Run(t, d.run("true")...); again.Code != 3 {
				t.Errorf("the contained agent starts again, with exit code %d: %s", again.Code, again.Stderr)
			}
			var shown struct{ Holds []struct{ ID string } }
			d.admin.JSON(t, &shown, "agent", "show", "bot")
			for _, h := range shown.Holds {
				d.admin.Must(t, "agent", "lift", "bot", h.ID, "--reason", "the drill is over")
			}
		})
	}
}

// A websocket carries the injected credential, passes both ways, and is cut
// with its session.
func TestRunWebSocket(t *testing.T) {
	t.Parallel()
	d := newDesk(t, e2etest.Start(t))
	site := d.world.Site(t, "chat", websocket.Server{Handler: func(c *websocket.Conn) {
		_, _ = io.WriteString(c, "key "+fmt.Sprint(c.Request().Header.Get("X-Key") == crmKey))
		_, _ = io.Copy(c, c)
	}})
	d.admin.Apply(t,
		e2etest.Secret("chat/key", site), e2etest.Grant("bot-chat", "bot", "chat", "talk", "support"),
		d.world.Resource(site, "class: internal\nslots: [{slot: header, name: X-Key, secret: chat/key}]\nactions: [{name: talk, method: GET, path: /socket, effect: write}]"))
	d.admin.Put(t, "chat/key", crmKey)
	r := d.start(t, node(t), "-e", `
const ws = new WebSocket(process.argv[1]);
ws.binaryType = "arraybuffer";
ws.onmessage = m => {
  const text = typeof m.data === "string" ? m.data : Buffer.from(m.data).toString();
  console.log(text);
  if (text.startsWith("key")) ws.send("hello");
};
ws.onerror = e => console.log("error", e.message);
ws.onclose = () => { console.log("closed"); process.exit(4) };`, strings.Replace(site.URL, "https", "wss", 1)+"/socket")
	for _, want := range []string{"key true", "hello"} {
		if got := r.line(t); got != want {
			t.Fatalf("the program says %q, want %q", got, want)
		}
	}
	d.admin.Must(t, "session", "end", d.last(t).ID)
	ended := time.Now()
	for got := r.line(t); got != "closed"; got = r.line(t) {
	}
	if took := time.Since(ended); took > e2etest.Soon {
		t.Errorf("the socket was closed %s after the session's end", took)
	}
	if code := r.end(t); code != 4 {
		t.Errorf("exit code %d", code)
	}
}

// The launcher of an agent with its own credentials outlives its token: what
// ends the token's session does not end the task.
func TestRunRenewsToken(t *testing.T) {
	t.Parallel()
	d := newDesk(t, e2etest.Start(t))
	var credential struct {
		ClientID     string `json:"client_id"`
		ClientSecret string `json:"client_secret"`
	}
	d.admin.JSON(t, &credential, "agent", "credential", "add", "bot")
	agent := *d
	agent.admin = d.CLI(t).With("ESTOVER_CLIENT_ID="+credential.ClientID, "ESTOVER_CLIENT_SECRET="+credential.ClientSecret)
	done := filepath.Join(t.TempDir(), "done")
	r := agent.start(t, "sh", "-c", "echo $ESTOVER_SESSION; while [ ! -e "+done+" ]; do sleep 0.05; done")
	own := r.line(t)
	var all []shownSession
	d.admin.JSON(t, &all, "session", "list", "--agent", "bot", "--state", "open")
	for _, s := range all {
		if s.ID != own {
			d.admin.Must(t, "session", "end", s.ID)
		}
	}
	if len(all) != 2 {
		t.Fatalf("the open sessions are %+v, want the task's and the token's", all)
	}
	must(t, os.WriteFile(done, nil, 0o600))
	if code := r.end(t); code != 0 || strings.Contains(r.stderr.String(), "could not be ended") {
		t.Errorf("exit code %d: %s", code, r.stderr)
	}
	d.admin.JSON(t, &all, "session", "list", "--agent", "bot")
	for _, s := range all {
		if s.ID == own && (s.State != "ended" || s.EndCause != "the command ended") {
			t.Errorf("the task's session is %+v", s)
		}
	}
}
