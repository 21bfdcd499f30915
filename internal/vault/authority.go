package vault

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/pki"
)

// An authorityAsk is what clients ask of an authority.
type authorityAsk struct {
	certificateAsk
	KeyType      string   `json:"key_type"`
	KeyBits      int      `json:"key_bits"`
	KeyName      string   `json:"key_name"`
	KeyRef       string   `json:"key_ref"`
	IssuerName   string   `json:"issuer_name"`
	MaxPath      *int     `json:"max_path_length"`
	PermittedDNS []string `json:"permitted_dns_domains"`
	OU           []string `json:"ou"`
	Organization []string `json:"organization"`
	Country      []string `json:"country"`
	Locality     []string `json:"locality"`
	Province     []string `json:"province"`
	Street       []string `json:"street_address"`
	PostalCode   []string `json:"postal_code"`
	UseCSR       bool     `json:"use_csr_values"`
}

func (a *authorityAsk) plan(q *Request) (p pki.Plan, export bool, err error) {
	switch q.Param("type") {
	case "", "internal", "existing":
	case "exported":
		export = true
	case "kms":
		return p, false, refuse(http.StatusBadRequest, "keys in a key management service are not offered")
	default:
		return p, false, refuse(http.StatusBadRequest, "the type is internal, exported or existing")
	}
	w, err := a.wish(q)
	if err != nil {
		return p, false, err
	}
	p = pki.Plan{
		Mount: q.Mount.ID, Name: a.IssuerName, KeyName: a.KeyName, Lifetime: a.TTL, CommonName: a.CommonName, Alternative: w.Alternative, MaxPath: a.MaxPath, NotAfter: w.NotAfter,
		Subject: pkix.Name{
			CommonName: a.CommonName, SerialNumber: a.Serial, Organization: a.Organization, OrganizationalUnit: a.OU, Country: a.Country, Locality: a.Locality, Province: a.Province, StreetAddress: a.Street, PostalCode: a.PostalCode,
		},
	}
	if len(a.PermittedDNS) > 0 {
		p.Constrain = &pki.Names{PermittedDNS: a.PermittedDNS}
	}
	if p.Lifetime == 0 {
		usual, _ := q.Mount.TTL()
		p.Lifetime = time.Duration(usual) * time.Second
	}
	if a.CommonName == "" {
		return p, false, refuse(http.StatusBadRequest, "the common_name field is required, or must be provided in a CSR with \"use_csr_common_name\" set to true, unless \"require_cn\" is set to false")
	}
	if ip := net.ParseIP(a.CommonName); !a.NoCN && ip == nil && !strings.ContainsAny(a.CommonName, " @") && strings.Contains(a.CommonName, ".") {
		p.DNS = append([]string{a.CommonName}, p.DNS...)
	}
	if q.Param("type") == "existing" {
		p.Key = cmp.Or(a.KeyRef, "default")
		return p, false, nil
	}
	p.Algorithm, err = keyAlgorithm(cmp.Or(a.KeyType, "rsa"), a.KeyBits)
	return p, export, err
}

func (d *Door) generateRoot(ctx context.Context, q *Request) (*Answer, error) {
	var in authorityAsk
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	if in.IssuerName == "" && strings.HasPrefix(q.Rest, "root/rotate/") {
		in.IssuerName = "next"
	}
	plan, export, err := in.plan(q)
	if err != nil {
		return nil, err
	}
	if plan.Key, err = d.keyRef(ctx, q, plan.Key); err != nil {
		return nil, err
	}
	a, private, err := d.PKI.Generate(ctx, q.Caller, plan, export)
	if err != nil {
		return nil, err
	}
	data := map[string]any{
		"certificate": strings.TrimSpace(a.PEM), "issuing_ca": strings.TrimSpace(a.PEM), "expiration": a.NotAfter.Unix(), "serial_number": colons(pki.Serial(a.Certificate().SerialNumber)),
		"issuer_id": a.ID, "issuer_name": a.Name, "key_id": a.KeyID, "key_name": in.KeyName,
	}
	if in.Format == "der" {
		data["certificate"], data["issuing_ca"] = derOf(a.PEM), derOf(a.PEM)
	}
	if err := showKey(data, private, &in.certificateAsk); err != nil {
		return nil, err
	}
	if in.Format == "pem_bundle" && export {
		data["certificate"] = data["private_key"].(string) + "\n" + strings.TrimSpace(a.PEM)
	}
	return &Answer{Data: data}, nil
}

