package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"estover.dev"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/lease"
	"estover.dev/internal/secret/rotation"
	"estover.dev/internal/secret/target"
)

func secretEngine(s *settings) *cobra.Command {
	c := noun("engine", "Targets: systems in which credentials are made, for a task and gone with it",
		`A target is a database, a broker or a directory in which Estover makes users. It
works there with the secret that you name, whose owner says to which host it may
be sent. What users are made is said by roles (estover secret role).`)
	c.AddCommand(engineKinds(s), engineList(s), engineShow(s), engineEnable(s), engineCheck(s), engineRotateRoot(s), engineDisable(s), engineResume(s), engineRemove(s), engineGone(s), engineReconcile(s), engineRestored(s))
	return c
}

const enginesPath = "/v1/secret-engines"

func enginePath(name string) string { return enginesPath + "/" + url.PathEscape(name) }

func completeEngines(s *settings) cobra.CompletionFunc {
	return completeFrom(s, enginesPath, func(x struct{ Name, Description string }) string { return x.Name + "\t" + x.Description })
}

// A targetKind is a kind of target as the API has it.
type targetKind struct {
	Name, Title, Address, Port string
	Options, Template          []engineField
	Pair, Overlap              bool
	Lingers                    string
}

// rotatesRoot reports whether what an admin logs in with is changed when a target is enabled.
func (k targetKind) rotatesRoot() bool { return k.Pair || k.Overlap }

type engineField struct {
	Name, Help     string
	Required, Many bool
}

func (f engineField) String() string {
	switch {
	case f.Required:
		return f.Name + " (needed)"
	case f.Many:
		return f.Name + " (may be repeated)"
	}
	return f.Name
}

func engineKinds(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "kinds [KIND]", Short: "List the kinds of target, or what one kind wants to know", Args: atMostOne("a kind"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			all, err := list[targetKind](cmd.Context(), c, "/v1/secret-engine-kinds", nil, 0)
			if err != nil {
				return err
			}
			if len(args) == 0 {
				return s.show(cmd.OutOrStdout(), all, func(t *table) {
					t.row("KIND", "NAME", "ADDRESS")
					for _, k := range all {
						t.row(k.Name, k.Title, k.Address)
					}
				})
			}
			k, err := targetKindOf(all, args[0])
			if err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), k, func(t *table) {
				t.pairs("Kind", k.Name, "Name", k.Title, "Address", k.Address, "After a revocation", k.Lingers)
				t.row()
				t.row("OPTION", "")
				for _, f := range k.Options {
					t.row(f, f.Help)
				}
				t.row()
				t.row("TEMPLATE", "")
				for _, f := range k.Template {
					t.row(f, f.Help)
				}
			})
		},
	}
}

func targetKindOf(all []targetKind, name string) (targetKind, error) {
	var names []string
	for _, k := range all {
		if k.Name == name {
			return k, nil
		}
		names = append(names, k.Name)
	}
	return targetKind{}, usageError{fmt.Errorf("there is no kind of target %q; there are %s", name, strings.Join(names, ", "))}
}

// A locatedTarget is a target with what the server that answers knows of it.
type locatedTarget struct {
	target.Target
	target.State
}

func (x *locatedTarget) status() string {
	switch {
	case !x.DisabledAt.IsZero():
		return "disabled"
	case !x.SuspectAt.IsZero():
		return "to be reconciled"
	case x.Broken:
		return "does not answer"
	case !x.Ready:
		return "not checked"
	}
	return "ready"
}

func engineList(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the targets", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			all, err := list[locatedTarget](cmd.Context(), c, enginesPath, url.Values{"limit": {"200"}}, 0)
			if err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), all, func(t *table) {
				t.row("NAME", "KIND", "ADDRESS", "ADMIN", "STATUS", "CHECKED")
				for _, x := range all {
					t.row(x.Name, x.Kind, x.Address, x.Admin, x.status(), x.CheckedAt)
				}
			})
		},
	}
}

