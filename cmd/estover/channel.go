package main

import (
	"fmt"
	"net/http"
	"net/url"
	"os"

	"github.com/spf13/cobra"

	"estover.dev/internal/notify"
)

func channelCommand(s *settings) *cobra.Command {
	c := noun("channel", "Channels: where people are told that something waits",
		`People are told by e-mail, in the chat of a team or by a webhook that a request
waits for them. No message approves anything: its link leads to a page on which
one signs in.`)
	c.AddCommand(channelAdd(s), channelList(s), channelShow(s), channelTest(s), channelRetire(s))
	return c
}

func completeChannels(s *settings) cobra.CompletionFunc {
	return completeFrom(s, "/v1/channels", func(c struct{ Name, Kind string }) string { return c.Name + "\t" + c.Kind })
}

func channelAdd(s *settings) *cobra.Command {
	var spec notify.Spec
	var ca string
	var batch, perHour int64
	c := &cobra.Command{
		Use: "add CHANNEL", Short: "Add a channel, or change the one of this name", Args: oneArgument("what the channel is called"),
		Example: `  estover channel add mail --kind email --server smtp.example.com:587 --from estover@example.com --user estover --secret mail/password
  estover channel add ops --kind slack --url https://hooks.slack.com --secret chat/slack
  estover channel add bus --kind webhook --url https://bus.example.com/estover --secret bus/key --event 'access.*'`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			spec.Name = args[0]
			if ca != "" {
				pem, err := os.ReadFile(ca)
				if err != nil {
					return err
				}
				spec.CA = string(pem)
			}
			for name, to := range map[string]struct {
				value *int64
				field **int64
			}{"batch": {&batch, &spec.BatchSeconds}, "per-hour": {&perHour, &spec.PerHour}} {
				if cmd.Flags().Changed(name) {
					*to.field = to.value
				}
			}
			var out notify.Channel
			if err := c.do(cmd.Context(), http.MethodPut, "/v1/channels/"+url.PathEscape(spec.Name), spec, &out); err != nil {
				return err
			}
			return showChannel(s, cmd, out)
		},
	}
	f := c.Flags()
	f.StringVar(&spec.Kind, "kind", "", "email, slack, teams or webhook")
	f.StringSliceVar(&spec.Events, "event", nil, "an event that is told, as access.request, or access.* for all of a kind; may be repeated (default: that a request waits)")
	f.StringVar(&spec.URL, "url", "", "where the webhook is; where a secret holds the whole URL, its beginning alone")
	f.StringVar(&spec.Secret, "secret", "", "the path of the secret: the key that signs, the whole URL of a chat, or the password for e-mail")
	f.StringVar(&spec.Server, "server", "", "the SMTP server, HOST:PORT")
	f.StringVar(&spec.TLS, "tls", "", "how TLS begins at the SMTP server: starttls (default), implicit, or none on a private network")
	f.StringVar(&spec.User, "user", "", "the user name at the SMTP server")
	f.StringVar(&spec.From, "from", "", "the sender's address")
	f.StringSliceVar(&spec.To, "to", nil, "an address that is told beside those who may decide; may be repeated")
	f.StringVar(&ca, "root", "", "PEM file of the authority of the other side's certificate")
	f.BoolVar(&spec.AllowPrivate, "allow-private", false, "the other side may be on a private network")
	f.Int64Var(&batch, "batch", 0, "how many seconds a message waits for others, to be one with them")
	f.Int64Var(&perHour, "per-hour", 0, "how many messages an hour somebody gets before the rest comes as one digest; 0 for no bound")
	_ = c.MarkFlagRequired("kind")
	_ = c.RegisterFlagCompletionFunc("kind", cobra.FixedCompletions([]string{notify.Email, notify.Slack, notify.Teams, notify.Webhook}, cobra.ShellCompDirectiveNoFileComp))
	_ = c.RegisterFlagCompletionFunc("tls", cobra.FixedCompletions([]string{"starttls", "implicit", "none"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

func channelList(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List channels, and whether they get through", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			all, err := list[notify.Channel](cmd.Context(), c, "/v1/channels", nil, 0)
			if err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), all, func(t *table) {
				t.row("NAME", "KIND", "TO", "WAITING", "FAILING SINCE", "WHY")
				for _, c := range all {
					t.row(c.Name, c.Kind, first(c.URL, c.Server), c.Waiting, c.FailingSince, c.Failure)
				}
			})
		},
	}
}

func showChannel(s *settings, cmd *cobra.Command, c notify.Channel) error {
	return s.show(cmd.OutOrStdout(), c, func(t *table) {
		t.pairs("Name", c.Name, "Id", c.ID, "Kind", c.Kind, "Events", c.Events, "URL", c.URL, "Server", c.Server, "TLS", c.TLS, "User", c.User,
			"From", c.From, "To", c.To, "Secret", c.Secret, "Changed", c.ChangedAt, "Waiting", c.Waiting, "Failing since", c.FailingSince, "Why", c.Failure)
	})
}

func channelShow(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "show CHANNEL", Short: "Show a channel, and whether it gets through", Args: oneArgument("the channel's name"),
		ValidArgsFunction: completeChannels(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			var out notify.Channel
			if err := c.do(cmd.Context(), http.MethodGet, "/v1/channels/"+url.PathEscape(args[0]), nil, &out); err != nil {
				return err
			}
			return showChannel(s, cmd, out)
		},
	}
}

func channelTest(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "test CHANNEL", Short: "Send a message that asks for nothing", Args: oneArgument("the channel's name"),
		ValidArgsFunction: completeChannels(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			if err := c.do(cmd.Context(), http.MethodPost, "/v1/channels/"+url.PathEscape(args[0])+"/test", nil, nil); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "Sent. Whoever is told should have it in a moment.")
			return nil
		},
	}
}

func channelRetire(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "retire CHANNEL", Short: "End a channel; what it had still to say is dropped", Args: oneArgument("the channel's name"),
		ValidArgsFunction: completeChannels(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			if err := c.do(cmd.Context(), http.MethodDelete, "/v1/channels/"+url.PathEscape(args[0]), nil, nil); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "Retired. Nobody is told by it any more.")
			return nil
		},
	}
}
