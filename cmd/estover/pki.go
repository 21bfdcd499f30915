package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"estover.dev/internal/pki"
)

func pkiCommand(s *settings) *cobra.Command {
	c := noun("pki", "Certificates: authorities, roles, and what they have certified",
		`A certificate authority of one's own. A role says what may be in a certificate,
for how long, and by which grant an agent gets one. What was certified in a
session is revoked when the session ends; lists and OCSP are served to everybody,
below the address that 'estover pki authority show' tells.`)
	n := certificates{s, pki.X509, "/v1/pki"}
	c.AddCommand(n.authorities(), n.roles(), pkiIssue(s), pkiSign(s), n.list(), n.show(), n.revoke(), n.published("crl", "Fetch the revocation list of an authority", "crl.pem"))
	return c
}

func sshCommand(s *settings) *cobra.Command {
	c := noun("ssh", "SSH certificates: authorities, roles, and what they have certified",
		`Certificates for users and hosts of SSH, for minutes. Servers trust the authority
(TrustedUserCAKeys), and learn from a list (RevokedKeys) what was revoked.`)
	n := certificates{s, pki.SSH, "/v1/ssh"}
	c.AddCommand(n.authorities(), n.roles(), sshSign(s), n.list(), n.show(), n.revoke(), n.published("krl", "Fetch the revocation list of an authority, for sshd's RevokedKeys", "krl"))
	return c
}

// A certificates is the commands that both kinds have.
type certificates struct {
	*settings
	kind pki.Kind
	at   string
}

// A publishing authority is one as the API shows it.
type publishingAuthority struct {
	pki.Authority
	Published string `json:"published"`
}

func (n certificates) complete(what string) cobra.CompletionFunc {
	return completeFrom(n.settings, n.at+"/"+what, func(x struct{ Name, Subject string }) string { return x.Name + "\t" + x.Subject })
}

// get asks for one thing.
func (n certificates) do(ctx context.Context, method, path string, in, out any) error {
	c, err := n.client()
	if err != nil {
		return err
	}
	return c.do(ctx, method, n.at+path, in, out)
}

func (n certificates) authorities() *cobra.Command {
	c := noun("authority", "Authorities that sign certificates", `An authority has a key that never leaves the server. Of those of one name the
newest signs; the others still vouch for what they have signed.`)
	c.AddCommand(n.listAuthorities(), n.showAuthority(), n.createAuthority(), n.importAuthority(), n.rotateAuthority(), n.chooseAuthority(), n.retireAuthority())
	return c
}

func (n certificates) listAuthorities() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List authorities", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := n.client()
			if err != nil {
				return err
			}
			all, err := list[publishingAuthority](cmd.Context(), c, n.at+"/authorities", nil, 0)
			if err != nil {
				return err
			}
			return n.settings.show(cmd.OutOrStdout(), all, func(t *table) {
				t.row("NAME", "GENERATION", "SUBJECT", "SIGNS FROM", "ENDS", "ID")
				for _, a := range all {
					t.row(a.Name, a.Generation, a.Subject, a.IssuesFrom, a.NotAfter, a.ID)
				}
			})
		},
	}
}

func (n certificates) showAuthority() *cobra.Command {
	var bundle bool
	c := &cobra.Command{
		Use: "show AUTHORITY", Short: "Show an authority, or what its verifiers need", Args: oneArgument("the authority's name or id"), ValidArgsFunction: n.complete("authorities"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var a publishingAuthority
			if err := n.do(cmd.Context(), http.MethodGet, "/authorities/"+url.PathEscape(args[0]), nil, &a); err != nil {
				return err
			}
			if bundle {
				what := "/bundle.pem"
				if n.kind == pki.SSH {
					what = "/ssh.pub"
				}
				return n.fetch(cmd, a.Published+what)
			}
			return n.settings.show(cmd.OutOrStdout(), a, func(t *table) {
				t.pairs("Name", a.Name, "Id", a.ID, "Generation", a.Generation, "Subject", a.Subject, "Signs from", a.IssuesFrom, "Ends", a.NotAfter, "Signed by", a.Options.Parent, "Publishes at", a.Published)
				t.row()
				if a.PublicKey != "" {
					t.row(a.PublicKey)
				}
				for line := range strings.SplitSeq(strings.TrimSpace(a.PEM), "\n") {
					t.row(line)
				}
			})
		},
	}
	c.Flags().BoolVar(&bundle, "bundle", false, "print what those need who check certificates: all generations, and those above them")
	return c
}

