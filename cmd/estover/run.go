package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"estover.dev/internal/session"
)

func runCommand(s *settings) *cobra.Command {
	var l launch
	c := &cobra.Command{
		Use:   "run [flags] -- COMMAND [ARGUMENT…]",
		Short: "Run a program as an agent: one task, one session, no secret in its hands",
		Long: `Run opens a session for the agent, starts COMMAND with its traffic going through
the gateway, and ends the session when COMMAND ends, however it ends. The exit
code is that of COMMAND.

COMMAND gets an address and an authority to trust, in the environment variables
that common programs understand, and no token: what it needs to reach a
resource is put in by the gateway, for the hosts and actions that its grants
name, while the session lives.

The session is opened with your own login (see 'estover login'), or with the
agent's credentials if ESTOVER_CLIENT_ID and ESTOVER_CLIENT_SECRET (or
ESTOVER_CLIENT_SECRET_FILE) are set. Variables of your environment that look
like credentials are not handed down; --keep-env NAME does it all the same.

What this does not do: a program may ignore the proxy variables and dial by
itself, so let the network allow only the gateway. Programs that bring their
own list of authorities, or pin a certificate, fail; they do not bypass. Any
process of COMMAND's tree may use the session.`,
		Example: `  estover run --agent invoices-bot --purpose billing -- python agent.py
  estover run --agent invoices-bot -- curl https://crm.example.com/v1/customers`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{errors.New("run needs a command, after two dashes: estover run --agent NAME -- COMMAND")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			code, err := l.run(cmd.Context(), s, args)
			if err != nil {
				return err
			}
			if code != 0 {
				return exitCode(code)
			}
			return nil
		},
	}
	c.Flags().SetInterspersed(false)
	c.Flags().StringVar(&l.agent, "agent", os.Getenv("ESTOVER_AGENT"), "name or id of the agent (ESTOVER_AGENT)")
	c.Flags().StringVar(&l.purpose, "purpose", os.Getenv("ESTOVER_PURPOSE"), "what the task is for; the agent's only purpose if it has one (ESTOVER_PURPOSE)")
	c.Flags().StringVar(&l.task, "task", "", "the task in a sentence, for the record")
	c.Flags().DurationVar(&l.ttl, "ttl", 8*time.Hour, "the longest that the session may live, unless it is renewed")
	c.Flags().DurationVar(&l.idle, "idle", session.LauncherIdle, "the session ends when the server has heard neither of this launcher nor of the program for so long")
	c.Flags().BoolVar(&l.bind, "bind-process", false, "refuse to run where the session cannot be bound to COMMAND's processes (it is bound to them wherever that works)")
	c.Flags().StringSliceVar(&l.keep, "keep-env", nil, "hand down this variable although it looks like a credential; may be repeated")
	c.Flags().BoolVarP(&l.quiet, "quiet", "q", false, "say nothing about the session")
	_ = c.RegisterFlagCompletionFunc("agent", completeAgents(s))
	return c
}

// A launch is one `estover run`.
type launch struct {
	agent, purpose, task string
	ttl, idle            time.Duration
	bind                 bool
	bound                session.Bound
	keep                 []string
	quiet                bool
	asAgent              bool   // with the agent's own credentials
	session              string // in which the agent's token is, if not in one that it opens by itself
}

// sessionDir begins the name of the directory with a session's files.
const sessionDir = "estover-session-"

// say tells something about the session, unless nobody wants to hear of it.
func (l *launch) say(format string, args ...any) {
	if !l.quiet {
		fmt.Fprintf(os.Stderr, "estover: "+format+"\n", args...)
	}
}

// An opened is what the server answers when a session is opened for a
// launcher.
type opened struct {
	Session struct {
		ID        string    `json:"id"`
		Agent     string    `json:"agent"`
		Purpose   string    `json:"purpose"`
		ExpiresAt time.Time `json:"expires_at"`
	} `json:"session"`
	Gateway      string            `json:"gateway"`      // HOST:PORT of the forward proxy
	CA           string            `json:"ca"`           // PEM of the session's own authority
	PassThrough  bool              `json:"pass_through"` // some hosts are reached without interception
	Placeholders map[string]string `json:"placeholders"` // variables that some programs want before they start
}

