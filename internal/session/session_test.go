package session_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/agent"
	"estover.dev/internal/audit"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard"
	"estover.dev/internal/oauth/oauthtest"
	"estover.dev/internal/session"
	"estover.dev/internal/token"
)

var admin = oauthtest.Admin

// key is an x5t#S256.
func key(name string) string {
	sum := sha256.Sum256([]byte(name))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func TestOpen(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot, other := w.Agent("bot"), w.Agent("other")
		s, err := w.Sessions.Open(t.Context(), bot.Caller(), session.Wish{Agent: bot.ID, Task: "Tell Ms Schulz about her invoice.", Key: key("a")})
		if err != nil {
			t.Fatal(err)
		}
		if s.State != session.Open || s.Purpose != "billing" || s.OpenedBy != estover.Agent(bot.ID) || s.ExpiresAt.Sub(s.OpenedAt) != session.DefaultLife || s.Ambient {
			t.Errorf("the session is %+v", s)
		}
		got, err := w.Sessions.Get(t.Context(), bot.Caller(), s.ID)
		if err != nil || got.Task != s.Task || got.Key != key("a") || !got.OpenedAt.Equal(s.OpenedAt) || !got.ExpiresAt.Equal(s.ExpiresAt) {
			t.Errorf("read again it is %+v, %v", got, err)
		}
		if n := count(t, d, "select count(*) from session where task is not null"); n != 1 {
			t.Errorf("%d sessions have a task, want 1", n)
		}
		if strings.Contains(dump(t, d, s.ID), "Schulz") {
			t.Error("the text of the task is readable in the database")
		}
		for what, c := range map[string]struct {
			by   estover.Caller
			wish session.Wish
			want error
		}{
			"for another agent":       {other.Caller(), session.Wish{Agent: bot.ID}, session.ErrNotYours},
			"for nobody":              {admin, session.Wish{Agent: "agt_nobody"}, token.ErrNoClient},
			"an undeclared purpose":   {bot.Caller(), session.Wish{Agent: bot.ID, Purpose: "fun"}, session.ErrPurpose},
			"for two days":            {bot.Caller(), session.Wish{Agent: bot.ID, Life: 48 * time.Hour}, session.ErrInvalid},
			"for no time":             {bot.Caller(), session.Wish{Agent: bot.ID, Life: -time.Second}, session.ErrInvalid},
			"with a certificate used": {bot.Caller(), session.Wish{Agent: bot.ID, Key: key("a")}, session.ErrKeyTaken},
			"another agent, the same": {other.Caller(), session.Wish{Agent: other.ID, Key: key("a")}, session.ErrKeyTaken},
			"not a thumbprint":        {bot.Caller(), session.Wish{Agent: bot.ID, Key: "abc"}, session.ErrInvalid},
			"a long task":             {bot.Caller(), session.Wish{Agent: bot.ID, Task: strings.Repeat("x", session.MaxTask+1)}, session.ErrInvalid},
			"a task with a zero byte": {bot.Caller(), session.Wish{Agent: bot.ID, Task: "a\x00b"}, session.ErrInvalid},
		} {
			if _, err := w.Sessions.Open(t.Context(), c.by, c.wish); !errors.Is(err, c.want) {
				t.Errorf("%s: %v, want %v", what, err, c.want)
			}
		}
		if _, err := w.Sessions.Open(t.Context(), admin, session.Wish{Agent: bot.ID, Purpose: "support"}); err != nil {
			t.Errorf("opened by a person: %v", err)
		}
		if _, err := w.Agents.Hold(t.Context(), admin, bot.ID, agent.Suspension, "a test"); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Sessions.Open(t.Context(), admin, session.Wish{Agent: bot.ID}); estover.KindOf(err) != estover.Denied {
			t.Errorf("opened for an agent that is held: %v, want Denied", err)
		}
	})
}

