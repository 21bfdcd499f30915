package e2e

import (
	"archive/zip"
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"html"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"estover.dev/e2e/e2etest"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/db/scratch"
	"estover.dev/internal/incident/emergency"
	"estover.dev/internal/page/pagetest"
)

// forms are how a value may stand somewhere: as it is, in base64 at any alignment,
// in hex.
func forms(value string) map[string][]byte {
	all := map[string][]byte{
		"as it is": []byte(value), "in hex": []byte(hex.EncodeToString([]byte(value))), "in HEX": []byte(strings.ToUpper(hex.EncodeToString([]byte(value)))),
	}
	for pad := range 3 {
		// What stands beside the value changes the characters at the ends alone.
		std := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", pad) + value + "xxx"))
		std = std[4 : len(std)-8]
		all["in base64 at "+string(rune('0'+pad))] = []byte(std)
		all["in base64url at "+string(rune('0'+pad))] = []byte(strings.NewReplacer("+", "-", "/", "_").Replace(std))
	}
	return all
}

// F14, M15: whatever is done with values, rightly and wrongly, by the command
// line, the API, the gateway and the door for clients of Vault, none of them is in
// the server's log, its traces and metrics, its events, its errors, its files or
// the log of a database, also when it comes to a bad end, of which no core is left.
func TestCanaries(t *testing.T) {
	t.Parallel()
	for _, on := range []string{"sqlite", "postgres"} {
		t.Run(on, func(t *testing.T) {
			t.Parallel()
			database := ""
			if on == "postgres" {
				database = dbtest.Postgres(t)
			}
			canaries(t, database)
		})
	}
}

