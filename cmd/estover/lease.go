package main

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/lease"
)

func secretRole(s *settings) *cobra.Command {
	c := noun("role", "Roles: which users are made at a target, and who gets them",
		`A role says what its users may do at a target, for how long they live, and for
which action of which resource they are: an agent gets one if a grant covers that.`)
	c.AddCommand(rolePut(s), roleList(s), roleShow(s), roleCheck(s), roleRemove(s))
	return c
}

const rolesPath = "/v1/lease-roles"

func rolePath(name string) string { return rolesPath + "/" + url.PathEscape(name) }

func completeRoles(s *settings) cobra.CompletionFunc {
	return completeFrom(s, rolesPath, func(x struct{ Name, Description string }) string { return x.Name + "\t" + x.Description })
}

// A checkedRole is a role with how its round went.
type checkedRole struct {
	lease.Role
	Check lease.Checked `json:"check"`
}

func rolePut(s *settings) *cobra.Command {
	var spec lease.RoleSpec
	var template []string
	var delivery, bind string
	var ttl, maxTTL time.Duration
	c := &cobra.Command{
		Use: "put NAME", Short: "Make or change a role, and see whether its users can be made and taken away", Args: oneArgument("the role's name"),
		Long: `Put says what the users of a role may do, in the words of the kind of target
(estover secret engine kinds KIND), and tries it at once: a user is made, logs in,
is taken away and is gone. Nothing is issued from a role before that went well.`,
		Example:           "  estover secret role put crm-reader --target crm-db --template groups=crm_reader --resource crm-db --action rows.read --ttl 30m",
		ValidArgsFunction: completeRoles(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			values, err := keyValues("template", template)
			if err != nil {
				return err
			}
			spec.Name, spec.Template, spec.Delivery, spec.Bind = args[0], engine.Template(values), lease.Delivery(delivery), lease.Bind(bind)
			spec.TTLSeconds, spec.MaxTTLSeconds = int64(ttl.Seconds()), int64(maxTTL.Seconds())
			var r checkedRole
			if err := c.do(cmd.Context(), http.MethodPut, rolePath(args[0]), spec, &r); err != nil {
				return err
			}
			if err := s.show(cmd.OutOrStdout(), r, func(t *table) {
				for _, w := range r.Warnings {
					t.row("mind", "", w)
				}
				showCheck(t, r.Check)
				if r.Check.OK {
					t.row(fmt.Sprintf("%s is ready.", r.Name))
				} else {
					t.row(fmt.Sprintf("%s is there, and nothing is issued from it yet: estover secret role check %s", r.Name, r.Name))
				}
			}); err != nil {
				return err
			}
			return failed(r.Check)
		},
	}
	c.Flags().StringVar(&spec.Target, "target", "", "the target at which its users are made")
	c.Flags().StringArrayVar(&template, "template", nil, "what they may do there, as `KEY=VALUE` or KEY=@FILE; may be repeated")
	c.Flags().StringVar(&spec.Resource, "resource", "", "the resource that they open, by name or id (default: none, so that people alone get them)")
	c.Flags().StringVar(&spec.Action, "action", "", "the action of the resource that a grant has to cover")
	c.Flags().DurationVar(&ttl, "ttl", time.Hour, "how long one lives")
	c.Flags().DurationVar(&maxTTL, "max-ttl", 0, "to how long it can be extended (default: 24h)")
	c.Flags().StringVar(&delivery, "delivery", "handle", "handle: the gateway alone opens it; plaintext: whoever asks gets it")
	c.Flags().StringVar(&bind, "bind", "session", "what it ends with besides its time: session or token")
	c.Flags().BoolVar(&spec.Shared, "shared", false, "a session that asks again gets the same one, in the first half of its time")
	c.Flags().Int64Var(&spec.PerMinute, "per-minute", 0, "how many are made in a minute (default: 20)")
	c.Flags().StringVar(&spec.Description, "description", "", "what it is for")
	_ = c.MarkFlagRequired("target")
	return c
}

func roleStatus(r *lease.Role) string {
	if r.Ready {
		return "ready"
	}
	return "not checked"
}

func roleList(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the roles", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			all, err := list[lease.Role](cmd.Context(), c, rolesPath, url.Values{"limit": {"200"}}, 0)
			if err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), all, func(t *table) {
				t.row("NAME", "TARGET", "RESOURCE", "ACTION", "TTL", "DELIVERY", "STATUS")
				for _, r := range all {
					t.row(r.Name, r.Target, r.Resource, r.Action, time.Duration(r.TTLSeconds)*time.Second, r.Delivery, roleStatus(&r))
				}
			})
		},
	}
}

