package gateway_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"estover.dev"
	"estover.dev/internal/gateway"
	"estover.dev/internal/gateway/gatewaytest"
	"estover.dev/internal/gateway/sign"
	"estover.dev/internal/redact"
	"estover.dev/internal/resource"
)

// slots makes a gateway over TLS to an upstream whose requests have these slots.
func slots(t *testing.T, up *httptest.Server, list ...gateway.Slot) *gatewaytest.Gateway {
	t.Helper()
	g := gatewaytest.ReverseLog(t, up.URL, slog.New(slog.DiscardHandler))
	if up.TLS != nil {
		g.Upstream.Roots = x509.NewCertPool()
		g.Upstream.Roots.AddCert(up.Certificate())
	}
	trip, _ := redact.NewMatcher(redact.Value{Name: "placeholder", Text: []byte("est_ph_a")})
	g.Late = func(_ *gateway.Exchange, p *gateway.Plan) error {
		p.Slots, p.Credential, p.Tripwire = append(p.Slots, list...), "sec_1@1", trip
		return nil
	}
	return g
}

// A shown tap keeps what is recorded of a request.
type shown struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *shown) Head(b []byte) error { return s.Body(b) }
func (s *shown) Tail(b []byte) error { return s.Body(b) }
func (s *shown) Body(b []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.b.Write(b)
	return nil
}

// record has a gateway's requests recorded.
func record(g *gatewaytest.Gateway) *shown {
	s := &shown{}
	g.Change = func(_ *http.Request, _ *gateway.Exchange, p *gateway.Plan) error {
		p.Sent = s
		return nil
	}
	return s
}

func secretOf(text string) estover.Secret { return estover.NewSecret([]byte(text)) }

const (
	awsID, awsKey = "AKIAREALREALREAL", "a key that only AWS and the vault have"
	fakeKey       = "est_ph_aaaaaaaaaaaaaaaaaaaaaaaaaa"
)

// amazon is a server that verifies signatures as AWS does: it signs what came once
// more, with the library of AWS, and compares.
func amazon(t *testing.T, service string) (up *httptest.Server, seen func() *http.Request) {
	t.Helper()
	var mu sync.Mutex
	var last *http.Request
	credentials := aws.Credentials{AccessKeyID: awsID, SecretAccessKey: awsKey, SessionToken: "a/session+token=="}
	up = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the request was broken off
		}
		mu.Lock()
		last = r
		mu.Unlock()
		refuse := func(why string) { http.Error(w, why, http.StatusForbidden) }
		payload := r.Header.Get("X-Amz-Content-Sha256")
		query := r.URL.Query().Has("X-Amz-Signature")
		switch {
		case query && service == "s3":
			payload = sign.UnsignedPayload
		case payload == "":
			payload = sign.Digest(body)
		case payload != sign.UnsignedPayload && payload != sign.UnsignedTrailers && payload != sign.Digest(body):
			refuse("the body is another than was signed")
			return
		}
		again := r.Clone(context.Background())
		again.URL.Scheme, again.URL.Host = "https", r.Host
		signer := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping, o.DisableHeaderHoisting = service == "s3", true })
		list, stamp := "", r.Header.Get("X-Amz-Date")
		if query {
			q := again.URL.Query()
			list, stamp = q.Get("X-Amz-SignedHeaders"), q.Get("X-Amz-Date")
			for _, name := range sign.AWSParameters {
				if name != "X-Amz-Expires" {
					q.Del(name)
				}
			}
			again.URL.RawQuery = q.Encode()
		} else {
			_, list, _ = strings.Cut(r.Header.Get("Authorization"), "SignedHeaders=")
			list, _, _ = strings.Cut(list, ",")
		}
		at, err := time.Parse("20060102T150405Z", stamp)
		if err != nil || time.Since(at).Abs() > time.Minute {
			refuse("the time is " + stamp)
			return
		}
		// What is signed is what the request says is signed.
		again.Header = http.Header{}
		again.ContentLength = 0
		for name := range strings.SplitSeq(list, ";") {
			if name != "host" {
				again.Header[http.CanonicalHeaderKey(name)] = r.Header.Values(name)
			}
		}
		if query {
			signed, _, err := signer.PresignHTTP(context.Background(), credentials, again, payload, service, "eu-central-1", at)
			want, bad := url.Parse(signed)
			if err != nil || bad != nil || want.Query().Get("X-Amz-Signature") != r.URL.Query().Get("X-Amz-Signature") {
				refuse("the signature in the query is not right")
			}
			return
		}
		again.Header.Del("Authorization")
		if err := signer.SignHTTP(context.Background(), credentials, again, payload, service, "eu-central-1", at); err != nil || again.Header.Get("Authorization") != r.Header.Get("Authorization") {
			refuse("the signature is not right: " + r.Header.Get("Authorization") + " and not " + again.Header.Get("Authorization"))
		}
	}))
	t.Cleanup(up.Close)
	return up, func() *http.Request {
		mu.Lock()
		defer mu.Unlock()
		return last
	}
}

