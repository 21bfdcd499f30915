package recording

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"gocloud.dev/blob"
	"gocloud.dev/blob/fileblob"
	"gocloud.dev/gcerrors"
)

// OpenBucket opens the place where blobs are kept: a directory, written so
// that what was stored survives a loss of power, or any URL whose driver is
// linked into the program.
func OpenBucket(ctx context.Context, place string) (*blob.Bucket, error) {
	if strings.Contains(place, "://") && !strings.HasPrefix(place, "file://") {
		return blob.OpenBucket(ctx, place)
	}
	dir := strings.TrimPrefix(place, "file://")
	// Temporary files stand beside the final ones, so that a rename stays
	// within one directory, which is then made durable.
	b, err := fileblob.OpenBucket(dir, &fileblob.Options{
		CreateDir: true, DirFileMode: 0o700, NoTempDir: true, Metadata: fileblob.MetadataDontWrite,
	})
	if err != nil {
		return nil, fmt.Errorf("opening the directory of recordings: %w", err)
	}
	return b, nil
}

// blobName is where the blob with this digest is: below a folder of two
// digits, since directories with millions of files are slow to list.
func blobName(d Digest) string {
	s := d.String()
	return s[:2] + "/" + s
}

// digestOf is the digest in the name of a blob.
func digestOf(name string) (d Digest, ok bool) {
	folder, s, _ := strings.Cut(name, "/")
	return d, d.UnmarshalText([]byte(s)) == nil && folder == s[:2]
}

// A store writes and reads blobs.
type store struct {
	bucket  *blob.Bucket
	folders sync.Map // of a file bucket, those whose own entry is durable
}

// put writes a blob durably. One that is there already is the same one, since
// its name is its digest; again writes it all the same, so that it is young.
func (s *store) put(ctx context.Context, d Digest, b []byte, again bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var file *os.File
	w, err := s.bucket.NewWriter(ctx, blobName(d), &blob.WriterOptions{
		ContentType: "application/octet-stream", IfNotExist: !again,
		BeforeWrite: func(as func(any) bool) error {
			as(&file) // a bucket of files hands out the file
			return nil
		},
	})
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	if err == nil && file != nil {
		err = file.Sync()
	}
	if err != nil {
		cancel() // so that closing does not publish what is incomplete
		_ = w.Close()
		return err
	}
	if err := w.Close(); err != nil && gcerrors.Code(err) != gcerrors.FailedPrecondition {
		return err
	}
	if file == nil {
		return nil
	}
	folder := filepath.Dir(file.Name())
	if err := syncDir(folder); err != nil {
		return err
	}
	if _, known := s.folders.Load(folder); !known {
		if err := syncDir(filepath.Dir(folder)); err != nil {
			return err
		}
		s.folders.Store(folder, true)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	return errors.Join(err, d.Close())
}

// get reads a blob and checks that it is what its name says.
func (s *store) get(ctx context.Context, d Digest) ([]byte, error) {
	r, err := s.bucket.NewReader(ctx, blobName(d), nil)
	if err != nil {
		if gcerrors.Code(err) == gcerrors.NotFound {
			return nil, ErrTampered.With("The blob %s is missing.", d)
		}
		return nil, ErrUnavailable.Because(err)
	}
	defer func() { _ = r.Close() }()
	if r.Size() > maxBlob {
		return nil, ErrTampered.With("The blob %s has %d bytes; none is that long.", d, r.Size())
	}
	b := make([]byte, r.Size())
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, ErrUnavailable.Because(err)
	}
	if Digest(sha256.Sum256(b)) != d {
		return nil, ErrTampered.With("The blob %s is not what its name says: it was changed.", d)
	}
	return b, nil
}
