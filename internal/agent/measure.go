package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailment/bailment/internal/agent/localapi"
	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/problem"
)

// Where a digest is from, as the claim process.digest_source says.
const (
	sourceMeasured = "measured" // by this agent, of the descriptor that the process sent
	sourceClaimed  = "claimed"  // by the process itself
)

// Bounds of measuring, which any user of the machine can ask for.
const (
	maxExecutable  = 256 << 20        // bytes
	measureTimeout = 15 * time.Second // of one file, without waiting for a turn
)

// executable is what is known of the file that a process is going to execute.
type executable struct {
	path, digest, source string
}

// measurer hashes executables. A user has one measured at a time, and all of them together take half of the processors:
// who asks for nothing but measurements delays himself. What a file held is remembered for a while, if only root can
// have changed it.
type measurer struct {
	all   chan struct{}
	mu    sync.Mutex
	users map[uint32]*queue
	known map[fileState]knownDigest
}

// queue is where the measurements of one user wait for each other.
type queue struct {
	turn  chan struct{}
	users int
}

// fileState tells one state of a file from another, as far as the kernel does.
type fileState struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
}

type knownDigest struct {
	digest string
	until  time.Time
}

func newMeasurer() *measurer {
	return &measurer{
		all: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)), users: make(map[uint32]*queue), known: make(map[fileState]knownDigest),
	}
}

func unmeasured(format string, args ...any) error {
	return problem.New(problem.ReasonInvalid, "measuring the executable: "+format, args...).
		WithFix("run a regular file that stays as it is while it is started, of at most %d MiB", maxExecutable>>20)
}

// measure hashes the file behind a descriptor, without moving its offset, which the process shares. What it proves is what
// the file held while it was read: who may write to the file may change it after. It does not close f, which may be in
// use a little longer than this call.
func (m *measurer) measure(ctx context.Context, uid uint32, f *os.File, said localapi.Exe) (executable, error) {
	if f == nil {
		return executable{said.Path, said.SHA256, sourceClaimed}, nil
	}
	// Before there is any waiting: what is refused anyway waits for nobody.
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return executable{}, unmeasured("the descriptor is not one of a regular file")
	} else if st.Size() > maxExecutable {
		return executable{}, unmeasured("it has %d bytes, and at most %d are measured", st.Size(), int64(maxExecutable))
	}
	leave, err := m.enter(ctx, uid)
	if err != nil {
		return executable{}, err
	}
	select {
	case m.all <- struct{}{}:
	case <-ctx.Done():
		leave()
		return executable{}, late(ctx)
	}
	release := sync.OnceFunc(func() { <-m.all })
	ctx, cancel := context.WithTimeout(ctx, measureTimeout)
	type outcome struct {
		executable
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		// A file system that its user serves (FUSE) may let a read hang for ever. Then it is this user who waits: others go on.
		defer leave()
		defer release()
		e, err := m.look(ctx, uid, f)
		done <- outcome{e, err}
	}()
	defer cancel()
	defer release()
	select {
	case o := <-done:
		if o.err == nil && said.SHA256 != "" && said.SHA256 != o.digest {
			o.err = unmeasured("it is not the file that the process hashed")
		}
		if o.err != nil {
			return executable{}, o.err
		}
		return o.executable, nil
	case <-ctx.Done():
		return executable{}, late(ctx)
	}
}

func late(ctx context.Context) error {
	return problem.Wrap(ctx.Err(), problem.ReasonOverloaded, "measuring the executable")
}

// enter waits for the user's turn.
func (m *measurer) enter(ctx context.Context, uid uint32) (leave func(), err error) {
	m.mu.Lock()
	q, ok := m.users[uid]
	if !ok {
		q = &queue{turn: make(chan struct{}, 1)}
		m.users[uid] = q
	}
	q.users++
	m.mu.Unlock()
	gone := func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if q.users--; q.users == 0 {
			delete(m.users, uid)
		}
	}
	select {
	case q.turn <- struct{}{}:
		return func() { <-q.turn; gone() }, nil
	case <-ctx.Done():
		gone()
		return nil, late(ctx)
	}
}

