package k8s_test

import (
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/jwt/jwttest"
	"github.com/bailment/bailment/internal/attest/k8s"
	"github.com/bailment/bailment/internal/attest/platform/platformtest"
	"github.com/bailment/bailment/internal/problem"
)

var now = platformtest.Now

// inside changes the claim "kubernetes.io": a path of at most two names to its new value; nil takes it away.
func inside(f *platformtest.Fixture, changes map[string]any) map[string]any {
	whole := jwttest.With(f.Claims["kubernetes.io"].(map[string]any), nil)
	for path, value := range changes {
		outer, inner, deep := strings.Cut(path, "/")
		if !deep {
			whole = jwttest.With(whole, map[string]any{outer: value})
			continue
		}
		whole[outer] = jwttest.With(whole[outer].(map[string]any), map[string]any{inner: value})
	}
	return map[string]any{"kubernetes.io": whole}
}

func TestClaims(t *testing.T) {
	const bad = problem.ReasonTokenInvalid
	for _, m := range []attest.Method{k8s.Method(), k8s.JobMethod()} {
		f := platformtest.Of(t, m, jose.ES256, now, platformtest.Binding())
		name := f.Claims["sub"].(string)
		for _, c := range []struct {
			name   string
			claims map[string]any
			want   problem.Reason
		}{
			{"as it is", nil, ""},
			{"another service account", map[string]any{"sub": name + "-2"}, bad},
			{"another namespace", inside(f, map[string]any{"namespace": "kube-system"}), bad},
			{"another account inside", inside(f, map[string]any{"serviceaccount/name": "admin"}), bad},
			{"a subject that hides a colon", map[string]any{"sub": strings.Replace(name, "serviceaccount:", "serviceaccount:a:", 1)}, bad},
			{"a user's subject", map[string]any{"sub": "system:admin"}, bad},
			{"bound to no pod", inside(f, map[string]any{"pod": nil}), bad},
			{"a pod without UID", inside(f, map[string]any{"pod/uid": nil}), bad},
			{"a pod without name", inside(f, map[string]any{"pod/name": ""}), bad},
			{"an account without UID", inside(f, map[string]any{"serviceaccount/uid": nil}), bad},
			{"no node", inside(f, map[string]any{"node": nil}), ""},
			{"half a node", inside(f, map[string]any{"node/uid": nil}), bad},
			{"a pod that is a text", inside(f, map[string]any{"pod": "worker"}), bad},
			{"a pod that is a list", inside(f, map[string]any{"pod/name": []string{"a", "b"}}), bad},
			{"nothing of Kubernetes", map[string]any{"kubernetes.io": nil}, bad},
			{"a secret's token", map[string]any{"kubernetes.io": nil, "kubernetes.io/serviceaccount/namespace": "bailment", "exp": nil}, bad},
		} {
			_, err := m.Verify(f.Input(f.With(c.claims)))
			if c.want == "" && err != nil || c.want != "" && !problem.Is(err, c.want) {
				t.Errorf("%s: %s: %v", m.Name, c.name, err)
			}
		}
	}
}

// TestRefreshed: the kubelet's next token for the pod is another one, and the same token stays the same.
func TestRefreshed(t *testing.T) {
	m := k8s.Method()
	f := platformtest.Of(t, m, jose.ES256, now, platformtest.Binding())
	verify := func(change map[string]any, at time.Duration, sessionKey byte) attest.Result {
		t.Helper()
		in := f.Input(f.With(change))
		in.Now = now.Add(at)
		in.Binding.SessionKey = [32]byte{sessionKey}
		res, err := m.Verify(in)
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	first := verify(nil, 0, 1)
	if again := verify(nil, 40*time.Minute, 1); again.Once != first.Once || !again.NotAfter.Equal(first.NotAfter) {
		t.Error("the same token is another one later")
	}
	if thief := verify(nil, time.Minute, 2); thief.Once != first.Once {
		t.Error("another key can use the token")
	}
	next := verify(map[string]any{"jti": "next", "iat": now.Add(48 * time.Minute).Unix(), "exp": now.Add(108 * time.Minute).Unix()}, 49*time.Minute, 3)
	if next.Once == first.Once || !next.NotAfter.After(first.NotAfter) {
		t.Error("the next token is not another one")
	}
}

func TestLifetime(t *testing.T) {
	m := k8s.Method()
	f := platformtest.Of(t, m, jose.ES256, now, platformtest.Binding())
	long := map[string]any{"iat": now.Unix(), "exp": now.Add(24*time.Hour + time.Second).Unix()}
	if _, err := m.Verify(f.Input(f.With(long))); !problem.Is(err, problem.ReasonTokenInvalid) {
		t.Error(err)
	}
}

func TestNoToken(t *testing.T) {
	for _, text := range []string{"", "canary", "canary.canary.canary"} {
		if _, err := k8s.Method().NewAttester(attest.Material{k8s.NeedToken: []byte(text)}); !problem.Is(err, problem.ReasonTokenInvalid) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%q: %v", text, err)
		}
	}
}
