package pki

import (
	"context"
	"slices"
	"time"

	"estover.dev/internal/db"
)

// LingersSince says what may go on of the certificates of a crowd that hold or were
// taken back since a time, by those who do not ask: a sentence for each kind.
func LingersSince(ctx context.Context, tx *db.Tx, c Crowd, since time.Time) (said []string, err error) {
	tolls, err := Tolls(ctx, tx, c, since)
	for _, t := range tolls {
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
