package sshsig

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/bailment/bailment/internal/problem"
)

const maxKeyFile = 64 << 10

// Options say where Load may look.
type Options struct {
	// AgentSocket is the path of the ssh-agent's socket, usually $SSH_AUTH_SOCK. Empty: no agent.
	AgentSocket string
	// Passphrase asks a person for the passphrase of a private key file. Nil: nobody can be asked.
	// Load wipes what it returns.
	Passphrase func(path string) ([]byte, error)
	// Allowed are the keys that may sign, if they are known already. Empty: any that CheckKey takes.
	Allowed []ssh.PublicKey
}

// Signer is a key ready to sign. Close it when done.
type Signer struct {
	ssh.Signer
	Source string // where it was found, for people
	conn   io.Closer
}

// Close ends the connection to the agent, if there is one.
func (s *Signer) Close() error {
	if s.conn == nil {
		return nil
	}
	return s.conn.Close()
}

// Load finds the key to sign with. Spec is one of:
//
//   - the path of a private key file, which must be readable by its owner only. If it is
//     encrypted, or a stub for a hardware key, the agent is asked for the key first;
//   - the path of a public key file, the public key itself, or a fingerprint ("SHA256:…"): the
//     agent holds the key;
//   - empty: the first key in the agent that is in o.Allowed.
//
// Errors name the way out; their reasons are invalid, not-found, permissions, unsupported,
// bad-signature (a key that isn't allowed) and unreachable (no agent).
func Load(ctx context.Context, spec string, o Options) (*Signer, error) {
	switch {
	case spec == "" && len(o.Allowed) == 0:
		return nil, problem.New(problem.ReasonInvalid, "no SSH key was named").
			WithFix("name a key: a private or public key file, or a fingerprint from `ssh-add -l`")
	case spec == "":
		return fromAgent(ctx, o, "any key that is listed for you", func(k ssh.PublicKey) bool { return accept(k, o) == nil })
	case strings.HasPrefix(spec, "SHA256:"):
		return fromAgent(ctx, o, "key "+spec, func(k ssh.PublicKey) bool { return Fingerprint(k) == spec })
	case looksLikeKey(spec):
		key, _, err := ParseKey(spec)
		if err != nil {
			return nil, err
		}
		return agentKey(ctx, o, key)
	}
	text, private, err := readKeyFile(spec)
	if err != nil {
		return nil, err
	}
	defer clear(text)
	if !private {
		key, _, err := ParseKey(string(text))
		if err != nil {
			return nil, problem.Wrap(err, problem.As(err).Reason, "public key file %s", spec)
		}
		return agentKey(ctx, o, key)
	}
	return fromFile(ctx, spec, text, o)
}

func looksLikeKey(spec string) bool {
	kind, rest, ok := strings.Cut(spec, " ")
	return ok && rest != "" && (strings.HasPrefix(kind, "ssh-") || strings.HasPrefix(kind, "ecdsa-") || strings.HasPrefix(kind, "sk-"))
}

// readKeyFile reads a key file and tells private from public ones.
func readKeyFile(path string) (text []byte, private bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		r := problem.ReasonPermissions
		if errors.Is(err, fs.ErrNotExist) {
			r = problem.ReasonNotFound
		}
		return nil, false, problem.Wrap(err, r, "open the SSH key").
			WithFix("name a private or public key file you can read, or a fingerprint from `ssh-add -l`")
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return nil, false, problem.New(problem.ReasonInvalid, "SSH key %s is not a regular file", path).
			WithFix("name the key file itself")
	}
	text, err = io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil || len(text) > maxKeyFile {
		clear(text)
		return nil, false, problem.New(problem.ReasonTooLarge, "SSH key %s can't be read, or has more than %d bytes", path, maxKeyFile).
			WithFix("name the key file itself")
	}
	private = strings.HasPrefix(string(text), "-----BEGIN ")
	if private && st.Mode().Perm()&0o077 != 0 {
		clear(text)
		return nil, false, problem.New(problem.ReasonPermissions, "private key %s can be read by others (mode %04o)", path, st.Mode().Perm()).
			WithFix("chmod 0600 %s", path)
	}
	return text, private, nil
}

func fromFile(ctx context.Context, path string, text []byte, o Options) (*Signer, error) {
	signer, err := ssh.ParsePrivateKey(text)
	var missing *ssh.PassphraseMissingError
	switch {
	case errors.As(err, &missing):
		if s := tryAgent(ctx, path, missing.PublicKey, o); s != nil {
			return s, nil
		}
		if signer, err = decrypt(path, text, o); err != nil {
			return nil, err
		}
	case err != nil:
		// A stub of a hardware key has a type that the parser doesn't know; the agent does.
		if s := tryAgent(ctx, path, nil, o); s != nil {
			return s, nil
		}
		return nil, problem.New(problem.ReasonUnsupported, "private key %s can't be used from its file", path).
			WithFix("if it is a hardware key, run `ssh-add %s` and name %s.pub; otherwise make a key with `ssh-keygen -t ed25519`", path, path)
	}
	if err := accept(signer.PublicKey(), o); err != nil {
		return nil, err
	}
	return &Signer{Signer: signer, Source: path}, nil
}

