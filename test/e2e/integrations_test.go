package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

var (
	commitUse   = regexp.MustCompile(`^[A-Za-z0-9_./-]+@[0-9a-f]{40}$`)
	inventImage = regexp.MustCompile(`@sha256:(0123456789abcdef)+$`)
	exampleHost = regexp.MustCompile(`^[a-z0-9.-]+\.example/`)
	digestImage = regexp.MustCompile(`@sha256:[0-9a-f]{64}$`)
	expression  = regexp.MustCompile(`\$\{\{|\$\[\[|<<\s*(pipeline|parameters)`)
)

// lint finds what a definition of a job must not have: something that is used by a name which can be moved, or by none that exists, an expression in a script (whoever
// may choose its value could write the script), rights that are not named, a step without its shell, text that YAML could be read in two ways.
func lint(name string, text []byte) []string {
	var doc any
	if err := yaml.UnmarshalWithOptions(text, &doc, yaml.Strict()); err != nil {
		return []string{"not strict YAML: " + strings.SplitN(err.Error(), "\n", 2)[0]}
	}
	var out []string
	walk(doc, "", func(path string, key string, value any) {
		list, _ := value.([]any)
		if list == nil {
			list = []any{value}
		}
		for _, v := range list {
			s, ok := v.(string)
			switch {
			case key == "uses" && (!ok || !commitUse.MatchString(s) && !strings.HasPrefix(s, "./")):
				out = append(out, path+": is not used by its commit")
			case key == "image" && ok && !digestImage.MatchString(s):
				out = append(out, path+": is not named by its digest")
			case key == "image" && ok && inventImage.MatchString(s) && !exampleHost.MatchString(s):
				out = append(out, path+": an invented digest, of an image that exists")
			case slices.Contains([]string{"run", "script", "before_script", "after_script", "command", "commands"}, key) && ok && expression.MatchString(s):
				out = append(out, path+": an expression in a script")
			case ok && strings.Contains(s, "secrets."):
				out = append(out, path+": a secret of the service")
			}
		}
	})
	top, _ := doc.(map[string]any)
	if runs, ok := top["runs"].(map[string]any); ok {
		steps, _ := runs["steps"].([]any)
		if runs["using"] != "composite" || len(steps) == 0 {
			out = append(out, "runs: is not a composite action with steps")
		}
		for i, step := range steps {
			s, _ := step.(map[string]any)
			if s["run"] != nil && s["shell"] != "bash" {
				out = append(out, fmt.Sprintf("runs.steps.%d: no shell", i))
			}
		}
	} else if strings.HasPrefix(name, "github/") {
		if p, ok := top["permissions"].(map[string]any); !ok || len(p) != 0 {
			out = append(out, "permissions: the workflow has some that no job asks for")
		}
	}
	return out
}

func walk(doc any, path string, visit func(path, key string, value any)) {
	switch doc := doc.(type) {
	case map[string]any:
		for key, value := range doc {
			at := strings.TrimPrefix(path+"."+key, ".")
			visit(at, key, value)
			walk(value, at, visit)
		}
	case []any:
		for i, value := range doc {
			walk(value, fmt.Sprintf("%s.%d", path, i), visit)
		}
	}
}

const integrations = "../../integrations"

func TestIntegrations(t *testing.T) {
	n := 0
	err := filepath.WalkDir(integrations, func(path string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".yml" {
			return err
		}
		n++
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, f := range lint(strings.TrimPrefix(path, integrations+"/"), text) {
			t.Errorf("%s: %s", path, f)
		}
		return nil
	})
	if err != nil || n != 5 {
		t.Errorf("%d files, %v", n, err)
	}
}

