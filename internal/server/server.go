// Package server puts the house together: the one place that lists what there
// is. It has no rules of its own.
//
//	ground   database, keys, log                     open
//	waist    guard, with policy as its decider       wire
//	domain   agents, people, resources, grants, …    wire
//	doors    token service, API, gateway, log        http.go
//	jobs     sweeps and followers                    jobs.go
//
// A server is opened, which touches the disk and the database, and then runs
// until its context is done. It stops in the other order: doors first, so that
// nothing new comes in and what is under way ends; then what is still in
// memory, recordings, counts and evidence, is made durable; then the database
// is closed.
package server

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"
	"gocloud.dev/blob"

	"estover.dev"
	"estover.dev/attest"
	"estover.dev/internal/access"
	"estover.dev/internal/agent"
	"estover.dev/internal/api"
	"estover.dev/internal/apply"
	"estover.dev/internal/approval"
	"estover.dev/internal/approve"
	"estover.dev/internal/audit"
	"estover.dev/internal/contain"
	"estover.dev/internal/db"
	"estover.dev/internal/device"
	"estover.dev/internal/directory"
	"estover.dev/internal/edge"
	"estover.dev/internal/evidence"
	"estover.dev/internal/federation"
	"estover.dev/internal/gateway"
	"estover.dev/internal/gateway/duty"
	"estover.dev/internal/gateway/rest"
	"estover.dev/internal/guard"
	"estover.dev/internal/hold"
	"estover.dev/internal/incident"
	"estover.dev/internal/incident/emergency"
	"estover.dev/internal/login"
	"estover.dev/internal/mount"
	"estover.dev/internal/notify"
	"estover.dev/internal/oauth"
	"estover.dev/internal/page"
	"estover.dev/internal/pki"
	"estover.dev/internal/policy"
	"estover.dev/internal/recording"
	"estover.dev/internal/resource"
	"estover.dev/internal/seal"
	"estover.dev/internal/secret"
	"estover.dev/internal/secret/connection"
	"estover.dev/internal/secret/database"
	"estover.dev/internal/secret/lease"
	"estover.dev/internal/secret/offline"
	"estover.dev/internal/secret/rotation"
	"estover.dev/internal/secret/target"
	"estover.dev/internal/secret/transit"
	"estover.dev/internal/secret/upstream"
	"estover.dev/internal/session"
	"estover.dev/internal/tenant"
	"estover.dev/internal/ticket"
	"estover.dev/internal/token"
	"estover.dev/internal/vault"
)

// A Server is everything that Estover is, over one database.
type Server struct {
	config  Config
	logger  *slog.Logger
	version string
	boot    string     // this start, in heartbeats
	broken  chan error // why it cannot go on
	copies  *offline.Copies
	ca      string // the file of the server's own authority; "" if it has none

	remembered string // what is in the file of the newest checkpoints

	db          *db.DB
	sealer      *seal.Sealer
	keys        *seal.Keyring
	log         *audit.Log
	spool       *audit.Spool
	bucket      *blob.Bucket
	guard       *guard.Guard
	decider     *policy.Decider
	facts       facts
	documents   documents
	policy      *policy.Policy
	tokens      *token.Tokens
	trusts      *federation.Trusts
	connected   *connection.Connections
	targets     *target.Targets
	leases      *lease.Leases
	rotations   *rotation.Rotations
	stores      *upstream.Stores
	pki         *pki.PKI
	transit     *transit.Transit
	recordings  *recording.Recordings
	duties      *duty.Duties
	requests    *approval.Approvals
	records     *guard.Cache[approved] // of what was approved, by request
	notify      *notify.Notify
	live        *gateway.Live
	pipeline    *gateway.Pipeline
	described   *rest.Description // the reverse routes
	incidents   *incident.Incidents
	emergencies *emergency.Emergencies
	callers     *edge.Callers
	oauth       *oauth.Door
	pages       *page.Pages
	login       *login.Door
	api         *api.Server
	mounts      *mount.Mounts
	tickets     *ticket.Tickets
	devices     *device.Devices
	databases   *database.Databases
	acls        *mount.Policies
	vault       *vault.Door
	own         *edge.Own
	clients     *edge.Fetcher // to the documents of clients

	listener, gatewayListener net.Listener
	vaultListener             net.Listener // nil if the Vault-compatible door has no address of its own
	mutualListener            net.Listener // nil if clients with certificates have no address of their own
	controlListener           net.Listener // of the kill switch; nil if it has none
	controlToken              string       // that it asks for; "" on a socket
	now                       func() time.Time
	certificate               func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	lock                      *os.File
	tracer                    trace.Tracer
}

