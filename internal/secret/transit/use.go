package transit

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/fips140"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // where others ask for it
	"crypto/sha256"
	"crypto/sha3"
	"crypto/sha512"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"hash"
	"math/big"
	"strconv"
	"strings"

	"estover.dev"
	"estover.dev/internal/audit"
	"estover.dev/internal/db"
	"estover.dev/internal/guard"
)

// An Item is one of a batch.
type Item struct {
	Plaintext  []byte // to encrypt, or the input to sign, verify or make a MAC of
	Ciphertext string // to decrypt or rewrap, or the signature or MAC to verify
	Context    []byte // of a derived key
	Data       []byte // associated data that a ciphertext is bound to
	Version    int64  // to use; the newest if zero
}

// A Result is what came of an item. Either Err is set, or the others are.
type Result struct {
	Text      string         // the ciphertext, signature or MAC
	Plaintext estover.Secret // of what was decrypted
	Valid     bool           // of what was verified
	Version   int64
	PublicKey string // of a signature by a derived key
	Err       error
}

// ring finds a key for a use.
func (t *Transit) ring(ctx context.Context, c estover.Caller, mount, name string) (*ring, error) {
	if err := t.sealer.Prepare(ctx, c.Tenant); err != nil {
		return nil, err
	}
	return t.copies.Get(ctx, c.Tenant, at(mount, name))
}

// reads does what needs no event: policy is asked, once for a batch.
func (t *Transit) reads(ctx context.Context, c estover.Caller, action, mount, name string, items int, fn func(r *ring) ([]Result, error)) (out []Result, err error) {
	r, op, missing := t.begin(ctx, c, action, mount, name, items)
	op.Effect = guard.Reads
	if err := t.guard.Read(ctx, c, op, func(*db.Tx) error { return nil }); err != nil {
		return nil, err
	}
	if missing != nil {
		return nil, missing
	}
	return fn(r)
}

