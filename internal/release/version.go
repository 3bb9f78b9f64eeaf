package release

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
)

// Version is a release's version: MAJOR.MINOR.PATCH, or that and "-PRE" for what comes before it, of Semantic Versioning 2.0.0 without
// build metadata (which has no order, so nothing could be said of a minimum). The zero value is 0.0.0, which no release has: it stands for
// "none". Versions are compared by Compare; == tells only the same text.
type Version struct {
	Major, Minor, Patch uint32
	Pre                 string // dot-separated identifiers of letters, digits and '-'; empty: a release proper
}

// MaxVersion bounds a version's text in bytes.
const MaxVersion = 64

// ParseVersion reads the one form that String gives. The error shows nothing of the text.
func ParseVersion(s string) (Version, error) {
	fail := fmt.Errorf("not a version: it must be MAJOR.MINOR.PATCH or MAJOR.MINOR.PATCH-PRE, without a v before it, at most %d bytes", MaxVersion)
	if len(s) > MaxVersion {
		return Version{}, fail
	}
	numbers, pre, dashed := strings.Cut(s, "-")
	if dashed && pre == "" {
		return Version{}, fail
	}
	parts := strings.Split(numbers, ".")
	if len(parts) != 3 {
		return Version{}, fail
	}
	v := Version{Pre: pre}
	for i, to := range []*uint32{&v.Major, &v.Minor, &v.Patch} {
		if !numeric(parts[i]) || len(parts[i]) > 1 && parts[i][0] == '0' {
			return Version{}, fail
		}
		n, err := strconv.ParseUint(parts[i], 10, 32)
		if err != nil {
			return Version{}, fail
		}
		*to = uint32(n)
	}
	if v.check() != nil {
		return Version{}, fail
	}
	return v, nil
}

// check is about Pre: SemVer §9.
func (v Version) check() error {
	if len(v.String()) > MaxVersion {
		return fmt.Errorf("the version is longer than %d bytes", MaxVersion)
	}
	if v.Pre == "" {
		return nil
	}
	for id := range strings.SplitSeq(v.Pre, ".") {
		if id == "" || !only(id, lower+upper+digits+"-") || numeric(id) && len(id) > 1 && id[0] == '0' {
			return fmt.Errorf("what stands behind the version's dash is not made of dot-separated identifiers")
		}
	}
	return nil
}

func numeric(s string) bool { return s != "" && only(s, digits) }

// IsZero reports whether v stands for "none".
func (v Version) IsZero() bool { return v == Version{} }

func (v Version) String() string {
	s := fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch)
	if v.Pre != "" {
		s += "-" + v.Pre
	}
	return s
}

// Compare is -1, 0 or +1: SemVer §11, so 1.2.0-rc.1 is before 1.2.0, and rc.2 before rc.10.
func (v Version) Compare(w Version) int {
	if c := cmp.Or(cmp.Compare(v.Major, w.Major), cmp.Compare(v.Minor, w.Minor), cmp.Compare(v.Patch, w.Patch)); c != 0 {
		return c
	}
	switch {
	case v.Pre == w.Pre:
		return 0
	case v.Pre == "":
		return 1
	case w.Pre == "":
		return -1
	}
	a, b := strings.Split(v.Pre, "."), strings.Split(w.Pre, ".")
	for i := range min(len(a), len(b)) {
		if c := compareIdentifiers(a[i], b[i]); c != 0 {
			return c
		}
	}
	return cmp.Compare(len(a), len(b))
}

// compareIdentifiers: numbers by value and before texts, texts by bytes.
func compareIdentifiers(a, b string) int {
	switch an, bn := numeric(a), numeric(b); {
	case an && bn:
		// Without leading zeros a longer number is a larger one, whatever its length.
		return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b))
	case an:
		return -1
	case bn:
		return 1
	}
	return cmp.Compare(a, b)
}
