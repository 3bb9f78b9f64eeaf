package policy

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// tested is a bundle of small's, whose identities and secrets are all declared, and a question about it.
func tested(t *testing.T, rt *rapid.T) (Files, *Input) {
	docs := append(small.bundle(rt), "Secret x/* type: opaque", "Secret db/* type: opaque, lease: {max: 30m}")
	in := small.input(rt)
	in.Action = rapid.SampledFrom([]Action{ReadSecret, WriteSecret, ListSecret}).Draw(rt, "tested action")
	in.Identity = rapid.SampledFrom([]string{"/workload/payments-api", "/workload/payments-db", "/human/alice", "/node/join-token/n"}).Draw(rt, "tested identity")
	in.Secret = rapid.SampledFrom([]string{"db/password", "db/a", "db/a/b", "x/y/z"}).Draw(rt, "tested secret")
	in.Purpose, in.Node, in.Time = "", "", defaultTestTime
	if in.Action == ReadSecret {
		in.Purpose = rapid.SampledFrom(small.purposes).Draw(rt, "tested purpose")
	}
	if strings.HasPrefix(in.Identity, "/workload/") && rapid.Bool().Draw(rt, "tested node") {
		in.Node = "/node/join-token/n"
	}
	files := withoutTests(with(t, docs...))
	in.Opened = nil
	for _, g := range mustCompile(t, files).Grants() {
		if g.Glass > 0 && strings.HasPrefix(in.Identity, "/human/") && rapid.Bool().Draw(rt, "tested opened") {
			in.Opened = append(in.Opened, Opened{Grant: g.Name, Until: in.Time.Add(g.Glass)})
		}
	}
	return files, in
}

// caseOf writes a question, and the answer that Decide gives, as a case.
func caseOf(rt *rapid.T, p *Program, in *Input) string {
	d := p.Decide(in)
	s := fmt.Sprintf("identity: %s, assurance: %s, action: %s, secret: %s", in.Identity, in.Assurance, in.Action, in.Secret)
	if in.Node != "" {
		s += ", node: " + in.Node
	}
	if in.Purpose != "" {
		s += ", purpose: " + in.Purpose
	}
	if x, err := in.Claims.text([]string{"x"}); err == nil {
		s += ", claims: {x: " + x + "}"
	}
	var opened []string
	for _, o := range in.Opened {
		opened = append(opened, o.Grant)
	}
	if len(opened) > 0 {
		s += ", opened: [" + strings.Join(opened, ", ") + "]"
	}
	switch {
	case !d.Allow:
		s += ", expect: deny, reason: " + string(d.Reason)
	case in.Action == ReadSecret:
		s += ", expect: allow, ttl: " + p.longestLease(in.Secret, d).String()
	default:
		s += ", expect: allow"
	}
	if d.Grant != "" {
		s += ", by: " + d.Grant
	}
	return s
}

// What Decide answers, a test of the bundle expects: the same question has the same answer, grant, reason and lease.
func TestPropertyRunTestsDecides(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		files, in := tested(t, rt)
		line := caseOf(rt, mustCompile(t, files), in)
		r := runTests(t, withTests(files, "  cases:\n    - {name: drawn, "+line+"}\n"))
		if r.Err() != nil {
			rt.Fatalf("%s: %v", line, r.Results)
		}
		// And it is noticed when the answer is another one.
		turned := strings.NewReplacer("expect: deny, reason: ", "expect: allow # ", "expect: allow", "expect: deny # ").Replace(line)
		turned, _, _ = strings.Cut(turned, "#")
		if r = runTests(t, withTests(files, "  cases:\n    - {name: drawn, "+turned+"}\n")); r.Failed != 1 {
			rt.Fatalf("%s passes, too", turned)
		}
	})
}

// A mutant never refuses what was permitted, nor shortens a lease: it is weaker, or the same.
func TestPropertyMutantsAreWeaker(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		files, in := tested(t, rt)
		p := mustCompile(t, files)
		before := p.Decide(in)
		m := &mutation{ctx: context.Background(), each: func(q *Program) {
			d := q.Decide(in)
			if before.Allow && (!d.Allow || d.TTL != 0 && (before.TTL == 0 || d.TTL < before.TTL)) {
				rt.Fatalf("a mutant changed %+v to %+v", before, d)
			}
		}}
		if err := m.run(p); err != nil {
			rt.Fatal(err)
		}
		if d := p.Decide(in); d != before {
			rt.Fatalf("the program itself became another: %+v, then %+v", before, d)
		}
	})
}

// A grant that is said to have no effect can be left out: nobody is permitted more or less.
func TestPropertyIdleGrants(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		files, in := tested(t, rt)
		p := mustCompile(t, files)
		var idle []string
		for _, f := range p.Advice(nil) {
			if strings.Contains(f.Message, " has no effect") && strings.HasPrefix(f.Pos.File, "grants/with") {
				idle = append(idle, f.Pos.File)
			}
		}
		if len(idle) == 0 {
			return
		}
		before := p.Decide(in)
		delete(files, rapid.SampledFrom(idle).Draw(rt, "left out"))
		if d := mustCompile(t, files).Decide(in); d.Allow != before.Allow || d.Allow && d.TTL != before.TTL {
			rt.Fatalf("without it %+v becomes %+v", before, d)
		}
	})
}

// Whoever mutates a program does not disturb those who use it.
func TestMutateConcurrently(t *testing.T) {
	p := mustCompile(t, exampleFiles(t))
	done := make(chan error, 4)
	for range cap(done) {
		go func() {
			r, err := p.Mutate(context.Background())
			if err == nil && r.Killed != r.Mutants {
				err = fmt.Errorf("%d of %d", r.Killed, r.Mutants)
			}
			done <- err
		}()
	}
	names := p.Grants()
	for range cap(done) {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if !slices.EqualFunc(names, p.Grants(), func(a, b Grant) bool { return a.Name == b.Name && a.Assurance == b.Assurance && a.TTL == b.TTL }) {
		t.Error("the grants are others than before")
	}
}
