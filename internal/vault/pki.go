package vault

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/pki"
)

func (d *Door) pkiRoutes() []Route {
	route := func(r Route) Route { r.Mount = "pki"; return r }
	all := []Route{
		route(Route{Path: "roles", List: d.listCertRoles(pki.X509), Help: "the roles"}),
		route(Route{Path: "roles/:name", Read: d.readPKIRole, Write: d.putPKIRole, Patch: d.putPKIRole, Delete: d.dropCertRole(pki.X509), Exists: d.certRoleThere(pki.X509), Help: "a role: what may be in a certificate"}),
		route(Route{Path: "root", Delete: d.dropAuthorities, Sudo: true, Help: "every authority of the mount with its key"}),
		route(Route{Path: "root/replace", Write: d.setDefault("next"), Help: "the authority that signs where none is named"}),
		route(Route{Path: "intermediate/set-signed", Write: d.importIssuers("certificate", true), Help: "certificates of authorities whose keys are here"}),
		route(Route{Path: "issuers", List: d.listIssuers, Open: true, Help: "the authorities"}),
		route(Route{Path: "issuers/import/:kind", Write: d.importIssuers("pem_bundle", false), Help: "authorities of elsewhere"}),
		route(Route{Path: "config/ca", Write: d.importIssuers("pem_bundle", true), Help: "an authority of elsewhere"}),
		route(Route{Path: "config/issuers", Read: d.readDefault, Write: d.setDefault("default"), Help: "the authority that signs where none is named"}),
		route(Route{Path: "config/keys", Read: d.readDefaultKey, Write: d.setDefaultKey, Help: "the key that is used where none is named"}),
		route(Route{Path: "issuer/:ref", Read: d.readIssuer, Write: d.editIssuer, Patch: d.editIssuer, Delete: d.dropIssuer, Help: "an authority"}),
		route(Route{Path: "issuer/:ref/revoke", Write: d.revokeIssuer, Help: "end an authority"}),
		route(Route{Path: "keys", List: d.listAuthorityKeys, Help: "the keys of authorities"}),
		route(Route{Path: "keys/import", Write: d.importAuthorityKey, Help: "a key of elsewhere"}),
		route(Route{Path: "keys/generate/:type", Write: d.generateAuthorityKey, Help: "a key that no authority has yet"}),
		route(Route{Path: "key/:ref", Read: d.readAuthorityKey, Write: d.renameAuthorityKey, Delete: d.dropAuthorityKey, Help: "a key"}),
		route(Route{Path: "revoke", Write: d.revokeCertificate, Help: "take a certificate back"}),
		route(Route{Path: "revoke-with-key", Write: d.revokeCertificate, Help: "take a certificate back that one has the key of"}),
		route(Route{Path: "certs", List: d.listCertificates(false), Help: "serial numbers"}),
		route(Route{Path: "certs/revoked", List: d.listCertificates(true), Help: "serial numbers of what was revoked"}),
		route(Route{Path: "cert/:serial", Read: d.readCertificate, Open: true, Help: "a certificate, by its serial number"}),
		route(Route{Path: "cert/:serial/raw", Read: d.rawCertificate(false), Open: true, Help: "the same, DER"}),
		route(Route{Path: "cert/:serial/raw/pem", Read: d.rawCertificate(true), Open: true, Help: "the same, PEM"}),
		route(Route{Path: "ca", Read: d.rawIssuer("der"), Open: true, Help: "the authority's certificate, DER"}),
		route(Route{Path: "ca/pem", Read: d.rawIssuer("pem"), Open: true, Help: "the authority's certificate, PEM"}),
		route(Route{Path: "ca_chain", Read: d.rawIssuer("chain"), Open: true, Help: "and those above it"}),
		route(Route{Path: "crl", Read: d.rawList("der"), Open: true, Help: "the revocation list, DER"}),
		route(Route{Path: "crl/pem", Read: d.rawList("pem"), Open: true, Help: "the revocation list, PEM"}),
		route(Route{Path: "crl/rotate", Read: d.rotateList, Write: d.rotateList, Help: "sign the revocation list anew"}),
		route(Route{Path: "issuer/:ref/crl", Read: d.rawList("json"), Open: true, Help: "the revocation list of an authority"}),
		route(Route{Path: "issuer/:ref/crl/pem", Read: d.rawList("pem"), Open: true, Help: "the same, PEM"}),
		route(Route{Path: "issuer/:ref/crl/der", Read: d.rawList("der"), Open: true, Help: "the same, DER"}),
		route(Route{Path: "issuer/:ref/json", Read: d.jsonIssuer, Open: true, Help: "the certificate of an authority"}),
		route(Route{Path: "issuer/:ref/pem", Read: d.rawIssuer("pem"), Open: true, Help: "the same, PEM"}),
		route(Route{Path: "issuer/:ref/der", Read: d.rawIssuer("der"), Open: true, Help: "the same, DER"}),
		route(Route{Path: "ocsp", Write: d.ocsp, Open: true, Binary: true, Help: "a question of RFC 6960"}),
		route(Route{Path: "ocsp/*question", Read: d.ocsp, Open: true, Help: "a question of RFC 6960, in base64"}),
		route(Route{Path: "tidy", Write: d.tidyCertificates, Help: "forget what has long ended; that is done by itself"}),
		route(Route{Path: "tidy-status", Read: d.tidiedCertificates, Help: "how that went"}),
		route(Route{Path: "tidy-cancel", Write: d.tidiedCertificates, Help: "it is done in one step"}),
	}
	for _, p := range []string{"", "issuer/:ref/"} {
		all = append(all,
			route(Route{Path: p + "issue/:role", Write: d.issueCertificate, Help: "make a key and certify it"}),
			route(Route{Path: p + "sign/:role", Write: d.signCertificate, Help: "certify the key of a request"}),
			route(Route{Path: p + "sign-verbatim", Write: d.signVerbatim, Help: "certify a request as it is"}),
			route(Route{Path: p + "sign-verbatim/:role", Write: d.signVerbatim, Help: "certify a request as it is"}),
			route(Route{Path: p + "sign-intermediate", Write: d.signIntermediate, Help: "certify an authority whose key is elsewhere"}))
	}
	all = append(all, route(Route{Path: "root/sign-intermediate", Write: d.signIntermediate, Help: "certify an authority whose key is elsewhere"}))
	for _, p := range []string{"root/generate/:type", "root/rotate/:type", "issuers/generate/root/:type"} {
		all = append(all, route(Route{Path: p, Write: d.generateRoot, Help: "make an authority that signs itself"}))
	}
	for _, p := range []string{"intermediate/generate/:type", "issuers/generate/intermediate/:type"} {
		all = append(all, route(Route{Path: p, Write: d.generateIntermediate, Help: "a request for the certificate of an authority"}))
	}
	for name, usual := range pkiSettings {
		read, write := d.pkiSetting(name, usual)
		all = append(all, route(Route{Path: "config/" + name, Read: read, Write: write, Patch: write, Help: "settings of the mount"}))
	}
	return all
}

