package workload

import "strings"

// Container runtimes, as the claim container.runtime names them.
const (
	runtimeDocker     = "docker"
	runtimeContainerd = "containerd"
	runtimeCRIO       = "cri-o"
	runtimePodman     = "podman"
)

// container is what a cgroup's path says about the container that a process is in.
type container struct {
	id      string // 64 lower-case hexadecimal digits; empty: none that is known
	runtime string // empty: the path does not say
	podUID  string // of Kubernetes, with dashes; empty: not in a pod
	claimed bool   // who made that cgroup need not be root: a user's manager, a delegated service, an unknown parent
}

// containerOf finds the container in a path, if there is exactly one. Two different IDs in one path are a container in a container,
// or a name that a container gave to a cgroup of its own to be taken for another one: nobody here can tell, so it is nested,
// which is none. An ID counts as root's where one of the known managers puts it (see anchored). Anywhere else it is only
// claimed.
//
// Shapes of the paths: docker, containerd (CRI and nerdctl), CRI-O and podman, each with the systemd and the cgroupfs driver, in
// Kubernetes' three classes of service, and in kind's slices. Monitors (conmon) are no container, and neither are slices,
// which podman names after its pods.
func containerOf(elements []string) (c container, nested bool) {
	at := -1
	for i, e := range elements {
		n, ok := parseContainer(e)
		switch {
		case !ok:
		case n.monitor && at < 0:
			return container{}, false
		case at < 0:
			at, c = i, container{id: n.id, runtime: n.runtime}
		case n.id != c.id:
			return container{}, true
		}
	}
	if at < 0 {
		return container{}, false
	}
	above := elements[:at]
	name, _ := parseContainer(elements[at])
	runtime, pod, ok := anchored(above, name)
	if !ok {
		c.claimed = true
		return c, false
	}
	c.podUID = pod
	if c.runtime == "" {
		c.runtime = runtime
	}
	return c, false
}

// containerName is an element of a path that is named after a container.
type containerName struct {
	id      string
	prefix  string // what stands before the ID
	runtime string
	scope   bool // systemd's driver
	monitor bool
}

// scopes are the prefixes of the runtimes' scopes, and of the plain directories that have one.
var scopes = map[string]string{
	"docker-": runtimeDocker, "cri-containerd-": runtimeContainerd, "nerdctl-": runtimeContainerd,
	"crio-": runtimeCRIO, "crio-conmon-": runtimeCRIO, "libpod-": runtimePodman, "libpod-conmon-": runtimePodman,
}

// parseContainer finds 64 hexadecimal digits at the end of a name, or before ".scope", that stand alone.
func parseContainer(element string) (containerName, bool) {
	base, scope := strings.CutSuffix(element, ".scope")
	if !scope {
		base = strings.TrimSuffix(base, ".service")
	}
	if len(base) < 64 {
		return containerName{}, false
	}
	n := containerName{id: base[len(base)-64:], prefix: base[:len(base)-64], scope: scope}
	if !isID(n.id) || n.prefix != "" && strings.IndexByte("-:_.", n.prefix[len(n.prefix)-1]) < 0 {
		return containerName{}, false
	}
	n.runtime = scopes[n.prefix]
	n.monitor = n.runtime != "" && strings.HasSuffix(n.prefix, "-conmon-")
	return n, true
}

func isID(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return len(s) == 64
}

// anchored says whether a container's cgroup stands where only root can have put it, and what its place says.
//
// systemd's own slices belong to its system manager, so a scope that has only slices above it was made there, on root's
// behalf. Services and scopes above may be delegated to whom they run as, user@UID.service always is. Of plain directories those
// of the runtimes are known.
func anchored(above []string, n containerName) (runtime, pod string, ok bool) {
	if n.scope {
		if n.runtime == "" || len(above) == 0 || slicesBefore(above) != len(above) || above[0] == "user.slice" {
			return "", "", false
		}
		return n.runtime, podOfSlice(above[len(above)-1]), true
	}
	switch {
	case n.prefix == "" && len(above) == 1 && above[0] == "docker",
		n.prefix == "" && len(above) == 2 && above[0] == "ecs": // Amazon ECS: /ecs/TASK/ID
		return runtimeDocker, "", true
	case n.prefix == "libpod-" && len(above) == 1 && above[0] == "libpod_parent":
		return runtimePodman, "", true
	case n.prefix == "" || n.prefix == "crio-":
		if pod = podOfDirectories(above); pod != "" {
			return n.runtime, pod, true
		}
	}
	// containerd with the cgroupfs driver under a kubelet with the systemd one: SLICE:cri-containerd:ID.
	if slice, ok := strings.CutSuffix(n.prefix, ":cri-containerd:"); ok && len(above) == 2 && above[0] == "system.slice" && above[1] == "containerd.service" {
		if pod = podOfSlice(slice); pod != "" {
			return runtimeContainerd, pod, true
		}
	}
	return "", "", false
}

// podOfSlice is the pod of a slice that the kubelet's systemd driver made: kubepods-CLASS-podUID.slice, where the slice above may
// have its names before it. systemd uses dashes for its own hierarchy, so the UID has underscores there.
func podOfSlice(name string) string {
	base, ok := strings.CutSuffix(name, ".slice")
	if !ok {
		return ""
	}
	i := strings.LastIndex(base, "-pod")
	if i < 0 {
		return ""
	}
	class, uid := base[:i], base[i+len("-pod"):]
	class = strings.TrimSuffix(strings.TrimSuffix(class, "-burstable"), "-besteffort")
	if class != "kubepods" && !strings.HasSuffix(class, "-kubepods") || strings.Contains(uid, "-") {
		return ""
	}
	return podUID(strings.ReplaceAll(uid, "_", "-"))
}

// podOfDirectories is the pod of the directories that the kubelet's cgroupfs driver makes: [/kubelet]/kubepods[/CLASS]/podUID.
func podOfDirectories(above []string) string {
	if len(above) > 0 && above[0] == "kubelet" {
		above = above[1:]
	}
	if len(above) < 2 || len(above) > 3 || above[0] != "kubepods" || len(above) == 3 && above[1] != "burstable" && above[1] != "besteffort" {
		return ""
	}
	uid, ok := strings.CutPrefix(above[len(above)-1], "pod")
	if !ok {
		return ""
	}
	return podUID(uid)
}

// podUID checks the UID of a pod: a UUID, or the 32 digits that the kubelet gives to a static pod.
func podUID(s string) string {
	if len(s) != 36 && len(s) != 32 {
		return ""
	}
	for i := range len(s) {
		c := s[i]
		dash := len(s) == 36 && (i == 8 || i == 13 || i == 18 || i == 23)
		if dash != (c == '-') || !dash && (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return ""
		}
	}
	return s
}
