package recording

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"syscall"
	"testing"

	"github.com/klauspost/compress/zstd"

	"estover.dev"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard/guardtest"
)

// customers is JSON as systems answer it: keys that repeat, values that do not.
func customers(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	var b []byte
	for i := 0; len(b) < n; i++ {
		one, _ := json.Marshal(map[string]any{
			"id": i, "name": fmt.Sprintf("Customer %x", r.Uint64()), "mail": fmt.Sprintf("%x@example.com", r.Uint32()),
			"open": r.IntN(100_000), "active": r.IntN(2) == 0, "note": fmt.Sprintf("order %d was sent on day %d", r.Uint32(), r.IntN(365)),
		})
		b = append(append(b, one...), '\n')
	}
	return b[:n]
}

// cpu reports what an operation costs the process, whoever else is at work on
// the machine.
func cpu(b *testing.B) func() {
	used := func() int64 {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return u.Utime.Nano() + u.Stime.Nano()
	}
	before := used()
	return func() { b.ReportMetric(float64(used()-before)/float64(b.N), "cpu-ns/op") }
}

// opened records into files, as a server does.
func opened(b *testing.B) *Recordings {
	bucket, err := OpenBucket(b.Context(), b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	return setup(b, dbtest.Open(b), bucket, guardtest.AllowAll, Options{})
}

// BenchmarkSmallExchange is a request and an answer of 1 KiB each, with their
// heads: everything from the frame to the durable segment, and the same bytes
// through zstd alone.
func BenchmarkSmallExchange(b *testing.B) {
	up := RequestHeadOf("POST", "https://crm.example/v1/customers/4711", "HTTP/1.1", http.Header{
		"Authorization": {"Bearer ‹sec_x@2›"}, "Content-Type": {"application/json"}, "Content-Length": {"1024"}, "User-Agent": {"agent/1.0"},
	})
	down := ResponseHeadOf("HTTP/1.1", 200, http.Header{"Content-Type": {"application/json"}, "Content-Length": {"1024"}, "Date": {"Mon, 01 Sep 2025 10:00:00 GMT"}})
	data := customers(16 << 20)
	bodies := func(i int) (q, a []byte) {
		at := (i * 2048) % (len(data) - 2048)
		return data[at : at+1024], data[at+1024 : at+2048]
	}
	b.Run("record", func(b *testing.B) {
		r := opened(b)
		rec := r.Session("acme", "ses_1")
		b.ReportAllocs()
		defer cpu(b)()
		i := 0
		for b.Loop() {
			q, a := bodies(i)
			i++
			s := rec.NewStream()
			for _, f := range []Frame{
				{Dir: Up, Kind: RequestHead, Data: up},
				{Dir: Up, Kind: HTTPBody, Data: q},
				{Dir: Down, Kind: ResponseHead, Data: down},
				{Dir: Down, Kind: HTTPBody, Data: a},
			} {
				f.Stream, f.Class = s, estover.Internal
				for err := rec.Frame(f); err != nil; err = rec.Frame(f) {
					if err := r.Flush(b.Context(), "acme", "ses_1"); err != nil {
						b.Fatal(err)
					}
				}
			}
		}
		if err := r.Close(b.Context()); err != nil {
			b.Fatal(err)
		}
	})
	b.Run("zstd", func(b *testing.B) {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false))
		if err != nil {
			b.Fatal(err)
		}
		var plain, out []byte
		defer cpu(b)()
		i := 0
		for b.Loop() {
			q, a := bodies(i)
			i++
			plain = append(append(append(append(plain, up...), q...), down...), a...)
			if len(plain) >= segmentSize {
				out, plain = e.EncodeAll(plain, out[:0]), plain[:0]
			}
		}
		_ = e.EncodeAll(plain, out[:0])
	})
}

// BenchmarkPipeline is 4 MiB of bodies, in pieces of 32 KiB, from the frame to
// the stored segment, and the same bytes through zstd alone.
func BenchmarkPipeline(b *testing.B) {
	for name, data := range map[string][]byte{"json": customers(segmentSize), "noise": noise(segmentSize)} {
		b.Run(name+"/record", func(b *testing.B) {
			r := opened(b)
			b.SetBytes(segmentSize)
			defer cpu(b)()
			for b.Loop() {
				rec := r.Session("acme", "ses_1")
				for piece := range bytesOf(data, 32<<10) {
					if err := rec.Frame(Frame{Stream: 1, Dir: Down, Kind: HTTPBody, Class: estover.Internal, Data: piece}); err != nil {
						b.Fatal(err)
					}
				}
				if err := r.Flush(b.Context(), "acme", "ses_1"); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/body", func(b *testing.B) {
			r := opened(b)
			b.SetBytes(segmentSize)
			defer cpu(b)()
			for b.Loop() {
				body := r.Session("acme", "ses_1").Body(1, Down, HTTPBody, estover.Internal)
				for piece := range bytesOf(data, 32<<10) {
					if _, err := body.Write(piece); err != nil {
						b.Fatal(err)
					}
				}
				if err := body.Close(); err != nil {
					b.Fatal(err)
				}
				if err := r.Flush(b.Context(), "acme", "ses_1"); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/zstd", func(b *testing.B) {
			e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false))
			if err != nil {
				b.Fatal(err)
			}
			var out []byte
			b.SetBytes(segmentSize)
			defer cpu(b)()
			for b.Loop() {
				out = e.EncodeAll(data, out[:0])
			}
			if bytes.Equal(out, data) {
				b.Fatal("nothing was compressed")
			}
		})
	}
}

func bytesOf(b []byte, n int) func(func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for len(b) > 0 {
			piece := b[:min(n, len(b))]
			b = b[len(piece):]
			if !yield(piece) {
				return
			}
		}
	}
}
