package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"estover.dev"
	"estover.dev/internal/approval"
)

func accessCommand(s *settings) *cobra.Command {
	c := noun("access", "Access: asking for more than one has, and deciding about it",
		`An agent has what it was granted, and asks for what a task needs beside. What
policy permits is granted at once, for a while; everything else waits for people
to decide, and is gone at the end of the session or at its time.`)
	c.AddCommand(accessRequest(s), accessList(s), accessShow(s), accessWhy(s), accessDocument(s), accessApprove(s), accessDeny(s), accessCancel(s), accessWatch(s), accessRestore(s))
	return c
}

// A wanted is what the flags say of access: for asking, and for approving less.
type wanted struct {
	resource   string
	actions    []string
	items      []string // RESOURCE=ACTION+ACTION
	parameters []string // NAME=VALUE
	class      string
	budgets    []string // NAME=NUMBER
	life       time.Duration
}

// pair cuts a flag's NAME=VALUE.
func pair(flag, text string) (name, value string, err error) {
	name, value, ok := strings.Cut(text, "=")
	if !ok || name == "" || value == "" {
		return "", "", usageError{fmt.Errorf("--%s is NAME=VALUE, not %q", flag, text)}
	}
	return name, value, nil
}

// list is what the flags name, in the API's words.
func (w *wanted) list(flag string) (all []approval.Item, err error) {
	if w.resource != "" {
		all = append(all, approval.Item{Resource: w.resource, Actions: w.actions})
	}
	for _, text := range w.items {
		resource, actions, err := pair(flag, text)
		if err != nil {
			return nil, err
		}
		all = append(all, approval.Item{Resource: resource, Actions: strings.Split(actions, "+")})
	}
	params := map[string][]string{}
	for _, text := range w.parameters {
		name, value, err := pair("parameter", text)
		if err != nil {
			return nil, err
		}
		params[name] = append(params[name], value)
	}
	for i := range all {
		if all[i].Class = estover.Class(w.class); len(params) > 0 {
			all[i].Parameters = params
		}
	}
	return all, nil
}

// limits are the budgets that the flags name; nil for none.
func (w *wanted) limits() (*approval.Budgets, error) {
	if len(w.budgets) == 0 {
		return nil, nil
	}
	named := map[string]int64{}
	for _, text := range w.budgets {
		name, value, err := pair("budget", text)
		if err != nil {
			return nil, err
		}
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil || n <= 0 {
			return nil, usageError{fmt.Errorf("--budget %s is a whole number above zero, not %q", name, value)}
		}
		named[name] = n
	}
	text, err := json.Marshal(named)
	if err != nil {
		return nil, err
	}
	var b approval.Budgets
	if err := json.Unmarshal(text, &b); err != nil {
		return nil, err
	}
	known, err := json.Marshal(b)
	if err != nil {
		return nil, err
	}
	for name := range named {
		if !strings.Contains(string(known), strconv.Quote(name)) {
			return nil, usageError{fmt.Errorf("--budget is one of calls, rows, records, bytes_out, money, seconds and fan_out, not %q", name)}
		}
	}
	return &b, nil
}

