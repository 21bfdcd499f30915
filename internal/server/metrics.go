package server

import (
	"context"
	"net/http"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	sdkresource "go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"estover.dev"
	"estover.dev/internal/edge"
	"estover.dev/internal/secret/lease"
	"estover.dev/internal/secret/upstream"
)

// metrics answers what Prometheus asks. No path skips authentication: a scraper
// has a token of somebody with a role.
func (s *Server) metrics() http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	count := func(name, help string, value func() float64) {
		r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: "estover", Name: name, Help: help}, value))
	}
	gauge := func(name, help string, value func() float64) {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "estover", Name: name, Help: help}, value))
	}
	beat := func() (intents, outcomes, refusals float64) {
		h := s.duties.Heartbeat(time.Time{}, s.boot)
		return float64(h.Intents), float64(h.Outcomes), float64(h.Refusals)
	}
	count("gateway_intents_total", "Calls that were recorded before they were made.", func() float64 { n, _, _ := beat(); return n })
	count("gateway_outcomes_total", "Calls whose outcome was recorded.", func() float64 { _, n, _ := beat(); return n })
	count("gateway_refusals_total", "Requests of agents that were refused at the gateway.", func() float64 { _, _, n := beat(); return n })
	count("backup_credential_uses_total", "Times that an agent came with a credential that is kept for an emergency, at this node. Each is worth a look.",
		func() float64 { return float64(s.oauth.BackupUses()) })
	count("authorization_replays_total", "Codes and refresh tokens that came a second time, as this node was the first to see: what they had bought has ended. Each is worth a look.",
		func() float64 { return float64(s.tokens.Replays()) })
	gauge("evidence_spooled_events", "Events that are only on this node's disk.", func() float64 { return float64(s.spool.Waiting()) })
	gauge("rotation_late_versions", "Old versions of secrets that are in use although a second grace is over.", func() float64 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		n, err := s.rotations.Late(ctx)
		if err != nil {
			return -1
		}
		return float64(n)
	})
	gauge("log_waiting_events", "Events that wait for their place in the log.", func() float64 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, n, err := s.log.Waiting(ctx, estover.DefaultTenant)
		if err != nil {
			return -1
		}
		return float64(n)
	})
	standing := func(count func(lease.Standing) int64) float64 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		n, err := s.leases.Everywhere(ctx)
		if err != nil {
			return -1
		}
		return float64(count(n))
	}
	gauge("leases_open", "Credentials that were handed out and have not ended.", func() float64 { return standing(func(n lease.Standing) int64 { return n.Open }) })
	gauge("leases_overdue", "Credentials that should be gone and are not. More than none is an alarm.", func() float64 { return standing(func(n lease.Standing) int64 { return n.Overdue }) })
	pushes := func(count func(upstream.Pushes) int64) float64 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		n, err := s.stores.Pushes(ctx, "")
		if err != nil {
			return -1
		}
		return float64(count(n))
	}
	gauge("store_syncs_overdue", "Secrets whose current version should have been in another vault for five minutes and is not.", func() float64 { return pushes(func(n upstream.Pushes) int64 { return n.Overdue }) })
	gauge("store_syncs_drifted", "Secrets that are pushed to another vault where somebody else has changed them. Each waits for a decision.", func() float64 { return pushes(func(n upstream.Pushes) int64 { return n.Drifted }) })
	h := promhttp.HandlerFor(r, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := s.callers.Authenticate(r, estover.DefaultTenant)
		if err == nil && len(c.Roles) == 0 {
			err = errNoRole
		}
		if err != nil {
			edge.WriteProblem(w, edge.ProblemOf(err, c.Request))
			return
		}
		h.ServeHTTP(w, r)
	})
}

var errNoRole = &estover.Error{Kind: estover.Denied, Code: "role_required", Detail: "Metrics are for people with a role: admin, operator or auditor."}

// tracer makes the spans of requests; it does nothing unless an endpoint is
// set by the standard variable OTEL_EXPORTER_OTLP_ENDPOINT.
const traceEndpoint = "OTEL_EXPORTER_OTLP_ENDPOINT"

func (s *Server) startTracing(ctx context.Context) (stop func(context.Context) error, err error) {
	if os.Getenv(traceEndpoint) == "" && os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") == "" {
		return func(context.Context) error { return nil }, nil
	}
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, err
	}
	p := sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(exporter),
		sdktrace.WithResource(sdkresource.NewSchemaless(attribute.String("service.name", "estover"), attribute.String("service.version", s.version))),
	)
	s.tracer = p.Tracer("estover.dev")
	return p.Shutdown, nil
}

// traced makes a span of each request. It says who asked and how it ended, and
// nothing of what went over the wire.
func (s *Server) traced(next http.Handler) http.Handler {
	if s.tracer == nil {
		return next
	}
	propagate := propagation.TraceContext{}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := propagate.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
		ctx, span := s.tracer.Start(ctx, r.Method, trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(attribute.String("http.request.method", r.Method)))
		defer span.End()
		rec := &statusWriter{ResponseWriter: w, status: http.StatusOK}
		next.ServeHTTP(rec, r.WithContext(ctx))
		span.SetAttributes(attribute.Int("http.response.status_code", rec.status), attribute.String("estover.request", w.Header().Get("X-Request-Id")))
		if r.Pattern != "" {
			span.SetName(r.Pattern)
		}
		if rec.status >= 500 {
			span.SetStatus(codes.Error, http.StatusText(rec.status))
		}
	})
}

// A statusWriter remembers the status of an answer.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap gives the server's own writer, for deadlines, flushes and upgrades.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
