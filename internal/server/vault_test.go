package server_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/policy"
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

// lasts reports whether a credential is good for so many seconds, but for those in
// which it was made.
func lasts(e envelope, seconds float64) bool {
	left, err := strconv.ParseFloat(line(e.All["lease_duration"]), 64)
	return err == nil && left <= seconds && left > seconds-60
}

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
		v.must(200, "POST", "secret/data/zero", `{"data":{"a":"b"}}`)
		for _, what := range []string{"destroy", "delete"} {
			v.must(204, "PUT", "secret/"+what+"/zero", `{"versions":[0,-1]}`)
		}
		v.must(200, "GET", "secret/data/zero", nil)
		v.must(204, "DELETE", "secret/metadata/zero", nil)
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

// V1–V11, V13–V15: the wire.
func TestVaultWire(t *testing.T) {
	dbtest.EachURL(t, func(t *testing.T, database string) {
		h := build(t, database)
		v, nobody := h.vault(), vaultClient{house: h}
		v.must(204, "POST", "sys/mounts/kv", `{"type":"kv"}`)
		v.must(204, "POST", "kv/x", `{"a":"b"}`)

		// V3: whatever is wrong with a token, the answer is one.
		bot := vaultClient{h, h.accessToken("")} // good, and not for this server
		for name, c := range map[string]vaultClient{"no token": nobody, "one that is none": {h, "nonsense"}, "a person's that is none": {h, "est_pt_nonsense"}, "a JWT that is none": {h, "a.b.c"}, "for another resource": bot} {
			for _, path := range []string{"kv/x", "sys/mounts", "nothing/here", "sys/nothing", "auth/nothing", ""} {
				if e := c.call("GET", path, nil); e.Status != 403 || e.Raw != "{\"errors\":[\"permission denied\"]}\n" {
					t.Errorf("%s at %q: %d %s", name, path, e.Status, e.Raw)
				}
			}
		}
		if e := nobody.call("GET", "kv/x", nil, "Authorization", "Bearer "+h.token); e.Status != 200 {
			t.Errorf("the token as Bearer: %d %s", e.Status, e.Raw)
		}
		// V2: nothing is redirected, and there is one spelling.
		for _, path := range []string{"kv/x/", "kv//x", "//kv/x", "kv/%78"} {
			same(t, path, v.must(200, "GET", path, nil).Data, `{"a":"b"}`)
		}
		for _, path := range []string{"kv/../kv/x", "kv/./x", "kv/%2e%2e/x", "kv/a%00b", "kv/%ff"} {
			if e := v.call("GET", path, nil); e.Status != 400 {
				t.Errorf("%s: %d %s, want 400", path, e.Status, e.Raw)
			}
		}
		v.must(204, "POST", "kv//y//z/", `{"c":1}`)
		same(t, "written at a path with two slashes", v.must(200, "GET", "kv/y/z", nil).Data, `{"c":1}`)
		v.says(405, "unsupported operation", "OPTIONS", "kv/x", nil)
		v.says(404, "no handler for route", "GET", "elsewhere/x", nil)

		// V5, V6: query parameters are fields; help is a text.
		if e := v.must(200, "GET", "sys/mounts?help=1", nil); e.All["help"] == nil {
			t.Errorf("help: %s", e.Raw)
		}
		if e := v.must(200, "GET", "kv/x?stray=1", nil); len(e.Warnings) != 0 && !strings.Contains(e.Warnings[0], "stray") {
			t.Errorf("a stray parameter: %v", e.Warnings)
		}

		// V8, V13–V15: how the server stands, without a token.
		health := nobody.must(200, "GET", "sys/health", nil).All
		if line(health["initialized"], health["sealed"], health["standby"], health["version"], health["replication_dr_mode"]) != "true false false 1.15.0 disabled" || health["request_id"] != nil || health["cluster_id"] == "" {
			t.Errorf("the health is %v", health)
		}
		if e := nobody.call("HEAD", "sys/health?activecode=299&sealedcode=299", nil); e.Status != 299 || e.Raw != "" {
			t.Errorf("the health by another code: %d %s", e.Status, e.Raw)
		}
		status := nobody.must(200, "GET", "sys/seal-status", nil).All
		for _, k := range []string{"type", "initialized", "sealed", "t", "n", "progress", "nonce", "version", "build_date", "migration", "cluster_name", "cluster_id", "recovery_seal", "storage_type"} {
			if status[k] == nil {
				t.Errorf("the seal status has no %s: %v", k, status)
			}
		}
		if status["version"] != "1.15.0" || status["type"] != "file" {
			t.Errorf("the seal status is %v", status)
		}
		same(t, "unsealing", nobody.must(200, "PUT", "sys/unseal", `{"key":"x"}`).All["sealed"], `false`)
		same(t, "the start", nobody.must(200, "GET", "sys/init", nil).All, `{"initialized":true}`)
		nobody.says(400, "already initialized", "PUT", "sys/init", `{"secret_shares":1}`)
		if l := nobody.must(200, "GET", "sys/leader", nil).All; line(l["ha_enabled"], l["is_self"]) != "false true" || !strings.HasSuffix(fmt.Sprint(l["leader_address"]), "/vault") {
			t.Errorf("the leader is %v", l)
		}
		v.says(400, "not sealed from here", "PUT", "sys/seal", nil)
		before := v.must(200, "GET", "sys/key-status", nil)
		v.must(204, "PUT", "sys/rotate", nil)
		after := v.must(200, "GET", "sys/key-status", nil)
		if after.All["install_time"] == nil || line(after.Data["term"]) <= line(before.Data["term"]) && database[:6] == "sqlite" {
			t.Errorf("rotated from %s to %s", before.Raw, after.Raw)
		}
		same(t, "what was sealed before", v.must(200, "GET", "kv/x", nil).Data, `{"a":"b"}`)

		// V34: devices stand behind our log; files need a folder of the operator's.
		same(t, "the audit devices", v.must(200, "GET", "sys/audit", nil).Data, `{}`)
		v.says(400, "--vault-audit-dir", "PUT", "sys/audit/file", `{"type":"file","options":{"file_path":"/tmp/x"}}`)
		v.says(400, "unknown backend type", "PUT", "sys/audit/x", `{"type":"x"}`)
		v.says(400, "log_raw", "PUT", "sys/audit/x", `{"type":"socket","options":{"address":"127.0.0.1:1","log_raw":true}}`)
		v.says(400, "unknown audit backend", "POST", "sys/audit-hash/file", `{"input":"x"}`)
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		options := `{"address":"` + listener.Addr().String() + `","socket_type":"tcp","hmac_accessor":"true"}`
		v.must(204, "PUT", "sys/audit/team/socket", `{"type":"socket","description":"d","options":`+options+`,"local":true}`)
		v.says(400, "path already in use", "PUT", "sys/audit/team/socket", `{"type":"socket","options":`+options+`}`)
		devices := v.must(200, "GET", "sys/audit", nil)
		same(t, "the audit devices", devices.Data, `{"team/socket/":{"type":"socket","description":"d","options":`+options+`,"path":"team/socket/","local":true}}`)
		if _, top := devices.All["team/socket/"]; !top {
			t.Errorf("the devices are not at the top too: %s", devices.Raw)
		}
		hash := v.must(200, "POST", "sys/audit-hash/team/socket", `{"input":"x"}`)
		if !strings.HasPrefix(hash.text("hash"), "hmac-sha256:") {
			t.Errorf("a hash: %s", hash.Raw)
		}
		v.must(204, "DELETE", "sys/audit/team/socket", nil)
		v.must(204, "DELETE", "sys/audit/team/socket", nil)
		same(t, "the audit devices", v.must(200, "GET", "sys/audit", nil).Data, `{}`)
		v.says(400, "Could not find header in config", "GET", "sys/config/auditing/request-headers/X-A", nil)
		v.must(204, "POST", "sys/config/auditing/request-headers/X-A", `{"hmac":true}`)
		same(t, "a header", v.must(200, "GET", "sys/config/auditing/request-headers/X-A", nil).Data, `{"X-A":{"hmac":true}}`)
		same(t, "the headers", v.must(200, "GET", "sys/config/auditing/request-headers", nil).Data, `{"headers":{"x-a":{"hmac":true}}}`)
		v.must(204, "DELETE", "sys/config/auditing/request-headers/X-A", nil)
		same(t, "the headers", v.must(200, "GET", "sys/config/auditing/request-headers", nil).Data, `{"headers":{}}`)

		// V11: namespaces are tenants.
		acme := h.found("acme")
		theirs := vaultClient{h, acme.token}
		if e := theirs.call("GET", "sys/mounts", nil); e.Status != 403 {
			t.Errorf("a person's token of another tenant without its name: %d", e.Status)
		}
		for _, name := range []string{"acme", "acme/", "/acme/"} {
			e := theirs.must(200, "GET", "sys/mounts", nil, "X-Vault-Namespace", name)
			if e.Header.Get("X-Vault-Namespace") != "acme/" || e.All["kv/"] != nil {
				t.Errorf("in the namespace %s: %v %s", name, e.Header, e.Raw)
			}
		}
		below := vaultClient{acme, acme.token} // …/t/acme/vault
		below.must(200, "GET", "sys/mounts", nil)
		below.must(200, "GET", "sys/mounts", nil, "X-Vault-Namespace", "acme")
		for name, c := range map[string]struct {
			client    vaultClient
			namespace string
			status    int
		}{
			"another one's": {v, "acme", 403}, "the default one's": {theirs, "default", 403}, "nobody's": {v, "nowhere", 403}, "one within another": {theirs, "acme/team", 404},
			"below the address of another": {below, "default", 403},
		} {
			if e := c.client.call("GET", "kv/x", nil, "X-Vault-Namespace", c.namespace); e.Status != c.status {
				t.Errorf("the namespace %q, %s: %d %s", c.namespace, name, e.Status, e.Raw)
			}
		}
		v.must(200, "GET", "kv/x", nil, "X-Vault-Namespace", "default", "X-Vault-Request", "true", "X-Vault-Anything", "x")
		nobody.must(200, "GET", "sys/health", nil, "X-Vault-Namespace", "acme")
		// Of one that there is not nothing is looked up for a stranger.
		nobody.must(403, "GET", "sys/health", nil, "X-Vault-Namespace", "nowhere")

		// A wrapping token is good in its own namespace, and beside a token of that.
		in := []string{"X-Vault-Namespace", "acme"}
		ticket := theirs.must(200, "POST", "auth/token/create", `{"policies":["root"]}`, in...).token()
		for _, c := range []struct {
			client vaultClient
			header []string
			status int
		}{{vaultClient{h, ticket}, nil, 200}, {vaultClient{h, ticket}, in, 200}, {nobody, nil, 200}, {nobody, in, 200}, {nobody, []string{"X-Vault-Namespace", "default"}, 400}, {v, nil, 400}} {
			w := theirs.must(200, "POST", "sys/wrapping/wrap", `{"a":1}`, append([]string{"X-Vault-Wrap-TTL", "60"}, in...)...)
			if e := c.client.call("POST", "sys/wrapping/unwrap", `{"token":"`+w.wrapped()["token"].(string)+`"}`, c.header...); e.Status != c.status {
				t.Errorf("unwrapped with %v: %d %s, want %d", c.header, e.Status, e.Raw, c.status)
			}
		}

		// Strangers have nothing kept, and say little.
		nobody.must(200, "GET", "sys/internal/ui/mounts", nil)
		nobody.says(400, "not wrapped", "GET", "sys/internal/ui/mounts", nil, "X-Vault-Wrap-TTL", "60")
		if e := nobody.call("POST", "sys/wrapping/unwrap", `{"token":"`+strings.Repeat("x", 2<<20)+`"}`); e.Status != 413 {
			t.Errorf("two mebibytes of a stranger: %d", e.Status)
		}
		v.says(400, "X-Vault-Wrap-TTL", "GET", "kv/x", nil, "X-Vault-Wrap-TTL", "soon")
	})
}

