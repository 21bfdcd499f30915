package attest

import (
	"encoding/base64"
	"encoding/hex"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// AppendJSON appends the statement's one form to b. A gateway makes one with
// every call, so it is written out by hand: no reflection, and no allocation
// beyond the growth of b. Text that is not UTF-8 has its wrong bytes replaced
// by U+FFFD; times are written in UTC.
func (s *Statement) AppendJSON(b []byte) []byte {
	e := encoder{append(b, '{')}
	e.must("_type", StatementType)
	e.list("subject")
	for _, sub := range s.Subjects {
		e.item()
		e.text("name", sub.Name)
		e.open("digest")
		e.digest("sha256", sub.Digest)
		e.close()
		e.close()
	}
	e.end()
	e.must("predicateType", s.Predicate.Type())
	e.open("predicate")
	s.Predicate.encode(&e)
	e.close()
	e.close()
	return e.b
}

func (a *Action) encode(e *encoder) {
	e.must("id", a.ID)
	e.must("tenant", a.Tenant)
	e.time("time", a.Time)
	e.int("seq", a.Seq)
	e.open("intent")
	e.digest("digest", a.Intent.Digest)
	e.index("index", a.Intent.Index)
	e.close()
	e.open("agent")
	e.text("id", a.Agent.ID)
	e.text("jkt", a.Agent.JKT)
	e.open("proof")
	e.text("kind", a.Agent.Proof.Kind)
	e.digest("digest", a.Agent.Proof.Digest)
	e.close()
	e.close()
	e.open("principal")
	e.digest("subject", a.Principal.Subject)
	e.text("issuer", a.Principal.Issuer)
	e.texts("act", a.Principal.Act)
	e.close()
	e.open("grant")
	e.digest("digest", a.Grant.Digest)
	e.index("logIndex", a.Grant.LogIndex)
	e.timeIf("notAfter", a.Grant.NotAfter)
	e.text("purpose", a.Grant.Purpose)
	e.close()
	if a.Approval != (ApprovalRef{}) {
		e.open("approval")
		e.text("mode", a.Approval.Mode)
		e.digest("digest", a.Approval.Digest)
		e.close()
	}
	e.open("decision")
	e.must("result", a.Decision.Result)
	e.digest("bundle", a.Decision.Bundle)
	e.text("revision", a.Decision.Revision)
	e.digest("input", a.Decision.Input)
	e.text("rule", a.Decision.Rule)
	e.texts("obligations", a.Decision.Obligations)
	e.close()
	c := &a.Call
	e.open("action")
	e.text("protocol", c.Protocol)
	e.text("revision", c.Revision)
	e.text("server", c.Server)
	e.digest("spki", c.SPKI)
	e.text("resource", c.Resource)
	e.text("name", c.Name)
	e.text("method", c.Method)
	e.text("tool", c.Tool)
	e.digest("definition", c.Definition)
	e.digest("args", c.Args)
	e.digest("effect", c.Effect)
	e.texts("secrets", c.Secrets)
	e.close()
	o := &a.Outcome
	e.open("outcome")
	e.intIf("status", o.Status)
	if o.IsError {
		e.name("isError")
		e.b = append(e.b, "true"...)
	}
	e.digest("result", o.Result)
	e.intIf("rows", o.Rows)
	e.text("commit", o.Commit)
	e.intIf("durationMicros", o.Duration)
	e.text("error", o.Error)
	e.close()
	e.open("recording")
	e.must("session", a.Recording.Session)
	e.text("segment", a.Recording.Segment)
	e.digest("root", a.Recording.Root)
	e.close()
}

func (s *Session) encode(e *encoder) {
	e.must("id", s.ID)
	e.must("tenant", s.Tenant)
	e.time("time", s.Time)
	e.text("agent", s.Agent)
	e.int("count", s.Count)
}

func (n *Enrolment) encode(e *encoder) {
	e.must("gateway", n.Gateway)
	e.must("tenant", n.Tenant)
	e.time("time", n.Time)
	e.name("key")
	e.b = append(e.b, '"')
	e.b = base64.StdEncoding.AppendEncode(e.b, n.Key)
	e.b = append(e.b, '"')
	e.timeIf("notBefore", n.NotBefore)
	e.timeIf("notAfter", n.NotAfter)
}

func (c *Containment) encode(e *encoder) {
	e.must("id", c.ID)
	e.must("tenant", c.Tenant)
	e.time("time", c.Time)
	e.must("target", c.Target)
	e.mustDigest("by", c.By)
	e.mustDigest("reason", c.Reason)
	e.steps(c.Steps)
	e.int("zeroMicros", c.Zero)
	e.texts("lingers", c.Lingers)
}

func (m *Emergency) encode(e *encoder) {
	e.must("id", m.ID)
	e.must("tenant", m.Tenant)
	e.time("time", m.Time)
	e.must("target", m.Target)
	e.mustDigest("by", m.By)
	e.mustDigest("reason", m.Reason)
	e.steps(m.Steps)
	e.int("pending", m.Pending)
	e.texts("lingers", m.Lingers)
}

func (e *encoder) steps(list []ContainmentStep) {
	e.list("steps")
	for _, s := range list {
		e.item()
		e.must("name", s.Name)
		e.must("state", s.State)
		e.int("count", s.Count)
		e.int("micros", s.Micros)
		e.text("error", s.Error)
		e.digest("detail", s.Detail)
		e.close()
	}
	e.end()
}

// An encoder appends JSON. Whatever is not the first of its object or array
// has a comma before it.
type encoder struct{ b []byte }

// comma is never called for the outermost value, so there is a last byte.
func (e *encoder) comma() {
	if last := e.b[len(e.b)-1]; last != '{' && last != '[' {
		e.b = append(e.b, ',')
	}
}

// name begins a member. Names are ours and need no escapes.
func (e *encoder) name(name string) {
	e.comma()
	e.b = append(e.b, '"')
	e.b = append(e.b, name...)
	e.b = append(e.b, '"', ':')
}

// open begins an object that is a member.
func (e *encoder) open(name string) {
	e.name(name)
	e.b = append(e.b, '{')
}

// item begins an object that is an element.
func (e *encoder) item() {
	e.comma()
	e.b = append(e.b, '{')
}

func (e *encoder) close() { e.b = append(e.b, '}') }

func (e *encoder) list(name string) {
	e.name(name)
	e.b = append(e.b, '[')
}

func (e *encoder) end() { e.b = append(e.b, ']') }

func (e *encoder) quote(s string) { e.b, _ = jsontext.AppendQuote(e.b, s) } // the error says that U+FFFD was put in

func (e *encoder) must(name, s string) {
	e.name(name)
	e.quote(s)
}

func (e *encoder) text(name, s string) {
	if s != "" {
		e.must(name, s)
	}
}

func (e *encoder) texts(name string, list []string) {
	if list == nil {
		return
	}
	e.list(name)
	for _, s := range list {
		e.comma()
		e.quote(s)
	}
	e.end()
}

func (e *encoder) mustDigest(name string, d Digest) {
	e.name(name)
	e.b = append(e.b, '"')
	e.b = hex.AppendEncode(e.b, d[:])
	e.b = append(e.b, '"')
}

func (e *encoder) digest(name string, d Digest) {
	if !d.IsZero() {
		e.mustDigest(name, d)
	}
}

func (e *encoder) int(name string, n int64) {
	e.name(name)
	e.b = strconv.AppendInt(e.b, n, 10)
}

func (e *encoder) intIf(name string, n int64) {
	if n != 0 {
		e.int(name, n)
	}
}

func (e *encoder) index(name string, n *int64) {
	if n != nil {
		e.int(name, *n)
	}
}

func (e *encoder) time(name string, t time.Time) {
	e.name(name)
	e.b = append(e.b, '"')
	e.b = t.UTC().AppendFormat(e.b, time.RFC3339Nano)
	e.b = append(e.b, '"')
}

func (e *encoder) timeIf(name string, t time.Time) {
	if !t.IsZero() {
		e.time(name, t)
	}
}
