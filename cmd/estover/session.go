package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"estover.dev/internal/recording"
	"estover.dev/internal/session"
)

func sessionCommand(s *settings) *cobra.Command {
	c := noun("session", "Sessions: the tasks of agents, open and past",
		`A session is one task of one agent, for one purpose. What the agent is handed
for it ends with it. 'estover run' opens one and ends it with the command.`)
	c.AddCommand(sessionList(s), sessionShow(s), sessionRenew(s), sessionEnd(s), sessionReplay(s))
	return c
}

func sessionList(s *settings) *cobra.Command {
	var agentName, state string
	var limit int
	c := &cobra.Command{
		Use: "list", Short: "List sessions, the newest first", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			q := url.Values{"limit": {"100"}}
			if agentName != "" {
				q.Set("agent", agentName)
			}
			if state != "" {
				q.Set("state", state)
			}
			all, err := list[session.Session](cmd.Context(), c, "/v1/sessions", q, limit)
			if err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), all, func(t *table) {
				t.row("ID", "AGENT", "PURPOSE", "STATE", "OPENED", "ENDED", "CAUSE")
				for _, one := range all {
					t.row(one.ID, one.Agent, one.Purpose, one.State, one.OpenedAt, one.EndedAt, one.EndCause)
				}
			})
		},
	}
	c.Flags().StringVar(&agentName, "agent", "", "only sessions of this agent")
	c.Flags().StringVar(&state, "state", "", "only sessions that are open or ended")
	c.Flags().IntVar(&limit, "limit", 100, "how many to show; 0 for all")
	_ = c.RegisterFlagCompletionFunc("agent", completeAgents(s))
	_ = c.RegisterFlagCompletionFunc("state", cobra.FixedCompletions([]string{"open", "ended"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

func sessionShow(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "show SESSION", Short: "Show a session and what was done in it", Args: oneArgument("the session's id"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var one session.Session
			if err := c.do(cmd.Context(), http.MethodGet, "/v1/sessions/"+url.PathEscape(args[0]), nil, &one); err != nil {
				return err
			}
			events, err := list[event](cmd.Context(), c, "/v1/events", url.Values{"session": {args[0]}, "limit": {"200"}}, 1000)
			if err != nil {
				return err
			}
			shown := struct {
				session.Session
				Events []event `json:"events"`
			}{one, events}
			return s.show(cmd.OutOrStdout(), shown, func(t *table) {
				t.pairs("Session", one.ID, "Agent", one.Agent, "Purpose", one.Purpose, "Task", one.Task, "State", one.State,
					"Opened", one.OpenedAt, "By", one.OpenedBy, "Part of", one.Parent, "Expires", one.ExpiresAt, "Idle", idleOf(one),
					"Bound to", boundOf(one), "Ended", one.EndedAt, "Cause", one.EndCause, "Still ending", strings.Join(one.Ending, ", "))
				t.row()
				eventRows(t, events)
			})
		},
	}
}

// idleOf is how long nobody may use a session, and when it was last used.
func idleOf(one session.Session) string {
	if one.IdleSecs == 0 {
		return ""
	}
	return fmt.Sprintf("%s, last used %s", time.Duration(one.IdleSecs)*time.Second, cell(one.SeenAt))
}

// boundOf is to what a session is bound, and of which program.
func boundOf(one session.Session) string {
	if one.Program == "" {
		return string(one.Bound)
	}
	return fmt.Sprintf("%s of %s", one.Bound, one.Program)
}

func sessionRenew(s *settings) *cobra.Command {
	var ttl time.Duration
	c := &cobra.Command{
		Use: "renew SESSION", Short: "Have a session live longer", Args: oneArgument("the session's id"),
		Long: `Renew has a session end later: --ttl from now, and a day after it was opened at
the latest. What belongs to it and was to end along with it ends later too.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var one session.Session
			err = c.do(cmd.Context(), http.MethodPost, "/v1/sessions/"+url.PathEscape(args[0])+"/renew", map[string]any{"ttl_seconds": int64(ttl.Seconds())}, &one)
			if err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), one, func(t *table) { t.pairs("Session", one.ID, "Expires", one.ExpiresAt) })
		},
	}
	c.Flags().DurationVar(&ttl, "ttl", session.DefaultLife, "how long it lives from now")
	return c
}

func sessionEnd(s *settings) *cobra.Command {
	var cause string
	c := &cobra.Command{
		Use: "end SESSION", Short: "End a session and all that belongs to it", Args: oneArgument("the session's id"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var r struct {
				Lingers []string `json:"lingers,omitempty"`
			}
			if err := c.do(cmd.Context(), http.MethodPost, "/v1/sessions/"+url.PathEscape(args[0])+"/end", map[string]string{"cause": cause}, &r); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), r, func(t *table) {
				t.row("Ended. Its tokens are dead and its connections are cut.")
				for _, l := range r.Lingers {
					t.row("Mind: " + l)
				}
			})
		},
	}
	c.Flags().StringVar(&cause, "cause", "", "why, for the record")
	return c
}

func sessionReplay(s *settings) *cobra.Command {
	var har bool
	c := &cobra.Command{
		Use: "replay SESSION", Short: "Show what went through the gateway, from the recording", Args: oneArgument("the session's id"),
		Long: `Replay reads the recording of a session. Every byte of it is checked against the
log on the way, and that it was read is an event. In the place of a secret that
the gateway put in stands its name.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			path := "/v1/sessions/" + url.PathEscape(args[0]) + "/recording"
			if har {
				return c.do(cmd.Context(), http.MethodGet, path+"?format=har", nil, cmd.OutOrStdout())
			}
			if s.output == "json" {
				return c.do(cmd.Context(), http.MethodGet, path, nil, cmd.OutOrStdout())
			}
			in, out := io.Pipe()
			go func() { out.CloseWithError(c.do(cmd.Context(), http.MethodGet, path, nil, out)) }()
			return play(cmd.OutOrStdout(), in)
		},
	}
	c.Flags().BoolVar(&har, "har", false, "write an HTTP Archive for a browser's tools")
	return c
}

// play prints the frames of a recording for a reader.
func play(w io.Writer, frames io.Reader) error {
	d := json.NewDecoder(bufio.NewReader(frames))
	for {
		var f recording.Frame
		if err := d.Decode(&f); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		arrow := map[recording.Dir]string{recording.Up: "→", recording.Down: "←"}[f.Dir]
		fmt.Fprintf(w, "%s  #%d %s %s\n", f.At.Local().Format("15:04:05.000"), f.Stream, first(arrow, "·"), f.Kind)
		if f.Ref != nil {
			what, sum := "of them", f.Ref.Rest
			if sum == (recording.Digest{}) {
				what, sum = "of the whole", f.Ref.Sum
			}
			fmt.Fprintf(w, "    … and %d bytes more, SHA-256 %s %s\n", f.Ref.Size-f.Ref.From, what, sum)
			continue
		}
		for line := range strings.Lines(string(f.Data)) {
			fmt.Fprintln(w, "    "+printable(strings.TrimRight(line, "\r\n")))
		}
	}
}
