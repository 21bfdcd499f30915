package source_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	azfake "github.com/Azure/azure-sdk-for-go/sdk/azcore/fake"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys/fake"
	sdk "github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/seal"
)

// A cloud is a key service behind TLS, and what a source names to reach it.
type cloud struct {
	*httptest.Server
	dir string // for files
	ca  string // the file with whom to trust

	mu   sync.Mutex
	down bool
}

func newCloud(t testing.TB, h http.HandlerFunc) *cloud {
	t.Helper()
	c := &cloud{dir: t.TempDir()}
	c.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		down := c.down
		c.mu.Unlock()
		if down {
			panic(http.ErrAbortHandler)
		}
		h(w, r)
	}))
	t.Cleanup(c.Close)
	c.ca = c.file(t, "ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate().Raw})))
	return c
}

func (c *cloud) file(t testing.TB, name, content string) string {
	t.Helper()
	path := filepath.Join(c.dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (c *cloud) fail(down bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down = down
}

// machine is where a machine of a cloud asks who it is: the answers by path.
func machine(t testing.TB, answers map[string]string, header string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, is := answers[r.Method+" "+r.URL.Path]
		if !is || r.Header.Get(header) == "" && r.Method == http.MethodGet {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		_, _ = io.WriteString(w, answer)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// box is a key that never leaves a service.
type box struct{ cipher.AEAD }

func newBox() box {
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	a, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err)
	}
	return box{a}
}

// A cloudCase is one key service and how its sources are written.
type cloudCase struct {
	at                            *cloud
	good, other, missing, refused string // sources: that works, with another key, with no key, with another credential
	credential                    string // that nobody may find in an error
	says                          string // in the error of a refusal, so that one knows what to give
}

// TestClouds holds the sources of the three clouds to the same: they open what they
// have made, another key opens nothing, and an error says what to do.
func TestClouds(t *testing.T) {
	for name, start := range map[string]func(testing.TB) cloudCase{"aws": awsCase, "azure": azureCase, "google": googleCase} {
		t.Run(name, func(t *testing.T) {
			c, d := start(t), dbtest.Open(t)
			src := parse(t, c.good)
			opens(t, d, src)
			if _, err := seal.Open(t.Context(), d, parse(t, c.other)); !errors.Is(err, seal.ErrRoot) {
				t.Errorf("another key: %v, want ErrRoot", err)
			}
			refused := func(what string, err error) {
				t.Helper()
				if !errors.Is(err, seal.ErrRootMissing) || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), c.credential) {
					t.Errorf("%s: %v, want ErrRootMissing that says %q, and not the credential", what, err, c.says)
				}
			}
			_, _, err := parse(t, c.missing).Root(t.Context(), "", true)
			refused("a key that is not there", err)
			_, err = seal.Open(t.Context(), d, parse(t, c.refused))
			refused("a credential that is not good", err)
			c.at.fail(true)
			_, err = seal.Open(t.Context(), d, src)
			c.at.fail(false)
			if !errors.Is(err, seal.ErrRootMissing) || !strings.Contains(err.Error(), "cannot be reached") {
				t.Errorf("a service that answers nothing: %v, want ErrRootMissing", err)
			}
			_, err = seal.Open(t.Context(), d, parse(t, strings.ReplaceAll(c.good, c.at.Listener.Addr().String(), "127.0.0.1:1")))
			if !errors.Is(err, seal.ErrRootMissing) || !strings.Contains(err.Error(), "cannot be reached") {
				t.Errorf("a service that is not there: %v, want ErrRootMissing", err)
			}
			key, keep, err := parse(t, c.good).Root(t.Context(), "", true)
			if err != nil || len(key) != 32 {
				t.Fatalf("a first root key of %d bytes, %v", len(key), err)
			}
			if bytes.Contains([]byte(keep), key) || strings.Contains(keep, base64.StdEncoding.EncodeToString(key)) || strings.Contains(keep, hex.EncodeToString(key)) {
				t.Error("what is kept beside the database holds the root key")
			}
			again, _, err := parse(t, c.good).Root(t.Context(), keep, false)
			if err != nil || !bytes.Equal(again, key) {
				t.Errorf("what was wrapped comes back as something else, %v", err)
			}
			for _, wrong := range []string{"", "x", keep[:len(keep)/2], keep[:len(keep)-8] + "AAAAAAA="} {
				if _, _, err := parse(t, c.good).Root(t.Context(), wrong, false); !errors.Is(err, seal.ErrRoot) {
					t.Errorf("params that were changed: %v, want ErrRoot", err)
				}
			}
		})
	}
}

