// Package engine says what a kind of target must be able to do, so that
// credentials can be made there, be handed out for a while, and be gone
// afterwards. A target is a system with users of its own: a database, a broker,
// a directory. One package below this one knows one kind.
//
// # What every engine promises
//
// All methods are idempotent, and all of them work by a name that was chosen
// here before the target heard of it. So whoever crashed may do it again, two may
// do it at once, and one who only knows the name can undo what another began:
//
//   - [Engine.Create] of a user that is there already leaves the one that was
//     asked for, with the secret that was asked for.
//   - [Engine.Revoke] of a user that is not there has succeeded. It ends the
//     sessions that are open, if the target can do that at all ([Kind.Lingers]).
//   - [Engine.SetSecret] and [Engine.Extend] leave the same result however often
//     they run.
//
// An engine stores nothing and decides nothing. It is handed a connection's
// [Config], keeps at most a pool of connections, is safe for use by many at once,
// and honours the deadline of ctx, at the target too where that is possible: a
// statement that has not ended by then must not take effect later.
//
// # Errors
//
// An error says whether something may have happened, because that decides what
// follows ([Refused], [ErrUnreachable]). The target's own words may be the
// operator's alone: they hold no secret, and agents never see them.
package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"
	"unicode"

	"estover.dev"
)

