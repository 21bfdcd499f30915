package token

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"estover.dev"
	"estover.dev/internal/detail"
	"estover.dev/internal/jose"
)

// A Token is what an access token says. It is shared and never changed.
type Token struct {
	Tenant      estover.TenantID
	ID          string // jti
	Subject     estover.Subject
	Actors      []estover.Subject // the nearest first (RFC 8693, section 4.1)
	Client      string            // the agent's id
	URL         string            // the client_id, where that is a URL and not the agent's id
	Audience    []string
	Scopes      []string
	Session     string // sid
	Purpose     string
	Grant       string
	Epoch       int64 // of the grant when the token was issued
	Issued      time.Time
	Expires     time.Time
	Transaction string           // txn: the event of the decision at the root
	Strength    estover.Strength // how the client said who it is when it got the token
	Confirm     Confirm
	Auth        Auth        // how the person at the root proved who they are
	Details     detail.List // what it is for beyond scopes (RFC 9396, section 9.1)
	MayAct      *Party      // the only one that may take it up (RFC 8693, section 4.4); nil for no such bound

	tasks []estover.Task // among the details
}

// A Party is somebody by the name that an issuer has for them.
type Party struct {
	Issuer  string          `json:"iss"`
	Subject estover.Subject `json:"sub"`
}

// Caller is who asks when this token is presented.
func (t *Token) Caller() estover.Caller {
	return estover.Caller{
		Tenant: t.Tenant, Subject: t.Subject, Actors: t.Actors, Client: t.Client, Session: t.Session, Purpose: t.Purpose,
		Grant: t.Grant, Epoch: t.Epoch, Scopes: t.Scopes, Token: t.ID, Until: t.Expires, Tasks: t.tasks, Strength: t.Strength,
	}
}

// For reports whether the token may be used at the resource of this identifier.
func (t *Token) For(audience string) bool { return slices.Contains(t.Audience, audience) }

// claims writes the claims of the token (RFC 9068, section 2.2). They are
// written by hand, because every token passes here.
func (t *Token) claims(issuer string) []byte {
	b := make([]byte, 0, 640)
	b = member(b, '{', "iss", issuer)
	b = member(b, ',', "sub", string(t.Subject))
	if len(t.Audience) == 1 {
		b = member(b, ',', "aud", t.Audience[0])
	} else {
		b = append(b, `,"aud":[`...)
		for i, a := range t.Audience {
			if i > 0 {
				b = append(b, ',')
			}
			b = quoted(b, a)
		}
		b = append(b, ']')
	}
	if t.URL == "" {
		b = member(b, ',', "client_id", t.Client)
	} else {
		b = member(b, ',', "client_id", t.URL)
		b = member(b, ',', "client_agent", t.Client)
	}
	b = number(b, "iat", t.Issued.Unix())
	b = number(b, "exp", t.Expires.Unix())
	b = member(b, ',', "jti", t.ID)
	if len(t.Scopes) > 0 {
		b = member(b, ',', "scope", scopeString(t.Scopes))
	}
	if len(t.Details) > 0 {
		b = append(b, `,"authorization_details":`...)
		b = t.Details.AppendJSON(b)
	}
	b = member(b, ',', "sid", t.Session)
	b = member(b, ',', "purpose", t.Purpose)
	b = member(b, ',', "grant_id", t.Grant)
	b = number(b, "grant_epoch", t.Epoch)
	b = member(b, ',', "txn", t.Transaction)
	b = member(b, ',', "strength", string(t.Strength))
	b = t.Auth.append(b)
	if t.Confirm != (Confirm{}) {
		b = append(b, `,"cnf":`...)
		b = t.Confirm.append(b)
	}
	if len(t.Actors) > 0 {
		b = append(b, `,"act":`...)
		b = appendActors(b, t.Actors)
	}
	return append(b, '}')
}

