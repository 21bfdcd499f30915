// Package edge is what every HTTP door shares: how a request is taken from the
// wire before anybody decides about it, and how Estover itself goes out to
// other systems.
//
// On the way in there is one reading of everything. A head that two parsers
// could read differently is not repaired but refused: [Strict] watches the
// bytes of a connection before net/http sees them, [ParseHost] knows one
// spelling of a host, [ParsePath] one of a path, and [CheckHead] bounds what is
// left. What policy has seen is then also what is sent on. Where a request came
// from is found out once, by [Front], and who sends it by [Callers].
//
// On the way out every address is checked where it is dialled, after the name
// was resolved ([Dialer]), so that a name which points to a private address, at
// once or at the second look, leads nowhere. What Estover fetches for itself
// goes through [Fetcher].
package edge
