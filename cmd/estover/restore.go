package main

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"estover.dev/internal/access"
)

func accessRestore(s *settings) *cobra.Command {
	var agent, at, reason string
	var try bool
	c := &cobra.Command{
		Use: "restore --agent AGENT --at TIME", Short: "Put an agent's standing access back to what it was at a time", Args: noArguments,
		Long: `Restore ends what the agent was granted since, and grants again what has ended
since. What came of a request or belonged to a session is not given again, and
neither is what has come to the end of its time.

The time is as 2026-03-01T12:00:00Z, or how long ago it was, as 2h30m.`,
		Example: `  estover access restore --agent invoices-bot --at 2h --dry-run
  estover access restore --agent invoices-bot --at 2h --reason "the wrong file was applied"`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			when, err := pastTime(at)
			if err != nil {
				return err
			}
			c, err := s.client()
			if err != nil {
				return err
			}
			var r access.Restoration
			in := map[string]any{"at": when, "reason": reason, "dry_run": try}
			if err := c.do(cmd.Context(), http.MethodPost, "/v1/agents/"+url.PathEscape(agent)+"/restore", in, &r); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), r, func(t *table) {
				t.row("WHAT", "GRANT", "RESOURCE", "ACTIONS", "WHY NOT")
				row := func(what string, g access.Grant, why string) {
					t.row(what, g.Name, g.Resource, strings.Join(g.Actions, " "), why)
				}
				for _, g := range r.Give {
					row("give", g, "")
				}
				for _, g := range r.Take {
					row("take", g, "")
				}
				for _, g := range r.Keep {
					row("keep", g, "")
				}
				for _, g := range r.Leave {
					row("leave", g.Grant, g.Why)
				}
				t.row()
				if r.Done {
					t.row("The access of " + agent + " is what it was at " + r.At.Format(time.RFC3339) + ".")
				} else {
					t.row("Nothing was done. Leave out --dry-run to put it back.")
				}
			})
		},
	}
	c.Flags().StringVar(&agent, "agent", "", "the agent's name or id")
	c.Flags().StringVar(&at, "at", "", "the time, or how long ago")
	c.Flags().StringVar(&reason, "reason", "", "why, for the record")
	c.Flags().BoolVar(&try, "dry-run", false, "only say what would be given and taken")
	_ = c.MarkFlagRequired("agent")
	_ = c.MarkFlagRequired("at")
	return c
}

// pastTime reads a time, or how long ago it was.
func pastTime(text string) (time.Time, error) {
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		return time.Now().Add(-ago).UTC(), nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return at, usageError{fmt.Errorf("--at is a time as 2026-03-01T12:00:00Z, or how long ago as 2h30m, not %q", text)}
	}
	return at, nil
}
