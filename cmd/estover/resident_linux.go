package main

import (
	"bufio"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// leaveCode takes the pages of the program's own file out of the process. A
// start runs through most of the code once, and by far the most of what a server
// at rest holds in memory would be that: what it needs again comes back by
// itself, from the kernel's copy of the file, sixteen pages at a time. It is a
// matter of a millisecond.
//
// Only mappings that nobody can have written to are given back, since a page that
// is no longer as it is in the file would be lost.
func leaveCode() {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	var at, end uint64
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		line := lines.Text()
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		if !strings.HasSuffix(fields[0], ":") { // the head of a mapping: from-to rights offset device inode path
			at, end = 0, 0
			from, to, _ := strings.Cut(fields[0], "-")
			if len(fields) > 5 && strings.HasSuffix(line, " "+program) && (fields[1] == "r-xp" || fields[1] == "r--p") {
				at, _ = strconv.ParseUint(from, 16, 64)
				end, _ = strconv.ParseUint(to, 16, 64)
			}
			continue
		}
		if fields[0] == "Anonymous:" && len(fields) > 1 && fields[1] == "0" && at < end {
			// It is advice: where the kernel does not take it, the pages stay.
			_, _, _ = syscall.Syscall(syscall.SYS_MADVISE, uintptr(at), uintptr(end-at), syscall.MADV_DONTNEED)
		}
	}
}
