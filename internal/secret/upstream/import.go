package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/engine"
)

// ErrImport is returned for an import that cannot be.
var ErrImport = &estover.Error{Kind: estover.Invalid, Code: "import_invalid", Detail: "This cannot be imported."}

// ErrStore is returned if the store cannot be reached, or does not let us in.
var ErrStore = &estover.Error{Kind: estover.Unavailable, Code: "store_unavailable", Detail: "The other vault cannot be worked at. Look at its address and at what the secret of --login may do there."}

// An Order says what to import, and as what.
type Order struct {
	Store       string            `json:"store,omitempty" maxLength:"63" doc:"The name of a store that is registered, whose owner imports from it or an administrator; or else kind and address"`
	Kind        string            `json:"kind,omitempty" maxLength:"50" doc:"The kind of the other vault"`
	Address     string            `json:"address,omitempty" maxLength:"500" doc:"Where it is, as its kind says"`
	Options     map[string]string `json:"options,omitempty" doc:"Options of the kind"`
	Authorities string            `json:"authorities,omitempty" maxLength:"65536" doc:"Certificates in PEM that it is known by, instead of the system's"`
	Login       string            `json:"login,omitempty" maxLength:"500" doc:"The path of our secret that logs in there: its fields username and password; its owner allows the other vault as a destination"`

	From   string `json:"from" maxLength:"400" doc:"What the paths there begin with; the rest is kept"`
	To     string `json:"to" maxLength:"400" doc:"What the paths here begin with instead"`
	After  string `json:"after,omitempty" maxLength:"400" doc:"Only paths that come after this one: the last of the report before"`
	DryRun bool   `json:"dry_run,omitempty" doc:"Read no value and write nothing, but say what would be done"`

	Class        estover.Class   `json:"class,omitempty" doc:"The class of data that the secrets open; confidential if empty"`
	Risk         secret.Risk     `json:"risk,omitempty" doc:"Their risk; standard if empty"`
	Owner        estover.Subject `json:"owner,omitempty" doc:"Who answers for them; who imports if empty"`
	Destinations []string        `json:"destinations,omitempty" doc:"Where they may be sent"`
}

// A Report says what became of each secret.
type Report struct {
	Items []Item `json:"items" nullable:"false"`
	Next  string `json:"next,omitempty" doc:"There are more; the path to go on after"`
}

// An Outcome is what became of a secret.
type Outcome string

// The outcomes of an import.
const (
	Imported  Outcome = "imported"  // it was not here
	Updated   Outcome = "updated"   // it was here as it had been there, and is now as it is there
	Unchanged Outcome = "unchanged" // it is here as it is there
	Differs   Outcome = "differs"   // both have changed since; it is left alone
	Taken     Outcome = "taken"     // there is another secret at its path here; it is left alone
	Gone      Outcome = "gone"      // its current version there was deleted
	Failed    Outcome = "failed"
)

// An Item is one secret of a [Report].
type Item struct {
	From    string  `json:"from"`
	To      string  `json:"to"`
	Outcome Outcome `json:"outcome" enum:"imported,updated,unchanged,differs,taken,gone,failed"`
	Version string  `json:"version,omitempty" doc:"There"`
	Reason  string  `json:"reason,omitempty" doc:"Why it failed"`
}

// batch is how many secrets one import looks at.
const batch = 200

// What a secret that was imported says of where it comes from: the store and the
// path, the version there, and the version here that is the same.
const (
	originKey, versionKey, asKey = "imported_from", "imported_version", "imported_as"
)

// Imports copy secrets from other vaults.
type Imports struct {
	// Stores are those that an order may name, and so have their log-ins; nil for none.
	Stores *Stores

	guard   *guard.Guard
	secrets *secret.Secrets
	kinds   []Kind
	dial    Dial
}

// NewImports makes it for these kinds. Dial opens a connection to host:port, for a
// tenant.
func NewImports(g *guard.Guard, s *secret.Secrets, dial Dial, kinds ...Kind) *Imports {
	return &Imports{guard: g, secrets: s, kinds: kinds, dial: dial}
}

// Kinds gives the kinds of other vaults.
func (i *Imports) Kinds() []Kind { return i.kinds }

