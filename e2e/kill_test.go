package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lestrrat-go/jwx/v3/jwt"
	"github.com/transparency-dev/tessera/api"
	"github.com/transparency-dev/tessera/client"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"estover.dev/attest"
	"estover.dev/demo/web"
	"estover.dev/e2e/e2etest"
	"estover.dev/internal/db/dbtest"
)

var kills = flag.Int("kills", 0, "how often each test kills a server that is to be killed; 0 for as often as the test has it")

// killings is how often a test kills its server, which is so often unless
// somebody wants another number.
func killings(own int) int {
	if *kills > 0 {
		return *kills
	}
	return own
}

// A server that is killed at any moment, again and again, while it issues
// tokens, forwards calls, opens and ends sessions and refuses things, has lost
// nothing of what it acknowledged: it is all in the log, the log verifies with
// the tools of others, and what was ended stays ended.
func TestKill(t *testing.T) {
	t.Parallel()
	t.Run("sqlite", func(t *testing.T) { killAgainAndAgain(t, dbtest.SQLite(t), killings(50)) })
	t.Run("postgres", func(t *testing.T) { killAgainAndAgain(t, dbtest.Postgres(t), killings(10)) })
}

func killAgainAndAgain(t *testing.T, database string, kills int) {
	s := newSiege(t, e2etest.StartOn(t, database))
	s.begin()
	for n := range kills {
		time.Sleep(time.Duration(rand.IntN(250)) * time.Millisecond)
		s.Kill()
		if n%5 == 4 { // in the middle of what a start has to do, too
			s.Restart(t)
			time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
			s.Kill()
		}
		s.Restart(t)
		s.check()
		if t.Failed() {
			break
		}
	}
	s.finish()
	s.check()
	s.checkCalls()
	if s.unknown == 0 {
		t.Error("no call was under way when the server was killed, so this has shown little")
	}
	s.checkLog()
	s.checkEvidence()
	t.Logf("%d kills: %d tokens, %d calls, %d refusals, %d sessions opened and %d ended were acknowledged; %d calls became unknown; %d events",
		kills, len(s.tokens), len(s.calls), len(s.refused), len(s.opened), len(s.ended), s.unknown, len(s.log.events))
}

// A siege is a server under load, and what it has acknowledged.
type siege struct {
	*e2etest.Server
	t      *testing.T
	admin  *e2etest.CLI
	token  string // the administrator's
	trust  string // the server's trust policy, as it was before anything happened
	agent  string
	secret string
	site   *web.Site

	stop context.CancelFunc
	ctx  context.Context
	work sync.WaitGroup

	mu      sync.Mutex
	tokens  map[string]bool // jti
	calls   map[string]bool // mark in the query
	refused map[string]bool // id of the decision
	opened  map[string]bool
	ended   map[string]bool
	arrived map[string]bool // marks that came to the upstream
	old     *e2etest.Session

	log     eventLog
	tracker *client.LogStateTracker
	unknown int
}

func newSiege(t *testing.T, srv *e2etest.Server) *siege {
	t.Helper()
	s := &siege{
		Server: srv, t: t, admin: srv.Admin(t), tokens: map[string]bool{}, calls: map[string]bool{}, refused: map[string]bool{},
		opened: map[string]bool{}, ended: map[string]bool{}, arrived: map[string]bool{},
	}
	world := e2etest.NewWorld(t)
	s.site = world.Site(t, "besieged", http.HandlerFunc(s.upstream))
	s.admin.Apply(t,
		e2etest.Secret("key", s.site), e2etest.Agent("bot", "work"),
		world.Resource(s.site, `class: internal
slots: [{slot: header, name: Authorization, prefix: "Bearer ", secret: key}]
actions:
  - {name: look, method: GET, path: "/{what}"}
  - {name: change, method: POST, path: "/{what}"}
  - {name: remove, method: DELETE, path: "/{what}"}`),
		e2etest.Grant("bot-works", "bot", "besieged", "look, change", "work"))
	s.admin.Put(t, "key", crmKey)
	s.token, s.trust = s.admin.Token(t), s.admin.Must(t, "audit", "trust")
	var c struct {
		ClientID     string `json:"client_id"`
		ClientSecret string `json:"client_secret"`
	}
	s.admin.JSON(t, &c, "agent", "credential", "add", "bot")
	s.agent, s.secret = c.ClientID, c.ClientSecret
	s.ctx, s.stop = context.WithCancel(t.Context())
	t.Cleanup(func() { s.stop(); s.work.Wait() })
	return s
}

