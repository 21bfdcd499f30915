package main

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"estover.dev"
	"estover.dev/internal/secret/connection"
)

func connectionCommand(s *settings) *cobra.Command {
	c := noun("connection", "Connections: OAuth tokens of upstreams, which this server renews and agents never see",
		`A connection is what this server holds as the client of somebody else's
authorization server. A person authorizes it once in a browser, or the client acts
for itself; from then on the server renews the token, and the gateway puts it into
requests of resources whose slot names connection:NAME.`)
	c.AddCommand(connectionList(s), connectionShow(s), connectionAdd(s), connectionAuthorize(s), connectionRenew(s), connectionRemove(s))
	return c
}

func completeConnections(s *settings) cobra.CompletionFunc {
	return completeFrom(s, "/v1/connections", func(c struct{ Name, State string }) string { return c.Name + "\t" + c.State })
}

// A connected thing is a connection, with where it is authorized.
type connected struct {
	connection.Connection
	Page string `json:"authorize_url,omitempty"`
}

func connectionAt(name string) string { return "/v1/connections/" + url.PathEscape(name) }

func connectionList(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List connections and how they are", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			all, err := list[connection.Connection](cmd.Context(), c, "/v1/connections", url.Values{"limit": {"200"}}, 0)
			if err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), all, func(t *table) {
				t.row("NAME", "STATE", "WHY", "PROVIDER", "DESTINATIONS", "TOKEN UNTIL")
				for _, x := range all {
					t.row(x.Name, x.State, x.Reason, first(x.Issuer, x.Token), x.Destinations, x.ExpiresAt)
				}
			})
		},
	}
}

// showConnection prints a connection, and what is to be done about it.
func showConnection(s *settings, cmd *cobra.Command, x connected) error {
	return s.show(cmd.OutOrStdout(), x, func(t *table) {
		t.pairs("Name", x.Name, "Id", x.ID, "State", x.State, "Why", x.Reason, "Description", x.Description, "Grant", x.Grant,
			"Provider", first(x.Issuer, x.Token), "Client", x.ClientID, "Secret", x.Secret, "Asks for", x.Scopes, "Was granted", x.Granted,
			"Destinations", x.Destinations, "Authorized by", x.Account, "Renewed", x.RenewedAt, "Token until", x.ExpiresAt)
		switch x.State {
		case connection.Reauthorize:
			t.row()
			t.row("A person authorizes it: estover connection authorize " + x.Name)
		case connection.Misconfigured:
			t.row()
			t.row("Mend it with estover connection add, then: estover connection renew " + x.Name)
		}
	})
}

func connectionShow(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "show CONNECTION", Short: "Show a connection, never its tokens", Args: oneArgument("the connection's name"),
		ValidArgsFunction: completeConnections(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var x connected
			if err := c.do(cmd.Context(), http.MethodGet, connectionAt(args[0]), nil, &x); err != nil {
				return err
			}
			return showConnection(s, cmd, x)
		},
	}
}

