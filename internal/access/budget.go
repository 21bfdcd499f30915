package access

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
)

// Budgets are how much may be done on a grant in all, by whoever works on it. A
// member that is zero is without limit.
type Budgets struct {
	Calls    int64 `json:"calls,omitempty" minimum:"0" doc:"How many calls may be made."`
	Rows     int64 `json:"rows,omitempty" minimum:"0" doc:"How many rows may be read: elements of the lists in the answers."`
	Records  int64 `json:"records,omitempty" minimum:"0" doc:"How many records of personal data may be read: rows of resources that hold such data."`
	BytesOut int64 `json:"bytes_out,omitempty" minimum:"0" doc:"How many bytes of answers may leave the resource."`
	Money    int64 `json:"money,omitempty" minimum:"0" doc:"What the calls may cost, in millionths of the currency unit, at the prices of the resource's actions."`
	Seconds  int64 `json:"seconds,omitempty" minimum:"0" doc:"How many seconds after its first use it may be used."`
	FanOut   int64 `json:"fan_out,omitempty" minimum:"0" doc:"How many agents to whom work is handed on may use it at once, counted in each session."`
}

// The names of the budgets, as people write them.
var budgetNames = []string{"calls", "rows", "records", "bytes_out", "money", "seconds", "fan_out"}

// of is the member with this name.
func (b *Budgets) of(name string) *int64 {
	switch name {
	case "calls":
		return &b.Calls
	case "rows":
		return &b.Rows
	case "records":
		return &b.Records
	case "bytes_out":
		return &b.BytesOut
	case "money":
		return &b.Money
	case "seconds":
		return &b.Seconds
	case "fan_out":
		return &b.FanOut
	}
	return nil
}

func (b Budgets) none() bool { return b == Budgets{} }

func (b Budgets) check(wrong func(field, format string, args ...any)) {
	for _, name := range budgetNames {
		switch n := *b.of(name); {
		case n < 0:
			wrong("budgets."+name, "A budget is a number above zero; leave out what is without limit.")
		case n > maxBudget:
			wrong("budgets."+name, "A budget is at most %d.", maxBudget)
		}
	}
	if b.Seconds > maxSeconds {
		wrong("budgets.seconds", "A budget of time is at most ten years.")
	}
}

const (
	maxBudget  = math.MaxInt64 / 4
	maxSeconds = int64(10 * 365 * 24 * time.Hour / time.Second)
)

// Set sets the budget of this name, as it is written on a command line.
func (b *Budgets) Set(name string, n int64) error {
	at := b.of(name)
	if at == nil {
		return ErrInvalid.With("There is no budget %q; there are %s.", name, strings.Join(budgetNames, ", ")).At("budgets")
	}
	*at = n
	return nil
}

// String is the budgets as they are written on a command line.
func (b Budgets) String() string {
	var all []string
	for _, name := range budgetNames {
		if n := *b.of(name); n > 0 {
			all = append(all, fmt.Sprintf("%s=%d", name, n))
		}
	}
	return strings.Join(all, " ")
}

// Spent is what has been taken of the budgets of a grant. What a call has
// reserved and does not need is in it until the call is over.
type Spent struct {
	Calls    int64     `json:"calls"`
	Rows     int64     `json:"rows"`
	Records  int64     `json:"records"`
	BytesOut int64     `json:"bytes_out"`
	Money    int64     `json:"money"`
	FanOut   int64     `json:"fan_out"`
	BegunAt  time.Time `json:"begun_at,omitzero"` // the first use
}

// An Amount is what a call takes of budgets.
type Amount struct{ Calls, Rows, Records, BytesOut, Money int64 }

func (a Amount) plus(b Amount) Amount {
	return Amount{a.Calls + b.Calls, a.Rows + b.Rows, a.Records + b.Records, a.BytesOut + b.BytesOut, a.Money + b.Money}
}

