package main

import (
	"io"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// fromFiles is how much of this process lies in memory as it is in files, in KiB.
func fromFiles(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "RssFile:")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// What ran once is not kept in the process, also of one that hides: most of the
// program's pages go, and what is needed again comes back.
func TestLeaveCode(t *testing.T) {
	t.Cleanup(func() { _ = unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0) })
	hide()
	words := describeAll()
	before := fromFiles(t)
	leaveCode()
	after := fromFiles(t)
	if after > before/2 {
		t.Errorf("%d KiB of files are left of %d, want at most half", after, before)
	}
	if again := describeAll(); again != words {
		t.Errorf("the commands of the program read otherwise when its pages have come back:\n%s\nwant\n%s", again, words)
	}
}

// describeAll runs through much of the program: every command with its help.
func describeAll() string {
	var b strings.Builder
	for _, c := range command(io.Discard).Commands() {
		b.WriteString(c.UsageString())
	}
	return b.String()
}
