package redis

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"

	"estover.dev"
	"estover.dev/internal/secret/engine"
)

// Pair makes another admin, with the rules of the first, and looks whether the server
// tells the same of both. It refuses at a server that keeps no ACL file: when that
// restarts, it has never heard of the second, and has the first one's password from its
// configuration.
func (t *target) Pair(ctx context.Context, user, like string, s estover.Secret) error {
	if err := engine.CheckName(user, longest); err != nil {
		return err
	}
	if me := cmp.Or(t.admin, "default"); me != like {
		return engine.Refuse("the admin logs in as %s, and not as %s", me, like)
	}
	return t.do(ctx, func(c *redis.Conn) error {
		if err := c.Do(ctx, "acl", "save").Err(); noFile(err) {
			return engine.Refuse("it keeps no ACL file, so when it restarts it would know the password that the admin has had until now, and no second admin: have it keep one (aclfile in its configuration)")
		} else if err != nil {
			return err
		}
		rules, err := given(ctx, c, like)
		if err != nil {
			return err
		}
		if err := find(ctx, c, user); !errors.Is(err, engine.ErrNoUser) {
			if err == nil {
				err = engine.Refuse("there is a user %s", user)
			}
			return err
		}
		if err := c.ACLSetUser(ctx, user, slices.Concat([]string{"reset", "on", hash(s)}, rules)...).Err(); err != nil {
			return err
		}
		err = alike(ctx, c, user, rules)
		var unlike *engine.Refused
		if errors.As(err, &unlike) {
			if failed := c.ACLDelUser(ctx, user).Err(); failed != nil {
				return engine.Begun(classify(failed))
			}
		}
		return engine.Begun(errors.Join(classify(err), classify(save(ctx, c))))
	})
}

// Alike compares the rules of two admins.
func (t *target) Alike(ctx context.Context, user, like string) error {
	return t.do(ctx, func(c *redis.Conn) error {
		rules, err := given(ctx, c, like)
		if err == nil {
			err = alike(ctx, c, user, rules)
		}
		return err
	})
}

func alike(ctx context.Context, c *redis.Conn, user string, rules []string) error {
	has, err := given(ctx, c, user)
	if err == nil && !slices.Equal(has, rules) {
		err = engine.Refuse("the second admin would not have the rights of the first, so make one there that has them and name it (--second-admin): of %s it has %s", strings.Join(rules, " "), strings.Join(has, " "))
	}
	return err
}

// given are the rules of a user, of which ACL GETUSER tells and which ACL SETUSER takes,
// without passwords.
func given(ctx context.Context, c *redis.Conn, user string) (rules []string, err error) {
	answer, err := c.Do(ctx, "acl", "getuser", user).Result()
	if errors.Is(err, redis.Nil) {
		return nil, engine.ErrNoUser
	} else if err != nil {
		return nil, err
	}
	told, readable := fields(answer)
	flags, listed := told["flags"].([]any)
	selectors, more := told["selectors"].([]any)
	own, err := section(told, "flags", "passwords", "selectors")
	if err != nil || !readable || !listed || !more {
		return nil, unread(user, err)
	}
	for _, f := range flags {
		switch f {
		case "nopass":
			return nil, engine.Refuse("%s needs no password, so there is none to change: give it one (resetpass, and >PASSWORD)", user)
		case "skip-sanitize-payload":
			rules = append(rules, "skip-sanitize-payload")
		}
	}
	rules = append(rules, own...)
	for _, s := range selectors {
		told, readable := fields(s)
		part, err := section(told)
		if err != nil || !readable {
			return nil, unread(user, err)
		}
		rules = append(rules, "("+strings.Join(part, " ")+")")
	}
	return rules, nil
}

func unread(user string, err error) error {
	return engine.Refuse("what %s may do cannot be read: %v", user, cmp.Or(err, errors.New("ACL GETUSER tells of it in another form than Redis 7 and 8 do")))
}

// section are the rules for keys, channels and commands of a user or of a selector. What
// else stands there, and is not among others, would be lost.
func section(told map[string]any, others ...string) (rules []string, err error) {
	for _, name := range slices.Sorted(maps.Keys(told)) {
		if !slices.Contains(append([]string{"keys", "channels", "commands"}, others...), name) {
			return nil, fmt.Errorf("it has %q, which is not known here", name)
		}
	}
	for _, name := range []string{"keys", "channels", "commands"} {
		text, is := told[name].(string)
		if !is {
			return nil, fmt.Errorf("its %s are not told", name)
		}
		rules = append(rules, strings.Fields(text)...)
	}
	return rules, nil
}

// fields are those of an answer, in either version of the protocol.
func fields(answer any) (map[string]any, bool) {
	told := map[string]any{}
	switch answer := answer.(type) {
	case map[any]any:
		for name, value := range answer {
			told[fmt.Sprint(name)] = value
		}
		return told, true
	case []any:
		for pair := range slices.Chunk(answer, 2) {
			if len(pair) < 2 {
				return nil, false
			}
			told[fmt.Sprint(pair[0])] = pair[1]
		}
		return told, true
	}
	return nil, false
}

// Drain lets go of the connections when nobody uses them, and from then on opens one for
// each piece of work.
func (t *target) Drain() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.drained = true
	if t.busy == 0 {
		_ = t.client.Close()
	}
}

// lend gives a client for one piece of work, and what to call after it.
func (t *target) lend() (c *redis.Client, done func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.drained {
		c := t.as(t.login, 1)
		return c, func() { _ = c.Close() }
	}
	t.busy++
	return t.client, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.busy--; t.drained && t.busy == 0 {
			_ = t.client.Close()
		}
	}
}
