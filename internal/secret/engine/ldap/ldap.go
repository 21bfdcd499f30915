// Package ldap makes entries in a directory that log in by a simple bind:
// OpenLDAP and others that keep a hash in userPassword.
//
// A user is an entry below the option base, made of object classes and
// attributes, and a member of groups. The directory is given a salted hash and
// never the password, so that none stands in its log of changes. An entry may
// have several values of userPassword, so a rotation needs no second user.
//
// A revocation takes the password first, then the entry, then its memberships.
// What it cannot do is end a connection: LDAP has no such operation
// ([engine.Kind.Lingers]).
package ldap

import (
	"bytes"
	"cmp"
	"context"
	"crypto/fips140"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-ldap/ldap/v3"

	"estover.dev"
	"estover.dev/internal/secret/engine"
)

// Kind is LDAP.
var Kind = engine.Kind{
	Name:    "ldap",
	Title:   "OpenLDAP and other directories",
	Address: "ldap://HOST[:PORT] or ldaps://HOST[:PORT]",
	MaxName: longest,
	Options: []engine.Field{
		{Name: "base", Help: "the entry below which users are made: ou=agents,dc=example,dc=com", Required: true},
		{Name: "rdn", Help: "the attribute that names a user: uid (as it is) or cn"},
		{Name: "hash", Help: "how passwords are stored: ssha (as it is), ssha256 or ssha512, which slapd takes with its module pw-sha2"},
		{Name: "tls", Help: "verify: with TLS (StartTLS at ldap://), and the directory shows a certificate of its name (always, unless it is on this machine); off: without"},
	},
	Template:      template,
	Overlap:       true,
	Lingers:       "A connection that is bound already stays so until its client closes it, since LDAP has no way to end it; it may do what the directory's access rules give to someone who has no entry any more.",
	Account:       account,
	CheckTemplate: check,
	Open:          open,
}

const longest = 64

var template = []engine.Field{
	{Name: "object_classes", Help: "what the entry is: account and simpleSecurityObject, if nothing is said", Many: true},
	{Name: "attributes", Help: "NAME=VALUE of the entry; {{name}} in it is the user's name", Many: true},
	{Name: "groups", Help: "the groups that it is a member of, as distinguished names", Many: true},
	{Name: "group_attribute", Help: "how groups name members: member (as it is), uniqueMember, or memberUid, which holds the name alone"},
}

// hashes are the values of the option hash: what stands before the digest, and how
// it is made.
var hashes = map[string]struct {
	scheme string
	digest func() hash.Hash
}{
	"ssha": {"{SSHA}", sha1.New}, "ssha256": {"{SSHA256}", sha256.New}, "ssha512": {"{SSHA512}", sha512.New},
}

func check(t engine.Template) error {
	if err := engine.CheckKeys(t, template); err != nil {
		return err
	}
	for _, a := range t["attributes"] {
		name, value, is := strings.Cut(a, "=")
		if !is || name == "" || value == "" {
			return engine.ErrTemplate.With("An attribute is written NAME=VALUE, unlike %q.", a).At("attributes")
		}
		if n := strings.ToLower(name); n == "userpassword" || n == "objectclass" {
			return engine.ErrTemplate.With("The attribute %s is set by Estover; object classes have a key of their own.", name).At("attributes")
		}
	}
	for _, g := range t["groups"] {
		if _, err := ldap.ParseDN(g); err != nil || g == "" {
			return engine.ErrTemplate.With("A group is given by its distinguished name, unlike %q.", g).At("groups")
		}
	}
	if strings.ContainsAny(first(t["group_attribute"]), "=,; ") {
		return engine.ErrTemplate.With("The groups name their members in one attribute.").At("group_attribute")
	}
	return nil
}

func first(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return values[0]
}

