package vault

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/secret/transit"
)

func (d *Door) transitKeys() []Route {
	route := func(r Route) Route { r.Mount = "transit"; return r }
	all := []Route{
		route(Route{Path: "keys", List: d.listTransit, Help: "the keys"}),
		route(Route{Path: "keys/:name", Read: d.readTransit, Write: d.createTransit, Delete: d.removeTransit, Exists: d.transitThere, Help: "a key, without its secrets"}),
		route(Route{Path: "keys/:name/config", Write: d.configureTransit, Help: "what may be done with a key"}),
		route(Route{Path: "keys/:name/rotate", Write: d.rotateTransit, Help: "give a key another version"}),
		route(Route{Path: "keys/:name/trim", Write: d.trimTransit, Help: "erase the versions below one"}),
		route(Route{Path: "keys/:name/import", Write: d.importTransit(false), Help: "take over a key that was wrapped"}),
		route(Route{Path: "keys/:name/import_version", Write: d.importTransit(true), Help: "take over the next version of a key"}),
		route(Route{Path: "wrapping_key", Read: d.wrappingKey, Help: "the key for which one wraps a key"}),
		route(Route{Path: "cache-config", Read: d.transitCache, Write: d.transitCacheSet, Help: "all keys in use are kept at hand"}),
		route(Route{Path: "encrypt/:name", Write: d.encryptTransit, Exists: d.transitThere, Help: "encrypt; a key that is not there is made"}),
		route(Route{Path: "decrypt/:name", Write: d.decryptTransit, Help: "decrypt"}),
		route(Route{Path: "rewrap/:name", Write: d.rewrapTransit, Help: "encrypt with the newest version"}),
		route(Route{Path: "datakey/:kind/:name", Write: d.dataKey, Help: "a key for use elsewhere"}),
		route(Route{Path: "export/:type/:name", Read: d.exportTransit, Help: "the secrets of an exportable key"}),
		route(Route{Path: "export/:type/:name/:version", Read: d.exportTransit, Help: "the secret of a version"}),
	}
	for path, h := range map[string]Handler{"sign": d.signTransit, "verify": d.verifyTransit, "hmac": d.hmacTransit} {
		all = append(all, route(Route{Path: path + "/:name", Write: h, Help: path}), route(Route{Path: path + "/:name/:algorithm", Write: h, Help: path + " by an algorithm"}))
	}
	for _, at := range []struct{ mount, prefix string }{{"transit", ""}, {"system", "tools/"}} {
		for _, path := range []string{"hash", "hash/:algorithm"} {
			all = append(all, Route{Mount: at.mount, Path: at.prefix + path, Write: hashOf, Help: "the digest of an input"})
		}
		for _, path := range []string{"random", "random/:bytes", "random/:source/:bytes"} {
			all = append(all, Route{Mount: at.mount, Path: at.prefix + path, Write: randomBytes, Help: "random bytes"})
		}
	}
	return all
}

// noTransit puts it into the words that clients know that a key is not there.
func noTransit(err error, words string) error {
	if errors.Is(err, transit.ErrNotFound) {
		return refuse(http.StatusBadRequest, "%s", words).because(err)
	}
	return err
}

func (d *Door) transitThere(ctx context.Context, q *Request) (bool, error) {
	return d.Transit.Exists(ctx, q.Tenant, q.Mount.ID, q.Param("name"))
}

func (d *Door) listTransit(ctx context.Context, q *Request) (*Answer, error) {
	var names []string
	for after := ""; ; {
		list, err := d.Transit.Keys(ctx, q.Caller, q.Mount.ID, after, 200)
		if err != nil {
			return nil, err
		}
		for _, k := range list {
			names = append(names, k.Name)
		}
		if len(list) < 200 {
			return listing(names, nil)
		}
		after = list[len(list)-1].Name
	}
}

// curves are the names of keys as clients know them.
var curves = map[transit.Type]string{transit.ECDSAP256: "P-256", transit.ECDSAP384: "P-384", transit.ECDSAP521: "P-521"}

