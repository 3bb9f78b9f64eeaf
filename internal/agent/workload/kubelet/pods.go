package kubelet

import (
	"encoding/json"
	"errors"
	"io"
	"strings"

	"github.com/bailment/bailment/internal/attest"
)

// Bounds of a list. A node has 110 pods by default, and some have 500.
const (
	maxList       = 32 << 20 // bytes
	maxPods       = 2048
	maxContainers = 256 // of one pod
	maxLabels     = 256 // of one pod; more are not Kubernetes' own practice
	maxText       = 1024
)

// Pod is a container that runs, and the pod that it is in, in the kubelet's words.
type Pod struct {
	Namespace      string
	Name           string
	UID            string
	ServiceAccount string
	Node           string
	Labels         map[string]string // shared: not to be changed
	Terminating    bool              // its deletion is asked for, and its grace not over
	Container      string            // name in the pod
	Image          string            // as the pod names it, which may be a tag
	ImageID        string            // what the runtime runs, mostly with a digest; in the runtime's own form
}

// key names a container: its pod's UID, and its ID without the runtime.
type key struct{ pod, container string }

// podList is one answer of the kubelet. A container that stands there twice is in it as nil: which is meant is not known.
type podList map[key]*Pod

// The parts of v1.Pod (k8s.io/api/core/v1) that are used. Unknown fields are the rule: the API grows.
type pod struct {
	Metadata struct {
		Name              string            `json:"name"`
		Namespace         string            `json:"namespace"`
		UID               string            `json:"uid"`
		Labels            map[string]string `json:"labels"`
		DeletionTimestamp string            `json:"deletionTimestamp"`
	} `json:"metadata"`
	Spec struct {
		ServiceAccountName string `json:"serviceAccountName"`
		NodeName           string `json:"nodeName"`
	} `json:"spec"`
	Status struct {
		Phase                      string   `json:"phase"`
		ContainerStatuses          []status `json:"containerStatuses"`
		InitContainerStatuses      []status `json:"initContainerStatuses"`
		EphemeralContainerStatuses []status `json:"ephemeralContainerStatuses"`
	} `json:"status"`
}

type status struct {
	Name        string `json:"name"`
	Image       string `json:"image"`
	ImageID     string `json:"imageID"`
	ContainerID string `json:"containerID"` // RUNTIME://ID
	State       struct {
		Running *struct{} `json:"running"`
	} `json:"state"`
}

var (
	errShape = errors.New("the answer is not a list of pods")
	errLarge = errors.New("the answer is larger than what is taken")
)

// parsePods reads a v1.PodList, a pod at a time: of a list of megabytes only what is used is ever in memory. Errors hold nothing
// of the text.
func parsePods(r io.Reader) (podList, error) {
	limited := &io.LimitedReader{R: r, N: maxList + 1}
	out, err := readList(json.NewDecoder(limited))
	if limited.N <= 0 {
		return nil, errLarge
	}
	return out, err
}

func readList(d *json.Decoder) (podList, error) {
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errShape
	}
	out := make(podList)
	listed := false
	kind := ""
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, errShape
		}
		switch t {
		case "items":
			if listed {
				return nil, errShape
			}
			listed = true
			err = out.items(d)
		case "kind":
			err = d.Decode(&kind)
		default:
			var skip json.RawMessage
			err = d.Decode(&skip)
		}
		if err != nil {
			return nil, errShape
		}
	}
	if t, err := d.Token(); err != nil || t != json.Delim('}') || kind != "PodList" || !listed {
		return nil, errShape
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errShape
	}
	return out, nil
}

func (l podList) items(d *json.Decoder) error {
	t, err := d.Token()
	if t == nil && err == nil {
		return nil // "items":null is how Go writes no pods
	}
	if err != nil || t != json.Delim('[') {
		return errShape
	}
	for n := 0; d.More(); n++ {
		var p pod
		if n == maxPods || d.Decode(&p) != nil {
			return errShape
		}
		l.add(&p)
	}
	_, err = d.Token()
	return err
}

// add takes the running containers of a pod. One that does not run has no processes, and a pod that is over neither, whatever its
// containers' statuses, which lag behind, say. What can't be shown makes the pod unknown.
func (l podList) add(p *pod) {
	if p.Status.Phase != "Running" && p.Status.Phase != "Pending" { // Pending: while init containers run
		return
	}
	if !shown(p.Metadata.Namespace, p.Metadata.Name, p.Metadata.UID) || len(p.Metadata.Labels) > maxLabels || !optional(p.Spec.ServiceAccountName, p.Spec.NodeName) {
		return
	}
	for k, v := range p.Metadata.Labels {
		if !optional(k, v) {
			return
		}
	}
	all := append(append(p.Status.ContainerStatuses, p.Status.InitContainerStatuses...), p.Status.EphemeralContainerStatuses...)
	if len(all) > maxContainers {
		return
	}
	for i := range all {
		s := &all[i]
		_, id, ok := strings.Cut(s.ContainerID, "://")
		if !ok || s.State.Running == nil || !shown(s.Name, id) || !optional(s.Image, s.ImageID) {
			continue
		}
		k := key{p.Metadata.UID, id}
		if _, twice := l[k]; twice {
			l[k] = nil
			continue
		}
		l[k] = &Pod{
			Namespace: p.Metadata.Namespace, Name: p.Metadata.Name, UID: p.Metadata.UID, ServiceAccount: p.Spec.ServiceAccountName,
			Node: p.Spec.NodeName, Labels: p.Metadata.Labels, Terminating: p.Metadata.DeletionTimestamp != "",
			Container: s.Name, Image: s.Image, ImageID: s.ImageID,
		}
	}
}

func shown(texts ...string) bool {
	for _, t := range texts {
		if t == "" {
			return false
		}
	}
	return optional(texts...)
}

func optional(texts ...string) bool {
	for _, t := range texts {
		if len(t) > maxText || attest.CheckClaimText(t) != nil {
			return false
		}
	}
	return true
}