// Open makes the directories, opens the database and the keys, and takes the
// addresses. What is wrong is said in words for whoever starts the server.
func Open(ctx context.Context, c Config, logger *slog.Logger, version string) (*Server, error) {
	return open(ctx, c, logger, version, nil)
}

// open is Open with the clock of the database; nil for the machine's.
func open(ctx context.Context, c Config, logger *slog.Logger, version string, now func() time.Time) (_ *Server, err error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	s := &Server{config: c, now: now, logger: logger, version: version, boot: newBoot(), broken: make(chan error, 1), live: &gateway.Live{}, own: &edge.Own{}}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.clients, err = documentFetcher(s.own, c.Loopback); err != nil {
		return nil, err
	}
	if err := s.openGround(ctx); err != nil {
		return nil, err
	}
	if err := s.wire(); err != nil {
		return nil, err
	}
	if err := s.decider.Ready(ctx, estover.DefaultTenant); err != nil {
		return nil, fmt.Errorf("loading the policy: %w", err)
	}
	if err := s.restored(ctx); err != nil { // before anything is written
		return nil, err
	}
	if err := s.found(ctx, estover.DefaultTenant); err != nil {
		return nil, err
	}
	if err := s.bootstrap(ctx); err != nil {
		return nil, err
	}
	if err := s.prepareTenants(ctx); err != nil {
		return nil, err
	}
	if err := s.reclaim(ctx); err != nil {
		return nil, err
	}
	return s, s.listen()
}

