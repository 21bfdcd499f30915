package token_test

import (
	"reflect"
	"strconv"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/detail"
	"estover.dev/internal/oauth/oauthtest"
	"estover.dev/internal/token"
)

// Whatever a grant says, another one says something else if that differs: all but
// which it is. No limit is not the same as a limit that nothing fits.
func TestGrantsThatDifferAreNotAlike(t *testing.T) {
	made := func() *token.Grant {
		return &token.Grant{ID: "gnt_1", Epoch: 1, Scopes: []string{}, Resources: []string{}, Details: detail.List{}, Reach: token.Reach{}, Identity: []string{}}
	}
	other := made()
	other.ID, other.Epoch = "", 2
	if !made().Alike(other) {
		t.Error("a grant is not taken for what it is")
	}
	kind := reflect.TypeFor[token.Grant]()
	for i := range kind.NumField() {
		f := kind.Field(i)
		if !f.IsExported() || f.Name == "ID" || f.Name == "Epoch" {
			continue
		}
		other := made()
		switch v := reflect.ValueOf(other).Elem().Field(i).Addr().Interface().(type) {
		case *string:
			*v = "another"
		case *estover.Subject:
			*v = "agent:another"
		case *[]estover.Subject:
			*v = []estover.Subject{"agent:another"}
		case *[]string:
			*v = nil
		case *detail.List:
			*v = nil
		case *token.Reach:
			*v = nil
		case *token.Confirm:
			v.Key = "another"
		case *token.Auth:
			v.Methods = []string{"pwd"}
		case *time.Time:
			*v = time.Unix(1, 0)
		default:
			t.Fatalf("no other value is known for %s, which is a %T", f.Name, v)
		}
		if made().Alike(other) {
			t.Errorf("grants with another %s are taken for the same", f.Name)
		}
	}
}

// However many tokens are handed on, no more grants are remembered than fit, and
// those that have run out go first.
func TestHandedIsBounded(t *testing.T) {
	d := dbtest.Open(t)
	w := oauthtest.New(t, d)
	now := d.Now()
	at := func(i int, end time.Time) int {
		return w.Tokens.Hand(&token.Grant{From: "tok_" + strconv.Itoa(i), Expires: end}, now)
	}
	n := 0
	for i := range token.MaxHanded {
		end := now.Add(time.Hour)
		if i%2 == 1 {
			end = now
		}
		n = at(i, end)
	}
	if n != token.MaxHanded {
		t.Errorf("%d are remembered, want %d", n, token.MaxHanded)
	}
	if n := at(-1, now.Add(time.Hour)); n != token.MaxHanded/2+1 {
		t.Errorf("when half of them have run out, %d are remembered", n)
	}
	for i := range 2 * token.MaxHanded {
		if n := at(token.MaxHanded+i, now.Add(time.Hour)); n > token.MaxHanded {
			t.Fatalf("%d are remembered, more than %d", n, token.MaxHanded)
		}
	}
}
