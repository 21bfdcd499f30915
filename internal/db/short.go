package db

import "strings"

// Short is a text of somebody else's, an error of a target for one, as it is kept
// beside a row: at most 500 bytes, and nothing that an engine would refuse the row for.
func Short(text string) string {
	const most = 500
	text = strings.ToValidUTF8(strings.ReplaceAll(text, "\x00", ""), "\uFFFD")
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "")
	}
	return text
}
