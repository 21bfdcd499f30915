package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"estover.dev"
	"estover.dev/internal/pki"
)

// Mounted says of which mount something is.
type Mounted struct {
	Mount string `query:"mount" maxLength:"100" doc:"Of which mount of the Vault-compatible door; the tenant's own if left out"`
}

func (s *Server) certificates() {
	for _, k := range []struct {
		kind     pki.Kind
		at, tag  string
		of, what string
	}{{pki.X509, "/v1/pki", "Certificates", "pki", "certificates"}, {pki.SSH, "/v1/ssh", "SSH certificates", "ssh", "SSH certificates"}} {
		reg := func(id, method, path, summary string) huma.Operation {
			return op(id, method, k.at+path, k.tag, summary)
		}
		c := certifier{s, k.kind}
		huma.Register(s.huma, reg("list-"+k.of+"-authorities", http.MethodGet, "/authorities", "List the authorities for "+k.what), c.authorities)
		huma.Register(s.huma, reg("create-"+k.of+"-authority", http.MethodPost, "/authorities", "Make an authority with a key of its own"), c.create)
		huma.Register(s.huma, reg("import-"+k.of+"-authority", http.MethodPost, "/authorities/import", "Take over an authority that there is"), c.bring)
		huma.Register(s.huma, reg("show-"+k.of+"-authority", http.MethodGet, "/authorities/{id}", "Show an authority, by name or id"), c.authority)
		huma.Register(s.huma, reg("rotate-"+k.of+"-authority", http.MethodPost, "/authorities/{id}/rotate", "Make the next generation of an authority"), c.rotate)
		huma.Register(s.huma, reg("choose-"+k.of+"-authority", http.MethodPost, "/authorities/{id}/default", "Have an authority sign where none is named"), c.choose)
		huma.Register(s.huma, reg("retire-"+k.of+"-authority", http.MethodDelete, "/authorities/{id}", "End an authority; it goes on saying what it has revoked"), c.retire)
		huma.Register(s.huma, reg("list-"+k.of+"-roles", http.MethodGet, "/roles", "List the roles for "+k.what), c.roles)
		huma.Register(s.huma, reg("put-"+k.of+"-role", http.MethodPut, "/roles/{id}", "Make a role, or change the one of this name"), c.putRole)
		huma.Register(s.huma, reg("show-"+k.of+"-role", http.MethodGet, "/roles/{id}", "Show a role, by name"), c.role)
		huma.Register(s.huma, reg("remove-"+k.of+"-role", http.MethodDelete, "/roles/{id}", "Take a role away; what it has certified stays"), c.removeRole)
		huma.Register(s.huma, reg("list-"+k.of+"-certificates", http.MethodGet, "/certificates", "List "+k.what+" by serial number"), c.list)
		huma.Register(s.huma, reg("show-"+k.of+"-certificate", http.MethodGet, "/certificates/{id}", "Show a certificate, by serial number"), c.show)
		huma.Register(s.huma, reg("revoke-"+k.of+"-certificate", http.MethodPost, "/certificates/{id}/revoke", "Take a certificate back"), c.revoke)
	}
	huma.Register(s.huma, op("sign-certificate", http.MethodPost, "/v1/pki/roles/{id}/sign", "Certificates", "Certify the key of a request"), s.signX509)
	huma.Register(s.huma, op("issue-certificate", http.MethodPost, "/v1/pki/roles/{id}/issue", "Certificates", "Make a key and certify it; the key is answered this once and not kept"), s.issueX509)
	huma.Register(s.huma, op("sign-ssh-key", http.MethodPost, "/v1/ssh/roles/{id}/sign", "SSH certificates", "Certify a public key"), s.signSSH)
}

// A certifier answers for one kind of certificates.
type certifier struct {
	*Server
	kind pki.Kind
}

// A publishingAuthority is an authority that says where it publishes.
type publishingAuthority struct {
	pki.Authority
	Published string `json:"published" doc:"Where everybody finds its certificate and what it has revoked"`
}

func (c certifier) published(ctx context.Context, a *pki.Authority) publishingAuthority {
	return publishingAuthority{*a, string(c.issuer.Of(callerOf(ctx).Tenant)) + pki.Path + a.ID}
}

