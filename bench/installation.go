package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// An installation is Estover as an operator runs it: the program that was
// built, a data directory, and what `estover apply` and the other commands
// have put in.
type installation struct {
	*process
	b        *Bench
	dir      string // the data directory
	database string
	gateway  string    // HOST:PORT of the forward proxy
	token    string    // of the administrator who is logged in
	answered time.Time // when the server last became ready
}

// install starts a server over a fresh data directory and logs the first
// administrator in. An empty database is the server's own, SQLite.
func (b *Bench) install(ctx context.Context, database string) (*installation, error) {
	home, err := os.MkdirTemp(b.Dir, "installation-")
	if err != nil {
		return nil, err
	}
	in := &installation{b: b, dir: filepath.Join(home, "data"), database: database}
	if err := in.start(ctx); err != nil {
		return nil, err
	}
	if err := in.login(ctx); err != nil {
		in.stop()
		return nil, err
	}
	return in, nil
}

// start runs the server and waits until it is ready. It can be called again
// after stop.
func (in *installation) start(ctx context.Context) error {
	addr, err := freePort()
	if err != nil {
		return err
	}
	if in.gateway, err = freePort(); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, in.b.Program, "serve", "--plain-http", "--listen", addr, "--gateway", in.gateway, "--data", in.dir, "--log-level", "warn")
	if in.database != "" {
		cmd.Args = append(cmd.Args, "--database", in.database)
	}
	cmd.Env = in.env()
	profiler := ""
	switch {
	case in.b.Profiles != 0:
		profiler = fmt.Sprintf("127.0.0.1:%d", in.b.Profiles)
		in.b.Profiles++
	case in.b.Merged != "":
		if profiler, err = freePort(); err != nil {
			return err
		}
	}
	if profiler != "" {
		cmd.Env = append(cmd.Env, "ESTOVER_PPROF="+profiler)
	}
	// What the server says is only of interest if it fails.
	log, err := os.OpenFile(in.dir+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	in.process = &process{cmd: cmd, addr: addr, log: log}
	if in.b.Merged != "" {
		in.process.ending = in.b.profile(ctx, profiler)
	}
	return in.ready(ctx)
}

// ready waits until the server answers.
func (in *installation) ready(ctx context.Context) error {
	deadline := time.Now().Add(time.Minute)
	for {
		res, err := http.Get("http://" + in.addr + "/readyz")
		if err == nil {
			_ = res.Body.Close()
			if res.StatusCode == http.StatusNoContent {
				in.answered = time.Now()
				return nil
			}
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			in.stop()
			said, _ := os.ReadFile(in.dir + ".log")
			return fmt.Errorf("the server did not become ready: %w\n%s", errors.Join(err, ctx.Err()), said)
		}
		time.Sleep(time.Millisecond)
	}
}

// env is the environment of the server and of the commands: nothing of the
// caller's that could change what they do.
func (in *installation) env() []string {
	home := filepath.Dir(in.dir)
	return []string{"HOME=" + home, "XDG_CONFIG_HOME=" + home, "PATH=" + os.Getenv("PATH"), "TMPDIR=" + in.b.Dir}
}

func (in *installation) login(ctx context.Context) error {
	var login struct {
		Token string `json:"token"`
	}
	invitation, err := os.ReadFile(filepath.Join(in.dir, "bootstrap-token"))
	if err != nil {
		return err
	}
	err = in.call(ctx, http.MethodPost, "/v1/login", map[string]string{"token": string(bytes.TrimSpace(invitation))}, &login)
	in.token = login.Token
	return err
}

// estover runs a command of the program as the administrator.
func (in *installation) estover(ctx context.Context, stdin string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, in.b.Program, args...)
	cmd.Env = append(in.env(), "ESTOVER_ADDR=http://"+in.addr, "ESTOVER_TOKEN="+in.token)
	cmd.Stdin = bytes.NewReader([]byte(stdin))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("estover %v: %w\n%s%s", args, err, out, &stderr)
	}
	return out, err
}

// apply makes what a file of `estover apply` says.
func (in *installation) apply(ctx context.Context, documents string) error {
	_, err := in.estover(ctx, documents, "apply", "-f", "-")
	return err
}

// call asks the API as the administrator.
func (in *installation) call(ctx context.Context, method, path string, body, out any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+in.addr+path, bytes.NewReader(b))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	if in.token != "" {
		req.Header.Set("Authorization", "Bearer "+in.token)
	}
	return in.answer(req, out)
}

// answer sends a request and reads its answer into out, if that is not nil.
func (in *installation) answer(req *http.Request, out any) error {
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %s: %s", req.Method, req.URL.Path, res.Status, b)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(b, out)
}

// A credential is what an agent authenticates with at the token endpoint.
type credential struct {
	ID     string `json:"client_id"`
	Secret string `json:"client_secret"`
}

// secret gives an agent a client secret.
func (in *installation) secret(ctx context.Context, agent string) (c credential, err error) {
	return c, in.call(ctx, http.MethodPost, "/v1/agents/"+agent+"/credentials", map[string]any{"kind": "secret"}, &c)
}

// keySet lets an agent authenticate by signatures of a key.
func (in *installation) keySet(ctx context.Context, agent string, jwks json.RawMessage) (c credential, err error) {
	return c, in.call(ctx, http.MethodPost, "/v1/agents/"+agent+"/credentials", map[string]any{"kind": "jwks", "jwks": jwks}, &c)
}

// A granted is what the token endpoint answers.
type granted struct {
	Access  string `json:"access_token"`
	Refresh string `json:"refresh_token"`
}

// ask sends a token request of an agent that has a client secret.
func (in *installation) ask(ctx context.Context, c credential, pairs ...string) (g granted, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+in.addr+tokenPath, strings.NewReader(form(pairs...).Encode()))
	if err != nil {
		return g, err
	}
	req.Header.Set("Content-Type", formType["Content-Type"])
	req.SetBasicAuth(c.ID, c.Secret)
	return g, in.answer(req, &g)
}
