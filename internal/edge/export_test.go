package edge

// Check decides about one attempt to dial, for addresses that a test cannot
// have.
func Check(d *Dialer, network, address, host string, open Opening) error {
	return d.check(network, address, host, open)
}

// Scan follows the requests in the text and reports how many were complete, and
// whether all of it is good and ends with a request.
func Scan(text []byte, pieces int) (requests int, whole bool) {
	var s scanner
	for len(text) > 0 {
		n := min(max(1, pieces), len(text))
		for i := range n {
			before := s.state
			if s.scan(text[i:i+1]) == 0 {
				return requests, false
			}
			if s.state == requestLine && before != requestLine {
				requests++
			}
		}
		text = text[n:]
	}
	return requests, s.state == requestLine && len(s.line) == 0 && !s.cr
}

// ScanWhole is how much of the text is good when it comes in pieces of a size.
func ScanWhole(text []byte, size int) (good int, err error) {
	var s scanner
	for good < len(text) {
		piece := text[good:min(good+size, len(text))]
		n := s.scan(piece)
		good += n
		if n < len(piece) {
			return good, s.err
		}
	}
	return good, nil
}

// Authorization is how a caller's token is read.
var Authorization = authorization

// Place is how the URL of a proof is read.
var Place = place
