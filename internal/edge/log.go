package edge

import (
	"bytes"
	"io"
	"log/slog"
)

// StandardLog is where the standard library's own log must go in a program
// that handles secrets ([log.SetOutput]). net/http writes there, and nowhere
// else, the beginning of an answer that nobody asked for, and an upstream may
// put anything into that. What is quoted is therefore cut off (gateway.md, C12).
func StandardLog(logger *slog.Logger) io.Writer { return standardLog{logger} }

type standardLog struct{ logger *slog.Logger }

// Write logs one line, up to what it quotes.
func (l standardLog) Write(p []byte) (int, error) {
	line := bytes.TrimRight(p, "\n")
	if quote := bytes.IndexAny(line, "\"'`"); quote >= 0 {
		line = append(line[:quote:quote], "…"...)
	}
	l.logger.Debug("the standard library says: " + string(line[:min(len(line), 200)]))
	return len(p), nil
}
