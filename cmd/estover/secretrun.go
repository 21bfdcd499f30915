package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"estover.dev/internal/secret"
	"estover.dev/internal/secret/lease"
)

func secretRun(s *settings) *cobra.Command {
	var r lending
	c := &cobra.Command{
		Use: "run [flags] -- COMMAND [ARGUMENT…]", Short: "Run a program with credentials in its environment that end with it",
		Long: `Run gets a credential of each role, puts its parts into the environment of COMMAND,
and takes it back when COMMAND ends, however it ends. While COMMAND runs the
credential is extended every few minutes: if this launcher is killed, it ends by
itself soon after. If it is taken back meanwhile, COMMAND is told to stop (SIGTERM),
and ended ten seconds later. Signals are passed on in the same way.

The parts are called ROLE_USERNAME and ROLE_PASSWORD, in capitals, unless --env
says otherwise. --secret hands a static secret down in the same way; that is a
reading of its value, which the record says.

With the agent's credentials (ESTOVER_CLIENT_ID and ESTOVER_CLIENT_SECRET, or
ESTOVER_CLIENT_SECRET_FILE) a session is opened for COMMAND, and ends with it.
Otherwise it is you who gets the credentials, for the purpose that you name.

COMMAND gets neither those nor ESTOVER_TOKEN: what it has ends with it.

What a program has in its environment has left Estover. Where it can, let it work
with handles (estover run): then it has nothing to lose.`,
		Example: `  estover secret run --role crm-reader --purpose "month end" -- psql -h db.example.com crm
  estover secret run --role crm-reader --env PGUSER=username --env PGPASSWORD=password -- python report.py
  estover secret run --secret API_KEY=crm/api-key --purpose "a test" -- ./probe`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{errors.New("run needs a command, after two dashes: estover secret run --role ROLE -- COMMAND")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			code, err := r.run(cmd.Context(), s, args)
			if err != nil {
				return err
			}
			if code != 0 {
				return exitCode(code)
			}
			return nil
		},
	}
	c.Flags().SetInterspersed(false)
	c.Flags().StringArrayVar(&r.roles, "role", nil, "a credential of this `ROLE`; may be repeated")
	c.Flags().StringArrayVar(&r.env, "env", nil, "what part of it is called, as `NAME=PART`, or NAME=ROLE.PART with several roles; may be repeated")
	c.Flags().StringArrayVar(&r.secrets, "secret", nil, "a static secret, as `[NAME=]PATH[#FIELD]`; may be repeated")
	c.Flags().StringVar(&r.purpose, "purpose", os.Getenv("ESTOVER_PURPOSE"), "what it is for (ESTOVER_PURPOSE)")
	c.Flags().DurationVar(&r.ttl, "ttl", 10*time.Minute, "for how long the credential outlives a launcher that is killed")
	c.Flags().BoolVarP(&r.quiet, "quiet", "q", false, "say nothing about what was lent")
	_ = c.RegisterFlagCompletionFunc("role", completeRoles(s))
	return c
}

// A lending is one `estover secret run`.
type lending struct {
	roles, env, secrets []string
	purpose             string
	ttl                 time.Duration
	quiet               bool

	client *client
	leases []lease.Lease
}

func (r *lending) say(format string, args ...any) {
	if !r.quiet {
		fmt.Fprintf(os.Stderr, "estover: "+format+"\n", args...)
	}
}

func (r *lending) run(ctx context.Context, s *settings, args []string) (code int, err error) {
	if len(r.roles)+len(r.secrets) == 0 {
		return 0, usageError{errors.New("say what is lent: --role ROLE or --secret PATH")}
	}
	program, err := exec.LookPath(args[0])
	if err != nil {
		return 0, fmt.Errorf("%s cannot be run: %w", args[0], err)
	}
	if r.client, err = s.client(); err != nil {
		return 0, err
	}
	end, err := r.begin(ctx)
	if err != nil {
		return 0, err
	}
	// What was lent is taken back whatever happens from here on.
	defer func() {
		after, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
		defer cancel()
		if failed := end(after); failed != nil && err == nil {
			r.say("what was lent could not be taken back, and ends by itself: %v", failed)
		}
	}()
	set, err := r.values(ctx)
	if err != nil {
		return 0, err
	}
	env := handedDown(os.Environ(), set)
	for _, x := range r.leases {
		r.say("%s until the command ends: user %s", x.Role, x.User)
	}
	return r.supervise(ctx, &exec.Cmd{Path: program, Args: args, Env: env, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr})
}

