package gateway_test

import (
	"bufio"
	"bytes"
	"crypto/fips140"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"estover.dev/internal/edge"
	"estover.dev/internal/gateway"
	"estover.dev/internal/gateway/gatewaytest"
	"estover.dev/internal/redact"
)

const wsKey = "dGhlIHNhbXBsZSBub25jZQ=="

// wsHead is the request of a client that wants a WebSocket.
func wsHead(path string, more ...string) string {
	return "GET /u/up" + path + " HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Key: " + wsKey +
		"\r\nSec-WebSocket-Version: 13\r\n" + strings.Join(append(more, ""), "\r\n") + "\r\n"
}

func accept(key string) string {
	var sum [sha1.Size]byte
	fips140.WithoutEnforcement(func() { sum = sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11")) })
	return base64.StdEncoding.EncodeToString(sum[:])
}

// wsFrame writes a frame; one with a mask is a client's.
func wsFrame(fin bool, opcode byte, payload []byte, masked bool) []byte {
	b := []byte{opcode, 0}
	if fin {
		b[0] |= 0x80
	}
	switch n := len(payload); {
	case n < 126:
		b[1] = byte(n)
	case n < 1<<16:
		b[1] = 126
		b = binary.BigEndian.AppendUint16(b, uint16(n))
	default:
		b[1] = 127
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	if !masked {
		return append(b, payload...)
	}
	b[1] |= 0x80
	mask := []byte{0x37, 0xfa, 0x21, 0x3d}
	b = append(b, mask...)
	for i, c := range payload {
		b = append(b, c^mask[i&3])
	}
	return b
}

// wsRead reads a frame of a server.
func wsRead(in *bufio.Reader) (opcode byte, payload []byte, err error) {
	var h [2]byte
	if _, err := io.ReadFull(in, h[:]); err != nil {
		return 0, nil, err
	}
	n := uint64(h[1] & 0x7F)
	switch n {
	case 126:
		var b [2]byte
		io.ReadFull(in, b[:])
		n = uint64(binary.BigEndian.Uint16(b[:]))
	case 127:
		var b [8]byte
		io.ReadFull(in, b[:])
		n = binary.BigEndian.Uint64(b[:])
	}
	payload = make([]byte, n)
	_, err = io.ReadFull(in, payload)
	return h[0] & 0xF, payload, err
}

// wsServer upgrades each connection and hands it to serve, with the head of the
// request.
func wsServer(t *testing.T, serve func(c net.Conn, in *bufio.Reader, r *http.Request)) string {
	return gatewaytest.Raw(t, func(c net.Conn, _ int) {
		in := bufio.NewReader(c)
		r, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		io.WriteString(c, "HTTP/1.1 101 "+r.Header.Get("Authorization")+"\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "+accept(r.Header.Get("Sec-WebSocket-Key"))+
			"\r\nSet-Cookie: a=b\r\nX-Echo: "+r.Header.Get("Authorization")+"\r\n\r\n")
		serve(c, in, r)
	})
}

// wsDial opens a WebSocket through the gateway.
func wsDial(t *testing.T, g *gatewaytest.Gateway, more ...string) (net.Conn, *bufio.Reader, *http.Response) {
	t.Helper()
	c := gatewaytest.Dial(t, g.Addr)
	io.WriteString(c, wsHead("/ws", more...))
	in := bufio.NewReader(c)
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, resp.ContentLength))
		t.Fatalf("the upgrade is answered with %d %s", resp.StatusCode, b)
	}
	return c, in, resp
}

func TestP13OnlyWebSocketIsLetThrough(t *testing.T) {
	g := gatewaytest.Reverse(t, gatewaytest.Raw(t, func(c net.Conn, _ int) {
		http.ReadRequest(bufio.NewReader(c))
		t.Error("the upstream was reached")
	}))
	good := wsHead("/")
	for name, head := range map[string]string{
		"another protocol": strings.Replace(good, "Upgrade: websocket", "Upgrade: h2c", 1),
		"two protocols":    strings.Replace(good, "Upgrade: websocket", "Upgrade: websocket, h2c", 1),
		"two headers":      strings.Replace(good, "Upgrade: websocket", "Upgrade: websocket\r\nUpgrade: h2c", 1),
		"a POST":           strings.Replace(good, "GET", "POST", 1),
		"a body":           strings.Replace(good, "Host: a", "Host: a\r\nContent-Length: 4", 1) + "body",
		"no key":           strings.Replace(good, "Sec-WebSocket-Key: "+wsKey, "X: 1", 1),
		"a short key":      strings.Replace(good, wsKey, "dGhl", 1),
		"an old version":   strings.Replace(good, "Version: 13", "Version: 8", 1),
		"HTTP/1.0":         strings.Replace(good, "HTTP/1.1", "HTTP/1.0", 1),
	} {
		answer := gatewaytest.Talk(t, g.Addr, strings.Replace(head, "keep-alive", "close", 1))
		if !strings.HasPrefix(answer, "HTTP/1.1 400 ") && !strings.HasPrefix(answer, "HTTP/1.0 400 ") {
			t.Errorf("%s is answered with %.60q", name, answer)
			continue
		}
		g.Violation(t)
	}
}

