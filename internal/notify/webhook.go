package notify

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"estover.dev"
)

// post sends a message to a webhook.
func (n *Notify) post(ctx context.Context, tenant estover.TenantID, s Spec, id string, said []saying) error {
	at, err := url.Parse(s.URL)
	if err != nil {
		return ErrSend.With("The URL cannot be read.")
	}
	var value estover.Secret
	if s.Secret != "" {
		if value, err = n.Secret(ctx, tenant, s.Secret, hostPort(at)); err != nil {
			return err
		}
	}
	var body any
	switch s.Kind {
	case Slack:
		body = slack(said)
	case Teams:
		body = teams(said)
	default:
		body = standard(said)
	}
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	to := at.String()
	if s.Kind != Webhook && !value.Empty() {
		whole, err := url.Parse(strings.TrimSpace(string(value.Reveal())))
		if err != nil || whole.Scheme != at.Scheme || !strings.EqualFold(whole.Host, at.Host) || whole.User != nil {
			return ErrSend.With("The secret %s does not hold a URL that begins with %s://%s.", s.Secret, at.Scheme, at.Host)
		}
		to = whole.String()
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, to, bytes.NewReader(b))
	if err != nil {
		return ErrSend.With("The URL cannot be read.") // it may be a secret
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("User-Agent", "Estover")
	if s.Kind == Webhook {
		if err := sign(r, id, n.guard.DB().Now(), b, value); err != nil {
			return err
		}
	}
	status, err := n.Post(ctx, tenant, s, r)
	if err != nil {
		return err
	}
	if status < 200 || status > 299 {
		return ErrSend.With("%s answers with the status %d.", at.Host, status)
	}
	return nil
}

// hostPort is where a URL leads.
func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"https": "443", "http": "80"}[u.Scheme]
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// The prefix of keys, and their least and greatest length in bytes (Standard
// Webhooks, signature scheme).
const (
	keyPrefix = "whsec_"
	leastKey  = 24
	mostKey   = 64
)

// sign puts a message under its id, its time and their signature (Standard
// Webhooks, symmetric signatures).
func sign(r *http.Request, id string, at time.Time, body []byte, key estover.Secret) error {
	text, ok := strings.CutPrefix(strings.TrimSpace(string(key.Reveal())), keyPrefix)
	raw, err := base64.StdEncoding.DecodeString(text)
	if !ok || err != nil || len(raw) < leastKey || len(raw) > mostKey {
		return ErrSend.With("The secret does not hold a key for webhooks: %s, and then %d to %d bytes in base64.", keyPrefix, leastKey, mostKey)
	}
	stamp := strconv.FormatInt(at.Unix(), 10)
	mac := hmac.New(sha256.New, raw)
	mac.Write([]byte(id + "." + stamp + "."))
	mac.Write(body)
	r.Header.Set("webhook-id", id)
	r.Header.Set("webhook-timestamp", stamp)
	r.Header.Set("webhook-signature", "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	return nil
}

// standard is the body of a Standard Webhook: an event, and what can be said of
// it. A program asks for the rest, with a token of its own.
func standard(said []saying) any {
	s := said[0]
	data := map[string]any{"event": s.event.ID, "actor": s.event.Actor, "target": s.event.Target, "title": plain(s.matter.Title)}
	for name, v := range map[string]string{
		"request": s.event.Request, "kind": s.event.Kind, "agent": s.event.Agent, "state": s.event.State,
		"link": s.matter.Link, "fingerprint": s.matter.Fingerprint,
	} {
		if v != "" {
			data[name] = v
		}
	}
	if s.matter.Open && !s.matter.Until.IsZero() {
		data["expires_at"] = s.matter.Until
	}
	return map[string]any{"type": s.event.Action, "timestamp": s.event.At, "data": data}
}

// slack is what an incoming webhook of Slack takes. Words of others are plain
// text there, and the one link is ours.
func slack(said []saying) any {
	type object = map[string]any
	text := func(s string) object { return object{"type": "plain_text", "text": clip(s, 2900), "emoji": false} }
	blocks := []object{{"type": "header", "text": object{"type": "plain_text", "text": clip(subjectOf(said), 140), "emoji": false}}}
	asks := false
	for _, s := range said {
		if len(blocks) > 44 { // of the 50 that a message may have
			blocks = append(blocks, object{"type": "section", "text": text("And more; `estover access list` shows all.")})
			break
		}
		blocks = append(blocks, object{"type": "section", "text": text(strings.Join(s.lines(), "\n"))})
		if s.matter.Link != "" {
			blocks = append(blocks, object{"type": "section", "text": object{"type": "mrkdwn", "text": "<" + escaped(s.matter.Link) + "|Look at it and decide>"}})
			asks = true
		}
	}
	if asks {
		blocks = append(blocks, object{"type": "context", "elements": []object{text(trust)}})
	}
	return object{"text": escaped(clip(subjectOf(said), 140)), "blocks": blocks}
}

// escaped is a text in Slack's own markup.
func escaped(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(s)
}

// teams is what a webhook of Teams takes: a message with an Adaptive Card. Words
// of others are runs of text, which know no markup.
func teams(said []saying) any {
	type object = map[string]any
	line := func(s string, bold bool) object {
		run := object{"type": "TextRun", "text": clip(s, 2000)}
		if bold {
			run["weight"] = "Bolder"
		}
		return object{"type": "RichTextBlock", "inlines": []object{run}}
	}
	body := []object{line(subjectOf(said), true)}
	asks := false
	for i, s := range said {
		if i == 20 {
			body = append(body, line("And more; `estover access list` shows all.", false))
			break
		}
		var items []object
		for _, l := range s.lines() {
			items = append(items, line(l, false))
		}
		if s.matter.Link != "" {
			items = append(items, object{"type": "ActionSet", "actions": []object{{"type": "Action.OpenUrl", "title": "Look at it and decide", "url": s.matter.Link}}})
			asks = true
		}
		body = append(body, object{"type": "Container", "separator": true, "items": items})
	}
	if asks {
		body = append(body, line(trust, false))
	}
	card := object{"$schema": "http://adaptivecards.io/schemas/adaptive-card.json", "type": "AdaptiveCard", "version": "1.4", "body": body}
	return object{"type": "message", "attachments": []object{{"contentType": "application/vnd.microsoft.card.adaptive", "content": card}}}
}

// clip is at most so many characters of a text.
func clip(s string, most int) string {
	if r := []rune(s); len(r) > most {
		return string(r[:most-1]) + "…"
	}
	return s
}
