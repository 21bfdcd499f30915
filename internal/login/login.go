// Package login is the door by which people come in through a browser.
//
//	{issuer}/login              sign in: a passkey
//	{issuer}/login/recovery     sign in: a recovery code
//	{issuer}/login/with/NAME    sign in: at another provider; back at /login/back/NAME
//	{issuer}/login/invitation   a first passkey, by an invitation
//	{issuer}/login/you          one's own passkeys and codes
//	{issuer}/login/out          sign out
//
// # Ceremonies
//
// Making a passkey and signing in with one are the two ceremonies of WebAuthn,
// level 3. A page carries the options, with a challenge, and a sealed note of
// what was asked for; the answer comes back with the note. The challenge is used
// up by the transaction that lets somebody in, so that an answer counts once,
// and nothing is stored for those who only look at the page.
//
//	page with options ──answer──▶ signature checked ──▶ [directory.Directory]: one transaction
//
// The authenticator must look who uses it (user verification), and the key must
// be one that it finds by itself, so that nobody types a name.
//
// # Invitations
//
// An invitation is a value that is exchanged once, for a first passkey and ten
// recovery codes. It stands in its link behind the #, where neither a log nor a
// referrer gets it. It is used up when the passkey is stored, not when the page
// is looked at.
//
// # Other providers
//
// An OpenID provider that an administrator has set up vouches for people: code
// flow with PKCE, state and nonce, all bound to the browser that began; its issuer
// is compared wherever it says one. Who somebody is there is linked to a person
// here once ([directory.Directory.Federated]). When they proved who they are is
// what the provider says (auth_time), so that step-up is real.
//
// # Step-up
//
// What could let somebody else in later, another passkey or new codes, wants a
// person who signed in with a passkey within the last minutes.
package login

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/go-webauthn/webauthn/protocol"
	"github.com/go-webauthn/webauthn/webauthn"

	"estover.dev"
	"estover.dev/internal/directory"
	"estover.dev/internal/edge"
	"estover.dev/internal/page"
	"estover.dev/internal/token"
)

// Config is what the door needs of others.
type Config struct {
	Issuer token.Issuer
	People *directory.Directory
	Pages  *page.Pages

	// Fetcher is the way out to an identity provider. Nil: people sign in by none.
	Fetcher func(ctx context.Context, tenant estover.TenantID, p directory.Provider) (*edge.Fetcher, error)

	// Secret is the client secret at a path, for a host and port.
	Secret func(ctx context.Context, tenant estover.TenantID, path, host string) (estover.Secret, error)

	// Agents is the path below the issuer of the page that shows people the
	// agents that act for them; "" if there is none.
	Agents string
	// Approvals is the path below the issuer of the page that shows people what
	// waits for their decision; "" if there is none.
	Approvals string
	// Contain is the path below the issuer of the page on which people use the kill
	// switch; "" if there is none. MayContain says whether somebody is shown it.
	Contain    string
	MayContain func(ctx context.Context, caller estover.Caller) (bool, error)

	// Entered is told that somebody has come in by an invitation. Nil tells
	// nobody.
	Entered func(tenant estover.TenantID)
	Logger  *slog.Logger // slog.Default if nil
}

// A Door lets people in.
type Door struct {
	Config
	keys     *webauthn.WebAuthn
	failures *edge.Limiter // failed attempts, by address
	suspects *edge.Limiter // events about them, by person
	known    upstreams
}

// How often attempts may fail and be recorded.
const (
	failuresPerSecond, failuresAtOnce = 0.2, 20 // from an address
	suspectsPerSecond, suspectsAtOnce = 0.1, 5  // about a person
)

// Fresh is how long ago somebody must have proved who they are, at most, to
// change what they come in by.
const Fresh = 5 * time.Minute

