package server_test

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

// mandate puts a grant in the place of the bot's usual one, and gives its id.
func (h *house) mandate(agent string, more map[string]any) string {
	h.t.Helper()
	body := map[string]any{
		"name": agent + "-reads", "agent": agent, "resource": "crm", "actions": []string{"item.read", "slow.read"}, "purposes": []string{"support"}, "class": "confidential",
	}
	maps.Copy(body, more)
	var g struct{ ID string }
	h.must(http.MethodPost, "/v1/grants", body, &g)
	return g.ID
}

// spent is what was taken of a grant's budgets.
func (h *house) spent(id string) (s struct {
	Calls, Rows, Records, Money int64
	BytesOut                    int64 `json:"bytes_out"`
	FanOut                      int64 `json:"fan_out"`
},
) {
	h.t.Helper()
	var g struct{ Spent json.RawMessage }
	h.must(http.MethodGet, "/v1/grants/"+id, nil, &g)
	if err := json.Unmarshal(g.Spent, &s); err != nil {
		h.t.Fatalf("the grant has no account: %v", err)
	}
	return s
}

// read asks the upstream for an item, by way of the gateway. An answer that is
// broken off has an error.
func (h *house) read(token, item string) (status int, body string, err error) {
	req, err := http.NewRequest(http.MethodGet, "http://"+h.addr+"/u/crm/v1/items/"+item, nil)
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res.StatusCode, string(b), err
}

// Whoever is first gets what there is, and not a call more is made; the others
// hear of which budget, and that is on record.
func TestBudgetOfCalls(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		id := h.mandate("bot", map[string]any{"budgets": map[string]int{"calls": 20}})
		token := h.accessToken("")
		var mu sync.Mutex
		count := map[string]int{}
		var refused string
		var all sync.WaitGroup
		for range 64 {
			all.Go(func() {
				status, body, err := h.read(token, "7")
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err != nil:
					t.Error(err)
				case status == http.StatusOK:
					count["made"]++
				default:
					var p struct{ Code, Detail, Decision string }
					if err := json.Unmarshal([]byte(body), &p); err != nil || status != http.StatusForbidden || p.Code != "kernel_budget" || !strings.Contains(p.Detail, "bot-reads") {
						t.Errorf("a call too many: %d %s", status, body)
					}
					count["refused"]++
					refused = p.Decision
				}
			})
		}
		all.Wait()
		if count["made"] != 20 || count["refused"] != 44 {
			t.Errorf("of 64 calls on a budget of 20, %v", count)
		}
		if s := h.spent(id); s.Calls != 20 {
			t.Errorf("taken are %d calls, want 20", s.Calls)
		}
		var e struct{ Outcome string }
		h.must(http.MethodGet, "/v1/events/"+refused, nil, &e)
		if e.Outcome != "refused" {
			t.Errorf("the refusal is on record as %q", e.Outcome)
		}
		// Another grant beside it is used when the one is empty.
		h.mandate("bot", map[string]any{"name": "once-more", "budgets": map[string]int{"calls": 1}})
		if status, body, err := h.read(token, "7"); err != nil || status != http.StatusOK {
			t.Errorf("on another grant: %d %s %v", status, body, err)
		}
		if status, _, _ := h.read(token, "7"); status != http.StatusForbidden {
			t.Errorf("when that is empty too: %d, want 403", status)
		}
	})
}

