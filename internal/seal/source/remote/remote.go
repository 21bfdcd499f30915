// Package remote is what those sources have in common whose root key a service
// elsewhere wraps: how the service is reached, and how a machine of a cloud shows
// who it is.
package remote

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"estover.dev/internal/seal"
)

// Time bounds what is asked of a service for one root key.
const Time = 15 * time.Second

// Answer is the most that a service may say, in bytes.
const Answer = 64 << 10

// Len is that of a root key.
const Len = 32

// NewKey makes a root key.
func NewKey() []byte {
	key := make([]byte, Len)
	_, _ = rand.Read(key) // never fails
	return key
}

// Kept gives a fresh key that a source's service has wrapped, and what is kept of it,
// if the service opens that again. What it did not would be lost with all that is
// sealed under the key, and nobody would know before the next start.
func Kept(ctx context.Context, s seal.Source, key []byte, keep string) ([]byte, string, error) {
	again, _, err := s.Root(ctx, keep, false)
	defer clear(again)
	switch {
	case errors.Is(err, seal.ErrRootMissing):
		return nil, "", err
	case err != nil || !bytes.Equal(again, key):
		return nil, "", seal.ErrRootMissing.With("The service of %s: has wrapped a root key and does not open it again, so it is not used.", s.Kind())
	}
	return key, keep, nil
}

// Loopback reports whether a host is this machine.
func Loopback(host string) bool { return host == "127.0.0.1" || host == "::1" || host == "localhost" }

// Named reports whether a name has 1 to most characters: letters and digits of ASCII,
// and these others. (An expression would be compiled at each start of the program.)
func Named(name string, most int, others string) bool {
	return name != "" && len(name) <= most && !strings.ContainsFunc(name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune(others, r)
	})
}

// CheckAddress refuses an address to which a root key would go without TLS, and one
// that holds a credential.
func CheckAddress(service, address string) (*url.URL, error) {
	u, err := url.Parse(address)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Scheme != "https" && u.Scheme != "http":
		return nil, fmt.Errorf("the address of %s is that of its server, such as https://kms.example.com", service)
	case u.Scheme != "https" && !Loopback(u.Hostname()):
		return nil, fmt.Errorf("%s at %s would get and hand out the root key without TLS; give an https address", service, u.Host)
	}
	return u, nil
}

// Client calls a service, whose certificate is of one of the authorities in a file;
// of the system's if there is none. It follows nobody elsewhere.
func Client(ca string) (*http.Client, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return nil, fmt.Errorf("reading whom to trust as a service that wraps root keys: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("the file %s holds no certificate in PEM", ca)
		}
	}
	return &http.Client{
		Timeout:       Time,
		Transport:     bounded{&http.Transport{TLSClientConfig: config, Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // what proves us stays here
	}, nil
}

// bounded cuts answers off.
type bounded struct{ http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := b.RoundTripper.RoundTrip(r)
	if err == nil {
		res.Body = http.MaxBytesReader(nil, res.Body, Answer)
	}
	return res, err
}

// Token is what a file holds, that others renew.
func Token(file string) (string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", seal.ErrRootMissing.With("The token for the service that wraps the root key cannot be read: %v", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// Unreachable is the error of a service that has not answered.
func Unreachable(service, host string, err error) error {
	var at *url.Error
	if errors.As(err, &at) {
		err = at.Err // without the address twice
	}
	return seal.ErrRootMissing.With("%s at %s cannot be reached, and without it the root key is not to be had: %v", service, host, err)
}

// Said are some words of a service, as they fit into a sentence.
func Said(words string) string {
	words = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(words, "\uFFFD"))
	if len(words) > 200 {
		words = strings.ToValidUTF8(words[:200], "")
	}
	return words
}

// A Machine asks the cloud that this machine is in who it is. The services for that
// are at addresses that lead nowhere else, and speak without TLS.
type Machine struct{ Base string }

// NewMachine is one at its usual place, or on this very machine.
func NewMachine(usual, other string) (Machine, error) {
	if other == "" {
		return Machine{usual}, nil
	}
	u, err := url.Parse(other)
	if err != nil || u.Scheme != "http" || !Loopback(u.Hostname()) {
		return Machine{}, fmt.Errorf("metadata=URL leads to this machine, as http://127.0.0.1:8080")
	}
	return Machine{strings.TrimRight(other, "/")}, nil
}

// Ask gives what the service says at a path.
func (m Machine) Ask(ctx context.Context, method, path string, header http.Header) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, m.Base+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header = header
	client := &http.Client{
		Timeout:       Time / 3,
		Transport:     &http.Transport{DisableKeepAlives: true}, // and no proxy
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, Unreachable("The service by which this machine shows who it is", m.Base, err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(res.Body, Answer))
	if err != nil || res.StatusCode != http.StatusOK {
		return nil, seal.ErrRootMissing.With("The service by which this machine shows who it is, at %s, answers %d. Give the machine an identity that may use the key, or name a file with a credential.", m.Base, res.StatusCode)
	}
	return b, nil
}

// AccessToken reads an answer of OAuth 2.0 (RFC 6749, section 5.1).
func AccessToken(b []byte) (string, error) {
	var out struct {
		AccessToken string `json:"access_token"`
	}
	if err := json.Unmarshal(b, &out); err != nil || out.AccessToken == "" {
		return "", seal.ErrRootMissing.With("The service by which this machine shows who it is answers without a token.")
	}
	return out.AccessToken, nil
}
