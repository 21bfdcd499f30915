package engine

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"estover.dev"
)

// ErrConfig is returned for an address or an option that cannot be.
var ErrConfig = &estover.Error{Kind: estover.Invalid, Code: "target_invalid", Detail: "The target cannot be reached like this."}

// ErrTemplate is returned for a template that cannot work.
var ErrTemplate = &estover.Error{Kind: estover.Invalid, Code: "template_invalid", Detail: "The template cannot work."}

// TLSField describes the option tls, which [Config.TLS] reads.
var TLSField = Field{Name: "tls", Help: "verify: with TLS, and the target shows a certificate of its name (always, unless it is on this machine); off: without"}

// TLS gives how to talk to a target that runs on host, by the option tls: with
// a certificate of that name, or nil for no encryption. What goes over the
// network is encrypted, unless the option says otherwise.
func (c Config) TLS(host string) (*tls.Config, error) {
	switch how := c.Options["tls"]; {
	case how == "off", how == "" && loopback(host):
		return nil, nil
	case how != "" && how != "verify":
		return nil, ErrConfig.With("The option tls is verify or off.").At("options.tls")
	}
	t := &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}
	if len(c.Authorities) > 0 {
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(c.Authorities) {
			return nil, ErrConfig.With("There is no certificate in PEM among the authorities.").At("authorities")
		}
	}
	return t, nil
}

// Connect opens a connection, by [Config.Dial] if there is one. Of one answer it reads
// 32 MiB at most.
func (c Config) Connect(ctx context.Context, network, address string) (net.Conn, error) {
	return c.connect(ctx, network, address, false)
}

// ConnectOnce opens a connection for one piece of work, in which answers may come page by
// page. It reads 128 MiB at most.
func (c Config) ConnectOnce(ctx context.Context, network, address string) (net.Conn, error) {
	return c.connect(ctx, network, address, true)
}

func (c Config) connect(ctx context.Context, network, address string, once bool) (net.Conn, error) {
	dial := c.Dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	conn, err := dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return bound(conn, once), nil
}

// loopback reports whether host is this machine.
func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// HostPort takes an address HOST[:PORT] apart.
func HostPort(address string, port int) (string, int, error) {
	host, p, err := net.SplitHostPort(address)
	if err != nil {
		host = strings.TrimSuffix(strings.TrimPrefix(address, "["), "]")
		if strings.Contains(host, ":") {
			if _, err := netip.ParseAddr(host); err != nil {
				host = ""
			}
		}
	} else if port, err = strconv.Atoi(p); err != nil || port < 1 || port > 65535 {
		host = ""
	}
	if host == "" || strings.ContainsAny(host, "/@?# \t\r\n\x00") {
		return "", 0, ErrConfig.With("The address is HOST or HOST:PORT, without a user.").At("address")
	}
	return host, port, nil
}

// Begun is what goes wrong with the later steps of something whose first ones were
// done: it is no [ErrUnreachable], which says that nothing was begun.
func Begun(err error) error {
	if errors.Is(err, ErrUnreachable) {
		return errors.New("after something was begun: " + err.Error())
	}
	return err
}

// Unreachable is the error of a target that could not be worked at for this
// reason, [ErrUnreachable].
func Unreachable(err error) error {
	if errors.Is(err, ErrUnreachable) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnreachable, err)
}
