package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailment/bailment/internal/agent/localapi"
	"github.com/bailment/bailment/internal/agent/workload"
	"github.com/bailment/bailment/internal/problem"
)

// Where a digest is from; see workload.
const (
	sourceMeasured = workload.SourceMeasured
	sourceClaimed  = workload.SourceClaimed
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
	e, err := m.inTurn(ctx, uid, func(ctx context.Context) (executable, error) { return m.look(ctx, uid, f) })
	if err == nil && said.SHA256 != "" && said.SHA256 != e.digest {
		return executable{}, unmeasured("it is not the file that the process hashed")
	}
	return e, err
}

// measureProcess measures what a process executes itself, for workload. A file that is larger than what is measured is no error here: the
// process is already there, nobody chose this file to be hashed, and who it is may be clear without.
func (m *measurer) measureProcess(ctx context.Context, uid uint32, open func(flags int) (*os.File, error)) (workload.Executable, error) {
	// What is known needs no turn, and no other goroutine: that is most of what it would cost.
	if e, ok, err := m.remembered(uid, open); ok || err != nil {
		return e.told(), err
	}
	e, err := m.inTurn(ctx, uid, func(ctx context.Context) (executable, error) {
		f, err := open(unix.O_RDONLY)
		if err != nil {
			return executable{}, err
		}
		defer f.Close()
		st, err := f.Stat()
		switch {
		case err != nil || !st.Mode().IsRegular():
			return executable{}, unmeasured("it is not a regular file")
		case st.Size() > maxExecutable:
			return executable{source: workload.SourceUnavailable}, nil
		}
		return m.look(ctx, uid, f)
	})
	return e.told(), err
}

// remembered is what is known of a file without reading it.
func (m *measurer) remembered(uid uint32, open func(flags int) (*os.File, error)) (e executable, ok bool, err error) {
	f, err := open(unix.O_PATH)
	if err != nil {
		return executable{}, false, err
	}
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return executable{}, false, unmeasured("the descriptor is of no use")
	}
	err = raw.Control(func(fd uintptr) {
		path, st, stable := glance(int(fd), uid)
		if !stable {
			return
		}
		var digest string
		digest, ok = m.recall(stateOf(&st))
		e = executable{path, digest, sourceMeasured}
	})
	return e, ok, err
}

func (e executable) told() workload.Executable {
	return workload.Executable{Path: e.path, SHA256: e.digest, Source: e.source}
}

// inTurn calls fn when it is this user's turn and a processor is free, and waits for it while ctx lasts.
func (m *measurer) inTurn(ctx context.Context, uid uint32, fn func(context.Context) (executable, error)) (executable, error) {
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
		e, err := fn(ctx)
		done <- outcome{e, err}
	}()
	defer cancel()
	defer release()
	select {
	case o := <-done:
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
	if cerr := raw.Control(func(fd uintptr) { path, st, stable = glance(int(fd), uid) }); cerr != nil || st.Mode == 0 {
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

// glance looks at a file without reading it. Stable is one whose digest may be remembered for this user. A state of nothing is a
// file that can't be looked at.
func glance(fd int, uid uint32) (path string, st unix.Stat_t, stable bool) {
	if unix.Fstat(fd, &st) != nil {
		return "", unix.Stat_t{}, false
	}
	path = workload.Confirmed(fd, &st)
	return path, st, path != "" && uid != 0 && onlyRoots(fd, &st)
}

func stateOf(st *unix.Stat_t) fileState {
	return fileState{st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim}
}

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
