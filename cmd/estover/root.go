package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"estover.dev/internal/seal"
	"estover.dev/internal/seal/source"
)

func rootKeyCommand(s *settings) *cobra.Command {
	c := noun("root-key", "Root keys: what all keys of a server rest on",
		`A root key opens the chain of keys under which everything is sealed. Where it
comes from is a source: `+source.Help+`.

A database has one or more root keys, each of which opens it by itself: that is
how one moves from one source to another, and how one keeps a way back in.`)
	c.AddCommand(rootKeyMake(), rootKeySplit(), rootKeyList(s), rootKeyAdd(s), rootKeyRemove(s), rootKeyRotate(s))
	return c
}

func rootKeyMake() *cobra.Command {
	return &cobra.Command{
		Use: "make", Short: "Print a fresh root key, for a credential of systemd or a variable", Args: noArguments,
		Long: `Make prints a root key that exists nowhere else. Put it where the server gets it
by systemd-creds: or env:, and keep a copy in a safe place. It asks no server.`,
		Example: `  estover root-key make | systemd-creds encrypt --name=estover-root - /etc/credstore.encrypted/estover-root
  # in the unit: LoadCredentialEncrypted=estover-root
  estover serve --root-key systemd-creds:estover-root`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := io.WriteString(cmd.OutOrStdout(), seal.NewRoot())
			return err
		},
	}
}

func rootKeySplit() *cobra.Command {
	var shares, need int
	c := &cobra.Command{
		Use: "split", Short: "Make a root key that exists only as shares of people", Args: noArguments,
		Long: `Split makes a root key and prints its shares, one a line. The key itself is kept
nowhere: whoever has enough shares makes it, and fewer say nothing about it. Give
each share to another person. Then start the server with --root-key shamir:, at
the first start as at every other, and have people give their shares with
'estover unseal'. It asks no server.`,
		Example: "  estover root-key split --shares 5 --needed 3",
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := source.Split(shares, need)
			if err != nil {
				return usageError{err}
			}
			for _, share := range list {
				fmt.Fprintln(cmd.OutOrStdout(), share)
			}
			return nil
		},
	}
	c.Flags().IntVar(&shares, "shares", 5, "how many shares there are")
	c.Flags().IntVar(&need, "needed", 3, "how many of them make the key")
	return c
}

func rootKeyList(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the root keys that open the database", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			all, err := list[seal.Root](cmd.Context(), c, "/v1/root-keys", nil, 0)
			if err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), all, func(t *table) {
				t.row("SOURCE", "GIVEN TO THIS SERVER", "ID")
				for _, one := range all {
					t.row(one.Kind, map[bool]string{true: "yes", false: "no"}[one.Open], one.ID)
				}
			})
		},
	}
}

func rootKeyAdd(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "add SOURCE", Short: "Register another root key beside those that there are", Args: oneArgument("where the server gets it"),
		Long: `Add has the server make or fetch a root key from another source and wrap the keys
under it too. From then on it starts with either. To move, add the new one, start
with it, and remove the old one. The server must have been started with
--may-root-key and this source: it is a file or a device of its machine.`,
		Example: `  estover root-key add tpm2:
  estover root-key add 'vault-transit:https://vault.example.com:8200?key=estover&token=/run/vault-token'`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var one struct {
				ID string `json:"id"`
			}
			if err := c.do(cmd.Context(), http.MethodPost, "/v1/root-keys", map[string]string{"source": args[0]}, &one); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), one, func(t *table) {
				t.row(fmt.Sprintf("Registered as %s. The server starts with --root-key '%s' too from here on.", one.ID, args[0]))
			})
		},
	}
}

func rootKeyRemove(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "remove ID", Short: "Take a root key's way in away", Args: oneArgument("the root key's id, as the list shows it"),
		Long: `Remove takes away what is wrapped under a root key. It opens this database no more,
but still a copy of it from before: after a root key was lost to somebody else,
replace what it has opened with 'estover root-key rotate'.`,
		ValidArgsFunction: completeFrom(s, "/v1/root-keys", func(r seal.Root) string { return r.ID + "\t" + r.Kind }),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			if err := c.do(cmd.Context(), http.MethodDelete, "/v1/root-keys/"+url.PathEscape(args[0]), nil, nil); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "Removed.")
			return nil
		},
	}
}

func rootKeyRotate(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "rotate", Short: "Replace the key that all data keys are wrapped under", Args: noArguments,
		Long: `Rotate makes a new key-encryption key, wraps every data key under it, and deletes
the old one. It takes moments, and nothing stops for it. Where there are several
root keys the server needs all of them: start it with --also-root-key.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			if err := c.do(cmd.Context(), http.MethodPost, "/v1/root-keys/rotate", struct{}{}, nil); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "Rotated. Every data key is wrapped under the new key.")
			return nil
		},
	}
}

func unsealCommand(s *settings) *cobra.Command {
	var file string
	var forget bool
	c := &cobra.Command{
		Use: "unseal", Short: "Give a share of the root key to a server that waits for it", Args: noArguments,
		Long: `Unseal gives one or more shares, one a line, to a server that was started with
--root-key shamir:, and says how many it still needs. Each person who has a share
does this. Shares are read from a file or from standard input, so that they stay
out of the process list; they go to the server alone.`,
		Example: `  estover unseal --ca ca.crt < my-share
  estover unseal --forget`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			c.token = "" // a server that is sealed knows nobody
			var p source.Progress
			if forget {
				if err := c.do(cmd.Context(), http.MethodDelete, "/v1/seal/shares", nil, &p); err != nil {
					return err
				}
				return s.showSeal(cmd.OutOrStdout(), p)
			}
			in := cmd.InOrStdin()
			if file != "" {
				f, err := os.Open(file)
				if err != nil {
					return err
				}
				defer f.Close()
				in = f
			}
			given := 0
			for lines := bufio.NewScanner(io.LimitReader(in, 64<<10)); lines.Scan(); {
				share := strings.TrimSpace(lines.Text())
				if share == "" {
					continue
				}
				if err := c.do(cmd.Context(), http.MethodPost, "/v1/seal/shares", map[string]string{"share": share}, &p); err != nil {
					return err
				}
				if given++; !p.Sealed {
					break
				}
			}
			if given == 0 {
				return usageError{errors.New("there is no share; give its file with --file, or on standard input")}
			}
			return s.showSeal(cmd.OutOrStdout(), p)
		},
	}
	c.Flags().StringVar(&file, "file", "", "file with the share (default: standard input)")
	c.Flags().BoolVar(&forget, "forget", false, "have the server forget the shares that it was given")
	return c
}

// showSeal says how far a server's unsealing is.
func (s *settings) showSeal(w io.Writer, p source.Progress) error {
	return s.show(w, p, func(t *table) {
		switch {
		case !p.Sealed:
			t.row("The server is open.")
		case p.Needed == 0:
			t.row("The server is sealed, and has no share.")
		default:
			t.row(fmt.Sprintf("The server is sealed: %d of %d shares.", p.Given, p.Needed))
		}
	})
}
