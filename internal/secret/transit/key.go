package transit

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/fips140"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"strconv"

	"golang.org/x/crypto/chacha20poly1305"

	"estover.dev"
	"estover.dev/internal/seal"
)

func inFIPS() bool { return fips140.Enabled() }

// A material is the secret of a version: the key, raw or as PKCS #8, and the key by
// which the version makes MACs.
type material struct {
	key []byte
	mac []byte
}

// fresh makes one.
func (t *Transit) fresh(typ Type, spec Spec) (*material, error) {
	m := &material{mac: random(32)}
	var private crypto.PrivateKey
	var err error
	switch typ {
	case AES128:
		m.key = random(16)
	case AES256, ChaCha20:
		m.key = random(32)
	case HMAC:
		m.key = random(spec.KeySize)
	case ECDSAP256:
		private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case ECDSAP384:
		private, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case ECDSAP521:
		private, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case Ed25519:
		_, private, err = ed25519.GenerateKey(rand.Reader)
	case RSA2048:
		private, err = rsa.GenerateKey(rand.Reader, 2048)
	case RSA3072:
		private, err = rsa.GenerateKey(rand.Reader, 3072)
	case RSA4096:
		private, err = rsa.GenerateKey(rand.Reader, 4096)
	default:
		return nil, ErrInvalid.With("The type of a key is one of %v, not %q.", Types, typ).At("type")
	}
	if err == nil && private != nil {
		m.key, err = x509.MarshalPKCS8PrivateKey(private)
	}
	return m, err
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

// bytes is a material as it is sealed: the MAC key, its length before it, and the
// key.
func (m *material) bytes() []byte {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(m.mac)+len(m.key)), uint32(len(m.mac)))
	return append(append(b, m.mac...), m.key...)
}

func parseMaterial(b []byte) (*material, error) {
	if len(b) < 4 {
		return nil, seal.ErrBroken
	}
	n := int(binary.BigEndian.Uint32(b))
	if n > len(b)-4 {
		return nil, seal.ErrBroken
	}
	return &material{mac: b[4 : 4+n], key: b[4+n:]}, nil
}

func versionAAD(k *Key, v *Version) seal.AAD {
	return seal.AAD{Class: seal.Transit, ID: k.ID, Version: v.N, Created: v.CreatedAt}
}

// sealVersion seals what a version keeps, and writes its public half down.
func (t *Transit) sealVersion(tenant estover.TenantID, k *Key, v *Version, m *material) (err error) {
	if !k.Type.Symmetric() {
		private, err := privateOf(k.Type, m.key)
		if err != nil {
			return err
		}
		if v.public, err = x509.MarshalPKIXPublicKey(private.Public()); err != nil {
			return err
		}
	}
	plain := m.bytes()
	defer clear(plain)
	v.sealed, err = t.sealer.Seal(tenant, versionAAD(k, v), plain)
	if err != nil {
		err = fmt.Errorf("sealing a version of a key: %w", err)
	}
	return err
}

// privateOf reads the private key of an asymmetric version, and makes sure that it
// is of its type.
func privateOf(typ Type, der []byte) (crypto.Signer, error) {
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, ErrInvalid.With("The private key is not one in PKCS #8.")
	}
	var is Type
	switch k := parsed.(type) {
	case *ecdsa.PrivateKey:
		is = map[elliptic.Curve]Type{elliptic.P256(): ECDSAP256, elliptic.P384(): ECDSAP384, elliptic.P521(): ECDSAP521}[k.Curve]
	case ed25519.PrivateKey:
		is = Ed25519
	case *rsa.PrivateKey:
		is = Type("rsa-" + strconv.Itoa(k.N.BitLen()))
	}
	if is != typ {
		return nil, ErrInvalid.With("The private key is not of the type %s.", typ)
	}
	return parsed.(crypto.Signer), nil
}

// A ring is a key with its versions opened. It never changes.
type ring struct {
	*Key
	versions map[int64]*opened
}

