package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

func tokenCommand(s *settings) *cobra.Command {
	c := noun("token", "Access tokens: what one is, and its end",
		`Agents get tokens at /oauth/token with their own credentials. These commands are
for people who look at one: it is read from standard input, so that it stays out
of the process list.`)
	c.AddCommand(tokenIntrospect(s), tokenRevoke(s))
	return c
}

// oauthForm sends a form to the token service and reads the answer.
func oauthForm(cmd *cobra.Command, s *settings, path string, out any) error {
	c, err := s.client()
	if err != nil {
		return err
	}
	line, err := bufio.NewReader(io.LimitReader(os.Stdin, 32<<10)).ReadString('\n')
	if err != nil && err != io.EOF {
		return err
	}
	token := strings.TrimSpace(line)
	if token == "" {
		return usageError{errors.New("the token is read from standard input, and there is none: " + cmd.CommandPath() + " < FILE")}
	}
	form := url.Values{"token": {token}}
	req, err := http.NewRequestWithContext(cmd.Context(), http.MethodPost, c.addr+path, strings.NewReader(form.Encode()))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Authorization", "Bearer "+c.token)
	res, err := c.http.Do(req)
	if err != nil {
		return &unreachable{c.addr, err}
	}
	if res.StatusCode != http.StatusOK {
		return oauthProblem(res)
	}
	return c.answer(res, out)
}

// oauthProblem is an error of the token service (RFC 6749, section 5.2) as a
// problem like all others.
func oauthProblem(res *http.Response) error {
	defer res.Body.Close()
	var e struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}
	b, _ := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	if json.Unmarshal(b, &e) != nil || e.Error == "" {
		e.Error = res.Status
	}
	if e.Error == "access_denied" || e.Error == "unauthorized_client" {
		res.StatusCode = http.StatusForbidden // as everywhere else
	}
	return &problem{Status: res.StatusCode, Code: e.Error, Detail: first(e.Description, "The token service answered "+e.Error+".")}
}

func tokenIntrospect(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "introspect", Short: "Say what a token is and whether it is alive", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var claims map[string]any
			if err := oauthForm(cmd, s, "/oauth/introspect", &claims); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), claims, func(t *table) {
				for _, k := range sortedKeys(claims) {
					b, err := json.Marshal(claims[k])
					if err == nil {
						t.row(k+":", strings.Trim(string(b), `"`))
					}
				}
			})
		},
	}
}

func tokenRevoke(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "revoke", Short: "End a token before its time", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := oauthForm(cmd, s, "/oauth/revoke", nil); err != nil {
				return err
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "Revoked, if it was one of this server's.")
			return err
		},
	}
}