func (c certifier) authorities(ctx context.Context, in *struct{ Mounted }) (*many[publishingAuthority], error) {
	list, err := c.PKI.Authorities(ctx, callerOf(ctx), in.Mount, c.kind)
	out := make([]publishingAuthority, len(list))
	for i, a := range list {
		out[i] = c.published(ctx, a)
	}
	return pageOf(out, ""), c.problem(ctx, err)
}

func (c certifier) one(ctx context.Context, a *pki.Authority, err error) (*one[publishingAuthority], error) {
	if err != nil {
		return nil, c.problem(ctx, err)
	}
	return &one[publishingAuthority]{c.published(ctx, a)}, nil
}

func (c certifier) create(ctx context.Context, in *struct {
	Mounted
	Body struct {
		Name       string        `json:"name" minLength:"1" maxLength:"128"`
		CommonName string        `json:"common_name,omitempty" maxLength:"200" doc:"In its certificate; the name if left out"`
		Algorithm  pki.Algorithm `json:"algorithm,omitempty" doc:"ec-p256, ec-p384, ed25519, rsa-2048, rsa-3072 or rsa-4096; ec-p256 if left out"`
		Parent     string        `json:"parent,omitempty" doc:"The authority that signs it; none for a root"`
		Lifetime   int64         `json:"lifetime_seconds,omitempty" minimum:"0" doc:"Ten years of a root and one of others if left out"`
		MaxPath    *int          `json:"max_path,omitempty" doc:"How many authorities may stand below it"`
		Names      *pki.Names    `json:"constraints,omitempty" doc:"What it may name"`
	}
},
) (*one[publishingAuthority], error) {
	a, _, err := c.PKI.Generate(ctx, callerOf(ctx), pki.Plan{
		Mount: in.Mount, Kind: c.kind, Name: in.Body.Name, CommonName: in.Body.CommonName, Algorithm: in.Body.Algorithm, Parent: in.Body.Parent,
		Lifetime: seconds(in.Body.Lifetime), MaxPath: in.Body.MaxPath, Constrain: in.Body.Names,
	}, false)
	return c.one(ctx, a, err)
}

func (c certifier) bring(ctx context.Context, in *struct {
	Mounted
	Body struct {
		Name string `json:"name" minLength:"1" maxLength:"128"`
		PEM  string `json:"pem" minLength:"1" maxLength:"1000000" doc:"Its certificate and, if it is to sign, its private key; of SSH the private key"`
	}
},
) (*one[publishingAuthority], error) {
	text := estover.NewSecret([]byte(in.Body.PEM))
	if c.kind == pki.SSH {
		a, err := c.PKI.ImportSSH(ctx, callerOf(ctx), in.Mount, in.Body.Name, text)
		return c.one(ctx, a, err)
	}
	out, err := c.PKI.Import(ctx, callerOf(ctx), in.Mount, in.Body.Name, text)
	if err == nil && len(out.Authorities) == 0 {
		err = pki.ErrExists.With("The authority is here already.")
	}
	if err != nil {
		return nil, c.problem(ctx, err)
	}
	return c.one(ctx, out.Authorities[0], nil)
}

func (c certifier) authority(ctx context.Context, in *struct {
	Named
	Mounted
},
) (*one[publishingAuthority], error) {
	a, err := c.PKI.Authority(ctx, callerOf(ctx), in.Mount, c.kind, in.ID)
	return c.one(ctx, a, err)
}

func (c certifier) rotate(ctx context.Context, in *struct {
	Named
	Mounted
	Body struct {
		Overlap *int64 `json:"overlap_seconds,omitempty" minimum:"0" doc:"After how long the next one signs; twice the longest life of a certificate if left out, 0 for at once"`
	}
},
) (*one[publishingAuthority], error) {
	overlap := seconds(-1)
	if in.Body.Overlap != nil {
		overlap = seconds(*in.Body.Overlap)
	}
	a, err := c.PKI.Rotate(ctx, callerOf(ctx), in.Mount, c.kind, in.ID, overlap)
	return c.one(ctx, a, err)
}

