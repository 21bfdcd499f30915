package forward_test

import (
	"bytes"
	"io"
	"net"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// h2Get sends one GET whose head has these fields beside the usual ones, which
// no client library would send, and gives the status, or "" if the stream or the
// connection was refused.
func h2Get(t *testing.T, c net.Conn, fields [][2]string) string {
	t.Helper()
	io.WriteString(c, http2.ClientPreface)
	f := http2.NewFramer(c, c)
	f.WriteSettings()
	var head bytes.Buffer
	e := hpack.NewEncoder(&head)
	usual := [][2]string{{":method", "GET"}, {":scheme", "https"}, {":path", "/"}}
	if fields[0][0] == ":method" {
		usual = usual[1:]
	}
	for _, field := range append(usual, fields...) {
		e.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]})
	}
	if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head.Bytes(), EndStream: true, EndHeaders: true}); err != nil {
		t.Fatal(err)
	}
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return ""
		}
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			return frame.PseudoValue("status")
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			return ""
		}
	}
}
