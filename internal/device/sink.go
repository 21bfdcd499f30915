package device

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"estover.dev"
)

// How long a batch may take.
const usualWrite = 2 * time.Second

// known are the options of each kind, beside those of all.
var known = map[string][]string{
	File:   {"file_path", "path", "mode"},
	Syslog: {"facility", "tag"},
	Socket: {"address", "socket_type", "write_timeout"},
}

var ofAll = []string{"format", "log_raw", "hmac_accessor", "prefix", "elide_list_responses"}

// facilities of syslog, by their numbers (RFC 5424, section 6.2.1).
var facilities = []string{
	"KERN", "USER", "MAIL", "DAEMON", "AUTH", "SYSLOG", "LPR", "NEWS", "UUCP", "CRON", "AUTHPRIV", "FTP", "NTP", "SECURITY", "CONSOLE", "CLOCK",
	"LOCAL0", "LOCAL1", "LOCAL2", "LOCAL3", "LOCAL4", "LOCAL5", "LOCAL6", "LOCAL7",
}

// check says what is wrong with a device.
func (x *Device) check() error {
	options, ok := known[x.Kind]
	switch {
	case !ok:
		return ErrInvalid.With("unknown backend type: %q; there are file, syslog and socket", x.Kind)
	case x.Path == "/" || len(x.Path) > 256 || strings.ContainsAny(x.Path, "*+#\x00"):
		return ErrInvalid.With("%q is no path of an audit device", x.Path)
	case len(x.Description) > maxText:
		return ErrInvalid.With("a description has at most %d bytes", maxText)
	}
	for name, v := range x.Options {
		switch {
		case len(v) > maxText:
			return ErrInvalid.With("an option has at most %d bytes", maxText)
		case !slices.Contains(options, name) && !slices.Contains(ofAll, name):
			return ErrInvalid.With("the option %q is not offered for %s", name, x.Kind)
		case (name == "prefix" || name == "tag") && strings.ContainsFunc(v, unicode.IsControl): // a line is one line
			return ErrInvalid.With("%s has no control characters", name)
		}
	}
	if f := x.Options["format"]; f != "" && f != "json" {
		return ErrInvalid.With("the format is json, not %q", f)
	}
	if raw, err := strconv.ParseBool(cmp.Or(x.Options["log_raw"], "false")); raw || err != nil {
		return ErrInvalid.With("log_raw is not offered: the log does not have what lines would show by it")
	}
	switch x.Kind {
	case File:
		if x.file() == "" {
			return ErrInvalid.With("file_path is required")
		}
		if x.file() == "stdout" || x.file() == "discard" {
			return ErrInvalid.With("file_path is a file, not %q", x.file())
		}
		if _, err := x.mode(); err != nil {
			return err
		}
	case Syslog:
		if x.tenant != estover.DefaultTenant { // others could write there what they like, as whoever they like
			return ErrInvalid.With("syslog is this machine's and not offered to this organisation: use a file or a socket")
		}
		if _, err := x.facility(); err != nil {
			return err
		}
	case Socket:
		if x.Options["address"] == "" {
			return ErrInvalid.With("address is required")
		}
		if t := x.network(); t != "tcp" && t != "udp" && t != "unix" {
			return ErrInvalid.With("socket_type is tcp, udp or unix, not %q", t)
		}
		if _, err := x.timeout(); err != nil {
			return err
		}
	}
	return nil
}

func (x *Device) file() string    { return cmp.Or(x.Options["file_path"], x.Options["path"]) }
func (x *Device) network() string { return cmp.Or(x.Options["socket_type"], "tcp") }

func (x *Device) mode() (fs.FileMode, error) {
	n, err := strconv.ParseUint(cmp.Or(x.Options["mode"], "0600"), 8, 32)
	if err != nil || n > 0o777 {
		return 0, ErrInvalid.With("mode is the permissions of a file in octal, as 0600")
	}
	if n == 0 { // as it is, and 0600 if it is made
		n = 0o600
	}
	return fs.FileMode(n), nil
}

func (x *Device) facility() (int, error) {
	n := slices.Index(facilities, strings.ToUpper(cmp.Or(x.Options["facility"], "AUTH")))
	if n < 0 {
		return 0, ErrInvalid.With("facility is one of %s", strings.Join(facilities, ", "))
	}
	return n, nil
}

