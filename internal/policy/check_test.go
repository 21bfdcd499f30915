package policy

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// head begins a package of the tenant that says what it is.
const head = `# METADATA
# title: A test
# description: A package of a test.
package tenant.test

`

// denial is a rule that keeps the rules of the house, with this body.
func denial(body string) string {
	return head + `# METADATA
# title: No
# description: No.
# custom:
#   next: Do not.
deny contains "no" if {
` + body + `
}
`
}

// findingsOf checks one file and gives what was found as line:check.
func findingsOf(t *testing.T, files ...File) []string {
	t.Helper()
	report, err := Check(files)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range report.Findings {
		word := f.Check
		if f.Warning {
			word = "(" + word + ")"
		}
		if !slices.Contains(got, word) {
			got = append(got, word)
		}
		if f.File == "" || f.Line < 1 || !strings.HasSuffix(f.Message, ".") && f.Check != "parse" && f.Check != "compile" && f.Check != "type" && f.Check != "unsafe_var" && f.Check != "index" && f.Check != "code" && f.Check != "set" && f.Check != "obligation" && f.Check != "sentence" && f.Check != "denial" {
			t.Errorf("a finding without a place or a sentence: %+v", f)
		}
	}
	slices.Sort(got)
	return got
}

func TestCheckFinds(t *testing.T) {
	for name, test := range map[string]struct {
		text string
		want []string
	}{
		"nothing":                                         {denial("\tinput.op == \"gateway.call\"\n\tinput.facts.entitled == false"), nil},
		"nothing, in constants":                           {denial("\tinput.action.effect in {\"send\", \"pay\"}"), nil},
		"a syntax error":                                  {"package tenant.test\n\ndeny contains if {", []string{"parse"}},
		"a fact that does not exist":                      {denial("\tinput.facts.entiteld == false"), []string{"type"}},
		"a part of the input that does not exist":         {denial("\tinput.op == \"gateway.call\"\n\tinput.agent.salary > 3"), []string{"type"}},
		"a function that does not exist":                  {denial("\tinput.op == \"a\"\n\tnope(input.op)"), []string{"type"}},
		"the network":                                     {denial("\tinput.op == \"a\"\n\thttp.send({\"method\": \"get\", \"url\": \"http://a\"}).status_code == 200"), []string{"type"}},
		"the clock":                                       {denial("\tinput.op == \"a\"\n\ttime.now_ns() > 3"), []string{"type"}},
		"chance":                                          {denial("\tinput.op == \"a\"\n\trand.intn(\"a\", 2) == 1"), []string{"type"}},
		"the environment":                                 {denial("\tinput.op == \"a\"\n\topa.runtime().env.HOME == \"a\""), []string{"type"}},
		"a variable that is never used":                   {denial("\tinput.op == \"a\"\n\tx := 1"), []string{"compile"}},
		"another root":                                    {strings.Replace(denial("\tinput.op == \"a\""), "tenant.test", "mine.test", 1), []string{"root"}},
		"the root itself":                                 {strings.Replace(denial("\tinput.op == \"a\""), "tenant.test", "tenant", 1), []string{"root"}},
		"the baseline's package":                          {strings.Replace(denial("\tinput.op == \"a\""), "tenant.test", "estover.base", 1), []string{"root", "type"}},
		"a package that says nothing":                     {"package tenant.test\n\nx := 1\n", []string{"metadata"}},
		"a set that is a value":                           {head + "permit if input.op == \"a\"\n", []string{"set"}},
		"a set that is an object":                         {head + "deny[\"a\"] := true if input.op == \"a\"\n", []string{"(format)", "set"}},
		"a code that is a sentence":                       {strings.Replace(denial("\tinput.op == \"a\""), `"no"`, `"No way"`, 1), []string{"code"}},
		"a code that is made up":                          {head + "deny contains code if {\n\tinput.op == \"a\"\n\tcode := concat(\"_\", [\"a\", input.op])\n}\n", []string{"code", "compile"}},
		"a denial without a sentence":                     {head + "deny contains \"no\" if input.op == \"a\"\n", []string{"sentence"}},
		"a denial without a next step":                    {head + "# METADATA\n# description: No.\ndeny contains \"no\" if input.op == \"a\"\n", []string{"(sentence)"}},
		"a permit without a title":                        {head + "permit contains \"yes\" if input.op == \"a\"\n", []string{"(sentence)"}},
		"two sentences for one code":                      {denial("\tinput.op == \"a\"") + "\n# METADATA\n# description: Never.\n# custom:\n#   next: Go.\ndeny contains \"no\" if input.op == \"b\"\n", []string{"sentence"}},
		"an unconditional permit":                         {head + "# METADATA\n# title: Yes\npermit contains \"yes\"\n", []string{"index"}},
		"a negation first":                                {denial("\tnot input.facts.entitled\n\tinput.op == \"a\""), []string{"index"}},
		"a fact without a value first":                    {denial("\tinput.facts.entitled\n\tinput.op == \"a\""), []string{"index"}},
		"an inequality first":                             {denial("\tinput.op != \"a\""), []string{"index"}},
		"a variable first":                                {denial("\tinput[_] == \"a\""), []string{"index"}},
		"two parts of the input compared first":           {denial("\tinput.op == input.action.name"), []string{"index"}},
		"a word that is not on the list":                  {denial("\tinput.action.effect == \"reed\""), []string{"word"}},
		"a class that is not one":                         {denial("\tinput.resource.class in {\"restricted\", \"secret\"}"), []string{"word"}},
		"a fact of the list of another":                   {denial("\tinput.facts.agent_tier == \"critical\""), []string{"word"}},
		"a flag compared with a word":                     {denial("\tinput.facts.entitled == \"no\""), []string{"type", "word"}},
		"a word compared with a flag":                     {denial("\tinput.op == \"a\"\n\tinput.facts.destination == true"), []string{"type", "word"}},
		"the risk alone":                                  {denial("\tinput.facts.risk_band == \"high\""), []string{"risk"}},
		"the risk of an effect":                           {denial("\tinput.facts.risk_band == \"high\"\n\tinput.action.effect == \"send\""), []string{"risk"}},
		"the risk and another fact":                       {denial("\tinput.facts.risk_band == \"high\"\n\tinput.facts.delegated == true"), nil},
		"a fact that nobody computes":                     {denial("\tinput.facts.bulk == \"many\"\n\tinput.facts.in_hours == true"), []string{"(computed)"}},
		"a fact that nobody computes, at its usual value": {denial("\tinput.facts.in_hours == true"), nil},
		"true by default":                                 {head + "default trusted := true\n\ntrusted := false if input.op == \"a\"\n", []string{"default"}},
		"the input replaced":                              {denial("\tinput.op == \"a\"\n\tx with input as {}") + "\nx if input.op == \"b\"\n", []string{"with"}},
		"the baseline read":                               {denial("\tinput.op == \"a\"\n\tdata.estover.base.permit[_]"), []string{"reserved"}},
		"the baseline imported":                           {head + "import data.estover.base\n\nx := base.permit\n", []string{"reserved"}},
		"a rule that is not there":                        {denial("\tinput.op == \"a\"\n\tdata.tenant.test.yes == 1"), []string{"missing"}},
		"a table that is not there":                       {denial("\tinput.op == \"a\"\n\tinput.agent.team in data.tenant.tables.teams"), []string{"missing"}},
		"a rule that is there":                            {denial("\tinput.op == \"a\"\n\tdata.tenant.test.yes.a == 1") + "\nyes := {\"a\": 1} if input.op == \"a\"\n", nil},
		"all of data":                                     {denial("\tinput.op == \"a\"\n\tdata[_].x == 1"), []string{"reserved"}},
		"an obligation without a type":                    {head + "oblige contains {\"level\": \"full\"} if input.op == \"a\"\n", []string{"obligation"}},
		"an obligation that nobody knows":                 {head + "oblige contains {\"type\": \"pray\"} if input.op == \"a\"\n", []string{"obligation"}},
		"an obligation that is a word":                    {head + "oblige contains \"receipt\" if input.op == \"a\"\n", []string{"obligation"}},
		"a property that nobody knows":                    {head + "oblige contains {\"type\": \"receipt\", \"colour\": \"red\"} if input.op == \"a\"\n", []string{"obligation"}},
		"a property that is missing":                      {head + "oblige contains {\"type\": \"redact\"} if input.op == \"a\"\n", []string{"obligation"}},
		"a property out of its list":                      {head + "oblige contains {\"type\": \"redact\", \"classes\": [\"shoes\"]} if input.op == \"a\"\n", []string{"obligation"}},
		"a negative limit":                                {head + "oblige contains {\"type\": \"limit\", \"rows\": -1} if input.op == \"a\"\n", []string{"obligation"}},
		"a level that is worked out":                      {head + "oblige contains {\"type\": \"record\", \"level\": input.op} if input.op == \"a\"\n", []string{"obligation"}},
		"an addressee that is worked out":                 {head + "oblige contains {\"type\": \"notification\", \"to\": input.agent.team} if input.op == \"a\"\n", nil},
		"a response":                                      {head + "respond contains {\"kind\": \"denied\", \"rung\": 2} if input.op == \"a\"\n", []string{"(respond)"}},
		"a hot package that walks":                        {strings.Replace(denial("\tinput.op == \"a\"\n\twalk(input.agent, [_, \"x\"])"), "package tenant", "# custom:\n#   hot: true\npackage tenant", 1), []string{"hot"}},
		"a hot package with an expression":                {strings.Replace(denial("\tinput.op == \"a\"\n\tregex.match(\"^a\", input.op)"), "package tenant", "# custom:\n#   hot: true\npackage tenant", 1), []string{"hot"}},
		"a hot package with a comprehension":              {strings.Replace(denial("\tinput.op == \"a\"\n\tcount([x | some x in input.agent.purposes]) > 2"), "package tenant", "# custom:\n#   hot: true\npackage tenant", 1), []string{"hot"}},
		"a hot package that reads the arguments":          {strings.Replace(denial("\tinput.op == \"a\"\n\tinput.params.x == 1"), "package tenant", "# custom:\n#   hot: true\npackage tenant", 1), []string{"hot"}},
		"a hot package that reads any package":            {strings.Replace(denial("\tinput.op == \"a\"\n\tdata.tenant[_].x == 1"), "package tenant", "# custom:\n#   hot: true\npackage tenant", 1), []string{"hot"}},
		"spaces":                                          {strings.Replace(denial("\tinput.op == \"a\""), "\tinput", "    input", 1), []string{"(format)"}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := findingsOf(t, File{"a.rego", test.text}); !slices.Equal(got, test.want) {
				report, _ := Check(Bundle{{"a.rego", test.text}})
				t.Errorf("check found %v, want %v\n%v\n%s", got, test.want, report.Findings, test.text)
			}
		})
	}
}

