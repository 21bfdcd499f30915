package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"estover.dev"
	"estover.dev/internal/agent"
)

func agentCommand(s *settings) *cobra.Command {
	c := noun("agent", "Agents: who acts, for whom, and whether they may",
		`An agent is a piece of software that acts by itself. It is named once and for
good, has a person who answers for it, the purposes that it has declared, and
the most sensitive class of data that it may reach. It may act while nothing
holds it: each hold has a reason of its own and is lifted by itself.`)
	c.AddCommand(agentList(s), agentShow(s), agentCreate(s), agentHold(s), agentLift(s), agentRisk(s), agentRetire(s), agentCredential(s))
	return c
}

// noun is a command that only has others below it.
func noun(use, short, long string) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Long: long, Args: knownCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
}

// knownCommand refuses the arguments of a command that only has others below
// it: they name one that there is not.
func knownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	cmd.SuggestionsMinimumDistance = 2 // letters that may be wrong
	text := fmt.Sprintf("%s has no command %q", cmd.CommandPath(), args[0])
	if like := cmd.SuggestionsFor(args[0]); len(like) > 0 {
		text += "; did you mean " + strings.Join(like, " or ") + "?"
	}
	return usageError{errors.New(text)}
}

// completeAgents completes the name of an agent, if the server answers.
func completeAgents(s *settings) cobra.CompletionFunc {
	return completeFrom(s, "/v1/agents", func(a struct{ Name, Blueprint string }) string { return a.Name + "\t" + a.Blueprint })
}

// completeFrom completes the names of things that a list of the API has.
func completeFrom[T any](s *settings, path string, name func(T) string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		c, err := s.client()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		all, err := list[T](cmd.Context(), c, path, url.Values{"limit": {"200"}}, 1000)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var names []cobra.Completion
		for _, t := range all {
			names = append(names, name(t))
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

func agentList(s *settings) *cobra.Command {
	var sponsor, blueprint, team, hold string
	c := &cobra.Command{
		Use: "list", Short: "List agents", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			if sponsor != "" {
				if sponsor, err = personID(cmd.Context(), c, sponsor); err != nil {
					return err
				}
			}
			q := url.Values{"limit": {"200"}}
			for k, v := range map[string]string{"sponsor": sponsor, "blueprint": blueprint, "team": team, "hold": hold} {
				if v != "" {
					q.Set(k, v)
				}
			}
			all, err := list[agent.Agent](cmd.Context(), c, "/v1/agents", q, 0)
			if err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), all, func(t *table) {
				t.row("NAME", "STATUS", "BLUEPRINT", "PURPOSES", "CLEARANCE", "RISK", "ID")
				for _, a := range all {
					t.row(a.Name, a.Status, a.Blueprint, a.Purposes, a.Clearance, a.Risk.Band, a.ID)
				}
			})
		},
	}
	c.Flags().StringVar(&sponsor, "sponsor", "", "only agents that this person answers for, by name or id")
	c.Flags().StringVar(&blueprint, "blueprint", "", "only instances of this blueprint")
	c.Flags().StringVar(&team, "team", "", "only agents of this team")
	c.Flags().StringVar(&hold, "hold", "", "only agents with a hold of this kind: pending, suspended, quarantined or retired")
	return c
}

func showAgent(s *settings, cmd *cobra.Command, a agent.Agent) error {
	return s.show(cmd.OutOrStdout(), a, func(t *table) { agentTable(t, a) })
}

func agentTable(t *table, a agent.Agent) {
	t.pairs("Name", a.Name, "Id", a.ID, "Status", a.Status, "Blueprint", a.Blueprint, "Sponsor", a.Sponsor, "Team", a.Team,
		"Environment", a.Environment, "Purposes", a.Purposes, "Clearance", a.Clearance, "Tier", a.Tier, "Risk", riskCell(a.Risk), "Segments", a.Segments,
		"Expires", a.ExpiresAt, "Created", a.CreatedAt, "Kept by", a.ManagedBy)
	if a.Client != nil {
		if b, err := json.Marshal(a.Client); err == nil {
			t.row("Client:", string(b))
		}
	}
	if r := a.Registration; r != nil {
		t.row("Registered:", fmt.Sprintf("by itself, with %s, as %q", r.InitialToken, r.Name))
	}
	for _, h := range a.Holds {
		t.row("Hold:", fmt.Sprintf("%s  %s since %s, by %s: %s", h.ID, h.Kind, cell(h.At), h.By, h.Reason))
	}
}