// records does what is an event of its own, and answers after it is on record.
func (t *Transit) records(ctx context.Context, c estover.Caller, action, mount, name string, items int, fn func(r *ring) ([]Result, error)) ([]Result, error) {
	r, op, missing := t.begin(ctx, c, action, mount, name, items)
	op.Effect = guard.Executes
	decision, err := t.guard.Admit(ctx, c, op)
	if err != nil {
		return nil, err
	}
	if missing != nil {
		return nil, missing
	}
	out, err := fn(r)
	if err != nil {
		return nil, err
	}
	hot := guard.Hot{Live: []db.Epoch{{Table: "transit_key", ID: r.ID, Epoch: r.epoch}}}
	failed := 0
	for _, one := range out {
		if one.Err != nil {
			failed++
		}
	}
	if failed > 0 {
		op.Detail["failed"] = failed
	}
	if failed == len(out) {
		hot.Outcome = audit.Failed
	}
	err = t.guard.Record(ctx, c, op, decision, hot)
	if errors.Is(err, db.ErrStale) {
		t.copies.Drop(c.Tenant, at(mount, name))
		return nil, errStale
	}
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (t *Transit) begin(ctx context.Context, c estover.Caller, action, mount, name string, items int) (*ring, guard.Op, error) {
	r, err := t.ring(ctx, c, mount, name)
	op := guard.Op{Action: action, Target: target(name), Detail: map[string]any{"name": name, "items": items}}
	if mount != "" {
		op.Detail["mount"] = mount
	}
	if err == nil {
		op.Target, op.Resource = target(r.ID), r.Resource
		err = t.refuseFIPS(r.Type)
		if r.Resource != "" && t.action != nil && err == nil {
			op.Input, _, err = t.action(ctx, c.Tenant, r.Resource, r.Action)
		}
	}
	if err == nil && items > MaxBatch {
		err = ErrInvalid.With("At most %d things are done at a time.", MaxBatch)
	}
	return r, op, err
}

// each does something for every item, whatever becomes of the others.
func each(items []Item, fn func(Item) (Result, error)) []Result {
	out := make([]Result, len(items))
	for i, one := range items {
		var err error
		if out[i], err = fn(one); err != nil {
			out[i] = Result{Err: err}
		}
	}
	return out
}

// forNew is the version that encrypts or signs: the newest, or one that is named and
// may be.
func (r *ring) forNew(n int64) (*opened, error) {
	if n == 0 {
		n = r.Latest
	}
	oldest := r.MinEncryption
	if oldest == 0 && n != r.Latest {
		oldest = r.MinDecryption
	}
	o := r.versions[n]
	if o == nil || n < oldest {
		return nil, ErrVersion.With("The version %d of the key is not there, or is older than min_encryption_version.", n)
	}
	return o, nil
}

// forOld is the version that a text names, and what follows the name.
func (r *ring) forOld(text string) (*opened, string, error) {
	rest, ok := strings.CutPrefix(text, "vault:v")
	number, body, ok2 := strings.Cut(rest, ":")
	n, err := strconv.ParseInt(number, 10, 64)
	if !ok || !ok2 || err != nil || n < 0 {
		return nil, "", ErrCiphertext.With("This is not of the form vault:v1:….")
	}
	if n == 0 {
		n = 1 // of before there were versions
	}
	if n < r.MinDecryption {
		return nil, "", ErrVersion.With("The version %d of the key is older than min_decryption_version.", n)
	}
	o := r.versions[n]
	if o == nil {
		return nil, "", ErrVersion.With("The key has no version %d.", n)
	}
	return o, body, nil
}

func prefix(n int64) string { return "vault:v" + strconv.FormatInt(n, 10) + ":" }

// Encrypt encrypts.
func (t *Transit) Encrypt(ctx context.Context, c estover.Caller, mount, name string, items []Item) ([]Result, error) {
	return t.reads(ctx, c, "transit.encrypt", mount, name, len(items), func(r *ring) ([]Result, error) {
		if !r.Type.Encrypts() {
			return nil, ErrCannot.With("A key of the type %s does not encrypt.", r.Type)
		}
		return each(items, r.encrypt), nil
	})
}

func (r *ring) encrypt(one Item) (Result, error) {
	o, err := r.forNew(one.Version)
	if err != nil {
		return Result{}, err
	}
	b, err := r.seal(o, one.Plaintext, one.Context, one.Data)
	if err != nil {
		return Result{}, err
	}
	return Result{Text: prefix(o.n) + base64.StdEncoding.EncodeToString(b), Version: o.n}, nil
}

// Decrypt decrypts.
func (t *Transit) Decrypt(ctx context.Context, c estover.Caller, mount, name string, items []Item) ([]Result, error) {
	return t.records(ctx, c, "transit.decrypt", mount, name, len(items), func(r *ring) ([]Result, error) {
		if !r.Type.Encrypts() {
			return nil, ErrCannot.With("A key of the type %s does not decrypt.", r.Type)
		}
		return each(items, func(one Item) (Result, error) {
			plaintext, n, err := r.decrypt(one)
			return Result{Plaintext: estover.NewSecret(plaintext), Version: n}, err
		}), nil
	})
}

func (r *ring) decrypt(one Item) ([]byte, int64, error) {
	o, body, err := r.forOld(one.Ciphertext)
	if err != nil {
		return nil, 0, err
	}
	b, err := base64.StdEncoding.DecodeString(body)
	if err != nil {
		return nil, 0, ErrCiphertext.With("What follows the version is not base64.")
	}
	plaintext, err := r.unseal(o, b, one.Context, one.Data)
	return plaintext, o.n, err
}

// Rewrap encrypts with the newest version what another one has encrypted. Nobody
// sees the plaintext.
func (t *Transit) Rewrap(ctx context.Context, c estover.Caller, mount, name string, items []Item) ([]Result, error) {
	return t.reads(ctx, c, "transit.rewrap", mount, name, len(items), func(r *ring) ([]Result, error) {
		if !r.Type.Encrypts() {
			return nil, ErrCannot.With("A key of the type %s does not encrypt.", r.Type)
		}
		return each(items, func(one Item) (Result, error) {
			plaintext, _, err := r.decrypt(one)
			if err != nil {
				return Result{}, err
			}
			defer clear(plaintext)
			one.Plaintext = plaintext
			return r.encrypt(one)
		}), nil
	})
}

// DataKey makes a key for use elsewhere, of so many bits, and encrypts it. The
// plaintext is answered only if it is asked for.
func (t *Transit) DataKey(ctx context.Context, c estover.Caller, mount, name string, bits int, plaintext bool, one Item) (Result, error) {
	action := "transit.datakey"
	if !plaintext {
		action = "transit.encrypt"
	}
	out, err := t.records(ctx, c, action, mount, name, 1, func(r *ring) ([]Result, error) {
		switch {
		case !r.Type.Encrypts():
			return nil, ErrCannot.With("A key of the type %s does not encrypt.", r.Type)
		case bits != 128 && bits != 256 && bits != 512:
			return nil, ErrInvalid.With("A data key has 128, 256 or 512 bits.").At("bits")
		}
		key := random(bits / 8)
		one.Plaintext = key
		made, err := r.encrypt(one)
		if plaintext {
			made.Plaintext = estover.NewSecret(key)
		}
		return []Result{made}, err
	})
	if err != nil {
		return Result{}, err
	}
	return out[0], out[0].Err
}

// How says how to sign, verify or make a MAC. The zero value is good.
type How struct {
	Hash      string // sha2-256 if empty; sha1, sha2-224 … sha3-512, none
	Prehashed bool   // the input is a digest already
	Encoding  string // of ECDSA: asn1 if empty, or jws
	RSA       string // pss if empty, or pkcs1v15
	Salt      string // of PSS: auto if empty, hash, or a number of bytes
}

var hashes = map[string]struct {
	of  crypto.Hash
	new func() hash.Hash
}{
	"sha1": {crypto.SHA1, sha1.New}, "sha2-224": {crypto.SHA224, sha256.New224}, "sha2-256": {crypto.SHA256, sha256.New}, "sha2-384": {crypto.SHA384, sha512.New384}, "sha2-512": {crypto.SHA512, sha512.New},
	"sha3-224": {crypto.SHA3_224, func() hash.Hash { return sha3.New224() }}, "sha3-256": {crypto.SHA3_256, func() hash.Hash { return sha3.New256() }},
	"sha3-384": {crypto.SHA3_384, func() hash.Hash { return sha3.New384() }}, "sha3-512": {crypto.SHA3_512, func() hash.Hash { return sha3.New512() }},
}

// unapproved reports whether a hash is not there where FIPS 140 is enforced.
func unapproved(name string) bool { return name == "sha1" && fips140.Enforced() }

// Hash gives the digest of an input, by the name of a hash.
func Hash(name string, input []byte) ([]byte, error) {
	if name == "" {
		name = "sha2-256"
	}
	h, ok := hashes[name]
	if !ok || unapproved(name) {
		return nil, ErrInvalid.With("There is no hash %q.", name).At("algorithm")
	}
	sum := h.new()
	sum.Write(input)
	return sum.Sum(nil), nil
}

// digest is what is signed of an input.
func (h How) digest(input []byte) ([]byte, crypto.Hash, error) {
	name := h.Hash
	if name == "" {
		name = "sha2-256"
	}
	if name == "none" {
		if h.RSA != "pkcs1v15" || !h.Prehashed {
			return nil, 0, ErrInvalid.With("Without a hash only a digest is signed, by RSA with pkcs1v15.").At("hash_algorithm")
		}
		return input, 0, nil
	}
	of, ok := hashes[name]
	if !ok || unapproved(name) {
		return nil, 0, ErrInvalid.With("There is no hash %q.", name).At("hash_algorithm")
	}
	if h.Prehashed {
		if len(input) != of.of.Size() {
			return nil, 0, ErrInvalid.With("A digest by %s has %d bytes.", name, of.of.Size()).At("input")
		}
		return input, of.of, nil
	}
	sum := of.new()
	sum.Write(input)
	return sum.Sum(nil), of.of, nil
}

func (h How) pss(of crypto.Hash) (*rsa.PSSOptions, error) {
	o := &rsa.PSSOptions{Hash: of, SaltLength: rsa.PSSSaltLengthAuto}
	switch h.Salt {
	case "", "auto":
	case "hash":
		o.SaltLength = rsa.PSSSaltLengthEqualsHash
	default:
		n, err := strconv.Atoi(h.Salt)
		if err != nil || n < 0 || n > 512 {
			return nil, ErrInvalid.With("The length of a salt is auto, hash or a number of bytes.").At("salt_length")
		}
		if o.SaltLength = n; n == 0 {
			o.SaltLength = rsa.PSSSaltLengthAuto
		}
	}
	return o, nil
}

// Sign signs.
func (t *Transit) Sign(ctx context.Context, c estover.Caller, mount, name string, how How, items []Item) ([]Result, error) {
	return t.records(ctx, c, "transit.sign", mount, name, len(items), func(r *ring) ([]Result, error) {
		if !r.Type.Signs() {
			return nil, ErrCannot.With("A key of the type %s does not sign.", r.Type)
		}
		return each(items, func(one Item) (Result, error) { return r.sign(how, one) }), nil
	})
}

func (r *ring) sign(how How, one Item) (Result, error) {
	o, err := r.forNew(one.Version)
	if err != nil {
		return Result{}, err
	}
	out := Result{Version: o.n}
	var signature []byte
	switch k := o.private.(type) {
	case ed25519.PrivateKey:
		if how.Prehashed {
			return out, ErrCannot.With("Ed25519 signs the input itself, and no digest of it.")
		}
		if k, err = r.edwards(o, one.Context); err != nil {
			return out, err
		}
		signature = ed25519.Sign(k, one.Plaintext)
		if r.Derived {
			out.PublicKey = base64.StdEncoding.EncodeToString(k.Public().(ed25519.PublicKey))
		}
	case *ecdsa.PrivateKey:
		digest, _, err := how.digest(one.Plaintext)
		if err != nil {
			return out, err
		}
		if signature, err = ecdsa.SignASN1(rand.Reader, k, digest); err != nil {
			return out, err
		}
		if how.Encoding == "jws" {
			raw, err := jws(signature, (k.Params().BitSize+7)/8)
			if err != nil {
				return out, err
			}
			out.Text = prefix(o.n) + base64.RawURLEncoding.EncodeToString(raw)
			return out, nil
		}
	case *rsa.PrivateKey:
		digest, of, err := how.digest(one.Plaintext)
		if err != nil {
			return out, err
		}
		switch how.RSA {
		case "", "pss":
			o, err := how.pss(of)
			if err != nil {
				return out, err
			}
			if signature, err = rsa.SignPSS(rand.Reader, k, of, digest, o); err != nil {
				return out, ErrInvalid.With("This cannot be signed so: %v.", err)
			}
		case "pkcs1v15":
			if signature, err = rsa.SignPKCS1v15(rand.Reader, k, of, digest); err != nil {
				return out, ErrInvalid.With("This cannot be signed so: %v.", err)
			}
		default:
			return out, ErrInvalid.With("RSA signs by pss or pkcs1v15, not by %q.", how.RSA).At("signature_algorithm")
		}
	}
	out.Text = prefix(o.n) + base64.StdEncoding.EncodeToString(signature)
	return out, nil
}

// edwards is the Ed25519 key of a context, where the key is derived.
func (r *ring) edwards(o *opened, context []byte) (ed25519.PrivateKey, error) {
	if !r.Derived {
		return o.private.(ed25519.PrivateKey), nil
	}
	if len(context) == 0 {
		return nil, ErrInvalid.With("The key is derived, and needs a context.").At("context")
	}
	seed, err := o.derive(context, ed25519.SeedSize)
	if err != nil {
		return nil, err
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

// A pair is a signature of ECDSA.
type pair struct{ R, S *big.Int }

// jws is a signature as JSON Web Signature has it (RFC 7518, section 3.4).
func jws(der []byte, size int) ([]byte, error) {
	var p pair
	if _, err := asn1.Unmarshal(der, &p); err != nil {
		return nil, err
	}
	out := make([]byte, 2*size)
	p.R.FillBytes(out[:size])
	p.S.FillBytes(out[size:])
	return out, nil
}

// Verify says of each item whether its signature or MAC holds. What cannot be read
// holds not, and is no mistake.
func (t *Transit) Verify(ctx context.Context, c estover.Caller, mount, name string, how How, items []Item, mac bool) ([]Result, error) {
	return t.reads(ctx, c, "transit.verify", mount, name, len(items), func(r *ring) ([]Result, error) {
		if !mac && !r.Type.Signs() {
			return nil, ErrCannot.With("A key of the type %s does not sign.", r.Type)
		}
		return each(items, func(one Item) (Result, error) {
			if mac {
				return r.verifyMAC(how, one)
			}
			return r.verify(how, one)
		}), nil
	})
}

func (r *ring) verify(how How, one Item) (Result, error) {
	o, body, err := r.forOld(one.Ciphertext)
	if err != nil {
		return Result{}, err
	}
	out := Result{Version: o.n}
	encoding := base64.StdEncoding
	if how.Encoding == "jws" {
		encoding = base64.RawURLEncoding
	}
	signature, err := encoding.DecodeString(body)
	if err != nil {
		return out, ErrInvalid.With("What follows the version is not base64.").At("signature")
	}
	switch k := o.private.(type) {
	case ed25519.PrivateKey:
		if k, err = r.edwards(o, one.Context); err != nil {
			return out, err
		}
		out.Valid = ed25519.Verify(k.Public().(ed25519.PublicKey), one.Plaintext, signature)
	case *ecdsa.PrivateKey:
		digest, _, err := how.digest(one.Plaintext)
		if err != nil {
			return out, err
		}
		if how.Encoding != "jws" {
			out.Valid = ecdsa.VerifyASN1(&k.PublicKey, digest, signature)
			return out, nil
		}
		size := (k.Params().BitSize + 7) / 8
		if len(signature) != 2*size {
			return out, nil
		}
		der, err := asn1.Marshal(pair{new(big.Int).SetBytes(signature[:size]), new(big.Int).SetBytes(signature[size:])})
		out.Valid = err == nil && ecdsa.VerifyASN1(&k.PublicKey, digest, der)
	case *rsa.PrivateKey:
		digest, of, err := how.digest(one.Plaintext)
		if err != nil {
			return out, err
		}
		switch how.RSA {
		case "", "pss":
			options, err := how.pss(of)
			if err != nil {
				return out, err
			}
			out.Valid = rsa.VerifyPSS(&k.PublicKey, of, digest, signature, options) == nil
		case "pkcs1v15":
			out.Valid = rsa.VerifyPKCS1v15(&k.PublicKey, of, digest, signature) == nil
		default:
			return out, ErrInvalid.With("RSA signs by pss or pkcs1v15, not by %q.", how.RSA).At("signature_algorithm")
		}
	}
	return out, nil
}

// HMAC makes MACs. A key of any type does.
func (t *Transit) HMAC(ctx context.Context, c estover.Caller, mount, name string, how How, items []Item) ([]Result, error) {
	return t.reads(ctx, c, "transit.hmac", mount, name, len(items), func(r *ring) ([]Result, error) {
		return each(items, func(one Item) (Result, error) {
			o, err := r.forNew(one.Version)
			if err != nil {
				return Result{}, err
			}
			sum, err := o.hmac(how, one.Plaintext)
			return Result{Text: prefix(o.n) + base64.StdEncoding.EncodeToString(sum), Version: o.n}, err
		}), nil
	})
}

func (o *opened) hmac(how How, input []byte) ([]byte, error) {
	name := how.Hash
	if name == "" {
		name = "sha2-256"
	}
	of, ok := hashes[name]
	if !ok || unapproved(name) {
		return nil, ErrInvalid.With("There is no hash %q.", name).At("algorithm")
	}
	m := hmac.New(of.new, o.mac)
	m.Write(input)
	return m.Sum(nil), nil
}

func (r *ring) verifyMAC(how How, one Item) (Result, error) {
	o, body, err := r.forOld(one.Ciphertext)
	if err != nil {
		return Result{}, err
	}
	sum, err := base64.StdEncoding.DecodeString(body)
	if err != nil {
		return Result{}, ErrInvalid.With("What follows the version is not base64.").At("hmac")
	}
	want, err := o.hmac(how, one.Plaintext)
	return Result{Version: o.n, Valid: err == nil && hmac.Equal(sum, want)}, err
}

// The parts of a key that can be shown.
const (
	EncryptionKey = "encryption-key"
	SigningKey    = "signing-key"
	HMACKey       = "hmac-key"
	PublicKey     = "public-key"
)

// Export shows the secrets of a key that is exportable, by version: of all that may
// be used, or of one, or of the newest if version is -1.
func (t *Transit) Export(ctx context.Context, c estover.Caller, mount, name, part string, version int64) (map[int64]estover.Secret, error) {
	shown := map[int64]estover.Secret{}
	_, err := t.records(ctx, c, "transit.export", mount, name, 1, func(r *ring) ([]Result, error) {
		switch {
		case part != PublicKey && !r.Exportable:
			return nil, ErrNotAllowed.With("The key is not exportable.")
		case part == EncryptionKey && !r.Type.Encrypts(), (part == SigningKey || part == PublicKey) && !r.Type.Signs():
			return nil, ErrCannot.With("A key of the type %s has no %s.", r.Type, part)
		case part != EncryptionKey && part != SigningKey && part != HMACKey && part != PublicKey:
			return nil, ErrInvalid.With("What is shown of a key is encryption-key, signing-key, hmac-key or public-key.").At("type")
		}
		if version == -1 {
			version = r.Latest
		}
		for n, o := range r.versions {
			if n < r.MinDecryption || version != 0 && n != version {
				continue
			}
			s, err := r.reveal(o, part)
			if err != nil {
				return nil, err
			}
			shown[n] = s
		}
		if version != 0 && len(shown) == 0 {
			return nil, ErrVersion
		}
		return []Result{{Version: version}}, nil
	})
	if err != nil {
		return nil, err
	}
	return shown, nil
}

func (r *ring) reveal(o *opened, part string) (estover.Secret, error) {
	text := func(b []byte) estover.Secret {
		return estover.NewSecret([]byte(base64.StdEncoding.EncodeToString(b)))
	}
	if part == HMACKey {
		return text(o.mac), nil
	}
	if part == PublicKey {
		for i := range r.Versions {
			if r.Versions[i].N == o.n {
				if k, ok := o.private.(ed25519.PrivateKey); ok {
					return text(k.Public().(ed25519.PublicKey)), nil
				}
				return estover.NewSecret(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: r.Versions[i].public})), nil
			}
		}
	}
	switch k := o.private.(type) {
	case nil:
		return text(o.key), nil
	case ed25519.PrivateKey:
		return text(k), nil
	case *rsa.PrivateKey:
		return estover.NewSecret(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(k)})), nil
	case *ecdsa.PrivateKey:
		der, err := x509.MarshalECPrivateKey(k)
		return estover.NewSecret(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})), err
	}
	return estover.Secret{}, ErrCannot
}