// canaries is that on a database, the server's own if none is named.
func canaries(t *testing.T, database string) {
	var mu sync.Mutex
	var traces bytes.Buffer
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		_, _ = io.Copy(&traces, r.Body)
	}))
	t.Cleanup(collector.Close)
	// The root key is made of a passphrase, from a file or from the environment.
	passphrase := "canary-" + rand.Text()
	words := filepath.Join(t.TempDir(), "words")
	must(t, os.WriteFile(words, []byte(passphrase+"\n"), 0o600))
	env := []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + collector.URL, "OTEL_EXPORTER_OTLP_COMPRESSION=none", "GOTRACEBACK=crash"}
	args := []string{"--log-level", "debug", "--root-key", "passphrase:file:" + words}
	if database != "" {
		env = append(env, "CANARY_WORDS="+passphrase)
		args = []string{"--log-level", "debug", "--root-key", "passphrase:env:CANARY_WORDS", "--database", database}
	}
	srv := e2etest.StartWith(t, env, args...)
	v := newVault(t, srv)
	canaries := map[string]string{"the injected key": crmKey, "the administrator's token": v.token, "the passphrase of the root key": passphrase}
	plant := func(what string) string {
		canaries[what] = "canary-" + rand.Text()
		return canaries[what]
	}
	var errors bytes.Buffer // what was said when something did not work

	// Values that are written, read and misplaced on the command line.
	v.admin.Must(t, "secret", "create", "canary/static")
	v.admin.Put(t, "canary/static", plant("a static value"))
	v.admin.Must(t, "secret", "get", "canary/static", "--purpose", "a test")
	v.admin.Must(t, "secret", "uses", "canary/static")
	for _, args := range [][]string{
		{"secret", "put", "canary/static", "--file", "-", "--expect", "99"},
		{"secret", "put", "canary/none", "--file", "-"},
		{"secret", "put", "canary/static", "--file", "-", "--field", "not a name"},
	} {
		r := v.admin.Input(t, plant("what does not fit: "+strings.Join(args, " ")), args...)
		if r.Code == 0 {
			t.Errorf("estover %s succeeded", strings.Join(args, " "))
		}
		errors.WriteString(r.Stdout + r.Stderr)
	}

	// The gateway injects one, and the resource sends it back.
	token, err := v.oauthDesk.token(t, "client_secret_basic", url.Values{"purpose": {"support"}, "resource": {v.site.URL}})
	must(t, err)
	canaries["an access token"] = token.AccessToken
	if status, body, _ := v.call(t, http.MethodGet, "/v1/customers", token.AccessToken); status != http.StatusOK {
		t.Fatalf("a call: %d %s", status, body)
	}

	// The door for clients of Vault.
	door := func(method, path, body string) (answer map[string]any) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, v.URL+"/vault/v1/"+path, strings.NewReader(body))
		must(t, err)
		req.Header.Set("X-Vault-Token", v.token)
		if strings.HasPrefix(path, "wrapped/") {
			req.URL.Path = "/vault/v1/" + strings.TrimPrefix(path, "wrapped/")
			req.Header.Set("X-Vault-Wrap-TTL", "60")
		}
		res, err := v.HTTP(t).Do(req)
		must(t, err)
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		must(t, err)
		if res.StatusCode >= 400 {
			errors.Write(b)
		}
		_ = json.Unmarshal(b, &answer)
		return answer
	}
	in := func(answer map[string]any, section, field string) string {
		t.Helper()
		m, _ := answer[section].(map[string]any)
		value, _ := m[field].(string)
		if value == "" {
			t.Fatalf("no %s in %v", field, answer)
		}
		return value
	}
	door(http.MethodPost, "sys/mounts/canary", `{"type":"kv","options":{"version":"2"}}`)
	door(http.MethodPost, "canary/data/a", `{"data":{"value":"`+plant("a value at the door")+`"}}`)
	if got, _ := json.Marshal(door(http.MethodGet, "canary/data/a", "")); !bytes.Contains(got, []byte(canaries["a value at the door"])) {
		t.Errorf("the door reads %s", got)
	}
	wrapped := in(door(http.MethodGet, "wrapped/canary/data/a", ""), "wrap_info", "token")
	canaries["a wrapping token"] = wrapped
	door(http.MethodPost, "sys/wrapping/unwrap", `{"token":"`+wrapped+`"}`)
	door(http.MethodPost, "sys/wrapping/unwrap", `{"token":"`+wrapped+`"}`) // it is used up
	door(http.MethodPost, "canary/data/a", `{"data":{"value":"`+plant("a value that is not JSON")+`"`)
	door(http.MethodPost, "canary/data/a", `{"options":{"cas":77},"data":{"value":"`+plant("a value that comes too late")+`"}}`)
	door(http.MethodPost, "auth/token/lookup", `{"token":"`+plant("a token that there is not")+`"}`)
	door(http.MethodPost, "sys/mounts/keys", `{"type":"transit"}`)
	door(http.MethodPost, "keys/keys/k", `{}`)
	door(http.MethodPost, "keys/encrypt/k", `{"plaintext":"`+base64.StdEncoding.EncodeToString([]byte(plant("what transit encrypts")))+`"}`)
	door(http.MethodPost, "keys/decrypt/k", `{"ciphertext":"vault:v1:`+plant("what is no ciphertext")+`"}`)
	canaries["a ticket"] = in(door(http.MethodPost, "auth/token/create", `{"ttl":"10m"}`), "auth", "client_token")
	door(http.MethodPost, "sys/auth/approle", `{"type":"approle"}`)
	door(http.MethodPost, "auth/approle/role/canary", `{}`)
	role := in(door(http.MethodGet, "auth/approle/role/canary/role-id", ""), "data", "role_id")
	canaries["a secret id"] = in(door(http.MethodPost, "auth/approle/role/canary/secret-id", `{}`), "data", "secret_id")
	door(http.MethodPost, "auth/approle/login", `{"role_id":"`+role+`","secret_id":"`+canaries["a secret id"]+`"}`)
	door(http.MethodPost, "auth/approle/login", `{"role_id":"`+role+`","secret_id":"`+plant("a secret id that there is not")+`"}`)

	// Credentials at databases, whose servers write down every statement.
	for _, name := range []string{"people-postgres", "people-mysql"} {
		h, err := v.lease(t.Context(), t, v.token, name)
		must(t, err)
		canaries["a password of "+name] = h.Values["password"]
		v.admin.Must(t, "secret", "lease", "revoke", h.ID)
	}

	// What a program is given that cannot use handles, and what admins of targets have.
	canaries["the password of a program"] = strings.TrimSpace(v.admin.Must(t, "secret", "run", "-q", "--role", "people-mysql", "--purpose", "a test", "--", "sh", "-c", "echo $PEOPLE_MYSQL_PASSWORD"))
	admins := map[string]string{
		"the password of an admin at MariaDB": string(v.maria.Config.Admin.Secret.Reveal()), "the password of an admin at PostgreSQL": string(v.pg.Config.Admin.Secret.Reveal()),
	}
	maps.Copy(canaries, admins)

	// A key that is certified and handed out once.
	v.admin.Must(t, "pki", "authority", "create", "canary-root", "--common-name", "Canary")
	v.admin.Must(t, "pki", "role", "put", "canary", "--authority", "canary-root", "--domain", "example.com", "--subdomains", "--client")
	out := filepath.Join(t.TempDir(), "tls")
	v.admin.Must(t, "pki", "issue", "canary", "--common-name", "a.example.com", "--out", out)
	key, err := os.ReadFile(filepath.Join(out, "canary.key"))
	must(t, err)
	canaries["a private key"] = strings.Split(string(key), "\n")[1]

	// Other vaults, which repeat in their errors whatever was sent to them.
	canaryStores(t, v, plant, canaries, &errors)

	// Connections, whose provider does so too.
	canaryConnection(t, v, plant, canaries, &errors)

	// Passwords that a rotation makes, one that the gateway leases and injects, and an
	// emergency that goes through all of them.
	reports := canaryRotation(t, v, canaries, &errors)

	// A passphrase that is none, and one that is the server's already.
	other := filepath.Join(t.TempDir(), "other")
	for what, word := range map[string]string{"a passphrase that nobody may use": plant("a passphrase that nobody may use"), "the passphrase of the root key": passphrase} {
		must(t, os.WriteFile(other, []byte(word+"\n"), 0o600))
		r := v.admin.Run(t, "root-key", "add", "passphrase:file:"+other)
		if r.Code == 0 {
			t.Errorf("%s was added", what)
		}
		errors.WriteString(r.Stdout + r.Stderr)
	}

	// Where they must not be.
	var metrics bytes.Buffer
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, v.URL+"/metrics", nil)
	must(t, err)
	req.Header.Set("Authorization", "Bearer "+v.token)
	res, err := v.HTTP(t).Do(req)
	must(t, err)
	_, err = io.Copy(&metrics, res.Body)
	must(t, err)
	_ = res.Body.Close()
	// What was recorded of calls, exported, and what is evidence of them.
	var recordings, exported bytes.Buffer
	bundles := t.TempDir()
	for _, id := range regexp.MustCompile(`ses_\w+`).FindAllString(v.admin.Must(t, "session", "list", "-o", "json"), -1) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, v.URL+"/v1/sessions/"+id+"/recording", nil)
		must(t, err)
		req.Header.Set("Authorization", "Bearer "+v.token)
		res, err := v.HTTP(t).Do(req)
		must(t, err)
		if res.StatusCode == http.StatusOK {
			_, err = io.Copy(&recordings, res.Body)
			must(t, err)
		}
		_ = res.Body.Close()
		if bundle := filepath.Join(bundles, id+".zip"); v.admin.Run(t, "evidence", "export", id, "--disclose", "--file", bundle).Code == 0 { // there is none of a session without a call
			unpacked(t, bundle, &exported)
		}
	}
	events := v.admin.Must(t, "event", "list", "--limit", "10000", "-o", "json")
	srv.Stop(t)
	files := map[string][]byte{}
	walk := func(when string) {
		t.Helper()
		must(t, filepath.WalkDir(srv.Data, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			b, err := os.ReadFile(path)
			files["the file "+strings.TrimPrefix(path, srv.Data)+when] = b
			return err
		}))
	}
	walk("")
	if database != "" {
		dumped(t, database, files)
	}
	if err := srv.Try("--root-key", "passphrase:file:"+other+"-none"); err == nil {
		t.Error("the server starts without its passphrase")
	} else {
		errors.WriteString(err.Error())
	}
	must(t, os.WriteFile(other, []byte(canaries["a passphrase that nobody may use"]+"\n"), 0o600))
	if err := srv.Try("--root-key", "passphrase:file:"+other); err == nil {
		t.Error("the server starts with another passphrase")
	} else {
		errors.WriteString(err.Error())
	}
	must(t, srv.Try())
	v.admin.Must(t, "secret", "get", "canary/static", "--purpose", "a test")
	srv.Abort(t)
	walk(" after a bad end")
	if !strings.Contains(srv.Log(), "SIGABRT") {
		t.Error("there are no stacks in the log")
	}
	cores, err := filepath.Glob("core*")
	must(t, err)
	for _, core := range cores {
		t.Errorf("a core was dumped: %s", core)
	}
	databaseLog, err := v.pg.ReadLog()
	must(t, err)
	mariaLog, err := v.maria.ReadLog()
	must(t, err)
	mu.Lock()
	places := map[string][]byte{
		"the log": []byte(srv.Log()), "the traces": traces.Bytes(), "the metrics": metrics.Bytes(), "the events": []byte(events),
		"the errors": errors.Bytes(), "the database's log": databaseLog, "MariaDB's log": mariaLog, "the recordings": recordings.Bytes(),
		"the reports of emergencies": reports, "the exported evidence": exported.Bytes(),
	}
	mu.Unlock()
	for what, b := range places {
		if len(b) == 0 {
			t.Errorf("nothing came of %s", what)
		}
	}
	maps.Copy(places, files)
	kept := []string{"the file /estover.db"}
	if database != "" {
		kept = []string{"the dump", "the database's files"}
	}
	for _, place := range kept {
		if !bytes.Contains(places[place], []byte("canary/static")) || len(places[place]) < 100_000 {
			t.Errorf("it was not looked where things are: %s has %d bytes", place, len(places[place]))
		}
	}
	for place, want := range map[string]string{"the events": "canary/static", "the exported evidence": "/v1/customers", "the reports of emergencies": "canary/rotated"} {
		if !bytes.Contains(places[place], []byte(want)) {
			t.Errorf("it was not looked where things are: %s have no %s", place, want)
		}
	}
	for what, value := range canaries {
		if len(value) < 12 {
			t.Errorf("%s is too short to be looked for", what)
			continue
		}
		for form, needle := range forms(value) {
			for place, b := range places {
				if admins[what] != "" && strings.HasSuffix(place, "'s log") {
					continue // whoever set the database up has typed it there
				}
				if bytes.Contains(b, needle) {
					t.Errorf("%s, %s, is in %s", what, form, place)
				}
			}
		}
	}
}

