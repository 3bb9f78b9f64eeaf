package workload

import (
	"context"
	"slices"

	"github.com/bailment/bailment/internal/agent/localapi"
	"github.com/bailment/bailment/internal/agent/workload/kubelet"
	"github.com/bailment/bailment/internal/attest"
)

// maxClaimGroups keeps the claims within their size, whoever has thousands of groups.
const maxClaimGroups = 256

// Claims are what the agent says about a process that asks for itself: its own executable is measured. What each claim is, where
// it is from and what it proves stands in docs/reference/workload-claims.md.
//
// The map is the caller's. An error means that nothing is to be handed over: process-gone and process-changed as of Open and Same,
// unreachable if the kubelet can't be asked, pod-unknown if it knows no such container, overloaded if measuring took too long.
func (p *Process) Claims(ctx context.Context) (map[string]any, error) {
	e, state, err := p.measure(ctx)
	if err != nil {
		return nil, err
	}
	return p.claims(ctx, e, state)
}

// ClaimsFor are the claims about a process that asks for a program which it is about to start, as `bailment run` does. That
// program's file is e, which the caller has measured or been told; what else is claimed is about the process that asks, and
// so about the place where it starts the program.
func (p *Process) ClaimsFor(ctx context.Context, e Executable) (map[string]any, error) {
	return p.claims(ctx, e, nil)
}

func (p *Process) claims(ctx context.Context, e Executable, exe *fileState) (map[string]any, error) {
	process := executableClaims(e)
	if p.held != "" {
		process["held_by"] = p.held
	}
	if p.peer.PID > 0 {
		process["pid"] = int64(p.peer.PID)
	}
	out := map[string]any{"unix": unixClaims(p.peer), "process": process}
	text, err := p.readCgroup()
	if err != nil {
		return nil, err
	}
	parents, err := p.parents()
	if err != nil {
		return nil, err
	}
	if len(parents) > 0 {
		process["parents"] = parents
	}
	if text != nil {
		if err := p.placeClaims(ctx, text, out); err != nil {
			return nil, err
		}
	}
	p.mu.Lock()
	p.toldCgroup, p.toldExe = text, exe
	p.mu.Unlock()
	// All of it is about one process that was one thing meanwhile, or there are no claims.
	if err := p.Same(); err != nil {
		return nil, err
	}
	return out, nil
}

func unixClaims(peer localapi.Peer) map[string]any {
	told := peer.Groups[:min(len(peer.Groups), maxClaimGroups)]
	groups := make([]any, len(told))
	for i, g := range told {
		groups[i] = int64(g)
	}
	return map[string]any{"uid": int64(peer.UID), "gid": int64(peer.GID), "groups": groups}
}

// executableClaims keeps a process's own word apart: a rule that asks for path or sha256 and not for the source must not be met by it.
func executableClaims(e Executable) map[string]any {
	process := map[string]any{"digest_source": e.Source}
	prefix := ""
	if e.Source != SourceMeasured {
		prefix = "claimed_"
	}
	if e.Path != "" {
		process[prefix+"path"] = e.Path
	}
	if e.SHA256 != "" {
		process[prefix+"sha256"] = e.SHA256
	}
	return process
}

// readCgroup reads /proc/PID/cgroup; nil is a process of which it can't be read.
func (p *Process) readCgroup() (text []byte, err error) {
	if p.cgroup == nil {
		return nil, nil
	}
	err = with(p.cgroup, func(fd int) error {
		text, err = reread(fd, maxCgroup)
		return err
	})
	if err != nil {
		return nil, p.failed("the cgroup", err)
	}
	return text, nil
}

// placeClaims adds what the cgroups say, and the pod.
func (p *Process) placeClaims(ctx context.Context, text []byte, out map[string]any) error {
	all, err := parseCgroup(text)
	if err != nil {
		return nil //nolint:nilerr // a form that is not known says nothing: no rule that asks for it fits
	}
	at := place(all, p.in.host)
	for name, claims := range at.claims() {
		out[name] = claims
	}
	if p.in.cfg.Pods == nil || at.container.podUID == "" {
		return nil
	}
	// A pod that can't be asked for is an error and not a lack of claims: a rule can be about what is absent.
	pod, err := p.in.cfg.Pods.Find(ctx, at.container.podUID, at.container.id)
	if err != nil {
		return err
	}
	out["k8s"] = podClaims(pod)
	return nil
}

func (at placement) claims() map[string]map[string]any {
	out := make(map[string]map[string]any, 3)
	if path := at.path; path != "" && len(path) <= maxCgroupClaim && attest.CheckClaimText(path) == nil {
		name := "path"
		if at.relative {
			name = "relative_path"
		}
		out["cgroup"] = map[string]any{name: path, "version": at.version}
	}
	if at.unit != "" {
		unit := map[string]any{"unit": at.unit}
		if at.slice != "" {
			unit["slice"] = at.slice
		}
		if at.userUID >= 0 {
			unit["user_uid"] = at.userUID
		}
		if at.userUnit != "" {
			unit["user_unit"] = at.userUnit
		}
		out["systemd"] = unit
	}
	switch c := at.container; {
	case at.nested:
		out["container"] = map[string]any{"nested": true}
	case c.id == "":
	case c.claimed:
		out["container"] = map[string]any{"claimed_id": c.id}
		if c.runtime != "" {
			out["container"]["claimed_runtime"] = c.runtime
		}
	default:
		out["container"] = map[string]any{"id": c.id}
		if c.runtime != "" {
			out["container"]["runtime"] = c.runtime
		}
		if c.podUID != "" {
			out["container"]["pod_uid"] = c.podUID
		}
	}
	return out
}

// Bounds of labels, which whoever makes pods writes.
const (
	maxLabels     = 32
	maxLabelBytes = 2 << 10 // of all names and values
)

func podClaims(pod kubelet.Pod) map[string]any {
	out := map[string]any{
		"namespace": pod.Namespace, "pod": pod.Name, "pod_uid": pod.UID, "service_account": pod.ServiceAccount, "container": pod.Container,
	}
	for name, v := range map[string]string{"node": pod.Node, "image": pod.Image, "image_id": pod.ImageID} {
		if v != "" {
			out[name] = v
		}
	}
	if pod.Terminating {
		out["terminating"] = true
	}
	// All labels or none: a rule may ask that one is absent.
	bytes := 0
	labels := make(map[string]any, len(pod.Labels))
	for k, v := range pod.Labels {
		bytes += len(k) + len(v)
		labels[k] = v
	}
	if len(labels) <= maxLabels && bytes <= maxLabelBytes {
		out["labels"] = labels
	} else {
		out["labels_left_out"] = int64(len(labels))
	}
	return out
}

// Names lists the claims that there can be, as docs/reference/workload-claims.md does.
func Names() []string {
	return slices.Clone(names[:])
}

var names = [...]string{
	"unix.uid", "unix.gid", "unix.groups",
	"process.pid", "process.held_by", "process.digest_source", "process.sha256", "process.path", "process.claimed_sha256", "process.claimed_path", "process.parents",
	"cgroup.path", "cgroup.relative_path", "cgroup.version",
	"systemd.unit", "systemd.slice", "systemd.user_uid", "systemd.user_unit",
	"container.id", "container.runtime", "container.pod_uid", "container.claimed_id", "container.claimed_runtime", "container.nested",
	"k8s.namespace", "k8s.pod", "k8s.pod_uid", "k8s.service_account", "k8s.container", "k8s.node", "k8s.image", "k8s.image_id", "k8s.terminating", "k8s.labels", "k8s.labels_left_out",
}
