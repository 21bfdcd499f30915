// Package web is the world around the sample company, in small and on
// loopback: one certificate authority, HTTPS sites under names of their own,
// and an open proxy that leads to them.
//
// The names end in .test, which no resolver knows. A program reaches a site
// by its name only through a proxy that knows where it is: the open one of
// [Web.Proxy], which lets everything through, or a guarded one in its place.
package web

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// A Web is a certificate authority and the sites that have its certificates.
type Web struct {
	// CAFile is the authority's certificate, for whoever has to trust the sites.
	CAFile string

	ca  *x509.Certificate
	key *ecdsa.PrivateKey

	mu    sync.Mutex
	where map[string]string // host:port as in URLs → address on loopback
}

// New makes an authority and writes its certificate to ca.pem in dir.
func New(dir string) (*Web, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := template("Sample authority, for loopback only")
	t.IsCA, t.BasicConstraintsValid, t.KeyUsage = true, true, x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	w := &Web{CAFile: filepath.Join(dir, "ca.pem"), ca: ca, key: key, where: map[string]string{}}
	return w, os.WriteFile(w.CAFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
}

func template(name string) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)) // rand.Reader never fails
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(30 * 24 * time.Hour),
	}
}

// certificate makes the certificate of a site.
func (w *Web) certificate(host string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	t := template(host)
	t.DNSNames = []string{host, "localhost"}
	t.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	der, err := x509.CreateCertificate(rand.Reader, t, w.ca, key.Public(), w.key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// A Site is an HTTPS server on loopback.
type Site struct {
	Host    string // its name, without port
	Address string // where it is: 127.0.0.1:PORT
	URL     string // https://HOST:PORT

	server *http.Server
}

// Serve starts a site under the name host, on the address, or on a free port
// if that is empty.
func (w *Web) Serve(host, address string, h http.Handler) (*Site, error) {
	cert, err := w.certificate(host)
	if err != nil {
		return nil, err
	}
	if address == "" {
		address = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	s := &Site{Host: host, Address: l.Addr().String()}
	_, port, _ := net.SplitHostPort(s.Address) // an address of a listener
	name := net.JoinHostPort(host, port)
	s.URL = "https://" + name
	s.server = &http.Server{
		Handler:           h,
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12},
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          log.New(io.Discard, "", 0), // a client that goes away is no news here
	}
	w.mu.Lock()
	w.where[name] = s.Address
	w.mu.Unlock()
	go func() { _ = s.server.ServeTLS(l, "", "") }() // ends with Close
	return s, nil
}

// Close ends the site and every connection to it.
func (s *Site) Close() error { return s.server.Close() }

// Proxy starts an open proxy: what an agent has when nothing stands between it
// and the world. It knows the sites by name and asks nobody. Its address is a
// URL; close ends it.
func (w *Web) Proxy() (address string, closeProxy func() error, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	srv := &http.Server{Handler: http.HandlerFunc(w.tunnel), ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = srv.Serve(l) }() // ends with Close
	return "http://" + l.Addr().String(), srv.Close, nil
}

func (w *Web) tunnel(rw http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodConnect {
		http.Error(rw, "CONNECT only", http.StatusMethodNotAllowed)
		return
	}
	up, err := w.dial(r.Context(), r.Host)
	if err != nil {
		http.Error(rw, err.Error(), http.StatusBadGateway)
		return
	}
	defer up.Close()
	down, buffered, err := http.NewResponseController(rw).Hijack()
	if err != nil {
		http.Error(rw, err.Error(), http.StatusInternalServerError)
		return
	}
	defer down.Close()
	if _, err := io.WriteString(down, "HTTP/1.1 200 Connected\r\n\r\n"); err != nil {
		return
	}
	done := make(chan struct{}, 2)
	go func() { _, _ = io.Copy(up, buffered); done <- struct{}{} }()
	go func() { _, _ = io.Copy(down, up); done <- struct{}{} }()
	<-done
}

// dial connects to the site of this name.
func (w *Web) dial(ctx context.Context, name string) (net.Conn, error) {
	w.mu.Lock()
	address, ok := w.where[name]
	w.mu.Unlock()
	if !ok {
		return nil, errors.New("no such host: " + name)
	}
	c, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", name, err)
	}
	return c, nil
}
