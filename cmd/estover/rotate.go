package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"estover.dev/internal/incident/emergency"
)

func rotateCommand(s *settings) *cobra.Command {
	var agent, resource, incident, secret, reason, report string
	var since time.Duration
	var urgent, dry, keep bool
	c := &cobra.Command{
		Use: "rotate", Short: "Rotate at once what somebody may have had who should not", Args: noArguments,
		Long: `Rotate cuts an agent or a resource off, takes its leases and certificates away, and
gives another version to every secret whose value has left us by way of it. What
the gateway has only injected stays. Each thing is on record before it is done;
what is not done is tried again, and the same command goes on with it.

To rotate one secret in peace, see estover rotation run.`,
		Example: `  estover rotate --agent invoices-bot --emergency --reason "sends customers to strangers" --dry-run
  estover rotate --agent invoices-bot --emergency --reason "sends customers to strangers"
  estover rotate --secret db/orders --emergency --reason "it is on a forum" --report emergency.estover-receipt`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !urgent {
				return usageError{errors.New("this ends access at once, so it is asked for with --emergency; see estover rotation run for the other way")}
			}
			c, err := s.client()
			if err != nil {
				return err
			}
			w := emergency.Wish{Reason: reason, Keep: keep}
			for scope, name := range map[emergency.Scope]string{emergency.Agent: agent, emergency.Resource: resource, emergency.Incident: incident, emergency.Secret: secret} {
				if name != "" {
					w.Scope, w.Target = scope, name
				}
			}
			if since > 0 {
				w.Since = time.Now().Add(-since).UTC()
			}
			in := struct {
				emergency.Wish
				DryRun bool `json:"dry_run,omitempty"`
			}{w, dry}
			var e emergency.Emergency
			if err := c.do(cmd.Context(), http.MethodPost, "/v1/emergency-rotations", in, &e); err != nil {
				return err
			}
			if report != "" && !dry {
				b, err := emergencyReport(cmd, c, e.ID)
				if err != nil {
					return err
				}
				if err := os.WriteFile(report, b, 0o644); err != nil {
					return err
				}
				fmt.Fprintf(cmd.ErrOrStderr(), "The signed report is in %s. Check it with: estover verify %s --trust TRUST\n", report, report)
			}
			return showEmergency(s, cmd, e)
		},
	}
	f := c.Flags()
	f.StringVar(&agent, "agent", "", "an agent, by name or id")
	f.StringVar(&resource, "resource", "", "a resource, by name or id")
	f.StringVar(&incident, "incident", "", "a containment, by id, and all whom it covers")
	f.StringVar(&secret, "secret", "", "a secret, by its path")
	f.BoolVar(&urgent, "emergency", false, "it cannot wait: whoever uses what is rotated loses access")
	f.BoolVar(&dry, "dry-run", false, "only say what would be done")
	f.BoolVar(&keep, "keep", false, "let old versions live while others use them")
	f.DurationVar(&since, "since", 0, "what was read longer ago does not matter, as 24h (default: all that is on record)")
	f.StringVar(&reason, "reason", "", "why")
	f.StringVar(&report, "report", "", "file for the signed report")
	c.MarkFlagsMutuallyExclusive("agent", "resource", "incident", "secret")
	c.MarkFlagsOneRequired("agent", "resource", "incident", "secret")
	_ = c.MarkFlagRequired("reason")
	c.AddCommand(rotateList(s), rotateShow(s), rotateReport(s), rotateSettle(s))
	return c
}

func showEmergency(s *settings, cmd *cobra.Command, e emergency.Emergency) error {
	return s.show(cmd.OutOrStdout(), e, func(t *table) {
		t.row("N", "WHAT", "OF", "COUNT", "VERSION", "STATE", "AFTER", "WHY", "NOTE")
		left := 0
		for _, i := range e.Items {
			after := ""
			if !i.DoneAt.IsZero() {
				after = i.DoneAt.Sub(e.At).Round(time.Millisecond).String()
			}
			if i.State != emergency.Done {
				left++
			}
			t.row(i.N, i.Kind, i.Ref, orNothing(i.Count), orNothing(i.Version), i.State, after, i.Why, i.Note)
		}
		t.row()
		switch {
		case e.ID == "":
			t.row(fmt.Sprintf("Nothing was done. %d secrets were only injected by the gateway and stay as they are.", e.Injected))
		case left == 0:
			t.row(fmt.Sprintf("All is done (%s).", e.ID))
		default:
			t.row(fmt.Sprintf("%d of %d are not done (%s). It is tried again; look with: estover rotate show %s", left, len(e.Items), e.ID, e.ID))
		}
	})
}

func emergencyAt(id string) string { return "/v1/emergency-rotations/" + url.PathEscape(id) }

func emergencyReport(cmd *cobra.Command, c *client, id string) ([]byte, error) {
	var b bytes.Buffer
	err := c.do(cmd.Context(), http.MethodGet, emergencyAt(id)+"/report", nil, &b)
	return b.Bytes(), err
}

func rotateList(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List emergency rotations, the newest first", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			all, err := list[emergency.Emergency](cmd.Context(), c, "/v1/emergency-rotations", url.Values{"limit": {"200"}}, 0)
			if err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), all, func(t *table) {
				t.row("ID", "ABOUT", "NAME", "BY", "AT", "DONE", "REASON")
				for _, e := range all {
					t.row(e.ID, e.Scope, e.Target, e.By, e.At, e.DoneAt, e.Reason)
				}
			})
		},
	}
}

func rotateShow(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show an emergency rotation and what has become of each thing", Args: oneArgument("its id"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var e emergency.Emergency
			if err := c.do(cmd.Context(), http.MethodGet, emergencyAt(args[0]), nil, &e); err != nil {
				return err
			}
			return showEmergency(s, cmd, e)
		},
	}
}

func rotateReport(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "report ID", Short: "Write the last signed report of an emergency rotation to standard output", Args: oneArgument("its id"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			b, err := emergencyReport(cmd, c, args[0])
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(b)
			return err
		},
	}
}

func rotateSettle(s *settings) *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "settle ID N", Short: "Say that a secret was changed by hand where it is accepted",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usageError{fmt.Errorf("%s needs the id and the number of the item", cmd.CommandPath())}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := strconv.ParseInt(args[1], 10, 64)
			if err != nil {
				return usageError{fmt.Errorf("%q is no item; an item is a number", args[1])}
			}
			c, err := s.client()
			if err != nil {
				return err
			}
			var e emergency.Emergency
			if err := c.do(cmd.Context(), http.MethodPost, emergencyAt(args[0])+"/settle", map[string]any{"item": n, "reason": reason}, &e); err != nil {
				return err
			}
			return showEmergency(s, cmd, e)
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "who changed it, where and when")
	_ = c.MarkFlagRequired("reason")
	return c
}
