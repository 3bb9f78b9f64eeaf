package faults

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	bailmentv1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/test/site"
	"github.com/bailment/bailment/test/site/sitetest"
)

// attach lets strace make system calls of the running server fail.
func attach(s *sitetest.Site, inject, trace string) (detach func()) {
	s.T.Helper()
	cmd := exec.Command("strace", "-f", "-y", "-s", "0", "-e", "signal=none", "-P", filepath.Join(s.Dir(), "store.db-wal"),
		"-e", "trace=pwrite64,fsync,fdatasync", "-e", "inject="+inject, "-o", trace, "-p", strconv.Itoa(s.PID()))
	logs := &site.Log{}
	cmd.Stderr = logs
	s.Check(cmd.Start())
	deadline := time.Now().Add(10 * time.Second)
	for !strings.Contains(logs.String(), "attached") {
		if time.Now().After(deadline) {
			s.T.Fatalf("strace does not attach: %s", logs)
		}
		<-time.After(time.Millisecond)
	}
	return func() {
		_ = cmd.Process.Signal(syscall.SIGINT)
		_ = cmd.Wait() // it ends by the signal
	}
}

// again repeats a call until the server is available, as a client would.
func again[T any](t testing.TB, call func() (T, error)) T {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		v, err := call()
		if err == nil {
			return v
		}
		if k := problem.KindOf(err); k != problem.Unavailable && k != problem.UnknownOutcome && k != problem.Limited {
			t.Fatal(err)
		}
		if time.Now().After(deadline) {
			t.Fatalf("it does not recover: %v", err)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// TestFailingSystemCalls makes the n-th write or sync of the log fail, for every n that a few
// commits have. Whatever was acknowledged stays; whatever failed says so in its own way; the
// server recovers by itself; and every state replays.
func TestFailingSystemCalls(t *testing.T) {
	s := newSite(t, "", "")
	s.Start()
	s.Connect()
	admin := s.Dial(s.Login())
	a := &acked{puts: map[string]string{}, releases: map[uint64]string{}}
	put := func(i int) error {
		value := sitetest.Random()
		out, err := admin.Secrets.Put(t.Context(), &bailmentv1.PutRequest{Secret: fmt.Sprintf("app/s%d", i%8), Value: []byte(value)})
		if err == nil {
			a.put(out.Secret, out.Version, value)
		}
		return err
	}
	s.Check(put(0))
	failed := 0
	for _, call := range []string{"pwrite64", "fsync,fdatasync"} {
		for _, errno := range []string{"EIO", "ENOSPC"} {
			for n := 1; n <= 8; n++ {
				trace := filepath.Join(t.TempDir(), "trace")
				detach := attach(s, fmt.Sprintf("%s:error=%s:when=%d", call, errno, n), trace)
				for i := range 8 {
					err := put(i)
					if err == nil {
						continue
					}
					failed++
					if k := problem.KindOf(err); k != problem.Unavailable && k != problem.UnknownOutcome {
						t.Fatalf("%s of %s number %d: %v", errno, call, n, err)
					}
				}
				detach()
				again(t, func() (struct{}, error) { return struct{}{}, put(n) })
			}
		}
	}
	if failed < 20 {
		t.Fatalf("only %d calls failed: that tests nothing", failed)
	}
	audit(s, a)
	s.Kill()
	s.Start()
	audit(s, a)
}

// TestFullDisk fills the disk below the server: it refuses clearly, and recovers when there is room. Where a small file
// system can't be mounted, a limit on file sizes stands in, which also makes writes short.
func TestFullDisk(t *testing.T) {
	for _, way := range []struct {
		name  string
		make  func(*testing.T) (s *sitetest.Site, fill, free func())
		stays bool
	}{{"file system", onSmallDisk, os.Geteuid() == 0}, {"file size limit", underLimit, false}} {
		t.Run(way.name, func(t *testing.T) {
			s, fill, free := way.make(t)
			s.Start()
			s.Connect()
			admin := s.Dial(s.Login())
			put := func() error {
				_, err := admin.Secrets.Put(t.Context(), &bailmentv1.PutRequest{Secret: "app/s0", Value: []byte(sitetest.Random())})
				return err
			}
			s.Check(put())
			fill()
			err := untilFull(t, put)
			if k := problem.KindOf(err); k != problem.Unavailable && k != problem.UnknownOutcome {
				t.Fatalf("a full disk is answered with %v", err)
			}
			// The limited file has room again as soon as the store was opened anew; a full file system has not.
			deadline := time.Now().Add(20 * time.Second)
			for way.stays {
				ok, why := s.Ready()
				if !ok && strings.Contains(why, string(problem.ReasonStoreFull)) {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("readyz says %v %s", ok, why)
				}
				<-time.After(10 * time.Millisecond)
			}
			free()
			again(t, func() (struct{}, error) { return struct{}{}, put() })
		})
	}
}

func untilFull(t *testing.T, put func() error) error {
	t.Helper()
	for range 20000 {
		if err := put(); err != nil {
			return err
		}
	}
	t.Fatal("the disk does not get full")
	return nil
}

func onSmallDisk(t *testing.T) (*sitetest.Site, func(), func()) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=24m"); err != nil {
		if !errors.Is(err, unix.EPERM) {
			t.Fatal(err)
		}
		t.Log("can't mount a file system without privileges; the other way covers it")
		return underLimit(t)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	s := newSite(t, "", dir)
	t.Cleanup(s.Kill) // before the unmount
	ballast := filepath.Join(dir, "ballast")
	fill := func() {
		f, err := os.Create(ballast)
		s.Check(err)
		defer f.Close()
		block := make([]byte, 1<<16)
		for {
			if _, err := f.Write(block); err != nil {
				return
			}
		}
	}
	return s, fill, func() { s.Check(os.Remove(ballast)) }
}

func underLimit(t *testing.T) (*sitetest.Site, func(), func()) {
	s := newSite(t, "", "")
	limit := func(n uint64) {
		l := unix.Rlimit{Cur: n, Max: unix.RLIM_INFINITY}
		s.Check(unix.Prlimit(s.PID(), unix.RLIMIT_FSIZE, &l, nil))
	}
	wal := filepath.Join(s.Dir(), "store.db-wal")
	fill := func() {
		info, err := os.Stat(wal)
		s.Check(err)
		limit(uint64(info.Size()) + 10_000) // in the middle of a page, so that a write is cut short
	}
	return s, fill, func() { limit(unix.RLIM_INFINITY) }
}

// TestCore: no core is left by a server that aborts with secrets in memory.
func TestCore(t *testing.T) {
	s := newSite(t, "", "")
	dir := t.TempDir()
	pattern, err := os.ReadFile("/proc/sys/kernel/core_pattern")
	s.Check(err)
	s.Start("sh", "-c", `cd "$0" && ulimit -c unlimited && exec "$@"`, dir)
	s.Connect()
	admin := s.Dial(s.Login())
	_, err = admin.Secrets.Put(t.Context(), &bailmentv1.PutRequest{Secret: "app/s0", Value: []byte(sitetest.Random())})
	s.Check(err)
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", s.PID()))
	s.Check(err)
	for line := range strings.Lines(string(limits)) {
		if f := strings.Fields(line); strings.HasPrefix(line, "Max core file size") && f[4] != "0" {
			t.Fatalf("the server may dump core: %s", line)
		}
	}
	s.Check(syscall.Kill(s.PID(), syscall.SIGABRT))
	var exit *exec.ExitError
	if err := s.Wait(); !errors.As(err, &exit) {
		t.Fatalf("the server ended with %v", err)
	} else if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.CoreDump() {
		t.Fatal("a core was dumped")
	}
	left, err := filepath.Glob(filepath.Join(dir, "*core*"))
	s.Check(err)
	if len(left) > 0 {
		t.Fatalf("left %v (core_pattern %s)", left, pattern)
	}
}

// TestRevocationRace: a reader loads a flag, set after the revoke returned, before each send; with it set, none gets a
// release, and no release in scope has an index after the cutoff's.
func TestRevocationRace(t *testing.T) {
	s := newSite(t, "", "")
	s.Start()
	s.Connect()
	admin := s.Dial(s.Login())
	_, err := admin.Secrets.Put(t.Context(), &bailmentv1.PutRequest{Secret: "app/s0", Value: []byte(sitetest.Random())})
	s.Check(err)
	session := s.Workload(admin, "n1")
	race(t, s, admin, session)
}

func race(t *testing.T, s *sitetest.Site, admin *client.Client, session *client.Session) {
	t.Helper()
	const readers = 64
	type seen struct {
		index uint64
		late  bool
	}
	flag := make(chan struct{})
	results := make(chan []seen, readers)
	warm := make(chan struct{}, readers)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for range readers {
		c := s.Dial(session)
		go func() {
			var got []seen
			refusedLate := 0
			for n := 0; refusedLate < 3 && ctx.Err() == nil; n++ {
				late := false
				select {
				case <-flag:
					late = true
				default:
				}
				out, err := c.Secrets.Get(ctx, &bailmentv1.GetRequest{Secret: "app/s0"})
				if err == nil {
					got = append(got, seen{out.Entry.Index, late})
				} else if late {
					refusedLate++
				}
				if n == 5 {
					warm <- struct{}{}
				}
			}
			results <- got
		}()
	}
	for range readers {
		<-warm
	}
	out, err := admin.Revocations.Revoke(t.Context(), &bailmentv1.RevokeRequest{Scope: "identity:/workload/api", Reason: "race"})
	close(flag)
	s.Check(err)
	total := 0
	for range readers {
		for _, x := range <-results {
			total++
			if x.late {
				t.Fatalf("a release (entry %d) was given to a request that began after the acknowledgement", x.index)
			}
			if x.index > out.Entry.Index {
				t.Fatalf("release %d follows the cutoff %d", x.index, out.Entry.Index)
			}
		}
	}
	if total < readers {
		t.Fatalf("only %d releases: that tests nothing", total)
	}
}

// TestOneEffect: a thousand retries with one idempotency key from 32 clients over two restarts have one effect; after a
// cutoff, the retry is refused.
func TestOneEffect(t *testing.T) {
	s := newSite(t, "", "")
	s.Start()
	s.Connect()
	session := s.Login()
	value := sitetest.Random()
	retry := func(n int) {
		errs := make(chan error, 32)
		for range 32 {
			c := s.Dial(session)
			go func() {
				for range n {
					out, err := c.Secrets.Put(t.Context(), &bailmentv1.PutRequest{Secret: "app/s0", Value: []byte(value), IdempotencyKey: "once"})
					if err == nil && out.Version != 1 {
						err = fmt.Errorf("version %d", out.Version)
					}
					if err != nil {
						errs <- err
						return
					}
				}
				errs <- nil
			}()
		}
		for range 32 {
			s.Check(<-errs)
		}
	}
	retry(11)
	s.Kill()
	s.Start()
	retry(11)
	s.Stop()
	s.Start()
	retry(11)
	admin := s.Dial(session)
	list, err := admin.Secrets.List(t.Context(), &bailmentv1.ListSecretsRequest{Prefix: "app/s0"})
	s.Check(err)
	if len(list.Secrets) != 1 || len(list.Secrets[0].Versions) != 1 {
		t.Fatalf("%v", list)
	}
	reader := s.Dial(s.Workload(admin, "n1"))
	get := func() error {
		_, err := reader.Secrets.Get(t.Context(), &bailmentv1.GetRequest{Secret: "app/s0", IdempotencyKey: "r"})
		return err
	}
	s.Check(get())
	s.Check(get())
	_, err = admin.Revocations.Revoke(t.Context(), &bailmentv1.RevokeRequest{Scope: "identity:/workload/api", Hold: bailmentv1.RevokeRequest_HOLD_NO, Reason: "test"})
	s.Check(err)
	if err := get(); !problem.Is(err, problem.ReasonCutoff) {
		t.Fatalf("the retry after a cutoff: %v", err)
	}
}