// dumped adds what a PostgreSQL has of a schema: as it is dumped, as it stands in the
// files, where also rows are that are no more, and what the server wrote into its log.
func dumped(t *testing.T, database string, files map[string][]byte) {
	t.Helper()
	at, err := url.Parse(database)
	must(t, err)
	q := at.Query()
	schema, dir := q.Get("search_path"), q.Get("host")
	q.Del("search_path")
	at.RawQuery = q.Encode()
	program, err := scratch.Program("pg_dump")
	must(t, err)
	dump, err := exec.Command(program, "--schema", schema, "--inserts", at.String()).Output()
	must(t, err)
	files["the dump"] = dump
	c, err := pgx.Connect(t.Context(), database)
	must(t, err)
	defer c.Close(t.Context())
	_, err = c.Exec(t.Context(), "checkpoint")
	must(t, err)
	found, err := c.Query(t.Context(), `select pg_relation_filepath(oid) from pg_class where relkind in ('r', 'i') and relnamespace = $1::regnamespace
		union all select pg_relation_filepath(reltoastrelid) from pg_class where reltoastrelid <> 0 and relnamespace = $1::regnamespace`, schema)
	must(t, err)
	paths, err := pgx.CollectRows(found, pgx.RowTo[string])
	must(t, err)
	for _, path := range paths {
		b, err := os.ReadFile(filepath.Join(dir, "data", path))
		must(t, err)
		files["the database's files"] = append(files["the database's files"], b...)
	}
	log, err := os.ReadFile(filepath.Join(dir, "log"))
	must(t, err)
	files["the log of the server's own database"] = log
}