func TestP13TheHandshakeIsValidated(t *testing.T) {
	ok := "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + accept(wsKey) + "\r\n"
	answer := ""
	g := gatewaytest.Reverse(t, gatewaytest.Raw(t, func(c net.Conn, _ int) {
		http.ReadRequest(bufio.NewReader(c))
		io.WriteString(c, answer+"\r\n")
		c.Read(make([]byte, 1))
	}))
	for name, bad := range map[string]string{
		"no accept":               strings.Replace(ok, "Accept", "Except", 1),
		"another accept":          strings.Replace(ok, accept(wsKey), accept("x"), 1),
		"another protocol":        strings.Replace(ok, "Upgrade: websocket", "Upgrade: h2c", 1),
		"no Connection":           strings.Replace(ok, "Connection: Upgrade", "Connection: X", 1),
		"extension not offered":   ok + "Sec-WebSocket-Extensions: permessage-deflate\r\n",
		"subprotocol not offered": ok + "Sec-WebSocket-Protocol: chat\r\n",
	} {
		answer = bad
		got := gatewaytest.Talk(t, g.Addr, strings.Replace(wsHead("/", "Sec-WebSocket-Protocol: mqtt"), "keep-alive", "close", 1))
		if !strings.HasPrefix(got, "HTTP/1.1 502 ") {
			t.Errorf("%s is answered with %.80q", name, got)
		}
		if out := g.Outcome(t); out.End != gateway.Failed || !errors.Is(out.Err, gateway.ErrAnswer) {
			t.Errorf("%s has the outcome %+v", name, out)
		}
	}
	// A change of protocol that nobody asked for.
	answer = ok
	got := gatewaytest.Talk(t, g.Addr, "GET /u/up/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
	if !strings.HasPrefix(got, "HTTP/1.1 502 ") || g.Outcome(t).End != gateway.Failed {
		t.Errorf("an upgrade that nobody asked for is answered with %.80q", got)
	}
	// A refusal of the upgrade is an ordinary answer.
	answer = "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n"
	got = gatewaytest.Talk(t, g.Addr, strings.Replace(wsHead("/"), "keep-alive", "close", 1))
	if !strings.HasPrefix(got, "HTTP/1.1 403 ") || g.Outcome(t).End != gateway.Complete {
		t.Errorf("a refused upgrade is answered with %.80q", got)
	}
}

// Frames of every length pass both ways, whatever they are cut like, with pings
// between them.
func TestP13FramesPass(t *testing.T) {
	for _, injected := range []bool{false, true} {
		g := gatewaytest.Reverse(t, wsServer(t, func(c net.Conn, in *bufio.Reader, _ *http.Request) {
			for {
				first, err := in.ReadByte()
				if err != nil {
					return
				}
				in.UnreadByte()
				// A client's frame, unmasked and sent back.
				var h [14]byte
				io.ReadFull(in, h[:2])
				n := uint64(h[1] & 0x7F)
				switch n {
				case 126:
					io.ReadFull(in, h[:2])
					n = uint64(binary.BigEndian.Uint16(h[:2]))
				case 127:
					io.ReadFull(in, h[:8])
					n = binary.BigEndian.Uint64(h[:8])
				}
				var mask [4]byte
				io.ReadFull(in, mask[:])
				payload := make([]byte, n)
				if _, err := io.ReadFull(in, payload); err != nil {
					return
				}
				for i := range payload {
					payload[i] ^= mask[i&3]
				}
				c.Write(wsFrame(first&0x80 != 0, first&0xF, payload, false))
			}
		}))
		if injected {
			inject(g)
		}
		c, in, _ := wsDial(t, g)
		sent := 0
		for _, n := range []int{0, 1, 125, 126, 127, 65535, 65536, 1 << 20} {
			payload := bytes.Repeat([]byte{'.'}, n)
			go func() {
				c.Write(wsFrame(true, 2, payload, true))
				c.Write(wsFrame(true, 9, []byte("ping!"), true))
			}()
			opcode, got, err := wsRead(in)
			if err != nil || opcode != 2 || !bytes.Equal(got, payload) {
				t.Fatalf("a frame of %d bytes comes back as %d with %d bytes, %v", n, opcode, len(got), err)
			}
			if opcode, got, err := wsRead(in); err != nil || opcode != 9 || string(got) != "ping!" {
				t.Fatalf("a ping comes back as %d %q, %v", opcode, got, err)
			}
			sent += len(wsFrame(true, 2, payload, true)) + len(wsFrame(true, 9, []byte("ping!"), true))
		}
		// A client that pauses gets its pings when it reads again.
		for range 50 {
			c.Write(wsFrame(true, 9, []byte("ping!"), true))
			c.Write(wsFrame(true, 2, make([]byte, 60000), true))
		}
		for range 50 {
			if opcode, _, err := wsRead(in); err != nil || opcode != 9 {
				t.Fatalf("instead of a ping comes %d, %v", opcode, err)
			}
			if opcode, _, err := wsRead(in); err != nil || opcode != 2 {
				t.Fatalf("instead of a message comes %d, %v", opcode, err)
			}
		}
		c.Close()
		if out := g.Outcome(t); out.End != gateway.Complete || !out.Upgraded || out.Sent < int64(sent) || out.Delivered == 0 || out.Answered != 101 {
			t.Errorf("the outcome is %+v", out)
		}
	}
}

func TestP13BrokenFramesEndBothSides(t *testing.T) {
	for name, frame := range map[string][]byte{
		"not masked":            wsFrame(true, 1, []byte("x"), false),
		"reserved bit":          append([]byte{0xC1}, wsFrame(true, 1, []byte("x"), true)[1:]...),
		"reserved opcode":       wsFrame(true, 3, []byte("x"), true),
		"long control frame":    wsFrame(true, 9, make([]byte, 126), true),
		"parted control frame":  wsFrame(false, 9, []byte("x"), true),
		"continues nothing":     wsFrame(true, 0, []byte("x"), true),
		"message in a message":  slices.Concat(wsFrame(false, 1, nil, true), wsFrame(true, 1, nil, true)),
		"length of 63 bits":     {0x82, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4},
		"length not minimal":    {0x82, 0xFE, 0, 5, 1, 2, 3, 4},
		"length 64 not minimal": {0x82, 0xFF, 0, 0, 0, 0, 0, 0, 0, 5, 1, 2, 3, 4},
	} {
		closed := make(chan int64, 1)
		g := gatewaytest.Reverse(t, wsServer(t, func(c net.Conn, in *bufio.Reader, _ *http.Request) {
			n, _ := io.Copy(io.Discard, in)
			closed <- n
		}))
		c, in, _ := wsDial(t, g)
		c.Write(frame)
		if rest, _ := io.ReadAll(in); len(rest) > 0 {
			t.Errorf("%s: the client gets %q", name, rest)
		}
		if n := <-closed; n > 6 { // the head of a frame that is right so far may have passed
			t.Errorf("%s: %d bytes reached the upstream", name, n)
		}
		if out := g.Outcome(t); out.End != gateway.Refused || !errors.Is(out.Err, edge.ErrMalformed) {
			t.Errorf("%s: the outcome is %+v", name, out)
		}
	}
	// The upstream's frames are held to the same.
	for _, injected := range []bool{false, true} {
		g := gatewaytest.Reverse(t, wsServer(t, func(c net.Conn, in *bufio.Reader, _ *http.Request) {
			c.Write(wsFrame(true, 1, []byte("masked"), true))
			io.Copy(io.Discard, in)
		}))
		if injected {
			inject(g)
		}
		_, in, _ := wsDial(t, g)
		if rest, _ := io.ReadAll(in); len(rest) > 0 {
			t.Errorf("the client gets %q", rest)
		}
		if out := g.Outcome(t); out.End != gateway.Failed || !errors.Is(out.Err, gateway.ErrAnswer) {
			t.Errorf("the outcome is %+v", out)
		}
	}
}

// One side may end its half and still hear the other.
func TestP13HalfClose(t *testing.T) {
	g := gatewaytest.Reverse(t, wsServer(t, func(c net.Conn, in *bufio.Reader, _ *http.Request) {
		n, _ := io.Copy(io.Discard, in)
		c.Write(wsFrame(true, 1, []byte(fmt.Sprint("after the end: ", n)), false))
	}))
	c, in, _ := wsDial(t, g)
	frame := wsFrame(true, 1, []byte("last words"), true)
	c.Write(frame)
	c.(*net.TCPConn).CloseWrite()
	if _, got, err := wsRead(in); err != nil || string(got) != fmt.Sprint("after the end: ", len(frame)) {
		t.Errorf("after the half-close came %q, %v", got, err)
	}
	if out := g.Outcome(t); out.End != gateway.Complete {
		t.Errorf("the outcome is %+v", out)
	}
}

func TestC10ACutEndsWebSockets(t *testing.T) {
	for name, flood := range map[string]bool{"idle": false, "with a client that does not read": true} {
		closed := make(chan struct{})
		g := gatewaytest.Reverse(t, wsServer(t, func(c net.Conn, in *bufio.Reader, _ *http.Request) {
			defer close(closed)
			if flood {
				go func() {
					for {
						if _, err := c.Write(wsFrame(true, 2, make([]byte, 60000), false)); err != nil {
							return
						}
					}
				}()
			}
			io.Copy(io.Discard, in)
		}))
		c, in, _ := wsDial(t, g)
		if flood {
			wsRead(in)
		}
		at := time.Now()
		if n := g.Live.Cut("default", "ses_1", gateway.ErrEnded); n != 1 {
			t.Errorf("%s: %d exchanges were cut", name, n)
		}
		<-closed
		io.Copy(io.Discard, in)
		if took := time.Since(at); took > gatewaytest.Soon {
			t.Errorf("%s: it took %v", name, took)
		}
		if out := g.Outcome(t); out.End != gateway.Cut || !errors.Is(out.Err, gateway.ErrEnded) || !out.Upgraded {
			t.Errorf("%s: the outcome is %+v", name, out)
		}
		c.Close()
	}
}

// frameLog is a tap that keeps frames.
type frameLog struct {
	log
	frames []string
	open   map[byte]string
	mu     sync.Mutex
}

func (l *frameLog) Frame(opcode byte, fin bool, piece []byte, end bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open == nil {
		l.open = map[byte]string{}
	}
	l.open[opcode] += string(piece)
	if end {
		l.frames = append(l.frames, fmt.Sprintf("%d %v %s", opcode, fin, l.open[opcode]))
		delete(l.open, opcode)
	}
	return nil
}

// Policy decides on the upgrade; after it frames are seen by the taps, an
// injected secret is masked in them wherever they part it, and there is no
// compression that would hide it.
func TestC11WebSocketsAreDecidedRecordedAndMasked(t *testing.T) {
	var head http.Header
	half := len(key) / 2
	g := gatewaytest.Reverse(t, wsServer(t, func(c net.Conn, in *bufio.Reader, r *http.Request) {
		head = r.Header
		for _, f := range [][]byte{
			wsFrame(true, 1, []byte("hello "+key+"!"), false),
			wsFrame(false, 1, []byte("parted "+key[:half]), false),
			wsFrame(true, 9, []byte("ping "+key), false),
			wsFrame(false, 0, nil, false),
			wsFrame(true, 0, []byte(key[half:]+" end"), false),
			wsFrame(true, 2, []byte(hex.EncodeToString([]byte(key))), false),
			wsFrame(true, 1, []byte("half "+key[:half]), false),
			wsFrame(true, 1, []byte(key[half:]+" of another message"), false),
			wsFrame(true, 8, []byte("\x03\xe8"+key), false),
		} {
			for i := 0; i < len(f); i += 5 {
				c.Write(f[i:min(i+5, len(f))])
			}
		}
		io.Copy(io.Discard, in)
	}))
	inject(g)
	sent, delivered := &frameLog{}, &frameLog{}
	upgrade := ""
	g.Change = func(_ *http.Request, ex *gateway.Exchange, p *gateway.Plan) error {
		upgrade = ex.Upgrade
		p.Sent, p.Delivered = sent, delivered
		return nil
	}
	c, in, resp := wsDial(t, g, "Sec-WebSocket-Extensions: permessage-deflate", "Authorization: Bearer forged")
	c.Write(wsFrame(true, 1, []byte("from the client"), true))
	stars := strings.Repeat("*", len(key))
	want := []string{
		"1 true hello " + stars + "!", "1 false parted " + stars[:half], "9 true ping " + stars, "0 false ", "0 true " + stars[half:] + " end",
		"2 true " + stars + stars, "1 true half " + key[:half], "1 true " + key[half:] + " of another message", "8 true \x03\xe8" + stars,
	}
	for _, w := range want {
		opcode, got, err := wsRead(in)
		if err != nil {
			t.Fatal(err)
		}
		fields := strings.SplitN(w, " ", 3)
		if fmt.Sprint(opcode) != fields[0] || string(got) != fields[2] {
			t.Errorf("got %d %q, want %q", opcode, got, w)
		}
	}
	c.Close()
	out := g.Outcome(t)
	if out.End != gateway.Complete || !slices.Equal(out.Echoed, []string{"sec_crm@1"}) || upgrade != "websocket" {
		t.Errorf("the outcome is %+v, policy saw the upgrade %q", out, upgrade)
	}
	slices.Sort(delivered.frames)
	slices.Sort(want)
	if !slices.Equal(delivered.frames, want) || !slices.Equal(sent.frames, []string{"1 true from the client"}) {
		t.Errorf("the taps saw %q and %q", sent.frames, delivered.frames)
	}
	if head.Get("Sec-Websocket-Extensions") != "" || head.Get("Authorization") != "Bearer "+key {
		t.Errorf("the upstream got %v", head)
	}
	if resp.Status != "101 Switching Protocols" || resp.Header.Get("Set-Cookie") != "" || resp.Header.Get("X-Echo") != "Bearer "+stars {
		t.Errorf("the client got %q %v", resp.Status, resp.Header)
	}
	// A refusal of the upgrade reaches nobody.
	g.Change = func(*http.Request, *gateway.Exchange, *gateway.Plan) error { return gateway.ErrEnded }
	if answer := gatewaytest.Talk(t, g.Addr, strings.Replace(wsHead("/ws"), "keep-alive", "close", 1)); !strings.HasPrefix(answer, "HTTP/1.1 403 ") {
		t.Errorf("a refused upgrade is answered with %.60q", answer)
	}
}

// However messages are parted into frames and frames into pieces, the client
// gets the same frames with the same text masked.
func TestC11MaskingFollowsMessages(t *testing.T) {
	secret := "abababab"
	m, _ := redact.NewMatcher(redact.Value{Name: "s", Text: []byte(secret)})
	rapid.Check(t, func(t *rapid.T) {
		message := rapid.StringMatching(`[ab]{0,40}`)
		var wire []byte
		var want []string
		for range rapid.IntRange(1, 4).Draw(t, "messages") {
			text := message.Draw(t, "text")
			masked := m.MaskString(text, nil)
			opcode := byte(1)
			for rest, left := text, masked; ; {
				n := rapid.IntRange(0, len(rest)).Draw(t, "frame")
				if rapid.Bool().Draw(t, "last") {
					n = len(rest)
				}
				fin := n == len(rest)
				wire = append(wire, wsFrame(fin, opcode, []byte(rest[:n]), false)...)
				want = append(want, fmt.Sprintf("%d %v %s", opcode, fin, left[:n]))
				rest, left, opcode = rest[n:], left[n:], 0
				if fin {
					break
				}
				if rapid.Bool().Draw(t, "ping") {
					wire = append(wire, wsFrame(true, 9, []byte(secret), false)...)
					want = append(want, "9 true ********")
				}
			}
		}
		var pieces [][]byte
		for rest := wire; len(rest) > 0; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "piece")
			pieces, rest = append(pieces, rest[:n]), rest[n:]
		}
		got, err := gateway.MaskFrames(m, pieces)
		if err != nil {
			t.Fatal(err)
		}
		var frames []string
		in := bufio.NewReader(bytes.NewReader(got))
		for {
			first, err := in.Peek(1)
			if err != nil {
				break
			}
			fin := first[0]&0x80 != 0
			opcode, payload, err := wsRead(in)
			if err != nil {
				t.Fatal(err)
			}
			frames = append(frames, fmt.Sprintf("%d %v %s", opcode, fin, payload))
		}
		if !slices.Equal(frames, want) {
			t.Fatalf("got  %q\nwant %q", frames, want)
		}
	})
}