// pkiSettings are the settings of a mount that are kept as they are written, with
// what they are before anybody writes one.
var pkiSettings = map[string]map[string]any{
	"urls": {"issuing_certificates": []string{}, "crl_distribution_points": []string{}, "ocsp_servers": []string{}, "enable_templating": false},
	"crl": {
		"expiry": "24h", "disable": false, "ocsp_disable": false, "ocsp_expiry": "10m", "auto_rebuild": true, "auto_rebuild_grace_period": "12h", "enable_delta": false,
		"delta_rebuild_interval": "15m", "cross_cluster_revocation": false, "unified_crl": false, "unified_crl_on_existing_paths": false,
	},
	"cluster": {"path": "", "aia_path": ""},
	"auto-tidy": {
		"enabled": true, "interval_duration": 600, "tidy_cert_store": true, "tidy_revoked_certs": true, "tidy_revoked_cert_issuer_associations": false, "tidy_expired_issuers": false,
		"tidy_move_legacy_ca_bundle": false, "tidy_acme": false, "acme_account_safety_buffer": 2592000, "safety_buffer": 259200, "issuer_safety_buffer": 31536000, "pause_duration": "0s",
		"tidy_revocation_queue": false, "revocation_queue_safety_buffer": 172800, "tidy_cross_cluster_revoked_certs": false, "maintain_stored_certificate_counts": false, "publish_stored_certificate_count_metrics": false,
	},
}

// pkiSetting reads and writes a setting: what is written reads back as it is, in the
// type that the setting has.
func (d *Door) pkiSetting(name string, usual map[string]any) (read, write Handler) {
	get := func(ctx context.Context, q *Request) (map[string]any, error) {
		all := map[string]any{}
		for k, v := range usual {
			all[k] = v
		}
		kept := map[string]any{}
		if _, err := d.PKI.Setting(ctx, q.Caller, q.Mount.ID, name, &kept); err != nil {
			return nil, err
		}
		for k, v := range kept {
			all[k] = v
		}
		return all, nil
	}
	read = func(ctx context.Context, q *Request) (*Answer, error) {
		all, err := get(ctx, q)
		return &Answer{Data: all}, err
	}
	write = func(ctx context.Context, q *Request) (*Answer, error) {
		all, err := get(ctx, q)
		if err != nil {
			return nil, err
		}
		for k, raw := range q.given() {
			was, known := usual[k]
			if !known {
				q.Warn("the field %s is not known and was ignored", k)
				continue
			}
			switch was.(type) {
			case []string:
				var in struct {
					V []string `json:"v"`
				}
				if err := weakField(raw, &in.V); err != nil {
					return nil, refuse(http.StatusBadRequest, "Field validation failed: error converting input for field %q: %s", k, err)
				}
				for _, one := range in.V {
					if u, err := url.Parse(one); err != nil || u.Scheme == "" || u.Host == "" {
						return nil, refuse(http.StatusBadRequest, "invalid URL found in %s", k)
					}
				}
				all[k] = words(in.V)
			case bool:
				var b bool
				if err := weakField(raw, &b); err != nil {
					return nil, refuse(http.StatusBadRequest, "Field validation failed: error converting input for field %q: %s", k, err)
				}
				all[k] = b
			case int:
				var n time.Duration
				if err := weakField(raw, &n); err != nil {
					return nil, refuse(http.StatusBadRequest, "Field validation failed: error converting input for field %q: %s", k, err)
				}
				all[k] = seconds(n)
			default:
				var s string
				if err := weakField(raw, &s); err != nil {
					return nil, refuse(http.StatusBadRequest, "Field validation failed: error converting input for field %q: %s", k, err)
				}
				all[k] = s
			}
		}
		q.Data() // its names were looked at
		if err := d.PKI.Set(ctx, q.Caller, q.Mount.ID, name, all); err != nil {
			return nil, err
		}
		return &Answer{Data: all}, nil
	}
	return read, write
}

