package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"

	"github.com/klauspost/compress/zstd"
	"gocloud.dev/blob/memblob"

	"estover.dev"
	"estover.dev/internal/recording"
	"estover.dev/internal/redact"
)

// pipelines compares what is done with every byte that passes with what it cannot
// be done without: the search for an injected key with the digest of the same text,
// and the recording of a body, in segments that are compressed and sealed, with its
// compression.
func pipelines(ctx context.Context, b *Bench) ([]Row, error) {
	text := customers(1 << 20)
	m, _ := redact.NewMatcher(redact.Value{Name: "key", Text: []byte("sk_live_4eC39HqLyjWDarjtT1zdp7dc")})
	var found string
	searched, err := b.perMegabyte(func() error {
		m.Stream(func(name string) { found = name }).Settle(text, true)
		return nil
	}, func() error { sha256.Sum256(text); return nil })
	if err != nil {
		return nil, err
	}
	if found != "" {
		return nil, fmt.Errorf("the search has found %s where it is not", found)
	}
	h, err := b.newHouse(ctx)
	if err != nil {
		return nil, err
	}
	defer h.db.Close()
	bucket := memblob.OpenBucket(nil)
	defer bucket.Close()
	recordings := recording.New(h.guard, h.sealer, bucket, recording.Options{})
	defer recordings.Close(ctx)
	session := 0
	packer, err := zstd.NewWriter(io.Discard, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	recorded, err := b.perMegabyte(func() error {
		session++
		id := fmt.Sprintf("ses_%d", session)
		rec := recordings.Session(us.Tenant, id)
		body := rec.Body(rec.NewStream(), recording.Down, recording.HTTPBody, estover.Confidential)
		if _, err := io.Copy(body, bytes.NewReader(text)); err != nil {
			return err
		}
		if err := body.Close(); err != nil {
			return err
		}
		return recordings.End(ctx, us.Tenant, id)
	}, func() error {
		packer.Reset(io.Discard)
		if _, err := packer.Write(text); err != nil {
			return err
		}
		return packer.Close()
	})
	if err != nil {
		return nil, err
	}
	searched.Name, searched.Against = "search", "SHA-256 of the same bytes"
	recorded.Name, recorded.Against = "recording", "zstd, level 1, of the same bytes"
	return []Row{searched, recorded}, nil
}

// perMegabyte has two ways to go over a megabyte take turns.
func (b *Bench) perMegabyte(mine, theirs func() error) (Row, error) {
	turn := func(once func() error) (float64, error) {
		before, err := ownCPU()
		if err != nil {
			return 0, err
		}
		const times = 200
		for range times {
			if err := once(); err != nil {
				return 0, err
			}
		}
		after, err := ownCPU()
		return float64((after - before).Microseconds()) / times, err
	}
	var ratios, own []float64
	for range b.Rounds {
		m, err := turn(mine)
		if err != nil {
			return Row{}, err
		}
		t, err := turn(theirs)
		if err != nil {
			return Row{}, err
		}
		ratios, own = append(ratios, m/t), append(own, m)
	}
	return Row{Ratio: median(ratios), Target: 2, Better: "lower", Value: median(own), Unit: "µs of CPU a megabyte"}, nil
}

// customers is text as an API answers it, about so many bytes.
func customers(size int) []byte {
	var b bytes.Buffer
	r := rand.New(rand.NewPCG(1, 2))
	names := []string{"Anna", "Bao", "Chidi", "Dolores", "Emre", "Freya", "Goran", "Hana"}
	for b.Len() < size {
		fmt.Fprintf(&b, `{"id":"cus_%x","name":"%s","email":"%d@example.com","balance":%d,"created":%d,"tags":["a","b"],"note":"called, and will call again"},`,
			r.Uint64(), names[r.IntN(len(names))], r.IntN(1_000_000), r.IntN(1_000_000), 1_700_000_000+r.IntN(1e7))
	}
	return b.Bytes()
}
