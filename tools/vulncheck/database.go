package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// The live database, and the module that holds the same data.
const (
	live    = "https://vuln.go.dev"
	module  = "golang.org/x/vulndb"
	version = "v0.0.0-20261105234957-e22db6528018"
	sum     = "h1:mfngRv0Yoh0VApsXKEN82CjD99kl7mtparN3bs3JnqI="
)

// database gives the address of the database, and a sentence about it. A copy
// is made below dir.
func database(dir string) (db, note string, err error) {
	client := &http.Client{Timeout: 5 * time.Second}
	if resp, err := client.Head(live + "/index/db.json"); err == nil {
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			return live, "The database is the live one.", nil
		}
	}
	dir, err = filepath.Abs(filepath.Join(dir, version))
	if err != nil {
		return "", "", err
	}
	if _, err := os.Stat(filepath.Join(dir, "index", "db.json")); err != nil {
		if err := build(dir); err != nil {
			return "", "", fmt.Errorf("making a copy of the database: %w", err)
		}
	}
	return "file://" + dir, "The live database cannot be reached; this is the copy of " + version + ".", nil
}

// An entry is what the indexes need of one advisory in the OSV format.
type entry struct {
	ID       string    `json:"id"`
	Modified time.Time `json:"modified"`
	Affected []struct {
		Package struct {
			Name string `json:"name"`
		} `json:"package"`
		Ranges []struct {
			Events []struct {
				Fixed string `json:"fixed"`
			} `json:"events"`
		} `json:"ranges"`
	} `json:"affected"`
}

// A listed advisory is one line of the index of modules.
type listed struct {
	ID       string    `json:"id"`
	Modified time.Time `json:"modified"`
	Fixed    string    `json:"fixed,omitempty"`
}

// build lays the module's advisories out as version 1 of the database's
// format. The file that [database] looks for is written last.
func build(dir string) error {
	source, err := download()
	if err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(source, "data", "osv", "GO-*.json"))
	if err != nil || len(files) == 0 {
		return errors.Join(err, fmt.Errorf("no advisories in %s", source))
	}
	for _, d := range []string{"ID", "index"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	modules := map[string][]listed{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		var e entry
		if err := json.Unmarshal(b, &e); err != nil {
			return fmt.Errorf("%s: %w", filepath.Base(f), err)
		}
		for _, a := range e.Affected {
			l := listed{ID: e.ID, Modified: e.Modified}
			for _, r := range a.Ranges {
				for _, ev := range r.Events {
					if ev.Fixed != "" {
						l.Fixed = ev.Fixed
					}
				}
			}
			have := modules[a.Package.Name]
			if n := len(have); n > 0 && have[n-1].ID == e.ID {
				continue // one line an advisory, however many of its entries name the module
			}
			modules[a.Package.Name] = append(have, l)
		}
		if err := os.WriteFile(filepath.Join(dir, "ID", e.ID+".json"), b, 0o644); err != nil {
			return err
		}
	}
	type line struct {
		Path  string   `json:"path"`
		Vulns []listed `json:"vulns"`
	}
	var index []line
	for path, vulns := range modules {
		index = append(index, line{path, vulns})
	}
	if err := write(filepath.Join(dir, "index", "modules.json"), index); err != nil {
		return err
	}
	return write(filepath.Join(dir, "index", "db.json"), map[string]time.Time{"modified": {}})
}

// download fetches the module and gives the directory it lies in.
func download() (string, error) {
	out, err := exec.Command("go", "mod", "download", "-json", module+"@"+version).Output()
	if err != nil {
		return "", fmt.Errorf("go mod download %s: %w\n%s", module, err, out)
	}
	var got struct{ Dir, Sum string }
	if err := json.Unmarshal(out, &got); err != nil {
		return "", err
	}
	if got.Sum != sum {
		return "", fmt.Errorf("%s has the sum %s, not %s", module, got.Sum, sum)
	}
	return got.Dir, nil
}

func write(file string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(file, b, 0o644)
}
