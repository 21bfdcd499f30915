package edge_test

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"estover.dev/internal/edge"
)

func TestP9HeadsAreBounded(t *testing.T) {
	good := func() *http.Request {
		return &http.Request{Method: "PROPFIND", Header: http.Header{"Accept": {"a", "b"}, "Cookie": {"a=1; b=2", "c=3"}, "Content-Type": {"text/plain"}}}
	}
	if err := edge.CheckHead(good()); err != nil {
		t.Errorf("an ordinary head is refused: %v", err)
	}
	for name, spoil := range map[string]func(http.Header){
		"headers": func(h http.Header) {
			for i := range 130 {
				h[fmt.Sprint("X-", i)] = []string{"1"}
			}
		},
		"values":        func(h http.Header) { h["X-A"] = make([]string, 130) },
		"cookies":       func(h http.Header) { h["Cookie"] = []string{strings.Repeat("a=1; ", 201)} },
		"content types": func(h http.Header) { h["Content-Type"] = []string{"text/plain", "application/json"} },
		"tokens":        func(h http.Header) { h["Authorization"] = []string{"Bearer a", "Bearer b"} },
		"ranges":        func(h http.Header) { h["Range"] = []string{"bytes=0-1", "bytes=2-3"} },
	} {
		r := good()
		spoil(r.Header)
		if err := edge.CheckHead(r); !errors.Is(err, edge.ErrHead) {
			t.Errorf("too many %s are accepted: %v", name, err)
		}
	}
}

// What no strict connection lets in may come in HTTP/2.
func TestC4HeadsThatAreAnotherRequestInHTTP1(t *testing.T) {
	for _, method := range []string{"GET /other?", "GET /other HTTP/1.1", "GET\t/", "GET\r\n", "", " GET", "G(T", "G\u00c4T"} {
		if err := edge.CheckHead(&http.Request{Method: method}); !errors.Is(err, edge.ErrHead) {
			t.Errorf("the method %q is accepted: %v", method, err)
		}
	}
	for _, name := range []string{"Content_length", "CONTENT.LENGTH", "Transfer_encoding", "Transfer~Encoding"} {
		if err := edge.CheckHead(&http.Request{Method: "GET", Header: http.Header{name: {"1"}}}); !errors.Is(err, edge.ErrHead) {
			t.Errorf("the header %s is accepted: %v", name, err)
		}
	}
	for _, name := range []string{"Content-Length", "content-length", "Sec-Fetch-Mode", "X_Content_Length"} {
		if err := edge.CheckHead(&http.Request{Method: "GET", Header: http.Header{name: {"1"}}}); err != nil {
			t.Errorf("the header %s is refused: %v", name, err)
		}
	}
}

func TestC5WhatOnlyWeMaySayIsStripped(t *testing.T) {
	kept := http.Header{
		"Accept": {"*/*"}, "Content-Type": {"application/json"}, "User-Agent": {"agent"}, "X-Request-Id": {"1"}, "Cookie": {"a=b"},
		"Idempotency-Key": {"k"}, "X-Github-Api-Version": {"2022-11-28"}, "If-None-Match": {"x"}, "X_custom": {"1"}, "Te": {"trailers"}, "Expect": {"100-continue"},
	}
	h := maps.Clone(kept)
	for _, name := range []string{
		"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Prefix", "x_forwarded_for", "X-FORWARDED_FOR", "X-Real-Ip", "X_real_ip", "True-Client-Ip",
		"Estover-Purpose", "Estover_purpose", "X-Estover-Session", "Proxy-Authorization", "Proxy_authorization", "Proxy-Anything", "Tailscale-User-Login", "X-Original-Url", "X-Rewrite-Url",
		"X-Http-Method-Override", "X_HTTP_METHOD_OVERRIDE", "X-Method-Override", "X-Ssl-Client-Cert", "Client-Cert", "Remote-User", "X-Auth-Request-User", "Cf-Connecting-Ip",
		"Authorization", "authorization", "AUTHORIZATION", "X-Api-Key", "X_api_key", "x-API_key", "X.Api.Key",
	} {
		h[name] = []string{"forged"}
	}
	edge.Strip(h, "authorization", "x-api-key")
	if !maps.EqualFunc(h, kept, slices.Equal) {
		t.Errorf("left is %v, want %v", slices.Sorted(maps.Keys(h)), slices.Sorted(maps.Keys(kept)))
	}
}

func TestP19NamesThatFoldToTheSameAreTheSame(t *testing.T) {
	for _, name := range []string{"X-Api-Key", "x_api_key", "X-API-KEY", "x.api.key", "x-api_key", "X~Api!Key"} {
		if got := edge.Fold(name); got != "x-api-key" {
			t.Errorf("%q folds to %q", name, got)
		}
	}
}

func TestC16CookiesOfUpstreamsAreDropped(t *testing.T) {
	answer := func() http.Header {
		return http.Header{
			"Set-Cookie": {"s=1"}, "Set_cookie": {"s=2"}, "Set-Cookie2": {"s=3"}, "Alt-Svc": {"h3=\":443\""}, "Estover-Decision": {"forged"},
			"Content-Type": {"text/plain"}, "Etag": {"x"},
		}
	}
	h := answer()
	edge.StripAnswer(h, false)
	if got := slices.Sorted(maps.Keys(h)); !slices.Equal(got, []string{"Content-Type", "Etag"}) {
		t.Errorf("left is %v", got)
	}
	h = answer()
	edge.StripAnswer(h, true)
	if got := slices.Sorted(maps.Keys(h)); !slices.Equal(got, []string{"Content-Type", "Etag", "Set-Cookie", "Set-Cookie2", "Set_cookie"}) {
		t.Errorf("left with cookies is %v", got)
	}
}
