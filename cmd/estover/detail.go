package main

import (
	"fmt"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"

	"estover.dev/internal/token"
)

func detailTypeCommand(s *settings) *cobra.Command {
	c := noun("detail-type", "Types of authorization details: what agents may ask for beyond scopes",
		`A type of authorization details (RFC 9396) says what an agent may ask for beyond
scopes: its members, by a JSON Schema, how each may become less, and what people
are told who are asked. The type estover_task is there without being registered.
Others are written down in files: see 'estover apply'.`)
	c.AddCommand(detailTypeList(s), detailTypeShow(s), detailTypeRetire(s))
	return c
}

func completeDetailTypes(s *settings) cobra.CompletionFunc {
	return completeFrom(s, "/v1/detail-types", func(t struct{ Name, Title string }) string { return t.Name + "\t" + t.Title })
}

func detailTypeList(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List types of authorization details", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			all, err := list[token.DetailType](cmd.Context(), c, "/v1/detail-types", url.Values{"limit": {"100"}}, 0)
			if err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), all, func(t *table) {
				t.row("NAME", "TITLE", "RESOURCES", "ID")
				for _, one := range all {
					t.row(one.Name, one.Title, len(one.Resources), one.ID)
				}
			})
		},
	}
}

func detailTypeShow(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "show TYPE", Short: "Show a type of authorization details and its schema", Args: oneArgument("the type's name"),
		ValidArgsFunction: completeDetailTypes(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var one token.DetailType
			if err := c.do(cmd.Context(), http.MethodGet, "/v1/detail-types/"+url.PathEscape(args[0]), nil, &one); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), one, func(t *table) {
				t.pairs("Name", one.Name, "Id", one.ID, "Title", one.Title, "Resources", one.Resources, "Changed", one.ChangedAt, "Kept by", one.ManagedBy)
				if one.Confines {
					t.row("Confines:", "a token without one may do more")
				}
				t.row()
				t.row("MEMBER", "TITLE", "NARROWS", "ONLY LIMITS")
				for _, m := range one.Members {
					t.row(m.Name, m.Title, first(m.Narrows, "stays the same"), map[bool]string{true: "yes"}[m.Limits])
				}
				t.row()
				t.row("Schema:")
				t.row(one.Schema)
			})
		},
	}
}

func detailTypeRetire(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "retire TYPE", Short: "End a type of authorization details", Args: oneArgument("the type's name"),
		ValidArgsFunction: completeDetailTypes(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			if err := c.do(cmd.Context(), http.MethodDelete, "/v1/detail-types/"+url.PathEscape(args[0]), nil, nil); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "Retired. No token is issued with such a detail any more; those that there are run out by themselves.")
			return nil
		},
	}
}