func open(c engine.Config) (engine.Engine, error) {
	u, err := url.Parse(c.Address)
	if err != nil || u.Scheme != "ldap" && u.Scheme != "ldaps" || u.User != nil || u.Hostname() == "" || u.Path != "" || u.RawQuery != "" {
		return nil, engine.ErrConfig.With("The address is ldap://HOST:PORT or ldaps://HOST:PORT, without a user or a path.").At("address")
	}
	t := &target{
		config: c, implicit: u.Scheme == "ldaps",
		address: net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), map[string]string{"ldap": "389", "ldaps": "636"}[u.Scheme])),
		rdn:     cmp.Or(c.Options["rdn"], "uid"),
		hash:    c.Options["hash"],
	}
	switch {
	case t.hash == "" && !fips140.Enforced():
		t.hash = "ssha"
	case t.hash == "" || t.hash == "ssha" && fips140.Enforced(): // where SHA-1 would panic
		return nil, engine.ErrConfig.With("Passwords are stored with SHA-1 as it is, which is not there where FIPS 140 is enforced. Set the option hash to ssha256 or ssha512; slapd takes them with its module pw-sha2.").At("options.hash")
	}
	if t.implicit && c.Options["tls"] == "" {
		c.Options = map[string]string{"tls": "verify"}
	}
	if t.encryption, err = c.TLS(u.Hostname()); err != nil {
		return nil, err
	}
	if t.implicit && t.encryption == nil {
		return nil, engine.ErrConfig.With("An address that begins with ldaps:// means TLS; the option tls says off.").At("options.tls")
	}
	if t.base, err = ldap.ParseDN(t.config.Options["base"]); err != nil || len(t.base.RDNs) == 0 {
		return nil, engine.ErrConfig.With("The option base is the distinguished name of an entry, such as ou=agents,dc=example,dc=com.").At("options.base")
	}
	if strings.ContainsAny(t.rdn, "=,;+() ") {
		return nil, engine.ErrConfig.With("The option rdn is the name of an attribute.").At("options.rdn")
	}
	if _, known := hashes[t.hash]; !known {
		return nil, engine.ErrConfig.With("The option hash is ssha, ssha256 or ssha512.").At("options.hash")
	}
	if _, err := ldap.ParseDN(c.Admin.User); err != nil || c.Admin.User == "" || c.Admin.Secret.Empty() {
		return nil, engine.ErrConfig.With("The admin's username is a distinguished name, and it has a password.").At("admin")
	}
	return t, nil
}

type target struct {
	config     engine.Config
	address    string
	implicit   bool        // TLS from the first byte on
	encryption *tls.Config // nil for none
	base       *ldap.DN
	rdn, hash  string
	proved     atomic.Bool // that somebody logs in whose password is stored so
}

func (t *target) Close() error { return nil }

// dn is the distinguished name of a user.
func (t *target) dn(name string) string {
	return t.rdn + "=" + ldap.EscapeDN(name) + "," + t.config.Options["base"]
}

// store is the form in which the directory keeps a password.
func (t *target) store(s estover.Secret) string {
	h := hashes[t.hash]
	salt := make([]byte, 16)
	_, _ = rand.Read(salt)
	d := h.digest()
	d.Write(s.Reveal())
	d.Write(salt)
	return h.scheme + base64.StdEncoding.EncodeToString(append(d.Sum(nil), salt...))
}

