// Package nats makes users of an account of a NATS server that trusts an
// operator and whose resolver takes accounts over the network (type full).
//
// A user is no more than a JWT that the account's key signs: its rights and its
// end stand in it, and the server has never heard of it before. So a creation
// tells nobody; it only looks whether the account is there. A revocation adds
// the user's public key to the list in the account's own JWT, which the
// operator's key signs again and the system account pushes to the resolver. The
// servers then end the user's connections and refuse its JWT.
//
// # Keys
//
// A user's key comes of the account's key and the user's name, so that one who
// knows the name can revoke a user whose creation was cut off. The admin's secret
// holds the seeds, one a line:
//
//	operator SO…   signs the account: the operator's, or one of its signing keys
//	account SA…    signs users: the account's, or one of its signing keys
//	system SA…     the same of the system account
//
// When the account's key changes, the old one stays in a further line of its own
// until its users are gone: users are made with the first and revoked with all.
//
// # Two who write at once
//
// The list of revocations is one document, and the resolver takes what is pushed
// last: of two who add to it at the same moment, one's revocation is lost. What
// was added is looked at again a second later, and some more times, and added
// again if it has gone. The connections are closed in any case, and a user's JWT
// has an end of its own.
package nats

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"estover.dev"
	"estover.dev/internal/secret/engine"
)

// Kind is NATS.
var Kind = engine.Kind{
	Name:    "nats",
	Title:   "NATS",
	Address: "HOST[:PORT]",
	Port:    "4222",
	MaxName: longest,
	Options: []engine.Field{
		{Name: "account", Help: "the public key (A…) of the account whose users are made", Required: true},
		{Name: "system_account", Help: "the public key (A…) of the system account, if the admin's secret holds a signing key of it"},
		{Name: "prune", Help: "after how long a revocation is dropped from the account, as 720h: only where no user of it lives longer; never, if nothing is said"},
		engine.TLSField,
	},
	Template:      template,
	Plain:         true,
	CheckTemplate: check,
	Open:          open,
}

const (
	longest = 64
	// ahead is how far a revocation reaches into the future, since clocks differ.
	ahead = 5 * time.Minute
	// What was revoked is looked at again after each again, for so long.
	again, watched = time.Second, 6 * time.Second
)

var template = []engine.Field{
	{Name: "publish", Help: "the subjects that users may publish to, as orders.>; none if it is missing", Many: true},
	{Name: "publish_deny", Help: "those among them that they may not", Many: true},
	{Name: "subscribe", Help: "the subjects that they may subscribe to, with _INBOX.> for who makes requests; none if it is missing", Many: true},
	{Name: "subscribe_deny", Help: "those among them that they may not", Many: true},
	{Name: "responses", Help: "how many answers they may give to a message that they got, to its sender"},
	{Name: "scoped", Help: "yes if the account's signing key has a scope, which then says it all"},
}

func check(t engine.Template) error {
	if err := engine.CheckKeys(t, template); err != nil {
		return err
	}
	subjects := 0
	for _, key := range []string{"publish", "publish_deny", "subscribe", "subscribe_deny"} {
		for _, s := range t[key] {
			subjects++
			if s == "" || strings.ContainsAny(s, " \t\r\n") || strings.HasPrefix(s, ".") || strings.HasSuffix(s, ".") || strings.Contains(s, "..") {
				return engine.ErrTemplate.With("%q is no subject.", s).At(key)
			}
		}
	}
	for _, n := range t["responses"] {
		subjects++
		if i, err := strconv.Atoi(n); err != nil || i < 1 {
			return engine.ErrTemplate.With("The number of responses is at least 1.").At("responses")
		}
	}
	switch scoped := len(t["scoped"]) > 0; {
	case scoped && t["scoped"][0] != "yes":
		return engine.ErrTemplate.With("The key scoped is yes, or is not there.").At("scoped")
	case scoped && subjects > 0:
		return engine.ErrTemplate.With("With a scope of the signing key, a role has no subjects of its own.").At("scoped")
	case !scoped && len(t["publish"]) == 0 && len(t["subscribe"]) == 0:
		return engine.ErrTemplate.With("The users could do nothing: say what they may publish or subscribe to.").At("publish")
	}
	return nil
}

