package e2e

import (
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"estover.dev/e2e/e2etest"
)

// tpm is a simulated TPM of the test's own.
func tpm(t *testing.T) (socket string) {
	dir, err := os.MkdirTemp("", "tpm-") // a socket's path must be short
	must(t, err)
	socket = filepath.Join(dir, "sock")
	c := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+dir, "--server", "type=unixio,path="+socket, "--flags", "not-need-init,startup-clear")
	must(t, c.Start())
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
		_ = os.RemoveAll(dir)
	})
	e2etest.Eventually(t, "the TPM is there", func() bool {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
	return socket
}

// keyService answers as Google Cloud KMS does. It turns around what it is given,
// so that what it wraps is something else.
func keyService(t *testing.T) *httptest.Server {
	t.Helper()
	turn := func(b []byte) []byte { b = slices.Clone(b); slices.Reverse(b); return b }
	sum := func(b []byte) string { return fmt.Sprint(crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))) }
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var in struct{ Plaintext, Ciphertext []byte }
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil || r.Header.Get("Authorization") != "Bearer made-for-tests" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		name, out := "ciphertext", turn(in.Plaintext)
		if strings.HasSuffix(r.URL.Path, ":decrypt") {
			name, out = "plaintext", turn(in.Ciphertext)
		}
		_ = json.NewEncoder(w).Encode(map[string]any{name: out, name + "Crc32c": sum(out)})
	}))
	t.Cleanup(s.Close)
	return s
}

// K6: a server moves from a file to the TPM of its machine, or to the key service of
// a cloud. At every moment there is a way in, and afterwards the file opens nothing.
func TestMoveTheRootKey(t *testing.T) {
	t.Parallel()
	t.Run("TPM", func(t *testing.T) {
		t.Parallel()
		moveTheRootKey(t, "tpm2", "tpm2:"+tpm(t))
	})
	t.Run("key service", func(t *testing.T) {
		t.Parallel()
		token := filepath.Join(t.TempDir(), "token")
		must(t, os.WriteFile(token, []byte("made-for-tests\n"), 0o600))
		service := keyService(t)
		source := "cloudkms:projects/acme/locations/europe-west3/keyRings/ring/cryptoKeys/root?endpoint=" + service.URL + "&token=" + token
		s, admin := moveTheRootKey(t, "cloudkms", source)
		// A server that runs does not ask again; one that starts says what is missing.
		service.Close()
		admin.Must(t, "secret", "get", "crm/key", "--purpose", "test")
		s.Kill()
		if err := s.Try("--root-key", source); err == nil || !strings.Contains(err.Error(), "cannot be reached") {
			t.Errorf("starting without the service: %v", err)
		}
	})
}

