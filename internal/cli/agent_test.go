package cli

import (
	"testing"

	"github.com/bailment/bailment/internal/agent/workload/kubelet"
	"github.com/bailment/bailment/internal/attest/methods"
	"github.com/bailment/bailment/internal/config"
)

// What the configuration file says of processes and pods reaches the agent.
func TestAgentSettings(t *testing.T) {
	cfg, err := config.ParseAgent("agent.yaml", []byte(`
data: /var/lib/a
socket: /run/a/agent.sock
attest: {method: join-token, files: {token: /etc/a/token}}
workloads: {parents: 3}
kubelet: {address: "https://127.0.0.1:10250", token_file: /var/run/token, ca_file: /var/run/ca.crt, node_name: node-1}
`), methods.All())
	if err != nil {
		t.Fatal(err)
	}
	s := agentSettings(cfg)
	if want := (kubelet.Config{Address: "https://127.0.0.1:10250", Token: "/var/run/token", CA: "/var/run/ca.crt", Node: "node-1"}); s.Kubelet != want {
		t.Errorf("kubelet: %+v, want %+v", s.Kubelet, want)
	}
	if s.Parents != 3 || s.WorkloadAPI != cfg.WorkloadSocket() || s.WorkloadAPI == "" || s.Socket != "/run/a/agent.sock" || s.StateDir != "/var/lib/a" {
		t.Errorf("%+v", s)
	}
	if s.Method != "join-token" || s.Needs["token"] != "/etc/a/token" || s.HardwareKey {
		t.Errorf("%+v", s)
	}
}
