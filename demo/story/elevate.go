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

var (
	waitsToBeLet = regexp.MustCompile(`(?m)I wait until somebody lets me\n`)
	letOnce      = regexp.MustCompile(`the team plan costs 29\.00\n(?s:.*)I wait until somebody lets me\n`)
)

// A request for access, as the command line tells of it.
type request struct {
	ID, State, Result string
	Rule              struct {
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
	s.say("A task may need more than an agent has. This one is asked for a price, and its grant says nothing of prices.")
	p, err := s.start(ctx, "support", "elevate")
	if err != nil {
		return "", err
	}
	defer p.stop()
	_, err = p.until(ctx, waitsToBeLet)
	p.show(s)
	if err != nil {
		return "", err
	}
	session, err := p.session()
	if err != nil {
		return "", err
	}
	s.say("The refusal says what to ask for. Prices are harmless to read, and for an hour and a declared purpose policy says yes to that by itself, at once:")
	prices, err := s.ask(ctx, "--session", session, "--resource", "crm", "--action", "price.read", "--reason", "A customer asks for a price")
	if err != nil {
		return "", err
	}
	if prices.State != "approved" {
		return "", fmt.Errorf("policy did not approve of reading prices: the request is %s", prices.State)
	}
	if _, err := p.stdin.Write([]byte("\n")); err != nil {
		return "", err
	}
	_, err = p.until(ctx, letOnce)
	p.show(s)
	if err != nil {
		return "", err
	}
	s.say("To delete a customer is another matter: it cannot be taken back, so two people decide, and sign what they decide. It is asked for this one customer and one call.")
	removal, err := s.ask(ctx, "--session", session, "--resource", "crm", "--action", "customer.delete", "--parameter", "id=cus_1003", "--budget", "calls=1", "--reason", "cus_1003 is a duplicate of cus_1011")
	if err != nil {
		return "", err
	}
	if removal.State != "pending" || removal.Rule.Quorum != 2 || !removal.Rule.Signed {
		return "", fmt.Errorf("to delete a customer is to be approved by two who sign, and the request is %+v", removal)
	}
	if err := s.decide(ctx, removal.ID, approvers); err != nil {
		return "", err
	}
	if _, err := p.stdin.Write([]byte("\n")); err != nil {
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
	again, err := s.start(ctx, "support", "elevate")
	if err != nil {
		return "", err
	}
	defer again.stop()
	_ = again.stdin.Close() // nobody lets it
	err = again.end(ctx)
	again.show(s)
	if err != nil {
		return "", err
	}
	if now := s.Company.Calls()[before:]; len(now) != len(want) {
		return "", fmt.Errorf("what it was let do outlives the task: %v", now[len(want):])
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

// ask asks for access for the agent.
func (s *Stage) ask(ctx context.Context, args ...string) (r request, err error) {
	args = append([]string{"access", "request", "--agent", "support-bot"}, args...)
	s.tell(Command, "estover %s", shell(args))
	if err := s.query(ctx, &r, args...); err != nil {
		return r, err
	}
	text, err := s.estover(ctx, 0, "access", "why", r.ID)
	s.show(text)
	return r, err
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