func TestCheckFindsInOtherFiles(t *testing.T) {
	good := File{"a.rego", denial("\tinput.op == \"a\"")}
	for name, test := range map[string]struct {
		file File
		want []string
	}{
		"a test that permits":          {File{"a_test.rego", "package tenant.test\n\npermit contains \"yes\" if input.op == \"a\"\n"}, []string{"test"}},
		"a test that does not compile": {File{"a_test.rego", "package tenant.test_test\n\ntest_a if nope(1)\n"}, []string{"type"}},
		"data at the root":             {File{"data.json", `{"teams": ["a"]}`}, []string{"root"}},
		"data that is no JSON":         {File{"tenant/data.json", "{\n\"teams\": [\"a\"\n"}, []string{"data"}},
		"data where rules stand":       {File{"tenant/test/data.json", `{"deny": ["no"]}`}, []string{"data"}},
		"data beside":                  {File{"tenant/tables/data.json", `{"teams": ["a"]}`}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			if got := findingsOf(t, good, test.file); !slices.Equal(got, test.want) {
				report, _ := Check(Bundle{good, test.file})
				t.Errorf("check found %v, want %v: %v", got, test.want, report.Findings)
			}
		})
	}
}

func TestCheckSaysWhere(t *testing.T) {
	text := denial("\tinput.op == \"gateway.call\"\n\tinput.action.effect == \"reed\"")
	report, err := Check(Bundle{{"sub/a.rego", text}})
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Findings) != 1 {
		t.Fatalf("check found %v, want one thing", report.Findings)
	}
	want := `sub/a.rego:13: error: input.action.effect is never "reed". It is one of read, search, write, delete, send, execute, admin, pay. (word)`
	if got := report.Findings[0].String(); got != want {
		t.Errorf("the finding is\n%s\nwant\n%s", got, want)
	}
	if report.OK() {
		t.Error("a bundle with an error may be activated")
	}
}

