package attest

import (
	"archive/zip"
	"bytes"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"strings"
)

// An Export is the evidence of one session, in one ZIP file:
//
//	README.txt                         what this is and how to check it by hand
//	trust.policy                       the keys, as the exporter names them
//	session.estover-receipt            the closing statement and the gateways' enrolments
//	receipts/000001.estover-receipt    one a call, in order
//	disclosed/000001/request           salt ‖ octets: sha256sum prints the digest in the receipt
//	bundles/<sha256>                   the policy bundles that decided
//	SHA256SUMS                         of all the others, for sha256sum -c
//
// The same export is always the same bytes: nothing is compressed, names and
// order are fixed, and there is no time of writing. A reader takes the file
// only if it is exactly that.
type Export struct {
	Trust      []byte    // a trust policy, for the reader's convenience; [Verify] says so when it relies on it
	Closing    *Entry    // nil while the session is open
	Enrolments []Entry   // of the gateways that signed
	Receipts   []Receipt // ordered by [Action.Seq], without enrolments of their own
	Bundles    [][]byte  // policy bundles; a receipt need not disclose them again
}

// maxFiles is how many files a ZIP has place for in the form without
// extensions.
const maxFiles = math.MaxUint16

//go:embed README.txt
var readme []byte

// The fixed names of an export.
const (
	readmeFile  = "README.txt"
	trustFile   = "trust.policy"
	sessionFile = "session.estover-receipt"
	sumsFile    = "SHA256SUMS"
)

// Marshal writes the export's file. It fails if the export is too large for
// it: 2 GiB, or 65,535 files.
func (x Export) Marshal() ([]byte, error) {
	files := []file{{readmeFile, readme}, {trustFile, x.Trust}}
	session := x.Enrolments
	if x.Closing != nil {
		session = append([]Entry{*x.Closing}, session...)
	}
	b, err := marshalLines(session, nil)
	if err != nil {
		return nil, err
	}
	files = append(files, file{sessionFile, b})
	var disclosed []file
	for i, r := range x.Receipts {
		if len(r.Enrolments) > 0 {
			return nil, errors.New("writing an export: enrolments belong to the export, not to a receipt in it")
		}
		b, err := marshalLines([]Entry{r.Entry}, nil)
		if err != nil {
			return nil, err
		}
		files = append(files, file{fmt.Sprintf("receipts/%06d.estover-receipt", i+1), b})
		for _, d := range r.Disclosures {
			if err := d.check(); err != nil {
				return nil, fmt.Errorf("writing an export: %w", err)
			}
			disclosed = append(disclosed, file{fmt.Sprintf("disclosed/%06d/%s", i+1, d.Name), d.hashed()})
		}
	}
	files = append(files, disclosed...)
	for _, b := range x.Bundles {
		files = append(files, file{"bundles/" + Sum(b).String(), b})
	}
	return zipped(append(files, file{sumsFile, sums(files)}))
}

// sums is the SHA256SUMS of the files.
func sums(files []file) []byte {
	var b []byte
	for _, f := range files {
		b = fmt.Appendf(b, "%s  %s\n", Sum(f.data), f.name)
	}
	return b
}

// ParseExport reads an export's file. It fails if a byte of it was changed,
// and says nothing about who wrote it: see [Verify].
func ParseExport(zipFile []byte) (Export, error) {
	files, err := unzipped(zipFile)
	if err != nil {
		return Export{}, err
	}
	last := len(files) - 1
	if last < 0 || files[last].name != sumsFile || !bytes.Equal(files[last].data, sums(files[:last])) {
		return Export{}, errors.New("the files are not those that SHA256SUMS lists")
	}
	var x Export
	for _, f := range files[:last] {
		if err := x.take(f); err != nil {
			return Export{}, fmt.Errorf("%s: %w", f.name, err)
		}
	}
	return x, nil
}

