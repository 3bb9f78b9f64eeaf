package server

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bailment/bailment/internal/config"
)

// arrivals is a network whose connections arrive when a test says so.
type arrivals chan net.Conn

func (a arrivals) Accept() (net.Conn, error) {
	c, ok := <-a
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (a arrivals) Close() error   { return nil }
func (a arrivals) Addr() net.Addr { return &net.TCPAddr{} }

// peer is a connection from an address.
type peer struct {
	net.Conn
	from   string
	closed atomic.Bool
}

func (p *peer) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.ParseIP(p.from), Port: 1} }
func (p *peer) Close() error         { p.closed.Store(true); return nil }

// counts are what a listener counts.
type counts struct {
	mu              sync.Mutex
	open            int
	refused, broken map[string]int
}

func (c *counts) connected(delta int) { c.mu.Lock(); defer c.mu.Unlock(); c.open += delta }
func (c *counts) connectionRefused(limit string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refused[limit]++
}
func (c *counts) connectionBroken(why string) { c.mu.Lock(); defer c.mu.Unlock(); c.broken[why]++ }

// doorway is a listener in a bubble.
type doorway struct {
	t *testing.T
	*listener
	in    arrivals
	count *counts
}

func newDoorway(t *testing.T, l config.Limits) *doorway {
	c := config.Server{Limits: l}
	c.SetDefaults()
	in, n := make(arrivals, 1), &counts{refused: make(map[string]int), broken: make(map[string]int)}
	return &doorway{t: t, listener: newListener(in, c.Limits, c.Timeouts.UnprovedIdle, n), in: in, count: n}
}

// arrive is one connection from an address; nil if it was refused.
func (d *doorway) arrive(from string) *connection {
	d.t.Helper()
	p := &peer{from: from}
	d.in <- p
	got := make(chan net.Conn, 1)
	go func() {
		if c, err := d.Accept(); err == nil {
			got <- c
		}
	}()
	synctest.Wait()
	select {
	case c := <-got:
		return c.(*connection)
	default: // it waits for another one, which ends it
		close(d.in)
		synctest.Wait()
		d.in = make(arrivals, 1)
		d.Listener = d.in
		if !p.closed.Load() {
			d.t.Error("what was refused is open")
		}
		return nil
	}
}

func closed(c *connection) bool { return c.Conn.(*peer).closed.Load() }

// The places of those that proved nothing go round; the others' are theirs.
func TestPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDoorway(t, config.Limits{Connections: 16, SourceConnections: 8})
		var proved, quiet []*connection
		for i := range 8 {
			c := d.arrive(fmt.Sprintf("192.0.2.%d", i))
			d.changed(c, http.StateActive)
			c.Proved(fmt.Sprintf("node %d", i))
			d.changed(c, http.StateIdle)
			proved = append(proved, c)
		}
		for i := range 8 {
			quiet = append(quiet, d.arrive(fmt.Sprintf("198.51.100.%d", i/4)))
			time.Sleep(time.Millisecond)
		}
		if d.count.open != 16 || len(d.count.broken) != 0 {
			t.Fatalf("%+v", d.count)
		}
		// The one with a request is spared, and so is the one that had one just now.
		d.changed(quiet[0], http.StateActive)
		d.changed(quiet[1], http.StateActive)
		d.changed(quiet[1], http.StateIdle)
		for i := range 7 {
			if d.arrive(fmt.Sprintf("203.0.113.%d", i)) == nil {
				t.Fatal("a newcomer was refused")
			}
		}
		for i, c := range quiet {
			if closed(c) != (i > 0) {
				t.Errorf("%d is closed: %v", i, closed(c))
			}
		}
		for _, c := range proved {
			if closed(c) {
				t.Error("one that proved an identity was broken off")
			}
		}
		if d.count.open != 16 || d.count.broken[brokenRoom] != 7 || d.unproved != 8 {
			t.Errorf("%+v, %d unproved", d.count, d.unproved)
		}
		_ = proved[0].Close()
		_ = proved[0].Close()
		_ = quiet[3].Close() // closed already
		if d.count.open != 15 || d.unproved != 8 {
			t.Errorf("%+v, %d unproved", d.count, d.unproved)
		}
	})
}

