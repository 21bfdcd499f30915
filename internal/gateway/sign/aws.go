package sign

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"estover.dev"
)

// The words by which a payload is declared that the signature does not cover.
const (
	UnsignedPayload  = "UNSIGNED-PAYLOAD"
	UnsignedTrailers = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
)

// AWSHeaders and AWSParameters are where a signature of AWS stands in a request,
// folded: what there is of an agent's own is taken out before ours is put in.
var (
	AWSHeaders    = []string{"authorization", "x-amz-date", "x-amz-security-token", "x-amz-content-sha256"}
	AWSParameters = []string{
		"X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires", "X-Amz-SignedHeaders", "X-Amz-Signature",
		"X-Amz-Security-Token", "X-Amz-Content-Sha256",
	}
)

const (
	awsAlgorithm = "AWS4-HMAC-SHA256"
	awsTime      = "20060102T150405Z"
	awsDay       = "20060102"
)

// AWS signs for one service in one region (AWS Signature Version 4).
type AWS struct {
	Region, Service string
	KeyID           string
	Key             estover.Secret
	Token           estover.Secret // of a session's temporary key; empty for one that stays
}

// plain reports whether the service wants the path encoded once, as S3 does; the
// others want it twice.
func (a *AWS) plain() bool { return strings.HasPrefix(a.Service, "s3") }

// Payload is what stands for the body in a signature: its digest, unless it is
// declared as one that is not signed.
func Payload(body []byte, declared string) string {
	if declared != "" {
		return declared
	}
	return Digest(body)
}

// Sign puts a signature into the headers of r: Authorization, X-Amz-Date, for S3
// X-Amz-Content-Sha256, and for a temporary key X-Amz-Security-Token.
func (a *AWS) Sign(r *Request, payload string, at time.Time) {
	h := r.Header
	h.Set("X-Amz-Date", at.UTC().Format(awsTime))
	if a.plain() || payload == UnsignedPayload || payload == UnsignedTrailers {
		h.Set("X-Amz-Content-Sha256", payload)
	}
	if !a.Token.Empty() {
		h.Set("X-Amz-Security-Token", string(a.Token.Reveal()))
	}
	names := r.signed()
	h.Set("Authorization", awsAlgorithm+" Credential="+a.KeyID+"/"+a.scope(at)+", SignedHeaders="+strings.Join(names, ";")+
		", Signature="+a.signature(r, names, r.Query, payload, at))
}

// Presign gives the query of r with a signature in it that is good for so long.
func (a *AWS) Presign(r *Request, payload string, at time.Time, good time.Duration) string {
	names := r.signed()
	q := url.Values{}
	q.Set("X-Amz-Algorithm", awsAlgorithm)
	q.Set("X-Amz-Credential", a.KeyID+"/"+a.scope(at))
	q.Set("X-Amz-Date", at.UTC().Format(awsTime))
	q.Set("X-Amz-Expires", strconv.FormatInt(int64(good/time.Second), 10))
	q.Set("X-Amz-SignedHeaders", strings.Join(names, ";"))
	if !a.Token.Empty() {
		q.Set("X-Amz-Security-Token", string(a.Token.Reveal()))
	}
	query := strings.ReplaceAll(q.Encode(), "+", "%20")
	if r.Query != "" {
		query = r.Query + "&" + query
	}
	return query + "&X-Amz-Signature=" + a.signature(r, names, query, payload, at)
}

func (a *AWS) scope(at time.Time) string {
	return at.UTC().Format(awsDay) + "/" + a.Region + "/" + a.Service + "/aws4_request"
}

// signed are the names of the headers that are signed, sorted.
func (r *Request) signed() []string {
	names := []string{"host"}
	for name := range r.Header {
		lower := strings.ToLower(name)
		if lower == "content-type" || lower == "content-md5" || strings.HasPrefix(lower, "x-amz-") || slices.Contains(r.Extra, lower) {
			names = append(names, lower)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// signature is that of the canonical form of a request.
func (a *AWS) signature(r *Request, names []string, query, payload string, at time.Time) string {
	var b strings.Builder
	b.WriteString(r.Method + "\n" + a.path(r.Path) + "\n" + canonicalQuery(query) + "\n")
	for _, name := range names {
		b.WriteString(name + ":" + r.value(name) + "\n")
	}
	b.WriteString("\n" + strings.Join(names, ";") + "\n" + payload)
	text := awsAlgorithm + "\n" + at.UTC().Format(awsTime) + "\n" + a.scope(at) + "\n" + Digest([]byte(b.String()))
	key := append([]byte("AWS4"), a.Key.Reveal()...)
	for _, part := range []string{at.UTC().Format(awsDay), a.Region, a.Service, "aws4_request"} {
		next := mac(key, part)
		clear(key)
		key = next
	}
	defer clear(key)
	return hex.EncodeToString(mac(key, text))
}

func mac(key []byte, text string) []byte {
	m := hmac.New(sha256.New, key)
	m.Write([]byte(text))
	return m.Sum(nil)
}

// value is a header as it is signed: its values trimmed, inner blanks made one,
// and joined by commas.
func (r *Request) value(name string) string {
	if name == "host" {
		return r.Host
	}
	var list []string
	for header, values := range r.Header {
		if strings.ToLower(header) == name {
			for _, v := range values {
				list = append(list, strings.Join(strings.FieldsFunc(v, func(c rune) bool { return c == ' ' || c == '\t' }), " "))
			}
		}
	}
	return strings.Join(list, ",")
}

// path is the canonical form of an escaped path.
func (a *AWS) path(escaped string) string {
	if escaped == "" {
		return "/"
	}
	if a.plain() {
		if plain, err := url.PathUnescape(escaped); err == nil {
			return awsEscape(plain, true)
		}
		return escaped
	}
	return awsEscape(escaped, true)
}

// canonicalQuery is the canonical form of a query: its parameters decoded, encoded
// in the one way, and sorted.
func canonicalQuery(query string) string {
	type pair struct{ name, value string }
	var list []pair
	for part := range strings.SplitSeq(query, "&") {
		if part == "" {
			continue
		}
		name, value, _ := strings.Cut(part, "=")
		list = append(list, pair{reencode(name), reencode(value)})
	}
	slices.SortStableFunc(list, func(x, y pair) int {
		if c := strings.Compare(x.name, y.name); c != 0 {
			return c
		}
		return strings.Compare(x.value, y.value)
	})
	parts := make([]string, len(list))
	for i, p := range list {
		parts[i] = p.name + "=" + p.value
	}
	return strings.Join(parts, "&")
}

func reencode(s string) string {
	if plain, err := url.QueryUnescape(s); err == nil {
		s = plain
	}
	return awsEscape(s, false)
}

// awsEscape encodes everything but unreserved characters, and slashes if they are
// to stay.
func awsEscape(s string, slashes bool) string {
	const digits = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '.', c == '_', c == '~', c == '/' && slashes:
			b.WriteByte(c)
		default:
			b.WriteByte('%')
			b.WriteByte(digits[c>>4])
			b.WriteByte(digits[c&15])
		}
	}
	return b.String()
}
