package audit

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"estover.dev"
	"estover.dev/internal/db"
)

// ErrBehind is returned where a log has not what a checkpoint says that it had.
var ErrBehind = &estover.Error{Kind: estover.Conflict, Code: "database_behind", Detail: "The database is an older one than the newest that this node has seen."}

// ErrClock is returned where an event is later than it is now.
var ErrClock = &estover.Error{Kind: estover.Conflict, Code: "clock_behind", Detail: "The clock of this machine is behind the newest event of the log."}

// A Head is how far a log had come: the newest checkpoint that was signed of it.
type Head struct {
	Tenant     estover.TenantID `json:"tenant"`
	Checkpoint string           `json:"checkpoint"`
}

// Heads are those of all logs. Whoever keeps them elsewhere finds out by
// [Log.Continues] that the whole database was put back (K5).
func (l *Log) Heads(ctx context.Context) (all []Head, err error) {
	err = l.db.View(ctx, "", func(tx *db.Tx) error {
		all, err = newestCheckpoints(ctx, tx)
		return err
	})
	return all, err
}

// parse reads the size and the root of a checkpoint (c2sp.org/tlog-checkpoint). Its
// signature is not looked at: an older database may not have the key, and whoever
// could write the file where it is kept could take it away as well.
func (h Head) parse() (size int64, root tlog.Hash, err error) {
	t, err := tlog.ParseTree([]byte("go.sum database tree\n" + afterOrigin(h.Checkpoint)))
	if err != nil {
		return 0, root, fmt.Errorf("the checkpoint of %s cannot be read: %w", h.Tenant, err)
	}
	return t.N, t.Hash, nil
}

// afterOrigin is the size and the root of a checkpoint, one in a line.
func afterOrigin(checkpoint string) string {
	lines := strings.SplitN(checkpoint, "\n", 4)
	if len(lines) < 3 {
		return ""
	}
	return lines[1] + "\n" + lines[2] + "\n"
}

// Continues is [ErrBehind] unless the log of a tenant still begins with what a head
// is of: it is shorter, or went another way from somewhere on.
func (l *Log) Continues(ctx context.Context, h Head) error {
	size, root, err := h.parse()
	if err != nil {
		return err
	}
	return l.db.View(ctx, h.Tenant, func(tx *db.Tx) error {
		t, err := readTree(ctx, tx)
		if err != nil {
			return err
		}
		if t.size < size {
			return ErrBehind.With("The log of the organisation %s has %d entries here, and had %d.", h.Tenant, t.size, size)
		}
		e, err := readEdge(ctx, tx, size)
		var was tlog.Hash
		if err == nil {
			was, err = e.root()
		}
		if err != nil && !errors.Is(err, ErrDamaged) {
			return err
		}
		if err != nil || was != root {
			return ErrBehind.With("The log of the organisation %s went another way here before its entry %d: it is another database, or was put back and then written to.", h.Tenant, size)
		}
		return nil
	})
}

// maxBehind is how far the clock may be behind the newest event (F6).
const maxBehind = time.Minute

// CheckClock is [ErrClock] if the newest event happened more than a minute from now.
func (l *Log) CheckClock(ctx context.Context) error {
	return l.db.View(ctx, "", func(tx *db.Tx) error {
		at, err := newestTime(ctx, tx)
		if err != nil {
			return err
		}
		if ahead := at.Sub(tx.Now()); ahead > maxBehind {
			return ErrClock.With("The clock of this machine says %s, and the newest event of the log is of %s, %s later.",
				tx.Now().UTC().Format(time.RFC3339), at.UTC().Format(time.RFC3339), ahead.Round(time.Second))
		}
		return nil
	})
}
