package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// A load is what one turn did.
type load struct {
	requests int64
	failed   int64  // answers of 500 and above
	failure  string // the first of them
	elapsed  time.Duration
	cpu      time.Duration // of the server
}

func (l load) rate() float64 { return float64(l.requests) / l.elapsed.Seconds() }

// perRequest is the server's CPU time for one request, in microseconds.
func (l load) perRequest() float64 { return float64(l.cpu.Microseconds()) / float64(l.requests) }

// drive sends requests over so many connections for so long, each connection
// one request after the other. next gives the bytes of a whole request; the
// client is as thin as it can be, since it shares the machine with the server.
// The connections are open before the turn begins.
// Any answer other than 2xx and 5xx ends the turn with an error.
func drive(ctx context.Context, p *process, connections int, lasting time.Duration, next func() []byte) (load, error) {
	var l load
	var requests, failed atomic.Int64
	var mu sync.Mutex
	var first error
	fail := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		if first == nil {
			first = err
		}
	}
	conns := make([]net.Conn, connections)
	for i := range conns {
		conn, err := p.connect(ctx)
		if err != nil {
			return l, err
		}
		defer conn.Close()
		conns[i] = conn
	}
	ctx, cancel := context.WithTimeout(ctx, lasting)
	defer cancel()
	before, err := p.cpu()
	if err != nil {
		return l, err
	}
	start := time.Now()
	var wg sync.WaitGroup
	for _, conn := range conns {
		wg.Go(func() {
			in := bufio.NewReaderSize(conn, 16<<10)
			for ctx.Err() == nil {
				if _, err := conn.Write(next()); err != nil {
					fail(err)
					return
				}
				status, body, err := readAnswer(in)
				switch {
				case err != nil:
					fail(err)
					return
				case status >= 500:
					if failed.Add(1) == 1 {
						l.failure = string(body)
					}
				case status >= 300:
					fail(fmt.Errorf("the server answered %d: %s", status, body))
					return
				}
				if p.heard != nil {
					if err := p.heard(body); err != nil {
						fail(err)
						return
					}
				}
				requests.Add(1)
			}
		})
	}
	wg.Wait()
	l.elapsed = time.Since(start)
	after, err := p.cpu()
	l.requests, l.failed, l.cpu = requests.Load(), failed.Load(), after-before
	if err = errors.Join(err, first); err == nil && l.requests == 0 {
		err = errors.New("no request was answered")
	}
	return l, err
}

// ownCPU is the processor time that this process has used so far.
func ownCPU() (time.Duration, error) { return usedBy(syscall.RUSAGE_SELF) }

func usedBy(who int) (time.Duration, error) {
	var u syscall.Rusage
	err := syscall.Getrusage(who, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), err
}

// each is the CPU time of a call in this process, in microseconds: the time of the
// clock would be somebody else's too.
func each(lasting time.Duration, call func() error) (float64, error) {
	used := func() (time.Duration, error) { return usedBy(syscall.RUSAGE_THREAD) }
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := used()
	if err != nil {
		return 0, err
	}
	n := 0
	for began := time.Now(); time.Since(began) < lasting; n++ {
		if err := call(); err != nil {
			return 0, err
		}
	}
	after, err := used()
	return float64((after - before).Nanoseconds()) / float64(n) / 1000, err
}

var noRequest = &http.Request{Method: http.MethodPost}

func readAnswer(in *bufio.Reader) (int, []byte, error) {
	res, err := http.ReadResponse(in, noRequest)
	if err != nil {
		return 0, nil, err
	}
	body, err := io.ReadAll(res.Body)
	return res.StatusCode, body, err
}

// request writes an HTTP request out in full.
func request(method, path, host string, header map[string]string, body []byte) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\n", method, path, host)
	for k, v := range header {
		fmt.Fprintf(&b, "%s: %s\r\n", k, v)
	}
	if body != nil {
		fmt.Fprintf(&b, "Content-Length: %d\r\n", len(body))
	}
	b.WriteString("\r\n")
	b.Write(body)
	return b.Bytes()
}

// always gives the same request every time.
func always(req []byte) func() []byte { return func() []byte { return req } }

// versus has subject and peer take turns and compares their CPU time for a
// request. The first turn of each only warms up.
func (b *Bench) versus(ctx context.Context, subject, peer *process, connections int, mine, theirs func() []byte) (ratio, micros float64, err error) {
	var ratios, own []float64
	for round := range b.Rounds + 1 {
		turn := b.For
		if round == 0 {
			turn = b.For / 4
		}
		s, err := drive(ctx, subject, connections, turn, mine)
		if err != nil {
			return 0, 0, fmt.Errorf("driving Estover: %w", err)
		}
		p, err := drive(ctx, peer, connections, turn, theirs)
		if err != nil {
			return 0, 0, fmt.Errorf("driving the peer: %w", err)
		}
		if s.failed+p.failed > 0 {
			return 0, 0, fmt.Errorf("%d answers of Estover and %d of the peer were errors of the server: %s", s.failed, p.failed, s.failure+p.failure)
		}
		if round > 0 {
			ratios, own = append(ratios, s.perRequest()/p.perRequest()), append(own, s.perRequest())
		}
	}
	return median(ratios), median(own), nil
}
