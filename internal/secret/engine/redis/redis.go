// Package redis makes users of a Redis or Valkey server, from version 7 on, by
// its access control lists.
//
// The server is given the SHA-256 of a secret and never the secret. A user that
// is deleted is disconnected by the server itself, blocked and subscribed
// clients too, so nothing outlives a revocation. A user has no time at which the
// server would refuse it by itself: [engine.Order.Until] means nothing here.
//
// Users are the server's own. A replica and another node of a cluster do not
// hear of them, and a server that keeps no ACL file forgets them when it
// restarts; if it keeps one, they are saved there after each change.
package redis

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/redis/go-redis/v9/maintnotifications"

	"estover.dev"
	"estover.dev/internal/secret/engine"
)

// The client would write lines of its own to the standard error of the process,
// about what its callers are told anyhow.
var _ = func() struct{} { logging.Disable(); return struct{}{} }()

// Kind is Redis.
var Kind = engine.Kind{
	Name:    "redis",
	Title:   "Redis, Valkey",
	Address: "HOST[:PORT]",
	Port:    "6379",
	MaxName: longest,

	Options:  []engine.Field{engine.TLSField},
	Template: template,

	Overlap:       true,
	Pair:          true,
	CheckTemplate: check,
	Open:          open,
}

const longest = 128

var template = []engine.Field{
	{Name: "rules", Help: "what the users may do, as ACL SETUSER takes it: ~app:* &app:* +@read +set", Required: true, Many: true},
}

// kept are commands that no user is given, whatever its rules say: they make
// users and passwords, which would outlive the user.
var kept = []string{"-acl|setuser", "-acl|deluser", "-acl|load", "-acl|save", "-config|set", "-config|rewrite"}

// words are the rules that consist of a word.
var words = []string{"allkeys", "resetkeys", "allchannels", "resetchannels", "allcommands", "nocommands", "clearselectors", "sanitize-payload"}

func check(t engine.Template) error {
	if err := engine.CheckKeys(t, template); err != nil {
		return err
	}
	rules := split(t)
	if len(rules) == 0 {
		return engine.ErrTemplate.With("A role at a Redis needs rules, such as ~app:* +@read.").At("rules")
	}
	selector := false
	for _, r := range rules {
		rule, begins := strings.CutPrefix(r, "(")
		rule, ends := strings.CutSuffix(rule, ")")
		if begins && selector || ends && !selector && !begins {
			return engine.ErrTemplate.With("The brackets around a selector do not match at %q.", r).At("rules")
		}
		selector = selector || begins
		switch lower := strings.ToLower(rule); {
		case rule == "" && (begins || ends):
		case rule == "" || !strings.ContainsRune("~%&+-", rune(rule[0])) && !slices.Contains(words, lower):
			return engine.ErrTemplate.With("%q is no rule for keys (~), channels (&) or commands (+ and -). Passwords and states are set by Estover.", r).At("rules")
		case selector && makesUsers(lower):
			return engine.ErrTemplate.With("%q in a selector would let the user make other users. Put it before the selectors, where such commands are taken out.", r).At("rules")
		}
		selector = selector && !ends
	}
	if selector {
		return engine.ErrTemplate.With("A bracket around a selector is not closed.").At("rules")
	}
	return nil
}

// makesUsers reports whether a rule gives commands of [kept].
func makesUsers(rule string) bool {
	command, found := strings.CutPrefix(rule, "+")
	command, _, _ = strings.Cut(command, "|")
	return rule == "allcommands" || found && slices.Contains([]string{"@all", "@admin", "@dangerous", "@slow", "acl", "config"}, command)
}

// split gives the rules one by one; a value may be a line of them.
func split(t engine.Template) (rules []string) {
	for _, line := range t["rules"] {
		rules = append(rules, strings.Fields(line)...)
	}
	return rules
}

func open(c engine.Config) (engine.Engine, error) {
	host, port, err := engine.HostPort(c.Address, 6379)
	if err != nil {
		return nil, err
	}
	encryption, err := c.TLS(host)
	if err != nil {
		return nil, err
	}
	t := &target{admin: c.Admin.User, login: c.Admin, address: net.JoinHostPort(host, strconv.Itoa(port))}
	t.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := c.Connect(ctx, network, address)
		if err != nil {
			return nil, engine.Unreachable(err)
		}
		if encryption == nil {
			return newWire(conn), nil
		}
		secured := tls.Client(conn, encryption)
		if err := secured.HandshakeContext(ctx); err != nil {
			_ = conn.Close()
			return nil, engine.Unreachable(err)
		}
		return newWire(secured), nil
	}
	t.client = t.as(c.Admin, 4)
	return t, nil
}

type target struct {
	admin, address string
	login          engine.Credential // of the admin
	dial           func(ctx context.Context, network, address string) (net.Conn, error)
	client         *redis.Client

	mu      sync.Mutex
	busy    int  // pieces of work that use the client
	drained bool // nobody uses it from here on
}

