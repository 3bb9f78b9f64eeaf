package cli

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/term"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/spelling"
	"github.com/bailment/bailment/internal/state"
)

// codeUnknownScope: nothing that is known is in the scope, and nothing was done.
const codeUnknownScope exitCode = 6

const (
	maxKnown  = 100_000 // names that are looked through
	namesPage = 1000    // the most that the server gives at a time
	maxNear   = 3       // names that are offered
)

// checkScope asks the person about a scope that is wide, and stops at one that nothing known is in: that is most often
// a name that is misspelt, and would be acknowledged like any other. What can't be looked up stops nothing.
func (a *app) checkScope(ctx context.Context, c *conn, text string, preemptive, yes bool) error {
	scope, err := state.ParseScope(text)
	if err != nil {
		return err
	}
	k := known{scope: scope, counts: !yes}
	// Who asks for everything, or for what is not there yet, waits for no list.
	if scope.Kind != state.ScopeEverything && !preemptive {
		if err := k.look(ctx, c); err != nil {
			a.note("whether anything is in %s could not be looked up: %s", text, asProblem(err).Message)
			k.covered = max(k.covered, 1)
		}
		if k.covered == 0 {
			if err := a.unknownScope(text, k.near()); err != nil {
				return err
			}
		}
	}
	if yes || !wide(scope) {
		return nil
	}
	if k.covered > 0 {
		return a.confirm("%s has %d known %s in it: revoke it?", text, k.covered, plural(k.covered, "name"))
	}
	return a.confirm("revoke %s?", text)
}

// unknownScope warns, and asks if there is somebody to ask.
func (a *app) unknownScope(text string, near []string) error {
	fmt.Fprintf(a.err, "WARNING: nothing that is known here is in %s\n", printable(text)) // even with --quiet
	// Other commands than revoke end here, too, and have no such flag.
	ahead := "o revoke what is not there yet: `bailment revoke " + printable(text) + " --preemptive --reason …`"
	fix := "check the name with the list commands; t" + ahead
	if len(near) > 0 {
		fix = "did you mean " + printable(strings.Join(near, ", ")) + "? T" + ahead
	}
	if f, ok := a.in.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		if len(near) > 0 {
			fmt.Fprintf(a.err, "did you mean %s?\n", printable(strings.Join(near, ", ")))
		}
		if a.confirm("revoke it all the same?") == nil {
			return nil
		}
	}
	return coded{int(codeUnknownScope), problem.New(problem.ReasonNotFound, "nothing was revoked: nothing that is known is in %s", text).WithFix("%s", fix)}
}

// known is what is known of a scope.
type known struct {
	scope   state.Scope
	counts  bool     // how many there are is of interest, not only whether
	covered int      // names in the scope
	others  []string // names of its kind outside of it, as scopes
}

// add takes a name of the scope's kind.
func (k *known) add(name string, x state.Subject) {
	if k.scope.Covers(x) {
		k.covered++
	} else {
		k.others = append(k.others, string(k.scope.Kind)+":"+name)
	}
}

// enough reports whether nothing more is to be learned, or too much was looked at already.
func (k *known) enough() bool {
	return k.covered > 0 && !(k.counts && wide(k.scope)) || k.covered+len(k.others) > maxKnown
}

func wide(s state.Scope) bool {
	return s.Kind == state.ScopeEverything || strings.HasSuffix(s.Value, "*")
}

// look finds what the scope covers among the names that the person may list and those in the bundle, from the cheapest
// to the dearest. In an incident a name that is right costs one question.
func (k *known) look(ctx context.Context, c *conn) error {
	switch k.scope.Kind {
	case state.ScopeIdentity, state.ScopeNode, state.ScopeSecret:
		if err := k.list(ctx, c, strings.TrimSuffix(k.scope.Value, "*")); err != nil || k.covered > 0 {
			return err
		}
	}
	b, err := c.bundle(ctx, "")
	if err != nil {
		return err
	}
	prog, err := accepted(b.files)
	if err != nil {
		return err
	}
	if k.declared(prog); k.covered > 0 {
		return nil
	}
	if err := k.hidden(ctx, c, prog); err != nil {
		return err
	}
	return k.list(ctx, c, "") // issuers, and the names that are near
}

