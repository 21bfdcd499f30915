package main

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"
)

// The bars of static secrets hold for a core that seals and opens 512 bytes in
// sealing; a slower one has as much more.
const (
	readLimit  = 200.0 // µs of CPU for a value that is handed out, with its event
	writeLimit = 400.0 // µs of CPU for a version
	sealing    = 0.93  // µs
)

// secretCallers write and read at once.
const secretCallers = 16

// secrets has values of 512 bytes be handed out, which is a decision, an event and
// the remembering of who has the value, and be written.
func secrets(ctx context.Context, b *Bench) ([]Row, error) {
	in, err := b.install(ctx, "")
	if err != nil {
		return nil, err
	}
	defer in.stop()
	value := rand.Text() + fmt.Sprintf("%0486d", 0)
	for i := range secretCallers {
		path := fmt.Sprintf("bench/%d", i)
		if err := in.call(ctx, http.MethodPost, "/v1/secrets", map[string]any{"path": path, "class": "confidential", "risk": "standard", "owner": "", "description": "", "destinations": []string{}, "max_versions": 10}, nil); err != nil {
			return nil, err
		}
		if _, err := in.estover(ctx, value, "secret", "put", path); err != nil {
			return nil, err
		}
	}
	header := map[string]string{"Content-Type": "application/json", "Authorization": "Bearer " + in.token}
	var reads, writes [][]byte
	for i := range secretCallers {
		reads = append(reads, request("POST", fmt.Sprintf("/v1/secret/read?path=bench/%d", i), in.addr, header, []byte(`{"purpose":"bench"}`)))
		body := fmt.Sprintf(`{"fields":{"value":%q}}`, value)
		writes = append(writes, request("POST", fmt.Sprintf("/v1/secret/versions?path=bench/%d", i), in.addr, header, []byte(body)))
	}
	bare, err := seals(b.For / 4)
	if err != nil {
		return nil, err
	}
	signature, err := oneSignature(b.For / 4)
	if err != nil {
		return nil, err
	}
	var rows []Row
	for _, one := range []struct {
		name, unit string
		limit      float64
		requests   [][]byte
	}{
		{"secret-read", "µs of CPU a read", readLimit, reads},
		{"secret-write", "µs of CPU a write", writeLimit, writes},
	} {
		var micros []float64
		for round := range b.Rounds + 1 {
			l, err := drive(ctx, in.process, secretCallers, b.For, inTurn(one.requests))
			if err != nil {
				return nil, fmt.Errorf("%s: %w", one.name, err)
			}
			if l.failed > 0 {
				return nil, fmt.Errorf("%s: %d failed: %s", one.name, l.failed, l.failure)
			}
			if round > 0 { // the first is to warm up
				micros = append(micros, l.perRequest())
			}
		}
		limit := one.limit * max(bare/sealing, 1)
		rows = append(rows, Row{
			Name: one.name, Ratio: median(micros) / limit, Target: 1, Better: "lower",
			Against: fmt.Sprintf("%.0f µs (%.0f at a core that seals and opens 512 bytes in %.2f µs; here that takes %.2f, and a bare ES256 signature %.1f)", limit, one.limit, sealing, bare, signature),
			Value:   median(micros), Unit: one.unit,
		})
	}
	return rows, nil
}

// seals is how many microseconds of CPU it takes here to seal 512 bytes and open
// them.
func seals(lasting time.Duration) (float64, error) {
	block, err := aes.NewCipher(make([]byte, 32))
	if err != nil {
		return 0, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return 0, err
	}
	plain := make([]byte, 512)
	return each(lasting, func() error {
		_, err := aead.Open(nil, nil, aead.Seal(nil, nil, plain, nil), nil)
		return err
	})
}

// inTurn gives one request after the other, to many at once.
func inTurn(requests [][]byte) func() []byte {
	var n atomic.Int64
	return func() []byte { return requests[int(n.Add(1))%len(requests)] }
}
