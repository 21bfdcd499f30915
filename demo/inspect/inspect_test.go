package inspect_test

import (
	"bytes"
	"encoding/base64"
	"slices"
	"testing"

	"estover.dev/demo/inspect"
)

// TestForms writes a secret into longer texts, which moves its base64.
func TestForms(t *testing.T) {
	secret := []byte("crm_live_4f6c2c1d9e8b47a3")
	for _, before := range []string{"", "a", "ab", "abc", "Bearer "} {
		for _, after := range []string{"", "x", "\r\n"} {
			coded := []byte(base64.StdEncoding.EncodeToString([]byte(before + string(secret) + after)))
			if !slices.ContainsFunc(inspect.Forms(secret), func(f []byte) bool { return bytes.Contains(coded, f) }) {
				t.Errorf("the secret is not seen in %s, the base64 of %q", coded, before+string(secret)+after)
			}
		}
	}
}
