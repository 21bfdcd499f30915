package redact

// Needles lists the needles of a matcher, for the model that a test compares
// it with.
func Needles(m *Matcher) []string {
	var list []string
	for _, n := range m.needles {
		list = append(list, string(n.bytes))
	}
	return list
}
