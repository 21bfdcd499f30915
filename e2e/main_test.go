// Package e2e tests the program from outside: what a user, an agent, an
// upstream or a verifier sees of it, and nothing else.
package e2e

import (
	"testing"

	"estover.dev/e2e/e2etest"
)

func TestMain(m *testing.M) { e2etest.Main(m) }
