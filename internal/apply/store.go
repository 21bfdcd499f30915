package apply

import (
	"context"
	"maps"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/upstream"
)

// A StoreSpec is what one says of another vault: everything but what logs in there.
type StoreSpec struct {
	Kind        string            `json:"kind" minLength:"1" maxLength:"50" doc:"Of which kind it is, as estover secret store kinds lists them; for good."`
	Address     string            `json:"address" minLength:"1" maxLength:"500" doc:"Where it is, as its kind says."`
	Options     map[string]string `json:"options,omitempty" doc:"What else its kind wants to know."`
	Authorities string            `json:"authorities,omitempty" maxLength:"65536" doc:"Certificates in PEM that it is known by, instead of the system's."`
	Login       string            `json:"login,omitempty" maxLength:"500" doc:"The path of the secret that logs in there, which allows it as a destination."`
	Owner       string            `json:"owner,omitempty" doc:"The person who answers for it; whoever adds it if it is left out."`
	Description string            `json:"description,omitempty" maxLength:"1000" doc:"What it is for."`
}

// A LinkSpec says through which store a secret, or each of a folder, is read. Of a
// secret everything else stands in a document of its own.
type LinkSpec struct {
	Store        string        `json:"store" minLength:"1" maxLength:"63" doc:"The name of the store."`
	From         string        `json:"from,omitempty" maxLength:"400" doc:"The path there, or of a folder what paths there begin with; the same as here if it is left out."`
	TTL          string        `json:"ttl,omitempty" default:"5m" doc:"For how long what was read is believed without asking again: a second at least, 24h at most."`
	Class        estover.Class `json:"class,omitempty" enum:"public,internal,confidential,restricted" doc:"Of a folder: the class of the data that its secrets open."`
	Risk         secret.Risk   `json:"risk,omitempty" enum:"low,standard,high" doc:"Of a folder: the risk of its secrets."`
	Destinations []string      `json:"destinations,omitempty" doc:"Of a folder: the hosts that its secrets may be sent to."`
}

// A SyncSpec says which secret is pushed to the place that the document is named after.
type SyncSpec struct {
	Secret string `json:"secret" minLength:"1" maxLength:"512" doc:"The path of our secret, which allows the store as a destination."`
}

// isFolder reports whether a path is one of which each secret is linked.
func isFolder(path string) bool { return strings.HasSuffix(path, "/") }

// place is the store and the path there of a sync, by its name.
func place(name string) (store, to string) {
	store, to, _ = strings.Cut(name, "/")
	return store, to
}

// in is the spec as the package of stores has it.
func (s StoreSpec) in(name string, owner estover.Subject) upstream.StoreSpec {
	return upstream.StoreSpec{
		Name: name, Kind: s.Kind, Address: s.Address, Options: s.Options, Authorities: s.Authorities, Login: s.Login, Owner: owner, Description: s.Description,
	}
}

