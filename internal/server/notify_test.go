package server_test

import (
	"bufio"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

// A mailbox is a mail server that takes everything.
type mailbox struct {
	addr string
	mu   sync.Mutex
	got  []string // who, and the text
}

func newMailbox(t *testing.T) *mailbox {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	m := &mailbox{addr: l.Addr().String()}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go m.talk(c)
		}
	}()
	return m
}

func (m *mailbox) talk(c net.Conn) {
	defer c.Close()
	r := bufio.NewReader(c)
	fmt.Fprint(c, "220 mail.example.com\r\n")
	to := ""
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		switch verb := strings.ToUpper(strings.Fields(line + " .")[0]); verb {
		case "RCPT":
			to = strings.TrimSpace(line)
			fmt.Fprint(c, "250 ok\r\n")
		case "DATA":
			fmt.Fprint(c, "354 go on\r\n")
			var text strings.Builder
			for {
				line, err := r.ReadString('\n')
				if err != nil {
					return
				}
				if line == ".\r\n" {
					break
				}
				text.WriteString(line)
			}
			m.mu.Lock()
			m.got = append(m.got, to+"\n"+text.String())
			m.mu.Unlock()
			fmt.Fprint(c, "250 taken\r\n")
		case "QUIT":
			fmt.Fprint(c, "221 bye\r\n")
			return
		default:
			fmt.Fprint(c, "250 ok\r\n")
		}
	}
}

func (m *mailbox) letters() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]string(nil), m.got...)
}

