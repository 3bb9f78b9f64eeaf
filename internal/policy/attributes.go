package policy

import (
	"fmt"
	"strings"

	"cel.dev/cel-go/cel"
)

// attribute is a variable of conditions. The table is what they are compiled with, and what docs/reference/conditions.md is made of.
type attribute struct {
	name    string
	t       *cel.Type
	rules   bool   // also of identity rules: when there is no identity yet
	meaning string // as Markdown
	example string // which is true of what the page says is asked
}

func claimsType() *cel.Type { return cel.MapType(cel.StringType, cel.DynType) }

func attributes() []attribute {
	text := cel.StringType
	return []attribute{
		{varIDPath, text, false, "who asks, by path", `identity.path == "/workload/payments-api"`},
		{varIDSegments, cel.ListType(text), false, "the same, by its segments", `identity.segments[0] == "workload"`},
		{varIDEnv, text, false, "the environment's name", `identity.env == "payments-dev"`},
		{varClaims, claimsType(), true, "what the proof said of who asks; of a machine, job, process or operator, each method has [its own](attestation.md). In `when` and `require` of identity rules: of who would have the identity", `claims.unix.uid == 1000`},
		{varNodePath, text, true, "the machine that speaks for a workload, by path; empty if none does", `node.path.startsWith("/node/join-token/")`},
		{varNodeClaims, claimsType(), false, "what the newest proof of that machine said", `node_claims.name == "web-1"`},
		{varAction, text, false, "what is asked for", `request.action == "secret.read"`},
		{varSecret, text, false, "the secret that is asked for, by path", `request.secret.startsWith("db/")`},
		{varPurpose, text, false, "for what it is read; empty for other actions", `request.purpose in ["runtime", "migration"]`},
		{varSecretName, text, false, "the declaration in `secrets/` that governs it: its path, or the family `PREFIX/*`; empty if none does", `secret.name == "db/password"`},
		{varSecretType, text, false, "the type that it declares; empty if none does", `secret.type == "opaque"`},
		{varAssurance, cel.IntType, false, "how much the session's proof is worth, to be compared with `level.unbound`, `level.token`, `level.key`, `level.platform`, `level.hardware` and `level.measured`", `assurance >= level.token`},
		{varTime, cel.TimestampType, false, "when it is asked, in UTC, in whole milliseconds: the ledger's time, by which it is decided again in a replay", `time < timestamp("2027-01-01T00:00:00Z")`},
	}
}

// declarations are the attributes of a scope.
func declarations(ofRules bool) []attribute {
	var out []attribute
	for _, a := range attributes() {
		if a.rules || !ofRules {
			out = append(out, a)
		}
	}
	return out
}

// function is a function, macro or operator of conditions.
type function struct {
	names   []string // as the library calls them
	form    string
	meaning string
	example string
}

// functions are all that conditions may call. A test compares the table with the library.
func functions() []function {
	return []function{
		{[]string{"_==_", "_!=_"}, "`a == b`, `a != b`", "the same or not. Numbers of different types are compared by value; a claim that is not there can't be told", `claims.unix.uid == 1000 && claims.unix.gid != 0`},
		{[]string{"_<_", "_<=_", "_>_", "_>=_"}, "`a < b`, `a <= b`, `a > b`, `a >= b`", "order of numbers, texts, times and durations", `claims.unix.uid >= 1000`},
		{[]string{"_&&_", "_||_", "!_"}, "`a && b`, `a \\|\\| b`, `!a`", "and, or, not. What can't be told does not matter if the other side decides", `claims.unix.uid == 0 || !(request.purpose == "debug")`},
		{[]string{"_?_:_"}, "`a ? b : c`", "b if a, else c", `(claims.unix.uid == 0 ? "root" : "other") == "other"`},
		{[]string{"_in_", "@in", "in"}, "`a in list`, `key in map`", "whether it is one of them, or has the key", `"wheel" in claims.groups && "unix" in claims`},
		{[]string{"has"}, "`has(claims.a)`", "whether the claim is there. Without it, a condition on a claim that is not there can't be told: an allow grant does not allow, and a deny grant denies", `has(claims.unix) && !has(claims.kubernetes)`},
		{[]string{"_[_]"}, "`map[key]`, `list[0]`", "a value by key or place", `claims["unix"]["uid"] == 1000 && claims.groups[0] == "wheel"`},
		{[]string{"all", "exists", "exists_one"}, "`list.all(x, p)`, `list.exists(x, p)`, `list.exists_one(x, p)`", "whether p holds for all, any, exactly one of them (of a map: of its keys)", `claims.groups.exists(g, g == "wheel") && claims.groups.all(g, g != "sudo") && claims.groups.exists_one(g, g.startsWith("w"))`},
		{[]string{"map", "filter"}, "`list.map(x, e)`, `list.map(x, p, e)`, `list.filter(x, p)`", "e of each; of those for which p holds; those for which p holds", `claims.groups.filter(g, g != "wheel").size() == 1 && claims.groups.map(g, g == "wheel")[0]`},
		{[]string{"size"}, "`size(a)`, `a.size()`", "how many characters, items or keys", `size(claims.groups) == 2`},
		{[]string{"startsWith", "endsWith", "contains"}, "`a.startsWith(b)`, `a.endsWith(b)`, `a.contains(b)`", "parts of texts. A path needs its `/`: `/usr/bin` is also the beginning of `/usr/bin2/x`", `claims.process.path.startsWith("/usr/") && claims.process.path.endsWith("/payments-api") && claims.process.path.contains("/local/")`},
		{[]string{"matches"}, "`a.matches(re)`", "whether a part of the text fits a regular expression (RE2), which must be a literal; `^` and `$` for all of it", `node.path.matches("^/node/join-token/web-[0-9]+$")`},
		{[]string{"_+_"}, "`a + b`", "sums; texts and lists one after the other", `claims.unix.uid + 1 == 1001 && "/workload/" + "payments-api" == identity.path`},
		{[]string{"_-_", "-_", "_*_", "_/_", "_%_"}, "`a - b`, `-a`, `a * b`, `a / b`, `a % b`", "arithmetic. Overflow and division by zero can't be told", `claims.unix.uid % 2 == 0 && -claims.unix.uid == (0 - 2000) / 2 * 1`},
		{[]string{"timestamp", "duration"}, "`timestamp(\"2026-…\")`, `duration(\"90m\")`", "a time (RFC 3339), and a length of time", `time - timestamp("2026-01-01T00:00:00Z") > duration("90m")`},
		{[]string{"getFullYear", "getMonth", "getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear"}, "`t.getFullYear()`, `t.getMonth()`, `t.getDate()`, `t.getDayOfMonth()`, `t.getDayOfWeek()`, `t.getDayOfYear()`", "parts of a date, in UTC or in the zone that is named: `t.getDate(\"Europe/Vienna\")`. Months, days of the year and `getDayOfMonth` count from 0, `getDate` from 1, days of the week from Sunday, 0", `time.getDayOfWeek() in [1, 2, 3, 4, 5] && time.getFullYear() == 2026 && time.getMonth() == 0 && time.getDate() == 1 && time.getDayOfMonth() == 0 && time.getDayOfYear() == 0`},
		{[]string{"getHours", "getMinutes", "getSeconds", "getMilliseconds"}, "`t.getHours()`, `t.getMinutes()`, `t.getSeconds()`, `t.getMilliseconds()`", "parts of a time of day, likewise; of a duration, all of it in that unit, but for milliseconds, which are the part of a second", `time.getHours() >= 8 && time.getHours() < 18 && time.getMinutes() == 0 && time.getSeconds() == 0 && time.getMilliseconds() == 0`},
		{[]string{"int", "uint", "double", "string", "bool", "bytes"}, "`int(a)`, `uint(a)`, `double(a)`, `string(a)`, `bool(a)`, `bytes(a)`", "another type of the same value. What is no such value can't be told", `int("1000") == claims.unix.uid && uint(claims.unix.uid) == 1000u && double("0.5") < 1.0 && string(claims.unix.uid) == "1000" && bool("true") == (claims.unix.uid > 0) && size(bytes(identity.path)) == 22`},
		{[]string{"type", "dyn"}, "`type(a)`, `dyn(a)`", "the type of a value; the value without its type, so that it may be compared with any other", `type(claims.unix.uid) == int && dyn(claims.unix.uid) != "1000"`},
	}
}

