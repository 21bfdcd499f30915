package source

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"estover.dev/internal/seal"
)

// A Device is a source that agrees on the root key with a P-256 key in a device
// that speaks PKCS #11, as a hardware security module or a smart card. The
// device's key never leaves it: the root key is made of a Diffie–Hellman of that
// key and one that existed for a moment when the root key was made (as ECIES
// does), of which the public half is kept.
//
// The device's own library is C, so it is the command pkcs11-tool of OpenSC that
// loads it, in a process of its own, and only at the start.
type Device struct {
	Module string // the device's library
	Token  string // the label of the token
	ID     []byte // of the key
	PIN    string // the file with the PIN
	Tool   string // the command, pkcs11-tool
}

// deviceTime bounds one run of the command.
const deviceTime = 30 * time.Second

// newDevice reads a PKCS #11 URI (RFC 7512) without its scheme.
func newDevice(rest string) (Device, error) {
	d := Device{Tool: "pkcs11-tool"}
	path, query, _ := strings.Cut(rest, "?")
	wrong := func(what string) (Device, error) {
		return d, fmt.Errorf("the root key source pkcs11:%s %s; it is pkcs11:token=LABEL;id=%%01?module-path=FILE&pin-source=FILE", rest, what)
	}
	for part := range strings.SplitSeq(path, ";") {
		name, value, _ := strings.Cut(part, "=")
		value, err := url.PathUnescape(value)
		if err != nil {
			return wrong("cannot be read")
		}
		switch name {
		case "token":
			d.Token = value
		case "id":
			d.ID = []byte(value)
		default:
			return wrong(fmt.Sprintf("has an attribute %q", name))
		}
	}
	for part := range strings.SplitSeq(query, "&") {
		name, value, _ := strings.Cut(part, "=")
		value, err := url.PathUnescape(value)
		if err != nil {
			return wrong("cannot be read")
		}
		switch name {
		case "module-path":
			d.Module = value
		case "pin-source":
			d.PIN = strings.TrimPrefix(value, "file:")
		default:
			return wrong(fmt.Sprintf("has an attribute %q", name))
		}
	}
	if d.Module == "" || d.Token == "" || len(d.ID) == 0 || d.PIN == "" {
		return wrong("lacks an attribute")
	}
	return d, nil
}

// Kind is "pkcs11".
func (Device) Kind() string { return "pkcs11" }

// Root has the device agree on the key with a public key that is kept.
func (d Device) Root(ctx context.Context, params string, first bool) (key []byte, keep string, err error) {
	var kept struct {
		Public []byte `json:"public"`
	}
	if first {
		holder, err := d.public(ctx)
		if err != nil {
			return nil, "", err
		}
		moment, err := ecdh.P256().GenerateKey(rand.Reader)
		if err != nil {
			return nil, "", err
		}
		shared, err := moment.ECDH(holder)
		if err != nil {
			return nil, "", seal.ErrRoot.With("The key %x of the device is not one on P-256: %v", d.ID, err)
		}
		kept.Public = moment.PublicKey().Bytes()
		// What is made here must be what the device makes of it later.
		again, err := d.derive(ctx, moment.PublicKey())
		if err != nil {
			return nil, "", err
		}
		if !bytes.Equal(shared, again) {
			return nil, "", seal.ErrRoot.With("The device does not agree on the same secret twice, so its key cannot hold the root key.")
		}
		clear(again)
		b, err := json.Marshal(kept)
		if err != nil {
			return nil, "", err
		}
		key, err = agreed(shared, kept.Public)
		return key, string(b), err
	}
	if err := json.Unmarshal([]byte(params), &kept); err != nil {
		return nil, "", fmt.Errorf("reading what was agreed with the device: %w", err)
	}
	moment, err := ecdh.P256().NewPublicKey(kept.Public)
	if err != nil {
		return nil, "", fmt.Errorf("reading what was agreed with the device: %w", err)
	}
	shared, err := d.derive(ctx, moment)
	if err != nil {
		return nil, "", err
	}
	key, err = agreed(shared, kept.Public)
	return key, "", err
}

// agreed makes a root key of a shared secret.
func agreed(shared, public []byte) ([]byte, error) {
	defer clear(shared)
	return hkdf.Key(sha256.New, shared, public, "estover root pkcs11", 32)
}

// public reads the device's public key.
func (d Device) public(ctx context.Context) (*ecdh.PublicKey, error) {
	der, err := d.run(ctx, nil, "--read-object", "--type", "pubkey")
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, seal.ErrRoot.With("The public key %x of the device cannot be read: %v", d.ID, err)
	}
	e, ok := parsed.(interface {
		ECDH() (*ecdh.PublicKey, error)
	})
	if !ok {
		return nil, seal.ErrRoot.With("The key %x of the device is not an elliptic-curve key. Make one on P-256: pkcs11-tool --keypairgen --key-type EC:prime256v1 --usage-derive", d.ID)
	}
	return e.ECDH()
}

// derive has the device do its half of the Diffie–Hellman.
func (d Device) derive(ctx context.Context, with *ecdh.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(with)
	if err != nil {
		return nil, err
	}
	secret, err := d.run(ctx, der, "--derive", "--mechanism", "ECDH1-DERIVE")
	if err == nil && len(secret) != 32 {
		return nil, seal.ErrRoot.With("The device agrees on %d bytes and not on 32, so its key is not one on P-256.", len(secret))
	}
	return secret, err
}

// run has the command do one thing, and gives what it wrote. Values pass by
// files of a directory of our own, in memory where the system has that; the PIN
// passes by the environment.
func (d Device) run(ctx context.Context, in []byte, args ...string) ([]byte, error) {
	pin, err := os.ReadFile(d.PIN)
	if err != nil {
		return nil, seal.ErrRootMissing.With("The PIN of the device cannot be read: %v", err)
	}
	dir, err := os.MkdirTemp(shm(), "estover-device-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	out := filepath.Join(dir, "out")
	args = append(args, "--module", d.Module, "--token-label", d.Token, "--id", hex.EncodeToString(d.ID), "--login", "--pin", "env:ESTOVER_DEVICE_PIN", "--output-file", out)
	if in != nil {
		if err := os.WriteFile(filepath.Join(dir, "in"), in, 0o600); err != nil {
			return nil, err
		}
		args = append(args, "--input-file", filepath.Join(dir, "in"))
	}
	ctx, cancel := context.WithTimeout(ctx, deviceTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, d.Tool, args...)
	cmd.Env = append(os.Environ(), "ESTOVER_DEVICE_PIN="+strings.TrimSpace(string(pin)))
	said, err := cmd.CombinedOutput()
	if err != nil {
		last := strings.TrimSpace(string(said))
		if i := strings.LastIndexByte(last, '\n'); i >= 0 {
			last = last[i+1:]
		}
		if len(last) > 200 {
			last = last[:200]
		}
		return nil, seal.ErrRootMissing.With("The device cannot be asked for its part of the root key: %v: %s. The command pkcs11-tool (package opensc), the module, the labels and the PIN must fit.", err, last)
	}
	return os.ReadFile(out)
}

// shm is a directory in memory, if there is one.
func shm() string {
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		return "/dev/shm"
	}
	return ""
}
