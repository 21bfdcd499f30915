package api

import (
	"context"
	"net/http"
	"strings"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/edge"
)

// Within answers a request of a program that works in a session and has nothing to
// prove itself by: the gateway knows it by the session's certificate. It may ask
// for access and follow what becomes of that, and nothing else.
func (s *Server) Within(w http.ResponseWriter, r *http.Request, caller estover.Caller) {
	const path = "/v1/access/requests"
	w.Header().Set("Cache-Control", "no-store")
	r = r.Clone(context.WithValue(r.Context(), callerKey{}, caller))
	r.URL.Scheme, r.URL.Host = "", ""
	_, pattern := s.mux.Handler(r)
	switch {
	case r.URL.Path != path && !strings.HasPrefix(r.URL.Path, path+"/"), pattern == "":
		edge.WriteProblem(w, edge.ProblemOf(errNoSuchPath.With("Here a program asks for access, at %s, and for nothing else.", path), caller.Request))
		return
	case !isText(r.URL):
		edge.WriteProblem(w, edge.ProblemOf(db.ErrNotText, caller.Request))
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxWithin)
	if key := r.Header.Get("Idempotency-Key"); key != "" && r.Method == http.MethodPost {
		s.once.serve(w, r, caller, key, s.mux)
		return
	}
	s.mux.ServeHTTP(w, r)
}

// maxWithin bounds a request from within a session.
const maxWithin = 64 << 10
