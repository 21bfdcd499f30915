package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"estover.dev"
	"estover.dev/internal/api"
	"estover.dev/internal/db"
)

// doctor says what is wrong with what a tenant stands on and what to do about it.
// The machine, its disk and its database are of the default tenant, whose
// administrators run it.
func (s *Server) doctor(ctx context.Context, t estover.TenantID) []api.Check {
	own := []api.Check{s.checkLog(ctx, t), s.checkPolicy(ctx, t), s.checkTrusts(ctx, t), s.checkStores(ctx, t)}
	if t != estover.DefaultTenant {
		return own
	}
	return append([]api.Check{s.checkDatabase(ctx), s.checkSpool(), s.checkBlobs(ctx), s.checkDisk(), s.checkRootKey(), s.checkBootstrap()}, own...)
}

func (s *Server) checkDatabase(ctx context.Context) api.Check {
	begun := time.Now()
	if err := s.db.Do(ctx, estover.DefaultTenant, func(*db.Tx) error { return nil }); err != nil {
		return wrong("database", "The database takes no transaction.", "Look at its disk and its connection; the server's log has the error.")
	}
	took := time.Since(begun)
	if took > time.Second {
		return wrong("database", fmt.Sprintf("An empty transaction took %s.", took.Round(time.Millisecond)), "The disk or the network to the database is too slow; every operation waits for it.")
	}
	return fine("database", fmt.Sprintf("%s; an empty transaction took %s", s.db.Engine(), took.Round(time.Microsecond)))
}

// late is how old an event without a place in the log may be before something
// is wrong with the sequencing.
const late = 30 * time.Second

func (s *Server) checkLog(ctx context.Context, tenant estover.TenantID) api.Check {
	oldest, waiting, err := s.log.Waiting(ctx, tenant)
	switch {
	case err != nil:
		return wrong("log", "The log cannot be read.", "See the check of the database.")
	case waiting > 0 && s.db.Now().Sub(oldest) > late:
		return wrong("log", fmt.Sprintf("%d events wait for their place, the oldest since %s.", waiting, oldest.Format(time.RFC3339)), "Restart the server; if it goes on, look for 'the log' in its log.")
	}
	return fine("log", fmt.Sprintf("%d events wait for their place", waiting))
}

func (s *Server) checkSpool() api.Check {
	if n := s.spool.Waiting(); n > 10_000 {
		return wrong("evidence", fmt.Sprintf("%d events are only on this node.", n), "The database does not keep up; see its check.")
	}
	return fine("evidence", fmt.Sprintf("%d events are only on this node", s.spool.Waiting()))
}

func (s *Server) checkBlobs(ctx context.Context) api.Check {
	if ok, err := s.bucket.IsAccessible(ctx); err != nil || !ok {
		return wrong("recordings", "The place for recordings cannot be reached.", "Calls that must be recorded are refused. Look at "+s.config.Blobs+" and its permissions.")
	}
	return fine("recordings", s.config.Blobs)
}

// least is the free space below which a disk is nearly full.
const least = 1 << 30

func (s *Server) checkDisk() api.Check {
	var st syscall.Statfs_t
	if err := syscall.Statfs(s.config.Data, &st); err != nil {
		return wrong("disk", "The disk of the data directory cannot be looked at.", "Look at "+s.config.Data+".")
	}
	free := st.Bavail * uint64(st.Bsize)
	if free < least {
		return wrong("disk", fmt.Sprintf("%d MiB are free.", free>>20), "Make room on the disk of "+s.config.Data+". When it is full, nothing can be recorded, and so nothing is done.")
	}
	return fine("disk", fmt.Sprintf("%d GiB are free", free>>30))
}

func (s *Server) checkRootKey() api.Check {
	path, ok := strings.CutPrefix(s.config.RootKey, "file:")
	if !ok {
		return fine("root key", "from a passphrase")
	}
	path, _, _ = strings.Cut(path, "?")
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return wrong("root key", "The file of the root key is gone.", "Put your copy back to "+path+" before the server is restarted: without it nothing can be read.")
	case err != nil:
		return wrong("root key", "The file of the root key cannot be looked at.", "Look at "+path+".")
	case info.Mode().Perm()&0o077 != 0:
		return wrong("root key", "Others can read the root key.", "chmod 600 "+path)
	}
	if rel, err := filepath.Rel(s.config.Data, path); err == nil && !strings.HasPrefix(rel, "..") {
		return wrong("root key", "The root key lies in the data directory, so that whoever copies one has both.", "Move it elsewhere and start the server with --root-key.")
	}
	return fine("root key", path+"; keep a copy somewhere else")
}

func (s *Server) checkPolicy(ctx context.Context, tenant estover.TenantID) api.Check {
	if err := s.decider.Ready(ctx, tenant); err != nil {
		return wrong("policy", "The active policy cannot be loaded, so everything is refused.", "estover policy list, and roll back to one that worked.")
	}
	return fine("policy", "the active revision is loaded")
}

// checkStores says what of the secrets that other vaults are to have is not there.
func (s *Server) checkStores(ctx context.Context, tenant estover.TenantID) api.Check {
	n, err := s.stores.Pushes(ctx, tenant)
	switch {
	case err != nil:
		return wrong("stores", "It cannot be read what is pushed to other vaults.", "See the check of the database.")
	case n.Drifted > 0:
		return wrong("stores", fmt.Sprintf("Somebody else has changed what is pushed to other vaults, at %d places; it is left as it is.", n.Drifted),
			"estover secret sync list --state drift, and then estover secret sync accept or overwrite for each.")
	case n.Overdue > 0:
		return wrong("stores", fmt.Sprintf("The current version of a secret has not come to another vault in five minutes, at %d places.", n.Overdue),
			"estover secret sync list --overdue says why. It is tried again by itself; look at the vault with estover secret store check.")
	}
	return fine("stores", "what is pushed to other vaults is there, or on its way")
}

func (s *Server) checkBootstrap() api.Check {
	if _, err := os.Stat(s.bootstrapPath()); err == nil {
		return wrong("administrator", "Nobody has come in with the first administrator's token.", "estover login --token-file "+s.bootstrapPath())
	}
	return fine("administrator", "there is one")
}
