package e2e

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	bailmentv1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/examples"
	"github.com/bailment/bailment/internal/attest/jointoken"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/test/site"
	"github.com/bailment/bailment/test/site/sitetest"
)

// page is how a page is followed here.
type page struct {
	presumes  func(t *testing.T, name string) reader // what there is before the first command
	name      string                                 // of the environment; default payments-dev
	answers   int
	promises  int // the least number of parts of the output that the page shows
	before    map[string]string
	elsewhere map[string]string
	after     func(text string) string // more commands at the end, from the page's text
}

const (
	// bob sits at another machine, and alice gets back to hers.
	bob   = `export BAILMENT_HOME="$PWD/bob-home" BAILMENT_SSH_KEY="$PWD/bob"`
	carol = `export BAILMENT_HOME="$PWD/carol-home" BAILMENT_SSH_KEY="$PWD/carol"`
	alice = `export BAILMENT_HOME="$PWD/alice-home" BAILMENT_SSH_KEY="$HOME/.ssh/id_ed25519"`
	// proposed is the number of the newest change, as a person reads it from the screen.
	proposed = `"$(grep -o 'change [0-9][0-9]*' "$OUTPUT" | tail -n 1 | cut -d ' ' -f 2)"`
	// full makes the file system full for the server: its limit for files is reached in the middle of a page of the store.
	full = `bailment login alice
prlimit --pid "$SERVER" --fsize="$(($(stat -c %s "$DATA/$NAME/store.db-wal") + 10000)):unlimited"
until [ "$(curl --silent --output /dev/null --write-out '%{http_code}' "http://$OPS/readyz")" = 503 ]; do bailment secret generate db/password --timeout 1s || true; done`
	room = `prlimit --pid "$SERVER" --fsize=unlimited:unlimited`
	// signed waits until the login is under a checkpoint, which is when nothing else has happened for a tenth of a second.
	signed = `until bailment ledger verify --dir "$DATA/$NAME" > /dev/null; do sleep 0.05; done`

	// recipient is one of age, whose identity nobody has.
	recipient = "age1x39257svttrkalynw3jn574zvncf0yf40dds8wlz880rcj66raeqqawjjm"

	needsRoot      = "it needs root, and changes the machine for good; compiling takes a minute"
	needsContainer = "it needs a container engine, which a machine that runs tests need not have; compiling takes a minute"
)