// unpacked adds what is in each file of an archive.
func unpacked(t *testing.T, archive string, to *bytes.Buffer) {
	t.Helper()
	z, err := zip.OpenReader(archive)
	must(t, err)
	defer z.Close()
	for _, f := range z.File {
		r, err := f.Open()
		must(t, err)
		_, err = io.Copy(to, r)
		must(t, err)
		must(t, r.Close())
	}
}

// canaryRotation has a password rotated that somebody has read, one leased and injected
// for an agent at a resource that sends it back, and rotates in an emergency what both
// had. It gives the signed reports of that.
func canaryRotation(t *testing.T, v *vault, canaries map[string]string, said *bytes.Buffer) (reports []byte) {
	t.Helper()
	const path = "canary/rotated"
	host, _, _ := strings.Cut(v.pg.Config.Address, "/")
	user := "canary_" + strings.ToLower(rand.Text()[:8])
	v.admin.Must(t, "secret", "create", path, "--destination", host)
	v.admin.Must(t, "rotation", "put", path, "--target", "postgres", "--user", user+"_a", "--user", user+"_b", "--template", "groups=readers",
		"--cache", "1s", "--quiet", "1s", "--schedule", "manual")
	reads := func(n int) {
		t.Helper()
		password := strings.TrimSpace(v.admin.Must(t, "secret", "get", path, "--field", "password", "--purpose", "a test"))
		for what, before := range canaries {
			if before == password {
				t.Errorf("version %d of %s is %s", n, path, what)
			}
		}
		canaries["version "+strconv.Itoa(n)+" of a rotated password"] = password
	}
	for n := 1; n <= 2; n++ {
		v.admin.Must(t, "rotation", "run", path)
		said.WriteString(v.admin.Must(t, "rotation", "explain", path))
		reads(n)
	}

	var mu sync.Mutex
	var injected []string
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if _, password, ok := r.BasicAuth(); ok {
			injected = append(injected, password)
		}
		_ = json.NewEncoder(w).Encode(map[string]string{"you": r.Header.Get("Authorization")})
	}))
	t.Cleanup(site.Close)
	v.admin.Apply(t, `apiVersion: estover.dev/v1
kind: Resource
metadata: {name: reports}
spec:
  base_url: `+site.URL+`
  allow_private: [127.0.0.0/8]
  class: confidential
  slots: [{slot: basic, secret: "lease:reports-postgres"}]
  actions: [{name: me.read, method: GET, path: /me}]`, e2etest.Grant("bot-reports", "bot", "reports", "me.read", "support"))
	v.admin.Must(t, "secret", "role", "put", "reports-postgres", "--target", "postgres", "--template", "groups=readers", "--resource", "reports", "--action", "me.read")
	token, err := v.oauthDesk.token(t, "client_secret_basic", url.Values{"purpose": {"support"}, "resource": {site.URL}})
	must(t, err)
	status, got, _ := v.oauthDesk.callAt(t, "reports", http.MethodGet, "/me", token.AccessToken)
	mu.Lock()
	defer mu.Unlock()
	if status != http.StatusOK || len(injected) != 1 {
		t.Fatalf("with a leased password: %d %s, and %d passwords came", status, got, len(injected))
	}
	canaries["a leased password that was injected"] = injected[0]
	said.WriteString(got)

	for _, what := range [][]string{{"--secret", path}, {"--agent", "bot"}} {
		args := append([]string{"rotate", "--emergency", "--reason", "it is on a forum"}, what...)
		said.WriteString(v.admin.Must(t, append(args, "--dry-run")...))
		said.WriteString(v.admin.Must(t, args...))
	}
	var all struct{ Items []emergency.Emergency }
	e2etest.Eventually(t, "the emergency rotations are done", func() bool {
		must(t, v.Get(t, v.token, "/v1/emergency-rotations", &all))
		return len(all.Items) == 2 && !all.Items[0].DoneAt.IsZero() && !all.Items[1].DoneAt.IsZero()
	})
	reads(3)
	trust := filepath.Join(t.TempDir(), "trust.policy")
	must(t, os.WriteFile(trust, []byte(v.admin.Must(t, "audit", "trust")), 0o600))
	for _, e := range all.Items {
		report := []byte(v.admin.Must(t, "rotate", "report", e.ID))
		file := filepath.Join(filepath.Dir(trust), e.ID)
		must(t, os.WriteFile(file, report, 0o600))
		reports = append(append(reports, report...), v.admin.Must(t, "verify", file, "--trust", trust, "--output", "json")...)
		for lines := json.NewDecoder(bytes.NewReader(report)); lines.More(); {
			var signed struct{ Payload []byte }
			must(t, lines.Decode(&signed))
			reports = append(reports, signed.Payload...)
		}
	}
	return reports
}

