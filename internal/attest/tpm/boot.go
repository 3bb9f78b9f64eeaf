package tpm

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf16"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/authority"
)

// What a boot is, compared with the reference values of the bundle (RFC 9334 §8.3).
const (
	bootNone   = "none"   // there are no reference values
	bootKnown  = "known"  // it fits a set whose window is open
	bootSigned = "signed" // it does but for programs that Secure Boot verified by a signer of the set
	bootBad    = "bad"    // it fits none
)

// Limits on what is said of a boot.
const (
	maxFindings = 12
	maxImages   = 16
	maxText     = 1024 // bytes of a command line
)

// componentPCRs are those whose events are programs, or what tells programs what to do: drivers, boot loaders and kernels (2, 4),
// GRUB's commands, command line and files (8, 9), systemd's kernel image and its parts (11, 12, 13). All their events are compared with
// Reference.Events, whatever type the log gives them: the type is in no digest, so it could be used to hide one.
var componentPCRs = [...]int{2, 4, 8, 9, 11, 12, 13}

// imagePCRs are those whose events are programs that Secure Boot verifies before they run.
func imagePCR(pcr int) bool { return pcr == 2 || pcr == 4 }

// Types of events, for words only.
const (
	evIPL             = 0x0000000d
	evEventTag        = 0x00000006
	evBootApplication = 0x80000003
	evBootDriver      = 0x80000004
	evRuntimeDriver   = 0x80000005
)

// marker reports whether an event's digest is one of the fixed ones that say only how far a boot has come (PC Client Platform Firmware
// Profile: EV_SEPARATOR, and EV_EFI_ACTION of PCR 4 and 5).
func marker(d [32]byte) bool {
	for _, text := range []string{
		"\x00\x00\x00\x00", "\xff\xff\xff\xff",
		"Calling EFI Application from Boot Option", "Returning from EFI Application from Boot Option",
		"Exit Boot Services Invocation", "Exit Boot Services Returned with Success",
	} {
		if d == sha256.Sum256([]byte(text)) {
			return true
		}
	}
	return false
}

// separator reports whether an event is the firmware's end of its own measurements into a PCR.
func separator(d [32]byte) bool {
	return d == sha256.Sum256([]byte{0, 0, 0, 0}) || d == sha256.Sum256([]byte{255, 255, 255, 255})
}

// boot is what is said of a boot.
type boot struct {
	reference, name, version string
	findings                 []string
	eventLog                 string // "replayed" or "none"
	secureBoot               string // "on", "off" or "unknown"
	cmdline                  string
	images                   []string
}

// describe says what is known of a boot, and how it compares.
func (x explained) describe(refs []authority.Reference, now time.Time) boot {
	b := boot{eventLog: "none"}
	if x.log != nil {
		b.eventLog = "replayed"
	}
	var signers map[[32]byte]bool
	b.secureBoot, signers = x.secureBoot()
	for _, e := range x.events(4) {
		if !marker(e.digest) && len(b.images) < maxImages {
			b.images = append(b.images, attest.DigestText(e.digest))
		}
	}
	var notes []string
	b.cmdline, notes = x.commandLine()
	x.compare(&b, refs, signers, now)
	b.findings = append(b.findings, notes...)
	if len(b.findings) > maxFindings {
		b.findings = append(b.findings[:maxFindings-1], fmt.Sprintf("and %d more", len(b.findings)-maxFindings+1))
	}
	return b
}

// compare finds the set that fits best: one that is known, else one that is signed, else the findings of the one that is nearest.
func (x explained) compare(b *boot, refs []authority.Reference, signers map[[32]byte]bool, now time.Time) {
	if len(refs) == 0 {
		b.reference = bootNone
		return
	}
	b.reference = bootBad
	open := false
	seen := x.components()
	var nearest []string
	for _, r := range refs {
		if !r.Open(now) {
			continue
		}
		verdict, findings := x.against(r, seen, b.secureBoot == "on", signers)
		switch {
		case verdict == bootKnown:
			b.reference, b.name, b.version, b.findings = bootKnown, r.Name, r.Version, nil
			return
		case verdict == bootSigned && b.reference != bootSigned:
			b.reference, b.name, b.version, b.findings = bootSigned, r.Name, r.Version, findings
		case !open || len(findings) < len(nearest):
			nearest = findings
		}
		open = true
	}
	switch {
	case !open:
		b.findings = []string{"no set of reference values is open now"}
	case b.reference == bootBad:
		b.findings = nearest
	}
}

