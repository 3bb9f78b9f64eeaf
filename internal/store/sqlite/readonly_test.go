package sqlite

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailment/bailment/internal/store"
)

// state is what a directory looks like from outside: names, contents, times.
func state(t *testing.T, dir string) string {
	t.Helper()
	out := ""
	list, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range list {
		st, err := e.Info()
		must(t, err)
		raw, err := os.ReadFile(filepath.Join(dir, e.Name()))
		must(t, err)
		out += fmt.Sprintln(e.Name(), st.Mode(), st.ModTime(), len(raw), fmt.Sprintf("%x", sum(raw)))
	}
	st, err := os.Stat(dir)
	must(t, err)
	return out + st.ModTime().String()
}

func sum(b []byte) (h uint64) {
	for _, c := range b {
		h = h*1099511628211 + uint64(c)
	}
	return h
}

// checkCopy checks that s holds whole batches of fill, one behind the other, up to its head.
func checkCopy(t *testing.T, s *Store) uint64 {
	t.Helper()
	ctx := context.Background()
	head, err := s.Head(ctx)
	must(t, err)
	next := uint64(0)
	must(t, s.Entries(ctx, 0, 1<<30, func(i uint64, e store.Entry) error {
		want := fmt.Sprintf("entry %d ", i)
		if i != next || string(e.Body[:len(want)]) != want {
			return fmt.Errorf("entry %d is %q", i, e.Body[:20])
		}
		next++
		return nil
	}))
	if next != head.Size {
		t.Fatalf("%d entries under a head of %d", next, head.Size)
	}
	var answer string
	if _, err := s.c.one([]any{&answer}, "PRAGMA integrity_check"); err != nil || answer != "ok" {
		t.Fatalf("integrity check: %s, %v", answer, err)
	}
	return head.Size
}

func TestReadOnlyOfAStoppedStore(t *testing.T) {
	ctx := context.Background()
	for _, crashed := range []bool{false, true} {
		p := newSite(t).(*site)
		opened, err := p.Create(ctx)
		must(t, err)
		s := opened.(*Store)
		for range 40 {
			appendN(t, s, 20, 300)
		}
		if crashed {
			p.Crash(s)
		} else {
			must(t, s.Close())
		}
		//arch:allow sleep: the file system's clock has to tick, and no event says so
		time.Sleep(60 * time.Millisecond) // out of the last write's clock tick, as any stopped store is
		before := state(t, p.dir)
		must(t, os.Chmod(p.dir, 0o500))
		r, err := OpenReadOnly(ctx, p.dir)
		must(t, err)
		if n := checkCopy(t, r); n != 800 {
			t.Errorf("crashed %v: %d entries", crashed, n)
		}
		for name, err := range map[string]error{
			"Append": r.Append(ctx, fill(r.head, 1, 10)), "PutCheckpoint": r.PutCheckpoint(ctx, []byte("x")), "PutSnapshot": r.PutSnapshot(ctx, 0, nil),
		} {
			if !errors.Is(err, store.ErrReadOnly) {
				t.Errorf("%s of a copy: %v", name, err)
			}
		}
		if _, err := r.Head(ctx); err != nil {
			t.Errorf("a refused write made the copy fatal: %v", err)
		}
		tmp := r.dir
		must(t, r.Close())
		must(t, r.Close())
		if _, err := os.Stat(tmp); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the copy is still there: %v", err)
		}
		must(t, os.Chmod(p.dir, 0o700))
		if after := state(t, p.dir); after != before {
			t.Errorf("crashed %v: the directory changed:\n%s\n%s", crashed, before, after)
		}
		must(t, mustOpen(t, p.dir).Close())
	}
	if _, err := OpenReadOnly(ctx, t.TempDir()); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("no store: %v", err)
	}
}

