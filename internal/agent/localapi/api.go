// Package localapi is the local API of the agent: HTTP/1.1 and JSON over a Unix socket, for programs on the same machine.
//
//	GET  /status          what the agent is doing, and what to do about it
//	POST /v1/run/open     a process asks for secrets; the answer is a stream that lasts as long as the run
//	POST /v1/run/close    ends a run, and answers when its leases are given back
//
// Guaranteed: requests have one strict form and bounded size; the executable crosses as an open descriptor (SCM_RIGHTS,
// unix(7)), so that the agent measures the very file that is executed, without needing any right over the asking process
// and without meeting another process that got its number; and a run ends when its connection does, which the kernel
// sees to whatever the process dies of. Not guaranteed: anything about who connects. The socket may be open to every
// user of the machine: who asks is what the kernel says (SO_PEERCRED), and policy decides what he gets.
//
// It is the wire between agent and run, and imports leaves only.
package localapi

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
)

// Paths of the API.
const (
	PathStatus = "/status"
	PathOpen   = "/v1/run/open"
	PathClose  = "/v1/run/close"
)

// Limits of a request and an answer.
const (
	MaxRequest = 32 << 10 // bytes
	MaxSecrets = 64       // in one run
	MaxPath    = 4096     // bytes of an executable's path; PATH_MAX
	MaxPurpose = 63
	MaxSocket  = 107 // bytes of the socket's path: sun_path of unix(7) without its closing zero
	maxRunID   = 32
	maxLine    = MaxSecrets*(64<<10*4/3+64<<10+4<<10) + 64<<10 // of an answer: values in base64, receipts, names
)

// DefaultPurpose is what a secret is asked for when nobody says.
const DefaultPurpose = "runtime"

// OpenRequest asks for secrets for a process that is about to be started. The connection that carries it should also
// carry the executable's open descriptor; without one, what Exe says is only claimed.
type OpenRequest struct {
	Exe      Exe      `json:"exe"`
	Workload string   `json:"workload,omitempty"` // path of the wanted identity; empty: the only one that fits
	Secrets  []Wanted `json:"secrets,omitempty"`
	Receipts bool     `json:"receipts,omitempty"` // answer with receipts
}

// Exe is what the asker says of the executable.
type Exe struct {
	Path   string `json:"path"`             // absolute, as it was found
	SHA256 string `json:"sha256,omitempty"` // 64 hexadecimal digits
}

// Wanted is a secret that is asked for. With Lease and Version, the process has it already, from an agent that is gone:
// the lease is taken up or made anew, for that version only, and no value crosses.
type Wanted struct {
	Name    string `json:"name"`
	Purpose string `json:"purpose,omitempty"`
	Lease   uint64 `json:"lease,omitempty"`
	Version uint64 `json:"version,omitempty"`
}

// Opened is the first line of the answer: all secrets that were asked for, or there is an error instead. A lease that
// could not be taken up is no error: it stands here as 0, and is an event.
type Opened struct {
	Run      string    `json:"run"`      // names the run, for close
	Identity string    `json:"identity"` // of the workload, a SPIFFE ID
	Node     string    `json:"node"`
	Expires  time.Time `json:"expires"`          // of the workload's SVID; it is renewed
	Secrets  []Given   `json:"secrets"`          // in the order of the request
	SPIFFE   string    `json:"spiffe,omitempty"` // path of the SPIFFE Workload API's socket; empty: it is not served
}

// Given is a secret that was handed over.
type Given struct {
	Name    string    `json:"name"`
	Purpose string    `json:"purpose"`
	Version uint64    `json:"version"`
	Lease   uint64    `json:"lease"`
	Expires time.Time `json:"expires"`
	Epoch   uint64    `json:"epoch"`
	Index   uint64    `json:"index"` // of the release's entry
	Value   []byte    `json:"value"`
	Receipt []byte    `json:"receipt,omitempty"` // C2SP tlog-proof@v1
}

// Event is a later line of the answer.
type Event struct {
	Event  string   `json:"event"` // one of the events below
	Secret string   `json:"secret,omitempty"`
	Lease  uint64   `json:"lease,omitempty"`
	Why    *Failure `json:"why,omitempty"`
}

