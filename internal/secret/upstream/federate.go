package upstream

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/secret/engine"
)

// Audience is the option that has us log in at a store with an assertion of our own
// issuer, instead of a secret.
const Audience = "audience"

// A Federation says how an assertion of our issuer becomes a credential at a kind of
// store.
type Federation struct {
	// Beside gives the hosts, as host:port, that are asked for it and are not the
	// store's own, or says what is wrong with the options. They get the assertion, which is good for its audience alone.
	Beside func(options map[string]string) ([]string, error)

	// Login exchanges it. The credential is good until a time.
	Login func(ctx context.Context, c engine.Config, assertion string) (engine.Credential, time.Time, error)
}

// Exchange posts a form to a token endpoint, at an address and below it, and gives the
// access token (RFC 6749, section 5.1).
func Exchange(ctx context.Context, c engine.Config, address, path string, form url.Values) (out engine.Credential, until time.Time, err error) {
	c.Address = address
	begun := time.Now()
	said, err := post(ctx, c, path, "application/x-www-form-urlencoded", form.Encode())
	if err != nil {
		return out, until, err
	}
	var answer struct {
		Token   string `json:"access_token"`
		Seconds int64  `json:"expires_in"`
	}
	if json.Unmarshal(said, &answer) != nil || answer.Token == "" {
		return out, until, engine.Unreachable(errAnswer)
	}
	return engine.Credential{Secret: estover.NewSecret([]byte(answer.Token))}, begun.Add(Lifetime(answer.Seconds)), nil
}

// PostJSON posts an object of JSON to the store itself, before anybody has logged in.
func PostJSON(ctx context.Context, c engine.Config, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	said, err := post(ctx, c, path, "application/json", string(body))
	if err == nil && json.Unmarshal(said, out) != nil {
		err = engine.Unreachable(errAnswer)
	}
	return err
}

// codeOf are the codes of errors, which cannot hold an assertion.
var codeOf = regexp.MustCompile(`^[a-z_]{1,40}$`)

var errAnswer = engine.Refuse("an answer is not what was expected")

// Lifetime is how long a credential is good that says so in seconds; not for long if
// it does not say.
func Lifetime(seconds int64) time.Duration {
	if seconds <= 0 {
		return 5 * time.Minute
	}
	return time.Duration(min(seconds, 24*3600)) * time.Second
}

func post(ctx context.Context, c engine.Config, path, kind, body string) ([]byte, error) {
	client, base, err := c.HTTP()
	if err != nil {
		return nil, err
	}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base.String()+path, strings.NewReader(body))
	if err != nil {
		return nil, engine.Refuse("the call cannot be made")
	}
	req.Header.Set("Content-Type", kind)
	req.Header.Set("Accept", "application/json")
	if ns := c.Options["namespace"]; ns != "" {
		req.Header.Set("X-Vault-Namespace", ns)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, engine.HTTPError(err, false)
	}
	defer resp.Body.Close()
	said, err := engine.Body(resp)
	if err != nil {
		return nil, engine.Unreachable(err)
	}
	if resp.StatusCode != http.StatusOK {
		var why struct { // RFC 6749, section 5.2; its description may repeat the assertion
			Error string `json:"error"`
		}
		if json.Unmarshal(said, &why) != nil || !codeOf.MatchString(why.Error) {
			why.Error = ""
		}
		return nil, engine.Unreachable(engine.Refuse("%s does not take our assertion: %s", base.Hostname(), strings.TrimSpace(fmt.Sprintf("%d %s", resp.StatusCode, why.Error))))
	}
	return said, nil
}

// federated is a credential at a store by an assertion of our issuer.
func (x *Stores) federated(ctx context.Context, tenant estover.TenantID, s *NamedStore, k Kind, host string) (c engine.Credential, until time.Time, err error) {
	hosts := []string{host}
	if k.Federation.Beside != nil {
		more, err := k.Federation.Beside(s.Options)
		if err != nil {
			return c, until, err
		}
		hosts = append(hosts, more...)
	}
	assertion, err := x.Assert(ctx, tenant, s.ID, s.Options[Audience])
	if err != nil {
		return c, until, err
	}
	config := engine.Config{Address: s.Address, Options: s.Options, Authorities: []byte(s.Authorities), Dial: dialer(tenant, x.Dial, hosts...)}
	return k.Federation.Login(ctx, config, assertion)
}
