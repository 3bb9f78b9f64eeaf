package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"golang.org/x/sys/unix"

	bailmentv1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/jwt/jwttest"
	"github.com/bailment/bailment/internal/attest/platform/platformtest"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/test/site"
	"github.com/bailment/bailment/test/site/sitetest"
)

const (
	githubJob   = "/ci/github/65/74"
	gitlabJob   = "/ci/gitlab/72/20/574"
	requestWord = "request-token-of-the-job"
	deployKey   = "value-of-the-deploy-key-7d31"
)

// service is a CI service with a job: the real shape of its tokens, signed by keys that the bundle pins.
type service struct {
	t      *testing.T
	method string
	issuer *jwttest.Issuer
	claims map[string]any
	asked  atomic.Int32
}

func newService(t *testing.T, method string) *service {
	t.Helper()
	shape := platformtest.Shapes(t, method)[0]
	return &service{t: t, method: method, issuer: jwttest.New(t, shape.Issuer, jose.RS256), claims: shape.Claims}
}

// begins serves the tokens of GitHub's job, and gives what a runner puts into the environment.
func (s *service) begins() []string {
	idp := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+requestWord {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"count": 1, "value": s.token(r.URL.Query().Get("audience"))})
	}))
	s.t.Cleanup(idp.Close)
	return []string{"GITHUB_ACTIONS=true", "ACTIONS_ID_TOKEN_REQUEST_URL=" + idp.URL + "/?api-version=2.0", "ACTIONS_ID_TOKEN_REQUEST_TOKEN=" + requestWord}
}

// pinKeys gives a page's authority the keys of the test's issuer: the service's own are asked for over the network.
const pinKeys = `printf "  keys: '%s'\n" "$KEYS" >> env/authorities/"$SERVICE".yaml`

// jobOf is an operator's place that is a job of a service too.
func jobOf(method string) func(t *testing.T, name string) reader {
	return func(t *testing.T, name string) reader {
		t.Helper()
		r, s := served(t, name)
		svc := newService(t, method)
		keys, err := json.Marshal(svc.issuer.Keys())
		s.Check(err)
		r.env = append(r.env, "KEYS="+string(keys), "SERVICE="+method)
		if method == "github" {
			r.env = append(r.env, svc.begins()...)
			return r
		}
		svc.issuer.URL = "https://gitlab.com"
		svc.claims = jwttest.With(svc.claims, map[string]any{"ref_protected": "true", "pipeline_source": "push"})
		audience := attest.Binding{Genesis: s.Genesis}.EnvironmentAudience()
		r.env = append(r.env, "GITLAB_CI=true", "BAILMENT_ID_TOKEN="+svc.token(audience))
		return r
	}
}

// token is one for an audience, made now.
func (s *service) token(audience string) string {
	n := s.asked.Add(1)
	now := time.Now()
	return string(s.issuer.Sign(jwttest.With(s.claims, map[string]any{
		"iss": s.issuer.URL, "aud": audience, "iat": now.Unix(), "exp": now.Add(5 * time.Minute).Unix(), "jti": fmt.Sprintf("%s-%d", s.method, n),
	})))
}

// authority is the service's in a bundle.
func (s *service) authority() []byte {
	s.t.Helper()
	keys, err := json.Marshal(s.issuer.Keys())
	if err != nil {
		s.t.Fatal(err)
	}
	return fmt.Appendf(nil, "apiVersion: bailment/v1\nkind: Authority\nmetadata: {name: %s}\nspec:\n  method: %s\n  issuer: %s\n  keys: '%s'\n", s.method, s.method, s.issuer.URL, keys)
}

// jobs is a site whose bundle knows two CI services, and a secret for their jobs.
type jobs struct {
	*sitetest.Site
	github, gitlab *service
	admin          *client.Client
	env            []string
	log            *bytes.Buffer
	mu             sync.Mutex
}

