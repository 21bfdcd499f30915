package recording

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/klauspost/compress/zstd"

	"estover.dev"
)

// The first line of a blob is its format.
const (
	format = "estover-rec/2"
	// formatOne is what was written before. Only its references are others ([Ref]).
	formatOne = "estover-rec/1"
)

const (
	// segmentSize bounds the plaintext of a segment and of a part of a body.
	segmentSize = 4 << 20
	// partSize is the plaintext of one part of a long body.
	partSize = 1 << 20
	// chunkSize is how much of the compressed plaintext is sealed at once.
	chunkSize = 64 << 10
	// sealing is what a chunk is longer by: a nonce of 12 bytes and a tag of 16.
	sealing = 12 + 16
	// maxHeader bounds the clear header.
	maxHeader = 4 << 10
	// maxBlob is more than any blob of ours has: incompressible plaintext,
	// zstd's own framing, and what sealing adds.
	maxBlob = segmentSize + segmentSize>>7 + maxHeader + 64<<10
)

// A Header is the clear part of a blob: what it is, without what is in it.
type Header struct {
	ID        string           `json:"id"`   // of the key that the blob is sealed under
	Kind      string           `json:"kind"` // segment or body
	Tenant    estover.TenantID `json:"tenant"`
	Session   string           `json:"session"`
	Recording string           `json:"recording"`
	N         int64            `json:"n,omitempty"`     // which segment of the recording, from 1
	First     int64            `json:"first,omitempty"` // the numbers of its frames
	Last      int64            `json:"last,omitempty"`
	From      time.Time        `json:"from,omitzero"` // when they were seen
	To        time.Time        `json:"to,omitzero"`
	Size      int64            `json:"size"`          // bytes of plaintext
	Prev      Digest           `json:"prev,omitzero"` // the digest of the segment before; none before the first
	Root      Digest           `json:"root,omitzero"` // of the Merkle tree over its frames

	format string // of the blob that it was read from
}

// The kinds of blob.
const (
	segmentBlob = "segment"
	bodyBlob    = "body"
)

// key is what seals one blob: HKDF of the recording's key with the blob's id,
// so that no two blobs share one.
func blobKey(recordingKey []byte, format, id string) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, recordingKey, nil, format+"\n"+id, 32)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// A codec compresses and seals blobs. It is safe for use by many at once.
type codec struct {
	encoder *zstd.Encoder
	decoder *zstd.Decoder
	buffers buffers
}

func newCodec() *codec {
	// Sealing authenticates every chunk, so a checksum would say nothing. The
	// window is where a larger one costs time and memory and saves no bytes.
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false), zstd.WithWindowSize(512<<10))
	if err != nil {
		panic("recording: " + err.Error())
	}
	d, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(2*segmentSize), zstd.WithDecoderLowmem(true))
	if err != nil {
		panic("recording: " + err.Error())
	}
	return &codec{encoder: e, decoder: d}
}

// A binding is what each chunk is authenticated with: the digest of all that
// stands before the chunks, the number of the chunk, and whether it is the
// last. A chunk that was moved, left out or taken from elsewhere does not open.
type binding [sha256.Size + 8 + 1]byte

func bind(head []byte) (b binding) {
	sum := sha256.Sum256(head)
	copy(b[:], sum[:])
	return b
}

func (b *binding) at(chunk uint64, last bool) []byte {
	binary.BigEndian.PutUint64(b[sha256.Size:], chunk)
	b[len(b)-1] = 0
	if last {
		b[len(b)-1] = 1
	}
	return b[:]
}

