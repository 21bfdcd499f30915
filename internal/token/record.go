package token

import (
	"encoding/json"
	"time"

	"estover.dev/internal/audit"
	"estover.dev/internal/detail"
	"estover.dev/internal/guard"
)

// A record is what the event of a request tells, as the member token.
type record struct {
	ID         string      `json:"jti,omitempty"`
	GrantType  string      `json:"grant_type,omitempty"`
	Client     string      `json:"client_id"`
	Method     string      `json:"auth_method,omitempty"`
	Credential string      `json:"credential,omitempty"`
	Audience   []string    `json:"resource,omitempty"` // as it was asked for
	Server     string      `json:"audience,omitempty"` // of somebody else, that an assertion was made for
	Scopes     []string    `json:"scope,omitempty"`
	Details    detail.List `json:"authorization_details,omitempty"`
	Grant      string      `json:"grant,omitempty"`
	Key        string      `json:"jkt,omitempty"` // what it was to be bound to
	Cert       string      `json:"x5t#S256,omitempty"`
	Handed     string      `json:"subject_token,omitempty"`      // jti of the token that was handed on
	HandedType string      `json:"subject_token_type,omitempty"` // where that is no access token of ours
	From       string      `json:"subject_client,omitempty"`
	How        string      `json:"handover,omitempty"`
	Trust      string      `json:"trust,omitempty"`
	Issuer     string      `json:"assertion_iss,omitempty"`
	Subject    string      `json:"assertion_sub,omitempty"`
	Assertion  string      `json:"assertion_jti,omitempty"`
	Identified bool        `json:"id_token,omitempty"` // whether an ID token went out along with it
	Expires    time.Time   `json:"expires_at,omitzero"`
}

// AppendJSON writes the record as encoding/json does ([audit.Appender]).
func (r *record) AppendJSON(b []byte) []byte {
	sep := byte('{')
	member := func(name, value string) {
		if value != "" || name == "client_id" {
			b = audit.AppendMember(b, sep, name, value)
			sep = ','
		}
	}
	list := func(name string, values []string) {
		if len(values) > 0 {
			b = audit.AppendStrings(append(append(append(b, sep, '"'), name...), '"', ':'), values)
		}
	}
	member("jti", r.ID)
	member("grant_type", r.GrantType)
	member("client_id", r.Client)
	member("auth_method", r.Method)
	member("credential", r.Credential)
	list("resource", r.Audience)
	member("audience", r.Server)
	list("scope", r.Scopes)
	if len(r.Details) > 0 {
		text, err := json.Marshal(r.Details) // it may have characters that encoding/json escapes
		if err != nil {
			panic("token: authorization details that cannot be JSON: " + err.Error())
		}
		b = append(append(b, `,"authorization_details":`...), text...)
	}
	member("grant", r.Grant)
	member("jkt", r.Key)
	member("x5t#S256", r.Cert)
	member("subject_token", r.Handed)
	member("subject_token_type", r.HandedType)
	member("subject_client", r.From)
	member("handover", r.How)
	member("trust", r.Trust)
	member("assertion_iss", r.Issuer)
	member("assertion_sub", r.Subject)
	member("assertion_jti", r.Assertion)
	if r.Identified {
		b = append(b, `,"id_token":true`...)
	}
	if !r.Expires.IsZero() {
		b = r.Expires.AppendFormat(append(b, `,"expires_at":"`...), time.RFC3339Nano)
		b = append(b, '"')
	}
	return append(b, '}')
}

// operation is the request as the guard sees it, and what its event tells.
func operation(r Request) (guard.Op, *record) {
	told := &record{
		GrantType: r.Proof.GrantType, Client: r.Client.ID, Method: r.Method, Credential: r.Credential,
		Audience: r.Resources, Scopes: r.Scopes, Details: r.Details, Key: r.Confirm.Key, Cert: r.Confirm.Certificate,
		Handed: r.Proof.Handover.Token, From: string(r.Proof.Handover.From), How: r.Proof.Handover.How,
		Trust: r.Proof.Foreign.Trust, Issuer: r.Proof.Foreign.Issuer, Subject: r.Proof.Foreign.Subject, Assertion: r.Proof.Foreign.ID,
	}
	if r.Proof.Chain != nil {
		told.Server = r.Proof.Chain.Issuer
	}
	if r.Proof.Handover.IDToken {
		told.HandedType = IDTokenType
	}
	subject := r.Proof.Subject
	if r.Proof.Handover.How == "" { // nothing was proven, or the token is made for the client
		subject = r.Client.Subject
	}
	session := r.Session.ID
	if r.Proof.Begins { // it is not there yet for policy to look at
		session = ""
	}
	return guard.Op{
		Action: "token.issue", Target: string(subject), Effect: guard.Manages, Session: session, Purpose: r.Session.Purpose,
		Detail: map[string]any{"token": told},
	}, told
}