var storeKind = kind{
	hints: map[string]string{"token": noLogin, "password": noLogin, "username": noLogin, "secret": noLogin},
	make:  func() any { return &StoreSpec{} },
	check: func(_ *parser, d *Document) error {
		if !estover.ValidName(d.Name) {
			return Problems{d.problem("name", "A store has a name of up to 63 small letters, digits, dots, dashes and underscores, not %q.", d.Name)}
		}
		return nil
	},
	refers: func(ctx context.Context, r *run, d *Document) error {
		s := d.Spec.(*StoreSpec)
		if err := r.Stores.Valid(s.in(d.Name, estover.System("apply"))); err != nil {
			return err
		}
		if s.Owner != "" {
			if err := r.refer(ctx, d, "owner", KindPerson, s.Owner); err != nil {
				return err
			}
		}
		if s.Login == "" {
			return nil
		}
		return r.referSecret(ctx, d, "login", s.Login)
	},
	find: func(ctx context.Context, r *run, d *Document) (object, bool, error) {
		now, err := r.Stores.Get(ctx, r.caller, d.Name)
		if err != nil {
			return found(object{}, err)
		}
		want := d.Spec.(*StoreSpec)
		if now.Kind != want.Kind {
			return object{}, false, Problems{d.problem("kind", "The store %s is of the kind %s, and stays that. Give this one another name.", d.Name, now.Kind)}
		}
		s := StoreSpec{Kind: now.Kind, Address: now.Address, Authorities: now.Authorities, Login: now.Login, Description: now.Description}
		if len(now.Options) > 0 {
			s.Options = maps.Clone(now.Options)
		}
		switch {
		case want.Owner == "": // not said: it stays whose it is
		case now.Owner.Kind() == estover.UserKind:
			s.Owner, err = r.personName(ctx, now.Owner.ID())
		default:
			s.Owner = string(now.Owner)
		}
		return object{now.ID, d.Name, &s}, err == nil, err
	},
	put: func(ctx context.Context, r *run, d *Document, _ object) error {
		s := d.Spec.(*StoreSpec)
		var owner estover.Subject
		if s.Owner != "" {
			id, err := r.id(ctx, KindPerson, s.Owner)
			if err != nil {
				return err
			}
			owner = estover.User(id)
		}
		x, err := r.Stores.Keep(ctx, r.caller, s.in(d.Name, owner), r.managedBy)
		r.ids[KindStore+"/"+d.Name] = x.ID
		return err
	},
	managed: func(ctx context.Context, r *run) (out []object, err error) {
		stores, err := all(func(after string) ([]upstream.NamedStore, string, error) {
			page, err := r.Stores.List(ctx, r.caller, after, 200)
			next := ""
			if len(page) == 200 {
				next = page[len(page)-1].Name
			}
			return page, next, err
		})
		for _, s := range stores {
			if s.ManagedBy == r.managedBy {
				out = append(out, object{s.ID, s.Name, nil})
			}
		}
		return out, err
	},
	remove: func(ctx context.Context, r *run, o object) error { return r.Stores.Remove(ctx, r.caller, o.name) },
}

const noLogin = "What logs in at a store never stands in a file. Keep it in a secret, and name that by its path in `login`."

const ofSecret = "What is said of a secret stands in its own document, of the kind Secret."

var linkKind = kind{
	make:  func() any { return &LinkSpec{} },
	check: func(_ *parser, d *Document) error { return checkLink(d) },
	refers: func(ctx context.Context, r *run, d *Document) error {
		if err := r.refer(ctx, d, "store", KindStore, d.Spec.(*LinkSpec).Store); err != nil || isFolder(d.Name) {
			return err
		}
		return r.referSecret(ctx, d, "name", d.Name)
	},
	find: func(ctx context.Context, r *run, d *Document) (object, bool, error) {
		now, err := r.Stores.LinkedAs(ctx, r.caller, d.Name)
		s := LinkSpec{Store: now.Store, From: now.From, TTL: now.TTL.String(), Class: now.Class, Risk: now.Risk, Destinations: now.Destinations}
		return found(object{"", d.Name, &s}, err)
	},
	put: func(ctx context.Context, r *run, d *Document, _ object) error {
		s := d.Spec.(*LinkSpec)
		l := upstream.LinkSpec{Path: d.Name, Store: s.Store, From: s.From, Class: s.Class, Risk: s.Risk, Destinations: s.Destinations}
		if err := l.TTL.UnmarshalText([]byte(s.TTL)); err != nil {
			return err
		}
		_, err := r.Stores.KeepLink(ctx, r.caller, l, r.managedBy)
		return err
	},
	managed: func(ctx context.Context, r *run) (out []object, err error) {
		paths, err := r.Stores.LinksKept(ctx, r.caller, r.managedBy)
		for _, path := range paths {
			out = append(out, object{"", path, nil})
		}
		return out, err
	},
	remove: func(ctx context.Context, r *run, o object) error { return r.Stores.Unlink(ctx, r.caller, o.name) },
}