// Copies of a store that is being written, checkpointed and reset all the time are each one commit,
// and not older than what was acknowledged before the call.
func TestReadOnlyOfABusyStore(t *testing.T) {
	for _, c := range []struct {
		name string
		busy func(t *testing.T, s *Store)
	}{
		{"commits", func(t *testing.T, s *Store) { appendN(t, s, 1+int(s.head.Size%90), 700) }},
		// Against the agreement: checkpoints and resets without asking whether a copy is under way,
		// so that only the comparison of the log's header keeps copies right.
		{"resets", func(t *testing.T, s *Store) {
			appendN(t, s, 20, 700)
			if s.head.Size%3 == 0 {
				must(t, s.acquire(context.Background()))
				_, err := s.runCheckpoint([]string{"PASSIVE", "TRUNCATE", "RESTART"}[s.head.Size%9/3])
				s.release()
				must(t, err)
				//arch:allow sleep: the file system's clock has to tick, and no event says so
				time.Sleep(25 * time.Millisecond)
			}
		}},
		{"restarts", nil},
	} {
		t.Run(c.name, func(t *testing.T) { hammerCopies(t, c.busy) })
	}
}

func hammerCopies(t *testing.T, busy func(t *testing.T, s *Store)) {
	ctx := context.Background()
	dir := filepath.Join(t.TempDir(), "s")
	s := mustCreate(t, dir)
	for range 100 {
		appendN(t, s, 90, 700)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	acked := make(chan uint64, 1)
	acked <- s.head.Size
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if busy != nil {
				busy(t, s)
			} else {
				appendN(t, s, 30, 700)
				if err := s.Close(); err != nil {
					t.Error(err)
					return
				}
				//arch:allow sleep: the file system's clock has to tick, and no event says so
				time.Sleep(120 * time.Millisecond)
				next, err := Open(ctx, dir)
				if err != nil {
					t.Error(err)
					return
				}
				s = next
			}
			<-acked
			acked <- s.head.Size
		}
	}()
	good, late := 0, 0
	for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); {
		atLeast := <-acked
		acked <- atLeast
		r, err := OpenReadOnly(ctx, dir)
		if err != nil {
			late++ // told, instead of a wrong copy
			continue
		}
		if n := checkCopy(t, r); n < atLeast {
			t.Errorf("copy ends at %d, %d were acknowledged before", n, atLeast)
		}
		must(t, r.Close())
		good++
	}
	close(stop)
	<-done
	if good == 0 {
		t.Errorf("only %d copies, %d given up", good, late)
	}
	t.Logf("%d copies, %d given up; %d entries", good, late, s.head.Size)
	must(t, s.Close())
	must(t, mustOpen(t, dir).Close())
}

func restart(t *testing.T, s *Store) *Store {
	t.Helper()
	must(t, s.Close())
	return mustOpen(t, s.dir)
}

