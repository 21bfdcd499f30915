package gateway

import (
	"context"
	"crypto/x509"
	"errors"
	"net/http"
	"time"

	"estover.dev"
	"estover.dev/internal/edge"
	"estover.dev/internal/redact"
)

// Steps is what the pipeline asks of the rest of Estover, in the order of its
// methods. A context ends when the client goes away or the session is cut.
type Steps interface {
	// Connect decides whether there may be a tunnel to ex.Host at all.
	Connect(r *http.Request, ex *Exchange) (*Tunnel, error)
	// Decide classifies the request and asks policy, waiting for a person if it
	// must. A refusal is recorded there. If it needs the body, it calls [Buffer].
	Decide(r *http.Request, ex *Exchange) (*Plan, error)
	// Intend commits the record of what will be done. Nothing was sent before
	// it returns, and nothing is sent if it fails.
	Intend(ctx context.Context, ex *Exchange, p *Plan) error
	// Fill leases the secrets and completes the plan with their slots and
	// needles.
	Fill(ctx context.Context, ex *Exchange, p *Plan) error
	// Settle records the outcome. It is called exactly once for each Intend that
	// succeeded, whatever happened since; the context of the request may have
	// ended long ago. The outcome is a part of the exchange: who keeps it longer
	// copies it.
	Settle(ex *Exchange, p *Plan, out *Outcome)
	// Violate records what was refused before it came to a decision: a host
	// that is not the tunnel's, a path with two readings, a placeholder where
	// none belongs.
	Violate(ex *Exchange, err error)
}

// A Tunnel is the permission for a CONNECT. It confers nothing: every request
// inside is decided for itself.
type Tunnel struct {
	Host edge.Host // set by the door
	// PassThrough lets the bytes through without looking inside, to Upstream.
	PassThrough bool
	Upstream    *Upstream
	// MaxAge is how long it may last. If it is zero, that is 15 minutes for one
	// that is passed through, and a day for one that is intercepted.
	MaxAge time.Duration
	// Done is called once when it has ended, if it is set.
	Done func(TunnelOutcome)
}

// A TunnelOutcome says how a tunnel ended.
type TunnelOutcome struct {
	End      End
	Err      error
	Up, Down int64 // bytes as they went over the wire
	Took     time.Duration
}

// An Upstream is where a plan leads.
type Upstream struct {
	// Scheme and Host are those of the exchange.
	Scheme string
	Host   edge.Host
	// Address is the "host:port" to connect to, if that is not Host.
	Address string
	// Opening is what is opened of private addresses for it.
	Opening edge.Opening
	// Roots are the authorities for its certificate; nil means the system's.
	// Pins are SHA-256 hashes of public keys (SPKI) of which its certificate
	// must have one. If there are pins and no roots, the pin is enough.
	Roots *x509.CertPool
	Pins  [][32]byte
	// Certificate is presented to it, if it asks: the slot "mtls".
	Certificate *Certificate
	// FirstByte is how long it may take from the end of the request to the
	// beginning of the answer; two minutes if it is zero.
	FirstByte time.Duration
	// Revision is another whenever anything above is, so that connections made
	// under the old rules are not used under the others.
	Revision string
}

// A Plan is a decided request: what is to be done with it.
type Plan struct {
	Decision string // the id of the decision, for our own answers

	Upstream *Upstream
	// Credential names what is injected, and "" if nothing is. Connections are
	// shared only under the same credential.
	Credential string
	Slots      []Slot
	// Needles find what was injected in the answer. Tripwire finds placeholders
	// in the request.
	Needles  *redact.Matcher
	Tripwire *redact.Matcher
	// Identity asks the upstream for a body that is not compressed. It is implied
	// by Needles.
	Identity bool
	// Cookies lets the cookies of the upstream through.
	Cookies bool
	// Jar, if it is set, takes the cookies of the upstream, which the agent does not
	// get; what it holds comes back by a slot. The agent's own are taken out.
	Jar func(set []*http.Cookie)
	// Tokens, if it is set, keeps a token of the upstream here and gives the
	// handle that the agent gets instead: this is the upstream's token endpoint
	// (gateway.md, C8).
	Tokens func(member string, value estover.Secret) (handle string, err error)
	// TokenMembers are the members of the answer that are tokens; those of RFC 6749
	// if there are none. With TokenGuess it is not known that this is a token
	// endpoint: tokens are kept back if the answer looks like one's.
	TokenMembers []string
	TokenGuess   bool
	Limits       Limits

	// Sent sees the request as it is forwarded, slots shown as their labels.
	// Received sees the answer as it came; the needles are not masked, so nothing
	// but a hash may be kept of it. Delivered sees the answer as the agent gets
	// it. Each may be nil.
	Sent, Received, Delivered Tap

	// Echoed is called at once for each injected value that came back, with its
	// name in Needles. It may be nil.
	Echoed func(name string)

	// State is what the steps carry from one to the next. Nobody else looks at
	// it.
	State any
}

