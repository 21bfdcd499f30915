package source

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"estover.dev/internal/seal"
)

// A TPM is a source that keeps the root key sealed by a TPM 2.0 of this
// machine. The TPM gives it out only while its platform configuration registers
// are what they were when the key was made: register 7 by default, which says
// which keys the firmware trusts to sign what it starts, and whether it checks.
// The database alone, on another machine, opens nothing.
//
// A machine can die, and its firmware can change, so there should be a second
// source, apart from the machine.
type TPM struct {
	// Device is where the TPM is: a device, or the socket of a simulator.
	Device string
	PCRs   []uint
}

// pcrs reads "7" or "0,7".
func pcrs(s string) (list []uint, err error) {
	for one := range strings.SplitSeq(s, ",") {
		n, err := strconv.ParseUint(one, 10, 8)
		if err != nil || n > 23 {
			return nil, fmt.Errorf("%q is not a platform configuration register: they are numbered from 0 to 23, as in 0,7", one)
		}
		list = append(list, uint(n))
	}
	return list, nil
}

// A tpmBlob is a key as the TPM has sealed it.
type tpmBlob struct {
	Public  []byte `json:"public"`
	Private []byte `json:"private"`
	PCRs    []uint `json:"pcrs"`
}

// Kind is "tpm2".
func (TPM) Kind() string { return "tpm2" }

// Root has the TPM unseal the key, or seal a fresh one.
func (t TPM) Root(_ context.Context, params string, first bool) (key []byte, keep string, err error) {
	device, err := t.open()
	if err != nil {
		return nil, "", seal.ErrRootMissing.With("The TPM at %s cannot be opened: %v. Is it there, and may this program use it?", t.Device, err)
	}
	defer func() { err = errors.Join(err, device.Close()) }()
	storage, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(device)
	if err != nil {
		return nil, "", fmt.Errorf("asking the TPM for its storage key: %w", err)
	}
	defer func() { _, _ = tpm2.FlushContext{FlushHandle: storage.ObjectHandle}.Execute(device) }()
	parent, err := storage.OutPublic.Contents()
	if err != nil {
		return nil, "", fmt.Errorf("reading the TPM's storage key: %w", err)
	}
	// What passes between the TPM and this program is encrypted, so that nobody
	// on the wires between them sees the key.
	on := tpm2.AuthHandle{
		Handle: storage.ObjectHandle, Name: storage.Name,
		Auth: tpm2.HMAC(tpm2.TPMAlgSHA256, 16, tpm2.AESEncryption(128, tpm2.EncryptInOut), tpm2.Salted(storage.ObjectHandle, *parent)),
	}
	if first {
		key = make([]byte, 32)
		_, _ = rand.Read(key)
		keep, err = t.seal(device, on, key)
		return key, keep, err
	}
	var blob tpmBlob
	if err := json.Unmarshal([]byte(params), &blob); err != nil {
		return nil, "", fmt.Errorf("reading what the TPM has sealed: %w", err)
	}
	key, err = unseal(device, on, parent, blob)
	switch {
	case errors.Is(err, tpm2.TPMRCPolicyFail):
		return nil, "", seal.ErrRoot.With("The TPM keeps the root key back, because the platform's registers %v are not what they were when the key was sealed: the firmware, its keys or Secure Boot have changed. Start with another root key, remove this one with 'estover root-key remove' and add it again.", blob.PCRs)
	case errors.Is(err, tpm2.TPMRCIntegrity):
		return nil, "", seal.ErrRoot.With("Another TPM has sealed the root key. Start on the machine where it was made, or with another root key.")
	}
	return key, "", err
}

func (t TPM) open() (transport.TPMCloser, error) {
	info, err := os.Stat(t.Device)
	if err != nil {
		return nil, err
	}
	if info.Mode()&os.ModeSocket != 0 {
		return linuxudstpm.Open(t.Device)
	}
	return linuxtpm.Open(t.Device)
}

// selected names registers of the SHA-256 bank.
func selected(pcrs []uint) tpm2.TPMLPCRSelection {
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(pcrs...)}}}
}

// seal has the TPM encrypt a key so that it opens while the registers stay.
func (t TPM) seal(device transport.TPM, on tpm2.AuthHandle, key []byte) (string, error) {
	trial, done, err := tpm2.PolicySession(device, tpm2.TPMAlgSHA256, 16, tpm2.Trial())
	if err != nil {
		return "", fmt.Errorf("asking the TPM for a policy: %w", err)
	}
	defer func() { _ = done() }()
	if _, err := (tpm2.PolicyPCR{PolicySession: trial.Handle(), Pcrs: selected(t.PCRs)}).Execute(device); err != nil {
		return "", fmt.Errorf("reading the registers of the TPM: %w", err)
	}
	policy, err := tpm2.PolicyGetDigest{PolicySession: trial.Handle()}.Execute(device)
	if err != nil {
		return "", fmt.Errorf("asking the TPM for a policy: %w", err)
	}
	made, err := tpm2.Create{
		ParentHandle: on,
		InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
			Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: key}),
		}},
		InPublic: tpm2.New2B(tpm2.TPMTPublic{
			Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256, AuthPolicy: policy.PolicyDigest,
			ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, NoDA: true},
		}),
	}.Execute(device)
	if err != nil {
		return "", fmt.Errorf("having the TPM seal the root key: %w", err)
	}
	b, err := json.Marshal(tpmBlob{Public: tpm2.Marshal(made.OutPublic), Private: tpm2.Marshal(made.OutPrivate), PCRs: t.PCRs})
	return string(b), err
}

func unseal(device transport.TPM, on tpm2.AuthHandle, parent *tpm2.TPMTPublic, blob tpmBlob) ([]byte, error) {
	public, err := tpm2.Unmarshal[tpm2.TPM2BPublic](blob.Public)
	if err != nil {
		return nil, fmt.Errorf("reading what the TPM has sealed: %w", err)
	}
	private, err := tpm2.Unmarshal[tpm2.TPM2BPrivate](blob.Private)
	if err != nil {
		return nil, fmt.Errorf("reading what the TPM has sealed: %w", err)
	}
	item, err := tpm2.Load{ParentHandle: on, InPublic: *public, InPrivate: *private}.Execute(device)
	if err != nil {
		return nil, fmt.Errorf("handing the TPM what it has sealed: %w", err)
	}
	defer func() { _, _ = tpm2.FlushContext{FlushHandle: item.ObjectHandle}.Execute(device) }()
	opened, err := tpm2.Unseal{ItemHandle: tpm2.AuthHandle{
		Handle: item.ObjectHandle, Name: item.Name,
		Auth: tpm2.Policy(tpm2.TPMAlgSHA256, 16, func(device transport.TPM, session tpm2.TPMISHPolicy, _ tpm2.TPM2BNonce) error {
			_, err := tpm2.PolicyPCR{PolicySession: session, Pcrs: selected(blob.PCRs)}.Execute(device)
			return err
		}, tpm2.AESEncryption(128, tpm2.EncryptOut), tpm2.Salted(on.Handle, *parent)),
	}}.Execute(device)
	if err != nil {
		return nil, fmt.Errorf("having the TPM unseal the root key: %w", err)
	}
	return opened.OutData.Buffer, nil
}