// against compares a boot with one set. A PCR that the set names must have one of its values; where the set names components, every one
// that was measured into a quoted PCR must be among them, or have been verified by a signer of the set.
func (x explained) against(r authority.Reference, seen components, secureBoot bool, signers map[[32]byte]bool) (string, []string) {
	of := "reference " + strings.TrimSpace(r.Name+" "+r.Version)
	var bad, unknown []string
	for pcr := 0; pcr <= maxPCR; pcr++ {
		good, named := r.PCRs[pcr]
		value, quoted := x.values[pcr]
		switch {
		case named && !quoted:
			bad = append(bad, fmt.Sprintf("PCR %d is not quoted, but %s has values for it", pcr, of))
		case named && !slices.Contains(good, value):
			bad = append(bad, fmt.Sprintf("PCR %d (%s) has another value than in %s", pcr, pcrName(pcr), of))
		}
	}
	if len(r.Events) > 0 || len(r.Signers) > 0 {
		b, u := x.compareComponents(r, seen, of)
		bad, unknown = append(bad, b...), append(unknown, u...)
	}
	vouched := secureBoot && len(signers) > 0
	for s := range signers {
		vouched = vouched && slices.Contains(r.Signers, s)
	}
	switch {
	case len(bad) > 0:
		return bootBad, append(bad, unknown...)
	case len(unknown) == 0 && (len(r.PCRs) > 0 || len(r.Events) > 0):
		return bootKnown, nil
	case len(r.PCRs)+len(r.Events) == 0 && len(r.Signers) == 0:
		return bootBad, []string{of + " names nothing to compare"}
	case vouched:
		return bootSigned, append(unknown, "Secure Boot is on, and only signers of "+of+" verified programs of this boot")
	case len(r.Signers) > 0 && !secureBoot:
		unknown = append(unknown, "Secure Boot is not proved to be on, so no signature counts")
	case len(r.Signers) > 0:
		unknown = append(unknown, "something of this boot was verified by another signer than those of "+of)
	}
	return bootBad, unknown
}

// component is an event that is compared with Reference.Events.
type component struct {
	event
	marker bool
	place  int // of its digest in components.places
}

// components are all of them, made ready once: a stranger's log may have thousands of events, and each of many sets thousands of digests.
type components struct {
	of     map[int][]component // by PCR
	places map[[32]byte]int    // each digest has its own
}

func (x explained) components() components {
	out := components{of: map[int][]component{}, places: map[[32]byte]int{}}
	for _, pcr := range componentPCRs {
		for _, e := range x.events(pcr) {
			place, ok := out.places[e.digest]
			if !ok {
				place = len(out.places)
				out.places[e.digest] = place
			}
			out.of[pcr] = append(out.of[pcr], component{e, marker(e.digest), place})
		}
	}
	return out
}

// among says of each digest, by its place, whether a set names it.
func (c components) among(r authority.Reference) []bool {
	out := make([]bool, len(c.places))
	for _, d := range r.Events {
		if place, ok := c.places[d]; ok {
			out[place] = true
		}
	}
	return out
}

// finding adds one. Of those that nobody is told, which describe leaves out, only the number counts.
func finding(list []string, text func() string) []string {
	if len(list) >= maxFindings {
		return append(list, "")
	}
	return append(list, text())
}

