package directory

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/mail"
	"net/url"
	"slices"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// A ProviderSpec is what an administrator decides about an OpenID provider that
// people sign in with.
type ProviderSpec struct {
	Name         string              `json:"name" pattern:"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$" doc:"What the provider is called: small letters, digits, dots, dashes and underscores. It is part of the address to register there: ISSUER/login/back/NAME."`
	Preset       string              `json:"preset,omitempty" enum:"entra,okta,google,keycloak" doc:"The product, from which title and roles_claim follow where they are left out."`
	Title        string              `json:"title,omitempty" maxLength:"60" doc:"What the button says it is."`
	Issuer       string              `json:"issuer" minLength:"1" maxLength:"2048" doc:"Its issuer, as it stands in its tokens."`
	ClientID     string              `json:"client_id" minLength:"1" maxLength:"255" doc:"What it knows this server as."`
	Secret       string              `json:"secret,omitempty" maxLength:"200" doc:"The path of the secret that holds the client secret. Its destination is the host of the token endpoint. None: a client that has no secret."`
	CA           string              `json:"ca,omitempty" doc:"The roots, in PEM, by which its certificate is checked; the system's if there are none."`
	AllowPrivate bool                `json:"allow_private,omitempty" doc:"Whether its host may be on a private network, and its URL http://."`
	Claims       map[string]string   `json:"claims,omitempty" doc:"Claims that whoever comes in must have, with their values: hd, tid, …"`
	Match        string              `json:"match,omitempty" enum:"email" doc:"How somebody who is known here is recognised the first time: by an email address that the provider has verified. None: not at all."`
	Create       bool                `json:"create,omitempty" doc:"Whether somebody who is not known here is added."`
	RolesClaim   string              `json:"roles_claim,omitempty" maxLength:"200" doc:"The claim with the groups or roles that the roles here follow. A name that begins with a slash is a JSON Pointer: /realm_access/roles."`
	Roles        map[string][]string `json:"roles,omitempty" doc:"For admin, operator, auditor and approver the values of roles_claim that make somebody one, at each sign-in. None: roles are given here."`
	Strong       bool                `json:"strong,omitempty" doc:"Whether to sign in there is as good as a passkey here, because it asks for one. What is sensitive wants that."`
}

// A Provider is an OpenID provider that people sign in with.
type Provider struct {
	ID string `json:"id"` // idp_…
	ProviderSpec
	ManagedBy string    `json:"managed_by,omitempty"`
	CreatedAt time.Time `json:"created_at"`
	ChangedAt time.Time `json:"changed_at"`
	Epoch     int64     `json:"epoch"`
}

// Errors about providers.
var (
	// ErrProviderNotFound is returned when there is no such provider in the tenant.
	ErrProviderNotFound = &estover.Error{Kind: estover.NotFound, Code: "provider_not_found", Detail: "There is no such identity provider. `estover provider list` shows which there are."}
	// ErrProviderInvalid is returned when what is said of a provider cannot be.
	ErrProviderInvalid = &estover.Error{Kind: estover.Invalid, Code: "provider_invalid", Detail: "This cannot be said of an identity provider."}
	// ErrStranger is returned when a provider vouches for somebody who is not known here.
	ErrStranger = &estover.Error{Kind: estover.Denied, Code: "person_unknown", Detail: "You are signed in there, but you are not known here. Ask an administrator to add you."}
)

// presets are what follows from a product: what the button says, and which claim
// has groups or roles.
var presets = map[string]struct{ title, roles string }{
	"entra": {"Microsoft Entra ID", "roles"}, "okta": {"Okta", "groups"}, "google": {"Google", ""}, "keycloak": {"Keycloak", "groups"},
}

// Heading is what the button says.
func (p *Provider) Heading() string {
	for _, s := range []string{p.Title, presets[p.Preset].title} {
		if s != "" {
			return s
		}
	}
	return p.Name
}