// handedDown is the environment of the command: what was lent, and what there is but
// for that by which more could be had, also when the command has ended.
func handedDown(own []string, lent map[string]string) []string {
	env := slices.DeleteFunc(own, func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return name == "ESTOVER_TOKEN" || name == "ESTOVER_CLIENT_SECRET" || name == "ESTOVER_CLIENT_SECRET_FILE"
	})
	for _, name := range sortedKeys(lent) {
		env = append(env, name+"="+lent[name]) // the last of a name counts
	}
	return env
}

// begin opens a session for the command if it is an agent that runs it. end gives
// everything back.
func (r *lending) begin(ctx context.Context) (end func(context.Context) error, err error) {
	c := r.client
	back := func(ctx context.Context) (err error) {
		for _, x := range r.leases {
			err = errors.Join(err, c.do(ctx, http.MethodPost, "/v1/leases/revoke", lease.Which{ID: x.ID}, nil))
		}
		return err
	}
	if os.Getenv("ESTOVER_CLIENT_ID") == "" {
		if r.purpose == "" {
			return nil, usageError{errors.New("say with --purpose what the credentials are for")}
		}
		return back, nil
	}
	l := launch{purpose: r.purpose, quiet: r.quiet}
	if err := l.authenticate(ctx, c); err != nil {
		return nil, err
	}
	if l.purpose == "" {
		var a struct {
			Name     string   `json:"name"`
			Purposes []string `json:"purposes"`
		}
		if err := c.do(ctx, http.MethodGet, "/v1/agents/"+url.PathEscape(l.agent), nil, &a); err != nil {
			return nil, err
		}
		if len(a.Purposes) != 1 {
			return nil, usageError{fmt.Errorf("%s has several purposes, %s; say with --purpose which the command is for", a.Name, strings.Join(a.Purposes, ", "))}
		}
		l.purpose = a.Purposes[0]
	}
	var o struct{ Session struct{ ID string } }
	in := map[string]any{"agent": l.agent, "purpose": l.purpose, "task": "a command with credentials in its environment", "idle_seconds": int(max(r.ttl, time.Minute).Seconds())}
	if err := c.do(ctx, http.MethodPost, "/v1/sessions", in, &o); err != nil {
		return nil, err
	}
	id := o.Session.ID
	finish := func(ctx context.Context) error {
		// The end of the session is the end of what was made for it.
		return c.do(ctx, http.MethodPost, "/v1/sessions/"+url.PathEscape(id)+"/end", map[string]string{"cause": "the command ended"}, nil)
	}
	l.session = id
	if err := l.authenticate(ctx, c); err != nil { // from here on in the session
		return nil, errors.Join(err, finish(context.WithoutCancel(ctx)))
	}
	c.renew = func(ctx context.Context) error { return l.authenticate(ctx, c) }
	return finish, nil
}