func (c certifier) choose(ctx context.Context, in *struct {
	Named
	Mounted
},
) (*one[publishingAuthority], error) {
	a, err := c.PKI.SetDefault(ctx, callerOf(ctx), in.Mount, c.kind, in.ID)
	return c.one(ctx, a, err)
}

func (c certifier) retire(ctx context.Context, in *struct {
	Named
	Mounted
	Revoke bool `query:"revoke" doc:"Revoke all that it has signed too, and its own certificate"`
},
) (*struct{}, error) {
	return nil, c.problem(ctx, c.PKI.Retire(ctx, callerOf(ctx), in.Mount, c.kind, in.ID, in.Revoke))
}

// Each list has a type of its own, after which the document names it.
type (
	certificateRole   struct{ pki.Role }
	certificateRecord struct{ pki.Record }
)

func (c certifier) roles(ctx context.Context, in *struct{ Mounted }) (*many[certificateRole], error) {
	list, err := c.PKI.Roles(ctx, callerOf(ctx), in.Mount, c.kind)
	out := make([]certificateRole, len(list))
	for i, r := range list {
		out[i] = certificateRole{*r}
	}
	return pageOf(out, ""), c.problem(ctx, err)
}

func (c certifier) putRole(ctx context.Context, in *struct {
	Named
	Mounted
	Body pki.Spec
},
) (*one[pki.Role], error) {
	r, err := c.PKI.PutRole(ctx, callerOf(ctx), in.Mount, c.kind, in.ID, in.Body)
	return &one[pki.Role]{r}, c.problem(ctx, err)
}

func (c certifier) role(ctx context.Context, in *struct {
	Named
	Mounted
},
) (*one[pki.Role], error) {
	r, err := c.PKI.Role(ctx, callerOf(ctx), in.Mount, c.kind, in.ID)
	if err != nil {
		return nil, c.problem(ctx, err)
	}
	return &one[pki.Role]{*r}, nil
}

func (c certifier) removeRole(ctx context.Context, in *struct {
	Named
	Mounted
},
) (*struct{}, error) {
	return nil, c.problem(ctx, c.PKI.RemoveRole(ctx, callerOf(ctx), in.Mount, c.kind, in.ID))
}

func (c certifier) list(ctx context.Context, in *struct {
	Paging
	Mounted
	Agent   string `query:"agent" doc:"Only those of this agent, by id"`
	Session string `query:"session" doc:"Only those of this session"`
	Revoked bool   `query:"revoked" doc:"Only those that were revoked"`
	Live    bool   `query:"live" doc:"Only those that hold"`
},
) (*many[certificateRecord], error) {
	list, err := c.PKI.Certificates(ctx, callerOf(ctx), pki.CertificateFilter{
		Mount: in.Mount, Kind: c.kind, Agent: in.Agent, Session: in.Session, Revoked: in.Revoked, Live: in.Live, After: in.Cursor, Limit: in.Limit,
	})
	next := ""
	if err == nil && len(list) == in.Limit {
		next = list[len(list)-1].Serial
	}
	out := make([]certificateRecord, len(list))
	for i := range list {
		out[i] = certificateRecord{list[i]}
	}
	return pageOf(out, next), c.problem(ctx, err)
}

// A shownCertificate is one with its text.
type shownCertificate struct {
	pki.Record
	PEM string `json:"certificate"`
}

// serial is a serial number as it is kept.
func (c certifier) serial(text string) string {
	if c.kind == pki.SSH {
		return text
	}
	return pki.ParseSerial(text)
}

func (c certifier) show(ctx context.Context, in *struct {
	Named
	Mounted
},
) (*one[shownCertificate], error) {
	r, err := c.PKI.Certificate(ctx, callerOf(ctx), in.Mount, c.kind, c.serial(in.ID))
	if err != nil {
		return nil, c.problem(ctx, err)
	}
	return &one[shownCertificate]{shownCertificate{r, r.PEM()}}, nil
}

// A revokedCertificate says what goes on.
type revokedCertificate struct {
	pki.Record
	Lingers string `json:"lingers" doc:"What goes on after the revocation"`
}

