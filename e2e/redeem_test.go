package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lestrrat-go/jwx/v3/jwt"

	"estover.dev/e2e/e2etest"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/token"
)

// A server that is killed at any moment while codes and refresh tokens are
// redeemed takes none of them twice, and loses nothing that it has acknowledged:
// who did not hear the answer to a refresh asks again and gets the same successor,
// what was ended stays ended, and the log has every token that went out (tokens.md,
// section 6).
func TestKillWhileRedeeming(t *testing.T) {
	t.Parallel()
	dbtest.EachURL(t, func(t *testing.T, database string) {
		s := newTill(t, e2etest.StartOn(t, database))
		s.begin()
		unheard := func() int { s.mu.Lock(); defer s.mu.Unlock(); return s.unheard }
		n := 0
		for ; n < killings(4) || unheard() == 0 && n < 10*killings(4); n++ {
			time.Sleep(time.Duration(50+rand.IntN(300)) * time.Millisecond)
			s.Kill()
			s.Restart(t)
			s.check()
			if t.Failed() {
				break
			}
		}
		e2etest.Eventually(t, "grants are kept, and others have ended", func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return t.Failed() || len(s.living) > 0 && len(s.ended) > 0
		})
		s.stop()
		s.work.Wait()
		s.check()
		s.goOn()
		if s.unheard == 0 {
			t.Error("nothing was being redeemed when the server was killed, so this has shown little")
		}
		t.Logf("%d kills: %d codes, %d refreshes and %d ends were acknowledged, %d answers were not heard; of those refreshes %d were answered with the same successor when they were asked for again",
			n, s.codes, s.refreshes, len(s.ended), s.unheard, s.recovered)
	})
}

// A till is a server that codes and refresh tokens are redeemed at, and what it
// has acknowledged.
type till struct {
	*oauthDesk
	t          *testing.T
	id, secret string
	alice      visitor
	browser    *http.Client
	log        *siege // reads the log

	ctx  context.Context
	stop context.CancelFunc
	work sync.WaitGroup

	mu        sync.Mutex
	tokens    map[string]bool // jti of those that came
	living    []*family
	ended     []*family
	looked    int // how many of those that ended have been looked at after a kill
	codes     int
	refreshes int
	unheard   int
	recovered int
}

// A family is what one code has bought, as its client knows it.
type family struct {
	code, verifier  string
	access, refresh string // what came last
}

func newTill(t *testing.T, srv *e2etest.Server) *till {
	t.Helper()
	s := &till{oauthDesk: newOAuthDesk(t, srv), t: t, tokens: map[string]bool{}}
	s.id, s.secret = s.client(t, "teller", "test", map[string]any{
		"grant_types": []string{"authorization_code", "refresh_token"}, "redirect_uris": []string{"https://app.example/callback"},
	})
	s.admin.Apply(t, e2etest.Grant("teller-reads", "teller", "crm", "customer.read", "support"))
	s.alice = newVisitor(t, s.desk, "alice")
	page := s.alice.Load("/oauth/authorize?" + s.asked(strings.Repeat("v", 43)).Encode())
	sentBack(t, s.alice.Post("/oauth/consent", s.alice.Fill(page, "/oauth/consent")))
	c := *srv.HTTP(t)
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	s.browser = &c
	s.log = &siege{Server: srv, t: t, token: s.admin.Token(t)}
	s.ctx, s.stop = context.WithCancel(t.Context())
	t.Cleanup(func() { s.stop(); s.work.Wait() })
	return s
}

func (s *till) asked(verifier string) url.Values {
	sum := sha256.Sum256([]byte(verifier))
	return form("client_id", s.id, "response_type", "code", "redirect_uri", "https://app.example/callback", "resource", s.site.URL,
		"code_challenge", base64.RawURLEncoding.EncodeToString(sum[:]), "code_challenge_method", "S256", "scope", "customer.read")
}

func (s *till) begin() {
	for range 5 {
		s.work.Go(func() {
			for s.ctx.Err() == nil {
				if f := s.buy(); f != nil {
					s.use(f)
				}
			}
		})
	}
}

// errUnheard is what a client has that got no answer, or the one of a server that
// is not there yet.
var errUnheard = errors.New("no answer")

