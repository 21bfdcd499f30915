package main

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"estover.dev/internal/resource"
)

func resourceCommand(s *settings) *cobra.Command {
	c := noun("resource", "Resources: what agents reach, and what can be done there",
		`A resource is an HTTP API: where it is, what can be done there, the class of its
data, and where the gateway puts a secret into requests. What is not a resource
cannot be reached. Resources are written down in files: see 'estover apply'.`)
	c.AddCommand(resourceList(s), resourceShow(s), resourceRetire(s))
	return c
}

func completeResources(s *settings) cobra.CompletionFunc {
	return completeFrom(s, "/v1/resources", func(r struct {
		Name string
		Base string `json:"base_url"`
	},
	) string {
		return r.Name + "\t" + r.Base
	})
}

func resourceList(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List resources", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			all, err := list[resource.Resource](cmd.Context(), c, "/v1/resources", url.Values{"limit": {"200"}}, 0)
			if err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), all, func(t *table) {
				t.row("NAME", "CLASS", "BASE URL", "ACTIONS", "ID")
				for _, r := range all {
					t.row(r.Name, r.Class, r.BaseURL, len(r.Actions), r.ID)
				}
			})
		},
	}
}

func resourceShow(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "show RESOURCE", Short: "Show a resource and its actions", Args: oneArgument("the resource's name or id"),
		ValidArgsFunction: completeResources(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var r resource.Resource
			if err := c.do(cmd.Context(), http.MethodGet, "/v1/resources/"+url.PathEscape(args[0]), nil, &r); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), r, func(t *table) {
				t.pairs("Name", r.Name, "Id", r.ID, "Base URL", r.BaseURL, "Hosts", r.Hosts, "Class", r.Class, "Purposes", r.Purposes,
					"Destination", r.Destination, "Evidence", r.Evidence, "Record", r.Record, "Changed", r.ChangedAt, "Kept by", r.ManagedBy)
				for _, slot := range r.Slots {
					source := slot.Secret
					if slot.Static() {
						source = "secret " + source
					}
					only := ""
					if len(slot.Actions) > 0 {
						only = ", for " + strings.Join(slot.Actions, ", ")
					}
					t.row("Slot:", strings.TrimSpace(slot.Slot+" "+slot.Name)+" ← "+source+only)
				}
				t.row()
				t.row("ACTION", "METHOD", "PATH", "EFFECT", "CLASS")
				for _, a := range r.Actions {
					t.row(a.Name, a.Method, a.Path, a.Effect, first(string(a.Class), string(r.Class)))
				}
			})
		},
	}
}

func resourceRetire(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "retire RESOURCE", Short: "Take a resource out of the catalogue", Args: oneArgument("the resource's name or id"),
		ValidArgsFunction: completeResources(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			if err := c.do(cmd.Context(), http.MethodDelete, "/v1/resources/"+url.PathEscape(args[0]), nil, nil); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "Retired. Nothing is forwarded to it any more.")
			return nil
		},
	}
}
