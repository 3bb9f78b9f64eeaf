package audit_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/bailment/bailment/internal/audit"
	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/custody"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
	"github.com/bailment/bailment/internal/store/sqlite"
	"github.com/bailment/bailment/verify"
)

// memory is a ledger whose every byte a test can change.
type memory struct {
	entries    []store.Entry
	hashes     []store.Digest
	head       store.Head
	checkpoint []byte
	blobs      map[store.Digest][]byte
	snapshots  map[uint64][]byte
}

// lived is a real environment's ledger after a little of everything, and a checkpoint saved halfway.
type lived struct {
	w     *controltest.World
	dir   string
	saved []byte
	keys  []string
	leaf  []byte // a session's certificate
}

func live(t *testing.T) *lived {
	t.Helper()
	ctx := context.Background()
	w := controltest.New(t, controltest.Options{Persons: []string{"alice", "bob"}, Quorum: 1})
	alice, bob := w.Login("alice"), w.Login("bob")
	node := w.Node(alice, "web-1")
	api := w.Workload(node, "")
	w.Put(alice, "db/password", "correct horse")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, _, err := w.Get(api, "db/password")
	must(err)
	must(w.Env.Snapshot(ctx))
	saved := w.Env.Ledger().Checkpoint()

	files := policy.Files{}
	for p, b := range w.Files {
		files[p] = b
	}
	files["README.md"] = []byte("A second bundle.\n")
	p, err := w.Propose(alice, "alice", files)
	must(err)
	p, err = w.Approve(bob, "bob", p.Change)
	must(err)
	if p.Generation != 2 {
		t.Fatalf("generation %d", p.Generation)
	}
	for _, kind := range []string{"ca", "checkpoint", "kek"} {
		_, _, err = w.Env.RotateKey(ctx, alice.Caller, kind)
		must(err)
	}
	must(w.Env.Rewrap(ctx, alice.Caller, func(control.RewrapProgress) error { return nil }))
	_, _, err = w.Get(alice, "db/password")
	if err == nil {
		t.Fatal("alice read a value")
	}
	_, err = w.Env.Revoke(ctx, bob.Caller, control.RevokeRequest{Scope: "identity:/workload/api", Reason: "test"})
	must(err)
	must(w.Env.Snapshot(ctx))
	must(w.Env.Logout(ctx, alice.Caller))
	keys := w.Env.CheckpointKeys()
	w.Close()
	return &lived{w: w, dir: filepath.Join(w.Dir, "data"), saved: saved, keys: keys, leaf: node.Opened.Chain[0]}
}