func decrypt(path string, text []byte, o Options) (ssh.Signer, error) {
	if o.Passphrase == nil {
		return nil, problem.New(problem.ReasonInvalid, "private key %s is encrypted, and nobody can be asked for its passphrase", path).
			WithFix("run `ssh-add %s` first", path)
	}
	phrase, err := o.Passphrase(path)
	defer clear(phrase)
	if err != nil {
		r := problem.ReasonCanceled
		var p *problem.Problem
		if errors.As(err, &p) {
			r = p.Reason
		}
		return nil, problem.Wrap(err, r, "ask for the passphrase of %s", path).WithFix("run `ssh-add %s` first, or run this on a terminal", path)
	}
	signer, err := ssh.ParsePrivateKeyWithPassphrase(text, phrase)
	if err != nil {
		return nil, problem.New(problem.ReasonInvalid, "private key %s does not open with this passphrase", path).
			WithFix("try again, or run `ssh-add %s` first", path)
	}
	return signer, nil
}

// tryAgent looks in the agent for the key of a private key file that can't be used as it is. The
// public half is given, or stands in the .pub file beside it.
func tryAgent(ctx context.Context, path string, key ssh.PublicKey, o Options) *Signer {
	if o.AgentSocket == "" {
		return nil
	}
	if key == nil {
		text, private, err := readKeyFile(path + ".pub")
		if err != nil || private {
			return nil
		}
		if key, _, err = ParseKey(string(text)); err != nil {
			return nil
		}
	}
	s, err := agentKey(ctx, o, key)
	if err != nil {
		return nil
	}
	return s
}

// accept checks a key against the policy and the allowed ones.
func accept(key ssh.PublicKey, o Options) error {
	if err := CheckKey(key); err != nil {
		return err
	}
	if !allowed(key, o) {
		return problem.New(problem.ReasonSignature, "SSH key %s is not listed for this", Fingerprint(key))
	}
	return nil
}

func allowed(key ssh.PublicKey, o Options) bool {
	return len(o.Allowed) == 0 || slices.ContainsFunc(o.Allowed, func(k ssh.PublicKey) bool { return SameKey(k, key) })
}

func agentKey(ctx context.Context, o Options, key ssh.PublicKey) (*Signer, error) {
	if err := accept(key, o); err != nil {
		return nil, err
	}
	return fromAgent(ctx, o, "key "+Fingerprint(key), func(k ssh.PublicKey) bool { return SameKey(k, key) })
}

// fromAgent takes the agent's first key that is wanted, and refuses it if it isn't acceptable.
func fromAgent(ctx context.Context, o Options, what string, want func(ssh.PublicKey) bool) (*Signer, error) {
	if o.AgentSocket == "" {
		return nil, problem.New(problem.ReasonUnreachable, "no ssh-agent is known, which would hold %s", what).
			WithFix("start one with `eval $(ssh-agent)` and `ssh-add`, or name a private key file")
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", o.AgentSocket)
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonUnreachable, "connect to the ssh-agent").
			WithFix("check SSH_AUTH_SOCK, or start one with `eval $(ssh-agent)` and `ssh-add`")
	}
	signers, err := agentSigners(ctx, conn)
	if err != nil {
		conn.Close()
		return nil, problem.Wrap(err, problem.ReasonUnreachable, "list the keys of the ssh-agent").
			WithFix("check the agent with `ssh-add -l`")
	}
	for _, s := range signers {
		key := s.PublicKey()
		if !want(key) {
			continue
		}
		if err := accept(key, o); err != nil {
			conn.Close()
			return nil, err
		}
		return &Signer{Signer: s, Source: "ssh-agent " + Fingerprint(key), conn: conn}, nil
	}
	conn.Close()
	return nil, problem.New(problem.ReasonNotFound, "the ssh-agent does not hold %s (it has %d keys)", what, len(signers)).
		WithFix("add it with `ssh-add FILE`, or name another key; `ssh-add -l` lists what is there")
}

// agentSigners lists the keys, and gives up when ctx ends: an agent that hangs must not hang us.
// Signing later has no such limit, because a person may take their time to touch a key.
func agentSigners(ctx context.Context, conn net.Conn) ([]ssh.Signer, error) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	signers, err := agent.NewClient(conn).Signers()
	if !stop() && err == nil {
		err = ctx.Err()
	}
	return signers, err
}
