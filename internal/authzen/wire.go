package authzen

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"estover.dev"
)

// The bounds of a question.
const (
	maxBody        = 1 << 20 // bytes
	maxDepth       = 16      // levels of objects and arrays
	maxText        = 500     // bytes of a type, an id or a name
	maxEvaluations = 100
)

// ErrQuestion is returned for a question that is none.
var ErrQuestion = &estover.Error{Kind: estover.Invalid, Code: "question_invalid", Detail: "The body is not a question of the AuthZEN Authorization API."}

// A subject is about whom is asked (AuthZEN, section 5.1).
type subject struct {
	Type       string         `json:"type"`
	ID         string         `json:"id,omitzero"`
	Properties jsontext.Value `json:"properties,omitzero"`
}

// A thing is what is reached (section 5.2).
type thing struct {
	Type       string         `json:"type"`
	ID         string         `json:"id,omitzero"`
	Properties jsontext.Value `json:"properties,omitzero"`
}

// A deed is what is done (section 5.3).
type deed struct {
	Name       string         `json:"name"`
	Properties jsontext.Value `json:"properties,omitzero"`
}

// A question is the four entities of an evaluation (section 6.1). What is not
// there is nil. Members that nobody knows are left out.
type question struct {
	Subject  *subject       `json:"subject,omitzero"`
	Action   *deed          `json:"action,omitzero"`
	Resource *thing         `json:"resource,omitzero"`
	Context  jsontext.Value `json:"context,omitzero"`
}

// A batch is several questions with what they have in common (section 7.1).
type batch struct {
	question
	Evaluations []jsontext.Value `json:"evaluations"`
	Options     struct {
		Semantic string `json:"evaluations_semantic"`
	} `json:"options"`
}

// What the context of a question may say that means something here.
type situation struct {
	Session     string        `json:"session"`
	Purpose     string        `json:"purpose"`
	Class       estover.Class `json:"class"`
	Obligations []string      `json:"supported_obligations"` // nil for no information
	Approval    struct {
		ID string `json:"id"`
	} `json:"approval"` // that the PEP brings along
}

// A decision is the answer to one question (section 5.5).
type decision struct {
	Decision bool           `json:"decision"`
	Context  map[string]any `json:"context,omitzero"`
}

// readBody reads the body of a request, which is JSON, and says so (section
// 10.1).
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		return nil, ErrQuestion.With("The body is JSON, and the header Content-Type says so: application/json.")
	}
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return nil, ErrQuestion.With("The body has more than %d bytes. Ask in several requests.", maxBody)
	case err != nil:
		return nil, ErrQuestion.With("The body could not be read.").Because(err)
	}
	return b, strict(b)
}

// strict makes sure that b is one JSON object: text, no name twice, no level too
// deep, nothing behind it.
func strict(b []byte) error {
	dec := jsontext.NewDecoder(bytes.NewReader(b))
	if dec.PeekKind() != '{' {
		return ErrQuestion.With("The body is not a JSON object.")
	}
	for {
		if _, err := dec.ReadToken(); err != nil {
			return ErrQuestion.With("The body is not strict JSON: no name stands twice in an object, and all of it is UTF-8.").Because(err)
		}
		switch depth := dec.StackDepth(); {
		case depth > maxDepth:
			return ErrQuestion.With("The JSON is nested deeper than %d levels.", maxDepth)
		case depth == 0:
			if _, err := dec.ReadToken(); err != io.EOF {
				return ErrQuestion.With("Something follows the JSON object.")
			}
			return nil
		}
	}
}

// into reads what strict has let through. A member of another kind than it
// should be is an error; one that nobody knows is not.
func into(b []byte, v any) error {
	err := json.Unmarshal(b, v)
	var wrong *json.SemanticError
	if errors.As(err, &wrong) {
		at := strings.ReplaceAll(strings.TrimPrefix(string(wrong.JSONPointer), "/"), "/", ".")
		return ErrQuestion.With("This is of another kind than it should be.").At(at).Because(err)
	}
	if err != nil {
		return ErrQuestion.Because(err)
	}
	return nil
}

// missing says what of a question is not there.
func missing(field, format string, args ...any) error {
	return ErrQuestion.With(format, args...).At(field)
}

// text makes sure that a member is there and not too long.
func text(field, value string) error {
	switch {
	case value == "":
		return missing(field, "This is missing. It is a string.")
	case len(value) > maxText:
		return missing(field, "This has more than %d bytes.", maxText)
	}
	return nil
}

// object makes sure that a member is an object, if it is there.
func object(field string, v jsontext.Value) error {
	if len(v) > 0 && v.Kind() != '{' {
		return missing(field, "This is an object.")
	}
	return nil
}

// The checks of the entities. An id that is searched for need not be there
// (sections 8.4 and 8.5).

func (s *subject) check(searched bool) error {
	if s == nil {
		return missing("subject", "Say about whom you ask: an object with type and id.")
	}
	err := errors.Join(text("subject.type", s.Type), object("subject.properties", s.Properties))
	if !searched {
		err = errors.Join(err, text("subject.id", s.ID))
	}
	return first(err)
}

func (t *thing) check(searched bool) error {
	if t == nil {
		return missing("resource", "Say what is reached: an object with type and id.")
	}
	err := errors.Join(text("resource.type", t.Type), object("resource.properties", t.Properties))
	if !searched {
		err = errors.Join(err, text("resource.id", t.ID))
	}
	return first(err)
}

func (a *deed) check() error {
	if a == nil {
		return missing("action", "Say what is done: an object with name.")
	}
	return first(errors.Join(text("action.name", a.Name), object("action.properties", a.Properties)))
}

// first is the first of joined errors, since an answer has one sentence.
func first(err error) error {
	for {
		many, ok := err.(interface{ Unwrap() []error })
		if !ok {
			return err
		}
		err = many.Unwrap()[0]
	}
}

// check makes sure that a question has all that an evaluation needs (section
// 6.1).
func (q *question) check() error {
	return first(errors.Join(q.Subject.check(false), q.Action.check(), q.Resource.check(false), object("context", q.Context)))
}

// situation reads the context.
func (q *question) situation() (s situation, err error) {
	if err := object("context", q.Context); err != nil || len(q.Context) == 0 {
		return s, err
	}
	if err := into(q.Context, &s); err != nil {
		var e *estover.Error
		if errors.As(err, &e) {
			err = e.At(strings.TrimSuffix("context."+e.Field, "."))
		}
		return s, err
	}
	for field, v := range map[string]string{"session": s.Session, "purpose": s.Purpose, "approval.id": s.Approval.ID} {
		if len(v) > maxText {
			return s, missing("context."+field, "This has more than %d bytes.", maxText)
		}
	}
	if s.Class != "" && s.Class.Rank() < 0 {
		return s, missing("context.class", "The class is public, internal, confidential or restricted.")
	}
	return s, nil
}

// write writes an answer.
func write(w http.ResponseWriter, code int, contentType string, body []byte) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_, _ = w.Write(body) // the client may be gone; there is nobody else to tell
}

// answer writes JSON.
func (d *Door) answer(w http.ResponseWriter, a *asking, code int, v any) {
	b, err := json.Marshal(v, json.Deterministic(true))
	if err != nil {
		d.fail(w, a, err)
		return
	}
	write(w, code, "application/json", b)
}
