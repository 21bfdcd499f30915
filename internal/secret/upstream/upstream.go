// Package upstream speaks to vaults that are somebody else's: stores of secrets
// by name, with versions. One package below this one knows one kind.
//
// # What every store promises
//
//   - A version is named by the store ([Version.ID]), and a version that was read
//     once is the same for ever: whoever has it need not ask again.
//   - A write says which version it follows. Where a store cannot check that by
//     itself ([Kind.Checks] is false), it is looked at just before, and two who
//     write in the same instant both succeed.
//   - What is not there is [ErrNotFound], and so is what was deleted.
//   - A deletion of what is not there has succeeded.
//
// A store is handed an [engine.Config], whose admin is what logs in, is safe for
// use by many at once, and honours the end of ctx. Redirects are not followed,
// answers have an end, and no secret stands in an error.
//
// # Ways to use one
//
// A store that is registered ([Stores]) has an owner, who says what is done with it.
//
//   - [Stores.Link]: the value of a secret lives there. It is read when somebody needs
//     it, as a version of ours that is a copy of one there, by one of all who want it
//     ([Stores.Fresh]); it is believed for a time, and when the store cannot be asked
//     after that, nobody gets it.
//   - [Stores.Sync]: a secret of ours is kept there too ([Stores.PushDue]). What is
//     about to be sent is noted by its digest, and what stands there is looked at
//     before anything is written, so that work which was cut off anywhere, or done
//     twice, leaves the same. What somebody else has written stays ([SyncState]).
//   - [Imports]: secrets are copied once, with a report.
//
// [Watch] waits for a version that is not known yet.
package upstream

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"estover.dev"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/engine"
)

// ErrNotFound is wrapped if there is no such secret, or version of it.
var ErrNotFound = errors.New("the store has no such secret")

// ErrVersion is wrapped if the current version is not the one that a write is to
// follow.
var ErrVersion = errors.New("the secret has another version in the store than expected")

// Most is how many names a list may have.
const Most = 10_000

const (
	// None is the version that a write follows which makes the secret.
	None = ""
	// Any is the version that a write follows which does not care.
	Any = "*"
)

// A Value is what a version holds.
type Value struct {
	Version string
	Object  estover.Secret // an object of JSON; a text by itself is its field "value"
	Created time.Time      // zero if not known
}

// A Version is one of a secret's, without what it holds.
type Version struct {
	ID      string
	Created time.Time // zero if not known
	Live    bool      // it can be read
}

// A Kind is one kind of store.
type Kind struct {
	Name    string // "vault"
	Title   string // "OpenBao, HashiCorp Vault"
	Address string // how an address looks
	Login   string // what the admin is: "a token, without a username"
	Options []engine.Field

	// Checks is set where the store itself checks which version a write follows.
	Checks bool

	// Flat is set where secrets have names, and no paths with slashes.
	Flat bool

	// Federation is how an assertion of our issuer logs in, where the option audience
	// is set; nil if none does.
	Federation *Federation

	// Open makes a store. It does not connect.
	Open func(engine.Config) (Store, error)
}

// A Store keeps secrets by their paths.
type Store interface {
	// Get gives a version, or the current one if version is empty.
	Get(ctx context.Context, path, version string) (Value, error)

	// Put makes an object of JSON the current version, if the one before is expect,
	// which is [None] if there must be none and [Any] if it does not matter.
	Put(ctx context.Context, path string, object estover.Secret, expect string) (version string, err error)

	// List gives the paths that begin with prefix, sorted, at most [Most].
	List(ctx context.Context, prefix string) ([]string, error)

	// Versions gives those that the store still knows of, the newest first.
	Versions(ctx context.Context, path string) ([]Version, error)

	// Delete takes a secret out of use, as finally as the store does that.
	Delete(ctx context.Context, path string) error
}

// checked is a store whose names of versions can be kept, and whose errors repeat
// nothing of what was sent to it.
type checked struct {
	Store
	admin engine.Credential
}

func (c checked) Get(ctx context.Context, path, version string) (v Value, err error) {
	if v, err = c.Store.Get(ctx, path, version); err == nil {
		err = checkVersion(v.Version)
	}
	return v, c.quiet(err)
}

func (c checked) Put(ctx context.Context, path string, object estover.Secret, expect string) (version string, err error) {
	if version, err = c.Store.Put(ctx, path, object, expect); err == nil {
		err = checkVersion(version)
	}
	return version, c.quiet(err, texts(object)...)
}

func (c checked) List(ctx context.Context, prefix string) ([]string, error) {
	paths, err := c.Store.List(ctx, prefix)
	return paths, c.quiet(err)
}

func (c checked) Versions(ctx context.Context, path string) (list []Version, err error) {
	list, err = c.Store.Versions(ctx, path)
	for i := 0; err == nil && i < len(list); i++ {
		err = checkVersion(list[i].ID)
	}
	return list, c.quiet(err)
}

