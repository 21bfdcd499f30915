package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"estover.dev"
	"estover.dev/internal/secret"
)

func secretCommand(s *settings) *cobra.Command {
	c := noun("secret", "Secrets: what resources demand and agents never see",
		`A secret has a path, versions, and the hosts that it may be sent to. The gateway
puts it into requests; no agent gets it. To read a value is a permission of its
own and an event of its own.`)
	c.AddCommand(secretList(s), secretShow(s), secretCreate(s), secretPut(s), secretPatch(s), secretRollback(s), secretGet(s), secretMetadata(s), secretImport(s),
		secretMove(s, "delete", "Take versions out of use; they can be brought back"),
		secretMove(s, "undelete", "Bring deleted versions back"),
		secretMove(s, "destroy", "Destroy the bytes of versions, for good"), secretUses(s), secretIdentify(s),
		secretEngine(s), secretRole(s), secretLease(s), secretRun(s), secretStore(s), secretLink(s), secretUnlink(s), secretSync(s))
	return c
}

func completeSecrets(s *settings) cobra.CompletionFunc {
	return completeFrom(s, "/v1/secrets", func(x struct{ Path, Description string }) string { return x.Path + "\t" + x.Description })
}

func secretAt(path string) string { return "?path=" + url.QueryEscape(path) }

func secretList(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "list [PREFIX]", Short: "List secrets, never their values", Args: atMostOne("what the paths begin with"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			q := url.Values{"limit": {"200"}}
			if len(args) > 0 {
				q.Set("prefix", args[0])
			}
			all, err := list[secret.Secret](cmd.Context(), c, "/v1/secrets", q, 0)
			if err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), all, func(t *table) {
				t.row("PATH", "VERSION", "CLASS", "RISK", "OWNER", "DESTINATIONS", "CHANGED")
				for _, x := range all {
					t.row(x.Path, x.CurrentVersion, x.Class, x.Risk, x.Owner, x.Destinations, x.UpdatedAt)
				}
			})
		},
	}
}

// A describedSecret is a secret with its versions.
type describedSecret struct {
	secret.Secret
	Versions []secret.Version `json:"versions"`
}

func secretShow(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "show PATH", Short: "Show a secret and its versions, never their values", Args: oneArgument("the secret's path"),
		ValidArgsFunction: completeSecrets(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var x describedSecret
			if err := c.do(cmd.Context(), http.MethodGet, "/v1/secret"+secretAt(args[0]), nil, &x); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), x, func(t *table) {
				t.pairs("Path", x.Path, "Id", x.ID, "Class", x.Class, "Risk", x.Risk, "Owner", x.Owner, "Destinations", x.Destinations, "Description", x.Description, "Created", x.CreatedAt)
				t.row()
				t.row("VERSION", "STATE", "FIELDS", "CREATED", "BY")
				for _, v := range slices.Backward(x.Versions) {
					t.row(v.N, stateOf(v), v.Fields, v.CreatedAt, v.CreatedBy)
				}
			})
		},
	}
}

func secretCreate(s *settings) *cobra.Command {
	var spec secret.Spec
	var class, risk, owner string
	c := &cobra.Command{
		Use: "create PATH", Short: "Make a secret without a value", Args: oneArgument("the secret's path, as crm/api-key"),
		Example: "  estover secret create crm/api-key --destination crm.example.com --class confidential\n  estover secret put crm/api-key < key.txt",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			spec.Path, spec.Class, spec.Risk, spec.Owner = args[0], estover.Class(class), secret.Risk(risk), estover.Subject(owner)
			var x secret.Secret
			if err := c.do(cmd.Context(), http.MethodPost, "/v1/secrets", spec, &x); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), x, func(t *table) { t.row(x.Path + " is there and has no value yet: estover secret put " + x.Path) })
		},
	}
	c.Flags().StringSliceVar(&spec.Destinations, "destination", nil, "a host, or host:port, that it may be sent to; may be repeated")
	c.Flags().StringVar(&spec.Description, "description", "", "what it is")
	c.Flags().StringVar(&class, "class", "confidential", "the class of the data that it opens")
	c.Flags().StringVar(&risk, "risk", "standard", "how much harm a leak would do: low, standard or high")
	c.Flags().StringVar(&owner, "owner", "", "who answers for it, as user:usr_… (default: you)")
	return c
}

