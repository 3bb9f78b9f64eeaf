package invariant

import "github.com/bailment/bailment/internal/state"

// machineClaims are by what platforms name a machine, where the key that signs is theirs and not the machine's. A TDX quote names none.
var machineClaims = map[string][]string{
	"aws":     {"account_id", "region", "instance_id"},
	"azure":   {"subscription_id", "vm_id"},
	"gcp":     {"project_number", "instance_id"},
	"k8s":     {"pod_uid"},
	"sev-snp": {"report"},
	"tdx":     nil,
}

// attestedMachine checks that who was quarantined is the machine that is enrolled, and not another one that its platform signs for.
func (c *Checker) attestedMachine(e *state.NodeQuarantined, fail failure) {
	n := c.m.enrolments[e.Identity]
	names, shared := machineClaims[e.Method]
	if n == nil || n.proof == nil || !shared {
		return
	}
	same := len(names) > 0
	for _, name := range names {
		was, _ := n.proof.raw[name].(string)
		is, _ := e.Claims[name].(string)
		same = same && was != "" && was == is
	}
	if !same {
		fail("%s signs for many machines, and these claims are not of the one that is enrolled", e.Method)
	}
}