// The hammer's windows are narrow; this acts right inside them: every kind of change between every
// two steps of a copy must give a good copy or be noticed.
func TestCopyBetweenItsSteps(t *testing.T) {
	ctx := context.Background()
	checkpoint := func(t *testing.T, s *Store, mode string) {
		done, err := s.runCheckpoint(mode)
		if err != nil || !done {
			t.Fatalf("checkpoint: %v, %v", done, err)
		}
	}
	many := func(t *testing.T, s *Store) {
		for range 30 {
			appendN(t, s, 20, 700)
		}
	}
	changes := map[string]struct {
		unnoticed bool // it may not disturb the copy, which must then be good at the first try
		do        func(t *testing.T, s *Store) *Store
	}{
		"commits":             {true, func(t *testing.T, s *Store) *Store { many(t, s); return s }},
		"checkpoint":          {true, func(t *testing.T, s *Store) *Store { checkpoint(t, s, "PASSIVE"); return s }},
		"commits, checkpoint": {true, func(t *testing.T, s *Store) *Store { many(t, s); checkpoint(t, s, "PASSIVE"); return s }},
		"reset":               {false, func(t *testing.T, s *Store) *Store { many(t, s); checkpoint(t, s, "PASSIVE"); many(t, s); return s }},
		"truncation":          {false, func(t *testing.T, s *Store) *Store { many(t, s); checkpoint(t, s, "TRUNCATE"); return s }},
		"truncation, commits": {false, func(t *testing.T, s *Store) *Store { many(t, s); checkpoint(t, s, "TRUNCATE"); many(t, s); return s }},
		"stop":                {false, func(t *testing.T, s *Store) *Store { many(t, s); must(t, s.Close()); return nil }},
		"restart":             {false, func(t *testing.T, s *Store) *Store { many(t, s); return restart(t, s) }},
		"restart, commits":    {false, func(t *testing.T, s *Store) *Store { many(t, s); s = restart(t, s); many(t, s); return s }},
	}
	for name, change := range changes {
		for _, step := range []string{"header read", "database copied", "log copied"} {
			for _, start := range []string{"full log", "short log", "empty log", "stopped"} {
				t.Run(name+"/"+step+"/"+start, func(t *testing.T) {
					t.Parallel()
					s := mustCreate(t, filepath.Join(t.TempDir(), "s"))
					dir := s.dir
					many(t, s)
					switch start {
					case "empty log":
						checkpoint(t, s, "TRUNCATE")
					case "short log": // has few of the pages that the change is going to touch
						checkpoint(t, s, "TRUNCATE")
						must(t, s.PutCheckpoint(ctx, []byte("signed anew")))
					case "stopped":
						must(t, s.Close())
					}
					//arch:allow sleep: the file system's clock has to tick, and no event says so
					time.Sleep(60 * time.Millisecond) // see try: out of the clock's tick
					c := &copier{dir: dir, tmp: t.TempDir()}
					c.at = func(at string) {
						if at == step {
							if start == "stopped" {
								s = mustOpen(t, dir)
							}
							s = change.do(t, s)
						}
					}
					ok, err := c.try(ctx)
					must(t, err)
					if !ok {
						if change.unnoticed && (start == "full log" || start == "short log") {
							t.Fatal("a harmless change spoiled the copy")
						}
						return
					}
					r := &Store{dir: c.tmp, readOnly: true}
					must(t, r.load(connectDriver))
					defer r.Close()
					if n := checkCopy(t, r); n < 600 {
						t.Fatalf("the copy has %d entries", n)
					}
				})
			}
		}
	}
}

// The comparison itself: a log that was reset between the copies of database and log is noticed,
// also when the header changes by its salts only.
func TestCopyNoticesAResetLog(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	s := mustCreate(t, dir)
	appendN(t, s, 10, 700)
	first, err := readHeader(filepath.Join(dir, walName))
	must(t, err)
	_, err = s.runCheckpoint("PASSIVE")
	must(t, err)
	same, err := readHeader(filepath.Join(dir, walName))
	must(t, err)
	appendN(t, s, 1, 700)
	next, err := readHeader(filepath.Join(dir, walName))
	must(t, err)
	if string(first) != string(same) || string(first[16:24]) == string(next[16:24]) {
		t.Fatalf("header %x, after a checkpoint %x, after a reset %x", first, same, next)
	}
	if binary.BigEndian.Uint32(next[16:]) != binary.BigEndian.Uint32(first[16:])+1 {
		t.Errorf("salt 1 went from %x to %x", first[16:20], next[16:20])
	}
}

// A copy under way puts off checkpoints, and a later batch makes up for it.
func TestCopyPutsOffCheckpoints(t *testing.T) {
	ctx := context.Background()
	dir := filepath.Join(t.TempDir(), "s")
	s := mustCreate(t, dir)
	f, err := os.Open(filepath.Join(dir, dbName))
	must(t, err)
	must(t, flockWait(ctx, f, unix.LOCK_SH))
	for range 60 {
		appendN(t, s, 100, 5000)
	}
	must(t, s.settle(ctx))
	st, err := os.Stat(filepath.Join(dir, walName))
	must(t, err)
	if st.Size() < 25<<20 {
		t.Errorf("checkpointed under a copy: the log has %d bytes", st.Size())
	}
	must(t, f.Close())
	appendN(t, s, 1, 10)
	must(t, s.settle(ctx))
	if s.wal.pages != 0 {
		t.Errorf("%d pages are still waiting", s.wal.pages)
	}
	// And not for ever.
	f, err = os.Open(filepath.Join(dir, dbName))
	must(t, err)
	defer f.Close()
	must(t, flockWait(ctx, f, unix.LOCK_SH))
	s.wal.pages = walMost
	appendN(t, s, 1, 10)
	must(t, s.settle(ctx))
	if s.wal.pages != 0 {
		t.Errorf("a copy that never ends holds up checkpoints for ever")
	}
}