func (l *launch) run(ctx context.Context, s *settings, args []string) (int, error) {
	c, err := s.client()
	if err != nil {
		return 0, err
	}
	if err := l.authenticate(ctx, c); err != nil {
		return 0, err
	}
	if l.asAgent {
		c.renew = func(ctx context.Context) error { return l.authenticate(ctx, c) }
	}
	path, err := exec.LookPath(args[0])
	if err != nil {
		return 0, fmt.Errorf("%s cannot be run: %w", args[0], err)
	}
	if l.purpose == "" {
		if err := l.onlyPurpose(ctx, c); err != nil {
			return 0, err
		}
	}
	cert, err := sessionCertificate()
	if err != nil {
		return 0, err
	}
	program, err := digestOf(path)
	if err != nil {
		return 0, err
	}
	var loose error // why the session is not bound to the program's processes
	if l.bound, loose = binding(); l.bind && loose != nil {
		return 0, fmt.Errorf("the session cannot be bound to the processes of %s here: %w", args[0], loose)
	}
	var o opened
	err = c.do(ctx, http.MethodPost, "/v1/sessions", map[string]any{
		"agent": l.agent, "purpose": l.purpose, "task": l.task, "ttl_seconds": int(l.ttl.Seconds()), "certificate_thumbprint": thumbprint(cert),
		"idle_seconds": int(l.idle.Seconds()), "bound": l.bound, "executable": program,
	}, &o)
	if err != nil {
		return 0, err
	}
	t := &task{
		launch: l, client: c, id: o.Session.ID, expires: o.Session.ExpiresAt,
		over: make(chan string, 1), nudge: make(chan struct{}, 1), renewed: make(chan time.Time, 1),
	}
	cause := "the command could not be started"
	defer func() { t.end(context.WithoutCancel(ctx), cause) }()
	dir, err := os.MkdirTemp("", sessionDir)
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	heir, err := leaveTo(s, o.Session.ID, dir)
	if err != nil {
		return 0, err
	}
	defer heir.dismiss()
	p, err := l.proxy(c, o, cert)
	if err != nil {
		return 0, err
	}
	defer p.close()
	p.dropped = t.look
	env, dropped, err := environment(os.Environ(), o, p.addr(), dir, l.keep)
	if err != nil {
		return 0, err
	}
	l.say("session %s of %s, for %s", o.Session.ID, first(l.agent, o.Session.Agent), o.Session.Purpose)
	switch l.bound {
	case session.ByUser:
		l.say("every process of this user may use the session while it lives, since %v", loose)
	case session.ByNothing:
		l.say("every process of this machine may use the session while it lives, since %v", loose)
	}
	if len(dropped) > 0 {
		l.say("not handed down: %s (use --keep-env to do so)", strings.Join(dropped, ", "))
	}
	cmd := &exec.Cmd{Path: path, Args: args, Env: env, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	stop := t.watch(ctx)
	code, how, err := t.supervise(cmd, p, heir)
	stop()
	cause = how
	if err != nil {
		return 0, fmt.Errorf("running %s: %w", args[0], err)
	}
	return code, nil
}

// onlyPurpose demands that an agent has no choice of purposes: which one a task
// is for is not to be guessed.
func (l *launch) onlyPurpose(ctx context.Context, c *client) error {
	var a struct {
		Name     string   `json:"name"`
		Purposes []string `json:"purposes"`
	}
	if err := c.do(ctx, http.MethodGet, "/v1/agents/"+url.PathEscape(l.agent), nil, &a); err != nil {
		return err
	}
	if len(a.Purposes) > 1 {
		return usageError{fmt.Errorf("%s has several purposes, %s; say with --purpose which the task is for", a.Name, strings.Join(a.Purposes, ", "))}
	}
	return nil
}

// issuer is as whom the server issues tokens, in its own words.
func (c *client) issuer(ctx context.Context) (string, error) {
	res, err := c.exchange("", func() (*http.Request, error) {
		return http.NewRequestWithContext(ctx, http.MethodGet, c.addr+"/.well-known/openid-configuration", nil)
	})
	if err != nil {
		return "", &unreachable{c.addr, err}
	}
	var metadata struct {
		Issuer string `json:"issuer"`
	}
	if err := c.answer(res, &metadata); err != nil {
		return "", err
	}
	return metadata.Issuer, nil
}

// authenticate makes c speak as the agent if the agent's credentials are in
// the environment, and leaves it the person who is logged in otherwise.
func (l *launch) authenticate(ctx context.Context, c *client) error {
	id, secret := os.Getenv("ESTOVER_CLIENT_ID"), os.Getenv("ESTOVER_CLIENT_SECRET")
	if file := os.Getenv("ESTOVER_CLIENT_SECRET_FILE"); file != "" && secret == "" {
		b, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("reading the agent's secret: %w", err)
		}
		secret = strings.TrimSpace(string(b))
	}
	if id == "" {
		if l.agent == "" {
			return usageError{errors.New("run needs the agent: --agent NAME, or the agent's own ESTOVER_CLIENT_ID and ESTOVER_CLIENT_SECRET")}
		}
		return nil
	}
	if secret == "" {
		return usageError{errors.New("ESTOVER_CLIENT_ID is set without ESTOVER_CLIENT_SECRET or ESTOVER_CLIENT_SECRET_FILE")}
	}
	issuer, err := c.issuer(ctx)
	if err != nil {
		return err
	}
	// For the server itself, whatever the agent usually asks for.
	form := url.Values{"grant_type": {"client_credentials"}, "resource": {issuer}}
	if l.purpose != "" {
		form.Set("purpose", l.purpose)
	}
	if l.session != "" {
		form.Set("session", l.session)
	}
	var token struct {
		AccessToken string `json:"access_token"`
	}
	ask := func() (*http.Response, error) {
		res, err := c.exchange("", func() (*http.Request, error) {
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.addr+"/oauth/token", strings.NewReader(form.Encode()))
			if err != nil {
				return nil, err
			}
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			req.SetBasicAuth(url.QueryEscape(id), url.QueryEscape(secret))
			return req, nil
		})
		switch {
		case err != nil:
			return nil, &unreachable{c.addr, err}
		case res.StatusCode != http.StatusOK:
			return res, oauthProblem(res)
		}
		return res, nil
	}
	res, err := ask()
	var p *problem
	if c.prover == nil && errors.As(err, &p) && p.Code == "invalid_dpop_proof" { // this agent's tokens are bound to a key
		if c.prover, err = newProver(res.Header.Get("DPoP-Nonce")); err != nil {
			return err
		}
		res, err = ask()
	}
	if err != nil {
		return err
	}
	if err := c.answer(res, &token); err != nil {
		return err
	}
	c.token = token.AccessToken
	l.agent, l.asAgent = id, true
	return nil
}

