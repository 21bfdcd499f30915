// Package source knows where root keys come from when they are no file of the
// machine's own: a TPM, the key store of another server, a device, people who
// each have a share. What it gives is a [seal.Source], which is asked when a
// database is opened and never again.
package source

import (
	"cmp"
	"fmt"
	"net/url"
	"strings"

	"estover.dev/internal/seal"
	"estover.dev/internal/seal/source/awskms"
	"estover.dev/internal/seal/source/azurekms"
	"estover.dev/internal/seal/source/cloudkms"
)

// Help lists the sources for who starts a server.
const Help = "file:PATH, passphrase:file:PATH, passphrase:env:NAME, systemd-creds:NAME, env:NAME, tpm2:, vault-transit:URL, awskms:KEY, azurekms:URL, cloudkms:NAME, pkcs11:…, shamir:"

// Parse reads a source from its URI: those of [seal.ParseSource], and
//
//	tpm2:[DEVICE][?pcrs=0,7]     sealed by the TPM of this machine; /dev/tpmrm0 and register 7 if not said
//	vault-transit:URL?key=NAME&token=FILE[&mount=transit][&namespace=NAME][&ca=FILE]
//	                             encrypted by a transit engine: of OpenBao, Vault or another Estover
//	awskms:KEY?[region=REGION][&credentials=FILE][&endpoint=URL][&ca=FILE]
//	                             encrypted by a key of AWS KMS
//	azurekms:https://VAULT/keys/NAME[/VERSION][?token=FILE][&ca=FILE]
//	                             wrapped by a key of an Azure Key Vault
//	cloudkms:projects/…/cryptoKeys/NAME[?token=FILE][&endpoint=URL][&ca=FILE]
//	                             encrypted by a key of Google Cloud KMS
//	pkcs11:token=…;id=…?module-path=…&pin-source=…
//	                             agreed with a P-256 key that stays in a device (RFC 7512)
//	shamir:                      put together from shares of people; shares is where they come from
//
// database is the URL of the database that the key will protect.
func Parse(uri, database string, shares *Shares) (seal.Source, error) {
	scheme, rest, _ := strings.Cut(uri, ":")
	at, query, _ := strings.Cut(rest, "?")
	q, err := url.ParseQuery(query)
	if err != nil {
		return nil, fmt.Errorf("the root key source %q has options that cannot be read: %w", uri, err)
	}
	switch scheme {
	case "tpm2":
		if err := only(uri, q, "pcrs"); err != nil {
			return nil, err
		}
		list, err := pcrs(cmp.Or(q.Get("pcrs"), "7"))
		if err != nil {
			return nil, fmt.Errorf("the root key source %q: %w", uri, err)
		}
		return TPM{Device: cmp.Or(at, "/dev/tpmrm0"), PCRs: list}, nil
	case "vault-transit":
		if err := only(uri, q, "key", "token", "mount", "namespace", "ca"); err != nil {
			return nil, err
		}
		return newTransit(at, q)
	case "awskms":
		if err := only(uri, q, "region", "credentials", "endpoint", "ca", "metadata"); err != nil {
			return nil, err
		}
		return awskms.New(at, q)
	case "azurekms":
		if err := only(uri, q, "token", "ca", "metadata"); err != nil {
			return nil, err
		}
		return azurekms.New(at, q)
	case "cloudkms":
		if err := only(uri, q, "token", "endpoint", "ca", "metadata"); err != nil {
			return nil, err
		}
		return cloudkms.New(at, q)
	case "pkcs11":
		return newDevice(rest)
	case "shamir":
		if rest != "" {
			return nil, fmt.Errorf("the root key source %q is shamir: and no more; the shares say how many are needed", uri)
		}
		return Together{Shares: shares}, nil
	}
	return seal.ParseSource(uri, database)
}

// only refuses options that are not known.
func only(uri string, q url.Values, names ...string) error {
	for name, values := range q {
		known := false
		for _, n := range names {
			known = known || n == name
		}
		if !known || len(values) != 1 {
			return fmt.Errorf("the root key source %q has an option %q; there are %s, each once", uri, name, strings.Join(names, ", "))
		}
	}
	return nil
}
