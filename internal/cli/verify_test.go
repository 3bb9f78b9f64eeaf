package cli

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/ledger"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
	"github.com/bailment/bailment/internal/store/sqlite"
	"github.com/bailment/bailment/verify"
)

// verifyDir runs `ledger verify` on a directory, under the genesis of a world.
func verifyDir(w *controltest.World, dir string, more ...string) (exit int, out, errOut string) {
	pin := identity.Bootstrap{Host: "localhost", Port: 8443, Env: controltest.EnvName, Genesis: w.Genesis}.String()
	var o, e bytes.Buffer
	args := append([]string{"ledger", "verify", "--dir", dir, "--bootstrap", pin}, more...)
	exit = Run(context.Background(), args, strings.NewReader(""), &o, &e, func(string) string { return "" })
	return exit, o.String(), e.String()
}

// lived is a world with a release, and its directory after it was closed. Whatever plant enters is correctly hashed and signed.
func lived(t *testing.T, plant func(*controltest.World, *state.SecretReleased)) (*controltest.World, string) {
	t.Helper()
	w := controltest.New(t, controltest.Options{})
	alice := w.Login("alice")
	api := w.Workload(w.Node(alice, "web-1"), "")
	w.Put(alice, "db/password", "correct horse")
	_, r, err := w.Get(api, "db/password")
	if err != nil {
		t.Fatal(err)
	}
	entry, err := state.Decode(w.Stored()[r.Lease].Body)
	if err != nil {
		t.Fatal(err)
	}
	if plant != nil {
		plant(w, entry.Event.(*state.SecretReleased))
	}
	w.Close()
	return w, filepath.Join(w.Dir, "data")
}

// A server that entered a release that its bundle does not permit: the command names the entry, with an exit code of its own.
func TestVerifyDecidesAgain(t *testing.T) {
	w, dir := lived(t, nil)
	if exit, out, errOut := verifyDir(w, dir); exit != 0 || !strings.Contains(out, "consistent and authenticated") || !strings.Contains(out, "decided again") {
		t.Fatalf("the honest directory: %d\n%s%s", exit, out, errOut)
	}
	index := uint64(0)
	w, dir = lived(t, func(w *controltest.World, e *state.SecretReleased) {
		index = w.Env.Ledger().Size()
		e.Purpose = "debugging"
		if err := w.Commit(e); err != nil {
			t.Fatal(err)
		}
	})
	exit, out, errOut := verifyDir(w, dir)
	named := fmt.Sprintf("entry %d: permitted: secret.released: decided again it is refused", index)
	if exit != 5 || !strings.Contains(out, named) || !strings.Contains(out, "NOT what its own rules allow") {
		t.Errorf("%d\n%s%s", exit, out, errOut)
	}
	if strings.Contains(out, "NOT consistent") || !strings.Contains(out, "consistent and authenticated") {
		t.Errorf("its hashes and signatures are right:\n%s", out)
	}
	if !strings.Contains(errOut, fmt.Sprintf("entry %d", index)) || !strings.Contains(errOut, "reason: violated") {
		t.Errorf("standard error: %s", errOut)
	}
	exit, out, errOut = verifyDir(w, dir, "-o", "json")
	var got struct {
		OK         bool   `json:"ok"`
		Size       uint64 `json:"size"`
		Decided    uint64 `json:"decided"`
		Violated   uint64 `json:"violated"`
		Violations []struct {
			Invariant string `json:"invariant"`
			Entry     uint64 `json:"entry"`
			Detail    string `json:"detail"`
		} `json:"violations"`
		Problem struct {
			Reason string `json:"reason"`
			Exit   int    `json:"exit"`
		} `json:"problem"`
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatal(err)
	}
	if exit != 5 || got.OK || got.Violated == 0 || got.Decided != got.Size || got.Problem.Exit != 5 || got.Problem.Reason != "violated" {
		t.Errorf("%d\n%s%s", exit, out, errOut)
	}
	for _, v := range got.Violations {
		if v.Entry != index || v.Detail == "" {
			t.Errorf("%+v", v)
		}
	}
}

