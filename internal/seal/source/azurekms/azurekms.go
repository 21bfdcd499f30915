// Package azurekms has the root key wrapped by an RSA key of an Azure Key Vault,
// whose private half never leaves it.
package azurekms

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"

	"estover.dev/internal/seal"
	"estover.dev/internal/seal/source/remote"
)

const service = "The Key Vault"

// A Source is a key of a Key Vault.
type Source struct {
	Vault   string // https://NAME.vault.azure.net
	Name    string // of the key
	Version string // that wraps; empty for the newest
	Token   string // the file with an access token; empty for the machine's own identity
	client  *http.Client
	machine remote.Machine
}

func isKey(name string) bool { return remote.Named(name, 127, "-") }

func isVersion(v string) bool { return remote.Named(v, 64, "") }

// New reads what stands behind "azurekms:": https://VAULT/keys/NAME or
// https://VAULT/keys/NAME/VERSION, and the options token, ca and metadata.
func New(at string, q url.Values) (s Source, err error) {
	u, err := remote.CheckAddress(service, at)
	if err != nil {
		return s, err
	}
	parts := strings.Split(strings.Trim(u.Path, "/"), "/")
	if u.Scheme != "https" || len(parts) < 2 || len(parts) > 3 || parts[0] != "keys" || !isKey(parts[1]) || len(parts) == 3 && !isVersion(parts[2]) {
		return s, fmt.Errorf("a key of a Key Vault is named by its identifier, as azurekms:https://NAME.vault.azure.net/keys/KEY")
	}
	s = Source{Vault: "https://" + u.Host, Name: parts[1], Token: q.Get("token")}
	if len(parts) == 3 {
		s.Version = parts[2]
	}
	if s.machine, err = remote.NewMachine("http://169.254.169.254", q.Get("metadata")); err != nil {
		return s, err
	}
	s.client, err = remote.Client(q.Get("ca"))
	return s, err
}

// Kind is "azurekms".
func (Source) Kind() string { return "azurekms" }

// Root has the key unwrapped, or a fresh one wrapped. What is kept names the key and
// the version that wrapped it, since no other opens it.
func (s Source) Root(ctx context.Context, params string, first bool) (key []byte, keep string, err error) {
	ctx, cancel := context.WithTimeout(ctx, remote.Time)
	defer cancel()
	algorithm := azkeys.EncryptionAlgorithmRSAOAEP256
	if first {
		c, err := s.connect(ctx)
		if err != nil {
			return nil, "", err
		}
		key = remote.NewKey()
		out, err := c.WrapKey(ctx, s.Name, s.Version, azkeys.KeyOperationParameters{Algorithm: &algorithm, Value: key}, nil)
		if err != nil {
			return nil, "", s.failed(err)
		}
		if out.KID == nil || !isVersion(out.KID.Version()) || len(out.Result) == 0 {
			return nil, "", seal.ErrRootMissing.With("%s at %s does not say with which version of the key %s it has wrapped.", service, s.Vault, s.Name)
		}
		return remote.Kept(ctx, s, key, s.Name+"/"+out.KID.Version()+" "+base64.StdEncoding.EncodeToString(out.Result))
	}
	by, text, _ := strings.Cut(params, " ")
	name, by, _ := strings.Cut(by, "/")
	wrapped, err := base64.StdEncoding.DecodeString(text)
	switch {
	case err != nil || len(wrapped) == 0 || !isVersion(by):
		return nil, "", seal.ErrRoot.With("What is kept of the root key is nothing that a Key Vault has wrapped.")
	case name != s.Name:
		return nil, "", seal.ErrRoot.With("The root key of this database was wrapped by a key of another name than %s. Name the one that did.", s.Name)
	}
	c, err := s.connect(ctx)
	if err != nil {
		return nil, "", err
	}
	out, err := c.UnwrapKey(ctx, s.Name, by, azkeys.KeyOperationParameters{Algorithm: &algorithm, Value: wrapped}, nil)
	if err != nil {
		return nil, "", s.failed(err)
	}
	if len(out.Result) != remote.Len {
		return nil, "", seal.ErrRoot.With("What the key %s of the Key Vault at %s has unwrapped is not a root key.", s.Name, s.Vault)
	}
	return out.Result, "", nil
}

func (s Source) connect(ctx context.Context) (*azkeys.Client, error) {
	token, err := s.token(ctx)
	if err != nil {
		return nil, err
	}
	o := &azkeys.ClientOptions{DisableChallengeResourceVerification: true} // the token is for vaults alone, and goes to no other host
	o.Transport, o.Retry.MaxRetries, o.Telemetry.Disabled = s.client, -1, true
	return azkeys.NewClient(s.Vault, login(token), o)
}

// A login is a token that there is already.
type login string

func (l login) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	return azcore.AccessToken{Token: string(l), ExpiresOn: time.Now().Add(time.Hour)}, nil
}

// failed says what to do about an error of the vault.
func (s Source) failed(err error) error {
	var said *azcore.ResponseError
	if !errors.As(err, &said) {
		return remote.Unreachable(service, s.Vault, err)
	}
	if said.StatusCode == http.StatusBadRequest {
		return seal.ErrRoot.With("The key %s of the Key Vault at %s has not wrapped the root key of this database (%s), or is no RSA key. Name the one that did.", s.Name, s.Vault, remote.Said(said.ErrorCode))
	}
	return seal.ErrRootMissing.With("%s at %s refuses: %d %s. The key %s and the version that wrapped must be there and enabled, and whoever this server is there must be allowed to wrap and unwrap with it.",
		service, s.Vault, said.StatusCode, remote.Said(said.ErrorCode), s.Name)
}

// token is what the file holds, or that of the machine's own identity.
func (s Source) token(ctx context.Context) (string, error) {
	if s.Token != "" {
		return remote.Token(s.Token)
	}
	b, err := s.machine.Ask(ctx, http.MethodGet, "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https%3A%2F%2Fvault.azure.net", http.Header{"Metadata": {"true"}})
	if err != nil {
		return "", err
	}
	return remote.AccessToken(b)
}
