//go:build !unix

package audit

import "os"

// lockFile opens the file; this system has no lock that ends with the process.
func lockFile(name string) (*os.File, error) {
	return os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
}
