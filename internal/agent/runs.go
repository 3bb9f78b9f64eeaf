package agent

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"sync"
	"time"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/agent/localapi"
	"github.com/bailment/bailment/internal/agent/workload"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
)

// Bounds of a run's work.
const (
	openTimeout   = 40 * time.Second
	returnTimeout = 5 * time.Second
	tendTimeout   = 20 * time.Second
	waitForReady  = 5 * time.Second
)

// runs are the processes that have secrets now, and the leases that they share.
type runs struct {
	mu    sync.Mutex
	all   map[string]*run
	users map[uint32]int
	slots map[slotKey]*slot
}

func (r *runs) init() {
	r.all, r.users, r.slots = make(map[string]*run), make(map[uint32]int), make(map[slotKey]*slot)
}

func (r *runs) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.all)
}

// look has every run look at its leases soon: something was revoked.
func (r *runs) look() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, x := range r.all {
		select {
		case x.wake <- struct{}{}:
		default:
		}
	}
}

// asker is the process that asks, as workload finds out what it is.
type asker interface {
	// ClaimsFor are the claims about it, for a program that it starts.
	ClaimsFor(ctx context.Context, e workload.Executable) (map[string]any, error)
	// Same says whether it is still what the claims say.
	Same() error
}

// run is one process with its secrets.
type run struct {
	a      *Agent
	id     string
	peer   localapi.Peer
	asker  asker
	exe    executable
	want   string
	node   string         // path of the one that speaks for it
	client *client.Client // with the workload's own session
	wake   chan struct{}
	ended  chan struct{} // its end is asked for
	once   sync.Once
	over   chan struct{} // its leases were given back, or left
	events chan localapi.Event
	goesOn bool // the agent stops and the process does not: its leases are left to the next agent

	mu      sync.Mutex
	session *client.Session
	retry   time.Time // no renewal of the SVID before
	holds   []*holding
}

// holding is a run's share of a lease.
type holding struct {
	name  string
	key   slotKey
	slot  *slot
	lease *lease
	lost  bool // the server or its time ended it
	back  bool // this share was given back
	retry time.Time
}

// slotKey says which runs may share a lease: the server has one for each identity, version and purpose.
type slotKey struct{ identity, secret, purpose string }

// slot orders what happens to the leases of one key: without it, one run could give back the lease that another is
// just being given.
type slot struct {
	turn   chan struct{}
	users  int
	leases map[uint64]*lease
}

// lease is a lease that this machine holds. It belongs to its slot's turn.
type lease struct {
	id      uint64
	holders int
	from    time.Time // of the present term
	expires time.Time
	final   bool // renewing it changes nothing any more
	left    bool // a process that goes on holds it while the agent stops
}

func (r *runs) slot(k slotKey) *slot {
	r.mu.Lock()
	defer r.mu.Unlock()
	s, ok := r.slots[k]
	if !ok {
		s = &slot{turn: make(chan struct{}, 1), leases: make(map[uint64]*lease)}
		r.slots[k] = s
	}
	s.users++
	return s
}

func (r *runs) leave(k slotKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.slots[k]; s != nil {
		if s.users--; s.users == 0 {
			delete(r.slots, k)
		}
	}
}

func (s *slot) lock(ctx context.Context) error {
	select {
	case s.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return problem.Wrap(ctx.Err(), problem.ReasonCanceled, "waiting for a lease")
	}
}

func (s *slot) unlock() { <-s.turn }

