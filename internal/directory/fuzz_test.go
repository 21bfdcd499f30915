package directory_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/crypto/ssh"

	"estover.dev/internal/directory"
)

// The line of a .pub file that a person registers. One that is taken is one key,
// and what it is told by can be shown.
func FuzzSSHKey(f *testing.F) {
	f.Add("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl alice@laptop")
	f.Add("no-pty ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl")
	f.Add("sk-ssh-ed25519@openssh.com AAAA x\nssh-ed25519 AAAA y")
	f.Fuzz(func(t *testing.T, line string) {
		k, err := directory.ParseSSHKey(line)
		if err != nil {
			return
		}
		public, err := ssh.ParsePublicKey(k.Public)
		if err != nil || k.Type != public.Type() || k.Fingerprint != ssh.FingerprintSHA256(public) {
			t.Errorf("%q is kept as %+v, %v", line, k, err)
		}
		if k.Label == "" || !utf8.ValidString(k.Label) || strings.ContainsAny(k.Label, "\x00\n\r\x1b") {
			t.Errorf("%q is told by %q", line, k.Label)
		}
	})
}