func open(c engine.Config) (engine.Engine, error) {
	host, port, err := engine.HostPort(c.Address, 4222)
	if err != nil {
		return nil, err
	}
	t := &target{config: c, address: net.JoinHostPort(host, strconv.Itoa(port)), account: c.Options["account"], revoked: map[string]time.Time{}}
	if t.encryption, err = c.TLS(host); err != nil {
		return nil, err
	}
	for _, option := range []string{"account", "system_account"} {
		if key := c.Options[option]; (key != "" || option == "account") && !nkeys.IsValidPublicAccountKey(key) {
			return nil, engine.ErrConfig.With("The option %s is the public key of an account, which begins with A.", option).At("options." + option)
		}
	}
	if p := c.Options["prune"]; p != "" {
		if t.prune, err = time.ParseDuration(p); err != nil || t.prune < time.Hour {
			return nil, engine.ErrConfig.With("The option prune is a time of at least 1h, such as 720h.").At("options.prune")
		}
	}
	return t, nil
}

type target struct {
	config     engine.Config
	address    string
	encryption *tls.Config
	account    string
	prune      time.Duration // zero for never

	// writing is held by whoever changes the account, so that two of one process do
	// not undo each other's.
	writing sync.Mutex

	mu      sync.Mutex
	revoked map[string]time.Time // public keys, and since when they are watched
	timer   *time.Timer
	closed  bool
}

func (t *target) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed = true; t.timer != nil {
		t.timer.Stop()
	}
	return nil
}

// The keys that the admin's secret holds.
type keys struct {
	operator, system nkeys.KeyPair
	accounts         []nkeys.KeyPair
}

func (t *target) keys() (k keys, err error) {
	for line := range strings.Lines(string(t.config.Admin.Secret.Reveal())) {
		what, seed, _ := strings.Cut(strings.TrimSpace(line), " ")
		if what == "" {
			continue
		}
		pair, err := nkeys.FromSeed([]byte(strings.TrimSpace(seed)))
		if err != nil {
			return k, engine.Unreachable(errors.New("a line of the admin's secret is no seed"))
		}
		switch what {
		case "operator":
			k.operator = pair
		case "account":
			k.accounts = append(k.accounts, pair)
		case "system":
			k.system = pair
		}
	}
	if k.operator == nil || k.system == nil || len(k.accounts) == 0 {
		return k, engine.Unreachable(errors.New("the admin's secret is to have lines that begin with operator, account and system"))
	}
	return k, nil
}

// derive gives the key of a user.
func derive(account nkeys.KeyPair, name string) (nkeys.KeyPair, error) {
	seed, err := account.Seed()
	if err != nil {
		return nil, err
	}
	mac := hmac.New(sha256.New, seed)
	mac.Write([]byte("estover: the key of a user\x00" + name))
	return nkeys.FromRawSeed(nkeys.PrefixByteUser, mac.Sum(nil))
}

// A dialer opens the connection that ends with ctx, since the library has no
// context for that.
type dialer struct {
	ctx context.Context
	t   *target
}

func (d dialer) Dial(network, address string) (net.Conn, error) {
	conn, err := d.t.config.ConnectOnce(d.ctx, network, address)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(d.ctx, func() { _ = conn.Close() })
	var encryption *tls.Config
	if d.t.encryption != nil {
		encryption = d.t.encryption.Clone()
	}
	return newWire(conn, encryption), nil
}

// SkipTLSHandshake says that the connection does what TLS there is.
func (dialer) SkipTLSHandshake() bool { return true }

// connect logs in with a user's JWT. The connection ends with ctx.
func (t *target) connect(ctx context.Context, token string, key nkeys.KeyPair) (*nats.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, engine.Unreachable(err)
	}
	wait := 30 * time.Second
	if deadline, has := ctx.Deadline(); has {
		wait = max(time.Millisecond, min(wait, time.Until(deadline)))
	}
	options := []nats.Option{
		nats.UserJWT(func() (string, error) { return token, nil }, key.Sign),
		nats.SetCustomDialer(dialer{ctx, t}), nats.Timeout(wait), nats.NoReconnect(), nats.SkipHostLookup(), nats.IgnoreDiscoveredServers(),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}), nats.Name("estover"),
	}
	conn, err := nats.Connect("nats://"+t.address, options...)
	switch {
	case err == nil:
		return conn, nil
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAuthRevoked):
		err = fmt.Errorf("%w: %w", engine.ErrWrongSecret, err)
	}
	return nil, engine.Unreachable(err)
}

