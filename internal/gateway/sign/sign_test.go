package sign_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"pgregory.net/rapid"

	"estover.dev"
	"estover.dev/internal/gateway/sign"
	"estover.dev/internal/resource"
)

const unreserved = "-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

func key(text string) estover.Secret { return estover.NewSecret([]byte(text)) }

// TestC14Vectors holds the signer against the test suite of AWS and the examples
// of S3's documentation.
func TestC14Vectors(t *testing.T) {
	suite := &sign.AWS{Region: "us-east-1", Service: "service", KeyID: "AKIDEXAMPLE", Key: key("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")}
	s3 := &sign.AWS{Region: "us-east-1", Service: "s3", KeyID: "AKIAIOSFODNN7EXAMPLE", Key: key("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")}
	inSuite, inS3 := time.Date(2015, 8, 30, 12, 36, 0, 0, time.UTC), time.Date(2013, 5, 24, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name, method, path, query string
		header                    http.Header
		body, want                string
	}{
		{"get-vanilla", "GET", "/", "", nil, "", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"},
		{"get-vanilla-query-order-key-case", "GET", "/", "Param2=value2&Param1=value1", nil, "", "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500"},
		{"get-vanilla-query-order-value", "GET", "/", "Param1=value2&Param1=value1", nil, "", "5772eed61e12b33fae39ee5e7012498b51d56abc0abb7c60486157bd471c4694"},
		{"get-vanilla-query-unreserved", "GET", "/", unreserved + "=" + unreserved, nil, "", "9c3e54bfcdf0b19771a7f523ee5669cdf59bc7cc0884027167c21bb143a40197"},
		{"get-vanilla-utf8-query", "GET", "/", "ሴ=bar", nil, "", "2cdec8eed098649ff3a119c94853b13c643bcf08f8b0a1d91e12c9027818dd04"},
		{"get-unreserved", "GET", "/" + unreserved, "", nil, "", "07ef7494c76fa4850883e2b006601f940f8a34d404d0cfa977f52a65bbf5f24f"},
		{"get-utf8", "GET", "/ሴ", "", nil, "", "8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85"},
		{"get-header-value-trim", "GET", "/", "", http.Header{"My-Header1": {" value1"}, "My-Header2": {` "a   b   c"`}}, "", "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736"},
		{"get-header-value-order", "GET", "/", "", http.Header{"My-Header1": {"value4", "value1", "value3", "value2"}}, "", "08c7e5a9acfcfeb3ab6b2185e75ce8b1deb5e634ec47601a50643f830c755c01"},
		{"post-vanilla", "POST", "/", "", nil, "", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"},
		{"post-vanilla-query", "POST", "/", "Param1=value1", nil, "", "28038455d6de14eafc1f9222cf5aa6f1a96197d7deb8263271d420d138af7f11"},
		{"post-header-value-case", "POST", "/", "", http.Header{"My-Header1": {"VALUE1"}}, "", "cdbc9802e29d2942e5e10b5bccfdd67c5f22c7c4e8ae67b53629efa58b974b7d"},
		{"post-x-www-form-urlencoded", "POST", "/", "", http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}, "Param1=value1", "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a"},
	} {
		r := &sign.Request{
			Method: c.method, Host: "example.amazonaws.com", Path: c.path, Query: c.query, Header: c.header, Body: []byte(c.body),
			Extra: []string{"my-header1", "my-header2"},
		}
		if r.Header == nil {
			r.Header = http.Header{}
		}
		suite.Sign(r, sign.Payload(r.Body, ""), inSuite)
		if got := signature(r.Header.Get("Authorization")); got != c.want {
			t.Errorf("%s has the signature %s, want %s", c.name, got, c.want)
		}
	}
	for _, c := range []struct {
		name, method, path, query string
		header                    http.Header
		body, want                string
	}{
		{"GET Object", "GET", "/test.txt", "", http.Header{"Range": {"bytes=0-9"}}, "", "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"},
		{"PUT Object", "PUT", "/test$file.text", "", http.Header{"Date": {"Fri, 24 May 2013 00:00:00 GMT"}, "X-Amz-Storage-Class": {"REDUCED_REDUNDANCY"}}, "Welcome to Amazon S3.", "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"},
		{"GET Bucket Lifecycle", "GET", "/", "lifecycle", nil, "", "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"},
		{"List Objects", "GET", "/", "max-keys=2&prefix=J", nil, "", "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"},
	} {
		r := &sign.Request{
			Method: c.method, Host: "examplebucket.s3.amazonaws.com", Path: c.path, Query: c.query, Header: c.header, Body: []byte(c.body),
			Extra: []string{"range", "date"},
		}
		if r.Header == nil {
			r.Header = http.Header{}
		}
		s3.Sign(r, sign.Payload(r.Body, ""), inS3)
		if got := signature(r.Header.Get("Authorization")); got != c.want {
			t.Errorf("S3's %s has the signature %s, want %s", c.name, got, c.want)
		}
	}
	r := &sign.Request{Method: "GET", Host: "examplebucket.s3.amazonaws.com", Path: "/test.txt", Header: http.Header{}}
	query := s3.Presign(r, sign.UnsignedPayload, inS3, 24*time.Hour)
	if q, err := url.ParseQuery(query); err != nil || q.Get("X-Amz-Signature") != "aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404" {
		t.Errorf("the query with S3's signature is %s (%v)", query, err)
	}
}

func signature(authorization string) string {
	_, s, _ := strings.Cut(authorization, "Signature=")
	return s
}

// TestC14AgainstTheSDK: whatever the request, it is signed as AWS's own library
// signs it, in the header and in the query.
func TestC14AgainstTheSDK(t *testing.T) {
	at := time.Date(2026, 3, 1, 23, 59, 59, 0, time.UTC)
	segment := rapid.StringMatching(`[a-zA-Z0-9 $&+,:;=@!'()*~._é-]{1,12}`)
	rapid.Check(t, func(t *rapid.T) {
		u := &url.URL{Scheme: "https", Host: "thing.eu-central-1.amazonaws.com"}
		path := "/" + strings.Join(rapid.SliceOfN(segment, 0, 4).Draw(t, "path"), "/")
		q := url.Values{}
		for range rapid.IntRange(0, 4).Draw(t, "parameters") {
			q.Add(segment.Draw(t, "name"), segment.Draw(t, "value"))
		}
		service := rapid.SampledFrom([]string{"s3", "dynamodb", "execute-api"}).Draw(t, "service")
		// S3 decodes a path and encodes it again in its own way; the library takes it as
		// it stands, and so is given what S3 would make of it.
		escaped := (&url.URL{Path: path}).EscapedPath()
		if service == "s3" {
			escaped = awsPath(path)
		}
		u.Path, u.RawPath, u.RawQuery = path, escaped, strings.ReplaceAll(q.Encode(), "+", "%20")
		if u.EscapedPath() != escaped {
			t.Fatalf("net/url writes the path %q and not %q", u.EscapedPath(), escaped)
		}
		body := []byte(rapid.StringN(0, 100, 200).Draw(t, "body"))
		theirs, err := http.NewRequest(rapid.SampledFrom([]string{"GET", "PUT", "POST", "DELETE"}).Draw(t, "method"), u.String(), nil)
		if err != nil {
			t.Fatal(err)
		}
		theirs.URL = u
		theirs.Header.Set("Content-Type", "application/x-amz-json-1.0")
		theirs.Header.Set("X-Amz-Target", "  Do   This ")
		payload := sign.Digest(body)
		if service == "s3" {
			theirs.Header.Set("X-Amz-Content-Sha256", payload)
		}
		ours := &sign.AWS{Region: "eu-central-1", Service: service, KeyID: "AKIAEXAMPLE", Key: key("a secret key")}
		credentials := aws.Credentials{AccessKeyID: ours.KeyID, SecretAccessKey: "a secret key"}
		if rapid.Bool().Draw(t, "temporary") {
			ours.Token, credentials.SessionToken = key("a/session+token=="), "a/session+token=="
		}
		signer := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = service == "s3" })
		r := &sign.Request{Method: theirs.Method, Host: u.Host, Path: u.EscapedPath(), Query: u.RawQuery, Header: theirs.Header.Clone(), Body: body}
		if rapid.Bool().Draw(t, "query") {
			theirs.Header, r.Header = http.Header{}, http.Header{}
			with := theirs.Clone(t.Context())
			values := with.URL.Query()
			values.Set("X-Amz-Expires", "60")
			with.URL.RawQuery = strings.ReplaceAll(values.Encode(), "+", "%20")
			signed, _, err := signer.PresignHTTP(t.Context(), credentials, with, payload, service, "eu-central-1", at)
			if err != nil {
				t.Fatal(err)
			}
			want, _ := url.Parse(signed)
			got, err := url.ParseQuery(ours.Presign(r, payload, at, time.Minute))
			if err != nil || got.Get("X-Amz-Signature") != want.Query().Get("X-Amz-Signature") {
				t.Fatalf("%s %s is signed in the query with %s, by the library with %s (%v)", theirs.Method, u, got.Get("X-Amz-Signature"), want.Query().Get("X-Amz-Signature"), err)
			}
			return
		}
		if err := signer.SignHTTP(t.Context(), credentials, theirs, payload, service, "eu-central-1", at); err != nil {
			t.Fatal(err)
		}
		ours.Sign(r, payload, at)
		if got, want := r.Header.Get("Authorization"), theirs.Header.Get("Authorization"); got != want {
			t.Fatalf("%s %s is signed\n%s\nand by the library\n%s", theirs.Method, u, got, want)
		}
	})
}