// Whether answers may be kept rests on what the rules read, however they come
// by it.
func TestCheckCacheable(t *testing.T) {
	for _, test := range []struct {
		body string
		want bool
	}{
		{"\tinput.op == \"a\"\n\tinput.agent.team == \"x\"", true},
		{"\tinput.op == \"a\"\n\tinput.params.amount > 3", false},
		{"\tinput.op == \"a\"\n\tp := input.params\n\tp.amount > 3", false},
		{"\tinput.op == \"a\"\n\tp := input\n\tp.params.amount > 3", false},
		{"\tinput.op == \"a\"\n\tsome k, v in input\n\tk == \"params\"\n\tv == 1", false},
		{"\tinput.op == \"a\"\n\tinput[\"params\"].amount > 3", false},
		{"\tinput.op == \"a\"\n\tx := \"params\"\n\tinput[x].amount > 3", false},
		{"\tinput.op == \"a\"\n\tcount([1 | input.params.a == 1]) > 0", false},
		{"\tinput.op == \"a\"\n\tobject.get(input, \"params\", {}) == {}", false},
		{"\tinput.op == \"a\"\n\thelper(3)", false},
	} {
		text := denial(test.body) + "\nhelper(x) if input.params.amount > x\n"
		report, err := Check(Bundle{{"a.rego", text}})
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range report.Findings {
			if !f.Warning {
				t.Fatalf("%s: %v", test.body, f)
			}
		}
		if report.Cacheable != test.want {
			t.Errorf("answers may be kept: %v, want %v, for\n%s", report.Cacheable, test.want, test.body)
		}
	}
}

