// Vulncheck fails when the program calls code with a known vulnerability. It
// runs govulncheck on the packages it is given and reads its findings.
//
// The database is the live one of the Go project when it answers, else a copy
// made from the data that the Go project publishes as a module, at a pinned
// version. The copy is as old as that version, so on a machine without a way
// out the check says what was known then; its first line tells which was used.
//
// A finding that cannot be mended in the source (the fix is in a Go release
// that this machine does not have) is accepted by a line of accepted.txt:
//
//	GO-2026-0001 stdlib@v1.26.8 why it may stay, and what will end it
//
// The line holds for that version alone. A line that no finding answers is
// named, so that somebody strikes it.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sort"
	"strings"
)

func main() {
	govulncheck := flag.String("govulncheck", "govulncheck", "the program to run")
	accepted := flag.String("accepted", "", "the file of accepted findings")
	dir := flag.String("dir", ".", "where a copy of the database is kept")
	flag.Parse()
	if err := run(*govulncheck, *accepted, *dir, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "vulncheck:", err)
		os.Exit(1)
	}
}

func run(govulncheck, accepted, dir string, packages []string) error {
	db, note, err := database(dir)
	if err != nil {
		return err
	}
	fmt.Println(note)
	var errs bytes.Buffer
	cmd := exec.Command(govulncheck, append([]string{"-format", "json", "-db", db}, packages...)...)
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("%w\n%s", err, errs.Bytes())
	}
	found, err := read(bytes.NewReader(out))
	if err != nil {
		return err
	}
	may, err := acceptances(accepted)
	if err != nil {
		return err
	}
	var open int
	for _, v := range found {
		if why, ok := may[v.key()]; ok {
			fmt.Printf("accepted  %s (%s): %s\n", v.key(), v.Summary, why)
			delete(may, v.key())
			continue
		}
		open++
		fmt.Printf("FOUND     %s: %s; fixed in %s\n          called by %s\n", v.key(), v.Summary, v.Fixed, v.Call)
	}
	for key := range may {
		fmt.Printf("no longer %s: its line in %s can go\n", key, accepted)
	}
	if open > 0 {
		return fmt.Errorf("%d findings", open)
	}
	fmt.Println("Nothing that is called has a known vulnerability, except as listed.")
	return nil
}

// A vulnerability is one that the program calls.
type vulnerability struct {
	ID, Summary, Module, Fixed, Call string
}

func (v vulnerability) key() string { return v.ID + " " + v.Module }

// read takes the findings that name a function from govulncheck's stream, one
// for each advisory and module.
func read(r io.Reader) ([]vulnerability, error) {
	summaries := map[string]string{}
	found := map[string]vulnerability{}
	dec := json.NewDecoder(r)
	for {
		var m struct {
			OSV *struct {
				ID      string `json:"id"`
				Summary string `json:"summary"`
			} `json:"osv"`
			Finding *struct {
				OSV   string `json:"osv"`
				Fixed string `json:"fixed_version"`
				Trace []struct {
					Module   string `json:"module"`
					Version  string `json:"version"`
					Package  string `json:"package"`
					Function string `json:"function"`
				} `json:"trace"`
			} `json:"finding"`
		}
		if err := dec.Decode(&m); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("reading the findings: %w", err)
		}
		if m.OSV != nil {
			summaries[m.OSV.ID] = m.OSV.Summary
		}
		if f := m.Finding; f != nil && len(f.Trace) > 0 && f.Trace[0].Function != "" {
			at, from := f.Trace[0], f.Trace[len(f.Trace)-1]
			v := vulnerability{
				ID: f.OSV, Module: at.Module + "@" + at.Version, Fixed: f.Fixed,
				Call: from.Package + "." + from.Function + ", which reaches " + at.Package + "." + at.Function,
			}
			if _, ok := found[v.key()]; !ok {
				found[v.key()] = v
			}
		}
	}
	var list []vulnerability
	for _, v := range found {
		v.Summary = summaries[v.ID]
		list = append(list, v)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].key() < list[j].key() })
	return list, nil
}

// acceptances reads the file of accepted findings: advisory and module to the
// reason.
func acceptances(file string) (map[string]string, error) {
	may := map[string]string{}
	if file == "" {
		return may, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		line := strings.TrimSpace(s.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		part := strings.SplitN(line, " ", 3)
		if len(part) < 3 {
			return nil, fmt.Errorf("%s: %q has no reason", file, line)
		}
		may[part[0]+" "+part[1]] = part[2]
	}
	return may, nil
}
