// Package story is one agent's first task in seven beats, from its work to the
// evidence of it. Each beat is played against the real programs, by way of the
// real command line, and judges itself: it either returns what it saw, or says
// what did not hold. The demo tells the story and the end-to-end tests play it,
// so what one shows is what the other checks.
//
//	work ─▶ leak ─▶ overreach ─▶ elevate ─▶ lease ─▶ contain ─▶ evidence
//
// The beats are played in this order on one [Stage]: the sixth takes the agent
// out of service, and the seventh exports what the first one did. Where there is
// no PostgreSQL, the fifth is left out.
package story

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"estover.dev/attest"
	"estover.dev/demo/company"
	"estover.dev/demo/inspect"
	"estover.dev/internal/db/scratch"
)

// A Beat is one thing that happens, and the claim that it shows.
type Beat struct {
	Name, Claim string

	// Play plays the beat and returns what it saw, in a sentence. An error says
	// what did not hold.
	Play func(ctx context.Context) (saw string, err error)
}

// Beats is the story.
func (s *Stage) Beats() []Beat {
	beats := []Beat{
		{"work", "The agent does its task, and never holds the CRM's key.", s.work},
		{"leak", "A note in a record tells it to send the customers elsewhere: blocked.", s.leak},
		{"overreach", "It tries what is outside its grant, and outside its purpose: denied.", s.overreach},
		{"elevate", "It asks for more: policy lets it have one thing, two people another, and both are gone with the task.", s.elevate},
		{"lease", "It needs the database for a while: a user is made for the task, and is gone with it. A password dies when nobody uses it any more.", s.lease},
		{"contain", "Contain: its open stream ends, and its next call fails.", s.contain},
		{"evidence", "The evidence is verified offline, and one flipped byte makes it fail.", s.prove},
	}
	if !scratch.Available() {
		s.say("One beat is left out: for the database user that is made for a task, PostgreSQL has to be installed (Debian: apt-get install postgresql).")
		beats = slices.DeleteFunc(beats, func(b Beat) bool { return b.Name == "lease" })
	}
	return beats
}

// The exit codes that the beats look for.
const (
	agentRefused   = 3 // the sample agent: somebody said no
	estoverFailed  = 1 // estover: a verification found something wrong
	estoverRefused = 3 // estover: policy said no
)

var (
	waits    = regexp.MustCompile(`(?m)^pid (\d+) waits$`)
	echoed   = regexp.MustCompile(`the system answers "(.*)"`)
	ended    = regexp.MustCompile(`the stream (?:broke|ended) after (\d+) events.*\n(?:estover: .*\n)*→ .*\n(?:estover: .*\n)*← (.*)`)
	zero     = regexp.MustCompile(`Time to zero: (\S+)\. `)
	approved = regexp.MustCompile(`(?m)^PASS +approval .*$`)
	failed   = regexp.MustCompile(`(?m)^FAIL `)
	someText = []byte("Lindqvist") // the name of a customer, which the agent has read
)

func (s *Stage) work(ctx context.Context) (string, error) {
	s.say("support-bot is an ordinary program with an ordinary HTTP client. It is started under Estover, for the purpose that its work is to serve. Nobody gives it a key.")
	const transcript = "transcript.txt"
	p, err := s.start(ctx, "support", "-wait", "-transcript", transcript, "work")
	if err != nil {
		return "", err
	}
	defer p.stop()
	m, err := p.until(ctx, waits)
	p.show(s)
	if err != nil {
		return "", err
	}
	pid, err := strconv.Atoi(m[1])
	if err != nil {
		return "", err
	}
	s.say("It has done its work and waits, with everything that it read still in memory. From outside we look through all that it has for the CRM's key, as it is, in hex and in base64:")
	saw, err := s.search(pid, p.cmd.Process.Pid, transcript)
	if err != nil {
		return "", err
	}
	if m := echoed.FindStringSubmatch(p.printed.String()); m == nil || !strings.Contains(m[1], "****") {
		return "", errors.New("the CRM was asked for the credential that had arrived, and its answer does not show it masked")
	}
	calls := s.Company.Calls()
	if len(calls) == 0 || slices.ContainsFunc(calls, func(c company.Call) bool { return !c.Authorised }) {
		return "", fmt.Errorf("not every call reached the CRM with the key: %v", calls)
	}
	_ = p.stdin.Close() // it goes on when there is nothing more to read
	err = p.wait(ctx, 0)
	p.show(s)
	if err != nil {
		return "", err
	}
	if s.task, err = p.session(); err != nil {
		return "", err
	}
	s.say("And yet all of its %d calls reached the CRM with the right key: the gateway had put it in on the way out. When the CRM sent the key back, the gateway masked it. The recording says where a key was, and not which:", len(calls))
	return saw, s.replay(ctx)
}