func accessRequest(s *settings) *cobra.Command {
	var w wanted
	var agentName, session, purpose, reason string
	var more []string
	var wait bool
	c := &cobra.Command{
		Use: "request", Short: "Ask for access", Args: noArguments,
		Long: `Ask for access: for the agent whose credentials are in ESTOVER_CLIENT_ID and
ESTOVER_CLIENT_SECRET (or ESTOVER_CLIENT_SECRET_FILE), for the one under whose
'estover run' this is started, or, as the person who is logged in, for an agent
that you sponsor or operate.

What policy permits is granted at once. Otherwise the request waits; with --wait
the command does too, and ends with 0 if it was approved, 3 if it was denied and
1 if it expired or was taken back.`,
		Example: `  estover access request --agent invoices-bot --session ses_… --resource ledger --action invoices.read \
    --parameter id=4711 --for 30m --reason "The customer disputes it" --context ticket=INC-1234 --wait`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			c, err := s.client()
			if err != nil {
				return err
			}
			in, err := w.body(agentName, session, purpose, reason, more)
			if err != nil {
				return err
			}
			if proxy := os.Getenv("ESTOVER_PROXY"); proxy != "" && agentName == "" && !hasOwnCredentials() {
				if err := c.within(proxy); err != nil {
					return err
				}
			} else if agentName == "" && c.token == "" || hasOwnCredentials() {
				l := &launch{agent: agentName, purpose: purpose}
				if err := l.authenticate(ctx, c); err != nil {
					return err
				}
				if l.asAgent { // whose token may run out while it waits
					delete(in, "agent")
					c.renew = func(ctx context.Context) error { return l.authenticate(ctx, c) }
				}
			}
			var r approval.Request
			if err := c.do(ctx, http.MethodPost, "/v1/access/requests", in, &r); err != nil {
				return err
			}
			if !wait || r.State != approval.Pending {
				return s.showRequest(cmd, r, wait)
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "%s waits until %s for somebody to decide.\n", r.ID, r.ExpiresAt.Local().Format(time.DateTime))
			if r, err = c.decided(ctx, r); err != nil {
				return err
			}
			return s.showRequest(cmd, r, true)
		},
	}
	f := c.Flags()
	f.StringVar(&agentName, "agent", "", "the agent that it is for, by name or id")
	f.StringVar(&session, "session", "", "the session that it is for, and with which it ends (default: the agent's own, or none)")
	f.StringVar(&purpose, "purpose", "", "what the data is used for (default: the session's purpose, or the agent's only one)")
	f.StringVar(&w.resource, "resource", "", "the resource")
	f.StringSliceVar(&w.actions, "action", nil, "an action of it, or * for every one; may be repeated")
	f.StringArrayVar(&w.items, "item", nil, "several resources at once, each as RESOURCE=ACTION+ACTION; may be repeated")
	f.StringArrayVar(&w.parameters, "parameter", nil, "what a parameter of the actions' paths may be, as NAME=VALUE; may be repeated")
	f.StringVar(&w.class, "class", "", "the most sensitive class of data (default: what the actions need)")
	f.StringSliceVar(&w.budgets, "budget", nil, "how much of it, as calls=100 or bytes_out=1048576; may be repeated")
	f.DurationVar(&w.life, "for", 0, "how long, between a minute and a day (default: an hour, or until the session ends)")
	f.StringVar(&reason, "reason", "", "what it is for, in a sentence")
	f.StringArrayVar(&more, "context", nil, "what else those who decide should know, as ticket=INC-1234; may be repeated")
	f.BoolVar(&wait, "wait", false, "wait until it is decided")
	_ = c.MarkFlagRequired("reason")
	_ = c.RegisterFlagCompletionFunc("agent", completeAgents(s))
	_ = c.RegisterFlagCompletionFunc("resource", completeResources(s))
	return c
}

// within makes c speak as the program that `estover run` has started, by way of
// its proxy.
func (c *client) within(proxy string) error {
	u, err := url.Parse(proxy)
	if err != nil {
		return fmt.Errorf("ESTOVER_PROXY: %w", err)
	}
	c.addr, c.token = "http://estover.internal", ""
	c.http = &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(u)}}
	return nil
}

// body is the request that the flags describe.
func (w *wanted) body(agent, session, purpose, reason string, more []string) (map[string]any, error) {
	if (w.resource == "") != (len(w.actions) == 0) || w.resource == "" && len(w.items) == 0 {
		return nil, usageError{fmt.Errorf("say what is asked for, with --resource and --action, or with --item")}
	}
	items, err := w.list("item")
	if err != nil {
		return nil, err
	}
	in := map[string]any{"items": items, "reason": reason}
	for name, v := range map[string]string{"agent": agent, "session": session, "purpose": purpose} {
		if v != "" {
			in[name] = v
		}
	}
	if w.life != 0 {
		in["for_seconds"] = int64(w.life / time.Second)
	}
	b, err := w.limits()
	if err != nil {
		return nil, err
	}
	if b != nil {
		in["budgets"] = b
	}
	if len(more) > 0 {
		about := map[string]string{}
		for _, text := range more {
			name, value, err := pair("context", text)
			if err != nil {
				return nil, err
			}
			about[name] = value
		}
		in["context"] = about
	}
	return in, nil
}

