package gateway

import (
	"bufio"
	"compress/gzip"
	"compress/zlib"
	"io"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// maxWindow is how much memory a decoder may take for what it has decoded.
const maxWindow = 8 << 20

// decode decodes a body that came compressed although it was asked for in
// clear. An encoding that is not known, or several, are refused: what cannot be
// read is not passed on (gateway.md, P16).
func decode(encoding string, from io.Reader) (io.ReadCloser, error) {
	switch strings.ToLower(strings.TrimSpace(encoding)) {
	case "gzip", "x-gzip":
		return &lazy{from: from, open: func(r io.Reader) (io.ReadCloser, error) { return gzip.NewReader(r) }}, nil
	case "deflate":
		return &lazy{from: from, open: func(r io.Reader) (io.ReadCloser, error) { return zlib.NewReader(r) }}, nil
	case "zstd":
		return &lazy{from: from, open: func(r io.Reader) (io.ReadCloser, error) {
			d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
			if err != nil {
				return nil, err
			}
			return d.IOReadCloser(), nil
		}}, nil
	}
	return nil, ErrAnswer.With("The upstream compressed its answer as %q although it was asked not to; that cannot be read here.", encoding)
}

// A lazy reader opens a decoder when it is first read, since opening one reads.
type lazy struct {
	from io.Reader
	open func(io.Reader) (io.ReadCloser, error)
	r    io.ReadCloser
	err  error
}

// Read decodes.
func (l *lazy) Read(p []byte) (int, error) {
	if l.r == nil && l.err == nil {
		r, err := l.open(bufio.NewReaderSize(l.from, 4<<10))
		switch err {
		case nil:
			l.r = r
		case io.EOF:
			return 0, io.EOF // a body without a byte is an empty one
		default:
			l.err = err
		}
	}
	if l.err != nil {
		return 0, ErrAnswer.With("The answer of the upstream cannot be decoded.").Because(l.err)
	}
	n, err := l.r.Read(p)
	if err != nil && err != io.EOF {
		err = ErrAnswer.With("The answer of the upstream cannot be decoded.").Because(err)
	}
	return n, err
}

// Close gives the decoder's memory back.
func (l *lazy) Close() error {
	if l.r != nil {
		return l.r.Close()
	}
	return nil
}
