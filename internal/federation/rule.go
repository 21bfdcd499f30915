package federation

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"estover.dev/internal/jose"
)

// claimName reports whether a name can be that of a claim: a member, or a JSON
// Pointer (RFC 6901) to one further down.
func claimName(name string) bool {
	if name == "" || name == "/" || len(name) > 256 {
		return false
	}
	if name[0] != '/' {
		return true
	}
	for i := range len(name) {
		if name[i] == '~' && (i+1 == len(name) || name[i+1] != '0' && name[i+1] != '1') {
			return false
		}
	}
	return true
}

// A document is the claims of a token, for rules to look into.
type document map[string]any

// read reads the claims of a token, which are strict JSON already.
func readClaims(c *jose.Claims) (document, error) {
	var d document
	dec := json.NewDecoder(bytes.NewReader(c.Raw))
	dec.UseNumber()
	if err := dec.Decode(&d); err != nil {
		return nil, ErrUntrusted.With("The claims of the token cannot be read.").Because(err)
	}
	return d, nil
}

// value is a claim as a text. Lists and objects are none.
func (d document) value(name string) (string, bool) {
	path := []string{name}
	if strings.HasPrefix(name, "/") {
		path = strings.Split(name[1:], "/")
		for i, p := range path {
			path[i] = strings.ReplaceAll(strings.ReplaceAll(p, "~1", "/"), "~0", "~")
		}
	}
	var at any = map[string]any(d)
	for _, p := range path {
		members, ok := at.(map[string]any)
		if !ok {
			return "", false
		}
		if at, ok = members[p]; !ok {
			return "", false
		}
	}
	switch v := at.(type) {
	case string:
		return v, len(v) <= maxText
	case json.Number:
		return v.String(), true
	case bool:
		return fmt.Sprint(v), true
	}
	return "", false
}

// common are the claims that tell no workload from another: all tokens of the
// issuer that are for us have them alike, or no two.
var common = []string{"iss", "aud", "exp", "nbf", "iat", "jti"}

// tells reports whether the rule says something that is not so of all tokens of
// the issuer.
func (r *Rule) tells() bool {
	for _, names := range []map[string]string{r.Claims, r.Globs} {
		for name := range names {
			if !slices.Contains(common, strings.TrimPrefix(name, "/")) {
				return true
			}
		}
	}
	return false
}

// fits reports whether all that the rule says of a token is so.
func (r *Rule) fits(d document) bool {
	for name, want := range r.Claims {
		if is, ok := d.value(name); !ok || is != want {
			return false
		}
	}
	for name, pattern := range r.Globs {
		if is, ok := d.value(name); !ok || !glob(pattern, is) {
			return false
		}
	}
	return len(r.Claims)+len(r.Globs) > 0
}

// checkGlob says what is wrong with a pattern, "" if nothing.
func checkGlob(pattern string) string {
	body := strings.TrimSuffix(pattern, "**")
	switch {
	case len(pattern) > 512:
		return "A pattern has at most 512 bytes."
	case strings.Trim(pattern, "*/:") == "":
		return "A pattern that fits everything is no rule."
	case strings.HasPrefix(pattern, "*"):
		return "A pattern begins with what must be there."
	case strings.Contains(body, "**"), strings.HasSuffix(body, "*") && body != pattern:
		return "** stands at the end of a pattern alone."
	case !strings.Contains(pattern, "*"):
		return "A pattern has a *. What is compared as it is stands among the claims."
	}
	return ""
}

// glob reports whether a text fits a pattern: * is one or more characters but
// / and :, which separate the parts of names, and ** at the end is one or more
// of any. It takes one step for each character of both, whatever they are.
func glob(pattern, s string) bool {
	// Most tokens are about something else, and whoever has one of the issuer can
	// send it as often as they like.
	if start, _, _ := strings.Cut(pattern, "*"); !strings.HasPrefix(s, start) {
		return false
	}
	rest := false
	if p, ok := strings.CutSuffix(pattern, "**"); ok {
		pattern, rest = p, true
	}
	// at[i] says whether the pattern so far fits the first i bytes.
	at := make([]bool, len(s)+1)
	at[0] = true
	for p := range len(pattern) {
		next := make([]bool, len(s)+1)
		for i := range len(s) {
			switch {
			case pattern[p] != '*':
				next[i+1] = at[i] && s[i] == pattern[p]
			case s[i] != '/' && s[i] != ':':
				next[i+1] = at[i] || next[i]
			}
		}
		at = next
	}
	if !rest {
		return at[len(s)]
	}
	for i := range len(s) {
		if at[i] {
			return true
		}
	}
	return false
}