// decided waits until a request is no longer pending.
func (c *client) decided(ctx context.Context, r approval.Request) (approval.Request, error) {
	pause := 200 * time.Millisecond
	for r.State == approval.Pending {
		select {
		case <-ctx.Done():
			return r, ctx.Err()
		case <-time.After(pause):
		}
		pause = min(pause*3/2, 5*time.Second)
		if err := c.do(ctx, http.MethodGet, "/v1/access/requests/"+url.PathEscape(r.ID), nil, &r); err != nil {
			return r, err
		}
	}
	return r, nil
}

// showRequest shows a request. For whoever waited, the exit code says what became
// of it.
func (s *settings) showRequest(cmd *cobra.Command, r approval.Request, waited bool) error {
	if err := s.show(cmd.OutOrStdout(), r, func(t *table) { requestRows(t, r) }); err != nil {
		return err
	}
	switch {
	case !waited || r.State == approval.Approved || r.State == approval.Pending:
		return nil
	case r.State == approval.Denied:
		return exitCode(exitRefused)
	}
	return exitCode(exitFailed)
}

func requestRows(t *table, r approval.Request) {
	t.pairs("Request", r.ID, "Kind", r.Kind, "State", r.State, "Agent", first(r.AgentName, r.Agent), "Session", r.Session, "Purpose", r.Purpose,
		"Asked by", r.Requester, "Reason", r.Reason, "Target", r.Target)
	for _, name := range sortedNames(r.Context) {
		t.row("  "+name+":", r.Context[name])
	}
	for _, name := range sortedNames(r.Arguments) {
		t.row("  "+name+":", r.Arguments[name])
	}
	table := r.Offer
	for _, item := range table.Items {
		t.row("Access:", itemText(item))
	}
	if table.Seconds > 0 {
		t.row("For:", time.Duration(table.Seconds)*time.Second)
	}
	if b := budgetText(table.Budgets); b != "" {
		t.row("Budget:", b)
	}
	riskRows(t, r.Risk)
	if r.State == approval.Pending {
		t.pairs("Decided by", fmt.Sprintf("%d of %s", r.Rule.Quorum, strings.Join(r.Rule.Roles, ", ")), "Signed", map[bool]string{true: "yes"}[r.Rule.Signed], "Expires", r.ExpiresAt)
	}
	for _, v := range r.Votes {
		t.row("Vote:", fmt.Sprintf("%s by %s%s at %s %s", v.Verdict, v.Approver, inPlaceOf(v.For), v.At.Local().Format(time.DateTime), v.Note))
	}
	t.pairs("Asked", r.CreatedAt, "Decided", r.DecidedAt, "By", r.DecidedBy, "Note", r.Note, "Until", table.Until, "Grants", r.Result)
}

// riskRows says how much is asked for, of a request that waits.
func riskRows(t *table, r approval.Risk) {
	t.pairs("Risk", r.Level)
	for _, because := range r.Because {
		t.row("  because:", because)
	}
}

func inPlaceOf(who estover.Subject) string {
	if who == "" {
		return ""
	}
	return " in the place of " + string(who)
}

func itemText(item approval.Item) string {
	text := first(item.Name, item.Resource) + ": " + strings.Join(item.Actions, ", ")
	for _, name := range sortedNames(item.Parameters) {
		text += " " + name + "=" + strings.Join(item.Parameters[name], "|")
	}
	if item.Class != "" {
		text += " (" + string(item.Class) + ")"
	}
	return text
}

func budgetText(b approval.Budgets) string {
	text, err := json.Marshal(b)
	if err != nil || b == (approval.Budgets{}) {
		return ""
	}
	var named map[string]int64
	if err := json.Unmarshal(text, &named); err != nil {
		return ""
	}
	var all []string
	for _, name := range sortedNames(named) {
		all = append(all, fmt.Sprintf("%s=%d", name, named[name]))
	}
	return strings.Join(all, " ")
}

