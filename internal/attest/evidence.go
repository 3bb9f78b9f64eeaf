package attest

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"unicode"
	"unicode/utf8"

	"github.com/bailment/bailment/internal/problem"
)

// MaxEvidence is the most bytes of evidence that a verifier looks at, unless its method says more. LargestEvidence is the most that
// a method may say.
const (
	MaxEvidence     = 64 << 10
	LargestEvidence = 2 << 20
)

// Limits on claims. A ledger entry has 32 KiB for everything, so claims get a quarter of it.
const (
	MaxClaims      = 8 << 10 // bytes of JSON
	maxClaimString = 2048    // bytes; a URI SAN may hold a SPIFFE ID, which has this limit
	maxClaimDepth  = 4
)

// DecodeEvidence reads evidence into a struct of the method. Evidence has exactly one encoding: what
// EncodeEvidence makes of the struct, with the fields in order and no white space. So a duplicate
// field, another letter case, loose base64 or anything before or after is refused, and nobody can
// make a second evidence out of a first one that differs in bytes but not in meaning.
func DecodeEvidence(data []byte, into any) error { return DecodeUpTo(MaxEvidence, data, into) }

// DecodeUpTo is DecodeEvidence for methods whose evidence is larger.
func DecodeUpTo(most int, data []byte, into any) error {
	if len(data) > most {
		return problem.New(problem.ReasonTooLarge, "the evidence has more than %d bytes", most)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	// The decoder's own messages quote the input, which is a stranger's: they stay inside.
	if err := dec.Decode(into); err != nil {
		return malformed(err, "the evidence is not the JSON document of this method (truncated, or a field that it doesn't know)")
	}
	if _, err := dec.Token(); err != io.EOF {
		return malformed(nil, "something follows the evidence")
	}
	again, err := EncodeUpTo(most, into)
	if err != nil {
		return err
	}
	if !bytes.Equal(data, again) {
		return malformed(nil, "the evidence is not in its one encoding (a duplicate field, other letter case, order, white space or loose base64)")
	}
	return nil
}

// EncodeEvidence is the inverse of DecodeEvidence.
func EncodeEvidence(from any) ([]byte, error) { return EncodeUpTo(MaxEvidence, from) }

// EncodeUpTo is the inverse of DecodeUpTo.
func EncodeUpTo(most int, from any) ([]byte, error) {
	data, err := json.Marshal(from)
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonInternal, "encode evidence")
	}
	if len(data) > most {
		return nil, problem.New(problem.ReasonTooLarge, "the evidence has more than %d bytes", most)
	}
	return data, nil
}

func malformed(cause error, message string) error {
	p := problem.New(problem.ReasonInvalid, "%s", message)
	p.Err = cause
	return p
}

// CheckClaims says what forbids claims from being claims, or nil: only strings, lists and maps of
// them, printable UTF-8, bounded. Verifiers call it last, callers need not repeat it.
func CheckClaims(claims map[string]any) error {
	if err := checkClaim(claims, 0); err != nil {
		return err
	}
	data, err := json.Marshal(claims)
	if err != nil {
		return problem.Wrap(err, problem.ReasonInternal, "encode claims")
	}
	if len(data) > MaxClaims {
		return problem.New(problem.ReasonTooLarge, "the claims have more than %d bytes", MaxClaims)
	}
	return nil
}

func checkClaim(v any, depth int) error {
	if depth > maxClaimDepth {
		return problem.New(problem.ReasonInternal, "claims are nested more than %d deep", maxClaimDepth)
	}
	switch v := v.(type) {
	case string:
		return CheckClaimText(v)
	case []any:
		for _, e := range v {
			if err := checkClaim(e, depth+1); err != nil {
				return err
			}
		}
	case map[string]any:
		for k, e := range v {
			if err := CheckClaimText(k); err != nil {
				return err
			}
			if err := checkClaim(e, depth+1); err != nil {
				return err
			}
		}
	default:
		return problem.New(problem.ReasonInternal, "a claim of type %T is not a JSON text, list or map", v)
	}
	return nil
}

// CheckClaimText refuses what could look in a terminal, a log or an identity like something else:
// bytes that aren't UTF-8, control and format characters (which hold NUL and the bidirectional
// overrides), spaces other than U+0020, and what is longer than 2,048 bytes.
func CheckClaimText(s string) error {
	if len(s) > maxClaimString {
		return problem.New(problem.ReasonTooLarge, "a claim has more than %d bytes", maxClaimString)
	}
	if !utf8.ValidString(s) {
		return problem.New(problem.ReasonInvalid, "a claim is not UTF-8")
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return problem.New(problem.ReasonInvalid, "a claim holds an unprintable character (U+%04X)", r)
		}
	}
	return nil
}

// paramsOf gives the verifier its own Params. Another type is a defect in the server's wiring, which
// must fail closed but not as if the stranger had done something wrong.
func paramsOf[P any](in Input) (P, error) {
	p, ok := in.Params.(P)
	if !ok {
		var zero P
		return zero, problem.New(problem.ReasonInternal, "verifier of %s got %T, wants %T", in.Binding.Method, in.Params, zero)
	}
	return p, nil
}

// Begin is the first line of every verifier: it refuses a binding that is incomplete or of another
// method, which would be a defect of the caller, and evidence that is too large to be looked at, and
// gives the verifier its own Params.
func Begin[P any](in Input, method string) (P, error) { return BeginUpTo[P](MaxEvidence, in, method) }

// BeginUpTo is Begin for methods whose evidence is larger.
func BeginUpTo[P any](most int, in Input, method string) (P, error) {
	var none P
	if err := in.Binding.Validate(); err != nil {
		return none, problem.Wrap(err, problem.ReasonInternal, "verify evidence")
	}
	if err := in.Binding.of(method); err != nil {
		return none, err
	}
	if in.Now.IsZero() {
		return none, problem.New(problem.ReasonInternal, "verify evidence: no time was given")
	}
	if len(in.Evidence) > most {
		return none, problem.New(problem.ReasonTooLarge, "the evidence has more than %d bytes", most)
	}
	return paramsOf[P](in)
}

// BeginAttest is the first line of every Attester's Attest: it refuses a context that has ended, and
// a binding that is incomplete or, which would be a defect of the caller, of another method.
func BeginAttest(ctx context.Context, b Binding, method string) error {
	if err := ctx.Err(); err != nil {
		return problem.Wrap(err, problem.ReasonCanceled, "attest by %s", method)
	}
	if err := b.Validate(); err != nil {
		return err
	}
	return b.of(method)
}
