package main

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	bailmentv1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/seal"
)

// logins are a challenge and its signed answer, over 64 keep-alive connections without a certificate. A login is two calls; the
// client signs between them on the same cores.
func (b *bench) logins(ctx context.Context) error {
	c, err := b.s.Dial(nil)
	if err != nil {
		return err
	}
	defer c.Close()
	epoch, err := c.Epoch(ctx)
	if err != nil {
		return err
	}
	key, err := client.NewKey()
	if err != nil {
		return err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return err
	}
	thumb, err := seal.Thumbprint(key.Public())
	if err != nil {
		return err
	}
	var (
		wg   sync.WaitGroup
		n    atomic.Int64
		fail = make(chan error, clients)
		stop atomic.Bool
	)
	login := func(w *worker) error {
		body, err := w.call("AttestationService/Challenge", &bailmentv1.ChallengeRequest{})
		if err != nil {
			return err
		}
		var ch bailmentv1.ChallengeResponse
		if err := proto.Unmarshal(body, &ch); err != nil {
			return err
		}
		text := ceremony.Login{
			Scope: ceremony.Scope{Environment: envName, Genesis: b.s.Genesis, Epoch: epoch}, Person: "alice", SessionKey: thumb, Challenge: ch.Challenge,
		}.Text()
		sig, err := b.s.Signer("alice")(ceremony.NamespaceLogin, []byte(text))
		if err != nil {
			return err
		}
		_, err = w.call("AttestationService/Login", &bailmentv1.LoginRequest{Challenge: ch.Challenge, Person: "alice", Sshsig: sig, Csr: csr})
		return err
	}
	workers := b.workers(clients, func(int) *client.Session { return &client.Session{} }, "", "", nil)
	for _, w := range workers {
		w.tls.Certificates = nil
		if err := w.dial(); err != nil {
			return err
		}
		defer w.conn.Close()
	}
	cpu, began := cpuOf(b.s.PID()), time.Now()
	for _, w := range workers {
		wg.Go(func() {
			for !stop.Load() {
				if err := login(w); err != nil {
					fail <- err
					return
				}
				n.Add(1)
			}
		})
	}
	<-time.After(b.each)
	stop.Store(true)
	wg.Wait()
	select {
	case err := <-fail:
		return err
	default:
	}
	took, each := time.Since(began), (cpuOf(b.s.PID())-cpu)/time.Duration(max(1, n.Load()))
	fmt.Printf("| login (challenge, then SSHSIG and certificate) | %d | %.0f | | | | %d µs | |\n", clients, float64(n.Load())/took.Seconds(), each.Microseconds())
	return nil
}

// call sends one request of a method.
func (w *worker) call(method string, m proto.Message) ([]byte, error) {
	b, err := proto.Marshal(m)
	if err != nil {
		return nil, err
	}
	w.next = func() []byte { return request(envName, procedures+method, "application/proto", b) }
	return w.once()
}

// push measures how long a node that watches waits for what a change of policy gives it: from the sending of
// the last approval until the node, told by its stream, has read the secret that it could not have before.
func (b *bench) push(ctx context.Context) error {
	node, err := b.s.Dial(b.nodes[0])
	if err != nil {
		return err
	}
	defer node.Close()
	var took []time.Duration
	for n := range 10 {
		stream, err := node.Watching.Watch(ctx, &bailmentv1.WatchRequest{})
		if err != nil {
			return err
		}
		if !stream.Receive() {
			return stream.Err()
		}
		ask := &bailmentv1.GetRequest{Secret: "app/s0", Purpose: fmt.Sprintf("pushed-%d", n)}
		if _, err := node.Secrets.Get(ctx, ask); err == nil {
			return fmt.Errorf("the node may read before the change")
		}
		approval, err := b.change(ctx, ask.Purpose)
		if err != nil {
			return err
		}
		began := time.Now()
		told := make(chan error, 1)
		go func() {
			if stream.Receive() {
				_, err := node.Secrets.Get(ctx, ask)
				took = append(took, time.Since(began))
				told <- err
				return
			}
			told <- stream.Err()
		}()
		out, err := b.admin.Changes.Approve(ctx, approval)
		if err != nil {
			return err
		}
		if out.Generation == 0 {
			return fmt.Errorf("the change is %s, not in force", out.Change.State)
		}
		if err := <-told; err != nil {
			return err
		}
		if err := stream.Close(); err != nil {
			return err
		}
	}
	slices.Sort(took)
	fmt.Printf("\npolicy changed → secret at a connected node (1,000 grants, %d times): median %s, longest %s\n", len(took), short(took[len(took)/2]), short(took[len(took)-1]))
	return nil
}

// change proposes one more grant, and returns the approval that brings it into force.
func (b *bench) change(ctx context.Context, purpose string) (*bailmentv1.ApproveRequest, error) {
	return b.s.Propose(ctx, b.admin, func(files policy.Files) {
		files["grants/"+purpose+".yaml"] = []byte(strings.ReplaceAll("apiVersion: bailment/v1\nkind: Grant\nmetadata: {name: P}\nspec: {actions: [secret.read], identities: [/node/join-token/n0], secrets: ['app/*'], purposes: [P]}\n", "P", purpose))
	})
}

// revocation makes many leases, each of its own secret's version and purpose, and takes them all back at once.
func (b *bench) revocation(ctx context.Context, leases int) error {
	purposes := batches()
	for i := range leases/(clients*len(purposes)) + 1 {
		if _, err := b.admin.Secrets.Put(ctx, &bailmentv1.PutRequest{Secret: fmt.Sprintf("app/l%d", i), Value: []byte("a value")}); err != nil {
			return err
		}
	}
	workers := b.workers(clients, func(i int) *client.Session { return b.nodes[i] }, "SecretService/Get", "application/proto", func(_, n int) []byte {
		return encode(&bailmentv1.GetRequest{Secret: fmt.Sprintf("app/l%d", n/len(purposes)), Purpose: purposes[n%len(purposes)]})
	})
	errs := make(chan error, len(workers))
	for i, w := range workers {
		go func() {
			err := w.dial()
			for n := i; err == nil && n < leases; n += len(workers) {
				_, err = w.once()
			}
			errs <- err
		}()
	}
	for range workers {
		if err := <-errs; err != nil {
			return err
		}
	}
	resident := rssOf(b.s.PID())
	began := time.Now()
	out, err := b.admin.Revocations.Revoke(ctx, &bailmentv1.RevokeRequest{Scope: "identity:/node/*", Reason: "bench"})
	if err != nil {
		return err
	}
	fmt.Printf("revoking %d nodes with %d leases and %d workload sessions (entry %d): acknowledged in %s; resident %.0f MiB before\n",
		clients, leases, out.Covers, out.Entry.Index, short(time.Since(began)), float64(resident)/(1<<20))
	if _, err := workers[0].once(); err == nil || !strings.Contains(err.Error(), "held") && !strings.Contains(err.Error(), "revoked") {
		return fmt.Errorf("a revoked node still reads, or is refused for another reason: %v", err)
	}
	return nil
}