func (a Amount) minus(b Amount) Amount {
	return Amount{a.Calls - b.Calls, a.Rows - b.Rows, a.Records - b.Records, a.BytesOut - b.BytesOut, a.Money - b.Money}
}

func (s *Spent) add(a Amount) {
	s.Calls, s.Rows, s.Records, s.BytesOut, s.Money = s.Calls+a.Calls, s.Rows+a.Rows, s.Records+a.Records, s.BytesOut+a.BytesOut, s.Money+a.Money
}

// A dimension is a budget that adds up.
type dimension struct {
	name  string // in the API
	what  string // in a sentence
	limit func(*Budgets) int64
	spent func(*Spent) int64
	of    func(*Amount) *int64

	// Of what comes in pieces some is reserved ahead: first at first, and most at
	// most.
	pieces      bool
	first, most int64
}

var dimensions = []dimension{
	{
		name: "calls", what: "calls",
		limit: func(b *Budgets) int64 { return b.Calls }, spent: func(s *Spent) int64 { return s.Calls }, of: func(a *Amount) *int64 { return &a.Calls },
	},
	{
		name: "rows", what: "rows", pieces: true, first: 64, most: 1 << 10,
		limit: func(b *Budgets) int64 { return b.Rows }, spent: func(s *Spent) int64 { return s.Rows }, of: func(a *Amount) *int64 { return &a.Rows },
	},
	{
		name: "records", what: "records of personal data", pieces: true, first: 64, most: 1 << 10,
		limit: func(b *Budgets) int64 { return b.Records }, spent: func(s *Spent) int64 { return s.Records }, of: func(a *Amount) *int64 { return &a.Records },
	},
	{
		name: "bytes_out", what: "bytes of answers", pieces: true, first: 64 << 10, most: 4 << 20,
		limit: func(b *Budgets) int64 { return b.BytesOut }, spent: func(s *Spent) int64 { return s.BytesOut }, of: func(a *Amount) *int64 { return &a.BytesOut },
	},
	{
		name: "money", what: "millionths of money",
		limit: func(b *Budgets) int64 { return b.Money }, spent: func(s *Spent) int64 { return s.Money }, of: func(a *Amount) *int64 { return &a.Money },
	},
}

// ErrBudget is returned when nothing, or not enough, is left of a budget. It has
// the code of the kernel's invariant, since no policy overrides it.
var ErrBudget = &estover.Error{Kind: estover.Denied, Code: "kernel_budget", Detail: "The budget of the grant is used up. Ask for another grant, or have an operator give one with a larger budget."}

const askAnother = "Ask for another grant, or have an operator give one with a larger budget."

// A Worker is somebody who works on a grant that is another's, by delegation.
type Worker struct{ Agent, Session string }

// An Account is what has budgets on which a call draws: a grant, or something
// that passes and limits in the same way what may be done by it.
type Account struct {
	ID      string // of the grant, or another that is no grant's
	Name    string // in sentences
	Budgets Budgets
	Worker  Worker // who works on a grant, if that is not its holder in the holder's own session

	// Until is when nothing draws any more on what is no grant: it is there from its
	// first use until then. Zero for a grant, which has its account from the beginning.
	Until time.Time
}

// Drawn are the accounts on which calls on a grant draw: its own, and that of the
// eligible grant among those of its agent that it was made of. None where there
// are no budgets.
func Drawn(grants []Grant, g *Grant, w Worker) (accounts []Account) {
	for {
		if !g.Budgets.none() {
			accounts = append(accounts, Account{ID: g.ID, Name: "the grant " + g.Name, Budgets: g.Budgets, Worker: w})
		}
		i := slices.IndexFunc(grants, func(o Grant) bool { return o.ID == g.ActivatedFrom })
		if i < 0 || g.ActivatedFrom == "" {
			return accounts
		}
		g = &grants[i]
	}
}

// counted reports whether who works on the account counts among those to whom
// work on it was handed on.
func (a *Account) counted() bool { return a.Budgets.FanOut > 0 && a.Worker != (Worker{}) }

