package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"

	"github.com/bailment/bailment/internal/agent/localapi"
	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/problem"
)

// Where a digest is from, as the claim process.digest_source says.
const (
	sourceMeasured = "measured" // by this agent, of the descriptor that the process sent
	sourceClaimed  = "claimed"  // by the process itself
)

// maxExecutable bounds what one request can have an agent read.
const maxExecutable = 2 << 30

// executable is what is known of the file that a process is going to execute.
type executable struct {
	path, digest, source string
}

// measure hashes the file behind a descriptor, without moving its offset, which the process shares. What it proves is what
// the file held while it was read: who may write to the file may change it after. The kernel's path of the descriptor
// is taken instead of the asker's.
func measure(ctx context.Context, f *os.File, said localapi.Exe) (executable, error) {
	if f == nil {
		return executable{said.Path, said.SHA256, sourceClaimed}, nil
	}
	bad := func(format string, args ...any) (executable, error) {
		return executable{}, problem.New(problem.ReasonInvalid, "measuring the executable: "+format, args...)
	}
	before, err := f.Stat()
	if err != nil || !before.Mode().IsRegular() {
		return bad("the descriptor is not one of a regular file")
	}
	if before.Size() > maxExecutable {
		return bad("it has more than %d bytes", int64(maxExecutable))
	}
	h := sha256.New()
	n, err := io.CopyBuffer(struct{ io.Writer }{h}, reader{ctx, io.NewSectionReader(f, 0, maxExecutable)}, make([]byte, 256<<10))
	if err != nil {
		return bad("it can't be read")
	}
	after, err := f.Stat()
	if err != nil || n != before.Size() || after.Size() != before.Size() || !after.ModTime().Equal(before.ModTime()) {
		return bad("it changed meanwhile")
	}
	e := executable{said.Path, hex.EncodeToString(h.Sum(nil)), sourceMeasured}
	if said.SHA256 != "" && said.SHA256 != e.digest {
		return bad("it is not the file that the process hashed")
	}
	if path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd())); err == nil && attest.CheckClaimText(path) == nil {
		e.path = path
	}
	return e, nil
}

// reader stops when nobody waits for the result any more.
type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r reader) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(b)
}

// maxClaimGroups keeps the claims within their size, whoever has thousands of groups.
const maxClaimGroups = 256

// claims are what the agent says about a process:
//
//	unix.uid, unix.gid       integers, from the kernel
//	unix.groups              list of integers, from the kernel, at most 256
//	process.pid              integer, from the kernel; absent when it has none here
//	process.path             of the executable: from the kernel if measured, else as the process says
//	process.sha256           64 hexadecimal digits; absent when nobody knows
//	process.digest_source    "measured" or "claimed"
func claims(p localapi.Peer, e executable) map[string]any {
	groups := make([]any, 0, min(len(p.Groups), maxClaimGroups))
	for _, g := range p.Groups[:min(len(p.Groups), maxClaimGroups)] {
		groups = append(groups, int64(g))
	}
	process := map[string]any{"path": e.path, "digest_source": e.source}
	if e.digest != "" {
		process["sha256"] = e.digest
	}
	if p.PID > 0 {
		process["pid"] = int64(p.PID)
	}
	return map[string]any{
		"unix":    map[string]any{"uid": int64(p.UID), "gid": int64(p.GID), "groups": groups},
		"process": process,
	}
}
