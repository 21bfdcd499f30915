package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"estover.dev/internal/secret/transit"
)

func transitCommand(s *settings) *cobra.Command {
	c := noun("transit", "Keys that stay here, and encrypt and sign for others",
		`A key has versions: the newest encrypts and signs, older ones still decrypt and
verify. What is encrypted is written as vault:v3:…, as other vaults do. What is done
with a key is read from standard input and written to standard output.`)
	c.AddCommand(transitKey(s), transitDo(s, "encrypt", "Encrypt what stands on standard input"), transitDo(s, "decrypt", "Decrypt what stands on standard input; that is an event"),
		transitDo(s, "rewrap", "Encrypt with the newest version what an older one has encrypted"), transitDo(s, "sign", "Sign what stands on standard input; that is an event"),
		transitVerify(s), transitDo(s, "hmac", "Make a MAC of what stands on standard input"))
	return c
}

func completeTransit(s *settings) cobra.CompletionFunc {
	return completeFrom(s, "/v1/transit/keys", func(x struct{ Name, Type string }) string { return x.Name + "\t" + x.Type })
}

func transitKey(s *settings) *cobra.Command {
	c := noun("key", "Keys and their versions", `The secret of a key is not shown, unless the key was made exportable.`)
	c.AddCommand(transitList(s), transitShow(s), transitCreate(s), transitSet(s), transitRotate(s), transitTrim(s), transitExport(s), transitRemove(s))
	return c
}

func transitList(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List keys", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			all, err := list[transit.Key](cmd.Context(), c, "/v1/transit/keys", url.Values{"limit": {"200"}}, 0)
			if err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), all, func(t *table) {
				t.row("NAME", "TYPE", "VERSION", "RESOURCE", "ACTION", "CREATED")
				for _, k := range all {
					t.row(k.Name, k.Type, k.Latest, k.Resource, k.Action, k.CreatedAt)
				}
			})
		},
	}
}

// oneKey asks for something that answers a key, and shows it.
func oneKey(cmd *cobra.Command, s *settings, method, path string, in any) error {
	c, err := s.client()
	if err != nil {
		return err
	}
	var k transit.Key
	if err := c.do(cmd.Context(), method, "/v1/transit/keys"+path, in, &k); err != nil {
		return err
	}
	return s.show(cmd.OutOrStdout(), k, func(t *table) {
		t.pairs("Key", k.Name, "Type", k.Type, "Newest version", k.Latest, "Decrypts from", k.MinDecryption, "Encrypts from", k.MinEncryption, "Resource", k.Resource, "Action", k.Action, "Rotates by itself", k.RotatesAt)
		t.row()
		t.row("VERSION", "CREATED")
		for _, v := range k.Versions {
			t.row(v.N, v.CreatedAt)
		}
		for _, v := range k.Versions {
			for line := range strings.SplitSeq(strings.TrimSpace(v.PublicKey), "\n") {
				if line != "" {
					t.row(line)
				}
			}
		}
	})
}

func transitShow(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "show KEY", Short: "Show a key and its versions, never its secrets", Args: oneArgument("the key's name"), ValidArgsFunction: completeTransit(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			return oneKey(cmd, s, http.MethodGet, "/"+url.PathEscape(args[0]), nil)
		},
	}
}

func transitCreate(s *settings) *cobra.Command {
	var typ, resource, action string
	var derived, convergent, exportable bool
	var rotate int64
	c := &cobra.Command{
		Use: "create NAME", Short: "Make a key", Args: oneArgument("the key's name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := map[string]any{"name": args[0], "derived": derived, "convergent": convergent, "exportable": exportable, "auto_rotate_seconds": rotate}
			for k, v := range map[string]string{"type": typ, "resource": resource, "action": action} {
				if v != "" {
					in[k] = v
				}
			}
			return oneKey(cmd, s, http.MethodPost, "", in)
		},
	}
	c.Flags().StringVar(&typ, "type", "", "aes256-gcm96, aes128-gcm96, chacha20-poly1305, ecdsa-p256, ecdsa-p384, ecdsa-p521, ed25519, rsa-2048, rsa-3072, rsa-4096 or hmac (default: aes256-gcm96)")
	c.Flags().BoolVar(&derived, "derived", false, "each context has a key of its own")
	c.Flags().BoolVar(&convergent, "convergent", false, "the same plaintext in the same context gives the same ciphertext")
	c.Flags().BoolVar(&exportable, "exportable", false, "the secret may be shown; that is not taken back")
	c.Flags().Int64Var(&rotate, "auto-rotate", 0, "after how many seconds it rotates by itself; an hour at least")
	c.Flags().StringVar(&resource, "resource", "", "the resource on which an agent needs a grant to use the key (default: no agent does)")
	c.Flags().StringVar(&action, "action", "", "the action of it that the grant has to cover")
	return c
}

