package main

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"estover.dev"
	"estover.dev/internal/agent"
)

func registrationCommand(s *settings) *cobra.Command {
	c := noun("registration", "Registration: clients that become agents by themselves",
		`A client may register itself (RFC 7591), once you turn that on, with an initial
access token that you have made for it. What it becomes is an agent, with a
sponsor, and with no more than the token says: it is shown once and good once,
for a day, unless you say otherwise.`)
	c.AddCommand(registrationSet(s, "on", "Let clients register themselves", true), registrationSet(s, "off", "Let clients register themselves no more", false),
		registrationToken(s), registrationList(s), registrationEnd(s))
	return c
}

func registrationSet(s *settings, use, short string, open bool) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			if err := c.do(cmd.Context(), http.MethodPut, "/v1/registration", map[string]bool{"open": open}, nil); err != nil {
				return err
			}
			if open {
				fmt.Fprintln(cmd.OutOrStdout(), "Clients may register themselves, with an initial access token. Make one with 'estover registration token'.")
			} else {
				fmt.Fprintln(cmd.OutOrStdout(), "Clients do not register themselves. Those that have stay.")
			}
			return nil
		},
	}
}

func registrationToken(s *settings) *cobra.Command {
	var spec agent.Spec
	var client agent.Client
	var clearance, label, class string
	var allow []string
	var uses int64
	var ttl, life time.Duration
	c := &cobra.Command{
		Use: "token NAME", Short: "Make an initial access token; NAME begins those of the agents", Args: oneArgument("what the names of the agents begin with"),
		Long: `Make an initial access token. The flags say what a client becomes that registers
itself with it, at most: which grant types it may have, where people may be sent
back to, what it is granted.`,
		Example: "  estover registration token desk --blueprint assistant --purpose support --grant-type authorization_code,refresh_token --allow crm=customer.read",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			spec.Name, spec.Clearance, spec.Client = args[0], estover.Class(clearance), &client
			if spec.Sponsor, err = personID(cmd.Context(), c, first(spec.Sponsor, "me")); err != nil {
				return err
			}
			in := map[string]any{"agent": spec, "label": label, "uses": uses, "ttl_seconds": int64(ttl.Seconds()), "life_seconds": int64(life.Seconds())}
			var grants []agent.Granted
			for _, one := range allow {
				resource, actions, ok := strings.Cut(one, "=")
				if !ok {
					return usageError{fmt.Errorf("--allow is RESOURCE=ACTION+ACTION, not %q", one)}
				}
				grants = append(grants, agent.Granted{Resource: resource, Actions: strings.Split(actions, "+"), Class: estover.Class(first(class, clearance))})
			}
			if grants != nil {
				in["grants"] = grants
			}
			var out struct {
				agent.InitialToken
				Token string `json:"token"`
			}
			if err := c.do(cmd.Context(), http.MethodPost, "/v1/registration/tokens", in, &out); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), out, func(t *table) {
				t.pairs("Token", out.Token, "Id", out.ID, "Uses", out.Uses, "Expires", out.ExpiresAt)
				t.row()
				t.row("It is shown now and never again. The client sends it as Bearer when it registers itself.")
			})
		},
	}
	f := c.Flags()
	f.StringVar(&spec.Blueprint, "blueprint", "", "the kind of agent that it becomes")
	f.StringVar(&spec.Sponsor, "sponsor", "", "the person who answers for it, by name or id (default: you)")
	f.StringSliceVar(&spec.Purposes, "purpose", nil, "what it may use data for; may be repeated")
	f.StringVar(&clearance, "clearance", "internal", "the most sensitive class of data that it may reach")
	f.StringVar(&spec.Team, "team", "", "the team that runs it")
	f.StringVar(&spec.Environment, "environment", "", "where it runs: development, staging, production")
	f.StringVar(&spec.Tier, "tier", "low", "how much harm it can do: low, medium or high")
	f.StringSliceVar(&client.GrantTypes, "grant-type", nil, "a grant type that it may have; may be repeated")
	f.StringSliceVar(&client.RedirectURIs, "redirect-uri", nil, "where people may be sent back to; may be repeated (default: wherever the client says)")
	f.StringSliceVar(&client.Methods, "auth-method", nil, "how it may authenticate; may be repeated (default: as the client says)")
	f.BoolVar(&client.DPoPBound, "dpop", false, "it gets no token without a DPoP proof")
	f.BoolVar(&client.RequirePAR, "par", false, "it must push its authorization requests")
	f.StringSliceVar(&allow, "allow", nil, "what it is granted, as RESOURCE=ACTION+ACTION; may be repeated")
	f.StringVar(&class, "class", "", "the most sensitive class of data that this covers (default: the clearance)")
	f.DurationVar(&life, "life", 0, "how long the agent lives (default: without an end)")
	f.StringVar(&label, "label", "", "what the token is for")
	f.Int64Var(&uses, "uses", 1, "how many clients may register themselves with it")
	f.DurationVar(&ttl, "ttl", 0, "how long the token is good (default: a day)")
	for _, name := range []string{"blueprint", "purpose", "grant-type"} {
		_ = c.MarkFlagRequired(name)
	}
	return c
}

func registrationList(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "Say whether clients may register themselves, and with which tokens", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var setting struct {
				Open bool `json:"open"`
			}
			if err := c.do(cmd.Context(), http.MethodGet, "/v1/registration", nil, &setting); err != nil {
				return err
			}
			all, err := list[agent.InitialToken](cmd.Context(), c, "/v1/registration/tokens", nil, 0)
			if err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), all, func(t *table) {
				t.row("Registration is " + map[bool]string{true: "on.", false: "off."}[setting.Open])
				t.row()
				t.row("ID", "LABEL", "AGENTS", "SPONSOR", "USED", "EXPIRES")
				for _, one := range all {
					t.row(one.ID, one.Label, one.Agent.Name+"-…", one.Agent.Sponsor, fmt.Sprintf("%d of %d", one.Used, one.Uses), one.ExpiresAt)
				}
			})
		},
	}
}

func registrationEnd(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "end TOKEN", Short: "End an initial access token; agents that were made by it stay", Args: oneArgument("the token's id"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			if err := c.do(cmd.Context(), http.MethodDelete, "/v1/registration/tokens/"+url.PathEscape(args[0]), nil, nil); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "Ended. No client registers itself with it any more.")
			return nil
		},
	}
}
