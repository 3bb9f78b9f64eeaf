package control_test

import (
	"context"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/problem"
)

// Without a duty one sees oneself, and not who is called alike; with one, what is below a path.
func TestListIdentitiesBySegments(t *testing.T) {
	b := newBoard(t, 1, "alice", "bob")
	n := b.Node(b.by["alice"], "web-1")
	for _, name := range []string{"web-10", "web-1.a", "web-1-a", "web", "zeta"} {
		b.Node(b.by["alice"], name)
	}
	list := func(who controltest.Actor, prefix string, size int) string {
		var out []string
		for page, more := (control.Page{Size: size}), true; more; more = page.After != "" {
			got, next, err := b.Env.ListIdentities(context.Background(), who.Caller, prefix, page)
			b.must(err)
			for _, v := range got {
				out = append(out, strings.TrimPrefix(v.Path, "/node/join-token/"))
			}
			page.After = next
		}
		return strings.Join(out, " ")
	}
	all := "web web-1 web-1-a web-1.a web-10 zeta"
	for _, size := range []int{1, 2, 0} {
		if got := list(n, "/node/join-token/web-1", size); got != "web-1" {
			t.Errorf("itself: %s", got)
		}
		for prefix, want := range map[string]string{
			"/node": all, "/node/": all, "/node/join-token": all, "/node/join-token/web-1": "web-1", "/node/join-token/we": "", "/no": "",
			"": "/human/alice /human/bob " + all, "/": "/human/alice /human/bob " + all,
		} {
			if got := list(b.by["alice"], prefix, size); got != want {
				t.Errorf("%q by %d: %s", prefix, size, got)
			}
		}
	}
	for _, prefix := range []string{"/node/join-token/web-10", "/node/join-token/web-1/", "/node", ""} {
		_, _, err := b.Env.ListIdentities(context.Background(), n.Caller, prefix, control.Page{})
		b.refused(err, problem.ReasonDuty)
	}
}
