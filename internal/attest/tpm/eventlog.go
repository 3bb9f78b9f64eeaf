package tpm

import (
	"bytes"
	"crypto/sha256"

	"github.com/bailment/bailment/internal/problem"
)

// The firmware's event log, in the crypto-agile format of the TCG PC Client Platform Firmware Profile: little-endian; a
// header event in the old format that names the banks, then events with a digest for each bank. Nothing of it is believed but what
// replays to a quoted PCR, and of that only what its digests say: an event's type and its data are in no digest, unless the data is what
// was hashed.

const (
	maxEvents    = 8192
	evNoAction   = 0x00000003
	logAlgorithm = 8 // banks of a log
)

// event is one measurement, as the SHA-256 bank has it.
type event struct {
	at     int // its place in the log, from 0, the header being 0
	pcr    int
	kind   uint32
	digest [32]byte
	data   []byte
}

// bootLog is a parsed event log.
type bootLog struct {
	events   []event
	locality byte // of the TPM's start-up, which PCR 0 begins with (TCG_EfiStartupLocalityEvent)
}

func badLog(format string, args ...any) error {
	return problem.New(problem.ReasonEventLog, "the event log "+format, args...)
}

// parseLog reads a whole event log. It keeps parts of raw.
func parseLog(raw []byte) (bootLog, error) {
	if len(raw) > MaxEventLog {
		return bootLog{}, problem.New(problem.ReasonTooLarge, "the event log has more than %d bytes", MaxEventLog)
	}
	c := reader{rest: raw, little: true}
	sizes, err := parseHeader(&c)
	if err != nil {
		return bootLog{}, err
	}
	var out bootLog
	started := false
	for at := 1; len(c.rest) > 0; at++ {
		if at > maxEvents {
			return bootLog{}, problem.New(problem.ReasonTooLarge, "the event log has more than %d events", maxEvents)
		}
		e, err := parseEvent(&c, at, sizes)
		if err != nil {
			return bootLog{}, err
		}
		if e.kind != evNoAction {
			out.events = append(out.events, e)
			continue
		}
		if rest, ok := bytes.CutPrefix(e.data, []byte("StartupLocality\x00")); ok {
			if started || len(rest) != 1 || e.pcr != 0 || len(out.events) > 0 {
				return bootLog{}, badLog("says twice, too late or not at all at which locality the TPM was started")
			}
			started, out.locality = true, rest[0]
		}
	}
	return out, nil
}

// parseHeader reads the TCG_PCR_EVENT with the TCG_EfiSpecIdEvent and gives the size of each bank's digest.
func parseHeader(c *reader) (map[uint16]uint16, error) {
	pcr, kind := c.u32(), c.u32()
	c.take(20) // a SHA-1 digest of zeros
	data := c.take(int(c.u32()))
	if c.bad {
		return nil, badLog("is truncated in its header")
	}
	d := reader{rest: data, little: true}
	if kind != evNoAction || pcr != 0 || !bytes.Equal(d.take(16), []byte("Spec ID Event03\x00")) {
		return nil, problem.New(problem.ReasonWeakAlgorithm, "the event log is in the old format, which has SHA-1 digests only")
	}
	d.take(4 + 4) // platform class, version, errata, size of integers
	count := d.u32()
	if count == 0 || count > logAlgorithm {
		return nil, badLog("names no banks, or more than %d", logAlgorithm)
	}
	sizes := make(map[uint16]uint16, count)
	for range count {
		alg, size := d.u16(), d.u16()
		if _, twice := sizes[alg]; twice || size == 0 || size > 64 {
			return nil, badLog("names a bank twice, or one with impossible digests")
		}
		sizes[alg] = size
	}
	if d.take(int(d.u8())); !d.done() {
		return nil, badLog("has a header of another form")
	}
	if size, ok := sizes[algSHA256]; !ok || size != sha256.Size {
		return nil, problem.New(problem.ReasonWeakAlgorithm, "the event log has no SHA-256 digests")
	}
	return sizes, nil
}

// parseEvent reads a TCG_PCR_EVENT2.
func parseEvent(c *reader, at int, sizes map[uint16]uint16) (event, error) {
	e := event{at: at}
	pcr := c.u32()
	e.kind = c.u32()
	count := c.u32()
	if c.bad {
		return event{}, badLog("is truncated in event %d", at)
	}
	// Events that are not extended may name the PCR that isn't one.
	if pcr > maxPCR && (e.kind != evNoAction || pcr != 0xffffffff) || count > logAlgorithm {
		return event{}, badLog("is damaged in event %d: no such PCR, or too many digests", at)
	}
	e.pcr = int(pcr & 0x7f)
	seen := uint32(0)
	for range count {
		alg := c.u16()
		size, ok := sizes[alg]
		digest := c.take(int(size))
		if !ok || c.bad {
			return event{}, badLog("is damaged or truncated in event %d: a digest of an unknown bank", at)
		}
		if alg == algSHA256 {
			seen++
			e.digest = [32]byte(digest)
		}
	}
	if seen != 1 {
		return event{}, badLog("has not one SHA-256 digest in event %d", at)
	}
	e.data = c.take(int(c.u32()))
	if c.bad {
		return event{}, badLog("is truncated in event %d", at)
	}
	return e, nil
}

// replay is the value that a PCR has after the events of the log (extend is H(old, digest)).
func (l bootLog) replay(pcr int) [32]byte {
	value := initial(pcr)
	if pcr == 0 {
		value[31] = l.locality
	}
	for _, e := range l.events {
		if e.pcr == pcr {
			value = extend(value, e.digest)
		}
	}
	return value
}

// initial is a PCR's value after TPM2_Startup (PC Client Platform TPM Profile): those of a dynamic launch begin with ones.
func initial(pcr int) [32]byte {
	var v [32]byte
	if pcr >= 17 && pcr <= 22 {
		for i := range v {
			v[i] = 0xff
		}
	}
	return v
}

func extend(old, digest [32]byte) [32]byte {
	return sha256.Sum256(append(old[:], digest[:]...))
}

// strict reports whether nobody but the firmware, the boot loader and the kernel's first instructions extend a PCR, so that the log has
// all of it. The others are extended by the running system too (10: IMA; 11, 12, 13 and 15: systemd; 16 to 23: anybody).
func strict(pcr int) bool { return pcr <= 9 || pcr == 14 }

// explained is what a log and a quote together prove of a boot.
type explained struct {
	values map[int][32]byte // quoted
	log    *bootLog         // nil: none was sent
	whole  map[int]bool     // PCRs whose quoted value is the log's
}

// explain compares a log with quoted PCRs. raw may be empty.
func explain(raw []byte, values map[int][32]byte, pcrs []int) (explained, error) {
	x := explained{values: values, whole: map[int]bool{}}
	if len(raw) == 0 {
		return x, nil
	}
	log, err := parseLog(raw)
	if err != nil {
		return explained{}, err
	}
	x.log = &log
	for _, pcr := range pcrs {
		x.whole[pcr] = log.replay(pcr) == values[pcr]
		if !x.whole[pcr] && strict(pcr) {
			return explained{}, badLog("does not replay to the quoted PCR %d", pcr)
		}
	}
	return x, nil
}

// events are those of a PCR, if they are proved.
func (x explained) events(pcr int) []event {
	if x.log == nil || !x.whole[pcr] {
		return nil
	}
	var out []event
	for _, e := range x.log.events {
		if e.pcr == pcr {
			out = append(out, e)
		}
	}
	return out
}
