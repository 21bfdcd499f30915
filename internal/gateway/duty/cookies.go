package duty

import (
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
	"sync"

	"estover.dev"
	"estover.dev/internal/gateway"
	"estover.dev/internal/redact"
	"estover.dev/internal/resource"
)

// Cookies of an upstream are dropped, or kept here in a jar, which belongs to a
// session and a resource, on this node (gateway.md, C16). They are put into requests
// like secrets, and cut out of answers like them.

// cookieLabel stands for cookies in the record.
const cookieLabel = "cookies"

// The bounds of a jar.
const (
	maxCookie  = 4 << 10 // bytes of a value
	maxCookies = 300     // that were ever set
)

// A jar is the cookies of a resource in a session.
type jar struct {
	mu   sync.Mutex
	kept *cookiejar.Jar
	set  int64 // how many were
}

type jarKey struct {
	taskKey
	resource string
}

// jar finds the jar of a call.
func (d *Duties) jar(tenant estover.TenantID, session, resource string) *jar {
	key := jarKey{taskKey{tenant, session}, resource}
	d.mu.Lock()
	defer d.mu.Unlock()
	j := d.jars[key]
	if j == nil {
		kept, _ := cookiejar.New(nil) // never fails
		j = &jar{kept: kept}
		if d.jars == nil {
			d.jars = map[jarKey]*jar{}
		}
		d.jars[key] = j
	}
	return j
}

// empty forgets the jars of a session.
func (d *Duties) empty(tenant estover.TenantID, session string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for key := range d.jars {
		if key.taskKey == (taskKey{tenant, session}) {
			delete(d.jars, key)
		}
	}
}

// fillCookies puts the cookies of the resource into a request, gives what must not
// come back, and of which state of the jar that is.
func (d *Duties) fillCookies(ex *gateway.Exchange, p *gateway.Plan, c *call) (values []redact.Value, state int64) {
	if c.resource.Cookies != resource.CookiesJar {
		return nil, 0
	}
	j := d.jar(ex.Caller.Tenant, ex.Caller.Session, c.resource.ID)
	at := &url.URL{Scheme: ex.Scheme, Host: ex.Host.String()}
	ex.Path.Set(at)
	p.Jar = func(set []*http.Cookie) { j.keep(at, set) }
	j.mu.Lock()
	defer j.mu.Unlock()
	var b strings.Builder
	for i, one := range j.kept.Cookies(at) {
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(one.Name + "=" + one.Value)
		values = append(values, redact.Value{Name: cookieLabel, Text: []byte(one.Value)})
	}
	if b.Len() > 0 {
		p.Slots = append(p.Slots, gateway.Slot{Kind: gateway.HeaderSlot, Name: "Cookie", Secret: estover.NewSecret([]byte(b.String())), Label: cookieLabel})
	}
	return values, j.set
}

// keep puts cookies into the jar.
func (j *jar) keep(at *url.URL, set []*http.Cookie) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, one := range set {
		if len(one.Name)+len(one.Value) > maxCookie || j.set >= maxCookies && one.MaxAge >= 0 {
			continue
		}
		j.kept.SetCookies(at, []*http.Cookie{one})
		j.set++
	}
}