func (x *Device) timeout() (time.Duration, error) {
	text := cmp.Or(x.Options["write_timeout"], "2s")
	if n, err := strconv.Atoi(text); err == nil {
		text = strconv.Itoa(n) + "s"
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 || d > time.Minute {
		return 0, ErrInvalid.With("write_timeout is a duration of a minute at most, as 2s")
	}
	return d, nil
}

// write hands lines to a device; without any it only looks whether it could.
func (d *Devices) write(ctx context.Context, x *Device, lines [][]byte) error {
	prefixed := make([][]byte, len(lines))
	for i, l := range lines {
		prefixed[i] = append([]byte(x.Options["prefix"]), l...)
	}
	switch x.Kind {
	case File:
		return d.toFile(x, bytes.Join(prefixed, nil))
	case Syslog:
		return d.toSyslog(ctx, x, prefixed)
	}
	return d.toSocket(ctx, x, prefixed)
}

// inside is the folder in which a device may have files, opened so that no path and
// no link leads out of it, and the path within.
func (d *Devices) inside(x *Device, path string) (*os.Root, string, error) {
	if d.o.Folder == "" {
		return nil, "", ErrInvalid.With("no files are written: start the server with --vault-audit-dir, the folder in which they may be")
	}
	folder := d.o.Folder
	if x.tenant != estover.DefaultTenant {
		folder = filepath.Join(folder, string(x.tenant))
		if err := os.MkdirAll(folder, 0o700); err != nil {
			return nil, "", err
		}
	}
	within := path
	if filepath.IsAbs(path) {
		rel, err := filepath.Rel(folder, filepath.Clean(path))
		if err != nil {
			return nil, "", ErrInvalid.With("%s is not in %s", path, folder)
		}
		within = rel
	}
	if !filepath.IsLocal(within) || within == "." {
		return nil, "", ErrInvalid.With("%s is not in %s, where files of audit devices may be", path, folder)
	}
	root, err := os.OpenRoot(folder)
	return root, within, err
}

// toFile appends to a file. It is opened each time, so that one that was moved away by
// who rotates it, or deleted, is made anew; and without waiting for anybody, as one
// would for the reader of a pipe. What came of a batch before the disk was full is taken
// back; where the last line is torn all the same, by the end of the server, the next one
// begins another.
func (d *Devices) toFile(x *Device, text []byte) (err error) {
	root, path, err := d.inside(x, x.file())
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	mode, err := x.mode()
	if err != nil {
		return err
	}
	if info, err := root.Stat(path); err == nil && !info.Mode().IsRegular() {
		return ErrInvalid.With("%s is no file", x.file())
	}
	f, err := root.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE|syscall.O_NONBLOCK, mode)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		_ = f.Close()
		return ErrInvalid.With("%s is no file", x.file()).Because(err)
	}
	if size := info.Size(); size > 0 && len(text) > 0 {
		last := make([]byte, 1)
		if _, err := f.ReadAt(last, size-1); err == nil && last[0] != '\n' {
			text = append([]byte{'\n'}, text...)
		}
	}
	n, err := f.Write(text)
	switch {
	case err == nil && len(text) > 0:
		err = f.Sync()
	case n > 0: // of a full disk no half of a batch is left
		if now, seen := f.Stat(); seen == nil && now.Size() == info.Size()+int64(n) {
			_ = f.Truncate(info.Size())
		}
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	return err
}

// toSyslog sends lines to this machine's syslog (RFC 3164).
func (d *Devices) toSyslog(ctx context.Context, x *Device, lines [][]byte) error {
	facility, err := x.facility()
	if err != nil {
		return err
	}
	var conn net.Conn
	for _, at := range d.o.Syslogs {
		for _, network := range []string{"unixgram", "unix"} {
			if conn, err = new(net.Dialer).DialContext(ctx, network, at); err == nil {
				break
			}
		}
		if err == nil {
			break
		}
	}
	if conn == nil {
		return ErrInvalid.With("this machine has no syslog at %s", strings.Join(d.o.Syslogs, ", ")).Because(err)
	}
	defer func() { _ = conn.Close() }()
	const notice = 5
	head := fmt.Sprintf("<%d>%s %s[%d]: ", facility<<3|notice, d.guard.DB().Now().Format(time.Stamp), cmp.Or(x.Options["tag"], "vault"), os.Getpid())
	return send(conn, usualWrite, head, lines)
}

func (d *Devices) toSocket(ctx context.Context, x *Device, lines [][]byte) error {
	timeout, err := x.timeout()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var conn net.Conn
	switch network := x.network(); network {
	case "unix":
		root, path, err := d.inside(x, x.Options["address"])
		if err != nil {
			return err
		}
		defer func() { _ = root.Close() }()
		if info, err := root.Lstat(path); err != nil || info.Mode()&fs.ModeSocket == 0 {
			return ErrInvalid.With("%s is no socket", x.Options["address"]).Because(err)
		}
		conn, err = new(net.Dialer).DialContext(ctx, "unix", filepath.Join(root.Name(), path))
		if err != nil {
			return err
		}
	default:
		if conn, err = d.o.Dial(ctx, x.tenant, network, x.Options["address"]); err != nil {
			return err
		}
	}
	defer func() { _ = conn.Close() }()
	return send(conn, timeout, "", lines)
}

// cut is how much there is of a line that is too long for a datagram, in bytes: its
// beginning, which names the event.
const cut = 4 << 10

// send writes each line by itself: to a socket of datagrams each is one. Where one is
// too long for that it is cut, since it would hold up all others for ever.
func send(conn net.Conn, within time.Duration, head string, lines [][]byte) error {
	if err := conn.SetWriteDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	for _, l := range lines {
		text := append([]byte(head), l...)
		_, err := conn.Write(text)
		if errors.Is(err, syscall.EMSGSIZE) && len(text) > cut {
			_, err = conn.Write(text[:cut])
		}
		if err != nil {
			return err
		}
	}
	return nil
}