func transitSet(s *settings) *cobra.Command {
	var decrypts, encrypts, rotate int64
	var removable, exportable bool
	c := &cobra.Command{
		Use: "set KEY", Short: "Change the settings of a key", Args: oneArgument("the key's name"), ValidArgsFunction: completeTransit(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := map[string]any{}
			for flag, one := range map[string]struct {
				name string
				v    any
			}{
				"decrypts-from": {"min_decryption_version", &decrypts}, "encrypts-from": {"min_encryption_version", &encrypts},
				"auto-rotate": {"auto_rotate_period", &rotate}, "removable": {"deletion_allowed", &removable}, "exportable": {"exportable", &exportable},
			} {
				if cmd.Flags().Changed(flag) {
					in[one.name] = one.v
				}
			}
			if len(in) == 0 {
				return usageError{errors.New("say what to change: " + cmd.CommandPath() + " --help")}
			}
			return oneKey(cmd, s, http.MethodPatch, "/"+url.PathEscape(args[0]), in)
		},
	}
	c.Flags().Int64Var(&decrypts, "decrypts-from", 0, "the oldest version that decrypts and verifies")
	c.Flags().Int64Var(&encrypts, "encrypts-from", 0, "the oldest version that may be named to encrypt and sign; 0 is the newest")
	c.Flags().Int64Var(&rotate, "auto-rotate", 0, "after how many seconds it rotates by itself; 0 is never")
	c.Flags().BoolVar(&removable, "removable", false, "whether the key may be removed")
	c.Flags().BoolVar(&exportable, "exportable", false, "whether the secret may be shown; that is not taken back")
	return c
}

func transitRotate(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "rotate KEY", Short: "Give a key another version", Args: oneArgument("the key's name"), ValidArgsFunction: completeTransit(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			return oneKey(cmd, s, http.MethodPost, "/"+url.PathEscape(args[0])+"/rotate", nil)
		},
	}
}

func transitTrim(s *settings) *cobra.Command {
	var oldest int64
	c := &cobra.Command{
		Use: "trim KEY", Short: "Erase the versions below one, for good", Args: oneArgument("the key's name"), ValidArgsFunction: completeTransit(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			return oneKey(cmd, s, http.MethodPost, "/"+url.PathEscape(args[0])+"/trim", map[string]any{"min_available_version": oldest})
		},
	}
	c.Flags().Int64Var(&oldest, "below", 0, "the oldest version that stays")
	_ = c.MarkFlagRequired("below")
	return c
}

func transitExport(s *settings) *cobra.Command {
	var part string
	c := &cobra.Command{
		Use: "export KEY", Short: "Show the secrets of an exportable key; that is an event, and leaves them with you", Args: oneArgument("the key's name"), ValidArgsFunction: completeTransit(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			out := map[string]string{}
			if err := c.do(cmd.Context(), http.MethodPost, "/v1/transit/keys/"+url.PathEscape(args[0])+"/export", map[string]any{"part": part}, &out); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), out, func(t *table) {
				for _, n := range sortedKeys(out) {
					for line := range strings.SplitSeq(strings.TrimSpace(out[n]), "\n") {
						t.row(n, line)
					}
				}
			})
		},
	}
	c.Flags().StringVar(&part, "part", "public-key", "encryption-key, signing-key, hmac-key or public-key")
	return c
}

func transitRemove(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "remove KEY", Short: "Remove a key; nothing that it encrypted opens any more", Args: oneArgument("the key's name"), ValidArgsFunction: completeTransit(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			if err := c.do(cmd.Context(), http.MethodDelete, "/v1/transit/keys/"+url.PathEscape(args[0]), nil, nil); err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), "Removed. Nothing that it encrypted opens any more.")
			return err
		},
	}
}

