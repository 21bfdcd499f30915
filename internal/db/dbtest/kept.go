package dbtest

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"sync"

	"github.com/jackc/pgx/v5/stdlib"
)

// keptDriver is the driver by which tests reach PostgreSQL. Whoever closes a
// connection of it leaves it for the next who opens one to the same URL: a process of
// the server's that was just started has to learn what the tables are like and to plan
// each statement anew, which is more work than most tests have for it.
const keptDriver = "pgx, kept"

func init() { sql.Register(keptDriver, kept) }

var kept = &keeper{idle: map[string][]*connection{}}

// A keeper holds the connections that nobody has, by URL.
type keeper struct {
	mu   sync.Mutex
	idle map[string][]*connection
}

// Open is OpenConnector for those that have no context.
func (k *keeper) Open(url string) (driver.Conn, error) {
	return (&connector{k, url}).Connect(context.Background())
}

// OpenConnector makes no connection yet.
func (k *keeper) OpenConnector(url string) (driver.Connector, error) { return &connector{k, url}, nil }

type connector struct {
	keeper *keeper
	url    string
}

func (c *connector) Driver() driver.Driver { return c.keeper }

func (c *connector) Connect(ctx context.Context) (driver.Conn, error) {
	for {
		conn := c.keeper.take(c.url)
		if conn == nil {
			break
		}
		if conn.ResetSession(ctx) == nil {
			return conn, nil
		}
		_ = conn.Conn.Close()
	}
	base, err := stdlib.GetDefaultDriver().(driver.DriverContext).OpenConnector(c.url)
	if err != nil {
		return nil, err
	}
	conn, err := base.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &connection{conn.(*stdlib.Conn), c}, nil
}

func (k *keeper) take(url string) *connection {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := len(k.idle[url])
	if n == 0 {
		return nil
	}
	c := k.idle[url][n-1]
	k.idle[url] = k.idle[url][:n-1]
	return c
}

// held is how many connections to the URL nobody has.
func (k *keeper) held(url string) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.idle[url])
}

// drop closes them.
func (k *keeper) drop(url string) {
	for c := k.take(url); c != nil; c = k.take(url) {
		_ = c.Conn.Close()
	}
}

// A connection goes back to its keeper when it is closed, if it is in order.
type connection struct {
	*stdlib.Conn
	from *connector
}

func (c *connection) Close() error {
	raw := c.Conn.Conn()
	if raw.IsClosed() || raw.PgConn().TxStatus() != 'I' {
		return c.Conn.Close()
	}
	k := c.from.keeper
	k.mu.Lock()
	defer k.mu.Unlock()
	k.idle[c.from.url] = append(k.idle[c.from.url], c)
	return nil
}
