package sign

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"net/http"
	"strconv"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/resource"
)

// HMAC signs by a template: which parts of the request, in which order, and where
// the signature goes.
type HMAC struct {
	Spec  *resource.HMAC
	Name  string // of the header that has the signature
	KeyID string // what {key_id} stands for
	Key   estover.Secret
}

// errKey says that the secret is no key.
var errKey = errors.New("the secret is not written as the slot says that its key is")

// hashes are the algorithms.
var hashes = map[string]func() hash.Hash{"sha256": sha256.New, "sha384": sha512.New384, "sha512": sha512.New}

// key is the bytes of the key.
func (s *HMAC) key() (key []byte, err error) {
	text := s.Key.Reveal()
	switch s.Spec.Key {
	case "base64":
		key, err = base64.StdEncoding.DecodeString(strings.TrimPrefix(string(text), s.Spec.KeyPrefix))
	case "hex":
		key, err = hex.DecodeString(strings.TrimPrefix(string(text), s.Spec.KeyPrefix))
	default:
		key = []byte(strings.TrimPrefix(string(text), s.Spec.KeyPrefix))
	}
	if err != nil || len(key) == 0 {
		return nil, errKey // what lies behind it may quote the secret
	}
	return key, nil
}

// Sign puts the signature and what belongs to it into the headers of r.
func (s *HMAC) Sign(r *Request, at time.Time) error {
	key, err := s.key()
	if err != nil {
		return err
	}
	defer clear(key)
	nonce := make([]byte, 16)
	_, _ = rand.Read(nonce) // never fails
	signature := ""
	part := func(name, argument string) (string, error) {
		switch name {
		case "method":
			return r.Method, nil
		case "host":
			return r.Host, nil
		case "path":
			return r.Path, nil
		case "query":
			return r.Query, nil
		case "target":
			if r.Query == "" {
				return r.Path, nil
			}
			return r.Path + "?" + r.Query, nil
		case "timestamp":
			return strconv.FormatInt(at.Unix(), 10), nil
		case "timestamp_ms":
			return strconv.FormatInt(at.UnixMilli(), 10), nil
		case "time":
			return at.UTC().Format(time.RFC3339), nil
		case "date":
			return at.UTC().Format(http.TimeFormat), nil
		case "nonce":
			return hex.EncodeToString(nonce), nil
		case "key_id":
			return s.KeyID, nil
		case "body":
			return string(r.Body), nil
		case "body_sha256":
			return Digest(r.Body), nil
		case "body_sha256_base64":
			sum := sha256.Sum256(r.Body)
			return base64.StdEncoding.EncodeToString(sum[:]), nil
		case "header":
			return strings.Join(r.Header.Values(argument), ","), nil
		case "signature":
			return signature, nil
		}
		return "", fmt.Errorf("there is no part {%s}", name)
	}
	fill := func(text string) (string, error) {
		t, err := resource.ParseTemplate(text)
		if err != nil {
			return "", err
		}
		return t.Fill(part)
	}
	// What goes along is there before the signature is made, so that it can be signed
	// as a header too.
	for name, text := range s.Spec.Headers {
		value, err := fill(text)
		if err != nil {
			return err
		}
		r.Header.Set(name, value)
	}
	text, err := fill(s.Spec.Sign)
	if err != nil {
		return err
	}
	m := hmac.New(hashes[s.Spec.Algorithm], key)
	m.Write([]byte(text))
	switch sum := m.Sum(nil); s.Spec.Encoding {
	case "base64":
		signature = base64.StdEncoding.EncodeToString(sum)
	case "base64url":
		signature = base64.RawURLEncoding.EncodeToString(sum)
	default:
		signature = hex.EncodeToString(sum)
	}
	value, err := fill(s.Spec.Value)
	if err != nil {
		return err
	}
	r.Header.Set(s.Name, value)
	return nil
}