// CheckProvider gives the spec in the one form in which it is kept, or
// everything that is wrong with it.
func CheckProvider(s ProviderSpec) (ProviderSpec, error) {
	var bad []error
	wrong := func(field, format string, args ...any) {
		bad = append(bad, ErrProviderInvalid.With(format, args...).At(field))
	}
	if !estover.ValidName(s.Name) {
		wrong("name", "The name has up to 63 small letters, digits, dots, dashes and underscores, not %q.", s.Name)
	}
	if _, known := presets[s.Preset]; s.Preset != "" && !known {
		wrong("preset", "There are presets for entra, okta, google and keycloak, not for %q.", s.Preset)
	}
	u, err := url.Parse(s.Issuer)
	switch {
	case err != nil, u.Host == "", u.User != nil, u.RawQuery != "", strings.ContainsAny(s.Issuer, "#\\ "):
		wrong("issuer", "%q is not the URL of an issuer.", s.Issuer)
	case u.Scheme != "https" && (u.Scheme != "http" || !s.AllowPrivate):
		wrong("issuer", "An issuer begins with https://. On a private network http:// will do, with allow_private.")
	case s.Create && (s.Preset == "google" || u.Hostname() == "accounts.google.com") && s.Claims["hd"] == "":
		wrong("claims.hd", "Name the domain of your organisation. Anybody with an account at Google could come in otherwise.")
	case s.Preset == "entra" && (strings.Contains(u.Path, "/common") || strings.Contains(u.Path, "/organizations") || strings.Contains(u.Path, "/consumers")):
		wrong("issuer", "Name your own directory: https://login.microsoftonline.com/TENANT/v2.0. Anybody at all could come in by this one.")
	}
	if s.ClientID == "" || len(s.ClientID) > 255 {
		wrong("client_id", "The provider knows this server by a client_id of up to 255 characters.")
	}
	if s.Match != "" && s.Match != "email" {
		wrong("match", "People are matched by email or not at all, not by %q.", s.Match)
	}
	for role, values := range s.Roles {
		if !isRole(estover.Role(role)) {
			wrong("roles."+role, "%q is no role: there are admin, operator, auditor and approver.", role)
		}
		if len(values) == 0 || len(values) > 100 {
			wrong("roles."+role, "A role follows from between 1 and 100 values.")
		}
	}
	if len(s.Roles) > 0 && s.rolesClaim() == "" {
		wrong("roles_claim", "Name the claim that the roles follow.")
	}
	if s.CA != "" {
		if block, _ := pem.Decode([]byte(s.CA)); block == nil || block.Type != "CERTIFICATE" {
			wrong("ca", "The roots are certificates in PEM.")
		} else if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			wrong("ca", "The roots are certificates in PEM.")
		}
	}
	if len(s.Claims) > 20 {
		wrong("claims", "At most 20 claims are asked for.")
	}
	for name, value := range s.Claims {
		if name == "" || value == "" { // which whoever has no such claim would have
			wrong("claims", "A claim that is asked for has a name and a value.")
		}
	}
	if len(s.Claims) == 0 {
		s.Claims = nil
	}
	if len(s.Roles) == 0 {
		s.Roles = nil
	}
	return s, errors.Join(bad...)
}

func (s *ProviderSpec) rolesClaim() string {
	if s.RolesClaim != "" {
		return s.RolesClaim
	}
	return presets[s.Preset].roles
}

// PutProvider adds a provider, or changes the one of this name. managedBy says
// who keeps one that is added, if not a person by hand.
func (d *Directory) PutProvider(ctx context.Context, caller estover.Caller, spec ProviderSpec, managedBy string) (p Provider, err error) {
	if spec, err = CheckProvider(spec); err != nil {
		return p, err
	}
	id := estover.NewID("idp")
	err = d.guard.Do(ctx, caller, guard.Op{Action: "provider.put"}, func(tx *guard.Tx) error {
		p, err = findProvider(ctx, tx.Tx, "name", spec.Name, tx.ForUpdate())
		switch {
		case err == nil:
			if p.Issuer != spec.Issuer {
				return ErrProviderInvalid.With("Who somebody is at %s says nothing about who they are at %s. Add a provider with another name.", p.Issuer, spec.Issuer).At("issuer")
			}
			tx.Note("before", p.ProviderSpec)
			p.ProviderSpec, p.ChangedAt = spec, tx.Now()
			p.Epoch++
			err = updateProvider(ctx, tx.Tx, p)
		case errors.Is(err, ErrProviderNotFound):
			p = Provider{ID: id, ProviderSpec: spec, ManagedBy: managedBy, CreatedAt: tx.Now(), ChangedAt: tx.Now(), Epoch: 1}
			err = insertProvider(ctx, tx.Tx, p)
		}
		tx.SetTarget("provider:" + p.ID)
		tx.Note("after", spec)
		return err
	})
	return p, err
}

// RetireProvider ends a provider: nobody comes in by it any more, and those who
// have are signed out.
func (d *Directory) RetireProvider(ctx context.Context, caller estover.Caller, name string) error {
	return d.guard.Do(ctx, caller, guard.Op{Action: "provider.retire", Target: "provider:" + name}, func(tx *guard.Tx) error {
		id, err := endProvider(ctx, tx.Tx, name)
		if err != nil {
			return err
		}
		ended, err := endVisits(ctx, tx, id)
		tx.Note("provider", id)
		tx.Note("signed_out", ended)
		return err
	})
}