// What lint is there to find, it finds.
func TestIntegrationsNotices(t *testing.T) {
	good, err := os.ReadFile(integrations + "/github/action.yml")
	if err != nil {
		t.Fatal(err)
	}
	flow, err := os.ReadFile(integrations + "/github/example.yml")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		text           []byte
		old, new, want string
	}{
		"a tag":            {flow, "@11bd71901bbe5b1630ceea73d27597364c9af683", "@v4", "is not used by its commit"},
		"a short commit":   {flow, "@11bd71901bbe5b1630ceea73d27597364c9af683", "@11bd719", "is not used by its commit"},
		"an image's tag":   {flow, "@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", ":latest", "is not named by its digest"},
		"an image's guess": {flow, "registry.example/tools@", "debian:13-slim@", "an invented digest"},
		"injection":        {flow, "migrate up", "migrate ${{ github.head_ref }}", "an expression in a script"},
		"in the action":    {good, `exec "$GITHUB_ACTION_PATH/run"`, `exec "${{ inputs.command }}"`, "an expression in a script"},
		"all rights":       {flow, "permissions: {}", "permissions: write-all", "permissions"},
		"default rights":   {flow, "permissions: {}\n", "", "permissions"},
		"no shell":         {good, "      shell: bash\n      env:\n        INSTALL", "      env:\n        INSTALL", "no shell"},
		"twice":            {good, "author:", "name: other\nauthor:", "not strict YAML"},
		"a stored secret":  {flow, "${{ vars.BAILMENT_BOOTSTRAP }}\n          secrets", "${{ secrets.BOOTSTRAP }}\n          secrets", "a secret of the service"},
		"not YAML":         {good, "runs:", "runs: [", "not strict YAML"},
		"nothing to run":   {good, "using: composite", "using: node20", "composite"},
		"a list of lines":  {[]byte("job:\n  script:\n    - echo ok\n    - echo $[[ inputs.x ]]\n"), "job", "job", "an expression in a script"},
		"a parameter":      {[]byte("run:\n  command: echo << parameters.x >>\n"), "run", "run", "an expression in a script"},
		"no uses at all":   {[]byte("steps:\n  - uses: [x]\n"), "x", "x", "is not used by its commit"},
		"docker's own tag": {[]byte("steps:\n  - uses: docker://alpine:3\n"), "3", "3", "is not used by its commit"},
	} {
		text := bytes.Replace(c.text, []byte(c.old), []byte(c.new), 1)
		if c.old != c.new && bytes.Equal(text, c.text) {
			t.Errorf("%s: %q is not there any more", name, c.old)
		}
		found := lint("github/x.yml", text)
		if !slices.ContainsFunc(found, func(f string) bool { return strings.Contains(f, c.want) }) {
			t.Errorf("%s: found %q, want %q", name, found, c.want)
		}
	}
}

// action is a composite action, as a runner carries it out.
type action struct {
	Inputs map[string]struct {
		Required bool
		Default  string
	}
	Runs struct {
		Steps []struct {
			Name  string
			Shell string
			Env   map[string]string
			Run   string
		}
	}
}

// perform runs the action's steps with inputs, in the environment of a job, and says the exit code of the step that failed.
func (j *jobs) perform(inputs map[string]string) (code int, log string) {
	j.T.Helper()
	var a action
	text, err := os.ReadFile(integrations + "/github/action.yml")
	j.Check(err)
	j.Check(yaml.Unmarshal(text, &a))
	path, err := filepath.Abs(integrations + "/github")
	j.Check(err)
	for name, input := range a.Inputs {
		if _, ok := inputs[name]; !ok && input.Required {
			j.T.Fatalf("%s is required", name)
		}
	}
	env := slices.DeleteFunc(slices.Clone(j.env), func(kv string) bool { return strings.HasPrefix(kv, "BAILMENT_") })
	env = append(env, "GITHUB_ACTION_PATH="+path, "RUNNER_TEMP="+j.T.TempDir())
	input := regexp.MustCompile(`\$\{\{ inputs\.([a-z0-9-]+) \}\}`)
	for _, step := range a.Runs.Steps {
		own := slices.Clone(env)
		for name, value := range step.Env {
			own = append(own, name+"="+input.ReplaceAllStringFunc(value, func(x string) string {
				name := input.FindStringSubmatch(x)[1]
				if v, ok := inputs[name]; ok {
					return v
				}
				return a.Inputs[name].Default
			}))
		}
		cmd := j.step(own, step.Run)
		_ = cmd.Wait()
		log += j.text()
		if code := cmd.ProcessState.ExitCode(); code != 0 {
			return code, log
		}
	}
	return 0, log
}

