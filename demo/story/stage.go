package story

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"estover.dev/demo/collector"
	"estover.dev/demo/company"
	"estover.dev/demo/web"
	"estover.dev/internal/db/scratch"
)

// A Config is what a stage is made of.
type Config struct {
	Estover, Agent string // the two programs: estover, and the sample company's agent
	Dir            string // an empty directory for everything that is written; whoever made it removes it
	Tell           func(Line)

	// Ask asks whoever sits at the terminal, and reports whether they said yes. Nil
	// where nobody does, and yes is said by the script.
	Ask func(question string) bool
}

// A Kind says what a line of the story is.
type Kind int

// The kinds of lines.
const (
	Said    Kind = iota // a paragraph for the reader
	Command             // a command that is run now
	Output              // lines of what commands have printed
)

// A Line is a piece of the story, told as it happens.
type Line struct {
	Kind Kind
	Text string
}

// A Stage is the sample company, a server of Estover that knows it, and the
// command line with an administrator logged in. It is used by one goroutine.
type Stage struct {
	Config
	Addr      string // of the server
	CRM, Away *web.Site
	Company   *company.Company
	Collector *collector.Collector

	key    string
	launch func(ctx context.Context, purpose string, agent []string) *exec.Cmd
	server *exec.Cmd
	exited chan struct{} // closed when the server has ended
	how    error         // how it ended, after that

	task     string // the session of the task that went well
	elevated string // that of the task for which it was let do more
}

// Open sets the stage: it starts the company and a server, logs in, applies
// company.yaml, and puts the company's key away.
func Open(ctx context.Context, c Config) (*Stage, error) {
	s := &Stage{Config: c}
	s.launch = s.guarded
	_, err := s.found()
	if err == nil {
		err = s.serve(ctx)
	}
	if err == nil {
		err = s.furnish(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// found starts the company and the collector.
func (s *Stage) found() (*web.Web, error) {
	w, err := web.New(s.Dir)
	if err != nil {
		return nil, err
	}
	s.key = "crm_live_" + strings.ToLower(rand.Text())
	s.Collector = &collector.Collector{}
	if s.Away, err = w.Serve("collector.example.test", "", s.Collector); err != nil {
		return nil, err
	}
	s.Company = company.New(s.key, s.Away.URL+"/import")
	s.CRM, err = w.Serve("crm.example.test", "", s.Company)
	return w, err
}

// serve starts the server on ports that are free. If somebody takes one before
// the server does, it tries others.
func (s *Stage) serve(ctx context.Context) error {
	for attempt := 1; ; attempt++ {
		err := s.try(ctx)
		if err == nil || attempt == 5 || !strings.Contains(s.LogTail(10), "address already in use") {
			return err
		}
	}
}

func (s *Stage) try(ctx context.Context) error {
	api, err := freePort()
	if err != nil {
		return err
	}
	gateway, err := freePort()
	if err != nil {
		return err
	}
	s.Addr = "https://localhost:" + api
	args := []string{"serve", "--data", "data", "--listen", "127.0.0.1:" + api, "--gateway", "127.0.0.1:" + gateway}
	s.tell(Command, "estover %s", strings.Join(args, " "))
	log, err := os.Create(s.LogFile())
	if err != nil {
		return err
	}
	defer log.Close() // the server has its own
	s.server = s.command(context.WithoutCancel(ctx), s.Estover, args...)
	s.server.Stdout, s.server.Stderr = log, log
	if err := s.server.Start(); err != nil {
		s.server = nil
		return err
	}
	s.exited = make(chan struct{})
	go func() {
		s.how = s.server.Wait()
		close(s.exited)
	}()
	return s.ready(ctx)
}

// LogFile is where the server writes its log.
func (s *Stage) LogFile() string { return filepath.Join(s.Dir, "server.log") }

func (s *Stage) caFile() string { return filepath.Join(s.Dir, "data", "tls", "ca.crt") }

func freePort() (string, error) {
	port, err := scratch.Port()
	return strconv.Itoa(port), err
}

// patience is how long one step may take on a machine that has much to do.
const patience = time.Minute

// ready waits until the server says that it is.
func (s *Stage) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		err := s.asked(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-s.exited:
			return fmt.Errorf("the server ended at once (%w); its log says:\n%s", s.how, s.LogTail(10))
		case <-ctx.Done():
			return fmt.Errorf("the server is not ready (%w): %w", ctx.Err(), last)
		case <-tick.C:
		}
	}
}

// asked asks the server whether it is ready. Its authority is made by its
// first start.
func (s *Stage) asked(ctx context.Context) error {
	ca, err := os.ReadFile(s.caFile())
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Addr+"/readyz", nil)
	if err != nil {
		return err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusNoContent {
		return errors.New(resp.Status)
	}
	return nil
}

// LogTail is the end of the server's log.
func (s *Stage) LogTail(lines int) string {
	b, err := os.ReadFile(s.LogFile())
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

//go:embed company.yaml
var companyFile string

// furnish tells the server of the company and gives it the key, which then is
// in no file here any more.
func (s *Stage) furnish(ctx context.Context) error {
	ca, err := os.ReadFile(filepath.Join(s.Dir, "ca.pem"))
	if err != nil {
		return err
	}
	text := strings.NewReplacer(
		"CRM_URL", s.CRM.URL, "CRM_HOST", strings.TrimPrefix(s.CRM.URL, "https://"), "CRM_ADDRESS", s.CRM.Address,
		"CRM_CA", strings.ReplaceAll(strings.TrimSpace(string(ca)), "\n", "\n    "),
	).Replace(companyFile)
	keyFile := filepath.Join(s.Dir, "crm.key")
	err = errors.Join(os.WriteFile(filepath.Join(s.Dir, "company.yaml"), []byte(text), 0o600), os.WriteFile(keyFile, []byte(s.key), 0o600))
	if err != nil {
		return err
	}
	if _, err := s.told(ctx, 0, "login", "--addr", s.Addr, "--ca", "data/tls/ca.crt", "--token-file", "data/bootstrap-token"); err != nil {
		return err
	}
	if _, err := s.told(ctx, 0, "apply", "-f", "company.yaml"); err != nil {
		return err
	}
	if _, err := s.told(ctx, 0, "secret", "put", "crm/api-key", "< crm.key"); err != nil {
		return err
	}
	if _, err := s.told(ctx, 0, "audit", "trust", "> trust.policy"); err != nil {
		return err
	}
	return os.Remove(keyFile)
}

// Exports are the variables by which a shell finds the server and is the
// administrator.
func (s *Stage) Exports() (map[string]string, error) {
	b, err := os.ReadFile(filepath.Join(s.Dir, "config", "estover", "login.json"))
	if err != nil {
		return nil, err
	}
	var login struct {
		Token string `json:"token"`
	}
	if err := json.Unmarshal(b, &login); err != nil {
		return nil, err
	}
	return map[string]string{"ESTOVER_ADDR": s.Addr, "ESTOVER_CA": s.caFile(), "ESTOVER_TOKEN": login.Token, "CRM_URL": s.CRM.URL}, nil
}

// Exited is closed when the server has ended.
func (s *Stage) Exited() <-chan struct{} { return s.exited }

// Close ends the server, which has some seconds to do so properly, and the
// company.
func (s *Stage) Close() error {
	var err error
	if s.server != nil {
		_ = s.server.Process.Signal(syscall.SIGCONT) // if it was paused
		_ = s.server.Process.Signal(syscall.SIGTERM)
		select {
		case <-s.exited:
			if s.how != nil {
				err = fmt.Errorf("the server ended with %w", s.how)
			}
		case <-time.After(patience):
			_ = s.server.Process.Kill()
			<-s.exited
			err = errors.New("the server did not end when it was told to, and was killed")
		}
		s.server = nil
	}
	for _, site := range []*web.Site{s.CRM, s.Away} {
		if site != nil {
			_ = site.Close() // nothing is lost with it
		}
	}
	return err
}

func (s *Stage) tell(kind Kind, format string, args ...any) {
	if s.Tell != nil {
		s.Tell(Line{kind, fmt.Sprintf(format, args...)})
	}
}

func (s *Stage) say(format string, args ...any) { s.tell(Said, format, args...) }

// show tells some lines of an output.
func (s *Stage) show(text string) {
	if text = strings.TrimRight(text, "\n"); text != "" {
		s.tell(Output, "%s", text)
	}
}

// command is a program that has an environment of its own and dies with us. It
// is told to end when ctx does.
func (s *Stage) command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = s.Dir
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + s.Dir, "TMPDIR=" + s.Dir, "TZ=" + os.Getenv("TZ"),
		"XDG_CONFIG_HOME=" + filepath.Join(s.Dir, "config"), "CRM_URL=" + s.CRM.URL,
	}
	cmd.SysProcAttr = apart()
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 15 * time.Second
	return cmd
}

