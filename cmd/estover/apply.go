package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"

	"github.com/spf13/cobra"

	"estover.dev/internal/apply"
)

func applyCommand(s *settings) *cobra.Command {
	var in apply.Request
	var files []string
	c := &cobra.Command{
		Use: "apply -f FILE", Short: "Make so what files say: people, resources, secrets' metadata, other vaults, agents, grants, channels, policies",
		Long: `Apply reads YAML files, compares them with what is there, and makes the
difference so. It may be run again at any time: what is as it should be is left
alone. --dry-run prints the difference and does nothing. Mistakes are told with
their file and line, all at once, before anything is changed.

docs/reference/apply.md describes every kind, with a JSON Schema for editors
('estover apply --schema').`,
		Example: "  estover apply -f company.yaml --dry-run\n  estover apply -f company/ --prune",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if show, _ := cmd.Flags().GetBool("schema"); show {
				_, err := cmd.OutOrStdout().Write(apply.Schema)
				return err
			}
			if len(files) == 0 {
				return usageError{errors.New("apply needs the files: estover apply -f FILE")}
			}
			c, err := s.client()
			if err != nil {
				return err
			}
			in.Files, err = apply.Load(files...)
			var missing *fs.PathError
			if errors.As(err, &missing) && errors.Is(err, fs.ErrNotExist) {
				return usageError{fmt.Errorf("there is no file or directory %s", missing.Path)}
			}
			if err != nil {
				return err
			}
			var out apply.Result
			if err := c.do(cmd.Context(), http.MethodPost, "/v1/apply", in, &out); err != nil {
				return err
			}
			if s.output == "json" {
				return s.show(cmd.OutOrStdout(), out, nil)
			}
			return out.Write(cmd.OutOrStdout())
		},
	}
	c.Flags().StringSliceVarP(&files, "filename", "f", nil, "a file, a directory, or - for standard input; may be repeated")
	c.Flags().BoolVar(&in.DryRun, "dry-run", false, "print the difference and do nothing")
	c.Flags().BoolVar(&in.Prune, "prune", false, "take away what an earlier run of the set has made and no file mentions any more")
	c.Flags().StringVar(&in.Set, "set", "", "which files belong together, for --prune (default: default)")
	c.Flags().Bool("schema", false, "print the JSON Schema of the files and do nothing else")
	return c
}
