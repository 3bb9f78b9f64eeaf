package control_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// auditors is a board on which carol lacks the duty audit, and machines have read.
func auditors(t *testing.T) *board {
	t.Helper()
	s := newStaged(t, stagedRollout, 4)
	const all = "propose, approve, revoke, admit, keys, audit"
	files := s.edited(func(f policy.Files) {
		f["operators.yaml"] = s.operators(map[string]string{"alice": all, "bob": all, "carol": "propose, approve, revoke"})
	})
	s.Stage = controltest.Stage{Containment: []string{"operators.yaml"}}
	s.change(files)
	s.Stage = controltest.Stage{}
	s.Files = files
	return s.board
}

// Who has the duty audit sees who was given what, page by page, and nobody else does.
func TestListUses(t *testing.T) {
	b := auditors(t)
	for _, c := range []controltest.Actor{b.by["carol"], b.Node(b.by["alice"], "n9")} {
		_, err := b.Env.ListUses(c.Caller, control.AccessFilter{})
		b.refused(err, problem.ReasonDuty)
		_, err = b.Env.ListReviewed(c.Caller, control.AccessFilter{})
		b.refused(err, problem.ReasonDuty)
	}
	pattern := func(p identity.Pattern, err error) identity.Pattern {
		b.must(err)
		return p
	}
	for what, test := range map[string]struct {
		filter control.AccessFilter
		want   string
	}{
		"all":             {control.AccessFilter{}, "n0 n1 n2 n3"},
		"pages":           {control.AccessFilter{Page: control.Page{Size: 3}}, "n0 n1 n2 | n3"},
		"pages of one":    {control.AccessFilter{Page: control.Page{Size: 1}}, "n0 | n1 | n2 | n3"},
		"whole pages":     {control.AccessFilter{Page: control.Page{Size: 2}}, "n0 n1 | n2 n3"},
		"an identity":     {control.AccessFilter{Identities: pattern(identity.ParseIDPattern("/node/join-token/n2"))}, "n2"},
		"a family":        {control.AccessFilter{Identities: pattern(identity.ParseIDPattern("/node/*")), Secrets: pattern(identity.ParseSecretPattern("db/*"))}, "n0 n1 n2 n3"},
		"another secret":  {control.AccessFilter{Secrets: pattern(identity.ParseSecretPattern("tls/*"))}, ""},
		"other ones":      {control.AccessFilter{Identities: pattern(identity.ParseIDPattern("/workload/*"))}, ""},
		"beyond the last": {control.AccessFilter{Page: control.Page{After: "/node/join-token/n9 x"}}, ""},
	} {
		var pages []string
		for f := test.filter; ; {
			x, err := b.Env.ListUses(b.by["alice"].Caller, f)
			b.must(err)
			var names []string
			for _, u := range x.Rows {
				names = append(names, strings.TrimPrefix(u.Identity, "/node/join-token/"))
				if u.Secret != "db/password" || u.Grant != "nodes" || u.First == 0 || u.Last <= u.First {
					t.Errorf("%s: %+v", what, u)
				}
			}
			if x.Since == 0 || x.Since > state.At(b.Now()) {
				t.Errorf("%s: remembered since %s", what, x.Since)
			}
			pages = append(pages, strings.Join(names, " "))
			if f.After = x.Next; x.Next == "" {
				break
			}
		}
		if got := strings.Join(pages, " | "); got != test.want {
			t.Errorf("%s: %q, want %q", what, got, test.want)
		}
	}
}

