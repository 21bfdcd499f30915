package recording

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"estover.dev"
)

var at = time.UnixMicro(1_790_000_000_000_000).UTC()

// anyFrame draws a frame as a recorder would make it.
func anyFrame(t *rapid.T, seq int64) Frame {
	return Frame{
		Seq: seq, At: at.Add(time.Duration(seq) * time.Microsecond),
		Stream: rapid.OneOf(rapid.Uint64Max(30), rapid.Uint64()).Draw(t, "stream"),
		Dir:    rapid.SampledFrom([]Dir{"", Up, Down}).Draw(t, "dir"),
		Kind:   rapid.SampledFrom([]Kind{RequestHead, ResponseHead, HTTPBody, SSE, WebSocket, Policy, Note}).Draw(t, "kind"),
		Class:  rapid.SampledFrom(estover.Classes).Draw(t, "class"),
		Data:   rapid.OneOf(rapid.SliceOfN(rapid.Byte(), 0, 40), rapid.SliceOfN(rapid.Byte(), 200, 400)).Draw(t, "data"),
	}
}

// seal makes a segment of frames under a key.
func sealFrames(c *codec, key []byte, frames []Frame) (Header, []byte) {
	var plain []byte
	for i := range frames {
		plain = appendFrame(plain, &frames[i], nil)
	}
	parts, err := split(plain)
	if err != nil {
		panic(err)
	}
	h := Header{
		ID: "seg_test", Kind: segmentBlob, Tenant: "acme", Session: "ses_1", Recording: "rec_1", N: 1,
		First: frames[0].Seq, Last: frames[len(frames)-1].Seq, From: at, To: at, Size: int64(len(plain)), Root: rootOf(leavesOf(parts)),
	}
	blob, _, err := c.seal(key, h, plain)
	if err != nil {
		panic(err)
	}
	return h, *blob
}

func someFrames(n, size int) []Frame {
	frames := make([]Frame, n)
	for i := range frames {
		data := make([]byte, size)
		_, _ = rand.Read(data)
		frames[i] = Frame{Seq: int64(i + 1), At: at, Stream: 1, Dir: Up, Kind: HTTPBody, Class: estover.Internal, Data: data}
	}
	return frames
}

func TestFramesAreDeterministicCBOR(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := anyFrame(t, rapid.Int64Range(1, 1<<40).Draw(t, "seq"))
		var ref []byte
		if rapid.Bool().Draw(t, "ref") {
			want.Data, want.Ref = nil, &Ref{From: 1 << 20, Size: 1 << 30, Kept: 1 << 21, Rest: Digest{3}, Parts: []Digest{{1}, {2}}}
			ref = encodeRef(want.Ref)
		}
		b := appendFrame(nil, &want, ref)
		if n := len(want.Data) + len(ref) + frameOverhead; len(b) > n {
			t.Fatalf("a frame takes %d bytes, and %d were set aside", len(b), n)
		}
		var c frameCBOR
		if err := strict.Unmarshal(b[4:], &c); err != nil {
			t.Fatalf("a strict reader: %v", err)
		}
		again, err := deterministic.Marshal(struct {
			At     int64  `cbor:"t"`
			Dir    string `cbor:"dir"`
			Ref    *Ref   `cbor:"ref,omitempty"`
			Seq    int64  `cbor:"seq"`
			Data   any    `cbor:"data,omitempty"`
			Kind   string `cbor:"kind"`
			Salt   []byte `cbor:"salt"`
			Class  string `cbor:"class"`
			Stream uint64 `cbor:"stream"`
		}{c.At, string(c.Dir), c.Ref, c.Seq, data(want), string(c.Kind), c.Salt, string(c.Class), c.Stream})
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b[4:], again) {
			t.Fatalf("by hand  %x\nby cbor  %x", b[4:], again)
		}
		got, err := decodeFrame(b[4:])
		if err != nil {
			t.Fatal(err)
		}
		if got.Seq != want.Seq || !got.At.Equal(want.At) || got.Stream != want.Stream || got.Dir != want.Dir ||
			got.Kind != want.Kind || got.Class != want.Class || !bytes.Equal(got.Data, want.Data) || (got.Ref == nil) != (want.Ref == nil) {
			t.Fatalf("read back %+v, wrote %+v", got, want)
		}
	})
}

