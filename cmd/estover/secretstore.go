package main

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"estover.dev"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/upstream"
)

const (
	storesPath = "/v1/secret-stores"
	linksPath  = "/v1/secret-links"
	syncsPath  = "/v1/secret-syncs"
)

func storePath(name string) string { return storesPath + "/" + url.PathEscape(name) }

func syncPath(id string) string { return syncsPath + "/" + url.PathEscape(id) }

func completeStores(s *settings) cobra.CompletionFunc {
	return completeFrom(s, storesPath, func(x struct{ Name, Description string }) string { return x.Name + "\t" + x.Description })
}

func completeSyncs(s *settings) cobra.CompletionFunc {
	return completeFrom(s, syncsPath, func(x struct{ ID, Path, Store string }) string { return x.ID + "\t" + x.Path + " to " + x.Store })
}

// twoArguments are the two things that a command needs.
func twoArguments(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != 2 {
			return usageError{errors.New(cmd.CommandPath() + " needs " + what)}
		}
		return nil
	}
}

func secretStore(s *settings) *cobra.Command {
	c := noun("store", "Stores: other vaults that secrets are read through or pushed to",
		`A store is an OpenBao, a HashiCorp Vault, or the secret manager of a cloud. Estover
logs in there with a secret that you name, whose owner says to which host it may be
sent. What is read through it is said with estover secret link, and what is pushed to
it with estover secret sync.`)
	c.AddCommand(storeKinds(s), storeList(s), storeShow(s), storeAdd(s), storeCheck(s), storeRemove(s))
	return c
}

// A storeKind is a kind of store as the API has it.
type storeKind struct {
	Name, Title, Address, Login string
	Options                     []engineField
}

func storeKinds(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "kinds", Short: "List the kinds of other vaults, and what each wants to know", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			all, err := list[storeKind](cmd.Context(), c, "/v1/secret-store-kinds", nil, 0)
			if err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), all, func(t *table) {
				t.row("KIND", "NAME", "ADDRESS", "LOG-IN", "OPTIONS")
				for _, k := range all {
					var names []string
					for _, f := range k.Options {
						names = append(names, f.Name)
					}
					t.row(k.Name, k.Title, k.Address, k.Login, names)
				}
			})
		},
	}
}

func storeList(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the stores", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			all, err := list[upstream.NamedStore](cmd.Context(), c, storesPath, url.Values{"limit": {"200"}}, 0)
			if err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), all, func(t *table) {
				t.row("NAME", "KIND", "ADDRESS", "LOG-IN", "OWNER")
				for _, x := range all {
					t.row(x.Name, x.Kind, x.Address, x.Login, x.Owner)
				}
			})
		},
	}
}

func storeShow(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "Show a store, what is read through it, and what is pushed to it", Args: oneArgument("the store's name"), ValidArgsFunction: completeStores(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var x upstream.Standing
			if err := c.do(cmd.Context(), http.MethodGet, storePath(args[0]), nil, &x); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), x, func(t *table) {
				t.pairs("Name", x.Name, "Id", x.ID, "Kind", x.Kind, "Address", x.Address, "Log-in", x.Login, "Owner", x.Owner, "Description", x.Description, "Added", x.CreatedAt, "Kept by", x.ManagedBy)
				for _, name := range sortedKeys(x.Options) {
					t.pairs("Option "+name, x.Options[name])
				}
				if len(x.Folders) > 0 {
					t.row()
					t.row("FOLDER", "FROM", "LOOKED AT AGAIN", "PROBLEM")
					for _, f := range x.Folders {
						t.row(f.Path, f.From, f.Next, f.LastError)
					}
				}
				if len(x.Links) > 0 {
					t.row()
					t.row("READ THROUGH", "FROM", "BELIEVED UNTIL", "PROBLEM")
					for _, l := range x.Links {
						t.row(l.Path, l.From, l.FreshUntil, l.LastError)
					}
				}
				if len(x.Syncs) > 0 {
					t.row()
					syncTable(t, x.Syncs)
				}
			})
		},
	}
}

