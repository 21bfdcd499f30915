package main

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"estover.dev/internal/policy"
)

func policyCommand(s *settings) *cobra.Command {
	c := noun("policy", "Policy as code: check, test, push, activate, roll back",
		`Policies are Rego in a directory under version control. What is pushed is checked
and tested first, and named by its digest; what is active decides every
operation. docs/reference/policy-input.md says what a policy sees.`)
	c.AddCommand(policyInit(), policyCheck(s), policyTest(s), policyPush(s), policyActivate(s), policyRollback(s), policyList(s), policyShow(s))
	return c
}

func policyInit() *cobra.Command {
	return &cobra.Command{
		Use: "init DIR", Short: "Write the starter policies into a directory, to begin from", Args: oneArgument("a directory that does not exist yet"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := os.Stat(args[0]); err == nil {
				return fmt.Errorf("%s exists already; name a directory that does not", args[0])
			}
			for _, f := range policy.Starter() {
				path := filepath.Join(args[0], filepath.FromSlash(f.Path))
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					return err
				}
				if err := os.WriteFile(path, []byte(f.Text), 0o644); err != nil {
					return err
				}
			}
			fmt.Fprintf(cmd.OutOrStdout(), "The starter policies are in %s. Change them, then: estover policy test %s\n", args[0], args[0])
			return nil
		},
	}
}

func findings(t *table, list []policy.Finding) {
	for _, f := range list {
		t.row(f.String())
	}
}

func policyCheck(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "check DIR", Short: "Check the policies in a directory, without a server", Args: oneArgument("the directory with the .rego files"),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := policy.ReadDir(args[0])
			if err != nil {
				return err
			}
			report, err := policy.Check(b)
			if err != nil {
				return err
			}
			if err := s.show(cmd.OutOrStdout(), report, func(t *table) {
				findings(t, report.Findings)
				t.pairs("Revision", report.Revision, "Files", report.Files, "Packages", report.Packages, "Cacheable", report.Cacheable, "Asks for", report.Asks)
			}); err != nil {
				return err
			}
			if !report.OK() {
				return exitCode(exitFailed)
			}
			return nil
		},
	}
}

func policyTest(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "test DIR", Short: "Run the tests of the policies in a directory, without a server", Args: oneArgument("the directory with the .rego files"),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := policy.ReadDir(args[0])
			if err != nil {
				return err
			}
			trial, err := policy.Test(cmd.Context(), b)
			if err != nil {
				return err
			}
			if err := s.show(cmd.OutOrStdout(), trial, func(t *table) {
				for _, r := range trial.Tests {
					t.row(r.Outcome, r.Name, fmt.Sprintf("%s:%d", r.File, r.Line), r.Detail)
				}
				findings(t, trial.Findings)
				t.row(fmt.Sprintf("%d tests; they reach %.0f %% of the rules' lines.", len(trial.Tests), trial.Coverage))
			}); err != nil {
				return err
			}
			if !trial.OK() {
				return exitCode(exitFailed)
			}
			return nil
		},
	}
}

func policyPush(s *settings) *cobra.Command {
	var note string
	var activate bool
	c := &cobra.Command{
		Use: "push DIR", Short: "Check and test a directory of policies and keep it as a revision", Args: oneArgument("the directory with the .rego files"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			b, err := policy.ReadDir(args[0])
			if err != nil {
				return err
			}
			var out struct {
				Revision policy.Revision `json:"revision"`
				Report   policy.Report   `json:"report"`
			}
			if err := c.do(cmd.Context(), http.MethodPost, "/v1/policies", map[string]any{"files": b, "note": note}, &out); err != nil {
				return err
			}
			if activate {
				if err := c.do(cmd.Context(), http.MethodPost, "/v1/policies/"+url.PathEscape(out.Revision.Digest)+"/activate", map[string]string{"reason": first(note, "pushed and activated")}, nil); err != nil {
					return err
				}
			}
			return s.show(cmd.OutOrStdout(), out, func(t *table) {
				findings(t, out.Report.Findings)
				t.row(out.Revision.Digest)
				if !activate && !out.Revision.Active {
					t.row("It decides nothing yet: estover policy activate " + out.Revision.Digest + " --reason …")
				}
			})
		},
	}
	c.Flags().StringVar(&note, "note", "", "what is different, for the list of revisions")
	c.Flags().BoolVar(&activate, "activate", false, "let it decide at once")
	return c
}

// policyTurn is activate or rollback.
func policyTurn(s *settings, verb, short string) *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: verb + " REVISION", Short: short, Args: oneArgument("the digest of the revision; 'estover policy list' shows them"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var a policy.Activation
			if err := c.do(cmd.Context(), http.MethodPost, "/v1/policies/"+url.PathEscape(args[0])+"/"+verb, map[string]string{"reason": reason}, &a); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), a, func(t *table) { t.row(fmt.Sprintf("%s decides since %s.", a.Digest, cell(a.At))) })
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for the record")
	_ = c.MarkFlagRequired("reason")
	return c
}

func policyActivate(s *settings) *cobra.Command {
	return policyTurn(s, "activate", "Let a revision decide; live sessions feel it with their next call")
}

func policyRollback(s *settings) *cobra.Command {
	return policyTurn(s, "rollback", "Let a revision decide that has decided before")
}

func policyList(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the pushed revisions, the newest first", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			all, err := list[policy.Revision](cmd.Context(), c, "/v1/policies", url.Values{"limit": {"200"}}, 0)
			if err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), all, func(t *table) {
				t.row("REVISION", "ACTIVE", "PUSHED", "BY", "NOTE")
				for _, r := range all {
					active := ""
					if r.Active {
						active = "yes"
					}
					t.row(r.Digest, active, r.PushedAt, r.PushedBy, r.Note)
				}
			})
		},
	}
}

func policyShow(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "show [REVISION]", Short: "Print the files of a revision (default: the active one)",
		Args: atMostOne("the digest of the revision"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			revision := "active"
			if len(args) > 0 {
				revision = args[0]
			}
			var out struct {
				Revision policy.Revision `json:"revision"`
				Files    policy.Bundle   `json:"files"`
			}
			if err := c.do(cmd.Context(), http.MethodGet, "/v1/policies/"+url.PathEscape(revision), nil, &out); err != nil {
				return err
			}
			if s.output == "json" {
				return s.show(cmd.OutOrStdout(), out, nil)
			}
			for _, f := range out.Files {
				fmt.Fprintf(cmd.OutOrStdout(), "# %s\n%s\n", f.Path, f.Text)
			}
			return nil
		},
	}
}