// An opened is a version in use.
type opened struct {
	n       int64
	key     []byte        // of a symmetric one; the seed of Ed25519
	mac     []byte        // the key for MACs
	private crypto.Signer // of an asymmetric one
	aead    cipher.AEAD   // of one that encrypts and is not derived
}

func (t *Transit) open(tenant estover.TenantID, k *Key) (*ring, error) {
	r := &ring{Key: k, versions: map[int64]*opened{}}
	for i := range k.Versions {
		v := &k.Versions[i]
		plain, err := t.sealer.Open(tenant, versionAAD(k, v), v.sealed)
		if err != nil {
			return nil, fmt.Errorf("opening a version of a key: %w", err)
		}
		m, err := parseMaterial(plain)
		if err != nil {
			return nil, err
		}
		o := &opened{n: v.N, mac: m.mac}
		switch {
		case k.Type == HMAC:
			o.mac = m.key
		case k.Type.Symmetric():
			o.key = m.key
			if !k.Derived {
				if o.aead, err = aeadOf(k.Type, m.key); err != nil {
					return nil, err
				}
			}
		default:
			if o.private, err = privateOf(k.Type, m.key); err != nil {
				return nil, err
			}
			if seed, ok := o.private.(ed25519.PrivateKey); ok {
				o.key = seed.Seed()
			}
			public, err := x509.MarshalPKIXPublicKey(o.private.Public())
			if err != nil || !bytes.Equal(public, v.public) {
				return nil, seal.ErrBroken
			}
		}
		r.versions[v.N] = o
	}
	return r, nil
}

// aeadOf makes a cipher that puts a random nonce of 12 bytes before what it seals.
func aeadOf(typ Type, key []byte) (cipher.AEAD, error) {
	if typ == ChaCha20 {
		c, err := chacha20poly1305.New(key)
		return nonced{c}, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// A nonced makes its nonces itself, as the one of the standard library does.
type nonced struct{ cipher.AEAD }

func (n nonced) NonceSize() int { return 0 }

func (n nonced) Overhead() int { return n.AEAD.NonceSize() + n.AEAD.Overhead() }

func (n nonced) Seal(dst, _, plaintext, data []byte) []byte {
	nonce := random(n.AEAD.NonceSize())
	return n.AEAD.Seal(append(dst, nonce...), nonce, plaintext, data)
}

func (n nonced) Open(dst, _, sealed, data []byte) ([]byte, error) {
	size := n.AEAD.NonceSize()
	if len(sealed) < size {
		return nil, ErrCiphertext
	}
	return n.AEAD.Open(dst, sealed[:size], sealed[size:], data)
}

// derive makes the key of a context, n bytes of it (RFC 5869).
func (o *opened) derive(context []byte, n int) ([]byte, error) {
	return hkdf.Key(sha256.New, o.key, nil, string(context), n)
}

// size is how many bytes a symmetric key of the type has.
func (t Type) size() int {
	if t == AES128 {
		return 16
	}
	return 32
}

// seal encrypts one plaintext.
func (r *ring) seal(o *opened, plaintext, context, data []byte) ([]byte, error) {
	if r.Type.rsa() {
		if len(data) > 0 {
			return nil, ErrCannot.With("RSA binds no associated data.")
		}
		out, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, o.private.Public().(*rsa.PublicKey), plaintext, nil)
		if err != nil {
			return nil, ErrInvalid.With("The plaintext is too long for the key.").At("plaintext")
		}
		return out, nil
	}
	if !r.Derived {
		return o.aead.Seal(nil, nil, plaintext, data), nil
	}
	if len(context) == 0 {
		return nil, ErrInvalid.With("The key is derived, and needs a context.").At("context")
	}
	if !r.Convergent {
		key, err := o.derive(context, r.Type.size())
		if err != nil {
			return nil, err
		}
		aead, err := aeadOf(r.Type, key)
		if err != nil {
			return nil, err
		}
		return aead.Seal(nil, nil, plaintext, data), nil
	}
	if err := refuseConvergent(); err != nil { // what it has encrypted can be opened
		return nil, err
	}
	// The nonce is a MAC of the plaintext under a key of the context beside.
	key, err := o.derive(context, r.Type.size()+32)
	if err != nil {
		return nil, err
	}
	mac := hmac.New(sha256.New, key[r.Type.size():])
	mac.Write(plaintext)
	nonce := mac.Sum(nil)[:12]
	plainAEAD, err := bareAEAD(r.Type, key[:r.Type.size()])
	if err != nil {
		return nil, err
	}
	return plainAEAD.Seal(bytes.Clone(nonce), nonce, plaintext, data), nil
}

func bareAEAD(typ Type, key []byte) (cipher.AEAD, error) {
	if typ == ChaCha20 {
		return chacha20poly1305.New(key)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// unseal decrypts one ciphertext.
func (r *ring) unseal(o *opened, ciphertext, context, data []byte) (plaintext []byte, err error) {
	switch {
	case r.Type.rsa():
		plaintext, err = rsa.DecryptOAEP(sha256.New(), nil, o.private.(*rsa.PrivateKey), ciphertext, nil)
	case !r.Derived:
		plaintext, err = o.aead.Open(nil, nil, ciphertext, data)
	case len(context) == 0:
		return nil, ErrInvalid.With("The key is derived, and needs a context.").At("context")
	default:
		key, failed := o.derive(context, r.Type.size())
		if failed != nil {
			return nil, failed
		}
		aead, failed := aeadOf(r.Type, key)
		if failed != nil {
			return nil, failed
		}
		plaintext, err = aead.Open(nil, nil, ciphertext, data)
	}
	if err != nil {
		return nil, ErrCiphertext
	}
	if plaintext == nil {
		plaintext = []byte{}
	}
	return plaintext, nil
}

// show writes the public halves as they are shown.
func (k *Key) show() error {
	for i := range k.Versions {
		v := &k.Versions[i]
		if len(v.public) == 0 || k.Derived {
			continue
		}
		if k.Type == Ed25519 {
			public, err := x509.ParsePKIXPublicKey(v.public)
			if err != nil {
				return err
			}
			v.PublicKey = base64.StdEncoding.EncodeToString(public.(ed25519.PublicKey))
			continue
		}
		v.PublicKey = string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: v.public}))
	}
	return nil
}

