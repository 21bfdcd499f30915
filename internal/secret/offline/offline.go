// Package offline keeps copies of what the admins of targets log in with, for the day
// on which the vault is gone and its targets are not (R12). A copy is a file that age
// has encrypted for recipients whose keys are kept offline: nobody can open it here.
//
//	DIR/TENANT/PATH@VERSION.age   PATH with % for what is not a letter, digit, dot, dash or underscore
//
// A path that is too long for that is cut, and the digest of all of it follows. It is
// one line of JSON: the target, the secret's path, its version, when it was written,
// and the values. The two newest copies of a secret are kept, since two users take
// turns, and all since the version that is in use: those in between may have come to
// nothing.
package offline

import (
	"bytes"
	"crypto/fips140"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"filippo.io/age"

	"estover.dev"
)

// ErrNotWritten is returned where a copy could not be written.
var ErrNotWritten = &estover.Error{Kind: estover.Unavailable, Code: "break_glass_copy_not_written", Detail: "The break-glass copy could not be written, so the new version is not used yet. Look at the folder of --break-glass-dir; it is tried again."}

// Copies are a folder of copies. It is safe for use by many at once, and by several
// servers.
type Copies struct {
	dir        string
	recipients []age.Recipient
}

// Open makes the folder, and reads for whom copies are: lines as age-keygen shows them
// (age1…, age1pq1…).
func Open(dir string, recipients []string) (*Copies, error) {
	if fips140.Enabled() {
		return nil, errors.New("break-glass copies are encrypted by age, whose algorithms FIPS mode does not have; start without --break-glass-recipient")
	}
	c := &Copies{dir: dir}
	for n, text := range recipients {
		one, err := age.ParseRecipients(strings.NewReader(text))
		if err != nil || len(one) != 1 {
			return nil, fmt.Errorf("number %d of --break-glass-recipient is no public key of age; make one with age-keygen, keep its secret key offline, and give the line that begins with age1", n+1)
		}
		c.recipients = append(c.recipients, one...)
	}
	if len(c.recipients) == 0 || len(c.recipients) > 20 {
		return nil, errors.New("break-glass copies are for 1 to 20 recipients")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("--break-glass-dir: %w", err)
	}
	return c, nil
}

// A sheet is what is in a copy.
type sheet struct {
	Tenant  string            `json:"tenant"`
	Target  string            `json:"target"`
	Path    string            `json:"path"`
	Version int64             `json:"version"`
	At      time.Time         `json:"at"`
	Values  map[string]string `json:"values"`
}

// Write keeps a copy of a version, and those no more that are older than the one
// before it and than the current one.
func (c *Copies) Write(tenant estover.TenantID, target, path string, version, current int64, at time.Time, values map[string]estover.Secret) error {
	s := sheet{string(tenant), target, path, version, at.UTC(), map[string]string{}}
	for k, v := range values {
		s.Values[k] = string(v.Reveal())
	}
	plain, err := json.Marshal(s)
	if err != nil {
		return err
	}
	defer clear(plain)
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, c.recipients...)
	if err == nil {
		_, err = w.Write(append(plain, '\n'))
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return ErrNotWritten.Because(err)
	}
	dir := filepath.Join(c.dir, escape(string(tenant)))
	if err := store(dir, name(path, version), sealed.Bytes()); err != nil {
		return ErrNotWritten.Because(err)
	}
	prune(dir, path, min(version-1, current))
	return nil
}

// store writes a file, whole or not at all, and so that a loss of power does not take
// it away.
func store(dir, file string, b []byte) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, ".tmp-") // 0600
	if err != nil {
		return err
	}
	_, err = tmp.Write(b)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), filepath.Join(dir, file))
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	folder, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// prune takes away copies from before a version, that nobody needs any more. One that
// stays does no harm.
func prune(dir, path string, before int64) {
	files, _ := os.ReadDir(dir)
	for _, f := range files {
		base, is := strings.CutSuffix(f.Name(), ".age")
		of, n, _ := strings.Cut(base, "@")
		if old, err := strconv.ParseInt(n, 10, 64); err == nil && is && of == stem(path) && old < before {
			_ = os.Remove(filepath.Join(dir, f.Name()))
		}
	}
}

func name(path string, version int64) string { return fmt.Sprintf("%s@%d.age", stem(path), version) }

// longest is how long the name of a file may be without the version, of the 255 bytes
// that it has on most systems.
const longest = 200

// stem is the name of a path's files without the version.
func stem(path string) string {
	s := escape(path)
	if len(s) > longest {
		all := sha256.Sum256([]byte(path))
		s = s[:longest-2*len(all)-1] + "~" + hex.EncodeToString(all[:])
	}
	return s
}

// escape makes a path the name of a file.
func escape(path string) string {
	var b strings.Builder
	for _, c := range []byte(path) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '.' && b.Len() > 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02x", c)
		}
	}
	return b.String()
}
