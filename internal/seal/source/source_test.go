package source_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
	"pgregory.net/rapid"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/seal"
	"estover.dev/internal/seal/source"
)

const acme estover.TenantID = "acme"

func parse(t testing.TB, uri string) seal.Source {
	t.Helper()
	src, err := source.Parse(uri, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	return src
}

// opens makes sure that a source opens a database again, with what was sealed
// in it, and that another source does not.
func opens(t *testing.T, d *db.DB, src seal.Source) {
	t.Helper()
	aad := seal.AAD{Class: seal.KV, ID: "x"}
	s, err := seal.Open(t.Context(), d, src)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Prepare(t.Context(), acme); err != nil {
		t.Fatal(err)
	}
	sealed, err := s.Seal(acme, aad, []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	again, err := seal.Open(t.Context(), d, src)
	if err != nil {
		t.Fatalf("opening again: %v", err)
	}
	if err := again.Prepare(t.Context(), acme); err != nil {
		t.Fatal(err)
	}
	if got, err := again.Open(acme, aad, sealed); err != nil || string(got) != "x" {
		t.Errorf("what was sealed before: %q, %v", got, err)
	}
	if _, err := seal.Open(t.Context(), d, seal.File{Path: filepath.Join(t.TempDir(), "root.key")}); !errors.Is(err, seal.ErrRoot) {
		t.Errorf("a root key of another source: %v, want ErrRoot", err)
	}
}

// start runs a program until the test ends.
func start(t *testing.T, ready func() bool, name string, args ...string) {
	t.Helper()
	var said bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v; scripts/install installs it", err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-ended })
	for deadline := time.Now().Add(time.Minute); !ready(); time.Sleep(10 * time.Millisecond) {
		select {
		case <-ended:
			t.Fatalf("%s ended: %s", name, said.String())
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is not ready: %s", name, said.String())
		}
	}
}

// simulator is a TPM of the test's own.
func simulator(t *testing.T) string {
	dir, err := os.MkdirTemp("", "tpm-") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "sock")
	start(t, func() bool {
		c, err := net.Dial("unix", socket)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	},
		"swtpm", "socket", "--tpm2", "--tpmstate", "dir="+dir, "--server", "type=unixio,path="+socket, "--flags", "not-need-init,startup-clear")
	return socket
}

func TestTPM(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		socket := simulator(t)
		opens(t, d, parse(t, "tpm2:"+socket))

		device, err := linuxudstpm.Open(socket)
		if err != nil {
			t.Fatal(err)
		}
		// A register that was not sealed to may change.
		extend(t, device, 8)
		if _, err := seal.Open(t.Context(), d, parse(t, "tpm2:"+socket)); err != nil {
			t.Errorf("after register 8 has changed: %v", err)
		}
		extend(t, device, 7)
		if _, err := seal.Open(t.Context(), d, parse(t, "tpm2:"+socket)); !errors.Is(err, seal.ErrRoot) || !strings.Contains(err.Error(), "Secure Boot") {
			t.Errorf("after register 7 has changed: %v, want ErrRoot that says so", err)
		}
		if _, err := seal.Open(t.Context(), d, parse(t, "tpm2:"+simulator(t))); !errors.Is(err, seal.ErrRoot) || !strings.Contains(err.Error(), "Another TPM") {
			t.Errorf("with another TPM: %v, want ErrRoot that says so", err)
		}
		if _, err := seal.Open(t.Context(), d, parse(t, "tpm2:/nowhere")); !errors.Is(err, seal.ErrRootMissing) {
			t.Errorf("without a TPM: %v, want ErrRootMissing", err)
		}
	})
}

func extend(t *testing.T, device interface {
	Send([]byte) ([]byte, error)
}, register uint,
) {
	t.Helper()
	_, err := tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(register), Auth: tpm2.PasswordAuth(nil)},
		Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: make([]byte, 32)}}},
	}.Execute(device)
	if err != nil {
		t.Fatal(err)
	}
}