func (d *Door) certRoleThere(kind pki.Kind) func(context.Context, *Request) (bool, error) {
	return func(ctx context.Context, q *Request) (bool, error) {
		return d.PKI.RoleExists(ctx, q.Tenant, q.Mount.ID, kind, q.Param("name"))
	}
}

func (d *Door) listCertRoles(kind pki.Kind) Handler {
	return func(ctx context.Context, q *Request) (*Answer, error) {
		list, err := d.PKI.Roles(ctx, q.Caller, q.Mount.ID, kind)
		if err != nil {
			return nil, err
		}
		var names []string
		info := map[string]any{}
		for _, r := range list {
			names = append(names, r.Name)
			info[r.Name] = map[string]string{"key_type": "ca"}
		}
		if kind == pki.SSH {
			return listing(names, map[string]any{"key_info": info})
		}
		return listing(names, nil)
	}
}

func (d *Door) dropCertRole(kind pki.Kind) Handler {
	return func(ctx context.Context, q *Request) (*Answer, error) {
		return nil, d.PKI.RemoveRole(ctx, q.Caller, q.Mount.ID, kind, q.Param("name"))
	}
}

// A pkiRole is a role as clients know it: it reads back as it was written.
type pkiRole struct {
	IssuerRef     string     `json:"issuer_ref"`
	TTL           ttlSeconds `json:"ttl"`
	MaxTTL        ttlSeconds `json:"max_ttl"`
	Localhost     bool       `json:"allow_localhost"`
	Domains       []string   `json:"allowed_domains"`
	DomainsT      bool       `json:"allowed_domains_template"`
	Bare          bool       `json:"allow_bare_domains"`
	Subdomains    bool       `json:"allow_subdomains"`
	Globs         bool       `json:"allow_glob_domains"`
	Wildcards     bool       `json:"allow_wildcard_certificates"`
	AnyName       bool       `json:"allow_any_name"`
	Hostnames     bool       `json:"enforce_hostnames"`
	IPs           bool       `json:"allow_ip_sans"`
	URIs          []string   `json:"allowed_uri_sans"`
	URIsT         bool       `json:"allowed_uri_sans_template"`
	Others        []string   `json:"allowed_other_sans"`
	Serials       []string   `json:"allowed_serial_numbers"`
	UserIDs       []string   `json:"allowed_user_ids"`
	Server        bool       `json:"server_flag"`
	Client        bool       `json:"client_flag"`
	CodeSigning   bool       `json:"code_signing_flag"`
	Email         bool       `json:"email_protection_flag"`
	KeyType       string     `json:"key_type"`
	KeyBits       int64      `json:"key_bits"`
	SignatureBits int64      `json:"signature_bits"`
	PSS           bool       `json:"use_pss"`
	KeyUsage      []string   `json:"key_usage"`
	ExtKeyUsage   []string   `json:"ext_key_usage"`
	ExtOIDs       []string   `json:"ext_key_usage_oids"`
	CSRCommonName bool       `json:"use_csr_common_name"`
	CSRSANs       bool       `json:"use_csr_sans"`
	OU            []string   `json:"ou"`
	Organization  []string   `json:"organization"`
	Country       []string   `json:"country"`
	Locality      []string   `json:"locality"`
	Province      []string   `json:"province"`
	Street        []string   `json:"street_address"`
	PostalCode    []string   `json:"postal_code"`
	Lease         bool       `json:"generate_lease"`
	NoStore       bool       `json:"no_store"`
	RequireCN     bool       `json:"require_cn"`
	CNChecks      []string   `json:"cn_validations"`
	Policies      []string   `json:"policy_identifiers"`
	NotCA         bool       `json:"basic_constraints_valid_for_non_ca"`
	NotBefore     ttlSeconds `json:"not_before_duration"`
	NotAfter      string     `json:"not_after"`
	Resource      string     `json:"resource,omitempty"`
	Action        string     `json:"action,omitempty"`
}

