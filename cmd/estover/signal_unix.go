//go:build unix

package main

import (
	"os"
	"os/signal"
	"syscall"
)

// killSwitch hears the signal that means: contain everything.
func killSwitch() <-chan os.Signal {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGUSR1)
	return c
}