func withoutLineEnd(b []byte) string {
	return strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
}

func secretGet(s *settings) *cobra.Command {
	var version int64
	var field, purpose string
	c := &cobra.Command{
		Use: "get PATH", Short: "Read the value of a secret; that is an event, and leaves it with you", Args: oneArgument("the secret's path"),
		ValidArgsFunction: completeSecrets(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var p struct {
				secret.Version
				Fields map[string]string `json:"fields"`
				Data   json.RawMessage   `json:"data"`
			}
			in := map[string]any{"purpose": purpose, "version": version}
			if err := c.do(cmd.Context(), http.MethodPost, "/v1/secret/read"+secretAt(args[0]), in, &p); err != nil {
				return err
			}
			if field != "" {
				v, ok := p.Fields[field]
				if !ok {
					return fmt.Errorf("%s has no field %q; it has %s", args[0], field, strings.Join(sortedKeys(p.Fields), ", "))
				}
				_, err := fmt.Fprintln(cmd.OutOrStdout(), v)
				return err
			}
			if v, ok := p.Fields[secret.DefaultField]; ok && len(p.Fields) == 1 && s.output != "json" {
				_, err := fmt.Fprintln(cmd.OutOrStdout(), v)
				return err
			}
			return s.show(cmd.OutOrStdout(), p, func(t *table) {
				for _, k := range sortedKeys(p.Fields) {
					t.row(k+":", p.Fields[k])
				}
			})
		},
	}
	c.Flags().Int64Var(&version, "version", 0, "the version (default: the newest)")
	c.Flags().StringVar(&field, "field", "", "print this field alone")
	c.Flags().StringVar(&purpose, "purpose", "", "what the value is needed for")
	_ = c.MarkFlagRequired("purpose")
	return c
}

func secretMove(s *settings, verb, short string) *cobra.Command {
	return &cobra.Command{
		Use: verb + " PATH VERSION…", Short: short,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 {
				return usageError{fmt.Errorf("%s needs the secret's path and the versions", cmd.CommandPath())}
			}
			return nil
		},
		ValidArgsFunction: completeSecrets(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var versions []int64
			for _, a := range args[1:] {
				n, err := strconv.ParseInt(a, 10, 64)
				if err != nil {
					return usageError{fmt.Errorf("%q is no version; a version is a number", a)}
				}
				versions = append(versions, n)
			}
			if err := c.do(cmd.Context(), http.MethodPost, "/v1/secret/versions/"+verb+secretAt(args[0]), map[string]any{"versions": versions}, nil); err != nil {
				return err
			}
			// What was destroyed stays so, whatever is asked for it.
			var x describedSecret
			if err := c.do(cmd.Context(), http.MethodGet, "/v1/secret"+secretAt(args[0]), nil, &x); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), x, func(t *table) {
				for _, v := range x.Versions {
					if slices.Contains(versions, v.N) {
						t.row(fmt.Sprintf("Version %d is %s.", v.N, v.State))
					}
				}
			})
		},
	}
}

func secretUses(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "uses PATH", Short: "List who used which version, by which way and when", Args: oneArgument("the secret's path"),
		ValidArgsFunction: completeSecrets(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var x describedSecret
			if err := c.do(cmd.Context(), http.MethodGet, "/v1/secret"+secretAt(args[0]), nil, &x); err != nil {
				return err
			}
			all, err := list[secret.Use](cmd.Context(), c, "/v1/secret-uses", url.Values{"secret": {x.ID}, "limit": {"200"}}, 0)
			if err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), all, func(t *table) {
				t.row("VERSION", "WHO", "BY", "TIMES", "FIRST", "LAST", "SESSION")
				for _, u := range all {
					t.row(u.Version, u.Subject, u.Via, u.Count, u.FirstAt, u.LastAt, u.Session)
				}
			})
		},
	}
}

// stateOf is what a version is: in its rotation, if it is rotated.
func stateOf(v secret.Version) string {
	if v.Phase != "" && v.State != secret.Deleted {
		return string(v.Phase)
	}
	return string(v.State)
}
