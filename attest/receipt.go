package attest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
)

// A Receipt is one signed and logged statement, with what is needed to check
// it. Its file is JSON Lines and is named *.estover-receipt:
//
//	{"dsse":{…},"proof":"c2sp.org/tlog-proof@v1\n…"}                 the statement
//	{"dsse":{…},"proof":"…"}                                          the enrolment of the gateway that signed it
//	{"disclosure":{"name":"request","salt":"…","octets":"…"}}         what was hashed
//	{"sha256":"…"}                                                    of all lines before
type Receipt struct {
	Entry
	Enrolments  []Entry
	Disclosures []Disclosure
}

// An Entry is a signed statement and its place in the log.
type Entry struct {
	Envelope Envelope
	Proof    string // see [Proof]
}

// A Disclosure hands over what a statement holds the hash of.
type Disclosure struct {
	Name   string `json:"name"`          // a subject's name, or one of the names below
	Salt   Salt   `json:"salt,omitzero"` // none for what is not salted
	Octets []byte `json:"octets"`        // as they were hashed
}

// The names of disclosures beside those of subjects. Those marked plain have
// no salt.
const (
	GrantDocument   = "grant"      // [GrantRef.Digest]: a [Grant] as JSON
	ApprovalRecord  = "approval"   // [ApprovalRef.Digest]: an [Approval] as JSON
	PrincipalName   = "principal"  // [Principal.Subject]
	PolicyBundle    = "bundle"     // [Decision.Bundle], plain
	DecisionInput   = "input"      // [Decision.Input], plain
	ToolDefinition  = "definition" // [Call.Definition], plain
	CallArguments   = "args"       // [Call.Args]
	CallEffect      = "effect"     // [Call.Effect]
	CallResult      = "result"     // [Outcome.Result]
	ContainedBy     = "by"         // [Containment.By]
	ContainedReason = "reason"     // [Containment.Reason]
)

// plain reports whether what has this name is hashed without a salt. A salt
// is there or not by the name alone: if the file could choose, octets could
// be passed off as a salt.
func plain(name string) bool {
	return name == PolicyBundle || name == DecisionInput || name == ToolDefinition
}

// check makes sure that the disclosure has a salt if its name asks for one,
// and that the name can be that of a file.
func (d Disclosure) check() error {
	if plain(d.Name) != (d.Salt == Salt{}) {
		return fmt.Errorf("the disclosure %q has a salt too many or none", d.Name)
	}
	if d.Name == "" || d.Name == "." || d.Name == ".." || strings.ContainsAny(d.Name, "/\\\n") {
		return fmt.Errorf("%q is no name of a disclosure", d.Name)
	}
	return nil
}

// hashed is what the digest is of: a salt and the octets, or these alone.
func (d Disclosure) hashed() []byte {
	if plain(d.Name) {
		return d.Octets
	}
	return append(d.Salt[:], d.Octets...)
}

// A line is one line of a receipt's file; exactly one member is there, the
// proof belonging to the envelope.
type line struct {
	DSSE       *Envelope   `json:"dsse,omitzero"`
	Proof      string      `json:"proof,omitzero"`
	Disclosure *Disclosure `json:"disclosure,omitzero"`
	SHA256     *Digest     `json:"sha256,omitzero"`
}

// Marshal writes the receipt's file.
func (r Receipt) Marshal() ([]byte, error) {
	entries := append([]Entry{r.Entry}, r.Enrolments...)
	return marshalLines(entries, r.Disclosures)
}

// ParseReceipt reads a receipt's file. It fails if a byte of it was changed,
// and says nothing about who wrote it: see [Verify].
func ParseReceipt(file []byte) (Receipt, error) {
	entries, disclosures, err := parseLines(file)
	if err != nil {
		return Receipt{}, err
	}
	if len(entries) == 0 {
		return Receipt{}, errors.New("the receipt holds no statement")
	}
	return Receipt{entries[0], entries[1:], disclosures}, nil
}

func marshalLines(entries []Entry, disclosures []Disclosure) ([]byte, error) {
	var b []byte
	for _, e := range entries {
		l, err := json.Marshal(line{DSSE: &e.Envelope, Proof: e.Proof})
		if err != nil {
			return nil, fmt.Errorf("writing a receipt: %w", err)
		}
		b = append(append(b, l...), '\n')
	}
	for _, d := range disclosures {
		if err := d.check(); err != nil {
			return nil, fmt.Errorf("writing a receipt: %w", err)
		}
		l, err := json.Marshal(line{Disclosure: &d})
		if err != nil {
			return nil, fmt.Errorf("writing a receipt: %w", err)
		}
		b = append(append(b, l...), '\n')
	}
	return append(b, lastLine(b)...), nil
}

// lastLine is the line that covers those before it.
func lastLine(before []byte) []byte {
	return fmt.Appendf(nil, "{\"sha256\":\"%s\"}\n", Sum(before))
}

func parseLines(file []byte) (entries []Entry, disclosures []Disclosure, err error) {
	lines := slices.Collect(bytes.Lines(file))
	if len(lines) == 0 {
		return nil, nil, errors.New("the file is empty")
	}
	last := len(lines) - 1
	if !bytes.Equal(lines[last], lastLine(file[:len(file)-len(lines[last])])) {
		return nil, nil, errors.New("the file is not what was written: its last line is not the digest of those before")
	}
	for n, text := range lines[:last] {
		var l line
		if err := json.Unmarshal(text, &l, json.RejectUnknownMembers(true)); err != nil {
			return nil, nil, fmt.Errorf("line %d: %w", n+1, err)
		}
		switch {
		case l.SHA256 != nil || (l.DSSE == nil) == (l.Disclosure == nil) || l.DSSE == nil && l.Proof != "":
			return nil, nil, fmt.Errorf("line %d is neither a statement nor a disclosure", n+1)
		case l.DSSE != nil:
			entries = append(entries, Entry{*l.DSSE, l.Proof})
		default:
			if err := l.Disclosure.check(); err != nil {
				return nil, nil, fmt.Errorf("line %d: %w", n+1, err)
			}
			disclosures = append(disclosures, *l.Disclosure)
		}
	}
	return entries, disclosures, nil
}