func count(t *testing.T, d *db.DB, query string, args ...any) (n int) {
	t.Helper()
	err := d.View(t.Context(), estover.DefaultTenant, func(tx *db.Tx) error { return tx.QueryRow(t.Context(), query, args...).Scan(&n) })
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// dump is what the database holds of a session and its events.
func dump(t *testing.T, d *db.DB, id string) (all string) {
	t.Helper()
	err := d.View(t.Context(), estover.DefaultTenant, func(tx *db.Tx) error {
		var task []byte
		if err := tx.QueryRow(t.Context(), "select task from session where id = $1", id).Scan(&task); err != nil {
			return err
		}
		rows, err := tx.Query(t.Context(), "select leaf, payload, target from audit where session_id = $1", id)
		if err != nil {
			return err
		}
		defer rows.Close()
		all = string(task)
		for rows.Next() {
			var leaf, payload []byte
			var target string
			if err := rows.Scan(&leaf, &payload, &target); err != nil {
				return err
			}
			all += string(leaf) + string(payload) + target
		}
		return rows.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestEnd(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot, other := w.Agent("bot"), w.Agent("other")
		s, err := w.Sessions.Open(t.Context(), bot.Caller(), session.Wish{Agent: bot.ID, Key: key("a")})
		if err != nil {
			t.Fatal(err)
		}
		raw := w.Ask(bot, "session", s.ID).Token()
		ambient := w.Ask(bot).Token()
		if err := w.Sessions.End(t.Context(), other.Caller(), s.ID, "mischief"); !errors.Is(err, session.ErrNotFound) {
			t.Errorf("ended by another agent: %v, want ErrNotFound", err)
		}
		if _, err := w.Sessions.Get(t.Context(), other.Caller(), s.ID); !errors.Is(err, session.ErrNotFound) {
			t.Errorf("read by another agent: %v, want ErrNotFound", err)
		}
		eve := admin
		eve.Tenant = "acme"
		if err := w.Sessions.End(t.Context(), eve, s.ID, "mischief"); !errors.Is(err, session.ErrNotFound) {
			t.Errorf("ended from another tenant: %v, want ErrNotFound", err)
		}
		if err := w.Sessions.End(t.Context(), admin, s.ID, ""); !errors.Is(err, session.ErrInvalid) {
			t.Errorf("ended without a cause: %v, want ErrInvalid", err)
		}
		if !w.Live(bot, raw) {
			t.Fatal("the token died although the session has not ended")
		}
		if err := w.Sessions.End(t.Context(), bot.Caller(), s.ID, "the command ended"); err != nil {
			t.Fatal(err)
		}
		if w.Live(bot, raw) {
			t.Error("the token of an ended session is active")
		}
		if !w.Live(bot, ambient) {
			t.Error("the token of another session died too")
		}
		got, err := w.Sessions.Get(t.Context(), admin, s.ID)
		if err != nil || got.State != session.Ended || got.EndCause != "the command ended" || got.EndedAt.IsZero() {
			t.Errorf("the ended session is %+v, %v", got, err)
		}
		if err := w.Sessions.End(t.Context(), bot.Caller(), s.ID, "again"); !errors.Is(err, session.ErrEnded) {
			t.Errorf("ended again: %v, want ErrEnded", err)
		}
		if n := count(t, d, "select count(*) from audit where action = 'session.end' and outcome = 'done' and session_id = $1", s.ID); n != 1 {
			t.Errorf("the end is on record %d times, want once", n)
		}
		// The certificate is free again.
		if _, err := w.Sessions.Open(t.Context(), bot.Caller(), session.Wish{Agent: bot.ID, Key: key("a")}); err != nil {
			t.Errorf("the certificate of an ended session: %v", err)
		}

		ended, err := w.Sessions.EndAll(t.Context(), admin, bot.ID, "contained")
		if err != nil || len(ended) != 2 {
			t.Errorf("ending all: %v, %v; want the ambient session and the other", ended, err)
		}
		if w.Live(bot, ambient) {
			t.Error("a token is active although all sessions of its agent have ended")
		}
		if !w.Live(other, w.Ask(other).Token()) {
			t.Error("another agent's token is not active")
		}
		if ended, err := w.Sessions.EndAll(t.Context(), admin, bot.ID, "contained"); err != nil || len(ended) != 0 {
			t.Errorf("ending all again: %v, %v; want none", ended, err)
		}
		if w.Ask(bot).Token() == "" {
			t.Error("the agent cannot begin anew")
		}
	})
}

// The parts of a session end in its transaction: if one cannot, nothing does.
func TestPartsEndTogether(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		broken := errors.New("the lease cannot be ended")
		var fail error
		var seen []string
		sessions := session.New(w.Guard, w.Sessions.Config,
			session.Part{Name: "grants", End: token.EndSessions},
			session.Part{Name: "leases", End: func(_ context.Context, _ *guard.Tx, ids []string) (int, error) {
				seen = ids
				return len(ids), fail
			}})
		raw := w.Ask(bot).Token()
		s, err := w.Tokens.Verify(t.Context(), raw)
		if err != nil {
			t.Fatal(err)
		}
		fail = broken
		if err := sessions.End(t.Context(), admin, s.Session, "done"); !errors.Is(err, broken) {
			t.Errorf("ending a session whose part fails: %v, want that error", err)
		}
		if !w.Live(bot, raw) {
			t.Error("the token died although the session could not be ended")
		}
		fail = nil
		if err := sessions.End(t.Context(), admin, s.Session, "done"); err != nil {
			t.Fatal(err)
		}
		if len(seen) != 1 || seen[0] != s.Session {
			t.Errorf("the part was told %v, want the session", seen)
		}
		if w.Live(bot, raw) {
			t.Error("the token of an ended session is active")
		}
	})
}

