// Package notify tells people that something waits for them: by e-mail, in the
// chat of a team, or by a webhook of their own. A channel says where, and about
// which events.
//
//	live ──put──▶ live        the same name, another specification, a higher epoch
//	  └──retire──▶ ended      what it had still to say is dropped
//
// # From an event to a message
//
// The log is the source: what is not on record nobody is told of, and what is on
// record is told even if the process ends in between.
//
//	event ─follow─▶ waiting, a row for each recipient ─bundle─▶ message ─▶ sent
//	                   └───────────── decided meanwhile, or given up ───▶ dropped
//
// Rows of one recipient of one channel are a line. What stands at its head goes
// first, and what is behind it waits, so each recipient hears everything in the
// order of the log. A message is sent at least once: whoever gets one again
// knows it by its id, which stays the same.
//
// People who are asked all day stop reading. So what comes within some seconds
// is one message, and after so many an hour the rest comes as one digest when
// the hour is over.
//
// # What a message says, and what it cannot do
//
// Who asks, for what, until when, the eight words of the document's fingerprint,
// and where to look. It is rendered when it is sent, from the request as it is
// then; what has been decided in the meantime is left out. Nothing in a message
// approves anything: the link leads to a page on which one signs in. What agents
// wrote is shown as plain text, in which nothing can be clicked.
package notify

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/mail"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// The kinds of channels.
const (
	Email   = "email"
	Slack   = "slack"
	Teams   = "teams"
	Webhook = "webhook"
)

// A Spec is what an administrator decides about a channel.
type Spec struct {
	Name         string   `json:"name" pattern:"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$" doc:"What the channel is called: small letters, digits, dots, dashes and underscores."`
	Kind         string   `json:"kind" enum:"email,slack,teams,webhook" doc:"By what it tells: e-mail, a webhook that takes what Slack takes, one that takes what Teams takes, or a signed Standard Webhook."`
	Events       []string `json:"events,omitempty" maxItems:"20" doc:"The events that are told, by their actions; a name that ends in .* stands for all that begin so. By itself access.request and access.escalate: that a request waits."`
	URL          string   `json:"url,omitempty" maxLength:"2048" doc:"Of a webhook: where it is. For Slack and Teams, where the whole URL is a secret, only its beginning: https://hooks.slack.com."`
	Secret       string   `json:"secret,omitempty" maxLength:"200" doc:"The path of a secret. Of a Standard Webhook the key that signs (whsec_…), for Slack and Teams the whole URL, for e-mail the password."`
	Server       string   `json:"server,omitempty" maxLength:"260" doc:"Of e-mail: the HOST:PORT of the SMTP server."`
	TLS          string   `json:"tls,omitempty" enum:"starttls,implicit,none" doc:"Of e-mail: whether TLS begins with STARTTLS, at once, or not at all, which is allowed on a private network alone."`
	User         string   `json:"user,omitempty" maxLength:"255" doc:"Of e-mail: the user name, if the server wants one."`
	From         string   `json:"from,omitempty" maxLength:"254" doc:"Of e-mail: the sender's address."`
	To           []string `json:"to,omitempty" maxItems:"20" doc:"Of e-mail: addresses that are told beside those who may decide; each of these has one in the directory, or is not told."`
	CA           string   `json:"ca,omitempty" doc:"The roots, in PEM, by which the certificate of the other side is checked; the system's if there are none."`
	AllowPrivate bool     `json:"allow_private,omitempty" doc:"Whether the other side may be on a private network, and its URL http://."`
	BatchSeconds *int64   `json:"batch_seconds,omitempty" minimum:"0" maximum:"3600" doc:"How long a message waits for others, to be one with them. By itself 10, and 0 for Standard Webhooks."`
	PerHour      *int64   `json:"per_hour,omitempty" minimum:"0" maximum:"3600" doc:"How many messages an hour a recipient gets; what is more comes as one digest. 0 is no bound. By itself 12, and 0 for Standard Webhooks."`
}