func open(t *testing.T, dir string) store.Store {
	t.Helper()
	st, err := sqlite.OpenReadOnly(context.Background(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	return st
}

func load(t *testing.T, dir string) *memory {
	t.Helper()
	ctx := context.Background()
	st := open(t, dir)
	m := &memory{blobs: make(map[store.Digest][]byte), snapshots: make(map[uint64][]byte)}
	var err error
	must := func() {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	m.head, err = st.Head(ctx)
	must()
	err = st.Entries(ctx, 0, int(m.head.Size), func(_ uint64, e store.Entry) error {
		m.entries = append(m.entries, store.Entry{Salt: bytes.Clone(e.Salt), Body: bytes.Clone(e.Body)})
		return m.bundleBlobs(ctx, st, e.Body)
	})
	must()
	all := make([]uint64, m.head.Hashes)
	for i := range all {
		all[i] = uint64(i)
	}
	m.hashes, err = st.Hashes(ctx, all)
	must()
	m.checkpoint, err = st.Checkpoint(ctx)
	must()
	for most := m.head.Size - 1; ; {
		index, data, err := st.Snapshot(ctx, most)
		if errors.Is(err, store.ErrNotFound) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		m.snapshots[index] = data
		most = index - 1
	}
	if len(m.blobs) < 6 {
		t.Fatalf("%d snapshots, %d blobs", len(m.snapshots), len(m.blobs))
	}
	return m
}

// bundleBlobs copies the documents that an entry names.
func (m *memory) bundleBlobs(ctx context.Context, st store.Store, body []byte) error {
	e, err := state.Decode(body)
	if err != nil {
		return err
	}
	switch ev := e.Event.(type) {
	case *state.Genesis:
		return m.bundleOf(ctx, st, ev.Manifest)
	case *state.ChangeProposed:
		return errors.Join(m.bundleOf(ctx, st, ev.Manifest), m.bundleOf(ctx, st, ev.Rollback))
	case *state.BundleInForce: // by a recovery it may be one that nobody named before
		return m.bundleOf(ctx, st, ev.Manifest)
	case *state.RecoveryStarted:
		text, err := ceremony.ParseRecovery(ev.Text)
		if err != nil {
			return err
		}
		d, err := state.ParseDigest(text.New)
		return errors.Join(err, m.bundleOf(ctx, st, d))
	}
	return nil
}

func (m *memory) bundleOf(ctx context.Context, st store.Store, d state.Digest) error {
	if d.IsZero() {
		return nil
	}
	text, err := st.Blob(ctx, store.Digest(d))
	if err != nil {
		return err
	}
	m.blobs[store.Digest(d)] = text
	manifest, err := policy.ParseManifest(text)
	if err != nil {
		return err
	}
	for _, f := range manifest.Files() {
		if m.blobs[store.Digest(f.Digest)], err = st.Blob(ctx, store.Digest(f.Digest)); err != nil {
			return err
		}
	}
	return nil
}

func (m *memory) ledger() audit.Ledger {
	return audit.Ledger{
		Size: m.head.Size, Checkpoint: m.checkpoint,
		Entries: func(_ context.Context, from uint64, limit int, fn func(uint64, store.Entry) error) error {
			for i := from; i < min(from+uint64(limit), uint64(len(m.entries))); i++ {
				if err := fn(i, m.entries[i]); err != nil {
					return err
				}
			}
			return nil
		},
		Blob: func(_ context.Context, d store.Digest) ([]byte, error) {
			if b, ok := m.blobs[d]; ok {
				return b, nil
			}
			return nil, store.ErrNotFound
		},
		Stored: &audit.Stored{Head: m.head, Hashes: m.readHashes, Snapshot: m.snapshot},
		Consistency: func(_ context.Context, old, size uint64) (tlog.TreeProof, error) {
			return tlog.ProveTree(int64(size), int64(old), m.reader())
		},
	}
}

func (m *memory) readHashes(_ context.Context, indexes []uint64) ([]store.Digest, error) {
	out := make([]store.Digest, len(indexes))
	for i, x := range indexes {
		if x >= uint64(len(m.hashes)) {
			return nil, fmt.Errorf("%w: hash %d", store.ErrNotFound, x)
		}
		out[i] = m.hashes[x]
	}
	return out, nil
}

func (m *memory) reader() tlog.HashReader {
	return tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		for i, x := range indexes {
			out[i] = tlog.Hash(m.hashes[x])
		}
		return out, nil
	})
}

func (m *memory) snapshot(_ context.Context, most uint64) (uint64, []byte, error) {
	best, found := uint64(0), false
	for i := range m.snapshots {
		if i <= most && (!found || i > best) {
			best, found = i, true
		}
	}
	if !found {
		return 0, nil, store.ErrNotFound
	}
	return best, m.snapshots[best], nil
}

// rehash is what a forger does: every hash is computed anew.
func (m *memory) rehash(t *testing.T) {
	t.Helper()
	m.hashes = nil
	for i, e := range m.entries {
		leaf := verify.LeafHash(verify.LeafCommitment([16]byte(e.Salt), e.Body))
		hs, err := tlog.StoredHashesForRecordHash(int64(i), leaf, m.reader())
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range hs {
			m.hashes = append(m.hashes, store.Digest(h))
		}
	}
	root, err := tlog.TreeHash(int64(len(m.entries)), m.reader())
	if err != nil {
		t.Fatal(err)
	}
	m.head.Size, m.head.Hashes, m.head.Root = uint64(len(m.entries)), uint64(len(m.hashes)), store.Digest(root)
}

// sign signs the present tree with a key.
func (m *memory) sign(t *testing.T, origin string, key ed25519.PrivateKey) {
	t.Helper()
	m.checkpoint = signed(t, origin, int64(m.head.Size), tlog.Hash(m.head.Root), key)
}

func signed(t *testing.T, origin string, size int64, root tlog.Hash, key ed25519.PrivateKey) []byte {
	t.Helper()
	v, err := note.NewEd25519VerifierKey(origin, key.Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	hash, err := note.NewVerifier(v)
	if err != nil {
		t.Fatal(err)
	}
	text := verify.Checkpoint{Origin: origin, Size: size, Root: root}.Text()
	out, err := note.Sign(&note.Note{Text: text}, noteSigner{hash, key})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

type noteSigner struct {
	note.Verifier
	key ed25519.PrivateKey
}

func (s noteSigner) Sign(msg []byte) ([]byte, error) { return ed25519.Sign(s.key, msg), nil }

func (m *memory) clone() *memory {
	c := *m
	c.entries, c.hashes = slices.Clone(m.entries), slices.Clone(m.hashes)
	return &c
}

func run(m *memory, o audit.Options) (*audit.Report, error) {
	return audit.Run(context.Background(), m.ledger(), o)
}

func TestSoundLedger(t *testing.T) {
	l := live(t)
	steps := map[string]uint64{}
	ledger, err := audit.OfStore(context.Background(), open(t, l.dir))
	if err != nil {
		t.Fatal(err)
	}
	o := audit.Options{
		Environment: controltest.EnvName, Genesis: l.w.Genesis, Checkpoints: [][]byte{l.saved},
		Progress: func(p audit.Progress) { steps[p.Step] = p.Done },
	}
	r, err := audit.Run(context.Background(), ledger, o)
	if err != nil {
		t.Fatal(err)
	}
	if !r.Complete() || r.Authenticated != r.Size || r.Saved != 1 {
		t.Errorf("authenticated %d of %d, %d saved checkpoints: %v", r.Authenticated, r.Size, r.Saved, r.Notes)
	}
	// Two state-root entries and the two snapshots of the same states.
	if r.StateRoots != 4 || r.Signatures != 4 || r.Generation != 2 || len(r.Keys) != 2 || len(r.Notes) != 0 {
		t.Errorf("report %+v", r)
	}
	if r.Decided != r.Size || r.Violated != 0 || len(r.Violations)+len(r.Undecided) != 0 {
		t.Errorf("%d of %d entries were decided again: %v %v", r.Decided, r.Size, r.Violations, r.Undecided)
	}
	if r.Hashes != uint64(tlog.StoredHashCount(int64(r.Size))) {
		t.Errorf("%d hashes compared", r.Hashes)
	}
	if steps["hashes"] != r.Size || steps["entries"] != r.Size {
		t.Errorf("progress %v", steps)
	}

	for name, o := range map[string]audit.Options{
		"nothing pinned":    {},
		"only a checkpoint": {Checkpoints: [][]byte{l.saved}},
	} {
		r, err := audit.Run(context.Background(), ledger, o)
		if err != nil || r.Authenticated != 0 || r.Complete() {
			t.Errorf("%s: authenticated %d, %v", name, r.Authenticated, err)
		}
	}
	for _, vkey := range l.keys {
		r, err := audit.Run(context.Background(), ledger, audit.Options{Vkeys: []string{vkey}})
		if err != nil || !r.Complete() {
			t.Errorf("pinned key %s: authenticated %d, %v", vkey, r.Authenticated, err)
		}
	}
}

// Entries from a server: no stored hashes and no documents. What can't be checked is said.
func TestWithoutDocuments(t *testing.T) {
	l := live(t)
	ledger := load(t, l.dir).ledger()
	ledger.Stored, ledger.Blob = nil, nil
	r, err := audit.Run(context.Background(), ledger, audit.Options{Genesis: l.w.Genesis})
	if err != nil || !r.Complete() || r.Signatures != 1 || len(r.Notes) == 0 || r.Decided != 0 {
		t.Fatalf("%+v %v", r, err)
	}
	// Two bundles, one after the other, and nothing in between that is not said.
	u := r.Undecided
	if len(u) != 2 || u[0].From != 0 || u[0].To != u[1].From || u[1].To != r.Size || !strings.Contains(u[0].Why, "can't be had") {
		t.Fatalf("not decided again: %+v", u)
	}
}

// A copy of the directory of a server that is committing is vouched for to its very end.
func TestLiveDirectory(t *testing.T) {
	ctx := context.Background()
	w := controltest.New(t, controltest.Options{})
	alice := w.Login("alice")
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if _, err := w.Env.Put(ctx, alice.Caller, control.PutRequest{Secret: fmt.Sprintf("db/live-%d", n/50), Value: seal.NewSecret([]byte("x"))}); err != nil {
				done <- err
				return
			}
		}
	}()
	var last uint64
	for range 5 {
		ledger, err := audit.OfStore(ctx, open(t, filepath.Join(w.Dir, "data")))
		if err != nil {
			t.Fatal(err)
		}
		r, err := audit.Run(ctx, ledger, audit.Options{Genesis: w.Genesis})
		if err != nil || !r.Complete() || r.Checkpoint != r.Size || r.Size < last {
			t.Fatalf("authenticated %d of %d, the checkpoint covers %d: %v", r.Authenticated, r.Size, r.Checkpoint, err)
		}
		last = r.Size
	}
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// One flipped bit in any byte of any entry, and in each stored hash, is found, and the right entry named.
func TestEveryFlippedByte(t *testing.T) {
	l := live(t)
	whole := load(t, l.dir)
	caught := func(what string, m *memory, index uint64) {
		t.Helper()
		_, err := run(m, audit.Options{})
		var f *audit.Fault
		if !problem.Is(err, problem.ReasonTampered) || !errors.As(err, &f) || f.Index != index {
			t.Fatalf("%s: got %v", what, err)
		}
	}
	for i, e := range whole.entries {
		// Every byte is hashed alike: first, last and some between stand for all of a body.
		for _, at := range []int{0, len(e.Body) / 3, len(e.Body) / 2, len(e.Body) - 1} {
			m := whole.clone()
			m.entries[i].Body = bytes.Clone(e.Body)
			m.entries[i].Body[at] ^= 1
			caught(fmt.Sprintf("body byte %d of entry %d", at, i), m, uint64(i))
		}
		m := whole.clone()
		m.entries[i].Salt = bytes.Clone(e.Salt)
		m.entries[i].Salt[i%len(e.Salt)] ^= 0x80
		caught(fmt.Sprintf("salt of entry %d", i), m, uint64(i))
	}
	for x := range whole.hashes {
		m := whole.clone()
		m.hashes[x][x%32] ^= 1
		level, n := tlog.SplitStoredHashIndex(int64(x))
		caught(fmt.Sprintf("stored hash %d", x), m, uint64(n+1)<<level-1)
	}
}

func TestFaults(t *testing.T) {
	l := live(t)
	whole := load(t, l.dir)
	other := live(t)
	last := len(whole.entries) - 1
	_, attacker, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	origin := fmt.Sprintf("bailment/%s/%x/0", controltest.EnvName, l.w.Genesis[:8])
	find := func(kind string) int {
		for i, e := range whole.entries {
			if bytes.Contains(e.Body, []byte(`"type":"`+kind+`"`)) {
				return i
			}
		}
		t.Fatalf("there is no %s", kind)
		return 0
	}
	replace := func(kind, old, with string) func(*memory) {
		return func(m *memory) {
			i := find(kind)
			body := bytes.Replace(m.entries[i].Body, []byte(old), []byte(with), 1)
			if bytes.Equal(body, m.entries[i].Body) {
				t.Fatalf("%s has no %s", kind, old)
			}
			m.entries[i].Body = body
			m.rehash(t)
			m.checkpoint = nil
		}
	}
	savedSize, err := strconv.Atoi(strings.Split(string(l.saved), "\n")[1])
	if err != nil {
		t.Fatal(err)
	}
	change := fmt.Sprintf(`"change":%d`, find("change.proposed"))
	cases := map[string]struct {
		do     func(*memory)
		o      audit.Options
		reason problem.Reason
		says   string
		index  int // -1: no entry is named
	}{
		"newest entry deleted": {func(m *memory) { m.entries = m.entries[:last] }, audit.Options{}, problem.ReasonTampered, "missing", last},
		"newest entry and its hashes deleted": {
			func(m *memory) { m.entries = m.entries[:last]; m.rehash(t) }, audit.Options{}, problem.ReasonTampered, "covers", last,
		},
		"cut back, own checkpoint too": {
			func(m *memory) { m.entries = m.entries[:4]; m.rehash(t); m.checkpoint, m.snapshots = nil, nil },
			audit.Options{Checkpoints: [][]byte{l.saved}},
			problem.ReasonTampered, "kept elsewhere covers", 4,
		},
		"an entry missing in the middle": {
			func(m *memory) { m.entries = slices.Delete(slices.Clone(m.entries), 3, 4) }, audit.Options{}, problem.ReasonTampered, "hash", 3,
		},
		"head's root":   {func(m *memory) { m.head.Root[0] ^= 1 }, audit.Options{}, problem.ReasonTampered, "stored root", -1},
		"head's hashes": {func(m *memory) { m.head.Hashes++ }, audit.Options{}, problem.ReasonTampered, "head says", -1},
		"no entries":    {func(m *memory) { m.head.Size, m.entries = 0, nil }, audit.Options{}, problem.ReasonTampered, "not even genesis", -1},
		"checkpoint's signature": {
			func(m *memory) { m.checkpoint = flipNote(m.checkpoint) }, audit.Options{}, problem.ReasonTampered, "not signed by a key", -1,
		},
		"signed with another key": {
			func(m *memory) { m.sign(t, origin, attacker) }, audit.Options{}, problem.ReasonTampered, "not signed by a key of this ledger", -1,
		},
		"another environment's directory": {
			func(m *memory) { *m = *load(t, other.dir) }, audit.Options{Genesis: l.w.Genesis}, problem.ReasonNotAuthentic, "another ledger", -1,
		},
		"another environment's directory, by its key": {
			func(m *memory) { *m = *load(t, other.dir) }, audit.Options{Vkeys: l.keys[:1]}, problem.ReasonNotAuthentic, "pinned key", -1,
		},
		"another environment's checkpoint": {
			func(*memory) {}, audit.Options{Checkpoints: [][]byte{other.saved}}, problem.ReasonNotAuthentic, "is of the log", -1,
		},
		"another name": {func(*memory) {}, audit.Options{Environment: "x"}, problem.ReasonNotAuthentic, "pinned", -1},
		"stored snapshot": {
			func(m *memory) {
				m.snapshots = map[uint64][]byte{}
				for i, b := range whole.snapshots {
					m.snapshots[i] = bytes.Replace(plain(t, b), []byte("web-1"), []byte("web-2"), 1)
				}
			}, audit.Options{}, problem.ReasonTampered, "stored snapshot", find("state.root") - 1,
		},
		"broken snapshot": {
			func(m *memory) {
				m.snapshots = map[uint64][]byte{}
				for i, b := range whole.snapshots {
					m.snapshots[i] = bytes.Clone(b)
					m.snapshots[i][len(b)/2] ^= 1
				}
			}, audit.Options{}, problem.ReasonTampered, "stored snapshot", find("state.root") - 1,
		},
		"redacted": {
			func(m *memory) {
				c := verify.LeafCommitment([16]byte(m.entries[5].Salt), m.entries[5].Body)
				m.entries[5] = store.Entry{Commitment: c[:]}
			}, audit.Options{}, problem.ReasonTampered, "redacted", 5,
		},
		"checkpoint deleted": {func(m *memory) { m.checkpoint = nil }, audit.Options{}, problem.ReasonTampered, "no signed checkpoint", -1},
		"checkpoint of before": {
			func(m *memory) { m.checkpoint = l.saved }, audit.Options{}, problem.ReasonTampered, "not under the signed checkpoint", savedSize,
		},
		// A forger who computes every hash anew, and drops the checkpoint, still can't make these.
		"unknown type":  {replace("session.opened", "session.opened", "session.upened"), audit.Options{}, problem.ReasonUnknownVersion, "not known", find("session.opened")},
		"unknown field": {replace("secret.released", `"purpose"`, `"burpose"`), audit.Options{}, problem.ReasonTampered, "unknown object member name", find("secret.released")},
		"genesis document": {
			replace("environment.genesis", `\"quorum\": 1`, `\"quorum\": 0`), audit.Options{}, problem.ReasonTampered, "signature", 0,
		},
		"genesis signature": {replace("environment.genesis", `SIGNATURE-----\nU1NI`, `SIGNATURE-----\nU1NJ`), audit.Options{}, problem.ReasonTampered, "signature", 0},
		"genesis class":     {replace("environment.genesis", `"class":"development"`, `"class":"production"`), audit.Options{}, problem.ReasonTampered, "document", 0},
		"approval by another": {
			replace("change.approved", `"identity":"/human/bob","session":2`, `"identity":"/human/alice","session":1`), audit.Options{}, problem.ReasonTampered, "signed text", find("change.approved"),
		},
		"approval in another's session": {
			replace("change.approved", `"identity":"/human/bob"`, `"identity":"/human/alice"`), audit.Options{}, problem.ReasonTampered, "is of /human/bob", find("change.approved"),
		},
		"approval's signature": {
			replace("change.approved", `SIGNATURE-----\nU1NI`, `SIGNATURE-----\nU1NJ`), audit.Options{}, problem.ReasonTampered, "signature", find("change.approved"),
		},
		"fewer approvals asked": {replace("change.proposed", `"required":1`, `"required":0`), audit.Options{}, problem.ReasonTampered, "approvals", find("change.proposed")},
		"self approval allowed": {replace("change.proposed", `"required":1`, `"required":1,"self_ok":true`), audit.Options{}, problem.ReasonTampered, "approvals", find("change.proposed")},
		"no change behind":      {replace("bundle.in_force", change, `"change":1`), audit.Options{}, problem.ReasonTampered, "not an approved", find("bundle.in_force")},
		"ruled by another bundle": {
			replace("secret.released", `"generation":1`, `"generation":2`), audit.Options{}, problem.ReasonTampered, "decided by", find("secret.released"),
		},
		"secret's version": {replace("secret.written", `"version":1`, `"version":2`), audit.Options{}, problem.ReasonTampered, "legal step", find("secret.written")},
		"state root":       {replace("state.root", `"root":"sha256:`, `"root":"sha256:0000`+"\x00"), audit.Options{}, problem.ReasonTampered, "", find("state.root")},
		"a fact that a state root covers": {
			replace("session.opened", `"assurance":"key"`, `"assurance":"measured"`), audit.Options{}, problem.ReasonTampered, "state root", find("state.root"),
		},
		"token by somebody without the duty": {
			replace("token.created", `"identity":"/human/alice"`, `"identity":"/human/mallory"`), audit.Options{}, problem.ReasonTampered, "duty admit", find("token.created"),
		},
		"entry of a newer release": {
			replace("secret.released", `"v":1`, `"v":9`), audit.Options{}, problem.ReasonUnknownVersion, "not known to this version", find("secret.released"),
		},
		"protocol of a newer release": {replace("environment.genesis", `"protocol":`, `"protocol":9`), audit.Options{}, problem.ReasonUnknownVersion, "of protocol 9", 0},
		"manifest missing": {
			func(m *memory) {
				m.blobs = without(whole.blobs, func(b []byte) bool { return bytes.HasPrefix(b, []byte("bailment manifest")) })
			},
			audit.Options{},
			problem.ReasonTampered, "missing or damaged", 0,
		},
		"document missing": {
			func(m *memory) {
				m.blobs = without(whole.blobs, func(b []byte) bool { return bytes.HasPrefix(b, []byte("A second")) })
			},
			audit.Options{},
			problem.ReasonTampered, "missing or damaged", find("change.proposed"),
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			m := whole.clone()
			if strings.Contains(name, "state root") {
				m.snapshots = nil
			}
			c.do(m)
			_, err := run(m, c.o)
			if !problem.Is(err, c.reason) || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("got %v", err)
			}
			var f *audit.Fault
			if named := errors.As(err, &f); named != (c.index >= 0) || named && f.Index != uint64(c.index) {
				t.Fatalf("named %v, want %d: %v", f, c.index, err)
			}
		})
	}
}