// sessionCertificate is the key that stands for the session, made here and
// never leaving this process, in a certificate that says nothing.
func sessionCertificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: "estover session"},
		NotBefore: now.Add(-5 * time.Minute), NotAfter: now.Add(session.LongestLife + time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// digestOf is the SHA-256 of a file, in hex: which program the session is for.
func digestOf(path string) (string, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrPermission) {
		return "", nil // it may be run and not read
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// thumbprint is the certificate's x5t#S256 (RFC 8705, section 3.1).
func thumbprint(c tls.Certificate) string {
	sum := sha256.Sum256(c.Certificate[0])
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// A loopbackProxy is the address that the program gets. It passes each
// connection of the program's tree on to the gateway, inside TLS with the
// session's certificate; it reads nothing of it.
type loopbackProxy struct {
	listener net.Listener
	gateway  string
	tls      *tls.Config
	belongs  func(net.Conn) bool // set before the program can connect
	dropped  func()              // called when the gateway has closed a connection

	mu     sync.Mutex
	conns  map[net.Conn]bool
	closed bool
}

func (l *launch) proxy(c *client, o opened, cert tls.Certificate) (*loopbackProxy, error) {
	host, _, err := net.SplitHostPort(o.Gateway)
	if err != nil {
		return nil, fmt.Errorf("the server names %q as its gateway, which is no address", o.Gateway)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: host, Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}}
	if t, ok := c.http.Transport.(*http.Transport); ok {
		config.RootCAs = t.TLSClientConfig.RootCAs
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	return &loopbackProxy{listener: ln, gateway: o.Gateway, tls: config, conns: map[net.Conn]bool{}}, nil
}

func (p *loopbackProxy) addr() string { return p.listener.Addr().String() }

// serve passes connections on until the proxy is closed.
func (p *loopbackProxy) serve() {
	for {
		conn, err := p.listener.Accept()
		if err != nil {
			return
		}
		go p.pass(conn)
	}
}

func (p *loopbackProxy) pass(conn net.Conn) {
	if !p.keep(conn) {
		return
	}
	defer p.drop(conn)
	if !p.belongs(conn) {
		fmt.Fprintf(os.Stderr, "estover: refused a connection from a process outside of this session\n")
		return
	}
	dialer := &tls.Dialer{NetDialer: &net.Dialer{Timeout: 10 * time.Second}, Config: p.tls}
	up, err := dialer.Dial("tcp", p.gateway)
	if err != nil {
		const body = "The gateway of Estover does not answer.\n"
		fmt.Fprintf(conn, "HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(body), body)
		fmt.Fprintf(os.Stderr, "estover: the gateway %s does not answer: %v\n", p.gateway, root(err))
		return
	}
	if !p.keep(up) {
		return
	}
	defer p.drop(up)
	done := make(chan struct{}, 2)
	splice := func(to, from net.Conn) {
		_, _ = io.Copy(to, from)
		// The other direction may still have something to say.
		if half, ok := to.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
		done <- struct{}{}
	}
	go splice(up, conn)
	splice(conn, up)
	// When the gateway has nothing more to say, neither has the program
	// anybody to talk to.
	_ = conn.Close()
	p.dropped()
	<-done
	<-done
}

func (p *loopbackProxy) keep(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		_ = c.Close()
		return false
	}
	p.conns[c] = true
	return true
}

func (p *loopbackProxy) drop(c net.Conn) {
	_ = c.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

func (p *loopbackProxy) close() {
	_ = p.listener.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for c := range p.conns {
		_ = c.Close()
	}
}

// looksSecret matches the names of variables that usually hold credentials.
var looksSecret = regexp.MustCompile(`(?i)(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|PASS|PWD|[A-Z]*KEY|PAT|CREDENTIALS?|AUTH|COOKIE|DSN|CONNECTION_STRING)(_|$|S$|FILE$|ID$)|^(DATABASE_URL|PGPASSWORD|PGPASSFILE|MYSQL_PWD|SSH_AUTH_SOCK|GIT_ASKPASS|NETRC|KUBECONFIG)$`)

// holdsSecret matches values that hold one whatever they are called: a URL
// with a user and a password.
var holdsSecret = regexp.MustCompile(`[A-Za-z][A-Za-z0-9+.-]*://[^/\s:@]*:[^/\s@]+@`)

// harmless are names that only look so: PWD is the working directory.
var harmless = []string{"PWD", "OLDPWD", "XAUTHORITY", "SSH_AUTH_SOCK_DISABLED"}

// gitCount says how many settings for git are in the environment. Ours has it
// speak HTTP/1.1: over HTTP/2 git and libcurl 7.88 wait for each other for ever at
// the end of about every tenth push that is larger than the server's window, the
// callback that has said that there is no more being asked once more.
const gitCount = "GIT_CONFIG_COUNT"

// gitSettings is how many the caller's environment has.
func gitSettings(own []string) int {
	for _, kv := range own {
		if k, v, _ := strings.Cut(kv, "="); k == gitCount {
			if n, err := strconv.Atoi(v); err == nil && n > 0 {
				return n
			}
		}
	}
	return 0
}

// environment is what the program gets: the caller's, without what looks like
// a credential, and with the gateway in all the words that programs know
// (docs/reference/run.md says which program reads which). dir takes the
// bundle of authorities.
func environment(own []string, o opened, proxy, dir string, keep []string) (env, dropped []string, err error) {
	bundle := filepath.Join(dir, "ca.pem")
	pemText := o.CA
	if o.PassThrough {
		pemText += systemRoots()
	}
	empty := filepath.Join(dir, "no-other-authorities")
	if err := errors.Join(os.WriteFile(bundle, []byte(pemText), 0o600), os.Mkdir(empty, 0o700)); err != nil {
		return nil, nil, err
	}
	host, port, err := net.SplitHostPort(proxy)
	if err != nil {
		return nil, nil, err
	}
	address := "http://" + proxy
	const local = "127.0.0.1,localhost,::1"
	set := map[string]string{
		"NODE_USE_ENV_PROXY": "1", "OPENCLAW_PROXY_URL": address,
		"ESTOVER_SESSION": o.Session.ID, "ESTOVER_PROXY": address,
		"SSL_CERT_DIR": empty,
	}
	for _, k := range []string{"HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"} {
		set[k] = address
	}
	for _, k := range []string{"NO_PROXY", "no_proxy"} {
		set[k] = local
	}
	for _, k := range []string{"NODE_EXTRA_CA_CERTS", "DENO_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT", "AWS_CA_BUNDLE", "GIT_SSL_CAINFO", "CARGO_HTTP_CAINFO"} {
		set[k] = bundle
	}
	for k, v := range o.Placeholders {
		set[k] = v
	}
	// Settings for git that the caller's environment has may hold a header with a
	// credential, and are handed down together or not at all.
	settings := 0
	if slices.Contains(keep, gitCount) {
		settings = gitSettings(own)
	}
	set[gitCount] = strconv.Itoa(settings + 1)
	set[fmt.Sprintf("GIT_CONFIG_KEY_%d", settings)] = "http.version"
	set[fmt.Sprintf("GIT_CONFIG_VALUE_%d", settings)] = "HTTP/1.1"
	var java string
	for _, kv := range own {
		k, v, _ := strings.Cut(kv, "=")
		if _, ours := set[k]; ours {
			continue
		}
		switch {
		case k == "JAVA_TOOL_OPTIONS":
			java = v + " "
			continue
		case k == "ALL_PROXY" || k == "all_proxy":
			continue // it would lead past the gateway
		case strings.HasPrefix(k, "ESTOVER_"):
			continue // the operator's own: token, address, secret of the agent
		case strings.HasPrefix(k, "GIT_CONFIG_KEY_"), strings.HasPrefix(k, "GIT_CONFIG_VALUE_"):
			if settings == 0 {
				dropped = append(dropped, k)
				continue
			}
		case (looksSecret.MatchString(k) || holdsSecret.MatchString(v)) && !slices.Contains(harmless, k) && !slices.Contains(keep, k):
			dropped = append(dropped, k)
			continue
		}
		env = append(env, kv)
	}
	store, err := javaTrustStore(dir, o.CA)
	if err != nil {
		return nil, nil, err
	}
	set["JAVA_TOOL_OPTIONS"] = java + fmt.Sprintf("-Djavax.net.ssl.trustStore=%s -Djavax.net.ssl.trustStoreType=PKCS12 -Djavax.net.ssl.trustStorePassword=%s -Dhttps.proxyHost=%s -Dhttps.proxyPort=%s -Dhttp.proxyHost=%s -Dhttp.proxyPort=%s -Dhttp.nonProxyHosts=127.0.0.1|localhost",
		store, javaTrust, host, port, host, port)
	for k, v := range set {
		env = append(env, k+"="+v)
	}
	slices.Sort(dropped)
	return env, dropped, nil
}

// systemRoots are the authorities of this machine, for hosts that the gateway
// passes through without looking in.
func systemRoots() string {
	for _, f := range []string{"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem"} {
		if b, err := os.ReadFile(f); err == nil {
			return "\n" + string(b)
		}
	}
	return ""
}
