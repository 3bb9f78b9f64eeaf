package policy

// Quorum is whether a change could be approved by some of the operators.
type Quorum struct {
	Needed    int  // distinct persons who approve
	Self      bool // the proposer's own approval counts (development without approvals)
	Proposers int  // who may propose
	Approvers int  // who may approve
	Reached   bool // some proposer has enough approvers
}

// Quorum counts the operators that are free to act; nil: all are. It takes one who may propose, and as many who may approve as a change
// needs, besides him unless Self.
func (p *Program) Quorum(free func(Operator) bool) Quorum {
	q := Quorum{Needed: max(p.environment.Approvals, 1), Self: p.environment.Approvals == 0 && p.environment.Class == Development}
	both := false // somebody who proposes doesn't approve, or need not be counted out
	for _, o := range p.operators {
		if free != nil && !free(o) {
			continue
		}
		if o.Has(DutyApprove) {
			q.Approvers++
		}
		if o.Has(DutyPropose) {
			q.Proposers++
			both = both || q.Self || !o.Has(DutyApprove)
		}
	}
	others := q.Approvers
	if !both {
		others--
	}
	q.Reached = q.Proposers > 0 && others >= q.Needed
	return q
}
