// Package policy is the environment as code: it reads a bundle (a directory of strict YAML, or the
// same files as blobs), says everything that is wrong with it, compiles it once, and then answers:
// may this identity do this (Program.Decide, and Program.Explain with the same evaluator), who is
// this (IdentifyNode, IdentifyWorkload), and what is declared (operators, secrets, authorities,
// the environment's settings). It also knows the manifest, the text that is signed for a bundle.
//
// Guaranteed: the answers depend on the bundle's files and the input only (no clock, no I/O, no
// randomness, no order of files); deny wins; a deny grant whose condition can't be evaluated
// denies; an allow grant whose condition can't be evaluated does not allow; whatever is not
// permitted is refused; a bundle with a finding does not compile; reading a hostile bundle costs
// bounded time and memory; a Program never changes and is safe for concurrent use.
// Not guaranteed: that the bundle was approved, or that the claims are true. The manifest's
// signatures and the attestation verifiers are for that.
//
// It is pure: it imports the standard library, the YAML and CEL libraries, x/crypto/ssh for the
// form of public keys, and the packages identity and problem.
//
//arch:allow package-lines: one language, read strictly: its reader, checker and evaluator change together
package policy
