package main

import (
	"bytes"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"estover.dev/internal/directory"
)

func personKey(s *settings) *cobra.Command {
	c := noun("key", "Keys by which people sign approvals",
		`Policy can ask that an approval is signed. A passkey signs on the approval's
page; an ssh key, which may be kept in a security key, signs on the command line:

  ssh-keygen -t ed25519-sk -O verify-required -f ~/.ssh/approve
  estover person key add ~/.ssh/approve.pub --verify-required
  estover access approve apr_… --ssh-key ~/.ssh/approve

A key is registered by its owner, who has logged in within the last 15 minutes,
and is one person's, once.`)
	c.AddCommand(personKeyAdd(s), personKeyList(s), personKeyRetire(s))
	return c
}

func personKeyAdd(s *settings) *cobra.Command {
	var label string
	var verify bool
	c := &cobra.Command{
		Use: "add FILE", Short: "Register an ssh key of yours to sign approvals with", Args: oneArgument("the .pub file of the key"),
		Example: "  estover person key add ~/.ssh/approve.pub --label 'security key on my desk' --verify-required",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			line, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			if bytes.Contains(line, []byte("PRIVATE KEY")) {
				return usageError{fmt.Errorf("%s is the private key, which stays with you. Name its .pub file", args[0])}
			}
			body := map[string]any{"public_key": strings.TrimSpace(string(line)), "label": label, "verifies": verify}
			var k directory.ApproverKey
			if err := c.do(cmd.Context(), http.MethodPost, "/v1/people/me/approver-keys", body, &k); err != nil {
				return err
			}
			return showApproverKeys(s, cmd, []directory.ApproverKey{k})
		},
	}
	c.Flags().StringVar(&label, "label", "", "what you call it (default: the comment in the file)")
	c.Flags().BoolVar(&verify, "verify-required", false, "the security key must look who uses it each time")
	return c
}

func showApproverKeys(s *settings, cmd *cobra.Command, keys []directory.ApproverKey) error {
	return s.show(cmd.OutOrStdout(), keys, func(t *table) {
		t.row("KEY", "METHOD", "LABEL", "TYPE", "FINGERPRINT", "SINCE")
		for _, k := range keys {
			t.row(k.ID, k.Method, k.Label, k.Type, k.Fingerprint, k.CreatedAt)
		}
	})
}

func personKeyList(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "list [PERSON]", Short: "List the keys by which you, or somebody, signs approvals", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			keys, err := list[directory.ApproverKey](cmd.Context(), c, "/v1/people/"+url.PathEscape(personOr(args))+"/approver-keys", nil, 0)
			if err != nil {
				return err
			}
			return showApproverKeys(s, cmd, keys)
		},
	}
}

// personOr is the person whom the arguments name, or who asks.
func personOr(args []string) string {
	if len(args) == 0 {
		return "me"
	}
	return args[0]
}

func personKeyRetire(s *settings) *cobra.Command {
	person := "me"
	c := &cobra.Command{
		Use: "retire KEY", Short: "Retire an ssh key; what it has signed still counts", Args: oneArgument("the key's id"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			if err := c.do(cmd.Context(), http.MethodDelete, "/v1/people/"+url.PathEscape(person)+"/approver-keys/"+url.PathEscape(args[0]), nil, nil); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), map[string]string{"retired": args[0]}, func(t *table) { t.row(fmt.Sprintf("%s signs nothing any more.", args[0])) })
		},
	}
	c.Flags().StringVar(&person, "person", "me", "whose it is")
	return c
}
