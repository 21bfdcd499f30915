package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/pki"
	"estover.dev/internal/recording"
	"estover.dev/internal/session"
)

func (s *Server) sessions() {
	const tag = "Sessions"
	huma.Register(s.huma, op("open-session", http.MethodPost, "/v1/sessions", tag, "Open a session: one task of one agent"), s.openSession)
	huma.Register(s.huma, op("list-sessions", http.MethodGet, "/v1/sessions", tag, "List sessions, the newest first"), s.listSessions)
	huma.Register(s.huma, op("get-session", http.MethodGet, "/v1/sessions/{id}", tag, "Show a session"), s.getSession)
	huma.Register(s.huma, op("renew-session", http.MethodPost, "/v1/sessions/{id}/renew", tag, "Have a session live longer, up to a day from its opening"), s.renewSession)
	huma.Register(s.huma, op("beat-session", http.MethodPut, "/v1/sessions/{id}/heartbeat", tag, "Say that a session is in use, and hear how it stands"), s.beatSession)
	huma.Register(s.huma, op("end-session", http.MethodPost, "/v1/sessions/{id}/end", tag, "End a session and all that belongs to it"), s.endSession)
	huma.Register(s.huma, op("replay-session", http.MethodGet, "/v1/sessions/{id}/recording", tag, "Read what was recorded of a session: a frame a line, checked"), s.replaySession)
	huma.Register(s.huma, op("export-evidence", http.MethodGet, "/v1/sessions/{id}/evidence", tag, "Export a session's receipts as a file that anyone can verify offline"), s.exportEvidence)
}

// An openedSession is what a launcher needs to let a program work in it.
type openedSession struct {
	Session      session.Session   `json:"session"`
	Gateway      string            `json:"gateway,omitempty" doc:"HOST:PORT of the forward proxy, if the session has a certificate"`
	CA           string            `json:"ca,omitempty" doc:"PEM of the session's own certificate authority"`
	PassThrough  bool              `json:"pass_through,omitempty" doc:"Some hosts are reached without interception"`
	Placeholders map[string]string `json:"placeholders,omitempty" doc:"Variables that some programs want before they start; the values open nothing"`
}

func (s *Server) openSession(ctx context.Context, in *struct {
	Body struct {
		Agent      string `json:"agent,omitempty" maxLength:"200" doc:"Name or id of the agent; an agent opens its own"`
		Purpose    string `json:"purpose,omitempty" maxLength:"100" doc:"One that the agent has declared; its usual one if left out"`
		Task       string `json:"task,omitempty" maxLength:"2000" doc:"What it is about"`
		TTLSeconds int64  `json:"ttl_seconds,omitempty" minimum:"0" maximum:"86400" doc:"The longest that it may live; 8 hours if left out"`
		Thumbprint string `json:"certificate_thumbprint,omitempty" maxLength:"43" doc:"x5t#S256 of the certificate that stands for the session at the forward proxy"`
		Idle       int64  `json:"idle_seconds,omitempty" minimum:"0" maximum:"86400" doc:"It ends when nobody has used it for so long; never for that if left out"`
		Parent     string `json:"parent,omitempty" maxLength:"100" doc:"The session that it is a part of, and ends with"`
		Bound      string `json:"bound,omitempty" enum:"process,user,none" doc:"To what the launcher binds it, as the launcher says"`
		Executable string `json:"executable,omitempty" maxLength:"64" doc:"SHA-256 of the file of the program that it is for, in hex, as the launcher says"`
	}
},
) (*one[openedSession], error) {
	c := callerOf(ctx)
	ref := in.Body.Agent
	if acts := c.Acting(); ref == "" && acts.Kind() == estover.AgentKind {
		ref = acts.ID()
	}
	id, err := s.agentID(ctx, ref)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	opened, err := s.Sessions.Open(ctx, c, session.Wish{
		Agent: id, Purpose: in.Body.Purpose, Task: in.Body.Task, Life: seconds(in.Body.TTLSeconds), Key: in.Body.Thumbprint,
		Idle: seconds(in.Body.Idle), Parent: in.Body.Parent, Bound: session.Bound(in.Body.Bound), Program: in.Body.Executable,
	})
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	out := openedSession{Session: opened}
	if in.Body.Thumbprint != "" {
		pem, err := s.Gateway.Authority(ctx, c.Tenant, opened.ID)
		if err == nil {
			out.Placeholders, err = s.Gateway.Placeholders(ctx, c.Tenant, opened.ID)
		}
		if err != nil {
			// A session that nobody can use is no session.
			_ = s.Sessions.End(context.WithoutCancel(ctx), c, opened.ID, "its certificate authority could not be made")
			return nil, s.problem(ctx, err)
		}
		out.Gateway, out.CA = s.GatewayAddress, pem
	}
	return &one[openedSession]{out}, nil
}

