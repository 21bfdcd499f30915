package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"estover.dev/internal/secret"
)

// A written is what a command line says is to be written.
type written struct {
	fields []string
	data   string
	expect int64
	remove []string // of a patch
}

func (w *written) flags(c *cobra.Command) {
	c.Flags().StringArrayVar(&w.fields, "field", nil, "a field and the file with its value, as NAME=@FILE; may be repeated")
	c.Flags().StringVar(&w.data, "data", "", "a file with an object of JSON, whose members may be of any type; - is standard input")
	c.Flags().Int64Var(&w.expect, "cas", 0, "write only if this is the current version; 0: only if there is none")
	c.Flags().Int64Var(&w.expect, "expect", 0, "the same as --cas")
}

// body is the request: of fields that are files, of an object, or of the one
// value that standard input is.
func (w *written) body(cmd *cobra.Command, fields []string, patch bool) (map[string]any, error) {
	in := map[string]any{}
	if cmd.Flags().Changed("cas") || cmd.Flags().Changed("expect") {
		in["expect"] = w.expect
	}
	fields = append(fields, w.fields...)
	if w.data != "" {
		if len(fields) > 0 {
			return nil, usageError{errors.New("write either fields or an object with --data, not both")}
		}
		var b []byte
		var err error
		if w.data == "-" {
			b, err = io.ReadAll(io.LimitReader(os.Stdin, 2<<20))
		} else {
			b, err = os.ReadFile(w.data)
		}
		if err != nil {
			return nil, err
		}
		if !json.Valid(b) {
			return nil, usageError{fmt.Errorf("%s holds no JSON", w.data)}
		}
		in["data"] = json.RawMessage(b)
		return in, nil
	}
	values := map[string]any{}
	for _, f := range fields {
		name, file, ok := strings.Cut(f, "=@")
		if n, isIn := strings.CutSuffix(f, "=-"); isIn {
			name, file, ok = n, "/dev/stdin", true
		}
		if !ok || name == "" {
			return nil, usageError{fmt.Errorf("a field is NAME=@FILE or NAME=-, not %q: a value on the command line could be read by others", f)}
		}
		var b []byte
		var err error
		if file == "/dev/stdin" {
			b, err = io.ReadAll(io.LimitReader(os.Stdin, 1<<20))
		} else {
			b, err = os.ReadFile(file)
		}
		if err != nil {
			return nil, err
		}
		values[name] = withoutLineEnd(b)
	}
	for _, name := range w.remove {
		values[name] = nil
	}
	if len(values) == 0 {
		b, err := io.ReadAll(io.LimitReader(os.Stdin, 1<<20))
		if err != nil {
			return nil, err
		}
		value := withoutLineEnd(b)
		if value == "" {
			return nil, usageError{fmt.Errorf("the value is read from standard input, and there is none: %s PATH < FILE", cmd.CommandPath())}
		}
		values[secret.DefaultField] = value
	}
	if patch {
		in["data"], in["patch"] = values, true
	} else {
		in["fields"] = values
	}
	return in, nil
}

func secretPut(s *settings) *cobra.Command {
	var w written
	c := &cobra.Command{
		Use: "put PATH [NAME=@FILE]…", Short: "Write a version of a secret", Args: someArguments("the secret's path"),
		Long: `Put writes a version, which is what the resource accepts from here on. The value
is read from standard input, or of several fields each from a file, so that it
stays out of the process list and the shell's history. One line end at the end
is left off. An object of JSON, whose members may be numbers, lists and objects
too, is written with --data.`,
		Example:           "  estover secret put crm/api-key < key.txt\n  estover secret put db/reader username=@user.txt password=- < pass.txt\n  estover secret put app/settings --data settings.json --cas 3",
		ValidArgsFunction: completeSecrets(s),
		RunE:              writing(s, &w, false),
	}
	w.flags(c)
	return c
}

func secretPatch(s *settings) *cobra.Command {
	var w written
	c := &cobra.Command{
		Use: "patch PATH [NAME=@FILE]…", Short: "Write a version in which some fields are others", Args: someArguments("the secret's path"),
		Long: `Patch writes a version that is the current one with some of its fields changed,
added or taken away. You need not be able to read the others. An object that is
given with --data is merged (RFC 7396): a null takes a member away.`,
		Example:           "  estover secret patch db/reader password=- < pass.txt\n  estover secret patch app/settings --data change.json --remove old",
		ValidArgsFunction: completeSecrets(s),
		RunE:              writing(s, &w, true),
	}
	w.flags(c)
	c.Flags().StringArrayVar(&w.remove, "remove", nil, "a field to take away; may be repeated")
	return c
}