func storeAdd(s *settings) *cobra.Command {
	var spec upstream.StoreSpec
	var options []string
	var authorities, owner string
	c := &cobra.Command{
		Use: "add KIND NAME", Short: "Register another vault, or change the one of this name, and see whether it answers",
		Long: `Add registers another vault, or changes what is said of the one of this name, and
asks it something, so that you see whether it lets Estover in. --login is the path of
a secret of yours with what logs in there; it has to allow the store's host as a
destination. estover secret store kinds lists the kinds and their options.`,
		Example: `  estover secret create vault/token --destination vault.example.com:8200
  estover secret put vault/token < token.txt
  estover secret store add vault team --address https://vault.example.com:8200 --option mount=team/kv --login vault/token`,
		Args: twoArguments("the kind of the other vault and a name for it"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			spec.Kind, spec.Name, spec.Owner = args[0], args[1], estover.Subject(owner)
			given, err := keyValues("option", options)
			if err != nil {
				return err
			}
			for name, v := range given {
				if spec.Options == nil {
					spec.Options = map[string]string{}
				}
				spec.Options[name] = strings.Join(v, "")
			}
			if authorities != "" {
				pem, err := os.ReadFile(authorities)
				if err != nil {
					return err
				}
				spec.Authorities = string(pem)
			}
			var x upstream.NamedStore
			if err := c.do(cmd.Context(), http.MethodPut, storePath(spec.Name), spec, &x); err != nil {
				return err
			}
			if err := s.show(cmd.OutOrStdout(), x, func(t *table) { t.row("The store " + x.Name + " is registered.") }); err != nil {
				return err
			}
			if err := c.do(cmd.Context(), http.MethodPost, storePath(spec.Name)+"/check", map[string]string{}, nil); err != nil {
				return fmt.Errorf("%w; once that is mended: estover secret store check %s", err, spec.Name)
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&spec.Address, "address", "", "where it is, as `ADDRESS` of its kind")
	f.StringArrayVar(&options, "option", nil, "what else the kind wants to know, as `NAME=VALUE`; may be repeated")
	f.StringVar(&authorities, "authorities", "", "a `FILE` of certificates in PEM that it is known by, instead of the system's")
	f.StringVar(&spec.Login, "login", "", "the `PATH` of the secret that logs in there")
	f.StringVar(&owner, "owner", "", "who answers for it, as user:usr_… (default: you)")
	f.StringVar(&spec.Description, "description", "", "what it is")
	return c
}

func storeCheck(s *settings) *cobra.Command {
	var path string
	c := &cobra.Command{
		Use: "check NAME", Short: "See whether a store answers and lets Estover in", Args: oneArgument("the store's name"), ValidArgsFunction: completeStores(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			if err := c.do(cmd.Context(), http.MethodPost, storePath(args[0])+"/check", map[string]string{"path": path}, nil); err != nil {
				return err
			}
			out := map[string]any{"name": args[0], "answers": true}
			return s.show(cmd.OutOrStdout(), out, func(t *table) { t.row("The store " + args[0] + " answers and lets Estover in.") })
		},
	}
	c.Flags().StringVar(&path, "path", "", "a path there that Estover may ask for; it need not be there")
	return c
}

func storeRemove(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "remove NAME", Short: "Remove a store that nothing is read through or pushed to", Args: oneArgument("the store's name"), ValidArgsFunction: completeStores(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			return c.do(cmd.Context(), http.MethodDelete, storePath(args[0]), nil, nil)
		},
	}
}

func secretLink(s *settings) *cobra.Command {
	var l upstream.LinkSpec
	var class, risk, ttl string
	c := &cobra.Command{
		Use: "link PATH", Short: "Have the value of a secret, or of each in a folder, be read through another vault",
		Long: `Link has the value of the secret at PATH live in another vault. Policy, purpose,
destinations and the record of who used it stay here. A secret that is not there yet
is made. Its value is read when somebody needs it, and believed for --ttl; when the
other vault cannot be asked after that, nobody gets it.

With a slash at its end PATH is a folder: each secret whose path there begins with
--from is linked, also those that are made later.`,
		Example: `  estover secret link crm/api-key --store team --from app/api-key --destination crm.example.com
  estover secret link crm/ --store team --from app/ --destination crm.example.com`,
		Args: oneArgument("the secret's path, or that of a folder with a slash at its end"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			l.Path, l.Class, l.Risk = args[0], estover.Class(class), secret.Risk(risk)
			if err := l.TTL.UnmarshalText([]byte(ttl)); err != nil {
				return usageError{err}
			}
			var x upstream.Filled
			if err := c.do(cmd.Context(), http.MethodPost, linksPath, l, &x); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), x, func(t *table) {
				t.row("PATH", "")
				for _, p := range x.Linked {
					t.row(p, "is read through "+l.Store)
				}
				for _, p := range x.Taken {
					t.row(p, "is left alone: there is another secret here")
				}
				if x.More {
					t.row("…", "more follow by themselves")
				}
			})
		},
	}
	f := c.Flags()
	f.StringVar(&l.Store, "store", "", "the name of the store")
	f.StringVar(&l.From, "from", "", "the path there, or what paths there begin with (default: as here)")
	f.StringVar(&ttl, "ttl", "5m", "for how long what was read is believed without asking again")
	f.StringSliceVar(&l.Destinations, "destination", nil, "a host that a secret which is made may be sent to; may be repeated")
	f.StringVar(&class, "class", "", "the class of the data that a secret which is made opens (confidential)")
	f.StringVar(&risk, "risk", "", "the risk of a secret which is made: low, standard or high (standard)")
	_ = c.RegisterFlagCompletionFunc("store", completeStores(s))
	return c
}

func secretUnlink(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "unlink PATH", Short: "Have the value of a secret live here again, or link no more of a folder", Args: oneArgument("the secret's path"), ValidArgsFunction: completeSecrets(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			return c.do(cmd.Context(), http.MethodDelete, linksPath+secretAt(args[0]), nil, nil)
		},
	}
}