// transitData is a key as clients know it (V33).
func transitData(k transit.Key) map[string]any {
	keys := map[string]any{}
	for _, v := range k.Versions {
		if v.N < k.MinDecryption {
			continue
		}
		n := strconv.FormatInt(v.N, 10)
		if k.Type.Symmetric() {
			keys[n] = v.CreatedAt.Unix()
			continue
		}
		name := string(k.Type)
		if c := curves[k.Type]; c != "" {
			name = c
		}
		keys[n] = map[string]any{"name": name, "public_key": v.PublicKey, "certificate_chain": "", "creation_time": Time(v.CreatedAt)}
	}
	data := map[string]any{
		"name": k.Name, "type": k.Type, "keys": keys, "latest_version": k.Latest, "derived": k.Derived, "exportable": k.Exportable, "allow_plaintext_backup": k.Backup,
		"deletion_allowed": k.DeletionAllowed, "min_decryption_version": k.MinDecryption, "min_encryption_version": k.MinEncryption, "min_available_version": k.Available,
		"auto_rotate_period": k.AutoRotate, "imported_key": k.Imported, "supports_encryption": k.Type.Encrypts(), "supports_decryption": k.Type.Encrypts(),
		"supports_signing": k.Type.Signs(), "supports_derivation": k.Type.Derives(),
	}
	if k.Imported {
		data["imported_key_allow_rotation"] = k.ImportedRotates
	}
	if k.Derived {
		data["kdf"], data["convergent_encryption"] = "hkdf_sha256", k.Convergent
		if k.Convergent {
			data["convergent_encryption_version"] = -1
		}
	}
	if k.KeySize > 0 {
		data["key_size"] = k.KeySize
	}
	if k.Resource != "" {
		data["resource"], data["action"] = k.Resource, k.Action
	}
	return data
}

func transitAnswer(k transit.Key, err error) (*Answer, error) {
	if err != nil {
		return nil, err
	}
	return &Answer{Data: transitData(k)}, nil
}

func (d *Door) readTransit(ctx context.Context, q *Request) (*Answer, error) {
	return transitAnswer(d.Transit.Get(ctx, q.Caller, q.Mount.ID, q.Param("name")))
}

func (d *Door) createTransit(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		Type       transit.Type  `json:"type"`
		Derived    bool          `json:"derived"`
		Convergent bool          `json:"convergent_encryption"`
		Exportable bool          `json:"exportable"`
		Backup     bool          `json:"allow_plaintext_backup"`
		AutoRotate time.Duration `json:"auto_rotate_period"`
		KeySize    int           `json:"key_size"`
		Resource   string        `json:"resource"`
		Action     string        `json:"action"`
	}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	k, err := d.Transit.Create(ctx, q.Caller, q.Mount.ID, q.Param("name"), in.Type, transit.Spec{
		Derived: in.Derived, Convergent: in.Convergent, Exportable: in.Exportable, Backup: in.Backup, AutoRotate: seconds(in.AutoRotate), KeySize: in.KeySize, Resource: in.Resource, Action: in.Action,
	})
	if errors.Is(err, transit.ErrExists) {
		q.Warn("key %s already existed", q.Param("name"))
		return d.readTransit(ctx, q)
	}
	return transitAnswer(k, err)
}

func (d *Door) removeTransit(ctx context.Context, q *Request) (*Answer, error) {
	err := d.Transit.Remove(ctx, q.Caller, q.Mount.ID, q.Param("name"))
	if errors.Is(err, transit.ErrNotAllowed) {
		err = refuse(http.StatusBadRequest, "error deleting policy %s: deletion is not allowed for this key", q.Param("name")).because(err)
	}
	return nil, err
}

func (d *Door) configureTransit(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		MinDecryption *int64         `json:"min_decryption_version"`
		MinEncryption *int64         `json:"min_encryption_version"`
		Deletion      *bool          `json:"deletion_allowed"`
		Exportable    *bool          `json:"exportable"`
		Backup        *bool          `json:"allow_plaintext_backup"`
		AutoRotate    *time.Duration `json:"auto_rotate_period"`
	}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	ch := transit.Change{MinDecryption: in.MinDecryption, MinEncryption: in.MinEncryption, DeletionAllowed: in.Deletion, Exportable: in.Exportable, Backup: in.Backup}
	if in.AutoRotate != nil {
		n := seconds(*in.AutoRotate)
		ch.AutoRotate = &n
	}
	k, err := d.Transit.Configure(ctx, q.Caller, q.Mount.ID, q.Param("name"), ch)
	return transitAnswer(k, noTransit(err, "no existing key named "+q.Param("name")+" could be found"))
}