func newJobs(t *testing.T) *jobs {
	t.Helper()
	j := &jobs{github: newService(t, "github"), gitlab: newService(t, "gitlab")}
	j.Site = newSite(t, site.Options{Extra: policy.Files{
		"authorities/github.yaml": j.github.authority(), "authorities/gitlab.yaml": j.gitlab.authority(),
		"identities/ci.yaml": []byte(`apiVersion: bailment/v1
kind: Identity
metadata: {name: github-main}
spec:
  method: github
  authority: github
  path: '/ci/github/{claims.repository_owner_id}/{claims.repository_id}'
  when: claims.ref == "refs/heads/main" && claims.event_name == "push"
---
apiVersion: bailment/v1
kind: Identity
metadata: {name: gitlab-jobs}
spec:
  method: gitlab
  authority: gitlab
  path: '/ci/gitlab/{claims.namespace_id}/{claims.project_id}/{claims.job_id}'
`),
		"grants/ci.yaml": []byte(`apiVersion: bailment/v1
kind: Grant
metadata: {name: ci-reads}
spec: {actions: [secret.read], identities: ['/ci/github/65/*', '/ci/gitlab/72/*'], secrets: ['ci/*'], purposes: [runtime], assurance: token}
---
apiVersion: bailment/v1
kind: Grant
metadata: {name: write-ci}
spec: {actions: [secret.write], identities: [/human/alice], secrets: ['ci/*']}
`),
		"secrets/ci.yaml": []byte("apiVersion: bailment/v1\nkind: Secret\nmetadata: {name: ci/*}\nspec: {type: opaque}\n"),
	}})
	j.Start()
	j.Connect()
	j.admin = j.Dial(j.Login())
	if _, err := j.admin.Secrets.Put(t.Context(), &bailmentv1.PutRequest{Secret: "ci/deploy", Value: []byte(deployKey)}); err != nil {
		t.Fatal(err)
	}
	boot, err := j.Bootstrap()
	j.Check(err)
	base := []string{"PATH=" + filepath.Dir(j.Bin) + ":" + os.Getenv("PATH"), "BAILMENT_BOOTSTRAP=" + boot, "GORACE=atexit_sleep_ms=0"}
	j.env = append(base, j.github.begins()...)
	return j
}

// Write is what the steps write.
func (j *jobs) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.log.Write(b)
}

func (j *jobs) text() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.log.String()
}

// step begins a step: a shell, as a runner starts it, whose script is given.
func (j *jobs) step(env []string, script string) *exec.Cmd {
	j.T.Helper()
	j.log = new(bytes.Buffer)
	cmd := exec.Command("bash", "-e", "-c", strings.ReplaceAll(script, "bailment ", j.Bin+" ")+"\n:")
	cmd.Env, cmd.Stdout, cmd.Stderr = env, j, j
	cmd.SysProcAttr, cmd.WaitDelay = &syscall.SysProcAttr{Setsid: true}, 30*time.Second
	j.Check(cmd.Start())
	j.T.Cleanup(func() {
		for _, pid := range sessionOf(cmd.Process.Pid) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		_ = cmd.Wait()
	})
	return cmd
}

// sessionOf are the processes of a step, but for its watchdog, which ends by itself when they have.
func sessionOf(session int) []int {
	found, _ := filepath.Glob("/proc/[0-9]*")
	var out []int
	for _, path := range found {
		var pid int
		if _, err := fmt.Sscan(filepath.Base(path), &pid); err != nil {
			continue
		}
		if sid, err := unix.Getsid(pid); err == nil && sid == session {
			out = append(out, pid)
		}
	}
	return out
}

func (j *jobs) until(what string, ok func() bool) {
	j.T.Helper()
	end := time.After(30 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			j.T.Fatalf("waited in vain for %s\n%s", what, j.text())
		}
	}
}

// leases are those of an identity, by their state.
func (j *jobs) leases(of string) map[string]int {
	j.T.Helper()
	r, err := j.admin.Secrets.ListLeases(j.T.Context(), &bailmentv1.ListLeasesRequest{Identity: of})
	j.Check(err)
	out := make(map[string]int)
	for _, l := range r.Leases {
		out[l.State]++
	}
	return out
}

// session is the state of an identity.
func (j *jobs) session(of string) string {
	j.T.Helper()
	r, err := j.admin.Attestation.ListIdentities(j.T.Context(), &bailmentv1.ListIdentitiesRequest{Prefix: of})
	j.Check(err)
	if len(r.Identities) != 1 {
		j.T.Fatalf("%v", r.Identities)
	}
	return r.Identities[0].State
}

func (j *jobs) givenBack(of string) bool {
	l := j.leases(of)
	return l["returned"] > 0 && l["active"] == 0 && j.session(of) != "active"
}

