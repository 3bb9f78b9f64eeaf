package localapi

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Peer is who is at the other end, as the kernel noted it when the connection was made (SO_PEERCRED, unix(7)). IDs are
// those of this process's user namespace, and the process ID of its PID namespace: 0 if it has none there.
type Peer struct {
	UID, GID uint32
	PID      int32
	Groups   []uint32 // supplementary
}

// maxGroups bounds what is asked for; Linux has at most 65,536 (NGROUPS_MAX).
const maxGroups = 1024

// PeerOf asks the kernel who is at the other end of a connection.
func PeerOf(c *net.UnixConn) (Peer, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return Peer{}, err
	}
	var p Peer
	var opErr error
	err = raw.Control(func(fd uintptr) {
		var cred *unix.Ucred
		if cred, opErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); opErr != nil {
			return
		}
		p = Peer{UID: cred.Uid, GID: cred.Gid, PID: cred.Pid}
		// x/sys has no wrapper for SO_PEERGROUPS (Linux 4.13). A kernel without it, or more groups than
		// are taken, give none: policy that asks for a group then refuses.
		groups := make([]uint32, maxGroups)
		size := uint32(len(groups) * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		if errno == 0 && int(size/4) <= len(groups) {
			p.Groups = groups[:size/4]
		}
	})
	if err == nil {
		err = opErr
	}
	if err != nil {
		return Peer{}, fmt.Errorf("asking the kernel who connected: %w", err)
	}
	return p, nil
}

// Conn is a server's side of a connection: it knows its peer, and keeps one descriptor that the peer sent.
type Conn struct {
	*net.UnixConn
	Peer Peer

	mu     sync.Mutex
	file   *os.File
	closed bool
	last   bool // nothing more may come
	tail   bool // a byte came that net/http read behind a request
	once   sync.Once
	done   func()
}

// oobSize has room for a few descriptors: with less the kernel would cut the message, and close the rest itself.
var oobSize = unix.CmsgSpace(4 * 4)

// Read reads bytes, and descriptors beside them. The first one is kept, others are closed.
func (c *Conn) Read(b []byte) (int, error) {
	oob := make([]byte, oobSize)
	n, oobn, _, _, err := c.UnixConn.ReadMsgUnix(b, oob)
	if oobn > 0 {
		c.take(oob[:oobn])
	}
	if n < 0 {
		n = 0
	}
	if n == 0 && err == nil && len(b) > 0 {
		// ReadMsg does not say so at the end of a stream.
		n, err = c.UnixConn.Read(b)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.last && n > 0 {
		return 0, errMore
	}
	c.tail = len(b) == 1 && n == 1
	return n, err
}

var errMore = errors.New("more came than the last request")

// Last says that the request that was just read to its end is the connection's last one: from here on, a byte that comes is like the
// connection's end. It reports whether one has come already.
//
// That is how a run's end is seen. While a request is served, package http reads one byte ahead, alone, to see the
// connection's end; once it has a byte, it sees the end no more.
func (c *Conn) Last() (more bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = true
	return c.tail
}

func (c *Conn) take(oob []byte) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			c.mu.Lock()
			if c.file == nil && !c.closed {
				c.file = os.NewFile(uintptr(fd), "executable")
			} else {
				unix.Close(fd)
			}
			c.mu.Unlock()
		}
	}
}

// File hands out the descriptor that came, once; nil: none. The caller closes it.
func (c *Conn) File() *os.File {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.file
	c.file = nil
	return f
}

// Close closes the connection and a descriptor that nobody took.
func (c *Conn) Close() error {
	c.mu.Lock()
	c.closed = true
	if c.file != nil {
		c.file.Close()
		c.file = nil
	}
	c.mu.Unlock()
	if c.done != nil {
		c.once.Do(c.done)
	}
	return c.UnixConn.Close()
}

// Listener accepts connections of the local API, at most so many at a time, and at most so many of one user: whoever
// is over closes at once, so that nobody can shut others out.
type Listener struct {
	*net.UnixListener
	Most, MostPerUser int
	// Full is told whose connections are closed for want of room: once, until there is plenty again. May be nil; set it before Accept.
	Full func(uid uint32)

	mu    sync.Mutex
	total int
	users map[uint32]int
	full  map[uint32]bool // of whom Full was told
}

// Listen makes the socket at path, open to all users of the machine (0666): who may have what is not the file
// system's decision. A socket that a dead agent left is replaced; one that answers is not.
func Listen(path string, most, mostPerUser int) (*Listener, error) {
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("another agent answers at %s", path)
	}
	if st, err := os.Lstat(path); err == nil {
		if st.Mode().Type() != os.ModeSocket {
			return nil, fmt.Errorf("%s exists and is not a socket", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o666); err != nil {
		l.Close()
		return nil, err
	}
	return &Listener{UnixListener: l, Most: most, MostPerUser: mostPerUser, users: make(map[uint32]int), full: make(map[uint32]bool)}, nil
}

// Accept waits for the next connection.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		c, err := l.UnixListener.AcceptUnix()
		if err != nil {
			return nil, err
		}
		p, err := PeerOf(c)
		if err != nil {
			c.Close()
			continue
		}
		if ok, news := l.admit(p.UID); !ok {
			c.Close()
			if news && l.Full != nil {
				l.Full(p.UID)
			}
			continue
		}
		return &Conn{UnixConn: c, Peer: p, done: func() { l.leave(p.UID) }}, nil
	}
}

// admit counts a connection, if there is room. news: there is none, and nobody has been told of this user.
func (l *Listener) admit(uid uint32) (ok, news bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.total >= l.Most || l.users[uid] >= l.MostPerUser {
		news = !l.full[uid]
		l.full[uid] = true
		return false, news
	}
	l.total++
	l.users[uid]++
	return true, false
}

func (l *Listener) leave(uid uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total--
	if l.users[uid]--; l.users[uid] == 0 {
		delete(l.users, uid)
	}
	if len(l.full) > 0 && l.total <= l.Most/2 {
		maps.DeleteFunc(l.full, func(uid uint32, _ bool) bool { return l.users[uid] <= l.MostPerUser/2 })
	}
}
