package mount

import "testing"

// FuzzCook reads policies of passwords. One that is taken makes passwords that fit
// it, or says that it finds none.
func FuzzCook(f *testing.F) {
	f.Add(`length = 20 rule "charset" { charset = "abc" min-chars = 2 }`)
	f.Add(`{"length": 8, "rule": [{"charset": {"charset": "01"}}]}`)
	f.Add(`rule "charset" { charset = "a" } rule { }`)
	f.Fuzz(func(t *testing.T, text string) {
		r, err := cook(text)
		if err != nil {
			return
		}
		if r.length < shortest || r.length > longest || len(r.charset) < 2 {
			t.Fatalf("%q is %+v", text, r)
		}
		for _, rule := range r.rules {
			if len(rule.chars) < len(r.charset)/2 {
				return // it may take ten thousand draws
			}
		}
		s, err := r.make()
		if err == nil && !r.fits([]rune(string(s.Reveal()))) {
			t.Errorf("%q makes a password that does not fit", text)
		}
	})
}
