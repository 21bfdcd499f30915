package page

import (
	"crypto/hmac"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"net/url"
	"strings"
	"time"
)

// formLife is how long a form may stay open.
const formLife = 30 * time.Minute

// Form is the word that a form for this purpose carries, in this browser and
// this visit. The purpose names all that the form is about.
func (r *Request) Form(purpose string) string { return r.Seal("form "+purpose, nil, formLife) }

// FormField is the name of the field with that word.
const FormField = "form"

// A Posted is a form that came from a page of ours.
type Posted struct {
	url.Values
	Number  string    // of the form that was shown; another for each time
	Expires time.Time // of that form
}

// Posted reads a form for this purpose. A form that does not come from a page
// of ours, shown in this browser to whoever is signed in now, is [ErrForm].
func (r *Request) Posted(purpose string) (Posted, error) {
	if err := r.ours(); err != nil {
		return Posted{}, err
	}
	if err := r.ParseForm(); err != nil {
		return Posted{}, ErrForm.With("The form could not be read.").Because(err)
	}
	form := r.PostForm
	for name, values := range form {
		if len(values) != 1 {
			return Posted{}, ErrForm.With("The form has the field %.40q more than once.", name)
		}
	}
	_, number, expires, ok := r.open("form "+purpose, form.Get(FormField))
	if !ok {
		return Posted{}, ErrForm
	}
	return Posted{form, number, expires}, nil
}

// ours reports whether a POST comes from a page of ours, as far as the browser
// says. Because pages send no referrer, browsers that do not know Sec-Fetch-Site
// may say no origin at all, or null; the form's word is what holds then.
func (r *Request) ours() error {
	if site := r.Header.Get("Sec-Fetch-Site"); site != "" {
		if site != "same-origin" {
			return ErrForm
		}
		return nil
	}
	switch r.Header.Get("Origin") {
	case "", "null", r.pages.origin:
		return nil
	}
	return ErrForm
}

// Seal is data for this browser and this visit that comes back unchanged or not
// at all, for a purpose and a while. It can be read by whoever has it.
func (r *Request) Seal(purpose string, data []byte, life time.Duration) string {
	r.known()
	b := make([]byte, 0, 8+numberSize+len(data)+32)
	b = binary.BigEndian.AppendUint64(b, uint64(r.pages.Now().Add(life).UnixMicro()))
	var number [numberSize]byte
	_, _ = rand.Read(number[:]) // never fails
	b = append(append(b, number[:]...), data...)
	return base64.RawURLEncoding.EncodeToString(append(b, r.mac(purpose, r.visit(), b)...))
}

const (
	numberSize = 16
	macSize    = 32
)

// Open reads what [Request.Seal] made for this purpose.
func (r *Request) Open(purpose, sealed string) (data []byte, expires time.Time, ok bool) {
	data, _, expires, ok = r.open(purpose, sealed)
	return data, expires, ok
}

func (r *Request) open(purpose, sealed string) (data []byte, number string, expires time.Time, ok bool) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(sealed)
	if err != nil || len(b) < 8+numberSize+macSize || r.browser == "" {
		return nil, "", expires, false
	}
	b, sum := b[:len(b)-macSize], b[len(b)-macSize:]
	if !hmac.Equal(sum, r.mac(purpose, r.visit(), b)) {
		return nil, "", expires, false
	}
	expires = time.UnixMicro(int64(binary.BigEndian.Uint64(b)))
	number = base64.RawURLEncoding.EncodeToString(b[8 : 8+numberSize])
	return b[8+numberSize:], number, expires, r.pages.Now().Before(expires)
}

// Derive is a value that follows from a text for this browser, and that nobody
// else can find.
func (r *Request) Derive(purpose, text string) string {
	r.known()
	return base64.RawURLEncoding.EncodeToString(r.mac("derive "+purpose, "", []byte(text)))
}

// visit is what binds a word to who is signed in.
func (r *Request) visit() string {
	if r.Visit == nil {
		return ""
	}
	return r.held
}

// mac binds data to a purpose, a browser and a visit.
func (r *Request) mac(purpose, visit string, data []byte) []byte {
	head := strings.Join([]string{purpose, r.browser, visit}, "\x00") + "\x00"
	return r.pages.MAC(r.Tenant, append([]byte(head), data...))
}

// Mark is this moment, in a form that comes back unchanged or not at all, also
// after somebody else has signed in: a demand that was made once is not made
// again of whoever has met it.
func (r *Request) Mark() string {
	r.known()
	b := binary.BigEndian.AppendUint64(nil, uint64(r.pages.Now().UnixMicro()))
	return base64.RawURLEncoding.EncodeToString(append(b, r.mac("mark", "", b)...))
}

// Marked is the moment of a mark that was made for this browser.
func (r *Request) Marked(mark string) (time.Time, bool) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(mark)
	if err != nil || len(b) != 8+macSize || r.browser == "" || !hmac.Equal(b[8:], r.mac("mark", "", b[:8])) {
		return time.Time{}, false
	}
	return time.UnixMicro(int64(binary.BigEndian.Uint64(b))), true
}

// known gives the browser a name if it has none.
func (r *Request) known() {
	if r.browser == "" {
		r.browser = rand.Text()
		r.setCookie(browserCookie, r.browser, 365*24*time.Hour)
	}
}
