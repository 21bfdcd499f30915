package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"

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
	pg, err := scratch.Start(scratch.Options{Durable: true, Listen: true})
	if err != nil {
		return nil, err
	}
	defer pg.Stop()
	super, err := pgx.Connect(ctx, pg.URL)
	if err != nil {
		return nil, err
	}
	defer super.Close(context.WithoutCancel(ctx))
	if _, err := super.PgConn().Exec(ctx, `create role readers; create role estover login createrole in role pg_signal_backend, pg_read_all_stats password 'bench'`).ReadAll(); err != nil {
		return nil, err
	}
	in, err := b.install(ctx, "")
	if err != nil {
		return nil, err
	}
	defer in.stop()
	_, err = in.estover(ctx, "bench", "secret", "engine", "enable", "postgres", "crm", "--address", pg.Address+"/postgres",
		"--admin", "targets/crm", "--admin-user", "estover", "--admin-password-file", "-")
	if err != nil {
		return nil, err
	}
	_, err = in.estover(ctx, "", "secret", "role", "put", "reader", "--target", "crm", "--template", "groups=readers", "--delivery", "plaintext", "--per-minute", "100000")
	if err != nil {
		return nil, err
	}
	next := always(request("POST", "/v1/leases", in.addr, map[string]string{
		"Content-Type": "application/json", "Authorization": "Bearer " + in.token,
	}, []byte(`{"role":"reader","purpose":"bench"}`)))
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
			Against: fmt.Sprintf("2 ms (a bare ES256 signature takes %.1f µs here; %.0f users/s)", signature(), median(times)), Value: median(micros), Unit: "µs of CPU a user",
		},
		{
			Name: "revoke-postgres", Ratio: median(rates) / revokeLimit, Target: 1, Better: "higher",
			Against: "1000 users/s", Value: median(rates), Unit: "users/s from the request until the last is gone",
		},
	}, nil
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

// signature is the time of one bare ES256 signature on this machine, in
// microseconds, so that figures of different machines can be compared.
func signature() float64 {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return 0
	}
	sum := sha256.Sum256([]byte("bench"))
	const n = 2000
	begun := time.Now()
	for range n {
		if _, err := ecdsa.SignASN1(rand.Reader, key, sum[:]); err != nil {
			return 0
		}
	}
	return float64(time.Since(begun).Microseconds()) / n
}
