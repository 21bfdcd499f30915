package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"estover.dev/internal/job"
)

// nodeFile is where a server keeps the name under which it claims work.
const nodeFile = "node"

// claims is the name under which this start of the server claims work.
func (s *Server) claims() string { return node() + " " + s.boot }

// reclaim gives back what the last start of this server had claimed, if that was
// killed, so that nobody waits for it. One server at a time has the data directory,
// so that whoever wrote the name there is gone. Elsewhere, and where the directory is
// lost, a claim ends by its time.
func (s *Server) reclaim(ctx context.Context) error {
	file := filepath.Join(s.config.Data, nodeFile)
	text, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("reading under which name work was claimed: %w", err)
	}
	if last := strings.TrimSpace(string(text)); last != "" {
		for _, release := range []func(context.Context, string) error{
			s.leases.Release, s.facts.sessions.Release, s.rotations.Release, s.connected.Release, s.stores.Release,
			func(ctx context.Context, node string) error { return job.Release(ctx, s.db, node) },
		} {
			if err := release(ctx, last); err != nil {
				return fmt.Errorf("giving back what this server had claimed when it was killed: %w", err)
			}
		}
	}
	if err := writePrivate(file, []byte(s.claims()+"\n")); err != nil {
		return fmt.Errorf("writing under which name work is claimed: %w", err)
	}
	return nil
}