// upstream answers at once, or after a while.
func (s *siege) upstream(w http.ResponseWriter, r *http.Request) {
	s.note(s.arrived, r.FormValue("mark"))
	if r.URL.Path == "/slow" {
		select {
		case <-time.After(100 * time.Millisecond):
		case <-r.Context().Done():
			return
		}
	}
	_, _ = io.WriteString(w, "done")
}

func (s *siege) note(in map[string]bool, what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	in[what] = true
}

func (s *siege) copyOf(m map[string]bool) map[string]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(m)
}

// begin starts the load. It goes on until finish, whether or not there is a
// server.
func (s *siege) begin() {
	for range 3 {
		s.work.Go(func() { s.again(s.issue) })
	}
	for _, path := range []string{"/quick", "/quick", "/slow"} {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			s.work.Go(func() { s.sessions(method, path) })
		}
	}
}

// again does something until the siege is over. After a failure, which is one
// of a server that is not there, it waits a moment.
func (s *siege) again(do func() error) {
	for s.ctx.Err() == nil {
		if do() != nil {
			select {
			case <-s.ctx.Done():
			case <-time.After(5 * time.Millisecond):
			}
		}
	}
}

// issue gets a token.
func (s *siege) issue() error {
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {s.agent}, "client_secret": {s.secret}, "resource": {s.site.URL}, "purpose": {"work"}}
	res, err := s.HTTP(s.t).PostForm(s.URL+"/oauth/token", form)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	var answer struct {
		AccessToken string `json:"access_token"`
		Error       string `json:"error_description"`
	}
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil {
		return err
	}
	if answer.AccessToken == "" {
		return s.unexpected("a token", res.StatusCode, answer.Error)
	}
	tok, err := jwt.ParseInsecure([]byte(answer.AccessToken))
	if err != nil {
		return err
	}
	id, _ := tok.JwtID()
	s.note(s.tokens, id)
	return nil
}

// unexpected is an answer that a server gives that is there. It may say that
// it is not ready, or has no time to decide, and nothing else.
func (s *siege) unexpected(what string, status int, text string) error {
	if status != http.StatusServiceUnavailable && status != http.StatusBadGateway && !strings.Contains(text, "could not be evaluated in time") {
		s.t.Errorf("%s was answered with %d: %s", what, status, text)
	}
	return fmt.Errorf("%d", status)
}

