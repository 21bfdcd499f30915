package resource

import (
	"fmt"
	"maps"
	"net/url"
	"path"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"estover.dev"
)

// api is an upstream with these actions, each "METHOD /path name".
func api(t testing.TB, lines ...string) *Upstream {
	t.Helper()
	s := Spec{Name: "api", BaseURL: "https://api.example.com", Class: estover.Internal}
	for _, l := range lines {
		f := strings.Fields(l)
		s.Actions = append(s.Actions, Action{Method: f[0], Path: f[1], Name: f[2]})
	}
	s, err := Check(s)
	if err != nil {
		t.Fatal(err)
	}
	u, err := ready(Resource{Spec: s})
	if err != nil {
		t.Fatal(err)
	}
	return u
}

var crm = []string{
	"GET /v1/customers customer.list",
	"POST /v1/customers customer.create",
	"GET /v1/customers/{id} customer.read",
	"* /v1/customers/{id} customer.change",
	"GET /v1/customers/export customer.export",
	"POST /v1/customers/{id}:merge customer.merge",
	"POST /v1/customers/{id} customer.touch",
	"GET /v1/customers/{id}/notes/{note} note.read",
	"GET /v1/customers/export/status export.status",
	"GET /v1/files/{rest...} file.read",
	"GET /v1/files/admin/{name} file.admin",
	"GET /{owner}/{repo}.git/info/refs git.refs",
	"POST /{owner}/{repo}.git/git-receive-pack git.push",
	"GET / root",
	"GET /v1/reports/ report.index",
}

func TestMatch(t *testing.T) {
	u := api(t, crm...)
	for _, c := range []struct{ request, want string }{
		{"GET /v1/customers", "customer.list"},
		{"HEAD /v1/customers", "customer.list"},
		{"POST /v1/customers", "customer.create"},
		{"DELETE /v1/customers", ""},
		{"get /v1/customers", ""},
		{"GET /v1/customers/", ""},
		{"GET /v1/customers/42", "customer.read id=42"},
		{"HEAD /v1/customers/42", "customer.read id=42"},
		{"PATCH /v1/customers/42", "customer.change id=42"},
		{"POST /v1/customers/42", "customer.touch id=42"},
		{"POST /v1/customers/42:merge", "customer.merge id=42"},
		{"GET /v1/customers/42:merge", "customer.read id=42:merge"},
		{"GET /v1/customers/M%C3%BCller%20%26%20Co", "customer.read id=Müller & Co"},
		{"GET /v1/customers/a:b@c", "customer.read id=a:b@c"},
		{"GET /v1/customers/100%25", "customer.read id=100%"},
		{"GET /v1/customers/export", "customer.export"},
		{"DELETE /v1/customers/export", "customer.change id=export"},
		{"GET /v1/customers/%65xport", "customer.export"},
		{"GET /v1/customers/export/status", "export.status"},
		{"GET /v1/customers/export/notes/7", "note.read id=export note=7"},
		{"GET /v1/customers/42/notes/7", "note.read id=42 note=7"},
		{"GET /v1/customers/42/notes", ""},
		{"GET /v1/files", ""},
		{"GET /v1/files/", "file.read rest="},
		{"GET /v1/files/a/b%20c/", "file.read rest=a/b c/"},
		{"GET /v1/files/admin/keys", "file.admin name=keys"},
		{"GET /v1/files/admin/", "file.read rest=admin/"},
		{"GET /v1/files/admin/keys/old", "file.read rest=admin/keys/old"},
		{"GET /acme/site.git/info/refs", "git.refs owner=acme repo=site"},
		{"POST /acme/site.git/git-receive-pack", "git.push owner=acme repo=site"},
		{"GET /acme/.git/info/refs", ""},
		{"GET /", "root"},
		{"GET /v1/reports/", "report.index"},
		{"GET /v1/reports", ""},
	} {
		method, p, _ := strings.Cut(c.request, " ")
		if got := show(u.Match(method, p)); got != c.want {
			t.Errorf("%s is %q, want %q", c.request, got, c.want)
		}
	}
}

