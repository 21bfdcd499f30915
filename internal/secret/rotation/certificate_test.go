package rotation_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"maps"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/rotation"
)

// life is how long a certificate of an [authority] holds, if nobody says.
const life = 90 * 24 * time.Hour

// An authority certifies in memory.
type authority struct {
	mu    sync.Mutex
	now   func() time.Time
	cert  *x509.Certificate
	key   *ecdsa.PrivateKey
	good  map[string]time.Time // until when, by serial
	life  time.Duration
	fails string
}

func newAuthority(t testing.TB, now func() time.Time) *authority {
	t.Helper()
	a := &authority{now: now, good: map[string]time.Time{}, life: life}
	a.key, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a root"}, NotBefore: now().Add(-time.Hour), NotAfter: now().Add(100 * life),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, a.key.Public(), a.key)
	if err == nil {
		a.cert, err = x509.ParseCertificate(der)
	}
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func inPEM(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// certifier is the authority as rotations see it.
func (a *authority) certifier() rotation.Certifier {
	return rotation.Certifier{
		Check: func(_ context.Context, c estover.Caller, s rotation.Subject) error {
			if !c.Has(estover.Admin) || s.Role != "clients" {
				return rotation.ErrInvalid.With("There is no role %s.", s.Role)
			}
			return nil
		},
		Issue: func(ctx context.Context, _ estover.TenantID, s rotation.Subject) (c rotation.Issued, err error) {
			a.mu.Lock()
			defer a.mu.Unlock()
			switch {
			case ctx.Err() != nil:
				return c, ctx.Err()
			case a.fails == "down":
				return c, errors.New("the database does not answer")
			case a.fails == "refuse":
				return c, rotation.ErrInvalid.With("The role does not allow it.")
			}
			number, _ := rand.Int(rand.Reader, big.NewInt(1<<62))
			key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			leaf := &x509.Certificate{SerialNumber: number, Subject: pkix.Name{CommonName: s.CommonName}, NotBefore: a.now().Add(-time.Minute), NotAfter: a.now().Add(a.life)}
			der, err := x509.CreateCertificate(rand.Reader, leaf, a.cert, key.Public(), a.key)
			if err != nil {
				return c, err
			}
			if a.fails == "wrong" {
				key = a.key
			}
			secret, err := x509.MarshalPKCS8PrivateKey(key)
			a.good[number.String()] = leaf.NotAfter
			return rotation.Issued{
				Chain: inPEM("CERTIFICATE", der), Issuer: inPEM("CERTIFICATE", a.cert.Raw), Serial: number.String(),
				Key: estover.NewSecret([]byte(inPEM("PRIVATE KEY", secret))),
			}, err
		},
		Revoke: func(ctx context.Context, _ estover.TenantID, _ rotation.Subject, serial string) error {
			a.mu.Lock()
			defer a.mu.Unlock()
			if a.fails == "down" {
				return errors.New("the database does not answer")
			}
			delete(a.good, serial)
			return ctx.Err()
		},
	}
}

func (a *authority) fail(how string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fails = how
}

// accepts reports whether a certificate holds.
func (a *authority) accepts(serial string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.now().Before(a.good[serial])
}

// kinds are the rotations in which two versions are good for a while: each with the
// fields by which its versions are told apart, and used.
var kinds = []rotation.Spec{
	pair,
	{Kind: rotation.Keys, Target: "orders", Users: pair.Users, SecretField: "password", Cache: 60, Quiet: 30, Schedule: "manual"},
	{Kind: rotation.Certificate, Subject: &rotation.Subject{Role: "clients", CommonName: "shop.example"}, Cache: 60, Quiet: 30},
}

// fields are those of a version that say which it is, and that are used.
func fields(kind rotation.Kind) (which, use string) {
	if kind == rotation.Certificate {
		return "serial", "certificate"
	}
	return "username", "password"
}

// accepts reports whether a version is good on the other side.
func (h *house) accepts(values map[string]estover.Secret) bool {
	if serial := values["serial"]; !serial.Empty() {
		return h.authority.accepts(string(serial.Reveal()))
	}
	return h.target.accepts(engine.Credential{User: string(values["username"].Reveal()), Secret: values["password"]})
}

// eachKind runs a test for every kind with two versions that are good, one of them
// on every database.
func eachKind(t *testing.T, f func(t *testing.T, h *house, spec rotation.Spec)) {
	t.Helper()
	for i, spec := range kinds {
		run := func(t *testing.T, d *db.DB) {
			h := build(t, d, newMemory(pair.Users...))
			if h.plain = spec.Kind == rotation.Keys; h.plain {
				h.target = newMemory()
				h.target.plain = true
			}
			h.kind = spec.Kind
			f(t, h, spec)
		}
		t.Run(string(spec.Kind), func(t *testing.T) {
			if i == 0 {
				dbtest.Each(t, run)
			} else {
				run(t, dbtest.Open(t))
			}
		})
	}
}

// TestKeys: an API key is made under one of two names, published when it has been
// tried, and deleted when nobody uses it. A key that a crash has lost is deleted too.
func TestKeys(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, newMemory())
		spec := rotation.Spec{Kind: rotation.Keys, Target: "orders", Users: []string{"reader-1", "reader-2"}, Template: engine.Template{"groups": {"read"}}, Cache: 60, Schedule: "manual"}
		if _, err := h.x.Put(t.Context(), ann, path, spec); !errors.Is(err, rotation.ErrInvalid) {
			t.Errorf("keys at a target where passwords are set: %v, want ErrInvalid", err)
		}
		h.plain, h.target.plain = true, true
		if _, err := h.x.Put(t.Context(), ann, path, pair); !errors.Is(err, rotation.ErrInvalid) {
			t.Errorf("passwords at a target that makes keys: %v, want ErrInvalid", err)
		}
		h.put(spec)
		h.run()
		h.want("1a:current")
		first, err := h.secrets.Values(t.Context(), h.tenant, path, 1)
		if err != nil || string(first["username"].Reveal()) != "reader-1" || first["key"].Empty() || h.target.made[0] != "reader-1 read" {
			t.Fatalf("the first key: %v, %v, made as %v", first, err, h.target.made)
		}
		// The answer with the key is lost, after the key was made.
		h.x.Reached(func(at string) error {
			if at == "after R2" {
				return rotation.ErrCrash
			}
			return nil
		})
		if _, err := h.x.Run(t.Context(), ann, path); !errors.Is(err, rotation.ErrCrash) {
			t.Fatal(err)
		}
		lost := h.target.users["reader-2"][0]
		if e := h.explain(); e.Step != rotation.Staged || !strings.Contains(e.Why, "is being asked for") {
			t.Errorf("with a key that was lost it is %s: %s", e.Step, e.Why)
		}
		h.x.Reached(nil)
		h.pass(rotation.HoldTime + time.Second)
		h.want("1a:previous 2b:current")
		if h.target.users["reader-2"][0] == lost {
			t.Error("the key whose answer was lost is still good")
		}
		if e := h.explain(); !strings.Contains(e.Why, "for the key reader-1") {
			t.Errorf("explained as %q", e.Why)
		}
		h.pass(15 * time.Minute)
		h.want("1a:retired 2b:current")
		if left := slices.Sorted(maps.Keys(h.target.users)); !slices.Equal(left, []string{"reader-2"}) {
			t.Errorf("there are keys of %v, want the current one alone", left)
		}

		// One that cannot be used is deleted again (R6), and nothing more is begun there (R11).
		h.target.wrong = "reader-1"
		if _, err := h.x.Run(t.Context(), ann, path); !errors.Is(err, rotation.ErrFailed) {
			t.Errorf("a key that does not work: %v, want ErrFailed", err)
		}
		h.want("1a:retired 2b:current 3a:abandoned")
		if left := slices.Sorted(maps.Keys(h.target.users)); !slices.Equal(left, []string{"reader-2"}) {
			t.Errorf("there are keys of %v, want the current one alone", left)
		}
		if _, err := h.x.Run(t.Context(), ann, path); !errors.Is(err, rotation.ErrStopped) {
			t.Errorf("another one: %v, want ErrStopped", err)
		}
	})
}

