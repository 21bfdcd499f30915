package edge

import (
	"net"
	"net/netip"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"

	"estover.dev"
)

// ErrHost is returned for a host that cannot be read in exactly one way.
var ErrHost = &estover.Error{Kind: estover.Invalid, Code: "host_invalid", Detail: "The host is not a plain name or address."}

// A Host is where a request goes. Two hosts are the same place for policy if
// and only if they are equal.
type Host struct {
	Name string     // in lower case and A-labels; "" if it is an address
	IP   netip.Addr // without a zone, and IPv4 never inside IPv6
	Port uint16
}

// ParseHost reads "host" or "host:port"; port stands in where none is given,
// and is zero if one must be. It refuses what parsers are known to read
// differently: a trailing dot, user information, percent signs, zones, IPv4 in
// any form but four decimals, IPv4 inside IPv6 (gateway.md, C3 and P22).
func ParseHost(s string, port uint16) (Host, error) {
	host := s
	if strings.HasPrefix(s, "[") {
		end := strings.IndexByte(s, ']')
		if end < 0 {
			return Host{}, ErrHost.With("The host %q has no closing bracket.", s)
		}
		host = s[:end+1]
	} else if colon := strings.IndexByte(s, ':'); colon >= 0 {
		host = s[:colon]
	}
	switch rest := s[len(host):]; {
	case rest == "" && port == 0:
		return Host{}, ErrHost.With("The host %q has no port.", s)
	case rest != "":
		var ok bool
		if port, ok = parsePort(rest); !ok {
			return Host{}, ErrHost.With("The host %q has no plain port.", s)
		}
	}
	if host != "" && host[0] == '[' {
		a, err := netip.ParseAddr(host[1 : len(host)-1])
		if err != nil || !a.Is6() || a.Is4In6() || a.Zone() != "" {
			return Host{}, ErrHost.With("%q is not a plain IPv6 address.", host)
		}
		return Host{IP: a, Port: port}, nil
	}
	name := host
	if !plainName(name) {
		var err error
		if name, err = idna.Lookup.ToASCII(host); err != nil || !validName(name) || !utf8.ValidString(host) {
			return Host{}, ErrHost.With("%q is not a host name.", host)
		}
		// What it is written as is what whoever reads that has, too.
		if again, err := idna.Lookup.ToASCII(name); err != nil || again != name {
			return Host{}, ErrHost.With("%q is not a host name.", host)
		}
	}
	if numeric(name[strings.LastIndexByte(name, '.')+1:]) {
		a, err := netip.ParseAddr(name)
		if err != nil || !a.Is4() {
			return Host{}, ErrHost.With("%q is not an IPv4 address of four decimals.", host)
		}
		return Host{IP: a, Port: port}, nil
	}
	return Host{Name: name, Port: port}, nil
}

// parsePort reads ":1" to ":65535", without leading zeros.
func parsePort(s string) (uint16, bool) {
	if len(s) < 2 || len(s) > 6 || s[0] != ':' || s[1] == '0' {
		return 0, false
	}
	n := 0
	for _, c := range []byte(s[1:]) {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return uint16(n), n <= 0xFFFF
}

// plainName reports whether the name is what [idna.Lookup] would make of it,
// without asking. It may say no to a name that is.
func plainName(name string) bool {
	return validName(name) && !strings.Contains(name, "--")
}

// validName reports whether the name is made of labels of lower-case letters,
// digits and hyphens, none too long.
func validName(name string) bool {
	if name == "" || len(name) > 253 {
		return false
	}
	label := 0
	for i := range len(name) {
		switch c := name[i]; {
		case c == '.':
			if label == 0 || name[i-1] == '-' {
				return false
			}
			label = 0
			continue
		case c == '-' && label == 0:
			return false
		case c == '-', 'a' <= c && c <= 'z', '0' <= c && c <= '9':
		default:
			return false
		}
		if label++; label > 63 {
			return false
		}
	}
	return label > 0 && name[len(name)-1] != '-'
}

// numeric reports whether the last label of a name makes some parsers take
// the whole for a number.
func numeric(label string) bool {
	if strings.HasPrefix(label, "0x") {
		return strings.Trim(label[2:], "0123456789abcdef") == ""
	}
	return strings.Trim(label, "0123456789") == ""
}

// Bare is the host without the port, and IPv6 without brackets.
func (h Host) Bare() string {
	if h.Name != "" {
		return h.Name
	}
	return h.IP.String()
}

// String is "host:port", as it is dialled.
func (h Host) String() string {
	var room [5]byte
	return net.JoinHostPort(h.Bare(), string(strconv.AppendUint(room[:0], uint64(h.Port), 10)))
}

// Authority is the host as it stands in a Host header: with its port unless
// that is the scheme's own.
func (h Host) Authority(scheme string) string {
	if h.Port != DefaultPort(scheme) {
		return h.String()
	}
	if h.IP.Is6() {
		return "[" + h.IP.String() + "]"
	}
	return h.Bare()
}

// DefaultPort is the port of "http" or "https", and zero otherwise.
func DefaultPort(scheme string) uint16 {
	switch scheme {
	case "http":
		return 80
	case "https":
		return 443
	}
	return 0
}
