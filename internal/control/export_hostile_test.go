package control_test

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/bailment/bailment/internal/canary"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/seal/sealtest"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// hooked is a store that tells of its reads and writes, and may fail them.
type hooked struct {
	store.Store
	hooks *hooks
}

type hooks struct {
	read   atomic.Pointer[func(id uint64)] // before a sealed version is read
	before atomic.Pointer[func() error]    // before a batch is written; an error: it is not
	after  atomic.Pointer[func() error]    // after it was
	looks  atomic.Int64
}

func (w hooked) Sealed(ctx context.Context, id uint64) (store.Sealed, error) {
	w.hooks.looks.Add(1)
	if f := w.hooks.read.Load(); f != nil {
		(*f)(id)
	}
	return w.Store.Sealed(ctx, id)
}

func (w hooked) Append(ctx context.Context, b *store.Batch) error {
	if f := w.hooks.before.Swap(nil); f != nil {
		if err := (*f)(); err != nil {
			return err
		}
	}
	err := w.Store.Append(ctx, b)
	if f := w.hooks.after.Swap(nil); f != nil && err == nil {
		return (*f)()
	}
	return err
}

// exports is an environment in which exports are interrupted. Its clocks can be moved while it is open.
type exports struct {
	*board
	*hooks
	id     *age.X25519Identity
	watch  *canary.Watch
	ctx    context.Context // of who fetches
	giveUp context.CancelFunc
	ahead  atomic.Int64 // of the boot clock
	back   atomic.Int64 // of the wall clock
}

func newExports(t *testing.T, files policy.Files) *exports {
	t.Helper()
	x := &exports{hooks: &hooks{}, watch: canary.New()}
	x.ctx, x.giveUp = context.WithCancel(t.Context())
	x.board, x.id = exportBoardOf(t, controltest.Options{
		Persons: []string{"alice", "bob", "carol"}, Quorum: 1, Extra: files, Wrap: func(s store.Store) store.Store { return hooked{s, x.hooks} },
	})
	begun := time.Now()
	x.Config.Boot = func() time.Duration { return time.Since(begun) + time.Duration(x.ahead.Load()) }
	x.Config.Now = func() time.Time { return x.World.Now().Add(-time.Duration(x.back.Load())) }
	x.Config.Silence = x.watch
	x.Reopen() // nothing that was written is in memory any more
	return x
}

func (x *exports) fetch(person string, ch *state.Change) (*control.Proposal, error) {
	return x.Env.CarryOut(x.ctx, x.by[person].Caller, ch.Index)
}

// left are the entries that say that an export left.
func (x *exports) left() (out []*state.SecretExported) {
	x.T.Helper()
	for _, e := range x.Stored() {
		entry, err := state.Decode(e.Body)
		x.must(err)
		if ev, ok := entry.Event.(*state.SecretExported); ok {
			out = append(out, ev)
		}
	}
	return out
}

// What is too old when it was entered does not leave: the entry stands, the change is done, and the answer says what to do.
func TestExportTooLate(t *testing.T) {
	x := newExports(t, nil)
	ch := x.exportOf("db/*", x.id)
	slow := func() error { x.ahead.Add(int64(6 * time.Second)); return nil }
	x.after.Store(&slow)
	out, err := x.fetch("alice", ch)
	x.refused(err, problem.ReasonDeliveryTooLate)
	if out != nil || !strings.Contains(problem.As(err).WayOut(), "propose it again") {
		t.Errorf("it left, or %q", problem.As(err).WayOut())
	}
	x.stateOf(ch, state.Done)
	if n := len(x.left()); n != 1 {
		t.Errorf("%d entries", n)
	}
	x.consistent() // fewer were handed out than were entered
}

// Values that left are among those that are looked for where none may be.
func TestExportSeedsTheSearch(t *testing.T) {
	x := newExports(t, nil)
	value := "a value of more than twenty-four bytes"
	x.Put(x.by["alice"], "db/long", value)
	x.watch = canary.New()
	x.Config.Silence = x.watch
	x.Reopen()
	ch := x.exportOf("db/*", x.id)
	if x.watch.Look(canary.Log, []byte("it is "+value)) {
		t.Fatal("it is looked for before")
	}
	_, err := x.fetch("alice", ch)
	x.must(err)
	if !x.watch.Look(canary.Log, []byte("it is "+value)) {
		t.Error("it is not looked for")
	}
}

