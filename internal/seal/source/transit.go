package source

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"estover.dev/internal/seal"
	"estover.dev/internal/seal/source/remote"
)

// Transit is a source whose root key another server encrypts: the transit
// engine of OpenBao, Vault or another Estover. The key of that engine never
// leaves it. Where it cannot be reached, this server does not start.
type Transit struct {
	Address   string // https://vault.example.com:8200
	Mount     string
	Key       string
	Namespace string
	Token     string // the file with the token; it is read at each start
	client    *http.Client
}

func newTransit(at string, q url.Values) (Transit, error) {
	t := Transit{Address: strings.TrimRight(at, "/"), Mount: strings.Trim(cmp.Or(q.Get("mount"), "transit"), "/"), Key: q.Get("key"), Namespace: q.Get("namespace"), Token: q.Get("token")}
	u, err := url.Parse(t.Address)
	switch {
	case err != nil || u.Host == "" || u.User != nil:
		return t, fmt.Errorf("the address of a transit engine is that of its server, as vault-transit:https://vault.example.com:8200?key=estover&token=/run/token")
	case u.Scheme != "https" && !remote.Loopback(u.Hostname()):
		return t, fmt.Errorf("the transit engine at %s would hand out the root key without TLS; give an https address", u.Host)
	case t.Key == "" || t.Token == "":
		return t, fmt.Errorf("a transit engine needs key=NAME, the name of its key, and token=FILE, a file with the token")
	}
	t.client, err = remote.Client(q.Get("ca"))
	return t, err
}

// Kind is "vault-transit".
func (Transit) Kind() string { return "vault-transit" }

// Root has the key decrypted, or a fresh one encrypted.
func (t Transit) Root(ctx context.Context, params string, first bool) (key []byte, keep string, err error) {
	if first {
		key = remote.NewKey()
		keep, err = t.call(ctx, "encrypt", "plaintext", base64.StdEncoding.EncodeToString(key), "ciphertext")
		if err != nil {
			return nil, "", err
		}
		return remote.Kept(ctx, t, key, keep)
	}
	plain, err := t.call(ctx, "decrypt", "ciphertext", params, "plaintext")
	if err != nil {
		return nil, "", err
	}
	if key, err = base64.StdEncoding.DecodeString(plain); err != nil || len(key) != remote.Len {
		return nil, "", seal.ErrRoot.With("What the transit engine at %s has decrypted is not a root key.", t.Address)
	}
	return key, "", nil
}

// call has the engine do one thing with one value.
func (t Transit) call(ctx context.Context, verb, name, value, answer string) (string, error) {
	token, err := remote.Token(t.Token)
	if err != nil {
		return "", err
	}
	body, err := json.Marshal(map[string]string{name: value})
	if err != nil {
		return "", err
	}
	at := t.Address + "/v1/" + t.Mount + "/" + verb + "/" + url.PathEscape(t.Key)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, at, bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Vault-Token", token)
	req.Header.Set("X-Vault-Request", "true")
	if t.Namespace != "" {
		req.Header.Set("X-Vault-Namespace", t.Namespace)
	}
	res, err := t.client.Do(req)
	if err != nil {
		return "", remote.Unreachable("The transit engine", t.Address, err)
	}
	defer func() { _ = res.Body.Close() }()
	var out struct {
		Data   map[string]json.RawMessage `json:"data"`
		Errors []string                   `json:"errors"`
	}
	b, err := io.ReadAll(res.Body)
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	clear(b)
	if err != nil || res.StatusCode != http.StatusOK {
		said := remote.Said(strings.Join(out.Errors, "; "))
		return "", seal.ErrRootMissing.With("The transit engine at %s answers %d %q. Its key %s must be there, and the token in %s must be allowed to encrypt and decrypt with it.", t.Address, res.StatusCode, said, t.Key, t.Token)
	}
	var text string
	if err := json.Unmarshal(out.Data[answer], &text); err != nil || text == "" {
		return "", seal.ErrRootMissing.With("The transit engine at %s answers without a %s.", t.Address, answer)
	}
	return text, nil
}
