package run_test

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/agent"
	"github.com/bailment/bailment/internal/run"
)

// A program finds the Workload API of the agent that it was started with, unless somebody has said where it is.
func TestFindsWorkloadAPI(t *testing.T) {
	h := empty(t)
	cfg := agentConfig(h.dir, h.server.Bootstrap)
	cfg.WorkloadAPI = filepath.Join(h.dir, "spiffe.sock")
	a, err := agent.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("agent: %v", err)
		}
	})
	h.ready()
	const variable = "SPIFFE_ENDPOINT_SOCKET"
	unset := func(c *run.Config) {
		c.Env = slices.DeleteFunc(slices.Clone(c.Env), func(kv string) bool { return strings.HasPrefix(kv, variable+"=") })
	}
	for name, c := range map[string]struct {
		change func(*run.Config)
		want   string
	}{
		"not set":   {unset, "unix://" + cfg.WorkloadAPI},
		"set":       {func(c *run.Config) { unset(c); c.Env = append(c.Env, variable+"=unix:///elsewhere") }, "unix:///elsewhere"},
		"set empty": {func(c *run.Config) { unset(c); c.Env = append(c.Env, variable+"=") }, ""},
		"a secret":  {func(c *run.Config) { unset(c); c.Secrets[0].Env = variable }, "s3cret value"},
	} {
		if code, out, err := h.run(c.change, "/bin/sh", "-c", `printf %s "$`+variable+`"`); err != nil || code != 0 || out != c.want {
			t.Errorf("%s: %d, %q, %v", name, code, out, err)
		}
	}
	quiet := whole(t)
	if code, out, err := quiet.run(unset, "/bin/sh", "-c", `printf %s "${`+variable+`-none}"`); err != nil || code != 0 || out != "none" {
		t.Errorf("an agent that does not serve it: %d, %q, %v", code, out, err)
	}
}
