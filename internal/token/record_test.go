package token

import (
	"encoding/json"
	"testing"
	"time"
)

func TestRecordIsWrittenAsJSON(t *testing.T) {
	for _, r := range []*record{
		{},
		{ID: "tok_1", GrantType: Own, Client: "agt_<1>", Method: SecretBasic, Credential: "crd_1", Audience: []string{"https://a.example/?a&b"}, Scopes: []string{"a", "b"}, Grant: "gnt_1", Expires: time.UnixMicro(1700000000123450).UTC()},
		{Client: "agt_1", Handed: "tok_2", From: "agent:agt_2", How: ByEdge, Trust: "git\"hub", Issuer: "https://a.example", Subject: "repo:a/b", Assertion: "<j>"},
		{Client: "agt_1", Audience: []string{"https://a.example"}, Server: "https://other.example", Scopes: []string{"a"}},
		{Client: "agt_1", HandedType: IDTokenType, From: "agent:agt_1", How: ByOwner},
		{Client: "agt_1", Key: "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I", Cert: "x"},
		{Client: "agt_1", Scopes: []string{"a"}, Expires: time.Unix(1700000000, 0).UTC()},
		{Client: "agt_1", Identified: true, Expires: time.Unix(1700000000, 0).UTC()},
	} {
		want, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if got := r.AppendJSON(nil); string(got) != string(want) {
			t.Errorf("written as %s, want %s", got, want)
		}
	}
}
