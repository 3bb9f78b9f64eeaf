package workload

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailment/bailment/internal/agent/localapi"
	"github.com/bailment/bailment/internal/agent/workload/kubelet"
	"github.com/bailment/bailment/internal/problem"
)

// TestMain lets the test binary be the process at the other end.
func TestMain(m *testing.M) {
	if socket := os.Getenv("WORKLOAD_TEST_SOCKET"); socket != "" {
		asProcess(socket)
		return
	}
	os.Exit(m.Run())
}

// asProcess connects, if it has not yet, and does what it is told on its standard input.
func asProcess(socket string) {
	if socket != "connected" {
		c, err := net.Dial("unix", socket)
		if err != nil {
			fmt.Println(err)
			return
		}
		f, err := c.(*net.UnixConn).File()
		if err != nil {
			fmt.Println(err)
			return
		}
		// The connection outlives an execve.
		if _, err := unix.FcntlInt(f.Fd(), unix.F_SETFD, 0); err != nil {
			fmt.Println(err)
			return
		}
	}
	fmt.Println("ready")
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		if program, ok := strings.CutPrefix(in.Text(), "exec "); ok {
			fmt.Println(syscall.Exec(program, []string{program}, []string{"WORKLOAD_TEST_SOCKET=connected"}))
			return
		}
	}
}

// plain measures without the agent's turns and memory.
func plain(_ context.Context, _ uint32, open func(int) (*os.File, error)) (Executable, error) {
	f, err := open(0)
	if err != nil {
		return Executable{}, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return Executable{}, err
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return Executable{}, err
	}
	return Executable{Confirmed(int(f.Fd()), &st), hex.EncodeToString(h.Sum(nil)), SourceMeasured}, nil
}

func inspector(t testing.TB, cfg Config) *Inspector {
	t.Helper()
	if cfg.Measure == nil {
		cfg.Measure = plain
	}
	i, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if i.proc == nil {
		t.Fatal("there is no /proc")
	}
	t.Cleanup(func() { i.Close() })
	return i
}

// other is a process that connected.
type other struct {
	t       testing.TB
	cmd     *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Reader
	conn    *net.UnixConn
	program string
	digest  string
}

// program copies the test binary, so that it can be deleted and replaced.
func program(t testing.TB, path string) (digest string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	// What the file is called is added to it: an ELF file may be longer than its sections, and each digest is another.
	content = append(content, path...)
	if err := os.WriteFile(path, content, 0o755); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(content))
}

func start(t testing.TB) *other {
	t.Helper()
	dir := t.TempDir()
	o := &other{t: t, program: filepath.Join(dir, "app (1) R 2")}
	o.digest = program(t, o.program)
	socket := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	o.cmd = exec.Command(o.program)
	o.cmd.Env = []string{"WORKLOAD_TEST_SOCKET=" + socket}
	o.in, err = o.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := o.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	o.out = bufio.NewReader(out)
	if err := o.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.end)
	if err := l.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if o.conn, err = l.AcceptUnix(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.conn.Close() })
	o.ready()
	return o
}

func (o *other) ready() {
	o.t.Helper()
	if line, err := o.out.ReadString('\n'); err != nil || line != "ready\n" {
		o.t.Fatalf("%q, %v", line, err)
	}
}

func (o *other) execute(path string) {
	o.t.Helper()
	if _, err := fmt.Fprintf(o.in, "exec %s\n", path); err != nil {
		o.t.Fatal(err)
	}
	o.ready()
}

// end kills and reaps.
func (o *other) end() {
	if o.cmd.ProcessState == nil {
		_ = o.cmd.Process.Kill()
		_ = o.cmd.Wait()
	}
}

func (o *other) open(i *Inspector) *Process {
	o.t.Helper()
	p, err := i.Open(o.conn)
	if err != nil {
		o.t.Fatal(err)
	}
	o.t.Cleanup(func() { p.Close() })
	return p
}

