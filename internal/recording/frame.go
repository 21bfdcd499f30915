package recording

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/fxamacker/cbor/v2"

	"estover.dev"
)

// A Kind says what a frame holds.
type Kind string

// The kinds of frame.
const (
	RequestHead  Kind = "http.req.head"  // see [RequestHeadOf]
	ResponseHead Kind = "http.resp.head" // see [ResponseHeadOf]
	HTTPBody     Kind = "http.body"      // a piece of a body, in order; or a Ref to the rest of it
	SSE          Kind = "sse"            // bytes of an event stream, as they were delivered
	WebSocket    Kind = "ws"             // one message
	Policy       Kind = "policy"         // a decision, as JSON
	Note         Kind = "note"           // what else happened, as JSON
)

// A Dir says which way the data went.
type Dir string

// The directions. What went nowhere, a decision for example, has none.
const (
	Up   Dir = "up"   // from the agent to the system
	Down Dir = "down" // from the system to the agent
)

// A Frame is one thing that was seen: a head, a piece of a body, a message, a
// decision.
type Frame struct {
	Recording string        `json:"recording"`       // which recording of the session it belongs to
	Seq       int64         `json:"seq"`             // its place in the recording, from 1, without gaps
	At        time.Time     `json:"at"`              // in whole microseconds
	Stream    uint64        `json:"stream"`          // the exchange it belongs to; 0 is the session itself
	Dir       Dir           `json:"dir,omitempty"`   // which way it went
	Kind      Kind          `json:"kind"`            // what it is
	Class     estover.Class `json:"class"`           // how sensitive it is
	Data      []byte        `json:"data,omitempty"`  // what was seen; base64 in JSON
	Ref       *Ref          `json:"ref,omitempty"`   // where it is, if it is not here
	Salt      []byte        `json:"salt,omitempty"`  // what makes its digest impossible to guess
	Digest    Digest        `json:"digest,omitzero"` // its leaf in the Merkle tree of its segment
}

// A Ref stands at the end of a body that was too long for frames: it names the
// blobs that hold what followed the frames, and the digest of that. What is in
// frames has their digests. In estover-rec/1 the digest was that of the whole.
type Ref struct {
	From  int64    `cbor:"from" json:"from"`                   // bytes of the body in the frames before
	Size  int64    `cbor:"size" json:"size"`                   // bytes of the whole body
	Kept  int64    `cbor:"kept" json:"kept"`                   // bytes that were kept; less than Size if it was cut
	Sum   Digest   `cbor:"sum,omitzero" json:"sum,omitzero"`   // SHA-256 of the whole body, whatever was kept: in estover-rec/1
	Rest  Digest   `cbor:"rest,omitzero" json:"rest,omitzero"` // SHA-256 of the body from From on, whatever was kept
	Parts []Digest `cbor:"parts" json:"parts,omitempty"`       // the blobs from From on, in order
}

const (
	saltSize = 16
	// maxFrame bounds the data of one frame. Bodies come in pieces of at most
	// pieceSize.
	maxFrame  = 1 << 20
	pieceSize = 64 << 10
	// frameOverhead is more than what encoding adds to the data of a frame.
	frameOverhead = 192
)

// The heads of CBOR items that frames are made of (RFC 8949, section 3).
const (
	cborUint  = 0 << 5
	cborBytes = 2 << 5
	cborText  = 3 << 5
	cborMap   = 5 << 5
)

func appendCBOR(b []byte, major byte, n uint64) []byte {
	switch {
	case n < 24:
		return append(b, major|byte(n))
	case n < 1<<8:
		return append(b, major|24, byte(n))
	case n < 1<<16:
		return binary.BigEndian.AppendUint16(append(b, major|25), uint16(n))
	case n < 1<<32:
		return binary.BigEndian.AppendUint32(append(b, major|26), uint32(n))
	default:
		return binary.BigEndian.AppendUint64(append(b, major|27), n)
	}
}

func appendText[S ~string](b []byte, s S) []byte {
	return append(appendCBOR(b, cborText, uint64(len(s))), s...)
}

func appendBlob(b, data []byte) []byte {
	return append(appendCBOR(b, cborBytes, uint64(len(data))), data...)
}

// deterministic writes CBOR in the one form of RFC 8949, section 4.2.1.
var deterministic = func() cbor.EncMode {
	m, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		panic("recording: " + err.Error())
	}
	return m
}()

