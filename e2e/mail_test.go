package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"mime"
	"mime/quotedprintable"
	"net"
	"net/mail"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"estover.dev/e2e/e2etest"
	"estover.dev/internal/approval/document"
)

// certificate makes a certificate for 127.0.0.1 and writes it and its key.
func certificate(t *testing.T, dir string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	certFile, keyFile = filepath.Join(dir, "mail.crt"), filepath.Join(dir, "mail.key")
	must(t, os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	must(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600))
	return certFile, keyFile
}

// Those who may decide are told by mail, by way of an ordinary mail server that
// wants STARTTLS: for what, in which eight words, and on which page.
func TestToldByMail(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	certFile, keyFile := certificate(t, dir)
	at := "127.0.0.1:" + e2etest.Port(t)
	box := filepath.Join(dir, "box")
	server := exec.Command("/usr/bin/python3", "-m", "aiosmtpd", "-n", "-l", at, "--tlscert", certFile, "--tlskey", keyFile, "-c", "aiosmtpd.handlers.Mailbox", box)
	must(t, server.Start())
	t.Cleanup(func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	})
	e2etest.Eventually(t, "the mail server listens", func() bool {
		c, err := net.Dial("tcp", at)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})

	d := newDesk(t, e2etest.Start(t))
	d.admin.Must(t, "person", "create", "pam", "--role", "approver", "--email", "pam@example.com")
	d.admin.Must(t, "channel", "add", "mail", "--kind", "email", "--server", at, "--root", certFile, "--allow-private", "--from", "estover@example.com", "--batch", "0")
	var r struct{ ID string }
	d.admin.JSON(t, &r, "access", "request", "--agent", "bot", "--purpose", "support", "--resource", "crm", "--action", "customer.delete", "--parameter", "id=cus_1002", "--reason", "Asked to be erased")

	var text string
	e2etest.Eventually(t, "the mail arrives", func() bool {
		files, _ := filepath.Glob(filepath.Join(box, "new", "*"))
		if len(files) == 0 {
			return false
		}
		f, err := os.Open(files[0])
		must(t, err)
		defer f.Close()
		m, err := mail.ReadMessage(f)
		must(t, err)
		subject, err := new(mime.WordDecoder).DecodeHeader(m.Header.Get("Subject"))
		must(t, err)
		var body io.Reader = m.Body
		if strings.EqualFold(m.Header.Get("Content-Transfer-Encoding"), "quoted-printable") {
			body = quotedprintable.NewReader(body)
		}
		b, err := io.ReadAll(body)
		must(t, err)
		text = fmt.Sprintf("%s\n%s\n%s\n%s", m.Header.Get("To"), m.Header.Get("From"), subject, b)
		return true
	})
	words := document.Fingerprint([]byte(d.admin.Must(t, "access", "document", r.ID)))
	for _, want := range []string{"pam@example.com", "estover@example.com", "bot", "customer.delete", "cus_1002", "Asked to be erased", words, d.URL + "/approve/" + r.ID} {
		if !strings.Contains(text, want) {
			t.Errorf("the mail does not say %q:\n%s", want, text)
		}
	}
	var after struct{ State string }
	d.admin.JSON(t, &after, "access", "show", r.ID)
	if after.State != "pending" {
		t.Errorf("after the mail the request is %s", after.State)
	}
}
