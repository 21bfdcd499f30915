package vault

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/pki"
)

func (d *Door) sshCertificates() []Route {
	route := func(r Route) Route { r.Mount = "ssh"; return r }
	return []Route{
		route(Route{Path: "config/ca", Read: d.readSSHAuthority, Write: d.putSSHAuthority, Delete: d.dropSSHAuthority, Help: "the key that signs"}),
		route(Route{Path: "public_key", Read: d.sshPublicKey, Open: true, Help: "the public key of the authority, as a line"}),
		route(Route{Path: "roles", List: d.listCertRoles(pki.SSH), Help: "the roles"}),
		route(Route{Path: "roles/:name", Read: d.readSSHRole, Write: d.putSSHRole, Delete: d.dropCertRole(pki.SSH), Exists: d.certRoleThere(pki.SSH), Help: "a role: what may be in a certificate"}),
		route(Route{Path: "sign/:role", Write: d.signSSH, Help: "certify a public key"}),
		route(Route{Path: "issue/:role", Write: d.issueSSH, Help: "make a key and certify it"}),
	}
}

// caName is the one authority of an ssh mount.
const caName = "ca"

func (d *Door) sshAuthority(ctx context.Context, q *Request) (*pki.Authority, error) {
	a, err := d.PKI.Authority(ctx, q.Caller, q.Mount.ID, pki.SSH, caName)
	if errors.Is(err, pki.ErrNoAuthority) {
		err = refuse(http.StatusBadRequest, "keys haven't been configured yet").because(err)
	}
	return a, err
}

func (d *Door) readSSHAuthority(ctx context.Context, q *Request) (*Answer, error) {
	a, err := d.sshAuthority(ctx, q)
	if err != nil {
		return nil, err
	}
	return &Answer{Data: map[string]any{"public_key": a.PublicKey + "\n"}}, nil
}

func (d *Door) sshPublicKey(ctx context.Context, q *Request) (*Answer, error) {
	a, err := d.PKI.Issuer(ctx, q.Tenant, q.Mount.ID, pki.SSH, caName)
	if errors.Is(err, pki.ErrNoAuthority) {
		return &Answer{Status: http.StatusNoContent, RawType: "text/plain"}, nil
	}
	if err != nil {
		return nil, err
	}
	return &Answer{Raw: []byte(a.PublicKey + "\n"), RawType: "text/plain"}, nil
}

func (d *Door) putSSHAuthority(ctx context.Context, q *Request) (*Answer, error) {
	in := struct {
		Private  estover.Secret `json:"private_key"`
		Public   string         `json:"public_key"`
		Generate *bool          `json:"generate_signing_key"`
		Type     string         `json:"key_type"`
		Bits     int            `json:"key_bits"`
	}{}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	var a *pki.Authority
	var err error
	if in.Private.Empty() {
		if in.Public != "" || in.Generate != nil && !*in.Generate {
			return nil, refuse(http.StatusBadRequest, "missing private_key")
		}
		algorithm, ok := map[string]pki.Algorithm{
			"": pki.RSA4096, "ssh-rsa": pki.RSA4096, "rsa": pki.RSA4096, "ec": pki.P256, "ecdsa-sha2-nistp256": pki.P256, "ecdsa-sha2-nistp384": pki.P384, "ed25519": pki.Ed25519, "ssh-ed25519": pki.Ed25519,
		}[in.Type]
		switch {
		case in.Bits == 2048 && algorithm == pki.RSA4096:
			algorithm = pki.RSA2048
		case in.Bits == 3072 && algorithm == pki.RSA4096:
			algorithm = pki.RSA3072
		case in.Bits == 384 && in.Type == "ec":
			algorithm = pki.P384
		}
		if !ok {
			return nil, refuse(http.StatusBadRequest, "unknown ssh key type %s", in.Type)
		}
		a, _, err = d.PKI.Generate(ctx, q.Caller, pki.Plan{Mount: q.Mount.ID, Name: caName, Kind: pki.SSH, Algorithm: algorithm, Lifetime: 10 * 365 * 24 * time.Hour}, false)
	} else {
		a, err = d.PKI.ImportSSH(ctx, q.Caller, q.Mount.ID, caName, in.Private)
	}
	if errors.Is(err, pki.ErrExists) {
		err = refuse(http.StatusBadRequest, "keys are already configured; delete them before reconfiguring").because(err)
	}
	if err != nil {
		return nil, err
	}
	if !in.Private.Empty() {
		return nil, nil
	}
	return &Answer{Data: map[string]any{"public_key": a.PublicKey + "\n"}}, nil
}

