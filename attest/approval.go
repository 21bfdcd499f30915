package attest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"hash"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/crypto/ssh"
)

// ApprovalFormat is the first line of an approval document's value, and what
// goes before the document where it is hashed.
const ApprovalFormat = "estover-approval-v1"

// ApprovalNamespace is the namespace of signatures by ssh keys: what
// `ssh-keygen -Y sign -n` is given.
const ApprovalNamespace = "estover-approval"

// ApprovalDigest is what stands for an approval document: the SHA-256 of
// "estover-approval-v1\n" and the document. It is the challenge that a passkey
// signs.
func ApprovalDigest(document []byte) Digest {
	h := sha256.New()
	h.Write([]byte(ApprovalFormat + "\n"))
	h.Write(document)
	return DigestOf(h)
}

// The ways in which a request is approved.
const (
	ByPolicy = "policy" // by a rule, without anybody being asked
	ByPeople = "human"
)

// An ApprovalRef names the approval that the action's grant came of.
type ApprovalRef struct {
	Mode   string `json:"mode,omitzero"`   // policy or human; "" if the grant came of no request
	Digest Digest `json:"digest,omitzero"` // commitment to the [Approval], for human
}

// An Approval is what people approved, and how: what the digest of an
// [ApprovalRef] commits to.
type Approval struct {
	Document string         `json:"document"` // the text that they were shown
	Votes    []ApprovalVote `json:"votes"`
}

// An ApprovalVote is one person's word.
type ApprovalVote struct {
	Approver  string       `json:"approver"` // user:usr_…
	At        time.Time    `json:"at"`
	Assertion *Assertion   `json:"assertion,omitzero"` // nil where it was not signed
	Key       *ApproverKey `json:"key,omitzero"`       // as it was registered; the gateway vouches for whose it is
}

// approvalStep checks that the grant came of an approval of what was done, by
// somebody else than who asked.
func approvalStep(a *Action, disclosed []Disclosure) Step {
	switch {
	case a.Approval.Mode == "" && a.Approval.Digest.IsZero():
		return say(ApprovalStep, Pass, "The grant came of no request that somebody had to approve.")
	case a.Approval.Mode == ByPolicy:
		return say(ApprovalStep, Pass, "As attested by the gateway: policy approved the request by itself.")
	case a.Approval.Mode != ByPeople || a.Approval.Digest.IsZero():
		return say(ApprovalStep, Fail, "The statement does not say what was approved.")
	}
	d, ok := find(disclosed, ApprovalRecord)
	if !ok {
		return say(ApprovalStep, NotDisclosed, "People approved the request; what they were shown and signed is not in the file.")
	}
	if Sum(d.hashed()) != a.Approval.Digest {
		return say(ApprovalStep, Fail, "The approval that is disclosed is not the one that was signed.")
	}
	var approval Approval
	if err := json.Unmarshal(d.Octets, &approval); err != nil {
		return say(ApprovalStep, Fail, "The approval cannot be read: %v.", err)
	}
	signed, err := approval.covers(a)
	switch {
	case err != nil:
		return failed(err, ApprovalStep, "")
	case signed < len(approval.Votes):
		return say(ApprovalStep, NotDisclosed, "As attested by the gateway: %s approved what was done, other than who asked for it; %d of them signed the document.", people(len(approval.Votes)), signed)
	}
	return say(ApprovalStep, Pass, "%s approved what was done, other than who asked for it, and signed the document, each with a key of their own.", people(signed))
}

func people(n int) string {
	if n == 1 {
		return "One person"
	}
	return fmt.Sprintf("%d people", n)
}