// V14: the health is for everybody, is nothing but its fields, and its status is the one
// that a client wants to get, whatever it is called there.
func TestVaultHealth(t *testing.T) {
	dbtest.EachURL(t, func(t *testing.T, database string) {
		h := build(t, database)
		var cluster any
		for name, v := range map[string]vaultClient{"nobody": {house: h}, "somebody": h.vault(), "a token that is none": {h, "nonsense"}} {
			e := v.must(200, "GET", "sys/health", nil)
			fields := slices.Sorted(maps.Keys(e.All))
			if want := []string{
				"cluster_id", "cluster_name", "initialized", "performance_standby", "replication_dr_mode", "replication_performance_mode", "sealed", "server_time_utc", "standby", "version",
			}; !slices.Equal(fields, want) {
				t.Errorf("the health for %s has the fields %v, want %v", name, fields, want)
			}
			if cluster == nil {
				cluster = e.All["cluster_id"]
			}
			at, _ := strconv.ParseInt(fmt.Sprint(e.All["server_time_utc"]), 10, 64)
			if d := h.clock.Now().Sub(time.Unix(at, 0)).Abs(); d > time.Minute || e.All["cluster_id"] != cluster || cluster == "" || e.All["cluster_name"] == "" {
				t.Errorf("the health for %s is of %s ago, and of %v %v: %s", name, d, e.All["cluster_name"], e.All["cluster_id"], e.Raw)
			}
			delete(e.All, "server_time_utc")
			delete(e.All, "cluster_id")
			delete(e.All, "cluster_name")
			same(t, "the health", any(e.All), `{"initialized":true,"sealed":false,"standby":false,"performance_standby":false,"replication_performance_mode":"disabled","replication_dr_mode":"disabled","version":"1.15.0"}`)
		}
		nobody := vaultClient{house: h}
		for _, c := range []struct {
			asks string
			want int
		}{
			{"activecode=299", 299},
			{"activecode=204", 204},
			{"activecode=503", 503},
			{"standbyok=true&perfstandbyok=true&standbycode=299&sealedcode=299&uninitcode=299&drsecondarycode=299&performancestandbycode=299", 200}, // it is active, and nothing else
			{"activecode=299&standbyok=true&perfstandbyok=true&standbycode=298&sealedcode=298&uninitcode=298&drsecondarycode=298&performancestandbycode=298", 299},
			{"activecode=", 200},
			{"activecode=ok", 200},
			{"activecode=99", 200}, // what is no status of an answer
			{"activecode=600", 200},
			{"activecode=-1", 200},
		} {
			e := nobody.must(c.want, "GET", "sys/health?"+c.asks, nil)
			if c.want != 204 && e.All["initialized"] != true { // which has no body
				t.Errorf("the health by %s: %s", c.asks, e.Raw)
			}
			if e := nobody.must(c.want, "HEAD", "sys/health?"+c.asks, nil); e.Raw != "" {
				t.Errorf("the head of the health by %s: %s", c.asks, e.Raw)
			}
		}
	})
}