// riskCell is a band of risk with who set it and why.
func riskCell(r agent.Risk) string {
	if r.At.IsZero() {
		return string(r.Band)
	}
	return fmt.Sprintf("%s since %s, by %s: %s", r.Band, cell(r.At), r.By, r.Reason)
}

func agentShow(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "show AGENT", Short: "Show an agent and what holds it", Args: oneArgument("the agent's name or id"),
		ValidArgsFunction: completeAgents(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var a struct {
				agent.Agent
				LeasesOpen    int64 `json:"leases_open,omitempty"`
				LeasesOverdue int64 `json:"leases_overdue,omitempty"`
			}
			if err := c.do(cmd.Context(), http.MethodGet, "/v1/agents/"+url.PathEscape(args[0]), nil, &a); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), a, func(t *table) {
				agentTable(t, a.Agent)
				if a.LeasesOpen > 0 {
					t.row("Credentials:", fmt.Sprintf("%d that have not ended", a.LeasesOpen))
				}
				if a.LeasesOverdue > 0 {
					t.row("Overdue:", fmt.Sprintf("%d of them should be gone and are not: estover secret lease list --agent %s --overdue", a.LeasesOverdue, a.ID))
				}
			})
		},
	}
}

func agentCreate(s *settings) *cobra.Command {
	var spec agent.Spec
	var clearance string
	c := &cobra.Command{
		Use: "create NAME", Short: "Register an agent",
		Example: "  estover agent create invoices-bot --blueprint invoices --sponsor alice --purpose billing --clearance confidential",
		Args:    oneArgument("the name of the agent"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			spec.Name, spec.Clearance = args[0], estover.Class(clearance)
			if spec.Sponsor, err = personID(cmd.Context(), c, first(spec.Sponsor, "me")); err != nil {
				return err
			}
			var a agent.Agent
			if err := c.do(cmd.Context(), http.MethodPost, "/v1/agents", spec, &a); err != nil {
				return err
			}
			return showAgent(s, cmd, a)
		},
	}
	c.Flags().StringVar(&spec.Blueprint, "blueprint", "", "the kind of agent that it is an instance of")
	c.Flags().StringVar(&spec.Sponsor, "sponsor", "", "the person who answers for it, by name or id (default: you)")
	c.Flags().StringSliceVar(&spec.Purposes, "purpose", nil, "what it may use data for; may be repeated")
	c.Flags().StringVar(&clearance, "clearance", "internal", "the most sensitive class of data that it may reach: public, internal, confidential or restricted")
	c.Flags().StringVar(&spec.Team, "team", "", "the team that runs it")
	c.Flags().StringVar(&spec.Environment, "environment", "", "where it runs: development, staging, production")
	c.Flags().StringVar(&spec.Tier, "tier", "low", "how much harm it can do: low, medium or high")
	_ = c.MarkFlagRequired("blueprint")
	_ = c.MarkFlagRequired("purpose")
	return c
}

func agentHold(s *settings) *cobra.Command {
	var kind, reason string
	c := &cobra.Command{
		Use: "hold AGENT", Short: "Stop an agent, beside whatever else holds it", Args: oneArgument("the agent's name or id"),
		ValidArgsFunction: completeAgents(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var h agent.Hold
			if err := c.do(cmd.Context(), http.MethodPost, "/v1/agents/"+url.PathEscape(args[0])+"/holds", map[string]string{"kind": kind, "reason": reason}, &h); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), h, func(t *table) {
				lift := fmt.Sprintf("Lift it with: estover agent lift %s %s --reason …", args[0], h.ID)
				if h.Kind == agent.Quarantine {
					lift = fmt.Sprintf("Two people lift it; ask for it with: estover contain lift %s --reason …", h.ID)
				}
				t.row(fmt.Sprintf("%s is %s (%s). %s", args[0], h.Kind, h.ID, lift))
			})
		},
	}
	c.Flags().StringVar(&kind, "kind", "suspended", "pending, suspended or quarantined; to retire is a command of its own")
	c.Flags().StringVar(&reason, "reason", "", "why, for those who find the agent held")
	_ = c.MarkFlagRequired("reason")
	return c
}

