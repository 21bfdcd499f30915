package pki

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"time"

	"estover.dev"
	"estover.dev/internal/guard"
)

// An Imported is what came of a bundle.
type Imported struct {
	Authorities []*Authority
	Keys        []Key
	Existing    []string          // ids of what was here already
	Mapping     map[string]string // authority → its key, "" if that is not here
}

// Import takes over certificates of authorities and private keys, in PEM. A
// certificate whose key is not here vouches and signs nothing. Names is that of a
// lone authority, "" for none.
func (p *PKI) Import(ctx context.Context, c estover.Caller, mount, name string, text estover.Secret) (out Imported, err error) {
	op := guard.Op{Action: "pki.authority", Target: target(X509, "authority", name), Detail: map[string]any{"mount": mount, "imported": true}}
	certificates, privates, err := parseBundle(text.Reveal())
	if err == nil && name != "" && (!ValidName(name) || name == DefaultAuthority) {
		err = ErrInvalid.With("%q cannot name an authority.", name).At("name")
	}
	for _, one := range certificates {
		if !one.IsCA {
			err = ErrInvalid.With("The certificate of %s is not that of an authority.", printable(one.Subject.String()))
		}
		if err == nil {
			err = sound(one.PublicKey)
		}
	}
	if err == nil {
		err = p.sealer.Prepare(ctx, c.Tenant)
	}
	var keys []*Key
	for _, private := range privates {
		if err == nil {
			var k *Key
			k, err = p.newKey(c.Tenant, mount, "", private)
			keys = append(keys, k)
		}
	}
	if err != nil {
		return out, p.told(ctx, c, op, err)
	}
	now := p.guard.DB().Now()
	err = p.guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		out = Imported{Mapping: map[string]string{}}
		for _, k := range keys {
			same, err := keyWith(ctx, tx.Tx, mount, k.public)
			if err != nil {
				return err
			}
			if same != nil {
				out.Existing = append(out.Existing, same.ID)
				continue
			}
			if err := insertKey(ctx, tx.Tx, k); err != nil {
				return err
			}
			out.Keys = append(out.Keys, *k)
		}
		have, err := listAuthorities(ctx, tx.Tx, mount, X509)
		if err != nil {
			return err
		}
	next:
		for _, one := range certificates {
			spki, err := x509.MarshalPKIXPublicKey(one.PublicKey)
			if err != nil {
				return ErrInvalid.With("The key of %s cannot be read.", printable(one.Subject.String()))
			}
			key, err := keyWith(ctx, tx.Tx, mount, spki)
			if err != nil {
				return err
			}
			for _, old := range have {
				if bytes.Equal(old.certificate.Raw, one.Raw) {
					out.Existing = append(out.Existing, old.ID)
					out.Mapping[old.ID] = old.KeyID
					if old.KeyID == "" && key != nil {
						after := *old
						after.KeyID = key.ID
						out.Mapping[old.ID] = key.ID
						p.touch(tx, old)
						if err := replaceAuthority(ctx, tx.Tx, old, &after); err != nil {
							return err
						}
					}
					continue next
				}
			}
			a := &Authority{ID: estover.NewID("ca"), Mount: mount, Kind: X509, IssuesFrom: now, CreatedAt: now, epoch: 1, Options: Profile{Lifetime: int64(one.NotAfter.Sub(one.NotBefore) / time.Second)}}
			if len(certificates) == 1 || key != nil {
				a.Name, name = name, ""
			}
			if err := a.take(one.Raw); err != nil {
				return err
			}
			if key != nil {
				a.KeyID, a.key = key.ID, key
			}
			for _, above := range have {
				if bytes.Equal(above.certificate.RawSubject, one.RawIssuer) && one.CheckSignatureFrom(above.certificate) == nil {
					a.Options.Parent = above.ID
				}
			}
			if err := p.add(ctx, tx, a); err != nil {
				return err
			}
			have = append(have, a)
			out.Authorities = append(out.Authorities, a)
			out.Mapping[a.ID] = a.KeyID
		}
		return nil
	})
	return out, err
}

