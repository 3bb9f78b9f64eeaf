package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	_ "modernc.org/sqlite"

	bailmentv1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/test/site"
	"github.com/bailment/bailment/test/site/sitetest"
)

// silent is a whole installation through which canaries pass, and what was seen of it.
type silent struct {
	*sitetest.Site
	home  string // of the command line and the agent
	agent *exec.Cmd
	alog  *site.Log
	texts map[string]string // what was written where somebody may read it
}

func newSilent(t *testing.T) *silent {
	t.Helper()
	s := &silent{Site: newSite(t, site.Options{Name: "silent.example", Config: "log: {level: debug}\n"}), home: t.TempDir(), alog: &site.Log{}, texts: map[string]string{}}
	s.Start()
	s.Connect()
	s.Check(s.KeyFile("alice", filepath.Join(s.home, "alice")))
	s.run("login", "", 0, "login", "alice", "-i", filepath.Join(s.home, "alice"))
	return s
}

// run runs the command line and keeps what it wrote to standard error.
func (s *silent) run(name, stdin string, exit int, args ...string) string {
	s.T.Helper()
	out := cli(s.T, s.Site.Site, s.home, stdin, args...)
	s.texts["command line's standard error: "+name] += out.stderr
	if out.exit != exit {
		s.T.Fatalf("%s ended with %d, want %d\n%s", name, out.exit, exit, out.stderr)
	}
	return out.stdout
}

// startAgent runs an agent as a process of its own, attested by a token.
func (s *silent) startAgent() {
	s.T.Helper()
	boot, err := s.Bootstrap()
	s.Check(err)
	tok := s.Token(s.Dial(s.Login()), "web")
	s.Check(os.WriteFile(filepath.Join(s.home, "token"), []byte(tok.Reveal()), 0o600))
	conf := fmt.Sprintf("bootstrap: %q\ndata: %s\nsocket: %s\nattest:\n  files:\n    token: %s\nlog: {level: debug}\n",
		boot, filepath.Join(s.home, "agent"), filepath.Join(s.home, "agent.sock"), filepath.Join(s.home, "token"))
	s.Check(os.WriteFile(filepath.Join(s.home, "agent.yaml"), []byte(conf), 0o600))
	s.agent = exec.Command(s.Bin, "agent", "--config", filepath.Join(s.home, "agent.yaml"))
	s.agent.Stdout, s.agent.Stderr = s.alog, s.alog
	s.Check(s.agent.Start())
	s.T.Cleanup(s.stopAgent)
	deadline := time.Now().Add(20 * time.Second)
	for !strings.Contains(cli(s.T, s.Site.Site, s.home, "", "agent", "status").stdout, "ready") {
		if time.Now().After(deadline) {
			s.T.Fatalf("the agent does not get ready\n%s", s.alog)
		}
		<-time.After(20 * time.Millisecond)
	}
}

func (s *silent) stopAgent() {
	if s.agent == nil {
		return
	}
	_ = s.agent.Process.Signal(syscall.SIGTERM) // it may be gone
	_ = s.agent.Wait()
	s.agent = nil
}

// use hands canaries in and out on every way there is, and returns while a program that has one still runs.
func (s *silent) use() (finish func()) {
	s.T.Helper()
	ctx := s.T.Context()
	s.run("put", canary, 0, "secret", "put", "app/cli")
	file := filepath.Join(s.T.TempDir(), "value")
	s.Check(os.WriteFile(file, []byte(canary+" from a file"), 0o600))
	s.run("put from a file", "", 0, "secret", "put", "app/file", "--file", file)
	admin := s.Dial(s.Login())
	// So large a value is spread over pages of the store.
	large := []byte(strings.Repeat(canary, 1000))
	for secret, value := range map[string][]byte{"app/api": []byte(canary + " by the API"), "app/large": large} {
		_, err := admin.Secrets.Put(ctx, &bailmentv1.PutRequest{Secret: secret, Value: value, IdempotencyKey: "key-" + secret[4:]})
		s.Check(err)
	}
	reader := s.Dial(s.Workload(admin, "direct"))
	for _, secret := range []string{"app/cli", "app/file", "app/api", "app/large"} {
		out, err := reader.Secrets.Get(ctx, &bailmentv1.GetRequest{Secret: secret, Receipt: true})
		s.Check(err)
		if !bytes.HasPrefix(out.Value, []byte(canary)) {
			s.T.Fatalf("%s: another value came back", secret)
		}
		s.texts["receipt of "+secret] = string(out.Receipt)
	}
	s.startAgent()
	sum := sha256.Sum256([]byte(canary))
	out := s.run("run with files", "", 0, "run", "--secret-file", "app/cli=VALUE", "--receipts", filepath.Join(s.home, "receipts"), "--", "sh", "-c", `sha256sum < "$VALUE_FILE"`)
	if !strings.Contains(out, fmt.Sprintf("%x", sum)) {
		s.T.Fatalf("the program was given something else: %s", out)
	}
	return s.hold(fmt.Sprintf("%x", sum))
}

