package pki

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
	"estover.dev/internal/jose/weak"
	"estover.dev/internal/seal"
)

// An Algorithm is what a key is.
type Algorithm string

// The algorithms.
const (
	P256    Algorithm = "ec-p256"
	P384    Algorithm = "ec-p384"
	Ed25519 Algorithm = "ed25519"
	RSA2048 Algorithm = "rsa-2048"
	RSA3072 Algorithm = "rsa-3072"
	RSA4096 Algorithm = "rsa-4096"
)

// Algorithms lists what keys there are.
var Algorithms = []Algorithm{P256, P384, Ed25519, RSA2048, RSA3072, RSA4096}

// generate makes a private key.
func (a Algorithm) generate() (crypto.Signer, error) {
	switch a {
	case P256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case P384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case Ed25519:
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	case RSA2048:
		return rsa.GenerateKey(rand.Reader, 2048)
	case RSA3072:
		return rsa.GenerateKey(rand.Reader, 3072)
	case RSA4096:
		return rsa.GenerateKey(rand.Reader, 4096)
	}
	return nil, ErrInvalid.With("The algorithm of a key is one of %v, not %q.", Algorithms, a).At("algorithm")
}

// algorithmOf says what a public key is.
func algorithmOf(public crypto.PublicKey) (Algorithm, error) {
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return P256, nil
		case elliptic.P384():
			return P384, nil
		}
	case ed25519.PublicKey:
		return Ed25519, nil
	case *rsa.PublicKey:
		switch k.N.BitLen() {
		case 2048:
			return RSA2048, nil
		case 3072:
			return RSA3072, nil
		case 4096:
			return RSA4096, nil
		}
	}
	return "", ErrInvalid.With("The key is none of %v.", Algorithms)
}

// sound says why nobody should rely on a key, whatever is certified with it.
func sound(public crypto.PublicKey) error {
	if k, ok := public.(*rsa.PublicKey); ok && weak.Predictable(k.N) {
		return ErrNotAllowed.With(weak.Why)
	}
	return nil
}

// A Key is the private key of an authority, as far as it is shown.
type Key struct {
	ID        string    `json:"id"` // cak_…
	Mount     string    `json:"mount,omitempty"`
	Name      string    `json:"name,omitempty"`
	Algorithm Algorithm `json:"algorithm"`
	CreatedAt time.Time `json:"created_at"`

	public []byte // SubjectPublicKeyInfo
	sealed []byte
}

func keyAAD(k *Key) seal.AAD {
	return seal.AAD{Class: seal.PKI, ID: k.ID, Created: k.CreatedAt}
}

// newKey seals a private key. It does no I/O.
func (p *PKI) newKey(tenant estover.TenantID, mount, name string, private crypto.Signer) (*Key, error) {
	if name != "" && !ValidName(name) {
		return nil, ErrInvalid.With("%q cannot name a key.", name).At("key_name")
	}
	algorithm, err := algorithmOf(private.Public())
	if err == nil {
		err = sound(private.Public())
	}
	if err != nil {
		return nil, err
	}
	k := &Key{ID: estover.NewID("cak"), Mount: mount, Name: name, Algorithm: algorithm, CreatedAt: p.guard.DB().Now()}
	if k.public, err = x509.MarshalPKIXPublicKey(private.Public()); err != nil {
		return nil, err
	}
	plain, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, err
	}
	defer clear(plain)
	if k.sealed, err = p.sealer.Seal(tenant, keyAAD(k), plain); err != nil {
		return nil, fmt.Errorf("sealing the key of an authority: %w", err)
	}
	return k, nil
}

// signer opens a key for a signature. A key that is not the one whose public half
// is known is not used.
func (p *PKI) signer(tenant estover.TenantID, k *Key) (crypto.Signer, error) {
	plain, err := p.sealer.Open(tenant, keyAAD(k), k.sealed)
	if err != nil {
		return nil, fmt.Errorf("opening the key of an authority: %w", err)
	}
	defer clear(plain)
	private, err := x509.ParsePKCS8PrivateKey(plain)
	if err != nil {
		return nil, fmt.Errorf("reading the key of an authority: %w", err)
	}
	signer, ok := private.(crypto.Signer)
	if !ok {
		return nil, seal.ErrBroken
	}
	public, err := x509.MarshalPKIXPublicKey(signer.Public())
	if err != nil || !bytes.Equal(public, k.public) {
		return nil, seal.ErrBroken
	}
	return signer, nil
}

// Keys are the keys of a mount by name.
func (p *PKI) Keys(ctx context.Context, c estover.Caller, mount string) (list []Key, err error) {
	err = p.guard.Read(ctx, c, guard.Op{Action: "pki.list", Target: "pki_key:"}, func(tx *db.Tx) error {
		list, err = findKeys(ctx, tx, mount)
		return err
	})
	return list, err
}

// Key is a key of a mount by its id or its name.
func (p *PKI) Key(ctx context.Context, c estover.Caller, mount, ref string) (k Key, err error) {
	err = p.guard.Read(ctx, c, guard.Op{Action: "pki.read", Target: "pki_key:" + ref}, func(tx *db.Tx) error {
		one, err := findKey(ctx, tx, mount, ref)
		if err == nil {
			k = *one
		}
		return err
	})
	return k, err
}

// Public is the public half.
func (k *Key) Public() (crypto.PublicKey, error) { return x509.ParsePKIXPublicKey(k.public) }

