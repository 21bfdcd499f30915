package attest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

var approved = []byte(`format: estover-approval-v1
tenant: acme
request: apr_1
kind: access
requester: agent:agt_bot
agent: agt_bot
chain: user:usr_ada
purpose: support
item: 1
resource: res_1
resource-name: res_crm
class: internal
action: customer.read
approvals: 2
signed: yes
seconds: 3600
not-after: 2026-11-20T10:00:00Z
nonce: abc
`)

// sshKeygen runs the real ssh-keygen.
func sshKeygen(t testing.TB, stdin []byte, args ...string) []byte {
	t.Helper()
	path, err := exec.LookPath("ssh-keygen")
	if err != nil {
		t.Fatal("there is no ssh-keygen here: install OpenSSH")
	}
	var out, stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("ssh-keygen %q: %v\n%s", args, err, stderr.String())
	}
	return out.Bytes()
}

func sshKey(t testing.TB, args ...string) (file string, k ApproverKey) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "key")
	sshKeygen(t, nil, append([]string{"-q", "-N", "", "-f", file}, args...)...)
	line, err := os.ReadFile(file + ".pub")
	fatal(t, err)
	pub, _, _, _, err := ssh.ParseAuthorizedKey(line)
	fatal(t, err)
	return file, ApproverKey{ID: "ssk_1", Method: BySSH, Public: pub.Marshal()}
}

func refused(t testing.TB, what string, err error, words string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), words) {
		t.Errorf("%s: %v, want it refused with %q", what, err, words)
	}
}

// What ssh-keygen signs verifies here, and nothing else.
func TestSSHSignature(t *testing.T) {
	for _, kind := range [][]string{{"-t", "ed25519"}, {"-t", "ecdsa", "-b", "256"}, {"-t", "ecdsa", "-b", "384"}, {"-t", "ecdsa", "-b", "521"}} {
		name := strings.Join(kind[1:], " ")
		file, k := sshKey(t, kind...)
		a := &Assertion{Method: BySSH, Key: "ssk_1", Signature: sshKeygen(t, approved, "-q", "-Y", "sign", "-n", ApprovalNamespace, "-f", file)}
		if err := a.Verify(approved, k); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		p, _ := pem.Decode(a.Signature)
		bare := &Assertion{Method: BySSH, Key: "ssk_1", Signature: p.Bytes}
		if err := bare.Verify(approved, k); err != nil {
			t.Errorf("%s without armour: %v", name, err)
		}
		if wire, err := SSHSigner(a.Signature); err != nil || !bytes.Equal(wire, k.Public) {
			t.Errorf("%s is said to be by %x (%v)", name, wire, err)
		}
		hashed := &Assertion{Method: BySSH, Key: "ssk_1", Signature: sshKeygen(t, approved, "-q", "-Y", "sign", "-n", ApprovalNamespace, "-O", "hashalg=sha256", "-f", file)}
		if err := hashed.Verify(approved, k); err != nil {
			t.Errorf("%s with sha256: %v", name, err)
		}
		refused(t, name+" over a document that was changed", a.Verify(bytes.Replace(approved, []byte("customer.read"), []byte("customer.*"), 1), k), "another document")
		other := &Assertion{Method: BySSH, Key: "ssk_1", Signature: sshKeygen(t, approved, "-q", "-Y", "sign", "-n", "git", "-f", file)}
		refused(t, name+" for another use", other.Verify(approved, k), `made for "git"`)
		for i := range p.Bytes {
			b := bytes.Clone(p.Bytes)
			b[i] ^= 1
			if err := (&Assertion{Method: BySSH, Key: "ssk_1", Signature: b}).Verify(approved, k); err == nil {
				t.Errorf("%s with byte %d changed verifies", name, i)
			}
		}
		refused(t, name+" with more behind it", (&Assertion{Method: BySSH, Key: "ssk_1", Signature: append(bytes.Clone(p.Bytes), 0)}).Verify(approved, k), "not one of ssh-keygen")
		_, another := sshKey(t, kind...)
		refused(t, name+" by another key", a.Verify(approved, another), "another key")
		another = k
		another.ID = "ssk_2"
		refused(t, name+" under another name", a.Verify(approved, another), "names another key")
		another = k
		another.MustVerify = true
		refused(t, name+" where a security key must look", a.Verify(approved, another), "did not look")
	}
	file, k := sshKey(t, "-t", "rsa", "-b", "2048")
	a := &Assertion{Method: BySSH, Key: "ssk_1", Signature: sshKeygen(t, approved, "-q", "-Y", "sign", "-n", ApprovalNamespace, "-f", file)}
	refused(t, "RSA", a.Verify(approved, k), "signs no approvals")
}