func (d *Door) dropSSHAuthority(ctx context.Context, q *Request) (*Answer, error) {
	a, err := d.PKI.Authority(ctx, q.Caller, q.Mount.ID, pki.SSH, caName)
	if err != nil {
		return nil, err
	}
	if err := d.PKI.Retire(ctx, q.Caller, q.Mount.ID, pki.SSH, a.ID, false); err != nil {
		return nil, err
	}
	return nil, d.PKI.RemoveKey(ctx, q.Caller, q.Mount.ID, a.KeyID)
}

// An sshRole is a role as clients know it: it reads back as it was written.
type sshRole struct {
	KeyType           string            `json:"key_type"`
	TTL               int64             `json:"ttl"`
	MaxTTL            int64             `json:"max_ttl"`
	AllowedUsers      string            `json:"allowed_users"`
	AllowedUsersT     bool              `json:"allowed_users_template"`
	DefaultUser       string            `json:"default_user"`
	DefaultUserT      bool              `json:"default_user_template"`
	AllowedDomains    string            `json:"allowed_domains"`
	AllowedDomainsT   bool              `json:"allowed_domains_template"`
	AllowedOptions    string            `json:"allowed_critical_options"`
	AllowedExtensions string            `json:"allowed_extensions"`
	DefaultOptions    map[string]string `json:"default_critical_options"`
	DefaultExtensions map[string]string `json:"default_extensions"`
	DefaultExtT       bool              `json:"default_extensions_template"`
	AllowUser         bool              `json:"allow_user_certificates"`
	AllowHost         bool              `json:"allow_host_certificates"`
	AllowBare         bool              `json:"allow_bare_domains"`
	AllowSubdomains   bool              `json:"allow_subdomains"`
	AllowKeyIDs       bool              `json:"allow_user_key_ids"`
	KeyIDFormat       string            `json:"key_id_format"`
	KeyLengths        map[string]any    `json:"allowed_user_key_lengths"`
	Algorithm         string            `json:"algorithm_signer"`
	NotBefore         int64             `json:"not_before_duration"`
	Resource          string            `json:"resource,omitempty"`
	Action            string            `json:"action,omitempty"`
}

func (d *Door) readSSHRole(ctx context.Context, q *Request) (*Answer, error) {
	r, err := d.PKI.Role(ctx, q.Caller, q.Mount.ID, pki.SSH, q.Param("name"))
	if err != nil {
		return nil, err
	}
	return &Answer{Data: r.Beside}, nil
}

