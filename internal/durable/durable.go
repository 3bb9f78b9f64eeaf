// Package durable makes files and directories that survive a power cut, and does nothing else.
//
// Guaranteed: when a function here returns nil, both the contents and the name are on stable
// storage as far as fsync(2) can say so, and a file is seen whole or not at all. Not guaranteed:
// that the disk tells the truth about its cache; anything about a file that somebody else writes
// at the same time; that an error leaves nothing behind (a WriteFile that fails after its rename
// may have replaced the file: the caller reads it again if it matters).
//
// The order is the point: contents are synced before the name, because after a power cut a name
// may otherwise refer to an empty file; the directory is synced after the name, because otherwise
// the name itself may be gone. It is a leaf: everything that keeps a file of its own uses it.
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// WriteFile replaces the file at path, or makes it, with the given contents and exactly the
// permissions perm (the umask does not apply: these files hold keys and 0600 must mean 0600).
// A reader sees the old contents or the new ones. A symbolic link at path is replaced, not
// followed. Concurrent calls for one path are safe; one of them wins.
func WriteFile(path string, data []byte, perm fs.FileMode) (err error) {
	dir := filepath.Dir(path)
	// In the same directory, because a rename is atomic only within one file system.
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".tmp-*")
	if err != nil {
		return fmt.Errorf("making a temporary file: %w", err)
	}
	tmp := f.Name()
	defer func() {
		if err != nil {
			os.Remove(tmp) // harmless after the rename: the name is gone then
		}
	}()
	if err := fill(f, data, perm); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("putting the file in place: %w", err)
	}
	return SyncDir(dir)
}

// CreateExclusive is WriteFile for a file that must not exist yet: it fails with an error that is
// fs.ErrExist when it does (a dangling symbolic link counts), and then has changed nothing. When
// it fails later, or the machine stops, the name is absent or the file is whole.
func CreateExclusive(path string, data []byte, perm fs.FileMode) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".tmp-*")
	if err != nil {
		return fmt.Errorf("making a temporary file: %w", err)
	}
	defer os.Remove(f.Name())
	if err := fill(f, data, perm); err != nil {
		return err
	}
	// A link, not O_EXCL on the name itself: that would show the file before it has its contents.
	// A link, not a rename: that would replace what is there.
	if err := os.Link(f.Name(), path); err != nil {
		return fmt.Errorf("putting the file in place: %w", err)
	}
	return SyncDir(dir)
}

// fill writes, sets permissions, syncs and closes. An error of Close counts: on network file
// systems it is where a failed write is reported.
func fill(f *os.File, data []byte, perm fs.FileMode) error {
	_, err := f.Write(data)
	if err == nil {
		err = f.Chmod(perm)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// MkdirAll makes a directory and its missing parents with the permissions perm (the umask
// applies), and syncs every directory that got a new name in it. It is not an error if it exists.
func MkdirAll(path string, perm fs.FileMode) error {
	path = filepath.Clean(path)
	switch st, err := os.Stat(path); {
	case err == nil && st.IsDir():
		return nil
	case err == nil:
		return &fs.PathError{Op: "mkdir", Path: path, Err: errors.New("exists and is not a directory")}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	parent := filepath.Dir(path)
	if parent != path {
		if err := MkdirAll(parent, perm); err != nil {
			return err
		}
	}
	// Somebody else may have made it meanwhile; the sync below is still ours to do, because we
	// are about to say that it is durable.
	if err := os.Mkdir(path, perm); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return SyncDir(parent)
}

// Rename is os.Rename followed by a sync of the directory, for a file already synced. Both names
// must be in the same directory.
func Rename(from, to string) error {
	if filepath.Dir(from) != filepath.Dir(to) {
		return fmt.Errorf("renaming %s to %s: not in one directory", from, to)
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(to))
}

// SyncDir makes the names in a directory durable: what was created, renamed or removed in it.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := d.Sync(); err != nil {
		d.Close()
		return fmt.Errorf("syncing directory: %w", err)
	}
	return d.Close()
}
