package db

import "context"

// All runs a statement and gives what scan makes of each row. Without rows the
// list is empty and not nil.
func All[T any](ctx context.Context, tx *Tx, scan func(scan func(...any) error) (T, error), query string, args ...any) ([]T, error) {
	rows, err := tx.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	all, columns := []T{}, rows.Scan
	for rows.Next() {
		one, err := scan(columns)
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	return all, nil
}

// AllOf is [All] of rows that have one column each.
func AllOf[T any](ctx context.Context, tx *Tx, query string, args ...any) ([]T, error) {
	return All(ctx, tx, func(scan func(...any) error) (one T, err error) {
		err = scan(&one)
		return one, err
	}, query, args...)
}

// Exists reports whether a statement answers a row, as one that selects 1. What
// locks the row may stand at its end.
func Exists(ctx context.Context, tx *Tx, query string, args ...any) (bool, error) {
	var one int
	err := tx.QueryRow(ctx, query, args...).Scan(&one)
	if err == ErrNoRows {
		return false, nil
	}
	return err == nil, err
}
