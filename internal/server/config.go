package server

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"estover.dev/internal/incident"
	"estover.dev/internal/seal"
)

// A Config is what an operator decides before the server starts. Everything
// else is decided in the running server and kept in its database, by
// `estover apply`. Each field is a flag and an environment variable.
type Config struct {
	Data       string   `flag:"data" env:"ESTOVER_DATA" default:"estover-data" help:"Directory for the database, recordings and the server's own certificate authority"`
	Database   string   `flag:"database" env:"ESTOVER_DATABASE" help:"Where everything is kept: sqlite:FILE or postgres://… (default: sqlite:DATA/estover.db)"`
	RootKey    string   `flag:"root-key" env:"ESTOVER_ROOT_KEY" help:"What all keys rest on: file:PATH, passphrase:file:PATH, passphrase:env:NAME, systemd-creds:NAME, env:NAME, tpm2:, vault-transit:URL, awskms:KEY, azurekms:URL, cloudkms:NAME, pkcs11:… or shamir: (default: file:DATA-keys/root.key, beside and not in the data directory)"`
	AlsoRoot   []string `flag:"also-root-key" env:"ESTOVER_ALSO_ROOT_KEY" help:"Another registered root key, needed only to replace what is wrapped under all of them; may be repeated"`
	MayRoot    []string `flag:"may-root-key" env:"ESTOVER_MAY_ROOT_KEY" help:"A root key that an administrator may register with 'estover root-key add'; may be repeated. Who starts the server says which, since it names files and devices of this machine"`
	Blobs      string   `flag:"blobs" env:"ESTOVER_BLOBS" help:"Where recordings are kept, as a bucket URL (default: file:///DATA/recordings)"`
	Issuer     string   `flag:"issuer" env:"ESTOVER_ISSUER" help:"The address under which agents know this server; it is in every token and never taken from a request (default: https://localhost:PORT)"`
	Listen     string   `flag:"listen" env:"ESTOVER_LISTEN" default:"127.0.0.1:8443" help:"Address of the API, the token service, reverse routes and the public log"`
	Gateway    string   `flag:"gateway" env:"ESTOVER_GATEWAY" default:"127.0.0.1:8444" help:"Address of the forward proxy, for 'estover run'"`
	MTLS       string   `flag:"mtls-listen" env:"ESTOVER_MTLS_LISTEN" help:"Address where clients come that show a certificate; then --listen asks nobody for one (default: --listen asks, and a client may decline)"`
	Vault      string   `flag:"vault-listen" env:"ESTOVER_VAULT_LISTEN" help:"Address of the Vault-compatible door, as 127.0.0.1:8200, where its clients look by themselves; it is below /vault/ of --listen in any case (default: only there)"`
	VaultHead  bool     `flag:"vault-request-header" env:"ESTOVER_VAULT_REQUEST_HEADER" help:"Have the Vault-compatible door demand the header X-Vault-Request, which no browser sends by itself"`
	VaultAudit string   `flag:"vault-audit-dir" env:"ESTOVER_VAULT_AUDIT_DIR" help:"Folder in which audit devices of the Vault-compatible door may write files (default: they write none)"`
	Control    string   `flag:"control" env:"ESTOVER_CONTROL" help:"Where the kill switch answers by itself: unix:PATH, HOST:PORT of a loopback address, or none (default: unix:DATA/control.sock)"`
	TLSCert    string   `flag:"tls-cert" env:"ESTOVER_TLS_CERT" help:"PEM file with the server's certificate chain (default: one made by the server's own authority in DATA/tls)"`
	TLSKey     string   `flag:"tls-key" env:"ESTOVER_TLS_KEY" help:"PEM file with the certificate's key"`
	Plain      bool     `flag:"plain-http" env:"ESTOVER_PLAIN_HTTP" help:"Serve the API without TLS; only on a loopback address"`
	Proxies    []string `flag:"trusted-proxy" env:"ESTOVER_TRUSTED_PROXIES" help:"Network whose X-Forwarded-For is believed, as 10.0.0.0/8; may be repeated"`
	ProxyCerts bool     `flag:"proxy-certificates" env:"ESTOVER_PROXY_CERTIFICATES" help:"Believe trusted proxies about the certificates of clients too (Client-Cert, RFC 9440); they must take out what a client itself sends under that name"`
	Loopback   string   `flag:"development-client-roots" env:"ESTOVER_DEVELOPMENT_CLIENT_ROOTS" help:"For development: PEM file of authorities; documents of clients (metadata_url) may then be on this machine itself, under certificates of theirs. Only where the server listens on a loopback address"`
	Rotation   string   `flag:"key-rotation" env:"ESTOVER_KEY_ROTATION" default:"720h" help:"How long a key signs tokens before the next takes over, from 24h to 8760h; the next is published an hour before"`
	DrillEvery string   `flag:"drill-every" env:"ESTOVER_DRILL_EVERY" help:"How often the kill switch is tried out on a decoy, from 1m to 8760h (default: only by 'estover drill')"`
	DrillBound string   `flag:"drill-bound" env:"ESTOVER_DRILL_BOUND" default:"1s" help:"What such a drill may take before it is an alarm, from 1ms to 1m"`
	Restored   bool     `flag:"restored" env:"ESTOVER_RESTORED" help:"Go on with a database that is older than what this node has seen, or with a clock that was ahead before: nothing is issued at any target before it is reconciled. It has no effect on a database that is as it was left"`
	GlassFor   []string `flag:"break-glass-recipient" env:"ESTOVER_BREAK_GLASS_RECIPIENTS" help:"Public key of age (age1…) whose secret key is kept offline: it opens copies of what the admins of targets log in with, written whenever one is rotated; may be repeated (default: no copies)"`
	GlassDir   string   `flag:"break-glass-dir" env:"ESTOVER_BREAK_GLASS_DIR" help:"Folder for these copies; have it backed up apart from the database (default: DATA/break-glass)"`
	LogLevel   string   `flag:"log-level" env:"ESTOVER_LOG_LEVEL" default:"info" help:"debug, info, warn or error"`
	Pprof      string   `flag:"pprof" env:"ESTOVER_PPROF" help:"Loopback address that answers profilers (go tool pprof), without asking who they are; off if empty"`
	LogJSON    bool     `flag:"log-json" env:"ESTOVER_LOG_JSON" help:"Write the log as JSON"`
}