func without(all map[store.Digest][]byte, drop func([]byte) bool) map[store.Digest][]byte {
	out := make(map[store.Digest][]byte)
	for d, b := range all {
		if !drop(b) {
			out[d] = b
		}
	}
	return out
}

// flipNote changes the last signature of a note, in the part that is the signature itself.
func flipNote(signed []byte) []byte {
	b := bytes.Clone(signed)
	for i, line := range bytes.SplitAfter(signed, []byte("\n")) {
		_ = i
		if at := bytes.Index(b, line); bytes.HasPrefix(line, []byte("— ")) {
			c := &b[at+len(line)-20]
			if *c == 'A' {
				*c = 'B'
			} else {
				*c = 'A'
			}
		}
	}
	return b
}

// The whole directory rewritten from genesis on, with checkpoint keys of the forger's own, re-hashed and signed: the
// pinned genesis vouches for entry 0 and nothing else.
func TestRewrittenUnderTheSameGenesis(t *testing.T) {
	l := live(t)
	m := load(t, l.dir)
	_, attacker, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	first, err := state.Decode(m.entries[0].Body)
	if err != nil {
		t.Fatal(err)
	}
	body, err := state.Encode(&state.Entry{Time: first.Time, Event: &state.KeyAdded{
		Key:   state.KeyFacts{Name: "checkpoint/2", Public: attacker.Public().(ed25519.PublicKey)},
		Actor: state.Actor{Identity: "/human/alice"}, Ruling: state.Ruling{Generation: 1, Bundle: first.Event.(*state.Genesis).Manifest},
	}})
	if err != nil {
		t.Fatal(err)
	}
	m.entries = append(m.entries[:1:1], store.Entry{Salt: make([]byte, 16), Body: body})
	m.snapshots = nil
	m.rehash(t)
	origin := fmt.Sprintf("bailment/%s/%x/0", controltest.EnvName, l.w.Genesis[:8])
	m.sign(t, origin, attacker)
	var at *audit.Fault
	if _, err := run(m, audit.Options{Genesis: l.w.Genesis}); !errors.As(err, &at) || at.Index != 1 {
		t.Fatalf("a key that nobody vouched for: %v", err)
	}
	// A checkpoint that was kept elsewhere tells it at once.
	if _, err := run(m, audit.Options{Checkpoints: [][]byte{l.saved}}); !problem.Is(err, problem.ReasonTampered) {
		t.Fatalf("got %v", err)
	}
}

