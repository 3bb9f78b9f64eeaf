package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// How long a stop waits for clients. For what the server has to do itself it waits for the whole of
// timeouts.shutdown.
const (
	strangerPatience = 1500 * time.Millisecond // without a proved identity
	clientPatience   = 5 * time.Second
	opsPatience      = time.Second
	drainRound       = 250 * time.Millisecond
)

// drain refuses what is new and finishes what is under way. Requests that the server could not finish
// are an error. Clients that keep it waiting, by a request that does not come or an answer that they don't take, are
// broken off, which is no error: else anybody could make each stop a slow and failed one.
func (s *Server) drain() error {
	s.logger.Info("the server stops")
	notifyStopping()
	s.stopping.Store(true)
	s.api.Stop()
	limit, cancel := context.WithTimeout(context.Background(), s.cfg.Timeouts.Shutdown)
	defer cancel()
	done := make(chan struct{})
	go func() { defer close(done); s.breakOffSlow(limit) }()
	err := shutdown(limit, s.main)
	cancel()
	<-done
	if err != nil {
		err = nil
		if n := s.gate.working.Load(); n > 0 {
			err = fmt.Errorf("%d requests were broken off after %s", n, s.cfg.Timeouts.Shutdown)
		}
		err = errors.Join(err, s.main.Close())
	}
	if s.ops != nil {
		limit, cancel := context.WithTimeout(context.Background(), opsPatience)
		defer cancel()
		if s.ops.Shutdown(limit) != nil {
			err = errors.Join(err, s.ops.Close())
		}
	}
	return err
}

// breakOffSlow closes connections over which nothing waits for the server, until ctx ends.
func (s *Server) breakOffSlow(ctx context.Context) {
	began := time.Now()
	tick := time.NewTicker(drainRound)
	defer tick.Stop()
	total := 0
	defer func() {
		if total > 0 {
			s.logger.Warn("clients that kept the stop waiting were broken off", "connections", total)
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		waited := time.Since(began)
		total += s.listen.breakOff(func(c *connection, proved bool) bool {
			patience := strangerPatience
			if proved {
				patience = clientPatience
			}
			return waited >= patience && c.working.Load() == 0
		})
	}
}

// shutdownRound is how long one call of http.Server.Shutdown may take.
const shutdownRound = 500 * time.Millisecond

// shutdown repeats http.Server.Shutdown until all is quiet. One call is not enough: an HTTP/2 connection
// whose handshake ends while it runs is not told to go away, and net/http takes it for active from then
// on. The next call tells it.
func shutdown(ctx context.Context, h *http.Server) error {
	for {
		round, cancel := context.WithTimeout(ctx, shutdownRound)
		err := h.Shutdown(round)
		cancel()
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
}