// TestCertificates: a certificate is replaced at two thirds of its life, with jitter;
// both hold until the old one retires, which is then revoked. One that has ended by
// itself is held up by nobody.
func TestCertificates(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d, newMemory())
		h.x.Keep = func(_ context.Context, _ *db.Tx, target string) error { // there is no target of the role's name
			return rotation.ErrNotFound.With("There is no target %s.", target)
		}
		spec := kinds[2]
		for _, bad := range []rotation.Spec{
			{Kind: rotation.Certificate},
			{Kind: rotation.Certificate, Subject: &rotation.Subject{Role: "others"}},
			{Kind: rotation.Certificate, Subject: spec.Subject, Target: "orders"},
			{Kind: rotation.Certificate, Subject: spec.Subject, Schedule: "manual"},
			{Target: "orders", Users: pair.Users, Subject: spec.Subject},
		} {
			if _, err := h.x.Put(t.Context(), ann, path, bad); !errors.Is(err, rotation.ErrInvalid) {
				t.Errorf("rotating as %+v: %v, want ErrInvalid", bad, err)
			}
		}
		h.kind = rotation.Certificate
		h.put(spec)
		h.pass(time.Second) // the first is made at once
		h.want("1a:current")
		h.works()
		e := h.explain()
		if at := e.DueAt.Sub(e.RotatedAt); at > life*2/3 || at < life*2/3*9/10 || e.ExpiresAt.Sub(e.RotatedAt) > life {
			t.Errorf("it is due after %s and ends after %s; want two thirds of %s, and a tenth off at most", at, e.ExpiresAt.Sub(e.RotatedAt), life)
		}
		first, err := h.secrets.Read(t.Context(), bot, path, 1, "a tool that takes no handle")
		if err != nil {
			t.Fatal(err)
		}
		h.clock.Hold()
		h.clock.Advance(e.DueAt.Sub(h.clock.Now()) - time.Second)
		h.tick(h.x)
		if e := h.pass(0); e.Current != 1 {
			t.Errorf("before its time there is version %d", e.Current)
		}
		h.pass(time.Second)
		h.want("1a:previous 2b:current")
		h.works()
		if !h.accepts(first.Values) {
			t.Error("the previous certificate does not hold in its grace")
		}
		if e := h.pass(24 * time.Hour); len(e.Laggards) != 1 || !h.accepts(first.Values) || e.LateAt.IsZero() {
			t.Errorf("while somebody has its value: %+v, late since %s; want it to hold, to be named, and an alarm", e.Laggards, e.LateAt)
		}
		// It ends by itself, and nobody holds it up any longer.
		h.clock.Advance(e.ExpiresAt.Sub(h.clock.Now()))
		h.tick(h.x)
		if e := h.pass(2 * time.Second); e.Step != rotation.Idle {
			t.Errorf("a certificate that has ended: %s, %s", e.Step, e.Why)
		}
		h.want("1a:retired 2b:current")
		h.works()

		// The next one is revoked while it would hold, once it is not used.
		second, err := h.secrets.Values(t.Context(), h.tenant, path, 2)
		if err != nil {
			t.Fatal(err)
		}
		h.run()
		h.pass(15 * time.Minute)
		h.want("1a:retired 2b:retired 3a:current")
		if h.accepts(second) {
			t.Error("a retired certificate is not revoked")
		}
		// One that cannot be used is revoked before anybody has it, and nobody else waits for that.
		h.clock.Advance(time.Hour)
		h.tick(h.x)
		good := len(h.authority.good)
		h.authority.fail("wrong")
		if _, err := h.x.Run(t.Context(), ann, path); !errors.Is(err, rotation.ErrFailed) {
			t.Errorf("a certificate that is not its key's: %v, want ErrFailed", err)
		}
		h.authority.fail("refuse")
		if _, err := h.x.Run(t.Context(), ann, path); !errors.Is(err, rotation.ErrFailed) {
			t.Errorf("a certificate that the role does not allow: %v, want ErrFailed", err)
		}
		h.authority.fail("")
		if len(h.authority.good) != good {
			t.Errorf("%d certificates hold, want %d", len(h.authority.good), good)
		}
		h.want("1a:retired 2b:retired 3a:current 4b:abandoned")
		h.works()

		// One that cannot be replaced is an alarm before it ends.
		h.authority.fail("refuse")
		e = h.explain()
		h.clock.Advance(e.ExpiresAt.Sub(h.clock.Now()) - life/6 + time.Minute)
		h.tick(h.x)
		if e = h.pass(time.Second); e.LateAt.IsZero() || !strings.Contains(e.Why, "does not allow it") {
			t.Errorf("a certificate that ends soon and is not replaced: late since %s, %s", e.LateAt, e.Why)
		}
		h.authority.fail("")
		if e := h.pass(time.Hour); e.Current == 3 || !e.LateAt.IsZero() {
			t.Errorf("when it could be replaced: version %d, late since %s", e.Current, e.LateAt)
		}
		h.pass(24 * time.Hour)

		// What somebody brought is taken over, with its end.
		if err := h.x.Remove(t.Context(), ann, path); err != nil {
			t.Fatal(err)
		}
		mine, err := h.authority.certifier().Issue(t.Context(), h.tenant, *spec.Subject)
		if err != nil {
			t.Fatal(err)
		}
		brought := map[string]estover.Secret{"certificate": estover.NewSecret([]byte(mine.Chain)), "key": mine.Key}
		if _, err := h.secrets.Write(t.Context(), ann, path, brought, secret.Any); err != nil {
			t.Fatal(err)
		}
		h.put(spec)
		if e := h.explain(); e.ExpiresAt.Sub(h.clock.Now()) > life || e.DueAt.Sub(h.clock.Now()) > life*2/3 {
			t.Errorf("one that somebody brought ends at %s and is due at %s", e.ExpiresAt, e.DueAt)
		}
	})
}

