package server_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"estover.dev"
	"estover.dev/attest"
	"estover.dev/internal/db"
)

// An approver is somebody who decides, with an ssh key.
type approver struct {
	h     *house
	token string
	id    string // of the key
	key   ed25519.PrivateKey
	wire  []byte
}

func (h *house) approver(name string) *approver {
	h.t.Helper()
	h.must(http.MethodPost, "/v1/people", map[string]any{"name": name, "roles": []string{"approver"}}, nil)
	a := &approver{h: h, token: h.invite(name)}
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		h.t.Fatal(err)
	}
	public, err := ssh.NewPublicKey(pub)
	if err != nil {
		h.t.Fatal(err)
	}
	a.key, a.wire = key, public.Marshal()
	status, b := h.do(http.MethodPost, "/v1/people/me/approver-keys", a.token, map[string]string{"public_key": string(ssh.MarshalAuthorizedKey(public))})
	var k struct{ ID string }
	if err := json.Unmarshal(b, &k); err != nil || status >= 300 {
		h.t.Fatalf("registering a key: %d %s", status, b)
	}
	a.id = k.ID
	return a
}

// sign is what ssh-keygen -Y sign makes of a document.
func (a *approver) sign(document []byte) *attest.Assertion {
	sum := sha512.Sum512(document)
	message := append([]byte("SSHSIG"), ssh.Marshal(struct{ Namespace, Reserved, Hash, Sum string }{attest.ApprovalNamespace, "", "sha512", string(sum[:])})...)
	sig := ssh.Marshal(struct{ Format, Blob string }{"ssh-ed25519", string(ed25519.Sign(a.key, message))})
	blob := append([]byte("SSHSIG"), ssh.Marshal(struct {
		Version                             uint32
		Key, Namespace, Reserved, Hash, Sig string
	}{1, string(a.wire), attest.ApprovalNamespace, "", "sha512", string(sig)})...)
	return &attest.Assertion{Method: attest.BySSH, Key: a.id, Signature: blob}
}

// A requested is a request as the API shows it.
type requested struct {
	ID, State, Result string
	Document          []byte
	Offer             struct{ Until time.Time }
}

// approve is a vote with a signature over a document.
func (a *approver) approve(id string, document []byte, by *attest.Assertion) (int, []byte) {
	a.h.t.Helper()
	digest := attest.ApprovalDigest(document)
	body := map[string]any{"digest": hex.EncodeToString(digest[:])}
	if by != nil {
		body["assertion"] = by
	}
	return a.h.do(http.MethodPost, "/v1/access/requests/"+id+"/approve", a.token, body)
}

// wish asks for the deletion of one item, in the name of an operator, so many
// times if that is said.
func (h *house) wish(token, item string, calls ...int) requested {
	h.t.Helper()
	var r requested
	body := map[string]any{
		"agent": "bot", "purpose": "support", "reason": "It was asked for", "for_seconds": 1800,
		"items": []map[string]any{{"resource": "crm", "actions": []string{"item.delete"}, "parameters": map[string][]string{"id": {item}}}},
	}
	if len(calls) > 0 {
		body["budgets"] = map[string]int{"calls": calls[0]}
	}
	status, b := h.do(http.MethodPost, "/v1/access/requests", token, body)
	if err := json.Unmarshal(b, &r); err != nil || status >= 300 || r.State != "pending" {
		h.t.Fatalf("asking: %d %s", status, b)
	}
	return r
}

// state is how a request stands.
func (h *house) request(id string) (r requested) {
	h.t.Helper()
	h.must(http.MethodGet, "/v1/access/requests/"+id, nil, &r)
	return r
}

// deletes is what becomes of the call that was asked for.
func (h *house) deletes(item string) int {
	h.t.Helper()
	res, _ := h.get(http.MethodDelete, "http://"+h.addr+"/u/crm/v1/items/"+item, "Authorization", "Bearer "+h.accessToken(""))
	return res.StatusCode
}

// again has everything about the agent's grants loaded anew, as another node or a
// restart would.
func (h *house) again() {
	h.t.Helper()
	var g struct{ ID string }
	h.must(http.MethodPost, "/v1/grants", map[string]any{"agent": "bot", "resource": "crm", "actions": []string{"echo.read"}, "purposes": []string{"support"}, "class": "confidential"}, &g)
	h.must(http.MethodPost, "/v1/grants/"+g.ID+"/end", map[string]string{"reason": "a test"}, nil)
}

