package rpc

import (
	"sync"
)

// memory is what the bodies of all requests take while they arrive, beyond the first buffer that each has. Half of it is for
// callers whose session stands: strangers together have the other half, and nobody, stranger's source or identity, has more
// than an eighth, or one whole request. So those who let much trickle in stop each other, and not those who work.
type memory struct {
	limit int64

	mu      sync.Mutex
	all     int64
	strange int64
	by      map[string]int64
}

// share is one request's part: whose it is, and how much it has.
type share struct {
	by      string
	strange bool
	taken   int64
}

// one is the part of a source or identity.
const one = 8

// take gives a share n bytes more, of a request that may have `most`, or reports that there is no room.
func (m *memory) take(s *share, n, most int64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.all+n > m.limit || m.by[s.by]+n > max(m.limit/one, most) {
		return false
	}
	if s.strange {
		if m.strange+n > m.limit/2 {
			return false
		}
		m.strange += n
	}
	if m.by == nil {
		m.by = make(map[string]int64)
	}
	m.all += n
	m.by[s.by] += n
	s.taken += n
	return true
}

// give takes everything of a share back. It is nobody's from then on, also if it never got anything: the buffer that it belongs
// to is used again for somebody else's request.
func (m *memory) give(s *share) {
	was := *s
	*s = share{}
	if was.taken == 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.all -= was.taken
	if was.strange {
		m.strange -= was.taken
	}
	if m.by[was.by] -= was.taken; m.by[was.by] == 0 {
		delete(m.by, was.by)
	}
}