func awsSlot(service string, unsigned bool) gateway.Slot {
	return gateway.Slot{Kind: gateway.AWSSlot, Label: "sec_1@1", Unsigned: unsigned, AWS: &sign.AWS{
		Region: "eu-central-1", Service: service, KeyID: awsID, Key: secretOf(awsKey), Token: secretOf("a/session+token=="),
	}}
}

// TestC14SigV4: what the library of AWS has signed with a placeholder goes out with
// a signature that AWS takes, in the header and in the query, whatever the body; and
// neither the placeholder nor a key is in it or in the record.
func TestC14SigV4(t *testing.T) {
	placeholder := aws.Credentials{AccessKeyID: fakeKey, SecretAccessKey: fakeKey, SessionToken: fakeKey}
	signer := v4.NewSigner()
	for _, service := range []string{"s3", "dynamodb"} {
		up, seen := amazon(t, service)
		g := slots(t, up, awsSlot(service, false))
		record := record(g)
		for _, body := range []string{"", `{"TableName":"things"}`, strings.Repeat("x", 300<<10)} {
			for _, inQuery := range []bool{false, true} {
				if service == "s3" && inQuery && body != "" {
					continue // see below
				}
				resp, got := do(t, http.MethodPut, g.URL+"/things/a%20b%2Bc?list-type=2&prefix=J%20K", strings.NewReader(body), func(r *http.Request) {
					if service != "s3" {
						r.Header.Set("X-Amz-Target", "Things.Put")
					}
					r.Header.Set("X-Amz-Meta-Note", "  two   words ")
					hash := sign.Digest([]byte(body))
					if !inQuery {
						if err := signer.SignHTTP(t.Context(), placeholder, r, hash, service, "us-east-1", time.Unix(0, 0)); err != nil {
							t.Fatal(err)
						}
						return
					}
					q := r.URL.Query()
					q.Set("X-Amz-Expires", "900")
					r.URL.RawQuery = q.Encode()
					signed, _, err := signer.PresignHTTP(t.Context(), placeholder, r, hash, service, "us-east-1", time.Unix(0, 0))
					if err != nil {
						t.Fatal(err)
					}
					if r.URL, err = url.Parse(signed); err != nil {
						t.Fatal(err)
					}
				})
				if resp.StatusCode != http.StatusOK {
					t.Fatalf("%s with %d bytes (in the query: %v): %d %s", service, len(body), inQuery, resp.StatusCode, got)
				}
				if r := seen(); (r.Header.Get("Authorization") == "") != inQuery || r.URL.Query().Has("X-Amz-Signature") != inQuery {
					t.Errorf("%s (in the query: %v) went out as %s with %q", service, inQuery, r.URL, r.Header.Get("Authorization"))
				}
				if q := seen().URL.Query(); inQuery && q.Get("X-Amz-Expires") != "300" {
					t.Errorf("a signature that was to be good for 900 s is good for %s, want 300", q.Get("X-Amz-Expires"))
				}
			}
		}
		record.mu.Lock()
		text := record.b.String()
		record.mu.Unlock()
		for _, never := range []string{"est_ph_", awsKey, "a/session+token==", "Signature=" + "0"} {
			if strings.Contains(text, never) {
				t.Errorf("%s is in the record", never)
			}
		}
		if !strings.Contains(text, "Authorization: AWS4-HMAC-SHA256 ‹secret sec_1@1›") || !strings.Contains(text, "X-Amz-Signature=‹secret sec_1@1›") {
			t.Errorf("the record does not say where the secret was: %.2000s", text)
		}
	}
}

