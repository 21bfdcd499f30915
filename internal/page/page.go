// Package page is what the pages for people have in common, whichever door
// shows them: signing in, consent, a device's code, an error. A page is
// html/template and one style sheet; it needs no script but for passkeys.
//
// # Who is there
//
// A browser in which a person is signed in holds the value of a visit
// ([directory.Visit]) in a cookie. [Request.Visit] is that visit, or nil; a door
// that wants somebody calls [Request.Demand], which sends the browser to the
// sign-in page and has it come back with the same request:
//
//	GET /oauth/authorize?… ─▶ 303 /login?to=/oauth/authorize?… ─▶ 303 /oauth/authorize?…
//
// Step-up is the same demand with a bound on how long ago the person proved who
// they are.
//
// # Forms
//
// What changes something is a POST from one of our own pages: the browser says
// so (Sec-Fetch-Site), and the form carries a word that was made for this
// browser, this visit and this purpose ([Request.Form], [Request.Posted]). Each
// word has a number of its own, for what may be done once.
//
// # Heads
//
// No page may be framed, kept or read by another origin; none sends a
// referrer. Scripts and styles come from files of ours alone.
package page

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"html/template"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"estover.dev"
	"estover.dev/internal/directory"
	"estover.dev/internal/edge"
	"estover.dev/internal/token"
)

// Config is what pages need of others.
type Config struct {
	Issuer token.Issuer
	People *directory.Directory

	// MAC is a keyed digest of a tenant, by which what comes back from a browser
	// is known to have been made here.
	MAC func(tenant estover.TenantID, value []byte) []byte

	// Known says why there is no such tenant, or why it may do nothing. Nil knows
	// the default one alone.
	Known  func(ctx context.Context, tenant estover.TenantID) error
	Now    func() time.Time
	Logger *slog.Logger // slog.Default if nil
}

// Pages are the pages of an installation. They are safe for use by many at
// once.
type Pages struct {
	Config
	base   string // the path of the issuer
	origin string // its scheme, host and port
	assets map[string]asset
	error  *Template
}

// An asset is a file that pages refer to.
type asset struct {
	content []byte
	kind    string
	version string
}

//go:embed layout.html error.html style.css passkey.js icon.svg
var files embed.FS

// New makes pages.
func New(c Config) (*Pages, error) {
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Known == nil {
		c.Known = func(context.Context, estover.TenantID) error { return errNoPage }
	}
	u, err := url.Parse(string(c.Issuer))
	if err != nil {
		return nil, err
	}
	p := &Pages{Config: c, base: u.Path, origin: u.Scheme + "://" + u.Host, assets: map[string]asset{}}
	for name, kind := range map[string]string{
		"style.css": "text/css; charset=utf-8", "passkey.js": "text/javascript; charset=utf-8", "icon.svg": "image/svg+xml",
	} {
		b, err := files.ReadFile(name)
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(b)
		p.assets[name] = asset{b, kind, hex.EncodeToString(sum[:8])}
	}
	p.error = Parse(files, "error.html")
	return p, nil
}

// A Template is what a page is made of. It is read when it is first shown: most
// commands of the program show none, and all of them start with it.
type Template struct{ read func() *template.Template }

// Parse is the template of a page, which defines "main". To show it panics if it is
// wrong, since it is a part of the program.
func Parse(from fs.FS, name string) *Template {
	return &Template{sync.OnceValue(func() *template.Template {
		t := template.Must(template.New("layout.html").Funcs(functions).ParseFS(files, "layout.html"))
		return template.Must(t.ParseFS(from, name))
	})}
}

// functions are what templates may call.
var functions = template.FuncMap{
	"when": func(t time.Time) string { return t.UTC().Format("2 January 2006, 15:04 UTC") },
	"attr": func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
}

