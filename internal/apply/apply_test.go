package apply_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/access"
	"estover.dev/internal/agent"
	"estover.dev/internal/apply"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/directory"
	"estover.dev/internal/federation"
	"estover.dev/internal/guard"
	"estover.dev/internal/guard/guardtest"
	"estover.dev/internal/notify"
	"estover.dev/internal/policy"
	"estover.dev/internal/resource"
	"estover.dev/internal/seal"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/upstream"
	"estover.dev/internal/secret/upstream/google"
	"estover.dev/internal/secret/upstream/openbao"
	"estover.dev/internal/token"
)

var ada = estover.Caller{Tenant: estover.DefaultTenant, Subject: estover.User("usr_ada"), Roles: []estover.Role{estover.Admin}}

// A house is everything that apply makes things through.
type house struct {
	*apply.Applier
	t *testing.T
	d *db.DB
	// refuse are the actions that policy refuses.
	refuse map[string]bool
}

func build(t *testing.T, d *db.DB) *house {
	t.Helper()
	h := &house{t: t, d: d, refuse: map[string]bool{}}
	g := guardtest.New(t, d, guardtest.Decider(func(c estover.Caller, op guard.Op) guard.Decision {
		if h.refuse[op.Action] {
			return guardtest.DenyAll(c, op)
		}
		return guardtest.AllowAll(c, op)
	}))
	sealer, err := seal.Open(t.Context(), d, seal.File{Path: filepath.Join(t.TempDir(), "root.key")})
	if err != nil {
		t.Fatal(err)
	}
	sealer.Hold(secret.Holding)
	var agents *agent.Registry
	people := directory.New(g, directory.Options{
		Left: func(ctx context.Context, tx *guard.Tx, person string) error {
			return agents.SponsorLeft(ctx, tx, person)
		},
	})
	agents = agent.New(g, agent.Options{Sponsor: people.Sponsor, Pepper: func(_ estover.TenantID, s []byte) []byte { return s }})
	resources := resource.New(g)
	secrets := secret.New(g, sealer, secret.Options{Logger: slog.New(slog.DiscardHandler)})
	h.Applier = apply.New(g, apply.Parts{
		People: people, Agents: agents, Resources: resources,
		Grants:  access.New(g, access.Options{Agent: agents.Grantable, Resource: resources.Grantable}),
		Secrets: secrets,
		Stores:  upstream.NewStores(upstream.Config{Guard: g, Secrets: secrets, Sealer: sealer, Kinds: []upstream.Kind{google.Kind, openbao.Kind}}),
		Policy:  policy.New(g, policy.NewDecider(d, policy.Sources{}, policy.Options{})),
		Trusts: federation.New(g, federation.Options{
			Own:   func(estover.TenantID) string { return "https://estover.example" },
			Agent: func(ctx context.Context, tx *db.Tx, id string) error { return agents.Grantable(ctx, tx, id, nil) },
		}),
		Details:  token.NewDetailTypes(g),
		Channels: notify.New(g, notify.Options{}),
	})
	return h
}

// run applies one text, and gives what is printed and the error.
func (h *house) run(text string, edit ...func(*apply.Request)) (string, error) {
	h.t.Helper()
	req := apply.Request{Files: []apply.Source{{Path: "company.yaml", Text: text}}}
	for _, e := range edit {
		e(&req)
	}
	r, err := h.Run(h.t.Context(), ada, req)
	var b strings.Builder
	if err := r.Write(&b); err != nil {
		h.t.Fatal(err)
	}
	return b.String(), err
}

func (h *house) must(text string, edit ...func(*apply.Request)) string {
	h.t.Helper()
	out, err := h.run(text, edit...)
	if err != nil {
		h.t.Fatalf("applying: %v\n%s", err, out)
	}
	return out
}

func dryRun(r *apply.Request) { r.DryRun = true }
func prune(r *apply.Request)  { r.Prune = true }

func set(name string) func(*apply.Request) {
	return func(r *apply.Request) { r.Set = name }
}

