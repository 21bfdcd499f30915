package engine

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// CheckName refuses a name that no user is given: one that is empty or longer
// than longest, is no text, or has a space or a control character in it. A user
// of such a name is not there, so its revocation has nothing to do.
func CheckName(name string, longest int) error {
	switch {
	case name == "":
		return Refuse("a user needs a name")
	case len(name) > longest:
		return Refuse("a name of %d bytes is too long: %d are possible", len(name), longest)
	case !utf8.ValidString(name), strings.ContainsFunc(name, func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) || r == utf8.RuneError }):
		return Refuse("%q cannot be a name", name)
	}
	return nil
}

// CheckKeys refuses a template with a key that is not among fields, that lacks
// one, or that gives several values where one is meant.
func CheckKeys(t Template, fields []Field) error {
	for key := range t {
		if !slices.ContainsFunc(fields, func(f Field) bool { return f.Name == key }) {
			return ErrTemplate.With("A template of this kind has no key %q.", key).At(key)
		}
	}
	for _, f := range fields {
		switch {
		case f.Required && len(t[f.Name]) == 0:
			return ErrTemplate.With("The template needs %s: %s.", f.Name, f.Help).At(f.Name)
		case !f.Many && len(t[f.Name]) > 1:
			return ErrTemplate.With("The template has one value for %s, not %d.", f.Name, len(t[f.Name])).At(f.Name)
		}
	}
	return nil
}

// Login is what [Engine.Verify] takes of a material: its username, and the first
// that it has of a password, a key and a file of credentials.
func (m Material) Login() Credential {
	c := Credential{User: string(m["username"].Reveal())}
	for _, name := range []string{"password", "key", "creds"} {
		if c.Secret = m[name]; !c.Secret.Empty() {
			break
		}
	}
	return c
}