type accountKey struct {
	tenant estover.TenantID
	id     string
}

type workerKey struct {
	accountKey
	Worker
}

// spent is what this node knows of what was taken. The database alone decides;
// this is what there is to choose and to foresee by.
type spent struct {
	mu      sync.Mutex
	seen    map[accountKey]seen
	workers map[workerKey]bool
}

type seen struct {
	Spent
	at time.Time // when it was read, by the real clock
}

// maxSeen bounds what is kept of accounts; beyond it, all are read anew.
const maxSeen = 20_000

// fresh is how old what is known of an account may be for a fact of policy.
const fresh = time.Second

func (s *spent) get(k accountKey) (seen, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.seen[k]
	return v, ok
}

func (s *spent) put(k accountKey, v Spent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen == nil || len(s.seen) >= maxSeen {
		s.seen = map[accountKey]seen{}
	}
	s.seen[k] = seen{v, time.Now()}
}

// took notes what this node has taken, or given back. What is known may then be
// too much, if it was read in between: nothing is refused by it alone.
func (s *spent) took(k accountKey, a Amount, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v, ok := s.seen[k]; ok {
		v.add(a)
		if v.BegunAt.IsZero() {
			v.BegunAt = now
		}
		s.seen[k] = v
	}
}

// joined notes that somebody is counted among those who work on a grant.
func (s *spent) joined(w workerKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.workers == nil || len(s.workers) >= maxSeen {
		s.workers = map[workerKey]bool{}
	}
	s.workers[w] = true
}

func (s *spent) counts(k accountKey, w Worker) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.workers[workerKey{k, w}]
}

