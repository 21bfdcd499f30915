package policy

// Facts are what Estover has found out about a request before a policy sees
// it: yes and no, and words from short lists; no numbers and no free text. The
// same facts always give the same answer, so that an answer can be cached,
// explained, and asked for again of another policy.
//
// The set is closed. docs/reference/policy-input.md says what each fact means,
// and input.schema.json lets the compiler find a misspelt one. A fact that
// nobody computes yet has the value that [Unremarkable] gives it, and check
// warns of a rule that waits for another.
type Facts struct {
	AgentTier       string `json:"agent_tier"`       // low, medium or high: how much harm the agent can do
	ApprovalOK      bool   `json:"approval_ok"`      // a person approved this very request
	ArgsInScope     bool   `json:"args_in_scope"`    // no: a grant covers the action, but not these parameters of its path
	AuthStrength    string `json:"auth_strength"`    // secret, key or bound: how the caller proved who it is
	Bound           string `json:"bound"`            // process, user or none: to what the session is bound, as its launcher says
	Budget          string `json:"budget"`           // ok, near or exceeded: how much of the grant's budgets is used up
	Bulk            string `json:"bulk"`             // one, some or many records
	ChangeFreeze    bool   `json:"change_freeze"`    // changes are frozen
	Delegated       bool   `json:"delegated"`        // the caller acts for somebody else
	Destination     string `json:"destination"`      // internal, partner or public
	Duration        string `json:"duration"`         // none, short, usual or long: for how long something is asked for
	Elevation       string `json:"elevation"`        // none, pending or approved: whether somebody was asked to grant it
	Eligible        bool   `json:"eligible"`         // the agent has been given what it asks for already, to be activated
	Entitled        bool   `json:"entitled"`         // a live grant covers resource, action and class
	GrantKind       string `json:"grant_kind"`       // none, standing or elevated: the grant that covers it
	Handover        string `json:"handover"`         // none, own, audience or edge: how a token that is handed on came to who presents it
	HumanRoot       bool   `json:"human_root"`       // a person stands at the root of the chain
	InHours         bool   `json:"in_hours"`         // within the agent's working hours
	LabelConf       string `json:"label_conf"`       // the most sensitive class that the session has read
	LabelIntegrity  string `json:"label_integrity"`  // trusted, verified or untrusted: the least that it has read
	Novelty         string `json:"novelty"`          // none, resource, tool or destination: what is new to the agent
	Origin          string `json:"origin"`           // user, task, record, untrusted or none: where the arguments came from
	Own             bool   `json:"own"`              // the target belongs to the caller
	PII             string `json:"pii"`              // none, some or special: personal data in the request
	PlaceOK         bool   `json:"place_ok"`         // the request comes from a place where the agent may work
	PurposeOK       bool   `json:"purpose_ok"`       // the purpose is declared and, where a grant is needed, the grant's
	RecipientKnown  bool   `json:"recipient_known"`  // the recipient was named by the user or the task
	ResidencyOK     bool   `json:"residency_ok"`     // the data stays in its region
	RiskBand        string `json:"risk_band"`        // low, raised, high or critical: how risky the agent is held to be
	RuleOfTwo       bool   `json:"rule_of_two"`      // untrusted input, private data and an effect outside meet here
	SecretFound     bool   `json:"secret_found"`     // the request carries a secret where none belongs
	ServerTrusted   bool   `json:"server_trusted"`   // the server of the resource is trusted
	SpecialCategory bool   `json:"special_category"` // the resource holds special categories of personal data
	TaskBound       bool   `json:"task_bound"`       // the token is confined to tasks (authorization details of the type estover_task)
	ToolApproved    bool   `json:"tool_approved"`    // the definition of the tool is the approved one
	UnusedLong      bool   `json:"unused_long"`      // the grant has not been used for long
}