// events counts the events of an action.
func (h *house) events(action string) (n int) {
	h.t.Helper()
	err := h.d.View(h.t.Context(), ada.Tenant, func(tx *db.Tx) error {
		return tx.QueryRow(h.t.Context(), "select count(*) from audit where tenant_id = $1 and action = $2 and outcome = 'done'", tx.Tenant(), action).Scan(&n)
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return n
}

const company = `apiVersion: estover.dev/v1
kind: Grant
metadata: {name: read-customers}
spec:
  agent: bot
  resource: crm
  actions: [customer.read, customer.list]
  purposes: [support]
  class: confidential
---
apiVersion: estover.dev/v1
kind: Agent
metadata: {name: bot}
spec: {blueprint: support, sponsor: alice, purposes: [support, billing], clearance: confidential}
---
apiVersion: estover.dev/v1
kind: Resource
metadata: {name: crm}
spec:
  base_url: https://crm.example.com
  class: confidential
  actions:
    - {name: customer.list, method: GET, path: /v1/customers}
    - {name: customer.read, method: GET, path: "/v1/customers/{id}"}
  slots:
    - {slot: header, name: Authorization, prefix: "Bearer ", secret: crm/api-key}
---
apiVersion: estover.dev/v1
kind: Secret
metadata: {name: crm/api-key}
spec: {owner: alice, destinations: [crm.example.com]}
---
apiVersion: estover.dev/v1
kind: Person
metadata: {name: alice}
spec: {email: alice@example.com, roles: [operator]}
`

func TestRun(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h, ctx := build(t, d), t.Context()
		const all = "+ Person alice\n+ Secret crm/api-key\n+ Resource crm\n+ Agent bot\n+ Grant read-customers\n"
		if got := h.must(company, dryRun); got != all+"5 to create.\n" {
			t.Errorf("a dry run says\n%s", got)
		}
		if list, _, err := h.Agents.List(ctx, ada, agent.Filter{}, "", 0); err != nil || len(list) != 0 || h.events("apply.run") != 0 {
			t.Errorf("after a dry run there are %v, %v", list, err)
		}
		if got := h.must(company); got != all+"5 created.\n" {
			t.Errorf("the run says\n%s", got)
		}
		alice, err := h.People.ByName(ctx, ada, "alice")
		if err != nil || alice.ManagedBy != "apply/default" || alice.Email != "alice@example.com" {
			t.Errorf("alice is %+v, %v", alice, err)
		}
		bot, err := h.Agents.ByName(ctx, ada, "bot")
		if err != nil || bot.Sponsor != alice.ID || bot.ManagedBy != "apply/default" {
			t.Errorf("the agent is %+v, %v", bot, err)
		}
		crm, err := h.Resources.ByName(ctx, ada, "crm")
		if err != nil || len(crm.Actions) != 2 || crm.Slots[0].Secret != "crm/api-key" {
			t.Errorf("the resource is %+v, %v", crm, err)
		}
		grant, err := h.Grants.ByName(ctx, ada, "read-customers")
		if err != nil || grant.Agent != bot.ID || grant.Resource != crm.ID {
			t.Errorf("the grant is %+v, %v", grant, err)
		}
		key, err := h.Secrets.Get(ctx, ada, "crm/api-key")
		if err != nil || key.Owner != estover.User(alice.ID) || key.Class != estover.Confidential || fmt.Sprint(key.Destinations) != "[crm.example.com:443]" {
			t.Errorf("the secret is %+v, %v", key, err)
		}
		if got := h.must(company); got != "5 unchanged.\n" {
			t.Errorf("the second run says\n%s", got)
		}
		if n := h.events("apply.run"); n != 1 {
			t.Errorf("two runs, of which one changed something, are %d events", n)
		}

		// The order in which things are written does not matter.
		shuffled := strings.NewReplacer(
			"[customer.read, customer.list]", "[customer.list, customer.read]", "[support, billing]", "[billing, support]",
			`    - {name: customer.list, method: GET, path: /v1/customers}
    - {name: customer.read, method: GET, path: "/v1/customers/{id}"}`,
			`    - {name: customer.read, method: GET, path: "/v1/customers/{id}"}
    - {name: customer.list, method: GET, path: /v1/customers}`).Replace(company)
		if got := h.must(shuffled); got != "5 unchanged.\n" {
			t.Errorf("in another order the run says\n%s", got)
		}

		changed := strings.NewReplacer(
			"roles: [operator]", "roles: [operator, auditor]", "clearance: confidential}", "clearance: internal, team: care}",
			"path: /v1/customers}", "path: /v2/customers}", "purposes: [support]", "purposes: [billing, support]",
			"destinations: [crm.example.com]", "destinations: [crm.example.com, eu.crm.example.com]").Replace(company)
		want := `~ Person alice
    roles: ["operator"] → ["auditor","operator"]
~ Secret crm/api-key
    destinations: ["crm.example.com:443"] → ["crm.example.com:443","eu.crm.example.com:443"]
~ Resource crm
    actions[customer.list].path: "/v1/customers" → "/v2/customers"
~ Agent bot
    clearance: "confidential" → "internal"
    team: nothing → "care"
~ Grant read-customers
    purposes: ["support"] → ["billing","support"]
`
		if got := h.must(changed, dryRun); got != want+"5 to update.\n" {
			t.Errorf("a dry run of changes says\n%s", got)
		}
		if got := h.must(changed); got != want+"5 updated.\n" {
			t.Errorf("the changes say\n%s", got)
		}
		if got := h.must(changed); got != "5 unchanged.\n" {
			t.Errorf("the changes again say\n%s", got)
		}
		after, err := h.Agents.Get(ctx, ada, bot.ID)
		if err != nil || after.Clearance != estover.Internal || after.Team != "care" || after.Epoch != 2 {
			t.Errorf("the agent is %+v, %v", after, err)
		}
	})
}

