package vault

import (
	"context"
	"net/http"
	"strconv"
	"time"
)

// A Status is how the server stands, as whoever runs it may tell anybody.
type Status struct {
	Ready     bool // it can answer
	Started   time.Time
	Seal      string // where the root key comes from
	Storage   string
	Cluster   string // a name and an id of the installation
	ClusterID string
	Address   string // of the door, as clients know it
	Time      time.Time
}

// A KeyStatus is the key under which values are sealed.
type KeyStatus struct {
	Term      int64
	Installed time.Time
}

func (d *Door) status() []Route {
	return []Route{
		{Mount: "system", Path: "health", Read: d.health, Open: true, Help: "whether the server is active; the status code says it too"},
		{Mount: "system", Path: "seal-status", Read: d.sealStatus, Open: true, Help: "how the keys are sealed, and the version"},
		{Mount: "system", Path: "leader", Read: d.leader, Open: true, Help: "who answers"},
		{Mount: "system", Path: "init", Read: d.initialized, Write: d.initialize, Open: true, Help: "whether the server has been set up"},
		{Mount: "system", Path: "unseal", Write: d.sealStatus, Open: true, Help: "the keys open by themselves at the start"},
		{Mount: "system", Path: "seal", Write: d.seal, Sudo: true, Help: "not offered: a server is closed by stopping it"},
		{Mount: "system", Path: "key-status", Read: d.keyStatus, Top: true, Help: "the key under which values are sealed"},
		{Mount: "system", Path: "rotate", Write: d.rotate, Sudo: true, Help: "seal what is written from here on under another key"},
	}
}

// V14: what a client wants to get in the place of each status.
func code(q *Request, usual int, names ...string) int {
	values := q.HTTP.URL.Query()
	for _, name := range names {
		if n, err := strconv.Atoi(values.Get(name)); err == nil && n >= 200 && n <= 599 {
			return n
		}
	}
	return usual
}

func (d *Door) health(ctx context.Context, q *Request) (*Answer, error) {
	s := d.o.Status(ctx)
	status := code(q, http.StatusOK, "activecode")
	if !s.Ready {
		status = code(q, http.StatusServiceUnavailable, "sealedcode")
	}
	return &Answer{Status: status, Bare: map[string]any{
		"initialized": true, "sealed": !s.Ready, "standby": false, "performance_standby": false,
		"replication_performance_mode": "disabled", "replication_dr_mode": "disabled", "server_time_utc": s.Time.Unix(),
		"version": Version, "cluster_name": s.Cluster, "cluster_id": s.ClusterID,
	}}, nil
}

func (d *Door) sealStatus(ctx context.Context, _ *Request) (*Answer, error) {
	s := d.o.Status(ctx)
	return &Answer{Bare: map[string]any{
		"type": s.Seal, "initialized": true, "sealed": !s.Ready, "t": 1, "n": 1, "progress": 0, "nonce": "", "version": Version,
		"build_date": "", "migration": false, "cluster_name": s.Cluster, "cluster_id": s.ClusterID, "recovery_seal": true, "storage_type": s.Storage,
	}}, nil
}

func (d *Door) leader(ctx context.Context, _ *Request) (*Answer, error) {
	s := d.o.Status(ctx)
	return &Answer{Bare: map[string]any{
		"ha_enabled": false, "is_self": true, "active_time": Time(s.Started), "leader_address": s.Address, "leader_cluster_address": "",
		"performance_standby": false, "performance_standby_last_remote_wal": 0,
	}}, nil
}

func (d *Door) initialized(context.Context, *Request) (*Answer, error) {
	return &Answer{Bare: map[string]any{"initialized": true}}, nil
}

func (d *Door) initialize(context.Context, *Request) (*Answer, error) {
	return nil, refuse(http.StatusBadRequest, "Vault is already initialized")
}

func (d *Door) seal(context.Context, *Request) (*Answer, error) {
	return nil, refuse(http.StatusBadRequest, "the server is not sealed from here: its keys open by themselves when it starts. Stop it, or contain what worries you: estover contain")
}

func (d *Door) keyStatus(ctx context.Context, q *Request) (*Answer, error) {
	k, err := d.o.KeyStatus(ctx, q.Caller)
	return &Answer{Data: map[string]any{"term": k.Term, "install_time": Time(k.Installed), "encryptions": 0}}, err
}

func (d *Door) rotate(ctx context.Context, q *Request) (*Answer, error) {
	return nil, d.o.Rotate(ctx, q.Caller)
}