// strict reads CBOR that has one meaning only.
var strict = func() cbor.DecMode {
	m, err := cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField, UTF8: cbor.UTF8RejectInvalid, MaxNestedLevels: 4,
		FieldNameMatching: cbor.FieldNameMatchingCaseSensitive,
	}.DecMode()
	if err != nil {
		panic("recording: " + err.Error())
	}
	return m
}()

// appendFrame writes the frame with its length before it, and gives it a salt.
// The CBOR is written by hand, in the deterministic form: this is the hot path
// of every exchange.
func appendFrame(b []byte, f *Frame, ref []byte) []byte {
	start := len(b)
	b = append(b, 0, 0, 0, 0)
	b = appendCBOR(b, cborMap, 8)
	b = appendCBOR(appendText(b, "t"), cborUint, uint64(f.At.UnixMicro()))
	b = appendText(appendText(b, "dir"), f.Dir)
	if ref != nil {
		b = append(appendText(b, "ref"), ref...)
	}
	b = appendCBOR(appendText(b, "seq"), cborUint, uint64(f.Seq))
	if ref == nil {
		b = appendBlob(appendText(b, "data"), f.Data)
	}
	b = appendText(appendText(b, "kind"), f.Kind)
	b = appendCBOR(appendText(b, "salt"), cborBytes, saltSize)
	b = append(b, make([]byte, saltSize)...)
	_, _ = rand.Read(b[len(b)-saltSize:]) // never fails
	b = appendText(appendText(b, "class"), f.Class)
	b = appendCBOR(appendText(b, "stream"), cborUint, f.Stream)
	binary.BigEndian.PutUint32(b[start:], uint32(len(b)-start-4))
	return b
}

// frameCBOR is a frame as it is stored.
type frameCBOR struct {
	At     int64         `cbor:"t"`
	Dir    Dir           `cbor:"dir"`
	Ref    *Ref          `cbor:"ref,omitempty"`
	Seq    int64         `cbor:"seq"`
	Data   []byte        `cbor:"data,omitempty"`
	Kind   Kind          `cbor:"kind"`
	Salt   []byte        `cbor:"salt"`
	Class  estover.Class `cbor:"class"`
	Stream uint64        `cbor:"stream"`
}

// decodeFrame reads a frame without its length. The frame does not share the
// bytes of b.
func decodeFrame(b []byte) (Frame, error) {
	var c frameCBOR
	if err := strict.Unmarshal(b, &c); err != nil {
		return Frame{}, err
	}
	switch {
	case len(c.Salt) != saltSize:
		return Frame{}, errors.New("a frame without its salt")
	case c.Seq < 1:
		return Frame{}, fmt.Errorf("a frame with the number %d", c.Seq)
	case c.Ref != nil && (len(c.Data) > 0 || c.Ref.From < 0 || c.Ref.Kept < c.Ref.From || c.Ref.Size < c.Ref.Kept || (c.Ref.Sum == Digest{}) == (c.Ref.Rest == Digest{})):
		return Frame{}, errors.New("a reference that cannot be")
	}
	return Frame{
		Seq: c.Seq, At: time.UnixMicro(c.At).UTC(), Stream: c.Stream, Dir: c.Dir, Kind: c.Kind,
		Class: c.Class, Data: c.Data, Ref: c.Ref, Salt: c.Salt,
	}, nil
}

// DecodeFrame reads the bytes of a frame that was disclosed.
func DecodeFrame(b []byte) (Frame, error) {
	f, err := decodeFrame(b)
	if err == nil {
		f.Digest = leafHash(b)
	}
	return f, err
}

// split cuts the plaintext of a segment into the bytes of its frames, which it
// shares.
func split(plain []byte) ([][]byte, error) {
	var frames [][]byte
	for len(plain) > 0 {
		if len(plain) < 4 {
			return nil, errors.New("a length that is cut off")
		}
		n := binary.BigEndian.Uint32(plain)
		if uint64(n) > uint64(len(plain)-4) {
			return nil, errors.New("a frame that is cut off")
		}
		frames = append(frames, plain[4:4+n])
		plain = plain[4+n:]
	}
	return frames, nil
}

// encodeRef writes a reference for appendFrame.
func encodeRef(r *Ref) []byte {
	b, err := deterministic.Marshal(r)
	if err != nil {
		panic("recording: a reference that cannot be encoded: " + err.Error())
	}
	return b
}
