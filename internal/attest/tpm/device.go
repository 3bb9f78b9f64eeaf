package tpm

import (
	"bytes"
	"context"
	"encoding/asn1"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/bailment/bailment/internal/problem"
)

// Where the kernel has these things. /dev/tpmrm0 is the resource manager's: it keeps processes apart, and flushes what a process leaves.
const (
	defaultDevice = "/dev/tpmrm0"
	securityfs    = "/sys/kernel/security"
	defaultIMA    = securityfs + "/ima/binary_runtime_measurements"
)

const (
	handleSRK  = 0x81000001 // TCG TPM v2.0 Provisioning Guidance
	nvChainMin = 0x01c00100 // EK Credential Profile: the issuers' certificates, one DER after another
	nvChainMax = 0x01c001ff
	nvBlock    = 512      // bytes at a time: every TPM's buffer has that
	maxNV      = 64 << 10 // bytes of one index
)

// device is one TPM. It is opened for each piece of work and closed after it, so that nothing stays loaded; the mutex keeps the pieces
// apart, since neither transport is safe for concurrent use and a TPM has room for three objects.
type device struct {
	mu     sync.Mutex
	path   string
	socket bool
}

// newDevice looks at the path, and says nothing of it in its errors: it is material.
func newDevice(path string) (*device, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, problem.New(problem.ReasonInvalid, "the TPM's device is not there, or may not be looked at (%s)", reasonOf(err))
	case info.Mode()&os.ModeSocket != 0:
		return &device{path: path, socket: true}, nil
	case info.Mode()&os.ModeCharDevice != 0:
		return &device{path: path}, nil
	}
	return nil, problem.New(problem.ReasonInvalid, "the TPM's device is neither a character device nor a socket")
}

// reasonOf is an error of the operating system without the path in it.
func reasonOf(err error) string {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		return pathErr.Err.Error()
	}
	return "unknown"
}

// firmwareLog is where the kernel has the event log of this device; "" for a software TPM, which has none.
func (d *device) firmwareLog() string {
	if d.socket {
		return ""
	}
	number, ok := strings.CutPrefix(filepath.Base(d.path), "tpmrm")
	if !ok {
		number = strings.TrimPrefix(filepath.Base(d.path), "tpm")
	}
	return filepath.Join(securityfs, "tpm"+number, "binary_bios_measurements")
}

// do runs one piece of work on the TPM, alone. A TPM's command can't be interrupted: ctx is looked at between commands. Work may be run
// twice.
func (d *device) do(ctx context.Context, work func(*session) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	err := d.once(ctx, work)
	if d.socket && (errors.Is(err, tpm2.TPMRCObjectMemory) || errors.Is(err, tpm2.TPMRCSessionMemory)) {
		// A socket has no resource manager behind it, which would flush what killed processes left. It takes one connection at a
		// time, so what is loaded while this one is open is nobody's.
		err = d.once(ctx, func(s *session) error {
			s.clear()
			return work(s)
		})
	}
	return err
}

// once opens the device for one piece of work.
func (d *device) once(ctx context.Context, work func(*session) error) error {
	if err := ctx.Err(); err != nil {
		return problem.Wrap(err, problem.ReasonCanceled, "use the TPM")
	}
	open := linuxtpm.Open
	if d.socket {
		open = linuxudstpm.Open
	}
	t, err := open(d.path)
	if err != nil {
		return problem.New(problem.ReasonUnreachable, "the TPM's device can't be opened (%s)", reasonOf(err))
	}
	s := &session{ctx: ctx, tpm: t}
	defer s.close()
	if err := work(s); err != nil {
		// A command that fails ends the authorization session that was made for it, unless it was never sent.
		s.loaded = append(s.loaded, s.begun...)
		return err
	}
	return nil
}

// session is the TPM for the time of one piece of work. What was loaded in it is flushed at its end, in the opposite order.
type session struct {
	ctx    context.Context
	tpm    transport.TPMCloser
	loaded []tpm2.TPMHandle
	begun  []tpm2.TPMHandle // authorization sessions
}

// Send makes a session a transport that stops when its context ends.
func (s *session) Send(input []byte) ([]byte, error) {
	if err := s.ctx.Err(); err != nil {
		return nil, err
	}
	output, err := s.tpm.Send(input)
	if r := (reader{rest: input}); err == nil && r.u16() != 0 && r.u32() != 0 && tpm2.TPMCC(r.u32()) == tpm2.TPMCCStartAuthSession {
		// A response is tag, size, return code, and here the handle.
		if o := (reader{rest: output}); o.u16() != 0 && o.u32() != 0 && o.u32() == 0 {
			s.begun = append(s.begun, tpm2.TPMHandle(o.u32()))
		}
	}
	return output, err
}