// TestC14Unsigned: a body that cannot be read before it is sent goes out unsigned
// where the slot allows it, and not at all where it does not.
func TestC14Unsigned(t *testing.T) {
	up, seen := amazon(t, "s3")
	long := strings.Repeat("x", 5<<20)
	trailers := func(r *http.Request) { r.Header.Set("X-Amz-Content-Sha256", sign.UnsignedTrailers) }
	pieces := func(r *http.Request) { r.Header.Set("X-Amz-Content-Sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD") }
	unsigned := func(r *http.Request) { r.Header.Set("X-Amz-Content-Sha256", sign.UnsignedPayload) }
	unknown := func(r *http.Request) { r.ContentLength = -1 }
	inQuery := func(r *http.Request) { r.URL.RawQuery = "X-Amz-Signature=00&X-Amz-Expires=60" }
	for _, c := range []struct {
		what    string
		allowed bool
		body    string
		change  func(*http.Request)
		status  int
		payload string
	}{
		{"a long body", true, long, func(*http.Request) {}, 200, sign.UnsignedPayload},
		{"a long body", false, long, func(*http.Request) {}, 413, ""},
		{"a body of unknown length", true, "short", unknown, 200, sign.UnsignedPayload},
		{"a body of unknown length", false, "short", unknown, 200, sign.Digest([]byte("short"))},
		{"a body that is declared unsigned", true, "short", unsigned, 200, sign.UnsignedPayload},
		{"a body that is declared unsigned", false, "short", unsigned, 200, sign.Digest([]byte("short"))},
		{"a body with trailers", true, "short", trailers, 200, sign.UnsignedTrailers},
		{"a body with trailers", false, "short", trailers, 502, ""},
		{"a body signed in pieces", true, "short", pieces, 502, ""},
		{"a body, signed in the query", true, "short", inQuery, 200, ""},
		{"a body, signed in the query", false, "short", inQuery, 502, ""},
	} {
		g := slots(t, up, awsSlot("s3", c.allowed))
		resp, got := do(t, http.MethodPut, g.URL+"/thing", io.NopCloser(strings.NewReader(c.body)), func(r *http.Request) { r.ContentLength = int64(len(c.body)) }, c.change)
		if resp.StatusCode != c.status {
			t.Errorf("%s (allowed: %v): %d %s, want %d", c.what, c.allowed, resp.StatusCode, got, c.status)
		} else if c.status == 200 && seen().Header.Get("X-Amz-Content-Sha256") != c.payload {
			t.Errorf("%s (allowed: %v) is declared as %q, want %q", c.what, c.allowed, seen().Header.Get("X-Amz-Content-Sha256"), c.payload)
		}
	}
}

