package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"estover.dev"
	"estover.dev/internal/directory"
)

func personCommand(s *settings) *cobra.Command {
	c := noun("person", "People: who manages Estover and answers for agents",
		`A person has roles: admin, operator, auditor or approver. A sponsor, who answers for
agents, needs none. People come in by an invitation, a token that is used once.`)
	c.AddCommand(personList(s), personShow(s), personCreate(s), personInvite(s), personDisable(s), personEnable(s), personAbsence(s), personKey(s))
	return c
}

func personList(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List people", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			all, err := list[directory.Person](cmd.Context(), c, "/v1/people", url.Values{"limit": {"200"}}, 0)
			if err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), all, func(t *table) {
				t.row("NAME", "STATUS", "ROLES", "EMAIL", "ID")
				for _, p := range all {
					t.row(p.Name, p.Status, roles(p.Roles), p.Email, p.ID)
				}
			})
		},
	}
}

func roles(r []estover.Role) []string {
	var out []string
	for _, role := range r {
		out = append(out, string(role))
	}
	return out
}

func showPerson(s *settings, cmd *cobra.Command, p directory.Person) error {
	return s.show(cmd.OutOrStdout(), p, func(t *table) {
		t.pairs("Name", p.Name, "Id", p.ID, "Status", p.Status, "Roles", roles(p.Roles), "Email", p.Email,
			"Disabled", p.DisabledAt, "Why", p.DisabledReason, "Created", p.CreatedAt, "Kept by", p.ManagedBy)
	})
}

// personAction is a command that does one thing to one person and shows them.
func personAction(s *settings, use, short, method, path string, body func() any) *cobra.Command {
	return &cobra.Command{
		Use: use + " PERSON", Short: short, Args: oneArgument("the person's name or id"),
		ValidArgsFunction: completeFrom(s, "/v1/people", func(p struct{ Name string }) string { return p.Name }),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var p directory.Person
			if err := c.do(cmd.Context(), method, "/v1/people/"+url.PathEscape(args[0])+path, body(), &p); err != nil {
				return err
			}
			return showPerson(s, cmd, p)
		},
	}
}

// personID finds the id of a person by their name; "me" is who asks.
func personID(ctx context.Context, c *client, name string) (string, error) {
	if strings.HasPrefix(name, "usr_") {
		return name, nil
	}
	var p struct {
		ID string `json:"id"`
	}
	err := c.do(ctx, http.MethodGet, "/v1/people/"+url.PathEscape(name), nil, &p)
	return p.ID, err
}

func personShow(s *settings) *cobra.Command {
	return personAction(s, "show", "Show a person ('me' is you)", http.MethodGet, "", func() any { return nil })
}

func personCreate(s *settings) *cobra.Command {
	var email string
	var withRoles []string
	c := &cobra.Command{
		Use: "create NAME", Short: "Add a person", Args: oneArgument("the name of the person"),
		Example: "  estover person create alice --email alice@example.com --role operator",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			spec := directory.Spec{Name: args[0], Email: email}
			for _, r := range withRoles {
				spec.Roles = append(spec.Roles, estover.Role(r))
			}
			var p directory.Person
			if err := c.do(cmd.Context(), http.MethodPost, "/v1/people", spec, &p); err != nil {
				return err
			}
			return showPerson(s, cmd, p)
		},
	}
	c.Flags().StringVar(&email, "email", "", "where the person can be reached")
	c.Flags().StringSliceVar(&withRoles, "role", nil, "admin, operator, auditor or approver; may be repeated")
	return c
}

func personInvite(s *settings) *cobra.Command {
	var ttl time.Duration
	c := &cobra.Command{
		Use: "invite PERSON", Short: "Make a one-time token by which the person logs in, here or with a passkey", Args: oneArgument("the person's name or id"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var out struct {
				directory.Enrolment
				Token string `json:"token"`
				Link  string `json:"link"`
			}
			err = c.do(cmd.Context(), http.MethodPost, "/v1/people/"+url.PathEscape(args[0])+"/invitations", map[string]int64{"ttl_seconds": int64(ttl.Seconds())}, &out)
			if err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), out, func(t *table) {
				t.row(out.Token)
				t.row(fmt.Sprintf("Hand it to %s and nobody else; it is good once, until %s: estover login < FILE,", args[0], cell(out.ExpiresAt)))
				t.row("or, in a browser, by this link, which has the token in it:")
				t.row(out.Link)
			})
		},
	}
	c.Flags().DurationVar(&ttl, "ttl", 24*time.Hour, "how long it is good, at most a week")
	return c
}

func personDisable(s *settings) *cobra.Command {
	var reason string
	c := personAction(s, "disable", "Keep a person out, and suspend the agents that they answer for", http.MethodPost, "/disable",
		func() any { return map[string]string{"reason": reason} })
	c.Flags().StringVar(&reason, "reason", "", "why")
	_ = c.MarkFlagRequired("reason")
	return c
}

func personEnable(s *settings) *cobra.Command {
	return personAction(s, "enable", "Let a person come in again, by an invitation", http.MethodPost, "/enable", func() any { return struct{}{} })
}
