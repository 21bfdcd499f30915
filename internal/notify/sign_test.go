package notify

import (
	"net/http"
	"testing"
	"time"

	"estover.dev"
)

// The signature is that of the example that the libraries for Standard Webhooks
// are tested with.
func TestSignatureOfStandardWebhooks(t *testing.T) {
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://example.com", nil)
	if err != nil {
		t.Fatal(err)
	}
	key := estover.NewSecret([]byte("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"))
	if err := sign(r, "msg_p5jXN8AQM9LWM0D4loKWxJek", time.Unix(1614265330, 0), []byte(`{"test": 2432232314}`), key); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek", "webhook-timestamp": "1614265330",
		"webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
	} {
		if got := r.Header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	for _, bad := range []string{"", "whsec_", "whsec_c2hvcnQ=", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_nonsense!"} {
		if err := sign(r, "msg_1", time.Unix(0, 0), nil, estover.NewSecret([]byte(bad))); err == nil {
			t.Errorf("the key %q signs", bad)
		}
	}
}
