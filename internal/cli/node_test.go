package cli

import (
	"bytes"
	"strings"
	"testing"
	"unicode/utf8"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/problem"
)

// The way out names a command that has the flag: quarantine and decommission, which say so too, have none.
func TestUnknownScopeWayOut(t *testing.T) {
	for _, near := range [][]string{nil, {"node:/node/join-token/web-1"}} {
		a := &app{in: strings.NewReader(""), out: new(bytes.Buffer), err: new(bytes.Buffer)}
		err := a.unknownScope("node:/node/join-token/web1", near)
		fix := problem.As(err).WayOut()
		if !strings.Contains(fix, "`bailment revoke node:/node/join-token/web1 --preemptive --reason …`") {
			t.Errorf("%s", fix)
		}
		if len(near) > 0 && !strings.Contains(fix, near[0]) {
			t.Errorf("%s does not say what is near", fix)
		}
	}
}

// A why of hundreds of characters is folded, and all of it is there, beside its word.
func TestWhyIsFolded(t *testing.T) {
	for name, why := range map[string]string{
		"words":     strings.TrimSpace(strings.Repeat("the kernel 6.1.0-29 was missing ", 9)),
		"one word":  strings.Repeat("é", 300),
		"short":     "odd traffic, ticket 812",
		"two lines": "odd\nstate  forged",
	} {
		t.Run(name, func(t *testing.T) {
			out := new(bytes.Buffer)
			a := &app{out: out, flags: globals{output: formatTable}}
			r := &v1.GetIdentityResponse{Info: &v1.IdentityInfo{Identity: "/node/x", State: "quarantined"}, Hold: 9, HoldScope: "node:/node/x", Why: why}
			if err := a.show(r, func(rows *rows) { identityTable(rows, r) }); err != nil {
				t.Fatal(err)
			}
			_, rest, _ := strings.Cut(out.String(), "\nwhy ")
			text, _, _ := strings.Cut("why "+rest, "\nmethod ")
			var got []string
			for line := range strings.Lines(text + "\n") {
				if n := utf8.RuneCountInString(line); n > 100 {
					t.Errorf("a line of %d characters: %q", n, line)
				}
				got = append(got, strings.TrimSpace(strings.TrimPrefix(line, "why")))
			}
			joined := strings.Join(got, " ")
			if name == "one word" {
				joined = strings.Join(got, "")
			}
			if want := strings.Join(strings.Fields(oneLine(why)), " "); joined != want {
				t.Errorf("%q\nwant %q", joined, want)
			}
		})
	}
}