func TestDevice(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if err := os.Mkdir(filepath.Join(dir, "tokens"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOFTHSM2_CONF", write("softhsm2.conf", "directories.tokendir = "+filepath.Join(dir, "tokens")+"\nobjectstore.backend = file\n"))
	const module = "/usr/lib/softhsm/libsofthsm2.so"
	run := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", name, err, out)
		}
	}
	run("softhsm2-util", "--init-token", "--free", "--label", "estover", "--pin", "123456", "--so-pin", "654321")
	for id, label := range map[string]string{"01": "root", "02": "other"} {
		run("pkcs11-tool", "--module", module, "--token-label", "estover", "--login", "--pin", "123456",
			"--keypairgen", "--key-type", "EC:prime256v1", "--label", label, "--id", id, "--usage-derive")
	}
	pin := write("pin", "123456\n")
	uri := func(id, pin string) string {
		return "pkcs11:token=estover;id=" + id + "?module-path=" + module + "&pin-source=" + pin
	}
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		opens(t, d, parse(t, uri("%01", pin)))
		if _, err := seal.Open(t.Context(), d, parse(t, uri("%02", pin))); !errors.Is(err, seal.ErrRoot) {
			t.Errorf("another key of the device: %v, want ErrRoot", err)
		}
		if _, err := seal.Open(t.Context(), d, parse(t, uri("%03", pin))); !errors.Is(err, seal.ErrRootMissing) {
			t.Errorf("a key that is not there: %v, want ErrRootMissing", err)
		}
		if _, err := seal.Open(t.Context(), d, parse(t, uri("%01", write("wrong", "999999")))); !errors.Is(err, seal.ErrRootMissing) || strings.Contains(err.Error(), "999999") {
			t.Errorf("a wrong PIN: %v, want ErrRootMissing, and not the PIN", err)
		}
	})
}

// engine is a transit engine as its clients see it: it answers as OpenBao's.
func engine(t *testing.T) (at, token string, seen func() []string) {
	var mu sync.Mutex
	var paths []string
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		paths = append(paths, r.Method+" "+r.URL.Path+" "+r.Header.Get("X-Vault-Namespace"))
		mu.Unlock()
		refuse := func(code int, why string) {
			w.WriteHeader(code)
			_ = json.NewEncoder(w).Encode(map[string]any{"errors": []string{why}})
		}
		var in map[string]string
		switch err := json.NewDecoder(r.Body).Decode(&in); {
		case r.Header.Get("X-Vault-Token") != "s.good":
			refuse(http.StatusForbidden, "permission denied")
		case err != nil:
			refuse(http.StatusBadRequest, "not JSON")
		case r.URL.Path == "/v1/transit/encrypt/estover":
			plain, _ := base64.StdEncoding.DecodeString(in["plaintext"])
			for i := range plain {
				plain[i] ^= 0x5a
			}
			_ = json.NewEncoder(w).Encode(map[string]any{"data": map[string]any{"ciphertext": "vault:v1:" + base64.StdEncoding.EncodeToString(plain), "key_version": 1}})
		case r.URL.Path == "/v1/transit/decrypt/estover":
			body, ok := strings.CutPrefix(in["ciphertext"], "vault:v1:")
			plain, err := base64.StdEncoding.DecodeString(body)
			if !ok || err != nil {
				refuse(http.StatusBadRequest, "invalid ciphertext: no prefix")
				return
			}
			for i := range plain {
				plain[i] ^= 0x5a
			}
			_ = json.NewEncoder(w).Encode(map[string]any{"data": map[string]any{"plaintext": base64.StdEncoding.EncodeToString(plain)}})
		default:
			refuse(http.StatusBadRequest, "encryption key not found")
		}
	})
	s := httptest.NewTLSServer(h)
	t.Cleanup(s.Close)
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	token = filepath.Join(dir, "token")
	if err := os.WriteFile(token, []byte("s.good\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return "vault-transit:" + s.URL + "?ca=" + ca + "&token=" + token, token, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return paths
	}
}

