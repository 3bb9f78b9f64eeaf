package agent

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/bailment/bailment/client/clienttest"
	"github.com/bailment/bailment/internal/agent/localapi"
	"github.com/bailment/bailment/internal/agent/workload"
	"github.com/bailment/bailment/internal/agent/workload/kubelet"
	"github.com/bailment/bailment/internal/attest/jointoken"
	"github.com/bailment/bailment/internal/attest/methods"
	"github.com/bailment/bailment/internal/problem"
)

// podCgroup is where a container of the pod db-0 is, which the kubelet's recorded answer has.
const podCgroup = "0::/kubepods.slice/kubepods-pod8dd5a3a8_0b8b_4e5f_9d2b_0f5a4d0e6c11.slice/cri-containerd-bb11223344556677bb11223344556677bb11223344556677bb11223344556677.scope\n"

// kubeletWith serves a kubelet's read-only port with one answer after the other.
func kubeletWith(t *testing.T, answer *atomic.Pointer[[]byte]) (address string) {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/pods" {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(*answer.Load())
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// inPod opens this very process, at the other end of a connection, as one of a pod. Only root can have a process be in such a cgroup, and
// the inspector has no setting for what the kernel says of it, on purpose: so the file that it reads is put in the place of the kernel's.
func inPod(t *testing.T, i *workload.Inspector) *workload.Process {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	asks, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = asks.Close() })
	conn, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	p, err := i.Open(conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	path := filepath.Join(t.TempDir(), "cgroup")
	if err := os.WriteFile(path, []byte(podCgroup), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	*(*bool)(unsafe.Pointer(reflect.ValueOf(i).Elem().FieldByName("host").UnsafeAddr())) = true
	read := (**os.File)(unsafe.Pointer(reflect.ValueOf(p).Elem().FieldByName("cgroup").UnsafeAddr()))
	if *read != nil {
		_ = (*read).Close()
	}
	*read = f
	return p
}

// The kubelet of the configuration is whom the agent asks about a process in a pod, also at each renewal: once the pod is deleted, nothing
// is vouched for any more.
func TestKubeletIsAsked(t *testing.T) {
	s, err := clienttest.New(clienttest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	s.Put(password.Name, []byte("v"))
	tok, err := s.Token("web-1")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	token := filepath.Join(dir, "token")
	if err := os.WriteFile(token, []byte(tok.Reveal()), 0o600); err != nil {
		t.Fatal(err)
	}
	pods, err := os.ReadFile("workload/kubelet/testdata/pods.json")
	if err != nil {
		t.Fatal(err)
	}
	var answer atomic.Pointer[[]byte]
	answer.Store(&pods)
	a, err := New(Config{
		Bootstrap: s.Bootstrap, StateDir: filepath.Join(dir, "state"), Method: jointoken.Name, Needs: map[string]string{jointoken.NeedToken: token},
		Methods: methods.All(), Kubelet: kubelet.Config{Address: kubeletWith(t, &answer), Node: "node-1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	unlock, err := a.prepare()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.keep(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		a.closeClients()
		unlock()
	})

	x, err := a.begin(someone)
	if err != nil {
		t.Fatal(err)
	}
	defer x.finish()
	p := inPod(t, a.workloads)
	x.asker = p
	if _, err := x.open(t.Context(), localapi.OpenRequest{Secrets: []localapi.Wanted{password}}, executable{"/bin/app", "", sourceClaimed}); err != nil {
		t.Fatal(err)
	}
	told := s.Claims()
	pod, _ := told[len(told)-1]["k8s"].(map[string]any)
	if pod["namespace"] != "payments" || pod["pod"] != "db-0" || pod["service_account"] != "db" || pod["container"] != "main" {
		t.Errorf("what was claimed of the pod: %v", told)
	}

	// Deleted and made anew, as a set of pods does it: the name stays.
	gone := []byte(strings.Replace(string(pods), "8dd5a3a8-0b8b-4e5f-9d2b-0f5a4d0e6c11", "8dd5a3a8-0b8b-4e5f-9d2b-0f5a4d0e6c12", 1))
	answer.Store(&gone)
	soon := time.Now().Add(10 * time.Second)
	for { // an answer is good for a second
		wait, enough := context.WithTimeout(t.Context(), 2*time.Second)
		err := x.attest(wait)
		enough()
		if problem.Is(err, problem.ReasonPodUnknown) {
			break
		}
		if err != nil || time.Now().After(soon) {
			t.Fatalf("a renewal of a deleted pod's process: %v", err)
		}
		<-time.After(50 * time.Millisecond)
	}
	n := len(s.Claims())
	wait, enough := context.WithTimeout(t.Context(), time.Second)
	defer enough()
	if _, err := (process{p}).Claims(wait); !problem.Is(err, problem.ReasonPodUnknown) {
		t.Errorf("the Workload API: %v", err)
	}
	if len(s.Claims()) != n {
		t.Error("a process of a deleted pod was vouched for")
	}
}
