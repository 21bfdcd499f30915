package vault

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"

	"estover.dev"
)

// An Unsealing is how far people have come with putting the root key together.
type Unsealing struct {
	Sealed        bool
	Given, Needed int
	Set           string // of shares; "" before the first
}

// A Sealed is the door of a server that waits for shares of its root key. It
// says so, takes shares, and answers nothing else (V15).
type Sealed struct {
	Progress func() Unsealing
	Give     func(share string) (Unsealing, error)
	Forget   func() Unsealing
	Storage  string
	Now      func() time.Time
}

// maxShare bounds what is sent with a share.
const maxShare = 4 << 10

// ServeHTTP answers one request.
func (s *Sealed) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	at, _ := r.Context().Value(belowKey{}).(below)
	path, err := canonical(r.URL.Path[min(len(at.base), len(r.URL.Path)):])
	q := &Request{HTTP: r}
	reading := r.Method == http.MethodGet || r.Method == http.MethodHead
	writing := r.Method == http.MethodPut || r.Method == http.MethodPost
	switch {
	case err != nil:
	case path == "sys/health" && reading:
		writeBare(w, code(q, http.StatusServiceUnavailable, "sealedcode"), map[string]any{
			"initialized": true, "sealed": true, "standby": true, "performance_standby": false, "replication_performance_mode": "disabled",
			"replication_dr_mode": "disabled", "server_time_utc": s.Now().Unix(), "version": Version,
		})
		return
	case path == "sys/seal-status" && reading:
		writeBare(w, http.StatusOK, s.status(s.Progress()))
		return
	case path == "sys/leader" && reading:
		writeBare(w, http.StatusOK, map[string]any{"ha_enabled": false, "is_self": false, "active_time": "0001-01-01T00:00:00Z", "leader_address": "", "leader_cluster_address": ""})
		return
	case path == "sys/init" && reading:
		writeBare(w, http.StatusOK, map[string]any{"initialized": true})
		return
	case path == "sys/init" && writing:
		err = refuse(http.StatusBadRequest, "Vault is already initialized")
	case path == "sys/unseal" && writing:
		var now Unsealing
		if now, err = s.unseal(r); err == nil {
			writeBare(w, http.StatusOK, s.status(now))
			return
		}
	default:
		err = refuse(http.StatusServiceUnavailable, "Vault is sealed")
	}
	(&Door{}).fail(w, q, err)
}

func (s *Sealed) unseal(r *http.Request) (Unsealing, error) {
	var in struct {
		Key   string `json:"key"`
		Reset bool   `json:"reset"`
	}
	b, err := io.ReadAll(io.LimitReader(r.Body, maxShare))
	if err != nil || json.Unmarshal(b, &in) != nil {
		return Unsealing{}, refuse(http.StatusBadRequest, "failed to parse JSON input")
	}
	switch {
	case in.Reset:
		return s.Forget(), nil
	case in.Key == "":
		return Unsealing{}, refuse(http.StatusBadRequest, "'key' must be specified in request body as JSON, or 'reset' set to true")
	}
	now, err := s.Give(in.Key)
	if known, ok := errors.AsType[*estover.Error](err); ok {
		err = refuse(http.StatusBadRequest, "%s", known.Detail)
	} else if err != nil {
		err = refuse(http.StatusInternalServerError, "the share could not be taken")
	}
	return now, err
}

// status is the seal status of a server that waits.
func (s *Sealed) status(u Unsealing) map[string]any {
	return map[string]any{
		"type": "shamir", "initialized": true, "sealed": u.Sealed, "t": u.Needed, "n": u.Needed, "progress": u.Given, "nonce": u.Set, "version": Version,
		"build_date": "", "migration": false, "recovery_seal": false, "storage_type": s.Storage,
	}
}

// writeBare sends an answer without the envelope.
func writeBare(w http.ResponseWriter, status int, v any) {
	body, err := encode(v)
	if err != nil {
		panic("vault: an answer without JSON: " + err.Error())
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n'))
}
