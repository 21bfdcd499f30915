package duty

import (
	"encoding/json"

	"estover.dev"
	"estover.dev/attest"
	"estover.dev/internal/gateway"
	"estover.dev/internal/recording"
)

// taps sets what watches both directions: hashes for the receipt always, the
// recording as far as it was asked for.
func (d *Duties) taps(ex *gateway.Exchange, c *call, p *gateway.Plan, level recordLevel) {
	c.salt = c.commits.Salts()
	s := &c.salts
	s.sent, s.came, s.delivered = c.salt(attest.Request), c.salt(attest.Response), c.salt(attest.Delivered)
	c.sent, c.answer = gateway.NewHash(s.sent[:]), gateway.NewAnswer(s.came[:], s.delivered[:])
	p.Sent, p.Received, p.Delivered = c.sent, c.answer.Came(), c.answer.Delivered()
	if level == recordNone {
		return
	}
	rec := d.Recordings.Session(ex.Caller.Tenant, ex.Caller.Session)
	c.tape = tape{rec: rec, stream: rec.NewStream(), class: c.class(), bodies: level == recordFull, cut: level != recordFull}
	c.rec = &c.tape
	c.rec.up = side{tape: c.rec, hash: p.Sent, dir: recording.Up, kind: recording.RequestHead}
	c.rec.down = side{tape: c.rec, hash: p.Delivered, dir: recording.Down, kind: recording.ResponseHead}
	p.Sent, p.Delivered = &c.rec.up, &c.rec.down
}

// tapsDone gives the hashes of a call back that was never made.
func (c *call) tapsDone() {
	if c.sent != nil {
		c.sent.Sum()
		c.answer.Sums()
	}
	c.sent, c.answer = nil, nil
}

// A tape records one exchange.
type tape struct {
	rec    *recording.Recorder
	stream uint64
	class  estover.Class
	bodies bool
	cut    bool // not everything that was hashed was recorded

	up, down side
}

func (t *tape) id() string { return t.rec.ID() }

// A side is one direction of a tape, behind the hash of it. Its body is opened with the
// first piece.
type side struct {
	*tape
	hash gateway.Tap
	dir  recording.Dir
	kind recording.Kind
	body *recording.Body
}

// Head hashes and records a head.
func (s *side) Head(b []byte) error {
	if err := s.hash.Head(b); err != nil {
		return err
	}
	return s.rec.Frame(recording.Frame{Stream: s.stream, Dir: s.dir, Kind: s.kind, Class: s.class, Data: b})
}

// Body hashes and records a piece of a body.
func (s *side) Body(b []byte) error {
	if err := s.hash.Body(b); err != nil {
		return err
	}
	return s.record(b)
}

// Tail hashes and records trailers, after the body that they end.
func (s *side) Tail(b []byte) error {
	if err := s.hash.Tail(b); err != nil {
		return err
	}
	return s.record(b)
}

func (s *side) record(b []byte) error {
	if !s.bodies || len(b) == 0 {
		return nil
	}
	if s.body == nil {
		s.body = s.rec.Body(s.stream, s.dir, recording.HTTPBody, s.class)
	}
	_, err := s.body.Write(b)
	return err
}

// close ends the bodies of the tape and notes how the exchange ended, unless
// it ended as it should.
func (t *tape) close(out *gateway.Outcome) {
	whole := out.End == gateway.Complete
	for _, b := range [...]*recording.Body{t.up.body, t.down.body} {
		var err error
		switch {
		case b == nil:
		case whole:
			err = b.Close()
		default:
			err = b.Abort(string(out.End))
		}
		t.cut = t.cut || err != nil
	}
	if whole {
		return
	}
	note, err := json.Marshal(map[string]any{"end": out.End, "status": out.Answered})
	if err != nil {
		return
	}
	// The recording may be the very thing that failed; the outcome says so.
	if t.rec.Frame(recording.Frame{Stream: t.stream, Kind: recording.Note, Class: t.class, Data: note}) != nil {
		t.cut = true
	}
}
