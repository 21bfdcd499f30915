package main

import (
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

// Requests that are sent at once, before anybody has heard a nonce, are all
// sent again with the one that the server told them.
func TestRequestsAtOnceLearnTheNonce(t *testing.T) {
	const callers = 8
	var first sync.WaitGroup
	first.Add(callers)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("DPoP-Nonce", "n1")
		payload, err := base64.RawURLEncoding.DecodeString(strings.Split(r.Header.Get("DPoP"), ".")[1])
		if err != nil || !strings.Contains(string(payload), `"nonce":"n1"`) {
			first.Done()
			first.Wait() // all are under way without it
			w.Header().Set("WWW-Authenticate", `DPoP error="use_dpop_nonce"`)
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	t.Cleanup(server.Close)
	p, err := newProver("")
	if err != nil {
		t.Fatal(err)
	}
	c := &client{http: server.Client(), prover: p}
	var all sync.WaitGroup
	for range callers {
		all.Go(func() {
			res, err := c.exchange("a token", func() (*http.Request, error) { return http.NewRequest(http.MethodGet, server.URL, nil) })
			if err != nil || res.StatusCode != http.StatusOK {
				t.Errorf("a request that was told the nonce: %v %v", res, err)
			}
		})
	}
	all.Wait()
}
