package edge

import (
	"net/http"
	"strings"

	"golang.org/x/net/http/httpguts"

	"estover.dev"
)

// ErrHead is returned for a head that is too large, or that says something
// twice which may be said once.
var ErrHead = &estover.Error{Kind: estover.Invalid, Code: "head_refused", Detail: "The head of the request is not acceptable."}

// The bounds of a head (gateway.md, P9). Its size in bytes is bounded by the
// server, see [NewServer].
const (
	maxHeaders = 128
	maxCookies = 200
)

// CheckHead refuses a request whose head is out of bounds, or in which a header
// that has one value stands more than once: a reader that takes the first and
// one that takes the last would see two requests. It also refuses what cannot come
// by a [StrictConn], but in HTTP/2, and would be another request in HTTP/1.1: a method
// that is not a token, and another spelling of the headers that frame a body.
func CheckHead(r *http.Request) error {
	if !httpguts.ValidHeaderFieldName(r.Method) { // which is a token, too
		return ErrHead.With("The method %q is not a token.", r.Method)
	}
	headers := 0
	for name, values := range r.Header {
		headers += len(values)
		if len(values) > 1 && single[name] {
			return ErrHead.With("The header %s stands there %d times.", name, len(values))
		}
		if misspelt(name) {
			return ErrHead.With("The header %s is misspelt.", name)
		}
	}
	if headers > maxHeaders {
		return ErrHead.With("There are more than %d headers.", maxHeaders)
	}
	cookies := 0
	for _, line := range r.Header["Cookie"] {
		cookies += strings.Count(line, ";") + 1
	}
	if cookies > maxCookies {
		return ErrHead.With("There are more than %d cookies.", maxCookies)
	}
	return nil
}

// misspelt reports whether a name only folds to that of a header that frames a body.
func misspelt(name string) bool {
	for _, framing := range framingNames {
		if len(name) == len(framing) && !strings.EqualFold(name, framing) && Among(name, framingNames[:]) {
			return true
		}
	}
	return false
}

// single are the headers that have one value and mean something to us or to
// most servers.
var single = map[string]bool{
	"Authorization": true, "Content-Encoding": true, "Content-Length": true, "Content-Type": true, "Expect": true,
	"Dpop": true, "Host": true, "If-Range": true, "Proxy-Authorization": true, "Range": true, "Upgrade": true,
	"Sec-Websocket-Key": true, "Sec-Websocket-Version": true,
}

// Fold is the form in which header names are compared: lower case, and a
// hyphen for all but letters and digits. Servers that hand headers to programs
// as variables cannot tell names apart that fold to the same (gateway.md, C5
// and P19).
func Fold(name string) string {
	var room [64]byte
	folded := fold(room[:0], name)
	if string(folded) == name {
		return name
	}
	return string(folded)
}

func fold(dst []byte, name string) []byte {
	for i := range len(name) {
		c := name[i]
		switch {
		case 'A' <= c && c <= 'Z':
			c += 'a' - 'A'
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
		default:
			c = '-'
		}
		dst = append(dst, c)
	}
	return dst
}

// Strip deletes from the head of a request what only we may say, and whatever
// folds to one of the injected names, which must be folded themselves. It is
// called after the headers named by Connection are gone and before anything is
// set, so that neither a client's Connection header nor a spelling reaches what
// is injected.
//
// Deleted are: who the client is and by which way it came, as proxies tell
// their servers; who the user is, as authenticating proxies tell them; and
// another method or path than the one that was decided on.
func Strip(h http.Header, injected ...string) {
	for name := range h {
		if Stripped(name, injected) {
			delete(h, name)
		}
	}
}

// Stripped reports whether [Strip] deletes a header.
func Stripped(name string, injected []string) bool {
	var buf [64]byte
	folded := fold(buf[:0], name)
	return said(string(folded)) || contains(injected, folded)
}

// Among reports whether a name folds to one of these, which are folded themselves.
func Among(name string, folded []string) bool {
	var buf [64]byte
	return contains(folded, fold(buf[:0], name))
}

func contains(list []string, folded []byte) bool {
	for _, one := range list {
		if one == string(folded) {
			return true
		}
	}
	return false
}

// said reports whether a folded name is one of those that only we may say.
func said(name string) bool {
	if name == "" || strings.IndexByte("cefprstx", name[0]) < 0 {
		return false
	}
	if onlyOurs[name] {
		return true
	}
	for _, p := range onlyOurPrefixes {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}

var onlyOurs = map[string]bool{
	"forwarded": true, "true-client-ip": true, "x-real-ip": true, "x-client-ip": true, "x-cluster-client-ip": true,
	"cf-connecting-ip": true, "cf-connecting-ipv6": true, "fastly-client-ip": true, "x-host": true, "x-http-host-override": true,
	"x-http-method-override": true, "x-http-method": true, "x-method-override": true,
	"x-arr-clientcert": true, "client-cert": true, "client-cert-chain": true, "remote-user": true, "x-remote-user": true,
	"x-user": true, "x-accel-redirect": true,
}

var onlyOurPrefixes = []string{
	"estover-", "x-estover-", "proxy-", "tailscale-", "x-tailscale-", "x-forwarded-", "x-original-", "x-rewrite-",
	"x-envoy-", "x-auth-request-", "x-goog-iap-", "x-goog-authenticated-user-", "x-amzn-oidc-", "x-ms-client-principal",
	"cf-access-", "ssl-client-", "x-ssl-", "x-client-cert", "x-webauth-", "x-remote-", "x-spiffe-",
}

// StripAnswer deletes from the head of an upstream's answer what is not for the
// agent: what only we may say, a nonce for proofs that are for us (DPoP-Nonce),
// an invitation to come by another way (Alt-Svc), and cookies, unless they are to be kept (gateway.md, C16).
func StripAnswer(h http.Header, cookies bool) {
	var buf [64]byte
	for name := range h {
		switch folded := string(fold(buf[:0], name)); {
		case folded == "set-cookie", folded == "set-cookie2":
			if !cookies {
				delete(h, name)
			}
		case folded == "alt-svc", folded == "alt-used", folded == "dpop-nonce", strings.HasPrefix(folded, "estover-"),
			strings.HasPrefix(folded, "x-estover-"), strings.HasPrefix(folded, "proxy-"), folded == "x-accel-redirect":
			delete(h, name)
		}
	}
}
