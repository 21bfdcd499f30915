package gateway

import (
	"context"
	"slices"
	"sync"

	"estover.dev"
)

// ErrEnded is the cause of what is cut because its session has ended, and the
// answer to what comes after.
var ErrEnded = &estover.Error{Kind: estover.Denied, Code: "session_ended", Detail: "The session has ended."}

// ErrBusy is the answer to what would be too much at once.
var ErrBusy = &estover.Error{Kind: estover.TooMuch, Code: "too_much_at_once", Detail: "The session has too many requests and tunnels under way. Wait until some have ended."}

// MaxUnderWay is how many exchanges and tunnels of a session may be under way.
const MaxUnderWay = 4096

// Live is the index of what is under way: session → exchanges and tunnels. It
// is how a revocation reaches a stream that nobody asks about again (gateway.md,
// C10). The zero Live is empty and ready.
type Live struct {
	mu       sync.Mutex
	sessions map[liveKey]*liveSession
	ended    map[liveKey]error
}

type liveKey struct {
	tenant  estover.TenantID
	session string
}

// A liveSession is the list of what is under way in a session, the latest
// first, so that an exchange stands before the tunnel that it came through.
type liveSession struct {
	first *entry
	count int
}

// An entry is one exchange or tunnel.
type entry struct {
	ex         *Exchange
	end        func(cause error) // ends it; may be called at any time, and more than once
	prev, next *entry
}

// enter adds an entry, unless its session has ended, or has as many as one may.
func (l *Live) enter(e *entry) error {
	key := liveKey{e.ex.Caller.Tenant, e.ex.Caller.Session}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.ended[key]; err != nil {
		return err
	}
	s := l.sessions[key]
	if s == nil {
		if l.sessions == nil {
			l.sessions = map[liveKey]*liveSession{}
		}
		s = &liveSession{}
		l.sessions[key] = s
	}
	if s.count >= MaxUnderWay {
		return ErrBusy
	}
	e.next = s.first
	if s.first != nil {
		s.first.prev = e
	}
	s.first = e
	s.count++
	return nil
}

// leave takes an entry out.
func (l *Live) leave(e *entry) {
	key := liveKey{e.ex.Caller.Tenant, e.ex.Caller.Session}
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.sessions[key]
	if e.prev != nil {
		e.prev.next = e.next
	} else {
		s.first = e.next
	}
	if e.next != nil {
		e.next.prev = e.prev
	}
	if s.count--; s.count == 0 {
		delete(l.sessions, key)
	}
}

// Hold enters a context for something that is under way outside of the
// pipeline, such as a tunnel. If the session is cut, end is called with the
// cause. The function that comes back takes it out again.
func (l *Live) Hold(ex *Exchange, end func(cause error)) (leave func(), err error) {
	e := &entry{ex: ex, end: end}
	if err := l.enter(e); err != nil {
		return nil, err
	}
	return sync.OnceFunc(func() { l.leave(e) }), nil
}

// Cut ends everything that is under way in a session, and lets nothing begin in
// it again. The cause is recorded with each outcome and shown to the agent. It
// returns how many exchanges and tunnels were ended. The connections are closed
// when it returns; the outcomes are recorded soon after.
func (l *Live) Cut(tenant estover.TenantID, session string, cause error) int {
	key := liveKey{tenant, session}
	l.mu.Lock()
	if l.ended == nil {
		l.ended = map[liveKey]error{}
	}
	l.ended[key] = cause
	list := l.sessions[key].list()
	l.mu.Unlock()
	for _, e := range list {
		e.end(cause)
	}
	return len(list)
}

// CutAll ends everything that is under way, for a program that stops. What
// begins afterwards is not prevented: the doors are closed by then.
func (l *Live) CutAll(cause error) int {
	l.mu.Lock()
	var list []*entry
	for _, s := range l.sessions {
		list = append(list, s.list()...)
	}
	l.mu.Unlock()
	for _, e := range list {
		e.end(cause)
	}
	return len(list)
}

// Forget lets the index forget that a session was cut, which is safe once
// nobody can prove to be that session any more.
func (l *Live) Forget(tenant estover.TenantID, session string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.ended, liveKey{tenant, session})
}

