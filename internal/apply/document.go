package apply

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"estover.dev"
	"estover.dev/internal/policy"
)

// A Source is a file: YAML with documents, or a file of policies that one of
// them names.
type Source struct {
	Path string `json:"path" minLength:"1" doc:"Where it is, with slashes, for errors and to find what it names."`
	Text string `json:"text" doc:"What is in it."`
}

// maxText bounds what one run reads.
const maxText = 4 << 20

// isYAML reports whether a path is that of a file with documents.
func isYAML(p string) bool { return path.Ext(p) == ".yaml" || path.Ext(p) == ".yml" }

// Load reads files, and of directories all YAML files at any depth, except
// below names that begin with a dot. What their policies name is read too. The
// path "-" is the standard input.
func Load(paths ...string) ([]Source, error) {
	var l loader
	for _, p := range paths {
		if p == "-" {
			b, err := io.ReadAll(io.LimitReader(os.Stdin, maxText+1))
			if err != nil {
				return nil, err
			}
			if err := l.add("stdin.yaml", b); err != nil {
				return nil, err
			}
			continue
		}
		info, err := os.Stat(p)
		if err != nil {
			return nil, err
		}
		if info.IsDir() {
			err = l.walk(p, isYAML)
		} else {
			err = l.read(p)
		}
		if err != nil {
			return nil, err
		}
	}
	for _, s := range slices.Clone(l.files) {
		for _, dir := range policyDirectories(s) {
			at := filepath.FromSlash(resolve(s.Path, dir))
			if info, err := os.Stat(at); err != nil || !info.IsDir() {
				continue // Parse says that it is not there, and where it is named
			}
			if err := l.walk(at, isPolicy); err != nil {
				return nil, err
			}
		}
	}
	return l.files, nil
}

type loader struct {
	files []Source
	size  int
}

// walk reads the files of a directory. A link is followed if it leads to a file
// within the directory: another may have been put there by a stranger, to have
// a file of this machine sent to the server.
func (l *loader) walk(dir string, wanted func(string) bool) error {
	root, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	return filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case p != dir && strings.HasPrefix(d.Name(), "."):
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case d.IsDir() || !wanted(filepath.ToSlash(p)):
			return nil
		}
		to, err := filepath.EvalSymlinks(p)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, to)
		if err != nil || !filepath.IsLocal(rel) {
			return fmt.Errorf("%s is a link that leads out of %s; name the file itself, if it is meant", p, dir)
		}
		info, err := os.Stat(to)
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("%s is neither a file nor a directory", p)
		}
		return l.read(p)
	})
}

func (l *loader) read(p string) error {
	name := path.Clean(filepath.ToSlash(p))
	if slices.ContainsFunc(l.files, func(s Source) bool { return s.Path == name }) {
		return nil
	}
	b, err := os.ReadFile(p)
	if err != nil {
		return err
	}
	return l.add(name, b)
}

func (l *loader) add(name string, b []byte) error {
	if l.size += len(b); l.size > maxText {
		return ErrProblems.With("The files have more than %d MiB together. Apply them in parts.", maxText>>20)
	}
	l.files = append(l.files, Source{name, string(b)})
	return nil
}

// resolve is where a path leads that a file names.
func resolve(file, name string) string {
	if path.IsAbs(name) {
		return path.Clean(name)
	}
	return path.Join(path.Dir(file), name)
}

// isPolicy reports whether a path is that of a file of policies.
func isPolicy(p string) bool { return path.Ext(p) == ".rego" || path.Base(p) == "data.json" }

// policyDirectories are those that the policies in a file name.
func policyDirectories(s Source) (dirs []string) {
	if !isYAML(s.Path) {
		return nil
	}
	for d := yaml.NewDecoder(strings.NewReader(s.Text)); ; {
		var doc struct {
			Kind string
			Spec yaml.Node
		}
		if d.Decode(&doc) != nil {
			return dirs
		}
		var spec struct{ Directory string }
		if doc.Kind == KindPolicy && doc.Spec.Decode(&spec) == nil && spec.Directory != "" {
			dirs = append(dirs, spec.Directory)
		}
	}
}

// A Position is a place in a file.
type Position struct {
	File         string
	Line, Column int
}

// A Problem is a mistake at a place in a file.
type Problem struct {
	File    string `json:"file"`
	Line    int    `json:"line,omitempty"`
	Column  int    `json:"column,omitempty"`
	Message string `json:"message"`
}

// String is the problem in the form that editors and terminals understand.
func (p Problem) String() string {
	if p.Line == 0 {
		return fmt.Sprintf("%s: %s", p.File, p.Message)
	}
	return fmt.Sprintf("%s:%d:%d: %s", p.File, p.Line, p.Column, p.Message)
}

// Problems is all that is wrong with some files. It is an [ErrProblems].
type Problems []Problem

