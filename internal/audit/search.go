package audit

import (
	"cmp"
	"context"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
)

// A Filter says which events are looked for. What is empty lets all through.
// The events of a session, a target or an actor are found by an index, and so
// is a time; the rest is looked at one by one.
type Filter struct {
	Action  string
	Outcome Outcome
	Actor   estover.Subject
	Target  string
	Session string
	Since   time.Time
	Until   time.Time // exclusive
}

// List reads the events that the filter lets through, the newest first: those
// that wait for their place, then those in places before the given one, 0 for
// the end of the log. It reads limit events, and all that wait beside. It
// gives the place to go on before, or 0 when there are no more.
func (l *Log) List(ctx context.Context, tx *db.Tx, f Filter, before int64, limit int) (events []Entry, next int64, err error) {
	var rows []row
	if before <= 0 {
		if rows, err = readFilteredWaiting(ctx, tx, f); err != nil {
			return nil, 0, err
		}
	}
	first, end, err := f.places(ctx, tx, before)
	if err != nil {
		return nil, 0, err
	}
	want := max(limit-len(rows), 0)
	placed, err := f.read(ctx, tx, first, end, want)
	if err != nil {
		return nil, 0, err
	}
	switch {
	case len(placed) < want:
	case want == 0:
		next = end // the page was full before it came to those with a place
	default:
		next = placed[len(placed)-1].idx.Int64
	}
	events, err = l.entries(tx.Tenant(), append(rows, placed...))
	return events, next, err
}

// slack is how far two events may be apart in time that stand in the wrong
// order: as long as a transaction may take, and as far as the clocks of nodes
// may differ.
const slack = time.Minute

// places are the first place that may hold an event of the filter's time, and
// the end of those that may.
func (f Filter) places(ctx context.Context, tx *db.Tx, before int64) (first, end int64, err error) {
	t, err := readTree(ctx, tx)
	if err != nil {
		return 0, 0, err
	}
	if end = t.size; before > 0 {
		end = min(end, before)
	}
	find := func(at time.Time) int64 {
		i := sort.Search(int(end), func(i int) bool {
			var have time.Time
			if err == nil {
				have, err = timeOf(ctx, tx, int64(i))
			}
			return !have.Before(at)
		})
		return int64(i)
	}
	if !f.Until.IsZero() {
		end = find(f.Until.Add(slack))
	}
	if !f.Since.IsZero() {
		first = find(f.Since.Add(-slack))
	}
	return first, end, err
}

// only are the events that the filter lets through.
func (f Filter) only(rows []row) []row {
	return slices.DeleteFunc(rows, func(r row) bool { return !f.lets(&r.event) })
}

// lets reports whether the filter lets an event through.
func (f Filter) lets(e *Event) bool {
	fits := func(wanted, have string) bool { return wanted == "" || wanted == have }
	return fits(f.Session, e.Session) && fits(f.Target, e.Target) && fits(string(f.Actor), string(e.Actor)) && fits(f.Action, e.Action) &&
		fits(string(f.Outcome), string(e.Outcome)) && (f.Since.IsZero() || !e.At.Before(f.Since)) && (f.Until.IsZero() || e.At.Before(f.Until))
}

// lookedAt is how many places are looked at with one statement.
const lookedAt = 256

// read reads the events between two places that the filter lets through, the
// last first, at most limit of them.
func (f Filter) read(ctx context.Context, tx *db.Tx, first, end int64, limit int) (out []row, err error) {
	ref := f.ref()
	if ref == "" {
		for len(out) < limit && first < end {
			var rows []row
			if rows, end, err = readFilteredPlaced(ctx, tx, f, first, end, limit); err != nil {
				return nil, err
			}
			out = append(out, rows...)
		}
		return out[:min(len(out), limit)], nil
	}
	// The newest are in no post yet.
	t, err := readTree(ctx, tx)
	if err != nil {
		return nil, err
	}
	if from := max(first, t.posted); from < end {
		events, err := readHeadsBetween(ctx, tx, from, end)
		if err != nil {
			return nil, err
		}
		var places []int64
		for i, e := range events {
			if slices.Contains(refs(e.Session, e.Target, string(e.Actor)), ref) {
				places = append(places, from+int64(i))
			}
		}
		if out, err = f.readAt(ctx, tx, places, limit); err != nil || len(out) >= limit {
			return out, err
		}
	}
	for before := min(end, t.posted); len(out) < limit && before > first; {
		posts, err := readPosts(ctx, tx, ref, before)
		if err != nil {
			return nil, err
		}
		if len(posts) == 0 {
			break
		}
		for _, p := range posts {
			before = p.first
			places := slices.DeleteFunc(p.places(), func(place int64) bool { return place < first || place >= end })
			rows, err := f.readAt(ctx, tx, places, limit-len(out))
			if err != nil {
				return nil, err
			}
			if out = append(out, rows...); len(out) >= limit {
				return out, nil
			}
		}
	}
	return out, nil
}

// readAt reads the events in these places that the filter lets through, the last
// first, at most limit of them.
func (f Filter) readAt(ctx context.Context, tx *db.Tx, places []int64, limit int) (out []row, err error) {
	slices.Reverse(places)
	for some := range slices.Chunk(places, lookedAt) {
		rows, err := readFilteredAt(ctx, tx, f, some)
		if err != nil {
			return nil, err
		}
		if out = append(out, rows...); len(out) >= limit {
			return out[:limit], nil
		}
	}
	return out, nil
}

// ref is what the filter is looked up by: what fewer events have first.
func (f Filter) ref() string {
	refs := refs(f.Session, f.Target, string(f.Actor))
	if len(refs) == 0 {
		return ""
	}
	return refs[0]
}

// A ref is what an event is found by: its session, its target or its actor.
type ref struct{ kind, of string }

func (r ref) String() string { return r.kind + " " + r.of }

func refsOf(session, target, actor string) [3]ref {
	return [...]ref{{"session", session}, {"target", target}, {"actor", actor}}
}

// refs are what an event is found by, as it is stored.
func refs(session, target, actor string) (out []string) {
	for _, r := range refsOf(session, target, actor) {
		if r.of != "" {
			out = append(out, r.String())
		}
	}
	return out
}

// A post is which events of one run have a ref.
type post struct {
	ref     string
	first   int64  // the run's first place
	offsets string // of the events from there: "0 3 17"
}

// postings are the posts of events that get consecutive places.
func postings(first int64, events []head) []post {
	byRef := map[ref]*[]byte{}
	for i, e := range events {
		for _, r := range refsOf(e.Session, e.Target, string(e.Actor)) {
			if r.of == "" {
				continue
			}
			b := byRef[r]
			if b == nil {
				b = new([]byte)
				byRef[r] = b
			} else {
				*b = append(*b, ' ')
			}
			*b = strconv.AppendInt(*b, int64(i), 10)
		}
	}
	out := make([]post, 0, len(byRef))
	for r, offsets := range byRef {
		out = append(out, post{r.String(), first, string(*offsets)})
	}
	slices.SortFunc(out, func(a, b post) int { return cmp.Compare(a.ref, b.ref) }) // neighbours on the disk are written together
	return out
}

// places are the places of the post's events. What is no number stands for no
// event.
func (p post) places() (out []int64) {
	for _, s := range strings.Fields(p.offsets) {
		if n, err := strconv.ParseInt(s, 10, 64); err == nil {
			out = append(out, p.first+n)
		}
	}
	return out
}
