package aws

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"

	"estover.dev"
	"estover.dev/internal/secret/engine"
)

// maxRole is how long the ARN of a role may be: its path 512 letters, its name 64. (As a
// count in the expression it would make that take a millisecond at each start.)
const maxRole = 640

var (
	roleOf = regexp.MustCompile(`^arn:[a-z-]+:iam::[0-9]{12}:role/[!-~]+$`)
	codeOf = regexp.MustCompile(`^[A-Za-z]{1,60}$`)
)

// hold is how long a role is taken for. Every role allows that.
const hold = time.Hour

// stsAddress is where tokens are exchanged: in the region of the secrets, so that one
// that is down takes no other with it.
func stsAddress(options map[string]string) string {
	return cmp.Or(options["sts"], "https://sts."+options["region"]+".amazonaws.com")
}

func beside(options map[string]string) ([]string, error) {
	switch {
	case len(options["role"]) > maxRole || !roleOf.MatchString(options["role"]):
		return nil, engine.ErrConfig.With("The option role is the ARN of a role, as arn:aws:iam::123456789012:role/estover.").At("options.role")
	case !region.MatchString(options["region"]):
		return nil, errRegion
	}
	host, err := engine.Kind{Name: "aws", Address: "https://HOST", Port: "443"}.Host(stsAddress(options))
	if err != nil {
		return nil, engine.ErrConfig.With("The option sts is https://HOST.").At("options.sts")
	}
	return []string{host}, nil
}

// federate takes the role for an hour (AssumeRoleWithWebIdentity).
func federate(ctx context.Context, c engine.Config, assertion string) (out engine.Credential, until time.Time, err error) {
	if _, err := beside(c.Options); err != nil {
		return out, until, err
	}
	c.Address = stsAddress(c.Options)
	client, base, err := c.HTTP()
	if err != nil {
		return out, until, err
	}
	defer client.CloseIdleConnections()
	client.Transport = bounded{client.Transport}
	begun := time.Now()
	got, err := sts.New(sts.Options{
		Region: c.Options["region"], BaseEndpoint: aws.String(base.String()), HTTPClient: client, Retryer: aws.NopRetryer{},
	}).AssumeRoleWithWebIdentity(ctx, &sts.AssumeRoleWithWebIdentityInput{
		RoleArn: aws.String(c.Options["role"]), RoleSessionName: aws.String("estover"), WebIdentityToken: &assertion, DurationSeconds: aws.Int32(int32(hold / time.Second)),
	})
	if err != nil {
		return out, until, refused(base.Hostname(), err)
	}
	k := got.Credentials
	if k == nil || aws.ToString(k.AccessKeyId) == "" || aws.ToString(k.SecretAccessKey) == "" || aws.ToString(k.SessionToken) == "" {
		return out, until, engine.Unreachable(engine.Refuse("the answer of %s has no key", base.Hostname()))
	}
	until = begun.Add(hold)
	if k.Expiration != nil && k.Expiration.Before(until) {
		until = *k.Expiration
	}
	return engine.Credential{
		User: *k.AccessKeyId, Secret: estover.NewSecret([]byte(*k.SecretAccessKey)), Session: estover.NewSecret([]byte(*k.SessionToken)),
	}, until, nil
}

// reasons are what people look at when a role is not given, by what AWS calls it.
var reasons = map[string]string{
	"AccessDenied":            "the role does not trust this issuer with this audience and subject; look at its trust policy",
	"InvalidIdentityToken":    "the account has no OpenID Connect provider for our issuer with this audience, or cannot read its keys",
	"IDPCommunicationError":   "AWS cannot read /.well-known/openid-configuration of our issuer",
	"IDPRejectedClaim":        "the OpenID Connect provider there does not take what the assertion says",
	"ExpiredTokenException":   "the assertion is too old there; look at our clock",
	"ValidationError":         "the role is none",
	"RegionDisabledException": "the region is switched off in the account",
}

// refused says why a role was not given. The words of the other side are left out, since
// they may repeat the assertion.
func refused(host string, err error) error {
	var answer smithy.APIError
	if !errors.As(err, &answer) {
		return classify(err)
	}
	code := answer.ErrorCode()
	if !codeOf.MatchString(code) {
		code = "an error without a name"
	}
	if why := reasons[code]; why != "" {
		code = fmt.Sprintf("%s: %s", code, why)
	}
	return engine.Unreachable(engine.Refuse("%s does not take our assertion: %s", host, code))
}
