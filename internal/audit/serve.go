package audit

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"estover.dev"
	"estover.dev/internal/db"
)

// Handler serves every tenant's log as the static files of C2SP tlog-tiles:
//
//	/{tenant}/checkpoint
//	/{tenant}/tile/<L>/<N>[.p/<W>]
//	/{tenant}/tile/entries/<N>[.p/<W>]
//
// Only what a published checkpoint covers is served, so that it may be cached
// for ever. The checkpoint and the hashes are for everybody: they show that the
// log grows and does not change, and nothing else. Entries have no personal
// data, but they say which agent called what, and when: may says whether the
// sender of a request may read them, and has answered if not. If it is nil,
// everybody may.
func (l *Log) Handler(may func(w http.ResponseWriter, r *http.Request, tenant estover.TenantID) bool) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{tenant}/checkpoint", func(w http.ResponseWriter, r *http.Request) {
		t, err := l.published(r.Context(), estover.TenantID(r.PathValue("tenant")))
		if err != nil {
			refuse(w, err)
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "max-age=1")
		_, _ = w.Write([]byte(t.checkpoint))
	})
	mux.HandleFunc("GET /{tenant}/tile/{rest...}", func(w http.ResponseWriter, r *http.Request) {
		tenant := estover.TenantID(r.PathValue("tenant"))
		t, err := parsePath(r.PathValue("rest"))
		if err != nil {
			refuse(w, err)
			return
		}
		caches := "public"
		if t.L < 0 && may != nil {
			if !may(w, r, tenant) {
				return
			}
			caches = "private"
		}
		b, err := l.file(r.Context(), tenant, t)
		if err != nil {
			refuse(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Cache-Control", caches+", max-age=31536000, immutable")
		_, _ = w.Write(b)
	})
	return mux
}

// refuse answers 404 for what is not there and 503 for what cannot be read.
func refuse(w http.ResponseWriter, err error) {
	w.Header().Set("Cache-Control", "no-store")
	if errors.Is(err, ErrNotFound) {
		http.Error(w, "not found", http.StatusNotFound)
		return
	}
	http.Error(w, "the log cannot be read", http.StatusServiceUnavailable)
}

// published is the tenant's tree, if a checkpoint of it is out.
func (l *Log) published(ctx context.Context, tenant estover.TenantID) (t tree, err error) {
	err = l.db.View(ctx, tenant, func(tx *db.Tx) error {
		t, err = readTree(ctx, tx)
		return err
	})
	if err == nil && t.signedSize == 0 {
		err = ErrNotFound
	}
	return t, err
}

// parsePath reads a path below /tile/: a tile, or with a negative level a
// bundle of entries.
func parsePath(path string) (tlog.Tile, error) {
	// The library's paths name the height of tiles, and call entries data.
	if rest, ok := strings.CutPrefix(path, "entries/"); ok {
		path = "data/" + rest
	} else if strings.HasPrefix(path, "data/") {
		return tlog.Tile{}, ErrNotFound
	}
	t, err := tlog.ParseTilePath("tile/8/" + path)
	if err != nil {
		err = ErrNotFound.Because(err)
	}
	return t, err
}

// file is a tile or a bundle of entries.
func (l *Log) file(ctx context.Context, tenant estover.TenantID, t tlog.Tile) (b []byte, err error) {
	err = l.db.View(ctx, tenant, func(tx *db.Tx) error {
		tree, err := readTree(ctx, tx)
		if err != nil {
			return err
		}
		level := max(t.L, 0) // entries go with the hashes of leaves
		if first := t.N << tileHeight; first+int64(t.W) > tree.signedSize>>(tileHeight*level) {
			return ErrNotFound
		}
		if t.L < 0 {
			b, err = bundle(ctx, tx, t.N<<tileHeight, t.W)
		} else {
			b, err = readTile(ctx, tx, t.L, t.N, t.W)
		}
		return err
	})
	return b, err
}

// bundle is a run of entries, each with its length before it.
func bundle(ctx context.Context, tx *db.Tx, first int64, width int) ([]byte, error) {
	leaves, err := readLeaves(ctx, tx, first, first+int64(width))
	if err != nil {
		return nil, err
	}
	if len(leaves) != width {
		return nil, ErrDamaged
	}
	var b []byte
	for _, leaf := range leaves {
		b = appendEntry(b, leaf)
	}
	return b, nil
}