// archived makes an archive of a release with the test's binary, and says its digest.
func archived(t *testing.T, bin, version, arch string) (dir, digest string) {
	t.Helper()
	dir = t.TempDir()
	name := "bailment-" + version + "-linux-" + arch
	program, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(z)
	for _, f := range []struct {
		name string
		mode int64
		text []byte
	}{{"LICENSE", 0o644, []byte("x")}, {"bailment", 0o755, program}} {
		if err := w.WriteHeader(&tar.Header{Name: name + "/" + f.name, Mode: f.mode, Size: int64(len(f.text)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.text); err != nil {
			t.Fatal(err)
		}
	}
	if w.Close() != nil || z.Close() != nil {
		t.Fatal("the archive can't be made")
	}
	if err := os.MkdirAll(filepath.Join(dir, "v"+version), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "v"+version, name+".tar.gz"), b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b.Bytes())
	return dir, hex.EncodeToString(sum[:])
}

// The action's own steps install a release, run a command with its secret, and give all back.
func TestAction(t *testing.T) {
	t.Parallel()
	j := newJobs(t)
	boot, err := j.Bootstrap()
	j.Check(err)
	dir, digest := archived(t, j.Bin, "1.4.0", runtime.GOARCH)
	inputs := func(change map[string]string) map[string]string {
		out := map[string]string{
			"bootstrap": boot, "version": "1.4.0", "sha256": digest, "url": "file://" + dir,
			"secrets": "\n  ci/deploy=KEY  \n\n", "secret-files": "ci/deploy=KEY\n",
			"command": `test "$KEY" = ` + deployKey + ` && test "$(cat "$KEY_FILE")" = "$KEY" && test -z "$(env | grep -e ^ACTIONS_ID -e ^RUN_)"; echo it works; exit 4`,
		}
		for k, v := range change {
			out[k] = v
		}
		return out
	}
	code, log := j.perform(inputs(nil))
	if code != 4 || !strings.Contains(log, "it works") || !strings.Contains(log, "gave everything back") || !j.givenBack(githubJob) {
		t.Errorf("code %d, %v\n%s", code, j.leases(githubJob), log)
	}
	if strings.Contains(strings.ReplaceAll(log, "::add-mask::"+deployKey+"\n", ""), deployKey) {
		t.Errorf("%s", log)
	}
	for name, c := range map[string]struct {
		change map[string]string
		code   int
		want   string
	}{
		"another digest":     {map[string]string{"sha256": strings.Repeat("0", 64)}, 1, "another digest"},
		"no digest":          {map[string]string{"sha256": ""}, 1, "64 hexadecimal digits"},
		"no version":         {map[string]string{"version": "../../x"}, 1, "must be one like"},
		"another version":    {map[string]string{"version": "1.4.1"}, 1, "can't be downloaded"},
		"without TLS":        {map[string]string{"url": "http://127.0.0.1:1"}, 1, "must begin with https"},
		"what is no command": {map[string]string{"secrets": "ci/deploy", "secret-files": ""}, 125, "is not SECRET=NAME"},
		"quotes in it":       {map[string]string{"command": `echo "$(echo a'b')" '$x'`}, 0, "ab $x"},
		"an unset variable":  {map[string]string{"command": `echo "$NO_SUCH_THING"; echo not reached`}, 1, "unbound variable"},
	} {
		code, log := j.perform(inputs(c.change))
		if code != c.code || !strings.Contains(log, c.want) || strings.Contains(log, "\nnot reached") {
			t.Errorf("%s: code %d\n%s", name, code, log)
		}
	}
}

// TestTemplate carries out the template's own lines as GitLab's runner does: joined before the job's script, in one shell that ends at the first
// failure. All that is there of a job which extends it is the tools that the template says its image must have.
func TestTemplate(t *testing.T) {
	t.Parallel()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var template struct {
		Job struct {
			Image        any
			BeforeScript []string `yaml:"before_script"`
		} `yaml:".bailment"`
	}
	text, err := os.ReadFile(integrations + "/gitlab/template.yml")
	must(err)
	must(yaml.Unmarshal(text, &template))
	if template.Job.Image != nil || len(template.Job.BeforeScript) == 0 {
		t.Fatalf("the image is the job's own, and not %v; %d lines", template.Job.Image, len(template.Job.BeforeScript))
	}
	for _, tool := range []string{"curl", "ca-certificates", "tar", "sha256sum", "image"} {
		if !bytes.Contains(text, []byte(tool)) {
			t.Errorf("the template doesn't say that the image must have %s", tool)
		}
	}

	dir, digest := archived(t, builder.Binary(t, ""), "1.4.0", "amd64")
	plain := httptest.NewServer(http.FileServer(http.Dir(dir)))
	t.Cleanup(plain.Close)
	mux := http.NewServeMux()
	mux.Handle("/", http.FileServer(http.Dir(dir)))
	mux.Handle("/moved/", http.RedirectHandler(plain.URL+"/v1.4.0/bailment-1.4.0-linux-amd64.tar.gz", http.StatusFound))
	releases := httptest.NewTLSServer(mux)
	t.Cleanup(releases.Close)
	roots := filepath.Join(t.TempDir(), "roots.pem")
	must(os.WriteFile(roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: releases.Certificate().Raw}), 0o600))
	curl, err := exec.LookPath("curl")
	must(err)

	for name, c := range map[string]struct {
		change map[string]string
		want   string // of the log, when it is refused
	}{
		"as it is meant":      {nil, ""},
		"another digest":      {map[string]string{"BAILMENT_SHA256": strings.Repeat("0", 64)}, "FAILED"},
		"no digest":           {map[string]string{"BAILMENT_SHA256": ""}, "checksum"},
		"a short digest":      {map[string]string{"BAILMENT_SHA256": digest[:32]}, "checksum"},
		"another version":     {map[string]string{"BAILMENT_VERSION": "1.4.1"}, "404"},
		"no version":          {map[string]string{"BAILMENT_VERSION": ""}, "404"},
		"without TLS":         {map[string]string{"BAILMENT_URL": plain.URL}, "http"},
		"to where TLS is not": {map[string]string{"BAILMENT_URL": releases.URL + "/moved"}, "http"},
		"nobody's roots":      {map[string]string{"CURL_CA_BUNDLE": "/dev/null"}, "certificate"},
	} {
		for _, shell := range [][]string{{"bash", "-eo", "pipefail"}, {"sh", "-e"}} {
			tmp := t.TempDir()
			env := map[string]string{
				"PATH": filepath.Dir(curl) + ":/usr/bin:/bin", "TMPDIR": tmp, "CURL_CA_BUNDLE": roots,
				"BAILMENT_VERSION": "1.4.0", "BAILMENT_SHA256": digest, "BAILMENT_URL": releases.URL,
			}
			maps.Copy(env, c.change)
			script := strings.Join(append(slices.Clone(template.Job.BeforeScript), "command -v bailment", "bailment version", "echo reached"), "\n")
			cmd := exec.Command(shell[0], append(shell[1:], "-c", script)...)
			cmd.Dir = t.TempDir()
			for k, v := range env {
				cmd.Env = append(cmd.Env, k+"="+v)
			}
			out, err := cmd.CombinedOutput()
			log := string(out)
			reached, theirs := strings.Contains(log, "\nreached"), strings.Contains(log, tmp+"/")
			if c.want == "" && (err != nil || !reached || !theirs) {
				t.Errorf("%s, %s: %v\n%s", name, shell[0], err, log)
			}
			if c.want != "" && (err == nil || reached || !strings.Contains(log, c.want)) {
				t.Errorf("%s, %s: %v, want %q\n%s", name, shell[0], err, c.want, log)
			}
			// What was refused is nowhere to be found by the next job of the same machine.
			if left, _ := filepath.Glob(filepath.Join(tmp, "*", "bailment")); c.want != "" && left != nil {
				t.Errorf("%s, %s: left %v", name, shell[0], left)
			}
		}
	}
}