// with runs do over a connection of the system account.
func (t *target) with(ctx context.Context, do func(*nats.Conn, keys) error) error {
	k, err := t.keys()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	own, err := nkeys.CreateUser()
	if err != nil {
		return err
	}
	public, err := own.PublicKey()
	if err != nil {
		return err
	}
	claims := jwt.NewUserClaims(public)
	claims.Name, claims.Expires = "estover", time.Now().Add(2*time.Minute).Unix()
	claims.IssuerAccount = t.config.Options["system_account"]
	if signer, _ := k.system.PublicKey(); signer == claims.IssuerAccount {
		claims.IssuerAccount = ""
	}
	token, err := claims.Encode(k.system)
	if err != nil {
		return engine.Unreachable(err)
	}
	conn, err := t.connect(ctx, token, own)
	if err != nil {
		return err
	}
	defer conn.Close()
	return do(conn, k)
}

// look gives the account as the resolver has it.
func (t *target) look(ctx context.Context, conn *nats.Conn) (*jwt.AccountClaims, error) {
	answer, err := conn.RequestWithContext(ctx, "$SYS.REQ.ACCOUNT."+t.account+".CLAIMS.LOOKUP", nil)
	if err != nil {
		return nil, engine.Unreachable(fmt.Errorf("looking up the account: %w", err))
	}
	claims, err := jwt.DecodeAccountClaims(string(answer.Data))
	if err != nil || claims.Subject != t.account {
		return nil, engine.Unreachable(errors.New("the resolver does not have the account"))
	}
	return claims, nil
}

// push has the resolver take the account as it is now.
func (t *target) push(ctx context.Context, conn *nats.Conn, k keys, claims *jwt.AccountClaims) error {
	if t.prune > 0 {
		for key, at := range claims.Revocations {
			if key != jwt.All && time.Since(time.Unix(at, 0)) > t.prune {
				delete(claims.Revocations, key)
			}
		}
	}
	token, err := claims.Encode(k.operator)
	if err != nil {
		return engine.Refuse("the account cannot be signed: %v", err)
	}
	answer, err := conn.RequestWithContext(ctx, "$SYS.REQ.CLAIMS.UPDATE", []byte(token))
	if err != nil {
		return fmt.Errorf("pushing the account: %w", err)
	}
	var said struct {
		Data  struct{ Code int }
		Error struct {
			Code        int
			Description string
		}
	}
	if err := json.Unmarshal(answer.Data, &said); err != nil || said.Data.Code != 200 {
		return engine.Refuse("the resolver does not take the account: %s", cmp.Or(said.Error.Description, "it says nothing that is understood"))
	}
	return nil
}

func (t *target) Create(ctx context.Context, o engine.Order) (m engine.Material, err error) {
	if err := engine.CheckName(o.Name, longest); err != nil {
		return nil, err
	}
	if o.Until.IsZero() {
		return nil, engine.Refuse("a user needs an end, since nobody but its JWT knows of it")
	}
	err = t.with(ctx, func(conn *nats.Conn, k keys) error {
		key, err := derive(k.accounts[0], o.Name)
		if err != nil {
			return err
		}
		if err := t.clear(ctx, conn, k, key); err != nil {
			return err
		}
		m, err = t.issue(k.accounts[0], key, o)
		return err
	})
	return m, err
}

// clear takes a revocation back, of a user that is made again.
func (t *target) clear(ctx context.Context, conn *nats.Conn, k keys, key nkeys.KeyPair) error {
	public, err := key.PublicKey()
	if err != nil {
		return err
	}
	t.writing.Lock()
	defer t.writing.Unlock()
	claims, err := t.look(ctx, conn)
	if err != nil {
		return err
	}
	if _, was := claims.Revocations[public]; !was {
		return nil
	}
	t.mu.Lock()
	delete(t.revoked, public)
	t.mu.Unlock()
	claims.ClearRevocation(public)
	return t.push(ctx, conn, k, claims)
}