// moveTheRootKey gives the server that has moved, and its administrator.
func moveTheRootKey(t *testing.T, kind, source string) (*e2etest.Server, *e2etest.CLI) {
	t.Helper()
	s := e2etest.Start(t, "--may-root-key", source)
	admin := s.Admin(t)
	admin.Must(t, "secret", "create", "crm/key")
	admin.Put(t, "crm/key", "canary-of-the-root-key")
	file := "file:" + filepath.Join(s.Data+"-keys", "root.key")
	reads := func() {
		t.Helper()
		if got := admin.Must(t, "secret", "get", "crm/key", "--purpose", "test"); !strings.Contains(got, "canary-of-the-root-key") {
			t.Errorf("the secret reads %q", got)
		}
	}
	var roots []struct {
		ID, Kind string
		Open     bool
	}
	admin.Must(t, "root-key", "add", source)
	// An administrator need not be who runs the machine.
	for _, other := range []string{"kms:none", "file:" + filepath.Join(t.TempDir(), "other.key"), "vault-transit:https://127.0.0.1:1?key=k&token=" + filepath.Join(s.Data, "tls", "ca.key")} {
		if r := admin.Run(t, "root-key", "add", other); r.Code == 0 || !strings.Contains(r.Stderr, "--may-root-key") {
			t.Errorf("a source that the server was not started with: %d %s", r.Code, r.Stderr)
		}
	}
	admin.JSON(t, &roots, "root-key", "list")
	if len(roots) != 2 || roots[0].Kind != "file" || roots[1].Kind != kind || !roots[1].Open {
		t.Fatalf("the root keys are %+v", roots)
	}
	if r := s.CLI(t).Run(t, "root-key", "list"); r.Code == 0 {
		t.Error("somebody who has not logged in sees the root keys")
	}

	s.Stop(t)
	must(t, s.Try("--root-key", source))
	reads()
	if r := admin.Run(t, "root-key", "rotate"); r.Code == 0 || !strings.Contains(r.Stderr, "root key from a file") {
		t.Errorf("rotating with one of two: %d %s", r.Code, r.Stderr)
	}
	s.Stop(t)
	must(t, s.Try("--root-key", source, "--also-root-key", file))
	admin.Must(t, "root-key", "rotate")
	reads()
	admin.Must(t, "root-key", "remove", roots[0].ID)
	if r := admin.Run(t, "root-key", "remove", roots[1].ID); r.Code == 0 || !strings.Contains(r.Stderr, "only root key") {
		t.Errorf("removing the only way in: %d %s", r.Code, r.Stderr)
	}
	s.Kill()
	if err := s.Try("--root-key", file); err == nil || !strings.Contains(err.Error(), "not one that the database was sealed under") {
		t.Errorf("starting with the file that was removed: %v", err)
	}
	must(t, s.Try("--root-key", source))
	reads()
	if got := admin.Must(t, "event", "list", "--action", "root_key.remove", "-o", "json"); !strings.Contains(got, roots[0].ID) {
		t.Errorf("the removal is not on record: %s", got)
	}
	return s, admin
}