func agentLift(s *settings) *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "lift AGENT HOLD", Short: "Take one hold away; the others stay",
		Long: `Lift takes one hold of an agent away, and the others stay. A quarantine, which is
what a containment leaves, takes two people: 'estover contain lift'.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usageError{errors.New("estover agent lift needs the agent and the hold; 'estover agent show' lists its holds")}
			}
			return nil
		},
		ValidArgsFunction: completeAgents(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var a agent.Agent
			path := "/v1/agents/" + url.PathEscape(args[0]) + "/holds/" + url.PathEscape(args[1]) + "/lift"
			if err := c.do(cmd.Context(), http.MethodPost, path, map[string]string{"reason": reason}, &a); err != nil {
				return err
			}
			return showAgent(s, cmd, a)
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why the agent may go on")
	_ = c.MarkFlagRequired("reason")
	return c
}

func agentRisk(s *settings) *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "risk AGENT BAND", Short: "Say how risky an agent is held to be: low, raised, high or critical",
		Long: `Risk sets the band of an agent's risk, which policies read as the fact risk_band.
It stops nothing by itself. What the agent has open is decided again at once.`,
		Example: "  estover agent risk invoices-bot raised --reason 'it reads more than usual'",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usageError{errors.New("estover agent risk needs the agent and the band: low, raised, high or critical")}
			}
			return nil
		},
		ValidArgsFunction: completeAgents(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var a agent.Agent
			body := map[string]string{"band": args[1], "reason": reason}
			if err := c.do(cmd.Context(), http.MethodPut, "/v1/agents/"+url.PathEscape(args[0])+"/risk", body, &a); err != nil {
				return err
			}
			return showAgent(s, cmd, a)
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for those whom it stops")
	_ = c.MarkFlagRequired("reason")
	return c
}

func agentRetire(s *settings) *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "retire AGENT", Short: "End an agent for good", Args: oneArgument("the agent's name or id"),
		Long: `Retire ends an agent, its credentials and its sessions, for good. It stays in the
registry, and its name is not used again.`,
		ValidArgsFunction: completeAgents(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var h agent.Hold
			if err := c.do(cmd.Context(), http.MethodPost, "/v1/agents/"+url.PathEscape(args[0])+"/holds", map[string]string{"kind": string(agent.Retirement), "reason": reason}, &h); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), h, func(t *table) { t.row(args[0] + " is retired.") })
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why")
	_ = c.MarkFlagRequired("reason")
	return c
}

func agentCredential(s *settings) *cobra.Command {
	c := noun("credential", "What an agent proves itself with",
		`An agent may have several credentials at once, so that one can be replaced while
the other is in use: add the new one, put it in place, retire the old one.`)
	c.AddCommand(credentialAdd(s), credentialList(s), credentialRetire(s))
	return c
}

func credentialAdd(s *settings) *cobra.Command {
	var label, jwksFile, authorities string
	var known agent.Certificate
	var ttl time.Duration
	var backup bool
	c := &cobra.Command{
		Use: "add AGENT", Short: "Make a client secret, or register keys or a certificate's name", Args: oneArgument("the agent's name or id"),
		Long: `Without further flags a client secret is made and shown once: put it where the
agent finds it, and nowhere else. With --jwks the agent proves itself by
signatures (private_key_jwt) or by connections with a certificate of one of the
keys (self_signed_tls_client_auth). With --authorities and a name it proves
itself by connections with a certificate that has the name and that one of these
authorities vouches for (tls_client_auth). Then there is nothing that can be
copied from here.

