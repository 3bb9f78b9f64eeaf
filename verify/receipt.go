package verify

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Receipt proves that an entry is in a log: the entry with its salt, its index, the hashes from
// its leaf to a root, and the checkpoint that signs that root. It verifies offline, for ever.
type Receipt struct {
	Salt       [SaltSize]byte
	Body       []byte // the entry; 1 to MaxBody bytes
	Index      int64  // the entry's place in the log, from 0
	Proof      tlog.RecordProof
	Checkpoint []byte // signed checkpoint, as OpenCheckpoint takes it
}

const (
	receiptHeader = "c2sp.org/tlog-proof@v1\n"
	extraPrefix   = "extra "
	indexPrefix   = "index "
)

// FormatReceipt writes a receipt in C2SP's tlog-proof@v1 text, whose extra data is salt and body.
// It fails on what ParseReceipt would refuse for its size.
func FormatReceipt(r Receipt) ([]byte, error) {
	switch {
	case len(r.Body) == 0 || len(r.Body) > MaxBody:
		return nil, fmt.Errorf("receipt: a body of %d bytes: %w, want 1 to %d", len(r.Body), ErrTooLarge, MaxBody)
	case r.Index < 0:
		return nil, fmt.Errorf("%w receipt: index %d", ErrMalformed, r.Index)
	case len(r.Proof) > maxProof:
		return nil, fmt.Errorf("receipt: a proof of %d hashes: %w, at most %d", len(r.Proof), ErrTooLarge, maxProof)
	case len(r.Checkpoint) > MaxCheckpoint:
		return nil, fmt.Errorf("receipt: a checkpoint of %d bytes: %w, at most %d", len(r.Checkpoint), ErrTooLarge, MaxCheckpoint)
	}
	return r.append(make([]byte, 0, 128+(SaltSize+len(r.Body))*4/3+45*len(r.Proof)+len(r.Checkpoint))), nil
}

func (r *Receipt) append(b []byte) []byte {
	b = append(b, receiptHeader+extraPrefix...)
	extra := make([]byte, 0, SaltSize+len(r.Body))
	extra = append(append(extra, r.Salt[:]...), r.Body...)
	b = base64.StdEncoding.AppendEncode(b, extra)
	b = append(b, "\n"+indexPrefix...)
	b = strconv.AppendInt(b, r.Index, 10)
	b = append(b, '\n')
	for i := range r.Proof {
		b = base64.StdEncoding.AppendEncode(b, r.Proof[i][:])
		b = append(b, '\n')
	}
	b = append(b, '\n')
	return append(b, r.Checkpoint...)
}

// ParseReceipt reads a receipt's text. It checks the form only: nothing in the result may be
// believed before Verify.
func ParseReceipt(text []byte) (*Receipt, error) {
	if len(text) > MaxReceipt {
		return nil, fmt.Errorf("receipt of %d bytes: %w, at most %d", len(text), ErrTooLarge, MaxReceipt)
	}
	bad := func(format string, args ...any) (*Receipt, error) {
		return nil, fmt.Errorf("%w receipt: %s", ErrMalformed, fmt.Sprintf(format, args...))
	}
	rest, ok := bytes.CutPrefix(text, []byte(receiptHeader))
	if !ok {
		return bad("the first line is not c2sp.org/tlog-proof@v1")
	}
	r := &Receipt{}
	line, rest, ok := bytes.Cut(rest, []byte("\n"))
	extra64, isExtra := bytes.CutPrefix(line, []byte(extraPrefix))
	if !ok || !isExtra {
		return bad("no extra line with the entry")
	}
	if err := r.parseExtra(extra64); err != nil {
		return bad("extra line: %v", err)
	}
	line, rest, ok = bytes.Cut(rest, []byte("\n"))
	index, isIndex := bytes.CutPrefix(line, []byte(indexPrefix))
	if !ok || !isIndex {
		return bad("no index line")
	}
	var err error
	if r.Index, err = parseNumber(string(index)); err != nil {
		return bad("index: %v", err)
	}
	for {
		if line, rest, ok = bytes.Cut(rest, []byte("\n")); !ok {
			return bad("no empty line before the checkpoint")
		}
		if len(line) == 0 {
			break
		}
		if len(r.Proof) == maxProof {
			return bad("more than %d hashes", maxProof)
		}
		h, err := parseHash(string(line))
		if err != nil {
			return bad("hash %d of the proof: %v", len(r.Proof), err)
		}
		r.Proof = append(r.Proof, h)
	}
	if len(rest) == 0 {
		return bad("no checkpoint")
	}
	if len(rest) > MaxCheckpoint {
		return nil, fmt.Errorf("receipt with a checkpoint of %d bytes: %w, at most %d", len(rest), ErrTooLarge, MaxCheckpoint)
	}
	r.Checkpoint = bytes.Clone(rest)
	return r, nil
}

func (r *Receipt) parseExtra(extra64 []byte) error {
	extra, err := base64.StdEncoding.Strict().AppendDecode(nil, extra64)
	switch {
	// The decoder skips line ends, so that a carriage return would pass: the length tells.
	case err != nil || len(extra64) != base64.StdEncoding.EncodedLen(len(extra)):
		return errors.New("not canonical base64")
	case len(extra) <= SaltSize:
		return fmt.Errorf("%d bytes, want a salt of %d and a body", len(extra), SaltSize)
	case len(extra) > SaltSize+MaxBody:
		return fmt.Errorf("a body of %d bytes, at most %d", len(extra)-SaltSize, MaxBody)
	}
	r.Salt, r.Body = [SaltSize]byte(extra), extra[SaltSize:]
	return nil
}

// Verified is what a receipt proves.
type Verified struct {
	Body       []byte // the entry
	Index      int64  // its index
	Checkpoint Opened // the tree head it is under: Checkpoint.Size tells how long the log was
}

// Verify checks the receipt's signature and hashes with the log's keys, and returns what is proved.
func (r *Receipt) Verify(verifiers ...note.Verifier) (Verified, error) {
	c, err := OpenCheckpoint(r.Checkpoint, verifiers...)
	if err != nil {
		return Verified{}, fmt.Errorf("receipt: %w", err)
	}
	if r.Index < 0 || r.Index >= c.Size {
		return Verified{}, fmt.Errorf("receipt: %w: index %d is not below the checkpoint's size %d", ErrProof, r.Index, c.Size)
	}
	leaf := LeafHash(LeafCommitment(r.Salt, r.Body))
	if err := tlog.CheckRecord(r.Proof, c.Size, c.Root, r.Index, leaf); err != nil {
		return Verified{}, fmt.Errorf("receipt: %w: the entry is not number %d of the %d under this checkpoint", ErrProof, r.Index, c.Size)
	}
	return Verified{Body: r.Body, Index: r.Index, Checkpoint: c}, nil
}

// VerifyReceipt is ParseReceipt and Verify in one, with keys in text form.
func VerifyReceipt(text []byte, vkeys ...string) (Verified, error) {
	verifiers := make([]note.Verifier, len(vkeys))
	for i, k := range vkeys {
		var err error
		if verifiers[i], err = ParseVerifier(k); err != nil {
			return Verified{}, err
		}
	}
	r, err := ParseReceipt(text)
	if err != nil {
		return Verified{}, err
	}
	return r.Verify(verifiers...)
}