// TestPlaces: every mistake is told with the line and column that it stands at.
func TestPlaces(t *testing.T) {
	h := build(t, dbtest.Open(t))
	head := func(kind, name, spec string) string {
		return "apiVersion: estover.dev/v1\nkind: " + kind + "\nmetadata:\n  name: " + name + "\nspec:\n" + spec
	}
	for _, c := range []struct{ text, want string }{
		{"a: b: c\n", `1:1: This is not YAML: mapping values are not allowed in this context.`},
		{"x: [1\ny: 2\n", `This is not YAML`},
		{"hello\n", "1:1: A document is a mapping, not a text."},
		{"- a\n", "1:1: A document is a mapping, not a list."},
		{"kind: Agent\n", "1:1: A document lacks apiVersion.\ncompany.yaml:1:1: A document lacks metadata.\ncompany.yaml:1:1: A document lacks spec."},
		{head("Agnet", "bot", "  x: y\n"), `2:7: There is no kind "Agnet". Did you mean Agent?`},
		{"apiVersion: v1\nkind: Person\nmetadata: {name: bob}\nspec: {}\n", `1:13: The apiVersion is estover.dev/v1, not "v1".`},
		{head("Person", "bob", "  e-mail: bob@example.com\n"), `6:3: There is no field "e-mail" in the spec of a Person. Did you mean email?`},
		{head("Person", "bob", "  name: bob\n"), `6:3: There is no field "name" in the spec of a Person.`},
		{head("Person", "Bob", "  email: x\n  roles: [operator, root]\n"), `4:9: The name of a person`},
		{head("Person", "bob", "  email: x\n  roles: [operator, root]\n"), "6:10: \"x\" is not an email address.\ncompany.yaml:7:21: \"root\" is no role"},
		{head("Person", "bob", "  email: [a]\n"), "6:10: email is a text, not a list."},
		{head("Person", "bob", "  email: 2027\n"), `6:10: email is a text, not a number. Put it in quotes: "2027".`},
		{head("Person", "bob", "  email: true\n"), `6:10: email is a text, not true or false. Put it in quotes: "true".`},
		{head("Person", "bob", "  roles: operator\n"), "6:10: roles is a list, not a text."},
		{head("Person", "bob", "  roles: [operator, [auditor]]\n"), "6:21: roles[1] is a text, not a list."},
		{head("Person", "bob", "  email: a@example.com\n  email: b@example.com\n"), "7:3: email is there twice."},
		{head("Person", "bob", "  email: &x a@example.com\n  roles: [*x]\n"), "7:11: Aliases are not followed here. Write it out."},
		{head("Agent", "bot", "  blueprint: b\n  purposes: [p]\n"), "6:3: The spec of an Agent lacks clearance.\ncompany.yaml:6:3: The spec of an Agent lacks sponsor."},
		{head("Agent", "bot", "  blueprint:\n  sponsor: alice\n  purposes: [p]\n  clearance: public\n"), "6:3: The spec of an Agent lacks blueprint."},
		{head("Agent", "bot", "  blueprint: b\n  sponsor: alice\n  purposes: [p]\n  clearance: top\n"), "9:14: The clearance is public"},
		{head("Agent", "bot", "  blueprint: b\n  sponsor: alice\n  purposes: [p]\n  clearance: public\n  expires_at: soon\n"), "10:15: expires_at is a time, as 2027-01-31T18:00:00Z, or a day, as 2027-01-31; not \"soon\"."},
		{head("Agent", "bot", "  blueprint: b\n  sponsor: alice\n  purposes: [p]\n  clearance: public\n  expires_at: 2001-01-01\n"), `7:12: There is no Person "alice"`},
		{head("Agent", "bot", "  status: suspended\n"), "6:3: Whether an agent is held is no part of a file."},
		{head("Secret", "crm/key", "  destinations: [crm.example.com]\n  value: hunter2\n"), "7:3: A secret's value never stands in a file."},
		{head("Secret", "/crm", "  destinations: [crm.example.com]\n"), "4:9: The name of a secret is its path"},
		{head("Secret", "crm/key", "  destinations: [crm.example.com, \"*.example.com\"]\n"), "6:35: \"*.example.com\" is not a host"},
		{head("Secret", "crm/key", "  destinations: [crm.example.com]\n  owner: nobody\n"), `7:10: There is no Person "nobody", neither in the files nor on the server.`},
		{head("Resource", "crm", "  base_url: https://crm.example.com\n  class: public\n  actions:\n    - name: a\n      method: GET\n      path: /a\n    - name: b\n      method: GET\n      path: /a\n"), "14:13: GET /a is the same as /a of a."},
		{head("Resource", "crm", "  base_url: https://crm.example.com\n  class: public\n  actions:\n    - name: a\n      methd: GET\n      path: /a\n"), "10:7: There is no field \"methd\" in actions[0]. Did you mean method?"},
		{head("Resource", "crm", "  base_url: https://crm.example.com\n  class: public\n  actions:\n    - name: a\n      path: /a\n"), "9:7: The method"},
		{head("Resource", "crm", "  base_url: https://crm.example.com\n  class: public\n  actions: [{name: a, method: GET, path: /a}]\n  slots:\n    - {slot: header, name: Host, secret: a/b}\n"), "10:28: A secret cannot go into the header \"Host\"."},
		{head("Resource", "crm", "  base_url: https://crm.example.com\n  class: public\n  actions: [{name: a, method: GET, path: /a}]\n  slots:\n    - {slot: query, name: key, secret: a/b}\n"), `10:40: There is no Secret "a/b"`},
		{head("Resource", "crm", "  base_url: https://crm.example.com\n  class: public\n  actions: [{name: a, method: GET, path: /a}]\n  limits: {timeout_seconds: 1.5}\n"), "9:29: limits.timeout_seconds is a whole number, not a number."},
		{head("Resource", "crm", "  base_url: https://crm.example.com\n  class: public\n  actions: [{name: a, method: GET, path: /a}]\n  special_category: sometimes\n"), "9:21: special_category is true or false, not a text."},
		{head("Policy", "company", "  directory: nowhere\n"), "6:14: There are no .rego files in nowhere."},
		{head("Policy", "company", "  files: {../x.rego: \"package x\"}\n"), "6:11: A policy is a .rego or data.json file, not \"../x.rego\"."},
		{head("Policy", "company", "  files: {x.rego: \"package tenant.x\\n\\npermit contains\"}\n"), "x.rego:3:"},
		{head("Person", "bob", "  {}\n") + "---\n" + head("Person", "bob", "  {}\n"), "11:9: Person bob is there twice, first at company.yaml:1."},
	} {
		_, err := h.run(c.text)
		var p apply.Problems
		if !errors.As(err, &p) || !errors.Is(err, apply.ErrProblems) || estover.KindOf(err) != estover.Invalid {
			t.Errorf("%s\nsays %v, want problems", c.text, err)
			continue
		}
		if got := err.Error(); !strings.HasPrefix(got, "company.yaml:"+c.want) && !strings.Contains(got, c.want) {
			t.Errorf("%s\nsays\n%s\nwant\n%s", c.text, got, c.want)
		}
	}
	if list, _, err := h.People.List(t.Context(), ada, directory.Filter{}, "", 0); err != nil || len(list) != 0 {
		t.Errorf("after all those mistakes there are %v, %v", list, err)
	}
}