// What is given is what is current when it is decided: a version that comes to be, or moves, after the sealing has it sealed again.
func TestExportSealsAgain(t *testing.T) {
	for name, c := range map[string]struct {
		between func(x *exports)
		want    string
	}{
		"written":  {func(x *exports) { x.Put(x.by["alice"], "db/x", "three") }, "map[db/x#3:three db/y#1:three]"},
		"another":  {func(x *exports) { x.Put(x.by["alice"], "db/z", "new") }, "map[db/x#2:two db/y#1:three db/z#1:new]"},
		"beside":   {func(x *exports) { x.Put(x.by["alice"], "node/other", "new") }, "map[db/x#2:two db/y#1:three]"},
		"promoted": {func(x *exports) { x.moves("db/x", 1, state.Current) }, "map[db/x#1:one db/y#1:three]"},
		"retired":  {func(x *exports) { x.moves("db/y", 1, state.Retired) }, "map[db/x#2:two]"},
	} {
		t.Run(name, func(t *testing.T) {
			x := newExports(t, nil)
			ch := x.exportOf("db/*", x.id)
			var once sync.Once
			between := func(uint64) { once.Do(func() { c.between(x) }) }
			x.read.Store(&between)
			out, err := x.fetch("alice", ch)
			x.must(err)
			if got := fmt.Sprint(x.opened(out.File, x.id)); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
			if all := x.left(); len(all) != 1 || all[0].Count != out.Values {
				t.Errorf("entered %v", all)
			}
			x.consistent()
		})
	}
	t.Run("again and again", func(t *testing.T) {
		x := newExports(t, nil)
		ch := x.exportOf("db/*", x.id)
		between := func(uint64) { x.Put(x.by["alice"], "db/z", "new") }
		x.read.Store(&between)
		_, err := x.fetch("alice", ch)
		x.refused(err, problem.ReasonStale)
		x.stateOf(ch, state.Waiting)
		x.read.Store(nil)
		_, err = x.fetch("alice", ch)
		x.must(err)
	})
}

func (x *exports) moves(secret string, version uint64, to state.VersionState) {
	x.T.Helper()
	_, err := x.Env.Move(context.Background(), x.by["alice"].Caller, control.MoveRequest{Secret: secret, Version: version, To: to})
	x.must(err)
}

// reloaded waits until the store was opened again after a failure.
func (x *exports) reloaded() {
	x.T.Helper()
	for deadline := time.Now().Add(time.Minute); x.Env.Ready() != nil; {
		if time.Now().After(deadline) {
			x.T.Fatal("it does not come back")
		}
		<-time.After(time.Millisecond)
	}
}

// A store that fails lets nothing leave. What was not done is asked for again; what was done, unknown to who asked, is used up, and says so.
func TestExportWhenTheStoreFails(t *testing.T) {
	lost := func() error { return errors.Join(store.ErrUnknown, errors.New("planted")) }
	refused := func() error { return errors.Join(store.ErrNotDone, errors.New("planted")) }
	for name, c := range map[string]struct {
		plan func(x *exports)
		want problem.Kind
		done bool
	}{
		"not done":              {func(x *exports) { x.before.Store(&refused) }, problem.Unavailable, false},
		"not done, and unknown": {func(x *exports) { x.before.Store(&lost) }, problem.UnknownOutcome, false},
		"done, and unknown":     {func(x *exports) { x.after.Store(&lost) }, problem.UnknownOutcome, true},
	} {
		t.Run(name, func(t *testing.T) {
			x := newExports(t, nil)
			ch := x.exportOf("db/*", x.id)
			c.plan(x)
			out, err := x.fetch("alice", ch)
			if out != nil || problem.As(err).Kind != c.want {
				t.Fatalf("%v: %v", out, err)
			}
			x.reloaded()
			out, err = x.fetch("alice", ch)
			if !c.done {
				x.must(err)
				if len(x.opened(out.File, x.id)) != 2 {
					t.Error("it is not whole")
				}
			} else {
				x.refused(err, problem.ReasonConflict)
				if out != nil || !strings.Contains(err.Error(), "was fetched") || !strings.Contains(problem.As(err).WayOut(), "propose it again") {
					t.Errorf("%v: %v, %q", out, err, problem.As(err).WayOut())
				}
			}
			if n := len(x.left()); n != 1 {
				t.Errorf("%d entries", n)
			}
			x.consistent()
		})
	}
}