// take adds one file to the export.
func (x *Export) take(f file) error {
	dir, name, _ := strings.Cut(f.name, "/")
	switch {
	case f.name == readmeFile:
	case f.name == trustFile:
		x.Trust = f.data
	case f.name == sessionFile:
		entries, _, err := parseLines(f.data)
		if err != nil {
			return err
		}
		x.Enrolments = entries
		if len(entries) > 0 && predicateType(entries[0]) == SessionType {
			x.Closing, x.Enrolments = &entries[0], entries[1:]
		}
	case dir == "receipts" && name == fmt.Sprintf("%06d.estover-receipt", len(x.Receipts)+1):
		r, err := ParseReceipt(f.data)
		if err != nil {
			return err
		}
		x.Receipts = append(x.Receipts, r)
	case dir == "disclosed":
		var n int
		number, of, _ := strings.Cut(name, "/")
		if _, err := fmt.Sscanf(number, "%06d", &n); err != nil || n < 1 || n > len(x.Receipts) {
			return errors.New("belongs to no receipt")
		}
		d := Disclosure{Name: of, Octets: f.data}
		if !plain(of) {
			if len(f.data) < len(d.Salt) {
				return errors.New("is too short to begin with a salt")
			}
			d.Salt, d.Octets = Salt(f.data), f.data[len(d.Salt):]
		}
		if err := d.check(); err != nil {
			return err
		}
		r := &x.Receipts[n-1]
		r.Disclosures = append(r.Disclosures, d)
	case dir == "bundles" && name == Sum(f.data).String():
		x.Bundles = append(x.Bundles, f.data)
	default:
		return errors.New("does not belong in an export")
	}
	return nil
}

// predicateType is what the entry's statement claims to be, unverified.
func predicateType(e Entry) string {
	b, err := e.Envelope.DecodeB64Payload()
	if err != nil {
		return ""
	}
	s, err := ParseStatement(b)
	if err != nil {
		return ""
	}
	return s.Predicate.Type()
}

// A file is one file of a ZIP.
type file struct {
	name string
	data []byte
}

// zipped writes a ZIP in one form only: nothing compressed, every time the
// first of January 1980, no comments or extra fields. The standard library's
// writer is not used, since its output may change from one release to the
// next, and an old export has to verify for as long as it is kept.
func zipped(files []file) ([]byte, error) {
	var local, central []byte
	if len(files) > maxFiles {
		return nil, fmt.Errorf("a ZIP cannot hold %d files", len(files))
	}
	for _, f := range files {
		if len(f.name) > math.MaxUint16 || len(local)+len(f.data) > math.MaxUint32/2 {
			return nil, errors.New("the export does not fit into a ZIP")
		}
		offset := uint32(len(local))
		var common []byte // what both headers have, APPNOTE.TXT 4.3.7 and 4.3.12
		common = le16(common, 20, 0, 0, 0, 1<<5|1)
		common = le32(common, crc32.ChecksumIEEE(f.data), uint32(len(f.data)), uint32(len(f.data)))
		common = le16(common, uint16(len(f.name)), 0)

		local = le32(local, 0x04034b50)
		local = append(append(append(local, common...), f.name...), f.data...)

		central = le32(central, 0x02014b50)
		central = append(le16(central, 20), common...)
		central = le16(central, 0, 0, 0)
		central = append(le32(central, 0, offset), f.name...)
	}
	end := le32(nil, 0x06054b50)
	end = le16(end, 0, 0, uint16(len(files)), uint16(len(files)))
	end = le32(end, uint32(len(central)), uint32(len(local)))
	end = le16(end, 0)
	return append(append(local, central...), end...), nil
}

func le16(b []byte, vs ...uint16) []byte {
	for _, v := range vs {
		b = binary.LittleEndian.AppendUint16(b, v)
	}
	return b
}

func le32(b []byte, vs ...uint32) []byte {
	for _, v := range vs {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return b
}

// unzipped reads what zipped wrote, and refuses anything else.
func unzipped(data []byte) ([]file, error) {
	r, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return nil, err
	}
	var files []file
	for _, f := range r.File {
		if f.Method != zip.Store || f.UncompressedSize64 > uint64(len(data)) {
			return nil, fmt.Errorf("%q is compressed", f.Name)
		}
		rc, err := f.Open()
		if err != nil {
			return nil, err
		}
		b, err := io.ReadAll(rc)
		rc.Close()
		if err != nil {
			return nil, err
		}
		files = append(files, file{f.Name, b})
	}
	if again, err := zipped(files); err != nil || !bytes.Equal(again, data) {
		return nil, errors.New("the ZIP has a form that an export never has")
	}
	return files, nil
}
