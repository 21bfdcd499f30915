package secret

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"estover.dev"
	"estover.dev/internal/guard"
)

// ErrExpect is returned when a write must say which version it follows, and does
// not.
var ErrExpect = &estover.Error{Kind: estover.Invalid, Code: "secret_needs_expectation", Detail: "This secret is written only by who says which version is to be replaced: `estover secret put --cas N`."}

// A Put says how a version is written.
type Put struct {
	Expect int64 // the current version; 0 if there must be none, [Any] if it does not matter
	Keep   Keep  // how versions are kept where the secret says nothing
	Patch  bool  // what is written is merged into the current version (RFC 7396)
	Make   *Spec // makes the secret if it is not there; nil makes none
}

// A content is what a version holds, ready to be sealed.
type content struct {
	names []string
	plain []byte                    // an object of JSON without blanks
	texts map[string]estover.Secret // by which its values are recognised
	once  bool                      // made for one attempt, and cleared after it
}

// Put makes a version of an object of JSON the current one. Its members are the
// fields, of any type, and stay as they are written.
func (s *Secrets) Put(ctx context.Context, c estover.Caller, path string, object estover.Secret, o Put) (Secret, Version, error) {
	for made := false; ; made = true {
		x, v, err := s.put(ctx, c, path, o, func(r *record) (*content, error) {
			given := object.Reveal()
			if !o.Patch {
				return parse(given)
			}
			current, err := r.usable(r.CurrentVersion)
			if err != nil {
				return nil, err
			}
			var got *content
			var wrong error
			err = s.open(c.Tenant, r.ID, current, func(plain []byte) error {
				defer clear(plain)
				got, wrong = patched(plain, given)
				return nil
			})
			if err == nil {
				err = wrong
			}
			return got, err
		})
		if o.Make == nil || made || !errors.Is(err, ErrNotFound) {
			return x, v, err
		}
		if _, invalid := parse(object.Reveal()); invalid != nil {
			return x, v, invalid
		}
		if _, err := s.Create(ctx, c, *o.Make); err != nil && !errors.Is(err, ErrExists) {
			return x, v, err
		}
	}
}

// Rollback makes the values of an older version those of a new one, without
// anybody seeing them.
func (s *Secrets) Rollback(ctx context.Context, c estover.Caller, path string, n, expect int64) (Version, error) {
	_, v, err := s.put(ctx, c, path, Put{Expect: expect}, func(r *record) (*content, error) {
		old, err := s.read(ctx, c.Tenant, path, n)
		if err != nil {
			return nil, err
		}
		if old.epoch != r.epoch-1 { // r is the one that comes next
			return nil, errStale
		}
		was, err := old.usable(n)
		if err != nil {
			return nil, err
		}
		var got *content
		var wrong error
		err = s.open(c.Tenant, r.ID, was, func(plain []byte) error {
			defer clear(plain)
			got, wrong = parse(plain)
			return nil
		})
		if err == nil {
			err = wrong
		}
		return got, err
	})
	return v, err
}

// put makes what a function gives the current version.
func (s *Secrets) put(ctx context.Context, c estover.Caller, path string, o Put, give func(r *record) (*content, error)) (Secret, Version, error) {
	var v Version
	op := guard.Op{Action: "secret.write", Target: target(path)}
	r, err := s.changed(ctx, c, op, path, s.readLast, func(r *record) (*write, error) {
		content, err := give(r)
		if err != nil {
			return nil, err
		}
		keep := r.Keep.or(o.Keep)
		switch {
		case o.Expect != Any && o.Expect != r.CurrentVersion:
			return nil, ErrVersion.With("The current version of %s is %d, not %d.", path, r.CurrentVersion, o.Expect)
		case o.Expect == Any && keep.CASRequired:
			return nil, ErrExpect
		case r.managed():
			return nil, ErrManaged
		case r.Link != nil:
			return nil, ErrLinked
		}
		w := &write{}
		v = Version{Fields: content.names, CreatedBy: c.Subject}
		if keep.DeleteAfter > 0 {
			v.DeleteAt = r.UpdatedAt.Add(time.Duration(keep.DeleteAfter))
		}
		if err := s.add(c.Tenant, r, w, &v, content.plain, content.texts); err != nil {
			return nil, err
		}
		if w.note["fields"] = content.names; content.once {
			clear(content.plain)
		}
		r.CurrentVersion = v.N
		if w.limited = keep.MaxVersions > 0; w.limited {
			return w, r.limit(keep.MaxVersions)
		}
		return w, nil
	})
	if err != nil {
		return Secret{}, Version{}, err
	}
	return r.Secret, v, nil
}