A backup credential lies in a safe until what the agent usually has is lost.
Each use of one is an event, credential.use_backup, at which somebody should look.`,
		Example: `  estover agent credential add invoices-bot --label 'the old cluster'
  estover agent credential add invoices-bot --authorities bundle.pem --uri spiffe://example.com/invoices-bot
  estover agent credential add invoices-bot --backup --label 'safe, 2nd floor'`,
		ValidArgsFunction: completeAgents(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			in := map[string]any{"kind": agent.ClientSecret, "label": label, "ttl_seconds": int64(ttl.Seconds()), "backup": backup}
			switch {
			case jwksFile != "" && (authorities != "" || known != (agent.Certificate{})):
				return usageError{errors.New("a credential is a key set or the name of a certificate, not both")}
			case authorities == "" && known.Domain() != "":
				in["kind"], in["certificate"] = agent.Certified, known
			case authorities == "" && known != (agent.Certificate{}):
				return usageError{errors.New("the name of a certificate needs --authorities, which vouch for it; a URI of SPIFFE does not where a trust is about its trust domain")}
			case authorities != "":
				pem, err := os.ReadFile(authorities)
				if err != nil {
					return err
				}
				known.Authorities = string(pem)
				in["kind"], in["certificate"] = agent.Certified, known
			case jwksFile != "":
				jwks, err := os.ReadFile(jwksFile)
				if err != nil {
					return err
				}
				if !json.Valid(jwks) {
					return fmt.Errorf("%s is not JSON", jwksFile)
				}
				in["kind"], in["jwks"] = agent.KeySet, json.RawMessage(jwks)
			}
			var out struct {
				agent.Credential
				ClientID     string `json:"client_id"`
				ClientSecret string `json:"client_secret,omitempty"`
			}
			if err := c.do(cmd.Context(), http.MethodPost, "/v1/agents/"+url.PathEscape(args[0])+"/credentials", in, &out); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), out, func(t *table) {
				t.pairs("Credential", out.ID, "Client id", out.ClientID, "Client secret", out.ClientSecret, "Expires", out.ExpiresAt)
			})
		},
	}
	c.Flags().StringVar(&label, "label", "", "where it is used, for those who retire it")
	c.Flags().StringVar(&jwksFile, "jwks", "", "file with a JSON Web Key Set of public keys")
	c.Flags().StringVar(&authorities, "authorities", "", "PEM file with the certificates of those who vouch for the agent's certificate")
	c.Flags().StringVar(&known.URI, "uri", "", "the URI in the agent's certificate, as spiffe://example.com/bot")
	c.Flags().StringVar(&known.DNS, "dns", "", "the DNS name in the agent's certificate")
	c.Flags().StringVar(&known.IP, "ip", "", "the IP address in the agent's certificate")
	c.Flags().StringVar(&known.Email, "email", "", "the address of mail in the agent's certificate")
	c.Flags().StringVar(&known.SubjectDN, "subject", "", "the subject of the agent's certificate, as 'CN=bot,O=Example'")
	c.Flags().BoolVar(&backup, "backup", false, "keep it for an emergency, and tell of each use")
	c.Flags().DurationVar(&ttl, "ttl", 0, "when it ends by itself (default: never)")
	return c
}

func credentialList(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "list AGENT", Short: "List the live credentials of an agent", Args: oneArgument("the agent's name or id"),
		ValidArgsFunction: completeAgents(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			all, err := list[agent.Credential](cmd.Context(), c, "/v1/agents/"+url.PathEscape(args[0])+"/credentials", nil, 0)
			if err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), all, func(t *table) {
				t.row("ID", "KIND", "LABEL", "CREATED", "LAST USED", "EXPIRES")
				for _, k := range all {
					kind := string(k.Kind)
					if k.Backup {
						kind += ", backup"
					}
					t.row(k.ID, kind, k.Label, k.CreatedAt, k.LastUsedAt, k.ExpiresAt)
				}
			})
		},
	}
}

func credentialRetire(s *settings) *cobra.Command {
	var after time.Duration
	c := &cobra.Command{
		Use: "retire AGENT CREDENTIAL", Short: "End a credential, at once or after an overlap",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usageError{errors.New("estover agent credential retire needs the agent and the credential; 'estover agent credential list' shows them")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			path := "/v1/agents/" + url.PathEscape(args[0]) + "/credentials/" + url.PathEscape(args[1]) + "/retire"
			if err := c.do(cmd.Context(), http.MethodPost, path, map[string]int64{"after_seconds": int64(after.Seconds())}, nil); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "Retired.")
			return nil
		},
	}
	c.Flags().DurationVar(&after, "after", 0, "an overlap in which its successor is put in place")
	return c
}