// If the end cannot be recorded, it does not happen.
func TestEndIsRecordedOrDoesNotHappen(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		raw := w.Ask(bot).Token()
		s, err := w.Tokens.Verify(t.Context(), raw)
		if err != nil {
			t.Fatal(err)
		}
		twice := w.Decider
		twice.Set(func(c estover.Caller, op guard.Op) guard.Decision {
			// An event with this id is there already, so it cannot be written.
			return guard.Decision{Allow: true, ID: s.Transaction}
		})
		if err := w.Sessions.End(t.Context(), admin, s.Session, "done"); !errors.Is(err, guard.ErrNotRecorded) {
			t.Errorf("an end that cannot be recorded: %v, want ErrNotRecorded", err)
		}
		if a := w.Ask(bot); a.Token() != "" || a.Status != 503 {
			t.Errorf("a token that cannot be recorded: %d %s, want 503", a.Status, a.Body)
		}
		twice.Set(nil)
		if !w.Live(bot, raw) {
			t.Error("the session ended without a record")
		}
	})
}

func TestExpiry(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		clock := dbtest.NewClock(d)
		bot := w.Agent("bot")
		var touched []string
		w.Guard.OnTouch(func(_ estover.TenantID, kind, id string) {
			if kind == session.Kind {
				touched = append(touched, id)
			}
		})
		s, err := w.Sessions.Open(t.Context(), bot.Caller(), session.Wish{Agent: bot.ID, Life: time.Minute, Key: key("a")})
		if err != nil {
			t.Fatal(err)
		}
		if w.Ask(bot, "session", s.ID).Token() == "" {
			t.Fatal("no token in an open session")
		}
		if n, err := w.Sessions.ExpireDue(t.Context()); n != 0 || err != nil {
			t.Errorf("before its time: %d, %v", n, err)
		}
		clock.Advance(time.Minute)
		if _, err := w.Sessions.Live(t.Context(), estover.DefaultTenant, s.ID); !errors.Is(err, session.ErrEnded) {
			t.Errorf("a session over its time: %v, want ErrEnded before any sweep", err)
		}
		if got, err := w.Sessions.Get(t.Context(), admin, s.ID); err != nil || got.State != session.Ended {
			t.Errorf("a session over its time is %s, %v", got.State, err)
		}
		if _, _, err := w.Sessions.ByKey(t.Context(), key("a")); err == nil {
			t.Error("the certificate of a session over its time still stands for it")
		}
		if n, err := w.Sessions.ExpireDue(t.Context()); n != 1 || err != nil {
			t.Errorf("the sweep ended %d, %v; want 1", n, err)
		}
		if n, err := w.Sessions.ExpireDue(t.Context()); n != 0 || err != nil {
			t.Errorf("the second sweep ended %d, %v; want none", n, err)
		}
		if len(touched) != 1 || touched[0] != s.ID {
			t.Errorf("followers heard of %v, want the session", touched)
		}
		if n := count(t, d, "select count(*) from oauth_grant where session_id = $1 and ended_at is not null", s.ID); n != 1 {
			t.Errorf("%d grants ended with the session, want 1", n)
		}
	})
}

