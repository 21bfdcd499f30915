package server_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"estover.dev/internal/db/dbtest"
)

// A vaultClient speaks to the door as clients of Vault do.
type vaultClient struct {
	*house
	key string // its token
}

// vault is a client with the administrator's token.
func (h *house) vault() vaultClient { return vaultClient{h, h.token} }

// An envelope is what the door answers.
type envelope struct {
	Status   int
	Header   http.Header
	Raw      string
	All      map[string]any
	Data     map[string]any
	Warnings []string
	Errors   []string
}

// call sends a request below /v1/. A body that is text is sent as it is.
func (v vaultClient) call(method, path string, body any, header ...string) envelope {
	v.t.Helper()
	var b []byte
	switch body := body.(type) {
	case nil:
	case string:
		b = []byte(body)
	default:
		var err error
		if b, err = json.Marshal(body); err != nil {
			v.t.Fatal(err)
		}
	}
	req, err := http.NewRequest(method, "http://"+v.addr+"/vault/v1/"+path, bytes.NewReader(b))
	if err != nil {
		v.t.Fatal(err)
	}
	if v.key != "" {
		req.Header.Set("X-Vault-Token", v.key)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	res, err := client.Do(req)
	if err != nil {
		v.t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		v.t.Fatal(err)
	}
	e := envelope{Status: res.StatusCode, Header: res.Header, Raw: string(raw)}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if d.Decode(&e.All) == nil {
		e.Data, _ = e.All["data"].(map[string]any)
		for _, w := range list(e.All["warnings"]) {
			e.Warnings = append(e.Warnings, fmt.Sprint(w))
		}
		for _, w := range list(e.All["errors"]) {
			e.Errors = append(e.Errors, fmt.Sprint(w))
		}
	}
	return e
}

// line is values with blanks between them.
func line(v ...any) string { return strings.TrimSpace(fmt.Sprintln(v...)) }

func list(v any) []any { l, _ := v.([]any); return l }

// must is call for what has to have this status.
func (v vaultClient) must(status int, method, path string, body any, header ...string) envelope {
	v.t.Helper()
	e := v.call(method, path, body, header...)
	if e.Status != status {
		v.t.Fatalf("%s %s: %d %s, want %d", method, path, e.Status, e.Raw, status)
	}
	return e
}

// says is call for what has to be refused with a sentence that has these words.
func (v vaultClient) says(status int, words, method, path string, body any, header ...string) {
	v.t.Helper()
	e := v.call(method, path, body, header...)
	if e.Status != status || !strings.Contains(strings.Join(e.Errors, "; "), words) || e.All["errors"] == nil {
		v.t.Errorf("%s %s: %d %s, want %d %q", method, path, e.Status, e.Raw, status, words)
	}
}

// same compares what was read with JSON.
func same(t *testing.T, what string, got any, want string) {
	t.Helper()
	var w any
	d := json.NewDecoder(strings.NewReader(want))
	d.UseNumber()
	if err := d.Decode(&w); err != nil {
		t.Fatalf("%s: %v", want, err)
	}
	if !reflect.DeepEqual(got, w) {
		b, _ := json.Marshal(got)
		t.Errorf("%s: %s, want %s", what, b, want)
	}
}

func TestVaultKV2(t *testing.T) {
	dbtest.EachURL(t, func(t *testing.T, database string) {
		v := build(t, database).vault()
		v.must(204, "POST", "sys/mounts/secret", `{"type":"kv-v2","description":"d"}`)
		// V28: a write just after enabling succeeds at once. V27: it answers the
		// metadata; stray fields and null options are fine.
		e := v.must(200, "POST", "secret/data/team/db", `{"data":{"port":5432.0,"user":"ann","big":12345678901234567890,"on":true,"none":null,"l":[1,"2"]},"options":null,"stray":1}`)
		made, _ := e.Data["created_time"].(string)
		if _, err := time.Parse(time.RFC3339Nano, made); err != nil || !strings.HasSuffix(made, "Z") {
			t.Errorf("created_time is %q", made)
		}
		same(t, "the answer to a write", e.Data, `{"version":1,"created_time":"`+made+`","deletion_time":"","destroyed":false,"custom_metadata":null}`)
		if len(e.Warnings) != 1 || !strings.Contains(e.Warnings[0], "[stray]") { // V6
			t.Errorf("the warnings of a stray field: %v", e.Warnings)
		}
		e = v.must(200, "GET", "secret/data/team/db", nil)
		same(t, "a version", e.Data, `{"data":{"port":5432.0,"user":"ann","big":12345678901234567890,"on":true,"none":null,"l":[1,"2"]},
			"metadata":{"version":1,"created_time":"`+made+`","deletion_time":"","destroyed":false,"custom_metadata":null}}`)
		if !strings.Contains(e.Raw, `"data":{"data":{"port":5432.0,"user":"ann","big":12345678901234567890,`) { // V4
			t.Errorf("the values are not as they were written: %s", e.Raw)
		}
		// V7: the envelope has all keys.
		for _, k := range []string{"request_id", "lease_id", "renewable", "lease_duration", "data", "wrap_info", "warnings", "auth"} {
			if _, ok := e.All[k]; !ok {
				t.Errorf("the envelope has no %s: %s", k, e.Raw)
			}
		}
		if e.Header.Get("Cache-Control") != "no-store" || e.Header.Get("Content-Type") != "application/json" {
			t.Errorf("the head of an answer: %v", e.Header)
		}

		// V27: check and set.
		v.says(400, "check-and-set parameter did not match the current version", "POST", "secret/data/team/db", `{"data":{"a":1},"options":{"cas":0}}`)
		v.must(200, "PUT", "secret/data/team/db", `{"data":{"a":"2"},"options":{"cas":"1"}}`)
		v.must(200, "POST", "secret/data/fresh", `{"data":{},"options":{"cas":0}}`)
		v.says(400, "no data provided", "POST", "secret/data/team/db", `{"a":1}`)
		v.must(204, "POST", "secret/config", `{"cas_required":true,"max_versions":"3","delete_version_after":"90s"}`)
		same(t, "the configuration", v.must(200, "GET", "secret/config", nil).Data, `{"cas_required":true,"max_versions":3,"delete_version_after":"1m30s"}`)
		v.says(400, "check-and-set parameter required for this call", "POST", "secret/data/team/db", `{"data":{"a":1}}`)
		v.must(204, "POST", "secret/config", `{"cas_required":"false","delete_version_after":0}`)

		// PATCH merges, and needs its own type (V1).
		v.says(415, "application/merge-patch+json", "PATCH", "secret/data/team/db", `{"data":{"b":{"c":1}}}`)
		merge := []string{"Content-Type", "application/merge-patch+json"}
		v.must(200, "PATCH", "secret/data/team/db", `{"data":{"b":{"c":1,"d":2}}}`, merge...)
		v.must(200, "PATCH", "secret/data/team/db", `{"data":{"a":null,"b":{"d":null}},"options":{"cas":3}}`, merge...)
		same(t, "patched", v.must(200, "GET", "secret/data/team/db", nil).Data["data"], `{"b":{"c":1}}`)
		v.says(404, "", "PATCH", "secret/data/nothing", `{"data":{"b":1}}`, merge...)
		same(t, "the names", v.must(200, "GET", "secret/subkeys/team/db", nil).Data["subkeys"], `{"b":{"c":null}}`)
		same(t, "the names at the top", v.must(200, "GET", "secret/subkeys/team/db?depth=1", nil).Data["subkeys"], `{"b":null}`)

		// V28: three versions are kept of four.
		v.must(204, "POST", "secret/metadata/team/db", `{"max_versions":5,"custom_metadata":{"owner":"blue","n":"1"},"delete_version_after":"3h"}`)
		m := v.must(200, "GET", "secret/metadata/team/db", nil).Data
		versions, _ := m["versions"].(map[string]any)
		if len(versions) != 3 || versions["4"] == nil || versions["1"] != nil || line(m["oldest_version"], m["current_version"], m["max_versions"], m["delete_version_after"]) != "2 4 5 3h0m0s" {
			t.Errorf("the metadata is %v", m)
		}
		same(t, "custom metadata", m["custom_metadata"], `{"owner":"blue","n":"1"}`)
		v.must(204, "PATCH", "secret/metadata/team/db", `{"custom_metadata":{"n":null,"x":"y"},"max_versions":null}`, merge...)
		m = v.must(200, "GET", "secret/metadata/team/db", nil).Data
		same(t, "patched custom metadata", m["custom_metadata"], `{"owner":"blue","x":"y"}`)
		same(t, "it shows in versions too", v.must(200, "GET", "secret/data/team/db", nil).Data["metadata"].(map[string]any)["custom_metadata"], `{"owner":"blue","x":"y"}`)
		if line(m["max_versions"]) != "0" {
			t.Errorf("max_versions after a null is %v", m["max_versions"])
		}

		// V27: deleted and destroyed versions are 404 with what is known of them.
		v.must(204, "DELETE", "secret/data/team/db", nil)
		e = v.must(404, "GET", "secret/data/team/db", nil)
		gone, _ := e.Data["metadata"].(map[string]any)
		if e.Data["data"] != nil || line(gone["version"], gone["destroyed"]) != "4 false" || gone["deletion_time"] == "" {
			t.Errorf("a deleted version: %s", e.Raw)
		}
		v.must(204, "POST", "secret/undelete/team/db", `{"versions":"4,17"}`)
		v.must(200, "GET", "secret/data/team/db?version=4", nil)
		v.must(204, "POST", "secret/delete/team/db", `{"versions":["3"]}`)
		v.must(204, "PUT", "secret/destroy/team/db", `{"versions":[3, 99]}`)
		e = v.must(404, "GET", "secret/data/team/db?version=3", nil)
		if gone, _ = e.Data["metadata"].(map[string]any); line(gone["destroyed"]) != "true" {
			t.Errorf("a destroyed version: %s", e.Raw)
		}
		v.must(204, "POST", "secret/destroy/nothing", `{"versions":[1]}`)
		v.must(204, "POST", "secret/undelete/team/db", `{"versions":[3]}`)
		v.must(404, "GET", "secret/data/team/db?version=3", nil)
		e = v.must(404, "GET", "secret/data/team/db?version=50", nil)
		if e.Raw != "{\"errors\":[]}\n" {
			t.Errorf("a version that is not there: %s", e.Raw)
		}

		// Lists are sorted, folders end with a slash, a name may be both, and the
		// keys may hold anything (V2).
		for _, key := range []string{"team", "Ä b", "a@b:c+d%25", "x.y", "deep/er/still"} {
			v.must(200, "POST", "secret/data/"+strings.ReplaceAll(strings.ReplaceAll(key, " ", "%20"), "Ä", "%C3%84"), `{"data":{"k":"`+key+`"}}`)
		}
		for _, req := range [][2]string{{"LIST", "secret/metadata"}, {"LIST", "secret/metadata/"}, {"GET", "secret/metadata?list=true"}, {"GET", "secret//metadata/?list=true"}} {
			same(t, req[0]+" "+req[1], v.must(200, req[0], req[1], nil).Data["keys"], `["a@b:c+d%","deep/","fresh","team","team/","x.y","Ä b"]`)
		}
		same(t, "a folder", v.must(200, "LIST", "secret/metadata/deep/er", nil).Data["keys"], `["still"]`)
		if e := v.must(404, "LIST", "secret/metadata/nothing", nil); e.Raw != "{\"errors\":[]}\n" {
			t.Errorf("an empty list: %s", e.Raw)
		}
		same(t, "a key with a percent sign", v.must(200, "GET", "secret/data/a@b:c+d%25", nil).Data["data"], `{"k":"a@b:c+d%25"}`)
		v.says(400, "..", "GET", "secret/data/a/%2e%2e/b", nil)

		// Metadata can exist without versions; the whole secret goes with it.
		v.must(204, "POST", "secret/metadata/empty", `{}`)
		if m := v.must(200, "GET", "secret/metadata/empty", nil).Data; line(m["current_version"], m["oldest_version"], m["custom_metadata"], len(m["versions"].(map[string]any))) != "0 0 <nil> 0" {
			t.Errorf("metadata without versions: %v", m)
		}
		v.must(404, "GET", "secret/data/empty", nil)
		v.must(204, "DELETE", "secret/metadata/team/db", nil)
		v.must(204, "DELETE", "secret/metadata/team/db", nil)
		v.must(404, "GET", "secret/metadata/team/db", nil)
		v.must(200, "POST", "secret/data/team/db", `{"data":{"again":1},"options":{"cas":0}}`)
		if n := v.must(200, "HEAD", "secret/data/team/db", nil); n.Raw != "" {
			t.Errorf("HEAD has a body: %s", n.Raw)
		}
		v.says(405, "unsupported operation", "DELETE", "secret/config", nil)

		// The same secret is one of ours, and the gateway could use it.
		var one struct {
			Path  string `json:"path"`
			Owner string `json:"owner"`
		}
		v.house.must(http.MethodGet, "/v1/secret?path=secret/team/db", nil, &one)
		if one.Path != "secret/team/db" || !strings.HasPrefix(one.Owner, "user:") {
			t.Errorf("the secret as it is natively: %+v", one)
		}
		// H3: each read is on record as one.
		var events struct {
			Items []struct{ Action, Target string }
		}
		v.house.must(http.MethodGet, "/v1/events?action=secret.read&limit=200", nil, &events)
		if len(events.Items) < 5 {
			t.Errorf("%d reads are on record", len(events.Items))
		}
		v.must(204, "DELETE", "sys/mounts/secret", nil)
		v.says(404, "no handler for route", "GET", "secret/data/team/db", nil)
		v.must(204, "POST", "sys/mounts/secret", `{"type":"kv","options":{"version":2}}`)
		v.must(404, "LIST", "secret/metadata/", nil)
	})
}

func TestVaultKV1(t *testing.T) {
	dbtest.EachURL(t, func(t *testing.T, database string) {
		v := build(t, database).vault()
		v.must(204, "POST", "sys/mounts/old", `{"type":"kv"}`)
		v.must(204, "POST", "old/a/b", `{"n":1.50,"s":"x","list":[true],"o":{"k":null}}`)
		e := v.must(200, "GET", "old/a/b", nil)
		same(t, "what was written", e.Data, `{"n":1.50,"s":"x","list":[true],"o":{"k":null}}`)
		if line(e.All["lease_duration"], e.All["renewable"], e.All["lease_id"]) != "2764800 false" {
			t.Errorf("the envelope: %s", e.Raw)
		}
		v.must(204, "PUT", "old/a/b", `{"ttl":"1h"}`)
		if e = v.must(200, "GET", "old/a/b/", nil); line(e.All["lease_duration"]) != "3600" {
			t.Errorf("with a ttl: %s", e.Raw)
		}
		v.must(204, "POST", "old/a/b", `{"ttl":"soon"}`)
		if e = v.must(200, "GET", "old/a/b", nil); line(e.All["lease_duration"]) != "2764800" {
			t.Errorf("with a ttl that is none: %s", e.Raw)
		}
		for _, body := range []any{nil, "", "null", "{}", "  {} "} { // V4
			v.says(400, "missing data fields", "POST", "old/a/c", body)
		}
		v.must(204, "POST", "old/a", "x=1&y=2", "Content-Type", "application/x-www-form-urlencoded")
		same(t, "a form", v.must(200, "GET", "old/a", nil).Data, `{"x":"1","y":"2"}`)
		v.must(204, "POST", "old/a", ` {"x":1}`, "Content-Type", "application/x-www-form-urlencoded")
		same(t, "JSON that says it is a form", v.must(200, "GET", "old/a", nil).Data, `{"x":1}`)
		v.says(400, "failed to parse JSON", "POST", "old/a", `[1]`)
		v.says(400, "failed to parse JSON", "POST", "old/a", `{"a":1,"a":2}`)
		v.says(413, "too large", "POST", "old/a", `{"a":"`+strings.Repeat("x", 33<<20)+`"}`)
		same(t, "the list", v.must(200, "LIST", "old", nil).Data["keys"], `["a","a/"]`)
		v.must(204, "DELETE", "old/a/b", nil)
		v.must(204, "DELETE", "old/a/b", nil)
		v.must(404, "GET", "old/a/b", nil)
		v.must(404, "LIST", "old/a", nil)
	})
}
