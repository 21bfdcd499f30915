package ldap

import ber "github.com/go-asn1-ber/asn1-ber"

// What a directory says in one message, of which a search has one for each entry, is at
// most a MiB, and not as deep as it likes: two bytes are enough for an element, for which
// the library makes room of some hundred.
var _ = func() struct{} { ber.MaxPacketLengthBytes, ber.MaxNestingDepth = 1<<20, 32; return struct{}{} }()
