package gateway

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"estover.dev/internal/edge"
	"estover.dev/internal/gateway/sign"
)

// maxSealed is how long a body may be that is read before it is sent: for a
// signature over it, or for a secret in it (gateway.md, C14).
const maxSealed = 4 << 20

// awsForm is how an agent's own client has signed with what opens nothing, and so
// how it is signed here.
type awsForm struct {
	query   bool          // in the query, for so long
	good    time.Duration //
	payload string        // what is declared of the body; "" if its digest is signed
}

// mostPresigned is how long a signature in a query is good for. It is used at once.
const mostPresigned = 5 * time.Minute

// sealBody reads the body of a request, if a signature covers it or a secret goes
// into it, and fills its slots.
func (f *flight) sealBody(r *http.Request) error {
	reads := false
	for i := range f.plan.Slots {
		s := &f.plan.Slots[i]
		f.signs = f.signs || s.signs()
		switch s.Kind {
		case BodySlot, FormSlot:
			reads = true
		case HMACSlot:
			reads = reads || s.HMAC.Spec.Uses("body", "body_sha256", "body_sha256_base64")
		case AWSSlot:
			whole, err := f.declared(r, s)
			if err != nil {
				return err
			}
			reads = reads || whole
		}
	}
	if !reads {
		return nil
	}
	if r.Body == nil || r.Body == http.NoBody || r.ContentLength == 0 {
		return f.fillBody(r, nil)
	}
	text, err := Buffer(r, maxSealed)
	if err != nil {
		return err
	}
	return f.fillBody(r, text)
}

// declared finds out how a signature of AWS is made, and whether it covers the
// body.
func (f *flight) declared(r *http.Request, s *Slot) (whole bool, err error) {
	if strings.HasPrefix(s.AWS.Service, "s3") {
		if what := f.beside(r, s.Allowed); what != "" {
			return false, ErrSubresource.With("This is not reading, writing or listing an object: %s. What else is signed for S3 the slot names among its subresources.", what)
		}
	}
	for part := range strings.SplitSeq(f.ex.Query, "&") {
		_, value, _ := strings.Cut(part, "=")
		switch foldParameter(part) {
		case "x-amz-signature":
			f.aws.query = true
		case "x-amz-expires":
			n, err := strconv.ParseInt(value, 10, 32)
			if err != nil || n <= 0 {
				return false, ErrSlot.With("X-Amz-Expires is a number of seconds.")
			}
			f.aws.good = time.Duration(n) * time.Second
		}
	}
	if f.aws.good == 0 || f.aws.good > mostPresigned {
		f.aws.good = mostPresigned
	}
	may := s.Unsigned && f.plan.Upstream.Scheme == "https"
	bodiless := r.ContentLength == 0
	said := r.Header.Get("X-Amz-Content-Sha256")
	switch {
	case strings.HasPrefix(said, "STREAMING-") && (said != sign.UnsignedTrailers || !may):
		// Its pieces are signed, with what opens nothing.
		return false, ErrSlot.With("The client signs its body piece by piece (%s), which cannot be signed again here. Have it send the body whole, or unsigned where the slot allows unsigned_payload.", said)
	case said == sign.UnsignedTrailers:
		f.aws.payload = said
	case f.aws.query && strings.HasPrefix(s.AWS.Service, "s3"): // S3 takes no digest there
		if !bodiless && !may {
			return false, ErrSlot.With("S3 takes no digest of a body along with a signature in the query. Have the client sign in the header, or allow unsigned_payload for the slot.")
		}
		f.aws.payload = sign.UnsignedPayload
	case may && !bodiless && (said == sign.UnsignedPayload || r.ContentLength < 0 || r.ContentLength > maxSealed):
		f.aws.payload = sign.UnsignedPayload
	default:
		return true, nil
	}
	return false, nil
}

// plainParameters are those of requests that read, write and list objects; every
// other says that something else is done (the policy of a bucket is written by a PUT
// to its root), and headers can say so too.
var plainParameters = []string{
	"list-type", "prefix", "delimiter", "max-keys", "continuation-token", "start-after", "encoding-type", "fetch-owner", "marker",
	"optional-object-attributes", "uploads", "uploadid", "partnumber", "max-parts", "part-number-marker", "max-uploads", "key-marker", "upload-id-marker",
	"versionid", "x-id", "response-content-type", "response-content-language", "response-expires", "response-cache-control",
	"response-content-disposition", "response-content-encoding",
}

// plainPrefix begins headers that clients write as parameters where they sign in the
// query.
var plainPrefix = regexp.MustCompile(`^x-amz-(meta|checksum|sdk-checksum|server-side-encryption|storage-class|date|user-agent)`)

