package pki

import (
	"encoding/binary"
	"slices"
	"time"
)

// A key revocation list of OpenSSH, as its PROTOCOL.krl describes it. Ours has one
// section, the certificates of one authority, in which serial numbers stand as
// they are, in ascending order. It is not signed: whoever fetches it knows from
// where, and sshd looks at no signature.
const (
	krlMagic        = 0x5353484b524c0a00 // "SSHKRL\n\0"
	krlFormat       = 1
	krlCertificates = 1    // KRL_SECTION_CERTIFICATES
	krlSerials      = 0x20 // KRL_SECTION_CERT_SERIAL_LIST
)

// krl writes a list. Its version only rises.
func krl(version uint64, at time.Time, comment string, authority []byte, serials []uint64) []byte {
	text := func(b, s []byte) []byte { return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...) }
	b := binary.BigEndian.AppendUint64(nil, krlMagic)
	b = binary.BigEndian.AppendUint32(b, krlFormat)
	b = binary.BigEndian.AppendUint64(b, version)
	b = binary.BigEndian.AppendUint64(b, uint64(at.Unix()))
	b = binary.BigEndian.AppendUint64(b, 0) // flags
	b = text(b, nil)                        // reserved
	b = text(b, []byte(comment))
	if len(serials) == 0 {
		return b
	}
	slices.Sort(serials)
	var list []byte
	for _, n := range slices.Compact(serials) {
		list = binary.BigEndian.AppendUint64(list, n)
	}
	section := text(nil, authority)
	section = text(section, nil) // reserved
	section = append(section, krlSerials)
	section = text(section, list)
	b = append(b, krlCertificates)
	return text(b, section)
}
