// Clients is an agent by itself or, where PERSON is set, one that people let act
// for them, with golang.org/x/oauth2. The scripts beside it in this directory do
// the same, each with a library of its own.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/url"
	"os"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
)

// byItself is how the agent gets tokens for itself.
func byItself(style oauth2.AuthStyle) *clientcredentials.Config {
	return &clientcredentials.Config{
		ClientID:       os.Getenv("CLIENT_ID"),
		ClientSecret:   os.Getenv("CLIENT_SECRET"),
		TokenURL:       os.Getenv("ISSUER") + "/oauth/token",
		Scopes:         []string{"customer.read"},
		EndpointParams: url.Values{"resource": {os.Getenv("RESOURCE")}},
		AuthStyle:      style,
	}
}

// read reads what the agent is there to read.
func read(ctx context.Context, style oauth2.AuthStyle) (string, error) {
	answer, err := byItself(style).Client(ctx).Get(os.Getenv("API"))
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", answer.Status, body)
	}
	return string(body), err
}

func main() {
	ctx := context.Background()
	if os.Getenv("PERSON") != "" {
		if err := people(ctx); err != nil {
			log.Fatal(err)
		}
		return
	}
	for _, style := range []oauth2.AuthStyle{oauth2.AuthStyleAutoDetect, oauth2.AuthStyleInHeader, oauth2.AuthStyleInParams} {
		text, err := read(ctx, style)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(text)
	}
	if os.Getenv("HELPER_ID") != "" {
		if err := hand(ctx); err != nil {
			log.Fatalf("handing on: %v", err)
		}
	}
	if os.Getenv("PLATFORM_KEY") != "" {
		if err := recognised(ctx); err != nil {
			log.Fatalf("by a token of the platform: %v", err)
		}
	}
}
