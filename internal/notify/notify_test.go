package notify_test

import (
	"bufio"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"mime/quotedprintable"
	"net"
	"net/http"
	"net/http/httptest"
	"net/mail"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/audit"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/notify"
)

var (
	admin = estover.Caller{Tenant: estover.DefaultTenant, Subject: estover.User("usr_admin"), Roles: []estover.Role{estover.Admin}}
	bot   = estover.Caller{Tenant: estover.DefaultTenant, Subject: estover.Agent("agt_bot")}
)

const (
	password = "correct horse battery"
	key      = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz"
)

// A bench is notification with a real log and real connections, and requests that
// the test makes up.
type bench struct {
	*notify.Notify
	t     *testing.T
	guard *guard.Guard
	clock *dbtest.Clock
	roots *tls.Config

	mu       sync.Mutex
	n        int64 // events so far
	requests map[string]notify.Matter
	people   map[string]notify.Person
	secrets  map[string]string
	asked    []string // hosts for which a secret was asked
}

func newBench(t *testing.T, d *db.DB) *bench {
	b := &bench{
		t: t, guard: guardtest.New(t, d, guardtest.AllowAll), clock: dbtest.NewClock(d), requests: map[string]notify.Matter{},
		people:  map[string]notify.Person{"user:usr_ann": {Subject: "user:usr_ann", Name: "ann", Email: "ann@example.com"}, "user:usr_mute": {Subject: "user:usr_mute", Name: "mute"}},
		secrets: map[string]string{"bus/key": key, "mail/password": password},
	}
	b.Notify = b.again()
	return b
}

// again is the same over the same database, as after a crash.
func (b *bench) again() *notify.Notify {
	return notify.New(b.guard, notify.Options{
		Logger: slog.New(slog.DiscardHandler),
		Describe: func(_ context.Context, _ estover.TenantID, id string) (notify.Matter, error) {
			b.mu.Lock()
			defer b.mu.Unlock()
			m, ok := b.requests[id]
			if !ok {
				return m, &estover.Error{Kind: estover.NotFound, Code: "request_not_found"}
			}
			return m, nil
		},
		People: func(_ context.Context, _ estover.TenantID, who []string, _ string) (list []notify.Person, err error) {
			b.mu.Lock()
			defer b.mu.Unlock()
			for _, w := range who {
				if p, ok := b.people[w]; ok {
					list = append(list, p)
				}
			}
			return list, nil
		},
		Post: func(ctx context.Context, _ estover.TenantID, _ notify.Spec, r *http.Request) (int, error) {
			c := http.Client{Timeout: 2 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
			res, err := c.Do(r)
			if err != nil {
				return 0, err
			}
			defer res.Body.Close()
			_, err = io.Copy(io.Discard, io.LimitReader(res.Body, 1<<16))
			return res.StatusCode, err
		},
		Dial: func(ctx context.Context, _ estover.TenantID, _ notify.Spec, address string) (net.Conn, *tls.Config, error) {
			var d net.Dialer
			c, err := d.DialContext(ctx, "tcp", address)
			config := b.roots
			if config == nil {
				config = &tls.Config{}
			}
			return c, config, err
		},
		Secret: func(_ context.Context, _ estover.TenantID, path, host string) (estover.Secret, error) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.asked = append(b.asked, path+" "+host)
			return estover.NewSecret([]byte(b.secrets[path])), nil
		},
	})
}

