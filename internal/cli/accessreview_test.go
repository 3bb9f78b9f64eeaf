package cli

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
)

// What is used, what is not, and what can't be told.
func TestAccessUnused(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	days := func(n int) time.Time { return now.Add(-time.Duration(n) * 24 * time.Hour) }
	id := func(s string) identity.Pattern {
		p, err := identity.ParseIDPattern(s)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	sec := func(s string) identity.Pattern {
		p, err := identity.ParseSecretPattern(s)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	grant := func(name string, actions []policy.Action, ids []identity.Pattern, secrets ...identity.Pattern) policy.Grant {
		return policy.Grant{Name: name, Effect: policy.Allow, Actions: actions, Identities: ids, Secrets: secrets}
	}
	read := []policy.Action{policy.ReadSecret}
	grants := []policy.Grant{
		grant("all", read, []identity.Pattern{id("/*")}, sec("*")),
		grant("family", read, []identity.Pattern{id("/workload/*")}, sec("db/*"), sec("tls/*")),
		grant("one", read, []identity.Pattern{id("/workload/a")}, sec("db/x")),
		grant("idle", read, []identity.Pattern{id("/workload/a")}, sec("db/x")),
		grant("writes", []policy.Action{policy.WriteSecret}, []identity.Pattern{id("/human/a")}, sec("*")),
		// What another grant decided last, this one may have decided before: by its old name, for another purpose, or where a condition was false.
		grant("called otherwise", read, []identity.Pattern{id("/ci/*")}, sec("ci/x")),
		{Name: "asks", Effect: policy.Allow, Actions: read, Identities: []identity.Pattern{id("/ci/*")}, Secrets: []identity.Pattern{sec("ci/z")}, When: "assurance > level.token"},
		grant("does not ask", read, []identity.Pattern{id("/ci/*")}, sec("ci/z")),
		{Name: "other", Effect: policy.Allow, Actions: read, Identities: []identity.Pattern{id("/ci/*")}, Secrets: []identity.Pattern{sec("ci/y")}, Purposes: []string{"a"}},
		{Name: "for a", Effect: policy.Allow, Actions: read, Identities: []identity.Pattern{id("/ci/*")}, Secrets: []identity.Pattern{sec("ci/y")}, Purposes: []string{"a"}},
		{Name: "for b", Effect: policy.Allow, Actions: read, Identities: []identity.Pattern{id("/ci/*")}, Secrets: []identity.Pattern{sec("ci/y")}, Purposes: []string{"a", "b"}},
		{Name: "no", Effect: policy.Deny, Actions: read, Identities: []identity.Pattern{id("/*")}, Secrets: []identity.Pattern{sec("*")}},
	}
	uses := []*v1.Use{
		{Grant: "all", Identity: "/node/tpm/m", Secret: "seed", Last: timestamppb.New(days(100))},
		{Grant: "family", Identity: "/workload/b/c", Secret: "db/y/z", Last: timestamppb.New(days(80))},
		{Grant: "family", Identity: "/workload/a", Secret: "db/x", Last: timestamppb.New(days(89))},
		{Grant: "one", Identity: "/workload/a", Secret: "db/x", Last: timestamppb.New(now.Add(time.Hour))},
		{Grant: "one", Identity: "/workload/b", Secret: "db/x", Last: timestamppb.New(now)}, // by an earlier bundle's grant of that name
		{Grant: "gone", Identity: "/workload/a", Secret: "db/x", Last: timestamppb.New(days(95))},
		{Grant: "renamed", Identity: "/ci/x/1", Secret: "ci/x", Last: timestamppb.New(days(1))},
		{Grant: "other", Identity: "/ci/x/1", Secret: "ci/y", Last: timestamppb.New(days(1))},
		{Grant: "asks", Identity: "/ci/x/1", Secret: "ci/z", Last: timestamppb.New(days(1))},
	}
	list := func(since *time.Time, who, what identity.Pattern, only bool) (string, []string) {
		m := newAccessModel()
		for _, g := range grants {
			m.add(g, who, what)
		}
		for _, u := range uses {
			m.use(u)
		}
		v := &accessView{Remembered: since}
		m.judge(v, 90*24*time.Hour, now, only)
		var out []string
		for _, l := range v.Lines {
			out = append(out, fmt.Sprintf("%s %s %s %s %d/%d", l.Grant, l.Secret, l.used(), l.Unused, l.Identities, l.Secrets))
		}
		return strings.Join(out, "\n"), v.UnusedGrants
	}
	long, short := days(200), days(10)
	for what, test := range map[string]struct {
		since     *time.Time
		who, what identity.Pattern
		only      bool
		want      string
		idle      string
	}{
		"remembered for long": {since: &long, idle: "for a idle", want: `all * 2026-08-14T11:00:00Z unknown 1/1
asks ci/z 2026-11-21T11:00:00Z no 1/1
called otherwise ci/x never unknown 0/0
does not ask ci/z never unknown 0/0
family db/* 2026-09-03T11:00:00Z no 2/2
family tls/* never yes 0/0
for a ci/y never yes 0/0
for b ci/y never unknown 0/0
idle db/x never yes 0/0
one db/x 2026-11-22T12:00:00Z no 1/1
other ci/y 2026-11-21T11:00:00Z no 1/1
writes * - unknown 0/0`},
		"not for long": {since: &short, who: id("/workload/a"), what: sec("db/*"), want: `all * 2026-08-14T11:00:00Z unknown 1/1
family db/* 2026-09-03T11:00:00Z no 2/2
idle db/x never unknown 0/0
one db/x 2026-11-22T12:00:00Z no 1/1`},
		"not at all":      {who: id("/human/*"), want: "all * 2026-08-14T11:00:00Z unknown 1/1\nwrites * - unknown 0/0"},
		"unused":          {since: &long, only: true, what: sec("tls/a"), want: "family tls/* never yes 0/0"},
		"nothing like it": {since: &long, who: id("/server/*"), want: "all * 2026-08-14T11:00:00Z unknown 1/1"},
	} {
		got, idle := list(test.since, test.who, test.what, test.only)
		if got != test.want || strings.Join(idle, " ") != test.idle {
			t.Errorf("%s:\n%s\nunused grants: %v", what, got, idle)
		}
	}
}

func TestWorksheet(t *testing.T) {
	scope := ceremony.Scope{Environment: "prod", Genesis: [32]byte{1}}
	head := worksheetTitle + "\n" + worksheetHead(scope, "sha256:00") + worksheetHelp
	good := head + "\n# b may read\nkeep b /* * never\n\n  remove   a\t/workload/api db/* 2026-11-22T15:00:00Z  \r\n"
	lines, err := readWorksheet(good, scope, "sha256:00")
	want := []ceremony.ReviewLine{
		{Decision: "remove", Grant: "a", Identity: "/workload/api", Secret: "db/*", LastUsed: "2026-11-22T15:00:00Z"},
		{Decision: "keep", Grant: "b", Identity: "/*", Secret: "*", LastUsed: "never"},
	}
	if err != nil || !reflect.DeepEqual(lines, want) {
		t.Errorf("read %v, %v", lines, err)
	}
	for text, says := range map[string]string{
		"":                                       "no worksheet",
		head:                                     "about nothing",
		head + "? a /* * never\n":                "1 line of the worksheet without a decision, the first is line 9",
		head + "maybe a /* * never\n":            "line 9 of the worksheet",
		head + "keep a /* *\n":                   "line 9 of the worksheet",
		good + "narrow b /* * never\n":           "decides twice about b /* *",
		strings.Replace(good, "prod", "test", 1): "another environment",
		strings.Replace(good, "epoch 0", "epoch 1", 1):     "another environment",
		strings.Replace(good, "sha256:00", "sha256:01", 1): "another bundle",
	} {
		if _, err := readWorksheet(text, scope, "sha256:00"); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want %q", text, err, says)
		}
	}
}

// Each part of a long review fits, and none of it is left out.
func TestReviewParts(t *testing.T) {
	var lines []ceremony.ReviewLine
	for i := range 3000 {
		lines = append(lines, ceremony.ReviewLine{Decision: ceremony.Keep, Grant: fmt.Sprintf("grant-%05d", i), Identity: "/workload/" + strings.Repeat("x", i%200), Secret: "*", LastUsed: "-"})
	}
	r := ceremony.Review{Scope: ceremony.Scope{Environment: strings.Repeat("e", 60)}, Bundle: "sha256:" + strings.Repeat("0", 64), Person: strings.Repeat("p", 60), Nonce: random(16)}
	parts := partsOf(r, lines)
	if len(parts) < 10 || !slices.Equal(slices.Concat(parts...), lines) {
		t.Fatalf("%d parts, or other lines", len(parts))
	}
	for _, r.Lines = range parts {
		if _, err := ceremony.ParseReview(r.Text()); err != nil {
			t.Error(err)
		}
	}
}
