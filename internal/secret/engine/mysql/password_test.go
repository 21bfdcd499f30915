package mysql

import (
	"testing"

	"estover.dev"
)

// TestPassword compares what we compute with what the server's PASSWORD('secret')
// gives.
func TestPassword(t *testing.T) {
	for auth, want := range map[string]string{
		"":        "identified via mysql_native_password using '*14E65567ABDB5135D0CFD9A70B3032C179A49EE7'",
		"native":  "identified via mysql_native_password using '*14E65567ABDB5135D0CFD9A70B3032C179A49EE7'",
		"ed25519": "identified via ed25519 using 'ZIgUREUg5PVgQ6LskhXmO+eZLS0nC8be6HPjYWR4YJY'",
	} {
		if got, err := (&target{auth: auth}).identified(estover.NewSecret([]byte("secret"))); err != nil || got != want {
			t.Errorf("%q: %s, %v, want %s", auth, got, err, want)
		}
	}
}
