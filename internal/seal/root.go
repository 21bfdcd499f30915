package seal

import (
	"bytes"
	"context"
	"crypto/fips140"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/argon2"

	"estover.dev"
)

// A Source is where a root key comes from. Its methods are called when a
// database is opened and never again.
type Source interface {
	// Kind is the word for this sort of source.
	Kind() string

	// Root gives the root key of 32 bytes. When the database has none yet,
	// first is true and the source may make one; keep is then stored in the
	// open and handed back as params from then on.
	Root(ctx context.Context, params string, first bool) (key []byte, keep string, err error)
}

// ErrRoot is returned when a source gives another root key than the one that
// the database was sealed under.
var ErrRoot = &estover.Error{Kind: estover.Invalid, Code: "wrong_root_key", Detail: "The root key is not one that this database was sealed under."}

// ErrRootMissing is returned when the root key of an existing database is not
// where it should be. A new one would open nothing.
var ErrRootMissing = &estover.Error{Kind: estover.Invalid, Code: "root_key_missing", Detail: "The root key of this database is missing."}

// ErrRootExposed is returned for a root key that others can read, or that lies
// beside what it protects.
var ErrRootExposed = &estover.Error{Kind: estover.Invalid, Code: "root_key_exposed", Detail: "The root key can be read by others."}

// ParseSource reads a source from its URI:
//
//	file:PATH                    a file of mode 0600, made at the first start
//	file:PATH?beside=allow       the same, and it may lie in the database's directory
//	passphrase:env:NAME          a passphrase from an environment variable
//	passphrase:file:PATH         a passphrase from a file of mode 0600
//	env:NAME                     the key itself, from an environment variable
//	systemd-creds:NAME           the key itself, from a credential of systemd
//
// Those that need a device, another server or people are in the package source.
//
// database is the URL of the database that the key will protect.
func ParseSource(uri, database string) (Source, error) {
	scheme, rest, _ := strings.Cut(uri, ":")
	switch scheme {
	case "file":
		path, query, _ := strings.Cut(rest, "?")
		q, err := url.ParseQuery(query)
		if err != nil || path == "" {
			return nil, fmt.Errorf("the root key source %q is not file:PATH", uri)
		}
		f := File{Path: path}
		for name, values := range q {
			if name != "beside" || len(values) != 1 || values[0] != "allow" {
				return nil, fmt.Errorf("the root key source %q has an option %q; there is only beside=allow", uri, name)
			}
			f.Beside = true
		}
		f.Database, _ = strings.CutPrefix(database, "sqlite:")
		if f.Database == database {
			f.Database = "" // not a file
		}
		return f, nil
	case "passphrase":
		kind, name, _ := strings.Cut(rest, ":")
		switch {
		case kind == "env" && name != "":
			return Passphrase{Read: func() ([]byte, error) { return environment(name, "passphrase of the root key") }}, nil
		case kind == "file" && name != "":
			return Passphrase{Read: func() ([]byte, error) {
				b, err := readPrivate(name)
				return bytes.TrimRight(b, "\r\n"), err
			}}, nil
		}
	case "env":
		if rest != "" {
			return Given{scheme, func(context.Context) ([]byte, error) { return environment(rest, "root key") }}, nil
		}
	case "systemd-creds":
		if rest != "" && filepath.Base(rest) == rest && rest != ".." {
			return Given{scheme, func(context.Context) ([]byte, error) { return credential(rest) }}, nil
		}
	}
	return nil, fmt.Errorf("the root key source %q is none of file:PATH, passphrase:env:NAME, passphrase:file:PATH, env:NAME, systemd-creds:NAME", uri)
}

// A File is a source that keeps the root key in a file of its owner alone. The
// file is made when the database is new. A copy of it belongs somewhere safe:
// without it nothing that is sealed can be opened again.
type File struct {
	Path string

	// Beside lets the file lie in the directory of the database or below it,
	// where every backup of the directory would take both along.
	Beside bool

	// Database is the path of the database file, "" if there is none.
	Database string
}

// Kind is "file".
func (File) Kind() string { return "file" }

