package control

import (
	"context"
	"slices"
	"time"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/plan"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/reach"
	"github.com/bailment/bailment/internal/state"
)

// testTime bounds a bundle's own tests: some hundred thousand cases take a second.
const testTime = 5 * time.Second

// runTests refuses a bundle whose own tests fail. What decides in them is what decides here.
func runTests(ctx context.Context, prog *policy.Program) error {
	limited, cancel := context.WithTimeout(ctx, testTime)
	defer cancel()
	report, err := prog.RunTests(limited)
	if err != nil && ctx.Err() == nil {
		return problem.New(problem.ReasonBundleInvalid, "the bundle's tests take more than %s", testTime).WithFix("`bailment bundle test` says which there are")
	}
	if err != nil {
		return problem.Wrap(err, problem.ReasonTooSlow, "running the bundle's tests")
	}
	if err := report.Err(); err != nil {
		return err
	}
	return reach.New(prog, reach.Names{}).KeepsLimits()
}

// widensOwn refuses who would decide about his own reach: by a grant, a duty or a key. What somebody controls besides, as who admits
// machines does, is shown to him and to the others.
func widensOwn(before, after *policy.Program, person, doing string) error {
	for _, w := range plan.Widens(before, after, person) {
		if w.Via != plan.ByControl {
			return problem.New(problem.ReasonSeparation, "%s can't %s: it widens what he has himself: %s", person, doing, w.What).
				WithFix("have somebody do it who gains nothing by it")
		}
	}
	return nil
}

// ownReach says why a person may not approve a bundle, or nil. Who may approve his own proposal is alone, and nobody else could.
func (e *Environment) ownReach(ctx context.Context, ch *state.Change, person string) (own, err error) {
	if ch.SelfOK {
		return nil, nil
	}
	before, err := e.program(ctx, ch.Base)
	if err != nil {
		return nil, err
	}
	after, err := e.program(ctx, ch.Manifest)
	if err != nil {
		return nil, err
	}
	return widensOwn(before, after, identity.PrefixHuman+person, "approve this change"), nil
}

// byHardware reports whether a key of the person is hardware-backed.
func byHardware(op policy.Operator, fingerprint string) bool {
	return slices.ContainsFunc(op.Keys, func(k policy.OperatorKey) bool { return k.Fingerprint == fingerprint && k.Hardware() })
}