// A log that signed two histories is convicted by a proof that stands alone.
func TestMisbehaviour(t *testing.T) {
	l := live(t)
	m := load(t, l.dir)
	// The log's own key, as only its root holder's owner has it.
	origin := fmt.Sprintf("bailment/%s/%x/0", controltest.EnvName, l.w.Genesis[:8])
	whole := state.New()
	for i, e := range m.entries {
		if err := whole.Apply(uint64(i), e.Body, nil); err != nil {
			t.Fatal(err)
		}
	}
	keys, err := custody.Vault{Holder: l.w.Config.Holder, Genesis: l.w.Genesis, Read: open(t, l.dir).Key}.Unseal(context.Background(), whole, origin)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(size int64, root tlog.Hash) []byte {
		out, err := note.Sign(&note.Note{Text: verify.Checkpoint{Origin: origin, Size: size, Root: root}.Text()}, keys.Signers()...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	m.checkpoint = sign(int64(m.head.Size), tlog.Hash(m.head.Root))
	var root tlog.Hash
	root[0] = 1
	for _, size := range []int64{3, int64(m.head.Size)} {
		r, err := run(m, audit.Options{Checkpoints: [][]byte{sign(size, root)}})
		if !problem.Is(err, problem.ReasonTampered) || r.Misbehaviour == "" {
			t.Fatalf("at %d: %v, notes %v", size, err, r.Notes)
		}
		proof, err := verify.ParseMisbehaviour([]byte(r.Misbehaviour))
		if err != nil {
			t.Fatal(err)
		}
		vkey := keys.VerifierKeys()[0]
		v, err := verify.ParseVerifier(vkey)
		if err != nil {
			t.Fatal(err)
		}
		if err := proof.Verify(v); err != nil {
			t.Fatal(err)
		}
	}
}

// plain is a stored snapshot before it was packed.
func plain(t *testing.T, packed []byte) []byte {
	t.Helper()
	s, err := state.Restore(packed)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := s.Snapshot(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
