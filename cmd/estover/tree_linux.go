package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"estover.dev/internal/session"
)

// A tree is the program and all that it starts. Orphans of it become children
// of this process, so that the tree stays whole.
type tree struct {
	cmd   *exec.Cmd
	apart int // a child of ours that is no part of it
	group int // the program's process group, if it is not ours
	bound session.Bound
}

func newTree(cmd *exec.Cmd, apart int, bound session.Bound) (*tree, error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("taking charge of the program's children: %w", err)
	}
	// The program dies with us, even if we are killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if !terminal() {
		cmd.SysProcAttr.Setpgid = true
	}
	return &tree{cmd: cmd, apart: apart, bound: bound}, nil
}

// terminal reports whether the program shares a terminal with us, and with it
// the process group that the terminal sends its signals to.
func terminal() bool {
	_, err := unix.IoctlGetTermios(int(os.Stdin.Fd()), unix.TCGETS)
	return err == nil
}

func (t *tree) started() {
	if t.cmd.SysProcAttr.Setpgid {
		t.group = t.cmd.Process.Pid
	}
}

// members are the processes of the tree.
func (t *tree) members() []int { return descendants(os.Getpid(), t.apart) }

// signal passes a signal on to the whole tree.
func (t *tree) signal(sig syscall.Signal) {
	for _, pid := range t.members() {
		_ = syscall.Kill(pid, sig)
	}
}

// kill ends what is left of the tree. What a dying process has started in the
// meantime is found in the next round.
func (t *tree) kill() {
	for range 100 {
		left := t.members()
		if len(left) == 0 {
			return
		}
		for _, pid := range left {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		for _, pid := range left {
			// The program itself is reaped by exec; orphans of it are ours.
			if pid != t.cmd.Process.Pid {
				_, _ = syscall.Wait4(pid, nil, syscall.WNOHANG, nil)
			}
		}
	}
}

// descendants are the processes below one, except for one of them and what is
// below it, read from /proc.
func descendants(of, except int) []int {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil
	}
	children := map[int][]int{}
	for _, file := range stats {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended in the meantime
		}
		// pid (name) state ppid …; the name may hold anything, so look for
		// its last parenthesis.
		text := string(b)
		end := strings.LastIndexByte(text, ')')
		fields := strings.Fields(text[end+1:])
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		ppid, err := strconv.Atoi(fields[1])
		if err == nil && fields[0] != "Z" && pid != except {
			children[ppid] = append(children[ppid], pid)
		}
	}
	var all []int
	for queue := children[of]; len(queue) > 0; queue = queue[1:] {
		all = append(all, queue[0])
		queue = append(queue, children[queue[0]]...)
	}
	return all
}

// binding is to what a session can be bound on this machine, and why that is not
// the program's processes: it is tried with a connection of our own.
func binding() (session.Bound, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return session.ByNothing, err
	}
	defer l.Close()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return session.ByNothing, err
	}
	defer conn.Close()
	inode, uid := socket(conn.LocalAddr().(*net.TCPAddr).Port, l.Addr().(*net.TCPAddr).Port)
	switch {
	case inode == "" || uid != strconv.Itoa(os.Getuid()):
		return session.ByNothing, errors.New("the system does not tell whose a connection is (/proc/net/tcp)")
	case !holds([]int{os.Getpid()}, "socket:["+inode+"]"):
		return session.ByUser, errors.New("the system does not tell which process a connection belongs to (/proc/PID/fd)")
	case !slices.Contains(descendants(os.Getppid(), 0), os.Getpid()):
		return session.ByUser, errors.New("the system does not tell which process has started which (/proc/PID/stat)")
	}
	return session.ByProcess, nil
}

// owns reports whether the socket at the other end of a connection to our
// loopback address belongs to a process of the tree, or to our user where no more
// can be told. The kernel's tables change while they are read, so what is not
// found at once is looked for again.
func (t *tree) owns(conn net.Conn) bool {
	if t.bound == session.ByNothing {
		return true
	}
	theirs, ok1 := conn.RemoteAddr().(*net.TCPAddr)
	ours, ok2 := conn.LocalAddr().(*net.TCPAddr)
	if !ok1 || !ok2 {
		return false
	}
	for deadline := time.Now().Add(ownerTime); ; time.Sleep(5 * time.Millisecond) {
		inode, uid := socket(theirs.Port, ours.Port)
		switch {
		case inode == "" || inode == "0":
		case t.bound == session.ByUser && uid == strconv.Itoa(os.Getuid()), t.bound == session.ByProcess && holds(t.members(), "socket:["+inode+"]"):
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

// ownerTime bounds the search for the owner of a connection.
const ownerTime = 2 * time.Second

// holds reports whether one of the processes has this file open.
func holds(pids []int, file string) bool {
	for _, pid := range pids {
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		fds, err := os.ReadDir(dir)
		if err != nil {
			continue // it has ended in the meantime
		}
		for _, fd := range fds {
			if link, err := os.Readlink(filepath.Join(dir, fd.Name())); err == nil && link == file {
				return true
			}
		}
	}
	return false
}

// socket finds the socket on 127.0.0.1 with these ports, its own and that of its
// peer, and gives its inode and its user. Its own port is not enough: sockets with
// different peers may share it, also those of different processes.
func socket(own, peer int) (inode, uid string) {
	pair := func(loopback string) [2]string {
		return [2]string{fmt.Sprintf("%s:%04X", loopback, own), fmt.Sprintf("%s:%04X", loopback, peer)}
	}
	plain, mapped := pair("0100007F"), pair("0000000000000000FFFF00000100007F")
	for _, file := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		f, err := os.Open(file)
		if err != nil {
			continue
		}
		defer f.Close()
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			fields := strings.Fields(lines.Text())
			if len(fields) > 9 && ([2]string(fields[1:3]) == plain || [2]string(fields[1:3]) == mapped) {
				return fields[9], fields[7]
			}
		}
	}
	return "", ""
}
