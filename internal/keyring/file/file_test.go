package file

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bailment/bailment/internal/keyring"
	"github.com/bailment/bailment/internal/keyring/holdertest"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/seal"
)

func source(t testing.TB) *seal.Source {
	t.Helper()
	src, err := seal.NewSource(nil)
	if err != nil {
		t.Fatal(err)
	}
	return src
}

func TestConformance(t *testing.T) {
	src := source(t)
	holdertest.Run(t, func() (keyring.Holder, func() keyring.Holder) {
		path := filepath.Join(t.TempDir(), "root.key")
		h, err := Create(path, src)
		if err != nil {
			t.Fatal(err)
		}
		return h, func() keyring.Holder {
			h, err := Open(path)
			if err != nil {
				t.Fatal(err)
			}
			return h
		}
	})
}

func TestCreate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "root.key")
	old := unix.Umask(0) // the mode must not depend on it
	h, err := Create(path, source(t))
	unix.Umask(old)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Lstat(path)
	if err != nil || st.Mode() != 0o600 || st.Size() != int64(size) {
		t.Errorf("%v %v", st, err)
	}
	if d := h.Descriptor(); d.Kind != "file" || !d.DevelopmentOnly || len(d.ID) != 32 {
		t.Errorf("%+v", d)
	}
	before, _ := os.ReadFile(path)
	if _, err := Create(path, source(t)); !problem.Is(err, problem.ReasonExists) {
		t.Errorf("created over another: %v", err)
	}
	if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
		t.Error("the key there was touched")
	}
	// A dangling link is something too.
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink("nowhere", link); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(link, source(t)); !problem.Is(err, problem.ReasonExists) {
		t.Errorf("created through a link: %v", err)
	}
	if _, err := Create(filepath.Join(t.TempDir(), "no", "such", "dir"), source(t)); err == nil {
		t.Error("created in no directory")
	}
}

func TestOpenRefusesPlaces(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "root.key")
	if _, err := Create(path, source(t)); err != nil {
		t.Fatal(err)
	}
	for mode := range os.FileMode(0o1000) {
		if mode == 0o600 {
			continue
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path); !problem.Is(err, problem.ReasonPermissions) {
			t.Fatalf("mode %04o: %v", mode, err)
		}
	}
	if err := os.Chmod(path, 0o600|os.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); !problem.Is(err, problem.ReasonPermissions) {
		t.Errorf("setuid: %v", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); err != nil {
		t.Fatal(err)
	}

	link, fifo, hard := filepath.Join(dir, "link"), filepath.Join(dir, "fifo"), filepath.Join(dir, "hard")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string]string{"symbolic link": link, "named pipe": fifo, "directory": dir, "device": "/dev/zero"} {
		if _, err := Open(p); !problem.Is(err, problem.ReasonPermissions) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.Link(path, hard); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); !problem.Is(err, problem.ReasonPermissions) {
		t.Errorf("hard link: %v", err)
	}
	if _, err := Open(filepath.Join(dir, "none")); !problem.Is(err, problem.ReasonNotFound) {
		t.Errorf("nothing there: %v", err)
	}
}

func TestOwner(t *testing.T) {
	st := unix.Stat_t{Mode: unix.S_IFREG | 0o600, Uid: 1000, Nlink: 1}
	if err := checkStat("p", &st, 1000); err != nil {
		t.Error(err)
	}
	if err := checkStat("p", &st, 0); !problem.Is(err, problem.ReasonPermissions) {
		t.Errorf("root reads another user's key: %v", err)
	}
}

func TestOpenRefusesContents(t *testing.T) {
	path := filepath.Join(t.TempDir(), "root.key")
	if _, err := Create(path, source(t)); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	refuse := func(name string, text []byte) {
		t.Helper()
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Open(path)
		if !problem.Is(err, problem.ReasonTampered) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(fmt.Sprint(err), string(good[30:50])) {
			t.Errorf("%s: the error quotes the key", name)
		}
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		refuse(fmt.Sprintf("byte %d", i), bad)
	}
	refuse("empty", nil)
	refuse("cut", good[:len(good)-1])
	refuse("longer", append(bytes.Clone(good), '\n'))
	refuse("huge", bytes.Repeat(good, 1000))
	refuse("carriage returns", bytes.ReplaceAll(good, []byte("\n"), []byte("\r\n")))
	refuse("version 2", bytes.Replace(good, []byte("v1"), []byte("v2"), 1))
	refuse("upper case check", append(bytes.Clone(good[:len(good)-17]), bytes.ToUpper(good[len(good)-17:])...))
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); err != nil {
		t.Error(err)
	}
}

// A file and a wrapped key of version 1 open for ever.
func TestVector(t *testing.T) {
	path := filepath.Join(t.TempDir(), "root.key")
	const text = "bailment root key v1\nkey AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\ncheck 2f946507f88754aa\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	h, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if h.Descriptor().ID != "e81ed16ea5c68bf3e3055aa68e044091" {
		t.Errorf("ID %s", h.Descriptor().ID)
	}
	c, _ := seal.KeyContext{Genesis: [32]byte{1, 2, 3}, Name: "kek", Number: 1}.Encode()
	const wrapped = "80b84020bc57d854d5d710b8e03885a75c93d4cfc223e5b9e34681f2f80bac6bc9efc8d61aa93509bcc017b0a30b19162c9ce8c9ec6fe997a3f6e799"
	b, _ := hex.DecodeString(wrapped)
	key, err := h.Unwrap(t.Context(), c, b)
	if err != nil || string(key.Expose()) != "0123456789abcdef0123456789abcdef" {
		w, _ := h.Wrap(t.Context(), c, seal.NewSecret([]byte("0123456789abcdef0123456789abcdef")))
		t.Errorf("%v; a new one is %x", err, w)
	}
}

func FuzzParse(f *testing.F) {
	good := format(seal.NewSecret(bytes.Repeat([]byte{7}, seal.KeySize)))
	f.Add(good)
	f.Add([]byte(header))
	f.Fuzz(func(t *testing.T, text []byte) {
		key, err := parse(text)
		if err == nil && !bytes.Equal(format(key), text) {
			t.Fatal("two texts for one key")
		}
	})
}
