package server

import "testing"

// Profiles are for this machine alone.
func TestProfilerIsLoopback(t *testing.T) {
	for _, addr := range []string{":6060", "0.0.0.0:6060", "192.0.2.1:6060", "example.com:6060", "6060"} {
		if _, _, err := profiler(addr); err == nil {
			t.Errorf("profiles on %s: no error", addr)
		}
	}
	_, l, err := profiler("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
}
