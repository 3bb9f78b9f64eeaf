package storetest

import (
	"context"
	"errors"
	"testing"

	"github.com/bailment/bailment/internal/store"
)

// counted is a store that only counts.
type counted struct {
	store.Store
	appends int
}

func (c *counted) Append(context.Context, *store.Batch) error        { c.appends++; return nil }
func (c *counted) PutCheckpoint(context.Context, []byte) error       { return nil }
func (c *counted) PutSnapshot(context.Context, uint64, []byte) error { return nil }
func (c *counted) Head(context.Context) (store.Head, error)          { return store.Head{}, nil }

func TestFaulty(t *testing.T) {
	for _, c := range []struct {
		fault   Fault
		class   error
		appends int
	}{
		{Fault{Op: OpAppend, Call: 2}, store.ErrNotDone, 1},
		{Fault{Op: OpAppend, Call: 2, Full: true}, store.ErrFull, 1},
		{Fault{Op: OpAppend, Call: 2, Unknown: true}, store.ErrUnknown, 1},
		{Fault{Op: OpAppend, Call: 2, Done: true}, store.ErrUnknown, 2},
	} {
		inner := &counted{}
		f := NewFaulty(inner, c.fault)
		ctx := context.Background()
		if err := f.Append(ctx, nil); err != nil || f.Failed() {
			t.Fatalf("%+v: call 1: %v", c.fault, err)
		}
		if err := f.PutCheckpoint(ctx, nil); err != nil { // another Op, not counted
			t.Fatal(err)
		}
		err := f.Append(ctx, nil)
		if !errors.Is(err, c.class) || !errors.Is(err, ErrPlanned) || errors.Is(err, store.ErrNotDone) == errors.Is(err, store.ErrUnknown) {
			t.Errorf("%+v: %v", c.fault, err)
		}
		if inner.appends != c.appends || !f.Failed() {
			t.Errorf("%+v: %d appends reached the store, failed %v", c.fault, inner.appends, f.Failed())
		}
		for name, call := range calls(f, nil) {
			if err := call(ctx); !errors.Is(err, store.ErrFatal) {
				t.Errorf("%+v: %s afterwards: %v", c.fault, name, err)
			}
		}
	}
}

func TestFaultyPlanCountsFromNow(t *testing.T) {
	f := NewFaulty(&counted{})
	ctx := context.Background()
	for range 3 {
		if err := f.PutSnapshot(ctx, 0, nil); err != nil {
			t.Fatal(err)
		}
	}
	f.Plan(Fault{Op: OpPutSnapshot, Call: 1})
	if err := f.PutSnapshot(ctx, 0, nil); !errors.Is(err, store.ErrNotDone) {
		t.Fatalf("planned: %v", err)
	}
}
