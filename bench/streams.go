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
const settled = 15 * time.Second

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
	own, err := hold(ctx, in.process, mine)
	if err != nil {
		return nil, fmt.Errorf("by way of Estover: %w", err)
	}
	peers, err := hold(ctx, proxy, theirs)
	if err != nil {
		return nil, fmt.Errorf("by way of the peer: %w", err)
	}
	return []Row{{
		Name: "streams-memory", Ratio: own / peers, Target: 2, Better: "lower",
		Against: "a bare httputil.ReverseProxy", Value: own / 1024, Unit: fmt.Sprintf("KiB for each of %d open streams", open),
	}}, nil
}

// hold opens the streams, and is how many bytes of memory each takes. They are closed
// afterwards.
func hold(ctx context.Context, p *process, req []byte) (float64, error) {
	before, err := p.resident()
	if err != nil {
		return 0, err
	}
	conns := make([]net.Conn, open)
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
			for i := worker; i < open && errs[worker] == nil; i += len(errs) {
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
	after, err := p.resident()
	return float64(after-before) / open, err
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
