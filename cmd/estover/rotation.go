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
	"estover.dev/internal/secret/rotation"
)

func rotationCommand(s *settings) *cobra.Command {
	c := noun("rotation", "Rotations: secrets whose versions are made here and applied to a target",
		`A rotated secret has two users at a target. While one serves, the other gets the
next password; the old one dies when nobody uses it any more, and until then it is
said who does.`)
	c.AddCommand(rotationList(s), rotationShow(s), rotationPut(s), rotationRun(s), rotationExplain(s), rotationForce(s), rotationClear(s), rotationRemove(s))
	return c
}

func completeRotations(s *settings) cobra.CompletionFunc {
	return completeFrom(s, "/v1/rotations", func(x struct{ Path, Step string }) string { return x.Path + "\t" + x.Step })
}

func rotationList(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "list [PREFIX]", Short: "List rotated secrets and how far each is", Args: atMostOne("what the paths begin with"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			q := url.Values{"limit": {"200"}}
			if len(args) > 0 {
				q.Set("prefix", args[0])
			}
			all, err := list[rotation.Rotation](cmd.Context(), c, "/v1/rotations", q, 0)
			if err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), all, func(t *table) {
				t.row("PATH", "STEP", "VERSION", "OLD", "ROTATED", "DUE", "IN USE BY", "LATE", "WRONG")
				for _, x := range all {
					t.row(x.Path, x.Step, x.Current, orNothing(x.Previous), x.RotatedAt, x.DueAt, orNothing(int64(len(x.Laggards))), x.LateAt, first(x.LastError, x.Stopped))
				}
			})
		},
	}
}

func orNothing(n int64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

func showRotation(t *table, x rotation.Rotation) {
	t.pairs("Path", x.Path, "Target", first(x.TargetName, x.Target), "Kind", x.Kind, "Users", x.Users, "Schedule", first(x.Schedule, byItself(x)), "Window", x.Window,
		"Grace", x.Grace(), "Step", x.Step, "Version", x.Current, "On its way", orNothing(x.Pending), "Old version", orNothing(x.Previous),
		"Kept until", x.GraceUntil, "Rotated", x.RotatedAt, "Ends by itself", x.ExpiresAt, "Due", x.DueAt, "Late since", x.LateAt, "Went wrong", x.LastError, "Target stopped", x.Stopped,
		"Refused log-ins for", refusedFor(x))
}

// byItself is what a rotation goes by if nothing is said.
func byItself(x rotation.Rotation) string {
	if x.Kind == rotation.Certificate {
		return "by the certificate's life"
	}
	return "by risk"
}

// refusedFor is for how long the last rotation of a single user refused log-ins.
func refusedFor(x rotation.Rotation) string {
	if x.Refused == 0 {
		return ""
	}
	return (time.Duration(x.Refused) * time.Microsecond).String()
}

func rotationShow(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "show PATH", Short: "Show the rotation of a secret", Args: oneArgument("the secret's path"),
		ValidArgsFunction: completeRotations(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var x rotation.Rotation
			if err := c.do(cmd.Context(), http.MethodGet, "/v1/rotation"+secretAt(args[0]), nil, &x); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), x, func(t *table) { showRotation(t, x) })
		},
	}
}

func rotationPut(s *settings) *cobra.Command {
	var spec rotation.Spec
	var subject rotation.Subject
	var kind string
	var template []string
	var cache, poll, connection, quiet, escalate, within, life time.Duration
	c := &cobra.Command{
		Use: "put PATH", Short: "Have a secret rotated, or change how", Args: oneArgument("the secret's path"),
		Long: `Put has the versions of a secret made here. If it has a version, its username is
one of the users. A user that is not there is made from the template.

Of keys, which the target makes, the users are the two names that they get in turn.
Of certificates there is no target, but the role by which they are made.

How long the old version is kept at least is the longest of --cache, twice --poll
and --connection-age; an hour if none of them is given. After that it is kept for
as long as somebody uses it.`,
		Example: "  estover rotation put db/orders --target orders --user orders_a --user orders_b --template groups=orders_readers --cache 5m\n" +
			"  estover rotation put crm/key --kind keys --target crm --user reader-1 --user reader-2 --template values=scope=read --cache 5m\n" +
			"  estover rotation put bank/client --role partners --common-name shop.example.com --cache 5m\n" +
			"  estover rotation run db/orders",
		ValidArgsFunction: completeSecrets(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			spec.Kind = rotation.Kind(kind)
			switch {
			case subject.Role != "":
				if spec.Subject = &subject; kind == "" {
					spec.Kind = rotation.Certificate
				}
			case spec.Target == "" || len(spec.Users) == 0:
				return usageError{errors.New("say at which --target which --user is, or by which --role certificates are made")}
			case kind == "" && len(spec.Users) == 1:
				spec.Kind = rotation.SingleSlot
			}
			for _, pair := range template {
				k, v, ok := strings.Cut(pair, "=")
				if !ok {
					return usageError{fmt.Errorf("--template is KEY=VALUE, not %q", pair)}
				}
				if spec.Template == nil {
					spec.Template = engine.Template{}
				}
				spec.Template[k] = append(spec.Template[k], v)
			}
			for _, d := range []struct {
				to   *int64
				from time.Duration
			}{{&spec.Cache, cache}, {&spec.Poll, poll}, {&spec.Connection, connection}, {&spec.Quiet, quiet}, {&spec.Escalate, escalate}, {&spec.Within, within}, {&subject.TTL, life}} {
				*d.to = int64((d.from + time.Second - 1) / time.Second)
			}
			var x rotation.Rotation
			if err := c.do(cmd.Context(), http.MethodPut, "/v1/rotation"+secretAt(args[0]), spec, &x); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), x, func(t *table) { showRotation(t, x) })
		},
	}
	f := c.Flags()
	f.StringVar(&spec.Target, "target", "", "the target where the users are, by its name")
	f.StringArrayVar(&spec.Users, "user", nil, "a user at the target; give two, so that one serves while the other gets its password")
	f.StringVar(&kind, "kind", "", "two_users, single_slot, keys or certificate (default: by the number of users; certificate with --role)")
	f.StringVar(&subject.Role, "role", "", "of certificates: the role by which they are made")
	f.StringVar(&subject.Mount, "mount", "", "of certificates: the mount of the role, if it is one of Vault's door")
	f.StringVar(&subject.CommonName, "common-name", "", "of certificates: the common name")
	f.StringArrayVar(&subject.DNS, "dns", nil, "of certificates: a host name; may be repeated")
	f.StringArrayVar(&subject.IPs, "ip", nil, "of certificates: an address; may be repeated")
	f.StringArrayVar(&subject.URIs, "uri", nil, "of certificates: a URI; may be repeated")
	f.DurationVar(&life, "ttl", 0, "of certificates: their life (default: the role's)")
	f.StringArrayVar(&template, "template", nil, "what a user that is not there is made from, as KEY=VALUE; may be repeated")
	f.StringVar(&spec.Schedule, "schedule", "", "a time as 12h or 30d, five fields of cron in UTC, or manual (default: by the secret's risk)")
	f.StringVar(&spec.Window, "window", "", "the part of the day in which it begins, in UTC, as 02:00-05:00")
	f.DurationVar(&within, "within", 0, "with five fields of cron: for how long after its time it may begin (default: whenever it can)")
	f.StringVar(&spec.UserField, "user-field", "", "the field with the user's name (default: username)")
	f.StringVar(&spec.SecretField, "secret-field", "", "the field with the password or the key (default: password, and key of keys)")
	f.DurationVar(&cache, "cache", 0, "how long clients keep what they have read")
	f.DurationVar(&poll, "poll", 0, "how often clients look for another version")
	f.DurationVar(&connection, "connection-age", 0, "how long clients keep a connection")
	f.DurationVar(&quiet, "quiet", 0, "for how long the gateway must not have used a version that is to die (default: 10m)")
	f.DurationVar(&escalate, "escalate", 0, "for how long after its grace a version that is used is waited for; then it dies all the same (default: without end)")
	return c
}