// Events of the wire.
const (
	EventLeaseLost = "lease-lost" // the lease is over while the process still runs
	EventStopping  = "stopping"   // the agent stops; the leases of processes that go on stay
)

// Events that the asking side makes itself, when there is nobody at the other end.
const (
	EventWaiting    = "waiting"     // agent or server are away, and are asked again (Why)
	EventGone       = "gone"        // the connection to the agent is lost while the process runs
	EventResumed    = "resumed"     // an agent has taken the run up again
	EventNotResumed = "not-resumed" // an agent answers and refuses to (Why)
)

// CloseRequest ends a run.
type CloseRequest struct {
	Run string `json:"run"`
}

// Failure is a problem on this wire.
type Failure struct {
	Kind       string        `json:"kind"`
	Reason     string        `json:"reason"`
	Message    string        `json:"message"`
	Fix        string        `json:"fix,omitempty"`
	RetryAfter time.Duration `json:"retry_after_ns,omitempty"`
}

// FailureOf puts a problem on the wire.
func FailureOf(p *problem.Problem) *Failure {
	if p == nil {
		return nil
	}
	return &Failure{p.Kind.String(), string(p.Reason), p.Message, p.WayOut(), p.RetryAfter}
}

// Problem takes it off again.
func (f *Failure) Problem() *problem.Problem {
	p := &problem.Problem{Kind: problem.Internal, Reason: problem.Reason(f.Reason), Message: f.Message, Fix: f.Fix, RetryAfter: f.RetryAfter}
	for k := problem.Internal; k <= problem.UnknownOutcome; k++ {
		if k.String() == f.Kind {
			p.Kind = k
		}
	}
	return p
}

// Status is what GET /status answers. It holds nothing secret.
type Status struct {
	State       string    `json:"state"`
	Since       time.Time `json:"since"`
	Environment string    `json:"environment"`
	Address     string    `json:"address"`
	Identity    string    `json:"identity,omitempty"`
	Assurance   string    `json:"assurance,omitempty"`
	Expires     time.Time `json:"expires,omitzero"`      // of the node's SVID
	RenewAfter  time.Time `json:"renew_after,omitzero"`  // when it is to be renewed
	LifetimeEnd time.Time `json:"lifetime_end,omitzero"` // of the enrolment
	NextTry     time.Time `json:"next_try,omitzero"`
	Problem     *Failure  `json:"problem,omitempty"` // the last one that is not over; it may stand beside state ready
	ProblemAt   time.Time `json:"problem_at,omitzero"`
	Watching    bool      `json:"watching"` // news arrive
	Control     uint64    `json:"control"`  // index of the newest news
	Generation  uint64    `json:"generation"`
	Runs        int       `json:"runs"`
	Version     string    `json:"version"`
	Replaced    bool      `json:"replaced,omitempty"` // another build is installed than the one that runs
}

// ParseOpen reads an OpenRequest and fills in defaults. The error is of reason invalid or too-large, and holds no text
// of the request but names of secrets.
func ParseOpen(text []byte) (OpenRequest, error) {
	var r OpenRequest
	if err := parse(text, &r, "exe", "path", "sha256", "workload", "secrets", "name", "purpose", "lease", "version", "receipts"); err != nil {
		return OpenRequest{}, err
	}
	if err := r.check(); err != nil {
		return OpenRequest{}, problem.Wrap(err, problem.ReasonInvalid, "the request")
	}
	return r, nil
}

