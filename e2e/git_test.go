package e2e

import (
	"crypto/rand"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"estover.dev/e2e/e2etest"
)

const gitPassword = "glpat_t3st0nlyq8w7e6r5t4y3u2i1"

// A forge is git over HTTPS, for whoever knows the password.
type forge struct {
	cgi *cgi.Handler

	mu    sync.Mutex
	seen  []string // method, path and service of each request
	proto []string // header Git-Protocol of each request
}

func (f *forge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.seen = append(f.seen, strings.TrimSuffix(r.Method+" "+r.URL.Path+"?"+r.URL.RawQuery, "?"))
	f.proto = append(f.proto, r.Header.Get("Git-Protocol"))
	f.mu.Unlock()
	if user, password, ok := r.BasicAuth(); !ok || user != "git" || password != gitPassword {
		w.Header().Set("WWW-Authenticate", `Basic realm="forge"`)
		http.Error(w, "who are you?", http.StatusUnauthorized)
		return
	}
	f.cgi.ServeHTTP(w, r)
}

func (f *forge) requests() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.seen)
}

// git runs a git command of the test itself.
func git(t *testing.T, dir string, args ...string) string {
	t.Helper()
	c := exec.Command("git", args...)
	c.Dir = dir
	c.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
		"GIT_AUTHOR_NAME=Ada", "GIT_AUTHOR_EMAIL=ada@example.com", "GIT_COMMITTER_NAME=Ada", "GIT_COMMITTER_EMAIL=ada@example.com")
	r := e2etest.Run(t, c)
	if r.Code != 0 {
		t.Fatalf("git %s: exit code %d\n%s%s", strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
	}
	return strings.TrimSpace(r.Stdout)
}

// git clones over HTTPS from a forge whose password it does not know, and
// pushes only once it may.
func TestRunGit(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	repo := filepath.Join(root, "team", "project.git")
	git(t, root, "init", "-q", "--bare", "-b", "main", repo)
	git(t, repo, "config", "http.receivepack", "true")
	seed := filepath.Join(t.TempDir(), "seed")
	git(t, root, "clone", "-q", repo, seed)
	bulk := make([]byte, 3<<20) // more than git sends in one piece
	_, _ = rand.Read(bulk)
	if err := os.WriteFile(filepath.Join(seed, "bulk"), bulk, 0o644); err != nil {
		t.Fatal(err)
	}
	git(t, seed, "checkout", "-q", "-b", "main")
	git(t, seed, "add", ".")
	git(t, seed, "commit", "-q", "-m", "the first")
	git(t, seed, "push", "-q", "origin", "main")
	f := &forge{cgi: &cgi.Handler{
		Path: filepath.Join(git(t, seed, "--exec-path"), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"},
	}}

	srv := e2etest.Start(t)
	world := e2etest.NewWorld(t)
	site := world.Site(t, "forge", f)
	admin := srv.Admin(t)
	admin.Apply(t,
		e2etest.Secret("forge/password", site), e2etest.Agent("coder", "maintenance"),
		world.Resource(site, `class: internal
slots: [{slot: basic, name: git, secret: forge/password}]
actions:
  - {name: git.refs, method: GET, path: "/{team}/{repo}.git/info/refs"}
  - {name: git.fetch, method: POST, path: "/{team}/{repo}.git/git-upload-pack", effect: read}
  - {name: git.push, method: POST, path: "/{team}/{repo}.git/git-receive-pack"}`),
		e2etest.Grant("coder-reads", "coder", "forge", "git.refs, git.fetch", "maintenance"))
	admin.Put(t, "forge/password", gitPassword)
	run := func(dir string, args ...string) e2etest.Result {
		t.Helper()
		who := *admin
		who.Dir = dir
		return who.With("GIT_TERMINAL_PROMPT=0", "GIT_AUTHOR_NAME=Bot", "GIT_AUTHOR_EMAIL=bot@example.com", "GIT_COMMITTER_NAME=Bot", "GIT_COMMITTER_EMAIL=bot@example.com").
			Run(t, append([]string{"run", "--agent", "coder", "--", "git"}, args...)...)
	}
	dir := t.TempDir()
	url := site.URL + "/team/project.git"
	if r := run(dir, "clone", url, "work"); r.Code != 0 {
		t.Fatalf("git clone: exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	work := filepath.Join(dir, "work")
	if got, err := os.ReadFile(filepath.Join(work, "bulk")); err != nil || !slices.Equal(got, bulk) {
		t.Errorf("the clone has another file than the forge: %d bytes, %v", len(got), err)
	}
	f.mu.Lock()
	proto := slices.Clone(f.proto)
	f.mu.Unlock()
	if !slices.Equal(slices.Compact(proto), []string{"version=2"}) {
		t.Errorf("git spoke protocol %q through the gateway, want version 2", proto)
	}
	for _, file := range []string{"config", "HEAD", "FETCH_HEAD", "logs/HEAD"} {
		if b, err := os.ReadFile(filepath.Join(work, ".git", file)); err == nil && strings.Contains(string(b), gitPassword) {
			t.Errorf("the password is in .git/%s", file)
		}
	}

	_, _ = rand.Read(bulk)
	if err := os.WriteFile(filepath.Join(work, "bulk"), bulk, 0o644); err != nil {
		t.Fatal(err)
	}
	git(t, work, "commit", "-q", "-a", "-m", "the second")
	before := git(t, repo, "rev-parse", "main")
	r := run(work, "push", "origin", "main")
	if r.Code == 0 || !strings.Contains(r.Stderr, "403") {
		t.Errorf("git push without a grant: exit code %d\n%s", r.Code, r.Stderr)
	}
	if after := git(t, repo, "rev-parse", "main"); after != before {
		t.Error("the push that was refused has changed the forge")
	}
	for _, q := range f.requests() {
		if strings.HasPrefix(q, "POST") && strings.Contains(q, "git-receive-pack") {
			t.Errorf("the push that was refused has reached the forge: %s", q)
		}
	}
	var events []struct {
		Action  string
		Outcome string
		Detail  map[string]any
	}
	admin.JSON(t, &events, "event", "list", "--outcome", "refused")
	if len(events) != 1 || events[0].Action != "gateway.call" || events[0].Detail["action"] != "git.push" {
		t.Errorf("the refusals in the log are %+v, want one of git.push", events)
	}

	admin.Apply(t, e2etest.Grant("coder-writes", "coder", "forge", "git.push", "maintenance"))
	if r := run(work, "push", "origin", "main"); r.Code != 0 {
		t.Errorf("git push with a grant: exit code %d\n%s", r.Code, r.Stderr)
	}
	if after, want := git(t, repo, "rev-parse", "main"), git(t, work, "rev-parse", "HEAD"); after != want {
		t.Errorf("the forge has %s after the push, want %s", after, want)
	}
}