// The whole directory written anew by somebody who has the genesis document with its signature, and no key of the environment: he
// lists a key of his own in entry 0, lets it vouch for the real one, and signs with it.
func TestVerifyForgedDirectory(t *testing.T) {
	w, dir := lived(t, nil)
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	forged := rewrite(t, dir, private, func(g *state.Genesis) {
		g.Keys[1].Cross = ed25519.Sign(private, []byte(ceremony.CheckpointKey{Scope: w.Scope(), Name: g.Keys[1].Name, Public: g.Keys[1].Public}.Text()))
		g.Keys = append(g.Keys, state.KeyFacts{Name: "checkpoint/0", Public: public})
	})
	exit, out, errOut := verifyDir(w, forged)
	if exit != 3 || strings.Contains(out, "authenticated") || !strings.Contains(errOut, "error: entry 0: its keys are not those of its document") {
		t.Errorf("%d\n%s%s", exit, out, errOut)
	}
	// Only signed with his key, and else as it was, it is no more than that.
	if exit, out, errOut = verifyDir(w, rewrite(t, dir, private, func(*state.Genesis) {})); exit != 3 || !strings.Contains(errOut, "not signed by a key of this ledger") {
		t.Errorf("%d\n%s%s", exit, out, errOut)
	}
}

// rewrite makes another directory of the first entries of one, with another entry 0, every hash computed anew and signed with a key.
func rewrite(t *testing.T, dir string, by ed25519.PrivateKey, change func(*state.Genesis)) string {
	t.Helper()
	ctx := context.Background()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	from, err := sqlite.OpenReadOnly(ctx, dir)
	must(err)
	defer func() { _ = from.Close() }() // it was only read
	var b store.Batch
	must(from.Entries(ctx, 0, 3, func(_ uint64, e store.Entry) error {
		b.Entries = append(b.Entries, store.Entry{Salt: bytes.Clone(e.Salt), Body: bytes.Clone(e.Body)})
		return nil
	}))
	head, err := from.Head(ctx)
	must(err)
	entry, err := state.Decode(b.Entries[0].Body)
	must(err)
	g := entry.Event.(*state.Genesis)
	blob := func(d store.Digest) []byte {
		data, err := from.Blob(ctx, d)
		must(err)
		b.Blobs = append(b.Blobs, store.Blob{Digest: d, Data: data})
		return data
	}
	manifest, err := policy.ParseManifest(blob(store.Digest(g.Manifest)))
	must(err)
	for _, f := range manifest.Files() {
		blob(store.Digest(f.Digest))
	}
	change(g)
	b.Entries[0].Body, err = state.Encode(entry)
	must(err)

	var hashes []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		for i, x := range indexes {
			out[i] = hashes[x]
		}
		return out, nil
	})
	for i, e := range b.Entries {
		more, err := tlog.StoredHashesForRecordHash(int64(i), verify.LeafHash(verify.LeafCommitment([16]byte(e.Salt), e.Body)), reader)
		must(err)
		hashes = append(hashes, more...)
	}
	root, err := tlog.TreeHash(int64(len(b.Entries)), reader)
	must(err)
	for _, h := range hashes {
		b.Hashes = append(b.Hashes, h[:]...)
	}
	b.Root, b.Time = store.Digest(root), head.Time
	to := filepath.Join(t.TempDir(), "forged")
	st, err := sqlite.Create(ctx, to)
	must(err)
	b.Checkpoint = signedBy(t, ledger.OriginOf(g.Name, sha256.Sum256([]byte(g.Document)), 0), int64(len(b.Entries)), root, by)
	must(st.Append(ctx, &b))
	must(st.Close())
	return to
}

func signedBy(t *testing.T, origin string, size int64, root tlog.Hash, by ed25519.PrivateKey) []byte {
	t.Helper()
	vkey, err := note.NewEd25519VerifierKey(origin, by.Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	v, err := note.NewVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := note.Sign(&note.Note{Text: verify.Checkpoint{Origin: origin, Size: size, Root: root}.Text()}, foreign{v, by})
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// foreign signs checkpoints with a key that is none of the environment's.
type foreign struct {
	note.Verifier
	key ed25519.PrivateKey
}

func (f foreign) Sign(msg []byte) ([]byte, error) { return ed25519.Sign(f.key, msg), nil }
