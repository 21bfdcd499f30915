package main

import (
	"bytes"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/spf13/cobra"

	"estover.dev/internal/incident"
)

func containCommand(s *settings) *cobra.Command {
	var reason, certificate string
	c := &cobra.Command{
		Use: "contain AGENT", Short: "Cut an agent off, now", Args: oneArgument("the agent's name or id"),
		Long: `Contain holds the agent, ends its sessions with the tokens that belong to them,
and cuts its open connections and streams. Each step is printed with the time
since you asked. The hold is lifted like any other: 'estover agent lift'.`,
		Example:           `  estover contain invoices-bot --reason "sends customers to strangers" --certificate contained.estover-receipt`,
		ValidArgsFunction: completeAgents(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var done incident.Containment
			if err := c.do(cmd.Context(), http.MethodPost, "/v1/containments", map[string]string{"agent": args[0], "reason": reason}, &done); err != nil {
				return err
			}
			if err := s.show(cmd.OutOrStdout(), done, func(t *table) {
				for _, step := range done.Steps {
					t.row(micros(step.Micros), step.Name, step.Count, step.What)
				}
				t.row()
				t.row(fmt.Sprintf("%s is contained. Time to zero: %s. (%s)", args[0], micros(done.ZeroMicros), done.ID))
			}); err != nil {
				return err
			}
			if certificate == "" {
				return nil
			}
			var b bytes.Buffer
			if err := c.do(cmd.Context(), http.MethodGet, "/v1/containments/"+url.PathEscape(done.ID)+"/certificate", nil, &b); err != nil {
				return err
			}
			if err := os.WriteFile(certificate, b.Bytes(), 0o644); err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "The signed certificate is in %s. Check it with: estover verify %s --trust TRUST\n", certificate, certificate)
			return nil
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for those who find the agent held")
	c.Flags().StringVar(&certificate, "certificate", "", "file for the signed certificate")
	_ = c.MarkFlagRequired("reason")
	return c
}

func micros(n int64) string { return (time.Duration(n) * time.Microsecond).String() }