// A job of GitHub gets its secret by the token that it asks for, and one of GitLab by the token that it was given. Both give all back.
func TestCIRun(t *testing.T) {
	t.Parallel()
	j := newJobs(t)
	step := j.step(j.env, `bailment ci run --secret ci/deploy=KEY -- bash -c 'test "$KEY" = `+deployKey+`; test -z "$ACTIONS_ID_TOKEN_REQUEST_TOKEN$ACTIONS_ID_TOKEN_REQUEST_URL"; echo it works'`)
	if err := step.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, j.text())
	}
	log := j.text()
	if !strings.Contains(log, "this job is "+githubJob+" (platform)") || !strings.Contains(log, "it works") || !strings.Contains(log, "gave everything back") {
		t.Errorf("%s", log)
	}
	if masked := strings.ReplaceAll(log, "::add-mask::"+deployKey+"\n", ""); masked == log || strings.Contains(masked, deployKey) || strings.Contains(log, requestWord) {
		t.Errorf("%s", log)
	}
	if !j.givenBack(githubJob) {
		t.Errorf("%v, %s", j.leases(githubJob), j.session(githubJob))
	}

	audience := cli(t, j.Site.Site, t.TempDir(), "", "ci", "audience")
	gitlab := append(j.env[:3:3], "GITLAB_CI=true", "BAILMENT_ID_TOKEN="+j.gitlab.token(strings.TrimSpace(audience.stdout)))
	// To look does not use the token up.
	step = j.step(gitlab, `bailment ci whoami
bailment ci run --secret ci/deploy=KEY -- bash -c 'test "$KEY" = `+deployKey+` -a -z "$BAILMENT_ID_TOKEN"; exit 7'`)
	if err := step.Wait(); err == nil || step.ProcessState.ExitCode() != 7 {
		t.Fatalf("%v\n%s", err, j.text())
	}
	log = j.text()
	identity := "/ci/gitlab/" + fmt.Sprint(j.gitlab.claims["namespace_id"], "/", j.gitlab.claims["project_id"], "/", j.gitlab.claims["job_id"])
	if !strings.Contains(log, "this job is "+identity+" (token)") || strings.Contains(log, "add-mask") || strings.Contains(log, deployKey) || !strings.Contains(log, "token project_path") {
		t.Errorf("%s", log)
	}
	if !j.givenBack(identity) {
		t.Errorf("%v, %s", j.leases(identity), j.session(identity))
	}
	// It was used now, by a key that is gone.
	step = j.step(gitlab, `bailment ci run --secret ci/deploy=KEY -- true`)
	if err := step.Wait(); err == nil || step.ProcessState.ExitCode() != 125 || !strings.Contains(j.text(), "token-spent") {
		t.Errorf("%v\n%s", err, j.text())
	}
	healthy(t, j.Site.Site)
}

// However a step is cancelled, all is given back, or dead within its minutes.
func TestCICancelled(t *testing.T) {
	t.Parallel()
	const program = `bash -c 'echo pid $$; trap "exit 3" TERM; echo begun; while :; do sleep 0.05; done'`
	for name, c := range map[string]struct {
		script string
		cancel func(step, ours int)
		log    string
	}{
		"by the service, with exec": {`exec bailment ci run --secret ci/deploy=KEY -- ` + program, func(step, _ int) { _ = syscall.Kill(step, syscall.SIGINT) }, "gave everything back"},
		"SIGTERM":                   {`bailment ci run --secret ci/deploy=KEY -- ` + program, func(_, ours int) { _ = syscall.Kill(ours, syscall.SIGTERM) }, "gave everything back"},
		"SIGKILL":                   {`bailment ci run --secret ci/deploy=KEY -- ` + program, func(_, ours int) { _ = syscall.Kill(ours, syscall.SIGKILL) }, "its watchdog gave everything back"},
		"SIGKILL of its parent":     {`bailment ci run --secret ci/deploy=KEY -- ` + program, func(step, _ int) { _ = syscall.Kill(step, syscall.SIGKILL) }, "gave everything back"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			j := newJobs(t)
			step := j.step(j.env, c.script)
			j.until("the program", func() bool { return strings.Contains(j.text(), "begun") })
			var pid int
			if _, err := fmt.Sscanf(j.text()[strings.Index(j.text(), "pid "):], "pid %d", &pid); err != nil {
				t.Fatal(err)
			}
			if l := j.leases(githubJob); l["active"] != 1 {
				t.Fatalf("%v", l)
			}
			c.cancel(step.Process.Pid, parentOf(t, pid))
			_ = step.Wait() // and whoever has its streams
			if !strings.Contains(j.text(), c.log) || !j.givenBack(githubJob) {
				t.Errorf("%v, %s\n%s", j.leases(githubJob), j.session(githubJob), j.text())
			}
			t.Logf("given back: by state, the leases in the ledger are %v, and the session is %s; the step's log: %s", j.leases(githubJob), j.session(githubJob), lastLine(j.text()))
			j.until("the program's end", func() bool { return syscall.Kill(pid, 0) != nil })
			healthy(t, j.Site.Site)
		})
	}
}

