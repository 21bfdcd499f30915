package main

import (
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
)

// The exit codes of every command. `estover run` ends with the code of the
// program that it ran instead.
const (
	exitFailed      = 1 // it was tried and did not succeed; also a verification that found something wrong
	exitUsage       = 2 // the command line itself is wrong
	exitRefused     = 3 // policy, or missing rights, said no
	exitNotFound    = 4 // there is no such thing
	exitUnavailable = 5 // the server or its database does not answer; try again
)

// An exitCode ends the program with a code when everything has been said.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

// A usageError is a mistake in the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// codeOf is the exit code of an error.
func codeOf(err error) int {
	if err == nil {
		return 0
	}
	var usage usageError
	if errors.As(err, &usage) {
		return exitUsage
	}
	if missing.MatchString(err.Error()) {
		return exitUsage
	}
	var p *problem
	if errors.As(err, &p) {
		switch p.Status {
		case http.StatusUnauthorized, http.StatusForbidden:
			return exitRefused
		case http.StatusNotFound:
			return exitNotFound
		case http.StatusServiceUnavailable, http.StatusBadGateway, http.StatusGatewayTimeout, http.StatusTooManyRequests:
			return exitUnavailable
		}
	}
	var down *unreachable
	if errors.As(err, &down) {
		return exitUnavailable
	}
	return exitFailed
}

// sentence is an error as its reader wants it: what went wrong and, after it,
// what to do.
func sentence(err error) string {
	var usage usageError
	if errors.As(err, &usage) {
		return usage.Error() + tryHelp
	}
	if m := missing.FindStringSubmatch(err.Error()); m != nil {
		return "the command needs --" + strings.ReplaceAll(strings.Trim(m[1], `"`), `", "`, " and --") + tryHelp
	}
	return err.Error()
}

const tryHelp = "\nTry --help after the command to see what it takes."

// missing is how the library says that a flag was left out. It has no type for
// that.
var missing = regexp.MustCompile(`^required flag\(s\) (".*") not set$`)

// atMostOne is a command that takes an argument or none.
func atMostOne(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > 1 {
			return usageError{fmt.Errorf("%s takes one argument at most, %s, but got %d", cmd.CommandPath(), what, len(args))}
		}
		return nil
	}
}
