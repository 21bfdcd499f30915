package oauth

import (
	"errors"
	"net/http"
	"reflect"
	"strings"
	"testing"

	"estover.dev"
	"estover.dev/internal/jose"
	"estover.dev/internal/token"
)

// The tokens of RFC 8693, appendix A.
const (
	// A.1.1: whom an impersonation is of.
	token8693bdc = "eyJhbGciOiJFUzI1NiIsImtpZCI6IjE2In0.eyJhdWQiOiJodHRwczovL2FzLmV4YW1wbGUuY29tIiwiaXNzIjoiaHR0cHM6Ly9vcmlnaW5hbC1pc3N1ZXIuZXhhbXBsZS5uZXQiLCJleHAiOjE0NDE5MTA2MDAsIm5iZiI6MTQ0MTkwOTAwMCwic3ViIjoiYmRjQGV4YW1wbGUubmV0Iiwic2NvcGUiOiJvcmRlcnMgcHJvZmlsZSBoaXN0b3J5In0.PRBg-jXn4cJuj1gmYXFiGkZzRuzbXZ_sDxdE98ddW44ufsbWLKd3JJ1VZhF64pbTtfjy4VXFVBDaQpKjn5JzAw"
	// A.2.1: who delegates, and who acts.
	token8693user  = "eyJhbGciOiJFUzI1NiIsImtpZCI6IjE2In0.eyJhdWQiOiJodHRwczovL2FzLmV4YW1wbGUuY29tIiwiaXNzIjoiaHR0cHM6Ly9vcmlnaW5hbC1pc3N1ZXIuZXhhbXBsZS5uZXQiLCJleHAiOjE0NDE5MTAwNjAsInNjb3BlIjoic3RhdHVzIGZlZWQiLCJzdWIiOiJ1c2VyQGV4YW1wbGUubmV0IiwibWF5X2FjdCI6eyJzdWIiOiJhZG1pbkBleGFtcGxlLm5ldCJ9fQ.4rPRSWihQbpMIgAmAoqaJojAxj-p2X8_fAtAGTXrvMxU-eEZHnXqY0_AOZgLdxw5DyLzua8H_I10MCcckF-Q_g"
	token8693admin = "eyJhbGciOiJFUzI1NiIsImtpZCI6IjE2In0.eyJhdWQiOiJodHRwczovL2FzLmV4YW1wbGUuY29tIiwiaXNzIjoiaHR0cHM6Ly9vcmlnaW5hbC1pc3N1ZXIuZXhhbXBsZS5uZXQiLCJleHAiOjE0NDE5MTAwNjAsInN1YiI6ImFkbWluQGV4YW1wbGUubmV0In0.7YQ-3zPfhUvzje5oqw8COCvN5uP6NsKik9CVV6cAOf4QKgM-tKfiOwcgZoUuDL2tEs6tqPlcBlMjiSzEjm3yBg"
)

// RFC 8693, section 2.3 and appendices A.1.1 and A.2.1: the requests are read as
// they are meant. Those of the appendix are for an audience that is no resource
// here, where each has a URL.
func TestVectorsOfExchanges(t *testing.T) {
	const begin = "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Atoken-exchange"
	for _, v := range []struct {
		name, body          string
		want                exchange
		resource, audiences []string
		refused             *estover.Error
	}{
		{
			"2.3", begin + "&resource=https%3A%2F%2Fbackend.example.com%2Fapi" +
				"&subject_token=accVkjcJyb4BWCxGsndESCJQbdFMogUC5PbRDqceLTC&subject_token_type=urn%3Aietf%3Aparams%3Aoauth%3Atoken-type%3Aaccess_token",
			exchange{subject: "accVkjcJyb4BWCxGsndESCJQbdFMogUC5PbRDqceLTC", subjectType: accessTokenType},
			[]string{"https://backend.example.com/api"},
			nil, nil,
		},
		{
			"A.1.1", begin + "&audience=urn%3Aexample%3Acooperation-context" +
				"&subject_token=" + token8693bdc + "&subject_token_type=urn%3Aietf%3Aparams%3Aoauth%3Atoken-type%3Ajwt",
			exchange{subject: token8693bdc, subjectType: jwtType},
			nil,
			[]string{"urn:example:cooperation-context"},
			errTarget,
		},
		{
			"A.2.1", begin + "&audience=urn%3Aexample%3Acooperation-context" +
				"&subject_token=" + token8693user + "&subject_token_type=urn%3Aietf%3Aparams%3Aoauth%3Atoken-type%3Ajwt" +
				"&actor_token=" + token8693admin + "&actor_token_type=urn%3Aietf%3Aparams%3Aoauth%3Atoken-type%3Ajwt",
			exchange{subject: token8693user, subjectType: jwtType, actor: token8693admin, actorType: jwtType},
			nil,
			[]string{"urn:example:cooperation-context"},
			errTarget,
		},
	} {
		t.Run(v.name, func(t *testing.T) {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://as.example.com/as/token.oauth2", strings.NewReader(v.body))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			f, err := readForm(r)
			if err != nil {
				t.Fatalf("reading the form: %v", err)
			}
			if got := f.all("resource"); !reflect.DeepEqual(got, v.resource) {
				t.Errorf("the resources are %q, want %q", got, v.resource)
			}
			if got := f.all("audience"); !reflect.DeepEqual(got, v.audiences) {
				t.Errorf("the audiences are %q, want %q", got, v.audiences)
			}
			got, err := parseExchange(f)
			if err != nil || got != any(v.want) {
				t.Errorf("read %+v, %v, want %+v", got, err, v.want)
			}

			switch r, err := parse(f); {
			case v.refused != nil && !errors.Is(err, v.refused):
				t.Errorf("the request: %v, want %v", err, v.refused)
			case v.refused == nil && (err != nil || r.grantType != token.Exchange || r.own != any(v.want) || !reflect.DeepEqual(r.resources, v.resource)):
				t.Errorf("the request is read as %+v, %v", r, err)
			}

			// Each parameter of the exchange is there for a reason.
			for _, name := range []string{"subject_token", "subject_token_type", "actor_token", "actor_token_type"} {
				if f.get(name) == "" {
					continue
				}
				var less form
				for _, p := range f {
					if p.name != name {
						less = append(less, p)
					}
				}
				if _, err := parseExchange(less); !errors.Is(err, errRequest) {
					t.Errorf("without %s: %v, want %v", name, err, errRequest)
				}
			}
		})
	}

	// Section 2.3: the client.
	if id, secret, err := basic("cnMwODpsb25nLXNlY3VyZS1yYW5kb20tc2VjcmV0"); err != nil || id != "rs08" || secret != "long-secure-random-secret" {
		t.Errorf("the client is %q with %q, %v", id, secret, err)
	}

	// The tokens are read as the figures of the appendix show them.
	for _, v := range []struct {
		name, token, subject string
	}{
		{"the subject token of A.1.1", token8693bdc, "bdc@example.net"},
		{"the subject token of A.2.1", token8693user, "user@example.net"},
		{"the actor token of A.2.1", token8693admin, "admin@example.net"},
	} {
		u, err := jose.Peek(v.token)
		if err != nil {
			t.Errorf("%s: %v", v.name, err)
			continue
		}
		if u.Issuer != "https://original-issuer.example.net" || u.Subject != v.subject || !reflect.DeepEqual(u.Audience, []string{"https://as.example.com"}) {
			t.Errorf("%s is of %q, about %q, for %q", v.name, u.Issuer, u.Subject, u.Audience)
		}
	}
}
