package server

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bailment/bailment/internal/config"
	"github.com/bailment/bailment/internal/problem"
)

// turnings count what a gate refuses.
type turnings struct {
	mu      sync.Mutex
	open    int
	refused map[string]int
}

func (c *turnings) requestOpen(n int) { c.mu.Lock(); defer c.mu.Unlock(); c.open += n }
func (c *turnings) requestRefused(limit string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refused[limit]++
}

func (c *turnings) of(limit string) int { c.mu.Lock(); defer c.mu.Unlock(); return c.refused[limit] }

// slow is a writer and a body whose client gives and takes nothing until a deadline.
type slow struct {
	http.ResponseWriter
	reads, writes *limit
}

// limit is a deadline.
type limit struct {
	mu    sync.Mutex
	until time.Time
	moved chan struct{}
}

func newLimit() *limit { return &limit{moved: make(chan struct{})} }

func (l *limit) set(t time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.until = t
	close(l.moved)
	l.moved = make(chan struct{})
	return nil
}

// wait returns when the deadline is over.
func (l *limit) wait() {
	for {
		l.mu.Lock()
		until, moved := l.until, l.moved
		l.mu.Unlock()
		var over <-chan time.Time
		if !until.IsZero() {
			over = time.After(time.Until(until))
		}
		select {
		case <-over:
			return
		case <-moved:
		}
	}
}

func (s *slow) SetReadDeadline(t time.Time) error  { return s.reads.set(t) }
func (s *slow) SetWriteDeadline(t time.Time) error { return s.writes.set(t) }
func (s *slow) Read([]byte) (int, error)           { s.reads.wait(); return 0, context.DeadlineExceeded }

func (s *slow) Write([]byte) (int, error) { s.writes.wait(); return 0, context.DeadlineExceeded }
func (s *slow) Close() error              { return nil }

// strangers is an API that reads a request and answers, or works on it until it is told. Who says who he is, is no stranger to it.
type strangers struct{ work chan struct{} }

func (a strangers) Proved(r *http.Request) string { return r.Header.Get("Identity") }
func (a strangers) Refuse(w http.ResponseWriter, _ *http.Request, _ *problem.Problem) {
	w.WriteHeader(http.StatusTooManyRequests)
}

func (a strangers) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Body == http.NoBody {
		<-a.work
	} else {
		_, _ = r.Body.Read(make([]byte, 1))
	}
	_, _ = w.Write([]byte("x"))
}

// doors is a gate in a bubble, before strangers.
type doors struct {
	*gate
	count *turnings
	work  chan struct{}
	open  sync.WaitGroup
	here  atomic.Int64
}

func newDoors(unproved int) *doors {
	c := config.Server{Limits: config.Limits{UnprovedRequests: unproved, UnprovedStreams: 1000}}
	c.SetDefaults()
	d := &doors{count: &turnings{refused: make(map[string]int)}, work: make(chan struct{})}
	d.gate = newGate(strangers{d.work}, c.Limits, time.Minute, d.count)
	return d
}

// ask has a source ask, and returns when the request waits for somebody, or has ended.
func (d *doors) ask(from string, slowly bool) { d.askAs("", from, slowly) }

func (d *doors) askAs(identity, from string, slowly bool) {
	s := &slow{httptest.NewRecorder(), newLimit(), newLimit()}
	r, err := http.NewRequest(http.MethodPost, "/", http.NoBody)
	if err != nil {
		panic(err)
	}
	r.Header.Set("Identity", identity)
	if slowly {
		r.Body = s
	}
	r = r.WithContext(context.WithValue(context.Background(), connectionKey{}, &connection{from: from}))
	_, _ = s.SetReadDeadline(time.Now().Add(time.Hour)), s.SetWriteDeadline(time.Now().Add(time.Hour)) // the server's own
	d.here.Add(1)
	d.open.Go(func() {
		defer d.here.Add(-1)
		d.ServeHTTP(s, r)
	})
	synctest.Wait()
}

// Requests that the server works on make no room, and are no shelter for those of other sources that never end.
func TestRoomBesideWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDoors(24) // three of a source
		for range 3 {
			d.ask("busy", false)
		}
		for i := range 21 {
			d.ask(fmt.Sprint("parked", i/3), true)
		}
		for i := range 5 {
			d.ask(fmt.Sprint("new", i), false)
		}
		if n := d.count.of("unproved"); n != 0 {
			t.Errorf("%d of five newcomers were refused", n)
		}
		close(d.work)
		d.open.Wait()
		if d.count.open != 0 || len(d.words) != 0 || len(d.sources) != 0 || slices.Max(d.levels) != 0 {
			t.Errorf("%d are open, %d words, %d sources, levels %v", d.count.open, len(d.words), len(d.sources), d.levels)
		}
	})
}

// Who made room is nobody's count any more, and so must be gone: at once, but for a few who are told why.
func TestWhoMadeRoomIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDoors(2048)
		for i := range 2048 {
			d.ask(fmt.Sprint("first", i/256), true)
		}
		for i := range 800 {
			d.ask(fmt.Sprint("second", i/100), true)
		}
		if n := d.count.of("unproved-room"); n != 800 {
			t.Fatalf("%d made room", n)
		}
		if n := d.here.Load(); n != 2048+wordyRefusals {
			t.Errorf("%d are there", n)
		}
		time.Sleep(refusalWithin)
		synctest.Wait()
		if n := d.here.Load(); n != 2048 || len(d.words) != 0 {
			t.Errorf("%d are still there, %d are told", n, len(d.words))
		}
		d.open.Wait()
	})
}

// One identity has an eighth of all requests, from however many addresses, and what one connection may have in any case.
func TestRequestsOfAnIdentity(t *testing.T) {
	for most, want := range map[int]int{1600: 200, 160: 100} {
		synctest.Test(t, func(t *testing.T) {
			d := newDoors(16)
			d.limits.OpenRequests = most
			for i := range want + 5 {
				d.askAs("greedy", fmt.Sprint(i), i%2 == 0)
			}
			d.askAs("modest", "0", false)
			d.ask("0", false)
			if n, open := d.count.of("identity"), int(d.here.Load()); n != 5 || open != want+2 {
				t.Errorf("%d are open and %d were refused of an eighth of %d", open, n, most)
			}
			close(d.work)
			d.open.Wait()
			if d.count.open != 0 || len(d.identities) != 0 || len(d.sources) != 0 {
				t.Errorf("%d are open, of %v, %d sources", d.count.open, d.identities, len(d.sources))
			}
		})
	}
}
