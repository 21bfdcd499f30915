package evidence_test

import (
	"encoding/json"
	"testing"

	"estover.dev/internal/evidence"
)

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