// fetch prints what an authority publishes.
func (n certificates) fetch(cmd *cobra.Command, address string) error {
	c, err := n.client()
	if err != nil {
		return err
	}
	u, err := url.Parse(address)
	if err != nil {
		return err
	}
	// The server may be known here under another name than its issuer's.
	req, err := http.NewRequestWithContext(cmd.Context(), http.MethodGet, c.addr+u.Path, nil)
	if err != nil {
		return err
	}
	res, err := c.http.Do(req)
	if err != nil {
		return &unreachable{c.addr, err}
	}
	if res.StatusCode != http.StatusOK {
		return c.answer(res, nil)
	}
	defer res.Body.Close()
	_, err = io.Copy(cmd.OutOrStdout(), io.LimitReader(res.Body, 64<<20))
	return err
}

func (n certificates) createAuthority() *cobra.Command {
	var in struct {
		Name       string     `json:"name"`
		CommonName string     `json:"common_name,omitempty"`
		Algorithm  string     `json:"algorithm,omitempty"`
		Parent     string     `json:"parent,omitempty"`
		Lifetime   int64      `json:"lifetime_seconds,omitempty"`
		MaxPath    *int       `json:"max_path,omitempty"`
		Names      *pki.Names `json:"constraints,omitempty"`
	}
	var lifetime time.Duration
	var path int
	var names pki.Names
	c := &cobra.Command{
		Use: "create NAME", Short: "Make an authority with a key of its own", Args: oneArgument("the authority's name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			in.Name, in.Lifetime = args[0], int64(lifetime/time.Second)
			if cmd.Flags().Changed("max-path") {
				in.MaxPath = &path
			}
			for _, f := range []string{"permit-dns", "exclude-dns", "permit-ip"} {
				if cmd.Flags().Lookup(f) != nil && cmd.Flags().Changed(f) {
					in.Names = &names
				}
			}
			var a publishingAuthority
			if err := n.do(cmd.Context(), http.MethodPost, "/authorities", in, &a); err != nil {
				return err
			}
			return n.settings.show(cmd.OutOrStdout(), a, func(t *table) {
				t.pairs("Authority", a.Name, "Id", a.ID, "Subject", a.Subject, "Ends", a.NotAfter, "Publishes at", a.Published)
			})
		},
	}
	c.Flags().StringVar(&in.Algorithm, "algorithm", "", "ec-p256, ec-p384, ed25519, rsa-2048, rsa-3072 or rsa-4096 (default: ec-p256)")
	c.Flags().StringVar(&in.CommonName, "common-name", "", "the name by which it is told of (default: NAME)")
	if n.kind == pki.X509 {
		c.Flags().StringVar(&in.Parent, "parent", "", "the authority that signs it (default: it is a root)")
		c.Flags().DurationVar(&lifetime, "lifetime", 0, "how long its certificate is good (default: ten years of a root, one of others)")
		c.Flags().IntVar(&path, "max-path", 0, "how many authorities may stand below it")
		c.Flags().StringSliceVar(&names.PermittedDNS, "permit-dns", nil, "a domain that it may name, and no others; may be repeated")
		c.Flags().StringSliceVar(&names.ExcludedDNS, "exclude-dns", nil, "a domain that it may not name; may be repeated")
		c.Flags().StringSliceVar(&names.PermittedIP, "permit-ip", nil, "a network in which it may name addresses; may be repeated")
	}
	return c
}

func (n certificates) importAuthority() *cobra.Command {
	short := "Take over an authority: its certificate and private key in PEM, on standard input"
	if n.kind == pki.SSH {
		short = "Take over an authority: its private key, on standard input"
	}
	return &cobra.Command{
		Use: "import NAME", Short: short, Args: oneArgument("the authority's name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := io.ReadAll(io.LimitReader(os.Stdin, 1<<20))
			if err != nil {
				return err
			}
			if len(strings.TrimSpace(string(b))) == 0 {
				return usageError{errors.New("the authority is read from standard input, and there is none: " + cmd.CommandPath() + " NAME < FILE")}
			}
			var a publishingAuthority
			if err := n.do(cmd.Context(), http.MethodPost, "/authorities/import", map[string]string{"name": args[0], "pem": string(b)}, &a); err != nil {
				return err
			}
			return n.settings.show(cmd.OutOrStdout(), a, func(t *table) {
				t.pairs("Authority", a.Name, "Id", a.ID, "Subject", a.Subject, "Publishes at", a.Published)
			})
		},
	}
}