// Mount adds what pages refer to.
func (p *Pages) Mount(mux *http.ServeMux) {
	mux.HandleFunc("GET "+p.base+"/page/{name}", func(w http.ResponseWriter, r *http.Request) {
		a, ok := p.assets[r.PathValue("name")]
		if !ok {
			http.NotFound(w, r)
			return
		}
		h := w.Header()
		h.Set("Content-Type", a.kind)
		h.Set("Cache-Control", "public, max-age=31536000, immutable")
		h.Set("X-Content-Type-Options", "nosniff")
		_, _ = w.Write(a.content) // the browser may be gone
	})
}

// Handle answers a path below the issuer of every tenant with these methods.
// What serve returns is shown as an error page.
func (p *Pages) Handle(mux *http.ServeMux, at string, serve func(*Request) error, methods ...string) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := &Request{Request: r, Writer: w, Tenant: estover.DefaultTenant, pages: p}
		q.meet()
		if name := estover.TenantID(r.PathValue("tenant")); name != "" {
			err := error(errNoPage) // the default tenant has one name, which is none
			if name != estover.DefaultTenant {
				err = p.Known(r.Context(), name)
			}
			if err != nil {
				q.Fail(err)
				return
			}
			q.Tenant = name
			q.meet()
		}
		o := edge.OriginOf(r)
		q.From = estover.Caller{Tenant: q.Tenant, Address: o.Address, Request: o.Request}
		method := r.Method
		if method == http.MethodHead {
			method = http.MethodGet
		}
		if !slices.Contains(methods, method) {
			w.Header().Set("Allow", strings.Join(methods, ", "))
			q.Fail(errMethod)
			return
		}
		if err := q.recognise(); err != nil {
			q.Fail(err)
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		if err := serve(q); err != nil {
			q.Fail(err)
		}
	})
	mux.Handle(p.base+at, h)
	mux.Handle(p.base+"/t/{tenant}"+at, h)
}

// maxBody bounds a form, in bytes.
const maxBody = 128 << 10

// The errors of pages.
var (
	errNoPage = &estover.Error{Kind: estover.NotFound, Code: "no_such_page", Detail: "There is no such page."}
	errMethod = &estover.Error{Kind: estover.Invalid, Code: "method_not_allowed", Detail: "This page is not asked for like that."}
	// ErrForm is returned for a form that did not come from a page of ours, or
	// that has become too old.
	ErrForm = &estover.Error{Kind: estover.Denied, Code: "form_refused", Detail: "This form was not sent from a page that Estover showed you in this browser, or it is too old. Go back, load the page again and send it once more."}
)

// A Request is what a browser asks for.
type Request struct {
	*http.Request
	Writer http.ResponseWriter
	Tenant estover.TenantID
	From   estover.Caller   // whence it comes; nobody
	Visit  *directory.Visit // who is signed in; nil for nobody

	pages   *Pages
	browser string // what this browser is known by, signed in or not; "" until it is given one
	held    string // the value of its visit, live or not
}

// The cookies. Their prefix has browsers send them to this host alone, over
// TLS alone, and take them from nobody else. A browser sends those of one tenant
// to the pages of every other too. They are called differently there, so that
// somebody can be signed in to two; what they hold is nothing in another tenant,
// by whatever name it comes.
const (
	visitCookie   = "__Host-estover"
	browserCookie = "__Host-estover-browser"
)

// meet finds out which browser this is. It comes before all else, since a page
// that refuses must not name the browser anew: its forms would be good no more.
func (r *Request) meet() {
	r.browser = ""
	if c, err := r.Cookie(r.cookie(browserCookie)); err == nil && len(c.Value) <= 64 {
		r.browser = c.Value
	}
}

// recognise finds out who is signed in.
func (r *Request) recognise() error {
	c, err := r.Cookie(r.cookie(visitCookie))
	if err != nil || len(c.Value) > 128 {
		return nil
	}
	r.held = c.Value
	v, err := r.pages.People.Visit(r.Context(), r.Tenant, c.Value)
	if estover.KindOf(err) == estover.Unknown && err != nil {
		return nil
	}
	if err != nil {
		return err
	}
	v.Caller.Address, v.Caller.Request = r.From.Address, r.From.Request
	r.Visit = v
	return nil
}

