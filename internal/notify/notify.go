// Package notify tells persons of what was entered: that there is a change to approve, that one is in force or was taken back, that
// something was revoked. By HTTPS, to a webhook, or by mail, with a command.
//
// Guaranteed: whom and of what is the bundle's say, which was approved; which command sends mails, and which networks that are not
// public a webhook may be in, is the server's own configuration's, so that nobody gets a command run, or the server's neighbours
// asked, by getting a bundle approved. No request waits for it: entries are handed over without blocking, and a target that is slow or
// dead holds up no other. Each message is tried several times; what was not told is counted and logged. Who a bundle tells no more is
// still told that it is in force. Not guaranteed: that somebody reads it, or that it arrives. Nothing is kept on disk: what was
// entered while the server was down, and what was waiting when it stopped, is not told. It may be told twice, when the receiver's
// answer was lost. A message proves nothing, and holds nothing that must be believed.
//
// Its place: a mechanism. What happened comes from package control, by way of package server, and is read from entries only.
package notify

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/state"
)

// Outcomes, as Config.Counted is told of them.
const (
	Told    = "told"
	Retried = "retried" // it failed, and is tried again
	Failed  = "failed"  // for good
	Dropped = "dropped" // too many were waiting, or the server stopped
)

// Outcomes are all of them.
var Outcomes = []string{Told, Retried, Failed, Dropped}

// Source is what is asked about the environment. Its methods are called concurrently.
type Source interface {
	// About is of the newest committed state.
	About() About
	// Targets are those of the bundle in force.
	Targets() []policy.Notify
	// Entries calls fn with the committed entries from one index to before another.
	Entries(ctx context.Context, from, to uint64, fn func(index uint64, entry *state.Entry)) error
}

// Config is what a Notifier needs.
type Config struct {
	Mail    []string       // a command and its arguments, by an absolute path; none: mails can't be sent
	From    string         // sender of mails; empty: the command says
	Allow   []netip.Prefix // networks that are not public in which webhooks may be
	Timeout time.Duration  // of one attempt
	Logger  *slog.Logger
	// Counted is told of each outcome; target is empty for what was dropped before anybody knew whom to tell.
	Counted func(target, outcome string)
	// Waits are the times before the second attempt, the third …; nil means the usual ones.
	Waits []time.Duration
}

// Bounds. An environment that has more to tell than this has told enough.
const (
	maxInbox   = 1024 // entries
	maxWaiting = 256  // messages for one target
)

// waits makes six attempts within eight minutes: a receiver that is restarted misses nothing, and news don't get old.
var waits = []time.Duration{time.Second, 5 * time.Second, 30 * time.Second, 2 * time.Minute, 5 * time.Minute}

// Notifier tells of one environment's entries.
type Notifier struct {
	cfg   Config
	inbox chan news
	begun bool   // of the committer
	next  uint64 // the same

	mu      sync.Mutex
	waiting map[string][]letterTo // by target, with the one that is being told
	working sync.WaitGroup
}

// news is an entry, or a run of entries that nobody handed over.
type news struct {
	entry    *state.Entry
	from, to uint64 // of an entry: from is its index
}

type letterTo struct {
	target  policy.Notify
	message Message
}

// New makes a Notifier. It tells nothing before Run.
func New(cfg Config) *Notifier {
	if cfg.Waits == nil {
		cfg.Waits = waits
	}
	return &Notifier{cfg: cfg, inbox: make(chan news, maxInbox), waiting: make(map[string][]letterTo)}
}

// Entered takes every entry that is committed, in order. It never blocks. Only one goroutine may call it, the committer. Entries that it was
// not given, because what came of their write was known only later, are read back.
func (n *Notifier) Entered(index uint64, entry *state.Entry) {
	if n.begun && index > n.next {
		n.hand(news{from: n.next, to: index})
	}
	n.begun, n.next = true, index+1
	if Concerns(entry.Event) {
		n.hand(news{entry: entry, from: index})
	}
}

func (n *Notifier) hand(x news) {
	select {
	case n.inbox <- x:
	default:
		n.cfg.Counted("", Dropped)
	}
}

