// Package rabbitmq makes users of a RabbitMQ broker, by the interface of its
// management plugin.
//
// The broker is given a salted SHA-256 of a secret and never the secret. A user
// that is deleted is disconnected by the broker itself, and asked once more to
// be, for a log-in that raced the deletion. A user has no time at which the
// broker would refuse it by itself: [engine.Order.Until] means nothing here.
package rabbitmq

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"estover.dev"
	"estover.dev/internal/job"
	"estover.dev/internal/secret/engine"
)

// Kind is RabbitMQ.
var Kind = engine.Kind{
	Name:    "rabbitmq",
	Title:   "RabbitMQ",
	Address: "https://HOST[:PORT] of the management interface",
	MaxName: longest,
	Options: []engine.Field{
		{Name: "amqp", Help: "HOST[:PORT] where clients log in; the same host, if nothing is said, at port 5671 with TLS and 5672 without"},
		engine.TLSField,
	},
	Template:      template,
	Pair:          true,
	Beside:        beside,
	CheckTemplate: check,
	Open:          open,
}

const longest = 128

var template = []engine.Field{
	{Name: "vhosts", Help: "the virtual hosts that the users may enter: / if nothing is said", Many: true},
	{Name: "configure", Help: "what they may declare and delete there, a regular expression for names; nothing if it is missing"},
	{Name: "write", Help: "what they may publish to; nothing if it is missing"},
	{Name: "read", Help: "what they may consume from; nothing if it is missing"},
	{Name: "tags", Help: "management or monitoring, for who looks at the management interface", Many: true},
}

func check(t engine.Template) error {
	if err := engine.CheckKeys(t, template); err != nil {
		return err
	}
	for _, v := range t["vhosts"] {
		if v == "" || v == "." || v == ".." {
			return engine.ErrTemplate.With("%q is no virtual host.", v).At("vhosts")
		}
	}
	some := false
	for _, key := range []string{"configure", "write", "read"} {
		for _, e := range t[key] {
			if _, err := regexp.Compile(e); err != nil {
				return engine.ErrTemplate.With("%q is no regular expression.", e).At(key)
			}
			some = some || e != ""
		}
	}
	for _, tag := range t["tags"] {
		if tag != "management" && tag != "monitoring" {
			return engine.ErrTemplate.With("The tag %q is not given: users may have management and monitoring. Others let a user make users, who would outlive it.", tag).At("tags")
		}
	}
	if !some && len(t["tags"]) == 0 {
		return engine.ErrTemplate.With("The users could do nothing: say what they may configure, write or read.").At("read")
	}
	return nil
}

func open(c engine.Config) (engine.Engine, error) {
	client, base, err := c.HTTP()
	if err != nil {
		return nil, err
	}
	host, address, err := amqp(c, base)
	if err != nil {
		return nil, err
	}
	t := &target{client: client, base: base, config: c, host: address}
	if base.Scheme == "https" {
		c.Options = map[string]string{"tls": "verify"}
	}
	if t.encryption, err = c.TLS(host); err != nil {
		return nil, err
	}
	return t, nil
}

// amqp is where clients log in.
func amqp(c engine.Config, base *url.URL) (host, address string, err error) {
	port := 5672
	if base.Scheme == "https" {
		port = 5671
	}
	host = base.Hostname()
	if o := c.Options["amqp"]; o != "" {
		if host, port, err = engine.HostPort(o, port); err != nil {
			return "", "", engine.ErrConfig.With("The option amqp is HOST or HOST:PORT.").At("options.amqp")
		}
	}
	return host, net.JoinHostPort(host, strconv.Itoa(port)), nil
}

// beside is where clients log in, as [engine.Kind.Beside] gives it.
func beside(c engine.Config) ([]string, error) {
	_, base, err := c.HTTP()
	if err != nil {
		return nil, err
	}
	_, address, err := amqp(c, base)
	return []string{address}, err
}

type target struct {
	client     *http.Client
	base       *url.URL
	config     engine.Config
	host       string      // for AMQP
	encryption *tls.Config // of AMQP; nil for none
}

func (t *target) Close() error { t.client.CloseIdleConnections(); return nil }