// Request makes a key, and a request for the certificate of an authority that is
// signed elsewhere. [PKI.Import] brings the certificate in.
func (p *PKI) Request(ctx context.Context, c estover.Caller, plan Plan, export bool) (csr []byte, key Key, private estover.Secret, err error) {
	op := guard.Op{Action: "pki.authority", Target: target(X509, "authority", plan.Name), Detail: map[string]any{"mount": plan.Mount, "requests": plan, "exported": export}}
	plan.Kind = X509
	err = plan.check()
	if err == nil {
		err = p.sealer.Prepare(ctx, c.Tenant)
	}
	if err == nil {
		if err := p.permitted(ctx, c, op); err != nil {
			return nil, Key{}, private, err
		}
	}
	var k *Key
	var signer crypto.Signer
	var made bool
	if err == nil {
		k, signer, made, err = p.keyFor(ctx, c.Tenant, &plan)
	}
	var t *x509.Certificate
	if err == nil {
		t, err = p.template(&plan, k, p.guard.DB().Now())
	}
	if err == nil {
		csr, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
			Subject: t.Subject, DNSNames: t.DNSNames, EmailAddresses: t.EmailAddresses, IPAddresses: t.IPAddresses, URIs: t.URIs,
		}, signer)
	}
	if err != nil {
		return nil, Key{}, private, p.told(ctx, c, op, err)
	}
	err = p.guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		tx.SetTarget("pki_key:" + k.ID)
		if !made {
			return nil
		}
		return insertKey(ctx, tx.Tx, k)
	})
	if err != nil {
		return nil, Key{}, private, err
	}
	if export {
		private, err = PrivatePEM(signer)
	}
	return csr, *k, private, err
}

// SignAuthority signs the certificate of an authority whose key is elsewhere.
func (p *PKI) SignAuthority(ctx context.Context, c estover.Caller, ref string, csr *x509.CertificateRequest, plan Plan, useCSR bool) (*Certificate, error) {
	op := guard.Op{Action: "pki.authority", Target: target(X509, "authority", ref), Detail: map[string]any{"mount": plan.Mount, "signs": csr.Subject.String()}}
	plan.Kind = X509
	err := plan.check()
	if err == nil && csr.CheckSignature() != nil {
		err = ErrInvalid.With("The request is not signed by its own key.")
	}
	if err == nil {
		err = (&X509Spec{KeyType: "any"}).fits(csr.PublicKey)
	}
	if err == nil { // before anything is signed
		if err := p.permitted(ctx, c, op); err != nil {
			return nil, err
		}
	}
	var parent *Authority
	if err == nil {
		parent, err = p.issuing(ctx, c.Tenant, plan.Mount, X509, ref)
	}
	var below *certified
	if err == nil {
		var spki []byte
		if spki, err = x509.MarshalPKIXPublicKey(csr.PublicKey); err == nil {
			if useCSR {
				plan.Subject = csr.Subject
				plan.Subject.ExtraNames = nil
			}
			var t *x509.Certificate
			if t, err = p.template(&plan, &Key{public: spki}, p.guard.DB().Now()); err == nil {
				if useCSR {
					t.DNSNames, t.EmailAddresses, t.IPAddresses, t.URIs = csr.DNSNames, csr.EmailAddresses, csr.IPAddresses, csr.URIs
				}
				below, err = p.signAuthority(ctx, c, parent, t, csr.PublicKey)
			}
		}
	}
	if err != nil {
		return nil, p.told(ctx, c, op, err)
	}
	err = p.guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		tx.SetTarget(target(X509, "authority", parent.ID))
		tx.Note("serial", below.serial)
		return below.insert(ctx, tx)
	})
	if err != nil {
		return nil, err
	}
	return p.answer(ctx, below, "authority")
}
