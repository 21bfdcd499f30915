// Sdk is an agent by itself, another that it hands work to, and a resource that
// both call, with estover.dev/client.
package main

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"estover.dev/client"
)

// newAgent is an agent that proves itself by its key. Its tokens are bound to
// another key, which lives as long as the program.
func newAgent(issuer, id string, key crypto.Signer) (*client.Client, error) {
	binding, err := client.NewKey()
	if err != nil {
		return nil, err
	}
	return client.New(issuer, client.Options{ID: id, Credential: client.PrivateKey(key, "first"), DPoP: binding})
}

// read reads a customer by way of the gateway. The api is where it has the
// customer system: https://estover.example.com/u/crm
func read(ctx context.Context, agent *client.Client, api string) (string, error) {
	crm := &http.Client{Transport: &client.Transport{
		Client: agent,
		Want:   client.Want{Resources: []string{api}, Scopes: []string{"customer.read"}},
	}}
	return get(ctx, crm, api+"/v1/customers/cus_1001")
}

// get is the body of an answer, or why there is none.
func get(ctx context.Context, c *http.Client, at string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return "", err
	}
	answer, err := c.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	if err := client.ErrorOf(answer); err != nil {
		return "", err
	}
	body, err := io.ReadAll(answer.Body)
	return string(body), err
}

// task does one task in a session of its own, and ends it with all that belongs
// to it.
func task(ctx context.Context, agent *client.Client, api string) (text string, err error) {
	session, err := agent.OpenSession(ctx, client.Task{About: "find out who called", Life: 10 * time.Minute})
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, agent.EndSession(context.WithoutCancel(ctx), session, "done")) }()
	crm := &http.Client{Transport: &client.Transport{
		Client: agent,
		Want:   client.Want{Resources: []string{api}, Session: session.ID},
	}}
	return get(ctx, crm, api+"/v1/customers/cus_1001")
}

// note adds a note, which the agent may not do by itself: it asks for that, in
// its session and for a while, and waits until it is decided.
func note(ctx context.Context, agent *client.Client, session client.Session, api, text string) error {
	request, err := agent.Ask(ctx, client.Wish{
		Access:  []client.Access{{Resource: "crm", Actions: []string{"note.add"}}},
		Session: session.ID, For: 10 * time.Minute, Reason: "the customer called",
	})
	if err == nil {
		request, err = agent.Await(ctx, request)
	}
	if err != nil {
		return err
	}
	if request.State != client.Approved {
		return fmt.Errorf("the request is %s: %s", request.State, request.Note)
	}
	crm := &http.Client{Transport: &client.Transport{
		Client: agent,
		Want:   client.Want{Resources: []string{api}, Session: session.ID},
	}}
	answer, err := crm.Post(api+"/v1/customers/cus_1001/notes", "application/json", strings.NewReader(`{"text": "`+text+`"}`))
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	return client.ErrorOf(answer)
}

// noted adds a note in a session of its own.
func noted(ctx context.Context, agent *client.Client, api string) (string, error) {
	session, err := agent.OpenSession(ctx, client.Task{})
	if err != nil {
		return "", err
	}
	if err := note(ctx, agent, session, api, "Called about the invoice."); err != nil {
		return "", err
	}
	if err := agent.EndSession(ctx, session, "done"); err != nil {
		return "", err
	}
	return read(ctx, agent, api)
}

// takeUp reads a customer with a token that another agent has handed over.
func takeUp(ctx context.Context, helper *client.Client, handed, api string) (string, error) {
	token, err := helper.Exchange(ctx, handed, client.Want{Scopes: []string{"customer.read"}})
	if err != nil {
		return "", err
	}
	crm := &http.Client{Transport: &client.Transport{
		Client: helper,
		To:     api,
		Source: func(context.Context) (client.Token, error) { return token, nil },
	}}
	return get(ctx, crm, api+"/v1/customers/cus_1001")
}