// From a request to the people who decide about it: an agent asks, and those who
// may decide are told by mail, in a chat and by a signed webhook, with a link to
// the page and the words of the document. Opening the link approves nothing.
func TestPeopleAreTold(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		var mu sync.Mutex
		posts := map[string][]string{}
		var signature string
		hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			mu.Lock()
			defer mu.Unlock()
			posts[r.URL.Path] = append(posts[r.URL.Path], string(b))
			if r.URL.Path == "/bus" {
				signature = r.Header.Get("webhook-id") + "." + r.Header.Get("webhook-timestamp") + " " + r.Header.Get("webhook-signature")
			}
		}))
		defer hook.Close()
		told := func(path string) []string {
			mu.Lock()
			defer mu.Unlock()
			return append([]string(nil), posts[path]...)
		}
		box := newMailbox(t)
		key := []byte("0123456789abcdef0123456789abcdef")
		h.must(http.MethodPost, "/v1/apply", object{"files": []object{{"path": "told.yaml", "text": `
apiVersion: estover.dev/v1
kind: Person
metadata: {name: paula}
spec: {roles: [approver], email: paula@example.com}
---
apiVersion: estover.dev/v1
kind: Secret
metadata: {name: bus/key}
spec: {class: confidential, destinations: ["` + strings.TrimPrefix(hook.URL, "http://") + `"]}
`}}}, nil)
		h.must(http.MethodPost, "/v1/secret/versions?path=bus/key", object{"fields": object{"value": "whsec_" + base64.StdEncoding.EncodeToString(key)}}, nil)
		batch := 0
		for _, c := range []object{
			{"name": "chat", "kind": "slack", "url": hook.URL + "/chat", "allow_private": true, "batch_seconds": batch},
			{"name": "bus", "kind": "webhook", "url": hook.URL + "/bus", "secret": "bus/key", "allow_private": true, "events": []string{"access.*"}},
			{"name": "mail", "kind": "email", "server": box.addr, "tls": "none", "from": "estover@example.com", "allow_private": true, "batch_seconds": batch},
			{"name": "inside", "kind": "teams", "url": strings.Replace(hook.URL, "http://", "https://", 1) + "/inside", "batch_seconds": batch}, // which no one has opened
			{"name": "ourselves", "kind": "slack", "url": "http://" + h.addr + "/v1/login", "allow_private": true, "batch_seconds": batch},
		} {
			h.must(http.MethodPut, fmt.Sprintf("/v1/channels/%s", c["name"]), c, nil)
		}
		if status, b := h.do(http.MethodPost, "/v1/channels/chat/test", h.token, nil); status >= 300 || len(told("/chat")) != 1 {
			t.Errorf("a test of the chat: %d %s, %v", status, b, told("/chat"))
		}
		for _, name := range []string{"inside", "ourselves"} {
			status, b := h.do(http.MethodPost, "/v1/channels/"+name+"/test", h.token, nil)
			if status != http.StatusConflict || h.code(b) != "channel_unreachable" {
				t.Errorf("a test of a channel into our own network (%s): %d %s, want that it does not get through", name, status, b)
			}
		}
		if status, _ := h.do(http.MethodPut, "/v1/channels/mine", h.invite("alice"), object{"name": "mine", "kind": "slack", "url": "https://example.com/x"}); status != http.StatusForbidden {
			t.Errorf("an operator adds a channel: %d, want 403", status)
		}

		s := h.seek("seeker")
		var asked struct{ ID, State string }
		status, b := h.do(http.MethodPost, "/v1/access/requests", s.token, object{"items": []object{{"resource": "crm", "actions": []string{"item.read"}}}, "reason": "The customer waits: https://evil.example"})
		if err := json.Unmarshal(b, &asked); err != nil || status >= 300 || asked.State != "pending" {
			t.Fatalf("asking: %d %s", status, b)
		}
		link := h.issuer() + "/approve/" + asked.ID
		var shown struct{ Fingerprint string }
		h.must(http.MethodPost, "/v1/access/requests/"+asked.ID+"/document", object{}, &shown)
		h.until("people are told", func() bool { return len(box.letters()) > 0 && len(told("/chat")) > 1 && len(told("/bus")) > 0 })
		unfold := strings.NewReplacer("=\r\n", "", "=3D", "=")
		for where, text := range map[string]string{"mail": unfold.Replace(box.letters()[0]), "chat": told("/chat")[1], "webhook": told("/bus")[0]} {
			for _, want := range []string{link, shown.Fingerprint, "seeker"} {
				if !strings.Contains(text, want) {
					t.Errorf("the %s has not %q:\n%s", where, want, text)
				}
			}
			if risk := "Risk: raised. It reaches confidential data: crm. Neither parameters nor a budget bound how much: crm."; where != "webhook" && !strings.Contains(text, risk) {
				t.Errorf("the %s does not say %q:\n%s", where, risk, text)
			}
			if strings.Contains(text, "https://evil.example") {
				t.Errorf("the %s has a link of the agent's:\n%s", where, text)
			}
		}
		if !strings.Contains(box.letters()[0], "paula@example.com") {
			t.Errorf("the letter went to %s", box.letters()[0])
		}
		id, rest, _ := strings.Cut(signature, " ")
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(id + "." + told("/bus")[0]))
		if rest != "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)) {
			t.Errorf("the webhook is signed %s", rest)
		}

		// Whoever opens the link has done nothing.
		for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost} {
			if _, body := h.do(method, "/approve/"+asked.ID, "", nil); strings.Contains(string(body), `"state":"approved"`) {
				t.Errorf("%s of the link approves", method)
			}
		}
		h.must(http.MethodGet, "/v1/access/requests/"+asked.ID, nil, &asked)
		if asked.State != "pending" {
			t.Errorf("after the link was opened the request is %s", asked.State)
		}
		h.must(http.MethodPost, "/v1/access/requests/"+asked.ID+"/deny", object{"note": "not now"}, nil)
		h.until("the program is told of the decision", func() bool {
			all := told("/bus")
			return len(all) > 1 && strings.Contains(all[len(all)-1], "access.deny")
		})

		var channel struct {
			Waiting int
			Failure string
		}
		h.until("what cannot be reached is noted", func() bool {
			h.must(http.MethodGet, "/v1/channels/inside", nil, &channel)
			return channel.Failure != ""
		})
		h.leaksNothing("whsec_" + base64.StdEncoding.EncodeToString(key))
		h.must(http.MethodDelete, "/v1/channels/inside", nil, nil)
		if status, b := h.do(http.MethodGet, "/v1/channels/inside", h.token, nil); status != http.StatusNotFound {
			t.Errorf("a retired channel: %d %s", status, b)
		}
	})
}
