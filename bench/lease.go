package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"estover.dev/internal/db"
	"estover.dev/internal/db/scratch"
)

// The bars of credentials at a PostgreSQL.
const (
	issueLimit  = 2000.0 // µs of the server's own CPU for a user that is made
	revokeLimit = 1000.0 // users a second that are taken away
)

// leases has database users be made at a PostgreSQL whose commits reach the disk,
// each by a lease of its own that is handed out, and then all of them be taken
// away at once. What the database itself computes is not counted in.
func leases(ctx context.Context, b *Bench) ([]Row, error) {
	in, super, stop, err := b.crm(ctx)
	if err != nil {
		return nil, err
	}
	defer stop()
	next := always(request("POST", "/v1/leases", in.addr, map[string]string{
		"Content-Type": "application/json", "Authorization": "Bearer " + in.token,
	}, []byte(`{"role":"reader","purpose":"bench"}`)))
	signature, err := oneSignature(b.For / 4)
	if err != nil {
		return nil, err
	}
	var micros, rates, times []float64
	for round := range b.Rounds + 1 {
		l, err := drive(ctx, in.process, 16, b.For, next)
		if err != nil {
			return nil, err
		}
		if l.failed > 0 {
			return nil, fmt.Errorf("%d leases were not issued: %s", l.failed, l.failure)
		}
		rate, err := revokeAll(ctx, in, super)
		if err != nil {
			return nil, err
		}
		if round > 0 {
			micros, rates, times = append(micros, l.perRequest()), append(rates, rate), append(times, l.rate())
		}
	}
	return []Row{
		{
			Name: "lease-postgres", Ratio: median(micros) / issueLimit, Target: 1, Better: "lower",
			Against: fmt.Sprintf("2 ms (a bare ES256 signature takes %.1f µs here; %.0f users/s)", signature, median(times)), Value: median(micros), Unit: "µs of CPU a user",
		},
		{
			Name: "revoke-postgres", Ratio: median(rates) / revokeLimit, Target: 1, Better: "higher",
			Against: "1000 users/s", Value: median(rates), Unit: "users/s from the request until the last is gone",
		},
	}, nil
}

// crm is an installation that makes users of a PostgreSQL whose commits reach the
// disk, by the role reader, and a connection there of the one who may do
// everything.
func (b *Bench) crm(ctx context.Context) (in *installation, super *pgx.Conn, stop func(), err error) {
	var stops []func()
	stop = func() {
		for _, s := range slices.Backward(stops) {
			s()
		}
	}
	defer func() {
		if err != nil {
			stop()
		}
	}()
	pg, err := scratch.Start(scratch.Options{Durable: true, Listen: true})
	if err != nil {
		return nil, nil, stop, err
	}
	stops = append(stops, pg.Stop)
	if super, err = pgx.Connect(ctx, pg.URL); err != nil {
		return nil, nil, stop, err
	}
	stops = append(stops, func() { _ = super.Close(context.WithoutCancel(ctx)) })
	if _, err := super.PgConn().Exec(ctx, `create role readers; create role estover login createrole in role pg_signal_backend, pg_read_all_stats password 'bench'`).ReadAll(); err != nil {
		return nil, nil, stop, err
	}
	if in, err = b.install(ctx, ""); err != nil {
		return nil, nil, stop, err
	}
	stops = append(stops, func() { in.stop() })
	_, err = in.estover(ctx, "bench", "secret", "engine", "enable", "postgres", "crm", "--address", pg.Address+"/postgres",
		"--admin", "targets/crm", "--admin-user", "estover", "--admin-password-file", "-", "--keep-root")
	if err != nil {
		return nil, nil, stop, err
	}
	_, err = in.estover(ctx, "", "secret", "role", "put", "reader", "--target", "crm", "--template", "groups=readers", "--delivery", "plaintext", "--per-minute", "100000")
	return in, super, stop, err
}

// What an installation with many leases is held against.
const (
	manyLeases      = 100_000
	manyLeasesLimit = 120 << 20 // bytes resident
)

