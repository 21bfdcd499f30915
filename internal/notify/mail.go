package notify

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/quotedprintable"
	"net"
	"net/mail"
	"net/smtp"
	"net/textproto"
	"strings"
	"time"

	"estover.dev"
)

// mail sends a message by SMTP (RFC 5321). It has got through when the server
// has taken it; what the server does with it then, nobody tells us.
func (n *Notify) mail(ctx context.Context, tenant estover.TenantID, s Spec, to, id string, said []saying) error {
	text, err := letter(s.From, to, id, n.guard.DB().Now(), said)
	if err != nil {
		return err
	}
	host, _, err := net.SplitHostPort(s.Server)
	if err != nil {
		return ErrSend.With("The SMTP server is not HOST:PORT.")
	}
	var password estover.Secret
	if s.Secret != "" {
		if password, err = n.Secret(ctx, tenant, s.Secret, s.Server); err != nil {
			return err
		}
	}
	conn, config, err := n.Dial(ctx, tenant, s, s.Server)
	if err != nil {
		return err
	}
	defer conn.Close()
	if until, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(until); err != nil {
			return err
		}
	}
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	config = config.Clone()
	config.ServerName = host
	if s.TLS == "implicit" { // RFC 8314, section 3.3
		secure := tls.Client(conn, config)
		if err := secure.HandshakeContext(ctx); err != nil {
			return ErrSend.With("The mail server %s does not speak TLS as it should.", host).Because(err)
		}
		conn = secure
	}
	if err := transfer(&bounded{conn, maxReplies}, host, config, s, password, to, text); err != nil {
		var said *textproto.Error
		if errors.As(err, &said) {
			return ErrSend.With("The mail server %s answers %d: %s", host, said.Code, plain(said.Msg))
		}
		return ErrSend.With("The mail server %s did not take the message.", host).Because(err)
	}
	return nil
}

// errPlain is returned where a server offers no TLS that must be there.
var errPlain = errors.New("it does not offer STARTTLS")

// transfer is one conversation with a server.
func transfer(conn net.Conn, host string, config *tls.Config, s Spec, password estover.Secret, to string, text []byte) error {
	c, err := smtp.NewClient(conn, host)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Hello("estover"); err != nil {
		return err
	}
	if s.TLS == "starttls" { // RFC 3207
		if ok, _ := c.Extension("STARTTLS"); !ok {
			return errPlain
		}
		if err := c.StartTLS(config); err != nil {
			return err
		}
	}
	if s.User != "" {
		if err := c.Auth(plainAuth{s.User, password}); err != nil {
			var said *textproto.Error
			if errors.As(err, &said) { // in words that may repeat what it was told
				return &textproto.Error{Code: said.Code, Msg: "it does not know the user name with this password"}
			}
			return err
		}
	}
	if err := c.Mail(s.From); err != nil {
		return err
	}
	if err := c.Rcpt(to); err != nil {
		return err
	}
	w, err := c.Data()
	if err != nil {
		return err
	}
	if _, err := w.Write(text); err != nil {
		return err
	}
	if err := w.Close(); err != nil { // the server has taken it, or it has not
		return err
	}
	_ = c.Quit() // it is done, whatever the answer
	return nil
}

// plainAuth is the mechanism PLAIN (RFC 4616), over TLS alone: a channel with a
// password has it.
type plainAuth struct {
	user     string
	password estover.Secret
}

// Start sends the password at once.
func (a plainAuth) Start(server *smtp.ServerInfo) (string, []byte, error) {
	b := append([]byte("\x00"+a.user+"\x00"), a.password.Reveal()...)
	return "PLAIN", b, nil
}

// Next has nothing to add.
func (a plainAuth) Next(_ []byte, more bool) ([]byte, error) {
	if more {
		return nil, errors.New("it asks for more than a password")
	}
	return nil, nil
}

// maxReplies bounds what a server may say in one conversation.
const maxReplies = 64 << 10

// A bounded connection ends when the other side has said too much.
type bounded struct {
	net.Conn
	left int
}

// Read reads as much as is left.
func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errors.New("it says too much")
	}
	n, err := b.Conn.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// letter is the text of a message (RFC 5322). No word of anybody's is in its
// head but as an encoded subject.
func letter(from, to, id string, at time.Time, said []saying) ([]byte, error) {
	for _, a := range []string{from, to} {
		if p, err := mail.ParseAddress(a); err != nil || p.Address != a || strings.ContainsAny(a, "\r\n") {
			return nil, ErrSend.With("%q is not an e-mail address.", a)
		}
	}
	_, domain, _ := strings.Cut(from, "@")
	var b bytes.Buffer
	field := func(name, value string) { fmt.Fprintf(&b, "%s: %s\r\n", name, value) }
	field("From", (&mail.Address{Name: "Estover", Address: from}).String())
	field("To", "<"+to+">")
	field("Subject", mime.QEncoding.Encode("utf-8", clip("Estover: "+subjectOf(said), 200)))
	field("Date", at.UTC().Format(time.RFC1123Z))
	field("Message-ID", "<"+id+"@"+domain+">")
	field("Auto-Submitted", "auto-generated") // RFC 3834: nobody answers that they are away
	field("MIME-Version", "1.0")
	field("Content-Type", "text/plain; charset=utf-8")
	field("Content-Transfer-Encoding", "quoted-printable")
	b.WriteString("\r\n")
	w := quotedprintable.NewWriter(&b)
	asks := false
	for i, s := range said {
		if i > 0 {
			_, _ = io.WriteString(w, "\r\n- - -\r\n\r\n")
		}
		for _, l := range s.lines() {
			_, _ = io.WriteString(w, l+"\r\n")
		}
		if s.matter.Link != "" {
			_, _ = io.WriteString(w, "\r\nLook at it and decide:\r\n"+s.matter.Link+"\r\n")
			asks = true
		}
	}
	if asks {
		_, _ = io.WriteString(w, "\r\n"+trust+"\r\n")
	}
	return b.Bytes(), w.Close()
}