func TestTransit(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		at, token, seen := engine(t)
		opens(t, d, parse(t, at+"&key=estover&namespace=team"))
		if got := seen(); len(got) < 2 || got[0] != "POST /v1/transit/encrypt/estover team" || got[1] != "POST /v1/transit/decrypt/estover team" {
			t.Errorf("the engine was asked for %q", got)
		}
		if _, err := seal.Open(t.Context(), d, parse(t, at+"&key=none")); !errors.Is(err, seal.ErrRootMissing) || !strings.Contains(err.Error(), "not found") {
			t.Errorf("a key that is not there: %v, want ErrRootMissing that says so", err)
		}
		if err := os.WriteFile(token, []byte("s.bad"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := seal.Open(t.Context(), d, parse(t, at+"&key=estover")); !errors.Is(err, seal.ErrRootMissing) || strings.Contains(err.Error(), "s.bad") {
			t.Errorf("another token: %v, want ErrRootMissing, and not the token", err)
		}
		if _, err := seal.Open(t.Context(), d, parse(t, "vault-transit:http://127.0.0.1:1?key=estover&token="+token)); !errors.Is(err, seal.ErrRootMissing) {
			t.Errorf("an engine that is not there: %v, want ErrRootMissing", err)
		}
	})
}

func TestShares(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		parts, err := source.Split(5, 3)
		if err != nil {
			t.Fatal(err)
		}
		aad := seal.AAD{Class: seal.KV, ID: "x"}
		var sealed []byte
		// Any three of the five, in any order, open what any other three have made.
		for n, give := range [][]int{{0, 1, 2}, {4, 2, 0}, {3, 3, 1, 4}} {
			shares := source.NewShares()
			for i, k := range give {
				p, err := shares.Give(parts[k])
				if err != nil {
					t.Fatal(err)
				}
				if last := i == len(give)-1; p.Sealed == last {
					t.Errorf("after share %d of %v: %+v", i, give, p)
				}
			}
			s, err := seal.Open(t.Context(), d, source.Together{Shares: shares})
			if err != nil {
				t.Fatal(err)
			}
			shares.Close()
			if err := s.Prepare(t.Context(), acme); err != nil {
				t.Fatal(err)
			}
			if n == 0 {
				if sealed, err = s.Seal(acme, aad, []byte("x")); err != nil {
					t.Fatal(err)
				}
			} else if got, err := s.Open(acme, aad, sealed); err != nil || string(got) != "x" {
				t.Errorf("what was sealed before: %q, %v", got, err)
			}
		}
		// A key of other shares is another key.
		others, err := source.Split(3, 2)
		if err != nil {
			t.Fatal(err)
		}
		shares := source.NewShares()
		for _, p := range []string{parts[0], parts[1], others[0], others[2]} {
			if _, err := shares.Give(p); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := seal.Open(t.Context(), d, source.Together{Shares: shares}); !errors.Is(err, seal.ErrRoot) {
			t.Errorf("shares of another key: %v, want ErrRoot", err)
		}
	})
}

// Fewer shares than are needed make nothing, any that are enough make the key,
// and one that was changed is noticed by itself.
func TestSharesOfAnySet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := rapid.IntRange(2, 12).Draw(t, "all")
		need := rapid.IntRange(2, all).Draw(t, "need")
		parts, err := source.Split(all, need)
		if err != nil {
			t.Fatal(err)
		}
		order := rapid.Permutation(parts).Draw(t, "order")
		shares := source.NewShares()
		for i, p := range order[:need] {
			got, err := shares.Give(p)
			if err != nil {
				t.Fatal(err)
			}
			if got.Sealed == (i == need-1) || got.Sealed && (got.Given != i+1 || got.Needed != need) {
				t.Fatalf("%d of %d: %+v", i+1, need, got)
			}
		}
		b := []byte(order[0])
		i := rapid.IntRange(0, len(b)-1).Draw(t, "at")
		b[i] ^= 1 << rapid.IntRange(0, 6).Draw(t, "bit")
		if changed := string(b); strings.Join(strings.Fields(changed), " ") != order[0] {
			if _, err := source.NewShares().Give(changed); !errors.Is(err, source.ErrShare) {
				t.Fatalf("a share that was changed at %d: %v, want ErrShare", i, err)
			}
		}
	})
}

