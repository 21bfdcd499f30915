package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"estover.dev/internal/hold"
	"estover.dev/internal/incident"
)

// scopes are what can be contained beside a single agent, by their words.
var scopes = []string{string(incident.Agent), string(hold.Blueprint), string(hold.Resource), string(hold.Person), string(hold.Tenant), string(hold.Everything)}

// containTarget reads what the command line says is to be contained: an agent by
// its name alone, or a scope and a name.
func containTarget(args []string) (scope, name string, err error) {
	wrong := usageError{errors.New("say what is contained: AGENT, or agent, blueprint, resource, person or tenant with a NAME, or everything")}
	switch len(args) {
	case 1:
		switch args[0] {
		case string(hold.Everything), string(hold.Tenant):
			return args[0], "", nil
		}
		if slices.Contains(scopes, args[0]) {
			return "", "", wrong
		}
		return string(incident.Agent), args[0], nil
	case 2:
		if !slices.Contains(scopes, args[0]) || args[0] == string(hold.Everything) {
			return "", "", wrong
		}
		return args[0], args[1], nil
	}
	return "", "", wrong
}

// called is a target in words.
func called(scope, name string) string {
	switch hold.Scope(scope) {
	case hold.Everything:
		return "Everything"
	case incident.Agent:
		return name
	case hold.Tenant:
		if name == "" {
			return "The organisation"
		}
	}
	return "The " + scope + " " + name
}

func containCommand(s *settings) *cobra.Command {
	var reason, certificate string
	var at controlled
	c := &cobra.Command{
		Use: "contain AGENT | SCOPE NAME | everything", Short: "Cut an agent, or much more, off, now",
		Long: `Contain holds an agent, ends its sessions with the tokens that belong to them,
and cuts its open connections and streams. Each step is printed with the time
since you asked.

Instead of an agent you may name a blueprint, a person (the agents that they
sponsor), a resource, or a tenant; and everything is all agents of all tenants.
One hold covers whatever it is as a whole, with the agents that are registered
later. What was contained is let go by two people: 'estover contain lift'.

With --control it is asked for on the kill switch's own listener, by whoever runs
the server, when the rest of it does not answer.`,
		Example: `  estover contain invoices-bot --reason "sends customers to strangers" --certificate contained.estover-receipt
  estover contain blueprint support --reason "a prompt that leaks"
  estover contain resource crm --reason "it answers with another customer's records"
  estover contain everything --reason "somebody has our signing key"
  estover contain everything --reason "it does not answer" --control unix:estover-data/control.sock`,
		ValidArgsFunction: completeAgents(s),
		Args: func(_ *cobra.Command, args []string) error {
			_, _, err := containTarget(args)
			return err
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			scope, name, err := containTarget(args)
			if err != nil {
				return err
			}
			c, path, err := at.client(s, "/v1/containments", "/contain")
			if err != nil {
				return err
			}
			var done incident.Containment
			in := map[string]string{"scope": scope, "target": name, "reason": reason}
			if at.tenant != "" {
				in["tenant"] = at.tenant
			}
			if err := c.do(cmd.Context(), http.MethodPost, path, in, &done); err != nil {
				return err
			}
			if err := s.show(cmd.OutOrStdout(), done, func(t *table) { containedTable(t, called(scope, name), done) }); err != nil {
				return err
			}
			if certificate == "" {
				return nil
			}
			b, err := certificateOf(cmd, c, done.ID)
			if err != nil {
				return err
			}
			if err := os.WriteFile(certificate, b, 0o644); err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "The signed certificate is in %s. Check it with: estover verify %s --trust TRUST\n", certificate, certificate)
			return nil
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for those who find it held")
	c.Flags().StringVar(&certificate, "certificate", "", "file for the signed certificate")
	_ = c.MarkFlagRequired("reason")
	at.flags(c)
	c.MarkFlagsMutuallyExclusive("control", "certificate")
	c.AddCommand(containList(s), containCertificate(s), containHolds(s), containLift(s), containStatus(s))
	return c
}

// A controlled is where the kill switch's own listener is.
type controlled struct{ at, tokenFile, tenant string }

func (a *controlled) flags(c *cobra.Command) {
	c.Flags().StringVar(&a.at, "control", "", "the kill switch's own listener, unix:PATH or HOST:PORT, in the place of the API")
	c.Flags().StringVar(&a.tokenFile, "control-token-file", "", "file with the token that it wants on HOST:PORT: DATA/control-token")
	c.Flags().StringVar(&a.tenant, "control-tenant", "", "the organisation whose agent, blueprint, person or resource it is, with --control")
}

// client is a client of the control listener, if one is named, and else of the
// API, with the path that is meant there.
func (a *controlled) client(s *settings, api, control string) (*client, string, error) {
	if a.at == "" {
		if a.tokenFile != "" || a.tenant != "" {
			return nil, "", usageError{errors.New("--control-token-file and --control-tenant are for --control")}
		}
		c, err := s.client()
		return c, api, err
	}
	network, addr := "tcp", a.at
	if path, ok := strings.CutPrefix(a.at, "unix:"); ok {
		network, addr = "unix", path
	}
	c := &client{addr: "http://control", http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, addr)
		},
	}}}
	if a.tokenFile != "" {
		b, err := os.ReadFile(a.tokenFile)
		if err != nil {
			return nil, "", err
		}
		c.token = strings.TrimSpace(string(b))
	}
	return c, control, nil
}