// New is the door.
func New(c Config) (*Door, error) {
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Entered == nil {
		c.Entered = func(estover.TenantID) {}
	}
	d := &Door{
		Config: c, known: upstreams{byID: map[string]*upstream{}}, failures: edge.NewLimiter(failuresPerSecond, failuresAtOnce, c.Pages.Now),
		suspects: edge.NewLimiter(suspectsPerSecond, suspectsAtOnce, c.Pages.Now),
	}
	u, err := url.Parse(string(c.Issuer))
	if err != nil {
		return nil, err
	}
	if _, err := netip.ParseAddr(u.Hostname()); err == nil {
		return d, nil // passkeys belong to names; see errNoName
	}
	required := true
	d.keys, err = webauthn.New(&webauthn.Config{
		RPID: u.Hostname(), RPDisplayName: "Estover", RPOrigins: []string{u.Scheme + "://" + u.Host},
		AttestationPreference: protocol.PreferNoAttestation,
		AuthenticatorSelection: protocol.AuthenticatorSelection{
			RequireResidentKey: &required, ResidentKey: protocol.ResidentKeyRequirementRequired, UserVerification: protocol.VerificationRequired,
		},
	})
	return d, err
}

// errNoName is returned where passkeys cannot be used at all.
var errNoName = &estover.Error{Kind: estover.Unavailable, Code: "passkeys_need_a_name", Detail: "Passkeys work for a name, and this server is known by an address. Start it with --issuer and a name, such as https://localhost:8443."}

var errTooOften = &estover.Error{Kind: estover.TooMuch, Code: "too_many_attempts", Detail: "Too many attempts from this address have failed. Wait a minute."}

// Mount adds the pages of all tenants to mux.
func (d *Door) Mount(mux *http.ServeMux) {
	const get, post = http.MethodGet, http.MethodPost
	d.Pages.Handle(mux, "/{$}", func(r *page.Request) error { r.Go(r.Path(page.SignInPath)); return nil }, get)
	d.Pages.Handle(mux, withPath, d.with, get)
	d.Pages.Handle(mux, backPath, d.returned, get)
	for _, one := range []struct {
		at      string
		serve   func(*page.Request) error
		methods []string
	}{
		{"", d.signIn, []string{get}},
		{"/passkey", d.byPasskey, []string{post}},
		{"/recovery", d.recovery, []string{get, post}},
		{"/invitation", d.invitation, []string{get, post}},
		{"/enrol", d.enrol, []string{post}},
		{"/you", d.you, []string{get}},
		{"/you/passkey", d.addPasskey, []string{post}},
		{"/you/passkey/end", d.endPasskey, []string{post}},
		{"/you/codes", d.newCodes, []string{post}},
		{"/you/leave", d.leave, []string{post}},
		{"/out", d.signOut, []string{post}},
	} {
		d.Pages.Handle(mux, page.SignInPath+one.at, one.serve, one.methods...)
	}
}

// back is where the browser goes when somebody has signed in: where it came
// from, if that is a page of ours.
func back(r *page.Request, to string) string {
	if to != "" && r.Local(to) {
		return to
	}
	return r.Path(page.SignInPath + "/you")
}

// signIn shows the sign-in page, unless somebody is signed in already and
// nobody wants it proved again.
func (d *Door) signIn(r *page.Request) error {
	q := r.URL.Query()
	to, again := back(r, q.Get("to")), q.Get("again") != ""
	if r.Visit != nil && !again {
		r.Go(to)
		return nil
	}
	others, err := d.elsewheres(r, to, again)
	if err != nil {
		return err
	}
	if d.keys == nil && len(others) == 0 {
		return errNoName
	}
	var c ceremony
	if d.keys != nil {
		options, session, err := d.keys.BeginDiscoverableLogin()
		if err != nil {
			return err
		}
		c = d.begin(r, "sign in", options.Response, session)
	}
	data := signInData{
		ceremony: c, Elsewhere: others, To: to, Again: again, Person: nameOf(r),
		Action: r.Path(page.SignInPath + "/passkey"), Recovery: r.Path(page.SignInPath+"/recovery") + "?" + url.Values{"to": {to}}.Encode(),
	}
	title := "Sign in"
	if again {
		title = "Confirm that it is you"
	}
	return r.Show(signInPage, page.View{Title: title, Data: data})
}

type signInData struct {
	ceremony
	Elsewhere                    []elsewhere
	To, Person, Action, Recovery string
	Again                        bool
}

func nameOf(r *page.Request) string {
	if r.Visit == nil {
		return ""
	}
	return r.Visit.Person.Name
}