func told(t testing.TB, p *Process) map[string]any {
	t.Helper()
	c, err := p.Claims(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func reason(t *testing.T, what string, err error, want problem.Reason) {
	t.Helper()
	if !problem.Is(err, want) {
		t.Errorf("%s: %v, want %s", what, err, want)
	}
}

func TestClaimsOfAProcess(t *testing.T) {
	i := inspector(t, Config{Parents: MaxParents})
	o := start(t)
	p := o.open(i)
	c := told(t, p)
	u, process := c["unix"].(map[string]any), c["process"].(map[string]any)
	groups, err := os.Getgroups()
	if err != nil {
		t.Fatal(err)
	}
	if u["uid"] != int64(os.Getuid()) || u["gid"] != int64(os.Getgid()) || len(u["groups"].([]any)) != len(groups) {
		t.Errorf("%v", u)
	}
	if process["pid"] != int64(o.cmd.Process.Pid) || process["path"] != o.program || process["sha256"] != o.digest || process["digest_source"] != SourceMeasured {
		t.Errorf("%v, want %s of %s", process, o.digest, o.program)
	}
	if held := process["held_by"]; held != HeldByPeerPidfd {
		t.Logf("this kernel has no SO_PEERPIDFD: held by %v", held)
	}
	parents := process["parents"].([]any)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if mother := parents[0].(map[string]any); mother["pid"] != int64(os.Getpid()) || mother["uid"] != int64(os.Getuid()) || mother["path"] != self {
		t.Errorf("%v", parents)
	}
	if len(parents) > 1 && parents[1].(map[string]any)["pid"] != int64(os.Getppid()) {
		t.Errorf("%v, want %d second", parents, os.Getppid())
	}
	if err := p.Same(); err != nil {
		t.Error(err)
	}
	// What `bailment run` hands over is told instead of its own program.
	c, err = p.ClaimsFor(t.Context(), Executable{"/bin/x", "00", SourceClaimed})
	if err != nil {
		t.Fatal(err)
	}
	process = c["process"].(map[string]any)
	if process["claimed_path"] != "/bin/x" || process["claimed_sha256"] != "00" || process["path"] != nil || process["sha256"] != nil || process["digest_source"] != SourceClaimed {
		t.Errorf("%v", process)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if p.Same() == nil {
		t.Error("a process that was let go is the same")
	}
	if _, err := p.Claims(t.Context()); err == nil {
		t.Error("claims of a process that was let go")
	}
}

// What happens to the process after it connected is noticed before anything is handed over, at whatever moment.
func TestChangesAreNoticed(t *testing.T) {
	for name, c := range map[string]struct {
		change func(o *other)
		want   problem.Reason // of Same, after Claims
		claims problem.Reason // of Claims, after Open; empty: there are claims, of what it is now
	}{
		"nothing": {func(*other) {}, "", ""},
		"another program": {func(o *other) {
			second := o.program + "2"
			program(o.t, second)
			o.execute(second)
		}, problem.ReasonProcessChanged, problem.ReasonProcessChanged},
		"the same program again": {func(o *other) { o.execute(o.program) }, problem.ReasonProcessChanged, problem.ReasonProcessChanged},
		"there and back": {func(o *other) {
			second := o.program + "2"
			program(o.t, second)
			o.execute(second)
			o.execute(o.program)
		}, problem.ReasonProcessChanged, problem.ReasonProcessChanged},
		"its file is deleted": {func(o *other) {
			if err := os.Remove(o.program); err != nil {
				o.t.Fatal(err)
			}
		}, problem.ReasonProcessChanged, ""},
		"its file is replaced": {func(o *other) {
			program(o.t, o.program+"2")
			if err := os.Rename(o.program+"2", o.program); err != nil {
				o.t.Fatal(err)
			}
		}, problem.ReasonProcessChanged, ""},
		"it ends": {func(o *other) { o.end() }, problem.ReasonProcessGone, problem.ReasonProcessGone},
		"it is a zombie": {func(o *other) {
			p, err := unix.PidfdOpen(o.cmd.Process.Pid, 0)
			if err != nil {
				o.t.Fatal(err)
			}
			defer unix.Close(p)
			if err := o.cmd.Process.Kill(); err != nil {
				o.t.Fatal(err)
			}
			for {
				_, err := unix.Poll([]unix.PollFd{{Fd: int32(p), Events: unix.POLLIN}}, 10_000)
				if err == nil {
					return
				}
				if !errors.Is(err, unix.EINTR) { // Go's scheduler signals its own threads
					o.t.Fatal(err)
				}
			}
		}, problem.ReasonProcessGone, problem.ReasonProcessGone},
	} {
		for way, weaken := range ways {
			t.Run(name+", "+way, func(t *testing.T) {
				i := inspector(t, Config{})
				weaken(i)
				o := start(t)
				after, before := o.open(i), o.open(i)
				told(t, before)
				c.change(o)
				if err := before.Same(); c.want == "" && err != nil || c.want != "" && !problem.Is(err, c.want) {
					t.Errorf("after the claims: %v, want %s", err, c.want)
				}
				claims, err := after.Claims(t.Context())
				if c.claims != "" {
					reason(t, "claims", err, c.claims)
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				process := claims["process"].(map[string]any)
				if process["sha256"] != o.digest || (process["path"] != nil) != (c.want == "") {
					t.Errorf("%v", process)
				}
				if err := after.Same(); err != nil {
					t.Errorf("it did not change since: %v", err)
				}
			})
		}
	}
}

// ways are kernels, from the newest.
var ways = map[string]func(*Inspector){
	HeldByPeerPidfd: func(*Inspector) {},
	HeldByPidfd:     func(i *Inspector) { i.peerPidfd = lacking },
	HeldByStartTime: func(i *Inspector) { i.peerPidfd, i.pidfdOpen = lacking, lackingCall },
}

func lacking(int) (int, error)     { return -1, unix.ENOPROTOOPT }
func lackingCall(int) (int, error) { return -1, unix.ENOSYS }

func TestHowItIsHeld(t *testing.T) {
	o := start(t)
	for want, weaken := range ways {
		i := inspector(t, Config{})
		weaken(i)
		p := o.open(i)
		if p.HeldBy() != want && want != HeldByPeerPidfd {
			t.Errorf("held by %s, want %s", p.HeldBy(), want)
		}
		if told(t, p)["process"].(map[string]any)["held_by"] != p.HeldBy() {
			t.Errorf("%s is not told", p.HeldBy())
		}
		if p.Peer().PID != int32(o.cmd.Process.Pid) {
			t.Errorf("%+v", p.Peer())
		}
	}
}

// The connection can outlive the process that made it.
func TestProcessEndedBeforeItIsOpened(t *testing.T) {
	for way, weaken := range ways {
		i := inspector(t, Config{})
		weaken(i)
		o := start(t)
		o.end()
		_, err := i.Open(o.conn)
		reason(t, way, err, problem.ReasonProcessGone)
	}
}

// A number that somebody else got is never taken for the process that had it.
func TestRecycledNumbers(t *testing.T) {
	i := inspector(t, Config{})
	dead, alive := start(t), start(t)
	pidfd, err := unix.PidfdOpen(dead.cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	dead.end()
	me := localapi.Peer{UID: uint32(os.Getuid()), PID: int32(alive.cmd.Process.Pid)}
	_, err = i.hold(me, pidfd, HeldByPeerPidfd)
	reason(t, "a dead process's pidfd, and a living one's number", err, problem.ReasonProcessGone)

	stranger := me
	stranger.UID++
	_, err = i.hold(stranger, -1, HeldByStartTime)
	reason(t, "another user's process has the number", err, problem.ReasonProcessChanged)

	// Held by its directory and start time only.
	p, err := i.hold(me, -1, HeldByStartTime)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	late := *alive
	alive.end()
	reason(t, "it ended", p.Same(), problem.ReasonProcessGone)
	for again := range 3 {
		next := start(t)
		if !recycle(t, me.PID, &next) {
			t.Log("this user may not choose the next process's number, so no number was used twice")
			break
		}
		if next.cmd.Process.Pid != late.cmd.Process.Pid {
			continue // somebody else was faster
		}
		t.Logf("the number %d was used again, in round %d", me.PID, again)
		reason(t, "another process has its number", p.Same(), problem.ReasonProcessGone)
		break
	}
	// And if a kernel mixed them up: the start time is another.
	other := start(t)
	q, err := i.hold(localapi.Peer{UID: me.UID, PID: int32(other.cmd.Process.Pid)}, -1, HeldByStartTime)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	q.birth.start--
	reason(t, "another start time", q.Same(), problem.ReasonProcessChanged)
	q.birth.start++
	q.birth.image.startStack++
	reason(t, "another image", q.Same(), problem.ReasonProcessChanged)
}

// recycle has the next process of this machine get a number, if this user may say so, and starts one.
func recycle(t *testing.T, pid int32, next **other) bool {
	t.Helper()
	if os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(int(pid)-1)), 0) != nil {
		return false
	}
	*next = start(t)
	return true
}

// A process without a number here has the claims of its socket, and dies like others.
func TestProcessOfAnotherPIDNamespace(t *testing.T) {
	i := inspector(t, Config{Parents: 2})
	o := start(t)
	pidfd, err := unix.PidfdOpen(o.cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	p, err := i.hold(localapi.Peer{UID: 7, GID: 8, Groups: []uint32{9}}, pidfd, HeldByPeerPidfd)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	want := map[string]any{
		"unix":    map[string]any{"uid": int64(7), "gid": int64(8), "groups": []any{int64(9)}},
		"process": map[string]any{"held_by": HeldByPeerPidfd, "digest_source": SourceUnavailable},
	}
	if c := told(t, p); !reflect.DeepEqual(c, want) {
		t.Errorf("%v", c)
	}
	o.end()
	reason(t, "it ended", p.Same(), problem.ReasonProcessGone)
	// And on an old kernel nothing can be asked.
	q, err := i.hold(localapi.Peer{UID: 7}, -1, "")
	if err != nil {
		t.Fatal(err)
	}
	if c := told(t, q); c["process"].(map[string]any)["held_by"] != nil || q.Same() != nil || q.Close() != nil {
		t.Errorf("%v", c)
	}
}

// Where the agent may not look, there is no digest, and no refusal.
func TestExecutableThatMayNotBeRead(t *testing.T) {
	denied := func(context.Context, uint32, func(int) (*os.File, error)) (Executable, error) {
		return Executable{}, &fs.PathError{Op: "open", Path: "exe", Err: unix.EACCES}
	}
	p := start(t).open(inspector(t, Config{Measure: denied}))
	process := told(t, p)["process"].(map[string]any)
	if process["digest_source"] != SourceUnavailable || process["sha256"] != nil || process["path"] != nil || p.Same() != nil {
		t.Errorf("%v", process)
	}
	if os.Getuid() == 0 {
		t.Log("root may read every executable: what another user may, only a test without root shows")
		return
	}
	i := inspector(t, Config{Parents: 1})
	q, err := i.hold(localapi.Peer{PID: 1}, -1, HeldByPeerPidfd) // its pidfd changes nothing of what may be read
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	if process := told(t, q)["process"].(map[string]any); process["digest_source"] != SourceUnavailable || q.Same() != nil {
		t.Errorf("%v", process)
	}
}

func TestMeasuringFails(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want problem.Reason
	}{
		"overloaded":          {problem.New(problem.ReasonOverloaded, "late"), problem.ReasonOverloaded},
		"it changed":          {problem.New(problem.ReasonInvalid, "it changed meanwhile"), problem.ReasonInvalid},
		"no program any more": {unix.ENOENT, problem.ReasonProcessGone},
		"no process any more": {unix.ESRCH, problem.ReasonProcessGone},
	} {
		p := start(t).open(inspector(t, Config{Measure: func(context.Context, uint32, func(int) (*os.File, error)) (Executable, error) {
			return Executable{}, c.err
		}}))
		_, err := p.Claims(t.Context())
		reason(t, name, err, c.want)
	}
}

func TestMovedToAnotherCgroup(t *testing.T) {
	p := start(t).open(inspector(t, Config{}))
	told(t, p)
	p.mu.Lock()
	p.toldCgroup = append([]byte("99:name=planted:/elsewhere\n"), p.toldCgroup...)
	p.mu.Unlock()
	reason(t, "another cgroup than told", p.Same(), problem.ReasonProcessChanged)
}

type pods func(podUID, containerID string) (kubelet.Pod, error)

func (f pods) Find(_ context.Context, p, c string) (kubelet.Pod, error) { return f(p, c) }

// The pod is asked for by what the kernel says; a kubelet that is away is an error, and never a process without a pod.
func TestPodsAreAskedFor(t *testing.T) {
	inPod := []byte("0::/kubepods.slice/kubepods-pod" + strings.ReplaceAll(uid, "-", "_") + ".slice/cri-containerd-" + id1 + ".scope\n")
	labels := map[string]string{"app.kubernetes.io/name": "db"}
	var asked []string
	var answer error
	i := inspector(t, Config{Pods: pods(func(p, c string) (kubelet.Pod, error) {
		asked = append(asked, p, c)
		return kubelet.Pod{Namespace: "payments", Name: "db-0", UID: p, ServiceAccount: "db", Container: "main", ImageID: "sha256:00", Labels: labels, Terminating: true}, answer
	})})
	i.host = true
	p := start(t).open(i)
	out := make(map[string]any)
	if err := p.placeClaims(t.Context(), inPod, out); err != nil {
		t.Fatal(err)
	}
	k8s := out["k8s"].(map[string]any)
	want := map[string]any{
		"namespace": "payments", "pod": "db-0", "pod_uid": uid, "service_account": "db", "container": "main", "image_id": "sha256:00",
		"terminating": true, "labels": map[string]any{"app.kubernetes.io/name": "db"},
	}
	if !reflect.DeepEqual(k8s, want) || !reflect.DeepEqual(asked, []string{uid, id1}) {
		t.Errorf("%v, asked %v", k8s, asked)
	}
	for n := range maxLabels {
		labels[strconv.Itoa(n)] = ""
	}
	if err := p.placeClaims(t.Context(), inPod, out); err != nil || out["k8s"].(map[string]any)["labels"] != nil || out["k8s"].(map[string]any)["labels_left_out"] != int64(maxLabels+1) {
		t.Errorf("%v, %v", out["k8s"], err)
	}
	answer = problem.New(problem.ReasonUnreachable, "away")
	reason(t, "the kubelet is away", p.placeClaims(t.Context(), inPod, out), problem.ReasonUnreachable)
	// Who only says that he is in a pod, or where the agent doesn't see the host's cgroups, is not asked for.
	asked = nil
	delegated := strings.Replace(string(inPod), "/kubepods.slice", "/user.slice/user-1000.slice/user@1000.service/kubepods.slice", 1)
	if err := p.placeClaims(t.Context(), []byte(delegated), make(map[string]any)); err != nil || asked != nil {
		t.Errorf("%v, asked %v", err, asked)
	}
	i.host = false
	if err := p.placeClaims(t.Context(), inPod, make(map[string]any)); err != nil || asked != nil {
		t.Errorf("%v, asked %v", err, asked)
	}
}

// Close while others ask: an error, and no descriptor of somebody else.
func TestCloseWhileInUse(t *testing.T) {
	i := inspector(t, Config{Parents: 2})
	o := start(t)
	for range 20 {
		p, err := i.Open(o.conn)
		if err != nil {
			t.Fatal(err)
		}
		var work sync.WaitGroup
		for range 3 {
			work.Go(func() {
				for {
					c, err := p.ClaimsFor(context.Background(), Executable{Source: SourceClaimed})
					if err != nil {
						return
					}
					if c["process"].(map[string]any)["pid"] != int64(o.cmd.Process.Pid) {
						t.Errorf("%v", c)
					}
				}
			})
		}
		if err := p.Same(); err != nil {
			t.Error(err)
		}
		p.Close()
		work.Wait()
	}
}

// A process that asks again and again leaves nothing open.
func TestNothingStaysOpen(t *testing.T) {
	i := inspector(t, Config{Parents: 2})
	o := start(t)
	open := func() int {
		t.Helper()
		all, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	// Otherwise the collector closes what was forgotten.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	before := open()
	const rounds = 20
	for range rounds {
		p := o.open(i)
		told(t, p)
		if err := p.Same(); err != nil {
			t.Error(err)
		}
		p.Close()
		if _, err := i.hold(localapi.Peer{UID: p.Peer().UID + 1, PID: p.Peer().PID}, -1, HeldByStartTime); err == nil {
			t.Error("held for another user")
		}
	}
	if after := open(); after >= before+rounds {
		t.Errorf("%d descriptors are open, %d were", after, before)
	}
}

func TestNew(t *testing.T) {
	for name, cfg := range map[string]Config{"nothing measures": {}, "too many parents": {Measure: plain, Parents: MaxParents + 1}, "too few": {Measure: plain, Parents: -1}} {
		_, err := New(cfg)
		reason(t, name, err, problem.ReasonInternal)
	}
	if !errors.Is(unix.ENOENT, fs.ErrNotExist) {
		t.Error("ended relies on it")
	}
}

// The names of claims that code gives are those that the list has, which the reference repeats.
func TestClaimsAreListed(t *testing.T) {
	i := inspector(t, Config{Parents: 1, Pods: pods(func(p, _ string) (kubelet.Pod, error) {
		return kubelet.Pod{Namespace: "n", Name: "p", UID: p, ServiceAccount: "s", Node: "n", Container: "c", Image: "i", ImageID: "i", Terminating: true}, nil
	})})
	i.host = true
	o := start(t)
	p := o.open(i)
	found := make(map[string]bool)
	add := func(c map[string]any) {
		for group, v := range c {
			for name := range v.(map[string]any) {
				found[group+"."+name] = true
			}
		}
	}
	add(told(t, p))
	for _, e := range []Executable{{"/x", "00", SourceClaimed}, {"/x", "00", SourceMeasured}} {
		c, err := p.ClaimsFor(t.Context(), e)
		if err != nil {
			t.Fatal(err)
		}
		add(c)
	}
	for _, path := range []string{
		"/kubepods.slice/kubepods-pod" + strings.ReplaceAll(uid, "-", "_") + ".slice/cri-containerd-" + id1 + ".scope",
		"/user.slice/user-1000.slice/user@1000.service/app.slice/app.service/docker-" + id1 + ".scope",
		"/docker/" + id1 + "/docker/" + id2,
	} {
		c := make(map[string]any)
		if err := p.placeClaims(t.Context(), []byte("0::"+path+"\n"), c); err != nil {
			t.Fatal(err)
		}
		add(c)
	}
	i.host = false
	c := make(map[string]any)
	if err := p.placeClaims(t.Context(), []byte("0::/x\n"), c); err != nil {
		t.Fatal(err)
	}
	c["k8s"] = podClaims(kubelet.Pod{Labels: map[string]string{"x": strings.Repeat("y", maxLabelBytes)}})
	add(c)
	page, err := os.ReadFile("../../../docs/reference/workload-claims.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range Names() {
		if !found[name] {
			t.Errorf("%s is listed and never told", name)
		}
		if !strings.Contains(string(page), "| `"+name+"` |") {
			t.Errorf("%s is not in the reference", name)
		}
		delete(found, name)
	}
	if len(found) > 0 {
		t.Errorf("told and not listed: %v", found)
	}
	if rows := strings.Count(string(page), "\n| `"); rows != len(Names()) {
		t.Errorf("the reference has %d claims, want %d", rows, len(Names()))
	}
}

// BenchmarkClaims is what a fetch from an agent's cache pays for knowing who asks: connection accepted, answer at hand, executable measured
// before.
func BenchmarkClaims(b *testing.B) {
	o := start(b)
	digest := o.digest
	cached := func(_ context.Context, _ uint32, open func(int) (*os.File, error)) (Executable, error) {
		f, err := open(0)
		if err != nil {
			return Executable{}, err
		}
		defer f.Close()
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			return Executable{}, err
		}
		return Executable{Confirmed(int(f.Fd()), &st), digest, SourceMeasured}, nil
	}
	for name, parents := range map[string]int{"no parents": 0, "three parents": 3} {
		i := inspector(b, Config{Measure: cached, Parents: parents})
		b.Run("all, "+name, func(b *testing.B) {
			b.ReportAllocs()
			defer processor(b)()
			for b.Loop() {
				p, err := i.Open(o.conn)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := p.Claims(b.Context()); err != nil {
					b.Fatal(err)
				}
				if err := p.Same(); err != nil {
					b.Fatal(err)
				}
				p.Close()
			}
		})
		p := o.open(i)
		b.Run("claims, "+name, func(b *testing.B) {
			b.ReportAllocs()
			defer processor(b)()
			for b.Loop() {
				if _, err := p.Claims(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("same, "+name, func(b *testing.B) {
			defer processor(b)()
			for b.Loop() {
				if err := p.Same(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// processor reports the processor's time, which a busy machine changes less than the clock's.
func processor(b *testing.B) func() {
	used := func() time.Duration {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before := used()
	return func() { b.ReportMetric(float64(used()-before)/float64(b.N), "cpu-ns/op") }
}
