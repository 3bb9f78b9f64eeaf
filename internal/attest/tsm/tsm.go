// Package tsm asks Linux for reports of a confidential VM, by the kernel's one interface to all of them: a directory of configfs
// (Documentation/ABI/testing/configfs-tsm-report), in which a new directory is a question.
//
// Guaranteed: each question is a directory of its own, removed afterwards; what is read is bounded. Not guaranteed: that an answer is to
// our question, when other programs write into our directory, or that it is true: whoever verifies it sees both.
//
// Its place is below the attestation methods of confidential VMs, sevsnp and tdx. It was run against a fake of that directory, since
// a test can't have such a machine.
package tsm

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/bailment/bailment/internal/problem"
)

// Default is where the kernel has it.
const Default = "/sys/kernel/config/tsm/report"

// DataSize is how many bytes a report is bound to.
const DataSize = 64

// Data is what a report is bound to for a digest: the digest, and zeros.
func Data(digest [32]byte) (data [DataSize]byte) {
	copy(data[:], digest[:])
	return data
}

// MaxBlob is the most bytes of an answer that are read: a quote has some 5 KiB, a table of certificates some 10.
const MaxBlob = 64 << 10

// Report is what the platform answered.
type Report struct {
	Provider string // "sev_guest", "tdx_guest"
	Out      []byte // the report or quote
	Aux      []byte // certificates, where the host gives some; nil: none
}

// files are the operations on configfs, by names relative to its directory. A write is one system call: the kernel takes it as a whole.
type files interface {
	Mkdir(name string) error
	Write(name string, data []byte) error
	Read(name string, most int) ([]byte, error)
	Remove(name string) error // of a directory; what the kernel put in it goes with it
}

// Folder is a directory of configfs. It is safe for concurrent use.
type Folder struct{ files files }

// Open checks that the directory is there; empty: Default. Its error doesn't show the path.
func Open(dir string) (*Folder, error) {
	if dir == "" {
		dir = Default
	}
	if st, err := os.Stat(dir); err != nil || !st.IsDir() {
		return nil, problem.New(problem.ReasonUnsupported, "the directory for reports of confidential VMs is not there").
			WithFix("run in a confidential VM with Linux 6.7 or later, and mount configfs (mount -t configfs none /sys/kernel/config)")
	}
	return &Folder{disk(dir)}, nil
}

// Report asks for a report that is bound to data.
func (f *Folder) Report(ctx context.Context, data [DataSize]byte) (r Report, err error) {
	if err := ctx.Err(); err != nil {
		return Report{}, problem.Wrap(err, problem.ReasonCanceled, "ask for a report of this VM")
	}
	name := "bailment-" + hex.EncodeToString(random())
	if err := f.files.Mkdir(name); err != nil {
		return Report{}, local(err)
	}
	defer func() {
		if e := f.files.Remove(name); e != nil && err == nil {
			r, err = Report{}, local(e)
		}
	}()
	if err := f.files.Write(name+"/inblob", data[:]); err != nil {
		return Report{}, local(err)
	}
	if r.Out, err = f.files.Read(name+"/outblob", MaxBlob); err != nil {
		return Report{}, local(err)
	}
	r.Aux, err = f.files.Read(name+"/auxblob", MaxBlob)
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // older kernels and TDX have none
		return Report{}, local(err)
	}
	provider, err := f.files.Read(name+"/provider", 64)
	if err != nil {
		return Report{}, local(err)
	}
	r.Provider = strings.TrimSpace(string(provider))
	return r, nil
}

// local is a failure of this machine. The error of the operating system names the file.
func local(err error) error {
	p := problem.Wrap(err, problem.ReasonUnsupported, "ask for a report of this VM")
	if errors.Is(err, fs.ErrPermission) {
		p = problem.Wrap(err, problem.ReasonPermissions, "ask for a report of this VM").
			WithFix("let the agent's user write to the tsm/report directory of configfs, or run the agent as root")
	}
	return p
}

func random() []byte {
	b := make([]byte, 8)
	_, _ = rand.Read(b) // it never fails (crypto/rand)
	return b
}

// disk is the kernel's configfs.
type disk string

func (d disk) path(name string) string { return filepath.Join(string(d), name) }

func (d disk) Mkdir(name string) error { return os.Mkdir(d.path(name), 0o700) }

func (d disk) Remove(name string) error { return os.Remove(d.path(name)) }

func (d disk) Write(name string, data []byte) error {
	f, err := os.OpenFile(d.path(name), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

func (d disk) Read(name string, most int) ([]byte, error) {
	f, err := os.Open(d.path(name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, int64(most)+1))
	if err == nil && len(data) > most {
		return nil, errors.New("the kernel's answer is larger than expected")
	}
	return data, err
}