func engineShow(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "Show a target", Args: oneArgument("the target's name"), ValidArgsFunction: completeEngines(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var x locatedTarget
			if err := c.do(cmd.Context(), http.MethodGet, enginePath(args[0]), nil, &x); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), x, func(t *table) {
				t.pairs("Name", x.Name, "Id", x.ID, "Kind", x.Kind, "Address", x.Address, "Admin", x.Admin, "Owner", x.Owner, "Status", x.status(),
					"Checked", x.CheckedAt, "Disabled for", x.DisabledFor, "Description", x.Description, "Registered", x.CreatedAt)
				for _, name := range sortedKeys(x.Options) {
					t.pairs("Option "+name, x.Options[name])
				}
			})
		},
	}
}

// An enabling is what the flags say of a target.
type enabling struct {
	spec                   target.Spec
	options, template      []string
	authorities            string
	adminUser, adminSecret string
	owner                  string
	keepRoot               bool   // the admin's password stays as it was typed in
	second                 string // the second admin
}

func engineEnable(s *settings) *cobra.Command {
	var e enabling
	c := &cobra.Command{
		Use: "enable KIND NAME", Short: "Register a target, and see whether users can be made there",
		Long: `Enable registers a system as a target and tries it: it must answer, and with
--template a user is made there, logs in, is taken away and is gone. On a terminal
it asks for what the flags leave open.

The secret with which Estover works there is named with --admin. If there is none
at this path it is made, from --admin-user and --admin-password-file, and may be
sent to the target's host alone.

What somebody has typed in, somebody knows. So where the kind allows it (the last
step), a second admin is made with the rights of the first, logs in and takes over,
and the first one's password is changed to one that nobody knows. From then on both
are rotated by the risk of their secret. With --keep-root the password stays.`,
		Example: `  estover secret engine enable postgres crm-db --address db.example.com/crm \
      --admin targets/crm-db --admin-user estover --admin-password-file password.txt --template groups=crm_reader`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usageError{errors.New(cmd.CommandPath() + " needs a kind and a name: estover secret engine kinds")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			all, err := list[targetKind](cmd.Context(), c, "/v1/secret-engine-kinds", nil, 0)
			if err != nil {
				return err
			}
			k, err := targetKindOf(all, args[0])
			if err != nil {
				return err
			}
			e.spec.Kind, e.spec.Name = args[0], args[1]
			if interactive(os.Stdin) && e.spec.Address == "" {
				if err := e.ask(os.Stdin, cmd.ErrOrStderr(), k); err != nil {
					return err
				}
			}
			return e.run(cmd.Context(), s, c, cmd.OutOrStdout(), k)
		},
	}
	c.Flags().StringVar(&e.spec.Address, "address", "", "where it is, as `ADDRESS` of its kind")
	c.Flags().StringArrayVar(&e.options, "option", nil, "what else the kind wants to know, as `NAME=VALUE` or NAME=@FILE; may be repeated")
	c.Flags().StringVar(&e.authorities, "authorities", "", "a `FILE` of certificates in PEM whose holders are trusted instead of the system's")
	c.Flags().StringVar(&e.spec.Admin, "admin", "", "the `PATH` of the secret with which Estover works there")
	c.Flags().StringVar(&e.adminUser, "admin-user", "", "the user's name, for a secret that is made")
	c.Flags().StringVar(&e.adminSecret, "admin-password-file", "", "the `FILE` with the user's password, for a secret that is made; - for standard input")
	c.Flags().BoolVar(&e.keepRoot, "keep-root", false, "leave the admin's password as it was typed in")
	c.Flags().StringVar(&e.second, "second-admin", "", "the `USER` that takes turns with the admin, who may be there already (default: the admin's name with _b, who may not)")
	c.Flags().StringArrayVar(&e.template, "template", nil, "try it with a user like this, as `KEY=VALUE` or KEY=@FILE; may be repeated")
	c.Flags().StringVar(&e.owner, "owner", "", "who answers for it, as user:usr_… (default: you)")
	c.Flags().StringVar(&e.spec.Description, "description", "", "what it is")
	c.Flags().Int64Var(&e.spec.Batches, "batches", 0, "how many batches of credentials may end there at once (default: 4)")
	return c
}

// interactive reports whether somebody may sit there.
func interactive(f *os.File) bool {
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0
}

