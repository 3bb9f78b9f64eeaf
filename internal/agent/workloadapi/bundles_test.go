package workloadapi_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/agent/workloadapi"
	"github.com/bailment/bailment/internal/problem"
)

// telling is a source of bundles alone, that counts how often it is asked.
type telling struct {
	mu    sync.Mutex
	err   error
	asked int
}

// say has it answer so from now on.
func (s *telling) say(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *telling) times() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

// text is a log that may be read while it is written.
type text struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *text) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *text) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (s *telling) Bundles(context.Context) (*workloadapi.Bundles, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	if s.err != nil {
		return nil, s.err
	}
	return &workloadapi.Bundles{Own: "test.example", All: []workloadapi.Bundle{{TrustDomain: "test.example"}}}, nil
}

func (s *telling) Attest(context.Context, map[string]any) (*client.Session, error) {
	return nil, problem.New(problem.ReasonHeld, "held")
}

func (s *telling) IssueJWT(context.Context, *client.Session, []string) (workloadapi.Token, error) {
	return workloadapi.Token{}, problem.New(problem.ReasonHeld, "held")
}

// A no is not asked about several times a second: only news change it, and they are asked about at once. What may pass by itself is
// tried sooner. The log has each reason once, however often the answer is the same.
func TestBundlesThatCantBeHad(t *testing.T) {
	const line = "getting the trust bundles failed"
	for _, c := range []struct {
		name        string
		err         error
		least, most int // asked in the first ten seconds
	}{
		{"held", problem.New(problem.ReasonHeld, "held"), 2, 6},
		{"quarantined", problem.New(problem.ReasonQuarantined, "quarantined"), 2, 6},
		{"away", problem.New(problem.ReasonUnreachable, "away"), 6, 12},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log text
				source := &telling{err: c.err}
				s := workloadapi.New(workloadapi.Config{Source: source, Logger: slog.New(slog.NewTextHandler(&log, nil))})
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					s.KeepBundles(ctx)
				}()
				pass := func(d time.Duration) {
					<-time.After(d)
					synctest.Wait()
				}
				pass(10 * time.Second)
				if n := source.times(); n < c.least || n > c.most {
					t.Errorf("asked %d times in ten seconds, want %d to %d", n, c.least, c.most)
				}
				pass(time.Hour)
				if n := strings.Count(log.String(), line); n != 1 {
					t.Errorf("the log has %d lines, want one:\n%s", n, log.String())
				}
				before := source.times()
				source.say(nil)
				s.Retry()
				synctest.Wait()
				if n := source.times() - before; n != 1 {
					t.Errorf("news: asked %d times, want once", n)
				}
				source.say(c.err)
				s.RefreshBundles()
				synctest.Wait()
				if n := strings.Count(log.String(), line); n != 2 {
					t.Errorf("after it was well, the log has %d lines, want two:\n%s", n, log.String())
				}
				cancel()
				<-ended
			})
		})
	}
}