// maxName is how long the name of a field of an object may be, in bytes.
const maxName = 512

// parse reads an object of JSON into what a version holds. What is wrong is told
// without what stands there.
func parse(object []byte) (*content, error) {
	if len(object) > maxValues {
		return nil, ErrInvalid.With("A version of a secret has at most %d bytes.", maxValues)
	}
	v := jsontext.Value(bytes.Clone(object))
	if !v.IsValid() || v.Compact() != nil || v[0] != '{' {
		clear(v)
		return nil, ErrInvalid.With("A version of a secret is an object of JSON in which each name stands once.")
	}
	c := &content{names: []string{}, plain: v, texts: map[string]estover.Secret{}, once: true}
	wrong := error(nil)
	err := walk(v, func(named, value []byte) error {
		name := string(named)
		if name == "" || len(name) > maxName || !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) {
			wrong = ErrInvalid.With("The name of a field has at most %d bytes and no control characters.", maxName)
		}
		c.names = append(c.names, name)
		if value[0] != '"' || len(value) == 2 {
			return nil // nothing that anybody would be recognised by
		}
		text, err := unquote(value)
		c.texts[name] = text
		return err
	})
	switch {
	case err != nil:
		wrong = ErrInvalid.With("A version of a secret is an object of JSON.")
	case len(c.names) > maxFields:
		wrong = ErrInvalid.With("A version of a secret has at most %d fields.", maxFields)
	}
	slices.Sort(c.names)
	return c, wrong
}

// patched is a version with another object merged into it.
func patched(plain, by []byte) (*content, error) {
	if len(by) > maxValues {
		return nil, ErrInvalid.With("A version of a secret has at most %d bytes.", maxValues)
	}
	v := jsontext.Value(bytes.Clone(by))
	defer clear(v)
	if !v.IsValid() || v.Compact() != nil || v[0] != '{' {
		return nil, ErrInvalid.With("What is merged into a version is an object of JSON in which each name stands once.")
	}
	b, err := merge(plain, v)
	if err != nil {
		return nil, ErrInvalid.With("What is merged into a version is an object of JSON.")
	}
	defer clear(b)
	return parse(b)
}

// A member is one of an object without blanks.
type member struct {
	name  string
	value []byte
}

func membersOf(object []byte) (list []member, err error) {
	err = walk(object, func(name, value []byte) error {
		list = append(list, member{string(name), value})
		return nil
	})
	return list, err
}

// merge changes an object by another one (RFC 7396): a null takes a member away,
// an object is merged into what is there, and anything else takes its place.
func merge(object, by []byte) ([]byte, error) {
	changes, err := membersOf(by)
	if err != nil {
		return nil, err
	}
	change := make(map[string][]byte, len(changes))
	for _, m := range changes {
		change[m.name] = m.value
	}
	var old []member
	if len(object) > 0 && object[0] == '{' {
		if old, err = membersOf(object); err != nil {
			return nil, err
		}
	}
	out := append(make([]byte, 0, len(object)+len(by)+2), '{')
	put := func(name string, value []byte) {
		if len(out) > 1 {
			out = append(out, ',')
		}
		out, _ = jsontext.AppendQuote(out, name)
		out = append(append(out, ':'), value...)
	}
	for _, m := range old {
		by, there := change[m.name]
		if !there {
			put(m.name, m.value)
			continue
		}
		delete(change, m.name)
		if err := putMerged(put, m.name, m.value, by); err != nil {
			return nil, err
		}
	}
	for _, c := range changes {
		if _, still := change[c.name]; !still {
			continue
		}
		if err := putMerged(put, c.name, nil, c.value); err != nil {
			return nil, err
		}
	}
	return append(out, '}'), nil
}

func putMerged(put func(string, []byte), name string, old, by []byte) error {
	switch by[0] {
	case 'n':
		return nil
	case '{':
		value, err := merge(old, by)
		if err != nil {
			return err
		}
		by = value
	}
	put(name, by)
	return nil
}
