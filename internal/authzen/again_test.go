package authzen

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"estover.dev"
)

// A PEP that is to ask again is told when, whatever it asked.
func TestAgain(t *testing.T) {
	d := &Door{Config: Config{Logger: slog.New(slog.DiscardHandler)}}
	for kind, status := range map[estover.Kind]int{estover.TooMuch: http.StatusTooManyRequests, estover.Unavailable: http.StatusServiceUnavailable} {
		err := (&estover.Error{Kind: kind, Code: "busy", Detail: "Wait."}).In(90 * time.Second)
		a := &asking{Request: httptest.NewRequest(http.MethodPost, "/access/v1/evaluation", nil)}
		for what, fail := range map[string]func(http.ResponseWriter, *asking, error){"a question": d.fail, "a request": d.problem} {
			w := httptest.NewRecorder()
			if fail(w, a, err); w.Code != status || w.Header().Get("Retry-After") != "90" {
				t.Errorf("%s: %d, again after %q seconds; want %d and 90", what, w.Code, w.Header().Get("Retry-After"), status)
			}
		}
	}
}
