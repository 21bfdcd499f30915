package main

import (
	"fmt"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"

	"estover.dev"
	"estover.dev/internal/tenant"
)

func tenantCommand(s *settings) *cobra.Command {
	c := noun("tenant", "Tenants: the organisations that a server serves",
		`A server serves the organisation 'default', and any others that its
administrators add. Each has an issuer of its own, ISSUER/t/NAME, under which its
people, clients and agents find everything that belongs to it; they give that as
the server's address. What is one organisation's is nothing in another.`)
	c.AddCommand(tenantList(s), tenantShow(s), tenantCreate(s), tenantUpdate(s), tenantInvite(s), tenantDisable(s), tenantEnable(s), tenantErase(s))
	return c
}

func completeTenants(s *settings) cobra.CompletionFunc {
	return completeFrom(s, "/v1/tenants", func(t struct{ Name, Title string }) string { return t.Name + "\t" + t.Title })
}

func tenantPath(name string) string { return "/v1/tenants/" + url.PathEscape(name) }

func tenantList(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List tenants", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			all, err := list[tenant.Tenant](cmd.Context(), c, "/v1/tenants", url.Values{"limit": {"200"}}, 0)
			if err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), all, func(t *table) {
				t.row("NAME", "STATUS", "TITLE", "ISSUER")
				for _, one := range all {
					t.row(one.Name, one.Status, one.Title, one.Issuer)
				}
			})
		},
	}
}

func showTenant(s *settings, cmd *cobra.Command, one tenant.Tenant) error {
	return s.show(cmd.OutOrStdout(), one, func(t *table) {
		t.pairs("Name", one.Name, "Title", one.Title, "Issuer", one.Issuer, "Status", one.Status, "Why", one.Reason, "Erased", one.ErasedAt, "Private networks", one.PrivateNetworks,
			"Created", one.CreatedAt, "By", one.CreatedBy, "Changed", one.ChangedAt)
	})
}

// tenantAction is a command that does one thing to one tenant and shows it.
func tenantAction(s *settings, use, short, method, path string, body func() any) *cobra.Command {
	return &cobra.Command{
		Use: use + " TENANT", Short: short, Args: oneArgument("the tenant's name"), ValidArgsFunction: completeTenants(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var one tenant.Tenant
			if err := c.do(cmd.Context(), method, tenantPath(args[0])+path, body(), &one); err != nil {
				return err
			}
			return showTenant(s, cmd, one)
		},
	}
}

func tenantShow(s *settings) *cobra.Command {
	return tenantAction(s, "show", "Show a tenant", http.MethodGet, "", func() any { return nil })
}

// A founding is what lets the first administrator of a tenant in.
type founding struct {
	tenant.Tenant
	Token string `json:"token"`
	Link  string `json:"link"`
}

func showFounding(s *settings, cmd *cobra.Command, f founding) error {
	return s.show(cmd.OutOrStdout(), f, func(t *table) {
		t.row(f.Token)
		t.row("Hand it to the first administrator of " + string(f.Name) + " and nobody else; it is good once, for a day:")
		t.row("estover login --addr " + f.Issuer + " < FILE,")
		t.row("or, in a browser, by this link, which has the token in it:")
		t.row(f.Link)
	})
}

func tenantCreate(s *settings) *cobra.Command {
	var spec tenant.Spec
	c := &cobra.Command{
		Use: "create NAME", Short: "Add an organisation, and make a one-time token for its first administrator", Args: oneArgument("the name of the tenant"),
		Example: "  estover tenant create acme --title 'Acme Ltd'",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			spec.Name = estover.TenantID(args[0])
			var f founding
			if err := c.do(cmd.Context(), http.MethodPost, "/v1/tenants", spec, &f); err != nil {
				return err
			}
			return showFounding(s, cmd, f)
		},
	}
	c.Flags().StringVar(&spec.Title, "title", "", "what people call it")
	c.Flags().StringSliceVar(&spec.PrivateNetworks, "private-network", nil, "private or loopback network that its own settings may open, as 10.1.0.0/16; may be repeated")
	return c
}

func tenantUpdate(s *settings) *cobra.Command {
	var title string
	var networks []string
	c := &cobra.Command{
		Use: "update TENANT", Short: "Change what is said of a tenant; what is left out stays", Args: oneArgument("the tenant's name"), ValidArgsFunction: completeTenants(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var one tenant.Tenant
			if err := c.do(cmd.Context(), http.MethodGet, tenantPath(args[0]), nil, &one); err != nil {
				return err
			}
			if cmd.Flags().Changed("title") {
				one.Title = title
			}
			if cmd.Flags().Changed("private-network") {
				one.PrivateNetworks = networks
			}
			if err := c.do(cmd.Context(), http.MethodPut, tenantPath(args[0]), one.Spec, &one); err != nil {
				return err
			}
			return showTenant(s, cmd, one)
		},
	}
	c.Flags().StringVar(&title, "title", "", "what people call it")
	c.Flags().StringSliceVar(&networks, "private-network", nil, "private or loopback network that its own settings may open, in the place of those of before; '' for none")
	return c
}

func tenantInvite(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "invite TENANT", Short: "Make another one-time token for the first administrator, if none has come in", Args: oneArgument("the tenant's name"),
		ValidArgsFunction: completeTenants(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var f founding
			if err := c.do(cmd.Context(), http.MethodPost, tenantPath(args[0])+"/invitations", struct{}{}, &f); err != nil {
				return err
			}
			return showFounding(s, cmd, f)
		},
	}
}

func tenantDisable(s *settings) *cobra.Command {
	var reason string
	c := tenantAction(s, "disable", "Refuse everything of a tenant, and cut what it has under way", http.MethodPost, "/disable",
		func() any { return map[string]string{"reason": reason} })
	c.Flags().StringVar(&reason, "reason", "", "why")
	_ = c.MarkFlagRequired("reason")
	return c
}

func tenantEnable(s *settings) *cobra.Command {
	return tenantAction(s, "enable", "Let a tenant go on", http.MethodPost, "/enable", func() any { return struct{}{} })
}

func tenantErase(s *settings) *cobra.Command {
	var confirm string
	c := tenantAction(s, "erase", "Destroy the keys of a tenant that is disabled, for good", http.MethodPost, "/erase", func() any { return struct{}{} })
	c.Long = `Erase destroys the keys under which everything of a tenant is sealed: its secrets,
recordings, keys and the details of its events. Nobody can open them again, here or
from a copy of the database that is made later; copies made before hold the keys
for as long as you keep them. The rows and the public log stay. Disable the tenant
first, and name it a second time with --confirm.`
	c.Example = "  estover tenant disable acme --reason 'the contract has ended'\n  estover tenant erase acme --confirm acme"
	c.Flags().StringVar(&confirm, "confirm", "", "the tenant's name, once more")
	run := c.RunE
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if confirm != args[0] {
			return usageError{fmt.Errorf("nothing can be opened again that is erased; say --confirm %s if you mean it", args[0])}
		}
		return run(cmd, args)
	}
	return c
}