// resource is a resource of one's own, which agents call at its own address.
func resource(issuer, identifier, address string) http.Handler {
	verifier := &client.Verifier{Issuer: issuer, Audience: identifier, URL: address}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		claims, err := verifier.Request(r)
		var refused *client.Error
		switch {
		case errors.As(err, &refused):
			w.Header().Set("WWW-Authenticate", `DPoP error="`+refused.Code+`"`)
			http.Error(w, refused.Description, refused.Status)
		case err != nil:
			http.Error(w, "The keys of the issuer cannot be had.", http.StatusServiceUnavailable)
		case !claims.May("customer.read"):
			http.Error(w, "The token is not good for this.", http.StatusForbidden)
		default:
			fmt.Fprintf(w, "for %s, by %v", claims.Subject, claims.Actors)
		}
	})
}

// byCertificate is an agent that shows a certificate, to which its tokens are
// bound.
func byCertificate(issuer, id, certificate, key string) (*client.Client, error) {
	pair, err := tls.LoadX509KeyPair(certificate, key)
	if err != nil {
		return nil, err
	}
	return client.New(issuer, client.Options{ID: id, Credential: client.Certificate(pair)})
}

// byPlatform is an agent that its platform knows.
func byPlatform(issuer, file string) (*client.Client, error) {
	return client.New(issuer, client.Options{Credential: client.WorkloadTokenFile(file)})
}

func main() {
	if err := all(context.Background(), os.Getenv("ISSUER"), os.Getenv("CLIENT_ID"), os.Getenv("RESOURCE")); err != nil {
		log.Fatal(err)
	}
}

func all(ctx context.Context, issuer, id, identifier string) error {
	text, err := os.ReadFile(os.Getenv("CERTIFICATE_KEY"))
	if err != nil {
		return err
	}
	block, _ := pem.Decode(text)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return err
	}
	api := issuer + "/u/crm"
	agent, err := newAgent(issuer, id, key.(crypto.Signer))
	if err != nil {
		return err
	}
	certified, err := byCertificate(issuer, id, os.Getenv("CERTIFICATE"), os.Getenv("CERTIFICATE_KEY"))
	if err != nil {
		return err
	}
	workload, err := byPlatform(issuer, os.Getenv("WORKLOAD_TOKEN"))
	if err != nil {
		return err
	}
	planner, err := client.New(issuer, client.Options{ID: id, Credential: client.Secret(os.Getenv("CLIENT_SECRET"))})
	if err != nil {
		return err
	}
	helper, err := client.New(issuer, client.Options{ID: os.Getenv("HELPER_ID"), Credential: client.Secret(os.Getenv("HELPER_SECRET"))})
	if err != nil {
		return err
	}
	handed, err := planner.Token(ctx, client.Want{Resources: []string{identifier}})
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	own := "http://" + listener.Addr().String()
	go func() { log.Fatal(http.Serve(listener, resource(issuer, identifier, own))) }()
	direct := &http.Client{Transport: &client.Transport{Client: agent, Want: client.Want{Resources: []string{identifier}}, To: own}}
	for what, do := range map[string]func() (string, error){
		"read":                       func() (string, error) { return read(ctx, agent, api) },
		"read again":                 func() (string, error) { return read(ctx, agent, api) },
		"read with a certificate":    func() (string, error) { return read(ctx, certified, api) },
		"read as a workload":         func() (string, error) { return read(ctx, workload, api) },
		"do a task":                  func() (string, error) { return task(ctx, agent, api) },
		"do a task by a certificate": func() (string, error) { return task(ctx, certified, api) },
		"ask for more":               func() (string, error) { return noted(ctx, planner, api) },
		"take up a token":            func() (string, error) { return takeUp(ctx, helper, handed.Reveal(), api) },
		"call without the gateway":   func() (string, error) { return get(ctx, direct, own+"/who") },
	} {
		said, err := do()
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if want := map[bool]string{true: "for agent:" + id, false: "Ada Lindqvist"}[what == "call without the gateway"]; !strings.Contains(said, want) {
			return fmt.Errorf("%s: the answer is %s", what, said)
		}
	}
	// Whoever brings no token is told what is missing, in words that ErrorOf reads.
	_, err = get(ctx, http.DefaultClient, own+"/who")
	var refused *client.Error
	if !errors.As(err, &refused) || refused.Status != http.StatusUnauthorized {
		return fmt.Errorf("without a token: %w", err)
	}
	return nil
}
