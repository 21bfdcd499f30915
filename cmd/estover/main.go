// Estover is the identity, secrets and least-privilege control plane for AI
// agents, in one program: the server, the command line that manages it, the
// launcher that agents run under, and the verifier of its evidence.
//
// Each file of this package is a noun of the command line. What a command
// prints on standard output is its answer, a table or with --output json the
// API's own words; everything else goes to standard error. The exit code is 0
// if it was done, and otherwise one of exit.go.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the build.
var version = "dev"

func main() { os.Exit(run()) }

func run() int {
	hide()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return perform(ctx, os.Args[1:], os.Stdout, os.Stderr)
}

// perform does what a command line says. It gives the exit code.
func perform(ctx context.Context, args []string, out, errs io.Writer) int {
	root := command(out)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var code exitCode
	if errors.As(err, &code) {
		return int(code)
	}
	fmt.Fprintln(errs, "estover: "+sentence(err))
	return codeOf(err)
}

// command is the whole command line.
func command(out io.Writer) *cobra.Command {
	root := &cobra.Command{
		Use:   "estover",
		Short: "Identity, secrets and least privilege for AI agents",
		Long: `Estover gives every AI agent an identity of its own, exactly the access that its
present task needs, no secret to lose, and a record that anyone can verify.

Start a server, log in, say what there is, and run an agent under it:

  estover serve
  estover login --token-file estover-data/bootstrap-token
  estover apply -f company.yaml
  estover run --agent invoices-bot --purpose billing -- python agent.py`,
		SilenceUsage: true, SilenceErrors: true, Version: version,
		Args: knownCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetOut(out)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddGroup(
		&cobra.Group{ID: "start", Title: "Getting started:"},
		&cobra.Group{ID: "things", Title: "What there is:"},
		&cobra.Group{ID: "act", Title: "Acting and looking:"},
		&cobra.Group{ID: "evidence", Title: "Evidence:"},
	)
	var s settings
	s.flags(root)
	for _, group := range []struct {
		id   string
		cmds []*cobra.Command
	}{
		{"start", []*cobra.Command{serveCommand(), loginCommand(&s), logoutCommand(&s), applyCommand(&s), runCommand(&s), doctorCommand(&s), unsealCommand(&s)}},
		{"things", []*cobra.Command{agentCommand(&s), personCommand(&s), providerCommand(&s), resourceCommand(&s), grantCommand(&s), accessCommand(&s), channelCommand(&s), secretCommand(&s), pkiCommand(&s), sshCommand(&s), transitCommand(&s), rotationCommand(&s), connectionCommand(&s), policyCommand(&s), trustCommand(&s), registrationCommand(&s), keyCommand(&s), rootKeyCommand(&s), detailTypeCommand(&s), tenantCommand(&s)}},
		{"act", []*cobra.Command{sessionCommand(&s), tokenCommand(&s), containCommand(&s), rotateCommand(&s), drillCommand(&s), breakGlassCommand(&s), whyCommand(&s)}},
		{"evidence", []*cobra.Command{eventCommand(&s), evidenceCommand(&s), auditCommand(&s), verifyCommand()}},
	} {
		for _, c := range group.cmds {
			c.GroupID = group.id
			root.AddCommand(c)
		}
	}
	root.AddCommand(heirCommand(&s))
	return root
}