// A review is entered as its own person signed it, once, about the bundle in force, and by who has the duty.
func TestReview(t *testing.T) {
	b := auditors(t)
	alice := b.by["alice"]
	r := b.ReviewOf("alice", ceremony.Keep)
	size := b.Env.Ledger().Size()
	index, err := b.Review(alice, "alice", r, "key")
	b.must(err)
	again, err := b.Review(alice, "alice", r, "key") // the reply was lost
	b.must(err)
	if index != size || again != index || b.Env.Ledger().Size() != size+1 {
		t.Errorf("entered as %d, and again as %d", index, again)
	}
	_, err = b.Review(alice, "alice", r, "")
	b.refused(err, problem.ReasonReplayed)
	_, err = b.Review(b.by["carol"], "carol", b.ReviewOf("carol", ceremony.Keep), "")
	b.refused(err, problem.ReasonDuty)
	_, err = b.Review(b.Node(alice, "n9"), "alice", b.ReviewOf("alice", ceremony.Keep), "")
	b.refused(err, problem.ReasonDuty)
	_, err = b.Review(b.by["bob"], "alice", b.ReviewOf("alice", ceremony.Keep), "") // another's review
	b.refused(err, problem.ReasonSignature)
	_, err = b.Review(alice, "bob", b.ReviewOf("alice", ceremony.Keep), "") // another's signature
	b.refused(err, problem.ReasonSignature)
	_, err = b.Env.Review(context.Background(), alice.Caller, control.ReviewRequest{Text: "bailment access review v1\n"})
	b.refused(err, problem.ReasonInvalid)
	text := b.ReviewOf("alice", ceremony.Keep).Text()
	_, err = b.Env.Review(context.Background(), alice.Caller, control.ReviewRequest{Text: text, SSHSIG: b.Sign("alice", ceremony.NamespaceLogin, text)})
	b.refused(err, problem.ReasonSignature)
	for what, test := range map[string]struct {
		edit func(*ceremony.Review)
		want problem.Reason
	}{
		"another environment": {func(r *ceremony.Review) { r.Environment = "other" }, problem.ReasonSignature},
		"another genesis":     {func(r *ceremony.Review) { r.Genesis[0]++ }, problem.ReasonSignature},
		"another epoch":       {func(r *ceremony.Review) { r.Epoch++ }, problem.ReasonSignature},
		"another bundle":      {func(r *ceremony.Review) { r.Bundle = state.Digest{1}.String() }, problem.ReasonConflict},
		"no nonce":            {func(r *ceremony.Review) { r.Nonce = "x" }, problem.ReasonReplayed},
		"too old":             {func(r *ceremony.Review) { r.Time = r.Time.Add(-state.ReviewLife - time.Second) }, problem.ReasonReplayed},
		"of the future":       {func(r *ceremony.Review) { r.Time = r.Time.Add(state.ReviewAhead + time.Minute) }, problem.ReasonReplayed},
		"no such line":        {func(r *ceremony.Review) { r.Lines[0].Secret = "db/none" }, problem.ReasonInvalid},
	} {
		t.Run(what, func(t *testing.T) {
			r := b.ReviewOf("alice", ceremony.Keep)
			test.edit(&r)
			slices.SortFunc(r.Lines, ceremony.ReviewLine.Compare)
			if _, err := b.Review(alice, "alice", r, ""); !problem.Is(err, test.want) {
				t.Errorf("got %v, want %s", err, test.want)
			}
		})
	}
	bob, err := b.Review(b.by["bob"], "bob", b.ReviewOf("bob", ceremony.Remove, "nodes"), "")
	b.must(err)
	x, err := b.Env.ListReviewed(alice.Caller, control.AccessFilter{})
	b.must(err)
	if len(x.Rows) != len(r.Lines) || x.Next != "" {
		t.Errorf("%d lines are reviewed, want %d", len(x.Rows), len(r.Lines))
	}
	for _, d := range x.Rows {
		want := state.Reviewed{Decision: "keep", By: "alice", Index: index, Time: d.Time}
		if d.Grant == "nodes" {
			want = state.Reviewed{Decision: "remove", By: "bob", Index: bob, Time: d.Time}
		}
		if *d.Reviewed != want {
			t.Errorf("%v: %+v, want %+v", d.Line, d.Reviewed, want)
		}
	}
	node, err := identity.ParseIDPattern("/node/join-token/n1")
	b.must(err)
	x, err = b.Env.ListReviewed(alice.Caller, control.AccessFilter{Identities: node})
	b.must(err)
	if len(x.Rows) != 1 || x.Rows[0].Line != (policy.Line{Grant: "nodes", Identity: "/node/join-token/n1", Secret: "db/password"}) {
		t.Errorf("of one machine: %+v", x.Rows)
	}
	if _, found, err := b.Env.Check(context.Background()); err != nil || len(found) > 0 {
		t.Fatal(found, err)
	}
	if found, err := b.Env.Replay(context.Background()); err != nil || len(found) > 0 {
		t.Fatal(found, err)
	}
}

// Who is held, or whose key is, decides about nothing.
func TestReviewOfTheRevoked(t *testing.T) {
	b := auditors(t)
	r := b.ReviewOf("alice", ceremony.Keep)
	b.revoke("bob", b.key("alice"))
	_, err := b.Review(b.by["alice"], "alice", r, "")
	if p := problem.As(err); p.Reason != problem.ReasonCutoff && p.Reason != problem.ReasonHeld {
		t.Errorf("got %v", err)
	}
	if n := b.Env.State().Reviewed.Len(); n != 0 {
		t.Errorf("%d lines are reviewed", n)
	}
}

// The largest text that may be signed fits into an entry.
func TestReviewFits(t *testing.T) {
	r := ceremony.Review{Scope: ceremony.Scope{Environment: "e"}, Bundle: state.Digest{}.String(), Person: "alice", Time: time.Unix(0, 0), Nonce: controltest.Nonce()}
	for i := 0; len(r.Text()) < ceremony.MaxReview-40; i++ {
		r.Lines = append(r.Lines, ceremony.ReviewLine{Decision: ceremony.Keep, Grant: fmt.Sprintf("g%05d", i), Identity: "/*", Secret: "*", LastUsed: "-"})
	}
	if _, err := ceremony.ParseReview(r.Text()); err != nil {
		t.Fatal(err)
	}
	ev := &state.AccessReviewed{Text: r.Text(), Signature: state.Signature{Person: "alice", SSHSIG: strings.Repeat("x\n", 1500)}}
	ev.Actor.Identity, ev.Ruling.Grant = strings.Repeat("x", 1000), strings.Repeat("x", 1000)
	if body, err := state.Encode(&state.Entry{Event: ev}); err != nil || len(body) > state.MaxBody {
		t.Errorf("%d bytes: %v", len(body), err)
	}
}

// Nobody decides that he keeps what he has himself; that he does not, he may.
func TestReviewOfOneself(t *testing.T) {
	b := newBoard(t, 1, "alice", "bob")
	alice, bob := b.by["alice"], b.by["bob"]
	p, err := b.Propose(alice, "alice", b.with("grants/own.yaml", "apiVersion: bailment/v1\nkind: Grant\nmetadata: {name: own}\nspec: {actions: [secret.list], identities: [/human/alice], secrets: [db/*]}\n"))
	b.must(err)
	_, err = b.Approve(bob, "bob", p.Change)
	b.must(err)
	_, err = b.Review(alice, "alice", b.ReviewOf("alice", ceremony.Keep), "")
	b.refused(err, problem.ReasonSeparation)
	_, err = b.Review(alice, "alice", b.ReviewOf("alice", ceremony.Remove, "own"), "")
	b.must(err)
	_, err = b.Review(bob, "bob", b.ReviewOf("bob", ceremony.Keep), "")
	b.must(err)
}