// A user as the interface takes and gives it.
type user struct {
	Name      string `json:"name,omitempty"`
	Hash      string `json:"password_hash"`
	Algorithm string `json:"hashing_algorithm"`
	Tags      tags   `json:"tags"`
}

// tags are written with commas, and read as versions from 3.9 on give them too.
type tags string

func (t *tags) UnmarshalJSON(b []byte) error {
	var list []string
	if err := json.Unmarshal(b, &list); err == nil {
		*t = tags(strings.Join(list, ","))
		return nil
	}
	return json.Unmarshal(b, (*string)(t))
}

// hash is what the broker keeps of a password: four bytes of salt, and the
// SHA-256 of them and it.
func hash(s estover.Secret) string {
	salt := make([]byte, 4)
	_, _ = rand.Read(salt)
	sum := sha256.Sum256(append(slices.Clone(salt), s.Reveal()...))
	return base64.StdEncoding.EncodeToString(append(salt, sum[:]...))
}

const algorithm = "rabbit_password_hashing_sha256"

// do makes a call of the management interface: the parts of a path, each of
// which is escaped. What is not there is [engine.ErrNoUser]. What only asks is
// asked again where the broker failed.
func (t *target) do(ctx context.Context, method string, in, out any, path ...string) (date string, err error) {
	if method != http.MethodGet {
		return t.once(ctx, method, in, out, path...)
	}
	err = again(ctx, func() (err error) { date, err = t.once(ctx, method, in, out, path...); return err })
	return date, err
}

// once is do for whoever asks again by themselves, or must not.
func (t *target) once(ctx context.Context, method string, in, out any, path ...string) (date string, err error) {
	address := t.base.String() + "/api"
	for _, p := range path {
		if p == "" || p == "." || p == ".." {
			return "", engine.Refuse("%q cannot be a name", p)
		}
		address += "/" + url.PathEscape(p)
	}
	var body []byte
	if in != nil {
		if body, err = json.Marshal(in); err != nil {
			return "", err
		}
	}
	var sent atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { sent.Store(true) }})
	req, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(body))
	if err != nil {
		return "", engine.Refuse("the call cannot be made")
	}
	req.SetBasicAuth(t.config.Admin.User, string(t.config.Admin.Secret.Reveal()))
	req.Header.Set("Content-Type", "application/json")
	resp, err := t.client.Do(req)
	if err != nil {
		// What only asked has begun nothing.
		return "", engine.HTTPError(err, sent.Load() && method != http.MethodGet)
	}
	defer resp.Body.Close()
	said, err := engine.Body(resp)
	if err != nil {
		return "", err
	}
	date = resp.Header.Get("Date")
	var words struct {
		Error, Reason string
	}
	_ = json.Unmarshal(said, &words) // without, the status says it
	failed := &status{resp.StatusCode, cmp.Or(words.Reason, words.Error)}
	switch s := resp.StatusCode; {
	case s/100 == 2:
		if out != nil {
			if err := json.Unmarshal(said, out); err != nil {
				return "", fmt.Errorf("an answer of the management interface: %w", err)
			}
		}
		return date, nil
	case s == http.StatusNotFound:
		return date, engine.ErrNoUser
	case s == http.StatusUnauthorized, s == http.StatusForbidden, s == http.StatusServiceUnavailable && method == http.MethodGet, s == http.StatusTooManyRequests:
		return date, engine.Unreachable(failed)
	case s >= 500:
		return date, failed
	default:
		return date, &refusal{engine.Refuse("%s", failed), failed}
	}
}

func (t *target) Create(ctx context.Context, o engine.Order) (engine.Material, error) {
	if err := engine.CheckName(o.Name, longest); err != nil {
		return nil, err
	}
	if o.Name == t.config.Admin.User {
		return nil, engine.Refuse("the user %q is not one that may be made", o.Name)
	}
	vhosts := o.Template["vhosts"]
	if len(vhosts) == 0 {
		vhosts = []string{"/"}
	}
	begun := false
	err := again(ctx, func() error { return t.create(ctx, o, vhosts, &begun) })
	if begun {
		err = engine.Begun(err)
	}
	if err != nil {
		return nil, err
	}
	return engine.Material{
		"username": estover.NewSecret([]byte(o.Name)), "password": o.Secret,
	}, nil
}

