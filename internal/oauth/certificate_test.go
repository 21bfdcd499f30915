package oauth_test

import (
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"estover.dev/internal/agent"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/edge"
	"estover.dev/internal/oauth/oauthtest"
	"estover.dev/internal/opaque"
)

// An authority vouches for certificates.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  crypto.Signer
}

// certify makes a certificate: by, or by itself if that is nil.
func certify(t *testing.T, template x509.Certificate, key crypto.Signer, by *authority) *x509.Certificate {
	t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = serial
	if template.NotBefore.IsZero() {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	parent, signer := &template, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// newAuthority makes an authority, below another or a root.
func newAuthority(t *testing.T, name string, above *authority) *authority {
	t.Helper()
	a := &authority{t: t, key: oauthtest.NewKey(t, "P-256")}
	a.cert = certify(t, x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, a.key, above)
	return a
}

// leaf is a certificate of the authority.
func (a *authority) leaf(change func(*x509.Certificate)) *x509.Certificate {
	a.t.Helper()
	c := x509.Certificate{Subject: pkix.Name{CommonName: "bot"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	if change != nil {
		change(&c)
	}
	return certify(a.t, c, oauthtest.NewKey(a.t, "P-256"), a)
}

func (a *authority) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}))
}

// over sends a request on a connection with these certificates.
func over(certs ...*x509.Certificate) func(*http.Request) {
	return func(r *http.Request) { r.TLS = &tls.ConnectionState{PeerCertificates: certs} }
}

// askOver asks for a token with the client's name alone, on such a connection.
func askOver(w *oauthtest.World, a *oauthtest.Agent, certs ...*x509.Certificate) oauthtest.Answer {
	return w.Do(oauthtest.Request("/oauth/token", oauthtest.Form("grant_type", "client_credentials", "client_id", a.ID), over(certs...)))
}