// happens records that somebody did something, and has the outbox filled as who
// follows the log does.
func (b *bench) happens(action, request string, approvers ...string) audit.Entry {
	b.t.Helper()
	action, again := strings.CutSuffix(action, " again")
	op := guard.Op{Action: action, Target: "request:" + request}
	var id string
	err := b.guard.Do(b.t.Context(), bot, op, func(tx *guard.Tx) error {
		if again {
			tx.Note("again", true)
		}
		if request != "" {
			tx.Note("request", request)
			tx.Note("kind", "access")
			tx.Note("state", "pending")
		}
		tx.Note("approvers", approvers)
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
	var e audit.Entry
	err = b.guard.DB().View(b.t.Context(), estover.DefaultTenant, func(tx *db.Tx) error {
		list, _, err := b.guard.Log().List(b.t.Context(), tx, audit.Filter{Action: action}, 0, 1000)
		if err != nil {
			return err
		}
		for _, one := range list {
			if one.At.After(e.At) || e.ID == "" {
				e = one
			}
		}
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
	id = e.ID
	b.mu.Lock()
	b.n++
	e.Index = b.n
	b.mu.Unlock()
	if err := b.Take(b.t.Context(), estover.DefaultTenant, []audit.Entry{e}); err != nil {
		b.t.Fatalf("taking %s: %v", id, err)
	}
	return e
}

// asks makes up a request that waits, and lets it be known.
func (b *bench) asks(id, reason string, approvers ...string) audit.Entry {
	b.t.Helper()
	b.mu.Lock()
	b.requests[id] = notify.Matter{
		Title: "The agent support-bot asks for access", Lines: []string{"crm: customer.read, id: 42"}, Reason: reason,
		Fingerprint: "one two three four five six seven eight", Link: "https://estover.example.com/approve/" + id, Open: true,
		Until: b.guard.DB().Now().Add(time.Hour),
	}
	b.mu.Unlock()
	return b.happens("access.request", id, approvers...)
}

func (b *bench) decided(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	m := b.requests[id]
	m.Open = false
	b.requests[id] = m
}

func (b *bench) put(s notify.Spec) notify.Channel {
	b.t.Helper()
	c, err := b.Put(b.t.Context(), admin, s, "")
	if err != nil {
		b.t.Fatal(err)
	}
	return c
}

// send sends what is due, and checks how much got through.
func (b *bench) send(want int) {
	b.t.Helper()
	if sent, err := b.SendDue(b.t.Context()); err != nil || sent != want {
		b.t.Fatalf("sending what is due: %d, %v; want %d", sent, err, want)
	}
}

// channel is a channel as it is shown.
func (b *bench) channel(name string) notify.Channel {
	b.t.Helper()
	c, err := b.ByName(b.t.Context(), admin, name)
	if err != nil {
		b.t.Fatal(err)
	}
	return c
}

// A hook is a webhook of a stranger's.
type hook struct {
	*httptest.Server
	mu     sync.Mutex
	status int
	got    []posted
}

type posted struct {
	header http.Header
	body   []byte
}

func newHook(t *testing.T) *hook {
	h := &hook{status: http.StatusOK}
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		h.mu.Lock()
		defer h.mu.Unlock()
		h.got = append(h.got, posted{r.Header, body})
		if h.status >= 300 && h.status < 400 {
			w.Header().Set("Location", "/elsewhere")
		}
		w.WriteHeader(h.status)
	}))
	t.Cleanup(h.Close)
	return h
}

func (h *hook) answer(status int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.status = status
}

func (h *hook) posts() []posted {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.got)
}

// standard is a Standard Webhook to a hook.
func standard(h *hook) notify.Spec {
	return notify.Spec{Name: "bus", Kind: notify.Webhook, URL: h.URL + "/in", Secret: "bus/key", AllowPrivate: true}
}

// verified checks a post as a receiver does, by the Standard Webhooks
// specification, and gives its id.
func verified(t *testing.T, p posted) string {
	t.Helper()
	raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(key, "whsec_"))
	if err != nil {
		t.Fatal(err)
	}
	id, stamp := p.header.Get("webhook-id"), p.header.Get("webhook-timestamp")
	mac := hmac.New(sha256.New, raw)
	fmt.Fprintf(mac, "%s.%s.%s", id, stamp, p.body)
	want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
	if got := p.header.Get("webhook-signature"); got != want || id == "" || stamp == "" {
		t.Errorf("the signature is %q, want %q", got, want)
	}
	return id
}

