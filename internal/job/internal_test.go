package job

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/attest/ci"
	"github.com/bailment/bailment/internal/problem"
)

// What gives a right to tokens is known for each platform; a platform that masks is told values, and no other.
func TestPlatformOf(t *testing.T) {
	for method, want := range map[string]Platform{
		ci.GitHubName:    {Hidden: []string{"ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN"}, Masks: true},
		ci.GitLabName:    {Hidden: []string{ci.EnvToken}, SameToken: true},
		ci.BuildkiteName: {},
		ci.CircleCIName:  {Hidden: []string{"CIRCLE_OIDC_TOKEN", "CIRCLE_OIDC_TOKEN_V2"}},
		ci.OIDCName:      {Hidden: []string{ci.EnvToken}, SameToken: true},
		"corp":           {Hidden: []string{ci.EnvToken}, SameToken: true},
	} {
		p := PlatformOf(method)
		if p.Title == "" || p.Masks != want.Masks || p.SameToken != want.SameToken || !slices.Equal(p.Hidden, want.Hidden) {
			t.Errorf("%s: %+v", method, p)
		}
	}
}

func TestMaskCommands(t *testing.T) {
	for value, want := range map[string]string{
		"":                             "",
		"a":                            "::add-mask::a\n",
		"50% \r\n":                     "::add-mask::50%25\n",
		"{\n  key: x\n}":               "::add-mask::key: x\n",
		"one\ntwo2\r\n::add-mask::x\n": "::add-mask::two2\n::add-mask::::add-mask::x\n",
	} {
		if got := string(maskCommands([][]byte{[]byte(value)})); got != want {
			t.Errorf("%q: %q, want %q", value, got, want)
		}
	}
}

func TestAudienceFor(t *testing.T) {
	genesis := strings.Repeat("ab", 32)
	if a, err := AudienceFor("bailment1:host.example:8400/prod#" + genesis); err != nil || a != "bailment:v1:"+genesis {
		t.Errorf("%q, %v", a, err)
	}
	if _, err := AudienceFor("x"); !problem.Is(err, problem.ReasonInvalid) {
		t.Errorf("%v", err)
	}
}

// What a dying process wrote in part is passed over: the holding before it stands.
func TestListen(t *testing.T) {
	whole, err := json.Marshal(holding{Identity: "/ci/x", Leases: []lease{{ID: 7}}})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		text string
		want uint64
	}{
		"nothing": {"", 0}, "cut at once": {string(whole[:20]), 0}, "whole": {string(whole) + "\n", 7}, "and a part": {string(whole) + "\n" + `{"leases":[{"id":8`, 7},
		"the newest": {string(whole) + "\n" + `{"leases":[{"id":9}]}` + "\n", 9},
	} {
		h := listen(strings.NewReader(c.text))
		if (h == nil) != (c.want == 0) || h != nil && h.Leases[0].ID != c.want {
			t.Errorf("%s: %+v", name, h)
		}
	}
}

func TestStartOf(t *testing.T) {
	me := process{PID: os.Getpid()}
	me.Start, _ = startOf(me.PID)
	if me.Start == 0 || !me.is() {
		t.Errorf("%+v", me)
	}
	if me.Start++; me.is() {
		t.Error("another process of this number passes for it")
	}
	if _, ok := startOf(1 << 30); ok {
		t.Error("a process that there can't be")
	}
}

// What is read of a process that was killed in the middle of writing never makes a holding that was not written whole.
func FuzzListen(f *testing.F) {
	whole, err := json.Marshal(holding{Identity: "/ci/x", Key: []byte("k"), Leases: []lease{{ID: 7, Secret: "a"}}, Asked: []ask{{Key: "k"}}})
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range []string{"", "{}\n", string(whole) + "\n", string(whole[:len(whole)-1]), "null\n", "[]\n" + string(whole) + "\n{"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if h := listen(strings.NewReader(text)); h != nil {
			if _, err := json.Marshal(h); err != nil {
				t.Error(err)
			}
			h.held()
		}
	})
}

// Whatever the value, each line is one command, and no line of a value becomes a command of its own.
func FuzzMaskCommands(f *testing.F) {
	for _, s := range []string{"", "a", "%0A", "one\ntwo2\r\n::set-output name=x::y", "\r\r\n", "{\n}\n", "::add-mask::x"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		out := string(maskCommands([][]byte{value}))
		if out == "" {
			return
		}
		for line := range strings.Lines(out) {
			if !strings.HasPrefix(line, "::add-mask::") || !strings.HasSuffix(line, "\n") || strings.ContainsRune(line, '\r') || len(line) <= len("::add-mask::\n") {
				t.Errorf("%q of %q", line, value)
			}
		}
	})
}
