package agent

import (
	"context"
	"crypto"
	"errors"
	"io/fs"
	"sync"
	"time"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/hardening"
	"github.com/bailment/bailment/internal/problem"
)

// attemptTimeout bounds one attempt with all its calls.
const attemptTimeout = 45 * time.Second

// keep is the agent's main loop: pin the environment, then keep a session. It returns nil when ctx ends.
func (a *Agent) keep(ctx context.Context) error {
	if err := a.load(ctx); err != nil {
		return err
	}
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		a.watch(ctx)
	}()
	defer func() { <-watched }()
	seen := a.signature()
	trim := sync.OnceFunc(hardening.Trim)
	for {
		wait, failing := a.due()
		if wait <= 0 {
			a.attempt(ctx)
			seen = a.signature()
		} else {
			if failing {
				wait = min(wait, lookForChange)
			}
			t := time.NewTimer(wait)
			trim() // from here on, an agent mostly waits
			select {
			case <-t.C:
			case <-a.wake:
				t.Stop()
			case <-ctx.Done():
				t.Stop()
			}
		}
		if ctx.Err() != nil {
			return nil //nolint:nilerr // told to stop
		}
		if now := a.signature(); failing && now != seen {
			seen = now
			a.tryNow("what the attestation method needs, or the installed program, changed")
		}
	}
}

// due says how long it is until the next attempt, and whether something is wrong.
func (a *Agent) due() (time.Duration, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	wait := time.Until(a.next)
	if a.asked {
		return 0, a.failure != nil
	}
	if a.session != nil && a.dead == nil && a.failure != nil {
		// With a renewal failing slowly, the end of the session is an event of its own.
		if end := time.Until(a.session.Expires); end > 0 {
			wait = min(wait, end)
		} else if a.state == Ready {
			a.enter(a.failState)
		}
	}
	return wait, a.failure != nil
}

// renewNow makes an attempt now, and returns when one that began after the call has ended, with what was wrong then. It does not wait
// for what a failure would have it wait for: who asks has mended something, or wants to know.
func (a *Agent) renewNow(ctx context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	want := a.begun + 1
	a.log.Info("trying now", "why", "it was asked for at the socket")
	a.asked, a.failures = true, 0
	a.poke()
	for a.over < want {
		ended := a.attempted
		a.mu.Unlock()
		var err error
		select {
		case <-ended:
		case <-ctx.Done():
			err = problem.Wrap(ctx.Err(), problem.ReasonCanceled, "waiting for the attempt")
		case <-a.stopping:
			err = problem.New(problem.ReasonNoAgent, "the agent stops")
		}
		a.mu.Lock()
		if err != nil {
			return err
		}
	}
	if a.failure != nil {
		return a.failure
	}
	return nil
}

func (a *Agent) tryNow(why string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.log.Info("trying now", "why", why)
	a.next, a.failures = time.Now(), 0
	a.poke()
}

