package main

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"estover.dev/internal/approval"
)

// sortedNames are the keys of a map in order.
func sortedNames[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// hasOwnCredentials reports whether the environment has those of an agent.
func hasOwnCredentials() bool { return os.Getenv("ESTOVER_CLIENT_ID") != "" }

func personAbsence(s *settings) *cobra.Command {
	var deputy, until string
	var end bool
	c := &cobra.Command{
		Use: "absence [PERSON]", Short: "Say that a person is away ('me' is you), and who decides in their place", Args: atMostOne("the person's name or id"),
		Long: `Say that a person is away, and who decides about requests in their place: as
they would, and as one person all the same. Without a person it lists who is away.`,
		Example: "  estover person absence me --until 2027-01-07 --deputy bob\n  estover person absence me --end",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			if len(args) == 0 {
				all, err := list[approval.Absence](cmd.Context(), c, "/v1/absences", nil, 0)
				if err != nil {
					return err
				}
				return s.show(cmd.OutOrStdout(), all, func(t *table) {
					t.row("PERSON", "DEPUTY", "UNTIL")
					for _, a := range all {
						t.row(a.Person, a.Deputy, a.Until)
					}
				})
			}
			path := "/v1/people/" + url.PathEscape(args[0]) + "/absence"
			if end {
				if err := c.do(cmd.Context(), http.MethodDelete, path, nil, nil); err != nil {
					return err
				}
				fmt.Fprintln(cmd.OutOrStdout(), "Nobody decides in their place any more.")
				return nil
			}
			if deputy == "" || until == "" {
				return usageError{fmt.Errorf("say until when with --until, and who decides in their place with --deputy")}
			}
			at, err := moment(until)
			if err != nil {
				return usageError{err}
			}
			var a approval.Absence
			if err := c.do(cmd.Context(), http.MethodPut, path, map[string]any{"deputy": deputy, "until": at}, &a); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), a, func(t *table) { t.pairs("Person", a.Person, "Deputy", a.Deputy, "Until", a.Until) })
		},
	}
	c.Flags().StringVar(&until, "until", "", "until when: 2027-01-07, or a time as 2027-01-07T12:00:00Z, or 48h from now")
	c.Flags().StringVar(&deputy, "deputy", "", "who decides in their place, by name or id")
	c.Flags().BoolVar(&end, "end", false, "they are back")
	c.ValidArgsFunction = completeFrom(s, "/v1/people", func(p struct{ Name string }) string { return p.Name })
	return c
}

// moment is a time as people write it: a day, a time, or how far from now.
func moment(text string) (time.Time, error) {
	if d, err := time.ParseDuration(text); err == nil {
		return time.Now().Add(d), nil
	}
	if t, err := time.ParseInLocation(time.DateOnly, text, time.Local); err == nil {
		return t, nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return t, fmt.Errorf("%q is not a time: write 2027-01-07, 2027-01-07T12:00:00Z, or 48h from now", text)
	}
	return t, nil
}