// ask asks a person for what the flags leave open.
func (e *enabling) ask(in io.Reader, out io.Writer, k targetKind) error {
	lines := bufio.NewScanner(in)
	question := func(text string, into *string) error {
		if *into != "" {
			return nil
		}
		fmt.Fprintf(out, "%s: ", text)
		if !lines.Scan() {
			return errors.Join(lines.Err(), usageError{errors.New("there was no answer; say it with flags")})
		}
		*into = strings.TrimSpace(lines.Text())
		return nil
	}
	fmt.Fprintf(out, "A target of the kind %s. Enter leaves out what is not needed.\n", k.Title)
	for e.spec.Address == "" {
		if err := question("Address ("+k.Address+")", &e.spec.Address); err != nil {
			return err
		}
	}
	given, err := keyValues("option", e.options)
	if err != nil {
		return err
	}
	for _, f := range k.Options {
		value := strings.Join(given[f.Name], "")
		if value != "" {
			continue
		}
		if err := question(f.String()+", "+f.Help, &value); err != nil {
			return err
		}
		if value != "" {
			e.options = append(e.options, f.Name+"="+value)
		}
	}
	if err := question("Path of the secret with which Estover works there, as targets/"+e.spec.Name, &e.spec.Admin); err != nil {
		return err
	}
	if e.spec.Admin != "" {
		if err := question("The user's name, unless the secret is there already", &e.adminUser); err != nil {
			return err
		}
		if e.adminUser != "" {
			if err := question("A file with the user's password", &e.adminSecret); err != nil {
				return err
			}
		}
		if k.rotatesRoot() && !e.keepRoot {
			answer, what := "", "The password that you gave is"
			if k.Pair {
				what = "A second admin is made, and the password that you gave"
			}
			if err := question(what+" changed to one that nobody knows. Keep it instead (yes; Enter for no)", &answer); err != nil {
				return err
			}
			e.keepRoot = answer == "yes" || answer == "y"
		}
	}
	if len(e.template) > 0 {
		return nil
	}
	fmt.Fprintln(out, "A user is made to see whether it works, and taken away. What may it do there?")
	for _, f := range k.Template {
		for {
			value := ""
			if err := question(f.String()+", "+f.Help, &value); err != nil {
				return err
			}
			if value == "" {
				break
			}
			e.template = append(e.template, f.Name+"="+value)
			if !f.Many {
				break
			}
		}
	}
	return nil
}

// keyValues are flags of the form KEY=VALUE or KEY=@FILE.
func keyValues(flag string, list []string) (map[string][]string, error) {
	out := map[string][]string{}
	for _, text := range list {
		name, value, ok := strings.Cut(text, "=")
		if !ok || name == "" {
			return nil, usageError{fmt.Errorf("--%s is NAME=VALUE or NAME=@FILE, not %q", flag, text)}
		}
		if file, is := strings.CutPrefix(value, "@"); is {
			b, err := os.ReadFile(file)
			if err != nil {
				return nil, err
			}
			value = withoutLineEnd(b)
		}
		out[name] = append(out[name], value)
	}
	return out, nil
}

