package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// profilePiece is how long one look at a server lasts. What is under way when the
// server is stopped is left out.
const profilePiece = 2 * time.Second

// profile has a server looked at for as long as it runs: what it spends its time on,
// a piece at a time. The function that comes back ends that.
func (b *Bench) profile(ctx context.Context, addr string) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if err := b.piece(ctx, addr); err != nil {
				select { // it does not answer yet
				case <-ctx.Done():
				case <-time.After(100 * time.Millisecond):
				}
			}
		}
	}()
	return func() { cancel(); <-done }
}

func (b *Bench) piece(ctx context.Context, addr string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", addr, profilePiece/time.Second), nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("the server answers %s to its profiler", res.Status)
	}
	if err != nil {
		return err
	}
	name, err := b.fileIn("piece-*.pprof")
	if err != nil {
		return err
	}
	return os.WriteFile(name, text, 0o600)
}

// hashing are functions of which the compiler is told nothing: what it knows of them has it
// call the hash by its interface, and then the hash, its buffer and its sum are no longer on
// the stack. Of the events of a call alone that makes a dozen objects.
const hashing = `^(crypto/sha256\.(Sum256|New)|golang\.org/x/mod/sumdb/tlog\.(RecordHash|NodeHash))$`

// mergeProfiles writes what was seen of all servers into one file, as the compiler
// takes it (https://go.dev/doc/pgo).
func (b *Bench) mergeProfiles(ctx context.Context, file string) error {
	pieces, err := filepath.Glob(filepath.Join(b.Dir, "piece-*.pprof"))
	if err != nil {
		return err
	}
	if len(pieces) == 0 {
		return fmt.Errorf("no server ran for %s", profilePiece)
	}
	merge := exec.CommandContext(ctx, "go", append([]string{"tool", "pprof", "-proto", "-ignore", hashing, "-output", file}, pieces...)...)
	if out, err := merge.CombinedOutput(); err != nil {
		return fmt.Errorf("merging profiles: %w\n%s", err, out)
	}
	merged, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if merged, err = nameless(merged, b.Program); err != nil {
		return err
	}
	return os.WriteFile(file, merged, 0o644)
}

// nameless leaves out of a profile where the program lay: the string is nobody
// else's affair. A profile is a protocol buffer, compressed, whose strings are its
// sixth field (https://github.com/google/pprof/blob/main/proto/profile.proto).
func nameless(profile []byte, path string) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(profile))
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	const stringTable, bytesType = 6, 2
	for len(text) > 0 {
		tag, n := binary.Uvarint(text)
		size, m := binary.Uvarint(text[max(n, 0):])
		if n <= 0 || m <= 0 {
			return nil, errors.New("the profile cannot be read")
		}
		field := text[:n+m]
		if tag&7 == bytesType {
			if size > uint64(len(text)-n-m) {
				return nil, errors.New("the profile ends too early")
			}
			field = text[:n+m+int(size)]
		}
		text = text[len(field):]
		if tag == stringTable<<3|bytesType && string(field[n+m:]) == path {
			name := filepath.Base(path)
			field = append(binary.AppendUvarint(binary.AppendUvarint(nil, tag), uint64(len(name))), name...)
		}
		if _, err := w.Write(field); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
