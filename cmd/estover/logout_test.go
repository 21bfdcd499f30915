package main

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

// A log-out tells the server that the login came from, wherever else commands
// are sent to.
func TestLogoutStaysAtHome(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	t.Setenv("HOME", t.TempDir())
	told := map[string]string{}
	server := func(name string) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			told[name] = r.URL.Path + " " + r.Header.Get("Authorization")
			w.WriteHeader(http.StatusNoContent)
		}))
		t.Cleanup(s.Close)
		return s.URL
	}
	if err := writeLogin(login{Addr: server("home"), Token: "est_pt_x"}); err != nil {
		t.Fatal(err)
	}
	t.Setenv("ESTOVER_ADDR", server("elsewhere"))
	c := command(t.Output())
	c.SetArgs([]string{"logout"})
	if err := c.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if told["home"] != "/v1/logout Bearer est_pt_x" || told["elsewhere"] != "" {
		t.Errorf("the servers were told %q", told)
	}
}