func rotationRun(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "run PATH", Short: "Rotate a secret now", Args: oneArgument("the secret's path"),
		ValidArgsFunction: completeRotations(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var x rotation.Rotation
			if err := c.do(cmd.Context(), http.MethodPost, "/v1/rotation/run"+secretAt(args[0]), nil, &x); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), x, func(t *table) {
				t.row(fmt.Sprintf("%s has version %d.", x.Path, x.Current))
				if x.Previous > 0 {
					t.row(fmt.Sprintf("Version %d is kept until %s, and longer while it is used: estover rotation explain %s", x.Previous, x.GraceUntil.UTC().Format(time.RFC3339), x.Path))
				}
				if x.Refused > 0 {
					t.row("Log-ins were refused for " + refusedFor(x) + ": there is one user.")
				}
			})
		},
	}
}

func showLaggards(t *table, all []rotation.Laggard) {
	if len(all) == 0 {
		return
	}
	t.row()
	t.row("BY", "WHO", "SESSION", "SPONSOR", "LAST USE", "TIMES", "OPEN", "FROM")
	for _, l := range all {
		t.row(l.Way, l.Subject, l.Session, l.Sponsor, l.LastUse, orNothing(l.Uses), orNothing(l.Connections), l.From)
	}
}

func rotationExplain(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "explain PATH", Short: "Say what a rotation waits for: who uses the old version, how and since when", Args: oneArgument("the secret's path"),
		ValidArgsFunction: completeRotations(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var x rotation.Explanation
			if err := c.do(cmd.Context(), http.MethodGet, "/v1/rotation/explain"+secretAt(args[0]), nil, &x); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), x, func(t *table) {
				t.row(x.Why)
				showLaggards(t, x.Laggards)
			})
		},
	}
}

func rotationForce(s *settings) *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "force PATH", Short: "End the old version although it is in use; whoever uses it loses access", Args: oneArgument("the secret's path"),
		ValidArgsFunction: completeRotations(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var x rotation.Rotation
			if err := c.do(cmd.Context(), http.MethodPost, "/v1/rotation/force"+secretAt(args[0]), map[string]string{"reason": reason}, &x); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), x, func(t *table) {
				if x.Previous > 0 {
					t.row(fmt.Sprintf("Version %d is being ended.", x.Previous))
				} else {
					t.row("The old version is gone.")
				}
				if len(x.Laggards) > 0 {
					t.row("These have lost access by it:")
				}
				showLaggards(t, x.Laggards)
			})
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why it cannot wait")
	_ = c.MarkFlagRequired("reason")
	return c
}

func rotationClear(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "clear TARGET", Short: "Let rotations begin again at a target where a new password did not log in", Args: oneArgument("the target's name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			if err := c.do(cmd.Context(), http.MethodPost, "/v1/rotation-targets/"+url.PathEscape(args[0])+"/clear", nil, nil); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "Rotations at %s go on.\n", args[0])
			return err
		},
	}
}

func rotationRemove(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "remove PATH", Short: "End the rotation of a secret; its current version stays", Args: oneArgument("the secret's path"),
		ValidArgsFunction: completeRotations(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			if err := c.do(cmd.Context(), http.MethodDelete, "/v1/rotation"+secretAt(args[0]), nil, nil); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is not rotated any more.\n", args[0])
			return err
		},
	}
}
