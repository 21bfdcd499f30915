package gateway

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"

	"estover.dev"
)

// maxTokens is how large the answer of a token endpoint may be.
const maxTokens = 64 << 10

// tokenMembers are the members of a token endpoint's answer that stay here.
var tokenMembers = map[string]bool{"access_token": true, "id_token": true, "refresh_token": true}

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
		kept, err = tokensInJSON(text, f.plan.Tokens)
	case "application/x-www-form-urlencoded":
		kept, err = tokensInForm(text, f.plan.Tokens)
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

type keeper = func(member string, value estover.Secret) (string, error)

// tokensInJSON replaces the tokens among the members of JSON objects, at any
// depth.
func tokensInJSON(text []byte, keep keeper) ([]byte, error) {
	var out bytes.Buffer
	d := jsontext.NewDecoder(bytes.NewReader(text))
	e := jsontext.NewEncoder(&out)
	name := "" // of the member whose value comes next
	for {
		if tokenMembers[name] && d.PeekKind() != 'n' {
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
func tokensInForm(text []byte, keep keeper) ([]byte, error) {
	form, err := url.ParseQuery(string(text))
	if err != nil {
		return nil, err
	}
	for member := range tokenMembers {
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