// Certificates of a few seconds and of many years are replaced at two thirds of their
// life as all others are, whoever made them.
func TestCertificatesOfAnyLife(t *testing.T) {
	for _, lives := range []time.Duration{7 * time.Second, 900 * 24 * time.Hour, 10 * 365 * 24 * time.Hour} {
		t.Run(lives.String(), func(t *testing.T) {
			h := build(t, dbtest.Open(t), newMemory())
			h.kind, h.authority.life = rotation.Certificate, lives
			soon := func(e rotation.Explanation) {
				t.Helper()
				if at := e.DueAt.Sub(e.RotatedAt); e.Current != 1 || at > lives*2/3 || at < lives/3 {
					t.Errorf("version %d is due after %s, want two thirds of %s, and a tenth off at most", e.Current, at, lives)
				}
			}
			h.put(kinds[2])
			soon(h.pass(0))

			// One that somebody brought.
			if err := h.x.Remove(t.Context(), ann, path); err != nil {
				t.Fatal(err)
			}
			h.put(kinds[2])
			soon(h.explain())
		})
	}
}

// A certificate whose time has come is replaced also when the hour is over in which its
// schedule has rotations begin, if it would end before the next one; and after one that
// could not be had the next is not asked for too late.
func TestCertificatesDoNotWait(t *testing.T) {
	h := build(t, dbtest.Open(t), newMemory())
	h.kind, h.authority.life = rotation.Certificate, time.Hour
	spec := kinds[2]
	spec.Schedule, spec.Within = "0 0 29 2 *", 60
	h.put(spec)
	e := h.pass(0)
	if e.Current != 1 || e.DueAt.After(e.ExpiresAt) {
		t.Fatalf("version %d is due at %s and ends at %s", e.Current, e.DueAt, e.ExpiresAt)
	}
	h.clock.Advance(e.DueAt.Sub(h.clock.Now()) + 2*time.Minute)
	if e = h.pass(0); e.Current != 2 {
		t.Fatalf("two minutes after its time there is version %d, and the next try is at %s; it ends at %s", e.Current, e.DueAt, e.ExpiresAt)
	}
	for range 5 { // the version before retires, or has ended
		h.pass(time.Minute)
	}
	h.authority.fail("wrong")
	if e = h.pass(e.DueAt.Sub(h.clock.Now())); e.Current != 2 || !e.DueAt.Before(e.ExpiresAt) {
		t.Errorf("after one that was no good it is due at %s, and ends at %s", e.DueAt, e.ExpiresAt)
	}
	h.authority.fail("")
	if e = h.pass(e.DueAt.Sub(h.clock.Now())); e.Current != 4 {
		t.Errorf("when it could be had there is version %d, want 4", e.Current)
	}
}
