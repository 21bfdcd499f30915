package oauthtest

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/agent"
	"estover.dev/internal/directory"
	"estover.dev/internal/page/pagetest"
	"estover.dev/internal/token"
)

// Callback is where agents of the test have browsers sent back to.
const Callback = "https://app.example/callback"

// A Person is somebody with a browser in which they are signed in.
type Person struct {
	directory.Person
	*pagetest.Browser
	world *World
}

// Person makes a person who has just signed in with a passkey.
func (w *World) Person(name string) *Person {
	w.T.Helper()
	made, err := w.People.Create(context.Background(), Admin, directory.Spec{Name: name}, "")
	must(w.T, err)
	p := &Person{made, pagetest.New(w.T, w.Handler, string(Issuer)), w}
	invitation, _, err := w.People.Invite(context.Background(), Admin, made.ID, 0)
	must(w.T, err)
	value, _, err := w.People.Enrol(context.Background(), p.from(), string(invitation.Reveal()), directory.Passkey{
		Credential: []byte(rand.Text()), Record: []byte("{}"), Label: "test",
	}, w.challenge(), []string{directory.ByHardwareKey, directory.Verified})
	must(w.T, err)
	p.hold(value)
	return p
}

func (p *Person) from() directory.Browser {
	return directory.Browser{From: estover.Caller{Tenant: estover.DefaultTenant}}
}

func (w *World) challenge() directory.Answer {
	return directory.Answer{Challenge: rand.Text(), Expires: w.DB.Now().Add(time.Minute)}
}

func (p *Person) hold(value estover.Secret) { p.Cookies["__Host-estover"] = string(value.Reveal()) }

// SignIn signs the person in once more: with a passkey, or with a recovery code.
func (p *Person) SignIn(withPasskey bool) {
	p.T.Helper()
	ctx := context.Background()
	_, keys, err := p.world.People.Holder(ctx, estover.DefaultTenant, p.ID)
	must(p.T, err)
	methods := []string{directory.ByHardwareKey, directory.Verified}
	if !withPasskey {
		methods = []string{directory.ByCode}
	}
	value, err := p.world.People.SignIn(ctx, p.from(), keys[0], p.world.challenge(), methods)
	must(p.T, err)
	p.hold(value)
}

// CodeAgent is an agent that people can let act for them.
func (w *World) CodeAgent(name string, change ...func(*agent.Client)) *Agent {
	w.T.Helper()
	a := w.Agent(name)
	c := agent.Client{GrantTypes: []string{"authorization_code", "refresh_token", token.Device, token.Backchannel}, RedirectURIs: []string{Callback}}
	for _, fn := range change {
		fn(&c)
	}
	w.Set(a, c)
	return a
}

// Verifier is a code verifier of a test, and Challenge its challenge.
const Verifier = "a-verifier-of-the-tests-which-is-long-enough-0"

// Challenge is the S256 challenge of a verifier.
func Challenge(verifier string) string {
	sum := sha256.Sum256([]byte(verifier))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// AuthorizeQuery is a good authorization request of the agent, with changes: a
// name with an empty value takes the parameter away.
func AuthorizeQuery(a *Agent, pairs ...string) url.Values {
	q := Form("client_id", a.ID, "response_type", "code", "redirect_uri", Callback, "state", "xyz", "resource", CRM,
		"code_challenge", Challenge(Verifier), "code_challenge_method", "S256")
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] == "" {
			q.Del(pairs[i])
		} else {
			q.Set(pairs[i], pairs[i+1])
		}
	}
	return q
}

// Ask goes to the authorization endpoint as the agent sends people there, and
// does not follow.
func (p *Person) Ask(a *Agent, pairs ...string) *pagetest.Page {
	p.T.Helper()
	return p.Load("/oauth/authorize?" + AuthorizeQuery(a, pairs...).Encode())
}

// Allow lets the agent have what it asks for, and gives where the browser is
// sent back to. The person is asked unless they were before.
func (p *Person) Allow(a *Agent, pairs ...string) url.Values {
	p.T.Helper()
	page := p.Ask(a, pairs...)
	if page.Status == http.StatusOK {
		page = p.Post("/oauth/consent", p.Fill(page, "/oauth/consent"))
	}
	return Back(p, page)
}

// Back are the parameters with which the browser is sent back to the agent.
func Back(p *Person, page *pagetest.Page) url.Values {
	p.T.Helper()
	to := page.Header.Get("Location")
	if page.Status != http.StatusSeeOther || strings.HasPrefix(to, "/") {
		p.T.Fatalf("the browser is not sent back to the agent: %d to %q\n%s", page.Status, to, page.Body)
	}
	u, err := url.Parse(to)
	must(p.T, err)
	return u.Query()
}

