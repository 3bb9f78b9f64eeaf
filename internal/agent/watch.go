package agent

import (
	"context"
	"time"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/problem"
)

// watch keeps a stream of news open, for whatever session is the current one.
func (a *Agent) watch(ctx context.Context) {
	failures := 0
	for ctx.Err() == nil {
		a.mu.Lock()
		s, changed := a.session, a.changed
		a.mu.Unlock()
		if s == nil || !s.Live(time.Now()) {
			select {
			case <-changed:
			case <-ctx.Done():
			}
			continue
		}
		following, cancel := context.WithCancel(ctx)
		stop := make(chan struct{})
		go func() {
			select {
			case <-changed: // the stream is one of the old session's connection
			case <-following.Done():
			}
			cancel()
			close(stop)
		}()
		heard, err := a.follow(following, s)
		cancel()
		<-stop
		if heard {
			failures = 0
		}
		a.lost(s, err)
		select {
		case <-changed:
			failures = 0
			continue
		default:
		}
		t := time.NewTimer(client.Jitter(min(firstUnreachable<<min(failures, 16), lastUnreachable)))
		failures++
		select {
		case <-t.C:
		case <-changed:
			failures = 0
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// follow reads one stream to its end, and reports whether it brought good news at all.
func (a *Agent) follow(ctx context.Context, s *client.Session) (bool, error) {
	a.mu.Lock()
	since := a.control
	a.mu.Unlock()
	stream, err := a.node.Watching.Watch(ctx, &v1.WatchRequest{Since: since})
	if err != nil {
		return false, err
	}
	defer stream.Close()
	heard := false
	for stream.Receive() {
		heard = a.told(s, stream.Msg()) || heard
	}
	return heard, stream.Err()
}

// told takes in one piece of news, and reports whether the session lives.
func (a *Agent) told(s *client.Session, ev *v1.WatchEvent) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.session != s {
		return true
	}
	back := !a.watching
	a.watching = true
	news := ev.Control > a.control
	if news {
		a.control = ev.Control
		if err := a.files.write(controlFile, heard{ev.Control}); err != nil {
			a.log.Warn("keeping the index of the newest news failed", "err", err)
		}
	}
	changed := ev.Generation > a.gen
	a.gen = max(a.gen, ev.Generation)
	if news || len(ev.CaChain) > 0 {
		a.spiffe.RefreshBundles()
	}
	if ev.SessionDead {
		reason := problem.Reason(ev.Reason)
		if reason.Fix() == "" {
			reason = problem.ReasonCutoff
		}
		a.kill(overBecause(reason))
		a.runs.look()
		return false
	}
	a.revive()
	if len(ev.RevokedScopes) > 0 {
		a.log.Warn("something was revoked that concerns this machine", "scopes", ev.RevokedScopes)
		a.runs.look()
		changed = true
	}
	if changed {
		a.spiffe.Look()
	}
	if news && a.failure != nil && !a.usable() {
		// What the policy says may have changed.
		a.next = time.Now()
		a.poke()
	}
	if back {
		a.reached()
	}
	return true
}

// reached has what failed because the server was away tried again soon: it is back. The lock is held.
func (a *Agent) reached() {
	a.spiffe.Retry()
	if a.failure == nil || a.failState == Broken || !classOf(a.failure).soon || a.failure.RetryAfter > 0 {
		return
	}
	// Not at once: streams that come and go must not make as many attempts.
	if soon := time.Now().Add(client.Jitter(tendAgain)); soon.Before(a.next) {
		a.next = soon
		a.poke()
	}
}

// lost records the end of a stream. A server that does not know the session any more says so here first.
func (a *Agent) lost(s *client.Session, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.session != s {
		return
	}
	a.watching = false
	if err == nil {
		return
	}
	p := problem.As(err)
	if k := p.Kind; (k != problem.NotProved && k != problem.Refused) || p.Reason == problem.ReasonNotAuthentic {
		a.log.Debug("the stream of news ended", "reason", string(p.Reason), "problem", p.Message)
		return
	}
	if p.Reason == problem.ReasonSessionExpired && a.failure != nil {
		// It was not renewed, and why not is what there is to say: not that it ended.
		a.outlived(p)
		return
	}
	a.kill(p)
}

// overBecause says what became of the session: a hold leaves it where it is, and gives it back with its end.
func overBecause(reason problem.Reason) *problem.Problem {
	switch reason {
	case problem.ReasonHeld, problem.ReasonForked:
		return problem.New(reason, "this machine is held: it gets nothing until the hold is lifted")
	case problem.ReasonQuarantined:
		return problem.New(reason, "this machine is quarantined: it gets nothing until its release")
	default:
		return problem.New(reason, "the server says that this machine's session gives it nothing any more")
	}
}
