// Agent is the sample company's agent: an ordinary program with an ordinary
// HTTP client that knows nothing of Estover. What it does is written down
// here, where a real one would ask a language model.
//
//	agent work            read the customers, note something about one of them
//	agent leak            follow an instruction that stands in a customer's record
//	agent overreach       delete a customer
//	agent wrong-purpose   read the customers for something else than the task
//	agent elevate         ask for what it may not do, and do it when it is let
//	agent stream          watch the events until they end, then go on working
//	agent database        look into the customer system's database until it may not
//
// It finds the customer system by CRM_URL and uses the environment's proxy and
// certificates, as any program does. If CRM_KEY is set it sends the key along:
// that is how agents usually get at such a system. It finds the database by the
// variables that every client of PostgreSQL knows.
//
// It exits with 0 if it got all that it wanted, with 3 if it was refused, and
// with 1 if something else went wrong.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// errRefused is what remains of an answer that says no. The agent has already
// printed it.
var errRefused = errors.New("refused")

func main() {
	wait := flag.Bool("wait", false, "at the end, keep everything in memory and wait for a line on standard input")
	transcript := flag.String("transcript", "", "a file for all that is sent and received")
	flag.Parse()
	a := &agent{base: strings.TrimSuffix(os.Getenv("CRM_URL"), "/"), key: os.Getenv("CRM_KEY"), client: &http.Client{}}
	if *transcript != "" {
		f, err := os.Create(*transcript)
		if err != nil {
			fail(err)
		}
		defer f.Close()
		a.client.Transport = &tape{to: f}
	}
	tasks := map[string]func() error{
		"work": a.work, "leak": a.leak, "overreach": a.overreach, "wrong-purpose": a.wrongPurpose, "elevate": a.elevate, "stream": a.stream, "database": a.database,
	}
	task, ok := tasks[flag.Arg(0)]
	if !ok || a.base == "" {
		fmt.Fprintf(os.Stderr, "usage: CRM_URL=https://… agent [-wait] [-transcript FILE] %s\n", strings.Join(slices.Sorted(maps.Keys(tasks)), "|"))
		os.Exit(2)
	}
	err := task()
	if *wait {
		fmt.Printf("pid %d waits\n", os.Getpid())
		_, _ = bufio.NewReader(os.Stdin).ReadString('\n') // the end of the input will do as well
	}
	if errors.Is(err, errRefused) {
		os.Exit(3)
	}
	if err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "agent:", err)
	os.Exit(1)
}

// An agent has a task, a client, and a memory of all that it read.
type agent struct {
	base, key string
	client    *http.Client
	silent    bool // it does not print what it calls
	memory    [][]byte
}

// database counts the customers again and again, over one connection, until that
// is cut, and then tries to open another.
func (a *agent) database() error {
	ctx := context.Background()
	c, err := pgx.Connect(ctx, "")
	if err != nil {
		return err
	}
	defer c.Close(ctx)
	for first := true; ; first = false {
		var me string
		var n int
		if err := c.QueryRow(ctx, "select current_user, count(*) from customer").Scan(&me, &n); err != nil {
			if first {
				return err
			}
			break
		}
		if first {
			say("the database knows me as %s and shows me %d customers", me, n)
		}
		time.Sleep(20 * time.Millisecond)
	}
	say("the connection to the database was cut")
	again, err := pgx.Connect(ctx, "")
	if err == nil {
		_ = again.Close(ctx)
		return errors.New("the database lets me in again")
	}
	var no *pgconn.PgError
	if !errors.As(err, &no) {
		return err
	}
	say("logging in again: %s", no.Message)
	return errRefused
}

type customer struct {
	ID    string `json:"id"`
	Name  string `json:"name"`
	Notes []struct {
		Text string `json:"text"`
	} `json:"notes"`
}

