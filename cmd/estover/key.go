package main

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"estover.dev/internal/seal"
	"estover.dev/internal/token"
)

func keyCommand(s *settings) *cobra.Command {
	c := noun("key", "Keys: what the server signs tokens with",
		`Keys that sign tokens are made, published and replaced by the server itself
(--key-rotation of 'estover serve'). Each has one purpose. A key is published
an hour before it signs, and for an hour and a half after it has signed last.`)
	c.AddCommand(keyList(s), keyRotate(s))
	return c
}

func keyList(s *settings) *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use: "list", Short: "List signing keys", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			keys, err := list[token.Key](cmd.Context(), c, "/v1/keys", nil, 0)
			if err != nil {
				return err
			}
			if !all {
				keys = slices.DeleteFunc(keys, func(k token.Key) bool { return k.State == seal.KeyPast || k.State == seal.KeyRevoked })
			}
			return s.show(cmd.OutOrStdout(), keys, func(t *table) {
				t.row("PURPOSE", "ALG", "STATE", "SIGNS FROM", "PUBLISHED UNTIL", "ID")
				for _, k := range keys {
					t.row(k.Purpose, k.Algorithm, k.State, k.SignsFrom, k.LeavesAt, k.ID)
				}
			})
		},
	}
	c.Flags().BoolVar(&all, "all", false, "with those that are not published any more")
	return c
}

func keyRotate(s *settings) *cobra.Command {
	var purposes []string
	var emergency bool
	var reason string
	c := &cobra.Command{
		Use: "rotate", Short: "Replace signing keys", Args: noArguments,
		Long: `Rotate gives the keys that sign tokens a successor, all of them or those of the
purposes that are named.

The successor is published at once and signs after an hour: nobody notices.

With --emergency it signs at once, and the keys that there are are revoked: they
leave the key set, and nothing that they signed is accepted by this server any
more. Agents ask for new tokens by what they have: credentials, refresh tokens
and sessions go on. Do this when somebody else may have a key. Whoever keeps a
copy of the key set accepts tokens of the old key until the copy is old, which
is 15 minutes at most.`,
		Example: `  estover key rotate
  estover key rotate --purpose access_token --emergency --reason "the disk of a node was stolen"`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			if len(purposes) == 0 {
				keys, err := list[token.Key](cmd.Context(), c, "/v1/keys", nil, 0)
				if err != nil {
					return err
				}
				for _, k := range keys {
					if p := string(k.Purpose); seal.SignsTokens(k.Purpose) && !slices.Contains(purposes, p) {
						purposes = append(purposes, p)
					}
				}
			}
			var done []token.Rotation
			for _, p := range purposes {
				var r token.Rotation
				if err := c.do(cmd.Context(), http.MethodPost, "/v1/keys/"+url.PathEscape(p)+"/rotate", map[string]any{"emergency": emergency, "reason": reason}, &r); err != nil {
					return err
				}
				done = append(done, r)
			}
			return s.show(cmd.OutOrStdout(), done, func(t *table) {
				for _, r := range done {
					t.row(string(r.Purpose)+":", rotated(r))
				}
			})
		},
	}
	c.Flags().StringSliceVar(&purposes, "purpose", nil, "what the keys sign, as 'estover key list' says; may be repeated (default: everything)")
	c.Flags().BoolVar(&emergency, "emergency", false, "at once, and nothing that the old keys signed counts any more")
	c.Flags().StringVar(&reason, "reason", "", "why, for the record; an emergency needs one")
	return c
}

// rotated says what became of a purpose's keys.
func rotated(r token.Rotation) string {
	at := r.SignsFrom.Local().Format(time.DateTime)
	switch {
	case r.Already:
		return fmt.Sprintf("%s was made before and signs from %s on", r.Key, at)
	case len(r.Revoked) > 0:
		return fmt.Sprintf("%s signs now; revoked: %d", r.Key, len(r.Revoked))
	}
	return fmt.Sprintf("%s is published and signs from %s on", r.Key, at)
}
