package edge_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"estover.dev/internal/edge"
)

// An address is judged where it is dialled: the registries of special purpose
// are closed, transition addresses are judged by what they lead to, metadata
// services and our own listeners are never opened.
func TestC1SpecialAddressesAreRefused(t *testing.T) {
	var d edge.Dialer
	refused := []string{
		"0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.8.9.10", "169.254.1.1",
		"172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.2.1", "192.168.1.1", "198.18.0.1", "198.19.255.255",
		"198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
		"::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254",
		"64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::a00:1", "100::1", "2001:db8::1", "2002:7f00:1::", "2002:808:808::1",
		"2001:0:4136:e378:8000:63bf:3fff:fdd2", "3fff::1", "fc00::1", "fd12:3456::1", "fe80::1", "fec0::1", "ff02::1",
		"169.254.169.254", "169.254.170.2", "fd00:ec2::254", "168.63.129.16", "100.100.100.200",
	}
	for _, a := range refused {
		if err := edge.Check(&d, "tcp", net.JoinHostPort(a, "443"), "upstream.example", edge.Opening{}); !errors.Is(err, edge.ErrAddress) {
			t.Errorf("%s may be dialled: %v", a, err)
		}
	}
	for _, a := range []string{
		"8.8.8.8", "1.1.1.1", "100.63.255.255", "100.128.0.1", "172.15.255.255", "172.32.0.1", "192.0.1.1",
		"198.17.255.255", "198.20.0.1", "223.255.255.255", "::ffff:8.8.8.8", "2606:4700::1111", "2a00:1450::1",
	} {
		if err := edge.Check(&d, "tcp", net.JoinHostPort(a, "443"), "upstream.example", edge.Opening{}); err != nil {
			t.Errorf("the public address %s may not be dialled: %v", a, err)
		}
	}
	if err := edge.Check(&d, "tcp6", "[fe80::1%eth0]:443", "upstream.example", edge.Opening{Prefixes: []netip.Prefix{netip.MustParsePrefix("fe80::/10")}}); !errors.Is(err, edge.ErrAddress) {
		t.Errorf("an address with a zone may be dialled: %v", err)
	}
	if err := edge.Check(&d, "udp4", "8.8.8.8:53", "upstream.example", edge.Opening{}); !errors.Is(err, edge.ErrAddress) {
		t.Errorf("UDP may be dialled: %v", err)
	}
}

func TestC1OpeningsNeverReachMetadata(t *testing.T) {
	var d edge.Dialer
	everything := edge.Opening{
		Prefixes: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")},
		Hosts:    []string{"crm.internal"},
	}
	for _, a := range []string{"10.0.0.1", "127.0.0.1", "::1", "fd12:3456::1", "64:ff9b::a00:1"} {
		if err := edge.Check(&d, "tcp", net.JoinHostPort(a, "443"), "crm.internal", everything); err != nil {
			t.Errorf("%s was opened but may not be dialled: %v", a, err)
		}
	}
	for _, a := range []string{
		"169.254.169.254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "::169.254.169.254",
		"2001:0:0:0:0:0:5601:5601", "169.254.170.2", "fd00:ec2::254", "168.63.129.16", "100.100.100.200",
	} {
		if err := edge.Check(&d, "tcp", net.JoinHostPort(a, "80"), "crm.internal", everything); !errors.Is(err, edge.ErrAddress) {
			t.Errorf("the metadata address %s was opened: %v", a, err)
		}
	}
	// An opening by name is for that name alone.
	byName := edge.Opening{Hosts: []string{"crm.internal"}}
	if err := edge.Check(&d, "tcp", "10.0.0.1:443", "crm.internal", byName); err != nil {
		t.Errorf("the opened host may not be dialled: %v", err)
	}
	if err := edge.Check(&d, "tcp", "10.0.0.1:443", "evil.example", byName); !errors.Is(err, edge.ErrAddress) {
		t.Errorf("another host was opened along with it: %v", err)
	}
}

// A name that leads to a loopback address is refused after it was resolved, and
// our own listener also when loopback is open.
func TestC1IsCheckedAfterResolving(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()

	var d edge.Dialer
	for _, host := range []string{"localhost", "127.0.0.1"} {
		if c, err := d.Dial(ctx, net.JoinHostPort(host, port), edge.Opening{}); !errors.Is(err, edge.ErrAddress) {
			t.Errorf("dialling %s: %v, %v, want it refused", host, c, err)
		}
	}
	open := edge.Opening{Hosts: []string{"localhost"}}
	c, err := d.Dial(ctx, net.JoinHostPort("localhost", port), open)
	if err != nil {
		t.Fatalf("dialling the opened host: %v", err)
	}
	c.Close()

	var own edge.Own
	own.Add(ln.Addr())
	d.Own = &own
	if c, err := d.Dial(ctx, net.JoinHostPort("localhost", port), open); !errors.Is(err, edge.ErrAddress) || !strings.Contains(err.Error(), "listener of this program") {
		t.Errorf("dialling our own listener: %v, %v, want it refused", c, err)
	}
}

func TestOwn(t *testing.T) {
	var own edge.Own
	own.Add(&net.TCPAddr{IP: net.IPv6unspecified, Port: 8443})
	own.Add(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9000})
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		p := netip.MustParsePrefix(a.String()).Addr().WithZone("")
		if !own.Has(netip.AddrPortFrom(p, 8443)) {
			t.Errorf("%s is an address of this machine, but a listener on all of them is not reached by it", p)
		}
	}
	for addr, want := range map[string]bool{
		"127.0.0.1:8443": true, "127.0.0.2:8443": true, "0.0.0.0:8443": true, "8.8.8.8:8443": false, "127.0.0.1:8444": false,
		"127.0.0.1:9000": true, "127.0.0.2:9000": false, "0.0.0.0:9000": true,
	} {
		if got := own.Has(netip.MustParseAddrPort(addr)); got != want {
			t.Errorf("%s is ours: %v, want %v", addr, got, want)
		}
	}
}
