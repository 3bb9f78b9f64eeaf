package cli

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/reach"
)

// testOptions are the flags of `bundle test`.
type testOptions struct {
	junit                    string
	github, coverage, mutate bool
}

// testView is what `bundle test` found.
type testView struct {
	OK bool `json:"ok"`
	*policy.TestReport
	Limits   []reach.LimitResult    `json:"limits,omitempty"`
	Coverage []policy.RuleCoverage  `json:"coverage,omitempty"`
	Mutation *policy.MutationReport `json:"mutation,omitempty"`
}

func (a *app) bundleTest() *cobra.Command {
	var o testOptions
	c := &cobra.Command{
		Use: "test [DIR]", Short: "Run a bundle's tests, without a server", Args: cobra.MaximumNArgs(1),
		Long: `Runs the cases in tests/ of a bundle: who is it, and may they. They are answered by the code
that answers the agents. The same tests are run by the server when the bundle is proposed. Limits
in tests/ say what nobody of a class may reach by whatever way: they are asked as blast-radius
asks. It exits with 1 if a case fails, a limit is broken, or a mutant survives.

--coverage says what of which rule no case made use of.
--mutate weakens each rule in each way, one at a time: it drops a condition or a part of it, a
limit or a deny grant, or takes the narrowest subtree with somebody else in it in place of a
name. A mutant that makes no case fail survives: it is printed with what it would let in, for
which the tests have no case. Mutants that can be proved to change nothing are left out.
--github prints each failure on standard error as an annotation of GitHub Actions, by the file's
path from the current directory on.`,
		Example: `  bailment bundle test
  bailment bundle test ./env --coverage --mutate
  bailment bundle test ./env --github --junit results.xml
  bailment bundle test ./env -o json`,
		RunE: func(cmd *cobra.Command, args []string) error { return a.testBundle(cmd.Context(), dirOf(args), o) },
	}
	c.Flags().BoolVar(&o.coverage, "coverage", false, "also say what of the rules no case made use of")
	c.Flags().BoolVar(&o.mutate, "mutate", false, "also weaken each rule, and say of which ones no case fails")
	c.Flags().StringVar(&o.junit, "junit", "", "write the results to this file, as JUnit XML")
	c.Flags().BoolVar(&o.github, "github", false, "also print failures as annotations of GitHub Actions")
	return c
}

func (a *app) testBundle(ctx context.Context, dir string, o testOptions) error {
	_, prog, err := readBundle(dir)
	if err != nil {
		var findings policy.Findings
		if o.github && errors.As(err, &findings) {
			for _, f := range findings {
				a.annotate("error", dir, f.Pos, "invalid bundle", f.Message)
			}
		}
		return err
	}
	v := testView{}
	if v.TestReport, err = prog.RunTests(ctx); err != nil {
		return err
	}
	if v.Limits, err = reach.New(prog, reach.Names{}).Limits(); err != nil {
		return err
	}
	if o.coverage {
		v.Coverage = v.TestReport.Coverage()
	}
	if o.mutate && v.Failed == 0 {
		if v.Mutation, err = prog.Mutate(ctx); err != nil {
			return err
		}
	}
	survivors, broken := 0, len(reach.Findings(v.Limits))
	if v.Mutation != nil {
		survivors = v.Mutation.Mutants - v.Mutation.Killed
	}
	v.OK = v.Failed+broken+survivors == 0
	if err := a.show(v, v.table); err != nil {
		return err
	}
	if o.github {
		a.annotateTests(dir, v)
	}
	if o.junit != "" {
		if err := writeJUnit(o.junit, prog, v); err != nil {
			return err
		}
	}
	switch {
	case v.Failed > 0:
		return problem.New(problem.ReasonBundleInvalid, "%d of %d test %s failed", v.Failed, len(v.Results), plural(len(v.Results), "case")).WithFix("mend the rules, or the test if what it expects is not meant any more")
	case broken > 0:
		return problem.New(problem.ReasonBundleInvalid, "%d of %d %s broken", broken, len(v.Limits), plural(len(v.Limits), "limit")).WithFix("take out a line of the way that is shown, or weaken the limit if the way is meant: `bailment blast-radius --from FROM --to TO` shows all ways, and a smallest cut")
	case survivors > 0:
		return problem.New(problem.ReasonBundleInvalid, "%d of %d mutants survived", survivors, v.Mutation.Mutants).WithFix("add a case that fails with the weaker rule: one that expects what it would let in to be refused")
	case len(v.Results)+len(v.Limits) == 0:
		a.note("the bundle has no tests: put them into tests/ (`bailment bundle schema Test`)")
	default:
		a.note("ok: %d %s%s", v.Passed, plural(v.Passed, "case"), v.limitsKept())
	}
	return nil
}

func (v testView) limitsKept() string {
	if len(v.Limits) == 0 {
		return ""
	}
	return fmt.Sprintf(", %d %s", len(v.Limits), plural(len(v.Limits), "limit"))
}

