package canary

import (
	"context"
	"log/slog"
)

// Handler passes records on and looks at them. One that holds a value is replaced: the log loses a line, and not the secret.
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
	text := append(make([]byte, 0, 256), r.Message...)
	r.Attrs(func(a slog.Attr) bool {
		text = appendAttr(text, a)
		return true
	})
	if h.watch.Look(Log, text) {
		r = slog.NewRecord(r.Time, slog.LevelError, "a line that held a secret value was withheld", r.PC)
	}
	return h.next.Handle(ctx, r)
}

// WithAttrs looks at once: what is kept for later lines is as bad as what is written. Found attributes are left out.
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	var text []byte
	for _, a := range attrs {
		text = appendAttr(text, a)
	}
	if h.watch.Look(Log, text) {
		return h
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