// hold runs a program that has the canary in its environment, until finish is called.
func (s *silent) hold(sum string) (finish func()) {
	s.T.Helper()
	cmd := exec.Command(s.Bin, "run", "--secret", "app/cli=VALUE", "--", "sh", "-c", `printf %s "$VALUE" | sha256sum; read -r _`)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.home, "BAILMENT_HOME=" + s.home, "BAILMENT_AGENT=" + filepath.Join(s.home, "agent.sock")}
	stdin, err := cmd.StdinPipe()
	s.Check(err)
	stdout, err := cmd.StdoutPipe()
	s.Check(err)
	logs := &site.Log{}
	cmd.Stderr = logs
	s.Check(cmd.Start())
	line := make([]byte, len(sum))
	if _, err := stdout.Read(line); err != nil || string(line) != sum {
		s.T.Fatalf("the program was given something else: %q (%v)\n%s", line, err, logs)
	}
	// The program has the value; bailment, which runs it, has not in what others can see.
	s.texts["the running `bailment run`"] = strings.Join(cmd.Args, "\x00") + processText(s.T, cmd.Process.Pid)
	return func() {
		s.T.Helper()
		s.Check(stdin.Close())
		_ = cmd.Wait() // read fails at the end of its input
		s.texts["standard error of `bailment run`"] = logs.String()
	}
}

// provoke has everything refuse requests that hold a canary.
func (s *silent) provoke() {
	s.T.Helper()
	ctx := s.T.Context()
	alice := s.Login()
	admin, nobody := s.Dial(alice), s.Dial(nil)
	refused := 0
	note := func(what string, err error) {
		s.T.Helper()
		if err == nil {
			s.T.Fatalf("%s was not refused", what)
		}
		refused++
		s.texts["error: "+what] = fmt.Sprintf("%v\n%+v", err, err)
	}
	put := func(what string, c *client.Client, r *bailmentv1.PutRequest) {
		_, err := c.Secrets.Put(ctx, r)
		note(what, err)
	}
	value := []byte(canary)
	put("a key used for another request", admin, &bailmentv1.PutRequest{Secret: "app/api", Value: value, IdempotencyKey: "key-api"})
	put("too large for a secret", admin, &bailmentv1.PutRequest{Secret: "app/api", Value: bytes.Repeat(value, 4000)})
	put("too large for a request", admin, &bailmentv1.PutRequest{Secret: "app/api", Value: bytes.Repeat(value, 60_000)})
	put("without a session", nobody, &bailmentv1.PutRequest{Secret: "app/api", Value: value})
	put("not declared", admin, &bailmentv1.PutRequest{Secret: "elsewhere/x", Value: value})
	put("no name", admin, &bailmentv1.PutRequest{Value: value})
	put("a bad key", admin, &bailmentv1.PutRequest{Secret: "app/api", Value: value, IdempotencyKey: "a b"})
	_, err := admin.Secrets.Generate(ctx, &bailmentv1.GenerateRequest{Secret: "app/api", Recipe: "nonsense"})
	note("a recipe that there isn't", err)
	quoted := strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(canary)
	encoded := base64.StdEncoding.EncodeToString(value)
	h := &hostile{Site: s.Site}
	for name, body := range map[string]string{
		"a value that is not base64":       `{"secret":"app/api","value":"` + quoted + `"}`,
		"a value that is a list":           `{"secret":"app/api","value":["` + encoded + `"]}`,
		"a value that is an object":        `{"secret":"app/api","value":{"` + encoded + `":"` + quoted + `"}}`,
		"a value in a field of ours":       `{"secret":"app/api","stage":"` + quoted + `"}`,
		"a value in an unknown field":      `{"secret":"app/api","password":"` + encoded + `"}`,
		"a value as a field's name":        `{"secret":"app/api","` + quoted + `":1}`,
		"a value that breaks off":          `{"secret":"app/api","value":"` + encoded,
		"a value twice":                    `{"value":"` + encoded + `","value":"` + encoded + `"}`,
		"a value without quotes":           `{"secret":"app/api","value":` + canary + `}`,
		"a value and nothing else":         canary,
		"a value with a control character": `{"secret":"app/api","value":"` + canary + "\x01" + `"}`,
	} {
		for _, contentType := range []string{"application/json", "application/proto", "text/plain", "application/grpc", "application/grpc-web+proto", "application/connect+json"} {
			status, answer := h.post(s.testing(), alice, "SecretService/Put", http.Header{"Content-Type": {contentType}}, body)
			// gRPC tells its errors in trailers, under status 200.
			if status == http.StatusOK && !strings.HasPrefix(contentType, "application/grpc") && contentType != "application/connect+json" {
				s.T.Fatalf("%s as %s was taken: %s", name, contentType, answer)
			}
			refused++
			s.texts["answer to "+name+" as "+contentType] = answer
		}
	}
	s.run("put to what is not declared", canary, 2, "secret", "put", "elsewhere/x")
	s.run("put of too much", strings.Repeat(canary, 4000), 1, "secret", "put", "app/api")
	s.run("put to a name that is none", canary, 1, "secret", "put", "../x")
	s.run("run of what fails", "", 125, "run", "--secret", "app/cli=VALUE", "--secret", "app/none=OTHER", "--", "true")
	s.run("run of what there isn't", "", 127, "run", "--secret", "app/cli=VALUE", "--", "nonsense-command")
	if refused < 60 {
		s.T.Fatalf("only %d requests were refused: that tests nothing", refused)
	}
}

