package attest

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	logformat "github.com/transparency-dev/formats/log"
	cosignature "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
)

// A Trust is what the verifier believes beforehand: which log, which
// witnesses, and which keys may sign. It is written as a C2SP trust policy
// (c2sp.org/tlog-policy) with three more keywords for the keys that sign
// statements:
//
//	log         <vkey> [<url>]
//	witness     <name> <vkey> [<url>]
//	group       <name> all|any|<k> <name>...
//	quorum      <name>|none
//	enrolment   <vkey>     signs the enrolments of gateways
//	gateway     <vkey>     a gateway that needs no enrolment
//	containment <vkey>     signs certificates of containment
//
// A checkpoint counts if one of the logs signed it and the quorum of
// witnesses cosigned it. Without witnesses the policy has to say so:
// "quorum none".
type Trust struct {
	logs        []note.Verifier
	quorum      cosigned // nil: the policy asks for no witness
	roots       []key
	gateways    []key
	containment []key
}

// A key may sign statements.
type key struct {
	name string
	pub  ed25519.PublicKey
	id   string
}

// A cosigned says whether a checkpoint has the cosignatures it needs.
type cosigned func(checkpoint []byte) bool

// ParseTrust reads a trust policy.
func ParseTrust(text []byte) (*Trust, error) {
	t := &Trust{}
	p := policy{defined: map[string]cosigned{}, member: map[string]bool{}, keys: map[string]bool{}}
	quorum := false
	for n, line := range strings.Split(string(text), "\n") {
		for _, c := range []byte(line) {
			if c < ' ' && c != '\t' || c == 0x7f {
				return nil, fmt.Errorf("trust policy, line %d: the control character %q", n+1, c)
			}
		}
		f := strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == '\t' })
		if len(f) == 0 || strings.HasPrefix(f[0], "#") {
			continue
		}
		var err error
		switch word, args := f[0], f[1:]; word {
		case "log":
			err = p.log(t, args)
		case "witness":
			err = p.witness(args)
		case "group":
			err = p.group(args)
		case "quorum":
			if quorum {
				err = errors.New("a second quorum")
				break
			}
			quorum = true
			t.quorum, err = p.quorum(args)
		case "enrolment":
			err = p.signer(&t.roots, args)
		case "gateway":
			err = p.signer(&t.gateways, args)
		case "containment":
			err = p.signer(&t.containment, args)
		default:
			err = fmt.Errorf("the word %q is not known", word)
		}
		if err != nil {
			return nil, fmt.Errorf("trust policy, line %d: %w", n+1, err)
		}
	}
	switch {
	case !quorum:
		return nil, errors.New("trust policy: no quorum; without witnesses write “quorum none”")
	case len(t.logs) == 0:
		return nil, errors.New("trust policy: no log")
	}
	return t, nil
}

// A policy is what has been read of a trust policy.
type policy struct {
	defined map[string]cosigned // witnesses and groups
	member  map[string]bool     // those that are in a group
	keys    map[string]bool     // of logs and witnesses, with their use
}

func (p *policy) log(t *Trust, args []string) error {
	if len(args) < 1 || len(args) > 2 {
		return errors.New("want: log <vkey> [<url>]")
	}
	v, err := note.NewVerifier(args[0])
	if err != nil {
		return err
	}
	t.logs = append(t.logs, v)
	return p.once("log", args[0])
}

func (p *policy) witness(args []string) error {
	if len(args) < 2 || len(args) > 3 {
		return errors.New("want: witness <name> <vkey> [<url>]")
	}
	v, err := cosignature.NewVerifierForCosignatureV1(args[1])
	if err != nil {
		return err
	}
	if err := p.once("witness", args[1]); err != nil {
		return err
	}
	return p.define(args[0], func(checkpoint []byte) bool {
		_, err := note.Open(checkpoint, note.VerifierList(v))
		return err == nil
	})
}

// once refuses the same public key under two names.
func (p *policy) once(use, vkey string) error {
	k := use + " " + keyOf(vkey)
	if p.keys[k] {
		return fmt.Errorf("the same %s key a second time", use)
	}
	p.keys[k] = true
	return nil
}

// keyOf is the last of a verifier key's three parts: its algorithm and the
// public key, in base64, where a "+" may stand too.
func keyOf(vkey string) string {
	_, rest, _ := strings.Cut(vkey, "+")
	_, k, _ := strings.Cut(rest, "+")
	return k
}

func (p *policy) define(name string, c cosigned) error {
	if name == "none" || p.defined[name] != nil {
		return fmt.Errorf("the name %q is taken", name)
	}
	p.defined[name] = c
	return nil
}

func (p *policy) group(args []string) error {
	if len(args) < 3 {
		return errors.New("want: group <name> all|any|<k> <members>")
	}
	names := args[2:]
	var need int
	switch args[1] {
	case "all":
		need = len(names)
	case "any":
		need = 1
	default:
		n, err := strconv.ParseUint(args[1], 10, 16)
		if err != nil || n < 1 || n > uint64(len(names)) {
			return fmt.Errorf("%q is not between 1 and %d", args[1], len(names))
		}
		need = int(n)
	}
	var members []cosigned
	for _, name := range names {
		c := p.defined[name]
		if c == nil {
			return fmt.Errorf("%q is not defined above", name)
		}
		if p.member[name] {
			return fmt.Errorf("%q is in a group already", name)
		}
		p.member[name] = true
		members = append(members, c)
	}
	return p.define(args[0], func(checkpoint []byte) bool {
		have := 0
		for _, c := range members {
			if c(checkpoint) {
				have++
			}
		}
		return have >= need
	})
}

func (p *policy) quorum(args []string) (cosigned, error) {
	if len(args) != 1 {
		return nil, errors.New("want: quorum <name>|none")
	}
	if args[0] == "none" {
		return nil, nil
	}
	c := p.defined[args[0]]
	if c == nil {
		return nil, fmt.Errorf("%q is not defined above", args[0])
	}
	return c, nil
}

func (p *policy) signer(to *[]key, args []string) error {
	if len(args) != 1 {
		return errors.New("want one <vkey>")
	}
	v, err := note.NewVerifier(args[0]) // checks the form and the key's hash
	if err != nil {
		return err
	}
	b, err := base64.StdEncoding.DecodeString(keyOf(args[0]))
	if err != nil || len(b) != 1+ed25519.PublicKeySize {
		return errors.New("not an Ed25519 key")
	}
	pub := ed25519.PublicKey(b[1:])
	*to = append(*to, key{v.Name(), pub, KeyID(pub)})
	return nil
}

// checkpoint checks the signatures of a checkpoint.
func (t *Trust) checkpoint(signed []byte) (logformat.Checkpoint, error) {
	var cp logformat.Checkpoint
	n, err := note.Open(signed, note.VerifierList(t.logs...))
	if err != nil {
		return cp, fmt.Errorf("the checkpoint is not signed by a trusted log: %w", err)
	}
	if _, err := cp.Unmarshal([]byte(n.Text)); err != nil {
		return cp, err
	}
	for _, sig := range n.Sigs {
		if sig.Name != cp.Origin {
			return cp, fmt.Errorf("the checkpoint of %s is signed by %s", cp.Origin, sig.Name)
		}
	}
	if t.quorum != nil && !t.quorum(signed) {
		return cp, errors.New("the checkpoint is not cosigned by the quorum of witnesses")
	}
	return cp, nil
}
