package database

import (
	"encoding/json"
	"net"
	"net/url"
	"strings"

	"estover.dev"
	"estover.dev/internal/secret/engine"
)

// plugins are the kinds of target by the names that clients have for them.
var plugins = map[string]string{
	"postgresql-database-plugin": "postgres", "mysql-database-plugin": "mysql", "mysql-aurora-database-plugin": "mysql", "mysql-rds-database-plugin": "mysql",
	"mysql-legacy-database-plugin": "mysql", "redis-database-plugin": "redis", "valkey-database-plugin": "redis",
}

// secretDetails are the details that are never kept or told. tls_certificate_key
// has a key beside its certificate.
var secretDetails = []string{"password", "private_key", "tls_certificate_key"}

// A reach is how a database is reached, and as whom.
type reach struct {
	kind        string
	address     string
	host        string // host:port
	options     map[string]string
	authorities string
	user        string
	password    estover.Secret // empty if it was not sent
}

// word is a detail that is a string; "" if it is none.
func (x *Config) word(name string) string {
	var s string
	if json.Unmarshal(x.Details[name], &s) != nil {
		return ""
	}
	return s
}

func (x *Config) flag(name string) bool {
	raw := strings.Trim(string(x.Details[name]), `"`)
	return raw == "true" || raw == "1"
}

// reach takes the secrets out of the details, and says what they come to.
func (x *Config) reach() (at reach, err error) {
	kind, ok := plugins[x.Plugin]
	if !ok {
		return at, ErrInvalid.With("no plugin %q is offered: there are postgresql-database-plugin, mysql-database-plugin, redis-database-plugin and valkey-database-plugin", x.Plugin)
	}
	at.kind, at.options = kind, map[string]string{}
	at.user = x.word("username")
	at.password = estover.NewSecret([]byte(x.word("password")))
	for _, name := range secretDetails {
		delete(x.Details, name)
	}
	at.authorities = x.word("tls_ca")
	switch kind {
	case "postgres":
		err = x.postgres(&at)
	case "mysql":
		err = x.mysql(&at)
	case "redis":
		err = x.redis(&at)
	}
	if err != nil {
		return at, err
	}
	return at, nil
}

// The places of what is secret in a URL, as clients write them.
const (
	userPlace     = "{{username}}"
	passwordPlace = "{{password}}"
	masked        = "*****"
)

func (x *Config) postgres(at *reach) error {
	text := x.word("connection_url")
	if text == "" {
		return ErrInvalid.With("connection_url cannot be empty")
	}
	u, err := url.Parse(strings.NewReplacer(userPlace, "user", passwordPlace, "password").Replace(text))
	if err != nil || u.Scheme != "postgresql" && u.Scheme != "postgres" || u.Host == "" {
		return ErrInvalid.With("connection_url is a URL as postgresql://{{username}}:{{password}}@HOST:5432/DATABASE")
	}
	if u.User != nil && !strings.Contains(text, userPlace) {
		at.user = u.User.Username()
	}
	if given, has := u.User.Password(); has && !strings.Contains(text, passwordPlace) {
		if given != masked {
			at.password = estover.NewSecret([]byte(given))
		}
		u.User = url.UserPassword(u.User.Username(), masked)
		b, err := json.Marshal(strings.Replace(u.String(), url.QueryEscape(masked), masked, 1))
		if err != nil {
			return err
		}
		x.Details["connection_url"] = b
	}
	if q := u.Query(); q.Has("password") || q.Has("sslpassword") {
		return ErrInvalid.With("connection_url has a password among its parameters, where it would be told: give it as password")
	}
	host, port, err := engine.HostPort(u.Host, 5432)
	if err != nil {
		return ErrInvalid.With("connection_url names no host")
	}
	at.host = net.JoinHostPort(host, itoa(port))
	at.address = at.host + "/" + strings.TrimPrefix(u.Path, "/")
	switch mode := u.Query().Get("sslmode"); mode {
	case "", "require", "verify-ca", "verify-full":
		if mode != "" {
			at.options["tls"] = "verify"
		}
	case "disable", "allow", "prefer":
		at.options["tls"] = "off"
	default:
		return ErrInvalid.With("sslmode %q is not known", mode)
	}
	return nil
}