// TestMoveBetweenKeys moves from one key of a service to another one (K6): at each
// moment there is a way in, also while both are registered, and afterwards the first
// one opens nothing.
func TestMoveBetweenKeys(t *testing.T) {
	for name, start := range map[string]func(testing.TB) cloudCase{"aws": awsCase, "azure": azureCase, "google": googleCase} {
		t.Run(name, func(t *testing.T) {
			c, d := start(t), dbtest.Open(t)
			before, after := parse(t, c.good), parse(t, c.other)
			s, err := seal.Open(t.Context(), d, before)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Prepare(t.Context(), acme); err != nil {
				t.Fatal(err)
			}
			aad := seal.AAD{Class: seal.KV, ID: "x"}
			sealed, err := s.Seal(acme, aad, []byte("x"))
			if err != nil {
				t.Fatal(err)
			}
			a, err := s.PrepareRoot(t.Context(), after)
			if err != nil {
				t.Fatal(err)
			}
			if err := d.Do(t.Context(), "", func(tx *db.Tx) error { return a.Store(t.Context(), tx) }); err != nil {
				t.Fatal(err)
			}
			s.Added(a)
			for which, src := range map[string]seal.Source{"before": before, "after": after} {
				s, err := seal.Open(t.Context(), d, src)
				if err != nil {
					t.Fatalf("with the key %s: %v", which, err)
				}
				if err := s.Prepare(t.Context(), acme); err != nil {
					t.Fatal(err)
				}
				if got, err := s.Open(acme, aad, sealed); err != nil || string(got) != "x" {
					t.Errorf("with the key %s what was sealed is %q, %v", which, got, err)
				}
			}
			roots, err := s.Roots(t.Context())
			if err != nil || len(roots) != 2 {
				t.Fatalf("the root keys are %v, %v; want two", roots, err)
			}
			for _, root := range roots {
				if root.ID == a.ID {
					continue
				}
				if err := d.Do(t.Context(), "", func(tx *db.Tx) error { return seal.RemoveRoot(t.Context(), tx, root.ID) }); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := seal.Open(t.Context(), d, before); !errors.Is(err, seal.ErrRoot) {
				t.Errorf("with the key before, after its removal: %v, want ErrRoot", err)
			}
			if _, err := seal.Open(t.Context(), d, after); err != nil {
				t.Errorf("with the key after, which is the only one: %v", err)
			}
		})
	}
}

// awsCase is AWS KMS, as its API reference describes Encrypt and Decrypt, to who
// signs with one of two access keys: the file's, and the machine's.
func awsCase(t testing.TB) cloudCase {
	const account = "arn:aws:kms:eu-central-1:111122223333:key/"
	keys := map[string]box{account + "one": newBox(), account + "two": newBox()}
	secrets := map[string]string{"AKIAFILE": "made/for+tests", "ASIAMACHINE": "of/the+machine"}
	c := newCloud(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		fail := func(kind string) {
			w.WriteHeader(http.StatusBadRequest)
			_ = json.NewEncoder(w).Encode(map[string]string{"__type": kind, "message": "said by the service"})
		}
		body, err := io.ReadAll(r.Body)
		if err != nil || !signed(r, body, secrets) {
			fail("UnrecognizedClientException")
			return
		}
		var in struct {
			KeyID                     string `json:"KeyId"`
			Plaintext, CiphertextBlob []byte
			EncryptionContext         map[string]string
		}
		if err := json.Unmarshal(body, &in); err != nil {
			fail("SerializationException")
			return
		}
		key, is := keys[in.KeyID]
		if in.KeyID == "alias/one" {
			in.KeyID = account + "one"
			key, is = keys[in.KeyID]
		}
		aad, _ := json.Marshal(in.EncryptionContext)
		switch _, op, _ := strings.Cut(r.Header.Get("X-Amz-Target"), "."); {
		case !is:
			fail("NotFoundException")
		case op == "Encrypt":
			_ = json.NewEncoder(w).Encode(map[string]any{
				"KeyId": in.KeyID, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT", "CiphertextBlob": append([]byte(in.KeyID+"\x00"), key.Seal(nil, nil, in.Plaintext, aad)...),
			})
		case op == "Decrypt":
			id, sealed, found := bytes.Cut(in.CiphertextBlob, []byte{0})
			if found && string(id) != in.KeyID && keys[string(id)].AEAD != nil {
				fail("IncorrectKeyException")
				return
			}
			plain, err := key.Open(nil, nil, sealed, aad)
			if err != nil {
				fail("InvalidCiphertextException")
				return
			}
			_ = json.NewEncoder(w).Encode(map[string]any{"KeyId": in.KeyID, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT", "Plaintext": plain})
		default:
			fail("UnknownOperationException")
		}
	})
	file := c.file(t, "credentials", "[other]\naws_access_key_id = AKIAOTHER\n[default]\naws_access_key_id = AKIAFILE\naws_secret_access_key = made/for+tests\n")
	bad := c.file(t, "bad", "[default]\naws_access_key_id = AKIAFILE\naws_secret_access_key = not/that+one\n")
	at := func(key, rest string) string {
		return "awskms:" + key + "?endpoint=" + c.URL + "&ca=" + url.QueryEscape(c.ca) + rest
	}
	return cloudCase{
		at: c, good: at(account+"one", "&credentials="+file), other: at(account+"two", "&credentials="+file),
		missing: at(account+"none", "&credentials="+file), refused: at(account+"one", "&credentials="+bad), credential: "not/that+one", says: "kms:Decrypt",
	}
}

// signed reports whether a request was signed with one of the keys.
func signed(r *http.Request, body []byte, secrets map[string]string) bool {
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if err != nil {
		return false
	}
	_, id, _ := strings.Cut(r.Header.Get("Authorization"), "Credential=")
	id, _, _ = strings.Cut(id, "/")
	sum := sha256.Sum256(body)
	again := r.Clone(context.Background())
	_, names, _ := strings.Cut(r.Header.Get("Authorization"), "SignedHeaders=")
	names, _, _ = strings.Cut(names, ",")
	for name := range again.Header {
		if !slices.Contains(strings.Split(names, ";"), strings.ToLower(name)) {
			again.Header.Del(name)
		}
	}
	again.URL.Host, again.Host = r.Host, r.Host
	c := sdk.Credentials{AccessKeyID: id, SecretAccessKey: secrets[id], SessionToken: r.Header.Get("X-Amz-Security-Token")}
	err = v4.NewSigner().SignHTTP(context.Background(), c, again, hex.EncodeToString(sum[:]), "kms", "eu-central-1", at)
	return err == nil && secrets[id] != "" && again.Header.Get("Authorization") == r.Header.Get("Authorization")
}

// rsaKeys are those of the vaults, by version.
var rsaKeys = sync.OnceValue(func() map[string]*rsa.PrivateKey {
	keys := map[string]*rsa.PrivateKey{}
	for _, version := range []string{"v1", "v2"} {
		k, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		keys[version] = k
	}
	return keys
})

// azureCase is the official fake of a Key Vault with two RSA keys, behind HTTP. A
// key that is rotated keeps the version that wrapped.
func azureCase(t testing.TB) cloudCase {
	newest := map[string]string{"one": "v1", "two": "v2"}
	base := ""
	find := func(name, version string, bad *azfake.ErrorResponder) (*rsa.PrivateKey, string) {
		if version == "" { // the fake does not take a name and a version apart
			name, version, _ = strings.Cut(name, "/")
		}
		if version == "" {
			version = newest[name]
		}
		k := rsaKeys()[version]
		if newest[name] != version || k == nil {
			bad.SetResponseError(http.StatusNotFound, "KeyNotFound")
			return nil, ""
		}
		return k, version
	}
	vault := fake.NewServerTransport(&fake.Server{
		WrapKey: func(_ context.Context, name, version string, in azkeys.KeyOperationParameters, _ *azkeys.WrapKeyOptions) (ok azfake.Responder[azkeys.WrapKeyResponse], bad azfake.ErrorResponder) {
			k, version := find(name, version, &bad)
			if k == nil {
				return ok, bad
			}
			wrapped, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, &k.PublicKey, in.Value, nil)
			if err != nil || *in.Algorithm != azkeys.EncryptionAlgorithmRSAOAEP256 {
				bad.SetResponseError(http.StatusBadRequest, "BadParameter")
				return ok, bad
			}
			id := azkeys.ID(base + "/keys/" + name + "/" + version)
			ok.SetResponse(http.StatusOK, azkeys.WrapKeyResponse{KeyOperationResult: azkeys.KeyOperationResult{KID: &id, Result: wrapped}}, nil)
			return ok, bad
		},
		UnwrapKey: func(_ context.Context, name, version string, in azkeys.KeyOperationParameters, _ *azkeys.UnwrapKeyOptions) (ok azfake.Responder[azkeys.UnwrapKeyResponse], bad azfake.ErrorResponder) {
			k, version := find(name, version, &bad)
			if k == nil {
				return ok, bad
			}
			plain, err := k.Decrypt(rand.Reader, in.Value, &rsa.OAEPOptions{Hash: crypto.SHA256})
			if err != nil {
				bad.SetResponseError(http.StatusBadRequest, "BadParameter")
				return ok, bad
			}
			id := azkeys.ID(base + "/keys/" + name + "/" + version)
			ok.SetResponse(http.StatusOK, azkeys.UnwrapKeyResponse{KeyOperationResult: azkeys.KeyOperationResult{KID: &id, Result: plain}}, nil)
			return ok, bad
		},
	})
	c := newCloud(t, func(w http.ResponseWriter, r *http.Request) {
		if bearer := r.Header.Get("Authorization"); bearer != "Bearer made-for-tests" && bearer != "Bearer of-the-machine" {
			w.Header().Set("WWW-Authenticate", `Bearer authorization="https://login.example/tenant", resource="https://vault.azure.net"`)
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, `{"error": {"code": "Unauthorized", "message": "said by the service"}}`)
			return
		}
		// The fake wants to be told what a client in its own process would tell it.
		name := "Client.WrapKey"
		if strings.HasSuffix(r.URL.Path, "/unwrapkey") {
			name = "Client.UnwrapKey"
		}
		req := r.Clone(context.WithValue(r.Context(), runtime.CtxAPINameKey{}, name))
		req.URL.Scheme, req.URL.Host, req.RequestURI = "https", r.Host, ""
		res, err := vault.Do(req)
		var refused *azcore.ResponseError
		switch {
		case errors.As(err, &refused): // which is how the fake answers with an error
			w.Header().Set("X-Ms-Error-Code", refused.ErrorCode)
			w.WriteHeader(refused.StatusCode)
			return
		case err != nil:
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		defer res.Body.Close()
		for name, values := range res.Header {
			w.Header()[name] = values
		}
		w.WriteHeader(res.StatusCode)
		_, _ = io.Copy(w, res.Body)
	})
	base = c.URL
	token, bad := c.file(t, "token", "made-for-tests\n"), c.file(t, "bad", "not-that-one")
	at := func(key, rest string) string {
		return "azurekms:" + c.URL + "/keys/" + key + "?ca=" + url.QueryEscape(c.ca) + rest
	}
	return cloudCase{
		at: c, good: at("one", "&token="+token), other: at("two", "&token="+token), missing: at("none", "&token="+token), refused: at("one", "&token="+bad),
		credential: "not-that-one", says: "allowed to wrap and unwrap",
	}
}

// googleCase is Cloud KMS, as its reference of the REST interface describes encrypt
// and decrypt.
func googleCase(t testing.TB) cloudCase {
	const ring = "projects/acme/locations/europe-west3/keyRings/ring/cryptoKeys/"
	keys := map[string]box{ring + "one": newBox(), ring + "two": newBox()}
	sum := func(b []byte) string { return fmt.Sprint(crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))) }
	c := newCloud(t, func(w http.ResponseWriter, r *http.Request) {
		fail := func(code int, status string) {
			w.WriteHeader(code)
			_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{"code": code, "status": status, "message": "said by the service"}})
		}
		if bearer := r.Header.Get("Authorization"); bearer != "Bearer made-for-tests" && bearer != "Bearer of-the-machine" {
			fail(http.StatusUnauthorized, "UNAUTHENTICATED")
			return
		}
		var in struct {
			Plaintext, Ciphertext, AdditionalAuthenticatedData                   []byte
			PlaintextCrc32c, CiphertextCrc32c, AdditionalAuthenticatedDataCrc32c string
		}
		name, verb, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v1/"), ":")
		key, is := keys[name]
		switch err := json.NewDecoder(r.Body).Decode(&in); {
		case !is:
			fail(http.StatusNotFound, "NOT_FOUND")
		case err != nil, in.AdditionalAuthenticatedDataCrc32c != sum(in.AdditionalAuthenticatedData):
			fail(http.StatusBadRequest, "INVALID_ARGUMENT")
		case verb == "encrypt" && in.PlaintextCrc32c == sum(in.Plaintext):
			sealed := key.Seal(nil, nil, in.Plaintext, in.AdditionalAuthenticatedData)
			_ = json.NewEncoder(w).Encode(map[string]any{"name": name + "/cryptoKeyVersions/1", "ciphertext": sealed, "ciphertextCrc32c": sum(sealed), "verifiedPlaintextCrc32c": true})
		case verb == "decrypt" && in.CiphertextCrc32c == sum(in.Ciphertext):
			plain, err := key.Open(nil, nil, in.Ciphertext, in.AdditionalAuthenticatedData)
			if err != nil {
				fail(http.StatusBadRequest, "INVALID_ARGUMENT")
				return
			}
			_ = json.NewEncoder(w).Encode(map[string]any{"plaintext": plain, "plaintextCrc32c": sum(plain), "usedPrimary": true})
		default:
			fail(http.StatusBadRequest, "INVALID_ARGUMENT")
		}
	})
	token, bad := c.file(t, "token", "made-for-tests\n"), c.file(t, "bad", "not-that-one")
	at := func(key, rest string) string {
		return "cloudkms:" + ring + key + "?endpoint=" + c.URL + "&ca=" + url.QueryEscape(c.ca) + rest
	}
	return cloudCase{
		at: c, good: at("one", "&token="+token), other: at("two", "&token="+token), missing: at("none", "&token="+token), refused: at("one", "&token="+bad),
		credential: "not-that-one", says: "cryptoKeyEncrypterDecrypter",
	}
}

