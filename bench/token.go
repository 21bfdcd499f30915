package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// company is what the cases work with: a resource over an upstream that may
// not exist, and agents that are granted it, with these settings of their OAuth
// client.
func company(agents int, client string) string {
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
spec: {blueprint: support, sponsor: alice, purposes: [support], clearance: confidential, client: {%[2]s}}
---
apiVersion: estover.dev/v1
kind: Grant
metadata: {name: bot-%[1]d-reads}
spec: {agent: bot-%[1]d, resource: crm, actions: [customer.list, customer.read], purposes: [support], class: confidential}
`, i, client)
	}
	return documents
}

const tokenPath = "/oauth/token"

var formType = map[string]string{"Content-Type": "application/x-www-form-urlencoded"}

// bySecret is a request of an agent that has a client secret.
func bySecret(path, host string, c credential, pairs ...string) []byte {
	return request("POST", path, host, map[string]string{
		"Content-Type":  formType["Content-Type"],
		"Authorization": "Basic " + base64.StdEncoding.EncodeToString([]byte(c.ID+":"+c.Secret)),
	}, []byte(form(pairs...).Encode()))
}

// forOwn is what an agent sends that asks for a token of its own.
var forOwn = []string{"grant_type", "client_credentials", "resource", crm}

// crm is the resource of the company.
const crm = "https://crm.example.com"

func form(pairs ...string) url.Values {
	f := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		f.Set(pairs[i], pairs[i+1])
	}
	return f
}

// byKey makes token requests of an agent that signs, each with an assertion of
// its own, and with a proof of its own if it shows a key.
func byKey(host, issuer, id string, key *ecdsa.PrivateKey, shown *prover) func() []byte {
	header := encoded(`{"alg":"ES256","typ":"JWT","kid":"bench"}`)
	fixed := form(slices.Concat(forOwn, []string{
		"client_id", id, "client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
	})...).Encode() + "&client_assertion="
	return func() []byte {
		now := time.Now().Unix()
		assertion := signed(key, header, `{"iss":"`+id+`","sub":"`+id+`","aud":"`+issuer+
			`","jti":"`+rand.Text()+`","iat":`+strconv.FormatInt(now, 10)+`,"exp":`+strconv.FormatInt(now+60, 10)+`}`)
		head := formType
		if shown != nil {
			head = map[string]string{"Content-Type": formType["Content-Type"], "DPoP": shown.proof()}
		}
		return request("POST", tokenPath, host, head, []byte(fixed+assertion))
	}
}

// A prover shows that it has a key, at one URL (RFC 9449).
type prover struct {
	key    *ecdsa.PrivateKey
	header string
	url    string
	nonce  string // "" until the server has given one
}

func newProver(url string) (*prover, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	jwk, err := publicJWK(key)
	if err != nil {
		return nil, err
	}
	header, err := json.Marshal(map[string]any{"alg": "ES256", "typ": "dpop+jwt", "jwk": jwk})
	return &prover{key: key, header: encoded(string(header)), url: url}, err
}

func (p *prover) proof() string {
	return signed(p.key, p.header, `{"htm":"POST","htu":"`+p.url+`","jti":"`+rand.Text()+`","iat":`+strconv.FormatInt(time.Now().Unix(), 10)+`,"nonce":"`+p.nonce+`"}`)
}

// learn gets a nonce by a request that has none.
func (p *prover) learn(ctx context.Context, at *process, req []byte) error {
	conn, err := at.connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Write(req); err != nil {
		return err
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), noRequest)
	if err != nil {
		return err
	}
	_ = res.Body.Close()
	if p.nonce = res.Header.Get("DPoP-Nonce"); p.nonce == "" {
		return fmt.Errorf("the server gave no nonce: %s", res.Status)
	}
	return nil
}

func encoded(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// signed is a JWS with ES256. Its header is encoded already.
func signed(key *ecdsa.PrivateKey, header, claims string) string {
	text := header + "." + encoded(claims)
	sum := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		panic("bench: " + err.Error())
	}
	var sig [64]byte
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return text + "." + encoded(string(sig[:]))
}

// publicJWK is the public half of a key.
func publicJWK(key *ecdsa.PrivateKey) (map[string]string, error) {
	point, err := key.PublicKey.Bytes()
	if err != nil {
		return nil, err
	}
	return map[string]string{"kty": "EC", "crv": "P-256", "x": encoded(string(point[1:33])), "y": encoded(string(point[33:]))}, nil
}