func roleShow(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "Show a role", Args: oneArgument("the role's name"), ValidArgsFunction: completeRoles(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var r lease.Role
			if err := c.do(cmd.Context(), http.MethodGet, rolePath(args[0]), nil, &r); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), r, func(t *table) {
				t.pairs("Name", r.Name, "Target", r.Target, "Resource", r.Resource, "Action", r.Action, "TTL", time.Duration(r.TTLSeconds)*time.Second,
					"At most", time.Duration(r.MaxTTLSeconds)*time.Second, "Delivery", r.Delivery, "Bound to", r.Bind, "Shared", r.Shared, "A minute", r.PerMinute,
					"Status", roleStatus(&r), "Checked", r.CheckedAt, "Failed at", r.CheckError, "Description", r.Description)
				for _, key := range sortedKeys(r.Template) {
					t.pairs("Template "+key, r.Template[key])
				}
			})
		},
	}
}

func roleCheck(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "check NAME", Short: "Make a user of a role, log in as it, take it away, and see that it is gone", Args: oneArgument("the role's name"), ValidArgsFunction: completeRoles(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var checked lease.Checked
			if err := c.do(cmd.Context(), http.MethodPost, rolePath(args[0])+"/check", map[string]any{}, &checked); err != nil {
				return err
			}
			if err := s.show(cmd.OutOrStdout(), checked, func(t *table) { showCheck(t, checked) }); err != nil {
				return err
			}
			return failed(checked)
		},
	}
}

func roleRemove(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "remove NAME", Short: "Remove a role of which there are no leases", Args: oneArgument("the role's name"), ValidArgsFunction: completeRoles(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			if err := c.do(cmd.Context(), http.MethodDelete, rolePath(args[0]), nil, nil); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), map[string]string{"removed": args[0]}, func(t *table) { t.row(args[0] + " is removed.") })
		},
	}
}

func secretLease(s *settings) *cobra.Command {
	c := noun("lease", "Leases: credentials that were handed out, and end",
		`A lease is a user at a target that was made for somebody and ends: with the
session that it was made for, at its time, or when it is revoked. What is marked
here is good for nothing from that instant on; the user is gone a moment later.`)
	c.AddCommand(leaseCreate(s), leaseList(s), leaseShow(s), leaseRenew(s), leaseRevoke(s))
	return c
}

// An issuedLease is a lease with what it hands out.
type issuedLease struct {
	lease.Issued
	Values map[string]string `json:"values,omitempty"`
}

