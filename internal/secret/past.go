package secret

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"slices"
)

// A past is what the row of a secret says, under its MAC, of all versions but the
// current one: the digest of each, and one digest over those that came long
// before. So the current version is read, and the next one written, with the row
// and the row of one version, whether there are ten or ten thousand; whoever
// wants another version has all of them read and compared.
//
// A past is never changed in place.
type past struct {
	folded  [sha256.Size]byte // over the oldest ones; zero for none
	entries []entry           // the others, the oldest first
}

// An entry stands for a version.
type entry struct {
	n      int64
	digest [sha256.Size]byte
}

// How many versions have an entry: where the oldest ones are not taken away one
// by one, they are folded when there are more than mostEntries, until fewEntries
// are left.
const (
	mostEntries = 32
	fewEntries  = 16
)

// pastForm is the first byte of a past as it is stored.
const pastForm = 1

const entrySize = 8 + sha256.Size

// errPast says that what is stored is no past.
var errPast = errors.New("not the past of a secret")

// bytes is a past as it is stored; nil for a row that has none.
func (p *past) bytes() []byte {
	if p == nil {
		return nil
	}
	b := make([]byte, 0, 1+sha256.Size+entrySize*len(p.entries))
	b = append(append(b, pastForm), p.folded[:]...)
	for _, e := range p.entries {
		b = append(binary.BigEndian.AppendUint64(b, uint64(e.n)), e.digest[:]...)
	}
	return b
}

// pastOf reads what [past.bytes] writes.
func pastOf(b []byte) (*past, error) {
	if len(b) == 0 {
		return nil, nil // a row of before there were any
	}
	if b[0] != pastForm || len(b) < 1+sha256.Size || (len(b)-1-sha256.Size)%entrySize != 0 {
		return nil, errPast
	}
	p := &past{}
	b = b[1+copy(p.folded[:], b[1:]):]
	p.entries = make([]entry, 0, len(b)/entrySize+1)
	for ; len(b) > 0; b = b[entrySize:] {
		e := entry{n: int64(binary.BigEndian.Uint64(b))}
		copy(e.digest[:], b[8:entrySize])
		p.entries = append(p.entries, e)
	}
	return p, nil
}

func entryOf(v *Version) entry { return entry{v.N, sha256.Sum256(v.append(nil))} }

// fold takes the oldest entries into the one digest.
func (p *past) fold(n int) {
	for _, e := range p.entries[:n] {
		b := append(make([]byte, 0, 2*entrySize), p.folded[:]...)
		b = binary.BigEndian.AppendUint64(b, uint64(e.n))
		p.folded = sha256.Sum256(append(b, e.digest[:]...))
	}
	p.entries = p.entries[n:]
}

// hasFolded reports whether versions are no longer told apart.
func (p *past) hasFolded() bool { return p.folded != [sha256.Size]byte{} }

// newest is the number of the last version but the current one; 0 for none.
func (p *past) newest() int64 {
	if p == nil || len(p.entries) == 0 {
		return 0
	}
	return p.entries[len(p.entries)-1].n
}

// pastWith is the past of a record that has all its versions, with entries for
// so many of them.
func (r *record) pastWith(entries int) *past {
	p := &past{entries: make([]entry, 0, len(r.versions))}
	for i := range r.versions {
		if v := &r.versions[i]; v.N != r.CurrentVersion {
			p.entries = append(p.entries, entryOf(v))
		}
	}
	p.fold(max(len(p.entries)-entries, 0))
	return p
}

// remembers reports whether the versions of a record that has all of them are
// those that its row speaks of.
func (r *record) remembers() bool {
	is := r.pastWith(len(r.past.entries))
	return is.folded == r.past.folded && slices.Equal(is.entries, r.past.entries)
}

// settle has the row speak of the versions as they are after a change. Limited
// says that the oldest are taken away when there are too many, for which they must
// be told apart.
func (r *record) settle(limited bool) {
	if !r.partial {
		entries := mostVersions
		if r.past != nil { // one more than there were, until none is folded that may be asked for
			entries = max(len(r.past.entries)+1, mostEntries)
		}
		r.past = r.pastWith(entries)
		return
	}
	p := &past{r.past.folded, slices.Clone(r.past.entries)}
	for i := range r.versions {
		if v := &r.versions[i]; v.N != r.CurrentVersion {
			p.entries = append(p.entries, entryOf(v))
		}
	}
	if !limited && len(p.entries) > mostEntries {
		p.fold(len(p.entries) - fewEntries)
	}
	r.past = p
}

// errWhole says that a change needs all versions of a secret.
var errWhole = errors.New("the change needs all versions")

// limit takes the oldest versions away, so that at most so many are left.
func (r *record) limit(most int64) error {
	n := len(r.versions)
	if r.partial {
		if r.past.hasFolded() {
			return errWhole
		}
		n += len(r.past.entries)
	}
	n -= int(most)
	if r.partial && n > 0 {
		out := min(n, len(r.past.entries))
		for _, e := range r.past.entries[:out] {
			r.gone = append(r.gone, e.n)
		}
		r.past = &past{entries: r.past.entries[out:]}
		n -= out
	}
	if n > 0 {
		r.versions = slices.Delete(r.versions, 0, n)
	}
	return nil
}
