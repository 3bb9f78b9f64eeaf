package job

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"strings"
	"sync"
	"time"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/problem"
)

// holding is all that is needed to give back what a job was given, by whoever survives. It holds the session's key, and no value.
type holding struct {
	Bootstrap string    `json:"bootstrap"`
	Document  string    `json:"document"` // the genesis document
	Identity  string    `json:"identity"`
	Chain     [][]byte  `json:"chain"`
	Key       []byte    `json:"key"` // PKCS#8
	Expires   time.Time `json:"expires"`
	Leases    []lease   `json:"leases"`
	Asked     []ask     `json:"asked"` // what was asked for, and not answered yet
	Child     process   `json:"child"`
	Places    []string  `json:"places"`   // directories where values were put into files
	Grace     int64     `json:"grace"`    // nanoseconds, of the child
	Patience  int64     `json:"patience"` // nanoseconds, of giving back
	Done      bool      `json:"done"`     // all was given back, or was told
}

// lease is one that the job has.
type lease struct {
	ID      uint64    `json:"id"`
	Secret  string    `json:"secret"`
	Expires time.Time `json:"expires"`
}

// ask is a request for a secret. Its key makes that asking again finds the same lease.
type ask struct {
	Secret  string `json:"secret"`
	Purpose string `json:"purpose"`
	Key     string `json:"key"`
}

// process is one that may be gone: its number alone could be another's by then.
type process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot (proc(5), stat field 22)
}

// put notes the session. The key is copied into the holding, which is wiped with wipe.
func (h *holding) put(t *client.Trust, s *client.Session) error {
	key, err := x509.MarshalPKCS8PrivateKey(s.Certificate.PrivateKey)
	if err != nil {
		return problem.Wrap(err, problem.ReasonInternal, "encoding the session's key")
	}
	clear(h.Key)
	h.Bootstrap, h.Document, h.Identity = t.BootstrapString(), t.Document, s.Path()
	h.Chain, h.Key, h.Expires = s.Certificate.Certificate, key, s.Expires
	return nil
}

// held reports whether there is anything to give back.
func (h *holding) held() bool { return len(h.Key) > 0 && !h.Done }

// dial makes a client with the holding's session.
func (h *holding) dial() (*client.Client, error) {
	t, err := client.TrustFromGenesis(h.Bootstrap, h.Document)
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(h.Key)
	if err != nil {
		return nil, problem.New(problem.ReasonInternal, "the session's key can't be read")
	}
	cert := &tls.Certificate{Certificate: h.Chain, PrivateKey: key}
	return client.Dial(t, client.Options{
		Credentials: func() (*tls.Certificate, error) { return cert, nil }, CallTimeout: callTimeout, Attempts: 1,
	})
}

// Outcome says what became of one thing that was held.
type Outcome struct {
	What  string    // "lease 812 of db/password", "the session of /ci/…"
	Left  bool      // it was not given back
	Until time.Time // when what was left is dead without anybody's doing; zero: nobody here knows
	Why   *problem.Problem
}

// Returned says what became of everything.
type Returned struct {
	Outcomes []Outcome
	Took     time.Duration
}

// Whole reports whether nothing is left.
func (r Returned) Whole() bool {
	for _, o := range r.Outcomes {
		if o.Left {
			return false
		}
	}
	return true
}

// String is what a person is told: one line if all went well, else one for each thing that is left.
func (r Returned) String() string {
	var b strings.Builder
	good := 0
	for _, o := range r.Outcomes {
		if !o.Left {
			good++
			continue
		}
		until := "when the time is over that the bundle gives its leases"
		if !o.Until.IsZero() {
			until = "by " + o.Until.UTC().Format(time.RFC3339)
		}
		fmt.Fprintf(&b, "NOT given back: %s (%s: %s); it is dead %s, whatever happens\n", o.What, o.Why.Reason, o.Why.Message, until)
	}
	if b.Len() == 0 {
		return fmt.Sprintf("gave everything back: %s", r.names())
	}
	if good > 0 {
		fmt.Fprintf(&b, "gave back: %s\n", r.names())
	}
	return strings.TrimSuffix(b.String(), "\n")
}

