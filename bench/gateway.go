package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// The sizes of a request's body and of its answer's.
const (
	little = 1 << 10
	much   = 64 << 10
)

// A target is a resource of the gateway's cases.
type target struct {
	name, scheme string
	evidence     string
	class        string // what policy demands for it: the bodies of a confidential one are recorded
	address      string // where the upstream is
	ca           string // PEM; "" without TLS
}

func (t target) url() string { return t.scheme + "://" + t.name + ".example.com" }

// upstreams is the company of the gateway's cases: resources whose calls carry
// an injected key, and an agent that may call them.
func upstreams(targets []target) string {
	documents := `apiVersion: estover.dev/v1
kind: Person
metadata: {name: alice}
spec: {roles: [operator]}
---
apiVersion: estover.dev/v1
kind: Agent
metadata: {name: bot}
spec: {blueprint: support, sponsor: alice, purposes: [support], clearance: confidential}
`
	for _, t := range targets {
		port := map[string]string{"http": "80", "https": "443"}[t.scheme]
		documents += fmt.Sprintf(`---
apiVersion: estover.dev/v1
kind: Secret
metadata: {name: %[1]s/key}
spec: {class: confidential, destinations: ["%[1]s.example.com:%[2]s"]}
---
apiVersion: estover.dev/v1
kind: Resource
metadata: {name: %[1]s}
spec:
  base_url: %[3]s
  address: %[4]s
  allow_private: [127.0.0.0/8]
  class: %[7]s
  evidence: %[5]s
  ca: %[6]q
  slots: [{slot: header, name: Authorization, prefix: "Bearer ", secret: %[1]s/key}]
  actions: [{name: answer.read, method: POST, path: "/{size}", effect: read}]
---
apiVersion: estover.dev/v1
kind: Grant
metadata: {name: bot-%[1]s}
spec: {agent: bot, resource: %[1]s, actions: [answer.read], purposes: [support], class: confidential}
`, t.name, port, t.url(), t.address, t.evidence, t.ca, t.class)
	}
	return documents
}

// gateways compares a call through the gateway with a bare
// httputil.ReverseProxy, under the policy that comes with Estover.
//
//	batched    a reverse route: the token checked, a key injected, both bodies
//	           hashed and searched for the key, the heads recorded, evidence batched
//	strict     with every duty: the bodies recorded as well, each intent committed
//	           before anything is sent
//	tunnelled  the same through the forward proxy, in an intercepted tunnel
func gateways(ctx context.Context, b *Bench) ([]Row, error) {
	up, err := b.startPeer(ctx, "upstream")
	if err != nil {
		return nil, err
	}
	defer up.stop()
	bare, err := b.startPeer(ctx, "proxy", "http://"+up.addr)
	if err != nil {
		return nil, err
	}
	defer bare.stop()
	// The same two over TLS, for the tunnel. Both sides then decrypt and encrypt
	// towards the client and towards the upstream.
	certificate, ca, err := b.certificate("tunnelled.example.com", "localhost")
	if err != nil {
		return nil, err
	}
	upTLS, err := b.startPeer(ctx, "upstream", certificate)
	if err != nil {
		return nil, err
	}
	defer upTLS.stop()
	bareTLS, err := b.startPeer(ctx, "proxy", "https://"+upTLS.addr, certificate)
	if err != nil {
		return nil, err
	}
	defer bareTLS.stop()
	bareTLS.dial = func(ctx context.Context) (net.Conn, error) {
		return (&tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}}).DialContext(ctx, "tcp", bareTLS.addr)
	}
	in, err := b.install(ctx, "")
	if err != nil {
		return nil, err
	}
	defer in.stop()
	targets := []target{
		{"batched", "http", "batched", "internal", up.addr, ""},
		{"strict", "http", "strict", "confidential", up.addr, ""},
		{"tunnelled", "https", "strict", "confidential", upTLS.addr, ca},
	}
	if err := in.apply(ctx, upstreams(targets)); err != nil {
		return nil, err
	}
	for _, t := range targets {
		if _, err := in.estover(ctx, "a key that no answer of the upstream holds", "secret", "put", t.name+"/key"); err != nil {
			return nil, err
		}
	}
	secret, err := in.secret(ctx, "bot")
	if err != nil {
		return nil, err
	}
	text := func(size int) []byte { return bytes.Repeat([]byte(`{"id":12345,"name":"Customer"}, `), size/32) }
	path := func(size int) string { return fmt.Sprintf("/%d", size) }
	head := func(more ...string) map[string]string {
		h := map[string]string{"Content-Type": "application/json"}
		for i := 0; i+1 < len(more); i += 2 {
			h[more[i]] = more[i+1]
		}
		return h
	}
	theirs := func(size int) func() []byte {
		return always(request("POST", path(size), bare.addr, head("Authorization", "Bearer a key"), text(size)))
	}
	var rows []Row
	row := func(name string, target float64, subject, peer *process, mine, theirs func() []byte, against string) error {
		ratio, micros, err := b.versus(ctx, subject, peer, callers, mine, theirs)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		rows = append(rows, Row{Name: name, Ratio: ratio, Target: target, Better: "lower", Against: against, Value: micros, Unit: "µs of CPU a call"})
		return nil
	}
	for _, c := range []struct {
		name    string
		at      target
		size    int
		limit   float64
		against string
	}{
		{"gateway-batched", targets[0], little, 2, "1 KiB each way"},
		{"gateway-batched-64k", targets[0], much, 2.5, "64 KiB each way"},
		{"gateway-strict", targets[1], little, 3, "1 KiB each way"},
	} {
		t := c.at
		token, err := in.ask(ctx, secret, "grant_type", "client_credentials", "resource", t.url())
		if err != nil {
			return nil, err
		}
		mine := always(request("POST", "/u/"+t.name+path(c.size), in.addr, head("Authorization", "Bearer "+token.Access), text(c.size)))
		if err := row(c.name, c.limit, in.process, bare, mine, theirs(c.size), "a bare httputil.ReverseProxy, "+c.against); err != nil {
			return nil, err
		}
	}
	tunnelled := *in.process
	if tunnelled.dial, err = in.tunnel(ctx, "tunnelled.example.com"); err != nil {
		return nil, err
	}
	mine := always(request("POST", path(little), "tunnelled.example.com", head(), text(little)))
	if err := row("gateway-tunnelled", 3, &tunnelled, bareTLS, mine, theirs(little), "a bare httputil.ReverseProxy between TLS and TLS, connections that are open"); err != nil {
		return nil, err
	}
	return rows, nil
}