// pages is every page of docs/howto. All of their commands are run. Blocks that are listed under elsewhere need what a
// test can't have; they are run with what is in testdata/standins.bash, and no other block is.
var pages = map[string]page{
	"README.md": {presumes: serving, promises: 3},
	"curl.md":   {presumes: serving, name: "tutorial", promises: 10},
	"change-the-bundle.md": {
		presumes: serving, answers: 1, promises: 16,
		before: map[string]string{
			"bailment bundle check env": `sed -i 's/purposes: \[runtime\]/purposes: [runtime, migration]/' env/grants/all.yaml`,
			"bailment login bob":        bob,
			"bailment login alice # once more, for the files of before": alice,
		},
	},
	"plan-a-change.md": {
		presumes: leasing, name: "prod", promises: 10,
		before: map[string]string{
			"bailment bundle plan env": `sed -i 's/purposes: \[runtime\]/purposes: [runtime, migration]/' env/grants/all.yaml
sed -i 's/workload: 10m/workload: 20m/' env/environment.yaml
printf '%s\n' 'apiVersion: bailment/v1' 'kind: Grant' 'metadata: {name: nodes}' 'spec: {actions: [secret.read], identities: [/node/*], secrets: [db/*], purposes: [runtime]}' > env/grants/nodes.yaml`,
		},
	},
	"tell-approvers.md": {
		presumes: mailing, answers: 1, promises: 5,
		before: map[string]string{
			"bailment login bob": bob,
			"curl --silent http://127.0.0.1:8401/metrics | grep bailment_notifications_total": `until grep -q "Subject: .payments-dev. change.in-force: change " "$MAILS" && curl --silent "http://$OPS/metrics" | grep -q 'outcome="told",target="approvers"'; do sleep 0.05; done`,
		},
	},
	"review-access.md": {
		presumes: reviewing, name: "prod", answers: 1, promises: 13,
		before: map[string]string{
			"bailment access decide review.txt --out env-reviewed": `sed -i -e 's/^? payments-api-migrates/remove payments-api-migrates/' -e '/^? alice-provisions/d' -e 's/^? /keep /' review.txt`,
		},
	},
	"break-glass.md": {
		presumes: leasing, answers: 2, promises: 17,
		before: map[string]string{
			"bailment bundle check env":               `sed -i '/name: no-human-reads/,/^---/ s/^  secrets:/  purposes: [runtime]\n  secrets:/' env/grants/all.yaml`,
			"bailment login bob":                      bob,
			"bailment login alice # in the night":     alice,
			"bailment login bob # to review":          bob,
			"bailment login alice # the second night": alice,
			"bailment login bob # to approve":         bob,
		},
	},
	"blast-radius.md":  {presumes: besideEstate, promises: 23},
	"test-a-bundle.md": {presumes: editing, promises: 14},
	"revoke.md": {
		presumes: leasing, answers: 1, promises: 12, after: revokeAll,
		before: map[string]string{
			"bailment login bob":        bob,
			"bailment node token web-1": alice,
		},
	},
	"lost-operator-key.md": {
		presumes: serving, answers: 1, promises: 8,
		before: map[string]string{"bailment login bob": bob, "bailment login carol": carol},
	},
	"recover-operators.md": {
		presumes: recovering, answers: 6, promises: 17,
		before: map[string]string{
			"bailment login bob":                                bob,
			"bailment login alice # who is not lost":            alice,
			"bailment login bob # who is not lost either":       bob,
			"bailment recovery status # when the delay is over": `until bailment recovery status | grep "^no recovery" > /dev/null; do sleep 0.1; done`,
		},
	},
	"quarantine-and-decommission.md": {
		presumes: leasing, answers: 2, promises: 15,
		before: map[string]string{
			"bailment login bob": bob,
			"bailment node decommission /node/join-token/web-1 --reason \"sold, ticket 812\"": alice,
			"bailment login bob # once more": bob,
			"bailment ledger proof \"$(bailment node show /node/join-token/web-1 -o json | jq .decommissioned)\" --out web-1.txt": alice,
		},
	},
	"end-an-environment.md": {
		presumes: ending, answers: 2, promises: 14,
		before: map[string]string{
			"bailment login bob": bob,
			"bailment change carry-out 103 --name payments-dev": `bailment environment delete --propose --name payments-dev --reason "once more" > "$OUTPUT.again"
again=$(grep -o 'change [0-9][0-9]*' "$OUTPUT.again" | tail -n 1 | cut -d ' ' -f 2)
` + alice + `
bailment change approve --yes "$again"
until bailment change show "$again" | grep 'it has waited'; do sleep 0.1; done`,
		},
	},
	"export-secrets.md": {
		presumes: leasing, answers: 1, promises: 6,
		before: map[string]string{
			"bailment login alice":            "RECIPIENT=" + recipient,
			"bailment login bob":              bob,
			"bailment login alice # to fetch": alice,
		},
	},
	"federate.md": {
		presumes: besideWest, answers: 1, promises: 5, before: map[string]string{"bailment login bob": bob},
	},
	"ci-github.md": {
		presumes: jobOf("github"), answers: 1, promises: 11,
		before: map[string]string{"bailment bundle check env": pinKeys, "bailment login bob": bob, "bailment login alice # and the key": alice},
	},
	"ci-gitlab.md": {
		presumes: jobOf("gitlab"), answers: 1, promises: 8,
		before: map[string]string{"bailment bundle check env": pinKeys, "bailment login bob": bob, "bailment login alice # and the key": alice},
	},
	"ci-others.md":   {presumes: serving, promises: 2},
	"rotate-keys.md": {presumes: moving, answers: 1, promises: 11, before: map[string]string{"bailment login bob": bob, "bailment login alice # once more": alice}},
	"spiffe-workloads.md": {
		presumes: speaking, promises: 5, after: func(string) string { return "kill \"$(cat agent.pid)\"; wait\n" },
		before: map[string]string{"export SPIFFE_ENDPOINT_SOCKET=unix:///run/bailment/spiffe.sock": `bailment agent --config agent.yaml 2> agent.log &
echo $! > agent.pid
until bailment agent status | grep 'state *ready'; do sleep 0.05; done`},
	},
	"tpm.md": {
		presumes: measuring, promises: 14, after: func(string) string { return "kill \"$(cat agent.pid)\"; wait\n" },
		before: map[string]string{
			"bailment attest --dry-run --config /etc/bailment/agent.yaml": "bailment change approve --yes " + proposed,
			"bailment agent renew": "bailment change approve --yes " + proposed,
			// It was an update: its set is added as the page says, and the release proposed from the bundle with it.
			`bailment node release "$NODE" --reason "12.9 was missing in the references, ticket 812"`: `bailment roots measure --config agent.yaml --name web --version 12.9.1 >> env/authorities/listed.yaml
bailment bundle propose env --reason "12.9.1"
bailment change approve --yes ` + proposed,
			"bailment agent status": `bailment agent --config agent.yaml 2> agent.log &
echo $! > agent.pid
until bailment agent status | grep 'state *ready'; do sleep 0.05; done`,
			`bailment agent status || echo "exit code $?"`: `tpm2_pcrextend "8:sha256=$(printf %s 12.9 | sha256sum | cut -d ' ' -f 1)"
! bailment agent renew
until { bailment agent status || true; } | grep 'state *quarantined'; do sleep 0.05; done`,
		},
	},
	"verify-the-ledger.md": {
		presumes: serving, name: "prod", promises: 4,
		before: map[string]string{
			`bailment ledger verify --dir /var/lib/bailment/prod --bootstrap "$BAILMENT_BOOTSTRAP" --checkpoint "checkpoint-$(date +%F).txt"`: signed,
		},
	},
	"recover-a-full-disk.md": {
		presumes: serving, promises: 5,
		before: map[string]string{
			`bailment secret generate db/password || echo "exit code $?"`: full,
			"df -h /var/lib/bailment":                                     room,
		},
	},
	"vm.md": {
		presumes: machine, promises: 9, after: func(string) string { return "stopped\n" },
		elsewhere: map[string]string{
			"make build": needsRoot,
			"bailment init ./env --data ./data --address bailment.example:8400 -i ~/.ssh/id_ed25519":            needsRoot,
			"sudo tee /etc/bailment/server.yaml <<'END'":                                                        needsRoot,
			"sudo useradd --system --home-dir /var/lib/bailment-agent --shell /usr/sbin/nologin bailment-agent": needsRoot,
		},
	},
	"agents-floor.md": {
		presumes: released, answers: 2, promises: 12,
		before: map[string]string{
			"bailment login bob":                      bob,
			"bailment login bob # once more":          bob,
			"bailment login alice # for the rollback": alice,
		},
	},
	"make-a-release.md": {
		presumes: source, promises: 3,
		elsewhere: map[string]string{
			"git tag v1.4.0": "TestReleaseIsReproducible runs it, with the build cache that is there",
			"make release RELEASE_KEY=../release-key": "it takes minutes for all platforms: here it is made for the test's own",
		},
	},
	"verify-a-release.md": {
		presumes: download, promises: 5,
		elsewhere: map[string]string{"sudo install -m 0755 bailment /usr/bin/bailment": needsRoot},
	},
	"container.md": {
		presumes: machine, promises: 6,
		elsewhere: map[string]string{
			"make build":                       needsContainer,
			"cat > agent.yaml <<END":           needsContainer,
			"docker stop -t 20 agent bailment": needsContainer,
		},
	},
}

