package attest

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	"github.com/transparency-dev/formats/proof"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// PayloadType is the type of what an envelope holds.
const PayloadType = "application/vnd.in-toto+json"

// An Envelope is a DSSE envelope around a statement.
type Envelope = dsse.Envelope

// A Signer signs statements with an Ed25519 key. It is safe for use by many
// at once if the key is.
type Signer struct {
	key  crypto.Signer
	id   string
	dsse *dsse.EnvelopeSigner
}

// NewSigner makes a Signer of an Ed25519 key, which may live in a vault or a
// module.
func NewSigner(key crypto.Signer) (*Signer, error) {
	pub, ok := key.Public().(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("receipts are signed by an Ed25519 key, not by a %T", key.Public())
	}
	s := &Signer{key: key, id: KeyID(pub)}
	var err error
	s.dsse, err = dsse.NewEnvelopeSigner(dsseKey{s: s})
	return s, err
}

// KeyID is the id of the signer's key.
func (s *Signer) KeyID() string { return s.id }

// Sign puts the statement's bytes into a signed envelope.
func (s *Signer) Sign(ctx context.Context, statement []byte) (Envelope, error) {
	e, err := s.dsse.SignPayload(ctx, PayloadType, statement)
	if err != nil {
		return Envelope{}, fmt.Errorf("signing the statement: %w", err)
	}
	return *e, nil
}

// KeyID is the id by which envelopes name a key: the fingerprint that ssh
// prints, which stock DSSE tools compute too.
func KeyID(pub ed25519.PublicKey) string {
	id, err := dsse.SHA256KeyID(pub)
	if err != nil {
		panic("attest: an Ed25519 key without a fingerprint: " + err.Error())
	}
	return id
}

// VerifierKey writes a public key as it stands in a trust policy: a verifier
// key of c2sp.org/signed-note. The name has neither spaces nor "+".
func VerifierKey(name string, pub ed25519.PublicKey) (string, error) {
	return note.NewEd25519VerifierKey(name, pub)
}

// Proof writes a c2sp.org/tlog-proof@v1: the statement whose bytes are the
// leaf at index is in the tree that the checkpoint signs.
func Proof(index int64, hashes []tlog.Hash, checkpoint []byte) string {
	p := proof.TLogProof{Index: uint64(index), Checkpoint: checkpoint}
	for _, h := range hashes {
		p.Hashes = append(p.Hashes, h)
	}
	return string(p.Marshal())
}

// open checks that one of the keys signed the envelope and nobody else did,
// and gives the statement's bytes and the key.
func open(e Envelope, keys []key) ([]byte, key, error) {
	switch {
	case e.PayloadType != PayloadType:
		return nil, key{}, fmt.Errorf("the envelope holds a %q, not a statement", e.PayloadType)
	case len(e.Signatures) != 1:
		return nil, key{}, fmt.Errorf("the envelope has %d signatures, not one", len(e.Signatures))
	}
	id := e.Signatures[0].KeyID
	for _, k := range keys {
		if k.id != id {
			continue
		}
		v, err := dsse.NewEnvelopeVerifier(dsseKey{pub: k.pub})
		if err != nil {
			return nil, key{}, err
		}
		_, statement, err := v.VerifyAndDecode(context.Background(), &e)
		if err != nil {
			return nil, key{}, fmt.Errorf("the signature is not by %s (%s)", k.name, k.id)
		}
		return statement, k, nil
	}
	return nil, key{}, unknownKey(id)
}

// An unknownKey is the id of a key that nobody vouches for.
type unknownKey string

func (id unknownKey) Error() string { return "the key " + string(id) + " is not enrolled" }

// A dsseKey is a key as the DSSE library wants it.
type dsseKey struct {
	s   *Signer
	pub ed25519.PublicKey
}

func (k dsseKey) Sign(_ context.Context, data []byte) ([]byte, error) {
	return k.s.key.Sign(rand.Reader, data, crypto.Hash(0))
}

func (k dsseKey) Verify(_ context.Context, data, sig []byte) error {
	if !ed25519.Verify(k.pub, data, sig) {
		return errors.New("the signature is wrong")
	}
	return nil
}

func (k dsseKey) KeyID() (string, error) {
	if k.s != nil {
		return k.s.id, nil
	}
	return KeyID(k.pub), nil
}

func (k dsseKey) Public() crypto.PublicKey {
	if k.s != nil {
		return k.s.key.Public()
	}
	return k.pub
}