// What comes back is counted before the agent has it.
func TestBudgetsOfAnswers(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		token := h.accessToken("")
		id := h.mandate("bot", map[string]any{"budgets": map[string]int{"rows": 25}})
		for range 2 {
			if status, body, err := h.read(token, "rows-10"); err != nil || status != http.StatusOK || strings.Count(body, `"id"`) != 10 {
				t.Fatalf("ten rows: %d %s %v", status, body, err)
			}
		}
		if s := h.spent(id); s.Rows != 20 {
			t.Errorf("after twenty rows, taken are %d", s.Rows)
		}
		if _, body, err := h.read(token, "rows-10"); err == nil && !strings.Contains(body, "kernel_budget") || strings.Count(body, `"id"`) > 5 {
			t.Errorf("ten rows where five are left: %s %v", body, err)
		}
		if s := h.spent(id); s.Rows > 25 {
			t.Errorf("of 25 rows, %d are taken", s.Rows)
		}

		// An answer that says how long it is is refused as a whole.
		id = h.mandate("bot", map[string]any{"budgets": map[string]int{"bytes_out": 100}})
		if status, body, err := h.read(token, "rows-30"); err != nil || status != http.StatusForbidden || h.code([]byte(body)) != "kernel_budget" {
			t.Errorf("an answer beyond the budget: %d %s %v", status, body, err)
		}
		status, body, err := h.read(token, "7")
		if err != nil || status != http.StatusOK {
			t.Errorf("a short answer: %d %s %v", status, body, err)
		}
		h.until("what was reserved is given back", func() bool { return h.spent(id).BytesOut == int64(len(body)) })
		if s := h.spent(id); s.Calls != 2 {
			t.Errorf("taken are %d calls, want two: the upstream has answered both", s.Calls)
		}
		for left := 100 - len(body); left >= len(body); left -= len(body) {
			if status, _, err := h.read(token, "7"); err != nil || status != http.StatusOK {
				t.Errorf("with %d bytes left: %d %v", left, status, err)
			}
		}
		if status, body, _ := h.read(token, "7"); status != http.StatusForbidden {
			t.Errorf("with too little left: %d %s", status, body)
		}
		if s := h.spent(id); s.BytesOut > 100 {
			t.Errorf("of 100 bytes, %d are taken", s.BytesOut)
		}
	})
}

// A grant covers what it names: the values of the path's parameters, and its
// session.
func TestConfinedGrants(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		in, out := h.openSession(), h.openSession()
		h.mandate("bot", map[string]any{"parameters": map[string][]string{"id": {"7", "9"}}})
		token, other := h.accessToken(in), h.accessToken(out)
		for item, want := range map[string]string{"7": "", "9": "", "8": "outside_parameters", "70": "outside_parameters"} {
			status, body, err := h.read(token, item)
			if err != nil || (status == http.StatusOK) != (want == "") || want != "" && h.code([]byte(body)) != want {
				t.Errorf("item %s: %d %s %v, want %q", item, status, body, err, want)
			}
		}
		h.mandate("bot", map[string]any{"session": in})
		if status, body, err := h.read(token, "8"); err != nil || status != http.StatusOK {
			t.Errorf("in the session of the grant: %d %s %v", status, body, err)
		}
		if status, body, _ := h.read(other, "8"); status != http.StatusForbidden || h.code([]byte(body)) != "not_granted" {
			t.Errorf("in another session: %d %s", status, body)
		}
		// With its session the grant is over.
		id := h.mandate("bot", map[string]any{"name": "of-the-session", "session": in})
		h.must(http.MethodPost, "/v1/sessions/"+in+"/end", map[string]string{"cause": "done"}, nil)
		var g struct{ State string }
		h.must(http.MethodGet, "/v1/grants/"+id, nil, &g)
		if g.State != "ended" {
			t.Errorf("the grant of a session that has ended is %s", g.State)
		}
		// And an eligible one is none.
		h.mandate("bot", map[string]any{"kind": "eligible"})
		if status, body, _ := h.read(other, "7"); status != http.StatusForbidden || h.code([]byte(body)) != "not_granted" {
			t.Errorf("on an eligible grant: %d %s", status, body)
		}
	})
}

// Budgets are divided along a delegation and never multiplied, and when the first
// agent may do nothing any more, nobody does it by way of it.
func TestBudgetsAreHandedOn(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		p := h.helper()
		id := h.mandate("bot", map[string]any{"budgets": map[string]int{"calls": 5, "fan_out": 1}})
		its := h.mandate("helper", map[string]any{"budgets": map[string]int{"calls": 100}})
		token := h.accessToken(h.openSession())
		handed := p.exchange(token)
		for i, who := range []string{token, handed, handed, token} {
			if status, body, err := h.read(who, "7"); err != nil || status != http.StatusOK {
				t.Fatalf("call %d: %d %s %v", i, status, body, err)
			}
		}
		if s := h.spent(id); s.Calls != 4 || s.FanOut != 1 {
			t.Errorf("of the bot's budget %+v is taken, want 4 calls and one helper", s)
		}
		if s := h.spent(its); s.Calls != 2 {
			t.Errorf("of the helper's own budget %+v is taken, want 2 calls", s)
		}
		// In another session it is another piece of work.
		second := p.exchange(h.accessToken(h.openSession()))
		if status, body, _ := h.read(second, "7"); status != http.StatusForbidden || h.code([]byte(body)) != "kernel_budget" || !strings.Contains(body, "handed on") {
			t.Errorf("a second helper where one is allowed: %d %s", status, body)
		}
		for i, who := range []string{handed, handed, token} {
			status, body, _ := h.read(who, "7")
			if want := map[bool]int{true: http.StatusOK, false: http.StatusForbidden}[i == 0]; status != want {
				t.Errorf("call %d: %d %s, want %d", 5+i, status, body, want)
			}
		}
		if s := h.spent(id); s.Calls != 5 {
			t.Errorf("of five calls, %d are taken", s.Calls)
		}
		h.mandate("bot", nil)
		if status, body, err := h.read(handed, "7"); err != nil || status != http.StatusOK {
			t.Errorf("on a grant without budgets: %d %s %v", status, body, err)
		}
		h.must(http.MethodPost, "/v1/grants/bot-reads/end", map[string]string{"reason": "no more"}, nil)
		if status, body, _ := h.read(handed, "7"); status != http.StatusForbidden || h.code([]byte(body)) != "not_granted" {
			t.Errorf("when the bot's grant has ended: %d %s", status, body)
		}
	})
}