// Enter has the browser hold a visit from here on.
func (r *Request) Enter(value estover.Secret) {
	r.setCookie(visitCookie, string(value.Reveal()), directory.VisitLife)
}

// Leave has the browser forget its visit.
func (r *Request) Leave() { r.setCookie(visitCookie, "", -time.Second) }

// cookie is what a cookie is called for this tenant, whose name has no dot.
func (r *Request) cookie(name string) string {
	if r.Tenant == estover.DefaultTenant {
		return name
	}
	return name + "." + string(r.Tenant)
}

func (r *Request) setCookie(name, value string, life time.Duration) {
	http.SetCookie(r.Writer, &http.Cookie{
		Name: r.cookie(name), Value: value, Path: "/", MaxAge: int(life / time.Second), Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode,
	})
}

// Path is the path of a page of this tenant.
func (r *Request) Path(at string) string {
	if r.Tenant == estover.DefaultTenant {
		return r.pages.base + at
	}
	return r.pages.base + "/t/" + string(r.Tenant) + at
}

// SignInPath is where people sign in.
const SignInPath = "/login"

// A Demand says what is asked of whoever is signed in, beside that.
type Demand struct {
	Within time.Duration // how long ago they proved who they are at most; 0 for any time
	After  time.Time     // since when they must have done so
	Strong bool          // that they did it by a passkey, or by what counts as one
}

// Meets reports whether a visit meets a demand.
func (d Demand) Meets(v *directory.Visit, now time.Time) bool {
	return v != nil && (d.Within == 0 || now.Sub(v.Since) <= d.Within) && !v.Since.Before(d.After) && (!d.Strong || v.Strong())
}

// Demand reports whether somebody is signed in who meets a demand. If not, it
// has sent the browser to the sign-in page, from which it comes back to this
// path and query.
func (r *Request) Demand(d Demand, to string) bool {
	if d.Meets(r.Visit, r.pages.Now()) {
		return true
	}
	q := url.Values{"to": {to}}
	if r.Visit != nil || !d.After.IsZero() { // a provider would else vouch for who has been signed in there all along
		q.Set("again", "1")
	}
	r.Go(r.Path(SignInPath) + "?" + q.Encode())
	return false
}

// maxReturn is the longest path that a browser comes back to, in bytes.
const maxReturn = 16 << 10

// Local reports whether a browser may be sent to this path and query after it
// has signed in: a page of this tenant and nothing else, however it is written.
func (r *Request) Local(to string) bool {
	if len(to) > maxReturn || !strings.HasPrefix(to, r.Path("/")) || strings.HasPrefix(to, "//") {
		return false
	}
	for i := range len(to) {
		if c := to[i]; c <= ' ' || c >= 0x7f || c == '\\' || c == '#' {
			return false
		}
	}
	u, err := url.Parse(to)
	if err != nil || u.Scheme != "" || u.Host != "" || u.User != nil || path.Clean(u.Path) != u.Path {
		return false
	}
	others := r.Tenant == estover.DefaultTenant && strings.HasPrefix(u.Path, r.pages.base+"/t/") // below whose pages those of all stand
	return strings.HasPrefix(u.Path, r.Path("/")) && !others
}

// Go sends the browser on (RFC 9700, section 4.12: by 303, so that a form is
// never sent on).
func (r *Request) Go(to string) {
	r.heads("")
	r.Writer.Header().Set("Location", to)
	r.Writer.WriteHeader(http.StatusSeeOther)
}

