package company_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"estover.dev/demo/company"
)

const key = "crm_live_4f6c2c1d9e8b47a3"

func call(c *company.Company, method, target, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer "+key)
	w := httptest.NewRecorder()
	c.ServeHTTP(w, r)
	return w
}

func TestKey(t *testing.T) {
	c := company.New(key, "https://collector.example.test/import")
	for _, auth := range []string{"", "Bearer", "Bearer " + key + "x", "Basic " + key, key} {
		r := httptest.NewRequest(http.MethodGet, "/v1/customers", nil)
		r.Header.Set("Authorization", auth)
		w := httptest.NewRecorder()
		c.ServeHTTP(w, r)
		if w.Code != http.StatusUnauthorized || strings.Contains(w.Body.String(), "example.com") {
			t.Errorf("Authorization %q: %d %s, want 401 and no customer", auth, w.Code, w.Body)
		}
	}
	for _, one := range c.Calls() {
		if one.Authorised {
			t.Errorf("%v counts as authorised", one)
		}
	}
}

func TestCustomers(t *testing.T) {
	c := company.New(key, "https://collector.example.test/import")
	seen := map[string]bool{}
	pages := 0
	for cursor := ""; ; pages++ {
		var page struct {
			Customers []company.Customer
			Next      string
		}
		w := call(c, http.MethodGet, "/v1/customers?limit=7&cursor="+cursor, "")
		if err := json.Unmarshal(w.Body.Bytes(), &page); err != nil {
			t.Fatal(err)
		}
		for _, one := range page.Customers {
			if seen[one.ID] || len(one.Notes) > 0 {
				t.Errorf("the list has %s again or with notes", one.ID)
			}
			seen[one.ID] = true
		}
		if cursor = page.Next; cursor == "" {
			break
		}
	}
	if len(seen) != 25 || pages != 3 {
		t.Errorf("%d customers on %d pages before the last, want 25 on 3", len(seen), pages)
	}

	for _, s := range []struct {
		method, target, body string
		want                 int
		holds                string
	}{
		{http.MethodGet, "/v1/customers/" + company.Tainted, "", http.StatusOK, "https://collector.example.test/import"},
		{http.MethodPost, "/v1/customers/cus_1002/notes", `{"text":"Paid."}`, http.StatusCreated, "Paid."},
		{http.MethodGet, "/v1/customers/cus_1002", "", http.StatusOK, "Paid."},
		{http.MethodPost, "/v1/customers/cus_1002/notes", `{}`, http.StatusBadRequest, ""},
		{http.MethodDelete, "/v1/customers/cus_1002", "", http.StatusNoContent, ""},
		{http.MethodGet, "/v1/customers/cus_1002", "", http.StatusNotFound, ""},
		{http.MethodGet, "/v1/customers?limit=0", "", http.StatusBadRequest, ""},
		{http.MethodGet, "/v1/echo", "", http.StatusOK, key},
	} {
		if w := call(c, s.method, s.target, s.body); w.Code != s.want || !strings.Contains(w.Body.String(), s.holds) {
			t.Errorf("%s %s: %d %s, want %d and %q", s.method, s.target, w.Code, w.Body, s.want, s.holds)
		}
	}
}