// A babbler is a provider of tokens that repeats what it was sent when it refuses
// something, and a resource that sends back the token it was called with.
type babbler struct {
	mu      sync.Mutex
	plant   func(string) string
	n       int
	refuses string // with this code
	revoked int
}

func (b *babbler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	w.Header().Set("Content-Type", "application/json")
	switch {
	case r.URL.Path == "/me":
		_ = json.NewEncoder(w).Encode(map[string]string{"you": r.Header.Get("Authorization")})
	case r.URL.Path == "/revoke":
		b.revoked++
		http.Error(w, "no: "+string(body)+r.Header.Get("Authorization"), http.StatusInternalServerError)
	case b.refuses != "":
		w.WriteHeader(http.StatusBadRequest)
		said := string(body) + " " + r.Header.Get("Authorization")
		_ = json.NewEncoder(w).Encode(map[string]string{"error": b.refuses, "error_description": said, "error_uri": "https://provider.example/?" + said})
	default:
		b.n++
		_ = json.NewEncoder(w).Encode(map[string]any{
			"access_token": b.plant("the access token of a connection " + strconv.Itoa(b.n)), "refresh_token": b.plant("the refresh token of a connection " + strconv.Itoa(b.n)),
			"id_token": b.plant("an ID token of a connection " + strconv.Itoa(b.n)), "token_type": "Bearer", "expires_in": 3600,
		})
	}
}