// unwrap is AES key wrap with padding (RFC 5649).
func unwrap(kek, wrapped []byte) ([]byte, error) {
	broken := ErrInvalid.With("The wrapped key does not open: it was wrapped with another key, or not by AES-KWP.").At("ciphertext")
	if len(wrapped) < 16 || len(wrapped)%8 != 0 {
		return nil, broken
	}
	block, err := aes.NewCipher(kek)
	if err != nil {
		return nil, broken
	}
	n := len(wrapped)/8 - 1
	var a [8]byte
	out := make([]byte, 8*n)
	if n == 1 {
		var b [16]byte
		block.Decrypt(b[:], wrapped)
		copy(a[:], b[:8])
		copy(out, b[8:])
	} else {
		copy(a[:], wrapped)
		copy(out, wrapped[8:])
		var b [16]byte
		for j := 5; j >= 0; j-- {
			for i := n; i >= 1; i-- {
				counter := binary.BigEndian.Uint64(a[:]) ^ uint64(n*j+i)
				binary.BigEndian.PutUint64(b[:8], counter)
				copy(b[8:], out[8*(i-1):8*i])
				block.Decrypt(b[:], b[:])
				copy(a[:], b[:8])
				copy(out[8*(i-1):], b[8:])
			}
		}
	}
	size := int(binary.BigEndian.Uint32(a[4:]))
	if !bytes.Equal(a[:4], []byte{0xa6, 0x59, 0x59, 0xa6}) || size > len(out) || size <= len(out)-8 || size == 0 {
		return nil, broken
	}
	for _, pad := range out[size:] {
		if pad != 0 {
			return nil, broken
		}
	}
	return out[:size], nil
}
