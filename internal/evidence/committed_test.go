package evidence_test

import (
	"bytes"
	"crypto/fips140"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"strings"
	"testing"

	"estover.dev/attest"
	"estover.dev/internal/evidence"
)

// Salts are on record by their seed alone: whoever derives them, however long the seed
// and the name are, gets the HMAC.
func TestSaltsAreHMACs(t *testing.T) {
	names := []string{"", attest.Request, attest.Response, attest.Delivered, attest.PrincipalName, attest.GrantDocument, attest.ApprovalRecord, strings.Repeat("step", 15), strings.Repeat("step", 16), strings.Repeat("step", 100)}
	for _, size := range []int{0, 1, 10, 32, 63, 64, 65, 200} {
		if fips140.Enabled() && size < 14 { // a key that FIPS 140 takes for too short
			continue
		}
		seed := bytes.Repeat([]byte{byte(size), 0xa5, 0}, 70)[:size]
		for _, name := range names {
			m := hmac.New(sha256.New, seed)
			m.Write([]byte(name))
			if got := (evidence.Committed{Seed: seed}).Salt(name); !bytes.Equal(got[:], m.Sum(nil)) {
				t.Errorf("the salt of %.20q (%d bytes) under a seed of %d bytes is %x, want %x", name, len(name), size, got, m.Sum(nil))
			}
		}
	}
}

func TestCommittedIsWrittenAsJSON(t *testing.T) {
	for _, c := range []evidence.Committed{
		{Seed: []byte("0123456789")},
		{Seed: []byte{0xff, 0}, Principal: "user:usr_<alice>", Grant: `{"id":"grt_1"}`, Approval: "apr_1", Recording: "rec_1", Stream: 1 << 60, Cut: true},
	} {
		want, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.AppendJSON(nil); string(got) != string(want) {
			t.Errorf("written as %s, want %s", got, want)
		}
	}
}