// canaryConnection has a person authorize a connection, an agent use it, and its
// provider refuse renewals and ends.
func canaryConnection(t *testing.T, v *vault, plant func(string) string, canaries map[string]string, errors *bytes.Buffer) {
	t.Helper()
	b := &babbler{plant: plant}
	provider := httptest.NewServer(b)
	t.Cleanup(provider.Close)
	refuse := func(code string) { b.mu.Lock(); defer b.mu.Unlock(); b.refuses = code }
	host := strings.TrimPrefix(provider.URL, "http://")
	v.admin.Must(t, "secret", "create", "canary/client", "--destination", host)
	v.admin.Put(t, "canary/client", plant("the secret of a client at a provider"))
	v.admin.Must(t, "connection", "add", "canary", "--token-endpoint", provider.URL+"/token", "--authorization-endpoint", provider.URL+"/auth", "--revocation-endpoint", provider.URL+"/revoke",
		"--client-id", "us", "--secret", "canary/client", "--destination", host, "--allow-private")
	v.admin.Apply(t, `apiVersion: estover.dev/v1
kind: Resource
metadata: {name: mail}
spec:
  base_url: `+provider.URL+`
  allow_private: [127.0.0.0/8]
  class: confidential
  slots: [{slot: header, name: Authorization, prefix: "Bearer ", secret: "connection:canary"}]
  actions: [{name: me.read, method: GET, path: /me}]`, e2etest.Grant("bot-mail", "bot", "mail", "me.read", "support"))

	// A code that the provider refuses at first, and then one that it takes.
	alice := newVisitor(t, v.desk, "alice", "operator")
	authorize := func(code string) *pagetest.Page {
		t.Helper()
		begun := alice.Send(alice.Load("/connections/canary"), "/connections/canary/begin")
		to := regexp.MustCompile(`href="(` + regexp.QuoteMeta(provider.URL) + `/auth[^"]*)"`).FindStringSubmatch(begun.Body)
		if to == nil {
			t.Fatalf("nothing leads to the provider: %d\n%s", begun.Status, begun.Body)
		}
		at, err := url.Parse(html.UnescapeString(to[1]))
		must(t, err)
		return alice.Go("/connections/canary/back?" + url.Values{"state": {at.Query().Get("state")}, "code": {code}}.Encode())
	}
	refuse("invalid_request")
	errors.WriteString(authorize(plant("a code that a provider refuses")).Body)
	refuse("")
	if page := authorize(plant("a code of a provider")); !strings.Contains(page.Body, "healthy") {
		t.Fatalf("authorized: %d\n%s", page.Status, page.Body)
	}
	for name, value := range alice.Cookies {
		if len(value) >= 20 {
			canaries["the cookie "+name] = value
		}
	}

	token, err := v.oauthDesk.token(t, "client_secret_basic", url.Values{"purpose": {"support"}, "resource": {provider.URL}})
	must(t, err)
	status, got, _ := v.oauthDesk.callAt(t, "mail", http.MethodGet, "/me", token.AccessToken)
	if status != http.StatusOK || !strings.Contains(got, "Bearer ***") {
		t.Errorf("with the token of a connection: %d %s", status, got)
	}
	errors.WriteString(got)

	v.admin.Must(t, "connection", "renew", "canary")
	refuse("server_error")
	r := v.admin.Run(t, "connection", "renew", "canary")
	errors.WriteString(r.Stdout + r.Stderr)
	refuse("invalid_grant")
	r = v.admin.Run(t, "connection", "renew", "canary")
	errors.WriteString(r.Stdout + r.Stderr)
	errors.WriteString(v.admin.Must(t, "connection", "show", "canary", "-o", "json"))
	v.admin.Must(t, "connection", "remove", "canary")
	e2etest.Eventually(t, "the provider is told that the tokens have ended", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return b.revoked > 0 })
	if b.n < 2 {
		t.Errorf("the provider gave out %d tokens, want one that was authorized and one that was renewed", b.n)
	}
}