// A Channel is where people are told.
type Channel struct {
	ID string `json:"id"` // chn_…
	Spec
	ManagedBy    string          `json:"managed_by,omitempty"`
	CreatedAt    time.Time       `json:"created_at"`
	CreatedBy    estover.Subject `json:"created_by"`
	ChangedAt    time.Time       `json:"changed_at"`
	EndedAt      time.Time       `json:"ended_at,omitzero"`
	Epoch        int64           `json:"epoch"`
	Waiting      int64           `json:"waiting"`                // what has still to be said
	FailingSince time.Time       `json:"failing_since,omitzero"` // since when nothing got through
	Failure      string          `json:"failure,omitempty"`      // why
}

// Errors about channels.
var (
	// ErrNotFound is returned when there is no such channel in the tenant.
	ErrNotFound = &estover.Error{Kind: estover.NotFound, Code: "channel_not_found", Detail: "There is no such channel. `estover channel list` shows which there are."}
	// ErrInvalid is returned when what is said of a channel cannot be.
	ErrInvalid = &estover.Error{Kind: estover.Invalid, Code: "channel_invalid", Detail: "This cannot be said of a channel."}
	// ErrTooMany is returned when a tenant has as many channels as it may have.
	ErrTooMany = &estover.Error{Kind: estover.TooMuch, Code: "channels_too_many", Detail: "There are too many channels. Retire one that nobody reads."}
	// ErrSend is returned when a message did not get through.
	ErrSend = &estover.Error{Kind: estover.Conflict, Code: "channel_unreachable", Detail: "The message did not get through."}
)

// maxChannels bounds the channels of a tenant: all of them are asked about each
// event.
const maxChannels = 20

// usual are the events of a channel that names none: that something waits.
var usual = []string{"access.request", "access.escalate"}

// never are events that nobody is told of one by one: there are too many of
// them, or they would be about the telling itself.
var never = []string{"channel.", "gateway.", "token.", "secret.use", "access.evaluate"}

// A Person is somebody who is told.
type Person struct {
	Subject estover.Subject
	Name    string
	Email   string // "" for somebody who has none
}

// A Matter is a request as it is told.
type Matter struct {
	Title       string   // support-bot asks for access
	Lines       []string // what exactly, a line each
	Reason      string   // in the words of whoever asks
	Fingerprint string   // of the document, in eight words
	Link        string   // of the page on which one signs in and decides
	Open        bool     // it still waits
	Until       time.Time
}

// Options are what notification needs of others.
type Options struct {
	// Describe is a request as it is now. An error of kind NotFound says that it
	// is gone.
	Describe func(ctx context.Context, tenant estover.TenantID, request string) (Matter, error)

	// People are the active people whom an event names as those to be told:
	// subjects, or roles.
	People func(ctx context.Context, tenant estover.TenantID, who []string, agent string) ([]Person, error)

	// Post sends a request, as far as the channel opens its host, and gives the
	// status of the answer.
	Post func(ctx context.Context, tenant estover.TenantID, s Spec, r *http.Request) (status int, err error)

	// Dial opens a connection to host:port as far as the channel opens it, and says
	// how the certificate there is checked.
	Dial func(ctx context.Context, tenant estover.TenantID, s Spec, address string) (net.Conn, *tls.Config, error)

	// Secret is the value of a secret that may be sent to a host:port.
	Secret func(ctx context.Context, tenant estover.TenantID, path, host string) (estover.Secret, error)

	Logger *slog.Logger // slog.Default if nil
}

// Kind is what channels touch, as [guard.Tx.Touch] names it.
const Kind = "channel"

// all is the id of the one copy that there is of a tenant's channels.
const all = "all"

// Notify is the channels of all tenants. It is safe for use by many at once.
type Notify struct {
	Options
	guard  *guard.Guard
	copies *guard.Cache[[]Channel]

	mu   sync.Mutex
	busy map[line]bool // what is being said right now
}

// New is the channels behind the door g.
func New(g *guard.Guard, o Options) *Notify {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return &Notify{Options: o, guard: g, busy: map[line]bool{}, copies: guard.NewCache(g, Kind, func(ctx context.Context, tx *db.Tx, _ string) ([]Channel, error) {
		return live(ctx, tx)
	})}
}