// V16–V19: mounts and ways to log in.
func TestVaultMounts(t *testing.T) {
	dbtest.EachURL(t, func(t *testing.T, database string) {
		h := build(t, database)
		v, nobody := h.vault(), vaultClient{house: h}
		v.must(204, "POST", "sys/mounts/team/kv", `{"type":"kv-v2","description":"the team's","config":{"default_lease_ttl":"1h","max_lease_ttl":7200,"force_no_cache":true,"audit_non_hmac_request_keys":["a","b"],"listing_visibility":"hidden"},"local":true,"seal_wrap":true,"options":{"x":"y"}}`)
		e := v.must(200, "GET", "sys/mounts/team/kv", nil)
		accessor, _ := e.Data["accessor"].(string)
		id, _ := e.Data["uuid"].(string)
		if !strings.HasPrefix(accessor, "kv_") || len(accessor) != 11 || len(id) != 36 {
			t.Errorf("accessor %q, uuid %q", accessor, id)
		}
		want := `{"type":"kv","description":"the team's","accessor":"` + accessor + `","uuid":"` + id + `","local":true,"seal_wrap":true,"external_entropy_access":false,
			"options":{"version":"2","x":"y"},"config":{"default_lease_ttl":3600,"max_lease_ttl":7200,"force_no_cache":true,"audit_non_hmac_request_keys":["a","b"],"listing_visibility":"hidden"},
			"deprecation_status":"supported","plugin_version":"","running_plugin_version":"v1.15.0+builtin.vault","running_sha256":""}`
		same(t, "a mount", e.Data, want)
		e = v.must(200, "GET", "sys/mounts", nil)
		same(t, "the mount at the top of the list", e.All["team/kv/"], want) // V8
		for _, path := range []string{"sys/", "cubbyhole/"} {
			if m, _ := e.Data[path].(map[string]any); m == nil || m["options"] != nil {
				t.Errorf("%s is listed as %v", path, m)
			}
		}
		if e = v.must(200, "GET", "sys/auth", nil); e.Data["token/"] == nil || e.Data["token/"].(map[string]any)["config"].(map[string]any)["token_type"] != "default-service" {
			t.Errorf("the ways to log in: %s", e.Raw)
		}
		// V17: the words that clients look for.
		v.says(400, "path is already in use at team/kv/", "POST", "sys/mounts/team/kv", `{"type":"kv"}`)
		v.says(400, "path is already in use at team/kv/", "POST", "sys/mounts/team", `{"type":"kv"}`)
		v.says(400, "path is already in use at team/kv/", "POST", "sys/mounts/team/kv/deeper", `{"type":"kv"}`)
		v.says(400, "path is already in use at sys/", "POST", "sys/mounts/sys", `{"type":"kv"}`)
		v.says(400, "cannot be mounted", "POST", "sys/mounts/x", `{"type":"totp"}`)
		v.says(400, "cannot lie", "POST", "sys/mounts/identity", `{"type":"kv"}`)
		v.says(400, "No secret engine mount at nothing/", "GET", "sys/mounts/nothing", nil)
		v.says(400, "No secret engine mount at auth/nothing/", "GET", "sys/mounts/auth/nothing", nil)
		v.says(400, "No auth engine at nothing/", "GET", "sys/auth/nothing", nil)
		v.must(204, "DELETE", "sys/mounts/nothing", nil)
		v.must(204, "DELETE", "sys/auth/nothing", nil)
		v.says(400, "can be neither disabled nor moved", "DELETE", "sys/mounts/sys", nil)
		v.must(200, "GET", "sys/mounts/auth/token", nil)
		v.must(200, "GET", "sys/mounts/auth/token/tune", nil)
		v.must(200, "GET", "sys/auth/token/tune", nil)

		// V18: what is absent stays, what is empty is reset.
		same(t, "tuned", v.must(200, "GET", "sys/mounts/team/kv/tune", nil).Data, `{"default_lease_ttl":3600,"max_lease_ttl":7200,"description":"the team's","force_no_cache":true,"options":{"version":"2","x":"y"},"audit_non_hmac_request_keys":["a","b"],"listing_visibility":"hidden"}`)
		v.must(204, "POST", "sys/mounts/team/kv/tune", `{"default_lease_ttl":"","max_lease_ttl":"system","audit_non_hmac_request_keys":"","listing_visibility":"","options":{"x":"z"},"passthrough_request_headers":["X-A"]}`)
		same(t, "reset", v.must(200, "GET", "sys/mounts/team/kv/tune", nil).Data, `{"default_lease_ttl":2764800,"max_lease_ttl":2764800,"description":"the team's","force_no_cache":true,"options":{"version":"2","x":"z"},"passthrough_request_headers":["X-A"]}`)
		v.must(204, "POST", "sys/mounts/team/kv/tune", `{"default_lease_ttl":"3600s"}`)
		same(t, "stored as it is set", v.must(200, "GET", "sys/mounts/team/kv", nil).Data["config"], `{"default_lease_ttl":3600,"max_lease_ttl":0,"force_no_cache":true,"passthrough_request_headers":["X-A"]}`)
		v.says(400, "longer than max_lease_ttl", "POST", "sys/mounts/team/kv/tune", `{"default_lease_ttl":"2h","max_lease_ttl":"1h"}`)
		v.says(400, "cannot become", "POST", "sys/mounts/team/kv/tune", `{"options":{"version":"1"}}`)
		v.must(204, "POST", "sys/mounts/auth/token/tune", `{"description":"ours","token_type":"default-batch"}`)
		if d := v.must(200, "GET", "sys/auth/token/tune", nil).Data; line(d["description"], d["token_type"]) != "ours default-batch" {
			t.Errorf("the tuned token/ is %v", d)
		}

		// V18: what is moved stays what it is.
		v.must(200, "POST", "team/kv/data/a", `{"data":{"k":"v"}}`)
		move := v.must(200, "POST", "sys/remount", `{"from":"team/kv","to":"blue/kv"}`).Data["migration_id"]
		state := v.must(200, "GET", "sys/remount/status/"+fmt.Sprint(move), nil).Data["migration_info"]
		same(t, "the move", state, `{"source_mount":"team/kv/","target_mount":"blue/kv/","status":"success"}`)
		same(t, "what lies below it", v.must(200, "GET", "blue/kv/data/a", nil).Data["data"], `{"k":"v"}`)
		if m := v.must(200, "GET", "sys/mounts/blue/kv", nil).Data; m["accessor"] != accessor || m["uuid"] != id {
			t.Errorf("the moved mount is another one: %v", m)
		}
		v.says(404, "", "GET", "sys/remount/status/none", nil)
		v.says(400, "no matching mount", "POST", "sys/remount", `{"from":"team/kv","to":"x"}`)
		v.says(400, "neither disabled nor moved", "POST", "sys/remount", `{"from":"sys","to":"x"}`)
		v.says(400, "stays below auth/", "POST", "sys/remount", `{"from":"blue/kv","to":"auth/x"}`)
		v.says(400, "in use at cubbyhole/", "POST", "sys/remount", `{"from":"blue/kv","to":"cubbyhole/x"}`)
		// A mount where another one was shows nothing of it.
		v.must(204, "POST", "sys/mounts/team/kv", `{"type":"kv-v2"}`)
		v.must(404, "GET", "team/kv/data/a", nil)
		v.must(200, "POST", "team/kv/data/a", `{"data":{"k":"new"}}`)
		same(t, "what was moved", v.must(200, "GET", "blue/kv/data/a", nil).Data["data"], `{"k":"v"}`)
		v.must(204, "DELETE", "sys/mounts/team/kv", nil)
		same(t, "after its namesake has gone", v.must(200, "GET", "blue/kv/data/a", nil).Data["data"], `{"k":"v"}`)

		// V19: a mount is shown to who reaches it, and to everybody if it says so.
		d := v.must(200, "GET", "sys/internal/ui/mounts/blue/kv/data/whatever", nil).Data
		if line(d["path"], d["type"], d["options"].(map[string]any)["version"]) != "blue/kv/ kv 2" {
			t.Errorf("the mount of a path: %v", d)
		}
		v.says(403, "preflight capability check returned 403", "GET", "sys/internal/ui/mounts/nothing/x", nil)
		if e := nobody.must(200, "GET", "sys/internal/ui/mounts", nil); line(e.Data["auth"], e.Data["secret"]) != "map[] map[]" {
			t.Errorf("what nobody is shown: %s", e.Raw)
		}
		v.must(204, "POST", "sys/mounts/blue/kv/tune", `{"listing_visibility":"unauth"}`)
		same(t, "what everybody is shown", nobody.must(200, "GET", "sys/internal/ui/mounts", nil).Data["secret"], `{"blue/kv/":{"type":"kv","description":"the team's","options":{"version":"2","x":"z"}}}`)

		// What a gateway needs is not removed along with a mount.
		h.must(http.MethodPatch, "/v1/secret?path=team/kv/a", map[string]any{"destinations": []string{"crm.example"}}, nil)
		v.says(400, "may be sent to crm.example:443", "DELETE", "sys/mounts/blue/kv", nil)
		h.must(http.MethodPatch, "/v1/secret?path=team/kv/a", map[string]any{"destinations": []string{}}, nil)
		v.must(204, "DELETE", "sys/mounts/blue/kv", nil)
		v.says(404, "no handler", "GET", "blue/kv/data/a", nil)
		if status, b := h.do("GET", "/v1/secret?path=team/kv/a", h.token, nil); status != 404 {
			t.Errorf("the secret of a mount that is gone: %d %s", status, b)
		}
	})
}