// crowd asks what a hundred thousand leases cost a server that has them: its start
// and its memory while they are live, and its start when all of them are due at
// once. One is made at a PostgreSQL, and the others are rows like it; the users of
// these have never been there, which to the target is the same work.
func crowd(ctx context.Context, b *Bench) ([]Row, error) {
	in, _, stop, err := b.crm(ctx)
	if err != nil {
		return nil, err
	}
	defer stop()
	var first struct {
		ID string `json:"id"`
	}
	if err := in.call(ctx, http.MethodPost, "/v1/leases", map[string]any{"role": "reader", "purpose": "bench"}, &first); err != nil {
		return nil, err
	}
	in.stop()
	if err := in.sql(ctx, `insert into lease (tenant_id, id, role, role_id, target_id, name, template, resource_id, delivery, state, trial, session_id, agent_id,
			holder, token_id, created_at, expires_at, expires_by, max_at, create_by, create_done)
		with recursive n(i) as (select 2 union all select i + 1 from n where i < $1)
		select l.tenant_id, l.id || '_' || i, l.role, l.role_id, l.target_id, l.name || '_' || i, l.template, l.resource_id, l.delivery, l.state, l.trial,
			'ses_' || (i % 1000), 'agt_' || (i % 500), l.holder, l.token_id, l.created_at, l.created_at + 86400000000 + i * 1000, l.expires_by, l.created_at + 86400000000 + i * 1000,
			l.create_by, l.create_done
		from lease l, n where l.id = $2`, manyLeases, first.ID); err != nil {
		return nil, err
	}
	starts := func() ([]float64, error) {
		var seconds []float64
		for range b.Rounds {
			began := time.Now()
			if err := in.start(ctx); err != nil {
				return nil, err
			}
			seconds = append(seconds, in.answered.Sub(began).Seconds())
			in.stop()
		}
		return seconds, nil
	}
	live, err := starts()
	if err != nil {
		return nil, err
	}
	if err := in.start(ctx); err != nil {
		return nil, err
	}
	select {
	case <-time.After(idleFor):
	case <-ctx.Done():
	}
	resident, err := in.resident()
	in.stop()
	if err != nil {
		return nil, err
	}
	if err := in.sql(ctx, `update lease set expires_at = created_at + 1 where state = 'live'`); err != nil {
		return nil, err
	}
	due, err := starts()
	if err != nil {
		return nil, err
	}
	start := func(name, which string, seconds []float64) Row {
		return Row{
			Name: name, Ratio: median(seconds) / startLimit.Seconds(), Target: 1, Better: "lower",
			Against: "half a second, with 100,000 leases that are " + which, Value: median(seconds) * 1000, Unit: "ms to the first answer",
		}
	}
	return []Row{
		start("leases-100000-start", "live", live),
		{
			Name: "leases-100000-memory", Ratio: float64(resident) / manyLeasesLimit, Target: 1, Better: "lower",
			Against: "120 MiB, with 100,000 live leases", Value: float64(resident) / (1 << 20), Unit: "MiB resident",
		},
		start("leases-100000-due", "due", due),
	}, nil
}

// sql runs a statement in the database of an installation that is stopped.
func (in *installation) sql(ctx context.Context, statement string, args ...any) error {
	d, err := db.Open(ctx, "sqlite:"+filepath.Join(in.dir, "estover.db"), db.Options{})
	if err != nil {
		return err
	}
	err = d.Do(ctx, "", func(tx *db.Tx) error {
		n, err := tx.Exec(ctx, statement, args...)
		if err == nil && n == 0 {
			err = errors.New("the statement has changed nothing")
		}
		return err
	})
	return errors.Join(err, d.Close())
}

// revokeAll ends all leases and gives how many users went in a second, from the
// request until the database has none of them any more.
func revokeAll(ctx context.Context, in *installation, super *pgx.Conn) (float64, error) {
	count := func() (n int, err error) {
		err = super.QueryRow(ctx, `select count(*) from pg_roles where rolname like 'e\_%'`).Scan(&n)
		return n, err
	}
	users, err := count()
	if err != nil {
		return 0, err
	}
	begun := time.Now()
	var out json.RawMessage
	if err := in.call(ctx, http.MethodPost, "/v1/leases/revoke", map[string]any{"all": true, "reason": "bench"}, &out); err != nil {
		return 0, err
	}
	for left := users; left > 0; {
		if time.Since(begun) > 2*time.Minute {
			return 0, fmt.Errorf("%d of %d users are not gone after two minutes", left, users)
		}
		time.Sleep(2 * time.Millisecond)
		if left, err = count(); err != nil {
			return 0, err
		}
	}
	return float64(users) / time.Since(begun).Seconds(), nil
}