// GenerateKey makes a key that no authority has yet. The private half is answered
// if it is exported, and shown this once.
func (p *PKI) GenerateKey(ctx context.Context, c estover.Caller, mount, name string, a Algorithm, export bool) (Key, estover.Secret, error) {
	op := guard.Op{Action: "pki.key", Target: "pki_key:" + name, Detail: map[string]any{"mount": mount, "algorithm": a, "exported": export}}
	if err := p.permitted(ctx, c, op); err != nil {
		return Key{}, estover.Secret{}, err
	}
	private, err := a.generate()
	if err != nil {
		return Key{}, estover.Secret{}, err
	}
	k, err := p.addKey(ctx, c, mount, name, private, map[string]any{"exported": export})
	if err != nil || !export {
		return k, estover.Secret{}, err
	}
	shown, err := PrivatePEM(private)
	return k, shown, err
}

// ImportKey takes a private key over, in PEM.
func (p *PKI) ImportKey(ctx context.Context, c estover.Caller, mount, name string, text estover.Secret) (Key, error) {
	_, keys, err := parseBundle(text.Reveal())
	if err != nil {
		return Key{}, err
	}
	if len(keys) != 1 {
		return Key{}, ErrInvalid.With("One private key in PEM is taken over at a time, and there are %d.", len(keys))
	}
	return p.addKey(ctx, c, mount, name, keys[0], map[string]any{"imported": true})
}

func (p *PKI) addKey(ctx context.Context, c estover.Caller, mount, name string, private crypto.Signer, detail map[string]any) (Key, error) {
	if err := p.sealer.Prepare(ctx, c.Tenant); err != nil {
		return Key{}, err
	}
	k, err := p.newKey(c.Tenant, mount, name, private)
	if err != nil {
		return Key{}, err
	}
	detail["mount"], detail["algorithm"] = mount, k.Algorithm
	op := guard.Op{Action: "pki.key", Target: "pki_key:" + k.ID, Detail: detail}
	err = p.guard.Do(ctx, c, op, func(tx *guard.Tx) error { return insertKey(ctx, tx.Tx, k) })
	return *k, err
}

// RenameKey gives a key another name.
func (p *PKI) RenameKey(ctx context.Context, c estover.Caller, mount, ref, name string) (k Key, err error) {
	op := guard.Op{Action: "pki.key", Target: "pki_key:" + ref, Detail: map[string]any{"name": name}}
	err = p.guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		if name != "" && !ValidName(name) {
			return ErrInvalid.With("%q cannot name a key.", name).At("key_name")
		}
		one, err := findKey(ctx, tx.Tx, mount, ref)
		if err != nil {
			return err
		}
		tx.SetTarget("pki_key:" + one.ID)
		one.Name, k = name, *one
		k.Name = name
		return renameKey(ctx, tx.Tx, one.ID, name)
	})
	return k, err
}

// RemoveKey destroys a key that no authority uses.
func (p *PKI) RemoveKey(ctx context.Context, c estover.Caller, mount, ref string) error {
	op := guard.Op{Action: "pki.key", Target: "pki_key:" + ref, Effect: guard.Deletes}
	return p.guard.Do(ctx, c, op, func(tx *guard.Tx) error {
		k, err := findKey(ctx, tx.Tx, mount, ref)
		if err != nil {
			return err
		}
		tx.SetTarget("pki_key:" + k.ID)
		used, err := keyUsed(ctx, tx.Tx, k.ID)
		if err != nil {
			return err
		}
		if used {
			return ErrInUse
		}
		ids, err := forgetKey(ctx, tx.Tx, k.ID)
		for _, id := range ids {
			tx.Touch(authorityKind, id)
		}
		return err
	})
}

// PrivatePEM writes a private key as PKCS #8.
func PrivatePEM(private crypto.Signer) (estover.Secret, error) {
	plain, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return estover.Secret{}, err
	}
	defer clear(plain)
	return estover.NewSecret(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: plain})), nil
}

// parseBundle reads certificates and private keys in PEM, in any order.
func parseBundle(text []byte) (certificates []*x509.Certificate, keys []crypto.Signer, err error) {
	if len(text) > maxPEM {
		return nil, nil, ErrInvalid.With("A bundle in PEM has at most %d bytes.", maxPEM)
	}
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if len(certificates)+len(keys) >= 50 {
			return nil, nil, ErrInvalid.With("A bundle has at most 50 certificates and keys.")
		}
		var key any
		switch block.Type {
		case "CERTIFICATE":
			one, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, nil, ErrInvalid.With("A certificate in the bundle cannot be read: %v.", err)
			}
			certificates = append(certificates, one)
			continue
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		default:
			return nil, nil, ErrInvalid.With("A bundle has certificates and private keys, and no %s.", printable(block.Type))
		}
		clear(block.Bytes)
		signer, ok := key.(crypto.Signer)
		if err != nil || !ok {
			return nil, nil, ErrInvalid.With("A private key in the bundle cannot be read. Encrypted keys are not taken.")
		}
		keys = append(keys, signer)
	}
	if len(certificates)+len(keys) == 0 {
		return nil, nil, ErrInvalid.With("There is no certificate and no private key in PEM.")
	}
	return certificates, keys, nil
}

// printable keeps what somebody sent from being anything but a word in a sentence.
func printable(s string) string {
	b := []byte(s[:min(len(s), 40)])
	return string(slices.DeleteFunc(b, func(c byte) bool { return c < 0x20 || c > 0x7e }))
}
