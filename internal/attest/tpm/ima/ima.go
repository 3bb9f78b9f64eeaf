// Package ima reads the measurement list of the Linux kernel's Integrity Measurement Architecture: the files that the kernel measured
// since it was started, each of which it extended PCR 10 with.
//
// Guaranteed: a list that Verify accepts ends at the value that it is compared with, and the files that it names were measured into
// that value, in a list of limited size. Not guaranteed: anything of what came before the list's start, and that a file which was
// measured was run, or by whom.
//
// Its place: part of the attestation method tpm, which quotes PCR 10. The agent calls Shorten, the server List.Verify, which is pure.
package ima

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"

	"github.com/bailment/bailment/internal/problem"
)

// PCR is the one that the kernel extends with each entry: in its SHA-256 bank with SHA-256 of the entry's template data,
// in kernels that know of banks (older ones pad a SHA-1 digest, and then no list leads to the quoted value),
// and with ones for a violation, which is a file that was written while it was read.
const PCR = 10

// Limits on lists.
const (
	Max         = 16384 // entries in evidence
	maxRead     = 64 << 20
	MaxRevealed = 8
	maxData     = 4 << 10
)

// List is a measurement list in short, as evidence has it: the value of PCR 10 before its first entry (any value: that the entries follow on it is what
// leads to the quoted one, and nobody can find others that do), the digests that PCR 10 was extended with since, and a few entries in full.
type List struct {
	Start   []byte  `json:"start"`
	Digests []byte  `json:"digests"` // 32 bytes each
	Entries []Entry `json:"entries"`
}

// Entry is one entry in full.
type Entry struct {
	At   uint32 `json:"at"`   // place in Digests
	Data []byte `json:"data"` // template data of ima-ng or ima-sig
}

func bad(why string) error {
	return problem.New(problem.ReasonEventLog, "IMA's measurement list %s", why)
}

// Verify replays the list to the quoted PCR 10, and gives the SHA-256 digests of the files whose entries are there in full.
func (l List) Verify(quoted [32]byte) (map[[32]byte]bool, error) {
	count := len(l.Digests) / 32
	switch {
	case len(l.Start) != 32 || len(l.Digests)%32 != 0 || count == 0:
		return nil, bad("is not whole digests")
	case count > Max || len(l.Entries) > MaxRevealed:
		return nil, problem.New(problem.ReasonTooLarge, "IMA's measurement list has more than %d entries, or %d in full", Max, MaxRevealed)
	}
	value := [32]byte(l.Start)
	for i := range count {
		value = extend(value, [32]byte(l.Digests[32*i:]))
	}
	if value != quoted {
		return nil, bad("does not replay to the quoted PCR 10")
	}
	files := map[[32]byte]bool{}
	last := -1
	for _, e := range l.Entries {
		if int64(e.At) >= int64(count) || int(e.At) <= last || len(e.Data) > maxData {
			return nil, bad("has an entry at no place, out of order, or too long")
		}
		last = int(e.At)
		if sha256.Sum256(e.Data) != [32]byte(l.Digests[32*e.At:]) {
			return nil, bad("has an entry that is not what was measured")
		}
		file, ok := fileOf(e.Data)
		if !ok {
			return nil, bad("has an entry without a SHA-256 digest of a file")
		}
		files[file] = true
	}
	return files, nil
}

// fileOf reads the digest of the file from template data of ima-ng and ima-sig: fields with their lengths before them, the first being
// "sha256:", NUL and the digest, the second the name, which is ended by a NUL.
func fileOf(data []byte) (digest [32]byte, ok bool) {
	field, rest, ok := cutField(data)
	name, _, named := cutField(rest)
	if !ok || !named || len(name) == 0 || name[len(name)-1] != 0 {
		return digest, false
	}
	sum, ok := bytes.CutPrefix(field, []byte("sha256:\x00"))
	if !ok || len(sum) != 32 {
		return digest, false
	}
	return [32]byte(sum), true
}

// cutField reads a field with its length before it.
func cutField(data []byte) (field, rest []byte, ok bool) {
	if len(data) < 4 {
		return nil, nil, false
	}
	size := uint64(binary.LittleEndian.Uint32(data))
	if data = data[4:]; size > uint64(len(data)) {
		return nil, nil, false
	}
	return data[:size], data[size:], true
}

// extend is what a PCR becomes (TPM 2.0 Library Part 1, "Extend of a PCR").
func extend(old, digest [32]byte) [32]byte {
	return sha256.Sum256(append(old[:], digest[:]...))
}

// Shorten reads the kernel's list (binary_runtime_measurements), up to where it leads to the quoted PCR 10, and gives it in short, from
// the entry for the file on; nil if that entry isn't there or what follows it is too long. Only what IMA extended PCR 10 with is looked at.
func Shorten(ctx context.Context, list io.Reader, quoted, file [32]byte) (*List, error) {
	r := bufio.NewReaderSize(io.LimitReader(list, maxRead), 1<<16)
	var value [32]byte
	var out *List
	for count := 0; value != quoted || count == 0; count++ {
		if count%1024 == 0 && ctx.Err() != nil {
			return nil, problem.Wrap(ctx.Err(), problem.ReasonCanceled, "read IMA's measurement list")
		}
		digest, data, pcr, err := readEntry(r)
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil, bad("does not lead to the quoted PCR 10")
			}
			return nil, err
		}
		if pcr != PCR {
			continue
		}
		if found, ok := fileOf(data); ok && found == file && len(data) <= maxData {
			out = &List{Start: bytes.Clone(value[:]), Entries: []Entry{{Data: bytes.Clone(data)}}}
		}
		if out != nil && len(out.Digests) < 32*(Max+1) {
			out.Digests = append(out.Digests, digest[:]...)
		}
		value = extend(value, digest)
	}
	if out == nil || len(out.Digests) > 32*Max {
		return nil, nil
	}
	return out, nil
}

// readEntry reads one entry: PCR, SHA-1 of the template data, the template's name, its data. What PCR 10's SHA-256 bank was extended with
// follows from these.
func readEntry(r *bufio.Reader) (digest [32]byte, data []byte, pcr uint32, err error) {
	var head [28]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		if errors.Is(err, io.EOF) {
			return digest, nil, 0, io.EOF
		}
		return digest, nil, 0, bad("is truncated")
	}
	pcr = binary.LittleEndian.Uint32(head[:])
	size := binary.LittleEndian.Uint32(head[24:])
	if size == 0 || size > 64 {
		return digest, nil, 0, bad("has a template's name of impossible length")
	}
	name := make([]byte, size)
	var length [4]byte
	if _, err := io.ReadFull(r, name); err != nil {
		return digest, nil, 0, bad("is truncated")
	}
	if string(name) == "ima" {
		return digest, nil, 0, bad("is in the old template, which has no lengths")
	}
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return digest, nil, 0, bad("is truncated")
	}
	n := binary.LittleEndian.Uint32(length[:])
	if n > 1<<20 {
		return digest, nil, 0, bad("has an entry of impossible length")
	}
	data = make([]byte, n)
	if _, err := io.ReadFull(r, data); err != nil {
		return digest, nil, 0, bad("is truncated")
	}
	if bytes.Equal(head[4:24], make([]byte, 20)) {
		return [32]byte(bytes.Repeat([]byte{0xff}, 32)), data, pcr, nil // a violation
	}
	return sha256.Sum256(data), data, pcr, nil
}