func show(a Action, params map[string]string, ok bool) string {
	if !ok {
		return ""
	}
	out := a.Name
	for _, k := range slices.Sorted(maps.Keys(params)) {
		out += " " + k + "=" + params[k]
	}
	return out
}

// TestMatchAmbiguous: the path that policy sees is the path that the server
// acts on, or there is no action.
func TestMatchAmbiguous(t *testing.T) {
	u := api(t, crm...)
	for _, c := range []struct{ what, request string }{
		{"no slash", "GET v1/customers"},
		{"nothing", "GET "},
		{"a whole URL", "GET https://crm.example.com/v1/customers"},
		{"doubled slashes", "GET //v1/customers"},
		{"doubled slashes inside", "GET /v1//customers/42"},
		{"doubled slashes in a rest", "GET /v1/files//etc"},
		{"a dot", "GET /v1/./customers"},
		{"two dots", "GET /v1/files/../customers"},
		{"escaped dots", "GET /v1/files/%2e%2e/customers"},
		{"half escaped dots", "GET /v1/files/.%2E/customers"},
		{"dots with a matrix parameter", "GET /v1/files/..;/customers"},
		{"dots with an escaped semicolon", "GET /v1/files/..%3b/customers"},
		{"dots with a space", "GET /v1/files/..%20/customers"},
		{"an escaped slash", "GET /v1/customers/42%2fnotes"},
		{"an escaped slash in a rest", "GET /v1/files/a%2F..%2Fb"},
		{"a backslash", `GET /v1/files\admin`},
		{"an escaped backslash", "GET /v1/files/..%5cadmin"},
		{"NUL", "GET /v1/customers/42%00"},
		{"a line break", "GET /v1/customers/42%0d%0a"},
		{"DEL", "GET /v1/customers/42%7f"},
		{"a raw space", "GET /v1/customers/4 2"},
		{"an escape of an escape", "GET /v1/customers/%2565xport"},
		{"an escaped slash of an escape", "GET /v1/files/%252e%252e%252fx"},
		{"half an escape", "GET /v1/customers/4%2"},
		{"an escape that is none", "GET /v1/customers/4%zz"},
		{"overlong UTF-8", "GET /v1/files/%c0%ae%c0%ae/x"},
		{"broken UTF-8", "GET /v1/customers/%ff"},
		{"a wide slash", "GET /v1/customers/42%EF%BC%8Fnotes"},
		{"a word in capitals where a parameter stands", "GET /v1/customers/EXPORT"},
		{"a word with a matrix parameter", "GET /v1/customers/export;v=1"},
		{"a word with a format ending", "GET /v1/customers/export.json"},
		{"a word with a space", "GET /v1/customers/export%20"},
		{"a word with a dot", "GET /v1/customers/export."},
		{"a word with an escaped question mark", "GET /v1/customers/export%3Fx"},
		{"a word in capitals before a rest", "GET /v1/files/Admin/keys"},
		{"an ending in capitals", "POST /v1/customers/42:MERGE"},
		{"an ending with a matrix parameter", "POST /v1/customers/42:merge;x=1"},
		{"an ending with a dot", "POST /acme/site.git./git-receive-pack"},
		{"a query", "GET /v1/customers?x=1"},
		{"a fragment", "GET /v1/customers#x"},
		{"too long", "GET /v1/files/" + strings.Repeat("a", 9000)},
		{"too deep", "GET /v1/files" + strings.Repeat("/a", 100)},
	} {
		method, p, _ := strings.Cut(c.request, " ")
		if got := show(u.Match(method, p)); got != "" {
			t.Errorf("%s (%s) is %q, want no action", c.what, c.request, got)
		}
	}
	kelvin := api(t, "GET /keys/{id} key.read", "GET /keys/k key.special")
	if got := show(kelvin.Match("GET", "/keys/%E2%84%AA")); got != "" {
		t.Errorf("the Kelvin sign where k is a word is %q, want no action", got)
	}
}

