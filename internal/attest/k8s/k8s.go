// Package k8s is the attestation methods "k8s" and "k8s-job": a pod proves what it is by the projected token of its service account
// (KEP-1205, KEP-4193). They differ in where their identities are (/node/k8s/, /ci/k8s-job/) and in nothing else.
//
// Guaranteed: the cluster's issuer signed the token for this environment; it is bound to a pod that existed when it was made; its claims
// agree with its subject; and it is used by one session key only (Result.Once), which may come again with it.
//
// Not guaranteed: that this session key is the pod's. The kubelet fixes the audience before there is a session key, so that whoever reads
// the token first has it; hence assurance "token". And that the pod still runs: README.md says when its end is noticed.
//
// Its place: a method of package attest, by way of package platform.
package k8s

import (
	"strings"
	"time"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/jwt"
	"github.com/bailment/bailment/internal/attest/platform"
	"github.com/bailment/bailment/internal/problem"
)

// The methods' names.
const (
	Name    = "k8s"
	JobName = "k8s-job"
)

// NeedToken is the projected token.
const NeedToken = "token"

// maxLifetime is the most that a projected token may live. The kubelet replaces one that is older than 24 hours, whatever was asked for.
const maxLifetime = 24 * time.Hour

// Method is the row of "k8s".
func Method() attest.Method { return row(Name).Method() }

// JobMethod is the row of "k8s-job".
func JobMethod() attest.Method { return row(JobName).Method() }

func row(name string) platform.Platform {
	return platform.Platform{
		Name:   name,
		Proves: "a token that the cluster made for a pod of this namespace and service account, for this environment, and that no other session key has used",
		DoesNotProve: "that the session key is the pod's (whoever reads the token first has it), that the pod still runs, " +
			"or what its containers run",
		Bindings:    []platform.Binding{platform.ToEnvironment},
		Renewal:     attest.Renewal{Kind: attest.RenewByEvidence},
		Machine:     []string{"pod_uid"},
		MaxLifetime: maxLifetime,
		Claims:      claims,
		// Not Secret: the kubelet writes it readable for the group or for all of the pod (0644 without fsGroup), and owns the directory.
		Needs: []attest.Need{{Name: NeedToken, Doc: "projected service account token whose audience is bailment:v1:GENESIS; the kubelet keeps it fresh"}},
		NewAttester: func(m attest.Material) (attest.Attester, error) {
			source, err := platform.Given(m[NeedToken])
			if err != nil {
				return nil, err
			}
			return platform.NewAttester(name, platform.ToEnvironment, source), nil
		},
	}
}

// claims reads the claim "kubernetes.io". node and node_uid are empty before Kubernetes 1.30.
func claims(token jwt.Token) (map[string]any, error) {
	k, err := jwt.Object(token.Claims, "kubernetes.io")
	if err != nil {
		return nil, err
	}
	out, err := jwt.Pick(k, "namespace")
	if err != nil {
		return nil, err
	}
	for _, object := range []struct{ in, out string }{{"serviceaccount", "service_account"}, {"pod", "pod"}, {"node", "node"}} {
		members, err := jwt.Object(k, object.in)
		if err != nil {
			return nil, err
		}
		named, err := jwt.Pick(members, "name", "uid")
		if err != nil {
			return nil, err
		}
		out[object.out], out[object.out+"_uid"] = named["name"], named["uid"]
	}
	// A token that is bound to no pod (kubectl create token) ends with nothing.
	if err := platform.Require(out, "namespace", "service_account", "service_account_uid", "pod", "pod_uid"); err != nil {
		return nil, err
	}
	if token.Subject != strings.Join([]string{"system:serviceaccount", out["namespace"].(string), out["service_account"].(string)}, ":") {
		return nil, platform.Contradicts("subject", "namespace and service account")
	}
	if (out["node"] == "") != (out["node_uid"] == "") {
		return nil, problem.New(problem.ReasonTokenInvalid, "the token has half of a node")
	}
	return out, nil
}