// wrappingName is that of the key for which others wrap theirs. No key that one
// names is called so.
const wrappingName = ""

// WrappingKey is the public key, in PEM, for which one wraps a key to be imported.
// It is made when it is first asked for.
func (t *Transit) WrappingKey(ctx context.Context, c estover.Caller, mount string) (string, error) {
	if err := t.guard.Read(ctx, c, guard.Op{Action: "transit.read", Target: target("wrapping")}, func(*db.Tx) error { return nil }); err != nil {
		return "", err
	}
	r, err := t.wrapping(ctx, c.Tenant, mount)
	if err != nil {
		return "", err
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: r.Versions[0].public})), nil
}

func (t *Transit) wrapping(ctx context.Context, tenant estover.TenantID, mount string) (*ring, error) {
	system := estover.Caller{Tenant: tenant, Subject: estover.System("transit")}
	r, err := t.ring(ctx, system, mount, wrappingName)
	if estover.KindOf(err) != estover.NotFound {
		return r, err
	}
	spec := Spec{MinDecryption: 1}
	m, err := t.fresh(RSA4096, spec)
	if _, err = t.create(ctx, system, mount, wrappingName, RSA4096, spec, m, err); err != nil && !errors.Is(err, ErrExists) {
		return nil, err
	}
	return t.ring(ctx, system, mount, wrappingName)
}