// K6: people put the root key together. Until then the server says so and gives
// nothing else; a crash asks for the shares again, of whichever people.
func TestUnseal(t *testing.T) {
	t.Parallel()
	shares := strings.Split(strings.TrimSpace(e2etest.Alone(t).Must(t, "root-key", "split", "--shares", "3", "--needed", "2")), "\n")
	if len(shares) != 3 {
		t.Fatalf("the shares are %q", shares)
	}
	s := e2etest.Start(t, "--root-key", "shamir:")
	people := s.CLI(t)
	give := func(share, want string) {
		t.Helper()
		if r := people.Input(t, share+"\n", "unseal"); r.Code != 0 || !strings.Contains(r.Stdout, want) {
			t.Errorf("giving a share: %d %s%s, want %q", r.Code, r.Stdout, r.Stderr, want)
		}
	}
	status := func(path string) int {
		t.Helper()
		res, err := s.HTTP(t).Get(s.URL + path)
		if err != nil {
			return 0
		}
		_ = res.Body.Close()
		return res.StatusCode
	}
	opens := func() {
		t.Helper()
		e2etest.Eventually(t, "the server is open", func() bool { return status("/readyz") == http.StatusNoContent || status("/readyz") == http.StatusOK })
	}
	if status("/healthz") != http.StatusNoContent || status("/readyz") != http.StatusServiceUnavailable || status("/v1/agents") != http.StatusServiceUnavailable || status("/oauth/token") != http.StatusServiceUnavailable {
		t.Error("a sealed server does not say that it is")
	}
	r := people.Run(t, "agent", "list")
	if r.Code == 0 || !strings.Contains(r.Stderr, "estover unseal") {
		t.Errorf("asking a sealed server: %d %s", r.Code, r.Stderr)
	}
	give(shares[0], "1 of 2")
	give(shares[0], "1 of 2") // it is the same one
	broken := regexp.MustCompile(`\S{8}$`).ReplaceAllString(shares[1], "00000000")
	if r := people.Input(t, broken, "unseal"); r.Code == 0 || !strings.Contains(r.Stderr, "checksum") {
		t.Errorf("a share that was typed wrong: %d %s", r.Code, r.Stderr)
	}
	if r := people.Run(t, "unseal", "--forget"); r.Code != 0 || !strings.Contains(r.Stdout, "has no share") {
		t.Errorf("forgetting: %d %s%s", r.Code, r.Stdout, r.Stderr)
	}
	give(shares[2], "1 of 2")
	give(shares[1], "open")
	opens()
	admin := s.Admin(t)
	admin.Must(t, "secret", "create", "crm/key")
	admin.Put(t, "crm/key", "canary-of-the-shares")
	give(shares[0], "open") // nothing is kept of it

	s.Kill()
	s.Restart(t)
	give(shares[0]+"\n"+shares[2], "open")
	opens()
	if got := admin.Must(t, "secret", "get", "crm/key", "--purpose", "test"); !strings.Contains(got, "canary-of-the-shares") {
		t.Errorf("the secret reads %q", got)
	}

	// V15: clients of Vault find it sealed, and give shares as they give keys.
	s.Kill()
	s.Restart(t)
	vault := func(method, path, body, want string, status int) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, s.URL+"/vault/v1/"+path, strings.NewReader(body))
		must(t, err)
		res, err := s.HTTP(t).Do(req)
		must(t, err)
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		must(t, err)
		if res.StatusCode != status || !strings.Contains(string(b), want) {
			t.Errorf("%s %s: %d %s, want %d %s", method, path, res.StatusCode, b, status, want)
		}
	}
	vault("GET", "sys/health", "", `"sealed":true`, http.StatusServiceUnavailable)
	vault("GET", "sys/health?sealedcode=299", "", `"sealed":true`, 299)
	vault("GET", "secret/data/x", "", `{"errors":["Vault is sealed"]}`, http.StatusServiceUnavailable)
	vault("PUT", "sys/init", "{}", "already initialized", http.StatusBadRequest)
	vault("PUT", "sys/unseal", `{"key":"nonsense"}`, `"errors":["`, http.StatusBadRequest)
	vault("PUT", "sys/unseal", `{"key":"`+shares[0]+`"}`, `"progress":1`, http.StatusOK)
	vault("PUT", "sys/unseal", `{"reset":true}`, `"progress":0`, http.StatusOK)
	vault("POST", "sys/unseal", `{"key":"`+shares[0]+`"}`, `"t":2`, http.StatusOK)
	vault("GET", "sys/seal-status", "", `"progress":1`, http.StatusOK)
	vault("PUT", "sys/unseal", `{"key":"`+shares[1]+`"}`, `"sealed":false`, http.StatusOK)
	opens()
	vault("GET", "sys/seal-status", "", `"sealed":false`, http.StatusOK)
	for _, share := range shares {
		if strings.Contains(s.Log(), strings.Fields(share)[3]) {
			t.Error("a share is in the server's log")
		}
	}
}

// K7: where only what FIPS 140 approves may be used, and everything else panics
// or is refused, a server starts, hands out tokens, and keeps secrets under a
// root key that is made of a passphrase.
func TestFIPS(t *testing.T) {
	t.Parallel()
	words := filepath.Join(t.TempDir(), "words")
	must(t, os.WriteFile(words, []byte("correct horse battery staple\n"), 0o600))
	s := e2etest.StartWith(t, []string{"GODEBUG=fips140=only"}, "--root-key", "passphrase:file:"+words)
	d := newOAuthDesk(t, s)
	d.admin.Must(t, "secret", "create", "fips/key")
	d.admin.Put(t, "fips/key", "canary-of-fips")
	token, err := d.token(t, "client_secret_basic", url.Values{"purpose": {"support"}, "resource": {d.site.URL}})
	must(t, err)
	if status, body, _ := d.call(t, http.MethodGet, "/v1/customers", token.AccessToken); status != http.StatusOK {
		t.Errorf("a call: %d %s", status, body)
	}
	d.admin.Must(t, "key", "rotate", "--emergency", "--reason", "test")
	d.admin.Must(t, "doctor")
	s.Kill()
	s.Restart(t)
	if got := d.admin.Must(t, "secret", "get", "fips/key", "--purpose", "test"); !strings.Contains(got, "canary-of-fips") {
		t.Errorf("the secret reads %q", got)
	}
	if strings.Contains(s.Log(), "panic") {
		t.Error("something panicked")
	}
}
