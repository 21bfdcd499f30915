package mount

import (
	"context"
	"crypto/rand"
	"fmt"
	"math/big"
	"slices"
	"unicode"
	"unicode/utf8"

	"github.com/hashicorp/hcl"
	"github.com/hashicorp/hcl/hcl/ast"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// A recipe is how passwords are made.
type recipe struct {
	length  int
	charset []rune // of all rules together
	rules   []charset
}

// A charset is characters of which a password has some at least.
type charset struct {
	chars []rune
	least int
}

// The bounds of passwords.
const (
	shortest = 4
	longest  = 100
)

// cook reads a policy of passwords in HCL or JSON.
func cook(text string) (*recipe, error) {
	bad := func(format string, args ...any) error {
		return ErrPolicy.With("invalid password policy: %s", fmt.Sprintf(format, args...))
	}
	if text == "" {
		return nil, ErrPolicy.With("missing policy")
	}
	if len(text) > 16<<10 {
		return nil, bad("it has more than 16384 bytes")
	}
	file, err := parse(text)
	if err != nil {
		return nil, bad("unable to decode: %s", err)
	}
	list, ok := file.Node.(*ast.ObjectList)
	if !ok {
		return nil, bad("unable to decode")
	}
	for _, item := range list.Items {
		if name := keyOf(item, 0); name != "length" && name != "rule" {
			return nil, bad("invalid key %q", name)
		}
	}
	var in struct {
		Length int `hcl:"length"`
	}
	if err := hcl.DecodeObject(&in, list); err != nil {
		return nil, bad("unable to decode the length")
	}
	r := &recipe{length: in.Length}
	if r.length < shortest || r.length > longest {
		return nil, bad("the length must be between %d and %d", shortest, longest)
	}
	least := 0
	for _, item := range list.Filter("rule").Items {
		if kind := keyOf(item, 0); kind != "charset" {
			return nil, bad("unrecognized rule type %q", kind)
		}
		var rule struct {
			Charset string `hcl:"charset"`
			Least   int    `hcl:"min-chars"`
		}
		if err := hcl.DecodeObject(&rule, item.Val); err != nil {
			return nil, bad("unable to decode a rule")
		}
		set := charset{chars: []rune(rule.Charset), least: rule.Least}
		switch {
		case len(set.chars) == 0:
			return nil, bad("no charset specified")
		case !utf8.ValidString(rule.Charset) || slices.ContainsFunc(set.chars, func(c rune) bool { return !unicode.IsPrint(c) }):
			return nil, bad("a charset has only characters that can be printed")
		case set.least < 0:
			return nil, bad("min-chars is not negative")
		}
		least += set.least
		r.rules = append(r.rules, set)
		r.charset = append(r.charset, set.chars...)
	}
	slices.Sort(r.charset)
	r.charset = slices.Compact(r.charset)
	switch {
	case len(r.charset) < 2:
		return nil, bad("no charset specified")
	case least > r.length:
		return nil, bad("the rules want %d characters, and the length is %d", least, r.length)
	}
	return r, nil
}

// make makes a password: characters of all sets, drawn until each rule has what
// it wants.
func (r *recipe) make() (estover.Secret, error) {
	for range 10_000 {
		password := make([]rune, r.length)
		for i := range password {
			n, err := rand.Int(rand.Reader, big.NewInt(int64(len(r.charset))))
			if err != nil {
				return estover.Secret{}, err
			}
			password[i] = r.charset[n.Int64()]
		}
		if r.fits(password) {
			return estover.NewSecret([]byte(string(password))), nil
		}
	}
	return estover.Secret{}, ErrPolicy.With("No password that fits the policy was found; make it longer, or its rules wider.")
}

func (r *recipe) fits(password []rune) bool {
	for _, rule := range r.rules {
		n := 0
		for _, c := range password {
			if slices.Contains(rule.chars, c) {
				n++
			}
		}
		if n < rule.least {
			return false
		}
	}
	return true
}

// Passwords gives the names of the policies of passwords.
func (p *Policies) Passwords(ctx context.Context, c estover.Caller) (names []string, err error) {
	err = p.guard.Read(ctx, c, guard.Op{Action: "acl.list"}, func(tx *db.Tx) error {
		names, err = policyNames(ctx, tx, passwordKind)
		return err
	})
	slices.Sort(names)
	return names, err
}

// Password is a policy of passwords as it was written.
func (p *Policies) Password(ctx context.Context, c estover.Caller, name string) (one Policy, err error) {
	err = p.guard.Read(ctx, c, guard.Op{Action: "acl.read", Target: "password_policy:" + name}, func(tx *db.Tx) error {
		one, err = findPolicy(ctx, tx, passwordKind, name)
		return err
	})
	return one, err
}

// PutPassword writes a policy of passwords: HCL or JSON, plain or in base64.
func (p *Policies) PutPassword(ctx context.Context, c estover.Caller, name, text string) error {
	text = plain(text)
	op := guard.Op{Action: "acl.put", Target: "password_policy:" + name, Effect: guard.Manages, Detail: map[string]any{"text": cut(text)}}
	decision, err := p.guard.Admit(ctx, c, op) // to try it may take a while
	if err != nil {
		return err
	}
	invalid := checkPolicyName(name)
	if invalid == nil {
		var r *recipe
		if r, invalid = cook(text); invalid == nil {
			_, invalid = r.make()
		}
	}
	return p.guard.Act(ctx, c, op, decision, func(tx *guard.Tx) error {
		if invalid != nil {
			return invalid
		}
		return putPolicy(ctx, tx.Tx, passwordKind, name, text, tx.Now())
	})
}

// RemovePassword takes a policy of passwords away.
func (p *Policies) RemovePassword(ctx context.Context, c estover.Caller, name string) error {
	op := guard.Op{Action: "acl.remove", Target: "password_policy:" + name, Effect: guard.Deletes}
	return p.guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		_, err := removePolicy(ctx, tx.Tx, passwordKind, name)
		return err
	})
}

// Generate makes a password as a policy wants it. It is kept nowhere.
func (p *Policies) Generate(ctx context.Context, c estover.Caller, name string) (estover.Secret, error) {
	var one Policy
	err := p.guard.Read(ctx, c, guard.Op{Action: "acl.generate", Target: "password_policy:" + name}, func(tx *db.Tx) (err error) {
		one, err = findPolicy(ctx, tx, passwordKind, name)
		return err
	})
	if err != nil {
		return estover.Secret{}, err
	}
	r, err := cook(one.Text)
	if err != nil {
		return estover.Secret{}, err
	}
	return r.make()
}