// V20: policies are kept as they are written.
func TestVaultPolicies(t *testing.T) {
	dbtest.EachURL(t, func(t *testing.T, database string) {
		h := build(t, database)
		v := h.vault()
		same(t, "the policies of an organisation that has none", v.must(200, "LIST", "sys/policies/acl", nil).Data["keys"], `["default","root"]`)
		text := "# mine\n\npath \"secret/*\" {\n\tcapabilities = [ \"read\",   \"list\" ]  \n}\n\n\n"
		v.must(204, "PUT", "sys/policies/acl/Team", map[string]string{"policy": text})
		if got := v.must(200, "GET", "sys/policies/acl/team", nil).Data; got["policy"] != text || got["name"] != "team" {
			t.Errorf("read back: %q, want %q", got["policy"], text)
		}
		if e := v.must(200, "GET", "sys/policy/TEAM", nil); e.Data["rules"] != text || e.All["rules"] != text || e.Data["policy"] != nil {
			t.Errorf("read back the older way: %s", e.Raw)
		}
		v.must(204, "POST", "sys/policy/old", map[string]string{"rules": `{"path":{"a/*":{"policy":"write"}}}`})
		v.must(204, "POST", "sys/policies/acl/b64", map[string]string{"policy": "cGF0aCAieCIgeyBjYXBhYmlsaXRpZXMgPSBbInJlYWQiXSB9"})
		if got := v.must(200, "GET", "sys/policies/acl/b64", nil).Data["policy"]; got != `path "x" { capabilities = ["read"] }` {
			t.Errorf("sent in base64: %q", got)
		}
		e := v.must(200, "GET", "sys/policy", nil)
		same(t, "all of them", e.All["policies"], `["b64","default","old","root","team"]`)
		for name, text := range map[string]string{
			"a capability": `path "a" { capabilities = ["fly"] }`, "a member": `path "a" { kapabilities = ["read"] }`, "a block": `bath "a" { capabilities = ["read"] }`,
			"HCL": `path "a" {`, "a template": `path "secret/{{identity.entity.id}}/*" { capabilities = ["read"] }`, "a wildcard": `path "a/+*" { capabilities = ["read"] }`, "nothing": ``,
		} {
			if e := v.call("PUT", "sys/policies/acl/bad", map[string]string{"policy": text}); e.Status != 400 {
				t.Errorf("a policy with wrong %s: %d %s", name, e.Status, e.Raw)
			}
		}
		v.says(400, `cannot update "root" policy`, "PUT", "sys/policies/acl/root", map[string]string{"policy": text})
		v.says(400, `cannot delete "default" policy`, "DELETE", "sys/policies/acl/default", nil)
		v.says(400, `cannot delete "root" policy`, "DELETE", "sys/policy/root", nil)
		v.must(204, "DELETE", "sys/policies/acl/team", nil)
		v.must(204, "DELETE", "sys/policies/acl/team", nil)
		if e := v.must(404, "GET", "sys/policies/acl/team", nil); e.Raw != "{\"errors\":[]}\n" {
			t.Errorf("a policy that is gone: %s", e.Raw)
		}
		e = v.must(200, "POST", "sys/capabilities-self", `{"path":"secret/x"}`)
		same(t, "what an access token may do", e.All["capabilities"], `["root"]`)
		same(t, "at several paths", v.must(200, "POST", "sys/capabilities-self", `{"paths":["a","/b"]}`).Data, `{"a":["root"],"/b":["root"]}`)
		same(t, "of another token", v.must(200, "POST", "sys/capabilities", map[string]any{"token": h.token, "paths": "a"}).Data, `{"a":["root"],"capabilities":["root"]}`)
		v.says(400, "invalid token", "POST", "sys/capabilities", `{"token":"x","path":"a"}`)
		v.says(400, "paths", "POST", "sys/capabilities-self", `{}`)

		// T2: policies see one spelling, and the one in which a name is kept.
		v.must(204, "POST", "sys/mounts/kv", `{"type":"kv"}`)
		v.must(204, "POST", "kv/open", `{"a":"b"}`)
		v.must(204, "POST", "kv/locked", `{"a":"b"}`)
		v.must(204, "POST", "kv/in/config", `{"a":"b"}`)
		v.must(204, "POST", "sys/auth/approle", `{"type":"approle"}`)
		v.must(204, "POST", "auth/approle/role/prod", `{"token_policies":["x"]}`)
		v.must(204, "PUT", "sys/policies/acl/one", map[string]string{"policy": `
path "kv/*"                    { capabilities = ["read", "list"] }
path "kv/locked"               { capabilities = ["deny"] }
path "kv/+/config"             { capabilities = ["deny"] }
path "sys/policies/acl/*"      { capabilities = ["read"] }
path "sys/policies/acl/old"    { capabilities = ["deny"] }
path "sys/policy/*"            { capabilities = ["read"] }
path "sys/policy/old"          { capabilities = ["deny"] }
path "auth/approle/role/*"     { capabilities = ["read"] }
path "auth/approle/role/prod*" { capabilities = ["deny"] }
path "sys/mounts/*"            { capabilities = ["create", "read", "update", "delete"] }
path "auth/token/create"       { capabilities = ["update"] }
path "sys/wrapping/*"          { capabilities = ["update"] }
`})
		made := v.must(200, "POST", "auth/token/create", `{"policies":["one"]}`)
		bound := v.as(made.token())
		for path, status := range map[string]int{
			"kv/open": 200, "kv/open/": 200, "kv//open": 200, "kv/locked": 403, "kv/locked/": 403, "kv//locked//": 403, "kv/in/config": 403, "kv/in/config/": 403, "kv/lock%65d/": 403,
			"sys/policies/acl/one": 200, "sys/policies/acl/ONE": 200, "sys/policies/acl/old": 403, "sys/policies/acl/OLD": 403, "sys/policies/acl/%20old": 403, "sys/policies/acl/old/": 403,
			"sys/policy/Old": 403, "auth/approle/role/prod": 403, "auth/approle/role/PROD": 403, "auth/approle/role/Prod/role-id/": 403, "auth/approle/role/none": 404,
		} {
			if e := bound.call("GET", path, nil); e.Status != status {
				t.Errorf("%s under policies that deny some of it: %d %s, want %d", path, e.Status, e.Raw, status)
			}
		}
		// What sys/auth wants sudo for, sys/mounts/auth does not give without.
		bound.must(204, "POST", "sys/mounts/other", `{"type":"kv"}`)
		bound.says(403, "permission denied", "POST", "sys/mounts/auth/second", `{"type":"approle"}`)
		bound.says(403, "permission denied", "DELETE", "sys/mounts/auth/approle", nil)
		v.must(204, "POST", "sys/mounts/auth/second", `{"type":"approle"}`)
		accessor, _ := made.auth()["accessor"].(string)
		same(t, "what the token of an accessor may do", v.must(200, "POST", "sys/capabilities-accessor", `{"accessor":"`+accessor+`","path":"kv/open"}`).All["capabilities"], `["list","read"]`)
		// Which role a token is made by stands in the path, where policies see it.
		v.must(204, "POST", "auth/token/roles/big", `{"allowed_policies":["ops"]}`)
		same(t, "made by a role that is named in the body", bound.must(200, "POST", "auth/token/create", `{"role_name":"big"}`).auth()["policies"], `["default","one"]`)
		v.must(204, "PUT", "sys/policies/acl/two", map[string]string{"policy": `path "auth/token/create/big" { capabilities = ["update"] }`})
		by := v.as(v.must(200, "POST", "auth/token/create", `{"policies":["two"]}`).token())
		same(t, "made by a role", by.must(200, "POST", "auth/token/create/big", nil).auth()["policies"], `["default","ops"]`)
		by.says(400, "periodic", "POST", "auth/token/create/big", `{"period":"1h"}`)

		recipe := "length = 20\nrule \"charset\" { charset = \"abc\" min-chars = 1 }\nrule \"charset\" { charset = \"0123456789\" min-chars = 3 }"
		v.must(404, "LIST", "sys/policies/password", nil)
		v.must(204, "PUT", "sys/policies/password/p", map[string]string{"policy": recipe})
		if got := v.must(200, "GET", "sys/policies/password/p", nil).Data["policy"]; got != recipe {
			t.Errorf("a policy of passwords read back: %q", got)
		}
		password, _ := v.must(200, "GET", "sys/policies/password/p/generate", nil).Data["password"].(string)
		if len(password) != 20 || strings.Trim(password, "abc0123456789") != "" || strings.Count(strings.Trim(password, ""), "a")+strings.Count(password, "b")+strings.Count(password, "c") < 1 {
			t.Errorf("a password: %q", password)
		}
		for name, text := range map[string]string{"too short": "length = 3\nrule \"charset\" { charset = \"abc\" }", "no rule": "length = 20", "too much wanted": "length = 4\nrule \"charset\" { charset = \"abc\" min-chars = 5 }"} {
			if e := v.call("PUT", "sys/policies/password/bad", map[string]string{"policy": text}); e.Status != 400 {
				t.Errorf("a policy of passwords, %s: %d %s", name, e.Status, e.Raw)
			}
		}
		v.must(204, "DELETE", "sys/policies/password/p", nil)
		v.must(404, "GET", "sys/policies/password/p/generate", nil)
	})
}

