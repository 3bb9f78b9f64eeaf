package policy

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

func grantText(name string) string {
	return "apiVersion: bailment/v1\nkind: Grant\nmetadata: {name: " + name + "}\nspec:\n  actions: [secret.read]\n  identities: [/human/alice]\n  secrets: [db/a, db/b/*]\n  purposes: [x]\n"
}

func TestWithoutGrants(t *testing.T) {
	a, b, c := grantText("a"), grantText("b"), grantText("c")
	about := "apiVersion: bailment/v1\nkind: Grant\nmetadata:\n  name: d\n  description: |\n    text\n    --- no marker\nspec: {actions: [secret.list], identities: [/human/alice], secrets: [db/a]}\n"
	for name, test := range map[string]struct{ text, without, want string }{
		"the only one":            {a, "a", ""},
		"the first":               {a + "---\n" + b, "a", "---\n" + b},
		"the last":                {a + "---\n" + b, "b", a},
		"one between":             {a + "---\n" + b + "---\n" + c, "b", a + "---\n" + c},
		"two":                     {a + "---\n" + b + "---\n" + c, "a c", "---\n" + b},
		"all":                     {a + "---\n" + b, "a b", ""},
		"with a comment":          {"# of all\n" + a + "--- # b\n# of b\n" + b + "---\n" + c, "b", "# of all\n" + a + "---\n" + c},
		"with carriage returns":   {strings.ReplaceAll(a+"---\n"+b, "\n", "\r\n"), "b", strings.ReplaceAll(a, "\n", "\r\n")},
		"beside dashes in a text": {about + "---\n" + b, "b", about},
		"none":                    {a, "", a},
		"one that is not":         {a, "z", a},
	} {
		t.Run(name, func(t *testing.T) {
			files := maps.Clone(bare(t))
			files["grants/x.yaml"] = []byte(test.text)
			before := maps.Clone(files)
			out, err := WithoutGrants(files, strings.Fields(test.without))
			if err != nil {
				t.Fatal(err)
			}
			got, there := out["grants/x.yaml"]
			if string(got) != test.want || there != (test.want != "") {
				t.Errorf("left:\n%s\nwant:\n%s", got, test.want)
			}
			delete(out, "grants/x.yaml")
			delete(before, "grants/x.yaml")
			if !slices.Equal(out.Paths(), before.Paths()) || string(files["grants/x.yaml"]) != test.text {
				t.Error("it changed something else")
			}
		})
	}
}

func TestMissingLine(t *testing.T) {
	prog := mustCompile(t, with(t,
		"Grant a actions: [secret.list], identities: [/human/alice, /workload/payments-api], secrets: [db/password]", "Grant no effect: deny, actions: [secret.read], identities: [/human/alice], secrets: [db/password]"))
	there := []Line{{"a", "/human/alice", "db/password"}, {"a", "/workload/payments-api", "db/password"}}
	if l, missing := prog.MissingLine(there); missing {
		t.Errorf("%v is missing", l)
	}
	for _, l := range []Line{{"b", "/human/alice", "db/password"}, {"a", "/human/*", "db/password"}, {"a", "/human/alice", "db/*"}, {"a", "/human/alice", "*"}, {"no", "/human/alice", "db/password"}, {}} {
		if got, missing := prog.MissingLine(append(there, l)); !missing || got != l {
			t.Errorf("%v is there", l)
		}
	}
}
