package plan

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// Grants that name tens of thousands of purposes, each of which thousands of prohibitions are about, are not folded into one another: the plan
// says that it is not whole, and nobody is taken to be none the wider, nor duties to be separated.
func TestTooManyPurposes(t *testing.T) {
	files := maps.Clone(exampleFiles(t))
	for i := range 500 {
		place := fmt.Sprintf("grants/z%d.yaml", i/200)
		var purposes []string
		for j := range 16 {
			purposes = append(purposes, fmt.Sprintf("p%d-%d", i, j))
		}
		files[place] = append(files[place], grantYAML(fmt.Sprintf("d%d", i), fmt.Sprintf("effect: deny, actions: [secret.read], identities: [/*], secrets: ['*'], when: 'request.purpose == \"x%d\"'", i))...)
		files[place] = append(files[place], grantYAML(fmt.Sprintf("a%d", i), "actions: [secret.read], identities: [/workload/*], secrets: ['*'], purposes: ["+strings.Join(purposes, ", ")+"]")...)
	}
	files["grants/z.yaml"] = []byte(grantYAML("w", "actions: [secret.write], identities: [/workload/*], secrets: ['*']"))
	before, after := edited(t), compiled(t, files)
	p := Compare(before, after)
	if !p.Partial || !slices.ContainsFunc(p.Access, func(l Line) bool { return l.Unexamined }) {
		t.Errorf("partial: %v, with %d lines", p.Partial, len(p.Access))
	}
	if list := p.Widens("/workload/payments-api"); len(list) == 0 {
		t.Error("nothing is widened")
	}
	if !slices.ContainsFunc(Separation(after), func(b Breach) bool { return b.Rule == RuleUnexamined }) {
		t.Error("duties are separated")
	}
}