// Run tells what is handed over until ctx ends, and returns when no attempt is under way.
func (n *Notifier) Run(ctx context.Context, source Source) {
	defer n.working.Wait()
	known := source.Targets()
	one := func(index uint64, entry *state.Entry) {
		m, ok := Of(source.About(), index, entry)
		if !ok {
			return
		}
		now := source.Targets()
		all := now
		if m.Event == policy.TopicInForce || m.Event == policy.TopicRolledBack { // which may have taken targets away
			all = slices.Concat(now, lost(known, now, m.Event))
		}
		known = now
		for _, t := range all {
			if t.Wants(m.Event) {
				n.enqueue(ctx, letterTo{t, m})
			}
		}
	}
	for {
		select {
		case <-ctx.Done():
			return
		case x := <-n.inbox:
			if x.entry != nil {
				one(x.from, x.entry)
			} else if err := source.Entries(ctx, x.from, x.to, one); err != nil && ctx.Err() == nil {
				n.cfg.Logger.Warn("entries can't be read back, so nobody is told of them", "from", x.from, "to", x.to, "err", err)
			}
		}
	}
}

// lost are the targets that would have been told, and are told no more, or elsewhere.
func lost(before, now []policy.Notify, topic policy.Topic) []policy.Notify {
	var out []policy.Notify
	for _, t := range before {
		if !slices.ContainsFunc(now, func(o policy.Notify) bool {
			return o.Name == t.Name && o.URL == t.URL && slices.Equal(o.To, t.To) && o.Wants(topic)
		}) {
			out = append(out, t)
		}
	}
	return out
}

// enqueue has a message told after those that wait for its target. A target has a goroutine as long as something waits for it.
func (n *Notifier) enqueue(ctx context.Context, x letterTo) {
	n.mu.Lock()
	defer n.mu.Unlock()
	list := n.waiting[x.target.Name]
	if len(list) >= maxWaiting {
		n.cfg.Counted(x.target.Name, Dropped)
		return
	}
	n.waiting[x.target.Name] = append(list, x)
	if len(list) == 0 {
		n.working.Go(func() { n.work(ctx, x.target.Name) })
	}
}

// work tells what waits for a target, in order.
func (n *Notifier) work(ctx context.Context, name string) {
	for {
		n.mu.Lock()
		list := n.waiting[name]
		if len(list) == 0 {
			delete(n.waiting, name)
			n.mu.Unlock()
			return
		}
		x := list[0]
		n.mu.Unlock()
		n.tell(ctx, x)
		n.mu.Lock()
		n.waiting[name] = n.waiting[name][1:]
		n.mu.Unlock()
	}
}

// tell tries until it is told, or it is known that it won't be.
func (n *Notifier) tell(ctx context.Context, x letterTo) {
	log := n.cfg.Logger.With("target", x.target.Name, "event", string(x.message.Event), "entry", x.message.Entry)
	for i := 0; ; i++ {
		if ctx.Err() != nil {
			log.Warn("somebody was not told, as the server stops")
			n.cfg.Counted(x.target.Name, Dropped)
			return
		}
		err := n.attempt(ctx, x)
		if err == nil {
			log.Debug("somebody was told", "attempts", i+1)
			n.cfg.Counted(x.target.Name, Told)
			return
		}
		var p permanent
		if errors.As(err, &p) || i == len(n.cfg.Waits) {
			log.Error("somebody could not be told", "attempts", i+1, "err", err)
			n.cfg.Counted(x.target.Name, Failed)
			return
		}
		log.Warn("telling somebody failed, and is tried again", "attempts", i+1, "err", err)
		n.cfg.Counted(x.target.Name, Retried)
		timer := time.NewTimer(n.cfg.Waits[i])
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}

func (n *Notifier) attempt(ctx context.Context, x letterTo) error {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.Timeout)
	defer cancel()
	if x.target.URL != "" {
		return n.post(ctx, x.target, &x.message)
	}
	return n.mail(ctx, x.target, &x.message)
}
