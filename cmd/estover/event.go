package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"estover.dev/internal/audit"
	"estover.dev/internal/policy"
)

// An event is an entry of the log as the API shows it.
type event struct {
	audit.Event
	Index  int64 `json:"index"`
	Erased bool  `json:"erased,omitempty"`
}

func eventCommand(s *settings) *cobra.Command {
	c := noun("event", "The log: who did what to what, and how it ended",
		`Everything that was done, and everything that was refused, is an event of an
append-only log that nobody can change unnoticed.`)
	c.AddCommand(eventList(s), eventShow(s), eventReceipt(s))
	return c
}

func eventRows(t *table, events []event) {
	t.row("AT", "ACTION", "OUTCOME", "ACTOR", "TARGET", "ID")
	for _, e := range events {
		t.row(e.At, e.Action, e.Outcome, e.Actor, e.Target, e.ID)
	}
}

func eventList(s *settings) *cobra.Command {
	var limit int
	var since time.Duration
	filters := map[string]*string{}
	c := &cobra.Command{
		Use: "list", Short: "Search the log, the newest first", Args: noArguments,
		Example: "  estover event list --outcome refused --since 1h",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			q := url.Values{"limit": {fmt.Sprint(min(max(limit, 1), 200))}}
			for k, v := range filters {
				if *v != "" {
					q.Set(k, *v)
				}
			}
			if since > 0 {
				q.Set("since", time.Now().Add(-since).UTC().Format(time.RFC3339))
			}
			all, err := list[event](cmd.Context(), c, "/v1/events", q, limit)
			if err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), all, func(t *table) { eventRows(t, all) })
		},
	}
	for name, help := range map[string]string{
		"action": "only events of this action, as noun.verb", "outcome": "done, refused or failed", "actor": "only what this subject did: agent:agt_…, user:usr_…",
		"target": "only what was done to this: kind:id", "session": "only events of this session",
	} {
		filters[name] = c.Flags().String(name, "", help)
	}
	c.Flags().DurationVar(&since, "since", 0, "only events of this time until now")
	c.Flags().IntVar(&limit, "limit", 50, "how many to show; 0 for all")
	_ = c.RegisterFlagCompletionFunc("outcome", cobra.FixedCompletions([]string{"done", "refused", "failed"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

func eventShow(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "show EVENT", Short: "Show an event in full", Args: oneArgument("the event's id"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var e event
			if err := c.do(cmd.Context(), http.MethodGet, "/v1/events/"+url.PathEscape(args[0]), nil, &e); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), e, func(t *table) {
				t.pairs("Event", e.ID, "At", e.At, "Action", e.Action, "Outcome", e.Outcome, "Actor", e.Actor, "Target", e.Target,
					"Session", e.Session, "Request", e.Request, "Place in the log", e.Index)
				for _, k := range sortedKeys(e.Detail) {
					b, err := json.Marshal(e.Detail[k])
					if err == nil {
						t.row(k+":", string(b))
					}
				}
			})
		},
	}
}

func sortedKeys[V any](m map[string]V) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func eventReceipt(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "receipt EVENT", Short: "Write the receipt of a call, to be verified offline", Args: oneArgument("the event's id"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			return c.do(cmd.Context(), http.MethodGet, "/v1/events/"+url.PathEscape(args[0])+"/receipt", nil, cmd.OutOrStdout())
		},
	}
}

func whyCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "why EVENT", Short: "Explain a decision: the rule, the facts, and what would have changed it", Args: oneArgument("the event's id"),
		Long: `Why explains the decision behind an event: the rule, the facts that it saw, the
smallest change of facts that would have allowed it, and how to get there. An
agent that was refused finds the id in the header Estover-Decision of the answer.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var w struct {
				Event       event              `json:"event"`
				Explanation policy.Explanation `json:"explanation"`
			}
			if err := c.do(cmd.Context(), http.MethodGet, "/v1/events/"+url.PathEscape(args[0])+"/why", nil, &w); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), w, func(t *table) { explain(t, w.Event, w.Explanation) })
		},
	}
}

// callOf is what the gateway was asked for: the method, where to, and which
// action of the resource that is.
func callOf(e event) string {
	word := func(key string) string { s, _ := e.Detail[key].(string); return s }
	call := strings.TrimSpace(word("method") + " " + word("host") + word("path"))
	if name := word("action"); name != "" && call != "" {
		call += " (" + name + ")"
	}
	return call
}

func explain(t *table, e event, x policy.Explanation) {
	verdict := "Refused"
	if x.Allow {
		verdict = "Allowed"
	}
	t.pairs("Decision", verdict+" by "+x.Engine, "At", e.At, "Who", e.Actor, "What", e.Action, "Call", callOf(e), "On", e.Target, "Session", e.Session, "Policy", x.Revision)
	for _, r := range x.Rules {
		t.row()
		t.pairs("Rule", r.Rule(), "Title", r.Title, "Says", r.Sentence, "Next", r.Next)
		if r.File != "" {
			t.row("Where:", fmt.Sprintf("%s:%d", r.File, r.Line))
		}
	}
	for i, change := range x.Changes {
		if i == 0 {
			t.row()
			t.row("It would have been allowed with:")
		}
		for n, c := range change {
			and := ""
			if n > 0 {
				and = "and "
			}
			t.row("", fmt.Sprintf("%s%s being %s and not %s", and, c.Fact, c.Want, c.Is))
		}
	}
	for i, ask := range x.Ask {
		if i == 0 {
			t.row()
			t.row("How to get there:")
		}
		t.row("", ask)
	}
	if x.Note != "" {
		t.row()
		t.row("Note:", x.Note)
	}
}

func evidenceCommand(s *settings) *cobra.Command {
	c := noun("evidence", "Evidence for others: what a session did, verifiable offline",
		`The evidence of a session is a file with a receipt for every call, its place in
the log, and the policy that decided. 'estover verify' checks it without network.`)
	c.AddCommand(evidenceExport(s))
	return c
}

func evidenceExport(s *settings) *cobra.Command {
	var disclose bool
	var to string
	c := &cobra.Command{
		Use: "export SESSION", Short: "Write the evidence of a session", Args: oneArgument("the session's id"),
		Example: "  estover evidence export ses_… --disclose --file session.zip\n  estover verify session.zip --trust trust.policy",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			path := "/v1/sessions/" + url.PathEscape(args[0]) + "/evidence"
			if disclose {
				path += "?disclose=true"
			}
			if to == "" || to == "-" {
				return c.do(cmd.Context(), http.MethodGet, path, nil, cmd.OutOrStdout())
			}
			f, err := os.CreateTemp(".", ".estover-export-")
			if err != nil {
				return err
			}
			defer os.Remove(f.Name())
			if err := c.do(cmd.Context(), http.MethodGet, path, nil, f); err != nil {
				_ = f.Close()
				return err
			}
			if err := f.Close(); err != nil {
				return err
			}
			if err := os.Rename(f.Name(), to); err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "Written to %s. Check it with: estover verify %s --trust TRUST\n", to, to)
			return nil
		},
	}
	c.Flags().BoolVar(&disclose, "disclose", false, "add what the receipts commit to: grants, principals and recorded bodies")
	c.Flags().StringVarP(&to, "file", "f", "", "where to write it (default: standard output)")
	return c
}

func auditCommand(s *settings) *cobra.Command {
	c := noun("audit", "The log as a whole: check it, and the keys that others need",
		`The log is a Merkle tree in the form of C2SP tlog-tiles, with signed checkpoints,
served at /log/ for any client of that format.`)
	c.AddCommand(auditVerify(s), auditTrust(s))
	return c
}

func auditVerify(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "verify", Short: "Check every entry of the log, its tree and its checkpoint", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var v audit.Verification
			if err := c.do(cmd.Context(), http.MethodPost, "/v1/log/verify", struct{}{}, &v); err != nil {
				return err
			}
			if err := s.show(cmd.OutOrStdout(), v, func(t *table) {
				t.pairs("Log", v.Origin, "Entries", v.Size, "Published", v.Published, "Waiting", v.Waiting, "Erased", v.Erased, "Root", v.Root)
				for _, f := range v.Findings {
					t.row("WRONG:", fmt.Sprintf("entry %d: %s", f.Index, f.What))
				}
				if v.OK() {
					t.row("Every entry is as it was written.")
				}
			}); err != nil {
				return err
			}
			if !v.OK() {
				return exitCode(exitFailed)
			}
			return nil
		},
	}
}

func auditTrust(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "trust", Short: "Print the keys by which evidence is verified", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			return c.do(cmd.Context(), http.MethodGet, "/v1/trust", nil, cmd.OutOrStdout())
		},
	}
}