func (s *till) do(c *http.Client, req *http.Request, err error) (*http.Response, error) {
	if err != nil {
		return nil, err
	}
	res, err := c.Do(req)
	switch {
	case err != nil:
		return nil, errUnheard
	case res.StatusCode == http.StatusServiceUnavailable || res.StatusCode == http.StatusBadGateway:
		_ = res.Body.Close()
		return nil, errUnheard
	}
	return res, nil
}

// post asks once, as the client.
func (s *till) post(path string, f url.Values) (reply, error) {
	// Not with the context of the load, since whoever has asked waits for the answer.
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, s.URL+path, strings.NewReader(f.Encode()))
	if err == nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.SetBasicAuth(s.id, s.secret)
	}
	res, err := s.do(s.HTTP(s.t), req, err)
	if err != nil {
		return reply{}, err
	}
	defer res.Body.Close()
	r := reply{status: res.StatusCode}
	if err := json.NewDecoder(res.Body).Decode(&r.body); err != nil && path != "/oauth/revoke" {
		return reply{}, errUnheard // cut off in the middle
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if raw, ok := r.body["access_token"].(string); ok {
		if tok, err := jwt.ParseInsecure([]byte(raw)); err == nil {
			id, _ := tok.JwtID()
			s.tokens[id] = true
		}
	}
	return r, nil
}