func leaseCreate(s *settings) *cobra.Command {
	var ttl time.Duration
	var purpose, field string
	c := &cobra.Command{
		Use: "create ROLE", Short: "Get a credential of a role", Args: oneArgument("the role's name"), ValidArgsFunction: completeRoles(s),
		Long: `Create gets a credential and shows it, if the role hands it out; that is an event,
and the credential has left Estover. For a program there is 'estover secret run',
which takes it back when the program ends.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var x issuedLease
			in := map[string]any{"role": args[0], "ttl_seconds": int64(ttl.Seconds()), "purpose": purpose}
			if err := c.do(cmd.Context(), http.MethodPost, "/v1/leases", in, &x); err != nil {
				return err
			}
			if field != "" {
				v, ok := x.Values[field]
				if !ok {
					return fmt.Errorf("the lease hands out no %q; it has %s", field, strings.Join(sortedKeys(x.Values), ", "))
				}
				_, err := fmt.Fprintln(cmd.OutOrStdout(), v)
				return err
			}
			return s.show(cmd.OutOrStdout(), x, func(t *table) {
				t.pairs("Lease", x.ID, "Ends", x.ExpiresAt, "By", x.ExpiresBy)
				for _, k := range sortedKeys(x.Values) {
					t.row(k+":", x.Values[k])
				}
				if len(x.Values) == 0 {
					t.row("The gateway alone opens it.")
				}
				if x.Lingers != "" {
					t.row("Mind: " + x.Lingers)
				}
			})
		},
	}
	c.Flags().DurationVar(&ttl, "ttl", 0, "how long it may live, if that is less than the role's time")
	c.Flags().StringVar(&purpose, "purpose", "", "what it is for; a person says that")
	c.Flags().StringVar(&field, "field", "", "print this part alone")
	return c
}

func leaseState(x *lease.Lease) string {
	if x.Overdue {
		return "overdue"
	}
	return string(x.State)
}

func leaseList(s *settings) *cobra.Command {
	q := url.Values{"limit": {"200"}}
	var session, agent, role, target string
	var open, overdue bool
	var limit int
	c := &cobra.Command{
		Use: "list", Short: "List leases, the newest first", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			for k, v := range map[string]string{"session": session, "agent": agent, "role": role, "target": target} {
				if v != "" {
					q.Set(k, v)
				}
			}
			if open {
				q.Set("open", "true")
			}
			if overdue {
				q.Set("overdue", "true")
			}
			all, err := list[lease.Lease](cmd.Context(), c, "/v1/leases", q, limit)
			if err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), all, func(t *table) {
				t.row("LEASE", "ROLE", "USER", "HOLDER", "STATE", "ENDS", "WHY", "LAST ERROR")
				for _, x := range all {
					ends := x.ExpiresAt
					if !x.EndedAt.IsZero() {
						ends = x.EndedAt
					}
					t.row(x.ID, x.Role, x.User, x.Holder, leaseState(&x), ends, x.Cause, x.LastError)
				}
			})
		},
	}
	c.Flags().StringVar(&session, "session", "", "only leases of this session")
	c.Flags().StringVar(&agent, "agent", "", "only leases of this agent, by name or id")
	c.Flags().StringVar(&role, "role", "", "only leases of this role")
	c.Flags().StringVar(&target, "target", "", "only leases at this target")
	c.Flags().BoolVar(&open, "open", false, "only leases that have not ended")
	c.Flags().BoolVar(&overdue, "overdue", false, "only leases that should be gone and are not")
	c.Flags().IntVar(&limit, "limit", 200, "at most so many; 0 for all")
	return c
}

func leaseShow(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "show LEASE", Short: "Show a lease, never what it hands out", Args: oneArgument("the lease's id"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var x lease.Lease
			if err := c.do(cmd.Context(), http.MethodGet, "/v1/leases/"+url.PathEscape(args[0]), nil, &x); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), x, func(t *table) { showLease(t, &x) })
		},
	}
}

func showLease(t *table, x *lease.Lease) {
	t.pairs("Lease", x.ID, "Role", x.Role, "User", x.User, "State", leaseState(x), "Delivery", x.Delivery, "Holder", x.Holder, "Session", x.Session,
		"Made", x.CreatedAt, "Ends", x.ExpiresAt, "By", x.ExpiresBy, "At most until", x.MaxAt, "Why it ends", x.Cause, "To be gone since", x.DueAt,
		"Last error", x.LastError, "Next try", x.NextTryAt, "Ended", x.EndedAt)
}

func leaseRenew(s *settings) *cobra.Command {
	var ttl time.Duration
	var purpose string
	c := &cobra.Command{
		Use: "renew LEASE", Short: "Have a lease go on for longer", Args: oneArgument("the lease's id"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var x lease.Lease
			in := map[string]any{"ttl_seconds": int64(ttl.Seconds()), "purpose": purpose}
			if err := c.do(cmd.Context(), http.MethodPost, "/v1/leases/"+url.PathEscape(args[0])+"/renew", in, &x); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), x, func(t *table) { showLease(t, &x) })
		},
	}
	c.Flags().DurationVar(&ttl, "ttl", 0, "how long it is to live from now, if that is less than the role's time")
	c.Flags().StringVar(&purpose, "purpose", "", "what it is for; a person says that")
	return c
}

func leaseRevoke(s *settings) *cobra.Command {
	var w lease.Which
	var reason string
	var wait bool
	c := &cobra.Command{
		Use: "revoke [LEASE]", Short: "End a lease, or those of a session, an agent, a role, a target, or all", Args: atMostOne("the lease's id"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			if len(args) > 0 {
				w.ID = args[0]
			}
			n := 0
			for _, is := range []bool{w.ID != "", w.Session != "", w.Agent != "", w.Role != "", w.Target != "", w.All} {
				if is {
					n++
				}
			}
			if n != 1 {
				return usageError{errors.New("revoke needs a lease, or one of --session, --agent, --role, --target and --all")}
			}
			in := struct {
				lease.Which
				Reason string `json:"reason,omitempty"`
				Wait   bool   `json:"wait,omitempty"`
			}{w, reason, wait}
			var r lease.Revoked
			if err := c.do(cmd.Context(), http.MethodPost, "/v1/leases/revoke", in, &r); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), r, func(t *table) {
				switch {
				case r.Count == 1:
					t.row("1 lease is revoked.")
				default:
					t.row(fmt.Sprintf("%d leases are revoked.", r.Count))
				}
				for _, l := range r.Lingers {
					t.row("Mind: " + l)
				}
			})
		},
	}
	c.Flags().StringVar(&w.Session, "session", "", "those of this session")
	c.Flags().StringVar(&w.Agent, "agent", "", "those of this agent, by name or id")
	c.Flags().StringVar(&w.Role, "role", "", "those of this role")
	c.Flags().StringVar(&w.Target, "target", "", "those at this target")
	c.Flags().BoolVar(&w.All, "all", false, "all of the organisation")
	c.Flags().StringVar(&reason, "reason", "", "why, for the record")
	c.Flags().BoolVar(&wait, "wait", false, "wait until they are gone at their targets, for 30 seconds at most")
	return c
}
