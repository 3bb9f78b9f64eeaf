package sqlite

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/store"
)

// What is written to a file that nobody will find again was not written: nothing is acknowledged any more, and what was
// acknowledged before can be brought back.
func TestFilesMovedAway(t *testing.T) {
	ctx := context.Background()
	fd := regexp.MustCompile(`/proc/[0-9]+/fd/[0-9]+`)
	for name, c := range map[string]struct {
		spoil, mend func(t *testing.T, dir, cause string)
		want        string
	}{
		"the database is renamed, and named again": {
			func(t *testing.T, dir, _ string) {
				must(t, os.Rename(filepath.Join(dir, dbName), filepath.Join(dir, "away")))
			},
			func(t *testing.T, dir, _ string) {
				must(t, os.Rename(filepath.Join(dir, "away"), filepath.Join(dir, dbName)))
			},
			dbName + " is gone",
		},
		"the database is removed, and saved": {
			func(t *testing.T, dir, _ string) { must(t, os.Remove(filepath.Join(dir, dbName))) },
			func(t *testing.T, dir, cause string) {
				text, err := os.ReadFile(fd.FindString(cause))
				must(t, err)
				must(t, os.WriteFile(filepath.Join(dir, dbName), text, 0o600))
			},
			dbName + " is gone",
		},
		"the database is replaced by a copy of itself": {
			func(t *testing.T, dir, _ string) {
				text, err := os.ReadFile(filepath.Join(dir, dbName))
				must(t, err)
				must(t, os.WriteFile(filepath.Join(dir, "copy"), text, 0o600))
				must(t, os.Rename(filepath.Join(dir, "copy"), filepath.Join(dir, dbName)))
			},
			func(*testing.T, string, string) {},
			dbName + " was replaced",
		},
		"the log is removed": {
			func(t *testing.T, dir, _ string) { must(t, os.Remove(filepath.Join(dir, walName))) },
			func(*testing.T, string, string) {},
			walName + " is gone",
		},
		"the directory is renamed, and named again": {
			func(t *testing.T, dir, _ string) { must(t, os.Rename(dir, dir+".away")) },
			func(t *testing.T, dir, _ string) { must(t, os.Rename(dir+".away", dir)) },
			dbName + " is gone",
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "s")
			s := mustCreate(t, dir)
			appendN(t, s, 5, 100)
			acked := s.head.Size
			c.spoil(t, dir, "")
			err := s.Append(ctx, fill(s.head, 1, 100))
			if !errors.Is(err, store.ErrUnknown) || !strings.Contains(fmt.Sprint(err), c.want) {
				t.Fatalf("a write to it: %v", err)
			}
			if _, again := s.Head(ctx); !errors.Is(again, store.ErrFatal) {
				t.Fatalf("after it: %v", again)
			}
			_ = s.Close() // the handle is dead, and has said so
			c.mend(t, dir, err.Error())
			s = mustOpen(t, dir)
			if n := checkCopy(t, s); n != acked && n != acked+1 {
				t.Errorf("%d entries, acknowledged were %d", n, acked)
			}
			appendN(t, s, 3, 100)
			must(t, s.Close())
		})
	}
}
