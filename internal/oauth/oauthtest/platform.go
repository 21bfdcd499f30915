package oauthtest

import (
	"context"
	"crypto"
	"crypto/rand"

	"estover.dev/internal/federation"
)

// A Platform is an issuer that gives tokens to workloads, and the trust in it.
type Platform struct {
	World *World
	Trust federation.Trust
	Key   crypto.Signer
}

// Platform is a trusted issuer. Each agent has a token whose subject is its
// name. The change, if any, is made to the trust before it is put.
func (w *World) Platform(name string, change func(*federation.Spec), agents ...*Agent) *Platform {
	w.T.Helper()
	p := &Platform{World: w, Key: NewKey(w.T, "P-256")}
	s := federation.Spec{
		Name: name, Issuer: "https://" + name + ".example", JWKS: string(JWKS(w.T, "platform-1", p.Key.Public())),
		Algorithms: []string{"ES256"}, Audience: string(Issuer),
	}
	for _, a := range agents {
		s.Rules = append(s.Rules, federation.Rule{Agent: a.ID, Claims: map[string]string{"sub": a.Name}})
	}
	if change != nil {
		change(&s)
	}
	var err error
	p.Trust, err = w.Trusts.Put(context.Background(), Admin, s, "")
	must(w.T, err)
	return p
}

// Claims are those of a good token of an agent, fresh each time.
func (p *Platform) Claims(a *Agent) Claims {
	now := p.World.DB.Now().Unix()
	return Claims{"iss": p.Trust.Issuer, "sub": a.Name, "aud": string(Issuer), "iat": now, "exp": now + 300, "jti": rand.Text()}
}

// Sign is a token with these claims.
func (p *Platform) Sign(c Claims) string {
	p.World.T.Helper()
	return Sign(p.World.T, p.Key, "platform-1", c)
}

// Token is a good token of an agent.
func (p *Platform) Token(a *Agent) string { return p.Sign(p.Claims(a)) }

// AskByAssertion asks for a token by an assertion and nothing else.
func (w *World) AskByAssertion(raw string, pairs ...string) Answer {
	w.T.Helper()
	f := Form(pairs...)
	f.Set("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer")
	f.Set("assertion", raw)
	return w.Do(Request("/oauth/token", f))
}
