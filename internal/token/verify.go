package token

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"sync"
	"time"

	"estover.dev"
	"estover.dev/internal/jose"
)

// ErrInvalid is returned for a token that is not ours, has expired or was
// revoked. It does not say which: a token that opens nothing says nothing.
var ErrInvalid = &estover.Error{Kind: estover.Unknown, Code: "invalid_token", Detail: "The access token is not valid, has expired or was revoked. Ask for another one."}

// Verify says what an access token of ours stands for, provided that all it
// rests on is alive at this moment: the token itself, its grant with the same
// epoch, its session, its client, its subject and its actors.
//
// Whether it is for whoever received it is for the caller to ask
// ([Token.For]), and so is whether the presenter has the key that it is bound
// to ([Token.Confirm]). Any error but [ErrInvalid] means that the question
// could not be answered.
func (t *Tokens) Verify(ctx context.Context, raw string) (*Token, error) {
	tok, err := t.signed(ctx, raw)
	if err != nil {
		return nil, err
	}
	now := t.guard.DB().Now()
	if err := t.stands(ctx, tok, now); err != nil {
		return nil, err
	}
	c, err := t.Clients.Client(ctx, tok.Tenant, tok.Client)
	if err != nil {
		return nil, invalid(err)
	}
	if err := t.principals(ctx, tok.Tenant, c, tok.Subject, tok.Actors, now); err != nil {
		return nil, invalid(err)
	}
	return tok, nil
}

// stands says why a token of ours is dead for good, whatever becomes of those
// whom it speaks for: it has expired or was revoked, or its grant or session has
// ended.
func (t *Tokens) stands(ctx context.Context, tok *Token, now time.Time) error {
	if !now.Before(tok.Expires) {
		return ErrInvalid
	}
	g, err := t.grants.Get(ctx, tok.Tenant, tok.Grant)
	if err != nil {
		return invalid(err)
	}
	if err := g.live(now); err != nil {
		return invalid(err)
	}
	if g.Epoch != tok.Epoch || g.Session != tok.Session || g.Client != tok.Client {
		return ErrInvalid
	}
	if _, denied := slices.BinarySearch(g.denied, tok.ID); denied {
		return ErrInvalid
	}
	if _, err := t.Sessions.Live(ctx, tok.Tenant, tok.Session); err != nil {
		return invalid(err)
	}
	return nil
}

// Rests says why what a caller's token rested on has ended, if it has: the grant,
// the client, the subject, an actor; or that the token itself was revoked. It is
// for what was begun with the token and goes on, whether or not the token has come
// to the end of its time.
func (t *Tokens) Rests(ctx context.Context, caller estover.Caller) error {
	g, err := t.grants.Get(ctx, caller.Tenant, caller.Grant)
	if err != nil {
		return err
	}
	if !g.Ended.IsZero() || g.Epoch != caller.Epoch {
		return ErrGrantEnded
	}
	if _, denied := slices.BinarySearch(g.denied, caller.Token); denied {
		return ErrGrantEnded.With("The token was revoked.")
	}
	c, err := t.Clients.Client(ctx, caller.Tenant, g.Client)
	if err != nil {
		return err
	}
	return t.principals(ctx, caller.Tenant, c, g.Subject, g.Actors, t.Now())
}

// invalid hides why a token is dead, but not that the question could not be
// answered.
func invalid(err error) error {
	if unanswered(err) {
		return err
	}
	return ErrInvalid.Because(err)
}

// unanswered reports whether an error says that a question could not be answered,
// and nothing of what was asked about.
func unanswered(err error) bool {
	if err == nil {
		return false
	}
	kind := estover.KindOf(err)
	return kind == estover.Fault || kind == estover.Unavailable
}

// signed checks that we made the token. It says nothing about whether the
// token is still alive.
func (t *Tokens) signed(ctx context.Context, raw string) (*Token, error) {
	var room [1024]byte // most tokens fit, so that the copy is not made anew
	sum := sha256.Sum256(append(room[:0], raw...))
	known := t.verified.get(sum)
	if known.token != nil {
		if err := t.Known(ctx, known.token.Tenant); err != nil {
			return nil, invalid(err)
		}
		keys, err := t.Keys.Verifying(ctx, known.token.Tenant, jose.AccessToken)
		if err != nil {
			return nil, err
		}
		if keys == known.keys { // else a key may have been withdrawn
			return known.token, nil
		}
	}
	u, err := jose.Peek(raw)
	if err != nil {
		return nil, ErrInvalid.Because(err)
	}
	tenant, ok := t.Issuer.Tenant(u.Issuer)
	if !ok {
		return nil, ErrInvalid
	}
	if err := t.Known(ctx, tenant); err != nil {
		return nil, invalid(err)
	}
	now := t.guard.DB().Now()
	c, keys, err := t.verify(ctx, tenant, jose.AccessToken, raw, jose.Expected{Now: now, Issuer: u.Issuer, AnyAudience: true})
	if err != nil {
		return nil, invalid(err)
	}
	tok, err := read(tenant, c)
	if err != nil {
		return nil, invalid(err)
	}
	t.verified.put(sum, verifiedToken{tok, keys}, now)
	return tok, nil
}

// verified remembers tokens whose signature was found to be ours, by the
// SHA-256 of their bytes, until they expire. It remembers no failures, and
// nothing about whether a token lives.
type verified struct{ shards [16]verifiedShard }

type verifiedShard struct {
	mu     sync.RWMutex
	tokens map[[sha256.Size]byte]verifiedToken
}

type verifiedToken struct {
	token *Token
	keys  *jose.Keys // the set that it was checked with
}

// maxVerified bounds the tokens of a shard.
const maxVerified = 4096

func newVerified() *verified {
	v := &verified{}
	for i := range v.shards {
		v.shards[i].tokens = map[[sha256.Size]byte]verifiedToken{}
	}
	return v
}

func (v *verified) shard(sum [sha256.Size]byte) *verifiedShard {
	return &v.shards[binary.LittleEndian.Uint64(sum[:])%uint64(len(v.shards))]
}

func (v *verified) get(sum [sha256.Size]byte) verifiedToken {
	s := v.shard(sum)
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.tokens[sum]
}

func (v *verified) put(sum [sha256.Size]byte, t verifiedToken, now time.Time) {
	s := v.shard(sum)
	s.mu.Lock()
	defer s.mu.Unlock()
	trim(s.tokens, maxVerified, now)
	s.tokens[sum] = t
}

// trim makes room in a map that holds no more than so many: of what has expired,
// and if that is not enough, of whichever come first.
func trim[K comparable, V interface{ expires() time.Time }](m map[K]V, most int, now time.Time) {
	if len(m) < most {
		return
	}
	for k, v := range m {
		if !now.Before(v.expires()) {
			delete(m, k)
		}
	}
	for k := range m {
		if len(m) < most*3/4 {
			return
		}
		delete(m, k)
	}
}

func (t verifiedToken) expires() time.Time { return t.token.Expires }

func (g *Grant) expires() time.Time { return g.Expires }
