package gateway

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"estover.dev"
)

// C8: the answer of a token endpoint is an upstream's. What goes on to the agent is
// an answer of the same kind, and no member of it that is a token has a value of the
// upstream's.
func FuzzTokens(f *testing.F) {
	f.Add([]byte(`{"access_token":"a","data":[{"refresh_token":"b"}],"expires_in":60}`), false)
	f.Add([]byte(`{"access_token":null,"x":{"id_token":{"y":1}}}`), false)
	f.Add([]byte("access_token=a&access_token=b&scope=x"), true)
	f.Add([]byte("5E555"), false) // a number, which no float64 is
	f.Fuzz(func(t *testing.T, text []byte, form bool) {
		const handle = "handle"
		keep := func(string, estover.Secret) (string, error) { return handle, nil }
		if form {
			out, err := tokensInForm(text, tokenMembers, keep)
			if err != nil {
				return
			}
			values, err := url.ParseQuery(string(out))
			if err != nil {
				t.Fatalf("%q becomes %q: %v", text, out, err)
			}
			for _, member := range tokenMembers {
				for _, v := range values[member] {
					if v != handle {
						t.Errorf("%q becomes %q", text, out)
					}
				}
			}
			return
		}
		out, err := tokensInJSON(text, tokenMembers, keep)
		if err != nil {
			return
		}
		d := json.NewDecoder(bytes.NewReader(out))
		d.UseNumber() // it may be one that no float64 is
		for d.More() {
			var v any
			if err := d.Decode(&v); err != nil {
				t.Fatalf("%q becomes %q: %v", text, out, err)
			}
			held(t, v, handle)
		}
		res := &http.Response{Header: http.Header{"Content-Type": {"application/json"}}}
		if hasTokens(res, out) && !strings.Contains(string(out), handle) {
			t.Errorf("%q becomes %q, which has tokens", text, out)
		}
	})
}

// held looks for tokens that are not the handle, at any depth.
func held(t *testing.T, v any, handle string) {
	t.Helper()
	switch v := v.(type) {
	case map[string]any:
		for _, member := range tokenMembers {
			if value, there := v[member]; there && value != nil && value != handle {
				t.Errorf("%s is %v", member, value)
			}
		}
		for _, one := range v {
			held(t, one, handle)
		}
	case []any:
		for _, one := range v {
			held(t, one, handle)
		}
	}
}
