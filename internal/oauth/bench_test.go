package oauth_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/db/dbtest"
	"estover.dev/internal/jose"
	"estover.dev/internal/oauth/oauthtest"
)

// cpu is the processor time of this process.
func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// drive runs a handler from 64 clients and reports the processor time of a
// request.
func drive(b *testing.B, h http.Handler, request func() *http.Request) {
	b.ReportAllocs()
	b.SetParallelism(32)
	var failed atomic.Int64
	before := cpu()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, request())
			if rec.Code != http.StatusOK {
				failed.Add(1)
			}
		}
	})
	b.StopTimer()
	b.ReportMetric(float64(cpu()-before)/float64(b.N)/1000, "cpu-µs/op")
	if n := failed.Load(); n > 0 {
		b.Errorf("%d requests failed", n)
	}
}

// BenchmarkToken compares the token endpoint with the least that a durable
// token can cost: one signature and one row, committed together with others.
func BenchmarkToken(b *testing.B) {
	b.Run("bare", func(b *testing.B) {
		d := dbtest.Open(b)
		err := d.Do(b.Context(), "", func(tx *db.Tx) error {
			_, err := tx.Exec(b.Context(), "create table bare (tenant_id text not null, id text not null, at bigint not null, primary key (tenant_id, id))")
			return err
		})
		if err != nil {
			b.Fatal(err)
		}
		table := &db.Table{Name: "bare", Columns: []db.Column{{Name: "tenant_id", Type: "text"}, {Name: "id", Type: "text"}, {Name: "at", Type: "bigint"}}}
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			b.Fatal(err)
		}
		signer, err := jose.NewSigner(jose.AccessToken, "key", key)
		if err != nil {
			b.Fatal(err)
		}
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_ = r.ParseForm()
			id := estover.NewID("tok")
			raw, err := jose.Sign(jose.AccessToken, signer, []byte(`{"iss":"https://estover.example","sub":"agent:x","aud":"https://crm.example","client_id":"x","iat":1,"exp":2,"jti":"`+id+`"}`))
			if err == nil {
				err = d.Append(r.Context(), db.Append{Tenant: "default", Rows: []db.Row{{Into: table, Values: []any{"default", id, int64(1)}}}})
			}
			if err != nil {
				http.Error(w, err.Error(), 500)
				return
			}
			_, _ = w.Write([]byte(`{"access_token":"` + raw + `"}`))
		})
		form := url.Values{"grant_type": {"client_credentials"}, "resource": {oauthtest.CRM}}.Encode()
		drive(b, h, func() *http.Request { return tokenRequest(form, "x", "y") })
	})
	b.Run("secret", func(b *testing.B) {
		w := oauthtest.New(b, dbtest.Open(b))
		bot := w.Agent("bot")
		form := url.Values{"grant_type": {"client_credentials"}, "resource": {oauthtest.CRM}}.Encode()
		if a := w.Ask(bot); a.Status != http.StatusOK {
			b.Fatal(a.Body)
		}
		drive(b, w.Handler, func() *http.Request { return tokenRequest(form, bot.ID, bot.Secret) })
	})
	b.Run("exchange", func(b *testing.B) {
		w := oauthtest.New(b, dbtest.Open(b))
		bot, next := w.Agent("bot"), exchanger(w, "next", oauthtest.CRM)
		subject := w.Ask(bot, "resource", oauthtest.CRM).Token()
		form := url.Values{
			"grant_type": {exchangeType}, "resource": {oauthtest.CRM}, "subject_token": {subject}, "subject_token_type": {accessTokenType},
		}.Encode()
		drive(b, w.Handler, func() *http.Request { return tokenRequest(form, next.ID, next.Secret) })
	})
	b.Run("refresh", func(b *testing.B) {
		w := oauthtest.New(b, dbtest.Open(b))
		bot, alice := w.CodeAgent("bot"), w.Person("alice")
		w.Access.Grant(bot.ID, oauthtest.CRM, "customer.read")
		values := make(chan string, 64)
		for range cap(values) {
			values <- w.Redeem(bot, alice.Code(bot)).Text("refresh_token")
		}
		drive(b, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
			value := <-values
			w.Handler.ServeHTTP(rw, tokenRequest("grant_type=refresh_token&refresh_token="+value, bot.ID, bot.Secret))
			if _, rest, ok := strings.Cut(rw.(*httptest.ResponseRecorder).Body.String(), `"refresh_token":"`); ok {
				value, _, _ = strings.Cut(rest, `"`)
			}
			values <- value
		}), func() *http.Request { return nil })
	})
	b.Run("key and proof", func(b *testing.B) {
		w := oauthtest.New(b, dbtest.Open(b))
		bot, p := w.Agent("bot"), w.Prover("P-256")
		if a := p.Ask(bot); a.Status != http.StatusOK {
			b.Fatal(a.Body)
		}
		// What the client signs is not ours to count.
		requests := make(chan *http.Request, b.N)
		for range b.N {
			form := oauthtest.Form("grant_type", "client_credentials", "resource", oauthtest.CRM,
				"client_assertion_type", oauthtest.AssertionType, "client_assertion", w.Assertion(bot))
			requests <- oauthtest.Request("/oauth/token", form, p.Prove(""))
		}
		drive(b, w.Handler, func() *http.Request { return <-requests })
	})
}

func tokenRequest(form, id, secret string) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "https://estover.example/oauth/token", strings.NewReader(form))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.SetBasicAuth(id, secret)
	return r
}