// showKey puts an exported key among what is answered.
func showKey(data map[string]any, private estover.Secret, in *certificateAsk) error {
	if private.Empty() {
		return nil
	}
	text, kind, err := keyAs(string(private.Reveal()), in.KeyFormat)
	data["private_key"], data["private_key_type"] = text, kind
	if in.Format == "der" {
		data["private_key"] = derOf(text)
	}
	return err
}

// keyRef is the key that a reference means: the default one's is that of the default
// authority, unless another was chosen.
func (d *Door) keyRef(ctx context.Context, q *Request, ref string) (string, error) {
	if ref != "default" {
		return ref, nil
	}
	id, err := d.defaultKey(ctx, q)
	if err == nil && id == "" {
		err = refuse(http.StatusBadRequest, "no default key is configured")
	}
	return id, err
}

func (d *Door) defaultKey(ctx context.Context, q *Request) (string, error) {
	var kept struct {
		Default string `json:"default"`
	}
	if _, err := d.PKI.Setting(ctx, q.Caller, q.Mount.ID, "keys", &kept); err != nil || kept.Default != "" {
		return kept.Default, err
	}
	a, err := d.PKI.Authority(ctx, q.Caller, q.Mount.ID, pki.X509, "")
	if errors.Is(err, pki.ErrNoAuthority) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return a.KeyID, nil
}

func (d *Door) generateIntermediate(ctx context.Context, q *Request) (*Answer, error) {
	var in authorityAsk
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	plan, export, err := in.plan(q)
	if err != nil {
		return nil, err
	}
	if plan.Key, err = d.keyRef(ctx, q, plan.Key); err != nil {
		return nil, err
	}
	der, key, private, err := d.PKI.Request(ctx, q.Caller, plan, export)
	if err != nil {
		return nil, err
	}
	data := map[string]any{"csr": strings.TrimSpace(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))), "key_id": key.ID, "key_name": key.Name}
	if in.Format == "der" {
		data["csr"] = base64.StdEncoding.EncodeToString(der)
	}
	return &Answer{Data: data}, showKey(data, private, &in.certificateAsk)
}

func (d *Door) signIntermediate(ctx context.Context, q *Request) (*Answer, error) {
	var in authorityAsk
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	csr, err := pki.ParseRequest(in.CSR)
	if err != nil {
		return nil, err
	}
	if in.CommonName == "" {
		in.CommonName = csr.Subject.CommonName
	}
	plan, _, err := in.plan(q)
	if err != nil {
		return nil, err
	}
	at := cmp.Or(q.Param("ref"), in.IssuerRef)
	c, err := d.PKI.SignAuthority(ctx, q.Caller, at, csr, plan, in.UseCSR)
	if err != nil {
		return nil, noIssuer(err, at)
	}
	return d.certificateAnswer(ctx, q, &in.certificateAsk, c)
}

