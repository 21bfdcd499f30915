package engine

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Answer is the largest body of an answer that is read over HTTP.
const Answer = 4 << 20

// HTTP gives a client for a target that is spoken to over HTTP, and its address:
// https://HOST[:PORT][/PATH], or http:// of this machine or with the option tls
// at off. The client goes by way of no proxy and follows no redirect, since a
// credential is for the host that it was meant for.
func (c Config) HTTP() (*http.Client, *url.URL, error) {
	u, err := url.Parse(strings.TrimSuffix(c.Address, "/"))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, nil, ErrConfig.With("The address is https://HOST:PORT/PATH, without a user and a query.").At("address")
	}
	if u.Scheme == "https" {
		c.Options = maps.Clone(c.Options)
		if c.Options == nil {
			c.Options = map[string]string{}
		}
		if c.Options["tls"] = cmp.Or(c.Options["tls"], "verify"); c.Options["tls"] == "off" {
			return nil, nil, ErrConfig.With("An address that begins with https:// means TLS; the option tls says off.").At("options.tls")
		}
	}
	encryption, err := c.TLS(u.Hostname())
	if err != nil {
		return nil, nil, err
	}
	if u.Scheme == "http" && encryption != nil {
		return nil, nil, ErrConfig.With("The address is to begin with https://, since a credential would be sent in clear. If that is meant, set the option tls to off.").At("address")
	}
	return &http.Client{
		Transport: &http.Transport{
			DialContext: c.Connect, TLSClientConfig: encryption, ForceAttemptHTTP2: true, DisableCompression: true,
			MaxConnsPerHost: 8, MaxIdleConnsPerHost: 4, IdleConnTimeout: time.Minute, TLSHandshakeTimeout: 10 * time.Second,
			ResponseHeaderTimeout: 30 * time.Second, MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, u, nil
}

// Body reads an answer to its end, which may not be longer than [Answer].
func Body(r *http.Response) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r.Body, Answer+1))
	if err == nil && len(b) > Answer {
		err = fmt.Errorf("the answer is longer than %d MiB", Answer>>20)
	}
	return b, err
}

// HTTPError says what an error of [http.Client.Do] means. One of a request that
// was not sent is [ErrUnreachable]; others may have been carried out. The URL is
// left out of it.
func HTTPError(err error, sent bool) error {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	if err != nil && !sent {
		return Unreachable(err)
	}
	return err
}