func (d *Door) putSSHRole(ctx context.Context, q *Request) (*Answer, error) {
	asked := struct {
		KeyType           string            `json:"key_type"`
		TTL               time.Duration     `json:"ttl"`
		MaxTTL            time.Duration     `json:"max_ttl"`
		AllowedUsers      string            `json:"allowed_users"`
		AllowedUsersT     bool              `json:"allowed_users_template"`
		DefaultUser       string            `json:"default_user"`
		DefaultUserT      bool              `json:"default_user_template"`
		AllowedDomains    string            `json:"allowed_domains"`
		AllowedDomainsT   bool              `json:"allowed_domains_template"`
		AllowedOptions    string            `json:"allowed_critical_options"`
		AllowedExtensions string            `json:"allowed_extensions"`
		DefaultOptions    map[string]string `json:"default_critical_options"`
		DefaultExtensions map[string]string `json:"default_extensions"`
		DefaultExtT       bool              `json:"default_extensions_template"`
		AllowUser         bool              `json:"allow_user_certificates"`
		AllowHost         bool              `json:"allow_host_certificates"`
		AllowBare         bool              `json:"allow_bare_domains"`
		AllowSubdomains   bool              `json:"allow_subdomains"`
		AllowKeyIDs       bool              `json:"allow_user_key_ids"`
		KeyIDFormat       string            `json:"key_id_format"`
		KeyLengths        json.RawMessage   `json:"allowed_user_key_lengths"`
		Algorithm         string            `json:"algorithm_signer"`
		NotBefore         time.Duration     `json:"not_before_duration"`
		Resource          string            `json:"resource"`
		Action            string            `json:"action"`
	}{NotBefore: 30 * time.Second, Algorithm: "default"}
	if err := q.Read(&asked); err != nil {
		return nil, err
	}
	r := sshRole{
		KeyType: asked.KeyType, TTL: seconds(asked.TTL), MaxTTL: seconds(asked.MaxTTL), AllowedUsers: asked.AllowedUsers, AllowedUsersT: asked.AllowedUsersT, DefaultUser: asked.DefaultUser,
		DefaultUserT: asked.DefaultUserT, AllowedDomains: asked.AllowedDomains, AllowedDomainsT: asked.AllowedDomainsT, AllowedOptions: asked.AllowedOptions, AllowedExtensions: asked.AllowedExtensions,
		DefaultOptions: asked.DefaultOptions, DefaultExtensions: asked.DefaultExtensions, DefaultExtT: asked.DefaultExtT, AllowUser: asked.AllowUser, AllowHost: asked.AllowHost, AllowBare: asked.AllowBare,
		AllowSubdomains: asked.AllowSubdomains, AllowKeyIDs: asked.AllowKeyIDs, KeyIDFormat: asked.KeyIDFormat, Algorithm: asked.Algorithm, NotBefore: seconds(asked.NotBefore), Resource: asked.Resource, Action: asked.Action,
	}
	if r.DefaultOptions == nil {
		r.DefaultOptions = map[string]string{}
	}
	if r.DefaultExtensions == nil {
		r.DefaultExtensions = map[string]string{}
	}
	r.KeyLengths = map[string]any{}
	switch {
	case r.KeyType == "":
		return nil, refuse(http.StatusBadRequest, "missing key type")
	case r.KeyType != "ca":
		return nil, refuse(http.StatusBadRequest, "only roles of the key_type \"ca\" are offered: one-time passwords are not")
	case r.AllowedUsersT && strings.Contains(r.AllowedUsers, "{{identity"), r.DefaultUserT && strings.Contains(r.DefaultUser, "{{identity"), r.DefaultExtT:
		return nil, refuse(http.StatusBadRequest, "identity templates are not offered; {{agent}} and {{session}} are")
	}
	keys := map[string][]int{}
	if len(asked.KeyLengths) > 0 && string(asked.KeyLengths) != "null" {
		if err := json.Unmarshal(asked.KeyLengths, &r.KeyLengths); err != nil {
			return nil, refuse(http.StatusBadRequest, "allowed_user_key_lengths is an object")
		}
		for name, v := range r.KeyLengths {
			list, many := v.([]any)
			if !many {
				list = []any{v}
			}
			keys[name] = []int{}
			for _, one := range list {
				n, ok := one.(float64)
				if !ok {
					return nil, refuse(http.StatusBadRequest, "allowed_user_key_lengths holds numbers")
				}
				keys[name] = append(keys[name], int(n))
			}
		}
	}
	beside, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	split := func(s string) []string {
		var all []string
		for one := range strings.SplitSeq(s, ",") {
			if one = strings.TrimSpace(one); one != "" {
				all = append(all, one)
			}
		}
		return all
	}
	everything := func(s string) []string { // an empty list allows all that there is
		if list := split(s); len(list) > 0 {
			return list
		}
		return []string{"*"}
	}
	spec := pki.SSHSpec{
		User: r.AllowUser, Host: r.AllowHost, Principals: split(r.AllowedUsers), Default: split(r.DefaultUser), Domains: split(r.AllowedDomains), Subdomains: r.AllowSubdomains, Bare: r.AllowBare,
		Options: everything(r.AllowedOptions), DefaultOptions: r.DefaultOptions, Extensions: split(r.AllowedExtensions), DefaultExtended: r.DefaultExtensions,
		KeyID: r.KeyIDFormat, AskKeyID: r.AllowKeyIDs, Keys: keys, NotBefore: r.NotBefore,
	}
	_, err = d.PKI.PutRole(ctx, q.Caller, q.Mount.ID, pki.SSH, q.Param("name"), pki.Spec{
		Authority: caName, TTL: r.TTL, MaxTTL: r.MaxTTL, SSH: &spec, Beside: beside, Resource: r.Resource, Action: r.Action,
	})
	return nil, err
}