func (d *Door) importIssuers(field string, keys bool) Handler {
	return func(ctx context.Context, q *Request) (*Answer, error) {
		var in struct {
			Certificate estover.Secret `json:"certificate"`
			Bundle      estover.Secret `json:"pem_bundle"`
		}
		if err := q.Read(&in); err != nil {
			return nil, err
		}
		text := in.Bundle
		if field == "certificate" {
			text = in.Certificate
		}
		if text.Empty() {
			return nil, refuse(http.StatusBadRequest, "no data found in PEM block: the field %s is empty", field)
		}
		if kind := q.Param("kind"); !keys && kind != "cert" && kind != "bundle" {
			return nil, errNothing
		} else if kind == "cert" && bytes.Contains(text.Reveal(), []byte("PRIVATE KEY")) {
			return nil, refuse(http.StatusBadRequest, "private keys found in the PEM bundle but not allowed by the path; use /issuers/import/bundle")
		}
		out, err := d.PKI.Import(ctx, q.Caller, q.Mount.ID, "", text)
		if err != nil {
			return nil, err
		}
		var issuers, imported, oldIssuers, oldKeys []string
		for _, a := range out.Authorities {
			issuers = append(issuers, a.ID)
		}
		for _, k := range out.Keys {
			imported = append(imported, k.ID)
		}
		for _, id := range out.Existing {
			if strings.HasPrefix(id, "ca_") {
				oldIssuers = append(oldIssuers, id)
			} else {
				oldKeys = append(oldKeys, id)
			}
		}
		return &Answer{Data: map[string]any{"mapping": out.Mapping, "imported_issuers": issuers, "imported_keys": imported, "existing_issuers": oldIssuers, "existing_keys": oldKeys}}, nil
	}
}

func (d *Door) listIssuers(ctx context.Context, q *Request) (*Answer, error) {
	list, err := d.PKI.Public(ctx, q.Tenant, q.Mount.ID, pki.X509)
	if err != nil {
		return nil, err
	}
	usual := ""
	if a, err := d.PKI.Issuer(ctx, q.Tenant, q.Mount.ID, pki.X509, ""); err == nil {
		usual = a.ID
	}
	var ids []string
	info := map[string]any{}
	for _, a := range list {
		ids = append(ids, a.ID)
		info[a.ID] = map[string]any{"issuer_name": a.Name, "key_id": a.KeyID, "is_default": a.ID == usual, "serial_number": colons(pki.Serial(a.Certificate().SerialNumber))}
	}
	return listing(ids, map[string]any{"key_info": info})
}

func (d *Door) readIssuer(ctx context.Context, q *Request) (*Answer, error) {
	a, err := d.PKI.Authority(ctx, q.Caller, q.Mount.ID, pki.X509, q.Param("ref"))
	if err != nil {
		return nil, err
	}
	return d.issuerAnswer(ctx, q, a)
}

// allUsages are those of an authority that none were taken from.
var allUsages = []string{"crl-signing", "issuing-certificates", "ocsp-signing", "read-only"}

func (d *Door) issuerAnswer(ctx context.Context, q *Request, a *pki.Authority) (*Answer, error) {
	chain, err := d.PKI.Chain(ctx, q.Tenant, a)
	if err != nil {
		return nil, err
	}
	var texts []string
	for _, c := range chain {
		texts = append(texts, strings.TrimSpace(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))))
	}
	usage := a.Options.Usage
	if len(usage) == 0 {
		usage = allUsages
	}
	var manual any
	if len(a.Options.Chain) > 0 {
		manual = a.Options.Chain
	}
	return &Answer{Data: map[string]any{
		"issuer_id": a.ID, "issuer_name": a.Name, "key_id": a.KeyID, "certificate": strings.TrimSpace(a.PEM), "ca_chain": texts, "manual_chain": manual,
		"leaf_not_after_behavior": cmp.Or(a.Options.NotAfter, "truncate"), "usage": strings.Join(usage, ","), "revocation_signature_algorithm": "", "revoked": false,
		"issuing_certificates": words(a.Options.Issuing), "crl_distribution_points": words(a.Options.CRLs), "ocsp_servers": words(a.Options.OCSPs), "enable_aia_url_templating": false,
	}}, nil
}

