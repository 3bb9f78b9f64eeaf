// Package verify is the offline auditor of a Bailment ledger: it checks checkpoints, receipts and
// consistency proofs with nothing but the log's public keys, and makes and checks proofs that a
// log misbehaved.
//
// Guaranteed: what it accepts was signed by a key that the caller gave, and the entry, its index
// and the tree head belong together by SHA-256 (RFC 6962 §2.1). Parsing is strict, so that one
// statement has one text; every input has a size limit. Not guaranteed: that the keys are the
// right ones (take them from a bootstrap string or another source outside of what is checked);
// that the log shows everybody the same tree, which is what witnesses and a saved checkpoint are
// for; that the receipt's body tells the truth about the world.
//
// The formats are C2SP's signed-note, tlog-checkpoint and tlog-proof@v1, in a profile: no extension
// lines, canonical base64, and a receipt always carries its entry. Signatures of unknown keys are
// ignored, as C2SP demands, but must be well-formed and have an ASCII name.
//
// It is pure and public: it imports the standard library and golang.org/x/mod only, and everything
// else in Bailment that reads or writes these formats goes through it.
package verify

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Limits, in bytes unless said otherwise.
const (
	MaxReceipt      = 64 << 10
	MaxCheckpoint   = 16 << 10 // a signed checkpoint with all its signatures
	MaxBody         = 32 << 10 // an entry's body
	MaxOrigin       = 255
	MaxMisbehaviour = 64 << 10
	MaxSignatures   = 32 // signature lines under one checkpoint
	maxProof        = 64 // hashes in one proof
	maxVkey         = 512
	// maxSize bounds the entries of a log, by 300 years of a million a second. Package tlog's search
	// for the largest power of two below a size does not end above 2^62, so that a hostile log
	// could hang its auditor with one number.
	maxSize = 1 << 53
)

// SaltSize is the length of an entry's salt in bytes.
const SaltSize = 16

// What a check can find; errors.Is tells them apart.
var (
	// ErrTooLarge: the input is beyond a limit and was not looked at.
	ErrTooLarge = errors.New("too large")
	// ErrMalformed: the text is not in the one form that is accepted.
	ErrMalformed = errors.New("malformed")
	// ErrKey: a verifier key is not usable.
	ErrKey = errors.New("bad verifier key")
	// ErrSignature: no given key of this log has signed it, or a signature is wrong.
	ErrSignature = errors.New("not authentic")
	// ErrProof: the hashes don't lead from the entry to the signed tree head.
	ErrProof = errors.New("proof does not verify")
	// ErrInconsistent: the newer tree does not extend the older one, as far as the proof shows.
	ErrInconsistent = errors.New("checkpoints are not consistent")
)

const leafPrefix = "bailment/leaf/v1\n"

// LeafCommitment is the record of an entry in the Merkle tree: SHA-256 of "bailment/leaf/v1\n",
// the salt and the body. The random salt keeps a guessable body from being confirmed by its hash.
func LeafCommitment(salt [SaltSize]byte, body []byte) [sha256.Size]byte {
	h := sha256.New()
	h.Write([]byte(leafPrefix))
	h.Write(salt[:])
	h.Write(body)
	var sum [sha256.Size]byte
	h.Sum(sum[:0])
	return sum
}

// LeafHash is the Merkle leaf hash of a commitment (RFC 6962 §2.1): SHA-256 of a zero byte and it.
func LeafHash(commitment [sha256.Size]byte) tlog.Hash { return tlog.RecordHash(commitment[:]) }

// ParseVerifier reads a log's public key in the form NAME+HASH+BASE64 of golang.org/x/mod's note
// package; Ed25519 only, and only the canonical spelling.
func ParseVerifier(vkey string) (note.Verifier, error) {
	if len(vkey) > maxVkey {
		return nil, fmt.Errorf("verifier key of %d bytes: %w, at most %d", len(vkey), ErrTooLarge, maxVkey)
	}
	v, err := note.NewVerifier(vkey)
	if err != nil {
		return nil, fmt.Errorf("%w %.80q: %v", ErrKey, vkey, err)
	}
	// Package note takes other spellings of the hash and of the base64 padding bits.
	key, err := base64.StdEncoding.DecodeString(vkey[len(v.Name())+len("+01234567+"):])
	if err == nil {
		var again string
		if again, err = note.NewEd25519VerifierKey(v.Name(), key[1:]); err == nil && again != vkey {
			err = errors.New("not in canonical form")
		}
	}
	if err == nil && !validOrigin(v.Name()) {
		err = errors.New("its name is not a log's name")
	}
	if err != nil {
		return nil, fmt.Errorf("%w %.80q: %v", ErrKey, vkey, err)
	}
	return v, nil
}