// A Standard Webhook: signed, one event at a time, in the order of the log, once
// where all goes well, and with the same id again where the answer was lost.
func TestStandardWebhook(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		b, h := newBench(t, d), newHook(t)
		b.asks("apr_before", "before there is a channel")
		b.put(standard(h))
		b.clock.Advance(time.Second)
		var want []string
		for i := range 5 {
			want = append(want, b.asks(fmt.Sprintf("apr_%d", i), "a reason").ID)
		}
		again := b.asks("apr_0", "a reason") // the follower is given some events twice
		if err := b.Take(t.Context(), estover.DefaultTenant, []audit.Entry{again, again}); err != nil {
			t.Fatal(err)
		}
		want = append(want, again.ID)
		for range want {
			b.send(1)
		}
		b.send(0)
		var got []string
		ids := map[string]bool{}
		for _, p := range h.posts() {
			ids[verified(t, p)] = true
			var m struct {
				Type string
				Data struct{ Event, Request, Link, Fingerprint string }
			}
			if err := json.Unmarshal(p.body, &m); err != nil || m.Type != "access.request" || !strings.HasPrefix(m.Data.Link, "https://estover.example.com/approve/apr_") || m.Data.Fingerprint == "" {
				t.Errorf("the body %s (%v)", p.body, err)
			}
			got = append(got, m.Data.Event)
		}
		if !slices.Equal(got, want) || len(ids) != len(want) {
			t.Errorf("told of %v in %d messages, want %v", got, len(ids), want)
		}
		if !slices.Contains(b.asked, "bus/key "+strings.TrimPrefix(h.URL, "http://")) {
			t.Errorf("the key was asked for as %v, want for the host of the webhook", b.asked)
		}

		// It was sent, and the process ended before that was noted.
		b.asks("apr_crash", "a reason")
		crash, cancel := context.WithCancel(t.Context())
		dying := b.again()
		post := dying.Post
		dying.Post = func(ctx context.Context, tenant estover.TenantID, s notify.Spec, r *http.Request) (int, error) {
			status, err := post(ctx, tenant, s, r)
			cancel()
			return status, err
		}
		if sent, err := dying.SendDue(crash); err == nil || sent != 0 {
			t.Fatalf("the process that ends in between says %d, %v", sent, err)
		}
		b.send(1)
		posts := h.posts()
		if last := posts[len(posts)-2:]; verified(t, last[0]) != verified(t, last[1]) {
			t.Errorf("what is sent again has another id: a receiver cannot know that it has it")
		}
	})
}

// Others answer late, wrongly, or not at all. What comes behind waits, in order;
// after a day it is given up, and that is on record.
func TestTroubles(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		b, h, fine := newBench(t, d), newHook(t), newHook(t)
		b.put(standard(h))
		good := standard(fine)
		good.Name = "fine"
		b.put(good)
		b.clock.Advance(time.Second)
		first, second := b.asks("apr_1", "first"), b.asks("apr_2", "second")
		for _, status := range []int{http.StatusInternalServerError, http.StatusFound, http.StatusUnauthorized, http.StatusGone} {
			h.answer(status)
			if _, err := b.SendDue(t.Context()); err != nil {
				t.Fatal(err)
			}
			if c := b.channel("bus"); c.FailingSince.IsZero() || !strings.Contains(c.Failure, fmt.Sprint(status)) || c.Waiting != 2 {
				t.Errorf("after a %d the channel says %+v", status, c)
			}
			if n := len(h.posts()); n > 4 {
				t.Errorf("it followed a redirect or did not wait: %d posts", n)
			}
			if sent, err := b.SendDue(t.Context()); err != nil || sent > 1 {
				t.Errorf("sent at once again: %d, %v", sent, err)
			}
			b.clock.Advance(2 * time.Hour)
		}
		if got := len(fine.posts()); got != 2 {
			t.Errorf("the other channel had %d messages, want 2: one in trouble keeps nobody waiting", got)
		}
		for _, p := range h.posts() {
			if strings.Contains(string(p.body), second.ID) {
				t.Error("the second message overtook the first")
			}
		}
		h.answer(http.StatusNoContent)
		b.send(1)
		b.send(1)
		posts := h.posts()
		if got := string(posts[len(posts)-2].body) + string(posts[len(posts)-1].body); !strings.Contains(string(posts[len(posts)-2].body), first.ID) || !strings.Contains(got, second.ID) {
			t.Errorf("after the trouble: %s", got)
		}
		if c := b.channel("bus"); !c.FailingSince.IsZero() || c.Failure != "" || c.Waiting != 0 {
			t.Errorf("after the trouble the channel says %+v", c)
		}

		h.Close() // dead for good
		b.asks("apr_3", "third")
		for range 30 {
			if _, err := b.SendDue(t.Context()); err != nil {
				t.Fatal(err)
			}
			b.clock.Advance(time.Hour)
		}
		if c := b.channel("bus"); c.Waiting != 0 || c.FailingSince.IsZero() {
			t.Errorf("a day later the channel says %+v, want nothing waiting and that it fails", c)
		}
		var failed []audit.Entry
		err := d.View(t.Context(), estover.DefaultTenant, func(tx *db.Tx) (err error) {
			failed, _, err = b.guard.Log().List(t.Context(), tx, audit.Filter{Action: "channel.send", Outcome: audit.Failed}, 0, 10)
			return err
		})
		if err != nil || len(failed) != 1 {
			t.Errorf("what was given up is on record %d times (%v), want once", len(failed), err)
		}
	})
}

