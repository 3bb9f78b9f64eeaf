package sshsig

import (
	"bufio"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/problem"
)

// startAgent runs the real ssh-agent until the test ends, with the given private keys in it.
func startAgent(t *testing.T, keys ...string) (socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent") // short: a socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket = filepath.Join(dir, "s")
	cmd := exec.Command("ssh-agent", "-D", "-a", socket)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	// Its first line comes after it listens.
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal("ssh-agent said nothing:", err)
	}
	for _, k := range keys {
		add := exec.Command("ssh-add", "-q", k)
		add.Env = append(os.Environ(), "SSH_AUTH_SOCK="+socket)
		if out, err := add.CombinedOutput(); err != nil {
			t.Fatalf("ssh-add: %v: %s", err, out)
		}
	}
	return socket
}

func TestLoadFromAgent(t *testing.T) {
	p256Path, p256 := keygen(t, "-t", "ecdsa", "-b", "256", "-N", "")
	edPath, ed := keygen(t, "-t", "ed25519", "-N", "")
	rsaPath, rsaKey := keygen(t, "-t", "rsa", "-b", "3072", "-N", "")
	weakPath, weak := keygen(t, "-t", "rsa", "-b", "2048", "-N", "")
	absentPath, absent := keygen(t, "-t", "ed25519", "-N", "")
	socket := startAgent(t, weakPath, p256Path, edPath, rsaPath)
	line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(ed)))

	for name, c := range map[string]struct {
		spec    string
		allowed []ssh.PublicKey
		want    ssh.PublicKey
	}{
		"fingerprint":             {Fingerprint(rsaKey), nil, rsaKey},
		"public key file":         {p256Path + ".pub", nil, p256},
		"public key":              {line, nil, ed},
		"public key with comment": {line + " me", []ssh.PublicKey{ed}, ed},
		"only allowed one":        {"", []ssh.PublicKey{absent, rsaKey}, rsaKey},
		"first allowed one":       {"", []ssh.PublicKey{ed, p256}, p256},
		"weak one is passed over": {"", []ssh.PublicKey{weak, ed}, ed},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := Load(t.Context(), c.spec, Options{AgentSocket: socket, Allowed: c.allowed})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if !SameKey(s.PublicKey(), c.want) || !strings.HasPrefix(s.Source, "ssh-agent ") {
				t.Errorf("got %s from %s", Fingerprint(s.PublicKey()), s.Source)
			}
			sig, err := Sign(s, NamespaceLogin, []byte(message))
			if err != nil {
				t.Fatal(err)
			}
			if err := keygenVerify(t, c.want, NamespaceLogin, message, sig); err != nil {
				t.Error(err)
			}
		})
	}
	for name, c := range map[string]struct {
		spec    string
		socket  string
		allowed []ssh.PublicKey
		want    problem.Reason
	}{
		"absent":                {Fingerprint(absent), socket, nil, problem.ReasonNotFound},
		"absent by file":        {absentPath + ".pub", socket, nil, problem.ReasonNotFound},
		"none allowed":          {"", socket, []ssh.PublicKey{absent}, problem.ReasonNotFound},
		"nothing named":         {"", socket, nil, problem.ReasonInvalid},
		"not allowed":           {Fingerprint(ed), socket, []ssh.PublicKey{p256}, problem.ReasonSignature},
		"not allowed by file":   {edPath + ".pub", socket, []ssh.PublicKey{p256}, problem.ReasonSignature},
		"weak":                  {Fingerprint(weak), socket, nil, problem.ReasonUnsupported},
		"weak by file":          {weakPath + ".pub", socket, nil, problem.ReasonUnsupported},
		"no agent":              {Fingerprint(ed), "", nil, problem.ReasonUnreachable},
		"dead agent":            {Fingerprint(ed), socket + "x", nil, problem.ReasonUnreachable},
		"bad public key":        {"ssh-ed25519 AAAA", socket, nil, problem.ReasonInvalid},
		"file that isn't there": {edPath + ".none", socket, nil, problem.ReasonNotFound},
		"directory":             {filepath.Dir(edPath), socket, nil, problem.ReasonInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := Load(t.Context(), c.spec, Options{AgentSocket: c.socket, Allowed: c.allowed})
			wantReason(t, err, c.want)
			if s != nil {
				t.Error("gave a signer together with an error")
			}
		})
	}
}