// Every command of docs/howto is run, and does what the page says.
func TestHowTo(t *testing.T) {
	if err := allKnown("../../docs/howto", pages); err != nil {
		t.Fatal(err)
	}
	bin := program(t)
	for name, p := range pages {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text := document(t, "docs/howto/"+name)
			if n := strings.Count(text, "\n"+arrow); n < p.promises {
				t.Errorf("the page shows %d parts of the output, and had %d", n, p.promises)
			}
			if p.name == "" {
				p.name = "payments-dev"
			}
			r := p.presumes(t, p.name)
			r.bin, r.answers, r.before, r.elsewhere = bin, p.answers, p.before, p.elsewhere
			if p.after != nil {
				r.after = p.after(text)
			}
			if err := r.follow(t, text); err != nil {
				t.Errorf("docs/howto/%s: %v", name, err)
			}
		})
	}
}

// The README's commands, in one order, beside a machine with a program that was granted a secret.
func TestReadme(t *testing.T) {
	r := attested(t, "payments-dev")
	r.bin, r.after = program(t), "kill \"$(cat agent.pid)\"; wait\n"
	r.before = map[string]string{firstUse: `bailment agent --config agent.yaml 2> agent.log &
echo $! > agent.pid
until bailment agent status | grep 'state *ready'; do sleep 0.05; done`}
	r.elsewhere = map[string]string{
		"go run ./cmd/bailment quickstart": "TestQuickstart does it",
		"make test":                        "it runs this test",
	}
	if err := r.follow(t, document(t, "README.md")); err != nil {
		t.Errorf("README.md: %v", err)
	}
}