// add gives the agent a credential.
func add(t *testing.T, w *oauthtest.World, a *oauthtest.Agent, wanted agent.Wanted) agent.Credential {
	t.Helper()
	_, c, err := w.Agents.AddCredential(t.Context(), oauthtest.Admin, a.ID, wanted)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func uri(s string) *url.URL {
	u, err := url.Parse(s)
	if err != nil {
		panic(err)
	}
	return u
}

// tls_client_auth: exactly one of SAN DNS, URI, email, IP or DN, and a chain to
// an authority of the client's.
func TestTLSClientAuth(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		root, foreign := newAuthority(t, "root", nil), newAuthority(t, "root", nil)
		between := newAuthority(t, "between", root)
		for _, c := range []struct {
			what  string
			known agent.Certificate
			good  []func(*x509.Certificate)
			bad   []func(*x509.Certificate)
		}{
			{
				"a URI",
				agent.Certificate{URI: "spiffe://example.com/bot"},
				[]func(*x509.Certificate){
					func(c *x509.Certificate) { c.URIs = []*url.URL{uri("spiffe://example.com/bot")} },
				},
				[]func(*x509.Certificate){
					nil,
					func(c *x509.Certificate) { c.URIs = []*url.URL{uri("spiffe://example.com/bot2")} },
					func(c *x509.Certificate) { c.URIs = []*url.URL{uri("spiffe://example.com/bot/")} },
					func(c *x509.Certificate) { c.URIs = []*url.URL{uri("spiffe://example.com/Bot")} },
					func(c *x509.Certificate) {
						c.URIs = []*url.URL{uri("spiffe://example.com/other"), uri("spiffe://example.com/bot")}
					},
					func(c *x509.Certificate) { c.Subject.CommonName = "spiffe://example.com/bot" },
					func(c *x509.Certificate) { c.DNSNames = []string{"spiffe://example.com/bot"} },
				},
			},
			{
				"a DNS name",
				agent.Certificate{DNS: "Bot.Example.com"},
				[]func(*x509.Certificate){
					func(c *x509.Certificate) { c.DNSNames = []string{"other.example.com", "BOT.example.com"} },
				},
				[]func(*x509.Certificate){
					func(c *x509.Certificate) { c.DNSNames = []string{"*.example.com"} },
					func(c *x509.Certificate) { c.DNSNames = []string{"bot.example.com.evil.example"} },
					func(c *x509.Certificate) { c.Subject.CommonName = "bot.example.com" },
				},
			},
			{
				"an IP address",
				agent.Certificate{IP: "::ffff:192.0.2.7"},
				[]func(*x509.Certificate){
					func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.ParseIP("192.0.2.7")} },
				},
				[]func(*x509.Certificate){
					func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.ParseIP("192.0.2.70")} },
					func(c *x509.Certificate) { c.DNSNames = []string{"192.0.2.7"} },
				},
			},
			{
				"an address of mail",
				agent.Certificate{Email: "bot@Example.com"},
				[]func(*x509.Certificate){
					func(c *x509.Certificate) { c.EmailAddresses = []string{"bot@EXAMPLE.com"} },
				},
				[]func(*x509.Certificate){
					func(c *x509.Certificate) { c.EmailAddresses = []string{"Bot@example.com"} },
					func(c *x509.Certificate) { c.EmailAddresses = []string{"bot@example.com.evil.example"} },
				},
			},
			{
				"a subject",
				agent.Certificate{SubjectDN: "cn=bot\\, the first, O=Example"},
				[]func(*x509.Certificate){
					func(c *x509.Certificate) {
						c.Subject = pkix.Name{CommonName: "bot, the first", Organization: []string{"Example"}}
					},
				},
				[]func(*x509.Certificate){
					func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: "bot, the first"} },
					func(c *x509.Certificate) {
						c.Subject = pkix.Name{CommonName: "bot, the first", Organization: []string{"Example\n"}}
					},
					func(c *x509.Certificate) {
						c.Subject = pkix.Name{CommonName: "bot, the first ", Organization: []string{"Example"}}
					},
					func(c *x509.Certificate) {
						c.Subject = pkix.Name{CommonName: "bot, the first", Organization: []string{"Example", "Other"}}
					},
					func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: `bot\, the first,O=Example`} },
					func(c *x509.Certificate) {
						c.Subject = pkix.Name{CommonName: "bot, the first", Organization: []string{"example"}}
					},
				},
			},
			{
				"a subject in codes",
				agent.Certificate{SubjectDN: `CN=M\C3\BCller\2C bot,O=a\\b`},
				[]func(*x509.Certificate){
					func(c *x509.Certificate) {
						c.Subject = pkix.Name{CommonName: "Müller, bot", Organization: []string{`a\b`}}
					},
				},
				[]func(*x509.Certificate){
					func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: "Müller", Organization: []string{`a\b`}} },
				},
			},
		} {
			bot := w.Agent(strings.ToLower(strings.ReplaceAll(c.what, " ", "-")))
			c.known.Authorities = root.pem()
			credential := add(t, w, bot, agent.Wanted{Kind: agent.Certified, Certificate: &c.known})
			for i, change := range c.good {
				cert := root.leaf(change)
				a := granted(t, c.what, askOver(w, bot, cert))
				told := w.Introspect(bot, a.Token())
				cnf, _ := told.JSON["cnf"].(map[string]any)
				if len(cnf) != 1 || cnf["x5t#S256"] != edge.Thumbprint(cert.Raw) || a.Text("token_type") != "Bearer" {
					t.Errorf("%s, %d: the token is bound to %v, want the certificate", c.what, i, cnf)
				}
				granted(t, c.what+" by way of another authority", askOver(w, bot, between.leaf(change), between.cert))
				refused(t, c.what+" by way of an authority that is not sent", askOver(w, bot, between.leaf(change)), 401, "invalid_client")
				refused(t, c.what+" of a foreign authority", askOver(w, bot, foreign.leaf(change)), 401, "invalid_client")
				refused(t, c.what+" of a foreign authority that is sent along", askOver(w, bot, foreign.leaf(change), foreign.cert), 401, "invalid_client")
				self := x509.Certificate{}
				change(&self)
				refused(t, c.what+" that vouches for itself", askOver(w, bot, certify(t, self, oauthtest.NewKey(t, "P-256"), nil)), 401, "invalid_client")
				refused(t, c.what+" that has expired", askOver(w, bot, root.leaf(func(x *x509.Certificate) {
					change(x)
					x.NotBefore, x.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Minute)
				})), 401, "invalid_client")
				refused(t, c.what+" of a server", askOver(w, bot, root.leaf(func(x *x509.Certificate) {
					change(x)
					x.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
				})), 401, "invalid_client")
				leafThatSigns := &authority{t: t, key: oauthtest.NewKey(t, "P-256")}
				leafThatSigns.cert = certify(t, x509.Certificate{Subject: pkix.Name{CommonName: "no authority"}}, leafThatSigns.key, root)
				refused(t, c.what+" by way of a certificate that is no authority", askOver(w, bot, leafThatSigns.leaf(change), leafThatSigns.cert), 401, "invalid_client")
			}
			for i, change := range c.bad {
				if a := askOver(w, bot, root.leaf(change)); a.Status != 401 || a.Error() != "invalid_client" || a.Token() != "" {
					t.Errorf("%s, another name (%d): %d %s", c.what, i, a.Status, a.Body)
				}
			}
			refused(t, c.what+" and no certificate", askOver(w, bot), 401, "invalid_client")
			if err := w.Agents.RetireCredential(t.Context(), oauthtest.Admin, bot.ID, credential.ID, 0); err != nil {
				t.Fatal(err)
			}
			refused(t, c.what+", retired", askOver(w, bot, root.leaf(c.good[0])), 401, "invalid_client")
		}
	})
}