// Check gives the spec in the one form in which it is kept, or everything that
// is wrong with it.
func Check(s Spec) (Spec, error) {
	var bad []error
	wrong := func(field, format string, args ...any) { bad = append(bad, ErrInvalid.With(format, args...).At(field)) }
	if !estover.ValidName(s.Name) {
		wrong("name", "The name of a channel has up to 63 small letters, digits, dots, dashes and underscores, not %q.", s.Name)
	}
	s.Events = slices.Clone(s.Events)
	slices.Sort(s.Events)
	s.Events = slices.Compact(s.Events)
	for i, e := range s.Events {
		name := strings.TrimSuffix(e, ".*")
		noun, verb, ok := strings.Cut(name, ".")
		switch {
		case len(e) > 100 || noun == "" || strings.HasSuffix(e, ".*") && ok || !strings.HasSuffix(e, ".*") && (!ok || verb == ""):
			wrong(fmt.Sprintf("events[%d]", i), "An event is named by its action, as access.request, or with others of its kind, as access.*; not %q.", e)
		case slices.ContainsFunc(never, func(n string) bool { return strings.HasPrefix(name+".", n) || strings.HasPrefix(e, n) }):
			wrong(fmt.Sprintf("events[%d]", i), "Nobody is told of %s one by one: there are too many. Follow the log for them.", e)
		}
	}
	only := func(field, kinds string, set bool) {
		if set && !slices.Contains(strings.Split(kinds, " "), s.Kind) {
			wrong(field, "A channel of the kind %s has none.", s.Kind)
		}
	}
	only("url", "slack teams webhook", s.URL != "")
	for field, set := range map[string]bool{"server": s.Server != "", "tls": s.TLS != "", "user": s.User != "", "from": s.From != "", "to": len(s.To) > 0} {
		only(field, Email, set)
	}
	switch s.Kind {
	case Slack, Teams, Webhook:
		u, err := url.Parse(s.URL)
		switch {
		case err != nil || u.Host == "" || u.User != nil || u.Fragment != "":
			wrong("url", "This is the URL of a webhook, https://HOST/…, not %q.", s.URL)
		case u.Scheme != "https" && (u.Scheme != "http" || !s.AllowPrivate):
			wrong("url", "The URL begins with https://. On a private network (allow_private) it may begin with http://.")
		case s.Kind != Webhook && s.Secret != "" && strings.Trim(u.Path, "/")+u.RawQuery != "":
			wrong("url", "Where the secret holds the whole URL, this is its beginning alone: %s://%s.", u.Scheme, u.Host)
		case s.Kind == Webhook && s.Secret == "":
			wrong("secret", "A Standard Webhook is signed. Name the secret that holds the key (whsec_…).")
		}
	case Email:
		if host, port, err := net.SplitHostPort(s.Server); err != nil || host == "" || port == "" {
			wrong("server", "The SMTP server is HOST:PORT, as smtp.example.com:587, not %q.", s.Server)
		}
		if s.TLS == "" {
			s.TLS = "starttls"
		}
		if s.TLS != "starttls" && s.TLS != "implicit" && (s.TLS != "none" || !s.AllowPrivate) {
			wrong("tls", "TLS begins with STARTTLS (starttls) or at once (implicit). It may be left out (none) on a private network alone (allow_private).")
		}
		if (s.User == "") != (s.Secret == "") {
			wrong("user", "A user name and the secret with its password are there together, or neither.")
		}
		if s.TLS == "none" && s.Secret != "" {
			wrong("secret", "A password is not sent without TLS.")
		}
		address := func(field, a string) {
			if p, err := mail.ParseAddress(a); err != nil || p.Address != a || len(a) > 254 {
				wrong(field, "%q is not an e-mail address.", a)
			}
		}
		address("from", s.From)
		for i, a := range s.To {
			address(fmt.Sprintf("to[%d]", i), a)
		}
	default:
		wrong("kind", "A channel is of the kind email, slack, teams or webhook, not %q.", s.Kind)
	}
	for field, n := range map[string]*int64{"batch_seconds": s.BatchSeconds, "per_hour": s.PerHour} {
		if n != nil && (*n < 0 || *n > 3600) {
			wrong(field, "This is between 0 and 3600.")
		}
	}
	return s, errors.Join(bad...)
}

// tells reports whether a channel tells of an event.
func (s *Spec) tells(action string) bool {
	names := s.Events
	if len(names) == 0 {
		names = usual
	}
	return slices.ContainsFunc(names, func(e string) bool {
		prefix, many := strings.CutSuffix(e, "*")
		return e == action || many && strings.HasPrefix(action, prefix)
	})
}

