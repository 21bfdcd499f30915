package apply_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/directory"
)

const provider = `
---
apiVersion: estover.dev/v1
kind: IdentityProvider
metadata: {name: corp}
spec:
  preset: entra
  issuer: https://login.microsoftonline.com/8d3f/v2.0
  client_id: 11aa
  match: email
  claims: {tid: 8d3f}
  roles:
    admin: [Estover.Admin]
    auditor: [Estover.Auditor, Audit]
`

func TestIdentityProvider(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d)
		if got := h.must(company + provider); !strings.Contains(got, "+ IdentityProvider corp\n") {
			t.Errorf("applying says\n%s", got)
		}
		got, err := h.People.ProviderByName(t.Context(), ada, "corp")
		if err != nil || got.ManagedBy != "apply/default" || got.Heading() != "Microsoft Entra ID" || got.Claims["tid"] != "8d3f" ||
			!slices.Equal(got.Roles["auditor"], []string{"Estover.Auditor", "Audit"}) {
			t.Errorf("the provider is %+v (%v)", got, err)
		}
		if got := h.must(company + provider); strings.Contains(got, "IdentityProvider") {
			t.Errorf("applying again says\n%s", got)
		}
		if got := h.must(company + strings.Replace(provider, "match: email", "create: true", 1)); !strings.Contains(got, "~ IdentityProvider corp\n") {
			t.Errorf("applying a change says\n%s", got)
		}
		for what, c := range map[string]struct{ before, after, says string }{
			"everybody's directory":         {"/8d3f/v2.0", "/common/v2.0", "Anybody at all could come in"},
			"a role that there is not":      {"admin: [", "chief: [", "is no role"},
			"plain HTTP":                    {"https://", "http://", "https://"},
			"a role of nothing":             {"[Estover.Admin]", "[]", "between 1 and 100"},
			"another issuer, who is others": {"/8d3f/", "/9e40/", "Add a provider with another name"},
			"everybody with an account":     {"preset: entra", "preset: google\n  create: true", "Name the domain"},
			"roles of no claim":             {"preset: entra\n  issuer", "issuer", "Name the claim"},
		} {
			if _, err := h.run(company + strings.Replace(provider, c.before, c.after, 1)); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: %v, want %q", what, err, c.says)
			}
		}
		if got := h.must(company, prune); !strings.Contains(got, "- IdentityProvider corp\n") {
			t.Errorf("pruning says\n%s", got)
		}
		if _, err := h.People.ProviderByName(t.Context(), ada, "corp"); !errors.Is(err, directory.ErrProviderNotFound) {
			t.Errorf("the provider that was pruned: %v, want ErrProviderNotFound", err)
		}
		// The name is free again, and who was known by it is not.
		if got := h.must(company + provider); !strings.Contains(got, "+ IdentityProvider corp\n") {
			t.Errorf("applying it once more says\n%s", got)
		}
	})
}