func (d *Door) rotateTransit(ctx context.Context, q *Request) (*Answer, error) {
	k, err := d.Transit.Rotate(ctx, q.Caller, q.Mount.ID, q.Param("name"))
	return transitAnswer(k, noTransit(err, "key not found"))
}

func (d *Door) trimTransit(ctx context.Context, q *Request) (*Answer, error) {
	var in struct {
		Oldest int64 `json:"min_available_version"`
	}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	_, err := d.Transit.Trim(ctx, q.Caller, q.Mount.ID, q.Param("name"), in.Oldest)
	return nil, noTransit(err, "invalid key name")
}

func (d *Door) importTransit(more bool) Handler {
	return func(ctx context.Context, q *Request) (*Answer, error) {
		var in struct {
			Type       transit.Type  `json:"type"`
			Ciphertext string        `json:"ciphertext"`
			Hash       string        `json:"hash_function"`
			Rotates    bool          `json:"allow_rotation"`
			Derived    bool          `json:"derived"`
			Exportable bool          `json:"exportable"`
			Backup     bool          `json:"allow_plaintext_backup"`
			AutoRotate time.Duration `json:"auto_rotate_period"`
		}
		if err := q.Read(&in); err != nil {
			return nil, err
		}
		wrapped, err := base64.StdEncoding.DecodeString(in.Ciphertext)
		if err != nil {
			return nil, refuse(http.StatusBadRequest, "the ciphertext is not base64")
		}
		if in.Type == "" {
			in.Type = transit.AES256
		}
		_, err = d.Transit.Import(ctx, q.Caller, q.Mount.ID, q.Param("name"), in.Type, transit.Spec{
			Derived: in.Derived, Exportable: in.Exportable, Backup: in.Backup, AutoRotate: seconds(in.AutoRotate), ImportedRotates: in.Rotates,
		}, wrapped, in.Hash, more)
		return nil, noTransit(err, "no key found with name "+q.Param("name"))
	}
}

func (d *Door) wrappingKey(ctx context.Context, q *Request) (*Answer, error) {
	k, err := d.Transit.WrappingKey(ctx, q.Caller, q.Mount.ID)
	if err != nil {
		return nil, err
	}
	return &Answer{Data: map[string]any{"public_key": k}}, nil
}

func (d *Door) transitCache(context.Context, *Request) (*Answer, error) {
	return &Answer{Data: map[string]any{"size": 0}}, nil
}

func (d *Door) transitCacheSet(_ context.Context, q *Request) (*Answer, error) {
	var in struct {
		Size int64 `json:"size"`
	}
	return nil, q.Read(&in)
}

// A transitItem is one of a batch as clients write it.
type transitItem struct {
	Plaintext  *string `json:"plaintext"`
	Ciphertext string  `json:"ciphertext"`
	Input      *string `json:"input"`
	Signature  string  `json:"signature"`
	HMAC       string  `json:"hmac"`
	Context    string  `json:"context"`
	Data       string  `json:"associated_data"`
	Version    int64   `json:"key_version"`
	Reference  string  `json:"reference"`
}

// item decodes what is in base64.
func (t *transitItem) item() (out transit.Item, err error) {
	out.Version = t.Version
	for _, one := range []struct {
		name string
		from *string
		to   *[]byte
	}{{"plaintext", t.Plaintext, &out.Plaintext}, {"input", t.Input, &out.Plaintext}, {"context", &t.Context, &out.Context}, {"associated_data", &t.Data, &out.Data}} {
		if one.from == nil || *one.from == "" && one.to != &out.Plaintext {
			continue
		}
		if *one.to, err = base64.StdEncoding.DecodeString(*one.from); err != nil {
			return out, refuse(http.StatusBadRequest, "failed to base64-decode %s", one.name)
		}
	}
	for _, text := range []string{t.Ciphertext, t.Signature, t.HMAC} {
		if text != "" {
			out.Ciphertext = text
		}
	}
	return out, nil
}