// A price is taken of the budget of money, for each call.
func TestBudgetOfMoney(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		var crm map[string]any
		h.must(http.MethodGet, "/v1/resources/crm", nil, &crm)
		for _, action := range crm["actions"].([]any) {
			action.(map[string]any)["price"] = 300_000
		}
		spec := map[string]any{}
		for _, name := range []string{"name", "type", "base_url", "hosts", "actions", "class", "allow_private", "slots", "destination"} {
			if v, ok := crm[name]; ok {
				spec[name] = v
			}
		}
		h.must(http.MethodPut, "/v1/resources/crm", spec, nil)
		id := h.mandate("bot", map[string]any{"budgets": map[string]int{"money": 1_000_000}})
		token := h.accessToken("")
		for i := range 4 {
			status, body, err := h.read(token, fmt.Sprint(i))
			if want := map[bool]int{true: http.StatusOK, false: http.StatusForbidden}[i < 3]; err != nil || status != want {
				t.Errorf("call %d at a third of the budget: %d %s %v, want %d", i, status, body, err, want)
			}
		}
		if s := h.spent(id); s.Money != 900_000 {
			t.Errorf("taken are %d millionths, want 900000", s.Money)
		}
	})
}

// Who hands a token on gives a part with it: what is done of the task is counted
// for the token and for all that is made of it together, however often.
func TestBudgetOfATaskIsHandedOn(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		p := h.helper()
		h.must(http.MethodPost, "/v1/apply", map[string]any{"files": []map[string]string{{"path": "bot.yaml", "text": `
apiVersion: estover.dev/v1
kind: Agent
metadata: {name: bot}
spec: {blueprint: support, sponsor: alice, purposes: [support], clearance: confidential, client: {authorization_details_types: [estover_task]}}
`}}, "set": "details"}, nil)
		h.mandate("bot", nil)
		ask := func(calls int) string {
			t.Helper()
			task := fmt.Sprintf(`[{"type":"estover_task","locations":[%q],"actions":["item.read"],"calls":%d}]`, h.upstream.URL, calls)
			res, err := http.PostForm("http://"+h.addr+"/oauth/token", url.Values{
				"grant_type": {"client_credentials"}, "client_id": {h.agent}, "client_secret": {h.secret}, "resource": {h.upstream.URL}, "authorization_details": {task},
			})
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			var answer struct {
				Token string `json:"access_token"`
				Error string `json:"error_description"`
			}
			if err := json.NewDecoder(res.Body).Decode(&answer); err != nil || answer.Token == "" {
				t.Fatalf("no token for a task: %v %s", err, answer.Error)
			}
			return answer.Token
		}
		whole := ask(5)
		one, two := p.exchange(whole), p.exchange(whole)
		got := ""
		for _, who := range []string{one, two, whole, one, two, one, two, whole} {
			status, body, err := h.read(who, "7")
			switch {
			case err == nil && status == http.StatusOK:
				got += "+"
			case status == http.StatusForbidden && h.code([]byte(body)) == "kernel_budget" && strings.Contains(body, "the task of the token"):
				got += "-"
			default:
				t.Errorf("a call of a task: %d %s %v", status, body, err)
			}
		}
		if got != "+++++---" {
			t.Errorf("of a task of five calls, handed on twice: %s", got)
		}
		// Another token is another task.
		if status, body, err := h.read(ask(1), "7"); err != nil || status != http.StatusOK {
			t.Errorf("with another token: %d %s %v", status, body, err)
		}
	})
}