// A chatterbox is an OpenBao that repeats what it was sent when it refuses something.
type chatterbox struct {
	mu         sync.Mutex
	logins     map[string]bool              // tokens that are good
	issues     string                       // the token for an assertion; none if it is empty
	values     map[string][]json.RawMessage // by path
	writes     bool                         // they are taken
	assertions []string
	refused    int // writes
}

func (b *chatterbox) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	refuse := func(status int) {
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]any{"errors": []string{"no: " + r.Header.Get("X-Vault-Token") + " " + string(body)}, "error": string(body)})
	}
	answer := func(data any) { _ = json.NewEncoder(w).Encode(map[string]any{"data": data}) }
	version := func(n int) map[string]any {
		return map[string]any{"version": n, "created_time": "2026-01-02T03:04:05Z", "deletion_time": "", "destroyed": false}
	}
	if r.URL.Path == "/v1/auth/jwt/login" {
		var in struct{ JWT string }
		_ = json.Unmarshal(body, &in)
		if b.assertions = append(b.assertions, in.JWT); b.issues == "" {
			refuse(http.StatusBadRequest)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"auth": map[string]any{"client_token": b.issues, "lease_duration": 3600}})
		return
	}
	if !b.logins[r.Header.Get("X-Vault-Token")] {
		refuse(http.StatusForbidden)
		return
	}
	kind, path, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v1/team/"), "/")
	all := b.values[path]
	switch {
	case r.Method == http.MethodPut || r.Method == http.MethodPost:
		if !b.writes {
			b.refused++
			refuse(http.StatusBadRequest)
			return
		}
		var in struct{ Data json.RawMessage }
		_ = json.Unmarshal(body, &in)
		b.values[path] = append(all, in.Data)
		answer(version(len(all) + 1))
	case r.URL.Query().Get("list") != "" || r.Method == "LIST":
		keys := []string{}
		for p := range b.values {
			if name, below := strings.CutPrefix(p, strings.TrimSuffix(path, "/")+"/"); below && !strings.Contains(name, "/") {
				keys = append(keys, name)
			}
		}
		answer(map[string]any{"keys": keys})
	case len(all) == 0:
		w.WriteHeader(http.StatusNotFound)
		_, _ = w.Write([]byte(`{"errors":[]}`))
	case kind == "metadata":
		versions := map[string]any{}
		for i := range all {
			versions[strconv.Itoa(i+1)] = version(i + 1)
		}
		answer(map[string]any{"current_version": len(all), "versions": versions})
	default:
		answer(map[string]any{"data": all[len(all)-1], "metadata": version(len(all))})
	}
}

// do does something with a chatterbox that nobody is asking.
func (b *chatterbox) do(it func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	it()
}

