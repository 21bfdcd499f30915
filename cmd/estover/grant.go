package main

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"estover.dev"
	"estover.dev/internal/access"
)

func grantCommand(s *settings) *cobra.Command {
	c := noun("grant", "Grants: which agent may do what, for which purposes",
		`A grant lets an agent do actions of one resource, for purposes that it has
declared, up to a class of data. It may confine the parameters in the paths of
the actions, belong to a session and end with it, and have budgets. It is never
changed: another of the same name takes its place. What no grant covers is
refused.`)
	c.AddCommand(grantList(s), grantShow(s), grantCreate(s), grantRestore(s), grantEnd(s))
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
				t.row("NAME", "STATE", "KIND", "AGENT", "RESOURCE", "ACTIONS", "PURPOSES", "CLASS", "EXPIRES")
				for _, g := range grants {
					t.row(g.Name, g.State, kindOf(g), g.Agent, g.Resource, g.Actions, g.Purposes, g.Class, g.ExpiresAt)
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

// kindOf is the kind of a grant as people tell them apart.
func kindOf(g access.Grant) string {
	if g.Elevated() {
		return "elevated"
	}
	return string(g.Kind)
}

func showGrant(s *settings, cmd *cobra.Command, g access.Grant) error {
	return s.show(cmd.OutOrStdout(), g, func(t *table) {
		t.pairs("Grant", g.ID, "Name", g.Name, "State", g.State, "Kind", kindOf(g), "Agent", g.Agent, "Resource", g.Resource, "Actions", g.Actions, "Purposes", g.Purposes,
			"Class", g.Class, "Parameters", parametersOf(g.Parameters), "Session", g.Session, "Request", g.Request, "Made of", g.ActivatedFrom,
			"Budgets", g.Budgets, "Spent", spentOf(g), "Starts", g.StartsAt, "Expires", g.ExpiresAt, "Created", g.CreatedAt, "By", g.CreatedBy,
			"Last used", g.UsedAt, "Doubted", g.AnnouncedAt, "Suspended", g.SuspendedAt, "Ended", g.EndedAt, "Why", g.EndReason, "Kept by", g.ManagedBy)
	})
}

// parametersOf are the values that parameters may have, as --parameter takes them.
func parametersOf(p map[string][]string) (all []string) {
	for _, name := range slices.Sorted(maps.Keys(p)) {
		for _, v := range p[name] {
			all = append(all, name+"="+v)
		}
	}
	return all
}

// spentOf is what has been taken of a grant's budgets, as these are written.
func spentOf(g access.Grant) string {
	if g.Spent == nil {
		return ""
	}
	s := *g.Spent
	taken := access.Budgets{Calls: s.Calls, Rows: s.Rows, Records: s.Records, BytesOut: s.BytesOut, Money: s.Money, FanOut: s.FanOut}
	text := taken.String()
	if !s.BegunAt.IsZero() {
		text = strings.TrimSpace(text + " since " + s.BegunAt.Format(time.RFC3339))
	}
	return text
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
	var ttl, unused time.Duration
	var eligible bool
	var parameters []string
	var budgets map[string]int64
	c := &cobra.Command{
		Use: "create", Short: "Let an agent do something", Args: noArguments,
		Example: `  estover grant create --agent invoices-bot --resource crm --action customer.read --purpose billing --class confidential --ttl 720h
  estover grant create --agent invoices-bot --resource crm --action customer.read --purpose billing --parameter id=42 --budget calls=10,bytes_out=1048576
  estover grant create --agent invoices-bot --resource crm --action "*" --purpose billing --eligible`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			spec.Class = estover.Class(class)
			if ttl > 0 {
				spec.ExpiresAt = time.Now().Add(ttl)
			}
			if eligible {
				spec.Kind = access.Eligible
			}
			spec.UnusedAfter = int64(unused / time.Second)
			for _, p := range parameters {
				name, value, ok := strings.Cut(p, "=")
				if !ok {
					return fmt.Errorf("--parameter %s: a parameter of the path and its value, as id=42", p)
				}
				if spec.Parameters == nil {
					spec.Parameters = map[string][]string{}
				}
				spec.Parameters[name] = append(spec.Parameters[name], value)
			}
			for name, n := range budgets {
				if err := spec.Budgets.Set(name, n); err != nil {
					return fmt.Errorf("--budget: %w", err)
				}
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
	c.Flags().BoolVar(&eligible, "eligible", false, "it covers nothing until it is activated")
	c.Flags().StringArrayVar(&parameters, "parameter", nil, "a value that a parameter of the path may have, as id=42; may be repeated")
	c.Flags().StringVar(&spec.Session, "session", "", "the session that it is for and ends with (default: every session of the agent)")
	c.Flags().StringToInt64Var(&budgets, "budget", nil, "how much may be done on it in all, as calls=100,bytes_out=1048576; also rows, records, money, seconds and fan_out")
	c.Flags().DurationVar(&unused, "unused-after", 0, "after how long without use its sponsor is told, a week before it is suspended (default: never)")
	for _, f := range []string{"agent", "resource", "action", "purpose"} {
		_ = c.MarkFlagRequired(f)
	}
	_ = c.RegisterFlagCompletionFunc("agent", completeAgents(s))
	_ = c.RegisterFlagCompletionFunc("resource", completeResources(s))
	return c
}

func grantRestore(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "restore GRANT", Short: "Give a grant back that is suspended since nobody used it, or keep one that will be", Args: oneArgument("the grant's name or id"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var g access.Grant
			if err := c.do(cmd.Context(), http.MethodPost, "/v1/grants/"+url.PathEscape(args[0])+"/restore", nil, &g); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), g, func(t *table) { t.row(fmt.Sprintf("%s is %s again.", g.Name, g.State)) })
		},
	}
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