// What comes together is one message, what has been decided is left out, and
// after so many an hour the rest is one digest.
func TestFatigue(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		b, h := newBench(t, d), newHook(t)
		few := int64(3)
		b.put(notify.Spec{Name: "ops", Kind: notify.Slack, URL: h.URL + "/services/T/B/x", AllowPrivate: true, PerHour: &few})
		b.clock.Advance(time.Second)
		b.asks("apr_1", "one")
		b.asks("apr_2", "two")
		b.asks("apr_3", "three")
		b.send(0) // it waits for others
		b.decided("apr_2")
		b.clock.Advance(11 * time.Second)
		b.send(1)
		text := string(h.posts()[0].body)
		for id, want := range map[string]bool{"apr_1": true, "apr_2": false, "apr_3": true} {
			if strings.Contains(text, "approve/"+id) != want {
				t.Errorf("the message has %s: %v, want %v\n%s", id, !want, want, text)
			}
		}
		// Two more make the hour full.
		for i := range 2 {
			b.asks(fmt.Sprintf("apr_more%d", i), "more")
			b.clock.Advance(11 * time.Second)
			b.send(1)
		}
		for i := range 20 {
			b.asks(fmt.Sprintf("apr_flood%d", i), "again and again")
			b.clock.Advance(time.Minute)
			b.send(0)
		}
		b.clock.Advance(45 * time.Minute)
		b.send(1)
		b.send(0)
		posts := h.posts()
		if n := strings.Count(string(posts[len(posts)-1].body), "approve/apr_flood"); len(posts) != 4 || n != 20 {
			t.Errorf("%d messages, the last with %d requests; want 4, and 20 in the digest", len(posts), n)
		}
		// Who asks for what waits already bothers nobody, however often they do.
		for range 5 {
			b.happens("access.request again", "apr_1")
			b.clock.Advance(2 * time.Hour)
			b.send(0)
		}
		// What waits is decided before it is told: nobody is bothered.
		b.asks("apr_quick", "quick")
		b.decided("apr_quick")
		b.clock.Advance(2 * time.Hour)
		b.send(0)
		if c := b.channel("ops"); c.Waiting != 0 || len(h.posts()) != 4 {
			t.Errorf("what was decided before it was told: %d waits, %d messages", c.Waiting, len(h.posts()))
		}
	})
}

