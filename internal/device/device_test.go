package device_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/db/scratch"
	"estover.dev/internal/device"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/seal"
)

var (
	ann = estover.Caller{Tenant: "default", Subject: estover.User("usr_ann"), Roles: []estover.Role{estover.Admin}, Request: "req_1"}
	eve = estover.Caller{Tenant: "evil", Subject: estover.User("usr_eve"), Roles: []estover.Role{estover.Admin}}
)

// A house is devices that are written to.
type house struct {
	*device.Devices
	t      *testing.T
	guard  *guard.Guard
	folder string
	syslog string
	erased atomic.Bool  // the organisation "evil"
	asked  atomic.Int64 // how often it was asked for since
}

func build(t *testing.T, d *db.DB) *house {
	t.Helper()
	s, err := seal.Open(t.Context(), d, seal.File{Path: filepath.Join(t.TempDir(), "root.key")})
	if err != nil {
		t.Fatal(err)
	}
	for _, tenant := range []estover.TenantID{"default", "evil"} {
		if err := s.Prepare(t.Context(), tenant); err != nil {
			t.Fatal(err)
		}
	}
	h := &house{t: t, guard: guardtest.New(t, d, guardtest.AllowAll), folder: t.TempDir(), syslog: filepath.Join(t.TempDir(), "log")}
	h.Devices = device.New(h.guard, device.Options{
		Sealer: s, Folder: h.folder, Syslogs: []string{h.syslog},
		Dial: func(ctx context.Context, _ estover.TenantID, network, address string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, address)
		},
		Tenants: func(context.Context) ([]estover.TenantID, error) {
			if h.erased.Load() {
				h.asked.Add(1)
				return []estover.TenantID{"default"}, nil
			}
			return []estover.TenantID{"default", "evil"}, nil
		},
		Mount: func(_ context.Context, tenant estover.TenantID, id string) (device.Mount, bool) {
			return device.Mount{Path: "team/", Kind: "box", Plain: []string{"note"}}, tenant == "default" && id == "mnt_1"
		},
	})
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for _, run := range []func(context.Context) error{h.guard.Log().Run, h.Run} {
		all.Go(func() { _ = run(ctx) })
	}
	t.Cleanup(func() { stop(); all.Wait() })
	return h
}

// happens puts an event into the log.
func (h *house) happens(c estover.Caller, action, word string) {
	h.t.Helper()
	op := guard.Op{Action: action, Target: "secret:team/db", Detail: map[string]any{"note": word, "n": 7, "list": []string{word}}}
	if err := h.guard.Do(h.t.Context(), c, op, func(*guard.Tx) error { return nil }); err != nil {
		h.t.Fatal(err)
	}
}

func (h *house) enable(path, kind string, options map[string]string) {
	h.t.Helper()
	if _, err := h.Enable(h.t.Context(), ann, device.Device{Path: path, Kind: kind, Options: options}); err != nil {
		h.t.Fatal(err)
	}
}

// until waits for something that is on its way.
func (h *house) until(what string, so func() bool) {
	h.t.Helper()
	for end := time.Now().Add(30 * time.Second); !so(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			h.t.Fatalf("waited for nothing: %s", what)
		}
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return string(b)
}