// A quarter is for those that proved an identity. Requests under way are not disturbed at once.
func TestReserve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDoorway(t, config.Limits{Connections: 16, SourceConnections: 16})
		var busy []*connection
		for range 12 {
			c := d.arrive("192.0.2.1")
			d.changed(c, http.StateActive)
			busy = append(busy, c)
		}
		if d.arrive("192.0.2.2") != nil || d.count.refused["total"] != 1 {
			t.Fatalf("a thirteenth without an identity was taken: %+v", d.count)
		}
		busy[11].Proved("node")
		if d.arrive("192.0.2.2") == nil {
			t.Fatal("there was room")
		}
		_ = d.longest(time.Now()).Close() // that one, again
		d.changed(d.arrive("192.0.2.2"), http.StateActive)
		time.Sleep(busyAtLeast)
		if d.arrive("192.0.2.3") == nil || !closed(busy[0]) || closed(busy[1]) {
			t.Fatal("the request that takes longest did not make room")
		}
	})
}

// One identity has an eighth of the places, from however many sources: what is beyond makes room for others.
func TestPlacesOfAnIdentity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDoorway(t, config.Limits{Connections: 32, SourceConnections: 8})
		var hoard []*connection
		for i := range 24 {
			c := d.arrive(fmt.Sprintf("192.0.2.%d", i/8))
			c.Proved("node")
			hoard = append(hoard, c)
			time.Sleep(time.Millisecond)
		}
		for i := range 24 {
			c := d.arrive(fmt.Sprintf("198.51.100.%d", i))
			if c == nil {
				t.Fatalf("newcomer %d was refused: %v", i, d.count.refused)
			}
			c.Proved(fmt.Sprintf("other %d", i))
		}
		kept := 0
		for _, c := range hoard {
			if !closed(c) {
				kept++
				_ = c.Close()
			}
		}
		if kept < 4 || kept > 8 || len(d.proved) != 24 {
			t.Errorf("it has %d places, and %d others have theirs", kept, len(d.proved)-1)
		}
	})
}

func TestSourceLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDoorway(t, config.Limits{Connections: 100, SourceConnections: 3, SourceHandshakes: config.Rate{PerSecond: 1, Burst: 5}})
		for range 3 {
			d.arrive("2001:db8::1")
		}
		if d.arrive("2001:db8::2") != nil || d.count.refused["source"] != 1 {
			t.Fatalf("a fourth of a /64 was taken: %+v", d.count)
		}
		for range 5 {
			_ = d.arrive("192.0.2.1").Close()
		}
		if d.arrive("192.0.2.1") != nil || d.count.refused["rate"] != 1 {
			t.Fatalf("a sixth within a moment was taken: %+v", d.count)
		}
		time.Sleep(time.Second)
		if d.arrive("192.0.2.1") == nil {
			t.Fatal("a second later")
		}
	})
}

// Who proved nothing is closed 10 s after its last request, and not before.
func TestReap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDoorway(t, config.Limits{})
		ctx, cancel := context.WithCancel(t.Context())
		go d.reap(ctx)
		quiet, active, proved := d.arrive("192.0.2.1"), d.arrive("192.0.2.2"), d.arrive("192.0.2.3")
		d.changed(active, http.StateActive)
		proved.Proved("node")
		time.Sleep(10*time.Second - time.Nanosecond)
		synctest.Wait()
		if closed(quiet) {
			t.Error("too early")
		}
		late := d.arrive("192.0.2.4")
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if !closed(quiet) || closed(active) || closed(proved) || closed(late) || d.count.broken[brokenIdle] != 1 {
			t.Errorf("%v %v %v %v", closed(quiet), closed(active), closed(proved), closed(late))
		}
		d.changed(active, http.StateIdle)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if !closed(active) || !closed(late) || closed(proved) || d.count.open != 1 {
			t.Errorf("%v %v %v, %+v", closed(active), closed(late), closed(proved), d.count)
		}
		cancel()
	})
}