// compareComponents compares measured components with a set: bad are those that no signature could excuse, unknown those that one might.
func (x explained) compareComponents(r authority.Reference, seen components, of string) (bad, unknown []string) {
	programs, compared, matched := false, false, false
	named := seen.among(r)
	for _, pcr := range componentPCRs {
		value, quoted := x.values[pcr]
		programs = programs || quoted
		_, whole := r.PCRs[pcr]
		switch {
		case !quoted || whole:
			// A PCR that the set gives values for was compared as a whole.
			continue
		case x.log == nil:
			bad = append(bad, fmt.Sprintf("there is no event log, so PCR %d (%s) can't be compared with %s", pcr, pcrName(pcr), of))
			continue
		case !x.whole[pcr] && value != initial(pcr):
			bad = append(bad, fmt.Sprintf("PCR %d (%s) was extended by what the event log does not have", pcr, pcrName(pcr)))
			continue
		}
		compared = true
		for _, e := range seen.of[pcr] {
			if named[e.place] {
				matched = true
				continue
			}
			if e.marker {
				continue
			}
			text := func() string {
				return fmt.Sprintf("event %d, into PCR %d (%s), %s, is not in %s", e.at, pcr, kindName(e.event), attest.DigestText(e.digest), of)
			}
			if imagePCR(pcr) {
				unknown = finding(unknown, text)
			} else {
				bad = finding(bad, text)
			}
		}
	}
	switch {
	case len(r.Events) == 0:
	case !programs:
		bad = append(bad, "no PCR with programs is quoted, so nothing can be compared with "+of)
	case compared && !matched && len(unknown) == 0:
		// Nothing is unknown where nothing was measured: a TPM that was reset behind the firmware's back, say.
		bad = append(bad, "nothing that "+of+" names was measured")
	}
	return bad, unknown
}

func pcrName(pcr int) string {
	switch pcr {
	case 0:
		return "firmware"
	case 1:
		return "firmware's settings"
	case 2:
		return "drivers from cards"
	case 3:
		return "settings of drivers from cards"
	case 4:
		return "boot loader and kernel"
	case 5:
		return "partition table and boot loader's settings"
	case 6:
		return "manufacturer's"
	case 7:
		return "Secure Boot"
	case 8:
		return "boot loader's commands and kernel command line"
	case 9:
		return "files that the boot loader read"
	case 10:
		return "IMA"
	case 11:
		return "unified kernel image"
	case 12:
		return "kernel command line and credentials"
	case 13:
		return "system extensions"
	case 14:
		return "machine owner's keys"
	case 15:
		return "system's identity"
	}
	return "free"
}

// kindName is for words: the type is the log's, and proves nothing.
func kindName(e event) string {
	switch e.kind {
	case evBootApplication:
		return "a program that the firmware started"
	case evBootDriver, evRuntimeDriver:
		return "a driver"
	case evIPL, evEventTag:
		if label, _, ok := labelled(e); ok && label != "" {
			return strings.ReplaceAll(label, "_", " ")
		}
		return "a step of the boot loader"
	}
	return pcrName(e.pcr)
}

// labelled is the text that an event measured, if the digest is the text's: as it stands, or after one of GRUB's labels, with or without
// its final NUL; in UTF-16 for systemd. The label itself is in no digest.
func labelled(e event) (label, text string, ok bool) {
	if sha256.Sum256(e.data) == e.digest {
		return "", decodeText(e.data), true
	}
	for _, label := range []string{"grub_cmd", "kernel_cmdline", "module_cmdline"} {
		rest, found := bytes.CutPrefix(e.data, []byte(label))
		if !found {
			continue
		}
		rest = bytes.TrimLeft(rest, ": ")
		for _, measured := range [][]byte{rest, bytes.TrimSuffix(rest, []byte{0})} {
			if sha256.Sum256(measured) == e.digest {
				return label, string(bytes.TrimRight(rest, "\x00")), true
			}
		}
	}
	return "", "", false
}

func decodeText(data []byte) string {
	wide := len(data) >= 2 && len(data)%2 == 0
	for i := 1; wide && i < len(data); i += 2 {
		wide = data[i] == 0
	}
	if !wide {
		return string(bytes.TrimRight(data, "\x00"))
	}
	units := make([]uint16, len(data)/2)
	for i := range units {
		units[i] = binary.LittleEndian.Uint16(data[2*i:])
	}
	return strings.TrimRight(string(utf16.Decode(units)), "\x00")
}

// commandLine is the kernel's command line: GRUB's (PCR 8), or systemd's (PCR 12, formerly 8). Where several were measured (a first
// kernel that didn't start), or one that can't be shown, it is empty and a note says so.
func (x explained) commandLine() (string, []string) {
	var found []string
	for _, e := range append(x.events(8), x.events(12)...) {
		label, text, ok := labelled(e)
		wide := label == "" && len(e.data) > 2 && e.data[1] == 0
		if ok && (label == "kernel_cmdline" || wide) && !marker(e.digest) && !slices.Contains(found, text) {
			found = append(found, text)
		}
	}
	switch {
	case len(found) == 0:
		return "", nil
	case len(found) > 1:
		return "", []string{"several kernel command lines were measured"}
	case len(found[0]) > maxText || attest.CheckClaimText(found[0]) != nil:
		return "", []string{"the kernel command line is too long, or not printable, to be shown"}
	}
	return found[0], nil
}