func (d *Door) editIssuer(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		Name     *string   `json:"issuer_name"`
		NotAfter *string   `json:"leaf_not_after_behavior"`
		Chain    *[]string `json:"manual_chain"`
		Usage    *[]string `json:"usage"`
		Issuing  *[]string `json:"issuing_certificates"`
		CRLs     *[]string `json:"crl_distribution_points"`
		OCSPs    *[]string `json:"ocsp_servers"`
		Template *bool     `json:"enable_aia_url_templating"`
		Revoke   *string   `json:"revocation_signature_algorithm"`
	}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	a, err := d.PKI.Authority(ctx, q.Caller, q.Mount.ID, pki.X509, q.Param("ref"))
	if err != nil {
		return nil, err
	}
	o := a.Options
	if in.NotAfter != nil {
		if !slices.Contains([]string{"err", "truncate", "permit"}, *in.NotAfter) {
			return nil, refuse(http.StatusBadRequest, "Unknown value for field `leaf_not_after_behavior`. Possible values are `err`, `truncate`, and `permit`.")
		}
		o.NotAfter = *in.NotAfter
	}
	for _, one := range []struct {
		from *[]string
		to   *[]string
	}{{in.Chain, &o.Chain}, {in.Usage, &o.Usage}, {in.Issuing, &o.Issuing}, {in.CRLs, &o.CRLs}, {in.OCSPs, &o.OCSPs}} {
		if one.from != nil {
			*one.to = *one.from
		}
	}
	if in.Usage != nil {
		for _, u := range o.Usage {
			if !slices.Contains(allUsages, u) {
				return nil, refuse(http.StatusBadRequest, "Unable to parse specified usages: valid values are %s", join(allUsages))
			}
		}
		slices.Sort(o.Usage)
	}
	if in.Template != nil && *in.Template {
		return nil, refuse(http.StatusBadRequest, "templates of URLs are not offered")
	}
	a, err = d.PKI.Edit(ctx, q.Caller, q.Mount.ID, pki.X509, a.ID, pki.Edit{Name: in.Name, Profile: &o})
	if err != nil {
		return nil, err
	}
	return d.issuerAnswer(ctx, q, a)
}

func (d *Door) dropIssuer(ctx context.Context, q *Request) (*Answer, error) {
	return nil, d.PKI.Retire(ctx, q.Caller, q.Mount.ID, pki.X509, q.Param("ref"), false)
}

func (d *Door) revokeIssuer(ctx context.Context, q *Request) (*Answer, error) {
	a, err := d.PKI.Authority(ctx, q.Caller, q.Mount.ID, pki.X509, q.Param("ref"))
	if err != nil {
		return nil, noIssuer(err, q.Param("ref"))
	}
	if err := d.PKI.Retire(ctx, q.Caller, q.Mount.ID, pki.X509, a.ID, true); err != nil {
		return nil, err
	}
	answer, err := d.issuerAnswer(ctx, q, a)
	if err != nil {
		return nil, err
	}
	data := answer.Data.(map[string]any)
	now := time.Now()
	data["revoked"], data["revocation_time"], data["revocation_time_rfc3339"] = true, now.Unix(), Time(now)
	return answer, nil
}

func (d *Door) dropAuthorities(ctx context.Context, q *Request) (*Answer, error) {
	list, err := d.PKI.Authorities(ctx, q.Caller, q.Mount.ID, pki.X509)
	if err != nil {
		return nil, err
	}
	for _, a := range list {
		if err := d.PKI.Retire(ctx, q.Caller, q.Mount.ID, pki.X509, a.ID, false); err != nil {
			return nil, err
		}
	}
	keys, err := d.PKI.Keys(ctx, q.Caller, q.Mount.ID)
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		if err := d.PKI.RemoveKey(ctx, q.Caller, q.Mount.ID, k.ID); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

func (d *Door) readDefault(ctx context.Context, q *Request) (*Answer, error) {
	id, err := d.PKI.Default(ctx, q.Caller, q.Mount.ID, pki.X509)
	return &Answer{Data: map[string]any{"default": id, "default_follows_latest_issuer": false}}, err
}

func (d *Door) setDefault(usual string) Handler {
	return func(ctx context.Context, q *Request) (*Answer, error) {
		var in struct {
			Default string `json:"default"`
			Follow  bool   `json:"default_follows_latest_issuer"`
		}
		if err := q.Read(&in); err != nil {
			return nil, err
		}
		if in.Default == "" && usual == "next" {
			in.Default = usual
		}
		if in.Follow {
			return nil, refuse(http.StatusBadRequest, "default_follows_latest_issuer is not offered")
		}
		a, err := d.PKI.SetDefault(ctx, q.Caller, q.Mount.ID, pki.X509, in.Default)
		if err != nil {
			return nil, noIssuer(err, in.Default)
		}
		return &Answer{Data: map[string]any{"default": a.ID, "default_follows_latest_issuer": false}}, nil
	}
}

func (d *Door) readDefaultKey(ctx context.Context, q *Request) (*Answer, error) {
	id, err := d.defaultKey(ctx, q)
	return &Answer{Data: map[string]any{"default": id}}, err
}

func (d *Door) setDefaultKey(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		Default string `json:"default"`
	}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	k, err := d.PKI.Key(ctx, q.Caller, q.Mount.ID, in.Default)
	if errors.Is(err, pki.ErrNoKey) {
		err = refuse(http.StatusBadRequest, "unable to find PKI key for reference: %s", strings.ToValidUTF8(in.Default, "?")).because(err)
	}
	if err != nil {
		return nil, err
	}
	return &Answer{Data: map[string]any{"default": k.ID}}, d.PKI.Set(ctx, q.Caller, q.Mount.ID, "keys", map[string]string{"default": k.ID})
}

