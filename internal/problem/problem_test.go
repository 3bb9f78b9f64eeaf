package problem

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"
)

// What went wrong with a file of this machine is not a matter of a store that is being reopened.
func TestLocal(t *testing.T) {
	for err, want := range map[error]Reason{
		&fs.PathError{Op: "mkdir", Path: "/x", Err: os.ErrPermission}: ReasonPermissions,
		&fs.PathError{Op: "open", Path: "/x", Err: os.ErrNotExist}:    ReasonInvalid,
	} {
		p := Local(err, "making %s", "/x")
		if p.Reason != want || p.Kind.ExitCode() != 1 || !errors.Is(p, err) || strings.Contains(p.WayOut(), "store") || p.Message != "making /x: "+err.Error() {
			t.Errorf("%v: %+v, %s", err, p, p.WayOut())
		}
	}
}

// A cause gives its sentence to the next message, and not its own kind and reason, which may be others.
func TestWrapTakesTheSentence(t *testing.T) {
	cause := New(ReasonInvalid, "nobody can be asked")
	p := Wrap(cause, ReasonCanceled, "asking")
	if p.Message != "asking: nobody can be asked" || !errors.Is(p, cause) {
		t.Errorf("it says %q", p.Message)
	}
}
