package canary

import (
	"context"
	"log/slog"
	"slices"
)

// Handler passes records on and looks at them. What holds a value, the message or an attribute, is replaced: the log loses that, and
// not the secret. It does not lose more, so that a value that somebody chose to be a piece of a line takes no other piece with it.
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

func (h *handler) Handle(ctx context.Context, r slog.Record) error {
	message, found := r.Message, h.watch.Look(Log, []byte(r.Message))
	if found {
		message = withheld
	}
	attrs := make([]slog.Attr, 0, r.NumAttrs())
	text := make([]byte, 0, 256)
	r.Attrs(func(a slog.Attr) bool {
		a, leaks := h.clean(a, text)
		found = found || leaks
		attrs = append(attrs, a)
		return true
	})
	if found {
		r = slog.NewRecord(r.Time, slog.LevelError, message, r.PC)
		r.AddAttrs(attrs...)
	}
	return h.next.Handle(ctx, r)
}

// withheld stands in the place of what held a value.
const withheld = "a text that held a secret value was withheld"

// clean replaces what holds a value in an attribute, and reports whether there was any.
func (h *handler) clean(a slog.Attr, text []byte) (slog.Attr, bool) {
	a.Value = a.Value.Resolve()
	if a.Value.Kind() == slog.KindGroup {
		found := false
		parts := slices.Clone(a.Value.Group())
		for i := range parts {
			var leaks bool
			parts[i], leaks = h.clean(parts[i], text)
			found = found || leaks
		}
		if found {
			a.Value = slog.GroupValue(parts...)
		}
		return a, found
	}
	if h.watch.Look(Log, appendValue(text[:0], a.Value)) {
		return slog.String(a.Key, withheld), true
	}
	return a, false
}

// WithAttrs looks at once: what is kept for later lines is as bad as what is written.
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	attrs = slices.Clone(attrs)
	for i := range attrs {
		attrs[i], _ = h.clean(attrs[i], nil)
	}
	return &handler{watch: h.watch, next: h.next.WithAttrs(attrs)}
}

func (h *handler) WithGroup(name string) slog.Handler {
	return &handler{watch: h.watch, next: h.next.WithGroup(name)}
}

// appendValue writes a value as the text and JSON handlers would show it, more or less.
func appendValue(b []byte, v slog.Value) []byte {
	if raw, ok := v.Any().([]byte); ok {
		return append(b, raw...)
	}
	return append(b, v.String()...)
}