func (d *Door) readPKIRole(ctx context.Context, q *Request) (*Answer, error) {
	r, err := d.PKI.Role(ctx, q.Caller, q.Mount.ID, pki.X509, q.Param("name"))
	if err != nil {
		return nil, err
	}
	return &Answer{Data: r.Beside}, nil
}

func (d *Door) putPKIRole(ctx context.Context, q *Request) (*Answer, error) {
	r := pkiRole{
		IssuerRef: "default", Localhost: true, Wildcards: true, Hostnames: true, IPs: true, Server: true, Client: true, KeyType: "rsa", CSRCommonName: true, CSRSANs: true, RequireCN: true,
		KeyUsage: []string{"DigitalSignature", "KeyAgreement", "KeyEncipherment"}, CNChecks: []string{"email", "hostname"}, NotBefore: 30,
	}
	if q.Op == Patch {
		old, err := d.PKI.Role(ctx, q.Caller, q.Mount.ID, pki.X509, q.Param("name"))
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(old.Beside, &r); err != nil {
			return nil, err
		}
	}
	if err := q.Read(&r); err != nil {
		return nil, err
	}
	for _, list := range []*[]string{
		&r.Domains, &r.URIs, &r.Others, &r.Serials, &r.UserIDs, &r.KeyUsage, &r.ExtKeyUsage, &r.ExtOIDs, &r.OU, &r.Organization, &r.Country, &r.Locality, &r.Province, &r.Street, &r.PostalCode, &r.CNChecks, &r.Policies,
	} {
		*list = words(*list)
	}
	switch {
	case r.MaxTTL > 0 && r.TTL > r.MaxTTL:
		return nil, refuse(http.StatusBadRequest, `"ttl" value must be less than "max_ttl" value`)
	case slices.ContainsFunc(append(slices.Clone(r.Domains), r.URIs...), func(s string) bool { return strings.Contains(s, "{{identity") }):
		return nil, refuse(http.StatusBadRequest, "identity templates are not offered; {{agent}} and {{session}} are")
	case r.KeyType != "rsa" && r.KeyType != "ec" && r.KeyType != "ed25519" && r.KeyType != "any":
		return nil, refuse(http.StatusBadRequest, "unknown key type %s", strings.ToValidUTF8(r.KeyType, "?"))
	}
	if r.KeyBits == 0 { // what is used is told
		r.KeyBits = map[string]int64{"rsa": 2048, "ec": 256}[r.KeyType]
	}
	beside, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	bits := int(r.KeyBits)
	if r.KeyType == "any" {
		bits = 0
	}
	spec := pki.X509Spec{
		Domains: r.Domains, Bare: r.Bare, Subdomains: r.Subdomains, Globs: r.Globs, Wildcards: r.Wildcards, AnyName: r.AnyName, Localhost: r.Localhost, AnyHostname: !r.Hostnames, IPs: r.IPs, URIs: r.URIs,
		SubjectSerials: r.Serials, Server: r.Server, Client: r.Client, CodeSigning: r.CodeSigning, Email: r.Email, KeyType: r.KeyType, KeyBits: bits, KeyUsage: r.KeyUsage, ExtKeyUsage: r.ExtKeyUsage, ExtKeyUsageOIDs: r.ExtOIDs,
		Policies: r.Policies, NoCommonName: !r.RequireCN, IgnoreCommonName: !r.CSRCommonName, IgnoreNames: !r.CSRSANs, UncheckedName: slices.Equal(r.CNChecks, []string{"disabled"}),
		Organization: r.Organization, OrganizationalUnit: r.OU, Country: r.Country, Locality: r.Locality, Province: r.Province, StreetAddress: r.Street, PostalCode: r.PostalCode,
		NotBefore: int64(r.NotBefore), NotAfter: r.NotAfter, NotCA: r.NotCA, UserIDs: r.UserIDs, PSS: r.PSS, SignatureBits: int(r.SignatureBits),
	}
	out, err := d.PKI.PutRole(ctx, q.Caller, q.Mount.ID, pki.X509, q.Param("name"), pki.Spec{
		Authority: r.IssuerRef, TTL: int64(r.TTL), MaxTTL: int64(r.MaxTTL), X509: &spec, Beside: beside, Resource: r.Resource, Action: r.Action,
	})
	if err != nil {
		return nil, err
	}
	if r.NoStore {
		q.Warn("every certificate is kept until some days after its end, so that it can be revoked; no_store changes nothing")
	}
	return &Answer{Data: out.Beside}, nil
}

// colons is a serial number as clients know it (V32).
func colons(serial string) string {
	if len(serial)%2 == 1 {
		serial = "0" + serial
	}
	var b strings.Builder
	for i := 0; i < len(serial); i += 2 {
		if i > 0 {
			b.WriteByte(':')
		}
		b.WriteString(serial[i : i+2])
	}
	return b.String()
}