func (r Returned) names() string {
	var out []string
	for _, o := range r.Outcomes {
		if !o.Left {
			out = append(out, o.What)
		}
	}
	return strings.Join(out, ", ")
}

// Giving back: how long one call may take, how many are under way at a time, and how soon one is repeated.
const (
	callTimeout = 5 * time.Second
	atATime     = 8
	firstAgain  = 100 * time.Millisecond
	lastAgain   = 2 * time.Second
)

// giveBack returns every lease and then the session, and tries until ctx ends. It is idempotent: what was given back already counts as given back.
func (h *holding) giveBack(ctx context.Context, c *client.Client) Returned {
	begun := time.Now()
	leases, lost := h.resolve(ctx, c)
	out := make([]Outcome, len(leases))
	var all sync.WaitGroup
	turn := make(chan struct{}, atATime)
	for i, l := range leases {
		all.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			out[i] = Outcome{What: fmt.Sprintf("lease %d of %s", l.ID, l.Secret), Until: l.Expires}
			out[i].close(persist(ctx, func(ctx context.Context) error {
				_, err := c.Secrets.ReturnLease(ctx, &v1.ReturnLeaseRequest{Lease: l.ID})
				if problem.Is(err, problem.ReasonNotFound) {
					return nil // given back before, by an attempt whose answer was lost, or swept away
				}
				return err
			}))
		})
	}
	all.Wait()
	out = append(out, lost...)
	session := Outcome{What: "the session of " + h.Identity, Until: h.Expires}
	session.close(persist(ctx, func(ctx context.Context) error {
		_, err := c.Attestation.Logout(ctx, &v1.LogoutRequest{})
		if over(err) {
			return nil
		}
		return err
	}))
	return Returned{Outcomes: append(out, session), Took: time.Since(begun)}
}

// close notes how it ended. A thing that is dead already is not left.
func (o *Outcome) close(err error) {
	if err == nil || !o.Until.IsZero() && !time.Now().Before(o.Until) {
		return
	}
	o.Left, o.Why = true, problem.As(err)
}

// over reports whether an error says that there is no such session any more.
func over(err error) bool {
	return problem.Is(err, problem.ReasonSessionExpired) || problem.Is(err, problem.ReasonSessionUnknown) || problem.Is(err, problem.ReasonNoSession)
}

// resolve finds out what became of requests without an answer: asked once more with the same key, the server tells the lease that it
// made, or makes none but this one. Refused now, they may still have been granted then: that is told as left.
func (h *holding) resolve(ctx context.Context, c *client.Client) ([]lease, []Outcome) {
	leases := append([]lease(nil), h.Leases...)
	var lost []Outcome
	for _, a := range h.Asked {
		err := persist(ctx, func(ctx context.Context) error {
			res, err := c.Secrets.Get(ctx, &v1.GetRequest{Secret: a.Secret, Purpose: a.Purpose, IdempotencyKey: a.Key})
			if err == nil {
				clear(res.Value)
				leases = append(leases, lease{ID: res.Lease, Secret: a.Secret, Expires: res.Expires.AsTime()})
			}
			return err
		})
		if err == nil {
			continue
		}
		switch problem.KindOf(err) {
		case problem.Refused, problem.NotFound, problem.Conflict, problem.Invalid:
			continue // what a grant forbids, or is not there, was not handed over; what was revoked since is dead
		}
		lost = append(lost, Outcome{What: "a lease of " + a.Secret + " that may have been made", Left: true, Why: problem.As(err)})
	}
	return leases, lost
}

// persist repeats a call until it succeeds, is refused for good, or ctx ends.
func persist(ctx context.Context, call func(context.Context) error) error {
	wait := firstAgain
	for {
		err := call(ctx)
		if err == nil {
			return nil
		}
		p := problem.As(err)
		switch p.Kind {
		case problem.Unavailable, problem.UnknownOutcome, problem.Limited, problem.Internal:
		default:
			return err
		}
		if ctx.Err() != nil || !pause(ctx, max(client.Jitter(wait), p.RetryAfter)) {
			return err
		}
		wait = min(2*wait, lastAgain)
	}
}