// beside says what a request to S3 does beside reading, writing and listing objects;
// "" if that is nothing, or allowed.
func (f *flight) beside(r *http.Request, allowed []string) string {
	may := func(what string) bool {
		return slices.ContainsFunc(allowed, func(v string) bool { return edge.Fold(v) == edge.Fold(what) })
	}
	for part := range strings.SplitSeq(f.ex.Query, "&") {
		name := foldParameter(part)
		signs := strings.HasPrefix(name, "x-amz-") && slices.ContainsFunc(sign.AWSParameters, func(v string) bool { return edge.Fold(v) == name })
		if name != "" && !signs && !slices.Contains(plainParameters, name) && !plainPrefix.MatchString(name) && !may(name) {
			return "the parameter " + name
		}
	}
	for name := range r.Header {
		switch folded := edge.Fold(name); {
		case (folded == "x-amz-acl" || strings.HasPrefix(folded, "x-amz-grant-")) && !may("acl"), strings.HasPrefix(folded, "x-amz-copy-source") && !may("copy"),
			folded == "x-amz-tagging" && !may("tagging"), strings.HasPrefix(folded, "x-amz-object-lock-") && !may("retention"),
			folded == "x-amz-bypass-governance-retention" && !may("retention"), folded == "x-amz-website-redirect-location" && !may("website"):
			return "the header " + folded
		}
	}
	return ""
}

// fillBody puts secrets into a body that was read.
func (f *flight) fillBody(r *http.Request, text []byte) error {
	body, shown := text, text
	if body == nil {
		body = []byte{}
	}
	for i := range f.plan.Slots {
		s := &f.plan.Slots[i]
		if s.Kind != BodySlot && s.Kind != FormSlot {
			continue
		}
		if encoding := r.Header.Get("Content-Encoding"); encoding != "" && !strings.EqualFold(encoding, "identity") {
			return ErrSlot.With("A secret goes into the body, which is compressed. Have the client send it plainly.")
		}
		kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
		var err error
		switch {
		case s.Kind == FormSlot:
			body, err = putInForm(body, s)
		case kind == "application/json" || strings.HasSuffix(kind, "+json"):
			if shown, err = putInJSON(shown, s.Name, s.label()); err == nil {
				body, err = putInJSON(body, s.Name, string(s.Secret.Reveal()))
			}
		default:
			return ErrSlot.With("A secret goes into the member %s of the body, which must be JSON and not %q.", s.Name, kind)
		}
		if err != nil {
			return err
		}
	}
	f.text, f.shown = body, shown
	if r.ContentLength != 0 {
		r.Body = &buffered{bytes.NewReader(body), r.Body, body, nil}
	}
	return nil
}

// sized tells the upstream how long a body is that was read.
func (f *flight) sized(out *http.Request) {
	if f.text == nil || out.Body == nil {
		return
	}
	out.ContentLength, out.TransferEncoding = int64(len(f.text)), nil
	out.Header.Set("Content-Length", strconv.Itoa(len(f.text)))
}

// errSpelling says that a body has two readings.
var errSpelling = errors.New("a member is there in two spellings")

// errNoPlace says that there is nothing in a body into which the member could go.
var errNoPlace = errors.New("there is no such place")

// putInJSON sets the member at a JSON Pointer. What stands there under any spelling
// is taken out first. JSON that can be read in two ways is refused (gateway.md,
// section 8.2).
func putInJSON(text []byte, pointer, value string) ([]byte, error) {
	v := jsontext.Value(bytes.Clone(text))
	err := v.Format(jsontext.PreserveRawStrings(false), jsontext.CanonicalizeRawInts(false), jsontext.CanonicalizeRawFloats(false))
	var out bytes.Buffer
	if err == nil {
		path := strings.Split(pointer, "/")[1:]
		for i, part := range path {
			path[i] = strings.NewReplacer("~1", "/", "~0", "~").Replace(part)
		}
		err = put(jsontext.NewDecoder(bytes.NewReader(v)), jsontext.NewEncoder(&out), path, value)
	}
	switch {
	case errors.Is(err, errSpelling):
		return nil, ErrSlot.With("A secret goes to %s in the body, where a member is there in two spellings.", pointer)
	case errors.Is(err, errNoPlace):
		return nil, ErrSlot.With("A secret goes to %s in the body, and there is nothing that could have this member.", pointer)
	case err != nil:
		return nil, ErrSlot.With("A secret goes to %s in the body, which is not JSON that can be read in one way only.", pointer)
	}
	return bytes.TrimSuffix(out.Bytes(), []byte("\n")), nil
}

