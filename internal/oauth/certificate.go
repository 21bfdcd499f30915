package oauth

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"net/http"
	"slices"
	"time"

	"estover.dev"
	"estover.dev/internal/edge"
	"estover.dev/internal/federation"
	"estover.dev/internal/jose"
	"estover.dev/internal/token"
)

// byCertificate is the method by which a client may authenticate that presents
// nothing but its name and the certificate of its connection, or "". TLS has
// made sure that it has the certificate's key.
func byCertificate(r *http.Request, c *token.Client) string {
	if edge.OriginOf(r).Certificate == nil {
		return ""
	}
	for _, method := range []string{token.TLSClientAuth, token.SelfSignedTLS} {
		if slices.Contains(c.Methods, method) {
			return method
		}
	}
	return ""
}

// proveByCertificate checks the certificate of the connection (RFC 8705, section
// 2). A client that is registered for both methods may use either.
func (d *Door) proveByCertificate(r *http.Request, a *authenticated) error {
	o, now := edge.OriginOf(r), d.now()
	a.caller.Strength = estover.ByKey
	if slices.Contains(a.client.Methods, token.TLSClientAuth) {
		credential, err := d.certified(r.Context(), a, o, now)
		if err != nil {
			return err
		}
		if credential != "" {
			a.method, a.credential = token.TLSClientAuth, credential
			return nil
		}
	}
	if slices.Contains(a.client.Methods, token.SelfSignedTLS) {
		if credential := selfSigned(a.client, o.Certificate, now); credential != "" {
			a.method, a.credential = token.SelfSignedTLS, credential
			return nil
		}
	}
	return errClient.With("The certificate of the connection is not one of the client's.")
}

// certified finds the credential whose name the certificate has and whose
// authorities vouch for it (RFC 8705, section 2.1), "" if there is none. An error
// means that it is not known who they are.
func (d *Door) certified(ctx context.Context, a *authenticated, o edge.Origin, now time.Time) (string, error) {
	between := x509.NewCertPool()
	for _, one := range o.Chain {
		between.AddCert(one)
	}
	for _, one := range a.client.Certified {
		if !one.Expires.IsZero() && !now.Before(one.Expires) || !one.Names(o.Certificate) {
			continue
		}
		roots := one.Roots
		if one.Domain != "" {
			if d.Trusts == nil {
				continue
			}
			var err error
			switch roots, err = d.Trusts.Authorities(ctx, a.caller.Tenant, one.Domain); {
			case errors.Is(err, federation.ErrUntrusted):
				continue
			case errors.Is(err, federation.ErrKeys):
				return "", outage{err, string(a.caller.Tenant) + "/" + one.Domain}
			case err != nil:
				return "", err
			}
		}
		if roots == nil {
			continue // no roots would be those of the system
		}
		if _, err := o.Certificate.Verify(x509.VerifyOptions{
			Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}); err == nil {
			return one.Credential, nil
		}
	}
	return "", nil
}

// selfSigned finds the key set that has the certificate (RFC 8705, section 2.2):
// the certificate itself in x5c, or its key where there is no x5c. Nobody
// vouches for it, but it has a time.
func selfSigned(c *token.Client, cert *x509.Certificate, now time.Time) string {
	if now.Before(cert.NotBefore) || now.After(cert.NotAfter) {
		return ""
	}
	has := func(k *jose.Key) bool {
		if len(k.Certificates) > 0 {
			return k.Certificates[0].Equal(cert)
		}
		public, ok := k.Public.(interface {
			Equal(other crypto.PublicKey) bool
		})
		return ok && public.Equal(cert.PublicKey)
	}
	for _, set := range c.KeySets {
		if !set.Expires.IsZero() && !now.Before(set.Expires) {
			continue
		}
		if slices.ContainsFunc(set.Keys.All(), has) {
			return set.Credential
		}
	}
	return ""
}