// TestSubresources: what S3 takes for another operation than the action's is not
// signed, unless the slot names it.
func TestSubresources(t *testing.T) {
	up, seen := amazon(t, "s3")
	header := func(name string) func(*http.Request) { return func(r *http.Request) { r.Header.Set(name, "x") } }
	for _, c := range []struct {
		what, query string
		change      func(*http.Request)
		allowed     []string
		status      int
	}{
		{"a list", "list-type=2&prefix=a&max-keys=3", nil, nil, 200},
		{"a part of an upload", "partNumber=1&uploadId=x", nil, nil, 200},
		{"the policy of a bucket", "policy", nil, nil, 403},
		{"the policy of a bucket, escaped", "p%6Flicy=", nil, nil, 403},
		{"the policy of a bucket, in another case", "Policy", nil, nil, 403},
		{"the rights of an object", "acl", nil, nil, 403},
		{"many deletions", "delete", nil, nil, 403},
		{"tags", "tagging", nil, nil, 403},
		{"tags that are allowed", "tagging", nil, []string{"tagging"}, 200},
		{"rights in a header", "", header("X-Amz-Acl"), nil, 403},
		{"rights in another header", "", header("X-Amz-Grant-Read"), nil, 403},
		{"a copy of something else", "", header("X-Amz-Copy-Source"), nil, 403},
		{"a copy that is allowed", "", header("X-Amz-Copy-Source"), []string{"copy"}, 200},
		{"rights in the query, as clients write headers there", "x-amz-acl=public-read", nil, nil, 403},
		{"a parameter that nobody knows", "something-new", nil, nil, 403},
	} {
		slot := awsSlot("s3", false)
		slot.Allowed = c.allowed
		g := slots(t, up, slot)
		before := seen()
		resp, got := do(t, http.MethodPut, g.URL+"/thing?"+c.query, strings.NewReader("x"), func(r *http.Request) {
			if c.change != nil {
				c.change(r)
			}
		})
		if resp.StatusCode != c.status || c.status == 403 && (code(got) != "subresource_refused" || seen() != before) {
			t.Errorf("%s: %d %s", c.what, resp.StatusCode, got)
		}
	}
}

// TestSignedHMAC: a request is signed over what goes out, and the header of the
// signature is emptied first under every spelling.
func TestSignedHMAC(t *testing.T) {
	const secret = "the key of the hook"
	spec := &resource.HMAC{
		Algorithm: "sha256", Sign: "{timestamp}.{target}.{body}", Value: "t={timestamp},v1={signature}", Headers: map[string]string{"X-Time": "{timestamp}"},
	}
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		m := hmac.New(sha256.New, []byte(secret))
		m.Write([]byte(r.Header.Get("X-Time") + "." + r.URL.RequestURI() + "." + string(body)))
		want := "t=" + r.Header.Get("X-Time") + ",v1=" + hex.EncodeToString(m.Sum(nil))
		if got := r.Header.Values("X-Signature"); len(got) != 1 || got[0] != want || r.Header.Get("X_signature") != "" || len(r.Header.Values("X-Time")) != 1 {
			http.Error(w, "not signed", http.StatusForbidden)
			return
		}
		w.Write(body)
	}))
	t.Cleanup(up.Close)
	g := slots(t, up, gateway.Slot{
		Kind: gateway.HMACSlot, Name: "X-Signature", Label: "sec_1@1", Secret: secretOf(secret), HMAC: &sign.HMAC{Spec: spec, Name: "X-Signature", Key: secretOf(secret)},
	})
	record := record(g)
	for _, body := range []string{"", "hello", strings.Repeat("y", 100<<10)} {
		resp, got := do(t, http.MethodPost, g.URL+"/hook?a=b", strings.NewReader(body), func(r *http.Request) {
			r.Header.Set("x_signature", "mine")
			r.Header.Set("X-Signature", "mine")
			r.Header.Set("X-Time", "1")
			if len(body) == 5 {
				r.ContentLength = -1
			}
		})
		if resp.StatusCode != 200 || got != body {
			t.Errorf("%d bytes: %d %.100s", len(body), resp.StatusCode, got)
		}
	}
	record.mu.Lock()
	defer record.mu.Unlock()
	if text := record.b.String(); !strings.Contains(text, "X-Signature: ‹secret sec_1@1›\r\n") || strings.Contains(text, "v1=") {
		t.Errorf("the record is %.500s", text)
	}
}

