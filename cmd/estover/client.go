package main

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
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"estover.dev/internal/directory"
)

// settings are what every command that talks to a server has in common: where
// it is, whom it trusts, who asks and how the answer is shown. A flag wins
// over the environment, and that over the file that `estover login` wrote.
type settings struct {
	addr, ca, token, output string
}

func (s *settings) flags(root *cobra.Command) {
	f := root.PersistentFlags()
	f.StringVar(&s.addr, "addr", "", "address of the server (ESTOVER_ADDR)")
	f.StringVar(&s.ca, "ca", "", "PEM file of the authority that the server's certificate comes from (ESTOVER_CA)")
	f.StringVar(&s.token, "token", "", "access token, better given as ESTOVER_TOKEN or by 'estover login'")
	f.StringVarP(&s.output, "output", "o", "table", "how to show the answer: table or json")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp))
}

// A login is what `estover login` keeps for the commands after it.
type login struct {
	Addr    string    `json:"addr"`
	CA      string    `json:"ca,omitempty"` // PEM text
	Token   string    `json:"token"`
	Person  string    `json:"person,omitempty"`
	Expires time.Time `json:"expires,omitzero"`
}

// loginFile is where the login is kept; only its owner may read it.
func loginFile() (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "estover", "login.json"), nil
}

func readLogin() (login, error) {
	var l login
	file, err := loginFile()
	if err != nil {
		return l, err
	}
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return l, err
	}
	if err := json.Unmarshal(b, &l); err != nil {
		return l, fmt.Errorf("%s cannot be read (%w); log in again with 'estover login'", file, err)
	}
	return l, nil
}

// defaultAddr is where a server listens that was started without flags.
const defaultAddr = "https://localhost:8443"

// A client talks to the management API of one server.
type client struct {
	addr   string
	token  string
	http   *http.Client
	prover *prover                     // of the token's key, if it is bound to one
	renew  func(context.Context) error // gets another token, if it can be had without a person
}

// client finds the server and the token as the flags, the environment or the
// last login say.
func (s *settings) client() (*client, error) {
	if s.output != "table" && s.output != "json" {
		return nil, usageError{fmt.Errorf("--output is table or json, not %q", s.output)}
	}
	l, err := readLogin()
	if err != nil {
		return nil, err
	}
	addr := first(s.addr, os.Getenv("ESTOVER_ADDR"), l.Addr, defaultAddr)
	u, err := url.Parse(addr)
	if err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") {
		return nil, usageError{fmt.Errorf("the server's address %q is not a URL, as %s", addr, defaultAddr)}
	}
	if ip := net.ParseIP(u.Hostname()); u.Scheme == "http" && u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, usageError{fmt.Errorf("the server's address %q is plain HTTP, which would show the token to the network between; use https", addr)}
	}
	c := &client{addr: strings.TrimSuffix(addr, "/"), token: first(s.token, os.Getenv("ESTOVER_TOKEN"))}
	if c.token == "" && (l.Addr == "" || c.addr == strings.TrimSuffix(l.Addr, "/")) {
		c.token = l.Token // never to another server than it came from
	}
	pemText := []byte(l.CA)
	if file := first(s.ca, os.Getenv("ESTOVER_CA")); file != "" {
		if pemText, err = os.ReadFile(file); err != nil {
			return nil, fmt.Errorf("reading the authority of the server's certificate: %w", err)
		}
	}
	config, err := trust(pemText)
	if err != nil {
		return nil, err
	}
	c.http = &http.Client{
		Transport:     &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 16, IdleConnTimeout: time.Minute},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}

// trust is a TLS configuration that believes the authority in the PEM text, or
// those of the system if there is none.
func trust(pemText []byte) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if len(bytes.TrimSpace(pemText)) == 0 {
		return config, nil
	}
	config.RootCAs = x509.NewCertPool()
	if !config.RootCAs.AppendCertsFromPEM(pemText) {
		return nil, fmt.Errorf("the file of the server's authority holds no PEM certificate")
	}
	return config, nil
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// A problem is the server's answer when it does not do what was asked
// (RFC 9457).
type problem struct {
	Status   int            `json:"status"`
	Code     string         `json:"code"`
	Title    string         `json:"title"`
	Detail   string         `json:"detail"`
	Decision string         `json:"decision"`
	Errors   []problemPlace `json:"errors"`
}

// A problemPlace says where in the request a problem is.
type problemPlace struct {
	Message  string `json:"message"`
	Location string `json:"location"`
}

