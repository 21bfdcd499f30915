//go:build !linux

package main

// hide does what can be done on Linux alone (docs/LIMITATIONS.md).
func hide() {}
