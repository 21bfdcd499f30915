package login

import (
	"errors"

	"estover.dev/internal/directory"
	"estover.dev/internal/page"
)

// you shows a person what they come in by.
func (d *Door) you(r *page.Request) error {
	at := r.Path(page.SignInPath + "/you")
	if !r.Demand(page.Demand{}, at) {
		return nil
	}
	keys, err := d.People.Passkeys(r.Context(), r.Visit.Caller, r.Visit.Person.ID)
	if err != nil {
		return err
	}
	left, err := d.People.RecoveryCodesLeft(r.Context(), r.Visit)
	if err != nil {
		return err
	}
	data := youData{
		Visit: r.Visit, Keys: keys, Left: left, MayAdd: recently.Meets(r.Visit, r.Now()), MayChange: stepUp.Meets(r.Visit, r.Now()),
		Add: at + "/passkey", End: at + "/passkey/end", Codes: at + "/codes",
		Again: r.Path(page.SignInPath) + "?again=1&to=" + at, EndForm: r.Form("end passkey"), CodesForm: r.Form("codes"),
		Leave: at + "/leave", LeaveForm: r.Form("leave"),
	}
	tokens, err := d.People.Tokens(r.Context(), r.Visit.Caller, r.Visit.Person.ID)
	if err != nil {
		return err
	}
	for _, t := range tokens {
		data.Places = append(data.Places, placeView{t, t.ID == r.Visit.Caller.Grant})
	}
	if d.Agents != "" {
		data.Agents = r.Path(d.Agents)
	}
	if d.Approvals != "" {
		data.Approvals = r.Path(d.Approvals)
	}
	if d.Contain != "" {
		may, err := d.MayContain(r.Context(), r.Visit.Caller)
		if err != nil {
			return err
		}
		if may {
			data.Contain = r.Path(d.Contain)
		}
	}
	if data.MayAdd && d.keys != nil {
		h, err := newHolder(r.Visit.Person, keys)
		if err != nil {
			return err
		}
		if data.ceremony, err = d.beginKey(r, "add passkey", h); err != nil {
			return err
		}
	}
	return r.Show(youPage, page.View{Title: "How you sign in", Data: data})
}

type youData struct {
	ceremony
	Visit                  *directory.Visit
	Keys                   []directory.Passkey
	Left                   int
	MayAdd, MayChange      bool // now, without being asked who they are again
	Add, End, Codes, Again string
	EndForm, CodesForm     string
	Agents, Approvals      string
	Contain                string
	Places                 []placeView
	Leave, LeaveForm       string
}

// A placeView is where somebody is signed in: a browser or the command line.
type placeView struct {
	directory.Token
	Here bool
}

// What changing one's own ways in wants. Making a passkey is what a recovery
// code is for, so that one is enough for it.
var (
	recently = page.Demand{Within: Fresh}
	stepUp   = page.Demand{Within: Fresh, Strong: true}
)

// changing is a form of this page, sent by somebody who proved who they are a
// short while ago. It reports false when the browser was sent to do so.
func (d *Door) changing(r *page.Request, purpose string, demand page.Demand) (page.Posted, bool, error) {
	at := r.Path(page.SignInPath + "/you")
	if !r.Demand(demand, at) {
		return page.Posted{}, false, nil
	}
	form, err := r.Posted(purpose)
	return form, err == nil, err
}

// addPasskey stores another passkey.
func (d *Door) addPasskey(r *page.Request) error {
	form, ok, err := d.changing(r, "add passkey", recently)
	if !ok {
		return err
	}
	keys, err := d.People.Passkeys(r.Context(), r.Visit.Caller, r.Visit.Person.ID)
	if err != nil {
		return err
	}
	h, err := newHolder(r.Visit.Person, keys)
	if err != nil {
		return err
	}
	_, key, a, err := d.checkKey(r, "add passkey", h, form.Get("state"), form.Get("answer"))
	if err != nil {
		return err
	}
	key.Label = form.Get("label")
	if _, err := d.People.AddPasskey(r.Context(), r.Visit.Caller, key, a); err != nil {
		return err
	}
	r.Go(r.Path(page.SignInPath + "/you"))
	return nil
}

// endPasskey takes a passkey away.
func (d *Door) endPasskey(r *page.Request) error {
	form, ok, err := d.changing(r, "end passkey", stepUp)
	if !ok {
		return err
	}
	if err := d.People.EndPasskey(r.Context(), r.Visit.Caller, form.Get("id")); err != nil {
		return err
	}
	r.Go(r.Path(page.SignInPath + "/you"))
	return nil
}

// leave ends another place where the person is signed in. To take away wants no
// fresh proof.
func (d *Door) leave(r *page.Request) error {
	form, ok, err := d.changing(r, "leave", page.Demand{})
	if !ok {
		return err
	}
	err = d.People.Retire(r.Context(), r.Visit.Caller, r.Visit.Person.ID, form.Get("id"))
	if err != nil && !errors.Is(err, directory.ErrTokenNotFound) {
		return err
	}
	r.Go(r.Path(page.SignInPath + "/you"))
	return nil
}

// newCodes makes recovery codes in the place of those that were.
func (d *Door) newCodes(r *page.Request) error {
	_, ok, err := d.changing(r, "codes", stepUp)
	if !ok {
		return err
	}
	codes, err := d.People.NewRecoveryCodes(r.Context(), r.Visit.Caller)
	if err != nil {
		return err
	}
	return r.Show(codesPage, page.View{Title: "Keep these recovery codes", Data: codesData{Codes: codes, You: r.Path(page.SignInPath + "/you")}})
}
