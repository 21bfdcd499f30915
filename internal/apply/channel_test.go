package apply_test

import (
	"strings"
	"testing"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
)

const channel = `
---
apiVersion: estover.dev/v1
kind: Secret
metadata: {name: mail/password}
spec: {destinations: ["smtp.example.com:587"]}
---
apiVersion: estover.dev/v1
kind: Channel
metadata: {name: approvers}
spec:
  kind: email
  server: smtp.example.com:587
  user: estover
  secret: mail/password
  from: estover@example.com
`

func TestChannel(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d)
		if got := h.must(company + channel); !strings.Contains(got, "+ Channel approvers\n") {
			t.Errorf("applying says\n%s", got)
		}
		c, err := h.Channels.ByName(t.Context(), ada, "approvers")
		if err != nil || c.ManagedBy != "apply/default" || c.TLS != "starttls" {
			t.Errorf("the channel is %+v (%v)", c, err)
		}
		if got := h.must(company + channel); strings.Contains(got, "Channel") {
			t.Errorf("applying again says\n%s", got)
		}
		if got := h.must(company + channel + "  events: [access.request]\n  batch_seconds: 0\n"); !strings.Contains(got, "~ Channel approvers\n") {
			t.Errorf("applying a change says\n%s", got)
		}
		if c, err := h.Channels.ByName(t.Context(), ada, "approvers"); err != nil || len(c.Events) != 1 || c.BatchSeconds == nil || c.ManagedBy != "apply/default" {
			t.Errorf("the channel that was changed is %+v (%v)", c, err)
		}
		for what, c := range map[string]struct{ before, after, says string }{
			"a secret that there is not": {"secret: mail/password", "secret: mail/passwort", `There is no Secret "mail/passwort"`},
			"a password":                 {"  secret: mail/password\n", "  password: hunter2\n", "never stands in a file"},
			"what a webhook has":         {"  kind: email\n", "  kind: email\n  url: https://chat.example\n", "has none"},
			"another kind":               {"  kind: email\n  server: smtp.example.com:587\n  user: estover\n  secret: mail/password\n  from: estover@example.com\n", "  kind: teams\n  url: https://chat.example/hook\n", "for good"},
		} {
			if _, err := h.run(company + strings.Replace(channel, c.before, c.after, 1)); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: %v, want %q", what, err, c.says)
			}
		}
		if got := h.must(company, prune); !strings.Contains(got, "- Channel approvers\n") {
			t.Errorf("pruning says\n%s", got)
		}
		if _, err := h.Channels.ByName(t.Context(), ada, "approvers"); estover.KindOf(err) != estover.NotFound {
			t.Errorf("the channel that was pruned: %v", err)
		}
	})
}