// sessions opens sessions one after the other, calls in each, and ends it.
func (s *siege) sessions(method, path string) {
	s.again(func() error {
		session, err := s.Open(s.t, s.token, "bot", "work")
		if err != nil {
			return s.failed("opening a session", err)
		}
		defer session.HTTP.CloseIdleConnections()
		s.note(s.opened, session.ID)
		for left := 3 + rand.IntN(10); left > 0 && s.ctx.Err() == nil; {
			if s.call(session, method, path) == nil && s.call(session, http.MethodDelete, path) == nil {
				left--
			} else {
				time.Sleep(5 * time.Millisecond)
			}
		}
		err = s.Post(s.t, s.token, "/v1/sessions/"+session.ID+"/end", map[string]string{"cause": "done"}, nil)
		if err != nil {
			return s.failed("ending a session", err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.ended[session.ID], s.old = true, session
		return nil
	})
}

// failed tells a refusal, which should not be, from a server that is not
// there.
func (s *siege) failed(what string, err error) error {
	var r *e2etest.Refused
	if errors.As(err, &r) {
		return s.unexpected(what, r.Status, r.Detail)
	}
	return err
}

// call makes a call by the gateway: one that is granted, or with DELETE one
// that is not.
func (s *siege) call(session *e2etest.Session, method, path string) error {
	mark := fmt.Sprintf("%016x", rand.Uint64())
	req, err := http.NewRequestWithContext(s.ctx, method, s.site.URL+path+"?mark="+mark, nil)
	if err != nil {
		return err
	}
	res, err := session.HTTP.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	switch {
	case method == http.MethodDelete && res.StatusCode == http.StatusForbidden:
		s.note(s.refused, res.Header.Get("Estover-Decision"))
	case method != http.MethodDelete && res.StatusCode == http.StatusOK:
		s.note(s.calls, mark)
	default:
		return s.unexpected(method, res.StatusCode, string(body))
	}
	return nil
}

// finish lets the load end, and every session.
func (s *siege) finish() {
	s.stop()
	s.work.Wait()
	for id := range s.opened {
		if s.ended[id] {
			continue
		}
		var r *e2etest.Refused
		err := s.Post(s.t, s.token, "/v1/sessions/"+id+"/end", map[string]string{"cause": "the siege is over"}, nil)
		if err != nil && (!errors.As(err, &r) || r.Code != "session_ended") {
			s.t.Errorf("ending session %s: %v", id, err)
		}
		s.ended[id] = true
	}
}

// A loggedEvent is an event as the API shows it.
type loggedEvent struct {
	ID      string         `json:"id"`
	Action  string         `json:"action"`
	Outcome string         `json:"outcome"`
	Target  string         `json:"target"`
	Session string         `json:"session"`
	Detail  map[string]any `json:"detail"`
	Index   int64          `json:"index"`
}

// An eventLog is what has been read of the log, and what is found in it.
type eventLog struct {
	events  map[string]loggedEvent // by id
	placed  int64                  // events with a lower place have been read
	tokens  map[string]bool
	marks   map[string]loggedEvent // intents by the mark of their call
	refused map[string]bool
	opened  map[string]bool
	ended   map[string]bool
}

// read reads what has come to the log since the last time.
func (s *siege) read() {
	l := &s.log
	if l.events == nil {
		*l = eventLog{map[string]loggedEvent{}, 0, map[string]bool{}, map[string]loggedEvent{}, map[string]bool{}, map[string]bool{}, map[string]bool{}}
	}
	reached := l.placed
	for cursor, old := "", false; !old; {
		var page struct {
			Items []loggedEvent
			Next  string
		}
		if err := s.Get(s.t, s.token, "/v1/events?limit=200&cursor="+cursor, &page); err != nil {
			s.t.Fatalf("reading the log: %v", err)
		}
		for _, e := range page.Items {
			old = old || e.Index >= 0 && e.Index < l.placed
			reached = max(reached, e.Index+1)
			if before, twice := l.events[e.ID]; twice && before.Index >= 0 && before.Index != e.Index {
				s.t.Errorf("event %s is in the log twice, at %d and %d", e.ID, before.Index, e.Index)
			}
			l.take(e)
		}
		if cursor = page.Next; cursor == "" {
			break
		}
	}
	l.placed = reached
}

func (l *eventLog) take(e loggedEvent) {
	l.events[e.ID] = e
	switch {
	case e.Action == "token.issue" && e.Outcome == "done":
		if token, ok := e.Detail["token"].(map[string]any); ok {
			if id, ok := token["jti"].(string); ok {
				l.tokens[id] = true
			}
		}
	case e.Action == "gateway.intent":
		query, _ := e.Detail["query"].(string)
		l.marks[strings.TrimPrefix(query, "mark=")] = e
	case e.Action == "gateway.call" && e.Outcome == "refused":
		l.refused[e.ID] = true
	case e.Action == "session.open" && e.Outcome == "done":
		l.opened[strings.TrimPrefix(e.Target, "session:")] = true
	case e.Action == "session.end" && e.Outcome == "done":
		l.ended[strings.TrimPrefix(e.Target, "session:")] = true
	}
}

// check looks whether everything that was acknowledged until now is in the
// log, whether the log goes on from where it was, and whether what was ended
// has stayed so.
func (s *siege) check() {
	s.t.Helper()
	tokens, calls, refused, opened, ended := s.copyOf(s.tokens), s.copyOf(s.calls), s.copyOf(s.refused), s.copyOf(s.opened), s.copyOf(s.ended)
	s.mu.Lock()
	old := s.old
	s.mu.Unlock()
	missing := func() (all []string) {
		s.read()
		for what, sets := range map[string][2]map[string]bool{
			"token": {tokens, s.log.tokens}, "refusal": {refused, s.log.refused}, "session": {opened, s.log.opened}, "session's end": {ended, s.log.ended},
		} {
			for id := range sets[0] {
				if !sets[1][id] {
					all = append(all, what+" "+id)
				}
			}
		}
		for mark := range calls {
			if _, ok := s.log.marks[mark]; !ok {
				all = append(all, "call "+mark)
			}
		}
		return all
	}
	// What is on the node's spool comes to the log a moment after the start.
	lost := missing()
	for deadline := time.Now().Add(time.Minute); len(lost) > 0 && time.Now().Before(deadline); lost = missing() {
		time.Sleep(10 * time.Millisecond)
	}
	if len(lost) > 0 {
		s.t.Errorf("%d things that were acknowledged are not in the log: %q", len(lost), lost[:min(5, len(lost))])
	}
	var open struct{ Items []struct{ ID string } }
	if err := s.Get(s.t, s.token, "/v1/sessions?state=open&limit=200", &open); err != nil {
		s.t.Fatalf("listing the open sessions: %v", err)
	}
	for _, one := range open.Items {
		if ended[one.ID] {
			s.t.Errorf("session %s had been ended and is open again", one.ID)
		}
	}
	if old != nil {
		res, err := old.HTTP.Get(s.site.URL + "/quick?mark=after-the-end")
		if err == nil {
			_ = res.Body.Close()
			s.t.Errorf("session %s had been ended, and its key opens: %s", old.ID, res.Status)
		}
		old.HTTP.CloseIdleConnections()
	}
	s.follow()
}

// follow is another party that has seen the log before and makes sure that it
// is still the same one, only longer.
func (s *siege) follow() {
	s.t.Helper()
	v, fetch := s.verifier()
	ctx := s.t.Context()
	if s.tracker == nil {
		var err error
		s.tracker, err = client.NewLogStateTracker(ctx, fetch.ReadTile, nil, v, v.Name(), client.UnilateralConsensus(fetch.ReadCheckpoint))
		if err != nil {
			s.t.Fatalf("following the log: %v", err)
		}
	}
	if _, _, _, err := s.tracker.Update(ctx); err != nil {
		s.t.Errorf("the log is not the one that it was: %v", err)
	}
}

// verifier is what a stranger needs to read the log: its key and its place.
func (s *siege) verifier() (note.Verifier, *client.HTTPFetcher) {
	s.t.Helper()
	root, err := url.Parse(s.URL + "/log/default/")
	if err != nil {
		s.t.Fatal(err)
	}
	fetch, err := client.NewHTTPFetcher(root, s.HTTP(s.t))
	if err != nil {
		s.t.Fatal(err)
	}
	fetch.SetAuthorizationHeader("Bearer " + s.token) // the entries are for those who may read events
	for line := range strings.Lines(s.trust) {
		if key, ok := strings.CutPrefix(strings.TrimSpace(line), "log "); ok {
			v, err := note.NewVerifier(key)
			if err != nil {
				s.t.Fatal(err)
			}
			return v, fetch
		}
	}
	s.t.Fatal("the trust policy names no log")
	return nil, nil
}

// checkCalls holds intents, outcomes and what came to the upstream against
// each other.
func (s *siege) checkCalls() {
	s.t.Helper()
	type session struct {
		intents, outcomes map[float64]string // the number of the call → its intent
		closed            float64            // how many calls the closing statement tells of
	}
	var sessions map[string]*session
	collect := func() bool {
		s.read()
		sessions = map[string]*session{}
		of := func(id string) *session {
			if sessions[id] == nil {
				sessions[id] = &session{map[float64]string{}, map[float64]string{}, -1}
			}
			return sessions[id]
		}
		s.unknown = 0
		for _, e := range s.log.events {
			seq, _ := e.Detail["seq"].(float64)
			switch {
			case e.Action == "gateway.intent":
				of(e.Session).intents[seq] = e.ID
			case e.Action == "gateway.call" && e.Outcome == "done":
				if intent, twice := of(e.Session).outcomes[seq]; twice {
					s.t.Errorf("call %v of %s has two outcomes, of %s and %v", seq, e.Session, intent, e.Detail["call"])
				}
				of(e.Session).outcomes[seq], _ = e.Detail["call"].(string)
				if e.Detail["end"] == "unknown" {
					s.unknown++
				}
			case e.Action == "session.close":
				of(e.Session).closed, _ = e.Detail["calls"].(float64)
			}
		}
		for _, one := range sessions {
			if one.closed < 0 {
				return false
			}
		}
		return true
	}
	e2etest.Eventually(s.t, "every session that called has its closing statement", collect)
	for id, one := range sessions {
		for seq, intent := range one.intents {
			if one.outcomes[seq] != intent {
				s.t.Errorf("call %v of session %s began as %s and ended as %q", seq, id, intent, one.outcomes[seq])
			}
		}
		for seq := 1.0; seq <= one.closed; seq++ {
			if one.outcomes[seq] == "" {
				s.t.Errorf("call %v of session %s, of %v, has no outcome", seq, id, one.closed)
			}
		}
		if int(one.closed) != len(one.outcomes) {
			s.t.Errorf("session %s closes with %v calls and has %d", id, one.closed, len(one.outcomes))
		}
	}
	for mark := range s.arrived {
		if _, ok := s.log.marks[mark]; !ok {
			s.t.Errorf("the call %s came to the upstream and is not in the log", mark)
		}
	}
}

// checkLog reads the whole log by the tools of others.
func (s *siege) checkLog() {
	s.t.Helper()
	if r := s.admin.Run(s.t, "audit", "verify"); r.Code != 0 || !strings.Contains(r.Stdout, "Every entry is as it was written") {
		s.t.Errorf("estover audit verify: exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	ctx := s.t.Context()
	v, fetch := s.verifier()
	cp, _, _, err := client.FetchCheckpoint(ctx, fetch.ReadCheckpoint, v, v.Name())
	if err != nil {
		s.t.Fatalf("the checkpoint: %v", err)
	}
	placed := 0
	for _, e := range s.log.events {
		if e.Index >= 0 {
			placed++
		}
	}
	if cp.Size < uint64(placed) {
		e2etest.Eventually(s.t, "the checkpoint covers what has a place", func() bool {
			cp, _, _, err = client.FetchCheckpoint(ctx, fetch.ReadCheckpoint, v, v.Name())
			return err == nil && cp.Size >= uint64(placed)
		})
	}
	// The leaves give the root that is signed.
	var hashes []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		for i, at := range indexes {
			out[i] = hashes[at]
		}
		return out, nil
	})
	var leaves [][]byte
	for first := uint64(0); first < cp.Size; first += 256 {
		bundle, err := client.GetEntryBundle(ctx, fetch.ReadEntryBundle, first/256, cp.Size)
		if err != nil {
			s.t.Fatalf("the entries from %d: %v", first, err)
		}
		leaves = append(leaves, entries(bundle)...)
	}
	if uint64(len(leaves)) != cp.Size {
		s.t.Fatalf("the log has %d entries, and its checkpoint says %d", len(leaves), cp.Size)
	}
	for i, leaf := range leaves {
		stored, err := tlog.StoredHashes(int64(i), leaf, reader)
		if err != nil {
			s.t.Fatal(err)
		}
		hashes = append(hashes, stored...)
	}
	root, err := tlog.TreeHash(int64(cp.Size), reader)
	if err != nil || !bytes.Equal(root[:], cp.Hash) {
		s.t.Errorf("the entries have the root %s (%v), and the checkpoint %x", root, err, cp.Hash)
	}
	// The tiles prove each of some entries.
	proofs, err := client.NewProofBuilder(ctx, cp.Size, fetch.ReadTile)
	if err != nil {
		s.t.Fatal(err)
	}
	for range 20 {
		i := rand.Uint64N(cp.Size)
		path, err := proofs.InclusionProof(ctx, i)
		if err != nil {
			s.t.Fatalf("the proof of entry %d: %v", i, err)
		}
		var p tlog.RecordProof
		for _, h := range path {
			p = append(p, tlog.Hash(h))
		}
		if err := tlog.CheckRecord(p, int64(cp.Size), root, int64(i), tlog.RecordHash(leaves[i])); err != nil {
			s.t.Errorf("the proof of entry %d: %v", i, err)
		}
	}
}

func entries(b api.EntryBundle) [][]byte { return b.Entries }

// checkEvidence exports sessions that the server died under, and verifies
// them offline.
func (s *siege) checkEvidence() {
	s.t.Helper()
	trust := filepath.Join(s.admin.Dir, "trust.policy")
	if err := os.WriteFile(trust, []byte(s.trust), 0o644); err != nil {
		s.t.Fatal(err)
	}
	var struck []string
	for _, e := range s.log.events {
		if e.Action == "gateway.call" && e.Detail["end"] == "unknown" && !slices.Contains(struck, e.Session) {
			struck = append(struck, e.Session)
		}
	}
	for _, id := range struck[:min(3, len(struck))] {
		file := filepath.Join(s.admin.Dir, id+".zip")
		s.admin.Must(s.t, "evidence", "export", id, "--disclose", "--file", file)
		r := s.admin.Run(s.t, "verify", file, "--trust", trust)
		if r.Code != 0 || strings.Contains(r.Stdout, "FAIL") {
			s.t.Errorf("the evidence of %s does not verify: exit code %d\n%s%s", id, r.Code, r.Stdout, r.Stderr)
		}
		b, err := os.ReadFile(file)
		if err != nil {
			s.t.Fatal(err)
		}
		x, err := attest.ParseExport(b)
		if err != nil {
			s.t.Fatal(err)
		}
		unknown := 0
		for _, receipt := range x.Receipts {
			payload, err := receipt.Envelope.DecodeB64Payload()
			if err != nil {
				s.t.Fatal(err)
			}
			statement, err := attest.ParseStatement(payload)
			if err != nil {
				s.t.Fatal(err)
			}
			if a, ok := statement.Predicate.(*attest.Action); ok && a.Outcome.Commit == "unknown" {
				unknown++
			}
		}
		if unknown == 0 || x.Closing == nil {
			s.t.Errorf("the evidence of %s has %d unknown calls of %d, and closing statement %v", id, unknown, len(x.Receipts), x.Closing != nil)
		}
	}
}