// The method used must be a registered one, and a certificate beside another
// method is no second method.
func TestCertificateAsMethod(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		root := newAuthority(t, "root", nil)
		bot, other := w.Agent("bot"), w.Agent("other")
		known := &agent.Certificate{DNS: "bot.example", Authorities: root.pem()}
		first := add(t, w, bot, agent.Wanted{Kind: agent.Certified, Certificate: known})
		cert := root.leaf(func(c *x509.Certificate) { c.DNSNames = []string{"bot.example"} })
		granted(t, "its certificate", askOver(w, bot, cert))
		refused(t, "another's certificate", askOver(w, other, cert), 401, "invalid_client")
		refused(t, "a certificate and no name", w.Do(oauthtest.Request("/oauth/token", oauthtest.Form("grant_type", "client_credentials"), over(cert))), 401, "invalid_client")

		f := oauthtest.Form("grant_type", "client_credentials")
		a := granted(t, "a secret beside it", w.Do(oauthtest.Request("/oauth/token", f, over(cert), oauthtest.Basic(bot.ID, bot.Secret))))
		if cnf := w.Introspect(bot, a.Token()).JSON["cnf"]; cnf != nil {
			t.Errorf("a token by secret is bound to %v", cnf)
		}
		refused(t, "a wrong secret beside it", w.Do(oauthtest.Request("/oauth/token", f, over(cert), oauthtest.Basic(bot.ID, other.Secret))), 401, "invalid_client")

		w.Set(bot, agent.Client{Methods: []string{"private_key_jwt"}})
		refused(t, "a method that is not registered", askOver(w, bot, cert), 401, "invalid_client")
		granted(t, "the one that is", w.AskByKey(bot))
		w.Set(bot, agent.Client{Methods: []string{"tls_client_auth"}})
		granted(t, "registered", askOver(w, bot, cert))
		refused(t, "a secret that is not registered", w.Ask(bot), 401, "invalid_client")

		// Several at once, with an overlap.
		next := newAuthority(t, "next", nil)
		add(t, w, bot, agent.Wanted{Kind: agent.Certified, Certificate: &agent.Certificate{DNS: "bot.example", Authorities: next.pem()}})
		renewed := next.leaf(func(c *x509.Certificate) { c.DNSNames = []string{"bot.example"} })
		if err := w.Agents.RetireCredential(t.Context(), oauthtest.Admin, bot.ID, first.ID, time.Minute); err != nil {
			t.Fatal(err)
		}
		granted(t, "the old authority, in the overlap", askOver(w, bot, cert))
		granted(t, "the new one", askOver(w, bot, renewed))
		dbtest.NewClock(d).Advance(2 * time.Minute)
		refused(t, "the old one, after the overlap", askOver(w, bot, cert), 401, "invalid_client")
		granted(t, "the new one, after the overlap", askOver(w, bot, renewed))
	})
}

