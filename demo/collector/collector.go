// Package collector is a host of somebody who hopes to be sent other people's
// data: it takes whatever comes and keeps it.
package collector

import (
	"io"
	"net/http"
	"slices"
	"sync"
)

// An Arrival is a request that came in.
type Arrival struct {
	Method, Path string
	Header       http.Header
	Body         []byte // at most 1 MiB of it
}

// A Collector keeps what it is sent. It is an [http.Handler].
type Collector struct {
	mu  sync.Mutex
	got []Arrival
}

// ServeHTTP keeps the request and says thanks.
func (c *Collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20)) // what has come is kept
	c.mu.Lock()
	c.got = append(c.got, Arrival{r.Method, r.URL.Path, r.Header.Clone(), body})
	c.mu.Unlock()
	_, _ = io.WriteString(w, "Thank you.\n")
}

// Arrivals lists what has come so far.
func (c *Collector) Arrivals() []Arrival {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.got)
}
