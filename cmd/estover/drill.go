package main

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"estover.dev/internal/incident"
)

func drillCommand(s *settings) *cobra.Command {
	var bound time.Duration
	c := &cobra.Command{
		Use: "drill", Short: "Try the kill switch out on a decoy, and measure it", Args: noArguments,
		Long: `Drill makes an agent that is a decoy, with a stream that is open through the
gateway and calls that go on, contains it, and says how long it took until a call
was refused, until the stream was dead, and until nothing could act any more. One
that takes longer than it may is an alarm: an event, and an error in the log.

The server holds drills by itself with 'estover serve --drill-every 24h'.`,
		Example: "  estover drill\n  estover drill list",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var d incident.Drill
			if err := c.do(cmd.Context(), http.MethodPost, "/v1/drills", map[string]int64{"bound_millis": bound.Milliseconds()}, &d); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), d, func(t *table) {
				t.pairs("Call refused after", micros(d.RefusedMicros), "Stream dead after", micros(d.StreamMicros), "Time to zero", micros(d.ZeroMicros),
					"May take", micros(d.BoundMicros), "Containment", d.Containment)
				if d.Slow {
					t.row()
					t.row("It took longer than it may.")
				}
			})
		},
	}
	c.Flags().DurationVar(&bound, "bound", incident.DrillBound, "what it may take before it is an alarm")
	c.AddCommand(drillList(s))
	return c
}

func drillList(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List drills, the newest first, with the trend of the time to zero", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			all, err := list[incident.Drill](cmd.Context(), c, "/v1/drills", nil, 0)
			if err != nil {
				return err
			}
			most := int64(1)
			for _, d := range all {
				most = max(most, d.ZeroMicros)
			}
			return s.show(cmd.OutOrStdout(), all, func(t *table) {
				t.row("AT", "BY", "REFUSED", "STREAM", "TIME TO ZERO", "", "ALARM")
				for _, d := range all {
					alarm := ""
					if d.Slow {
						alarm = fmt.Sprintf("more than %s", micros(d.BoundMicros))
						if d.Error != "" {
							alarm = d.Error
						}
					}
					t.row(d.At, d.By, micros(d.RefusedMicros), micros(d.StreamMicros), micros(d.ZeroMicros), strings.Repeat("#", int(20*d.ZeroMicros/most)), alarm)
				}
			})
		},
	}
}