func checkLink(d *Document) error {
	s := d.Spec.(*LinkSpec)
	var bad Problems
	wrong := func(field, format string, args ...any) { bad = append(bad, d.problem(field, format, args...)) }
	if upstream.CheckPath(strings.TrimSuffix(d.Name, "/")) != nil {
		wrong("name", "The name of a link is the path of a secret, or of a folder with a slash at its end, not %q.", d.Name)
	}
	if s.From == "" {
		s.From = d.Name
	}
	if upstream.CheckPath(strings.TrimSuffix(s.From, "/")) != nil || isFolder(s.From) && !isFolder(d.Name) {
		wrong("from", "%q cannot be a path there.", s.From)
	}
	var ttl secret.Duration
	if s.TTL == "" {
		s.TTL = "5m"
	}
	if err := ttl.UnmarshalText([]byte(s.TTL)); err != nil || ttl < secret.Duration(time.Second) || ttl > secret.Duration(24*time.Hour) {
		wrong("ttl", "The ttl is a time of a second at least and of 24h at most, as 90s or 1h30m, not %q.", s.TTL)
	}
	s.TTL = ttl.String()
	if s.Class != "" && s.Class.Rank() < 0 {
		wrong("class", "The class is public, internal, confidential or restricted, not %q.", s.Class)
	}
	if s.Risk != "" && s.Risk != secret.Low && s.Risk != secret.Standard && s.Risk != secret.High {
		wrong("risk", "The risk is low, standard or high, not %q.", s.Risk)
	}
	if !isFolder(d.Name) {
		for field, said := range map[string]bool{"class": s.Class != "", "risk": s.Risk != "", "destinations": len(s.Destinations) > 0} {
			if said {
				wrong(field, ofSecret)
			}
		}
	}
	s.Destinations = destinations(s.Destinations, wrong)
	if len(bad) > 0 {
		return bad
	}
	return nil
}

var syncKind = kind{
	make: func() any { return &SyncSpec{} },
	check: func(_ *parser, d *Document) error {
		if store, to := place(d.Name); !estover.ValidName(store) || upstream.CheckPath(to) != nil {
			return Problems{d.problem("name", "The name of a sync is the place that is pushed to: the name of a store, a slash and the path there, as team/app/key, not %q.", d.Name)}
		}
		return nil
	},
	refers: func(ctx context.Context, r *run, d *Document) error {
		store, _ := place(d.Name)
		if err := r.refer(ctx, d, "name", KindStore, store); err != nil {
			return err
		}
		return r.referSecret(ctx, d, "secret", d.Spec.(*SyncSpec).Secret)
	},
	find: func(ctx context.Context, r *run, d *Document) (object, bool, error) {
		store, to := place(d.Name)
		now, err := r.Stores.Syncs(ctx, r.caller, upstream.SyncFilter{Store: store, To: to}, "", 1)
		if err != nil || len(now) == 0 {
			return object{}, false, err
		}
		if path := d.Spec.(*SyncSpec).Secret; now[0].Path != path {
			return object{}, false, Problems{d.problem("secret", "The secret %s is pushed to this place, and what stands there is not overwritten. Remove that first: estover secret sync remove %s", now[0].Path, now[0].ID)}
		}
		return object{now[0].ID, d.Name, &SyncSpec{now[0].Path}}, true, nil
	},
	put: func(ctx context.Context, r *run, d *Document, _ object) error {
		store, to := place(d.Name)
		_, err := r.Stores.KeepSync(ctx, r.caller, upstream.SyncSpec{Path: d.Spec.(*SyncSpec).Secret, Store: store, To: to}, r.managedBy)
		return err
	},
	managed: func(ctx context.Context, r *run) (out []object, err error) {
		syncs, err := all(func(after string) ([]upstream.Sync, string, error) {
			page, err := r.Stores.Syncs(ctx, r.caller, upstream.SyncFilter{ManagedBy: r.managedBy}, after, 200)
			next := ""
			if len(page) == 200 {
				next = page[len(page)-1].ID
			}
			return page, next, err
		})
		for _, s := range syncs {
			out = append(out, object{s.ID, s.Store + "/" + s.To, nil})
		}
		return out, err
	},
	remove: func(ctx context.Context, r *run, o object) error { return r.Stores.RemoveSync(ctx, r.caller, o.id) },
}