// Error is a line for each problem.
func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i := range p {
		lines[i] = p[i].String()
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives the problems as an [estover.Error] of kind Invalid.
func (p Problems) Unwrap() error { return ErrProblems.With("%s", p.Error()) }

// maxProblems is how many problems are told at once.
const maxProblems = 100

// sorted is the problems in the order of their places, as many as a person
// reads.
func (p Problems) sorted() Problems {
	slices.SortStableFunc(p, func(a, b Problem) int {
		if c := strings.Compare(a.File, b.File); c != 0 {
			return c
		}
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Column - b.Column
	})
	if len(p) > maxProblems {
		last := p[maxProblems]
		last.Message = "Here and further on there are more."
		p = append(p[:maxProblems:maxProblems], last)
	}
	return p
}

func asProblems(err error) (p Problems, ok bool) { return p, errors.As(err, &p) }

// A Document is one thing that is wanted.
type Document struct {
	Kind string
	Name string
	Spec any // *agent.Spec, *directory.Spec, …, with names in the place of ids

	at     Position
	fields map[string]Position // by path within the spec; "name" is that of metadata
	bundle policy.Bundle       // of a Policy
	below  string              // where its files are, with a slash; "" if they stand in the document
}

// where is the place of a field, or of what is around it.
func (d *Document) where(field string) Position {
	for field != "" {
		if p, ok := d.fields[field]; ok {
			return p
		}
		field = field[:max(strings.LastIndexAny(field, ".["), 0)]
	}
	if p, ok := d.fields[""]; ok {
		return p
	}
	return d.at
}

func (d *Document) problem(field, format string, args ...any) Problem {
	p := d.where(field)
	return Problem{p.File, p.Line, p.Column, fmt.Sprintf(format, args...)}
}

// problems places errors of the domain where what they are about is written.
func (d *Document) problems(err error) (all Problems) {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			all = append(all, d.problems(e)...)
		}
		return all
	}
	if p, ok := asProblems(err); ok {
		return p
	}
	var e *estover.Error
	if errors.As(err, &e) {
		return Problems{d.problem(e.Field, "%s", e.Detail)}
	}
	return Problems{d.problem("", "%s", err)}
}

// orFault places an error if it is about what is written, and gives it back
// if it is about something else.
func (d *Document) orFault(err error) error {
	if p, ok := asProblems(err); ok {
		return p
	}
	switch estover.KindOf(err) {
	case estover.Invalid, estover.NotFound, estover.Conflict:
		return d.problems(err)
	}
	return err
}

// Parse reads the documents of some files, or says everything that is wrong
// with them in themselves.
func Parse(files []Source) ([]*Document, error) {
	p := &parser{files: map[string]string{}, seen: map[string]*Document{}}
	size := 0
	for _, f := range files {
		if size += len(f.Text); size > maxText {
			return nil, ErrProblems.With("The files have more than %d MiB together. Apply them in parts.", maxText>>20)
		}
		if _, twice := p.files[f.Path]; twice {
			p.bad = append(p.bad, Problem{File: f.Path, Message: "The file is there twice."})
		}
		p.files[f.Path] = f.Text
	}
	for _, f := range files {
		if !isPolicy(f.Path) {
			p.file(f)
		}
	}
	if len(p.bad) > 0 {
		return nil, p.bad.sorted()
	}
	return p.docs, nil
}

type parser struct {
	files map[string]string
	docs  []*Document
	seen  map[string]*Document
	bad   Problems
}

// yamlLine finds the place in an error of the YAML library.
var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

func (p *parser) file(f Source) {
	d := yaml.NewDecoder(bytes.NewReader([]byte(f.Text)))
	for len(p.bad) <= maxProblems {
		var n yaml.Node
		err := d.Decode(&n)
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			text := err.Error()
			m := yamlLine.FindStringSubmatch(text)
			line := 1
			if m != nil && m[1] != "" {
				line, _ = strconv.Atoi(m[1])
			}
			p.bad = append(p.bad, Problem{f.Path, line, 1, "This is not YAML: " + text[len(m[0]):] + "."})
			return
		}
		if len(n.Content) == 1 && n.Content[0].ShortTag() != "!!null" {
			p.document(f.Path, n.Content[0])
		}
	}
}

// A frame is a document before its spec is known.
type frame struct {
	APIVersion string    `json:"apiVersion"`
	Kind       string    `json:"kind"`
	Metadata   metadata  `json:"metadata"`
	Spec       yaml.Node `json:"spec"`
}

type metadata struct {
	Name string `json:"name"`
}

func (p *parser) document(file string, n *yaml.Node) {
	var f frame
	outer := newDecoder(file, "a document")
	outer.value(n, &f, "")
	doc := &Document{Kind: f.Kind, Name: f.Metadata.Name, at: outer.pos(n)}
	k, known := kinds[f.Kind]
	if f.APIVersion != "" && f.APIVersion != Version {
		outer.wrong("apiVersion", "The apiVersion is %s, not %q.", Version, f.APIVersion)
	}
	if f.Kind != "" && !known {
		outer.wrong("kind", "There is no kind %q.%s", f.Kind, didYouMean(f.Kind, order))
	}
	p.bad = append(p.bad, outer.bad...)
	if !known || len(outer.bad) > 0 {
		return
	}
	inner := newDecoder(file, "the spec of "+withArticle(f.Kind))
	inner.hints = k.hints
	spec := k.make()
	inner.value(&f.Spec, spec, "")
	doc.fields = inner.fields
	doc.fields["name"] = outer.fields["metadata.name"]
	doc.Spec = spec
	if len(inner.bad) > 0 {
		p.bad = append(p.bad, inner.bad...)
		return
	}
	if err := k.check(p, doc); err != nil {
		p.bad = append(p.bad, doc.problems(err)...)
		return
	}
	key := doc.Kind + "/" + doc.Name
	if doc.Kind == KindPolicy {
		key = doc.Kind // there is one set of policies
	}
	if first, twice := p.seen[key]; twice {
		p.bad = append(p.bad, doc.problem("name", "%s %s is there twice, first at %s:%d.", doc.Kind, doc.Name, first.at.File, first.at.Line))
		return
	}
	p.seen[key] = doc
	p.docs = append(p.docs, doc)
}

func withArticle(kind string) string {
	if strings.ContainsRune("AEIOU", rune(kind[0])) {
		return "an " + kind
	}
	return "a " + kind
}
