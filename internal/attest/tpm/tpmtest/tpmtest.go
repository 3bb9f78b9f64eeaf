// Package tpmtest gives tests software TPMs (swtpm): each with endorsement keys, certificates for them by a CA of its own, and a socket.
//
// Guaranteed: TPMs of different serial numbers are different TPMs, those of the same number have the same keys; what was started is
// stopped when the test ends, and dies with the test's process. Not guaranteed: that a software TPM keeps anything secret.
//
// Its place: tests of attestation by TPM, and of what is built on it. swtpm, swtpm-tools and gnutls-bin must be installed (scripts/deps
// test does that); a test without them fails.
package tpmtest

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
)

// Serials is how many different TPMs there are: New takes 0 to Serials-1.
const Serials = 2

// TPM is a software TPM that runs. It is used by one goroutine at a time, but its socket by as many as like.
type TPM struct {
	Socket  string
	Root    *x509.Certificate // of the CA that vouches for its endorsement keys
	Issuing *x509.Certificate // which stands between, and signed their certificates
	// Certificates are those of its endorsement keys: RSA-2048, and ECC P-384.
	Certificates []*x509.Certificate

	t       testing.TB
	dir     string
	process *os.Process
}

// made is a TPM as it leaves the factory. Making its keys takes seconds, so it is done once in a process, and kept in memory.
type made struct {
	state         map[string][]byte // by file name
	root, issuing *x509.Certificate
}

type factory struct {
	once sync.Once
	made made
	err  error
}

// shelf holds what was made in this process.
var shelf [Serials]factory

// New starts the TPM of that serial number. It is stopped when the test ends.
func New(t testing.TB, serial int) *TPM {
	t.Helper()
	f := &shelf[serial]
	f.once.Do(func() { f.made, f.err = manufacture() })
	if f.err != nil {
		t.Fatal(f.err)
	}
	// A socket's path has at most 107 bytes, which t.TempDir may exceed.
	dir, err := os.MkdirTemp("", "swtpm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	for name, data := range f.made.state {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := &TPM{Socket: filepath.Join(dir, "sock"), Root: f.made.root, Issuing: f.made.issuing, t: t, dir: dir}
	s.Start()
	t.Cleanup(s.Stop)
	for _, index := range []tpm2.TPMHandle{0x01c00002, 0x01c00016} {
		s.Certificates = append(s.Certificates, s.certificate(index))
	}
	return s
}

func manufacture() (made, error) {
	dir, err := os.MkdirTemp("", "swtpm-setup")
	if err != nil {
		return made{}, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	for name, text := range map[string]string{
		"setup.conf": fmt.Sprintf("create_certs_tool=/usr/share/swtpm/swtpm-localca\n"+
			"create_certs_tool_config=%[1]s/localca.conf\ncreate_certs_tool_options=%[1]s/localca.options\n", dir),
		"localca.conf": fmt.Sprintf("statedir=%[1]s\nsigningkey=%[1]s/signkey.pem\nissuercert=%[1]s/issuercert.pem\ncertserial=%[1]s/certserial\n",
			dir),
		"localca.options": "--platform-manufacturer Bailment\n--platform-version 1\n--platform-model test\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return made{}, err
		}
	}
	state := filepath.Join(dir, "state")
	if err := os.Mkdir(state, 0o700); err != nil {
		return made{}, err
	}
	out, err := exec.Command("swtpm_setup", "--tpm2", "--tpmstate", state, "--create-ek-cert", "--create-platform-cert", "--lock-nvram",
		"--pcr-banks", "sha1,sha256", "--overwrite", "--config", filepath.Join(dir, "setup.conf")).CombinedOutput()
	if err != nil {
		return made{}, fmt.Errorf("swtpm_setup (`scripts/deps test` installs it): %w\n%s", err, out)
	}
	m := made{state: map[string][]byte{}}
	files, err := os.ReadDir(state)
	if err != nil {
		return made{}, err
	}
	for _, f := range files {
		if m.state[f.Name()], err = os.ReadFile(filepath.Join(state, f.Name())); err != nil {
			return made{}, err
		}
	}
	if m.root, err = readCertificate(filepath.Join(dir, "swtpm-localca-rootca-cert.pem")); err != nil {
		return made{}, err
	}
	m.issuing, err = readCertificate(filepath.Join(dir, "issuercert.pem"))
	return m, err
}

func readCertificate(path string) (*x509.Certificate, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("no PEM in " + path)
	}
	return x509.ParseCertificate(block.Bytes)
}

