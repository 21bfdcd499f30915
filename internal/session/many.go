package session

import (
	"context"

	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// EndAgents is [Sessions.EndAgent] for several agents.
func (s *Sessions) EndAgents(ctx context.Context, tx *guard.Tx, agents []string, cause string) ([]string, error) {
	ended, err := s.end(ctx, tx, cause, func() (all []Session, err error) {
		for _, a := range agents {
			some, err := endAgent(ctx, tx.Tx, a, cause)
			if err != nil {
				return nil, err
			}
			all = append(all, some...)
		}
		return all, nil
	})
	if err == nil {
		tx.Note("sessions", ended)
	}
	return ended, err
}

// Working are the agents that have sessions which have not ended, in the
// transaction's tenant.
func Working(ctx context.Context, tx *db.Tx) ([]string, error) {
	return db.AllOf[string](ctx, tx, `select distinct agent_id from session where tenant_id = $1 and ended_at is null`, tx.Tenant())
}

// Running counts the sessions that have not ended by their agents, in the
// transaction's tenant.
func Running(ctx context.Context, tx *db.Tx) (map[string]int, error) {
	rows, err := tx.Query(ctx, `select agent_id, count(*) from session where tenant_id = $1 and ended_at is null group by agent_id`, tx.Tenant())
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	open := map[string]int{}
	for rows.Next() {
		var agent string
		var n int
		if err := rows.Scan(&agent, &n); err != nil {
			return nil, err
		}
		open[agent] = n
	}
	return open, rows.Err()
}