// begin makes room for a run of a user, or refuses.
func (a *Agent) begin(p localapi.Peer) (*run, error) {
	var id [16]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, problem.Wrap(err, problem.ReasonEntropy, "naming the run")
	}
	r := &run{
		a: a, id: hex.EncodeToString(id[:]), peer: p, wake: make(chan struct{}, 1), ended: make(chan struct{}),
		over: make(chan struct{}), events: make(chan localapi.Event, localapi.MaxSecrets+1),
	}
	a.runs.mu.Lock()
	defer a.runs.mu.Unlock()
	if len(a.runs.all) >= a.cfg.Limits.Runs || a.runs.users[p.UID] >= a.cfg.Limits.RunsPerUser {
		return nil, problem.New(problem.ReasonLimit, "user %d has %d runs, the agent has %d", p.UID, a.runs.users[p.UID], len(a.runs.all)).
			WithRetryAfter(time.Second).WithFix("end some runs, or raise the agent's limits")
	}
	a.runs.all[r.id] = r
	a.runs.users[p.UID]++
	return r, nil
}

// find finds a run of the same user: the name alone is not enough.
func (a *Agent) find(id string, p localapi.Peer) (*run, error) {
	a.runs.mu.Lock()
	defer a.runs.mu.Unlock()
	r, ok := a.runs.all[id]
	if !ok || r.peer.UID != p.UID {
		return nil, problem.New(problem.ReasonNotFound, "there is no such run")
	}
	return r, nil
}

// end asks for the end of a run.
func (r *run) end() { r.once.Do(func() { close(r.ended) }) }

// open attests the workload and gets what it asked for: all of it, or an error.
func (r *run) open(ctx context.Context, req localapi.OpenRequest, e executable) (*localapi.Opened, error) {
	node, err := r.a.ready(ctx)
	if err != nil {
		return nil, err
	}
	r.exe, r.want = e, req.Workload
	if err := r.attest(ctx); err != nil {
		return nil, err
	}
	id, err := identity.Parse(node.Identity)
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonInternal, "the node's identity")
	}
	c, err := client.Dial(r.a.pinned(), client.Options{Credentials: r.credentials, Dialer: r.a.cfg.Dialer, MaxConns: 4, Attempts: 1})
	if err != nil {
		return nil, err
	}
	r.client, r.node = c, id.Path()
	out := &localapi.Opened{Run: r.id, Identity: r.session.Identity, Node: node.Identity, Expires: r.session.Expires, SPIFFE: r.a.cfg.WorkloadAPI}
	for _, w := range req.Secrets {
		// Before each: what is got for a process that isn't the one any more would be a release that nobody took.
		if err := r.asker.Same(); err != nil {
			wipe(out)
			return nil, err
		}
		g, err := r.hand(ctx, w, req.Receipts)
		if err == nil {
			out.Secrets = append(out.Secrets, *g)
			// Who asked may be gone by now. What was got is given back, and nothing more is.
			if ctx.Err() != nil {
				err = problem.Wrap(ctx.Err(), problem.ReasonCanceled, "getting secrets")
			}
		}
		if err != nil {
			wipe(out)
			return nil, err
		}
	}
	return out, nil
}

// hand gets a secret, or takes up the lease of one that the process has already.
func (r *run) hand(ctx context.Context, w localapi.Wanted, receipt bool) (*localapi.Given, error) {
	if w.Lease == 0 {
		return r.get(ctx, w, receipt)
	}
	return r.resume(ctx, w)
}

func wipe(o *localapi.Opened) {
	for i := range o.Secrets {
		clear(o.Secrets[i].Value)
	}
}

// ready waits a little for a session of the node, because much is started at once when a machine starts; without one
// it says why there is none.
func (a *Agent) ready(ctx context.Context) (*client.Session, error) {
	deadline := time.NewTimer(waitForReady)
	defer deadline.Stop()
	for {
		a.mu.Lock()
		s, usable, changed, state, failure, soon := a.session, a.usable(), a.changed, a.state, a.failure, a.failSoon
		a.mu.Unlock()
		switch {
		case usable:
			return s, nil
		case failure != nil && state != Unreachable && !soon:
			return nil, failure
		}
		select {
		case <-changed:
		case <-deadline.C:
			if failure != nil {
				return nil, failure
			}
			return nil, problem.New(problem.ReasonStarting, "the agent has no session yet (%s)", state)
		case <-ctx.Done():
			return nil, problem.Wrap(ctx.Err(), problem.ReasonCanceled, "waiting for the agent's session")
		}
	}
}