// Start starts a TPM that was stopped, which is a reset of it. Its socket listens before swtpm does: who connects in between waits in
// the queue.
func (s *TPM) Start() {
	s.t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.Socket, Net: "unix"})
	if err != nil {
		s.t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	defer func() { _ = l.Close() }()
	file, err := l.File()
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	cmd := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+s.dir, "--server", "type=unixio,fd=3",
		"--ctrl", "type=unixio,path="+s.Socket+".ctrl", "--flags", "startup-clear,not-need-init") // tpm2-tools talk to it by both
	cmd.ExtraFiles = []*os.File{file}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.process = cmd.Process
}

// Stop takes the power away.
func (s *TPM) Stop() {
	_ = s.process.Kill()
	_, _ = s.process.Wait()
	_ = os.Remove(s.Socket)
}

// Reset turns the machine off in order, and on again.
func (s *TPM) Reset() {
	s.t.Helper()
	s.Do(func(t transport.TPM) error {
		_, err := tpm2.Shutdown{ShutdownType: tpm2.TPMSUClear}.Execute(t)
		return err
	})
	s.Stop()
	s.Start()
}

// Do runs commands. A failure ends the test.
func (s *TPM) Do(work func(transport.TPM) error) {
	s.t.Helper()
	t, err := linuxudstpm.Open(s.Socket)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = t.Close() }()
	if err := work(t); err != nil {
		s.t.Fatal(err)
	}
}

// Extend extends a PCR of the SHA-256 bank.
func (s *TPM) Extend(pcr int, digest [32]byte) {
	s.t.Helper()
	s.Do(func(t transport.TPM) error {
		_, err := tpm2.PCRExtend{
			PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
			Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: digest[:]}}},
		}.Execute(t)
		return err
	})
}

// Loaded counts the objects and sessions that were left in the TPM.
func (s *TPM) Loaded() int {
	s.t.Helper()
	n := 0
	s.Do(func(t transport.TPM) error {
		for _, first := range []uint32{0x80000000, 0x02000000, 0x03000000} { // transient objects, sessions loaded and saved
			rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 64}.Execute(t)
			if err != nil {
				return err
			}
			list, err := rsp.CapabilityData.Data.Handles()
			if err != nil {
				return err
			}
			n += len(list.Handle)
		}
		return nil
	})
	return n
}

// EndorsementKeys are the SHA-256 digests of the SubjectPublicKeyInfos of its certified endorsement keys.
func (s *TPM) EndorsementKeys() [][32]byte {
	var out [][32]byte
	for _, c := range s.Certificates {
		out = append(out, sha256.Sum256(c.RawSubjectPublicKeyInfo))
	}
	return out
}

func (s *TPM) certificate(index tpm2.TPMHandle) *x509.Certificate {
	s.t.Helper()
	var out *x509.Certificate
	s.Do(func(t transport.TPM) error {
		pub, err := tpm2.NVReadPublic{NVIndex: index}.Execute(t)
		if err != nil {
			return err
		}
		content, err := pub.NVPublic.Contents()
		if err != nil {
			return err
		}
		var der []byte
		for len(der) < int(content.DataSize) {
			rsp, err := tpm2.NVRead{
				AuthHandle: tpm2.AuthHandle{Handle: index, Name: pub.NVName, Auth: tpm2.PasswordAuth(nil)},
				NVIndex:    tpm2.NamedHandle{Handle: index, Name: pub.NVName},
				Size:       min(512, content.DataSize-uint16(len(der))), Offset: uint16(len(der)),
			}.Execute(t)
			if err != nil {
				return err
			}
			der = append(der, rsp.Data.Buffer...)
		}
		out, err = x509.ParseCertificate(der)
		return err
	})
	return out
}

// IMAData is an entry's template data in IMA's format ima-ng: a file's SHA-256 and its name.
func IMAData(file [32]byte, name string) []byte {
	le := binary.LittleEndian
	field := append([]byte("sha256:\x00"), file[:]...)
	out := append(le.AppendUint32(nil, uint32(len(field))), field...)
	return append(le.AppendUint32(out, uint32(len(name)+1)), name+"\x00"...)
}

// IMAEntry is an entry as the kernel lists it. The SHA-1 digest in it is zero for a violation, and otherwise a false one: nobody looks.
func IMAEntry(pcr uint32, data []byte, violation bool) []byte {
	le := binary.LittleEndian
	digest := make([]byte, 20)
	if !violation {
		digest[0] = 1
	}
	out := append(le.AppendUint32(nil, pcr), digest...)
	out = append(le.AppendUint32(out, 6), "ima-ng"...)
	return append(le.AppendUint32(out, uint32(len(data))), data...)
}