func (c certifier) revoke(ctx context.Context, in *struct {
	Named
	Mounted
	Body struct {
		Reason string `json:"reason,omitempty" enum:"unspecified,key_compromise,ca_compromise,superseded,cessation_of_operation" doc:"unspecified if left out"`
		Cause  string `json:"cause,omitempty" maxLength:"500" doc:"Why, in words"`
	}
},
) (*one[revokedCertificate], error) {
	r, err := c.PKI.Revoke(ctx, callerOf(ctx), in.Mount, c.kind, c.serial(in.ID), pki.Reasons[in.Body.Reason], in.Body.Cause)
	lingers := pki.Lingers
	if c.kind == pki.SSH {
		lingers = pki.LingersSSH
	}
	return &one[revokedCertificate]{revokedCertificate{r, lingers}}, c.problem(ctx, err)
}

// A CertificateWish is what is asked for beside a request.
type CertificateWish struct {
	CommonName string   `json:"common_name,omitempty" maxLength:"200"`
	DNS        []string `json:"dns,omitempty" maxItems:"100"`
	Emails     []string `json:"emails,omitempty" maxItems:"100"`
	IPs        []string `json:"ips,omitempty" maxItems:"100"`
	URIs       []string `json:"uris,omitempty" maxItems:"100"`
	TTL        int64    `json:"ttl_seconds,omitempty" minimum:"0" doc:"How long it lives; as long as the role says if left out, and never longer than the session and the grant"`
	Authority  string   `json:"authority,omitempty" doc:"Instead of the role's"`
}

func (w CertificateWish) of(mount, role string) pki.Wish {
	return pki.Wish{
		Mount: mount, Role: role, CommonName: w.CommonName, Alternative: pki.Alternative{DNS: w.DNS, Emails: w.Emails, IPs: w.IPs, URIs: w.URIs}, TTL: seconds(w.TTL), Authority: w.Authority,
	}
}

func (s *Server) certified(ctx context.Context, c *pki.Certificate, err error) (*one[pki.Certificate], error) {
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	return &one[pki.Certificate]{*c}, nil
}

func (s *Server) signX509(ctx context.Context, in *struct {
	Named
	Mounted
	Body struct {
		CertificateWish
		CSR string `json:"csr" minLength:"1" maxLength:"65536" doc:"The request, in PEM"`
	}
},
) (*one[pki.Certificate], error) {
	csr, err := pki.ParseRequest(in.Body.CSR)
	if err != nil {
		return nil, s.problem(ctx, err)
	}
	c, err := s.PKI.Sign(ctx, callerOf(ctx), in.Body.of(in.Mount, in.ID), csr)
	return s.certified(ctx, c, err)
}

func (s *Server) issueX509(ctx context.Context, in *struct {
	Named
	Mounted
	Body CertificateWish
},
) (*one[pki.Certificate], error) {
	c, err := s.PKI.Issue(ctx, callerOf(ctx), in.Body.of(in.Mount, in.ID))
	return s.certified(ctx, c, err)
}

func (s *Server) signSSH(ctx context.Context, in *struct {
	Named
	Mounted
	Body struct {
		PublicKey  string            `json:"public_key" minLength:"1" maxLength:"16384" doc:"A line of a .pub file"`
		Host       bool              `json:"host,omitempty" doc:"A certificate of a host"`
		Principals []string          `json:"principals,omitempty" maxItems:"100" doc:"The names to certify: users on servers, or names of the host"`
		TTL        int64             `json:"ttl_seconds,omitempty" minimum:"0"`
		Options    map[string]string `json:"options,omitempty" doc:"Critical options; the role's if left out"`
		Extensions map[string]string `json:"extensions,omitempty" doc:"Extensions; the role's if left out"`
		KeyID      string            `json:"key_id,omitempty" maxLength:"512"`
	}
},
) (*one[pki.Certificate], error) {
	b := in.Body
	c, err := s.PKI.SignSSH(ctx, callerOf(ctx), pki.SSHWish{
		Mount: in.Mount, Role: in.ID, PublicKey: b.PublicKey, Host: b.Host, Principals: b.Principals, TTL: seconds(b.TTL), Options: b.Options, Extensions: b.Extensions, KeyID: b.KeyID,
	})
	return s.certified(ctx, c, err)
}