func (a *Agent) pinned() *client.Trust {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.trust
}

func (r *run) credentials() (*tls.Certificate, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.session == nil {
		return nil, client.ErrNoSession
	}
	return &r.session.Certificate, nil
}

// attest gets a session for the workload, with a new key that never leaves this process. What the process is, is found out anew each
// time: a renewal vouches for what it is now, in the pod that it is in now.
func (r *run) attest(ctx context.Context) error {
	claims, err := r.asker.ClaimsFor(ctx, r.exe.told())
	if err != nil {
		return err
	}
	key, err := client.NewKey()
	if err != nil {
		return err
	}
	s, err := again(ctx, func() (*client.Session, error) { return r.a.node.AttestWorkload(ctx, claims, r.want, key) })
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.session = s
	r.retry = time.Now().Add(tendAgain) // never in a hurry, whatever times the server gave
	return nil
}

// again repeats what may be repeated: the same key gives the same identity, the same lease. What it costs is one
// more entry in the ledger, and so it is for the agent to decide, not for the client. Idempotency keys are not used for
// reads: an identity has a thousand of them an hour, which many short runs would use up.
func again[T any](ctx context.Context, f func() (T, error)) (T, error) {
	for attempt := 0; ; attempt++ {
		out, err := f()
		if err == nil || attempt == 2 || ctx.Err() != nil {
			return out, err
		}
		switch p := problem.As(err); {
		case p.Reason == problem.ReasonCanceled:
			return out, err
		case p.Kind != problem.Unavailable && p.Kind != problem.UnknownOutcome:
			return out, err
		}
		t := time.NewTimer(client.Jitter(firstUnreachable << attempt))
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

func (r *run) key(w localapi.Wanted) slotKey {
	return slotKey{r.session.Identity, w.Name, w.Purpose}
}

// get gets one secret, and joins its lease.
func (r *run) get(ctx context.Context, w localapi.Wanted, receipt bool) (*localapi.Given, error) {
	k := r.key(w)
	s := r.a.runs.slot(k)
	if err := s.lock(ctx); err != nil {
		r.a.runs.leave(k)
		return nil, err
	}
	defer s.unlock()
	res, err := r.fetch(ctx, w, s, receipt)
	if err != nil {
		r.a.runs.leave(k)
		return nil, err
	}
	l := r.join(w, k, s, res.Lease, res.Expires.AsTime())
	return &localapi.Given{
		Name: w.Name, Purpose: w.Purpose, Version: res.Version, Lease: res.Lease, Expires: l.expires,
		Epoch: res.Entry.GetEpoch(), Index: res.Entry.GetIndex(), Value: res.Value, Receipt: res.Receipt,
	}, nil
}

// join adds the run to the holders of a lease. The slot's turn is this run's.
func (r *run) join(w localapi.Wanted, k slotKey, s *slot, id uint64, expires time.Time) *lease {
	l, ok := s.leases[id]
	if !ok {
		l = &lease{id: id, from: time.Now()}
		s.leases[id] = l
	}
	l.holders++
	l.expires = expires
	r.mu.Lock()
	defer r.mu.Unlock()
	r.holds = append(r.holds, &holding{name: w.Name, key: k, slot: s, lease: l})
	return l
}

// fetch asks the server for a secret. What was asked for is waited for a little, also when who asked is gone: only with
// its answer is it known which lease is to be given back. If no answer comes, the lease is looked up. The slot's turn is this
// run's, so nobody else on this machine can be getting it.
func (r *run) fetch(ctx context.Context, w localapi.Wanted, s *slot, receipt bool) (*v1.GetResponse, error) {
	work, cancel := outlive(ctx, returnTimeout)
	defer cancel()
	unknown := false
	res, err := again(ctx, func() (*v1.GetResponse, error) {
		res, err := r.client.Secrets.Get(work, &v1.GetRequest{Secret: w.Name, Purpose: w.Purpose, Receipt: receipt})
		if err != nil {
			p := problem.As(err)
			unknown = unknown || p.Kind == problem.UnknownOutcome || p.Reason == problem.ReasonCanceled || p.Reason == problem.ReasonDeliveryTooLate
		}
		return res, err
	})
	if err != nil && unknown {
		r.disown(w, s)
	}
	return res, err
}

// disown gives back the leases that a call without an answer may have made.
func (r *run) disown(w localapi.Wanted, s *slot) {
	ctx, cancel := context.WithTimeout(context.Background(), returnTimeout)
	defer cancel()
	req := &v1.ListLeasesRequest{PageSize: 1000}
	for {
		res, err := r.client.Secrets.ListLeases(ctx, req)
		if err != nil {
			p := problem.As(err)
			r.a.log.Warn("whether there is a lease is not known; it expires by itself", "secret", w.Name, "reason", string(p.Reason), "problem", p.Message)
			return
		}
		for _, l := range res.Leases {
			_, held := s.leases[l.Lease]
			if !held && l.Secret == w.Name && l.Purpose == w.Purpose && l.Node == r.node && l.State == "active" {
				r.returnLease(ctx, l.Lease, l.Expires.AsTime())
			}
		}
		if req.PageToken = res.NextPageToken; req.PageToken == "" {
			return
		}
	}
}

// outlive is a context that ends a while after its parent does.
func outlive(parent context.Context, grace time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(parent))
	stop := context.AfterFunc(parent, func() {
		t := time.NewTimer(grace)
		defer t.Stop()
		select {
		case <-t.C:
			cancel()
		case <-ctx.Done():
		}
	})
	return ctx, func() {
		stop()
		cancel()
	}
}

// finish gives back what no other run holds, and forgets the run.
func (r *run) finish() {
	// Not the request's context: it is over, and this must happen all the same.
	ctx, cancel := context.WithTimeout(context.Background(), returnTimeout)
	defer cancel()
	for _, h := range r.holds {
		r.giveBack(ctx, h, r.goesOn)
		r.a.runs.leave(h.key)
	}
	if r.client != nil {
		r.client.Close()
	}
	r.a.runs.mu.Lock()
	delete(r.a.runs.all, r.id)
	if r.a.runs.users[r.peer.UID]--; r.a.runs.users[r.peer.UID] == 0 {
		delete(r.a.runs.users, r.peer.UID)
	}
	r.a.runs.mu.Unlock()
	close(r.over)
}

// giveBack gives a share of a lease back, once, and the lease with the last of them, unless its process goes on without this agent.
func (r *run) giveBack(ctx context.Context, h *holding, goesOn bool) {
	if err := h.slot.lock(ctx); err != nil {
		r.a.log.Warn("a lease was not given back; it expires by itself", "lease", h.lease.id, "problem", err)
		return
	}
	defer h.slot.unlock()
	if h.back {
		return
	}
	h.back = true
	h.lease.left = h.lease.left || goesOn
	if h.lease.holders--; h.lease.holders > 0 {
		return
	}
	delete(h.slot.leases, h.lease.id)
	if h.lost || h.lease.left || !time.Now().Before(h.lease.expires) {
		return
	}
	r.returnLease(ctx, h.lease.id, h.lease.expires)
}

func (r *run) returnLease(ctx context.Context, id uint64, expires time.Time) {
	_, err := again(ctx, func() (*v1.ReturnLeaseResponse, error) {
		return r.client.Secrets.ReturnLease(ctx, &v1.ReturnLeaseRequest{Lease: id})
	})
	// Not found: it was given back by a call whose answer was lost, or revoked.
	if err != nil && problem.KindOf(err) != problem.NotFound {
		p := problem.As(err)
		r.a.log.Warn("a lease was not given back; it expires by itself", "lease", id, "expires", expires,
			"reason", string(p.Reason), "problem", p.Message)
	}
}
