package server

import (
	"context"
	"encoding/hex"
	"net"
	"net/http"
	"net/url"
	"strings"

	"estover.dev"
	"estover.dev/internal/db"
	"estover.dev/internal/device"
	"estover.dev/internal/edge"
	"estover.dev/internal/guard"
	"estover.dev/internal/mount"
	"estover.dev/internal/seal"
	"estover.dev/internal/ticket"
	"estover.dev/internal/vault"
)

// mountKinds are what can be mounted behind the Vault-compatible door. This is
// the one place where another kind joins.
func (s *Server) mountKinds() []mount.Kind {
	return append(append(s.ticketKinds(), s.certifyingKinds()...), mount.Kind{
		Name: mount.KV, Section: mount.Secrets, Empty: func(ctx context.Context, c estover.Caller, m mount.Mount) error {
			return s.facts.secrets.RemoveBelow(ctx, c, m.Base+"/")
		},
	})
}

// vaultDoor is the door for clients of Vault.
func (s *Server) vaultDoor() *vault.Door {
	started := s.db.Now()
	kind, _, _ := strings.Cut(s.config.RootKey, ":")
	cluster, host := s.sealer.MAC(estover.DefaultTenant, "vault cluster", []byte(s.config.Issuer)), s.facts.origin
	if u, err := url.Parse(s.config.Issuer); err == nil {
		host = u.Hostname()
	}
	id := hex.EncodeToString(cluster[:16])
	id = id[:8] + "-" + id[8:12] + "-" + id[12:16] + "-" + id[16:20] + "-" + id[20:]
	return vault.New(vault.Parts{Mounts: s.mounts, Policies: s.acls, Secrets: s.facts.secrets, Tickets: s.tickets, Leases: s.leases, Databases: s.databases, PKI: s.pki, Transit: s.transit, Devices: s.devices}, vault.Options{
		Recognise: s.vaultToken, Known: s.known, Owner: s.ownerFor, Logger: s.logger, RequestHeader: s.config.VaultHead,
		Status: func(ctx context.Context) vault.Status {
			return vault.Status{
				Ready: s.db.Ping(ctx) == nil, Started: started, Seal: kind, Storage: string(s.db.Engine()),
				Cluster: host, ClusterID: id, Address: s.vaultAddress(), Time: s.db.Now(),
			}
		},
		KeyStatus: func(ctx context.Context, c estover.Caller) (vault.KeyStatus, error) {
			if err := s.guard.Read(ctx, c, guard.Op{Action: "key.list"}, func(*db.Tx) error { return nil }); err != nil {
				return vault.KeyStatus{}, err
			}
			if err := s.sealer.Prepare(ctx, c.Tenant); err != nil {
				return vault.KeyStatus{}, err
			}
			term, since := s.sealer.Newest(c.Tenant, seal.KV)
			return vault.KeyStatus{Term: term, Installed: since}, nil
		},
		ByAccessor: s.byAccessor, Wrap: s.wrapAnswer,
		Rotate: func(ctx context.Context, c estover.Caller) error {
			op := guard.Op{Action: "key.rotate", Detail: map[string]any{"purpose": "values"}}
			if err := s.guard.Do(ctx, c, op, func(*guard.Tx) error { return nil }); err != nil {
				return err
			}
			return s.sealer.RotateDEK(ctx, c.Tenant, seal.KV)
		},
	})
}

// deviceMount is what lines of audit devices tell of a mount of the door.
func (s *Server) deviceMount(ctx context.Context, t estover.TenantID, id string) (device.Mount, bool) {
	table, err := s.mounts.Table(ctx, t)
	if err != nil {
		return device.Mount{}, false
	}
	for i := range table {
		if m := &table[i]; m.ID == id {
			return device.Mount{Path: m.Full(), Kind: m.Kind, Plain: m.Config.RequestKeys}, true
		}
	}
	return device.Mount{}, false
}

// dialDevice connects to where an audit device of a tenant is. To whom datagrams go
// says the operator of this server alone: nobody answers to them.
func (s *Server) dialDevice(ctx context.Context, t estover.TenantID, network, address string) (net.Conn, error) {
	if network == "udp" && t == estover.DefaultTenant {
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	if network != "tcp" {
		return nil, device.ErrInvalid.With("socket_type %s is not offered to this organisation: use tcp", network)
	}
	return s.dialTarget(ctx, t, address)
}

// vaultAddress is where clients of Vault find the door.
func (s *Server) vaultAddress() string {
	if s.vaultListener != nil {
		scheme := "https://"
		if s.config.Plain {
			scheme = "http://"
		}
		return scheme + s.vaultListener.Addr().String()
	}
	return s.config.Issuer + "/vault"
}

// vaultToken says who a token of the door is: a ticket, or an access token of ours
// or a person's as it stands. What they may do is decided by the guard alone.
func (s *Server) vaultToken(r *http.Request, t estover.TenantID, value string) (vault.Token, error) {
	ctx := r.Context()
	if ticket.Is(value) {
		return s.ticketToken(r, value)
	}
	if strings.HasPrefix(value, "est_pt_") {
		if t == "" { // a person's token is looked up among those of its tenant
			t = estover.DefaultTenant
		}
		c, err := s.facts.people.Authenticate(ctx, t, value)
		return vault.Token{Caller: c, Unbounded: true}, err
	}
	token, err := s.tokens.Verify(ctx, value)
	if err != nil {
		return vault.Token{}, err
	}
	if t == "" {
		t = token.Tenant
	}
	if err := s.known(ctx, t); err != nil {
		return vault.Token{}, err
	}
	shown := r.Clone(ctx)
	if scheme, _, _ := strings.Cut(r.Header.Get("Authorization"), " "); !strings.EqualFold(scheme, "DPoP") {
		shown.Header.Set("Authorization", "Bearer "+value)
	}
	c, err := s.callers.Authenticate(shown, t)
	return vault.Token{Caller: c, Unbounded: true, Certificate: token.Confirm.Certificate, Key: token.Confirm.Key}, err
}

// ownerFor is the person who answers for what a caller makes: the caller, or the
// sponsor of the agent.
func (s *Server) ownerFor(ctx context.Context, c estover.Caller) estover.Subject {
	acting := c.Acting()
	if acting.Kind() != estover.AgentKind {
		return acting
	}
	if a, err := s.facts.registry.Snapshot(ctx, c.Tenant, acting.ID()); err == nil {
		return estover.User(a.Sponsor)
	}
	return estover.System("vault")
}

// vaultHandler answers on the door's own address.
func (s *Server) vaultHandler() http.Handler {
	front := edge.Front{Trusted: s.trusted(), Certificates: s.config.ProxyCerts}
	return front.Handler(s.traced(edge.Pace{}.Handler(s.vault)))
}
