package audit

import (
	"fmt"

	"golang.org/x/mod/sumdb/tlog"
)

// Of a tile: 2^tileHeight hashes.
const (
	tileHeight = 8
	tileWidth  = 1 << tileHeight
	tileSize   = tileWidth * tlog.HashSize
)

// A tile is the n-th run of up to 256 hashes of one level. Level 0 has the
// hashes of leaves, level 1 those of full tiles of level 0, and so on.
type tile struct {
	level  int
	n      int64
	hashes []byte
}

// An edge is the right edge of a tree: the hashes of each level that do not
// fill a tile yet. It is all that is needed to append, and to know the root.
type edge struct {
	size   int64
	levels [][]byte // may be shorter than the tree is high: then those above are empty
}

// tileOnEdge is the number of the level's tile that is not full in a tree of
// this size, and how many hashes it has.
func tileOnEdge(size int64, level int) (n int64, width int) {
	hashes := size >> (tileHeight * level)
	return hashes / tileWidth, int(hashes % tileWidth)
}

// grow appends leaf hashes, one after the other, and gives the tiles that changed,
// full or not.
func (e *edge) grow(hashes []byte) []tile {
	var changed []tile
	top := 0
	add := func(level int, hashes []byte) {
		if level == len(e.levels) {
			e.levels = append(e.levels, nil)
		}
		top = max(top, level)
		e.levels[level] = append(e.levels[level], hashes...)
	}
	for len(hashes) > 0 {
		_, width := tileOnEdge(e.size, 0)
		n := min(len(hashes), tileSize-width*tlog.HashSize)
		add(0, hashes[:n])
		hashes = hashes[n:]
		e.size += int64(n / tlog.HashSize)
		for level := 0; len(e.levels[level]) == tileSize; level++ {
			n, _ := tileOnEdge(e.size, level)
			changed = append(changed, tile{level, n - 1, e.levels[level]})
			root := rootOfTile(e.levels[level])
			e.levels[level] = nil
			add(level+1, root[:])
		}
	}
	for level := 0; level <= top && level < len(e.levels); level++ {
		if len(e.levels[level]) > 0 {
			n, _ := tileOnEdge(e.size, level)
			changed = append(changed, tile{level, n, e.levels[level]})
		}
	}
	return changed
}

// rootOfTile is the hash of the subtree whose leaves are these hashes, a power
// of two of them.
func rootOfTile(hashes []byte) tlog.Hash {
	if len(hashes) == tlog.HashSize {
		return tlog.Hash(hashes)
	}
	half := len(hashes) / 2
	return tlog.NodeHash(rootOfTile(hashes[:half]), rootOfTile(hashes[half:]))
}

// root is the hash of the whole tree.
func (e *edge) root() (tlog.Hash, error) {
	return tlog.TreeHash(e.size, tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		for i, index := range indexes {
			t := tlog.TileForIndex(tileHeight, index)
			if t.L >= len(e.levels) {
				return nil, fmt.Errorf("the tree has no level %d", t.L)
			}
			have := e.levels[t.L]
			t.W = len(have) / tlog.HashSize
			var err error
			if out[i], err = tlog.HashFromTile(t, have, index); err != nil {
				return nil, err
			}
		}
		return out, nil
	}))
}
