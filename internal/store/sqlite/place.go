package sqlite

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A file that was removed or replaced goes on taking writes and syncs from whoever has it open, and is gone when he
// closes it. So a commit counts only if the files that it went to are still those that the next Open will find.

// place is which file stands under a name.
type place struct{ dev, ino uint64 }

func placeOf(path string) (place, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return place{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return place{uint64(st.Dev), st.Ino}, nil
}

// locate remembers the files of a store that was just opened.
func (s *Store) locate() (err error) {
	for i, name := range s.files() {
		if s.places[i], err = placeOf(name); err != nil {
			return err
		}
	}
	// What is open is what was found, or it was exchanged in between.
	var st unix.Stat_t
	if err := unix.Fstat(int(s.copying.Fd()), &st); err != nil {
		return fmt.Errorf("looking at %s: %w", s.copying.Name(), err)
	}
	if s.places[0] != (place{uint64(st.Dev), st.Ino}) {
		return fmt.Errorf("%s was replaced while it was being opened", s.copying.Name())
	}
	return nil
}

func (s *Store) files() [2]string {
	return [2]string{filepath.Join(s.dir, dbName), filepath.Join(s.dir, walName)}
}

// inPlace says whether the files are still there.
func (s *Store) inPlace() error {
	for i, path := range s.files() {
		now, err := placeOf(path)
		if err == nil && now == s.places[i] {
			continue
		}
		what := "was replaced"
		if err != nil {
			what = "is gone"
		}
		err = fmt.Errorf("%s %s while it was in use", path, what)
		if i == 0 && s.removed() {
			err = fmt.Errorf("%w: until this process ends its content is in /proc/%d/fd/%d, and what was written last in %s",
				err, os.Getpid(), s.copying.Fd(), walName)
		}
		return err
	}
	return nil
}

// removed reports whether the database has no name any more.
func (s *Store) removed() bool {
	var st unix.Stat_t
	return unix.Fstat(int(s.copying.Fd()), &st) == nil && st.Nlink == 0
}
