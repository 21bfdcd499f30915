package edge

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"estover.dev"
)

// ErrAddress is returned for an address that may not be dialled.
var ErrAddress = &estover.Error{Kind: estover.Denied, Code: "address_refused", Detail: "The address may not be reached from here."}

// A Dialer opens connections to other systems. It checks the address of every
// attempt in the moment in which the socket is made for it, which is after the
// name was resolved and for each of the addresses that are tried in parallel
// (gateway.md, C1).
//
// The zero Dialer reaches public addresses.
type Dialer struct {
	// Own are the addresses on which this program listens. They are never
	// dialled.
	Own *Own

	// Timeout is how long one connection may take to be opened. It is ten
	// seconds if it is zero.
	Timeout time.Duration
}

// An Opening is what a resource opens beyond public addresses. Neither part
// opens the addresses of metadata services or our own.
type Opening struct {
	Prefixes []netip.Prefix // addresses, whatever name led to them
	Hosts    []string       // names and addresses, as [Host.Bare] writes them, wherever they lead
}

// opens reports whether the opening contains the address for this host.
func (o Opening) opens(host string, a netip.Addr) bool {
	return slices.ContainsFunc(o.Prefixes, func(p netip.Prefix) bool { return p.Contains(a) }) || slices.Contains(o.Hosts, host)
}

// resolver asks name servers itself, so that there is one set of rules for
// names on every system.
var resolver = &net.Resolver{PreferGo: true}

// Dial opens a TCP connection to "host:port".
func (d *Dialer) Dial(ctx context.Context, address string, open Opening) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, ErrAddress.Because(err)
	}
	dialer := net.Dialer{
		Timeout:   d.Timeout,
		KeepAlive: 30 * time.Second,
		Resolver:  resolver,
		ControlContext: func(_ context.Context, network, address string, _ syscall.RawConn) error {
			return d.check(network, address, host, open)
		},
	}
	if dialer.Timeout == 0 {
		dialer.Timeout = 10 * time.Second
	}
	return dialer.DialContext(ctx, "tcp", address)
}

// check decides about one attempt.
func (d *Dialer) check(network, address, host string, open Opening) error {
	if !strings.HasPrefix(network, "tcp") {
		return ErrAddress.With("Only TCP may be dialled, not %s.", network)
	}
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return ErrAddress.Because(err)
	}
	a := to.Addr()
	if a.Zone() != "" {
		return ErrAddress.With("%s has a zone, so it is an address of this machine's own links.", a)
	}
	a = a.Unmap()
	if d.Own.Has(netip.AddrPortFrom(a, to.Port())) {
		return ErrAddress.With("%s is a listener of this program.", to)
	}
	inside := inner(a)
	for _, x := range []netip.Addr{a, inside} {
		if slices.Contains(never, x) {
			return ErrAddress.With("%s belongs to a metadata service; it can never be opened.", x)
		}
	}
	if !special(a) && !special(inside) || open.opens(host, a) {
		return nil
	}
	return ErrAddress.With("%s is not a public address; if %s is meant to be there, its resource must open it.", a, host)
}

// never are the addresses that hand out a machine's own credentials, or stand
// for its host.
var never = addrs("169.254.169.254", "169.254.170.2", "169.254.170.23", "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254",
	"168.63.129.16", "100.100.100.200", "192.0.0.192")

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// The IANA registries of special-purpose addresses, without those that are
// globally reachable.
var (
	special4 = prefixes("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
		"192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24",
		"203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4")
	special6 = prefixes("::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "100:0:0:1::/64", "2001::/23",
		"2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8")
)

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// special reports whether the address is in the registries. No address is.
func special(a netip.Addr) bool {
	list := special6
	if a.Is4() {
		list = special4
	}
	return a.IsValid() && slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

var (
	nat64 = prefixes("64:ff9b::/96", "64:ff9b:1::/48")
	sixTo = netip.MustParsePrefix("2002::/16")
	tered = netip.MustParsePrefix("2001::/32")
	v4in6 = prefixes("::/96", "::ffff:0:0/96")
)

// inner is the IPv4 address that a transition address leads to, if it is one.
func inner(a netip.Addr) netip.Addr {
	if !a.Is6() {
		return netip.Addr{}
	}
	b := a.As16()
	switch {
	case nat64[0].Contains(a), nat64[1].Contains(a), v4in6[0].Contains(a), v4in6[1].Contains(a):
		return netip.AddrFrom4([4]byte(b[12:16]))
	case sixTo.Contains(a):
		return netip.AddrFrom4([4]byte(b[2:6]))
	case tered.Contains(a):
		return netip.AddrFrom4([4]byte{^b[12], ^b[13], ^b[14], ^b[15]})
	}
	return netip.Addr{}
}

// Own is the set of addresses on which this program listens. A nil set is
// empty.
type Own struct {
	mu   sync.RWMutex
	list []netip.AddrPort
}

// Add adds the address of a listener.
func (o *Own) Add(a net.Addr) {
	at, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.list = append(o.list, netip.AddrPortFrom(at.Addr().Unmap().WithZone(""), at.Port()))
}

// Has reports whether a connection to the address would reach a listener of
// the set. A listener on the unspecified address is reached by every address
// of this machine.
func (o *Own) Has(to netip.AddrPort) bool {
	if o == nil {
		return false
	}
	o.mu.RLock()
	defer o.mu.RUnlock()
	return slices.ContainsFunc(o.list, func(at netip.AddrPort) bool {
		return at.Port() == to.Port() && (at.Addr() == to.Addr() || to.Addr().IsUnspecified() || at.Addr().IsUnspecified() && ours(to.Addr()))
	})
}

// ours reports whether the address is one of this machine's. If that cannot be
// found out, it is.
func ours(a netip.Addr) bool {
	if a.IsLoopback() || a.IsUnspecified() {
		return true
	}
	list, err := net.InterfaceAddrs()
	if err != nil {
		return true
	}
	return slices.ContainsFunc(list, func(n net.Addr) bool {
		p, err := netip.ParsePrefix(n.String())
		return err == nil && p.Addr().Unmap() == a
	})
}