// Import takes a key over that was wrapped for [Transit.WrappingKey]: an AES key of
// 256 bits under RSA-OAEP, then the key under that by AES-KWP (RFC 5649). What is
// wrapped is the bytes of a symmetric key, or PKCS #8. With more, it is the next
// version of a key that is there.
func (t *Transit) Import(ctx context.Context, c estover.Caller, mount, name string, typ Type, spec Spec, wrapped []byte, hashName string, more bool) (Key, error) {
	op := guard.Op{Action: "transit.import", Target: target(name), Detail: map[string]any{"mount": mount, "name": name}}
	if !more {
		op = creation(mount, name, typ, spec)
	}
	if err := t.permitted(ctx, c, op); err != nil {
		return Key{}, err
	}
	m, err := t.unwrapped(ctx, c, mount, typ, wrapped, hashName)
	if more {
		return t.change(ctx, c, op, mount, name, func(k *Key) (*material, error) {
			switch {
			case err != nil:
				return nil, err
			case !k.Imported:
				return nil, ErrNotAllowed.With("The key was made here. Rotate it.")
			case len(k.Versions) >= maxVersions:
				return nil, ErrTooMany.With("The key has %d versions. Trim those that nobody needs.", len(k.Versions))
			}
			return m, m.fits(k.Type, &k.Spec)
		})
	}
	if err == nil {
		err = m.fits(typ, &spec)
	}
	spec.MinDecryption, spec.MinEncryption, spec.Available, spec.Imported = 1, 0, 0, true
	return t.create(ctx, c, mount, name, typ, spec, m, err)
}

