package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"strings"
	"time"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/edge"
)

// keepAnswers is how long a key is remembered.
const keepAnswers = 24 * time.Hour

// The errors of a key that was used before.
var (
	ErrKeyReused  = &estover.Error{Kind: estover.Conflict, Code: "idempotency_key_reused", Detail: "This Idempotency-Key was used for another request. Use a fresh one for each request."}
	ErrInProgress = &estover.Error{Kind: estover.Conflict, Code: "idempotency_in_progress", Detail: "A request with this Idempotency-Key is being done, or was cut off before its answer was kept. Look whether it took effect before sending another with a fresh key."}
	ErrKeyTooLong = &estover.Error{Kind: estover.Invalid, Code: "idempotency_key_invalid", Detail: "An Idempotency-Key has at most 200 characters."}
)

// idempotency keeps the answers to requests that carry a key. The row is
// written before the request is done, so that of two that come at once only
// one is; a crash in between leaves a row without an answer, and the caller is
// told that it is not known.
//
// What is stored gives nothing away. A request may hold a secret, so its digest
// is keyed: nobody can try values against a copy of the database. An answer is
// sealed, bound to the caller and the key.
type idempotency struct {
	db   *db.DB
	mac  func(tenant estover.TenantID, value []byte) []byte
	seal func(tenant estover.TenantID, id string, plain []byte) ([]byte, error)
	open func(tenant estover.TenantID, id string, sealed []byte) ([]byte, error)
}

// readings are the operations that are asked for with POST and whose answer is
// not kept, for what it reveals: those that change nothing, and each time leave a
// trace, and a lease, of which another is had as easily.
var readings = map[string]bool{"/v1/secret/read": true, "/v1/leases": true, "/v1/log/verify": true, "/v1/tokens/explain": true}

// reading reports whether a path is of such an operation. Of private keys and of
// what transit keys are used for nothing is kept either.
func reading(path string) bool {
	return readings[path] || strings.HasPrefix(path, "/v1/transit/keys/") || strings.HasPrefix(path, "/v1/pki/roles/") && strings.HasSuffix(path, "/issue")
}

// kept is an answer as it is sealed.
type kept struct {
	Type string `json:"type"`
	Body []byte `json:"body"`
}

func (i idempotency) serve(w http.ResponseWriter, r *http.Request, caller estover.Caller, key string, next http.Handler) {
	refuse := func(err error) { edge.WriteProblem(w, edge.ProblemOf(err, caller.Request)) }
	if len(key) > 200 {
		refuse(ErrKeyTooLong)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			edge.WriteProblem(w, &edge.Problem{Title: http.StatusText(http.StatusRequestEntityTooLarge), Status: http.StatusRequestEntityTooLarge, Code: "too_large", Detail: "The request is larger than 8 MiB."})
		}
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	k := digest(key)
	request := hex.EncodeToString(i.mac(caller.Tenant, []byte(digest(r.Method, r.URL.RequestURI(), string(body)))))
	status, answer, first, err := i.begin(r.Context(), caller, k, request)
	switch {
	case err != nil:
		refuse(err)
	case first:
		rec := &recorder{status: http.StatusOK, header: http.Header{}}
		next.ServeHTTP(rec, r)
		// The answer is kept before it is sent: one that is lost on its way is
		// there when the request comes again.
		i.finish(context.WithoutCancel(r.Context()), caller, k, rec)
		maps.Copy(w.Header(), rec.header)
		w.WriteHeader(rec.status)
		_, _ = w.Write(rec.body.Bytes())
	default:
		w.Header().Set("Content-Type", answer.Type)
		w.Header().Set("Idempotent-Replayed", "true")
		w.WriteHeader(status)
		_, _ = w.Write(answer.Body)
	}
}

// begin claims the key, or finds the answer that was kept under it.
func (i idempotency) begin(ctx context.Context, caller estover.Caller, key, request string) (status int, answer kept, first bool, err error) {
	var have string
	var done *int64
	var sealed []byte
	err = i.db.Do(ctx, caller.Tenant, func(tx *db.Tx) error {
		n, err := tx.Exec(ctx, `insert into idempotent (tenant_id, caller, key_hash, request_hash, created_at) values ($1, $2, $3, $4, $5)
			on conflict (tenant_id, caller, key_hash) do nothing`, tx.Tenant(), caller.Subject, key, request, tx.Now())
		if first = n == 1; err != nil || first {
			return err
		}
		return tx.QueryRow(ctx, "select request_hash, status, answer from idempotent where tenant_id = $1 and caller = $2 and key_hash = $3",
			tx.Tenant(), caller.Subject, key).Scan(&have, &done, &sealed)
	})
	switch {
	case err != nil, first:
		return 0, kept{}, first, err
	case have != request:
		return 0, kept{}, false, ErrKeyReused
	case done == nil:
		return 0, kept{}, false, ErrInProgress
	}
	plain, err := i.open(caller.Tenant, bound(caller, key), sealed)
	if err != nil {
		return 0, kept{}, false, err
	}
	return int(*done), answer, false, json.Unmarshal(plain, &answer)
}

// finish keeps the answer. What came to nothing by our own fault is forgotten
// instead, so that the caller may try again under the same key. If an answer
// cannot be kept, a repetition is told that it is not known.
func (i idempotency) finish(ctx context.Context, caller estover.Caller, key string, rec *recorder) {
	query, args := "delete from idempotent where tenant_id = $1 and caller = $2 and key_hash = $3", []any{caller.Tenant, caller.Subject, key}
	if rec.status < 500 {
		plain, err := json.Marshal(kept{rec.header.Get("Content-Type"), rec.body.Bytes()})
		if err != nil {
			return
		}
		sealed, err := i.seal(caller.Tenant, bound(caller, key), plain)
		if err != nil {
			return
		}
		query, args = "update idempotent set status = $4, answer = $5 where tenant_id = $1 and caller = $2 and key_hash = $3", append(args, rec.status, sealed)
	}
	_ = i.db.Do(ctx, caller.Tenant, func(tx *db.Tx) error {
		_, err := tx.Exec(ctx, query, args...)
		return err
	})
}

// bound is what an answer is sealed to.
func bound(caller estover.Caller, key string) string { return string(caller.Subject) + " " + key }

// Sweep forgets the keys whose day is over.
func (s *Server) Sweep(ctx context.Context) error {
	return s.once.db.Do(ctx, "", func(tx *db.Tx) error {
		_, err := tx.Exec(ctx, "delete from idempotent where created_at < $1", tx.Now().Add(-keepAnswers))
		return err
	})
}

// A recorder holds an answer until it has been kept.
type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header { return r.header }

func (r *recorder) WriteHeader(status int) { r.status = status }

func (r *recorder) Write(b []byte) (int, error) { return r.body.Write(b) }

// digest is the SHA-256 of texts, told apart by their lengths, in hex.
func digest(texts ...string) string {
	h := sha256.New()
	for _, t := range texts {
		n := sha256.Sum256([]byte(t))
		h.Write(n[:])
	}
	return hex.EncodeToString(h.Sum(nil))
}