// An agent that knows nothing of sessions always has one with time enough,
// and the tokens of the one before live on.
func TestAmbient(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		clock := dbtest.NewClock(d)
		bot := w.Agent("bot")
		first := w.Ask(bot)
		clock.Advance(session.DefaultLife - 16*time.Minute)
		if again := w.Ask(bot); again.Text("session") != first.Text("session") {
			t.Error("another session took the place of one with time enough")
		}
		clock.Advance(2 * time.Minute)
		old := w.Ask(bot)
		if old.Text("session") == first.Text("session") {
			t.Error("a session with 14 minutes left was used for a token of 15")
		}
		if old.JSON["expires_in"].(float64) < 899 {
			t.Errorf("the token lives for %v seconds, want 15 minutes", old.JSON["expires_in"])
		}
		if _, err := w.Sessions.Live(t.Context(), estover.DefaultTenant, first.Text("session")); err != nil {
			t.Errorf("the session before: %v, want it to live on", err)
		}
		if n := count(t, d, "select count(*) from session where ambient and ended_at is null"); n != 1 {
			t.Errorf("the agent has %d ambient sessions, want 1", n)
		}
		clock.Advance(24 * time.Hour) // both are over, and nobody has swept
		if a := w.Ask(bot); a.Token() == "" {
			t.Errorf("after a day without a sweep: %d %s", a.Status, a.Body)
		}
		if n, err := w.Sessions.ExpireDue(t.Context()); n != 2 || err != nil {
			t.Errorf("the sweep ended %d, %v; want 2", n, err)
		}
		w.Decider.Set(oauthtest.Deny("session.open"))
		if a := w.Ask(bot, "purpose", "support"); a.Status != 400 || a.Error() != "access_denied" {
			t.Errorf("when policy opens no session: %d %s", a.Status, a.Body)
		}
	})
}

// A certificate is worth no more than what the session was opened with: a
// secret that can be copied does not become a key that cannot.
func TestStrength(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		by := func(s estover.Strength) estover.Caller {
			c := bot.Caller()
			c.Strength = s
			return c
		}
		for i, c := range []struct {
			by   estover.Caller
			want estover.Strength
		}{{by(estover.BySecret), estover.BySecret}, {by(""), estover.BySecret}, {by(estover.ByKey), estover.ByBound}, {by(estover.ByBound), estover.ByBound}, {admin, estover.ByBound}} {
			k := key(string(rune('a' + i)))
			if _, err := w.Sessions.Open(t.Context(), c.by, session.Wish{Agent: bot.ID, Key: k}); err != nil {
				t.Fatal(err)
			}
			if _, got, err := w.Sessions.ByKey(t.Context(), k); err != nil || got.Strength != c.want {
				t.Errorf("opened by %s with %q: %+v, %v; want strength %s", c.by.Subject, c.by.Strength, got, err, c.want)
			}
		}
	})
}

func TestByKey(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		s, err := w.Sessions.Open(t.Context(), bot.Caller(), session.Wish{Agent: bot.ID, Key: key("a")})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // looked up, and remembered
			tenant, got, err := w.Sessions.ByKey(t.Context(), key("a"))
			if err != nil || tenant != estover.DefaultTenant || got.ID != s.ID {
				t.Fatalf("by its certificate: %s, %+v, %v", tenant, got, err)
			}
		}
		for _, k := range []string{"", "x", key("b")} {
			if _, _, err := w.Sessions.ByKey(t.Context(), k); !errors.Is(err, session.ErrNotFound) {
				t.Errorf("by the certificate %q: %v, want ErrNotFound", k, err)
			}
		}
		if err := w.Sessions.End(t.Context(), admin, s.ID, "done"); err != nil {
			t.Fatal(err)
		}
		if _, _, err := w.Sessions.ByKey(t.Context(), key("a")); !errors.Is(err, session.ErrNotFound) {
			t.Errorf("by the certificate of an ended session: %v, want ErrNotFound", err)
		}
		next, err := w.Sessions.Open(t.Context(), bot.Caller(), session.Wish{Agent: bot.ID, Key: key("a")})
		if err != nil {
			t.Fatal(err)
		}
		if _, got, err := w.Sessions.ByKey(t.Context(), key("a")); err != nil || got.ID != next.ID {
			t.Errorf("by the certificate of the next session: %+v, %v", got, err)
		}
	})
}

