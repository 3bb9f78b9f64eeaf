package server

import (
	"os"
	"path/filepath"
	"testing"
)

// The cursor is read back as it was written, and by its own environment only.
func TestToldUntil(t *testing.T) {
	c := toldUntil{filepath.Join(t.TempDir(), noticesFile), "sha256:ab"}
	if _, known := c.Load(); known {
		t.Error("a file that is not there is known")
	}
	if err := c.Save(1 << 40); err != nil {
		t.Fatal(err)
	}
	if next, known := c.Load(); !known || next != 1<<40 {
		t.Errorf("%d, %v", next, known)
	}
	if _, known := (toldUntil{c.path, "sha256:cd"}).Load(); known {
		t.Error("another environment's is read")
	}
	for _, text := range []string{"", "sha256:ab", "sha256:ab x\n", "sha256:ab -1\n", "sha256:ab 1 2\n"} {
		if err := os.WriteFile(c.path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, known := c.Load(); known {
			t.Errorf("%q is known", text)
		}
	}
}