// awsPath writes a path as S3 encodes it.
func awsPath(path string) string {
	var b strings.Builder
	for i := range len(path) {
		c := path[i]
		if c == '/' || strings.IndexByte(unreserved, c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// TestHMAC signs as three well-known services want it.
func TestHMAC(t *testing.T) {
	at := time.Unix(1531420618, 0)
	body := "token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c"
	sum := func(key, text string) []byte {
		m := hmac.New(sha256.New, []byte(key))
		m.Write([]byte(text))
		return m.Sum(nil)
	}
	for _, c := range []struct {
		what, name string
		spec       resource.HMAC
		key, body  string
		want       map[string]string
	}{
		{ // as in the documentation of Slack
			"Slack", "X-Slack-Signature",
			resource.HMAC{Sign: "v0:{timestamp}:{body}", Value: "v0={signature}", Headers: map[string]string{"X-Slack-Request-Timestamp": "{timestamp}"}},
			"8f742231b10e8888abcd99yyyzzz85a5", body,
			map[string]string{
				"X-Slack-Signature": "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503", "X-Slack-Request-Timestamp": "1531420618",
			},
		},
		{ // as in the documentation of GitHub
			"GitHub", "X-Hub-Signature-256",
			resource.HMAC{Sign: "{body}", Value: "sha256={signature}"},
			"It's a Secret to Everybody", "Hello, World!",
			map[string]string{"X-Hub-Signature-256": "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"},
		},
		{
			"Stripe", "Stripe-Signature",
			resource.HMAC{Sign: "{timestamp}.{body}", Value: "t={timestamp},v1={signature}"},
			"whsec_test", `{"id":"evt_1"}`,
			map[string]string{"Stripe-Signature": "t=1531420618,v1=" + hex.EncodeToString(sum("whsec_test", `1531420618.{"id":"evt_1"}`))},
		},
		{
			"Standard Webhooks", "Webhook-Signature",
			resource.HMAC{
				Sign: "{header:webhook-id}.{timestamp}.{body}", Value: "v1,{signature}", Encoding: "base64", Key: "base64", KeyPrefix: "whsec_",
				Headers: map[string]string{"Webhook-Timestamp": "{timestamp}"},
			},
			"whsec_" + base64.StdEncoding.EncodeToString([]byte("twenty-four bytes of key")), "{}",
			map[string]string{
				"Webhook-Timestamp": "1531420618",
				"Webhook-Signature": "v1," + base64.StdEncoding.EncodeToString(sum("twenty-four bytes of key", "msg_1.1531420618.{}")),
			},
		},
		{
			"a canonical request", "Authorization",
			resource.HMAC{Sign: "{method}\n{host}\n{target}\n{date}\n{body_sha256}", Value: "HMAC {key_id}:{signature}", Headers: map[string]string{"Date": "{date}"}},
			"k", "",
			map[string]string{
				"Date":          "Thu, 12 Jul 2018 18:36:58 GMT",
				"Authorization": "HMAC kid:" + hex.EncodeToString(sum("k", "POST\nhooks.example.com\n/in?a=b\nThu, 12 Jul 2018 18:36:58 GMT\n"+sign.Digest(nil))),
			},
		},
	} {
		spec, err := resource.Check(resource.Spec{
			Name: "x", BaseURL: "https://hooks.example.com", Class: estover.Internal, Actions: []resource.Action{{Name: "in", Method: "POST", Path: "/in"}},
			Slots: []resource.Slot{{Slot: resource.Signed, Name: c.name, Secret: "x", HMAC: &c.spec}},
		})
		if err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		s := &sign.HMAC{Spec: spec.Slots[0].HMAC, Name: c.name, KeyID: "kid", Key: key(c.key)}
		r := &sign.Request{Method: "POST", Host: "hooks.example.com", Path: "/in", Query: "a=b", Header: http.Header{"Webhook-Id": {"msg_1"}}, Body: []byte(c.body)}
		if err := s.Sign(r, at); err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		for name, want := range c.want {
			if got := r.Header.Get(name); got != want {
				t.Errorf("%s: %s is %q, want %q", c.what, name, got, want)
			}
		}
	}
	bad := &sign.HMAC{Spec: &resource.HMAC{Algorithm: "sha256", Sign: "x", Value: "{signature}", Key: "base64"}, Name: "X", Key: key("not base64: crm_live")}
	if err := bad.Sign(&sign.Request{Header: http.Header{}}, at); err == nil || strings.Contains(err.Error(), "crm_live") {
		t.Errorf("a key that is not base64: %v, want an error without it", err)
	}
}
