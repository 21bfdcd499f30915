package pagetest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"testing"

	"github.com/fxamacker/cbor/v2"
)

// An Authenticator holds passkeys, and looks who uses it. What it does wrongly
// is for a test to say.
type Authenticator struct {
	T      testing.TB
	Origin string // that its browser says it is at

	Unverified bool   // it does not look who uses it
	Synced     bool   // its keys are kept in step elsewhere
	Counter    uint32 // with which it signs; it counts on by itself

	keys []heldKey
}

type heldKey struct {
	id, user []byte
	rp       string
	private  *ecdsa.PrivateKey
}

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
	b := append(sum[:], flags)
	return binary.BigEndian.AppendUint32(b, a.Counter)
}

func (a *Authenticator) client(kind, challenge string) []byte {
	b, err := json.Marshal(map[string]any{"type": kind, "challenge": challenge, "origin": a.Origin, "crossOrigin": false})
	a.must(err)
	return b
}

func (a *Authenticator) must(err error) {
	a.T.Helper()
	if err != nil {
		a.T.Fatal(err)
	}
}

// Create makes a passkey as the options of a page say, and gives the answer.
func (a *Authenticator) Create(options string) string {
	a.T.Helper()
	var o struct {
		Challenge string              `json:"challenge"`
		RP        struct{ ID string } `json:"rp"`
		User      struct{ ID string } `json:"user"`
		Select    struct {
			Resident string `json:"residentKey"`
			Verify   string `json:"userVerification"`
		} `json:"authenticatorSelection"`
	}
	a.must(json.Unmarshal([]byte(options), &o))
	if o.Select.Resident != "required" || o.Select.Verify != "required" {
		a.T.Errorf("a passkey is asked for with %+v, want both required", o.Select)
	}
	user, err := b64.DecodeString(o.User.ID)
	a.must(err)
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	a.must(err)
	k := heldKey{id: []byte(rand.Text()), user: user, rp: o.RP.ID, private: private}
	a.keys = append(a.keys, k)
	mode, err := cbor.CTAP2EncOptions().EncMode()
	a.must(err)
	x, y := make([]byte, 32), make([]byte, 32)
	private.X.FillBytes(x)
	private.Y.FillBytes(y)
	public, err := mode.Marshal(map[int]any{1: 2, 3: -7, -1: 1, -2: x, -3: y})
	a.must(err)
	data := a.data(k.rp, a.flags()|attested)
	data = append(data, make([]byte, 16)...)
	data = binary.BigEndian.AppendUint16(data, uint16(len(k.id)))
	data = append(append(data, k.id...), public...)
	object, err := mode.Marshal(map[string]any{"fmt": "none", "attStmt": map[string]any{}, "authData": data})
	a.must(err)
	return a.answer(k, map[string]any{
		"clientDataJSON": b64.EncodeToString(a.client("webauthn.create", o.Challenge)), "attestationObject": b64.EncodeToString(object),
		"transports": []string{"internal"},
	})
}

// Get signs with the last passkey that was made, and gives the answer.
func (a *Authenticator) Get(options string) string {
	a.T.Helper()
	var o struct {
		Challenge string `json:"challenge"`
		RP        string `json:"rpId"`
		Verify    string `json:"userVerification"`
	}
	a.must(json.Unmarshal([]byte(options), &o))
	if o.Verify != "required" {
		a.T.Errorf("a signature is asked for with user verification %q, want required", o.Verify)
	}
	if len(a.keys) == 0 {
		a.T.Fatal("there is no passkey to sign with")
	}
	k := a.keys[len(a.keys)-1]
	data, client := a.data(o.RP, a.flags()), a.client("webauthn.get", o.Challenge)
	clientSum := sha256.Sum256(client)
	sum := sha256.Sum256(append(append([]byte{}, data...), clientSum[:]...))
	signature, err := ecdsa.SignASN1(rand.Reader, k.private, sum[:])
	a.must(err)
	return a.answer(k, map[string]any{
		"clientDataJSON": b64.EncodeToString(client), "authenticatorData": b64.EncodeToString(data),
		"signature": b64.EncodeToString(signature), "userHandle": b64.EncodeToString(k.user),
	})
}

func (a *Authenticator) answer(k heldKey, response map[string]any) string {
	b, err := json.Marshal(map[string]any{
		"id": b64.EncodeToString(k.id), "rawId": b64.EncodeToString(k.id), "type": "public-key",
		"response": response, "clientExtensionResults": map[string]any{}, "authenticatorAttachment": "platform",
	})
	a.must(err)
	return string(b)
}