const firstUse = "bailment login alice                                          # an SSH signature, fifteen minutes"

// attested is served, with an agent that may start, and its program ./app.
func attested(t *testing.T, name string) reader {
	t.Helper()
	r, s := served(t, name)
	s.Connect()
	tok := s.Token(s.Dial(s.Login()), "web-1")
	write := func(path, text string, mode fs.FileMode) {
		t.Helper()
		s.Check(os.WriteFile(filepath.Join(r.dir, path), []byte(text), mode))
	}
	write("token", tok.Reveal(), 0o600)
	write("agent.yaml", fmt.Sprintf("data: %s/agent\nsocket: %s/agent.sock\nattest:\n  files:\n    token: %s/token\n", r.dir, r.dir, r.dir), 0o600)
	write("app", "#!/bin/sh\ntest ${#DB_PASSWORD} = 32\n", 0o700)
	repo, err := filepath.Abs("../..")
	s.Check(err)
	r.prelude = standIns
	r.env = append(r.env, "REPO="+repo, "BIN="+s.Bin, "BAILMENT_AGENT="+filepath.Join(r.dir, "agent.sock"))
	r.replace = strings.NewReplacer(
		"/workload/app", "/workload/payments-api", "--dir DIR", `--dir "$DATA/$NAME"`, "bailment1:…", `"$BAILMENT_BOOTSTRAP"`,
		"bailment ledger verify", signed+"\nbailment ledger verify",
	)
	return r
}

// speaking is attested, with the agent's sockets where the page has them.
func speaking(t *testing.T, name string) reader {
	t.Helper()
	r := attested(t, name)
	r.replace = strings.NewReplacer("/run/bailment", r.dir)
	return r
}

