package control

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/bailment/bailment/internal/cache"
	"github.com/bailment/bailment/internal/custody"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/spiffe"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// published are the documents that tell others what to trust, as of an entry.
type published struct {
	of        publishedOf
	bundle    []byte
	keys      []byte
	discovery []byte // nil: there is no issuer
}

// publishedOf is all that the documents are made of.
type publishedOf struct {
	changed           uint64 // index of the newest entry that changed a key
	hint              time.Duration
	issuer, algorithm string
}

// documents is the newest of them, and the bundles of others that were read lately.
type documents struct {
	own     atomic.Pointer[published]
	foreign *cache.Cache[state.Digest, []byte]
}

// maxForeign bounds the bundles of others in memory, of up to spiffe.MaxBundle each.
const maxForeign = 64

func newDocuments() *documents {
	return &documents{foreign: cache.New[state.Digest, []byte](maxForeign, nil)}
}

// sequenceEpoch is where the epoch stands in a sequence number: it may only rise, also when a restored ledger is shorter. Other
// languages read numbers of 53 bits without loss.
const sequenceEpoch = 40

// TrustBundle is this environment's own trust bundle document, in the SPIFFE bundle format. It must not be changed.
func (e *Environment) TrustBundle() ([]byte, error) {
	p, err := e.publish(e.log.State())
	if err != nil {
		return nil, err
	}
	return p.bundle, nil
}

// TokenKeys is the JWK Set of the keys of JWT-SVIDs. It must not be changed.
func (e *Environment) TokenKeys() ([]byte, error) {
	p, err := e.publish(e.log.State())
	if err != nil {
		return nil, err
	}
	return p.keys, nil
}

// Discovery is the discovery document of the issuer that JWT-SVIDs name by the bundle in force; nil: they name none.
func (e *Environment) Discovery() ([]byte, error) {
	p, err := e.publish(e.log.State())
	if err != nil {
		return nil, err
	}
	return p.discovery, nil
}

func (e *Environment) publish(s *state.State) (*published, error) {
	if p := ended(s); p != nil {
		return nil, p // its keys vouch for nobody
	}
	prog, err := e.inForce(s)
	if err != nil {
		return nil, err
	}
	settings := prog.Environment().SPIFFE
	of := publishedOf{s.KeysChanged(), settings.RefreshHint, settings.Issuer, settings.Algorithm}
	if p := e.docs.own.Load(); p != nil && p.of == of {
		return p, nil
	}
	b, err := ownBundle(s)
	if err != nil {
		return nil, err
	}
	b.RefreshHint, b.Sequence, b.Sequenced = of.hint, s.Env.Epoch<<sequenceEpoch+of.changed+1, true
	p := &published{of: of}
	if p.bundle, err = b.Marshal(); err != nil {
		return nil, problem.Wrap(err, problem.ReasonInternal, "writing the trust bundle")
	}
	if p.keys, err = spiffe.KeySet(b.Tokens); err != nil {
		return nil, problem.Wrap(err, problem.ReasonInternal, "writing the keys of tokens")
	}
	if of.issuer != "" {
		algorithms := []string{of.algorithm}
		for _, t := range b.Tokens {
			algorithms = append(algorithms, t.Algorithm)
		}
		if p.discovery, err = spiffe.Discovery(of.issuer, algorithms); err != nil {
			return nil, problem.Wrap(err, problem.ReasonInternal, "writing the discovery document")
		}
	}
	e.docs.own.Store(p)
	return p, nil
}

// ownBundle are the environment's authorities and keys that others are told to trust.
func ownBundle(s *state.State) (*spiffe.Bundle, error) {
	b := &spiffe.Bundle{}
	for _, k := range s.Told(custody.CA) {
		c, err := x509.ParseCertificate(k.Cert)
		if err != nil {
			return nil, problem.Wrap(err, problem.ReasonTampered, "reading the certificate of %s", k.Name)
		}
		b.Authorities = append(b.Authorities, c)
	}
	for _, k := range s.Told(custody.JWT) {
		t, err := spiffe.ParseTokenKey(k.Public)
		if err != nil {
			return nil, problem.Wrap(err, problem.ReasonTampered, "reading the key %s", k.Name)
		}
		b.Tokens = append(b.Tokens, t)
	}
	return b, nil
}

// Relation is a federation of the bundle in force, and the newest bundle of the other trust domain that is known.
type Relation struct {
	policy.Federation
	Pin      state.Digest
	Document []byte    // empty: none is known yet (https_web)
	Fetched  time.Time // when the document changed last; zero: it is the pinned one
	Index    uint64    // of the entry; 0: it is the pinned one
}