// Checkpoint is a tree head: the log's name, how many entries it has, and the root of their tree.
type Checkpoint struct {
	Origin string // bailment/ENVIRONMENT/GENESIS/EPOCH; also the name of the log's keys
	Size   int64  // number of entries; at least 0
	Root   tlog.Hash
}

// Text is the note text that is signed (C2SP tlog-checkpoint): three lines.
func (c Checkpoint) Text() string {
	return c.Origin + "\n" + strconv.FormatInt(c.Size, 10) + "\n" + c.Root.String() + "\n"
}

// ParseCheckpoint reads the note text of a checkpoint. It says nothing about signatures: see
// OpenCheckpoint.
func ParseCheckpoint(text string) (Checkpoint, error) {
	if len(text) > MaxCheckpoint {
		return Checkpoint{}, fmt.Errorf("checkpoint of %d bytes: %w, at most %d", len(text), ErrTooLarge, MaxCheckpoint)
	}
	bad := func(format string, args ...any) (Checkpoint, error) {
		return Checkpoint{}, fmt.Errorf("%w checkpoint: %s", ErrMalformed, fmt.Sprintf(format, args...))
	}
	lines := strings.Split(text, "\n")
	switch {
	case len(lines) < 4:
		return bad("%d whole lines, want 3", len(lines)-1)
	case len(lines) > 4:
		return bad("text after the root hash: extension lines are not accepted")
	case lines[3] != "":
		return bad("the last line does not end")
	case !validOrigin(lines[0]):
		return bad("the first line is not a log's name")
	}
	c := Checkpoint{Origin: lines[0]}
	var err error
	if c.Size, err = parseNumber(lines[1]); err != nil {
		return bad("size: %v", err)
	}
	if c.Root, err = parseHash(lines[2]); err != nil {
		return bad("root hash: %v", err)
	}
	if c.Size == 0 && c.Root != sha256.Sum256(nil) {
		return bad("an empty tree with the root of another")
	}
	return c, nil
}

// validOrigin is the rule for a note's key name (C2SP signed-note), which an origin also is.
func validOrigin(s string) bool {
	if s == "" || len(s) > MaxOrigin || !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if r <= ' ' || r >= 0x7f || r == '+' {
			return false
		}
	}
	return true
}

func parseNumber(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > maxSize || strconv.FormatInt(n, 10) != s {
		return 0, fmt.Errorf("%.24q is not a decimal number without leading zeroes up to 2^53", s)
	}
	return n, nil
}

func parseHash(s string) (tlog.Hash, error) {
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != tlog.HashSize || len(s) != base64.StdEncoding.EncodedLen(tlog.HashSize) {
		return tlog.Hash{}, fmt.Errorf("%.48q is not a SHA-256 digest in base64", s)
	}
	return tlog.Hash(b), nil
}

// Opened is a checkpoint whose signatures were checked.
type Opened struct {
	Checkpoint
	Signers []string // names of the given verifiers that signed it, in the note's order
}

