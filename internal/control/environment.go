// Package control holds the use cases of an environment: attest, release, write, revoke, propose,
// approve, rotate. It is the only caller of ledger.Commit, so every effect goes through one door,
// and the decision is made inside it.
//
// Guaranteed: no effect without its entry, durable before this package returns; decisions are made
// against the state at the entry's own index, by the same functions that Explain uses; a value is
// decrypted before its release is entered and handed out after. Not guaranteed: that what a caller does
// with a value is what it said.
//
// Its place: the edges (rpc) decode and call it; below it are the mechanisms (attest, keyring,
// ledger, store) and the pure packages (state, policy, seal, identity, ceremony).
//
//arch:allow package-lines: every use case goes through the same private door; to split them would export it
package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/cache"
	"github.com/bailment/bailment/internal/canary"
	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/custody"
	"github.com/bailment/bailment/internal/keyring"
	"github.com/bailment/bailment/internal/ledger"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// Config is what an environment needs to be opened. OpenStore, Holder, Source and Methods are required.
type Config struct {
	OpenStore func(context.Context) (store.Store, error)
	Holder    keyring.Holder
	// Next is the root holder that the keys may be moved to, or have been; nil: there is none. What the ledger names is used, be it Holder
	// or Next.
	Next    keyring.Holder
	Source  *seal.Source
	Methods attest.Methods
	// Issuers finds the keys of issuers that the bundle does not pin; nil: their tokens are refused.
	Issuers Issuers
	Logger  *slog.Logger
	Limits  ledger.Limits
	// Now is the wall clock; nil means time.Now. Only ledger and certificates use it.
	Now func() time.Time
	// Boot is the clock since the machine's start, by which the ledger judges Now; nil means CLOCK_BOOTTIME.
	Boot func() time.Duration
	// Openings bounds how fast an identity opens sessions.
	Openings Openings
	// ServerID names this server: /server/ID.
	ServerID string
	// SnapshotEvery is the least number of entries between state roots; a large state waits for a quarter of its rows, so that
	// writing it down stays cheap beside what it saves. Default 32,768.
	SnapshotEvery uint64
	// Silence looks for values where none may be; nil: nobody looks. It is shown the entries and seeded with values here; who
	// writes logs and answers shows it those.
	Silence *canary.Watch
	// Entered is given each entry once it is durable, in order, and after the state of Environment.State has it. An entry is left out if
	// what came of its write was known only later. It runs on the committer: it must be quick. nil: nobody wants to know.
	Entered func(index uint64, entry *state.Entry)
	// OnViolation is told of each violated invariant that the background checks find. It must be quick.
	OnViolation func(invariant, detail string)
}

// Environment is an open environment. Its methods may be called concurrently.
type Environment struct {
	cfg    Config
	logger *slog.Logger
	log    *ledger.Log[*state.State]

	genesis  state.Digest
	document *state.Genesis
	founded  string // the root holder of genesis
	keys     atomic.Pointer[custody.Keys]
	keyMu    gate          // one rotation or rewrap at a time
	moveMu   gate          // after keyMu: no key comes while all of them are wrapped
	loadMu   gate          // one load of the keys at a time
	keysWake chan struct{} // holds one: the state names keys that are not loaded
	programs programs
	// methodParams are what the verifiers take, of the bundle in force.
	methodParams methodParams
	claims       *claimCache
	values       *cache.Cache[uint64, store.Sealed]
	openers      *cache.Cache[string, *rate.Limiter]
	denials      denialSums
	differences  differences
	rolloutWake  chan struct{} // holds one: a rollout has something due
	rolloutAt    atomic.Uint64 // which change and step was published last
	recoveryWake chan struct{} // holds one: a recovery began
	recoveryAt   atomic.Uint64 // which was published last
	header       atomic.Pointer[inForceHeader]
	docs         *documents
	watchers     watchers
	arrivals     watchers // of entries, whatever they are
	checks       checks
	past         chan struct{} // holds one: a past state is being reduced
	exports      chan struct{} // holds one: an export is being made

	run        context.Context // ends with Close
	stop       context.CancelFunc
	background sync.WaitGroup
	started    atomic.Bool
	snapping   atomic.Bool
	snapshotMu sync.Mutex
}

