package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// What is at its limit is taken whole, and one more of anything is refused.
func TestNotifyLimits(t *testing.T) {
	address := func(i int) string {
		return fmt.Sprintf("%s%02d@%s.example", strings.Repeat("a", maxLocalPart-2), i, strings.Repeat("b", 60))
	}
	compile := func(targets, addresses int, to string) (*Program, error) {
		var list []string
		for i := range addresses {
			list = append(list, address(i))
		}
		if to != "" {
			list = append(list, to)
		}
		files := maps.Clone(bare(t))
		var b strings.Builder
		b.WriteString("apiVersion: bailment/v1\nkind: Environment\nmetadata: {name: payments-dev}\nspec:\n  class: development\n  notify:\n")
		for i := range targets {
			fmt.Fprintf(&b, "    - {name: t%d, on: [revocation, change.proposed], mail: {to: [%s]}}\n", i, strings.Join(list, ", "))
		}
		files["environment.yaml"] = []byte(b.String())
		return compileFiles(files)
	}
	p, err := compile(maxTargets, maxAddresses, "")
	if err != nil {
		t.Fatal(err)
	}
	all := p.Environment().Notify
	if len(all) != maxTargets || len(all[0].To) != maxAddresses || !slices.Equal(all[0].On, []Topic{TopicProposed, TopicRevocation}) || all[0].Wants(TopicStep) {
		t.Errorf("%+v", all[0])
	}
	for what, f := range map[string]func() (*Program, error){
		"a target":     func() (*Program, error) { return compile(maxTargets+1, 1, "") },
		"an address":   func() (*Program, error) { return compile(1, maxAddresses+1, "") },
		"a local part": func() (*Program, error) { return compile(1, 1, strings.Repeat("a", maxLocalPart+1)+"@b.example") },
		"a domain": func() (*Program, error) {
			return compile(1, 1, "a@"+strings.Repeat("b.", maxAddress/2)+"example")
		},
	} {
		if _, err := f(); err == nil {
			t.Errorf("%s more is taken", what)
		}
	}
}
