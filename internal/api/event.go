package api

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"estover.dev"
	"estover.dev/internal/audit"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/policy"
)

func (s *Server) events() {
	const tag = "Evidence"
	huma.Register(s.huma, op("list-events", http.MethodGet, "/v1/events", tag, "Search the log, the newest first"), s.listEvents)
	huma.Register(s.huma, op("get-event", http.MethodGet, "/v1/events/{id}", tag, "Show an event"), s.getEvent)
	huma.Register(s.huma, op("explain-event", http.MethodGet, "/v1/events/{id}/why", tag, "Explain the decision behind an event: the rule, the facts, and what would have changed it"), s.explainEvent)
	huma.Register(s.huma, op("get-receipt", http.MethodGet, "/v1/events/{id}/receipt", tag, "The receipt of a call, to be verified offline"), s.getReceipt)
	huma.Register(s.huma, op("verify-log", http.MethodPost, "/v1/log/verify", tag, "Check the whole log: every leaf, the tree and the checkpoint"), s.verifyLog)
	huma.Register(s.huma, op("get-trust", http.MethodGet, "/v1/trust", tag, "The keys by which evidence is verified, as a trust policy"), s.getTrust)
}

// An event is an entry of the log as the API shows it.
type event struct {
	audit.Event
	Index  int64 `json:"index" doc:"Its place in the log; -1 for a moment, until it has one"`
	Erased bool  `json:"erased,omitempty" doc:"Its content was erased"`
}

func eventOf(e audit.Entry) event { return event{e.Event, e.Index, e.Erased} }

func (s *Server) listEvents(ctx context.Context, in *struct {
	Paging
	Action  string    `query:"action" doc:"Only events of this action, as noun.verb"`
	Outcome string    `query:"outcome" enum:"done,refused,failed"`
	Actor   string    `query:"actor" doc:"Only what this subject did: agent:agt_…, user:usr_…"`
	Target  string    `query:"target" doc:"Only what was done to this: kind:id"`
	Session string    `query:"session"`
	Since   time.Time `query:"since"`
	Until   time.Time `query:"until"`
},
) (*many[event], error) {
	var before int64
	if in.Cursor != "" {
		var err error
		if before, err = strconv.ParseInt(in.Cursor, 10, 64); err != nil || before < 1 {
			return nil, s.problem(ctx, errCursor)
		}
	}
	f := audit.Filter{
		Action: in.Action, Outcome: audit.Outcome(in.Outcome), Actor: estover.Subject(in.Actor), Target: in.Target, Session: in.Session,
		Since: in.Since, Until: in.Until,
	}
	var list []audit.Entry
	var next int64
	err := s.guard.Read(ctx, callerOf(ctx), guard.Op{Action: "event.list", Effect: guard.Searches}, func(tx *db.Tx) (err error) {
		list, next, err = s.guard.Log().List(ctx, tx, f, before, in.Limit)
		return err
	})
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	out := make([]event, len(list))
	for i, e := range list {
		out[i] = eventOf(e)
	}
	cursor := ""
	if next > 0 {
		cursor = strconv.FormatInt(next, 10)
	}
	return pageOf(out, cursor), nil
}

func (s *Server) findEvent(ctx context.Context, id string) (e audit.Entry, err error) {
	err = s.guard.Read(ctx, callerOf(ctx), guard.Op{Action: "event.read", Target: "event:" + id}, func(tx *db.Tx) (err error) {
		e, err = s.guard.Log().Find(ctx, tx, id)
		return err
	})
	return e, err
}

func (s *Server) getEvent(ctx context.Context, in *Named) (*one[event], error) {
	e, err := s.findEvent(ctx, in.ID)
	return &one[event]{eventOf(e)}, s.problem(ctx, err)
}

// A why is an event with what stands behind its decision.
type why struct {
	Event       event              `json:"event"`
	Explanation policy.Explanation `json:"explanation"`
}

var errNoDecision = &estover.Error{Kind: estover.NotFound, Code: "no_decision", Detail: "This event holds no decision. A call through the gateway has two events: ask about the intent, whose id is in the answer that the agent got."}

func decisionOf(e audit.Entry) (record guard.DecisionRecord, err error) {
	b, err := json.Marshal(e.Detail["decision"])
	if err == nil {
		err = json.Unmarshal(b, &record)
	}
	return record, err
}

func (s *Server) explainEvent(ctx context.Context, in *Named) (*one[why], error) {
	e, err := s.findEvent(ctx, in.ID)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	record, err := decisionOf(e)
	if err != nil || record.Engine == "" {
		return nil, s.problem(ctx, errNoDecision)
	}
	if record.FactsIn != "" {
		earlier, err := s.findEvent(ctx, record.FactsIn)
		if err != nil {
			return nil, s.problem(ctx, err)
		}
		first, err := decisionOf(earlier)
		if err != nil {
			return nil, s.problem(ctx, err)
		}
		record.Facts = first.Facts
	}
	x, err := s.Policy.Explain(ctx, callerOf(ctx), record)
	return &one[why]{why{eventOf(e), x}}, s.problem(ctx, err)
}

func (s *Server) getReceipt(ctx context.Context, in *Named) (*file, error) {
	r, err := s.Evidence.Receipt(ctx, callerOf(ctx), in.ID)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	b, err := r.Marshal()
	return &file{"application/x-ndjson", `attachment; filename="` + in.ID + `.estover-receipt"`, b}, s.problem(ctx, err)
}

func (s *Server) verifyLog(ctx context.Context, _ *struct{}) (*one[audit.Verification], error) {
	c := callerOf(ctx)
	if err := s.guard.Read(ctx, c, guard.Op{Action: "event.list", Effect: guard.Searches}, func(*db.Tx) error { return nil }); err != nil {
		return nil, s.problem(ctx, err)
	}
	v, err := s.guard.Log().Verify(ctx, c.Tenant)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	return &one[audit.Verification]{*v}, nil
}

func (s *Server) getTrust(ctx context.Context, _ *struct{}) (*file, error) {
	text, err := s.Evidence.Trust(ctx, callerOf(ctx).Tenant)
	return &file{"text/plain; charset=utf-8", `inline; filename="trust.policy"`, []byte(text)}, s.problem(ctx, err)
}