// covers says why the approval is none of this action. signed is how many have
// signed its document.
func (p Approval) covers(a *Action) (signed int, err error) {
	doc := lines(p.Document)
	switch {
	case doc.first("format") != ApprovalFormat || !strings.HasPrefix(p.Document, "format: "):
		return 0, errors.New("what was approved is no approval document")
	case doc.first("tenant") != a.Tenant:
		return 0, fmt.Errorf("the approval is one of the tenant %s", doc.first("tenant"))
	case doc.first("agent") != a.Agent.ID:
		return 0, fmt.Errorf("the approval is for %s, not for %s", doc.first("agent"), a.Agent.ID)
	case !doc.names(a.Call.Resource, a.Call.Name):
		return 0, fmt.Errorf("the approval does not name %q on %s", a.Call.Name, a.Call.Resource)
	}
	until, err := time.Parse(time.RFC3339, doc.first("not-after"))
	if err != nil || a.Time.After(until) {
		return 0, fmt.Errorf("the approval was good until %s", doc.first("not-after"))
	}
	want := 1
	if n, err := strconv.Atoi(doc.first("approvals")); err == nil {
		want = max(want, n)
	}
	voted := map[string]bool{}
	for _, v := range p.Votes {
		switch {
		case v.Approver == "" || voted[v.Approver]:
			return 0, fmt.Errorf("%q approved it twice", v.Approver)
		case v.Approver == doc.first("requester") || slices.Contains(doc.all("chain"), v.Approver):
			return 0, fmt.Errorf("%s approved their own request", v.Approver)
		case v.At.After(a.Time):
			return 0, fmt.Errorf("%s approved it after the call", v.Approver)
		}
		voted[v.Approver] = true
		if v.Assertion == nil || v.Key == nil {
			continue
		}
		if err := v.Assertion.Verify([]byte(p.Document), *v.Key); err != nil {
			return 0, fmt.Errorf("the approval of %s does not count: %w", v.Approver, err)
		}
		signed++
	}
	switch {
	case len(p.Votes) < want:
		return 0, fmt.Errorf("%d of %d people have approved it", len(p.Votes), want)
	case doc.first("signed") != "" && signed < len(p.Votes):
		return 0, errors.New("not all who approved it have signed")
	}
	return signed, nil
}

// lines are the lines of an approval document, which has one key and value on
// each. A value never holds a line break.
type lines string

// all are the values of a key, in order.
func (l lines) all(key string) (values []string) {
	for line := range strings.Lines(string(l)) {
		if v, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), key+": "); ok {
			values = append(values, v)
		}
	}
	return values
}

// first is the first value of a key, or "".
func (l lines) first(key string) string {
	if all := l.all(key); len(all) > 0 {
		return all[0]
	}
	return ""
}

// names reports whether an item of the document names an action of a resource.
func (l lines) names(resource, action string) bool {
	there := false
	for line := range strings.Lines(string(l)) {
		key, v, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		switch key {
		case "item":
			there = false
		case "resource-name":
			there = v == resource
		case "action":
			if there && matches(v, action) {
				return true
			}
		}
	}
	return false
}

// The methods by which a person signs an approval.
const (
	ByPasskey = "passkey" // a WebAuthn assertion whose challenge is the document's digest
	BySSH     = "ssh"     // an SSH signature (SSHSIG) of the document, in the namespace estover-approval
)

// An Assertion is what a person's key has said of an approval document.
type Assertion struct {
	Method            string `json:"method"`
	Key               string `json:"key"`                        // the id of the key
	AuthenticatorData []byte `json:"authenticatorData,omitzero"` // of a passkey
	ClientData        []byte `json:"clientDataJSON,omitzero"`    // of a passkey
	Signature         []byte `json:"signature"`                  // of an ssh key: the blob of SSHSIG, or it in its armour
}

// An ApproverKey is the public half of a key that a person approves with.
type ApproverKey struct {
	ID           string `json:"id"`
	Method       string `json:"method"`
	Public       []byte `json:"public"`                // of a passkey: SubjectPublicKeyInfo (RFC 5280); of an ssh key: its wire form
	RelyingParty string `json:"relyingParty,omitzero"` // of a passkey: the name that it belongs to
	Origin       string `json:"origin,omitzero"`       // of a passkey: the only origin that it signs for
	MustVerify   bool   `json:"mustVerify,omitzero"`   // of an ssh key in a security key: a PIN or a finger each time
}

// Verify checks that the key has signed this document and no other. A passkey
// must have looked who uses it.
func (a *Assertion) Verify(document []byte, k ApproverKey) error {
	switch {
	case a.Method != k.Method || a.Key != k.ID:
		return errors.New("the signature names another key")
	case a.Method == ByPasskey:
		return a.passkey(document, k)
	case a.Method == BySSH:
		return a.ssh(document, k)
	}
	return fmt.Errorf("there is no signing by %q", a.Method)
}