func TestTemplates(t *testing.T) {
	for _, c := range []struct{ lines, want string }{
		{"GET /a a, GET /a b", "is the same as /a of a"},
		{"GET /a/{x} a, GET /a/{y} b", "is the same as /a/{x} of a"},
		{"GET /a/{x...} a, GET /a/{y...} b", "is the same as /a/{x...} of a"},
		{"GET /a/{x}:go a, GET /a/{y}:go b", "is the same as /a/{x}:go of a"},
		{"GET a a", "begins with a slash"},
		{"GET /a//b a", "is empty"},
		{"GET /a/../b a", "made of dots"},
		{"GET /a%20b a", "has other characters"},
		{"GET /a;b a", "has other characters"},
		{"GET /a/{x a", "has other characters"},
		{"GET /a/x} a", "has other characters"},
		{"GET /a/{} a", "A parameter is {name}"},
		{"GET /a/{X} a", "A parameter is {name}"},
		{"GET /a/{x}/{x} a", "stands once"},
		{"GET /a/{x...}/b a", "stands at the end"},
		{"GET /a/{x}y a", "begins with a colon or a dot"},
		{"GET /a/{x}:{y} a", "begins with a colon or a dot"},
		{"G@T /a a", "The method"},
		{"CONNECT /a a", "The method"},
		{"GET /a A", "The name of an action"},
		{"GET /a a, DELETE /a a", "Two actions are called a"},
	} {
		s := Spec{Name: "api", BaseURL: "https://api.example.com", Class: estover.Internal}
		for _, l := range strings.Split(c.lines, ", ") {
			f := strings.Fields(l)
			s.Actions = append(s.Actions, Action{Method: f[0], Path: f[1], Name: f[2]})
		}
		if _, err := Check(s); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("the actions %s: %v, want … %s …", c.lines, err, c.want)
		}
	}
	api(t, "GET /a a", "POST /a b", "* /a c", "GET /a/ d", "PUT /a/{x} e", "PATCH /a/{y} e", "GET /a/{x}.git f", "GET /a/{x}.git/{y...} g")
}

// TestMatchModel compares the tree with a search through all templates, on
// paths that every server reads alike.
func TestMatchModel(t *testing.T) {
	word := rapid.SampledFrom([]string{"a", "b", "export", "v1"})
	segment := rapid.Custom(func(t *rapid.T) string {
		switch rapid.IntRange(0, 5).Draw(t, "kind") {
		case 0, 1, 2:
			return word.Draw(t, "word")
		case 3, 4:
			return "{}"
		}
		return "{}" + rapid.SampledFrom([]string{":go", ":g", ".x"}).Draw(t, "ending")
	})
	rapid.Check(t, func(t *rapid.T) {
		s := Spec{Name: "api", BaseURL: "https://api.example.com", Class: estover.Internal}
		var tree node
		for i := range rapid.IntRange(1, 12).Draw(t, "templates") {
			parts := rapid.SliceOfN(segment, 1, 4).Draw(t, "template")
			if rapid.IntRange(0, 4).Draw(t, "tail") == 0 {
				parts = append(parts, "{...}")
			}
			for j := range parts {
				parts[j] = strings.Replace(strings.Replace(parts[j], "{}", fmt.Sprintf("{p%d}", j), 1), "{...}", "{rest...}", 1)
			}
			a := Action{Name: fmt.Sprintf("n%d", i), Method: rapid.SampledFrom([]string{"GET", "HEAD", "POST", "*"}).Draw(t, "method"), Path: "/" + strings.Join(parts, "/")}
			other, err := tree.add(a)
			if err != nil {
				t.Fatalf("%s: %v", a.Path, err)
			}
			if other == nil {
				s.Actions = append(s.Actions, a)
			}
		}
		u, err := ready(Resource{Spec: s})
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			var parts []string
			for range rapid.IntRange(1, 5).Draw(t, "segments") {
				v := rapid.SampledFrom([]string{"a", "b", "export", "v1", "7", "7:go", "7:go:g", "7.x"}).Draw(t, "segment")
				parts = append(parts, v)
			}
			p := "/" + strings.Join(parts, "/")
			method := rapid.SampledFrom([]string{"GET", "HEAD", "POST", "PUT"}).Draw(t, "asked")
			got := show(u.Match(method, p))
			if want := search(s.Actions, method, parts); got != want {
				t.Fatalf("%s %s is %q, want %q of %v", method, p, got, want, s.Actions)
			}
		}
	})
}

