package duty

import (
	"bytes"
	"context"
	"errors"
	"mime"
	"net/http"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/access"
	"estover.dev/internal/db"
	"estover.dev/internal/gateway"
)

// errUncovered refuses a call whose grant has ended, or has come to its time, since
// policy was asked. Nothing would be left to take its share of.
var errUncovered = &estover.Error{Kind: estover.Denied, Code: "not_granted", Detail: "The grant for this has just ended. Ask your sponsor or an operator for another."}

// cover finds out what a call rests on. An agent's rests on a grant.
func (d *Duties) cover(ctx context.Context, ex *gateway.Exchange, c *call) (err error) {
	c.covered, err = d.Covered(ctx, ex.Caller, access.Call{
		Resource: c.resource.ID, Action: c.action.Name, Class: c.class(), Purpose: ex.Caller.Purpose, Session: ex.Caller.Session, Parameters: c.params,
	})
	if err != nil {
		return err
	}
	if c.covered.Grant == "" && ex.Caller.Acting().Kind() == estover.AgentKind {
		return errUncovered
	}
	c.commits.Grant, c.commits.Approval = c.covered.Document, c.covered.Request
	c.approval, err = d.approved(ctx, ex.Caller.Tenant, c.commits)
	return err
}

// personalTag marks resources whose rows are records of personal data, beside
// those that hold special categories of it.
const personalTag = "personal-data"

// draw records a call and takes what it needs of the budgets of its grants, in
// one commit, and has what comes back counted where they limit that.
func (d *Duties) draw(ctx context.Context, p *gateway.Plan, c *call, w db.Append) (err error) {
	personal := c.resource.SpecialCategory || slices.Contains(c.resource.Tags, personalTag)
	want := access.Amount{Calls: 1, Money: c.action.Price, Rows: 1, BytesOut: 1}
	if personal {
		want.Records = 1
	}
	if err := d.take(ctx, c, want, w); err != nil {
		return err
	}
	if until := c.charge.Until(); !until.IsZero() {
		left := max(time.Millisecond, until.Sub(d.Guard.DB().Now()))
		if p.Limits.Age == 0 || left < p.Limits.Age {
			p.Limits.Age = left
		}
	}
	rows, limited := c.charge.Limits()
	if !rows && !limited {
		return nil
	}
	p.Identity = p.Identity || rows // what is compressed cannot be counted
	p.Delivered = gateway.Tee(&meter{ctx: ctx, charge: c.charge, bodiless: c.method == http.MethodHead, personal: personal}, p.Delivered)
	return nil
}

// exceeded records that a call was refused for want of budget.
func (d *Duties) exceeded(ctx context.Context, ex *gateway.Exchange, c *call, err error) error {
	var why *estover.Error
	if !errors.As(err, &why) {
		return err
	}
	r, failed := d.refuse(ctx, ex, c.op, c.decision, why)
	if failed != nil {
		return failed
	}
	r.Rule = "kernel." + why.Code
	return r
}

// settle gives back what a call did not need of budgets: everything, if nothing
// was sent.
func (d *Duties) settle(ex *gateway.Exchange, c *call, out *gateway.Outcome) {
	if c.charge == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), settleTime)
	defer cancel()
	made := out.End != gateway.Refused || out.Address != ""
	if err := c.charge.Settle(ctx, made); err != nil {
		d.Logger.Error("what a call has reserved stays taken of its budgets", "request", ex.Caller.Request, "call", c.decision.ID, "error", err)
	}
}

// A meter counts what the agent is given, and lets nothing through for which there
// is no budget.
type meter struct {
	ctx      context.Context
	charge   *access.Charge
	bodiless bool // the answer has no body, whatever its head says
	personal bool // a row is a record of personal data

	paid int64 // bytes that were taken for what is to come
	rows rows
}