func TestLoadFromFile(t *testing.T) {
	path, key := keygen(t, "-t", "ed25519", "-N", "")
	lockedPath, locked := keygen(t, "-t", "ed25519", "-N", "correct horse")
	weakPath, _ := keygen(t, "-t", "rsa", "-b", "2048", "-N", "")

	s, err := Load(t.Context(), path, Options{})
	if err != nil || !SameKey(s.PublicKey(), key) || s.Source != path || s.Close() != nil {
		t.Fatal(err)
	}
	var given []byte
	ask := func(phrase string, err error) func(string) ([]byte, error) {
		return func(p string) ([]byte, error) {
			if p != lockedPath {
				t.Errorf("asked for the passphrase of %s", p)
			}
			given = []byte(phrase)
			return given, err
		}
	}
	s, err = Load(t.Context(), lockedPath, Options{Passphrase: ask("correct horse", nil)})
	if err != nil || !SameKey(s.PublicKey(), locked) {
		t.Fatal(err)
	}
	if strings.Trim(string(given), "\x00") != "" {
		t.Error("the passphrase was not wiped")
	}
	for name, c := range map[string]struct {
		path string
		o    Options
		want problem.Reason
	}{
		"wrong passphrase": {lockedPath, Options{Passphrase: ask("battery", nil)}, problem.ReasonInvalid},
		"refused to tell":  {lockedPath, Options{Passphrase: ask("", errors.New("no"))}, problem.ReasonCanceled},
		"nobody to ask":    {lockedPath, Options{}, problem.ReasonInvalid},
		"not allowed":      {path, Options{Allowed: []ssh.PublicKey{locked}}, problem.ReasonSignature},
		"weak":             {weakPath, Options{}, problem.ReasonUnsupported},
	} {
		_, err := Load(t.Context(), c.path, c.o)
		if !problem.Is(err, c.want) || strings.Contains(err.Error(), "battery") {
			t.Errorf("%s: %v", name, err)
		}
	}
	// An encrypted file whose key is in the agent needs no passphrase.
	plain := filepath.Join(t.TempDir(), "plain")
	text, _ := os.ReadFile(lockedPath)
	if err := os.WriteFile(plain, text, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := openssh(t, "", "", "ssh-keygen", "-q", "-p", "-P", "correct horse", "-N", "", "-f", plain)
	must(t, out, err)
	s, err = Load(t.Context(), lockedPath, Options{AgentSocket: startAgent(t, plain)})
	if err != nil || !SameKey(s.PublicKey(), locked) {
		t.Fatal(err)
	}
	s.Close()
	// Files that others can read are refused, as ssh does.
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	_, err = Load(t.Context(), path, Options{})
	wantReason(t, err, problem.ReasonPermissions)
}

func TestLoadRefusesFiles(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want problem.Reason
	}{
		"garbage":     {"hello\n", problem.ReasonInvalid},
		"empty":       {"", problem.ReasonInvalid},
		"broken key":  {"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n", problem.ReasonUnsupported},
		"certificate": {"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", problem.ReasonUnsupported},
		"huge":        {strings.Repeat("x", maxKeyFile+1), problem.ReasonTooLarge},
	} {
		path := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(t.Context(), path, Options{}); !problem.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A hung agent doesn't hang the caller beyond its context.
func TestAgentHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		go func() { // takes the request and never answers
			buf := make([]byte, 64)
			for {
				if _, err := theirs.Read(buf); err != nil {
					return
				}
			}
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 5e9)
		defer cancel()
		if _, err := agentSigners(ctx, ours); err == nil {
			t.Error("no error from a hung agent")
		}
	})
}

// The file of a hardware key is a stub that only OpenSSH reads: its .pub beside it finds the key in
// the agent. Here an unreadable private key file stands for the stub.
func TestLoadStub(t *testing.T) {
	path, key := keygen(t, "-t", "ed25519", "-N", "")
	socket := startAgent(t, path)
	if err := os.WriteFile(path, []byte("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Load(t.Context(), path, Options{AgentSocket: socket})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if !SameKey(s.PublicKey(), key) {
		t.Error("another key")
	}
	for _, broken := range []string{"", "nonsense"} {
		if err := os.WriteFile(path+".pub", []byte(broken), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err = Load(t.Context(), path, Options{AgentSocket: socket})
		wantReason(t, err, problem.ReasonUnsupported)
		if !strings.Contains(problem.As(err).WayOut(), "ssh-add") {
			t.Errorf("the way out doesn't name ssh-add: %s", problem.As(err).WayOut())
		}
	}
}