func (d *Door) listAuthorityKeys(ctx context.Context, q *Request) (*Answer, error) {
	list, err := d.PKI.Keys(ctx, q.Caller, q.Mount.ID)
	if err != nil {
		return nil, err
	}
	usual, err := d.defaultKey(ctx, q)
	if err != nil {
		return nil, err
	}
	var ids []string
	info := map[string]any{}
	for _, k := range list {
		ids = append(ids, k.ID)
		info[k.ID] = map[string]any{"key_name": k.Name, "is_default": k.ID == usual}
	}
	return listing(ids, map[string]any{"key_info": info})
}

func keyData(k pki.Key) map[string]any {
	kind, _, _ := strings.Cut(string(k.Algorithm), "-")
	return map[string]any{"key_id": k.ID, "key_name": k.Name, "key_type": kind}
}

func (d *Door) keyOf(ctx context.Context, q *Request) (pki.Key, error) {
	id, err := d.keyRef(ctx, q, q.Param("ref"))
	if err != nil {
		return pki.Key{}, err
	}
	return d.PKI.Key(ctx, q.Caller, q.Mount.ID, id)
}

func (d *Door) readAuthorityKey(ctx context.Context, q *Request) (*Answer, error) {
	k, err := d.keyOf(ctx, q)
	if err != nil {
		return nil, err
	}
	return &Answer{Data: keyData(k)}, nil
}

func (d *Door) renameAuthorityKey(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		Name string `json:"key_name"`
	}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	k, err := d.PKI.RenameKey(ctx, q.Caller, q.Mount.ID, q.Param("ref"), in.Name)
	if err != nil {
		return nil, err
	}
	return &Answer{Data: keyData(k)}, nil
}

func (d *Door) dropAuthorityKey(ctx context.Context, q *Request) (*Answer, error) {
	return nil, d.PKI.RemoveKey(ctx, q.Caller, q.Mount.ID, q.Param("ref"))
}

func (d *Door) generateAuthorityKey(ctx context.Context, q *Request) (*Answer, error) {
	var in authorityAsk
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	kind := q.Param("type")
	if kind != "internal" && kind != "exported" {
		return nil, refuse(http.StatusBadRequest, "the type is internal or exported")
	}
	a, err := keyAlgorithm(cmp.Or(in.KeyType, "rsa"), in.KeyBits)
	if err != nil {
		return nil, err
	}
	k, private, err := d.PKI.GenerateKey(ctx, q.Caller, q.Mount.ID, in.KeyName, a, kind == "exported")
	if err != nil {
		return nil, err
	}
	data := keyData(k)
	if !private.Empty() {
		data["private_key"], _, err = keyAs(string(private.Reveal()), "")
	}
	return &Answer{Data: data}, err
}

func (d *Door) importAuthorityKey(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		Bundle estover.Secret `json:"pem_bundle"`
		Name   string         `json:"key_name"`
	}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	k, err := d.PKI.ImportKey(ctx, q.Caller, q.Mount.ID, in.Name, in.Bundle)
	if err != nil {
		return nil, err
	}
	return &Answer{Data: keyData(k)}, nil
}