func connectionAdd(s *settings) *cobra.Command {
	var spec connection.Spec
	var class, roots string
	c := &cobra.Command{
		Use: "add CONNECTION", Short: "Add a connection, or change the one of this name", Args: oneArgument("what the connection is called"),
		Long: `Add says who the provider is, what this server is there, and where the token may
be sent. Register this address at the provider as where people come back to:

  ISSUER/connections/CONNECTION/back`,
		Example: "  estover connection add mail --issuer https://login.example.com --client-id estover --secret mail/client \\\n    --scope mail.read --scope offline_access --destination api.mail.example.com\n  estover connection authorize mail",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			if len(spec.Destinations) == 0 {
				return usageError{errors.New("say where its token may be sent: --destination HOST, which may be repeated")}
			}
			spec.Name, spec.Class = args[0], estover.Class(class)
			if roots != "" {
				b, err := os.ReadFile(roots)
				if err != nil {
					return err
				}
				spec.CA = string(b)
			}
			var x connected
			if err := c.do(cmd.Context(), http.MethodPut, connectionAt(args[0]), spec, &x); err != nil {
				return err
			}
			return showConnection(s, cmd, x)
		},
	}
	f := c.Flags()
	f.StringVar(&spec.Issuer, "issuer", "", "the provider's issuer, from which its endpoints are found")
	f.StringVar(&spec.Authorize, "authorization-endpoint", "", "where people authorize, for a provider that does not say so itself")
	f.StringVar(&spec.Token, "token-endpoint", "", "where tokens are given out, likewise")
	f.StringVar(&spec.Revoke, "revocation-endpoint", "", "where tokens are ended, likewise")
	f.StringVar(&spec.ClientID, "client-id", "", "what the provider knows this server as")
	f.StringVar(&spec.Secret, "secret", "", "the path of the secret that holds the client secret")
	f.StringVar(&spec.ClientAuth, "client-auth", "", "how the client secret is shown: basic (usual) or post")
	f.StringVar(&spec.Grant, "grant", connection.AuthorizationCode, "authorization_code, by a person, or client_credentials")
	f.StringArrayVar(&spec.Scopes, "scope", nil, "what is asked for; may be repeated")
	f.StringVar(&spec.Resource, "resource", "", "the resource for which a token is asked (RFC 8707)")
	f.StringToStringVar(&spec.Parameters, "parameter", nil, "what else the provider wants to hear when a person authorizes, as access_type=offline; may be repeated")
	f.StringSliceVar(&spec.Destinations, "destination", nil, "a host, or host:port, that the token may be sent to; may be repeated")
	f.StringVar(&spec.Description, "description", "", "what it is for")
	f.StringVar(&class, "class", "confidential", "the class of the data that it opens")
	f.StringVar(&roots, "ca", "", "a file with the roots by which the provider's certificate is checked")
	f.BoolVar(&spec.AllowPrivate, "allow-private", false, "the provider may be on a private network")
	return c
}

// waitForPerson is how long authorize waits for somebody.
const waitForPerson = 10 * time.Minute

func connectionAuthorize(s *settings) *cobra.Command {
	var wait bool
	c := &cobra.Command{
		Use: "authorize CONNECTION", Short: "Say where a person authorizes a connection", Args: oneArgument("the connection's name"),
		ValidArgsFunction: completeConnections(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var before, x connected
			if err := c.do(cmd.Context(), http.MethodGet, connectionAt(args[0]), nil, &before); err != nil {
				return err
			}
			if before.Page == "" {
				return fmt.Errorf("the connection %s needs nobody's authorization: its client acts for itself. `estover connection renew %s` tries it", args[0], args[0])
			}
			if err := s.show(cmd.OutOrStdout(), before, func(t *table) {
				t.row("Open this page in a browser, and sign in there:")
				t.row(before.Page)
			}); err != nil || !wait {
				return err
			}
			for deadline := time.Now().Add(waitForPerson); time.Now().Before(deadline); {
				select {
				case <-time.After(2 * time.Second):
				case <-cmd.Context().Done():
					return cmd.Context().Err()
				}
				if err := c.do(cmd.Context(), http.MethodGet, connectionAt(args[0]), nil, &x); err != nil {
					return err
				}
				if x.State == connection.Healthy && x.Generation > before.Generation {
					fmt.Fprintln(cmd.ErrOrStderr(), "Authorized.")
					return nil
				}
			}
			return fmt.Errorf("nobody has authorized %s within %s", args[0], strings.TrimSuffix(waitForPerson.String(), "0s"))
		},
	}
	c.Flags().BoolVar(&wait, "wait", false, "wait until somebody has done so")
	return c
}

func connectionRenew(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "renew CONNECTION", Short: "Renew a connection's token, or try one again that is misconfigured", Args: oneArgument("the connection's name"),
		ValidArgsFunction: completeConnections(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var x connected
			if err := c.do(cmd.Context(), http.MethodPost, connectionAt(args[0])+"/renew", nil, &x); err != nil {
				return err
			}
			return showConnection(s, cmd, x)
		},
	}
}

func connectionRemove(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "remove CONNECTION", Short: "Remove a connection; its tokens are ended at the provider", Args: oneArgument("the connection's name"),
		ValidArgsFunction: completeConnections(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			if err := c.do(cmd.Context(), http.MethodDelete, connectionAt(args[0]), nil, nil); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "Removed. No agent gets its token any more; it is ended at the provider as soon as that answers.")
			return nil
		},
	}
}
