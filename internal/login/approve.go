package login

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math/big"

	"github.com/go-webauthn/webauthn/protocol"
	"github.com/go-webauthn/webauthn/protocol/webauthncose"
	"github.com/go-webauthn/webauthn/webauthn"

	"estover.dev"
	"estover.dev/internal/approval/document"
	"estover.dev/internal/directory"
	"estover.dev/internal/page"
)

// errNoKey is returned when a person has no passkey that could sign.
var errNoKey = &estover.Error{Kind: estover.Denied, Code: "no_passkey_to_sign", Detail: "You have no passkey that can sign an approval: make one on the page of how you sign in, or use `estover access approve --ssh-key`."}

// signing is what a passkey is asked that signs a document: its digest is the
// challenge. Nothing about it is kept, since it follows from the document and the
// person.
func (d *Door) signing(r *page.Request, text []byte) (*holder, webauthn.SessionData, error) {
	var s webauthn.SessionData
	if d.keys == nil {
		return nil, s, errNoName
	}
	p, keys, err := d.People.Holder(r.Context(), r.Tenant, r.Visit.Person.ID)
	if err != nil {
		return nil, s, err
	}
	var able []directory.Passkey
	for _, k := range keys {
		if len(k.Public) > 0 {
			able = append(able, k)
		}
	}
	h, err := newHolder(p, able)
	if err != nil {
		return nil, s, err
	}
	if len(h.records) == 0 {
		return nil, s, errNoKey
	}
	digest := document.Digest(text)
	s = webauthn.SessionData{
		Challenge: base64.RawURLEncoding.EncodeToString(digest[:]), RelyingPartyID: d.keys.Config.RPID, UserID: h.WebAuthnID(),
		UserVerification: protocol.VerificationRequired,
	}
	for _, c := range h.records {
		s.AllowedCredentialIDs = append(s.AllowedCredentialIDs, c.ID)
	}
	return h, s, nil
}

// Signing are the options, as JSON, with which the passkeys of the person who is
// signed in sign a document.
func (d *Door) Signing(r *page.Request, text []byte) (string, error) {
	h, s, err := d.signing(r, text)
	if err != nil {
		return "", err
	}
	digest := document.Digest(text)
	options := protocol.PublicKeyCredentialRequestOptions{
		Challenge: digest[:], RelyingPartyID: s.RelyingPartyID, UserVerification: s.UserVerification, Timeout: int(ceremonyLife.Milliseconds()),
		AllowedCredentials: webauthn.Credentials(h.records).CredentialDescriptors(),
	}
	b, err := json.Marshal(options)
	return string(b), err
}

// Signed checks a passkey's answer over a document and gives it as an assertion.
// The passkey's counter has gone on.
func (d *Door) Signed(r *page.Request, text []byte, answer string) (document.Assertion, error) {
	var a document.Assertion
	if err := d.allowed(r); err != nil {
		return a, err
	}
	h, session, err := d.signing(r, text)
	if err != nil {
		return a, err
	}
	if len(answer) > maxAnswer {
		return a, document.ErrSignature
	}
	parsed, err := protocol.ParseCredentialRequestResponseBytes([]byte(answer))
	if err != nil {
		return a, document.ErrSignature.Because(why(err))
	}
	record, err := d.keys.ValidateLogin(h, session, parsed)
	switch {
	case err != nil:
		err = document.ErrSignature.Because(why(err))
	case record.Authenticator.CloneWarning:
		d.Logger.Warn("a passkey counts backwards, as a copy of it would", "person", h.person.ID, "request", r.From.Request)
		err = document.ErrSignature.With("This passkey answers as a copy of it would. Use another one, and tell your administrator.")
	}
	if err != nil {
		d.suspect(r, h.person.ID, err)
		return a, d.failed(r, err)
	}
	for _, k := range h.keys {
		if !bytes.Equal(k.Credential, record.ID) {
			continue
		}
		if k.Record, err = json.Marshal(record); err != nil {
			return a, err
		}
		a = document.Assertion{
			Method: document.Passkey, Key: k.ID, Signature: parsed.Raw.AssertionResponse.Signature,
			AuthenticatorData: parsed.Raw.AssertionResponse.AuthenticatorData, ClientData: parsed.Raw.AssertionResponse.ClientDataJSON,
		}
		return a, d.People.Signed(r.Context(), r.Tenant, k)
	}
	return a, document.ErrSignature
}

// publicKey is the key of a passkey as others than WebAuthn write it
// (SubjectPublicKeyInfo, RFC 5280); nil if it is of a type that signs no
// approvals.
func publicKey(cose []byte) ([]byte, error) {
	key, err := webauthncose.ParsePublicKey(cose)
	if err != nil {
		return nil, err
	}
	var pub any
	switch k := key.(type) {
	case webauthncose.EC2PublicKeyData:
		if pub, err = k.ToECDSA(); err != nil {
			return nil, err
		}
	case webauthncose.OKPPublicKeyData:
		if len(k.XCoord) != ed25519.PublicKeySize {
			return nil, errors.New("an Ed25519 key of another size")
		}
		pub = ed25519.PublicKey(k.XCoord)
	case webauthncose.RSAPublicKeyData:
		if webauthncose.COSEAlgorithmIdentifier(k.Algorithm) != webauthncose.AlgRS256 {
			return nil, nil
		}
		e, err := webauthncose.ParseRSAPublicKeyDataExponent(&k)
		if err != nil {
			return nil, err
		}
		pub = &rsa.PublicKey{N: new(big.Int).SetBytes(k.Modulus), E: e}
	default:
		return nil, nil
	}
	return x509.MarshalPKIXPublicKey(pub)
}
