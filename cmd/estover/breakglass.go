package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"estover.dev/internal/directory"
)

func breakGlassCommand(s *settings) *cobra.Command {
	c := noun("break-glass", "Emergency codes: the way in when no administrator can come in",
		`Emergency codes are made once, printed, sealed, and given to different people. As
many of them as the quorum wants, brought together, let an emergency administrator
in for an hour. That is on record and told at once, and uses the codes up.`)
	codes := noun("codes", "The codes themselves", "")
	codes.AddCommand(glassCreate(s))
	c.AddCommand(codes, glassStatus(s), glassOpen(s))
	return c
}

func glassCreate(s *settings) *cobra.Command {
	var shares, quorum int64
	var ttl time.Duration
	c := &cobra.Command{
		Use: "create", Short: "Make a set of codes in the place of the one that stands; they are shown once", Args: noArguments,
		Example: "  estover break-glass codes create --shares 5 --quorum 3",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var made struct {
				directory.Glass
				Codes []string `json:"codes"`
			}
			in := map[string]int64{"shares": shares, "quorum": quorum, "ttl_seconds": int64(ttl / time.Second)}
			if err := c.do(cmd.Context(), http.MethodPost, "/v1/break-glass/codes", in, &made); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), made, func(t *table) {
				for n, code := range made.Codes {
					t.row(fmt.Sprintf("%d of %d", n+1, made.Shares), code)
				}
				t.row()
				t.row(fmt.Sprintf("Any %d of them let an emergency administrator in, once, until %s. They are shown now and never again:", made.Quorum, made.ExpiresAt.Format(time.DateOnly)))
				t.row("print each on a sheet of its own, seal it, and give it to somebody else. Codes of before are void.")
			})
		},
	}
	c.Flags().Int64Var(&shares, "shares", 5, "how many codes")
	c.Flags().Int64Var(&quorum, "quorum", 3, "how many of them it takes")
	c.Flags().DurationVar(&ttl, "ttl", 0, "how long they are good (default: a year)")
	return c
}

func glassStatus(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Say which set of codes stands", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var g directory.Glass
			if err := c.do(cmd.Context(), http.MethodGet, "/v1/break-glass", nil, &g); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), g, func(t *table) {
				t.pairs("Set", g.ID, "Codes", g.Shares, "Quorum", g.Quorum, "Made", g.CreatedAt, "By", g.CreatedBy, "Good until", g.ExpiresAt)
			})
		},
	}
}

func glassOpen(s *settings) *cobra.Command {
	var reason, file string
	c := &cobra.Command{
		Use: "open", Short: "Come in as an emergency administrator, with a quorum of the codes", Args: noArguments,
		Long: `Open reads the codes, one on a line, from a file or from standard input, and prints
a token of an emergency administrator, which is good for an hour. Use it to let
people in again: estover person invite.`,
		Example: "  estover break-glass open --reason \"both administrators have left\" --code-file codes.txt\n  export ESTOVER_TOKEN=est_pt_…",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			in := io.Reader(os.Stdin)
			if file != "" {
				f, err := os.Open(file)
				if err != nil {
					return err
				}
				defer f.Close()
				in = f
			}
			var codes []string
			for lines := bufio.NewScanner(io.LimitReader(in, 16<<10)); lines.Scan(); {
				if code := strings.TrimSpace(lines.Text()); code != "" {
					codes = append(codes, code)
				}
			}
			if len(codes) == 0 {
				return usageError{errors.New("there are no codes; write them to --code-file, one on a line")}
			}
			var answer struct {
				Token     string    `json:"token"`
				ExpiresAt time.Time `json:"expires_at"`
				Person    struct {
					ID   string `json:"id"`
					Name string `json:"name"`
				} `json:"person"`
			}
			c.token = ""
			if err := c.do(cmd.Context(), http.MethodPost, "/v1/break-glass/open", map[string]any{"codes": codes, "reason": reason}, &answer); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), answer, func(t *table) {
				t.pairs("Token", answer.Token, "Person", answer.Person.Name, "Until", answer.ExpiresAt)
				t.row()
				t.row("Everybody who is told of alarms hears of this. Make another set of codes when it is over.")
			})
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for the record")
	c.Flags().StringVar(&file, "code-file", "", "file with the codes, one on a line (default: standard input)")
	_ = c.MarkFlagRequired("reason")
	return c
}