func TestList(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot, other := w.Agent("bot"), w.Agent("other")
		var ids []string
		for i := range 5 {
			a := bot
			if i == 2 {
				a = other
			}
			s, err := w.Sessions.Open(t.Context(), admin, session.Wish{Agent: a.ID, Task: "task"})
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, s.ID)
		}
		if err := w.Sessions.End(t.Context(), admin, ids[1], "done"); err != nil {
			t.Fatal(err)
		}
		all := func(caller estover.Caller, f session.Filter) (got []string) {
			t.Helper()
			var after *session.After
			for {
				page, next, err := w.Sessions.List(t.Context(), caller, f, after, 2)
				if err != nil {
					t.Fatal(err)
				}
				for _, s := range page {
					if s.Task != "task" {
						t.Errorf("session %s has the task %q", s.ID, s.Task)
					}
					got = append(got, s.ID)
				}
				if after = next; next == nil {
					return got
				}
			}
		}
		for what, c := range map[string]struct {
			got  []string
			want []int // the newest first
		}{
			"all":              {all(admin, session.Filter{}), []int{4, 3, 2, 1, 0}},
			"of an agent":      {all(admin, session.Filter{Agent: bot.ID}), []int{4, 3, 1, 0}},
			"open":             {all(admin, session.Filter{State: session.Open}), []int{4, 3, 2, 0}},
			"ended":            {all(admin, session.Filter{State: session.Ended}), []int{1}},
			"the agent's own":  {all(other.Caller(), session.Filter{}), []int{2}},
			"another tenant's": {all(estover.Caller{Tenant: "acme", Subject: admin.Subject}, session.Filter{}), nil},
		} {
			var want []string
			for _, i := range c.want {
				want = append(want, ids[i])
			}
			if strings.Join(c.got, " ") != strings.Join(want, " ") {
				t.Errorf("%s: %v, want %v", what, c.got, want)
			}
		}
		// A task whose key was destroyed is gone, and its session is still there.
		c := w.Sessions.Config
		c.Unseal = func(estover.TenantID, string, []byte) ([]byte, error) { return nil, audit.ErrErased }
		page, _, err := session.New(w.Guard, c).List(t.Context(), admin, session.Filter{}, nil, 0)
		if err != nil || len(page) != 5 || page[0].Task != "" {
			t.Errorf("with erased tasks: %d sessions, %v", len(page), err)
		}
		if _, _, err := w.Sessions.List(t.Context(), other.Caller(), session.Filter{Agent: bot.ID}, nil, 0); !errors.Is(err, session.ErrNotYours) {
			t.Errorf("another agent's sessions: %v, want ErrNotYours", err)
		}
	})
}

// A session is not opened behind the back of a hold: what was decided on was
// the agent of a moment ago, and what is written is looked at again.
func TestNoSessionIsOpenedBesideAHold(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		config := w.Sessions.Config
		config.Clients, config.Acting = late{config.Clients}, w.Agents.Acting
		sessions := session.New(w.Guard, config)
		if _, err := sessions.Open(t.Context(), admin, session.Wish{Agent: bot.ID}); err != nil {
			t.Fatalf("before the hold: %v", err)
		}
		if _, err := w.Agents.Hold(t.Context(), admin, bot.ID, agent.Quarantine, "contained"); err != nil {
			t.Fatal(err)
		}
		if _, err := sessions.Open(t.Context(), admin, session.Wish{Agent: bot.ID}); !errors.Is(err, agent.ErrNotActive) {
			t.Errorf("decided on before the hold, and written after it: %v, want ErrNotActive", err)
		}
	})
}

// late clients are seen as they were before they were held.
type late struct{ token.Clients }

func (l late) Client(ctx context.Context, tenant estover.TenantID, id string) (*token.Client, error) {
	c, err := l.Clients.Client(ctx, tenant, id)
	if err != nil {
		return nil, err
	}
	was := *c
	was.Alive = func(context.Context, time.Time) error { return nil }
	return &was, nil
}
