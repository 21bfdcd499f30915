package enginetest

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"estover.dev"
	"estover.dev/internal/secret/engine"
)

// A RabbitMQServer is a RabbitMQ with its management interface, whose user
// "estover" has the tag administrator, and with the virtual hosts "crm", "billing"
// and "a/b c".
type RabbitMQServer struct {
	*Server

	// Config is how Estover reaches it, without TLS.
	Config engine.Config
}

// adminPassword is that of Estover at servers which do not ask for more.
const adminPassword = "made-for-tests"

// The ports of a RabbitMQ.
const (
	RabbitMQPlain = iota // AMQP
	RabbitMQSecured
	RabbitMQManagement
	RabbitMQManagementTLS
	distribution
	mapper // of Erlang's nodes: one of its own, which ends with the server
)

// Call asks the management interface as the administrator, and reads the answer
// into out if that is not nil. What is only read is asked for again where the broker
// failed: it does so where it lists users one of whom is deleted meanwhile.
func (s *RabbitMQServer) Call(ctx context.Context, method, path string, out any) (status int, err error) {
	for tries := 0; ; tries++ {
		status, err = askRabbitMQ(ctx, s.Server, method, path, "", out)
		if status != http.StatusInternalServerError || method != http.MethodGet || tries == 20 {
			return status, err
		}
		select {
		case <-ctx.Done():
			return status, err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func askRabbitMQ(ctx context.Context, s *Server, method, path, body string, out any) (int, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+s.Address(RabbitMQManagement)+path, strings.NewReader(body))
	if err != nil {
		return 0, err
	}
	req.SetBasicAuth("estover", adminPassword)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return resp.StatusCode, errors.New(resp.Status)
	}
	if out != nil {
		return resp.StatusCode, json.NewDecoder(resp.Body).Decode(out)
	}
	return resp.StatusCode, nil
}

// RabbitMQ is the RabbitMQ of this test binary, started when first asked for.
func RabbitMQ(t testing.TB) *RabbitMQServer {
	t.Helper()
	s, err := rabbitMQ()
	if err != nil {
		t.Fatalf("starting a RabbitMQ as a target: %v", err)
	}
	return s
}

var rabbitMQ = sync.OnceValues(func() (*RabbitMQServer, error) {
	s, err := Start(Process{
		Debian: "rabbitmq-server", Program: "sh", Users: []string{"rabbitmq"}, Ports: 6, Patience: 5 * time.Minute,
		Prepare: func(s *Server) ([]string, []string, error) {
			certificate, key, err := Certificate(s)
			if err != nil {
				return nil, nil, err
			}
			authority, err := s.Write("ca.pem", string(Authority()))
			if err != nil {
				return nil, nil, err
			}
			sum := sha256.Sum256([]byte("salt" + adminPassword))
			definitions, err := json.Marshal(map[string]any{
				"users": []map[string]string{{
					"name": "estover", "password_hash": base64.StdEncoding.EncodeToString(append([]byte("salt"), sum[:]...)),
					"hashing_algorithm": "rabbit_password_hashing_sha256", "tags": "administrator",
				}},
				"vhosts":      []map[string]string{{"name": "/"}, {"name": "crm"}, {"name": "billing"}, {"name": "a/b c"}},
				"permissions": []map[string]string{{"user": "estover", "vhost": "crm", "configure": ".*", "write": ".*", "read": ".*"}},
			})
			if err != nil {
				return nil, nil, err
			}
			for name, content := range map[string]string{
				"definitions.json": string(definitions),
				"plugins":          "[rabbitmq_management].",
				"rabbitmq.conf": strings.NewReplacer("DIR", s.Dir, "CERT", certificate, "KEY", key, "CA", authority,
					"P0", fmt.Sprint(s.Ports[RabbitMQPlain]), "P1", fmt.Sprint(s.Ports[RabbitMQSecured]),
					"P2", fmt.Sprint(s.Ports[RabbitMQManagement]), "P3", fmt.Sprint(s.Ports[RabbitMQManagementTLS])).Replace(`
listeners.tcp.1 = 127.0.0.1:P0
listeners.ssl.1 = 127.0.0.1:P1
ssl_options.cacertfile = CA
ssl_options.certfile = CERT
ssl_options.keyfile = KEY
ssl_options.verify = verify_none
ssl_options.fail_if_no_peer_cert = false
management.tcp.ip = 127.0.0.1
management.tcp.port = P2
management.ssl.ip = 127.0.0.1
management.ssl.port = P3
management.ssl.cacertfile = CA
management.ssl.certfile = CERT
management.ssl.keyfile = KEY
management.load_definitions = DIR/definitions.json
log.console = true
log.console.level = info
log.file = false
disk_free_limit.absolute = 1MB
handshake_timeout = 60000
ssl_handshake_timeout = 60000
`),
			} {
				if _, err := s.Write(name, content); err != nil {
					return nil, nil, err
				}
			}
			p := func(n int) string { return fmt.Sprint(s.Ports[n]) }
			// The mapper is started first, so that Erlang starts none that would outlive it.
			script := `epmd -address 127.0.0.1 -port ` + p(mapper) + ` & until epmd -port ` + p(mapper) + ` -names >/dev/null; do sleep 0.1; done
				exec /usr/lib/rabbitmq/bin/rabbitmq-server`
			// Its schedulers sleep when there is nothing to do. Those that spin, as they do by
			// themselves, are put last where others want to compute too: it took ten times
			// as long for everything.
			return []string{"-c", script}, []string{
				"HOME=" + s.Dir, "ERL_EPMD_PORT=" + p(mapper), "ERL_EPMD_ADDRESS=127.0.0.1", "ERL_CRASH_DUMP=/dev/null",
				"RABBITMQ_NODENAME=rabbit@localhost", "RABBITMQ_DIST_PORT=" + p(distribution), "RABBITMQ_NODE_IP_ADDRESS=127.0.0.1", "RABBITMQ_NODE_PORT=" + p(RabbitMQPlain),
				"RABBITMQ_CONF_ENV_FILE=/dev/null", "RABBITMQ_CONFIG_FILE=" + s.Dir + "/rabbitmq.conf", "RABBITMQ_ENABLED_PLUGINS_FILE=" + s.Dir + "/plugins",
				"RABBITMQ_MNESIA_BASE=" + s.Dir + "/mnesia", "RABBITMQ_LOG_BASE=" + s.Dir + "/logs", "RABBITMQ_PID_FILE=" + s.Dir + "/pid",
				"RABBITMQ_GENERATED_CONFIG_DIR=" + s.Dir + "/config", "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=+S 1:1 +SDcpu 1:1 +SDio 1 +sbwt none +sbwtdcpu none +sbwtdio none",
			}, nil
		},
		Ready: func(ctx context.Context, s *Server) error {
			// It loads what a call needs when that is first made, which takes long on a
			// busy machine, and an engine waits for no more than half a minute.
			for _, c := range []struct{ method, path, body string }{
				{http.MethodGet, "/api/permissions/crm/estover", ""},
				{http.MethodPut, "/api/users/first", `{"password": "made-for-tests", "tags": ""}`},
				{http.MethodPut, "/api/permissions/crm/first", `{"configure": "", "write": "", "read": "^a"}`},
				{http.MethodGet, "/api/users/first/topic-permissions", ""},
				{http.MethodGet, "/api/connections/username/first", ""},
				{http.MethodDelete, "/api/connections/username/first", ""},
				{http.MethodPost, "/api/definitions", `{"users": [{"name": "first", "password_hash": "", "hashing_algorithm": "rabbit_password_hashing_sha256", "tags": "", "limits": {}}], "permissions": [], "topic_permissions": []}`},
				{http.MethodDelete, "/api/users/first", ""},
			} {
				if status, err := askRabbitMQ(ctx, s, c.method, c.path, c.body, nil); err != nil && status != http.StatusNotFound { // it has no connections
					return err
				}
			}
			c, err := new(net.Dialer).DialContext(ctx, "tcp", s.Address(RabbitMQPlain))
			if err != nil {
				return err
			}
			return c.Close()
		},
	})
	if err != nil {
		return nil, err
	}
	return &RabbitMQServer{s, engine.Config{
		Address: "http://" + s.Address(RabbitMQManagement), Options: map[string]string{"amqp": s.Address(RabbitMQPlain)},
		Admin: engine.Credential{User: "estover", Secret: estover.NewSecret([]byte(adminPassword))},
	}}, nil
})
