// Package awskms has the root key wrapped by a symmetric key of AWS KMS, which
// never leaves it.
package awskms

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/smithy-go"

	"estover.dev/internal/seal"
	"estover.dev/internal/seal/source/remote"
)

const service = "The key service of AWS"

// A Source is a key of AWS KMS.
type Source struct {
	Key         string // its ARN, its id, or alias/NAME
	Region      string
	Credentials string // the file with an access key; empty for what the environment or the machine has
	endpoint    string
	client      *http.Client
	machine     remote.Machine
}

// New reads what stands behind "awskms:": KEY, and the options region,
// credentials, endpoint, ca and metadata.
func New(key string, q url.Values) (s Source, err error) {
	s = Source{Key: key, Region: q.Get("region"), Credentials: q.Get("credentials")}
	if parts := strings.Split(key, ":"); s.Region == "" && len(parts) == 6 && parts[0] == "arn" && parts[2] == "kms" {
		s.Region = parts[3]
	}
	if !remote.Named(key, 256, ":/_-") || !remote.Named(s.Region, 40, "-") {
		return s, fmt.Errorf("a key of AWS KMS is named by its ARN, as awskms:arn:aws:kms:eu-central-1:111122223333:key/ID, or by its id or alias and region=REGION")
	}
	suffix := ".amazonaws.com"
	if strings.HasPrefix(s.Region, "cn-") {
		suffix += ".cn"
	}
	s.endpoint = cmp.Or(q.Get("endpoint"), "https://kms."+s.Region+suffix)
	if _, err := remote.CheckAddress(service, s.endpoint); err != nil {
		return s, err
	}
	if s.machine, err = remote.NewMachine("http://169.254.169.254", q.Get("metadata")); err != nil {
		return s, err
	}
	s.client, err = remote.Client(q.Get("ca"))
	return s, err
}

// Kind is "awskms".
func (Source) Kind() string { return "awskms" }

// bound is what a wrapped key is bound to: KMS has it in its own log, and opens
// nothing that was wrapped for something else.
var bound = map[string]string{"estover": "root key"}

// Root has the key unwrapped, or a fresh one wrapped.
func (s Source) Root(ctx context.Context, params string, first bool) (key []byte, keep string, err error) {
	ctx, cancel := context.WithTimeout(ctx, remote.Time)
	defer cancel()
	if first {
		c, err := s.connect(ctx)
		if err != nil {
			return nil, "", err
		}
		key = remote.NewKey()
		out, err := c.Encrypt(ctx, &kms.EncryptInput{KeyId: &s.Key, Plaintext: key, EncryptionContext: bound})
		if err != nil {
			return nil, "", s.failed(err)
		}
		return remote.Kept(ctx, s, key, base64.StdEncoding.EncodeToString(out.CiphertextBlob))
	}
	wrapped, err := base64.StdEncoding.DecodeString(params)
	if err != nil || len(wrapped) == 0 {
		return nil, "", seal.ErrRoot.With("What is kept of the root key is nothing that AWS KMS has wrapped.")
	}
	c, err := s.connect(ctx)
	if err != nil {
		return nil, "", err
	}
	out, err := c.Decrypt(ctx, &kms.DecryptInput{KeyId: &s.Key, CiphertextBlob: wrapped, EncryptionContext: bound})
	if err != nil {
		return nil, "", s.failed(err)
	}
	if len(out.Plaintext) != remote.Len {
		return nil, "", seal.ErrRoot.With("What the key %s of AWS KMS has unwrapped is not a root key.", s.Key)
	}
	return out.Plaintext, "", nil
}

func (s Source) connect(ctx context.Context) (*kms.Client, error) {
	credentials, err := s.credentials(ctx)
	if err != nil {
		return nil, err
	}
	return kms.New(kms.Options{
		Region: s.Region, BaseEndpoint: &s.endpoint, HTTPClient: s.client, Retryer: aws.NopRetryer{},
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) { return credentials, nil }),
	}), nil
}

// failed says what to do about an error of the service.
func (s Source) failed(err error) error {
	var wrong *types.IncorrectKeyException
	var other *types.InvalidCiphertextException
	if errors.As(err, &wrong) || errors.As(err, &other) {
		return seal.ErrRoot.With("The key %s of AWS KMS has not wrapped the root key of this database. Name the one that did.", s.Key)
	}
	var said smithy.APIError
	if errors.As(err, &said) {
		return seal.ErrRootMissing.With("%s at %s refuses: %s %q. The key %s must be there and enabled, and whoever this server is there must be allowed kms:Encrypt and kms:Decrypt with it.",
			service, s.endpoint, remote.Said(said.ErrorCode()), remote.Said(said.ErrorMessage()), s.Key)
	}
	var failed *smithy.OperationError
	if errors.As(err, &failed) {
		err = failed.Err
	}
	return remote.Unreachable(service, s.endpoint, err)
}

// credentials are those of the file, of the environment, or of the machine's own
// role.
func (s Source) credentials(ctx context.Context) (c aws.Credentials, err error) {
	if s.Credentials != "" {
		return read(s.Credentials)
	}
	c = aws.Credentials{AccessKeyID: os.Getenv("AWS_ACCESS_KEY_ID"), SecretAccessKey: os.Getenv("AWS_SECRET_ACCESS_KEY"), SessionToken: os.Getenv("AWS_SESSION_TOKEN")}
	if c.HasKeys() {
		return c, nil
	}
	// The second version of the service, which answers nobody's redirected request.
	const path = "/latest/meta-data/iam/security-credentials/"
	token, err := s.machine.Ask(ctx, http.MethodPut, "/latest/api/token", http.Header{"X-Aws-Ec2-Metadata-Token-Ttl-Seconds": {"60"}})
	if err != nil {
		return c, err
	}
	show := http.Header{"X-Aws-Ec2-Metadata-Token": {string(token)}}
	role, err := s.machine.Ask(ctx, http.MethodGet, path, show)
	if err != nil {
		return c, err
	}
	name, _, _ := strings.Cut(strings.TrimSpace(string(role)), "\n")
	b, err := s.machine.Ask(ctx, http.MethodGet, path+url.PathEscape(name), show)
	if err != nil {
		return c, err
	}
	var its struct{ AccessKeyID, SecretAccessKey, Token string }
	if err := json.Unmarshal(b, &its); err != nil || its.AccessKeyID == "" || its.SecretAccessKey == "" {
		return c, seal.ErrRootMissing.With("The role %q of this machine has no access key.", remote.Said(name))
	}
	return aws.Credentials{AccessKeyID: its.AccessKeyID, SecretAccessKey: its.SecretAccessKey, SessionToken: its.Token}, nil
}

// read takes the access key out of a file as the command line of AWS keeps it, of
// the profile default.
func read(file string) (c aws.Credentials, err error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return c, seal.ErrRootMissing.With("The access key for AWS KMS cannot be read: %v", err)
	}
	defer clear(b)
	profile := "default"
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			profile = strings.Trim(line, "[] ")
		}
		name, value, is := strings.Cut(line, "=")
		if !is || profile != "default" {
			continue
		}
		switch value = strings.TrimSpace(value); strings.TrimSpace(name) {
		case "aws_access_key_id":
			c.AccessKeyID = value
		case "aws_secret_access_key":
			c.SecretAccessKey = value
		case "aws_session_token":
			c.SessionToken = value
		}
	}
	if !c.HasKeys() {
		return c, seal.ErrRootMissing.With("The file %s has no aws_access_key_id and aws_secret_access_key below [default].", file)
	}
	return c, nil
}
