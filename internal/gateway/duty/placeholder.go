package duty

import (
	"bytes"
	"encoding/base64"
	"net/http"
	"net/url"
	"strings"

	"estover.dev"
	"estover.dev/internal/gateway"
	"estover.dev/internal/resource"
	"estover.dev/internal/secret"
)

// errAnothers is the answer to a placeholder that is not this session's, or stands for a
// secret of another resource.
var errAnothers = gateway.ErrTripwire.With("The request carries a placeholder that was given to another agent, in another session or for another resource.")

// recognise refuses placeholders that were not given to this session for a secret of
// the resource, also where they stand in a slot, which is emptied whatever is in it: who
// sends one has it from somebody else (H2). One's own in a wrong place is for the
// tripwire to find.
func (d *Duties) recognise(r *http.Request, ex *gateway.Exchange, c *call) error {
	var texts [][]byte
	add := func(text string) {
		if strings.Contains(text, secret.PlaceholderPrefix) {
			texts = append(texts, []byte(text))
		}
	}
	for _, values := range r.Header {
		for _, v := range values {
			add(v)
			if scheme, credentials, ok := strings.Cut(v, " "); ok && strings.EqualFold(scheme, "basic") {
				if b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(credentials)); err == nil {
					add(string(b))
				}
			}
		}
	}
	add(ex.Query)
	if plain, err := url.QueryUnescape(ex.Query); err == nil && plain != ex.Query {
		add(plain)
	}
	var mine []string
	for i := range c.resource.Slots {
		slot := &c.resource.Slots[i]
		mine = append(mine, slot.Secret)
		if slot.Slot == resource.Body && slot.Fills(c.action.Name) {
			body, err := gateway.Peek(r, maxTokenForm)
			if err != nil {
				return err
			}
			if bytes.Contains(body, []byte(secret.PlaceholderPrefix)) {
				texts = append(texts, body)
			}
		}
	}
	for _, text := range texts {
		for {
			one, at := secret.FindPlaceholder(text)
			if one == "" {
				break
			}
			of, err := d.Secrets.Recognise(r.Context(), ex.Caller.Tenant, estover.Agent(c.task.agent), ex.Caller.Session, mine, one)
			if err != nil {
				return err
			}
			if of == "" {
				d.Violate(ex, errAnothers)
				return errAnothers
			}
			text = text[at+len(one):]
		}
	}
	return nil
}