func TestGrantReferences(t *testing.T) {
	h := build(t, dbtest.Open(t))
	h.must(company)
	grant := func(spec string) string {
		return "apiVersion: estover.dev/v1\nkind: Grant\nmetadata: {name: g}\nspec: " + spec + "\n"
	}
	// What is on the server counts as what is in the files.
	h.must(grant("{agent: bot, resource: crm, actions: [customer.read], purposes: [support], class: public}"))
	for spec, want := range map[string]string{
		"{agent: nobody, resource: nothing, actions: [a], purposes: [p], class: public}":               "4:15: There is no Agent \"nobody\", neither in the files nor on the server.\ncompany.yaml:4:33: There is no Resource \"nothing\"",
		"{agent: bot, resource: crm, actions: [customer.reed], purposes: [support], class: public}":    `4:45: Resource crm has no action "customer.reed". Did you mean customer.read?`,
		"{agent: bot, resource: crm, actions: [\"*\"], purposes: [support, dunning], class: public}":   `Agent bot has not declared the purpose "dunning".`,
		"{agent: bot, resource: crm, actions: [customer.read], purposes: [suport], class: public}":     "Did you mean support?",
		"{agent: bot, resource: crm, actions: [customer.*], purposes: [support], class: public}":       "4:45: The name of each action",
		"{agent: bot, resource: crm, actions: [customer.read], purposes: [support], class: top}":       "The class is public",
		"{agent: bot, resource: crm, actions: [], purposes: [support], class: public, resource: crm2}": "resource is there twice",
	} {
		if _, err := h.run(grant(spec)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s says\n%v\nwant\n%s", spec, err, want)
		}
	}
}

