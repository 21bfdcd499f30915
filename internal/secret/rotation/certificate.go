package rotation

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"estover.dev"
	"estover.dev/internal/secret"
)

// The fields of a version of the kind [Certificate], as the gateway's slot mtls
// takes them. The first has the certificate and those above it, in PEM.
const (
	certificateField = "certificate"
	keyField         = "key"
	issuerField      = "issuing_ca"
	serialField      = "serial"
)

// A Subject says what the versions of a secret are certified as.
type Subject struct {
	Mount      string   `json:"mount,omitempty" doc:"Of the Vault-compatible door; Estover's own authorities if left out"`
	Role       string   `json:"role" doc:"By which it is certified"`
	CommonName string   `json:"common_name,omitempty"`
	DNS        []string `json:"dns,omitempty"`
	IPs        []string `json:"ips,omitempty"`
	URIs       []string `json:"uris,omitempty"`
	TTL        int64    `json:"ttl_seconds,omitempty" minimum:"0" doc:"The role's if left out"`
}

// Issued is what an authority has certified.
type Issued struct {
	Chain  string // the certificate and those above it, in PEM
	Issuer string // the certificate of who signed it, in PEM
	Serial string
	Key    estover.Secret // in PEM
}

// A Certifier is where certificates come from.
type Certifier struct {
	// Check says why somebody may not have this certified, if so.
	Check func(ctx context.Context, c estover.Caller, s Subject) error
	// Issue makes a key and certifies it.
	Issue func(ctx context.Context, tenant estover.TenantID, s Subject) (Issued, error)
	// Revoke takes a certificate back. One that is not there, has ended or is revoked
	// already is no error.
	Revoke func(ctx context.Context, tenant estover.TenantID, s Subject, serial string) error
}

// place is what stands in the place of a target: as many certificates are made at
// once by a role as passwords are changed at a target.
func (s *Subject) place() string { return "certificates:" + s.Mount + "/" + s.Role }

// leaf is the certificate of a version, once it is clear that its key is the one
// beside it, that it holds now, and that who signed it is beside it.
func leaf(fields map[string]estover.Secret, now time.Time) (*x509.Certificate, error) {
	pair, err := tls.X509KeyPair(fields[certificateField].Reveal(), fields[keyField].Reveal())
	if err != nil {
		return nil, errors.New("the certificate and the key are no pair") // the reason may quote either
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	above := fields[issuerField].Reveal()
	if len(above) == 0 { // somebody else's: who trusts it is not known here
		if now.After(pair.Leaf.NotAfter) {
			return nil, fmt.Errorf("the certificate ended at %s", pair.Leaf.NotAfter.UTC().Format(time.RFC3339))
		}
		return pair.Leaf, nil
	}
	roots.AppendCertsFromPEM(above)
	for _, der := range pair.Certificate[1:] {
		if c, err := x509.ParseCertificate(der); err == nil {
			between.AddCert(c)
		}
	}
	_, err = pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return nil, fmt.Errorf("the certificate does not hold: %w", err)
	}
	return pair.Leaf, nil
}

// certify is R2 of a certificate. What was certified before a crash stays without
// anybody who has its key, until it ends.
func (w *work) certify(ctx context.Context, fields map[string]estover.Secret) error {
	var c Issued
	err := w.between(ctx, "R2", func(ctx context.Context) (err error) {
		c, err = w.x.Certifier.Issue(ctx, w.tenant, *w.r.Subject)
		return err
	})
	if err != nil {
		return err
	}
	fields[certificateField], fields[keyField] = estover.NewSecret([]byte(c.Chain)), c.Key
	fields[issuerField], fields[serialField] = estover.NewSecret([]byte(c.Issuer)), estover.NewSecret([]byte(c.Serial))
	return nil
}

// uncertify takes the certificate of a version back. Its serial number is in the row,
// so that it does not matter whether somebody has destroyed the version; of one that is
// older than that, it is in the version.
func (w *work) uncertify(ctx context.Context, point string, n int64, serial string) error {
	if serial == "" {
		fields, err := w.x.Secrets.Former(ctx, w.tenant, w.r.Path, n)
		if err != nil && !errors.Is(err, secret.ErrNoVersion) {
			return err
		}
		serial = string(fields[serialField].Reveal())
	}
	return w.between(ctx, point, func(ctx context.Context) error {
		if serial == "" { // somebody else's, or gone
			return nil
		}
		return w.x.Certifier.Revoke(ctx, w.tenant, *w.r.Subject, serial)
	})
}

// lapsed reports whether the previous version has ended by itself, so that nobody
// holds it up.
func (r *Rotation) lapsed(now time.Time) bool {
	return !r.previousExpires.IsZero() && !now.Before(r.previousExpires)
}

// ending reports whether the current version ends by itself soon, in the last sixth of
// its life, and should have been replaced.
func (r *Rotation) ending(now time.Time) bool {
	return !r.ExpiresAt.IsZero() && now.After(r.ExpiresAt.Add(-r.ExpiresAt.Sub(r.RotatedAt)/6))
}

// rest is how long nothing is tried after a rotation that was abandoned: an hour, but
// less where the current version would end meanwhile.
func (r *Rotation) rest(now time.Time) time.Duration {
	if r.ExpiresAt.IsZero() {
		return time.Hour
	}
	return min(time.Hour, max(r.ExpiresAt.Sub(now)/4, time.Minute))
}

// next is when the current version is to be replaced: as the schedule says and, if
// it ends by itself, when two thirds of its life are over (or a little earlier, by a
// number of its own). A life may be shorter and longer than any schedule.
func (r *Rotation) next(risk secret.Risk) time.Time {
	if r.ExpiresAt.IsZero() {
		return r.due(r.RotatedAt, risk, r.Secret, r.Current)
	}
	life := r.ExpiresAt.Sub(r.RotatedAt)
	due := r.after(r.RotatedAt, life*2/3, r.Secret, r.Current)
	if due.After(r.ExpiresAt.Add(-life / 6)) { // the window opens too late
		due = r.ExpiresAt.Add(-life / 3)
	}
	if r.Schedule != "" {
		if scheduled := r.due(r.RotatedAt, risk, r.Secret, r.Current); scheduled.Before(due) {
			due = scheduled
		}
	}
	return due
}

// expiry is when a version ends by itself; zero if it does not.
func (r *Rotation) expiry(fields map[string]estover.Secret, now time.Time) (time.Time, error) {
	if r.kind != Certificate {
		return time.Time{}, nil
	}
	c, err := leaf(fields, now)
	if err != nil {
		return time.Time{}, err
	}
	return c.NotAfter.UTC(), nil
}

// material puts what a target has made among the fields of a version.
func (s *Spec) material(fields, made map[string]estover.Secret) error {
	delete(fields, s.SecretField)
	for name, value := range made {
		switch name {
		case "username":
			name = s.UserField
		case "key":
			name = s.SecretField
		}
		fields[name] = value
	}
	if fields[s.SecretField].Empty() {
		return ErrInvalid.With("What the target makes has no field %s. It has %s.", s.SecretField, cmp.Or(names(made), "none")).At("secret_field")
	}
	return nil
}