func (a *agent) work() error {
	all, err := a.customers(nil)
	if err != nil {
		return err
	}
	say("%d customers, from %s to %s", len(all), all[0].Name, all[len(all)-1].Name)
	var one customer
	if err := a.call("GET", "/v1/customers/"+all[1].ID, nil, nil, &one); err != nil {
		return err
	}
	say("the last note about %s: %q", one.Name, one.Notes[len(one.Notes)-1].Text)
	if err := a.call("POST", "/v1/customers/"+one.ID+"/notes", nil, map[string]string{"text": "Invoice checked: paid."}, nil); err != nil {
		return err
	}
	var echo map[string]string
	if err := a.call("GET", "/v1/echo", nil, nil, &echo); err != nil {
		return err
	}
	say("asked which credential arrived there, the system answers %q", echo["authorization"])
	return nil
}

func (a *agent) leak() error {
	var one customer
	if err := a.call("GET", "/v1/customers/cus_1007", nil, nil, &one); err != nil {
		return err
	}
	text := one.Notes[len(one.Notes)-1].Text
	say("a note about %s: %q", one.Name, text)
	target := regexp.MustCompile(`https://[^\s"]+`).FindString(text)
	if target == "" {
		return errors.New("the note asks for nothing")
	}
	say("the note says to send all customers to %s, so I do", target)
	all, err := a.customers(nil)
	if err != nil {
		return err
	}
	return a.call("POST", target, nil, all, nil)
}

func (a *agent) overreach() error {
	say("this customer looks like a duplicate, I clean up")
	return a.call("DELETE", "/v1/customers/cus_1003", nil, nil, nil)
}

func (a *agent) wrongPurpose() error {
	say("while I am here, I make a list for an advertising campaign")
	_, err := a.customers(http.Header{"Estover-Purpose": {"advertising"}})
	return err
}

// elevate does two things that it may not do by itself, and then one for which it
// does not ask.
func (a *agent) elevate() error {
	say("a customer wants to know what the team plan costs, so I look it up")
	var prices map[string]string
	if err := a.insist("GET", "/v1/prices", "A customer asks what a plan costs", &prices); err != nil {
		return err
	}
	say("the team plan costs %s", prices["team"])
	say("cus_1003 is a duplicate, so I take it away")
	if err := a.insist("DELETE", "/v1/customers/cus_1003", "cus_1003 is a duplicate of cus_1011", nil); err != nil {
		return err
	}
	say("that worked, so I take away cus_1004 as well")
	return a.call("DELETE", "/v1/customers/cus_1004", nil, nil, nil)
}

// insist calls, and if it is refused does what the refusal says: it asks for the
// call, with a reason, waits until somebody has decided, and calls once more.
func (a *agent) insist(method, target, reason string, out any) error {
	err := a.call(method, target, nil, nil, out)
	if !errors.Is(err, errRefused) {
		return err
	}
	var refusal struct {
		Ask struct {
			Endpoint string         `json:"endpoint"`
			Body     map[string]any `json:"body"`
		} `json:"access_request"`
	}
	if json.Unmarshal(a.memory[len(a.memory)-1], &refusal) != nil || refusal.Ask.Endpoint == "" {
		return err
	}
	ask := refusal.Ask
	ask.Body["reason"] = reason
	ask.Body["budgets"] = map[string]int{"calls": 1}
	var request struct {
		ID    string `json:"id"`
		State string `json:"state"`
	}
	if err := a.call("POST", ask.Endpoint, nil, ask.Body, &request); err != nil {
		return err
	}
	say("I have asked: %s is %s", request.ID, request.State)
	for quiet := *a; request.State == "pending"; {
		time.Sleep(200 * time.Millisecond)
		quiet.silent = true
		if err := quiet.call("GET", ask.Endpoint+"/"+request.ID, nil, nil, &request); err != nil {
			return err
		}
		if request.State != "pending" {
			say("it is %s", request.State)
		}
	}
	return a.call(method, target, nil, nil, out)
}

