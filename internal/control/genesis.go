package control

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/custody"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/keyring"
	"github.com/bailment/bailment/internal/ledger"
	"github.com/bailment/bailment/internal/plan"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// Founding is what a ceremony needs: the founding bundle, the root holder, and a founder's signature.
type Founding struct {
	Files  policy.Files
	Holder keyring.Holder
	Source *seal.Source
	Store  store.Store // new and empty
	// Methods are those that the environment's servers will have: the bundle's authorities are tried on them.
	Methods attest.Methods
	Now     func() time.Time
	// Sign has a founder sign the genesis document in namespace change@bailment, and says who.
	Sign func(ctx context.Context, namespace, text string) (person, armored string, err error)
	// First founds under the first protocol, as the first release did: to see what becomes of its environments.
	First bool
}

// Found is the founding ceremony: it makes the environment's keys, writes genesis, and leaves the store ready to be opened. There
// is no root token and no password: from here on only listed persons and attested machines do anything.
func Found(ctx context.Context, f Founding) (state.Digest, error) {
	bundle, err := policy.Load(f.Files)
	if err != nil {
		return state.Digest{}, problem.Wrap(err, problem.ReasonBundleInvalid, "reading the founding bundle")
	}
	prog, err := policy.Compile(bundle)
	if err != nil {
		return state.Digest{}, problem.Wrap(err, problem.ReasonBundleInvalid, "compiling the founding bundle")
	}
	env := prog.Environment()
	if err := identity.ValidEnv(env.Name); err != nil {
		return state.Digest{}, problem.Wrap(err, problem.ReasonInvalid, "the environment's name")
	}
	if err := CheckBundle(f.Methods, prog); err != nil {
		return state.Digest{}, err
	}
	if env.Class == policy.Production && f.Holder.Descriptor().DevelopmentOnly {
		return state.Digest{}, problem.New(problem.ReasonDevelopmentOnly, "a root key of kind %s is for the development class only", f.Holder.Descriptor().Kind)
	}
	manifest, err := policy.BuildManifest(f.Files, policy.Header{Environment: env.Name, Version: 1})
	if err != nil {
		return state.Digest{}, problem.Wrap(err, problem.ReasonBundleInvalid, "writing the founding manifest")
	}
	m, err := custody.Found(env.Name, f.Source, f.Now())
	if err != nil {
		return state.Digest{}, err
	}
	document, err := genesisDocument(prog, manifest, m, f)
	if err != nil {
		return state.Digest{}, err
	}
	genesis := state.Digest(sha256.Sum256([]byte(document)))
	signature, err := foundersSignature(ctx, prog, document, f)
	if err != nil {
		return state.Digest{}, err
	}
	event := &state.Genesis{
		Document: document, Signatures: []state.Signature{signature}, Name: env.Name, Class: string(env.Class),
		Manifest: state.Digest(manifest.Digest()), Keys: m.Facts, Protocol: state.Protocol,
	}
	if f.First {
		event.Protocol = 0
	}
	signer, err := m.Signer(ledger.OriginOf(env.Name, genesis, 0))
	if err != nil {
		return state.Digest{}, err
	}
	draft := ledger.Draft{}
	if draft.Keys, err = m.Wrap(ctx, custody.Vault{Holder: f.Holder, Genesis: genesis}); err != nil {
		return state.Digest{}, err
	}
	entry := &state.Entry{Time: state.At(f.Now()), Event: event}
	body, err := state.Encode(entry)
	if err != nil {
		return state.Digest{}, err
	}
	draft.Records = []ledger.Record{{Body: body, Event: entry}}
	draft.Blobs = bundleBlobs(manifest, f.Files)
	return genesis, ledger.Create(ctx, f.Store, draft, []note.Signer{signer}, ledger.Config[*state.State]{New: state.New, Origin: originOf, Rand: f.Source, Now: f.Now})
}

// CheckBundle refuses a bundle that compiles, and could not be lived with once it is in force: that the verifiers can't use, that
// nobody could change, or by which one person could do what takes several.
func CheckBundle(methods attest.Methods, prog *policy.Program) error {
	if err := checkAuthorities(methods, prog); err != nil {
		return err
	}
	if err := checkOperators(prog); err != nil {
		return err
	}
	return plan.CheckSeparation(prog)
}

// checkOperators refuses a bundle that would leave an environment nobody can change or recover.
func checkOperators(prog *policy.Program) error {
	if p := quorum(prog, func(policy.Operator) bool { return true }); p != nil {
		return p.WithFix("list more operators with the duties propose and approve, or lower approvals.required")
	}
	return nil
}

// quorum refuses operators among whom no bundle could be changed any more, and no hold lifted. In every class: by the same rule as changes
// are approved.
func quorum(prog *policy.Program, free func(policy.Operator) bool) *problem.Problem {
	for _, act := range []string{ActionBundle, ActionLiftHold} {
		if policy.Quorum(prog, act, free) {
			continue
		}
		need, self := required(prog, act)
		who := "besides who approve"
		if self {
			who = "who approve, which may be the same"
		}
		left := 0
		for _, op := range prog.Operators() {
			if free(op) {
				left++
			}
		}
		return problem.New(problem.ReasonLastQuorum, "no change could be approved any more (%s): %d operators would be left, and it takes one who proposes and %d %s", act, left, need, who)
	}
	return nil
}

func genesisDocument(prog *policy.Program, manifest *policy.Manifest, m *custody.Founding, f Founding) (string, error) {
	env := prog.Environment()
	nonce := make([]byte, 16)
	if _, err := f.Source.Read(nonce); err != nil {
		return "", err
	}
	holder := f.Holder.Descriptor()
	g := ceremony.Genesis{
		Format: ceremony.GenesisFormat, Name: env.Name, Class: string(env.Class), Created: f.Now().UTC().Truncate(time.Second),
		Manifest: state.Digest(manifest.Digest()).String(), Quorum: env.Approvals, CA: m.CACert, Checkpoint: m.Checkpoint,
		RootHolder: holder.Kind + ":" + holder.ID, LeafHash: ceremony.LeafHashV1, EntryFormat: ceremony.EntryFormatV1,
		Nonce: hex.EncodeToString(nonce),
	}
	for _, op := range prog.Operators() {
		founder := ceremony.Founder{Name: op.Name}
		for _, k := range op.Keys {
			founder.Keys = append(founder.Keys, k.Fingerprint)
		}
		g.Operators = append(g.Operators, founder)
	}
	return g.Text()
}

func foundersSignature(ctx context.Context, prog *policy.Program, document string, f Founding) (state.Signature, error) {
	person, armored, err := f.Sign(ctx, ceremony.NamespaceChange, document)
	if err != nil {
		return state.Signature{}, err
	}
	fingerprint, err := verifyPerson(prog, person, ceremony.NamespaceChange, document, armored)
	if err != nil {
		return state.Signature{}, err
	}
	return state.Signature{Person: person, Key: fingerprint, SSHSIG: armored}, nil
}

func bundleBlobs(m *policy.Manifest, files policy.Files) []store.Blob {
	blobs := []store.Blob{{Digest: store.Digest(m.Digest()), Data: m.Text()}}
	for _, f := range m.Files() {
		blobs = append(blobs, store.Blob{Digest: store.Digest(f.Digest), Data: files[f.Path]})
	}
	return blobs
}
