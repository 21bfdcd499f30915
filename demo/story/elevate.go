package story

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"

	"estover.dev/demo/company"
	"estover.dev/demo/person"
)

var asked = regexp.MustCompile(`I have asked: (apr_[a-z0-9]+) is (\w+)\n`)

// A request for access, as the command line tells of it.
type request struct {
	State string
	Rule  struct {
		Quorum int
		Signed bool
	}
}

func (s *Stage) elevate(ctx context.Context) (string, error) {
	approvers, err := s.approvers(ctx, "bob", "carol")
	for _, p := range approvers {
		defer p.Leave()
	}
	if err != nil {
		return "", err
	}
	before := len(s.Company.Calls())
	s.say("A task may need more than an agent has. Its grant says nothing of prices, and nothing of deleting customers. Each refusal says how to ask for just this call, and that is what the agent does.")
	p, err := s.start(ctx, "support", "elevate")
	if err != nil {
		return "", err
	}
	defer p.stop()
	_, err = p.until(ctx, regexp.MustCompile(asked.String()+`(?s:.*)`+asked.String()))
	p.show(s)
	if err != nil {
		return "", err
	}
	session, err := p.session()
	if err != nil {
		return "", err
	}
	requests := asked.FindAllStringSubmatch(p.printed.String(), -1)
	if len(requests) != 2 || requests[0][2] != "approved" || requests[1][2] != "pending" {
		return "", fmt.Errorf("policy was to approve of the one at once, and not of the other: %q", requests)
	}
	s.say("Prices are harmless to read. For a declared purpose and an hour, policy said yes to that by itself:")
	if _, err := s.told(ctx, 0, "access", "why", requests[0][1]); err != nil {
		return "", err
	}
	s.say("To delete a customer is another matter: it cannot be taken back, so two people decide, and sign what they decide. It is asked for this one customer and one call.")
	if _, err := s.told(ctx, 0, "access", "why", requests[1][1]); err != nil {
		return "", err
	}
	if err := s.decide(ctx, requests[1][1], approvers); err != nil {
		return "", err
	}
	s.say("The agent goes on. It takes away the one customer, and tries another:")
	err = p.wait(ctx, agentRefused)
	p.show(s)
	if err != nil {
		return "", err
	}
	calls := s.Company.Calls()[before:]
	want := []company.Call{{Method: "GET", Path: "/v1/prices", Authorised: true}, {Method: "DELETE", Path: "/v1/customers/cus_1003", Authorised: true}}
	if !slices.Equal(calls, want) {
		return "", fmt.Errorf("the CRM was called with %v, not with %v", calls, want)
	}
	s.say("The task is over, and with it what it was let do:")
	again, err := s.run(ctx, "support", "overreach")
	if err != nil {
		return "", err
	}
	if _, err := s.denied(ctx, again, before+len(want), "estover.base.not_granted"); err != nil {
		return "", err
	}
	if err := s.gone(ctx, session); err != nil {
		return "", err
	}
	s.elevated = session
	return "Policy let it read prices, bob and carol let it delete one customer, once. With the session both grants ended.", nil
}

// approvers are people who accept their invitations, each with a browser and a
// passkey of their own.
func (s *Stage) approvers(ctx context.Context, names ...string) (all []*person.Person, err error) {
	ca, err := os.ReadFile(s.caFile())
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	for _, name := range names {
		var invitation struct{ Token string }
		if err := s.query(ctx, &invitation, "person", "invite", name); err != nil {
			return all, err
		}
		p, err := person.New(s.Addr, roots)
		if err != nil {
			return all, err
		}
		all = append(all, p)
		if err := p.Enrol(ctx, invitation.Token); err != nil {
			return all, fmt.Errorf("%s makes a passkey: %w", name, err)
		}
	}
	return all, nil
}

// decide lets people approve a request, each with their own passkey, and makes sure
// that one alone is not enough.
func (s *Stage) decide(ctx context.Context, id string, approvers []*person.Person) error {
	for i, p := range approvers {
		document, words, err := p.Read(ctx, id)
		if err != nil {
			return err
		}
		if i == 0 {
			s.say("Each of them opens the link and reads what they would sign, byte by byte, with eight words by which they know it again:")
			s.show(strings.TrimRight(document, "\n") + "\n\n" + words)
			if !strings.Contains(document, "cus_1003") || len(strings.Fields(words)) != 8 {
				return errors.New("the page does not show what is approved")
			}
			s.say("Their passkeys sign its digest. Here a program holds the passkeys of bob and carol in its memory.")
		}
		if s.Ask != nil && !s.Ask(fmt.Sprintf("You are approver %d of %d. Sign this?", i+1, len(approvers))) {
			return errors.New("you did not approve, so the agent may not")
		}
		if err := p.Sign(ctx, id); err != nil {
			return fmt.Errorf("approver %d: %w", i+1, err)
		}
		var r request
		if err := s.query(ctx, &r, "access", "show", id); err != nil {
			return err
		}
		if r.Rule.Quorum != len(approvers) || !r.Rule.Signed {
			return fmt.Errorf("the rule is not that %d sign: %+v", len(approvers), r.Rule)
		}
		if want := map[bool]string{true: "approved", false: "pending"}[i == len(approvers)-1]; r.State != want {
			return fmt.Errorf("after %d signatures the request is %s, not %s", i+1, r.State, want)
		}
	}
	_, err := s.told(ctx, 0, "access", "why", id)
	return err
}

// gone makes sure that no grant of a session is left.
func (s *Stage) gone(ctx context.Context, session string) error {
	var grants []struct{ ID, Session, State string }
	if err := s.query(ctx, &grants, "grant", "list", "--agent", "support-bot", "--all"); err != nil {
		return err
	}
	ended := 0
	for _, g := range grants {
		if g.Session != session {
			continue
		}
		if g.State != "ended" {
			return fmt.Errorf("the grant %s of the session is %s", g.ID, g.State)
		}
		ended++
	}
	if ended != 2 {
		return fmt.Errorf("%d grants of the session are on record, not two", ended)
	}
	s.tell(Command, "estover grant list --agent support-bot --all")
	text, err := s.estover(ctx, 0, "grant", "list", "--agent", "support-bot", "--all")
	s.show(text)
	return err
}
