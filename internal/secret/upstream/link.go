package upstream

import (
	"context"
	"errors"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/job"
	"estover.dev/internal/secret"
)

// ErrLink is returned for a link that cannot be.
var ErrLink = &estover.Error{Kind: estover.Invalid, Code: "link_invalid", Detail: "The secret cannot be read through this store."}

// ErrGone is returned for a secret whose value is not in the store any more.
var ErrGone = &estover.Error{Kind: estover.NotFound, Code: "store_secret_not_found", Detail: "The other vault has no such secret, or it was deleted there."}

const (
	defaultTTL = 5 * time.Minute
	mostTTL    = 24 * time.Hour
	keepStale  = time.Hour        // how long a copy is kept, sealed, that is believed no more
	refill     = 5 * time.Minute  // how often a store is asked for the list of a folder
	askTime    = 30 * time.Second // how long whoever asks a store for a secret has its row
	patience   = 25 * time.Second // how long others wait for that
	sulk       = 2 * time.Second  // for how long nobody asks again what has just failed
	linkKind   = "secret_link"    // how events name rows of links
	apart      = time.Minute      // how far the clocks of nodes may be from each other (F6)
)

// A LinkSpec says which secret, or folder, is read through a store.
type LinkSpec struct {
	Path  string          `json:"path" minLength:"1" maxLength:"512" doc:"Here; with a slash at its end it is a folder"`
	Store string          `json:"store" minLength:"1" maxLength:"63" doc:"The name of the store"`
	From  string          `json:"from,omitempty" maxLength:"400" doc:"The path there, or of a folder what paths there begin with; the same as here if left out"`
	TTL   secret.Duration `json:"ttl,omitempty" doc:"For how long what was read is believed without asking again: 5m if left out, 24h at most"`

	// Of secrets that are made for it.
	Class        estover.Class `json:"class,omitempty" doc:"The class of data that it opens, if the secret is made; confidential if empty"`
	Risk         secret.Risk   `json:"risk,omitempty" doc:"Its risk, if it is made; standard if empty"`
	Destinations []string      `json:"destinations,omitempty" doc:"Where it may be sent, if it is made"`
}

// A Linked secret is one whose value lives in a store.
type Linked struct {
	Path       string    `json:"path"`
	From       string    `json:"from"`
	FreshUntil time.Time `json:"fresh_until,omitzero" doc:"Until when its copy is believed without asking"`
	LastError  string    `json:"last_error,omitempty" doc:"What went wrong when the store was asked the last time"`

	store        string
	claimedBy    string
	claimedUntil time.Time
	fence        int64
}

// A Folder is one of which each secret is linked.
type Folder struct {
	LinkSpec
	Next      time.Time `json:"next_at" doc:"When the store is asked for its list again"`
	LastError string    `json:"last_error,omitempty"`

	storeID   string
	createdBy estover.Subject
	managedBy string
}

// A Filled folder says what became of the secrets in it.
type Filled struct {
	Linked []string `json:"linked" nullable:"false" doc:"Paths here that are read through the store since now"`
	Taken  []string `json:"taken" nullable:"false" doc:"Paths at which there is another secret here; they are left alone"`
	More   bool     `json:"more,omitempty" doc:"There are more, which follow by themselves"`
}

func (l *LinkSpec) check() error {
	folder := strings.HasSuffix(l.Path, "/")
	if l.From == "" {
		l.From = l.Path
	}
	if l.TTL == 0 {
		l.TTL = secret.Duration(defaultTTL)
	}
	switch {
	case l.TTL < secret.Duration(time.Second) || l.TTL > secret.Duration(mostTTL):
		return ErrLink.With("What was read is believed for a second at least and for 24h at most.").At("ttl")
	case !folder && CheckPath(l.From) != nil, folder && CheckPath(strings.TrimSuffix(l.From, "/")) != nil:
		return ErrLink.With("%q cannot be a path there.", l.From).At("from")
	}
	return nil
}

// secretTarget is a secret as events and policies name it.
func secretTarget(path string) string { return "secret:" + path }

