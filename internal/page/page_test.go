package page_test

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/page"
)

// A browser that is to ask again is told when, as every other client is.
func TestAgain(t *testing.T) {
	pages := open(t)
	for kind, status := range map[estover.Kind]int{estover.TooMuch: http.StatusTooManyRequests, estover.Unavailable: http.StatusServiceUnavailable} {
		mux := http.NewServeMux()
		pages.Handle(mux, "/login", func(*page.Request) error {
			return (&estover.Error{Kind: kind, Code: "busy", Detail: "Wait."}).In(90 * time.Second)
		}, http.MethodGet)
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "https://estover.example/login", nil))
		if w.Code != status || w.Header().Get("Retry-After") != "90" {
			t.Errorf("%d, again after %q seconds; want %d and 90", w.Code, w.Header().Get("Retry-After"), status)
		}
	}
}
