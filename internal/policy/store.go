package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"estover.dev/internal/db"
)

// columns of a revision and of its latest activation, in the order in which
// scanRevision takes them.
const columns = `r.digest, r.size, r.note, r.pushed_by, r.pushed_at,
	coalesce((select max(a.number) from policy_activation a where a.tenant_id = r.tenant_id and a.digest = r.digest), 0),
	coalesce((select max(a.number) from policy_activation a where a.tenant_id = r.tenant_id), 0)`

func scanRevision(scan func(...any) error) (r Revision, err error) {
	var last, newest int64
	err = scan(&r.Digest, &r.Size, &r.Note, &r.PushedBy, &r.PushedAt, &last, &newest)
	r.Active = last > 0 && last == newest || newest == 0 && r.Digest == Starter().Digest()
	r.Activated = last > 0
	return r, err
}

// insertRevision stores a bundle. One that is there already is left as it is,
// and the answer is false.
func insertRevision(ctx context.Context, tx *db.Tx, digest string, b Bundle, note, by string) (bool, error) {
	files, err := json.Marshal(b)
	if err != nil {
		return false, err
	}
	n, err := tx.Exec(ctx, `insert into policy_revision (tenant_id, digest, files, size, note, pushed_by, pushed_at)
		values ($1, $2, $3, $4, $5, $6, $7) on conflict (tenant_id, digest) do nothing`,
		tx.Tenant(), digest, string(files), len(files), note, by, tx.Now())
	return n == 1, err
}

// findRevision is a revision by its digest, or by the beginning of it if only
// one begins so.
func findRevision(ctx context.Context, tx *db.Tx, digest string) (Revision, error) {
	found, err := db.All(ctx, tx, scanRevision, `select `+columns+` from policy_revision r
		where r.tenant_id = $1 and r.digest >= $2 and r.digest < $3 order by r.digest limit 2`,
		tx.Tenant(), digest, digest+"g") // no digit of a digest is above f
	switch {
	case err != nil:
		return Revision{}, err
	case len(found) == 0:
		return Revision{}, ErrNoRevision
	case len(found) > 1:
		return Revision{}, ErrNoRevision.With("Several revisions begin with %s. Give more of the digest.", digest)
	}
	return found[0], nil
}

// findSource is the bundle of a revision.
func findSource(ctx context.Context, tx *db.Tx, digest string) (Bundle, error) {
	var files string
	err := tx.QueryRow(ctx, `select files from policy_revision where tenant_id = $1 and digest = $2`, tx.Tenant(), digest).Scan(&files)
	if errors.Is(err, db.ErrNoRows) {
		return nil, ErrNoRevision
	}
	if err != nil {
		return nil, err
	}
	var b Bundle
	if err := json.Unmarshal([]byte(files), &b); err != nil {
		return nil, fmt.Errorf("reading the files of revision %s: %w", digest, err)
	}
	if b.Digest() != digest {
		return nil, fmt.Errorf("the stored files of revision %s are not those that were pushed", digest)
	}
	return b, nil
}

// listRevisions are the revisions that were pushed before one, the newest
// first.
func listRevisions(ctx context.Context, tx *db.Tx, before string, limit int) ([]Revision, error) {
	return db.All(ctx, tx, scanRevision, `select `+columns+` from policy_revision r
		where r.tenant_id = $1 and ($2 = '' or (r.pushed_at, r.digest) < (
			select b.pushed_at, b.digest from policy_revision b where b.tenant_id = $1 and b.digest = $2))
		order by r.pushed_at desc, r.digest desc limit $3`, tx.Tenant(), before, limit)
}

// activeDigest is the digest of the active revision, or "" if there has never
// been one.
func activeDigest(ctx context.Context, tx *db.Tx) (string, error) {
	a, err := newestActivation(ctx, tx)
	return a.Digest, err
}

const activationColumns = "number, digest, kind, reason, activated_by, activated_at"

func scanActivation(scan func(...any) error) (a Activation, err error) {
	err = scan(&a.Number, &a.Digest, &a.Kind, &a.Reason, &a.By, &a.At)
	return a, err
}

// newestActivation is the activation in force, or a zero one.
func newestActivation(ctx context.Context, tx *db.Tx) (Activation, error) {
	a, err := scanActivation(tx.QueryRow(ctx, `select `+activationColumns+` from policy_activation
		where tenant_id = $1 order by number desc limit 1`, tx.Tenant()).Scan)
	if errors.Is(err, db.ErrNoRows) {
		return Activation{}, nil
	}
	return a, err
}

// earlierDigest is the revision that was active before this one first was: the
// starter bundle before the first. Going back again and again goes further
// back, and never forth.
func earlierDigest(ctx context.Context, tx *db.Tx, digest string) (string, error) {
	var first int64
	var kind string
	err := tx.QueryRow(ctx, `select number, kind from policy_activation where tenant_id = $1 and digest = $2 order by number limit 1`,
		tx.Tenant(), digest).Scan(&first, &kind)
	if err != nil {
		return "", err
	}
	if kind == "rollback" {
		return "", ErrNoEarlier // only the starter bundle is gone back to before anybody has activated it
	}
	var earlier string
	err = tx.QueryRow(ctx, `select digest from policy_activation where tenant_id = $1 and number < $2 order by number desc limit 1`,
		tx.Tenant(), first).Scan(&earlier)
	if errors.Is(err, db.ErrNoRows) {
		if earlier = Starter().Digest(); earlier == digest {
			return "", ErrNoEarlier
		}
		return earlier, nil
	}
	return earlier, err
}

// insertActivation makes a revision the active one, unless another activation
// came between.
func insertActivation(ctx context.Context, tx *db.Tx, a Activation) error {
	n, err := tx.Exec(ctx, `insert into policy_activation (tenant_id, number, digest, kind, reason, activated_by, activated_at)
		values ($1, $2, $3, $4, $5, $6, $7) on conflict (tenant_id, number) do nothing`,
		tx.Tenant(), a.Number, a.Digest, a.Kind, a.Reason, a.By, a.At)
	if err == nil && n == 0 {
		return ErrRaced
	}
	return err
}

// listActivations are the latest activations, the newest first.
func listActivations(ctx context.Context, tx *db.Tx, limit int) ([]Activation, error) {
	return db.All(ctx, tx, scanActivation, `select `+activationColumns+` from policy_activation
		where tenant_id = $1 order by number desc limit $2`, tx.Tenant(), limit)
}