// A transitAsk is what there is beside the items.
type transitAsk struct {
	transitItem
	Batch   json.RawMessage `json:"batch_input"`
	Partial int             `json:"partial_failure_response_code"`

	Algorithm  string `json:"algorithm"`
	Hash       string `json:"hash_algorithm"`
	Prehashed  bool   `json:"prehashed"`
	Signing    string `json:"signature_algorithm"`
	Marshaling string `json:"marshaling_algorithm"`
	Salt       string `json:"salt_length"`

	Type       transit.Type `json:"type"`
	Convergent bool         `json:"convergent_encryption"`
}

func (a *transitAsk) how(q *Request) transit.How {
	h := transit.How{Hash: a.Hash, Prehashed: a.Prehashed, Encoding: a.Marshaling, RSA: a.Signing, Salt: a.Salt}
	for _, name := range []string{a.Algorithm, q.Param("algorithm")} {
		if name != "" {
			h.Hash = name
		}
	}
	return h
}

// batch does something for one item, or for each of a batch, and shows each result
// by show. Need names the field without which an item is none.
func (q *Request) batch(ask *transitAsk, need string, do func([]transit.Item, []transitItem) ([]transit.Result, error), show func(transit.Result) map[string]any) (*Answer, error) {
	items := []transitItem{ask.transitItem}
	many := len(ask.Batch) > 0 && string(ask.Batch) != "null"
	if many {
		items = nil
		if err := json.Unmarshal(ask.Batch, &items); err != nil {
			return nil, refuse(http.StatusBadRequest, "failed to parse batch input")
		}
		if len(items) == 0 {
			return nil, refuse(http.StatusBadRequest, "missing batch input to process")
		}
	}
	in := make([]transit.Item, len(items))
	failed := make([]error, len(items))
	var good []transit.Item
	var from []transitItem
	var at []int
	for i := range items {
		var err error
		in[i], err = items[i].item()
		if err == nil && need == "plaintext" && items[i].Plaintext == nil || err == nil && need == "input" && items[i].Input == nil || err == nil && need == "ciphertext" && items[i].Ciphertext == "" {
			err = refuse(http.StatusBadRequest, "missing %s to process", need)
		}
		if failed[i] = err; err == nil {
			good, from, at = append(good, in[i]), append(from, items[i]), append(at, i)
		}
	}
	results := make([]transit.Result, len(items))
	if len(good) > 0 {
		out, err := do(good, from)
		if err != nil {
			return nil, err
		}
		for j, r := range out {
			results[at[j]], failed[at[j]] = r, r.Err
		}
	}
	if !many {
		if failed[0] != nil {
			return nil, failed[0]
		}
		return &Answer{Data: show(results[0])}, nil
	}
	list := make([]map[string]any, len(items))
	bad := 0
	for i := range items {
		if failed[i] != nil {
			bad++
			list[i] = map[string]any{"error": sentenceOf(failed[i])}
		} else {
			list[i] = show(results[i])
		}
		if items[i].Reference != "" {
			list[i]["reference"] = items[i].Reference
		}
	}
	a := &Answer{Data: map[string]any{"batch_results": list}}
	if bad > 0 {
		a.Status = http.StatusBadRequest
		if bad < len(items) && ask.Partial > 0 {
			a.Status = ask.Partial
		}
	}
	return a, nil
}

// sentenceOf is what a caller may read of an error.
func sentenceOf(err error) string {
	var known *estover.Error
	if errors.As(err, &known) {
		return known.Detail
	}
	if f, ok := errors.AsType[*Failure](err); ok {
		return f.Error()
	}
	return "internal error"
}

func (d *Door) encryptTransit(ctx context.Context, q *Request) (*Answer, error) {
	var ask transitAsk
	if err := q.Read(&ask); err != nil {
		return nil, err
	}
	if q.Op == Create {
		spec := transit.Spec{Derived: ask.Context != "" || ask.Convergent, Convergent: ask.Convergent}
		if len(ask.Batch) > 0 {
			var items []transitItem
			if json.Unmarshal(ask.Batch, &items) == nil && len(items) > 0 && items[0].Context != "" {
				spec.Derived = true
			}
		}
		if _, err := d.Transit.Create(ctx, q.Caller, q.Mount.ID, q.Param("name"), ask.Type, spec); err != nil && !errors.Is(err, transit.ErrExists) {
			return nil, err
		}
	}
	return q.batch(&ask, "plaintext", func(items []transit.Item, _ []transitItem) ([]transit.Result, error) {
		out, err := d.Transit.Encrypt(ctx, q.Caller, q.Mount.ID, q.Param("name"), items)
		return out, noTransit(err, "encryption key not found")
	}, showSealed)
}