// V34: what happens is written to a file, in the shape of Vault's lines, with hashed
// texts that one can look for; and to whoever rotates it away another one is made.
func TestFile(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d)
		h.happens(ann, "secret.write", "before")
		h.enable("file", device.File, map[string]string{"file_path": filepath.Join(h.folder, "audit.log"), "prefix": "@cee: "})
		h.happens(ann, "secret.write", "hunter2")
		path := filepath.Join(h.folder, "audit.log")
		hash, err := h.Hash(t.Context(), ann, "file", estover.NewSecret([]byte("hunter2")))
		if err != nil || !strings.HasPrefix(hash, "hmac-sha256:") || len(hash) != 12+64 {
			t.Fatalf("the hash is %q, %v", hash, err)
		}
		// What was on its way into the log when the device was enabled may stand before.
		h.until("the line", func() bool {
			all := read(t, path)
			return strings.Contains(all, hash) && strings.HasSuffix(all, "\n")
		})
		var line string
		for _, l := range strings.Split(read(t, path), "\n") {
			if strings.Contains(l, hash) {
				line = l
			}
		}
		var got struct {
			Time, Type, Event string
			Auth              struct {
				Name string `json:"display_name"`
			}
			Request struct {
				ID, Operation, Path string
				Namespace           struct{ ID string }
				Data                map[string]any
			}
			Response struct{ Data map[string]string }
		}
		text, prefixed := strings.CutPrefix(line, "@cee: ")
		if err := json.Unmarshal([]byte(text), &got); err != nil || !prefixed {
			t.Fatalf("the line is %q: %v", line, err)
		}
		if at, err := time.Parse(time.RFC3339Nano, got.Time); err != nil || at.IsZero() || got.Type != "response" || got.Auth.Name != "user:usr_ann" || got.Request.ID != "req_1" ||
			got.Request.Operation != "update" || got.Request.Path != "secret:team/db" || got.Request.Namespace.ID != "root" || got.Response.Data["outcome"] != "done" || got.Event == "" {
			t.Errorf("the line says %+v", got)
		}
		if data := got.Request.Data; fmt.Sprint(data["n"]) != "7" || data["note"] != hash || fmt.Sprint(data["list"]) != "["+hash+"]" {
			t.Errorf("the data of the line is %v, want the hash %s", data, hash)
		}
		if all := read(t, path); strings.Contains(all, "hunter2") || strings.Contains(all, "before") || strings.Contains(all, `"note":"`+"x") {
			t.Errorf("the file has texts in clear, or what was before: %s", all)
		}
		if err := os.Rename(path, path+".1"); err != nil {
			t.Fatal(err)
		}
		h.happens(ann, "secret.read", "later")
		h.until("a line in another file", func() bool { return strings.Contains(read(t, path), `"operation":"read"`) })

		if err := h.Disable(t.Context(), ann, "file"); err != nil {
			t.Fatal(err)
		}
		if list, err := h.List(t.Context(), ann); err != nil || len(list) != 0 {
			t.Errorf("afterwards there are %v, %v", list, err)
		}
		if _, err := h.Hash(t.Context(), ann, "file", estover.NewSecret([]byte("x"))); !errors.Is(err, device.ErrNotFound) {
			t.Errorf("hashing for one that is gone: %v", err)
		}
	})
}

// When the disk is full in the middle of a batch nothing of it is left, and all of it
// comes when there is room again, once.
func TestFullDisk(t *testing.T) {
	h := build(t, dbtest.Open(t))
	path := filepath.Join(h.folder, "audit.log")
	h.enable("file", device.File, map[string]string{"file_path": path})
	h.happens(ann, "secret.write", "first")
	h.until("the first line", func() bool { return strings.Contains(read(t, path), "secret.write") })
	// No file of this process grows beyond a size at which this one is nearly.
	const size = 256 << 20
	head := read(t, path)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{'\n'}, size-100); err != nil {
		t.Fatal(err)
	}
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
		t.Fatal(err)
	}
	signal.Ignore(syscall.SIGXFSZ)
	full := before
	full.Cur = size
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &full); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Setrlimit(syscall.RLIMIT_FSIZE, &before) }()
	h.happens(ann, "secret.write", "second")
	h.until("that it shows itself", func() bool {
		list, err := h.List(t.Context(), ann)
		return err == nil && len(list) == 1 && list[0].Failure != ""
	})
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
		t.Fatal(err)
	}
	tail := func() string {
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, info.Size()-(size-99))
		if _, err := f.ReadAt(b, size-99); err != nil && len(b) > 0 {
			t.Fatal(err)
		}
		return string(b)
	}
	h.until("what was held up", func() bool { return strings.HasSuffix(tail(), "\n") })
	for _, l := range strings.Split(strings.TrimSuffix(tail(), "\n"), "\n") {
		if !json.Valid([]byte(l)) {
			t.Errorf("a torn line is left: %q", l)
		}
	}
	if n := strings.Count(tail(), "secret.write"); n != 1 || strings.Count(head, "secret.write") != 1 {
		t.Errorf("the event of the full disk is there %d times, want once", n)
	}
}

