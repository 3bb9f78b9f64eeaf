package azure

import (
	"strings"
	"testing"
)

// A resource's ID is taken in one form, with names as long as Azure makes them.
func TestResource(t *testing.T) {
	const sub = "8d10da13-8125-4ba9-a717-bf7490507b3d"
	id := func(group, namespace, kind, name, rest string) string {
		return "/subscriptions/" + sub + "/resourceGroups/" + group + "/providers/" + namespace + "/" + kind + "/" + name + rest
	}
	long := strings.Repeat
	for name, c := range map[string]struct {
		id string
		ok bool
	}{
		"a machine":                {id("Web", "Microsoft.Compute", "virtualMachines", "web-1", ""), true},
		"in a scale set":           {id("Web", "Microsoft.Compute", "virtualMachineScaleSets", "web_1.a", "/virtualMachines/17"), true},
		"names in other scripts":   {id("gruppe-Ä(1)", "Microsoft.Compute", "virtualMachines", "機械-٣", ""), true},
		"the longest names":        {id(long("ä", 90), long("a", 64), long("b", 64), long("ß", 128), "/virtualmachines/"+long("9", 10)), true},
		"a longer group":           {id(long("ä", 91), "a", "b", "c", ""), false},
		"a longer namespace":       {id("a", long("a", 65), "b", "c", ""), false},
		"a longer type":            {id("a", "a", long("b", 65), "c", ""), false},
		"a longer name":            {id("a", "a", "b", long("c", 129), ""), false},
		"a longer number":          {id("a", "a", "b", "c", "/virtualmachines/"+long("9", 11)), false},
		"no number":                {id("a", "a", "b", "c", "/virtualmachines/"), false},
		"a number of letters":      {id("a", "a", "b", "c", "/virtualmachines/1a"), false},
		"a number of other digits": {id("a", "a", "b", "c", "/virtualmachines/٣"), false},
		"something else behind it": {id("a", "a", "b", "c", "/extensions/1"), false},
		"more behind it":           {id("a", "a", "b", "c", "/virtualmachines/1/extensions/x"), false},
		"an end that is open":      {id("a", "a", "b", "c", "/"), false},
		"a line after it":          {id("a", "a", "b", "c", "\n"), false},
		"no group":                 {id("", "a", "b", "c", ""), false},
		"no namespace":             {id("a", "", "b", "c", ""), false},
		"no type":                  {id("a", "a", "", "c", ""), false},
		"no name":                  {id("a", "a", "b", "", ""), false},
		"parentheses in a name":    {id("a", "a", "b", "c(1)", ""), false},
		"a digit in the type":      {id("a", "a", "b2", "c", ""), false},
		"bytes that are no text":   {id("a", "a", "b", "c\xff", ""), false},
		"before it":                {"x" + id("a", "a", "b", "c", ""), false},
		"another word":             {strings.Replace(id("a", "a", "b", "c", ""), "providers", "provider", 1), false},
		"another subscription":     {strings.Replace(id("a", "a", "b", "c", ""), sub, sub[1:]+"-", 1), false},
		"none":                     {"", false},
	} {
		if r, ok := parseResource(c.id); ok != c.ok {
			t.Errorf("%s: %v %+v", name, ok, r)
		}
	}
	r, _ := parseResource(id("Web", "Microsoft.Compute", "virtualMachineScaleSets", "Set", "/virtualMachines/17"))
	if r != (resource{sub, "web", kindScaleSet, "set"}) {
		t.Errorf("%+v", r)
	}
}
