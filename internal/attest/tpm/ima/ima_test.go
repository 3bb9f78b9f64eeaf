package ima

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"testing"

	"github.com/bailment/bailment/internal/attest/tpm/tpmtest"
	"github.com/bailment/bailment/internal/problem"
)

func sum(text string) [32]byte { return sha256.Sum256([]byte(text)) }

func TestShorten(t *testing.T) {
	file := sum("me")
	data := tpmtest.IMAData(file, "/me")
	value := func(all ...[]byte) [32]byte {
		var v [32]byte
		for _, d := range all {
			v = extend(v, sha256.Sum256(d))
		}
		return v
	}
	other := tpmtest.IMAData(sum("other"), "/other")
	raw := bytes.Join([][]byte{tpmtest.IMAEntry(10, other, false), tpmtest.IMAEntry(10, data, false)}, nil)
	old := append(bytes.Clone(tpmtest.IMAEntry(10, other, false)[:24]), 3, 0, 0, 0, 'i', 'm', 'a')
	for name, c := range map[string]struct {
		list   []byte
		quoted [32]byte
		want   problem.Reason
		found  bool
	}{
		"there":                 {raw, value(other, data), "", true},
		"not in what is quoted": {raw, value(other), "", false},
		"other value":           {raw, value(data), problem.ReasonEventLog, false},
		"empty":                 {nil, value(), problem.ReasonEventLog, false},
		"truncated":             {raw[:len(raw)-1], value(other, data), problem.ReasonEventLog, false},
		"old template":          {old, value(data), problem.ReasonEventLog, false},
		"huge entry":            {append(bytes.Clone(raw[:34]), 0xff, 0xff, 0xff, 0xff), value(data), problem.ReasonEventLog, false},
		"huge name":             {append(bytes.Clone(raw[:24]), 0xff, 0xff, 0xff, 0xff), value(data), problem.ReasonEventLog, false},
	} {
		got, err := Shorten(context.Background(), bytes.NewReader(c.list), c.quoted, file)
		if c.want == "" && err != nil || c.want != "" && !problem.Is(err, c.want) || (got != nil) != c.found {
			t.Errorf("%s: %v %v", name, got, err)
		}
		if got != nil {
			if files, err := got.Verify(c.quoted); err != nil || !files[file] {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	// After too many others, nothing can be shown of it.
	one := tpmtest.IMAEntry(10, other, false)
	var v [32]byte
	v = extend(v, sha256.Sum256(data))
	for range Max {
		v = extend(v, sha256.Sum256(other))
	}
	long := io.MultiReader(bytes.NewReader(tpmtest.IMAEntry(10, data, false)), bytes.NewReader(bytes.Repeat(one, Max)))
	if got, err := Shorten(context.Background(), long, v, file); err != nil || got != nil {
		t.Errorf("%v %v", got != nil, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Shorten(ctx, bytes.NewReader(raw), v, file); !problem.Is(err, problem.ReasonCanceled) {
		t.Error(err)
	}
}

// FuzzIMA reads the kernel's lists and what evidence has of them.
func FuzzIMA(f *testing.F) {
	data := tpmtest.IMAData(sum("me"), "/me")
	f.Add(tpmtest.IMAEntry(10, data, false), data)
	f.Add(tpmtest.IMAEntry(10, data, true), []byte("x"))
	f.Fuzz(func(t *testing.T, list, data []byte) {
		v := extend([32]byte{}, sha256.Sum256(data))
		got, err := Shorten(context.Background(), bytes.NewReader(list), v, sum("me"))
		if err == nil && got != nil {
			if files, err := got.Verify(v); err != nil || !files[sum("me")] {
				t.Fatalf("%v %v", files, err)
			}
		}
		d := sha256.Sum256(data)
		l := List{Start: make([]byte, 32), Digests: d[:], Entries: []Entry{{Data: data}}}
		if files, err := l.Verify(v); err == nil && len(files) != 1 {
			t.Fatal(files)
		}
	})
}