// Words of agents are plain text wherever they are shown: nothing that can be
// clicked, no markup, no other order, no line of a head.
func TestWordsOfOthers(t *testing.T) {
	d := dbtest.Open(t)
	b, h := newBench(t, d), newHook(t)
	s := newMail(t, "", "")
	b.put(notify.Spec{Name: "ops", Kind: notify.Slack, URL: h.URL + "/slack", AllowPrivate: true})
	b.put(notify.Spec{Name: "team", Kind: notify.Teams, URL: h.URL + "/teams", AllowPrivate: true})
	b.put(notify.Spec{Name: "mail", Kind: notify.Email, Server: s.addr, TLS: "none", From: "estover@example.com", AllowPrivate: true})
	b.clock.Advance(time.Second)
	evil := "Urgent <https://evil.example/approve|approve here>\r\nBcc: everybody@example.com\n[click](http://evil.example) \u202eevil\u0007 www.evil.example Evil.example/approve evil\u3002example ev\u200bil.exa\u200bmple evil.1.example ann@evil.example 3.5"
	b.asks("apr_1", evil, "user:usr_ann")
	b.mu.Lock()
	m := b.requests["apr_1"]
	m.Title = "The agent bot\r\nSubject: approved asks for access"
	b.requests["apr_1"] = m
	b.mu.Unlock()
	b.clock.Advance(11 * time.Second)
	b.send(3)
	for _, p := range h.posts() {
		text := string(p.body)
		for _, bad := range []string{"https://evil", "http://evil", "www.evil", "\u202e", "\\u202e", "\\u0007", "\\r", "Bcc: everybody@example.com\\n"} {
			if strings.Contains(text, bad) {
				t.Errorf("the message has %q:\n%s", bad, text)
			}
		}
		if strings.Count(text, "https://estover.example.com/approve/apr_1") != 1 {
			t.Errorf("the message has not the one link of ours:\n%s", text)
		}
		if strings.Contains(text, "mrkdwn") && strings.Count(text, "mrkdwn") != 1 {
			t.Errorf("more than our link is markup:\n%s", text)
		}
		noHost(t, text)
	}
	msg := s.read(t)
	if msg.head.Get("Bcc") != "" || strings.Contains(msg.body, "://evil") || !strings.Contains(msg.body, "approves nothing") {
		t.Errorf("the letter: %v\n%s", msg.head, msg.body)
	}
	noHost(t, msg.body)
	if subject, err := new(mime.WordDecoder).DecodeHeader(msg.head.Get("Subject")); err != nil || !strings.HasPrefix(subject, "Estover: The agent bot  Subject: approved") {
		t.Errorf("the subject: %q %v", subject, err)
	}
}

// noHost fails if there is the name of a host that is not ours, of which programs
// make a link without being asked.
func noHost(t *testing.T, text string) {
	t.Helper()
	for _, bad := range []string{"evil.", "evil\u3002", "@example.com", "@evil.", "1.example"} {
		if strings.Contains(strings.ToLower(text), bad) {
			t.Errorf("the message has %q:\n%s", bad, text)
		}
	}
	if !strings.Contains(text, "3.5") {
		t.Errorf("the message has not the number:\n%s", text)
	}
}

// A letter is what a mail server has been given.
type letter struct {
	from, to string
	head     mail.Header
	body     string
	tls      bool
}

// A mailServer speaks as much SMTP as it must (RFC 5321), with STARTTLS or TLS from
// the beginning, and AUTH PLAIN.
type mailServer struct {
	net.Listener
	addr     string
	starttls *tls.Config
	user     string
	mu       sync.Mutex
	refuse   string // what is said to RCPT; "" takes it
	stall    bool   // it says nothing at all
	lie      bool   // it closes after it has taken the message, without a word
	letters  []letter
}

// newMail starts a mail server: with no TLS, starttls or implicit.
func newMail(t *testing.T, mode, user string) *mailServer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &mailServer{Listener: l, addr: l.Addr().String(), user: user}
	certificate := httptest.NewTLSServer(nil)
	certificate.Close()
	switch mode {
	case "starttls":
		s.starttls = certificate.TLS
	case "implicit":
		s.Listener = tls.NewListener(l, certificate.TLS)
	}
	go func() {
		for {
			c, err := s.Accept()
			if err != nil {
				return
			}
			go s.talk(c, mode == "implicit")
		}
	}()
	t.Cleanup(func() { l.Close() })
	return s
}

