package gateway

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"estover.dev"
)

// maxTokens is how large the answer of a token endpoint may be.
const maxTokens = 64 << 10

// tokenMembers are the members of a token endpoint's answer that stay here, if
// nothing else is said (RFC 6749, section 5.1).
var tokenMembers = []string{"access_token", "id_token", "refresh_token"}

// guesses reports whether an answer may be that of a token endpoint of which nobody
// has said so: it is one of those that RFC 6749 describes, in sections 4 and 5.1.
func (f *flight) guesses(res *http.Response) bool {
	if res.Request.Method != http.MethodPost || res.StatusCode != http.StatusOK || res.ContentLength > maxTokens {
		return false
	}
	kind := res.Header.Get("Content-Type")
	if named := strings.ToLower(kind); !strings.Contains(named, "application/json") && !strings.Contains(named, formType) {
		return false // as of most; to read it in full takes longer than all else here
	}
	asked, _, _ := mime.ParseMediaType(res.Request.Header.Get("Content-Type"))
	answered, _, _ := mime.ParseMediaType(kind)
	if answered != "application/json" && answered != formType {
		return false
	}
	return asked == formType || strings.Contains(strings.ToLower(res.Header.Get("Cache-Control")), "no-store")
}

const formType = "application/x-www-form-urlencoded"

// guessTokens keeps tokens back from an answer that turns out to have some.
// Everything else goes on as it is.
func (f *flight) guessTokens(res *http.Response) error {
	text, err := io.ReadAll(io.LimitReader(f.down.from, maxTokens+1))
	if err != nil {
		return f.upstreamError(err)
	}
	rest := f.down.from
	f.down.from = bytes.NewReader(text)
	if len(text) > maxTokens {
		f.down.from = io.MultiReader(bytes.NewReader(text), rest)
		return nil
	}
	if !hasTokens(res, text) {
		return nil
	}
	return f.keepTokens(res)
}

// hasTokens reports whether a text is an answer with tokens in it.
func hasTokens(res *http.Response, text []byte) bool {
	if kind, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type")); kind == formType {
		form, err := url.ParseQuery(string(text))
		return err == nil && slices.ContainsFunc(tokenMembers, form.Has)
	}
	d := jsontext.NewDecoder(bytes.NewReader(text), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if d.PeekKind() != '{' {
		return false
	}
	if _, err := d.ReadToken(); err != nil {
		return false
	}
	for d.PeekKind() == '"' {
		name, err := d.ReadToken()
		if err != nil {
			return false
		}
		if slices.Contains(tokenMembers, name.String()) && d.PeekKind() == '"' {
			return true
		}
		if d.SkipValue() != nil {
			return false
		}
	}
	return false
}

// keepTokens replaces the tokens in the answer of an upstream's token endpoint
// by handles (gateway.md, C8). An answer in which they cannot be found for sure
// is refused.
func (f *flight) keepTokens(res *http.Response) error {
	text, err := io.ReadAll(io.LimitReader(f.down.from, maxTokens+1))
	if err != nil {
		return f.upstreamError(err)
	}
	if len(text) > maxTokens {
		return ErrAnswer.With("The answer of the token endpoint has more than %d bytes.", maxTokens)
	}
	kind, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type"))
	var kept []byte
	switch kind {
	case "application/json":
		kept, err = tokensInJSON(text, f.plan.members(), f.plan.Tokens)
	case formType:
		kept, err = tokensInForm(text, f.plan.members(), f.plan.Tokens)
	default:
		return ErrAnswer.With("The answer of the token endpoint is %q, which is not JSON, so that the token in it cannot be kept back.", kind)
	}
	if err != nil {
		// What is wrong is not said: the error may quote the token.
		return ErrAnswer.With("The token in the answer of the token endpoint cannot be kept back.")
	}
	f.down.from = bytes.NewReader(kept)
	res.ContentLength = int64(len(kept))
	res.Header.Set("Content-Length", strconv.Itoa(len(kept)))
	return nil
}

// members are the members that are tokens.
func (p *Plan) members() []string {
	if len(p.TokenMembers) > 0 {
		return p.TokenMembers
	}
	return tokenMembers
}

type keeper = func(member string, value estover.Secret) (string, error)

// tokensInJSON replaces the tokens among the members of JSON objects, at any
// depth.
func tokensInJSON(text []byte, members []string, keep keeper) ([]byte, error) {
	var out bytes.Buffer
	d := jsontext.NewDecoder(bytes.NewReader(text))
	e := jsontext.NewEncoder(&out)
	name := "" // of the member whose value comes next
	for {
		if name != "" && slices.Contains(members, name) && d.PeekKind() != 'n' {
			t, err := d.ReadToken()
			if err != nil {
				return nil, err
			}
			if t.Kind() != '"' {
				return nil, errNotString
			}
			handle, err := keep(name, estover.NewSecret([]byte(t.String())))
			if err != nil {
				return nil, err
			}
			if err := e.WriteToken(jsontext.String(handle)); err != nil {
				return nil, err
			}
			name = ""
			continue
		}
		t, err := d.ReadToken()
		if err == io.EOF {
			return out.Bytes(), nil
		}
		if err != nil {
			return nil, err
		}
		name = ""
		if kind, n := d.StackIndex(d.StackDepth()); kind == '{' && n%2 == 1 {
			name = t.String()
		}
		if err := e.WriteToken(t); err != nil {
			return nil, err
		}
	}
}

var errNotString = errors.New("a token is not a string")

// tokensInForm replaces the tokens among the parameters of a form.
func tokensInForm(text []byte, members []string, keep keeper) ([]byte, error) {
	form, err := url.ParseQuery(string(text))
	if err != nil {
		return nil, err
	}
	for _, member := range members {
		for i, value := range form[member] {
			handle, err := keep(member, estover.NewSecret([]byte(value)))
			if err != nil {
				return nil, err
			}
			form[member][i] = handle
		}
	}
	return []byte(form.Encode()), nil
}