func (s *session) close() {
	for i := len(s.loaded) - 1; i >= 0; i-- {
		s.flush(s.loaded[i])
	}
	// Nothing is buffered: an error of Close loses nothing.
	_ = s.tpm.Close()
}

// clear flushes everything that is loaded in the TPM: objects, and sessions, loaded and saved.
func (s *session) clear() {
	for _, first := range []uint32{0x80000000, 0x02000000, 0x03000000} {
		rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 64}.Execute(s)
		if err != nil {
			continue // the work will say what is wrong
		}
		list, err := rsp.CapabilityData.Data.Handles()
		if err != nil {
			continue
		}
		for _, h := range list.Handle {
			s.flush(h)
		}
	}
}

// flush goes past the context: what is loaded must go also when the work was cancelled. Its error is dropped: a TPM that doesn't
// answer any more has said so to the command before.
func (s *session) flush(h tpm2.TPMHandle) {
	_, _ = tpm2.FlushContext{FlushHandle: h}.Execute(s.tpm)
}

// drop flushes one object before the session ends, to make room.
func (s *session) drop(h tpm2.TPMHandle) {
	for i, l := range s.loaded {
		if l == h {
			s.loaded = append(s.loaded[:i], s.loaded[i+1:]...)
			s.flush(h)
			return
		}
	}
}

// failed wraps an error of a TPM's command. go-tpm's texts are return codes.
func (s *session) failed(err error, what string) error {
	if s.ctx.Err() != nil {
		return problem.Wrap(s.ctx.Err(), problem.ReasonCanceled, "%s", what)
	}
	return problem.Wrap(err, problem.ReasonUnreachable, "%s: the TPM refuses or does not answer", what)
}

// object is a loaded or persistent key. Its authorization is an empty password, or what policy says.
type object struct {
	handle tpm2.TPMHandle
	name   tpm2.TPM2BName
	public []byte // TPMT_PUBLIC
	auth   tpm2.Session
}

func (o object) use() tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: o.handle, Name: o.name, Auth: o.auth}
}

// primary makes a primary key. The same TPM makes the same key of the same template, until its hierarchy is cleared.
func (s *session) primary(hierarchy tpm2.TPMHandle, template tpm2.TPMTPublic) (object, error) {
	rsp, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: hierarchy, Auth: tpm2.PasswordAuth(nil)},
		InPublic:      tpm2.New2B(template),
	}.Execute(s)
	if err != nil {
		return object{}, err
	}
	s.loaded = append(s.loaded, rsp.ObjectHandle)
	return object{rsp.ObjectHandle, rsp.Name, rsp.OutPublic.Bytes(), tpm2.PasswordAuth(nil)}, nil
}

// persistent is the key that the platform keeps at a handle; not ok if there is none.
func (s *session) persistent(handle uint32) (object, bool) {
	rsp, err := tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(handle)}.Execute(s)
	if err != nil {
		return object{}, false
	}
	return object{tpm2.TPMHandle(handle), rsp.Name, rsp.OutPublic.Bytes(), tpm2.PasswordAuth(nil)}, true
}

// endorsementKey is the key of a template: the one that the platform keeps, if it is of that template and wanted, or else made anew.
func (s *session) endorsementKey(e endorsement, wanted func([]byte) bool) (object, error) {
	key, ok := s.persistent(e.handle)
	p, whole := parsePublic(key.public)
	if !ok || !whole || !bytes.Equal(p.head, e.head()) || !wanted(key.public) {
		var err error
		if key, err = s.primary(tpm2.TPMRHEndorsement, e.template); err != nil {
			return object{}, s.failed(err, "make the endorsement key")
		}
		if !wanted(key.public) {
			s.drop(key.handle) // others may be tried, and there is room for three
			return object{}, problem.New(problem.ReasonBadChain, "the certificate is of another endorsement key than this TPM's")
		}
	}
	if e.policy {
		key.auth = tpm2.Policy(tpm2.TPMAlgSHA256, 16, func(t transport.TPM, handle tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
			_, err := tpm2.PolicySecret{
				AuthHandle:    tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
				PolicySession: handle, NonceTPM: nonce,
			}.Execute(t)
			return err
		})
	}
	return key, nil
}

