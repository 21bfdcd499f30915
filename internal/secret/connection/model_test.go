package connection_test

import (
	"errors"
	"io"
	"net/http"
	"testing"
	"time"

	"pgregory.net/rapid"

	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/secret/connection"
)

// TestModel has a connection put, authorized, used, renewed and removed in any order,
// at a provider that comes, goes and changes its mind, and holds each answer and the
// state after it against what they should be.
func TestModel(t *testing.T) {
	d := dbtest.Open(t)
	clock, x := dbtest.NewClock(d), nodes(t, d, 1)[0]
	ctx := t.Context()
	rapid.Check(t, func(rt *rapid.T) {
		p := newProvider(t)
		defer p.Close()
		var (
			state   connection.State // "" while there is none
			until   time.Time        // of the token
			scope   = "mail.read"
			down    bool
			known   = true // the client is, to the provider
			lost    bool   // the provider has forgotten what it gave out
			now     = func() time.Time { return d.Now() }
			missing = func() error {
				switch state {
				case "":
					return connection.ErrNotFound
				case connection.Reauthorize:
					return connection.ErrReauthorize
				case connection.Misconfigured:
					return connection.ErrMisconfigured
				}
				return nil
			}
			// what becomes of a renewal, and of the connection by it
			renewal = func() error {
				switch {
				case down:
					state = connection.Healthy
					return connection.ErrProvider
				case !known:
					state = connection.Misconfigured
				case lost:
					state = connection.Reauthorize
				default:
					state, until = connection.Healthy, now().Add(time.Hour)
				}
				return missing()
			}
		)
		_ = x.Remove(ctx, ann, "mail") // of the round before
		expect := func(what string, got, want error) {
			rt.Helper()
			if !errors.Is(got, want) || want == nil && got != nil {
				rt.Fatalf("%s: %v, want %v", what, got, want)
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"put": func(*rapid.T) {
				s := mail(p)
				s.Scopes = []string{scope}
				_, err := x.Put(ctx, ann, s)
				expect("putting it", err, nil)
				if state == "" {
					state = connection.Reauthorize
				} else if state == connection.Misconfigured {
					state = connection.Healthy // it is tried again
				}
			},
			"put with another scope": func(*rapid.T) {
				if state == "" {
					return
				}
				scope += "x"
				s := mail(p)
				s.Scopes = []string{scope}
				_, err := x.Put(ctx, ann, s)
				expect("putting another scope", err, nil)
				state = connection.Reauthorize
			},
			"authorize": func(*rapid.T) {
				to, err := x.Begin(ctx, ann, "mail")
				if state == "" {
					expect("beginning without one", err, connection.ErrNotFound)
					return
				}
				expect("beginning", err, nil)
				_, err = x.Complete(ctx, ann, "mail", p.authorize(to))
				switch {
				case down:
					expect("completing at a provider that is down", err, connection.ErrProvider)
				case !known:
					expect("completing as a client that is not known", err, connection.ErrMisconfigured)
				default:
					expect("completing", err, nil)
					state, until, lost = connection.Healthy, now().Add(time.Hour), false
				}
			},
			"use": func(*rapid.T) {
				_, err := x.Use(ctx, bot, "mail", "api.mail.example:443")
				want := missing()
				if want == nil && !now().Before(until.Add(-30*time.Second)) {
					good := now().Before(until)
					if want = renewal(); good && errors.Is(want, connection.ErrProvider) {
						want = nil
					}
				}
				expect("using it", err, want)
			},
			"renew": func(*rapid.T) {
				_, err := x.Renew(ctx, ann, "mail")
				want := missing()
				if state == connection.Healthy || state == connection.Misconfigured {
					want = renewal()
				}
				expect("renewing it", err, want)
			},
			"remove": func(*rapid.T) {
				err := x.Remove(ctx, ann, "mail")
				if state == "" {
					expect("removing none", err, connection.ErrNotFound)
					return
				}
				expect("removing it", err, nil)
				state = ""
			},
			"time passes": func(rt *rapid.T) {
				clock.Advance(time.Duration(rapid.IntRange(1, 45).Draw(rt, "minutes")) * time.Minute)
			},
			"the provider goes": func(*rapid.T) { down = true; p.set(func() { p.down = true }) },
			"the provider comes": func(*rapid.T) {
				down, known = false, true
				p.set(func() { p.down, p.answer = false, nil })
			},
			"the provider forgets the client": func(*rapid.T) {
				known = false
				p.set(func() {
					p.answer = func(w http.ResponseWriter) bool {
						w.Header().Set("Content-Type", "application/json")
						w.WriteHeader(http.StatusUnauthorized)
						io.WriteString(w, `{"error":"invalid_client"}`)
						return true
					}
				})
			},
			"the provider forgets what it gave out": func(*rapid.T) {
				lost = state == connection.Healthy || state == connection.Misconfigured || lost
				p.set(func() { p.refresh = map[string]bool{} })
			},
			"": func(rt *rapid.T) {
				c, err := x.Get(ctx, ann, "mail")
				if state == "" {
					expect("looking at none", err, connection.ErrNotFound)
				} else if err != nil || c.State != state {
					rt.Fatalf("it is %s because %q (%v), want %s", c.State, c.Reason, err, state)
				}
			},
		})
	})
}
