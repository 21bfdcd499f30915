package resource_test

import (
	"testing"

	"estover.dev"
	"estover.dev/internal/resource"
)

// A service is a resource to which nothing is forwarded: it has actions for
// grants and roles to name, and nothing of HTTP.
func TestService(t *testing.T) {
	good := func() resource.Spec {
		return resource.Spec{
			Name: "crm-db", Type: resource.Service, BaseURL: "postgres://db.example.com:5432/crm", Class: estover.Confidential,
			Actions: []resource.Action{{Name: "rows.read", Effect: "read"}, {Name: "rows.write", Effect: "write"}},
		}
	}
	s, err := resource.Check(good())
	if err != nil || len(s.Hosts) != 0 || s.BaseURL != good().BaseURL || s.Actions[1].Method != "*" || s.Actions[1].Class != estover.Confidential {
		t.Fatalf("a service: %+v, %v", s, err)
	}
	if again, err := resource.Check(s); err != nil || again.Actions[0].Path != s.Actions[0].Path {
		t.Errorf("what is kept of it, checked again: %+v, %v", again, err)
	}
	for name, change := range map[string]func(*resource.Spec){
		"an HTTP address":          func(s *resource.Spec) { s.BaseURL = "https://db.example.com" },
		"a password in it":         func(s *resource.Spec) { s.BaseURL = "postgres://u:p@db.example.com" },
		"no host":                  func(s *resource.Spec) { s.BaseURL = "postgres:///crm" },
		"hosts":                    func(s *resource.Spec) { s.Hosts = []string{"db.example.com"} },
		"a slot":                   func(s *resource.Spec) { s.Slots = []resource.Slot{{Slot: resource.Header, Name: "X", Secret: "a"}} },
		"a method":                 func(s *resource.Spec) { s.Actions[0].Method = "GET" },
		"a path":                   func(s *resource.Spec) { s.Actions[0].Path = "/x" },
		"an action with no effect": func(s *resource.Spec) { s.Actions[0].Effect = "" },
		"limits":                   func(s *resource.Spec) { s.Limits.TimeoutSeconds = 3 },
		"a type that is none":      func(s *resource.Spec) { s.Type = "telnet" },
	} {
		s := good()
		change(&s)
		if _, err := resource.Check(s); err == nil {
			t.Errorf("a service with %s is taken", name)
		}
	}
}
