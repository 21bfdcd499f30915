package rabbitmq

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"estover.dev"
	"estover.dev/internal/secret/engine"
)

// rights are what a user may do, as the interface gives and takes them.
type rights struct {
	tags   tags
	limits limits
	vhosts []permission
	topics []topic
}

type permission struct {
	User      string `json:"user,omitempty"`
	Vhost     string `json:"vhost"`
	Configure string `json:"configure"`
	Write     string `json:"write"`
	Read      string `json:"read"`
}

type topic struct {
	User     string `json:"user,omitempty"`
	Vhost    string `json:"vhost"`
	Exchange string `json:"exchange"`
	Write    string `json:"write"`
	Read     string `json:"read"`
}

// definitions are what the broker takes in one call.
type definitions struct {
	Users       []whole      `json:"users"`
	Permissions []permission `json:"permissions"`
	Topics      []topic      `json:"topic_permissions"`
}

// A whole user is one with the limits of its connections and channels.
type whole struct {
	user
	Limits limits `json:"limits"`
}

// limits are how many connections and channels a user has at most, by their names.
type limits map[string]int

// MarshalJSON writes none as the broker does.
func (l limits) MarshalJSON() ([]byte, error) {
	if l == nil {
		l = limits{}
	}
	return json.Marshal(map[string]int(l))
}

// unfinished is the tag of an admin that is being made, which has no password yet. The
// broker takes all rights of a user in one call, but has done half of it where whoever
// calls is gone meanwhile; so the password comes last, and with it the tags of the first.
const unfinished = "estover-unfinished"

func (t tags) has(tag string) bool { return slices.Contains(strings.Split(string(t), ","), tag) }

// Pair makes another admin, with the tags, the limits and the permissions of the first,
// and looks whether it has them. One that a crash has left half made is nobody, and is made
// anew.
func (t *target) Pair(ctx context.Context, name, like string, s estover.Secret) error {
	if err := engine.CheckName(name, longest); err != nil {
		return err
	}
	if me := t.config.Admin.User; me != like {
		return engine.Refuse("the admin logs in as %s, and not as %s", me, like)
	}
	has, err := t.rights(ctx, like)
	if errors.Is(err, engine.ErrNoUser) {
		return engine.Refuse("the admin %s is no user of the broker's own, so its password is not changed there", like)
	} else if err != nil {
		return err
	}
	var there user
	_, err = t.do(ctx, http.MethodGet, nil, &there, "users", name)
	if err == nil && !there.Tags.has(unfinished) {
		return engine.Refuse("there is a user %s", name)
	}
	if err == nil {
		err = t.revoke(ctx, name)
	}
	if err != nil && !errors.Is(err, engine.ErrNoUser) {
		return err
	}
	in := definitions{
		Users:       []whole{{user{Name: name, Algorithm: algorithm, Tags: unfinished}, has.limits}},
		Permissions: slices.Clone(has.vhosts), Topics: slices.Clone(has.topics),
	}
	for i := range in.Permissions {
		in.Permissions[i].User = name
	}
	for i := range in.Topics {
		in.Topics[i].User = name
	}
	if _, err = t.do(ctx, http.MethodPost, in, nil, "definitions"); err == nil {
		_, err = t.do(ctx, http.MethodPut, user{Hash: hash(s), Algorithm: algorithm, Tags: has.tags}, nil, "users", name)
		if err == nil {
			err = t.alike(ctx, name, has)
		}
		err = engine.Begun(err)
	}
	var unlike *engine.Refused
	if errors.As(err, &unlike) { // what was taken of the call before it was refused goes
		if failed := t.revoke(ctx, name); failed != nil {
			return engine.Begun(failed)
		}
	}
	return err
}

// Alike compares the tags, the limits and the permissions of two admins.
func (t *target) Alike(ctx context.Context, name, like string) error {
	has, err := t.rights(ctx, like)
	if err == nil {
		err = t.alike(ctx, name, has)
	}
	return err
}

func (t *target) alike(ctx context.Context, name string, has rights) error {
	got, err := t.rights(ctx, name)
	if errors.Is(err, engine.ErrNoUser) || err == nil && !slices.Equal(got.words(), has.words()) {
		err = engine.Refuse("the second admin would not have the rights of the first, so make one there that has them and name it (--second-admin): of %s it has %s", strings.Join(has.words(), ", "), strings.Join(got.words(), ", "))
	}
	return err
}

// rights are those of a user.
func (t *target) rights(ctx context.Context, name string) (has rights, err error) {
	var u whole
	if _, err := t.do(ctx, http.MethodGet, nil, &u, "users", name); err != nil {
		return has, err
	}
	has.tags, has.limits = u.Tags, u.Limits
	if _, err = t.do(ctx, http.MethodGet, nil, &has.vhosts, "users", name, "permissions"); err == nil {
		_, err = t.do(ctx, http.MethodGet, nil, &has.topics, "users", name, "topic-permissions")
	}
	for i := range has.vhosts {
		has.vhosts[i].User = ""
	}
	for i := range has.topics {
		has.topics[i].User = ""
	}
	return has, err
}

// words are the rights in an order of their own, for whoever compares or reads them.
func (r rights) words() []string {
	var all []string
	for _, v := range r.vhosts {
		all = append(all, fmt.Sprintf("%q configure %q write %q read %q", v.Vhost, v.Configure, v.Write, v.Read))
	}
	for _, v := range r.topics {
		all = append(all, fmt.Sprintf("%q at %q write %q read %q", v.Vhost, v.Exchange, v.Write, v.Read))
	}
	for what, n := range r.limits {
		all = append(all, fmt.Sprintf("%s %d", what, n))
	}
	slices.Sort(all)
	list := strings.FieldsFunc(string(r.tags), func(c rune) bool { return c == ',' })
	slices.Sort(list)
	return append([]string{"the tags " + cmp.Or(strings.Join(list, " "), "none")}, all...)
}

// administrates reports whether a user is an administrator of the broker, who logs in
// at the management interface.
func (t *target) administrates(ctx context.Context, name string) (bool, error) {
	if name == t.config.Admin.User {
		return true, nil
	}
	var u user
	_, err := t.do(ctx, http.MethodGet, nil, &u, "users", name)
	if errors.Is(err, engine.ErrNoUser) {
		return false, nil
	}
	return u.Tags.has("administrator"), err
}
