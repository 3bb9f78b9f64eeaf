package verify

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strconv"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Misbehaviour proves that a log signed two checkpoints that can't both be true. It is complete in
// itself: whoever has the log's keys can check it, and nobody without its private key can make it.
//
// Two checkpoints of one size with different roots are proof enough. For different sizes, Proof
// shows that the newer tree began with Prefix where the older checkpoint says Root: the log
// changed its past.
type Misbehaviour struct {
	Older, Newer []byte         // signed checkpoints of one origin; Newer isn't smaller
	Prefix       tlog.Hash      // root of the newer tree's first Older.Size entries
	Proof        tlog.TreeProof // leads from Prefix to the newer root; empty for equal sizes
}

// Verify returns nil if the misbehaviour is proved, under keys of the log.
func (m *Misbehaviour) Verify(verifiers ...note.Verifier) error {
	older, err := OpenCheckpoint(m.Older, verifiers...)
	if err != nil {
		return fmt.Errorf("older: %w", err)
	}
	newer, err := OpenCheckpoint(m.Newer, verifiers...)
	if err != nil {
		return fmt.Errorf("newer: %w", err)
	}
	switch {
	case older.Origin != newer.Origin:
		return fmt.Errorf("no misbehaviour: %w: they are of two logs, %s and %s", ErrProof, older.Origin, newer.Origin)
	case older.Size == 0:
		return fmt.Errorf("no misbehaviour: %w: an empty tree is consistent with every other", ErrProof)
	case m.Prefix == older.Root:
		return fmt.Errorf("no misbehaviour: %w: the newer tree begins with the older one", ErrProof)
	}
	prefix := Checkpoint{Origin: older.Origin, Size: older.Size, Root: m.Prefix}
	if err := CheckConsistency(prefix, newer.Checkpoint, m.Proof); err != nil {
		return fmt.Errorf("no misbehaviour: %w: the hashes don't belong to the newer tree: %v", ErrProof, err)
	}
	return nil
}

// Compare decides whether a log's newer checkpoint extends its older one, reading the newer tree's
// hashes. It returns nil if it does, a verified Misbehaviour if it doesn't, and an error if that
// can't be told: a signature is wrong, the sizes are the wrong way round, or the hashes are not
// the newer tree's.
func Compare(older, newer []byte, newerHashes tlog.HashReader, verifiers ...note.Verifier) (*Misbehaviour, error) {
	o, err := OpenCheckpoint(older, verifiers...)
	if err != nil {
		return nil, fmt.Errorf("older: %w", err)
	}
	n, err := OpenCheckpoint(newer, verifiers...)
	if err != nil {
		return nil, fmt.Errorf("newer: %w", err)
	}
	if o.Origin != n.Origin || o.Size > n.Size {
		return nil, CheckConsistency(o.Checkpoint, n.Checkpoint, nil)
	}
	m := &Misbehaviour{Older: bytes.Clone(older), Newer: bytes.Clone(newer), Prefix: n.Root}
	if o.Size > 0 && o.Size < n.Size {
		if m.Prefix, err = tlog.TreeHash(o.Size, newerHashes); err != nil {
			return nil, fmt.Errorf("read the newer tree: %w", err)
		}
		if m.Proof, err = tlog.ProveTree(n.Size, o.Size, newerHashes); err != nil {
			return nil, fmt.Errorf("read the newer tree: %w", err)
		}
		if err := tlog.CheckTree(m.Proof, n.Size, n.Root, o.Size, m.Prefix); err != nil {
			return nil, fmt.Errorf("%w: the hashes that were read are not those of the newer checkpoint", ErrProof)
		}
	}
	if o.Size == 0 || m.Prefix == o.Root {
		return nil, nil
	}
	return m, m.Verify(verifiers...)
}

const (
	misbehaviourHeader = "bailment/misbehaviour/v1\n"
	prefixPrefix       = "prefix "
	proofPrefix        = "proof "
	olderPrefix        = "older "
	newerPrefix        = "newer "
)

// Format writes the proof as text. The checkpoints are framed by their length in bytes:
//
//	bailment/misbehaviour/v1
//	prefix BASE64
//	proof BASE64        (none or more)
//	older LENGTH
//	…signed checkpoint…
//	newer LENGTH
//	…signed checkpoint…
func (m *Misbehaviour) Format() []byte {
	b := []byte(misbehaviourHeader + prefixPrefix)
	b = base64.StdEncoding.AppendEncode(b, m.Prefix[:])
	b = append(b, '\n')
	for i := range m.Proof {
		b = append(b, proofPrefix...)
		b = base64.StdEncoding.AppendEncode(b, m.Proof[i][:])
		b = append(b, '\n')
	}
	b = append(strconv.AppendInt(append(b, olderPrefix...), int64(len(m.Older)), 10), '\n')
	b = append(b, m.Older...)
	b = append(strconv.AppendInt(append(b, newerPrefix...), int64(len(m.Newer)), 10), '\n')
	return append(b, m.Newer...)
}

// ParseMisbehaviour reads what Format writes. It checks the form only: see Verify.
func ParseMisbehaviour(text []byte) (*Misbehaviour, error) {
	if len(text) > MaxMisbehaviour {
		return nil, fmt.Errorf("proof of misbehaviour of %d bytes: %w, at most %d", len(text), ErrTooLarge, MaxMisbehaviour)
	}
	bad := func(format string, args ...any) (*Misbehaviour, error) {
		return nil, fmt.Errorf("%w proof of misbehaviour: %s", ErrMalformed, fmt.Sprintf(format, args...))
	}
	rest, ok := bytes.CutPrefix(text, []byte(misbehaviourHeader))
	if !ok {
		return bad("the first line is not bailment/misbehaviour/v1")
	}
	m := &Misbehaviour{}
	line, rest, _ := bytes.Cut(rest, []byte("\n"))
	hash, ok := bytes.CutPrefix(line, []byte(prefixPrefix))
	if !ok {
		return bad("no prefix line")
	}
	var err error
	if m.Prefix, err = parseHash(string(hash)); err != nil {
		return bad("prefix: %v", err)
	}
	for bytes.HasPrefix(rest, []byte(proofPrefix)) {
		if len(m.Proof) == maxProof {
			return bad("more than %d hashes", maxProof)
		}
		line, rest, _ = bytes.Cut(rest[len(proofPrefix):], []byte("\n"))
		h, err := parseHash(string(line))
		if err != nil {
			return bad("proof: %v", err)
		}
		m.Proof = append(m.Proof, h)
	}
	if m.Older, rest, err = cutFramed(rest, olderPrefix); err != nil {
		return bad("%v", err)
	}
	if m.Newer, rest, err = cutFramed(rest, newerPrefix); err != nil {
		return bad("%v", err)
	}
	if len(rest) != 0 {
		return bad("%d bytes after the end", len(rest))
	}
	return m, nil
}

func cutFramed(b []byte, prefix string) (framed, rest []byte, err error) {
	b, ok := bytes.CutPrefix(b, []byte(prefix))
	length, b, ok2 := bytes.Cut(b, []byte("\n"))
	if !ok || !ok2 {
		return nil, nil, fmt.Errorf("no %sline", prefix)
	}
	n, err := parseNumber(string(length))
	if err != nil || n > int64(len(b)) {
		return nil, nil, fmt.Errorf("%s%.24q: not the length of what follows", prefix, length)
	}
	return bytes.Clone(b[:n]), b[n:], nil
}