// with runs do over a connection that is bound as c. It is closed when ctx ends:
// the library waits for answers without one.
func (t *target) with(ctx context.Context, c engine.Credential, do func(*ldap.Conn) error) error {
	conn, err := t.config.ConnectOnce(ctx, "tcp", t.address)
	if err != nil {
		return engine.Unreachable(err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if t.implicit {
		secured := tls.Client(conn, t.encryption)
		if err := secured.HandshakeContext(ctx); err != nil {
			_ = conn.Close()
			return engine.Unreachable(err)
		}
		conn = secured
	}
	l := ldap.NewConn(conn, t.implicit)
	l.Start()
	defer l.Close()
	if t.encryption != nil && !t.implicit {
		if err := l.StartTLS(t.encryption.Clone()); err != nil {
			return engine.Unreachable(err)
		}
	}
	if _, err := l.SimpleBind(ldap.NewSimpleBindRequest(c.User, string(c.Secret.Reveal()), nil)); err != nil {
		if ldap.IsErrorWithCode(err, ldap.LDAPResultInvalidCredentials) {
			err = fmt.Errorf("%w: %w", engine.ErrWrongSecret, err)
		}
		return engine.Unreachable(err)
	}
	err = do(l)
	if ctx.Err() != nil && err != nil {
		err = fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	return err
}

func (t *target) asAdmin(ctx context.Context, do func(*ldap.Conn) error) error {
	return t.with(ctx, t.config.Admin, do)
}

func (t *target) Create(ctx context.Context, o engine.Order) (engine.Material, error) {
	if err := engine.CheckName(o.Name, longest); err != nil {
		return nil, err
	}
	dn := t.dn(o.Name)
	add := ldap.NewAddRequest(dn, nil)
	change := ldap.NewModifyRequest(dn, nil)
	classes := o.Template["object_classes"]
	if len(classes) == 0 {
		classes = []string{"account", "simpleSecurityObject"}
	}
	add.Attribute("objectClass", classes)
	add.Attribute(t.rdn, []string{o.Name})
	password := []string{t.store(o.Secret)}
	add.Attribute("userPassword", password)
	change.Replace("userPassword", password)
	for _, a := range attributes(o) {
		if !strings.EqualFold(a.Type, t.rdn) {
			add.Attribute(a.Type, a.Vals)
			change.Replace(a.Type, a.Vals)
		}
	}
	var refused *engine.Refused
	err := t.asAdmin(ctx, func(l *ldap.Conn) error {
		err := l.Add(add)
		// An entry that is there is made the one that was asked for, unless somebody
		// deletes it meanwhile.
		for i := 0; i < 8 && ldap.IsErrorWithCode(err, ldap.LDAPResultEntryAlreadyExists); i++ {
			if err = l.Modify(change); ldap.IsErrorWithCode(err, ldap.LDAPResultNoSuchObject) {
				err = l.Add(add)
			}
		}
		if ldap.IsErrorWithCode(err, ldap.LDAPResultNoSuchObject) {
			return engine.Refuse("there is no entry %s", t.config.Options["base"])
		} else if err != nil {
			return classify(err)
		}
		if !t.proved.Load() { // once: the directory may take a form that it does not know
			if err := t.lets(ctx, dn, o.Secret); errors.As(err, &refused) {
				if failed := classify(gone(l.Del(ldap.NewDelRequest(dn, nil)))); failed != nil {
					return engine.Begun(failed)
				}
				return err
			} else if err != nil {
				return engine.Begun(err)
			}
			t.proved.Store(true)
		}
		for _, g := range o.Template["groups"] {
			join := ldap.NewModifyRequest(g, nil)
			join.Add(t.membership(o.Name, o.Template))
			if err := l.Modify(join); ldap.IsErrorWithCode(err, ldap.LDAPResultNoSuchObject) {
				return engine.Refuse("there is no group %s", g)
			} else if err != nil && !ldap.IsErrorWithCode(err, ldap.LDAPResultAttributeOrValueExists) {
				return engine.Begun(fmt.Errorf("the group %s: %w", g, classify(err))) // the entry is there
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return engine.Material{
		"username": estover.NewSecret([]byte(o.Name)), "dn": estover.NewSecret([]byte(dn)), "password": o.Secret,
	}, nil
}

// attributes gives those of the template, in its order.
func attributes(o engine.Order) (all []ldap.Attribute) {
	for _, a := range o.Template["attributes"] {
		name, value, _ := strings.Cut(a, "=")
		value = strings.ReplaceAll(value, "{{name}}", o.Name)
		i := slices.IndexFunc(all, func(a ldap.Attribute) bool { return strings.EqualFold(a.Type, name) })
		if i < 0 {
			i, all = len(all), append(all, ldap.Attribute{Type: name})
		}
		all[i].Vals = append(all[i].Vals, value)
	}
	return all
}

// membership is how a group names a user: the attribute and its value.
func (t *target) membership(name string, template engine.Template) (string, []string) {
	attribute := cmp.Or(first(template["group_attribute"]), "member")
	if strings.EqualFold(attribute, "memberUid") {
		return attribute, []string{name}
	}
	return attribute, []string{t.dn(name)}
}

func (t *target) Extend(ctx context.Context, name string, _ engine.Template, _ time.Time) error {
	return t.asAdmin(ctx, func(l *ldap.Conn) error {
		_, err := l.Search(ldap.NewSearchRequest(t.dn(name), ldap.ScopeBaseObject, ldap.NeverDerefAliases, 1, 0, true,
			"(objectClass=*)", []string{"1.1"}, nil))
		return classify(err)
	})
}

func (t *target) Revoke(ctx context.Context, users []engine.Doomed) []error {
	errs := make([]error, len(users))
	err := t.asAdmin(ctx, func(l *ldap.Conn) error {
		for i, u := range users {
			if errs[i] = t.revoke(l, u); errs[i] != nil && (l.IsClosing() || ldap.IsErrorWithCode(errs[i], ldap.ErrorNetwork)) {
				for ; i < len(users); i++ {
					errs[i] = engine.Unreachable(cmp.Or(ctx.Err(), errs[i], errors.New("the connection ended")))
				}
			}
		}
		return nil
	})
	if err != nil {
		for i := range errs {
			errs[i] = err
		}
	}
	return errs
}

// revoke takes the password, so that nobody logs in even if the entry cannot be
// deleted; then the entry, and what the user may have put below it; then the
// memberships.
func (t *target) revoke(l *ldap.Conn, u engine.Doomed) error {
	if engine.CheckName(u.Name, longest) != nil {
		return nil
	}
	dn := t.dn(u.Name)
	lock := ldap.NewModifyRequest(dn, nil)
	lock.Replace("userPassword", []string{t.store(nobody())})
	_ = l.Modify(lock) // what matters is whether the entry is gone
	if err := gone(l.Del(ldap.NewDelRequest(dn, nil))); ldap.IsErrorWithCode(err, ldap.LDAPResultNotAllowedOnNonLeaf) {
		if err := uproot(l, dn); err != nil {
			return classify(err)
		}
	} else if err != nil {
		return classify(err)
	}
	for _, g := range u.Template["groups"] {
		leave := ldap.NewModifyRequest(g, nil)
		leave.Delete(t.membership(u.Name, u.Template))
		err := gone(l.Modify(leave))
		// A group that must have a member keeps the name of its last one, which
		// opens nothing: names are not used again.
		if err != nil && !ldap.IsErrorAnyOf(err, ldap.LDAPResultNoSuchAttribute, ldap.LDAPResultObjectClassViolation) {
			return fmt.Errorf("the group %s: %w", g, classify(err))
		}
	}
	return nil
}

// gone takes it for success that an entry is not there.
func gone(err error) error {
	if ldap.IsErrorWithCode(err, ldap.LDAPResultNoSuchObject) {
		return nil
	}
	return err
}

// uproot deletes an entry and all below it, the deepest first.
func uproot(l *ldap.Conn, dn string) error {
	found, err := l.SearchWithPaging(ldap.NewSearchRequest(dn, ldap.ScopeWholeSubtree, ldap.NeverDerefAliases, 0, 0, true,
		"(objectClass=*)", []string{"1.1"}, nil), 500)
	if gone(err) != nil {
		return err
	}
	depth := func(e *ldap.Entry) int {
		dn, err := ldap.ParseDN(e.DN)
		if err != nil {
			return 0
		}
		return len(dn.RDNs)
	}
	slices.SortStableFunc(found.Entries, func(a, b *ldap.Entry) int { return depth(b) - depth(a) })
	for _, e := range found.Entries {
		if err := gone(l.Del(ldap.NewDelRequest(e.DN, nil))); err != nil {
			return err
		}
	}
	return nil
}

func (t *target) List(ctx context.Context, prefix string) (names []string, err error) {
	err = t.asAdmin(ctx, func(l *ldap.Conn) error {
		filter := "(" + t.rdn + "=" + ldap.EscapeFilter(prefix) + "*)"
		found, err := l.SearchWithPaging(ldap.NewSearchRequest(t.config.Options["base"], ldap.ScopeSingleLevel, ldap.NeverDerefAliases, 0, 0, false,
			filter, []string{t.rdn}, nil), 500)
		if ldap.IsErrorWithCode(err, ldap.LDAPResultSizeLimitExceeded) {
			return engine.Refuse("the admin may not list all entries below the base. Let it, as with `limits dn.exact=\"…\" size=unlimited`")
		}
		if err != nil {
			return classify(err)
		}
		for _, e := range found.Entries {
			for _, name := range e.GetAttributeValues(t.rdn) {
				if strings.HasPrefix(name, prefix) {
					names = append(names, name)
				}
			}
		}
		return nil
	})
	return names, err
}

// whole gives the distinguished name of a user, which may be given by one: an
// admin is not below the base.
func (t *target) whole(user string) string {
	if dn, err := ldap.ParseDN(user); err == nil && strings.Contains(user, "=") && len(dn.RDNs) > 0 {
		return user
	}
	return t.dn(user)
}

// account is the one form of a user's distinguished names.
func account(options map[string]string, user string) string {
	t := &target{config: engine.Config{Options: options}, rdn: cmp.Or(options["rdn"], "uid")}
	dn, err := ldap.ParseDN(t.whole(user))
	if err != nil {
		return user
	}
	var parts []string
	for _, r := range dn.RDNs {
		var of []string
		for _, a := range r.Attributes {
			of = append(of, short(strings.ToLower(a.Type))+"="+ldap.EscapeDN(strings.ToLower(strings.Join(strings.Fields(a.Value), " "))))
		}
		slices.Sort(of)
		parts = append(parts, strings.Join(of, "+"))
	}
	return strings.Join(parts, ",")
}

// short is the name of an attribute that is known by several.
func short(attribute string) string {
	switch attribute {
	case "commonname", "2.5.4.3":
		return "cn"
	case "userid", "0.9.2342.19200300.100.1.1":
		return "uid"
	case "domaincomponent", "0.9.2342.19200300.100.1.25":
		return "dc"
	case "organizationalunitname", "2.5.4.11":
		return "ou"
	case "organizationname", "2.5.4.10":
		return "o"
	case "countryname", "2.5.4.6":
		return "c"
	case "surname", "2.5.4.4":
		return "sn"
	}
	return attribute
}

// SetSecret replaces nothing before the directory has shown that it lets in whoever
// comes with a password that is kept like the next one: it takes any value, also one in
// a scheme that it does not know, with which nobody logs in. What is kept beside the next
// one stays as it is stored, and is not written anew.
func (t *target) SetSecret(ctx context.Context, user string, s, keep estover.Secret) error {
	return t.asAdmin(ctx, func(l *ldap.Conn) error {
		dn := t.whole(user)
		tried, trial := s, keep.Empty() || bytes.Equal(s.Reveal(), keep.Reveal())
		if trial { // s may be let in with another value
			tried = nobody()
		}
		value, err := t.prove(ctx, l, dn, tried)
		switch {
		case err != nil:
		case keep.Empty():
			err = t.alter(l, dn, func(r *ldap.ModifyRequest) { r.Replace("userPassword", []string{t.store(s)}) })
		case trial:
			err = t.alter(l, dn, func(r *ldap.ModifyRequest) { r.Delete("userPassword", []string{value}) })
		}
		if errors.Is(err, engine.ErrNoUser) && user == t.config.Admin.User {
			return fmt.Errorf("%w: %s is no entry, so its password stands in the directory's configuration and is changed there", err, user)
		}
		return err
	})
}

// prove gives an entry one more password and logs in with it. If it is not let in, the
// entry is as it was.
func (t *target) prove(ctx context.Context, l *ldap.Conn, dn string, s estover.Secret) (value string, err error) {
	value = t.store(s)
	if err := t.alter(l, dn, func(r *ldap.ModifyRequest) { r.Add("userPassword", []string{value}) }); err != nil {
		return "", err
	}
	if err := t.lets(ctx, dn, s); err != nil {
		if failed := t.alter(l, dn, func(r *ldap.ModifyRequest) { r.Delete("userPassword", []string{value}) }); failed != nil {
			err = fmt.Errorf("%w (and what was tried could not be taken away: %s)", err, failed.Error())
		}
		return "", engine.Begun(err)
	}
	return value, nil
}

// lets logs in as somebody whose password was just stored. It is a refusal if the
// directory does not let it in.
func (t *target) lets(ctx context.Context, dn string, s estover.Secret) error {
	err := t.with(ctx, engine.Credential{User: dn, Secret: s}, func(*ldap.Conn) error { return nil })
	if !errors.Is(err, engine.ErrWrongSecret) {
		return err
	}
	return engine.Refuse("the directory takes a password in the form %s and does not let in who has it, so nothing was changed: set the option hash to a form that it knows (slapd takes ssha256 and ssha512 with its module pw-sha2)", hashes[t.hash].scheme)
}

func (t *target) alter(l *ldap.Conn, dn string, how func(*ldap.ModifyRequest)) error {
	change := ldap.NewModifyRequest(dn, nil)
	how(change)
	return classify(l.Modify(change))
}

// nobody is a password that nobody knows.
func nobody() estover.Secret {
	b := make([]byte, 32)
	_, _ = rand.Read(b)
	return estover.NewSecret([]byte(base64.RawURLEncoding.EncodeToString(b)))
}

func (t *target) Verify(ctx context.Context, c engine.Credential) error {
	if c.User == "" || c.Secret.Empty() {
		return engine.ErrWrongSecret // an empty password is a log-in as nobody
	}
	err := t.with(ctx, engine.Credential{User: t.whole(c.User), Secret: c.Secret}, func(*ldap.Conn) error { return nil })
	if errors.Is(err, engine.ErrWrongSecret) {
		return engine.ErrWrongSecret
	}
	return err
}

func (t *target) Sessions(context.Context, string) ([]engine.Session, error) {
	return nil, engine.ErrUnsupported
}

func (t *target) EndSessions(context.Context, string) error { return engine.ErrUnsupported }

func (t *target) Now(context.Context) (time.Time, error) {
	return time.Time{}, engine.ErrUnsupported
}

// classify says in the words of the engine what an error means.
func classify(err error) error {
	var e *ldap.Error
	switch {
	case err == nil, !errors.As(err, &e), e.ResultCode == ldap.ErrorNetwork:
		return err
	case e.ResultCode == ldap.LDAPResultNoSuchObject:
		return engine.ErrNoUser
	case ldap.IsErrorAnyOf(err, ldap.LDAPResultBusy, ldap.LDAPResultUnavailable, ldap.LDAPResultServerDown, ldap.LDAPResultStrongAuthRequired, ldap.LDAPResultConfidentialityRequired):
		return engine.Unreachable(err)
	}
	words := cmp.Or(ldap.LDAPResultCodeMap[e.ResultCode], fmt.Sprintf("result %d", e.ResultCode))
	if e.Err != nil && e.Err.Error() != "" {
		words += ": " + e.Err.Error()
	}
	return engine.Refuse("%s", words)
}