func containStatus(s *settings) *cobra.Command {
	var at controlled
	c := &cobra.Command{
		Use: "status --control LISTENER", Short: "Say what is held, as the kill switch's own listener knows it", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if at.at == "" {
				return usageError{errors.New("say with --control where the kill switch listens; 'estover contain holds' asks the API")}
			}
			c, path, err := at.client(s, "", "/status")
			if err != nil {
				return err
			}
			if at.tenant != "" {
				path += "?tenant=" + url.QueryEscape(at.tenant)
			}
			var status struct {
				Version      string                 `json:"version"`
				Holds        []incident.Standing    `json:"holds"`
				Containments []incident.Containment `json:"containments"`
			}
			if err := c.do(cmd.Context(), http.MethodGet, path, nil, &status); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), status, func(t *table) {
				t.row("HOLD", "ON", "SINCE", "BY", "REASON")
				for _, h := range status.Holds {
					t.row(h.ID, h.Target.String(), h.At, h.By, h.Reason)
				}
			})
		},
	}
	at.flags(c)
	return c
}

// containedTable shows the steps of a containment.
func containedTable(t *table, what string, done incident.Containment) {
	for _, step := range done.Steps {
		t.row(micros(step.Micros), step.Name, step.Count, step.What)
	}
	t.row()
	for _, l := range done.Lingers {
		t.row("Mind: " + l)
	}
	t.row(fmt.Sprintf("%s is contained. Time to zero: %s. (%s)", what, micros(done.ZeroMicros), done.ID))
}

func certificateOf(cmd *cobra.Command, c *client, id string) ([]byte, error) {
	var b bytes.Buffer
	err := c.do(cmd.Context(), http.MethodGet, "/v1/containments/"+url.PathEscape(id)+"/certificate", nil, &b)
	return b.Bytes(), err
}

func containList(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "list [AGENT | SCOPE [NAME]]", Short: "List containments, the newest first", Args: cobra.MaximumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			q := url.Values{}
			switch {
			case len(args) == 1 && slices.Contains(scopes, args[0]):
				q.Set("scope", args[0])
			case len(args) > 0:
				scope, name, err := containTarget(args)
				if err != nil {
					return err
				}
				q.Set("scope", scope)
				q.Set("target", name)
			}
			all, err := list[incident.Containment](cmd.Context(), c, "/v1/containments", q, 0)
			if err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), all, func(t *table) {
				t.row("ID", "WHAT", "AT", "BY", "TIME TO ZERO", "HOLD", "REASON")
				for _, one := range all {
					zero := "under way"
					switch {
					case one.ZeroMicros > 0:
						zero = micros(one.ZeroMicros)
					case !one.EndedAt.IsZero():
						zero = "given up"
					}
					t.row(one.ID, one.Target.String(), one.At, one.By, zero, one.Hold, one.Reason)
				}
			})
		},
	}
}

func containCertificate(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "certificate CONTAINMENT", Short: "Write the signed certificate of a containment to standard output", Args: oneArgument("the containment's id"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			b, err := certificateOf(cmd, c, args[0])
			if err != nil {
				return err
			}
			_, err = io.Copy(cmd.OutOrStdout(), bytes.NewReader(b))
			return err
		},
	}
}

func containHolds(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "holds", Short: "List the holds that two people lift, of agents and of everything else", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			all, err := list[incident.Standing](cmd.Context(), c, "/v1/holds", nil, 0)
			if err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), all, func(t *table) {
				t.row("HOLD", "ON", "SINCE", "BY", "REASON")
				for _, h := range all {
					t.row(h.ID, h.Target.String(), h.At, h.By, h.Reason)
				}
			})
		},
	}
}

func containLift(s *settings) *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "lift HOLD", Short: "Lift one hold, or ask for it; the others stay", Args: oneArgument("the hold's id; 'estover contain holds' lists them"),
		Long: `Lift asks that one hold be lifted. Somebody else decides about it: not whoever
raised the hold, and not you. What was contained goes on when they approve it,
with 'estover access approve' or on the page of the request.

Where you are the only administrator and nobody else could decide, the hold is
lifted at once, on your word.`,
		Example: `  estover contain lift hld_… --reason "the prompt was mended"`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var done incident.Lifting
			if err := c.do(cmd.Context(), http.MethodPost, "/v1/holds/"+url.PathEscape(args[0])+"/lift", map[string]string{"reason": reason}, &done); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), done, func(t *table) {
				if done.State == incident.Lifted {
					t.row(done.Hold + " is lifted. Other holds stay.")
					return
				}
				t.row("It was asked for: " + done.Request + ". Somebody else approves it with: estover access approve " + done.Request)
			})
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why it may be lifted")
	_ = c.MarkFlagRequired("reason")
	return c
}

func micros(n int64) string { return (time.Duration(n) * time.Microsecond).String() }
