package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// open is how many streams are held open at once: each takes two files of the
// server's, of which a process may commonly have 20,000.
const open = 4000

// settled is how long a server is left alone with them before its memory is looked at.
const settled = 10 * time.Second

// streams compares the memory that an open stream of events takes in which nothing
// happens, by way of the gateway with every duty, with what it takes in a bare
// httputil.ReverseProxy.
func streams(ctx context.Context, b *Bench) ([]Row, error) {
	up, err := b.startPeer(ctx, "upstream")
	if err != nil {
		return nil, err
	}
	defer up.stop()
	proxy, err := b.startPeer(ctx, "proxy", "http://"+up.addr)
	if err != nil {
		return nil, err
	}
	defer proxy.stop()
	in, err := b.install(ctx, "")
	if err != nil {
		return nil, err
	}
	defer in.stop()
	at := target{"events", "http", "strict", "confidential", up.addr, ""}
	if err := in.apply(ctx, upstreams([]target{at})); err != nil {
		return nil, err
	}
	if _, err := in.estover(ctx, "a key that no answer of the upstream holds", "secret", "put", at.name+"/key"); err != nil {
		return nil, err
	}
	secret, err := in.secret(ctx, "bot")
	if err != nil {
		return nil, err
	}
	token, err := in.ask(ctx, secret, "grant_type", "client_credentials", "resource", at.url())
	if err != nil {
		return nil, err
	}
	mine := request("POST", "/u/"+at.name+"/events", in.addr, map[string]string{"Authorization": "Bearer " + token.Access}, []byte{})
	theirs := request("POST", "/events", proxy.addr, map[string]string{"Authorization": "Bearer a key"}, []byte{})
	var ratios, own []float64
	var before, beforePeer int64
	for round := range b.Rounds + 1 { // the first one, with few of them, warms up
		n := open
		if round == 0 {
			n = open / 20
		}
		with, err := hold(ctx, in.process, mine, n)
		if err != nil {
			return nil, fmt.Errorf("by way of Estover: %w", err)
		}
		withPeer, err := hold(ctx, proxy, theirs, n)
		if err != nil {
			return nil, fmt.Errorf("by way of the peer: %w", err)
		}
		if round == 0 {
			if before, err = in.resident(); err != nil {
				return nil, err
			}
			if beforePeer, err = proxy.resident(); err != nil {
				return nil, err
			}
			continue
		}
		ratios, own = append(ratios, float64(with-before)/float64(withPeer-beforePeer)), append(own, float64(with-before)/open/1024)
	}
	return []Row{{
		Name: "streams-memory", Ratio: median(ratios), Target: 2, Better: "lower",
		Against: "a bare httputil.ReverseProxy", Value: median(own), Unit: fmt.Sprintf("KiB for each of %d open streams", open),
	}}, nil
}

// hold opens so many streams, is how much memory the server uses then, in bytes, and
// closes them.
func hold(ctx context.Context, p *process, req []byte, n int) (int64, error) {
	conns := make([]net.Conn, n)
	defer func() {
		for _, c := range conns {
			if c != nil {
				_ = c.Close()
			}
		}
	}()
	errs := make([]error, 64)
	var wg sync.WaitGroup
	for worker := range errs {
		wg.Go(func() {
			for i := worker; i < n && errs[worker] == nil; i += len(errs) {
				conns[i], errs[worker] = follow(ctx, p, req)
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return 0, err
	}
	select {
	case <-time.After(settled):
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	return p.resident()
}

// follow opens a stream and hears its first event.
func follow(ctx context.Context, p *process, req []byte) (net.Conn, error) {
	conn, err := p.connect(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write(req); err != nil {
		return conn, err
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), noRequest)
	if err != nil {
		return conn, err
	}
	first := make([]byte, len(firstEvent))
	if _, err := io.ReadFull(res.Body, first); err != nil || string(first) != firstEvent {
		return conn, fmt.Errorf("the answer is %s, and its first event %q: %w", res.Status, first, err)
	}
	return conn, nil
}
