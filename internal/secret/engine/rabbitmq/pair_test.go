package rabbitmq_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/secret/engine"
)

// paired makes a second admin, and makes it anew where the broker, which takes long for
// that on a busy machine, had not answered in time.
func paired(t *testing.T, e engine.Engine, name, like string, secret estover.Secret) {
	t.Helper()
	err := e.(engine.Pairer).Pair(t.Context(), name, like, secret)
	for tries := 1; err != nil && tries < 5; tries++ {
		var refused *engine.Refused
		if errors.As(err, &refused) {
			break
		}
		t.Logf("making %s, once more: %v", name, err)
		err = e.(engine.Pairer).Pair(t.Context(), name, like, secret)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestSecondAdmin is of the second admin (R12): it has the tags, the permissions and the
// limits of the first, and is sent to the management interface alone; nobody is taken
// over.
func TestSecondAdmin(t *testing.T) {
	s := running(t)
	tell := func(method, path, body string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+s.Address(management)+"/api/"+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth("estover", admin)
		req.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if resp.Body.Close(); resp.StatusCode/100 != 2 {
			t.Fatalf("%s %s: %s", method, path, resp.Status)
		}
	}
	for _, c := range [][2]string{
		{"users/pair_first", `{"password": "` + admin + `", "tags": "administrator,crew"}`},
		{"permissions/crm/pair_first", `{"configure": "^a", "write": "", "read": ".*"}`},
		{"permissions/a%2Fb%20c/pair_first", `{"configure": "", "write": "^b", "read": ""}`},
		{"topic-permissions/crm/pair_first", `{"exchange": "amq.topic", "write": "^w", "read": "^r"}`},
		{"user-limits/pair_first/max-connections", `{"value": 7}`},
	} {
		tell(http.MethodPut, c[0], c[1])
	}
	defer tell(http.MethodDelete, "users/pair_first", "")
	var dialled []string
	as := func(c engine.Credential) engine.Engine {
		conf := config(s)
		conf.Admin = c
		conf.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			dialled = append(dialled, address)
			return (&net.Dialer{}).DialContext(ctx, network, address)
		}
		return open(t, conf)
	}
	first := engine.Credential{User: "pair_first", Secret: estover.NewSecret([]byte(admin))}
	second := engine.Credential{User: "pair_first_b", Secret: estover.NewSecret([]byte("made-for-the-second"))}
	e := as(first)
	paired(t, e, second.User, first.User, second.Secret)
	defer tell(http.MethodDelete, "users/pair_first_b", "")
	for _, what := range []string{"", "/permissions", "/topic-permissions"} {
		var of [2]any
		for i, user := range []string{first.User, second.User} {
			if _, err := s.Call(t.Context(), http.MethodGet, "/api/users/"+user+what, &of[i]); err != nil {
				t.Fatal(err)
			}
		}
		if a, b := told(of[0]), told(of[1]); !slices.Equal(a, b) || len(a) == 0 {
			t.Errorf("%s: the first has %q and the second %q", what, a, b)
		}
	}
	if err := e.Verify(t.Context(), second); err != nil {
		t.Errorf("the second admin logs in: %v", err)
	}
	if err := e.Verify(t.Context(), engine.Credential{User: second.User, Secret: first.Secret}); !errors.Is(err, engine.ErrWrongSecret) {
		t.Errorf("with the password of the first: %v, want ErrWrongSecret", err)
	}
	b := as(second)
	// What one has that the other has not is told, though both log in (R12).
	var unlike *engine.Refused
	if err := b.(engine.Comparer).Alike(t.Context(), second.User, first.User); err != nil {
		t.Errorf("two admins that are alike: %v", err)
	}
	if err := b.(engine.Comparer).Alike(t.Context(), second.User, "estover"); !errors.As(err, &unlike) || !strings.Contains(err.Error(), "rights of the first") {
		t.Errorf("one with other rights: %v, want a refusal", err)
	}
	if _, err := b.Create(t.Context(), engine.Order{Name: "e_pair_a", Secret: second.Secret, Template: template}); err != nil {
		t.Errorf("a user that the second admin makes: %v", err)
	}
	if err := b.Revoke(t.Context(), []engine.Doomed{{Name: "e_pair_a"}})[0]; err != nil {
		t.Error(err)
	}
	if err := b.SetSecret(t.Context(), first.User, second.Secret, estover.Secret{}); err != nil {
		t.Errorf("the first admin's password, by the second: %v", err)
	}
	if err := b.Verify(t.Context(), first); !errors.Is(err, engine.ErrWrongSecret) {
		t.Errorf("what the first admin had: %v, want ErrWrongSecret", err)
	}
	if slices.Contains(dialled, s.Address(plain)) {
		t.Errorf("an admin's password went to the port of clients: %q", dialled)
	}
	var refused *engine.Refused
	if err := b.(engine.Pairer).Pair(t.Context(), first.User, second.User, second.Secret); !errors.As(err, &refused) {
		t.Errorf("who is there already: %v, want a refusal", err)
	}
	if err := b.(engine.Pairer).Pair(t.Context(), "pair_other", "estover", second.Secret); !errors.As(err, &refused) {
		t.Errorf("like another than the admin: %v, want a refusal", err)
	}
}

// TestSecondAdminCutOff is of a second admin in the making of which somebody is cut off,
// again and again (R6): it has no password until it has the rights of the first, so
// whoever comes later makes it anew.
func TestSecondAdminCutOff(t *testing.T) {
	s := running(t)
	first := engine.Credential{User: "cut_first", Secret: estover.NewSecret([]byte(admin))}
	second := engine.Credential{User: "cut_first_b", Secret: estover.NewSecret([]byte("made-for-the-second"))}
	asOperator := open(t, config(s))
	paired(t, asOperator, first.User, "estover", first.Secret)
	conf := config(s)
	conf.Admin = first
	e := open(t, conf)
	gone := func() {
		if err := e.Revoke(t.Context(), []engine.Doomed{{Name: second.User}})[0]; err != nil {
			t.Fatal(err)
		}
	}
	defer asOperator.Revoke(t.Context(), []engine.Doomed{{Name: first.User}, {Name: second.User}})
	takes := time.Hour
	for range 3 { // the first one may have to wait for connections
		began := time.Now()
		paired(t, e, second.User, first.User, second.Secret)
		takes = min(takes, time.Since(began))
		gone()
	}
	cut, halves := 0, 0
	settle := func() error { // as a rotation does after it was cut off
		err := e.SetSecret(t.Context(), second.User, second.Secret, estover.Secret{})
		if errors.Is(err, engine.ErrNoUser) {
			if there, err := e.List(t.Context(), second.User); err != nil {
				return err
			} else if len(there) > 0 {
				halves++
			}
			err = e.(engine.Pairer).Pair(t.Context(), second.User, first.User, second.Secret)
			if err != nil && strings.Contains(err.Error(), "there is a user") { // what was cut off has come through since
				err = nil
			}
		}
		if err == nil {
			err = e.(engine.Comparer).Alike(t.Context(), second.User, first.User)
		}
		if err == nil {
			err = e.Verify(t.Context(), second)
		}
		return err
	}
	const rounds = 16
	for round := 0; round < rounds || halves == 0 && round < 8*rounds; round++ {
		ctx, cancel := context.WithTimeout(t.Context(), takes*time.Duration(round%rounds)/(rounds*3/4))
		if err := e.(engine.Pairer).Pair(ctx, second.User, first.User, second.Secret); err != nil {
			cut++
		}
		cancel()
		err := settle()
		for tries := 1; err != nil && tries < 5; tries++ { // the broker is slow where many tests run
			t.Logf("round %d, once more: %v", round, err)
			err = settle()
		}
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		gone()
	}
	if cut == 0 || halves == 0 {
		t.Errorf("%d were cut off, and %d left one half made: this proves nothing", cut, halves)
	}
	t.Logf("%d were cut off, and %d left one half made", cut, halves)
}

// told is what the interface tells of a user, without who it is and its password, in
// one order.
func told(answer any) (all []string) {
	switch answer := answer.(type) {
	case []any:
		for _, one := range answer {
			all = append(all, strings.Join(told(one), " "))
		}
	case map[string]any:
		for name, value := range answer {
			if !slices.Contains([]string{"name", "user", "password_hash"}, name) {
				all = append(all, fmt.Sprint(name, " ", value))
			}
		}
	}
	slices.Sort(all)
	return all
}