// A line is a line of its own, also after one that was torn when a disk was full.
func TestTornLine(t *testing.T) {
	h := build(t, dbtest.Open(t))
	path := filepath.Join(h.folder, "audit.log")
	if err := os.WriteFile(path, []byte(`{"time":"2026`), 0o600); err != nil {
		t.Fatal(err)
	}
	h.enable("file", device.File, map[string]string{"file_path": path})
	if got := read(t, path); got != `{"time":"2026` {
		t.Errorf("looking at it has written %q", got)
	}
	h.happens(ann, "secret.write", "one")
	h.until("the line", func() bool { return strings.Contains(read(t, path), `"action":"secret.write"`) })
	for n, l := range strings.Split(strings.TrimSuffix(read(t, path), "\n"), "\n") {
		if n == 0 && l != `{"time":"2026` || n > 0 && !json.Valid([]byte(l)) {
			t.Errorf("line %d is %q", n, l)
		}
	}
}

// A pipe that nobody reads keeps nobody waiting.
func TestPipe(t *testing.T) {
	h := build(t, dbtest.Open(t))
	if err := syscall.Mkfifo(filepath.Join(h.folder, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := h.Enable(context.Background(), ann, device.Device{Kind: device.File, Options: map[string]string{"file_path": "pipe"}})
		done <- err
	}()
	select {
	case err := <-done:
		if !errors.Is(err, device.ErrInvalid) {
			t.Errorf("writing to a pipe: %v, want ErrInvalid", err)
		}
	case <-time.After(time.Minute):
		t.Error("whoever enables a device waits for the reader of a pipe")
	}
}

// Files are in the folder that the operator named, and for others than the default
// organisation in one of their own; no path and no link leads out of it.
func TestFolder(t *testing.T) {
	h := build(t, dbtest.Open(t))
	outside := t.TempDir()
	if err := os.Symlink(outside, filepath.Join(h.folder, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(outside, "x"), filepath.Join(h.folder, "one")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		who  estover.Caller
		path string
	}{
		{ann, "/etc/passwd"},
		{ann, "../x"},
		{ann, h.folder + "/../x"},
		{ann, h.folder + "/link/x"},
		{ann, "one"},
		{ann, h.folder},
		{ann, "."},
		{ann, "stdout"},
		{ann, ""},
		{eve, h.folder + "/x"},
		{eve, "../x"},
		{eve, h.folder + "/default/x"},
	} {
		if _, err := h.Enable(t.Context(), c.who, device.Device{Path: "f", Kind: device.File, Options: map[string]string{"file_path": c.path}}); !errors.Is(err, device.ErrInvalid) {
			t.Errorf("%s writes to %q: %v, want ErrInvalid", c.who.Tenant, c.path, err)
		}
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) != 0 {
		t.Errorf("outside there are %v, %v", left, err)
	}
	if _, err := h.Enable(t.Context(), eve, device.Device{Path: "f", Kind: device.File, Options: map[string]string{"file_path": "a.log"}}); err != nil {
		t.Fatal(err)
	}
	h.happens(ann, "secret.write", "ours")
	h.happens(eve, "secret.write", "theirs")
	theirs := filepath.Join(h.folder, "evil", "a.log")
	h.until("the line of another organisation", func() bool { return strings.Contains(read(t, theirs), `"action":"secret.write"`) })
	if all := read(t, theirs); strings.Count(all, `"action":"secret.write"`) != 1 || !strings.Contains(all, `"namespace":{"id":"evil"}`) {
		t.Errorf("an organisation is told %s", all)
	}
	// T1: another's device is not there.
	if err := h.Disable(t.Context(), ann, "f"); err != nil {
		t.Fatal(err)
	}
	if list, err := h.List(t.Context(), eve); err != nil || len(list) != 1 {
		t.Errorf("somebody else has disabled it: %v, %v", list, err)
	}
}

// A device that is full or dead stops nobody and shows itself; when it works again it
// has what it missed, in order.
func TestDeadDevice(t *testing.T) {
	h := build(t, dbtest.Open(t))
	listen := func(address string) net.Listener {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	port, err := scratch.Port()
	if err != nil {
		t.Fatal(err)
	}
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) // which is free for it again later
	first := listen(address)
	lines := make(chan string, 1000)
	serve := func(l net.Listener) {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			for s := bufio.NewScanner(c); s.Scan(); {
				lines <- s.Text()
			}
			_ = c.Close()
		}
	}
	go serve(first)
	h.enable("socket", device.Socket, map[string]string{"address": address, "write_timeout": "1s"})
	h.happens(ann, "secret.write", "one")
	wait := func(action string) (seen []string) {
		t.Helper()
		for {
			select {
			case l := <-lines:
				seen = append(seen, l)
				if strings.Contains(l, `"action":"`+action+`"`) {
					return seen
				}
			case <-time.After(30 * time.Second):
				t.Fatalf("no line of %s; there were %q", action, seen)
			}
		}
	}
	wait("secret.write")
	_ = first.Close()
	h.until("the failure is shown", func() bool {
		h.happens(ann, "secret.update", "while it is dead") // nobody is stopped
		list, err := h.List(t.Context(), ann)
		return err == nil && len(list) == 1 && list[0].Failure != "" && !list[0].FailedAt.IsZero()
	})
	h.happens(ann, "secret.remove", "last")
	second := listen(address)
	defer second.Close()
	go serve(second)
	if seen := wait("secret.remove"); !strings.Contains(strings.Join(seen, "\n"), `"action":"secret.update"`) {
		t.Errorf("what happened while it was dead is missing: %q", seen)
	}
	h.until("it is shown to work", func() bool {
		list, err := h.List(t.Context(), ann)
		return err == nil && len(list) == 1 && list[0].Failure == ""
	})
}

// What is too long for a datagram is cut, and holds up nothing.
func TestLongLine(t *testing.T) {
	h := build(t, dbtest.Open(t))
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	h.enable("socket", device.Socket, map[string]string{"socket_type": "udp", "address": c.LocalAddr().String()})
	op := guard.Op{Action: "secret.write", Target: "secret:team/db", Detail: map[string]any{"fields": slices.Repeat([]string{"x"}, 2000)}}
	if err := h.guard.Do(t.Context(), ann, op, func(*guard.Tx) error { return nil }); err != nil {
		t.Fatal(err)
	}
	h.happens(ann, "secret.remove", "later")
	b, long := make([]byte, 64<<10), false
	for {
		if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := c.Read(b)
		if err != nil {
			t.Fatalf("the line after the long one does not come: %v", err)
		}
		switch text := string(b[:n]); {
		case !json.Valid(b[:n]):
			long = strings.Contains(text, `"event":"evt_`)
		case strings.Contains(text, `"action":"secret.remove"`):
			if !long {
				t.Error("of the long line nothing has come")
			}
			return
		}
	}
}

func TestSyslog(t *testing.T) {
	h := build(t, dbtest.Open(t))
	if _, err := h.Enable(t.Context(), ann, device.Device{Kind: device.Syslog}); !errors.Is(err, device.ErrInvalid) {
		t.Errorf("without a syslog: %v, want ErrInvalid", err)
	}
	// It is the operator's, and a line there is one line.
	if _, err := h.Enable(t.Context(), eve, device.Device{Kind: device.Syslog}); !errors.Is(err, device.ErrInvalid) || !strings.Contains(err.Error(), "not offered to this organisation") {
		t.Errorf("another organisation: %v, want ErrInvalid", err)
	}
	for _, name := range []string{"tag", "prefix"} {
		if _, err := h.Enable(t.Context(), ann, device.Device{Kind: device.Syslog, Options: map[string]string{name: "x\n<0>sshd: "}}); !errors.Is(err, device.ErrInvalid) || !strings.Contains(err.Error(), "control") {
			t.Errorf("a %s of two lines: %v, want ErrInvalid", name, err)
		}
	}
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: h.syslog, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	h.enable("syslog", device.Syslog, map[string]string{"facility": "LOCAL0", "tag": "estover"})
	h.happens(ann, "secret.write", "one")
	b := make([]byte, 64<<10)
	for {
		if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := c.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		got := string(b[:n])
		if !strings.HasPrefix(got, "<133>") || !strings.Contains(got, " estover["+fmt.Sprint(os.Getpid())+"]: {") { // LOCAL0, notice
			t.Fatalf("syslog is told %q", got)
		}
		if strings.Contains(got, `"action":"secret.write"`) {
			return
		}
	}
}

// Whoever may not learns nothing, and has nothing opened.
func TestRefused(t *testing.T) {
	d := dbtest.Open(t)
	h := build(t, d)
	no := device.New(guardtest.New(t, d, guardtest.DenyAll), device.Options{Folder: h.folder})
	_, enabled := no.Enable(t.Context(), ann, device.Device{Kind: device.File, Options: map[string]string{"file_path": "refused.log"}})
	_, listed := no.List(t.Context(), ann)
	_, hashed := no.Hash(t.Context(), ann, "file", estover.NewSecret([]byte("x")))
	_, headers := no.Headers(t.Context(), ann)
	for what, err := range map[string]error{
		"enable": enabled, "list": listed, "hash": hashed, "headers": headers, "disable": no.Disable(t.Context(), ann, "file"),
		"set": no.SetHeader(t.Context(), ann, device.Header{Name: "x"}), "remove": no.RemoveHeader(t.Context(), ann, "x"),
	} {
		if estover.KindOf(err) != estover.Denied {
			t.Errorf("%s: %v, want a refusal", what, err)
		}
	}
	if _, err := os.Stat(filepath.Join(h.folder, "refused.log")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file was made for who may not: %v", err)
	}
}

// V34: headers that were noted stand in the lines, hashed under the device's key or as
// they are, with the token's policies and accessor; of a mount's data the members that
// are not to be hashed are not. The log has no text of a hashed header.
func TestNoted(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d)
		ctx := t.Context()
		for name, hashed := range map[string]bool{"X-Plain": false, "X-Hashed": true, "Authorization": true, "X-Absent": false} {
			if err := h.SetHeader(ctx, ann, device.Header{Name: name, Hashed: hashed}); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range []string{"Authorization", "x-vault-TOKEN", "cookie", "Proxy-Authorization", "DPoP", "CF-Access-Jwt-Assertion", "X-Forwarded-Access-Token", "X-Api-Key", "X-Amzn-Oidc-Data"} {
			if err := h.SetHeader(ctx, ann, device.Header{Name: name}); !errors.Is(err, device.ErrInvalid) {
				t.Errorf("%s in clear: %v, want ErrInvalid", name, err)
			}
		}
		sent := http.Header{"X-Plain": {"seen", "twice"}, "X-Hashed": {"h1dden"}, "Authorization": {"Bearer c4nary"}, "X-Else": {"other"}}
		note := device.Note{Headers: sent, Policies: []string{"default", "app"}, Accessor: "tkt_1", Mount: "mnt_1"}
		if text := h.Noted(ctx, "default", note); text != "" {
			t.Errorf("without a device %q is noted", text)
		}
		one, two := filepath.Join(h.folder, "one.log"), filepath.Join(h.folder, "two.log")
		h.enable("one", device.File, map[string]string{"file_path": one})
		h.enable("two", device.File, map[string]string{"file_path": two, "hmac_accessor": "false"})
		caller := ann
		caller.Noted = h.Noted(ctx, "default", note)
		if strings.Contains(caller.Noted, "h1dden") || strings.Contains(caller.Noted, "c4nary") || strings.Contains(caller.Noted, "other") {
			t.Fatalf("the log is told %s", caller.Noted)
		}
		h.happens(caller, "secret.write", "word")
		type line struct {
			Auth struct {
				Policies []string
				Token    []string `json:"token_policies"`
				Accessor string
			}
			Request struct {
				Point   string `json:"mount_point"`
				Type    string `json:"mount_type"`
				Headers map[string][]string
				Data    map[string]any
			}
		}
		lines := map[string]line{}
		for _, path := range []string{one, two} {
			var text string
			h.until("the line in "+path, func() bool {
				for _, l := range strings.Split(read(t, path), "\n") {
					if strings.Contains(l, `"x-plain"`) {
						text = l
					}
				}
				return text != ""
			})
			var got line
			if err := json.Unmarshal([]byte(text), &got); err != nil {
				t.Fatal(err)
			}
			lines[path] = got
		}
		hash := func(path, text string) string {
			t.Helper()
			s, err := h.Hash(ctx, ann, path, estover.NewSecret([]byte(text)))
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		for path, at := range map[string]struct{ device, accessor string }{one: {"one", hash("one", "tkt_1")}, two: {"two", "tkt_1"}} {
			got := lines[path]
			want := map[string][]string{"x-plain": {"seen", "twice"}, "x-hashed": {hash(at.device, "h1dden")}, "authorization": {hash(at.device, "Bearer c4nary")}}
			if !reflect.DeepEqual(got.Request.Headers, want) {
				t.Errorf("the headers at %s are %v, want %v", at.device, got.Request.Headers, want)
			}
			if !slices.Equal(got.Auth.Policies, note.Policies) || !slices.Equal(got.Auth.Token, note.Policies) || got.Auth.Accessor != at.accessor {
				t.Errorf("the token at %s is %+v, want the accessor %s", at.device, got.Auth, at.accessor)
			}
			if got.Request.Point != "team/" || got.Request.Type != "box" || got.Request.Data["note"] != "word" || fmt.Sprint(got.Request.Data["list"]) != "["+hash(at.device, "word")+"]" {
				t.Errorf("the request at %s is %+v", at.device, got.Request)
			}
		}
		// The next requests tell of what is noted then.
		if err := errors.Join(h.RemoveHeader(ctx, ann, "X-Plain"), h.Disable(ctx, ann, "two")); err != nil {
			t.Fatal(err)
		}
		h.until("what is noted no more", func() bool { return !strings.Contains(h.Noted(ctx, "default", note), "x-plain") })
		long := strings.Repeat("y", 4000)
		note.Headers = http.Header{"X-Absent": {long, long}}
		if text := h.Noted(ctx, "default", note); len(text) > 2000 || !strings.Contains(text, "x-absent") {
			t.Errorf("of a long header %d bytes are noted", len(text))
		}
	})
}