// Of many who ask at the same time one is answered, and the others wait without holding values.
func TestExportAtOnce(t *testing.T) {
	x := newExports(t, nil)
	ch := x.exportOf("db/*", x.id)
	var open, most atomic.Int64
	between := func(uint64) {
		most.Store(max(most.Load(), open.Add(1)))
		<-time.After(5 * time.Millisecond)
		open.Add(-1)
	}
	x.read.Store(&between)
	var files atomic.Int64
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			out, err := x.fetch("alice", ch)
			switch {
			case err == nil && len(out.File) > 0:
				files.Add(1)
			case !problem.Is(err, problem.ReasonConflict):
				t.Error(err)
			}
		})
	}
	all.Wait()
	if files.Load() != 1 || len(x.left()) != 1 {
		t.Errorf("%d left, and %d are entered", files.Load(), len(x.left()))
	}
	if most.Load() != 1 {
		t.Errorf("%d were prepared at the same time", most.Load())
	}
	x.consistent()
}

// Who waits for another export does not wait longer than he cares to.
func TestExportWaitsForAnother(t *testing.T) {
	x := newExports(t, nil)
	one, two := x.exportOf("db/x", x.id), x.exportOf("db/y", x.id)
	begun, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	between := func(uint64) { once.Do(func() { close(begun); <-goOn }) }
	x.read.Store(&between)
	ended := make(chan error)
	go func() {
		_, err := x.fetch("alice", one)
		ended <- err
	}()
	<-begun
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := x.Env.CarryOut(ctx, x.by["alice"].Caller, two.Index)
	x.refused(err, problem.ReasonCanceled)
	close(goOn)
	x.must(<-ended)
	_, err = x.fetch("alice", two)
	x.must(err)
}

// For what is refused nothing is opened.
func TestExportOpensNothingInVain(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(x *exports)
		want problem.Reason
	}{
		"a held secret":     {func(x *exports) { x.revokes("secret:db/y", true) }, problem.ReasonHeld},
		"a cut off secret":  {func(x *exports) { x.revokes("secret:db/y", false) }, problem.ReasonCutoff},
		"a cut off session": {func(x *exports) { x.revoke("carol", "identity:/human/alice") }, problem.ReasonCutoff},
	} {
		t.Run(name, func(t *testing.T) {
			x := newExports(t, nil)
			ch := x.exportOf("db/*", x.id)
			c.do(x)
			x.looks.Store(0)
			_, err := x.fetch("alice", ch)
			x.refused(err, c.want)
			_, err = x.fetch("bob", ch)
			x.refused(err, problem.ReasonSeparation)
			if n := x.looks.Load(); n != 0 {
				t.Errorf("%d values were read", n)
			}
		})
	}
}

func (x *exports) revokes(scope string, holdOnly bool) {
	x.T.Helper()
	_, err := x.Env.Revoke(context.Background(), x.by["carol"].Caller, control.RevokeRequest{Scope: scope, Reason: "test", HoldOnly: holdOnly})
	x.must(err)
}

// The ledger's time may be ahead of the wall clock, if that was set back a little. An export that was approved just now is fetched all the same.
func TestExportBehindTheLedgersTime(t *testing.T) {
	x := newExports(t, nil)
	ch := x.exportOf("db/*", x.id)
	x.back.Store(int64(3 * time.Second))
	_, err := x.fetch("alice", ch)
	x.must(err)
}

// Whatever becomes of an export, its values don't stay in memory.
func TestExportLeavesNothingInMemory(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	lost := func() error { return store.ErrUnknown }
	for name, c := range map[string]struct {
		plan func(x *exports)
		want problem.Reason
	}{
		"fetched": {func(*exports) {}, ""},
		"too late": {func(x *exports) {
			f := func() error { x.ahead.Add(int64(6 * time.Second)); return nil }
			x.after.Store(&f)
		}, problem.ReasonDeliveryTooLate},
		"unknown":   {func(x *exports) { x.after.Store(&lost) }, problem.ReasonUnknownOutcome},
		"overtaken": {func(x *exports) { f := func(uint64) { x.Put(x.by["alice"], "db/zz", "new") }; x.read.Store(&f) }, problem.ReasonStale},
		"held since it was sealed": {func(x *exports) {
			var once sync.Once
			f := func(uint64) { once.Do(func() { x.revokes("secret:db/y", true) }) }
			x.read.Store(&f)
		}, problem.ReasonHeld},
		"too much": {func(x *exports) {
			for i := range 72 {
				x.Put(x.by["alice"], fmt.Sprintf("db/big-%02d", i), strings.Repeat("x", 60<<10))
			}
		}, problem.ReasonTooLarge},
		"given up": {func(x *exports) { f := func(uint64) { x.giveUp() }; x.read.Store(&f) }, problem.ReasonStore},
	} {
		t.Run(name, func(t *testing.T) {
			x := newExports(t, nil)
			x.Config.Silence = nil // which encodes it in many ways
			x.Reopen()
			_, err := x.Env.Generate(context.Background(), x.by["alice"].Caller, control.GenerateRequest{Secret: "db/a", Recipe: "password", Length: 48})
			x.must(err)
			mark := x.marked("db/a")
			ch := x.exportOf("db/*", x.id)
			c.plan(x)
			before := mark.Count(t)
			out, err := x.fetch("alice", ch)
			if c.want == "" {
				x.must(err)
			} else {
				x.refused(err, c.want)
			}
			if after := mark.Count(t); after > before {
				t.Errorf("it is in memory %d times, and was %d times before", after, before)
			}
			if c.want == "" && len(x.opened(out.File, x.id)) != 3 {
				t.Error("it is not whole")
			}
		})
	}
}

