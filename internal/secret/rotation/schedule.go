package rotation

import (
	"crypto/sha256"
	"encoding/binary"
	"strconv"
	"strings"
	"time"

	"estover.dev/internal/secret"
)

// periods are how long a version is good, by the risk of its secret (R10).
var periods = map[secret.Risk]time.Duration{secret.High: 24 * time.Hour, secret.Standard: 7 * 24 * time.Hour, secret.Low: 30 * 24 * time.Hour}

// never is when something is tried again that waits for somebody.
var never = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)

// A schedule is a text of [Spec.Schedule], read. The zero one goes by risk.
type schedule struct {
	manual bool
	every  time.Duration
	cron   *cron
}

const (
	shortest = 5 * time.Second
	longest  = 366 * 24 * time.Hour
)

func parseSchedule(s string) (schedule, error) {
	bad := ErrInvalid.With("A schedule is a time between 5s and 366d, five fields of cron, or manual, not %q.", s).At("schedule")
	switch fields := strings.Fields(s); {
	case s == "":
		return schedule{}, nil
	case s == "manual":
		return schedule{manual: true}, nil
	case len(fields) == 5:
		c, ok := parseCron(fields)
		if !ok || c.after(time.Unix(0, 0).UTC()).IsZero() {
			return schedule{}, bad
		}
		return schedule{cron: c}, nil
	case len(fields) == 1:
		every, err := time.ParseDuration(s)
		if days, ok := strings.CutSuffix(s, "d"); ok {
			var n int64
			n, err = strconv.ParseInt(days, 10, 32)
			every = time.Duration(n) * 24 * time.Hour
		}
		if err == nil && every >= shortest && every <= longest {
			return schedule{every: every}, nil
		}
	}
	return schedule{}, bad
}

// A window is a part of the day, in minutes since midnight; from is to when there
// is none. It may go over midnight.
type window struct{ from, to int }

func parseWindow(s string) (w window, err error) {
	if s == "" {
		return w, nil
	}
	from, to, ok := strings.Cut(s, "-")
	a, failed := time.Parse("15:04", from)
	b, failed2 := time.Parse("15:04", to)
	if !ok || failed != nil || failed2 != nil || a.Equal(b) {
		return w, ErrInvalid.With("A window is a part of the day, as 02:00-05:00, not %q.", s).At("window")
	}
	return window{a.Hour()*60 + a.Minute(), b.Hour()*60 + b.Minute()}, nil
}

// in is t, or when the window opens next if it is not open then.
func (w window) in(t time.Time) time.Time {
	if w.from == w.to {
		return t
	}
	t = t.UTC()
	m := t.Hour()*60 + t.Minute()
	open := m >= w.from && m < w.to
	if w.from > w.to {
		open = m >= w.from || m < w.to
	}
	if open {
		return t
	}
	next := time.Date(t.Year(), t.Month(), t.Day(), w.from/60, w.from%60, 0, 0, time.UTC)
	if next.Before(t) {
		next = next.AddDate(0, 0, 1)
	}
	return next
}

// due is when the version that has been current since then is to be replaced;
// zero for when somebody says so. Up to a tenth of the time is taken off, by a
// number that is the version's own, so that not all is done at once.
func (s Spec) due(since time.Time, risk secret.Risk, id string, version int64) time.Time {
	if since.IsZero() {
		since = time.Unix(0, 0)
	}
	p, err := parseSchedule(s.Schedule)
	if err != nil {
		panic("rotation: a schedule that was checked")
	}
	switch {
	case p.manual:
		return time.Time{}
	case p.cron != nil:
		return s.open(p.cron.after(since))
	}
	every := p.every
	if every == 0 {
		if every = periods[risk]; every == 0 {
			every = periods[secret.Standard]
		}
	}
	return s.after(since, every, id, version)
}

// after is when a time is over, but for up to a tenth of it.
func (s Spec) after(since time.Time, every time.Duration, id string, version int64) time.Time {
	sum := sha256.Sum256([]byte(id + "@" + strconv.FormatInt(version, 10)))
	share := float64(binary.BigEndian.Uint32(sum[:])) / (1 << 32)
	return s.open(since.Add(every - time.Duration(share*float64(every)/10)))
}

