package job

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailment/bailment/internal/problem"
)

// A watchdog is a second process of this program that gives back what the first one holds, when that is killed. It is told what is held, over a
// socket whose end tells it that the first is gone. So that whatever kills a step does not find it, it has a session of its own, is
// nobody's child (its parent is gone when it begins), and has an empty environment. What kills everything (a container's or machine's end) kills
// it too.
const (
	readyByte = 'r'
	// watchdogFD is the descriptor of its socket: the first after its streams.
	watchdogFD = 3
	// startWithin is generous: it is a start of two processes, on a machine that may be busy.
	startWithin  = 20 * time.Second
	writeWithin  = 5 * time.Second
	mostRestarts = 3
	// maxHolding bounds what is said: 64 leases and a session are a tenth of it.
	maxHolding = 1 << 20
)

// watchdog is the first process's side. It is safe for concurrent use.
type watchdog struct {
	command []string // argv of what begins one
	stderr  *os.File
	died    func(again bool, err error) // told when one died before its time

	mu       sync.Mutex
	conn     *os.File
	said     []byte // the newest holding
	restarts int
	ended    bool
	done     chan struct{} // closed when the present one is gone
}

// start begins a watchdog and waits until it watches.
func (w *watchdog) start() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.begin()
}

// begin does it; the lock is held.
func (w *watchdog) begin() error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return problem.Wrap(err, problem.ReasonInternal, "making the watchdog's socket")
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "watchdog"), os.NewFile(uintptr(pair[1]), "watchdog")
	defer theirs.Close()
	cmd := exec.Command(w.command[0], w.command[1:]...)
	cmd.Env, cmd.Dir, cmd.Stderr = []string{}, "/", w.stderr
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	fail := func(err error) error {
		ours.Close()
		return problem.Wrap(err, problem.ReasonInternal, "starting the watchdog, without which nothing would be given back if this process were killed").
			WithFix("check that this program may be executed again (it is %s)", w.command[0])
	}
	if err := cmd.Start(); err != nil {
		return fail(err)
	}
	// What was started only starts the watchdog. As PID 1 of a container we may have lost it to whoever waits for everybody.
	_ = cmd.Wait()
	_ = ours.SetReadDeadline(time.Now().Add(startWithin))
	var b [1]byte
	theirs.Close() // or its death would not be seen
	if _, err := io.ReadFull(ours, b[:]); err != nil || b[0] != readyByte {
		return fail(io.ErrUnexpectedEOF)
	}
	_ = ours.SetReadDeadline(time.Time{})
	w.conn, w.done = ours, make(chan struct{})
	go w.attend(ours, w.done)
	return w.write()
}

// attend waits for the end of a watchdog, and begins another if it died before its time.
func (w *watchdog) attend(conn *os.File, done chan struct{}) {
	_, _ = io.Copy(io.Discard, conn) // it says nothing any more
	close(done)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return
	}
	conn.Close()
	w.conn = nil
	if w.restarts == mostRestarts {
		w.died(false, nil)
		return
	}
	w.restarts++
	err := w.begin()
	w.died(err == nil, err)
}

// tell tells it what is held now. A watchdog that can't be told has died, which attend sees.
func (w *watchdog) tell(h *holding) error {
	text, err := json.Marshal(h)
	if err != nil {
		return problem.Wrap(err, problem.ReasonInternal, "encoding what is held")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.said)
	w.said = append(text, '\n')
	return w.write()
}

func (w *watchdog) write() error {
	if w.conn == nil || w.said == nil {
		return nil
	}
	_ = w.conn.SetWriteDeadline(time.Now().Add(writeWithin))
	if _, err := w.conn.Write(w.said); err != nil {
		return problem.Wrap(err, problem.ReasonInternal, "telling the watchdog")
	}
	return nil
}

// end sends it away, and waits until it is gone. What was told last stands: say before that all is done.
func (w *watchdog) end() {
	w.mu.Lock()
	w.ended = true
	conn, done := w.conn, w.done
	clear(w.said)
	w.said = nil
	w.mu.Unlock()
	if conn == nil {
		return
	}
	if raw, err := conn.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_WR) })
	}
	select {
	case <-done:
	case <-time.After(writeWithin):
	}
	conn.Close()
}

// listen reads what is held until the other side is gone, and gives the newest of it; nil: nothing was ever said.
func listen(conn io.Reader) *holding {
	lines := bufio.NewScanner(conn)
	lines.Buffer(make([]byte, 64<<10), maxHolding)
	var newest *holding
	for lines.Scan() {
		h := new(holding)
		// A line that was cut off by the death of who wrote it is passed over: the one before it stands.
		if json.Unmarshal(lines.Bytes(), h) == nil {
			newest = h
		}
	}
	return newest
}
