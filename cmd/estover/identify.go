package main

import (
	"bytes"
	"fmt"
	"net/http"

	"github.com/spf13/cobra"

	"estover.dev/internal/secret"
	"estover.dev/internal/secret/lease"
)

func secretIdentify(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "identify", Short: "Say what a value is that was found where it should not be", Args: noArguments,
		Long: `Identify reads a value from standard input and says which versions of secrets have
had it, and which leases handed it out. Every value leaves a fingerprint when it is
written or handed out; the value that you give is compared and not kept. What to do
about it: estover rotate --secret PATH --emergency, or estover secret lease revoke ID.`,
		Example: `  estover secret identify < found.txt`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			b, err := stdin(cmd)
			if err != nil {
				return err
			}
			var out struct {
				Secrets []secret.Sighting `json:"secrets"`
				Leases  []lease.Sighting  `json:"leases"`
			}
			in := map[string]string{"value": string(bytes.TrimSuffix(b, []byte("\n")))}
			if err := c.do(cmd.Context(), http.MethodPost, "/v1/secret/identify", in, &out); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), out, func(t *table) {
				if len(out.Secrets)+len(out.Leases) == 0 {
					t.row("Nothing here has had this value.")
					return
				}
				t.row("KIND", "WHICH", "FIELD")
				for _, x := range out.Secrets {
					t.row("secret", fmt.Sprintf("%s@%d", x.Path, x.Version), x.Field)
				}
				for _, x := range out.Leases {
					t.row("lease", x.Lease, x.Field)
				}
			})
		},
	}
}