// open is t, or when the window opens next.
func (s Spec) open(t time.Time) time.Time {
	w, err := parseWindow(s.Window)
	if err != nil {
		panic("rotation: a window that was checked")
	}
	return w.in(t)
}

// missed is when a rotation that was due at a time is due instead, since its time is
// over; zero if it is not, or if the current version would end before that.
func (r *Rotation) missed(due, now time.Time) time.Time {
	if r.Within == 0 || due.IsZero() || now.Before(due.Add(time.Duration(r.Within)*time.Second)) {
		return time.Time{}
	}
	next := r.due(now, "", "", 0)
	if r.ending(next) {
		return time.Time{}
	}
	return next
}

// plan says when the next rotation begins by itself, and until then when there is
// something to do. A secret without a version gets its first at once, unless it
// is made by hand.
func (r *Rotation) plan(now time.Time, risk secret.Risk) {
	r.DueAt = r.next(risk)
	if r.Current == 0 && r.Schedule != "manual" {
		r.DueAt = now
	}
	r.wait()
}

// wait has an idle rotation looked at when it is due.
func (r *Rotation) wait() {
	if r.Step != Idle {
		return
	}
	if r.Next = r.DueAt; r.DueAt.IsZero() {
		r.Next = never
	}
}

// A cron is a time in five fields: minute, hour, day of the month, month, day of
// the week; each a set of bits.
type cron struct {
	minute, hour, day, month, week uint64
	anyDay, anyWeek                bool
}

func parseCron(f []string) (*cron, bool) {
	var c cron
	ok := true
	for i, p := range []struct {
		to       *uint64
		min, max int
	}{{&c.minute, 0, 59}, {&c.hour, 0, 23}, {&c.day, 1, 31}, {&c.month, 1, 12}, {&c.week, 0, 7}} {
		var good bool
		if *p.to, good = bits(f[i], p.min, p.max); !good {
			ok = false
		}
	}
	c.week |= c.week >> 7 & 1 // Sunday is 0 and 7
	c.anyDay, c.anyWeek = f[2] == "*", f[4] == "*"
	return &c, ok
}

// bits reads one field: *, 5, 1-5, */15, 1-30/5, and lists of these.
func bits(s string, least, most int) (set uint64, ok bool) {
	for part := range strings.SplitSeq(s, ",") {
		span, by, stepped := strings.Cut(part, "/")
		step := 1
		if stepped {
			n, err := strconv.Atoi(by)
			if err != nil || n < 1 || n > most {
				return 0, false
			}
			step = n
		}
		from, to := least, most
		if span != "*" {
			a, b, ranged := strings.Cut(span, "-")
			n, err := strconv.Atoi(a)
			if err != nil {
				return 0, false
			}
			if from = n; !stepped {
				to = n
			}
			if ranged {
				if to, err = strconv.Atoi(b); err != nil {
					return 0, false
				}
			}
		}
		if from < least || to > most || from > to {
			return 0, false
		}
		for n := from; n <= to; n += step {
			set |= 1 << n
		}
	}
	return set, true
}

// after is the first time after t, in UTC; zero if there is none in eight years.
func (c *cron) after(t time.Time) time.Time {
	t = t.UTC().Truncate(time.Minute).Add(time.Minute)
	for end := t.AddDate(8, 0, 1); t.Before(end); {
		day, week := c.day>>t.Day()&1 == 1, c.week>>t.Weekday()&1 == 1
		right := day && week
		if !c.anyDay && !c.anyWeek { // either, as cron has always had it
			right = day || week
		}
		switch {
		case c.month>>t.Month()&1 == 0 || !right:
			t = time.Date(t.Year(), t.Month(), t.Day()+1, 0, 0, 0, 0, time.UTC)
		case c.hour>>t.Hour()&1 == 0:
			t = t.Truncate(time.Hour).Add(time.Hour)
		case c.minute>>t.Minute()&1 == 0:
			t = t.Add(time.Minute)
		default:
			return t
		}
	}
	return time.Time{}
}