// streamEnd reports when a stream has.
func streamEnd(stream io.Reader) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		_, _ = io.ReadAll(stream)
		close(done)
	}()
	return done
}

// What is under way on the last of a budget goes on, whatever else changes about
// the agent, and ends with its grant; what rests on another ends with that (M41).
func TestTheLastCallGoesOn(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		id := h.mandate("bot", map[string]any{"budgets": map[string]int{"calls": 1}})
		token := h.accessToken("")
		first := h.stream(token)
		defer first.Close()
		if s := h.spent(id); s.Calls != 1 {
			t.Fatalf("of the only call, %d are taken", s.Calls)
		}
		h.mandate("bot", map[string]any{"name": "another"})
		second := h.stream(token)
		defer second.Close()
		firstEnds, secondEnds := streamEnd(first), streamEnd(second)
		h.must(http.MethodPost, "/v1/grants/another/end", map[string]string{"reason": "no more"}, nil)
		h.ended("the stream whose grant has ended", secondEnds)
		select {
		case <-firstEnds:
			t.Error("a call that had taken the last of a budget was cut, since nothing is left of it")
		default:
		}
		h.mandate("bot", map[string]any{"parameters": map[string][]string{"id": {"7"}}})
		h.ended("the stream whose grant became narrower", firstEnds)
	})
}

// Work that was handed on ends when the first agent may not do it any more (M41).
func TestWhatIsHandedOnEndsWithTheFirstGrant(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		p := h.helper()
		h.mandate("bot", nil)
		stream := h.stream(p.exchange(h.accessToken(h.openSession())))
		defer stream.Close()
		done := streamEnd(stream)
		h.must(http.MethodPost, "/v1/grants/bot-reads/end", map[string]string{"reason": "no more"}, nil)
		h.ended("the helper's stream", done)
	})
}

func (h *house) ended(what string, done <-chan struct{}) {
	h.t.Helper()
	at := time.Now()
	select {
	case <-done:
		if took := time.Since(at); took > soon {
			h.t.Errorf("%s was cut after %s", what, took)
		}
	case <-time.After(30 * time.Second):
		h.t.Fatalf("%s goes on", what)
	}
}

// A grant of a session covers the sessions within it, and what is done there draws
// on the same budgets; those sessions count among those who work on it at once.
func TestGrantsReachSessionsWithin(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		outer := h.openSession()
		inner := func() string {
			t.Helper()
			var opened struct{ Session struct{ ID string } }
			h.must(http.MethodPost, "/v1/sessions", map[string]string{"agent": "bot", "purpose": "support", "parent": outer}, &opened)
			return opened.Session.ID
		}
		one, two := inner(), inner()
		tokens := map[string]string{}
		for _, s := range []string{outer, one, two} {
			tokens[s] = h.accessToken(s)
		}
		id := h.mandate("bot", map[string]any{"session": outer, "budgets": map[string]int{"calls": 4, "fan_out": 1}})
		for i, c := range []struct {
			session string
			want    string
		}{{outer, ""}, {one, ""}, {two, "kernel_budget"}, {one, ""}} {
			status, body, err := h.read(tokens[c.session], "7")
			if err != nil || (status == http.StatusOK) != (c.want == "") || c.want != "" && h.code([]byte(body)) != c.want {
				t.Errorf("call %d: %d %s %v, want %q", i, status, body, err, c.want)
			}
		}
		if s := h.spent(id); s.Calls != 3 || s.FanOut != 1 {
			t.Errorf("taken is %+v, want three calls by one session within", s)
		}
		// When that session has ended another takes its place.
		h.must(http.MethodPost, "/v1/sessions/"+one+"/end", map[string]string{"cause": "done"}, nil)
		if status, body, err := h.read(tokens[two], "7"); err != nil || status != http.StatusOK {
			t.Errorf("when the first has ended: %d %s %v", status, body, err)
		}
		if status, body, _ := h.read(tokens[outer], "7"); status != http.StatusForbidden || h.code([]byte(body)) != "kernel_budget" {
			t.Errorf("a fifth call: %d %s", status, body)
		}
	})
}
