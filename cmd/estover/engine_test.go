package main

import (
	"fmt"
	"strings"
	"testing"
)

// On a terminal the wizard asks for what the flags leave open, and for nothing
// else.
func TestEnablingAsks(t *testing.T) {
	k := targetKind{
		Name: "postgres", Title: "PostgreSQL", Address: "HOST[:PORT]/DATABASE", Port: "5432", Pair: true,
		Options:  []engineField{{Name: "tls", Help: "verify or off"}, {Name: "role", Help: "the role that is taken"}},
		Template: []engineField{{Name: "groups", Help: "what it is a member of", Many: true}},
	}
	e := enabling{options: []string{"role=maker"}}
	e.spec.Name = "crm-db"
	var out strings.Builder
	answers := "\ndb.example.com/crm\noff\ntargets/crm-db\nestover\npg.key\n\nreaders\nwriters\n\n"
	if err := e.ask(strings.NewReader(answers), &out, k); err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(e.spec.Address, e.options, e.spec.Admin, e.adminUser, e.adminSecret, e.template)
	if want := "db.example.com/crm[role=maker tls=off]targets/crm-dbestoverpg.key[groups=readers groups=writers]"; got != want {
		t.Errorf("the answers are taken as %s, want %s", got, want)
	}
	if e.keepRoot || !strings.Contains(out.String(), "changed to one that nobody knows") { // R12
		t.Errorf("Enter keeps the password that was typed in: %v\n%s", e.keepRoot, out.String())
	}
	kept := enabling{options: []string{"role=maker", "tls=off"}, adminUser: "estover", adminSecret: "pg.key", template: []string{"groups=readers"}}
	kept.spec.Name, kept.spec.Address, kept.spec.Admin = "crm-db", "db.example.com/crm", "targets/crm-db"
	if err := kept.ask(strings.NewReader("yes\n"), &out, k); err != nil || !kept.keepRoot {
		t.Errorf("whoever wants the password kept: %v, %v", kept.keepRoot, err)
	}
	var alone strings.Builder
	changed := enabling{options: []string{"role=maker", "tls=off"}, adminUser: "estover", adminSecret: "pg.key", template: []string{"groups=readers"}}
	changed.spec = kept.spec
	k.Pair, k.Overlap = false, true // as a directory, whose admin gets another password beside its own
	if err := changed.ask(strings.NewReader("\n"), &alone, k); err != nil || changed.keepRoot || !strings.Contains(alone.String(), "The password that you gave is changed to one that nobody knows") || strings.Contains(alone.String(), "second admin") {
		t.Errorf("where no second admin is made: %v, %v\n%s", changed.keepRoot, err, alone.String())
	}
	if n := strings.Count(out.String(), "Address ("); n != 2 {
		t.Errorf("the address is asked for %d times, want again after no answer:\n%s", n, out.String())
	}
	if strings.Contains(out.String(), "the role that is taken") {
		t.Errorf("it asks for an option that was given:\n%s", out.String())
	}
	if err := (&enabling{}).ask(strings.NewReader(""), &out, k); err == nil {
		t.Error("it goes on although nobody answers")
	}
}
