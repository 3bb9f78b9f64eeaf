package cli

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/crypto/ssh"
	modernc "modernc.org/sqlite"

	"github.com/bailment/bailment/examples"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"bailment": func() { os.Exit(Main()) }})
}

// The scripts run the command line in a process of its own, against real servers and agents.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script", Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"keygen": keygen, "found": found, "await": await, "getenv": getenv, "damage": damage, "edit": edit, "fill": fill, "tls": handshake,
			"authorities": authorities, "metadata": metadataService, "example": example, "agekey": agekey, "ageopen": ageopen,
		},
		Setup: func(e *testscript.Env) error {
			e.Setenv("HOME", e.WorkDir)
			// The race detector holds every process up for a second at its end, and here are a hundred.
			e.Setenv("GORACE", "atexit_sleep_ms=0 exitcode=66")
			e.Setenv("BAILMENT_HOME", filepath.Join(e.WorkDir, "home"))
			e.Setenv("BAILMENT_AGENT", filepath.Join(e.WorkDir, "agent.sock"))
			return nil
		},
	})
}

// keygen NAME...: SSH keys as ssh-keygen makes them, in NAME and NAME.pub.
func keygen(ts *testscript.TestScript, neg bool, args []string) {
	for _, name := range args {
		pub, key, err := ed25519.GenerateKey(nil)
		ts.Check(err)
		block, err := ssh.MarshalPrivateKey(key, name)
		ts.Check(err)
		public, err := ssh.NewPublicKey(pub)
		ts.Check(err)
		ts.Check(os.WriteFile(ts.MkAbs(name), pem.EncodeToMemory(block), 0o600))
		ts.Check(os.WriteFile(ts.MkAbs(name+".pub"), ssh.MarshalAuthorizedKey(public), 0o644))
	}
}

// agekey FILE: an identity of age, and its recipient as $RECIPIENT.
func agekey(ts *testscript.TestScript, neg bool, args []string) {
	id, err := age.GenerateX25519Identity()
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(id.String()), 0o600))
	ts.Setenv("RECIPIENT", id.Recipient().String())
}

// ageopen KEY FILE PLAIN: opens a file as age does.
func ageopen(ts *testscript.TestScript, neg bool, args []string) {
	id, err := age.ParseX25519Identity(ts.ReadFile(args[0]))
	ts.Check(err)
	plain, err := age.Decrypt(strings.NewReader(ts.ReadFile(args[1])), id)
	ts.Check(err)
	text, err := io.ReadAll(plain)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[2]), text, 0o600))
}

// example NAME DIR: an example bundle as it is.
func example(ts *testscript.TestScript, neg bool, args []string) {
	sub, err := fs.Sub(examples.FS, args[0])
	ts.Check(err)
	ts.Check(os.CopyFS(ts.MkAbs(args[1]), sub))
}

// found DIR APPROVALS PERSON...: the example bundle with these persons as operators, and without its tests, since the scripts change what
// they test.
func found(ts *testscript.TestScript, neg bool, args []string) {
	dir := ts.MkAbs(args[0])
	sub, err := fs.Sub(examples.FS, "payments")
	ts.Check(err)
	ts.Check(os.CopyFS(dir, sub))
	ts.Check(os.RemoveAll(filepath.Join(dir, "tests")))
	var b strings.Builder
	b.WriteString("apiVersion: bailment/v1\nkind: Operators\nmetadata: {name: operators}\nspec:\n  operators:\n")
	for _, p := range args[2:] {
		fmt.Fprintf(&b, "    - name: %s\n      keys: [%q]\n      duties: [propose, approve, revoke, admit, keys, audit]\n", p, strings.TrimSpace(ts.ReadFile(p+".pub")))
	}
	ts.Check(os.WriteFile(filepath.Join(dir, "operators.yaml"), []byte(b.String()), 0o644))
	path := filepath.Join(dir, "environment.yaml")
	text, err := os.ReadFile(path)
	ts.Check(err)
	ts.Check(os.WriteFile(path, []byte(strings.Replace(string(text), "required: 0", "required: "+args[1], 1)), 0o644))
}

const patience = 30 * time.Second

// await FILE: until it is there.
func await(ts *testscript.TestScript, neg bool, args []string) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(ts.MkAbs(args[0])); err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			ts.Fatalf("%s is still not there", args[0])
		}
	}
}

// getenv NAME FILE FIELD: a field of a JSON object, as a or a.b, into a variable; FIELD may be left out for the whole file.
func getenv(ts *testscript.TestScript, neg bool, args []string) {
	text := ts.ReadFile(args[1])
	if len(args) == 2 {
		ts.Setenv(args[0], strings.TrimSpace(text))
		return
	}
	var v any
	ts.Check(json.Unmarshal([]byte(text), &v))
	for name := range strings.SplitSeq(args[2], ".") {
		m, _ := v.(map[string]any)
		inner, ok := m[name]
		if !ok {
			ts.Fatalf("%s has no %s", args[1], args[2])
		}
		v = inner
	}
	ts.Setenv(args[0], fmt.Sprint(v))
}

// tls DIR: a program that knows nothing of us, given the PEM files of DIR, is somebody to the server at $BAILMENT_ADDR.
func handshake(ts *testscript.TestScript, neg bool, args []string) {
	dir := ts.MkAbs(args[0])
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "svid.pem"), filepath.Join(dir, "key.pem"))
	ts.Check(err)
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(ts.ReadFile(filepath.Join(dir, "bundle.pem")))) {
		ts.Fatalf("bundle.pem has no certificate")
	}
	const env = "payments-dev"
	c := &http.Client{Timeout: patience, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: env, Certificates: []tls.Certificate{pair}},
	}}
	defer c.CloseIdleConnections()
	resp, err := c.Post("https://"+ts.Getenv("BAILMENT_ADDR")+"/bailment.v1.SecretService/List", "application/json", strings.NewReader("{}"))
	ts.Check(err)
	ts.Check(resp.Body.Close())
	if resp.StatusCode != http.StatusOK {
		ts.Fatalf("the server says %s", resp.Status)
	}
}

// edit FILE OLD NEW: one replacement.
func edit(ts *testscript.TestScript, neg bool, args []string) {
	text := ts.ReadFile(args[0])
	if !strings.Contains(text, args[1]) {
		ts.Fatalf("%s does not say %s", args[0], args[1])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(strings.Replace(text, args[1], args[2], 1)), 0o644))
}

// fill FILE: replaces $NAME by the variable's value.
func fill(ts *testscript.TestScript, neg bool, args []string) {
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(os.Expand(ts.ReadFile(args[0]), ts.Getenv)), 0o600))
}

// damage DIR SQL: what somebody with a text editor for databases does to a store.
func damage(ts *testscript.TestScript, neg bool, args []string) {
	files, err := filepath.Glob(filepath.Join(ts.MkAbs(args[0]), "*.db"))
	ts.Check(err)
	if len(files) != 1 {
		ts.Fatalf("%s has %d databases", args[0], len(files))
	}
	// The product sets it before its first database, and tests beside this one open some in this process.
	if _, err := modernc.OFDLocking(true); err != nil && !errors.Is(err, modernc.ErrOFDLockingUnavailable) {
		ts.Check(err)
	}
	db, err := sql.Open("sqlite", files[0])
	ts.Check(err)
	r, err := db.Exec(args[1])
	ts.Check(err)
	if n, err := r.RowsAffected(); err != nil || n == 0 {
		ts.Fatalf("nothing was damaged: %v", err)
	}
	ts.Check(db.Close())
}