// Head takes what the head promises, so that an answer for which there is not
// enough is not begun.
func (m *meter) Head(head []byte) error {
	line, rest, _ := bytes.Cut(head, []byte("\r\n"))
	fields := bytes.Fields(line)
	status := 0
	if len(fields) > 1 {
		status, _ = strconv.Atoi(string(fields[1]))
	}
	length := int64(0)
	for field := range bytes.SplitSeq(rest, []byte("\r\n")) {
		name, value, _ := bytes.Cut(field, []byte(":"))
		switch textproto.CanonicalMIMEHeaderKey(string(name)) {
		case "Content-Type":
			m.rows.json = isJSON(string(bytes.TrimSpace(value)))
		case "Content-Length":
			length, _ = strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 64)
		}
	}
	m.rows.off = status >= 300 // a refusal of the resource has no rows
	if m.bodiless || length <= 0 {
		return nil
	}
	m.paid = length
	return m.need(length, 0)
}

func isJSON(contentType string) bool {
	t, _, err := mime.ParseMediaType(contentType)
	return err == nil && (t == "application/json" || strings.HasSuffix(t, "+json") || t == "application/x-ndjson" || t == "application/jsonl")
}

// Body counts a piece of the body.
func (m *meter) Body(piece []byte) error {
	n := int64(len(piece))
	paid := min(n, m.paid)
	m.paid -= paid
	return m.need(n-paid, m.rows.count(piece))
}

// Tail counts trailers as what they are: bytes.
func (m *meter) Tail(b []byte) error { return m.need(int64(len(b)), 0) }

// Frame counts a message of a WebSocket as a row.
func (m *meter) Frame(_ byte, fin bool, piece []byte, end bool) error {
	rows := int64(0)
	if fin && end {
		rows = 1
	}
	return m.need(int64(len(piece)), rows)
}

func (m *meter) need(n, rows int64) error {
	if n == 0 && rows == 0 {
		return nil
	}
	a := access.Amount{BytesOut: n, Rows: rows}
	if m.personal {
		a.Records = rows
	}
	return m.charge.Need(m.ctx, a)
}

// rows counts the rows of an answer as it goes by. Of JSON these are the elements
// of the outermost list, or of the lists that are members of the outermost object;
// where there are none, each value is one. An answer in any other form is one row.
type rows struct {
	json, off bool

	any           bool // something came
	depth         int
	list          [2]bool // whether the two outermost values that we are in are lists
	text, escaped bool    // within a text
	begun         bool    // within a number or a word
	expect        bool    // an element, or the name of a member, is about to begin
	bare          bool    // no element of the outermost value has begun
}

// count is how many rows begin in a piece.
func (r *rows) count(piece []byte) (n int64) {
	if r.off || len(piece) == 0 {
		return 0
	}
	if !r.json {
		if r.any {
			return 0
		}
		r.any = true
		return 1
	}
	for _, c := range piece {
		switch {
		case r.text:
			switch {
			case r.escaped:
				r.escaped = false
			case c == '\\':
				r.escaped = true
			case c == '"':
				r.text = false
			}
			continue
		case c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == 0x1e:
			r.begun = false
			continue
		}
		switch c {
		case ']', '}':
			r.depth, r.begun, r.expect = max(0, r.depth-1), false, false
			continue
		case ',':
			r.begun, r.expect = false, true
			continue
		case ':':
			continue
		}
		if !r.begun {
			n += r.value()
		}
		switch c {
		case '"':
			r.text = true
		case '[', '{':
			if r.depth < len(r.list) {
				r.list[r.depth] = c == '['
			}
			r.depth++
			r.expect, r.begun = true, false
			continue
		default:
			r.begun = true
		}
		r.expect = false
	}
	return n
}

// value is how many rows begin with a value that begins.
func (r *rows) value() int64 {
	switch {
	case r.depth == 0:
		r.bare = true // of what comes within it, the first is the row that it is
		return 1
	case !r.expect:
		return 0
	case r.depth == 1 && r.list[0], r.depth == 2 && !r.list[0] && r.list[1]:
		if r.bare {
			r.bare = false
			return 0
		}
		return 1
	}
	return 0
}
