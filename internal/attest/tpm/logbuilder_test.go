package tpm

import (
	"crypto/sha256"
	"encoding/binary"
	"unicode/utf16"
)

// logBuilder writes event logs as firmware does.
type logBuilder struct {
	events []event
}

func (l *logBuilder) add(pcr int, kind uint32, digest [32]byte, data []byte) *logBuilder {
	l.events = append(l.events, event{at: len(l.events) + 1, pcr: pcr, kind: kind, digest: digest, data: data})
	return l
}

// data adds an event whose digest is its data's.
func (l *logBuilder) data(pcr int, kind uint32, data []byte) *logBuilder {
	return l.add(pcr, kind, sha256.Sum256(data), data)
}

func (l *logBuilder) separators(pcrs ...int) *logBuilder {
	for _, p := range pcrs {
		l.data(p, 4, []byte{0, 0, 0, 0})
	}
	return l
}

// grub adds one of GRUB's texts, whose label is not measured.
func (l *logBuilder) grub(label, text string) *logBuilder {
	return l.add(8, evIPL, sha256.Sum256([]byte(text)), []byte(label+": "+text+"\x00"))
}

func variableData(guid, name string, data []byte) []byte {
	units := utf16.Encode([]rune(name))
	out := append([]byte(guid), binary.LittleEndian.AppendUint64(nil, uint64(len(units)))...)
	out = binary.LittleEndian.AppendUint64(out, uint64(len(data)))
	for _, u := range units {
		out = binary.LittleEndian.AppendUint16(out, u)
	}
	return append(out, data...)
}

const evVariable, evAuthority = 0x80000001, 0x800000e0

// header is the log's first event; sha1 adds a bank before SHA-256.
func header(banks ...uint16) []byte {
	le := binary.LittleEndian
	spec := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2)
	spec = le.AppendUint32(spec, uint32(len(banks)))
	for _, b := range banks {
		spec = le.AppendUint16(spec, b)
		spec = le.AppendUint16(spec, map[uint16]uint16{algSHA1: 20, algSHA256: 32, algSHA384: 48}[b])
	}
	spec = append(spec, 0)
	out := le.AppendUint32(nil, 0)
	out = le.AppendUint32(out, evNoAction)
	out = append(out, make([]byte, 20)...)
	out = le.AppendUint32(out, uint32(len(spec)))
	return append(out, spec...)
}

func (l *logBuilder) bytes() []byte {
	le := binary.LittleEndian
	out := header(algSHA1, algSHA256)
	for _, e := range l.events {
		out = le.AppendUint32(out, uint32(e.pcr))
		out = le.AppendUint32(out, e.kind)
		out = le.AppendUint32(out, 2)
		out = le.AppendUint16(out, algSHA1)
		out = append(out, make([]byte, 20)...)
		out = le.AppendUint16(out, algSHA256)
		out = append(out, e.digest[:]...)
		out = le.AppendUint32(out, uint32(len(e.data)))
		out = append(out, e.data...)
	}
	return out
}

// typical is a Linux machine's boot: shim, GRUB, kernel; Secure Boot on; verified by signer, whose certificate that is.
func typical(kernel string, signer []byte) *logBuilder {
	secure := []byte{1}
	if signer == nil {
		secure = []byte{0}
	}
	l := &logBuilder{}
	l.data(0, 8, []byte("firmware 1"))
	l.data(7, evVariable, variableData(guidGlobal, "SecureBoot", secure))
	l.data(7, evVariable, variableData(guidGlobal, "PK", []byte("owner")))
	l.data(4, 0x80000007, []byte("Calling EFI Application from Boot Option"))
	l.separators(0, 1, 2, 3, 4, 5, 6, 7)
	if signer != nil {
		l.data(7, evAuthority, variableData(guidGlobal, "db", append(make([]byte, 16), signer...)))
	}
	l.add(4, evBootApplication, sha256.Sum256([]byte("shim")), []byte("path of shim"))
	l.data(7, evAuthority, variableData(guidShim, "SbatLevel", []byte("sbat,1")))
	l.add(4, evBootApplication, sha256.Sum256([]byte("grub")), []byte("path of grub"))
	l.grub("grub_cmd", "linux /vmlinuz root=/dev/vda1 ro")
	l.add(4, evBootApplication, sha256.Sum256([]byte(kernel)), []byte("path of kernel"))
	l.grub("kernel_cmdline", "/vmlinuz root=/dev/vda1 ro")
	l.add(9, evIPL, sha256.Sum256([]byte("initrd")), []byte("initrd\x00"))
	l.data(5, 0x80000007, []byte("Exit Boot Services Invocation"))
	return l
}