// issue signs a user's JWT.
func (t *target) issue(account, key nkeys.KeyPair, o engine.Order) (engine.Material, error) {
	public, err := key.PublicKey()
	if err != nil {
		return nil, err
	}
	claims := jwt.NewUserClaims(public)
	claims.Name, claims.Expires = o.Name, o.Until.Unix()
	if signer, err := account.PublicKey(); err != nil {
		return nil, err
	} else if signer != t.account {
		claims.IssuerAccount = t.account
	}
	if len(o.Template["scoped"]) > 0 {
		claims.SetScoped(true)
	} else {
		claims.Pub = permission(o.Template["publish"], o.Template["publish_deny"])
		claims.Sub = permission(o.Template["subscribe"], o.Template["subscribe_deny"])
		for _, n := range o.Template["responses"] {
			most, err := strconv.Atoi(n)
			if err != nil {
				return nil, engine.Refuse("the number of responses is none")
			}
			claims.Resp = &jwt.ResponsePermission{MaxMsgs: most, Expires: 5 * time.Minute}
		}
	}
	problems := jwt.CreateValidationResults()
	claims.Validate(problems)
	for _, p := range problems.Issues {
		if p.Blocking {
			return nil, engine.Refuse("the user cannot be: %s", p.Description)
		}
	}
	token, err := claims.Encode(account)
	if err != nil {
		return nil, engine.Refuse("the user cannot be signed: %v", err)
	}
	seed, err := key.Seed()
	if err != nil {
		return nil, err
	}
	creds, err := jwt.FormatUserConfig(token, seed)
	if err != nil {
		return nil, err
	}
	return engine.Material{
		"username": estover.NewSecret([]byte(o.Name)), "jwt": estover.NewSecret([]byte(token)),
		"seed": estover.NewSecret(seed), "creds": estover.NewSecret(creds),
	}, nil
}

// permission allows what is listed, and nothing if nothing is: to NATS that
// would be everything.
func permission(allow, deny []string) jwt.Permission {
	if len(allow) == 0 {
		return jwt.Permission{Deny: jwt.StringList{">"}}
	}
	return jwt.Permission{Allow: slices.Clone(allow), Deny: slices.Clone(deny)}
}

func (t *target) Extend(context.Context, string, engine.Template, time.Time) error {
	return fmt.Errorf("%w: the end of a user stands in its JWT", engine.ErrUnsupported)
}

// Revoke adds all users at once.
func (t *target) Revoke(ctx context.Context, users []engine.Doomed) []error {
	errs := make([]error, len(users))
	err := t.with(ctx, func(conn *nats.Conn, k keys) error {
		var doomed []string
		for i, u := range users {
			if engine.CheckName(u.Name, longest) != nil {
				continue
			}
			for _, account := range k.accounts {
				key, err := derive(account, u.Name)
				if err != nil {
					errs[i] = err
					continue
				}
				public, err := key.PublicKey()
				if err != nil {
					errs[i] = err
					continue
				}
				doomed = append(doomed, public)
			}
		}
		return t.add(ctx, conn, k, doomed)
	})
	if err != nil {
		for i := range errs {
			errs[i] = engine.Unreachable(err)
		}
	}
	return errs
}

// add revokes what is not revoked yet, and watches it for a while.
func (t *target) add(ctx context.Context, conn *nats.Conn, k keys, doomed []string) error {
	t.writing.Lock()
	defer t.writing.Unlock()
	claims, err := t.look(ctx, conn)
	if err != nil {
		return err
	}
	now := time.Now()
	var more []string
	for _, public := range doomed {
		if at, is := claims.Revocations[public]; !is || at < now.Unix() {
			more = append(more, public)
		}
	}
	if len(more) == 0 {
		return nil
	}
	for _, public := range more {
		claims.RevokeAt(public, now.Add(ahead))
	}
	if err := t.push(ctx, conn, k, claims); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, public := range more {
		t.revoked[public] = now
	}
	t.later()
	return nil
}

// later has what was revoked looked at again. The caller holds mu.
func (t *target) later() {
	if len(t.revoked) == 0 || t.closed {
		return
	}
	if t.timer == nil {
		t.timer = time.AfterFunc(again, t.recheck)
	} else {
		t.timer.Reset(again)
	}
}