// publicJWKS is the key set that an agent registers.
func publicJWKS(key *ecdsa.PrivateKey) (json.RawMessage, error) {
	jwk, err := publicJWK(key)
	if err != nil {
		return nil, err
	}
	jwk["kid"], jwk["alg"], jwk["use"] = "bench", "ES256", "sig"
	return json.Marshal(map[string]any{"keys": []any{jwk}})
}

// callers is how many agents ask for tokens at once.
const callers = 32

// tokens compares the token endpoint with a handler that does what no durable
// token can do without: one signature and one row, committed together with
// others; and, for an agent that signs, the check of one signature.
func tokens(ctx context.Context, b *Bench) ([]Row, error) {
	in, secret, err := b.first(ctx, company(1, ""))
	if err != nil {
		return nil, err
	}
	defer in.stop()
	row := Row{Name: "token", Target: 1.6, Unit: "µs of CPU a token"}
	plain, err := b.againstSigner(ctx, row, 0, in.process, always(bySecret(tokenPath, in.addr, secret, forOwn...)))
	if err != nil {
		return nil, err
	}
	next, err := in.signing(ctx, "bot-0", nil)
	if err != nil {
		return nil, err
	}
	row.Name = "token-private-key-jwt"
	byKey, err := b.againstSigner(ctx, row, 1, in.process, next)
	return []Row{plain, byKey}, err
}

// tokensBound does the same for an agent that signs and shows a key, to which
// the token is bound: two checks, and two things that are good once.
func tokensBound(ctx context.Context, b *Bench) ([]Row, error) {
	in, _, err := b.first(ctx, company(1, "dpop_bound_access_tokens: true"))
	if err != nil {
		return nil, err
	}
	defer in.stop()
	shown, err := newProver(in.issuer() + tokenPath)
	if err != nil {
		return nil, err
	}
	next, err := in.signing(ctx, "bot-0", shown)
	if err != nil {
		return nil, err
	}
	if err := shown.learn(ctx, in.process, next()); err != nil {
		return nil, err
	}
	row, err := b.againstSigner(ctx, Row{Name: "token-dpop", Target: 1.5, Unit: "µs of CPU a token"}, 2, in.process, next)
	return []Row{row}, err
}

// first starts an installation with a company, and gives its first agent a
// secret.
func (b *Bench) first(ctx context.Context, company string) (*installation, credential, error) {
	in, err := b.install(ctx, "")
	if err != nil {
		return nil, credential{}, err
	}
	var secret credential
	if err = in.apply(ctx, company); err == nil {
		secret, err = in.secret(ctx, "bot-0")
	}
	if err != nil {
		in.stop()
	}
	return in, secret, err
}

// signing lets an agent authenticate by a key, and gives its token requests.
func (in *installation) signing(ctx context.Context, agent string, shown *prover) (func() []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	jwks, err := publicJWKS(key)
	if err != nil {
		return nil, err
	}
	c, err := in.keySet(ctx, agent, jwks)
	return byKey(in.addr, in.issuer(), c.ID, key, shown), err
}

// issuer is what the server calls itself in tokens.
func (in *installation) issuer() string {
	_, port, _ := strings.Cut(in.addr, ":")
	return "http://localhost:" + port
}

// againstSigner compares requests with a handler that makes so many checks of a
// signature, signs one JWT and commits one row.
func (b *Bench) againstSigner(ctx context.Context, row Row, checks int, subject *process, next func() []byte) (Row, error) {
	file, err := b.fileIn("peer-*.db")
	if err != nil {
		return row, err
	}
	peer, err := b.startPeer(ctx, "sign", file, strconv.Itoa(checks))
	if err != nil {
		return row, err
	}
	defer peer.stop()
	theirs := always(request("POST", "/", peer.addr, formType, []byte(form(forOwn...).Encode())))
	row.Better, row.Against = "lower", "a handler that signs one ES256 JWT and commits one row, many in a commit"
	if checks > 0 {
		row.Against += fmt.Sprintf("; checks of a signature before that: %d", checks)
	}
	row.Ratio, row.Value, err = b.versus(ctx, subject, peer, callers, next, theirs)
	if err != nil {
		err = fmt.Errorf("%s: %w", row.Name, err)
	}
	return row, err
}