// marked opens a version as the server does, and looks for it from then on.
func (x *exports) marked(path string) sealtest.Mark {
	x.T.Helper()
	value, err := x.Env.OpenCurrent(path)
	x.must(err)
	return sealtest.NewMark(value.Expose())
}

// Whatever a denial asks for, an export asks it for each secret: type, declaration, condition, purpose, time; and what can't be told denies.
func TestExportIsDenied(t *testing.T) {
	for deny, denies := range map[string]bool{
		`secrets: ["*"]`:                                                   true,
		`secrets: [db/y]`:                                                  true,
		`secrets: [db/y], purposes: [export]`:                              true,
		`secrets: [db/y], purposes: [runtime, export]`:                     true,
		`secrets: [db/y], purposes: [runtime]`:                             false,
		`secrets: ["*"], when: 'secret.type == "opaque"'`:                  true,
		`secrets: ["*"], when: 'secret.name == "db/*"'`:                    true,
		`secrets: ["*"], when: 'request.secret.endsWith("/y")'`:            true,
		`secrets: ["*"], when: 'request.purpose == "export"'`:              true,
		`secrets: ["*"], when: 'request.purpose == "runtime"'`:             false,
		`secrets: ["*"], when: 'request.action == "secret.read"'`:          true,
		`secrets: ["*"], when: 'claims.nobody.said == 1'`:                  true,
		`secrets: ["*"], when: 'assurance < level.measured'`:               true,
		`secrets: ["*"], when: 'time > timestamp("2026-01-01T00:00:00Z")'`: true,
		`secrets: [other/*]`:                                               false,
	} {
		t.Run(deny, func(t *testing.T) {
			b, id := exportBoard(t, policy.Files{
				"grants/deny.yaml": []byte("apiVersion: bailment/v1\nkind: Grant\nmetadata: {name: deny-it}\nspec: {effect: deny, actions: [secret.read], identities: [/human/*], " + deny + "}\n"),
			})
			_, err := b.act("alice", control.ActionExport, state.ExportTarget("db/*", id.Recipient().String()))
			if !denies {
				b.must(err)
				_, err = b.fetch("alice", b.exportOf("db/*", id))
				b.must(err)
				return
			}
			b.refused(err, problem.ReasonDenied)
			if !strings.Contains(err.Error(), "db/") || !strings.Contains(err.Error(), "deny-it") {
				t.Errorf("it does not say which: %v", err)
			}
		})
	}
}

// A denial may begin to hold while an export waits to be fetched: it is asked then, too.
func TestExportIsDeniedByThen(t *testing.T) {
	at := time.Now().Add(2 * time.Hour).UTC().Format(time.RFC3339)
	b, id := exportBoard(t, policy.Files{
		"grants/deny.yaml": []byte("apiVersion: bailment/v1\nkind: Grant\nmetadata: {name: deny-it}\nspec: {effect: deny, actions: [secret.read], identities: [/human/*], secrets: [db/y], when: 'time > timestamp(\"" + at + "\")'}\n"),
	})
	ch := b.exportOf("db/*", id)
	b.later(3 * time.Hour)
	_, err := b.fetch("alice", ch)
	b.refused(err, problem.ReasonDenied)
	b.stateOf(ch, state.Waiting)
}