// load reads what is kept. A damaged file is an error: to go on without it could make an enrolment look forked.
func (a *Agent) load(ctx context.Context) error {
	t, err := client.LoadTrust(a.files.path(trustFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	if t, err = t.Matches(a.cfg.Bootstrap); err != nil {
		return err
	}
	if err := a.use(t); err != nil {
		return err
	}
	var h heard
	if err := a.files.read(controlFile, &h); err == nil {
		a.control = h.Control
	}
	s, err := a.loadSession(ctx, t)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || s == nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.install(s)
	if a.usable() {
		a.succeed()
	}
	return nil
}

// loadSession reads the newest session. It is nil where its key is in hardware that does not give it: hardware that is away or was cleared,
// or of which this machine has a copied disk only. Its method attests anew then, which needs nothing of the former session.
func (a *Agent) loadSession(ctx context.Context, t *client.Trust) (*client.Session, error) {
	var lost error
	s, err := client.LoadHardwareSession(a.files.path(sessionFile), t, func(blob []byte) (key crypto.Signer, err error) {
		ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
		defer cancel()
		key, err = a.loadKey(ctx, blob)
		lost = err
		return key, err
	})
	if lost != nil {
		a.log.Warn("the session that was kept can't be used: the hardware does not give its key", "reason", string(problem.As(lost).Reason), "problem", problem.As(lost).Message)
		return nil, nil
	}
	return s, err
}

// loadKey has the method's hardware make a session key again.
func (a *Agent) loadKey(ctx context.Context, blob []byte) (crypto.Signer, error) {
	attester, _, done, err := a.attester()
	if err != nil {
		return nil, err
	}
	defer done()
	maker, ok := attester.(attest.KeyMaker)
	if !ok {
		return nil, problem.New(problem.ReasonUnsupported, "attestation method %s makes no keys in hardware", a.method.Name)
	}
	return maker.LoadKey(ctx, blob)
}

// use makes the clients of a pinned environment.
func (a *Agent) use(t *client.Trust) error {
	open, err := client.Dial(t, client.Options{Dialer: a.cfg.Dialer, Agent: a.statement})
	if err != nil {
		return err
	}
	node, err := client.Dial(t, client.Options{Dialer: a.cfg.Dialer, Credentials: a.credentials, Agent: a.statement})
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.trust, a.open, a.node = t, open, node
	return nil
}

// statement is what this program says of itself, on the wire.
func (a *Agent) statement() *v1.AgentStatement {
	s, err := a.says()
	if err != nil {
		a.log.Warn("what this program is can't be told to the server", "err", err)
	}
	if s.Digest == [32]byte{} {
		return nil
	}
	return &v1.AgentStatement{Version: s.Version, Platform: s.Platform, Digest: s.Digest[:], Manifest: s.Manifest, Signature: string(s.Signature)}
}

// install makes a session the current one. The lock is held.
func (a *Agent) install(s *client.Session) {
	a.session, a.dead = s, nil
	close(a.changed)
	a.changed = make(chan struct{})
	a.spiffe.Retry()
}

// attempt makes one try to get on: to pin, to attest or to renew.
func (a *Agent) attempt(parent context.Context) {
	ctx, cancel := context.WithTimeout(parent, attemptTimeout)
	defer cancel()
	a.mu.Lock()
	a.begun++
	a.asked = false
	trust := a.trust
	if a.usable() {
		a.enter(Renewing)
	} else if a.state == Ready {
		a.enter(Starting) // the machine slept through its session
	}
	a.mu.Unlock()
	var err error
	if trust == nil {
		err = a.pin(ctx)
	}
	if err == nil {
		err = a.obtain(ctx)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.over++
	close(a.attempted)
	a.attempted = make(chan struct{})
	switch {
	case err == nil:
		a.succeed()
	case parent.Err() != nil: // told to stop
	default:
		a.fail(err)
	}
}

func (a *Agent) pin(ctx context.Context) error {
	t, err := client.Bootstrap(ctx, a.cfg.Bootstrap, client.Options{Dialer: a.cfg.Dialer})
	if err != nil {
		return err
	}
	// What was pinned can be lost alone: a session that is one of this very environment is not given up for that.
	s, err := a.loadSession(ctx, t)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case problem.Is(err, problem.ReasonWrongEnvironment) || problem.Is(err, problem.ReasonNotAuthentic):
		a.log.Warn("the session that was kept is not one of this environment, and is not used", "reason", string(problem.As(err).Reason))
	case err != nil:
		return local{problem.As(err)}
	}
	if err := t.Save(a.files.path(trustFile)); err != nil {
		return ours(err, "keeping what is pinned")
	}
	a.log.Info("the environment is pinned", "environment", t.Environment, "class", t.Class)
	if err := a.use(t); err != nil || s == nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.install(s)
	return nil
}

// ours wraps a failure of this machine's own files.
func ours(err error, doing string) error {
	if l, ok := err.(local); ok { //nolint:errorlint // it is never wrapped
		return l
	}
	return local{problem.Wrap(err, problem.ReasonStore, "%s", doing).
		WithFix("check the agent's state directory: room, permissions, damage")}
}

// obtain gets the next session, by the way that the method declares.
func (a *Agent) obtain(ctx context.Context) error {
	a.mu.Lock()
	s, unsaved := a.session, a.unsaved
	a.mu.Unlock()
	if s == nil {
		return a.enrol(ctx)
	}
	if unsaved {
		// The next key must not be made before this session is kept: after a restart this agent would
		// come with an older one, like a thief with a copy.
		if err := a.save(s); err != nil {
			return err
		}
	}
	if a.method.Renewal.Kind != attest.RenewByPossession {
		return a.enrol(ctx)
	}
	err := a.renew(ctx, s)
	if err != nil && endsEnrolment(err) && a.hasNewMaterial() {
		return a.enrol(ctx)
	}
	return err
}

// renew renews by possession. The new key is kept before it is sent, and is the same until there is an answer.
func (a *Agent) renew(ctx context.Context, s *client.Session) error {
	key, err := a.files.key(renewKeyFile, sessionName(s))
	if err != nil {
		return ours(err, "keeping the next key")
	}
	next, err := a.asker().Renew(ctx, s, key, a.cfg.Version)
	if err != nil {
		return err
	}
	return a.adopt(next, renewKeyFile)
}

// asker is whom to ask for a session by: the present one while it stands, since the server has room for who has one, however many
// strangers there are.
func (a *Agent) asker() *client.Client {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.usable() {
		return a.node
	}
	return a.open
}

// enrol attests with evidence.
func (a *Agent) enrol(ctx context.Context) error {
	attester, digest, done, err := a.attester()
	if err != nil {
		return err
	}
	defer done()
	key, err := a.attestKey(ctx, attester, digest)
	if err != nil {
		return err
	}
	s, err := a.asker().Attest(ctx, a.method.Name, own(attester), key, a.cfg.Version)
	if err != nil {
		return err
	}
	// Before the session: if only this is kept, the same key asks again and gets the same enrolment.
	if err := a.files.write(enrolmentFile, enrolment{enrolmentFormat, digest}); err != nil {
		return ours(err, "keeping the enrolment")
	}
	return a.adopt(s, attestKeyFile)
}

// attester makes the machine's half of the method from what it needs, and gives the digest of that. done forgets the material.
func (a *Agent) attester() (x attest.Attester, digest string, done func(), err error) {
	material, digest, err := a.material()
	if err != nil {
		return nil, "", nil, err
	}
	done = func() {
		for _, text := range material {
			clear(text)
		}
	}
	x, err = attest.Methods{a.method}.NewAttesterFrom(a.method.Name, material)
	if err != nil {
		done()
		return nil, "", nil, local{problem.As(err)}
	}
	return x, digest, done, nil
}

// attestKey is the session key to attest with. One in hardware is made or loaded by the attester that answers: it has it certified.
func (a *Agent) attestKey(ctx context.Context, attester attest.Attester, digest string) (crypto.Signer, error) {
	if !a.cfg.HardwareKey {
		key, err := a.files.key(attestKeyFile, digest)
		if err != nil {
			return nil, ours(err, "keeping the session's key")
		}
		return key, nil
	}
	maker, ok := attester.(attest.KeyMaker)
	if !ok {
		return nil, problem.New(problem.ReasonInternal, "attestation method %s makes no keys in hardware", a.method.Name)
	}
	return a.files.hardwareKey(ctx, attestKeyFile, digest, ownKeys{maker})
}

// adopt makes a session the current one, and keeps it. Then its pending key is forgotten, unless the next attestation will need it.
func (a *Agent) adopt(s *client.Session, pendingKey string) error {
	a.mu.Lock()
	a.install(s)
	a.unsaved = true
	a.mu.Unlock()
	a.log.Info("there is a new session", "identity", s.Identity, "assurance", s.Assurance, "expires", s.Expires, "index", s.Index)
	if err := a.save(s); err != nil {
		return err
	}
	// Evidence that was given out beforehand is good for the key that came with it first, until the platform gives other evidence.
	again := a.method.Given && a.method.Renewal.Kind == attest.RenewByEvidence
	if !again || pendingKey != attestKeyFile {
		a.files.remove(pendingKey)
	}
	return nil
}

func (a *Agent) save(s *client.Session) error {
	if err := s.Save(a.files.path(sessionFile)); err != nil {
		return ours(err, "writing the state directory")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.session == s {
		a.unsaved = false
	}
	return nil
}

// hasNewMaterial reports whether the material is not the one that the enrolment was made from.
func (a *Agent) hasNewMaterial() bool {
	_, digest, err := a.material()
	if err != nil {
		return false
	}
	var e enrolment
	if err := a.files.read(enrolmentFile, &e); err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	return e.Material != digest
}