// GUIDs of UEFI variables, as they are in memory (UEFI, "Globally Defined Variables"), and of shim's.
const (
	guidGlobal = "\x61\xdf\xe4\x8b\xca\x93\xd2\x11\xaa\x0d\x00\xe0\x98\x03\x2b\x8c"
	guidShim   = "\x50\xab\x5d\x60\x46\xe0\x00\x43\xab\xb6\x3d\xd8\x10\xdd\x8b\x23"
)

// variable reads a UEFI_VARIABLE_DATA (PC Client Platform Firmware Profile) that is what was hashed. Some releases of shim count
// the structure's padding into it, so that up to seven zeros follow, and log one byte more than they hash.
func variable(e event) (guid, name string, data []byte, ok bool) {
	whole := e.data
	if len(whole) > 32 && sha256.Sum256(whole) != e.digest {
		whole = whole[:len(whole)-1]
	}
	if len(whole) < 32 || sha256.Sum256(whole) != e.digest {
		return "", "", nil, false
	}
	names, size := binary.LittleEndian.Uint64(whole[16:]), binary.LittleEndian.Uint64(whole[24:])
	rest := whole[32:]
	if names > 128 || uint64(len(rest)) < 2*names || uint64(len(rest))-2*names < size {
		return "", "", nil, false
	}
	units := make([]uint16, names)
	for i := range units {
		units[i] = binary.LittleEndian.Uint16(rest[2*i:])
	}
	data, padding := rest[2*names:2*names+size], rest[2*names+size:]
	if len(padding) > 7 || !bytes.Equal(padding, make([]byte, len(padding))) {
		return "", "", nil, false
	}
	return string(whole[:16]), string(utf16.Decode(units)), data, true
}

// secureBoot says whether Secure Boot is proved to be on, and which certificates verified the programs of this boot (nil if that isn't
// proved). Before the separator of PCR 7 the firmware alone measures: one SecureBoot variable must be there, and no debug mode. After it
// come the entries of the signature database that verified something, each once; anybody can add more, but
// nobody can take one away, so the signers of a boot are good only if all of these are.
func (x explained) secureBoot() (string, map[[32]byte]bool) {
	state, debug, after := "unknown", false, false
	signers := map[[32]byte]bool{}
	for _, e := range x.events(7) {
		if separator(e.digest) {
			after = true
			continue
		}
		guid, name, data, ok := variable(e)
		switch {
		case !after && e.digest == sha256.Sum256([]byte("UEFI Debug Mode")):
			debug = true
		case !after && ok && guid == guidGlobal && name == "SecureBoot":
			now := "off"
			if bytes.Equal(data, []byte{1}) {
				now = "on"
			}
			if state != "unknown" && state != now {
				now = "off" // measured twice, with different values
			}
			state = now
		case !after:
			// Other variables, whose values a reference set's PCR 7 has.
		case ok && guid == guidShim && (name == "SbatLevel" || name == "MokListTrusted"):
			// shim's own state, by which nothing was verified.
		default:
			if sum, ok := certificateOf(data, ok); ok && signers != nil {
				signers[sum] = true
			} else {
				signers = nil // something that isn't understood verified something
			}
		}
	}
	switch {
	case !after:
		return "unknown", nil // the firmware hasn't finished, or says nothing
	case debug && state == "on":
		return "off", nil
	}
	return state, signers
}

// certificateOf is the digest of the certificate in an entry of a signature database: an EFI_SIGNATURE_DATA with its owner first, or,
// from shim, the certificate alone.
func certificateOf(data []byte, ok bool) ([32]byte, bool) {
	if !ok {
		return [32]byte{}, false
	}
	for _, der := range [][]byte{data, data[min(16, len(data)):]} {
		if len(der) > 0 && len(der) <= maxCertificate && der[0] == 0x30 {
			if _, err := x509.ParseCertificate(der); err == nil {
				return sha256.Sum256(der), true
			}
		}
	}
	return [32]byte{}, false
}