// An sshAsk is what clients ask of a certificate.
type sshAsk struct {
	PublicKey  string            `json:"public_key"`
	TTL        time.Duration     `json:"ttl"`
	Principals string            `json:"valid_principals"`
	Type       string            `json:"cert_type"`
	KeyID      string            `json:"key_id"`
	Options    map[string]string `json:"critical_options"`
	Extensions map[string]string `json:"extensions"`
	KeyType    string            `json:"key_type"`
	KeyBits    int               `json:"key_bits"`
}

func (d *Door) sshWish(q *Request) (pki.SSHWish, *sshAsk, error) {
	in := &sshAsk{Type: "user"}
	if err := q.Read(in); err != nil {
		return pki.SSHWish{}, nil, err
	}
	if in.Type != "user" && in.Type != "host" {
		return pki.SSHWish{}, nil, refuse(http.StatusBadRequest, "cert_type must be either 'user' or 'host'")
	}
	usual, most := q.Mount.TTL()
	w := pki.SSHWish{
		Mount: q.Mount.ID, Role: q.Param("role"), PublicKey: in.PublicKey, Host: in.Type == "host", TTL: in.TTL, Options: in.Options, Extensions: in.Extensions, KeyID: in.KeyID,
		Usual: time.Duration(usual) * time.Second, Longest: time.Duration(most) * time.Second,
	}
	w.Principals = principals(in.Principals)
	return w, in, nil
}

// principals are those that a text names with commas between them, each once.
func principals(text string) (all []string) {
	seen := map[string]bool{}
	for one := range strings.SplitSeq(text, ",") {
		if one = strings.TrimSpace(one); one != "" && !seen[one] {
			seen[one] = true
			all = append(all, one)
		}
	}
	return all
}

// noCertRole puts it into the words that clients know that a role is not there.
func noCertRole(err error, name string) error {
	if errors.Is(err, pki.ErrNoRole) {
		return refuse(http.StatusBadRequest, "unknown role: %s", name).because(err)
	}
	return err
}

func sshData(c *pki.Certificate) map[string]any {
	serial := c.Serial
	if n, err := strconv.ParseUint(c.Serial, 10, 64); err == nil {
		serial = strconv.FormatUint(n, 16)
	}
	return map[string]any{"serial_number": serial, "signed_key": c.PEM + "\n"}
}

func (d *Door) signSSH(ctx context.Context, q *Request) (*Answer, error) {
	w, in, err := d.sshWish(q)
	if err != nil {
		return nil, err
	}
	if in.PublicKey == "" {
		return nil, refuse(http.StatusBadRequest, "missing public_key")
	}
	c, err := d.PKI.SignSSH(ctx, q.Caller, w)
	if err != nil {
		return nil, noCertRole(err, w.Role)
	}
	return &Answer{Data: sshData(c)}, nil
}

func (d *Door) issueSSH(ctx context.Context, q *Request) (*Answer, error) {
	w, in, err := d.sshWish(q)
	if err != nil {
		return nil, err
	}
	algorithm, err := keyAlgorithm(cmp.Or(in.KeyType, "rsa"), in.KeyBits)
	if err != nil {
		return nil, err
	}
	c, err := d.PKI.IssueSSH(ctx, q.Caller, w, algorithm)
	if err != nil {
		return nil, noCertRole(err, w.Role)
	}
	data := sshData(c)
	data["private_key"], data["private_key_type"] = c.PrivateKey, cmp.Or(in.KeyType, "rsa")
	return &Answer{Data: data}, nil
}

// keyAlgorithm is the key that clients ask for by its type and its bits.
func keyAlgorithm(kind string, bits int) (pki.Algorithm, error) {
	all := map[string]map[int]pki.Algorithm{
		"rsa": {0: pki.RSA2048, 2048: pki.RSA2048, 3072: pki.RSA3072, 4096: pki.RSA4096}, "ec": {0: pki.P256, 256: pki.P256, 384: pki.P384}, "ed25519": {0: pki.Ed25519, 256: pki.Ed25519},
	}
	a, ok := all[kind][bits]
	if !ok {
		return "", refuse(http.StatusBadRequest, "a key of the type %s with %d bits is not made here; it is rsa with 2048, 3072 or 4096, ec with 256 or 384, or ed25519", strings.ToValidUTF8(kind, "?"), bits)
	}
	return a, nil
}
