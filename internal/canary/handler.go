package canary

import (
	"context"
	"log/slog"
)

// Handler passes records on and looks at them. Of one that holds a value the message or the attributes that do are replaced: the log
// loses them, and not the secret; and who writes a value that is like the log's own words does not take whole lines from it.
func (w *Watch) Handler(next slog.Handler) slog.Handler {
	if w == nil {
		return next
	}
	return &handler{watch: w, next: next}
}

type handler struct {
	watch *Watch
	next  slog.Handler
}

func (h *handler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.next.Enabled(ctx, level)
}

const withheld = "a text that held a secret value was withheld"

func (h *handler) Handle(ctx context.Context, r slog.Record) error {
	text := append(make([]byte, 0, 256), r.Message...)
	r.Attrs(func(a slog.Attr) bool {
		text = appendAttr(text, a)
		return true
	})
	if !h.watch.Look(Log, text) {
		return h.next.Handle(ctx, r)
	}
	safe := slog.NewRecord(r.Time, slog.LevelError, r.Message, r.PC)
	if h.watch.holds([]byte(r.Message)) {
		safe.Message = withheld
	}
	rest := []byte(safe.Message)
	r.Attrs(func(a slog.Attr) bool {
		a = h.watch.clean(a)
		safe.AddAttrs(a)
		rest = appendAttr(rest, a)
		return true
	})
	if h.watch.holds(rest) { // it goes over several of them
		safe = slog.NewRecord(r.Time, slog.LevelError, withheld, r.PC)
	}
	return h.next.Handle(ctx, safe)
}

// clean is the attribute, or what stands for it if it holds a value.
func (w *Watch) clean(a slog.Attr) slog.Attr {
	switch {
	case !w.holds(appendAttr(nil, a)):
		return a
	case w.holds([]byte(a.Key)):
		return slog.String("withheld", withheld)
	}
	return slog.String(a.Key, withheld)
}

// WithAttrs looks at once: what is kept for later lines is as bad as what is written.
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	var text []byte
	for _, a := range attrs {
		text = appendAttr(text, a)
	}
	if h.watch.Look(Log, text) {
		safe := make([]slog.Attr, len(attrs))
		for i, a := range attrs {
			safe[i] = h.watch.clean(a)
		}
		attrs = safe
	}
	return &handler{watch: h.watch, next: h.next.WithAttrs(attrs)}
}

func (h *handler) WithGroup(name string) slog.Handler {
	return &handler{watch: h.watch, next: h.next.WithGroup(name)}
}

// appendAttr writes an attribute as the text and JSON handlers would show it, more or less, with something between
// it and what stands before, so that two values never look like one.
func appendAttr(b []byte, a slog.Attr) []byte {
	v := a.Value.Resolve()
	b = append(append(append(b, '\n'), a.Key...), '\n')
	if v.Kind() == slog.KindGroup {
		for _, x := range v.Group() {
			b = appendAttr(b, x)
		}
		return b
	}
	if raw, ok := v.Any().([]byte); ok {
		return append(b, raw...)
	}
	return append(b, v.String()...)
}