// A security key says in its signature whether it was touched, and whether it
// looked who did.
func TestSecurityKeySignature(t *testing.T) {
	const app = "ssh:"
	pub, private, err := ed25519.GenerateKey(rand.Reader)
	fatal(t, err)
	k := ApproverKey{ID: "ssk_1", Method: BySSH, Public: ssh.Marshal(struct{ Type, Key, App string }{ssh.KeyAlgoSKED25519, string(pub), app})}
	sign := func(flags byte) *Assertion {
		sum := sha256.Sum256(approved)
		message := append([]byte(sshsig), ssh.Marshal(struct{ Namespace, Reserved, Hash, Sum string }{ApprovalNamespace, "", "sha256", string(sum[:])})...)
		application, digest := sha256.Sum256([]byte(app)), sha256.Sum256(message)
		signed := append(append(append([]byte{}, application[:]...), flags, 0, 0, 0, 7), digest[:]...)
		sig := ssh.Marshal(struct {
			Format, Blob string
			Flags        byte
			Counter      uint32
		}{ssh.KeyAlgoSKED25519, string(ed25519.Sign(private, signed)), flags, 7})
		blob := append([]byte(sshsig), ssh.Marshal(sshSignature{Version: 1, PublicKey: k.Public, Namespace: ApprovalNamespace, Hash: "sha256", Signature: sig})...)
		return &Assertion{Method: BySSH, Key: "ssk_1", Signature: blob}
	}
	if err := sign(userPresent).Verify(approved, k); err != nil {
		t.Errorf("a touched key: %v", err)
	}
	refused(t, "a key that was not touched", sign(0).Verify(approved, k), "not by this key")
	k.MustVerify = true
	refused(t, "a key that did not look", sign(userPresent).Verify(approved, k), "did not look")
	if err := sign(userPresent|userVerified).Verify(approved, k); err != nil {
		t.Errorf("a key that looked: %v", err)
	}
}

// A passkey is one in memory, at the origin of its relying party.
type testPasskey struct {
	key    crypto.Signer
	public []byte
}

func newPasskey(t testing.TB, key crypto.Signer) testPasskey {
	t.Helper()
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	fatal(t, err)
	return testPasskey{key, public}
}

const testOrigin = "https://estover.example"

func (p testPasskey) approver() ApproverKey {
	return ApproverKey{ID: "psk_1", Method: ByPasskey, Public: p.public, RelyingParty: "estover.example", Origin: testOrigin}
}

func (p testPasskey) sign(t testing.TB, document []byte, change func(client map[string]any, data []byte) []byte) *Assertion {
	t.Helper()
	digest, rp := ApprovalDigest(document), sha256.Sum256([]byte("estover.example"))
	client := map[string]any{"type": "webauthn.get", "challenge": base64.RawURLEncoding.EncodeToString(digest[:]), "origin": testOrigin, "crossOrigin": false}
	data := append(rp[:], userPresent|userVerified, 0, 0, 0, 9)
	if change != nil {
		data = change(client, data)
	}
	text, err := json.Marshal(client)
	fatal(t, err)
	sum := sha256.Sum256(text)
	message := append(bytes.Clone(data), sum[:]...)
	hashed, opts := message, crypto.SignerOpts(crypto.Hash(0))
	if _, ok := p.key.(ed25519.PrivateKey); !ok {
		h := crypto.SHA256
		if k, ok := p.key.(*ecdsa.PrivateKey); ok {
			h = map[int]crypto.Hash{256: crypto.SHA256, 384: crypto.SHA384, 521: crypto.SHA512}[k.Params().BitSize]
		}
		s := h.New()
		s.Write(message)
		hashed, opts = s.Sum(nil), h
	}
	signature, err := p.key.Sign(rand.Reader, hashed, opts)
	fatal(t, err)
	return &Assertion{Method: ByPasskey, Key: "psk_1", AuthenticatorData: data, ClientData: text, Signature: signature}
}

