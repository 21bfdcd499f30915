package vault_test

import (
	"slices"
	"strings"
	"testing"

	"estover.dev/internal/vault"
)

// promised are the routes that clients of Vault have to find, by the kind of mount:
// methods, and paths in which {a,b} is each of them.
const promised = `
system
	GET health seal-status leader init key-status mounts auth policies/acl policy leases/count remount/status/:id internal/ui/mounts internal/ui/mounts/*path audit wrapping/lookup
	POST init unseal seal rotate remount capabilities-self capabilities capabilities-accessor renew revoke revoke-prefix/*prefix
	POST leases/{lookup,renew,renew/*id,revoke,revoke/*id,revoke-prefix/*prefix,revoke-force/*prefix,tidy} wrapping/{wrap,unwrap,lookup,rewrap} audit-hash/*path tools/{hash,random}
	GET,POST,DELETE mounts/*path auth/*path mounts/auth/*path policies/acl/:name policy/:name policies/password/:name config/auditing/request-headers/:name
	GET,POST mounts/*path/tune auth/*path/tune mounts/auth/*path/tune
	GET policies/password/:name/generate config/auditing/request-headers
	LIST policies/acl policy leases/lookup/*prefix
	POST,DELETE audit/*path
cubbyhole
	GET,LIST,POST,DELETE *path
token
	POST create create-orphan create/:role lookup lookup-accessor lookup-self renew renew-self renew-accessor revoke revoke-self revoke-orphan revoke-accessor tidy
	GET lookup-self
	LIST accessors roles
	GET,POST,DELETE roles/:name
approle
	POST login role/:name/{secret-id,secret-id/lookup,secret-id/destroy,secret-id-accessor/lookup,secret-id-accessor/destroy,custom-secret-id} tidy/secret-id
	LIST role role/:name/secret-id
	GET,POST,DELETE role/:name
	GET,POST role/:name/role-id
	GET,POST,DELETE role/:name/{policies,period,bind-secret-id,secret-id-num-uses,secret-id-ttl,secret-id-bound-cidrs,token-ttl,token-max-ttl,token-num-uses,token-bound-cidrs,local-secret-ids}
jwt
	GET,POST config oidc/callback
	GET,POST,DELETE role/:name
	LIST role
	POST login oidc/auth_url
oidc
	GET,POST config oidc/callback
	GET,POST,DELETE role/:name
	LIST role
	POST login oidc/auth_url
cert
	GET,POST config
	LIST certs
	GET,POST,DELETE certs/:name crls/:name
	POST login
kv/2
	GET,POST config
	GET,POST,PATCH,DELETE data/*path metadata/*path
	LIST metadata/*path
	POST delete/*path undelete/*path destroy/*path
	GET subkeys/*path
kv/1
	GET,POST,DELETE,LIST *path
database
	LIST config roles static-roles
	GET,POST,DELETE {config,roles,static-roles}/:name
	GET creds/:name static-creds/:name
	POST rotate-role/:name rotate-root/:name reset/:name
pki
	LIST roles issuers keys certs certs/revoked
	GET,POST,DELETE roles/:name key/:ref issuer/:ref
	POST issue/:role sign/:role sign-verbatim sign-verbatim/:role issuer/:ref/{issue/:role,sign/:role,sign-verbatim,sign-verbatim/:role,sign-intermediate}
	POST root/generate/:type issuers/generate/root/:type root/rotate/:type root/replace intermediate/generate/:type issuers/generate/intermediate/:type
	POST intermediate/set-signed sign-intermediate root/sign-intermediate issuers/import/:kind keys/import keys/generate/:type config/ca revoke revoke-with-key crl/rotate ocsp tidy tidy-cancel
	DELETE root
	GET issuer/:ref/{json,pem,der,crl,crl/pem,crl/der} cert/:serial ca ca/pem ca_chain crl crl/pem ocsp/*question tidy-status
	GET,POST config/{urls,crl,issuers,keys,cluster,auto-tidy}
ssh
	LIST roles
	GET,POST,DELETE roles/:name config/ca
	POST sign/:role issue/:role
	GET public_key
transit
	LIST keys
	GET,POST,DELETE keys/:name
	POST keys/:name/{config,rotate,trim,import,import_version} {encrypt,decrypt,rewrap,sign,verify,hmac}/:name {sign,verify,hmac}/:name/:algorithm datakey/:kind/:name hash random
	GET wrapping_key export/:type/:name export/:type/:name/:version
	GET,POST cache-config
`

// Every route that was promised is there, with its methods.
func TestPromisedRoutes(t *testing.T) {
	there := map[string][]string{}
	for _, r := range vault.New(vault.Parts{}, vault.Options{}).Routes() {
		for method, h := range map[string]vault.Handler{"GET": r.Read, "LIST": r.List, "POST": r.Write, "PATCH": r.Patch, "DELETE": r.Delete} {
			if h != nil {
				there[r.Mount+" "+r.Path] = append(there[r.Mount+" "+r.Path], method)
			}
		}
	}
	kind, n := "", 0
	for line := range strings.Lines(strings.TrimSpace(promised)) {
		words := strings.Fields(line)
		if !strings.HasPrefix(line, "\t") {
			kind = words[0]
			continue
		}
		for _, word := range words[1:] {
			for _, path := range each(word) {
				n++
				have := there[kind+" "+path]
				for method := range strings.SplitSeq(words[0], ",") {
					if !slices.Contains(have, method) {
						t.Errorf("%s has no %s %s; there are %v", kind, method, path, have)
					}
				}
			}
		}
	}
	if n < 150 {
		t.Errorf("only %d routes were looked for", n)
	}
}

// each is every path that a word with braces stands for.
func each(word string) (all []string) {
	before, rest, ok := strings.Cut(word, "{")
	if !ok {
		return []string{word}
	}
	inside, after, _ := strings.Cut(rest, "}")
	for one := range strings.SplitSeq(inside, ",") {
		all = append(all, before+one+after)
	}
	return all
}