// heads are those of every answer. Forms may lead to our own pages, and to one
// origin beside.
func (r *Request) heads(formsTo string) {
	h := r.Writer.Header()
	forms := "'self'"
	if formsTo != "" {
		forms += " " + formsTo
	}
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; "+
		"form-action "+forms+"; frame-ancestors 'none'; base-uri 'none'")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	h.Set("Permissions-Policy", "publickey-credentials-get=(self), publickey-credentials-create=(self), camera=(), microphone=(), geolocation=()")
}

// A View is what a page shows.
type View struct {
	Title   string
	Data    any
	FormsTo string // the origin that a form of the page may lead to by a redirect; "" for none
	Status  int    // 200 if it is left out
}

// Show shows a page.
func (r *Request) Show(t *Template, v View) error {
	r.known()
	at := func(name string) string { return r.pages.base + "/page/" + name + "?v=" + r.pages.assets[name].version }
	all := struct {
		View
		Style, Script, Icon string
		Home, Out           string
		Person, OutForm     string
	}{
		View: v, Home: r.Path(SignInPath + "/you"), Out: r.Path(SignInPath + "/out"),
		Style: at("style.css"), Script: at("passkey.js"), Icon: at("icon.svg"),
	}
	if r.Visit != nil {
		all.Person, all.OutForm = r.Visit.Person.Name, r.Form("sign out")
	}
	var b bytes.Buffer
	if err := t.read().ExecuteTemplate(&b, "layout.html", all); err != nil {
		return err
	}
	r.heads(v.FormsTo)
	r.Writer.Header().Set("Content-Type", "text/html; charset=utf-8")
	if v.Status == 0 {
		v.Status = http.StatusOK
	}
	r.Writer.WriteHeader(v.Status)
	_, _ = r.Writer.Write(b.Bytes()) // the browser may be gone
	return nil
}

// statuses are the answers to each kind of error.
var statuses = map[estover.Kind]int{
	estover.Fault: http.StatusInternalServerError, estover.Invalid: http.StatusBadRequest, estover.Unknown: http.StatusUnauthorized,
	estover.Denied: http.StatusForbidden, estover.NotFound: http.StatusNotFound, estover.Conflict: http.StatusConflict,
	estover.TooMuch: http.StatusTooManyRequests, estover.Unavailable: http.StatusServiceUnavailable,
}

// titles are what went wrong in a few words.
var titles = map[estover.Kind]string{
	estover.Fault: "Something went wrong", estover.Invalid: "This request cannot be followed", estover.Unknown: "That did not let you in",
	estover.Denied: "Not allowed", estover.NotFound: "Not here", estover.Conflict: "This was done already",
	estover.TooMuch: "Too many attempts", estover.Unavailable: "Not at this moment",
}

// Failure is what a person is told of an error, and with which status.
func (r *Request) Failure(err error) (sentence string, kind estover.Kind, status int) {
	var e *estover.Error
	kind = estover.KindOf(err)
	sentence = "Something went wrong in Estover itself. Tell your administrator the number below."
	if errors.As(err, &e) && kind != estover.Fault {
		sentence = e.Detail
	}
	if status = statuses[kind]; status >= http.StatusInternalServerError && r.Context().Err() == nil {
		r.pages.Logger.Error("a page failed", "path", r.URL.Path, "request", r.From.Request, "error", err)
	}
	if errors.Is(err, errMethod) {
		status = http.StatusMethodNotAllowed
	}
	return sentence, kind, status
}

// Fail shows an error.
func (r *Request) Fail(err error) {
	sentence, kind, status := r.Failure(err)
	edge.Again(r.Writer.Header(), status, err)
	data := struct{ Sentence, Request string }{sentence, r.From.Request}
	if err := r.Show(r.pages.error, View{Title: titles[kind], Status: status, Data: data}); err != nil {
		r.pages.Logger.Error("an error page failed", "error", err)
		http.Error(r.Writer, titles[kind], status)
	}
}

// Now is the time by which pages judge.
func (r *Request) Now() time.Time { return r.pages.Now() }
