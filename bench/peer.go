package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"estover.dev/internal/db"
)

// peer runs one of the peers until its process is ended. Each is what
// somebody would write who needs nothing but the task itself.
func peer(name string, args []string) error {
	var h http.Handler
	var err error
	switch name {
	case "sign":
		checks, parseErr := strconv.Atoi(args[1])
		if parseErr != nil {
			return parseErr
		}
		h, err = signer(args[0], checks)
		args = nil
	case "proxy":
		target, parseErr := url.Parse(args[0])
		if parseErr != nil {
			return parseErr
		}
		// Bare: what one gets without further thought, except for connections
		// enough to its upstream.
		p := httputil.NewSingleHostReverseProxy(target)
		p.Transport = &http.Transport{MaxIdleConnsPerHost: 256, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
		h, args = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			// Otherwise it breaks off an answer now and then: the server closes a longer
			// body as the answer begins, under the hands of who reads its end.
			_ = http.NewResponseController(w).EnableFullDuplex()
			p.ServeHTTP(w, r)
		}), args[1:]
	case "upstream":
		h = upstream()
	case "fill":
		return fill(args)
	default:
		return fmt.Errorf("there is no peer %q", name)
	}
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	if len(args) > 0 { // the file of a certificate and its key
		cert, err := tls.LoadX509KeyPair(args[0], args[0])
		if err != nil {
			return err
		}
		l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}})
	}
	return http.Serve(l, h)
}

var row = &db.Table{Name: "bench_row", Columns: []db.Column{{Name: "id", Type: "text"}, {Name: "at", Type: "bigint"}, {Name: "body", Type: "bytes"}}}

// signer answers a JWT of ten claims, signed with ES256 by the standard
// library alone, once a row about it is durable. Before that it makes so many
// checks of a signature, as of an assertion or a proof.
func signer(file string, checks int) (http.Handler, error) {
	ctx := context.Background()
	d, err := db.Open(ctx, "sqlite:"+file, db.Options{})
	if err != nil {
		return nil, err
	}
	if err := d.Do(ctx, "", func(tx *db.Tx) error {
		_, err := tx.Exec(ctx, "create table bench_row (id text primary key, at bigint, body blob)")
		return err
	}); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	client, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	assertion := sha256.Sum256([]byte("an assertion"))
	signature, err := ecdsa.SignASN1(rand.Reader, client, assertion[:])
	if err != nil {
		return nil, err
	}
	header := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"ES256","typ":"at+jwt","kid":"bench"}`))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		for range checks {
			if !ecdsa.VerifyASN1(&client.PublicKey, assertion[:], signature) {
				http.Error(w, "bad signature", http.StatusUnauthorized)
				return
			}
		}
		now, id := time.Now(), rand.Text()
		claims, err := json.Marshal(map[string]any{
			"iss": "https://localhost", "sub": "agent:agt_1", "aud": "https://crm.example.com", "client_id": "agt_1", "jti": id,
			"iat": now.Unix(), "exp": now.Unix() + 900, "scope": "customer.read", "sid": "ses_1", "grant_id": "gnt_1",
		})
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		signed := header + "." + base64.RawURLEncoding.EncodeToString(claims)
		sum := sha256.Sum256([]byte(signed))
		rr, ss, err := ecdsa.Sign(rand.Reader, key, sum[:])
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		sig := make([]byte, 64)
		rr.FillBytes(sig[:32])
		ss.FillBytes(sig[32:])
		if err := d.Append(r.Context(), db.Append{Rows: []db.Row{{Into: row, Values: []any{id, now.UnixMicro(), claims}}}}); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"access_token": signed + "." + base64.RawURLEncoding.EncodeToString(sig), "token_type": "Bearer", "expires_in": 900})
	}), nil
}

// firstEvent is what a stream of events begins with.
const firstEvent = "data: here\n\n"

// upstream answers as many bytes as its path says: /1024. At /events is a stream.
func upstream() http.Handler {
	bodies := map[string][]byte{}
	for name, n := range map[string]int{"/1024": 1 << 10, "/65536": 64 << 10} {
		bodies[name] = []byte(strings.Repeat("a line of an answer, no secret in it\n", n/37+1)[:n])
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if r.URL.Path == "/events" { // one, and then no more
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = io.WriteString(w, firstEvent)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
			return
		}
		body, ok := bodies[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "text/plain")
		_, _ = w.Write(body)
	})
}

// fileIn is a path in the run's directory that nobody else uses.
func (b *Bench) fileIn(pattern string) (string, error) {
	f, err := os.CreateTemp(b.Dir, pattern)
	if err != nil {
		return "", err
	}
	return f.Name(), f.Close()
}