func (s *Server) listSessions(ctx context.Context, in *struct {
	Paging
	Agent string `query:"agent" doc:"Name or id: only sessions of this agent"`
	State string `query:"state" enum:"open,ended" doc:"Only sessions in this state"`
},
) (*many[session.Session], error) {
	f := session.Filter{State: session.State(in.State)}
	if in.Agent != "" {
		id, err := s.agentID(ctx, in.Agent)
		if err != nil {
			return nil, s.problem(ctx, err)
		}
		f.Agent = id
	}
	var from *session.After
	if at, id, ok := strings.Cut(in.Cursor, "."); ok {
		n, err := strconv.ParseInt(at, 10, 64)
		if err != nil {
			return nil, s.problem(ctx, errCursor)
		}
		from = &session.After{OpenedAt: n, ID: id}
	} else if in.Cursor != "" {
		return nil, s.problem(ctx, errCursor)
	}
	list, next, err := s.Sessions.List(ctx, callerOf(ctx), f, from, in.Limit)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	cursor := ""
	if next != nil {
		cursor = fmt.Sprintf("%d.%s", next.OpenedAt, next.ID)
	}
	return pageOf(list, cursor), nil
}

var errCursor = &estover.Error{Kind: estover.Invalid, Code: "cursor_invalid", Detail: "This is no cursor of this list. Take it from next of the page before.", Field: "cursor"}

func (s *Server) getSession(ctx context.Context, in *Named) (*one[session.Session], error) {
	got, err := s.Sessions.Get(ctx, callerOf(ctx), in.ID)
	return &one[session.Session]{got}, s.problem(ctx, err)
}

func (s *Server) renewSession(ctx context.Context, in *struct {
	Named
	Body struct {
		TTLSeconds int64 `json:"ttl_seconds,omitempty" minimum:"0" maximum:"86400" doc:"How long it lives from now; 8 hours if left out"`
	}
},
) (*one[session.Session], error) {
	renewed, err := s.Sessions.Renew(ctx, callerOf(ctx), in.ID, seconds(in.Body.TTLSeconds))
	return &one[session.Session]{renewed}, s.problem(ctx, err)
}

func (s *Server) beatSession(ctx context.Context, in *Named) (*one[session.Session], error) {
	got, err := s.Sessions.Beat(ctx, callerOf(ctx), in.ID)
	return &one[session.Session]{got}, s.problem(ctx, err)
}

func (s *Server) endSession(ctx context.Context, in *struct {
	Named
	Body struct {
		Cause string `json:"cause,omitempty" maxLength:"500" doc:"Why, for the record"`
	}
},
) (*one[endedSession], error) {
	cause := in.Body.Cause
	if cause == "" {
		cause = "ended by " + string(callerOf(ctx).Subject)
	}
	c, begun := callerOf(ctx), s.guard.DB().Now()
	if err := s.Sessions.End(ctx, c, in.ID, cause); err != nil {
		return nil, s.problem(ctx, err)
	}
	lingers, err := s.Leases.Lingers(ctx, c.Tenant, in.ID, begun)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	var certified []string
	err = s.guard.DB().View(ctx, c.Tenant, func(tx *db.Tx) (err error) {
		certified, err = pki.LingersOfSession(ctx, tx, in.ID, begun)
		return err
	})
	return &one[endedSession]{endedSession{append(lingers, certified...)}}, s.problem(ctx, err)
}

// An endedSession is what is left of a session.
type endedSession struct {
	Lingers []string `json:"lingers,omitempty" doc:"What may go on elsewhere, at targets that cannot end it or by whoever does not ask, although it has ended here"`
}

func (s *Server) replaySession(ctx context.Context, in *struct {
	Named
	Format string `query:"format" enum:"frames,har" default:"frames" doc:"frames: one JSON object a line; har: HTTP Archive 1.2, for browsers' tools"`
},
) (*huma.StreamResponse, error) {
	c := callerOf(ctx)
	if in.Format == "har" {
		if _, err := s.Sessions.Get(ctx, c, in.ID); err != nil {
			return nil, s.problem(ctx, err)
		}
		return &huma.StreamResponse{Body: func(h huma.Context) {
			h.SetHeader("Content-Type", "application/json")
			if err := s.Recordings.ExportHAR(ctx, c, in.ID, h.BodyWriter()); err != nil {
				panic(http.ErrAbortHandler) // it has begun; half a file must not look like a whole one
			}
		}}, nil
	}
	replay, err := s.Recordings.Open(ctx, c, in.ID)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	return &huma.StreamResponse{Body: func(h huma.Context) {
		h.SetHeader("Content-Type", "application/x-ndjson")
		e := json.NewEncoder(h.BodyWriter())
		for frame, err := range replay.Frames(ctx, recording.Range{}) {
			if err == nil {
				err = e.Encode(frame)
			}
			if err != nil {
				s.logger.Error("a recording could not be read to its end", "session", in.ID, "error", err)
				panic(http.ErrAbortHandler)
			}
		}
	}}, nil
}

// A file is an answer that is no JSON.
type file struct {
	ContentType string `header:"Content-Type"`
	Disposition string `header:"Content-Disposition"`
	Body        []byte
}

func (s *Server) exportEvidence(ctx context.Context, in *struct {
	Named
	Disclose bool `query:"disclose" doc:"Add what the receipts commit to: grants, principals and recorded bodies"`
},
) (*file, error) {
	b, err := s.Evidence.Session(ctx, callerOf(ctx), in.ID, in.Disclose)
	return &file{"application/zip", `attachment; filename="` + in.ID + `.zip"`, b}, s.problem(ctx, err)
}