// TestApprovalAttacks is the list of attacks on approvals: each is refused, and
// what was asked for cannot be done.
func TestApprovalAttacks(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		pam, quin := h.approver("pam"), h.approver("quin")
		operator := h.invite("alice")
		// Two sign what deletes (the policy that an installation starts with).
		quorum := func(r requested) {
			t.Helper()
			for _, a := range []*approver{pam, quin} {
				if status, b := a.approve(r.ID, r.Document, a.sign(r.Document)); status >= 300 {
					t.Fatalf("approving: %d %s", status, b)
				}
			}
		}
		refused := func(t *testing.T, what string, status int, b []byte, code string) {
			t.Helper()
			if status < 400 || h.code(b) != code {
				t.Errorf("%s: %d %s, want %s", what, status, b, code)
			}
		}
		pending := func(t *testing.T, r requested, item string) {
			t.Helper()
			if got := h.request(r.ID); got.State != "pending" {
				t.Errorf("the request is %s, want pending", got.State)
			}
			if status := h.deletes(item); status != http.StatusForbidden {
				t.Errorf("the call: %d, want 403", status)
			}
		}

		t.Run("as it should be", func(t *testing.T) {
			r := h.wish(operator, "1")
			quorum(r)
			if got := h.request(r.ID); got.State != "approved" {
				t.Fatalf("the request is %s", got.State)
			}
			if status := h.deletes("1"); status != http.StatusOK {
				t.Errorf("the call that was approved: %d, want 200", status)
			}
			h.again()
			if status := h.deletes("1"); status != http.StatusOK {
				t.Errorf("the call, after the grant was loaded again: %d, want 200", status)
			}
			if status := h.deletes("2"); status != http.StatusForbidden {
				t.Errorf("a call beside it: %d, want 403", status)
			}
		})
		t.Run("what the agent is eligible for", func(t *testing.T) {
			var eligible struct{ ID string }
			h.must(http.MethodPost, "/v1/grants", map[string]any{
				"agent": "bot", "resource": "crm", "actions": []string{"*"}, "purposes": []string{"support"}, "class": "confidential", "kind": "eligible",
			}, &eligible)
			r := h.wish(operator, "maybe")
			quorum(r)
			var g struct {
				ActivatedFrom string `json:"activated_from"`
			}
			h.must(http.MethodGet, "/v1/grants/"+h.request(r.ID).Result, nil, &g)
			if g.ActivatedFrom != eligible.ID {
				t.Errorf("the grant is made of %q, want %q", g.ActivatedFrom, eligible.ID)
			}
			h.again()
			if status := h.deletes("maybe"); status != http.StatusOK {
				t.Errorf("the call that was approved: %d, want 200", status)
			}
			if status := h.deletes("other"); status != http.StatusForbidden {
				t.Errorf("a call beside it: %d, want 403", status)
			}
			h.must(http.MethodPost, "/v1/grants/"+eligible.ID+"/end", map[string]string{"reason": "a test"}, nil)
		})
		t.Run("own request", func(t *testing.T) {
			r := h.wish(operator, "own")
			// Alice asked for it, and becomes an approver.
			h.must(http.MethodPut, "/v1/people/alice", map[string]any{"name": "alice", "roles": []string{"operator", "approver"}}, nil)
			alice := &approver{h: h, token: h.invite("alice"), key: pam.key, wire: pam.wire, id: pam.id}
			status, b := alice.approve(r.ID, r.Document, nil)
			refused(t, "approving one's own request", status, b, "request_own")
			status, b = alice.approve(r.ID, r.Document, alice.sign(r.Document))
			refused(t, "with the signature of somebody else", status, b, "approver_key_not_found")
			pending(t, r, "own")
		})
		t.Run("replay", func(t *testing.T) {
			first, second := h.wish(operator, "first"), h.wish(operator, "second")
			signed := pam.sign(first.Document)
			status, b := pam.approve(second.ID, second.Document, signed)
			refused(t, "the signature of another request", status, b, "approval_signature_invalid")
			status, b = pam.approve(second.ID, first.Document, signed)
			refused(t, "with the document of the other", status, b, "approval_signature_invalid")
			status, b = quin.approve(first.ID, first.Document, signed)
			refused(t, "pam's signature as quin's", status, b, "approver_key_not_found")
			by := *signed
			by.Key = quin.id
			status, b = quin.approve(first.ID, first.Document, &by)
			refused(t, "pam's signature under the name of quin's key", status, b, "approval_signature_invalid")
			if status, b := pam.approve(first.ID, first.Document, signed); status >= 300 {
				t.Fatalf("approving: %d %s", status, b)
			}
			status, b = pam.approve(first.ID, first.Document, signed)
			refused(t, "the same vote again", status, b, "request_voted")
			pending(t, first, "first")
			pending(t, second, "second")
		})
		t.Run("changed arguments", func(t *testing.T) {
			r := h.wish(operator, "changed")
			other := []byte(strings.ReplaceAll(string(r.Document), "id=changed", "id=other"))
			status, b := pam.approve(r.ID, other, pam.sign(other))
			refused(t, "a document with other arguments", status, b, "approval_signature_invalid")
			status, b = pam.approve(r.ID, other, pam.sign(r.Document))
			refused(t, "the digest of other arguments", status, b, "request_changed")
			pending(t, r, "changed")
			quorum(r)
			if status := h.deletes("other"); status != http.StatusForbidden {
				t.Errorf("the call with other arguments: %d, want 403", status)
			}
			if status := h.deletes("changed"); status != http.StatusOK {
				t.Errorf("the call that was approved: %d, want 200", status)
			}
		})
		t.Run("double click", func(t *testing.T) {
			r := h.wish(operator, "click")
			if status, b := pam.approve(r.ID, r.Document, pam.sign(r.Document)); status >= 300 {
				t.Fatalf("approving: %d %s", status, b)
			}
			signed := quin.sign(r.Document)
			var wg sync.WaitGroup
			var done atomic.Int64
			for range 16 {
				wg.Go(func() {
					if status, _ := quin.approve(r.ID, r.Document, signed); status < 300 {
						done.Add(1)
					}
				})
			}
			wg.Wait()
			if got := h.request(r.ID); done.Load() != 1 || got.State != "approved" || len(strings.Fields(got.Result)) != 1 {
				t.Errorf("%d of 16 clicks were taken; the request is %s and led to %q", done.Load(), got.State, got.Result)
			}
		})
		t.Run("approver disabled between", func(t *testing.T) {
			rex := h.approver("rex")
			r := h.wish(operator, "rex")
			if status, b := rex.approve(r.ID, r.Document, rex.sign(r.Document)); status >= 300 {
				t.Fatalf("approving: %d %s", status, b)
			}
			h.must(http.MethodPost, "/v1/people/rex/disable", map[string]string{"reason": "left"}, nil)
			if status, b := pam.approve(r.ID, r.Document, pam.sign(r.Document)); status >= 300 {
				t.Fatalf("approving: %d %s", status, b)
			}
			pending(t, r, "rex") // rex's word does not count any more
			other := h.wish(operator, "rex-2")
			if status, b := rex.approve(other.ID, other.Document, rex.sign(other.Document)); status != http.StatusUnauthorized {
				t.Errorf("somebody who is disabled: %d %s, want 401", status, b)
			}
		})

		// What follows is done by somebody who can write to the database.
		d, err := db.Open(t.Context(), h.config.Database, db.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = d.Close() })
		exec := func(t *testing.T, query string, args ...any) {
			t.Helper()
			if err := d.Do(t.Context(), estover.DefaultTenant, func(tx *db.Tx) error {
				n, err := tx.Exec(t.Context(), query, args...)
				if err == nil && n != 1 {
					err = fmt.Errorf("%d rows", n)
				}
				return err
			}); err != nil {
				t.Fatalf("%s: %v", query, err)
			}
		}
		t.Run("expired", func(t *testing.T) {
			r := h.wish(operator, "late")
			exec(t, "update access_request set created_at = created_at - 200000000000, expires_at = expires_at - 200000000000 where id = $1", r.ID)
			status, b := pam.approve(r.ID, r.Document, pam.sign(r.Document))
			if status < 400 {
				t.Errorf("a request that has expired: %d %s", status, b)
			}
			if status := h.deletes("late"); status != http.StatusForbidden {
				t.Errorf("the call: %d, want 403", status)
			}
		})
		n := 0
		for what, edit := range map[string]func(t *testing.T, r requested, grant string){
			"the grant names another action": func(t *testing.T, _ requested, grant string) {
				exec(t, `update access_grant set actions = '["item.delete","item.read"]' where id = $1`, grant)
			},
			"the grant names other arguments": func(t *testing.T, _ requested, grant string) {
				exec(t, `update access_grant set parameters = null where id = $1`, grant)
			},
			"the grant ends later": func(t *testing.T, _ requested, grant string) {
				exec(t, `update access_grant set expires_at = expires_at + 1000000 where id = $1`, grant)
			},
			"the grant has no end": func(t *testing.T, _ requested, grant string) {
				exec(t, `update access_grant set expires_at = null where id = $1`, grant)
			},
			"the grant is another agent's": func(t *testing.T, r requested, grant string) {
				exec(t, `update access_request set agent_id = 'agt_other' where id = $1`, r.ID)
			},
			"the request's document": func(t *testing.T, r requested, _ string) {
				exec(t, `update access_request set document = $2 where id = $1`, r.ID, []byte("format: estover-approval-v1\n"))
			},
			"the request's rule": func(t *testing.T, r requested, _ string) {
				exec(t, `update access_request set spec = replace(spec, '"signed":true', '"signed":false') where id = $1`, r.ID)
			},
			"a vote is gone": func(t *testing.T, r requested, _ string) {
				exec(t, `delete from access_vote where request_id = $1 and assertion like $2`, r.ID, "%"+quin.id+"%")
			},
			"a vote's signature": func(t *testing.T, r requested, _ string) {
				exec(t, `update access_vote set assertion = replace(assertion, 'U', 'V') where request_id = $1 and assertion like $2`, r.ID, "%"+quin.id+"%")
			},
			"a vote is another person's": func(t *testing.T, r requested, _ string) {
				exec(t, `update access_vote set approver = 'user:usr_ghost' where request_id = $1 and assertion like $2`, r.ID, "%"+quin.id+"%")
			},
			"a key": func(t *testing.T, _ requested, _ string) {
				exec(t, `update approver_key set verifies = 1 where id = $1`, quin.id)
			},
		} {
			t.Run("database row edited by hand/"+what, func(t *testing.T) {
				n++
				item := fmt.Sprintf("row-%d", n)
				r := h.wish(operator, item)
				quorum(r)
				if status := h.deletes(item); status != http.StatusOK {
					t.Fatalf("the call that was approved: %d, want 200", status)
				}
				edit(t, r, h.request(r.ID).Result)
				h.again()
				if status := h.deletes(item); status != http.StatusForbidden {
					t.Errorf("the call, after %s was edited: %d, want 403", what, status)
				}
				h.until("that a grant was refused is on record", func() bool {
					_, b := h.do(http.MethodGet, "/v1/events?action=grant.refused&limit=100", h.token, nil)
					return strings.Contains(string(b), r.ID)
				})
				if what == "a key" {
					exec(t, `update approver_key set verifies = 0 where id = $1`, quin.id)
					h.again()
					if status := h.deletes(item); status != http.StatusOK {
						t.Errorf("the call, after the key was put back: %d, want 200", status)
					}
				}
			})
		}
		t.Run("database row edited by hand/the count of uses", func(t *testing.T) {
			r := h.wish(operator, "twice", 2)
			quorum(r)
			grant := h.request(r.ID).Result
			for n := range 2 {
				if status := h.deletes("twice"); status != http.StatusOK {
					t.Fatalf("use %d of 2: %d, want 200", n+1, status)
				}
			}
			if status := h.deletes("twice"); status < 400 {
				t.Errorf("a third use: %d", status)
			}
			exec(t, `update access_spent set calls = 0 where id = $1`, grant)
			h.again()
			if status := h.deletes("twice"); status < 400 {
				t.Errorf("a third use, after the count was put back: %d", status)
			}
			exec(t, `delete from access_spent where id = $1`, grant)
			h.again()
			if status := h.deletes("twice"); status < 400 {
				t.Errorf("a third use, after the count was deleted: %d", status)
			}
			_, b := h.do(http.MethodGet, "/v1/events?action=approval.use&limit=100", h.token, nil)
			if n := strings.Count(string(b), "request:"+r.ID); n != 2 {
				t.Errorf("%d uses are on record, want 2: %s", n, b)
			}
		})
		t.Run("uses at once", func(t *testing.T) {
			r := h.wish(operator, "five", 5)
			quorum(r)
			token := h.accessToken("")
			var wg sync.WaitGroup
			var done atomic.Int64
			for range 32 {
				wg.Go(func() {
					if res, _ := h.get(http.MethodDelete, "http://"+h.addr+"/u/crm/v1/items/five", "Authorization", "Bearer "+token); res.StatusCode == http.StatusOK {
						done.Add(1)
					}
				})
			}
			wg.Wait()
			if done.Load() != 5 {
				t.Errorf("an approval for 5 calls gave %d", done.Load())
			}
			_, b := h.do(http.MethodGet, "/v1/events?action=approval.use&limit=100", h.token, nil)
			if n := strings.Count(string(b), "request:"+r.ID); n != 5 {
				t.Errorf("%d uses are on record, want 5", n)
			}
		})
		t.Run("database row edited by hand/a grant is inserted", func(t *testing.T) {
			r := h.wish(operator, "inserted")
			quorum(r)
			exec(t, `insert into access_grant (tenant_id, id, name, agent_id, resource_id, actions, purposes, class, expires_at, managed_by, created_at, created_by, epoch, kind, session_id, request_id)
				select tenant_id, 'grt_forged', 'grt_forged', agent_id, resource_id, '["item.delete"]', purposes, class, expires_at, managed_by, created_at, created_by, epoch, kind, session_id, request_id
				from access_grant where id = $1`, h.request(r.ID).Result)
			h.again()
			if status := h.deletes("another"); status != http.StatusForbidden {
				t.Errorf("the call under a grant that was written by hand: %d, want 403", status)
			}
			if status := h.deletes("inserted"); status != http.StatusOK {
				t.Errorf("the call that was approved: %d, want 200", status)
			}
		})
		t.Run("database row edited by hand/a vote is inserted", func(t *testing.T) {
			r := h.wish(operator, "vote")
			if status, b := pam.approve(r.ID, r.Document, pam.sign(r.Document)); status >= 300 {
				t.Fatalf("approving: %d %s", status, b)
			}
			exec(t, `insert into access_vote (tenant_id, request_id, round, approver, in_place_of, verdict, at, note, document, assertion, mac)
				select tenant_id, request_id, round, 'user:usr_ghost', in_place_of, verdict, at, note, document, assertion, mac from access_vote where request_id = $1`, r.ID)
			status, b := quin.approve(r.ID, r.Document, quin.sign(r.Document))
			refused(t, "approving beside a vote that was written by hand", status, b, "request_altered")
			pending(t, r, "vote")
		})
	})
}