// self_signed_tls_client_auth: the certificate, or its key, is in the client's
// JWKS.
func TestSelfSignedTLSClientAuth(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		key := oauthtest.NewKey(t, "P-256")
		name := x509.Certificate{Subject: pkix.Name{CommonName: "bot"}}
		cert, again := certify(t, name, key, nil), certify(t, name, key, nil)
		withX5C, err := json.Marshal(map[string]any{"keys": []any{jwk(t, key, map[string]any{"x5c": []string{base64.StdEncoding.EncodeToString(cert.Raw)}})}})
		if err != nil {
			t.Fatal(err)
		}
		add(t, w, bot, agent.Wanted{Kind: agent.KeySet, JWKS: withX5C})
		a := granted(t, "the certificate of x5c", askOver(w, bot, cert))
		if cnf, _ := w.Introspect(bot, a.Token()).JSON["cnf"].(map[string]any); cnf["x5t#S256"] != edge.Thumbprint(cert.Raw) {
			t.Errorf("the token is bound to %v", cnf)
		}
		refused(t, "another certificate of that key", askOver(w, bot, again), 401, "invalid_client")
		refused(t, "another key with that name", askOver(w, bot, certify(t, name, oauthtest.NewKey(t, "P-256"), nil)), 401, "invalid_client")

		// bot.Key is registered without a certificate.
		granted(t, "a certificate of a key without x5c", askOver(w, bot, certify(t, name, bot.Key, nil)))
		old := name
		old.NotBefore, old.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
		refused(t, "one that has expired", askOver(w, bot, certify(t, old, bot.Key, nil)), 401, "invalid_client")
		young := name
		young.NotBefore, young.NotAfter = time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)
		refused(t, "one that is not valid yet", askOver(w, bot, certify(t, young, bot.Key, nil)), 401, "invalid_client")

		w.Set(bot, agent.Client{Methods: []string{"tls_client_auth", "private_key_jwt"}})
		refused(t, "where the method is not registered", askOver(w, bot, cert), 401, "invalid_client")
	})
}

// A client with tls_client_certificate_bound_access_tokens, and one that shows
// two keys.
func TestCertificateBoundTokens(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		cert := certify(t, x509.Certificate{}, bot.Key, nil)
		other := certify(t, x509.Certificate{}, oauthtest.NewKey(t, "P-256"), nil)
		at := func(raw string, change ...func(*http.Request)) int {
			r := oauthtest.Request("/oauth/introspect", oauthtest.Form("token", raw), change...)
			return w.Do(r).Status
		}

		// By its certificate, with a DPoP proof: the proof binds.
		p := w.Prover("P-256")
		f := oauthtest.Form("grant_type", "client_credentials", "client_id", bot.ID)
		a := granted(t, "a certificate and a proof", w.Do(oauthtest.Request("/oauth/token", f, over(cert), p.Prove(""))))
		if cnf, _ := w.Introspect(bot, a.Token()).JSON["cnf"].(map[string]any); len(cnf) != 1 || cnf["jkt"] != p.Thumbprint() || a.Text("token_type") != "DPoP" {
			t.Errorf("with a proof the token is bound to %v", cnf)
		}

		w.Set(bot, agent.Client{CertificateBound: true})
		refused(t, "no certificate", w.Ask(bot), 400, "invalid_request")
		refused(t, "a proof in its place", p.Ask(bot), 400, "invalid_request")
		bySecret := w.Do(oauthtest.Request("/oauth/token", oauthtest.Form("grant_type", "client_credentials"), oauthtest.Basic(bot.ID, bot.Secret), over(cert)))
		bound := granted(t, "a secret, on a connection with a certificate", bySecret).Token()
		for what, c := range map[string]struct {
			want   int
			change []func(*http.Request)
		}{
			"with its certificate":        {200, []func(*http.Request){oauthtest.Bearer(bound), over(cert)}},
			"without":                     {401, []func(*http.Request){oauthtest.Bearer(bound)}},
			"with another":                {401, []func(*http.Request){oauthtest.Bearer(bound), over(other)}},
			"with a proof, as DPoP":       {401, []func(*http.Request){p.Prove(bound), over(cert)}},
			"with the certificate second": {401, []func(*http.Request){oauthtest.Bearer(bound), over(other, cert)}},
		} {
			if got := at(bound, c.change...); got != c.want {
				t.Errorf("a token that is bound to a certificate, %s: %d, want %d", what, got, c.want)
			}
		}
		both := granted(t, "a certificate and a proof", w.Do(oauthtest.Request("/oauth/token", f, over(cert), p.Prove("")))).Token()
		for what, c := range map[string]struct {
			want   int
			change []func(*http.Request)
		}{
			"with both":            {200, []func(*http.Request){p.Prove(both), over(cert)}},
			"with the proof":       {401, []func(*http.Request){p.Prove(both)}},
			"with the certificate": {401, []func(*http.Request){oauthtest.Bearer(both), over(cert)}},
		} {
			if got := at(both, c.change...); got != c.want {
				t.Errorf("a token that is bound to two keys, %s: %d, want %d", what, got, c.want)
			}
		}
	})
}