// batch is how long a message waits for others.
func (s *Spec) batch() time.Duration {
	switch {
	case s.BatchSeconds != nil:
		return time.Duration(*s.BatchSeconds) * time.Second
	case s.Kind == Webhook:
		return 0
	}
	return 10 * time.Second
}

// perHour is how many messages an hour a recipient gets; 0 for no bound.
func (s *Spec) perHour() int64 {
	switch {
	case s.PerHour != nil:
		return *s.PerHour
	case s.Kind == Webhook:
		return 0
	}
	return 12
}

// Put adds a channel, or changes the one of this name. One that is added tells
// of what happens from then on. managedBy says who keeps one that is added, if not
// a person by hand.
func (n *Notify) Put(ctx context.Context, caller estover.Caller, spec Spec, managedBy string) (c Channel, err error) {
	if spec, err = Check(spec); err != nil {
		return c, err
	}
	id := estover.NewID("chn")
	err = n.guard.Do(ctx, caller, guard.Op{Action: "channel.put"}, func(tx *guard.Tx) error {
		c, err = findName(ctx, tx.Tx, spec.Name, tx.ForUpdate())
		switch {
		case err == nil && c.Kind != spec.Kind:
			return ErrInvalid.With("The channel %s is of the kind %s for good. Retire it first, or choose another name.", spec.Name, c.Kind).At("kind")
		case err == nil:
			tx.Note("before", c.Spec)
			c.Spec, c.ChangedAt, c.FailingSince, c.Failure = spec, tx.Now(), time.Time{}, ""
			c.Epoch++
			err = update(ctx, tx.Tx, c)
		case estover.KindOf(err) == estover.NotFound:
			var have []Channel
			if have, err = live(ctx, tx.Tx); err != nil {
				return err
			}
			if len(have) >= maxChannels {
				return ErrTooMany
			}
			c = Channel{ID: id, Spec: spec, ManagedBy: managedBy, CreatedAt: tx.Now(), CreatedBy: caller.Subject, ChangedAt: tx.Now(), Epoch: 1}
			err = insert(ctx, tx.Tx, c)
		}
		if err != nil {
			return err
		}
		tx.SetTarget("channel:" + c.ID)
		tx.Note("channel", spec)
		tx.Touch(Kind, all)
		return nil
	})
	return c, err
}

// Retire ends a channel. What it had still to say is dropped.
func (n *Notify) Retire(ctx context.Context, caller estover.Caller, name string) error {
	return n.guard.Do(ctx, caller, guard.Op{Action: "channel.retire"}, func(tx *guard.Tx) error {
		c, err := findName(ctx, tx.Tx, name, tx.ForUpdate())
		if err != nil {
			return err
		}
		c.EndedAt, c.ChangedAt = tx.Now(), tx.Now()
		c.Epoch++
		tx.SetTarget("channel:" + c.ID)
		tx.Touch(Kind, all)
		if err := update(ctx, tx.Tx, c); err != nil {
			return err
		}
		dropped, err := dropAll(ctx, tx.Tx, c.ID)
		tx.Note("dropped", dropped)
		return err
	})
}

// ByName shows the channel with this name.
func (n *Notify) ByName(ctx context.Context, caller estover.Caller, name string) (c Channel, err error) {
	err = n.guard.Read(ctx, caller, guard.Op{Action: "channel.read"}, func(tx *db.Tx) error {
		if c, err = findName(ctx, tx, name, ""); err != nil {
			return err
		}
		c.Waiting, err = waiting(ctx, tx, c.ID)
		return err
	})
	return c, err
}

// List shows all channels by name.
func (n *Notify) List(ctx context.Context, caller estover.Caller) (list []Channel, err error) {
	err = n.guard.Read(ctx, caller, guard.Op{Action: "channel.list"}, func(tx *db.Tx) error {
		if list, err = live(ctx, tx); err != nil {
			return err
		}
		for i := range list {
			if list[i].Waiting, err = waiting(ctx, tx, list[i].ID); err != nil {
				return err
			}
		}
		return nil
	})
	return list, err
}