// OpenCheckpoint checks a signed checkpoint. At least one of the verifiers named like the
// checkpoint's origin must have signed it; the others (the log's older keys, witnesses) may have.
// A wrong signature by any of the given verifiers is an error.
func OpenCheckpoint(signed []byte, verifiers ...note.Verifier) (Opened, error) {
	if len(signed) > MaxCheckpoint {
		return Opened{}, fmt.Errorf("signed checkpoint of %d bytes: %w, at most %d", len(signed), ErrTooLarge, MaxCheckpoint)
	}
	if err := checkSignatureLines(string(signed)); err != nil {
		return Opened{}, err
	}
	n, err := note.Open(signed, note.VerifierList(verifiers...))
	var unverified *note.UnverifiedNoteError
	var invalid *note.InvalidSignatureError
	switch {
	case errors.As(err, &unverified):
		return Opened{}, fmt.Errorf("checkpoint is %w: none of the given keys has signed it", ErrSignature)
	case errors.As(err, &invalid):
		return Opened{}, fmt.Errorf("checkpoint is %w: the signature by %s+%08x is wrong", ErrSignature, invalid.Name, invalid.Hash)
	case err != nil:
		return Opened{}, fmt.Errorf("%w signed checkpoint: %v", ErrMalformed, err)
	}
	c, err := ParseCheckpoint(n.Text)
	if err != nil {
		return Opened{}, err
	}
	o := Opened{Checkpoint: c}
	own := false
	for _, s := range n.Sigs {
		o.Signers = append(o.Signers, s.Name)
		own = own || s.Name == c.Origin
	}
	if !own {
		return Opened{}, fmt.Errorf("checkpoint is %w: it is signed by %s, but not by its log %s", ErrSignature, strings.Join(o.Signers, ", "), c.Origin)
	}
	return o, nil
}

// checkSignatureLines refuses what package note would let pass: base64 with other than canonical
// bits, which would give one signature many texts, repeated lines, and too many of them.
func checkSignatureLines(signed string) error {
	i := strings.LastIndex(signed, "\n\n")
	if i < 0 {
		return fmt.Errorf("%w signed checkpoint: no signatures", ErrMalformed)
	}
	body, ended := strings.CutSuffix(signed[i+2:], "\n")
	if !ended {
		return fmt.Errorf("%w signed checkpoint: the last line does not end", ErrMalformed)
	}
	lines := strings.Split(body, "\n")
	if len(lines) > MaxSignatures {
		return fmt.Errorf("signed checkpoint with %d signatures: %w, at most %d", len(lines), ErrTooLarge, MaxSignatures)
	}
	seen := make(map[string]bool, len(lines))
	for _, line := range lines {
		rest, ok := strings.CutPrefix(line, "— ")
		name, b64, ok2 := strings.Cut(rest, " ")
		if !ok || !ok2 || !validOrigin(name) {
			return fmt.Errorf("%w signed checkpoint: %.40q is not a signature line", ErrMalformed, line)
		}
		sig, err := base64.StdEncoding.Strict().DecodeString(b64)
		if err != nil || len(sig) < 5 || len(b64) != base64.StdEncoding.EncodedLen(len(sig)) {
			return fmt.Errorf("%w signed checkpoint: the signature by %s is not canonical base64", ErrMalformed, name)
		}
		key := name + string(sig[:4])
		if seen[key] {
			return fmt.Errorf("%w signed checkpoint: two signatures by one key of %s", ErrMalformed, name)
		}
		seen[key] = true
	}
	return nil
}

// CheckConsistency checks that the newer tree is the older one with entries added (RFC 6962
// §2.1.2). For equal sizes and for an empty older tree the proof is empty.
func CheckConsistency(older, newer Checkpoint, proof tlog.TreeProof) error {
	switch {
	case older.Origin != newer.Origin:
		return fmt.Errorf("%w: they are of two logs, %s and %s", ErrInconsistent, older.Origin, newer.Origin)
	case older.Size < 0 || newer.Size > maxSize:
		return fmt.Errorf("%w: impossible sizes %d and %d", ErrInconsistent, older.Size, newer.Size)
	case older.Size > newer.Size:
		return fmt.Errorf("%w: the newer has %d entries, the older %d", ErrInconsistent, newer.Size, older.Size)
	case len(proof) > maxProof:
		return fmt.Errorf("consistency proof of %d hashes: %w", len(proof), ErrTooLarge)
	case older.Size == newer.Size && older.Root != newer.Root:
		return fmt.Errorf("%w: two roots for %d entries", ErrInconsistent, older.Size)
	case older.Size == 0 || older.Size == newer.Size:
		if len(proof) != 0 {
			return fmt.Errorf("consistency %w: hashes where none are needed", ErrProof)
		}
		return nil
	}
	if err := tlog.CheckTree(proof, newer.Size, newer.Root, older.Size, older.Root); err != nil {
		return fmt.Errorf("%w: the proof doesn't lead from %d to %d entries", ErrInconsistent, older.Size, newer.Size)
	}
	return nil
}