func accessList(s *settings) *cobra.Command {
	var agentName, session, state string
	var all bool
	c := &cobra.Command{
		Use: "list", Short: "List requests: those that wait, unless you say otherwise", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			q := url.Values{"limit": {"200"}}
			for name, v := range map[string]string{"agent": agentName, "session": session, "state": state} {
				if v != "" {
					q.Set(name, v)
				}
			}
			if state == "" && !all {
				q.Set("state", string(approval.Pending))
			}
			requests, err := list[approval.Request](cmd.Context(), c, "/v1/access/requests", q, 0)
			if err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), requests, func(t *table) {
				t.row("ID", "STATE", "RISK", "AGENT", "WHAT", "FOR", "REASON", "EXPIRES")
				for _, r := range requests {
					what := r.Target
					for _, item := range r.Offer.Items {
						what = strings.TrimPrefix(what+"; "+itemText(item), "; ")
					}
					t.row(r.ID, r.State, first(string(r.Risk.Level), "-"), first(r.AgentName, r.Agent), what, time.Duration(r.Offer.Seconds)*time.Second, r.Reason, r.ExpiresAt)
				}
			})
		},
	}
	c.Flags().StringVar(&agentName, "agent", "", "only requests for this agent")
	c.Flags().StringVar(&session, "session", "", "only requests for this session")
	c.Flags().StringVar(&state, "state", "", "only requests in this state: pending, approved, denied, expired or cancelled")
	c.Flags().BoolVar(&all, "all", false, "in whatever state")
	_ = c.RegisterFlagCompletionFunc("agent", completeAgents(s))
	return c
}

// completeRequests completes the ids of requests that wait.
func completeRequests(s *settings) cobra.CompletionFunc {
	return completeFrom(s, "/v1/access/requests", func(r approval.Request) string { return r.ID + "\t" + first(r.AgentName, r.Target) })
}

// requestAction is a command that does something with one request.
func requestAction(s *settings, use, short string, fn func(cmd *cobra.Command, c *client, path string) error) *cobra.Command {
	return &cobra.Command{
		Use: use + " REQUEST", Short: short, Args: oneArgument("the request's id"), ValidArgsFunction: completeRequests(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			return fn(cmd, c, "/v1/access/requests/"+url.PathEscape(args[0]))
		},
	}
}

func accessShow(s *settings) *cobra.Command {
	return requestAction(s, "show", "Show a request", func(cmd *cobra.Command, c *client, path string) error {
		var r approval.Request
		if err := c.do(cmd.Context(), http.MethodGet, path, nil, &r); err != nil {
			return err
		}
		return s.showRequest(cmd, r, false)
	})
}

func accessWhy(s *settings) *cobra.Command {
	return requestAction(s, "why", "Say who may decide about a request, who has, and what is missing", func(cmd *cobra.Command, c *client, path string) error {
		var e approval.Explanation
		if err := c.do(cmd.Context(), http.MethodGet, path+"/why", nil, &e); err != nil {
			return err
		}
		return s.show(cmd.OutOrStdout(), e, func(t *table) {
			r := e.Request
			t.pairs("Request", r.ID, "State", r.State, "Decided by", r.DecidedBy, "Note", r.Note, "Policy said", first(r.Policy.Rule, "nothing"), "Of bundle", r.Policy.Revision)
			if r.DecidedBy == approval.ByPolicy {
				return
			}
			t.pairs("Wanted", fmt.Sprintf("%d of %s", r.Rule.Quorum, strings.Join(e.Roles, ", ")), "Signed", map[bool]string{true: "yes"}[r.Rule.Signed],
				"Sponsor", map[bool]string{true: "does not count"}[r.Rule.ExcludeSponsor])
			for _, w := range e.Heard {
				t.row("Approved by:", w.Name+inPlaceOf(w.Instead))
			}
			if r.State != approval.Pending {
				return
			}
			riskRows(t, r.Risk)
			t.row("Missing:", e.Missing)
			for _, w := range e.May {
				t.row("May decide:", fmt.Sprintf("%s (%s)%s", w.Name, strings.Join(w.By, ", "), inPlaceOf(w.Instead)))
			}
			t.pairs("You", e.You, "Escalates after", time.Duration(r.Rule.EscalateAfter)*time.Second, "Expires", r.ExpiresAt)
		})
	})
}

