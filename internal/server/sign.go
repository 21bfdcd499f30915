package server

import (
	"context"
	"encoding/json"
	"net/url"
	"slices"
	"time"

	"estover.dev"
	"estover.dev/attest"
	"estover.dev/internal/access"
	"estover.dev/internal/approval"
	"estover.dev/internal/approval/document"
	"estover.dev/internal/approve"
	"estover.dev/internal/db"
	"estover.dev/internal/directory"
	"estover.dev/internal/page"
)

// keyOf is the key of a person as signatures are checked with it. Passkeys belong
// to the issuer's host and sign for its origin alone.
func (s *Server) keyOf(k directory.ApproverKey) document.Key {
	out := document.Key{ID: k.ID, Method: k.Method, Public: k.Public}
	if k.Method == document.SSH {
		out.MustVerify = k.Verifies
		return out
	}
	if u, err := url.Parse(s.config.Issuer); err == nil {
		out.RelyingParty, out.Origin = u.Hostname(), u.Scheme+"://"+u.Host
	}
	return out
}

// signedBy checks a person's signature over a document that they gave at a time,
// and gives the key.
func (s *Server) signedBy(ctx context.Context, tx *db.Tx, who estover.Subject, at time.Time, text []byte, assertion json.RawMessage) (a document.Assertion, k document.Key, err error) {
	if a, err = document.Decode(assertion); err != nil {
		return a, k, err
	}
	key, err := s.facts.people.Approves(ctx, tx, who.ID(), a.Key, at)
	if err != nil {
		return a, k, err
	}
	k = s.keyOf(key)
	return a, k, document.Verify(text, &a, k)
}

// verifySigned checks the signature of whoever approves something now.
func (s *Server) verifySigned(ctx context.Context, caller estover.Caller, text []byte, assertion json.RawMessage) error {
	return s.db.View(ctx, caller.Tenant, func(tx *db.Tx) error {
		_, _, err := s.signedBy(ctx, tx, caller.Subject, tx.Now(), text, assertion)
		return err
	})
}

// errGrantAltered is returned for a grant that gives more than what was approved.
var errGrantAltered = &estover.Error{Kind: estover.Denied, Code: "grant_altered", Detail: "The grant says something else than what was approved, so it counts for nothing."}

// verifyGrant is asked when a grant that came of a request is loaded. The request
// must have been approved as its rows say, each signature must still verify, and
// the grant must say no more than the document.
func (s *Server) verifyGrant(ctx context.Context, tx *db.Tx, g access.Grant) error {
	r, err := s.requests.Proven(ctx, tx, g.Request)
	if err != nil {
		return err
	}
	for _, v := range r.Votes {
		if v.Assertion == nil {
			if r.Rule.Signed {
				return approval.ErrUnsigned
			}
			continue
		}
		if _, _, err := s.signedBy(ctx, tx, v.Approver, v.At, r.Document, v.Assertion); err != nil {
			return err
		}
	}
	return within(g, r)
}

// within says that a grant gives more than a request that was approved. One that
// was made of an eligible grant may give less than that.
func within(g access.Grant, r approval.Request) error {
	doc, err := document.Parse(r.Document)
	if err != nil {
		return err
	}
	switch {
	case r.Kind != approval.Access, g.Kind != access.Standing, g.Agent != r.Agent, g.Session != r.Session, !slices.Equal(g.Purposes, []string{r.Purpose}):
		return errGrantAltered
	case !slices.Contains(approval.Results(r.Result), g.ID):
		return errGrantAltered
	case g.ExpiresAt.IsZero() || g.ExpiresAt.After(r.Offer.Until) || g.ExpiresAt.After(doc.NotAfter):
		return errGrantAltered
	case g.Budgets != access.Budgets(r.Offer.Budgets):
		return errGrantAltered
	}
	for _, item := range r.Offer.Items {
		if item.Resource == g.Resource && item.Class.Covers(g.Class) && fewer(g.Actions, item.Actions) && narrower(g.Parameters, item.Parameters) {
			return nil
		}
	}
	return errGrantAltered
}

// fewer reports whether actions are among others.
func fewer(actions, among []string) bool {
	return len(actions) > 0 && (slices.Contains(among, access.All) || !slices.ContainsFunc(actions, func(a string) bool { return !slices.Contains(among, a) }))
}

// narrower reports whether parameters are confined to values that others have, at
// least.
func narrower(p, among map[string][]string) bool {
	for name, values := range among {
		if len(p[name]) == 0 || slices.ContainsFunc(p[name], func(v string) bool { return !slices.Contains(values, v) }) {
			return false
		}
	}
	return true
}

// An approved is what a receipt says of the request that a grant came of.
type approved struct {
	mode   string
	record []byte
}

// approvalOf is what was approved by a request and how, for receipts.
func (s *Server) approvalOf(ctx context.Context, tenant estover.TenantID, request string) (string, []byte, error) {
	a, err := s.records.Get(ctx, tenant, request)
	return a.mode, a.record, err
}

// loadApproved reads it: who has approved, and with which keys they have signed.
// It never changes once a request is approved.
func (s *Server) loadApproved(ctx context.Context, tx *db.Tx, request string) (approved, error) {
	r, err := s.requests.Proven(ctx, tx, request)
	if err != nil {
		return approved{}, err
	}
	if r.DecidedBy == approval.ByPolicy {
		return approved{mode: attest.ByPolicy}, nil
	}
	record := attest.Approval{Document: string(r.Document)}
	for _, v := range r.Votes {
		vote := attest.ApprovalVote{Approver: string(v.Approver), At: v.At.UTC()}
		if v.Assertion != nil {
			a, k, err := s.signedBy(ctx, tx, v.Approver, v.At, r.Document, v.Assertion)
			if err != nil {
				return approved{}, err
			}
			vote.Assertion, vote.Key = &a, &k
		}
		record.Votes = append(record.Votes, vote)
	}
	b, err := json.Marshal(record)
	return approved{attest.ByPeople, b}, err
}

// approvePages is the door at which people decide in a browser.
func (s *Server) approvePages() *approve.Door {
	f := &s.facts
	return approve.New(approve.Config{
		Approvals: s.requests, Pages: s.pages,
		Signing: func(r *page.Request, text []byte) (string, error) { return s.login.Signing(r, text) },
		Signed: func(r *page.Request, text []byte, answer string) (document.Assertion, error) {
			return s.login.Signed(r, text, answer)
		},
		Agent: func(ctx context.Context, tenant estover.TenantID, id string) (approve.Agent, error) {
			a, err := f.registry.Snapshot(ctx, tenant, id)
			if err != nil {
				return approve.Agent{}, err
			}
			sponsor, err := f.people.Name(ctx, tenant, a.Sponsor)
			return approve.Agent{Name: a.Name, Kind: a.Blueprint, Team: a.Team, Sponsor: sponsor}, err
		},
		Name: func(ctx context.Context, tenant estover.TenantID, who estover.Subject) (string, error) {
			switch who.Kind() {
			case estover.UserKind:
				return f.people.Name(ctx, tenant, who.ID())
			case estover.AgentKind:
				a, err := f.registry.Snapshot(ctx, tenant, who.ID())
				if estover.KindOf(err) == estover.NotFound && err != nil {
					return "", nil
				}
				if err != nil {
					return "", err
				}
				return a.Name, nil
			}
			return "", nil
		},
	})
}