// ProviderByName shows a provider.
func (d *Directory) ProviderByName(ctx context.Context, caller estover.Caller, name string) (p Provider, err error) {
	err = d.guard.Read(ctx, caller, guard.Op{Action: "provider.read", Target: "provider:" + name}, func(tx *db.Tx) error {
		p, err = findProvider(ctx, tx, "name", name, "")
		return err
	})
	return p, err
}

// ListProviders shows the providers by name.
func (d *Directory) ListProviders(ctx context.Context, caller estover.Caller, f Filter) (all []Provider, err error) {
	err = d.guard.Read(ctx, caller, guard.Op{Action: "provider.list"}, func(tx *db.Tx) error {
		all, err = providers(ctx, tx, f)
		return err
	})
	return all, err
}

// Providers are those by which people may sign in. The sign-in page shows them
// to everybody, by what their buttons say.
func (d *Directory) Providers(ctx context.Context, tenant estover.TenantID) (all []Provider, err error) {
	err = d.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		all, err = providers(ctx, tx, Filter{})
		return err
	})
	return all, err
}

// An Identity is who somebody is at a provider, as its token says: verified
// before it comes here.
type Identity struct {
	Subject string
	Claims  map[string]any
}

// text is a claim that is a text, or "".
func (i Identity) text(name string) string {
	s, _ := i.claim(name).(string)
	return s
}

// claim finds a claim by its name, or by a JSON Pointer.
func (i Identity) claim(name string) any {
	if !strings.HasPrefix(name, "/") {
		return i.Claims[name]
	}
	var at any = i.Claims
	for part := range strings.SplitSeq(name[1:], "/") {
		object, ok := at.(map[string]any)
		if !ok {
			return nil
		}
		at = object[strings.NewReplacer("~1", "/", "~0", "~").Replace(part)]
	}
	return at
}

// email is an address that the provider has verified, or "".
func (i Identity) email() string {
	said, ok := i.Claims["email_verified"]
	if !ok {
		said = i.Claims["xms_edov"] // what Entra says in its place
	}
	verified := false
	switch v := said.(type) {
	case bool:
		verified = v
	case string:
		verified = v == "true" || v == "1"
	case float64:
		verified = v == 1
	}
	address := fold(i.text("email"))
	if a, err := mail.ParseAddress(address); !verified || err != nil || a.Address != address || len(address) > 254 {
		return ""
	}
	return address
}

// admits reports whether somebody has the claims that a provider's people must
// have.
func (p *Provider) admits(i Identity) bool {
	for name, want := range p.Claims {
		if i.text(name) != want {
			return false
		}
	}
	return true
}

// roles are those that follow from the claims of somebody; false if roles do not
// follow from claims.
func (p *Provider) roles(i Identity) ([]estover.Role, bool) {
	if len(p.Roles) == 0 {
		return nil, false
	}
	var have []string
	switch v := i.claim(p.rolesClaim()).(type) {
	case string:
		have = []string{v}
	case []any:
		for _, one := range v {
			if s, ok := one.(string); ok {
				have = append(have, s)
			}
		}
	}
	roles := []estover.Role{}
	for _, role := range slices.Sorted(maps.Keys(p.Roles)) {
		if slices.ContainsFunc(p.Roles[role], func(v string) bool { return slices.Contains(have, v) }) {
			roles = append(roles, estover.Role(role))
		}
	}
	return roles, true
}

// name is what somebody who is added is called: after what the provider calls
// them, in the letters that names have.
func (i Identity) name() string {
	from := ""
	for _, claim := range []string{"preferred_username", "email", "name"} {
		if from = i.text(claim); from != "" {
			break
		}
	}
	from, _, _ = strings.Cut(strings.ToLower(from), "@")
	name := strings.Trim(strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', '0' <= r && r <= '9', r == '.', r == '-', r == '_':
			return r
		case r == ' ':
			return '.'
		}
		return -1
	}, from), ".-_")
	if len(name) > 50 {
		name = strings.TrimRight(name[:50], ".-_")
	}
	if name == "" {
		return "person"
	}
	return name
}

