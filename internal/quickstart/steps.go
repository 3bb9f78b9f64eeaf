package quickstart

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/bailment/bailment/internal/problem"
)

// entry is how commands name an entry of the ledger in JSON.
type entry struct {
	Index json.Number `json:"index"`
}

func (s *show) found(ctx context.Context) error {
	s.say("An environment comes to life: no root token, no password.")
	key, err := s.operatorKey()
	if err != nil {
		return err
	}
	if err := s.bundle(key); err != nil {
		return err
	}
	if s.addr, err = freeAddress(); err != nil {
		return err
	}
	if _, err := s.command(ctx, "bundle", "check", s.path("bundle")); err != nil {
		return err
	}
	out, err := s.command(ctx, "init", s.path("bundle"), "--data", s.path("data"), "--address", s.addr)
	if err != nil {
		return err
	}
	v, err := decode[struct {
		Bootstrap string `json:"bootstrap"`
		Genesis   string `json:"genesis"`
	}](out)
	if err != nil {
		return err
	}
	s.note("The bundle in %s says who may have what; alice's SSH key signed genesis.   [ledger entry 0]", rel(s.path("bundle")))
	s.note("Machines find it by %s…", v.Bootstrap[:min(len(v.Bootstrap), 60)])
	return s.write("bootstrap", []byte(v.Bootstrap+"\n"))
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", problem.Wrap(err, problem.ReasonUnreachable, "looking for a free port")
	}
	defer l.Close()
	return l.Addr().String(), nil
}

func rel(path string) string {
	wd, err := os.Getwd()
	if err != nil {
		return path
	}
	if r, err := filepath.Rel(wd, path); err == nil && !strings.HasPrefix(r, "..") {
		return "./" + r
	}
	return path
}

func (s *show) serve(ctx context.Context) error {
	s.say("The server starts on loopback, with its store in one directory.")
	text := fmt.Sprintf("data: %q\nlisten: %s\nops_listen: 127.0.0.1:0\nserver_id: quickstart\n", s.path("data"), s.addr)
	if err := s.write("server.yaml", []byte(text)); err != nil {
		return err
	}
	if err := s.start(ctx, "server", exists(s.path("server.json")), "server", "--config", s.path("server.yaml"), "--ready-file", s.path("server.json")); err != nil {
		return err
	}
	s.note("HTTPS on %s, TLS 1.3 only; its log is %s.", s.addr, rel(s.path("server.log")))
	return nil
}

func (s *show) login(ctx context.Context) error {
	s.say("alice logs in: she signs a challenge with her SSH key.")
	out, err := s.command(ctx, "login", "alice")
	if err != nil {
		return err
	}
	v, err := decode[struct {
		Entry   uint64 `json:"entry"`
		Expires string `json:"expires"`
	}](out)
	if err != nil {
		return err
	}
	s.note("Her session is a certificate until %s.   [ledger entry %d]", v.Expires, v.Entry)
	return nil
}

func (s *show) join(ctx context.Context) error {
	s.say("This machine proves what it is, with a join token that works once.")
	out, err := s.command(ctx, "node", "token", "this-machine")
	if err != nil {
		return err
	}
	v, err := decode[struct {
		Token string `json:"token"`
		Entry uint64 `json:"entry"`
	}](out)
	if err != nil {
		return err
	}
	if err := s.write("token", []byte(v.Token+"\n")); err != nil {
		return err
	}
	s.note("The token is a signing key; the server got its public half only.   [ledger entry %d]", v.Entry)
	text := fmt.Sprintf("bootstrap: %q\ndata: %q\nsocket: %q\nattest:\n  method: join-token\n  files: {token: %q}\n", s.bootstrap(), s.path("agent"), s.path("agent.sock"), s.path("token"))
	if err := s.write("agent.yaml", []byte(text)); err != nil {
		return err
	}
	ready := func() bool {
		out, err := s.command(ctx, "agent", "status")
		return err == nil && bytes.Contains(out, []byte(`"ready"`))
	}
	if err := s.start(ctx, "agent", ready, "agent", "--config", s.path("agent.yaml")); err != nil {
		return err
	}
	out, err = s.command(ctx, "agent", "status")
	if err != nil {
		return err
	}
	st, err := decode[struct {
		Identity string `json:"identity"`
	}](out)
	if err != nil {
		return err
	}
	s.note("The agent has its first certificate: %s", st.Identity)
	return nil
}

func (s *show) makeSecret(ctx context.Context) error {
	s.say("The server makes a database password. Nobody sees it, not alice either.")
	out, err := s.command(ctx, "secret", "generate", secretName)
	if err != nil {
		return err
	}
	v, err := decode[struct {
		Version json.Number `json:"version"`
		Entry   entry       `json:"entry"`
	}](out)
	if err != nil {
		return err
	}
	s.note("%s version %s is current.   [ledger entry %s]", secretName, v.Version, v.Entry.Index)
	if _, err := s.command(ctx, "secret", "get", secretName); err == nil {
		return problem.New(problem.ReasonInternal, "alice could read the password, which the policy forbids")
	}
	s.note("alice asks for it herself and is refused: a deny grant says that no person reads it.")
	return nil
}

// run starts a program with the password by `bailment run`.
func (s *show) run(ctx context.Context, out io.Writer, args ...string) (string, error) {
	args = append([]string{"run", "--secret", secretName + "=" + demoVariable, "--receipts", s.path("receipts"), "--"}, args...)
	cmd := exec.CommandContext(ctx, s.o.Exe, args...)
	var errOut bytes.Buffer
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = s.environ(), s.dir, out, &errOut
	err := cmd.Run()
	return errOut.String(), err
}

