package e2e

import (
	"bufio"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"estover.dev/e2e/e2etest"
	"estover.dev/internal/db/dbtest"
)

// vaultServer is a server whose Vault-compatible door has an address of its own.
func vaultServer(t *testing.T, args ...string) (srv *e2etest.Server, address string) {
	t.Helper()
	srv = e2etest.Start(t, append([]string{"--vault-listen", "127.0.0.1:0"}, args...)...)
	at := regexp.MustCompile(`msg=serving .* vault=(https://\S+)`).FindStringSubmatch(srv.Log())
	if at == nil {
		t.Fatalf("the server does not say where the door is:\n%s", srv.Log())
	}
	return srv, at[1]
}

// audited is a socket for an audit device, and its first line.
func audited(t *testing.T) (address string, first func() string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { _ = l.Close() })
	lines := make(chan string, 1)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if line, err := bufio.NewReader(c).ReadString('\n'); err == nil {
				select {
				case lines <- line:
				default:
				}
			}
			_ = c.Close()
		}
	}()
	return l.Addr().String(), func() string {
		select {
		case line := <-lines:
			return line
		case <-time.After(time.Minute):
			return "nothing"
		}
	}
}

// Clients of Vault that are not ours work as they are, on either engine of storage, at
// the door's own address and below /vault/ (V0).
func TestVaultClients(t *testing.T) {
	t.Parallel()
	dbtest.EachURL(t, func(t *testing.T, database string) {
		srv, address := vaultServer(t, "--database", database)
		if strings.HasPrefix(database, "postgres") {
			address = srv.URL + "/vault"
		}
		token := srv.Admin(t).Token(t)
		t.Run("hashicorp", func(t *testing.T) { useVault(t, address, srv.CAFile, token) })
		t.Run("openbao", func(t *testing.T) { useBao(t, address, srv.CAFile, token) })
		env := []string{
			"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "LANG=C.UTF-8", "VAULT_ADDR=" + address, "VAULT_TOKEN=" + token,
			"NODE_EXTRA_CA_CERTS=" + srv.CAFile, "CURL_CA_BUNDLE=" + srv.CAFile,
		}
		run := func(t *testing.T, command ...string) {
			c := exec.Command(command[0], command[1:]...)
			c.Env, c.Dir = env, "clients"
			if r := e2etest.Run(t, c); r.Code != 0 || !strings.Contains(r.Stdout, "all done") {
				t.Errorf("exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
			}
		}
		t.Run("curl", func(t *testing.T) { run(t, "sh", "vault.sh") })
		t.Run("node-vault", func(t *testing.T) { run(t, node(t), "node-vault.mjs") })
	})
}