// Error is the server's sentence, where it applies, and how to learn more.
func (p *problem) Error() string {
	text := first(p.Detail, p.Title, http.StatusText(p.Status))
	for _, e := range p.Errors {
		if e.Message != text {
			text += "\n  " + strings.TrimPrefix(e.Location, "body.") + ": " + e.Message
		}
	}
	if p.Status == http.StatusUnauthorized && p.Code != directory.ErrEnrolment.Code { // of which one comes only by a log-in
		text += "\nLog in with 'estover login', or give a token in ESTOVER_TOKEN."
	}
	if p.Decision != "" {
		text += "\nWhy: estover why " + p.Decision
	}
	return text
}

// unreachable says that the server did not answer at all.
type unreachable struct {
	addr string
	err  error
}

func (u *unreachable) Error() string {
	var unknown x509.UnknownAuthorityError
	if errors.As(u.err, &unknown) {
		return fmt.Sprintf("the certificate of %s comes from an authority that is not known here.\nGive its file with --ca or ESTOVER_CA; a server's own is in its data directory, tls/ca.crt.", u.addr)
	}
	return fmt.Sprintf("%s does not answer (%v).\nIs the server running ('estover serve'), and is its address right (--addr or ESTOVER_ADDR)?", u.addr, root(u.err))
}

func (u *unreachable) Unwrap() error { return u.err }

// root is the innermost error: "connection refused" instead of a chain of
// where it came through.
func root(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}

// do sends in as JSON and reads the answer into out; either may be nil. A POST
// carries an idempotency key, so that it is done once even if it is sent again
// because the answer was lost.
func (c *client) do(ctx context.Context, method, path string, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return err
		}
	}
	key, renewed := rand.Text(), false
	for attempt := 0; ; attempt++ {
		res, err := c.send(ctx, method, path, body, key)
		if err != nil {
			if attempt < 2 && ctx.Err() == nil && isCut(err) {
				continue
			}
			return &unreachable{c.addr, err}
		}
		if res.StatusCode == http.StatusUnauthorized && c.renew != nil && !renewed {
			_ = res.Body.Close()
			renewed = true
			if err := c.renew(ctx); err != nil {
				return err
			}
			continue
		}
		return c.answer(res, out)
	}
}

// isCut reports whether a connection ended in the middle of an exchange, after
// which it is not known whether the request was carried out.
func isCut(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || strings.Contains(err.Error(), "connection reset")
}

func (c *client) send(ctx context.Context, method, path string, body []byte, key string) (*http.Response, error) {
	return c.exchange(c.token, func() (*http.Request, error) {
		req, err := http.NewRequestWithContext(ctx, method, c.addr+path, bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		if body != nil {
			req.Header.Set("Content-Type", "application/json")
		}
		if method == http.MethodPost {
			req.Header.Set("Idempotency-Key", key)
		}
		return req, nil
	})
}

// maxAnswer bounds what a command reads into memory. Exports are streamed.
const maxAnswer = 64 << 20

func (c *client) answer(res *http.Response, out any) error {
	defer res.Body.Close()
	if res.StatusCode >= 300 {
		return problemOf(res)
	}
	switch out := out.(type) {
	case nil:
		return nil
	case io.Writer:
		_, err := io.Copy(out, res.Body)
		return err
	}
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return &unreachable{c.addr, err}
	}
	if len(b) == 0 {
		return nil
	}
	return json.Unmarshal(b, out)
}

func problemOf(res *http.Response) error {
	b, _ := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	p := &problem{}
	if err := json.Unmarshal(b, p); err != nil || (p.Detail == "" && p.Title == "") {
		p.Detail = fmt.Sprintf("The server answered %s.", res.Status)
	}
	p.Status = res.StatusCode
	return p
}

// A page is one answer of a list.
type page[T any] struct {
	Items []T    `json:"items"`
	Next  string `json:"next,omitempty"`
}

// list reads all pages of a list, up to limit things; 0 is all of them.
func list[T any](ctx context.Context, c *client, path string, query url.Values, limit int) ([]T, error) {
	var all []T
	if query == nil {
		query = url.Values{}
	}
	for {
		var p page[T]
		if err := c.do(ctx, http.MethodGet, path+"?"+query.Encode(), nil, &p); err != nil {
			return nil, err
		}
		all = append(all, p.Items...)
		if limit > 0 && len(all) >= limit {
			return all[:limit], nil
		}
		if p.Next == "" {
			return all, nil
		}
		query.Set("cursor", p.Next)
	}
}
