package rotation

import (
	"context"
	"errors"
	"fmt"

	"estover.dev"
)

// Replace sees to it that nothing accepts the versions of a secret up to n any
// more, since somebody has them who should not. It may be called again until it
// says nothing is left to do; left is what, otherwise. With keep, the versions
// live for as long as others use them, as ever.
func (x *Rotations) Replace(ctx context.Context, c estover.Caller, path string, n int64, why string, keep bool) (left string, err error) {
	for range 8 { // two versions may be good, and each takes a few steps
		r, err := x.load(ctx, c.Tenant, path)
		if err != nil {
			return "", err
		}
		if r.kind != Certificate && r.waits(x.Guard.DB().Now()) && (r.Current <= n || r.Previous > 0 && r.Previous <= n) {
			return "", ErrWaits.With("%s", r.Waits)
		}
		old := r.Previous > 0 && r.Previous <= n
		switch {
		case r.Current > n && !old:
			return "", nil
		case old && (r.Step == Grace || r.Step == Retiring) && keep && r.Current > n:
			return fmt.Sprintf("version %d is kept while it is used", r.Previous), nil
		case r.Previous > 0 && (r.Step == Grace || r.Step == Retiring):
			_, err = x.Force(ctx, c, path, why)
		case r.Step == Scrambling:
			err = x.advance(ctx, c.Tenant, r.Secret)
		default:
			_, err = x.run(ctx, c, path, true)
		}
		if err != nil && !errors.Is(err, errLost) && !errors.Is(err, ErrNothing) {
			return "", err
		}
	}
	return "another node works at it", nil
}