// refused tells whoever may do an operation what is wrong with it.
func (x *Stores) refused(ctx context.Context, c estover.Caller, op guard.Op, why error) error {
	return x.Guard.Do(ctx, c, op, func(*guard.Tx) error { return why })
}

// Link has a secret be read through a store, or each that begins with a prefix there
// if its path here is a folder. A secret that is not there is made. It is the owner
// of the store, or an administrator, who says so, since the store hands its values
// to whoever the login is.
func (x *Stores) Link(ctx context.Context, c estover.Caller, l LinkSpec) (Filled, error) {
	f, err := x.KeepLink(ctx, c, l, "")
	switch {
	case err != nil:
		return Filled{}, err
	case f == nil:
		return Filled{Linked: []string{l.Path}, Taken: []string{}}, nil
	}
	return x.fill(ctx, c.Tenant, *f)
}

// KeepLink is Link with who keeps the link, if not whoever makes it by hand. It asks
// the store nothing: the secrets of a folder, which it gives, are linked by [Stores.FillDue].
func (x *Stores) KeepLink(ctx context.Context, c estover.Caller, l LinkSpec, managedBy string) (*Folder, error) {
	invalid := l.check()
	op := guard.Op{Action: "secret.link", Target: secretTarget(l.Path), Detail: map[string]any{"store": l.Store, "from": l.From, "ttl": l.TTL.String()}}
	s, err := x.toLink(ctx, c, op, l, invalid)
	if err != nil {
		return nil, err
	}
	if !strings.HasSuffix(l.Path, "/") {
		return nil, x.link(ctx, c, op, s, l, c.Subject, managedBy)
	}
	f := Folder{LinkSpec: l, storeID: s.ID, createdBy: c.Subject, managedBy: managedBy}
	err = x.Guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		if err := sameStore(ctx, tx.Tx, s); err != nil {
			return err
		}
		switch owner, err := folderOwner(ctx, tx.Tx, l.Path); {
		case err == nil && !mayManage(c, owner):
			return ErrNotOwner.With("The folder %s is read through another store. Its owner or an administrator ends that.", l.Path)
		case err != nil && !errors.Is(err, secret.ErrNotFound):
			return err
		}
		f.Next = tx.Now()
		if managedBy == "" { // whoever makes it waits for it
			f.Next = tx.Now().Add(refill)
		}
		return putFolder(ctx, tx.Tx, f)
	})
	return &f, err
}

// LinkedAs is how a secret, or a folder, is read through a store.
func (x *Stores) LinkedAs(ctx context.Context, c estover.Caller, path string) (l LinkSpec, err error) {
	err = x.Guard.Read(ctx, c, guard.Op{Action: "store.read", Target: secretTarget(path)}, func(tx *db.Tx) error {
		l, err = findLinked(ctx, tx, path)
		return err
	})
	return l, err
}

// LinksKept are the paths of secrets and folders that are read through stores because
// a set of files says so.
func (x *Stores) LinksKept(ctx context.Context, c estover.Caller, managedBy string) (paths []string, err error) {
	err = x.Guard.Read(ctx, c, guard.Op{Action: "store.list"}, func(tx *db.Tx) error {
		paths, err = linksKept(ctx, tx, managedBy)
		return err
	})
	return paths, err
}

// toLink is the store of a link, if the caller may have it read through.
func (x *Stores) toLink(ctx context.Context, c estover.Caller, op guard.Op, l LinkSpec, invalid error) (s NamedStore, err error) {
	if invalid != nil {
		return s, x.refused(ctx, c, op, invalid)
	}
	err = x.Guard.DB().View(ctx, c.Tenant, func(tx *db.Tx) error {
		s, err = findNamed(ctx, tx, l.Store)
		return err
	})
	switch {
	case err != nil:
	case !mayManage(c, s.Owner):
		err = ErrNotOwner
	case nameless(x.Kinds, s.Kind, l.From):
		err = ErrLink.With("In the store %s secrets have names without slashes, and %q is none. Say what it is called there: --from.", s.Name, l.From).At("from")
	}
	if err != nil {
		return s, x.refused(ctx, c, op, err)
	}
	return s, nil
}

