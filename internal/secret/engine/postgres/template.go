package postgres

import (
	"regexp"
	"slices"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/secret/engine"
)

// largest is how long all statements of a template may be together.
const largest = 64 << 10

func check(t engine.Template) error {
	total := 0
	for key, values := range t {
		if !slices.ContainsFunc(keys, func(f engine.Field) bool { return f.Name == key }) {
			return engine.ErrTemplate.With("A role at a PostgreSQL has groups, or the statements create, renew and revoke, but no %q.", key).At(key)
		}
		for _, v := range values {
			total += len(v)
			switch {
			case key == "groups" && !nameable(v):
				return engine.ErrTemplate.With("%q is no name of a group role.", v).At(key)
			case strings.TrimSpace(v) == "" || strings.ContainsRune(v, 0):
				return engine.ErrTemplate.With("A statement of %s is empty.", key).At(key)
			}
		}
		if key != "groups" && !mentions(values, "{{name}}", "{{username}}") {
			return engine.ErrTemplate.With("The statements of %s name no user: write \"{{name}}\" where the name belongs.", key).At(key)
		}
	}
	switch create := t["create"]; {
	case total > largest:
		return engine.ErrTemplate.With("The statements are longer than %d bytes.", largest)
	case len(create) == 0 && len(t["groups"]) == 0:
		return engine.ErrTemplate.With("A role at a PostgreSQL needs groups, of which its users are members, or statements that make a user.").At("groups")
	case len(create) > 0 && !mentions(create, "{{password}}"):
		return engine.ErrTemplate.With("The statements of create set no password: write PASSWORD '{{password}}' in CREATE ROLE.").At("create")
	}
	return nil
}

func mentions(statements []string, words ...string) bool {
	return slices.ContainsFunc(statements, func(s string) bool {
		return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(s, w) })
	})
}

// powers are group roles that lead out of the database.
var powers = []string{"pg_execute_server_program", "pg_read_server_files", "pg_write_server_files", "pg_signal_backend", "pg_write_all_data", "pg_create_subscription"}

func warn(t engine.Template) (words []string) {
	for _, s := range t["create"] {
		x := expansion{verifier: "v"}
		if _, clear := x.expand(s); clear {
			words = append(words, "A statement of create has {{password}} elsewhere than in PASSWORD '…' of CREATE ROLE or ALTER ROLE. There the database gets the password itself, and may write it into its log.")
			break
		}
	}
	if len(t["create"]) > 0 && mentions(t["create"], " TABLE", " table") {
		words = append(words, "Rights on tables for each user apart bloat the database's catalogues and make each revocation slow. Give them to a group role, and make the users its members.")
	}
	for _, g := range t["groups"] {
		if slices.Contains(powers, g) {
			words = append(words, "Members of "+g+" may do more than this database: they reach other users' sessions, files or programs of its server.")
		}
	}
	return words
}

// expansion is what stands for the placeholders of a statement.
type expansion struct {
	name     string
	secret   estover.Secret
	verifier string
	until    time.Time
}

// plain are names that can stand in a statement of somebody else's without
// meaning anything there.
var plain = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)

// setting is what stands before a password that the database takes a verifier for.
var setting = regexp.MustCompile(`(?is)\b(?:create|alter)\s+(?:role|user)\b(?:[^;']|'[^']*')*\bpassword\s+'$`)

const password = "{{password}}"

// all fills in statements, or refuses what would not be the same statement.
func (x *expansion) all(statements []string) ([]string, error) {
	if !plain.MatchString(x.name) {
		return nil, engine.Refuse("the name %q cannot stand in statements of the role", x.name)
	}
	filled := make([]string, len(statements))
	for i, s := range statements {
		var clear bool
		filled[i], clear = x.expand(s)
		if clear && !plain.Match(x.secret.Reveal()) {
			return nil, engine.Refuse("the password has characters that cannot stand in statements of the role")
		}
	}
	return filled, nil
}

// expand fills in a statement, and reports whether it has the secret in clear.
func (x *expansion) expand(statement string) (filled string, clear bool) {
	var b strings.Builder
	rest := statement
	for {
		at := strings.Index(rest, password)
		if at < 0 {
			break
		}
		before := statement[:len(statement)-len(rest)+at]
		b.WriteString(rest[:at])
		rest = rest[at+len(password):]
		if setting.MatchString(before) && strings.HasPrefix(rest, "'") {
			b.WriteString(x.verifier)
		} else {
			clear = true
			b.Write(x.secret.Reveal())
		}
	}
	b.WriteString(rest)
	expiration := "infinity"
	if !x.until.IsZero() {
		expiration = x.until.UTC().Format("2006-01-02 15:04:05-0700")
	}
	return strings.NewReplacer("{{name}}", x.name, "{{username}}", x.name, "{{expiration}}", expiration).Replace(b.String()), clear
}
