package enginetest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	client "github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"estover.dev"
	"estover.dev/internal/secret/engine"
)

// A NATSServer is a NATS with a full resolver. Its operator has a system account
// and an account "crm", with a signing key and one that is scoped to reading.
type NATSServer struct {
	*Server
	Operator, Signing, System, CRM, CRMSigning, Reader nkeys.KeyPair

	secured bool
}

// NATS is the NATS of this test binary, started when first asked for.
func NATS(t testing.TB) *NATSServer {
	t.Helper()
	s, err := natsServer()
	if err != nil {
		t.Fatalf("starting a NATS as a target: %v", err)
	}
	return s
}

var natsServer = sync.OnceValues(func() (*NATSServer, error) { return StartNATS(false) })

// Config is how Estover reaches it with a signing key of the operator and keys of
// accounts.
func (s *NATSServer) Config(signer nkeys.KeyPair, accounts ...nkeys.KeyPair) engine.Config {
	secret := "operator " + NKeySeed(signer) + "\nsystem " + NKeySeed(s.System) + "\n"
	for _, a := range accounts {
		secret += "account " + NKeySeed(a) + "\n"
	}
	c := engine.Config{
		Address: s.Address(0), Options: map[string]string{"account": NKeyName(s.CRM)},
		Admin: engine.Credential{User: "estover", Secret: estover.NewSecret([]byte(secret))},
	}
	if s.secured {
		c.Options["tls"], c.Authorities = "verify", Authority()
	}
	return c
}

// AsSystem logs in as the system account, whose resolver has the accounts.
func (s *NATSServer) AsSystem() (*client.Conn, error) {
	own := NKey(nkeys.CreateUser)
	token, err := jwt.NewUserClaims(NKeyName(own)).Encode(s.System)
	if err != nil {
		return nil, err
	}
	options := []client.Option{client.UserJWTAndSeed(token, NKeySeed(own)), client.NoReconnect(), client.Timeout(30 * time.Second)}
	if s.secured {
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(Authority())
		options = append(options, client.Secure(&tls.Config{RootCAs: roots}))
	}
	return client.Connect("nats://"+s.Address(0), options...)
}

// Account gives the account "crm" as the resolver has it.
func (s *NATSServer) Account(ctx context.Context, c *client.Conn) (*jwt.AccountClaims, error) {
	now, err := c.RequestWithContext(ctx, "$SYS.REQ.ACCOUNT."+NKeyName(s.CRM)+".CLAIMS.LOOKUP", nil)
	if err != nil {
		return nil, err
	}
	return jwt.DecodeAccountClaims(string(now.Data))
}

// StartNATS runs a NATS server, whose connections are secured by TLS if asked for.
func StartNATS(secured bool) (*NATSServer, error) {
	o := &NATSServer{
		secured:  secured,
		Operator: NKey(nkeys.CreateOperator), Signing: NKey(nkeys.CreateOperator), System: NKey(nkeys.CreateAccount),
		CRM: NKey(nkeys.CreateAccount), CRMSigning: NKey(nkeys.CreateAccount), Reader: NKey(nkeys.CreateAccount),
	}
	oc := jwt.NewOperatorClaims(NKeyName(o.Operator))
	oc.SigningKeys.Add(NKeyName(o.Signing))
	operatorJWT, err := oc.Encode(o.Operator)
	if err != nil {
		return nil, err
	}
	accounts := ""
	for _, k := range []nkeys.KeyPair{o.System, o.CRM} {
		ac := jwt.NewAccountClaims(NKeyName(k))
		if k == o.CRM {
			ac.Name = "crm"
			ac.SigningKeys.Add(NKeyName(o.CRMSigning))
			scope := jwt.NewUserScope()
			scope.Key, scope.Role = NKeyName(o.Reader), "reader"
			scope.Template.Pub.Deny.Add(">")
			scope.Template.Sub.Allow.Add("orders.>")
			ac.SigningKeys.AddScopedSigner(scope)
		}
		token, err := ac.Encode(o.Operator)
		if err != nil {
			return nil, err
		}
		accounts += fmt.Sprintf("  %s: %s\n", NKeyName(k), token)
	}
	o.Server, err = Start(Process{
		Debian: "nats-server", Program: "nats-server", Users: []string{"nats"}, Ports: 1,
		Prepare: func(s *Server) ([]string, []string, error) {
			conf := fmt.Sprintf("listen: %s\noperator: %s\nsystem_account: %s\nresolver: {type: full, dir: %q}\nresolver_preload: {\n%s}\ndebug: true\ntrace: true\n"+
				"authorization: {timeout: 30}\n", // by itself it waits two seconds for a log-in, and the machine may be busy for longer
				s.Address(0), operatorJWT, NKeyName(o.System), filepath.Join(s.Dir, "jwt"), accounts)
			if secured {
				certificate, key, err := Certificate(s)
				if err != nil {
					return nil, nil, err
				}
				conf += fmt.Sprintf("tls: {cert_file: %q, key_file: %q, timeout: 30}\n", certificate, key)
			}
			path, err := s.Write("nats.conf", conf)
			return []string{"-c", path}, nil, err
		},
		Ready: func(ctx context.Context, s *Server) error {
			o.Server = s
			c, err := o.AsSystem()
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = o.Account(ctx, c)
			return err
		},
	})
	return o, err
}

// NKey is a key that a function of nkeys makes.
func NKey(create func() (nkeys.KeyPair, error)) nkeys.KeyPair {
	k, err := create()
	if err != nil {
		panic(err)
	}
	return k
}

// NKeyName is how others name a key.
func NKeyName(k nkeys.KeyPair) string {
	p, err := k.PublicKey()
	if err != nil {
		panic(err)
	}
	return p
}

// NKeySeed is what a key is made of, as its holder has it.
func NKeySeed(k nkeys.KeyPair) string {
	s, err := k.Seed()
	if err != nil {
		panic(err)
	}
	return string(s)
}
