package audit

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// What the kernel cannot give room on a disk is not taken, and nobody falls over it:
// here there is no file any more where the window is.
func TestWindowWithoutItsDisk(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "spool.0"))
	fatal(t, err)
	defer f.Close()
	w := mapWindow(f, 64<<10)
	if len(w) != 64<<10 {
		t.Fatalf("the window has %d bytes, want 64 KiB", len(w))
	}
	defer unmapWindow(w)
	record := bytes.Repeat([]byte("a record "), 1000)
	fatal(t, w.put(record, 5000))
	b, err := os.ReadFile(f.Name())
	fatal(t, err)
	if len(b) != len(w) || !bytes.Equal(b[5000:5000+len(record)], record) {
		t.Error("what was put into the window is not in the file")
	}
	fatal(t, f.Truncate(8<<10))
	if err := w.put(record, 5000); err == nil {
		t.Error("a record was taken for which there is no room")
	}
	fatal(t, w.put(record[:100], 0))
}
