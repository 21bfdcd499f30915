package authzen

import (
	"net/http"

	"estover.dev"
)

// keysPath is where our public keys are, below an issuer.
const keysPath = "/oauth/jwks"

// Metadata is what a PEP finds out about us (AuthZEN, section 9.1). It names
// what there is and nothing else: a member without a value is left out (section
// 9.2.2).
type Metadata struct {
	Point       string   `json:"policy_decision_point"`
	Evaluation  string   `json:"access_evaluation_endpoint"`
	Evaluations string   `json:"access_evaluations_endpoint"`
	Subjects    string   `json:"search_subject_endpoint"`
	Resources   string   `json:"search_resource_endpoint"`
	Actions     string   `json:"search_action_endpoint"`
	Obligations []string `json:"supported_obligations"` // Profile for Obligations, section 6

	// Of the Access Request and Approval Profile (Discovery).
	Requests     string   `json:"access_request_endpoint"`
	Keys         string   `json:"jwks_uri"`
	Capabilities []string `json:"capabilities"`
}

// Metadata is the document of a tenant. Its identifier is the tenant's issuer,
// and the document is at the address that follows from that (section 9.2).
func (d *Door) Metadata(tenant estover.TenantID) Metadata {
	at := d.Issuer.Of(tenant)
	return Metadata{
		Point: at, Evaluation: at + evaluationPath, Evaluations: at + evaluationsPath,
		Subjects: at + subjectsPath, Resources: at + resourcesPath, Actions: at + actionsPath, Obligations: supported,
		Requests: at + requestsPath, Keys: at + keysPath, Capabilities: []string{capability},
	}
}

// metadata answers with the document.
func (d *Door) metadata(w http.ResponseWriter, r *http.Request, tenant estover.TenantID) {
	d.answer(w, &asking{Request: r, tenant: tenant}, http.StatusOK, d.Metadata(tenant))
}
