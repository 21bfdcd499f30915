package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/jwt"
)

// people is an agent that people let act for them. What they are asked to open
// or to type goes to standard output.
func people(ctx context.Context) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	issuer := os.Getenv("ISSUER")
	config := oauth2.Config{
		ClientID:     os.Getenv("CLIENT_ID"),
		ClientSecret: os.Getenv("CLIENT_SECRET"),
		Endpoint: oauth2.Endpoint{
			AuthURL: issuer + "/oauth/authorize", TokenURL: issuer + "/oauth/token", DeviceAuthURL: issuer + "/oauth/device",
		},
		RedirectURL: "http://" + listener.Addr().String() + "/callback",
		Scopes:      []string{"customer.read"},
	}
	resource := oauth2.SetAuthURLParam("resource", os.Getenv("RESOURCE"))

	// A person is sent to the server, and comes back with a code.
	verifier, state := oauth2.GenerateVerifier(), oauth2.GenerateVerifier()
	fmt.Println("Open", config.AuthCodeURL(state, resource, oauth2.S256ChallengeOption(verifier)))
	code, err := back(listener, state)
	if err != nil {
		return err
	}
	token, err := config.Exchange(ctx, code, oauth2.VerifierOption(verifier))
	if err != nil {
		return err
	}
	if err := look(config.Client(ctx, token)); err != nil {
		return fmt.Errorf("with a code: %w", err)
	}

	// A token that is over is refreshed.
	next, err := config.TokenSource(ctx, &oauth2.Token{RefreshToken: token.RefreshToken}).Token()
	if err != nil {
		return err
	}
	if next.RefreshToken == token.RefreshToken || next.AccessToken == token.AccessToken {
		return errors.New("a refresh brought what was there before")
	}
	if err := look(config.Client(ctx, next)); err != nil {
		return fmt.Errorf("with a refreshed token: %w", err)
	}

	// A person types a code. The package does not authenticate when it asks for one
	// unless it is told to, and then asks until somebody has decided.
	device, err := config.DeviceAuth(ctx, resource, oauth2.SetAuthURLParam("client_secret", config.ClientSecret))
	if err != nil {
		return err
	}
	fmt.Println("Type", device.UserCode)
	typed, err := config.DeviceAccessToken(ctx, device)
	if err != nil {
		return err
	}
	if err := look(config.Client(ctx, typed)); err != nil {
		return fmt.Errorf("with a code that was typed: %w", err)
	}
	return nil
}

// back waits for the browser that comes back with a code.
func back(l net.Listener, state string) (code string, err error) {
	answers := make(chan *http.Request, 1)
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "You may close this window.")
		answers <- r
	}))
	r := <-answers
	if r.FormValue("state") != state || r.FormValue("iss") != os.Getenv("ISSUER") {
		return "", fmt.Errorf("that is no answer to this agent: %s", r.URL)
	}
	return r.FormValue("code"), nil
}

// look calls what the agent is there to call.
func look(c *http.Client) error {
	answer, err := c.Get(os.Getenv("API"))
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if body, _ := io.ReadAll(answer.Body); answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", answer.Status, body)
	}
	return nil
}

// hand gives the token of an agent to another one, which takes it up for less.
func hand(ctx context.Context) error {
	first, err := byItself(oauth2.AuthStyleInHeader).Token(ctx)
	if err != nil {
		return err
	}
	config := oauth2.Config{
		ClientID: os.Getenv("HELPER_ID"), ClientSecret: os.Getenv("HELPER_SECRET"),
		Endpoint: oauth2.Endpoint{TokenURL: os.Getenv("ISSUER") + "/oauth/token"},
	}
	// It always sends a code along, which is empty here and so none.
	token, err := config.Exchange(ctx, "",
		oauth2.SetAuthURLParam("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
		oauth2.SetAuthURLParam("subject_token", first.AccessToken),
		oauth2.SetAuthURLParam("subject_token_type", "urn:ietf:params:oauth:token-type:access_token"),
		oauth2.SetAuthURLParam("resource", os.Getenv("RESOURCE")), oauth2.SetAuthURLParam("scope", "customer.read"))
	if err != nil {
		return err
	}
	var claims struct {
		Act struct{ Sub string }
	}
	if err := payload(token.AccessToken, &claims); err != nil || claims.Act.Sub != "agent:"+config.ClientID {
		return fmt.Errorf("the token that was taken up says that %q acts (%v)", claims.Act.Sub, err)
	}
	return look(config.Client(ctx, token))
}

// recognised is an agent that a trust knows by the tokens that its platform makes.
func recognised(ctx context.Context) error {
	key, err := os.ReadFile(os.Getenv("PLATFORM_KEY"))
	if err != nil {
		return err
	}
	config := jwt.Config{
		Email: "https://platform.example", Subject: "job-7", PrivateKey: key, PrivateKeyID: "platform",
		Audience: os.Getenv("ISSUER"), TokenURL: os.Getenv("ISSUER") + "/oauth/token",
	}
	return look(config.Client(ctx))
}

// payload reads the claims of a JWT that nobody doubts.
func payload(raw string, into any) error {
	parts := strings.Split(raw, ".")
	if len(parts) != 3 {
		return errors.New("that is no JWT")
	}
	b, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return err
	}
	return json.Unmarshal(b, into)
}