func TestBundleBounds(t *testing.T) {
	good := File{"a.rego", denial("\tinput.op == \"a\"")}
	for name, b := range map[string]Bundle{
		"empty":          {},
		"only data":      {{"tenant/data.json", "{}"}},
		"the same twice": {good, good},
		"absolute":       {{"/etc/a.rego", good.Text}},
		"outside":        {{"../a.rego", good.Text}},
		"another kind":   {good, {"a.sh", "rm"}},
		"a line break":   {good, {"a\nb.rego", good.Text}},
		"much data":      {good, {"tenant/data.json", `{"a":"` + strings.Repeat("x", maxData) + `"}`}},
		"much source":    {good, {"b.rego", strings.Repeat("#", maxSource)}},
	} {
		if _, err := Check(b); err == nil {
			t.Errorf("%s: taken for a bundle", name)
		}
	}
}

// The digest is what coreutils make of the files, so that anybody can work it
// out: sha256sum a.rego b.rego | sha256sum.
func TestDigest(t *testing.T) {
	b, err := (Bundle{{"b.rego", "package tenant.b\n"}, {"a.rego", "package tenant.a\n"}}).normal()
	if err != nil {
		t.Fatal(err)
	}
	const want = "605aad5e07dc9d37f3ad5121c0bc900db0d2d967338dd3b95fde93b8a697c12a"
	if got := b.Digest(); got != want {
		t.Errorf("the digest is %s, want %s", got, want)
	}
}

// A directory of policies holds what lies in it. A link to a file elsewhere
// would have that sent to the server.
func TestReadDirStaysInside(t *testing.T) {
	dir, elsewhere := t.TempDir(), filepath.Join(t.TempDir(), "login.json")
	for file, text := range map[string]string{elsewhere: `{"token": "x"}`, filepath.Join(dir, "a.rego"): "package tenant.a\n"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := ReadDir(dir); err != nil || len(b) != 1 {
		t.Fatalf("ReadDir: %v, %v", b, err)
	}
	if err := os.Symlink(elsewhere, filepath.Join(dir, "data.json")); err != nil {
		t.Fatal(err)
	}
	if b, err := ReadDir(dir); !errors.Is(err, ErrBundle) {
		t.Errorf("with a link that leads out: %v, %v; want ErrBundle", b, err)
	}
}
