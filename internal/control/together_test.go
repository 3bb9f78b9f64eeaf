package control_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// newTogether is an environment in which a change is in its canary, a recovery is under way, bob has a grant open, and the end of it all waits.
func newTogether(t *testing.T) (*custodians, *state.Change, *control.Opening) {
	t.Helper()
	c := &custodians{board: fragile(t, nil)}
	settings := strings.Replace(string(c.Files["environment.yaml"]), "required: 2}]", "required: 2}, {act: environment.delete, delay: 24h}]", 1)
	c.Files["environment.yaml"] = c.Recoverable([]byte(settings), 2, recoveryDelay, "rita", "sam", "tess")
	c.Files["rollouts/default.yaml"] = []byte(strings.Replace(strings.ReplaceAll(stagedRollout, "10m", "100h"), "    - {stage: shadow, for: 100h}\n", "", 1))
	c.bring("carol", "dora", c.Files)
	c.AddPerson("erin")
	c.AddPerson("fred")
	c.operators = c.Operators("carol", "erin", "fred")
	c.bring("alice", "carol", c.with("README.md", "slowly"))
	p, err := c.act("alice", control.ActionDelete, c.endTarget())
	c.must(err)
	_, err = c.Approve(c.by["dora"], "dora", p.Change)
	c.must(err)
	c.begin()
	c.later(25 * time.Hour)
	o, err := c.Glass(c.by["bob"], "glass", "INC-7", 30)
	c.must(err)
	c.reads("bob", "db/a", "")
	return c, p.Change, o
}

// The end comes over all that is under way, and is sound offline; also from a snapshot of it all.
func TestEndOverAllThatIsUnderWay(t *testing.T) {
	c, ch, o := newTogether(t)
	c.must(c.Env.Snapshot(context.Background()))
	c.Reopen()
	c.later(0)
	if c.Env.State().Recovery() == nil || c.Env.State().Staged() == nil {
		t.Fatal("something was forgotten")
	}
	c.consistent()
	c.must(c.board.carryOut("dora", ch))
	s := c.Env.State()
	if s.Ended != s.Next-1 || s.Recovery() != nil || s.Staged() != nil {
		t.Errorf("it ended with entry %d of %d", s.Ended, s.Next)
	}
	if g, ok := s.Glass.Get(o.Index); !ok || g.Uses != 1 {
		t.Errorf("of the opening is left %+v", g)
	}
	_, err := c.Recover(c.RecoveryOf(c.operators), c.operators, "rita", "sam")
	c.refused(err, problem.ReasonEnvironmentEnded)
	if n, err := c.Env.CarryOutRecovery(context.Background()); n != 0 || err != nil {
		t.Errorf("a recovery was carried out after the end: %d, %v", n, err)
	}
	c.wiped()
	c.Close()
	c.shut()
}

// A recovery ends what the others had begun: who is an operator no more reads nothing by what he has open, the end that waited is not
// carried out, and what was opened is for the new ones to review.
func TestRecoveryOverAllThatIsUnderWay(t *testing.T) {
	c, ch, _ := newTogether(t)
	c.Advance(recoveryDelay - 25*time.Hour - time.Minute)
	bob, alice := c.Login("bob"), c.Login("alice")
	first := c.Env.State().Unreviewed()
	_, err := c.ReviewGlass(alice, "alice", c.ReviewOfGlass("alice", first.Index, ceremony.Justified), "r1")
	c.must(err)
	o, err := c.Glass(bob, "glass", "INC-8", 30)
	c.must(err)
	c.by["bob"] = bob
	c.reads("bob", "db/a", "")
	c.Advance(2 * time.Minute)
	c.awaitRecovery()
	c.reads("bob", "db/a", problem.ReasonDuty)
	if c.Env.State().Staged() != nil {
		t.Error("the canary goes on")
	}
	carol, erin := c.Login("carol"), c.Login("erin")
	c.by["carol"] = carol
	c.refused(c.board.carryOut("carol", ch), problem.ReasonConflict)
	// He may close what is his; nobody else has it open. Then another reviews it.
	_, err = c.Env.CloseGlass(context.Background(), bob.Caller, o.Index)
	c.must(err)
	_, err = c.ReviewGlass(erin, "erin", c.ReviewOfGlass("erin", o.Index, ceremony.NotJustified), "r2")
	c.must(err)
	c.consistent()
	c.Reopen()
	c.consistent()
}