// seal makes a blob, in a buffer, and its name.
func (c *codec) seal(recordingKey []byte, h Header, plain []byte) (*[]byte, Digest, error) {
	aead, err := blobKey(recordingKey, format, h.ID)
	if err != nil {
		return nil, Digest{}, err
	}
	text, err := json.Marshal(h)
	if err != nil {
		return nil, Digest{}, err
	}
	packed := c.buffers.get(len(plain) / 2) // more often than not; it grows if it must
	defer c.buffers.put(packed)
	*packed = c.encoder.EncodeAll(plain, *packed)
	rest := *packed

	out := c.buffers.get(len(rest) + (len(rest)/chunkSize+1)*sealing + len(format) + len(text) + 2)
	*out = append(append(append(append(*out, format...), '\n'), text...), '\n')
	aad := bind(*out)
	for n := uint64(0); ; n++ {
		chunk := rest[:min(chunkSize, len(rest))]
		rest = rest[len(chunk):]
		*out = aead.Seal(*out, nil, chunk, aad.at(n, len(rest) == 0))
		if len(rest) == 0 {
			return out, sha256.Sum256(*out), nil
		}
	}
}

// parse reads the clear header of a blob; rest is what is sealed.
func parse(blob []byte) (h Header, head, rest []byte, err error) {
	first, text, _ := bytes.Cut(blob[:min(len(blob), maxHeader)], []byte{'\n'})
	if h.format = string(first); h.format != format && h.format != formatOne {
		return h, nil, nil, errors.New("it is not in the format " + format)
	}
	end := bytes.IndexByte(text, '\n')
	if end < 0 {
		return h, nil, nil, errors.New("its header has no end")
	}
	if err := json.Unmarshal(text[:end], &h); err != nil {
		return h, nil, nil, fmt.Errorf("its header: %w", err)
	}
	if h.Kind != segmentBlob && h.Kind != bodyBlob {
		return h, nil, nil, fmt.Errorf("it is of the kind %q", h.Kind)
	}
	if h.Size < 0 || h.Size > segmentSize+maxFrame+frameOverhead {
		return h, nil, nil, fmt.Errorf("it says that it has %d bytes", h.Size)
	}
	n := len(first) + 1 + end + 1
	return h, blob[:n], blob[n:], nil
}

// open gives the header and the plaintext of a blob.
func (c *codec) open(recordingKey, blob []byte) (Header, []byte, error) {
	h, head, rest, err := parse(blob)
	if err != nil {
		return h, nil, err
	}
	aead, err := blobKey(recordingKey, h.format, h.ID)
	if err != nil {
		return h, nil, err
	}
	aad := bind(head)
	packed := c.buffers.get(len(rest))
	defer c.buffers.put(packed)
	for n := uint64(0); ; n++ {
		chunk := rest[:min(chunkSize+sealing, len(rest))]
		rest = rest[len(chunk):]
		*packed, err = aead.Open(*packed, nil, chunk, aad.at(n, len(rest) == 0))
		if err != nil {
			return h, nil, fmt.Errorf("chunk %d does not open", n)
		}
		if len(rest) == 0 {
			break
		}
	}
	plain, err := c.decoder.DecodeAll(*packed, make([]byte, 0, h.Size))
	if err != nil {
		return h, nil, fmt.Errorf("decompressing it: %w", err)
	}
	if int64(len(plain)) != h.Size {
		return h, nil, fmt.Errorf("it has %d bytes and says %d", len(plain), h.Size)
	}
	return h, plain, nil
}

// openSegment gives the frames of a segment, checked against its header.
func (c *codec) openSegment(recordingKey, blob []byte) (Header, [][]byte, []Digest, error) {
	h, plain, err := c.open(recordingKey, blob)
	if err != nil {
		return h, nil, nil, err
	}
	if h.Kind != segmentBlob {
		return h, nil, nil, errors.New("it is not a segment")
	}
	frames, err := split(plain)
	if err != nil {
		return h, nil, nil, err
	}
	if int64(len(frames)) != h.Last-h.First+1 || len(frames) == 0 {
		return h, nil, nil, fmt.Errorf("it has %d frames and says %d to %d", len(frames), h.First, h.Last)
	}
	leaves := leavesOf(frames)
	if rootOf(leaves) != h.Root {
		return h, nil, nil, errors.New("its frames do not lead to its root")
	}
	return h, frames, leaves, nil
}
