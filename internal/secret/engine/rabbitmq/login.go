package rabbitmq

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	"estover.dev/internal/secret/engine"
)

// What goes over an AMQP 0-9-1 connection until somebody has logged in: methods
// of the class connection, of which only that much is spoken here. A client
// library would not do: a broker that refuses a log-in says so to those alone
// who have said that they understand it, and is silent to others for three
// seconds and hangs up, as a network that fails does.
const (
	class   = 10
	start   = 10
	startOK = 11
	tune    = 30
	tuneOK  = 31
	enter   = 40
	openOK  = 41
	shut    = 50
	shutOK  = 51

	accessRefused = 403
	longestFrame  = 128 << 10
)

// login logs in and out over a connection: [engine.ErrWrongSecret] if the broker
// refuses the credential.
func login(conn net.Conn, c engine.Credential) error {
	in := bufio.NewReader(conn)
	if _, err := conn.Write([]byte("AMQP\x00\x00\x09\x01")); err != nil {
		return err
	}
	if m, _, err := receive(in); err != nil || m != start {
		return unexpected("greet", m, err)
	}
	capabilities := append(short("authentication_failure_close"), 't', 1)
	properties := append(append(short("capabilities"), 'F'), long(capabilities)...)
	properties = append(append(append(properties, short("product")...), 'S'), long([]byte("Estover"))...)
	answer := append(long(properties), short("PLAIN")...)
	answer = append(answer, long([]byte("\x00"+c.User+"\x00"+string(c.Secret.Reveal())))...)
	if err := send(conn, startOK, append(answer, short("en_US")...)); err != nil {
		return err
	}
	m, offered, err := receive(in)
	switch {
	case err == nil && m == shut && code(offered) == accessRefused:
		return errors.Join(engine.ErrWrongSecret, send(conn, shutOK, nil))
	case err != nil || m != tune || len(offered) < 8:
		return unexpected("take the log-in", m, err)
	}
	// What is offered is taken, and a virtual host asked for, so that both can part
	// as they should. Which it is, and whether the user may enter it, does not matter.
	if err := send(conn, tuneOK, offered[:8]); err != nil {
		return err
	}
	if err := send(conn, enter, append(append(short("/"), short("")...), 0)); err != nil {
		return err
	}
	switch m, _, err := receive(in); {
	case err == nil && m == shut:
		_ = send(conn, shutOK, nil)
	case err == nil && m == openOK:
		if send(conn, shut, append(append([]byte{0, 200}, short("")...), 0, 0, 0, 0)) == nil {
			_, _, _ = receive(in)
		}
	}
	return nil
}

func unexpected(what string, method uint16, err error) error {
	if err != nil {
		return err
	}
	return fmt.Errorf("the broker does not %s: method %d", what, method)
}

// code is the reason of a broker that closes.
func code(arguments []byte) uint16 {
	if len(arguments) < 2 {
		return 0
	}
	return binary.BigEndian.Uint16(arguments)
}

// short and long are texts with their length, of one and of four bytes.
func short(s string) []byte { return append([]byte{byte(len(s))}, s...) }

func long(b []byte) []byte { return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...) }

// send writes a method in a frame of its own.
func send(to io.Writer, method uint16, arguments []byte) error {
	frame := []byte{1, 0, 0}
	frame = binary.BigEndian.AppendUint32(frame, uint32(4+len(arguments)))
	frame = binary.BigEndian.AppendUint16(frame, class)
	frame = binary.BigEndian.AppendUint16(frame, method)
	_, err := to.Write(append(append(frame, arguments...), 0xce))
	return err
}

// receive reads the next method.
func receive(from io.Reader) (method uint16, arguments []byte, err error) {
	var head [7]byte
	for {
		if _, err := io.ReadFull(from, head[:]); err != nil {
			return 0, nil, err
		}
		size := binary.BigEndian.Uint32(head[3:])
		if size > longestFrame {
			return 0, nil, errors.New("this is no AMQP 0-9-1")
		}
		frame := make([]byte, size+1)
		if _, err := io.ReadFull(from, frame); err != nil {
			return 0, nil, err
		}
		switch {
		case head[0] == 8: // a heartbeat
		case head[0] != 1 || size < 4 || frame[size] != 0xce || binary.BigEndian.Uint16(frame) != class:
			return 0, nil, errors.New("this is no AMQP 0-9-1")
		default:
			return binary.BigEndian.Uint16(frame[2:]), frame[4:size], nil
		}
	}
}
