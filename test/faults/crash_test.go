package faults

import (
	"context"
	"fmt"
	mrand "math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	bailmentv1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/test/site/sitetest"
	"github.com/bailment/bailment/verify"
)

// acked is what the clients were told: every line of it must be true after any crash.
type acked struct {
	mu       sync.Mutex
	puts     map[string]string // secret/version → value
	releases map[uint64]string // index → secret
}

func (a *acked) put(secret string, version uint64, value string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.puts[fmt.Sprintf("%s#%d", secret, version)] = value
}

func (a *acked) release(index uint64, secret string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.releases[index] = secret
}

func (a *acked) counts() (int, int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.puts), len(a.releases)
}

func rounds(t *testing.T, usual int) int {
	t.Helper()
	text := os.Getenv("BAILMENT_CRASH_ROUNDS")
	if text == "" {
		return usual
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("BAILMENT_CRASH_ROUNDS=%q", text)
	}
	return n
}

// TestKill kills the server in the middle of load, again and again, and compares what is left with what was said.
func TestKill(t *testing.T) {
	s := newSite(t, "", "")
	s.Start()
	s.Connect()
	a := &acked{puts: map[string]string{}, releases: map[uint64]string{}}
	var workload *client.Session
	for round := range rounds(t, 20) {
		if round > 0 {
			s.Start()
		}
		admin := s.Dial(s.Login())
		if workload == nil {
			for i := range 8 {
				value := sitetest.Random()
				out, err := admin.Secrets.Put(t.Context(), &bailmentv1.PutRequest{Secret: fmt.Sprintf("app/s%d", i), Value: []byte(value)})
				s.Check(err)
				a.put(out.Secret, out.Version, value)
			}
		}
		workload = s.Workload(admin, fmt.Sprintf("n%d", round))
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i := range 16 {
			reader := s.Dial(workload)
			wg.Go(func() { load(ctx, admin, reader, i, a) })
		}
		moment := time.NewTimer(time.Duration(20+mrand.IntN(150)) * time.Millisecond)
		<-moment.C
		s.Kill()
		cancel()
		wg.Wait()
	}
	s.Start()
	puts, releases := a.counts()
	if puts < 20 || releases < 20 {
		t.Fatalf("only %d writes and %d releases were acknowledged: that tests nothing", puts, releases)
	}
	t.Logf("%d writes and %d releases were acknowledged", puts, releases)
	audit(s, a)
}

// load writes and reads until the server is gone.
func load(ctx context.Context, admin, reader *client.Client, i int, a *acked) {
	for n := 0; ctx.Err() == nil; n++ {
		secret := fmt.Sprintf("app/s%d", (i+n)%8)
		if i%4 == 0 {
			value := sitetest.Random()
			out, err := admin.Secrets.Put(ctx, &bailmentv1.PutRequest{Secret: secret, Value: []byte(value)})
			if err != nil {
				return
			}
			a.put(secret, out.Version, value)
			continue
		}
		out, err := reader.Secrets.Get(ctx, &bailmentv1.GetRequest{Secret: secret})
		if err != nil {
			return
		}
		a.release(out.Entry.Index, secret)
	}
}

// audit reads the whole ledger over the wire and compares it with what was acknowledged.
func audit(s *sitetest.Site, a *acked) {
	s.T.Helper()
	ctx := s.T.Context()
	c := s.Dial(s.Login())
	replayed := state.New()
	written := map[string]bool{}
	for from := uint64(0); ; {
		page, err := c.Ledger.GetEntries(ctx, &bailmentv1.GetEntriesRequest{From: from, Limit: 1000})
		s.Check(err)
		for _, e := range page.Entries {
			s.Check(replayed.Apply(e.Index, e.Body, nil))
			entry, err := state.Decode(e.Body)
			s.Check(err)
			switch x := entry.Event.(type) {
			case *state.SecretWritten:
				written[fmt.Sprintf("%s#%d", x.Secret, x.Version)] = true
			case *state.SecretReleased:
				if want, ok := a.releases[e.Index]; ok && want != x.Secret {
					s.T.Fatalf("entry %d releases %s; the client was given %s under it", e.Index, x.Secret, want)
				}
				delete(a.releases, e.Index)
			}
		}
		if len(page.Entries) == 0 {
			break
		}
		from += uint64(len(page.Entries))
	}
	for key := range a.puts {
		if !written[key] {
			s.T.Errorf("%s was acknowledged and is not in the ledger", key)
		}
	}
	for index, secret := range a.releases {
		s.T.Errorf("%s was delivered under entry %d, which is not such a release", secret, index)
	}
	cp, err := c.Ledger.GetCheckpoint(ctx, &bailmentv1.GetCheckpointRequest{})
	s.Check(err)
	if _, err := verify.OpenCheckpoint([]byte(cp.Checkpoint), verifiers(s.T, s.Trust)...); err != nil {
		s.T.Fatal(err)
	}
}
