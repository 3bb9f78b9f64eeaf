package agent

import (
	"context"
	"errors"
	"io/fs"
	"time"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/problem"
)

// attemptTimeout bounds one attempt with all its calls.
const attemptTimeout = 45 * time.Second

// keep is the agent's main loop: pin the environment, then keep a session. It returns nil when ctx ends.
func (a *Agent) keep(ctx context.Context) error {
	if err := a.load(); err != nil {
		return err
	}
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		a.watch(ctx)
	}()
	defer func() { <-watched }()
	seen := a.signature()
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

func (a *Agent) tryNow(why string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.log.Info("trying now", "why", why)
	a.next, a.failures = time.Now(), 0
	a.poke()
}

// load reads what is kept. A damaged file is an error: to go on without it could make an enrolment look forked.
func (a *Agent) load() error {
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
	s, err := client.LoadSession(a.files.path(sessionFile), t)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
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
	if err := t.Save(a.files.path(trustFile)); err != nil {
		return ours(err, "keeping what is pinned")
	}
	a.log.Info("the environment is pinned", "environment", t.Environment, "class", t.Class)
	return a.use(t)
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
	material, digest, err := a.material()
	if err != nil {
		return err
	}
	defer func() {
		for _, text := range material {
			clear(text)
		}
	}()
	attester, err := attest.Methods{a.method}.NewAttesterFrom(a.method.Name, material)
	if err != nil {
		return local{problem.As(err)}
	}
	key, err := a.files.key(attestKeyFile, digest)
	if err != nil {
		return ours(err, "keeping the session's key")
	}
	s, err := a.asker().Attest(ctx, a.method.Name, attester, key, a.cfg.Version)
	if err != nil {
		return err
	}
	// Before the session: if only this is kept, the same key asks again and gets the same enrolment.
	if err := a.files.write(enrolmentFile, enrolment{enrolmentFormat, digest}); err != nil {
		return ours(err, "keeping the enrolment")
	}
	if a.method.Given {
		return a.adopt(s, "") // the same evidence is good for this key only; with the next one comes another
	}
	return a.adopt(s, attestKeyFile)
}

// adopt makes a session the current one, and keeps it. Then its pending key is forgotten, if it has one.
func (a *Agent) adopt(s *client.Session, pendingKey string) error {
	a.mu.Lock()
	a.install(s)
	a.unsaved = true
	a.mu.Unlock()
	a.log.Info("there is a new session", "identity", s.Identity, "assurance", s.Assurance, "expires", s.Expires, "index", s.Index)
	if err := a.save(s); err != nil {
		return err
	}
	if pendingKey != "" {
		a.files.remove(pendingKey)
	}
	return nil
}

func (a *Agent) save(s *client.Session) error {
	if err := s.Save(a.files.path(sessionFile)); err != nil {
		return ours(err, "keeping the session")
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