// A transitAnswer is what came of one item.
type transitAnswer struct {
	Text      string `json:"text,omitempty"`
	Plaintext []byte `json:"plaintext,omitempty"`
	Valid     *bool  `json:"valid,omitempty"`
	Version   int64  `json:"version,omitempty"`
	Error     string `json:"error,omitempty"`
}

// useKey does one thing with a key.
func useKey(cmd *cobra.Command, s *settings, key, verb string, in map[string]any) (transitAnswer, error) {
	c, err := s.client()
	if err != nil {
		return transitAnswer{}, err
	}
	var out page[transitAnswer]
	if err := c.do(cmd.Context(), http.MethodPost, "/v1/transit/keys/"+url.PathEscape(key)+"/"+verb, in, &out); err != nil {
		return transitAnswer{}, err
	}
	if len(out.Items) != 1 {
		return transitAnswer{}, errors.New("the server answered something else than was asked")
	}
	if out.Items[0].Error != "" {
		return transitAnswer{}, errors.New(out.Items[0].Error)
	}
	return out.Items[0], nil
}

func stdin(cmd *cobra.Command) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(os.Stdin, 4<<20))
	if err == nil && len(b) == 0 {
		err = usageError{errors.New(cmd.CommandPath() + " reads from standard input, and there is nothing")}
	}
	return b, err
}

func transitDo(s *settings, verb, short string) *cobra.Command {
	var context, hash string
	c := &cobra.Command{
		Use: verb + " KEY", Short: short, Args: oneArgument("the key's name"), ValidArgsFunction: completeTransit(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := stdin(cmd)
			if err != nil {
				return err
			}
			item := map[string]any{}
			if verb == "decrypt" || verb == "rewrap" {
				item["ciphertext"] = strings.TrimSpace(string(b))
			} else {
				item["plaintext"] = b
			}
			if context != "" {
				item["context"] = []byte(context)
			}
			in := map[string]any{"items": []any{item}}
			if hash != "" {
				in["hash"] = hash
			}
			out, err := useKey(cmd, s, args[0], verb, in)
			if err != nil {
				return err
			}
			switch {
			case s.output == "json":
				return s.show(cmd.OutOrStdout(), out, nil)
			case verb == "decrypt":
				_, err = cmd.OutOrStdout().Write(out.Plaintext)
			default:
				_, err = fmt.Fprintln(cmd.OutOrStdout(), out.Text)
			}
			return err
		},
	}
	c.Flags().StringVar(&context, "context", "", "of a derived key: which of its keys is meant")
	if verb == "sign" || verb == "hmac" {
		c.Flags().StringVar(&hash, "hash", "", "sha2-256, sha2-384, sha2-512, sha3-256 and the like (default: sha2-256)")
	}
	return c
}

func transitVerify(s *settings) *cobra.Command {
	var signature, mac, hash string
	c := &cobra.Command{
		Use: "verify KEY", Short: "Say whether a signature or a MAC of what stands on standard input holds", Args: oneArgument("the key's name"), ValidArgsFunction: completeTransit(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (signature == "") == (mac == "") {
				return usageError{errors.New("give either --signature or --hmac")}
			}
			b, err := stdin(cmd)
			if err != nil {
				return err
			}
			in := map[string]any{"items": []any{map[string]any{"plaintext": b, "ciphertext": first(signature, mac)}}, "mac": mac != ""}
			if hash != "" {
				in["hash"] = hash
			}
			out, err := useKey(cmd, s, args[0], "verify", in)
			if err != nil {
				return err
			}
			if out.Valid == nil || !*out.Valid {
				return errors.New("it does not hold")
			}
			return s.show(cmd.OutOrStdout(), out, func(t *table) { t.row(fmt.Sprintf("It holds, by version %d of the key.", out.Version)) })
		},
	}
	c.Flags().StringVar(&signature, "signature", "", "the signature, as vault:v1:…")
	c.Flags().StringVar(&mac, "hmac", "", "the MAC, as vault:v1:…")
	c.Flags().StringVar(&hash, "hash", "", "by which it was made (default: sha2-256)")
	return c
}
