package workload

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

const (
	id1 = "3f5f4c2a9b7e4d1c8a6b5e4f3d2c1b0a9f8e7d6c5b4a39281706f5e4d3c2b1a0"
	id2 = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
	uid = "8dd5a3a8-0b8b-4e5f-9d2b-0f5a4d0e6c11"
	und = "8dd5a3a8_0b8b_4e5f_9d2b_0f5a4d0e6c11"
	// The kubelet gives a static pod the digest of its file.
	static = "a1b2c3d4e5f60718293a4b5c6d7e8f90"
)

// Paths as runtimes, kubelets and systemd make them, and as somebody who wants to look like them could.
func TestPlaces(t *testing.T) {
	docker, cri, crio, podman := runtimeDocker, runtimeContainerd, runtimeCRIO, runtimePodman
	for name, c := range map[string]struct {
		path string
		want placement
	}{
		"the root":              {"/", placement{}},
		"init":                  {"/init.scope", placement{unit: "init.scope"}},
		"a service":             {"/system.slice/payments.service", placement{unit: "payments.service", slice: "system.slice"}},
		"an instance":           {"/system.slice/system-getty.slice/getty@tty1.service", placement{unit: "getty@tty1.service", slice: "system-getty.slice"}},
		"escaped characters":    {`/system.slice/dev-disk\x2dby.mount`, placement{unit: `dev-disk\x2dby.mount`, slice: "system.slice"}},
		"an escaped name":       {"/system.slice/_cgroup.service", placement{unit: "cgroup.service", slice: "system.slice"}},
		"below a service":       {"/system.slice/payments.service/worker-1", placement{unit: "payments.service", slice: "system.slice"}},
		"a service in the root": {"/payments.service", placement{unit: "payments.service"}},
		"a slice only":          {"/system.slice", placement{}},
		"a session":             {"/user.slice/user-1000.slice/session-3.scope", placement{unit: "session-3.scope", slice: "user-1000.slice"}},
		"a user's service": {
			"/user.slice/user-1000.slice/user@1000.service/app.slice/app-payments.service",
			placement{unit: "user@1000.service", slice: "user-1000.slice", userUnit: "app-payments.service", userUID: 1000},
		},
		"a user's manager": {
			"/user.slice/user-1000.slice/user@1000.service/init.scope",
			placement{unit: "user@1000.service", slice: "user-1000.slice", userUnit: "init.scope", userUID: 1000},
		},
		"a user's service that is called like a system's": {
			"/user.slice/user-1000.slice/user@1000.service/system.slice/payments.service",
			placement{unit: "user@1000.service", slice: "user-1000.slice", userUnit: "payments.service", userUID: 1000},
		},
		"a user's manager where it isn't": {"/system.slice/user@0.service/payments.service", placement{unit: "user@0.service", slice: "system.slice"}},
		"another user's slice":            {"/user.slice/user-7.slice/user@0.service/x.service", placement{unit: "user@0.service", slice: "user-7.slice"}},
		"no unit's name":                  {"/system.slice/pay ments.service", placement{}},
		"a type without processes":        {"/system.slice/x.timer", placement{}},
		"only a type":                     {"/system.slice/.service", placement{}},
		"a name that is too long":         {"/system.slice/" + strings.Repeat("x", 250) + ".service", placement{}},
		"above the root":                  {"/../system.slice/payments.service", placement{}},
		"above the root later":            {"/system.slice/../payments.service", placement{}},
		"removed":                         {"/system.slice/payments.service (deleted)", placement{}},
		"an empty element":                {"/system.slice//payments.service", placement{}},
		"too deep":                        {strings.Repeat("/a.slice", 64) + "/b.service", placement{}},

		"docker, systemd":           {"/system.slice/docker-" + id1 + ".scope", placement{container: container{id: id1, runtime: docker}, unit: "docker-" + id1 + ".scope", slice: "system.slice"}},
		"docker, cgroupfs":          {"/docker/" + id1, placement{container: container{id: id1, runtime: docker}}},
		"docker, a parent slice":    {"/payments.slice/payments-db.slice/docker-" + id1 + ".scope", placement{container: container{id: id1, runtime: docker}, unit: "docker-" + id1 + ".scope", slice: "payments-db.slice"}},
		"docker, systemd within":    {"/system.slice/docker-" + id1 + ".scope/init.scope", placement{container: container{id: id1, runtime: docker}, unit: "docker-" + id1 + ".scope", slice: "system.slice"}},
		"docker, a service within":  {"/docker/" + id1 + "/system.slice/payments.service", placement{container: container{id: id1, runtime: docker}}},
		"ECS":                       {"/ecs/0123456789abcdef0123456789abcdef/" + id1, placement{container: container{id: id1, runtime: docker}}},
		"nerdctl":                   {"/system.slice/nerdctl-" + id1 + ".scope", placement{container: container{id: id1, runtime: cri}, unit: "nerdctl-" + id1 + ".scope", slice: "system.slice"}},
		"podman":                    {"/machine.slice/libpod-" + id1 + ".scope", placement{container: container{id: id1, runtime: podman}, unit: "libpod-" + id1 + ".scope", slice: "machine.slice"}},
		"podman with crun":          {"/machine.slice/libpod-" + id1 + ".scope/container", placement{container: container{id: id1, runtime: podman}, unit: "libpod-" + id1 + ".scope", slice: "machine.slice"}},
		"podman, cgroupfs":          {"/libpod_parent/libpod-" + id1, placement{container: container{id: id1, runtime: podman}}},
		"podman, in a pod":          {"/machine.slice/machine-libpod_pod_" + id2 + ".slice/libpod-" + id1 + ".scope", placement{container: container{id: id1, runtime: podman}, unit: "libpod-" + id1 + ".scope", slice: "machine-libpod_pod_" + id2 + ".slice"}},
		"podman's monitor":          {"/machine.slice/libpod-conmon-" + id1 + ".scope", placement{unit: "libpod-conmon-" + id1 + ".scope", slice: "machine.slice"}},
		"podman of a user":          {"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + id1 + ".scope/container", placement{container: container{id: id1, runtime: podman, claimed: true}, unit: "user@1000.service", slice: "user-1000.slice", userUnit: "libpod-" + id1 + ".scope", userUID: 1000}},
		"podman in a service":       {"/system.slice/payments.service/libpod-payload-" + id1, placement{container: container{id: id1, claimed: true}, unit: "payments.service", slice: "system.slice"}},
		"a container of a service":  {"/system.slice/payments.service/docker-" + id1 + ".scope", placement{container: container{id: id1, runtime: docker, claimed: true}, unit: "payments.service", slice: "system.slice"}},
		"a user's slice":            {"/user.slice/docker-" + id1 + ".scope", placement{container: container{id: id1, runtime: docker, claimed: true}, unit: "docker-" + id1 + ".scope", slice: "user.slice"}},
		"an unknown parent":         {"/payments/" + id1, placement{container: container{id: id1, claimed: true}}},
		"an unknown runtime":        {"/system.slice/boxes-" + id1 + ".scope", placement{container: container{id: id1, claimed: true}, unit: "boxes-" + id1 + ".scope", slice: "system.slice"}},
		"a scope without a slice":   {"/docker-" + id1 + ".scope", placement{container: container{id: id1, runtime: docker, claimed: true}, unit: "docker-" + id1 + ".scope"}},
		"docker in docker":          {"/docker/" + id1 + "/docker/" + id2, placement{nested: true}},
		"docker in docker, systemd": {"/system.slice/docker-" + id1 + ".scope/system.slice/docker-" + id2 + ".scope", placement{nested: true, unit: "docker-" + id1 + ".scope", slice: "system.slice"}},
		"its own ID again":          {"/docker/" + id1 + "/docker/" + id1, placement{container: container{id: id1, runtime: docker}}},
		"upper case":                {"/docker/" + strings.ToUpper(id1), placement{}},
		"a digit more":              {"/docker/0" + id1, placement{}},
		"a digit less":              {"/docker/" + id1[1:], placement{}},
		"more behind it":            {"/docker/" + id1 + "x", placement{}},
		"LXC":                       {"/lxc.payload.payments", placement{}},

		"Kubernetes, containerd, systemd": {"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + und + ".slice/cri-containerd-" + id1 + ".scope", pod(cri, uid, "cri-containerd-", "kubepods-burstable-pod")},
		"Kubernetes, guaranteed":          {"/kubepods.slice/kubepods-pod" + und + ".slice/cri-containerd-" + id1 + ".scope", pod(cri, uid, "cri-containerd-", "kubepods-pod")},
		"Kubernetes, CRI-O, systemd":      {"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + und + ".slice/crio-" + id1 + ".scope/container", pod(crio, uid, "crio-", "kubepods-besteffort-pod")},
		"Kubernetes, docker, systemd":     {"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + und + ".slice/docker-" + id1 + ".scope", pod(docker, uid, "docker-", "kubepods-besteffort-pod")},
		"Kubernetes, kind": {
			"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod" + und + ".slice/cri-containerd-" + id1 + ".scope",
			pod(cri, uid, "cri-containerd-", "kubelet-kubepods-besteffort-pod"),
		},
		"Kubernetes, a static pod": {
			"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + static + ".slice/cri-containerd-" + id1 + ".scope",
			placement{container: container{id: id1, runtime: cri, podUID: static}, unit: "cri-containerd-" + id1 + ".scope", slice: "kubepods-burstable-pod" + static + ".slice"},
		},
		"Kubernetes, cgroupfs":             {"/kubepods/burstable/pod" + uid + "/" + id1, placement{container: container{id: id1, podUID: uid}}},
		"Kubernetes, cgroupfs, guaranteed": {"/kubepods/pod" + uid + "/" + id1, placement{container: container{id: id1, podUID: uid}}},
		"Kubernetes, cgroupfs, CRI-O":      {"/kubepods/besteffort/pod" + uid + "/crio-" + id1, placement{container: container{id: id1, runtime: crio, podUID: uid}}},
		"Kubernetes, cgroupfs, kind":       {"/kubelet/kubepods/besteffort/pod" + uid + "/" + id1, placement{container: container{id: id1, podUID: uid}}},
		"Kubernetes, two drivers": {
			"/system.slice/containerd.service/kubepods-burstable-pod" + und + ".slice:cri-containerd:" + id1,
			placement{container: container{id: id1, runtime: cri, podUID: uid}, unit: "containerd.service", slice: "system.slice"},
		},
		"Kubernetes, CRI-O's monitor":      {"/kubepods.slice/kubepods-pod" + und + ".slice/crio-conmon-" + id1 + ".scope", placement{unit: "crio-conmon-" + id1 + ".scope", slice: "kubepods-pod" + und + ".slice"}},
		"Kubernetes in docker":             {"/docker/" + id2 + "/kubepods/besteffort/pod" + uid + "/" + id1, placement{nested: true}},
		"a pod of a user's making":         {"/user.slice/user-1000.slice/user@1000.service/kubepods.slice/kubepods-pod" + und + ".slice/cri-containerd-" + id1 + ".scope", placement{container: container{id: id1, runtime: cri, claimed: true}, unit: "user@1000.service", slice: "user-1000.slice", userUnit: "cri-containerd-" + id1 + ".scope", userUID: 1000}},
		"a pod of a service's making":      {"/system.slice/payments.service/kubepods/pod" + uid + "/" + id1, placement{container: container{id: id1, claimed: true}, unit: "payments.service", slice: "system.slice"}},
		"a pod of another service":         {"/system.slice/payments.service/kubepods-pod" + und + ".slice:cri-containerd:" + id1, placement{container: container{id: id1, claimed: true}, unit: "payments.service", slice: "system.slice"}},
		"a pod in a container":             {"/docker/" + id1 + "/kubepods/pod" + uid, placement{container: container{id: id1, runtime: docker}}},
		"no container in the pod":          {"/kubepods.slice/kubepods-pod" + und + ".slice", placement{}},
		"no UID":                           {"/kubepods/podx/" + id1, placement{container: container{id: id1, claimed: true}}},
		"an upper-case UID":                {"/kubepods/pod" + strings.ToUpper(uid) + "/" + id1, placement{container: container{id: id1, claimed: true}}},
		"a slice like a pod's":             {"/payments.slice/payments-pod" + und + ".slice/docker-" + id1 + ".scope", placement{container: container{id: id1, runtime: docker}, unit: "docker-" + id1 + ".scope", slice: "payments-pod" + und + ".slice"}},
		"another class":                    {"/kubepods/golden/pod" + uid + "/" + id1, placement{container: container{id: id1, claimed: true}}},
		"kubepods below another directory": {"/x/kubepods/pod" + uid + "/" + id1, placement{container: container{id: id1, claimed: true}}},
	} {
		want := c.want
		want.path = c.path
		if want.userUnit == "" {
			want.userUID = -1
		}
		for controllers, version := range map[string]int64{"": 2, systemdHierarchy: 1} {
			want.version = version
			line := fmt.Sprintf("%d:%s:%s\n", 2-version, controllers, c.path)
			all, err := parseCgroup([]byte(line))
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if got := place(all, true); got != want {
				t.Errorf("%s: %s\n got  %+v\n want %+v", name, c.path, got, want)
			}
			if got := place(all, false); got != (placement{path: c.path, version: version, relative: true, userUID: -1}) {
				t.Errorf("%s, elsewhere: %+v", name, got)
			}
		}
	}
}

func pod(runtime, uid, prefix, class string) placement {
	return placement{
		container: container{id: id1, runtime: runtime, podUID: uid}, unit: prefix + id1 + ".scope",
		slice: class + strings.ReplaceAll(uid, "-", "_") + ".slice",
	}
}

// Several hierarchies: whole files as kernels give them.
func TestHierarchies(t *testing.T) {
	for name, c := range map[string]struct {
		file      string
		path      string
		version   int64
		unit      string
		container container
		nested    bool
	}{
		"version 2":             {file: "0::/system.slice/a.service\n", path: "/system.slice/a.service", version: 2, unit: "a.service"},
		"version 1, legacy":     {file: "3:cpu,cpuacct:/system.slice/a.service\n1:name=systemd:/system.slice/a.service\n", path: "/system.slice/a.service", version: 1, unit: "a.service"},
		"hybrid":                {file: "1:name=systemd:/system.slice/a.service\n0::/system.slice/a.service\n", path: "/system.slice/a.service", version: 2, unit: "a.service"},
		"hybrid, 2 unused":      {file: "1:name=systemd:/system.slice/a.service\n0::/\n", path: "/system.slice/a.service", version: 1, unit: "a.service"},
		"hybrid, 1 unused":      {file: "1:name=systemd:/\n0::/system.slice/a.service\n", path: "/system.slice/a.service", version: 2, unit: "a.service"},
		"hybrid, and they fork": {file: "1:name=systemd:/system.slice/b.service\n0::/system.slice/a.service\n"},
		"OpenRC": {
			file: "4:memory:/docker/" + id1 + "\n2:cpuset:/docker/" + id1 + "\n1:name=openrc:/docker\n0::/docker\n",
			path: "/docker", version: 2, container: container{id: id1, runtime: runtimeDocker},
		},
		"docker, version 1": {
			file:      "12:pids:/docker/" + id1 + "\n1:name=systemd:/docker/" + id1 + "\n0::/system.slice/containerd.service\n",
			container: container{id: id1, runtime: runtimeDocker},
		},
		"two containers": {file: "2:cpu:/docker/" + id1 + "\n1:name=systemd:/docker/" + id2 + "\n", path: "/docker/" + id2, version: 1, nested: true},
		"one is claimed": {
			file: "2:cpu:/x/" + id1 + "\n1:name=systemd:/docker/" + id1 + "\n", path: "/docker/" + id1, version: 1, nested: true,
		},
		"no hierarchy": {file: ""},
		"a path with colons": {
			file: "0::/system.slice/containerd.service/a:b:c\n", path: "/system.slice/containerd.service/a:b:c", version: 2, unit: "containerd.service",
		},
	} {
		all, err := parseCgroup([]byte(c.file))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := place(all, true)
		if got.path != c.path || got.version != c.version || got.unit != c.unit || got.container != c.container || got.nested != c.nested {
			t.Errorf("%s: %+v", name, got)
		}
	}
	for name, file := range map[string]string{
		"no line's end":         "0::/a",
		"no number":             "x::/a\n",
		"a sign":                "+1:cpu:/a\n",
		"no path":               "0::\n",
		"a relative path":       "0::a\n",
		"no controllers":        "1:/a\n",
		"1 without controllers": "1::/a\n",
		"2 with controllers":    "0:cpu:/a\n",
		"twice":                 "0::/a\n0::/b\n",
		"an empty line":         "0::/a\n\n",
		"too many":              manyHierarchies(maxHierarchies + 1),
		"too long a path":       "0::/" + strings.Repeat("a", maxCgroupPath) + "\n",
		"too much":              strings.Repeat("\n", maxCgroup+1),
	} {
		if all, err := parseCgroup([]byte(file)); err == nil {
			t.Errorf("%s: %+v", name, all)
		}
	}
	if all, err := parseCgroup([]byte(manyHierarchies(maxHierarchies))); err != nil || len(all) != maxHierarchies {
		t.Errorf("%d, %v", len(all), err)
	}
}

func manyHierarchies(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%d:name=x%d:/\n", i+1, i)
	}
	return b.String()
}

func statLine(comm string) string {
	return "42 (" + comm + ") S 7 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 9 0 123456 100 200 18446744073709551615 4194304 4200000 140737000000000 0 0 0 0 0\n"
}

func TestParseStat(t *testing.T) {
	want := stat{state: 'S', ppid: 7, start: 123456, image: image{4194304, 4200000, 140737000000000}}
	for _, comm := range []string{"app", "", "a b", "a) R 1 1 1 (b", ")", "(", ") Z 1 ", "a\\nb", strings.Repeat(")", maxComm), "S 7 42 42 0 -1 4194560"} {
		if got, err := parseStat([]byte(statLine(comm))); err != nil || got != want {
			t.Errorf("%q: %+v, %v", comm, got, err)
		}
	}
	short := "42 (a) S 7 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 9 0 123456 100 200 1 2 3 4"
	if got, err := parseStat([]byte(short)); err != nil || got.image != (image{2, 3, 4}) {
		t.Errorf("a file that ends after the last field that is used: %+v, %v", got, err)
	}
	for name, text := range map[string]string{
		"nothing": "", "no name": "42 S 7", "no number": "(a) S", "no space": "42(a) S 7", "a negative number": strings.Replace(statLine("a"), "42 (", "-1 (", 1),
		"cut short":       "42 (a) S 7 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 9 0 123456 100 200 1 2 3",
		"a long name":     statLine(strings.Repeat("a", maxComm+1)),
		"two letters":     strings.Replace(statLine("a"), ") S", ") SS", 1),
		"no letter":       strings.Replace(statLine("a"), ") S", ") 1", 1),
		"two spaces":      strings.Replace(statLine("a"), ") S ", ") S  ", 1),
		"no parent":       strings.Replace(statLine("a"), "S 7", "S x", 1),
		"a strange start": strings.Replace(statLine("a"), " 123456 ", " -123456 ", 1),
		"more than 64 bits": strings.Replace(statLine("a"), " 123456 ",
			" 99999999999999999999 ", 1),
	} {
		if got, err := parseStat([]byte(text)); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
	for _, s := range []byte{'Z', 'X', 'x'} {
		if !(stat{state: s}).over() {
			t.Errorf("%c is not over", s)
		}
	}
}

// The kernel that runs the test is another witness.
func TestThisProcess(t *testing.T) {
	i := inspector(t, Config{})
	err := with(i.proc, func(proc int) error {
		dir, err := openAt(proc, "self", 0)
		if err != nil {
			return err
		}
		now, err := readStat(dir)
		if err != nil || now.ppid != int32(os.Getppid()) || now.start == 0 || now.image.startStack == 0 || now.over() {
			t.Errorf("%+v, %v", now, err)
		}
		if uid, err := effectiveUID(dir); err != nil || uid != uint32(os.Geteuid()) {
			t.Errorf("%d, %v", uid, err)
		}
		text, err := readAt(dir, "cgroup", maxCgroup)
		if err != nil {
			return err
		}
		if _, err := parseCgroup(text); err != nil {
			t.Errorf("%q: %v", text, err)
		}
		if _, err := readAt(dir, "cgroup", 1); err == nil && len(text) > 1 {
			t.Error("a file that is too large was read")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func FuzzStat(f *testing.F) {
	f.Add([]byte(statLine("app")))
	f.Add([]byte(statLine("a) R 1 1 1 (b")))
	f.Add([]byte("42 (a) S"))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := parseStat(text)
		if err != nil && s != (stat{}) {
			t.Errorf("%+v with %v", s, err)
		}
	})
}

// Whatever a line is: what root did not make names no container, and what is told holds together.
func FuzzCgroup(f *testing.F) {
	for _, path := range []string{
		"/system.slice/docker-" + id1 + ".scope", "/docker/" + id1 + "/docker/" + id2, "/kubepods/burstable/pod" + uid + "/" + id1,
		"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + id1 + ".scope/container", "/../x",
		"/kubepods.slice/kubepods-pod" + und + ".slice/cri-containerd-" + id1 + ".scope", "/system.slice/containerd.service/kubepods-pod" + und + ".slice:cri-containerd:" + id1,
	} {
		f.Add([]byte("0::" + path + "\n"))
		f.Add([]byte("2:cpu:" + path + "\n1:name=systemd:" + path + "\n0::/\n"))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		all, err := parseCgroup(text)
		if err != nil {
			return
		}
		at := place(all, true)
		c := at.container
		if (c != container{}) != (c.id != "") || c.id != "" && !isID(c.id) || at.nested && c.id != "" || c.claimed && c.podUID != "" {
			t.Errorf("%+v", at)
		}
		if c.podUID != "" && podUID(c.podUID) != c.podUID {
			t.Errorf("%+v", at)
		}
		if at.unit != "" && !validUnit(at.unit) || at.userUnit != "" && at.userUID < 0 {
			t.Errorf("%+v", at)
		}
		// Nobody gets out of a user's delegated tree, nor a container out of its own, by what he calls his cgroups.
		for _, inside := range []string{"/user.slice/user-1000.slice/user@1000.service", "/system.slice/payments.service", "/docker/" + id2} {
			for i := range all {
				moved := []hierarchy{{"", inside + all[i].path}}
				at := place(moved, true)
				if at.container.id != "" && at.container.id != id2 && !at.container.claimed || at.container.podUID != "" {
					t.Errorf("%s: %+v", moved[0].path, at)
				}
			}
		}
	})
}