func writing(s *settings, w *written, patch bool) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := s.client()
		if err != nil {
			return err
		}
		in, err := w.body(cmd, args[1:], patch)
		if err != nil {
			return err
		}
		if data, ok := in["data"].(json.RawMessage); ok && patch {
			in["patch"] = true
			if len(w.remove) > 0 {
				var object map[string]json.RawMessage
				if json.Unmarshal(data, &object) != nil {
					return usageError{fmt.Errorf("%s holds no object of JSON", w.data)}
				}
				for _, name := range w.remove {
					object[name] = json.RawMessage("null")
				}
				in["data"] = object
			}
		}
		var v secret.Version
		if err := c.do(cmd.Context(), http.MethodPost, "/v1/secret/versions"+secretAt(args[0]), in, &v); err != nil {
			return err
		}
		return s.show(cmd.OutOrStdout(), v, func(t *table) { t.row(fmt.Sprintf("%s has version %d.", args[0], v.N)) })
	}
}

// someArguments demands one argument at least.
func someArguments(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usageError{fmt.Errorf("%s needs %s", cmd.CommandPath(), what)}
		}
		return nil
	}
}

func secretRollback(s *settings) *cobra.Command {
	var expect int64
	c := &cobra.Command{
		Use: "rollback PATH VERSION", Short: "Write the values of an older version again, without seeing them",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usageError{fmt.Errorf("%s needs the secret's path and a version", cmd.CommandPath())}
			}
			return nil
		},
		ValidArgsFunction: completeSecrets(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			n, err := strconv.ParseInt(args[1], 10, 64)
			if err != nil || n < 1 {
				return usageError{fmt.Errorf("%q is no version; a version is a number", args[1])}
			}
			in := map[string]any{"version": n}
			if cmd.Flags().Changed("cas") {
				in["expect"] = expect
			}
			var v secret.Version
			if err := c.do(cmd.Context(), http.MethodPost, "/v1/secret/rollback"+secretAt(args[0]), in, &v); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), v, func(t *table) {
				t.row(fmt.Sprintf("%s has version %d, with the values of version %d.", args[0], v.N, n))
			})
		},
	}
	c.Flags().Int64Var(&expect, "cas", 0, "only if this is the current version")
	return c
}

func secretMetadata(s *settings) *cobra.Command {
	var most int64
	var cas bool
	var after time.Duration
	var custom map[string]string
	var remove []string
	c := &cobra.Command{
		Use: "metadata PATH", Short: "Show or change how versions of a secret are kept, and what is said of it", Args: oneArgument("the secret's path"),
		Long: `Metadata shows how many versions are kept, whether whoever writes must say which
version is replaced, after which time a version is deleted by itself, and words
of your own about the secret; flags change them.`,
		Example:           "  estover secret metadata db/reader --max-versions 5 --cas-required --custom team=blue",
		ValidArgsFunction: completeSecrets(s),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			change := map[string]any{}
			for flag, value := range map[string]any{"max-versions": most, "cas-required": cas, "delete-version-after": after.String()} {
				if cmd.Flags().Changed(flag) {
					change[strings.ReplaceAll(flag, "-", "_")] = value
				}
			}
			merge := map[string]any{}
			for k, v := range custom {
				merge[k] = v
			}
			for _, k := range remove {
				merge[k] = nil
			}
			if len(merge) > 0 {
				change["merge_custom_metadata"] = merge
			}
			if len(change) > 0 {
				if err := c.do(cmd.Context(), http.MethodPatch, "/v1/secret"+secretAt(args[0]), change, nil); err != nil {
					return err
				}
			}
			var x describedSecret
			if err := c.do(cmd.Context(), http.MethodGet, "/v1/secret"+secretAt(args[0]), nil, &x); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), x, func(t *table) {
				kept := "all"
				if x.MaxVersions > 0 {
					kept = strconv.FormatInt(x.MaxVersions, 10)
				}
				deleted := "never"
				if x.DeleteAfter > 0 {
					deleted = "after " + x.DeleteAfter.String()
				}
				t.pairs("Path", x.Path, "Current version", x.CurrentVersion, "Versions kept", kept, "Check and set", map[bool]string{true: "required", false: "not required"}[x.CASRequired], "Versions deleted", deleted)
				for _, k := range sortedKeys(x.Custom) {
					t.row(k+":", x.Custom[k])
				}
			})
		},
	}
	c.Flags().Int64Var(&most, "max-versions", 0, "how many versions are kept; 0: all of them, or what a mount of the Vault-compatible door says")
	c.Flags().BoolVar(&cas, "cas-required", false, "whether whoever writes must say which version is replaced")
	c.Flags().DurationVar(&after, "delete-version-after", 0, "after which time a version is deleted by itself; 0: never")
	c.Flags().StringToStringVar(&custom, "custom", nil, "a word of your own about it, as KEY=VALUE; may be repeated")
	c.Flags().StringArrayVar(&remove, "remove-custom", nil, "one of them to take away; may be repeated")
	return c
}
