package source

import (
	"context"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/openbao/openbao/sdk/v2/helper/shamir"

	"estover.dev"
	"estover.dev/internal/seal"
)

// ErrShare is returned for a share that cannot be one.
var ErrShare = &estover.Error{Kind: estover.Invalid, Code: "share_invalid", Detail: "This is not a share of a root key."}

// sharePrefix begins a share as it is written:
//
//	estover-share-1 SET 3/5 SHARE CHECKSUM
//
// SET says which shares belong together, 3/5 that three of five make the key.
const sharePrefix = "estover-share-1"

// The bounds of sets.
const (
	MaxShares = 32
	maxSets   = 8 // of which shares are kept at once
)

// Split makes a root key that exists nowhere, and gives the shares of it: any
// need of them make the key, and fewer say nothing about it (Shamir, How to
// Share a Secret, 1979).
func Split(shares, need int) ([]string, error) {
	if need < 2 || need > shares || shares > MaxShares {
		return nil, ErrShare.With("A root key has 2 to %d shares, of which at least 2 make it.", MaxShares)
	}
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	defer clear(key)
	parts, err := shamir.Split(key, shares, need)
	if err != nil {
		return nil, fmt.Errorf("splitting the root key: %w", err)
	}
	set := setOf(key)
	list := make([]string, shares)
	for i, part := range parts {
		list[i] = share{set, need, shares, part}.String()
		clear(part)
	}
	return list, nil
}

// setOf is what tells shares of one key from those of another. It says nothing
// about the key.
func setOf(key []byte) string {
	b, err := hkdf.Key(sha256.New, key, nil, "estover root shares", 6)
	if err != nil {
		panic("source: HKDF of a fixed length: " + err.Error())
	}
	return hex.EncodeToString(b)
}

type share struct {
	set       string
	need, all int
	part      []byte
}

func (s share) String() string {
	text := fmt.Sprintf("%s %s %d/%d %s", sharePrefix, s.set, s.need, s.all, base64.RawURLEncoding.EncodeToString(s.part))
	sum := sha256.Sum256([]byte(text))
	return text + " " + hex.EncodeToString(sum[:4])
}

// parseShare notices when a share was cut short or typed wrong.
func parseShare(text string) (s share, err error) {
	words := strings.Fields(text)
	if len(text) > 1<<10 || len(words) != 5 || words[0] != sharePrefix {
		return s, ErrShare.With("A share is a line of five words, of which the first is %s.", sharePrefix)
	}
	sum := sha256.Sum256([]byte(strings.Join(words[:4], " ")))
	if hex.EncodeToString(sum[:4]) != words[4] {
		return s, ErrShare.With("The share is not whole, or was typed wrong: its checksum does not fit.")
	}
	need, all, _ := strings.Cut(words[2], "/")
	s.set = words[1]
	if s.need, err = strconv.Atoi(need); err == nil {
		s.all, err = strconv.Atoi(all)
	}
	if err == nil {
		s.part, err = base64.RawURLEncoding.DecodeString(words[3])
	}
	if err != nil || len(s.part) != 33 || s.need < 2 || s.need > s.all || s.all > MaxShares {
		return s, ErrShare
	}
	return s, nil
}

// Shares collects what people give until a key comes of it. It is safe for use
// by many at once.
type Shares struct {
	mu   sync.Mutex
	sets map[string]map[byte]share
	last string // the set of the latest share
	key  chan []byte
	open bool
}

// NewShares collects for one start.
func NewShares() *Shares {
	return &Shares{sets: map[string]map[byte]share{}, key: make(chan []byte, 1)}
}

// A Progress is how far a set has come.
type Progress struct {
	Sealed bool   `json:"sealed"`
	Set    string `json:"set,omitempty"`
	Given  int    `json:"given"`
	Needed int    `json:"needed"`
}

// Give takes one share. The same one again changes nothing.
func (s *Shares) Give(text string) (Progress, error) {
	one, err := parseShare(text)
	if err != nil {
		return s.Progress(), err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open {
		return Progress{}, nil
	}
	set := s.sets[one.set]
	if set == nil {
		if len(s.sets) == maxSets {
			return s.progress(), ErrShare.With("Shares of %d keys have been given already. Start the server again, and give those of its own key.", maxSets)
		}
		set = map[byte]share{}
		s.sets[one.set] = set
	}
	s.last = one.set
	set[one.part[len(one.part)-1]] = one // its last byte is its number
	p := s.progress()
	if p.Given < p.Needed {
		return p, nil
	}
	parts := make([][]byte, 0, len(set))
	for _, x := range set {
		parts = append(parts, x.part)
	}
	key, err := shamir.Combine(parts)
	if err != nil || setOf(key) != one.set {
		clear(key)
		delete(s.sets, one.set)
		return s.progress(), ErrShare.With("These shares do not make the key that they say. Give them again, each once.")
	}
	s.open = true
	s.forget()
	s.key <- key
	return Progress{}, nil
}

func (s *Shares) forget() {
	for _, set := range s.sets {
		for _, x := range set {
			clear(x.part)
		}
	}
	clear(s.sets)
}

// Forget drops the shares that were given.
func (s *Shares) Forget() Progress {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget()
	s.last = ""
	return s.progress()
}

// Close forgets the key too, once the database is open.
func (s *Shares) Close() {
	select {
	case key := <-s.key:
		clear(key)
	default:
	}
}

// Progress says how many shares of the latest set there are.
func (s *Shares) Progress() Progress {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.progress()
}

func (s *Shares) progress() Progress {
	p := Progress{Sealed: !s.open, Set: s.last, Given: len(s.sets[s.last])}
	for _, x := range s.sets[s.last] {
		p.Needed = x.need
	}
	return p
}

// Together is a source whose root key people put together at every start, from
// shares that [Split] made.
type Together struct {
	Shares *Shares // where they come from; nil where nobody can give any
}

// Kind is "shamir".
func (Together) Kind() string { return "shamir" }

// Root waits until there are enough shares.
func (t Together) Root(ctx context.Context, _ string, _ bool) ([]byte, string, error) {
	if t.Shares == nil {
		return nil, "", seal.ErrRootMissing.With("A root key of shares is put together when a server starts, and at no other time.")
	}
	select {
	case key := <-t.Shares.key:
		t.Shares.key <- append([]byte(nil), key...) // for the next row of this kind
		return key, "", nil
	case <-ctx.Done():
		return nil, "", ctx.Err()
	}
}
