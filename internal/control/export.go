package control

import (
	"context"
	"crypto/sha256"
	"slices"
	"time"

	"github.com/bailment/bailment/internal/export"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/state"
)

// ActionExport gives the current values of a pattern's secrets to the change's proposer, sealed to a key: see policy.Acts.
const ActionExport = policy.ActExport

const (
	// PurposeExport is what an export's reads are for, to the denials that ask.
	PurposeExport = "export"
	// maxExport is how many bytes of values one export has. They are sealed at once in memory, and leave within the delivery deadline.
	maxExport = 4 << 20
)

// exporting is an export that was sealed before the decision: of these versions, as they were then.
type exporting struct {
	list   state.Digest
	file   []byte
	bytes  int // of the values; beyond maxExport nothing was sealed
	values []seal.Secret
	room   chan struct{} // is given back with it
}

// wipe is called once.
func (p *exporting) wipe() {
	for _, v := range p.values {
		v.Wipe()
	}
	<-p.room
}

// prepareExport opens and seals what a change exports, if it is an export and the caller can fetch it now; otherwise the decision says why not.
// There is one at a time, until what is held is wiped: who may fetch one export could have it sealed as often as he asks at once.
func (e *Environment) prepareExport(ctx context.Context, s *state.State, c Caller, change uint64, held *carried) error {
	now := max(state.At(e.cfg.Now()), s.Time) // which may be ahead, and by which it will be decided
	x, dead := standing(s, c, now)
	ch, ok := s.Changes.Get(change)
	if dead != nil || !ok || ch.Action != ActionExport || ch.Proposer != x.Identity || !s.Ripe(ch, now) {
		return nil
	}
	secrets, recipient, ok := state.ParseExportTarget(ch.Target)
	prog, compiled := e.programs.get(s.Bundle)
	if !ok || !compiled {
		return nil
	}
	to, err := export.ParseRecipient(recipient)
	if err != nil {
		return nil //nolint:nilerr // the decision says so
	}
	all, versions := s.Exportable(secrets, now)
	if t := (&turn{e: e, s: s, now: now, prog: prog}); t.exportable(x, secrets.String(), all, ch.Index) != nil {
		return nil // nothing is opened for what is refused
	}
	select {
	case e.exports <- struct{}{}:
	case <-ctx.Done():
		return problem.Wrap(context.Cause(ctx), problem.ReasonCanceled, "waiting for another export")
	}
	p := &exporting{list: state.ExportList(all), room: e.exports}
	held.export = p // from here on it is wiped, whatever becomes of it
	if ch, ok := e.log.State().Changes.Get(change); !ok || ch.State != state.Waiting {
		return nil // fetched meanwhile
	}
	items := make([]export.Item, len(all))
	for i, v := range versions {
		value, err := e.exported(ctx, all[i].Secret, v)
		if problem.Is(err, problem.ReasonNotFound) {
			return nil // destroyed meanwhile
		}
		if err != nil {
			return err
		}
		p.values, items[i] = append(p.values, value), export.Item{Secret: all[i].Secret, Version: v.Number, Digest: v.Digest.String(), Value: value.Expose()}
		if p.bytes += value.Len(); p.bytes > maxExport {
			return nil
		}
	}
	p.file, err = export.Seal(to, export.Header{
		Environment: s.Env.Name, Genesis: s.Env.Genesis.String(), Change: ch.Index, Secrets: secrets.String(),
	}, items)
	if err != nil {
		return problem.Wrap(err, problem.ReasonInternal, "sealing an export")
	}
	return nil
}

// exported opens a version. Those that are not cached are not put there either: they would push out what is read all the time.
func (e *Environment) exported(ctx context.Context, path string, v *state.Version) (seal.Secret, error) {
	row, cached := e.values.Get(v.Sealed)
	if !cached {
		var err error
		if row, err = e.log.Store().Sealed(ctx, v.Sealed); err != nil {
			return seal.Secret{}, e.storeProblem(err, "reading a sealed version")
		}
	}
	return e.open(path, v, row)
}

