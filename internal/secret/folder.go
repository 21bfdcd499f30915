package secret

import (
	"cmp"
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// ErrInUse is returned when secrets are to be removed together of which one may
// be sent somewhere.
var ErrInUse = &estover.Error{Kind: estover.Conflict, Code: "secret_in_use", Detail: "A secret may be sent somewhere, so it is not removed along with others."}

// Folder gives the names directly below a prefix that ends with a slash, in
// their order. A folder has a slash at its end; a name may be a secret and a
// folder.
func (s *Secrets) Folder(ctx context.Context, c estover.Caller, prefix string) ([]string, error) {
	names := map[string]bool{}
	err := s.guard.Read(ctx, c, guard.Op{Action: "secret.list", Target: target(prefix)}, func(tx *db.Tx) error {
		return pathsBelow(ctx, tx, prefix, func(path string) {
			name, _, folder := strings.Cut(path[len(prefix):], "/")
			if folder {
				name += "/"
			}
			names[name] = true
		})
	})
	if err != nil {
		return nil, err
	}
	return slices.Sorted(maps.Keys(names)), nil
}

// Written reports whether a secret has a version, for whoever decides whether to
// write it is to make or to change it, and for nobody who has not been decided on.
func (s *Secrets) Written(ctx context.Context, tenant estover.TenantID, path string) (bool, error) {
	h, err := s.held(ctx, tenant, path)
	if estover.KindOf(err) == estover.NotFound {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return h.CurrentVersion > 0, nil
}

// RemoveBelow removes all secrets below a prefix, each as [Secrets.Remove] does.
// It removes none if one of them may be sent somewhere: somebody needs it.
func (s *Secrets) RemoveBelow(ctx context.Context, c estover.Caller, prefix string) error {
	var paths []string
	err := s.guard.DB().View(ctx, c.Tenant, func(tx *db.Tx) error {
		paths = nil
		return pathsBelow(ctx, tx, prefix, func(path string) { paths = append(paths, path) })
	})
	if err != nil {
		return err
	}
	for _, path := range paths {
		x, err := s.Describe(ctx, c.Tenant, path)
		if err != nil && estover.KindOf(err) != estover.NotFound {
			return err
		}
		if err == nil && len(x.Destinations) > 0 {
			return ErrInUse.With("The secret %s may be sent to %s, so it is not removed along with others. Take its destinations away, or remove it by itself.", path, x.Destinations[0])
		}
	}
	for _, path := range paths {
		if err := s.Remove(ctx, c, path); err != nil && estover.KindOf(err) != estover.NotFound {
			return err
		}
	}
	return nil
}

// Subkeys are the names in a version, the current one if n is 0, down to a depth,
// 0 for all: an object of JSON with null in the place of every value.
func (s *Secrets) Subkeys(ctx context.Context, c estover.Caller, path string, n, depth int64) (x Secret, v Version, keys json.RawMessage, err error) {
	r, err := s.read(ctx, c.Tenant, path, n)
	var at *Version
	if err == nil {
		at, err = r.usable(cmp.Or(n, r.CurrentVersion))
	}
	done := s.guard.Read(ctx, c, guard.Op{Action: "secret.list", Target: target(path)}, func(*db.Tx) error { return err })
	if done != nil {
		return x, v, nil, done
	}
	err = s.open(c.Tenant, r.ID, at, func(plain []byte) (err error) {
		defer clear(plain)
		keys, err = bare(plain, depth)
		return err
	})
	return r.Secret, at.at(r.seen), keys, err
}

// bare is an object without its values.
func bare(object []byte, depth int64) ([]byte, error) {
	list, err := membersOf(object)
	if err != nil {
		return nil, err
	}
	out := []byte{'{'}
	for i, m := range list {
		if i > 0 {
			out = append(out, ',')
		}
		out, _ = jsontext.AppendQuote(out, m.name)
		out = append(out, ':')
		if m.value[0] != '{' || string(m.value) == "{}" || depth == 1 {
			out = append(out, "null"...)
			continue
		}
		inner, err := bare(m.value, max(depth-1, 0))
		if err != nil {
			return nil, err
		}
		out = append(out, inner...)
	}
	return append(out, '}'), nil
}