// Each example's page is about its directory.
func TestExampleReadme(t *testing.T) {
	for _, name := range []string{"payments", "ci"} {
		dir := filepath.Join(t.TempDir(), name)
		if err := os.CopyFS(dir, os.DirFS("../../examples/"+name)); err != nil {
			t.Fatal(err)
		}
		if err := (reader{bin: program(t), dir: dir}).follow(t, document(t, "examples/"+name+"/README.md")); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Commands stand where they are run: in the READMEs, the tutorials and the how-to pages. The command line's own
// reference is generated.
func TestNoOtherCommands(t *testing.T) {
	run := func(path string) bool {
		return path == "README.md" || path == "examples/payments/README.md" || path == "examples/ci/README.md" || path == "docs/tutorial.md" || path == "docs/tutorial-policy.md" || strings.HasPrefix(path, "docs/howto/") || strings.HasPrefix(path, "docs/reference/cli/")
	}
	for _, path := range pagesOf(t) {
		if run(path) {
			continue
		}
		blocks, err := consoles(document(t, path))
		if err != nil {
			t.Errorf("%s: %v", path, err)
		}
		for _, b := range blocks {
			t.Errorf("%s: line %d: these commands are run by nobody", path, b.line)
		}
	}
}

// allKnown says whether the pages of a directory are those that are known.
func allKnown(dir string, known map[string]page) error {
	found, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		return err
	}
	for i := range found {
		found[i] = filepath.Base(found[i])
	}
	if known := slices.Sorted(maps.Keys(known)); !slices.Equal(known, found) {
		return fmt.Errorf("%s has the pages %q, and it is known how to follow %q", dir, found, known)
	}
	return nil
}

// A page that is new, and a block that can't be run here and that nobody has listed, are found out.
func TestHowToNotices(t *testing.T) {
	dir := t.TempDir()
	known := map[string]page{"a.md": {}}
	for _, name := range []string{"a.md", "planted.md"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := allKnown(dir, known); (err == nil) != (name == "a.md") {
			t.Errorf("with %s: %v", name, err)
		}
	}
	if allKnown(dir, map[string]page{"a.md": {}, "planted.md": {}, "gone.md": {}}) == nil {
		t.Error("a page that is gone is not missed")
	}

	bin := program(t)
	const docker = "docker volume create x"
	block := func(lines ...string) string { return "```console\n" + strings.Join(lines, "\n") + "\n```\n" }
	list := func(first ...string) map[string]string {
		out := map[string]string{}
		for _, x := range first {
			out[x] = "it must be so"
		}
		return out
	}
	for name, c := range map[string]struct {
		text              string
		before, elsewhere map[string]string
		want              string
	}{
		"not listed":          {block("true") + block(docker), nil, nil, "docker volume create x (in a block that is not listed"},
		"another is listed":   {block("true") + block(docker), nil, list("true"), "in a block that is not listed"},
		"not by its first":    {block("true", docker), nil, list(docker), "no block begins with"},
		"without a stand-in":  {block(docker), nil, list(docker), "has no stand-in"},
		"root, not listed":    {block("sudo tee x < /dev/null"), nil, nil, "sudo tee x (in a block that is not listed"},
		"root, listed":        {block("sudo tee x < /dev/null", "ls", arrow+"x"), nil, list("sudo tee x < /dev/null"), ""},
		"root, for another":   {block("sudo rm x"), nil, list("sudo rm x"), "has no stand-in"},
		"root, anywhere":      {block("sudo tee /etc/x < /dev/null"), nil, list("sudo tee /etc/x < /dev/null"), "has no stand-in"},
		"a user who is not":   {block("sudo chown who:10001 ."), nil, list("sudo chown who:10001 ."), "there is no user who"},
		"listed, gone":        {block("true"), nil, list("false"), `no block begins with "false"`},
		"before, gone":        {block("true"), list("false"), nil, `no block begins with "false"`},
		"listed, twice there": {block("true") + block("true"), nil, list("true"), "line 4: a second block"},
		"before":              {block("echo $x", arrow+"yes"), map[string]string{"echo $x": "x=yes"}, nil, ""},
		"failing before":      {block("true"), map[string]string{"true": "false"}, nil, "failed"},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			if err := os.WriteFile(filepath.Join(root, "users"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			r := reader{bin: bin, prelude: standIns, env: []string{"ROOT=" + root}, before: c.before, elsewhere: c.elsewhere}
			err := r.follow(t, c.text)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
		})
	}
	for _, after := range []string{"false\n", "exit 7\n"} {
		if err := (reader{bin: bin, after: after}).follow(t, block("true")); err == nil {
			t.Errorf("after the last block, %q is not noticed", after)
		}
	}
}

// scopeRow is a row of the table of scopes.
var scopeRow = regexp.MustCompile("(?m)^\\| [^|`]+ \\| (.*) \\|$")

// revokeAll revokes every scope that the page names, the widest last.
func revokeAll(text string) string {
	var b strings.Builder
	rest := strings.NewReplacer(
		"issuer:join-token:ID", `"issuer:join-token:$(bailment node token web-2 -o json | jq -r .id)" --preemptive`,
		"issuer:x509:NAME", "issuer:x509:corporate --preemptive",
		"issuer:ssh:SHA256:…", `"issuer:ssh:$(ssh-keygen -l -f carol.pub | cut -d ' ' -f 2)"`,
	)
	n := 0
	for _, row := range scopeRow.FindAllStringSubmatch(text, -1) {
		for i, part := range strings.Split(row[1], "`") {
			if i%2 == 1 {
				n++
				fmt.Fprintf(&b, "bailment revoke %s --yes --reason 'every row of the table'\n", rest.Replace(part))
			}
		}
	}
	if n < 8 {
		return fmt.Sprintf("echo 'only %d scopes were found in the table' >&2; exit 1\n", n)
	}
	return b.String() + "bailment login alice # a person can\n"
}

// example is the example's bundle for another environment, in the files that a site has.
func example(t *testing.T, name string) policy.Files {
	t.Helper()
	out := policy.Files{}
	join := func(to string, paths ...string) {
		var parts []string
		for _, path := range paths {
			text, err := fs.ReadFile(examples.FS, "payments/"+path)
			if err != nil {
				t.Fatal(err)
			}
			parts = append(parts, string(text))
		}
		out[to] = []byte(strings.Join(parts, "---\n"))
	}
	edit := func(path, from, to string) {
		if !strings.Contains(string(out[path]), from) {
			t.Fatalf("the example's %s does not say %q", path, from)
		}
		out[path] = []byte(strings.ReplaceAll(string(out[path]), from, to))
	}
	join("environment.yaml", "environment.yaml")
	edit("environment.yaml", "name: payments-dev", "name: "+name)
	edit("environment.yaml", "required: 0", "required: 1")
	join("identities/all.yaml", "identities/node.yaml", "identities/payments-api.yaml")
	join("grants/all.yaml", "grants/alice.yaml", "grants/payments-api.yaml")
	edit("grants/all.yaml", "secret.list,", "secret.list, secret.promote,")
	join("secrets/all.yaml", "secrets/db.yaml")
	return out
}

// home is where a page's reader sits, with alice's key.
func home(t *testing.T, s *sitetest.Site, dir string) {
	t.Helper()
	s.Check(os.MkdirAll(filepath.Join(dir, ".ssh"), 0o700))
	s.Check(s.KeyFile("alice", filepath.Join(dir, ".ssh", "id_ed25519")))
	for _, name := range slices.Sorted(maps.Keys(s.People)) {
		s.Check(s.KeyFile(name, filepath.Join(dir, name)))
	}
}

// serving is a running server of an environment with alice, bob and carol, and alice's place.
func serving(t *testing.T, name string) reader {
	r, _ := served(t, name)
	return r
}

func served(t *testing.T, name string) (reader, *sitetest.Site) {
	t.Helper()
	return servedWith(t, name, example(t, name))
}

// servedWith is served with another bundle, and more lines of the server's configuration.
func servedWith(t *testing.T, name string, bundle policy.Files, config ...string) (reader, *sitetest.Site) {
	t.Helper()
	s := newSite(t, site.Options{Name: name, People: []string{"bob", "carol"}, Extra: bundle, Config: strings.Join(config, "")})
	dir := t.TempDir()
	home(t, s, dir)
	s.Start()
	t.Cleanup(func() {
		if !t.Failed() {
			healthy(t, s.Site)
		}
	})
	boot, err := s.Bootstrap()
	s.Check(err)
	return reader{
		dir: dir,
		env: []string{
			"SERVER=" + strconv.Itoa(s.PID()), "DATA=" + s.Data, "NAME=" + name, "OPS=" + s.Ops,
			"BAILMENT_BOOTSTRAP=" + boot, "BAILMENT_HOME=" + filepath.Join(dir, "alice-home"), "BAILMENT_SSH_KEY=" + filepath.Join(dir, ".ssh", "id_ed25519"),
		},
		replace: strings.NewReplacer(
			"'bailment1:…'", "'"+boot+"'",
			" 97", " "+proposed, " 103", " "+proposed, " 104", " "+proposed, "127.0.0.1:8401", s.Ops, "127.0.0.1:8417", s.Addr, ":8417", s.Addr[strings.LastIndexByte(s.Addr, ':'):],
			"/var/lib/bailment", s.Data,
		),
	}, s
}

// mailing is served, and the server has a mail command, which keeps what it gets in the file mails.
func mailing(t *testing.T, name string) reader {
	t.Helper()
	dir := t.TempDir()
	command := filepath.Join(dir, "sendmail")
	if err := os.WriteFile(command, []byte("#!/bin/sh\ncat >> "+dir+"/mails\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	r, _ := servedWith(t, name, example(t, name), "notify: {mail: ["+command+", -t, -i]}\n")
	r.env = append(r.env, "MAILS="+dir+"/mails")
	return r
}

// recovering is served, in an environment where three days are some seconds.
func recovering(t *testing.T, name string) reader {
	t.Helper()
	r, _ := served(t, name)
	r.replace = strings.NewReplacer(" 97", " "+proposed, "delay: 72h", "delay: 6s")
	return r
}

// besideEstate is served, and has the other example's directory.
func besideEstate(t *testing.T, name string) reader {
	t.Helper()
	r, s := served(t, name)
	s.Check(os.CopyFS(filepath.Join(r.dir, "estate"), os.DirFS("../../examples/estate")))
	s.Connect()
	s.Node(s.Dial(s.Login()), "web-1")
	return r
}

// besideWest has another environment's trust bundle, and that environment running.
func besideWest(t *testing.T, name string) reader {
	t.Helper()
	r, s := served(t, name)
	west := newSite(t, site.Options{Name: "west.example"})
	west.Start()
	west.Connect()
	s.Check(os.WriteFile(filepath.Join(r.dir, "west.json"), bundleOf(west), 0o600))
	r.replace = strings.NewReplacer(" 97", " "+proposed, "127.0.0.1:8417", s.Addr, ":8417", s.Addr[strings.LastIndexByte(s.Addr, ':'):], "https://west.example:8400", "https://"+west.Addr)
	return r
}

// leasing has a machine, and a process on it with a secret.
func leasing(t *testing.T, name string) reader {
	t.Helper()
	r, s := served(t, name)
	return leased(t, r, s)
}

// moving is leasing, where the server has the root key beside its own that the page has made: what the page makes is another one.
func moving(t *testing.T, name string) reader {
	t.Helper()
	dir := t.TempDir()
	next := filepath.Join(dir, "next.key")
	if out, err := exec.Command(builder.Binary(t, ""), "root", "create", next).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	r, s := servedWith(t, name, example(t, name), fmt.Sprintf("root_holders:\n  %s: {next: {location: %s}}\n", name, next))
	r.replace = strings.NewReplacer(
		"create /etc/bailment/next.key", "create "+filepath.Join(dir, "made.key"), "/etc/bailment/next.key", next, " 97", " "+proposed,
	)
	return leased(t, r, s)
}

// ending is leasing, where what ends the environment waits for a moment.
func ending(t *testing.T, name string) reader {
	t.Helper()
	files := example(t, name)
	files["environment.yaml"] = bytes.Replace(files["environment.yaml"], []byte("required: 1"), []byte("required: 1\n    acts: [{act: environment.delete, delay: 2s}]"), 1)
	r, s := servedWith(t, name, files)
	return leased(t, r, s)
}

// reviewing is leasing, with a grant that nobody needs any more.
func reviewing(t *testing.T, name string) reader {
	t.Helper()
	files := example(t, name)
	files["grants/all.yaml"] = fmt.Appendf(files["grants/all.yaml"], "---\n%s",
		"apiVersion: bailment/v1\nkind: Grant\nmetadata: {name: payments-api-migrates}\n"+
			"spec: {actions: [secret.read], identities: [/workload/payments-api], secrets: [db/password], purposes: [migration]}\n")
	r, s := servedWith(t, name, files)
	return leased(t, r, s)
}

func leased(t *testing.T, r reader, s *sitetest.Site) reader {
	t.Helper()
	s.Connect()
	admin := s.Dial(s.Login())
	_, err := admin.Secrets.Generate(t.Context(), &bailmentv1.GenerateRequest{Secret: "db/password"})
	s.Check(err)
	session, err := s.Site.Workload(t.Context(), s.Node(admin, "web-1"), "/workload/payments-api")
	s.Check(err)
	_, err = s.Dial(session).Secrets.Get(t.Context(), &bailmentv1.GetRequest{Secret: "db/password"})
	s.Check(err)
	return r
}

// released is a server whose bundle names a signer of releases, and two machines with agents of them.
func released(t *testing.T, name string) reader {
	t.Helper()
	dir := t.TempDir()
	key := filepath.Join(dir, "releases")
	public := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(releaseKey(t, key))))
	files := example(t, name)
	files["environment.yaml"] = fmt.Appendf(files["environment.yaml"], "  agents:\n    signers:\n      - %s releases 2026\n    require: signed\n    minimum: 1.4.0\n", public)
	r, s := servedWith(t, name, files)
	s.Connect()
	text, err := os.ReadFile(key)
	s.Check(err)
	signer, err := ssh.ParsePrivateKey(text)
	s.Check(err)
	admin := s.Dial(s.Login())
	for machine, version := range map[string]string{"web-1": "1.4.0", "web-2": "1.5.0"} {
		join(t, s, s.Token(admin, machine), statement(t, signer, version))
	}
	return r
}

// join attests a machine whose agent says such a thing of itself.
func join(t *testing.T, s *sitetest.Site, tok jointoken.Token, says *bailmentv1.AgentStatement) {
	t.Helper()
	c, err := client.Dial(s.Trust, client.Options{Attempts: 1, Agent: func() *bailmentv1.AgentStatement { return says }})
	s.Check(err)
	defer c.Close()
	attester, err := jointoken.NewAttester(tok)
	s.Check(err)
	key, err := client.NewKey()
	s.Check(err)
	_, err = c.Attest(t.Context(), jointoken.Name, attester, key, says.Version)
	s.Check(err)
}

// statement is that of an agent of a release whose binary is its version's name.
func statement(t testing.TB, signer ssh.Signer, version string) *bailmentv1.AgentStatement {
	t.Helper()
	manifest, signature := sign(t, signer, version, []byte(version))
	digest := sha256.Sum256([]byte(version))
	return &bailmentv1.AgentStatement{Version: version, Platform: here, Digest: digest[:], Manifest: manifest, Signature: string(signature)}
}

// standIns are for what a page needs and a test must not use, or has not.
//
//go:embed testdata/standins.bash
var standIns string

// editing is who has a bundle in a directory, and nothing else.
func editing(t *testing.T, _ string) reader {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "env"), os.DirFS("../../examples/payments")); err != nil {
		t.Fatal(err)
	}
	return reader{dir: dir}
}