func TestPrune(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h, ctx := build(t, d), t.Context()
		byHand, err := h.People.Create(ctx, ada, directory.Spec{Name: "hand"}, "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.Agents.Create(ctx, ada, agent.Spec{Name: "hands-bot", Blueprint: "b", Sponsor: byHand.ID, Purposes: []string{"p"}, Clearance: estover.Public}, agent.Origin{}); err != nil {
			t.Fatal(err)
		}
		h.must(company)
		h.must(strings.ReplaceAll(`apiVersion: estover.dev/v1
kind: Person
metadata: {name: other}
spec: {}`, "\t", ""), set("other"))
		// A file may change what was made by hand, which does not make it the file's.
		h.must("apiVersion: estover.dev/v1\nkind: Person\nmetadata: {name: hand}\nspec: {roles: [auditor]}\n")

		docs := strings.Split(company, "---\n")
		const nobody = "apiVersion: estover.dev/v1\nkind: Person\nmetadata: {name: alice}\nspec: {email: alice@example.com, roles: [operator]}\n"
		if got := h.must(nobody); got != "1 unchanged.\n" {
			t.Errorf("without pruning it says\n%s", got)
		}
		// What is left may not rest on what goes.
		if _, err := h.run(docs[0], prune); err == nil || !strings.Contains(err.Error(), "Grant read-customers speaks of Agent bot, which no file has any more") {
			t.Errorf("pruning what a grant speaks of: %v", err)
		}
		want := "- Grant read-customers\n- Resource crm\n- Agent bot\n"
		if got := h.must(nobody, prune, dryRun); got != want+"3 to delete, 1 unchanged.\n" {
			t.Errorf("a dry run of pruning says\n%s", got)
		}
		if got := h.must(nobody, prune); got != want+"3 deleted, 1 unchanged.\n" {
			t.Errorf("pruning says\n%s", got)
		}
		if a, err := h.Agents.ByName(ctx, ada, "bot"); err != nil || a.Status != agent.Retired {
			t.Errorf("the agent is %+v, %v", a, err)
		}
		if a, err := h.Agents.ByName(ctx, ada, "hands-bot"); err != nil || a.Status != agent.Active {
			t.Errorf("the agent that was made by hand is %+v, %v", a, err)
		}
		if _, err := h.Resources.ByName(ctx, ada, "crm"); !errors.Is(err, resource.ErrNotFound) {
			t.Errorf("the resource: %v, want ErrNotFound", err)
		}
		if _, err := h.Secrets.Get(ctx, ada, "crm/api-key"); err != nil {
			t.Errorf("the secret: %v, want it left alone", err)
		}
		if got := h.must(nobody, prune); got != "1 unchanged.\n" {
			t.Errorf("pruning again says\n%s", got)
		}
		for _, name := range []string{"alice", "hand", "other"} {
			if p, err := h.People.ByName(ctx, ada, name); err != nil || p.Status != directory.Active {
				t.Errorf("%s is %+v, %v", name, p, err)
			}
		}
		// The name of an agent is not used again; those of the others are free.
		if _, err := h.run(company); err == nil || !strings.Contains(err.Error(), "company.yaml:13:18: The agent bot is retired") {
			t.Errorf("applying a retired agent: %v", err)
		}
		h.must(docs[2] + "---\n" + docs[3] + "---\n" + docs[4])
	})
}

