//go:build !unix

package main

import "os"

// killSwitch hears nothing: there is no such signal here.
func killSwitch() <-chan os.Signal { return nil }