// TestBodySlot: a secret goes to one place of a JSON body, whatever stood there, and
// the record shows its name; a body with two readings is refused.
func TestBodySlot(t *testing.T) {
	const secret = "sk_in_the_body_\"quoted\""
	var got string
	up := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		if int64(len(b)) != r.ContentLength {
			t.Errorf("the body has %d bytes, and %d are announced", len(b), r.ContentLength)
		}
		got = string(b)
	}))
	t.Cleanup(up.Close)
	slot := func(pointer string) gateway.Slot {
		return gateway.Slot{Kind: gateway.BodySlot, Name: pointer, Label: "sec_1@1", Secret: secretOf(secret)}
	}
	const value = `"sk_in_the_body_\"quoted\""`
	for _, c := range []struct{ pointer, body, want string }{
		{"/auth/key", `{"auth": {"key":"est_ph_aaaaaaaaaaaaaaaaaaaaaaaaaa","user":"me"}, "n": 1.50, "big": 9007199254740993}`, `{"auth":{"key":` + value + `,"user":"me"},"n":1.50,"big":9007199254740993}`},
		{"/auth/key", `{"auth":{"user":"me"}}`, `{"auth":{"user":"me","key":` + value + `}}`},
		{"/key", `{"Key":"mine","KEY":["mine"],"a":2}`, `{"a":2,"key":` + value + `}`},
		{"/a~1b/1", `{"a/b":[1,{"x":2},3]}`, `{"a/b":[1,` + value + `,3]}`},
	} {
		g := slots(t, up, slot(c.pointer))
		record := record(g)
		resp, text := do(t, http.MethodPost, g.URL+"/x", strings.NewReader(c.body), func(r *http.Request) { r.Header.Set("Content-Type", "application/json") })
		if resp.StatusCode != 200 || got != c.want {
			t.Errorf("%s in %s: %d %s; it went out as %s, want %s", c.pointer, c.body, resp.StatusCode, text, got, c.want)
		}
		if shown := record.b.String(); !strings.Contains(shown, "‹secret sec_1@1›") || strings.Contains(shown, "sk_in") || strings.Contains(shown, "est_ph_") {
			t.Errorf("%s in %s is recorded as %s", c.pointer, c.body, shown)
		}
	}
	for _, c := range []struct{ pointer, kind, body, what string }{
		{"/key", "application/json", `{"key":1,"key":2}`, "a member twice"},
		{"/key", "application/json", `{"key":1,"k\u0065y":2}`, "a member twice, once escaped"},
		{"/key", "application/json", `{"key":1} {}`, "two values"},
		{"/key", "application/json", `[1]`, "a list where an object is wanted"},
		{"/auth/key", "application/json", `{"auth":"x"}`, "a text where an object is wanted"},
		{"/auth/key", "application/json", `{"Auth":{}}`, "another spelling on the way"},
		{"/auth/key", "application/json", `{}`, "no object"},
		{"/a/7", "application/json", `{"a":[1]}`, "a list that is too short"},
		{"/key", "text/plain", `{"key":1}`, "no JSON"},
		{"/key", "application/json", ``, "no body"},
	} {
		got = "nothing"
		g := slots(t, up, slot(c.pointer))
		resp, text := do(t, http.MethodPost, g.URL+"/x", strings.NewReader(c.body), func(r *http.Request) { r.Header.Set("Content-Type", c.kind) })
		if resp.StatusCode != 502 || code(text) != "secret_unavailable" || got != "nothing" {
			t.Errorf("%s: %d %s, and the upstream got %q", c.what, resp.StatusCode, text, got)
		}
	}
	// Of two secrets in one body neither is recorded.
	both := slots(t, up, slot("/a"), slot("/b"))
	kept := record(both)
	resp, text := do(t, http.MethodPost, both.URL+"/x", strings.NewReader(`{}`), func(r *http.Request) { r.Header.Set("Content-Type", "application/json") })
	if resp.StatusCode != 200 || got != `{"a":`+value+`,"b":`+value+`}` {
		t.Errorf("two secrets: %d %s; it went out as %s", resp.StatusCode, text, got)
	}
	if shown := kept.b.String(); strings.Count(shown, "‹secret sec_1@1›") != 2 || strings.Contains(shown, "sk_in") {
		t.Errorf("two secrets are recorded as %s", shown)
	}
	// A placeholder beside its place is a tripwire still.
	g := slots(t, up, slot("/key"))
	resp, text = do(t, http.MethodPost, g.URL+"/x", strings.NewReader(`{"key":"","note":"`+fakeKey+`"}`), func(r *http.Request) { r.Header.Set("Content-Type", "application/json") })
	if resp.StatusCode != 403 || code(text) != "placeholder_misused" {
		t.Errorf("a placeholder beside its place: %d %s", resp.StatusCode, text)
	}
	if err := g.Violation(t); !errors.Is(err, gateway.ErrTripwire) {
		t.Errorf("the violation is %v", err)
	}
}