// TestMachines: without a credential in a file the machine shows who it is, which
// takes the header that a redirected request would not have.
func TestMachines(t *testing.T) {
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"} {
		t.Setenv(name, "")
	}
	const role = "/latest/meta-data/iam/security-credentials/"
	for name, c := range map[string]struct {
		start   func(testing.TB) cloudCase
		answers map[string]string
		header  string
	}{
		"aws": {awsCase, map[string]string{
			"PUT /latest/api/token": "a-token", "GET " + role: "estover\n",
			"GET " + role + "estover": `{"Code": "Success", "AccessKeyId": "ASIAMACHINE", "SecretAccessKey": "of/the+machine", "Token": "session"}`,
		}, "X-aws-ec2-metadata-token"},
		"azure":  {azureCase, map[string]string{"GET /metadata/identity/oauth2/token": `{"access_token": "of-the-machine", "expires_in": "3599"}`}, "Metadata"},
		"google": {googleCase, map[string]string{"GET /computeMetadata/v1/instance/service-accounts/default/token": `{"access_token": "of-the-machine", "expires_in": 3599}`}, "Metadata-Flavor"},
	} {
		t.Run(name, func(t *testing.T) {
			k := c.start(t)
			without, _, _ := strings.Cut(k.good, "&credentials=")
			without, _, _ = strings.Cut(without, "&token=")
			d := dbtest.Open(t)
			opens(t, d, parse(t, without+"&metadata="+machine(t, c.answers, c.header)))
			_, err := seal.Open(t.Context(), d, parse(t, without+"&metadata="+machine(t, nil, c.header)))
			if !errors.Is(err, seal.ErrRootMissing) || !strings.Contains(err.Error(), "identity") {
				t.Errorf("a machine without an identity: %v, want ErrRootMissing that says so", err)
			}
		})
	}
	t.Run("the environment", func(t *testing.T) {
		k := awsCase(t)
		without, _, _ := strings.Cut(k.good, "&credentials=")
		t.Setenv("AWS_ACCESS_KEY_ID", "AKIAFILE")
		t.Setenv("AWS_SECRET_ACCESS_KEY", "made/for+tests")
		opens(t, dbtest.Open(t), parse(t, without))
	})
}