// run makes the secret if there is none, registers the target and tries it.
func (e *enabling) run(ctx context.Context, s *settings, c *client, out io.Writer, k targetKind) error {
	options, err := keyValues("option", e.options)
	if err != nil {
		return err
	}
	template, err := keyValues("template", e.template)
	if err != nil {
		return err
	}
	e.spec.Options = map[string]string{}
	for name, values := range options {
		e.spec.Options[name] = strings.Join(values, "\n")
	}
	if e.authorities != "" {
		b, err := os.ReadFile(e.authorities)
		if err != nil {
			return err
		}
		e.spec.Authorities = string(b)
	}
	e.spec.Owner = estover.Subject(e.owner)
	if e.adminSecret != "" {
		if err := e.makeAdmin(ctx, c, k); err != nil {
			return err
		}
	}
	var x target.Target
	if err := c.do(ctx, http.MethodPost, enginesPath, e.spec, &x); err != nil {
		return err
	}
	body := map[string]any{}
	if len(template) > 0 {
		body["template"] = template
	}
	var checked lease.Checked
	if err := c.do(ctx, http.MethodPost, enginePath(x.Name)+"/check", body, &checked); err != nil {
		return err
	}
	var root *rotation.Rotation
	var unrotated error
	if checked.OK && k.rotatesRoot() && !e.keepRoot && x.Admin != "" {
		if root, unrotated = rotateRoot(ctx, c, x.Name, e.second); unrotated != nil {
			unrotated = fmt.Errorf("%s is a target, and its admin's password is the one that you gave: %w\nestover secret engine rotate-root %s tries again", x.Name, unrotated, x.Name)
		}
	}
	if err := s.show(out, struct {
		target.Target
		Check lease.Checked      `json:"check"`
		Root  *rotation.Rotation `json:"root,omitempty"`
	}{x, checked, root}, func(t *table) {
		showCheck(t, checked)
		if root != nil {
			showRoot(t, *root)
		}
		switch {
		case !checked.OK:
			t.row(fmt.Sprintf("%s is registered, and cannot be used yet: estover secret engine check %s", x.Name, x.Name))
		case unrotated == nil:
			t.row(fmt.Sprintf("%s is a target: estover secret role put NAME --target %s", x.Name, x.Name))
		}
	}); err != nil {
		return err
	}
	return errors.Join(failed(checked), unrotated)
}

// rootTime is how long it is waited for the end of a password that somebody has typed
// in, where nobody is logged in with it.
const rootTime = 20 * time.Second

// rotateRoot has the password of a target's admin changed, and waits until the one
// before is gone, or somebody is known to use it. Once there is another admin it is no
// error that its end could not be waited for.
func rotateRoot(ctx context.Context, c *client, name, second string) (*rotation.Rotation, error) {
	var r rotation.Rotation
	if err := c.do(ctx, http.MethodPost, enginePath(name)+"/rotate-root", map[string]any{"second": second}, &r); err != nil {
		return nil, err
	}
	for late := time.After(rootTime); r.Previous > 0; {
		select {
		case <-late:
			return &r, nil
		case <-ctx.Done():
			return &r, nil
		case <-time.After(250 * time.Millisecond):
		}
		var next rotation.Rotation // what is left out of the answer is nothing
		if err := c.do(ctx, http.MethodGet, "/v1/rotation"+secretAt(r.Path), nil, &next); err != nil {
			return &r, nil
		}
		r = next
	}
	return &r, nil
}

// showRoot says what has become of a password that somebody has typed in.
func showRoot(t *table, r rotation.Rotation) {
	first, as := r.Users[0], r.Users[0]+" with another password"
	if len(r.Users) > 1 {
		first, as = r.Users[0], r.Users[1]
		if r.Slot == "a" {
			first, as = as, first
		}
	}
	switch {
	case r.Previous == 0:
		t.row("done", "rotate_root", fmt.Sprintf("Estover works as %s; the password that %s had is not good any more", as, first))
	case r.LastError != "":
		t.row("waits", "rotate_root", fmt.Sprintf("Estover works as %s; the password that %s had is still good. %s It is looked again: estover rotation explain %s", as, first, r.LastError, r.Path))
	default:
		t.row("waits", "rotate_root", fmt.Sprintf("Estover works as %s; the password that %s had is changed when nobody is logged in with it: estover rotation explain %s", as, first, r.Path))
	}
}

func engineRotateRoot(s *settings) *cobra.Command {
	var second string
	c := &cobra.Command{
		Use: "rotate-root NAME", Short: "Change the password with which Estover works at a target to one that nobody knows",
		Long: `Rotate-root makes a second admin with the rights of the first. It logs in and shows
that it can change the first one's password; then Estover works as the second, and
the password that the first had dies when nobody is logged in with it. From then on
both are rotated by the risk of their secret (estover rotation), and rotate-root is
the same as rotating them now. Where no second admin can be made and a user has two
passwords at once (LDAP), the admin gets the next one beside its own, logs in with it,
and then its own is taken away.`,
		Args: oneArgument("the target's name"), ValidArgsFunction: completeEngines(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			r, err := rotateRoot(cmd.Context(), c, args[0], second)
			if err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), r, func(t *table) { showRoot(t, *r) })
		},
	}
	c.Flags().StringVar(&second, "second-admin", "", "the `USER` that takes turns with the admin, who may be there already (default: the admin's name with _b, who may not)")
	return c
}

