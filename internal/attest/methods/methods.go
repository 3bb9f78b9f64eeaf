// Package methods is the one visible table of attestation methods. A new method is one folder
// beside it and one row in it; server and agent get the table as a value.
//
// Guaranteed, by its tests: names are unique, every row is complete, and every method passes the
// common suite of replayed, relayed and mangled evidence. It holds no state and is imported by the
// composition roots only.
package methods

import (
	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/aws"
	"github.com/bailment/bailment/internal/attest/azure"
	"github.com/bailment/bailment/internal/attest/ci"
	"github.com/bailment/bailment/internal/attest/gcp"
	"github.com/bailment/bailment/internal/attest/jointoken"
	"github.com/bailment/bailment/internal/attest/k8s"
	"github.com/bailment/bailment/internal/attest/sevsnp"
	"github.com/bailment/bailment/internal/attest/sshhost"
	"github.com/bailment/bailment/internal/attest/tdx"
	"github.com/bailment/bailment/internal/attest/tpm"
	"github.com/bailment/bailment/internal/attest/x509"
)

// All gives the methods that this version has, the weakest first.
func All() attest.Methods {
	return attest.Methods{
		jointoken.Method(),
		aws.Method(),
		k8s.Method(),
		k8s.JobMethod(),
		ci.GitLab(),
		x509.Method(),
		sshhost.Method(),
		azure.Method(),
		ci.OIDC(),
		ci.CircleCI(),
		ci.Buildkite(),
		ci.GitHub(),
		gcp.Method(),
		sevsnp.Method(),
		tdx.Method(),
		tpm.Method(),
	}
}
