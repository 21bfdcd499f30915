// Package aws keeps secrets in AWS Secrets Manager.
//
// A version is named by a token that the one who writes it makes, which is what
// makes a write safe to repeat; the one with the stage AWSCURRENT is current.
// Nobody checks which version a new one follows. A deletion takes effect at once
// and can be undone there for a month, in which nobody else has the name.
//
// One logs in with an access key, or takes a role for an hour with an assertion of our
// issuer, which the account has as an OpenID Connect provider.
package aws

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager/types"
	"github.com/aws/smithy-go"

	"estover.dev"
	"estover.dev/internal/secret/engine"
	"estover.dev/internal/secret/upstream"
)

// Kind is AWS Secrets Manager.
var Kind = upstream.Kind{
	Name:    "aws",
	Title:   "AWS Secrets Manager",
	Address: "https://secretsmanager.REGION.amazonaws.com",
	Login:   "an access key: its id as the username, and the secret key",
	Options: []engine.Field{
		{Name: "region", Help: "the region, as eu-central-1", Required: true},
		{Name: upstream.Audience, Help: "sts.amazonaws.com: to log in with an assertion of ours instead of a key, by an OpenID Connect provider of the account"},
		{Name: "role", Help: "with it: the ARN of the role that trusts it, as arn:aws:iam::123456789012:role/estover"},
		{Name: "sts", Help: "with it: https://sts.REGION.amazonaws.com if it is empty"},
		engine.TLSField,
	},
	Federation: &upstream.Federation{Beside: beside, Login: federate},
	Open:       open,
}

const (
	current = "AWSCURRENT"
	largest = 64 << 10 // of a version, in bytes
	pages   = upstream.Most / 50
)

var region = regexp.MustCompile(`^[a-z0-9-]{1,40}$`)

var errRegion = engine.ErrConfig.With("The option region is a region, such as eu-central-1.").At("options.region")

type store struct{ client *secretsmanager.Client }

func open(c engine.Config) (upstream.Store, error) {
	client, base, err := c.HTTP()
	if err != nil {
		return nil, err
	}
	if !region.MatchString(c.Options["region"]) {
		return nil, errRegion
	}
	if c.Admin.User == "" {
		return nil, engine.ErrConfig.With("The secret that logs in has an access key's id as its username.").At("login")
	}
	client.Transport = bounded{client.Transport}
	return &store{secretsmanager.New(secretsmanager.Options{
		Region: c.Options["region"], BaseEndpoint: aws.String(base.String()), HTTPClient: client, Retryer: aws.NopRetryer{},
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: c.Admin.User, SecretAccessKey: string(c.Admin.Secret.Reveal()), SessionToken: string(c.Admin.Session.Reveal())}, nil
		}),
	})}, nil
}

// bounded cuts answers off, since the library reads them to their end.
type bounded struct{ http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.RoundTripper.RoundTrip(r)
	if err == nil {
		resp.Body = http.MaxBytesReader(nil, resp.Body, engine.Answer)
	}
	return resp, err
}

// checkName refuses what is no name there.
func checkName(path string) error {
	if err := upstream.CheckPath(path); err != nil {
		return err
	}
	if strings.ContainsFunc(path, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/_+=.@-", r))
	}) {
		return engine.Refuse("%q is no name of a secret there: letters, digits and /_+=.@-", path)
	}
	return nil
}

func (s *store) Get(ctx context.Context, path, version string) (v upstream.Value, err error) {
	if err := checkName(path); err != nil {
		return v, err
	}
	in := &secretsmanager.GetSecretValueInput{SecretId: &path}
	if version != "" {
		in.VersionId = &version
	}
	got, err := s.client.GetSecretValue(ctx, in)
	if err != nil {
		return v, classify(err)
	}
	v = upstream.Value{Version: aws.ToString(got.VersionId), Created: aws.ToTime(got.CreatedDate)}
	if got.SecretString != nil {
		v.Object = upstream.Object([]byte(*got.SecretString))
	} else {
		v.Object = upstream.Object([]byte(base64.StdEncoding.EncodeToString(got.SecretBinary)))
	}
	return v, nil
}

