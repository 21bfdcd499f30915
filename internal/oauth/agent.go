package oauth

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
	"time"

	"estover.dev"
	"estover.dev/internal/agent"
	"estover.dev/internal/jose"
	"estover.dev/internal/token"
)

// ClientOf is an agent as an OAuth client: the one whose id is the agent's, or
// that is known by a URL. That one has no credentials here, since its document
// says what its keys are, and [Documents.Client] makes the most of it.
// alive says why it may not act, if it may not; it is asked at each use.
func ClientOf(s *agent.Snapshot, alive func(ctx context.Context, now time.Time) error) (*token.Client, error) {
	c := &token.Client{
		ID: s.ID, Subject: estover.Agent(s.ID), Purposes: s.Purposes, GrantTypes: []string{token.Own}, Alive: alive,
	}
	settings := s.Client
	if r := s.Registration; r != nil {
		c.Itself, c.Said = true, said(r)
		if !r.Alone {
			c.GrantTypes = nil
		}
	}
	if settings != nil {
		c.URL = settings.MetadataURL
	}
	for _, one := range s.Credentials {
		if c.URL != "" {
			break
		}
		if one.Backup {
			c.Backup = append(c.Backup, one.ID)
		}
		switch one.Kind {
		case agent.ClientSecret:
			c.Methods = append(c.Methods, token.SecretBasic, token.SecretPost)
		case agent.KeySet:
			keys, err := jose.ParseKeys(one.JWKS)
			if err != nil {
				return nil, err
			}
			c.Methods = append(c.Methods, token.PrivateKeyJWT, token.SelfSignedTLS)
			c.KeySets = append(c.KeySets, token.KeySet{Credential: one.ID, Keys: keys, Expires: one.ExpiresAt})
		case agent.Certified:
			certified := token.Certified{Credential: one.ID, Names: one.Certificate.Names, Domain: one.Certificate.Domain(), Expires: one.ExpiresAt}
			if certified.Domain == "" {
				var err error
				if certified.Roots, err = one.Certificate.Roots(); err != nil {
					return nil, err
				}
			}
			c.Methods = append(c.Methods, token.TLSClientAuth)
			c.Certified = append(c.Certified, certified)
		}
	}
	if settings == nil {
		return c, nil
	}
	c.GrantTypes = append(c.GrantTypes, settings.GrantTypes...)
	if c.URL != "" {
		c.Methods = agent.MetadataMethods
	}
	if len(settings.Methods) > 0 {
		allowed := append(c.Methods, token.Public)
		c.Methods = slices.DeleteFunc(slices.Clone(settings.Methods), func(m string) bool { return !slices.Contains(allowed, m) })
		c.Named = true
	}
	c.Redirects, c.Resource, c.Introspect = settings.RedirectURIs, settings.DefaultResource, settings.Introspect
	c.Runs, c.Exchanges, c.Details = settings.Runs, settings.Exchanges, settings.Details
	for _, one := range settings.Chains {
		c.Chains = append(c.Chains, token.Chain{Issuer: one.Issuer, Client: one.ClientID, Scopes: one.Scopes})
	}
	c.Life = time.Duration(settings.TokenSeconds) * time.Second
	c.DPoPBound, c.CertificateBound = settings.DPoPBound, settings.CertificateBound
	c.RequirePAR, c.LegacyAudience, c.IDTokenAlgorithm = settings.RequirePAR, settings.LegacyAudience, settings.IDTokenAlgorithm
	return c, nil
}

// said is what a client says that registered itself.
func said(r *agent.Registration) *token.Said {
	b, err := json.Marshal(r.Metadata)
	if err != nil {
		panic("oauth: a registration that cannot be JSON: " + err.Error())
	}
	sum := sha256.Sum256(b)
	return &token.Said{Name: r.Name, Digest: hex.EncodeToString(sum[:])}
}