// search looks for the key in a running agent, in its launcher, and in the
// agent's transcript of everything that it sent and received.
func (s *Stage) search(pid, launcher int, transcript string) (string, error) {
	agent, err := inspect.Process(pid, []byte(s.key))
	if err != nil {
		return "", fmt.Errorf("looking into the agent, which needs Linux and the right to trace one's own children: %w", err)
	}
	control, err := inspect.Process(pid, someText)
	if err != nil {
		return "", err
	}
	above, err := inspect.Process(launcher, []byte(s.key))
	if err != nil {
		return "", err
	}
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return "", err
	}
	traffic, err := s.read(transcript)
	if err != nil {
		return "", err
	}
	inTraffic := s.keyIn(traffic)
	verdict := map[bool]string{false: "not there", true: "FOUND"}
	variables := bytes.Count(env, []byte{0})
	s.show(fmt.Sprintf("its environment, %d variables             %s\nits command line                          %s\nits memory, %-6s                        %s    (a customer's name is)\nits traffic in clear, %-7s             %s\nits launcher, with memory of %-6s       %s",
		variables, verdict[agent.Environment], verdict[agent.Arguments], size(agent.Scanned), verdict[agent.Memory],
		size(int64(len(traffic))), verdict[inTraffic], size(above.Scanned), verdict[!above.Clean()]))
	switch {
	case !control.Memory:
		return "", errors.New("the search does not work: it does not find what the agent has read")
	case !bytes.Contains(traffic, someText):
		return "", errors.New("the transcript of the traffic lacks what the agent has read")
	case !agent.Clean():
		return "", fmt.Errorf("the agent holds the key: %+v", agent)
	case !above.Clean():
		return "", fmt.Errorf("the launcher holds the key: %+v", above)
	case inTraffic:
		return "", errors.New("the key went through the agent's traffic")
	}
	return fmt.Sprintf("The key was in none of %d variables, %s of memory and %s of traffic.", variables, size(agent.Scanned), size(int64(len(traffic)))), nil
}

// keyIn reports whether the company's key is in there, in any usual form.
func (s *Stage) keyIn(b []byte) bool {
	return slices.ContainsFunc(inspect.Forms([]byte(s.key)), func(form []byte) bool { return bytes.Contains(b, form) })
}

func size(n int64) string {
	if n < 1<<20 {
		return fmt.Sprintf("%d KB", (n+512)/1000)
	}
	return fmt.Sprintf("%d MB", (n+500_000)/1_000_000)
}

// replay shows the recording of the last call of the work: the one that asked
// which credential had arrived.
func (s *Stage) replay(ctx context.Context) error {
	s.tell(Command, "estover session replay %s", s.task)
	text, err := s.estover(ctx, 0, "session", "replay", s.task)
	if err != nil {
		return err
	}
	_, last, found := strings.Cut(text, "GET /v1/echo")
	if !found {
		return errors.New("the recording lacks a call")
	}
	var shown []string
	for _, line := range strings.Split("    GET /v1/echo"+last, "\n") {
		if strings.Contains(line, "HTTP/1.1") || strings.Contains(strings.ToLower(line), "authorization") {
			shown = append(shown, strings.TrimPrefix(line, "    "))
		}
	}
	s.show("…\n" + strings.Join(shown, "\n"))
	switch {
	case s.keyIn([]byte(text)):
		return errors.New("the recording holds the key")
	case !strings.Contains(last, "Authorization: Bearer ‹secret "):
		return errors.New("the recording does not say where the key was put in")
	case !strings.Contains(last, "Echo-Authorization: Bearer ****"):
		return errors.New("the recording does not show the key masked on its way back")
	}
	return nil
}