// data is what a frame without reference always has, even if it is empty.
func data(f Frame) any {
	if f.Ref != nil {
		return nil
	}
	return append([]byte{}, f.Data...)
}

func TestSegmentsReadBack(t *testing.T) {
	c := newCodec()
	key := bytes.Repeat([]byte{7}, 32)
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 40).Draw(t, "frames")
		frames := make([]Frame, n)
		for i := range frames {
			frames[i] = anyFrame(t, int64(i+1))
		}
		h, blob := sealFrames(c, key, frames)
		got, parts, leaves, err := c.openSegment(key, blob)
		if err != nil {
			t.Fatal(err)
		}
		if got.Root != h.Root || len(parts) != n {
			t.Fatalf("%d frames under root %s, want %d under %s", len(parts), got.Root, n, h.Root)
		}
		for i, b := range parts {
			f, err := decodeFrame(b)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(f.Data, frames[i].Data) || f.Seq != int64(i+1) {
				t.Fatalf("frame %d came back as %+v", i, f)
			}
			root, err := climb(leaves[i], i, n, pathOf(leaves, i))
			if err != nil || root != h.Root {
				t.Fatalf("the path of frame %d leads to %s (%v), want %s", i, root, err, h.Root)
			}
		}
	})
}

// A stranger's tree: the roots and paths are those of golang.org/x/mod.
func TestTreeIsThatOfTransparencyLogs(t *testing.T) {
	for n := 1; n <= 70; n++ {
		frames := make([][]byte, n)
		var stored []tlog.Hash
		read := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
			out := make([]tlog.Hash, len(indexes))
			for i, x := range indexes {
				out[i] = stored[x]
			}
			return out, nil
		})
		for i := range frames {
			frames[i] = []byte{byte(i), byte(n)}
			hashes, err := tlog.StoredHashes(int64(i), frames[i], read)
			if err != nil {
				t.Fatal(err)
			}
			stored = append(stored, hashes...)
		}
		root, err := tlog.TreeHash(int64(n), read)
		if err != nil {
			t.Fatal(err)
		}
		leaves := leavesOf(frames)
		if rootOf(leaves) != Digest(root) {
			t.Fatalf("the root of %d leaves is %s, and tlog says %s", n, rootOf(leaves), root)
		}
		for i := range frames {
			var path tlog.RecordProof
			for _, d := range pathOf(leaves, i) {
				path = append(path, tlog.Hash(d))
			}
			if err := tlog.CheckRecord(path, int64(n), root, int64(i), tlog.RecordHash(frames[i])); err != nil {
				t.Fatalf("the path of leaf %d of %d: %v", i, n, err)
			}
		}
	}
}

func TestPathsThatProveNothing(t *testing.T) {
	leaves := make([]Digest, 11)
	for i := range leaves {
		leaves[i] = leafHash([]byte{byte(i)})
	}
	root := rootOf(leaves)
	path := pathOf(leaves, 5)
	for name, c := range map[string]struct {
		leaf Digest
		i, n int
		path []Digest
	}{
		"another leaf":   {leaves[4], 5, 11, path},
		"another place":  {leaves[5], 4, 11, path},
		"another size":   {leaves[5], 5, 17, path},
		"cut off":        {leaves[5], 5, 11, path[1:]},
		"too long":       {leaves[5], 5, 11, append(path[:len(path):len(path)], root)},
		"beyond the end": {leaves[5], 11, 11, path},
		"before it":      {leaves[5], -1, 11, path},
	} {
		if got, err := climb(c.leaf, c.i, c.n, c.path); err == nil && got == root {
			t.Errorf("%s: the path leads to the root all the same", name)
		}
	}
}

