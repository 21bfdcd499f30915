// Package softkey is an authenticator in software: passkeys for programs that
// play the part of a person, as tests and the demo do. Its keys are in memory and
// nobody is asked before one signs, so it is nothing for real people.
package softkey

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

// An Authenticator holds passkeys, and looks who uses it. The zero value has
// none. It is used by one goroutine.
type Authenticator struct {
	Origin string // that its browser says it is at

	Unverified bool   // it does not look who uses it
	Synced     bool   // its keys are kept in step elsewhere
	Counter    uint32 // with which it signs; it counts on by itself

	keys []heldKey
}

type heldKey struct {
	id, user []byte
	private  *ecdsa.PrivateKey
}

// Errors of an authenticator.
var (
	// ErrDemand is returned for options that do not insist on what a passkey is:
	// that it is found without a name, and that it looks who uses it.
	ErrDemand = errors.New("softkey: the page does not insist on a passkey that looks who uses it")
	// ErrNoKey is returned when there is nothing to sign with.
	ErrNoKey = errors.New("softkey: there is no passkey to sign with")
)

const required = "required"

var b64 = base64.RawURLEncoding

// The flags of authenticator data (WebAuthn, section 6.1).
const (
	present, verified, eligible, backedUp, attested = 0x01, 0x04, 0x08, 0x10, 0x40
)

func (a *Authenticator) flags() byte {
	f := byte(present)
	if !a.Unverified {
		f |= verified
	}
	if a.Synced {
		f |= eligible | backedUp
	}
	return f
}

func (a *Authenticator) data(rp string, flags byte) []byte {
	sum := sha256.Sum256([]byte(rp))
	a.Counter++
	return binary.BigEndian.AppendUint32(append(sum[:], flags), a.Counter)
}

func (a *Authenticator) client(kind, challenge string) ([]byte, error) {
	return json.Marshal(map[string]any{"type": kind, "challenge": challenge, "origin": a.Origin, "crossOrigin": false})
}

// Create makes a passkey as the options of a page say (WebAuthn, section 5.4, as
// JSON), and gives the answer for its form.
func (a *Authenticator) Create(options string) (string, error) {
	var o struct {
		Challenge string              `json:"challenge"`
		RP        struct{ ID string } `json:"rp"`
		User      struct{ ID string } `json:"user"`
		Select    struct {
			Resident string `json:"residentKey"`
			Verify   string `json:"userVerification"`
		} `json:"authenticatorSelection"`
	}
	if err := json.Unmarshal([]byte(options), &o); err != nil {
		return "", fmt.Errorf("softkey: reading the options: %w", err)
	}
	if o.Select.Resident != required || o.Select.Verify != required {
		return "", ErrDemand
	}
	user, err := b64.DecodeString(o.User.ID)
	if err != nil {
		return "", fmt.Errorf("softkey: reading whom the passkey is for: %w", err)
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	k := heldKey{id: []byte(rand.Text()), user: user, private: private}
	mode, err := cbor.CTAP2EncOptions().EncMode()
	if err != nil {
		return "", err
	}
	point, err := private.PublicKey.Bytes() // 4, x and y
	if err != nil {
		return "", err
	}
	public, err := mode.Marshal(map[int]any{1: 2, 3: -7, -1: 1, -2: point[1:33], -3: point[33:]})
	if err != nil {
		return "", err
	}
	data := a.data(o.RP.ID, a.flags()|attested)
	data = append(data, make([]byte, 16)...) // of no make
	data = binary.BigEndian.AppendUint16(data, uint16(len(k.id)))
	data = append(append(data, k.id...), public...)
	object, err := mode.Marshal(map[string]any{"fmt": "none", "attStmt": map[string]any{}, "authData": data})
	if err != nil {
		return "", err
	}
	client, err := a.client("webauthn.create", o.Challenge)
	if err != nil {
		return "", err
	}
	a.keys = append(a.keys, k)
	return k.answer(map[string]any{
		"clientDataJSON": b64.EncodeToString(client), "attestationObject": b64.EncodeToString(object), "transports": []string{"internal"},
	})
}

// Get signs with the last passkey that was made, and gives the answer for the
// form whose options these are (WebAuthn, section 5.5).
func (a *Authenticator) Get(options string) (string, error) {
	var o struct {
		Challenge string `json:"challenge"`
		RP        string `json:"rpId"`
		Verify    string `json:"userVerification"`
	}
	if err := json.Unmarshal([]byte(options), &o); err != nil {
		return "", fmt.Errorf("softkey: reading the options: %w", err)
	}
	if o.Verify != required {
		return "", ErrDemand
	}
	if len(a.keys) == 0 {
		return "", ErrNoKey
	}
	k := a.keys[len(a.keys)-1]
	client, err := a.client("webauthn.get", o.Challenge)
	if err != nil {
		return "", err
	}
	data, clientSum := a.data(o.RP, a.flags()), sha256.Sum256(client)
	sum := sha256.Sum256(append(append([]byte{}, data...), clientSum[:]...))
	signature, err := ecdsa.SignASN1(rand.Reader, k.private, sum[:])
	if err != nil {
		return "", err
	}
	return k.answer(map[string]any{
		"clientDataJSON": b64.EncodeToString(client), "authenticatorData": b64.EncodeToString(data),
		"signature": b64.EncodeToString(signature), "userHandle": b64.EncodeToString(k.user),
	})
}

// answer is what a browser hands back (WebAuthn, section 5.1, as JSON).
func (k *heldKey) answer(response map[string]any) (string, error) {
	b, err := json.Marshal(map[string]any{
		"id": b64.EncodeToString(k.id), "rawId": b64.EncodeToString(k.id), "type": "public-key",
		"response": response, "clientExtensionResults": map[string]any{}, "authenticatorAttachment": "platform",
	})
	return string(b), err
}
