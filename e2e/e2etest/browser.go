package e2etest

import (
	"bufio"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A Browser is Chromium, as a person has it but for its windows, with an
// authenticator that looks who uses it.
type Browser struct {
	t   testing.TB
	in  io.Writer
	out *bufio.Reader
	end func() error // kills it
}

// Browser starts a browser that trusts the certificates of the server and of
// others. It ends with the test.
func (s *Server) Browser(t testing.TB, others ...*Server) *Browser {
	t.Helper()
	// It draws its pages, but no tabs and menus, which take it longer than the pages.
	chromium, err := exec.LookPath("chromium-headless-shell")
	if err != nil {
		t.Fatalf("%v\nDebian: apt-get install chromium", err)
	}
	driver, err := filepath.Abs("../tools/browser/driver.mjs")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(driver), "node_modules")); err != nil {
		t.Fatalf("%v\nscripts/install installs it", err)
	}
	var keys []string
	for _, one := range append(others, s) {
		conn, err := tls.Dial("tcp", strings.TrimPrefix(one.URL, "https://"), &tls.Config{RootCAs: one.Roots(t), MinVersion: tls.VersionTLS12})
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(conn.ConnectionState().PeerCertificates[0].RawSubjectPublicKeyInfo)
		keys = append(keys, base64.StdEncoding.EncodeToString(sum[:]))
		_ = conn.Close()
	}
	c := exec.Command("node", driver, chromium, strings.Join(keys, ","))
	home := t.TempDir()
	c.Env = environment("HOME="+home, "XDG_CONFIG_HOME="+home, "XDG_CACHE_HOME="+home)
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	c.Stderr = os.Stderr
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		defer time.AfterFunc(10*time.Second, func() { _ = c.Process.Kill() }).Stop()
		_ = in.Close()
		_ = c.Wait()
	})
	b := &Browser{t, in, bufio.NewReader(out), c.Process.Kill}
	b.do(map[string]string{"do": "authenticator"}, nil)
	return b
}

func (b *Browser) do(command map[string]string, into any) {
	b.t.Helper()
	text, err := json.Marshal(command)
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := b.in.Write(append(text, '\n')); err != nil {
		b.t.Fatal(err)
	}
	limit := time.AfterFunc(patience, func() { _ = b.end() })
	line, err := b.out.ReadBytes('\n')
	limit.Stop()
	if err != nil {
		b.t.Fatalf("the browser does not answer %s: %v", text, err)
	}
	var answer struct {
		OK    json.RawMessage
		Error string
	}
	if err := json.Unmarshal(line, &answer); err != nil {
		b.t.Fatalf("%v in %s", err, line)
	}
	if answer.Error != "" {
		b.t.Fatalf("%s: %s", text, answer.Error)
	}
	if into != nil {
		if err := json.Unmarshal(answer.OK, into); err != nil {
			b.t.Fatalf("%v in %s", err, line)
		}
	}
}

func (b *Browser) ask(command map[string]string) (s string) {
	b.t.Helper()
	b.do(command, &s)
	return s
}

func (b *Browser) list(command string) (l []string) {
	b.t.Helper()
	b.do(map[string]string{"do": command}, &l)
	return l
}

// Goto looks at a page.
func (b *Browser) Goto(url string) {
	b.t.Helper()
	b.do(map[string]string{"do": "goto", "url": url}, nil)
}

// Fill fills in the field with this label.
func (b *Browser) Fill(label, value string) {
	b.t.Helper()
	b.do(map[string]string{"do": "fill", "label": label, "value": value}, nil)
}

// Click presses what has this role and name.
func (b *Browser) Click(role, name string) {
	b.t.Helper()
	b.do(map[string]string{"do": "click", "role": role, "name": name}, nil)
}

// Key presses a key.
func (b *Browser) Key(name string) {
	b.t.Helper()
	b.do(map[string]string{"do": "key", "value": name}, nil)
}

// Heading waits for the page with this heading.
func (b *Browser) Heading(name string) {
	b.t.Helper()
	b.do(map[string]string{"do": "heading", "name": name}, nil)
}

// Wait waits until the browser is at a URL that begins like this.
func (b *Browser) Wait(url string) {
	b.t.Helper()
	b.do(map[string]string{"do": "wait", "url": url}, nil)
}

// Value is what stands in the field with this label.
func (b *Browser) Value(label string) string {
	b.t.Helper()
	return b.ask(map[string]string{"do": "value", "label": label})
}

// Text is what the page says.
func (b *Browser) Text() string { b.t.Helper(); return b.ask(map[string]string{"do": "text"}) }

// URL is where the browser is.
func (b *Browser) URL() string { b.t.Helper(); return b.ask(map[string]string{"do": "url"}) }

// Cookies are what the browser holds: name, secure, httpOnly, sameSite, path.
func (b *Browser) Cookies() []string { b.t.Helper(); return b.list("cookies") }

// Forget has the browser forget its cookies. Passkeys stay.
func (b *Browser) Forget() { b.t.Helper(); b.do(map[string]string{"do": "clear"}, nil) }

// Phone makes the page as narrow as on a phone.
func (b *Browser) Phone() { b.t.Helper(); b.do(map[string]string{"do": "phone"}, nil) }

// Screenshot keeps a picture of the page, for whoever writes a test.
func (b *Browser) Screenshot(file string) {
	b.t.Helper()
	b.do(map[string]string{"do": "screenshot", "value": file}, nil)
}

// Accessible checks the page against the rules of WCAG 2.2, level AA, and its
// contrast in the dark too.
func (b *Browser) Accessible(what string) {
	b.t.Helper()
	for scheme, rule := range map[string]string{"light": "", "dark": "color-contrast"} {
		b.do(map[string]string{"do": "scheme", "value": scheme}, nil)
		var violations []string
		b.do(map[string]string{"do": "accessibility", "rule": rule}, &violations)
		for _, v := range violations {
			b.t.Errorf("%s, %s: %s", what, scheme, v)
		}
	}
}

// Complaints are what the browser has to say of the pages: scripts that fail,
// what the policy of a page forbids.
func (b *Browser) Complaints() []string { b.t.Helper(); return b.list("complaints") }