// The flags of authenticator data (WebAuthn, section 6.1), which those of an
// ssh key in a security key follow.
const (
	userPresent  = 1 << 0
	userVerified = 1 << 2
)

// passkey verifies an assertion (WebAuthn Level 3, section 7.2, from step 10 on).
func (a *Assertion) passkey(document []byte, k ApproverKey) error {
	var client struct {
		Type        string `json:"type"`
		Challenge   string `json:"challenge"`
		Origin      string `json:"origin"`
		CrossOrigin bool   `json:"crossOrigin"`
		TopOrigin   string `json:"topOrigin"`
	}
	if err := json.Unmarshal(a.ClientData, &client); err != nil {
		return fmt.Errorf("what the browser says cannot be read: %w", err)
	}
	digest, relyingParty := ApprovalDigest(document), sha256.Sum256([]byte(k.RelyingParty))
	switch {
	case client.Type != "webauthn.get":
		return fmt.Errorf("the passkey was used for %q, not to sign", client.Type)
	case client.Challenge != base64.RawURLEncoding.EncodeToString(digest[:]):
		return errors.New("the passkey signed something else than this document")
	case k.Origin == "" || client.Origin != k.Origin || client.CrossOrigin || client.TopOrigin != "":
		return fmt.Errorf("the passkey was used at %q, not at %q", client.Origin, k.Origin)
	case len(a.AuthenticatorData) < 37:
		return errors.New("what the authenticator says is too short")
	case k.RelyingParty == "" || !bytes.Equal(a.AuthenticatorData[:32], relyingParty[:]):
		return fmt.Errorf("the passkey is not one of %q", k.RelyingParty)
	case a.AuthenticatorData[32]&userPresent == 0 || a.AuthenticatorData[32]&userVerified == 0:
		return errors.New("the passkey did not look who uses it")
	}
	pub, err := x509.ParsePKIXPublicKey(k.Public)
	if err != nil {
		return fmt.Errorf("the passkey's public key cannot be read: %w", err)
	}
	said := sha256.Sum256(a.ClientData)
	if !signedBy(pub, append(bytes.Clone(a.AuthenticatorData), said[:]...), a.Signature) {
		return errors.New("the signature is not by this passkey")
	}
	return nil
}

// signedBy checks a signature as passkeys make them: ES256, ES384, ES512, EdDSA
// with Ed25519, RS256.
func signedBy(pub crypto.PublicKey, message, signature []byte) bool {
	switch pub := pub.(type) {
	case ed25519.PublicKey:
		return ed25519.Verify(pub, message, signature)
	case *ecdsa.PublicKey:
		var h hash.Hash
		switch pub.Curve.Params().BitSize {
		case 256:
			h = sha256.New()
		case 384:
			h = sha512.New384()
		default:
			h = sha512.New()
		}
		h.Write(message)
		return ecdsa.VerifyASN1(pub, h.Sum(nil), signature)
	case *rsa.PublicKey:
		sum := sha256.Sum256(message)
		return pub.N.BitLen() >= 2048 && rsa.VerifyPKCS1v15(pub, crypto.SHA256, sum[:], signature) == nil
	}
	return false
}

// sshKeys are the types of ssh keys that sign approvals. RSA is not among them:
// what signs with it may still choose SHA-1, and a key for this purpose is made
// anew.
var sshKeys = map[string]bool{
	ssh.KeyAlgoED25519: true, ssh.KeyAlgoECDSA256: true, ssh.KeyAlgoECDSA384: true, ssh.KeyAlgoECDSA521: true,
	ssh.KeyAlgoSKED25519: true, ssh.KeyAlgoSKECDSA256: true,
}