// create makes the user and gives it its permissions, which are calls of their
// own. It notes when there may be a user.
func (t *target) create(ctx context.Context, o engine.Order, vhosts []string, begun *bool) error {
	// What an earlier order gave, and this one does not, goes.
	var has []struct{ Vhost string }
	if _, err := t.do(ctx, http.MethodGet, nil, &has, "users", o.Name, "permissions"); err != nil && !errors.Is(err, engine.ErrNoUser) {
		return err
	}
	u := user{Hash: hash(o.Secret), Algorithm: algorithm, Tags: tags(strings.Join(o.Template["tags"], ","))}
	_, err := t.do(ctx, http.MethodPut, u, nil, "users", o.Name)
	*begun = *begun || !errors.Is(err, engine.ErrUnreachable)
	if err != nil {
		return err
	}
	for _, h := range has {
		if slices.Contains(vhosts, h.Vhost) {
			continue
		}
		if _, err := t.do(ctx, http.MethodDelete, nil, nil, "permissions", h.Vhost, o.Name); err != nil && !errors.Is(err, engine.ErrNoUser) {
			return err
		}
	}
	for _, v := range vhosts {
		may := map[string]string{}
		for _, key := range []string{"configure", "write", "read"} {
			may[key] = strings.Join(o.Template[key], "")
		}
		_, err := t.do(ctx, http.MethodPut, may, nil, "permissions", v, o.Name)
		if err == nil {
			continue
		}
		// The broker does not say whether it lacks the user or the virtual host.
		if _, missing := t.do(ctx, http.MethodGet, nil, nil, "vhosts", v); errors.Is(missing, engine.ErrNoUser) {
			return engine.Refuse("there is no virtual host %q", v)
		}
		return err
	}
	return nil
}

// again repeats what the broker could not do because somebody else was at work
// on the same user: it has no transactions, and answers that there is no such
// user, that the request is bad, or that it failed. To list users or connections
// fails where one of them goes meanwhile.
func again(ctx context.Context, do func() error) (err error) {
	for i := range 8 {
		var torn *status
		if err = do(); !errors.As(err, &torn) || torn.code != http.StatusBadRequest && torn.code != http.StatusInternalServerError {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(time.Duration(i+1) * 10 * time.Millisecond):
		}
	}
	return err
}

// A status is the broker's answer, which is wrapped where it is a refusal.
type status struct {
	code  int
	words string
}

func (s *status) Error() string {
	return fmt.Sprintf("%d %s: %s", s.code, http.StatusText(s.code), s.words)
}

// A refusal is an answer that says no.
type refusal struct {
	error
	status *status
}

func (r *refusal) Unwrap() []error { return []error{r.error, r.status} }

func (t *target) Extend(ctx context.Context, name string, _ engine.Template, _ time.Time) error {
	_, err := t.do(ctx, http.MethodGet, nil, nil, "users", name)
	return err
}

// Revoke deletes each user and then ends its connections: the deletion does so
// too, but not for one that was logging in meanwhile.
func (t *target) Revoke(ctx context.Context, users []engine.Doomed) []error {
	errs := make([]error, len(users))
	var wg sync.WaitGroup
	places := make(chan struct{}, 4)
	for i, u := range users {
		wg.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			errs[i] = job.Guarded(func() error { return t.revoke(ctx, u.Name) })
		})
	}
	wg.Wait()
	return errs
}

func (t *target) revoke(ctx context.Context, name string) error {
	if engine.CheckName(name, longest) != nil {
		return nil
	}
	err := again(ctx, func() error { _, err := t.do(ctx, http.MethodDelete, nil, nil, "users", name); return err })
	if err == nil || errors.Is(err, engine.ErrNoUser) {
		err = t.EndSessions(ctx, name)
	}
	var refused *engine.Refused
	if err != nil && !errors.As(err, &refused) {
		err = engine.Unreachable(err)
	}
	return err
}