// noIssuer puts it into the words that clients know that an authority is not there.
func noIssuer(err error, ref string) error {
	switch {
	case errors.Is(err, pki.ErrNoAuthority):
		return refuse(http.StatusBadRequest, "unable to find PKI issuer for reference: %s", strings.ToValidUTF8(cmp.Or(ref, "default"), "?")).because(err)
	case errors.Is(err, pki.ErrNoRole):
		return refuse(http.StatusBadRequest, "unknown role").because(err)
	}
	return err
}

// A certificateAsk is what clients ask of a certificate.
type certificateAsk struct {
	CommonName  string        `json:"common_name"`
	AltNames    []string      `json:"alt_names"`
	IPs         []string      `json:"ip_sans"`
	URIs        []string      `json:"uri_sans"`
	Others      []string      `json:"other_sans"`
	Serial      string        `json:"serial_number"`
	UserIDs     []string      `json:"user_ids"`
	TTL         time.Duration `json:"ttl"`
	NotAfter    string        `json:"not_after"`
	Format      string        `json:"format"`
	KeyFormat   string        `json:"private_key_format"`
	NoCN        bool          `json:"exclude_cn_from_sans"`
	RemoveRoots bool          `json:"remove_roots_from_chain"`
	CSR         string        `json:"csr"`
	IssuerRef   string        `json:"issuer_ref"`
	KeyUsage    []string      `json:"key_usage"`
	ExtKeyUsage []string      `json:"ext_key_usage"`
	ExtOIDs     []string      `json:"ext_key_usage_oids"`
}

// subjectNames tells addresses of hosts from those of people.
func subjectNames(list []string) (dns, emails []string) {
	for _, n := range list {
		if strings.Contains(n, "@") {
			emails = append(emails, n)
		} else {
			dns = append(dns, n)
		}
	}
	return dns, emails
}

func (a *certificateAsk) wish(q *Request) (w pki.Wish, err error) {
	if len(a.Others) > 0 {
		return w, refuse(http.StatusBadRequest, "other_sans are not offered")
	}
	usual, most := q.Mount.TTL()
	w = pki.Wish{
		Mount: q.Mount.ID, Role: q.Param("role"), Authority: q.Param("ref"), CommonName: a.CommonName, SubjectSerial: a.Serial, UserIDs: a.UserIDs, TTL: a.TTL, NoCommonNameSAN: a.NoCN,
		Usual: time.Duration(usual) * time.Second, Longest: time.Duration(most) * time.Second,
	}
	w.DNS, w.Emails = subjectNames(a.AltNames)
	w.IPs, w.URIs = a.IPs, a.URIs
	if a.NotAfter != "" {
		if w.NotAfter, err = time.Parse(time.RFC3339, a.NotAfter); err != nil {
			return w, refuse(http.StatusBadRequest, "not_after is not a time such as 2026-12-31T23:59:59Z")
		}
	}
	switch a.Format {
	case "", "pem", "der", "pem_bundle":
	default:
		return w, refuse(http.StatusBadRequest, `the "format" path parameter must be "pem", "der", or "pem_bundle"`)
	}
	return w, nil
}

// certificateAnswer is a certificate as clients know it.
func (d *Door) certificateAnswer(ctx context.Context, q *Request, a *certificateAsk, c *pki.Certificate) (*Answer, error) {
	chain := c.Chain
	if a.RemoveRoots && len(chain) > 0 {
		if last := parsePEM(chain[len(chain)-1]); last != nil && bytes.Equal(last.RawSubject, last.RawIssuer) {
			chain = chain[:len(chain)-1]
		}
	}
	data := map[string]any{
		"certificate": strings.TrimSpace(c.PEM), "issuing_ca": strings.TrimSpace(c.IssuingCA), "ca_chain": trimmed(chain), "serial_number": colons(c.Serial), "expiration": c.NotAfter.Unix(),
	}
	private, kind, err := keyAs(c.PrivateKey, a.KeyFormat)
	if err != nil {
		return nil, err
	}
	if private != "" {
		data["private_key"], data["private_key_type"] = private, kind
	}
	switch a.Format {
	case "pem_bundle":
		parts := append([]string{private, strings.TrimSpace(c.PEM)}, trimmed(chain)...)
		if private == "" {
			parts = parts[1:]
		}
		data["certificate"] = strings.Join(parts, "\n")
	case "der":
		data["certificate"], data["issuing_ca"] = derOf(c.PEM), derOf(c.IssuingCA)
		var list []string
		for _, one := range chain {
			list = append(list, derOf(one))
		}
		data["ca_chain"] = words(list)
		if private != "" {
			data["private_key"] = derOf(private)
		}
	}
	answer := &Answer{Data: data}
	if c.LimitedBy != "ttl" {
		q.Warn("the certificate ends earlier than was asked for: with the %s", strings.ReplaceAll(c.LimitedBy, "_", " "))
	}
	if role := q.Param("role"); role != "" {
		r, err := d.PKI.RoleBeside(ctx, q.Tenant, q.Mount.ID, pki.X509, role)
		if err != nil {
			return nil, err
		}
		var one pkiRole
		if json.Unmarshal(r, &one) == nil && one.Lease {
			answer.Lease = &LeaseInfo{ID: q.Path + "/" + colons(c.Serial), Duration: c.NotAfter.Sub(c.IssuedAt)}
		}
	}
	return answer, nil
}

