// Package inspect looks for a secret in a running process, from outside: in
// its environment, its command line and all of its memory. It needs Linux and
// the right to trace the process, which a parent has over its children.
package inspect

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"slices"
	"strings"
)

// A Report says where a secret was found.
type Report struct {
	Environment, Arguments, Memory bool

	// Scanned is the number of bytes of memory that were read.
	Scanned int64
}

// Clean reports whether the secret was nowhere.
func (r Report) Clean() bool { return !r.Environment && !r.Arguments && !r.Memory }

// Process looks for the secret in the process, as it is and in hex and base64.
func Process(pid int, secret []byte) (Report, error) {
	needles := Forms(secret)
	var r Report
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return r, err
	}
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return r, err
	}
	r.Environment, r.Arguments = holds(env, needles), holds(args, needles)
	return r, memory(pid, needles, &r)
}

// Forms are the ways in which a secret is usually written: as it is, in hex,
// and in base64 at each of the three places that it can have in a longer text.
func Forms(secret []byte) [][]byte {
	forms := [][]byte{secret, []byte(hex.EncodeToString(secret))}
	for shift := range 3 {
		// The characters that also depend on the neighbours are left out.
		coded := base64.RawStdEncoding.EncodeToString(append(make([]byte, shift), secret...))
		first := (shift*8 + 5) / 6
		last := (shift + len(secret)) * 8 / 6
		forms = append(forms, []byte(coded[first:last]))
	}
	return forms
}

func holds(b []byte, needles [][]byte) bool {
	return slices.ContainsFunc(needles, func(n []byte) bool { return bytes.Contains(b, n) })
}

// memory reads every readable mapping, a piece at a time. The pieces overlap
// by the longest needle, so that none is missed at an edge.
func memory(pid int, needles [][]byte, r *Report) error {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return err
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return err
	}
	defer mem.Close()
	overlap := 0
	for _, n := range needles {
		overlap = max(overlap, len(n))
	}
	buf := make([]byte, 1<<20)
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		var rights string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &rights); err != nil || rights[0] != 'r' {
			continue // the kernel's own page lies above what an int64 holds
		}
		kept := 0
		for at := from; at < to; {
			n, err := mem.ReadAt(buf[kept:kept+int(min(to-at, int64(len(buf)-kept)))], at)
			if n == 0 && err != nil {
				break // a mapping that cannot be read, such as a device's
			}
			at += int64(n)
			r.Scanned += int64(n)
			have := buf[:kept+n]
			r.Memory = r.Memory || holds(have, needles)
			kept = copy(buf, have[max(0, len(have)-overlap):])
		}
	}
	return nil
}