// link has one secret live in a store.
func (x *Stores) link(ctx context.Context, c estover.Caller, op guard.Op, s NamedStore, l LinkSpec, owner estover.Subject, managedBy string) error {
	here, err := x.Secrets.Describe(ctx, c.Tenant, l.Path)
	switch {
	case errors.Is(err, secret.ErrNotFound):
		if _, err := x.Secrets.Create(ctx, c, secret.Spec{
			Path: l.Path, Class: l.Class, Risk: l.Risk, Owner: owner, Destinations: l.Destinations, Description: made(s),
		}); err != nil { // also if somebody else has just made it, whose it is
			return err
		}
	case err != nil:
		return x.refused(ctx, c, op, err)
	case !mayManage(c, here.Owner):
		return x.refused(ctx, c, op, secret.ErrNotOwner.With("Only the owner of the secret %s or an administrator says where its value lives.", l.Path))
	}
	to := secret.Link{Store: s.ID, Path: l.From, TTL: l.TTL}
	_, err = x.Secrets.Link(ctx, c, op, l.Path, &to, func(tx *guard.Tx, id string) error {
		if err := sameStore(ctx, tx.Tx, s); err != nil {
			return err
		}
		tx.Touch(linkKind, id)
		return putLink(ctx, tx.Tx, id, to, managedBy)
	})
	return err
}

// made is what a secret says of itself that was made to be read through a store.
func made(s NamedStore) string { return "read through the store " + s.Name }

// fillAtOnce is how many secrets of a folder are linked at a time.
const fillAtOnce = 200

// fill links what a folder has there and not here, until [Most] are read through the
// store.
func (x *Stores) fill(ctx context.Context, tenant estover.TenantID, f Folder) (out Filled, err error) {
	out = Filled{Linked: []string{}, Taken: []string{}}
	c := system(tenant)
	limited, cancel := context.WithTimeout(ctx, 3*callTime)
	defer cancel()
	store, _, err := x.open(limited, tenant, f.storeID)
	if err != nil {
		return out, x.unavailable(ctx, tenant, f.storeID, err)
	}
	s, err := x.copies.Get(ctx, tenant, f.storeID)
	if err != nil {
		return out, err
	}
	paths, err := store.List(limited, f.From)
	if err != nil {
		return out, x.unavailable(ctx, tenant, f.storeID, err)
	}
	var links int64
	err = x.Guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		links, err = countLinks(ctx, tx, f.storeID)
		return err
	})
	if err != nil {
		return out, err
	}
	for _, from := range paths {
		l := f.LinkSpec
		l.Path, l.From = f.Path+strings.TrimPrefix(from, f.From), from
		here, err := x.Secrets.Describe(ctx, tenant, l.Path)
		switch {
		case err == nil && here.Link != nil && here.Link.Store == f.storeID && here.Link.Path == from:
			continue
		case err == nil && !(here.Link == nil && here.CurrentVersion == 0 && here.Owner == f.createdBy && here.Description == made(*s)): // a link that was cut off
			out.Taken = append(out.Taken, l.Path)
			continue
		case err != nil && !errors.Is(err, secret.ErrNotFound):
			return out, err
		case links+int64(len(out.Linked)) >= Most: // the store may name others each time
			return out, ErrLink.With("%d secrets are read through the store %s already, and no more are linked by themselves.", links+int64(len(out.Linked)), s.Name)
		case len(out.Linked) == fillAtOnce:
			out.More = true
			return out, nil
		}
		op := guard.Op{Action: "secret.link", Target: secretTarget(l.Path), Detail: map[string]any{"store": s.Name, "from": from, "ttl": l.TTL.String(), "folder": f.Path}}
		if err := x.link(ctx, c, op, *s, l, f.createdBy, ""); err != nil {
			if estover.KindOf(err) == estover.Invalid || estover.KindOf(err) == estover.Conflict { // a name that no secret has here
				out.Taken = append(out.Taken, l.Path)
				continue
			}
			return out, err
		}
		out.Linked = append(out.Linked, l.Path)
	}
	return out, nil
}

