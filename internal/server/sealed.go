package server

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/edge"
	"estover.dev/internal/guard"
	"estover.dev/internal/seal"
	"estover.dev/internal/seal/source"
	"estover.dev/internal/vault"
)

// sealPath is where a server says whether it waits for shares of its root key,
// and takes them.
const sealPath = "/v1/seal"

// errSealed is what a server answers that has no root key yet.
var errSealed = &estover.Error{Kind: estover.Unavailable, Code: "sealed", Detail: "The server is sealed: people have to put its root key together. Whoever has a share gives it with: estover unseal"}

// openKeys opens the chain of keys. Where people put the root key together the
// server's address answers meanwhile, with that and nothing else.
func (s *Server) openKeys(ctx context.Context) error {
	shares := source.NewShares()
	defer shares.Close()
	var sources []seal.Source
	waits := false
	for i, uri := range append([]string{s.config.RootKey}, s.config.AlsoRoot...) {
		src, err := source.Parse(uri, s.config.Database, shares)
		if err != nil {
			return fmt.Errorf("%s: %w", map[bool]string{true: "--root-key", false: "--also-root-key"}[i == 0], err)
		}
		_, together := src.(source.Together)
		sources, waits = append(sources, src), waits || together
	}
	if waits {
		stop, err := s.listenSealed(shares)
		if err != nil {
			return err
		}
		defer stop()
		s.logger.Info("the server is sealed, and waits for shares of its root key", "address", s.config.Listen, "command", "estover unseal")
	}
	var err error
	if s.sealer, err = seal.Open(ctx, s.db, sources[0], sources[1:]...); err != nil {
		return fmt.Errorf("opening the keys: %w", err)
	}
	return nil
}

// listenSealed answers at the server's address until it is stopped.
func (s *Server) listenSealed(shares *source.Shares) (stop func(), err error) {
	door := s.sealedDoor(shares)
	var servers []*http.Server
	stop = func() {
		// The answer to the last share leaves before the address is given up.
		ctx, cancel := context.WithTimeout(context.Background(), stopTime)
		defer cancel()
		for _, server := range servers {
			if server.Shutdown(ctx) != nil {
				_ = server.Close()
			}
		}
	}
	for _, at := range []struct {
		flag, address string
		handler       http.Handler
	}{{"--listen", s.config.Listen, s.sealedHandler(shares, door)}, {"--vault-listen", s.config.Vault, door}} {
		if at.address == "" {
			continue
		}
		l, err := net.Listen("tcp", at.address)
		if err != nil {
			stop()
			return nil, fmt.Errorf("%s: %w", at.flag, err)
		}
		if !s.config.Plain {
			config, _, err := serverTLS(s.config)
			if err != nil {
				_ = l.Close()
				stop()
				return nil, err
			}
			l = tls.NewListener(l, config)
		}
		server := edge.NewServer(at.handler, s.logger)
		servers = append(servers, server)
		go func() { _ = server.Serve(l) }()
	}
	return stop, nil
}

// sealedDoor is the door for clients of Vault meanwhile.
func (s *Server) sealedDoor(shares *source.Shares) http.Handler {
	as := func(p source.Progress) vault.Unsealing {
		return vault.Unsealing{Sealed: p.Sealed, Given: p.Given, Needed: p.Needed, Set: p.Set}
	}
	return &vault.Sealed{
		Progress: func() vault.Unsealing { return as(shares.Progress()) },
		Give: func(share string) (vault.Unsealing, error) {
			p, err := shares.Give(share)
			return as(p), err
		},
		Forget: func() vault.Unsealing { return as(shares.Forget()) }, Storage: string(s.db.Engine()), Now: s.db.Now,
	}
}

