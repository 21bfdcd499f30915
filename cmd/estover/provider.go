package main

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"

	"github.com/spf13/cobra"

	"estover.dev/internal/directory"
)

func providerCommand(s *settings) *cobra.Command {
	c := noun("provider", "Identity providers: where else people sign in",
		`People sign in with the OpenID provider of their organisation, Entra ID, Okta,
Google, Keycloak or any other, beside their passkeys. What a provider vouches for
is linked to a person here, who may get their roles from its claims. Providers are
written down in files: see 'estover apply'.`)
	c.AddCommand(providerList(s), providerShow(s), providerRetire(s))
	return c
}

func completeProviders(s *settings) cobra.CompletionFunc {
	return completeFrom(s, "/v1/identity-providers", func(p struct{ Name, Issuer string }) string { return p.Name + "\t" + p.Issuer })
}

func providerList(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List identity providers", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			all, err := list[directory.Provider](cmd.Context(), c, "/v1/identity-providers", nil, 0)
			if err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), all, func(t *table) {
				t.row("NAME", "TITLE", "ISSUER")
				for _, p := range all {
					t.row(p.Name, p.Heading(), p.Issuer)
				}
			})
		},
	}
}

func providerShow(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "show PROVIDER", Short: "Show an identity provider, and the address to register there", Args: oneArgument("the provider's name"),
		ValidArgsFunction: completeProviders(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var p directory.Provider
			if err := c.do(cmd.Context(), http.MethodGet, "/v1/identity-providers/"+url.PathEscape(args[0]), nil, &p); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), p, func(t *table) {
				t.pairs("Name", p.Name, "Id", p.ID, "Title", p.Heading(), "Issuer", p.Issuer, "Client", p.ClientID, "Secret", p.Secret,
					"Register there", c.addr+"/login/back/"+p.Name, "Changed", p.ChangedAt, "Kept by", p.ManagedBy)
				for _, role := range slices.Sorted(maps.Keys(p.Roles)) {
					t.row(role+":", fmt.Sprintf("%v", p.Roles[role]))
				}
			})
		},
	}
}

func providerRetire(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "retire PROVIDER", Short: "End an identity provider", Args: oneArgument("the provider's name"),
		ValidArgsFunction: completeProviders(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			if err := c.do(cmd.Context(), http.MethodDelete, "/v1/identity-providers/"+url.PathEscape(args[0]), nil, nil); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "Retired. Nobody signs in with it any more; those who had are signed out.")
			return nil
		},
	}
}
