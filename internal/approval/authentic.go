package approval

import (
	"context"
	"crypto/hmac"
	"encoding/binary"
	"slices"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/approval/document"
	"estover.dev/internal/db"
)

// What was asked for, and what people said, is in rows that whoever can write to
// the database can edit. So each row carries a MAC under a key of the tenant that
// is not in the database ([Options.MAC]), over everything that decides what is
// approved. A row that does not agree with its MAC counts for nothing: nobody
// approves such a request, and what was granted by it is refused when it is loaded.

// ErrAltered is returned for a request or a vote whose row was not written here as
// it stands.
var ErrAltered = &estover.Error{Kind: estover.Denied, Code: "request_altered", Detail: "This request, or a vote on it, is not as Estover has written it, so it counts for nothing. Tell your administrator: somebody may have written to the database. Ask again."}

// ErrNotApproved is returned for a request that what was approved by it does not
// rest on.
var ErrNotApproved = &estover.Error{Kind: estover.Denied, Code: "request_not_approved", Detail: "The request was not approved by as many as had to, so nothing rests on it."}

// parts writes fields one after the other, each with its length before it.
type parts []byte

func (p *parts) text(s string) {
	*p = append(binary.BigEndian.AppendUint32(*p, uint32(len(s))), s...)
}

func (p *parts) time(t time.Time) {
	if t.IsZero() {
		p.text("")
		return
	}
	p.text(string(binary.BigEndian.AppendUint64(nil, uint64(t.UnixMicro()))))
}

func (p *parts) number(n int64) { p.text(string(binary.BigEndian.AppendUint64(nil, uint64(n)))) }

// sealed is the MAC of a request's row; spec and offer are as they are stored.
func (a *Approvals) sealed(tenant estover.TenantID, r *Request, state State, spec, offer string) []byte {
	if a.MAC == nil {
		return nil
	}
	p := parts{}
	for _, s := range []string{"request", r.ID, string(r.Kind), string(state), string(r.Requester), r.Agent, r.Session, spec, offer, string(r.Document)} {
		p.text(s)
	}
	p.number(r.Round)
	p.time(r.CreatedAt)
	p.time(r.ExpiresAt)
	if state != Pending {
		p.text(r.Result)
		p.text(string(r.DecidedBy))
		p.time(r.DecidedAt)
	}
	return a.MAC(tenant, p)
}

// sealedVote is the MAC of a vote's row.
func (a *Approvals) sealedVote(tenant estover.TenantID, request string, v *Vote) []byte {
	if a.MAC == nil {
		return nil
	}
	p := parts{}
	for _, s := range []string{"vote", request, string(v.Approver), string(v.For), string(v.Verdict), string(v.Document), string(v.Assertion)} {
		p.text(s)
	}
	p.number(v.Round)
	p.time(v.At)
	return a.MAC(tenant, p)
}

// authentic says that a request, which was read with its votes, is not as it was
// written here. One that is over without anything having come of it is not looked
// at: nothing rests on it.
func (a *Approvals) authentic(tenant estover.TenantID, r *Request) error {
	if a.MAC == nil || r.row.state == Cancelled {
		return nil
	}
	if !hmac.Equal(r.row.mac, a.sealed(tenant, r, r.row.state, r.row.spec, r.row.offer)) {
		return ErrAltered
	}
	for i := range r.Votes {
		if v := &r.Votes[i]; !hmac.Equal(v.mac, a.sealedVote(tenant, r.ID, v)) {
			return ErrAltered
		}
	}
	return nil
}

// A row is a request as it is stored, for its MAC.
type row struct {
	state       State
	spec, offer string
	mac         []byte
}

// Proven is a request on which something rests that was granted by it: approved,
// its rows as they were written here, its document that of what is on the table,
// and the votes those that approved just that, of as many people as the rule wants
// and of none who asked for it. Whether the votes are signed is for the caller to
// check.
func (a *Approvals) Proven(ctx context.Context, tx *db.Tx, id string) (Request, error) {
	r, err := find(ctx, tx, id)
	if err != nil {
		return r, err
	}
	if err := a.authentic(tx.Tenant(), &r); err != nil {
		return r, err
	}
	if r.State != Approved {
		return r, ErrNotApproved
	}
	offer := r.Offer
	offer.Until = time.Time{}
	text, err := r.render(tx.Tenant(), offer, r.Round)
	if err != nil || string(text) != string(r.Document) {
		return r, ErrAltered.Because(err)
	}
	r.Votes = slices.DeleteFunc(r.Votes, func(v Vote) bool { return v.Round != r.Round || v.Verdict != Approved })
	if r.DecidedBy == ByPolicy {
		return r, nil
	}
	var heard []estover.Subject
	for _, v := range r.Votes {
		if document.Digest(v.Document) != document.Digest(r.Document) || slices.Contains(heard, v.Approver) ||
			r.asked(v.Approver.ID()) {
			return r, ErrAltered
		}
		heard = append(heard, v.Approver)
	}
	if int64(len(heard)) < max(r.Rule.Quorum, 1) {
		return r, ErrNotApproved
	}
	return r, nil
}

// Results are the ids of what a request led to.
func Results(result string) []string { return strings.Fields(result) }