// byPasskey takes the answer of a passkey. It is asked by the script of the
// page, which is told where to go or what went wrong.
func (d *Door) byPasskey(r *page.Request) error {
	err := d.enterByPasskey(r)
	if err == nil {
		return nil
	}
	sentence, _, status := r.Failure(err)
	edge.Again(r.Writer.Header(), status, err)
	r.Writer.Header().Set("Cache-Control", "no-store")
	r.Writer.Header().Set("Content-Type", "application/json")
	r.Writer.WriteHeader(status)
	return json.NewEncoder(r.Writer).Encode(map[string]string{"error": sentence})
}

func (d *Door) enterByPasskey(r *page.Request) error {
	form, err := r.Posted("sign in")
	if err != nil {
		return err
	}
	who, key, a, err := d.checkSignIn(r, form.Get("state"), form.Get("answer"))
	if err != nil {
		return d.failed(r, err)
	}
	value, err := d.People.SignIn(r.Context(), directory.Browser{From: r.From, Previous: r.Visit}, key, a, methods(who))
	if err != nil {
		return d.failed(r, err)
	}
	r.Enter(value)
	r.Writer.Header().Set("Cache-Control", "no-store")
	r.Writer.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(r.Writer).Encode(map[string]string{"to": back(r, form.Get("to"))})
}

// failed counts an attempt that did not let anybody in.
func (d *Door) failed(r *page.Request, err error) error {
	if estover.KindOf(err) != estover.Unknown {
		return err
	}
	d.Logger.Info("somebody failed to sign in", "tenant", r.Tenant, "address", r.From.Address, "request", r.From.Request, "error", err)
	if !d.failures.Allow(edge.AddressKey(r.From.Address)) {
		return errTooOften
	}
	return err
}

// suspect records that somebody failed to be a person who exists, now and then:
// often enough to be noticed, too rarely to fill the log.
func (d *Door) suspect(r *page.Request, person string, why error) {
	if !d.suspects.Allow(string(r.Tenant) + "/" + person) {
		return
	}
	if err := d.People.Unproven(r.Context(), r.From, person, why); err != nil {
		d.Logger.Error("a failed sign-in could not be recorded", "person", person, "error", err)
	}
}

// allowed reports whether an address may try at all.
func (d *Door) allowed(r *page.Request) error {
	if d.failures.Exhausted(edge.AddressKey(r.From.Address)) {
		return errTooOften
	}
	return nil
}

// recovery lets somebody in by a recovery code.
func (d *Door) recovery(r *page.Request) error {
	at := r.Path(page.SignInPath + "/recovery")
	if r.Method != http.MethodPost {
		to := back(r, r.URL.Query().Get("to"))
		return r.Show(recoveryPage, page.View{Title: "Use a recovery code", Data: recoveryData{Form: r.Form("recovery"), To: to, Action: at}})
	}
	form, err := r.Posted("recovery")
	if err != nil {
		return err
	}
	if err := d.allowed(r); err != nil {
		return err
	}
	to := back(r, form.Get("to"))
	value, left, err := d.People.Recover(r.Context(), directory.Browser{From: r.From, Previous: r.Visit}, form.Get("code"))
	if err = d.failed(r, err); err != nil {
		if !errors.Is(err, directory.ErrSignIn) {
			return err
		}
		return r.Show(recoveryPage, page.View{Title: "Use a recovery code", Status: http.StatusUnauthorized, Data: recoveryData{
			Form: r.Form("recovery"), To: to, Action: at, Wrong: "This code is wrong, or it was used before.",
		}})
	}
	r.Enter(value)
	return r.Show(recoveredPage, page.View{Title: "You are signed in", Data: recoveredData{Left: left, To: to, You: r.Path(page.SignInPath + "/you")}})
}

type recoveryData struct{ Form, To, Action, Wrong string }

type recoveredData struct {
	Left    int
	To, You string
}

// signOut ends the visit.
func (d *Door) signOut(r *page.Request) error {
	if _, err := r.Posted("sign out"); err != nil {
		return err
	}
	if r.Visit != nil {
		if err := d.People.SignOut(r.Context(), r.Visit); err != nil && !errors.Is(err, directory.ErrTokenNotFound) {
			return err
		}
	}
	r.Leave()
	r.Go(r.Path(page.SignInPath))
	return nil
}
