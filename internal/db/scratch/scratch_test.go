package scratch

import (
	"os"
	"os/exec"
	"strconv"
	"testing"
)

// A port that one process has had is not given to another, though nobody listens on
// it yet: packages are tested side by side.
func TestPortIsOfOneProcess(t *testing.T) {
	const other = "ESTOVER_TEST_PORT"
	if at, is := os.LookupEnv(other); is {
		port, err := strconv.Atoi(at)
		if err != nil {
			t.Fatal(err)
		}
		if take(port) {
			t.Errorf("another process has had the port %d as well", port)
		}
		return
	}
	port, err := Port()
	if err != nil {
		t.Fatal(err)
	}
	if take(port) {
		t.Errorf("the port %d was given twice", port)
	}
	again := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$")
	again.Env = append(os.Environ(), other+"="+strconv.Itoa(port))
	if out, err := again.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
