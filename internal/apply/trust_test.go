package apply_test

import (
	"errors"
	"strings"
	"testing"

	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/federation"
)

const trust = `
---
apiVersion: estover.dev/v1
kind: Trust
metadata: {name: github}
spec:
  issuer: https://token.actions.githubusercontent.com
  jwks_url: https://token.actions.githubusercontent.com/.well-known/jwks
  algorithms: [RS256]
  audience: https://estover.example
  rules:
    - agent: bot
      claims: {repository: acme/bot, ref: refs/heads/main}
`

func TestTrust(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d)
		if got := h.must(company + trust); !strings.Contains(got, "+ Trust github\n") {
			t.Errorf("applying says\n%s", got)
		}
		got, err := h.Trusts.ByName(t.Context(), ada, "github")
		bot, _ := h.Agents.ByName(t.Context(), ada, "bot")
		if err != nil || got.ManagedBy != "apply/default" || got.Rules[0].Agent != bot.ID {
			t.Errorf("the trust is %+v (%v), want a rule about %s", got, err, bot.ID)
		}
		if got := h.must(company + trust); strings.Contains(got, "Trust") {
			t.Errorf("applying again says\n%s", got)
		}
		changed := strings.Replace(trust, "refs/heads/main", "refs/heads/release", 1)
		if got := h.must(company + changed); !strings.Contains(got, "~ Trust github\n    rules") {
			t.Errorf("applying a change says\n%s", got)
		}
		for what, c := range map[string]struct{ before, after, says string }{
			"an agent that there is not": {"agent: bot", "agent: nobody", `There is no Agent "nobody"`},
			"no audience":                {"  audience: https://estover.example\n", "", "audience"},
			"no algorithm":               {"[RS256]", "[HS256]", "company.yaml"},
			"a pattern for everything":   {"claims: {repository: acme/bot, ref: refs/heads/main}", "globs: {sub: '*'}", "A pattern that fits everything is no rule."},
			"ourselves":                  {"https://token.actions.githubusercontent.com\n", "https://estover.example\n", "This is the issuer of this server itself"},
		} {
			if _, err := h.run(company + strings.Replace(trust, c.before, c.after, 1)); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: %v, want %q", what, err, c.says)
			}
		}
		if got := h.must(company, prune); !strings.Contains(got, "- Trust github\n") {
			t.Errorf("pruning says\n%s", got)
		}
		if _, err := h.Trusts.ByName(t.Context(), ada, "github"); !errors.Is(err, federation.ErrNotFound) {
			t.Errorf("the trust that was pruned: %v, want ErrNotFound", err)
		}
	})
}