// look measures.
func (m *measurer) look(ctx context.Context, uid uint32, f *os.File) (executable, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return executable{}, unmeasured("the descriptor is of no use")
	}
	var st unix.Stat_t
	path, stable := "", false
	if cerr := raw.Control(func(fd uintptr) {
		if err = unix.Fstat(int(fd), &st); err == nil {
			path = confirmed(int(fd), &st)
			stable = path != "" && uid != 0 && onlyRoots(int(fd), &st)
		}
	}); cerr != nil || err != nil {
		return executable{}, unmeasured("the descriptor is of no use")
	}
	before := stateOf(&st)
	if stable {
		if d, ok := m.recall(before); ok {
			return executable{path, d, sourceMeasured}, nil
		}
	}
	began := time.Now()
	h := sha256.New()
	n, err := io.CopyBuffer(struct{ io.Writer }{h}, reader{ctx, io.NewSectionReader(f, 0, maxExecutable)}, make([]byte, 256<<10))
	if ctx.Err() != nil {
		return executable{}, late(ctx)
	}
	if err != nil {
		return executable{}, unmeasured("it can't be read")
	}
	if cerr := raw.Control(func(fd uintptr) { err = unix.Fstat(int(fd), &st) }); cerr != nil || err != nil || n != before.size || stateOf(&st) != before {
		return executable{}, unmeasured("it changed meanwhile")
	}
	e := executable{path, hex.EncodeToString(h.Sum(nil)), sourceMeasured}
	// A file that was changed just now could be changed again within one tick of its time stamps, unseen.
	if stable && began.Sub(time.Unix(before.ctime.Unix())) > settled {
		m.keep(before, e.digest)
	}
	return e, nil
}

func stateOf(st *unix.Stat_t) fileState {
	return fileState{st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim}
}

// confirmed is the path of an open file, if it is that file's path for this agent too, else empty.
//
// The kernel's word alone (readlink of /proc/self/fd/N) is a path in the mount namespace that the descriptor is from, and every
// user who may make namespaces can mount what he likes where he likes in his own. So the path is opened here, and counts if it
// leads to the same file (device and inode), and is that file's name here without a symbolic link on the way. The number
// of the mount is not compared: an agent with a mount namespace of its own, as its systemd unit gives it, has other numbers
// for the same mounts, and one file is one file by whichever it was opened.
func confirmed(fd int, st *unix.Stat_t) string {
	path, err := os.Readlink(fdPath(fd))
	if err != nil || st.Nlink == 0 || !filepath.IsAbs(path) || attest.CheckClaimText(path) != nil {
		return ""
	}
	here, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(here)
	var found unix.Stat_t
	if unix.Fstat(here, &found) != nil || found.Dev != st.Dev || found.Ino != st.Ino {
		return ""
	}
	if name, err := os.Readlink(fdPath(here)); err != nil || name != path {
		return ""
	}
	return path
}

func fdPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// Bounds of what is remembered.
const (
	settled   = 2 * time.Second  // how old the last change of a remembered file must be
	remember  = 10 * time.Minute // for writes through a mapping, which the time stamps may not show
	maxDigest = 512
)

// onlyRoots reports whether nobody but root can have changed a file, or its times: its owner, its mode, and a file
// system that keeps the times itself.
func onlyRoots(fd int, st *unix.Stat_t) bool {
	var fs unix.Statfs_t
	if st.Uid != 0 || st.Mode&0o022 != 0 || unix.Fstatfs(fd, &fs) != nil {
		return false
	}
	switch fs.Type {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.TMPFS_MAGIC, unix.OVERLAYFS_SUPER_MAGIC:
		return true
	}
	return false
}

func (m *measurer) recall(s fileState) (string, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, ok := m.known[s]
	return d.digest, ok && time.Now().Before(d.until)
}

func (m *measurer) keep(s fileState, digest string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.known) >= maxDigest {
		clear(m.known)
	}
	m.known[s] = knownDigest{digest, time.Now().Add(remember)}
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
//	process.digest_source    "measured" or "claimed"
//	process.sha256           64 hexadecimal digits, if measured
//	process.path             of the executable, if measured and the path leads this agent to the same file; see confirmed
//	process.claimed_sha256   what the process says itself, if nothing was measured; may be absent
//	process.claimed_path     the same
//
// A rule that asks for path or sha256 and not for the source must not be met by a process's own word, so that word has
// names of its own.
func claims(p localapi.Peer, e executable) map[string]any {
	groups := make([]any, 0, min(len(p.Groups), maxClaimGroups))
	for _, g := range p.Groups[:min(len(p.Groups), maxClaimGroups)] {
		groups = append(groups, int64(g))
	}
	process := map[string]any{"digest_source": e.source}
	prefix := ""
	if e.source != sourceMeasured {
		prefix = "claimed_"
	}
	if e.path != "" {
		process[prefix+"path"] = e.path
	}
	if e.digest != "" {
		process[prefix+"sha256"] = e.digest
	}
	if p.PID > 0 {
		process["pid"] = int64(p.PID)
	}
	return map[string]any{
		"unix":    map[string]any{"uid": int64(p.UID), "gid": int64(p.GID), "groups": groups},
		"process": process,
	}
}
