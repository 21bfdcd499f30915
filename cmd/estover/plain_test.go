package main

import (
	"strings"
	"testing"
)

// A token goes over no network in the clear: plain HTTP is for the same machine.
func TestPlainHTTPOnlyOnLoopback(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	t.Setenv("HOME", t.TempDir())
	for addr, ok := range map[string]bool{
		"http://localhost:8080":           true,
		"http://127.0.0.1:8080":           true,
		"http://[::1]:8080":               true,
		"https://estover.example":         true,
		"http://estover.example":          false,
		"http://10.0.0.1:8080":            false,
		"http://localhost@estover.org":    false,
		"http://localhost.estover.org":    false,
		"http://127.0.0.1.estover.org:80": false,
	} {
		s := settings{addr: addr, output: "json", token: "est_at_x"}
		_, err := s.client()
		if ok != (err == nil) {
			t.Errorf("%s: %v", addr, err)
		}
		if err != nil && !strings.Contains(err.Error(), "plain HTTP") {
			t.Errorf("%s: %v", addr, err)
		}
	}
}