// TestRename: a resource that is renamed keeps its host, since the one goes
// before the other comes.
func TestRename(t *testing.T) {
	h := build(t, dbtest.Open(t))
	h.must(company)
	renamed := strings.NewReplacer("metadata: {name: crm}", "metadata: {name: sales}", "resource: crm", "resource: sales").Replace(company)
	if _, err := h.run(renamed); err == nil || !strings.Contains(err.Error(), "The resource crm has the host crm.example.com:443") || !strings.HasPrefix(err.Error(), "company.yaml:20:") {
		t.Errorf("without pruning: %v, want the host taken", err)
	}
	want := "- Resource crm\n+ Resource sales\n~ Grant read-customers\n    resource: \"crm\" → \"sales\"\n1 created, 1 updated, 1 deleted, 3 unchanged.\n"
	if got := h.must(renamed, prune); got != want {
		t.Errorf("renaming says\n%s", got)
	}
}

// TestSponsorChanges: the agents of somebody who goes are with their next
// sponsor before that.
func TestSponsorChanges(t *testing.T) {
	h := build(t, dbtest.Open(t))
	h.must(company)
	handed := strings.ReplaceAll(company, "alice", "bob")
	out := h.must(handed, prune)
	if !strings.HasPrefix(out, "+ Person bob\n") || !strings.Contains(out, "- Person alice\n") {
		t.Errorf("handing over says\n%s", out)
	}
	a, err := h.Agents.ByName(t.Context(), ada, "bot")
	if err != nil || a.Status != agent.Active {
		t.Errorf("the agent is %+v, %v, want active", a, err)
	}
}

// TestStops: the first change that fails ends a run, and the next one goes on
// from there.
func TestStops(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := build(t, d)
		h.refuse["agent.create"] = true
		r, err := h.Run(t.Context(), ada, apply.Request{Files: []apply.Source{{Path: "company.yaml", Text: company}}})
		var refusal *guard.Refusal
		if !errors.As(err, &refusal) || !strings.HasPrefix(err.Error(), "company.yaml:11: Agent bot: ") {
			t.Errorf("with a change refused: %v", err)
		}
		var done []string
		for _, c := range r.Changes {
			if c.Done {
				done = append(done, c.Kind)
			}
		}
		if got := strings.Join(done, " "); got != "Person Secret Resource" || len(r.Changes) != 5 {
			t.Errorf("done are %q of %d changes", got, len(r.Changes))
		}
		var out strings.Builder
		if err := r.Write(&out); err != nil || !strings.HasSuffix(out.String(), "+ Resource crm\n+ Agent bot (not done)\n+ Grant read-customers (not done)\n3 created, 2 not done.\n") {
			t.Errorf("half a run says %v\n%s", err, out.String())
		}
		h.refuse["agent.create"] = false
		if got := h.must(company); got != "+ Agent bot\n+ Grant read-customers\n2 created, 3 unchanged.\n" {
			t.Errorf("the next run says\n%s", got)
		}
		h.refuse["apply.run"] = true
		changed := strings.Replace(company, "[operator]", "[auditor]", 1)
		if _, err := h.run(changed); !errors.As(err, &refusal) {
			t.Errorf("where nobody may apply: %v, want a refusal", err)
		}
		if p, err := h.People.ByName(t.Context(), ada, "alice"); err != nil || !slices.Equal(p.Roles, []estover.Role{estover.Operator}) {
			t.Errorf("after the refusal alice is %+v, %v", p, err)
		}
	})
}

// TestHoldsStay: an agent that was stopped stays stopped.
func TestHoldsStay(t *testing.T) {
	h, ctx := build(t, dbtest.Open(t)), t.Context()
	h.must(company)
	a, err := h.Agents.ByName(ctx, ada, "bot")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Agents.Hold(ctx, ada, a.ID, agent.Quarantine, "it sent mail to a stranger"); err != nil {
		t.Fatal(err)
	}
	h.must(strings.Replace(company, "sponsor: alice", "sponsor: alice, team: care", 1))
	if a, err = h.Agents.Get(ctx, ada, a.ID); err != nil || a.Status != agent.Quarantined || a.Team != "care" {
		t.Errorf("after a run the agent is %+v, %v", a, err)
	}
}

