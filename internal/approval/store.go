package approval

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
)

// A spec is what never changes of a request, and that no statement looks into.
type spec struct {
	Chain     []estover.Subject `json:"chain,omitempty"`
	OpenedBy  estover.Subject   `json:"session_opened_by,omitempty"`
	AgentName string            `json:"agent_name,omitempty"`
	Purpose   string            `json:"purpose,omitempty"`
	Items     []Item            `json:"items,omitempty"`
	Seconds   int64             `json:"for_seconds,omitempty"`
	Budgets   Budgets           `json:"budgets,omitzero"`
	Target    string            `json:"target,omitempty"`
	Arguments map[string]string `json:"arguments,omitempty"`
	Reason    string            `json:"reason"`
	Context   map[string]string `json:"context,omitempty"`
	Rule      Rule              `json:"rule"`
	Policy    Verdict           `json:"policy"`
	Nonce     string            `json:"nonce"`
}

const columns = `id, kind, state, requester, agent_id, session_id, spec, offer, round, document, result, note,
	created_at, expires_at, escalate_at, escalated_at, lapsed_at, decided_at, decided_by, mac`

func scan(tx *db.Tx, columns func(...any) error) (r Request, err error) {
	var s spec
	var text, offer string
	err = columns(&r.ID, &r.Kind, &r.State, &r.Requester, &r.Agent, &r.Session, &text, &offer, &r.Round, &r.Document, &r.Result, &r.Note,
		&r.CreatedAt, &r.ExpiresAt, &r.escalateAt, &r.EscalatedAt, &r.lapsedAt, &r.DecidedAt, &r.DecidedBy, &r.row.mac)
	if errors.Is(err, db.ErrNoRows) {
		return r, ErrNotFound
	}
	if err == nil {
		err = json.Unmarshal([]byte(text), &s)
	}
	if err == nil {
		err = json.Unmarshal([]byte(offer), &r.Offer)
	}
	r.Chain, r.OpenedBy, r.AgentName, r.Purpose, r.Items, r.Seconds, r.Budgets = s.Chain, s.OpenedBy, s.AgentName, s.Purpose, s.Items, s.Seconds, s.Budgets
	r.Target, r.Arguments, r.Reason, r.Context = s.Target, s.Arguments, s.Reason, s.Context
	r.Rule, r.Policy, r.nonce = s.Rule, s.Policy, s.Nonce
	r.row.state, r.row.spec, r.row.offer = r.State, text, offer
	r.State = r.StateAt(tx.Now())
	// That is not under the MAC, but the earliest time for it is.
	if first := r.CreatedAt.Add(time.Duration(r.Rule.EscalateAfter) * time.Second); r.EscalatedAt.Before(first) || r.EscalatedAt.After(tx.Now()) {
		r.EscalatedAt = time.Time{}
	}
	return r, err
}

// requests are those that a statement answers, without their votes.
func requests(ctx context.Context, tx *db.Tx, query string, args ...any) ([]Request, error) {
	return db.All(ctx, tx, func(columns func(...any) error) (Request, error) { return scan(tx, columns) }, query, args...)
}

const byID = "select " + columns + " from access_request where tenant_id = $1 and id = $2"

// find reads a request with its votes.
func find(ctx context.Context, tx *db.Tx, id string) (Request, error) {
	return withVotes(ctx, tx, byID, id)
}

// lock is find, and nobody else changes the row until the transaction ends.
func lock(ctx context.Context, tx *db.Tx, id string) (Request, error) {
	return withVotes(ctx, tx, byID+tx.ForUpdate(), id)
}

func withVotes(ctx context.Context, tx *db.Tx, query, id string) (Request, error) {
	r, err := scan(tx, tx.QueryRow(ctx, query, tx.Tenant(), id).Scan)
	if err != nil {
		return r, err
	}
	r.Votes, err = votes(ctx, tx, id)
	return r, err
}

// open is the condition of what waits, as far as the rows know.
const open = "state = 'pending' and lapsed_at is null"

// waiting is what a [guard.Cache] of the kind [Waiting] calls: what waits for a
// decision about an agent. What has expired since it was loaded may be among it.
func waiting(ctx context.Context, tx *db.Tx, agent string) ([]Request, error) {
	return requests(ctx, tx, "select "+columns+" from access_request where tenant_id = $1 and agent_id = $2 and "+open+
		" order by created_at, id limit 500", tx.Tenant(), agent)
}