// check fills what was left out and says what is wrong, in words for whoever
// starts the server.
func (c *Config) check() error {
	host, port, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return fmt.Errorf("--listen %q is not HOST:PORT", c.Listen)
	}
	if _, _, err := net.SplitHostPort(c.Gateway); err != nil {
		return fmt.Errorf("--gateway %q is not HOST:PORT", c.Gateway)
	}
	if c.MTLS != "" {
		if _, _, err := net.SplitHostPort(c.MTLS); err != nil {
			return fmt.Errorf("--mtls-listen %q is not HOST:PORT", c.MTLS)
		}
	}
	if c.Vault != "" {
		at, _, err := net.SplitHostPort(c.Vault)
		if err != nil {
			return fmt.Errorf("--vault-listen %q is not HOST:PORT", c.Vault)
		}
		if c.Plain && !loopback(at) {
			return fmt.Errorf("--plain-http is only for a loopback address, and %s of --vault-listen is none; give a certificate with --tls-cert instead", at)
		}
	}
	if c.VaultAudit != "" {
		if c.VaultAudit, err = filepath.Abs(c.VaultAudit); err != nil {
			return err
		}
		if info, err := os.Stat(c.VaultAudit); err != nil || !info.IsDir() {
			return fmt.Errorf("--vault-audit-dir %s is no folder; make it, for the server's user alone", c.VaultAudit)
		}
	}
	if c.Control != "" && c.Control != noControl && !strings.HasPrefix(c.Control, "unix:") {
		if at, _, err := net.SplitHostPort(c.Control); err != nil || !loopback(at) {
			return fmt.Errorf("--control %q is neither unix:PATH nor HOST:PORT of a loopback address", c.Control)
		}
	}
	if c.Data, err = filepath.Abs(c.Data); err != nil {
		return err
	}
	if c.Database == "" {
		c.Database = "sqlite:" + filepath.Join(c.Data, "estover.db")
	}
	if c.RootKey == "" {
		c.RootKey = "file:" + filepath.Join(c.Data+"-keys", "root.key")
	}
	if c.Blobs == "" {
		c.Blobs = "file://" + filepath.ToSlash(filepath.Join(c.Data, "recordings"))
	}
	if c.Plain && !loopback(host) {
		return fmt.Errorf("--plain-http is only for a loopback address, and %s is none; give a certificate with --tls-cert instead", host)
	}
	scheme := "https"
	if c.Plain {
		scheme = "http"
	}
	if c.Issuer == "" {
		if !loopback(host) {
			return fmt.Errorf("--issuer is needed when the server listens on %s: the address under which agents know it, as https://estover.example.com", host)
		}
		c.Issuer = scheme + "://localhost:" + port
	}
	u, err := url.Parse(c.Issuer)
	if err != nil || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil || strings.HasSuffix(c.Issuer, "/") ||
		(u.Scheme != "https" && (u.Scheme != "http" || !loopback(u.Hostname()))) {
		return fmt.Errorf("--issuer %q must be an https address without a slash at the end", c.Issuer)
	}
	if c.Loopback != "" && !loopback(host) {
		return fmt.Errorf("--development-client-roots is for development, where the server listens on a loopback address, and %s is none", host)
	}
	if _, err := c.rotation(); err != nil {
		return err
	}
	if _, err := c.drillEvery(); err != nil {
		return err
	}
	if _, err := c.drillBound(); err != nil {
		return err
	}
	if c.ProxyCerts && len(c.Proxies) == 0 {
		return fmt.Errorf("--proxy-certificates is about the proxies that --trusted-proxy names, and there is none")
	}
	if (c.TLSCert == "") != (c.TLSKey == "") {
		return fmt.Errorf("--tls-cert and --tls-key belong together")
	}
	for _, p := range c.Proxies {
		if _, err := netip.ParsePrefix(p); err != nil {
			return fmt.Errorf("--trusted-proxy %q is not a network, as 10.0.0.0/8", p)
		}
	}
	return nil
}