// persist asks until there is an answer, and says whether there was one that was
// not heard before it. Without a server there comes none.
func (s *till) persist(path string, f url.Values) (r reply, lost bool) {
	for {
		r, err := s.post(path, f)
		if err == nil || s.t.Context().Err() != nil {
			return r, lost
		}
		if !lost {
			lost = true
			s.mu.Lock()
			s.unheard++
			s.mu.Unlock()
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// buy has alice's browser bring a code, and redeems it: nil if that failed, as it
// may where an answer was not heard.
func (s *till) buy() *family {
	f := &family{verifier: fmt.Sprintf("%043d", rand.Uint64())}
	for f.code == "" {
		if s.ctx.Err() != nil {
			return nil
		}
		req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, s.URL+"/oauth/authorize?"+s.asked(f.verifier).Encode(), nil)
		if err == nil {
			for name, value := range s.alice.Cookies {
				req.AddCookie(&http.Cookie{Name: name, Value: value})
			}
		}
		res, err := s.do(s.browser, req, err)
		if err != nil {
			time.Sleep(5 * time.Millisecond)
			continue
		}
		_ = res.Body.Close()
		to, err := url.Parse(res.Header.Get("Location"))
		if err != nil || to.Query().Get("code") == "" {
			s.t.Errorf("alice is sent to %q (%s)", to, res.Status)
			return nil
		}
		f.code = to.Query().Get("code")
	}
	r, lost := s.persist("/oauth/token", f.redeem())
	switch {
	case r.status == http.StatusOK:
		s.mu.Lock()
		s.codes++
		s.mu.Unlock()
		f.take(r)
		return f
	case lost && r.body["error"] == "invalid_grant": // it was redeemed, and nobody has heard it
	default:
		s.t.Errorf("a code: %d %v", r.status, r.body)
	}
	return nil
}

func (f *family) redeem() url.Values {
	return form("grant_type", "authorization_code", "code", f.code, "code_verifier", f.verifier)
}

func (f *family) renew() url.Values {
	return form("grant_type", "refresh_token", "refresh_token", f.refresh)
}

func (f *family) take(r reply) {
	f.access, f.refresh = fmt.Sprint(r.body["access_token"]), fmt.Sprint(r.body["refresh_token"])
}

// use refreshes what a code has bought a few times, and then ends it, or keeps it.
func (s *till) use(f *family) {
	for range 1 + rand.IntN(5) {
		if !s.refresh(f) {
			return
		}
		if s.ctx.Err() != nil {
			break
		}
	}
	var r reply
	switch rand.IntN(3) {
	case 0:
		r, _ = s.persist("/oauth/revoke", form("token", f.refresh))
		if r.status != http.StatusOK {
			s.t.Errorf("a revocation: %d %v", r.status, r.body)
		}
	case 1: // somebody has the code, too
		r, _ = s.persist("/oauth/token", f.redeem())
		if r.body["error"] != "invalid_grant" {
			s.t.Errorf("a code for the second time: %d %v", r.status, r.body)
		}
	default:
		s.mu.Lock()
		defer s.mu.Unlock()
		s.living = append(s.living, f)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = append(s.ended, f)
}

// refresh asks for the next tokens, often in two places at once or once more
// afterwards: always for the same successor. It reports whether the family goes
// on, which it does not if the answer came too late to be asked for again.
func (s *till) refresh(f *family) bool {
	begun := time.Now()
	ask := f.renew()
	var answers []reply
	var lost []bool
	var both sync.WaitGroup
	var mu sync.Mutex
	for range 1 + rand.IntN(2) {
		both.Go(func() {
			r, l := s.persist("/oauth/token", ask)
			mu.Lock()
			defer mu.Unlock()
			answers, lost = append(answers, r), append(lost, l)
		})
	}
	both.Wait()
	if lost[0] || rand.IntN(3) == 0 {
		r, l := s.persist("/oauth/token", ask)
		answers, lost = append(answers, r), append(lost, l)
	}
	if time.Since(begun) > token.RetryWindow-time.Second {
		return false
	}
	for i, r := range answers {
		if r.status != http.StatusOK {
			s.t.Errorf("a refresh (answer not heard before: %v), %s after it was asked for first: %d %v", lost[i], time.Since(begun), r.status, r.body)
			return false
		}
		if r.body["refresh_token"] != answers[0].body["refresh_token"] {
			s.t.Errorf("a refresh has two successors (answers not heard: %v)", lost)
			return false
		}
	}
	f.take(answers[len(answers)-1])
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refreshes++
	if lost[0] && len(answers) > 1 {
		s.recovered++
	}
	return true
}

// check looks whether what ended has stayed so, and whether the log has what was
// acknowledged and no successor twice.
func (s *till) check() {
	s.t.Helper()
	s.mu.Lock()
	fresh := s.ended[s.looked:]
	s.looked = len(s.ended)
	old := s.ended[:s.looked-len(fresh)]
	s.mu.Unlock()
	for range min(5, len(old)) {
		fresh = append(fresh[:len(fresh):len(fresh)], old[rand.IntN(len(old))])
	}
	for _, f := range fresh {
		if r, _ := s.persist("/oauth/introspect", form("token", f.access)); r.body["active"] != false {
			s.t.Errorf("a token is alive whose grant was ended before the kill: %d %v", r.status, r.body)
		}
		if r, _ := s.persist("/oauth/token", f.renew()); r.body["error"] != "invalid_grant" {
			s.t.Errorf("a refresh token of a grant that was ended before the kill: %d %v", r.status, r.body)
		}
	}

	s.mu.Lock()
	tokens, codes := maps.Clone(s.tokens), s.codes
	s.mu.Unlock()
	s.log.read()
	for id := range tokens {
		for late := time.Now().Add(time.Minute); !s.log.log.tokens[id] && time.Now().Before(late); s.log.read() {
			time.Sleep(10 * time.Millisecond) // what is on the node's spool comes a moment after the start
		}
		if !s.log.log.tokens[id] {
			s.t.Errorf("the token %s went out and is not in the log", id)
		}
	}
	bought := map[string]string{} // what a token was issued for → its event
	for _, e := range s.log.log.events {
		told, _ := e.Detail["token"].(map[string]any)
		generation := e.Detail["refresh_token"]
		if e.Action != "token.issue" || e.Outcome != "done" || generation == nil || generation == "again" {
			continue
		}
		what := fmt.Sprintf("%v, %v of grant %v", told["grant_type"], generation, told["grant"])
		if other, twice := bought[what]; twice {
			s.t.Errorf("%s was issued twice, as %s and as %s", what, other, e.ID)
		}
		bought[what] = e.ID
	}
	if len(bought) < codes {
		s.t.Errorf("the log tells of %d redemptions, and %d codes were good", len(bought), codes)
	}
}

// goOn demands that whatever nobody has ended goes on.
func (s *till) goOn() {
	s.t.Helper()
	if len(s.living) == 0 || len(s.ended) == 0 {
		s.t.Errorf("%d grants are kept and %d have ended, so this has shown little", len(s.living), len(s.ended))
	}
	for _, f := range s.living[max(0, len(s.living)-50):] {
		if r, _ := s.persist("/oauth/introspect", form("token", f.access)); r.body["active"] != true {
			s.t.Errorf("a token is dead whose grant nobody has ended: %d %v", r.status, r.body)
		}
		s.refresh(f)
	}
}