// makeAdmin makes the secret with which Estover works at the target.
func (e *enabling) makeAdmin(ctx context.Context, c *client, k targetKind) error {
	if e.spec.Admin == "" {
		return usageError{errors.New("--admin says at which path the secret is made")}
	}
	var b []byte
	var err error
	if e.adminSecret == "-" {
		b, err = io.ReadAll(io.LimitReader(os.Stdin, 64<<10))
	} else {
		b, err = os.ReadFile(e.adminSecret)
	}
	if err != nil {
		return err
	}
	host, err := engine.Kind{Name: k.Name, Address: k.Address, Port: k.Port}.Host(e.spec.Address)
	if err != nil {
		return usageError{err}
	}
	spec := secret.Spec{Path: e.spec.Admin, Class: estover.Restricted, Risk: secret.High, Destinations: []string{host}, Description: "As whom users are made at " + e.spec.Name + "."}
	if err := c.do(ctx, http.MethodPost, "/v1/secrets", spec, nil); err != nil {
		return err
	}
	fields := map[string]string{"password": withoutLineEnd(b)}
	if e.adminUser != "" {
		fields["username"] = e.adminUser
	}
	return c.do(ctx, http.MethodPost, "/v1/secret/versions"+secretAt(e.spec.Admin), map[string]any{"fields": fields, "expect": 0}, nil)
}

// showCheck shows how the round went.
func showCheck(t *table, c lease.Checked) {
	for _, r := range c.Rights {
		switch {
		case !r.Has && r.Needed:
			t.row("missing", r.Name, r.Help)
		case !r.Has:
			t.row("not there", r.Name, r.Help)
		}
	}
	for _, step := range c.Steps {
		t.row(step.State, step.Name, step.What)
	}
}

// errCheck is the failure of a round, which has been shown.
var errCheck = errors.New("the target cannot be used like this")

func failed(c lease.Checked) error {
	if c.OK {
		return nil
	}
	return errCheck
}

func engineCheck(s *settings) *cobra.Command {
	var template []string
	c := &cobra.Command{
		Use: "check NAME", Short: "See whether a target answers, and whether users can be made there and taken away",
		Long: `Check sees whether the target answers. With --template a user is made there, logs
in, is taken away and is gone; what Estover may not do there is named. For a role
there is 'estover secret role check'.`,
		Args: oneArgument("the target's name"), ValidArgsFunction: completeEngines(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			values, err := keyValues("template", template)
			if err != nil {
				return err
			}
			body := map[string]any{}
			if len(values) > 0 {
				body["template"] = values
			}
			var checked lease.Checked
			if err := c.do(cmd.Context(), http.MethodPost, enginePath(args[0])+"/check", body, &checked); err != nil {
				return err
			}
			if err := s.show(cmd.OutOrStdout(), checked, func(t *table) { showCheck(t, checked) }); err != nil {
				return err
			}
			return failed(checked)
		},
	}
	c.Flags().StringArrayVar(&template, "template", nil, "what the user may do there, as `KEY=VALUE` or KEY=@FILE; may be repeated")
	return c
}

func engineDisable(s *settings) *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "disable NAME", Short: "Have nothing be issued at a target; what there is goes on until it ends", Args: oneArgument("the target's name"), ValidArgsFunction: completeEngines(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.changeEngine(cmd, args[0], map[string]any{"disabled": true, "reason": reason}, "Nothing is issued at %s any more.")
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for those who are refused")
	_ = c.MarkFlagRequired("reason")
	return c
}

func engineResume(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "resume NAME", Short: "Issue at a target again that was disabled", Args: oneArgument("the target's name"), ValidArgsFunction: completeEngines(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.changeEngine(cmd, args[0], map[string]any{"disabled": false}, "Credentials are issued at %s again.")
		},
	}
}