// TestApprovalInTheReceipt is what somebody learns from a receipt who has nothing
// but the file: who approved, and that they signed just this.
func TestApprovalInTheReceipt(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		r := h.wish(h.invite("alice"), "7")
		for _, name := range []string{"pam", "quin"} {
			a := h.approver(name)
			if status, b := a.approve(r.ID, r.Document, a.sign(r.Document)); status >= 300 {
				t.Fatalf("approving: %d %s", status, b)
			}
		}
		session := h.openSession()
		token := h.accessToken(session)
		for _, c := range []struct{ method, path string }{{http.MethodDelete, "7"}, {http.MethodGet, "7"}} {
			if res, b := h.get(c.method, "http://"+h.addr+"/u/crm/v1/items/"+c.path, "Authorization", "Bearer "+token); res.StatusCode != http.StatusOK {
				t.Fatalf("%s: %d %s", c.method, res.StatusCode, b)
			}
		}
		h.must(http.MethodPost, "/v1/sessions/"+session+"/end", map[string]string{"cause": "done"}, nil)
		export := func(disclose bool) []byte {
			t.Helper()
			var file []byte
			h.until("the session is closed", func() bool {
				status, b := h.do(http.MethodGet, fmt.Sprintf("/v1/sessions/%s/evidence?disclose=%v", session, disclose), h.token, nil)
				file = b
				x, err := attest.ParseExport(b)
				return status == http.StatusOK && err == nil && x.Closing != nil
			})
			return file
		}
		file := export(true)
		report := attest.Verify(file, h.trust())
		if !report.OK() || len(report.Calls) != 2 {
			t.Fatalf("the session does not verify:\n%s", report)
		}
		for _, c := range report.Calls {
			var step attest.Step
			for _, s := range c.Steps {
				if s.Name == attest.ApprovalStep {
					step = s
				}
			}
			want := "2 people approved what was done"
			if strings.HasPrefix(c.Action, "GET") {
				want = "came of no request"
			}
			if step.Result != attest.Pass || !strings.Contains(step.Detail, want) {
				t.Errorf("%s: %s (%s), want it to pass with %q", c.Action, step.Result, step.Detail, want)
			}
		}
		if s := attest.Verify(export(false), h.trust()).Step(attest.ApprovalStep); s.Result != attest.NotDisclosed {
			t.Errorf("without what is disclosed: %s (%s)", s.Result, s.Detail)
		}
		// Whoever hands out another approval is found out.
		x, err := attest.ParseExport(file)
		if err != nil {
			t.Fatal(err)
		}
		for i := range x.Receipts {
			for j, d := range x.Receipts[i].Disclosures {
				if d.Name == attest.ApprovalRecord {
					x.Receipts[i].Disclosures[j].Octets = []byte(strings.Replace(string(d.Octets), "user:usr_", "user:usr_x", 1))
				}
			}
		}
		forged, err := x.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if s := attest.Verify(forged, h.trust()).Step(attest.ApprovalStep); s.Result != attest.Fail {
			t.Errorf("with another approver: %s (%s), want FAIL", s.Result, s.Detail)
		}
	})
}
