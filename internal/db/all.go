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