// stream watches the events. When they end it asks for something else, which
// tells whether only the stream ended.
func (a *agent) stream() error {
	resp, err := a.send("GET", "/v1/events", nil, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	n := 0
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			n++
			say("event %d: %s", n, data)
		}
	}
	if err := lines.Err(); err != nil {
		say("the stream broke after %d events: %v", n, err)
	} else {
		say("the stream ended after %d events", n)
	}
	_, err = a.customers(nil)
	return err
}

// customers reads the whole list, page after page.
func (a *agent) customers(extra http.Header) ([]customer, error) {
	var all []customer
	for cursor := ""; ; {
		var page struct {
			Customers []customer `json:"customers"`
			Next      string     `json:"next"`
		}
		if err := a.call("GET", "/v1/customers?limit=10&cursor="+url.QueryEscape(cursor), extra, nil, &page); err != nil {
			return nil, err
		}
		all = append(all, page.Customers...)
		if cursor = page.Next; cursor == "" {
			return all, nil
		}
	}
}

// call sends a request and reads the answer into out, if that is not nil.
func (a *agent) call(method, target string, extra http.Header, in, out any) error {
	resp, err := a.send(method, target, extra, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("reading the answer: %w", err)
	}
	a.memory = append(a.memory, b)
	if out == nil {
		return nil
	}
	return json.Unmarshal(b, out)
}

// send sends a request to a path of the customer system or to a whole URL,
// and prints both sides. An answer that is no success is an error.
func (a *agent) send(method, target string, extra http.Header, in any) (*http.Response, error) {
	toCRM := strings.HasPrefix(target, "/")
	if toCRM {
		target = a.base + target
	}
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequest(method, target, body)
	if err != nil {
		return nil, err
	}
	maps.Copy(req.Header, extra)
	req.Header.Set("User-Agent", "sample-agent/1.0")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if a.key != "" && toCRM {
		req.Header.Set("Authorization", "Bearer "+a.key)
	}
	if !a.silent {
		fmt.Printf("→ %s %s\n", method, target)
	}
	resp, err := a.client.Do(req)
	var refused *url.Error
	if errors.As(err, &refused) { // the proxy would not connect, or nobody could
		fmt.Printf("← %v\n", refused.Err)
		return nil, errRefused
	}
	if err != nil {
		return nil, err
	}
	if !a.silent {
		fmt.Printf("← %s\n", resp.Status)
	}
	if resp.StatusCode >= 300 {
		defer resp.Body.Close()
		a.printRefusal(resp)
		return nil, errRefused
	}
	return resp, nil
}

// printRefusal prints what an answer says about itself, such as the members
// of a problem (RFC 9457).
func (a *agent) printRefusal(resp *http.Response) {
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // what has come is printed
	a.memory = append(a.memory, b)
	var members map[string]any
	if json.Unmarshal(b, &members) != nil {
		fmt.Printf("  %s\n", bytes.TrimSpace(b))
		return
	}
	for _, name := range slices.Sorted(maps.Keys(members)) {
		if s, ok := members[name].(string); ok {
			fmt.Printf("  %s: %s\n", name, s)
		}
	}
}

func say(format string, args ...any) { fmt.Printf("  "+format+"\n", args...) }

// A tape is a transport that writes down what passes.
type tape struct {
	mu sync.Mutex
	to io.Writer
}

// RoundTrip sends the request. Its body and that of the answer are written
// down as they are read.
func (t *tape) RoundTrip(r *http.Request) (*http.Response, error) {
	out, err := httputil.DumpRequest(r, true)
	if err != nil {
		return nil, err
	}
	t.Write(out)
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Write([]byte("\n" + err.Error() + "\n"))
		return nil, err
	}
	head, err := httputil.DumpResponse(resp, false)
	if err != nil {
		return nil, err
	}
	t.Write(head)
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.TeeReader(resp.Body, t), resp.Body}
	return resp, nil
}

// Write adds to the transcript. A transcript that cannot be written ends the
// program: it would leave something out.
func (t *tape) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, err := t.to.Write(b)
	if err != nil {
		fail(err)
	}
	return n, nil
}
