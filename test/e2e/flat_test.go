package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	bailmentv1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/test/site"
	"github.com/bailment/bailment/test/site/sitetest"
)

// reads is how many the test makes: $BAILMENT_E2E_READS, for the full million.
func reads(t *testing.T, usual int) int {
	t.Helper()
	text := os.Getenv("BAILMENT_E2E_READS")
	if text == "" {
		return usual
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < usual {
		t.Fatalf("BAILMENT_E2E_READS=%q: a number of %d or more", text, usual)
	}
	return n
}

// resident is the resident memory of a process in bytes (proc(5), statm).
func resident(t *testing.T, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(b))[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

// TestFlat: many reads by 100 identities make as many leases as there are (identity, node, version,
// purpose), and the server's memory does not grow with their number.
func TestFlat(t *testing.T) {
	const identities, secrets = 100, 4
	purposes := []string{"runtime", "backup"}
	s := newSite(t, site.Options{
		Name: "flat.example", Config: "limits: {source_connections: 2000, source_handshakes: 10000/s 10000, source_requests: 1000000/s 1000000}\n",
		Extra: policy.Files{"grants/nodes.yaml": []byte("apiVersion: bailment/v1\nkind: Grant\nmetadata: {name: nodes}\nspec: {actions: [secret.read], identities: ['/node/join-token/*'], secrets: ['app/*'], purposes: [runtime, backup]}\n")},
	})
	s.Start()
	s.Connect()
	admin := s.Dial(s.Login())
	put := func(i int) {
		_, err := admin.Secrets.Put(t.Context(), &bailmentv1.PutRequest{Secret: fmt.Sprintf("app/s%d", i), Value: []byte(sitetest.Random())})
		s.Check(err)
	}
	for i := range secrets {
		put(i)
	}
	readers := make([]*client.Client, identities)
	for i := range readers {
		readers[i] = s.Dial(s.Node(admin, fmt.Sprintf("n%d", i)))
	}
	// Each reader goes round by the secrets and purposes; every round makes or reuses all of its leases.
	round := func(total int) {
		var wg sync.WaitGroup
		for _, c := range readers {
			wg.Go(func() {
				for n := range total / identities {
					_, err := c.Secrets.Get(t.Context(), &bailmentv1.GetRequest{Secret: fmt.Sprintf("app/s%d", n%secrets), Purpose: purposes[n/secrets%len(purposes)]})
					if err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
	}
	total := reads(t, 20_000)
	round(total / 5)
	put(0) // a new version, and with it a lease each for who reads it for what
	round(total / 5)
	warm := resident(t, s.PID())
	round(total - 2*(total/5))
	end := resident(t, s.PID())
	t.Logf("%d reads: %d MiB after two fifths of them, %d MiB at the end", total, warm>>20, end>>20)
	if end > warm*13/10 {
		t.Errorf("resident memory grew from %d to %d bytes", warm, end)
	}
	const leases = (secrets + 1) * 2 // versions by purposes
	for i := range identities {
		out, err := admin.Secrets.ListLeases(t.Context(), &bailmentv1.ListLeasesRequest{Identity: fmt.Sprintf("/node/join-token/n%d", i), PageSize: 100})
		s.Check(err)
		seen := map[string]bool{}
		for _, l := range out.Leases {
			seen[fmt.Sprintf("%s %d %s", l.Secret, l.Version, l.Purpose)] = true
		}
		if len(out.Leases) != leases || len(seen) != leases || out.NextPageToken != "" {
			t.Fatalf("identity %d has %d leases of %d kinds, want %d", i, len(out.Leases), len(seen), leases)
		}
	}
	metric := fmt.Sprintf("bailment_leases{environment=%q} %d\n", s.Name, identities*leases)
	if !strings.Contains(get(t, s.Site, "/metrics"), metric) {
		t.Errorf("the metrics do not say %s", metric)
	}
	healthy(t, s.Site)
}