func TestPasskeySignature(t *testing.T) {
	ec := func(c elliptic.Curve) crypto.Signer {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		fatal(t, err)
		return k
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	fatal(t, err)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	fatal(t, err)
	for name, key := range map[string]crypto.Signer{"ES256": ec(elliptic.P256()), "ES384": ec(elliptic.P384()), "ES512": ec(elliptic.P521()), "EdDSA": ed, "RS256": rsaKey} {
		p := newPasskey(t, key)
		if err := p.sign(t, approved, nil).Verify(approved, p.approver()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		refused(t, name+" over another document", p.sign(t, append(bytes.Clone(approved), '\n'), nil).Verify(approved, p.approver()), "something else")
		for _, c := range []struct {
			what, words string
			change      func(client map[string]any, data []byte) []byte
		}{
			{"making a passkey", "not to sign", func(c map[string]any, d []byte) []byte { c["type"] = "webauthn.create"; return d }},
			{"another origin", "was used at", func(c map[string]any, d []byte) []byte { c["origin"] = "https://estover.example.evil"; return d }},
			{"a frame in another site", "was used at", func(c map[string]any, d []byte) []byte { c["crossOrigin"] = true; return d }},
			{"a site around it", "was used at", func(c map[string]any, d []byte) []byte { c["topOrigin"] = testOrigin; return d }},
			{"a challenge with padding", "something else", func(c map[string]any, d []byte) []byte { c["challenge"] = c["challenge"].(string) + "="; return d }},
			{"another relying party", "not one of", func(_ map[string]any, d []byte) []byte { d[0] ^= 1; return d }},
			{"nobody present", "did not look", func(_ map[string]any, d []byte) []byte { d[32] &^= userPresent; return d }},
			{"nobody verified", "did not look", func(_ map[string]any, d []byte) []byte { d[32] &^= userVerified; return d }},
			{"too little data", "too short", func(_ map[string]any, d []byte) []byte { return d[:36] }},
		} {
			refused(t, name+": "+c.what, p.sign(t, approved, c.change).Verify(approved, p.approver()), c.words)
		}
		a := p.sign(t, approved, nil)
		a.AuthenticatorData[36]++ // the counter
		refused(t, name+" with another counter", a.Verify(approved, p.approver()), "not by this passkey")
		other := p.approver()
		other.Public = newPasskey(t, ec(elliptic.P256())).public
		refused(t, name+" by another passkey", p.sign(t, approved, nil).Verify(approved, other), "not by this passkey")
		other = p.approver()
		other.Origin = ""
		refused(t, name+" without an origin", p.sign(t, approved, nil).Verify(approved, other), "was used at")
	}
	p := newPasskey(t, ec(elliptic.P256()))
	a := p.sign(t, approved, nil)
	a.ClientData = bytes.Replace(a.ClientData, []byte(`"type"`), []byte(`"type":"webauthn.get","type"`), 1)
	refused(t, "client data with a name twice", a.Verify(approved, p.approver()), "cannot be read")
	a = p.sign(t, approved, nil)
	a.Method = "wax"
	refused(t, "another method", a.Verify(approved, ApproverKey{ID: "psk_1", Method: "wax"}), "no signing")
}

// The step "approval" of a verification: what was signed names what was done, by
// others than who asked.
func TestVerifyApproval(t *testing.T) {
	eve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	fatal(t, err)
	passkey := newPasskey(t, eve)
	file, sshPublic := sshKey(t, "-t", "ed25519")
	signed := func(document []byte) Approval {
		return Approval{Document: string(document), Votes: []ApprovalVote{
			{Approver: "user:usr_bea", At: began, Assertion: passkey.sign(t, document, nil), Key: new(passkey.approver())},
			{Approver: "user:usr_col", At: began, Assertion: &Assertion{Method: BySSH, Key: "ssk_1", Signature: sshKeygen(t, document, "-q", "-Y", "sign", "-n", ApprovalNamespace, "-f", file)}, Key: &sshPublic},
		}}
	}
	edit := func(from, to string) Approval { return signed(bytes.ReplaceAll(approved, []byte(from), []byte(to))) }
	good := signed(approved)
	vote := func(change func(v []ApprovalVote) []ApprovalVote) Approval {
		a := signed(approved)
		a.Votes = change(a.Votes)
		return a
	}
	record := func(a Approval) []byte {
		b, err := json.Marshal(a)
		fatal(t, err)
		return b
	}
	for _, c := range []struct {
		name     string
		approval Approval
		want     Result
		words    string
	}{
		{"as it should be", good, Pass, "2 people approved"},
		{"one action of many", edit("action: customer.read", "action: *"), Pass, ""},
		{"another agent", edit("agent: agt_bot", "agent: agt_eve"), Fail, "for agt_eve"},
		{"another tenant", edit("tenant: acme", "tenant: evil"), Fail, "tenant evil"},
		{"another action", edit("action: customer.read", "action: customer.list"), Fail, "does not name"},
		{"another resource", edit("resource-name: res_crm", "resource-name: mail"), Fail, "does not name"},
		{"over before the call", edit("not-after: 2026-11-20T10:00:00Z", "not-after: 2026-11-20T08:00:00Z"), Fail, "good until"},
		{"without an end", edit("not-after: 2026-11-20T10:00:00Z\n", ""), Fail, "good until"},
		{"another format", edit("format: estover-approval-v1", "format: estover-approval-v0"), Fail, "no approval document"},
		{"three are wanted", edit("approvals: 2", "approvals: 3"), Fail, "2 of 3"},
		{"the requester approved", edit("requester: agent:agt_bot", "requester: user:usr_bea"), Fail, "their own request"},
		{"the person in whose name it was asked approved", edit("chain: user:usr_ada", "chain: user:usr_col"), Fail, "their own request"},
		{"one voted twice", vote(func(v []ApprovalVote) []ApprovalVote { return []ApprovalVote{v[0], v[0]} }), Fail, "twice"},
		{"one vote is missing", vote(func(v []ApprovalVote) []ApprovalVote { return v[:1] }), Fail, "1 of 2"},
		{"one is not signed", vote(func(v []ApprovalVote) []ApprovalVote { v[0].Assertion = nil; return v }), Fail, "Not all"},
		{"one is of another document", vote(func(v []ApprovalVote) []ApprovalVote {
			v[0].Assertion = passkey.sign(t, append(bytes.Clone(approved), ' '), nil)
			return v
		}), Fail, "does not count"},
		{"one came after the call", vote(func(v []ApprovalVote) []ApprovalVote { v[0].At = began.Add(time.Hour); return v }), Fail, "after the call"},
	} {
		a := call(t, 1).Predicate.(*Action)
		b := record(c.approval)
		a.Approval = ApprovalRef{Mode: ByPeople, Digest: Commit(salt, b)}
		step := approvalStep(a, []Disclosure{{ApprovalRecord, salt, b}})
		if step.Result != c.want || !strings.Contains(step.Detail, c.words) {
			t.Errorf("%s: %s (%s), want %s with %q", c.name, step.Result, step.Detail, c.want, c.words)
		}
	}
	unsigned := bytes.ReplaceAll(approved, []byte("signed: yes\n"), nil)
	by := Approval{Document: string(unsigned), Votes: []ApprovalVote{{Approver: "user:usr_bea", At: began}, {Approver: "user:usr_col", At: began}}}
	for _, c := range []struct {
		name      string
		ref       ApprovalRef
		disclosed []Disclosure
		want      Result
	}{
		{"not asked for", ApprovalRef{}, nil, Pass},
		{"by policy", ApprovalRef{Mode: ByPolicy}, nil, Pass},
		{"not disclosed", ApprovalRef{ByPeople, Commit(salt, record(good))}, nil, NotDisclosed},
		{"another one disclosed", ApprovalRef{ByPeople, Commit(salt, record(good))}, []Disclosure{{ApprovalRecord, salt, record(by)}}, Fail},
		{"without signatures, where none are wanted", ApprovalRef{ByPeople, Commit(salt, record(by))}, []Disclosure{{ApprovalRecord, salt, record(by)}}, NotDisclosed},
		{"no digest", ApprovalRef{Mode: ByPeople}, nil, Fail},
		{"no mode", ApprovalRef{Digest: Commit(salt, record(by))}, nil, Fail},
		{"no text", ApprovalRef{ByPeople, Commit(salt, []byte("{"))}, []Disclosure{{ApprovalRecord, salt, []byte("{")}}, Fail},
	} {
		a := call(t, 1).Predicate.(*Action)
		a.Approval = c.ref
		if step := approvalStep(a, c.disclosed); step.Result != c.want {
			t.Errorf("%s: %s (%s), want %s", c.name, step.Result, step.Detail, c.want)
		}
	}
	// The whole of a file says it too, and reads the reference back.
	l := newLog(t)
	s := call(t, 1)
	s.Predicate.(*Action).Approval = ApprovalRef{ByPeople, Commit(salt, record(good))}
	enrolment := l.enrolment(l.gateway, "gateway-1")
	at, statement := l.add(enrolment), s.AppendJSON(nil)
	place := l.add(statement)
	l.add([]byte("more"))
	r := Receipt{
		Entry: l.entry(l.gateway, statement, place), Enrolments: []Entry{l.entry(l.root, enrolment, at)},
		Disclosures: append(append([]Disclosure{}, disclosures...), Disclosure{ApprovalRecord, salt, record(good)}, Disclosure{Name: PolicyBundle, Octets: bundle}),
	}
	want(t, Verify(marshal(t, r), l.trust()), nil)
	read, err := ParseStatement(statement)
	fatal(t, err)
	if got := fmt.Sprint(read.Predicate.(*Action).Approval); got != fmt.Sprint(s.Predicate.(*Action).Approval) {
		t.Errorf("the approval is read as %s", got)
	}
}