func (s *Stage) leak(ctx context.Context) (string, error) {
	s.say("One of the customers' records has a note that was written for machines. The agent believes what it reads.")
	p, err := s.run(ctx, "support", "leak")
	if err != nil {
		return "", err
	}
	if got := s.Collector.Arrivals(); len(got) > 0 {
		return "", fmt.Errorf("the collector has got %d requests, the first with %d bytes", len(got), len(got[0].Body))
	}
	if err := p.wait(ctx, agentRefused); err != nil {
		return "", err
	}
	refusal, err := s.refusal(ctx, p, "tenant.access.unknown_destination")
	if err != nil {
		return "", err
	}
	if refusal.Host != strings.TrimPrefix(s.Away.URL, "https://") {
		return "", fmt.Errorf("what was refused is a call to %q", refusal.Host)
	}
	if !strings.Contains(p.printed.String(), refusal.Sentence) {
		return "", errors.New("the agent was not told why")
	}
	return "The collector got 0 requests. The agent was told: " + refusal.Sentence, nil
}

// A refusal is a call that was refused, as the log has it.
type refusal struct {
	Event, Host, Rule, Sentence string
}

// refusal finds the one call of an agent that was refused, tells why, and
// makes sure that it was by this rule.
func (s *Stage) refusal(ctx context.Context, p *process, rule string) (refusal, error) {
	var r refusal
	session, err := p.session()
	if err != nil {
		return r, err
	}
	var events []struct {
		ID     string `json:"id"`
		Detail struct {
			Host string `json:"host"`
		} `json:"detail"`
	}
	if err := s.query(ctx, &events, "event", "list", "--session", session, "--outcome", "refused"); err != nil {
		return r, err
	}
	if len(events) == 0 {
		return r, errors.New("the log has no refusal of the session")
	}
	for _, e := range events { // a call that is just being refused is asked about again when something changes
		if e.Detail.Host != events[0].Detail.Host {
			return r, fmt.Errorf("the log has refusals of calls to %q and %q in the session, not of one call", events[0].Detail.Host, e.Detail.Host)
		}
		if strings.Contains(p.printed.String(), e.ID) {
			r.Event, r.Host = e.ID, e.Detail.Host
		}
	}
	if r.Event == "" {
		return r, fmt.Errorf("the agent was not given the decision's id %s", events[0].ID)
	}
	var why struct {
		Explanation struct {
			Rules []struct{ Package, Code, Sentence string }
		} `json:"explanation"`
	}
	if err := s.query(ctx, &why, "why", r.Event); err != nil {
		return r, err
	}
	if rules := why.Explanation.Rules; len(rules) > 0 {
		r.Rule, r.Sentence = rules[0].Package+"."+rules[0].Code, rules[0].Sentence
	}
	text, err := s.estover(ctx, 0, "why", r.Event)
	if err != nil {
		return r, err
	}
	s.tell(Command, "estover why %s", r.Event)
	s.show(first(text))
	if r.Rule != rule || r.Sentence == "" {
		return r, fmt.Errorf("it was refused by the rule %q with the sentence %q, not by %s", r.Rule, r.Sentence, rule)
	}
	return r, nil
}

