package page

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// Every page of the program can be read. They are read when they are first shown, which
// is too late to learn that.
func TestTemplates(t *testing.T) {
	all, err := filepath.Glob("../*/*.html")
	if err != nil {
		t.Fatal(err)
	}
	all = slices.DeleteFunc(all, func(path string) bool { return filepath.Base(path) == "layout.html" })
	if len(all) < 15 {
		t.Fatalf("the pages are %q", all)
	}
	for _, path := range all {
		t.Run(path, func(t *testing.T) {
			defer func() {
				if err := recover(); err != nil {
					t.Error(err)
				}
			}()
			if Parse(os.DirFS(filepath.Dir(path)), filepath.Base(path)).read().Lookup("main") == nil {
				t.Error("it defines no main")
			}
		})
	}
}
