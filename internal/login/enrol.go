package login

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"

	"estover.dev/internal/directory"
	"estover.dev/internal/page"
)

// invitation takes an invitation, and shows what its person can do with it.
func (d *Door) invitation(r *page.Request) error {
	if d.keys == nil {
		return errNoName
	}
	at := r.Path(page.SignInPath + "/invitation")
	if r.Method != http.MethodPost {
		return r.Show(invitationPage, page.View{Title: "You are invited", Data: invitationData{Form: r.Form("invitation"), Action: at}})
	}
	form, err := r.Posted("invitation")
	if err != nil {
		return err
	}
	if err := d.allowed(r); err != nil {
		return err
	}
	value := form.Get("invitation")
	p, err := d.People.Invited(r.Context(), r.Tenant, value)
	if err != nil {
		if p.ID != "" { // it was used before, perhaps by somebody else
			d.suspect(r, p.ID, err)
		}
		return d.failed(r, err)
	}
	c, err := d.beginKey(r, purposeOf(value), &holder{person: p})
	if err != nil {
		return err
	}
	return r.Show(enrolPage, page.View{Title: "Make your passkey", Data: enrolData{
		ceremony: c, Name: p.Name, Invitation: value, Action: r.Path(page.SignInPath + "/enrol"),
	}})
}

type invitationData struct{ Form, Action string }

type enrolData struct {
	ceremony
	Name, Invitation, Action string
}

// purposeOf ties a ceremony to an invitation.
func purposeOf(invitation string) string {
	sum := sha256.Sum256([]byte(invitation))
	return "enrol " + hex.EncodeToString(sum[:])
}

// enrol exchanges the invitation for the passkey that was made.
func (d *Door) enrol(r *page.Request) error {
	if err := r.ParseForm(); err != nil {
		return page.ErrForm.Because(err)
	}
	value := r.PostForm.Get("invitation")
	form, err := r.Posted(purposeOf(value))
	if err != nil {
		return err
	}
	if err := d.allowed(r); err != nil {
		return err
	}
	p, err := d.People.Invited(r.Context(), r.Tenant, value)
	if err != nil {
		return d.failed(r, err)
	}
	record, key, a, err := d.checkKey(r, purposeOf(value), &holder{person: p}, form.Get("state"), form.Get("answer"))
	if err != nil {
		return err
	}
	key.Label = form.Get("label")
	in, codes, err := d.People.Enrol(r.Context(), directory.Browser{From: r.From, Previous: r.Visit}, value, key, a, methods(record))
	if err != nil {
		return d.failed(r, err)
	}
	d.Entered(r.Tenant)
	r.Enter(in)
	return r.Show(codesPage, page.View{Title: "Keep these recovery codes", Data: codesData{Codes: codes, First: true, You: r.Path(page.SignInPath + "/you")}})
}

type codesData struct {
	Codes []string
	First bool
	You   string
}