// alike is the request that waits and asks for the same.
func alike(ctx context.Context, tx *db.Tx, likeness string) (Request, error) {
	var id string
	err := tx.QueryRow(ctx, "select id from access_request where tenant_id = $1 and likeness = $2 and "+open, tx.Tenant(), likeness).Scan(&id)
	if errors.Is(err, db.ErrNoRows) {
		return Request{}, ErrNotFound
	}
	if err != nil {
		return Request{}, err
	}
	return lock(ctx, tx, id)
}

// count is how many requests of an agent wait, or of a person for none.
func count(ctx context.Context, tx *db.Tx, agent string, requester estover.Subject) (n int64, err error) {
	err = tx.QueryRow(ctx, "select count(*) from access_request where tenant_id = $1 and agent_id = $2 and ($2 <> '' or requester = $3) and "+open+
		" and expires_at > $4", tx.Tenant(), agent, requester, tx.Now()).Scan(&n)
	return n, err
}

// insert adds a request, unless another that asks for the same was added
// meanwhile.
func (a *Approvals) insert(ctx context.Context, tx *db.Tx, r Request, likeness string) error {
	s, err := specOf(&r)
	if err != nil {
		return err
	}
	offer, err := json.Marshal(r.Offer)
	if err != nil {
		return err
	}
	n, err := tx.Exec(ctx, `insert into access_request (tenant_id, id, kind, state, requester, agent_id, session_id, likeness, spec, offer, round,
			document, result, note, created_at, expires_at, escalate_at, decided_at, decided_by, mac)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20) on conflict do nothing`,
		tx.Tenant(), r.ID, r.Kind, r.State, r.Requester, r.Agent, r.Session, likeness, s, string(offer), r.Round,
		bytesOf(r.Document), r.Result, r.Note, r.CreatedAt, r.ExpiresAt, r.escalateAt, r.DecidedAt, r.DecidedBy, a.sealed(tx.Tenant(), &r, r.State, s, string(offer)))
	if err == nil && n == 0 {
		return db.ErrStale
	}
	return err
}

// specOf is the JSON of what never changes of a request.
func specOf(r *Request) (string, error) {
	b, err := json.Marshal(spec{
		r.Chain, r.OpenedBy, r.AgentName, r.Purpose, r.Items, r.Seconds, r.Budgets, r.Target, r.Arguments, r.Reason, r.Context, r.Rule, r.Policy, r.nonce,
	})
	return string(b), err
}

