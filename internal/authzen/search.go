package authzen

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"slices"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"estover.dev"
	"estover.dev/internal/access"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// The bounds of a page of results.
const (
	usualPage  = 50
	maxPage    = 200
	maxScanned = 2000 // what one request looks at; what is left is the next page's
	scanned    = 200  // what is read at once
)

// A search is a question in which one entity is looked for (AuthZEN, section 8).
type search struct {
	question
	Page page `json:"page"`
}

// A page says where in the results somebody is (section 8.2.1).
type page struct {
	Token      string         `json:"token,omitzero"`
	Limit      *int64         `json:"limit,omitzero"`
	Properties jsontext.Value `json:"properties,omitzero"`
}

// Results are a page of what was found (section 8.3). The page stands first.
type results struct {
	Page    next  `json:"page"`
	Results []any `json:"results"`
}

type next struct {
	Token string `json:"next_token"` // "" on the last page (section 8.2.2)
	Count int    `json:"count"`
}

// ErrPage is returned for a token that is none, or that belongs to another
// request.
var ErrPage = &estover.Error{Kind: estover.Invalid, Code: "page_token_invalid", Detail: "This is not the token of the page before, or other members of the request have changed since. Begin again without it.", Field: "page.token"}

// A place is what the token of a page holds, sealed: where the results go on,
// and of what request.
type place struct {
	After  string `json:"after"`
	Limit  int64  `json:"limit"`
	Digest string `json:"digest"`
}

// pageSeal is what a token is sealed as.
const pageSeal = "authzen page"

// digest is what a request says without the place in its results, and who sends
// it: SHA-256 of the JSON in its canonical form (RFC 8785).
func (s *search) digest(what string, caller estover.Caller) (string, error) {
	b, err := json.Marshal(map[string]any{
		"what": what, "caller": string(caller.Subject), "subject": s.Subject, "action": s.Action, "resource": s.Resource,
		"context": s.Context, "properties": s.Page.Properties,
	})
	if err != nil {
		return "", err
	}
	v := jsontext.Value(b)
	if err := v.Canonicalize(); err != nil {
		return "", ErrQuestion.Because(err)
	}
	sum := sha256.Sum256(v)
	return hex.EncodeToString(sum[:]), nil
}

// from is where a request wants the results from, and how many.
func (d *Door) from(a *asking, s *search, what string) (p place, err error) {
	if p.Digest, err = s.digest(what, a.caller); err != nil {
		return p, err
	}
	p.Limit = usualPage
	if s.Page.Limit != nil {
		switch p.Limit = *s.Page.Limit; {
		case p.Limit < 0:
			return p, missing("page.limit", "This is a whole number, zero or more.")
		case p.Limit == 0:
			p.Limit = usualPage
		}
		p.Limit = min(p.Limit, maxPage)
	}
	if s.Page.Token == "" {
		return p, nil
	}
	sealed, err := base64.RawURLEncoding.Strict().DecodeString(s.Page.Token)
	if err != nil {
		return p, ErrPage
	}
	plain, err := d.Open(a.tenant, pageSeal, sealed)
	if err != nil {
		return p, ErrPage.Because(err)
	}
	var was place
	if err := json.Unmarshal(plain, &was); err != nil {
		return p, ErrPage.Because(err)
	}
	// All is as it was in the request before, the limit too where it is said
	// again (section 8.2).
	if was.Digest != p.Digest || s.Page.Limit != nil && was.Limit != p.Limit {
		return p, ErrPage
	}
	return was, nil
}

// token is the place at which the next page begins.
func (d *Door) token(tenant estover.TenantID, p place) (string, error) {
	plain, err := json.Marshal(p)
	if err != nil {
		return "", err
	}
	sealed, err := d.Seal(tenant, pageSeal, plain)
	return base64.RawURLEncoding.EncodeToString(sealed), err
}

// A candidate is what might be a result: the question that would ask about it,
// and how it is written.
type candidate struct {
	key    string // by which candidates are in order
	ask    question
	entity map[string]any
}

// A source gives the candidates behind a key, in order, and says whether there
// may be more.
type source func(ctx context.Context, after string) (some []candidate, more bool, err error)

// look answers a search: the candidates for whom an evaluation would be allowed
// at this moment (section 8.1). The whole search is one event.
func (d *Door) look(a *asking, s *search, f *found, what string, candidates source) (any, error) {
	at, err := d.from(a, s, what)
	if err != nil {
		return nil, err
	}
	detail := map[string]any{"search": what}
	op := d.about(&s.question, f, detail)
	admitted, err := d.Guard.Admit(a.Context(), a.caller, op)
	if err != nil {
		return nil, err
	}
	out := results{Results: []any{}}
	looked, more := 0, true
	for more && looked < maxScanned && int64(len(out.Results)) < at.Limit {
		var some []candidate
		if some, more, err = candidates(a.Context(), at.After); err != nil {
			return nil, err
		}
		for i, c := range some {
			entity, err := d.result(a, &c)
			if err != nil {
				return nil, err
			}
			at.After, looked = c.key, looked+1
			if entity != nil {
				out.Results = append(out.Results, entity)
			}
			if int64(len(out.Results)) == at.Limit {
				more = more || i+1 < len(some)
				break
			}
		}
	}
	if more {
		if out.Page.Token, err = d.token(a.tenant, at); err != nil {
			return nil, err
		}
	}
	out.Page.Count = len(out.Results)
	detail["found"] = out.Page.Count
	return out, d.Guard.Record(a.Context(), a.caller, op, admitted, guard.Hot{})
}