func (s *mailServer) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *mailServer) talk(c net.Conn, secure bool) {
	defer c.Close()
	s.mu.Lock()
	stall, refuse, lie := s.stall, s.refuse, s.lie
	s.mu.Unlock()
	r := bufio.NewReader(c)
	if stall {
		_, _ = r.ReadString('\n')
		return
	}
	say := func(text string) { fmt.Fprintf(c, "%s\r\n", text) }
	say("220 mail.example.com ESMTP")
	var l letter
	known := s.user == ""
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimRight(line, "\r\n")
		verb, rest, _ := strings.Cut(line, " ")
		switch verb = strings.ToUpper(verb); {
		case verb == "EHLO":
			say("250-mail.example.com")
			if s.starttls != nil && !secure {
				say("250-STARTTLS")
			}
			say("250 AUTH PLAIN")
		case verb == "STARTTLS" && s.starttls != nil:
			say("220 go on")
			upgraded := tls.Server(c, s.starttls)
			if upgraded.Handshake() != nil {
				return
			}
			c, r, secure = upgraded, bufio.NewReader(upgraded), true
		case verb == "AUTH":
			plain, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(rest, "PLAIN "))
			if known = err == nil && secure && string(plain) == "\x00"+s.user+"\x00"+password; known {
				say("235 welcome")
			} else {
				say("535 5.7.8 nobody is known by " + rest)
			}
		case verb == "MAIL" && !known:
			say("530 5.7.0 authenticate first")
		case verb == "MAIL":
			l = letter{from: strings.Trim(strings.TrimPrefix(rest, "FROM:"), "<>"), tls: secure}
			say("250 ok")
		case verb == "RCPT" && refuse != "":
			say(refuse)
		case verb == "RCPT":
			l.to = strings.Trim(strings.TrimPrefix(rest, "TO:"), "<>")
			say("250 ok")
		case verb == "DATA":
			say("354 go on")
			var text strings.Builder
			for {
				line, err := r.ReadString('\n')
				if err != nil {
					return
				}
				if line == ".\r\n" {
					break
				}
				text.WriteString(strings.TrimPrefix(line, "."))
			}
			m, err := mail.ReadMessage(strings.NewReader(text.String()))
			if err != nil {
				say("554 this is no message")
				continue
			}
			body, err := io.ReadAll(quotedprintable.NewReader(m.Body))
			if err != nil {
				say("554 this is no text")
				continue
			}
			l.head, l.body = m.Header, string(body)
			s.set(func() { s.letters = append(s.letters, l) })
			if lie {
				return
			}
			say("250 2.0.0 taken")
		case verb == "QUIT":
			say("221 bye")
			return
		default:
			say("250 ok")
		}
	}
}

// read is the one letter that has come since the last time.
func (s *mailServer) read(t *testing.T) letter {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.letters) != 1 {
		t.Fatalf("%d letters have come, want 1", len(s.letters))
	}
	l := s.letters[0]
	s.letters = nil
	return l
}

// E-mail through a real conversation, to those who may decide and have an address.
func TestEmail(t *testing.T) {
	for _, mode := range []string{"starttls", "implicit"} {
		t.Run(mode, func(t *testing.T) {
			b := newBench(t, dbtest.Open(t))
			s := newMail(t, mode, "estover")
			b.roots = &tls.Config{InsecureSkipVerify: true} // whose certificate it is, the server looks at
			b.put(notify.Spec{Name: "mail", Kind: notify.Email, Server: s.addr, TLS: mode, User: "estover", Secret: "mail/password", From: "estover@example.com", AllowPrivate: true})
			b.clock.Advance(time.Second)
			b.asks("apr_1", "The customer is on the phone", "user:usr_ann", "user:usr_mute", "user:usr_gone")
			b.clock.Advance(11 * time.Second)
			b.send(1)
			l := s.read(t)
			if l.from != "estover@example.com" || l.to != "ann@example.com" || !l.tls || l.head.Get("Auto-Submitted") != "auto-generated" || !strings.HasSuffix(l.head.Get("Message-Id"), "@example.com>") {
				t.Errorf("the letter: %+v", l)
			}
			for _, want := range []string{"The agent support-bot asks for access", "customer.read, id: 42", "The customer is on the phone", "one two three four five six seven eight", "https://estover.example.com/approve/apr_1\r\n"} {
				if !strings.Contains(l.body, want) {
					t.Errorf("the letter has not %q:\n%s", want, l.body)
				}
			}
			if !slices.Contains(b.asked, "mail/password "+s.addr) {
				t.Errorf("the password was asked for as %v, want for the mail server", b.asked)
			}
			b.send(0)

			// It is refused, silent, wrong about TLS, or lies: it is tried again.
			for name, trouble := range map[string]struct {
				how  func()
				says string
			}{
				"refused": {func() { s.refuse = "550 5.1.1 no such user" }, "550: 5.1.1 no such user"},
				"a lie":   {func() { s.refuse, s.lie = "", true }, "did not take the message"},
			} {
				s.set(trouble.how)
				b.asks("apr_"+strings.ReplaceAll(name, " ", "_"), "again", "user:usr_ann")
				b.clock.Advance(11 * time.Second)
				b.send(0)
				if c := b.channel("mail"); !strings.Contains(c.Failure, trouble.says) || c.FailingSince.IsZero() {
					t.Errorf("%s: the channel says %q, want %q", name, c.Failure, trouble.says)
				}
				if strings.Contains(b.channel("mail").Failure, password) {
					t.Error("the channel tells its password")
				}
				s.set(func() { s.refuse, s.lie, s.letters = "", false, nil })
				b.clock.Advance(10 * time.Minute)
				b.send(1)
				s.read(t)
			}
		})
	}
}

