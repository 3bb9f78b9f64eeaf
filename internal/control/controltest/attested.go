package controltest

import (
	"time"

	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/problem"
)

// Methods that believe their evidence in History, and one authority and rule for each. Their documents are such as the product's
// verifiers take, so that a server opens what History left.
const (
	MethodFresh = "tpm"    // renews by fresh evidence
	MethodJob   = "gitlab" // a job's, renews by possession

	historyAuthorities = `apiVersion: bailment/v1
kind: Authority
metadata: {name: fleet}
spec:
  method: tpm
  endorsementKeys: ["sha256:5555555555555555555555555555555555555555555555555555555555555555"]
---
apiVersion: bailment/v1
kind: Authority
metadata: {name: forge}
spec: {method: gitlab, issuer: "https://forge.example"}
`
	historyRules = `apiVersion: bailment/v1
kind: Identity
metadata: {name: machines}
spec:
  method: tpm
  authority: fleet
  path: /node/tpm/{claims.name}
  require: claims.boot == "good"
  otherwise: quarantine
---
apiVersion: bailment/v1
kind: Identity
metadata: {name: jobs}
spec: {method: gitlab, authority: forge, path: "/ci/gitlab/{claims.namespace_id}/{claims.project_id}", lifetime: 2h}
`
)

var historyMethods = []string{MethodFresh, MethodJob}

// MachineProof is what a machine proves by MethodFresh: good or bad is how it booted.
func MachineProof(name, boot string) Proof {
	return Proof{Claims: map[string]any{"name": name, "boot": boot}, Authority: "fleet", Key: Digest("attestation key of " + name)}
}

// BoxProof is MachineProof of a machine that is trusted on first use.
func BoxProof(name string) Proof {
	p := MachineProof(name, "good")
	p.Once = name
	return p
}

// JobProof is what a job proves by MethodJob, by a token that is good until then.
func JobProof(token string, until time.Time) Proof {
	return Proof{
		Claims: map[string]any{"namespace_id": "7", "project_id": "42"}, Authority: "forge", Key: Digest("key of the forge"), Once: token, OnceUntil: until, NotAfter: until,
	}
}

// proofs are machines and jobs that prove themselves by evidence: lost replies, first use and once more, quarantine and release, and
// an end.
func (h *history) proofs() {
	w := h.w
	first, _ := Key(w.T)
	for range 2 { // the reply was lost
		_, err := w.TryProve(MethodFresh, BoxProof("box-1"), first)
		h.check(err)
	}
	rebuilt, _ := Key(w.T)
	_, err := w.TryProve(MethodFresh, BoxProof("box-1"), rebuilt)
	h.refused(err, problem.ReasonInstanceSeen)
	h.act(control.ActionForget, MethodFresh+":box-1")
	_, err = w.TryProve(MethodFresh, BoxProof("box-1"), rebuilt)
	h.check(err)

	machine := w.Prove(MethodFresh, MachineProof("m-1", "good"))
	w.Prove(MethodFresh, MachineProof("m-1", "good"))
	key, _ := Key(w.T)
	_, err = w.TryProve(MethodFresh, MachineProof("m-1", "bad"), key)
	h.refused(err, problem.ReasonQuarantined)
	_, _, err = w.Get(machine, "node/seed")
	h.refused(err, problem.ReasonQuarantined)
	h.act(control.ActionLiftHold, w.Hold("node:/node/tpm/m-1"))
	w.Prove(MethodFresh, MachineProof("m-1", "good"))

	job := h.job("job-1")
	next, _ := Key(w.T)
	for range 2 { // its reply was lost as well
		_, err = w.Renew(job, next)
		h.check(err)
	}
	thief, _ := Key(w.T)
	_, err = w.Renew(job, thief)
	h.refused(err, problem.ReasonForked)

	_, err = w.Env.Revoke(h.ctx, h.alice.Caller, control.RevokeRequest{Scope: "node:/node/tpm/box-1", Reason: "sold"})
	h.check(err)
	h.act(control.ActionEnd, "/node/tpm/box-1")
}

// job attests a job, twice by the same evidence.
func (h *history) job(token string) Actor {
	w := h.w
	until := w.Now().Add(10 * time.Minute).Truncate(time.Millisecond)
	key, _ := Key(w.T)
	_, err := w.TryProve(MethodJob, JobProof(token, until), key)
	h.check(err)
	o, err := w.TryProve(MethodJob, JobProof(token, until), key)
	h.check(err)
	return w.Enter(key, o)
}

// proved are those that are alive at the end, and one that is quarantined.
func (h *history) proved(c *Cast) {
	w := h.w
	c.Machine = w.Prove(MethodFresh, MachineProof("m-2", "good"))
	c.Box = w.Prove(MethodFresh, BoxProof("box-2"))
	c.Job = h.job("job-2")
	w.Prove(MethodFresh, MachineProof("m-3", "good"))
	key, _ := Key(w.T)
	_, err := w.TryProve(MethodFresh, MachineProof("m-3", "bad"), key)
	h.refused(err, problem.ReasonQuarantined)
	c.Quarantined, c.Ended = "/node/tpm/m-3", "/node/tpm/box-1"
}