// Federated lets somebody in for whom the provider with this id vouches. They
// are whom the provider's subject was linked to before; else, as the provider's
// settings have it, the person with the same verified address, or somebody new.
// since is when they proved there who they are; zero for now.
func (d *Directory) Federated(ctx context.Context, b Browser, provider string, i Identity, a Answer, since time.Time) (estover.Secret, error) {
	var p Provider
	var person Person
	err := d.guard.DB().View(ctx, b.From.Tenant, func(tx *db.Tx) (err error) {
		if p, err = findProvider(ctx, tx, "id", provider, ""); err != nil {
			return err
		}
		person, err = d.whois(ctx, tx, p, i)
		return err
	})
	switch unknown := errors.Is(err, ErrNotFound); {
	case (err == nil || unknown) && !p.admits(i), unknown && !p.Create:
		err = ErrStranger
	case unknown:
		person, err = d.welcome(ctx, b, p, i)
	}
	if errors.Is(err, ErrStranger) {
		if err := d.Unvouched(ctx, b.From, p.ID, err); err != nil {
			return estover.Secret{}, err
		}
	}
	if err != nil {
		return estover.Secret{}, err
	}
	var methods []string
	if p.Strong {
		methods = []string{ByStrong}
	}
	t := Token{Methods: methods, Since: since, provider: p.ID}
	return d.enter(ctx, b, person, t, func(tx *guard.Tx) error {
		if err := answered(ctx, tx.Tx, a); err != nil {
			return err
		}
		// What was decided about them rests on the provider as it was read.
		now, err := findProvider(ctx, tx.Tx, "id", p.ID, tx.ForUpdate())
		if err == nil && now.Epoch != p.Epoch {
			err = db.ErrStale
		}
		if err != nil {
			return err
		}
		tx.Note("provider", p.ID)
		if err := linkIdentity(ctx, tx.Tx, p.ID, i.Subject, person.ID); err != nil {
			return err
		}
		return d.follow(ctx, tx, p, i, person.ID)
	})
}

// Vouched is the person whom a provider's subject was linked to when they
// signed in, and whether to sign in there is as good as a passkey. Nobody is
// linked by it, however much else about them agrees. [ErrNotFound],
// [ErrProviderNotFound] or [ErrStranger] if it is nobody.
func (d *Directory) Vouched(ctx context.Context, tenant estover.TenantID, provider, issuer string, i Identity) (person string, strong bool, err error) {
	err = d.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		p, err := findProvider(ctx, tx, "name", provider, "")
		switch {
		case err != nil:
			return err
		case p.Issuer != issuer, !p.admits(i):
			return ErrStranger
		}
		strong = p.Strong
		person, err = linked(ctx, tx, p.ID, i.Subject)
		return err
	})
	return person, strong, err
}

// whois is the person that somebody at a provider is here, or [ErrNotFound].
func (d *Directory) whois(ctx context.Context, tx *db.Tx, p Provider, i Identity) (Person, error) {
	id, err := linked(ctx, tx, p.ID, i.Subject)
	switch {
	case err == nil:
		return find(ctx, tx, id)
	case !errors.Is(err, ErrNotFound) || p.Match != "email" || i.email() == "":
		return Person{}, err
	}
	known, err := findEmail(ctx, tx, i.email())
	if err != nil {
		return Person{}, err
	}
	// Addresses are given to others when somebody leaves.
	taken, err := identified(ctx, tx, p.ID, known.ID)
	if err == nil && taken {
		err = ErrStranger.With("Somebody else has come in here with your email address. Ask an administrator.")
	}
	return known, err
}

// welcome adds somebody for whom a provider vouches.
func (d *Directory) welcome(ctx context.Context, b Browser, p Provider, i Identity) (Person, error) {
	caller := b.From
	caller.Subject = estover.System("login")
	name, suffix := i.name(), ""
	for attempt := 2; ; attempt++ {
		made, err := d.Create(ctx, caller, Spec{Name: name + suffix, Email: i.email()}, "provider/"+p.Name)
		switch {
		case errors.Is(err, ErrNameTaken) && attempt < 20:
			suffix = fmt.Sprintf("-%d", attempt)
		case errors.Is(err, ErrEmailTaken):
			return made, ErrStranger.With("Somebody else here has your email address. Ask an administrator.")
		default:
			return made, err
		}
	}
}

// follow gives a person the roles that follow from their claims at a provider.
// The last administrator stays one.
func (d *Directory) follow(ctx context.Context, tx *guard.Tx, p Provider, i Identity, id string) error {
	roles, follows := p.roles(i)
	if !follows {
		return nil
	}
	now, err := lock(ctx, tx.Tx, id)
	if err != nil || slices.Equal(now.Roles, roles) || len(now.Roles)+len(roles) == 0 {
		return err
	}
	if now.is(estover.Admin) && !slices.Contains(roles, estover.Admin) {
		err := anotherAdministrator(ctx, tx.Tx, id)
		if errors.Is(err, ErrLastAdmin) {
			tx.Note("kept_roles", "last administrator")
			return nil
		}
		if err != nil {
			return err
		}
	}
	tx.Note("roles_before", now.Roles)
	tx.Note("roles", roles)
	tx.Touch(estover.UserKind, id)
	now.Roles = roles
	now.Epoch++
	return update(ctx, tx.Tx, now)
}

// specJSON is a spec as it is stored.
func specJSON(s ProviderSpec) (string, error) {
	b, err := json.Marshal(s)
	return string(b), err
}