func (t *target) List(ctx context.Context, prefix string) (names []string, err error) {
	var users []user
	if _, err := t.do(ctx, http.MethodGet, nil, &users, "users"); err != nil {
		return nil, err
	}
	for _, u := range users {
		if strings.HasPrefix(u.Name, prefix) {
			names = append(names, u.Name)
		}
	}
	return names, nil
}

func (t *target) SetSecret(ctx context.Context, name string, s, keep estover.Secret) error {
	if !keep.Empty() {
		return fmt.Errorf("%w: a user has one password", engine.ErrUnsupported)
	}
	if bytes.ContainsRune(s.Reveal(), 0) {
		return engine.Refuse("a password with a zero byte cannot be sent to log in")
	}
	var u user
	if _, err := t.do(ctx, http.MethodGet, nil, &u, "users", name); err != nil {
		return err
	}
	if u.Tags.has(unfinished) {
		return engine.ErrNoUser
	}
	u = user{Hash: hash(s), Algorithm: algorithm, Tags: u.Tags}
	return again(ctx, func() error { _, err := t.do(ctx, http.MethodPut, u, nil, "users", name); return err })
}

// Verify logs in over AMQP; administrators log in at the management interface, and
// their secrets go nowhere else.
func (t *target) Verify(ctx context.Context, c engine.Credential) error {
	if c.User == "" || c.Secret.Empty() {
		return engine.ErrWrongSecret
	}
	administrates, err := t.administrates(ctx, c.User)
	if err != nil {
		return err
	}
	if administrates {
		own := *t
		own.config.Admin = c
		var refused *status
		_, err := own.do(ctx, http.MethodGet, nil, nil, "whoami")
		if errors.As(err, &refused) && refused.code == http.StatusUnauthorized {
			return engine.ErrWrongSecret
		}
		return err
	}
	conn, err := t.config.Connect(ctx, "tcp", t.host)
	if err != nil {
		return engine.Unreachable(err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if t.encryption != nil {
		conn = tls.Client(conn, t.encryption)
	}
	err = login(conn, c)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, engine.ErrWrongSecret):
		return engine.ErrWrongSecret
	}
	return engine.Unreachable(cmp.Or(ctx.Err(), err))
}

// A connection as the interface gives it.
type connection struct {
	Name  string `json:"name"`
	User  string `json:"user"`
	Host  string `json:"peer_host"`
	Port  int    `json:"peer_port"`
	Since int64  `json:"connected_at"` // in milliseconds
}

func (t *target) connections(ctx context.Context, name string) (all []connection, err error) {
	_, err = t.do(ctx, http.MethodGet, nil, &all, "connections", "username", name)
	if errors.Is(err, engine.ErrNoUser) {
		err = nil
	}
	return all, err
}

func (t *target) Sessions(ctx context.Context, name string) ([]engine.Session, error) {
	all, err := t.connections(ctx, name)
	if err != nil {
		return nil, err
	}
	sessions := make([]engine.Session, len(all))
	for i, c := range all {
		sessions[i] = engine.Session{ID: c.Name, From: net.JoinHostPort(c.Host, fmt.Sprint(c.Port))}
		if c.Since > 0 {
			sessions[i].Since = time.UnixMilli(c.Since)
		}
	}
	return sessions, nil
}

func (t *target) EndSessions(ctx context.Context, name string) error {
	// A connection that closes by itself meanwhile fails the call.
	err := again(ctx, func() error {
		_, err := t.do(ctx, http.MethodDelete, nil, nil, "connections", "username", name)
		return err
	})
	var refused *engine.Refused
	switch {
	case err == nil, errors.Is(err, engine.ErrNoUser):
		return nil
	case errors.As(err, &refused):
		return err
	}
	return engine.Unreachable(err) // and whatever was begun can be done again
}

func (t *target) Now(ctx context.Context) (time.Time, error) {
	date, err := t.do(ctx, http.MethodGet, nil, nil, "whoami")
	if err != nil {
		return time.Time{}, err
	}
	now, err := http.ParseTime(date)
	if err != nil {
		return time.Time{}, fmt.Errorf("%w: its answers have no date", engine.ErrUnsupported)
	}
	return now, nil
}