func TestSharesAreBounded(t *testing.T) {
	for _, c := range [][2]int{{1, 1}, {3, 1}, {2, 3}, {33, 2}} {
		if _, err := source.Split(c[0], c[1]); !errors.Is(err, source.ErrShare) {
			t.Errorf("%d shares of which %d are needed: %v, want ErrShare", c[0], c[1], err)
		}
	}
	shares := source.NewShares()
	var err error
	for range 9 {
		parts, split := source.Split(2, 2)
		if split != nil {
			t.Fatal(split)
		}
		_, err = shares.Give(parts[0])
	}
	if !errors.Is(err, source.ErrShare) {
		t.Errorf("a ninth set: %v, want ErrShare", err)
	}
	if p := shares.Forget(); p.Given != 0 || !p.Sealed {
		t.Errorf("after forgetting: %+v", p)
	}
	if _, _, err := (source.Together{}).Root(t.Context(), "", true); !errors.Is(err, seal.ErrRootMissing) {
		t.Errorf("where nobody can give shares: %v, want ErrRootMissing", err)
	}
}

func TestParse(t *testing.T) {
	token := filepath.Join(t.TempDir(), "token")
	for _, uri := range []string{
		"tpm2:?pcrs=24", "tpm2:?pcrs=x", "tpm2:?bank=sha1", "tpm2:?pcrs=1&pcrs=2", "shamir:3/5", "kms:x",
		"vault-transit:", "vault-transit:https://v", "vault-transit:https://v?key=k", "vault-transit:http://vault.example.com?key=k&token=" + token,
		"vault-transit:https://u:p@v?key=k&token=t", "vault-transit:https://v?key=k&token=t&ca=/nowhere", "vault-transit:https://v?key=k&token=t&x=y",
		"awskms:", "awskms:alias/x", "awskms:alias/x?region=a/b", "awskms:a b?region=eu-central-1", "awskms:alias/x?region=eu-central-1&endpoint=http://kms.example.com",
		"awskms:alias/x?region=eu-central-1&metadata=http://10.0.0.1", "awskms:alias/x?region=eu-central-1&token=x", "awskms:alias/x?region=eu-central-1&ca=/nowhere",
		"azurekms:", "azurekms:https://v", "azurekms:https://v/secrets/x", "azurekms:http://v/keys/x", "azurekms:http://127.0.0.1/keys/x", "azurekms:https://v/keys/x/y/z",
		"azurekms:https://v/keys/x_y", "azurekms:https://u:p@v/keys/x", "azurekms:https://v/keys/x?region=y",
		"cloudkms:", "cloudkms:projects/p/locations/l/keyRings/r", "cloudkms:projects/p/locations/l/keyRings/r/cryptoKeys/k/x", "cloudkms:projects/../locations/l/keyRings/r/cryptoKeys/a b",
		"cloudkms:projects/p/locations/l/keyRings/r/cryptoKeys/k?endpoint=http://kms.example.com", "cloudkms:projects/p/locations/l/keyRings/r/cryptoKeys/k?token=a&token=b",
		"pkcs11:", "pkcs11:token=a;id=b", "pkcs11:token=a;id=b?module-path=m", "pkcs11:token=a;object=b?module-path=m&pin-source=p", "pkcs11:token=%zz",
	} {
		if _, err := source.Parse(uri, "", nil); err == nil {
			t.Errorf("%q was accepted", uri)
		}
	}
	for _, uri := range []string{
		"tpm2:", "tpm2:/dev/tpm0?pcrs=0,2,7", "shamir:", "file:/etc/root.key", "awskms:arn:aws:kms:eu-central-1:111122223333:key/one", "awskms:alias/x?region=cn-north-1",
		"azurekms:https://v.vault.azure.net/keys/x", "azurekms:https://v.vault.azure.net/keys/x/0123abcd?token=t", "cloudkms:projects/p/locations/l/keyRings/r/cryptoKeys/k", "vault-transit:http://127.0.0.1:1?key=k&token=t",
	} {
		parse(t, uri)
	}
}