// A server that repeats what it was told does not make us tell the password.
func TestEmailRepeatsThePassword(t *testing.T) {
	b := newBench(t, dbtest.Open(t))
	s := newMail(t, "starttls", "estover")
	b.roots = &tls.Config{InsecureSkipVerify: true}
	wrong := "a-wrong-password"
	b.secrets["mail/password"] = wrong
	b.put(notify.Spec{Name: "mail", Kind: notify.Email, Server: s.addr, User: "estover", Secret: "mail/password", From: "estover@example.com", To: []string{"team@example.com"}, AllowPrivate: true})
	err := b.Test(t.Context(), admin, "mail")
	if !errors.Is(err, notify.ErrSend) || !strings.Contains(err.Error(), "535") {
		t.Fatalf("with a wrong password: %v", err)
	}
	for _, told := range []string{err.Error(), b.channel("mail").Failure} {
		if strings.Contains(told, wrong) || strings.Contains(told, base64.StdEncoding.EncodeToString([]byte("\x00estover\x00"+wrong))) {
			t.Errorf("the password is told: %s", told)
		}
	}
}

// Without the TLS that was asked for nothing is sent, and no password.
func TestEmailNeedsTLS(t *testing.T) {
	b := newBench(t, dbtest.Open(t))
	s := newMail(t, "", "estover")
	b.put(notify.Spec{Name: "mail", Kind: notify.Email, Server: s.addr, User: "estover", Secret: "mail/password", From: "estover@example.com", To: []string{"team@example.com"}})
	if err := b.Test(t.Context(), admin, "mail"); !errors.Is(err, notify.ErrSend) || !strings.Contains(err.Error(), "did not take") {
		t.Errorf("a server without STARTTLS: %v", err)
	}
	strict := newMail(t, "starttls", "estover")
	b.put(notify.Spec{Name: "mail", Kind: notify.Email, Server: strict.addr, User: "estover", Secret: "mail/password", From: "estover@example.com", To: []string{"team@example.com"}})
	if err := b.Test(t.Context(), admin, "mail"); !errors.Is(err, notify.ErrSend) {
		t.Errorf("a certificate that nobody believes: %v", err)
	}
	b.roots = &tls.Config{InsecureSkipVerify: true}
	if err := b.Test(t.Context(), admin, "mail"); err != nil {
		t.Errorf("a test of the channel: %v", err)
	}
	if l := strict.read(t); l.to != "team@example.com" || strings.Contains(l.body, "approve/") || !strings.Contains(l.body, "Nothing waits for you") {
		t.Errorf("the letter of a test: %+v", l)
	}
}

