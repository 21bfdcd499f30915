package policy

import (
	"strings"
	"sync"

	"github.com/open-policy-agent/opa/v1/ast"
)

// builtins are the functions that a policy may call: those that give the same
// answer for the same arguments and touch nothing outside. None of them reads
// a network, a clock, a random source, the environment or the runtime, so that
// an answer can be cached and last month's decisions can be made again.
var builtins = strings.Fields(`
	abs all and any array.concat array.flatten array.reverse array.slice assign
	base64.decode base64.encode base64.is_valid base64url.decode base64url.encode base64url.encode_no_pad
	bits.and bits.lsh bits.negate bits.or bits.rsh bits.xor cast_array cast_boolean cast_null cast_object
	cast_set cast_string ceil concat contains count crypto.sha256 div endswith eq equal floor format_int
	glob.match glob.quote_meta graph.reachable gt gte hex.decode hex.encode indexof indexof_n
	internal.member_2 internal.member_3 internal.print internal.template_string internal.test_case
	intersection is_array is_boolean is_null is_number is_object is_set is_string
	json.filter json.is_valid json.marshal json.patch json.remove json.unmarshal lower lt lte max min minus mul neq
	net.cidr_contains net.cidr_contains_matches net.cidr_expand net.cidr_intersects net.cidr_is_valid net.cidr_merge
	numbers.range numbers.range_step object.filter object.get object.keys object.remove object.subset object.union object.union_n
	or plus print product regex.find_n regex.is_valid regex.match regex.replace regex.split rem replace round
	semver.compare semver.is_valid set_diff sort split sprintf startswith strings.any_prefix_match
	strings.any_suffix_match strings.count strings.render_template strings.replace_n strings.reverse substring sum
	to_number trim trim_left trim_prefix trim_right trim_space trim_suffix type_name union units.parse units.parse_bytes
	upper urlquery.decode urlquery.decode_object urlquery.encode urlquery.encode_object
	walk
`)

// capabilities are what the compiler lets a policy use.
var capabilities = sync.OnceValue(func() *ast.Capabilities {
	c := ast.CapabilitiesForThisVersion()
	all := c.Builtins
	c.Builtins = nil
	for _, b := range all {
		if contains(builtins, b.Name) {
			c.Builtins = append(c.Builtins, b)
		}
	}
	c.AllowNet = []string{}
	return c
})