// search is the model of Match: every template is tried, and the least by the
// ranks of its segments, then of its method, is taken.
func search(actions []Action, method string, parts []string) string {
	best, bestRank := "", ""
	for _, a := range actions {
		m := 9
		switch {
		case a.Method == method:
			m = 0
		case method == "HEAD" && a.Method == "GET":
			m = 1
		case a.Method == "*":
			m = 2
		default:
			continue
		}
		params := map[string]string{}
		rank, ok := "", true
		template := strings.Split(a.Path[1:], "/")
		for i, s := range template {
			if s == "{rest...}" {
				ok = ok && i < len(parts)
				if ok {
					params["rest"] = strings.Join(parts[i:], "/")
				}
				rank += "9"
				break
			}
			if i >= len(parts) {
				ok = false
				break
			}
			name, end, isParam := strings.Cut(strings.TrimPrefix(s, "{"), "}")
			switch {
			case !isParam:
				ok = ok && s == parts[i]
				rank += "0"
			case end == "":
				params[name] = parts[i]
				rank += "8"
			default:
				v, has := strings.CutSuffix(parts[i], end)
				ok = ok && has && v != ""
				params[name] = v
				rank += fmt.Sprint(5-len(end)) + end[:1]
			}
			if i == len(template)-1 && len(parts) > len(template) {
				ok = false
			}
		}
		rank += fmt.Sprintf("/%d", m)
		if ok && (bestRank == "" || rank < bestRank) {
			best, bestRank = show(a, params, true), rank
		}
	}
	return best
}

// FuzzMatch: whatever the path, there is no panic; and a path that has an
// action is one that a server cannot resolve to another.
func FuzzMatch(f *testing.F) {
	for _, l := range crm {
		fields := strings.Fields(l)
		f.Add(fields[0], fields[1])
	}
	for _, p := range []string{"/v1/files/%2e%2e/x", "//", "/v1/customers/%C3%A9", "/v1/customers/42:merge", "/%", "/v1/files/..;/a", "/a/b.git/info/refs"} {
		f.Add("GET", p)
	}
	u := api(f, crm...)
	f.Fuzz(func(t *testing.T, method, escaped string) {
		a, params, ok := u.Match(method, escaped)
		if !ok {
			return
		}
		plain, err := url.PathUnescape(escaped)
		if err != nil {
			t.Fatalf("%q has the action %s and cannot be unescaped: %v", escaped, a.Name, err)
		}
		clean := path.Clean(plain)
		if strings.HasSuffix(plain, "/") && clean != "/" {
			clean += "/"
		}
		if clean != plain {
			t.Fatalf("%q has the action %s and resolves to %q", escaped, a.Name, clean)
		}
		segments := strings.Split(plain, "/")
		for i := range segments {
			segments[i] = url.PathEscape(segments[i])
		}
		again := strings.Join(segments, "/")
		if b, p, ok := u.Match(method, again); !ok || !reflect.DeepEqual(b, a) || !maps.Equal(p, params) {
			t.Fatalf("%q has the action %s %v; spelled as %q it has %s %v", escaped, a.Name, params, again, b.Name, p)
		}
	})
}

func BenchmarkMatch(b *testing.B) {
	lines := slices.Clone(crm)
	for i := range 300 {
		lines = append(lines, fmt.Sprintf("GET /v2/thing%d/{id}/part/{part} thing%d.read", i, i))
	}
	u := api(b, lines...)
	for _, p := range []string{"/v1/customers", "/v1/customers/42", "/v2/thing250/7/part/9", "/v1/customers/M%C3%BCller"} {
		b.Run(strings.ReplaceAll(p[1:], "/", "_"), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, _, ok := u.Match("GET", p); !ok {
					b.Fatal("no action")
				}
			}
		})
	}
}