// append writes the claims about the person at the root (RFC 9068, section
// 2.2.1).
func (a Auth) append(b []byte) []byte {
	if a.Time == 0 {
		return b
	}
	b = number(b, "auth_time", a.Time)
	if a.Class != "" {
		b = member(b, ',', "acr", a.Class)
	}
	for i, m := range a.Methods {
		if i == 0 {
			b = append(b, `,"amr":[`...)
		} else {
			b = append(b, ',')
		}
		b = quoted(b, m)
	}
	if len(a.Methods) > 0 {
		b = append(b, ']')
	}
	return b
}

func (c Confirm) append(b []byte) []byte {
	sep := byte('{')
	if c.Certificate != "" {
		b = member(b, sep, "x5t#S256", c.Certificate)
		sep = ','
	}
	if c.Key != "" {
		b = member(b, sep, "jkt", c.Key)
	}
	return append(b, '}')
}

// appendActors nests the chain: the nearest outermost.
func appendActors(b []byte, chain []estover.Subject) []byte {
	b = member(b, '{', "sub", string(chain[0]))
	if len(chain) > 1 {
		b = append(b, `,"act":`...)
		b = appendActors(b, chain[1:])
	}
	return append(b, '}')
}

func member(b []byte, sep byte, name, value string) []byte {
	b = append(b, sep, '"')
	b = append(b, name...)
	b = append(b, '"', ':')
	return quoted(b, value)
}

func number(b []byte, name string, n int64) []byte {
	b = append(b, ',', '"')
	b = append(b, name...)
	b = append(b, '"', ':')
	return strconv.AppendInt(b, n, 10)
}

// quoted writes a string as JSON.
func quoted(b []byte, s string) []byte {
	out, err := jsontext.AppendQuote(b, s)
	if err != nil {
		panic("token: a claim is not UTF-8: " + strconv.Quote(s))
	}
	return out
}

// Scope reports whether a string is a scope-token (RFC 6749, section 3.3).
func Scope(s string) bool {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7f || c == '"' || c == '\\' {
			return false
		}
	}
	return s != ""
}

// MaxActors is the longest chain of actors.
const MaxActors = 4

// read reads the claims of a token whose signature is known to be ours.
func read(tenant estover.TenantID, c *jose.Claims) (*Token, error) {
	var w struct {
		Client   string           `json:"client_id"`
		Agent    string           `json:"client_agent"`
		Scope    string           `json:"scope"`
		Session  string           `json:"sid"`
		Purpose  string           `json:"purpose"`
		Grant    string           `json:"grant_id"`
		Epoch    int64            `json:"grant_epoch"`
		Txn      string           `json:"txn"`
		Strength estover.Strength `json:"strength"`
		Confirm  Confirm          `json:"cnf"`
		Actor    *actor           `json:"act"`
		MayAct   *Party           `json:"may_act"`
		Details  jsontext.Value   `json:"authorization_details"`
		Auth
	}
	if err := c.Into(&w); err != nil {
		return nil, err
	}
	t := &Token{
		Tenant: tenant, ID: c.ID, Subject: estover.Subject(c.Subject), Client: w.Client, Audience: c.Audience,
		Scopes: strings.Fields(w.Scope), Session: w.Session, Purpose: w.Purpose, Grant: w.Grant, Epoch: w.Epoch,
		Issued: c.IssuedAt, Expires: c.Expires, Transaction: w.Txn, Strength: w.Strength, Confirm: w.Confirm, MayAct: w.MayAct,
		Auth: w.Auth,
	}
	if w.Agent != "" {
		t.Client, t.URL = w.Agent, w.Client
	}
	if w.Details != nil {
		var err error
		if t.Details, err = detail.Parse(w.Details); err != nil {
			return nil, jose.ErrInvalid.Because(err)
		}
		t.tasks = t.Details.Tasks()
	}
	for a := w.Actor; a != nil; a = a.Actor {
		t.Actors = append(t.Actors, a.Subject)
	}
	if len(t.Actors) > MaxActors || t.Session == "" || t.Grant == "" {
		return nil, jose.ErrInvalid
	}
	return t, nil
}

// An actor is one level of the claim act (RFC 8693, section 4.1).
type actor struct {
	Subject estover.Subject `json:"sub"`
	Actor   *actor          `json:"act"`
}
