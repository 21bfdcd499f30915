package main

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"estover.dev/internal/api"
	"estover.dev/internal/secret/health"
)

func doctorCommand(s *settings) *cobra.Command {
	c := &cobra.Command{
		Use: "doctor", Short: "Say what is wrong and what to do", Args: noArguments,
		Long: `Doctor looks from here at the server, its certificate, its clock and your login,
and has the server look at itself. The exit code is 0 only if all is well.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			checks := examine(cmd, c)
			if err := s.show(cmd.OutOrStdout(), checks, func(t *table) {
				for _, k := range checks {
					verdict := "ok"
					if !k.OK {
						verdict = "WRONG"
					}
					t.row(verdict, k.Name, k.Detail)
					if k.Remedy != "" {
						t.row("", "", "→ "+k.Remedy)
					}
				}
			}); err != nil {
				return err
			}
			for _, k := range checks {
				if !k.OK {
					return exitCode(exitFailed)
				}
			}
			return nil
		},
	}
	c.AddCommand(doctorTargets(s))
	return c
}

func doctorTargets(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "targets [NAME]", Short: "Look at the targets at which credentials are made, or at one",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageError{fmt.Errorf("%s takes one target at the most", cmd.CommandPath())}
			}
			return nil
		},
		Long: `Doctor targets asks each target what one wants to know before anything is issued
there, above all after a restore: whether it answers; with which versions of its
secret the admin logs in, the newest first; how far its clock is off; which rights
the admin lacks; which credentials should be gone and are not; which users bear our
mark without a lease; and when the admin's secret is rotated next. It changes
nothing. The exit code is 0 only if all is well.`,
		Example: "  estover doctor targets\n  estover doctor targets orders --output json",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			in := map[string]string{}
			if len(args) > 0 {
				in["target"] = args[0]
			}
			var all page[health.Report]
			if err := c.do(cmd.Context(), http.MethodPost, "/v1/doctor/targets", in, &all); err != nil {
				return err
			}
			ill := 0
			if err := s.show(cmd.OutOrStdout(), all.Items, func(t *table) {
				t.row("", "TARGET", "KIND", "ANSWERS", "ADMIN LOGS IN", "CLOCK", "LACKS", "OVERDUE", "WITHOUT LEASE", "NEXT ROTATION")
				for _, r := range all.Items {
					verdict, answers := "ok", "yes"
					if !r.OK {
						verdict = "WRONG"
					}
					if !r.Reachable {
						answers = "no"
					}
					var logins []string
					for _, l := range r.Logins {
						how := "no"
						if l.OK {
							how = "yes"
						}
						if l.Version > 0 {
							how = fmt.Sprintf("%d %s: %s", l.Version, l.User, how)
						}
						logins = append(logins, how)
					}
					t.row(verdict, r.Target, r.Kind, answers, strings.Join(logins, ", "), (time.Duration(r.Skew) * time.Microsecond).Round(time.Millisecond), len(r.Missing), r.Overdue, len(r.Strangers), r.Next)
					for _, m := range r.Missing {
						if !m.Needed {
							t.row("", "", "", "The admin may not "+m.Name+".")
							t.row("", "", "", "→ "+m.Help)
						}
					}
					for _, f := range r.Findings {
						t.row("", "", "", f.What)
						t.row("", "", "", "→ "+f.Remedy)
					}
				}
			}); err != nil {
				return err
			}
			for _, r := range all.Items {
				if !r.OK {
					ill++
				}
			}
			if ill > 0 {
				return exitCode(exitFailed)
			}
			return nil
		},
	}
}

// examine looks from outside first; if the server cannot be talked to, that is
// all there is to say.
func examine(cmd *cobra.Command, c *client) []api.Check {
	req, err := http.NewRequestWithContext(cmd.Context(), http.MethodGet, c.addr+"/readyz", nil)
	if err != nil {
		return []api.Check{{Name: "address", Detail: err.Error(), Remedy: "Give the server's address with --addr or ESTOVER_ADDR."}}
	}
	begun := time.Now()
	res, err := c.http.Do(req)
	if err != nil {
		return []api.Check{{Name: "server", Detail: (&unreachable{c.addr, err}).Error(), Remedy: "Start it, or give its address and authority with --addr and --ca."}}
	}
	_ = res.Body.Close()
	checks := []api.Check{{Name: "server", OK: res.StatusCode < 300, Detail: fmt.Sprintf("%s answers in %s", c.addr, time.Since(begun).Round(time.Millisecond))}}
	if res.StatusCode >= 300 {
		checks[0].Detail, checks[0].Remedy = "It answers that it is not ready.", "Look at its log: its database does not answer."
	}
	if u, err := url.Parse(c.addr); err == nil && u.Scheme == "https" && res.TLS != nil && len(res.TLS.PeerCertificates) > 0 {
		left := time.Until(res.TLS.PeerCertificates[0].NotAfter)
		k := api.Check{Name: "certificate", OK: left > 72*time.Hour, Detail: fmt.Sprintf("good for %d days", int(left.Hours()/24))}
		if !k.OK {
			k.Remedy = "Renew it; the server reads the new file by itself."
		}
		checks = append(checks, k)
	}
	if at, err := http.ParseTime(res.Header.Get("Date")); err == nil {
		skew := time.Since(at).Abs()
		k := api.Check{Name: "clock", OK: skew < 10*time.Second, Detail: fmt.Sprintf("the server's and this one differ by %s", skew.Round(time.Second))}
		if !k.OK {
			k.Remedy = "Set both by NTP: tokens live for minutes, and signatures are refused that are a minute off."
		}
		checks = append(checks, k)
	}
	var own page[api.Check]
	err = c.do(cmd.Context(), http.MethodGet, "/v1/doctor", nil, &own)
	var p *problem
	switch {
	case errors.As(err, &p) && p.Status == http.StatusUnauthorized:
		return append(checks, api.Check{Name: "login", Detail: "You are not logged in, so the server says nothing about itself.", Remedy: "estover login"})
	case errors.As(err, &p) && p.Status == http.StatusForbidden:
		return append(checks, api.Check{Name: "login", OK: true, Detail: "You may not ask the server about itself."})
	case err != nil:
		return append(checks, api.Check{Name: "login", Detail: err.Error(), Remedy: "Look at the server's log."})
	}
	return append(append(checks, api.Check{Name: "login", OK: true, Detail: "you are logged in"}), own.Items...)
}