func (s *Server) sealedHandler(shares *source.Shares, door http.Handler) http.Handler {
	base := ""
	if u, err := url.Parse(s.config.Issuer); err == nil {
		base = u.Path
	}
	mux := http.NewServeMux()
	say := func(w http.ResponseWriter, p source.Progress, err error) {
		if err != nil {
			edge.WriteProblem(w, edge.ProblemOf(err, ""))
			return
		}
		writeSeal(w, p)
	}
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	mux.HandleFunc("GET "+sealPath, func(w http.ResponseWriter, _ *http.Request) { say(w, shares.Progress(), nil) })
	mux.HandleFunc("POST "+sealPath+"/shares", func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, controlBody))
		var in struct {
			Share string `json:"share"`
		}
		if err != nil || json.Unmarshal(b, &in) != nil {
			say(w, source.Progress{}, source.ErrShare.With(`Send one share as JSON: {"share": "estover-share-1 …"}`))
			return
		}
		p, err := shares.Give(in.Share)
		say(w, p, err)
	})
	mux.HandleFunc("DELETE "+sealPath+"/shares", func(w http.ResponseWriter, _ *http.Request) { say(w, shares.Forget(), nil) })
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { edge.WriteProblem(w, edge.ProblemOf(errSealed, "")) })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if at, tenant, ok := vault.Matches(r.URL.Path, base); ok {
			door.ServeHTTP(w, r.WithContext(vault.Below(r.Context(), at, tenant)))
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// writeSeal says how far the unsealing is.
func writeSeal(w http.ResponseWriter, p source.Progress) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(p)
}

// roots are the root keys of the server, for whoever runs it: administrators of
// the default tenant.
type roots struct{ s *Server }

// errRootsElsewhere is returned to the people of other tenants.
var errRootsElsewhere = &estover.Error{Kind: estover.Denied, Code: "installation_only", Detail: "Root keys are those of the whole installation, which the people of the organisation default look after."}

func installation(c estover.Caller) error {
	if c.Tenant != estover.DefaultTenant {
		return errRootsElsewhere
	}
	return nil
}

// List gives the registered root keys.
func (r roots) List(ctx context.Context, c estover.Caller) ([]seal.Root, error) {
	if err := r.s.guard.Read(ctx, c, guard.Op{Action: "root_key.list"}, func(*db.Tx) error { return installation(c) }); err != nil {
		return nil, err
	}
	return r.s.sealer.Roots(ctx)
}

// errRootUnnamed is returned for a source that the server was not started with.
var errRootUnnamed = &estover.Error{Kind: estover.Denied, Code: "root_key_unnamed", Detail: "A root key is registered from a source that whoever starts the server has named, since it is a file, a device or a server that it reaches. Start it with --may-root-key and this source."}

// Add registers a root key from another source, beside those that there are: one
// of those that the server was started with. Otherwise an administrator, who need
// not be who runs the machine, could have it read files and load libraries.
func (r roots) Add(ctx context.Context, c estover.Caller, uri string) (id string, err error) {
	var src seal.Source
	var invalid error = errRootUnnamed
	if slices.Contains(r.s.config.MayRoot, uri) {
		src, invalid = source.Parse(uri, r.s.config.Database, nil)
	}
	kind := ""
	switch {
	case src != nil:
		kind = src.Kind()
	case invalid != errRootUnnamed:
		invalid = seal.ErrRoot.With("%v", invalid)
	}
	op := guard.Op{Action: "root_key.add", Effect: guard.Manages, Detail: map[string]any{"kind": kind}}
	// Nothing is made at the source for somebody who may not.
	decision, err := r.s.guard.Admit(ctx, c, op)
	if err != nil {
		return "", err
	}
	var a *seal.Addition
	if invalid == nil {
		if invalid = installation(c); invalid == nil {
			a, invalid = r.s.sealer.PrepareRoot(ctx, src)
		}
	}
	err = r.s.guard.Act(ctx, c, op, decision, func(tx *guard.Tx) error {
		if invalid != nil {
			return invalid
		}
		tx.Note("root", a.ID)
		return a.Store(ctx, tx.Tx)
	})
	if err != nil {
		return "", err
	}
	r.s.sealer.Added(a)
	return a.ID, nil
}

// Remove takes a root key's way in away.
func (r roots) Remove(ctx context.Context, c estover.Caller, id string) error {
	op := guard.Op{Action: "root_key.remove", Effect: guard.Deletes, Detail: map[string]any{"root": id}}
	last := r.s.sealer.Removable(id)
	err := r.s.guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		if err := installation(c); err != nil {
			return err
		}
		if last != nil {
			return last
		}
		return seal.RemoveRoot(ctx, tx.Tx, id)
	})
	if err == nil {
		r.s.sealer.Removed(id)
	}
	return err
}

// Rotate makes the next key-encryption key and wraps every data key under it.
func (r roots) Rotate(ctx context.Context, c estover.Caller) error {
	err := r.s.guard.Do(ctx, c, guard.Op{Action: "root_key.rotate", Effect: guard.Manages}, func(*guard.Tx) error { return installation(c) })
	if err != nil {
		return err
	}
	return r.s.sealer.RotateKEK(ctx)
}