// Code is a code that the person let the agent have.
func (p *Person) Code(a *Agent, pairs ...string) string {
	p.T.Helper()
	back := p.Allow(a, pairs...)
	if back.Get("code") == "" {
		p.T.Fatalf("no code: %v", back)
	}
	return back.Get("code")
}

// Redeem exchanges a code as the agent, by its secret.
func (w *World) Redeem(a *Agent, code string, pairs ...string) Answer {
	w.T.Helper()
	f := Form("grant_type", "authorization_code", "code", code, "code_verifier", Verifier)
	for i := 0; i+1 < len(pairs); i += 2 {
		f.Set(pairs[i], pairs[i+1])
	}
	return w.Do(Request("/oauth/token", f, Basic(a.ID, a.Secret)))
}

// Refresh renews a grant as the agent, by its secret.
func (w *World) Refresh(a *Agent, value string, pairs ...string) Answer {
	w.T.Helper()
	f := Form("grant_type", "refresh_token", "refresh_token", value)
	for i := 0; i+1 < len(pairs); i += 2 {
		f.Set(pairs[i], pairs[i+1])
	}
	return w.Do(Request("/oauth/token", f, Basic(a.ID, a.Secret)))
}

// Device asks for a code that a person types, as the agent, by its secret.
func (w *World) Device(a *Agent, pairs ...string) Answer {
	w.T.Helper()
	f := Form("resource", CRM)
	for i := 0; i+1 < len(pairs); i += 2 {
		f.Set(pairs[i], pairs[i+1])
	}
	return w.Do(Request("/oauth/device", f, Basic(a.ID, a.Secret)))
}

// Poll asks whether a person has decided, as the agent, by its secret.
func (w *World) Poll(a *Agent, deviceCode string, pairs ...string) Answer {
	w.T.Helper()
	f := Form("grant_type", token.Device, "device_code", deviceCode)
	for i := 0; i+1 < len(pairs); i += 2 {
		f.Set(pairs[i], pairs[i+1])
	}
	return w.Do(Request("/oauth/token", f, Basic(a.ID, a.Secret)))
}

// Type types a code, and gives the page that asks.
func (p *Person) Type(code string) *pagetest.Page {
	p.T.Helper()
	return p.Post("/device", p.Fill(p.Load("/device"), "/device", "user_code", code))
}

// Decide types a code and answers with allow or deny.
func (p *Person) Decide(code, decision string) *pagetest.Page {
	p.T.Helper()
	return p.Post("/device/decision", p.Fill(p.Type(code), "/device/decision", "decision", decision))
}

// DeviceCode is a device code for which the person has said yes.
func (p *Person) DeviceCode(a *Agent, pairs ...string) string {
	p.T.Helper()
	asked := p.world.Device(a, pairs...)
	if page := p.Decide(asked.Text("user_code"), "allow"); page.Status != http.StatusOK {
		p.T.Fatalf("the person could not say yes: %d %s", page.Status, page.Body)
	}
	return asked.Text("device_code")
}

// Name asks for the word of a person, as the agent, by its secret.
func (w *World) Name(a *Agent, person string, pairs ...string) Answer {
	w.T.Helper()
	f := Form("login_hint", person, "scope", "openid customer.read", "resource", CRM)
	for i := 0; i+1 < len(pairs); i += 2 {
		f.Set(pairs[i], pairs[i+1])
	}
	return w.Do(Request("/oauth/ciba", f, Basic(a.ID, a.Secret)))
}

// Fetch asks whether a person who was named has decided, as the agent, by its
// secret.
func (w *World) Fetch(a *Agent, request string) Answer {
	w.T.Helper()
	return w.Do(Request("/oauth/token", Form("grant_type", token.Backchannel, "auth_req_id", request), Basic(a.ID, a.Secret)))
}

var waitingLink = regexp.MustCompile(`href="(/device\?request=[^"]+)"`)

// Waiting are the paths of what waits for the person.
func (p *Person) Waiting() (all []string) {
	p.T.Helper()
	for _, m := range waitingLink.FindAllStringSubmatch(p.Load("/device").Body, -1) {
		all = append(all, m[1])
	}
	return all
}

// Answer decides the first request that waits for the person, with allow or deny.
func (p *Person) Answer(decision string) *pagetest.Page {
	p.T.Helper()
	all := p.Waiting()
	if len(all) == 0 {
		p.T.Fatal("nothing waits for the person")
	}
	return p.Post("/device/decision", p.Fill(p.Load(all[0]), "/device/decision", "decision", decision))
}
