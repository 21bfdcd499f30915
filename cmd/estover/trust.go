package main

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"

	"github.com/spf13/cobra"

	"estover.dev/internal/federation"
)

func trustCommand(s *settings) *cobra.Command {
	c := noun("trust", "Trusts: issuers whose tokens say which agent a workload is",
		`A trust lets a workload be recognised by the token that its platform has given
it, a job of GitHub Actions or a pod of Kubernetes, in the place of a secret of
ours. It says the issuer, its keys, the audience, and rules that lead from claims
to agents. Trusts are written down in files: see 'estover apply'. Why a token
counts or does not, 'estover token explain' says.`)
	c.AddCommand(trustList(s), trustShow(s), trustRetire(s))
	return c
}

func completeTrusts(s *settings) cobra.CompletionFunc {
	return completeFrom(s, "/v1/trusts", func(t struct{ Name, Issuer string }) string { return t.Name + "\t" + t.Issuer })
}

func trustList(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List trusts", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			all, err := list[federation.Trust](cmd.Context(), c, "/v1/trusts", url.Values{"limit": {"200"}}, 0)
			if err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), all, func(t *table) {
				t.row("NAME", "ISSUER", "RULES", "ID")
				for _, one := range all {
					t.row(one.Name, one.Issuer, len(one.Rules), one.ID)
				}
			})
		},
	}
}

func trustShow(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "show TRUST", Short: "Show a trust and its rules", Args: oneArgument("the trust's name or id"),
		ValidArgsFunction: completeTrusts(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var one federation.Trust
			if err := c.do(cmd.Context(), http.MethodGet, "/v1/trusts/"+url.PathEscape(args[0]), nil, &one); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), one, func(t *table) {
				keys := first(one.JWKSURL, "in the trust")
				t.pairs("Name", one.Name, "Id", one.ID, "Issuer", one.Issuer, "Audience", one.Audience, "Keys", keys, "Algorithms", one.Algorithms,
					"Types", one.Types, "About", map[bool]string{true: "people of the provider " + one.Provider}[one.Kind == federation.IDJAG], "Changed", one.ChangedAt, "Kept by", one.ManagedBy)
				if one.SingleUse {
					t.row("Single use:", "each token counts once")
				}
				if one.AllowPrivate {
					t.row("Private:", "the host of the keys may be on a private network")
				}
				if len(one.Rules) == 0 {
					return
				}
				t.row()
				t.row("AGENT", "CLAIM", "IS")
				for _, r := range one.Rules {
					agent := r.Agent
					for _, name := range slices.Sorted(maps.Keys(r.Claims)) {
						t.row(agent, name, r.Claims[name])
						agent = ""
					}
					for _, name := range slices.Sorted(maps.Keys(r.Globs)) {
						t.row(agent, name, "like "+r.Globs[name])
						agent = ""
					}
				}
			})
		},
	}
}

func trustRetire(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "retire TRUST", Short: "End a trust", Args: oneArgument("the trust's name or id"),
		ValidArgsFunction: completeTrusts(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			if err := c.do(cmd.Context(), http.MethodDelete, "/v1/trusts/"+url.PathEscape(args[0]), nil, nil); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "Retired. No token of its issuer counts any more; sessions that began with one go on until they end.")
			return nil
		},
	}
}
