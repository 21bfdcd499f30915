package main

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"estover.dev"
	"estover.dev/internal/access"
	"estover.dev/internal/agent"
	"estover.dev/internal/audit"
	"estover.dev/internal/db"
	"estover.dev/internal/directory"
	"estover.dev/internal/guard"
	"estover.dev/internal/resource"
	"estover.dev/internal/seal"
)

// A house is what an installation stands on, opened in this process: the
// database with its keys, the log, and the door, which lets everything
// through.
type house struct {
	db     *db.DB
	log    *audit.Log
	guard  *guard.Guard
	sealer *seal.Sealer
}

// allowed is a decider that has no policy.
type allowed struct{}

func (allowed) Decide(context.Context, estover.Caller, guard.Op) (guard.Decision, error) {
	return guard.Decision{Allow: true, Engine: "kernel"}, nil
}

// us is who fills a database.
var us = estover.Caller{Tenant: estover.DefaultTenant, Subject: estover.System("bench")}

// newHouse makes one in a directory of its own, whose log is signed.
func (b *Bench) newHouse(ctx context.Context) (*house, error) {
	dir, err := os.MkdirTemp(b.Dir, "house-")
	if err != nil {
		return nil, err
	}
	for _, sub := range []string{"data", "keys"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, err
		}
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	return openHouse(ctx, filepath.Join(dir, "data", "estover.db"), filepath.Join(dir, "keys", "root.key"), key)
}

// openHouse opens a SQLite file under the root key of another. Its log is signed by
// the key, or nobody signs it.
func openHouse(ctx context.Context, file, rootKey string, signs crypto.Signer) (*house, error) {
	database := "sqlite:" + file
	root, err := seal.ParseSource("file:"+rootKey, database)
	if err != nil {
		return nil, err
	}
	d, err := db.Open(ctx, database, db.Options{})
	if err != nil {
		return nil, err
	}
	h := &house{db: d}
	if h.sealer, err = seal.Open(ctx, d, root); err == nil {
		err = h.sealer.Prepare(ctx, us.Tenant)
	}
	if err != nil {
		_ = d.Close()
		return nil, err
	}
	o := audit.Options{
		Seal: func(t estover.TenantID, id string, plain []byte) ([]byte, error) {
			return h.sealer.Seal(t, seal.AAD{Class: seal.Audit, ID: id}, plain)
		},
		Open: func(t estover.TenantID, id string, sealed []byte) ([]byte, error) {
			return h.sealer.Open(t, seal.AAD{Class: seal.Audit, ID: id}, sealed)
		},
	}
	if signs != nil {
		o.Key = func(context.Context, estover.TenantID) (crypto.Signer, error) { return signs, nil }
	}
	h.log = audit.Open(d, o)
	h.guard = guard.New(d, h.log, allowed{}, guard.Options{})
	return h, nil
}

// fill adds agents to an installation that is not running, each with a client
// secret and a grant on the resource crm, and writes who they are and their
// secrets to a file: all of it by the packages of the domain, with every event.
func fill(args []string) error {
	ctx := context.Background()
	var first, end int
	if len(args) != 4 {
		return fmt.Errorf("fill needs the data directory, two numbers and a file")
	}
	if _, err := fmt.Sscan(args[1]+" "+args[2], &first, &end); err != nil {
		return err
	}
	h, err := openHouse(ctx, filepath.Join(args[0], "estover.db"), filepath.Join(args[0]+"-keys", "root.key"), nil)
	if err != nil {
		return err
	}
	defer h.db.Close()
	people, resources := directory.New(h.guard, directory.Options{}), resource.New(h.guard)
	agents := agent.New(h.guard, agent.Options{
		Sponsor: people.Sponsor,
		Pepper:  func(t estover.TenantID, value []byte) []byte { return h.sealer.MAC(t, "client secret", value) },
	})
	grants := access.New(h.guard, access.Options{Agent: agents.Grantable, Resource: resources.Grantable})
	alice, err := people.ByName(ctx, us, "alice")
	if err != nil {
		return err
	}
	crm, err := resources.ByName(ctx, us, "crm")
	if err != nil {
		return err
	}
	one := func(i int) (string, error) {
		a, err := agents.Create(ctx, us, agent.Spec{
			Name: fmt.Sprintf("bot-%d", i), Blueprint: "support", Sponsor: alice.ID, Purposes: []string{"support"}, Clearance: estover.Confidential,
		}, agent.Origin{})
		if err != nil {
			return "", err
		}
		secret, _, err := agents.CreateSecret(ctx, us, a.ID, "", 0)
		if err != nil {
			return "", err
		}
		_, err = grants.Put(ctx, us, access.Spec{
			Name: a.Name + "-reads", Agent: a.ID, Resource: crm.ID, Actions: []string{"customer.list", "customer.read"},
			Class: estover.Confidential, Purposes: []string{"support"},
		}, "")
		return a.ID + "\t" + string(secret.Reveal()) + "\n", err
	}
	lines := make([]string, end-first)
	var wg sync.WaitGroup
	failed := make(chan error, 64)
	for worker := range cap(failed) {
		wg.Go(func() {
			for i := worker; i < len(lines); i += cap(failed) {
				var err error
				if lines[i], err = one(first + i); err != nil {
					failed <- err
					return
				}
				if worker == 0 && i%(64*cap(failed)) == 0 { // the log grows along, as it would have
					if err := h.log.Sequence(ctx, us.Tenant); err != nil {
						failed <- err
						return
					}
				}
			}
		})
	}
	wg.Wait()
	close(failed)
	if err := <-failed; err != nil {
		return err
	}
	if err := h.log.Sequence(ctx, us.Tenant); err != nil {
		return err
	}
	return os.WriteFile(args[3], []byte(strings.Join(lines, "")), 0o600)
}