// told tells a command of estover, runs it and tells what it printed. The last
// argument may say where its input comes from or its output goes to, as in a
// shell. It must end with the exit code that is wanted.
func (s *Stage) told(ctx context.Context, want int, args ...string) (string, error) {
	s.tell(Command, "estover %s", shell(args))
	out, err := s.estover(ctx, want, args...)
	s.show(out)
	return out, err
}

// estover runs a command of estover and returns what it printed.
func (s *Stage) estover(ctx context.Context, want int, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	said := &printed{}
	last := len(args) - 1
	from, reads := strings.CutPrefix(args[last], "< ")
	to, writes := strings.CutPrefix(args[last], "> ")
	if reads || writes {
		args = args[:last]
	}
	cmd := s.command(ctx, s.Estover, args...)
	cmd.Stdout, cmd.Stderr = said, said
	if reads {
		f, err := os.Open(filepath.Join(s.Dir, from))
		if err != nil {
			return "", err
		}
		defer f.Close()
		cmd.Stdin = f
	}
	if writes {
		f, err := os.Create(filepath.Join(s.Dir, to))
		if err != nil {
			return "", err
		}
		defer f.Close()
		cmd.Stdout = f
	}
	if code, err := exitCode(cmd.Run()); err != nil {
		return said.String(), fmt.Errorf("estover %s: %w", shell(args), err)
	} else if code != want {
		return said.String(), fmt.Errorf("estover %s ends with exit code %d, not %d, and says: %s", shell(args), code, want, said)
	}
	return said.String(), nil
}

// query runs a command of estover for its answer in JSON.
func (s *Stage) query(ctx context.Context, out any, args ...string) error {
	text, err := s.estover(ctx, 0, append(args, "--output", "json")...)
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(text), out)
}

// exitCode is the exit code in the error of a command; an error that is
// something else is returned.
func exitCode(err error) (int, error) {
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// shell writes arguments as they would be typed.
func shell(args []string) string {
	var typed []string
	for n, a := range args {
		redirects := n == len(args)-1 && (strings.HasPrefix(a, "< ") || strings.HasPrefix(a, "> "))
		if strings.ContainsAny(a, " '*?$") && !redirects {
			a = `"` + a + `"`
		}
		typed = append(typed, a)
	}
	return strings.Join(typed, " ")
}

// read reads a file of the stage.
func (s *Stage) read(name string) ([]byte, error) { return fs.ReadFile(os.DirFS(s.Dir), name) }
