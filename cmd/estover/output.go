package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// show prints v as JSON if that was asked for, and as the table otherwise.
func (s *settings) show(w io.Writer, v any, print func(t *table)) error {
	if s.output == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return e.Encode(v)
	}
	var b bytes.Buffer
	t := &table{w: tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)}
	print(t)
	if err := t.w.Flush(); err != nil {
		return err
	}
	for line := range strings.Lines(b.String()) {
		if _, err := fmt.Fprintln(w, strings.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	return nil
}

// A table lines up its columns.
type table struct{ w *tabwriter.Writer }

// row adds a line. A cell never breaks the line or the terminal: what is not
// printable is shown as a question mark.
func (t *table) row(cells ...any) {
	text := make([]string, len(cells))
	for i, c := range cells {
		text[i] = cell(c)
	}
	fmt.Fprintln(t.w, strings.Join(text, "\t"))
}

// pairs prints the fields of one thing, a line each; empty ones are left out.
func (t *table) pairs(kv ...any) {
	for i := 0; i+1 < len(kv); i += 2 {
		if v := cell(kv[i+1]); v != "" {
			t.row(fmt.Sprint(kv[i])+":", v)
		}
	}
}

func cell(v any) string {
	var s string
	switch v := v.(type) {
	case time.Time:
		if !v.IsZero() {
			s = v.Local().Format("2006-01-02 15:04:05")
		}
	case []string:
		s = strings.Join(v, ", ")
	default:
		s = fmt.Sprint(v)
	}
	return printable(s)
}

// printable keeps control characters of strangers from the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0) || (r >= 0x202a && r <= 0x202e) || (r >= 0x2066 && r <= 0x2069) {
			return '?'
		}
		return r
	}, s)
}