func (s *store) Put(ctx context.Context, path string, object estover.Secret, expect string) (string, error) {
	if err := checkName(path); err != nil {
		return "", err
	}
	text, err := upstream.Text(object)
	if err != nil {
		return "", err
	}
	if len(text) > largest {
		return "", engine.Refuse("a version holds 64 KiB at most")
	}
	value := string(text)
	if expect != upstream.None {
		if expect != upstream.Any {
			versions, err := s.Versions(ctx, path)
			switch {
			case err != nil && !errors.Is(err, upstream.ErrNotFound):
				return "", err
			case len(versions) == 0 || versions[0].ID != expect:
				return "", upstream.ErrVersion
			}
		}
		put, err := s.client.PutSecretValue(ctx, &secretsmanager.PutSecretValueInput{SecretId: &path, SecretString: &value})
		if err == nil {
			return aws.ToString(put.VersionId), nil
		}
		if err = classify(err); expect != upstream.Any || !errors.Is(err, upstream.ErrNotFound) {
			return "", err
		}
	}
	made, err := s.client.CreateSecret(ctx, &secretsmanager.CreateSecretInput{Name: &path, SecretString: &value})
	if err = classify(err); errors.Is(err, upstream.ErrNotFound) {
		return "", engine.Refuse("the name belongs to a secret that was deleted and waits there for its deletion: restore it there, or have it deleted without recovery")
	}
	if err != nil {
		return "", err
	}
	return aws.ToString(made.VersionId), nil
}

func (s *store) List(ctx context.Context, prefix string) (paths []string, err error) {
	in := &secretsmanager.ListSecretsInput{MaxResults: aws.Int32(100)}
	if prefix != "" { // which is taken without regard to case there
		in.Filters = []types.Filter{{Key: types.FilterNameStringTypeName, Values: []string{prefix}}}
	}
	for range pages {
		page, err := s.client.ListSecrets(ctx, in)
		if err != nil {
			return nil, classify(err)
		}
		for _, x := range page.SecretList {
			if name := aws.ToString(x.Name); strings.HasPrefix(name, prefix) && x.DeletedDate == nil {
				paths = append(paths, name)
			}
		}
		if in.NextToken = page.NextToken; aws.ToString(in.NextToken) == "" {
			slices.Sort(paths)
			return paths, nil
		}
	}
	return nil, engine.Refuse("there are more than %d secrets that begin with %q", upstream.Most, prefix)
}

func (s *store) Versions(ctx context.Context, path string) ([]upstream.Version, error) {
	if err := checkName(path); err != nil {
		return nil, err
	}
	var all []types.SecretVersionsListEntry
	in := &secretsmanager.ListSecretVersionIdsInput{SecretId: &path, IncludeDeprecated: aws.Bool(true)}
	for range pages {
		page, err := s.client.ListSecretVersionIds(ctx, in)
		if err != nil {
			return nil, classify(err)
		}
		all = append(all, page.Versions...)
		if in.NextToken = page.NextToken; aws.ToString(in.NextToken) == "" {
			break
		}
	}
	isCurrent := func(v types.SecretVersionsListEntry) int {
		if slices.Contains(v.VersionStages, current) {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(all, func(a, b types.SecretVersionsListEntry) int {
		return cmp.Or(isCurrent(b)-isCurrent(a), aws.ToTime(b.CreatedDate).Compare(aws.ToTime(a.CreatedDate)))
	})
	versions := make([]upstream.Version, len(all))
	for i, v := range all {
		versions[i] = upstream.Version{ID: aws.ToString(v.VersionId), Created: aws.ToTime(v.CreatedDate), Live: true}
	}
	return versions, nil
}

// Delete leaves the secret to be brought back there for 30 days.
func (s *store) Delete(ctx context.Context, path string) error {
	if err := checkName(path); err != nil {
		return err
	}
	_, err := s.client.DeleteSecret(ctx, &secretsmanager.DeleteSecretInput{SecretId: &path})
	if err = classify(err); errors.Is(err, upstream.ErrNotFound) {
		return nil
	}
	return err
}

// classify says in the words of the package what an error means.
func classify(err error) error {
	var missing *types.ResourceNotFoundException
	var exists *types.ResourceExistsException
	var invalid *types.InvalidRequestException
	var answer smithy.APIError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &missing):
		return upstream.ErrNotFound
	case errors.As(err, &exists):
		return upstream.ErrVersion
	case errors.As(err, &invalid) && strings.Contains(invalid.ErrorMessage(), "deletion"): // scheduled for it
		return upstream.ErrNotFound
	case errors.As(err, &answer):
		switch answer.ErrorCode() {
		case "InvalidParameterException", "InvalidRequestException", "LimitExceededException", "PreconditionNotMetException", "DecryptionFailure", "EncryptionFailure", "MalformedPolicyDocumentException":
			return engine.Refuse("%s: %s", answer.ErrorCode(), answer.ErrorMessage())
		}
		return engine.Unreachable(errors.New(answer.ErrorCode()))
	}
	var failed interface{ Unwrap() error }
	for errors.As(err, &failed) && failed.Unwrap() != nil {
		err = failed.Unwrap()
	}
	return engine.Unreachable(err)
}
