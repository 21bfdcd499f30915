package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"estover.dev/e2e/e2etest"
	"estover.dev/internal/approval/document"
)

// colleague is somebody with a command line of their own.
func colleague(t *testing.T, d *desk, name, role string) *e2etest.CLI {
	t.Helper()
	d.admin.Must(t, "person", "create", name, "--role", role)
	var invitation struct{ Token string }
	d.admin.JSON(t, &invitation, "person", "invite", name)
	file := filepath.Join(t.TempDir(), "invitation")
	must(t, os.WriteFile(file, []byte(invitation.Token), 0o600))
	c := d.CLI(t)
	c.Must(t, "login", "--token-file", file)
	return c
}

// TestApproveInABrowser is a person who decides with a real browser, and a passkey
// in it: she looks, signs the bytes that she sees, approves less than was asked on
// a phone, and says no.
func TestApproveInABrowser(t *testing.T) {
	t.Parallel()
	srv := e2etest.Start(t)
	d := newDesk(t, srv)
	sue := colleague(t, d, "sue", "operator")
	ask := func(args ...string) (id string) {
		t.Helper()
		var r struct{ ID, State string }
		sue.JSON(t, &r, append([]string{"access", "request", "--agent", "bot", "--resource", "crm"}, args...)...)
		if r.State != "pending" {
			t.Fatalf("the request is %s", r.State)
		}
		return r.ID
	}
	state := func(id string) string {
		t.Helper()
		var r struct{ State string }
		d.admin.JSON(t, &r, "access", "show", id)
		return r.State
	}
	deletion := ask("--purpose", "support", "--action", "customer.delete", "--parameter", "id=cus_1002", "--for", "30m", "--reason", "Asked to be erased", "--context", "ticket=INC-7")

	d.admin.Must(t, "person", "create", "alice", "--role", "approver")
	var invitation struct{ Link string }
	d.admin.JSON(t, &invitation, "person", "invite", "alice")
	b := srv.Browser(t)
	b.Goto(invitation.Link)
	b.Click("button", "Go on")
	b.Heading("Welcome, alice")
	b.Click("button", "Make a passkey")
	b.Heading("Keep these recovery codes")
	b.Click("link", "I have kept them")
	b.Heading("How you sign in")
	b.Click("button", "Sign out")
	b.Heading("Sign in")

	// The link leads through the sign-in to the request, and decides nothing.
	link := srv.URL + "/approve/" + deletion
	b.Goto(link)
	b.Heading("Sign in")
	b.Key("Enter")
	b.Heading("bot asks for more")
	b.Accessible("a request that wants a signature")
	words := document.Fingerprint([]byte(d.admin.Must(t, "access", "document", deletion)))
	for range 2 {
		b.Goto(link)
		b.Heading("bot asks for more")
		for _, want := range []string{"sue", "admin", "Asked to be erased", "INC-7", "customer.delete", "cus_1002", "30 minutes", "2 approvals, signed", words} {
			if !strings.Contains(b.Text(), want) {
				t.Errorf("the page does not say %q:\n%s", want, b.Text())
			}
		}
	}
	if s := state(deletion); s != "pending" {
		t.Fatalf("after looking at it the request is %s", s)
	}
	// The passkey signs; the other signature comes from ssh-keygen.
	b.Click("button", "Sign with a passkey, and approve")
	e2etest.Eventually(t, "alice has signed", func() bool { return strings.Contains(b.Text(), "approved by alice") })
	if !strings.Contains(b.Text(), "it waits for others") {
		t.Errorf("after she has signed alice sees\n%s", b.Text())
	}
	if s := state(deletion); s != "pending" {
		t.Fatalf("after one of two signatures the request is %s", s)
	}
	key := filepath.Join(t.TempDir(), "key")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v\n%s", err, out)
	}
	quinn := colleague(t, d, "quinn", "approver") // the administrator is the sponsor, and does not count
	quinn.Must(t, "person", "key", "add", key+".pub")
	quinn.Must(t, "access", "approve", deletion, "--ssh-key", key)
	b.Goto(link)
	b.Heading("bot asks for more")
	if text := b.Text(); !strings.Contains(text, "This request is approved") || strings.Contains(text, "Sign with a passkey") {
		t.Errorf("after both have signed alice sees\n%s", text)
	}
	if out := d.admin.Must(t, "run", "-q", "--agent", "bot", "--purpose", "support", "--", "curl", "-sS", "-X", "DELETE", "-o", "/dev/null", "-w", "%{http_code}", d.site.URL+"/v1/customers/cus_1002"); !strings.HasPrefix(out, "20") {
		t.Errorf("the call that was approved: %s", out)
	}

	// On a phone, without a signature, less than was asked.
	letter := ask("--purpose", "marketing", "--action", "customer.read,customer.list", "--for", "2h", "--reason", "The spring letter")
	b.Phone()
	b.Goto(srv.URL + "/approve")
	b.Heading("Waiting for you")
	b.Accessible("the list of what waits, on a phone")
	b.Click("link", "bot")
	b.Heading("bot asks for more")
	b.Goto(srv.URL + "/approve/" + letter + "?for=900")
	b.Heading("bot asks for more")
	b.Accessible("choosing less, on a phone")
	b.Click("checkbox", "customer.list on crm")
	b.Click("button", "Show the narrower document")
	e2etest.Eventually(t, "the narrower document is shown", func() bool { return strings.Contains(b.Text(), "This is less than what was asked for") })
	if text := b.Text(); !strings.Contains(text, "seconds: 900") || strings.Contains(text, "action: customer.list") {
		t.Errorf("the narrower document is\n%s", text)
	}
	b.Fill("A note, if you like", "One at a time is enough")
	b.Click("button", "Approve this much")
	e2etest.Eventually(t, "the letter is approved", func() bool { return strings.Contains(b.Text(), "This request is approved") })
	if out := d.admin.Must(t, "access", "show", letter); !strings.Contains(out, "crm: customer.read (confidential)") || !strings.Contains(out, "15m0s") {
		t.Errorf("what was approved is\n%s", out)
	}

	no := ask("--purpose", "marketing", "--action", "note.add", "--for", "5m", "--reason", "A note on everybody")
	b.Goto(srv.URL + "/approve/" + no)
	b.Heading("bot asks for more")
	if !strings.Contains(b.Text(), "2 approved") {
		t.Errorf("the page does not say what was approved lately:\n%s", b.Text())
	}
	b.Fill("Why not", "Not on everybody")
	b.Click("button", "Deny")
	e2etest.Eventually(t, "the note is denied", func() bool { return strings.Contains(b.Text(), "This request is denied") })
	b.Accessible("a request that was denied")
	for _, c := range b.Complaints() {
		t.Errorf("the browser complains: %s", c)
	}
	if log := srv.Log(); strings.Contains(log, "level=ERROR") {
		t.Errorf("the server has logged errors:\n%s", log)
	}
}