// Open loads an environment, unseals its keys and starts its background work. It never creates one: see Found.
func Open(ctx context.Context, cfg Config) (*Environment, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.SnapshotEvery == 0 {
		cfg.SnapshotEvery = 32768
	}
	e := &Environment{cfg: cfg, logger: cfg.Logger, keyMu: make(gate, 1), moveMu: make(gate, 1), loadMu: make(gate, 1), keysWake: make(chan struct{}, 1), rolloutWake: make(chan struct{}, 1), recoveryWake: make(chan struct{}, 1), past: make(chan struct{}, 1), exports: make(chan struct{}, 1)}
	e.claims, e.values, e.openers = newClaimCache(), newValueCache(), cache.New[string, *rate.Limiter](maxOpeners, nil)
	e.docs = newDocuments()
	e.run, e.stop = context.WithCancel(context.Background())
	e.checks.recent.wake = make(chan struct{}, 1)
	log, err := ledger.Load(ctx, ledger.Config[*state.State]{
		Open: cfg.OpenStore, New: state.New, Restore: state.Restore, Confirm: confirmSnapshot,
		Origin: originOf, Time: func(s *state.State) time.Time { return s.Time.Time() }, Published: e.published, Committed: e.committed, Logger: cfg.Logger, Limits: cfg.Limits, Rand: cfg.Source, Now: cfg.Now, Boot: cfg.Boot,
	})
	if err != nil {
		return nil, fmt.Errorf("opening the environment: %w", err)
	}
	e.log = log
	if err := e.start(ctx); err != nil {
		e.stop()
		_ = log.Store().Close() // the first error is the one that tells
		return nil, fmt.Errorf("opening the environment: %w", err)
	}
	return e, nil
}

func (e *Environment) start(ctx context.Context) error {
	s := e.log.State()
	e.genesis = s.Env.Genesis
	if p := ended(s); p != nil {
		return p // before its keys are looked for, of which there are none
	}
	var err error
	if e.document, err = readEvent[*state.Genesis](ctx, e, 0); err != nil {
		return err
	}
	doc, err := ceremony.ParseGenesis(e.document.Document, e.genesis)
	if err != nil {
		return problem.Wrap(err, problem.ReasonTampered, "reading genesis")
	}
	e.founded = doc.RootHolder
	if err := e.checkHolder(s); err != nil {
		return err
	}
	k, err := e.vault(s).Unseal(ctx, s, e.log.Origin())
	if err != nil {
		return err
	}
	e.keys.Store(k)
	if _, err := e.program(ctx, s.Bundle); err != nil {
		return err
	}
	if err := e.log.Start(k.Signers(), k.HeadVerifiers()); err != nil {
		return err
	}
	e.background.Go(func() { e.flushLoop(e.run) })
	e.background.Go(func() { e.keysLoop(e.run) })
	e.background.Go(func() { e.tokensLoop(e.run) })
	e.background.Go(func() { e.rolloutLoop(e.run) })
	e.background.Go(func() { e.recoveryLoop(e.run) })
	e.startChecks()
	e.started.Store(true)
	return nil
}

// Close enters what is pending, stores a snapshot, and closes the ledger and the store.
func (e *Environment) Close(ctx context.Context) error {
	e.watchers.close()
	e.arrivals.close()
	e.stop()
	e.background.Wait()
	flushErr := errors.Join(e.FlushDenials(ctx), e.observe(ctx, 1<<62))
	e.started.Store(false) // no further snapshot begins; one under way is waited for below
	if s := e.log.State(); s.Next-s.Root.Index > closeSnapshotAfter {
		if err := e.Snapshot(ctx); err != nil {
			e.logger.Warn("no snapshot on close", "err", err)
		}
	}
	e.snapshotMu.Lock()
	defer e.snapshotMu.Unlock()
	err := errors.Join(flushErr, e.log.Close())
	e.keys.Load().Wipe()
	return err
}

// closeSnapshotAfter is how many entries must have come since the last snapshot for Close to make one.
const closeSnapshotAfter = 512

// State is the newest committed state, to read.
func (e *Environment) State() *state.State { return e.log.State() }

// Ledger is for reading: proofs, entries, checkpoints, counters.
func (e *Environment) Ledger() *ledger.Log[*state.State] { return e.log }

// Name is the environment's name.
func (e *Environment) Name() string { return e.log.State().Env.Name }