// Every byte of a blob is under the seal or under the header's digest, not
// only under the blob's name.
func TestEveryByteOfASegmentCounts(t *testing.T) {
	c := newCodec()
	key := bytes.Repeat([]byte{7}, 32)
	_, blob := sealFrames(c, key, someFrames(3, 100))
	for i := range blob {
		for _, flip := range []byte{1, 0x80} {
			bad := bytes.Clone(blob)
			bad[i] ^= flip
			if _, _, _, err := c.openSegment(key, bad); err == nil {
				t.Errorf("byte %d of %d was changed by %#x, and the segment opened", i, len(blob), flip)
			}
		}
	}
	for _, bad := range [][]byte{blob[:len(blob)-1], append(bytes.Clone(blob), 0), blob[:len(blob)/2], {}} {
		if _, _, _, err := c.openSegment(key, bad); err == nil {
			t.Errorf("a segment of %d bytes instead of %d opened", len(bad), len(blob))
		}
	}
	if _, _, _, err := c.openSegment(bytes.Repeat([]byte{8}, 32), blob); err == nil {
		t.Error("a segment opened under another recording's key")
	}
}

// Chunks are bound to their place and to their segment.
func TestChunksStayWhereTheyAre(t *testing.T) {
	c := newCodec()
	key := bytes.Repeat([]byte{7}, 32)
	_, blob := sealFrames(c, key, someFrames(4, 60<<10)) // incompressible: four chunks
	_, head, rest, err := parse(blob)
	if err != nil {
		t.Fatal(err)
	}
	const whole = chunkSize + sealing
	if len(rest) <= 3*whole {
		t.Fatalf("the segment has %d sealed bytes, too few for this test", len(rest))
	}
	join := func(chunks ...[]byte) []byte {
		return append(bytes.Clone(head), bytes.Join(chunks, nil)...)
	}
	a, b, d, last := rest[:whole], rest[whole:2*whole], rest[2*whole:3*whole], rest[3*whole:]
	if _, _, err := c.open(key, join(a, b, d, last)); err != nil {
		t.Fatalf("as it was: %v", err)
	}
	for name, bad := range map[string][]byte{
		"two exchanged": join(b, a, d, last), "one left out": join(a, d, last), "one twice": join(a, a, b, d, last),
		"cut at a chunk": join(a, b, d), "the last alone": join(last), "none": join(),
	} {
		if _, _, err := c.open(key, bad); err == nil {
			t.Errorf("chunks %s: the segment opened", name)
		}
	}
}

// A header that is not true is found even by who holds the key.
func TestHeadersThatAreNotTrue(t *testing.T) {
	c := newCodec()
	key := bytes.Repeat([]byte{7}, 32)
	frames := someFrames(3, 10)
	var plain []byte
	for i := range frames {
		plain = appendFrame(plain, &frames[i], nil)
	}
	parts, _ := split(plain)
	good := Header{ID: "seg_1", Kind: segmentBlob, First: 1, Last: 3, Size: int64(len(plain)), Root: rootOf(leavesOf(parts))}
	for name, change := range map[string]func(*Header){
		"another root":    func(h *Header) { h.Root[0]++ },
		"too few frames":  func(h *Header) { h.Last = 2 },
		"too many frames": func(h *Header) { h.Last = 4 },
		"another size":    func(h *Header) { h.Size-- },
		"a size too big":  func(h *Header) { h.Size = 1 << 40 },
		"a body":          func(h *Header) { h.Kind = bodyBlob },
		"no kind":         func(h *Header) { h.Kind = "" },
	} {
		h := good
		change(&h)
		blob, _, err := c.seal(key, h, plain)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, _, err := c.openSegment(key, *blob); err == nil {
			t.Errorf("%s: the segment opened", name)
		}
	}
}