// result is a candidate as a result, or nil if it is none. Its obligations stand
// with it, and where the PEP cannot carry them out it alone is left out
// (Profile for Obligations, section 4.3).
func (d *Door) result(a *asking, c *candidate) (map[string]any, error) {
	f, err := d.find(a.Context(), a, &c.ask)
	if err != nil {
		return nil, err
	}
	answer, owed, err := d.decide(a.Context(), a, &c.ask, &f)
	if err != nil || !answer.Allow {
		return nil, err
	}
	if len(owed) > 0 {
		c.entity["obligations"] = owed
	}
	return c.entity, nil
}

// nothing is a source without candidates: of a type that nobody knows (section
// 8.3).
func nothing(context.Context, string) ([]candidate, bool, error) { return nil, false, nil }

// subjects answers who may do something (section 8.4): of those who hold a grant
// on the resource, since nobody else may.
func (d *Door) subjects(a *asking) (any, error) {
	var s search
	if err := into(a.body, &s); err != nil {
		return nil, err
	}
	if err := first(errors.Join(s.Subject.check(true), s.Action.check(), s.Resource.check(false), object("context", s.Context))); err != nil {
		return nil, err
	}
	s.Subject.ID = "" // it is ignored
	f, err := d.find(a.Context(), a, &s.question)
	if err != nil {
		return nil, err
	}
	if s.Subject.Type != agentType || f.resource == nil || len(f.deeds) == 0 {
		return d.look(a, &s, &f, "subject", nothing)
	}
	return d.look(a, &s, &f, "subject", func(ctx context.Context, after string) (some []candidate, more bool, err error) {
		var holders []string
		err = d.Guard.DB().View(ctx, a.tenant, func(tx *db.Tx) (err error) {
			holders, err = access.Holders(ctx, tx, f.resource.ID, after, scanned)
			return err
		})
		for _, id := range holders {
			ask := s.question
			ask.Subject = &subject{Type: agentType, ID: id, Properties: s.Subject.Properties}
			some = append(some, candidate{id, ask, map[string]any{"type": agentType, "id": id}})
		}
		return some, len(holders) == scanned, err
	})
}

// resources answers on what somebody may do something (section 8.5): of what the
// agent is granted anything on.
func (d *Door) resources(a *asking) (any, error) {
	var s search
	if err := into(a.body, &s); err != nil {
		return nil, err
	}
	if err := first(errors.Join(s.Subject.check(false), s.Action.check(), s.Resource.check(true), object("context", s.Context))); err != nil {
		return nil, err
	}
	s.Resource.ID = "" // it is ignored
	f, err := d.find(a.Context(), a, &s.question)
	if err != nil {
		return nil, err
	}
	if s.Subject.Type != agentType {
		return d.look(a, &s, &f, "resource", nothing)
	}
	return d.look(a, &s, &f, "resource", func(ctx context.Context, after string) (some []candidate, more bool, err error) {
		grants, err := d.Grants.Grants(ctx, a.tenant, f.agent)
		if err != nil {
			return nil, false, err
		}
		var ids []string
		for i := range grants {
			if id := grants[i].Resource; id > after {
				ids = append(ids, id)
			}
		}
		slices.Sort(ids)
		for _, id := range slices.Compact(ids) {
			ask := s.question
			ask.Resource = &thing{Type: s.Resource.Type, ID: id, Properties: s.Resource.Properties}
			some = append(some, candidate{id, ask, map[string]any{"type": s.Resource.Type, "id": id}})
		}
		return some, false, nil
	})
}

// actions answers what somebody may do on something (section 8.6): of the
// actions that the resource has.
func (d *Door) actions(a *asking) (any, error) {
	var s search
	if err := into(a.body, &s); err != nil {
		return nil, err
	}
	s.Action = nil // there is none in such a request
	if err := first(errors.Join(s.Subject.check(false), s.Resource.check(false), object("context", s.Context))); err != nil {
		return nil, err
	}
	f, err := d.find(a.Context(), a, &s.question)
	if err != nil {
		return nil, err
	}
	if s.Subject.Type != agentType || f.resource == nil {
		return d.look(a, &s, &f, "action", nothing)
	}
	return d.look(a, &s, &f, "action", func(_ context.Context, after string) (some []candidate, more bool, err error) {
		var names []string
		for _, one := range f.resource.Actions {
			if one.Name > after {
				names = append(names, one.Name)
			}
		}
		slices.Sort(names)
		for _, name := range slices.Compact(names) {
			ask := s.question
			ask.Action = &deed{Name: name}
			some = append(some, candidate{name, ask, map[string]any{"name": name}})
		}
		return some, false, nil
	})
}