func (r *OpenRequest) check() error {
	if len(r.Exe.Path) == 0 || len(r.Exe.Path) > MaxPath || r.Exe.Path[0] != '/' {
		return fmt.Errorf("exe.path is not an absolute path of at most %d bytes", MaxPath)
	}
	if err := attest.CheckClaimText(r.Exe.Path[:min(len(r.Exe.Path), 2048)]); err != nil {
		return fmt.Errorf("exe.path can't be shown")
	}
	if d, err := hex.DecodeString(r.Exe.SHA256); r.Exe.SHA256 != "" && (err != nil || len(d) != 32 || strings.ToLower(r.Exe.SHA256) != r.Exe.SHA256) {
		return fmt.Errorf("exe.sha256 is not 64 lower-case hexadecimal digits")
	}
	if r.Workload != "" {
		if err := identity.ValidPath(r.Workload); err != nil {
			return err
		}
		if !strings.HasPrefix(r.Workload, identity.PrefixWorkload) {
			return fmt.Errorf("workload does not begin with %s", identity.PrefixWorkload)
		}
	}
	if len(r.Secrets) > MaxSecrets {
		return fmt.Errorf("more than %d secrets", MaxSecrets)
	}
	for i := range r.Secrets {
		w := &r.Secrets[i]
		if _, err := identity.ParseSecretPath(w.Name); err != nil {
			return err
		}
		if w.Purpose == "" {
			w.Purpose = DefaultPurpose
		}
		if !validPurpose(w.Purpose) {
			return fmt.Errorf("the purpose for %s is not [a-z][a-z0-9-]*, at most %d bytes", w.Name, MaxPurpose)
		}
		if (w.Lease == 0) != (w.Version == 0) || (w.Lease == 0) != (r.Secrets[0].Lease == 0) {
			return fmt.Errorf("either all secrets have a lease and a version, or none has")
		}
		if slices.ContainsFunc(r.Secrets[:i], func(o Wanted) bool { return o.Name == w.Name && o.Purpose == w.Purpose }) {
			return fmt.Errorf("%s is asked for twice for one purpose", w.Name)
		}
	}
	return nil
}

// validPurpose is the bundle's rule for purposes: [a-z][a-z0-9-]{0,62}.
func validPurpose(s string) bool {
	if s == "" || len(s) > MaxPurpose || s[0] < 'a' || s[0] > 'z' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// ParseClose reads a CloseRequest.
func ParseClose(text []byte) (CloseRequest, error) {
	var r CloseRequest
	if err := parse(text, &r, "run"); err != nil {
		return CloseRequest{}, err
	}
	if d, err := hex.DecodeString(r.Run); err != nil || len(d)*2 != maxRunID || strings.ToLower(r.Run) != r.Run {
		return CloseRequest{}, problem.New(problem.ReasonInvalid, "the request: run is not the name of a run")
	}
	return r, nil
}

// parse is strict: one object, known keys in exactly their spelling, none twice, nothing after it. Package json alone
// would take "EXE" for "exe" and the last of two.
func parse(text []byte, into any, keys ...string) error {
	if len(text) > MaxRequest {
		return problem.New(problem.ReasonTooLarge, "a request has at most %d bytes", MaxRequest)
	}
	malformed := problem.New(problem.ReasonInvalid, "the request is not the JSON object that is documented")
	if !strictKeys(json.NewDecoder(bytes.NewReader(text)), keys) {
		return malformed
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if d.Decode(into) != nil {
		return malformed // the decoder's own message quotes the request
	}
	return nil
}

// strictKeys walks the tokens of exactly one JSON value.
func strictKeys(d *json.Decoder, keys []string) bool {
	type object struct {
		seen  []string
		isKey bool
		array bool
	}
	var stack []*object
	for first := true; first || len(stack) > 0; first = false {
		t, err := d.Token()
		if err != nil || len(stack) > 8 {
			return false
		}
		var top *object
		if len(stack) > 0 {
			top = stack[len(stack)-1]
		}
		if name, ok := t.(string); ok && top != nil && !top.array && top.isKey {
			if !slices.Contains(keys, name) || slices.Contains(top.seen, name) {
				return false
			}
			top.seen, top.isKey = append(top.seen, name), false
			continue
		}
		if t == nil {
			return false // null is no value of ours
		}
		if top != nil && !top.array {
			top.isKey = true // after this value
		}
		switch t {
		case json.Delim('{'):
			stack = append(stack, &object{isKey: true})
		case json.Delim('['):
			stack = append(stack, &object{array: true})
		case json.Delim('}'), json.Delim(']'):
			stack = stack[:len(stack)-1]
			if len(stack) > 0 && !stack[len(stack)-1].array {
				stack[len(stack)-1].isKey = true
			}
		default:
			if first {
				return false // not an object
			}
		}
	}
	_, err := d.Token()
	return err == io.EOF
}