func (s *settings) changeEngine(cmd *cobra.Command, name string, change map[string]any, done string) error {
	c, err := s.client()
	if err != nil {
		return err
	}
	var x target.Target
	if err := c.do(cmd.Context(), http.MethodPatch, enginePath(name), change, &x); err != nil {
		return err
	}
	return s.show(cmd.OutOrStdout(), x, func(t *table) { t.row(fmt.Sprintf(done, x.Name)) })
}

func engineRemove(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "remove NAME", Short: "Remove a target at which there are no roles and leases any more", Args: oneArgument("the target's name"), ValidArgsFunction: completeEngines(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			if err := c.do(cmd.Context(), http.MethodDelete, enginePath(args[0]), nil, nil); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), map[string]string{"removed": args[0]}, func(t *table) { t.row(args[0] + " is removed.") })
		},
	}
}

func engineReconcile(s *settings) *cobra.Command {
	var drop, unlisted bool
	var reason string
	c := &cobra.Command{
		Use: "reconcile NAME", Short: "Compare the users at a target with the leases here", Args: oneArgument("the target's name"), ValidArgsFunction: completeEngines(s),
		Long: `Reconcile looks for users at the target that Estover made and that no lease knows,
as there are after a restore from a backup. They are locked at once and taken away
an hour later, or now with --drop. Leases whose users are not there end.

Some targets cannot list their users. There it says what nobody can see, and issues
again with --unlisted and a --reason.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var r lease.Reconciled
			if err := c.do(cmd.Context(), http.MethodPost, enginePath(args[0])+"/reconcile", map[string]any{"drop": drop, "unlisted": unlisted, "reason": reason}, &r); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), r, func(t *table) {
				if r.Unseen != "" {
					t.row(r.Unseen)
					t.row(fmt.Sprintf("Credentials are issued at %s again.", r.Target))
					return
				}
				t.row(fmt.Sprintf("%d users of ours are at %s. %d leases had none there, and end.", r.Users, r.Target, r.Lost))
				if len(r.Strays) > 0 {
					t.row()
					t.row("NO LEASE KNOWS", "LOCKED", "GONE AT", "LAST ERROR")
				}
				for _, x := range r.Strays {
					t.row(x.User, x.LockedAt, x.DropAt, x.LastError)
				}
			})
		},
	}
	c.Flags().BoolVar(&drop, "drop", false, "take users away at once that no lease knows")
	c.Flags().BoolVar(&unlisted, "unlisted", false, "issue again where users cannot be listed, although some may be there that no lease knows")
	c.Flags().StringVar(&reason, "reason", "", "with --unlisted: why that may be, for the record")
	return c
}

func engineRestored(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "restored", Short: "Say that the server was restored from a backup: nothing is issued before each target is reconciled", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var r struct {
				Targets int64 `json:"targets"`
			}
			if err := c.do(cmd.Context(), http.MethodPost, enginesPath+"/restored", nil, &r); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), r, func(t *table) {
				t.row(fmt.Sprintf("Nothing is issued at %d targets before each is reconciled: estover secret engine reconcile NAME", r.Targets))
			})
		},
	}
}

func engineGone(s *settings) *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "declare-gone NAME", Short: "Say that a target is no more, so that its leases have ended; it takes two people",
		Long: `Declare-gone ends the leases of a target that are being revoked and cannot be taken
away there, because it is no more. Two people say so, one after the other. Nobody
checks it; the record says that.`,
		Args: oneArgument("the target's name"), ValidArgsFunction: completeEngines(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var d lease.Declared
			if err := c.do(cmd.Context(), http.MethodPost, enginePath(args[0])+"/declare-gone", map[string]any{"reason": reason}, &d); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), d, func(t *table) {
				if d.Ended > 0 {
					t.row(fmt.Sprintf("%d leases have ended by your word.", d.Ended))
				}
				if d.Waiting > 0 {
					t.row(fmt.Sprintf("%d leases wait for another person to say the same.", d.Waiting))
				}
				if d.Ended+d.Waiting == 0 {
					t.row("No lease there is being revoked.")
				}
			})
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why nobody can take the credentials away there any more")
	_ = c.MarkFlagRequired("reason")
	return c
}
