package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"estover.dev/internal/gateway"
)

// What looks like a credential is not handed down, by its name or by its
// value; what only resembles one is.
func TestEnvironment(t *testing.T) {
	ca, err := gateway.NewCA("ses_test", nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	o := opened{CA: string(ca.PEM())}
	for _, c := range []struct {
		variable string
		down     bool
	}{
		{"OPENAI_API_KEY=x", false},
		{"STRIPE_KEY=x", false},
		{"GH_PAT=x", false},
		{"github_token=x", false},
		{"PGPASSFILE=x", false},
		{"AWS_SECRET_ACCESS_KEY=x", false},
		{"SSH_AUTH_SOCK=/x", false},
		{"ESTOVER_CLIENT_SECRET=x", false},
		{"REDIS_URL=redis://:hunter2@cache:6379/0", false},
		{"QUEUE=amqp://guest:guest@mq", false},
		{"HOMEPAGE=https://example.com:8443/a@b", true},
		{"PATH=/bin", true},
		{"PWD=/home", true},
		{"KEYBOARD=de", true},
		{"TERM=xterm", true},
	} {
		env, dropped, err := environment([]string{c.variable}, o, "127.0.0.1:1", t.TempDir(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if down := slices.Contains(env, c.variable); down != c.down {
			t.Errorf("%s is handed down: %v, want %v", c.variable, down, c.down)
		}
		name, _, _ := strings.Cut(c.variable, "=")
		if told := slices.Contains(dropped, name); told == c.down && !strings.HasPrefix(name, "ESTOVER_") {
			t.Errorf("it is told that %s is not handed down: %v", name, told)
		}
		kept, _, err := environment([]string{c.variable}, o, "127.0.0.1:1", t.TempDir(), []string{name})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(kept, c.variable) && !strings.HasPrefix(name, "ESTOVER_") {
			t.Errorf("%s is not handed down although it is to be kept", name)
		}
	}
}

// Git speaks HTTP/1.1, whatever other settings the caller lets it have.
func TestSettingsOfGit(t *testing.T) {
	ca, err := gateway.NewCA("ses_test", nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	own := []string{"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=http.extraHeader", "GIT_CONFIG_VALUE_0=Authorization: Basic eDp5"}
	for _, c := range []struct {
		keep, want []string
	}{
		{nil, []string{"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=http.version", "GIT_CONFIG_VALUE_0=HTTP/1.1"}},
		{[]string{"GIT_CONFIG_COUNT"}, append([]string{"GIT_CONFIG_COUNT=2", "GIT_CONFIG_KEY_1=http.version", "GIT_CONFIG_VALUE_1=HTTP/1.1"}, own[1:]...)},
	} {
		env, _, err := environment(own, opened{CA: string(ca.PEM())}, "127.0.0.1:1", t.TempDir(), c.keep)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, kv := range env {
			if strings.HasPrefix(kv, "GIT_CONFIG_") {
				got = append(got, kv)
			}
		}
		slices.Sort(got)
		slices.Sort(c.want)
		if !slices.Equal(got, c.want) {
			t.Errorf("keeping %q git is told %q, want %q", c.keep, got, c.want)
		}
	}
}

// What is lent ends with the command, so that by which it was got is not handed down.
func TestHandedDown(t *testing.T) {
	own := []string{"PATH=/bin", "ESTOVER_TOKEN=a", "ESTOVER_CLIENT_ID=agt_1", "ESTOVER_CLIENT_SECRET=b", "ESTOVER_CLIENT_SECRET_FILE=c", "ESTOVER_TOKENS=d", "PGUSER=old"}
	got := handedDown(own, map[string]string{"PGUSER": "new", "ESTOVER_TOKEN": "lent"})
	if want := []string{"PATH=/bin", "ESTOVER_CLIENT_ID=agt_1", "ESTOVER_TOKENS=d", "PGUSER=old", "ESTOVER_TOKEN=lent", "PGUSER=new"}; !slices.Equal(got, want) {
		t.Errorf("a command gets %q, want %q", got, want)
	}
}
