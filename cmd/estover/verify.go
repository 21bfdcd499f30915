package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"estover.dev/attest"
)

func verifyCommand() *cobra.Command {
	var trustFile string
	var asJSON *string
	c := &cobra.Command{
		Use:   "verify FILE",
		Short: "Check a receipt, a session's evidence or a certificate of containment, offline",
		Long: `Verify checks a file of evidence without any network: that every byte is as it
was written, that the statements are signed by an enrolled gateway and stand in
the log that the checkpoint signs, that the grants cover the calls, that people
have approved and signed what had to be, and that no call of the session is
missing. Each step is PASS, FAIL or NOT DISCLOSED.

Whose keys count is said by a trust policy, which you should have got from
somewhere else than the file: 'estover audit trust' prints the server's. Without
--trust a session's export is checked against the policy inside it, which shows
that it is whole and not that it is genuine.

The exit code is 0 only if no step failed.`,
		Example: `  estover evidence export ses_… > session.zip
  estover audit trust > trust.policy
  estover verify session.zip --trust trust.policy`,
		Args: oneArgument("the file to verify"),
		RunE: func(cmd *cobra.Command, args []string) error {
			file, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			var trust *attest.Trust
			if trustFile != "" {
				text, err := os.ReadFile(trustFile)
				if err != nil {
					return fmt.Errorf("reading the trust policy: %w", err)
				}
				if trust, err = attest.ParseTrust(text); err != nil {
					return fmt.Errorf("%s: %w", trustFile, err)
				}
			}
			report := attest.Verify(file, trust)
			s := settings{output: *asJSON}
			if s.output == "json" {
				if err := s.show(cmd.OutOrStdout(), report, nil); err != nil {
					return err
				}
			} else if _, err := fmt.Fprintln(cmd.OutOrStdout(), report); err != nil {
				return err
			}
			if trust == nil && !report.OK() {
				fmt.Fprintln(cmd.ErrOrStderr(), "Whose keys count is said by a trust policy: estover audit trust > trust.policy, and then --trust trust.policy.")
			}
			if !report.OK() {
				return exitCode(exitFailed)
			}
			return nil
		},
	}
	c.Flags().StringVar(&trustFile, "trust", "", "trust policy: the keys of log, witnesses and gateways")
	asJSON = c.Flags().StringP("output", "o", "table", "how to show the report: table or json")
	return c
}

// oneArgument demands exactly one argument, and says what it is.
func oneArgument(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch len(args) {
		case 1:
			return nil
		case 0:
			return usageError{errors.New(cmd.CommandPath() + " needs " + what)}
		}
		return usageError{fmt.Errorf("%s takes one argument, %s, but got %d", cmd.CommandPath(), what, len(args))}
	}
}