func (s *silent) testing() *testing.T { return s.T.(*testing.T) }

// processText is what others can see of a process. The kernel may show the environment of a process that
// can't be dumped to root only: then nobody else sees it either.
func processText(t testing.TB, pid int) string {
	t.Helper()
	var all []byte
	for _, name := range []string{"cmdline", "environ"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
		if err != nil && (name == "cmdline" || !errors.Is(err, fs.ErrPermission)) {
			t.Fatal(err)
		}
		all = append(append(all, b...), '\n')
	}
	return string(all)
}

// look gathers what can be read now, from outside and by operators.
func (s *silent) look(when string) {
	s.T.Helper()
	s.texts["server's arguments and environment "+when] = processText(s.T, s.PID())
	s.texts["agent's arguments and environment "+when] = processText(s.T, s.agent.Process.Pid)
	s.texts["/metrics "+when] = get(s.T, s.Site.Site, "/metrics")
	s.texts["/readyz "+when] = get(s.T, s.Site.Site, "/readyz")
	c := s.Dial(s.Login())
	_, bodies := entries(s.T, c)
	s.texts["ledger "+when] = string(bytes.Join(bodies, []byte("\n")))
	s.texts["status of the agent "+when] = s.run("agent status", "", 0, "agent", "status", "-o", "json")
	s.texts["lists "+when] = s.run("secret list", "", 0, "secret", "list", "-o", "json") + s.run("history", "", 0, "secret", "history", "app/cli", "-o", "json")
}

// trees are the directories that server, agent and command line leave behind.
func (s *silent) trees() map[string]string {
	return map[string]string{"the server's directory": s.Data, "the agent's and the command line's": s.home}
}

// find looks for the canary in everything that was gathered.
func find(t *testing.T, texts, trees map[string]string) []string {
	t.Helper()
	var found []string
	for name, text := range texts {
		for _, f := range search([]byte(text), canary) {
			found = append(found, name+" ("+f+")")
		}
	}
	for _, dir := range trees {
		found = append(found, searchTree(t, dir, canary)...)
		found = append(found, searchDatabases(t, dir, canary)...)
	}
	return found
}