// Who is no operator any more, or has lost his duty, fetches nothing, and gets nothing back with it.
func TestExportToWhoMayNoMore(t *testing.T) {
	const all = "propose, approve, revoke, admit, keys, audit"
	for name, operators := range map[string]func(*board) []byte{
		"without the duty": func(b *board) []byte {
			return b.operators(map[string]string{"alice": "revoke", "bob": all, "carol": all})
		},
		"no operator": func(b *board) []byte { return b.Operators("bob", "carol") },
	} {
		t.Run(name, func(t *testing.T) {
			b, id := exportBoard(t, nil)
			ch := b.exportOf("db/*", id)
			was := b.Files["operators.yaml"]
			b.Files["operators.yaml"] = operators(b)
			_, err := b.Approve(b.by["carol"], "carol", b.propose("bob", "fewer"))
			b.must(err)
			_, err = b.fetch("alice", ch)
			b.refused(err, problem.ReasonDuty)
			b.Files["operators.yaml"] = was
			_, err = b.Approve(b.by["carol"], "carol", b.propose("bob", "as before"))
			b.must(err)
			_, err = b.fetch("alice", ch)
			b.refused(err, problem.ReasonConflict)
			b.consistent()
		})
	}
}

// An export that nobody fetches is over, and says so to everybody who looks: its proposer, the list, the checks, and a replay.
func TestExportNeverFetched(t *testing.T) {
	b, id := exportBoard(t, nil)
	ch := b.exportOf("db/*", id)
	b.later(24*time.Hour + time.Minute)
	b.stateOf(ch, state.Expired)
	_, err := b.fetch("alice", ch)
	b.refused(err, problem.ReasonConflict)
	if !strings.Contains(err.Error(), "expired") {
		t.Error(err)
	}
	_, err = b.Approve(b.by["carol"], "carol", ch)
	b.refused(err, problem.ReasonConflict)
	_, err = b.Env.Reject(context.Background(), b.by["alice"].Caller, ch.Index, "too late")
	b.refused(err, problem.ReasonConflict)
	open, err := b.Env.ListChanges(context.Background(), b.by["alice"].Caller, control.ChangeFilter{Open: true})
	b.must(err)
	one, err := b.Env.GetChange(context.Background(), b.by["alice"].Caller, ch.Index)
	b.must(err)
	if len(open) != 0 || one.Now != state.Expired {
		t.Errorf("open are %d, and it is %s", len(open), one.Now)
	}
	_, err = b.fetch("alice", b.exportOf("db/*", id)) // another one is none the worse for it
	b.must(err)
	b.consistent()
}

// By the time that it is fetched a pattern may have more secrets than an export has room for, or none.
func TestExportOfOtherThanThen(t *testing.T) {
	b, id := exportBoard(t, nil)
	ch, gone := b.exportOf("db/*", id), b.exportOf("db/y", id)
	for i := range state.MaxExported - 1 {
		b.Put(b.by["alice"], fmt.Sprintf("db/s/%04d", i), "v")
	}
	_, err := b.fetch("alice", ch)
	b.refused(err, problem.ReasonLimit)
	_, err = b.Env.Move(context.Background(), b.by["alice"].Caller, control.MoveRequest{Secret: "db/y", Version: 1, To: state.Compromised})
	b.must(err)
	_, err = b.fetch("alice", gone)
	b.refused(err, problem.ReasonNotFound)
	out, err := b.fetch("alice", ch) // now there are just enough
	b.must(err)
	if got := b.opened(out.File, id); len(got) != state.MaxExported || got["db/y#1"] != "" {
		t.Errorf("%d values", len(got))
	}
	b.consistent()
}

// What fails in a way that nobody thought of keeps no other export waiting, and leaves no value behind.
func TestExportThatPanics(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	x := newExports(t, nil)
	x.Config.Silence = nil
	x.Reopen()
	_, err := x.Env.Generate(context.Background(), x.by["alice"].Caller, control.GenerateRequest{Secret: "db/a", Recipe: "password", Length: 48})
	x.must(err)
	mark := x.marked("db/a")
	ch := x.exportOf("db/*", x.id)
	second := 0
	between := func(uint64) {
		if second++; second == 2 {
			panic("planted")
		}
	}
	before := mark.Count(t)
	x.read.Store(&between)
	func() {
		defer func() {
			if recover() == nil {
				t.Error("it did not panic")
			}
		}()
		_, _ = x.fetch("alice", ch)
	}()
	x.read.Store(nil)
	if after := mark.Count(t); after > before {
		t.Errorf("it is in memory %d times, and was %d times before", after, before)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err = x.Env.CarryOut(ctx, x.by["alice"].Caller, ch.Index)
	x.must(err)
}
