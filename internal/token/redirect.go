package token

import "strings"

// Redirect finds the registered form of a redirect URI: the same string, but
// for the port of a loopback address. "" finds the only one that there is.
func (c *Client) Redirect(uri string) (redirect, registered string, ok bool) {
	if uri == "" {
		if len(c.Redirects) == 1 {
			return c.Redirects[0], c.Redirects[0], true
		}
		return "", "", false
	}
	here, local := loopback(uri)
	for _, known := range c.Redirects {
		if known == uri {
			return uri, known, true
		}
		if there, ok := loopback(known); local && ok && here == there {
			return uri, known, true
		}
	}
	return "", "", false
}

// loopback reports whether a registered redirect URI is that of a program on
// the person's own machine, whose port is whatever is free (RFC 8252, section
// 7.3).
func loopback(uri string) (rest string, ok bool) {
	for _, host := range []string{"http://127.0.0.1", "http://[::1]"} {
		if rest, ok := strings.CutPrefix(uri, host); ok {
			port := ""
			if digits, found := strings.CutPrefix(rest, ":"); found {
				i := 0
				for i < len(digits) && digits[i] >= '0' && digits[i] <= '9' {
					i++
				}
				port, rest = digits[:i], digits[i:]
				if port == "" || len(port) > 5 {
					return "", false
				}
			}
			if rest == "" || rest[0] == '/' || rest[0] == '?' {
				return host + rest, true
			}
		}
	}
	return "", false
}
