package main

import (
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"estover.dev"
	"estover.dev/internal/access"
)

func grantCommand(s *settings) *cobra.Command {
	c := noun("grant", "Grants: which agent may do what, for which purposes",
		`A grant lets an agent do actions of one resource, for purposes that it has
declared, up to a class of data. It is never changed: another of the same name
takes its place. What no grant covers is refused.`)
	c.AddCommand(grantList(s), grantShow(s), grantCreate(s), grantEnd(s))
	return c
}

func grantList(s *settings) *cobra.Command {
	var agentName, resourceName string
	var all bool
	c := &cobra.Command{
		Use: "list", Short: "List grants", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			q := url.Values{"limit": {"200"}}
			if agentName != "" {
				q.Set("agent", agentName)
			}
			if resourceName != "" {
				q.Set("resource", resourceName)
			}
			if !all {
				q.Set("live", "true")
			}
			grants, err := list[access.Grant](cmd.Context(), c, "/v1/grants", q, 0)
			if err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), grants, func(t *table) {
				t.row("NAME", "STATE", "AGENT", "RESOURCE", "ACTIONS", "PURPOSES", "CLASS", "EXPIRES")
				for _, g := range grants {
					t.row(g.Name, g.State, g.Agent, g.Resource, g.Actions, g.Purposes, g.Class, g.ExpiresAt)
				}
			})
		},
	}
	c.Flags().StringVar(&agentName, "agent", "", "only grants of this agent")
	c.Flags().StringVar(&resourceName, "resource", "", "only grants for this resource")
	c.Flags().BoolVar(&all, "all", false, "those that have ended or expired too")
	_ = c.RegisterFlagCompletionFunc("agent", completeAgents(s))
	_ = c.RegisterFlagCompletionFunc("resource", completeResources(s))
	return c
}

func showGrant(s *settings, cmd *cobra.Command, g access.Grant) error {
	return s.show(cmd.OutOrStdout(), g, func(t *table) {
		t.pairs("Grant", g.ID, "Name", g.Name, "State", g.State, "Agent", g.Agent, "Resource", g.Resource, "Actions", g.Actions, "Purposes", g.Purposes,
			"Class", g.Class, "Starts", g.StartsAt, "Expires", g.ExpiresAt, "Created", g.CreatedAt, "By", g.CreatedBy, "Ended", g.EndedAt, "Why", g.EndReason, "Kept by", g.ManagedBy)
	})
}

func grantShow(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "show GRANT", Short: "Show a grant", Args: oneArgument("the grant's name or id"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var g access.Grant
			if err := c.do(cmd.Context(), http.MethodGet, "/v1/grants/"+url.PathEscape(args[0]), nil, &g); err != nil {
				return err
			}
			return showGrant(s, cmd, g)
		},
	}
}

func grantCreate(s *settings) *cobra.Command {
	var spec access.Spec
	var class string
	var ttl time.Duration
	c := &cobra.Command{
		Use: "create", Short: "Let an agent do something", Args: noArguments,
		Example: "  estover grant create --agent invoices-bot --resource crm --action customer.read --purpose billing --class confidential --ttl 720h",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			spec.Class = estover.Class(class)
			if ttl > 0 {
				spec.ExpiresAt = time.Now().Add(ttl)
			}
			var g access.Grant
			if err := c.do(cmd.Context(), http.MethodPost, "/v1/grants", spec, &g); err != nil {
				return err
			}
			return showGrant(s, cmd, g)
		},
	}
	c.Flags().StringVar(&spec.Name, "name", "", "what the grant is called, so that it can be replaced (default: its id)")
	c.Flags().StringVar(&spec.Agent, "agent", "", "the agent that it is given to")
	c.Flags().StringVar(&spec.Resource, "resource", "", "the resource that it is for")
	c.Flags().StringSliceVar(&spec.Actions, "action", nil, "an action of the resource, or * for every one; may be repeated")
	c.Flags().StringSliceVar(&spec.Purposes, "purpose", nil, "a purpose that it is given for; may be repeated")
	c.Flags().StringVar(&class, "class", "internal", "the most sensitive class of data that it covers")
	c.Flags().DurationVar(&ttl, "ttl", 0, "when it ends by itself (default: never)")
	for _, f := range []string{"agent", "resource", "action", "purpose"} {
		_ = c.MarkFlagRequired(f)
	}
	_ = c.RegisterFlagCompletionFunc("agent", completeAgents(s))
	_ = c.RegisterFlagCompletionFunc("resource", completeResources(s))
	return c
}

func grantEnd(s *settings) *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "end GRANT", Short: "End a grant; what is under way on it is cut", Args: oneArgument("the grant's name or id"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var g access.Grant
			if err := c.do(cmd.Context(), http.MethodPost, "/v1/grants/"+url.PathEscape(args[0])+"/end", map[string]string{"reason": reason}, &g); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), g, func(t *table) { t.row(fmt.Sprintf("%s has ended.", g.Name)) })
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for those who miss the access")
	_ = c.MarkFlagRequired("reason")
	return c
}