// tunnel opens a session for the forward proxy, as `estover run` does, and says
// how to connect to a host through it.
func (in *installation) tunnel(ctx context.Context, host string) (func(context.Context) (net.Conn, error), error) {
	cert, sum, err := clientCertificate()
	if err != nil {
		return nil, err
	}
	var opened struct {
		CA string `json:"ca"`
	}
	wish := map[string]any{"agent": "bot", "purpose": "support", "certificate_thumbprint": sum}
	if err := in.call(ctx, http.MethodPost, "/v1/sessions", wish, &opened); err != nil {
		return nil, err
	}
	gateway, session := x509.NewCertPool(), x509.NewCertPool()
	own, err := os.ReadFile(filepath.Join(in.dir, "tls", "ca.crt"))
	if err != nil {
		return nil, err
	}
	if !gateway.AppendCertsFromPEM(own) || !session.AppendCertsFromPEM([]byte(opened.CA)) {
		return nil, errors.New("the server's certificates cannot be read")
	}
	outer := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: gateway, ServerName: "localhost", Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}}
	inner := &tls.Config{RootCAs: session, ServerName: host, NextProtos: []string{"http/1.1"}}
	return func(ctx context.Context) (net.Conn, error) {
		conn, err := (&tls.Dialer{Config: outer}).DialContext(ctx, "tcp", in.gateway)
		if err != nil {
			return nil, err
		}
		if _, err := fmt.Fprintf(conn, "CONNECT %s:443 HTTP/1.1\r\nHost: %[1]s:443\r\n\r\n", host); err != nil {
			return nil, err
		}
		// Nothing follows the answer before we speak, so that it may be read
		// to its end.
		answer := make([]byte, 4096)
		n, err := conn.Read(answer)
		if err != nil {
			return nil, err
		}
		if !bytes.HasPrefix(answer[:n], []byte("HTTP/1.1 200 ")) {
			return nil, fmt.Errorf("the tunnel was refused: %s", answer[:n])
		}
		t := tls.Client(conn, inner)
		return t, t.HandshakeContext(ctx)
	}, nil
}

// clientCertificate makes the key that stands for a session, and its
// thumbprint.
func clientCertificate() (tls.Certificate, string, error) {
	cert, err := selfSigned()
	sum := sha256.Sum256(cert.Certificate[0])
	return cert, base64.RawURLEncoding.EncodeToString(sum[:]), err
}

func selfSigned(names ...string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), DNSNames: names,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// certificate writes a certificate with its key to a file for the peers, and
// gives the certificate alone as PEM.
func (b *Bench) certificate(names ...string) (file, ca string, err error) {
	cert, err := selfSigned(names...)
	if err != nil {
		return "", "", err
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		return "", "", err
	}
	ca = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}))
	if file, err = b.fileIn("peer-*.pem"); err != nil {
		return "", "", err
	}
	both := ca + string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))
	return file, ca, os.WriteFile(file, []byte(both), 0o600)
}