func showSealed(r transit.Result) map[string]any {
	return map[string]any{"ciphertext": r.Text, "key_version": r.Version}
}

func (d *Door) decryptTransit(ctx context.Context, q *Request) (*Answer, error) {
	var ask transitAsk
	if err := q.Read(&ask); err != nil {
		return nil, err
	}
	return q.batch(&ask, "ciphertext", func(items []transit.Item, _ []transitItem) ([]transit.Result, error) {
		out, err := d.Transit.Decrypt(ctx, q.Caller, q.Mount.ID, q.Param("name"), items)
		return out, noTransit(err, "encryption key not found")
	}, func(r transit.Result) map[string]any {
		return map[string]any{"plaintext": base64.StdEncoding.EncodeToString(r.Plaintext.Reveal())}
	})
}

func (d *Door) rewrapTransit(ctx context.Context, q *Request) (*Answer, error) {
	var ask transitAsk
	if err := q.Read(&ask); err != nil {
		return nil, err
	}
	return q.batch(&ask, "ciphertext", func(items []transit.Item, _ []transitItem) ([]transit.Result, error) {
		out, err := d.Transit.Rewrap(ctx, q.Caller, q.Mount.ID, q.Param("name"), items)
		return out, noTransit(err, "encryption key not found")
	}, showSealed)
}

func (d *Door) signTransit(ctx context.Context, q *Request) (*Answer, error) {
	var ask transitAsk
	if err := q.Read(&ask); err != nil {
		return nil, err
	}
	return q.batch(&ask, "input", func(items []transit.Item, _ []transitItem) ([]transit.Result, error) {
		out, err := d.Transit.Sign(ctx, q.Caller, q.Mount.ID, q.Param("name"), ask.how(q), items)
		return out, noTransit(err, "signing key not found")
	}, func(r transit.Result) map[string]any {
		data := map[string]any{"signature": r.Text, "key_version": r.Version}
		if r.PublicKey != "" {
			data["public_key"] = r.PublicKey
		}
		return data
	})
}

func (d *Door) verifyTransit(ctx context.Context, q *Request) (*Answer, error) {
	var ask transitAsk
	if err := q.Read(&ask); err != nil {
		return nil, err
	}
	return q.batch(&ask, "input", func(items []transit.Item, from []transitItem) ([]transit.Result, error) {
		// Each item says what it has: all of a batch the same.
		mac := from[0].HMAC != ""
		for i := range from {
			switch {
			case from[i].HMAC != "" && from[i].Signature != "":
				return nil, refuse(http.StatusBadRequest, "provide one of 'signature' or 'hmac'")
			case from[i].HMAC == "" && from[i].Signature == "":
				return nil, refuse(http.StatusBadRequest, "neither a 'signature' nor an 'hmac' was given to verify")
			case (from[i].HMAC != "") != mac:
				return nil, refuse(http.StatusBadRequest, "elements of batch_input must all provide 'signature' or all provide 'hmac'")
			}
		}
		out, err := d.Transit.Verify(ctx, q.Caller, q.Mount.ID, q.Param("name"), ask.how(q), items, mac)
		return out, noTransit(err, "signature verification key not found")
	}, func(r transit.Result) map[string]any { return map[string]any{"valid": r.Valid} })
}

func (d *Door) hmacTransit(ctx context.Context, q *Request) (*Answer, error) {
	var ask transitAsk
	if err := q.Read(&ask); err != nil {
		return nil, err
	}
	return q.batch(&ask, "input", func(items []transit.Item, _ []transitItem) ([]transit.Result, error) {
		out, err := d.Transit.HMAC(ctx, q.Caller, q.Mount.ID, q.Param("name"), ask.how(q), items)
		return out, noTransit(err, "encryption key not found")
	}, func(r transit.Result) map[string]any { return map[string]any{"hmac": r.Text} })
}