func accessApprove(s *settings) *cobra.Command {
	var w wanted
	var note string
	var with signing
	c := requestAction(s, "approve", "Approve a request as it is, or narrower", func(cmd *cobra.Command, c *client, path string) error {
		if with.key != "" && with.file != "" {
			return usageError{errors.New("sign with --ssh-key or hand over a --signature, not both")}
		}
		in := map[string]any{}
		only, err := w.list("only")
		if err != nil {
			return err
		}
		if only != nil {
			in["only"] = only
		}
		b, err := w.limits()
		if err != nil {
			return err
		}
		if b != nil {
			in["budgets"] = b
		}
		if w.life != 0 {
			in["for_seconds"] = int64(w.life / time.Second)
		}
		if note != "" {
			in["note"] = note
		}
		seen, err := preview(cmd.Context(), c, path, in)
		if err != nil {
			return err
		}
		seen.tell(cmd.ErrOrStderr())
		in["digest"] = seen.Digest
		if !with.none() {
			if in["assertion"], err = with.sign(cmd.Context(), c, seen.Document, cmd.InOrStdin(), cmd.ErrOrStderr()); err != nil {
				return err
			}
		}
		var r approval.Request
		if err := c.do(cmd.Context(), http.MethodPost, path+"/approve", in, &r); err != nil {
			return err
		}
		return s.show(cmd.OutOrStdout(), r, func(t *table) {
			if r.State == approval.Pending {
				t.row(fmt.Sprintf("%s has your approval, and waits for others.", r.ID))
				return
			}
			t.row(fmt.Sprintf("%s is %s.", r.ID, r.State))
			t.pairs("Until", r.Offer.Until, "Grants", r.Result)
		})
	})
	c.Long = `Approve a request as it is, or narrower. The document that is approved is shown
first, with eight words that stand for it: the same words stand on the request's
page and in what you were told of it.

Where policy wants a signature, --ssh-key has ssh-keygen sign the document with a
key that you have registered ('estover person key add'). To sign elsewhere, save
the document with 'estover access document', sign it there with
'ssh-keygen -Y sign -n estover-approval -f KEY FILE', and hand the signature over
with --signature. A passkey signs on the request's page.`
	c.Example = "  estover access approve apr_… --only ledger=invoices.read --for 15m --note 'Reading is enough'\n  estover access approve apr_… --ssh-key ~/.ssh/approve"
	f := c.Flags()
	f.StringVar(&with.key, "ssh-key", "", "sign with this ssh key, by ssh-keygen: its file, or the .pub file of one that an agent holds")
	f.StringVar(&with.file, "signature", "", "a signature that was made elsewhere: its file, or - for standard input")
	f.StringArrayVar(&w.items, "only", nil, "no more than this, as RESOURCE=ACTION+ACTION; may be repeated")
	f.StringArrayVar(&w.parameters, "parameter", nil, "with --only, what a parameter of the actions' paths may be, as NAME=VALUE; may be repeated")
	f.StringVar(&w.class, "class", "", "with --only, the most sensitive class of data")
	f.StringSliceVar(&w.budgets, "budget", nil, "no more than this, as calls=1; may be repeated")
	f.DurationVar(&w.life, "for", 0, "no longer than this")
	f.StringVar(&note, "note", "", "for the record, and for whoever asked")
	return c
}

func accessDeny(s *settings) *cobra.Command {
	var note string
	c := requestAction(s, "deny", "Deny a request", func(cmd *cobra.Command, c *client, path string) error {
		var r approval.Request
		if err := c.do(cmd.Context(), http.MethodPost, path+"/deny", map[string]any{"note": note}, &r); err != nil {
			return err
		}
		return s.show(cmd.OutOrStdout(), r, func(t *table) { t.row(fmt.Sprintf("%s is %s.", r.ID, r.State)) })
	})
	c.Flags().StringVar(&note, "note", "", "why, for whoever asked")
	_ = c.MarkFlagRequired("note")
	return c
}

func accessCancel(s *settings) *cobra.Command {
	var note string
	c := requestAction(s, "cancel", "Take a request back", func(cmd *cobra.Command, c *client, path string) error {
		in := map[string]any{}
		if note != "" {
			in["note"] = note
		}
		var r approval.Request
		if err := c.do(cmd.Context(), http.MethodPost, path+"/cancel", in, &r); err != nil {
			return err
		}
		return s.show(cmd.OutOrStdout(), r, func(t *table) { t.row(fmt.Sprintf("%s is %s.", r.ID, r.State)) })
	})
	c.Flags().StringVar(&note, "note", "", "why")
	return c
}
