package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"

	bailmentv1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/attest/jointoken"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/keyring/file"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/sshsig"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store/sqlite"
)

const envName = "bench.example"

// site is a founded environment and the server process on it.
type site struct {
	dir, bin, config, addr, ops string
	alice                       ssh.Signer
	genesis                     state.Digest
	cmd                         *exec.Cmd
	trust                       *client.Trust
	logs                        bytes.Buffer
}

func newSite(ctx context.Context, dir, bin string) (*site, error) {
	s := &site{dir: dir, bin: bin, config: filepath.Join(dir, "server.yaml")}
	var err error
	if s.addr, err = freeAddr(); err != nil {
		return nil, err
	}
	if s.ops, err = freeAddr(); err != nil {
		return nil, err
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	if s.alice, err = ssh.NewSignerFromKey(key); err != nil {
		return nil, err
	}
	if err := s.found(ctx); err != nil {
		return nil, err
	}
	// All limits are on; those on one source are wide, since the whole load comes from one address here.
	text := fmt.Sprintf("data: %s\nlisten: %s\nops_listen: %s\nserver_id: bench\nlimits: {source_connections: 4096, source_handshakes: 100000/s 100000, source_requests: 1000000/s 1000000, identity_requests: 1000000/s 1000000}\n", filepath.Join(dir, "data"), s.addr, s.ops)
	return s, os.WriteFile(s.config, []byte(text), 0o600)
}

func (s *site) found(ctx context.Context) error {
	env := filepath.Join(s.dir, "data", envName)
	if err := os.MkdirAll(env, 0o700); err != nil {
		return err
	}
	src, err := seal.NewSource(nil)
	if err != nil {
		return err
	}
	holder, err := file.Create(filepath.Join(env, "root.key"), src)
	if err != nil {
		return err
	}
	st, err := sqlite.Create(ctx, env)
	if err != nil {
		return err
	}
	s.genesis, err = control.Found(ctx, control.Founding{
		Files: s.bundle(), Holder: holder, Source: src, Store: st, Now: time.Now,
		Sign: func(_ context.Context, namespace, text string) (string, string, error) {
			sig, err := sshsig.Sign(s.alice, namespace, []byte(text))
			return "alice", string(sig), err
		},
	})
	if err != nil {
		return err
	}
	return st.Close()
}

// bundle has a thousand grants that do not match beside those that do, as a real one would.
func (s *site) bundle() policy.Files {
	key := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(s.alice.PublicKey())))
	var grants strings.Builder
	grants.WriteString("apiVersion: bailment/v1\nkind: Grant\nmetadata: {name: write}\nspec: {actions: [secret.write, secret.list], identities: [/human/alice], secrets: ['*']}\n---\napiVersion: bailment/v1\nkind: Grant\nmetadata: {name: read}\nspec: {actions: [secret.read], identities: ['/node/join-token/*'], secrets: ['app/*'], purposes: [runtime], when: 'claims.name.startsWith(\"n\") && identity.env == \"" + envName + "\"'}\n")
	for i := range 1000 {
		fmt.Fprintf(&grants, "---\napiVersion: bailment/v1\nkind: Grant\nmetadata: {name: other-%d}\nspec: {actions: [secret.read], identities: [/node/join-token/other-%d], secrets: [other/s%d], purposes: [runtime]}\n", i, i, i)
	}
	return policy.Files{
		"environment.yaml":    []byte("apiVersion: bailment/v1\nkind: Environment\nmetadata: {name: " + envName + "}\nspec:\n  class: development\n  sessions: {operator: 12h, node: 12h, workload: 1h}\n  revocation: {blastLimit: 1000000}\n  limits: {versionsPerSecret: 20, secrets: 1000000}\n"),
		"operators.yaml":      []byte("apiVersion: bailment/v1\nkind: Operators\nmetadata: {name: operators}\nspec:\n  operators:\n    - {name: alice, keys: ['" + key + "'], duties: [propose, approve, revoke, admit, keys, audit]}\n"),
		"identities/all.yaml": []byte("apiVersion: bailment/v1\nkind: Identity\nmetadata: {name: nodes}\nspec: {method: join-token, path: '/node/join-token/{claims.name}'}\n---\napiVersion: bailment/v1\nkind: Identity\nmetadata: {name: api}\nspec: {method: workload, path: /workload/api, nodes: ['/node/join-token/*']}\n"),
		"grants/all.yaml":     []byte(grants.String()),
		"secrets/all.yaml":    []byte("apiVersion: bailment/v1\nkind: Secret\nmetadata: {name: app/*}\nspec: {type: opaque}\n---\napiVersion: bailment/v1\nkind: Secret\nmetadata: {name: other/*}\nspec: {type: opaque}\n"),
	}
}

func (s *site) start() error {
	s.cmd = exec.Command(s.bin, "server", "--config", s.config)
	s.cmd.Stderr = &s.logs
	if err := s.cmd.Start(); err != nil {
		return err
	}
	for deadline := time.Now().Add(60 * time.Second); ; {
		resp, err := http.Get("http://" + s.ops + "/readyz")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the server does not get ready: %s", s.logs.String())
		}
		<-time.After(time.Millisecond)
	}
}

func (s *site) stop() error {
	if s.cmd == nil {
		return nil
	}
	cmd := s.cmd
	s.cmd = nil
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	return cmd.Wait()
}

func (s *site) connect(ctx context.Context) error {
	ap, err := netip.ParseAddrPort(s.addr)
	if err != nil {
		return err
	}
	boot := identity.Bootstrap{Host: ap.Addr().String(), Port: ap.Port(), Env: envName, Genesis: s.genesis}
	s.trust, err = client.Bootstrap(ctx, boot.String(), client.Options{})
	return err
}

func (s *site) dial(session *client.Session) (*client.Client, error) {
	o := client.Options{Attempts: 1}
	if session != nil {
		o.Credentials = session.Credentials()
	}
	return client.Dial(s.trust, o)
}

func (s *site) login(ctx context.Context) (*client.Session, error) {
	c, err := s.dial(nil)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.Login(ctx, "alice", func(namespace string, text []byte) (string, error) {
		sig, err := sshsig.Sign(s.alice, namespace, text)
		return string(sig), err
	})
}

// node admits and attests one machine.
func (s *site) node(ctx context.Context, admin *client.Client, name string) (*client.Session, error) {
	tok, err := jointoken.New(s.genesis)
	if err != nil {
		return nil, err
	}
	if _, err := admin.Attestation.CreateJoinToken(ctx, &bailmentv1.CreateJoinTokenRequest{Id: tok.ID(), PublicKey: tok.PublicKey(), Name: name}); err != nil {
		return nil, err
	}
	a, err := jointoken.NewAttester(tok)
	if err != nil {
		return nil, err
	}
	key, err := client.NewKey()
	if err != nil {
		return nil, err
	}
	c, err := s.dial(nil)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.Attest(ctx, jointoken.Name, a, key, "bench")
}

// tls is the configuration of a connection with a session.
func (s *site) tls(session *client.Session) *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(s.trust.CA)
	return &tls.Config{RootCAs: pool, ServerName: envName, MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{session.Certificate}}
}
