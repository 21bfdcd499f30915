package e2e

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"estover.dev/e2e/e2etest"
)

// TestRotateSigningKeys is the guide as it is written: what it says of a rotation
// by schedule and in an emergency is what the gateway does, and resources that
// verify with jose.
func TestRotateSigningKeys(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/guides/rotate-signing-keys.md")
	must(t, err)
	var lines []string
	for _, m := range regexp.MustCompile(`(?m)^    (estover .*)$`).FindAllStringSubmatch(string(text), -1) {
		lines = append(lines, m[1])
	}
	if len(lines) != 5 {
		t.Fatalf("the guide has %d commands: %q", len(lines), lines)
	}
	list, serve, rotate, rotateOne, emergency := lines[0], lines[1], lines[2], lines[3], lines[4]
	flags := strings.Fields(strings.TrimSuffix(strings.TrimPrefix(serve, "estover serve "), " …"))
	d := newOAuthDesk(t, e2etest.Start(t, flags...))
	bin := filepath.Dir(e2etest.Binary(t))
	// types is the administrator, who types a line of the guide.
	types := func(line string) string {
		t.Helper()
		c := exec.CommandContext(t.Context(), "sh", "-c", line)
		c.Dir, c.Env = d.admin.Dir, append(append([]string{}, d.admin.Env...), "PATH="+bin+":"+os.Getenv("PATH"))
		r := e2etest.Run(t, c)
		if r.Code != 0 {
			t.Fatalf("%s: exit code %d\n%s%s", line, r.Code, r.Stdout, r.Stderr)
		}
		return r.Stdout
	}
	verdicts := resources(t, d)
	judged := func(what, token string, call int, want verdict) {
		t.Helper()
		if got := verdicts(token); got != want {
			t.Errorf("%s: jose says %+v, want %+v", what, got, want)
		}
		if status, body, _ := d.call(t, http.MethodGet, "/v1/customers", token); status != call {
			t.Errorf("%s: the gateway answers %d %s, want %d", what, status, body, call)
		}
	}
	own, err := d.token(t, "client_secret_basic", url.Values{"purpose": {"support"}})
	must(t, err)
	s, err := d.Open(t, own.AccessToken, "", "support")
	must(t, err)
	// A session goes on, whatever signs its tokens.
	fresh := func() string {
		t.Helper()
		tok, err := d.token(t, "client_secret_basic", url.Values{"resource": {d.site.URL}, "session": {s.ID}})
		must(t, err)
		return tok.AccessToken
	}

	if out := types(list); !regexp.MustCompile(`(?m)^access_token +ES256 +active `).MatchString(out) || strings.Contains(out, " next ") {
		t.Errorf("the keys at first:\n%s", out)
	}
	before := fresh()
	everywhere := verdict{"good", "good", "good"}
	judged("a token", before, http.StatusOK, everywhere)

	types(rotate)
	if out := types(list); !regexp.MustCompile(`(?m)^access_token +ES256 +next `).MatchString(out) || !regexp.MustCompile(`(?m)^id_token +RS256 +next `).MatchString(out) {
		t.Errorf("the keys when the next ones are made:\n%s", out)
	}
	if out := types(rotateOne); !strings.Contains(out, "was made before and signs from") {
		t.Errorf("asked again: %s", out)
	}
	judged("a token of before a rotation by schedule", before, http.StatusOK, everywhere)
	during := fresh()
	judged("one of after it", during, http.StatusOK, everywhere)

	types(emergency)
	if out := types(list + " --all"); len(regexp.MustCompile(`(?m)^access_token +ES256 +revoked `).FindAllString(out, -1)) != 2 {
		t.Errorf("the keys after an emergency:\n%s", out)
	}
	const unknown = "ERR_JWKS_NO_MATCHING_KEY"
	judged("a token of before the emergency, by copies of the key set", during, http.StatusUnauthorized, verdict{"good", "good", unknown})
	judged("one of after it, of the session of before", fresh(), http.StatusOK, verdict{unknown, "good", "good"})
	judged("a token of before, where the copy was dropped", before, http.StatusUnauthorized, verdict{"good", unknown, unknown})
	if out := types("estover event list --action key.rotate -o json"); !strings.Contains(out, "the disk of a node was stolen") {
		t.Errorf("the record of the rotations:\n%s", out)
	}
}

// A verdict is what resources that verify with jose make of a token: "good", or
// the code of its error.
type verdict struct {
	Waits string // for a long time before it fetches the key set again
	Asks  string // for the key set whenever it does not know a key
	Fresh string // without a copy of the key set
}

// resources start a program in which they are, and ask it about tokens.
func resources(t *testing.T, d *oauthDesk) func(token string) (v verdict) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), node(t), "jose-rotation.mjs")
	cmd.Dir, cmd.Stderr = "clients", os.Stderr
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "ISSUER=" + d.URL, "RESOURCE=" + d.site.URL, "NODE_EXTRA_CA_CERTS=" + d.CAFile}
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Wait() }) // it ends with the test
	answers := bufio.NewScanner(out)
	return func(token string) (v verdict) {
		t.Helper()
		_, err := io.WriteString(in, token+"\n")
		must(t, err)
		if !answers.Scan() {
			t.Fatalf("jose-rotation.mjs says nothing: %v", answers.Err())
		}
		must(t, json.Unmarshal(answers.Bytes(), &v))
		return v
	}
}
