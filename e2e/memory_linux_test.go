//go:build linux && goexperiment.runtimesecret

package e2e

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"estover.dev/e2e/e2etest"
)

// memoryOf is how often each of some values stands in the memory that a process may
// write to.
func memoryOf(t *testing.T, pid int, values map[string][]byte) map[string]int {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	must(t, err)
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	must(t, err)
	defer mem.Close()
	n := map[string]int{}
	var there, read int64
	buf := make([]byte, 1<<22)
	for lines := bufio.NewScanner(bytes.NewReader(maps)); lines.Scan(); {
		var from, to int64
		var rights string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &rights); err != nil || !strings.HasPrefix(rights, "rw") {
			continue
		}
		const longest = 512
		for at := from; at < to; at += int64(len(buf)) - longest {
			piece := buf[:min(int64(len(buf)), to-at)]
			got, _ := mem.ReadAt(piece, at) // what has been unmapped since has nothing
			there, read = there+int64(len(piece)), read+int64(got)
			for what, value := range values {
				n[what] += bytes.Count(buf[:got], value)
			}
		}
	}
	if read < there*9/10 {
		t.Errorf("of %d bytes of memory %d could be read", there, read)
	}
	return n
}

// F14, K8: nobody but root looks into a server. The root key, as it is and as it
// stands in its file, is at no moment in the memory of one that has begun. A value that
// was written and read is not there any more a while after its last use, where what the
// collector frees is overwritten (docs/guides/keep-the-root-key.md).
func TestServerMemory(t *testing.T) {
	t.Parallel()
	control := "control-" + rand.Text()
	// A collector that runs often stands for the time that passes at rest.
	srv := e2etest.StartWith(t, []string{"GODEBUG=clobberfree=1", "GOGC=20", "ESTOVER_MEMORY_CONTROL=" + control})
	if os.Getuid() != 0 {
		if f, err := os.Open(fmt.Sprintf("/proc/%d/mem", srv.Pid())); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("somebody who is not root opens the memory of a server: %v, %v", f, err)
		}
		return
	}
	d := newOAuthDesk(t, srv)
	file, err := os.ReadFile(filepath.Join(srv.Data+"-keys", "root.key"))
	must(t, err)
	words := strings.Fields(string(file))
	text := words[len(words)-2]
	raw, err := base64.RawURLEncoding.DecodeString(text)
	must(t, err)
	if len(raw) != 32 {
		t.Fatalf("the root key has %d bytes", len(raw))
	}
	value := "canary-" + rand.Text() + rand.Text()
	values := map[string][]byte{"the root key": raw, "the line with the root key": []byte(text), "the control": []byte(control), "the value": []byte(value)}
	look := func(when string) map[string]int {
		t.Helper()
		n := memoryOf(t, srv.Pid(), values)
		if n["the control"] == 0 {
			t.Errorf("%s: what is in the memory of the server is not found there", when)
		}
		for _, key := range []string{"the root key", "the line with the root key"} {
			if n[key] != 0 {
				t.Errorf("%s: %s stands in memory %d times", when, key, n[key])
			}
		}
		return n
	}
	look("at the start")

	d.admin.Must(t, "secret", "create", "canary/static")
	d.admin.Put(t, "canary/static", value)
	for range 5 {
		d.admin.Must(t, "secret", "get", "canary/static", "--purpose", "a test")
	}
	if look("in use")["the value"] == 0 {
		t.Error("a value that has just been read is not found in memory: nor would it be later")
	}
	token, err := d.token(t, "client_secret_basic", url.Values{"purpose": {"support"}, "resource": {d.site.URL}})
	must(t, err)
	if status, body, _ := d.call(t, http.MethodGet, "/v1/customers", token.AccessToken); status != http.StatusOK {
		t.Fatalf("a call: %d %s", status, body)
	}
	look("in use at the gateway")
	left := 0
	for end := time.Now().Add(150 * time.Second); ; {
		for range 5 {
			d.admin.Must(t, "secret", "list")
		}
		if left = look("after the last use")["the value"]; left == 0 || time.Now().After(end) {
			break
		}
	}
	if left != 0 {
		t.Errorf("the value stands in memory %d times long after its last use", left)
	}

	// Nor is it there when a server has read the key that another has made.
	srv.Stop(t)
	srv.Restart(t)
	d.admin.Must(t, "secret", "get", "canary/static", "--purpose", "a test")
	look("after a start with a key that is there")
}
