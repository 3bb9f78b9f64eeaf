package workload

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bailment/bailment/internal/problem"
)

// A real process in real cgroups, which only root can make: of a container's name in a slice, below a service of the system, and back.
func TestRealCgroups(t *testing.T) {
	root := ""
	for _, at := range []string{"/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
		if unix.Access(filepath.Join(at, "cgroup.procs"), unix.W_OK) == nil {
			root = at
			break
		}
	}
	i := inspector(t, Config{})
	top := filepath.Join(root, "bailmenttest"+strconv.Itoa(os.Getpid())+".slice")
	if root == "" || !i.host {
		t.Log("this user has no say in cgroups here, or sees a part of them: TestPlaces and TestHierarchies have the paths without a kernel")
		return
	}
	if err := os.Mkdir(top, 0o755); err != nil {
		t.Logf("no cgroup can be made here: %v", err)
		return
	}
	o := start(t)
	scope, service := filepath.Join(top, "docker-"+id1+".scope"), filepath.Join(top, "payments.service")
	delegated := filepath.Join(service, "docker-"+id1+".scope")
	t.Cleanup(func() {
		o.end()
		for _, dir := range []string{delegated, service, scope, top} {
			if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("left behind: %v", err)
			}
		}
	})
	for _, dir := range []string{scope, service, delegated} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p := o.open(i)
	told(t, p)
	for _, c := range []struct {
		dir, unit string
		container map[string]any
	}{
		{scope, "docker-" + id1 + ".scope", map[string]any{"id": id1, "runtime": runtimeDocker}},
		{service, "payments.service", nil},
		{delegated, "payments.service", map[string]any{"claimed_id": id1, "claimed_runtime": runtimeDocker}},
	} {
		if err := os.WriteFile(filepath.Join(c.dir, "cgroup.procs"), []byte(strconv.Itoa(o.cmd.Process.Pid)), 0o644); err != nil {
			t.Fatal(err)
		}
		reason(t, "moved since the claims", p.Same(), problem.ReasonProcessChanged)
		claims := told(t, p)
		unit := claims["systemd"].(map[string]any)
		if unit["unit"] != c.unit || unit["slice"] != filepath.Base(top) || claims["cgroup"].(map[string]any)["path"] != c.dir[len(root):] {
			t.Errorf("%s: %v", c.dir, claims)
		}
		if got := claims["container"]; fmt.Sprint(got) != fmt.Sprint(any(c.container)) && !(got == nil && c.container == nil) {
			t.Errorf("%s: %v", c.dir, got)
		}
		if err := p.Same(); err != nil {
			t.Error(err)
		}
	}
}