// look reads what was taken of accounts, and who works on them.
func (a *Access) look(ctx context.Context, tenant estover.TenantID, accounts []Account) ([]Spent, error) {
	all, err := a.read(ctx, tenant, accounts)
	if !errors.Is(err, ErrNotFound) || !slices.ContainsFunc(accounts, func(one Account) bool { return !one.Until.IsZero() }) {
		return all, err
	}
	if err := a.guard.DB().Do(ctx, tenant, func(tx *db.Tx) error {
		for _, one := range accounts {
			if one.Until.IsZero() {
				continue
			}
			if err := openAccount(ctx, tx, one); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return nil, err
	}
	return a.read(ctx, tenant, accounts)
}

func (a *Access) read(ctx context.Context, tenant estover.TenantID, accounts []Account) (all []Spent, err error) {
	err = a.guard.DB().View(ctx, tenant, func(tx *db.Tx) error {
		for _, one := range accounts {
			k := accountKey{tenant, one.ID}
			s, err := spending(ctx, tx, one.ID)
			if err != nil {
				return err
			}
			a.spent.put(k, s)
			all = append(all, s)
			if !one.counted() {
				continue
			}
			there, err := works(ctx, tx, one.ID, one.Worker)
			if err != nil {
				return err
			}
			if there {
				a.spent.joined(workerKey{k, one.Worker})
			}
		}
		return nil
	})
	return all, err
}

// The words for how much is left of budgets.
const (
	Enough   = "ok"
	Near     = "near" // four fifths are taken of one
	Exceeded = "exceeded"
)

// Left says how much is left of the budgets of accounts, as the worst word that
// holds of any, and which budget that is about. What it knows may be a second old,
// but that nothing is left is always known from the database. [Access.Charge]
// decides.
func (a *Access) Left(ctx context.Context, tenant estover.TenantID, accounts []Account) (word, which string, err error) {
	word = Enough
	now := a.guard.DB().Now()
	for i, one := range accounts {
		w, what := Exceeded, ""
		if v, ok := a.spent.get(accountKey{tenant, one.ID}); ok && time.Since(v.at) < fresh {
			w, what = left(one.Budgets, v.Spent, now)
		}
		if w == Exceeded {
			read, err := a.look(ctx, tenant, accounts[i:i+1])
			if err != nil {
				return Exceeded, "", err
			}
			w, what = left(one.Budgets, read[0], now)
		}
		if w == Exceeded || w == Near && word == Enough {
			word, which = w, "the budget "+what+" of "+one.Name
		}
	}
	return word, which, nil
}

// Choose finds the grant that a call is made on: of those that fit best, the first
// of whose budgets most is left.
func (a *Access) Choose(ctx context.Context, tenant estover.TenantID, grants []Grant, c Call) (*Grant, Fit, error) {
	now := a.guard.DB().Now()
	var best *Grant
	fit, rank := NotGranted, 0
	order := []string{Exceeded, Near, Enough}
	for i := range grants {
		g := &grants[i]
		if !g.Covers(now, c) {
			continue
		}
		its := OtherPurpose
		if slices.Contains(g.Purposes, c.Purpose) {
			its = Granted
		}
		if its < fit {
			continue
		}
		word := Enough
		if accounts := Drawn(grants, g, Worker{}); len(accounts) > 0 {
			var err error
			if word, _, err = a.Left(ctx, tenant, accounts); err != nil {
				return nil, NotGranted, err
			}
		}
		if r := slices.Index(order, word); best == nil || its > fit || r > rank {
			best, fit, rank = g, its, r
		}
		if fit == Granted && word == Enough {
			break
		}
	}
	return best, fit, nil
}

func left(b Budgets, s Spent, now time.Time) (word, which string) {
	word = Enough
	judge := func(name string, spent, limit int64) {
		switch {
		case limit == 0 || word == Exceeded:
		case spent >= limit:
			word, which = Exceeded, name
		case spent >= limit-limit/5 && word == Enough:
			word, which = Near, name
		}
	}
	for _, d := range dimensions {
		judge(d.name, d.spent(&s), d.limit(&b))
	}
	if !s.BegunAt.IsZero() {
		judge("seconds", int64(now.Sub(s.BegunAt)/time.Second), b.Seconds)
	}
	return word, which
}

// A Charge is what a call has taken of the budgets of the grants that it rests
// on. It is used by one call, and not by many at once.
type Charge struct {
	access   *Access
	tenant   estover.TenantID
	accounts []Account
	held     Amount // of each of the accounts
	used     Amount // of that, what was needed so far
	until    time.Time
}

// Charge takes the share of a call from all of its accounts, or nothing of any,
// together with what w writes. Of rows, records and bytes it reserves what there
// is up to want, and more later ([Charge.Need]). It returns [ErrBudget] if too
// little is left of one, and [db.ErrStale] if something that w rests on has ended.
//
// A share that is never given back, because the process died, counts as used.
func (a *Access) Charge(ctx context.Context, tenant estover.TenantID, accounts []Account, want Amount, w db.Append) (*Charge, error) {
	accounts = slices.Clone(accounts)
	// Whoever draws on the same ones draws in the same order, so that none waits
	// for another in a circle.
	slices.SortFunc(accounts, func(x, y Account) int { return strings.Compare(x.ID, y.ID) })
	c := &Charge{access: a, tenant: tenant, accounts: accounts}
	took, err := c.take(ctx, want, w)
	if err != nil {
		return nil, err
	}
	c.held, c.used = took, Amount{Calls: took.Calls, Money: took.Money}
	return c, nil
}

// Until is when the time of the first of the grants is used up; zero if none has
// a budget of time.
func (c *Charge) Until() time.Time { return c.until }

// Held is what of each account the call has taken.
func (c *Charge) Held() Amount { return c.held }

// Limits reports whether one of the accounts limits rows, records or bytes.
func (c *Charge) Limits() (rows, bytes bool) {
	for _, one := range c.accounts {
		rows = rows || one.Budgets.Rows > 0 || one.Budgets.Records > 0
		bytes = bytes || one.Budgets.BytesOut > 0
	}
	return rows, bytes
}

// Need makes sure that what the call has needed so far is reserved, and more is
// where it is not. [ErrBudget] says that there is not enough.
func (c *Charge) Need(ctx context.Context, more Amount) error {
	more = c.limited(more)
	needed := c.used.plus(more)
	missing := Amount{
		Rows: max(0, needed.Rows-c.held.Rows), Records: max(0, needed.Records-c.held.Records), BytesOut: max(0, needed.BytesOut-c.held.BytesOut),
	}
	if missing != (Amount{}) {
		took, err := c.take(ctx, missing, db.Append{Tenant: c.tenant})
		if err != nil {
			return err
		}
		c.held = c.held.plus(took)
	}
	c.used = needed
	return nil
}

// limited is what of an amount of rows, records and bytes some account limits.
func (c *Charge) limited(a Amount) Amount {
	var out Amount
	for _, d := range dimensions {
		if d.pieces && slices.ContainsFunc(c.accounts, func(one Account) bool { return d.limit(&one.Budgets) > 0 }) {
			*d.of(&out) = *d.of(&a)
		}
	}
	return out
}

// take reserves an amount of every account in one append. Rows, records and bytes
// that are wanted are needed; some more are reserved where there is room.
func (c *Charge) take(ctx context.Context, want Amount, w db.Append) (Amount, error) {
	a := c.access
	w.Tenant = c.tenant
	views, read := c.known(), false
	for {
		if err := ctx.Err(); err != nil {
			return Amount{}, err
		}
		now := a.guard.DB().Now()
		if views == nil {
			var err error
			if views, err = a.look(ctx, c.tenant, c.accounts); err != nil {
				return Amount{}, err
			}
			read = true
		}
		took, err := c.fit(want, views, now)
		if err != nil && !read {
			views = nil
			continue
		}
		if err != nil {
			return Amount{}, err
		}
		one := w
		one.Steps = append(slices.Clone(w.Steps), c.steps(took, now)...)
		err = a.guard.DB().Append(ctx, one)
		if err == nil {
			for _, account := range c.accounts {
				k := accountKey{c.tenant, account.ID}
				a.spent.took(k, took, now)
				if account.counted() {
					a.spent.joined(workerKey{k, account.Worker})
				}
			}
			return took, nil
		}
		if !errors.Is(err, db.ErrStale) {
			return Amount{}, err
		}
		// Another was faster, or what w rests on has ended. Whoever was faster has
		// changed the row; if nothing has changed, it is the other.
		again, err := a.look(ctx, c.tenant, c.accounts)
		if err != nil {
			return Amount{}, err
		}
		if slices.Equal(again, views) {
			return Amount{}, db.ErrStale
		}
		views, read = again, true
	}
}

// known is what this node knows of the accounts; nil if it does not know all.
func (c *Charge) known() []Spent {
	views := make([]Spent, len(c.accounts))
	for i, one := range c.accounts {
		v, ok := c.access.spent.get(accountKey{c.tenant, one.ID})
		if !ok {
			return nil
		}
		views[i] = v.Spent
	}
	return views
}

// ahead is how much more than it needs a call reserves at once, so that an answer
// of many pieces is not as many writes: as much again as it has, within bounds
// and never more than a sixty-fourth of the budget.
func (d *dimension) ahead(have, limit int64) int64 {
	return min(max(have, d.first), d.most, limit/64)
}

// fit is what can be taken of all accounts, as far as is known.
func (c *Charge) fit(want Amount, views []Spent, now time.Time) (Amount, error) {
	took := want
	c.until = time.Time{}
	for i, one := range c.accounts {
		s, b := &views[i], &one.Budgets
		for _, d := range dimensions {
			limit, need := d.limit(b), *d.of(&want)
			if limit > 0 && need > limit-d.spent(s) {
				return took, ErrBudget.With("Of the %d %s that %s allows in all, %d are left; this needs %d. %s",
					limit, d.what, one.Name, max(0, limit-d.spent(s)), need, askAnother)
			}
		}
		if b.Seconds > 0 {
			begun := s.BegunAt
			if begun.IsZero() {
				begun = now
			}
			end := begun.Add(time.Duration(b.Seconds) * time.Second)
			if !now.Before(end) {
				return took, ErrBudget.With("For %s there are %d seconds from its first use, and they are over. %s", one.Name, b.Seconds, askAnother)
			}
			if c.until.IsZero() || end.Before(c.until) {
				c.until = end
			}
		}
		if one.counted() && s.FanOut >= b.FanOut && !c.access.spent.counts(accountKey{c.tenant, one.ID}, one.Worker) {
			return took, ErrBudget.With("Work on %s may be handed on to %d agents at once, and is. Let one of them do it, or end its session.", one.Name, b.FanOut)
		}
	}
	// Some more of what comes in pieces, as far as every account has it.
	for _, d := range dimensions {
		need := *d.of(&want)
		if !d.pieces || need == 0 {
			continue
		}
		more := int64(math.MaxInt64)
		for i, one := range c.accounts {
			if limit := d.limit(&one.Budgets); limit > 0 {
				more = min(more, limit-d.spent(&views[i])-need, d.ahead(*d.of(&c.held)+need, limit))
			}
		}
		if *d.of(&took) += more; more == math.MaxInt64 { // nobody counts them
			*d.of(&took) = 0
		}
	}
	return took, nil
}

const takeText = `update access_spent set calls = calls + $3, rows_out = rows_out + $4, records = records + $5,
		bytes_out = bytes_out + $6, money = money + $7, fan_out = fan_out + $8, begun_at = coalesce(begun_at, $9)
	where tenant_id = $1 and id = $2 and calls + $3 <= $10 and rows_out + $4 <= $11 and records + $5 <= $12
		and bytes_out + $6 <= $13 and money + $7 <= $14 and fan_out + $8 <= $15 and (begun_at is null or begun_at > $16)`

// steps are what takes an amount of each account, if it is there.
func (c *Charge) steps(took Amount, now time.Time) []db.Step {
	unlimited := func(n int64) int64 {
		if n == 0 {
			return math.MaxInt64
		}
		return n
	}
	var steps []db.Step
	for _, one := range c.accounts {
		b, joins := one.Budgets, int64(0)
		if one.counted() && !c.access.spent.counts(accountKey{c.tenant, one.ID}, one.Worker) {
			joins = 1
			steps = append(steps, db.Step{
				Text: `insert into access_delegate (tenant_id, grant_id, session_id, agent_id) values ($1, $2, $3, $4) on conflict do nothing`,
				Args: []any{one.ID, one.Worker.Session, one.Worker.Agent},
			})
		}
		since := int64(math.MinInt64)
		if b.Seconds > 0 {
			since = now.Add(-time.Duration(b.Seconds) * time.Second).UnixMicro()
		}
		fan := unlimited(b.FanOut)
		if joins == 0 {
			fan = math.MaxInt64 // whoever is counted already may go on
		}
		steps = append(steps, db.Step{Text: takeText, Args: []any{
			one.ID, took.Calls, took.Rows, took.Records, took.BytesOut, took.Money, joins, now,
			unlimited(b.Calls), unlimited(b.Rows), unlimited(b.Records), unlimited(b.BytesOut), unlimited(b.Money), fan, since,
		}})
	}
	return steps
}

// Settle gives back what the call did not need; nothing at all if it was never
// made.
func (c *Charge) Settle(ctx context.Context, made bool) error {
	back := c.held.minus(c.used)
	if !made {
		back = c.held
	}
	c.held = c.held.minus(back)
	if back == (Amount{}) {
		return nil
	}
	err := c.access.guard.DB().Do(ctx, c.tenant, func(tx *db.Tx) error {
		for _, one := range c.accounts {
			if err := giveBack(ctx, tx, one.ID, back); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("giving back what a call did not need of its budgets: %w", err)
	}
	for _, one := range c.accounts {
		c.access.spent.took(accountKey{c.tenant, one.ID}, Amount{}.minus(back), time.Time{})
	}
	return nil
}