// first is the part of an explanation that says which call it was, and the rule
// that comes first.
func first(explanation string) string {
	var lines []string
	for line := range strings.Lines(explanation) {
		word, value, _ := strings.Cut(line, ":")
		if slices.Contains([]string{"Decision", "Call", "Rule", "Says", "Next", "Where"}, word) {
			lines = append(lines, fmt.Sprintf("%-10s%s", word+":", strings.TrimSpace(value)))
		}
		if word == "Where" {
			break
		}
	}
	return strings.Join(lines, "\n")
}

func (s *Stage) overreach(ctx context.Context) (string, error) {
	s.say("The agent may list and read customers and add notes. Its grant says nothing of deleting them.")
	before := len(s.Company.Calls())
	p, err := s.run(ctx, "support", "overreach")
	if err != nil {
		return "", err
	}
	action, err := s.denied(ctx, p, before, "estover.base.not_granted")
	if err != nil {
		return "", err
	}
	s.say("Somebody starts it for advertising. That is a purpose that it has declared, but the grant was given for support.")
	p, err = s.run(ctx, "advertising", "wrong-purpose")
	if err != nil {
		return "", err
	}
	purpose, err := s.denied(ctx, p, before, "estover.base.purpose_mismatch")
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("Neither call reached the CRM. The rules were %s and %s.", action.Rule, purpose.Rule), nil
}

// denied makes sure that an agent was denied by a rule, and that the company
// has not heard of it.
func (s *Stage) denied(ctx context.Context, p *process, calls int, rule string) (refusal, error) {
	if now := s.Company.Calls(); len(now) != calls {
		return refusal{}, fmt.Errorf("it reached the CRM: %v", now[calls:])
	}
	if err := p.wait(ctx, agentRefused); err != nil {
		return refusal{}, err
	}
	return s.refusal(ctx, p, rule)
}

func (s *Stage) contain(ctx context.Context) (string, error) {
	s.say("The agent watches the CRM's events, a stream that does not end by itself.")
	p, err := s.start(ctx, "support", "stream")
	if err != nil {
		return "", err
	}
	defer p.stop()
	_, err = p.until(ctx, regexp.MustCompile(`event 3: .*\n`))
	p.show(s)
	if err != nil {
		return "", err
	}
	if n := s.Company.Streams(); n != 1 {
		return "", fmt.Errorf("%d streams are open at the CRM, not one", n)
	}
	s.say("An operator has seen enough of it:")
	answer, err := s.told(ctx, 0, "contain", "support-bot", "--reason", "sends customers to strangers", "--certificate", "contained.receipt")
	if err != nil {
		return "", err
	}
	m := zero.FindStringSubmatch(answer)
	if m == nil {
		return "", errors.New("the time to zero is not printed")
	}
	took, err := time.ParseDuration(m[1])
	if err != nil || took <= 0 {
		return "", fmt.Errorf("the time to zero is %q", m[1])
	}
	s.say("Meanwhile, where the agent runs:")
	err = p.wait(ctx, agentRefused)
	p.show(s)
	if err != nil {
		return "", err
	}
	end := ended.FindStringSubmatch(p.printed.String())
	if end == nil {
		return "", errors.New("the stream did not end before the next call failed")
	}
	if err := s.quiet(ctx); err != nil {
		return "", err
	}
	s.say("It does not get up again either, until two people lift the hold:")
	calls := len(s.Company.Calls())
	again, err := s.run(ctx, "support", "work")
	if err != nil {
		return "", err
	}
	if err := again.wait(ctx, estoverRefused); err != nil {
		return "", err
	}
	if !strings.Contains(again.printed.String(), "quarantined") {
		return "", errors.New("the launcher does not say that the agent is quarantined")
	}
	if now := s.Company.Calls(); len(now) != calls {
		return "", fmt.Errorf("a contained agent reached the CRM: %v", now[calls:])
	}
	return fmt.Sprintf("The stream ended after event %s and the next call failed. Time to zero: %s.", end[1], took), nil
}

// quiet waits until no stream is open at the company.
func (s *Stage) quiet(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for s.Company.Streams() > 0 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.New("a stream is still open at the CRM")
		}
	}
	return nil
}

