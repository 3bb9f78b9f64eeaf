package site

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/bailment/bailment/internal/agent/localapi"
	"github.com/bailment/bailment/internal/attest/jointoken"
)

// Agent is the agent of a machine, as a process of its own.
type Agent struct {
	Home   string // its state, its token and its configuration
	Config string // its configuration file
	Socket string // of its local API
	SPIFFE string // of the SPIFFE Workload API
	Cmd    *exec.Cmd
	Logs   *Log

	bin    string
	exited chan struct{} // closed when the process is gone
}

// NewAgent prepares a machine's agent in a directory, which is made, and starts nothing.
func (s *Site) NewAgent(home string, tok jointoken.Token) (*Agent, error) {
	if err := os.MkdirAll(home, 0o700); err != nil {
		return nil, err
	}
	boot, err := s.Bootstrap()
	if err != nil {
		return nil, err
	}
	a := &Agent{Home: home, bin: s.Bin, Config: filepath.Join(home, "agent.yaml"), Socket: filepath.Join(home, "agent.sock"), SPIFFE: filepath.Join(home, "spiffe.sock")}
	if err := a.GiveToken(tok); err != nil {
		return nil, err
	}
	text := fmt.Sprintf("bootstrap: %s\ndata: %s/agent\nsocket: %s\nattest:\n  files:\n    token: %s/token\n", boot, home, a.Socket, home)
	return a, os.WriteFile(a.Config, []byte(text), 0o600)
}

// GiveToken puts a join token where the agent looks for it.
func (a *Agent) GiveToken(tok jointoken.Token) error {
	return os.WriteFile(filepath.Join(a.Home, "token"), []byte(tok.Reveal()), 0o600)
}

// Start runs the agent and does not wait.
func (a *Agent) Start() error {
	cmd, logs := exec.Command(a.bin, "agent", "--config", a.Config), &Log{}
	cmd.Stderr, cmd.Stdout = logs, logs
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(exited)
	}()
	a.Cmd, a.Logs, a.exited = cmd, logs, exited
	return nil
}

// Kill ends the agent at once.
func (a *Agent) Kill() {
	if a.Cmd == nil {
		return
	}
	_ = a.Cmd.Process.Signal(syscall.SIGKILL) // it may be gone already
	<-a.exited
	a.Cmd = nil
}

// Status is what the agent says of itself.
func (a *Agent) Status(ctx context.Context) (*localapi.Status, error) {
	return (&localapi.Client{Socket: a.Socket}).Status(ctx)
}

const agentWithin = 20 * time.Second

// Until waits until the agent's status is as wanted.
func (a *Agent) Until(ctx context.Context, ok func(*localapi.Status) bool) (*localapi.Status, error) {
	deadline := time.After(agentWithin)
	for {
		s, err := a.Status(ctx)
		if err == nil && ok(s) {
			return s, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-a.exited:
			return nil, fmt.Errorf("the agent ended\n%s", a.Logs)
		case <-deadline:
			return nil, fmt.Errorf("the agent's status does not get as wanted: %+v, %w\n%s", s, err, a.Logs)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// Connected waits until the agent has a session and is told of changes.
func (a *Agent) Connected(ctx context.Context) error {
	_, err := a.Until(ctx, func(s *localapi.Status) bool { return s.State == "ready" && s.Watching })
	return err
}