// drillEvery is how often a drill is held; 0 for never.
func (c *Config) drillEvery() (time.Duration, error) {
	if c.DrillEvery == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(c.DrillEvery)
	if err != nil || d < time.Minute || d > longestRotation {
		return 0, fmt.Errorf("--drill-every %q is no time between 1m and 8760h", c.DrillEvery)
	}
	return d, nil
}

// drillBound is what a drill may take.
func (c *Config) drillBound() (time.Duration, error) {
	if c.DrillBound == "" {
		return incident.DrillBound, nil
	}
	d, err := time.ParseDuration(c.DrillBound)
	if err != nil || d < time.Millisecond || d > time.Minute {
		return 0, fmt.Errorf("--drill-bound %q is no time between 1ms and 1m", c.DrillBound)
	}
	return d, nil
}

// The bounds of how long a key signs.
const (
	shortestRotation = 24 * time.Hour
	longestRotation  = 365 * 24 * time.Hour
)

// rotation is how long a key signs before its successor takes over.
func (c *Config) rotation() (time.Duration, error) {
	if c.Rotation == "" {
		return seal.Period, nil
	}
	d, err := time.ParseDuration(c.Rotation)
	if err != nil || d < shortestRotation || d > longestRotation {
		return 0, fmt.Errorf("--key-rotation %q is no time between 24h and 8760h", c.Rotation)
	}
	return d, nil
}

// mutual is the issuer as clients reach it that show a certificate: under the
// same name, at the port that is for them. "" if they have none of their own.
func (c *Config) mutual() string {
	if c.MTLS == "" {
		return ""
	}
	u, err := url.Parse(c.Issuer)
	_, port, splitErr := net.SplitHostPort(c.MTLS)
	if err != nil || splitErr != nil {
		panic("server: a configuration that was not checked")
	}
	u.Scheme, u.Host = "https", net.JoinHostPort(u.Hostname(), port)
	return u.String()
}

// vault is the Vault-compatible door as clients reach it at an address of its
// own: under the name of the issuer. "" if it has none.
func (c *Config) vault() string {
	if c.Vault == "" {
		return ""
	}
	u, err := url.Parse(c.Issuer)
	_, port, splitErr := net.SplitHostPort(c.Vault)
	if err != nil || splitErr != nil {
		panic("server: a configuration that was not checked")
	}
	return u.Scheme + "://" + net.JoinHostPort(u.Hostname(), port)
}

// certificates reports whether a client can show a certificate at all.
func (c *Config) certificates() bool { return !c.Plain || c.MTLS != "" || c.ProxyCerts }

// loopback reports whether a host is this machine and nothing else.
func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback()
}

// private makes a directory that only we can enter.
func private(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the directory: %w", err)
	}
	return nil
}