// machine is one with nothing on it but a working tree and a bundle.
func machine(t *testing.T, name string) reader {
	t.Helper()
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	// A founded site that is not used, for the key and the file with the operators.
	s := newSite(t, site.Options{People: []string{"bob"}})
	home(t, s, dir)
	repo, err := filepath.Abs("../..")
	must(err)
	example, err := fs.Sub(examples.FS, "payments")
	must(err)
	must(os.CopyFS(filepath.Join(dir, "env"), example))
	must(os.CopyFS(filepath.Join(dir, "packaging"), os.DirFS(filepath.Join(repo, "packaging"))))
	operators := filepath.Join(dir, "env", "operators.yaml")
	text, err := os.ReadFile(operators)
	must(err)
	key, err := os.ReadFile(filepath.Join(dir, ".ssh", "id_ed25519.pub"))
	must(err)
	mine := regexp.MustCompile(`ssh-ed25519 \S+ \S+`).ReplaceAll(text, bytes.TrimSpace(key))
	must(os.WriteFile(operators, mine, 0o600))
	const program = "#!/bin/sh\ntest ${#DB_PASSWORD} = 32\n"
	root := filepath.Join(dir, "root")
	for _, x := range []string{"etc/systemd/system", "usr/bin", "usr/share/man/man1", "var/lib", "run", "your"} {
		must(os.MkdirAll(filepath.Join(root, x), 0o700))
	}
	must(os.WriteFile(filepath.Join(root, "your", "program"), []byte(program), 0o700))
	must(os.WriteFile(filepath.Join(dir, "payments-api"), []byte(program), 0o700))

	port, ops := freePort(t), freePort(t)
	notify, notified := filepath.Join(root, "notify"), filepath.Join(root, "notified")
	hear(t, notify, notified)
	return reader{
		dir: dir, prelude: standIns,
		env: []string{
			"ROOT=" + root, "REPO=" + repo, "BIN=" + s.Bin, "OPS=" + ops, "NOTIFY=" + notify, "NOTIFIED=" + notified,
			"BAILMENT_HOME=" + filepath.Join(dir, "alice-home"), "BAILMENT_AGENT=" + filepath.Join(root, "run", "bailment", "agent.sock"),
		},
		replace: strings.NewReplacer(
			"'bailment1:…'", `"$(grep -o -m 1 'bailment1:[^ ]*' "$OUTPUT")"`,
			"bailment.example", "127.0.0.1", "0.0.0.0", "127.0.0.1", "127.0.0.1:8401", "127.0.0.1:"+ops, "8400", port,
			" /usr/bin/", " "+root+"/usr/bin/", " /usr/share/", " "+root+"/usr/share/", " /etc/", " "+root+"/etc/", " /var/lib/", " "+root+"/var/lib/",
		),
	}
}

// hear writes what is told to a socket in systemd's way to a file, a line for each assignment.
func hear(t *testing.T, socket, file string) {
	t.Helper()
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	to, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := l.Read(b)
			if err != nil {
				done <- nil // closed by the end of the test
				return
			}
			if _, err := fmt.Fprintf(to, "%s\n", bytes.TrimSpace(b[:n])); err != nil {
				done <- err
				return
			}
		}
	}()
	t.Cleanup(func() {
		l.Close()
		if err := errors.Join(<-done, to.Close()); err != nil {
			t.Error(err)
		}
	})
}

func freePort(t *testing.T) string {
	t.Helper()
	addr, err := site.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return port
}