// table shows what failed at length, and else a line for each test.
func (v testView) table(t *rows) {
	type sum struct {
		name           string
		passed, failed int
	}
	var sums []sum
	for _, r := range v.Results {
		if len(sums) == 0 || sums[len(sums)-1].name != r.Test {
			sums = append(sums, sum{name: r.Test})
		}
		if s := &sums[len(sums)-1]; r.Pass {
			s.passed++
		} else {
			s.failed++
			t.line("FAILED %s: %s: %s", r.Source, r.Test, r.Case)
			t.line("    expected %s, got %s", r.Want, r.Got)
			for _, w := range r.Why {
				t.line("    %s", w)
			}
		}
	}
	for i := range v.Limits {
		if l := &v.Limits[i]; l.Broken != nil {
			t.line("BROKEN %s: %s: %s", l.Source, l.Test, l.Name)
			t.line("    %s", l.Why())
		}
	}
	if len(sums) > 0 {
		t.add("TEST", "PASSED", "FAILED")
		for _, s := range sums {
			t.add(s.name, s.passed, s.failed)
		}
	}
	if len(v.Coverage) > 0 {
		t.add("COVERED", "OF", "RULE", "MISSING")
		for _, c := range v.Coverage {
			t.add(c.Covered, c.Parts, c.Rule, strings.Join(c.Missing, ", "))
		}
	}
	if m := v.Mutation; m != nil {
		for _, s := range m.Survivors {
			t.line("SURVIVED %s: %s %s", s.Source, s.Rule, s.Change)
			t.line("    would let in: %s", s.LetsIn)
		}
		if more := m.Mutants - m.Killed - len(m.Survivors); more > 0 {
			t.line("and %d more", more)
		}
		t.line("%d of %d mutants were killed", m.Killed, m.Mutants)
	}
}

func (a *app) annotateTests(dir string, v testView) {
	for _, r := range v.Results {
		if !r.Pass {
			a.annotate("error", dir, r.Source, r.Test+": "+r.Case, strings.Join(append([]string{"expected " + r.Want + ", got " + r.Got}, r.Why...), "\n"))
		}
	}
	for i := range v.Limits {
		if l := &v.Limits[i]; l.Broken != nil {
			a.annotate("error", dir, l.Source, l.Test+": the limit "+l.Name+" is broken", l.Why())
		}
	}
	for _, c := range v.Coverage {
		if len(c.Missing) > 0 {
			a.annotate("warning", dir, c.Source, "not covered", "the tests have no case of "+c.Rule+" for: "+strings.Join(c.Missing, ", "))
		}
	}
	if v.Mutation != nil {
		for _, s := range v.Mutation.Survivors {
			a.annotate("error", dir, s.Source, "a mutant survived", s.Rule+" "+s.Change+"\nwould let in: "+s.LetsIn)
		}
	}
}

// annotate prints a workflow command of GitHub Actions. What is escaped, and how, is as in its toolkit's core package.
func (a *app) annotate(level, dir string, at policy.Pos, title, message string) {
	data := strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A")
	property := strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A", ":", "%3A", ",", "%2C")
	place := "file=" + property.Replace(filepath.ToSlash(filepath.Join(dir, at.File)))
	if at.Line > 0 {
		place += fmt.Sprintf(",line=%d", at.Line)
	}
	if at.Column > 0 {
		place += fmt.Sprintf(",col=%d", at.Column)
	}
	fmt.Fprintf(a.err, "::%s %s,title=%s::%s\n", level, place, property.Replace(title), data.Replace(message))
}

// The part of JUnit's XML that CI systems have in common.
type (
	junitSuites struct {
		XMLName  xml.Name     `xml:"testsuites"`
		Name     string       `xml:"name,attr"`
		Tests    int          `xml:"tests,attr"`
		Failures int          `xml:"failures,attr"`
		Suites   []junitSuite `xml:"testsuite"`
	}
	junitSuite struct {
		Name     string      `xml:"name,attr"`
		Tests    int         `xml:"tests,attr"`
		Failures int         `xml:"failures,attr"`
		Cases    []junitCase `xml:"testcase"`
	}
	junitCase struct {
		Class   string        `xml:"classname,attr"`
		Name    string        `xml:"name,attr"`
		File    string        `xml:"file,attr"`
		Line    int           `xml:"line,attr,omitempty"`
		Failure *junitFailure `xml:"failure"`
	}
	junitFailure struct {
		Message string `xml:"message,attr"`
		Text    string `xml:",chardata"`
	}
)

func (s *junitSuites) add(suite string, at policy.Pos, name, failure string, more []string) {
	if n := len(s.Suites); n == 0 || s.Suites[n-1].Name != suite {
		s.Suites = append(s.Suites, junitSuite{Name: suite})
	}
	to := &s.Suites[len(s.Suites)-1]
	c := junitCase{Class: suite, Name: name, File: at.File, Line: at.Line}
	s.Tests++
	to.Tests++
	if failure != "" {
		s.Failures++
		to.Failures++
		c.Failure = &junitFailure{failure, strings.Join(append([]string{at.String() + ": " + failure}, more...), "\n")}
	}
	to.Cases = append(to.Cases, c)
}

// writeJUnit writes a suite for each test, one for the limits, and one for the mutants that survived.
func writeJUnit(path string, prog *policy.Program, v testView) error {
	all := junitSuites{Name: prog.Environment().Name}
	for _, r := range v.Results {
		failure := ""
		if !r.Pass {
			failure = "expected " + r.Want + ", got " + r.Got
		}
		all.add(r.Test, r.Source, r.Case, failure, r.Why)
	}
	for i := range v.Limits {
		l, failure := &v.Limits[i], ""
		if l.Broken != nil {
			failure = "the limit is broken: " + l.Why()
		}
		all.add("limits", l.Source, l.Name, failure, nil)
	}
	if v.Mutation != nil {
		for _, s := range v.Mutation.Survivors {
			all.add("mutants", s.Source, s.Rule+" "+s.Change, "no case fails with it", []string{"would let in: " + s.LetsIn})
		}
	}
	b, err := xml.MarshalIndent(all, "", "  ")
	if err != nil {
		return problem.Wrap(err, problem.ReasonInternal, "encoding the results")
	}
	if err := os.WriteFile(path, append([]byte(xml.Header), append(b, '\n')...), 0o644); err != nil {
		return wrong(err, "writing the results")
	}
	return nil
}