// recheck revokes again what somebody else's push has taken out.
func (t *target) recheck() {
	t.mu.Lock()
	var watch []string
	for public, since := range t.revoked {
		watch = append(watch, public)
		if time.Since(since) > watched {
			delete(t.revoked, public)
		}
	}
	closed := t.closed
	t.mu.Unlock()
	if closed || len(watch) == 0 {
		return
	}
	err := t.with(context.Background(), func(conn *nats.Conn, k keys) error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		return t.add(ctx, conn, k, watch)
	})
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil { // once more, since it is not known
		for _, public := range watch {
			if _, is := t.revoked[public]; !is {
				t.revoked[public] = time.Now().Add(again - watched)
			}
		}
	}
	t.later()
}

func (t *target) List(context.Context, string) ([]string, error) {
	return nil, fmt.Errorf("%w: nobody keeps a list of users", engine.ErrUnsupported)
}

func (t *target) SetSecret(context.Context, string, estover.Secret, estover.Secret) error {
	return fmt.Errorf("%w: a user's key is the user", engine.ErrUnsupported)
}

// Verify takes a file of credentials, as [Kind] hands it out.
func (t *target) Verify(ctx context.Context, c engine.Credential) error {
	token, err := jwt.ParseDecoratedJWT(c.Secret.Reveal())
	if err != nil {
		return engine.ErrWrongSecret
	}
	key, err := jwt.ParseDecoratedUserNKey(c.Secret.Reveal())
	if err != nil {
		return engine.ErrWrongSecret
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	conn, err := t.connect(ctx, token, key)
	if err != nil {
		if errors.Is(err, engine.ErrWrongSecret) {
			err = engine.ErrWrongSecret
		}
		return err
	}
	conn.Close()
	return nil
}

// Sessions asks all servers, and waits a little for the last to answer, since
// nobody says how many there are.
func (t *target) Sessions(ctx context.Context, user string) (sessions []engine.Session, err error) {
	err = t.with(ctx, func(conn *nats.Conn, k keys) error {
		its := map[string]bool{}
		for _, account := range k.accounts {
			key, err := derive(account, user)
			if err != nil {
				return err
			}
			public, err := key.PublicKey()
			if err != nil {
				return err
			}
			its[public] = true
		}
		inbox := nats.NewInbox()
		answers, err := conn.SubscribeSync(inbox)
		if err != nil {
			return engine.Unreachable(err)
		}
		question, err := json.Marshal(map[string]any{"auth": true, "acc": t.account, "limit": 65536})
		if err != nil {
			return err
		}
		if err := conn.PublishRequest("$SYS.REQ.SERVER.PING.CONNZ", inbox, question); err != nil {
			return engine.Unreachable(err)
		}
		for n := 0; ; n++ {
			wait := 5 * time.Second
			if n > 0 {
				wait = 250 * time.Millisecond
			}
			next, cancel := context.WithTimeout(ctx, wait)
			answer, err := answers.NextMsgWithContext(next)
			cancel()
			if err != nil && n > 0 && ctx.Err() == nil {
				return nil
			}
			if err != nil {
				return engine.Unreachable(err)
			}
			var said struct {
				Data struct {
					Server      string `json:"server_id"`
					Connections []struct {
						ID    uint64    `json:"cid"`
						IP    string    `json:"ip"`
						Port  int       `json:"port"`
						Start time.Time `json:"start"`
						User  string    `json:"authorized_user"`
					} `json:"connections"`
				} `json:"data"`
			}
			if err := json.Unmarshal(answer.Data, &said); err != nil {
				return fmt.Errorf("an answer of a server: %w", err)
			}
			for _, c := range said.Data.Connections {
				if its[c.User] {
					sessions = append(sessions, engine.Session{
						ID: fmt.Sprintf("%s/%d", said.Data.Server, c.ID), From: net.JoinHostPort(c.IP, strconv.Itoa(c.Port)), Since: c.Start,
					})
				}
			}
		}
	})
	return sessions, err
}

func (t *target) EndSessions(context.Context, string) error {
	return fmt.Errorf("%w: connections end by a revocation alone", engine.ErrUnsupported)
}

func (t *target) Now(context.Context) (time.Time, error) {
	return time.Time{}, engine.ErrUnsupported
}
