package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"estover.dev"
	"estover.dev/internal/federation"
	"estover.dev/internal/token"
)

func tokenCommand(s *settings) *cobra.Command {
	c := noun("token", "Access tokens: what one is, and its end",
		`Agents get tokens at /oauth/token with their own credentials. These commands are
for people who look at one: it is read from standard input, so that it stays out
of the process list.`)
	c.AddCommand(tokenPrint(s), tokenIntrospect(s), tokenRevoke(s), tokenExplain(s))
	return c
}

func tokenPrint(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "print", Short: "Print the token that you are logged in with, for another program", Args: noArguments,
		Example: "  export VAULT_TOKEN=$(estover token print)",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			if c.token == "" {
				return errors.New("you are not logged in; log in with 'estover login'")
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), c.token)
			return err
		},
	}
}

// readToken reads a token from standard input.
func readToken(cmd *cobra.Command) (string, error) {
	line, err := bufio.NewReader(io.LimitReader(os.Stdin, 32<<10)).ReadString('\n')
	if err != nil && err != io.EOF {
		return "", err
	}
	token := strings.TrimSpace(line)
	if token == "" {
		return "", usageError{errors.New("the token is read from standard input, and there is none: " + cmd.CommandPath() + " < FILE")}
	}
	return token, nil
}

// oauthForm sends a form to the token service and reads the answer.
func oauthForm(cmd *cobra.Command, s *settings, path string, out any) error {
	c, err := s.client()
	if err != nil {
		return err
	}
	token, err := readToken(cmd)
	if err != nil {
		return err
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

// An explanation is what the API says of a token.
type explanation struct {
	Ours    *token.Explanation      `json:"access_token,omitempty"`
	Foreign *federation.Explanation `json:"foreign_token,omitempty"`
}

func tokenExplain(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "explain [TOKEN]", Short: "Say what a token is, whose, what it may do, and why it counts or does not",
		Long: `Says what a token is, on whose authority and by way of whom, what it may do,
whether it is alive, and why not. A token of another issuer is held against the
trust that names it, rule by rule. The token is an argument or, so that it stays
out of the process list, read from standard input.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageError{fmt.Errorf("%s takes one argument at most, the token, but got %d", cmd.CommandPath(), len(args))}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var raw string
			if len(args) == 1 {
				raw = args[0]
			} else if raw, err = readToken(cmd); err != nil {
				return err
			}
			var e explanation
			if err := c.do(cmd.Context(), http.MethodPost, "/v1/tokens/explain", map[string]string{"token": raw}, &e); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), e, func(t *table) {
				if e.Ours != nil {
					c.explain(cmd.Context(), t, e.Ours)
				} else if e.Foreign != nil {
					c.explainForeign(cmd.Context(), t, e.Foreign)
				}
			})
		},
	}
}

// nameOf is a subject as people know it: with the name of the agent, if it can
// be had.
func (c *client) nameOf(ctx context.Context, s estover.Subject) string {
	if s.Kind() != estover.AgentKind {
		return string(s)
	}
	var a struct{ Name string }
	if c.do(ctx, http.MethodGet, "/v1/agents/"+url.PathEscape(s.ID()), nil, &a) != nil || a.Name == "" {
		return string(s)
	}
	return a.Name + " (" + s.ID() + ")"
}

func (c *client) explain(ctx context.Context, t *table, e *token.Explanation) {
	if e.Alive {
		t.row("An access token of this server. It is alive.")
	} else {
		t.row("An access token of this server. It is dead: " + e.Why)
	}
	t.row()
	t.row("On the authority of:", c.nameOf(ctx, e.Subject))
	for i := len(e.Actors) - 1; i >= 0; i-- {
		t.row("By way of:", c.nameOf(ctx, e.Actors[i]))
	}
	bound := "nothing: whoever has it can use it"
	if e.Confirm.Key != "" {
		bound = "the key " + e.Confirm.Key + " (DPoP)"
	} else if e.Confirm.Certificate != "" {
		bound = "the certificate " + e.Confirm.Certificate
	}
	t.pairs("Issued to", c.nameOf(ctx, estover.Agent(e.Client)), "For", e.Audience, "May", e.Scopes, "Purpose", e.Purpose, "Session", e.Session,
		"Issued", e.Issued, "Expires", e.Expires, "Bound to", bound, "Strength", e.Strength, "Token", e.ID, "Decision", e.Decision)
	t.row()
	t.row("GRANT", "KIND", "CLIENT", "STATE")
	for _, g := range e.Grants {
		state := "live until " + cell(g.Expires)
		if !g.Ended.IsZero() {
			state = "ended " + cell(g.Ended) + ": " + g.Cause
		}
		t.row(g.ID, g.Kind, g.Client, state)
	}
}

func (c *client) explainForeign(ctx context.Context, t *table, e *federation.Explanation) {
	switch {
	case e.Accepted && e.Person != "":
		t.row("A token of a trusted issuer. It counts: " + c.nameOf(ctx, estover.User(e.Person)) + " lets " + c.nameOf(ctx, estover.Agent(e.Agent)) + " act.")
	case e.Accepted:
		t.row("A token of a trusted issuer. It counts, as that of " + c.nameOf(ctx, estover.Agent(e.Agent)) + ".")
	default:
		t.row("A token of another issuer. It does not count: " + e.Why)
	}
	t.row()
	t.pairs("Issuer", e.Issuer, "Subject", e.Subject, "Audience", e.Audience, "Trust", e.Trust)
	if len(e.Rules) == 0 {
		return
	}
	t.row()
	t.row("RULE FOR", "FITS", "CLAIMS THAT DO NOT")
	for _, r := range e.Rules {
		t.row(c.nameOf(ctx, estover.Agent(r.Agent)), map[bool]string{true: "yes", false: "no"}[r.Fits], r.Misses)
	}
}
