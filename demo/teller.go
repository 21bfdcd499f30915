package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"estover.dev/demo/story"
)

// A teller prints the story.
type teller struct {
	ctx         context.Context // ends the waiting
	w           io.Writer
	interactive bool // somebody sits there
	colour      bool
	slow        bool // leave time for reading
	over        bool // the verdict has been printed
	listing     bool // the last line was a command or its output
}

// newTeller looks who is listening.
func newTeller(ctx context.Context) *teller {
	ci := os.Getenv("CI")
	tty := terminal(os.Stdout)
	return &teller{
		ctx: ctx, w: os.Stdout,
		interactive: tty && terminal(os.Stdin) && (ci == "" || ci == "0" || ci == "false"),
		colour:      tty && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb",
	}
}

// terminal reports whether a file is a device for characters that is not the
// null device, which is near enough to a terminal.
func terminal(f *os.File) bool {
	info, err := f.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull)
	if err != nil {
		return true
	}
	a, ok1 := info.Sys().(*syscall.Stat_t)
	b, ok2 := null.Sys().(*syscall.Stat_t)
	return !ok1 || !ok2 || a.Rdev != b.Rdev
}

// Escape sequences of terminals.
const (
	bold  = "1"
	dim   = "2"
	red   = "1;31"
	green = "1;32"
	cyan  = "36"
)

func (t *teller) paint(colour, text string) string {
	if !t.colour {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// Where lines end, in characters: those of paragraphs and those of outputs.
const (
	paragraphWidth = 78
	outputWidth    = 120
)

func (t *teller) title(text string) {
	t.listing = false
	fmt.Fprintf(t.w, "\n%s\n", t.paint(bold, text))
	t.read(text)
}

func (t *teller) paragraph(text string) {
	t.listing = false
	fmt.Fprintf(t.w, "\n%s\n", wrap(text, paragraphWidth, ""))
	t.read(text)
}

// line tells a line of the story.
func (t *teller) line(l story.Line) {
	switch l.Kind {
	case story.Said:
		t.paragraph(l.Text)
	case story.Command:
		t.listing = true
		fmt.Fprintf(t.w, "\n  %s\n", t.paint(cyan, "$ "+l.Text))
		t.read(l.Text)
	case story.Output:
		if !t.listing {
			fmt.Fprintln(t.w)
		}
		t.listing = true
		for line := range strings.Lines(l.Text) {
			for _, part := range fold(strings.TrimRight(line, "\r\n"), outputWidth-4) {
				fmt.Fprintln(t.w, strings.TrimRight("    "+t.paint(dim, part), " "))
			}
			t.wait(25 * time.Millisecond)
		}
		t.wait(300 * time.Millisecond)
	}
}

// held and failed tell how a beat went.
func (t *teller) held(saw string) {
	fmt.Fprintf(t.w, "\n  %s\n", t.paint(green, "✓ "+wrap(saw, paragraphWidth, "    ")))
	t.read(saw)
}

func (t *teller) failed(err error) {
	fmt.Fprintf(t.w, "\n  %s\n", t.paint(red, "✗ This did not hold: "+err.Error()))
}

func (t *teller) verdict(held, of int) {
	colour := green
	if held < of {
		colour = red
	}
	fmt.Fprintf(t.w, "\n%s\n", t.paint(colour, fmt.Sprintf("demo: %d of %d beats held", held, of)))
}

// ask asks whoever sits at the terminal. Enter alone is yes.
func (t *teller) ask(question string) bool {
	t.listing = false
	fmt.Fprintf(t.w, "\n  %s ", t.paint(bold, question+" [Y/n]"))
	said := make(chan string, 1)
	go func() {
		line, err := bufio.NewReader(os.Stdin).ReadString('\n')
		if err != nil {
			line = "n"
		}
		said <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case line := <-said:
		return line == "" || line == "y" || line == "yes"
	case <-t.ctx.Done():
		return false
	}
}

// commands lists commands, each with a few words about it.
func (t *teller) commands(pairs ...string) {
	fmt.Fprintln(t.w)
	for i := 0; i < len(pairs); i += 2 {
		fmt.Fprintf(t.w, "  %s\n      %s\n", t.paint(cyan, pairs[i]), t.paint(dim, pairs[i+1]))
	}
}

// read leaves the time that it takes to read a text.
func (t *teller) read(text string) {
	t.wait(min(max(time.Duration(utf8.RuneCountInString(text))*9*time.Millisecond, 250*time.Millisecond), 2*time.Second))
}

func (t *teller) wait(d time.Duration) {
	if !t.slow {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.ctx.Done():
	}
}

// fold breaks a long line of an output where it has a space, or anywhere.
func fold(line string, width int) []string {
	var parts []string
	rest := []rune(line)
	indent := line[:len(line)-len(strings.TrimLeft(line, " "))] + "    "
	for len(rest) > width {
		at := width
		for at > width/2 && rest[at] != ' ' {
			at--
		}
		if rest[at] != ' ' {
			at = width
		}
		parts = append(parts, strings.TrimRight(string(rest[:at]), " "))
		rest = []rune(indent + strings.TrimLeft(string(rest[at:]), " "))
	}
	return append(parts, string(rest))
}

// wrap breaks a text into lines; those after the first begin with the indent.
func wrap(text string, width int, indent string) string {
	var b strings.Builder
	column := 0
	for _, word := range strings.Fields(text) {
		n := utf8.RuneCountInString(word)
		switch {
		case column == 0:
		case column+1+n > width:
			b.WriteString("\n" + indent)
			column = len(indent)
		default:
			b.WriteByte(' ')
			column++
		}
		b.WriteString(word)
		column += n
	}
	return b.String()
}
