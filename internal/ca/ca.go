// Package ca is the door at which everybody learns which certificates hold: what
// an authority publishes needs no token, since those who check a certificate have
// none.
//
//	GET  {issuer}/pki/{id}/ca          the authority's certificate, DER; ca.pem in PEM
//	GET  {issuer}/pki/{id}/bundle.pem  all generations of it and those above them
//	GET  {issuer}/pki/{id}/crl         the revocation list (RFC 5280), DER; crl.pem in PEM
//	POST {issuer}/pki/{id}/ocsp        a question of RFC 6960
//	GET  {issuer}/pki/{id}/ocsp/{q}    the same in base64 (RFC 6960, appendix A.1)
//	GET  {issuer}/pki/{id}/ssh.pub     the public keys of an authority for SSH, all generations
//	GET  {issuer}/pki/{id}/krl         its revocation list, for sshd's RevokedKeys
//
// The id of an authority cannot be guessed, and stands in every certificate that it
// has signed. Of one that another tenant has nothing is said.
package ca

import (
	"context"
	"encoding/base64"
	"encoding/pem"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/edge"
	"estover.dev/internal/pki"
)

// A Door answers for the authorities of all tenants.
type Door struct {
	PKI *pki.PKI
	// Base is the path of the issuer, and Tenants that of tenants below it.
	Base, Tenants string
	// Known says why there is no such tenant, or why it may do nothing.
	Known  func(ctx context.Context, tenant estover.TenantID) error
	Logger *slog.Logger
}

// Matches reports whether a request is for the door. Questions in a path may hold
// two slashes in a row, which nothing else here has.
func (d *Door) Matches(r *http.Request) bool {
	_, rest, ok := d.place(r.URL.EscapedPath())
	return ok && strings.Contains(rest, "/")
}

// place is the tenant that a path names, and what follows.
func (d *Door) place(path string) (tenant estover.TenantID, rest string, ok bool) {
	if path, ok = strings.CutPrefix(path, d.Base); !ok {
		return "", "", false
	}
	if rest, ok := strings.CutPrefix(path, pki.Path); ok {
		return estover.DefaultTenant, rest, true
	}
	if path, ok = strings.CutPrefix(path, d.Tenants); !ok {
		return "", "", false
	}
	name, path, _ := strings.Cut(path, "/")
	if rest, ok = strings.CutPrefix("/"+path, pki.Path); !ok || estover.TenantID(name) == estover.DefaultTenant { // which has one name, and that is none
		return "", "", false
	}
	return estover.TenantID(name), rest, true
}

var errNothing = &estover.Error{Kind: estover.NotFound, Code: "no_such_path", Detail: "There is nothing here."}

// ServeHTTP answers a request that matches.
func (d *Door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	tenant, rest, _ := d.place(r.URL.EscapedPath())
	if err := d.serve(w, r, tenant, rest); err != nil {
		p := edge.ProblemOf(err, edge.OriginOf(r).Request)
		if p.Status >= 500 {
			d.Logger.Error("what an authority publishes could not be given", "error", err)
		}
		edge.WriteProblem(w, p)
	}
}

func (d *Door) serve(w http.ResponseWriter, r *http.Request, tenant estover.TenantID, rest string) error {
	ctx := r.Context()
	if tenant != estover.DefaultTenant {
		if err := d.Known(ctx, tenant); err != nil {
			return err
		}
	}
	id, what, _ := strings.Cut(rest, "/")
	what, question, asked := strings.Cut(what, "/")
	get := r.Method == http.MethodGet || r.Method == http.MethodHead
	if what == "ocsp" && (asked && get || !asked && r.Method == http.MethodPost) {
		return d.ocsp(w, r, tenant, id, question)
	}
	if asked || !get {
		return errNothing
	}
	a, err := d.PKI.Published(ctx, tenant, id)
	if err != nil {
		return err
	}
	switch what {
	case "ca", "ca.pem", "bundle.pem", "crl", "crl.pem":
		if a.Kind != pki.X509 {
			return errNothing
		}
	case "ssh.pub", "krl":
		if a.Kind != pki.SSH {
			return errNothing
		}
	}
	switch what {
	case "ca":
		return give(w, "application/pkix-cert", a.Certificate().Raw, time.Hour)
	case "ca.pem":
		return give(w, "application/pem-certificate-chain", []byte(a.PEM), time.Hour)
	case "bundle.pem", "ssh.pub":
		bundle, err := d.PKI.Bundle(ctx, tenant, a)
		if err != nil {
			return err
		}
		kind := "application/pem-certificate-chain"
		if what == "ssh.pub" {
			kind = "text/plain; charset=utf-8"
		}
		return give(w, kind, []byte(bundle), time.Minute)
	case "crl", "crl.pem":
		list, err := d.PKI.CRL(ctx, tenant, id)
		if err != nil {
			return err
		}
		if what == "crl.pem" {
			return give(w, "application/x-pem-file", pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: list.DER}), time.Minute)
		}
		return give(w, "application/pkix-crl", list.DER, time.Minute)
	case "krl":
		list, err := d.PKI.KRL(ctx, tenant, id)
		if err != nil {
			return err
		}
		return give(w, "application/octet-stream", list, 0)
	}
	return errNothing
}

func (d *Door) ocsp(w http.ResponseWriter, r *http.Request, tenant estover.TenantID, id, question string) error {
	var q []byte
	var err error
	if r.Method == http.MethodPost {
		if q, err = io.ReadAll(http.MaxBytesReader(w, r.Body, 16<<10)); err != nil {
			return pki.ErrInvalid.With("A question about a certificate has at most 16 KiB.")
		}
	} else {
		if question, err = url.PathUnescape(question); err == nil {
			q, err = base64.StdEncoding.DecodeString(question)
		}
		if err != nil {
			q = nil // which is answered as malformed
		}
	}
	answer, err := d.PKI.OCSP(r.Context(), tenant, q, id)
	if err != nil {
		return err
	}
	return give(w, "application/ocsp-response", answer, time.Minute)
}

// give answers with what may be kept for a while.
func give(w http.ResponseWriter, kind string, b []byte, keep time.Duration) error {
	h := w.Header()
	h.Set("Content-Type", kind)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "public, max-age="+strconv.FormatInt(int64(keep/time.Second), 10))
	if keep == 0 {
		h.Set("Cache-Control", "no-cache")
	}
	_, _ = w.Write(b)
	return nil
}