func trimmed(list []string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = strings.TrimSpace(s)
	}
	return out
}

func parsePEM(text string) *x509.Certificate {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil
	}
	return c
}

func derOf(text string) string {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return ""
	}
	return base64.StdEncoding.EncodeToString(block.Bytes)
}

// leasedCertificate is the certificate that the id of a lease names, if it is of a
// mount that certifies: such a lease is the certificate's own row (V32).
func (d *Door) leasedCertificate(ctx context.Context, q *Request, id string) (r pki.Record, is bool, err error) {
	table, err := d.Mounts.Table(ctx, q.Tenant)
	if err != nil {
		return r, false, err
	}
	m, rest, ok := table.Find(strings.Trim(id, "/"))
	if !ok || m.Kind != "pki" {
		return r, false, nil
	}
	r, err = d.PKI.Certificate(ctx, q.Caller, m.ID, pki.X509, pki.ParseSerial(rest[strings.LastIndexByte(rest, '/')+1:]))
	return r, true, err
}

// certificateLease is what a lease is that stands for a certificate.
func certificateLease(id string, r pki.Record, err error) (*Answer, error) {
	left := time.Until(r.NotAfter)
	switch {
	case estover.KindOf(err) == estover.NotFound, err == nil && (left <= 0 || !r.RevokedAt.IsZero()):
		return nil, refuse(http.StatusBadRequest, "invalid lease")
	case err != nil:
		return nil, err
	}
	return &Answer{Data: map[string]any{
		"id": id, "issue_time": Time(r.IssuedAt), "expire_time": Time(r.NotAfter), "last_renewal": nil, "renewable": false, "ttl": seconds(left), "path": id[:strings.LastIndexByte(id, '/')],
	}}, nil
}

// keyAs writes a private key, which is there as PKCS #8, in the form that clients ask
// for.
func keyAs(text, format string) (private, kind string, err error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return "", "", nil
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return "", "", err
	}
	switch k := key.(type) {
	case *rsa.PrivateKey:
		kind = "rsa"
		block = &pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(k)}
	case *ecdsa.PrivateKey:
		kind = "ec"
		der, err := x509.MarshalECPrivateKey(k)
		if err != nil {
			return "", "", err
		}
		block = &pem.Block{Type: "EC PRIVATE KEY", Bytes: der}
	case ed25519.PrivateKey:
		kind = "ed25519"
	}
	switch format {
	case "", "der", "pem":
		return strings.TrimSpace(string(pem.EncodeToMemory(block))), kind, nil
	case "pkcs8":
		return strings.TrimSpace(text), kind, nil
	}
	return "", "", refuse(http.StatusBadRequest, `the "private_key_format" path parameter must be "der" or "pkcs8"`)
}

func (d *Door) issueCertificate(ctx context.Context, q *Request) (*Answer, error) {
	var in certificateAsk
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	w, err := in.wish(q)
	if err != nil {
		return nil, err
	}
	c, err := d.PKI.Issue(ctx, q.Caller, w)
	if err != nil {
		return nil, noIssuer(err, w.Authority)
	}
	return d.certificateAnswer(ctx, q, &in, c)
}

func (d *Door) signCertificate(ctx context.Context, q *Request) (*Answer, error) {
	var in certificateAsk
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	w, err := in.wish(q)
	if err != nil {
		return nil, err
	}
	csr, err := pki.ParseRequest(in.CSR)
	if err != nil {
		return nil, err
	}
	c, err := d.PKI.Sign(ctx, q.Caller, w, csr)
	if err != nil {
		return nil, noIssuer(err, w.Authority)
	}
	return d.certificateAnswer(ctx, q, &in, c)
}

func (d *Door) signVerbatim(ctx context.Context, q *Request) (*Answer, error) {
	in := certificateAsk{KeyUsage: []string{"DigitalSignature", "KeyAgreement", "KeyEncipherment"}}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	w, err := in.wish(q)
	if err != nil {
		return nil, err
	}
	csr, err := pki.ParseRequest(in.CSR)
	if err != nil {
		return nil, err
	}
	c, err := d.PKI.SignAsIs(ctx, q.Caller, w, csr, pki.X509Spec{KeyUsage: in.KeyUsage, ExtKeyUsage: in.ExtKeyUsage, ExtKeyUsageOIDs: in.ExtOIDs})
	if err != nil {
		return nil, noIssuer(err, w.Authority)
	}
	return d.certificateAnswer(ctx, q, &in, c)
}