// Relations are the federations of the bundle in force, by name.
func (e *Environment) Relations(ctx context.Context) ([]Relation, error) {
	s := e.log.State()
	prog, err := e.inForce(s)
	if err != nil {
		return nil, err
	}
	var out []Relation
	for _, f := range prog.Federations() {
		r, err := e.relation(ctx, s, f)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

// relation finds what is known of a federation: what was fetched for it as it was approved, else what was pinned.
func (e *Environment) relation(ctx context.Context, s *state.State, f policy.Federation) (Relation, error) {
	r := Relation{Federation: f, Pin: f.Pin(), Document: f.Pinned}
	known, ok := s.Federations.Get(f.Name)
	if !ok || known.Pin != r.Pin {
		return r, nil
	}
	doc, ok := e.docs.foreign.Get(known.Document)
	if !ok {
		var err error
		if doc, err = e.log.Store().Blob(ctx, store.Digest(known.Document)); err != nil {
			return r, e.storeProblem(err, "reading the bundle of "+f.TrustDomain)
		}
		if sha256.Sum256(doc) != known.Document {
			return r, problem.New(problem.ReasonTampered, "the stored bundle of %s is not the one that was entered", f.TrustDomain)
		}
		e.docs.foreign.Put(known.Document, doc)
	}
	r.Document, r.Fetched, r.Index = doc, known.Fetched.Time(), known.Index
	return r, nil
}

// MinRefresh is the least time between two entries of one relation: who answers for the other trust domain must not be able to fill
// this ledger.
const MinRefresh = 5 * time.Minute

// Refreshed enters a bundle that was fetched for a relation, if it says something new. It reports whether it did. Reasons:
// foreign-bundle (it can't be read, or goes back), conflict (the relation is another one by now), rate-limited.
func (e *Environment) Refreshed(ctx context.Context, name string, pin state.Digest, doc []byte) (bool, error) {
	digest := state.Digest(sha256.Sum256(doc))
	entered, _, err := do(ctx, e,
		func(ctx context.Context, s *state.State) (Relation, error) {
			prog, err := e.inForce(s)
			if err != nil {
				return Relation{}, err
			}
			f, ok := prog.Federation(name)
			if !ok {
				return Relation{}, nil
			}
			return e.relation(ctx, s, f)
		},
		func(t *turn, before Relation) (bool, error) {
			f, ok := t.prog.Federation(name)
			if !ok || state.Digest(f.Pin()) != pin {
				return false, problem.New(problem.ReasonConflict, "the federation %s is another one in the bundle in force", name)
			}
			known, ok := t.s.Federations.Get(name)
			if before.Pin != pin || (ok && known.Pin == pin && known.Index != before.Index) {
				return false, errStale // there is a newer one to compare with
			}
			return t.refresh(f, before, doc, digest)
		})
	return entered, err
}

// refresh decides at the head whether a fetched bundle takes the place of the one before.
func (t *turn) refresh(f policy.Federation, before Relation, doc []byte, digest state.Digest) (bool, error) {
	b, err := spiffe.Parse(f.TrustDomain, doc)
	if err != nil {
		return false, problem.Wrap(err, problem.ReasonForeignBundle, "the bundle of %s", f.TrustDomain)
	}
	if len(b.Authorities) == 0 && f.Profile == policy.ProfileSPIFFE {
		return false, problem.New(problem.ReasonForeignBundle, "the bundle of %s has no X.509 authority, by which its endpoint could be known again", f.TrustDomain)
	}
	if len(before.Document) > 0 {
		old, err := spiffe.Parse(f.TrustDomain, before.Document)
		if err != nil {
			return false, problem.Wrap(err, problem.ReasonTampered, "the known bundle of %s", f.TrustDomain)
		}
		switch same := b.Same(old); {
		case same && b.Sequenced == old.Sequenced && b.Sequence >= old.Sequence:
			return false, nil
		case old.Sequenced && (!b.Sequenced || b.Sequence <= old.Sequence):
			return false, problem.New(problem.ReasonForeignBundle, "the bundle of %s goes back, or changed without a higher sequence number", f.TrustDomain)
		}
	}
	if before.Index != 0 {
		if next := state.At(before.Fetched).Add(MinRefresh); t.now < next {
			return false, problem.New(problem.ReasonRateLimited, "the bundle of %s changed at %s already", f.TrustDomain, state.At(before.Fetched)).
				WithRetryAfter(next.Time().Sub(t.now.Time()))
		}
	}
	t.draft.Blobs = append(t.draft.Blobs, store.Blob{Digest: store.Digest(digest), Data: doc})
	_, err = t.enter(&state.FederationRefreshed{
		Name: f.Name, TrustDomain: f.TrustDomain, Pin: f.Pin(), Document: digest, Sequence: b.Sequence, Sequenced: b.Sequenced, Ruling: t.ruling(""),
	})
	return err == nil, err
}

// TrustBundles are what an agent or a workload is told to trust.
type TrustBundles struct {
	Control   uint64 // index of the last entry that agents must hear of, as Watch says it
	Own       []byte
	Federated []Relation      // that the caller, or some workload that it may speak for, federates with; those without a document are left out
	Workloads []policy.Spoken // for a node: the workloads that it may speak for, and what each federates with
}

// TrustBundles gives the environment's own trust bundle, and those of other trust domains that the caller's rule names.
func (e *Environment) TrustBundles(ctx context.Context, c Caller) (*TrustBundles, error) {
	s := e.log.State()
	x, err := e.judge(s, c, state.At(e.cfg.Now()))
	if err != nil {
		return nil, err
	}
	prog, err := e.inForce(s)
	if err != nil {
		return nil, err
	}
	out := &TrustBundles{Control: s.Control}
	if out.Own, err = e.TrustBundle(); err != nil {
		return nil, err
	}
	var names []string
	switch {
	case x.Node != "":
		claims, err := e.claims.of(x.Index, x.Claims)
		if err != nil {
			return nil, problem.Wrap(err, problem.ReasonCondition, "reading the session's claims")
		}
		match, err := prog.IdentifyWorkload(x.Node, claims, x.Identity)
		if err != nil {
			return nil, err
		}
		names = prog.FederatesWith(match.Rule)
	case strings.HasPrefix(x.Identity, identity.PrefixNode):
		out.Workloads = prog.SpokenFor(x.Identity)
		for _, w := range out.Workloads {
			names = append(names, w.FederatesWith...)
		}
		slices.Sort(names)
		names = slices.Compact(names)
	}
	for _, name := range names {
		f, ok := prog.Federation(name)
		if !ok {
			continue
		}
		r, err := e.relation(ctx, s, f)
		if err != nil {
			return nil, err
		}
		if len(r.Document) > 0 {
			out.Federated = append(out.Federated, r)
		}
	}
	return out, nil
}
