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
	sent, received, delivered := c.salt(attest.Request), c.salt(attest.Response), c.salt(attest.Delivered)
	c.sent, c.answer = gateway.NewHash(sent[:]), gateway.NewAnswer(received[:], delivered[:])
	p.Sent, p.Received, p.Delivered = c.sent, c.answer.Came(), c.answer.Delivered()
	if level == recordNone {
		return
	}
	rec := d.Recordings.Session(ex.Caller.Tenant, ex.Caller.Session)
	c.rec = &tape{rec: rec, stream: rec.NewStream(), class: c.class(), bodies: level == recordFull, cut: level != recordFull}
	p.Sent = gateway.Tee(c.sent, side{c.rec, recording.Up, recording.RequestHead, new(*recording.Body)})
	p.Delivered = gateway.Tee(p.Delivered, side{c.rec, recording.Down, recording.ResponseHead, new(*recording.Body)})
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
	open   []*recording.Body
}

func (t *tape) id() string { return t.rec.ID() }

// A side is one direction of a tape. Its body is opened with the first piece.
type side struct {
	*tape
	dir  recording.Dir
	kind recording.Kind
	body **recording.Body
}

// Head records a head.
func (s side) Head(b []byte) error {
	return s.rec.Frame(recording.Frame{Stream: s.stream, Dir: s.dir, Kind: s.kind, Class: s.class, Data: b})
}

// Body records a piece of a body.
func (s side) Body(b []byte) error {
	if !s.bodies || len(b) == 0 {
		return nil
	}
	if *s.body == nil {
		*s.body = s.rec.Body(s.stream, s.dir, recording.HTTPBody, s.class)
		s.open = append(s.open, *s.body)
	}
	_, err := (*s.body).Write(b)
	return err
}

// Tail records trailers, after the body that they end.
func (s side) Tail(b []byte) error { return s.Body(b) }

// close ends the bodies of the tape and notes how the exchange ended, unless
// it ended as it should.
func (t *tape) close(out *gateway.Outcome) {
	whole := out.End == gateway.Complete
	for _, b := range t.open {
		var err error
		if whole {
			err = b.Close()
		} else {
			err = b.Abort(string(out.End))
		}
		t.cut = t.cut || err != nil
	}
	t.open = nil
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
