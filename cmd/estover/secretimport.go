package main

import (
	"fmt"
	"net/http"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"estover.dev"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/upstream"
)

func secretImport(s *settings) *cobra.Command {
	var o upstream.Order
	var options []string
	var authorities, class, risk, owner string
	c := &cobra.Command{
		Use: "import [KIND ADDRESS]", Short: "Copy secrets from another vault",
		Long: `Import copies the current versions of secrets from another vault: those whose
paths begin with --from, to paths that begin with --to instead. It logs in there
with a secret of yours (--login), which has to allow the other vault as a
destination; or as the store of yours does that you name (--store).

Run it again when you like. What is here as it is there is not read again, what
has changed there is copied again, and what was changed here is left alone and
named. KIND is one of:

  vault   OpenBao and HashiCorp Vault, an engine kv of version 2
          (options mount, namespace); --login has a token
  aws     AWS Secrets Manager (option region); --login has the fields username,
          the id of an access key, and password, the secret key
  azure   Azure Key Vault; --login has an access token
  google  Google Secret Manager (option project); --login has an access token

What was in another vault may have been read there: rotate what matters.`,
		Example: `  estover secret create vault/token --destination vault.example.com:8200
  estover secret put vault/token < token.txt
  estover secret import vault https://vault.example.com:8200 --login vault/token --option mount=team/kv --from crm/ --to crm/ --dry-run
  estover secret import --store team --from crm/ --to crm/`,
		Args: func(cmd *cobra.Command, args []string) error {
			if o.Store != "" && len(args) > 0 {
				return usageError{fmt.Errorf("%s takes the name of a store, or the kind of the other vault and its address", cmd.CommandPath())}
			}
			if o.Store == "" && len(args) != 2 {
				return usageError{fmt.Errorf("%s needs the kind of the other vault and its address, or --store", cmd.CommandPath())}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			if o.Store == "" {
				o.Kind, o.Address = args[0], args[1]
			}
			o.Class, o.Risk, o.Owner = estover.Class(class), secret.Risk(risk), estover.Subject(owner)
			for _, option := range options {
				name, value, ok := strings.Cut(option, "=")
				if !ok || name == "" {
					return usageError{fmt.Errorf("an option is NAME=VALUE, not %q", option)}
				}
				if o.Options == nil {
					o.Options = map[string]string{}
				}
				o.Options[name] = value
			}
			if authorities != "" {
				pem, err := os.ReadFile(authorities)
				if err != nil {
					return err
				}
				o.Authorities = string(pem)
			}
			all := upstream.Report{Items: []upstream.Item{}}
			for {
				var r upstream.Report
				if err := c.do(cmd.Context(), http.MethodPost, "/v1/secret-imports", o, &r); err != nil {
					return err
				}
				all.Items = append(all.Items, r.Items...)
				if o.After = r.Next; r.Next == "" {
					break
				}
			}
			failed := 0
			err = s.show(cmd.OutOrStdout(), all, func(t *table) {
				t.row("FROM", "TO", "OUTCOME", "VERSION THERE", "REASON")
				for _, i := range all.Items {
					if i.Outcome == upstream.Failed {
						failed++
					}
					t.row(i.From, i.To, string(i.Outcome), i.Version, i.Reason)
				}
			})
			if err == nil && failed > 0 {
				err = fmt.Errorf("%d of %d secrets could not be imported", failed, len(all.Items))
			}
			return err
		},
	}
	f := c.Flags()
	f.StringVar(&o.Store, "store", "", "the name of a store that is registered, in the place of KIND, ADDRESS, --login and --option")
	f.StringVar(&o.Login, "login", "", "the path of the secret that logs in there")
	f.StringVar(&o.From, "from", "", "what the paths there begin with")
	f.StringVar(&o.To, "to", "", "what the paths here begin with instead")
	f.BoolVar(&o.DryRun, "dry-run", false, "read no value and write nothing, but say what would be done")
	f.StringArrayVar(&options, "option", nil, "an option of the kind, NAME=VALUE; may be repeated")
	f.StringVar(&authorities, "authorities", "", "a file with the certificates that the other vault is known by")
	f.StringArrayVar(&o.Destinations, "destination", nil, "a host that the secrets may be sent to; may be repeated")
	f.StringVar(&class, "class", "", "the class of data that they open (confidential)")
	f.StringVar(&risk, "risk", "", "their risk: low, standard or high (standard)")
	f.StringVar(&owner, "owner", "", "who answers for them (you)")
	_ = c.RegisterFlagCompletionFunc("store", completeStores(s))
	return c
}
