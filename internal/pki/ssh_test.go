package pki_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/db/scratch"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/pki"
)

// sshKey is a fresh one, as its owner has it and as a line.
func sshKey(t testing.TB) (ssh.Signer, string) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	line, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return signer, string(ssh.MarshalAuthorizedKey(line))
}

// sshAuthority makes one of a mount, and a role for users and hosts.
func (h *house) sshAuthority(algorithm pki.Algorithm, spec pki.SSHSpec) *pki.Authority {
	h.t.Helper()
	a, _, err := h.Generate(h.t.Context(), ann, pki.Plan{Name: "ssh", Kind: pki.SSH, Algorithm: algorithm}, false)
	if err != nil {
		h.t.Fatal(err)
	}
	h.role("ops", pki.Spec{Resource: "res_1", Action: "login", TTL: 300, MaxTTL: 600, SSH: &spec})
	return a
}

// TestSSHD: a real sshd lets in who has a certificate of ours for the user, until
// the certificate is on the revocation list, and nobody else.
func TestSSHD(t *testing.T) {
	d := dbtest.Open(t)
	h := build(t, d, guardtest.AllowAll)
	me := sshUser(t)
	a := h.sshAuthority(pki.Ed25519, pki.SSHSpec{User: true, Host: true, Principals: []string{me.name, "other"}, Domains: []string{"example"}, Subdomains: true, DefaultExtended: map[string]string{"permit-pty": ""}})
	h.session("ses_1", time.Hour)

	dir, err := os.MkdirTemp("", "sshd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	_, hostKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	hostPublic, err := ssh.NewPublicKey(hostKey.Public())
	if err != nil {
		t.Fatal(err)
	}
	hostCert, err := h.SignSSH(t.Context(), ann, pki.SSHWish{Role: "ops", Host: true, Principals: []string{"db.example"}, PublicKey: string(ssh.MarshalAuthorizedKey(hostPublic))})
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(hostKey, "")
	if err != nil {
		t.Fatal(err)
	}
	list, err := h.KRL(t.Context(), "acme", a.ID)
	if err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	put := func(name string, b []byte) {
		t.Helper()
		file := filepath.Join(dir, name)
		// A server reads the list at each log-in: it is put there in one step.
		if err := os.WriteFile(file+".new", b, 0o600); err != nil {
			t.Fatal(err)
		}
		if me.attr != nil {
			if err := os.Chown(file+".new", int(me.attr.Credential.Uid), int(me.attr.Credential.Gid)); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	if me.attr != nil {
		if err := os.Chown(dir, int(me.attr.Credential.Uid), int(me.attr.Credential.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	put("host", pem.EncodeToMemory(block))
	put("host-cert.pub", []byte(hostCert.PEM+"\n"))
	put("ca.pub", []byte(a.PublicKey+"\n"))
	put("krl", list)
	put("config", fmt.Appendf(nil, `ListenAddress 127.0.0.1:%d
HostKey %[2]s/host
HostCertificate %[2]s/host-cert.pub
TrustedUserCAKeys %[2]s/ca.pub
RevokedKeys %[2]s/krl
PidFile none
UsePAM no
StrictModes no
AuthenticationMethods publickey
PasswordAuthentication no
AuthorizedKeysFile none
`, port, dir))
	var said bytes.Buffer
	server := exec.Command("/usr/sbin/sshd", "-D", "-e", "-f", filepath.Join(dir, "config"))
	server.SysProcAttr, server.Stderr = me.attr, &said
	if err := server.Start(); err != nil {
		t.Fatalf("starting sshd: %v\nDebian: apt-get install openssh-server", err)
	}
	t.Cleanup(func() { _ = server.Process.Kill(); _ = server.Wait() })
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("tcp", address)
		if err == nil {
			_ = c.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("sshd does not answer: %v", err)
		}
	}
	authority, _, _, _, err := ssh.ParseAuthorizedKey([]byte(a.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	checker := &ssh.CertChecker{IsHostAuthority: func(key ssh.PublicKey, _ string) bool { return bytes.Equal(key.Marshal(), authority.Marshal()) }}
	login := func(c *pki.Certificate, key ssh.Signer) error {
		t.Helper()
		parsed, _, _, _, err := ssh.ParseAuthorizedKey([]byte(c.PEM))
		if err != nil {
			t.Fatal(err)
		}
		with, err := ssh.NewCertSigner(parsed.(*ssh.Certificate), key)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := ssh.Dial("tcp", address, &ssh.ClientConfig{
			User: me.name, Auth: []ssh.AuthMethod{ssh.PublicKeys(with)}, Timeout: 30 * time.Second,
			HostKeyAlgorithms: []string{ssh.CertAlgoED25519v01},
			HostKeyCallback: func(_ string, remote net.Addr, key ssh.PublicKey) error {
				return checker.CheckHostKey("db.example:22", remote, key)
			},
		})
		if err == nil {
			_ = conn.Close()
		}
		return err
	}
	key, line := sshKey(t)
	sign := func(c estover.Caller, principals ...string) *pki.Certificate {
		t.Helper()
		cert, err := h.SignSSH(t.Context(), c, pki.SSHWish{Role: "ops", PublicKey: line, Principals: principals})
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	mine, other, another := sign(bot, me.name), sign(ann, "other"), sign(ann, me.name)
	if !strings.Contains(mine.Name, "agent:agt_bot") || !strings.Contains(mine.Name, "ses_1") || mine.Revocation != pki.LingersSSH {
		t.Errorf("the key id is %q and the sentence %q", mine.Name, mine.Revocation)
	}
	if err := login(mine, key); err != nil {
		t.Errorf("with a certificate: %v\n%s", err, said.String())
	}
	if err := login(other, key); err == nil {
		t.Error("a certificate for another user lets one in")
	}
	if n := h.end("ses_1"); n != 1 {
		t.Errorf("%d certificates were revoked, want 1", n)
	}
	list, err = h.KRL(t.Context(), "acme", a.ID)
	if err != nil {
		t.Fatal(err)
	}
	put("krl", list)
	if err := login(mine, key); err == nil {
		t.Error("a revoked certificate lets one in")
	}
	if err := login(another, key); err != nil {
		t.Errorf("one that is not revoked: %v\n%s", err, said.String())
	}
}

// An sshdUser is who sshd runs as, since it lets in nobody else.
type sshdUser struct {
	name string
	attr *syscall.SysProcAttr
}

func sshUser(t testing.TB) sshdUser {
	t.Helper()
	if os.Getuid() != 0 {
		u, err := user.Current()
		if err != nil {
			t.Fatal(err)
		}
		return sshdUser{name: u.Username}
	}
	for _, name := range []string{"postgres", "nobody"} {
		if u, err := user.Lookup(name); err == nil {
			uid, err1 := strconv.Atoi(u.Uid)
			gid, err2 := strconv.Atoi(u.Gid)
			if err := errors.Join(err1, err2); err != nil {
				t.Fatal(err)
			}
			return sshdUser{name, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, Pdeathsig: syscall.SIGKILL}}
		}
	}
	t.Fatal("there is no user who is not root")
	return sshdUser{}
}

func freePort(t testing.TB) int {
	t.Helper()
	port, err := scratch.Port()
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// TestKRL: a stock ssh-keygen finds in our list what was revoked, and nothing else,
// whatever the authority's key.
func TestKRL(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, guardtest.AllowAll)
		for i, algorithm := range []pki.Algorithm{pki.Ed25519, pki.P256, pki.RSA2048} {
			a, _, err := h.Generate(t.Context(), ann, pki.Plan{Name: fmt.Sprintf("ssh%d", i), Kind: pki.SSH, Algorithm: algorithm}, false)
			if err != nil {
				t.Fatal(err)
			}
			h.role(fmt.Sprintf("ops%d", i), pki.Spec{Authority: a.Name, SSH: &pki.SSHSpec{User: true, Principals: []string{"*"}}})
			_, line := sshKey(t)
			files := map[string]string{"ca.pub": a.PublicKey + "\n"}
			var serials []string
			for n := range 3 {
				c, err := h.SignSSH(t.Context(), ann, pki.SSHWish{Role: fmt.Sprintf("ops%d", i), PublicKey: line, Principals: []string{"root"}})
				if err != nil {
					t.Fatal(err)
				}
				files[fmt.Sprintf("c%d-cert.pub", n)] = c.PEM + "\n"
				serials = append(serials, c.Serial)
			}
			for version, revoked := range [][]int{{}, {1}, {1, 2}} {
				if version > 0 {
					if _, err := h.Revoke(t.Context(), ann, "", pki.SSH, serials[version], pki.Unspecified, "lost"); err != nil {
						t.Fatal(err)
					}
				}
				list, err := h.KRL(t.Context(), "acme", a.ID)
				if err != nil {
					t.Fatal(err)
				}
				files["krl"] = string(list)
				dir := write(t, files)
				out, err := exec.Command("ssh-keygen", "-Q", "-l", "-f", filepath.Join(dir, "krl")).CombinedOutput()
				if err != nil || !strings.Contains(string(out), fmt.Sprintf("# KRL version %d", version)) {
					t.Errorf("ssh-keygen says of the list: %v, %s; want version %d", err, out, version)
				}
				for n := range 3 {
					out, err := exec.Command("ssh-keygen", "-Q", "-f", filepath.Join(dir, "krl"), filepath.Join(dir, fmt.Sprintf("c%d-cert.pub", n))).CombinedOutput()
					is := false
					for _, r := range revoked {
						is = is || r == n
					}
					if is != (err != nil) || is != strings.Contains(string(out), "REVOKED") {
						t.Errorf("%s, list %d, certificate %d: %v, %s; want revoked %v", algorithm, version, n, err, out, is)
					}
				}
				if out, err := exec.Command("ssh-keygen", "-L", "-f", filepath.Join(dir, "c0-cert.pub")).CombinedOutput(); err != nil || !strings.Contains(string(out), "Serial: "+serials[0]) || !strings.Contains(string(out), "root") {
					t.Errorf("ssh-keygen reads the certificate: %v, %s", err, out)
				}
			}
		}
	})
}

// TestSSHRole: what a role does not name is in no certificate.
func TestSSHRole(t *testing.T) {
	d := dbtest.Open(t)
	h := build(t, d, guardtest.AllowAll)
	h.session("ses_1", time.Hour)
	h.sshAuthority(pki.P256, pki.SSHSpec{
		User: true, Principals: []string{"deploy", "{{agent}}"}, Default: []string{"deploy"}, Options: []string{"force-command", "source-address"},
		Extensions: []string{"permit-pty"}, DefaultExtended: map[string]string{"permit-port-forwarding": ""}, Keys: map[string][]int{"ed25519": nil},
	})
	_, line := sshKey(t)
	for what, c := range map[string]struct {
		who  estover.Caller
		wish pki.SSHWish
		want error
	}{
		"the default":           {ann, pki.SSHWish{}, nil},
		"a name":                {ann, pki.SSHWish{Principals: []string{"deploy"}}, nil},
		"an agent's own":        {bot, pki.SSHWish{Principals: []string{"agt_bot"}}, nil},
		"another agent's":       {bot, pki.SSHWish{Principals: []string{"agt_other"}}, pki.ErrNotAllowed},
		"the template":          {ann, pki.SSHWish{Principals: []string{"{{agent}}"}}, pki.ErrNotAllowed},
		"root":                  {ann, pki.SSHWish{Principals: []string{"root"}}, pki.ErrNotAllowed},
		"two in one":            {ann, pki.SSHWish{Principals: []string{"deploy,root"}}, pki.ErrNotAllowed},
		"a host":                {ann, pki.SSHWish{Host: true, Principals: []string{"deploy"}}, pki.ErrNotAllowed},
		"an option":             {ann, pki.SSHWish{Options: map[string]string{"force-command": "true"}}, nil},
		"an option unknown":     {ann, pki.SSHWish{Options: map[string]string{"verify-required": ""}}, pki.ErrNotAllowed},
		"an address":            {ann, pki.SSHWish{Options: map[string]string{"source-address": "10.0.0.0/8"}}, nil},
		"no address":            {ann, pki.SSHWish{Options: map[string]string{"source-address": "everywhere"}}, pki.ErrInvalid},
		"an extension":          {ann, pki.SSHWish{Extensions: map[string]string{"permit-pty": ""}}, nil},
		"an extension refused":  {ann, pki.SSHWish{Extensions: map[string]string{"permit-agent-forwarding": ""}}, pki.ErrNotAllowed},
		"a key id":              {ann, pki.SSHWish{KeyID: "somebody"}, pki.ErrNotAllowed},
		"no key":                {ann, pki.SSHWish{PublicKey: "nonsense"}, pki.ErrInvalid},
		"for longer than it is": {ann, pki.SSHWish{TTL: time.Hour}, nil},
	} {
		c.wish.Role = "ops"
		if c.wish.PublicKey == "" {
			c.wish.PublicKey = line
		}
		got, err := h.SignSSH(t.Context(), c.who, c.wish)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", what, err, c.want)
		}
		if err == nil && got.NotAfter.Sub(d.Now()) > 10*time.Minute {
			t.Errorf("%s: it ends in %s, and the role says 10 minutes at most", what, got.NotAfter.Sub(d.Now()))
		}
	}
	// One that is imported signs too, and a public key is not certified twice.
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	a, err := h.ImportSSH(t.Context(), ann, "", "imported", estover.NewSecret(pem.EncodeToMemory(block)))
	if err != nil {
		t.Fatal(err)
	}
	h.role("two", pki.Spec{Authority: "imported", SSH: &pki.SSHSpec{User: true, Principals: []string{"*"}}})
	got, err := h.IssueSSH(t.Context(), ann, pki.SSHWish{Role: "two", Principals: []string{"x"}}, "")
	if err != nil || got.Authority != a.ID || !strings.Contains(got.PrivateKey, "OPENSSH PRIVATE KEY") {
		t.Errorf("issued by the imported one: %+v, %v", got, err)
	}
	if _, err := h.SignSSH(t.Context(), ann, pki.SSHWish{Role: "two", Principals: []string{"x"}, PublicKey: got.PEM}); !errors.Is(err, pki.ErrInvalid) {
		t.Errorf("a certificate of a certificate: %v, want ErrInvalid", err)
	}
}
