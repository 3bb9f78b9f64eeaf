// Package reach says how far a compromise reaches: who can read a secret and by which ways, what somebody can get at who has taken an
// identity over, the smallest sets of principals that must be taken over for something, and what to take out of a bundle so that nobody
// of a class gets at it. It looks at one compiled bundle (policy.Program), and at names that the environment knows, and at nothing else.
//
// # The graph
//
// Things are identities, secrets' values, values that can be written, systems outside, and "the bundle", which is the ability to bring
// another one into force. An identity or secret is one that a name is given for, or a family: all that are selected by a pattern of the
// bundle and by none inside of it, which therefore no rule tells apart. Only what some rule, operator or declaration can give is there, and
// a secret that is not declared where a grant is about it and the question or Names mean it: it may be from an earlier bundle.
//
// A hop leads from what an attacker has to what he then gets. Each has one line of the bundle as its reason (a Step):
//
//   - reads: an allow grant for secret.read, unless every purpose of it is denied, or the identity's evidence can't prove the assurance
//     that it asks. A deny grant counts if it has no condition. Where a condition decides, of the grant or of a deny grant, the hop is
//     there, and it is conditional: whether the attacker can make it true is for the reader to say.
//   - speaks for: a node has every workload whose rule names it, whatever the rule's condition says of processes: it is the node's own
//     agent that tells their claims. A condition about node.path makes it conditional.
//   - unlocks, deploys: what the secret's declaration says.
//   - admits: an operator with the duty admit makes a join token for any name, and so has the identities of join tokens' rules.
//   - changes: operators who together can propose and approve a change (as many as it takes) have the bundle, and with it everything.
//   - acts: as many as secret.export takes have all values that no deny grant keeps from who proposes it. A break-glass grant of a bundle
//     without a budget (breakGlass.openings: 0) gives something only by glass.open, and a grant for secret.destroy, where persons approve
//     one another, only by secret.destroy: each to its proposer, who must have the grant. What each takes is asked of policy.QuorumBy.
//   - recovers: as many holders of recovery keys as it takes replace the operators, and so have the bundle: after a delay in public, so it
//     is conditional. Nothing leads to a holder: his key opens nothing else, and no secret can unlock it.
//   - writes, poisons: a grant for secret.write, and that whoever writes a value decides what its readers work with. That is no
//     certainty, as a reader may distrust what it reads: ways that need it are graded last, and can be left out. Generating a value is
//     no such hop: the server chooses it. Assurance is not looked at on the reader's side.
//
// Ways are graded Plain, Conditional (a condition on the way) and Poisoning. What is reached has the best grade of any way to it, and
// the way shown has that grade and, among those that are plain, the fewest hops. Every hop but those of acts needs one thing (OR); an act
// needs several operators (AND). What one act gives may be the key of an operator who has a part in another: that is followed, too.
//
// # The questions
//
// WhoCan lists the lines by which somebody gets to do something with a secret, and the acts and the recovery by which several do. From gives what is reached from principals of whom one
// is compromised; what takes a quorum is reached only if that one gets at a quorum alone. Attacks gives the smallest sets of principals
// that reach a target when all of a set are compromised: each one that does alone, each set without a superfluous member that gets
// at a quorum, and as many holders of recovery keys as it takes, which are one entry. Cut gives the cheapest set of lines and of identities between that, taken away, leaves no way from a class to a target:
// a line is one grant's permission for one of its identity patterns on one of its secret patterns and for one action, one entry of a
// workload's nodes, one entry of unlocks, or one operator's duty. It is exact (a minimum vertex cut, by maximum flow), but in two cases,
// which Answers name: where deny grants part a line's identities, each part counts; and where somebody of the class gets at a quorum
// alone, each operator who has a part in any act counts as if he were one. CheckLimits says which of a list of limits don't hold.
//
// # Guaranteed
//
// The answers depend on the program and the names only, and are in a fixed order. For identities and secrets that are named, without
// conditions, a hop to read or write is there exactly if Program.Decide allows it for some purpose and at the most that the identity's
// evidence proves (a property test compares them). Time and memory are bounded: see the limits below; beyond them the answer is an
// error of reason limit, never a part of the answer. Lists are cut off at Options.Most, or where their ways have half a million steps,
// and say how long they are.
//
// # Not guaranteed
//
// That the world is as it is declared: what secrets unlock is somebody's word. What isn't in a bundle isn't here: code that a repository
// can change, hosts that two workloads share, the issuers, authorities and signers of releases that attestation trusts, the server
// itself and its keys, what somebody read before and still knows. Sessions, holds and cutoffs are no part of it; explain knows them.
//
// It is pure and imports policy, identity, problem and its own flow.
package reach

// Limits. A question that would need more is refused.
const (
	maxNames    = 200_000     // identities and secrets that are given beside the bundle's
	maxEdges    = 12_000_000  // of the graph
	maxLines    = 1_000_000   // of the graph: a bundle's line counts for each group of those whom it concerns
	maxWork     = 200_000_000 // comparisons of a line with a deny grant
	maxQuorum   = 4_000_000   // operators looked at for sets that reach a quorum
	maxSteps    = 500_000     // of all ways in a list
	maxPatterns = 64          // in one question or limit
	defaultMost = 1000        // answers in a list
	maxMost     = 1_000_000
)