// TestServiceThatLies: a root key that its service does not open again is not used,
// since what is sealed under it would be lost at the next start.
func TestServiceThatLies(t *testing.T) {
	other := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, 32))
	for what, answers := range map[string][2]string{ // of wrapping and of opening
		"another key":      {"d3JhcHBlZA==", other},
		"nothing":          {"", ""},
		"what is no key":   {"d3JhcHBlZA==", "AAAA"},
		"what it had sent": {other, other},
	} {
		c := newCloud(t, func(w http.ResponseWriter, r *http.Request) {
			opening := strings.HasSuffix(r.Header.Get("X-Amz-Target"), ".Decrypt") || strings.HasPrefix(r.URL.Path, "/v1/transit/decrypt/")
			if r.Header.Get("X-Amz-Target") != "" {
				w.Header().Set("Content-Type", "application/x-amz-json-1.1")
				_ = json.NewEncoder(w).Encode(map[string]string{"KeyId": "one", "CiphertextBlob": answers[0], "Plaintext": answers[1]})
				return
			}
			name, value := "ciphertext", answers[0]
			if opening {
				name, value = "plaintext", answers[1]
			}
			_ = json.NewEncoder(w).Encode(map[string]any{"data": map[string]string{name: value}})
		})
		file := c.file(t, "credentials", "[default]\naws_access_key_id = AKIAFILE\naws_secret_access_key = made/for+tests\n")
		for _, uri := range []string{
			"awskms:alias/one?region=eu-central-1&endpoint=" + c.URL + "&ca=" + url.QueryEscape(c.ca) + "&credentials=" + file,
			"vault-transit:" + c.URL + "?key=estover&ca=" + url.QueryEscape(c.ca) + "&token=" + file,
		} {
			if _, err := seal.Open(t.Context(), dbtest.Open(t), parse(t, uri)); !errors.Is(err, seal.ErrRootMissing) {
				t.Errorf("a service that opens %s by %s: %v, want ErrRootMissing", what, uri[:8], err)
			}
		}
	}
}