func TestDigestsInText(t *testing.T) {
	d := leafHash([]byte("x"))
	b, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	var back Digest
	if err := json.Unmarshal(b, &back); err != nil || back != d {
		t.Errorf("%s read back as %s, %v", b, back, err)
	}
	for _, bad := range []string{`""`, `"00"`, `"` + string(bytes.Repeat([]byte("F"), 64)) + `"`, `"` + string(bytes.Repeat([]byte("x"), 64)) + `"`} {
		if err := json.Unmarshal([]byte(bad), &back); err == nil {
			t.Errorf("%s was read as a digest", bad)
		}
	}
}

// FuzzBlob hands anything to the parser of blobs: it may refuse, and must not
// fall.
func FuzzBlob(f *testing.F) {
	c := newCodec()
	key := bytes.Repeat([]byte{7}, 32)
	other := bytes.Repeat([]byte{8}, 32)
	_, blob := sealFrames(c, key, someFrames(3, 100))
	f.Add(blob)
	f.Add([]byte(format + "\n{}\n"))
	f.Add([]byte(formatOne + "\n" + `{"kind":"segment","size":-1}` + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, head, rest, err := parse(b)
		if err == nil && (len(head)+len(rest) != len(b) || h.Size < 0) {
			t.Fatalf("parsed into %d and %d of %d bytes, size %d", len(head), len(rest), len(b), h.Size)
		}
		if _, frames, leaves, err := c.openSegment(key, b); err == nil && (len(frames) != len(leaves) || rootOf(leaves) != h.Root) {
			t.Fatal("a segment opened that is not what its header says")
		}
		if _, _, _, err := c.openSegment(other, b); err == nil {
			t.Fatal("a segment opened under a key that it was not sealed with")
		}
	})
}

// FuzzFrames hands anything to what reads the inside of a segment.
func FuzzFrames(f *testing.F) {
	frames := someFrames(2, 20)
	var plain []byte
	for i := range frames {
		plain = appendFrame(plain, &frames[i], nil)
	}
	f.Add(plain)
	f.Add(append([]byte{0, 0, 0, 60}, encodeRef(&Ref{From: 1, Size: 2, Kept: 1, Rest: Digest{3}})...))
	f.Fuzz(func(t *testing.T, b []byte) {
		parts, err := split(b)
		if err != nil {
			return
		}
		for _, p := range parts {
			got, err := decodeFrame(p)
			if err == nil && (got.Seq < 1 || len(got.Salt) != saltSize) {
				t.Fatalf("a frame without number or salt: %+v", got)
			}
		}
		_ = rootOf(leavesOf(parts))
	})
}

func TestFramesThatAreNone(t *testing.T) {
	good := map[string]any{
		"t": 1, "dir": "up", "seq": 1, "data": []byte("x"), "kind": "note", "salt": make([]byte, saltSize), "class": "public", "stream": 0,
	}
	encode := func(m map[string]any) []byte {
		b, err := cbor.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if _, err := decodeFrame(encode(good)); err != nil {
		t.Fatalf("a good frame: %v", err)
	}
	for name, change := range map[string]func(map[string]any){
		"an unknown member": func(m map[string]any) { m["extra"] = 1 },
		"no salt":           func(m map[string]any) { delete(m, "salt") },
		"a short salt":      func(m map[string]any) { m["salt"] = []byte{1} },
		"number zero":       func(m map[string]any) { m["seq"] = 0 },
		"a negative stream": func(m map[string]any) { m["stream"] = -1 },
		"text as data":      func(m map[string]any) { m["data"] = "x" },
		"data and ref":      func(m map[string]any) { m["ref"] = map[string]any{"from": 0, "size": 0, "kept": 0} },
		"a ref that grows":  func(m map[string]any) { delete(m, "data"); m["ref"] = map[string]any{"from": 0, "size": 1, "kept": 2} },
	} {
		m := map[string]any{}
		for k, v := range good {
			m[k] = v
		}
		change(m)
		if _, err := decodeFrame(encode(m)); err == nil {
			t.Errorf("%s: it was read as a frame", name)
		}
	}
}