// Run copies the current versions of up to 200 secrets. It may be run again, at
// any time and after any failure: what is here already as it is there is not read
// again, what has changed there is copied again, and what was changed here is
// never overwritten.
func (i *Imports) Run(ctx context.Context, c estover.Caller, o Order) (Report, error) {
	at, k, host, invalid := i.check(ctx, c, o)
	named := storeTarget(o.Store)
	if o.Store == "" {
		named = "store:" + o.Kind + ":" + host
	}
	op := guard.Op{Action: "secret.import", Target: named, Detail: map[string]any{
		"address": o.Address, "login": o.Login, "from": o.From, "to": o.To, "after": o.After, "dry_run": o.DryRun,
	}}
	if err := i.guard.Do(ctx, c, op, func(*guard.Tx) error { return invalid }); err != nil {
		return Report{}, err
	}
	s, err := i.open(ctx, c, at, k, host, o)
	if err != nil {
		return Report{}, err
	}
	paths, err := s.List(ctx, o.From)
	if err != nil {
		return Report{}, i.failure(c.Tenant, at, err)
	}
	report := Report{Items: []Item{}}
	for _, path := range paths {
		if path <= o.After && o.After != "" {
			continue
		}
		if len(report.Items) == batch {
			report.Next = report.Items[batch-1].From
			break
		}
		item := Item{From: path, To: o.To + strings.TrimPrefix(path, o.From)}
		if err := i.copy(ctx, c, s, o, k.Name+":"+host, &item); err != nil {
			if errors.Is(err, engine.ErrUnreachable) || ctx.Err() != nil {
				return report, i.failure(c.Tenant, at, err)
			}
			item.Outcome, item.Reason = Failed, say(err)
		}
		report.Items = append(report.Items, item)
	}
	return report, nil
}

// check looks whether an order can be, and finds the store that it names.
func (i *Imports) check(ctx context.Context, c estover.Caller, o Order) (at NamedStore, k Kind, host string, err error) {
	switch {
	case o.Store == "":
		k, host, err = place(i.kinds, o.Kind, o.Address, o.Options, ErrImport)
		if err == nil && o.Options[Audience] != "" {
			err = ErrImport.With("An import from what is not registered logs in with a secret. Register it as a store, and import from that: estover secret store add, estover secret import --store.").At("options." + Audience)
		}
	case o.Kind != "" || o.Address != "" || len(o.Options) > 0 || o.Authorities != "" || o.Login != "":
		err = ErrImport.With("Name a store, or say what and where it is; not both.").At("store")
	case i.Stores == nil:
		err = ErrNoStore
	default:
		err = i.guard.DB().View(ctx, c.Tenant, func(tx *db.Tx) error {
			at, err = findNamed(ctx, tx, o.Store)
			return err
		})
		if err == nil && !mayManage(c, at.Owner) {
			err = ErrNotOwner.With("Only the owner of the store %s or an administrator imports from it.", o.Store)
		}
		if err == nil {
			k, host, err = place(i.kinds, at.Kind, at.Address, at.Options, ErrImport)
		}
	}
	if err == nil && o.From != "" && CheckPath(strings.TrimSuffix(o.From, "/")) != nil {
		err = ErrImport.With("%q cannot be the beginning of a path.", o.From).At("from")
	}
	if err == nil && k.Flat && strings.Contains(o.From, "/") {
		err = ErrImport.With("Secrets of the kind %s have names without slashes, and none begins with %q.", k.Name, o.From).At("from")
	}
	return at, k, host, err
}

// place looks whether a store of a kind can be at an address.
func place(kinds []Kind, kind, address string, options map[string]string, bad *estover.Error) (k Kind, host string, err error) {
	n := slices.IndexFunc(kinds, func(k Kind) bool { return k.Name == kind })
	if n < 0 {
		var names []string
		for _, k := range kinds {
			names = append(names, k.Name)
		}
		return k, "", bad.With("There is no kind %q of other vaults. There are %s.", kind, strings.Join(names, ", ")).At("kind")
	}
	k = kinds[n]
	host, err = engine.Kind{Name: k.Name, Address: k.Address, Port: "443"}.Host(address)
	if err != nil {
		return k, "", bad.With("The address cannot be: %s.", err).At("address")
	}
	for option, value := range options {
		if !slices.ContainsFunc(k.Options, func(f engine.Field) bool { return f.Name == option }) {
			return k, host, bad.With("The kind %s has no option %q.", k.Name, option).At("options." + option)
		}
		if len(value) > 4096 {
			return k, host, bad.With("The option %s has at most 4096 bytes.", option).At("options." + option)
		}
	}
	return k, host, nil
}

// open logs in as the store does that is named, or with our own secret, where its owner
// allows that.
func (i *Imports) open(ctx context.Context, c estover.Caller, at NamedStore, k Kind, host string, o Order) (Store, error) {
	if at.ID != "" {
		limited, cancel := context.WithTimeout(ctx, callTime)
		defer cancel()
		s, _, err := i.Stores.open(limited, c.Tenant, at.ID)
		if err != nil {
			return nil, i.failure(c.Tenant, at, err)
		}
		return s, nil
	}
	config := engine.Config{Address: o.Address, Options: o.Options, Authorities: []byte(o.Authorities)}
	var err error
	if config.Admin, _, err = login(ctx, i.secrets, estover.Caller{Tenant: c.Tenant, Subject: estover.System("import")}, o.Login, host); err != nil {
		return nil, err
	}
	config.Dial = dialer(c.Tenant, i.dial, host)
	s, err := k.Open(config)
	if err != nil {
		return nil, err
	}
	return checked{s, config.Admin}, nil
}

