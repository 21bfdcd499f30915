package recording

import (
	"slices"
	"sync"
)

// The sizes of buffers, up to a part of a body and a segment. They grow by four
// at a time, so that what is really in use is not far from what is counted.
var bufferSizes = [...]int{4 << 10, 16 << 10, 64 << 10, 256 << 10, partSize + chunkSize, segmentSize + 2*chunkSize}

// Buffers are used again. Each size has a pool of its own, so that many small
// sessions stay small.
type buffers [len(bufferSizes)]sync.Pool // *[]byte

// get gives an empty buffer for n bytes.
func (p *buffers) get(n int) *[]byte {
	size := n
	for i, s := range bufferSizes {
		if n <= s {
			if b, ok := p[i].Get().(*[]byte); ok {
				return b
			}
			size = s
			break
		}
	}
	b := make([]byte, 0, size)
	return &b
}

// put takes buffers back, and overwrites what was in them.
func (p *buffers) put(list ...*[]byte) {
	for _, b := range list {
		if b == nil {
			continue
		}
		clear(*b)
		*b = (*b)[:0]
		for i, size := range slices.Backward(bufferSizes[:]) {
			if cap(*b) >= size {
				p[i].Put(b)
				break
			}
		}
	}
}
