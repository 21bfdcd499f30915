package oauth

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"estover.dev"
)

// A client that is to ask again is told when.
func TestAgain(t *testing.T) {
	d := &Door{Config: Config{Logger: slog.New(slog.DiscardHandler)}}
	for kind, status := range map[estover.Kind]int{estover.TooMuch: http.StatusTooManyRequests, estover.Unavailable: http.StatusServiceUnavailable} {
		w := httptest.NewRecorder()
		d.fail(w, httptest.NewRequest(http.MethodPost, "/oauth/token", nil), (&estover.Error{Kind: kind, Code: "busy", Detail: "Wait."}).In(90*time.Second))
		if w.Code != status || w.Header().Get("Retry-After") != "90" {
			t.Errorf("%d, again after %q seconds; want %d and 90", w.Code, w.Header().Get("Retry-After"), status)
		}
	}
}
