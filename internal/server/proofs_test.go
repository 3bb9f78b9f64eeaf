package server_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/server/servertest"
	"github.com/bailment/bailment/internal/store"
	"github.com/bailment/bailment/internal/store/sqlite"
)

// proofStore counts who reads hashes at a time, and lets them wait for each other.
type proofStore struct {
	store.Store
	on        atomic.Bool
	now, most atomic.Int64
}

func (s *proofStore) Hashes(ctx context.Context, x []uint64) ([]store.Digest, error) {
	if s.on.Load() {
		n := s.now.Add(1)
		defer s.now.Add(-1)
		for m := s.most.Load(); n > m && !s.most.CompareAndSwap(m, n); m = s.most.Load() {
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	return s.Store.Hashes(ctx, x)
}

// However many strangers ask for proofs: at the store, a few of them wait beside the commits.
func TestStrangersProofsTakeTurns(t *testing.T) {
	var kept *proofStore
	h := servertest.Start(t, servertest.Options{OpenStore: func(ctx context.Context, dir string) (store.Store, error) {
		st, err := sqlite.Open(ctx, dir)
		if err != nil {
			return nil, err
		}
		kept = &proofStore{Store: st}
		return kept, nil
	}})
	alice := h.Login("alice")
	for range 3 {
		if _, err := alice.Secret.Put(t.Context(), &pb.PutRequest{Secret: "app/password", Value: []byte("sesame")}); err != nil {
			t.Fatal(err)
		}
	}
	kept.on.Store(true)
	var wg sync.WaitGroup
	for range 16 {
		c := h.Clients(nil)
		wg.Go(func() {
			if _, err := c.Ledger.GetConsistency(t.Context(), &pb.GetConsistencyRequest{From: 2}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := kept.most.Load(); n < 1 || n > 2 {
		t.Errorf("%d strangers were at the store at a time", n)
	}
}