// Genesis is the environment's identity.
func (e *Environment) Genesis() state.Digest { return e.genesis }

// GenesisEntry is entry 0.
func (e *Environment) GenesisEntry() *state.Genesis { return e.document }

// Program is the compiled bundle in force.
func (e *Environment) Program() *policy.Program {
	p, _ := e.programs.get(e.log.State().Bundle)
	return p
}

// Ready is nil if the environment accepts requests.
func (e *Environment) Ready() error {
	if p := ended(e.log.State()); p != nil {
		return p
	}
	if err := e.cfg.Source.Healthy(); err != nil {
		return err
	}
	return e.log.Ready()
}

// Methods is the table of attestation methods.
func (e *Environment) Methods() attest.Methods { return e.cfg.Methods }

// readEvent reads back what was entered at an index, proved to be in the newest tree.
func readEvent[E state.Event](ctx context.Context, e *Environment, index uint64) (E, error) {
	var event E
	_, err := e.log.VerifySlice(ctx, index, 1, func(_ uint64, x store.Entry) error {
		entry, err := state.Decode(x.Body)
		if err != nil {
			return err
		}
		var ok bool
		if event, ok = entry.Event.(E); !ok {
			return problem.New(problem.ReasonTampered, "entry %d is not a %T", index, event)
		}
		return nil
	})
	return event, err
}

func originOf(s *state.State) string { return ledger.OriginOf(s.Env.Name, s.Env.Genesis, s.Env.Epoch) }

// confirmSnapshot believes a snapshot only if an entry after it commits to it. Any may: a crash between a state root's
// entry and its snapshot leaves a later root without one.
func confirmSnapshot(index uint64, snapshot []byte) func(*state.State) bool {
	root, err := state.PackedRoot(snapshot)
	return func(s *state.State) bool { return err == nil && s.Root.Index == index && s.Root.Root == root }
}

// committed runs on the committer for each draft. A release holds names only, and is looked at now and then.
func (e *Environment) committed(first uint64, records []ledger.Record) {
	e.checks.recent.add(first, records)
	for i, r := range records {
		const sampled = 16
		if x, ok := r.Event.(*state.Entry); ok {
			if e.cfg.Entered != nil {
				e.cfg.Entered(first+uint64(i), x)
			}
			switch ev := x.Event.(type) {
			case *state.SecretReleased:
				if (first+uint64(i))%sampled != 0 {
					continue
				}
			case *state.SessionOpened:
				e.opened(ev, r.Body)
			}
		}
		e.cfg.Silence.Look(canary.Ledger, r.Body)
	}
}

// published runs on the committer for each new state.
func (e *Environment) published(s *state.State) {
	e.watchers.tell(s.Control)
	e.arrivals.tell(s.Next)
	e.recovers(s)
	if k := e.keys.Load(); k != nil && k.Behind(s) {
		select {
		case e.keysWake <- struct{}{}:
		default:
		}
	}
	if due, _ := s.RolloutDue(s.Time); due != state.NothingDue || e.begun(s) {
		select {
		case e.rolloutWake <- struct{}{}:
		default:
		}
	}
	if e.started.Load() && s.Next-s.Root.Index >= max(e.cfg.SnapshotEvery, uint64(s.Rows()/4)) && e.snapping.CompareAndSwap(false, true) {
		go func() {
			defer e.snapping.Store(false)
			if err := e.Snapshot(context.Background()); err != nil {
				e.logger.Warn("making a state snapshot failed", "err", err)
			}
		}()
	}
}

// programs keeps compiled bundles by the digest of their manifest.
type programs struct {
	mu sync.Mutex
	m  map[state.Digest]*policy.Program
}

const keepPrograms = 16

func (p *programs) get(d state.Digest) (*policy.Program, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	x, ok := p.m[d]
	return x, ok
}

func (p *programs) put(d state.Digest, x *policy.Program, keep []state.Digest) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.m == nil {
		p.m = make(map[state.Digest]*policy.Program)
	}
	for old := range p.m {
		if len(p.m) < keepPrograms {
			break
		}
		if !slices.Contains(keep, old) {
			delete(p.m, old)
		}
	}
	p.m[d] = x
}

