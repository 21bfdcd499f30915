package estover_test

import (
	"regexp"
	"strings"
	"testing"

	"estover.dev"
)

func TestValidName(t *testing.T) {
	form := regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`)
	for _, s := range []string{
		"a", "0", "crm", "invoices-bot", "customer.read", "a_b", "a..b", strings.Repeat("a", 63),
		"", "-a", "a-", ".", "a.", "A", "a b", "a/b", "ä", "a\n", strings.Repeat("a", 64),
	} {
		if got, want := estover.ValidName(s), form.MatchString(s); got != want {
			t.Errorf("ValidName(%q) = %v, want %v", s, got, want)
		}
	}
}