// searchDatabases reads every field of every table of the databases below a directory: a value that is
// spread over pages is in one piece there. It reads copies, since the database may be in use.
func searchDatabases(t *testing.T, dir, value string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".db") {
			return err
		}
		copied := filepath.Join(t.TempDir(), "copy.db")
		for _, suffix := range []string{"", "-wal"} {
			b, err := os.ReadFile(path + suffix)
			if err != nil && (suffix == "" || !errors.Is(err, fs.ErrNotExist)) {
				return err
			}
			if err := os.WriteFile(copied+suffix, b, 0o600); err != nil {
				return err
			}
		}
		for where, text := range fields(t, copied) {
			for _, f := range search(text, value) {
				found = append(found, path+" "+where+" ("+f+")")
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// fields are the fields of a database by their tables and columns, those of a column one after the other.
func fields(t *testing.T, path string) map[string][]byte {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var tables []string
	rows, err := db.Query(`SELECT name FROM sqlite_schema WHERE type = 'table'`)
	for err == nil && rows.Next() {
		var name string
		if err = rows.Scan(&name); err == nil {
			tables = append(tables, name)
		}
	}
	if err != nil || rows.Err() != nil {
		t.Fatal(err, rows.Err())
	}
	out := map[string][]byte{}
	for _, table := range tables {
		if err := readTable(db, table, out); err != nil {
			t.Fatal(err)
		}
	}
	if len(out) < 10 {
		t.Fatalf("%s has %d columns: that is not the store", path, len(out))
	}
	return out
}

func readTable(db *sql.DB, table string, out map[string][]byte) error {
	rows, err := db.QueryContext(context.Background(), `SELECT * FROM "`+table+`"`)
	if err != nil {
		return err
	}
	defer rows.Close()
	names, err := rows.Columns()
	if err != nil {
		return err
	}
	for _, n := range names {
		out[table+"."+n] = nil
	}
	row := make([]sql.RawBytes, len(names))
	into := make([]any, len(names))
	for i := range row {
		into[i] = &row[i]
	}
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return err
		}
		for i, n := range names {
			out[table+"."+n] = append(append(out[table+"."+n], row[i]...), '\n')
		}
	}
	return rows.Err()
}

// TestSilent passes canary values through the whole house, provokes errors around them at the most
// talkative log level, and finds them nowhere; and the same search finds each planted leak.
func TestSilent(t *testing.T) {
	s := newSilent(t)
	finish := s.use()
	s.provoke()
	s.look("while a program has the value")
	found := find(t, nil, s.trees())
	finish()
	s.look("after it")
	serverLog, agentLog := s.Logs, s.alog
	s.stopAgent()
	s.Stop()
	s.texts["server's log"], s.texts["agent's log"] = serverLog.String(), agentLog.String()
	if !strings.Contains(s.texts["server's log"], "level=") || !strings.Contains(s.texts["agent's log"], "level=") {
		t.Fatalf("there is no log to look at: %q %q", s.texts["server's log"], s.texts["agent's log"])
	}
	for _, f := range append(found, find(t, s.texts, s.trees())...) {
		t.Errorf("the canary is in %s", f)
	}
	t.Run("planted", func(t *testing.T) { s.planted(t) })
}

// planted puts the canary into a copy of each sink, in several dresses: each must be found.
func (s *silent) planted(t *testing.T) {
	leaks := map[string]string{
		"raw": canary, "base64": base64.StdEncoding.EncodeToString([]byte("x" + canary + "y")), "hex": fmt.Sprintf("%x", canary),
		"quoted": fmt.Sprintf("%q", canary), "bytes": fmt.Sprint([]byte(canary)),
	}
	for name, text := range s.texts {
		for dress, leak := range leaks {
			half := len(text) / 2
			if len(find(t, map[string]string{name: text[:half] + leak + text[half:]}, nil)) == 0 {
				t.Errorf("planted in %s, %s: not found", name, dress)
			}
		}
	}
	for name, dir := range s.trees() {
		to := filepath.Join(t.TempDir(), "copy")
		copyTree(t, dir, to)
		if found := find(t, nil, map[string]string{name: to}); len(found) > 0 {
			t.Fatalf("found in a copy of what is clean: %v", found)
		}
		for dress, leak := range leaks {
			f := filepath.Join(to, "deep", "planted")
			s.Check(os.MkdirAll(filepath.Dir(f), 0o700))
			s.Check(os.WriteFile(f, []byte(leak), 0o600))
			if len(find(t, nil, map[string]string{name: to})) == 0 {
				t.Errorf("planted in a file of %s, %s: not found", name, dress)
			}
			s.Check(os.Remove(f))
		}
	}
	s.plantedInStore(t, leaks)
}

// plantedInStore writes into a copy of the store, so that the leak lies across a page's end.
func (s *silent) plantedInStore(t *testing.T, leaks map[string]string) {
	for dress, leak := range leaks {
		dir := filepath.Join(t.TempDir(), "store")
		copyTree(t, s.Dir(), dir)
		db, err := sql.Open("sqlite", filepath.Join(dir, "store.db"))
		s.Check(err)
		blob := bytes.Repeat([]byte("."), 3*4096)
		copy(blob[4096+1500:], leak) // somewhere in the overflow pages
		_, err = db.Exec(`INSERT INTO blobs VALUES (?, ?)`, []byte("planted"), blob)
		s.Check(err)
		s.Check(db.Close())
		if len(searchDatabases(t, dir, canary)) == 0 {
			t.Errorf("planted in the store, %s: not found", dress)
		}
	}
}