// attestationTemplates are those of the attestation key, the first that the TPM can do: it is a primary key under the endorsement
// hierarchy, so it needs no storage, is the same after every start, and shows the clock's counters as they are (a TPM hides them from
// keys under the owner's).
func attestationTemplates() []tpm2.TPMTPublic {
	attributes := tpm2.TPMAObject{
		FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, Restricted: true, SignEncrypt: true,
	}
	return []tpm2.TPMTPublic{
		{
			Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: attributes,
			Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{Scheme: ecdsaSHA256(), CurveID: tpm2.TPMECCNistP256}),
		},
		{
			Type: tpm2.TPMAlgRSA, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: attributes,
			Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{
				Scheme: tpm2.TPMTRSAScheme{
					Scheme: tpm2.TPMAlgRSASSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSigSchemeRSASSA{HashAlg: tpm2.TPMAlgSHA256}),
				},
				KeyBits: 2048,
			}),
		},
	}
}

func ecdsaSHA256() tpm2.TPMTECCScheme {
	return tpm2.TPMTECCScheme{
		Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
	}
}

// attestationKey makes the attestation key.
func (s *session) attestationKey(templates []tpm2.TPMTPublic) (object, error) {
	var last error
	for _, t := range templates {
		key, err := s.primary(tpm2.TPMRHEndorsement, t)
		if err == nil {
			return key, nil
		}
		last = err
		// Another error than "no such algorithm" won't be cured by another algorithm.
		if !errors.Is(err, tpm2.TPMRCCurve) && !errors.Is(err, tpm2.TPMRCScheme) && !errors.Is(err, tpm2.TPMRCAsymmetric) && !errors.Is(err, tpm2.TPMRCType) {
			break
		}
	}
	return object{}, s.failed(last, "make the attestation key")
}

// clock gives the counters of resets and restarts.
func (s *session) clock() (resets, restarts uint32, err error) {
	rsp, err := tpm2.ReadClock{}.Execute(s)
	if err != nil {
		return 0, 0, s.failed(err, "read the TPM's clock")
	}
	return rsp.CurrentTime.ClockInfo.ResetCount, rsp.CurrentTime.ClockInfo.RestartCount, nil
}

// readNV reads a whole index; nil if there is none that can be read.
func (s *session) readNV(index tpm2.TPMHandle) []byte {
	read, err := tpm2.NVReadPublic{NVIndex: index}.Execute(s)
	if err != nil {
		return nil
	}
	pub, err := read.NVPublic.Contents()
	if err != nil || int(pub.DataSize) > maxNV {
		return nil
	}
	auth := tpm2.AuthHandle{Handle: index, Name: read.NVName, Auth: tpm2.PasswordAuth(nil)}
	if !pub.Attributes.AuthRead {
		auth = tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
	}
	var out []byte
	for len(out) < int(pub.DataSize) {
		size := min(nvBlock, int(pub.DataSize)-len(out))
		rsp, err := tpm2.NVRead{
			AuthHandle: auth, NVIndex: tpm2.NamedHandle{Handle: index, Name: read.NVName}, Size: uint16(size), Offset: uint16(len(out)),
		}.Execute(s)
		if err != nil || len(rsp.Data.Buffer) != size {
			return nil
		}
		out = append(out, rsp.Data.Buffer...)
	}
	return out
}

// issuers are the certificates that the manufacturer put beside the endorsement key's.
func (s *session) issuers() [][]byte {
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: nvChainMin, PropertyCount: nvChainMax - nvChainMin + 1}.Execute(s)
	if err != nil {
		return nil
	}
	handles, err := rsp.CapabilityData.Data.Handles()
	if err != nil {
		return nil
	}
	// A certificate may be cut by the end of an index and go on in the next.
	var all []byte
	for _, h := range handles.Handle {
		if h >= nvChainMin && h <= nvChainMax {
			all = append(all, s.readNV(h)...)
		}
	}
	return splitDER(all)
}

// splitDER cuts DER values that stand one after another, up to padding.
func splitDER(data []byte) [][]byte {
	var out [][]byte
	for len(data) > 0 && data[0] == 0x30 && len(out) < maxChain {
		var value asn1.RawValue
		rest, err := asn1.Unmarshal(data, &value)
		if err != nil {
			break
		}
		out, data = append(out, value.FullBytes), rest
	}
	return out
}