func (n certificates) rotateAuthority() *cobra.Command {
	var overlap time.Duration
	c := &cobra.Command{
		Use: "rotate AUTHORITY", Short: "Make the next generation of an authority", Args: oneArgument("the authority's name"), ValidArgsFunction: n.complete("authorities"),
		Long: `Makes another key under the same name. It is published at once, and signs after the
overlap, by when those who check certificates have fetched it. What the one before
has signed stays good.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			in := map[string]any{}
			if cmd.Flags().Changed("overlap") {
				in["overlap_seconds"] = int64(overlap / time.Second)
			}
			var a publishingAuthority
			if err := n.do(cmd.Context(), http.MethodPost, "/authorities/"+url.PathEscape(args[0])+"/rotate", in, &a); err != nil {
				return err
			}
			return n.settings.show(cmd.OutOrStdout(), a, func(t *table) {
				t.pairs("Authority", a.Name, "Id", a.ID, "Generation", a.Generation, "Signs from", a.IssuesFrom)
			})
		},
	}
	c.Flags().DurationVar(&overlap, "overlap", 0, "after how long it signs; 0s for at once (default: twice the longest life of a certificate)")
	return c
}

func (n certificates) chooseAuthority() *cobra.Command {
	return &cobra.Command{
		Use: "default AUTHORITY", Short: "Have an authority sign where a role names none", Args: oneArgument("the authority's name or id"), ValidArgsFunction: n.complete("authorities"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var a publishingAuthority
			if err := n.do(cmd.Context(), http.MethodPost, "/authorities/"+url.PathEscape(args[0])+"/default", map[string]any{}, &a); err != nil {
				return err
			}
			return n.settings.show(cmd.OutOrStdout(), a, func(t *table) { t.row(first(a.Name, a.ID) + " signs where a role names none.") })
		},
	}
}

func (n certificates) retireAuthority() *cobra.Command {
	var revoke bool
	c := &cobra.Command{
		Use: "retire AUTHORITY", Short: "End an authority; it goes on saying what it has revoked", Args: oneArgument("the authority's name or id"), ValidArgsFunction: n.complete("authorities"),
		RunE: func(cmd *cobra.Command, args []string) error {
			path := "/authorities/" + url.PathEscape(args[0])
			if revoke {
				path += "?revoke=true"
			}
			if err := n.do(cmd.Context(), http.MethodDelete, path, nil, nil); err != nil {
				return err
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "Retired. It signs nothing any more.")
			return err
		},
	}
	c.Flags().BoolVar(&revoke, "revoke", false, "revoke all that it has signed too, and its own certificate")
	return c
}

func (n certificates) roles() *cobra.Command {
	c := noun("role", "Roles: what may be in a certificate, and who gets one", `A role names the authority that signs, what may be in a certificate, and the
resource and action that a grant has to cover for an agent to get one.`)
	c.AddCommand(n.listRoles(), n.showRole(), n.putRole(), n.removeRole())
	return c
}

func (n certificates) listRoles() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List roles", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := n.client()
			if err != nil {
				return err
			}
			all, err := list[pki.Role](cmd.Context(), c, n.at+"/roles", nil, 0)
			if err != nil {
				return err
			}
			return n.settings.show(cmd.OutOrStdout(), all, func(t *table) {
				t.row("NAME", "AUTHORITY", "TTL", "MAX TTL", "RESOURCE", "ACTION", "CHANGED")
				for _, r := range all {
					t.row(r.Name, first(r.Authority, "default"), span(r.TTL), span(r.MaxTTL), r.Resource, r.Action, r.ChangedAt)
				}
			})
		},
	}
}

// span is a number of seconds as people write it; nothing for none.
func span(n int64) string {
	if n == 0 {
		return ""
	}
	return (time.Duration(n) * time.Second).String()
}

func (n certificates) showRole() *cobra.Command {
	return &cobra.Command{
		Use: "show ROLE", Short: "Show a role", Args: oneArgument("the role's name"), ValidArgsFunction: n.complete("roles"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var r pki.Role
			if err := n.do(cmd.Context(), http.MethodGet, "/roles/"+url.PathEscape(args[0]), nil, &r); err != nil {
				return err
			}
			return n.showOne(cmd, r)
		},
	}
}

func (n certificates) showOne(cmd *cobra.Command, r pki.Role) error {
	return n.settings.show(cmd.OutOrStdout(), r, func(t *table) {
		t.pairs("Role", r.Name, "Id", r.ID, "Authority", first(r.Authority, "default"), "TTL", span(r.TTL), "Longest", span(r.MaxTTL), "Resource", r.Resource, "Action", r.Action)
		if x := r.X509; x != nil {
			t.pairs("Domains", x.Domains, "URIs", x.URIs, "Key", x.KeyType)
		}
		if x := r.SSH; x != nil {
			t.pairs("Principals", x.Principals, "By default", x.Default, "Domains", x.Domains)
		}
	})
}

func (n certificates) putRole() *cobra.Command {
	var spec pki.Spec
	var ttl, longest time.Duration
	var x pki.X509Spec
	var h pki.SSHSpec
	var options, extensions []string
	c := &cobra.Command{
		Use: "put ROLE", Short: "Make a role, or change the one of this name as a whole", Args: oneArgument("the role's name"), ValidArgsFunction: n.complete("roles"),
		RunE: func(cmd *cobra.Command, args []string) error {
			spec.TTL, spec.MaxTTL = int64(ttl/time.Second), int64(longest/time.Second)
			if n.kind == pki.X509 {
				spec.X509 = &x
			} else {
				spec.SSH = &h
				if !h.Host {
					h.User = true
				}
				h.DefaultOptions, h.DefaultExtended = pairsOf(options), pairsOf(extensions)
			}
			var r pki.Role
			if err := n.do(cmd.Context(), http.MethodPut, "/roles/"+url.PathEscape(args[0]), spec, &r); err != nil {
				return err
			}
			return n.showOne(cmd, r)
		},
	}
	f := c.Flags()
	f.StringVar(&spec.Authority, "authority", "", "the authority that signs, by name (default: the default one)")
	f.StringVar(&spec.Resource, "resource", "", "the resource on which an agent needs a grant (default: no agent gets one)")
	f.StringVar(&spec.Action, "action", "", "the action of it that the grant has to cover")
	f.DurationVar(&ttl, "ttl", 0, "how long a certificate lives if nobody says (default: an hour)")
	f.DurationVar(&longest, "max-ttl", 0, "how long it lives at most (default: a day)")
	if n.kind == pki.X509 {
		f.StringSliceVar(&x.Domains, "domain", nil, "a domain of which names may be certified, which may hold {{agent}}; may be repeated")
		f.BoolVar(&x.Subdomains, "subdomains", false, "names below the domains")
		f.BoolVar(&x.Bare, "bare", false, "the domains themselves")
		f.BoolVar(&x.Globs, "globs", false, "domains may hold *, which stands for anything")
		f.BoolVar(&x.Wildcards, "wildcards", false, "certificates for *.name")
		f.BoolVar(&x.AnyName, "any-name", false, "whatever name is asked for")
		f.BoolVar(&x.Localhost, "localhost", false, "localhost")
		f.BoolVar(&x.IPs, "ips", false, "addresses")
		f.StringSliceVar(&x.URIs, "uri", nil, "a URI that may be certified, which may hold * and {{agent}}; may be repeated")
		f.BoolVar(&x.Client, "client", false, "certificates for TLS clients")
		f.BoolVar(&x.Server, "server", false, "certificates for TLS servers")
		f.StringVar(&x.KeyType, "key-type", "", "ec, rsa, ed25519 or any (default: ec)")
		f.IntVar(&x.KeyBits, "key-bits", 0, "how many bits a key has at least")
		f.BoolVar(&x.NoCommonName, "no-common-name", false, "a common name is not demanded")
		f.StringSliceVar(&x.Organization, "organization", nil, "what stands as the organisation in the subject")
	} else {
		f.BoolVar(&h.User, "user", false, "certificates of users (default: unless --host is given)")
		f.BoolVar(&h.Host, "host", false, "certificates of hosts")
		f.StringSliceVar(&h.Principals, "principal", nil, "a name that may be certified, which may be {{agent}}; * is every name; may be repeated")
		f.StringSliceVar(&h.Default, "default-principal", nil, "a name that is certified if nobody asks for one; may be repeated")
		f.StringSliceVar(&h.Domains, "domain", nil, "a domain of hosts; may be repeated")
		f.BoolVar(&h.Subdomains, "subdomains", false, "names of hosts below the domains")
		f.StringArrayVar(&options, "option", nil, "a critical option of every certificate, as NAME=VALUE: force-command=…, source-address=…; may be repeated")
		f.StringArrayVar(&extensions, "extension", nil, "an extension of every certificate, as permit-pty; may be repeated")
		f.StringSliceVar(&h.Options, "allow-option", nil, "a critical option that may be asked for instead; may be repeated")
		f.StringSliceVar(&h.Extensions, "allow-extension", nil, "an extension that may be asked for instead; may be repeated")
	}
	return c
}

// pairsOf reads NAME=VALUE, or NAME alone.
func pairsOf(list []string) map[string]string {
	if len(list) == 0 {
		return nil
	}
	m := map[string]string{}
	for _, one := range list {
		name, value, _ := strings.Cut(one, "=")
		m[name] = value
	}
	return m
}

func (n certificates) removeRole() *cobra.Command {
	return &cobra.Command{
		Use: "remove ROLE", Short: "Take a role away; what it has certified stays", Args: oneArgument("the role's name"), ValidArgsFunction: n.complete("roles"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := n.do(cmd.Context(), http.MethodDelete, "/roles/"+url.PathEscape(args[0]), nil, nil); err != nil {
				return err
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "Removed. What it has certified stays good until it ends or is revoked.")
			return err
		},
	}
}

func (n certificates) list() *cobra.Command {
	var agent, session string
	var revoked, live bool
	c := &cobra.Command{
		Use: "list", Short: "List certificates", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := n.client()
			if err != nil {
				return err
			}
			q := url.Values{"limit": {"200"}}
			for k, v := range map[string]string{"agent": agent, "session": session} {
				if v != "" {
					q.Set(k, v)
				}
			}
			for k, v := range map[string]bool{"revoked": revoked, "live": live} {
				if v {
					q.Set(k, "true")
				}
			}
			all, err := list[pki.Record](cmd.Context(), c, n.at+"/certificates", q, 0)
			if err != nil {
				return err
			}
			return n.settings.show(cmd.OutOrStdout(), all, func(t *table) {
				t.row("SERIAL", "NAME", "TO", "ENDS", "REVOKED", "SESSION")
				for _, r := range all {
					t.row(r.Serial, r.Name, r.Subject, r.NotAfter, r.RevokedAt, r.Session)
				}
			})
		},
	}
	c.Flags().StringVar(&agent, "agent", "", "only those of this agent, by id")
	c.Flags().StringVar(&session, "session", "", "only those of this session")
	c.Flags().BoolVar(&revoked, "revoked", false, "only those that were revoked")
	c.Flags().BoolVar(&live, "live", false, "only those that hold")
	return c
}

func (n certificates) show() *cobra.Command {
	return &cobra.Command{
		Use: "show SERIAL", Short: "Show a certificate and to whom it was given", Args: oneArgument("the serial number"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var r struct {
				pki.Record
				PEM string `json:"certificate"`
			}
			if err := n.do(cmd.Context(), http.MethodGet, "/certificates/"+url.PathEscape(args[0]), nil, &r); err != nil {
				return err
			}
			return n.settings.show(cmd.OutOrStdout(), r, func(t *table) {
				t.pairs("Serial", r.Serial, "Name", r.Name, "Names", r.Names, "To", r.Subject, "Session", r.Session, "Issued", r.IssuedAt, "Ends", r.NotAfter, "Revoked", r.RevokedAt, "Because", r.Cause)
				t.row()
				for line := range strings.SplitSeq(strings.TrimSpace(r.PEM), "\n") {
					t.row(line)
				}
			})
		},
	}
}

func (n certificates) revoke() *cobra.Command {
	var reason, cause string
	c := &cobra.Command{
		Use: "revoke SERIAL", Short: "Take a certificate back", Args: oneArgument("the serial number"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var r struct {
				pki.Record
				Lingers string `json:"lingers"`
			}
			in := map[string]string{"cause": cause}
			if reason != "" {
				in["reason"] = strings.ReplaceAll(reason, "-", "_")
			}
			if err := n.do(cmd.Context(), http.MethodPost, "/certificates/"+url.PathEscape(args[0])+"/revoke", in, &r); err != nil {
				return err
			}
			return n.settings.show(cmd.OutOrStdout(), r, func(t *table) {
				t.row("Revoked. It would have ended " + cell(r.NotAfter) + ".")
				t.row(r.Lingers)
			})
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "key-compromise, superseded or cessation-of-operation (default: unspecified)")
	c.Flags().StringVar(&cause, "cause", "", "why, in words")
	return c
}

func (n certificates) published(use, short, file string) *cobra.Command {
	return &cobra.Command{
		Use: use + " [AUTHORITY]", Short: short, Args: atMostOne("the authority's name or id"), ValidArgsFunction: n.complete("authorities"),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := "default"
			if len(args) > 0 {
				name = args[0]
			}
			var a publishingAuthority
			if err := n.do(cmd.Context(), http.MethodGet, "/authorities/"+url.PathEscape(name), nil, &a); err != nil {
				return err
			}
			return n.fetch(cmd, a.Published+"/"+file)
		},
	}
}

// An asking is what is asked for of a certificate.
type asking struct {
	CommonName string   `json:"common_name,omitempty"`
	DNS        []string `json:"dns,omitempty"`
	IPs        []string `json:"ips,omitempty"`
	URIs       []string `json:"uris,omitempty"`
	TTL        int64    `json:"ttl_seconds,omitempty"`
	CSR        string   `json:"csr"`

	ttl time.Duration
}

func (a *asking) flags(c *cobra.Command) {
	c.Flags().StringVar(&a.CommonName, "common-name", "", "its common name")
	c.Flags().StringSliceVar(&a.DNS, "dns", nil, "a name of a host; may be repeated")
	c.Flags().StringSliceVar(&a.IPs, "ip", nil, "an address; may be repeated")
	c.Flags().StringSliceVar(&a.URIs, "uri", nil, "a URI; may be repeated")
	c.Flags().DurationVar(&a.ttl, "ttl", 0, "how long it lives (default: as the role says)")
}

func pkiIssue(s *settings) *cobra.Command {
	var in asking
	var out string
	c := &cobra.Command{
		Use: "issue ROLE", Short: "Make a key here, and have it certified", Args: oneArgument("the role's name"),
		Long: `Makes a private key on this machine and has it certified by a role. The key does not
leave this machine. Three files are written: NAME.key, NAME.pem with the certificate
and those above it, and ca.pem with what others need to check it.`,
		Example: "  estover pki issue agents --common-name one.agents.example --out ./tls",
		RunE: func(cmd *cobra.Command, args []string) error {
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				return err
			}
			der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: in.CommonName}}, key)
			if err != nil {
				return err
			}
			in.CSR = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
			private, err := x509.MarshalPKCS8PrivateKey(key)
			if err != nil {
				return err
			}
			cert, err := signRequest(cmd, s, args[0], &in)
			if err != nil {
				return err
			}
			name := args[0]
			files := map[string]string{
				name + ".key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})),
				name + ".pem": chainOf(cert), "ca.pem": cert.Chain[len(cert.Chain)-1],
			}
			if err := os.MkdirAll(out, 0o700); err != nil {
				return err
			}
			for file, text := range files {
				if err := replaceFile(filepath.Join(out, file), []byte(text)); err != nil {
					return err
				}
			}
			return s.show(cmd.OutOrStdout(), cert, func(t *table) {
				t.pairs("Serial", cert.Serial, "Certificate", filepath.Join(out, name+".pem"), "Key", filepath.Join(out, name+".key"), "Authority", filepath.Join(out, "ca.pem"), "Ends", cert.NotAfter, "Ends with", cert.LimitedBy)
			})
		},
	}
	in.flags(c)
	c.Flags().StringVar(&out, "out", ".", "the folder to write to")
	return c
}

// replaceFile writes a file that only its owner reads, whole or not at all.
func replaceFile(file string, b []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(file), ".estover-")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	_, err = tmp.Write(b)
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), file)
}

func chainOf(c *pki.Certificate) string {
	text := c.PEM
	for _, above := range c.Chain[:max(0, len(c.Chain)-1)] { // the root is known to who checks
		text += above
	}
	return text
}

func signRequest(cmd *cobra.Command, s *settings, role string, in *asking) (*pki.Certificate, error) {
	c, err := s.client()
	if err != nil {
		return nil, err
	}
	in.TTL = int64(in.ttl / time.Second)
	var out pki.Certificate
	err = c.do(cmd.Context(), http.MethodPost, "/v1/pki/roles/"+url.PathEscape(role)+"/sign", in, &out)
	return &out, err
}

func pkiSign(s *settings) *cobra.Command {
	var in asking
	c := &cobra.Command{
		Use: "sign ROLE", Short: "Have the key of a request certified; the request is read from standard input", Args: oneArgument("the role's name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := io.ReadAll(io.LimitReader(os.Stdin, 64<<10))
			if err != nil {
				return err
			}
			if in.CSR = string(b); strings.TrimSpace(in.CSR) == "" {
				return usageError{errors.New("the request is read from standard input, and there is none: " + cmd.CommandPath() + " ROLE < FILE")}
			}
			cert, err := signRequest(cmd, s, args[0], &in)
			if err != nil {
				return err
			}
			if s.output == "json" {
				return s.show(cmd.OutOrStdout(), cert, nil)
			}
			_, err = io.WriteString(cmd.OutOrStdout(), chainOf(cert))
			return err
		},
	}
	in.flags(c)
	return c
}

func sshSign(s *settings) *cobra.Command {
	var in struct {
		PublicKey  string            `json:"public_key"`
		Host       bool              `json:"host,omitempty"`
		Principals []string          `json:"principals,omitempty"`
		TTL        int64             `json:"ttl_seconds,omitempty"`
		Options    map[string]string `json:"options,omitempty"`
		Extensions map[string]string `json:"extensions,omitempty"`
	}
	var ttl time.Duration
	var options, extensions []string
	c := &cobra.Command{
		Use: "sign ROLE FILE", Short: "Have a public key certified, and write the certificate beside it",
		Long: `Has the public key in FILE.pub certified. The certificate is written to
FILE-cert.pub, where ssh looks for it by itself.`,
		Example: "  estover ssh sign ops ~/.ssh/id_ed25519.pub --principal deploy",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usageError{errors.New(cmd.CommandPath() + " needs the role and the file with the public key")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			file := args[1]
			if !strings.HasSuffix(file, ".pub") {
				file += ".pub"
			}
			b, err := os.ReadFile(file)
			if errors.Is(err, fs.ErrNotExist) {
				return usageError{fmt.Errorf("there is no public key at %s", file)}
			}
			if err != nil {
				return err
			}
			c, err := s.client()
			if err != nil {
				return err
			}
			in.PublicKey, in.TTL, in.Options, in.Extensions = string(b), int64(ttl/time.Second), pairsOf(options), pairsOf(extensions)
			var cert pki.Certificate
			if err := c.do(cmd.Context(), http.MethodPost, "/v1/ssh/roles/"+url.PathEscape(args[0])+"/sign", in, &cert); err != nil {
				return err
			}
			to := strings.TrimSuffix(file, ".pub") + "-cert.pub"
			if err := replaceFile(to, []byte(cert.PEM+"\n")); err != nil {
				return err
			}
			return s.show(cmd.OutOrStdout(), cert, func(t *table) {
				t.pairs("Serial", cert.Serial, "Certificate", to, "Principals", cert.Names, "Key id", strconv.Quote(cert.Name), "Ends", cert.NotAfter, "Ends with", cert.LimitedBy)
			})
		},
	}
	c.Flags().BoolVar(&in.Host, "host", false, "a certificate of a host")
	c.Flags().StringSliceVar(&in.Principals, "principal", nil, "a name to certify: a user on servers, or a name of the host (default: the role's)")
	c.Flags().DurationVar(&ttl, "ttl", 0, "how long it lives (default: as the role says)")
	c.Flags().StringArrayVar(&options, "option", nil, "a critical option, as NAME=VALUE, instead of the role's; may be repeated")
	c.Flags().StringArrayVar(&extensions, "extension", nil, "an extension, instead of the role's; may be repeated")
	return c
}
