package tpm

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

// The Linux kernel's Integrity Measurement Architecture keeps a list of the files that it measured, and extends PCR 10 with each entry
// (Documentation/ABI/testing/ima_policy and security/integrity/ima). In the SHA-256 bank it extends with SHA-256 of the entry's template
// data (since Linux 5.8), and with ones for a violation: a file that was written while it was read.

const (
	pcrIMA         = 10
	maxIMA         = 16384 // entries in evidence
	maxIMARead     = 64 << 20
	maxIMARevealed = 8
	maxIMAData     = 4 << 10
)

// imaList is a measurement list in short: the value of PCR 10 before its first entry (any value: that the entries follow on it is what
// leads to the quoted one, and nobody can find others that do), the digests that PCR 10 was extended with since, and a few entries in full.
type imaList struct {
	Start   []byte     `json:"start"`
	Digests []byte     `json:"digests"` // 32 bytes each
	Entries []imaEntry `json:"entries"`
}

type imaEntry struct {
	At   uint32 `json:"at"`   // place in Digests
	Data []byte `json:"data"` // template data of ima-ng or ima-sig
}

func badIMA(why string) error {
	return problem.New(problem.ReasonEventLog, "IMA's measurement list %s", why)
}

// verify replays the list to the quoted PCR 10, and gives the SHA-256 digests of the files whose entries are there in full.
func (l imaList) verify(quoted [32]byte) (map[[32]byte]bool, error) {
	count := len(l.Digests) / 32
	switch {
	case len(l.Start) != 32 || len(l.Digests)%32 != 0 || count == 0:
		return nil, badIMA("is not whole digests")
	case count > maxIMA || len(l.Entries) > maxIMARevealed:
		return nil, problem.New(problem.ReasonTooLarge, "IMA's measurement list has more than %d entries, or %d in full", maxIMA, maxIMARevealed)
	}
	value := [32]byte(l.Start)
	for i := range count {
		value = extend(value, [32]byte(l.Digests[32*i:]))
	}
	if value != quoted {
		return nil, badIMA("does not replay to the quoted PCR 10")
	}
	files := map[[32]byte]bool{}
	last := -1
	for _, e := range l.Entries {
		if int64(e.At) >= int64(count) || int(e.At) <= last || len(e.Data) > maxIMAData {
			return nil, badIMA("has an entry at no place, out of order, or too long")
		}
		last = int(e.At)
		if sha256.Sum256(e.Data) != [32]byte(l.Digests[32*e.At:]) {
			return nil, badIMA("has an entry that is not what was measured")
		}
		file, ok := fileOf(e.Data)
		if !ok {
			return nil, badIMA("has an entry without a SHA-256 digest of a file")
		}
		files[file] = true
	}
	return files, nil
}

// fileOf reads the digest of the file from template data of ima-ng and ima-sig: fields with their lengths before them, the first being
// "sha256:", NUL and the digest, the second the name, which is ended by a NUL.
func fileOf(data []byte) (digest [32]byte, ok bool) {
	c := reader{rest: data, little: true}
	field := c.take(int(c.u32()))
	name := c.take(int(c.u32()))
	if c.bad || len(name) == 0 || name[len(name)-1] != 0 {
		return digest, false
	}
	sum, ok := bytes.CutPrefix(field, []byte("sha256:\x00"))
	if !ok || len(sum) != 32 {
		return digest, false
	}
	return [32]byte(sum), true
}

// shorten reads the kernel's list (binary_runtime_measurements), up to where it leads to the quoted PCR 10, and gives it in short, from
// the entry for the file on; nil if that entry isn't there or what follows it is too long. Only what IMA extended PCR 10 with is looked at.
func shorten(ctx context.Context, list io.Reader, quoted, file [32]byte) (*imaList, error) {
	r := bufio.NewReaderSize(io.LimitReader(list, maxIMARead), 1<<16)
	var value [32]byte
	var out *imaList
	for count := 0; value != quoted || count == 0; count++ {
		if count%1024 == 0 && ctx.Err() != nil {
			return nil, problem.Wrap(ctx.Err(), problem.ReasonCanceled, "read IMA's measurement list")
		}
		digest, data, pcr, err := readIMA(r)
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil, badIMA("does not lead to the quoted PCR 10")
			}
			return nil, err
		}
		if pcr != pcrIMA {
			continue
		}
		if found, ok := fileOf(data); ok && found == file && len(data) <= maxIMAData {
			out = &imaList{Start: bytes.Clone(value[:]), Entries: []imaEntry{{Data: bytes.Clone(data)}}}
		}
		if out != nil && len(out.Digests) < 32*(maxIMA+1) {
			out.Digests = append(out.Digests, digest[:]...)
		}
		value = extend(value, digest)
	}
	if out == nil || len(out.Digests) > 32*maxIMA {
		return nil, nil
	}
	return out, nil
}

// readIMA reads one entry: PCR, SHA-1 of the template data, the template's name, its data. What PCR 10's SHA-256 bank was extended with
// follows from these.
func readIMA(r *bufio.Reader) (digest [32]byte, data []byte, pcr uint32, err error) {
	var head [28]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		if errors.Is(err, io.EOF) {
			return digest, nil, 0, io.EOF
		}
		return digest, nil, 0, badIMA("is truncated")
	}
	pcr = binary.LittleEndian.Uint32(head[:])
	size := binary.LittleEndian.Uint32(head[24:])
	if size == 0 || size > 64 {
		return digest, nil, 0, badIMA("has a template's name of impossible length")
	}
	name := make([]byte, size)
	var length [4]byte
	if _, err := io.ReadFull(r, name); err != nil {
		return digest, nil, 0, badIMA("is truncated")
	}
	if string(name) == "ima" {
		return digest, nil, 0, badIMA("is in the old template, which has no lengths")
	}
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return digest, nil, 0, badIMA("is truncated")
	}
	n := binary.LittleEndian.Uint32(length[:])
	if n > 1<<20 {
		return digest, nil, 0, badIMA("has an entry of impossible length")
	}
	data = make([]byte, n)
	if _, err := io.ReadFull(r, data); err != nil {
		return digest, nil, 0, badIMA("is truncated")
	}
	if bytes.Equal(head[4:24], make([]byte, 20)) {
		return [32]byte(bytes.Repeat([]byte{0xff}, 32)), data, pcr, nil // a violation
	}
	return sha256.Sum256(data), data, pcr, nil
}