func (s *show) handOver(ctx context.Context) error {
	s.say("A real hand-over: a database and a service get the password, each under its own name.")
	// The database is told from the service by its executable: this program under another name.
	db := s.path("bin", "payments-db")
	if err := os.MkdirAll(filepath.Dir(db), 0o700); err != nil {
		return problem.Local(err, "making %s", filepath.Dir(db))
	}
	if err := copyFile(s.o.Exe, db); err != nil {
		return err
	}
	address := s.path("database.addr")
	if err := s.start(ctx, "database", exists(address), "run", "--secret", secretName+"="+demoVariable, "--", db, "quickstart-database", address); err != nil {
		return err
	}
	where, err := os.ReadFile(address)
	if err != nil {
		return problem.Local(err, "reading the database's address")
	}
	s.note("`bailment run -- payments-db` serves HTTP with basic authentication on %s.", where)
	var out bytes.Buffer
	told, err := s.run(ctx, &out, s.o.Exe, "quickstart-service", string(where))
	if err != nil {
		return problem.Wrap(err, problem.ReasonInternal, "the service: %s%s", told, out.String())
	}
	for line := range strings.Lines(told) {
		s.note("%s", strings.TrimSpace(line))
	}
	for line := range strings.Lines(out.String()) {
		s.note("`bailment run -- payments-api` logs in %s", strings.TrimSpace(line))
	}
	return nil
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return problem.Local(err, "reading %s", from)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o700)
	if err != nil {
		return problem.Local(err, "writing %s", to)
	}
	_, err = io.Copy(out, in)
	if err = errors.Join(err, out.Close()); err != nil {
		return problem.Local(err, "copying to %s", to)
	}
	return nil
}

func (s *show) verify(ctx context.Context) error {
	s.say("The receipt verifies offline: no server is asked.")
	files, err := filepath.Glob(s.path("receipts", "*"))
	if err != nil || len(files) == 0 {
		return problem.New(problem.ReasonInternal, "the hand-over left no receipt")
	}
	out, err := s.command(ctx, "receipt", "verify", files[0])
	if err != nil {
		return err
	}
	v, err := decode[struct {
		Index uint64 `json:"index"`
	}](out)
	if err != nil {
		return err
	}
	s.note("%s proves the release, signed by the ledger's key.   [ledger entry %d]", rel(files[0]), v.Index)
	return nil
}

func (s *show) revoke(ctx context.Context) error {
	s.say("An incident: alice revokes the service.")
	out, err := s.command(ctx, "revoke", "identity:/workload/payments-api", "--reason", "quickstart")
	if err != nil {
		return err
	}
	v, err := decode[struct {
		Entry   entry    `json:"entry"`
		Horizon string   `json:"horizon"`
		Rotate  []string `json:"rotate"`
	}](out)
	if err != nil {
		return err
	}
	s.note("Acknowledged in one commit; everything it covers is dead by %s.   [ledger entry %s]", v.Horizon, v.Entry.Index)
	s.note("What it had as a value it still knows, so the answer says what to rotate: %s.", strings.Join(v.Rotate, ", "))
	told, err := s.run(ctx, io.Discard, s.o.Exe, "quickstart-service", "unused")
	if err == nil {
		return problem.New(problem.ReasonInternal, "a revoked service got the password")
	}
	if !strings.Contains(told, string(problem.ReasonHeld)) && !strings.Contains(told, string(problem.ReasonCutoff)) {
		return problem.Wrap(err, problem.ReasonInternal, "the revoked service failed for another reason: %s", told)
	}
	s.note("The next hand-over is refused:")
	for line := range strings.Lines(told) {
		s.note("  %s", strings.TrimSpace(line))
	}
	return nil
}

func (s *show) audit(ctx context.Context) error {
	s.say("An auditor checks the whole ledger from the directory alone.")
	out, err := s.command(ctx, "ledger", "verify", "--dir", s.path("data", envName))
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 4) {
		return err
	}
	v, derr := decode[struct {
		Size uint64 `json:"size"`
	}](out)
	if derr != nil {
		return derr
	}
	s.note("%d entries: every hash, every signature and the state that they amount to are right.", v.Size)
	return nil
}

func (s *show) goodbye() {
	again := "bailment quickstart"
	if wd, err := os.Getwd(); err != nil || s.dir != filepath.Join(wd, filepath.Base(DefaultDir)) {
		again += " --dir " + quoted(s.dir)
	}
	s.out.say("\nThat was the whole way. ")
	if !s.o.Keep {
		s.out.say("Server and agent are stopped; %s may be removed.\n\nTo try things by hand, leave them running:\n\n  %s --keep\n\nThen read docs/tutorial.md.\n", rel(s.dir), again)
		return
	}
	s.out.say("Server and agent go on running. Try:\n\n")
	for _, kv := range s.environ() {
		if name, value, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "BAILMENT_") && name != "BAILMENT_BOOTSTRAP" {
			s.out.say("  export %s=%s\n", name, quoted(value))
		}
	}
	s.out.say(`
  bailment explain secret.read db/password --for /workload/payments-api
  bailment revocation lift identity:/workload/payments-api --reason "all clear"
  bailment change list            # then: bailment change approve NUMBER
  echo hello | bailment secret put db/password
  bailment run --secret db/password=DB_PASSWORD -- sh -c 'echo "$DB_PASSWORD"'
  bailment ledger tail
  bailment ledger verify

A second %s stops and removes this one.
`, again)
}

// quoted is a word for the shell.
func quoted(word string) string {
	plain := func(r rune) bool {
		return r < 0x80 && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || strings.ContainsRune("0123456789/._-:@%+,", r))
	}
	if word != "" && strings.IndexFunc(word, func(r rune) bool { return !plain(r) }) < 0 {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
