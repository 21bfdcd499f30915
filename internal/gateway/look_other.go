//go:build !unix

package gateway

import "net"

// canLook says whether [nothingCame] can tell.
const canLook = false

func nothingCame(net.Conn) bool { return false }