// FillDue links what has come to folders of stores since they were looked at. It is
// called every few seconds, on one node at a time.
func (x *Stores) FillDue(ctx context.Context) error {
	var due []dueFolder
	err := x.Guard.DB().View(ctx, "", func(tx *db.Tx) (err error) {
		due, err = dueFolders(ctx, tx)
		return err
	})
	return errors.Join(err, sideBySide(len(due), func(i int) error {
		d := due[i]
		out, failed := x.fill(ctx, d.tenant, d.folder)
		wait := refill
		if out.More {
			wait = 0
		}
		return x.Guard.DB().Do(ctx, d.tenant, func(tx *db.Tx) error {
			return filled(ctx, tx, d.folder, tx.Now().Add(wait), told(failed))
		})
	}))
}

// told is what is kept of an error, for operators.
func told(err error) string {
	if err == nil {
		return ""
	}
	var known *estover.Error
	if errors.As(err, &known) && known.Err != nil {
		return line(known.Detail + " (" + known.Err.Error() + ")")
	}
	return say(err)
}

// Unlink has the value of a secret live here again: what was copied is destroyed,
// and somebody writes the next version. Of a folder, no more secrets are linked by
// themselves; those that are stay so.
func (x *Stores) Unlink(ctx context.Context, c estover.Caller, path string) error {
	op := guard.Op{Action: "secret.unlink", Target: secretTarget(path), Effect: guard.Deletes}
	if strings.HasSuffix(path, "/") {
		return x.Guard.Do(ctx, c, op, func(tx *guard.Tx) error {
			owner, err := folderOwner(ctx, tx.Tx, path)
			if err != nil {
				return err
			}
			if !mayManage(c, owner) {
				return ErrNotOwner
			}
			return dropFolder(ctx, tx.Tx, path)
		})
	}
	here, err := x.Secrets.Describe(ctx, c.Tenant, path)
	if err == nil && !mayManage(c, here.Owner) {
		err = secret.ErrNotOwner.With("Only the owner of the secret %s or an administrator says where its value lives.", path)
	}
	if err != nil {
		return x.refused(ctx, c, op, err)
	}
	_, err = x.Secrets.Link(ctx, c, op, path, nil, func(tx *guard.Tx, id string) error {
		tx.Touch(linkKind, id)
		return dropLink(ctx, tx.Tx, id)
	})
	return err
}

type linkKey struct {
	tenant estover.TenantID
	secret string
}

// known is what a node knows of a linked secret.
type known struct {
	link  secret.Link
	until time.Time // it is fresh, or has failed
	err   error     // why it is not fresh
}

// asking is a question to a store that many wait for.
type asking struct {
	done chan struct{}
	err  error
}

// Fresh sees to it that the current version of a linked secret is the one that its
// store has, as far as that was looked at within the time that the link says. Of
// many who want to know at once, on all nodes, one asks the store; and what a
// version holds is asked for only if there is no copy of that version (S1). An error
// says that it is not known: then nobody is given what was known before.
func (x *Stores) Fresh(ctx context.Context, tenant estover.TenantID, s secret.Secret, before func() error) error {
	k := linkKey{tenant, s.ID}
	now := x.Guard.DB().Now()
	x.mu.Lock()
	have, ok := x.known[k]
	x.mu.Unlock()
	ok = ok && have.link == *s.Link && now.Before(have.until)
	if ok && have.err == nil {
		return nil
	}
	if before != nil {
		if err := before(); err != nil {
			return err
		}
	}
	if ok {
		return have.err
	}
	x.mu.Lock()
	a := x.asking[k]
	if a == nil {
		a = &asking{done: make(chan struct{})}
		x.asking[k] = a
		go func() {
			// Who asked first may go; the others are not to be left alone.
			limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
			defer cancel()
			var until time.Time
			err := job.Guarded(func() (err error) { until, err = x.ask(limited, tenant, s); return err })
			if err != nil {
				until = x.Guard.DB().Now().Add(sulk)
			}
			x.mu.Lock()
			defer x.mu.Unlock()
			if len(x.known) >= mostKnown {
				clear(x.known)
			}
			x.known[k] = known{*s.Link, until, err}
			delete(x.asking, k)
			a.err = err
			close(a.done)
		}()
	}
	x.mu.Unlock()
	select {
	case <-a.done:
		return a.err
	case <-ctx.Done():
		return db.ErrUnavailable.Because(ctx.Err())
	}
}