func (d *Door) revokeCertificate(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		Serial      string         `json:"serial_number"`
		Certificate string         `json:"certificate"`
		Key         estover.Secret `json:"private_key"`
	}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	if (in.Serial == "") == (in.Certificate == "") {
		return nil, refuse(http.StatusBadRequest, "the serial number or the certificate to revoke must be provided, and not both")
	}
	if in.Certificate != "" {
		c := parsePEM(in.Certificate)
		if c == nil {
			return nil, refuse(http.StatusBadRequest, "the certificate is not one in PEM")
		}
		in.Serial = pki.Serial(c.SerialNumber)
	}
	number := pki.ParseSerial(in.Serial)
	reason := pki.Unspecified
	if strings.HasSuffix(q.Rest, "with-key") {
		r, err := d.PKI.PublicCertificate(ctx, q.Tenant, q.Mount.ID, number)
		if err != nil || !holds(r, in.Key) {
			return nil, refuse(http.StatusBadRequest, "the private key is not that of the certificate")
		}
	}
	r, err := d.PKI.Revoke(ctx, q.Caller, q.Mount.ID, pki.X509, number, reason, "revoked at the Vault-compatible door")
	if errors.Is(err, pki.ErrNoCertificate) {
		err = refuse(http.StatusBadRequest, "certificate with serial %s not found.", colons(number)).because(err)
	}
	if err != nil {
		return nil, err
	}
	q.Warn("%s", pki.Lingers)
	return &Answer{Data: map[string]any{"revocation_time": r.RevokedAt.Unix(), "revocation_time_rfc3339": Time(r.RevokedAt), "state": "revoked"}}, nil
}

// holds reports whether a private key is that of a certificate.
func holds(r pki.Record, text estover.Secret) bool {
	block, _ := pem.Decode(text.Reveal())
	if block == nil {
		return false
	}
	var key any
	var err error
	switch block.Type {
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	default:
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	}
	signer, ok := key.(crypto.Signer)
	c, err2 := x509.ParseCertificate(r.Body())
	if err != nil || err2 != nil || !ok {
		return false
	}
	public, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && public.Equal(c.PublicKey)
}

func (d *Door) listCertificates(revoked bool) Handler {
	return func(ctx context.Context, q *Request) (*Answer, error) {
		var serials []string
		for after := ""; ; {
			list, err := d.PKI.Certificates(ctx, q.Caller, pki.CertificateFilter{Mount: q.Mount.ID, Kind: pki.X509, Revoked: revoked, After: after, Limit: 1000})
			if err != nil {
				return nil, err
			}
			for _, r := range list {
				serials = append(serials, colons(r.Serial))
			}
			if len(list) < 1000 {
				return listing(serials, nil)
			}
			after = list[len(list)-1].Serial
		}
	}
}

func (d *Door) readCertificate(ctx context.Context, q *Request) (*Answer, error) {
	switch serial := q.Param("serial"); serial {
	case "ca", "ca_chain":
		a, err := d.PKI.Issuer(ctx, q.Tenant, q.Mount.ID, pki.X509, "")
		if err != nil {
			return nil, err
		}
		text := strings.TrimSpace(a.PEM)
		if serial == "ca_chain" {
			if text, err = d.chainText(ctx, q, a); err != nil {
				return nil, err
			}
		}
		return &Answer{Data: map[string]any{"certificate": text, "ca_chain": text, "revocation_time": 0, "revocation_time_rfc3339": "", "issuer_id": a.ID}}, nil
	case "crl":
		return d.rawList("json")(ctx, q)
	}
	r, err := d.PKI.PublicCertificate(ctx, q.Tenant, q.Mount.ID, pki.ParseSerial(q.Param("serial")))
	if err != nil {
		return nil, err
	}
	data := map[string]any{"certificate": strings.TrimSpace(r.PEM()), "revocation_time": int64(0), "revocation_time_rfc3339": "", "issuer_id": r.Authority}
	if !r.RevokedAt.IsZero() {
		data["revocation_time"], data["revocation_time_rfc3339"] = r.RevokedAt.Unix(), Time(r.RevokedAt)
	}
	return &Answer{Data: data}, nil
}

func (d *Door) rawCertificate(asPEM bool) Handler {
	return func(ctx context.Context, q *Request) (*Answer, error) {
		r, err := d.PKI.PublicCertificate(ctx, q.Tenant, q.Mount.ID, pki.ParseSerial(q.Param("serial")))
		switch {
		case errors.Is(err, pki.ErrNoCertificate):
			return &Answer{Status: http.StatusNoContent, RawType: "application/pkix-cert"}, nil
		case err != nil:
			return nil, err
		case asPEM:
			return &Answer{Raw: []byte(r.PEM()), RawType: "application/pem-certificate-chain"}, nil
		}
		return &Answer{Raw: r.Body(), RawType: "application/pkix-cert"}, nil
	}
}