func (c checked) Delete(ctx context.Context, path string) error {
	return c.quiet(c.Store.Delete(ctx, path))
}

// quiet leaves out the words of a store that repeat what logs in there, or what was sent.
func (c checked) quiet(err error, sent ...string) error {
	if err == nil {
		return nil
	}
	words := err.Error()
	repeats := func(s string) bool { return repeated(words, s) }
	if !slices.ContainsFunc([]string{string(c.admin.Secret.Reveal()), string(c.admin.Session.Reveal())}, repeats) && !slices.ContainsFunc(sent, repeats) {
		return err
	}
	left := errors.New("what it says repeats what was sent to it, and is left out")
	for _, kind := range []error{ErrNotFound, ErrVersion} {
		if errors.Is(err, kind) {
			return kind
		}
	}
	if errors.Is(err, engine.ErrUnreachable) {
		return engine.Unreachable(left)
	}
	return engine.Refuse("%s", left)
}

// repeated reports whether words have a value in them, as it is or in base64 with
// whatever stands before it, or as much of it as says what it is, since words are cut
// off. Of words that are longer than anybody shows it is taken for granted.
func repeated(words, value string) bool {
	const enough, most = 12, 4000
	if len(value) < 4 {
		return false
	}
	if len(words) > most {
		return true
	}
	forms := []string{value}
	for before := range 3 {
		b := base64.RawStdEncoding.EncodeToString(append(make([]byte, before), value...))
		b = b[(before*8+5)/6 : (before+len(value))*8/6] // those characters that are of the value alone
		forms = append(forms, b, strings.NewReplacer("+", "-", "/", "_").Replace(b))
	}
	for _, form := range forms {
		if strings.Contains(words, form) {
			return true
		}
		for i := 0; len(form) > enough && i+enough <= len(words); i++ {
			if strings.Contains(form, words[i:i+enough]) {
				return true
			}
		}
	}
	return false
}

// texts are those in an object of JSON that may be worth to be kept to oneself.
func texts(object estover.Secret) (all []string) {
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case string:
			if len(v) >= 8 {
				all = append(all, v)
			}
		case []any:
			for _, x := range v {
				walk(x)
			}
		case map[string]any:
			for _, x := range v {
				walk(x)
			}
		}
	}
	var fields any
	if json.Unmarshal(object.Reveal(), &fields) == nil {
		walk(fields)
	}
	return all
}

// checkVersion refuses a name of a version that is longer than any store has, or that
// would be taken for something else.
func checkVersion(id string) error {
	if id == None || id == Any || id == absent || len(id) > 200 || strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return engine.Refuse("a version has a name that is none")
	}
	return nil
}

// Watch waits until the current version is another than known, and gives it. It
// asks every so often, since no store tells by itself.
func Watch(ctx context.Context, s Store, path, known string, every time.Duration) (Value, error) {
	for {
		versions, err := s.Versions(ctx, path)
		switch {
		case err == nil && len(versions) > 0 && versions[0].Live && versions[0].ID != known:
			return s.Get(ctx, path, versions[0].ID)
		case err != nil && !errors.Is(err, ErrNotFound):
			return Value{}, err
		}
		select {
		case <-ctx.Done():
			return Value{}, ctx.Err()
		case <-time.After(every):
		}
	}
}

// CheckPath refuses a path that could be read in two ways.
func CheckPath(path string) error {
	bad := path == "" || len(path) > 400 || !utf8.ValidString(path) || strings.ContainsAny(path, "?#%\\*") ||
		strings.ContainsFunc(path, func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) })
	for part := range strings.SplitSeq(path, "/") {
		bad = bad || part == "" || part == "." || part == ".."
	}
	if bad {
		return engine.Refuse("%q is no path of a secret", path)
	}
	return nil
}

// Object makes an object of JSON of a text that a store keeps: the text, if it is
// one, and else an object whose field "value" it is.
func Object(text []byte) estover.Secret {
	if trimmed := bytes.TrimSpace(text); len(trimmed) > 0 && trimmed[0] == '{' && json.Valid(trimmed) {
		return estover.NewSecret(bytes.Clone(trimmed))
	}
	b, err := json.Marshal(map[string]string{secret.DefaultField: string(text)})
	if err != nil {
		panic(fmt.Sprintf("upstream: a map of texts is no JSON: %v", err))
	}
	return estover.NewSecret(b)
}

// Text is the reverse of [Object].
func Text(object estover.Secret) ([]byte, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(object.Reveal(), &fields); err != nil || fields == nil {
		return nil, engine.Refuse("what is to be written is no object of JSON")
	}
	if len(fields) == 1 {
		var text string
		if value, has := fields[secret.DefaultField]; has && json.Unmarshal(value, &text) == nil {
			return []byte(text), nil
		}
	}
	return object.Reveal(), nil
}