// Recheck asks about everything that is under way in a session, and ends that
// for which there is an error. It returns how many that were.
func (l *Live) Recheck(tenant estover.TenantID, session string, ask func(*Exchange) error) (ended int) {
	l.mu.Lock()
	list := l.sessions[liveKey{tenant, session}].list()
	l.mu.Unlock()
	for _, e := range list {
		if cause := ask(e.ex); cause != nil {
			e.end(cause)
			ended++
		}
	}
	return ended
}

// RecheckAll is [Live.Recheck] for all sessions of a tenant.
func (l *Live) RecheckAll(tenant estover.TenantID, ask func(*Exchange) error) (ended int) {
	l.mu.Lock()
	var list []*entry
	for key, s := range l.sessions {
		if key.tenant == tenant {
			list = append(list, s.list()...)
		}
	}
	l.mu.Unlock()
	for _, e := range list {
		if cause := ask(e.ex); cause != nil {
			e.end(cause)
			ended++
		}
	}
	return ended
}

// CutAgent ends everything that an agent has a part in, whoever's session it
// belongs to, but what belongs to some sessions: what is handed on is used in the
// session in which it began, and that goes on.
func (l *Live) CutAgent(tenant estover.TenantID, agent string, but []string, cause error) int {
	list := l.of(tenant, map[string]bool{agent: true})
	list = slices.DeleteFunc(list, func(e *entry) bool { return slices.Contains(but, e.ex.Caller.Session) })
	for _, e := range list {
		e.end(cause)
	}
	return len(list)
}

// CountAgent is how much is under way that an agent has a part in.
func (l *Live) CountAgent(tenant estover.TenantID, agent string) int {
	return len(l.of(tenant, map[string]bool{agent: true}))
}

// CutWhere ends everything that somebody has under way, or that goes somewhere,
// as match says of its caller, of the host and port that it goes to and of the
// reverse route that it came by, if it did.
func (l *Live) CutWhere(match func(c *estover.Caller, host, route string) bool, cause error) int {
	list := l.where(match)
	for _, e := range list {
		e.end(cause)
	}
	return len(list)
}

// CountWhere is how much is under way of which match says so.
func (l *Live) CountWhere(match func(c *estover.Caller, host, route string) bool) int {
	return len(l.where(match))
}

func (l *Live) where(match func(c *estover.Caller, host, route string) bool) (list []*entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.sessions {
		for e := s.first; e != nil; e = e.next {
			if match(&e.ex.Caller, e.ex.Host.String(), e.ex.Route) {
				list = append(list, e)
			}
		}
	}
	return list
}

// RecheckOf asks about everything that one of these agents or grants has a part
// in, all at once, and ends that for which there is an error. It waits for no
// answer.
func (l *Live) RecheckOf(tenant estover.TenantID, ids map[string]bool, ask func(*Exchange) error) {
	for _, e := range l.of(tenant, ids) {
		go func() {
			if cause := ask(e.ex); cause != nil {
				e.end(cause)
			}
		}()
	}
}

// of copies from the lists of a tenant what one of these agents or grants has a
// part in: it is done for the agent, by it, by way of it, or with a token that was
// issued to it or rests on the grant.
func (l *Live) of(tenant estover.TenantID, ids map[string]bool) (list []*entry) {
	agent := func(s estover.Subject) bool { return s.Kind() == estover.AgentKind && ids[s.ID()] }
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, s := range l.sessions {
		if key.tenant != tenant {
			continue
		}
		for e := s.first; e != nil; e = e.next {
			if c := &e.ex.Caller; ids[c.Grant] || ids[c.Client] || agent(c.Subject) || slices.ContainsFunc(c.Actors, agent) {
				list = append(list, e)
			}
		}
	}
	return list
}

// list copies the list.
func (s *liveSession) list() (list []*entry) {
	if s == nil {
		return nil
	}
	for e := s.first; e != nil; e = e.next {
		list = append(list, e)
	}
	return list
}

// Count is how many exchanges and tunnels are under way in a session.
func (l *Live) Count(tenant estover.TenantID, session string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.sessions[liveKey{tenant, session}]; s != nil {
		return s.count
	}
	return 0
}

// cutCause is the cause of a context that was cut, and nil if it ended for
// another reason or goes on.
func cutCause(ctx context.Context) error {
	if c, ok := context.Cause(ctx).(*cut); ok {
		return c.cause
	}
	return nil
}

// A cut marks a cause as one of ours.
type cut struct{ cause error }

func (c *cut) Error() string { return c.cause.Error() }
func (c *cut) Unwrap() error { return c.cause }