func (x *Config) mysql(at *reach) error {
	text := x.word("connection_url")
	user, rest, ok := strings.Cut(text, "@tcp(")
	host, after, closed := strings.Cut(rest, ")")
	if !ok || !closed {
		return ErrInvalid.With("connection_url is written as {{username}}:{{password}}@tcp(HOST:3306)/")
	}
	name, password, _ := strings.Cut(user, ":")
	if name != userPlace {
		at.user = name
	}
	if password != passwordPlace && password != "" {
		if password != masked {
			at.password = estover.NewSecret([]byte(password))
		}
		b, err := json.Marshal(name + ":" + masked + "@tcp(" + host + ")" + after)
		if err != nil {
			return err
		}
		x.Details["connection_url"] = b
	}
	h, port, err := engine.HostPort(host, 3306)
	if err != nil {
		return ErrInvalid.With("connection_url names no host")
	}
	at.host = net.JoinHostPort(h, itoa(port))
	at.address = at.host
	if _, query, has := strings.Cut(after, "?"); has {
		values, err := url.ParseQuery(query)
		if err != nil {
			return ErrInvalid.With("the parameters of connection_url cannot be read")
		}
		switch values.Get("tls") {
		case "true", "custom":
			at.options["tls"] = "verify"
		case "false", "preferred":
			at.options["tls"] = "off"
		}
	}
	return nil
}

func (x *Config) redis(at *reach) error {
	host := x.word("host")
	if host == "" {
		return ErrInvalid.With("host cannot be empty")
	}
	port := strings.Trim(string(x.Details["port"]), `"`)
	if port == "" || port == "null" {
		port = "6379"
	}
	at.host = net.JoinHostPort(host, port)
	at.address = at.host
	if ca := x.word("ca_cert"); ca != "" {
		at.authorities = ca
	}
	at.options["tls"] = "off"
	if x.flag("tls") {
		at.options["tls"] = "verify"
		if x.flag("insecure_tls") {
			return ErrInvalid.With("insecure_tls is not offered: give the certificate of the authority as ca_cert")
		}
	}
	return nil
}

func itoa(n int) string {
	b, _ := json.Marshal(n) // a number always has JSON
	return string(b)
}

// template is what the users of a role may do, as the kind of target takes it.
func (r *Role) template(x *Config) (engine.Template, error) {
	if len(r.Creation) == 0 {
		return nil, ErrInvalid.With("creation_statements are empty")
	}
	switch plugins[x.Plugin] {
	case "postgres":
		t := engine.Template{"create": named(r.Creation)}
		if len(r.Revocation) > 0 {
			t["revoke"] = named(r.Revocation)
		}
		if len(r.Renew) > 0 {
			t["renew"] = named(r.Renew)
		}
		return t, nil
	case "mysql":
		return grants(r.Creation)
	case "redis":
		var rules []string
		for _, s := range r.Creation {
			var list []string
			if json.Unmarshal([]byte(s), &list) != nil {
				list = strings.Fields(s)
			}
			rules = append(rules, list...)
		}
		return engine.Template{"rules": rules}, nil
	}
	return nil, ErrInvalid.With("roles of %s are not offered", x.Plugin)
}

// named has statements name the user as the engines do.
func named(list []string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = strings.ReplaceAll(strings.ReplaceAll(s, "{{username}}", "{{name}}"), "{{ name }}", "{{name}}")
	}
	return out
}

// grants are what statements for MariaDB and MySQL grant. Users are made by the
// engine, so that no password stands in a statement.
func grants(list []string) (engine.Template, error) {
	t := engine.Template{}
	for _, statement := range strings.Split(strings.Join(named(list), ";"), ";") {
		statement = strings.TrimSpace(statement)
		upper := strings.ToUpper(statement)
		switch {
		case statement == "", strings.HasPrefix(upper, "CREATE USER "), strings.HasPrefix(upper, "FLUSH PRIVILEGES"), strings.HasPrefix(upper, "SET DEFAULT ROLE "):
		case strings.HasPrefix(upper, "GRANT "):
			to := strings.LastIndex(upper, " TO ")
			if to < 0 || !strings.Contains(statement[to:], "{{name}}") {
				return nil, ErrInvalid.With("a GRANT of creation_statements is to '{{name}}'@'%%'")
			}
			what := strings.TrimSpace(statement[len("GRANT "):to])
			if strings.Contains(strings.ToUpper(what), " ON ") {
				t["grants"] = append(t["grants"], what)
			} else {
				t["roles"] = append(t["roles"], strings.Trim(what, "'`\""))
			}
		default:
			return nil, ErrInvalid.With("creation_statements of a MySQL or MariaDB are CREATE USER and GRANT: others are not offered")
		}
	}
	return t, nil
}