func (d *Door) dataKey(ctx context.Context, q *Request) (*Answer, error) {
	in := struct {
		transitItem
		Bits int `json:"bits"`
	}{Bits: 256}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	kind := q.Param("kind")
	if kind != "plaintext" && kind != "wrapped" {
		return nil, refuse(http.StatusBadRequest, "Invalid path, must be 'plaintext' or 'wrapped'")
	}
	one, err := in.item()
	if err != nil {
		return nil, err
	}
	r, err := d.Transit.DataKey(ctx, q.Caller, q.Mount.ID, q.Param("name"), in.Bits, kind == "plaintext", one)
	if err != nil {
		return nil, noTransit(err, "encryption key not found")
	}
	data := showSealed(r)
	if kind == "plaintext" {
		data["plaintext"] = base64.StdEncoding.EncodeToString(r.Plaintext.Reveal())
	}
	return &Answer{Data: data}, nil
}

func (d *Door) exportTransit(ctx context.Context, q *Request) (*Answer, error) {
	version := int64(0)
	switch text := q.Param("version"); text {
	case "":
	case "latest":
		version = -1
	default:
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n < 1 {
			return nil, refuse(http.StatusBadRequest, "invalid version")
		}
		version = n
	}
	keys, err := d.Transit.Export(ctx, q.Caller, q.Mount.ID, q.Param("name"), q.Param("type"), version)
	if err != nil {
		if errors.Is(err, transit.ErrNotAllowed) {
			err = refuse(http.StatusBadRequest, "private key material is not exportable").because(err)
		}
		return nil, err
	}
	k, err := d.Transit.Get(ctx, q.Caller, q.Mount.ID, q.Param("name"))
	if err != nil {
		return nil, err
	}
	shown := map[string]string{}
	for n, s := range keys {
		shown[strconv.FormatInt(n, 10)] = string(s.Reveal())
	}
	return &Answer{Data: map[string]any{"name": k.Name, "type": k.Type, "keys": shown}}, nil
}

func hashOf(_ context.Context, q *Request) (*Answer, error) {
	in := struct {
		Input     *string `json:"input"`
		Algorithm string  `json:"algorithm"`
		Format    string  `json:"format"`
	}{Algorithm: "sha2-256", Format: "hex"}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	if a := q.Param("algorithm"); a != "" {
		in.Algorithm = a
	}
	if in.Input == nil {
		return nil, refuse(http.StatusBadRequest, "missing input")
	}
	b, err := base64.StdEncoding.DecodeString(*in.Input)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "unable to decode input as base64")
	}
	sum, err := transit.Hash(in.Algorithm, b)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "unsupported algorithm %s", strings.ToValidUTF8(in.Algorithm, "?"))
	}
	text, err := written64(in.Format, sum)
	return &Answer{Data: map[string]any{"sum": text}}, err
}

func randomBytes(_ context.Context, q *Request) (*Answer, error) {
	in := struct {
		Bytes  int    `json:"bytes"`
		Format string `json:"format"`
		Source string `json:"source"`
	}{Bytes: 32, Format: "base64"}
	if err := q.Read(&in); err != nil {
		return nil, err
	}
	if text := q.Param("bytes"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			if text == "platform" || text == "seal" || text == "all" { // a source, and the usual number
				n = in.Bytes
			} else {
				return nil, refuse(http.StatusBadRequest, "error parsing url-set byte count")
			}
		}
		in.Bytes = n
	}
	b, err := transit.Random(in.Bytes)
	if err != nil {
		return nil, err
	}
	text, err := written64(in.Format, b)
	return &Answer{Data: map[string]any{"random_bytes": text}}, err
}

// written64 is bytes in the form that was asked for.
func written64(format string, b []byte) (string, error) {
	switch format {
	case "hex":
		return hex.EncodeToString(b), nil
	case "base64":
		return base64.StdEncoding.EncodeToString(b), nil
	}
	return "", refuse(http.StatusBadRequest, "unsupported encoding format %q; must be \"hex\" or \"base64\"", format)
}
