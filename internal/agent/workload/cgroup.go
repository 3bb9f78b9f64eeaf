package workload

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
)

// Bounds of a cgroup file. Version 1 of cgroups has at most a line for each of some 14 controllers, and named ones.
const (
	maxHierarchies   = 32
	maxCgroupPath    = 4096 // PATH_MAX
	maxCgroupClaim   = 1024 // bytes of a path that is told
	maxPathElements  = 64
	systemdHierarchy = "name=systemd"
)

// hierarchy is one line of /proc/PID/cgroup: the path of the process in one tree of cgroups.
type hierarchy struct {
	controllers string // empty: version 2
	path        string
}

// parseCgroup reads /proc/PID/cgroup: lines of ID:CONTROLLERS:PATH (cgroups(7)). A path may hold colons, and never a line's end, which
// the kernel refuses in a cgroup's name. Anything else is not believed at all.
func parseCgroup(text []byte) ([]hierarchy, error) {
	if len(text) > maxCgroup || len(text) > 0 && text[len(text)-1] != '\n' {
		return nil, errShape
	}
	var out []hierarchy
	for line := range bytes.Lines(text) {
		id, rest, ok := strings.Cut(strings.TrimSuffix(string(line), "\n"), ":")
		controllers, path, ok2 := strings.Cut(rest, ":")
		n, err := strconv.ParseUint(id, 10, 31)
		switch {
		case !ok, !ok2, err != nil, len(out) == maxHierarchies, len(path) > maxCgroupPath, !strings.HasPrefix(path, "/"), (n == 0) != (controllers == ""):
			return nil, errShape
		case slices.ContainsFunc(out, func(h hierarchy) bool { return h.controllers == controllers }):
			return nil, errShape
		}
		out = append(out, hierarchy{controllers, path})
	}
	return out, nil
}

// placement is what the cgroups of a process say about it, on a host whose root keeps them.
type placement struct {
	path      string // in the hierarchy that systemd keeps, or that of version 2; empty: two of them differ, or there is none
	relative  bool   // path is seen from another root than the host's: nothing else is known
	version   int64  // of path's hierarchy
	unit      string // of systemd's system manager
	slice     string // that the unit is in
	userUnit  string // of a user's manager: what the user says
	userUID   int64  // whose manager that is; -1: none
	container container
	nested    bool // there are several containers, or several answers: which is meant is not known
}

// place finds out where a process is. host says that the paths are the host's.
func place(all []hierarchy, host bool) placement {
	out := placement{userUID: -1}
	out.path, out.version = primary(all)
	if !host {
		out.relative = true
		return out
	}
	if out.path != "" {
		if elements, ok := split(out.path); ok {
			out.unit, out.slice, out.userUnit, out.userUID = unitOf(elements)
		}
	}
	// A hierarchy in which nobody put the process anywhere says nothing. All that say something must say the same: who may
	// make cgroups in one of them could else choose the answer.
	for _, h := range all {
		elements, ok := split(h.path)
		if !ok {
			continue
		}
		c, nested := containerOf(elements)
		switch {
		case nested, c.id != "" && out.container.id != "" && c != out.container:
			out.container, out.nested = container{}, true
			return out
		case c.id != "":
			out.container = c
		}
	}
	return out
}

// primary is the path that systemd keeps: version 2, or the named hierarchy of version 1 (systemd's "legacy" layout, where version 2
// is at most mounted, and empty). With both in use ("hybrid") they are the same.
func primary(all []hierarchy) (path string, version int64) {
	var v1, v2 string
	for _, h := range all {
		switch h.controllers {
		case "":
			v2 = h.path
		case systemdHierarchy:
			v1 = h.path
		}
	}
	switch {
	case v2 != "" && (v1 == "" || v1 == "/" || v1 == v2):
		return v2, 2
	case v1 != "" && (v2 == "" || v2 == "/"):
		return v1, 1
	}
	return "", 0
}

// split gives the elements of an absolute path. One that leads above its root (a process outside of the reader's namespace), or
// whose cgroup was removed, is not one to draw conclusions from.
func split(path string) ([]string, bool) {
	if path == "/" {
		return nil, true
	}
	if strings.HasSuffix(path, " (deleted)") {
		return nil, false
	}
	elements := strings.Split(strings.TrimPrefix(path, "/"), "/")
	if len(elements) > maxPathElements || slices.ContainsFunc(elements, func(e string) bool { return e == "" || e == "." || e == ".." }) {
		return nil, false
	}
	return elements, true
}

// unitOf finds systemd's unit: the first element behind the slices. Below user@UID.service a user's own manager makes the
// cgroups, so what stands there is told apart.
func unitOf(elements []string) (unit, slice, userUnit string, uid int64) {
	uid = -1
	i := slicesBefore(elements)
	if i == len(elements) {
		return "", "", "", -1
	}
	name := unescape(elements[i])
	if !validUnit(name) {
		return "", "", "", -1
	}
	unit = name
	if i > 0 {
		slice = elements[i-1]
	}
	owner, ok := strings.CutPrefix(unit, "user@")
	owner, ok2 := strings.CutSuffix(owner, ".service")
	n, ok3 := number([]byte(owner), 32)
	if !ok || !ok2 || !ok3 || slice != "user-"+owner+".slice" {
		return unit, slice, "", -1
	}
	rest := elements[i+1:]
	if j := slicesBefore(rest); j < len(rest) && validUnit(unescape(rest[j])) {
		userUnit = unescape(rest[j])
	}
	return unit, slice, userUnit, int64(n)
}

// slicesBefore counts the slices at the beginning of a path.
func slicesBefore(elements []string) int {
	i := 0
	for i < len(elements) && isSlice(elements[i]) {
		i++
	}
	return i
}

func isSlice(name string) bool {
	return len(name) > len(".slice") && strings.HasSuffix(name, ".slice") && validUnitName(name)
}

// unescape takes off the underscore that systemd puts before a name which the kernel could take for a file of its own.
func unescape(element string) string { return strings.TrimPrefix(element, "_") }

// unitTypes are the types of units that have processes (systemd.unit(5)).
var unitTypes = [...]string{".service", ".scope", ".socket", ".mount", ".swap"}

func validUnit(name string) bool {
	for _, t := range unitTypes {
		if strings.HasSuffix(name, t) && len(name) > len(t) {
			return validUnitName(name)
		}
	}
	return false
}

// validUnitName is systemd's rule for names of units: at most 255 bytes of letters, digits and ":-_.\@".
func validUnitName(name string) bool {
	if len(name) > 255 {
		return false
	}
	for i := range len(name) {
		c := name[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && strings.IndexByte(`:-_.\@`, c) < 0 {
			return false
		}
	}
	return true
}