// exportProposable says why a change can't be about an export to its proposer. What is refused now would be then.
func (t *turn) exportProposable(x *state.Session, p *proposal) error {
	target := p.text.Target
	secrets, recipient, ok := state.ParseExportTarget(target)
	if !ok {
		return problem.New(problem.ReasonInvalid, "the target %s is not PATTERN@RECIPIENT, a pattern of secrets and an X25519 recipient of age (age1…)", limitText(target))
	}
	if _, err := export.ParseRecipient(recipient); err != nil {
		return problem.Wrap(err, problem.ReasonInvalid, "the target")
	}
	if p.text.Reason == "" {
		return problem.New(problem.ReasonInvalid, "exporting takes a reason")
	}
	if err := t.attainable(ActionExport, "exporting"); err != nil {
		return err
	}
	all, _ := t.s.Exportable(secrets, t.now)
	// What it derives from comes to be with this entry: nothing before it cuts it off.
	return t.exportable(x, secrets.String(), all, t.at.Index+uint64(len(t.draft.Records)))
}

// attainable refuses an act for which there are too few persons.
func (t *turn) attainable(act, doing string) error {
	if need := t.prog.Environment().Needs(act); !policy.Quorum(t.prog, act, func(policy.Operator) bool { return true }) {
		return problem.New(problem.ReasonQuorum, "%s takes %d persons with the duty %s besides the proposer, and there are not as many", doing, need.Approvals, policy.DutyToApprove(act)).
			WithFix("bring a bundle into force that lists them")
	}
	return nil
}

// exportable says why these versions can't be exported to a session's person by a change that is in the entry born. The approvals stand for a
// grant; what wins over grants wins over them: denials, holds, and what was cut off since the change was proposed. One such secret stops all,
// since a file that lacks it would look like the whole.
func (t *turn) exportable(x *state.Session, pattern string, all []state.ExportedVersion, born uint64) error {
	switch {
	case len(all) == 0:
		return problem.New(problem.ReasonNotFound, "no secret of %s has a current version", limitText(pattern))
	case len(all) > state.MaxExported:
		return problem.New(problem.ReasonLimit, "an export has at most %d secrets, and %s has more", state.MaxExported, limitText(pattern)).WithFix("export narrower patterns, one after another")
	}
	in, err := inputOf(t.s, t.e.claims, x, policy.ReadSecret, "", PurposeExport, t.now)
	if err != nil {
		return problem.Wrap(err, problem.ReasonCondition, "reading the session's claims")
	}
	for _, v := range all {
		subject := state.Subject{Identity: x.Identity, Secret: v.Secret, Own: born, Root: born}
		if _, p := checkRevoked(t.s, subject, t.now); p != nil {
			return problem.New(p.Reason, "%s can't be exported: %s", v.Secret, p.Message)
		}
		in.Secret = v.Secret
		if d := t.prog.Decide(in); d.Reason == problem.ReasonDenied {
			return problem.New(d.Reason, "%s can't be exported: %s", v.Secret, d.Message)
		}
	}
	return nil
}

// export gives a complete change's file to who proposed it.
func (t *turn) export(ch *state.Change, x *state.Session, p *exporting, out *Proposal) error {
	secrets, recipient, _ := state.ParseExportTarget(ch.Target)
	all, _ := t.s.Exportable(secrets, t.now)
	if err := t.exportable(x, secrets.String(), all, ch.Index); err != nil {
		return err
	}
	list := state.ExportList(all)
	switch {
	case p == nil, p.list != list:
		return errStale
	case p.bytes > maxExport:
		return problem.New(problem.ReasonTooLarge, "an export has at most %d bytes of values, and those of %s are more", maxExport, secrets).
			WithFix("propose narrower patterns")
	case p.file == nil:
		return errStale
	}
	out.File, out.Values = p.file, len(all)
	_, err := t.enter(&state.SecretExported{
		Change: ch.Index, Secrets: secrets.String(), Recipient: recipient, Count: len(all), Versions: slices.Clone(state.ExportNamed(all)), List: list,
		File: sha256.Sum256(p.file), Bytes: len(p.file), Actor: actorOf(x), Ruling: t.ruling(""),
	})
	return err
}

// deliver is what is due when an export was entered: it is too late, or counted and told to the search for values in logs.
func (e *Environment) deliver(out *Proposal, p *exporting) error {
	out.Age = out.Proof.Age()
	if late := out.Age; late > deliveryDeadline {
		out.File = nil
		return problem.New(problem.ReasonDeliveryTooLate, "entry %d is %s old", out.Proof.Index, late.Round(time.Millisecond)).WithFix("propose it again: a change is fetched once")
	}
	e.checks.delivered.Add(uint64(out.Values))
	for _, v := range p.values {
		e.cfg.Silence.Seed(v.Expose())
	}
	return nil
}
