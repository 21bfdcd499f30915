package guard

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"strings"

	"estover.dev"
	"estover.dev/internal/audit"
)

// What was refused, or came to nothing, is on record whoever tried it, and says what
// was asked for: that is a stranger's, and as long as a request may be. So each part
// of such an event is bounded. What is cut stands there by its beginning, its length
// and its hash, by which the whole is recognised.

// The bounds, in bytes.
const (
	maxName    = 1 << 10  // of a target, a session, a purpose; of every event
	maxText    = 2 << 10  // of a member of what a refusal tells
	maxMembers = 16 << 10 // of those that are encoded already, and of the facts
)

// cut is a text of at most so many bytes, and if it was longer its beginning with
// the length and the hash of the whole.
func cut(text string, most int) string {
	if len(text) <= most {
		return text
	}
	sum := sha256.Sum256([]byte(text))
	end := fmt.Sprintf("… (%d bytes, SHA-256 %s)", len(text), hex.EncodeToString(sum[:]))
	return strings.ToValidUTF8(text[:max(most-len(end), 0)], "") + end
}

// cutJSON is what stands in the place of JSON that is too long.
func cutJSON(b []byte) json.RawMessage {
	sum := sha256.Sum256(b)
	return json.RawMessage(fmt.Sprintf(`{"bytes":%d,"sha256":"%s"}`, len(b), hex.EncodeToString(sum[:])))
}

// bounded is what a refusal tells, none of it too long. What has no JSON stays, and
// is an error where the event is written.
func bounded(detail map[string]any) map[string]any {
	var out map[string]any // the op's own is not changed
	for key, v := range detail {
		var short any
		if text, is := v.(string); is {
			if len(text) <= maxText {
				continue
			}
			short = cut(text, maxText)
		} else {
			b, err := json.Marshal(v)
			if err != nil || len(b) <= maxText {
				continue
			}
			short = cutJSON(b)
		}
		if out == nil {
			out = maps.Clone(detail)
		}
		out[key] = short
	}
	if out == nil {
		return detail
	}
	return out
}

// bound bounds what an event says of an operation, before it is encoded.
func bound(op Op, d Decision, outcome audit.Outcome) (Op, Decision) {
	op.Target, op.Session, op.Resource, op.Purpose = cut(op.Target, maxName), cut(op.Session, maxName), cut(op.Resource, maxName), cut(op.Purpose, maxName)
	if outcome == audit.Done {
		return op, d
	}
	op.Detail = bounded(op.Detail)
	if len(op.Members) > maxMembers {
		op.Members = append([]byte(`,"members":`), cutJSON(op.Members)...)
	}
	d.Message, d.Next = cut(d.Message, maxText), cut(d.Next, maxText)
	if text, ok := d.Facts["input"].(json.RawMessage); ok && len(text) > maxMembers {
		d.Facts = map[string]any{"input": cutJSON(text)}
	}
	return op, d
}

// ours is what an id looks like that nobody can guess: [estover.NewID], and the serial
// number of a certificate.
var ours = regexp.MustCompile(`(^|:)[a-z]{2,8}_[a-z2-7]{26}$|_certificate:(\S+/)?([0-9a-f]{2}){8,20}$`)

// noSuchThing is what is on record of who names a thing that is not there.
var noSuchThing = Decision{
	Engine: "kernel", Reasons: []string{"not_found"}, Message: "There is no such thing here.",
	Next: "If somebody else's id was used, find out where it came from.",
}

// strange reports whether it is to be on record that an operation found nothing: it
// was asked for by an id that nobody guesses, so it is another organisation's, or was
// there once (T3).
func strange(caller estover.Caller, op Op, err error) bool {
	var known *estover.Error
	return caller.Acting().Kind() != estover.SystemKind && errors.As(err, &known) && known.Kind == estover.NotFound && ours.MatchString(op.Target)
}
