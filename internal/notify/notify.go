// Package notify tells persons of what was entered: that there is a change to approve, that one is in force or was taken back, that
// something was revoked. By HTTPS, to a webhook, or by mail, with a command.
//
// Guaranteed: whom and of what is the bundle's say, which was approved; which command sends mails, and which networks that are not
// public a webhook may be in, is the server's own configuration's, so that nobody gets a command run, or the server's neighbours
// asked, by getting a bundle approved. No request waits for it: entries are handed over without blocking, and a target that is slow or
// dead holds up no other. Each message is tried several times; what was not told is counted and logged. Who a bundle tells no more is
// still told that it is in force. With a Cursor, what was not told when the server stopped, however it did, is told when it is there
// again. So it may be told twice, and each time with the same genesis and entry. Not guaranteed: that somebody reads it, or that it
// arrives. A message proves nothing, and holds nothing that must be believed.
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
	Dropped = "dropped" // too many were waiting for this target, or what is kept nowhere was waiting when the server stopped
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
	// Next is the index of the next entry.
	Next() uint64
}

// Cursor keeps how far persons were told, over the end of the process. All entries before it were told, or given up.
type Cursor interface {
	Load() (next uint64, known bool)
	Save(next uint64) error
}

// Config is what a Notifier needs.
type Config struct {
	Mail    []string       // a command and its arguments, by an absolute path; none: mails can't be sent
	From    string         // sender of mails; empty: the command says
	Allow   []netip.Prefix // networks that are not public in which webhooks may be
	Timeout time.Duration  // of one attempt
	Logger  *slog.Logger
	// Counted is told of each outcome.
	Counted func(target, outcome string)
	// Waits are the times before the second attempt, the third …; nil means the usual ones.
	Waits []time.Duration
}

// Bounds. An environment that has more to tell than this has told enough.
const (
	maxInbox   = 1024      // entries; beyond it they are read back
	maxWaiting = 256       // messages for one target
	maxBehind  = 1_000_000 // entries that are read back after a start
	readAtOnce = 1000
	saveEvery  = 5 * time.Second
	saveAfter  = 10_000 // entries of which nobody is told
)

// waits makes six attempts within eight minutes: a receiver that is restarted misses nothing, and news don't get old.
var waits = []time.Duration{time.Second, 5 * time.Second, 30 * time.Second, 2 * time.Minute, 5 * time.Minute}

// Notifier tells of one environment's entries.
type Notifier struct {
	cfg   Config
	inbox chan news

	handing sync.Mutex // held for moments: the committer takes it
	begun   bool
	next    uint64 // the index after the newest entry
	behind  bool   // the entries from since on are read back, and not handed over
	since   uint64

	mu      sync.Mutex
	waiting map[string][]letterTo // by target, with the one that is being told
	open    map[uint64]int        // letters of an entry that are not settled
	dirty   bool                  // some were settled, or came, since the cursor was saved
	keeps   bool                  // there is a cursor
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
	return &Notifier{cfg: cfg, inbox: make(chan news, maxInbox), waiting: make(map[string][]letterTo), open: make(map[uint64]int)}
}

// Entered takes every entry that is committed, in order. It never blocks. Only one goroutine may call it, the committer. Entries that it was
// not given, because what came of their write was known only later, are read back; so are those for which there is no room.
func (n *Notifier) Entered(index uint64, entry *state.Entry) {
	n.handing.Lock()
	defer n.handing.Unlock()
	x := news{entry: entry, from: index}
	gap := n.begun && index > n.next
	if gap {
		x = news{from: n.next, to: index + 1}
	}
	n.begun, n.next = true, index+1
	if n.behind || !gap && !Concerns(entry.Event) {
		return
	}
	select {
	case n.inbox <- x:
	default: // which is full, so that Run comes by
		n.behind, n.since = true, x.from
	}
}

// Run tells what is handed over until ctx ends, and returns when no attempt is under way. The cursor may be nil: then nothing outlasts it.
func (n *Notifier) Run(ctx context.Context, source Source, cursor Cursor) {
	t := &telling{n: n, source: source, cursor: cursor, known: source.Targets()}
	t.resume()
	defer t.stop()
	tick := time.NewTicker(saveEvery)
	defer tick.Stop()
	for {
		if len(n.inbox) == 0 {
			t.catchUp(ctx)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			t.save()
		case x := <-n.inbox:
			if x.entry != nil {
				t.one(ctx, x.from, x.entry)
			} else {
				n.fallBehind(x.from) // and is read with whatever came since
			}
		}
	}
}

// fallBehind has the entries from an index on be read back. What was handed over is among them.
func (n *Notifier) fallBehind(from uint64) {
	n.handing.Lock()
	defer n.handing.Unlock()
	if !n.behind || from < n.since {
		n.behind, n.since = true, from
	}
	for len(n.inbox) > 0 {
		<-n.inbox
	}
}

