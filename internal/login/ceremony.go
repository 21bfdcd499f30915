package login

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/go-webauthn/webauthn/protocol"
	"github.com/go-webauthn/webauthn/webauthn"

	"estover.dev"
	"estover.dev/internal/directory"
	"estover.dev/internal/page"
)

// ceremonyLife is how long a page with a challenge is good.
const ceremonyLife = 10 * time.Minute

// maxAnswer bounds what a browser sends as an authenticator's answer.
const maxAnswer = 64 << 10

// A ceremony is what a page carries for its script and sends back.
type ceremony struct {
	Form    string
	State   string // the sealed note of what was asked for
	Options string // for the browser, as JSON
}

// begin seals what was asked for.
func (d *Door) begin(r *page.Request, purpose string, options any, s *webauthn.SessionData) ceremony {
	state, err := json.Marshal(s)
	if err != nil {
		panic("login: a ceremony that is not JSON: " + err.Error())
	}
	text, err := json.Marshal(options)
	if err != nil {
		panic("login: options that are not JSON: " + err.Error())
	}
	return ceremony{Form: r.Form(purpose), State: r.Seal("ceremony "+purpose, state, ceremonyLife), Options: string(text)}
}

// asked reads the note of what was asked for.
func asked(r *page.Request, purpose, sealed string) (s webauthn.SessionData, a directory.Answer, err error) {
	state, expires, ok := r.Open("ceremony "+purpose, sealed)
	if !ok {
		return s, a, page.ErrForm
	}
	if err := json.Unmarshal(state, &s); err != nil {
		return s, a, page.ErrForm.Because(err)
	}
	return s, directory.Answer{Challenge: s.Challenge, Expires: expires}, nil
}

// A holder is a person as the WebAuthn library wants one. The user handle is
// the person's id, which says nothing about them.
type holder struct {
	person  directory.Person
	keys    []directory.Passkey
	records []webauthn.Credential
}

func newHolder(p directory.Person, keys []directory.Passkey) (*holder, error) {
	h := &holder{person: p}
	for _, k := range keys {
		var c webauthn.Credential
		if err := json.Unmarshal(k.Record, &c); err != nil {
			return nil, err
		}
		if len(k.Public) > 0 {
			// The key that the record has must be the one that was registered.
			if pub, err := publicKey(c.PublicKey); err != nil || !bytes.Equal(pub, k.Public) {
				continue
			}
		}
		h.keys, h.records = append(h.keys, k), append(h.records, c)
	}
	return h, nil
}

// WebAuthnID is the user handle.
func (h *holder) WebAuthnID() []byte { return []byte(h.person.ID) }

// WebAuthnName is what an authenticator shows.
func (h *holder) WebAuthnName() string { return h.person.Name }

// WebAuthnDisplayName is what an authenticator shows beside.
func (h *holder) WebAuthnDisplayName() string {
	if h.person.Email != "" {
		return h.person.Email
	}
	return h.person.Name
}

// WebAuthnCredentials are the person's passkeys.
func (h *holder) WebAuthnCredentials() []webauthn.Credential { return h.records }

// checkSignIn checks a passkey's answer. It gives the passkey with its record
// as it is after that.
func (d *Door) checkSignIn(r *page.Request, state, answer string) (_ *webauthn.Credential, key directory.Passkey, a directory.Answer, err error) {
	if d.keys == nil {
		return nil, key, a, errNoName
	}
	if err := d.allowed(r); err != nil {
		return nil, key, a, err
	}
	session, a, err := asked(r, "sign in", state)
	if err != nil {
		return nil, key, a, err
	}
	if len(answer) > maxAnswer {
		return nil, key, a, directory.ErrSignIn
	}
	parsed, err := protocol.ParseCredentialRequestResponseBytes([]byte(answer))
	if err != nil {
		return nil, key, a, directory.ErrSignIn.Because(why(err))
	}
	var who *holder
	var broken error // of ours, which the library would hide
	_, record, err := d.keys.ValidatePasskeyLogin(func(_, handle []byte) (webauthn.User, error) {
		if !strings.HasPrefix(string(handle), "usr_") || len(handle) > 64 {
			return nil, directory.ErrSignIn
		}
		p, keys, err := d.People.Holder(r.Context(), r.Tenant, string(handle))
		if err != nil {
			if estover.KindOf(err) != estover.Unknown {
				broken = err
			}
			return nil, err
		}
		who, err = newHolder(p, keys)
		return who, err
	}, session, parsed)
	switch {
	case broken != nil:
		return nil, key, a, broken
	case err != nil:
		err = directory.ErrSignIn.Because(why(err))
	case record.Authenticator.CloneWarning:
		d.Logger.Warn("a passkey counts backwards, as a copy of it would", "person", who.person.ID, "request", r.From.Request)
		err = directory.ErrSignIn.With("This passkey answers as a copy of it would. Use another one, and tell your administrator.")
	}
	if err != nil {
		if who != nil {
			d.suspect(r, who.person.ID, err)
		}
		return nil, key, a, err
	}
	for _, k := range who.keys {
		if string(k.Credential) == string(record.ID) {
			k.Record, err = json.Marshal(record)
			return record, k, a, err
		}
	}
	return nil, key, a, directory.ErrSignIn
}

// beginKey are the options for making a passkey of a person.
func (d *Door) beginKey(r *page.Request, purpose string, h *holder) (ceremony, error) {
	if d.keys == nil {
		return ceremony{}, errNoName
	}
	options, session, err := d.keys.BeginRegistration(h, webauthn.WithExclusions(webauthn.Credentials(h.records).CredentialDescriptors()))
	if err != nil {
		return ceremony{}, err
	}
	return d.begin(r, purpose, options.Response, session), nil
}

// checkKey checks a passkey that was made.
func (d *Door) checkKey(r *page.Request, purpose string, h *holder, state, answer string) (_ *webauthn.Credential, key directory.Passkey, a directory.Answer, err error) {
	if d.keys == nil {
		return nil, key, a, errNoName
	}
	session, a, err := asked(r, purpose, state)
	if err != nil {
		return nil, key, a, err
	}
	if len(answer) > maxAnswer {
		return nil, key, a, errKey
	}
	parsed, err := protocol.ParseCredentialCreationResponseBytes([]byte(answer))
	if err != nil {
		return nil, key, a, errKey.Because(why(err))
	}
	record, err := d.keys.CreateCredential(h, session, parsed)
	if err != nil {
		return nil, key, a, errKey.Because(why(err))
	}
	key = directory.Passkey{Credential: record.ID}
	if key.Public, err = publicKey(record.PublicKey); err != nil {
		return nil, key, a, errKey.Because(err)
	}
	key.Record, err = json.Marshal(record)
	return record, key, a, err
}

var errKey = &estover.Error{Kind: estover.Invalid, Code: "passkey_refused", Detail: "The passkey could not be made. Load the page again and try once more."}

// why is what the library found wrong, for the log.
func why(err error) error {
	var e *protocol.Error
	if errors.As(err, &e) {
		return errors.New(e.Details + " (" + e.DevInfo + ")")
	}
	return err
}

// methods are what a passkey proves (RFC 8176). User verification is required,
// so it always took place.
func methods(c *webauthn.Credential) []string {
	if c.Flags.BackupEligible {
		return []string{directory.BySoftwareKey, directory.Verified}
	}
	return []string{directory.ByHardwareKey, directory.Verified}
}