// D8, H3: an agent reads what the organisation's own policy lets it read, for the
// purpose of its session, and as long as that goes on.
func TestVaultAgent(t *testing.T) {
	dbtest.EachURL(t, func(t *testing.T, database string) {
		h := build(t, database)
		v := h.vault()
		v.must(204, "POST", "sys/mounts/team", `{"type":"kv-v2"}`)
		v.must(200, "POST", "team/data/app/db", `{"data":{"user":"app"}}`)
		v.must(200, "POST", "team/data/other", `{"data":{"user":"other"}}`)
		bot := vaultClient{h, h.apiToken()}
		bot.says(403, "permission denied", "GET", "team/data/app/db", nil)
		h.activate(append(policy.Starter(), policy.File{Path: "settings.rego", Text: `# METADATA
# title: Settings
# description: What programs read themselves.
package tenant.settings

# METADATA
# title: The settings of the team are the agents' own
permit contains "settings" if {
	input.op in {"secret.read", "secret.list", "secret.write", "secret.create", "secret.delete"}
	startswith(input.resource.id, "secret:team/app/")
	input.agent.blueprint == "support"
	input.facts.purpose_ok == true
}
`}))
		same(t, "a secret that it may read", bot.must(200, "GET", "team/data/app/db", nil).Data["data"], `{"user":"app"}`)
		bot.says(403, "permission denied", "GET", "team/data/other", nil)
		same(t, "a folder that it may see", bot.must(200, "LIST", "team/metadata/app", nil).Data["keys"], `["db"]`)
		bot.says(403, "permission denied", "LIST", "team/metadata", nil)
		bot.must(404, "GET", "team/data/app/nothing", nil)
		bot.must(200, "POST", "team/data/app/mine", `{"data":{"k":"v"}}`)
		bot.must(204, "DELETE", "team/data/app/mine", nil)
		bot.must(404, "GET", "team/data/app/mine", nil)
		bot.says(403, "permission denied", "DELETE", "team/metadata/app/mine", nil)
		bot.must(200, "GET", "sys/internal/ui/mounts/team/app/db", nil)
		bot.says(403, "permission denied", "GET", "sys/mounts", nil)
		// Its sponsor answers for what it makes, and its reads are its session's.
		var one struct{ Owner string }
		h.must(http.MethodGet, "/v1/secret?path=team/app/mine", nil, &one)
		var uses struct {
			Items []struct{ Subject, Session, Via string }
		}
		h.must(http.MethodGet, "/v1/secret-uses?subject=agent:"+h.agent, nil, &uses)
		if !strings.HasPrefix(one.Owner, "user:usr_") || one.Owner == "" || len(uses.Items) == 0 || uses.Items[0].Session == "" || uses.Items[0].Via != "plaintext" {
			t.Errorf("the owner is %q, the uses are %+v", one.Owner, uses)
		}
		h.must(http.MethodPost, "/v1/containments", map[string]string{"scope": "agent", "target": h.agent, "reason": "a test"}, nil)
		bot.says(403, "permission denied", "GET", "team/data/app/db", nil)
	})
}

