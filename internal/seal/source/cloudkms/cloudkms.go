// Package cloudkms has the root key wrapped by a symmetric key of Google Cloud KMS,
// which never leaves it, by its REST interface.
package cloudkms

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"estover.dev/internal/seal"
	"estover.dev/internal/seal/source/remote"
)

const service = "The key service of Google"

// A Source is a key of Cloud KMS.
type Source struct {
	Key     string // projects/P/locations/L/keyRings/R/cryptoKeys/K
	Token   string // the file with an access token; empty for the machine's own
	base    string
	client  *http.Client
	machine remote.Machine
}

// isKey reports whether this is a name of a key, as Google writes it.
func isKey(name string) bool {
	parts := strings.Split(name, "/")
	if len(parts) != 8 {
		return false
	}
	for i, folder := range []string{"projects", "locations", "keyRings", "cryptoKeys"} {
		if parts[2*i] != folder || !remote.Named(parts[2*i+1], 100, []string{":.-", "-", "_-", "_-"}[i]) || strings.Trim(parts[2*i+1], ".") == "" {
			return false
		}
	}
	return true
}

// New reads what stands behind "cloudkms:": the key's name, and the options token,
// endpoint, ca and metadata.
func New(key string, q url.Values) (s Source, err error) {
	s = Source{Key: key, Token: q.Get("token"), base: strings.TrimRight(cmp.Or(q.Get("endpoint"), "https://cloudkms.googleapis.com"), "/")}
	if !isKey(key) {
		return s, fmt.Errorf("a key of Cloud KMS is named as cloudkms:projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY")
	}
	if _, err := remote.CheckAddress(service, s.base); err != nil {
		return s, err
	}
	if s.machine, err = remote.NewMachine("http://169.254.169.254", q.Get("metadata")); err != nil {
		return s, err
	}
	s.client, err = remote.Client(q.Get("ca"))
	return s, err
}

// Kind is "cloudkms".
func (Source) Kind() string { return "cloudkms" }

// bound is what a wrapped key is bound to.
const bound = "estover root key"

// Root has the key unwrapped, or a fresh one wrapped.
func (s Source) Root(ctx context.Context, params string, first bool) (key []byte, keep string, err error) {
	ctx, cancel := context.WithTimeout(ctx, remote.Time)
	defer cancel()
	if first {
		key = remote.NewKey()
		wrapped, err := s.call(ctx, "encrypt", "plaintext", key, "ciphertext")
		if err != nil {
			return nil, "", err
		}
		return remote.Kept(ctx, s, key, base64.StdEncoding.EncodeToString(wrapped))
	}
	wrapped, err := base64.StdEncoding.DecodeString(params)
	if err != nil || len(wrapped) == 0 {
		return nil, "", seal.ErrRoot.With("What is kept of the root key is nothing that Cloud KMS has wrapped.")
	}
	if key, err = s.call(ctx, "decrypt", "ciphertext", wrapped, "plaintext"); err != nil {
		return nil, "", err
	}
	if len(key) != remote.Len {
		return nil, "", seal.ErrRoot.With("What the key %s of Cloud KMS has unwrapped is not a root key.", s.Key)
	}
	return key, "", nil
}

// sum is how what goes to and fro is checked.
func sum(b []byte) string {
	return strconv.FormatUint(uint64(crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))), 10)
}

// call has the key do one thing with one value.
func (s Source) call(ctx context.Context, verb, name string, value []byte, answer string) ([]byte, error) {
	token, err := s.token(ctx)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(map[string]any{
		name: value, name + "Crc32c": sum(value),
		"additionalAuthenticatedData": []byte(bound), "additionalAuthenticatedDataCrc32c": sum([]byte(bound)),
	})
	if err != nil {
		return nil, err
	}
	defer clear(body)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.base+"/v1/"+s.Key+":"+verb, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := s.client.Do(req)
	if err != nil {
		return nil, remote.Unreachable(service, s.base, err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, remote.Unreachable(service, s.base, err)
	}
	defer clear(b)
	if res.StatusCode != http.StatusOK {
		var said struct {
			Error struct{ Status, Message string }
		}
		_ = json.Unmarshal(b, &said) // without, the number says it
		if verb == "decrypt" && said.Error.Status == "INVALID_ARGUMENT" {
			return nil, seal.ErrRoot.With("The key %s of Cloud KMS has not wrapped the root key of this database. Name the one that did.", s.Key)
		}
		return nil, seal.ErrRootMissing.With("%s at %s refuses: %d %s %q. The key %s must be there and enabled, and whoever this server is there must have the role roles/cloudkms.cryptoKeyEncrypterDecrypter for it.",
			service, s.base, res.StatusCode, remote.Said(said.Error.Status), remote.Said(said.Error.Message), s.Key)
	}
	var out map[string]json.RawMessage
	var got []byte
	var check string
	if json.Unmarshal(b, &out) != nil || json.Unmarshal(out[answer], &got) != nil || len(got) == 0 || json.Unmarshal(out[answer+"Crc32c"], &check) != nil || check != sum(got) {
		return nil, seal.ErrRootMissing.With("%s at %s answers with something that is not what it sent. Try again.", service, s.base)
	}
	return got, nil
}

// token is what the file holds, or the machine's own.
func (s Source) token(ctx context.Context) (string, error) {
	if s.Token != "" {
		return remote.Token(s.Token)
	}
	b, err := s.machine.Ask(ctx, http.MethodGet, "/computeMetadata/v1/instance/service-accounts/default/token", http.Header{"Metadata-Flavor": {"Google"}})
	if err != nil {
		return "", err
	}
	return remote.AccessToken(b)
}