// What is said of a channel is checked, and who may not, does not.
func TestChannel(t *testing.T) {
	for name, s := range map[string]notify.Spec{
		"without a kind":              {Name: "x"},
		"with a name that is none":    {Name: "X!", Kind: notify.Slack, URL: "https://hooks.example.com/x"},
		"by plain HTTP":               {Name: "x", Kind: notify.Slack, URL: "http://hooks.example.com/x"},
		"with a user in the URL":      {Name: "x", Kind: notify.Slack, URL: "https://me@hooks.example.com/x"},
		"with the secret in the URL":  {Name: "x", Kind: notify.Slack, URL: "https://hooks.example.com/x", Secret: "chat"},
		"a webhook without a key":     {Name: "x", Kind: notify.Webhook, URL: "https://hooks.example.com/x"},
		"that tells of every call":    {Name: "x", Kind: notify.Slack, URL: "https://hooks.example.com/x", Events: []string{"gateway.call"}},
		"that tells of its telling":   {Name: "x", Kind: notify.Slack, URL: "https://hooks.example.com/x", Events: []string{"channel.*"}},
		"that tells of everything":    {Name: "x", Kind: notify.Slack, URL: "https://hooks.example.com/x", Events: []string{"*"}},
		"mail without a server":       {Name: "x", Kind: notify.Email, From: "a@example.com"},
		"mail without TLS":            {Name: "x", Kind: notify.Email, Server: "mail.example.com:25", TLS: "none", From: "a@example.com"},
		"a password without TLS":      {Name: "x", Kind: notify.Email, Server: "mail.example.com:25", TLS: "none", AllowPrivate: true, User: "u", Secret: "p", From: "a@example.com"},
		"mail from nobody":            {Name: "x", Kind: notify.Email, Server: "mail.example.com:25", From: "a"},
		"mail to two lines":           {Name: "x", Kind: notify.Email, Server: "mail.example.com:25", From: "a@example.com", To: []string{"b@example.com\r\nBcc: c@example.com"}},
		"chat with a mail server":     {Name: "x", Kind: notify.Teams, URL: "https://hooks.example.com/x", Server: "mail.example.com:25"},
		"an hour that is a minus one": {Name: "x", Kind: notify.Teams, URL: "https://hooks.example.com/x", PerHour: new(int64(-1))},
	} {
		if _, err := notify.Check(s); !errors.Is(err, notify.ErrInvalid) {
			t.Errorf("a channel %s: %v, want ErrInvalid", name, err)
		}
	}
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		b, h := newBench(t, d), newHook(t)
		c := b.put(standard(h))
		changed := standard(h)
		changed.Events = []string{"access.*"}
		if got := b.put(changed); got.ID != c.ID || got.Epoch != 2 {
			t.Errorf("changing a channel makes %+v of %+v", got, c)
		}
		b.clock.Advance(time.Second)
		b.asks("apr_1", "a reason")
		b.happens("access.approve", "apr_1")
		b.happens("person.create", "")
		b.send(1)
		b.send(1)
		b.send(0)
		if n := len(h.posts()); n != 2 {
			t.Errorf("%d messages of what it tells, want 2", n)
		}
		b.asks("apr_2", "a reason")
		if err := b.Retire(t.Context(), admin, "bus"); err != nil {
			t.Fatal(err)
		}
		b.send(0)
		if _, err := b.ByName(t.Context(), admin, "bus"); !errors.Is(err, notify.ErrNotFound) {
			t.Errorf("a retired channel: %v, want ErrNotFound", err)
		}
		elsewhere := estover.Caller{Tenant: "other", Subject: estover.User("usr_admin")}
		b.put(standard(h))
		if _, err := b.ByName(t.Context(), elsewhere, "bus"); !errors.Is(err, notify.ErrNotFound) {
			t.Errorf("another tenant's channel: %v, want ErrNotFound", err)
		}
		refuses := notify.New(guardtest.New(t, d, guardtest.DenyAll), b.Options)
		if _, err := refuses.Put(t.Context(), admin, standard(h), ""); estover.KindOf(err) != estover.Denied {
			t.Errorf("a channel of somebody who may not: %v", err)
		}
	})
}

// Two nodes send at once, and each message goes out once or, if both had it in
// hand, with the same id.
func TestTwoNodes(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		b, h := newBench(t, d), newHook(t)
		b.put(standard(h))
		b.clock.Advance(time.Second)
		for i := range 10 {
			b.asks(fmt.Sprintf("apr_%d", i), "a reason")
		}
		nodes := []*notify.Notify{b.Notify, b.again(), b.again()}
		var wg sync.WaitGroup
		for _, n := range nodes {
			wg.Go(func() {
				for range 40 {
					if _, err := n.SendDue(t.Context()); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		events := map[string]string{}
		for _, p := range h.posts() {
			var m struct{ Data struct{ Event string } }
			if err := json.Unmarshal(p.body, &m); err != nil {
				t.Fatal(err)
			}
			id := verified(t, p)
			if was, ok := events[m.Data.Event]; ok && was != id {
				t.Errorf("the event %s went out as %s and as %s", m.Data.Event, was, id)
			}
			events[m.Data.Event] = id
		}
		if len(events) != 10 || b.channel("bus").Waiting != 0 {
			t.Errorf("%d events were told, %d wait; want 10 and none", len(events), b.channel("bus").Waiting)
		}
	})
}
