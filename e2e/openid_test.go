package e2e

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"estover.dev/e2e/e2etest"
)

// TestSignInWithOpenIDConnect is the guide as it is written: the application of
// the page, registered as the page says, and a person with a real browser.
func TestSignInWithOpenIDConnect(t *testing.T) {
	text, err := os.ReadFile("../docs/guides/sign-people-in-with-openid-connect.md")
	if err != nil {
		t.Fatal(err)
	}
	block := func(kind string) string {
		m := regexp.MustCompile("(?s)```" + kind + "\n(.*?)```").FindSubmatch(text)
		if m == nil {
			t.Fatalf("the guide has no block of %s", kind)
		}
		return string(m[1])
	}
	srv := e2etest.Start(t)
	admin := srv.Admin(t)
	admin.Apply(t, block("yaml"))
	var credential struct {
		ID     string `json:"client_id"`
		Secret string `json:"client_secret"`
	}
	admin.JSON(t, &credential, "agent", "credential", "add", "wiki", "--label", "app")
	admin.Must(t, "person", "create", "alice", "--email", "alice@example.com")
	var invitation struct{ Link string }
	admin.JSON(t, &invitation, "person", "invite", "alice")

	address := "127.0.0.1:" + e2etest.Port(t)
	file := filepath.Join(t.TempDir(), "main.go")
	if err := os.WriteFile(file, []byte(block("go")), 0o600); err != nil {
		t.Fatal(err)
	}
	app := exec.Command(e2etest.Build(t, t.TempDir(), "wiki", file))
	app.Env = append(os.Environ(), "ISSUER="+srv.URL, "ADDRESS="+address, "CLIENT_ID="+credential.ID, "CLIENT_SECRET="+credential.Secret, "SSL_CERT_FILE="+srv.CAFile)
	if err := app.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = app.Process.Kill(); _ = app.Wait() })
	e2etest.Eventually(t, "the application listens", func() bool {
		c, err := net.DialTimeout("tcp", address, time.Second)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})

	b := srv.Browser(t)
	b.Goto(invitation.Link)
	b.Heading("You are invited")
	b.Click("button", "Go on")
	b.Heading("Welcome, alice")
	b.Click("button", "Make a passkey")
	b.Heading("Keep these recovery codes")
	b.Goto("http://" + address + "/")
	b.Heading("Sign in to wiki?")
	for _, want := range []string{"It asks who you are", "alice@example.com", "Your name", "What it could do", "Nothing."} {
		if !strings.Contains(b.Text(), want) {
			t.Errorf("the page that asks does not say %q:\n%s", want, b.Text())
		}
	}
	b.Accessible("the question who one is")
	b.Click("button", "Sign in")
	b.Heading("Hello alice")
	if !strings.Contains(b.Text(), "You are user:usr_") || !strings.Contains(b.Text(), "at alice@example.com.") {
		t.Errorf("the application says\n%s", b.Text())
	}
	// The second time nobody is asked.
	b.Goto("http://" + address + "/")
	b.Heading("Hello alice")
}