// clientCertificate makes a certificate for a client, signed by itself.
func clientCertificate(t *testing.T, name string) *tls.Certificate {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k}
}

// TestC4ClientCertificates: the connection proves itself with the certificate of the
// slot, one with another has a connection of its own, and so has another session; an
// upstream that does not ask for a certificate gets no request.
func TestC4ClientCertificates(t *testing.T) {
	var mu sync.Mutex
	conns := map[string]map[string]bool{} // the client's name → its connections
	asked := false
	up := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = true
		name := r.TLS.PeerCertificates[0].Subject.CommonName
		mu.Lock()
		defer mu.Unlock()
		if conns[name] == nil {
			conns[name] = map[string]bool{}
		}
		conns[name][r.RemoteAddr] = true
		io.WriteString(w, name+" "+r.Proto+" "+r.Header.Get("Authorization"))
	}))
	up.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	up.EnableHTTP2 = true
	up.StartTLS()
	t.Cleanup(up.Close)
	g := slots(t, up, gateway.Slot{Kind: gateway.MTLSSlot, Label: "sec_1@1"})
	late := g.Late
	which, label := clientCertificate(t, "one"), "sec_1@1"
	g.Late = func(ex *gateway.Exchange, p *gateway.Plan) error {
		err := late(ex, p)
		p.Upstream.Certificate, p.Credential = which, label
		return err
	}
	for range 3 {
		resp, got := get(t, g.URL+"/x", func(r *http.Request) { r.Header.Set("Authorization", "Bearer mine") })
		if resp.StatusCode != 200 || got != "one HTTP/2.0 " {
			t.Fatalf("with a client certificate: %d %q, want one, over HTTP/2, without an authority of the agent's own", resp.StatusCode, got)
		}
	}
	get(t, g.URL+"/x", func(r *http.Request) { r.Header.Set(gatewaytest.SessionHeader, "ses_2") })
	which, label = clientCertificate(t, "two"), "sec_1@2"
	if resp, got := get(t, g.URL+"/x"); resp.StatusCode != 200 || got != "two HTTP/2.0 " {
		t.Errorf("with the next version: %d %q", resp.StatusCode, got)
	}
	if len(conns["one"]) != 2 || len(conns["two"]) != 1 {
		t.Errorf("there are connections %v, want two of one (for two sessions) and one of two", conns)
	}

	asked = false
	careless := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked = true }))
	t.Cleanup(careless.Close)
	g = slots(t, careless, gateway.Slot{Kind: gateway.MTLSSlot, Label: "sec_1@1"})
	late = g.Late
	g.Late = func(ex *gateway.Exchange, p *gateway.Plan) error {
		err := late(ex, p)
		p.Upstream.Certificate = which
		return err
	}
	if resp, got := get(t, g.URL+"/x"); resp.StatusCode != 502 || code(got) != "secret_unavailable" || asked {
		t.Errorf("an upstream that asks for no certificate: %d %s (it was asked: %v)", resp.StatusCode, got, asked)
	}
}
