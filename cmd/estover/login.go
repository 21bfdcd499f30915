package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func loginCommand(s *settings) *cobra.Command {
	var tokenFile string
	c := &cobra.Command{
		Use:   "login",
		Short: "Become the person whom a one-time token names, for the commands after it",
		Long: `Login exchanges a one-time token for a login of twelve hours and keeps it, with
the server's address and authority, in a file that only you can read.

The first token is made by the server's first start, in DATA/bootstrap-token;
'estover person invite' makes the others. It is read from a file or from
standard input, so that it stays out of the process list.`,
		Example: `  estover login --ca estover-data/tls/ca.crt --token-file estover-data/bootstrap-token
  estover login --addr https://estover.example.com < invitation`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			token, err := oneTimeToken(tokenFile)
			if err != nil {
				return err
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
			if err := c.do(cmd.Context(), http.MethodPost, "/v1/login", map[string]string{"token": token}, &answer); err != nil {
				return err
			}
			l := login{Addr: c.addr, Token: answer.Token, Person: answer.Person.ID, Expires: answer.ExpiresAt}
			if file := first(s.ca, os.Getenv("ESTOVER_CA")); file != "" {
				b, err := os.ReadFile(file)
				if err != nil {
					return err
				}
				l.CA = string(b)
			} else if old, err := readLogin(); err == nil && old.Addr == c.addr {
				l.CA = old.CA
			}
			if err := writeLogin(l); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), answer.Person, func(t *table) {
				t.row(fmt.Sprintf("Logged in to %s as %s until %s.", c.addr, answer.Person.Name, cell(answer.ExpiresAt)))
			})
		},
	}
	c.Flags().StringVar(&tokenFile, "token-file", "", "file with the one-time token (default: standard input)")
	return c
}

func oneTimeToken(file string) (string, error) {
	var b []byte
	var err error
	if file != "" {
		b, err = os.ReadFile(file)
	} else {
		b, err = io.ReadAll(io.LimitReader(os.Stdin, 4096))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("there is no file %s. A server's first token is taken away once somebody has used it; after that an administrator makes others: estover person invite", file)
	}
	if err != nil {
		return "", fmt.Errorf("reading the one-time token: %w", err)
	}
	token := strings.TrimSpace(string(b))
	if token == "" {
		return "", usageError{errors.New("the one-time token is empty; give its file with --token-file")}
	}
	return token, nil
}

// writeLogin keeps the login in a file that only its owner can read, and never
// leaves half of one.
func writeLogin(l login) error {
	file, err := loginFile()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	b, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(file), ".login-")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(append(b, '\n'))
	if err = errors.Join(err, tmp.Chmod(0o600), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), file)
}

func logoutCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "logout",
		Short: "End the login and forget it",
		Args:  noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := readLogin()
			if err != nil {
				return err
			}
			if l.Token == "" {
				return errors.New("nobody is logged in here")
			}
			c, err := s.client()
			if err != nil {
				return err
			}
			c.addr, c.token = first(strings.TrimSuffix(l.Addr, "/"), c.addr), l.Token // never to another server than it came from
			remote := c.do(cmd.Context(), http.MethodPost, "/v1/logout", struct{}{}, nil)
			file, err := loginFile()
			if err == nil {
				err = os.Remove(file)
			}
			if err = errors.Join(err, remote); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "Logged out.")
			return nil
		},
	}
}