func (s *Stage) prove(ctx context.Context) (string, error) {
	if s.task == "" {
		return "", errors.New("there is no session to export: the first beat did not hold")
	}
	s.say("An auditor wants to see what the agent did in its first task. They get a file, and they have the keys that count since before it all began (trust.policy).")
	if _, err := s.told(ctx, 0, "evidence", "export", s.task, "--disclose", "--file", "session.zip"); err != nil {
		return "", err
	}
	if s.elevated != "" {
		if _, err := s.estover(ctx, 0, "evidence", "export", s.elevated, "--disclose", "--file", "elevated.zip"); err != nil {
			return "", err
		}
	}
	s.say("To be sure that nobody is asked, the server is halted while the file is verified.")
	if err := s.server.Process.Signal(syscall.SIGSTOP); err != nil {
		return "", err
	}
	defer func() { _ = s.server.Process.Signal(syscall.SIGCONT) }()
	report, err := s.told(ctx, 0, "verify", "session.zip", "--trust", "trust.policy")
	if err != nil {
		return "", err
	}
	if failed.MatchString(report) || !strings.Contains(report, "PASS") {
		return "", errors.New("the report is not one of success")
	}
	if _, err := s.estover(ctx, 0, "verify", "contained.receipt", "--trust", "trust.policy"); err != nil {
		return "", fmt.Errorf("the certificate of the containment does not verify: %w", err)
	}
	if s.elevated != "" {
		s.say("So is the file of the task for which it was let do more. The signatures of bob and carol are in it:")
		report, err := s.estover(ctx, 0, "verify", "elevated.zip", "--trust", "trust.policy")
		if err != nil {
			return "", err
		}
		s.tell(Command, "estover verify elevated.zip --trust trust.policy | grep approval")
		line := approved.FindString(report)
		s.show(line)
		if line == "" {
			return "", errors.New("the file of the task does not prove that it was approved")
		}
	}
	file, err := s.read("session.zip")
	if err != nil {
		return "", err
	}
	at := len(file) / 2
	file[at] ^= 1
	if err := os.WriteFile(filepath.Join(s.Dir, "changed.zip"), file, 0o600); err != nil {
		return "", err
	}
	s.say("The same file with one bit of one byte changed, number %d of %d:", at, len(file))
	if err := s.fails(ctx, "changed.zip"); err != nil {
		return "", err
	}
	file[at] ^= 1
	if file, err = forge(file); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(s.Dir, "forged.zip"), file, 0o600); err != nil {
		return "", err
	}
	s.say("And as somebody would do it who knows the format: one digit in one statement is another, so that the CRM seems to have refused a note, and all checksums are made to fit.")
	if err := s.fails(ctx, "forged.zip"); err != nil {
		return "", err
	}
	return "No step failed while the server was halted, for the session and for the certificate of the containment. Both changed files failed.", nil
}

// fails makes sure that a file does not verify.
func (s *Stage) fails(ctx context.Context, file string) error {
	report, err := s.told(ctx, estoverFailed, "verify", file, "--trust", "trust.policy")
	if err != nil {
		return err
	}
	if !failed.MatchString(report) {
		return fmt.Errorf("the report about %s has no step that failed", file)
	}
	return nil
}

// forge changes one byte of what is stated about a call, and writes the file of
// evidence anew.
func forge(file []byte) ([]byte, error) {
	x, err := attest.ParseExport(file)
	if err != nil {
		return nil, err
	}
	for i := range x.Receipts {
		envelope := &x.Receipts[i].Envelope
		statement, err := base64.StdEncoding.DecodeString(envelope.Payload)
		if err != nil {
			return nil, err
		}
		if forged := bytes.Replace(statement, []byte(`"status":201`), []byte(`"status":401`), 1); !bytes.Equal(forged, statement) {
			envelope.Payload = base64.StdEncoding.EncodeToString(forged)
			return x.Marshal()
		}
	}
	return nil, errors.New("the evidence lacks the note that the agent has made")
}
