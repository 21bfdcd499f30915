package pki

import (
	"context"
	"slices"
	"time"

	"estover.dev/internal/db"
)

// LingersSince says what may go on of the certificates of a crowd that hold or were
// taken back since a time, by those who do not ask: a sentence for each kind.
func LingersSince(ctx context.Context, tx *db.Tx, c Crowd, since time.Time) ([]string, error) {
	return lingersOf(ctx, tx, filter{crowd: &c}, since)
}

// LingersOfSession is [LingersSince] for what was certified in a session.
func LingersOfSession(ctx context.Context, tx *db.Tx, session string, since time.Time) ([]string, error) {
	return lingersOf(ctx, tx, filter{sessions: []string{session}}, since)
}

func lingersOf(ctx context.Context, tx *db.Tx, f filter, since time.Time) (said []string, err error) {
	all, err := tolls(ctx, tx, f, since)
	for _, t := range all {
		sentence := "Certificates: " + Lingers
		if t.Kind == SSH {
			sentence = "SSH: " + LingersSSH
		}
		if !slices.Contains(said, sentence) {
			said = append(said, sentence)
		}
	}
	return said, err
}