// bytesOf is a value that is never NULL.
func bytesOf(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// offer puts something narrower on the table, unless somebody else has.
func (a *Approvals) offer(ctx context.Context, tx *db.Tx, r Request) error {
	o, err := json.Marshal(r.Offer)
	if err != nil {
		return err
	}
	return changed(tx.Exec(ctx, "update access_request set offer = $3, round = $4, document = $5, mac = $6 where tenant_id = $1 and id = $2 and round = $4 - 1 and "+open,
		tx.Tenant(), r.ID, string(o), r.Round, bytesOf(r.Document), a.sealed(tx.Tenant(), &r, Pending, r.row.spec, string(o))))
}

// settle stores the decision, unless another has been stored since r was read.
func (a *Approvals) settle(ctx context.Context, tx *db.Tx, r Request) error {
	o, err := json.Marshal(r.Offer)
	if err != nil {
		return err
	}
	return changed(tx.Exec(ctx, `update access_request set state = $3, decided_at = $4, decided_by = $5, note = $6, result = $7, offer = $8, mac = $9
		where tenant_id = $1 and id = $2 and `+open, tx.Tenant(), r.ID, r.State, r.DecidedAt, r.DecidedBy, r.Note, r.Result, string(o),
		a.sealed(tx.Tenant(), &r, r.State, r.row.spec, string(o))))
}

// lapse puts on record that a request has expired.
func lapse(ctx context.Context, tx *db.Tx, id string) error {
	return changed(tx.Exec(ctx, "update access_request set lapsed_at = $3 where tenant_id = $1 and id = $2 and expires_at <= $3 and "+open,
		tx.Tenant(), id, tx.Now()))
}

// escalate lets others decide too.
func escalate(ctx context.Context, tx *db.Tx, id string) error {
	return changed(tx.Exec(ctx, "update access_request set escalated_at = $3, escalate_at = null where tenant_id = $1 and id = $2 and escalate_at <= $3 and "+open,
		tx.Tenant(), id, tx.Now()))
}

func changed(n int64, err error) error {
	if err == nil && n == 0 {
		return ErrNotPending
	}
	return err
}

// due finds requests of all tenants whose time in a column has come.
func due(ctx context.Context, tx *db.Tx, column string) ([]db.Place, error) {
	return db.All(ctx, tx, db.ScanPlace, "select tenant_id, id from access_request where "+column+" <= $1 and "+open+" order by "+column+" limit 100", tx.Now())
}

// cancelSession cancels what waits for a session, and says for which agents.
func cancelSession(ctx context.Context, tx *db.Tx, session, note string) ([]string, error) {
	return db.AllOf[string](ctx, tx, `update access_request set state = 'cancelled', decided_at = $3, decided_by = 'system:session', note = $4
		where tenant_id = $1 and session_id = $2 and `+open+` returning agent_id`, tx.Tenant(), session, tx.Now(), note)
}

func list(ctx context.Context, tx *db.Tx, f Filter, at int64, id string, limit int) ([]Request, error) {
	return requests(ctx, tx, "select "+columns+` from access_request
		where tenant_id = $1 and (created_at, id) < ($2, $3)
		and ($4 = '' or agent_id = $4) and ($5 = '' or session_id = $5) and ($6 = '' or kind = $6) and ($7 = '' or requester = $7)
		and ($8 = '' or $8 = state and state <> 'pending' or $8 = 'pending' and `+open+` and expires_at > $9
			or $8 = 'expired' and state = 'pending' and (lapsed_at is not null or expires_at <= $9))
		order by created_at desc, id desc limit $10`,
		tx.Tenant(), at, id, f.Agent, f.Session, f.Kind, f.Requester, f.State, tx.Now(), limit)
}

func votes(ctx context.Context, tx *db.Tx, id string) ([]Vote, error) {
	return db.All(ctx, tx, func(scan func(...any) error) (v Vote, err error) {
		var assertion *string
		err = scan(&v.Round, &v.Approver, &v.For, &v.Verdict, &v.At, &v.Note, &v.Document, &assertion, &v.mac)
		if assertion != nil {
			v.Assertion = json.RawMessage(*assertion)
		}
		return v, err
	}, `select round, approver, in_place_of, verdict, at, note, document, assertion, mac from access_vote
		where tenant_id = $1 and request_id = $2 order by round, at, approver`, tx.Tenant(), id)
}

// vote stores what a person says, once in a round.
func (a *Approvals) vote(ctx context.Context, tx *db.Tx, id string, v Vote) error {
	var assertion any
	if v.Assertion != nil {
		assertion = string(v.Assertion)
	}
	n, err := tx.Exec(ctx, `insert into access_vote (tenant_id, request_id, round, approver, in_place_of, verdict, at, note, document, assertion, mac)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) on conflict do nothing`,
		tx.Tenant(), id, v.Round, v.Approver, v.For, v.Verdict, v.At, v.Note, bytesOf(v.Document), assertion, a.sealedVote(tx.Tenant(), id, &v))
	if err == nil && n == 0 {
		return ErrVoted
	}
	return err
}

// absences are those that go on: all, or those in which somebody is the deputy.
func absences(ctx context.Context, tx *db.Tx, deputy string) ([]Absence, error) {
	return db.All(ctx, tx, func(scan func(...any) error) (a Absence, err error) {
		err = scan(&a.Person, &a.Deputy, &a.Until, &a.CreatedAt, &a.CreatedBy)
		return a, err
	}, `select person_id, deputy_id, until, created_at, created_by from person_absence
		where tenant_id = $1 and until > $2 and ($3 = '' or deputy_id = $3) order by person_id limit 1000`, tx.Tenant(), tx.Now(), deputy)
}

func putAbsence(ctx context.Context, tx *db.Tx, a Absence) error {
	_, err := tx.Exec(ctx, `insert into person_absence (tenant_id, person_id, deputy_id, until, created_at, created_by)
		values ($1, $2, $3, $4, $5, $6)
		on conflict (tenant_id, person_id) do update set deputy_id = excluded.deputy_id, until = excluded.until,
			created_at = excluded.created_at, created_by = excluded.created_by`,
		tx.Tenant(), a.Person, a.Deputy, a.Until, a.CreatedAt, a.CreatedBy)
	return err
}

func endAbsence(ctx context.Context, tx *db.Tx, person string) error {
	n, err := tx.Exec(ctx, "delete from person_absence where tenant_id = $1 and person_id = $2", tx.Tenant(), person)
	if err == nil && n == 0 {
		return ErrNoAbsence
	}
	return err
}