func newBoot() string {
	b := make([]byte, 8)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// openGround opens what everything stands on.
func (s *Server) openGround(ctx context.Context) (err error) {
	c := s.config
	if err := private(c.Data); err != nil {
		return err
	}
	if s.lock, err = lockDirectory(c.Data); err != nil {
		return err
	}
	if path, ok := strings.CutPrefix(c.RootKey, "file:"); ok {
		if err := private(filepath.Dir(strings.SplitN(path, "?", 2)[0])); err != nil {
			return err
		}
	}
	if s.db, err = db.Open(ctx, c.Database, db.Options{Logger: s.logger, Now: s.now}); err != nil {
		return err
	}
	if err := s.openKeys(ctx); err != nil {
		return err
	}
	s.sealer.Hold(ticket.Holdings...)
	s.sealer.Hold(secret.Holding, lease.Holding, transit.Holding, seal.SigningKeys)
	s.sealer.Hold(pki.Holdings...)
	s.sealer.Hold(duty.KeptTokens)
	s.sealer.Hold(connection.Holdings...)
	if err := s.sealer.Prepare(ctx, estover.DefaultTenant); err != nil {
		return fmt.Errorf("opening the keys: %w", err)
	}
	if s.keys, err = seal.OpenKeyring(ctx, s.db, s.sealer); err != nil {
		return fmt.Errorf("opening the signing keys: %w", err)
	}
	every, err := c.rotation()
	if err != nil {
		return err
	}
	s.keys.Schedule(every)
	u, err := url.Parse(c.Issuer)
	if err != nil {
		return err
	}
	s.log = audit.Open(s.db, audit.Options{
		Seal:   s.sealAs(seal.Audit),
		Open:   s.openAs(seal.Audit),
		Key:    s.logKey,
		Keys:   s.logKeys,
		Origin: u.Host + u.Path + logPath,
		Logger: s.logger,
	})
	if s.spool, err = audit.OpenSpool(s.log, filepath.Join(c.Data, "spool"), audit.SpoolOptions{}); err != nil {
		return fmt.Errorf("opening the node's spool of evidence: %w", err)
	}
	if len(c.GlassFor) > 0 {
		if s.copies, err = offline.Open(cmp.Or(c.GlassDir, filepath.Join(c.Data, "break-glass")), c.GlassFor); err != nil {
			return err
		}
	}
	if s.bucket, err = recording.OpenBucket(ctx, c.Blobs); err != nil {
		return fmt.Errorf("--blobs: %w", err)
	}
	return nil
}

func (s *Server) sealAs(class seal.Class) func(estover.TenantID, string, []byte) ([]byte, error) {
	return func(tenant estover.TenantID, id string, plain []byte) ([]byte, error) {
		return s.sealer.Seal(tenant, seal.AAD{Class: class, ID: id}, plain)
	}
}

func (s *Server) openAs(class seal.Class) func(estover.TenantID, string, []byte) ([]byte, error) {
	return func(tenant estover.TenantID, id string, sealed []byte) ([]byte, error) {
		plain, err := s.sealer.Open(tenant, seal.AAD{Class: class, ID: id}, sealed)
		if class == seal.Audit && errors.Is(err, seal.ErrNoKey) {
			err = audit.ErrErased.Because(err)
		}
		return plain, err
	}
}

func (s *Server) logKey(ctx context.Context, tenant estover.TenantID) (crypto.Signer, error) {
	k, err := s.keys.Active(ctx, tenant, seal.LogKey)
	return k.Signer, err
}

func (s *Server) logKeys(ctx context.Context, tenant estover.TenantID) (all []ed25519.PublicKey, err error) {
	keys, err := s.keys.Public(ctx, tenant)
	for _, k := range keys {
		if pub, ok := k.Public.(ed25519.PublicKey); ok && k.Purpose == seal.LogKey && k.State != seal.KeyRevoked {
			all = append(all, pub)
		}
	}
	return all, err
}

// wire makes the packages known to each other. Nothing here does I/O.
func (s *Server) wire() error {
	f := &s.facts
	f.now = s.db.Now
	at, err := url.Parse(s.config.Issuer)
	if err != nil {
		return err
	}
	f.origin = at.Scheme + "://" + at.Host
	f.base = at.Path
	s.described = &rest.Description{Origin: f.origin, Base: f.base, Issuer: token.Issuer(s.config.Issuer), Scopes: s.routeScopes, NoCertificates: !s.config.certificates()}
	s.decider = policy.NewDecider(s.db, policy.Sources{
		// The facts come from packages that stand behind the door, so they are
		// looked up when they are asked for.
		Agent: func(ctx context.Context, t estover.TenantID, id string) (*policy.Agent, error) {
			return f.sources().Agent(ctx, t, id)
		},
		Session: func(ctx context.Context, t estover.TenantID, id string) (policy.Session, error) {
			return f.sources().Session(ctx, t, id)
		},
		Grants: func(ctx context.Context, t estover.TenantID, id string) (*policy.Grants, error) {
			return f.sources().Grants(ctx, t, id)
		},
		Pending: func(ctx context.Context, t estover.TenantID, agent, session, resource, action string) (bool, error) {
			id, err := s.requests.Waits(ctx, t, agent, session, resource, action)
			return id != "", err
		},
		Resource: f.resource,
		Holds: func(ctx context.Context, t estover.TenantID, a *policy.Agent) ([]string, error) {
			return f.sources().Holds(ctx, t, a)
		},
		Tenant: func(ctx context.Context, t estover.TenantID) error { return f.tenants.Active(ctx, t) },
		Owner:  s.owner,
	}, policy.Options{Logger: s.logger})
	s.guard = guard.New(s.db, s.log, s.decider, guard.Options{Alive: s.alive, Logger: s.logger})
	f.follow(s.guard)
	s.policy = policy.New(s.guard, s.decider)

	f.people = directory.New(s.guard, directory.Options{MAC: func(t estover.TenantID, value []byte) []byte { return s.sealer.MAC(t, "approver key", value) }, Left: func(ctx context.Context, tx *guard.Tx, person string) error {
		if err := s.tokens.EndPerson(ctx, tx, person); err != nil {
			return err
		}
		if err := s.tickets.EndOfPerson(ctx, tx, person); err != nil {
			return err
		}
		n, err := s.leases.EndOfPeople(ctx, tx, []string{person})
		if err != nil {
			return err
		}
		tx.Note("leases", n)
		return f.registry.SponsorLeft(ctx, tx, person)
	}})
	f.tenants = tenant.New(s.guard, tenant.Options{
		Issuer: token.Issuer(s.config.Issuer).Of, Found: s.found, Bootstrap: f.people.Bootstrap,
		Empty: s.emptyTenant, Open: openOfTenant, Finish: s.log.Sequence, Shred: seal.Shred, Shredded: s.shredded,
	})
	f.registry = agent.New(s.guard, agent.Options{
		Sponsor: f.people.Sponsor,
		Pepper:  func(t estover.TenantID, value []byte) []byte { return s.sealer.MAC(t, "client secret", value) },
		Held:    s.held,
		Wide:    wide, Liftable: incident.Liftable,
		Grantable: func(ctx context.Context, tx *db.Tx, g agent.Granted) error {
			return f.resources.Grantable(ctx, tx, g.Resource, g.Actions)
		},
		Grant: func(ctx context.Context, tx *guard.Tx, a agent.Agent, g agent.Granted) error {
			_, err := f.access.Give(ctx, tx, access.Spec{
				Agent: a.ID, Resource: g.Resource, Actions: g.Actions, Purposes: a.Purposes, Class: g.Class, ExpiresAt: a.ExpiresAt,
			}, estover.System("oauth"))
			return err
		},
	})
	f.resources = resource.New(s.guard)
	f.resources.Held = func(ctx context.Context, tx *db.Tx, id string) (bool, error) {
		on, err := hold.OnResource(ctx, tx, id)
		return len(on) > 0, err
	}
	f.holds = hold.New(s.guard)
	f.access = access.New(s.guard, access.Options{
		Agent: f.registry.Grantable, Resource: f.resources.Grantable, Told: f.sponsors, Verify: s.verifyGrant, Logger: s.logger,
		Session: func(ctx context.Context, tx *guard.Tx, id string) error { return f.sessions.Hold(ctx, tx, id) },
	})
	f.secrets = secret.New(s.guard, s.sealer, secret.Options{
		Logger: s.logger, Standing: func() error { return s.rotations.Standing() },
		Fresh: func(ctx context.Context, t estover.TenantID, x secret.Secret, before func() error) error {
			return s.stores.Fresh(ctx, t, x, before)
		},
	})
	s.connected = s.connecting()
	s.targets, s.leases = s.leasing()
	s.stores = s.storing()
	s.guard.OnEnd(s.endBound)
	s.rotations = s.rotating()
	s.pki, s.transit = s.certifying()
	f.sessions = session.New(s.guard, session.Config{
		Clients: f, Acting: f.registry.Acting, Expired: expiredAgents, Left: hasElsewhere, Lapse: s.endElsewhere, Seal: s.sealAs(seal.Audit), Unseal: s.openAs(seal.Audit), Node: s.claims(), Logger: s.logger,
	}, s.belonging()...)
	s.requests = s.approvals()
	s.records = guard.NewCache(s.guard, "approval record", s.loadApproved)
	s.notify = s.channels()
	s.tokens = token.New(s.guard, token.Config{Issuer: token.Issuer(s.config.Issuer), Keys: s.keys, Clients: f, Sessions: f.sessions, Access: f, Known: s.known, People: f.acting})
	s.trusts = federation.New(s.guard, federation.Options{
		Own: s.tokens.Issuer.Of, Fetch: s.fetchKeys,
		Agent:  func(ctx context.Context, tx *db.Tx, id string) error { return f.registry.Grantable(ctx, tx, id, nil) },
		Person: f.vouched,
	})
	s.callers = &edge.Callers{Tokens: s.tokens, People: f.people.Authenticate, Proofs: &edge.Proofs{
		Origins: s.origins(), Now: s.db.Now,
		MAC: func(t estover.TenantID, msg []byte) []byte { return s.sealer.MAC(t, "dpop nonce", msg) },
	}}
	if s.pages, err = page.New(page.Config{
		Issuer: token.Issuer(s.config.Issuer), People: f.people, Known: s.known, Now: s.db.Now, Logger: s.logger,
		MAC: func(t estover.TenantID, value []byte) []byte { return s.sealer.MAC(t, "page", value) },
	}); err != nil {
		return err
	}
	s.oauth = oauth.New(oauth.Config{Tokens: s.tokens, Sessions: f.sessions, Callers: s.callers, Trusts: s.trusts, Mutual: token.Issuer(s.config.mutual()), NoCertificates: !s.config.certificates(), Registrations: f.registry, Pages: s.pages, Requester: f.requester, Named: f.people.Named, Identity: f.identity, Documents: oauth.NewDocuments(s.fetchDocument, s.db.Now), Logger: s.logger})
	if s.login, err = login.New(login.Config{
		Issuer: token.Issuer(s.config.Issuer), People: f.people, Pages: s.pages, Agents: oauth.ConsentsPath, Approvals: approve.Path, Contain: contain.Path, MayContain: s.mayContain,
		Fetcher: s.providerFetcher, Secret: s.providerSecret, Entered: s.entered, Logger: s.logger,
	}); err != nil {
		return err
	}
	s.recordings = recording.New(s.guard, s.sealer, s.bucket, recording.Options{Logger: s.logger})

	forwarder := gateway.NewForwarder(&edge.Dialer{Own: s.own}, s.logger)
	s.duties = duty.New(duty.Config{
		Guard: s.guard, Agents: f.registry, Resources: f.resources, Sessions: f.sessions, Secrets: f.secrets, Recordings: s.recordings,
		Spool: s.spool, Sealer: s.sealer, Live: s.live, Covered: s.covered, Access: f.access, Approval: s.approvalOf, Granted: s.granted, Reachable: s.reachable, Requestable: s.requestable, Auth: s.authOf, Known: s.known, Opened: f.tenants.Opened, Rests: s.rests, Connection: s.connected.Use, Lease: s.leased, Leases: s.leases.Stands, Drop: forwarder.Drop, Node: node(), Logger: s.logger,
	})
	s.guard.OnTouch(func(t estover.TenantID, kind, _ string) {
		if kind == lease.Marked {
			s.duties.LeasesEnded(t)
		}
	})
	s.pipeline = &gateway.Pipeline{
		Steps: s.duties, Forwarder: forwarder, Live: s.live,
	}
	ev := evidence.New(s.guard, s.keys, s.recordings, s.policy.Manifest)
	ev.Approval = s.approvalOf
	s.incidents = incident.New(incident.Config{
		Guard: s.guard, Agents: f.registry, Sessions: f.sessions, Holds: f.holds, Gateway: s.live, Leases: s.leases, Certificates: s.pki.EndOfAgents, Evidence: ev,
		Certified: func(ctx context.Context, tx *db.Tx, agents []string, all bool, since time.Time) ([]string, error) {
			return pki.LingersSince(ctx, tx, pki.Crowd{Agents: agents, All: all}, since)
		},
		Ask: s.requests.Ask, Decoy: s.decoy, Deciders: lifters, Tenant: f.tenants.Active, Tenants: f.tenants.Names,
		Person: func(ctx context.Context, tx *db.Tx, id string) error {
			_, err := directory.Known(ctx, tx, id)
			return err
		},
	})
	s.tickets = s.doorTickets()
	s.emergencies = s.undoing(ev)
	s.databases = database.New(s.guard, database.Options{Secrets: f.secrets, Targets: s.targets, Leases: s.leases, Rotations: s.rotations, Owner: s.ownerFor, Logger: s.logger})
	s.mounts = mount.New(s.guard, mount.Options{Kinds: s.mountKinds()})
	s.acls = mount.NewPolicies(s.guard)
	s.devices = device.New(s.guard, device.Options{Sealer: s.sealer, Folder: s.config.VaultAudit, Dial: s.dialDevice, Tenants: f.tenants.Names, Mount: s.deviceMount, Logger: s.logger})
	s.vault = s.vaultDoor()
	gatewayAddress, err := s.gatewayAddress()
	if err != nil {
		return err
	}
	s.api = api.New(s.guard, api.Parts{
		Tenants: f.tenants, Agents: f.registry, People: f.people, Resources: f.resources, Grants: f.access, Requests: s.requests, Notify: s.notify, Secrets: f.secrets, Imports: s.imports(), Stores: s.stores, PKI: s.pki, Transit: s.transit, Targets: s.targets, Leases: s.leases, Rotations: s.rotations, Sessions: f.sessions, Policy: s.policy, Trusts: s.trusts, Tokens: s.tokens,
		Recordings: s.recordings, Evidence: ev, Incidents: s.incidents, Emergencies: s.emergencies, Gateway: s.duties, GatewayAddress: gatewayAddress, Connections: s.connected, ConnectionPage: s.connectionPage, RootKeys: roots{s}, Doctor: s.doctor, Entered: s.entered,
		Apply: apply.New(s.guard, apply.Parts{
			People: f.people, Agents: f.registry, Resources: f.resources, Grants: f.access, Secrets: f.secrets, Stores: s.stores, Policy: s.policy, Trusts: s.trusts, Details: s.tokens.DetailTypes, Channels: s.notify,
		}),
	}, api.Options{
		Version: s.version, Issuer: token.Issuer(s.config.Issuer), Known: s.known, Authenticate: s.callers.Authenticate,
		Seal: s.sealAs(seal.Token), Open: s.openAs(seal.Token), Logger: s.logger,
		MAC: func(t estover.TenantID, value []byte) []byte { return s.sealer.MAC(t, "api request", value) },
	})
	return nil
}

// belonging is all that belongs to a session and ends with it. This is the one
// place where another kind of thing joins.
func (s *Server) belonging() []session.Part {
	return []session.Part{
		// Access and refresh tokens, and what waits to be exchanged for them, rest on
		// grants of the token service.
		{Name: "grants", End: token.EndSessions, Extend: token.ExtendSession},
		// Grants that were given for the session alone, and who works in it on the
		// grants of others.
		{Name: "mandates", End: access.EndOfSessions},
		// Tokens of the Vault-compatible door, with what they keep and have wrapped.
		{Name: "tickets", End: ticket.EndOfSessions},
		// What it has asked for and nobody has decided is asked no more.
		{Name: "requests", End: func(ctx context.Context, tx *guard.Tx, sessions []string) (int, error) {
			return s.requests.EndOfSessions(ctx, tx, sessions)
		}},
		// Credentials that were made for it are good for nothing from here on, and are
		// taken away where they were made: the end of the session is the end of them.
		{
			Name: "leases",
			End: func(ctx context.Context, tx *guard.Tx, sessions []string) (int, error) {
				return s.leases.EndOfSessions(ctx, tx, sessions)
			},
			After: func(ctx context.Context, t estover.TenantID, id string) error {
				return s.leases.Settled(ctx, t, lease.Filter{Session: id})
			},
		},
		// What was certified in it is revoked, and the lists say so when they are next
		// asked for.
		{Name: "certificates", End: func(ctx context.Context, tx *guard.Tx, sessions []string) (int, error) {
			return s.pki.EndOfSessions(ctx, tx, sessions)
		}},
		// Tokens of upstreams that the gateway has kept back.
		{Name: "upstream_tokens", End: duty.EndTokens},
		// Exchanges, streams, tunnels and connections to upstreams are a node's own,
		// and so is the session's certificate authority. Then the recording is closed
		// and the closing statement written, by the node that has the calls.
		{Name: "connections", Here: func(ctx context.Context, t estover.TenantID, id string, ended bool) error {
			return s.duties.Ended(ctx, t, id, ended)
		}},
		// Where that node is gone, by another.
		{Name: "recordings", Delay: duty.Orphaned, After: func(ctx context.Context, t estover.TenantID, id string) error {
			return s.duties.Close(ctx, t, id)
		}},
	}
}

// expiredAgents are the agents whose own time has run out.
func expiredAgents(ctx context.Context, tx *db.Tx, since time.Time) (all []session.AgentOf, err error) {
	ran, err := agent.ExpiredSince(ctx, tx, since)
	for _, a := range ran {
		all = append(all, session.AgentOf{Tenant: a.Tenant, Agent: a.ID})
	}
	return all, err
}

// origins are the addresses under which clients know this server.
func (s *Server) origins() []string {
	all := []string{s.config.Issuer}
	for _, more := range []string{s.config.mutual(), s.config.vault()} {
		if more != "" {
			all = append(all, more)
		}
	}
	return all
}

func node() string {
	name, err := os.Hostname()
	if err != nil {
		return "gateway"
	}
	return name
}

// gatewayAddress is where launchers find the forward proxy: under the name of
// the issuer, which the certificate has, and the gateway's own port.
func (s *Server) gatewayAddress() (string, error) {
	u, err := url.Parse(s.config.Issuer)
	if err != nil {
		return "", err
	}
	_, port, err := net.SplitHostPort(s.config.Gateway)
	return net.JoinHostPort(u.Hostname(), port), err
}

// alive checks in a transaction that what a caller's authority rests on has
// not ended since the caller was recognised.
func (s *Server) alive(ctx context.Context, tx *db.Tx, caller estover.Caller) error {
	if err := ticket.Alive(ctx, tx, caller); err != nil {
		return err
	}
	if err := mount.Alive(ctx, tx, caller); err != nil {
		return err
	}
	if caller.Subject.Kind() == estover.UserKind {
		if err := s.facts.people.Alive(ctx, tx, caller); err != nil {
			return err
		}
	}
	if caller.Acting().Kind() == estover.AgentKind {
		at := db.Epoch{Table: token.GrantTable, ID: caller.Grant, Epoch: caller.Epoch}
		switch {
		case caller.Grant != "":
		case caller.Session != "": // by the certificate that stands for the session
			at = db.Epoch{Table: session.Table, ID: caller.Session, Epoch: caller.Epoch}
		default: // by its own credential, which the token service looks at
			return nil
		}
		if err := tx.Alive(ctx, at); err != nil {
			if errors.Is(err, db.ErrStale) {
				err = session.ErrEnded
			}
			return err
		}
	}
	return nil
}

// rests says why what an agent's token rests on has ended, if it has.
func (s *Server) rests(ctx context.Context, caller estover.Caller) error {
	if caller.Acting().Kind() != estover.AgentKind {
		return nil
	}
	if caller.Grant == "" { // the session that a certificate stands for is looked at by itself
		a, err := s.facts.registry.Snapshot(ctx, caller.Tenant, caller.Acting().ID())
		if err == nil {
			err = s.facts.covered(ctx, caller.Tenant, &a.Agent)
		}
		return err
	}
	return s.tokens.Rests(ctx, caller)
}

// documents are the documents of grants that calls rest on, each made once for
// a copy of the grant.
type documents struct {
	mu   sync.Mutex
	made map[documentKey]string
}

type documentKey struct {
	grant    *access.Grant
	resource *resource.Upstream
	purpose  string
}

// maxDocuments bounds them; beyond it, all are made anew.
const maxDocuments = 10_000

func (d *documents) of(g *access.Grant, u *resource.Upstream, purpose string) (string, error) {
	key := documentKey{g, u, purpose}
	d.mu.Lock()
	defer d.mu.Unlock()
	if text, ok := d.made[key]; ok {
		return text, nil
	}
	from := g.StartsAt
	if from.IsZero() {
		from = g.CreatedAt
	}
	b, err := json.Marshal(attest.Grant{
		ID: g.ID, Agent: g.Agent, Purpose: purpose, NotBefore: from, NotAfter: g.ExpiresAt,
		Permissions: []attest.Permission{{Resource: u.Name, Actions: g.Actions}},
	})
	if err != nil {
		return "", err
	}
	if d.made == nil || len(d.made) >= maxDocuments {
		d.made = map[documentKey]string{}
	}
	d.made[key] = string(b)
	return string(b), nil
}

// authOf is how the person at the root of the caller's grant proved who they are.
func (s *Server) authOf(ctx context.Context, caller estover.Caller) (token.Auth, error) {
	if caller.Grant == "" || caller.Subject.Kind() != estover.UserKind {
		return token.Auth{}, nil
	}
	g, err := s.tokens.Grant(ctx, caller.Tenant, caller.Grant)
	if err != nil {
		return token.Auth{}, err
	}
	return g.Auth, nil
}

// granted are the resources on which an agent is granted anything.
func (s *Server) granted(ctx context.Context, tenant estover.TenantID, id string) (all []*resource.Upstream, err error) {
	grants, err := s.facts.access.Grants(ctx, tenant, id)
	if err != nil {
		return nil, err
	}
	for _, g := range grants {
		u, err := s.facts.resources.Upstream(ctx, tenant, g.Resource)
		switch {
		case estover.KindOf(err) == estover.NotFound: // retired
		case err != nil:
			return nil, err
		case !slices.Contains(all, u):
			all = append(all, u)
		}
	}
	return all, nil
}

// held ends what an agent has under way when it is held: its sessions with all
// that belongs to them, and for good its grants and its secret-ids too. These come
// first, as they do for whoever logs in.
func (s *Server) held(ctx context.Context, tx *guard.Tx, id string, kind agent.Kind) error {
	if kind == agent.Retirement {
		if err := retirable(ctx, tx.Tx, id); err != nil {
			return err
		}
		n, err := ticket.EndOfAgent(ctx, tx, id)
		if err != nil {
			return err
		}
		if n > 0 {
			tx.Note("secret_ids", n)
		}
	}
	cause := "the agent is " + string(kind)
	if _, err := s.facts.sessions.EndAgent(ctx, tx, id, cause); err != nil {
		return err
	}
	if err := s.endElsewhere(ctx, tx, id, cause); err != nil {
		return err
	}
	if kind != agent.Retirement {
		return nil
	}
	_, err := access.EndOfAgent(ctx, tx, id, "the agent is retired")
	return err
}

// endElsewhere ends what an agent was given in the sessions of others, and what it has
// made there.
func (s *Server) endElsewhere(ctx context.Context, tx *guard.Tx, id, cause string) error {
	n, err := token.EndClient(ctx, tx, id, cause)
	if err != nil {
		return err
	}
	if n > 0 {
		tx.Note("handed_on", n)
	}
	left, err := s.leases.EndOfAgents(ctx, tx, []string{id})
	if err != nil {
		return err
	}
	if left > 0 {
		tx.Note("leases_in_sessions_of_others", left)
	}
	if left, err = s.pki.EndOfAgents(ctx, tx, []string{id}, cause); err == nil && left > 0 {
		tx.Note("certificates_in_sessions_of_others", left)
	}
	return err
}

// hasElsewhere reports whether there is anything for [Server.endElsewhere] to end.
func hasElsewhere(ctx context.Context, tx *db.Tx, id string) (bool, error) {
	if has, err := token.ClientHas(ctx, tx, id); err != nil || has {
		return has, err
	}
	if s, err := lease.StandingIn(ctx, tx, lease.Filter{Agent: id}); err != nil || s.Open > s.Revoking {
		return true, err
	}
	return pki.AgentHas(ctx, tx, id)
}

// bootstrapFile is where the first administrator's one-time token is put.
const bootstrapFile = "bootstrap-token"

// bootstrap lets the first administrator in.
func (s *Server) bootstrap(ctx context.Context) error {
	value, err := s.facts.people.Bootstrap(ctx, estover.DefaultTenant)
	if err != nil {
		return fmt.Errorf("letting the first administrator in: %w", err)
	}
	if value.Empty() {
		s.entered(estover.DefaultTenant)
		return nil
	}
	file := s.bootstrapPath()
	if err := writePrivate(file, append(value.Reveal(), '\n')); err != nil {
		return fmt.Errorf("writing the first administrator's token: %w", err)
	}
	s.logger.Info("no administrator has come in yet; log in with the one-time token, or make a passkey with it", "file", file, "page", s.config.Issuer+page.SignInPath+"/invitation")
	return nil
}

// entered takes away the first administrator's token, which is used up. Those of
// other tenants are handed over, and never lie in a file of ours.
func (s *Server) entered(t estover.TenantID) {
	if t != estover.DefaultTenant {
		return
	}
	if err := os.Remove(s.bootstrapPath()); err != nil && !errors.Is(err, os.ErrNotExist) {
		s.logger.Error("removing a one-time token that is used up", "error", err)
	}
}

// writePrivate writes a file that only we can read, whole or not at all.
func writePrivate(file string, b []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(file), ".tmp-") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(b)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), file)
}

// trusted are the proxies whose word about a client's address is believed.
func (s *Server) trusted() []netip.Prefix {
	var all []netip.Prefix
	for _, p := range s.config.Proxies {
		all = append(all, netip.MustParsePrefix(p)) // check has parsed it
	}
	return all
}

// close lets go of everything that was opened, in the other order.
func (s *Server) close() {
	for _, l := range []net.Listener{s.listener, s.gatewayListener, s.vaultListener, s.mutualListener, s.controlListener} {
		if l != nil {
			_ = l.Close()
		}
	}
	if s.targets != nil {
		s.targets.Close()
	}
	if s.bucket != nil {
		_ = s.bucket.Close()
	}
	if s.spool != nil {
		if err := s.spool.Close(); err != nil {
			s.logger.Error("closing the spool", "error", err)
		}
	}
	if s.db != nil {
		if err := s.db.Close(); err != nil {
			s.logger.Error("closing the database", "error", err)
		}
	}
	if s.lock != nil {
		_ = s.lock.Close()
	}
}

// stopTime bounds how long a stopping server waits for what is under way.
const stopTime = 20 * time.Second