// issuer is the authority that a public path is about. Nil is that there is none.
func (d *Door) issuer(ctx context.Context, q *Request) (*pki.Authority, error) {
	a, err := d.PKI.Issuer(ctx, q.Tenant, q.Mount.ID, pki.X509, q.Param("ref"))
	if errors.Is(err, pki.ErrNoAuthority) && q.Param("ref") == "" {
		return nil, nil
	}
	return a, err
}

func (d *Door) chainText(ctx context.Context, q *Request, a *pki.Authority) (string, error) {
	chain, err := d.PKI.Chain(ctx, q.Tenant, a)
	var b strings.Builder
	for _, c := range chain {
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
	return strings.TrimSpace(b.String()), err
}

func (d *Door) rawIssuer(form string) Handler {
	return func(ctx context.Context, q *Request) (*Answer, error) {
		a, err := d.issuer(ctx, q)
		if err != nil {
			return nil, err
		}
		kind := "application/pkix-cert"
		if form != "der" {
			kind = "application/pem-certificate-chain"
		}
		if a == nil {
			return &Answer{Status: http.StatusNoContent, RawType: kind}, nil
		}
		switch form {
		case "chain":
			text, err := d.chainText(ctx, q, a)
			return &Answer{Raw: []byte(text), RawType: kind}, err
		case "pem":
			return &Answer{Raw: []byte(strings.TrimSpace(a.PEM)), RawType: kind}, nil
		}
		return &Answer{Raw: a.Certificate().Raw, RawType: kind}, nil
	}
}

func (d *Door) jsonIssuer(ctx context.Context, q *Request) (*Answer, error) {
	a, err := d.issuer(ctx, q)
	if err != nil || a == nil {
		return nil, orElse(err, errNothing)
	}
	chain, err := d.PKI.Chain(ctx, q.Tenant, a)
	var texts []string
	for _, c := range chain {
		texts = append(texts, strings.TrimSpace(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))))
	}
	return &Answer{Data: map[string]any{"issuer_id": a.ID, "issuer_name": a.Name, "certificate": strings.TrimSpace(a.PEM), "ca_chain": texts}}, err
}

func orElse(err, other error) error {
	if err != nil {
		return err
	}
	return other
}

func (d *Door) rawList(form string) Handler {
	return func(ctx context.Context, q *Request) (*Answer, error) {
		a, err := d.issuer(ctx, q)
		if err != nil {
			return nil, err
		}
		kind := "application/pkix-crl"
		if form == "pem" {
			kind = "application/x-pem-file"
		}
		if a == nil {
			return &Answer{Status: http.StatusNoContent, RawType: kind}, nil
		}
		list, err := d.PKI.CRL(ctx, q.Tenant, a.ID)
		if err != nil {
			return nil, err
		}
		text := pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: list.DER})
		switch form {
		case "json":
			data := map[string]any{"crl": strings.TrimSpace(string(text))}
			if q.Param("serial") != "" {
				data = map[string]any{"certificate": strings.TrimSpace(string(text)), "revocation_time": 0, "revocation_time_rfc3339": ""}
			}
			return &Answer{Data: data}, nil
		case "pem":
			return &Answer{Raw: text, RawType: kind}, nil
		}
		return &Answer{Raw: list.DER, RawType: kind}, nil
	}
}

func (d *Door) rotateList(ctx context.Context, q *Request) (*Answer, error) {
	if _, err := d.PKI.RotateCRL(ctx, q.Caller, q.Mount.ID, ""); err != nil {
		return nil, noIssuer(err, "default")
	}
	return &Answer{Data: map[string]any{"success": true}}, nil
}

func (d *Door) ocsp(ctx context.Context, q *Request) (*Answer, error) {
	var question []byte
	if text := q.Param("question"); text != "" {
		question, _ = base64.StdEncoding.DecodeString(text) // what cannot be read is answered as malformed
	} else {
		question = q.Body()
	}
	ids, err := d.PKI.Responders(ctx, q.Tenant, q.Mount.ID)
	if err != nil {
		return nil, err
	}
	answer, err := d.PKI.OCSP(ctx, q.Tenant, question, ids...)
	if err != nil {
		return nil, err
	}
	return &Answer{Raw: answer, RawType: "application/ocsp-response"}, nil
}

func (d *Door) tidyCertificates(ctx context.Context, q *Request) (*Answer, error) {
	q.Data() // which asks for what is done in any case
	if _, err := d.PKI.Tidy(ctx, q.Caller, q.Mount.ID); err != nil {
		return nil, err
	}
	q.Warn("Tidy operation successfully started. Any information from the operation will be printed to Vault's server logs.")
	return &Answer{Status: http.StatusAccepted}, nil
}

func (d *Door) tidiedCertificates(context.Context, *Request) (*Answer, error) {
	return &Answer{Data: map[string]any{"state": "Inactive", "error": nil, "time_started": nil, "time_finished": nil, "message": "certificates are swept by themselves, ten minutes after another"}}, nil
}