// put copies one value, and sets what is at the path in it.
func put(d *jsontext.Decoder, e *jsontext.Encoder, path []string, value string) error {
	if len(path) == 0 {
		if err := d.SkipValue(); err != nil {
			return err
		}
		return e.WriteToken(jsontext.String(value))
	}
	kind := d.PeekKind()
	if kind != '{' && kind != '[' {
		return errNoPlace
	}
	if err := copyToken(d, e); err != nil {
		return err
	}
	found := false
	for i := 0; d.PeekKind() != '}' && d.PeekKind() != ']'; i++ {
		here := kind == '[' && strconv.Itoa(i) == path[0]
		if kind == '{' {
			name, err := d.ReadToken()
			if err != nil {
				return err
			}
			text := name.String()
			if text != path[0] && edge.Fold(text) == edge.Fold(path[0]) {
				if len(path) > 1 {
					return errSpelling
				}
				if err := d.SkipValue(); err != nil {
					return err
				}
				continue
			}
			here = text == path[0]
			if err := e.WriteToken(jsontext.String(text)); err != nil {
				return err
			}
		}
		if here {
			found = true
			if err := put(d, e, path[1:], value); err != nil {
				return err
			}
			continue
		}
		v, err := d.ReadValue()
		if err == nil {
			err = e.WriteValue(v)
		}
		if err != nil {
			return err
		}
	}
	if !found {
		if kind == '[' || len(path) > 1 {
			return errNoPlace
		}
		if err := e.WriteToken(jsontext.String(path[0])); err != nil {
			return err
		}
		if err := e.WriteToken(jsontext.String(value)); err != nil {
			return err
		}
	}
	return copyToken(d, e)
}

func copyToken(d *jsontext.Decoder, e *jsontext.Encoder) error {
	t, err := d.ReadToken()
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return err
	}
	return e.WriteToken(t)
}

// putInForm puts a secret in the place of its handle, where that is the whole value
// of the parameter.
func putInForm(text []byte, s *Slot) ([]byte, error) {
	parts := strings.Split(string(text), "&")
	found := false
	for i, part := range parts {
		name, value, _ := strings.Cut(part, "=")
		plain, err := url.QueryUnescape(name)
		handle, bad := url.QueryUnescape(value)
		if err == nil && bad == nil && plain == s.Name && handle == s.Handle {
			parts[i], found = name+"="+url.QueryEscape(string(s.Secret.Reveal())), true
		}
	}
	if !found {
		return nil, ErrSlot.With("The parameter %s is not in the form.", s.Name)
	}
	return []byte(strings.Join(parts, "&")), nil
}

// A signed head is what signatures add to it.
type signed struct {
	header http.Header
	query  string // the whole of it; "" if it stays as it is
	labels map[string]string
}

// sign makes the signatures of a request whose slots will be filled in out. What
// goes wrong ends the request before it is sent.
func (f *flight) sign(out *http.Request, query string) *signed {
	done := &signed{header: http.Header{}, labels: map[string]string{}}
	h := out.Header.Clone()
	r := &sign.Request{Method: out.Method, Host: out.Host, Path: string(f.ex.Path), Header: h, Body: f.text}
	r.Query = fill(h, query, f.plan.Slots, false)
	at := time.Now()
	// That of AWS comes last: it covers the headers of the others.
	slots := slices.Clone(f.plan.Slots)
	slices.SortStableFunc(slots, func(a, b Slot) int { return strings.Compare(string(a.Kind), string(b.Kind)) })
	for _, s := range slots {
		switch s.Kind {
		case HMACSlot:
			if err := s.HMAC.Sign(r, at); err != nil {
				f.broke(ErrSlot.With("The request cannot be signed for %s: %v.", s.Name, err))
				return done
			}
			done.labels[http.CanonicalHeaderKey(s.Name)] = s.label()
		case AWSSlot:
			payload := sign.Payload(f.text, f.aws.payload)
			if f.aws.query {
				done.query = s.AWS.Presign(r, payload, at, f.aws.good)
				continue
			}
			s.AWS.Sign(r, payload, at)
			done.labels["Authorization"] = "AWS4-HMAC-SHA256 " + s.label()
			done.labels["X-Amz-Security-Token"] = s.label()
		default:
			continue
		}
		for _, name := range s.headers() {
			if values := h.Values(name); len(values) > 0 {
				done.header[http.CanonicalHeaderKey(name)] = values
			}
		}
	}
	return done
}

// put adds the signatures to a head, and gives its query.
func (s *signed) put(h http.Header, query string) string {
	if s == nil {
		return query
	}
	for name, values := range s.header {
		h[name] = values
	}
	if s.query != "" {
		return s.query
	}
	return query
}

// show adds them to a head that is shown.
func (s *signed) show(h http.Header, query string, slots []Slot) string {
	if s == nil {
		return query
	}
	for name, values := range s.header {
		if label := s.labels[name]; label != "" {
			values = []string{label}
		}
		h[name] = values
	}
	if s.query == "" {
		return query
	}
	for i := range slots {
		if slots[i].Kind == AWSSlot {
			if query != "" {
				query += "&"
			}
			query += "X-Amz-Signature=" + slots[i].label()
		}
	}
	return query
}
