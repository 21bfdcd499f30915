package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"time"
)

// company is what the cases work with: a resource over an upstream that may
// not exist, and agents that are granted it.
func company(agents int) string {
	documents := `apiVersion: estover.dev/v1
kind: Person
metadata: {name: alice}
spec: {roles: [operator]}
---
apiVersion: estover.dev/v1
kind: Resource
metadata: {name: crm}
spec:
  base_url: https://crm.example.com
  class: confidential
  actions:
    - {name: customer.list, method: GET, path: /v1/customers, effect: search}
    - {name: customer.read, method: GET, path: "/v1/customers/{id}"}
    - {name: note.add, method: POST, path: "/v1/customers/{id}/notes", effect: write}
`
	for i := range agents {
		documents += fmt.Sprintf(`---
apiVersion: estover.dev/v1
kind: Agent
metadata: {name: bot-%[1]d}
spec: {blueprint: support, sponsor: alice, purposes: [support], clearance: confidential}
---
apiVersion: estover.dev/v1
kind: Grant
metadata: {name: bot-%[1]d-reads}
spec: {agent: bot-%[1]d, resource: crm, actions: [customer.list, customer.read], purposes: [support], class: confidential}
`, i)
	}
	return documents
}

const tokenPath = "/oauth/token"

var formType = map[string]string{"Content-Type": "application/x-www-form-urlencoded"}

// bySecret is a token request of an agent that has a client secret.
func bySecret(host string, c credential) []byte {
	form := url.Values{"grant_type": {"client_credentials"}, "resource": {"https://crm.example.com"}}
	return request("POST", tokenPath, host, map[string]string{
		"Content-Type":  formType["Content-Type"],
		"Authorization": "Basic " + base64.StdEncoding.EncodeToString([]byte(c.ID+":"+c.Secret)),
	}, []byte(form.Encode()))
}

// byKey makes token requests of an agent that signs, each with an assertion of
// its own.
func byKey(host, issuer, id string, key *ecdsa.PrivateKey) func() []byte {
	header := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"ES256","typ":"JWT","kid":"bench"}`))
	form := url.Values{
		"grant_type": {"client_credentials"}, "resource": {"https://crm.example.com"}, "client_id": {id},
		"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
	}.Encode() + "&client_assertion="
	return func() []byte {
		now := time.Now().Unix()
		signed := header + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"iss":"`+id+`","sub":"`+id+`","aud":"`+issuer+
			`","jti":"`+rand.Text()+`","iat":`+strconv.FormatInt(now, 10)+`,"exp":`+strconv.FormatInt(now+60, 10)+`}`))
		sum := sha256.Sum256([]byte(signed))
		r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
		if err != nil {
			panic("bench: " + err.Error())
		}
		var sig [64]byte
		r.FillBytes(sig[:32])
		s.FillBytes(sig[32:])
		return request("POST", tokenPath, host, formType, []byte(form+signed+"."+base64.RawURLEncoding.EncodeToString(sig[:])))
	}
}

// publicJWKS is the key set that an agent registers.
func publicJWKS(key *ecdsa.PrivateKey) (json.RawMessage, error) {
	point, err := key.PublicKey.Bytes()
	if err != nil {
		return nil, err
	}
	enc := base64.RawURLEncoding
	return json.Marshal(map[string]any{"keys": []any{map[string]string{
		"kty": "EC", "crv": "P-256", "kid": "bench", "alg": "ES256", "use": "sig", "x": enc.EncodeToString(point[1:33]), "y": enc.EncodeToString(point[33:]),
	}}})
}

// callers is how many agents ask for tokens at once.
const callers = 32

// tokens compares the token endpoint with a handler that does what no durable
// token can do without: one signature and one row, committed together with
// others; and, for an agent that signs, the check of one signature.
func tokens(ctx context.Context, b *Bench) ([]Row, error) {
	in, err := b.install(ctx, "")
	if err != nil {
		return nil, err
	}
	defer in.stop()
	if err := in.apply(ctx, company(2)); err != nil {
		return nil, err
	}
	secret, err := in.secret(ctx, "bot-0")
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	jwks, err := publicJWKS(key)
	if err != nil {
		return nil, err
	}
	signing, err := in.keySet(ctx, "bot-1", jwks)
	if err != nil {
		return nil, err
	}
	_, port, err := net.SplitHostPort(in.addr)
	if err != nil {
		return nil, err
	}
	var rows []Row
	for _, c := range []struct {
		name, peer, against string
		next                func() []byte
	}{
		{"token", "sign", "a handler that signs one ES256 JWT and commits one row, many in a commit", always(bySecret(in.addr, secret))},
		{"token-private-key-jwt", "sign-and-check", "the same and one check of an ES256 signature", byKey(in.addr, "http://localhost:"+port, signing.ID, key)},
	} {
		file, err := b.fileIn("peer-*.db")
		if err != nil {
			return nil, err
		}
		peer, err := b.startPeer(ctx, c.peer, file)
		if err != nil {
			return nil, err
		}
		theirs := always(request("POST", "/", peer.addr, formType, []byte("grant_type=client_credentials&resource=https%3A%2F%2Fcrm.example.com")))
		ratio, micros, err := b.versus(ctx, in.process, peer, callers, c.next, theirs)
		peer.stop()
		if err != nil {
			return nil, err
		}
		rows = append(rows, Row{Name: c.name, Ratio: ratio, Target: 1.6, Better: "lower", Against: c.against, Value: micros, Unit: "µs of CPU a token"})
	}
	return rows, nil
}
