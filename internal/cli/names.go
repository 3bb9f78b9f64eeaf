package cli

import (
	"context"
	"strings"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// Names of identities are given as this program prints them: some places print the path, others the whole SPIFFE ID.
// What is neither is refused, because a list for it would be empty, and look like an answer.

// prefix is the path of a name, or of the beginning of one.
func (c *conn) prefix(name string) (string, error) {
	path := name
	if id, ok := strings.CutPrefix(name, identity.Scheme); ok {
		env, rest, _ := strings.Cut(id, "/")
		if env != c.trust.Environment {
			return "", problem.New(problem.ReasonWrongEnvironment, "%s is of %s, and this is %s", name, env, c.trust.Environment).
				WithFix("ask that environment, with --env; those that are pinned here have a directory each in --home")
		}
		path = "/" + rest
	}
	if path != "" && !strings.HasPrefix(path, "/") {
		return "", problem.New(problem.ReasonInvalid, "%q is not the name of an identity: it does not begin with '/'", name).
			WithFix("give the path, like %spayments-api, or the SPIFFE ID; `bailment identity list` shows those that are known", identity.PrefixWorkload)
	}
	return path, nil
}

// identity is the path of a whole name.
func (c *conn) identity(name string) (string, error) {
	path, err := c.prefix(name)
	if err != nil {
		return "", err
	}
	if err := identity.ValidPath(path); err != nil {
		return "", problem.Wrap(err, problem.ReasonInvalid, "the identity").WithFix("give it as `bailment identity list` shows it")
	}
	return path, nil
}

// scope is a scope, with the path in place of a SPIFFE ID.
func (c *conn) scope(text string) (string, error) {
	kind, name, ok := strings.Cut(text, ":")
	if !ok || !strings.HasPrefix(name, identity.Scheme) || kind != string(state.ScopeIdentity) && kind != string(state.ScopeNode) {
		return text, nil // whether it is a scope at all is found out where it is parsed
	}
	path, err := c.prefix(name)
	return kind + ":" + path, err
}

// noteUnknown says of an identity that nothing was found for, that nothing is known of it at all, if that is so.
func (a *app) noteUnknown(ctx context.Context, c *conn, path string) {
	k := known{scope: state.Scope{Kind: state.ScopeIdentity, Value: path}}
	if strings.HasPrefix(path, identity.PrefixNode) {
		k.scope.Kind = state.ScopeNode
	}
	if err := k.look(ctx, c); err != nil || k.covered > 0 {
		return // who may not look it up is told nothing
	}
	hint := ""
	if near := k.near(); len(near) > 0 {
		_, name, _ := strings.Cut(near[0], ":")
		hint = "; did you mean " + name + "?"
	}
	a.note("%s", oneLine("nothing is known of "+path+hint))
}
