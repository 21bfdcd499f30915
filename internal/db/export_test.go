package db

// Waiting is how much work waits for the writer of SQLite.
func Waiting(d *DB) int { return len(d.writer.queue) + len(d.writer.first) }

// Reading is how many connections there are for who reads from SQLite.
func Reading(d *DB) int { return d.pool.Stats().OpenConnections }

// WholeMicros is what [DB.Now] makes of the clock's time.
var WholeMicros = wholeMicros