// V34: what was noted of requests stands in the lines of devices, also of a log-in.
func TestVaultAuditLines(t *testing.T) {
	dbtest.EachURL(t, func(t *testing.T, database string) {
		v := build(t, database).vault()
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		lines := make(chan string, 1000)
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				all := bufio.NewScanner(conn)
				all.Buffer(nil, 1<<20)
				for all.Scan() {
					lines <- all.Text()
				}
				_ = conn.Close()
			}
		}()
		v.must(204, "PUT", "sys/audit/socket", `{"type":"socket","options":{"address":"`+listener.Addr().String()+`"}}`)
		v.must(204, "POST", "sys/config/auditing/request-headers/X-Trace", `{"hmac":false}`)
		v.must(204, "POST", "sys/config/auditing/request-headers/X-Vault-Token", `{"hmac":true}`)
		v.says(400, "hmac=true", "POST", "sys/config/auditing/request-headers/X-Vault-Token", `{}`)
		v.must(204, "PUT", "sys/policies/acl/lines", `{"policy":"path \"kv/*\" { capabilities = [\"create\",\"read\",\"update\"] }"}`)
		v.must(204, "POST", "sys/mounts/kv", `{"type":"kv","config":{"audit_non_hmac_request_keys":["labels"]}}`)
		v.must(204, "POST", "sys/auth/approle", `{"type":"approle"}`)
		v.must(204, "POST", "auth/approle/role/app", `{"token_policies":"lines"}`)
		made := v.must(200, "POST", "auth/token/create", `{"policies":["lines"]}`)
		token := made.token()
		vaultClient{v.house, token}.must(204, "POST", "kv/a", `{"x":"c4nary"}`, "X-Trace", "written")
		role := v.must(200, "GET", "auth/approle/role/app/role-id", nil).text("role_id")
		secret := v.must(200, "POST", "auth/approle/role/app/secret-id", `{}`).text("secret_id")
		v.must(200, "POST", "auth/approle/login", `{"role_id":"`+role+`","secret_id":"`+secret+`"}`, "X-Trace", "logged-in")
		hash := v.must(200, "POST", "sys/audit-hash/socket", map[string]string{"input": token}).text("hash")
		accessor := v.must(200, "POST", "sys/audit-hash/socket", map[string]any{"input": made.All["auth"].(map[string]any)["accessor"]}).text("hash")
		type line struct {
			Auth struct {
				Policies []string
				Accessor string
			}
			Request struct {
				Point   string `json:"mount_point"`
				Headers map[string][]string
			}
			Response struct{ Data map[string]string }
		}
		seen := map[string]line{}
		for deadline := time.After(30 * time.Second); seen["written secret.write"].Auth.Policies == nil || seen["logged-in ticket.login"].Request.Point == ""; {
			select {
			case text := <-lines:
				if strings.Contains(text, "c4nary") || strings.Contains(text, token) || strings.Contains(text, secret) {
					t.Errorf("a line tells a secret: %s", text)
				}
				var l line
				if err := json.Unmarshal([]byte(text), &l); err != nil {
					t.Fatalf("%s: %v", text, err)
				}
				for _, trace := range l.Request.Headers["x-trace"] {
					seen[trace+" "+l.Response.Data["action"]] = l
				}
			case <-deadline:
				t.Fatalf("of two requests the lines %+v were seen", seen)
			}
		}
		if w := seen["written secret.write"]; !slices.Equal(w.Auth.Policies, []string{"default", "lines"}) || w.Auth.Accessor != accessor || w.Request.Point != "kv/" || !slices.Equal(w.Request.Headers["x-vault-token"], []string{hash}) {
			t.Errorf("the line of a request is %+v, want the accessor %s and the token %s", w, accessor, hash)
		}
		if l := seen["logged-in ticket.login"]; l.Request.Point != "auth/approle/" {
			t.Errorf("the line of a log-in is %+v", l)
		}
	})
}