// Unremarkable are the facts of a request about which nothing is known that
// would speak for it or against it: no grant, no purpose, no risk.
var Unremarkable = Facts{
	AgentTier: "low", ArgsInScope: true, AuthStrength: "secret", Bound: "none", Budget: "ok", Bulk: "one",
	Destination: "internal", Duration: "none", Elevation: "none", GrantKind: "none", Handover: "none", InHours: true,
	LabelConf: "public", LabelIntegrity: "trusted", Novelty: "none", Origin: "none", PII: "none",
	PlaceOK: true, RecipientKnown: true, ResidencyOK: true, RiskBand: "low",
	ServerTrusted: true, ToolApproved: true,
}

// A fact is one member of [Facts], for those who go through all of them: the
// input, the explanation, the check of rules.
type fact struct {
	name   string
	flag   func(*Facts) *bool   // of a fact that is yes or no
	word   func(*Facts) *string // of a fact that is a word of the list
	list   []string
	live   bool   // computed for every request; otherwise always as in Unremarkable
	remedy string // what makes the fact true, said to whoever asks why
}

// facts lists every fact in the order of the input's JSON.
var facts = []fact{
	{name: "agent_tier", word: func(f *Facts) *string { return &f.AgentTier }, list: []string{"low", "medium", "high"}, live: true, remedy: "The agent's risk tier is set by its operator (estover apply)."},
	{name: "approval_ok", flag: func(f *Facts) *bool { return &f.ApprovalOK }, remedy: "A person approves the request."},
	{name: "args_in_scope", flag: func(f *Facts) *bool { return &f.ArgsInScope }, live: true, remedy: "The parameters of the path are those that the grant names, or another grant is asked for."},
	{name: "auth_strength", word: func(f *Facts) *string { return &f.AuthStrength }, list: []string{"secret", "key", "bound"}, live: true, remedy: "The agent proves who it is by a key (private_key_jwt), not by a secret that can be copied."},
	{name: "bound", word: func(f *Facts) *string { return &f.Bound }, list: []string{"process", "user", "none"}, live: true, remedy: "The session is opened by the launcher, which binds it to what it starts (estover run)."},
	{name: "budget", word: func(f *Facts) *string { return &f.Budget }, list: []string{"ok", "near", "exceeded"}, live: true, remedy: "Another grant is asked for, or an operator gives one with a larger budget."},
	{name: "bulk", word: func(f *Facts) *string { return &f.Bulk }, list: []string{"one", "some", "many"}, remedy: "Fewer records are asked for at once."},
	{name: "change_freeze", flag: func(f *Facts) *bool { return &f.ChangeFreeze }, remedy: "The freeze of changes ends."},
	{name: "delegated", flag: func(f *Facts) *bool { return &f.Delegated }, live: true, remedy: "The agent that holds the grant does it itself."},
	{name: "destination", word: func(f *Facts) *string { return &f.Destination }, list: []string{"internal", "partner", "public"}, live: true, remedy: "The resource says where it stands; its owner sets it (estover apply)."},
	{name: "duration", word: func(f *Facts) *string { return &f.Duration }, list: []string{"none", "short", "usual", "long"}, live: true, remedy: "It is asked for for a shorter time: short is an hour at most, usual is eight."},
	{name: "elevation", word: func(f *Facts) *string { return &f.Elevation }, list: []string{"none", "pending", "approved"}, live: true, remedy: "An elevation is asked for and approved."},
	{name: "eligible", flag: func(f *Facts) *bool { return &f.Eligible }, live: true, remedy: "An operator gives the agent a grant of the kind eligible (estover grant create --eligible)."},
	{name: "entitled", flag: func(f *Facts) *bool { return &f.Entitled }, live: true, remedy: "An operator gives the agent a grant for this resource and action (estover apply)."},
	{name: "grant_kind", word: func(f *Facts) *string { return &f.GrantKind }, list: []string{"none", "standing", "elevated"}, live: true, remedy: "The grant that covers the request is of this kind."},
	{name: "handover", word: func(f *Facts) *string { return &f.Handover }, list: []string{"none", "own", "audience", "edge"}, live: true, remedy: "The token is for whoever takes it up, or a rule of delegation names both agents."},
	{name: "human_root", flag: func(f *Facts) *bool { return &f.HumanRoot }, live: true, remedy: "A person hands the agent part of their own authority."},
	{name: "in_hours", flag: func(f *Facts) *bool { return &f.InHours }, remedy: "The agent works within its hours."},
	{name: "label_conf", word: func(f *Facts) *string { return &f.LabelConf }, list: []string{"public", "internal", "confidential", "restricted"}, remedy: "A session that has read nothing so sensitive does it."},
	{name: "label_integrity", word: func(f *Facts) *string { return &f.LabelIntegrity }, list: []string{"trusted", "verified", "untrusted"}, remedy: "A session that has read nothing untrusted does it."},
	{name: "novelty", word: func(f *Facts) *string { return &f.Novelty }, list: []string{"none", "resource", "tool", "destination"}, remedy: "The agent keeps to what it usually uses."},
	{name: "origin", word: func(f *Facts) *string { return &f.Origin }, list: []string{"user", "task", "record", "untrusted", "none"}, remedy: "The user or the task names the value."},
	{name: "own", flag: func(f *Facts) *bool { return &f.Own }, live: true, remedy: "The owner does it."},
	{name: "pii", word: func(f *Facts) *string { return &f.PII }, list: []string{"none", "some", "special"}, remedy: "The personal data is left out."},
	{name: "place_ok", flag: func(f *Facts) *bool { return &f.PlaceOK }, remedy: "The agent works from a place where it may."},
	{name: "purpose_ok", flag: func(f *Facts) *bool { return &f.PurposeOK }, live: true, remedy: "The session is opened for a purpose that the agent has declared and its grant names (estover run --purpose …)."},
	{name: "recipient_known", flag: func(f *Facts) *bool { return &f.RecipientKnown }, remedy: "The user or the task names the recipient."},
	{name: "residency_ok", flag: func(f *Facts) *bool { return &f.ResidencyOK }, remedy: "The data stays in its region."},
	{name: "risk_band", word: func(f *Facts) *string { return &f.RiskBand }, list: []string{"low", "raised", "high", "critical"}, live: true, remedy: "An operator sets the agent's risk down again (estover agent risk)."},
	{name: "rule_of_two", flag: func(f *Facts) *bool { return &f.RuleOfTwo }, remedy: "A session without untrusted input, or without private data, does it."},
	{name: "secret_found", flag: func(f *Facts) *bool { return &f.SecretFound }, remedy: "The secret is taken out of the request; the gateway adds what the resource needs."},
	{name: "server_trusted", flag: func(f *Facts) *bool { return &f.ServerTrusted }, remedy: "The server is trusted by its operator."},
	{name: "special_category", flag: func(f *Facts) *bool { return &f.SpecialCategory }, live: true, remedy: "The resource holds no special categories of personal data."},
	{name: "task_bound", flag: func(f *Facts) *bool { return &f.TaskBound }, live: true, remedy: "The agent asks for a token for this task alone (authorization_details of the type estover_task)."},
	{name: "tool_approved", flag: func(f *Facts) *bool { return &f.ToolApproved }, remedy: "A person approves the tool's changed definition."},
	{name: "unused_long", flag: func(f *Facts) *bool { return &f.UnusedLong }, live: true, remedy: "The grant is used, or restored (estover grant restore)."},
}

// valid reports whether every word of f belongs to its list.
func (f *Facts) valid() bool {
	for i := range facts {
		if facts[i].word == nil {
			continue
		}
		if !contains(facts[i].list, *facts[i].word(f)) {
			return false
		}
	}
	return true
}

func contains(list []string, s string) bool {
	for _, have := range list {
		if have == s {
			return true
		}
	}
	return false
}