// Limits bound one exchange.
type Limits struct {
	Request int64         // bytes of the request's body; 0 means no limit
	Answer  int64         // bytes of the answer's body, decoded; 0 means no limit
	Age     time.Duration // of the exchange; a day if it is zero
	Stall   time.Duration // without progress towards or from the client; 30 seconds if it is zero
	Ratio   int64         // decoded to compressed bytes, beyond the first mebibyte; 100 if it is zero
}

// End says how an exchange or a tunnel ended.
type End string

// The ends.
const (
	Complete  End = "complete"  // the answer was delivered whole
	Cancelled End = "cancelled" // the client went away
	Cut       End = "cut"       // it was revoked, or too old
	Truncated End = "truncated" // a limit was reached
	Failed    End = "failed"    // the upstream failed
	Refused   End = "refused"   // nothing was sent, or not all of it
)

// An Outcome is what became of a plan.
type Outcome struct {
	End      End
	Err      error // why, unless it is complete
	Status   int   // of the upstream's answer; 0 if there was none
	Answered int   // the status that the agent got; 0 if none

	Sent, Received, Delivered int64 // bytes of the bodies; of the frames, if it was upgraded
	Upgraded                  bool

	Proto   string   // in which the upstream answered: "HTTP/1.1", "HTTP/2.0"
	Address string   // of the upstream, as dialled
	SPKI    [32]byte // SHA-256 of the public key in its certificate; zero without TLS
	Echoed  []string // the injected values that came back

	Begun time.Time
	First time.Duration // to the head of the answer
	Took  time.Duration // to the end

	abort bool // the client's connection must be cut, since it has part of an answer
}

// A Pipeline takes requests through the steps.
type Pipeline struct {
	Steps     Steps
	Forwarder *Forwarder
	Live      *Live
}

// Refuse answers a request that came to no decision, and records it.
func (p *Pipeline) Refuse(w http.ResponseWriter, ex *Exchange, err error) {
	p.Steps.Violate(ex, err)
	Refuse(w, ex.Caller.Request, err)
}

// Serve takes one request through all of the steps. It panics with
// [http.ErrAbortHandler] where the agent has part of an answer that will not
// be completed.
func (p *Pipeline) Serve(w http.ResponseWriter, r *http.Request, ex *Exchange) {
	f := &flight{forwarder: p.Forwarder, steps: p.Steps, w: w, ex: ex}
	r, err := f.enter(p.Live, r)
	if err != nil {
		Refuse(w, ex.Caller.Request, err)
		return
	}
	defer f.leave(p.Live)

	plan, err := p.Steps.Decide(r, ex)
	if err != nil {
		// What was refused may have been decided again meanwhile, and cut for it; the
		// answer to it says more.
		if own := (*Refusal)(nil); !errors.As(err, &own) {
			err = f.because(err)
		}
		Refuse(w, ex.Caller.Request, err)
		return
	}
	f.plan = plan
	if err := p.Steps.Intend(r.Context(), ex, plan); err != nil {
		Refuse(w, ex.Caller.Request, f.decided(f.because(err)))
		return
	}
	f.began = time.Now()
	finished := false
	defer func() {
		if !finished {
			f.out.End, f.out.Err = Failed, errPanic
		}
		p.Steps.Settle(ex, plan, &f.out)
		if finished && f.out.abort {
			panic(http.ErrAbortHandler)
		}
	}()
	if err := p.Steps.Fill(r.Context(), ex, plan); err != nil {
		f.refuse(f.because(err))
	} else {
		f.forward(r)
	}
	finished = true
}

// errPanic is the error of an exchange that nobody brought to its end.
var errPanic = errors.New("the exchange ended by a fault of ours")

// decided adds the decision to an error.
func (f *flight) decided(err error) error {
	var r *Refusal
	if errors.As(err, &r) {
		return err
	}
	return &Refusal{Err: err, Decision: f.plan.Decision}
}