// values are what the environment gets: of each role its parts, and secrets.
func (r *lending) values(ctx context.Context) (map[string]string, error) {
	set := map[string]string{}
	parts := map[string]map[string]string{} // by role
	for _, role := range r.roles {
		var x issuedLease
		in := map[string]any{"role": role, "ttl_seconds": int64(r.ttl.Seconds()), "purpose": r.purpose}
		if err := r.client.do(ctx, http.MethodPost, "/v1/leases", in, &x); err != nil {
			return nil, err
		}
		r.leases = append(r.leases, x.Lease)
		if len(x.Values) == 0 {
			return nil, fmt.Errorf("the gateway alone opens the credentials of %s; for a program's environment a role says --delivery plaintext", role)
		}
		parts[role] = x.Values
	}
	named := map[string]bool{} // roles whose parts have names
	for _, text := range r.env {
		name, part, err := pair("env", text)
		if err != nil {
			return nil, err
		}
		role := ""
		if i := strings.LastIndex(part, "."); i >= 0 {
			role, part = part[:i], part[i+1:]
		} else if len(r.roles) == 1 {
			role = r.roles[0]
		}
		v, there := parts[role][part]
		if !there {
			return nil, usageError{fmt.Errorf("--env %s names no part of what is lent; %s", text, offered(parts))}
		}
		set[name], named[role] = v, true
	}
	for role, values := range parts {
		if named[role] {
			continue
		}
		for part, v := range values {
			set[variable(role+"_"+part)] = v
		}
	}
	for _, text := range r.secrets {
		name, where, ok := strings.Cut(text, "=")
		if !ok {
			name, where = "", text
		}
		at, field, _ := strings.Cut(where, "#")
		if name == "" {
			name = variable(path.Base(at))
			if field != "" {
				name = variable(path.Base(at) + "_" + field)
			}
		}
		var p struct {
			secret.Version
			Fields map[string]string `json:"fields"`
		}
		if err := r.client.do(ctx, http.MethodPost, "/v1/secret/read"+secretAt(at), map[string]any{"purpose": first(r.purpose, "a command's environment")}, &p); err != nil {
			return nil, err
		}
		v, there := p.Fields[first(field, secret.DefaultField)]
		if !there {
			return nil, fmt.Errorf("%s has no field %q; it has %s", at, first(field, secret.DefaultField), strings.Join(sortedKeys(p.Fields), ", "))
		}
		set[name] = v
	}
	for name := range set {
		if strings.ContainsAny(name, "=\x00") || name == "" {
			return nil, usageError{fmt.Errorf("%q cannot be the name of a variable", name)}
		}
	}
	return set, nil
}

// offered says what parts there are.
func offered(parts map[string]map[string]string) string {
	var all []string
	for _, role := range sortedKeys(parts) {
		for _, part := range sortedKeys(parts[role]) {
			all = append(all, role+"."+part)
		}
	}
	return "there are " + strings.Join(all, ", ")
}

// variable is a name of a variable that is made of another name.
func variable(name string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, name)
}

// supervise runs the command and has what was lent go on as long as it does.
func (r *lending) supervise(ctx context.Context, cmd *exec.Cmd) (int, error) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("running %s: %w", cmd.Args[0], err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t := time.NewTicker(max(r.ttl/3, time.Second))
	defer t.Stop()
	var hard <-chan time.Time
	for {
		select {
		case err := <-ended:
			return exitOf(cmd, err), nil
		case sig := <-signals:
			// A terminal tells the whole group; what reaches us alone is passed on.
			_ = cmd.Process.Signal(sig)
			if hard == nil {
				hard = time.After(stoppedTime)
			}
		case <-hard:
			_ = cmd.Process.Kill()
		case <-t.C:
			if r.extend(ctx) && hard == nil {
				_ = cmd.Process.Signal(syscall.SIGTERM)
				hard = time.After(stoppedTime)
			}
		}
	}
}

// extend has what was lent go on. It reports whether some of it has been taken back,
// so that the command has no more to do.
func (r *lending) extend(ctx context.Context) (gone bool) {
	for i := range r.leases {
		x := &r.leases[i]
		if x.ExpiresAt.IsZero() {
			continue
		}
		limited, cancel := context.WithTimeout(ctx, 10*time.Second)
		var now lease.Lease
		err := r.client.do(limited, http.MethodPost, "/v1/leases/"+url.PathEscape(x.ID)+"/renew", map[string]any{"ttl_seconds": int64(r.ttl.Seconds()), "purpose": r.purpose}, &now)
		cancel()
		var p *problem
		switch {
		case err == nil:
			x.ExpiresAt = now.ExpiresAt
		case errors.As(err, &p) && p.Code == lease.ErrMaximum.Code:
			r.say("the credential of %s ends at %s and goes on no longer", x.Role, x.ExpiresAt.Local().Format(time.TimeOnly))
			x.ExpiresAt = time.Time{} // said once
		case errors.As(err, &p) && p.Code == lease.ErrNotLive.Code, !time.Now().Before(x.ExpiresAt):
			r.say("the credential of %s has been taken back, so the command is ended: %v", x.Role, err)
			x.ExpiresAt, gone = time.Time{}, true
		default:
			r.say("the credential of %s could not be extended, and ends at %s: %v", x.Role, x.ExpiresAt.Local().Format(time.TimeOnly), err)
		}
	}
	return gone
}
