// Package hostile has no code: its tests attack a whole environment, over the wire, with evidence that proves nothing, for every
// attestation method there is.
//
// What each verifier refuses by itself is tested beside it; published samples of real platforms are there, too. Here it is shown that the
// server has nothing between the wire and the verifiers that would let more in, what a refusal leaves behind (a number in a sum, and
// nothing else), what a stranger can make the server spend, and what becomes of a machine whose answer was lost.
package hostile