// A Config is how a target is reached.
type Config struct {
	// Address is where the target is, as [Kind.Address] says, without credentials.
	Address string
	// Options are what [Kind.Options] lists.
	Options map[string]string
	// Authorities are certificates in PEM whose holders are trusted instead of
	// the system's; empty for the system's.
	Authorities []byte
	// Admin is as whom users are made. It may be empty for a kind that says so.
	Admin Credential
	// Dial opens every connection, and refuses what may not be reached from here.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// A Credential is what logs in at a target.
type Credential struct {
	User    string
	Secret  estover.Secret
	Session estover.Secret // the third part of those of AWS that end by themselves
}

// Template says what the users of a role may do at the target: for each key of
// [Kind.Template] its values, in order.
type Template map[string][]string

// A Field describes a key of a template or of a target's options.
type Field struct {
	Name     string
	Help     string // one line
	Required bool
	Many     bool // may have several values
}

// A Kind is one kind of target.
type Kind struct {
	Name    string // "postgres"
	Title   string // "PostgreSQL"
	Address string // how an address looks: "HOST[:PORT]/DATABASE"
	Port    string // of an address that names none and whose scheme does not say it; "" if an address always names one
	MaxName int    // the longest name of a user, in bytes

	Options  []Field
	Template []Field

	// Plain is set where the target makes the secret, or where a user is no login
	// with a password: then [Order.Secret] is empty, and what there is to hand out
	// is in the [Material] alone.
	Plain bool

	// Overlap is set where one user may have two secrets at once, so that rotation
	// needs no second user.
	Overlap bool

	// Pair is set where engines are a [Pairer]: then the password of the admin that a
	// target was registered with is changed as soon as the target is tried.
	Pair bool

	// Lingers says, in a sentence, what may go on after a revocation, because the
	// target cannot end it; empty if nothing does.
	Lingers string

	// Beside gives what engines of the kind connect to beside the address, as
	// host:port: where users log in, if that is another port. The admin's secret is
	// not sent there. It may be nil.
	Beside func(Config) ([]string, error)

	// Account gives one form to all names by which a user may be given at a target with
	// these options. Nil where there is one name, as it is written.
	Account func(options map[string]string, user string) string

	// CheckTemplate refuses a template that cannot work, with an error for who
	// wrote it. It does not ask the target.
	CheckTemplate func(Template) error

	// Warn gives what whoever writes the template should know of it, one sentence
	// each. It may be nil.
	Warn func(Template) []string

	// Open makes an engine for one target. It does not connect. It refuses an
	// address or options that cannot be with an error for who wrote them.
	Open func(Config) (Engine, error)
}

// An Order is a user to be made.
type Order struct {
	Name     string
	Secret   estover.Secret // generated here; see [Kind.Plain]
	Until    time.Time      // by the target's own clock, after which the target itself refuses the user; zero for no such time
	Template Template
}

// Material is what a user logs in with, by the names that clients know: always
// username, and password, key, certificate, credentials file and the like.
type Material map[string]estover.Secret

// A Doomed is a user to be revoked, with the template that it was made from.
type Doomed struct {
	Name     string
	Template Template
}

// A Session is somebody who is logged in.
type Session struct {
	ID    string    // by the target
	From  string    // the address of the client
	Since time.Time // zero if not known
}

// An Engine works at one target.
type Engine interface {
	// Create makes a user and gives what it logs in with.
	Create(ctx context.Context, o Order) (Material, error)

	// Extend has the target refuse the user, who was made from t, later than it was
	// told before.
	Extend(ctx context.Context, name string, t Template, until time.Time) error

	// Revoke ends users for good: no log-in, no session, then no user. It gives an
	// error or nil for each of them, in order: one that cannot be ended holds no
	// other. An error that is [ErrUnreachable] says that the target, and not the
	// user, is the reason.
	Revoke(ctx context.Context, users []Doomed) []error

	// List gives the names of all users that begin with prefix.
	List(ctx context.Context, prefix string) ([]string, error)

	// SetSecret makes s the one secret of a user that exists. ErrNoUser if it does
	// not. Where [Kind.Overlap] is set and keep is not empty, keep goes on working
	// beside it, and so does whatever else the user has.
	SetSecret(ctx context.Context, user string, s, keep estover.Secret) error

	// Verify logs in as an application does, and out. ErrWrongSecret if the target
	// refuses the credential.
	Verify(ctx context.Context, c Credential) error

	// Sessions gives who is logged in as user.
	Sessions(ctx context.Context, user string) ([]Session, error)

	// EndSessions ends those that are logged in as user, whose access goes on.
	EndSessions(ctx context.Context, user string) error

	// Now gives the target's clock, by which [Order.Until] counts.
	Now(ctx context.Context) (time.Time, error)

	// Close lets go of connections.
	Close() error
}

// An Inspector is an Engine that can say which of its rights the admin has at
// the target, so that a failed trial can name what is missing.
type Inspector interface {
	// Rights looks up what users of such a template take.
	Rights(ctx context.Context, t Template) ([]Right, error)
}

// A Right is something that the admin has to be allowed at the target.
type Right struct {
	Name   string // "make users (CREATEROLE)"
	Has    bool
	Needed bool   // nothing works without it; else what is lost is in Help
	Help   string // what it is for, and the statement that gives it
}

// ErrUnreachable is wrapped by errors of a target that cannot be reached, or
// cannot be worked at with the admin's credential: nothing was begun there.
var ErrUnreachable = errors.New("the target cannot be reached")

// ErrWrongSecret is wrapped by [Engine.Verify] if the target refuses the log-in.
var ErrWrongSecret = errors.New("the target refuses the credential")

// ErrNoUser is wrapped if a user is not there.
var ErrNoUser = errors.New("there is no such user at the target")

// ErrUnsupported is wrapped if the kind of target cannot do this at all.
var ErrUnsupported = errors.New("the target cannot do this")

// Refused is the error of a target that has answered, and refused. What was
// asked for has not happened. Any error that is neither this nor
// [ErrUnreachable] leaves it open.
type Refused struct {
	Reason string // the target's words, for operators: one line, no secret in it
}

func (e *Refused) Error() string { return "the target refuses: " + e.Reason }

// Refuse makes a [Refused], of one line and at most 500 bytes, whatever the
// target had to say.
func Refuse(format string, args ...any) error {
	words := strings.Join(strings.FieldsFunc(fmt.Sprintf(format, args...), unicode.IsControl), " ")
	if len(words) > 500 {
		words = strings.ToValidUTF8(words[:500], "")
	}
	return &Refused{words}
}

// schemes are the ports of addresses that are URLs.
var schemes = map[string]string{"http": "80", "https": "443", "ldap": "389", "ldaps": "636"}

// Host is host:port of an address of this kind: what an engine dials, and what
// must be among the destinations of the secret with which it logs in.
func (k Kind) Host(address string) (string, error) {
	bad := fmt.Errorf("the address of a target of the kind %s is %s, not %q", k.Name, k.Address, address)
	port := k.Port
	scheme, rest, is := strings.Cut(address, "://")
	if !is {
		scheme, rest = "tcp", address
	} else if p, known := schemes[scheme]; known {
		port = p
	}
	u, err := url.Parse(scheme + "://" + rest)
	if err != nil || u.User != nil || u.Hostname() == "" || strings.ContainsAny(u.Host, ", ") {
		return "", bad
	}
	if p := u.Port(); p != "" {
		port = p
	}
	if port == "" {
		return "", fmt.Errorf("the address %q names no port", address)
	}
	return net.JoinHostPort(strings.ToLower(u.Hostname()), port), nil
}
