package server

import (
	"context"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/bailment/bailment/internal/problem"
)

// notifyReady tells systemd that the server answers, and then feeds its watchdog as long as every
// ledger's committer answers. It returns what ends that.
func (s *Server) notifyReady(ctx context.Context) (stop func()) {
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady) // nobody listens outside of systemd
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil || every == 0 {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	s.background.Go(func() {
		tick := time.NewTicker(every / 3)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				if s.committersAnswer(ctx, every/3) {
					_, _ = daemon.SdNotify(false, daemon.SdNotifyWatchdog) // the next tick tries again
				}
			}
		}
	})
	return cancel
}

func notifyStopping() {
	_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping) // nobody listens outside of systemd
}

// committersAnswer reports whether each committer takes and answers a proposal. One that says why it can't
// (the disk is full, the clock jumped) is alive: a restart would not mend that.
func (s *Server) committersAnswer(ctx context.Context, within time.Duration) bool {
	for _, x := range s.sites {
		limit, cancel := context.WithTimeout(ctx, within)
		err := x.env.Probe(limit)
		cancel()
		if problem.Is(err, problem.ReasonCanceled) || problem.Is(err, problem.ReasonUnknownOutcome) {
			s.logger.Error("a ledger does not answer", "environment", x.env.Name(), "err", err)
			return false
		}
	}
	return true
}