// Root reads the file, or makes it when the database is new.
func (f File) Root(_ context.Context, _ string, first bool) ([]byte, string, error) {
	if err := f.apart(); err != nil {
		return nil, "", err
	}
	b, err := readPrivate(f.Path)
	if errors.Is(err, fs.ErrNotExist) {
		if !first {
			return nil, "", ErrRootMissing.With("The file %s with the root key of this database is missing. Put it back from where you keep its copy; a new one would open nothing.", f.Path)
		}
		if err := f.make(); err != nil {
			return nil, "", fmt.Errorf("making the root key file: %w", err)
		}
		b, err = readPrivate(f.Path)
	}
	if err != nil {
		return nil, "", fmt.Errorf("reading the root key file: %w", err)
	}
	defer clear(b)
	key, err := parseRoot(b)
	if err != nil {
		return nil, "", fmt.Errorf("reading the root key file %s: %w", f.Path, err)
	}
	return key, "", nil
}

// apart refuses a key that would be copied along with what it protects.
func (f File) apart() error {
	if f.Beside || f.Database == "" {
		return nil
	}
	key, err := resolve(f.Path)
	if err != nil {
		return err
	}
	database, err := resolve(f.Database)
	if err != nil {
		return err
	}
	rel, err := filepath.Rel(filepath.Dir(database), key)
	if err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator)) {
		return ErrRootExposed.With("The root key file %s lies beside the database that it protects. Keep it in another directory, or say file:%s?beside=allow if backups of the directory are protected otherwise.", f.Path, f.Path)
	}
	return nil
}

// resolve is the absolute path of a file that need not exist, without links.
func resolve(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		return real, nil
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if errors.Is(err, fs.ErrNotExist) {
		return abs, nil
	}
	return filepath.Join(dir, filepath.Base(abs)), err
}

// rootPrefix begins the line of a root key file that holds the key.
const rootPrefix = "estover-root-key-1"

const rootNotice = `# The root key of an Estover installation. Whoever has it and the database can
# read every secret; without it nobody can. Keep a copy in a safe place, apart
# from the database and its backups.
`