// login is the credential in a secret of ours, and by which version; none without a
// path.
func login(ctx context.Context, s *secret.Secrets, as estover.Caller, path, host string) (c engine.Credential, version string, err error) {
	if path == "" {
		return c, "", nil
	}
	for range 3 { // a version may come between the two fields
		password, err := s.Use(ctx, as, path, "password", host)
		if errors.Is(err, secret.ErrNoField) {
			password, err = s.Use(ctx, as, path, secret.DefaultField, host)
		}
		if err != nil {
			return c, "", err
		}
		user, err := s.Use(ctx, as, path, "username", host)
		if errors.Is(err, secret.ErrNoField) {
			user, err = secret.Injection{Version: password.Version}, nil
		}
		if err != nil {
			return c, "", err
		}
		if user.Version == password.Version {
			return engine.Credential{User: string(user.Value.Reveal()), Secret: password.Value}, password.Version, nil
		}
	}
	return c, "", ErrStore.With("The secret %s changes faster than it can be read.", path)
}

// A Dial opens a connection to host:port, for a tenant.
type Dial = func(ctx context.Context, tenant estover.TenantID, address string) (net.Conn, error)

// dialer opens connections to one store, and to nothing else.
func dialer(tenant estover.TenantID, dial Dial, hosts ...string) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if !strings.HasPrefix(network, "tcp") || !slices.ContainsFunc(hosts, func(host string) bool { return strings.EqualFold(address, host) }) {
			return nil, fmt.Errorf("%w: %s is not the address of the other vault", engine.ErrUnreachable, address)
		}
		if dial == nil {
			return new(net.Dialer).DialContext(ctx, network, address)
		}
		return dial(ctx, tenant, address)
	}
}

// copy brings one secret here.
func (i *Imports) copy(ctx context.Context, c estover.Caller, s Store, o Order, store string, item *Item) error {
	versions, err := s.Versions(ctx, item.From)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	if len(versions) == 0 || !versions[0].Live {
		item.Outcome = Gone
		return nil
	}
	item.Version = versions[0].ID
	origin := store + "/" + item.From
	if len(origin) > 500 {
		return engine.Refuse("the path is too long")
	}
	// A write is to follow the version that was looked at.
	put := secret.Put{Make: &secret.Spec{
		Path: item.To, Class: o.Class, Risk: o.Risk, Owner: o.Owner, Destinations: o.Destinations, Description: "imported from " + store,
		Custom: map[string]string{originKey: origin, versionKey: item.Version, asKey: "1"},
	}}
	here, err := i.secrets.Describe(ctx, c.Tenant, item.To)
	there := err == nil
	switch {
	case err != nil && !errors.Is(err, secret.ErrNotFound):
		return err
	case !there, here.Custom[originKey] == origin && here.CurrentVersion == 0: // a creation that was cut off
		item.Outcome = Imported
	case here.Custom[originKey] != origin:
		item.Outcome = Taken
		return nil
	case here.Custom[asKey] != strconv.FormatInt(here.CurrentVersion, 10):
		item.Outcome = Differs
		return nil
	case here.Custom[versionKey] == item.Version:
		item.Outcome = Unchanged
		return nil
	default:
		item.Outcome = Updated
	}
	if o.DryRun {
		return nil
	}
	put.Expect = here.CurrentVersion
	value, err := s.Get(ctx, item.From, item.Version)
	if err != nil {
		return err
	}
	_, v, err := i.secrets.Put(ctx, c, item.To, value.Object, put)
	if err != nil || !there {
		return err
	}
	version, as := item.Version, strconv.FormatInt(v.N, 10)
	_, err = i.secrets.Update(ctx, c, item.To, secret.Change{Merge: map[string]*string{versionKey: &version, asKey: &as}})
	return err
}

// failure is what a caller is told of a store that fails.
func (i *Imports) failure(tenant estover.TenantID, at NamedStore, err error) error {
	if at.ID != "" {
		i.Stores.shut(storeKey{tenant, at.ID})
	}
	var known *estover.Error
	switch {
	case errors.As(err, &known):
		return err
	case at.ID != "":
		return ErrStore.With("The store %s does not answer as it should: %s", at.Name, say(err)).Because(err)
	}
	return ErrStore.Because(err)
}

// say is a sentence about what failed, for the report.
func say(err error) string {
	var known *estover.Error
	if errors.As(err, &known) {
		return line(known.Detail)
	}
	return line(err.Error())
}

// line is what somebody says in one line of at most 500 bytes, whatever it was.
func line(said string) string {
	said = strings.Join(strings.FieldsFunc(strings.ToValidUTF8(said, ""), unicode.IsControl), " ")
	return strings.ToValidUTF8(said[:min(len(said), 500)], "")
}
