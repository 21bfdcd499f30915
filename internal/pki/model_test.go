package pki_test

import (
	"context"
	"crypto"
	"crypto/x509"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"
	"pgregory.net/rapid"

	"estover.dev"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/pki"
)

// TestModel: random operations against a map of what holds. Whatever happens, the
// list and the responder say of each certificate what the map says, and the number
// of the list only rises.
func TestModel(t *testing.T) {
	d := dbtest.Open(t)
	h := build(t, d, guardtest.AllowAll)
	clock := dbtest.NewClock(d)
	request := csr(t, newKey(t), "x.example")
	n := 0
	rapid.Check(t, func(r *rapid.T) {
		n++
		mount := fmt.Sprintf("m%d", n)
		ca, _, err := h.Generate(t.Context(), ann, pki.Plan{Mount: mount, Name: "ca"}, false)
		if err != nil {
			r.Fatal(err)
		}
		if _, err := h.PutRole(t.Context(), ann, mount, pki.X509, "r", pki.Spec{TTL: 3600, X509: &pki.X509Spec{AnyName: true}}); err != nil {
			r.Fatal(err)
		}
		type one struct {
			session string
			end     time.Time
			revoked bool
		}
		known := map[string]*one{}
		open := map[string]bool{}
		for i := range 2 {
			id := fmt.Sprintf("ses_%d_%d", n, i)
			h.session(id, 90*time.Minute)
			open[id] = true
		}
		last := int64(0)
		for range rapid.IntRange(1, 8).Draw(r, "steps") {
			switch rapid.SampledFrom([]string{"person", "agent", "revoke", "end", "wait", "retry"}).Draw(r, "step") {
			case "person":
				c, err := h.Sign(t.Context(), ann, pki.Wish{Mount: mount, Role: "r"}, request)
				if err != nil {
					r.Fatal(err)
				}
				known[c.Serial] = &one{end: c.NotAfter}
			case "agent":
				id := rapid.SampledFrom(slices.Sorted(maps.Keys(open))).Draw(r, "session")
				who := estover.Caller{Tenant: "acme", Subject: estover.Agent("agt_" + mount), Session: id}
				c, err := h.Sign(t.Context(), who, pki.Wish{Mount: mount, Role: "r"}, request)
				switch {
				case err == nil && open[id]:
					known[c.Serial] = &one{session: id, end: c.NotAfter}
				case err == nil:
					r.Fatalf("signed in %s, which has ended", id)
				}
			case "revoke", "retry":
				if len(known) == 0 {
					continue
				}
				serial := rapid.SampledFrom(slices.Sorted(maps.Keys(known))).Draw(r, "serial")
				_, err := h.Revoke(t.Context(), ann, mount, pki.X509, serial, pki.Superseded, "a test")
				k := known[serial]
				if ended := !k.end.After(d.Now()); ended != (err != nil) && !k.revoked {
					r.Fatalf("revoked one that ends %s: %v", k.end, err)
				}
				if err == nil {
					k.revoked = true
				}
			case "end":
				id := rapid.SampledFrom(slices.Sorted(maps.Keys(open))).Draw(r, "session")
				if open[id] {
					h.end(id)
				}
				open[id] = false
				for _, k := range known {
					if k.session == id && k.end.After(d.Now()) {
						k.revoked = true
					}
				}
			case "wait":
				clock.Advance(rapid.SampledFrom([]time.Duration{time.Minute, 70 * time.Minute, 13 * time.Hour}).Draw(r, "time"))
			}
			list, err := h.CRL(t.Context(), "acme", ca.ID)
			if err != nil {
				r.Fatal(err)
			}
			parsed, err := x509.ParseRevocationList(list.DER)
			if err != nil || list.Number < last || parsed.Number.Int64() != list.Number || !parsed.NextUpdate.After(d.Now()) {
				r.Fatalf("the list is number %d after %d, good until %s: %v", list.Number, last, parsed.NextUpdate, err)
			}
			last = list.Number
			on := map[string]bool{}
			for _, e := range parsed.RevokedCertificateEntries {
				on[pki.Serial(e.SerialNumber)] = true
			}
			for serial, k := range known {
				if k.revoked && k.end.After(d.Now()) && !on[serial] || !k.revoked && on[serial] {
					r.Fatalf("%s, which ends %s, is revoked: %v; on the list: %v", serial, k.end, k.revoked, on[serial])
				}
				want := ocsp.Good
				if k.revoked {
					want = ocsp.Revoked
				}
				if got := status(t, h, ca, serial); got != want {
					r.Fatalf("the responder says %d of %s, want %d", got, serial, want)
				}
			}
		}
		// The mount goes, with all that it has certified.
		err = h.guard.Do(t.Context(), ann, guard.Op{Action: "mount.disable"}, func(tx *guard.Tx) error { return h.EndMount(context.Background(), tx, mount) })
		if err != nil {
			r.Fatal(err)
		}
		if _, err := h.Sign(t.Context(), ann, pki.Wish{Mount: mount, Role: "r"}, request); err == nil {
			r.Fatal("signed in a mount that is disabled")
		}
	})
}

// status is what the responder says of a certificate.
func status(t testing.TB, h *house, ca *pki.Authority, serial string) int {
	t.Helper()
	number, _ := new(big.Int).SetString(serial, 16)
	q, err := (&ocsp.Request{HashAlgorithm: crypto.SHA256, IssuerNameHash: sum(ca.Certificate().RawSubject), IssuerKeyHash: keySum(t, ca), SerialNumber: number}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	answer, err := h.OCSP(t.Context(), "acme", q, ca.ID)
	if err != nil {
		t.Fatal(err)
	}
	r, err := ocsp.ParseResponse(answer, ca.Certificate())
	if err != nil {
		t.Fatal(err)
	}
	return r.Status
}