func secretSync(s *settings) *cobra.Command {
	c := noun("sync", "Syncs: secrets that are pushed to other vaults",
		`A sync keeps the current version of a secret in another vault too. What somebody
else writes or deletes there is shown as a drift and stays, until somebody accepts it
as the next version here, or has it overwritten.`)
	c.AddCommand(syncAdd(s), syncList(s), syncShow(s), syncAccept(s), syncOverwrite(s), syncRemove(s))
	return c
}

func syncTable(t *table, all []upstream.Sync) {
	t.row("SYNC", "PATH", "STORE", "TO", "STATE", "THERE", "CURRENT", "PROBLEM")
	for _, x := range all {
		state := string(x.State)
		if x.Overdue {
			state += ", overdue"
		}
		problem := x.LastError
		if x.Drift != "" {
			problem = "somebody else's: " + x.Drift
		}
		t.row(x.ID, x.Path, x.Store, x.To, state, x.Cursor, x.Current, problem)
	}
}

func syncAdd(s *settings) *cobra.Command {
	var to string
	c := &cobra.Command{
		Use: "add PATH STORE", Short: "Push a secret to a store from now on; what stands there is not overwritten",
		Example: "  estover secret sync add crm/api-key team --to app/api-key",
		Args:    twoArguments("the secret's path and the name of the store"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var x upstream.Sync
			if err := c.do(cmd.Context(), http.MethodPost, syncsPath, upstream.SyncSpec{Path: args[0], Store: args[1], To: to}, &x); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), x, func(t *table) { t.row(x.ID + " pushes " + x.Path + " to " + x.To + " of the store " + x.Store) })
		},
	}
	c.Flags().StringVar(&to, "to", "", "the path there (default: as here)")
	return c
}

func syncList(s *settings) *cobra.Command {
	var path, store, state string
	var late bool
	c := &cobra.Command{
		Use: "list", Short: "List what is pushed where, and whether it is there", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			q := url.Values{"limit": {"200"}}
			for name, v := range map[string]string{"path": path, "store": store, "state": state} {
				if v != "" {
					q.Set(name, v)
				}
			}
			if late {
				q.Set("overdue", "true")
			}
			all, err := list[upstream.Sync](cmd.Context(), c, syncsPath, q, 0)
			if err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), all, func(t *table) { syncTable(t, all) })
		},
	}
	c.Flags().StringVar(&path, "path", "", "only those of the secret at this path")
	c.Flags().StringVar(&store, "store", "", "only those to this store")
	c.Flags().StringVar(&state, "state", "", "only those that are synced, behind or in drift")
	c.Flags().BoolVar(&late, "overdue", false, "only those where the current version should be and is not")
	return c
}

func syncShow(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "show SYNC", Short: "Show how a sync stands", Args: oneArgument("the sync, as estover secret sync list names it"), ValidArgsFunction: completeSyncs(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			return syncDo(s, cmd, http.MethodGet, syncPath(args[0]), nil)
		},
	}
}

// syncDo does something with a sync and shows how it stands then.
func syncDo(s *settings, cmd *cobra.Command, method, path string, body any) error {
	c, err := s.client()
	if err != nil {
		return err
	}
	var x upstream.Sync
	if err := c.do(cmd.Context(), method, path, body, &x); err != nil {
		return err
	}
	return s.show(cmd.OutOrStdout(), x, func(t *table) {
		t.pairs("Sync", x.ID, "Path", x.Path, "Store", x.Store, "To", x.To, "State", x.State, "Version there", x.Cursor, "Current version", x.Current,
			"Called there", x.There, "Pushed", x.PushedAt, "Behind since", x.BehindSince, "Overdue", x.Overdue, "Somebody else's", x.Drift, "Since", x.DriftAt,
			"Problem", x.LastError, "Tries", x.Tries, "Looked at again", x.Next, "Kept by", x.ManagedBy)
	})
}

func syncAccept(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "accept SYNC", Short: "Make what somebody else wrote there the next version here", Args: oneArgument("the sync, as estover secret sync list names it"), ValidArgsFunction: completeSyncs(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			return syncDo(s, cmd, http.MethodPost, syncPath(args[0])+"/accept", nil)
		},
	}
}

func syncOverwrite(s *settings) *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "overwrite SYNC", Short: "Replace what somebody else wrote there by the current version", Args: oneArgument("the sync, as estover secret sync list names it"), ValidArgsFunction: completeSyncs(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			return syncDo(s, cmd, http.MethodPost, syncPath(args[0])+"/overwrite", map[string]string{"reason": reason})
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why what stands there is to be lost")
	return c
}

func syncRemove(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "remove SYNC", Short: "Push a secret no longer; what stands there stays", Args: oneArgument("the sync, as estover secret sync list names it"), ValidArgsFunction: completeSyncs(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			return c.do(cmd.Context(), http.MethodDelete, syncPath(args[0]), nil, nil)
		},
	}
}
