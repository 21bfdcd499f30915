package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"

	"estover.dev/client"
)

// server stands for one of Estover: it has one token, for one agent.
func server() *httptest.Server {
	var s *httptest.Server
	s = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/.well-known/oauth-authorization-server":
			fmt.Fprintf(w, `{"issuer":%q,"token_endpoint":%q,"jwks_uri":%q}`, s.URL, s.URL+"/oauth/token", s.URL+"/oauth/jwks")
		case r.URL.Path == "/oauth/token" && r.FormValue("scope") == "customer.delete":
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprint(w, `{"error":"access_denied","error_description":"No policy permits this.","decision":"evt_1"}`)
		case r.URL.Path == "/oauth/token":
			fmt.Fprint(w, `{"access_token":"eyJ","token_type":"Bearer","expires_in":900,"scope":"customer.read","session":"ses_1"}`)
		default:
			fmt.Fprintf(w, "with a token: %v", r.Header.Get("Authorization") == "Bearer eyJ")
		}
	}))
	return s
}

func Example() {
	estover := server()
	defer estover.Close()
	agent, err := client.New(estover.URL, client.Options{ID: "agt_1", Credential: client.Secret(os.Getenv("CLIENT_SECRET") + "…")})
	if err != nil {
		log.Fatal(err)
	}
	api := estover.URL + "/u/crm"
	crm := &http.Client{Transport: &client.Transport{Client: agent, Want: client.Want{Resources: []string{api}}}}
	answer, err := crm.Get(api + "/v1/customers")
	if err != nil {
		log.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(body))
	// Output: with a token: true
}

func ExampleClient_Token() {
	estover := server()
	defer estover.Close()
	agent, err := client.New(estover.URL, client.Options{ID: "agt_1", Credential: client.Secret(os.Getenv("CLIENT_SECRET") + "…")})
	if err != nil {
		log.Fatal(err)
	}
	token, err := agent.Token(context.Background(), client.Want{Resources: []string{"https://crm.example.com"}, Purpose: "support"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(token.Type, token.Scopes, token.Session)

	_, err = agent.Token(context.Background(), client.Want{Resources: []string{"https://crm.example.com"}, Scopes: []string{"customer.delete"}})
	var refused *client.Error
	if errors.As(err, &refused) {
		fmt.Println(refused.Code, refused.Decision)
	}
	// Output:
	// Bearer [customer.read] ses_1
	// access_denied evt_1
}

// A session for each task: whatever was got in it ends with it.
func ExampleClient_OpenSession() {
	agent, err := client.New("https://estover.example.com", client.Options{ID: "agt_1", Credential: client.Secret(os.Getenv("CLIENT_SECRET"))})
	if err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()
	session, err := agent.OpenSession(ctx, client.Task{Purpose: "support", About: "find out who called"})
	if err != nil {
		log.Fatal(err)
	}
	defer func() {
		if err := agent.EndSession(ctx, session, "done"); err != nil {
			log.Print(err)
		}
	}()
	token, err := agent.Token(ctx, client.Want{Resources: []string{"https://crm.example.com"}, Session: session.ID})
	if err != nil {
		log.Print(err)
		return
	}
	fmt.Println(token)
}

// A resource that agents call by themselves.
func ExampleVerifier() {
	verifier := &client.Verifier{Issuer: "https://estover.example.com", Audience: "https://crm.example.com", URL: "https://crm.example.com"}
	http.HandleFunc("GET /v1/customers", func(w http.ResponseWriter, r *http.Request) {
		claims, err := verifier.Request(r)
		var refused *client.Error
		switch {
		case errors.As(err, &refused):
			http.Error(w, refused.Description, refused.Status)
		case err != nil:
			http.Error(w, "The keys of the issuer cannot be had.", http.StatusServiceUnavailable)
		case !claims.May("customer.list"):
			http.Error(w, "The token is not good for this.", http.StatusForbidden)
		default:
			fmt.Fprintln(w, claims.Subject, claims.Actors)
		}
	})
}