// make writes a fresh key. The file appears whole or not at all, and never in
// the place of another.
func (f File) make() error {
	dir := filepath.Dir(f.Path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, ".root-key-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	var text []byte
	protect(func() { text = formatRoot([]byte(rootNotice), fresh()) })
	_, err = tmp.Write(text)
	clear(text)
	if err == nil {
		err = tmp.Sync()
	}
	if err := errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	if err := os.Link(tmp.Name(), f.Path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// formatRoot adds the line that holds a key to a notice. The key is erased, and no
// copy of it is left but the line.
func formatRoot(notice, key []byte) []byte {
	defer clear(key)
	sum := sha256.Sum256(key)
	b := make([]byte, 0, len(notice)+len(rootPrefix)+base64.RawURLEncoding.EncodedLen(len(key))+11)
	b = append(append(append(b, notice...), rootPrefix...), ' ')
	b = append(base64.RawURLEncoding.AppendEncode(b, key), ' ')
	return append(hex.AppendEncode(b, sum[:4]), '\n')
}

// parseRoot finds the key among comments, and notices when it was cut short or
// typed wrong.
func parseRoot(b []byte) (key []byte, err error) {
	protect(func() { key = rootIn(b) })
	if key != nil {
		return key, nil
	}
	return nil, ErrRoot.With("The file does not hold a whole root key: a line that begins with %s and ends with the right checksum.", rootPrefix)
}

// rootIn is the key in a text, of which it makes no copies; nil if there is none.
func rootIn(b []byte) []byte {
	for line := range bytes.Lines(b) {
		words := bytes.Fields(line)
		if len(words) == 0 || line[0] == '#' {
			continue
		}
		if len(words) != 3 || string(words[0]) != rootPrefix || len(words[1]) != base64.RawURLEncoding.EncodedLen(keyLen) {
			return nil
		}
		key := make([]byte, keyLen)
		_, err := base64.RawURLEncoding.Decode(key, words[1])
		if sum := sha256.Sum256(key); err == nil && hex.EncodeToString(sum[:4]) == string(words[2]) {
			return key
		}
		clear(key)
		return nil
	}
	return nil
}

// readPrivate reads a file that nobody else may read.
func readPrivate(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a file", path)
	}
	if mode := info.Mode().Perm(); mode&^0o600 != 0 {
		return nil, ErrRootExposed.With("The file %s has mode %04o, so others may read or change it. Run: chmod 600 %s", path, mode, path)
	}
	b := make([]byte, min(info.Size(), 64<<10)) // one that grew would leave what it was
	n, err := io.ReadFull(f, b)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return b[:n], err
}

// NewRoot makes a root key, as the line that a file or a credential holds.
func NewRoot() string { return string(formatRoot([]byte(rootNotice), fresh())) }

// A Given is a source whose key somebody else keeps and hands to the program at
// its start, as [NewRoot] wrote it: systemd, an orchestrator, people. It makes
// none by itself.
type Given struct {
	From string // its kind

	// Read gives the text. An error of it says what to do.
	Read func(context.Context) ([]byte, error)
}

// Kind is where the key is given from.
func (g Given) Kind() string { return g.From }

// Root reads the key that was given.
func (g Given) Root(ctx context.Context, _ string, _ bool) ([]byte, string, error) {
	b, err := g.Read(ctx)
	if err != nil {
		return nil, "", err
	}
	defer clear(b)
	key, err := parseRoot(b)
	if err != nil {
		return nil, "", fmt.Errorf("reading the root key from %s: %w", g.From, err)
	}
	return key, "", nil
}

// environment reads a value that must be set.
func environment(name, what string) ([]byte, error) {
	v, ok := os.LookupEnv(name)
	if !ok {
		return nil, ErrRootMissing.With("The environment variable %s with the %s is not set.", name, what)
	}
	return []byte(v), nil
}

// credential reads what systemd hands to a unit (systemd.exec(5), LoadCredential).
func credential(name string) ([]byte, error) {
	dir, ok := os.LookupEnv("CREDENTIALS_DIRECTORY")
	if !ok {
		return nil, ErrRootMissing.With("systemd has handed over no credentials. Say LoadCredentialEncrypted=%s:FILE in the unit, with a FILE that 'estover root-key make | systemd-creds encrypt --name=%s - FILE' made.", name, name)
	}
	b, err := readPrivate(filepath.Join(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrRootMissing.With("systemd has handed over no credential %s. Say LoadCredentialEncrypted=%s:FILE in the unit.", name, name)
	}
	return b, err
}

// A Passphrase is a source that derives the root key from a passphrase: by
// Argon2id, or by PBKDF2 where only what FIPS 140 approves may be used.
type Passphrase struct {
	// Read gives the passphrase.
	Read func() ([]byte, error)
}

// minPassphrase is the fewest characters that a passphrase may have. It guards
// against what tools can guess at once, and no more.
const minPassphrase = 12

// A derivation is how a passphrase became a root key.
type derivation struct {
	KDF     string `json:"kdf"`
	Salt    []byte `json:"salt"`
	Time    uint32 `json:"time,omitempty"`    // of Argon2id: passes
	Memory  uint32 `json:"memory,omitempty"`  // of Argon2id: KiB
	Threads uint8  `json:"threads,omitempty"` // of Argon2id
	Rounds  int    `json:"rounds,omitempty"`  // of PBKDF2
}

// Kind is "passphrase".
func (Passphrase) Kind() string { return "passphrase" }

// Root derives the key.
func (p Passphrase) Root(_ context.Context, params string, first bool) (key []byte, keep string, err error) {
	word, err := p.Read()
	if err != nil {
		return nil, "", err
	}
	defer clear(word)
	var how derivation
	if first {
		if len(word) < minPassphrase {
			return nil, "", ErrRoot.With("The passphrase of the root key has fewer than %d characters.", minPassphrase)
		}
		how = derivation{KDF: "argon2id", Time: 3, Memory: 64 << 10, Threads: 2, Salt: make([]byte, 16)}
		if fips140.Enabled() {
			how = derivation{KDF: "pbkdf2-sha256", Rounds: 600_000, Salt: make([]byte, 16)}
		}
		_, _ = rand.Read(how.Salt)
	} else if err := json.Unmarshal([]byte(params), &how); err != nil {
		return nil, "", fmt.Errorf("reading how the root key was derived: %w", err)
	}
	switch how.KDF {
	case "argon2id":
		if fips140.Enabled() {
			return nil, "", ErrRoot.With("The root key was derived by Argon2id, which is not used in FIPS mode. Start without it and add another root key.")
		}
		protect(func() { key = argon2.IDKey(word, how.Salt, how.Time, how.Memory, how.Threads, keyLen) })
	case "pbkdf2-sha256":
		protect(func() { key, err = pbkdf2.Key(sha256.New, string(word), how.Salt, how.Rounds, keyLen) })
	default:
		err = fmt.Errorf("the root key was derived by %q, which is not known here", how.KDF)
	}
	if err != nil {
		return nil, "", err
	}
	b, err := json.Marshal(how)
	return key, string(b), err
}