// The certificate comes from the TLS layer, or from a header of a trusted proxy
// alone.
func TestCertificateOfAProxy(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		root := newAuthority(t, "root", nil)
		between := newAuthority(t, "between", root)
		bot := w.Agent("bot")
		add(t, w, bot, agent.Wanted{Kind: agent.Certified, Certificate: &agent.Certificate{DNS: "bot.example", Authorities: root.pem()}})
		cert := between.leaf(func(c *x509.Certificate) { c.DNSNames = []string{"bot.example"} })
		value := func(c *x509.Certificate) string { return ":" + base64.StdEncoding.EncodeToString(c.Raw) + ":" }
		mux := http.NewServeMux()
		if err := w.Door.Mount(mux); err != nil {
			t.Fatal(err)
		}
		ask := func(trusted string, change ...func(*http.Request)) oauthtest.Answer {
			f := edge.Front{}
			if trusted != "" {
				f.Trusted, f.Certificates = []netip.Prefix{netip.MustParsePrefix(trusted)}, true
			}
			w.Handler = f.Handler(mux)
			return w.Do(oauthtest.Request("/oauth/token", oauthtest.Form("grant_type", "client_credentials", "client_id", bot.ID), change...))
		}
		header := func(chain ...string) func(*http.Request) {
			return func(r *http.Request) {
				r.Header.Set("Client-Cert", value(cert))
				for _, c := range chain {
					r.Header.Add("Client-Cert-Chain", c)
				}
			}
		}
		granted(t, "a proxy that is trusted", ask("192.0.2.0/24", header(value(between.cert)+", "+value(root.cert))))
		granted(t, "a proxy that writes two headers", ask("192.0.2.0/24", header(value(root.cert), value(between.cert))))
		refused(t, "a proxy that sends no chain", ask("192.0.2.0/24", header()), 401, "invalid_client")
		refused(t, "a proxy that sends another chain", ask("192.0.2.0/24", header(value(root.cert)+", :AA:, x")), 401, "invalid_client")
		refused(t, "a proxy of another network", ask("198.51.100.0/24", header(value(between.cert))), 401, "invalid_client")
		refused(t, "anybody", ask("", header(value(between.cert))), 401, "invalid_client")
		refused(t, "a trusted proxy that has the certificate itself", ask("192.0.2.0/24", over(cert, between.cert)), 401, "invalid_client")
		granted(t, "a client that has it, beside a header that counts for nothing", ask("", over(cert, between.cert), func(r *http.Request) {
			r.Header.Set("Client-Cert", value(root.cert))
		}))
	})
}

// A backup credential works like any other, and each use of it is on record
// before anything comes of it (M37).
func TestBackupCredential(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := oauthtest.New(t, d)
		bot := w.Agent("bot")
		uses := func() int {
			return count(t, d, "select count(*) from audit where action = 'credential.use_backup' and outcome = 'done'")
		}
		granted(t, "its usual secret", w.Ask(bot))
		granted(t, "its usual key", w.AskByKey(bot))
		if n := uses(); n != 0 {
			t.Errorf("the usual credentials made %d events of a backup", n)
		}
		secret, _, err := w.Agents.AddCredential(t.Context(), oauthtest.Admin, bot.ID, agent.Wanted{Kind: agent.ClientSecret, Backup: true})
		if err != nil {
			t.Fatal(err)
		}
		ask := func() oauthtest.Answer {
			return w.Do(oauthtest.Request("/oauth/token", oauthtest.Form("grant_type", "client_credentials"), oauthtest.Basic(bot.ID, string(secret.Reveal()))))
		}
		granted(t, "the backup", ask())
		key := oauthtest.NewKey(t, "P-256")
		add(t, w, bot, agent.Wanted{Kind: agent.KeySet, JWKS: oauthtest.JWKS(t, "backup", key.Public()), Backup: true})
		granted(t, "another backup", w.AskWith(oauthtest.Sign(t, key, "backup", w.Claims(bot))))
		granted(t, "its usual secret, beside backups", w.Ask(bot))
		if n := uses(); n != 2 {
			t.Errorf("two uses of backups are %d events", n)
		}
		refused(t, "a secret that is none", w.Do(oauthtest.Request("/oauth/token", oauthtest.Form("grant_type", "client_credentials"),
			oauthtest.Basic(bot.ID, opaque.New(opaque.ClientSecret)))), 401, "invalid_client")
		if n := uses(); n != 2 {
			t.Errorf("what proved nothing is a use: %d events", n)
		}

		// A backup counts only by a method that the client is registered for.
		w.Set(bot, agent.Client{Methods: []string{"private_key_jwt"}})
		refused(t, "the backup by another method", ask(), 401, "invalid_client")
	})
}