// unwrapped opens what was wrapped, for whoever may have a key imported.
func (t *Transit) unwrapped(ctx context.Context, c estover.Caller, mount string, typ Type, wrapped []byte, hashName string) (*material, error) {
	of, ok := hashes[map[string]string{"": "sha2-256", "SHA1": "sha1", "SHA224": "sha2-224", "SHA256": "sha2-256", "SHA384": "sha2-384", "SHA512": "sha2-512"}[hashName]]
	const size = 4096 / 8
	if !ok || len(wrapped) <= size || len(wrapped) > 64<<10 {
		return nil, ErrInvalid.With("A key to be imported is wrapped: RSA-OAEP under the wrapping key, then AES-KWP.").At("ciphertext")
	}
	r, err := t.wrapping(ctx, c.Tenant, mount)
	if err != nil {
		return nil, err
	}
	kek, err := rsa.DecryptOAEP(of.new(), nil, r.versions[1].private.(*rsa.PrivateKey), wrapped[:size], nil)
	if err != nil {
		return nil, ErrInvalid.With("The wrapped key does not open: it was wrapped for another wrapping key, or with another hash.").At("ciphertext")
	}
	defer clear(kek)
	key, err := unwrap(kek, wrapped[size:])
	if err != nil {
		return nil, err
	}
	return &material{key: key, mac: random(32)}, nil
}

// fits makes sure that a key is of a type, and brings it into the form in which it
// is kept.
func (m *material) fits(typ Type, spec *Spec) error {
	switch {
	case typ == HMAC:
		spec.KeySize = len(m.key)
	case typ.Symmetric():
		if len(m.key) != typ.size() {
			return ErrInvalid.With("A key of the type %s has %d bytes.", typ, typ.size()).At("ciphertext")
		}
	default:
		if _, err := privateOf(typ, m.key); err != nil {
			return err
		}
	}
	return nil
}

// Random gives so many random bytes.
func Random(n int) ([]byte, error) {
	if n < 1 || n > 128<<10 {
		return nil, ErrInvalid.With("At least one random byte is given, and at most %d.", 128<<10).At("bytes")
	}
	return random(n), nil
}