// ParseSSHKey reads the wire form of an ssh key that may sign approvals.
// hardware says whether it is kept in a security key.
func ParseSSHKey(wire []byte) (_ ssh.PublicKey, hardware bool, err error) {
	pub, err := ssh.ParsePublicKey(wire)
	if err != nil {
		return nil, false, fmt.Errorf("the ssh key cannot be read: %w", err)
	}
	if !sshKeys[pub.Type()] {
		return nil, false, fmt.Errorf("a key of the type %s signs no approvals: make one with `ssh-keygen -t ed25519` or `ssh-keygen -t ed25519-sk -O verify-required`", pub.Type())
	}
	if !bytes.Equal(pub.Marshal(), wire) {
		return nil, false, errors.New("the ssh key has more to it than a key")
	}
	return pub, pub.Type() == ssh.KeyAlgoSKED25519 || pub.Type() == ssh.KeyAlgoSKECDSA256, nil
}

// sshsig is the text with which SSHSIG begins (PROTOCOL.sshsig of OpenSSH).
const sshsig = "SSHSIG"

// An sshSignature is the blob of SSHSIG after its first six bytes.
type sshSignature struct {
	Version   uint32
	PublicKey []byte
	Namespace string
	Reserved  string
	Hash      string
	Signature []byte
}

// parseSSHSIG reads the blob of SSHSIG, in its armour or not.
func parseSSHSIG(blob []byte) (s sshSignature, err error) {
	if bytes.HasPrefix(blob, []byte("-----BEGIN ")) {
		p, rest := pem.Decode(blob)
		if p == nil || p.Type != "SSH SIGNATURE" || len(p.Headers) > 0 || len(bytes.TrimSpace(rest)) > 0 {
			return s, errors.New("the signature is not one of ssh-keygen -Y sign")
		}
		blob = p.Bytes
	}
	body, ok := bytes.CutPrefix(blob, []byte(sshsig))
	if !ok || ssh.Unmarshal(body, &s) != nil || s.Version != 1 {
		return s, errors.New("the signature is not one of ssh-keygen -Y sign")
	}
	return s, nil
}

// SSHSigner is the wire form of the key that says it has made a signature, which
// is not checked.
func SSHSigner(signature []byte) ([]byte, error) {
	s, err := parseSSHSIG(signature)
	return s.PublicKey, err
}

// ssh verifies what `ssh-keygen -Y sign -n estover-approval` has made.
func (a *Assertion) ssh(document []byte, k ApproverKey) error {
	pub, hardware, err := ParseSSHKey(k.Public)
	if err != nil {
		return err
	}
	s, err := parseSSHSIG(a.Signature)
	if err != nil {
		return err
	}
	switch {
	case s.Namespace != ApprovalNamespace:
		return fmt.Errorf("the signature was made for %q, not for %q", s.Namespace, ApprovalNamespace)
	case !bytes.Equal(s.PublicKey, k.Public):
		return errors.New("the signature is by another key")
	}
	var h hash.Hash
	switch s.Hash {
	case "sha256":
		h = sha256.New()
	case "sha512":
		h = sha512.New()
	default:
		return fmt.Errorf("the signature uses the hash %q", s.Hash)
	}
	h.Write(document)
	message := append([]byte(sshsig), ssh.Marshal(struct {
		Namespace, Reserved, Hash string
		Sum                       []byte
	}{s.Namespace, s.Reserved, s.Hash, h.Sum(nil)})...)
	var sig ssh.Signature
	if err := ssh.Unmarshal(s.Signature, &sig); err != nil {
		return errors.New("the signature cannot be read")
	}
	if sig.Format != pub.Type() || !hardware && len(sig.Rest) > 0 {
		return fmt.Errorf("the signature has the format %q, which a key of the type %s does not make", sig.Format, pub.Type())
	}
	if err := pub.Verify(message, &sig); err != nil {
		return errors.New("the signature is not by this key, or of another document")
	}
	if k.MustVerify && (!hardware || !verified(sig.Rest)) {
		return errors.New("the security key did not look who uses it: make the key with `ssh-keygen -t ed25519-sk -O verify-required`")
	}
	return nil
}

// verified reports whether a security key has looked who uses it: the flags that
// follow its signature say so, and the signature covers them.
func verified(rest []byte) bool {
	return len(rest) == 1+4 && rest[0]&userPresent != 0 && rest[0]&userVerified != 0
}
