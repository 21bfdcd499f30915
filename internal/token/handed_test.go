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
	details, err := detail.Parse([]byte(`[{"type":"another"}]`))
	if err != nil {
		t.Fatal(err)
	}
	type change = func(g *token.Grant)
	changes := map[string][]change{
		"Kind":      {func(g *token.Grant) { g.Kind = "another" }},
		"Parent":    {func(g *token.Grant) { g.Parent = "another" }},
		"From":      {func(g *token.Grant) { g.From = "another" }},
		"Root":      {func(g *token.Grant) { g.Root = "another" }},
		"Session":   {func(g *token.Grant) { g.Session = "another" }},
		"Client":    {func(g *token.Grant) { g.Client = "another" }},
		"Subject":   {func(g *token.Grant) { g.Subject = "agent:another" }},
		"Actors":    {func(g *token.Grant) { g.Actors = []estover.Subject{"agent:another"} }},
		"Scopes":    {func(g *token.Grant) { g.Scopes = nil }, func(g *token.Grant) { g.Scopes = []string{"another"} }},
		"Resources": {func(g *token.Grant) { g.Resources = nil }, func(g *token.Grant) { g.Resources = []string{"another"} }},
		"Identity":  {func(g *token.Grant) { g.Identity = nil }, func(g *token.Grant) { g.Identity = []string{"another"} }},
		"Details":   {func(g *token.Grant) { g.Details = nil }, func(g *token.Grant) { g.Details = details }},
		"Reach": {
			func(g *token.Grant) { g.Reach = nil }, func(g *token.Grant) { g.Reach = token.Reach{"another": {"read"}} },
			func(g *token.Grant) { g.Reach = token.Reach{oauthtest.CRM: {"read", "write"}} },
		},
		"Confirm": {func(g *token.Grant) { g.Confirm.Key = "another" }, func(g *token.Grant) { g.Confirm.Certificate = "another" }},
		"Auth": {
			func(g *token.Grant) { g.Auth.Time = 1 }, func(g *token.Grant) { g.Auth.Class = "phr" }, func(g *token.Grant) { g.Auth.Methods = []string{"pwd"} },
		},
		"Created": {func(g *token.Grant) { g.Created = time.Unix(1, 0) }},
		"Expires": {func(g *token.Grant) { g.Expires = time.Unix(1, 0) }},
		"Ended":   {func(g *token.Grant) { g.Ended = time.Unix(1, 0) }},
		"Cause":   {func(g *token.Grant) { g.Cause = "another" }},
	}
	made := func() *token.Grant {
		return &token.Grant{
			ID: "gnt_1", Epoch: 1, Scopes: []string{}, Resources: []string{}, Details: detail.List{}, Identity: []string{},
			Reach: token.Reach{oauthtest.CRM: {"read"}},
		}
	}
	other := made()
	if other.ID, other.Epoch = "", 2; !made().Alike(other) {
		t.Error("a grant is not taken for what it is")
	}
	for field := range reflect.TypeFor[token.Grant]().Fields() {
		if !field.IsExported() || field.Name == "ID" || field.Name == "Epoch" {
			continue
		}
		of := changes[field.Name]
		if field.Type.Kind() == reflect.Struct && field.Type != reflect.TypeFor[time.Time]() && len(of) != field.Type.NumField() || len(of) == 0 {
			t.Errorf("the test knows too little of %s: compare it, and say here how it may differ", field.Name)
		}
		for i, change := range of {
			other := made()
			if change(other); made().Alike(other) {
				t.Errorf("grants with another %s (%d) are taken for the same", field.Name, i)
			}
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
