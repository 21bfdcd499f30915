package server

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"estover.dev"
	"estover.dev/internal/audit"
)

// headFile is where a node keeps the newest signed checkpoints that it has seen:
// beside the database and not in it, so that it does not go back along with it.
const headFile = "newest-checkpoints.json"

// headEvery is how often it is written.
const headEvery = 10 * time.Second

func (s *Server) headPath() string { return filepath.Join(s.config.Data, headFile) }

// remember keeps the newest checkpoints, if there are others than before. Those of a
// database that was put back while the server ran are not kept: it is
// [audit.ErrBehind], at the next start as well.
func (s *Server) remember(ctx context.Context) error {
	heads, err := s.log.Heads(ctx)
	if err != nil {
		return err
	}
	b, err := json.Marshal(heads)
	if err != nil || string(b) == s.remembered {
		return err
	}
	if err := s.continues(ctx, s.remembered, heads); err != nil {
		return err
	}
	if err := writePrivate(s.headPath(), b); err != nil {
		return fmt.Errorf("keeping the newest checkpoints: %w", err)
	}
	s.remembered = string(b)
	return nil
}

// continues is [audit.ErrBehind] unless the logs go on from what the file said of
// them. Those heads that are as they were need no look.
func (s *Server) continues(ctx context.Context, file string, same []audit.Head) error {
	if file == "" {
		return nil
	}
	var heads []audit.Head
	if err := json.Unmarshal([]byte(file), &heads); err != nil {
		return fmt.Errorf("%s cannot be read: %w. Take it away if nothing was restored", s.headPath(), err)
	}
	for _, h := range heads {
		if slices.Contains(same, h) {
			continue
		}
		if err := s.log.Continues(ctx, h); err != nil {
			return err
		}
	}
	return nil
}

// remembering is [Server.remember] again and again, for as long as the clock goes on
// as it should.
func (s *Server) remembering(ctx context.Context) error {
	began := time.Now()
	return s.every(headEvery, "keeping the newest checkpoints", func(ctx context.Context) error {
		if behind := setBack(began, time.Now(), time.Since(began)); behind > maxSetBack {
			s.stop(fmt.Errorf("the clock of this machine was set back by %s while the server ran, and with it every end of a token and a lease came later. It has stopped. Set the clock (by NTP), and start it again", behind.Round(time.Second)))
			return nil
		}
		err := s.remember(ctx)
		if errors.Is(err, audit.ErrBehind) {
			s.stop(fmt.Errorf("the database was put back while the server ran, which has stopped. %w", detail(err)))
			return nil
		}
		return err
	})(ctx)
}

// stop has a server that runs come to its end, and why.
func (s *Server) stop(why error) {
	select {
	case s.broken <- why:
	default: // it does already
	}
}

// maxSetBack is how far a clock may be set back under a running server (F6).
const maxSetBack = time.Minute

// setBack is how far the clock on the wall has fallen behind, where so much time has
// passed by the one that nobody sets.
func setBack(began, now time.Time, passed time.Duration) time.Duration {
	return passed - now.Round(0).Sub(began.Round(0))
}

// restored refuses to go on with a database that is behind what this node has seen
// of it, or with a clock that is behind the database, unless somebody declares that
// the server was restored: then nothing is issued at any target before it is
// compared with what is here (F5, F6, K5).
func (s *Server) restored(ctx context.Context) error {
	clock, behind := s.log.CheckClock(ctx), s.behind(ctx)
	found := cmp.Or(behind, clock) // what is told of, the worse first
	switch {
	case found == nil:
		return nil
	case clock != nil && !errors.Is(clock, audit.ErrClock):
		return clock
	case behind != nil && !errors.Is(behind, audit.ErrBehind):
		return behind
	case !s.config.Restored && behind != nil:
		return fmt.Errorf("%w\nIf it was restored from a backup, start the server once with --restored: then nothing is issued at any target before `estover secret engine reconcile` has compared it. If it was not, somebody has put an older database in its place: keep it, and look for the newer one", detail(found))
	case !s.config.Restored:
		return fmt.Errorf("%w\nTokens and leases would count for too long. Set the clock (by NTP) and start again. If the clock is right and was wrong before, start the server once with --restored", detail(found))
	}
	s.logger.Warn("the server was declared restored", "found", detail(found))
	tenants := []estover.TenantID{}
	err := s.eachTenant(ctx, func(ctx context.Context, t estover.TenantID) error {
		tenants = append(tenants, t)
		system := estover.Caller{Tenant: t, Subject: estover.System("server")}
		_, err := s.leases.Restored(ctx, system)
		return err
	})
	if err != nil {
		return fmt.Errorf("declaring that the server was restored: %w", err)
	}
	if err := os.Remove(s.headPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	s.logger.Warn("nothing is issued at any target before it is reconciled", "organisations", len(tenants))
	return nil
}

// behind is [audit.ErrBehind] if the database is not the one that was last seen here.
func (s *Server) behind(ctx context.Context) error {
	b, err := os.ReadFile(s.headPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := s.continues(ctx, string(b), nil); err != nil {
		return err
	}
	s.remembered = string(b)
	return nil
}

// detail is what an error of ours says.
func detail(err error) error {
	var known *estover.Error
	if errors.As(err, &known) {
		return errors.New(known.Detail)
	}
	return err
}