// program returns the compiled bundle of a manifest, from the cache or from its blobs.
func (e *Environment) program(ctx context.Context, manifest state.Digest) (*policy.Program, error) {
	if p, ok := e.programs.get(manifest); ok && p != nil {
		return p, nil
	}
	p, err := e.compile(ctx, manifest)
	if err == nil {
		e.programs.put(manifest, p, bundlesOf(e.log.State()))
	}
	return p, err
}

// candidate compiles a bundle before it can come into force, as the new one that it is: the release that it was proposed to may not have
// looked as closely as this one.
func (e *Environment) candidate(ctx context.Context, manifest state.Digest) error {
	b, err := e.readBundle(ctx, manifest)
	if err != nil {
		return err
	}
	p, err := policy.Compile(b)
	if err != nil {
		return problem.Wrap(err, problem.ReasonBundleInvalid, "compiling the bundle %s", manifest).
			WithFix("reject the change, and propose the bundle again without what is found in it")
	}
	if err := CheckBundle(e.cfg.Methods, p); err != nil {
		return err
	}
	e.programs.put(manifest, p, bundlesOf(e.log.State()))
	return nil
}

// inForce is the compiled bundle of a state that was published, for questions: it is compiled anew if the cache, at the moment
// when it came into force, had no place for it.
func (e *Environment) inForce(s *state.State) (*policy.Program, error) {
	return e.program(e.run, s.Bundle)
}

func (e *Environment) compile(ctx context.Context, manifest state.Digest) (*policy.Program, error) {
	b, err := e.readBundle(ctx, manifest)
	if err != nil {
		return nil, err
	}
	p, err := policy.CompileAccepted(b)
	if err != nil {
		return nil, foreign(err, "compiling", manifest)
	}
	return p, nil
}

// foreign is the refusal of a bundle that was accepted, and that this release can't read: its files are those of its manifest, so they were
// not changed, and another release understood them. To go on without what is not understood would be to enforce something else.
func foreign(err error, doing string, manifest state.Digest) error {
	return problem.Wrap(err, problem.ReasonUnknownVersion, "%s the bundle %s, which another release accepted", doing, manifest).
		WithFix("use the release that accepted it or a newer one; or have that one bring a bundle into force without what this one does not know")
}

// readBundle reads a bundle from its blobs.
func (e *Environment) readBundle(ctx context.Context, manifest state.Digest) (*policy.Bundle, error) {
	_, files, err := e.bundleFiles(ctx, manifest)
	if err != nil {
		return nil, err
	}
	b, err := policy.Load(files)
	if err != nil {
		return nil, foreign(err, "reading", manifest)
	}
	return b, nil
}

// bundleFiles reads a manifest and its files from the blobs.
func (e *Environment) bundleFiles(ctx context.Context, manifest state.Digest) (*policy.Manifest, policy.Files, error) {
	st := e.log.Store()
	text, err := st.Blob(ctx, store.Digest(manifest))
	if err != nil {
		return nil, nil, e.storeProblem(err, "reading the manifest")
	}
	m, err := policy.ParseManifest(text)
	if err != nil {
		return nil, nil, problem.Wrap(err, problem.ReasonTampered, "reading the manifest %s", manifest)
	}
	if m.Digest() != policy.Digest(manifest) {
		return nil, nil, problem.New(problem.ReasonTampered, "the manifest is not the one of digest %s", manifest)
	}
	files, err := m.Fetch(func(d policy.Digest) ([]byte, error) { return st.Blob(ctx, store.Digest(d)) })
	switch {
	case errors.Is(e.log.Failed(err), store.ErrFatal), ctx.Err() != nil && err != nil:
		return nil, nil, e.storeProblem(err, "reading the bundle's files")
	case err != nil:
		return nil, nil, problem.Wrap(err, problem.ReasonTampered, "reading the bundle's files")
	}
	return m, files, nil
}

// storeProblem maps a store's error once.
func (e *Environment) storeProblem(err error, doing string) error {
	switch err = e.log.Failed(err); {
	case problem.Is(err, problem.ReasonTampered):
		return err
	case errors.Is(err, store.ErrNotFound):
		return problem.Wrap(err, problem.ReasonNotFound, "%s", doing)
	case errors.Is(err, store.ErrFatal):
		return problem.Wrap(err, problem.ReasonStore, "%s", doing).WithRetryAfter(time.Second)
	default:
		return problem.Wrap(err, problem.ReasonStore, "%s", doing)
	}
}