// What a client sends beside hides nothing: neither what a proxy has added behind it, nor
// another header. A long value is found by the hash of the whole.
func TestNotedTooMuch(t *testing.T) {
	h := build(t, dbtest.Open(t))
	ctx := t.Context()
	h.enable("file", device.File, map[string]string{"file_path": filepath.Join(h.folder, "audit.log")})
	names := []string{"Authorization", "X-Forwarded-For"}
	for i := range 10 {
		names = append(names, fmt.Sprintf("X-Long-%d", i))
	}
	for _, name := range names {
		if err := h.SetHeader(ctx, ann, device.Header{Name: name, Hashed: name == "Authorization"}); err != nil {
			t.Fatal(err)
		}
	}
	long := strings.Repeat("y", 2000)
	sent := http.Header{"Authorization": {"Bearer " + long}, "X-Forwarded-For": {long}}
	for range 9 {
		sent.Add("X-Forwarded-For", "10.0.0.1")
	}
	sent.Add("X-Forwarded-For", long+", 203.0.113.7")
	for _, name := range names[2:] {
		sent[name] = slices.Repeat([]string{long}, 8)
	}
	hash, err := h.Hash(ctx, ann, "file", estover.NewSecret([]byte("Bearer "+long)))
	if err != nil {
		t.Fatal(err)
	}
	h.until("what is noted", func() bool { return strings.Contains(h.Noted(ctx, "default", device.Note{Headers: sent}), "x-long-9") })
	var told struct{ Headers map[string]any }
	text := h.Noted(ctx, "default", device.Note{Headers: sent})
	if err := json.Unmarshal([]byte("{"+text+"}"), &told); err != nil {
		t.Fatal(err)
	}
	by, _ := told.Headers["authorization"].(map[string]any)
	for _, v := range by {
		if fmt.Sprint(v) != "["+hash+"]" {
			t.Errorf("a long header is hashed as %v, want [%s]", v, hash)
		}
	}
	values, _ := told.Headers["x-forwarded-for"].([]any)
	if len(by) != 1 || len(values) != 8 || !strings.HasSuffix(fmt.Sprint(values[7]), "y, 203.0.113.7") || len(text) > 20<<10 {
		t.Errorf("%d bytes are noted: %.300s", len(text), text)
	}
	left := 0
	for _, name := range names[2:] {
		if fmt.Sprint(told.Headers[strings.ToLower(name)]) == "[(left out)]" {
			left++
		}
	}
	if left < 6 {
		t.Errorf("%d headers are left out, want those that there is no room for", left)
	}
}