// TestOver: a grant whose time is over by its own words is as it should be.
func TestOver(t *testing.T) {
	d := dbtest.Open(t)
	clock := dbtest.NewClock(d)
	h := build(t, d)
	timed := strings.Replace(company, "class: confidential\n---", "class: confidential\n  expires_at: "+d.Now().Add(time.Hour).Format(time.RFC3339)+"\n---", 1)
	h.must(timed)
	clock.Advance(2 * time.Hour)
	if got := h.must(timed); got != "5 unchanged.\n" {
		t.Errorf("after its time the run says\n%s", got)
	}
	longer := strings.Replace(company, "class: confidential\n---", "class: confidential\n  expires_at: "+d.Now().Add(time.Hour).Format(time.RFC3339)+"\n---", 1)
	if got := h.must(longer); got != "+ Grant read-customers\n1 created, 4 unchanged.\n" {
		t.Errorf("given again it says\n%s", got)
	}
	over := strings.Replace(company, "class: confidential\n---", "class: confidential\n  expires_at: 2001-01-01\n---", 1)
	if _, err := h.run(over); err == nil || !strings.HasPrefix(err.Error(), "company.yaml:10:15: The grant would have expired") {
		t.Errorf("a live grant that is to have ended: %v", err)
	}
}

// TestPolicy reads policies from a directory beside the file, and puts them in
// force.
func TestPolicy(t *testing.T) {
	h, dir := build(t, dbtest.Open(t)), t.TempDir()
	write := func(name, text string) {
		t.Helper()
		at := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range policy.Starter() {
		write("rules/"+f.Path, f.Text)
	}
	write("files/people/alice.yml", "apiVersion: estover.dev/v1\nkind: Person\nmetadata: {name: alice}\nspec: {}\n")
	write("files/policy.yaml", "apiVersion: estover.dev/v1\nkind: Policy\nmetadata: {name: company}\nspec: {directory: ../rules}\n")
	write("files/.hidden/x.yaml", "this is not ours")
	write("files/readme.txt", "nor is this")
	load := func() func(*apply.Request) {
		t.Helper()
		files, err := apply.Load(filepath.Join(dir, "files"))
		if err != nil {
			t.Fatal(err)
		}
		return func(r *apply.Request) { r.Files = files }
	}
	// The starter bundle is in force already.
	if got := h.must("", load()); got != "+ Person alice\n1 created, 1 unchanged.\n" {
		t.Errorf("the starter bundle says\n%s", got)
	}
	first := policy.Starter()[0]
	write("rules/"+first.Path, first.Text+"\n# Ours.\n")
	if got := h.must("", load()); !strings.HasPrefix(got, "~ Policy company\n    revision: ") {
		t.Errorf("changed policies say\n%s", got)
	}
	if got := h.must("", load()); got != "2 unchanged.\n" {
		t.Errorf("again they say\n%s", got)
	}
	write("rules/"+first.Path, first.Text+"\npermit contains {\n")
	_, err := h.run("", load())
	if err == nil || !strings.Contains(err.Error(), "rules/"+first.Path+":") {
		t.Errorf("broken policies: %v, want the place in their file", err)
	}
	if _, err := apply.Load(filepath.Join(dir, "nothing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("loading what is not there: %v", err)
	}
}

func TestSet(t *testing.T) {
	h := build(t, dbtest.Open(t))
	if _, err := h.run(company, set("My Set")); !errors.Is(err, apply.ErrSet) {
		t.Errorf("a set with a space: %v, want ErrSet", err)
	}
	if _, err := h.run("x: " + strings.Repeat("y", 5<<20)); !errors.Is(err, apply.ErrProblems) {
		t.Errorf("five megabytes: %v, want ErrProblems", err)
	}
	if _, err := h.run(strings.Repeat("x: y\n---\n", 1000)); err == nil || strings.Count(err.Error(), "\n") != 100 || !strings.HasSuffix(err.Error(), "there are more.") {
		t.Errorf("thousands of mistakes are told as %.200v, want the first hundred", err)
	}
	if got := h.must("---\n# nothing\n---\n"); got != "0 unchanged.\n" {
		t.Errorf("nothing says\n%s", got)
	}
}

// TestRefusedUnread: files of somebody who may not apply are not even read, not
// for a dry run either.
func TestRefusedUnread(t *testing.T) {
	h := build(t, dbtest.Open(t))
	h.refuse["apply.run"] = true
	var refusal *guard.Refusal
	for _, dry := range []bool{false, true} {
		if _, err := h.run("this: is\nno: document\n", func(r *apply.Request) { r.DryRun = dry }); !errors.As(err, &refusal) {
			t.Errorf("dry run %v: %v, want a refusal", dry, err)
		}
	}
}

// TestLinks: of a directory that a stranger has filled nothing is sent but what
// lies in it.
func TestLinks(t *testing.T) {
	dir, elsewhere := t.TempDir(), filepath.Join(t.TempDir(), "login.yaml")
	for file, text := range map[string]string{elsewhere: "token: est_pt_x\n", filepath.Join(dir, "a.yaml"): company} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	link := func(name, to string) string {
		t.Helper()
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		return filepath.Join(dir, name)
	}
	link("b.yaml", "a.yaml")
	if files, err := apply.Load(dir); err != nil || len(files) != 2 || files[1].Text != company {
		t.Errorf("with a link within: %v, %v", files, err)
	}
	outside := link("c.yaml", elsewhere)
	if files, err := apply.Load(dir); err == nil || !strings.Contains(err.Error(), "leads out of") {
		t.Errorf("with a link that leads out: %v, %v", files, err)
	}
	if files, err := apply.Load(outside); err != nil || len(files) != 1 {
		t.Errorf("a link that is named itself: %v, %v", files, err)
	}
	if err := os.Remove(outside); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(outside, 0o600); err != nil {
		t.Fatal(err)
	}
	if files, err := apply.Load(dir); err == nil || !strings.Contains(err.Error(), "neither a file") {
		t.Errorf("with a pipe, which would be waited for: %v, %v", files, err)
	}
}

// TestTenants: names of one tenant mean nothing in another.
func TestTenants(t *testing.T) {
	h := build(t, dbtest.Open(t))
	h.must(company)
	docs := strings.Split(company, "---\n")
	eve := estover.Caller{Tenant: "other", Subject: estover.User("usr_eve")}
	_, err := h.Run(t.Context(), eve, apply.Request{Files: []apply.Source{{Path: "a.yaml", Text: docs[1]}}, Prune: true})
	if err == nil || !strings.Contains(err.Error(), `There is no Person "alice"`) {
		t.Errorf("another tenant names alice: %v", err)
	}
	r, err := h.Run(t.Context(), eve, apply.Request{Files: []apply.Source{{Path: "a.yaml", Text: docs[4]}}, Prune: true})
	if err != nil || r.Count(apply.Delete) != 0 || r.Count(apply.Create) != 1 {
		t.Errorf("another tenant's alice: %+v, %v, want one created and nothing deleted", r, err)
	}
}

// FuzzParse: whatever the text, there is no panic, and every problem has a
// place in it.
func FuzzParse(f *testing.F) {
	f.Add(company)
	for _, s := range []string{"a: &a [*a]\n", "? {a: b}\n: c\n", "--- !!binary x\n", "<<: {a: b}\n", "kind: Policy\nspec: {files: {x.rego: y}}\n", "\xef\xbb\xbfkind: Agent\n", "a: |\n  b\n...\n%YAML 1.1\n---\nc"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		docs, err := apply.Parse([]apply.Source{{Path: "x.yaml", Text: text}})
		if err == nil {
			for _, d := range docs {
				if d.Name == "" || d.Spec == nil {
					t.Fatalf("a document without a name or a spec: %+v", d)
				}
			}
			return
		}
		var p apply.Problems
		if !errors.As(err, &p) {
			t.Fatalf("an error that is no problem: %v", err)
		}
		lines := strings.Count(text, "\n") + strings.Count(text, "\r") + strings.Count(text, "\u0085") + strings.Count(text, "\u2028") + strings.Count(text, "\u2029") + 2
		for _, one := range p {
			if one.File != "x.yaml" || one.Line < 0 || one.Line > lines || one.Column < 0 || one.Message == "" {
				t.Fatalf("a problem without a place: %+v", one)
			}
		}
	})
}
