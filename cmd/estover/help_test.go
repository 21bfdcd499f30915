package main

import (
	"bytes"
	"regexp"
	"strings"
	"testing"
)

// Every command explains itself, says what its flags are for, and refuses what
// it does not know with the exit code of a mistake in the command line.
func TestHelp(t *testing.T) {
	said := func(args ...string) (code int, out, errs string) {
		var o, e bytes.Buffer
		code = perform(t.Context(), args, &o, &e)
		return code, o.String(), e.String()
	}
	listed := regexp.MustCompile(`(?m)^  ([a-z-]+)  +(\S.*)$`)
	seen := 0
	var walk func(path []string)
	walk = func(path []string) {
		seen++
		name := "estover " + strings.Join(path, " ")
		code, help, errs := said(append(path, "--help")...)
		if code != 0 || !strings.Contains(help, "Usage:") || errs != "" {
			t.Errorf("%s --help: exit code %d\n%s%s", name, code, help, errs)
			return
		}
		if code, _, errs := said(append(path, "--no-such-flag")...); code != 2 || !strings.Contains(errs, "Try --help") {
			t.Errorf("%s --no-such-flag: exit code %d, want 2\n%s", name, code, errs)
		}
		_, commands, _ := strings.Cut(help, "Usage:")
		for _, m := range listed.FindAllStringSubmatch(commands, -1) {
			if m[1] != "help" && m[1] != "completion" && m[1] != "estover" {
				walk(append(path[:len(path):len(path)], m[1]))
			}
		}
	}
	walk(nil)
	if seen < 100 {
		t.Errorf("%d commands were found", seen)
	}
	t.Logf("%d commands", seen)
}
