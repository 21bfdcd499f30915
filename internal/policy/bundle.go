package policy

import (
	"embed"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"estover.dev"
)

// A Bundle is the source of a tenant's policies: the .rego files of a
// directory and, beside them, data.json files with small tables that the rules
// look things up in.
type Bundle []File

// A File is one file of a bundle.
type File struct {
	Path string `json:"path"` // relative to the directory of the bundle, with slashes
	Text string `json:"text"`
}

// The bounds of a bundle.
const (
	maxFiles  = 500
	maxSource = 4 << 20 // bytes of rules
	maxData   = 1 << 20 // bytes of data.json files: OPA holds small tables only; entitlements are grants
)

// ErrBundle is returned for a directory or a list of files that is no bundle.
var ErrBundle = &estover.Error{Kind: estover.Invalid, Code: "policy_bundle_invalid", Detail: "This is not a bundle of policies."}

//go:embed base/*.rego starter/*.rego
var embedded embed.FS

//go:embed input.schema.json
var inputSchema []byte

// Starter is the bundle that holds until a tenant has activated its own: the
// place from which one's own policies start.
func Starter() Bundle { return mustRead("starter") }

// base is the baseline, which holds for every tenant.
var base = sync.OnceValue(func() Bundle { return mustRead("base") })

func mustRead(dir string) Bundle {
	sub, err := fs.Sub(embedded, dir)
	if err != nil {
		panic("policy: " + err.Error())
	}
	b, err := Read(sub)
	if err != nil {
		panic("policy: " + err.Error())
	}
	return b
}

// ReadDir reads the bundle in a directory.
func ReadDir(dir string) (Bundle, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return nil, ErrBundle.With("The directory %s cannot be read.", dir).Because(err)
	}
	if !info.IsDir() {
		return nil, ErrBundle.With("%s is not a directory. Name the directory that holds the .rego files.", dir)
	}
	root, err := os.OpenRoot(dir) // a link that leads out of it is an error
	if err != nil {
		return nil, ErrBundle.With("The directory %s cannot be read.", dir).Because(err)
	}
	defer root.Close()
	return Read(root.FS())
}

// Read reads a bundle: every .rego and data.json file, except in directories
// whose name begins with a dot.
func Read(fsys fs.FS) (Bundle, error) {
	var b Bundle
	err := fs.WalkDir(fsys, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if p != "." && strings.HasPrefix(d.Name(), ".") {
				return fs.SkipDir
			}
			return nil
		}
		if path.Ext(p) != ".rego" && path.Base(p) != "data.json" {
			return nil
		}
		text, err := fs.ReadFile(fsys, p)
		if err != nil {
			return err
		}
		b = append(b, File{filepath.ToSlash(p), string(text)})
		return nil
	})
	if err != nil {
		return nil, ErrBundle.Because(err)
	}
	return b.normal()
}

// normal is the bundle in the order of its paths, if it is one.
func (b Bundle) normal() (Bundle, error) {
	b = slices.Clone(b)
	slices.SortFunc(b, func(x, y File) int { return strings.Compare(x.Path, y.Path) })
	var rules, source, data int
	for i, f := range b {
		switch {
		case !fs.ValidPath(f.Path) || strings.ContainsAny(f.Path, "\n\r\x00\\:"):
			return nil, ErrBundle.With("%q is not the path of a file in a bundle.", f.Path)
		case i > 0 && b[i-1].Path == f.Path:
			return nil, ErrBundle.With("The file %s is there twice.", f.Path)
		case path.Base(f.Path) == "data.json":
			data += len(f.Text)
		case path.Ext(f.Path) == ".rego":
			rules++
			source += len(f.Text)
		default:
			return nil, ErrBundle.With("A bundle holds .rego and data.json files, and %s is neither.", f.Path)
		}
	}
	switch {
	case rules == 0:
		return nil, ErrBundle.With("There is no .rego file in it.")
	case len(b) > maxFiles:
		return nil, ErrBundle.With("It has %d files; at most %d are taken.", len(b), maxFiles)
	case source > maxSource:
		return nil, ErrBundle.With("Its rules are %d bytes; at most %d are taken.", source, maxSource)
	case data > maxData:
		return nil, ErrBundle.With("Its data is %d bytes; at most %d are taken. What an agent may do belongs in grants.", data, maxData)
	}
	return b, nil
}

// Digest names a bundle by its content: the SHA-256, in hex, of what
// `sha256sum` prints for its files in the order of their paths.
func (b Bundle) Digest() string { return digest(b.Manifest()) }

// Manifest is what the digest is taken of: a line for each file, as sha256sum
// writes it.
func (b Bundle) Manifest() []byte {
	var m []byte
	for _, f := range b {
		m = fmt.Appendf(m, "%s  %s\n", digest([]byte(f.Text)), f.Path)
	}
	return m
}

// data is what the data.json files hold, each at the place of its directory.
func (b Bundle) data() (map[string]any, []Finding) {
	root := map[string]any{}
	var found []Finding
	for _, f := range b {
		if path.Base(f.Path) != "data.json" {
			continue
		}
		var v map[string]any
		dec := json.NewDecoder(strings.NewReader(f.Text))
		dec.UseNumber()
		if err := dec.Decode(&v); err != nil {
			found = append(found, Finding{File: f.Path, Line: lineOf(f.Text, err), Check: "data", Message: "This is not a JSON object: " + err.Error() + "."})
			continue
		}
		at := root
		for _, step := range strings.Split(path.Dir(f.Path), "/") {
			if step == "." {
				continue
			}
			next, ok := at[step].(map[string]any)
			if !ok {
				next = map[string]any{}
				at[step] = next
			}
			at = next
		}
		for k, member := range v {
			if _, taken := at[k]; taken {
				found = append(found, Finding{File: f.Path, Line: 1, Check: "data", Message: fmt.Sprintf("%q is defined by another data.json too.", k)})
			}
			at[k] = member
		}
	}
	for k := range root {
		if k != "tenant" {
			found = append(found, Finding{File: "data.json", Line: 1, Check: "root", Message: fmt.Sprintf("Data stands below tenant, and %q does not. Put the file into a directory tenant, or its members into one.", k)})
		}
	}
	return root, found
}

// lineOf is the line in which decoding stopped.
func lineOf(text string, err error) int {
	if e, ok := err.(*json.SyntaxError); ok && int(e.Offset) <= len(text) {
		return 1 + strings.Count(text[:e.Offset], "\n")
	}
	return 1
}