// lastLine is the last that is ours.
func lastLine(log string) string {
	last := ""
	for line := range strings.Lines(log) {
		if strings.HasPrefix(line, "bailment: ") {
			last = strings.TrimSpace(line)
		}
	}
	return last
}

func parentOf(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	var parent int
	_, rest, _ := strings.Cut(string(text), "PPid:")
	if _, err := fmt.Sscan(rest, &parent); err != nil {
		t.Fatal(err)
	}
	return parent
}

// With the whole job killed at once, watchdog and all, there is a lease that nobody renews: it is dead with the session, which ends with its token, within
// five minutes, although the bundle gives an hour. No other job runs meanwhile, so the only watchdog is its own.
func TestCIAllKilled(t *testing.T) {
	j := newJobs(t)
	step := j.step(j.env, `bailment ci run --secret ci/deploy=KEY -- bash -c 'echo pid $$; echo begun; while :; do sleep 0.05; done'`)
	j.until("the program", func() bool { return strings.Contains(j.text(), "begun") })
	var program int
	if _, err := fmt.Sscanf(j.text()[strings.Index(j.text(), "pid "):], "pid %d", &program); err != nil {
		t.Fatal(err)
	}
	ours := parentOf(t, program)
	// Stopped, so that it begins no other watchdog when it sees that one die.
	j.Check(syscall.Kill(ours, syscall.SIGSTOP))
	watchdogs := watchdogs(t)
	if len(watchdogs) != 1 {
		t.Fatalf("the watchdogs are %v", watchdogs)
	}
	for _, pid := range []int{watchdogs[0], ours, program, step.Process.Pid} {
		j.Check(syscall.Kill(pid, syscall.SIGKILL))
	}
	_ = step.Wait()
	if l := j.leases(githubJob); l["active"] != 1 || l["returned"] != 0 {
		t.Fatalf("%v", l)
	}
	alice := j.Login()
	thumb, err := attest.Thumbprint(alice.Certificate.Leaf.PublicKey)
	j.Check(err)
	j.Stop()
	later := func() time.Time { return time.Now().Add(5 * time.Minute) }
	inside(t, j.Site.Site, later, func(ctx context.Context, env *control.Environment) {
		leases, _, err := env.ListLeases(ctx, control.Caller{Session: alice.Index, Key: thumb}, githubJob, control.Page{})
		if err != nil || len(leases) != 1 || leases[0].State != "expired" {
			t.Fatalf("%+v, %v", leases, err)
		}
		t.Logf("dead by itself: lease %d was made at %s and ended at %s", leases[0].ID, leases[0].Created, leases[0].Expires)
		all, _, err := env.ListIdentities(ctx, control.Caller{Session: alice.Index, Key: thumb}, githubJob, control.Page{})
		if err != nil || len(all) != 1 || all[0].State != "expired" {
			t.Errorf("%+v, %v", all, err)
		}
	})
}

// watchdogs are all that run.
func watchdogs(t *testing.T) []int {
	t.Helper()
	found, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var out []int
	for _, path := range found {
		var pid int
		text, err := os.ReadFile(path)
		if err != nil || string(text) != "/proc/self/exe\x00ci\x00watchdog\x00watch\x00" {
			continue
		}
		if _, err := fmt.Sscan(filepath.Base(filepath.Dir(path)), &pid); err == nil {
			out = append(out, pid)
		}
	}
	return out
}