// ConditionsReference is the page about conditions, as Markdown: every attribute and every function that there is.
func ConditionsReference() string {
	var b strings.Builder
	b.WriteString(`# Conditions

Grants and identity rules have conditions (` + "`when`, `require`" + `) in [CEL](https://cel.dev): expressions that are true or false. They are checked when the bundle is compiled:
an attribute that there is not, types that don't fit, a pattern that is no regular expression, and what would cost too much are findings, with file, line and column. They do nothing but look: no clock, no network, no randomness.

**What can't be told** (a claim that is not there or of another type, a division by zero, a list that is too long to look at) does not let anybody in: a grant that allows does not allow, one that denies denies, and an identity rule does not fit.
Ask with ` + "`has()`" + ` for a claim that may be missing. ` + "[Tests](../howto/test-a-bundle.md)" + ` show what a condition does, and which parts of it nobody would miss.

This page is generated. Each example is compiled by a test, and true of this request: ` + "`/workload/payments-api`" + ` in the environment ` + "`payments-dev`" + ` reads ` + "`db/password`" + `, for the purpose ` + "`runtime`" + `, on Thursday 2026-01-01 at 12:00 UTC, with assurance ` + "`token`" + ` through ` + "`/node/join-token/web-1`" + `, with the claims

` + "```yaml\n" + `claims: {unix: {uid: 1000, gid: 1000}, groups: [wheel, adm], process: {path: /usr/local/bin/payments-api}}
node_claims: {name: web-1}
` + "```\n" + `
## Attributes

| attribute | type | in identity rules | meaning | example |
|---|---|---|---|---|
`)
	for _, a := range attributes() {
		rules := "–"
		if a.rules {
			rules = "yes"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | `%s` |\n", a.name, typeName(a.t), rules, a.meaning, cellText(a.example))
	}
	b.WriteString("\n## Functions\n\n| form | meaning | example |\n|---|---|---|\n")
	for _, f := range functions() {
		fmt.Fprintf(&b, "| %s | %s | `%s` |\n", f.form, f.meaning, cellText(f.example))
	}
	fmt.Fprintf(&b, `
## Limits

| of | limit |
|---|---|
| an expression | %d bytes, %d parts with macros written out, nested %d deep |
| a regular expression | %d instructions |
| what it may cost | at most %d units by its text, some tens of nanoseconds each. Beyond %d it is counted while it runs, and stopped there: then it can't be told |
| different conditions of a bundle | %d |
| claims | %d values, nested %d deep; %d bytes of one text, %d of all |
`, MaxCondition, maxNodes, maxRecursion, maxRegex, hardCost, softCost, maxConditions, MaxClaimValues, MaxClaimDepth, MaxClaimText, MaxClaimBytes)
	return b.String()
}

func typeName(t *cel.Type) string {
	switch t.String() {
	case "string":
		return "text"
	case "int":
		return "grade"
	case "timestamp", "google.protobuf.Timestamp":
		return "time"
	case "list(string)":
		return "list of texts"
	}
	return "map of claims"
}

func cellText(s string) string { return strings.ReplaceAll(s, "|", `\|`) }
