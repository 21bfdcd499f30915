package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"estover.dev/demo/company"
	"estover.dev/e2e/e2etest"
	"estover.dev/internal/secret/engine/enginetest"
)

// The command line as people use it. Each script in testdata has a server of
// its own, on which nobody has logged in yet, and the customer system behind
// it as the resource in crm.yaml.
//
//	estover …         runs the program; with ! it must not succeed
//	code N            the exit code of the last one
//	save NAME REGEXP  what the first group matches on its standard output, as $NAME
//	flip FILE         changes one bit in the middle of a file
//	mode MODE FILE    the rights on a file
//	postgres          a PostgreSQL: its address as $PG, its host and port, and in
//	                  pg.key the password of the role $PGADMIN, which makes others
func TestCommandLine(t *testing.T) {
	t.Parallel()
	bin := e2etest.Binary(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			t := env.T().(testing.TB)
			env.Values["t"] = t
			srv := e2etest.Start(t)
			world := e2etest.NewWorld(t)
			site := world.Site(t, "crm", company.New(crmKey, "https://collector.example.test/"))
			for k, v := range map[string]string{
				"HOME": filepath.Join(env.WorkDir, "home"), "XDG_CONFIG_HOME": filepath.Join(env.WorkDir, "home"), "TZ": "UTC",
				"ESTOVER_ADDR": srv.URL, "ESTOVER_CA": srv.CAFile, "DATA": srv.Data, "CRM": site.URL, "KEY": crmKey,
			} {
				env.Setenv(k, v)
			}
			files := map[string]string{
				"crm.yaml": e2etest.Secret("crm/api-key", site) + "\n---\n" + world.Resource(site, crmSpec), "crm.key": crmKey,
				"bot.yaml": e2etest.Agent("bot", "support", "marketing") + "\n---\n" + crmGrant,
			}
			for name, text := range files {
				if err := os.WriteFile(filepath.Join(env.WorkDir, name), []byte(text), 0o600); err != nil {
					return err
				}
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"estover": func(ts *testscript.TestScript, neg bool, args []string) {
				err := ts.Exec(bin, args...)
				code := 0
				if ended, ok := err.(*exec.ExitError); ok {
					code = ended.ExitCode()
				} else if err != nil {
					ts.Fatalf("running estover: %v", err)
				}
				ts.Setenv("CODE", strconv.Itoa(code))
				if neg != (code != 0) {
					ts.Fatalf("exit code %d", code)
				}
			},
			"code": func(ts *testscript.TestScript, neg bool, args []string) {
				if len(args) != 1 || neg != (ts.Getenv("CODE") != args[0]) {
					ts.Fatalf("the exit code was %s, want %q", ts.Getenv("CODE"), args)
				}
			},
			"save": func(ts *testscript.TestScript, _ bool, args []string) {
				m := regexp.MustCompile("(?m)" + args[1]).FindStringSubmatch(ts.ReadFile("stdout"))
				if m == nil {
					ts.Fatalf("nothing on standard output is like %s", args[1])
				}
				ts.Setenv(args[0], m[1])
			},
			"flip": func(ts *testscript.TestScript, _ bool, args []string) {
				file := ts.MkAbs(args[0])
				b, err := os.ReadFile(file)
				ts.Check(err)
				b[len(b)/2] ^= 1
				ts.Check(os.WriteFile(file, b, 0o600))
			},
			"postgres": func(ts *testscript.TestScript, _ bool, _ []string) {
				pg := enginetest.Postgres(ts.Value("t").(testing.TB))
				host, port, err := net.SplitHostPort(strings.TrimSuffix(pg.Config.Address, "/crm"))
				ts.Check(err)
				for k, v := range map[string]string{"PG": pg.Config.Address, "PGHOST": host, "PGPORT": port, "PGADMIN": pg.Config.Admin.User} {
					ts.Setenv(k, v)
				}
				ts.Check(os.WriteFile(ts.MkAbs("pg.key"), pg.Config.Admin.Secret.Reveal(), 0o600))
			},
			"mode": func(ts *testscript.TestScript, _ bool, args []string) {
				info, err := os.Stat(ts.MkAbs(args[1]))
				ts.Check(err)
				if got := fmt.Sprintf("%04o", info.Mode().Perm()); got != args[0] {
					ts.Fatalf("%s has the mode %s, want %s", args[1], got, args[0])
				}
			},
		},
	})
}