// telling is one run.
type telling struct {
	n      *Notifier
	source Source
	cursor Cursor
	known  []policy.Notify
	saved  uint64
}

// resume goes on where an earlier process stopped.
func (t *telling) resume() {
	if t.cursor == nil {
		return
	}
	n, next := t.n, t.source.Next()
	n.handing.Lock()
	if !n.begun {
		n.begun, n.next = true, next
	}
	next = n.next
	n.handing.Unlock()
	n.mu.Lock()
	n.keeps, n.dirty = true, true
	n.mu.Unlock()
	from, known := t.cursor.Load()
	if !known || from >= next {
		return
	}
	if next-from > maxBehind {
		n.cfg.Logger.Warn("nobody is told of the oldest entries, as they are too many", "from", from, "to", next-maxBehind)
		from = next - maxBehind
	}
	n.fallBehind(from)
}

// catchUp reads back what was not handed over. What can't be read is tried again when Run comes by.
func (t *telling) catchUp(ctx context.Context) {
	n := t.n
	for ctx.Err() == nil {
		n.handing.Lock()
		if n.behind = n.behind && n.since < n.next; !n.behind {
			n.handing.Unlock()
			return
		}
		from, to := n.since, min(n.next, n.since+readAtOnce)
		n.handing.Unlock()
		err := t.source.Entries(ctx, from, to, func(index uint64, entry *state.Entry) {
			if Concerns(entry.Event) {
				t.one(ctx, index, entry)
			}
			from = index + 1
		})
		if err == nil {
			from = to
		} else if ctx.Err() == nil {
			n.cfg.Logger.Warn("entries can't be read back, so nobody is told of them yet", "from", from, "to", to, "err", err)
		}
		n.handing.Lock()
		n.since = from
		n.handing.Unlock()
		if err != nil {
			return
		}
	}
}

// one has everybody told of an entry who is to be.
func (t *telling) one(ctx context.Context, index uint64, entry *state.Entry) {
	m, ok := Of(t.source.About(), index, entry)
	if !ok {
		return
	}
	now := t.source.Targets()
	all := now
	if m.Event == policy.TopicInForce || m.Event == policy.TopicRolledBack { // which may have taken targets away
		all = slices.Concat(now, lost(t.known, now, m.Event))
	}
	t.known = now
	for _, x := range all {
		if x.Wants(m.Event) {
			t.n.enqueue(ctx, letterTo{x, m})
		}
	}
}

// settled is the index before which everybody was told, or given up.
func (t *telling) settled() uint64 {
	n := t.n
	n.handing.Lock()
	next := n.next
	if n.behind {
		next = min(next, n.since)
	}
	for range len(n.inbox) { // each goes back behind the others
		x := <-n.inbox
		next = min(next, x.from)
		n.inbox <- x
	}
	n.handing.Unlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	for index := range n.open {
		next = min(next, index)
	}
	if !n.dirty && next < t.saved+saveAfter {
		return t.saved
	}
	n.dirty = false
	return next
}

func (t *telling) save() {
	if t.cursor == nil {
		return
	}
	next := t.settled()
	if next == t.saved {
		return
	}
	if err := t.cursor.Save(next); err != nil {
		t.n.cfg.Logger.Warn("how far persons were told can't be kept, so they may be told again", "err", err)
		return
	}
	t.saved = next
}

// stop waits for what is under way, and keeps how far it came.
func (t *telling) stop() {
	t.n.working.Wait()
	t.save()
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
	n.open[x.message.Entry]++
	n.dirty = true
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
		settled := n.tell(ctx, x)
		n.mu.Lock()
		n.waiting[name] = n.waiting[name][1:]
		if settled {
			if n.open[x.message.Entry]--; n.open[x.message.Entry] == 0 {
				delete(n.open, x.message.Entry)
			}
			n.dirty = true
		}
		n.mu.Unlock()
	}
}

// tell tries until it is told, or it is known that it won't be. It is false if it will be after a restart.
func (n *Notifier) tell(ctx context.Context, x letterTo) bool {
	log := n.cfg.Logger.With("target", x.target.Name, "event", string(x.message.Event), "entry", x.message.Entry)
	for i := 0; ; i++ {
		if ctx.Err() != nil {
			n.mu.Lock()
			later := n.keeps
			n.mu.Unlock()
			if !later {
				log.Warn("somebody was not told, as the server stops")
				n.cfg.Counted(x.target.Name, Dropped)
			}
			return !later
		}
		err := n.attempt(ctx, x)
		if err == nil {
			log.Debug("somebody was told", "attempts", i+1)
			n.cfg.Counted(x.target.Name, Told)
			return true
		}
		var p permanent
		if errors.As(err, &p) || i == len(n.cfg.Waits) {
			log.Error("somebody could not be told", "attempts", i+1, "err", err)
			n.cfg.Counted(x.target.Name, Failed)
			return true
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