// mostKnown bounds what a node remembers of linked secrets.
const mostKnown = 100_000

// errOtherwise says that a secret was linked otherwise while it was looked at.
var errOtherwise = secret.ErrLinked.With("The secret was linked otherwise in the meantime. Try again.")

// ask asks the store, unless another node does or has, and gives until when the
// answer is good.
func (x *Stores) ask(ctx context.Context, tenant estover.TenantID, s secret.Secret) (until time.Time, err error) {
	var row Linked
	for {
		mine := false
		err := x.Guard.DB().Do(ctx, tenant, func(tx *db.Tx) error {
			mine = false
			if row, err = findLink(ctx, tx, s.ID); err != nil {
				return err
			}
			if row.store != s.Link.Store || row.From != s.Link.Path {
				return errOtherwise
			}
			if tx.Now().Before(row.FreshUntil) || tx.Now().Before(row.claimedUntil) {
				return nil
			}
			mine, err = claimLink(ctx, tx, s.ID, &row, x.Node, tx.Now().Add(askTime))
			return err
		})
		switch {
		case err != nil:
			return until, err
		case mine:
		case x.Guard.DB().Now().Before(row.FreshUntil):
			x.Secrets.Forget(tenant, s.Path) // another node may have copied another version
			return row.FreshUntil, nil
		default:
			select {
			case <-time.After(20 * time.Millisecond):
				continue
			case <-ctx.Done():
				return until, x.unavailable(ctx, tenant, s.Link.Store, ctx.Err())
			}
		}
		break
	}
	begun := x.Guard.DB().Now()
	at, err := x.copies.Get(ctx, tenant, s.Link.Store)
	if err == nil {
		err = x.look(ctx, tenant, s, *at, row.fence)
	}
	if err == nil {
		until = begun.Add(time.Duration(s.Link.TTL))
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	settled := x.Guard.DB().Do(last, tenant, func(tx *db.Tx) error {
		if err == nil {
			if err = x.asItWas(last, tx, *at); err != nil {
				until = time.Time{}
			}
		}
		return settleLink(last, tx, s.ID, row.fence, until, told(err))
	})
	if err == nil { // what was found out is more than that it could not be written down
		err = settled
	}
	return until, err
}

// asItWas sees whether a store is where it was when it was asked. The copy of it in
// memory may be an old one.
func (x *Stores) asItWas(ctx context.Context, tx *db.Tx, at NamedStore) error {
	now, err := findStore(ctx, tx, at.ID)
	if err == nil && now.epoch != at.epoch {
		x.copies.Drop(tx.Tenant(), at.ID)
		err = ErrStore.With("The store %s was changed while it was asked. Try again.", at.Name)
	}
	return err
}

// look compares the copy of a secret with what the store has, and copies what is new.
// Whoever has lost the row, or asked where the store is no more, copies nothing.
func (x *Stores) look(ctx context.Context, tenant estover.TenantID, s secret.Secret, at NamedStore, fence int64) error {
	limited, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	store, _, err := x.open(limited, tenant, s.Link.Store)
	if err != nil {
		return x.unavailable(ctx, tenant, s.Link.Store, err)
	}
	now, copied, err := x.Secrets.Copied(ctx, tenant, s.Path)
	if err != nil {
		return err
	}
	still := func(tx *guard.Tx) error {
		if err := hasLink(ctx, tx.Tx, s.ID, fence); err != nil {
			return err
		}
		return x.asItWas(ctx, tx.Tx, at)
	}
	if now.ID != s.ID || now.Link == nil || *now.Link != *s.Link {
		return errOtherwise
	}
	version := ""
	if copied.N > 0 {
		versions, err := store.Versions(limited, s.Link.Path)
		switch {
		case err != nil && !errors.Is(err, ErrNotFound):
			return x.unavailable(ctx, tenant, s.Link.Store, err)
		case err != nil || len(versions) == 0 || !versions[0].Live:
			return x.gone(ctx, tenant, s, true, still)
		case versions[0].ID == copied.Origin && !anew(copied, versions[0], at):
			return nil
		}
		version = versions[0].ID
	}
	if err := x.at("before get"); err != nil {
		return err
	}
	v, err := store.Get(limited, s.Link.Path, version)
	if errors.Is(err, ErrNotFound) {
		return x.gone(ctx, tenant, s, copied.N > 0, still)
	}
	if err != nil {
		return x.unavailable(ctx, tenant, s.Link.Store, err)
	}
	_, err = x.Secrets.Copy(ctx, system(tenant), s.Path, *s.Link, v.Version, v.Object, still)
	return err
}

// anew says that a version there may be another one than that of the same name which
// was copied: the store has been changed since, and may be somewhere else, or the
// secret was made once more, and stores count from one again.
func anew(copied secret.Version, there Version, at NamedStore) bool {
	return at.epoch > 1 && copied.CreatedAt.Before(at.ChangedAt.Add(apart)) || there.Created.After(copied.CreatedAt)
}

// gone is the error of a secret that the store does not have; a copy of it is
// destroyed.
func (x *Stores) gone(ctx context.Context, tenant estover.TenantID, s secret.Secret, copied bool, still func(*guard.Tx) error) error {
	if copied {
		if _, err := x.Secrets.Copy(ctx, system(tenant), s.Path, *s.Link, "", estover.Secret{}, still); err != nil {
			return err
		}
	}
	return ErrGone.With("The store %s has no secret for %s, or it was deleted there.", x.nameOf(ctx, tenant, s.Link.Store), s.Path)
}

// unavailable is the error of a store that has not answered, for whoever needs what
// is in it. Its own words are the operator's.
func (x *Stores) unavailable(ctx context.Context, tenant estover.TenantID, id string, err error) error {
	var known *estover.Error
	if errors.As(err, &known) {
		return err
	}
	name := x.nameOf(context.WithoutCancel(ctx), tenant, id)
	x.shut(storeKey{tenant, id})
	return ErrStore.With("The store %s does not answer, so what it has is not known. An operator finds the reason with `estover secret store check %s`.", name, name).Because(err)
}

// Sweep destroys copies that have not been believed for an hour, and forgets what
// belongs to secrets that are no more. It is called every few minutes, on one node at
// a time.
func (x *Stores) Sweep(ctx context.Context) error {
	var stale []staleLink
	err := x.Guard.DB().View(ctx, "", func(tx *db.Tx) (err error) {
		stale, err = staleLinks(ctx, tx, tx.Now().Add(-keepStale))
		return err
	})
	for _, l := range stale {
		err = errors.Join(err, x.expire(ctx, l))
	}
	return errors.Join(err, x.Guard.DB().Do(ctx, "", sweepEnded(ctx)))
}

// expire has the row meanwhile, as who asks has it, so that nothing is destroyed that
// has just been found to be as it is there.
func (x *Stores) expire(ctx context.Context, l staleLink) error {
	var row Linked
	mine := false
	err := x.Guard.DB().Do(ctx, l.tenant, func(tx *db.Tx) (err error) {
		mine = false
		if row, err = findLink(ctx, tx, l.secret); err != nil || !row.FreshUntil.Equal(l.until) || tx.Now().Before(row.claimedUntil) {
			return err
		}
		mine, err = claimLink(ctx, tx, l.secret, &row, x.Node, tx.Now().Add(askTime))
		return err
	})
	if err != nil || !mine {
		return err
	}
	s, copied, err := x.Secrets.Copied(ctx, l.tenant, l.path)
	if err == nil && s.ID == l.secret && s.Link != nil && copied.N > 0 {
		_, err = x.Secrets.Copy(ctx, system(l.tenant), l.path, *s.Link, "", estover.Secret{}, func(tx *guard.Tx) error {
			return hasLink(ctx, tx.Tx, l.secret, row.fence)
		})
	}
	if errors.Is(err, secret.ErrNotFound) { // it has just been removed
		err = nil
	}
	return errors.Join(err, x.Guard.DB().Do(ctx, l.tenant, func(tx *db.Tx) error {
		return settleLink(ctx, tx, l.secret, row.fence, time.Time{}, row.LastError)
	}))
}