// as gives a client that logs in with c, over at most so many connections.
func (t *target) as(c engine.Credential, connections int) *redis.Client {
	return redis.NewClient(&redis.Options{
		Addr: t.address, Dialer: t.dial, Username: c.User, Password: string(c.Secret.Reveal()),
		PoolSize: connections, PipelinePoolSize: -1, ConnMaxIdleTime: time.Minute,
		// Whoever calls repeats what failed, and knows until when.
		MaxRetries: -1, DialerRetries: 1, ContextTimeoutEnabled: true,
		DialTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second, WriteTimeout: 10 * time.Second,
		DisableIdentity: true, MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
}

func (t *target) Close() error {
	if err := t.client.Close(); !errors.Is(err, redis.ErrClosed) { // as it is once it was drained
		return err
	}
	return nil
}

// hash is how a rule gives a password.
func hash(s estover.Secret) string {
	sum := sha256.Sum256(s.Reveal())
	return "#" + hex.EncodeToString(sum[:])
}

func (t *target) Create(ctx context.Context, o engine.Order) (engine.Material, error) {
	if err := engine.CheckName(o.Name, longest); err != nil {
		return nil, err
	}
	if o.Name == "default" || o.Name == t.admin {
		return nil, engine.Refuse("the user %q is not one that may be made", o.Name)
	}
	rules := slices.Concat([]string{"reset", "on", hash(o.Secret)}, split(o.Template), kept)
	err := t.do(ctx, func(c *redis.Conn) error {
		if err := c.ACLSetUser(ctx, o.Name, rules...).Err(); err != nil {
			return err
		}
		return engine.Begun(classify(save(ctx, c)))
	})
	if err != nil {
		return nil, err
	}
	return engine.Material{"username": estover.NewSecret([]byte(o.Name)), "password": o.Secret}, nil
}

// do works over a connection that has just answered, so that what fails before
// has begun nothing.
func (t *target) do(ctx context.Context, work func(*redis.Conn) error) error {
	client, done := t.lend()
	defer done()
	c := client.Conn()
	defer c.Close()
	if err := c.Ping(ctx).Err(); err != nil && !begins(err, "NOPERM") {
		return engine.Unreachable(err)
	}
	return classify(work(c))
}

// set changes a user, in one step at the server.
func set(ctx context.Context, c *redis.Conn, user string, rules []string) error {
	if err := c.ACLSetUser(ctx, user, rules...).Err(); err != nil {
		return err
	}
	return save(ctx, c)
}

// save has the server write its ACL file, if it keeps one. If it cannot, what was
// changed is changed all the same, so that is no refusal.
func save(ctx context.Context, c *redis.Conn) error {
	err := c.Do(ctx, "acl", "save").Err()
	switch {
	case noFile(err):
		return nil
	case begins(err, "ERR"):
		return errors.New("the ACL file is not written: " + err.Error())
	}
	return err
}

// noFile reports whether a server answers ACL SAVE that it keeps no ACL file.
func noFile(err error) bool {
	return answered(err) && strings.Contains(err.Error(), "not configured to use an ACL file")
}

func (t *target) Extend(ctx context.Context, name string, _ engine.Template, _ time.Time) error {
	return t.do(ctx, func(c *redis.Conn) error { return find(ctx, c, name) })
}

// find reports whether a user is there.
func find(ctx context.Context, c *redis.Conn, user string) error {
	err := c.Do(ctx, "acl", "getuser", user).Err()
	if errors.Is(err, redis.Nil) {
		return engine.ErrNoUser
	}
	return err
}

// Revoke deletes twice. A server that was busy for a while takes up in one go
// what has arrived from several connections meanwhile, in any order: a user
// whose creation was given up after the first deletion had been sent could come
// after it, but not after the answer to it.
func (t *target) Revoke(ctx context.Context, users []engine.Doomed) []error {
	errs := make([]error, len(users))
	err := t.do(ctx, func(c *redis.Conn) error {
		for range 2 {
			commands, err := c.Pipelined(ctx, func(p redis.Pipeliner) error {
				for _, u := range users {
					p.ACLDelUser(ctx, u.Name)
				}
				return nil
			})
			if err != nil && !answered(err) {
				return err
			}
			for i, command := range commands {
				errs[i] = classify(command.Err())
			}
		}
		return save(ctx, c) // what is not saved comes back with the server
	})
	if err != nil {
		for i := range errs {
			errs[i] = errors.Join(errs[i], engine.Unreachable(err))
		}
	}
	return errs
}

func (t *target) List(ctx context.Context, prefix string) (users []string, err error) {
	err = t.do(ctx, func(c *redis.Conn) error { users, err = c.ACLUsers(ctx).Result(); return err })
	return slices.DeleteFunc(users, func(u string) bool { return !strings.HasPrefix(u, prefix) }), err
}

func (t *target) SetSecret(ctx context.Context, user string, s, keep estover.Secret) error {
	rules := []string{"resetpass", hash(s)}
	if !keep.Empty() { // and whatever else the user has
		rules = []string{hash(keep), hash(s)}
	}
	return t.do(ctx, func(c *redis.Conn) error {
		if err := find(ctx, c, user); err != nil {
			return err
		}
		return set(ctx, c, user, rules)
	})
}

func (t *target) Verify(ctx context.Context, c engine.Credential) error {
	if c.User == "" || c.Secret.Empty() {
		return engine.ErrWrongSecret // with an empty one, the client would not log in at all
	}
	client := t.as(c, 1)
	defer client.Close()
	err := client.Ping(ctx).Err()
	switch {
	case err == nil, begins(err, "NOPERM"): // logged in, and may not ping
		return nil
	case begins(err, "WRONGPASS"):
		return engine.ErrWrongSecret
	}
	return engine.Unreachable(err)
}

func (t *target) Sessions(ctx context.Context, user string) (sessions []engine.Session, err error) {
	var list string
	if err := t.do(ctx, func(c *redis.Conn) error { list, err = c.ClientList(ctx).Result(); return err }); err != nil {
		return nil, err
	}
	for line := range strings.Lines(list) {
		field := map[string]string{}
		for _, f := range strings.Fields(line) {
			name, value, _ := strings.Cut(f, "=")
			field[name] = value
		}
		if field["user"] != user {
			continue
		}
		s := engine.Session{ID: field["id"], From: field["addr"]}
		if age, err := strconv.Atoi(field["age"]); err == nil {
			s.Since = time.Now().Add(-time.Duration(age) * time.Second)
		}
		sessions = append(sessions, s)
	}
	return sessions, nil
}

func (t *target) EndSessions(ctx context.Context, user string) error {
	return t.do(ctx, func(c *redis.Conn) error {
		err := c.ClientKillByFilter(ctx, "user", user).Err()
		if answered(err) && strings.Contains(err.Error(), "No such user") {
			return nil
		}
		return err
	})
}

func (t *target) Now(ctx context.Context) (now time.Time, err error) {
	err = t.do(ctx, func(c *redis.Conn) error { now, err = c.Time(ctx).Result(); return err })
	return now, err
}

// Rights asks the server what it would let the admin do.
func (t *target) Rights(ctx context.Context, _ engine.Template) (rights []engine.Right, err error) {
	err = t.do(ctx, func(c *redis.Conn) error {
		rights, err = t.rights(ctx, c)
		return err
	})
	return rights, err
}

func (t *target) rights(ctx context.Context, c *redis.Conn) (rights []engine.Right, err error) {
	admin := cmp.Or(t.admin, "default")
	for _, r := range []struct {
		command, help string
		needed        bool
	}{
		{"acl setuser x", "make users", true},
		{"acl deluser x", "delete users and disconnect them", true},
		{"acl getuser x", "see whether a user is there before its password is changed", true},
		{"acl users", "find users that no lease knows", true},
		{"acl save", "write the ACL file, if there is one", true},
		{"client list", "see who is logged in, before an old password is retired", false},
		{"client kill user x", "end the sessions of a user that stays", false},
		{"time", "measure the server's clock", false},
	} {
		command := strings.Fields(r.command)
		name := strings.Join(command[:min(2, len(command))], "|")
		args := []any{"acl", "dryrun", admin}
		for _, word := range command {
			args = append(args, word)
		}
		answer, err := c.Do(ctx, args...).Text()
		if err != nil {
			return nil, err
		}
		rights = append(rights, engine.Right{
			Name: name, Has: answer == "OK", Needed: r.needed,
			Help: "to " + r.help + ": ACL SETUSER " + admin + " +" + name,
		})
	}
	return rights, nil
}

// answered reports whether the error is the server's answer.
func answered(err error) bool {
	var e redis.Error
	return errors.As(err, &e) && !errors.Is(err, redis.Nil)
}

// begins reports whether the server's answer is of one of these kinds.
func begins(err error, kinds ...string) bool {
	var e redis.Error
	if !errors.As(err, &e) {
		return false
	}
	kind, _, _ := strings.Cut(e.Error(), " ")
	return slices.Contains(kinds, kind)
}

// classify says in the words of the engine what an error means.
func classify(err error) error {
	switch {
	case err == nil:
		return nil
	case begins(err, "WRONGPASS", "NOAUTH", "NOPERM", "LOADING", "BUSY", "MASTERDOWN", "CLUSTERDOWN", "READONLY", "OOM", "MISCONF"), errors.Is(err, redis.ErrClosed),
		answered(err) && strings.Contains(err.Error(), "max number of clients"):
		return engine.Unreachable(err)
	case answered(err):
		return engine.Refuse("%s", strings.TrimPrefix(err.Error(), "ERR "))
	}
	return err
}