// list goes through what the server lists below a prefix.
func (k *known) list(ctx context.Context, c *conn, prefix string) error {
	for page := ""; ; {
		var err error
		if k.scope.Kind == state.ScopeSecret {
			page, err = k.secrets(ctx, c, prefix, page)
		} else {
			page, err = k.identities(ctx, c, prefix, page)
		}
		if err != nil || page == "" || k.enough() {
			return err
		}
	}
}

func (k *known) identities(ctx context.Context, c *conn, prefix, page string) (next string, err error) {
	r, err := c.Attestation.ListIdentities(ctx, &v1.ListIdentitiesRequest{Prefix: prefix, PageSize: namesPage, PageToken: page})
	if err != nil {
		return "", err
	}
	for _, i := range r.Identities {
		switch isNode := strings.HasPrefix(i.Identity, identity.PrefixNode); {
		case k.scope.Kind == state.ScopeIssuer:
			k.add(i.Anchor, state.Subject{Anchor: i.Anchor})
		case isNode:
			k.add(i.Identity, state.Subject{Identity: i.Identity, Node: i.Identity})
		case k.scope.Kind == state.ScopeIdentity:
			k.add(i.Identity, state.Subject{Identity: i.Identity})
		}
	}
	return r.NextPageToken, nil
}

func (k *known) secrets(ctx context.Context, c *conn, prefix, page string) (next string, err error) {
	r, err := c.Secrets.List(ctx, &v1.ListSecretsRequest{Prefix: prefix, PageSize: namesPage, PageToken: page})
	if err != nil {
		return "", err
	}
	for _, s := range r.Secrets {
		k.add(s.Secret, state.Subject{Secret: s.Secret})
	}
	return r.NextPageToken, nil
}

// declared takes the names that stand in the bundle, used or not.
func (k *known) declared(prog *policy.Program) {
	switch k.scope.Kind {
	case state.ScopeIdentity:
		for _, path := range prog.Workloads() {
			k.add(path, state.Subject{Identity: path})
		}
		for _, op := range prog.Operators() {
			k.add(op.Path(), state.Subject{Identity: op.Path()})
		}
	case state.ScopeIssuer:
		for _, op := range prog.Operators() {
			for _, key := range op.Keys {
				k.add("ssh:"+key.Fingerprint, state.Subject{Anchor: "ssh:" + key.Fingerprint})
			}
		}
		for _, x := range prog.Authorities("") {
			k.add(x.Method+":"+x.Name, state.Subject{Anchor: x.Method + ":" + x.Name})
		}
	case state.ScopeSecret:
		for _, s := range prog.Secrets() {
			// A family is in a scope if each of its secrets is.
			k.add(s.Pattern.String(), state.Subject{Secret: s.Pattern.String()})
		}
	}
}

// hidden is why secrets in the scope would not have been listed; nil: they would.
func (k *known) hidden(ctx context.Context, c *conn, prog *policy.Program) error {
	path := strings.TrimSuffix(k.scope.Value, "/*")
	if k.scope.Kind != state.ScopeSecret {
		return nil
	}
	if _, ok := prog.Secret(path); !ok {
		return nil // it is in no family that is declared
	}
	r, err := c.Questions.Explain(ctx, &v1.ExplainRequest{Action: "secret.list", Secret: path})
	if err == nil && !r.Allowed {
		err = problem.New(problem.ReasonDuty, "you may not list %s", path)
	}
	return err
}

// near are the names of the scope's kind that are nearest to it.
func (k *known) near() []string {
	want := string(k.scope.Kind) + ":" + k.scope.Value
	far := max(3, len(want)/5)
	type candidate struct {
		name string
		d    int
	}
	var all []candidate
	names := k.others
	if wide(k.scope) {
		names = subtrees(names)
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		if abs := len(name) - len(want); max(abs, -abs) > far {
			continue
		}
		if d := spelling.Distance(name, want); d <= far {
			all = append(all, candidate{name, d})
		}
	}
	slices.SortStableFunc(all, func(a, b candidate) int { return cmp.Compare(a.d, b.d) })
	var out []string
	for _, x := range all[:min(len(all), maxNear)] {
		out = append(out, x.name)
	}
	return out
}

// subtrees are the scopes ending in /* that names are in.
func subtrees(names []string) []string {
	var out []string
	for _, name := range names {
		for i := range len(name) {
			if name[i] == '/' && name[i-1] != ':' {
				out = append(out, name[:i]+"/*")
			}
		}
	}
	return out
}