// What was noted in clear before it stood in any line is noted hashed.
func TestNotedBefore(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d)
		ctx := t.Context()
		if err := d.Do(ctx, "default", func(tx *db.Tx) error {
			_, err := tx.Exec(ctx, `insert into audit_header (tenant_id, name, hashed) values ('default', 'x-vault-token', false)`)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		h.enable("file", device.File, map[string]string{"file_path": filepath.Join(h.folder, "audit.log")})
		var text string
		h.until("what is noted", func() bool {
			text = h.Noted(ctx, "default", device.Note{Headers: http.Header{"X-Vault-Token": {"hvs.c4nary"}}})
			return text != ""
		})
		if strings.Contains(text, "c4nary") || !strings.Contains(text, "hmac-sha256:") {
			t.Errorf("the log is told %s", text)
		}
		if have, err := h.Headers(ctx, ann); err != nil || !have["x-vault-token"] {
			t.Errorf("the headers are %v, %v, want the token's hashed", have, err)
		}
	})
}

// What was an erased organisation's is written nowhere any more, and not tried.
func TestErased(t *testing.T) {
	h := build(t, dbtest.Open(t))
	if err := os.Mkdir(filepath.Join(h.folder, "evil"), 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(h.folder, "evil", "theirs.log")
	if _, err := h.Enable(t.Context(), eve, device.Device{Path: "file", Kind: device.File, Options: map[string]string{"file_path": path}}); err != nil {
		t.Fatal(err)
	}
	h.happens(eve, "secret.write", "x")
	h.until("their line", func() bool { return strings.Contains(read(t, path), "secret.write") })
	h.erased.Store(true)
	h.enable("ours", device.File, map[string]string{"file_path": filepath.Join(h.folder, "ours.log")}) // Run looks again
	h.until("they are looked at", func() bool { return h.asked.Load() > 0 })
	before := read(t, path)
	h.happens(eve, "secret.write", "y")
	h.happens(ann, "secret.write", "z")
	h.until("our line", func() bool { return strings.Contains(read(t, filepath.Join(h.folder, "ours.log")), "secret.write") })
	if after := read(t, path); after != before {
		t.Errorf("for one that was erased is written: %q", after[len(before):])
	}
}