// canaryStores plants values and log-ins in other vaults, reads them through, pushes and
// imports them, and has all of it go wrong.
func canaryStores(t *testing.T, v *vault, plant func(string) string, canaries map[string]string, errors *bytes.Buffer) {
	t.Helper()
	object := func(value string) json.RawMessage { return json.RawMessage(`{"value":"` + value + `"}`) }
	b := &chatterbox{writes: true, logins: map[string]bool{plant("a token of another vault"): true}, values: map[string][]json.RawMessage{
		"app/linked": {object(plant("a value in another vault"))}, "app/below/a": {object(plant("a value in a folder of another vault"))},
	}}
	other := httptest.NewServer(b)
	t.Cleanup(other.Close)
	host := strings.TrimPrefix(other.URL, "http://")
	fails := func(args ...string) {
		t.Helper()
		r := v.admin.Run(t, args...)
		if r.Code == 0 {
			t.Errorf("estover %s succeeded", strings.Join(args, " "))
		}
		errors.WriteString(r.Stdout + r.Stderr)
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(60 * time.Second); !ok(); time.Sleep(50 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("waited for nothing: %s", what)
			}
		}
	}

	// A token that is wrong at first, and then right.
	v.admin.Must(t, "secret", "create", "canary/login", "--destination", host)
	v.admin.Put(t, "canary/login", plant("a token that another vault does not know"))
	fails("secret", "store", "add", "vault", "canary", "--address", other.URL, "--option", "mount=team", "--login", "canary/login")
	v.admin.Put(t, "canary/login", canaries["a token of another vault"])
	v.admin.Must(t, "secret", "store", "check", "canary")

	// Read through, and imported.
	v.admin.Must(t, "secret", "link", "canary/linked", "--store", "canary", "--from", "app/linked")
	if got := v.admin.Must(t, "secret", "get", "canary/linked", "--purpose", "a test"); strings.TrimSpace(got) != canaries["a value in another vault"] {
		t.Errorf("what is read through a store is %q", got)
	}
	v.admin.Must(t, "secret", "link", "canary/below/", "--store", "canary", "--from", "app/below/")
	v.admin.Must(t, "secret", "get", "canary/below/a", "--purpose", "a test")
	v.admin.Must(t, "secret", "import", "vault", other.URL, "--login", "canary/login", "--option", "mount=team", "--from", "app/below/", "--to", "canary/imported/")
	v.admin.Must(t, "secret", "get", "canary/imported/a", "--purpose", "a test")

	// Pushed, refused with all that was sent, and changed by somebody else.
	v.admin.Must(t, "secret", "create", "canary/pushed", "--destination", host)
	v.admin.Put(t, "canary/pushed", plant("a value that is pushed"))
	v.admin.Must(t, "secret", "sync", "add", "canary/pushed", "canary", "--to", "app/pushed")
	var syncs []struct{ ID, State string }
	state := func() string {
		v.admin.JSON(t, &syncs, "secret", "sync", "list", "--path", "canary/pushed")
		return syncs[0].State
	}
	until("a push", func() bool { return state() == "synced" })
	b.do(func() { b.writes = false })
	v.admin.Put(t, "canary/pushed", plant("a value that another vault refuses"))
	until("a push that is refused", func() (done bool) { b.do(func() { done = b.refused > 0 }); return done })
	errors.WriteString(v.admin.Must(t, "secret", "sync", "show", syncs[0].ID))
	b.do(func() {
		b.writes = true
		b.values["app/pushed"] = append(b.values["app/pushed"], object(plant("a value of somebody else's")))
	})
	until("a drift", func() bool { return state() == "drift" })
	v.admin.Must(t, "secret", "sync", "accept", syncs[0].ID)

	// By an assertion, which is refused at first.
	fails("secret", "store", "add", "vault", "canary-issuer", "--address", other.URL, "--option", "mount=team", "--option", "audience=them", "--option", "role=us")
	b.do(func() { b.issues = plant("a token for an assertion"); b.logins[b.issues] = true })
	v.admin.Must(t, "secret", "store", "check", "canary-issuer")

	// And when it knows nobody any more.
	b.do(func() { clear(b.logins) })
	for _, args := range [][]string{
		{"secret", "store", "check", "canary"},
		{"secret", "store", "check", "canary-issuer"},
		{"secret", "link", "canary/more/", "--store", "canary", "--from", "app/"},
		{"secret", "import", "vault", other.URL, "--login", "canary/login", "--option", "mount=team", "--from", "app/", "--to", "canary/imported/"},
	} {
		fails(args...)
	}
	for _, args := range [][]string{{"secret", "store", "show", "canary", "-o", "json"}, {"secret", "sync", "list", "-o", "json"}} {
		errors.WriteString(v.admin.Must(t, args...))
	}
	b.do(func() {
		if len(b.assertions) != 2 {
			t.Errorf("%d assertions were shown, want 2", len(b.assertions))
		}
		for i, a := range b.assertions {
			canaries["an assertion "+strconv.Itoa(i)] = a[strings.LastIndex(a, ".")+1:]
		}
		if b.refused == 0 {
			t.Error("nothing was refused")
		}
	})
}
