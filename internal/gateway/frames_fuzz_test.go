package gateway

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// FuzzFrames: the frames of a WebSocket are the same however the bytes come, and
// every byte of a payload is seen once, in its place.
func FuzzFrames(f *testing.F) {
	for _, seed := range []string{
		"\x81\x05Hello", "\x01\x03Hel\x80\x02lo", "\x89\x05Hello\x8a\x00", "\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", "\x82\x7e\x01\x00" + strings.Repeat("x", 256),
		"\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00", "\xc1\x05Hello", "\x83\x00", "\x09\x00", "\x80\x00", "\x81\x7e\x00\x05Hello", "\x82\x7f\xff\xff\xff\xff\xff\xff\xff\xff", "\x81\x00\x81\x00",
		"\x01\x00\x89\x02hi\x80\x00", "\x88\x02\x03\xe8",
	} {
		f.Add([]byte(seed), uint8(1), uint8(0))
		f.Add([]byte(seed), uint8(3), uint8(3))
	}
	f.Add([]byte("\x01\xff\x94\x94\x94\x94\x94\x94He"), uint8(0), uint8(3)) // the mask is yet to come
	f.Fuzz(func(t *testing.T, b []byte, step, how uint8) {
		seen := func(step int) (string, error) {
			var out strings.Builder
			var at uint64
			inside := false
			s := &frames{masked: how&1 != 0, extended: how&2 != 0}
			s.piece = func(i frame, p []byte, end bool) error {
				if !inside {
					fmt.Fprintf(&out, "|%d %v %d:", i.opcode, i.fin, i.size)
					at = 0
				}
				if i.at != at || at+uint64(len(p)) > i.size || end != (at+uint64(len(p)) == i.size) {
					t.Fatalf("a piece of %d bytes at %d of %d, where %d are behind; the last: %v", len(p), i.at, i.size, at, end)
				}
				out.Write(p)
				at += uint64(len(p))
				inside = !end
				return nil
			}
			for from := 0; from < len(b); from += step {
				if err := s.scan(b[from:min(from+step, len(b))]); err != nil {
					return out.String(), err
				}
			}
			return out.String(), nil
		}
		whole, why := seen(max(len(b), 1))
		pieces, whyToo := seen(int(step)%16 + 1)
		if whole != pieces || !errors.Is(whyToo, why) {
			t.Errorf("at once %q (%v), in pieces of %d %q (%v)", whole, why, int(step)%16+1, pieces, whyToo)
		}
		head := 10 // bytes, with a long length
		if len(b) > 1 && b[1]&0x80 != 0 {
			head += 4 // for the mask
		}
		if len(b) >= head && b[1]&0x7F == 127 && why == nil && binary.BigEndian.Uint64(b[2:10])>>63 != 0 {
			t.Errorf("a length beyond all lengths is taken: %q", b)
		}
	})
}
