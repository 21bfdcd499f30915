package federation

import (
	"context"
	"crypto/x509"
	"errors"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/jose"
)

// spiffe begins the name of everything in SPIFFE.
const spiffe = "spiffe://"

// Domain is the trust domain that the trust is about; "" if it is about an
// issuer that is none.
func (s *Spec) Domain() string {
	domain, ok := strings.CutPrefix(s.Issuer, spiffe)
	if !ok || !isDomain(domain) {
		return ""
	}
	return domain
}

// isDomain reports whether a text is the name of a trust domain (SPIFFE-ID,
// section 2.1).
func isDomain(s string) bool {
	return s != "" && len(s) <= 255 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789.-_") == ""
}

// domainOf is the trust domain of a workload's SPIFFE ID, "" if the text is none
// (SPIFFE-ID, section 2): the path has segments, none of them empty or of dots
// alone.
func domainOf(id string) string {
	rest, ok := strings.CutPrefix(id, spiffe)
	domain, path, workload := strings.Cut(rest, "/")
	if !ok || !workload || !isDomain(domain) || len(id) > maxText {
		return ""
	}
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "" || segment == "." || segment == ".." ||
			strings.Trim(segment, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.-_") != "" {
			return ""
		}
	}
	return domain
}

// material is what the owner of a source lets us verify with.
type material struct {
	keys   *jose.Keys
	roots  *x509.CertPool // of X.509-SVIDs; nil if there are none
	serves time.Duration  // until it is fetched again
}

// parse reads a key set, or the bundle of a trust domain: of a domain itself, or
// of an issuer whose keys stand in one.
func parse(b []byte, domain bool) (m material, err error) {
	m.serves = keysLife
	if !domain {
		if m.keys, err = jose.ParseKeys(b); err == nil {
			return m, nil
		}
	}
	bundle, failed := jose.ParseBundle(b)
	if failed != nil || !domain && len(bundle.Keys.All()) == 0 {
		if err == nil {
			err = failed
		}
		return m, err
	}
	m.keys = bundle.Keys
	if bundle.Refresh > 0 {
		m.serves = min(max(bundle.Refresh, keysPause), keysLife)
	}
	if domain && len(bundle.Authorities) > 0 {
		m.roots = x509.NewCertPool()
		for _, one := range bundle.Authorities {
			m.roots.AddCert(one)
		}
	}
	return m, nil
}

// Authorities are those that vouch for the X.509-SVIDs of a trust domain, by the
// bundle of the trust that is about it. [ErrUntrusted] if there is none.
func (t *Trusts) Authorities(ctx context.Context, tenant estover.TenantID, domain string) (*x509.CertPool, error) {
	r, err := t.byIssuer.Get(ctx, tenant, spiffe+domain)
	if errors.Is(err, ErrNotFound) || err == nil && r.Domain() == "" {
		return nil, ErrUntrusted.With("No trust is about the trust domain %s.", domain)
	}
	if err != nil {
		return nil, err
	}
	m := r.material
	if m.keys == nil {
		if m, _, err = t.sets.of(ctx, r.source, time.Time{}); err != nil {
			return nil, err
		}
	}
	if m.roots == nil {
		return nil, ErrUntrusted.With("The bundle of the trust %s has no authorities of X.509-SVIDs.", r.Name)
	}
	return m.roots, nil
}
